//! Replicas: which generation of a credential each site should have, and which it has acknowledged. Pure, as the
//! planner of renewals is, and apart from it: nothing here can delay a renewal.
//!
//! A **generation** is a number that grows with the content of a `.use`: one more than the last, and at least the
//! seconds since 1970, so that it grows even where the journal was lost. It is durable ([`Action::Record`]) before
//! anything is sent under it; the far end takes it as the sequence number that refuses what is older. A site has a
//! generation only when it confirmed it. For each (credential, site) at most one delivery is under way; the newest
//! generation follows when that has ended. Each site has its own queue, budget and circuit, and what is one credential's
//! own trouble there is no other's: see `Word`. A site that has something newer than we ever made has not what it should
//! have: who wrote that is for people to find out, until the next renewal.
//!
//! The file is long as the planner's is: the waits of one delivery are read together.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    budget::{Budget, Limits},
    delivery::{Delivered, Undelivered},
    id::CredentialId,
    schedule,
    time::{Now, Tick, Timestamp},
};
use crate::error::{Class, Kind};

/// What a `.use` holds, by its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Of the bytes.
    pub hash: [u8; 16],
    /// When the access token ends, if it is known.
    pub expiry: Option<Timestamp>,
}

/// What the journal knows of one site's replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Index of the site; beyond all sites: of a name that is no site any more.
    pub site: usize,
    /// The generation that it confirmed.
    pub acknowledged: u64,
    /// When.
    pub at: Timestamp,
    /// The site's name stood for another destination then: nothing counts but that the number is used up.
    pub elsewhere: bool,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// From the journal, before everything else.
    Recalled {
        /// Which credential.
        id: CredentialId,
        /// Its last generation.
        generation: u64,
        /// The content that this generation stands for.
        hash: [u8; 16],
        /// What the sites have.
        known: Vec<Known>,
    },
    /// The credential's `.use` holds this, and these sites want it.
    Seen {
        /// Which credential.
        id: CredentialId,
        /// What is in it.
        content: Content,
        /// Indexes of sites.
        sites: Vec<usize>,
    },
    /// The credential left the spool.
    Gone {
        /// Which.
        id: CredentialId,
    },
    /// A generation is durable in the journal, or is not.
    Recorded {
        /// Which credential.
        id: CredentialId,
        /// Which generation.
        generation: u64,
        /// Whether it is.
        durable: bool,
    },
    /// A delivery ended.
    Ended {
        /// Its number.
        number: u64,
        /// How.
        result: Result<Delivered, Undelivered>,
    },
    /// The replicator is gone, and with it all that was under way; nothing is sent until `Ready`.
    Lost,
    /// There is a replicator again.
    Ready,
    /// An admin says `replicate --now`: what matches is sent at once, also where it was acknowledged.
    Again {
        /// This credential alone.
        id: Option<CredentialId>,
        /// This site alone.
        site: Option<usize>,
    },
}

/// What to do.
#[derive(Debug, Clone)]
pub enum Action {
    /// Make the generation durable, then say `Recorded`.
    Record {
        /// Which credential.
        id: CredentialId,
        /// Which generation.
        generation: u64,
        /// What it stands for.
        hash: [u8; 16],
    },
    /// Deliver, if the `.use` still holds that.
    Send {
        /// Number of the delivery.
        number: u64,
        /// Which credential.
        id: CredentialId,
        /// Where to.
        site: usize,
        /// As which generation.
        generation: u64,
        /// What.
        content: Content,
    },
    /// Note what a site confirmed (need not be durable before anything else).
    Acknowledge {
        /// Which credential.
        id: CredentialId,
        /// What the site has.
        known: Known,
    },
    /// Tell.
    Announce(Announcement),
}

