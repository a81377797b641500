//! The credentials that the planner knows, and what each of them waits for. A credential is in exactly one [`Wait`];
//! the indices (by wall time, by tick, the issuers' queues) hold it for that wait and for no other.
//!
//! There may be 100,000 of them, so an [`Entry`] is kept small.
//!
//! The file is long: what an entry waits for and the indices that hold it for that are one thing, which `Roster::check`
//! holds together.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use smallvec::SmallVec;

use super::{
    ending::Ending,
    id::{CredentialId, UserName},
    roll_call::Before,
    snapshot::State,
    time::{MaybeTick, MaybeTimestamp, Now, Tick, Timestamp},
    top::Identity,
};
use crate::error::Kind;

/// Where a credential stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Fresh; due at either of these, whichever comes first (the clock may step). The indices have it by the wall clock;
    /// see [`Roster::watch_clock`].
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

/// So many new ones of one user are let before renewals at once, and as many in each [`TURNS`] from then on.
const TURNS_OF_ONE: u32 = 20;
const TURNS: Duration = Duration::from_secs(60);
/// A user who stores without end stands behind others for no longer than this afterwards.
const LAST_TURN: Duration = Duration::from_secs(3600);

/// Place in an issuer's queue. New ones stand by turns, so that users take turns however much one of them stores;
/// renewals by the end of the present token. Who of them all is next, [`Roster::first`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// Of a `.top` that has brought no token yet.
    New { turn: Tick, slot: usize },
    /// To renew what there is.
    Renewal { expiry: Timestamp, slot: usize },
}

impl Place {
    pub(super) fn slot(self) -> usize {
        match self {
            Self::New { slot, .. } | Self::Renewal { slot, .. } => slot,
        }
    }
}

/// Failures in a row, of whatever kind.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) times: u32,
    /// Of the last one.
    pub(super) kind: Kind,
    /// When the first one was.
    pub(super) since: Timestamp,
    /// When the last one was.
    pub(super) last: Tick,
    /// The refresh token was refused first.
    pub(super) refused_at: Option<Tick>,
}

/// What is known of a credential.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: CredentialId,
    pub(super) provider: usize,
    pub(super) top: Result<Identity, Kind>,
    pub(super) expiry: MaybeTimestamp,
    /// With less than so many seconds left of its token, it goes before all new ones.
    urgent: u32,
    /// The end of the refresh token.
    pub(super) ending: Ending,
    pub(super) renewed: MaybeTimestamp,
    pub(super) flagged: Option<Kind>,
    wait: Wait,
    /// Apart, because most of 100,000 have none.
    pub(super) trouble: Option<Box<Trouble>>,
    /// How often it has been renewed.
    pub(super) generation: u32,
    /// When the `.top` was stored that all began with: rotations of ours do not count.
    approved: MaybeTimestamp,
    /// This `.top` has brought no token yet.
    pub(super) fresh_top: bool,
    /// When a file of ours last went into place.
    pub(super) changed_at: MaybeTick,
    /// Something was seen while we were writing.
    pub(super) look: bool,
    /// Not there at the last look, and forgotten when its exchange ends.
    pub(super) gone: bool,
}

impl Entry {
    /// Parked, until it is put into another wait.
    pub(super) fn new(id: CredentialId, provider: usize, top: Result<Identity, Kind>) -> Self {
        Self {
            id,
            provider,
            top,
            expiry: MaybeTimestamp::default(),
            urgent: 0,
            ending: Ending::default(),
            renewed: MaybeTimestamp::default(),
            flagged: None,
            wait: Wait::Parked,
            trouble: None,
            generation: 0,
            approved: top.ok().map(Identity::changed).into(),
            fresh_top: true,
            changed_at: MaybeTick::default(),
            look: false,
            gone: false,
        }
    }

    pub(super) fn wait(&self) -> Wait {
        self.wait
    }

    /// With less than this left of its token, it goes before all new ones.
    pub(super) fn urgent_with(&mut self, left: Duration) {
        self.urgent = u32::try_from(left.as_secs()).unwrap_or(u32::MAX);
    }

    /// A file of ours went into place then, so that looks that began before tell nothing new.
    pub(super) fn changed_since(&self, as_of: Tick) -> bool {
        self.changed_at.get().is_some_and(|changed_at| as_of <= changed_at)
    }

    /// The same `.top` as before a reload. If its provider is the same, too: what it waits for still, unless a new look
    /// tells that.
    pub(super) fn go_on(&mut self, before: Before) -> Option<Wait> {
        let Before { entry: before, same_provider } = before;
        self.renewed = before.renewed;
        self.generation = before.generation;
        self.flagged = before.flagged;
        self.approved = before.approved;
        self.ending = before.ending;
        if !same_provider {
            return None;
        }
        self.trouble = before.trouble;
        Some(before.wait).filter(|wait| matches!(wait, Wait::Parked | Wait::Retry(_)))
    }

