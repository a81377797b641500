//! The endpoint on `metrics_listen`: what it tells, and that no reader, however bad, is noticed by renewals.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test: it may stop at the first thing that is wrong"
)]

mod site;

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use evercred::demo::issuer::Rotation;

use self::site::Site;

/// With an endpoint on some free port.
fn listening(lifetime: u64, users: usize) -> (Site, SocketAddr) {
    let mut site = Site::new(lifetime, Rotation::Strict);
    site.configure_with("metrics_listen = \"127.0.0.1:0\"", "", "");
    for n in 0..users {
        site.grid(&format!("user{n:03}"));
    }
    site.start();
    site.wait("the endpoint", 30, |s| s.log().contains("metrics are at http://"));
    let log = site.log();
    let address = log.split("metrics are at http://").nth(1).unwrap().split('/').next().unwrap().parse().unwrap();
    (site, address)
}

/// Status and body; none if the connection ended without an answer.
fn get(address: SocketAddr, path: &str, accept: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    Some((status, text.split_once("\r\n\r\n")?.1.to_owned()))
}

fn metrics(address: SocketAddr) -> String {
    let (status, text) = get(address, "/metrics", "*/*").unwrap();
    assert_eq!(status, 200, "{text}");
    text
}

/// The value of a series.
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).map(str::to_owned);
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
}

fn lives(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) else { return false };
    value["expires_at"].as_i64().unwrap() > jiff::Timestamp::now().as_second()
}

#[test]
fn figures_tell_what_was_renewed_hold_no_user_and_satisfy_promtool() {
    let (site, address) = listening(600, 3);
    site.wait("three tokens", 20, |_| value(&metrics(address), "evercred_renewals_total{provider=\"grid\"}") >= 3.0);
    let text = metrics(address);
    assert!(value(&text, "evercred_credentials{provider=\"grid\",state=\"fresh\"}") >= 3.0);
    let soonest = value(&text, "evercred_soonest_expiry_seconds{provider=\"grid\"}");
    assert!((1.0..=600.0).contains(&soonest), "{soonest}");
    assert!(value(&text, "evercred_exchange_duration_seconds_count{provider=\"grid\"}") >= 3.0);
    assert!(value(&text, "evercred_publish_duration_seconds_count") >= 3.0);
    assert!(value(&text, "evercred_issuer_capacity_per_second{provider=\"grid\"}") > 0.0);
    assert!((value(&text, "evercred_issuer_up{provider=\"grid\"}") - 1.0).abs() < 1e-9);
    assert!(!text.contains("user00"), "no user in any label\n{text}");
    // Ten times as many credentials, and one that is refused, are not one series more. (Those of the endpoint itself come
    // with what is asked of it.)
    let series = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.starts_with("evercred_endpoint_"));
        lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
    };
    for n in 3..30 {
        site.grid(&format!("user{n:03}"));
    }
    let refused = site.refresh_token("user030");
    assert!(site.issuer.control().revoke(&refused));
    site.store("user030", "grid", refused.as_bytes());
    let count = |series: &str| value(&metrics(address), series);
    site.wait("thirty tokens", 30, |_| count("evercred_renewals_total{provider=\"grid\"}") >= 30.0);
    site.wait("a refusal", 30, |_| count("evercred_errors_total{provider=\"grid\",kind=\"revoked\"}") >= 1.0);
    assert_eq!(series(&metrics(address)), series(&text));
    let (_, open) = get(address, "/metrics", "application/openmetrics-text; version=1.0.0").unwrap();
    assert!(open.ends_with("# EOF\n"));
    for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/", 404), ("/../etc/passwd", 404)] {
        assert_eq!(get(address, path, "*/*").unwrap().0, status, "{path}");
    }
    // The real judge of such texts, where it is installed (Debian's package prometheus).
    let Ok(mut child) = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    else {
        println!("skipped: there is no promtool (apt-get install prometheus)");
        return;
    };
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert_eq!(said, "", "promtool finds fault");
}

