//! The log of the real daemon: what an outage costs in lines, and the places and shapes that it has besides a file.
//! The file itself, syslog and a log that nobody reads have tests of their own (`tests/pool/e2e-log`, `tests/syslog.rs`,
//! `tests/bad_input.rs`).

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    fs::{self, File},
    process::{Command, Stdio},
};

use evercred::demo::issuer::{Outage, Rotation};
use serde_json::Value;

use self::site::Site;

fn lines(log: &str, parts: &[&str]) -> usize {
    log.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}

#[test]
fn an_outage_is_one_line_of_each_credential_and_of_the_issuer_and_so_is_its_end_while_each_failure_is_counted() {
    let users: Vec<String> = (0..6).map(|n| format!("user{n}")).collect();
    let mut site = Site::new(600, Rotation::None);
    site.configure_with("metrics_listen = \"127.0.0.1:0\"", "", "");
    site.issuer.control().set_outage(Outage::Unavailable);
    for user in &users {
        site.grid(user);
    }
    site.start();
    let failures = |s: &Site| s.metric("evercred_errors_total{provider=\"grid\",kind=\"server-error\"}");
    // Each of them, and a probe of an issuer that is down: the second failure of one of them.
    site.wait("seven failures", 60, |s| failures(s).is_some_and(|failures| failures >= 7.0));
    assert_eq!(site.metric("evercred_issuer_up{provider=\"grid\"}"), Some(0.0));
    let log = site.log();
    assert_eq!(lines(&log, &["issuer is down or refuses us", "provider=grid", "kind=server-error"]), 1, "{log}");
    for user in &users {
        assert_eq!(lines(&log, &["not renewed", &format!("user={user} "), "kind=server-error"]), 1, "{user}\n{log}");
    }
    site.issuer.control().set_outage(Outage::Off);
    site.wait("all tokens", 120, |s| users.iter().all(|user| s.file(user, "grid.use").is_some()));
    site.wait("the last line", 10, |s| lines(&s.log(), &["INFO renewed again "]) >= users.len());
    let log = site.log();
    assert_eq!(lines(&log, &["issuer answers again", "provider=grid"]), 1, "{log}");
    for user in &users {
        let of = |words: &str| lines(&log, &[words, &format!("user={user} ")]);
        assert_eq!((of("INFO renewed again "), of("INFO renewed user")), (1, 0), "{user}\n{log}");
    }
    site.wait("up", 10, |s| s.metric("evercred_issuer_up{provider=\"grid\"}") == Some(1.0));
}

/// What the daemon says on standard error of two good credentials and a bad one, from its start to its end.
fn said(log: &str, format: &str) -> String {
    let mut site = Site::new(600, Rotation::None);
    site.configure_with(&format!("log_format = \"{format}\""), "", "");
    for user in ["alice", "bob"] {
        site.grid(user);
    }
    site.store("carol", "grid", b"{}");
    let path = site.home.path().join("stderr");
    let mut command = Command::new(env!("CARGO_BIN_EXE_condor_credmon_evercred"));
    command.arg("--config").arg(site.home.path().join("evercred.toml")).args(["--log", log]).stdin(Stdio::null());
    site.credmon = Some(command.stderr(File::create(&path).unwrap()).spawn().unwrap());
    site.wait("tokens", 30, |s| ["alice", "bob"].iter().all(|user| s.file(user, "grid.use").is_some()));
    site.signal("-TERM");
    assert!(site.credmon.take().unwrap().wait().unwrap().success());
    fs::read_to_string(path).unwrap()
}

#[test]
fn journal_and_standard_error_get_one_line_for_each_renewal_and_json_lines_are_objects_with_the_same_fields() {
    let journal = said("journal", "text");
    for line in journal.lines() {
        let level = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
        let (level, rest) = level.unwrap_or_else(|| panic!("no level: {line}"));
        let expected = if rest.contains("kind=top-no-token") { "4" } else { "6" };
        assert_eq!(level, expected, "{line}");
    }
    let stderr = said("stderr", "text");
    for line in stderr.lines() {
        let time = line.get(..17).unwrap_or(line);
        assert!(jiff::civil::DateTime::strptime("%m/%d/%y %H:%M:%S", time).is_ok(), "{line}");
    }
    for text in [&journal, &stderr] {
        for user in ["alice", "bob"] {
            let fields = ["service=grid", "handle=", "provider=grid", "issuer=http", "expires_in=", "generation=1"];
            let user = format!("user={user} ");
            let whole = [&["renewed ", &user][..], &fields].concat();
            assert_eq!((lines(text, &whole[..2]), lines(text, &whole)), (1, 1), "{text}");
        }
    }
    let json: Vec<Value> = said("stderr", "json")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    assert!(json.iter().all(|line| line["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok()), "{json:?}");
    let renewed: Vec<&Value> = json.iter().filter(|line| line["message"] == "renewed").collect();
    let mut users: Vec<&str> = renewed.iter().map(|line| line["user"].as_str().unwrap()).collect();
    users.sort_unstable();
    assert_eq!(users, ["alice", "bob"], "{json:?}");
    for line in renewed {
        assert_eq!(
            (&line["level"], &line["service"], &line["generation"]),
            (&"INFO".into(), &"grid".into(), &1.into())
        );
        for field in ["handle", "provider", "issuer", "expires_in"] {
            assert!(!line[field].is_null(), "{field}: {line}");
        }
    }
    assert!(
        json.iter().any(|line| line["kind"] == "top-no-token" && line["user"] == "carol" && line["level"] == "WARN")
    );
}