    fn failed_at(&self) -> Option<Tick> {
        self.trouble.as_ref().map(|trouble| trouble.last)
    }

    /// It failed once more.
    pub(super) fn failed(&mut self, now: Now, kind: Kind) -> &mut Trouble {
        let first = Trouble { times: 0, kind, since: now.wall, last: now.tick, refused_at: None };
        let trouble = self.trouble.get_or_insert_with(|| Box::new(first));
        trouble.times = trouble.times.saturating_add(1);
        (trouble.kind, trouble.last) = (kind, now.tick);
        trouble
    }

    /// Another `.top`: what was held against the old one is forgiven.
    pub(super) fn replace_top(&mut self, top: Result<Identity, Kind>) {
        self.top = top;
        self.approved = top.ok().map(Identity::changed).into();
        self.fresh_top = true;
        self.forgive();
    }

    /// For status and metrics.
    fn row(&self, now: Now) -> Row<'_> {
        let at = |tick: Tick| now.wall.plus(tick.since(now.tick));
        let (state, renews) = match self.wait {
            _ if self.top.is_err() => (State::Unusable, None),
            Wait::Due { wall, tick } => (State::Fresh, Some(wall.min(at(tick)))),
            Wait::Retry(tick) => (State::Retrying, Some(at(tick))),
            Wait::Queued(_) | Wait::Flying(_) => (State::Renewing, None),
            Wait::Parked => (State::Parked, None),
        };
        let trouble = self.trouble.as_deref();
        let kind = self.top.err().or(trouble.map(|trouble| trouble.kind));
        Row {
            id: &self.id,
            provider: self.provider,
            state,
            expires: self.expiry.get(),
            renews,
            refresh_token_expires: self.ending.at(),
            rolling: self.ending.rolling(),
            stored: self.top.ok().map(Identity::changed),
            approved: self.approved.get(),
            renewed: self.renewed.get(),
            generation: self.generation.into(),
            error: kind
                .map(|kind| (kind, trouble.map(|trouble| trouble.since), trouble.map_or(0, |trouble| trouble.times))),
            failed_at: trouble.map(|trouble| trouble.last),
            flagged: self.flagged,
        }
    }

    /// As if it had never failed.
    pub(super) fn forgive(&mut self) {
        self.trouble = None;
    }
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
    /// Whether each renewal moves that end on; none: that has not shown yet.
    pub rolling: Option<bool>,
    /// When its `.top` was put there, by the file's own time; none: it cannot be used.
    pub stored: Option<Timestamp>,
    /// The same of the `.top` that somebody stored last: that we rotated it since does not count, as far as the daemon
    /// saw both.
    pub approved: Option<Timestamp>,
    /// When it was renewed last.
    pub renewed: Option<Timestamp>,
    /// How often it has been renewed.
    pub generation: u64,
    /// What is wrong, since when, how often in a row.
    pub error: Option<(Kind, Option<Timestamp>, u32)>,
    /// When it failed last.
    pub failed_at: Option<Tick>,
    /// The last token came with less than was asked for.
    pub flagged: Option<Kind>,
}

/// Most users have one or two credentials.
pub(super) type Slots = SmallVec<[usize; 2]>;

/// The credentials of a user, and when their directory was last looked at.
#[derive(Debug, Default)]
pub(super) struct Home {
    pub(super) as_of: Tick,
    pub(super) slots: Slots,
}

/// All credentials. See the module.
#[derive(Debug)]
pub(super) struct Roster {
    slots: Vec<Option<Entry>>,
    free: Vec<usize>,
    pub(super) users: BTreeMap<UserName, Home>,
    by_wall: BTreeSet<(Timestamp, usize)>,
    by_tick: BTreeSet<(Tick, usize)>,
    queues: Vec<BTreeSet<Place>>,
    /// The next turn of each user who has stored lately. Not in [`Home`]: one that is removed takes none along.
    turns: BTreeMap<UserName, Tick>,
    tidied: Tick,
    /// How far the wall clock was ahead of the ticks, in ms, when what is due was last entered by it.
    ahead: i64,
}

/// A clock that is set back by no more than this delays what is due by no more than this.
const SET_BACK: i64 = 1000;

