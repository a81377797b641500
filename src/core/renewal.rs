//! One renewal's course, for traces: when its parts began and ended. No user is in it.

use serde::{Deserialize, Serialize};

use super::time::Timestamp;
use crate::error::Kind;

/// From the first action to the last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Renewal {
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
