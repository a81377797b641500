//! The loop around the planner: inputs in, actions performed, sleep until the planner wants to be asked again.
//!
//! What an exchange holds (reserved space, the answer, a rotated refresh token) lives in [`Held`] under its number and
//! is dropped only when the planner says so. The file is long for [`Input`]: whatever reaches the loop is one variant of it.

mod homecoming;
mod orders;
mod serve;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender},
    },
    time::{Duration, Instant, SystemTime},
};

use super::{
    announce::Announcer,
    approvals::{self, Approvals},
    control::{Order, Reply},
    course::Courses,
    disk::{Disk, Job},
    link::Link,
    log::LogHandle,
    replicas::{self, Replication},
    revoker::{self, Revoker},
    scanner::{self, FirstScan, Look, Ticket},
    status,
};
use crate::{
    config::settings::{Provider, Settings, WebApproval},
    core::{
        answer::{Answer, ExchangeError, Grant, Outcome},
        approval::{Ask, Told},
        course::Course,
        id::{CredentialId, UserName},
        planner::{Action, Announcement, Brought, Event, Failure, Found, Planner},
        secret::RefreshToken,
        snapshot::Status,
        time::{Now, Tick, Timestamp},
        top::Identity,
    },
    courier::{frame::ToCourier, probe::Facts},
    error::Kind,
    notice::{letter::Letter, round},
    spool::{Reservation, Seal, Seen, Spool, SpoolError},
};

/// A provider and what only the keeper holds for it.
#[derive(Debug)]
pub struct Owner {
    /// Its settings.
    pub provider: Provider,
    /// Opens and closes `.top` files that are Fernet text.
    pub seal: Option<Seal>,
}

/// What is held for an exchange under way.
#[derive(Debug)]
pub struct Held {
    /// Whose.
    pub id: CredentialId,
    /// Its provider.
    pub owner: Arc<Owner>,
    /// Space for both files.
    pub reservation: Reservation,
    /// The refresh token that the exchange spends, if it spends one.
    pub spent: Option<RefreshToken>,
    /// The answer, once it is there.
    pub answer: Option<Answer>,
    /// The refresh token that must be made durable first.
    pub rotated: Option<RefreshToken>,
}

/// What a look at a user's directory found.
#[derive(Debug)]
pub struct Looked {
    /// Whose.
    pub user: UserName,
    /// When looking began.
    pub as_of: Tick,
    /// What is there. Whose services these are, the loop knows: the scanner may not have heard of a reload yet.
    pub seen: Vec<Seen>,
}

