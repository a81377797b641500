//! 50,000 credentials on a virtual clock, with a scripted issuer: latency, bursts of 5xx, rotation, revocation, rate
//! limits, clock steps, a six-hour outage. Prints its seed, the peak requests a second and percentiles.
//!
//! `EVERCRED_SEED=n` repeats a run.
//!
//! The table of capacity in docs/operations.md is made here, from runs of all its sizes and from `benches/results.json`,
//! and compared; `EVERCRED_WRITE_DOCS=1` writes it anew.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a test: it may stop at the first thing that is wrong"
)]

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    fmt::Write as _,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use evercred::{
    core::{
        budget::Limits,
        id::{CredentialId, UserName},
        planner::{Action, Announcement, Brought, Event, Failure, Found, Planner},
        time::{Now, Tick, Timestamp},
        top::Identity,
    },
    error::Kind,
};

const CREDENTIALS: usize = 50_000;
const HOUR: u64 = 3_600_000;
const LIFETIME: u64 = HOUR;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What the issuer and the clock do at which time (ms).
struct Script {
    hours: u64,
    outage: Option<(u64, u64)>,
    bursts: bool,
    steps: Vec<(u64, i64)>,
    revoked_percent: u64,
    issuer_per_second: u64,
    /// One user stores a hundred `.top` a second that no issuer takes, in between these.
    flood: Option<(u64, u64)>,
}

/// The credentials of that user, and how often one of them is stored.
const FLOOD: usize = 12;
const FLOOD_EVERY: u64 = 10;

#[derive(Default)]
struct Tally {
    exchanges: u64,
    peak: u64,
    expired_while_healthy: u64,
    expired_in_outage: u64,
    left: Vec<u64>,
    parked: u64,
    first: Vec<u64>,
    /// How long after the outage the last token that had ended was there again.
    back_after: u64,
}

struct World {
    random: Random,
    count: usize,
    now: u64,
    wall_offset: i64,
    planner: Planner,
    index: HashMap<CredentialId, usize>,
    identity: Vec<Identity>,
    expiry: Vec<u64>,
    revoked: Vec<bool>,
    due: BinaryHeap<Reverse<(u64, u64)>>,
    events: HashMap<u64, Event>,
    flights: HashMap<u64, usize>,
    flood: Vec<CredentialId>,
    serial: u64,
}

fn identity(n: u64) -> Identity {
    let mut hash = [0; 16];
    hash[..8].copy_from_slice(&n.to_be_bytes());
    Identity { ino: n, size: 900, mtime_ns: 0, hash }
}

impl World {
    fn new(seed: u64, count: usize, per_second: u32) -> Self {
        let limits = Limits { in_flight: 64, per_second };
        Self {
            random: Random(seed | 1),
            count,
            now: 1,
            wall_offset: 1_700_000_000_000,
            planner: Planner::new(&[limits], Duration::from_secs(300)),
            index: HashMap::new(),
            identity: Vec::new(),
            expiry: vec![0; count + FLOOD],
            revoked: vec![false; count + FLOOD],
            due: BinaryHeap::new(),
            events: HashMap::new(),
            flights: HashMap::new(),
            flood: Vec::new(),
            serial: 0,
        }
    }

    fn clock(&self) -> Now {
        Now { wall: Timestamp(self.now as i64 + self.wall_offset), tick: Tick(self.now) }
    }

    fn later(&mut self, delay: u64, event: Event) {
        self.serial += 1;
        self.due.push(Reverse((self.now + delay, self.serial)));
        self.events.insert(self.serial, event);
    }

