//! How everything stands that notices look at, and by which rules: what [`super::notice`] decides from.

use std::{collections::BTreeMap, time::Duration};

use super::{
    budget::Outage,
    id::{CredentialId, UserName},
    site::Site,
    time::Timestamp,
};
use crate::error::Kind;

/// When to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Before a refresh token ends, longest first.
    pub steps: Vec<Duration>,
    /// So many failures in a row are no passing thing.
    pub after_failures: u32,
    /// A site that is behind for so long stays behind.
    pub site_behind: Duration,
}

/// How one credential stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Which.
    pub id: CredentialId,
    /// Name of its provider.
    pub provider: String,
    /// When the access token ends.
    pub expires: Option<Timestamp>,
    /// When the refresh token ends, if that is known.
    pub refresh_ends: Option<Timestamp>,
    /// Whether each renewal moves that end on, so that it comes only if renewals fail; none: that has not shown yet.
    pub rolling: Option<bool>,
    /// When it was stored, if that is known: by whoever approved, as far as the daemon saw it.
    pub approved: Option<Timestamp>,
    /// We have replaced what was stored then: after a restart nothing tells any more when that was.
    pub rotated: bool,
    /// What is wrong, and how often in a row; not what may only be left of an issuer's outage that is over.
    pub error: Option<(Kind, u32)>,
    /// Nothing is asked any more.
    pub parked: bool,
    /// It was renewed since the daemon started, and nothing is wrong since.
    pub well: bool,
}

impl Standing {
    /// What fails so often in a row is no passing thing; nor is what nobody tries again.
    #[must_use]
    pub fn stays(&self, policy: &Policy, times: u32) -> bool {
        self.parked || times >= policy.after_failures
    }
}

/// A user's credential of the provider `grid`, with which nothing is wrong.
#[cfg(test)]
#[must_use]
pub(crate) fn of_tests(user: &str) -> Standing {
    Standing {
        id: CredentialId::from_base(UserName::parse(user).unwrap(), "grid").unwrap(),
        provider: "grid".into(),
        expires: None,
        refresh_ends: None,
        rolling: Some(false),
        approved: None,
        rotated: false,
        error: None,
        parked: false,
        well: false,
    }
}

/// How a provider stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// Its name.
    pub name: String,
    /// Its issuer is down, or refuses our client.
    pub outage: Option<Outage>,
    /// Credentials that need it.
    pub living: usize,
    /// The soonest end of their access tokens.
    pub soonest: Option<Timestamp>,
    /// Its issuer is not down, and has renewed a credential since the daemon started with which nothing is wrong since.
    pub well: bool,
}

impl Provider {
    /// An outage that is no passing thing.
    #[must_use]
    pub fn lasting(&self, policy: &Policy) -> Option<Outage> {
        self.outage.filter(|outage| outage.times >= policy.after_failures)
    }
}

/// How everything stands that notices look at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standings {
    /// Credentials that are in trouble, will be, or were: others need not be there.
    pub credentials: Vec<Standing>,
    /// All providers.
    pub providers: Vec<Provider>,
    /// All sites.
    pub sites: Vec<Site>,
}

/// Jobs of one user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue {
    /// How many there are.
    pub count: u64,
    /// Some of them, as `cluster.proc`.
    pub named: Vec<String>,
}

/// Jobs by user; a user who is not in it has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Jobs {
    /// Nobody could be asked: everybody may have some.
    Unknown,
    /// These.
    Known(BTreeMap<String, Queue>),
}

impl Jobs {
    /// The user's.
    #[must_use]
    pub fn of(&self, user: &UserName) -> Queue {
        match self {
            Self::Unknown => Queue::default(),
            Self::Known(jobs) => jobs.get(user.as_str()).cloned().unwrap_or_default(),
        }
    }

    /// Whether the user may have some.
    #[must_use]
    pub fn may_have(&self, user: &UserName) -> bool {
        match self {
            Self::Unknown => true,
            Self::Known(jobs) => jobs.get(user.as_str()).is_some_and(|queue| queue.count > 0),
        }
    }
}
