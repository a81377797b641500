//! The planner: events in, actions out (DESIGN §2, rules 1–8). Pure: it never waits, reads or writes.
//!
//! Every credential is in exactly one `Wait`; every exchange has a number, and its `Flight` lives until the answer
//! is published, discarded or failed. There is no action that deletes a file.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    budget::{Budget, Limits},
    id::{CredentialId, UserName},
    schedule,
    snapshot::State,
    time::{Now, Tick, Timestamp},
    top::Identity,
    use_file::Use,
};
use crate::error::{Class, Kind};

/// A credential as the spool saw it.
#[derive(Debug, Clone)]
pub struct Found {
    /// Which.
    pub id: CredentialId,
    /// Whose it is: index of the provider.
    pub provider: usize,
    /// The `.top`, or why it cannot be used.
    pub top: Result<Identity, Kind>,
    /// The `.use`, if there is one.
    pub use_file: Option<Use>,
    /// When the refresh token ends, if the `.top` tells.
    pub refresh_ends: Option<Timestamp>,
    /// The `.top` was replaced after the `.use` was made.
    pub top_newer: bool,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// One user's directory was looked at: these are all the credentials of ours in it.
    Scanned {
        /// Whose.
        user: UserName,
        /// When looking began.
        as_of: Tick,
        /// What is there.
        found: Vec<Found>,
    },
    /// A full scan ended: users not among these are gone.
    FullScan {
        /// All users.
        users: BTreeSet<UserName>,
    },
    /// An exchange ended.
    Answered {
        /// Its number.
        number: u64,
        /// What it brought.
        result: Result<Brought, Failure>,
    },
    /// The rotated refresh token is durable, and the `.top` now is this one.
    Kept {
        /// The exchange's number.
        number: u64,
        /// The `.top` that we wrote.
        identity: Identity,
    },
    /// The rotated refresh token could not be stored; the keeper still holds it.
    KeepFailed {
        /// The exchange's number.
        number: u64,
        /// Why.
        kind: Kind,
    },
    /// The `.use` is in place.
    Published {
        /// The exchange's number.
        number: u64,
    },
    /// The `.use` could not be put in place.
    PublishFailed {
        /// The exchange's number.
        number: u64,
        /// Why.
        kind: Kind,
    },
    /// The `.top` changed or vanished under the exchange: the answer is of no use any more.
    Superseded {
        /// The exchange's number.
        number: u64,
    },
    /// An admin says `renew`.
    Renew {
        /// Which.
        id: CredentialId,
    },
}

/// What a good answer brought.
#[derive(Debug, Clone, Copy)]
pub struct Brought {
    /// Life of the access token from now.
    pub lifetime: Duration,
    /// Life of the refresh token from now, if the issuer tells.
    pub refresh_lifetime: Option<Duration>,
    /// A new refresh token came along.
    pub rotated: bool,
    /// A shortfall that the provider lets pass.
    pub flagged: Option<Kind>,
}

/// How an exchange failed.
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    /// What.
    pub kind: Kind,
    /// The issuer's wish.
    pub retry_after: Option<Duration>,
    /// A new refresh token came along all the same, and must be kept.
    pub rotated: bool,
}

/// What to do. Nothing here deletes a `.use`, `.top` or `.mark` (rule 8).
#[derive(Debug, Clone)]
pub enum Action {
    /// Read the `.top` (it must still be this one), reserve space, ask the issuer.
    Exchange {
        /// Number of the exchange.
        number: u64,
        /// Which credential.
        id: CredentialId,
        /// Which provider.
        provider: usize,
        /// The `.top` it starts from.
        identity: Identity,
    },
    /// Store the rotated refresh token in place of this `.top`.
    Keep {
        /// The exchange's number.
        number: u64,
        /// The `.top` to replace.
        identity: Identity,
    },
    /// Publish the access token beside this `.top`.
    Publish {
        /// The exchange's number.
        number: u64,
        /// The `.top` it belongs to.
        identity: Identity,
    },
    /// Drop what is held for this exchange.
    Discard {
        /// The exchange's number.
        number: u64,
    },
    /// Look at this user's directory again.
    Look {
        /// Whose.
        user: UserName,
    },
    /// Tell.
    Announce(Announcement),
}