/// Everything that reaches the loop.
#[derive(Debug)]
pub enum Input {
    /// For the planner as it is.
    Event(Event),
    /// The credential directory is not the one any more that was opened.
    SpoolGone(SpoolError),
    /// Directories have been looked at.
    Looked {
        /// One after the other.
        looks: Vec<Looked>,
        /// Goes back when this has been taken.
        ticket: Ticket,
    },
    /// All directories have been looked at.
    FullScan {
        /// When the users were listed.
        as_of: Tick,
        /// All users.
        users: BTreeSet<UserName>,
    },
    /// A request is ready for the courier.
    Ask {
        /// Exchange.
        number: u64,
        /// What to ask.
        grant: Grant,
        /// What is held meanwhile.
        held: Box<Held>,
    },
    /// A job gives back what it was handed.
    Back {
        /// Exchange.
        number: u64,
        /// What is held.
        held: Box<Held>,
        /// What happened.
        event: Event,
    },
    /// The courier is ready.
    CourierUp {
        /// Of which link.
        generation: u64,
        /// Its process.
        pid: u32,
        /// What confines it.
        sandbox: String,
    },
    /// The courier is gone.
    CourierDown {
        /// Of which link.
        generation: u64,
        /// Why.
        why: String,
    },
    /// An exchange ended.
    Answer {
        /// Of which link.
        generation: u64,
        /// Exchange.
        number: u64,
        /// How.
        outcome: Outcome,
        /// How long the issuer took.
        took: Duration,
    },
    /// The page for approvals asks.
    Approval {
        /// Of which link.
        generation: u64,
        /// Comes back with the answer.
        number: u64,
        /// What.
        ask: Ask,
    },
    /// The answer for it.
    ApprovalTold {
        /// Of which link.
        generation: u64,
        /// The question's number.
        number: u64,
        /// The answer.
        told: Told,
    },
    /// The refresh token of a credential was read, to give it back one day, or now.
    Learned {
        /// Which.
        id: CredentialId,
        /// The `.top` and the token, or why it may not go to its provider.
        found: Result<(Identity, revoker::Held), ExchangeError>,
        /// The uid of who ordered that it be given back now.
        order: Option<u32>,
    },
    /// A revocation ended.
    Revoked {
        /// Of which link.
        generation: u64,
        /// Its number.
        number: u64,
        /// How.
        result: Result<(), ExchangeError>,
    },
    /// Notices want to know how credentials stand.
    Standings(round::Question),
    /// Notices have a letter for the courier.
    Deliver {
        /// Its number.
        number: u64,
        /// It.
        letter: Box<Letter>,
    },
    /// What became of a letter that the courier had.
    Delivered {
        /// Its number, the same for no two letters of any link.
        number: u64,
        /// How it ended.
        result: Result<(), String>,
    },
    /// What became of a letter in the end, for counts and audit.
    Delivery(round::Delivery),
    /// What became of a delivery, for traces.
    Course(Box<Course>),
    /// A reader waits for the status page.
    WantPage {
        /// Of which link.
        generation: u64,
    },
    /// The courier could open the page for approvals, if it started anew.
    WantRestart {
        /// Of which link.
        generation: u64,
    },
    /// A reader of metrics waits for figures.
    WantFigures {
        /// Of which link.
        generation: u64,
    },
    /// A probe ended; only `evercred doctor` asks for any.
    Probed {
        /// Index of the provider.
        provider: usize,
        /// What was seen.
        facts: Box<Facts>,
    },
    /// Somebody wants to know how things stand.
    Status {
        /// Only this user's credentials.
        user: Option<UserName>,
        /// Where the answer goes.
        reply: SyncSender<Box<Status>>,
    },
    /// An admin's order.
    Order {
        /// Who.
        uid: u32,
        /// What.
        order: Order,
        /// Where the answer goes.
        reply: SyncSender<Reply>,
    },
    /// An order that did not get as far as that.
    OrderRefused {
        /// Who.
        uid: u32,
        /// What, if it was one.
        order: Option<Order>,
        /// Why not.
        why: String,
    },
    /// SIGHUP.
    Hangup,
    /// The configuration was read again, is valid and differs.
    Reload(Box<Settings>),
    /// SIGTERM, SIGINT or SIGQUIT.
    Stop,
}

/// Both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    wall: Timestamp,
}

impl Clock {
    /// Ticks count from now.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a clock starts when it is made, not by default")]
    pub fn new() -> Self {
        Self { start: Instant::now(), wall: wall() }
    }

    /// The wall time at which it was made.
    #[must_use]
    pub fn started(self) -> Timestamp {
        self.wall
    }

    /// Read both.
    #[must_use]
    pub fn now(self) -> Now {
        Now {
            wall: wall(),
            // From 1 on: zero is "never" in some sums.
            tick: Tick(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)),
        }
    }
}

fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Why the loop ended.
#[derive(Debug)]
pub enum End {
    /// Asked to stop.
    Stopped,
    /// The credential directory went away under us: a new start must judge what is there now.
    SpoolGone(SpoolError),
    /// `--once`: everything due was tried.
    Done {
        /// Whether anything failed.
        failed: bool,
    },
    /// `--once`: what is left waits for something that does not come.
    GaveUp {
        /// How many credentials.
        left: usize,
        /// What they wait for.
        why: String,
    },
    /// The configuration may have changed: ask again, with everything in flight brought home.
    Reload,
}

