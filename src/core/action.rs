//! What the planner wants done.

use std::time::Duration;

use super::{
    id::{CredentialId, UserName},
    time::Timestamp,
    top::Identity,
};
use crate::error::Kind;

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
        /// When the issuer gave it, by the wall clock of now.
        issued: Timestamp,
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
        /// How many in a row.
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
