//! docs/dashboards against the real thing: a Prometheus that scrapes the real daemon answers every query of the
//! dashboard, promtool finds no fault with the alert rules and their tests, and no query names a metric that is not
//! there.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test: it may stop at the first thing that is wrong"
)]

mod site;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use evercred::{courier::endpoint, demo::issuer::Rotation};
use serde_json::Value;

use self::site::Site;

fn dashboards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/dashboards")
}

fn dashboard() -> Value {
    serde_json::from_slice(&fs::read(dashboards().join("evercred.json")).unwrap()).unwrap()
}

/// Titles and queries of all panels.
fn queries() -> Vec<(String, String)> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| {
        let title = panel["title"].as_str().unwrap();
        panel["targets"]
            .as_array()
            .unwrap()
            .iter()
            .map(move |t| (title.to_owned(), t["expr"].as_str().unwrap().to_owned()))
    });
    targets.collect()
}

/// The metrics that a text names, without what a histogram or counter puts behind.
fn named(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("evercred_"))
        .map(|word| word.trim_end_matches("_bucket").trim_end_matches("_total").to_owned())
        .collect()
}

#[test]
fn no_query_and_no_alert_names_a_metric_that_is_not_there() {
    let known = named(&endpoint::documented());
    let mut told: BTreeSet<String> = queries().iter().flat_map(|(_, query)| named(query)).collect();
    told.extend(named(&fs::read_to_string(dashboards().join("evercred-alerts.yml")).unwrap()));
    let unknown: Vec<_> = told.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(told.len() >= 15, "{told:?}");
}

#[test]
fn promtool_finds_no_fault_with_the_alert_rules_and_their_tests_pass() {
    for arguments in [["check", "rules", "evercred-alerts.yml"], ["test", "rules", "evercred-alerts.test.yml"]] {
        let Ok(output) = Command::new("promtool").args(arguments).current_dir(dashboards()).output() else {
            println!("skipped: there is no promtool (apt-get install prometheus)");
            return;
        };
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}");
    }
}

/// Each rule has its line in docs/operations.md, in the same order, with its severity; and says which line it is.
#[test]
fn every_alert_is_told_in_the_documentation_with_the_next_command() {
    let rules = fs::read_to_string(dashboards().join("evercred-alerts.yml")).unwrap();
    let page = fs::read_to_string(dashboards().join("../operations.md")).unwrap();
    let section = page.split_once("\n## Alerts\n").unwrap().1.split("\n## ").next().unwrap();
    let mut lines = section.lines().filter(|line| line.starts_with("| <a "));
    let mut seen = 0;
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap();
        let anchor = name.to_lowercase();
        let severity = rule.split_once("severity: ").unwrap().1.split('}').next().unwrap();
        let line = lines.next().unwrap_or_else(|| panic!("docs/operations.md says nothing of {name}"));
        assert!(line.starts_with(&format!("| <a id=\"{anchor}\"></a>`{name}` | {severity} | ")), "{name}: {line}");
        assert!(line.rsplit(" | ").next().unwrap().contains('`'), "no command: {line}");
        assert!(rule.contains(&format!("runbook: \"docs/operations.md#{anchor}\"")), "{name}");
        seen += 1;
    }
    assert!(lines.next().is_none() && seen >= 16, "{seen}");
}

struct Prometheus {
    child: Child,
    address: SocketAddr,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Prometheus {
    fn start(home: &Path, target: &str) -> Option<Self> {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = home.join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n  \
             - job_name: evercred\n    static_configs: [{{targets: [\"{target}\"]}}]\n",
            dashboards().join("evercred-alerts.yml").display()
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", home.join("tsdb").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        Some(Self { child, address })
    }

    fn ask(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(15))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()
    }

    fn query(&self, query: &str) -> Option<Value> {
        let encoded: String = url::form_urlencoded::byte_serialize(query.as_bytes()).collect();
        self.ask(&format!("/api/v1/query?query={encoded}"))
    }
}

#[test]
fn a_real_prometheus_scrapes_the_daemon_and_answers_every_query_of_the_dashboard() {
    let mut site = Site::new(600, Rotation::Strict);
    let home = site.home.path().display().to_string();
    site.configure_with(
        &format!("metrics_listen = \"127.0.0.1:0\"\nreplicate_user = \"nobody\"\nstate_directory = \"{home}/state\""),
        "",
        "[site.near]\nkind = \"exec\"\nservices = [\"grid\"]\ncommand = [\"/bin/cat\"]\n",
    );
    site.grid("alice");
    site.start();
    site.wait("the endpoint", 30, |s| s.log().contains("metrics are at http://"));
    let log = site.log();
    let target = log.split("metrics are at http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let Some(prometheus) = Prometheus::start(site.home.path(), &target) else {
        println!("skipped: there is no prometheus (apt-get install prometheus)");
        return;
    };
    let value = |query: &str| {
        let answer = prometheus.query(query)?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse::<f64>().ok()
    };
    let end = Instant::now() + Duration::from_secs(60);
    while value("evercred_renewals_total{provider=\"grid\"}").is_none_or(|renewed| renewed < 1.0) {
        assert!(Instant::now() < end, "nothing is scraped: {:?}", prometheus.ask("/api/v1/targets"));
        std::thread::sleep(Duration::from_millis(200));
    }
    for (title, query) in queries() {
        let query = query.replace("$__rate_interval", "5s");
        let query = query.replace("$instance", ".*").replace("$provider", ".*");
        let answer = prometheus.query(&query).unwrap();
        assert_eq!(answer["status"], "success", "{title}: {query}: {answer}");
    }
    for query in [
        "sum(evercred_credentials)",
        "evercred_issuer_up",
        "evercred_budget_use_ratio",
        "evercred_replicas{site=\"near\"}",
        "evercred_site_up",
    ] {
        assert!(value(query).is_some(), "{query}");
    }
    let rules = prometheus.ask("/api/v1/rules").unwrap();
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() >= 10 && rules.iter().all(|rule| rule["health"] != "err"), "{rules:?}");
}
