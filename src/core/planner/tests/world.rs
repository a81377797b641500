//! A small world for the planner: a disk, two issuers, an untrustworthy courier, a scanner and two clocks. It does what
//! the planner asks, later, and as badly as the script says; what happened is written into a history.
//!
//! Issuer 0 rotates strictly: the refresh token of an exchange is dead when its answer leaves. Issuer 1 never rotates.
//! The file is long: disk, courier and issuers share one clock, one queue of tasks and one history.

use super::super::*;
use crate::core::use_file::Use;

pub(super) const SECOND: u64 = 1000;
pub(super) const MINUTE: u64 = 60 * SECOND;
pub(super) const HOUR: u64 = 60 * MINUTE;
const FULL_SCAN: u64 = 10 * MINUTE;
const TIMEOUT: u64 = 20 * SECOND;

/// How an issuer is, towards everybody or towards one credential.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Mood {
    Well,
    Dead,
    Hanging,
    Failing,
    Limiting(u64),
    RefusesClient,
    Restricts,
}

/// What the script may do.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Wait(u64),
    Scan(usize),
    FullScan,
    /// A new approval; with or without a hint of the watch.
    Store(usize, bool),
    /// The same token in another file.
    StoreAnew(usize, bool),
    StoreBad(usize, Kind, bool),
    Remove(usize, bool),
    RemoveUser(usize),
    LoseUse(usize, bool),
    Step(i64),
    Mood(usize, Mood),
    CredentialMood(usize, Mood),
    Revoke(usize),
    DiskFull(bool),
    KeepTrouble(bool),
    PublishTrouble(bool),
    CourierDies,
    Renew(usize),
    /// The last event once more.
    Repeat,
    /// These are the providers then, in this order, by their issuers; from 2 on they own nothing that anybody has.
    Reload(Vec<usize>),
}

