//! What discovery found, for an hour. Whoever comes first asks; those who come meanwhile wait and share what came of it,
//! a failure too: behind an issuer that hangs they wait for one timeout, not one after the other.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

use crate::core::answer::ExchangeError;

/// What was found is believed this long.
const LIFE: Duration = Duration::from_secs(3600);
/// While it cannot be had anew, the old one serves, and is asked for again this often.
const AGAIN: Duration = Duration::from_secs(60);

/// An endpoint by discovery.
#[derive(Debug, Default)]
pub(super) struct Discovered(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Until when it is believed.
    found: Option<(Instant, Arc<str>)>,
    failed: Option<(Instant, ExchangeError)>,
}

impl Discovered {
    /// The endpoint, by `ask` if it is not known.
    pub(super) async fn get(
        &self,
        ask: impl AsyncFnOnce() -> Result<Arc<str>, ExchangeError>,
    ) -> Result<Arc<str>, ExchangeError> {
        let came = Instant::now();
        let mut state = self.0.lock().await;
        if let Some((until, endpoint)) = &state.found
            && Instant::now() < *until
        {
            return Ok(Arc::clone(endpoint));
        }
        if let Some((at, error)) = &state.failed
            && *at >= came
        {
            return Err(error.clone());
        }
        match ask().await {
            Ok(endpoint) => {
                *state = State { found: Some((Instant::now() + LIFE, Arc::clone(&endpoint))), failed: None };
                Ok(endpoint)
            }
            Err(error) => {
                // Keep the last good thing.
                if let Some((until, endpoint)) = &mut state.found {
                    *until = Instant::now() + AGAIN;
                    return Ok(Arc::clone(endpoint));
                }
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::error::Kind;

    #[test]
    fn those_who_wait_share_a_failure_and_the_next_one_asks_again() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (discovered, asked) = (Discovered::default(), AtomicU32::new(0));
            let slowly = async || {
                asked.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(ExchangeError::new(Kind::Timeout, "no answer"))
            };
            let (a, b, c) = tokio::join!(discovered.get(slowly), discovered.get(slowly), discovered.get(slowly));
            assert!([a, b, c].iter().all(|one| one.as_ref().is_err_and(|error| error.kind == Kind::Timeout)));
            assert_eq!(asked.load(Ordering::Relaxed), 1);
            let found = discovered.get(async || Ok("here".into())).await.unwrap();
            assert_eq!(&*found, "here");
            assert_eq!(&*discovered.get(slowly).await.unwrap(), "here", "and is not asked for again");
            assert_eq!(asked.load(Ordering::Relaxed), 1);
        });
    }
}
