//! When to renew, and when to try again. Total functions over plain numbers.

use std::time::Duration;

use super::time::Timestamp;

/// First retry delay; doubles up to [`RETRY_MOST`].
pub const RETRY_FIRST: Duration = Duration::from_secs(5);
/// Longest delay between retries of a transient failure.
pub const RETRY_MOST: Duration = Duration::from_secs(300);
/// Two refusals this far apart park a credential, unless the planner is told otherwise.
pub const CONFIRM_AFTER: Duration = Duration::from_secs(60);

/// What must be left of a token's life while the issuer answers: max(2 × `SEC_CREDENTIAL_REFRESH`, 600 s).
#[must_use]
pub fn floor(refresh: Duration) -> Duration {
    refresh.saturating_mul(2).max(Duration::from_secs(600))
}

/// How long after its issue a token of this `lifetime` is renewed: half of its life ± 10 % by `spread`,
/// and early enough to leave [`floor`]; tokens too short for that are renewed at half of their life.
#[must_use]
pub fn renew_after(lifetime: Duration, spread: u64, refresh: Duration) -> Duration {
    let half = lifetime / 2;
    let permille = 900 + u32::try_from(spread % 201).unwrap_or(100);
    let spread_half = half.saturating_mul(permille) / 1000;
    let floor = floor(refresh);
    if lifetime >= floor.saturating_mul(2) { spread_half.min(lifetime.saturating_sub(floor)) } else { spread_half }
}

/// How much is left of a token of this `lifetime` when its renewal can wait for nobody any more: a quarter of what was
/// left when it became due, [`floor`] at most.
#[must_use]
pub fn urgent(lifetime: Duration, spread: u64, refresh: Duration) -> Duration {
    (lifetime.saturating_sub(renew_after(lifetime, spread, refresh)) / 4).min(floor(refresh))
}

/// The wall time at which a token is due.
#[must_use]
pub fn due(issued: Timestamp, expiry: Timestamp, spread: u64, refresh: Duration) -> Timestamp {
    issued.plus(renew_after(expiry.since(issued), spread, refresh))
}

/// Delay before try number `failures + 1`: 5 s doubling to 5 min, ± 20 %, shrunk so that five more tries fit into
/// `left` (what remains of the present token's life; zero if it is gone), never before `not_before`.
#[must_use]
pub fn retry_after(failures: u32, left: Duration, spread: u64, not_before: Option<Duration>) -> Duration {
    let doubled = RETRY_FIRST.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1).min(16)).unwrap_or(u32::MAX));
    let mut delay = doubled.min(RETRY_MOST);
    if !left.is_zero() {
        delay = delay.min((left / 6).max(Duration::from_secs(1)));
    }
    let jitter = spread.wrapping_mul(u64::from(failures) | 1).rotate_left(17) % 401;
    let jittered = delay.saturating_mul(800 + u32::try_from(jitter).unwrap_or(200)) / 1000;
    jittered.max(not_before.unwrap_or_default())
}

/// Delay before the next try of a credential that only time or somebody else can mend: 5 min doubling to 1 h.
#[must_use]
pub fn slow_retry_after(failures: u32, not_before: Option<Duration>) -> Duration {
    let factor = 1_u32 << failures.saturating_sub(1).min(4);
    RETRY_MOST.saturating_mul(factor).min(Duration::from_secs(3600)).max(not_before.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn due_is_near_half_life_and_leaves_the_floor(life in 1_u64..10_000_000, spread: u64, refresh in 0_u64..2000) {
            let (life, refresh) = (Duration::from_secs(life), Duration::from_secs(refresh));
            let after = renew_after(life, spread, refresh);
            prop_assert!(after <= life * 11 / 20);
            if life >= floor(refresh) * 2 {
                prop_assert!(life.checked_sub(after).unwrap() >= floor(refresh));
            } else {
                prop_assert!(after + Duration::from_millis(1) >= life * 9 / 20);
            }
        }

        #[test]
        fn five_tries_fit_before_expiry(left in 10_u64..100_000, spread: u64, failures in 1_u32..40) {
            let mut left = Duration::from_secs(left);
            for n in 0..5 {
                let delay = retry_after(failures + n, left, spread, None);
                prop_assert!(delay < left, "try {n}: {delay:?} of {left:?}");
                left -= delay;
            }
        }

        #[test]
        fn a_retry_never_comes_before_retry_after(failures in 0_u32..100, left: u32, spread: u64, wait in 0_u64..100_000) {
            let wait = Duration::from_secs(wait);
            prop_assert!(retry_after(failures, Duration::from_secs(left.into()), spread, Some(wait)) >= wait);
            prop_assert!(slow_retry_after(failures, Some(wait)) >= wait);
        }
    }
}