/// What is worth telling.
#[derive(Debug, Clone)]
pub enum Announcement {
    /// A site confirmed a generation.
    Replicated {
        /// Number of the delivery.
        number: u64,
        /// Which credential.
        id: CredentialId,
        /// Where.
        site: usize,
        /// Which generation.
        generation: u64,
        /// How many failures it ends.
        after_failures: u32,
        /// How long the site was behind.
        after: Duration,
        /// When the token ends, if it is known.
        expires: Option<Timestamp>,
    },
    /// A delivery failed.
    Failed {
        /// Number of the delivery.
        number: u64,
        /// Which credential.
        id: CredentialId,
        /// Where.
        site: usize,
        /// Which generation.
        generation: u64,
        /// Why.
        error: Undelivered,
        /// How many in a row.
        times: u32,
        /// When it is tried again.
        next_in: Duration,
    },
    /// The site has a newer one of ours than what we sent.
    Superseded {
        /// Number of the delivery.
        number: u64,
        /// Which credential.
        id: CredentialId,
        /// Where.
        site: usize,
        /// What we sent.
        generation: u64,
        /// What is there.
        have: u64,
    },
    /// A site went down, refuses us, or came back.
    Site {
        /// Which.
        site: usize,
        /// Why it is down; `None`: it is back.
        down: Option<Kind>,
    },
}

/// Where a replica stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The site has what it should have.
    Current,
    /// Waiting for its turn, or for the journal.
    Waiting,
    /// Under way.
    Sending,
    /// Failed; tried again at this tick.
    Retrying(Tick),
    /// The token ended before it arrived; the next renewal brings another.
    Expired,
}

/// One replica, for status and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Which credential.
    pub id: CredentialId,
    /// Index of the site.
    pub site: usize,
    /// What the site should have.
    pub desired: u64,
    /// What it confirmed; 0: nothing yet.
    pub acknowledged: u64,
    /// When it did.
    pub at: Option<Timestamp>,
    /// Where it stands.
    pub standing: Standing,
    /// Failures in a row.
    pub failures: u32,
    /// The last one's kind.
    pub last: Option<Kind>,
    /// Since when the site should have something newer than it confirmed; none: it is not behind.
    pub since: Option<Timestamp>,
    /// When the token that it should have ends, if that is known.
    pub expires: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Settled,
    /// For the journal.
    Recording,
    Queued(Timestamp),
    Flying(u64),
    /// For the end of a delivery that began before the site was taken from this credential and given back.
    Held,
    Retry(Tick),
    Expired,
}

#[derive(Debug)]
struct Row {
    site: usize,
    acknowledged: u64,
    at: Option<Timestamp>,
    wait: Wait,
    failures: u32,
    last: Option<Kind>,
    /// When it failed last; a newer generation does not change that.
    failed_at: Option<Tick>,
    since: Option<Timestamp>,
}

/// What the end of one delivery says about the site, apart from the credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// It is there and does its work, or says what is wrong with this credential: its path, its quota, its turn.
    Answered,
    /// It refuses our account.
    Refused,
    /// It asks us to wait.
    Wait,
    /// It may be down.
    Failed,
    /// Nothing: the trouble is on this machine, or a name's.
    Nothing,
}

impl Word {
    fn of(failure: Option<Kind>) -> Self {
        let Some(kind) = failure else { return Self::Answered };
        match kind {
            // A task that waits for an endpoint, a full disk and a file that cannot be shown: somebody said so.
            Kind::SiteFull | Kind::SitePending | Kind::SiteUnconfirmed => Self::Answered,
            Kind::RateLimited => Self::Wait,
            Kind::SiteName | Kind::ReplicatorLost | Kind::NoSpace => Self::Nothing,
            other => match other.class() {
                Class::Slow | Class::Refused => Self::Answered,
                Class::Ours => Self::Refused,
                Class::Transient => Self::Failed,
                Class::Input => Self::Nothing,
            },
        }
    }
}

