//! The real credmon against npm `oidc-provider` over TLS (`tests/oidc`): somebody else's idea of OAuth2.
//!
//! Ignored by a plain `cargo test`, because it needs Node and installs npm packages; `tests/run oidc` runs it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test: it may stop at the first thing that is wrong"
)]

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Write as _},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, Instant},
};

use base64::Engine as _;
use serde_json::Value;
use tempfile::TempDir;

const STORAGE: &str = "https://storage.example.org";
const SCOPE: &str = "openid offline_access storage.read:/";

/// Where `tests/install.sh` put the issuer.
static INSTALLED: LazyLock<PathBuf> = LazyLock::new(|| {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/install.sh");
    let output = Command::new(script).arg("oidc").stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
});

/// An issuer, a credential directory, and the credmon while it runs.
struct Site {
    home: TempDir,
    url: String,
    /// What the issuer says it did, by digest.
    told: Arc<Mutex<Vec<String>>>,
    issuer: Child,
    credmon: Option<Child>,
}

impl Site {
    fn new(lifetime: u32, rotation: &str) -> Self {
        let home = TempDir::with_prefix("evercred-test-").unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::DirBuilder::new().mode(0o700).create(home.path().join("credentials")).unwrap();
        let mut issuer = Command::new("node")
            .arg(INSTALLED.join("issuer.mjs"))
            .arg("--dir")
            .arg(home.path().join("issuer"))
            .args(["--lifetime", &lifetime.to_string(), "--rotation", rotation, "--for", "600"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(issuer.stdout.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let url = first.strip_prefix("ready ").unwrap().to_owned();
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| tell.lock().unwrap().push(line)));
        Self { home, url, told, issuer, credmon: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The person's approval, and whatever else the client asks the issuer for.
    fn client(&self, command: &str, arguments: &[&str], input: &str) -> Value {
        let mut child = Command::new("node")
            .arg(INSTALLED.join("client.mjs"))
            .arg(command)
            .arg("--dir")
            .arg(self.path("issuer"))
            .args(["--issuer", &self.url])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{command} {arguments:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// A refresh token, as a device flow gives it.
    fn approved(&self, client: &str, user: &str) -> String {
        let wish = ["--client", client, "--user", user, "--scope", SCOPE, "--resource", STORAGE];
        self.client("approve", &wish, "").get("refresh_token").unwrap().as_str().unwrap().to_owned()
    }

    /// One provider for each (name, client, further lines); a client without secret is a public one.
    fn configure(&self, providers: &[(&str, &str, &str)]) {
        let mut text = format!(
            "[daemon]\ncredential_directory = \"{}\"\ncourier_user = \"nobody\"\n",
            self.path("credentials").display()
        );
        for (name, client, more) in providers {
            write!(
                text,
                "\n[provider.{name}]\nkind = \"oauth2\"\nissuer = \"{}\"\nclient_id = \"{client}\"\n\
                 audience_style = \"resource\"\n{more}\n",
                self.url
            )
            .unwrap();
            if !more.contains("ca_file") {
                writeln!(text, "ca_file = \"{}\"", self.path("issuer/ca.pem").display()).unwrap();
            }
        }
        fs::write(self.path("evercred.toml"), text).unwrap();
    }

    /// `client_secret_file` with the issuer's secret.
    fn secret(&self) -> String {
        format!("client_secret_file = \"{}\"\n", self.path("issuer/secret").display())
    }

    fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_condor_credmon_evercred"));
        command.arg("--config").arg(self.path("evercred.toml")).arg("--log").arg(self.path("log"));
        self.credmon = Some(command.stdin(Stdio::null()).spawn().unwrap());
    }

    fn hangup(&self) {
        let pid = self.credmon.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    }

    /// As credd stores.
    fn store(&self, user: &str, service: &str, refresh_token: &str) {
        let directory = self.path("credentials").join(user);
        if !directory.exists() {
            fs::DirBuilder::new().mode(0o700).create(&directory).unwrap();
        }
        let temporary = directory.join(format!("{service}.top.tmp"));
        fs::write(&temporary, serde_json::json!({ "refresh_token": refresh_token }).to_string()).unwrap();
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&temporary, directory.join(format!("{service}.top"))).unwrap();
    }

    fn member(&self, user: &str, file: &str, name: &str) -> Option<String> {
        let text = fs::read(self.path("credentials").join(user).join(file)).ok()?;
        let value: Value = serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{user}/{file} is torn: {e}"));
        Some(value.get(name)?.as_str()?.to_owned())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn logged(&self, words: &[&str]) -> usize {
        self.log().lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }

    fn wait(&self, what: &str, seconds: u64, mut done: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(seconds);
        while !done(self) {
            let told = self.told.lock().unwrap().join("\n");
            assert!(Instant::now() < end, "not in {seconds} s: {what}\n{}\n{told}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for child in self.credmon.iter_mut().chain([&mut self.issuer]) {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

/// Three clients (secret in the header, in the body, none) through discovery over TLS, three tokens each.
fn three_tokens_for_each_kind_of_client(rotation: &str) {
    let mut site = Site::new(12, rotation);
    let audience = format!("scopes = [\"storage.read:/\"]\naudience = [\"{STORAGE}\"]\n");
    let (basic, post) =
        (audience.clone() + &site.secret(), audience.clone() + &site.secret() + "client_auth = \"body\"");
    site.configure(&[
        ("basic", "evercred", &basic),
        ("post", "evercred-post", &post),
        ("public", "evercred-public", &audience),
    ]);
    let services = [("basic", "evercred"), ("post", "evercred-post"), ("public", "evercred-public")];
    let first = services.map(|(service, client)| {
        let token = site.approved(client, "alice");
        site.store("alice", service, &token);
        token
    });
    site.start();
    let mut access: [HashSet<String>; 3] = Default::default();
    let mut refresh: [HashSet<String>; 3] = Default::default();
    site.wait("three tokens of each", 90, |site| {
        for (n, (service, _)) in services.iter().enumerate() {
            access[n].extend(site.member("alice", &format!("{service}.use"), "access_token"));
            refresh[n].extend(site.member("alice", &format!("{service}.top"), "refresh_token"));
        }
        access.iter().all(|seen| seen.len() >= 3)
    });
    for token in access.iter().flatten() {
        let claims = claims(token);
        assert_eq!(claims["iss"], site.url.as_str());
        assert_eq!(claims["aud"], STORAGE);
        assert_eq!((&claims["sub"], &claims["scope"]), (&"alice".into(), &"storage.read:/".into()));
    }
    let told = site.told.lock().unwrap().join("\n");
    assert!(!told.contains("refused"), "{told}");
    for (seen, first) in refresh.iter().zip(&first) {
        assert!(seen.contains(first));
        let rotated = seen.len() > 1;
        assert_eq!(rotated, rotation == "on", "{} refresh tokens", seen.len());
    }
    let log = site.log();
    for secret in access.iter().chain(&refresh).flatten() {
        assert!(!log.contains(secret.as_str()), "a token in the log");
    }
    assert!(!log.contains(fs::read_to_string(site.path("issuer/secret")).unwrap().trim()), "the secret in the log");
}

#[test]
#[ignore = "needs Node and npm packages: `tests/run oidc`"]
fn every_kind_of_client_is_renewed_over_tls_with_the_wanted_audience_where_the_issuer_rotates() {
    three_tokens_for_each_kind_of_client("on");
}

#[test]
#[ignore = "needs Node and npm packages: `tests/run oidc`"]
fn every_kind_of_client_is_renewed_over_tls_with_the_wanted_audience_where_the_issuer_does_not_rotate() {
    three_tokens_for_each_kind_of_client("off");
}

#[test]
#[ignore = "needs Node and npm packages: `tests/run oidc`"]
fn a_revoked_refresh_token_is_refused_twice_and_parked_while_the_others_go_on() {
    let mut site = Site::new(20, "on");
    let more = format!("audience = [\"{STORAGE}\"]\n") + &site.secret();
    site.configure(&[("grid", "evercred", &more)]);
    for user in ["alice", "bob"] {
        let token = site.approved("evercred", user);
        site.store(user, "grid", &token);
    }
    site.start();
    site.wait("both first tokens", 30, |site| {
        ["alice", "bob"].iter().all(|user| site.member(user, "grid.use", "access_token").is_some())
    });
    let token = site.member("bob", "grid.top", "refresh_token").unwrap();
    site.client("revoke", &[], &token);
    let kept = site.member("bob", "grid.use", "access_token");
    site.wait("parked", 120, |site| site.logged(&["parked", "user=bob", "kind=revoked"]) == 1);
    assert_eq!(site.member("bob", "grid.use", "access_token"), kept, "the last token stays");
    let mut seen = HashSet::new();
    site.wait("alice goes on", 60, |site| {
        seen.extend(site.member("alice", "grid.use", "access_token"));
        seen.len() >= 3
    });
    let refused = site.told.lock().unwrap().iter().filter(|line| line.contains("error=invalid_grant")).count();
    assert_eq!(refused, 2, "once, and once to be sure");
    let token = site.approved("evercred", "bob");
    site.store("bob", "grid", &token);
    site.wait("bob's new approval", 30, |site| site.member("bob", "grid.use", "access_token") != kept);
}

#[test]
#[ignore = "needs Node and npm packages: `tests/run oidc`"]
fn a_wrong_client_secret_parks_the_provider_with_one_alarm_until_it_is_right() {
    let mut site = Site::new(600, "on");
    let wrong = site.path("wrong");
    fs::write(&wrong, "not-the-secret\n").unwrap();
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600)).unwrap();
    let more = format!("audience = [\"{STORAGE}\"]\nclient_secret_file = \"{}\"\n", wrong.display());
    site.configure(&[("grid", "evercred", &more)]);
    let users: Vec<String> = (0..20).map(|n| format!("user{n}")).collect();
    for user in &users {
        let token = site.approved("evercred", user);
        site.store(user, "grid", &token);
    }
    site.start();
    let alarm = ["issuer is down or refuses us", "provider=grid", "kind=client-refused"];
    site.wait("the alarm", 30, |site| site.logged(&alarm) > 0);
    std::thread::sleep(Duration::from_secs(20));
    assert_eq!(site.logged(&alarm), 1, "one alarm\n{}", site.log());
    let asked = site.told.lock().unwrap().iter().filter(|line| line.contains("error=invalid_client")).count();
    assert!((1..=25).contains(&asked), "the issuer is not hammered: {asked}");
    assert!(!site.log().contains("parked: refused twice"), "no user is to blame");
    fs::copy(site.path("issuer/secret"), &wrong).unwrap();
    site.hangup();
    site.wait("everybody's token", 60, |site| {
        users.iter().all(|user| site.member(user, "grid.use", "access_token").is_some())
    });
}

#[test]
#[ignore = "needs Node and npm packages: `tests/run oidc`"]
fn a_certificate_of_an_unknown_authority_and_a_resource_that_is_not_there_are_told_and_nothing_is_spent() {
    let mut site = Site::new(600, "on");
    let nowhere = site.secret() + "audience = [\"https://nowhere.example.org\"]";
    let system = site.secret() + "ca_file = \"/etc/ssl/certs/ca-certificates.crt\"";
    site.configure(&[("nowhere", "evercred", &nowhere), ("stranger", "evercred", &system)]);
    let token = site.approved("evercred", "alice");
    site.store("alice", "nowhere", &token);
    site.store("bob", "stranger", &token);
    site.start();
    site.wait("the resource", 30, |site| site.logged(&["user=alice", "kind=request-refused", "invalid_target"]) > 0);
    site.wait("the certificate", 30, |site| site.logged(&["user=bob", "kind=tls"]) > 0);
    for (user, service) in [("alice", "nowhere"), ("bob", "stranger")] {
        assert!(site.member(user, &format!("{service}.use"), "access_token").is_none());
        assert_eq!(site.member(user, &format!("{service}.top"), "refresh_token").as_ref(), Some(&token));
    }
    assert!(!site.log().contains(&token));
}

#[test]
#[ignore = "needs Node and npm packages: `tests/run oidc`"]
fn an_opaque_access_token_of_a_grant_without_resource_is_published() {
    let mut site = Site::new(600, "on");
    site.configure(&[("grid", "evercred", &site.secret())]);
    let answer = site.client("approve", &["--user", "alice"], "");
    site.store("alice", "grid", answer.get("refresh_token").unwrap().as_str().unwrap());
    site.start();
    site.wait("the token", 30, |site| site.member("alice", "grid.use", "access_token").is_some());
    let token = site.member("alice", "grid.use", "access_token").unwrap();
    assert!(!token.contains('.'), "opaque");
    assert_eq!(site.client("introspect", &[], &token).get("active"), Some(&Value::Bool(true)), "and good");
}

#[test]
#[ignore = "needs Node and npm packages: `tests/run oidc`"]
fn a_client_that_asks_for_itself_keeps_its_accounts_supplied_and_one_that_may_not_is_told() {
    let mut site = Site::new(12, "on");
    let own =
        format!("scopes = [\"storage.read:/\"]\naudience = [\"{STORAGE}\"]\nusers = [\"robot\"]\n") + &site.secret();
    let post = own.clone() + "client_auth = \"body\"";
    // This one is registered for other grants.
    site.configure(&[("own", "evercred-own", &own), ("post", "evercred-own-post", &post), ("not", "evercred", &own)]);
    let text = fs::read_to_string(site.path("evercred.toml")).unwrap();
    fs::write(site.path("evercred.toml"), text.replace("\"oauth2\"", "\"client-credentials\"")).unwrap();
    site.start();
    let mut access: [HashSet<String>; 2] = Default::default();
    site.wait("three tokens of each", 90, |site| {
        for (seen, service) in access.iter_mut().zip(["own", "post"]) {
            seen.extend(site.member("robot", &format!("{service}.use"), "access_token"));
        }
        access.iter().all(|seen| seen.len() >= 3)
    });
    for (tokens, client) in access.iter().zip(["evercred-own", "evercred-own-post"]) {
        for token in tokens {
            let claims = claims(token);
            assert_eq!((&claims["iss"], &claims["aud"]), (&site.url.as_str().into(), &STORAGE.into()));
            assert_eq!((&claims["sub"], &claims["scope"]), (&client.into(), &"storage.read:/".into()));
        }
    }
    // RFC 6749 §5.2 has unauthorized_client for it; this one calls it otherwise.
    let refusal = ["provider=not", "kind=request-refused", "grant type is not allowed for this client"];
    site.wait("the refusal", 30, |site| site.logged(&refusal) == 1);
    assert!(site.member("robot", "not.use", "access_token").is_none());
    assert!(
        !site.log().contains(fs::read_to_string(site.path("issuer/secret")).unwrap().trim()),
        "the secret in the log"
    );
}
