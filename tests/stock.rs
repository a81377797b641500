//! Sites that come from HTCondor's own OAuth credmon: its files beside ours, and what of them counts.

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use evercred::demo::issuer::Rotation;

use self::site::Site;

/// As the stock web page leaves a credential: `.top` and `.meta`, mode 0400.
fn approved_on_the_old_page(site: &Site, user: &str, client: &str, token_url: &str) -> String {
    let token = site.refresh_token(user);
    site.store(user, "grid", format!("{{\"refresh_token\": \"{token}\", \"scopes\": \"storage.read:/\"}}").as_bytes());
    let directory = site.credentials().join(user);
    let meta = directory.join("grid.meta");
    let text = format!(
        "{{\"client_id\": \"{client}\", \"client_secret\": \"canary-secret\", \"token_url\": \"{token_url}\", \
         \"use_refresh_token\": true}}"
    );
    fs::write(&meta, text).unwrap();
    for path in [meta, directory.join("grid.top")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap();
    }
    token
}

#[test]
fn users_who_approved_through_the_old_page_keep_going_and_rotated_tokens_are_kept() {
    let mut site = Site::new(2, Rotation::Strict);
    let endpoint = format!("{}/token", site.issuer.url());
    let first = approved_on_the_old_page(&site, "alice", "test", &endpoint);
    site.start();
    site.wait("three tokens", 30, |site| site.exchanges("alice") >= 3);
    let top = String::from_utf8(site.file("alice", "grid.top").unwrap()).unwrap();
    assert!(!top.contains(&first) && top.contains("\"scopes\": \"storage.read:/\""), "rotated, the rest as it was");
    assert!(site.file("alice", "grid.meta").is_some(), "nobody's file is removed");
}

#[test]
fn a_token_approved_for_another_client_or_endpoint_is_sent_nowhere_and_the_reason_is_told() {
    let mut site = Site::new(600, Rotation::None);
    let endpoint = format!("{}/token", site.issuer.url());
    let tokens = [
        approved_on_the_old_page(&site, "alice", "someone-else", &endpoint),
        approved_on_the_old_page(&site, "bob", "test", "https://elsewhere.example.org/token"),
    ];
    site.grid("carol");
    site.start();
    site.wait("carol's", 20, |site| site.file("carol", "grid.use").is_some());
    for (user, word) in [("alice", "someone-else"), ("bob", "elsewhere.example.org")] {
        site.wait(user, 20, |site| {
            let log = site.log();
            log.lines().any(|l| l.contains(&format!("{user}/grid")) && l.contains(word))
                && log.lines().any(|l| l.contains(&format!("user={user}")) && l.contains("kind=meta-mismatch"))
        });
        assert!(site.file(user, "grid.use").is_none());
        // Nor to be given back.
        let mut revoke = Command::new(env!("CARGO_BIN_EXE_evercred"));
        let output = revoke.args(["revoke", &format!("{user}/grid"), "--socket"]).arg(site.socket()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("meta-mismatch: nothing is sent to the issuer") && text.contains(word), "{text}");
        assert!(!site.record(user).revoked);
        assert_eq!(site.exchanges(user), 0, "the issuer never saw it");
    }
    let log = site.log();
    assert!(!log.contains("canary-secret") && tokens.iter().all(|token| !log.contains(token)));
    // Approved anew, through credd: the .meta that stays behind is of no account.
    site.grid("alice");
    site.wait("alice's new approval", 20, |site| site.file("alice", "grid.use").is_some());
}
