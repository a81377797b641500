//! What courier and keeper say to each other about approvals on the web page.
//!
//! The courier talks with browsers and issuers, the keeper alone reads request files and stores refresh tokens. Every
//! [`Ask`] that changes something carries the key of a request file, and the keeper judges the file anew each time: a
//! courier that fell into wrong hands can store nothing for a user who did not just ask for it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    key_file::Item,
    secret::{ApprovalKey, RefreshToken, on_wire},
    snapshot::State,
};
use crate::error::Kind;

/// What the courier asks of the keeper.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Ask {
    /// Somebody came with this key: what does its request file ask for?
    Open {
        /// The key.
        #[serde(with = "on_wire")]
        key: ApprovalKey,
    },
    /// The user approved one credential of it.
    Store {
        /// The key.
        #[serde(with = "on_wire")]
        key: ApprovalKey,
        /// Which credential.
        base: String,
        /// What the issuer gave.
        #[serde(with = "on_wire")]
        refresh_token: RefreshToken,
    },
    /// How do these credentials stand?
    Look {
        /// Whose.
        user: String,
        /// Which.
        bases: Vec<String>,
    },
}

/// What the keeper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// The request.
    Request(Request),
    /// It is durable.
    Stored,
    /// How the credentials stand, in the order asked; none: not known (yet).
    Standing(Vec<Option<(State, Option<Kind>)>>),
    /// No.
    Refused(Refusal),
}

/// A request file that stands, compared with what is configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Whose jobs.
    pub user: String,
    /// Seconds until the key ends.
    pub seconds_left: u64,
    /// What is asked for, and the index of the provider that owns it.
    pub items: Vec<(Item, usize)>,
}

/// Why not, in words for the user.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Refusal {
    /// No such file, too old, or used up.
    #[error("This link is not valid, or not any more.")]
    Unknown,
    /// The file is not as credd writes it.
    #[error("The request behind this link cannot be used: {0}.")]
    Unfit(String),
    /// No provider of evercred owns the service.
    #[error("The service {0} is not configured in evercred on this host.")]
    NotOurs(String),
    /// HTCondor's knobs and the provider are not the same.
    #[error("For the service {0}, HTCondor and evercred are configured for different {1}.")]
    Differs(String, String),
    /// The credential was approved with this link already.
    #[error("{0} was approved with this link already.")]
    Used(String),
    /// The credential directory did not take it.
    #[error("The approval could not be stored ({0}).")]
    NotStored(Kind),
}
