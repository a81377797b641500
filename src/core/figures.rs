//! The daemon's figures: what the keeper counts, told to the courier, which serves it as metrics. No user is in it, so
//! that its size depends on the number of providers and sites alone.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    planner::{Announcement, Row},
    site::Site,
    snapshot::State,
    time::Timestamp,
};
use crate::error::{Class, Kind};

/// Everything at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// When these were taken.
    pub now: Timestamp,
    /// When the daemon started.
    pub started: Timestamp,
    /// Everything has been looked at at least once.
    pub scanned: bool,
    /// When everything was looked at last.
    pub last_scan: Option<Timestamp>,
    /// Providers, in their order.
    pub providers: Vec<ProviderFigures>,
    /// Sites, in their order.
    pub sites: Vec<Site>,
    /// How often the process that replicates had to be started again.
    pub replicator_restarts: u64,
    /// How long file work took, from the answer to the `.use` in place.
    pub publish: Histogram,
    /// How often the courier had to be started again.
    pub courier_restarts: u64,
    /// Readers of the status socket.
    pub readers: Readers,
    /// Lines of the log that could not be written.
    pub log_lost: u64,
    /// Lines of the audit log that were written.
    pub audit_written: u64,
    /// Lines of the audit log that were lost.
    pub audit_lost: u64,
    /// Notices by way of delivery (`mail`, `webhook`, …): delivered, failed.
    pub notices: BTreeMap<String, (u64, u64)>,
    /// Refresh tokens revoked at the end of life: done, failed.
    pub revocations: (u64, u64),
}

/// Readers of the status socket since the start, by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readers {
    /// They got the whole document.
    pub served: u64,
    /// They did not read it in time, or went.
    pub failed: u64,
    /// One user had too many of them, or all users together had.
    pub turned_away: u64,
}

/// One provider's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProviderFigures {
    /// Its name.
    pub name: String,
    /// Credentials by state, in the order of [`State::ALL`].
    pub states: [u64; State::ALL.len()],
    /// The soonest end of an access token that is renewed: what is dead waits for its user, and hides no other.
    pub soonest_expiry: Option<Timestamp>,
    /// Credentials whose access token has ended.
    pub expired: u64,
    /// The soonest end of a refresh token, of such credentials and of ends that come.
    pub soonest_refresh_token_expiry: Option<Timestamp>,
    /// Renewals that wait for their turn.
    pub queued: u64,
    /// Exchanges under way.
    pub in_flight: u64,
    /// Its issuer is down, or refuses our client.
    pub down: bool,
    /// `max_in_flight`
    pub max_in_flight: u32,
    /// `max_per_second`
    pub max_per_second: u32,
    /// What was counted since the start.
    pub counts: Counts,
}

impl ProviderFigures {
    /// Take in how one more credential stands.
    pub fn take(&mut self, now: Timestamp, row: &Row<'_>) {
        let place = State::ALL.iter().position(|state| *state == row.state);
        if let Some(count) = place.and_then(|place| self.states.get_mut(place)) {
            *count += 1;
        }
        self.expired += u64::from(row.expires.is_some_and(|expires| expires <= now));
        if row.state.lives() {
            let soonest = |known: Option<Timestamp>, one| known.into_iter().chain(one).min();
            self.soonest_expiry = soonest(self.soonest_expiry, row.expires);
            // An end that each renewal moves on comes only if they fail.
            let comes = row.rolling == Some(false) || row.error.is_some();
            let ends = row.refresh_token_expires.filter(|_| comes);
            self.soonest_refresh_token_expiry = soonest(self.soonest_refresh_token_expiry, ends);
        }
    }

    /// Renewals a second that its issuer's latency and our limits allow; none before the first exchange.
    #[must_use]
    pub fn capacity(&self) -> Option<f64> {
        let latency = self.counts.latency?;
        Some((f64::from(self.max_in_flight) / latency.max(0.000_1)).min(f64::from(self.max_per_second)))
    }

    /// Renewals a second that its living credentials need, by the lifetime that it grants.
    #[must_use]
    pub fn demand(&self) -> Option<f64> {
        let lifetime = self.counts.lifetime?;
        let living: u64 = State::ALL.iter().zip(self.states).filter(|(state, _)| state.lives()).map(|(_, n)| n).sum();
        #[expect(clippy::cast_precision_loss, reason = "a figure for a graph")]
        let living = living as f64;
        // Each is renewed after half of its life (rule 4).
        Some(living / (lifetime / 2.0).max(0.001))
    }
}

/// What is counted of one provider.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Good renewals.
    pub renewed: u64,
    /// Of those, with a new refresh token.
    pub rotated: u64,
    /// Failed renewals by kind.
    pub errors: BTreeMap<Kind, u64>,
    /// Credentials parked.
    pub parked: u64,
    /// Credentials that left the directory.
    pub forgotten: u64,
    /// How long exchanges took.
    pub exchange: Histogram,
    /// Mean of late, seconds.
    pub latency: Option<f64>,
    /// Mean of late, seconds.
    pub lifetime: Option<f64>,
}

impl Counts {
    /// An exchange ended.
    pub fn exchanged(&mut self, took: Duration) {
        self.exchange.observe(took);
        follow(&mut self.latency, took.as_secs_f64());
    }

