//! The status page: off unless configured, the same data as `evercred status`, no script, and readable in a browser.

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
    time::Duration,
};

use evercred::demo::issuer::Rotation;

use self::site::Site;

fn showing(keys: &str) -> (Site, String) {
    let mut site = Site::new(600, Rotation::None);
    site.configure_with(&format!("metrics_listen = \"127.0.0.1:0\"\n{keys}"), "", "");
    for user in ["alice", "bob", "carol"] {
        site.grid(user);
    }
    let dave = site.grid("dave");
    assert!(site.issuer.control().revoke(&dave));
    site.store("erin", "grid", b"{}");
    site.start();
    site.wait("the endpoint", 30, |s| s.log().contains("metrics are at http://"));
    site.wait("tokens", 30, |s| {
        ["alice", "bob", "carol"].iter().all(|user| s.file(user, "grid.use").is_some())
            && s.log().contains("kind=revoked")
    });
    let log = site.log();
    let address = log.split("metrics are at http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    (site, address)
}

/// Head and body.
fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[test]
fn without_the_key_there_is_no_page() {
    let (_site, address) = showing("");
    for path in ["/", "/page.css"] {
        let (head, body) = get(&address, path);
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
        assert!(!body.contains("alice"), "{body}");
    }
}

#[test]
fn the_page_tells_states_in_words_needs_no_script_and_no_secret_is_in_it() {
    let (site, address) = showing("status_page = true");
    let (head, body) = get(&address, "/");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let lower = head.to_lowercase();
    assert!(lower.contains("content-security-policy: default-src 'none'; style-src 'self'"), "{head}");
    for part in
        ["alice/grid", "fresh", "dave/grid", "unusable", "needs a person", "http-equiv=\"refresh\"", "top-no-token"]
    {
        assert!(body.contains(part), "{part}\n{body}");
    }
    assert!(!body.contains("<script") && !body.contains("style=\""), "{body}");
    let place = |name: &str| body.find(name).unwrap();
    assert!(place("erin/grid") < place("dave/grid") && place("dave/grid") < place("alice/grid"), "the worst first");
    for (user, name) in [("alice", "grid.top"), ("alice", "grid.use")] {
        let text = String::from_utf8(site.file(user, name).unwrap()).unwrap();
        let secret = text.split('"').nth(3).unwrap();
        assert!(!body.contains(secret), "a secret is on the page");
    }
    assert!(get(&address, "/page.css").0.contains("text/css"));
}

#[test]
fn with_a_hundred_sites_that_are_down_and_five_hundred_credentials_there_is_a_page() {
    let mut site = Site::new(600, Rotation::None);
    let home = site.home.path().display().to_string();
    let section = |n| {
        let name = format!("a-site-whose-name-is-of-some-length-{n}");
        format!("[site.{name}]\nkind = \"directory\"\nservices = [\"grid\"]\ndirectory = \"{home}/not-there-{n}\"\n")
    };
    let sections: String = (0..100).map(section).collect();
    let keys = format!(
        "metrics_listen = \"127.0.0.1:0\"\nstatus_page = true\nreplicate_user = \"nobody\"\nstate_directory = \"{home}/state\""
    );
    site.configure_with(&keys, "", &sections);
    for n in 0..500 {
        site.grid(&format!("user{n}"));
    }
    site.start();
    site.wait("the endpoint", 60, |s| s.log().contains("metrics are at http://"));
    let log = site.log();
    let address = log.split("metrics are at http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    site.wait("the copies", 120, |_| {
        let (head, body) = get(&address, "/");
        head.starts_with("HTTP/1.1 200 ") && body.matches("100 of 100 replicas behind").count() >= 500
    });
    assert!(get(&address, "/").1.contains(" and 97 more"));
    assert!(!site.log().contains("does not take the"), "{}", site.log());
}

#[test]
fn a_browser_shows_it() {
    let (site, address) = showing("status_page = true");
    let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join("status-page.png");
    std::fs::remove_file(&picture).ok();
    let profile = site.home.path().join("profile");
    let run = |arguments: &[&str]| {
        Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,900"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .args(arguments)
            .arg(format!("http://{address}/"))
            .output()
    };
    let Ok(output) = run(&["--dump-dom"]) else {
        println!("skipped: there is no chromium");
        return;
    };
    let dom = String::from_utf8_lossy(&output.stdout);
    assert!(dom.contains("alice/grid") && dom.contains("<table>"), "{output:?}");
    let output = run(&[&format!("--screenshot={}", picture.display())]).unwrap();
    // A blank picture of this size is smaller.
    let length = std::fs::metadata(&picture).map(|meta| meta.len()).unwrap_or_default();
    assert!(length > 20_000, "{length} bytes\n{output:?}");
    println!("{}", picture.display());
}