/// What happened, for the properties.
#[derive(Debug, Clone, Copy)]
pub(super) enum Note {
    /// The planner let an exchange start.
    Started {
        who: usize,
        issuer: usize,
    },
    /// Its request left, with this refresh token.
    Asked {
        who: usize,
        token: u64,
    },
    Answered {
        who: usize,
        issuer: usize,
        failure: Option<Failure>,
    },
    /// The planner was told of another `.top`, of a lost `.use`, or to renew.
    Changed {
        who: usize,
    },
    KeptOnDisk {
        token: u64,
    },
    OnDisk {
        who: usize,
        spent: u64,
        rotated: Option<u64>,
    },
    Failed {
        who: usize,
        kind: Kind,
        next_in: Option<u64>,
    },
    Parked {
        who: usize,
        kind: Kind,
    },
    Issuer {
        issuer: usize,
        down: Option<Kind>,
    },
    Reloaded,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Content {
    Token(u64),
    Bad(Kind),
}

#[derive(Debug, Clone)]
struct File {
    identity: Identity,
    content: Content,
    used: Option<Use>,
    top_newer: bool,
    /// True end of the `.use`, whatever the wall clock says.
    alive_until: u64,
}

#[expect(clippy::struct_excessive_bools, reason = "what happened to it on the way, in any order")]
#[derive(Debug)]
struct Trip {
    who: usize,
    issuer: usize,
    identity: Identity,
    spent: Option<u64>,
    asked: bool,
    answered: bool,
    answered_at: u64,
    result: Option<Result<Brought, Failure>>,
    rotated: Option<u64>,
    kept: bool,
    superseded: bool,
}

#[derive(Debug, Clone)]
enum Task {
    Deliver(Event),
    Look(UserName),
    FullScan,
    Prepare(u64),
    Reach { number: u64, who: usize, token: u64 },
    Keep(u64),
    Publish(u64, Identity, Timestamp),
}

pub(super) struct World {
    pub(super) planner: Planner,
    /// The providers, by index: each one's issuer.
    providers: Vec<usize>,
    limits: [Limits; 2],
    pub(super) refresh: u64,
    lifetimes: [u64; 2],
    latency: u64,
    pub(super) ids: Vec<CredentialId>,
    pub(super) now: u64,
    offset: i64,
    files: BTreeMap<usize, File>,
    /// Refresh tokens that an issuer takes.
    valid: BTreeSet<u64>,
    moods: [Mood; 2],
    bad: BTreeMap<usize, Mood>,
    disk_full: bool,
    keep_trouble: bool,
    publish_trouble: bool,
    /// Exchanges that the planner has not discarded yet.
    trips: BTreeMap<u64, Trip>,
    /// Refresh tokens that issuer 0 gave.
    given: BTreeSet<u64>,
    tasks: BTreeMap<(u64, u64), Task>,
    serial: u64,
    next_full_scan: u64,
    last: Option<Event>,
    /// What the planner has been told of each `.top`, and of whether there is a `.use`.
    told: BTreeMap<usize, (Result<Identity, Kind>, bool)>,
    /// What the planner was shown, and has not told as forgotten since.
    pub(super) shown: BTreeSet<usize>,
    started: Vec<Vec<u64>>,
    /// Tokens that were lost with an answer between issuer and keeper.
    lost: BTreeSet<u64>,
    pub(super) history: Vec<(u64, Note)>,
}

/// Users 0 and 1 have two credentials each, one at each issuer; user 2 and the others one at issuer 0.
fn id(who: usize) -> CredentialId {
    let user = if who < 4 { who / 2 } else { who };
    let base = if who < 4 && who % 2 == 1 { "b" } else { "a" };
    CredentialId::from_base(UserName::parse(&format!("u{user}")).unwrap(), base).unwrap()
}

pub(super) fn issuer_of(who: usize) -> usize {
    usize::from(who < 4 && who % 2 == 1)
}

impl World {
    pub(super) fn new(credentials: usize, limits: [Limits; 2], lifetimes: [u64; 2], refresh: u64) -> Self {
        Self {
            planner: Planner::new(&limits, Duration::from_millis(refresh)),
            providers: vec![0, 1],
            limits,
            refresh,
            lifetimes,
            latency: 30,
            ids: (0..credentials).map(id).collect(),
            now: 1,
            offset: 1_700_000_000_000,
            files: BTreeMap::new(),
            valid: BTreeSet::new(),
            moods: [Mood::Well; 2],
            bad: BTreeMap::new(),
            disk_full: false,
            keep_trouble: false,
            publish_trouble: false,
            trips: BTreeMap::new(),
            given: BTreeSet::new(),
            tasks: BTreeMap::new(),
            serial: 0,
            next_full_scan: 1,
            last: None,
            told: BTreeMap::new(),
            shown: BTreeSet::new(),
            started: vec![Vec::new(); 2],
            lost: BTreeSet::new(),
            history: Vec::new(),
        }
    }

    fn clock(&self) -> Now {
        Now { wall: Timestamp(i64::try_from(self.now).unwrap() + self.offset), tick: Tick(self.now) }
    }

    fn note(&mut self, note: Note) {
        self.history.push((self.now, note));
    }

    fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn later(&mut self, delay: u64, task: Task) {
        let serial = self.serial();
        self.tasks.insert((self.now + delay, serial), task);
    }

    fn identity(&mut self) -> Identity {
        let serial = self.serial();
        let mut hash = [0; 16];
        hash[..8].copy_from_slice(&serial.to_be_bytes());
        Identity { ino: serial, size: 100, mtime_ns: 7, hash }
    }

    fn who(&self, id: &CredentialId) -> usize {
        self.ids.iter().position(|known| known == id).unwrap()
    }

    /// Run a script, then go on for `rest`.
    pub(super) fn run(&mut self, ops: &[Op], rest: u64) {
        for op in ops {
            self.op(op);
            self.settle();
        }
        self.pass(rest);
    }

