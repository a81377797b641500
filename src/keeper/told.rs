//! What has been told already: the same thing is told once an hour.

use std::{collections::HashMap, hash::Hash, time::Duration};

use crate::core::time::Tick;

const AGAIN: Duration = Duration::from_secs(3600);
/// So many things are remembered; beyond, those that would be told again are forgotten.
const MANY: usize = 10_000;

/// Things, and when each was told last.
#[derive(Debug)]
pub(super) struct Told<T>(HashMap<T, Tick>);

impl<T> Default for Told<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Eq + Hash> Told<T> {
    /// Whether it is to be told now.
    pub(super) fn tell(&mut self, now: Tick, what: T) -> bool {
        let news = self.0.get(&what).is_none_or(|&last| now.since(last) >= AGAIN);
        if news {
            if self.0.len() >= MANY {
                self.0.retain(|_, last| now.since(*last) < AGAIN);
            }
            self.0.insert(what, now);
        }
        news
    }

    /// Only these are still the case.
    pub(super) fn retain(&mut self, still: impl Fn(&T) -> bool) {
        self.0.retain(|what, _| still(what));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once_an_hour_and_at_once_when_it_comes_back() {
        let mut told = Told::default();
        let hour = u64::try_from(AGAIN.as_millis()).unwrap();
        assert_eq!([1, 2, hour].map(|tick| told.tell(Tick(tick), "a")), [true, false, false]);
        assert!(told.tell(Tick(2), "b"));
        assert!(told.tell(Tick(hour + 1), "a"));
        told.retain(|what| *what != "a");
        assert!(told.tell(Tick(hour + 2), "a") && !told.tell(Tick(hour + 1), "b"));
    }
}
