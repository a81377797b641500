//! The planner: events in, actions out (DESIGN §2, rules 1–8). Pure: it never waits, reads or writes.
//!
//! What it knows of credentials stands in the `Roster`, each in exactly one wait. Every exchange has a number, and
//! its `Flight` lives until the answer is published, discarded or failed. A credential has at most one flight: a
//! refresh token that may be rotated is never spent twice at once, whatever is seen, asked or stored meanwhile. There
//! is no action that deletes a file.
//!
//! The file is long: each event's way through the stages of a flight is one function beside the next, and they are read
//! against the eight rules together. What can be told apart (roster, budget, schedule, events, actions) has its own file.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

pub use super::{
    action::{Action, Announcement},
    event::{Brought, Event, Failure, Found},
    roster::Row,
};
use super::{
    budget::{Budget, Limits, Outage},
    ending::Ending,
    figures::is_issuers,
    id::{CredentialId, UserName},
    roll_call::{Before, RollCall},
    roster::{Entry, Home, Place, Roster, Slots, Wait},
    schedule,
    time::{MaybeTick, Now, Tick, Timestamp},
    top::Identity,
};
use crate::error::{Class, Kind};

/// An answer, and when it came.
#[derive(Debug, Clone, Copy)]
struct Answered {
    at: Tick,
    result: Result<Brought, Failure>,
}

/// How far an exchange is.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Being prepared, or at the issuer, since then.
    Asked { since: Tick },
    /// A rotated refresh token came, and is on its way to the disk.
    Keeping { answer: Answered, failures: u32 },
    /// The access token is on its way to the disk.
    Publishing { brought: Brought, at: Tick },
}

#[derive(Debug)]
struct Flight {
    slot: usize,
    provider: usize,
    identity: Identity,
    probe: bool,
    stage: Stage,
}

/// A rotated refresh token that the disk did not take yet, for the planner after a reload.
#[derive(Debug, Clone)]
pub struct Unkept {
    /// The exchange's number.
    pub number: u64,
    /// Which credential.
    pub id: CredentialId,
    identity: Identity,
    answer: Answered,
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
    confirm_after: Duration,
    roster: Roster,
    /// Never what is in the roster.
    roll_call: RollCall,
    keep_again: BTreeSet<(Tick, u64)>,
    budgets: Vec<Budget>,
    /// Who of each issuer's queue was asked last.
    asked_last: Vec<Option<Place>>,
    flights: BTreeMap<u64, Flight>,
    next_number: u64,
    next_issuer: usize,
    pending: VecDeque<Action>,
    /// Providers that are asked no more, until a reload.
    held: BTreeSet<usize>,
    stopping: bool,
}

/// A `.top` that was replaced under an exchange is looked at again after this.
const SUPERSEDED: Duration = Duration::from_secs(1);
/// While stopping, the disk is tried again this soon.
const LAST_TRIES: Duration = Duration::from_millis(200);

impl Planner {
    /// One budget per provider; `refresh` is `SEC_CREDENTIAL_REFRESH`.
    #[must_use]
    pub fn new(limits: &[Limits], refresh: Duration) -> Self {
        Self {
            refresh,
            confirm_after: schedule::CONFIRM_AFTER,
            roster: Roster::new(limits.len()),
            roll_call: RollCall::default(),
            keep_again: BTreeSet::new(),
            budgets: limits.iter().map(|&limits| Budget::new(limits)).collect(),
            asked_last: vec![None; limits.len()],
            flights: BTreeMap::new(),
            next_number: 1,
            next_issuer: 0,
            pending: VecDeque::new(),
            held: BTreeSet::new(),
            stopping: false,
        }
    }

    /// Two refusals this far apart park a credential, instead of [`schedule::CONFIRM_AFTER`].
    #[must_use]
    pub fn confirming_after(self, confirm_after: Duration) -> Self {
        Self { confirm_after, ..self }
    }

    /// Rotated refresh tokens that the disk did not take yet.
    #[must_use]
    pub fn unkept(&self) -> Vec<Unkept> {
        let unkept = |(&number, flight): (&u64, &Flight)| {
            let Stage::Keeping { answer, .. } = flight.stage else { return None };
            let id = self.roster.get(flight.slot)?.id.clone();
            Some(Unkept { number, id, identity: flight.identity, answer })
        };
        self.flights.iter().filter_map(unkept).collect()
    }

