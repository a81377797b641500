//! Looks at directories, on one thread: hints before the full scan, which it interleaves user by user.
//!
//! The first scan only looks, so that the start is short; the next one, right after it, watches each directory and looks
//! at it again. Where the watch works, later ones that nobody asked for list the users and go through those who are new or
//! of whom something was bad, and some of the rest: the watch answers for the others, so that such a pass is as complete
//! and touches `CREDMON_COMPLETE`, too. In a directory that others may write to from elsewhere, every one is whole.
//!
//! The file is long: what there is to look at (`Work`) and what it is looked at with (`Eye`) are one thread's, in turns.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError},
    },
    time::{Duration, Instant},
};

use super::{
    accounts::Stewards,
    driver::{Clock, Input, Looked, Owner},
    replicas::{self, Replication},
    told::Told,
};
use crate::{
    config::settings::Daemon,
    core::{
        id::{CredentialId, Handle, Service, UserName},
        time::Tick,
    },
    error::Kind,
    spool::{Hint, Listing, Seen, Spool, SpoolError, Wanted, Watch},
};

/// A full scan that a hint of overflow asks for comes at most this often.
const BETWEEN_FULL_SCANS: Duration = Duration::from_millis(200);
/// Full scans come at least this often where the system refuses watches.
const BLIND_SCAN: Duration = Duration::from_secs(60);

/// A full scan that comes of itself this rarely or more so takes one part of this many of the users who are well.
const IN_PARTS: Duration = Duration::from_secs(300);
const PARTS: usize = 144;
/// What was found is remembered on disk at most this often, apart from the stop.
const BETWEEN_MEMOS: Duration = Duration::from_secs(3600);
/// So many names are listed before the next message is looked for.
const LISTED_AT_ONCE: usize = 500;
/// What credd's rm of one user's directory takes, and more. Only accounts of the configuration are waited for.
const SWEEPING: Duration = Duration::from_millis(100);
/// So often a look is begun anew where accounts of the configuration are being swept.
const SWEPT: usize = 4;
/// So many looks of a full scan are told at once: the loop wakes up once for all of them.
const TOLD_AT_ONCE: usize = 32;
/// After so many looks of a full scan others have the processor.
const GIVES_WAY: usize = 16;
/// The loop is never more than so many times that behind: each waits in memory.
const AHEAD: usize = 8;

/// Counts what the loop has not taken yet.
#[derive(Debug)]
pub struct Ticket(Arc<AtomicUsize>);

impl Ticket {
    fn take(behind: &Arc<AtomicUsize>) -> Self {
        while behind.load(Ordering::Relaxed) > AHEAD {
            std::thread::sleep(Duration::from_millis(1));
        }
        behind.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(behind))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a full scan goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Everybody; the loop knows nothing yet.
    Anew,
    /// Everybody; what did not change is not told.
    Everybody,
    /// One part; it comes of itself.
    Part,
}

/// Whether everything has been told to a planner that knew nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FirstScan {
    from: Tick,
    ended: bool,
}

impl FirstScan {
    /// Scans that began before told half of it to the planner before a reload.
    #[must_use]
    pub fn from(tick: Tick) -> Self {
        Self { from: tick, ended: false }
    }

    /// From when on looks are part of it.
    #[must_use]
    pub fn since(self) -> Tick {
        self.from
    }

    /// A full scan that began then ended: whether it was the first of all.
    pub fn ended(&mut self, as_of: Tick) -> bool {
        as_of >= self.from && !std::mem::replace(&mut self.ended, true)
    }

    /// Whether there was one.
    #[must_use]
    pub fn is_over(self) -> bool {
        self.ended
    }
}

/// What the scanner is told.
#[derive(Debug)]
pub enum Look {
    /// One user.
    User(UserName),
    /// Everything.
    All,
    /// The settings changed: the owners of services, and the full scans.
    Owners(Vec<Arc<Owner>>, Rounds),
}

/// The full scans that nobody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounds {
    /// One runs at least that often.
    pub every: Duration,
    /// The watch is told of everything that happens here.
    pub all_watched: bool,
}