    pub(super) fn op(&mut self, op: &Op) {
        let count = self.ids.len();
        match *op {
            Op::Reload(ref providers) => self.reload(providers),
            Op::Wait(time) => self.pass(time),
            Op::Scan(who) => self.later(0, Task::Look(self.ids[who % count].user.clone())),
            Op::FullScan => self.later(0, Task::FullScan),
            Op::Store(who, hint) => {
                let token = self.serial();
                self.valid.insert(token);
                self.store(who % count, Content::Token(token), hint);
            }
            Op::StoreAnew(who, hint) => {
                if let Some(content) = self.files.get(&(who % count)).map(|file| file.content) {
                    self.store(who % count, content, hint);
                }
            }
            Op::StoreBad(who, kind, hint) => self.store(who % count, Content::Bad(kind), hint),
            Op::Remove(who, hint) => {
                let before = self.files.remove(&(who % count));
                self.retire(before.map(|file| file.content));
                self.hint(who % count, hint);
            }
            Op::RemoveUser(who) => {
                let user = self.ids[who % count].user.clone();
                for other in (0..count).filter(|&other| self.ids[other].user == user).collect::<Vec<_>>() {
                    let before = self.files.remove(&other);
                    self.retire(before.map(|file| file.content));
                }
            }
            Op::LoseUse(who, hint) => {
                if let Some(file) = self.files.get_mut(&(who % count)) {
                    (file.used, file.alive_until) = (None, 0);
                }
                self.hint(who % count, hint);
            }
            Op::Step(by) => self.offset += by,
            Op::Mood(issuer, mood) => self.moods[issuer] = mood,
            Op::CredentialMood(who, mood) => {
                self.bad.insert(who % count, mood);
            }
            Op::Revoke(who) => {
                if let Some(Content::Token(token)) = self.files.get(&(who % count)).map(|file| file.content) {
                    self.valid.remove(&token);
                }
            }
            Op::DiskFull(on) => self.disk_full = on,
            Op::KeepTrouble(on) => self.keep_trouble = on,
            Op::PublishTrouble(on) => self.publish_trouble = on,
            Op::CourierDies => self.courier_dies(),
            Op::Renew(who) => {
                let id = self.ids[who % count].clone();
                self.note(Note::Changed { who: who % count });
                self.deliver(Event::Renew { id });
            }
            Op::Repeat => {
                if let Some(event) = self.last.clone() {
                    self.deliver(event);
                }
            }
        }
    }

    fn store(&mut self, who: usize, content: Content, hint: bool) {
        let identity = self.identity();
        let before = self.files.remove(&who);
        self.retire(before.as_ref().map(|file| file.content).filter(|old| *old != content));
        let (used, alive_until) = before.map_or((None, 0), |file| (file.used, file.alive_until));
        self.files.insert(who, File { identity, content, used, top_newer: true, alive_until });
        self.hint(who, hint);
    }

    /// The user does not want this one any more.
    fn retire(&mut self, content: Option<Content>) {
        if let Some(Content::Token(token)) = content {
            self.valid.remove(&token);
        }
    }

    fn hint(&mut self, who: usize, hint: bool) {
        if hint {
            self.later(3, Task::Look(self.ids[who].user.clone()));
        }
    }

    /// Everything is well again.
    pub(super) fn calm(&mut self) {
        self.moods = [Mood::Well; 2];
        self.bad.clear();
        (self.disk_full, self.keep_trouble, self.publish_trouble) = (false, false, false);
        if ![0, 1].iter().all(|issuer| self.providers.contains(issuer)) {
            self.reload(&[0, 1]);
        }
        self.settle();
    }

    fn courier_dies(&mut self) {
        let out: Vec<u64> = self.trips.iter().filter(|(_, t)| t.asked && !t.answered).map(|t| *t.0).collect();
        for number in out {
            let trip = self.trips.get_mut(&number).unwrap();
            // Its answer, if there is one on the way, still comes, to nobody.
            trip.answered = true;
            self.lost.extend(trip.rotated.take());
            let failure = Failure { kind: Kind::CourierLost, retry_after: None, rotated: false };
            self.deliver(Event::Answered { number, result: Err(failure) });
        }
    }