#[derive(Debug)]
struct Entry {
    id: CredentialId,
    generation: u64,
    content: Content,
    durable: bool,
    /// When the journal is tried again, if it did not take the generation.
    record_at: Option<Tick>,
    /// What a far end said it has: the next generation is above it.
    floor: u64,
    /// A site is elsewhere now: what is there may hold this generation as something else.
    anew: bool,
    /// Some site confirmed this generation; it need not be one any more.
    confirmed: bool,
    rows: Vec<Row>,
}

impl Entry {
    fn row(&mut self, site: usize) -> Option<&mut Row> {
        self.rows.iter_mut().find(|row| row.site == site)
    }

    /// Superseded counts only by what we issued.
    fn judged(&mut self, now: Now, result: Result<Delivered, Undelivered>) -> Result<Delivered, Undelivered> {
        let ours = self.generation;
        match result {
            Ok(Delivered::Superseded { have }) if have > ours => {
                // Our next one must be above it; within reason, since the far end may say anything.
                let most = u64::try_from(now.wall.secs()).unwrap_or(0).saturating_add(BELIEVED_AHEAD);
                if have <= most {
                    self.floor = self.floor.max(have);
                }
                let words = format!("generation {have} is there; our last one is {ours}, so it was not written by us");
                Err(Undelivered::new(Kind::SiteNewer, words))
            }
            other => other,
        }
    }
}

#[derive(Debug, Clone)]
struct Flight {
    id: CredentialId,
    site: usize,
    generation: u64,
    /// Sent while the site's circuit was open.
    probe: bool,
}

#[derive(Debug)]
struct Site {
    budget: Budget,
    queue: BTreeSet<(Timestamp, usize)>,
}

/// See the module.
#[derive(Debug)]
pub struct Replicas {
    slots: Vec<Option<Entry>>,
    free: Vec<usize>,
    ids: BTreeMap<CredentialId, usize>,
    sites: Vec<Site>,
    flights: BTreeMap<u64, Flight>,
    retries: BTreeSet<(Tick, usize, usize)>,
    next_number: u64,
    next_site: usize,
    pending: VecDeque<Action>,
    /// The highest generation of a credential that left: it may come back, and then it goes on above that.
    left: u64,
    ready: bool,
}

/// A far end's word about what it has is believed up to this far beyond our clock.
const BELIEVED_AHEAD: u64 = 86_400;
/// The journal is tried again after this.
const RECORD_AGAIN: Duration = Duration::from_secs(15);