impl Roster {
    pub(super) fn new(issuers: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            users: BTreeMap::new(),
            by_wall: BTreeSet::new(),
            by_tick: BTreeSet::new(),
            queues: vec![BTreeSet::new(); issuers],
            turns: BTreeMap::new(),
            tidied: Tick(0),
            ahead: i64::MIN,
        }
    }

    pub(super) fn get(&self, slot: usize) -> Option<&Entry> {
        self.slots.get(slot)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut Entry> {
        self.slots.get_mut(slot)?.as_mut()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter().flatten()
    }

    pub(super) fn slot_of(&self, id: &CredentialId) -> Option<usize> {
        let slots = &self.users.get(&id.user)?.slots;
        slots.iter().copied().find(|&slot| self.get(slot).is_some_and(|entry| entry.id == *id))
    }

    /// Where each credential stands, by user and name.
    pub(super) fn rows(&self, now: Now, user: Option<&UserName>) -> impl Iterator<Item = Row<'_>> {
        let homes = match user {
            Some(user) => self.users.range::<UserName, _>(user..=user),
            None => self.users.range::<UserName, _>(..),
        };
        let slots = homes.flat_map(|(_, home)| &home.slots);
        slots.filter_map(move |&slot| Some(self.get(slot)?.row(now)))
    }

    /// All of them, for a roster after a reload.
    pub(super) fn into_entries(self) -> impl Iterator<Item = Entry> {
        self.slots.into_iter().flatten()
    }

    /// How many wait in an issuer's queue.
    pub(super) fn queued(&self, issuer: usize) -> usize {
        self.queues.get(issuer).map_or(0, BTreeSet::len)
    }

    /// Take in a credential, parked. The caller enters it under its user.
    pub(super) fn add(&mut self, entry: Entry) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(entry);
        }
        slot
    }

    /// Out with it. The caller takes it off its user.
    pub(super) fn remove(&mut self, slot: usize) -> Option<Entry> {
        self.wait(slot, Wait::Parked);
        let entry = self.slots.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(entry)
    }

    /// From whatever wait it is in into this one.
    pub(super) fn wait(&mut self, slot: usize, wait: Wait) {
        let Some(Some(entry)) = self.slots.get_mut(slot) else { return };
        match std::mem::replace(&mut entry.wait, wait) {
            Wait::Due { wall, .. } => {
                self.by_wall.remove(&(wall, slot));
            }
            Wait::Retry(tick) => {
                self.by_tick.remove(&(tick, slot));
            }
            Wait::Queued(place) => {
                if let Some(queue) = self.queues.get_mut(entry.provider) {
                    queue.remove(&place);
                }
            }
            Wait::Flying(_) | Wait::Parked => {}
        }
        match wait {
            Wait::Due { wall, .. } => {
                self.by_wall.insert((wall, slot));
            }
            Wait::Retry(tick) => {
                self.by_tick.insert((tick, slot));
            }
            Wait::Queued(place) => match self.queues.get_mut(entry.provider) {
                Some(queue) => {
                    queue.insert(place);
                }
                // Nobody's any more: the next look forgets it, or tells whose it is.
                None => entry.wait = Wait::Parked,
            },
            Wait::Flying(_) | Wait::Parked => {}
        }
    }

    /// Into its issuer's queue, unless its `.top` is of no use.
    pub(super) fn enqueue(&mut self, now: Now, slot: usize) {
        let Some(Some(entry)) = self.slots.get(slot) else { return };
        let wait = match entry.wait {
            _ if entry.top.is_err() => Wait::Parked,
            _ if !entry.fresh_top => {
                Wait::Queued(Place::Renewal { expiry: entry.expiry.get().unwrap_or_default(), slot })
            }
            // It has its turn already.
            Wait::Queued(place @ Place::New { .. }) => Wait::Queued(place),
            _ => Wait::Queued(Place::New { turn: take_turn(&mut self.turns, now.tick, &entry.id.user), slot }),
        };
        self.wait(slot, wait);
    }

    /// Another provider's from now on: what was parked with the one before has another chance.
    pub(super) fn hand_over(&mut self, now: Now, slot: usize, provider: usize) {
        let Some(entry) = self.get_mut(slot) else { return };
        let wait = entry.wait;
        if matches!(wait, Wait::Queued(_)) {
            self.wait(slot, Wait::Parked);
        }
        let Some(entry) = self.get_mut(slot) else { return };
        entry.provider = provider;
        match wait {
            Wait::Parked => entry.forgive(),
            Wait::Queued(_) => {}
            Wait::Due { .. } | Wait::Retry(_) | Wait::Flying(_) => return,
        }
        self.enqueue(now, slot);
    }

    /// Move what has become due into the queues.
    pub(super) fn wake(&mut self, now: Now) {
        self.watch_clock(now);
        if now.tick.since(self.tidied) >= TURNS {
            self.turns.retain(|_, next| *next > now.tick);
            self.tidied = now.tick;
        }
        loop {
            let slot = match (self.by_tick.first(), self.by_wall.first()) {
                (Some(&(tick, slot)), _) if tick <= now.tick => slot,
                (_, Some(&(wall, slot))) if wall <= now.wall => slot,
                _ => return,
            };
            self.enqueue(now, slot);
        }
    }

    /// Where the wall clock was set back, what is due comes no later for that.
    pub(super) fn watch_clock(&mut self, now: Now) {
        let ahead = now.wall.0.saturating_sub_unsigned(now.tick.0);
        if ahead >= self.ahead {
            self.ahead = ahead;
        } else if self.ahead.saturating_sub(ahead) > SET_BACK {
            self.ahead = ahead;
            for slot in 0..self.slots.len() {
                if let Some(Wait::Due { wall, tick }) = self.get(slot).map(Entry::wait) {
                    let wall = wall.min(now.wall.plus(tick.since(now.tick)));
                    self.wait(slot, Wait::Due { wall, tick });
                }
            }
        }
    }

    /// The first tick and the first wall time at which something becomes due.
    pub(super) fn first_due(&self) -> (Option<Tick>, Option<Timestamp>) {
        (self.by_tick.first().map(|first| first.0), self.by_wall.first().map(|first| first.0))
    }

    /// Who is next in an issuer's queue: whose token would expire, then new ones whose turn it is, then renewals by the
    /// soonest expiry, and when nobody else waits the new ones of those who store too much.
    pub(super) fn first(&self, now: Now, issuer: usize) -> Option<Place> {
        let queue = self.queues.get(issuer)?;
        let renewal_from = |expiry| queue.range(Place::Renewal { expiry, slot: 0 }..).next().copied();
        // What has expired has nothing left to lose.
        let urgent = renewal_from(now.wall.plus(Duration::from_millis(1))).filter(|place| {
            let entry = self.get(place.slot());
            let urgent = |entry: &Entry| Duration::from_secs(entry.urgent.into());
            entry.is_some_and(|entry| entry.expiry.get().is_some_and(|expiry| expiry.since(now.wall) < urgent(entry)))
        });
        let new = queue.first().copied().filter(|place| matches!(place, Place::New { .. }));
        let in_turn = |place: &Place| matches!(place, Place::New { turn, .. } if turn.since(now.tick) < TURNS);
        urgent.or(new.filter(in_turn)).or_else(|| renewal_from(Timestamp(i64::MIN))).or(new)
    }

    /// Who of an issuer's queue shows whether it is up again: new ones and renewals by turns (`last`: who was asked last),
    /// of these the one whose last failure is longest ago. What always fails must not be all that is asked.
    pub(super) fn probe(&self, issuer: usize, last: Option<Place>) -> Option<Place> {
        let is_new = |place: &&Place| matches!(place, Place::New { .. });
        let renewal_is_next = last.as_ref().is_none_or(|last| is_new(&last));
        let key =
            |place: &&Place| (is_new(place) == renewal_is_next, self.get(place.slot()).and_then(Entry::failed_at));
        self.queues.get(issuer)?.iter().min_by_key(key).copied()
    }

    #[cfg(test)]
    pub(super) fn with_turns(&self) -> usize {
        self.turns.len()
    }

    /// What must hold after every event: one entry, one wait, and the indices agree.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut known: Vec<usize> = self.users.values().flat_map(|home| home.slots.iter().copied()).collect();
        known.sort_unstable();
        let there: Vec<usize> = (0..self.slots.len()).filter(|&slot| self.get(slot).is_some()).collect();
        assert_eq!(known, there, "every credential is its user's, once");
        assert_eq!(self.free.len() + there.len(), self.slots.len(), "no slot is lost");
        let (mut due, mut timed, mut queued) = (0, 0, 0);
        for (slot, entry) in there.iter().map(|&slot| (slot, self.get(slot).unwrap())) {
            match entry.wait {
                Wait::Due { wall, .. } => {
                    assert!(self.by_wall.contains(&(wall, slot)));
                    due += 1;
                }
                Wait::Retry(tick) => {
                    assert!(self.by_tick.contains(&(tick, slot)));
                    timed += 1;
                }
                Wait::Queued(place) => {
                    assert!(place.slot() == slot && self.queues[entry.provider].contains(&place));
                    assert!(entry.top.is_ok(), "only what can be read is queued");
                    queued += 1;
                }
                Wait::Flying(_) | Wait::Parked => {}
            }
        }
        let in_queues: usize = self.queues.iter().map(BTreeSet::len).sum();
        assert_eq!((self.by_wall.len(), self.by_tick.len(), in_queues), (due, timed, queued), "no index holds more");
    }
}

/// The user's next turn: at once, and the further off the more of them were taken lately.
fn take_turn(turns: &mut BTreeMap<UserName, Tick>, now: Tick, user: &UserName) -> Tick {
    let turn = turns.get(user).copied().unwrap_or(now).max(now);
    let next = turn.plus(TURNS / TURNS_OF_ONE).min(now.plus(LAST_TURN));
    match turns.get_mut(user) {
        Some(known) => *known = next,
        None => drop(turns.insert(user.clone(), next)),
    }
    turn
}
