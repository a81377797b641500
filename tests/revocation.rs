//! Refresh tokens are given back at the end of life and by `evercred revoke`, to both kinds of issuer.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{fs, process::Command, time::Duration};

use evercred::demo::issuer::{MytokenWish, Outage, Rotation};

use self::site::Site;

fn revoking(users: &[&str]) -> Site {
    let mut site = Site::new(600, Rotation::Strict);
    let audit = site.home.path().join("audit.jsonl");
    site.configure_with(
        &format!("audit_log = \"{}\"", audit.display()),
        "revoke_at_end = true\nrevoke_after = \"1s\"",
        "revoke_at_end = true\nrevoke_after = \"1s\"",
    );
    for user in users {
        site.grid(user);
    }
    site.start();
    for user in users {
        site.wait(user, 20, |s| s.file(user, "grid.use").is_some());
    }
    site
}

fn is_revoked(site: &Site, user: &str) -> bool {
    site.issuer.control().records(Some(user)).iter().all(|record| record.revoked)
}

fn audit(site: &Site) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(site.home.path().join("audit.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

/// The audit log's word on a revocation.
fn result(site: &Site, user: &str) -> Option<String> {
    let lines = audit(site);
    let line =
        lines.iter().find(|line| line.get("event").unwrap() == "revoked" && line.get("user").unwrap() == user)?;
    Some(line.get("result").unwrap().as_str().unwrap().to_owned())
}

/// As credd sweeps: everything of the user goes.
fn sweep(site: &Site, user: &str) {
    let directory = site.credentials().join(user);
    // A renewal under way may put a file there meanwhile; credd, too, comes back.
    while let Err(error) = fs::remove_dir_all(&directory) {
        assert_eq!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty, "{error}");
    }
}

#[test]
fn a_swept_credential_is_revoked_at_its_issuer_also_after_rotation_and_others_live_on() {
    let site = revoking(&["alice", "bob"]);
    // Strict rotation: what was stored has been superseded, and only the newest refresh token ends the family.
    site.wait("rotation", 20, |s| s.issuer.control().records(Some("alice")).iter().any(|r| r.rotations > 0));
    std::thread::sleep(Duration::from_millis(500));
    sweep(&site, "alice");
    site.wait("the revocation", 30, |s| result(s, "alice").is_some());
    assert_eq!(result(&site, "alice").as_deref(), Some("ok"), "{}", site.log());
    assert!(is_revoked(&site, "alice"));
    assert!(!is_revoked(&site, "bob"));
}

#[test]
fn a_swept_mytoken_is_revoked_too() {
    let site = revoking(&[]);
    let mytoken =
        site.issuer.control().mytoken(MytokenWish { user: "carol".into(), ..MytokenWish::default() }).unwrap();
    site.store("carol", "mt", mytoken.as_bytes());
    site.wait("a token", 20, |s| s.file("carol", "mt.use").is_some());
    std::thread::sleep(Duration::from_millis(500));
    sweep(&site, "carol");
    site.wait("the revocation", 30, |s| result(s, "carol").is_some());
    assert_eq!(result(&site, "carol").as_deref(), Some("ok"), "{}", site.log());
    assert!(is_revoked(&site, "carol"));
}

#[test]
fn a_mytoken_of_another_server_is_given_back_to_nobody_neither_swept_nor_by_order() {
    let (site, other) = (revoking(&["bob"]), Site::new(600, Rotation::None));
    let wish = MytokenWish { user: "alice".into(), ..MytokenWish::default() };
    let stray = format!("{{\"mytoken\":\"{}\"}}", other.issuer.control().mytoken(wish).unwrap());
    // Neither as what it is, nor as a refresh token of an OAuth2 issuer.
    for base in ["mt", "grid"] {
        site.store("alice", base, stray.as_bytes());
    }
    let lines =
        |s: &Site, what: &str| s.log().lines().filter(|l| l.contains("user=alice ") && l.contains(what)).count();
    site.wait("both refused", 20, |s| lines(s, "kind=top-elsewhere") == 2);
    for base in ["mt", "grid"] {
        let (code, text) = revoke(&site, &format!("alice/{base}"));
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("not revoked, top-elsewhere: nothing is sent to the issuer"), "{text}");
        assert!(text.contains(other.issuer.url()), "{text}");
    }
    let of_alice = |s: &Site| {
        audit(s).iter().filter(|l| l.get("event").unwrap() == "revoked" && l.get("user").unwrap() == "alice").count()
    };
    site.wait("the two orders in the audit log", 10, |s| of_alice(s) == 2);
    assert_eq!(result(&site, "alice").as_deref(), Some("top-elsewhere"));
    sweep(&site, "alice");
    site.wait("both forgotten", 20, |s| lines(s, "forgotten") == 2);
    // Whoever is swept after it is given back after it.
    sweep(&site, "bob");
    site.wait("bob's", 30, |s| result(s, "bob").is_some());
    assert_eq!(result(&site, "bob").as_deref(), Some("ok"), "{}", site.log());
    assert_eq!(of_alice(&site), 2, "nothing was tried for what was swept: {:?}", audit(&site));
}