impl Rounds {
    /// As configured. What another host writes into a shared directory, no watch here need be told of.
    #[must_use]
    pub fn of(daemon: &Daemon) -> Self {
        Self { every: daemon.full_scan, all_watched: !daemon.share_directory }
    }

    fn scope(self, blind: bool) -> Scope {
        if self.all_watched && !blind && self.every >= IN_PARTS { Scope::Part } else { Scope::Everybody }
    }
}

/// Run until the channel closes. `condor`: whose users' directories are.
#[expect(clippy::too_many_arguments, reason = "a thread's body: it takes everything that it owns or tells")]
pub fn run(
    spool: &Arc<Spool>,
    owners: Vec<Arc<Owner>>,
    looks: &Receiver<Look>,
    inputs: &Sender<Input>,
    clock: Clock,
    rounds: Rounds,
    watch: Option<Watch>,
    replication: &Replication,
    condor: Option<u32>,
) {
    let eye = Eye::new(spool, inputs, clock, replication, Stewards::new(condor));
    spool.recall(&services(&owners));
    let mut work = Work::new(eye, owners, rounds, watch);
    while work.listen(looks) && work.step() {}
}

/// What there is to look at.
struct Work {
    eye: Eye,
    owners: Vec<Arc<Owner>>,
    rounds: Rounds,
    /// Until the first scan is over.
    watch: Option<Watch>,
    /// Hinted at.
    urgent: BTreeSet<UserName>,
    /// The full scan that is wanted next.
    next: Option<Scope>,
    /// When the present one began, or the last one.
    last: Instant,
    /// Of the present full scan.
    scope: Scope,
    part: usize,
    /// First the users are listed,
    listing: Option<(Tick, Listing)>,
    /// then these are looked at,
    sweep: VecDeque<UserName>,
    /// and in the end these were all.
    sweeping: Option<(Tick, BTreeSet<UserName>)>,
    remembered: Option<Instant>,
}

impl Work {
    fn new(eye: Eye, owners: Vec<Arc<Owner>>, rounds: Rounds, watch: Option<Watch>) -> Self {
        Self {
            eye,
            owners,
            rounds,
            watch,
            urgent: BTreeSet::new(),
            next: Some(Scope::Anew),
            last: Instant::now().checked_sub(BETWEEN_FULL_SCANS).unwrap_or_else(Instant::now),
            scope: Scope::Anew,
            part: 0,
            listing: None,
            sweep: VecDeque::new(),
            sweeping: None,
            remembered: None,
        }
    }

    /// Take every message that is there; sleep only if there is nothing to do. False: there will be none any more.
    fn listen(&mut self, looks: &Receiver<Look>) -> bool {
        loop {
            let idle =
                self.urgent.is_empty() && self.listing.is_none() && self.sweep.is_empty() && self.sweeping.is_none();
            let message = if idle {
                let blind = self.watch.is_none() && self.eye.watch.as_ref().is_none_or(Watch::limited);
                let every = if blind { self.rounds.every.min(BLIND_SCAN) } else { self.rounds.every };
                let wait = if self.next.is_some() { BETWEEN_FULL_SCANS } else { every };
                match looks.recv_timeout(wait.saturating_sub(self.last.elapsed())) {
                    Err(RecvTimeoutError::Timeout) => {
                        self.next.get_or_insert(self.rounds.scope(blind));
                        return true;
                    }
                    Err(RecvTimeoutError::Disconnected) => return false,
                    Ok(message) => message,
                }
            } else {
                match looks.try_recv() {
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => return false,
                    Ok(message) => message,
                }
            };
            match message {
                Look::User(user) => drop(self.urgent.insert(user)),
                Look::All => self.next = self.next.filter(|scope| *scope == Scope::Anew).or(Some(Scope::Everybody)),
                Look::Owners(owners, rounds) => {
                    (self.owners, self.rounds) = (owners, rounds);
                    self.eye.names = Names::default();
                    self.eye.spool.relist();
                    self.next = Some(Scope::Anew);
                }
            }
        }
    }

