//! What one issuer may be asked: so many at once, so many a second, and nothing much while it is down.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use super::{
    schedule::{RETRY_FIRST, RETRY_MOST},
    time::{Tick, Timestamp},
};
use crate::error::Kind;

/// Limits of one issuer, from the provider's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Exchanges under way at once.
    pub in_flight: u32,
    /// Exchanges started in any second.
    pub per_second: u32,
}

/// What [`Limits::per_second`] counts.
const SECOND: Duration = Duration::from_secs(1);
/// So many different credentials must fail in a row before the issuer counts as down: one bad one is not enough.
const FAILURES_TO_OPEN: usize = 5;
/// A provider whose client is refused is asked again this rarely.
const PARKED_PROBE: Duration = Duration::from_secs(300);

/// The state of one issuer's budget and circuit.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    in_flight: u32,
    /// Those started in the last second, by tick: at most a thousand entries, whatever the limit is.
    started: VecDeque<(Tick, u32)>,
    in_second: u32,
    /// The issuer asked us to wait until then.
    paused_until: Tick,
    /// While it is down: the next probe.
    probe_at: Tick,
    failing: BTreeSet<usize>,
    /// Credentials for which our client was refused since the last proper answer.
    refusing: BTreeSet<usize>,
    /// The credential that was answered properly last.
    good: Option<usize>,
    open_for: Option<Duration>,
    parked: bool,
    outage: Option<Outage>,
    /// When the last outage ended.
    recovered: Option<Tick>,
}

/// Why an issuer is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// What the exchange failed with that showed it.
    pub kind: Kind,
    /// When that was.
    pub since: Timestamp,
    /// Failures since, that one and probes: in a row, because any proper answer ends it.
    pub times: u32,
}