/// What is worth telling.
#[derive(Debug, Clone)]
pub enum Announcement {
    /// A renewal succeeded.
    Renewed {
        /// Which.
        id: CredentialId,
        /// Which provider.
        provider: usize,
        /// Life of the new token.
        expires_in: Duration,
        /// With a new refresh token.
        rotated: bool,
        /// With less than was asked for.
        flagged: Option<Kind>,
        /// How many failures it ends.
        after_failures: u32,
        /// How often this credential has been renewed.
        generation: u64,
        /// The first token of this `.top`.
        first: bool,
    },
    /// A renewal failed.
    Failed {
        /// Which.
        id: CredentialId,
        /// Which provider.
        provider: usize,
        /// What.
        kind: Kind,
        /// How many in a row, of this kind.
        times: u32,
        /// When it is tried again; `None`: when the `.top` changes.
        next_in: Option<Duration>,
    },
    /// The issuer refuses for good; nothing is asked until the `.top` changes.
    Parked {
        /// Which.
        id: CredentialId,
        /// Which provider.
        provider: usize,
        /// Why.
        kind: Kind,
    },
    /// The `.top` cannot be used.
    Unusable {
        /// Which.
        id: CredentialId,
        /// Why.
        kind: Kind,
    },
    /// The credential left the spool.
    Forgotten {
        /// Which.
        id: CredentialId,
    },
    /// An issuer went down, refuses our client, or came back.
    Issuer {
        /// Which provider.
        provider: usize,
        /// Why it is down; `None`: it is back.
        down: Option<Kind>,
    },
}

/// Where a credential stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// Fresh; due at either of these, whichever comes first (the clock may step).
    Due { wall: Timestamp, tick: Tick },
    /// Failed; try again then.
    Retry(Tick),
    /// In its issuer's queue.
    Queued(Place),
    /// In an exchange.
    Flying(u64),
    /// Nothing to do until the `.top` changes.
    Parked,
}

/// Place in an issuer's queue: new ones first, then the soonest expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    renewal: bool,
    expiry: Timestamp,
    slot: usize,
}

#[derive(Debug)]
struct Entry {
    id: CredentialId,
    provider: usize,
    top: Result<Identity, Kind>,
    expiry: Option<Timestamp>,
    wait: Wait,
    refresh_ends: Option<Timestamp>,
    failures: u32,
    last_kind: Option<Kind>,
    /// Since when it fails.
    failing_since: Option<Timestamp>,
    renewed: Option<Timestamp>,
    flagged: Option<Kind>,
    refused_at: Option<Tick>,
    generation: u64,
    fresh_top: bool,
    /// When a file of ours last went into place.
    changed_at: Option<Tick>,
    /// Something was seen while we were writing.
    look: bool,
}

/// Where one credential stands, for status and metrics.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Which.
    pub id: &'a CredentialId,
    /// Index of its provider.
    pub provider: usize,
    /// In a word.
    pub state: State,
    /// When the access token ends, if it is known.
    pub expires: Option<Timestamp>,
    /// When it is renewed or tried next, if that is a matter of time.
    pub renews: Option<Timestamp>,
    /// When the refresh token ends, if that is known.
    pub refresh_token_expires: Option<Timestamp>,
    /// When it was renewed last.
    pub renewed: Option<Timestamp>,
    /// How often it has been renewed.
    pub generation: u64,
    /// What is wrong, since when, how often in a row.
    pub error: Option<(Kind, Option<Timestamp>, u32)>,
    /// The last token came with less than was asked for.
    pub flagged: Option<Kind>,
}