/// The parts that the loop drives.
#[derive(Debug)]
pub struct Driver {
    /// The decisions.
    pub planner: Planner,
    /// The clocks.
    pub clock: Clock,
    /// The credential directory.
    pub spool: Arc<Spool>,
    /// The file work.
    pub disk: Disk,
    /// The courier.
    pub link: Link,
    /// The providers, by index.
    pub owners: Vec<Arc<Owner>>,
    /// To the scanner.
    pub looks: Sender<Look>,
    /// What carries published tokens to sites.
    pub replication: Replication,
    /// `--once`.
    pub once: bool,
    /// To the thread that reads the configuration again.
    pub hangups: Sender<()>,
    /// The settings that a reload brought.
    pub reloaded: Option<Box<Settings>>,
    /// Where the page for approvals is, and who reads and stores for it.
    pub page: Option<(WebApproval, Approvals)>,
    /// The log, for what it could not write.
    pub log: Option<LogHandle>,
    /// Readers of the status socket.
    pub readers: status::Tally,
    /// The courses of renewals, for traces.
    pub courses: Courses,
    /// To those who tell people.
    pub notices: Option<Sender<round::Event>>,
    /// Whether everything has been looked at.
    pub first_scan: FirstScan,
    started: Timestamp,
    held: HashMap<u64, Box<Held>>,
    /// What the courier has to answer, and since when.
    asked: BTreeMap<u64, Instant>,
    unsent: Vec<(u64, usize, Grant)>,
    courier_up: bool,
    /// When it was last started anew for the page.
    for_page: Option<Instant>,
    /// Log, audit and counts; a reload hands it on.
    pub announcer: Announcer,
    /// What is to be given back to issuers; a reload hands it on.
    pub revoker: Revoker,
    /// Admins who wait for a revocation.
    waiting: HashMap<CredentialId, SyncSender<Reply>>,
    /// What the courier did not take for its readers, told already.
    unshown: BTreeSet<&'static str>,
    stop_by: Option<(Instant, End)>,
    /// Orders that wait for the first look.
    early: Vec<(u32, Order, SyncSender<Reply>)>,
    /// Since when there is a reload to come.
    reload_since: Option<Instant>,
    failed: bool,
    /// When something last went on, for `--once`.
    moved: Instant,
}

/// How long a stop waits for what is in flight.
const STOP_PATIENCE: Duration = Duration::from_millis(1500);
/// `--once` gives up when for so long nothing went on but probes of issuers that are down.
const STANDSTILL: Duration = Duration::from_secs(30);

impl Driver {
    /// Put the parts together.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "one constructor of the one struct that holds every part")]
    pub fn new(
        planner: Planner,
        clock: Clock,
        spool: Arc<Spool>,
        disk: Disk,
        link: Link,
        owners: Vec<Arc<Owner>>,
        looks: Sender<Look>,
        replication: Replication,
        hangups: Sender<()>,
        once: bool,
        announcer: Announcer,
        revoker: Revoker,
    ) -> Self {
        Self {
            planner,
            clock,
            spool,
            disk,
            link,
            owners,
            looks,
            replication,
            once,
            hangups,
            reloaded: None,
            page: None,
            log: None,
            readers: status::Tally::default(),
            courses: Courses::default(),
            notices: None,
            first_scan: FirstScan::default(),
            started: clock.started(),
            held: HashMap::new(),
            asked: BTreeMap::new(),
            unsent: Vec::new(),
            courier_up: false,
            for_page: None,
            announcer,
            revoker,
            waiting: HashMap::new(),
            unshown: BTreeSet::new(),
            stop_by: None,
            early: Vec::new(),
            reload_since: None,
            failed: false,
            moved: Instant::now(),
        }
    }

