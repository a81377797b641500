//! The figures as Prometheus metrics (`OpenMetrics` where the reader takes it). Names, kinds and labels are a table,
//! which `docs/metrics.md` repeats and a test compares. No label holds a user, so that the number of series depends on
//! the configuration alone. The metrics of replication are told where sites are configured.

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Registry,
};

use super::Counts;
use crate::{
    core::{
        figures::{BOUNDS, Figures, Histogram, ProviderFigures, Readers},
        site::Site,
        snapshot::State,
        time::Timestamp,
    },
    error::Kind,
};

/// One metric: its name without `evercred_` and `_total`, kind, labels and meaning.
#[derive(Debug, Clone, Copy)]
struct Metric(&'static str, MetricType, &'static [&'static str], &'static str);

macro_rules! metrics {
    ($($name:ident = $text:literal, $kind:ident, [$($label:literal),*], $help:literal;)*) => {
        $(const $name: Metric = Metric($text, MetricType::$kind, &[$($label),*], $help);)*
        /// All of them, in their order.
        const ALL: &[Metric] = &[$($name,)*];
    };
}

metrics! {
    BUILD = "build_info", Gauge, ["version"], "Always 1: the version that runs";
    START = "start_time_seconds", Gauge, [], "When the daemon started, in seconds since 1970";
    AGE = "figures_age_seconds", Gauge, [], "Age of all figures of the keeper; grows if it does not answer";
    SCAN = "last_full_scan_timestamp_seconds", Gauge, [], "When the last full scan ended (in parts where the watch works: see full_scan), in seconds since 1970";
    CREDENTIALS = "credentials", Gauge, ["provider", "state"], "Credentials by where they stand";
    EXPIRED = "expired_credentials", Gauge, ["provider"], "Credentials whose access token has ended";
    EXPIRY = "soonest_expiry_seconds", Gauge, ["provider"], "Seconds until the first access token ends, of credentials that are renewed (parked and unusable ones wait for their users); negative once it has";
    REFRESH_EXPIRY = "soonest_refresh_token_expiry_seconds", Gauge, ["provider"], "Seconds until the first refresh token ends, of the same credentials, where that is known and renewals do not move it on";
    RENEWALS = "renewals", Counter, ["provider"], "Good renewals";
    ROTATIONS = "rotations", Counter, ["provider"], "Renewals that brought a new refresh token";
    ERRORS = "errors", Counter, ["provider", "kind"], "Failed renewals by kind (evercred explain KIND)";
    PARKED = "parked", Counter, ["provider"], "Credentials that were refused for good";
    FORGOTTEN = "forgotten", Counter, ["provider"], "Credentials that left the directory: swept by credd, or deleted";
    EXCHANGE = "exchange_duration_seconds", Histogram, ["provider"], "How long the issuer took to answer";
    PUBLISH = "publish_duration_seconds", Histogram, [], "How long it took from the answer to the token in place";
    QUEUE = "queue_length", Gauge, ["provider"], "Renewals that wait for their turn";
    FLIGHT = "exchanges_in_flight", Gauge, ["provider"], "Exchanges under way";
    UP = "issuer_up", Gauge, ["provider"], "1: the issuer answers; 0: it is down or refuses our client, and only single probes go out";
    CAPACITY = "issuer_capacity_per_second", Gauge, ["provider"], "Renewals a second that the issuer's latency and our limits allow";
    DEMAND = "issuer_demand_per_second", Gauge, ["provider"], "Renewals a second that the living credentials need";
    USE = "budget_use_ratio", Gauge, ["provider"], "Demand as a share of capacity; above 1 tokens will end before their turn";
    REPLICAS = "replicas", Gauge, ["site"], "Copies that the site should have";
    BEHIND = "replicas_behind", Gauge, ["site"], "Of these, those that are not what they should be";
    LAG = "replication_lag_seconds", Gauge, ["site"], "Seconds for which the first of those has been behind; 0: none is";
    LAST = "replication_last_confirmed_timestamp_seconds", Gauge, ["site"], "When the site confirmed a copy last, in seconds since 1970";
    DELIVERIES = "deliveries", Counter, ["site"], "Deliveries that the site confirmed";
    SUPERSEDED = "deliveries_superseded", Counter, ["site"], "Of these, those where the site had a newer one of ours already";
    DELIVERY_ERRORS = "delivery_errors", Counter, ["site", "kind"], "Deliveries that failed, by kind (evercred explain KIND)";
    WITHDRAWALS = "withdrawals", Counter, ["site", "result"], "Copies of credentials that left, taken away from a site whose kind takes back: ok, superseded (it had something newer, and kept that), failed (tried again)";
    DELIVERY = "replication_duration_seconds", Histogram, ["site"], "How long it took from the new token to the site's confirmation";
    SITE_QUEUE = "delivery_queue_length", Gauge, ["site"], "Deliveries that wait for their turn";
    SITE_FLIGHT = "deliveries_in_flight", Gauge, ["site"], "Deliveries under way";
    SITE_UP = "site_up", Gauge, ["site"], "1: the site takes deliveries; 0: it is down or refuses us, and only single probes go out";
    REPLICATOR = "replicator_restarts", Counter, [], "How often the process that replicates had to be started again";
    COURIER = "courier_restarts", Counter, [], "How often the network process had to be started again";
    READERS = "status_readers", Counter, ["outcome"], "Readers of the status socket: served, failed (they did not read in time, or went), turned-away (too many of one user)";
    LOG_LOST = "log_lines_lost", Counter, [], "Lines of the log that could not be written";
    AUDIT = "audit_lines", Counter, [], "Lines of the audit log that were written";
    AUDIT_LOST = "audit_lines_lost", Counter, [], "Lines of the audit log that were lost";
    NOTICES = "notices", Counter, ["way", "result"], "Notices by way of delivery";
    REVOCATIONS = "revocations", Counter, ["result"], "Refresh tokens given back to their issuers at the end of life";
    REQUESTS = "endpoint_requests", Counter, ["path", "code"], "Requests to this endpoint";
    CONNECTIONS = "endpoint_connections", Counter, ["outcome"], "Connections to this endpoint by how they ended";
}

/// The table of `docs/metrics.md`.
#[must_use]
pub fn documented() -> String {
    let mut text = "| name | kind | labels | meaning |\n|---|---|---|---|\n".to_owned();
    for Metric(name, kind, labels, help) in ALL {
        let (ending, kind) = match kind {
            MetricType::Counter => ("_total", "counter"),
            MetricType::Histogram => ("", "histogram"),
            _ => ("", "gauge"),
        };
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        // Writing to a string does not fail.
        writeln!(text, "| `evercred_{name}{ending}` | {kind} | {labels} | {help} |").ok();
    }
    text
}

/// The body of `/metrics` and its type. `figures` come with their age; none: the keeper has not told any yet.
pub(super) fn render(
    figures: Option<(Duration, &Figures)>,
    counts: &Counts,
    open_metrics: bool,
) -> Result<(&'static str, String), fmt::Error> {
    let told = Told { figures: figures.map(|(age, figures)| (age, figures.clone())), counts: counts.clone() };
    let mut registry = Registry::with_prefix("evercred");
    registry.register_collector(Box::new(told));
    let mut text = String::with_capacity(16 * 1024);
    if open_metrics {
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        return Ok(("application/openmetrics-text; version=1.0.0; charset=utf-8", text));
    }
    prometheus_client::encoding::prometheus_text::encode(&mut text, &registry)?;
    Ok(("text/plain; version=0.0.4; charset=utf-8", text))
}

#[derive(Debug)]
struct Told {
    figures: Option<(Duration, Figures)>,
    counts: Counts,
}

/// Labels: (name, value) pairs.
type Labels<'a> = &'a [(&'static str, &'a str)];

/// Writes one metric after the other.
struct Writer<'e>(DescriptorEncoder<'e>);