impl Entry {
    fn row(&self, now: Now) -> Row<'_> {
        let at = |tick: Tick| now.wall.plus(tick.since(now.tick));
        let (state, renews) = match self.wait {
            _ if self.top.is_err() => (State::Unusable, None),
            Wait::Due { wall, tick } => (State::Fresh, Some(wall.min(at(tick)))),
            Wait::Retry(tick) => (State::Retrying, Some(at(tick))),
            Wait::Queued(_) | Wait::Flying(_) => (State::Renewing, None),
            Wait::Parked => (State::Parked, None),
        };
        let kind = self.top.err().or(self.last_kind);
        Row {
            id: &self.id,
            provider: self.provider,
            state,
            expires: self.expiry,
            renews,
            refresh_token_expires: self.refresh_ends,
            renewed: self.renewed,
            generation: self.generation,
            error: kind.map(|kind| (kind, self.failing_since, self.failures)),
            flagged: self.flagged,
        }
    }
}

#[derive(Debug)]
struct Flight {
    slot: Option<usize>,
    provider: usize,
    identity: Identity,
    /// It was asked while the issuer counted as down.
    probe: bool,
    end: End,
    keeping: bool,
    keep_failures: u32,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Asked,
    Good(Brought),
    Bad(Failure),
}

#[derive(Debug)]
struct Issuer {
    budget: Budget,
    queue: BTreeSet<Place>,
}

/// Counts of the moment, for status and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All known.
    pub credentials: usize,
    /// With a token that is not due.
    pub fresh: usize,
    /// Waiting for a retry.
    pub retrying: usize,
    /// In a queue.
    pub queued: usize,
    /// In an exchange.
    pub in_flight: usize,
    /// Until their `.top` changes.
    pub parked: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Planner {
    refresh: Duration,
    slots: Vec<Option<Entry>>,
    free: Vec<usize>,
    users: BTreeMap<UserName, Vec<usize>>,
    by_wall: BTreeSet<(Timestamp, usize)>,
    by_tick: BTreeSet<(Tick, usize)>,
    keep_again: BTreeSet<(Tick, u64)>,
    issuers: Vec<Issuer>,
    flights: BTreeMap<u64, Flight>,
    next_number: u64,
    next_issuer: usize,
    pending: VecDeque<Action>,
    stopping: bool,
}

impl Planner {
    /// One budget per provider; `refresh` is `SEC_CREDENTIAL_REFRESH`.
    #[must_use]
    pub fn new(limits: &[Limits], refresh: Duration) -> Self {
        Self {
            refresh,
            slots: Vec::new(),
            free: Vec::new(),
            users: BTreeMap::new(),
            by_wall: BTreeSet::new(),
            by_tick: BTreeSet::new(),
            keep_again: BTreeSet::new(),
            issuers: limits
                .iter()
                .map(|&limits| Issuer { budget: Budget::new(limits), queue: BTreeSet::new() })
                .collect(),
            flights: BTreeMap::new(),
            next_number: 1,
            next_issuer: 0,
            pending: VecDeque::new(),
            stopping: false,
        }
    }

    /// Take note of an event.
    pub fn handle(&mut self, now: Now, event: Event) {
        match event {
            Event::Scanned { user, as_of, found } => self.scanned(now, user, as_of, found),
            Event::FullScan { users } => {
                let gone: Vec<UserName> = self.users.keys().filter(|user| !users.contains(*user)).cloned().collect();
                for user in gone {
                    self.scanned(now, user, now.tick, Vec::new());
                }
            }
            Event::Answered { number, result } => self.answered(now, number, result),
            Event::Kept { number, identity } => self.kept(now, number, identity),
            Event::KeepFailed { number, kind } => self.keep_failed(now, number, kind),
            Event::Published { number } => self.published(now, number),
            Event::PublishFailed { number, kind } => {
                if let Some(flight) = self.flights.remove(&number) {
                    self.pending.push_back(Action::Discard { number });
                    self.fail(now, flight.slot, Failure { kind, retry_after: None, rotated: false });
                }
            }
            Event::Superseded { number } => self.superseded(now, number),
            Event::Renew { id } => {
                if let Some(slot) = self.slot_of(&id) {
                    self.renew(slot);
                }
            }
        }
    }

