//! What others see of replication: status, metrics, audit log and notices, of a site that is well and of one that refuses.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test: it may stop at the first thing that is wrong"
)]

mod site;

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
    sync::{Arc, Mutex},
    time::Duration,
};

use evercred::demo::issuer::Rotation;
use serde_json::Value;
use sha2::{Digest, Sha256};

use self::site::{Site, value};

/// Two directories as sites: `good`, and `shut`, into which nothing can be written.
fn two_sites(site: &Site, more: &str) {
    let home = site.home.path().display().to_string();
    for (name, mode) in [("good", 0o700), ("shut", 0o500)] {
        let path = site.home.path().join(name);
        fs::create_dir(&path).unwrap();
        if nix::unistd::geteuid().is_root() {
            let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
            nix::unistd::chown(&path, Some(nobody.uid), Some(nobody.gid)).unwrap();
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let sites: String = ["good", "shut"]
        .map(|name| {
            format!("[site.{name}]\nkind = \"directory\"\nservices = [\"grid\"]\ndirectory = \"{home}/{name}\"\n")
        })
        .concat();
    site.configure_with(
        &format!(
            "state_directory = \"{home}/state\"\nreplicate_user = \"nobody\"\naudit_log = \"{home}/audit.jsonl\"\n\
             metrics_listen = \"127.0.0.1:0\""
        ),
        "",
        &format!("{sites}{more}"),
    );
}

fn audit(site: &Site) -> Vec<Value> {
    let text = fs::read_to_string(site.home.path().join("audit.jsonl")).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn evercred(site: &Site, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evercred"));
    command.args(arguments).arg("--socket").arg(site.socket()).output().unwrap()
}

fn shown(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Keeps the bodies that are posted to it.
fn webhook() -> (String, Arc<Mutex<Vec<Value>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let heard: Arc<Mutex<Vec<Value>>> = Arc::default();
    let kept = Arc::clone(&heard);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            stream.set_read_timeout(Some(Duration::from_secs(5))).ok();
            let (mut text, mut part) = (Vec::new(), [0; 4096]);
            while let Ok(count @ 1..) = stream.read(&mut part) {
                text.extend_from_slice(&part[..count]);
                let whole = String::from_utf8_lossy(&text).into_owned();
                if let Some(body) = whole.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok()) {
                    kept.lock().unwrap().push(body);
                    break;
                }
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok();
        }
    });
    (url, heard)
}

#[test]
fn what_becomes_of_deliveries_is_shown_counted_audited_and_told_to_admins_once() {
    let (url, heard) = webhook();
    let mut site = Site::new(600, Rotation::Strict);
    let notices = format!("[notices]\nwebhook = \"{url}\"\nevery = \"1s\"\nsite_behind = \"1s\"\njobs = false\n");
    two_sites(&site, &notices);
    site.grid("alice");
    site.grid("canary-user-bob");
    site.start();
    let file = |user: &str| site.home.path().join("good").join(format!("{user}_grid"));
    let (alices, bobs) = (file("alice"), file("canary-user-bob"));
    site.wait("replicated", 30, |_| alices.exists() && bobs.exists());
    site.wait("the refusal", 30, |s| s.log().contains("kind=site-denied"));

    site.wait("the figures", 30, |s| s.metric("evercred_deliveries_total{site=\"good\"}") == Some(2.0));
    site.wait("the lag", 30, |s| {
        s.metric("evercred_replication_lag_seconds{site=\"shut\"}").is_some_and(|lag| lag > 1.0)
    });
    let text = site.metrics();
    for (series, expected) in [
        ("evercred_replicas{site=\"good\"}", 2.0),
        ("evercred_replicas_behind{site=\"good\"}", 0.0),
        ("evercred_replication_lag_seconds{site=\"good\"}", 0.0),
        ("evercred_replication_duration_seconds_count{site=\"good\"}", 2.0),
        ("evercred_replicas_behind{site=\"shut\"}", 2.0),
        ("evercred_deliveries_total{site=\"shut\"}", 0.0),
        ("evercred_delivery_errors_total{site=\"good\",kind=\"site-denied\"}", 0.0),
        ("evercred_replicator_restarts_total", 0.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series}\n{text}");
    }
    assert!(value(&text, "evercred_delivery_errors_total{site=\"shut\",kind=\"site-denied\"}").unwrap() >= 2.0);
    assert!(!text.contains("canary-user"), "no user in metrics: {text}");

    let table = shown(&evercred(&site, &["status"]));
    assert!(table.contains("REPLICAS") && table.contains("1 of 2 behind"), "{table}");
    assert!(table.contains("Site shut: site-denied, for ") && table.contains("What to do"), "{table}");
    let json: Value = serde_json::from_str(&shown(&evercred(&site, &["status", "--json"]))).unwrap();
    let shut = json["sites"].as_array().unwrap().iter().find(|s| s["site"] == "shut").unwrap().clone();
    assert_eq!((&shut["behind"], &shut["replicas"], &shut["error"]), (&2.into(), &2.into(), &"site-denied".into()));

    let lines = audit(&site);
    let of = |event: &str, site: &str| lines.iter().filter(|l| l["event"] == event && l["site"] == site).count();
    assert_eq!((of("replicated", "good"), of("replicated", "shut"), of("refused", "shut")), (2, 0, 2), "{lines:?}");
    let replicated = lines.iter().find(|l| l["event"] == "replicated" && l["user"] == "alice").unwrap();
    let token: Value = serde_json::from_slice(&site.file("alice", "grid.use").unwrap()).unwrap();
    let token = token["access_token"].as_str().unwrap().to_owned();
    let claims = {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let bytes = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        serde_json::from_slice::<Value>(&bytes).unwrap()
    };
    let hash = format!("{:x}", Sha256::digest(claims["jti"].as_str().unwrap().as_bytes()));
    assert_eq!(replicated["jti_sha256"], hash.as_str());
    assert!(replicated["expires"].is_string());
    for event in ["replicated", "refused"] {
        let line = lines.iter().find(|l| l["event"] == event).unwrap();
        let asked = (line["provider"].as_str(), line["issuer"].as_str());
        assert_eq!(asked, (Some("grid"), Some(site.issuer.url())), "{line}");
    }
    let refused = lines.iter().find(|l| l["event"] == "refused").unwrap();
    assert_eq!(refused["result"], "site-denied");
    let text = fs::read_to_string(site.home.path().join("audit.jsonl")).unwrap();
    assert!(!text.contains(&token), "no token in the audit log");

    let about = |heard: &[Value]| heard.iter().filter(|d| d["site"] == "shut").cloned().collect::<Vec<_>>();
    site.wait("the notice", 30, |_| !about(&heard.lock().unwrap()).is_empty());
    let notice = about(&heard.lock().unwrap())[0].clone();
    assert_eq!((&notice["for"], &notice["behind"][0]["kind"]), (&"admins".into(), &"site-denied".into()));
    assert!(notice["text"].as_str().unwrap().contains("What to do: "), "{notice}");
    // A restart knows who was told, and a site that opens is well again.
    site.signal("-TERM");
    site.credmon.take().unwrap().wait().unwrap();
    site.start();
    site.wait("refused again", 30, |s| s.log().matches("kind=site-denied").count() >= 4);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(about(&heard.lock().unwrap()).len(), 1, "told once");
    fs::set_permissions(site.home.path().join("shut"), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(evercred(&site, &["replicate", "--now", "--site", "shut"]).status.success());
    site.wait("the order is audited", 30, |s| {
        let order = |l: &Value| l["event"] == "admin" && l["detail"] == "replicate" && l["site"] == "shut";
        let by = format!("uid {}", nix::unistd::geteuid());
        audit(s).iter().any(|l| order(l) && l["by"] == by.as_str())
    });
    site.wait("caught up", 30, |s| s.metric("evercred_replicas_behind{site=\"shut\"}") == Some(0.0));
    site.wait("audited", 30, |s| audit(s).iter().any(|l| l["event"] == "replicated" && l["site"] == "shut"));
}
