//! Threads for what may hang in a site's files. The replicator runs on one thread, which must never wait for a file
//! system: whatever reads or writes a site's files does so on one of a few threads of that site. If a mount hangs, they
//! hang, and hold their turns; the site's other deliveries wait for one in their own time, and no other site waits at all.

use std::{fmt::Display, sync::Arc};

use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::{core::delivery::Undelivered, error::Kind};

/// Of one site.
pub const THREADS: usize = 4;

/// The threads of one site.
#[derive(Debug)]
pub struct Threads(Arc<Semaphore>);

impl Default for Threads {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(THREADS)))
    }
}

impl Threads {
    /// Do what may hang, until `end` at most; what comes back later is dropped. `what` is named if it does.
    ///
    /// # Errors
    /// [`Kind::SiteTimeout`], or the job's own.
    pub async fn run<T: Send + 'static>(
        &self,
        what: impl Display,
        end: Instant,
        job: impl FnOnce() -> Result<T, Undelivered> + Send + 'static,
    ) -> Result<T, Undelivered> {
        let Ok(Ok(turn)) = timeout_at(end, Arc::clone(&self.0).acquire_owned()).await else {
            let words =
                format!("timed out: {what}: {THREADS} earlier operations there have not come back; no more are begun");
            return Err(Undelivered::new(Kind::SiteTimeout, words));
        };
        let job = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            job()
        });
        match timeout_at(end, job).await {
            Ok(end) => end.unwrap_or_else(|e| Err(Undelivered::new(Kind::SiteError, e.to_string()))),
            Err(_) => {
                Err(Undelivered::new(Kind::SiteTimeout, format!("timed out: {what}: its file system does not answer")))
            }
        }
    }

    /// How many are free.
    #[cfg(test)]
    #[must_use]
    pub fn free(&self) -> usize {
        self.0.available_permits()
    }
}
