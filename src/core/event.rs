//! What happens to the planner.

use std::{collections::BTreeSet, time::Duration};

use super::{
    id::{CredentialId, UserName},
    time::{Tick, Timestamp},
    top::Identity,
    use_file::Use,
};
use crate::error::Kind;

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
    /// A full scan ended: users not among these are gone, unless they were looked at after it began.
    FullScan {
        /// When the users were listed.
        as_of: Tick,
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
        /// The `.top` had been stored anew meanwhile, with the very refresh token that the exchange spent; what else
        /// is in it may ask for another access token.
        stored_anew: bool,
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