    fn run(&mut self, script: &Script) -> Tally {
        let mut tally = Tally::default();
        for n in 0..self.count {
            let id = CredentialId::from_base(UserName::parse(&format!("user{n:05}")).unwrap(), "helmholtz").unwrap();
            self.identity.push(identity(n as u64));
            self.revoked[n] = self.random.below(100) < script.revoked_percent;
            self.index.insert(id.clone(), n);
            let found = Found {
                id: id.clone(),
                provider: 0,
                top: Ok(self.identity[n]),
                use_file: None,
                refresh_ends: None,
                top_newer: false,
            };
            let now = self.clock();
            self.planner.handle(now, Event::Scanned { user: id.user, as_of: now.tick, found: vec![found] });
        }
        for n in 0..FLOOD {
            let id = CredentialId::from_base(UserName::parse("mallory").unwrap(), &format!("helmholtz_{n}")).unwrap();
            self.identity.push(identity((self.count + n) as u64));
            self.revoked[self.count + n] = true;
            self.index.insert(id.clone(), self.count + n);
            self.flood.push(id);
        }
        let mut next_flood = script.flood.map_or(u64::MAX, |(from, _)| from);
        let end = script.hours * HOUR;
        let mut steps = script.steps.clone();
        let (mut second, mut in_second) = (0, 0);
        while self.now < end {
            while let Some(action) = self.planner.next_action(self.clock()) {
                match action {
                    Action::Exchange { number, id, identity, .. } => {
                        let n = self.index[&id];
                        assert_eq!(identity, self.identity[n], "rule 2: from the present .top");
                        if self.now / 1000 != second {
                            (second, in_second) = (self.now / 1000, 0);
                        }
                        in_second += 1;
                        tally.exchanges += 1;
                        tally.peak = tally.peak.max(in_second);
                        self.flights.insert(number, n);
                        let (delay, result) = self.issuer(script, n, in_second);
                        self.later(delay, Event::Answered { number, result });
                    }
                    Action::Keep { number, identity: from } => {
                        let n = self.flights[&number];
                        assert_eq!(from, self.identity[n]);
                        self.serial += 1;
                        self.identity[n] = identity(1_000_000 + self.serial);
                        let identity = self.identity[n];
                        self.later(1, Event::Kept { number, identity, stored_anew: false });
                    }
                    Action::Publish { number, identity, .. } => {
                        let n = self.flights[&number];
                        assert_eq!(identity, self.identity[n], "rule 3: after the refresh token");
                        self.note(&mut tally, script, n);
                        self.expiry[n] = self.now + LIFETIME;
                        self.later(1, Event::Published { number });
                    }
                    Action::Discard { number } => {
                        self.flights.remove(&number);
                    }
                    Action::Announce(Announcement::Parked { .. }) => tally.parked += 1,
                    Action::Announce(_) | Action::Look { .. } => {}
                }
            }
            let sleep = u64::try_from(self.planner.next_deadline(self.clock()).as_millis()).unwrap().max(1);
            assert!(sleep <= 60_000, "rule 7: asks again each 60 s");
            let wake = self.now + sleep;
            self.now = self.due.peek().map_or(wake, |Reverse((at, _))| wake.min(*at)).min(next_flood).max(self.now);
            if self.now >= next_flood {
                self.store_garbage();
                next_flood += FLOOD_EVERY;
                if script.flood.is_some_and(|(_, to)| next_flood > to) {
                    next_flood = u64::MAX;
                }
            }
            while let Some(&(at, step)) = steps.first()
                && at <= self.now
            {
                self.wall_offset += step;
                steps.remove(0);
            }
            while let Some(&Reverse((at, serial))) = self.due.peek()
                && at <= self.now
            {
                self.due.pop();
                let event = self.events.remove(&serial).unwrap();
                self.planner.handle(self.clock(), event);
            }
        }
        for n in 0..self.count {
            if !self.revoked[n] && self.expiry[n] < self.now {
                tally.expired_while_healthy += 1;
            }
        }
        tally
    }

    /// Another `.top` of the user who stores without end; the others are as they were.
    fn store_garbage(&mut self) {
        self.serial += 1;
        let one = self.count + self.random.below(FLOOD as u64) as usize;
        self.identity[one] = identity(1_000_000 + self.serial);
        let found = self.flood.iter().enumerate().map(|(n, id)| Found {
            id: id.clone(),
            provider: 0,
            top: Ok(self.identity[self.count + n]),
            use_file: None,
            refresh_ends: None,
            top_newer: false,
        });
        let now = self.clock();
        let user = self.flood[0].user.clone();
        let event = Event::Scanned { user, as_of: now.tick, found: found.collect() };
        self.planner.handle(now, event);
    }

