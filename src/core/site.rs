//! How a site does: what replication counts and what it waits for, for status, metrics, notices and doctor. No user is
//! in it, so that its size depends on the number of sites alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{figures::Histogram, time::Timestamp};
use crate::error::Kind;

/// One site at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Site {
    /// Its name.
    pub name: String,
    /// Its kind, as configured.
    pub kind: String,
    /// Copies that it should have.
    pub replicas: u64,
    /// Those that are not what they should be, by the last error; none: it was not tried yet.
    pub late: BTreeMap<Option<Kind>, Late>,
    /// When it confirmed one last.
    pub confirmed: Option<Timestamp>,
    /// Deliveries that wait for their turn.
    pub queued: u64,
    /// Deliveries under way.
    pub in_flight: u64,
    /// Only single probes go out: it is down, or refuses us.
    pub down: bool,
    /// When our own client of its service ends, if that is known.
    pub client_ends: Option<Timestamp>,
    /// That is soon, or was.
    pub client_ends_soon: bool,
    /// What is told of it besides: why nothing is replicated to it, or how its endpoint is.
    pub words: Option<String>,
    /// Its service says that its endpoint is not there.
    pub offline: bool,
    /// What was counted since the daemon's start.
    pub counts: Counts,
}

/// Copies that are behind for the same reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Late {
    /// How many.
    pub count: u64,
    /// Since when the first of them is behind.
    pub since: Timestamp,
    /// When the first of the tokens that should be there ends, if that is known.
    pub expires: Option<Timestamp>,
}

impl Site {
    /// Copies that are behind, for whatever reason, and since when the first of them is.
    #[must_use]
    pub fn behind(&self) -> (u64, Option<Timestamp>) {
        (self.late.values().map(|late| late.count).sum(), self.late.values().map(|late| late.since).min())
    }

    /// Count a copy that is behind.
    pub fn is_late(&mut self, why: Option<Kind>, since: Timestamp, expires: Option<Timestamp>) {
        let late = self.late.entry(why).or_insert(Late { count: 0, since, expires });
        late.count += 1;
        late.since = late.since.min(since);
        late.expires = match (late.expires, expires) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, None) | (None, one) => one,
        };
    }
}

/// What is counted of one site.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Deliveries that it confirmed.
    pub delivered: u64,
    /// Of those, such where a newer one of ours was there already.
    pub superseded: u64,
    /// Deliveries that failed, by kind.
    pub errors: BTreeMap<Kind, u64>,
    /// From the new token to the confirmation.
    pub lag: Histogram,
    /// Copies taken away.
    pub withdrawals: Withdrawals,
}

/// How withdrawals ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Withdrawals {
    /// The copy is gone.
    pub done: u64,
    /// The site had something newer, and kept that.
    pub superseded: u64,
    /// Tries that failed.
    pub failed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_is_counted_by_reason_with_the_first_of_each() {
        let mut site = Site::default();
        assert_eq!(site.behind(), (0, None));
        let at = Timestamp::from_secs;
        site.is_late(Some(Kind::SiteTimeout), at(20), Some(at(90)));
        site.is_late(Some(Kind::SiteTimeout), at(10), Some(at(80)));
        site.is_late(None, at(15), None);
        assert_eq!(site.behind(), (3, Some(at(10))));
        let late = site.late.get(&Some(Kind::SiteTimeout)).copied();
        assert_eq!(late, Some(Late { count: 2, since: at(10), expires: Some(at(80)) }));
    }
}
