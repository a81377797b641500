//! Announcements become log lines: one per renewal, the same field names everywhere; identical errors are told three
//! times, then only at debug level, and once more when they end.

use std::{collections::HashMap, sync::Arc};

use super::driver::Owner;
use crate::core::{id::CredentialId, planner::Announcement};

/// How often the same error of the same credential is told.
const TOLD: u32 = 3;

/// Remembers what went wrong, in words, until it is mended.
#[derive(Debug, Default)]
pub struct Announcer {
    details: HashMap<CredentialId, String>,
}

impl Announcer {
    /// Note the words that came with an error.
    pub fn note(&mut self, id: &CredentialId, detail: String) {
        self.details.insert(id.clone(), detail);
    }

    /// The words that came with the last error.
    #[must_use]
    pub fn detail(&self, id: &CredentialId) -> &str {
        self.details.get(id).map_or("", String::as_str)
    }

    /// Tell.
    pub fn tell(&mut self, owners: &[Arc<Owner>], announcement: &Announcement) {
        let provider = |index: usize| owners.get(index).map_or("?", |owner| owner.provider.name.as_str());
        match announcement {
            Announcement::Renewed { id, provider: p, expires_in, rotated, flagged, after_failures, generation } => {
                self.details.remove(id);
                let (user, service, handle) = names(id);
                let (expires_in, provider) = (expires_in.as_secs(), provider(*p));
                tracing::info!(
                    user,
                    service,
                    handle,
                    provider,
                    expires_in,
                    generation,
                    rotated,
                    after_failures,
                    "renewed"
                );
                if let Some(kind) = flagged {
                    tracing::warn!(user, service, handle, provider, %kind, "published with less than was asked for");
                }
            }
            Announcement::Failed { id, provider: p, kind, times, next_in } => {
                let (user, service, handle) = names(id);
                let (next_in, provider) = (next_in.map_or(0, |d| d.as_secs()), provider(*p));
                let detail = self.details.get(id).map_or("", String::as_str);
                if *times <= TOLD {
                    tracing::warn!(user, service, handle, provider, %kind, times, next_in, detail, "not renewed");
                } else {
                    tracing::debug!(user, service, handle, provider, %kind, times, next_in, detail, "not renewed");
                }
            }
            Announcement::Parked { id, provider: p, kind } => {
                let (user, service, handle) = names(id);
                let detail = self.details.get(id).map_or("", String::as_str);
                tracing::error!(
                    user, service, handle, provider = provider(*p), %kind, detail,
                    "parked: refused twice; the user must approve again (its files stay as they are)"
                );
            }
            Announcement::Unusable { id, kind } => {
                let (user, service, handle) = names(id);
                tracing::warn!(user, service, handle, %kind, "the .top cannot be used; waiting for another");
            }
            Announcement::Forgotten { id } => {
                self.details.remove(id);
                let (user, service, handle) = names(id);
                tracing::info!(user, service, handle, "forgotten: its .top is gone");
            }
            Announcement::Issuer { provider: p, down: Some(kind) } => {
                tracing::error!(provider = provider(*p), %kind, "issuer is down or refuses us: single probes only");
            }
            Announcement::Issuer { provider: p, down: None } => {
                tracing::info!(provider = provider(*p), "issuer answers again");
            }
        }
    }
}

fn names(id: &CredentialId) -> (&str, &str, &str) {
    (id.user.as_str(), id.service.as_str(), id.handle.as_ref().map_or("", |handle| handle.as_str()))
}