    /// The most urgent thing. False: nothing can be done any more.
    fn step(&mut self) -> bool {
        if let Some(user) = self.urgent.pop_first() {
            self.eye.look(&self.owners, &user);
            self.eye.tell();
        } else if let Some((as_of, listing)) = self.listing.take() {
            self.list(as_of, listing);
        } else if let Some(user) = self.sweep.pop_front() {
            if self.scope == Scope::Anew || !self.eye.unchanged(&user) {
                self.eye.look(&self.owners, &user);
            }
            if self.eye.looks.len() >= TOLD_AT_ONCE || self.sweep.is_empty() {
                self.eye.tell();
            }
            // On a busy core somebody's new credential waits for its next thread: a full scan has time.
            if self.sweep.len().is_multiple_of(GIVES_WAY) {
                std::thread::yield_now();
            }
        } else if let Some((as_of, users)) = self.sweeping.take() {
            return self.end(as_of, users);
        } else if let Some(scope) = self.next
            && self.last.elapsed() >= BETWEEN_FULL_SCANS
        {
            return self.begin(scope);
        }
        true
    }

    fn begin(&mut self, scope: Scope) -> bool {
        self.next = None;
        self.last = Instant::now();
        if let Err(error) = self.eye.spool.verify() {
            drop(self.eye.inputs.send(Input::SpoolGone(error)));
            return false;
        }
        let as_of = self.eye.clock.now().tick;
        match self.eye.begin(&self.owners, as_of) {
            Ok(begun) => (self.scope, self.listing) = (scope, Some((as_of, begun))),
            Err(error) => tracing::error!(%error, "cannot list the credential directory"),
        }
        true
    }

    fn list(&mut self, as_of: Tick, mut listing: Listing) {
        match self.eye.list(&self.owners, as_of, &mut listing) {
            Ok(None) => {
                self.listing = Some((as_of, listing));
                std::thread::yield_now();
            }
            Ok(Some(users)) => {
                self.sweep = users.iter().cloned().collect();
                self.sweeping = Some((as_of, users));
                if self.scope == Scope::Part {
                    self.part = (self.part + 1) % PARTS;
                    let (all, spool) = (std::mem::take(&mut self.sweep), &self.eye.spool);
                    self.sweep = one_part(all, self.part, |user| spool.is_sure_of(user));
                }
            }
            Err(error) => tracing::error!(%error, "cannot list the credential directory"),
        }
    }

    /// A full scan ended.
    fn end(&mut self, as_of: Tick, users: BTreeSet<UserName>) -> bool {
        self.eye.replication.tell_with(|| replicas::Told::Users(users.clone()));
        if self.eye.inputs.send(Input::FullScan { as_of, users }).is_err() {
            return false;
        }
        if let Some(watch) = self.watch.take() {
            self.eye.watch = Some(watch);
            self.next.get_or_insert(Scope::Everybody);
        } else if self.remembered.is_none_or(|at| at.elapsed() >= BETWEEN_MEMOS) {
            self.remembered = Some(Instant::now());
            if let Err(error) = self.eye.spool.remember(&services(&self.owners)) {
                tracing::warn!(%error, "the next start will read every file");
            }
        }
        true
    }
}

/// Every [`PARTS`]th of the users, from this one on, and all of whom the watch does not answer for.
fn one_part(users: VecDeque<UserName>, part: usize, sure: impl Fn(&UserName) -> bool) -> VecDeque<UserName> {
    let wanted = |(n, user): (usize, UserName)| (n % PARTS == part || !sure(&user)).then_some(user);
    users.into_iter().enumerate().filter_map(wanted).collect()
}

/// What the scanner looks with.
struct Eye {
    spool: Arc<Spool>,
    inputs: Sender<Input>,
    clock: Clock,
    behind: Arc<AtomicUsize>,
    /// What the loop has not been told yet.
    looks: Vec<Looked>,
    /// None before the end of the first scan, and where there is none.
    watch: Option<Watch>,
    told: Told<(UserName, String)>,
    replication: Replication,
    /// What is no credential of anybody's, by its path.
    strays: Told<String>,
    names: Names,
    stewards: Stewards,
}