    fn reload(&mut self, providers: &[usize]) {
        self.planner.stop();
        let patience = self.now + 10 * MINUTE;
        while !(self.planner.is_idle() || self.planner.waits_only_for_the_disk()) {
            assert!(self.now < patience, "a reload ends");
            self.pass(10);
        }
        let old = std::mem::replace(&mut self.providers, providers.to_vec());
        let limits: Vec<Limits> =
            providers.iter().map(|&issuer| *self.limits.get(issuer).unwrap_or(&self.limits[0])).collect();
        let mut planner = Planner::new(&limits, Duration::from_millis(self.refresh));
        let unkept = self.planner.unkept().into_iter().map(|unkept| {
            let provider = self.provider_of(self.who(&unkept.id));
            (unkept, provider)
        });
        planner.inherit(self.clock(), &self.planner, unkept.collect::<Vec<_>>());
        let before = std::mem::replace(&mut self.planner, Planner::new(&[], Duration::ZERO));
        planner.expect(Tick(self.now), before, |id| {
            // One that was not configured before is not as it was.
            self.provider_of(self.who(id)).map(|provider| old.contains(&self.providers[provider]))
        });
        // What is nobody's any more is not told of either, but for a refresh token that the disk has still to take.
        let shown = std::mem::take(&mut self.shown);
        let is_told_of = |&who: &usize| self.provider_of(who).is_some() || planner.knows(&self.ids[who]);
        self.shown = shown.into_iter().filter(is_told_of).collect();
        // The exchanges of the planner before are over; so are its budgets.
        self.trips.retain(|_, trip| trip.rotated.is_some() && !trip.kept);
        self.started = vec![Vec::new(); 2];
        self.planner = planner;
        self.note(Note::Reloaded);
        self.later(0, Task::FullScan);
    }

    /// Let time pass, doing whatever comes due.
    pub(super) fn pass(&mut self, time: u64) {
        let end = self.now + time;
        loop {
            self.settle();
            let sleep = self.planner.next_deadline(self.clock());
            assert!(sleep <= Duration::from_secs(60), "asked again at least each 60 s");
            assert!(!sleep.is_zero(), "what is due now has been done");
            let wake = self.now + u64::try_from(sleep.as_millis()).unwrap();
            let next = self.tasks.keys().next().map_or(u64::MAX, |key| key.0).min(self.next_full_scan);
            self.now = wake.min(next).min(end).max(self.now);
            if self.now == end && next > end {
                self.settle();
                return;
            }
        }
    }

    /// Do what is due at this moment.
    fn settle(&mut self) {
        loop {
            while let Some(action) = self.planner.next_action(self.clock()) {
                self.perform(action);
            }
            self.check();
            if self.now >= self.next_full_scan {
                self.next_full_scan = self.now + FULL_SCAN;
                self.later(0, Task::FullScan);
            }
            let Some(entry) = self.tasks.first_entry().filter(|entry| entry.key().0 <= self.now) else { return };
            let task = entry.remove();
            self.task(task);
        }
    }

    fn check(&self) {
        self.planner.roster.check();
        let flying = |entry: &&Entry| matches!(entry.wait(), Wait::Flying(_));
        assert_eq!(self.planner.roster.entries().filter(flying).count(), self.planner.flights.len());
        for (&number, flight) in &self.planner.flights {
            let entry = self.planner.roster.get(flight.slot).expect("a flight has its credential");
            assert_eq!(entry.wait(), Wait::Flying(number), "and the credential this flight");
        }
    }