    /// Take over from the planner before a reload: what it could not store, each with the index that its provider has
    /// now (none: nobody's), and the numbers, so that late events of its exchanges are nobody's.
    pub fn inherit(&mut self, now: Now, before: &Self, unkept: impl IntoIterator<Item = (Unkept, Option<usize>)>) {
        self.next_number = before.next_number;
        for (unkept, provider) in unkept {
            self.take_over(now, unkept, provider.unwrap_or(usize::MAX));
        }
    }

    /// What was known before a reload: it goes on as it was once a look finds it as it was, and of what no look from
    /// `since` on shows it is told that it is gone. `provider`: whether a credential's provider is configured as it was;
    /// none: it is nobody's any more.
    pub fn expect(&mut self, since: Tick, before: Self, provider: impl Fn(&CredentialId) -> Option<bool>) {
        let entries = before.roster.into_entries().map(|entry| Before { entry, same_provider: true });
        let known = entries.chain(before.roll_call.into_missed()).filter_map(|before| {
            let same_provider = provider(&before.entry.id)? && before.same_provider;
            Some(Before { same_provider, ..before })
        });
        self.roll_call = RollCall::new(since, known.filter(|one| self.roster.slot_of(&one.entry.id).is_none()));
    }

    fn take_over(&mut self, now: Now, unkept: Unkept, provider: usize) {
        let Unkept { number, id, identity, answer } = unkept;
        let user = id.user.clone();
        let slot = self.roster.add(Entry::new(id, provider, Ok(identity)));
        self.roster.users.entry(user).or_default().slots.push(slot);
        self.roster.wait(slot, Wait::Flying(number));
        let stage = Stage::Keeping { answer, failures: 0 };
        self.flights.insert(number, Flight { slot, provider, identity, probe: false, stage });
        self.keep_again.insert((now.tick, number));
    }

