//! What the thread of the replicas shows others: the copies of each credential, how sites do, and what was counted. Who
//! reads never waits for the thread; how sites do is at most a second old.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::core::{
    id::CredentialId,
    site::{Counts, Site},
    snapshot::{Copies, Replica},
};

/// Clones share it. Counts outlive a reload, the rest is taken down with the thread.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    replicas: BTreeMap<CredentialId, Vec<Replica>>,
    sites: Vec<Site>,
    counts: BTreeMap<String, Counts>,
    restarts: u64,
}

impl Board {
    fn open(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The copies of a credential.
    #[must_use]
    pub fn of(&self, id: &CredentialId) -> Vec<Replica> {
        self.open().replicas.get(id).cloned().unwrap_or_default()
    }

    /// The same in numbers, which costs no copy of all of them.
    #[must_use]
    pub fn copies(&self, id: &CredentialId) -> Copies {
        self.open().replicas.get(id).map(|replicas| Copies::of(replicas)).unwrap_or_default()
    }

    /// How the sites do, with what was counted.
    #[must_use]
    pub fn sites(&self) -> Vec<Site> {
        let shown = self.open();
        let with_counts =
            |site: &Site| Site { counts: shown.counts.get(&site.name).cloned().unwrap_or_default(), ..site.clone() };
        shown.sites.iter().map(with_counts).collect()
    }

    /// How often the process that replicates had to be started again.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.open().restarts
    }

    /// It has to be once more.
    pub fn restarted(&self) {
        self.open().restarts += 1;
    }

    /// Show the copies of these credentials.
    pub fn put(&self, rows: impl IntoIterator<Item = (CredentialId, Vec<Replica>)>) {
        self.open().replicas.extend(rows);
    }

    /// The credential left.
    pub fn remove(&self, id: &CredentialId) {
        self.open().replicas.remove(id);
    }

    /// Show how the sites do; their counts are known here.
    pub fn put_sites(&self, sites: Vec<Site>) {
        self.open().sites = sites;
    }

    /// Count what happened at a site.
    pub fn count(&self, site: &str, what: impl FnOnce(&mut Counts)) {
        let mut shown = self.open();
        if !shown.counts.contains_key(site) {
            shown.counts.insert(site.to_owned(), Counts::default());
        }
        if let Some(counts) = shown.counts.get_mut(site) {
            what(counts);
        }
    }

    /// Nothing is replicated any more, or to other sites.
    pub fn clear(&self) {
        let mut shown = self.open();
        shown.replicas.clear();
        shown.sites.clear();
    }
}
