//! How the delivery of a generation to a site ended.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Kind;

/// The far end confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delivered {
    /// It wrote what we sent.
    Written,
    /// It had exactly this generation already: an earlier copy of the same delivery arrived.
    AlreadyThere,
    /// It has something newer, and kept that.
    Superseded {
        /// The generation that it has.
        have: u64,
    },
}

/// Not delivered. `detail` is for people and never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct Undelivered {
    /// The stable kind.
    pub kind: Kind,
    /// What happened, in one line.
    pub detail: String,
    /// The site's wish.
    pub retry_after: Option<Duration>,
}

impl Undelivered {
    /// Without a wish of the site; the words are made fit for a log.
    #[must_use]
    pub fn new(kind: Kind, detail: impl AsRef<str>) -> Self {
        let detail = detail.as_ref().chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
        Self { kind, detail, retry_after: None }
    }

    /// With the site's wish.
    #[must_use]
    pub fn wait(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }
}