    /// The next thing to do, if anything is to be done now.
    pub fn next_action(&mut self, now: Now) -> Option<Action> {
        if let Some(action) = self.pending.pop_front() {
            return Some(action);
        }
        if let Some(&(tick, number)) = self.keep_again.first()
            && tick <= now.tick
        {
            self.keep_again.pop_first();
            if let Some(flight) = self.flights.get(&number) {
                return Some(Action::Keep { number, identity: flight.identity });
            }
        }
        self.wake(now);
        let count = if self.stopping { 0 } else { self.issuers.len() };
        for step in 0..count {
            let index = (self.next_issuer + step) % count;
            if let Some(action) = self.start(now, index) {
                self.next_issuer = (index + 1) % count;
                return Some(action);
            }
        }
        None
    }

    /// How long nothing needs to be done, at most 60 s: the caller sleeps on the monotonic clock and asks again.
    pub fn next_deadline(&mut self, now: Now) -> Duration {
        if !self.pending.is_empty() {
            return Duration::ZERO;
        }
        let mut wait = Duration::from_secs(60);
        let ticks = [self.by_tick.first().map(|f| f.0), self.keep_again.first().map(|f| f.0)];
        for tick in ticks.into_iter().flatten() {
            wait = wait.min(tick.since(now.tick));
        }
        if let Some((wall, _)) = self.by_wall.first() {
            wait = wait.min(wall.since(now.wall));
        }
        for issuer in if self.stopping { &mut [][..] } else { &mut self.issuers[..] } {
            if !issuer.queue.is_empty() {
                match issuer.budget.may_start(now.tick) {
                    Ok(()) => return Duration::ZERO,
                    Err(Some(tick)) => wait = wait.min(tick.since(now.tick)),
                    Err(None) => {}
                }
            }
        }
        wait
    }

