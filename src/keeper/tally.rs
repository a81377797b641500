//! Counts what the driver does, and how long it took: the keeper's part of [`Figures`]. One map entry an exchange
//! under way; everything else is a fixed number of counters a provider.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{driver::Owner, scanner};
use crate::core::{
    figures::{Counts, Figures, Histogram, ProviderFigures},
    planner::{Announcement, Planner},
    time::{Now, Timestamp},
};

/// The counters. Those of providers are kept by name, so that a reload resets none.
#[derive(Debug, Default)]
pub struct Tally {
    providers: HashMap<String, Counts>,
    publish: Histogram,
    /// When the answers came whose tokens are being published.
    answered: HashMap<u64, Instant>,
    /// When everything was looked at last.
    pub last_scan: Option<Timestamp>,
    /// How often the courier had to be started again.
    pub courier_restarts: u64,
    /// Notices by way of delivery: delivered, failed.
    pub notices: BTreeMap<String, (u64, u64)>,
    /// Refresh tokens revoked: done, failed.
    pub revocations: (u64, u64),
}

impl Tally {
    fn counts(&mut self, owners: &[Arc<Owner>], provider: usize) -> Option<&mut Counts> {
        let name = &owners.get(provider)?.provider.name;
        if !self.providers.contains_key(name) {
            self.providers.insert(name.clone(), Counts::default());
        }
        self.providers.get_mut(name)
    }

    /// An answer came after so long.
    pub fn answered(&mut self, owner: &Owner, number: u64, took: Duration) {
        self.providers.entry(owner.provider.name.clone()).or_default().exchanged(took);
        self.answered.insert(number, Instant::now());
    }

    /// Its token is in place.
    pub fn published(&mut self, number: u64) {
        if let Some(since) = self.answered.remove(&number) {
            self.publish.observe(since.elapsed());
        }
    }

    /// It ended, one way or the other.
    pub fn discarded(&mut self, number: u64) {
        self.answered.remove(&number);
    }

    /// What was announced.
    pub fn tell(&mut self, owners: &[Arc<Owner>], announcement: &Announcement) {
        let provider = match announcement {
            Announcement::Renewed { provider, .. }
            | Announcement::Failed { provider, .. }
            | Announcement::Parked { provider, .. }
            | Announcement::Issuer { provider, .. } => *provider,
            Announcement::Forgotten { id } => match scanner::owner_of(owners, &id.base()) {
                Some((provider, ..)) => provider,
                None => return,
            },
            Announcement::Unusable { .. } => return,
        };
        if let Some(counts) = self.counts(owners, provider) {
            counts.tell(announcement);
        }
    }

    /// Everything, with what the planner knows: one pass over all credentials.
    #[must_use]
    pub fn figures(&self, now: Now, planner: &Planner, owners: &[Arc<Owner>]) -> Figures {
        let mut providers: Vec<ProviderFigures> = owners
            .iter()
            .enumerate()
            .map(|(index, owner)| {
                let (down, in_flight, queued) = planner.issuer(index);
                let provider = &owner.provider;
                ProviderFigures {
                    name: provider.name.clone(),
                    queued: u64::try_from(queued).unwrap_or(u64::MAX),
                    in_flight: in_flight.into(),
                    down,
                    max_in_flight: provider.max_in_flight,
                    max_per_second: provider.max_per_second,
                    counts: self.providers.get(&provider.name).cloned().unwrap_or_default(),
                    ..ProviderFigures::default()
                }
            })
            .collect();
        for row in planner.rows(now, None) {
            let Some(figures) = providers.get_mut(row.provider) else { continue };
            figures.take(now.wall, &row);
        }
        Figures {
            now: now.wall,
            last_scan: self.last_scan,
            providers,
            publish: self.publish.clone(),
            courier_restarts: self.courier_restarts,
            notices: self.notices.clone(),
            revocations: self.revocations,
            ..Figures::default()
        }
    }
}