    fn note(&self, tally: &mut Tally, script: &Script, n: usize) {
        let expiry = self.expiry[n];
        if let Some((_, to)) = script.outage
            && (1..to).contains(&expiry)
            && self.now >= to
        {
            tally.back_after = tally.back_after.max(self.now - to);
        }
        if expiry == 0 {
            tally.first.push(self.now);
        } else if expiry >= self.now {
            tally.left.push(expiry - self.now);
        } else if script.outage.is_some_and(|(from, to)| expiry >= from && expiry <= to + 15 * 60_000) {
            tally.expired_in_outage += 1;
        } else {
            tally.expired_while_healthy += 1;
        }
    }

    fn issuer(&mut self, script: &Script, n: usize, in_second: u64) -> (u64, Result<Brought, Failure>) {
        let fail =
            |kind, wait: Option<u64>| Err(Failure { kind, retry_after: wait.map(Duration::from_secs), rotated: false });
        if script.outage.is_some_and(|(from, to)| (from..to).contains(&self.now)) {
            return if self.random.below(2) == 0 {
                (20_000, fail(Kind::Timeout, None))
            } else {
                (5, fail(Kind::Network, None))
            };
        }
        let latency = 20 + self.random.below(200);
        if in_second > script.issuer_per_second {
            return (latency, fail(Kind::RateLimited, Some(2)));
        }
        // A burst: 40 % of the answers of every tenth minute are errors.
        if script.bursts && (self.now / 60_000).is_multiple_of(10) && self.random.below(100) < 40 {
            return (latency, fail(Kind::ServerError, None));
        }
        if n >= self.count || self.revoked[n] && self.now > HOUR {
            return (latency, fail(Kind::Revoked, None));
        }
        let rotated = n.is_multiple_of(3);
        (
            latency,
            Ok(Brought { lifetime: Duration::from_millis(LIFETIME), refresh_lifetime: None, rotated, flagged: None }),
        )
    }
}

fn seed() -> u64 {
    std::env::var("EVERCRED_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
    })
}

fn percentile(sorted: &[u64], permille: usize) -> u64 {
    sorted.get((sorted.len().saturating_sub(1)) * permille / 1000).copied().unwrap_or(0) / 1000
}

fn simulate(name: &str, script: &Script) -> Tally {
    let seed = seed();
    let started = Instant::now();
    println!("{name}: EVERCRED_SEED={seed}");
    let mut tally = World::new(seed, CREDENTIALS, 100).run(script);
    tally.left.sort_unstable();
    tally.first.sort_unstable();
    println!(
        "{name}: {} credentials, {} h, {} exchanges, peak {}/s, left at renewal p0.1 {} s p50 {} s, first token p50 {} s p99.9 {} s, \
         parked {}, expired while healthy {}, in the outage {}, took {:.1} s",
        CREDENTIALS,
        script.hours,
        tally.exchanges,
        tally.peak,
        percentile(&tally.left, 1),
        percentile(&tally.left, 500),
        percentile(&tally.first, 500),
        percentile(&tally.first, 999),
        tally.parked,
        tally.expired_while_healthy,
        tally.expired_in_outage,
        started.elapsed().as_secs_f64()
    );
    tally
}

#[test]
fn nothing_expires_while_the_issuer_is_healthy() {
    let steps = vec![(2 * HOUR, 3 * HOUR as i64), (3 * HOUR, -5 * HOUR as i64), (4 * HOUR, 2 * HOUR as i64)];
    let script =
        Script { hours: 5, outage: None, bursts: true, steps, revoked_percent: 1, issuer_per_second: 90, flood: None };
    let tally = simulate("bad weather", &script);
    assert_eq!(tally.expired_while_healthy, 0);
    assert!(tally.parked >= CREDENTIALS as u64 / 200, "the revoked are parked: {}", tally.parked);
    assert!(tally.left.first().is_none_or(|left| *left >= 300_000), "at least 5 min left even in bursts and steps");
}

#[test]
fn a_six_hour_outage_ends_in_an_orderly_recovery() {
    let outage = Some((2 * HOUR, 8 * HOUR));
    let script = Script {
        hours: 10,
        outage,
        bursts: false,
        steps: vec![],
        revoked_percent: 0,
        issuer_per_second: 1000,
        flood: None,
    };
    let tally = simulate("outage", &script);
    assert_eq!(tally.expired_while_healthy, 0, "all are back after the outage");
    assert!(tally.peak <= 100, "the limit holds in every second: {}", tally.peak);
    // Five minutes until the next probe at most, then 100 a second.
    assert!(tally.back_after <= 14 * 60_000, "docs/operations.md says within 14 minutes: {} ms", tally.back_after);
}