    /// What was announced of a credential or issuer of this provider.
    pub fn tell(&mut self, announcement: &Announcement) {
        match announcement {
            Announcement::Renewed { expires_in, rotated, .. } => {
                self.renewed += 1;
                self.rotated += u64::from(*rotated);
                follow(&mut self.lifetime, expires_in.as_secs_f64());
            }
            Announcement::Failed { kind, .. } => *self.errors.entry(*kind).or_default() += 1,
            Announcement::Parked { kind, .. } => {
                *self.errors.entry(*kind).or_default() += 1;
                self.parked += 1;
            }
            Announcement::Forgotten { .. } => self.forgotten += 1,
            Announcement::Unusable { .. } | Announcement::Issuer { .. } => {}
        }
    }
}

/// A mean that follows: the last twenty or so count.
fn follow(mean: &mut Option<f64>, value: f64) {
    const WEIGHT: f64 = 0.05;
    *mean = Some(mean.map_or(value, |mean| mean + WEIGHT * (value - mean)));
}

/// Upper ends of the buckets, seconds; one more is open above.
pub const BOUNDS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 20.0];

/// Durations, counted by size.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// How many fell into each bucket; the last is above all bounds.
    pub counts: [u64; BOUNDS.len() + 1],
    /// All together, seconds.
    pub sum: f64,
}

impl Histogram {
    /// Count one.
    pub fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let place = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
        self.sum += seconds;
    }

    /// How many in all.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Who can mend a kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mender {
    /// The user, whoever else has it.
    User,
    /// The user, if it is of what this one asked for or stored; the admins, if it is of the configuration. That shows in
    /// whether several users have it.
    Either,
    /// The admins, or time.
    Admin,
}

/// Who can mend this kind.
#[must_use]
pub fn mender(kind: Kind) -> Mender {
    match kind {
        Kind::Revoked
        | Kind::Expired
        | Kind::Invalid
        | Kind::ReauthNeeded
        | Kind::TopTooLarge
        | Kind::TopNotUtf8
        | Kind::TopEmpty
        | Kind::TopNoToken => Mender::User,
        Kind::Restricted
        | Kind::ScopeShortfall
        | Kind::AudienceShortfall
        | Kind::RequestRefused
        | Kind::TopUnreadable
        | Kind::TopNotRegular
        | Kind::TopWrongOwner
        | Kind::TopSealed
        | Kind::TopElsewhere
        | Kind::AccountNotNamed
        | Kind::MetaMismatch => Mender::Either,
        _ => Mender::Admin,
    }
}

/// Whether the kind may be an issuer's doing, towards all credentials alike, and not this machine's.
#[must_use]
pub fn is_issuers(kind: Kind) -> bool {
    matches!(kind.class(), Class::Transient | Class::Ours)
        && !matches!(kind, Kind::CourierLost | Kind::NoSpace | Kind::PublishFailed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        let mut histogram = Histogram::default();
        for millis in [1, 2, 60_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        assert_eq!((histogram.counts[0], histogram.counts[1], histogram.counts[12]), (1, 1, 1));
        assert_eq!(histogram.count(), 3);
        assert!((histogram.sum - 60.003).abs() < 1e-9);
    }

    #[test]
    fn what_is_dead_is_not_what_ends_first_nor_is_an_end_that_renewals_move_on() {
        use crate::core::id::{CredentialId, UserName};

        let id = CredentialId::from_base(UserName::parse("alice").unwrap(), "grid").unwrap();
        let at = Timestamp::from_secs;
        let row = |state, expires, refresh, rolling| Row {
            id: &id,
            provider: 0,
            state,
            expires: Some(at(expires)),
            renews: None,
            refresh_token_expires: Some(at(refresh)),
            stored: None,
            approved: None,
            rolling,
            renewed: None,
            generation: 0,
            error: None,
            failed_at: None,
            flagged: None,
        };
        let failing = Row { error: Some((Kind::Timeout, None, 9)), ..row(State::Retrying, 95, 850, Some(true)) };
        let mut figures = ProviderFigures::default();
        for row in [
            row(State::Parked, 10, 20, Some(false)),
            row(State::Unusable, 11, 21, Some(false)),
            row(State::Fresh, 150, 300, Some(true)),
            row(State::Fresh, 160, 310, None),
            row(State::Renewing, 140, 900, Some(false)),
        ] {
            figures.take(at(100), &row);
        }
        assert_eq!((figures.soonest_expiry, figures.soonest_refresh_token_expiry), (Some(at(140)), Some(at(900))));
        assert_eq!((figures.expired, figures.states), (2, [2, 1, 0, 1, 1]));
        figures.take(at(100), &failing);
        assert_eq!((figures.soonest_expiry, figures.soonest_refresh_token_expiry), (Some(at(95)), Some(at(850))));
    }

    #[test]
    fn capacity_is_the_smaller_of_latency_and_limit_and_demand_comes_from_lifetimes() {
        let mut figures = ProviderFigures { max_in_flight: 64, max_per_second: 1000, ..ProviderFigures::default() };
        assert_eq!((figures.capacity(), figures.demand()), (None, None));
        figures.counts.exchanged(Duration::from_millis(100));
        assert!((figures.capacity().unwrap() - 640.0).abs() < 1e-6);
        figures.max_per_second = 50;
        assert!((figures.capacity().unwrap() - 50.0).abs() < 1e-6);
        figures.states = [90, 5, 5, 1000, 1000];
        figures.counts.lifetime = Some(100.0);
        assert!((figures.demand().unwrap() - 2.0).abs() < 1e-6);
    }
}