impl Writer<'_> {
    fn metric<T>(
        &mut self,
        metric: Metric,
        rows: impl IntoIterator<Item = T>,
        mut row: impl FnMut(&mut MetricEncoder<'_>, T) -> fmt::Result,
    ) -> fmt::Result {
        let Metric(name, kind, _, help) = metric;
        let mut rows = rows.into_iter().peekable();
        // A metric without any value is left out: its type alone would tell nothing.
        if rows.peek().is_none() {
            return Ok(());
        }
        let mut encoder = self.0.encode_descriptor(name, help, None, kind)?;
        rows.try_for_each(|one| row(&mut encoder, one))
    }

    fn gauge(&mut self, metric: Metric, value: impl IntoIterator<Item = f64>) -> fmt::Result {
        self.metric(metric, value, |encoder, value| encoder.encode_gauge(&value))
    }

    fn counter(&mut self, metric: Metric, value: u64) -> fmt::Result {
        self.metric(metric, [value], |encoder, value| encoder.encode_counter::<NoLabelSet, u64, f64>(&value, None))
    }

    /// A gauge for each provider that has one.
    fn gauges(
        &mut self,
        metric: Metric,
        providers: &[ProviderFigures],
        value: impl Fn(&ProviderFigures) -> Option<f64>,
    ) -> fmt::Result {
        let rows = providers.iter().filter_map(|provider| Some((provider, value(provider)?)));
        self.metric(metric, rows, |encoder, (provider, value)| {
            let labels: Labels<'_> = &[("provider", &provider.name)];
            encoder.encode_family(&labels)?.encode_gauge(&value)
        })
    }

    /// A counter for each provider.
    fn counters(
        &mut self,
        metric: Metric,
        providers: &[ProviderFigures],
        value: impl Fn(&ProviderFigures) -> u64,
    ) -> fmt::Result {
        self.metric(metric, providers, |encoder, provider| {
            let labels: Labels<'_> = &[("provider", &provider.name)];
            count(encoder, &labels, value(provider))
        })
    }
}