    /// Start no more exchanges; what is in flight goes on to its end.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Nothing in flight and nothing to tell.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.pending.is_empty()
    }

    /// Counts of the moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut s = Snapshot::default();
        for entry in self.slots.iter().flatten() {
            s.credentials += 1;
            match entry.wait {
                Wait::Due { .. } => s.fresh += 1,
                Wait::Retry(_) => s.retrying += 1,
                Wait::Queued(_) => s.queued += 1,
                Wait::Flying(_) => s.in_flight += 1,
                Wait::Parked => s.parked += 1,
            }
        }
        s
    }

    /// When the credential's access token ends, if it is known.
    #[must_use]
    pub fn expiry(&self, id: &CredentialId) -> Option<Timestamp> {
        self.slots.get(self.slot_of(id)?)?.as_ref()?.expiry
    }

    /// Whether there is such a credential.
    #[must_use]
    pub fn knows(&self, id: &CredentialId) -> bool {
        self.slot_of(id).is_some()
    }

    /// Where each credential stands (`user`: only this one's), by user and name.
    pub fn rows(&self, now: Now, user: Option<&UserName>) -> impl Iterator<Item = Row<'_>> {
        let range = match user {
            Some(user) => self.users.range::<UserName, _>(user..=user),
            None => self.users.range::<UserName, _>(..),
        };
        range.flat_map(|(_, slots)| slots).filter_map(move |slot| Some(self.slots.get(*slot)?.as_ref()?.row(now)))
    }

    /// A provider's issuer: whether it is down, exchanges under way, renewals that wait for their turn.
    #[must_use]
    pub fn issuer(&self, provider: usize) -> (bool, u32, usize) {
        let told = |issuer: &Issuer| (issuer.budget.is_open(), issuer.budget.in_flight(), issuer.queue.len());
        self.issuers.get(provider).map_or((false, 0, 0), told)
    }

    fn slot_of(&self, id: &CredentialId) -> Option<usize> {
        let is_it = |slot: &&usize| self.slots.get(**slot).and_then(Option::as_ref).is_some_and(|e| e.id == *id);
        self.users.get(&id.user)?.iter().find(is_it).copied()
    }

    fn scanned(&mut self, now: Now, user: UserName, as_of: Tick, found: Vec<Found>) {
        let before = self.users.remove(&user).unwrap_or_default();
        let mut after = Vec::with_capacity(found.len());
        for found in found {
            let known = before
                .iter()
                .copied()
                .find(|&slot| self.slots.get(slot).and_then(Option::as_ref).is_some_and(|entry| entry.id == found.id));
            after.push(match known {
                Some(slot) => {
                    self.seen_again(as_of, slot, &found);
                    slot
                }
                None => self.seen_first(now, found),
            });
        }
        for slot in before {
            if !after.contains(&slot) {
                self.forget(slot);
            }
        }
        if !after.is_empty() {
            self.users.insert(user, after);
        }
    }

    fn seen_first(&mut self, now: Now, found: Found) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let spread = found.id.spread();
        let entry = Entry {
            id: found.id,
            provider: found.provider,
            top: found.top,
            expiry: found.use_file.and_then(|u| u.expiry),
            wait: Wait::Parked,
            refresh_ends: found.refresh_ends,
            failures: 0,
            last_kind: None,
            failing_since: None,
            renewed: None,
            flagged: None,
            refused_at: None,
            generation: 0,
            fresh_top: found.use_file.is_none() || found.top_newer,
            changed_at: None,
            look: false,
        };
        if let Err(kind) = entry.top {
            self.pending.push_back(Action::Announce(Announcement::Unusable { id: entry.id.clone(), kind }));
        }
        let usable = entry.top.is_ok();
        let times = found.use_file.filter(|_| !found.top_newer).and_then(|u| Some((u.issued?, u.expiry?)));
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(entry);
        }
        match times {
            _ if !usable => {}
            Some((issued, expiry)) if expiry > now.wall => {
                let after = schedule::renew_after(expiry.since(issued), spread, self.refresh);
                let due = issued.plus(after);
                self.wait(slot, Wait::Due { wall: due, tick: now.tick.plus(due.since(now.wall).min(after)) });
            }
            _ => self.enqueue(slot),
        }
        slot
    }

    fn seen_again(&mut self, as_of: Tick, slot: usize, found: &Found) {
        let Some(Some(entry)) = self.slots.get_mut(slot) else { return };
        entry.refresh_ends = found.refresh_ends.or(entry.refresh_ends.filter(|_| entry.top == found.top));
        // What was seen while we were writing, or before we wrote, may be our own half-done work: look again after it.
        if let Wait::Flying(number) = entry.wait
            && self.flights.get(&number).is_some_and(|flight| flight.keeping)
        {
            entry.look = true;
            return;
        }
        if entry.changed_at.is_some_and(|changed_at| as_of <= changed_at) {
            if entry.top != found.top {
                self.pending.push_back(Action::Look { user: found.id.user.clone() });
            }
            return;
        }
        let use_lost = found.use_file.is_none() && matches!(entry.wait, Wait::Due { .. });
        if entry.top == found.top && !use_lost {
            return;
        }
        let changed = entry.top != found.top;
        entry.top = found.top;
        if changed {
            entry.fresh_top = true;
            entry.refused_at = None;
            entry.failures = 0;
            entry.last_kind = None;
            entry.failing_since = None;
        }
        let (id, top) = (entry.id.clone(), entry.top);
        self.leave(slot);
        match top {
            Ok(_) => self.enqueue(slot),
            Err(kind) => self.pending.push_back(Action::Announce(Announcement::Unusable { id, kind })),
        }
    }

    /// Now, whatever was planned. An exchange under way is this very renewal: a second one beside it would spend the
    /// refresh token twice.
    fn renew(&mut self, slot: usize) {
        let Some(Some(entry)) = self.slots.get_mut(slot) else { return };
        if matches!(entry.wait, Wait::Flying(_)) || entry.top.is_err() {
            return;
        }
        entry.refused_at = None;
        entry.failures = 0;
        self.leave(slot);
        self.enqueue(slot);
    }

    fn forget(&mut self, slot: usize) {
        self.leave(slot);
        if let Some(entry) = self.slots.get_mut(slot).and_then(Option::take) {
            self.free.push(slot);
            self.pending.push_back(Action::Announce(Announcement::Forgotten { id: entry.id }));
        }
    }

    /// Out of whatever set the credential is in. A flight goes on without it: its answer will be discarded.
    fn leave(&mut self, slot: usize) {
        let Some(Some(entry)) = self.slots.get_mut(slot) else { return };
        match std::mem::replace(&mut entry.wait, Wait::Parked) {
            Wait::Due { wall, tick } => {
                self.by_wall.remove(&(wall, slot));
                self.by_tick.remove(&(tick, slot));
            }
            Wait::Retry(tick) => {
                self.by_tick.remove(&(tick, slot));
            }
            Wait::Queued(place) => {
                if let Some(issuer) = self.issuers.get_mut(entry.provider) {
                    issuer.queue.remove(&place);
                }
            }
            Wait::Flying(number) => {
                if let Some(flight) = self.flights.get_mut(&number) {
                    flight.slot = None;
                }
            }
            Wait::Parked => {}
        }
    }

    fn wait(&mut self, slot: usize, wait: Wait) {
        let Some(Some(entry)) = self.slots.get_mut(slot) else { return };
        entry.wait = wait;
        match wait {
            Wait::Due { wall, tick } => {
                self.by_wall.insert((wall, slot));
                self.by_tick.insert((tick, slot));
            }
            Wait::Retry(tick) => {
                self.by_tick.insert((tick, slot));
            }
            Wait::Queued(place) => {
                if let Some(issuer) = self.issuers.get_mut(entry.provider) {
                    issuer.queue.insert(place);
                }
            }
            Wait::Flying(_) | Wait::Parked => {}
        }
    }

    fn enqueue(&mut self, slot: usize) {
        let Some(Some(entry)) = self.slots.get(slot) else { return };
        let place =
            Place { renewal: !entry.fresh_top || entry.failures > 0, expiry: entry.expiry.unwrap_or_default(), slot };
        self.wait(slot, Wait::Queued(place));
    }

    /// Move what has become due into the queues.
    fn wake(&mut self, now: Now) {
        loop {
            let slot = match (self.by_tick.first(), self.by_wall.first()) {
                (Some(&(tick, slot)), _) if tick <= now.tick => slot,
                (_, Some(&(wall, slot))) if wall <= now.wall => slot,
                _ => return,
            };
            self.leave(slot);
            self.enqueue(slot);
        }
    }

    fn start(&mut self, now: Now, index: usize) -> Option<Action> {
        let issuer = self.issuers.get_mut(index)?;
        let &place = issuer.queue.first()?;
        issuer.budget.may_start(now.tick).ok()?;
        issuer.queue.pop_first();
        let entry = self.slots.get_mut(place.slot)?.as_mut()?;
        let Ok(identity) = entry.top else {
            entry.wait = Wait::Parked;
            return None;
        };
        let probe = issuer.budget.is_open();
        issuer.budget.started();
        let number = self.next_number;
        self.next_number += 1;
        entry.wait = Wait::Flying(number);
        self.flights.insert(
            number,
            Flight {
                slot: Some(place.slot),
                provider: index,
                identity,
                probe,
                end: End::Asked,
                keeping: false,
                keep_failures: 0,
            },
        );
        Some(Action::Exchange { number, id: entry.id.clone(), provider: index, identity })
    }

    fn answered(&mut self, now: Now, number: u64, result: Result<Brought, Failure>) {
        let Some(flight) = self.flights.get_mut(&number) else { return };
        if !matches!(flight.end, End::Asked) {
            return;
        }
        let (provider, slot, probe) = (flight.provider, flight.slot, flight.probe);
        flight.end = match result {
            Ok(brought) => End::Good(brought),
            Err(failure) => End::Bad(failure),
        };
        let identity = flight.identity;
        self.judge_issuer(now, provider, slot, probe, result.as_ref().err().copied());
        let rotated = result.map_or_else(|f| f.rotated, |b| b.rotated);
        let Some(flight) = self.flights.get_mut(&number) else { return };
        if slot.is_none() {
            self.flights.remove(&number);
            self.pending.push_back(Action::Discard { number });
        } else if rotated {
            flight.keeping = true;
            self.pending.push_back(Action::Keep { number, identity });
        } else if result.is_ok() {
            self.pending.push_back(Action::Publish { number, identity });
        } else {
            self.finish_bad(now, number);
        }
    }

    /// What the answer says about the issuer, apart from the credential.
    fn judge_issuer(&mut self, now: Now, provider: usize, slot: Option<usize>, probe: bool, failure: Option<Failure>) {
        let Some(issuer) = self.issuers.get_mut(provider) else { return };
        issuer.budget.ended();
        let down = match failure.map(|f| (f.kind, f.kind.class())) {
            None | Some((_, Class::Refused | Class::Slow)) => {
                if !issuer.budget.answered() {
                    return;
                }
                None
            }
            Some((kind, Class::Ours)) => {
                if !issuer.budget.park(now.tick) {
                    return;
                }
                Some(kind)
            }
            // Ours to deal with, or a passing thing on this machine: says nothing about the issuer.
            Some((_, Class::Input) | (Kind::CourierLost | Kind::NoSpace | Kind::PublishFailed, _)) => return,
            Some((kind, Class::Transient)) => {
                if kind == Kind::RateLimited {
                    let wait = failure.and_then(|f| f.retry_after).unwrap_or(schedule::RETRY_FIRST);
                    issuer.budget.pause(now.tick, wait);
                    return;
                }
                if !issuer.budget.failed(now.tick, slot.unwrap_or(usize::MAX), probe) {
                    return;
                }
                Some(kind)
            }
        };
        self.pending.push_back(Action::Announce(Announcement::Issuer { provider, down }));
    }

    fn kept(&mut self, now: Now, number: u64, identity: Identity) {
        let Some(flight) = self.flights.get_mut(&number) else { return };
        flight.identity = identity;
        flight.keeping = false;
        let (end, slot) = (flight.end, flight.slot);
        if let Some(Some(entry)) = slot.and_then(|slot| self.slots.get_mut(slot)) {
            entry.top = Ok(identity);
            entry.changed_at = Some(now.tick);
            if std::mem::take(&mut entry.look) {
                self.pending.push_back(Action::Look { user: entry.id.user.clone() });
            }
        }
        match end {
            End::Good(_) if slot.is_some() => self.pending.push_back(Action::Publish { number, identity }),
            End::Bad(_) => self.finish_bad(now, number),
            _ => {
                self.flights.remove(&number);
                self.pending.push_back(Action::Discard { number });
            }
        }
    }

    fn keep_failed(&mut self, now: Now, number: u64, kind: Kind) {
        let Some(flight) = self.flights.get_mut(&number) else { return };
        flight.keep_failures += 1;
        let wait = Duration::from_secs(1 << flight.keep_failures.min(5));
        self.keep_again.insert((now.tick.plus(wait), number));
        if let Some(Some(entry)) = flight.slot.and_then(|slot| self.slots.get(slot)) {
            self.pending.push_back(Action::Announce(Announcement::Failed {
                id: entry.id.clone(),
                provider: flight.provider,
                kind,
                times: flight.keep_failures,
                next_in: Some(wait),
            }));
        }
    }

    fn published(&mut self, now: Now, number: u64) {
        let Some(flight) = self.flights.remove(&number) else { return };
        self.pending.push_back(Action::Discard { number });
        let (End::Good(brought), Some(slot)) = (flight.end, flight.slot) else { return };
        let Some(Some(entry)) = self.slots.get_mut(slot) else { return };
        entry.expiry = Some(now.wall.plus(brought.lifetime));
        entry.renewed = Some(now.wall);
        entry.flagged = brought.flagged;
        if let Some(lifetime) = brought.refresh_lifetime {
            entry.refresh_ends = Some(now.wall.plus(lifetime));
        }
        let after_failures = std::mem::take(&mut entry.failures);
        entry.last_kind = None;
        entry.failing_since = None;
        entry.refused_at = None;
        let first = std::mem::take(&mut entry.fresh_top);
        entry.generation += 1;
        entry.changed_at = Some(now.tick);
        let after = schedule::renew_after(brought.lifetime, entry.id.spread(), self.refresh);
        self.pending.push_back(Action::Announce(Announcement::Renewed {
            id: entry.id.clone(),
            provider: flight.provider,
            expires_in: brought.lifetime,
            rotated: brought.rotated,
            flagged: brought.flagged,
            after_failures,
            generation: entry.generation,
            first,
        }));
        self.wait(slot, Wait::Due { wall: now.wall.plus(after), tick: now.tick.plus(after) });
    }

    fn superseded(&mut self, now: Now, number: u64) {
        let Some(flight) = self.flights.remove(&number) else { return };
        self.keep_again.retain(|&(_, n)| n != number);
        if matches!(flight.end, End::Asked)
            && let Some(issuer) = self.issuers.get_mut(flight.provider)
        {
            issuer.budget.ended();
        }
        self.pending.push_back(Action::Discard { number });
        // The scan that tells of the new `.top` may be later or earlier than this; ask again soon either way.
        if let Some(slot) = flight.slot
            && let Some(Some(entry)) = self.slots.get_mut(slot)
        {
            entry.changed_at = None;
            self.pending.push_back(Action::Look { user: entry.id.user.clone() });
            self.wait(slot, Wait::Retry(now.tick.plus(Duration::from_secs(1))));
        }
    }

    fn finish_bad(&mut self, now: Now, number: u64) {
        let Some(flight) = self.flights.remove(&number) else { return };
        self.pending.push_back(Action::Discard { number });
        if let End::Bad(failure) = flight.end {
            self.fail(now, flight.slot, failure);
        }
    }

    fn fail(&mut self, now: Now, slot: Option<usize>, failure: Failure) {
        let Some(slot) = slot else { return };
        let Some(Some(entry)) = self.slots.get_mut(slot) else { return };
        let kind = failure.kind;
        entry.failures = if entry.last_kind == Some(kind) { entry.failures + 1 } else { 1 };
        entry.last_kind = Some(kind);
        entry.failing_since.get_or_insert(now.wall);
        let left = entry.expiry.unwrap_or_default().since(now.wall);
        let (id, provider, times, spread) = (entry.id.clone(), entry.provider, entry.failures, entry.id.spread());
        let next_in = match kind.class() {
            Class::Transient => Some(schedule::retry_after(times, left, spread, failure.retry_after)),
            Class::Slow => Some(schedule::slow_retry_after(times, failure.retry_after)),
            // The provider's own probe decides; this one stays first in line.
            Class::Ours => Some(schedule::RETRY_FIRST),
            Class::Refused => match entry.refused_at {
                Some(first) if now.tick.since(first) >= schedule::CONFIRM_AFTER => None,
                first => {
                    let first = *entry.refused_at.insert(first.unwrap_or(now.tick));
                    let confirm = first.plus(schedule::CONFIRM_AFTER).since(now.tick);
                    Some(confirm.max(failure.retry_after.unwrap_or_default()))
                }
            },
            Class::Input => {
                entry.top = Err(kind);
                None
            }
        };
        let announcement = match (next_in, kind.class()) {
            (None, Class::Input) => Announcement::Unusable { id, kind },
            (None, _) => Announcement::Parked { id, provider, kind },
            _ => Announcement::Failed { id, provider, kind, times, next_in },
        };
        self.pending.push_back(Action::Announce(announcement));
        self.wait(slot, next_in.map_or(Wait::Parked, |delay| Wait::Retry(now.tick.plus(delay))));
    }
}
