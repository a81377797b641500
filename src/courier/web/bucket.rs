//! So many at once, then so many a second.

use std::time::Instant;

/// What is left.
#[derive(Debug)]
pub struct Bucket {
    left: f64,
    at: Instant,
    most: f64,
    per_second: f64,
}

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn new(most: u32, per_second: u32, now: Instant) -> Self {
        let most = f64::from(most);
        Self { left: most, at: now, most, per_second: f64::from(per_second) }
    }

    /// Take one, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let gone = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + gone * self.per_second).min(self.most);
        self.at = now;
        let there = self.left >= 1.0;
        if there {
            self.left -= 1.0;
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_gives_what_it_holds_and_then_what_comes_in() {
        let now = Instant::now();
        let mut bucket = Bucket::new(3, 2, now);
        assert_eq!((0..5).filter(|_| bucket.take(now)).count(), 3);
        let later = now + Duration::from_secs(1);
        assert_eq!((0..5).filter(|_| bucket.take(later)).count(), 2);
        let much_later = now + Duration::from_secs(100);
        assert_eq!((0..5).filter(|_| bucket.take(much_later)).count(), 3);
    }
}