impl Writer<'_> {
    /// A gauge for each site that has one.
    fn site_gauges(&mut self, metric: Metric, sites: &[Site], value: impl Fn(&Site) -> Option<f64>) -> fmt::Result {
        let rows = sites.iter().filter_map(|site| Some((site, value(site)?)));
        self.metric(metric, rows, |encoder, (site, value)| {
            let labels: Labels<'_> = &[("site", &site.name)];
            encoder.encode_family(&labels)?.encode_gauge(&value)
        })
    }

    /// A counter for each site.
    fn site_counters(&mut self, metric: Metric, sites: &[Site], value: impl Fn(&Site) -> u64) -> fmt::Result {
        self.metric(metric, sites, |encoder, site| {
            let labels: Labels<'_> = &[("site", &site.name)];
            count(encoder, &labels, value(site))
        })
    }
}

fn count(encoder: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    encoder.encode_family(labels)?.encode_counter::<NoLabelSet, u64, f64>(&value, None)
}

fn histogram(encoder: &mut MetricEncoder<'_>, histogram: &Histogram) -> fmt::Result {
    let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(histogram.counts).collect();
    encoder.encode_histogram::<NoLabelSet>(histogram.sum, histogram.count(), &buckets, None)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for a graph")]
fn float(value: u64) -> f64 {
    value as f64
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit")]
fn seconds(time: Timestamp) -> f64 {
    time.0 as f64 / 1000.0
}

impl Collector for Told {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        let version: Labels<'_> = &[("version", env!("CARGO_PKG_VERSION"))];
        writer.metric(BUILD, [1.0], |encoder, one: f64| encoder.encode_family(&version)?.encode_gauge(&one))?;
        if let Some((age, figures)) = &self.figures {
            daemon(&mut writer, *age, figures)?;
            // The clock that matters is that of the moment of reading.
            providers(&mut writer, figures.now.plus(*age), &figures.providers)?;
            writer.metric(PUBLISH, [&figures.publish], histogram)?;
            if !figures.sites.is_empty() {
                sites(&mut writer, figures.now.plus(*age), figures)?;
            }
        }
        writer.metric(REQUESTS, &self.counts.requests, |encoder, ((path, code), value)| {
            let labels: Labels<'_> = &[("path", path), ("code", &code.to_string())];
            count(encoder, &labels, *value)
        })?;
        writer.metric(CONNECTIONS, &self.counts.connections, |encoder, (outcome, value)| {
            let labels: Labels<'_> = &[("outcome", outcome)];
            count(encoder, &labels, *value)
        })
    }
}

fn daemon(writer: &mut Writer<'_>, age: Duration, figures: &Figures) -> fmt::Result {
    writer.gauge(START, [seconds(figures.started)])?;
    writer.gauge(AGE, [age.as_secs_f64()])?;
    writer.gauge(SCAN, figures.last_scan.map(seconds))?;
    writer.counter(COURIER, figures.courier_restarts)?;
    let Readers { served, failed, turned_away } = figures.readers;
    let readers = [("served", served), ("failed", failed), ("turned-away", turned_away)];
    writer.metric(READERS, readers, |encoder, (outcome, value)| {
        let labels: Labels<'_> = &[("outcome", outcome)];
        count(encoder, &labels, value)
    })?;
    writer.counter(LOG_LOST, figures.log_lost)?;
    writer.counter(AUDIT, figures.audit_written)?;
    writer.counter(AUDIT_LOST, figures.audit_lost)?;
    let notices = figures.notices.iter().flat_map(|(way, (good, bad))| [(way, "ok", good), (way, "failed", bad)]);
    writer.metric(NOTICES, notices, |encoder, (way, result, value)| {
        let labels: Labels<'_> = &[("way", way), ("result", result)];
        count(encoder, &labels, *value)
    })?;
    let (done, failed) = figures.revocations;
    writer.metric(REVOCATIONS, [("ok", done), ("failed", failed)], |encoder, (result, value)| {
        let labels: Labels<'_> = &[("result", result)];
        count(encoder, &labels, value)
    })
}

fn providers(writer: &mut Writer<'_>, now: Timestamp, all: &[ProviderFigures]) -> fmt::Result {
    let until = |time: Timestamp| seconds(time) - seconds(now);
    let states = all.iter().flat_map(|provider| {
        State::ALL.iter().zip(provider.states).map(move |(state, value)| (provider, state.word(), value))
    });
    writer.metric(CREDENTIALS, states, |encoder, (provider, state, value)| {
        let labels: Labels<'_> = &[("provider", &provider.name), ("state", state)];
        encoder.encode_family(&labels)?.encode_gauge(&float(value))
    })?;
    writer.gauges(EXPIRED, all, |p| Some(float(p.expired)))?;
    writer.gauges(EXPIRY, all, |p| p.soonest_expiry.map(until))?;
    writer.gauges(REFRESH_EXPIRY, all, |p| p.soonest_refresh_token_expiry.map(until))?;
    writer.counters(RENEWALS, all, |p| p.counts.renewed)?;
    writer.counters(ROTATIONS, all, |p| p.counts.rotated)?;
    // Every kind is told from the start, as 0: an alert on a counter that appears at 1 sees no increase.
    let errors = all.iter().flat_map(|provider| {
        Kind::ALL.iter().map(move |kind| (provider, kind, provider.counts.errors.get(kind).copied().unwrap_or(0)))
    });
    writer.metric(ERRORS, errors, |encoder, (provider, kind, value)| {
        let labels: Labels<'_> = &[("provider", &provider.name), ("kind", kind.label())];
        count(encoder, &labels, value)
    })?;
    writer.counters(PARKED, all, |p| p.counts.parked)?;
    writer.counters(FORGOTTEN, all, |p| p.counts.forgotten)?;
    writer.metric(EXCHANGE, all, |encoder, provider| {
        let labels: Labels<'_> = &[("provider", &provider.name)];
        histogram(&mut encoder.encode_family(&labels)?, &provider.counts.exchange)
    })?;
    writer.gauges(QUEUE, all, |p| Some(float(p.queued)))?;
    writer.gauges(FLIGHT, all, |p| Some(float(p.in_flight)))?;
    writer.gauges(UP, all, |p| Some(if p.down { 0.0 } else { 1.0 }))?;
    writer.gauges(CAPACITY, all, ProviderFigures::capacity)?;
    writer.gauges(DEMAND, all, ProviderFigures::demand)?;
    writer.gauges(USE, all, |p| Some(p.demand()? / p.capacity()?))
}

/// Kinds of failed deliveries that are told as 0 from the start: those of sites and of the replicator.
fn of_sites(kind: Kind) -> bool {
    kind == Kind::ReplicatorLost || kind.label().starts_with("site-")
}

fn sites(writer: &mut Writer<'_>, now: Timestamp, figures: &Figures) -> fmt::Result {
    let all = &figures.sites;
    let lag = |site: &Site| site.behind().1.map_or(0.0, |since| now.since(since).as_secs_f64());
    writer.site_gauges(REPLICAS, all, |site| Some(float(site.replicas)))?;
    writer.site_gauges(BEHIND, all, |site| Some(float(site.behind().0)))?;
    writer.site_gauges(LAG, all, |site| Some(lag(site)))?;
    writer.site_gauges(LAST, all, |site| site.confirmed.map(seconds))?;
    writer.site_counters(DELIVERIES, all, |site| site.counts.delivered)?;
    writer.site_counters(SUPERSEDED, all, |site| site.counts.superseded)?;
    let errors = all.iter().flat_map(|site| {
        let told = |kind: &&Kind| of_sites(**kind) || site.counts.errors.contains_key(*kind);
        Kind::ALL.iter().filter(told).map(move |kind| (site, kind, site.counts.errors.get(kind).copied().unwrap_or(0)))
    });
    writer.metric(DELIVERY_ERRORS, errors, |encoder, (site, kind, value)| {
        let labels: Labels<'_> = &[("site", &site.name), ("kind", kind.label())];
        count(encoder, &labels, value)
    })?;
    let withdrawals = all.iter().flat_map(|site| {
        let counts = &site.counts.withdrawals;
        [("ok", counts.done), ("superseded", counts.superseded), ("failed", counts.failed)]
            .map(|(word, n)| (site, word, n))
    });
    writer.metric(WITHDRAWALS, withdrawals, |encoder, (site, result, value)| {
        let labels: Labels<'_> = &[("site", &site.name), ("result", result)];
        count(encoder, &labels, value)
    })?;
    writer.metric(DELIVERY, all, |encoder, site| {
        let labels: Labels<'_> = &[("site", &site.name)];
        histogram(&mut encoder.encode_family(&labels)?, &site.counts.lag)
    })?;
    writer.site_gauges(SITE_QUEUE, all, |site| Some(float(site.queued)))?;
    writer.site_gauges(SITE_FLIGHT, all, |site| Some(float(site.in_flight)))?;
    writer.site_gauges(SITE_UP, all, |site| Some(if site.down { 0.0 } else { 1.0 }))?;
    writer.counter(REPLICATOR, figures.replicator_restarts)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::core::figures;

    fn figures() -> Figures {
        let mut counts = figures::Counts { renewed: 7, lifetime: Some(3600.0), ..figures::Counts::default() };
        counts.exchanged(Duration::from_millis(30));
        counts.errors.insert(Kind::Timeout, 2);
        counts.forgotten = 5;
        let provider = ProviderFigures {
            name: "wl\"cg".into(),
            states: [3, 1, 0, 0, 0],
            soonest_expiry: Some(Timestamp::from_secs(1060)),
            soonest_refresh_token_expiry: Some(Timestamp::from_secs(2000)),
            max_in_flight: 64,
            max_per_second: 50,
            counts,
            ..ProviderFigures::default()
        };
        let notices = BTreeMap::from([("mail".to_owned(), (1, 0))]);
        let mut site = Site { name: "farm".into(), replicas: 3, queued: 1, down: true, ..Site::default() };
        site.confirmed = Some(Timestamp::from_secs(970));
        site.is_late(Some(Kind::SiteTimeout), Timestamp::from_secs(980), None);
        site.counts.errors.insert(Kind::SiteTimeout, 4);
        site.counts.lag.observe(Duration::from_millis(30));
        site.counts.withdrawals.done = 6;
        Figures {
            now: Timestamp::from_secs(1000),
            last_scan: Some(Timestamp::from_secs(990)),
            providers: vec![provider],
            sites: vec![site],
            notices,
            ..Figures::default()
        }
    }

    fn text(open_metrics: bool) -> String {
        let mut counts = Counts::default();
        counts.requests.insert(("/metrics", 200), 1);
        counts.connections.insert("served", 1);
        render(Some((Duration::from_secs(10), &figures())), &counts, open_metrics).unwrap().1
    }

    #[test]
    fn figures_become_series_by_provider_and_ages_are_those_of_the_moment_of_reading() {
        let text = text(false);
        for line in [
            "evercred_credentials{provider=\"wl\\\"cg\",state=\"fresh\"} 3",
            "evercred_soonest_expiry_seconds{provider=\"wl\\\"cg\"} 50",
            "evercred_renewals_total{provider=\"wl\\\"cg\"} 7",
            "evercred_errors_total{provider=\"wl\\\"cg\",kind=\"timeout\"} 2",
            "evercred_errors_total{provider=\"wl\\\"cg\",kind=\"revoked\"} 0",
            "evercred_exchange_duration_seconds_bucket{provider=\"wl\\\"cg\",le=\"0.05\"} 1",
            "evercred_issuer_capacity_per_second{provider=\"wl\\\"cg\"} 50",
            "evercred_forgotten_total{provider=\"wl\\\"cg\"} 5",
            "evercred_figures_age_seconds 10",
            "evercred_replicas{site=\"farm\"} 3",
            "evercred_replicas_behind{site=\"farm\"} 1",
            "evercred_replication_lag_seconds{site=\"farm\"} 30",
            "evercred_delivery_errors_total{site=\"farm\",kind=\"site-timeout\"} 4",
            "evercred_delivery_errors_total{site=\"farm\",kind=\"site-full\"} 0",
            "evercred_replication_duration_seconds_bucket{site=\"farm\",le=\"0.05\"} 1",
            "evercred_withdrawals_total{site=\"farm\",result=\"ok\"} 6",
            "evercred_withdrawals_total{site=\"farm\",result=\"failed\"} 0",
            "evercred_site_up{site=\"farm\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line || l == format!("{line}.0")), "{line}\n{text}");
        }
    }

    #[test]
    fn every_metric_of_the_table_is_told_and_nothing_else() {
        let text = text(true);
        assert!(text.ends_with("# EOF\n"), "{text}");
        for Metric(name, ..) in ALL {
            assert!(text.contains(&format!("# TYPE evercred_{name} ")), "{name}\n{text}");
        }
        assert_eq!(text.matches("# TYPE ").count(), ALL.len());
    }

    #[test]
    fn the_documentation_repeats_the_table() {
        let document = include_str!("../../../docs/metrics.md");
        let table = documented();
        assert!(document.contains(&table), "docs/metrics.md does not hold this table:\n{table}");
    }

    #[test]
    fn without_figures_there_is_still_an_answer() {
        let (_, text) = render(None, &Counts::default(), false).unwrap();
        assert!(text.contains("evercred_build_info{version="), "{text}");
    }
}
