//! The course of a renewal, for traces: when its parts began and ended, and beneath them what became of each copy. No
//! user is in it.

use serde::{Deserialize, Serialize};

use super::time::Timestamp;
use crate::error::Kind;

/// What traces are made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Course {
    /// A renewal ended.
    Renewal(Renewal),
    /// A delivery of what it brought ended.
    Replication(Replication),
}

/// The numbers by which the parts of a renewal are known to belong together; made up at its begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// Of all parts.
    pub id: [u8; 16],
    /// Of the renewal itself, which the others lie beneath.
    pub root: [u8; 8],
}

/// From the first action to the last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Renewal {
    /// Its numbers.
    pub trace: Trace,
    /// Name of the provider.
    pub provider: String,
    /// The service.
    pub service: String,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// Asking the issuer: from, to.
    pub exchange: Option<(Timestamp, Timestamp)>,
    /// Making a rotated refresh token durable.
    pub keep: Option<(Timestamp, Timestamp)>,
    /// Putting the access token in place.
    pub publish: Option<(Timestamp, Timestamp)>,
    /// A new refresh token came along.
    pub rotated: bool,
    /// What went wrong; none: nothing.
    pub kind: Option<Kind>,
}

/// One delivery to one site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replication {
    /// The numbers of the renewal that brought the token.
    pub trace: Trace,
    /// Name of the site.
    pub site: String,
    /// The site's kind.
    pub kind: String,
    /// When it was handed to the process that replicates.
    pub began: Timestamp,
    /// When the site confirmed, or it failed.
    pub ended: Timestamp,
    /// Deliveries of this credential to this site that failed before, in a row.
    pub failures: u32,
    /// What went wrong; none: nothing.
    pub error: Option<Kind>,
}