    fn perform(&mut self, action: Action) {
        // No `_ =>`: a new action must say here what it does to the files.
        match action {
            Action::Exchange { number, id, provider, identity } => {
                let who = self.who(&id);
                assert_eq!(
                    self.providers.get(provider),
                    Some(&issuer_of(who)),
                    "{id}: asked at the provider that owns it"
                );
                let provider = issuer_of(who);
                let others = self.trips.values().filter(|trip| trip.who == who).count();
                assert_eq!(others, 0, "{id}: one exchange at a time");
                let out = self.trips.values().filter(|trip| trip.issuer == provider && !trip.answered).count();
                assert!(out < self.limits[provider].in_flight as usize, "the budget in flight is kept");
                let rate = self.limits[provider].per_second as usize;
                let from = self.now.saturating_sub(999);
                self.started[provider].retain(|&at| at >= from);
                assert!(self.started[provider].len() < rate, "no more in any second");
                self.started[provider].push(self.now);
                self.note(Note::Started { who, issuer: provider });
                let trip = Trip {
                    who,
                    issuer: provider,
                    identity,
                    spent: None,
                    asked: false,
                    answered: false,
                    answered_at: 0,
                    result: None,
                    rotated: None,
                    kept: false,
                    superseded: false,
                };
                self.trips.insert(number, trip);
                self.later(1, Task::Prepare(number));
            }
            Action::Keep { number, identity } => {
                let trip = &self.trips[&number];
                assert!(trip.rotated.is_some() && identity == trip.identity, "in place of what it started from");
                self.later(2, Task::Keep(number));
            }
            Action::Publish { number, identity, issued } => {
                let trip = &self.trips[&number];
                assert!(matches!(trip.result, Some(Ok(_))), "only good answers");
                assert_eq!(identity, trip.identity, "beside what it started from, or what was kept of it");
                assert!(trip.rotated.is_none() || trip.kept, "the refresh token comes first");
                self.later(2, Task::Publish(number, identity, issued));
            }
            Action::Discard { number } => {
                let trip = self.trips.remove(&number).unwrap();
                assert!(trip.rotated.is_none() || trip.kept || trip.superseded, "no refresh token is dropped");
            }
            Action::Look { user } => self.later(1, Task::Look(user)),
            Action::Announce(announcement) => self.announce(&announcement),
        }
    }

    fn announce(&mut self, announcement: &Announcement) {
        match announcement {
            Announcement::Failed { id, kind, next_in, .. } => {
                let next_in = next_in.map(|d| u64::try_from(d.as_millis()).unwrap());
                self.note(Note::Failed { who: self.who(id), kind: *kind, next_in });
            }
            Announcement::Parked { id, kind, .. } => self.note(Note::Parked { who: self.who(id), kind: *kind }),
            Announcement::Issuer { provider, down } => {
                self.note(Note::Issuer { issuer: self.providers[*provider], down: *down });
            }
            Announcement::Forgotten { id } => {
                assert!(self.shown.remove(&self.who(id)), "{id}: forgotten once, after it was seen");
            }
            Announcement::Renewed { .. } | Announcement::Unusable { .. } => {}
        }
    }

    /// Index of the provider that owns its service.
    fn provider_of(&self, who: usize) -> Option<usize> {
        self.providers.iter().position(|&issuer| issuer == issuer_of(who))
    }

    fn deliver(&mut self, mut event: Event) {
        // Whose it is, is settled when the planner is told: the look may be of a time before a reload.
        if let Event::Scanned { found, .. } = &mut event {
            found.retain_mut(|found| {
                let provider = self.provider_of(self.who(&found.id));
                found.provider = provider.unwrap_or(usize::MAX);
                provider.is_some()
            });
        }
        if let Event::Kept { .. } | Event::Answered { .. } | Event::Published { .. } | Event::Superseded { .. } = event
        {
            self.last = Some(event.clone());
        }
        if let Event::Scanned { found, .. } = &event {
            for found in found {
                let who = self.who(&found.id);
                self.shown.insert(who);
                let before = self.told.insert(who, (found.top, found.use_file.is_some()));
                if before.is_none_or(|(top, used)| top != found.top || (used && found.use_file.is_none())) {
                    self.note(Note::Changed { who });
                }
            }
        }
        self.planner.handle(self.clock(), event);
        self.check();
    }

    fn task(&mut self, task: Task) {
        match task {
            Task::Deliver(event) => {
                if let Event::Answered { number, result } = event
                    && let Some(trip) = self.trips.get_mut(&number).filter(|trip| !trip.answered)
                {
                    (trip.answered, trip.answered_at, trip.result) = (true, self.now, Some(result));
                    let (who, issuer) = (trip.who, trip.issuer);
                    self.note(Note::Answered { who, issuer, failure: result.err() });
                }
                self.deliver(event);
            }
            Task::Look(user) => {
                let event = self.look(&user);
                self.later(2, Task::Deliver(event));
            }
            Task::FullScan => {
                let users: BTreeSet<UserName> = self.files.keys().map(|&who| self.ids[who].user.clone()).collect();
                let mut delay = 0;
                for user in users.clone() {
                    delay += 4;
                    self.later(delay, Task::Look(user));
                }
                let as_of = Tick(self.now);
                self.later(delay + 10, Task::Deliver(Event::FullScan { as_of, users }));
            }
            Task::Prepare(number) => self.prepare(number),
            Task::Reach { number, who, token } => self.reach(number, who, token),
            Task::Keep(number) => self.keep(number),
            Task::Publish(number, identity, issued) => self.publish(number, identity, issued),
        }
    }