    /// Take note of an event.
    pub fn handle(&mut self, now: Now, event: Event) {
        self.roster.watch_clock(now);
        match event {
            Event::Scanned { user, as_of, found } => self.scanned(now, user, as_of, found),
            Event::FullScan { as_of, users } => {
                // Both in the order of names: one pass over either.
                let mut listed = users.iter().peekable();
                let unlisted = |(user, home): (&UserName, &Home)| {
                    while listed.next_if(|listed| *listed < user).is_some() {}
                    (listed.peek() != Some(&user) && home.as_of < as_of).then(|| user.clone())
                };
                let gone: Vec<UserName> = self.roster.users.iter().filter_map(unlisted).collect();
                for user in gone {
                    self.scanned(now, user, as_of, Vec::new());
                }
                let gone = self.roll_call.listed(&users, as_of);
                self.tell_forgotten(gone);
            }
            Event::Answered { number, result } => self.answered(now, number, result),
            Event::Kept { number, identity, stored_anew } => self.kept(now, number, identity, stored_anew),
            Event::KeepFailed { number, kind } => self.keep_failed(now, number, kind),
            Event::Published { number } => self.published(now, number),
            Event::PublishFailed { number, kind } => {
                if matches!(self.flights.get(&number), Some(Flight { stage: Stage::Publishing { .. }, .. }))
                    && let Some(flight) = self.end(number)
                {
                    self.fail(now, flight.slot, Failure { kind, retry_after: None, rotated: false });
                }
            }
            Event::Superseded { number } => self.superseded(now, number),
            Event::Renew { id } => {
                if let Some(slot) = self.roster.slot_of(&id)
                    && let Some(entry) = self.roster.get_mut(slot)
                {
                    entry.forgive();
                    // One that is in an exchange is being renewed already.
                    if !matches!(entry.wait(), Wait::Flying(_)) {
                        self.roster.enqueue(now, slot);
                    }
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
        self.roster.wake(now);
        let count = if self.stopping { 0 } else { self.budgets.len() };
        for step in 0..count {
            let issuer = (self.next_issuer + step) % count;
            if let Some(action) = self.start(now, issuer) {
                self.next_issuer = (issuer + 1) % count;
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
        let (tick, wall) = self.roster.first_due();
        for tick in [tick, self.keep_again.first().map(|first| first.0)].into_iter().flatten() {
            wait = wait.min(tick.since(now.tick));
        }
        if let Some(wall) = wall {
            wait = wait.min(wall.since(now.wall));
        }
        let budgets = if self.stopping { &mut [][..] } else { &mut self.budgets[..] };
        for (issuer, budget) in budgets.iter_mut().enumerate() {
            if self.roster.queued(issuer) > 0 && !self.held.contains(&issuer) {
                match budget.may_start(now.tick) {
                    Ok(()) => return Duration::ZERO,
                    Err(Some(tick)) => wait = wait.min(tick.since(now.tick)),
                    Err(None) => {}
                }
            }
        }
        wait
    }

    /// Ask no more where an answer has not come for so long; whether there is such a provider. The others go on.
    pub fn hold_where_answers_take(&mut self, now: Now, long: Duration) -> bool {
        let slow = |flight: &Flight| match flight.stage {
            Stage::Asked { since } if now.tick.since(since) >= long => Some(flight.provider),
            _ => None,
        };
        let slow: BTreeSet<usize> = self.flights.values().filter_map(slow).collect();
        self.held.extend(&slow);
        !slow.is_empty()
    }

    /// Start no more exchanges; what is in flight goes on to its end, and what the disk refused is tried again now.
    pub fn stop(&mut self) {
        self.stopping = true;
        self.keep_again = self.keep_again.iter().map(|&(_, number)| (Tick(0), number)).collect();
    }

    /// Nothing in flight and nothing to tell.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.pending.is_empty()
    }

    /// Nothing in flight but refresh tokens that the disk has refused, and nothing to tell.
    #[must_use]
    pub fn waits_only_for_the_disk(&self) -> bool {
        let refused = |flight: &Flight| matches!(flight.stage, Stage::Keeping { failures: 1.., .. });
        self.flights.values().all(refused) && self.pending.is_empty()
    }

    /// Counts of the moment.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut s = Snapshot::default();
        for entry in self.roster.entries() {
            s.credentials += 1;
            match entry.wait() {
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
        self.roster.get(self.roster.slot_of(id)?)?.expiry.get()
    }

    /// Whether there is such a credential.
    #[must_use]
    pub fn knows(&self, id: &CredentialId) -> bool {
        self.roster.slot_of(id).is_some()
    }

    /// Where each credential stands (`user`: only this one's), by user and name.
    pub fn rows(&self, now: Now, user: Option<&UserName>) -> impl Iterator<Item = Row<'_>> {
        self.roster.rows(now, user)
    }

    /// Why a provider's issuer is down, since when and after how many failures; none: it is not.
    #[must_use]
    pub fn outage(&self, provider: usize) -> Option<Outage> {
        self.budgets.get(provider).and_then(Budget::outage)
    }

    /// Whether what is wrong with a credential may be its issuer's doing from before the end of an outage: it has not been
    /// tried since.
    #[must_use]
    pub fn is_of_an_outage(&self, row: &Row<'_>) -> bool {
        let recovered = self.budgets.get(row.provider).and_then(Budget::recovered);
        row.error.is_some_and(|(kind, ..)| is_issuers(kind)) && recovered.is_some_and(|at| row.failed_at <= Some(at))
    }

    /// A provider's issuer: whether it is down, exchanges under way, renewals that wait for their turn.
    #[must_use]
    pub fn issuer(&self, provider: usize) -> (bool, u32, usize) {
        let told = |budget: &Budget| (budget.is_open(), budget.in_flight(), self.roster.queued(provider));
        self.budgets.get(provider).map_or((false, 0, 0), told)
    }

    /// Whether a provider's issuer has asked us to wait, and the time is not over.
    #[must_use]
    pub fn is_paused(&self, now: Now, provider: usize) -> bool {
        self.budgets.get(provider).is_some_and(|budget| budget.is_paused(now.tick))
    }

    fn scanned(&mut self, now: Now, user: UserName, as_of: Tick, found: Vec<Found>) {
        let before = self.roster.users.remove(&user).unwrap_or_default().slots;
        // By name: a user may have thousands.
        let mut known: BTreeMap<CredentialId, usize> =
            before.into_iter().filter_map(|slot| Some((self.roster.get(slot)?.id.clone(), slot))).collect();
        let mut slots = Slots::with_capacity(found.len());
        for found in found {
            match known.remove(&found.id) {
                Some(slot) => {
                    self.seen_again(now, as_of, slot, &found);
                    slots.push(slot);
                }
                None => slots.push(self.seen_first(now, found)),
            }
        }
        for slot in known.into_values() {
            if self.unseen(as_of, slot) {
                slots.push(slot);
            }
        }
        let gone = self.roll_call.looked(&user, as_of);
        self.tell_forgotten(gone);
        if !slots.is_empty() {
            self.roster.users.insert(user, Home { as_of, slots });
        }
    }

    fn tell_forgotten(&mut self, gone: impl IntoIterator<Item = CredentialId>) {
        self.pending.extend(gone.into_iter().map(|id| Action::Announce(Announcement::Forgotten { id })));
    }

    fn seen_first(&mut self, now: Now, found: Found) -> usize {
        let before = self.roll_call.seen(&found.id).filter(|before| before.entry.top == found.top);
        let spread = found.id.spread();
        let mut entry = Entry::new(found.id, found.provider, found.top);
        entry.expiry = found.use_file.and_then(|told| told.expiry).into();
        entry.ending = Ending::of_top(found.refresh_ends, now.tick);
        entry.fresh_top = found.use_file.is_none() || found.top_newer;
        if let (Err(kind), None) = (entry.top, &before) {
            self.pending.push_back(Action::Announce(Announcement::Unusable { id: entry.id.clone(), kind }));
        }
        let waits = before.and_then(|before| entry.go_on(before));
        let usable = entry.top.is_ok();
        let slot = self.roster.add(entry);
        let times = found.use_file.filter(|_| !found.top_newer).and_then(|told| Some((told.issued?, told.expiry?)));
        match (waits, times) {
            (Some(wait), _) if usable => self.roster.wait(slot, wait),
            (_, Some((issued, expiry))) if usable && expiry > now.wall => {
                let lifetime = expiry.since(issued);
                let after = schedule::renew_after(lifetime, spread, self.refresh);
                // One that says that it was issued later than now waits no longer than one of now.
                let due = issued.plus(after).min(now.wall.plus(after));
                if let Some(entry) = self.roster.get_mut(slot) {
                    entry.urgent_with(schedule::urgent(lifetime, spread, self.refresh));
                }
                self.roster.wait(slot, Wait::Due { wall: due, tick: now.tick.plus(due.since(now.wall)) });
            }
            _ => self.roster.enqueue(now, slot),
        }
        slot
    }

    fn seen_again(&mut self, now: Now, as_of: Tick, slot: usize, found: &Found) {
        if self.roster.get(slot).is_some_and(|entry| entry.provider != found.provider) {
            self.roster.hand_over(now, slot, found.provider);
        }
        let Some(entry) = self.roster.get_mut(slot) else { return };
        entry.gone = false;
        // Whenever it was seen: a `.top` is known by its content, and what it tells is part of that.
        if entry.top == found.top {
            entry.ending.seen(found.refresh_ends, as_of);
        }
        let flying = match entry.wait() {
            // What is seen while we write may be our own half-done work: look again after it.
            Wait::Flying(number) if is_keeping(&self.flights, number) => {
                entry.look = true;
                return;
            }
            wait => matches!(wait, Wait::Flying(_)),
        };
        let changed = entry.top != found.top;
        // So may what was seen before we wrote.
        if entry.changed_since(as_of) {
            if changed {
                self.pending.push_back(Action::Look { user: found.id.user.clone() });
            }
            return;
        }
        let use_lost = found.use_file.is_none() && matches!(entry.wait(), Wait::Due { .. });
        if !changed && !use_lost {
            return;
        }
        if changed {
            entry.replace_top(found.top);
            entry.ending = Ending::of_top(found.refresh_ends, as_of);
            if let Err(kind) = found.top {
                let id = found.id.clone();
                self.pending.push_back(Action::Announce(Announcement::Unusable { id, kind }));
            }
        }
        // An exchange goes on to its end first, which sees that it started from another `.top`.
        if !flying {
            self.roster.enqueue(now, slot);
        }
    }

    /// A credential that a look did not find: true if it is not forgotten yet.
    fn unseen(&mut self, as_of: Tick, slot: usize) -> bool {
        let Some(entry) = self.roster.get_mut(slot) else { return false };
        match entry.wait() {
            Wait::Flying(number) if is_keeping(&self.flights, number) => entry.look = true,
            Wait::Flying(_) => entry.gone = true,
            _ if entry.changed_since(as_of) => {
                self.pending.push_back(Action::Look { user: entry.id.user.clone() });
            }
            _ => {
                self.forget(slot);
                return false;
            }
        }
        true
    }

    fn forget(&mut self, slot: usize) {
        let Some(entry) = self.roster.remove(slot) else { return };
        if let Some(home) = self.roster.users.get_mut(&entry.id.user) {
            home.slots.retain(|other| *other != slot);
            if home.slots.is_empty() {
                self.roster.users.remove(&entry.id.user);
            }
        }
        self.pending.push_back(Action::Announce(Announcement::Forgotten { id: entry.id }));
    }

    fn start(&mut self, now: Now, issuer: usize) -> Option<Action> {
        let budget = self.budgets.get_mut(issuer).filter(|_| !self.held.contains(&issuer))?;
        budget.may_start(now.tick).ok()?;
        let asked_last = self.asked_last.get(issuer).copied().flatten();
        let place =
            if budget.is_open() { self.roster.probe(issuer, asked_last) } else { self.roster.first(now, issuer) }?;
        let slot = place.slot();
        let entry = self.roster.get(slot)?;
        let (id, identity) = (entry.id.clone(), entry.top.ok()?);
        let number = self.next_number;
        self.next_number += 1;
        self.roster.wait(slot, Wait::Flying(number));
        let probe = budget.started(now.tick);
        if let Some(last) = self.asked_last.get_mut(issuer) {
            *last = Some(place);
        }
        self.flights.insert(
            number,
            Flight { slot, provider: issuer, identity, probe, stage: Stage::Asked { since: now.tick } },
        );
        Some(Action::Exchange { number, id, provider: issuer, identity })
    }

    fn answered(&mut self, now: Now, number: u64, result: Result<Brought, Failure>) {
        let Some(flight) = self.flights.get_mut(&number) else { return };
        if !matches!(flight.stage, Stage::Asked { .. }) {
            return;
        }
        let (slot, provider, identity, probe) = (flight.slot, flight.provider, flight.identity, flight.probe);
        let rotated = result.map_or_else(|failure| failure.rotated, |brought| brought.rotated);
        if rotated {
            // Whatever was seen meanwhile: only the spool can tell whether it still has a place.
            flight.stage = Stage::Keeping { answer: Answered { at: now.tick, result }, failures: 0 };
            self.pending.push_back(Action::Keep { number, identity });
        }
        self.judge_issuer(now, provider, slot, probe, result.err());
        if rotated {
            return;
        }
        match result {
            _ if self.roster.get(slot).is_none_or(|entry| entry.gone || entry.top != Ok(identity)) => {
                if self.end(number).is_some() {
                    self.roster.enqueue(now, slot);
                }
            }
            Ok(brought) => self.publish(now, number, brought, now.tick),
            Err(failure) => {
                if self.end(number).is_some() {
                    self.fail(now, slot, failure);
                }
            }
        }
    }

    /// What the answer says about the issuer, apart from the credential.
    fn judge_issuer(&mut self, now: Now, provider: usize, slot: usize, probe: bool, failure: Option<Failure>) {
        let Some(budget) = self.budgets.get_mut(provider) else { return };
        budget.ended();
        let down = match failure.map(|f| (f.kind, f.kind.class())) {
            None | Some((_, Class::Refused | Class::Slow)) => {
                if !budget.answered(slot) {
                    return;
                }
                budget.note_recovery(now.tick);
                None
            }
            Some((kind, Class::Ours)) => {
                let parks = budget.refused(now.tick, slot);
                budget.note_outage(now.wall, kind, probe);
                if !parks {
                    return;
                }
                Some(kind)
            }
            // Ours to deal with, or a passing thing on this machine: says nothing about the issuer.
            Some((_, Class::Input) | (Kind::CourierLost | Kind::NoSpace | Kind::PublishFailed, _)) => return,
            Some((kind, Class::Transient)) => {
                if kind == Kind::RateLimited {
                    let wait = failure.and_then(|f| f.retry_after).unwrap_or(schedule::RETRY_FIRST);
                    budget.pause(now.tick, wait);
                    return;
                }
                let opens = budget.failed(now.tick, slot, probe);
                budget.note_outage(now.wall, kind, probe);
                if !opens {
                    return;
                }
                Some(kind)
            }
        };
        self.pending.push_back(Action::Announce(Announcement::Issuer { provider, down }));
    }

    fn kept(&mut self, now: Now, number: u64, identity: Identity, stored_anew: bool) {
        let Some(flight) = self.flights.get_mut(&number) else { return };
        let Stage::Keeping { answer, .. } = flight.stage else { return };
        flight.identity = identity;
        let slot = flight.slot;
        if let Some(entry) = self.roster.get_mut(slot) {
            if stored_anew {
                entry.replace_top(Ok(identity));
            }
            entry.top = Ok(identity);
            entry.gone = false;
            entry.changed_at = Some(now.tick).into();
            if answer.result.map_or(None, |brought| brought.refresh_lifetime).is_none() {
                entry.ending.rotated(now.tick);
            }
        }
        match answer.result {
            _ if stored_anew => {
                if self.end(number).is_some() {
                    self.roster.enqueue(now, slot);
                }
            }
            Ok(brought) => self.publish(now, number, brought, answer.at),
            Err(failure) => {
                if self.end(number).is_some() {
                    self.fail(now, slot, failure);
                }
            }
        }
    }

    fn keep_failed(&mut self, now: Now, number: u64, kind: Kind) {
        let Some(flight) = self.flights.get_mut(&number) else { return };
        let Stage::Keeping { failures, .. } = &mut flight.stage else { return };
        *failures += 1;
        let times = *failures;
        let wait = if self.stopping { LAST_TRIES } else { Duration::from_secs(1 << times.min(5)) };
        self.keep_again.insert((now.tick.plus(wait), number));
        if let Some(entry) = self.roster.get(flight.slot) {
            self.pending.push_back(Action::Announce(Announcement::Failed {
                id: entry.id.clone(),
                provider: flight.provider,
                kind,
                times,
                next_in: Some(wait),
            }));
        }
    }

    /// Publish what the issuer gave at `at`, if it still lives.
    fn publish(&mut self, now: Now, number: u64, brought: Brought, at: Tick) {
        let Some(flight) = self.flights.get_mut(&number) else { return };
        let age = now.tick.since(at);
        if age < brought.lifetime {
            flight.stage = Stage::Publishing { brought, at };
            let issued = now.wall.minus(age);
            self.pending.push_back(Action::Publish { number, identity: flight.identity, issued });
        } else if let Some(flight) = self.end(number) {
            self.roster.enqueue(now, flight.slot);
        }
    }

    fn published(&mut self, now: Now, number: u64) {
        let Some(Flight { slot, provider, identity, stage: Stage::Publishing { brought, at }, .. }) =
            self.flights.get(&number)
        else {
            return;
        };
        let (slot, provider, identity, brought, answered) = (*slot, *provider, *identity, *brought, *at);
        let age = now.tick.since(answered);
        if self.end(number).is_none() {
            return;
        }
        let Some(entry) = self.roster.get_mut(slot) else { return };
        let lifetime = brought.lifetime.saturating_sub(age);
        entry.expiry = Some(now.wall.plus(lifetime)).into();
        entry.urgent_with(schedule::urgent(brought.lifetime, entry.id.spread(), self.refresh));
        entry.renewed = Some(now.wall).into();
        entry.flagged = brought.flagged;
        let refresh_ends = brought.refresh_lifetime.map(|lifetime| now.wall.plus(lifetime.saturating_sub(age)));
        entry.ending.renewed(refresh_ends, brought.rotated, answered);
        let after_failures = entry.trouble.as_ref().map_or(0, |trouble| trouble.times);
        let first = entry.fresh_top;
        entry.forgive();
        entry.generation += 1;
        entry.changed_at = Some(now.tick).into();
        self.pending.push_back(Action::Announce(Announcement::Renewed {
            id: entry.id.clone(),
            provider,
            expires_in: lifetime,
            rotated: brought.rotated,
            flagged: brought.flagged,
            after_failures,
            generation: entry.generation.into(),
            first,
        }));
        if entry.top == Ok(identity) {
            entry.fresh_top = false;
            let after = schedule::renew_after(brought.lifetime, entry.id.spread(), self.refresh).saturating_sub(age);
            self.roster.wait(slot, Wait::Due { wall: now.wall.plus(after), tick: now.tick.plus(after) });
        } else {
            // Another `.top` was seen while this one's token went into place.
            self.roster.enqueue(now, slot);
        }
    }

    fn superseded(&mut self, now: Now, number: u64) {
        let Some(flight) = self.flights.get(&number) else { return };
        if matches!(flight.stage, Stage::Asked { .. })
            && let Some(budget) = self.budgets.get_mut(flight.provider)
        {
            budget.ended();
        }
        self.keep_again.retain(|&(_, other)| other != number);
        let Some(flight) = self.end(number) else { return };
        let Some(entry) = self.roster.get_mut(flight.slot) else { return };
        if entry.top == Ok(flight.identity) {
            // The look that tells of the new `.top` is still to come; ask again soon, should it tell of none.
            entry.changed_at = MaybeTick::default();
            self.pending.push_back(Action::Look { user: entry.id.user.clone() });
            self.roster.wait(flight.slot, Wait::Retry(now.tick.plus(SUPERSEDED)));
        } else {
            self.roster.enqueue(now, flight.slot);
        }
    }

    /// An exchange is over. Its credential is parked until the caller says what comes next, or forgotten: none then.
    fn end(&mut self, number: u64) -> Option<Flight> {
        let flight = self.flights.remove(&number)?;
        self.pending.push_back(Action::Discard { number });
        self.roster.wait(flight.slot, Wait::Parked);
        let entry = self.roster.get_mut(flight.slot)?;
        if std::mem::take(&mut entry.look) {
            self.pending.push_back(Action::Look { user: entry.id.user.clone() });
        }
        if entry.gone {
            self.forget(flight.slot);
            return None;
        }
        Some(flight)
    }

    fn fail(&mut self, now: Now, slot: usize, failure: Failure) {
        let Some(entry) = self.roster.get_mut(slot) else { return };
        let (kind, wish) = (failure.kind, failure.retry_after);
        let left = entry.expiry.get().unwrap_or_default().since(now.wall);
        let (id, provider, spread) = (entry.id.clone(), entry.provider, entry.id.spread());
        let trouble = entry.failed(now, kind);
        let times = trouble.times;
        let next_in = match kind.class() {
            Class::Transient => Some(schedule::retry_after(times, left, spread, wish)),
            // A look found nothing wrong with it, and this may pass without a change that a look would find.
            Class::Input if kind.passes() => Some(schedule::slow_retry_after(times, wish)),
            // The provider's own probe decides.
            Class::Ours if self.budgets.get(provider).is_some_and(Budget::is_open) => {
                Some(schedule::RETRY_FIRST.max(wish.unwrap_or_default()))
            }
            Class::Slow | Class::Ours => Some(schedule::slow_retry_after(times, wish)),
            Class::Refused => match trouble.refused_at {
                Some(first) if now.tick.since(first) >= self.confirm_after => None,
                first => {
                    let first = *trouble.refused_at.insert(first.unwrap_or(now.tick));
                    let confirm = first.plus(self.confirm_after).since(now.tick);
                    Some(confirm.max(wish.unwrap_or_default()))
                }
            },
            Class::Input => None,
        };
        let announcement = match (next_in, kind.class()) {
            (None, Class::Input) => Announcement::Unusable { id, kind },
            (None, _) => Announcement::Parked { id, provider, kind },
            _ => Announcement::Failed { id, provider, kind, times, next_in },
        };
        self.pending.push_back(Action::Announce(announcement));
        self.roster.wait(slot, next_in.map_or(Wait::Parked, |delay| Wait::Retry(now.tick.plus(delay))));
    }
}

fn is_keeping(flights: &BTreeMap<u64, Flight>, number: u64) -> bool {
    matches!(flights.get(&number), Some(Flight { stage: Stage::Keeping { .. }, .. }))
}

#[cfg(test)]
mod tests;
