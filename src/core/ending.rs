//! When a refresh token ends, and whether renewals move that end on.
//!
//! The end is told by a `.top` (a JWT's `exp`) or by an issuer's answer, often as a lifetime from now: the same end then
//! comes out a second earlier or later each time. Whether it moves is known only from a renewal some time after the end
//! was first seen; until then nobody can say whether the end will really come.

use std::time::Duration;

use super::time::{MaybeTick, MaybeTimestamp, Tick, Timestamp};

/// Ends that are no further apart are the same end.
const SAME: Duration = Duration::from_secs(60);
/// A renewal so long after the end was first seen would have moved one that moves, by more than [`SAME`].
const TELLS: Duration = Duration::from_secs(120);

/// Whether two ends are the same one.
#[must_use]
pub fn same_end(one: Timestamp, other: Timestamp) -> bool {
    one.since(other).max(other.since(one)) <= SAME
}

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ending {
    at: MaybeTimestamp,
    /// Since when it is this one.
    since: Tick,
    rolling: Option<bool>,
    /// The `.top` tells it, not an answer.
    in_top: bool,
    /// When we wrote the `.top`, if nobody has looked into it since.
    unread: MaybeTick,
}

impl Ending {
    /// A `.top` that is seen for the first time.
    #[must_use]
    pub fn of_top(at: Option<Timestamp>, seen: Tick) -> Self {
        Self { at: at.into(), since: seen, rolling: None, in_top: at.is_some(), unread: MaybeTick::default() }
    }

    /// When the refresh token ends, if that is known.
    #[must_use]
    pub fn at(&self) -> Option<Timestamp> {
        self.at.get()
    }

    /// Whether renewals move that end on; none: that has not shown yet.
    #[must_use]
    pub fn rolling(&self) -> Option<bool> {
        self.rolling
    }

    /// A renewal of that moment: the end that its answer tells, and whether it brought another refresh token.
    pub fn renewed(&mut self, at: Option<Timestamp>, rotated: bool, answered: Tick) {
        match at {
            Some(at) => {
                self.told(at, answered);
                (self.in_top, self.unread) = (false, MaybeTick::default());
            }
            // The same refresh token, and it tells its end itself.
            None if self.in_top && !rotated => self.rolling = Some(false),
            None => {}
        }
    }

    /// We wrote a `.top` with another refresh token, whose end only a look into it tells.
    pub fn rotated(&mut self, written: Tick) {
        self.unread = Some(written).into();
    }

    /// What the `.top` that we know tells.
    pub fn seen(&mut self, at: Option<Timestamp>, as_of: Tick) {
        let written = std::mem::take(&mut self.unread).get();
        match at {
            Some(at) if written.is_some() || self.at().is_none() => {
                self.told(at, written.unwrap_or(as_of));
                self.in_top = true;
            }
            None if written.is_some() => self.in_top = false,
            _ => {}
        }
    }

    fn told(&mut self, at: Timestamp, issued: Tick) {
        match self.at() {
            // What was seen first stays: an end that creeps on moves, too.
            Some(before) if same_end(before, at) => {
                if issued.since(self.since) >= TELLS {
                    self.rolling = Some(false);
                }
            }
            before => {
                self.rolling = before.filter(|before| *before < at).map(|_| true);
                (self.at, self.since) = (Some(at).into(), issued);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_000_000;

    /// Renewals each `every` seconds whose answers tell these ends, in seconds from the start.
    fn renewals(every: u64, ends: impl IntoIterator<Item = i64>) -> Ending {
        let mut ending = Ending::default();
        for (n, end) in ends.into_iter().enumerate() {
            let tick = Tick(START + u64::try_from(n).unwrap() * every * 1000);
            ending.renewed(Some(Timestamp::from_secs(end)), true, tick);
        }
        ending
    }

    #[test]
    fn an_end_that_jitters_stays_where_it_was_first_seen_and_is_known_not_to_move() {
        let ending = renewals(1800, [90_000, 90_001, 89_999, 90_001]);
        assert_eq!((ending.at(), ending.rolling()), (Some(Timestamp::from_secs(90_000)), Some(false)));
    }

    #[test]
    fn one_renewal_tells_nothing_nor_does_one_that_comes_too_soon() {
        assert_eq!(renewals(1800, [90_000]).rolling(), None);
        assert_eq!(renewals(119, [90_000, 90_001]).rolling(), None);
        assert_eq!(renewals(120, [90_000, 90_001]).rolling(), Some(false));
    }

    #[test]
    fn an_end_that_each_renewal_moves_is_rolling_however_short_the_steps() {
        for every in [20, 61, 1800] {
            let step = i64::try_from(every).unwrap();
            let ending = renewals(every, (0..10).map(|n| 3600 + n * step));
            assert_eq!(ending.rolling(), Some(true), "each {every} s");
        }
        // A clock that steps is mistaken for one, until the next renewal.
        assert_eq!(renewals(1800, [90_000, 93_600]).rolling(), Some(true));
        assert_eq!(renewals(1800, [90_000, 93_600, 93_600]).rolling(), Some(false));
        assert_eq!(renewals(1800, [90_000, 80_000]).rolling(), None, "an earlier end is another one");
    }

    #[test]
    fn a_token_that_tells_its_end_and_is_not_replaced_is_known_not_to_move_at_the_first_renewal() {
        let end = Some(Timestamp::from_secs(90_000));
        let mut ending = Ending::of_top(end, Tick(START));
        assert_eq!(ending.rolling(), None);
        ending.renewed(None, false, Tick(START));
        assert_eq!((ending.at(), ending.rolling()), (end, Some(false)));
        // One of which only an answer told the end is not.
        let mut ending = Ending::of_top(None, Tick(START));
        ending.renewed(end, false, Tick(START));
        ending.renewed(None, false, Tick(START + 10));
        assert_eq!((ending.at(), ending.rolling()), (end, None));
    }

    #[test]
    fn of_tokens_that_are_replaced_and_tell_their_ends_the_look_into_ours_tells() {
        for (step, rolling) in [(0, Some(false)), (1800, Some(true))] {
            let mut ending = Ending::of_top(Some(Timestamp::from_secs(90_000)), Tick(START));
            let tick = Tick(START + 1_800_000);
            ending.rotated(tick);
            ending.renewed(None, true, tick);
            assert_eq!(ending.rolling(), None, "nobody has looked");
            ending.seen(Some(Timestamp::from_secs(90_000 + step)), Tick(tick.0 + 50));
            assert_eq!(ending.rolling(), rolling);
            let before = ending;
            ending.seen(Some(Timestamp::from_secs(90_000)), Tick(tick.0 + 60));
            assert_eq!(ending, before, "further looks tell nothing new");
        }
    }
}