    fn look(&self, user: &UserName) -> Event {
        let here = self.files.iter().filter(|(who, _)| self.ids[**who].user == *user);
        let found = here.map(|(&who, file)| Found {
            id: self.ids[who].clone(),
            provider: usize::MAX,
            top: match file.content {
                // Only the keys tell that it cannot be opened.
                Content::Token(_) | Content::Bad(Kind::TopSealed) => Ok(file.identity),
                Content::Bad(kind) => Err(kind),
            },
            use_file: file.used,
            refresh_ends: None,
            top_newer: file.top_newer,
        });
        Event::Scanned { user: user.clone(), as_of: Tick(self.now), found: found.collect() }
    }

    fn answer(&mut self, number: u64, delay: u64, result: Result<Brought, Failure>) {
        self.later(delay, Task::Deliver(Event::Answered { number, result }));
    }

    fn prepare(&mut self, number: u64) {
        let (who, identity) = (self.trips[&number].who, self.trips[&number].identity);
        let fail = |kind| Err(Failure { kind, retry_after: None, rotated: false });
        match self.files.get(&who).filter(|file| file.identity == identity).map(|file| file.content) {
            None => {
                self.trips.get_mut(&number).unwrap().superseded = true;
                self.later(0, Task::Deliver(Event::Superseded { number }));
            }
            Some(Content::Bad(kind)) => self.answer(number, 0, fail(kind)),
            Some(Content::Token(_)) if self.disk_full => self.answer(number, 0, fail(Kind::NoSpace)),
            Some(Content::Token(token)) => {
                let trip = self.trips.get_mut(&number).unwrap();
                (trip.spent, trip.asked) = (Some(token), true);
                self.note(Note::Asked { who, token });
                self.later(self.latency, Task::Reach { number, who, token });
            }
        }
    }

    fn reach(&mut self, number: u64, who: usize, token: u64) {
        let issuer = issuer_of(who);
        let fail = |kind, wait: Option<u64>| {
            Err(Failure { kind, retry_after: wait.map(Duration::from_millis), rotated: false })
        };
        let mood = match self.moods[issuer] {
            Mood::Well => self.bad.get(&who).copied().unwrap_or(Mood::Well),
            mood => mood,
        };
        match mood {
            Mood::Dead => self.answer(number, self.latency, fail(Kind::Network, None)),
            Mood::Hanging => self.answer(number, TIMEOUT, fail(Kind::Timeout, None)),
            Mood::Failing => self.answer(number, self.latency, fail(Kind::ServerError, None)),
            Mood::Limiting(wait) => self.answer(number, self.latency, fail(Kind::RateLimited, Some(wait))),
            Mood::RefusesClient => self.answer(number, self.latency, fail(Kind::ClientRefused, None)),
            Mood::Restricts => self.answer(number, self.latency, fail(Kind::Restricted, None)),
            Mood::Well if !self.valid.contains(&token) => self.answer(number, self.latency, fail(Kind::Revoked, None)),
            Mood::Well => {
                if issuer == 0 {
                    let next = self.serial();
                    self.valid.remove(&token);
                    self.valid.insert(next);
                    self.given.insert(next);
                    match self.trips.get_mut(&number).filter(|trip| !trip.answered) {
                        Some(trip) => trip.rotated = Some(next),
                        None => drop(self.lost.insert(next)),
                    }
                }
                let lifetime = Duration::from_millis(self.lifetimes[issuer]);
                self.answer(
                    number,
                    self.latency,
                    Ok(Brought { lifetime, refresh_lifetime: None, rotated: issuer == 0, flagged: None }),
                );
            }
        }
    }

