//! The audit log of the real daemon.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use evercred::demo::issuer::Rotation;
use serde_json::Value;

use self::site::Site;

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
    assert!(issued["expires"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{issued}");
    assert_ne!(issued["jti_sha256"], find("renewed")["jti_sha256"], "another token");
    assert_eq!(find("refused")["result"], "revoked");
    let uid = nix::unistd::geteuid();
    assert_eq!((&find("admin")["by"], &find("admin")["detail"]), (&format!("uid {uid}").into(), &"renew".into()));
    let text = fs::read_to_string(&path).unwrap();
    let token = String::from_utf8(site.file("alice", "grid.use").unwrap()).unwrap();
    let token = token.split('"').nth(3).unwrap();
    for secret in [&*alice, &*bob, token, token.split('.').nth(2).unwrap()] {
        assert!(!text.contains(secret), "a secret is in the audit log");
    }
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