#[test]
fn without_the_key_nothing_is_revoked() {
    let mut site = Site::new(600, Rotation::Strict);
    site.grid("alice");
    site.start();
    site.wait("a token", 20, |s| s.file("alice", "grid.use").is_some());
    sweep(&site, "alice");
    site.wait("forgotten", 20, |s| s.log().contains("forgotten"));
    std::thread::sleep(Duration::from_secs(2));
    assert!(!is_revoked(&site, "alice"));
}

fn revoke(site: &Site, which: &str) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evercred"));
    let output = command.args(["revoke", which, "--socket"]).arg(site.socket()).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code(), text)
}

fn known(site: &Site) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evercred"));
    let output = command.args(["status", "--json", "--socket"]).arg(site.socket()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_reload_that_switches_it_off_holds_for_what_was_known_and_for_what_had_left_before() {
    let mut site = Site::new(600, Rotation::None);
    site.configure_with("", "revoke_at_end = true\nrevoke_after = \"8s\"", "");
    for user in ["alice", "bob"] {
        site.grid(user);
    }
    site.start();
    site.wait("tokens", 20, |s| ["alice", "bob"].iter().all(|user| s.file(user, "grid.use").is_some()));
    std::thread::sleep(Duration::from_millis(500));
    sweep(&site, "bob");
    site.wait("bob forgotten", 20, |s| s.log().lines().any(|l| l.contains("forgotten") && l.contains("user=bob")));
    // Without the wait, that is as long as it can be: what would be given back would be so at once.
    site.configure("revoke_after = \"1s\"");
    site.signal("-HUP");
    site.wait("the reload", 20, |s| s.log().contains("configuration reloaded"));
    site.wait("alice", 20, |s| known(s).contains("alice"));
    sweep(&site, "alice");
    site.wait("alice forgotten", 20, |s| s.log().lines().any(|l| l.contains("forgotten") && l.contains("user=alice")));
    std::thread::sleep(Duration::from_secs(9));
    assert!(!is_revoked(&site, "alice") && !is_revoked(&site, "bob"), "{}", site.log());
}

#[test]
fn what_is_swept_while_a_reload_goes_on_is_revoked_too_and_what_stays_lives_on() {
    let users: Vec<String> = (0..24).map(|n| format!("user{n:02}")).collect();
    let names: Vec<&str> = users.iter().map(String::as_str).chain(["bob"]).collect();
    let site = revoking(&names);
    std::thread::sleep(Duration::from_millis(500));
    site.configure("revoke_at_end = true\nrevoke_after = \"2s\"");
    site.signal("-HUP");
    // What knew them ends here; what comes next has not looked at them yet. Half of them in each of both.
    let (some, others) = users.split_at(12);
    site.wait("the reload", 20, |s| s.log().contains("bringing home what is in flight"));
    for user in some {
        sweep(&site, user);
    }
    site.wait("the next settings", 20, |s| s.log().contains("configuration reloaded"));
    for user in others {
        sweep(&site, user);
    }
    site.wait("the revocations", 30, |s| users.iter().all(|user| is_revoked(s, user)));
    assert_eq!(site.log().matches("forgotten: its .top is gone").count(), users.len(), "{}", site.log());
    assert!(!is_revoked(&site, "bob"));
}

#[test]
fn a_reload_while_the_issuer_hangs_answers_those_who_wait_and_the_next_one_is_revoked() {
    let users: Vec<String> = (0..9).map(|n| format!("user{n}")).collect();
    let names: Vec<&str> = users.iter().map(String::as_str).collect();
    let mut site = Site::new(600, Rotation::None);
    let config = site.home.path().join("evercred.toml");
    let patient = fs::read_to_string(&config).unwrap().replace("timeout = \"3s\"", "timeout = \"40s\"");
    // Without discovery, which is one request for all of them.
    let url = site.issuer.url();
    let patient = patient.replace("max_per_second", &format!("revocation_endpoint = \"{url}/revoke\"\nmax_per_second"));
    fs::write(&config, &patient).unwrap();
    for user in &names {
        site.grid(user);
    }
    site.start();
    site.wait("tokens", 30, |s| names.iter().all(|user| s.file(user, "grid.use").is_some()));
    let revoke = |user: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_evercred"));
        command.arg("revoke").arg(format!("{user}/grid")).arg("--socket").arg(site.socket());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command
    };
    site.issuer.control().set_latency(Duration::from_secs(60));
    let orders: Vec<_> = names.iter().take(8).map(|user| revoke(user).spawn().unwrap()).collect();
    site.wait("all of them at the issuer", 20, |s| s.issuer.control().stats().in_flight >= 8);
    site.issuer.control().set_latency(Duration::ZERO);
    fs::write(&config, patient.replace("max_per_second = 1000", "max_per_second = 999")).unwrap();
    site.signal("-HUP");
    for order in orders {
        let output = order.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("not revoked, courier-lost"), "{text}");
    }
    site.wait("the next courier", 20, |s| s.log().matches("courier is ready").count() >= 2);
    site.wait("the last one", 20, |s| known(s).contains("user8"));
    let output = revoke("user8").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}\n{}", site.log());
    assert!(is_revoked(&site, "user8"));
}

