//! A client that asks for itself (`kind = "client-credentials"`), as a Harvester site has it: the real credmon on a
//! temporary credential directory, against the embedded issuer, with a site where the token files keep their names.

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use evercred::demo::issuer::Rotation;
use serde_json::Value;

use self::site::Site;

const CLIENT: &str = "harvester-at-our-site";
const SECRET: &str = "canary-of-the-client-9c1e";

/// A site with the issuer, of which the client is the only one that it knows, and a directory for Harvester's files.
fn harvester(lifetime: u64) -> (Site, PathBuf) {
    let site = Site::new(lifetime, Rotation::None);
    site.issuer.control().register_client(CLIENT, Some(SECRET));
    secret(&site, SECRET);
    let tokens = site.home.path().join("tokens");
    fs::create_dir(&tokens).unwrap();
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o700)).unwrap();
    if nix::unistd::geteuid().is_root() {
        let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
        nix::unistd::chown(&tokens, Some(nobody.uid), Some(nobody.gid)).unwrap();
    }
    configure(&site, "", "");
    (site, tokens)
}

fn secret(site: &Site, text: &str) {
    let path = site.home.path().join("secret");
    fs::write(&path, format!("{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Further keys of the provider of the CEs, and further handles.
fn configure(site: &Site, more: &str, handles: &str) {
    let home = site.home.path().display();
    let provider = format!(
        "kind = \"client-credentials\"\nissuer = \"{}\"\nclient_id = \"{CLIENT}\"\nclient_auth = \"body\"\n\
         client_secret_file = \"{home}/secret\"\nusers = [\"harvester\"]\n",
        site.issuer.url()
    );
    let sites = format!("kind = \"directory\"\nusers = [\"harvester\"]\ndirectory = \"{home}/tokens\"\n");
    let more = if more.contains("scopes") { more.to_owned() } else { format!("scopes = [\"compute.read\"]\n{more}") };
    site.configure_with(
        &format!("state_directory = \"{home}/state\"\nreplicate_user = \"nobody\"\n"),
        "",
        &format!(
            "[provider.panda]\n{provider}audience = \"https://pandaserver.example.org\"\n\n\
             [provider.ce]\n{provider}{more}\n[provider.ce.audiences]\nce1 = \"ce1.example.org:9619\"\n{handles}\n\
             [site.panda]\n{sites}services = [\"panda\"]\nfile_name = \"panda_token\"\n\n\
             [site.ce]\n{sites}services = [\"ce\"]\nfile_name = \"{{target_md5}}\"\n\
             targets = {{ ce1 = [\"ce1.example.org:9619\"], ce2 = [\"ce2.example.org:9619\"] }}\n"
        ),
    );
}

/// Of `ce1.example.org:9619`, as `md5sum` has it.
fn md5(target: &str) -> String {
    let line = Command::new("sh").args(["-c", "printf %s \"$0\" | md5sum", target]).output().unwrap().stdout;
    String::from_utf8(line).unwrap().split(' ').next().unwrap().to_owned()
}

fn token(site: &Site, base: &str) -> Option<String> {
    let value: Value = serde_json::from_slice(&site.file("harvester", &format!("{base}.use"))?).unwrap();
    value.get("access_token").and_then(Value::as_str).map(str::to_owned)
}

fn claims(token: &str) -> Value {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

fn holds(path: &Path, token: Option<&str>) -> bool {
    fs::read_to_string(path).is_ok_and(|text| Some(text.trim_end()) == token)
}

/// How often the issuer was asked for this audience.
fn asked(site: &Site, audience: &str) -> usize {
    let asked = site.asked(CLIENT);
    asked.iter().filter(|asked| asked.parameters.contains(&("audience".to_owned(), audience.to_owned()))).count()
}

#[test]
fn harvesters_token_files_are_there_and_stay_fresh_without_anybodys_approval() {
    let (mut site, tokens) = harvester(4);
    site.start();
    let (panda, ce1) = (tokens.join("panda_token"), tokens.join(md5("ce1.example.org:9619")));
    site.wait("the first", 15, |s| holds(&panda, token(s, "panda").as_deref()));
    site.wait("that of the CE", 15, |s| holds(&ce1, token(s, "ce_ce1").as_deref()));
    let first = claims(&fs::read_to_string(&ce1).unwrap());
    assert_eq!(
        (&first["sub"], &first["aud"], &first["scope"]),
        (&CLIENT.into(), &"ce1.example.org:9619".into(), &"compute.read".into())
    );
    let received: Vec<(String, String)> =
        site.asked(CLIENT).into_iter().find(|asked| asked.parameters.len() > 3).unwrap().parameters;
    let words = [
        ("grant_type", "client_credentials"),
        ("scope", "compute.read"),
        ("audience", "ce1.example.org:9619"),
        ("client_id", CLIENT),
    ];
    assert_eq!(received, words.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let seen: Vec<String> = [&panda, &ce1].map(|path| fs::read_to_string(path).unwrap()).into();
    for (path, seen) in [&panda, &ce1].iter().zip(&seen) {
        site.wait("renewed at the site", 15, |_| fs::read_to_string(path).is_ok_and(|now| now != *seen));
    }
    // As credd leaves its own: a directory for its user alone, and files of mode 0600; and no secret in any.
    let mode = |name: &str| fs::metadata(site.credentials().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("harvester"), mode("harvester/panda.top"), mode("harvester/panda.use")), (0o700, 0o600, 0o600));
    let top = String::from_utf8(site.file("harvester", "ce_ce1.top").unwrap()).unwrap();
    assert_eq!(
        top,
        "{\"client_credentials\":{\"provider\":\"ce\",\"scopes\":\"compute.read\",\"audience\":\"ce1.example.org:9619\"}}\n"
    );
    let status =
        Command::new(env!("CARGO_BIN_EXE_evercred")).args(["status", "--socket"]).arg(site.socket()).output().unwrap();
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("ce_ce1") && status.contains("panda"), "{status}");
    for text in [&top, &status, &site.log()] {
        assert!(!text.contains(SECRET));
    }
}

/// What a program says, with single blanks; the client's secret is not in it.
fn says(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_evercred")).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains(SECRET), "{text}");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn doctor_asks_as_the_client_itself_and_status_shows_credentials_that_nobody_need_approve() {
    let (mut site, _) = harvester(600);
    let config = site.home.path().join("evercred.toml").display().to_string();
    let said = says(&["doctor", "--config", &config]);
    assert!(said.contains("panda: no token yet for harvester"), "{said}");
    assert_eq!(said.matches("it gives our client a token of its own").count(), 2, "{said}");
    assert_eq!(asked(&site, "ce1.example.org:9619"), 1, "with the audience of a handle");
    secret(&site, "another");
    let said = says(&["doctor", "--config", &config]);
    assert_eq!(
        said.matches("it refuses our client").count(),
        3,
        "both, and that of the grid, which is not known: {said}"
    );
    secret(&site, SECRET);
    site.start();
    site.wait("both", 15, |s| token(s, "panda").is_some() && token(s, "ce_ce1").is_some());
    let socket = site.socket().display().to_string();
    let said = says(&["status", "--socket", &socket]);
    for words in ["harvester/ce_ce1 ce fresh", "harvester/panda panda fresh"] {
        assert!(said.contains(words), "{said}");
    }
    let status: Value = serde_json::from_str(&says(&["status", "--json", "--socket", &socket])).unwrap();
    let kinds: Vec<_> = status["providers"].as_array().unwrap().iter().map(|provider| &provider["kind"]).collect();
    assert_eq!(kinds, ["client-credentials", "oauth2", "mytoken", "client-credentials"]);
    assert_eq!(status["credentials"][0]["refresh_token_expires"], Value::Null, "there is none to renew");
    let said = says(&["doctor", "--config", &config]);
    assert!(said.contains("ce: 1 credentials, all with a living token"), "{said}");
    let said = says(&["check", "--config", &config]);
    assert!(said.contains("ce client-credentials ce, of harvester"), "{said}");
}

#[test]
fn a_swept_or_deleted_account_is_back_at_once_and_its_files_stay_at_the_site() {
    let (mut site, tokens) = harvester(600);
    site.start();
    let ce1 = tokens.join(md5("ce1.example.org:9619"));
    site.wait("the first", 15, |s| token(s, "panda").is_some() && holds(&ce1, token(s, "ce_ce1").as_deref()));
    let before = fs::read_to_string(&ce1).unwrap();
    // As credd sweeps: file by file, and it only logs that the directory is not empty in the end.
    let home = site.credentials().join("harvester");
    for entry in fs::read_dir(&home).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fs::remove_dir(&home).ok();
    site.wait("both again", 15, |s| token(s, "panda").is_some() && token(s, "ce_ce1").is_some_and(|now| now != before));
    site.wait("the new one at the site", 15, |s| holds(&ce1, token(s, "ce_ce1").as_deref()));
    // As `condor_store_cred delete-oauth` does.
    let before = token(&site, "panda");
    for name in ["panda.top", "panda.use"] {
        fs::remove_file(site.credentials().join("harvester").join(name)).unwrap();
    }
    site.wait("the deleted one", 15, |s| token(s, "panda").is_some_and(|now| Some(now) != before));
    assert!(tokens.join("panda_token").exists() && !site.log().contains("forgotten"), "{}", site.log());
}

#[test]
fn without_root_the_accounts_get_their_tokens_as_well() {
    let (mut site, tokens) = harvester(600);
    site.credmon = Some(site.unprivileged().spawn().unwrap());
    let ce1 = tokens.join(md5("ce1.example.org:9619"));
    site.wait("all", 15, |s| token(s, "panda").is_some() && holds(&ce1, token(s, "ce_ce1").as_deref()));
}

#[test]
fn who_is_not_named_gets_nothing_and_what_an_account_stores_is_neither_spent_nor_overwritten() {
    let (mut site, _) = harvester(600);
    let theirs = "{\"refresh_token\":\"canary-of-a-user-77\",\"scopes\":\"admin\",\"audience\":\"https://elsewhere\"}";
    for (user, base) in [("harvester", "panda"), ("alice", "panda"), ("harvester", "ce_ce3"), ("harvester", "ce")] {
        site.store(user, base, theirs.as_bytes());
    }
    // A stand-in that somebody made by himself is worth no more.
    site.store("bob", "ce_ce1", b"{\"client_credentials\":{\"provider\":\"ce\"}}");
    site.store("bob", "grid", b"{\"client_credentials\":{\"provider\":\"grid\"}}");
    site.start();
    let told = |site: &Site, user: &str, base: &str, kind: &str| {
        let (service, handle) = base.split_once('_').unwrap_or((base, ""));
        let words =
            [format!("user={user} "), format!("service={service} "), format!("handle={handle}"), kind.to_owned()];
        site.log().lines().any(|line| words.iter().all(|word| line.contains(word)))
    };
    for (user, base) in [("alice", "panda"), ("bob", "ce_ce1"), ("harvester", "ce_ce3"), ("harvester", "ce")] {
        site.wait(base, 15, |s| told(s, user, base, "account-not-named"));
        assert!(site.file(user, &format!("{base}.use")).is_none(), "{user}/{base}");
    }
    site.wait("bob's", 15, |s| told(s, "bob", "grid", "top-no-token"));
    site.wait("the named one", 15, |s| token(s, "panda").is_some());
    assert_eq!(site.file("harvester", "panda.top").unwrap(), theirs.as_bytes());
    assert_eq!(claims(&token(&site, "panda").unwrap())["aud"], "https://pandaserver.example.org");
    assert_eq!(asked(&site, "https://elsewhere"), 0);
    // Nor is it given back there: it is no refresh token of that client's.
    let mut revoke = Command::new(env!("CARGO_BIN_EXE_evercred"));
    let output = revoke.args(["revoke", "harvester/panda", "--socket"]).arg(site.socket()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("not revoked, top-no-token: nothing is sent to the issuer"), "{text}");
    let all = site.issuer.control().records(None);
    assert!(all.iter().all(|record| record.user == CLIENT), "nothing else was asked for: {all:?}");
    assert!(!site.log().contains("canary-of-a-user-77"));
}

#[test]
fn another_secret_wish_or_handle_counts_after_a_reload_and_what_did_not_change_is_not_asked_for_again() {
    let (mut site, tokens) = harvester(600);
    secret(&site, "of-before-it-was-changed-there");
    site.start();
    for provider in ["panda", "ce"] {
        let word = format!("provider={provider} ");
        site.wait("the refusal", 15, |s| s.log().lines().any(|l| l.contains(&word) && l.contains("client-refused")));
    }
    assert!(token(&site, "panda").is_none() && token(&site, "ce_ce1").is_none());
    secret(&site, SECRET);
    site.signal("-HUP");
    site.wait("recovery", 15, |s| token(s, "panda").is_some() && token(s, "ce_ce1").is_some());
    let old = token(&site, "ce_ce1");
    let before = site.file("harvester", "panda.use");
    configure(&site, "scopes = [\"compute.read\", \"compute.create\"]\n", "ce2 = \"ce2.example.org:9619\"\n");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    site.signal("-HUP");
    site.wait("the new handle", 15, |s| token(s, "ce_ce2").is_some());
    site.wait("the new wish", 15, |s| token(s, "ce_ce1") != old);
    let wider = claims(&token(&site, "ce_ce1").unwrap());
    assert_eq!(wider["scope"], "compute.read compute.create");
    let ce2 = tokens.join(md5("ce2.example.org:9619"));
    site.wait("at the site", 15, |s| holds(&ce2, token(s, "ce_ce2").as_deref()));
    assert_eq!(site.file("harvester", "panda.use"), before, "what did not change is not asked for again");
}