#[test]
fn hanging_flooding_and_a_thousand_readers_at_once_delay_no_renewal_and_are_counted() {
    const USERS: usize = 100;
    let (site, address) = listening(8, USERS);
    let uses: Vec<_> = (0..USERS).map(|n| site.credentials().join(format!("user{n:03}")).join("grid.use")).collect();
    site.wait("first tokens", 30, |_| uses.iter().all(|path| path.exists()));
    let before = value(&metrics(address), "evercred_renewals_total{provider=\"grid\"}");
    // 300 who say nothing, 100 who say half, 100 who never read what they asked for.
    let mut hanging = Vec::new();
    for n in 0..500 {
        let Ok(mut stream) = TcpStream::connect(address) else { continue };
        match n {
            0..300 => {}
            300..400 => stream.write_all(b"GET /metrics HTT").unwrap_or_default(),
            _ => stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap_or_default(),
        }
        hanging.push(stream);
    }
    let asked = Instant::now();
    metrics(address);
    let alone = asked.elapsed();
    // 1,000 at once.
    let served = Arc::new(AtomicU64::new(0));
    let crowd: Vec<_> = (0..1000)
        .map(|_| {
            let served = Arc::clone(&served);
            thread::Builder::new()
                .stack_size(64 * 1024)
                .spawn(move || {
                    if get(address, "/metrics", "*/*").is_some_and(|(status, _)| status == 200) {
                        served.fetch_add(1, Relaxed);
                    }
                })
                .unwrap()
        })
        .collect();
    // And four who ask without end, for three half-lives.
    let over = Arc::new(AtomicBool::new(false));
    let flood: Vec<_> = (0..4)
        .map(|_| {
            let over = Arc::clone(&over);
            thread::spawn(move || {
                let mut asked = 0_u64;
                while !over.load(Relaxed) {
                    asked += u64::from(get(address, "/metrics", "*/*").is_some());
                }
                asked
            })
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(13);
    let mut looks = 0;
    while Instant::now() < end {
        let late = uses.iter().filter(|path| !lives(path)).count();
        assert_eq!(late, 0, "all tokens live at every look\n{}", site.log());
        looks += 1;
        thread::sleep(Duration::from_millis(250));
    }
    over.store(true, Relaxed);
    let asked: u64 = flood.into_iter().map(|one| one.join().unwrap()).sum();
    for one in crowd {
        one.join().unwrap();
    }
    drop(hanging);
    let text = metrics(address);
    let renewed = value(&text, "evercred_renewals_total{provider=\"grid\"}") - before;
    let closed: f64 = ["closed-for-others", "timed-out"]
        .iter()
        .map(|how| format!("evercred_endpoint_connections_total{{outcome=\"{how}\"}} "))
        .filter_map(|series| text.lines().find_map(|line| line.strip_prefix(&series)?.parse::<f64>().ok()))
        .sum();
    println!(
        "one reader beside 500 hanging ones: {alone:?}; of 1000 at once {served:?} served; flood: {asked} answers; \
         {renewed} renewals, none late in {looks} looks; {closed} connections closed"
    );
    assert!(alone < Duration::from_secs(5), "{alone:?}");
    assert!(served.load(Relaxed) >= 990, "{served:?}");
    assert!(renewed >= 2.0 * 100.0, "{renewed}");
    assert!(closed >= 200.0, "those who hang are counted\n{text}");
    assert!(!site.log().contains("courier is down"), "{}", site.log());
}

#[test]
fn a_keeper_that_does_not_answer_is_unhealthy_and_its_last_figures_are_told_with_their_age() {
    let (site, address) = listening(600, 1);
    site.wait("ready", 20, |_| get(address, "/readyz", "*/*").is_some_and(|(status, _)| status == 200));
    site.signal("-STOP");
    thread::sleep(Duration::from_millis(2600));
    let (status, text) = get(address, "/healthz", "*/*").unwrap();
    let stale = metrics(address);
    site.signal("-CONT");
    assert_eq!((status, text.as_str()), (503, "the keeper does not answer\n"));
    assert!(value(&stale, "evercred_figures_age_seconds") > 2.0, "{stale}");
    site.wait("healthy again", 20, |_| get(address, "/healthz", "*/*").is_some_and(|(status, _)| status == 200));
}

#[test]
fn an_address_that_is_taken_stops_no_renewal_and_is_had_once_it_is_free() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut site = Site::new(600, Rotation::Strict);
    site.configure_with(&format!("metrics_listen = \"{address}\""), "", "");
    site.grid("alice");
    site.start();
    site.wait("a token", 30, |s| s.file("alice", "grid.use").is_some());
    site.wait("a word", 20, |s| s.log().contains(&format!("metrics_listen {address} cannot be had")));
    drop(taken);
    site.wait("the endpoint", 30, |_| get(address, "/healthz", "*/*").is_some());
}