    /// Run until something ends it.
    pub fn run(&mut self, inputs: &Receiver<Input>) -> End {
        loop {
            let now = self.clock.now();
            while let Some(action) = self.planner.next_action(now) {
                self.perform(now, action);
            }
            let home = self.is_home();
            if let Some((_, end)) = self.stop_by.take_if(|(by, _)| home || Instant::now() >= *by) {
                if !matches!(end, End::Reload) {
                    self.tell_unkept();
                    self.tell_unanswered();
                    self.announcer.tell_held(Tick(u64::MAX));
                }
                return end;
            }
            if self.once && self.first_scan.is_over() && self.settled() {
                self.announcer.tell_held(Tick(u64::MAX));
                return End::Done { failed: self.failed };
            }
            if self.once && self.asks_somebody(now) {
                self.moved = Instant::now();
            }
            if self.once && self.stop_by.is_none() && self.moved.elapsed() >= STANDSTILL {
                let (left, why) = self.stands_still();
                tracing::error!(left, why, "nothing goes on any more; --once ends");
                // What is with an issuer may still bring a new refresh token.
                self.bring_home(now, self.exchange_patience(), End::GaveUp { left, why });
                continue;
            }
            if self.reload_is_near(now) {
                self.bring_home(now, self.exchange_patience(), End::Reload);
                continue;
            }
            self.revoke(now);
            self.announcer.tell_held(now.tick);
            let mut wait = self.planner.next_deadline(now).min(self.wake_the_courier());
            if self.reload_since.is_some() {
                wait = wait.min(homecoming::SLOW / 10);
            }
            if let Some(other) = self.revocations_wait(now) {
                wait = wait.min(other.max(Duration::from_millis(1)));
            }
            if self.once && self.stop_by.is_none() {
                wait = wait.min(STANDSTILL.saturating_sub(self.moved.elapsed()).max(Duration::from_millis(10)));
            }
            if let Some(other) = self.announcer.held_wait(now.tick) {
                wait = wait.min(other.max(Duration::from_millis(1)));
            }
            if let Some((by, _)) = &self.stop_by {
                wait = wait.min(by.saturating_duration_since(Instant::now())).max(Duration::from_millis(1));
            }
            let mut input = match inputs.recv_timeout(wait) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return End::Stopped,
            };
            let mut handled = 0;
            while let Some(one) = input {
                self.take(one);
                handled += 1;
                input = if handled < 256 { inputs.try_recv().ok() } else { None };
            }
        }
    }

    fn settled(&self) -> bool {
        let s = self.planner.snapshot();
        s.queued == 0 && s.in_flight == 0 && self.planner.is_idle()
    }

    /// A request is with an issuer that is not down: its end comes, if only by its timeout. Or one that answers has asked
    /// us to wait: that ends, too.
    fn asks_somebody(&self, now: Now) -> bool {
        self.courier_up
            && (0..self.owners.len()).any(|issuer| match self.planner.issuer(issuer) {
                (false, in_flight, queued) => in_flight > 0 || (queued > 0 && self.planner.is_paused(now, issuer)),
                (true, ..) => false,
            })
    }

    /// How many credentials wait, and for what.
    fn stands_still(&self) -> (usize, String) {
        let s = self.planner.snapshot();
        let waits = |&(index, _): &(usize, &Arc<Owner>)| {
            let (down, in_flight, queued) = self.planner.issuer(index);
            down || in_flight > 0 || queued > 0
        };
        let why = if !self.courier_up {
            "the network process does not start".to_owned()
        } else if !self.first_scan.is_over() {
            "the credential directory cannot be listed".to_owned()
        } else if self.planner.waits_only_for_the_disk() && s.in_flight > 0 {
            "the disk takes no refresh token".to_owned()
        } else {
            let waiting = self.owners.iter().enumerate().filter(waits);
            let names: Vec<_> = waiting.map(|(_, owner)| owner.provider.name.as_str()).collect();
            format!("no answer from the issuer of {}", names.join(", "))
        };
        (s.queued + s.in_flight, why)
    }

    /// Something went on, unless it was for an issuer that is down.
    fn note_move(&mut self, announcement: &Announcement) {
        use Announcement as A;
        let down = |provider: usize| self.planner.issuer(provider).0;
        let moved = match announcement {
            A::Failed { kind: Kind::CourierLost, .. } => false,
            A::Failed { provider, .. } | A::Parked { provider, .. } => !down(*provider),
            A::Issuer { down, .. } => down.is_none(),
            A::Renewed { .. } | A::Unusable { .. } | A::Forgotten { .. } => true,
        };
        if moved {
            self.moved = Instant::now();
        }
    }

    fn take(&mut self, input: Input) {
        let now = self.clock.now();
        match input {
            Input::Event(event) => {
                match &event {
                    Event::Published { number } => self.announcer.tally.published(*number),
                    Event::Answered { number, result: Err(failure) } => self.courses.failed(*number, failure.kind),
                    Event::PublishFailed { number, kind } | Event::KeepFailed { number, kind } => {
                        self.courses.failed(*number, *kind);
                    }
                    _ => {}
                }
                self.planner.handle(now, event);
            }
            Input::Looked { looks, ticket } => {
                for Looked { user, as_of, seen } in looks {
                    let found: Vec<Found> = seen.into_iter().filter_map(|seen| found(&self.owners, seen)).collect();
                    self.learn(&found);
                    self.planner.handle(now, Event::Scanned { user, as_of, found });
                }
                if !self.first_scan.is_over() {
                    self.moved = Instant::now();
                }
                drop(ticket);
            }
            Input::FullScan { as_of, users } => self.scanned(now, as_of, users),
            Input::Ask { number, grant, held } => {
                // One that was prepared for the settings before a reload has spent nothing, and nobody waits for it.
                let Some(provider) = self.owners.iter().position(|o| Arc::ptr_eq(o, &held.owner)) else { return };
                self.held.insert(number, held);
                if self.stop_by.is_some() {
                    // Nothing is spent yet.
                    self.lost(now, number);
                } else if self.courier_up {
                    self.ask(number, provider, grant);
                } else {
                    self.unsent.push((number, provider, grant));
                }
            }
            Input::Back { number, held, event } => {
                self.courses.kept(now.wall, number);
                self.held.insert(number, held);
                self.planner.handle(now, event);
            }
            Input::CourierUp { generation, pid, sandbox } if generation == self.link.generation() => {
                tracing::info!(pid, sandbox, "courier is ready");
                self.courier_up = true;
                for (number, provider, grant) in std::mem::take(&mut self.unsent) {
                    self.ask(number, provider, grant);
                }
            }
            Input::CourierDown { generation, why } if generation == self.link.generation() => {
                tracing::error!(why, lost = self.asked.len(), "courier is down; starting another");
                self.announcer.tally.courier_restarts += 1;
                self.revocations_lost(now);
                self.courier_up = false;
                for number in std::mem::take(&mut self.asked).into_keys() {
                    self.lost(now, number);
                }
            }
            Input::Answer { generation, number, outcome, took } if generation == self.link.generation() => {
                if let Some(held) = self.held.get(&number) {
                    self.announcer.tally.answered(&held.owner, number, took);
                    let (rotated, kind) = match &outcome {
                        Ok(answer) => (answer.rotated.is_some(), None),
                        Err(error) => (error.rotated.is_some(), Some(error.kind)),
                    };
                    self.courses.answered(now.wall, number, took, rotated, kind);
                }
                self.answered(now, number, outcome);
            }
            Input::Approval { generation, number, ask } if generation == self.link.generation() => {
                self.asked_by_page(now, generation, number, ask);
            }
            Input::ApprovalTold { generation, number, told } if generation == self.link.generation() => {
                self.tell_approval(number, told);
            }
            Input::CourierUp { .. } | Input::CourierDown { .. } | Input::Answer { .. } => {}
            Input::Hangup => {
                drop(self.looks.send(Look::All));
                // The reloader ends only with the process.
                self.hangups.send(()).ok();
            }
            Input::Reload(settings) => {
                self.reloaded = Some(settings);
                if self.stop_by.is_none() && self.reload_since.is_none() {
                    tracing::info!("configuration changed: bringing home what is in flight");
                    self.reload_since = Some(Instant::now());
                }
            }
            Input::SpoolGone(error) => {
                // The directory that was opened may still be there, by another name.
                self.bring_home(now, STOP_PATIENCE, End::SpoolGone(error));
            }
            Input::Stop => {
                tracing::info!("stopping");
                self.bring_home(now, STOP_PATIENCE, End::Stopped);
            }
            other => self.serve(now, other),
        }
    }

    /// A full scan ended.
    fn scanned(&mut self, now: Now, as_of: Tick, users: BTreeSet<UserName>) {
        self.planner.handle(now, Event::FullScan { as_of, users });
        if let Err(error) = self.spool.touch_complete() {
            tracing::warn!(%error, "cannot touch CREDMON_COMPLETE");
        }
        self.announcer.tally.last_scan = Some(now.wall);
        if self.first_scan.ended(as_of) {
            self.tell_notices(round::Event::Poke);
            for (uid, order, reply) in std::mem::take(&mut self.early) {
                self.order(now, uid, &order, &reply);
            }
        }
    }

    /// What the planner knows is told at once; files are for another thread.
    fn asked_by_page(&self, now: Now, generation: u64, number: u64, ask: Ask) {
        let Some((page, approvals)) = &self.page else { return };
        let Ask::Look { user, bases } = ask else {
            let (owners, page) = (self.owners.clone(), page.clone());
            let audit = self.announcer.audit().clone();
            approvals.submit(approvals::Job { generation, number, ask, owners, page, audit });
            return;
        };
        let mut standing = vec![None; bases.len()];
        if let Ok(user) = UserName::parse(&user) {
            for row in self.planner.rows(now, Some(&user)) {
                let base = row.id.base();
                if let Some(place) = bases.iter().position(|b| *b == base).and_then(|at| standing.get_mut(at)) {
                    *place = Some((row.state, row.error.map(|(kind, ..)| kind)));
                }
            }
        }
        self.tell_approval(number, Told::Standing(standing));
    }

    fn tell_approval(&self, number: u64, told: Told) {
        if let Err(error) = self.link.send(&ToCourier::Approval { number, told }) {
            tracing::debug!(%error, "the courier does not take an answer for the page");
        }
    }

    fn ask(&mut self, number: u64, provider: usize, grant: Grant) {
        match self.link.send(&ToCourier::Exchange { number, provider, grant }) {
            Ok(()) => {
                self.asked.insert(number, Instant::now());
            }
            Err(error) => {
                tracing::debug!(%error, number, "the courier does not take a request");
                let now = self.clock.now();
                self.lost(now, number);
            }
        }
    }

    fn lost(&mut self, now: Now, number: u64) {
        let failure = Failure { kind: Kind::CourierLost, retry_after: None, rotated: false };
        self.planner.handle(now, Event::Answered { number, result: Err(failure) });
    }

    fn answered(&mut self, now: Now, number: u64, outcome: Outcome) {
        self.asked.remove(&number);
        let Some(held) = self.held.get_mut(&number) else { return };
        let result = match outcome {
            Ok(mut answer) => {
                held.rotated = answer.rotated.take();
                let brought = Brought {
                    lifetime: answer.lifetime,
                    refresh_lifetime: answer.refresh_lifetime,
                    rotated: held.rotated.is_some(),
                    flagged: answer.flagged,
                };
                self.announcer.note_answer(&held.id, &answer);
                held.answer = Some(answer);
                Ok(brought)
            }
            Err(error) => {
                self.announcer.note(&held.id, &held.owner.provider.name, error.kind, error.detail);
                held.rotated = error.rotated;
                Err(Failure { kind: error.kind, retry_after: error.retry_after, rotated: held.rotated.is_some() })
            }
        };
        self.planner.handle(now, Event::Answered { number, result });
    }

    pub(super) fn trace(&self, course: Course) {
        if let Err(error) = self.link.send(&ToCourier::Trace(Box::new(course))) {
            tracing::debug!(%error, "the courier does not take a trace");
        }
    }

    fn perform(&mut self, now: Now, action: Action) {
        match action {
            Action::Exchange { number, id, provider, identity } => {
                // Whatever else went wrong: a refresh token goes to nobody but the provider that owns its service.
                let owner = scanner::provider_of(&self.owners, &id).filter(|owns| *owns == provider);
                if let Some(owner) = owner.and_then(|owns| self.owners.get(owns)) {
                    self.courses.began(now.wall, number, &id, &owner.provider.name);
                    self.disk.submit(Job::Prepare { number, id, identity, owner: Arc::clone(owner) });
                } else {
                    tracing::error!(credential = %id, "not sent: its service belongs to another provider");
                    self.lost(now, number);
                    drop(self.looks.send(Look::User(id.user)));
                }
            }
            Action::Keep { number, identity } => {
                if let Some(held) = self.held.remove(&number) {
                    self.courses.keeping(now.wall, number);
                    self.disk.submit(Job::Keep { number, identity, held });
                }
            }
            Action::Publish { number, identity, issued } => {
                if let Some(held) = self.held.remove(&number) {
                    if let Some((id, trace)) = self.courses.publishing(now.wall, number) {
                        // Before anybody can see the file: deliveries may begin at the first sight of it.
                        self.replication.tell(replicas::Told::Traced(id, trace));
                    }
                    self.disk.submit(Job::Publish { number, identity, held, issued });
                }
            }
            Action::Discard { number } => {
                self.announcer.tally.discarded(number);
                self.held.remove(&number);
                if let Some(renewal) = self.courses.ended(now.wall, number) {
                    self.trace(Course::Renewal(renewal));
                }
            }
            Action::Look { user } => drop(self.looks.send(Look::User(user))),
            Action::Announce(announcement) => {
                use Announcement as A;
                self.note_move(&announcement);
                self.failed |= matches!(announcement, A::Failed { .. } | A::Parked { .. } | A::Unusable { .. });
                if matches!(announcement, A::Parked { .. } | A::Unusable { .. } | A::Issuer { .. }) {
                    self.tell_notices(round::Event::Poke);
                }
                if let A::Forgotten { id } = &announcement {
                    self.forgotten(now, id);
                }
                if let A::Renewed { id, .. } = &announcement {
                    self.replication.tell(replicas::Told::Published(id.clone()));
                }
                self.announcer.tell(now, &self.owners, &announcement);
            }
        }
    }
}

/// What was seen, if its service is somebody's here and now.
fn found(owners: &[Arc<Owner>], seen: Seen) -> Option<Found> {
    let provider = scanner::provider_of(owners, &seen.id)?;
    let Seen { id, mut top, use_file, mut refresh_ends, top_newer } = seen;
    if let Some(accounts) = owners.get(provider)?.provider.accounts() {
        if !accounts.name(&id) {
            top = Err(Kind::AccountNotNamed);
        }
        // Whatever lies there is not spent, and its end is no matter.
        refresh_ends = None;
    }
    Some(Found { id, provider, top, use_file, refresh_ends, top_newer })
}