/// The median that the benchmarks recorded for so many credentials.
fn recorded(results: &serde_json::Value, scenario: &str, credentials: usize) -> Option<f64> {
    let size = format!(", {} credentials", grouped(credentials));
    let row = results["rows"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["scenario"] == scenario && row["what"].as_str().is_some_and(|what| what.contains(&size)));
    row.map(|row| row["ours"].as_f64().unwrap())
}

/// What was recorded, else (with `about`) on the line between what was recorded for none and for 100,000.
fn figure(results: &serde_json::Value, scenario: &str, credentials: usize, unit: &str) -> String {
    let rounded = |value: f64| if value < 10.0 { format!("{value:.2} {unit}") } else { format!("{value:.0} {unit}") };
    if let Some(value) = recorded(results, scenario, credentials) {
        return rounded(value);
    }
    let most = 100_000;
    let (none, all) = (recorded(results, scenario, 0).unwrap_or(0.0), recorded(results, scenario, most).unwrap());
    format!("about {}", rounded(none + (all - none) * credentials as f64 / most as f64))
}

fn grouped(number: usize) -> String {
    let (thousands, rest) = (number / 1000, number % 1000);
    if thousands == 0 { rest.to_string() } else { format!("{thousands},{rest:03}") }
}

#[test]
fn the_table_of_capacity_is_what_the_simulator_and_the_benchmarks_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let results: serde_json::Value =
        serde_json::from_slice(&fs::read(root.join("benches/results.json")).unwrap()).unwrap();
    let mut table = String::from(
        "| credentials | renewals a second | `max_per_second` | after 6 h without the issuer, all are back within | memory | \
         start | disk |\n|---|---|---|---|---|---|---|\n",
    );
    for (credentials, per_second) in [(1_000, 50), (10_000, 50), (50_000, 50), (100_000, 150)] {
        let script = Script {
            hours: 8,
            outage: Some((HOUR, 7 * HOUR)),
            bursts: false,
            steps: vec![],
            revoked_percent: 0,
            issuer_per_second: 1000,
            flood: None,
        };
        // The same run each time: a table cannot differ from one test to the next.
        let tally = World::new(77, credentials, per_second).run(&script);
        assert_eq!(tally.expired_while_healthy, 0, "{credentials}");
        let limit =
            if per_second == 50 { "50 (default)".to_owned() } else { format!("{per_second}: 50 is too little") };
        writeln!(
            table,
            "| {} | {:.1} | {limit} | {} min | {} | {} | {} MiB |",
            grouped(credentials),
            credentials as f64 / (LIFETIME / 2 / 1000) as f64,
            tally.back_after.div_ceil(60_000),
            figure(&results, "B5", credentials, "MiB"),
            figure(&results, "B6", credentials, "s"),
            // A directory and two files, each a block of 4 KiB.
            (credentials * 12).div_ceil(1024),
        )
        .unwrap();
    }
    let path = root.join("docs/operations.md");
    let page = fs::read_to_string(&path).unwrap();
    let (mark, end) = ("<!-- Made by tests/simulator.rs, which compares it. -->\n\n", "\n<!-- End. -->");
    let (before, rest) = page.split_once(mark).unwrap();
    let (old, after) = rest.split_once(end).unwrap();
    if std::env::var_os("EVERCRED_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{before}{mark}{table}{end}{after}")).unwrap();
    } else {
        assert_eq!(old, table, "write it anew: EVERCRED_WRITE_DOCS=1 cargo test --test simulator table_of_capacity");
    }
}

#[test]
fn one_user_who_stores_a_hundred_garbage_tops_a_second_lets_nobody_elses_token_expire() {
    let script = Script {
        hours: 2,
        outage: None,
        bursts: false,
        steps: vec![],
        revoked_percent: 0,
        issuer_per_second: 1000,
        flood: Some((HOUR / 2, 2 * HOUR)),
    };
    let tally = simulate("flood", &script);
    assert_eq!(tally.expired_while_healthy, 0);
    assert!(
        tally.left.first().is_none_or(|left| *left >= 1_200_000),
        "and nobody's renewal is late: {:?}",
        tally.left.first()
    );
}