impl Replicas {
    /// One budget per site.
    #[must_use]
    pub fn new(limits: &[Limits]) -> Self {
        let site = |limits: &Limits| Site { budget: Budget::new(*limits), queue: BTreeSet::new() };
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            ids: BTreeMap::new(),
            sites: limits.iter().map(site).collect(),
            flights: BTreeMap::new(),
            retries: BTreeSet::new(),
            next_number: 1,
            next_site: 0,
            pending: VecDeque::new(),
            left: 0,
            ready: true,
        }
    }

    /// Take note of an event.
    pub fn handle(&mut self, now: Now, event: Event) {
        match event {
            Event::Recalled { id, generation, hash, known } => self.recalled(id, generation, hash, known),
            Event::Seen { id, content, sites } => self.seen(now, id, content, &sites),
            Event::Gone { id } => self.gone(&id),
            Event::Recorded { id, generation, durable } => self.recorded(now, &id, generation, durable),
            Event::Ended { number, result } => {
                if let Some(flight) = self.flights.remove(&number) {
                    self.ended(now, number, flight, result);
                }
            }
            Event::Lost => {
                self.ready = false;
                for (number, flight) in std::mem::take(&mut self.flights) {
                    self.ended(now, number, flight, Err(Undelivered::new(Kind::ReplicatorLost, "")));
                }
            }
            Event::Ready => self.ready = true,
            Event::Again { id, site } => self.again(now, id.as_ref(), site),
        }
    }

    /// The next thing to do, if anything is to be done now.
    pub fn next_action(&mut self, now: Now) -> Option<Action> {
        if let Some(action) = self.pending.pop_front() {
            return Some(action);
        }
        self.wake(now);
        if let Some(action) = self.pending.pop_front() {
            return Some(action);
        }
        let count = if self.ready { self.sites.len() } else { 0 };
        for step in 0..count {
            let site = (self.next_site + step) % count;
            if let Some(action) = self.start(now, site) {
                self.next_site = (site + 1) % count;
                return Some(action);
            }
        }
        None
    }

    /// How long nothing needs to be done, at most 60 s.
    pub fn next_deadline(&mut self, now: Now) -> Duration {
        if !self.pending.is_empty() {
            return Duration::ZERO;
        }
        let mut wait = Duration::from_secs(60);
        if let Some((tick, ..)) = self.retries.first() {
            wait = wait.min(tick.since(now.tick));
        }
        for site in if self.ready { &mut self.sites[..] } else { &mut [][..] } {
            if !site.queue.is_empty() {
                match site.budget.may_start(now.tick) {
                    Ok(()) => return Duration::ZERO,
                    Err(Some(tick)) => wait = wait.min(tick.since(now.tick)),
                    Err(None) => {}
                }
            }
        }
        wait
    }

    /// All replicas.
    pub fn replicas(&self) -> impl Iterator<Item = Replica> + '_ {
        self.slots.iter().flatten().flat_map(|entry| self.rows(entry))
    }

    /// The replicas of one credential.
    #[must_use]
    pub fn replicas_of(&self, id: &CredentialId) -> Vec<Replica> {
        let entry = self.ids.get(id).and_then(|slot| self.slots.get(*slot)?.as_ref());
        entry.map(|entry| self.rows(entry).collect()).unwrap_or_default()
    }

    fn rows<'a>(&'a self, entry: &'a Entry) -> impl Iterator<Item = Replica> + 'a {
        entry.rows.iter().filter(|row| self.sites.get(row.site).is_some()).map(|row| Replica {
            id: entry.id.clone(),
            site: row.site,
            desired: entry.generation,
            acknowledged: row.acknowledged,
            at: row.at,
            standing: match row.wait {
                Wait::Settled => Standing::Current,
                Wait::Recording | Wait::Queued(_) | Wait::Held => Standing::Waiting,
                Wait::Flying(_) => Standing::Sending,
                Wait::Retry(tick) => Standing::Retrying(tick),
                Wait::Expired => Standing::Expired,
            },
            failures: row.failures,
            last: row.last,
            since: row.since,
            expires: entry.content.expiry,
        })
    }

    /// Whether a delivery of this credential to this site is under way, wanted still or not.
    #[must_use]
    pub fn is_under_way(&self, id: &CredentialId, site: usize) -> bool {
        self.flights.values().any(|flight| flight.site == site && flight.id == *id)
    }

    /// How a site does: whether it is down, deliveries under way, and how many wait for their turn.
    #[must_use]
    pub fn site(&self, index: usize) -> (bool, u32, usize) {
        let told = |site: &Site| (site.budget.is_open(), site.budget.in_flight(), site.queue.len());
        self.sites.get(index).map_or((false, 0, 0), told)
    }

    /// Whether nothing is under way or wanted right now.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty()
            && self.flights.is_empty()
            && self
                .slots
                .iter()
                .flatten()
                .flat_map(|e| &e.rows)
                .all(|row| matches!(row.wait, Wait::Settled | Wait::Retry(_) | Wait::Expired))
    }

    fn recalled(&mut self, id: CredentialId, generation: u64, hash: [u8; 16], known: Vec<Known>) {
        // A new content must never get a number that a site has confirmed for another.
        let floor = known.iter().map(|known| known.acknowledged).max().unwrap_or(0);
        let anew = known.iter().any(|known| known.elsewhere && known.site < self.sites.len());
        let confirmed = floor >= generation;
        let sites = known.into_iter().filter(|known| known.site < self.sites.len());
        let rows = sites.map(|known| Row {
            site: known.site,
            acknowledged: if known.elsewhere { 0 } else { known.acknowledged },
            at: (!known.elsewhere).then_some(known.at),
            wait: Wait::Settled,
            failures: 0,
            last: None,
            failed_at: None,
            since: None,
        });
        let content = Content { hash, expiry: None };
        let rows = rows.collect();
        self.insert(Entry { id, generation, content, durable: true, record_at: None, floor, anew, confirmed, rows });
    }

    fn insert(&mut self, entry: Entry) -> usize {
        let id = entry.id.clone();
        let slot = self.free.pop().unwrap_or(self.slots.len());
        match self.slots.get_mut(slot) {
            Some(place) => *place = Some(entry),
            None => self.slots.push(Some(entry)),
        }
        self.ids.insert(id, slot);
        slot
    }

    fn seen(&mut self, now: Now, id: CredentialId, content: Content, wanted: &[usize]) {
        if wanted.is_empty() {
            self.gone(&id);
            return;
        }
        let slot = if let Some(slot) = self.ids.get(&id) {
            *slot
        } else {
            let (durable, record_at, floor) = (false, None, self.left);
            let (anew, confirmed, rows) = (false, false, Vec::new());
            self.insert(Entry { id, generation: 0, content, durable, record_at, floor, anew, confirmed, rows })
        };
        let Some(entry) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        let changed = entry.generation == 0 || entry.content.hash != content.hash;
        entry.content = content;
        let (kept, dropped): (Vec<_>, Vec<_>) =
            std::mem::take(&mut entry.rows).into_iter().partition(|row| wanted.contains(&row.site));
        entry.rows = kept;
        let durable = entry.durable;
        let elsewhere = std::mem::take(&mut entry.anew) && entry.rows.iter().any(|row| row.acknowledged == 0);
        // What is called so now may have had another name when it confirmed this generation, and its file another form.
        let new_site =
            durable && entry.confirmed && wanted.iter().any(|site| entry.rows.iter().all(|row| row.site != *site));
        let anew = elsewhere || new_site;
        for row in dropped {
            self.unqueue(slot, row.site, row.wait);
        }
        if changed {
            self.new_generation(now, slot, &|_| true);
        } else if anew {
            self.new_generation(now, slot, &|_| false);
        }
        let changed = changed || anew;
        let Some(entry) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        let mut added = Vec::new();
        for &site in wanted {
            if !entry.rows.iter().any(|row| row.site == site) {
                let wait = if durable && !changed { Wait::Settled } else { Wait::Recording };
                let since = Some(now.wall);
                entry.rows.push(Row {
                    site,
                    acknowledged: 0,
                    at: None,
                    wait,
                    failures: 0,
                    last: None,
                    failed_at: None,
                    since,
                });
                added.push(site);
            }
        }
        // Recalled rows of this generation are what they should be; others get it at once.
        if durable && !changed {
            let generation = entry.generation;
            let mut behind = Vec::new();
            for row in &mut entry.rows {
                if row.wait == Wait::Settled && row.acknowledged < generation {
                    row.since.get_or_insert(made(generation, now));
                    behind.push(row.site);
                }
            }
            for site in behind {
                self.enqueue(now, slot, site);
            }
        }
    }

    /// A new generation for all rows that `resend` names; the others keep what they have.
    fn new_generation(&mut self, now: Now, slot: usize, resend: &dyn Fn(&Row) -> bool) {
        let Some(entry) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        let before = entry.generation;
        let clock = u64::try_from(now.wall.secs()).unwrap_or(0);
        entry.generation = before.max(entry.floor).saturating_add(1).max(clock);
        (entry.durable, entry.confirmed) = (false, false);
        let (id, generation, hash) = (entry.id.clone(), entry.generation, entry.content.hash);
        let (mut waits, mut kept) = (Vec::new(), Vec::new());
        for row in &mut entry.rows {
            if matches!(row.wait, Wait::Flying(_) | Wait::Held) {
                row.since.get_or_insert(now.wall);
                continue;
            }
            if row.wait == Wait::Settled && row.acknowledged == before && !resend(row) {
                row.acknowledged = generation;
                let at = row.at.unwrap_or(now.wall);
                kept.push(Known { site: row.site, acknowledged: generation, at, elsewhere: false });
                continue;
            }
            row.failures = 0;
            row.since.get_or_insert(now.wall);
            waits.push((row.site, std::mem::replace(&mut row.wait, Wait::Recording)));
        }
        for (site, wait) in waits {
            self.unqueue(slot, site, wait);
        }
        self.pending.push_back(Action::Record { id: id.clone(), generation, hash });
        self.pending.extend(kept.into_iter().map(|known| Action::Acknowledge { id: id.clone(), known }));
    }

    fn gone(&mut self, id: &CredentialId) {
        let Some(slot) = self.ids.remove(id) else { return };
        let Some(entry) = self.slots.get_mut(slot).and_then(Option::take) else { return };
        self.left = self.left.max(entry.generation).max(entry.floor);
        for row in entry.rows {
            self.unqueue(slot, row.site, row.wait);
        }
        if let Some(tick) = entry.record_at {
            self.retries.remove(&(tick, slot, usize::MAX));
        }
        self.free.push(slot);
    }

    fn recorded(&mut self, now: Now, id: &CredentialId, generation: u64, durable: bool) {
        let Some(&slot) = self.ids.get(id) else { return };
        let Some(entry) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        if entry.generation != generation {
            return;
        }
        if !durable {
            // `site` beyond all sites: the entry itself.
            let tick = now.tick.plus(RECORD_AGAIN);
            if let Some(before) = entry.record_at.replace(tick) {
                self.retries.remove(&(before, slot, usize::MAX));
            }
            self.retries.insert((tick, slot, usize::MAX));
            return;
        }
        entry.durable = true;
        let waiting = entry.rows.iter().filter(|row| row.wait == Wait::Recording).map(|row| row.site);
        for site in waiting.collect::<Vec<_>>() {
            self.enqueue(now, slot, site);
        }
    }

    fn row(&mut self, slot: usize, site: usize) -> Option<&mut Row> {
        self.slots.get_mut(slot)?.as_mut()?.row(site)
    }

    fn unqueue(&mut self, slot: usize, site: usize, wait: Wait) {
        match wait {
            Wait::Queued(expiry) => {
                if let Some(site) = self.sites.get_mut(site) {
                    site.queue.remove(&(expiry, slot));
                }
            }
            Wait::Retry(tick) => {
                self.retries.remove(&(tick, slot, site));
            }
            Wait::Settled | Wait::Recording | Wait::Flying(_) | Wait::Held | Wait::Expired => {}
        }
    }

    fn enqueue(&mut self, now: Now, slot: usize, site: usize) {
        let Some(entry) = self.slots.get(slot).and_then(Option::as_ref) else { return };
        let expiry = entry.content.expiry;
        let over = expiry.is_some_and(|expiry| expiry <= now.wall);
        let busy = self.flights.values().any(|flight| flight.site == site && flight.id == entry.id);
        let wait = match (busy, entry.durable, over) {
            (true, ..) => Wait::Held,
            (_, false, _) => Wait::Recording,
            (_, true, true) => Wait::Expired,
            (_, true, false) => Wait::Queued(expiry.unwrap_or(Timestamp(i64::MAX))),
        };
        if let (Wait::Queued(expiry), Some(to)) = (wait, self.sites.get_mut(site)) {
            to.queue.insert((expiry, slot));
        }
        if let Some(row) = self.row(slot, site) {
            row.wait = wait;
        }
    }

    fn wake(&mut self, now: Now) {
        while let Some(&(tick, slot, site)) = self.retries.first() {
            if tick > now.tick {
                return;
            }
            self.retries.pop_first();
            if site != usize::MAX {
                self.enqueue(now, slot, site);
            } else if let Some(entry) = self.slots.get_mut(slot).and_then(Option::as_mut) {
                entry.record_at = None;
                if !entry.durable {
                    let (id, generation, hash) = (entry.id.clone(), entry.generation, entry.content.hash);
                    self.pending.push_back(Action::Record { id, generation, hash });
                }
            }
        }
    }

    fn start(&mut self, now: Now, site: usize) -> Option<Action> {
        loop {
            let to = self.sites.get_mut(site)?;
            to.budget.may_start(now.tick).ok()?;
            let probe = to.budget.is_open();
            let (expiry, slot) = if probe { self.probe(site) } else { to.queue.first().copied() }?;
            let to = self.sites.get_mut(site)?;
            to.queue.remove(&(expiry, slot));
            if expiry <= now.wall {
                self.row(slot, site)?.wait = Wait::Expired;
                continue;
            }
            to.budget.started(now.tick);
            let number = self.next_number;
            self.next_number += 1;
            self.row(slot, site)?.wait = Wait::Flying(number);
            let entry = self.slots.get(slot)?.as_ref()?;
            let (id, generation, content) = (entry.id.clone(), entry.generation, entry.content);
            self.flights.insert(number, Flight { id: id.clone(), site, generation, probe });
            return Some(Action::Send { number, id, site, generation, content });
        }
    }

    /// Who of a site's queue shows whether it is up again: whoever's last failure is longest ago, and of those who never
    /// failed any one. What always fails must not be all that is asked.
    fn probe(&self, site: usize) -> Option<(Timestamp, usize)> {
        let key = |&&(_, slot): &&(Timestamp, usize)| {
            let entry = self.slots.get(slot).and_then(Option::as_ref);
            let row = entry.and_then(|entry| entry.rows.iter().find(|row| row.site == site));
            (row.and_then(|row| row.failed_at), entry.map(|entry| entry.id.spread()))
        };
        self.sites.get(site)?.queue.iter().min_by_key(key).copied()
    }

    /// What the end of a delivery says about the site, apart from the credential.
    fn judge_site(&mut self, now: Now, site: usize, slot: usize, probe: bool, error: Option<&Undelivered>) {
        let Some(to) = self.sites.get_mut(site) else { return };
        let kind = error.map(|error| error.kind);
        let word = Word::of(kind);
        match (word, error.and_then(|error| error.retry_after)) {
            (Word::Wait, wish) => to.budget.pause(now.tick, wish.unwrap_or(schedule::RETRY_FIRST)),
            (Word::Failed, Some(wish)) => to.budget.pause(now.tick, wish),
            _ => {}
        }
        let changes = match word {
            Word::Answered => to.budget.answered(slot),
            Word::Refused => to.budget.refused(now.tick, slot),
            Word::Failed => to.budget.failed(now.tick, slot, probe),
            Word::Wait | Word::Nothing => false,
        };
        if changes {
            let down = kind.filter(|_| word != Word::Answered);
            self.pending.push_back(Action::Announce(Announcement::Site { site, down }));
        }
    }

    fn ended(&mut self, now: Now, number: u64, flight: Flight, result: Result<Delivered, Undelivered>) {
        let Flight { id, site, generation, probe } = flight;
        let Some(to) = self.sites.get_mut(site) else { return };
        to.budget.ended();
        let Some(&slot) = self.ids.get(&id) else { return };
        let Some(entry) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        let (desired, spread, expiry) = (entry.generation, id.spread(), entry.content.expiry);
        let result = entry.judged(now, result);
        entry.confirmed |= result.is_ok() && generation == desired;
        let Some(row) = entry.rows.iter_mut().find(|row| row.site == site) else { return };
        if row.wait != Wait::Flying(number) {
            if row.wait == Wait::Held {
                self.enqueue(now, slot, site);
            }
            return;
        }
        self.judge_site(now, site, slot, probe, result.as_ref().err());
        let Some(to) = self.sites.get(site) else { return };
        let Some(row) = self.slots.get_mut(slot).and_then(Option::as_mut).and_then(|entry| entry.row(site)) else {
            return;
        };
        let error = match result {
            Ok(delivered) => {
                let after_failures = std::mem::take(&mut row.failures);
                (row.last, row.failed_at) = (None, None);
                row.acknowledged = row.acknowledged.max(generation);
                row.at = Some(now.wall);
                row.wait = Wait::Settled;
                let newer = (desired != generation).then(|| made(desired, now));
                let after =
                    std::mem::replace(&mut row.since, newer).map_or(Duration::ZERO, |since| now.wall.since(since));
                let known = Known { site, acknowledged: row.acknowledged, at: now.wall, elsewhere: false };
                self.pending.push_back(Action::Acknowledge { id: id.clone(), known });
                self.pending.push_back(Action::Announce(match delivered {
                    Delivered::Superseded { have } => Announcement::Superseded { number, id, site, generation, have },
                    Delivered::Written | Delivered::AlreadyThere => Announcement::Replicated {
                        number,
                        id,
                        site,
                        generation,
                        after_failures,
                        after,
                        expires: expiry,
                    },
                }));
                if desired != generation {
                    self.enqueue(now, slot, site);
                }
                return;
            }
            Err(error) => error,
        };
        row.failures = row.failures.saturating_add(1);
        (row.last, row.failed_at) = (Some(error.kind), Some(now.tick));
        let left = expiry.map_or(Duration::ZERO, |expiry| expiry.since(now.wall));
        let spread = spread ^ (site as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let next_in = match error.kind.class() {
            Class::Transient => schedule::retry_after(row.failures, left, spread, error.retry_after),
            // The site's own probe decides.
            Class::Ours if to.budget.is_open() => schedule::RETRY_FIRST.max(error.retry_after.unwrap_or_default()),
            Class::Slow | Class::Refused | Class::Ours | Class::Input => {
                schedule::slow_retry_after(row.failures, error.retry_after)
            }
        };
        let times = row.failures;
        if desired == generation {
            let tick = now.tick.plus(next_in);
            row.wait = Wait::Retry(tick);
            self.retries.insert((tick, slot, site));
        } else {
            // What failed is old already; the newer one starts afresh, as the site's budget allows.
            self.enqueue(now, slot, site);
        }
        self.pending.push_back(Action::Announce(Announcement::Failed {
            number,
            id,
            site,
            generation,
            error,
            times,
            next_in,
        }));
    }

    fn again(&mut self, now: Now, id: Option<&CredentialId>, site: Option<usize>) {
        let slots: Vec<usize> =
            self.ids.iter().filter(|(i, _)| id.is_none_or(|id| id == *i)).map(|(_, s)| *s).collect();
        let matches = |row: &Row| site.is_none_or(|site| site == row.site);
        for slot in slots {
            let Some(entry) = self.slots.get_mut(slot).and_then(Option::as_mut) else { continue };
            if entry.rows.iter().any(|row| matches(row) && row.wait == Wait::Settled) {
                self.new_generation(now, slot, &matches);
                continue;
            }
            let retrying: Vec<(usize, Wait)> = entry
                .rows
                .iter_mut()
                .filter(|row| matches(row) && matches!(row.wait, Wait::Retry(_)))
                .map(|row| (row.site, row.wait))
                .collect();
            for (site, wait) in retrying {
                self.unqueue(slot, site, wait);
                self.enqueue(now, slot, site);
            }
        }
        for (_, to) in self.sites.iter_mut().enumerate().filter(|(index, _)| site.is_none_or(|site| site == *index)) {
            to.budget.reopen();
        }
    }
}

/// About when a generation was made: its number is the second, unless one was made just before.
fn made(generation: u64, now: Now) -> Timestamp {
    Timestamp::from_secs(i64::try_from(generation).unwrap_or(i64::MAX)).min(now.wall)
}

#[cfg(test)]
#[path = "replica_tests.rs"]
mod tests;
