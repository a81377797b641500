//! Frames between keeper and replicator; encoded as those of the courier are. The first one to a replicator is
//! `Configure`; its answer is `Ready`, after privileges are gone.

use serde::{Deserialize, Serialize};

use crate::{
    config::site_settings::Site,
    core::{
        delivery::{Delivered, Undelivered},
        secret::KeyText,
        time::Timestamp,
    },
    courier::frame::Sent,
    error::Kind,
};

/// Who a process becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Become {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Its further groups: shared directories are often open to one of them.
    pub groups: Vec<u32>,
}

/// Something that must outlive the replicator; the keeper keeps it in its journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Index of the site.
    pub site: usize,
    /// What it is about.
    pub key: String,
    /// What it says; `None`: it is over.
    pub value: Option<String>,
}

/// Keeper → replicator.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToReplicator {
    /// The sites (index = position), who to become, and what is noted.
    Configure {
        /// Settings of all sites.
        sites: Vec<Site>,
        /// If started as root.
        ids: Option<Become>,
        /// From the journal.
        notes: Vec<Note>,
    },
    /// Deliver one generation.
    Deliver {
        /// Comes back with the end.
        number: u64,
        /// Index of the site.
        site: usize,
        /// `USER`
        user: String,
        /// `S` or `S_H`
        base: String,
        /// The sequence number for the far end.
        generation: u64,
        /// When the access token ends, if it is known.
        expiry: Option<Timestamp>,
        /// The bytes of the `.use`, one line of text.
        content: KeyText,
    },
    /// What became of a note with a receipt.
    Kept {
        /// Its number.
        receipt: u64,
        /// It is on disk.
        durable: bool,
    },
    /// Take away what a site has of a credential that left the spool.
    Withdraw {
        /// Comes back with the end.
        number: u64,
        /// Index of the site.
        site: usize,
        /// `USER`
        user: String,
        /// `S` or `S_H`
        base: String,
        /// Nothing newer than this.
        generation: u64,
    },
}

impl Sent for FromReplicator {
    fn shortened(self) -> Self {
        const WHAT: &str = "the site's answer is larger than what is passed on";
        match self {
            Self::Ended { number, .. } => Self::Ended { number, result: Err(Undelivered::new(Kind::SiteError, WHAT)) },
            // What was noted before holds no longer.
            Self::Remember { note, receipt } => Self::Remember { note: Note { value: None, ..note }, receipt },
            Self::Endpoint { site, offline, .. } => Self::Endpoint { site, words: WHAT.to_owned(), offline },
            Self::Ready { .. } | Self::Failed { .. } => Self::Failed { why: WHAT.to_owned() },
        }
    }
}

/// Replicator → keeper.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromReplicator {
    /// Configured; privileges dropped; confined as far as `sandbox` says.
    Ready {
        /// For the log.
        sandbox: String,
    },
    /// A delivery ended.
    Ended {
        /// Its number.
        number: u64,
        /// How.
        result: Result<Delivered, Undelivered>,
    },
    /// Keep this.
    Remember {
        /// What.
        note: Note,
        /// Say `Kept` with this number when it is on disk.
        receipt: Option<u64>,
    },
    /// What a site's service says of its endpoint.
    Endpoint {
        /// Index of the site.
        site: usize,
        /// In words.
        words: String,
        /// Whether it says that the endpoint is not there.
        offline: bool,
    },
    /// The configuration cannot be used.
    Failed {
        /// Why, in one line.
        why: String,
    },
}