#[test]
fn an_admin_revokes_one_and_is_told_how_it_ended_and_the_files_stay() {
    let site = revoking(&["alice", "bob"]);
    let revoke = |which: &str| revoke(&site, which);
    let (code, text) = revoke("alice/grid");
    assert_eq!((code, text.as_str()), (Some(0), "alice/grid: the issuer has revoked it\n"));
    assert!(is_revoked(&site, "alice"));
    assert!(site.file("alice", "grid.use").is_some() && site.file("alice", "grid.top").is_some());
    // The daemon asks at once, and sees it.
    site.wait("the refusal", 20, |s| s.log().lines().any(|l| l.contains("user=alice ") && l.contains("kind=revoked")));
    site.issuer.control().set_outage(Outage::Unavailable);
    let (code, text) = revoke("bob/grid");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("bob/grid: not revoked, server-error"), "{text}");
    let (code, text) = revoke("nobody/grid");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("there is no credential nobody/grid"), "{text}");
    let by = format!("uid {}", nix::unistd::geteuid());
    // What is refused is audited, too.
    let refused = |line: &serde_json::Value| line.get("result").is_some_and(|result| result == "refused");
    site.wait("the audit line", 10, |s| audit(s).iter().any(refused));
    let line = audit(&site).into_iter().find(refused).unwrap();
    let member = |name: &str| line.get(name).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    assert_eq!((member("event"), member("by")), ("admin".into(), by.clone()));
    assert_eq!(member("detail"), "revoke nobody/grid: there is no credential nobody/grid");
    assert!(audit(&site).iter().any(|l| l.get("event").unwrap() == "revoked" && l.get("by").unwrap() == by.as_str()));
}
