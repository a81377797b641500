//! The audit log of the real daemon.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use evercred::{
    ctl,
    demo::issuer::{MytokenWish, Rotation},
    keeper::control::{Order, Reply},
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use self::site::{Site, metrics_at, value};

fn audited(audit_log: &Path) -> Site {
    let site = Site::new(600, Rotation::Strict);
    let listen = "metrics_listen = \"127.0.0.1:0\"";
    site.configure_with(&format!("audit_log = \"{}\"\n{listen}", audit_log.display()), "", "");
    site
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("torn: {e}: {line}"))).collect()
}

fn has(path: &Path, event: &str, user: &str) -> bool {
    lines(path).iter().any(|line| line["event"] == event && line["user"] == user)
}

#[test]
fn a_run_that_ends_badly_has_audited_each_of_many_and_its_log_tells_twenty_and_how_many_more() {
    const MANY: usize = 2000;
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("audit.jsonl");
    let site = audited(&path);
    for n in 0..MANY {
        site.store(&format!("user{n}"), "grid", b"{}");
    }
    let status = site.command().arg("--once").status().unwrap();
    assert_eq!(status.code(), Some(1), "{}", site.log());
    assert_eq!(lines(&path).iter().filter(|line| line["event"] == "unusable").count(), MANY);
    let log = site.log();
    assert_eq!(log.lines().filter(|line| line.contains("cannot be used; waiting for another")).count(), 20, "{log}");
    assert!(log.contains("more=1980"), "{log}");
}

