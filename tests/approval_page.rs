//! The page for approvals, by plain HTTP as somebody would who is up to no good, and by Chromium as its users would.
//!
//! The browser's tests are ignored by a plain `cargo test`, because they need Node and Chromium; `tests/run web` runs
//! them. Their issuer is npm `oidc-provider` over TLS (`tests/oidc`).

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use evercred::demo::issuer::Rotation;
use serde_json::Value;

use self::site::Site;

/// A site with the page, and where it listens.
struct Visited {
    site: Site,
    port: u16,
    /// npm `oidc-provider`, where a test needs a real approval.
    issuer: Option<Child>,
    issuer_url: String,
}

impl Drop for Visited {
    fn drop(&mut self) {
        if let Some(issuer) = &mut self.issuer {
            issuer.kill().ok();
            issuer.wait().ok();
        }
    }
}

/// An answer by plain HTTP.
struct Seen {
    status: u16,
    head: String,
    body: String,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    fn field(&self, name: &str) -> String {
        let from = self.body.split(&format!("name={name} value=\"")).nth(1).unwrap();
        from.split('"').next().unwrap().to_owned()
    }
}

/// A port that nobody has.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Visited {
    /// The embedded issuer stands in; nobody gets as far as an approval.
    fn new() -> Self {
        let site = Site::new(600, Rotation::None);
        let issuer_url = site.issuer.url().to_owned();
        Self { site, port: port(), issuer: None, issuer_url }
    }

    /// With npm `oidc-provider`.
    fn with_issuer(lifetime: u32) -> Self {
        let (site, port) = (Site::new(600, Rotation::None), port());
        let mut issuer = Command::new("node")
            .arg(installed("oidc").join("issuer.mjs"))
            .arg("--dir")
            .arg(site.home.path().join("issuer"))
            .args(["--lifetime", &lifetime.to_string(), "--for", "600"])
            .args(["--return-url", &format!("http://127.0.0.1:{port}/credmon/return/web")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(issuer.stdout.take().unwrap()).lines();
        let issuer_url = lines.next().unwrap().unwrap().strip_prefix("ready ").unwrap().to_owned();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { site, port, issuer: Some(issuer), issuer_url }
    }

    fn start(&mut self) {
        let url = &self.issuer_url;
        let more = if self.issuer.is_some() {
            let issuer = self.site.home.path().join("issuer");
            let (secret, ca) = (issuer.join("secret"), issuer.join("ca.pem"));
            format!("client_secret_file = \"{}\"\nca_file = \"{}\"\n", secret.display(), ca.display())
        } else {
            format!("token_endpoint = \"{url}/token\"\nauthorization_endpoint = \"{url}/auth\"\n")
        };
        let provider = format!(
            "[provider.web]\nkind = \"oauth2\"\nissuer = \"{url}\"\nclient_id = \"evercred-web\"\nclient_auth = \"body\"\n\
             audience_style = \"resource\"\nscopes = [\"offline_access\"]\n{more}"
        );
        let page = format!(
            "web_approval_listen = \"127.0.0.1:{0}\"\nweb_approval_url = \"http://127.0.0.1:{0}/credmon\"",
            self.port
        );
        self.site.configure_with(&page, "", &provider);
        self.site.start();
        self.site.wait("the page", 30, |site| site.log().contains("approvals at http://"));
    }

    /// As credd writes a request; gives the link's path.
    fn request(&self, digit: char, handles: &[&str], change: impl Fn(String) -> String) -> String {
        let (url, port) = (&self.issuer_url, self.port);
        let ads: Vec<String> = handles
            .iter()
            .map(|handle| {
                format!(
                    "Handle = \"{handle}\"\nScopes = \"storage.read:/ compute.read\"\nAudience = \
                     \"https://storage.example.org\"\nClientId = \"evercred-web\"\nProvider = \"web\"\nTokenUrl = \
                     \"{url}/token\"\nLocalUser = \"alice\"\nReturnUrl = \"http://127.0.0.1:{port}/credmon/return/web\"\n\
                     ClientSecret = \"canary-secret\"\nAuthorizationUrl = \"{url}/auth\"\n"
                )
            })
            .collect();
        let key = digit.to_string().repeat(64);
        let path = self.site.credentials().join(&key);
        fs::write(&path, change(ads.join("\n"))).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap();
        format!("/credmon/key/{key}")
    }

    fn ask(&self, line: &str, headers: &[(&str, &str)], body: &str) -> Seen {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let more: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let more = more.concat();
        let length = body.len();
        let head = format!("{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n{more}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {line}: {text}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Seen { status, head: head.to_owned(), body: body.to_owned() }
    }

    fn get(&self, path: &str, cookie: &str) -> Seen {
        self.ask(&format!("GET {path}"), &[("Cookie", cookie)], "")
    }

    /// Open a link: the cookie and the page behind it.
    fn visit(&self, link: &str) -> (String, Seen) {
        let opened = self.get(link, "");
        assert_eq!((opened.status, opened.header("location")), (303, Some("/credmon/")), "{}", opened.body);
        let cookie = opened.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        let page = self.get("/credmon/", &cookie);
        (cookie, page)
    }

    fn browser(&self, link: &str, arguments: &[&str]) -> Value {
        let url = format!("http://127.0.0.1:{}{link}", self.port);
        let output = Command::new("timeout")
            .args(["120", "node"])
            .arg(installed("web").join("approve.mjs"))
            .args(["--url", &url, "--user", "alice"])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{told}\n{complaint}\n{}", self.site.log());
        serde_json::from_str(&told).unwrap()
    }
}

/// Where `tests/install.sh` put this folder.
fn installed(folder: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/install.sh");
    let output = Command::new(script).arg(folder).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

#[test]
fn a_link_opens_a_visit_that_shows_who_what_and_where_and_every_answer_is_closed_to_scripts_frames_and_referrers() {
    let mut visited = Visited::new();
    let link = visited.request('a', &["", "eu"], |text| text.replace("compute.read", "<b>&\\\"'"));
    visited.start();
    let opened = visited.get(&link, "");
    let cookie = opened.header("set-cookie").unwrap();
    for word in ["HttpOnly", "SameSite=Lax", "Path=/credmon/"] {
        assert!(cookie.contains(word), "{cookie}");
    }
    let (cookie, page) = visited.visit(&link);
    assert_eq!(page.status, 200);
    for word in
        ["<strong>alice</strong>", "<h2>web</h2>", "<h2>web_eu</h2>", "<code>storage.read:/</code>", "127.0.0.1"]
    {
        assert!(page.body.contains(word), "{word}: {}", page.body);
    }
    assert!(
        page.body.contains("<code>&lt;b&gt;&amp;&quot;&#39;</code>") && !page.body.contains("<b>"),
        "text, not markup"
    );
    assert!(!page.body.contains("<script") && !page.body.contains("canary-secret") && !page.body.contains(&link[13..]));
    let gone = visited.get("/elsewhere", "");
    for answer in [&opened, &page, &gone, &visited.get("/credmon/style.css", &cookie)] {
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    assert_eq!((gone.status, page.header("cache-control")), (404, Some("no-store")));
}

#[test]
fn no_form_works_without_its_visit_its_token_and_its_own_site_and_no_answer_that_was_not_asked_for_counts() {
    let mut visited = Visited::new();
    let link = visited.request('a', &[""], |text| text);
    visited.start();
    let (cookie, page) = visited.visit(&link);
    let (token, credential) = (page.field("token"), page.field("credential"));
    let form = format!("token={token}&credential={credential}");
    let approve = |cookie: &str, site: &str, form: &str| {
        visited.ask("POST /credmon/approve", &[("Cookie", cookie), ("Sec-Fetch-Site", site)], form)
    };
    assert_eq!(approve("", "same-origin", &form).header("location"), None, "no visit");
    assert_eq!(approve("evercred-approval=guess", "same-origin", &form).header("location"), None);
    assert_eq!(approve(&cookie, "cross-site", &form).status, 403);
    assert_eq!(approve(&cookie, "same-origin", &form.replace(&token, "guess")).status, 403);
    assert_eq!(approve(&cookie, "same-origin", &form.replace("credential=web", "credential=grid")).status, 403);
    assert_eq!(approve(&cookie, "same-origin", &"x".repeat(5000)).status, 413);
    // The visit of another key cannot lend its token.
    let (other, _) = visited.visit(&visited.request('b', &[""], |text| text));
    assert_eq!(approve(&other, "same-origin", &form).status, 403);
    let away = approve(&cookie, "same-origin", &form);
    let location = away.header("location").unwrap();
    assert!(location.starts_with(&format!("{}/auth?", visited.issuer_url)), "the issuer, and nowhere else: {location}");
    assert!(location.contains("code_challenge_method=S256") && location.contains("state="));
    let state = location.split("state=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    let back = |cookie: &str, query: &str| visited.get(&format!("/credmon/return/web?{query}"), cookie);
    let iss = format!("iss={}", visited.issuer_url);
    assert_eq!(back(&cookie, &format!("code=c&state=guess&{iss}")).status, 400);
    assert_eq!(back(&other, &format!("code=c&state={state}&{iss}")).status, 400, "another's state");
    assert!(back("", &format!("code=c&state={state}&{iss}")).body.contains("condor_submit"), "no visit");
    assert_eq!(back(&cookie, &format!("code=c&state={state}&iss=https://evil.example.org")).status, 303);
    assert!(visited.get("/credmon/", &cookie).body.contains("from another issuer than the configured one"));
    assert_eq!(back(&cookie, &format!("code=c&state={state}&{iss}")).status, 400, "a state serves once");
    assert!(!visited.site.credentials().join("alice").exists(), "nothing was stored");
}

#[test]
fn a_request_that_credd_did_not_write_so_or_that_names_another_client_or_endpoint_opens_nothing() {
    let mut visited = Visited::new();
    visited.start();
    let url = visited.issuer_url.clone();
    let evil =
        |text: String, name: &str| text.replace(&format!("{name} = \"{url}"), &format!("{name} = \"https://evil"));
    let cases: Vec<(String, u16, &str)> = vec![
        (visited.request('0', &[""], |text| evil(text, "TokenUrl")), 409, "different token endpoints"),
        (visited.request('1', &[""], |text| evil(text, "AuthorizationUrl")), 409, "different authorization endpoints"),
        (
            visited.request('2', &[""], |text| text.replace("ClientId = \"e", "ClientId = \"x")),
            409,
            "different clients",
        ),
        (visited.request('3', &[""], |text| text.replace("/credmon/return", "/x")), 409, "different return URLs"),
        (visited.request('4', &[""], |text| text.replace("\"web\"", "\"other\"")), 409, "other is not configured"),
        (visited.request('5', &[""], |text| text.replace("alice", "../etc")), 409, "cannot be used"),
        (format!("/credmon/key/{}", "6".repeat(64)), 404, "not valid"),
        (format!("/credmon/key/{}", "A".repeat(64)), 404, "not valid"),
        ("/credmon/key/../pid".into(), 404, "not valid"),
    ];
    let open = visited.request('7', &[""], |text| text);
    let path = visited.site.credentials().join("7".repeat(64));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    for (link, status, word) in cases.into_iter().chain([(open, 409, "cannot be used")]) {
        let seen = visited.get(&link, "");
        assert_eq!(seen.status, status, "{link}: {}", seen.body);
        assert!(seen.body.contains(word), "{word}: {}", seen.body);
        assert!(seen.header("set-cookie").is_none());
    }
    assert!(!visited.site.log().contains("canary-secret"));
}

#[test]
fn a_flood_is_slowed_and_hangs_nobody_out() {
    let mut visited = Visited::new();
    let link = visited.request('a', &[""], |text| text);
    visited.start();
    let silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(("127.0.0.1", visited.port)).unwrap()).collect();
    let answers: Vec<u16> = (0..80).map(|n| visited.get(&format!("/credmon/key/{n:064x}"), "").status).collect();
    assert!(answers.contains(&429) && answers.contains(&404), "{answers:?}");
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while visited.get(&link, "").status != 303 {
        assert!(std::time::Instant::now() < end, "the real user gets in");
        std::thread::sleep(Duration::from_millis(500));
    }
    drop(silent);
}

#[test]
#[ignore = "needs Node and Chromium: `tests/run web`"]
fn in_chromium_two_approvals_become_tokens_the_key_is_used_up_and_nothing_secret_is_told() {
    let mut visited = Visited::with_issuer(20);
    let link = visited.request('a', &["", "eu"], |text| text);
    visited.start();
    let declined = visited.browser(&link, &["--deny"]);
    assert!(!visited.site.credentials().join("alice").exists(), "{declined}");
    let shots = std::env::var("EVERCRED_TEST_SHOTS").unwrap_or_default();
    let pictures = ["--shots", shots.as_str()];
    let told = visited.browser(&link, if shots.is_empty() { &[] } else { &pictures });
    assert_eq!(told["complaints"], serde_json::json!([]), "the browser has nothing to complain about");
    assert_eq!(told["scripts"], 0);
    let cookie = serde_json::json!([{"path": "/credmon/", "httpOnly": true, "sameSite": "Lax", "secure": false}]);
    assert_eq!(told["cookies"], cookie);
    for base in ["web", "web_eu"] {
        let top: Value = serde_json::from_slice(&visited.site.file("alice", &format!("{base}.top")).unwrap()).unwrap();
        assert_eq!(top["scopes"], "storage.read:/ compute.read", "byte for byte, as credd compares");
        assert_eq!(top["audience"], "https://storage.example.org");
        let meta = fs::metadata(visited.site.credentials().join(format!("alice/{base}.top"))).unwrap();
        assert_eq!((meta.mode() & 0o777, meta.nlink()), (0o600, 1));
        assert!(visited.site.file("alice", &format!("{base}.use")).is_some());
    }
    assert!(!visited.site.credentials().join("a".repeat(64)).exists(), "the request file is gone");
    assert_eq!(visited.get(&link, "").status, 404);
    // What was approved goes on by itself.
    let first = visited.site.file("alice", "web.use");
    visited.site.wait("a renewal", 60, |site| site.file("alice", "web.use") != first);
    let log = visited.site.log();
    let secret = fs::read_to_string(visited.site.home.path().join("issuer/secret")).unwrap();
    let top: Value = serde_json::from_slice(&visited.site.file("alice", "web.top").unwrap()).unwrap();
    for word in [secret.trim(), "canary-secret", top["refresh_token"].as_str().unwrap(), &"a".repeat(64), "code="] {
        assert!(!log.contains(word), "in the log: {word}");
    }
    assert!(log.contains("approved on the web page"));
}

#[test]
#[ignore = "needs Node and Chromium: `tests/run web`"]
fn an_old_link_is_refused_in_chromium_too_with_what_to_do() {
    let mut visited = Visited::new();
    visited.start();
    let told = visited.browser(&format!("/credmon/key/{}", "b".repeat(64)), &["--only"]);
    assert_eq!(told["status"], 404);
    assert!(told["text"].as_str().unwrap().contains("Submit your job again"), "{told}");
}

/// What HTCondor 25.14.1 answers, over the site's own credential directory; the pool's tests have the real one.
const STORE_CRED: &str = r#"#!/bin/sh
dir=CREDENTIALS/alice verb=$1
while [ $# -gt 0 ]; do [ "$1" != -s ] || name=$2; shift; done
case $verb in
    query-oauth)
        [ -e "$dir/$name.top" ] || { echo 'No credential is stored.'; exit 1; }
        printf 'Credential info:\nTop%sTime = %s\n' "$name" "$(stat -c %Y "$dir/$name.top")"
        [ ! -e "$dir/$name.use" ] || printf '%s = %s\n' "$name" "$(stat -c %Y "$dir/$name.use")";;
    add-oauth)
        umask 077; mkdir -p "$dir" && cat > "$dir/$name.tmp" && mv "$dir/$name.tmp" "$dir/$name.top";;
esac
"#;

#[test]
#[ignore = "needs Node and Chromium: `tests/run web`"]
fn a_device_flow_is_approved_in_chromium_on_the_issuers_own_pages_and_the_credmon_gets_tokens_from_it() {
    if Path::new("/usr/sbin/condor_store_cred").exists() {
        println!(
            "skipped: HTCondor is installed here, and would be asked; tests/pool/e2e-storer does the same with it"
        );
        return;
    }
    let mut visited = Visited::with_issuer(600);
    let home = visited.site.home.path().to_owned();
    let provider = format!(
        "[provider.wlcg]\nkind = \"oauth2\"\nissuer = \"{}\"\nclient_id = \"evercred-public\"\nca_file = \"{}\"\nscopes \
         = [\"storage.read:/\"]\nlogin_scopes = [\"openid\", \"offline_access\"]\naudience = \
         [\"https://storage.example.org\"]\naudience_style = \"resource\"\n",
        visited.issuer_url,
        home.join("issuer/ca.pem").display()
    );
    visited.site.configure_with("", "", &provider);
    visited.site.start();
    visited.site.wait("the daemon", 30, |site| site.socket().exists());
    let programs = home.join("programs");
    fs::create_dir(&programs).unwrap();
    let script = STORE_CRED.replace("CREDENTIALS", visited.site.credentials().to_str().unwrap());
    fs::write(programs.join("condor_store_cred"), script).unwrap();
    fs::set_permissions(programs.join("condor_store_cred"), fs::Permissions::from_mode(0o755)).unwrap();

    let mut login = Command::new(env!("CARGO_BIN_EXE_evercred"))
        .args(["login", "wlcg", "--json", "--config"])
        .arg(home.join("evercred.toml"))
        .env("PATH", &programs)
        .env("HOME", &home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = Vec::new();
    for line in BufReader::new(login.stdout.take().unwrap()).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if event["event"] == "approval" {
            let browser = Command::new("timeout")
                .args(["120", "node"])
                .arg(installed("web").join("device.mjs"))
                .env("ACT_URL", event["url"].as_str().unwrap())
                .env("ACT_CODE", event["code"].as_str().unwrap())
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let pages = String::from_utf8_lossy(&browser.stdout).into_owned();
            assert!(browser.status.success(), "{pages}{}", String::from_utf8_lossy(&browser.stderr));
            println!("{pages}");
        }
        told.push(event);
    }
    let events: Vec<_> = told.iter().filter_map(|event| event["event"].as_str()).filter(|e| *e != "waiting").collect();
    assert!(login.wait().unwrap().success(), "{told:?}");
    assert_eq!(events, ["found", "approval", "created", "done"]);
    let top: Value = serde_json::from_slice(&visited.site.file("alice", "wlcg.top").unwrap()).unwrap();
    let given: Value = serde_json::from_slice(&visited.site.file("alice", "wlcg.use").unwrap()).unwrap();
    assert_eq!(given["access_token"].as_str().unwrap().split('.').count(), 3, "a JWT for the resource");
    for secret in [&top["refresh_token"], &given["access_token"]] {
        let secret = secret.as_str().unwrap();
        assert!(!told.iter().any(|event| event.to_string().contains(secret)), "no token is told");
        assert!(!visited.site.log().contains(secret));
    }
}