    fn keep(&mut self, number: u64) {
        if self.keep_trouble {
            return self.later(0, Task::Deliver(Event::KeepFailed { number, kind: Kind::PublishFailed }));
        }
        let identity = self.identity();
        let trip = self.trips.get_mut(&number).unwrap();
        let token = trip.rotated.unwrap();
        let file = self.files.get_mut(&trip.who).filter(|file| file.content == Content::Token(trip.spent.unwrap()));
        let Some(file) = file else {
            // Another approval, or none: this token is nobody's any more.
            trip.superseded = true;
            self.valid.remove(&token);
            return self.later(0, Task::Deliver(Event::Superseded { number }));
        };
        let stored_anew = file.identity != trip.identity;
        (file.identity, file.content, file.top_newer) = (identity, Content::Token(token), true);
        (trip.kept, trip.identity) = (true, identity);
        let who = trip.who;
        self.told.entry(who).or_insert((Ok(identity), false)).0 = Ok(identity);
        self.note(Note::KeptOnDisk { token });
        self.later(1, Task::Deliver(Event::Kept { number, identity, stored_anew }));
    }

    fn publish(&mut self, number: u64, identity: Identity, issued: Timestamp) {
        if self.publish_trouble {
            return self.later(0, Task::Deliver(Event::PublishFailed { number, kind: Kind::PublishFailed }));
        }
        let trip = self.trips.get_mut(&number).unwrap();
        let Some(file) = self.files.get_mut(&trip.who).filter(|file| file.identity == identity) else {
            trip.superseded = true;
            return self.later(0, Task::Deliver(Event::Superseded { number }));
        };
        let Some(Ok(brought)) = trip.result else { unreachable!("only good answers are published") };
        let (who, spent, rotated) = (trip.who, trip.spent.unwrap(), trip.rotated);
        assert_eq!(file.content, Content::Token(rotated.unwrap_or(spent)), "its own answer, or nobody's");
        file.used = Some(Use { issued: Some(issued), expiry: Some(issued.plus(brought.lifetime)) });
        file.top_newer = false;
        let lifetime = u64::try_from(brought.lifetime.as_millis()).unwrap();
        file.alive_until = trip.answered_at + lifetime;
        self.note(Note::OnDisk { who, spent, rotated });
        self.later(1, Task::Deliver(Event::Published { number }));
    }

    /// Which credentials have no living token.
    pub(super) fn dead(&self) -> Vec<usize> {
        self.files.iter().filter(|(_, file)| file.alive_until <= self.now).map(|(who, _)| *who).collect()
    }

    /// Whether an issuer takes what is in the `.top`.
    pub(super) fn is_usable(&self, who: usize) -> bool {
        matches!(self.files[&who].content, Content::Token(token) if self.valid.contains(&token))
    }

    /// Refresh tokens that an issuer gave and still takes, and no `.top` holds, but for those that the courier lost.
    pub(super) fn orphaned(&self) -> Vec<u64> {
        let held: BTreeSet<u64> = self
            .files
            .values()
            .filter_map(|file| match file.content {
                Content::Token(token) => Some(token),
                Content::Bad(_) => None,
            })
            .collect();
        let orphan = |token: &&u64| self.valid.contains(token) && !held.contains(token) && !self.lost.contains(token);
        self.given.iter().filter(orphan).copied().collect()
    }

    /// What the planner knows.
    pub(super) fn known(&self) -> BTreeSet<usize> {
        self.planner.roster.entries().map(|entry| self.who(&entry.id)).collect()
    }

    /// What the users have stored.
    pub(super) fn stored(&self) -> BTreeSet<usize> {
        self.files.keys().copied().collect()
    }

    /// The files by name.
    pub(super) fn visible(&self) -> BTreeSet<String> {
        let used = self.files.iter().filter(|(_, file)| file.used.is_some()).map(|(who, _)| format!("{who}.use"));
        self.files.keys().map(|who| format!("{who}.top")).chain(used).collect()
    }

    pub(super) fn describe(&self) -> String {
        format!("limits: {:?}, lifetimes: {:?}, refresh: {}", self.limits, self.lifetimes, self.refresh)
    }
}