/// What base names mean, as long as the owners are the same: most users have the same few.
#[derive(Debug, Default)]
struct Names(HashMap<Box<str>, Meaning>);

/// The provider of a base name, and its parts; none: it is nobody's.
type Meaning = Option<(usize, Service, Option<Handle>)>;

/// So many different ones are remembered.
const MEANINGS: usize = 10_000;

impl Names {
    fn of(&mut self, owners: &[Arc<Owner>], base: &str) -> Meaning {
        if let Some(known) = self.0.get(base) {
            return known.clone();
        }
        if self.0.len() >= MEANINGS {
            self.0.clear();
        }
        let meaning = owner_of(owners, base);
        self.0.insert(base.into(), meaning.clone());
        meaning
    }
}

impl Eye {
    fn new(
        spool: &Arc<Spool>,
        inputs: &Sender<Input>,
        clock: Clock,
        replication: &Replication,
        stewards: Stewards,
    ) -> Self {
        Self {
            spool: Arc::clone(spool),
            inputs: inputs.clone(),
            clock,
            behind: Arc::default(),
            looks: Vec::new(),
            watch: None,
            told: Told::default(),
            replication: replication.clone(),
            strays: Told::default(),
            names: Names::default(),
            stewards,
        }
    }

    /// Something that is left alone, and should not be there.
    fn stray(&mut self, now: Tick, path: &str, kind: Kind) {
        if self.strays.tell(now, path.to_owned()) {
            tracing::warn!(path, %kind, "left alone: it should not be in the credential directory");
        }
    }

    /// Whether a user's directory is watched, and nothing in it has changed since the last look.
    fn unchanged(&self, user: &UserName) -> bool {
        if let Some(watch) = &self.watch {
            watch.user(user);
        }
        self.spool.unchanged(user)
    }

    fn look(&mut self, owners: &[Arc<Owner>], user: &UserName) {
        if let Some(watch) = &self.watch {
            watch.user(user);
        }
        let as_of = self.clock.now().tick;
        let (strays, names) = (RefCell::new(Vec::new()), RefCell::new(std::mem::take(&mut self.names)));
        let wanted = |base: &str| {
            let owner = names.borrow_mut().of(owners, base);
            if owner.is_none() && base.split_once('_').is_some_and(|(service, _)| owner_of(owners, service).is_some()) {
                strays.borrow_mut().push(format!("{user}/{base}.top"));
            }
            owner.map(|(_, service, handle)| (service, handle))
        };
        let scanned = self.scan(owners, user, as_of, &wanted);
        self.names = names.into_inner();
        match scanned {
            Ok(seen) => {
                let ids = || seen.iter().map(|seen| seen.id.clone()).collect();
                self.replication.tell_with(|| replicas::Told::Look(user.clone(), ids()));
                self.told.retain(|(other, _)| other != user);
                self.looks.push(Looked { user: user.clone(), as_of, seen });
            }
            Err(error) => {
                if self.told.tell(as_of, (user.clone(), error.to_string())) {
                    tracing::warn!(%user, kind = %error.kind(), %error, "cannot look at the user's directory");
                }
            }
        }
        for stray in strays.into_inner() {
            self.stray(as_of, &stray, Kind::NameRefused);
        }
    }

    fn tell(&mut self) {
        if !self.looks.is_empty() {
            let (looks, ticket) = (std::mem::take(&mut self.looks), Ticket::take(&self.behind));
            drop(self.inputs.send(Input::Looked { looks, ticket }));
        }
    }

    /// Begin to list the users.
    fn begin(&mut self, owners: &[Arc<Owner>], now: Tick) -> Result<Listing, SpoolError> {
        self.stewards.provide_all(&self.spool, owners, now);
        self.spool.listing()
    }

    /// Everybody who has a directory, and whom the configuration names: those who are swept just now are not gone.
    fn list(
        &mut self,
        owners: &[Arc<Owner>],
        now: Tick,
        listing: &mut Listing,
    ) -> Result<Option<BTreeSet<UserName>>, SpoolError> {
        let spool = Arc::clone(&self.spool);
        let mut users = spool.list(listing, LISTED_AT_ONCE, |name, kind| self.stray(now, name, kind))?;
        if let Some(users) = &mut users {
            users.extend(Stewards::users(owners));
        }
        Ok(users)
    }