#[test]
fn each_decision_is_a_line_with_who_what_issuer_result_and_hash_and_no_secret_is_in_any() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("audit.jsonl");
    let mut site = audited(&path);
    let alice = site.grid("alice");
    let bob = site.grid("bob");
    assert!(site.issuer.control().revoke(&bob));
    site.store("carol", "grid", b"{}");
    site.start();
    site.wait("issued", 20, |_| has(&path, "issued", "alice"));
    site.wait("refused", 20, |_| has(&path, "refused", "bob"));
    site.wait("unusable", 20, |_| has(&path, "unusable", "carol"));
    let renew = Command::new(env!("CARGO_BIN_EXE_evercred"))
        .args(["renew", "alice/grid", "--socket"])
        .arg(site.socket())
        .output()
        .unwrap();
    assert!(renew.status.success(), "{renew:?}");
    site.wait("renewed", 20, |_| has(&path, "renewed", "alice"));
    fs::remove_file(site.credentials().join("carol/grid.top")).unwrap();
    site.wait("forgotten", 20, |_| has(&path, "forgotten", "carol"));
    let all = lines(&path);
    let find =
        |event: &str| all.iter().find(|line| line["event"] == event).unwrap_or_else(|| panic!("{event}: {all:?}"));
    let issued = find("issued");
    assert_eq!(
        (&issued["result"], &issued["by"], &issued["service"]),
        (&"ok".into(), &"evercred".into(), &"grid".into())
    );
    assert_eq!(issued["issuer"].as_str().unwrap(), site.issuer.url());
    assert_eq!(issued["jti_sha256"].as_str().unwrap().len(), 64, "{issued}");
    for event in ["issued", "renewed", "refused", "unusable", "forgotten", "admin"] {
        let line = find(event);
        let asked = (line["provider"].as_str(), line["issuer"].as_str());
        assert_eq!(asked, (Some("grid"), Some(site.issuer.url())), "{line}");
        assert!(line["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{line}");
    }
    assert!(issued["expires"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{issued}");
    assert_ne!(issued["jti_sha256"], find("renewed")["jti_sha256"], "another token");
    assert_eq!(find("refused")["result"], "revoked");
    let uid = nix::unistd::geteuid();
    assert_eq!((&find("admin")["by"], &find("admin")["detail"]), (&format!("uid {uid}").into(), &"renew".into()));
    let text = fs::read_to_string(&path).unwrap();
    let token: Value = serde_json::from_slice(&site.file("alice", "grid.use").unwrap()).unwrap();
    let token = token["access_token"].as_str().unwrap();
    let last = all.iter().rfind(|line| line["event"] == "renewed" && line["user"] == "alice").unwrap();
    assert_eq!(last["jti_sha256"].as_str().unwrap(), hash_of_jti(token), "of the token that is there");
    for secret in [&*alice, &*bob, token, token.split('.').nth(2).unwrap()] {
        assert!(!text.contains(secret), "a secret is in the audit log");
    }
}

/// SHA-256 of the `jti` of a JWT, hexadecimal.
fn hash_of_jti(token: &str) -> String {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    format!("{:x}", Sha256::digest(claims.get("jti").and_then(Value::as_str).unwrap().as_bytes()))
}

/// The second refusal counts a minute after the first one.
#[test]
fn a_mytoken_that_is_refused_twice_is_parked_and_one_that_is_given_back_is_known_by_its_jti() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("audit.jsonl");
    let mut site = audited(&path);
    let mytoken = |user: &str| {
        site.issuer.control().mytoken(MytokenWish { user: user.into(), ..MytokenWish::default() }).unwrap()
    };
    let (alice, bob) = (mytoken("alice"), mytoken("bob"));
    site.store("alice", "mt", alice.as_bytes());
    site.store("bob", "mt", bob.as_bytes());
    site.start();
    site.wait("issued", 20, |_| has(&path, "issued", "alice") && has(&path, "issued", "bob"));
    let order = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_evercred"));
        let output = command.args(arguments).arg("--socket").arg(site.socket()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    order(&["revoke", "bob/mt"]);
    // The daemon asks at once, and is refused; then it asks once more.
    site.wait("refused", 20, |_| has(&path, "refused", "bob"));
    site.wait("parked", 150, |_| has(&path, "parked", "bob"));
    let all = lines(&path);
    let find = |event: &str| {
        let found = all.iter().find(|line| line["event"] == event && line["user"] == "bob");
        found.unwrap_or_else(|| panic!("{event}: {all:?}"))
    };
    let asked = format!("{}/mytoken", site.issuer.url());
    for event in ["admin", "revoked", "refused", "parked"] {
        let line = find(event);
        assert_eq!((line["service"].as_str(), line["provider"].as_str()), (Some("mt"), Some("mt")), "{line}");
        assert_eq!(line["issuer"].as_str(), Some(asked.as_str()), "{line}");
    }
    let by = format!("uid {}", nix::unistd::geteuid());
    let revoked = find("revoked");
    assert_eq!((&revoked["result"], &revoked["by"]), (&"ok".into(), &by.as_str().into()), "{revoked}");
    assert_eq!(revoked["jti_sha256"].as_str().unwrap(), hash_of_jti(&bob), "the hash of what was given back");
    assert_eq!((&find("admin")["detail"], &find("admin")["by"]), (&"revoke".into(), &by.as_str().into()));
    assert_eq!((&find("parked")["result"], &find("parked")["by"]), (&"revoked".into(), &"evercred".into()));
    assert!(!has(&path, "parked", "alice"));
    let text = fs::read_to_string(&path).unwrap();
    for secret in [&alice, &bob] {
        assert!(!text.contains(secret.as_str()), "a secret is in the audit log");
    }
}

/// As `evercred import kit --apply` says it once credd has stored one (that with a real credd: tests/pool/e2e-storer).
#[test]
fn what_an_admin_imported_is_a_line_with_the_admin_and_names_that_are_none_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("audit.jsonl");
    let mut site = audited(&path);
    site.grid("alice");
    site.start();
    site.wait("issued", 20, |_| has(&path, "issued", "alice"));
    let imported = |user: &str| {
        let (user, credential, from) = (user.to_owned(), "grid_kit".to_owned(), "kit".to_owned());
        ctl::daemon::order(&site.socket(), &Order::Imported { user, credential, from }).unwrap()
    };
    assert_eq!(imported("alice"), Reply::Done { credentials: 1 });
    assert!(matches!(imported("al/ice"), Reply::Refused { .. }));
    site.wait("the line", 20, |_| has(&path, "imported", "alice"));
    let line = lines(&path).into_iter().find(|line| line["event"] == "imported").unwrap();
    let by = format!("uid {}", nix::unistd::geteuid());
    assert_eq!((&line["by"], &line["detail"]), (&by.as_str().into(), &"kit".into()), "{line}");
    let what = (line["service"].as_str(), line["handle"].as_str(), line["provider"].as_str());
    assert_eq!(what, (Some("grid"), Some("kit"), Some("grid")), "{line}");
    assert_eq!(line["issuer"].as_str(), Some(site.issuer.url()), "{line}");
}

#[test]
fn rotation_loses_no_line() {
    let home = tempfile::tempdir().unwrap();
    let (path, moved) = (home.path().join("audit.jsonl"), home.path().join("audit.jsonl.1"));
    let mut site = audited(&path);
    site.grid("alice");
    site.start();
    site.wait("issued", 20, |_| has(&path, "issued", "alice"));
    fs::rename(&path, &moved).unwrap();
    site.grid("bob");
    site.wait("in the new file", 20, |_| has(&path, "issued", "bob"));
    assert!(has(&moved, "issued", "alice") && !has(&moved, "issued", "bob"));
}

/// A tiny file system of our own, for its end.
struct Tiny(PathBuf);

impl Tiny {
    fn mount(at: PathBuf) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&at).output().ok()?;
        mount.status.success().then_some(Self(at))
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

#[test]
fn a_full_disk_delays_no_renewal_and_once_there_is_room_the_log_goes_on_whole() {
    let home = tempfile::tempdir().unwrap();
    let Some(tiny) = Tiny::mount(home.path().join("tiny")) else {
        println!("skipped: mounting a tmpfs is not allowed here");
        return;
    };
    let path = tiny.0.join("audit.jsonl");
    let ballast = tiny.0.join("ballast");
    let mut site = audited(&path);
    site.grid("alice");
    site.start();
    site.wait("issued", 20, |_| has(&path, "issued", "alice"));
    fs::write(&ballast, vec![0_u8; 64 * 1024]).ok();
    for n in 0..200 {
        site.grid(&format!("user{n:03}"));
    }
    site.wait("200 tokens with a full audit disk", 30, |s| {
        (0..200).all(|n| s.file(&format!("user{n:03}"), "grid.use").is_some())
    });
    site.wait("the word", 20, |s| s.log().contains("the audit log cannot be written"));
    fs::remove_file(&ballast).unwrap();
    site.wait("written again", 20, |s| s.log().contains("the audit log is written again"));
    std::thread::sleep(Duration::from_millis(500));
    let issued = lines(&path).iter().filter(|line| line["event"] == "issued").count();
    assert_eq!(issued, 201, "what waited was written, and no line is torn");
}

#[test]
fn a_full_disk_of_the_log_delays_no_renewal_and_the_lines_that_it_cost_are_counted() {
    let home = tempfile::tempdir().unwrap();
    let Some(tiny) = Tiny::mount(home.path().join("tiny")) else {
        println!("skipped: mounting a tmpfs is not allowed here");
        return;
    };
    let (log, ballast) = (tiny.0.join("log"), tiny.0.join("ballast"));
    let mut site = Site::new(600, Rotation::Strict);
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    site.configure_with(&format!("metrics_listen = \"{address}\""), "", "");
    site.grid("alice");
    let mut command = Command::new(env!("CARGO_BIN_EXE_condor_credmon_evercred"));
    command.arg("--config").arg(site.home.path().join("evercred.toml")).arg("--log").arg(&log);
    site.credmon = Some(command.stdin(Stdio::null()).spawn().unwrap());
    site.wait("a token", 30, |s| s.file("alice", "grid.use").is_some());
    fs::write(&ballast, vec![0_u8; 64 * 1024]).ok();
    let began = Instant::now();
    for n in 0..200 {
        site.grid(&format!("user{n:03}"));
    }
    site.wait("200 tokens with a full disk for the log", 30, |s| {
        (0..200).all(|n| s.file(&format!("user{n:03}"), "grid.use").is_some())
    });
    let took = began.elapsed();
    let lost = || value(&metrics_at(&address)?, "evercred_log_lines_lost_total");
    // A line for each renewal, and what fitted into the rest of the last page.
    site.wait("the count", 20, |_| lost().is_some_and(|lost| lost >= 150.0));
    println!("200 tokens in {took:?} with a full disk for the log; {:?} lines lost", lost());
    fs::remove_file(&ballast).unwrap();
    site.grid("zoe");
    site.wait("the log goes on", 20, |_| fs::read_to_string(&log).is_ok_and(|text| text.contains("user=zoe ")));
}