impl Budget {
    /// Full budget, closed circuit.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            in_flight: 0,
            started: VecDeque::new(),
            in_second: 0,
            paused_until: Tick(0),
            probe_at: Tick(0),
            failing: BTreeSet::new(),
            refusing: BTreeSet::new(),
            good: None,
            open_for: None,
            parked: false,
            outage: None,
            recovered: None,
        }
    }

    /// Whether an exchange may start now; otherwise when to ask again (`None`: when one of those in flight ends).
    ///
    /// # Errors
    /// Not now.
    pub fn may_start(&mut self, now: Tick) -> Result<(), Option<Tick>> {
        while let Some((_, count)) = self.started.front().copied().filter(|(tick, _)| tick.plus(SECOND) <= now) {
            self.in_second = self.in_second.saturating_sub(count);
            self.started.pop_front();
        }
        if self.in_flight >= if self.is_open() { 1 } else { self.limits.in_flight } {
            return Err(None);
        }
        let not_before = if self.is_open() { self.paused_until.max(self.probe_at) } else { self.paused_until };
        if now < not_before {
            return Err(Some(not_before));
        }
        match self.started.front() {
            Some((first, _)) if self.in_second >= self.limits.per_second.max(1) => Err(Some(first.plus(SECOND))),
            _ => Ok(()),
        }
    }

    /// An exchange starts: true if it is a probe of an issuer that is down.
    pub fn started(&mut self, now: Tick) -> bool {
        self.in_flight += 1;
        self.in_second += 1;
        match self.started.back_mut() {
            Some((tick, count)) if *tick == now => *count += 1,
            _ => self.started.push_back((now, 1)),
        }
        self.is_open()
    }

    /// An exchange ended, with or without telling anything about the issuer.
    pub fn ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The issuer answered properly for credential `slot` (a refusal of one refresh token is a proper answer): true if
    /// it had been down.
    pub fn answered(&mut self, slot: usize) -> bool {
        self.refusing.clear();
        self.good = Some(slot);
        self.reopen()
    }

    /// As if it had never failed: true if it had been down.
    pub fn reopen(&mut self) -> bool {
        self.failing.clear();
        let was_down = self.is_open();
        self.parked = false;
        self.open_for = None;
        self.outage = None;
        was_down
    }

    /// The issuer failed for credential `slot`: true if the circuit opens with this one. Once it is open, only
    /// probes make the wait longer: the others were under way before.
    pub fn failed(&mut self, now: Tick, slot: usize, probe: bool) -> bool {
        if let Some(before) = self.open_for {
            if probe {
                let wait = before.saturating_mul(2).min(RETRY_MOST);
                self.open_for = Some(wait);
                self.probe_at = now.plus(wait);
            }
            return false;
        }
        self.failing.insert(slot);
        if self.failing.len() < FAILURES_TO_OPEN {
            return false;
        }
        self.open_for = Some(RETRY_FIRST);
        self.probe_at = now.plus(RETRY_FIRST);
        true
    }

    /// The issuer asked us to wait, until later than `now`.
    #[must_use]
    pub fn is_paused(&self, now: Tick) -> bool {
        self.paused_until > now
    }

    /// The issuer asked us to wait.
    pub fn pause(&mut self, now: Tick, wait: Duration) {
        self.paused_until = self.paused_until.max(now.plus(wait));
    }

    /// Our client was refused for credential `slot`: true if the issuer is parked with this one. While it serves the
    /// client for other credentials, the fault is this one's: issuers answer so, too, if a token is another client's.
    /// Where only this one has been asked for, another one soon tells more.
    pub fn refused(&mut self, now: Tick, slot: usize) -> bool {
        self.refusing.insert(slot);
        let alone = self.good.is_none_or(|good| good == slot);
        if !self.parked && !alone && self.refusing.len() < 2 {
            return false;
        }
        if self.parked || self.refusing.len() > 1 {
            return self.park(now);
        }
        self.parked = true;
        self.probe_at = self.probe_at.max(now.plus(RETRY_FIRST));
        true
    }

    /// Nothing but rare probes from now on: true the first time.
    pub fn park(&mut self, now: Tick) -> bool {
        self.probe_at = self.probe_at.max(now.plus(PARKED_PROBE));
        !std::mem::replace(&mut self.parked, true)
    }

    /// It is down, and this failure (`probe`: of a probe) is why, or one more of it.
    pub fn note_outage(&mut self, now: Timestamp, kind: Kind, probe: bool) {
        if let Some(outage) = &mut self.outage {
            outage.times = outage.times.saturating_add(u32::from(probe));
        } else if self.is_open() {
            self.outage = Some(Outage { kind, since: now, times: 1 });
        }
    }

    /// It was down, and answers again.
    pub fn note_recovery(&mut self, now: Tick) {
        self.recovered = Some(now);
    }

    /// When the last outage ended.
    #[must_use]
    pub fn recovered(&self) -> Option<Tick> {
        self.recovered
    }

    /// Why it is down; none: it is not.
    #[must_use]
    pub fn outage(&self) -> Option<Outage> {
        self.outage
    }

    /// Exchanges under way.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Down: only single probes go out.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.parked || self.open_for.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_counts_what_showed_it_and_probes_until_a_proper_answer() {
        let mut budget = Budget::new(Limits { in_flight: 64, per_second: 100 });
        let (now, at) = (Tick(1000), Timestamp(5));
        let fail = |budget: &mut Budget, slot, probe, kind| {
            budget.failed(now, slot, probe);
            budget.note_outage(at, kind, probe);
            budget.outage().map(|outage| (outage.kind, outage.times))
        };
        for slot in 0..4 {
            assert_eq!(fail(&mut budget, slot, false, Kind::Timeout), None);
        }
        assert_eq!(fail(&mut budget, 4, false, Kind::Network), Some((Kind::Network, 1)));
        assert_eq!(fail(&mut budget, 5, false, Kind::Timeout), Some((Kind::Network, 1)), "it was under way before");
        assert_eq!(fail(&mut budget, 6, true, Kind::Timeout), Some((Kind::Network, 2)));
        budget.answered(6);
        assert_eq!(budget.outage(), None);
        budget.refused(now, 6);
        budget.note_outage(at, Kind::ClientRefused, false);
        assert_eq!(budget.outage(), Some(Outage { kind: Kind::ClientRefused, since: at, times: 1 }));
    }

    #[test]
    fn no_second_sees_more_starts_than_the_limit_and_a_long_run_reaches_it() {
        let mut budget = Budget::new(Limits { in_flight: 1000, per_second: 7 });
        let (mut now, mut starts) = (Tick(1), Vec::new());
        while now < Tick(60_000) {
            match budget.may_start(now) {
                Ok(()) => {
                    budget.started(now);
                    budget.ended();
                    starts.push(now.0);
                    // Not all at once, and not evenly.
                    now = Tick(now.0 + [0, 0, 3, 30][starts.len() % 4]);
                }
                Err(until) => {
                    assert!(until.unwrap() > now);
                    now = until.unwrap();
                }
            }
        }
        assert!(starts.windows(8).all(|eight| eight[7] - eight[0] >= 1000), "{starts:?}");
        assert!(starts.len() >= 7 * 50, "{}", starts.len());
    }

    #[test]
    fn a_full_house_that_fails_at_once_opens_the_circuit_for_the_first_delay_only() {
        let mut budget = Budget::new(Limits { in_flight: 64, per_second: 100 });
        let now = Tick(1000);
        for _ in 0..64 {
            budget.may_start(now).unwrap();
            budget.started(now);
        }
        for slot in 0..64 {
            budget.ended();
            budget.failed(now, slot, false);
        }
        assert_eq!(budget.may_start(now), Err(Some(now.plus(RETRY_FIRST))));
        let probe = now.plus(RETRY_FIRST);
        budget.may_start(probe).unwrap();
        budget.started(probe);
        assert_eq!(budget.may_start(probe), Err(None), "one probe at a time");
        budget.ended();
        assert!(!budget.failed(probe, 1, true));
        assert_eq!(budget.may_start(probe), Err(Some(probe.plus(RETRY_FIRST * 2))));
        assert!(budget.answered(1));
        assert_eq!(budget.may_start(probe), Ok(()));
    }
}