    /// What is there, with what the configuration names, also while it is being swept.
    fn scan(
        &mut self,
        owners: &[Arc<Owner>],
        user: &UserName,
        now: Tick,
        wanted: Wanted<'_>,
    ) -> Result<Vec<Seen>, SpoolError> {
        // Whatever is put there while credd's rm is at it makes that fail; it is over in no time.
        if Stewards::lack(&self.spool, owners, user) {
            std::thread::sleep(SWEEPING);
        }
        for _ in 1..SWEPT {
            self.stewards.provide(&self.spool, owners, user, now);
            let seen = self.spool.scan_user(user, wanted)?;
            if !Stewards::miss(owners, user, &seen) {
                return Ok(seen);
            }
        }
        self.spool.scan_user(user, wanted)
    }
}

/// The services that are looked after, in a line: what a memo is about.
fn services(owners: &[Arc<Owner>]) -> String {
    let names: BTreeSet<&str> = owners.iter().flat_map(|o| o.provider.services.iter().map(String::as_str)).collect();
    names.into_iter().collect::<Vec<_>>().join(" ")
}

/// Who owns a base name.
pub(super) fn owner<'o>(owners: &'o [Arc<Owner>], base: &str) -> Option<&'o Owner> {
    owner_of(owners, base).and_then(|(index, ..)| owners.get(index)).map(AsRef::as_ref)
}

/// The provider of a base name, and what the name means.
pub(super) fn owner_of(owners: &[Arc<Owner>], base: &str) -> Meaning {
    let id = CredentialId::from_base(UserName::parse("x").ok()?, base).ok()?;
    provider_of(owners, &id).map(|provider| (provider, id.service, id.handle))
}

/// Index of a credential's provider among these: that of the service named exactly as its base name, else of its
/// service. It means nothing among other owners: whatever outlives a reload names the credential instead.
pub(super) fn provider_of(owners: &[Arc<Owner>], id: &CredentialId) -> Option<usize> {
    let find = |name: &str| owners.iter().position(|o| o.provider.services.iter().any(|s| s == name));
    let whole = id.handle.as_ref().and_then(|_| find(&id.base()));
    whole.or_else(|| find(id.service.as_str()))
}

impl From<Hint> for Look {
    fn from(hint: Hint) -> Self {
        match hint {
            Hint::User(user) => Self::User(user),
            Hint::All => Self::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_its_turns_a_part_takes_everybody_and_each_time_those_of_whom_nobody_is_sure() {
        let user = |n: usize| UserName::parse(&format!("u{n}")).unwrap();
        let users: VecDeque<UserName> = (0..1000).map(user).collect();
        let mut seen = BTreeSet::new();
        for part in 0..PARTS {
            let part = one_part(users.clone(), part, |sure| *sure != user(7));
            assert!(part.len() <= 1000 / PARTS + 2 && part.contains(&user(7)), "{part:?}");
            seen.extend(part);
        }
        assert_eq!(seen, users.into_iter().collect());
    }

    #[test]
    fn a_scan_is_in_parts_only_where_the_watch_sees_everything_and_the_next_one_is_far_off() {
        let rounds = |minutes: u64, all_watched| Rounds { every: Duration::from_secs(60 * minutes), all_watched };
        assert_eq!(rounds(10, true).scope(false), Scope::Part);
        for (rounds, blind) in [(rounds(10, true), true), (rounds(10, false), false), (rounds(4, true), false)] {
            assert_eq!(rounds.scope(blind), Scope::Everybody, "{rounds:?}");
        }
    }

    #[test]
    fn after_a_reload_only_a_scan_that_began_since_is_the_first_and_it_is_so_once() {
        let mut first = FirstScan::from(Tick(100));
        assert!(!first.ended(Tick(99)) && !first.is_over(), "its first half went to the planner before");
        assert!(first.ended(Tick(100)) && first.is_over());
        assert!(!first.ended(Tick(200)) && first.is_over());
    }
}
