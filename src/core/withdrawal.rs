//! Replicas to take away: those of credentials that left the spool, at sites whose kind takes back. Pure, and apart
//! from [`super::replica`], which knows what sites should have and forgets the rest. One withdrawal at a time is under
//! way at a site, none while a delivery of the same credential is, and what fails is tried again until it is done or
//! the credential is back.

use std::{collections::BTreeMap, time::Duration};

use super::{
    delivery::{Delivered, Undelivered},
    id::CredentialId,
    schedule,
    time::{Now, Tick},
};
use crate::error::Class;

/// Numbers of withdrawals begin here, those of deliveries at 1.
const FIRST: u64 = 1 << 63;

/// One to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawal {
    /// Comes back with its end.
    pub number: u64,
    /// Whose replica.
    pub id: CredentialId,
    /// Index of the site.
    pub site: usize,
    /// What is newer stays.
    pub generation: u64,
}

/// How one ended.
#[derive(Debug)]
pub struct Ended {
    /// Its number.
    pub number: u64,
    /// Whose replica.
    pub id: CredentialId,
    /// Index of the site.
    pub site: usize,
    /// What it was told.
    pub generation: u64,
    /// What the site did, or why not, how often in a row, and when it is tried again.
    pub result: Result<Delivered, (Undelivered, u32, Duration)>,
}

#[derive(Debug)]
struct Row {
    generation: u64,
    due: Tick,
    failures: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Withdrawals {
    rows: BTreeMap<(CredentialId, usize), Row>,
    flights: BTreeMap<u64, (CredentialId, usize)>,
    next_number: u64,
}

impl Default for Withdrawals {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), flights: BTreeMap::new(), next_number: FIRST }
    }
}

impl Withdrawals {
    /// Whether a number is one of a withdrawal.
    #[must_use]
    pub fn is_one(number: u64) -> bool {
        number >= FIRST
    }

    /// Take it away there.
    pub fn want(&mut self, now: Now, id: CredentialId, site: usize, generation: u64) {
        self.rows.insert((id, site), Row { generation, due: now.tick, failures: 0 });
    }

    /// It should be there (again); whether it was to be taken away.
    pub fn keep(&mut self, id: &CredentialId, site: usize) -> bool {
        // One that is under way finds the newer generation, or runs before it.
        self.rows.remove(&(id.clone(), site)).is_some()
    }

    /// The next one to send; `busy`: a delivery of it is under way.
    pub fn next(&mut self, now: Now, busy: impl Fn(&CredentialId, usize) -> bool) -> Option<Withdrawal> {
        let free = |(id, site): &(CredentialId, usize)| !self.flies(*site) && !busy(id, *site);
        let (key, row) = self.rows.iter().find(|(key, row)| row.due <= now.tick && free(key))?;
        let number = self.next_number;
        let one = Withdrawal { number, id: key.0.clone(), site: key.1, generation: row.generation };
        self.next_number += 1;
        self.flights.insert(number, key.clone());
        Some(one)
    }

    fn flies(&self, site: usize) -> bool {
        self.flights.values().any(|(_, other)| *other == site)
    }

    /// How long there is nothing to do that no end of something else brings about.
    pub fn deadline(&self, now: Now, busy: impl Fn(&CredentialId, usize) -> bool) -> Option<Duration> {
        let free = self.rows.iter().filter(|((id, site), _)| !self.flies(*site) && !busy(id, *site));
        free.map(|(_, row)| row.due.since(now.tick)).min()
    }

    /// Whether everything was tried at least once, and nothing is under way.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.flights.is_empty() && self.rows.values().all(|row| row.failures > 0)
    }

    /// One ended; `None`: nobody wants to know any more.
    pub fn ended(&mut self, now: Now, number: u64, result: Result<Delivered, Undelivered>) -> Option<Ended> {
        let key = self.flights.remove(&number)?;
        let row = self.rows.get_mut(&key)?;
        let generation = row.generation;
        let result = match result {
            Ok(delivered) => {
                self.rows.remove(&key);
                Ok(delivered)
            }
            Err(error) => {
                row.failures = row.failures.saturating_add(1);
                let wait = error.retry_after;
                let next_in = match error.kind.class() {
                    Class::Transient => schedule::retry_after(row.failures, Duration::ZERO, key.0.spread(), wait),
                    _ => schedule::slow_retry_after(row.failures, wait),
                };
                row.due = now.tick.plus(next_in);
                Err((error, row.failures, next_in))
            }
        };
        Some(Ended { number, id: key.0, site: key.1, generation, result })
    }

    /// Whoever carried them is gone; they are due again at once.
    pub fn lost(&mut self) {
        self.flights.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::{id::UserName, time::Timestamp},
        error::Kind,
    };

    fn id(user: &str) -> CredentialId {
        CredentialId::from_base(UserName::parse(user).unwrap(), "grid").unwrap()
    }

    fn at(secs: u64) -> Now {
        Now { wall: Timestamp(0), tick: Tick(secs * 1000) }
    }

    const IDLE: fn(&CredentialId, usize) -> bool = |_, _| false;

    #[test]
    fn what_fails_is_tried_again_until_it_is_done() {
        let mut w = Withdrawals::default();
        w.want(at(0), id("alice"), 0, 7);
        let mut tries = 0;
        let mut now = 0;
        while tries < 4 {
            let one = w.next(at(now), IDLE).unwrap();
            assert!(Withdrawals::is_one(one.number) && one.generation == 7);
            assert!(!w.is_settled(), "under way");
            let error = Undelivered::new(Kind::SiteUnreachable, "away");
            assert!(w.ended(at(now), one.number, Err(error)).unwrap().result.is_err());
            assert!(w.next(at(now), IDLE).is_none() && w.is_settled());
            now += w.deadline(at(now), IDLE).unwrap().as_secs() + 1;
            tries += 1;
        }
        let one = w.next(at(now), IDLE).unwrap();
        assert!(w.ended(at(now), one.number, Ok(Delivered::Written)).unwrap().result.is_ok());
        assert!(w.next(at(now + 9999), IDLE).is_none() && w.deadline(at(now), IDLE).is_none());
    }

    #[test]
    fn a_credential_that_is_back_is_not_withdrawn_and_one_that_is_being_sent_not_yet() {
        let mut w = Withdrawals::default();
        w.want(at(0), id("alice"), 0, 7);
        w.want(at(0), id("bob"), 0, 8);
        assert!(w.keep(&id("alice"), 0) && !w.keep(&id("alice"), 0));
        assert!(w.next(at(0), |_, _| true).is_none(), "a delivery is under way");
        assert!(w.deadline(at(0), |_, _| true).is_none(), "whose end wakes us");
        let one = w.next(at(0), IDLE).unwrap();
        assert_eq!(one.id, id("bob"));
        w.keep(&id("bob"), 0);
        assert!(w.ended(at(1), one.number, Ok(Delivered::Written)).is_none());
    }

    #[test]
    fn a_site_has_one_under_way_and_a_lost_one_is_sent_again() {
        let mut w = Withdrawals::default();
        for user in ["alice", "bob"] {
            w.want(at(0), id(user), 0, 7);
        }
        w.want(at(0), id("alice"), 1, 7);
        let first = w.next(at(0), IDLE).unwrap();
        let other = w.next(at(0), IDLE).unwrap();
        assert_eq!((first.site, other.site), (0, 1));
        assert!(w.next(at(0), IDLE).is_none());
        w.lost();
        assert_eq!(w.next(at(0), IDLE).unwrap().id, first.id);
        assert!(w.ended(at(0), first.number, Ok(Delivered::Written)).is_none(), "the end of a former one");
    }
}
