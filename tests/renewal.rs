//! The real credmon (both processes) on a temporary credential directory, against the embedded issuer.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    fs,
    io::{ErrorKind, Read},
    net::TcpListener,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use evercred::demo::issuer::{Fault, MytokenWish, Restriction, Rotation, Standing};

use self::site::Site;

fn lives(path: &Path) -> bool {
    let Ok(text) = fs::read_to_string(path) else { return false };
    let value: serde_json::Value =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("torn: {e}: {}", path.display()));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    value.get("expires_at").and_then(serde_json::Value::as_u64).unwrap() > now
}

#[test]
fn one_dead_one_hanging_and_one_corrupt_among_a_thousand_delay_nobody() {
    let mut site = Site::new(30, Rotation::Strict);
    for n in 0..997 {
        site.grid(&format!("user{n:03}"));
    }
    let dead = site.grid("dead");
    assert!(site.issuer.control().revoke(&dead));
    site.grid("hanging");
    site.issuer.control().set_fault(Some("hanging"), Some(Fault::Hang));
    site.store("corrupt", "grid", b"{\"refresh_token\": \xff\xfe}");
    site.start();
    let uses: Vec<PathBuf> =
        (0..997).map(|n| site.credentials().join(format!("user{n:03}")).join("grid.use")).collect();
    site.wait("997 first tokens", 60, |_| uses.iter().all(|path| path.exists()));
    // Three half-lives: whoever is late once is seen.
    let end = Instant::now() + Duration::from_secs(45);
    let mut looks = 0;
    while Instant::now() < end {
        let late = uses.iter().filter(|path| !lives(path)).count();
        assert_eq!(late, 0, "all 997 live at every look");
        looks += 1;
        std::thread::sleep(Duration::from_millis(500));
    }
    let renewed = (0..997).filter(|n| site.exchanges(&format!("user{n:03}")) >= 3).count();
    println!("{renewed} of 997 renewed at least twice, none late in {looks} looks");
    assert_eq!(renewed, 997);
    let log = site.log();
    for (user, kind) in [("dead", "revoked"), ("hanging", "timeout"), ("corrupt", "top-not-utf8")] {
        assert!(log.lines().any(|l| l.contains(&format!("user={user} ")) && l.contains(kind)), "{user}: {kind}");
        assert!(site.file(user, "grid.use").is_none());
    }
}

#[test]
fn every_bad_answer_has_its_kind_leaves_the_files_and_keeps_the_refresh_token() {
    let faults: Vec<(Fault, &str, bool)> = vec![
        (Fault::Hang, "timeout", false),
        (Fault::Redirect, "redirect", false),
        (Fault::Html, "bad-answer", false),
        (Fault::Huge, "answer-too-large", false),
        (Fault::Bulky(900 << 10), "answer-too-large", true),
        // Read to its end, and too large for a frame with what is around it.
        (Fault::Bulky((1 << 20) - 300), "answer-too-large", true),
        (Fault::HalfJson, "bad-answer", false),
        (Fault::ServerError, "server-error", false),
        (Fault::InvalidClient, "client-refused", false),
        (Fault::PastExpiry, "bad-expiry", true),
        (Fault::WrongIssuer, "wrong-issuer", true),
        (Fault::ScopeShortfall, "scope-shortfall", true),
    ];
    let one = |fault, kind: &str, rotates: bool| {
        let mut site = Site::new(600, Rotation::Strict);
        let token = site.grid("bad");
        site.issuer.control().set_fault(Some("bad"), Some(fault));
        site.start();
        let lines = |site: &Site| site.log().lines().filter(|line| line.contains(&format!("kind={kind} "))).count();
        site.wait(kind, 15, |site| lines(site) > 0);
        // The second try, 5 s later, is not told.
        std::thread::sleep(Duration::from_secs(8));
        assert_eq!(lines(&site), 1, "{kind}: one line\n{}", site.log());
        assert!(site.file("bad", "grid.use").is_none(), "{kind}: nothing is published");
        let top = String::from_utf8(site.file("bad", "grid.top").unwrap()).unwrap();
        assert_eq!(top.contains(&token), !rotates, "{kind}: the .top holds the refresh token that works");
        assert!(!site.log().contains(&token), "{kind}: no secret in the log");
        assert!(!site.log().contains("courier is down"), "{kind}: nobody else is harmed");
    };
    std::thread::scope(|scope| {
        for (fault, kind, rotates) in faults {
            scope.spawn(move || one(fault, kind, rotates));
        }
    });
}

/// The `.use` of a user's grid.
fn used(site: &Site, user: &str) -> serde_json::Value {
    serde_json::from_slice(&site.file(user, "grid.use").unwrap()).unwrap()
}

#[test]
fn without_an_expiry_in_the_answer_that_of_the_token_counts_and_of_an_opaque_one_the_configured_lifetime() {
    let mut site = Site::new(600, Rotation::None);
    site.configure("default_lifetime = \"7m\"");
    for (user, fault) in [("noexp", Some(Fault::NoExpiry)), ("opaque", Some(Fault::Opaque)), ("usual", None)] {
        site.grid(user);
        site.issuer.control().set_fault(Some(user), fault);
    }
    site.start();
    let number = |user: &str, name: &str| used(&site, user)[name].as_u64().unwrap();
    for user in ["noexp", "opaque", "usual"] {
        site.wait(user, 15, |s| s.file(user, "grid.use").is_some());
        assert_eq!(number(user, "expires_at"), number(user, "issued_at") + number(user, "expires_in"), "{user}");
    }
    assert_eq!(number("opaque", "expires_in"), 420);
    for user in ["noexp", "usual"] {
        // The clock is read in whole seconds when the answer comes, and again when it is written.
        let exp = site.record(user).issued[0].exp;
        assert!(number(user, "expires_at").abs_diff(exp) <= 2, "{user}: {} for a token to {exp}", used(&site, user));
    }
}

#[test]
fn less_audience_than_was_asked_for_is_refused_or_published_and_flagged_as_configured() {
    let mut site = Site::new(600, Rotation::Strict);
    let lax = format!(
        "[provider.lax]\nkind = \"oauth2\"\nissuer = \"{}\"\nclient_id = \"test\"\naudience = [\"https://a.example\"]\n\
         shortfall = \"flag\"",
        site.issuer.url()
    );
    site.configure_with("", "audience = [\"https://a.example\"]", &lax);
    let refused = site.grid("strict");
    for user in ["strict", "lax"] {
        site.issuer.control().set_fault(Some(user), Some(Fault::AudienceShortfall));
    }
    let token = site.refresh_token("lax");
    site.store("lax", "lax", token.as_bytes());
    site.start();
    site.wait("lax", 15, |s| s.file("lax", "lax.use").is_some());
    let told = |site: &Site, user: &str, words: &str| {
        let log = site.log();
        log.lines().filter(|l| l.contains(&format!("user={user} ")) && l.contains(words)).count()
    };
    site.wait("the word about strict", 15, |s| told(s, "strict", "kind=audience-shortfall ") == 1);
    assert!(site.file("strict", "grid.use").is_none());
    let kept = String::from_utf8(site.file("strict", "grid.top").unwrap()).unwrap();
    assert!(!kept.contains(&refused), "the refresh token that came along is kept");
    site.wait("the word about lax", 15, |s| told(s, "lax", "published with less than was asked for") == 1);
    assert_eq!(told(&site, "lax", "kind=audience-shortfall"), 1, "{}", site.log());
    // Slowly: only time or somebody else can change it.
    assert_eq!((site.asked("strict").len(), site.asked("lax").len()), (1, 1));
}

#[test]
fn the_issuer_receives_scopes_and_audiences_as_configured_and_what_a_top_says_comes_first() {
    let mut site = Site::new(600, Rotation::None);
    let styled = ["audience", "repeated", "resource"].map(|style| {
        format!(
            "[provider.{style}]\nkind = \"oauth2\"\nissuer = \"{}\"\nclient_id = \"test\"\naudience_style = \"{style}\"\n\
             scopes = [\"storage.read:/\", \"offline_access\"]\naudience = [\"https://a\", \"https://b\"]\n\n",
            site.issuer.url()
        )
    });
    site.configure_with("", "", &styled.concat());
    for style in ["audience", "repeated", "resource"] {
        site.store(style, style, site.refresh_token(style).as_bytes());
    }
    let own = format!(
        "{{\"scopes\":\"storage.read:/\",\"audience\":\"https://c, https://d\",\"refresh_token\":\"{}\"}}",
        site.refresh_token("own")
    );
    site.store("own", "repeated", own.as_bytes());
    let restriction = Restriction { scope: Some("x y offline_access".into()), ..Restriction::default() };
    let wish = MytokenWish { user: "my".into(), restrictions: vec![restriction], ..MytokenWish::default() };
    let mytoken = site.issuer.control().mytoken(wish).unwrap();
    let top =
        format!("{{\"scopes\":[\"x\",\"y\"],\"audience\":[\"https://a\",\"https://b\"],\"mytoken\":\"{mytoken}\"}}");
    site.store("my", "mt", top.as_bytes());
    site.start();
    let (client, scope) = (("client_id", "test"), ("scope", "storage.read:/ offline_access"));
    let grant = ("grant_type", "refresh_token");
    let url = site.issuer.url();
    for (user, base, parameters) in [
        ("audience", "audience", vec![grant, scope, ("audience", "https://a https://b"), client]),
        ("repeated", "repeated", vec![grant, scope, ("audience", "https://a"), ("audience", "https://b"), client]),
        ("resource", "resource", vec![grant, scope, ("resource", "https://a"), ("resource", "https://b"), client]),
        (
            "own",
            "repeated",
            vec![grant, ("scope", "storage.read:/"), ("audience", "https://c"), ("audience", "https://d"), client],
        ),
        (
            "my",
            "mt",
            vec![
                ("grant_type", "mytoken"),
                ("oidc_issuer", url),
                ("scope", "x y"),
                ("audience", "https://a https://b"),
            ],
        ),
    ] {
        site.wait(user, 15, |s| s.file(user, &format!("{base}.use")).is_some());
        let asked = site.asked(user);
        let received: Vec<(&str, &str)> =
            asked[0].parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!((received, asked.len()), (parameters, 1), "{user}");
    }
}

#[test]
fn a_mytoken_becomes_a_use_file_and_foreign_services_are_left_alone() {
    let mut site = Site::new(600, Rotation::None);
    let wish = MytokenWish { user: "alice".into(), ..MytokenWish::default() };
    let mytoken = site.issuer.control().mytoken(wish).unwrap();
    site.store("alice", "mt_eu", mytoken.as_bytes());
    site.store("alice", "other", b"not ours");
    site.start();
    site.wait("alice/mt_eu.use", 15, |s| s.file("alice", "mt_eu.use").is_some());
    let text = String::from_utf8(site.file("alice", "mt_eu.use").unwrap()).unwrap();
    assert!(text.starts_with("{\"access_token\":\"") && text.ends_with("}\n") && text.lines().count() == 1);
    assert!(site.file("alice", "other.use").is_none());
    let mode = fs::metadata(site.credentials().join("alice/mt_eu.use")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_subject_token_is_exchanged_for_a_refresh_token_of_our_client_which_is_renewed_from_then_on() {
    let mut site = Site::new(4, Rotation::Strict);
    let exchange = format!(
        "[provider.ex]\nkind = \"token-exchange\"\nissuer = \"{}\"\nclient_id = \"robot\"\nlogin_client_id = \
         \"humans\"\nscopes = [\"storage.read:/\"]",
        site.issuer.url()
    );
    site.configure_with("", "", &exchange);
    site.grid("alice");
    site.start();
    site.wait("alice/grid.use", 15, |s| s.file("alice", "grid.use").is_some());
    let published: serde_json::Value = serde_json::from_slice(&site.file("alice", "grid.use").unwrap()).unwrap();
    let subject = published.get("access_token").unwrap().as_str().unwrap().to_owned();
    let top = format!("{{\"scopes\": \"storage.read:/\", \"subject_token\": \"{subject}\"}}\n");
    site.store("alice", "ex", top.as_bytes());
    site.store("bob", "grid", top.as_bytes());
    site.wait("alice/ex.use", 15, |s| s.file("alice", "ex.use").is_some());
    let kept = String::from_utf8(site.file("alice", "ex.top").unwrap()).unwrap();
    assert!(kept.starts_with("{\"scopes\": \"storage.read:/\", \"refresh_token\":\"ert-"), "{}", kept.len());
    assert!(!kept.contains(&subject) && !site.log().contains(&subject));
    let first = site.file("alice", "ex.use").unwrap();
    site.wait("a renewal by the refresh token", 15, |s| s.file("alice", "ex.use").is_some_and(|now| now != first));
    site.wait("rotated again", 15, |s| s.file("alice", "ex.top").is_some_and(|now| now != kept.as_bytes()));
    // Where nothing is exchanged, a subject token is no credential.
    site.wait("bob", 15, |s| s.log().lines().any(|l| l.contains("user=bob ") && l.contains("top-no-token")));
    assert!(site.file("bob", "grid.use").is_none());
}

#[test]
fn a_replaced_top_and_a_new_user_are_noticed_without_a_signal() {
    let mut site = Site::new(600, Rotation::Strict);
    site.grid("alice");
    site.start();
    site.wait("the first", 15, |s| s.file("alice", "grid.use").is_some());
    let before = site.file("alice", "grid.use");
    site.grid("alice");
    site.wait("the replaced .top", 5, |s| s.file("alice", "grid.use") != before);
    site.grid("bob");
    site.wait("the new user", 5, |s| s.file("bob", "grid.use").is_some());
}

#[test]
fn it_stops_within_two_seconds_removes_its_pid_file_and_exits_0_on_each_signal() {
    for signal in ["-TERM", "-INT", "-QUIT"] {
        let mut site = Site::new(600, Rotation::None);
        site.grid("hanging");
        site.issuer.control().set_fault(Some("hanging"), Some(Fault::Hang));
        site.start();
        site.wait("CREDMON_COMPLETE", 15, |s| s.credentials().join("CREDMON_COMPLETE").exists());
        let pid = fs::read_to_string(site.credentials().join("pid")).unwrap();
        assert_eq!(pid.trim(), site.credmon.as_ref().unwrap().id().to_string());
        site.wait("the exchange", 15, |s| s.issuer.control().stats().in_flight == 1);
        let asked = Instant::now();
        site.signal(signal);
        let status = site.credmon.take().unwrap().wait().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(2), "{signal}: {:?}", asked.elapsed());
        assert_eq!(status.code(), Some(0), "{signal}");
        assert!(!site.credentials().join("pid").exists());
        let told = site.log().lines().filter(|l| l.contains("stopped before the issuer answered")).count();
        assert_eq!(told, 1, "the issuer may have rotated: {}", site.log());
    }
}

/// The courier that told last that it is ready.
fn courier(site: &Site) -> Option<String> {
    let log = site.log();
    let line = log.lines().rfind(|l| l.contains("courier is ready"))?;
    Some(line.split("pid=").nth(1).unwrap().split(' ').next().unwrap().to_owned())
}

fn kill(pid: &str) {
    assert!(Command::new("kill").args(["-KILL", pid]).status().unwrap().success());
}

#[test]
fn a_courier_that_dies_during_an_exchange_is_replaced_the_exchange_repeated_and_nothing_lost() {
    let mut site = Site::new(600, Rotation::Grace(Duration::from_secs(600)));
    let control = site.issuer.control();
    // Alice's refresh token is spent, and the answer on its way, when the courier dies; Bob's is not spent yet.
    control.set_fault(Some("alice"), Some(Fault::LateAnswer(60_000)));
    control.set_fault(Some("bob"), Some(Fault::Hang));
    control.set_fault(Some("carol"), Some(Fault::LoseAnswer));
    site.configure("timeout = \"60s\"");
    let tokens = ["alice", "bob", "carol"].map(|user| site.grid(user));
    site.start();
    site.wait("exchanges under way", 15, |s| s.exchanges("alice") == 1 && control.stats().in_flight == 2);
    site.wait("carol's answer is lost", 15, |s| s.log().contains("kind=network "));
    let first = courier(&site).unwrap();
    for user in ["alice", "bob", "carol"] {
        control.set_fault(Some(user), None);
    }
    kill(&first);
    for user in ["alice", "bob", "carol"] {
        site.wait(user, 30, |s| s.file(user, "grid.use").is_some());
    }
    assert_ne!(courier(&site).unwrap(), first);
    assert!(site.credmon.as_mut().unwrap().try_wait().unwrap().is_none(), "the keeper went on");
    for (user, exchanges, reuse) in [("alice", 2, 1), ("bob", 1, 0), ("carol", 2, 1)] {
        let record = site.record(user);
        assert_eq!((record.exchanges, record.reuse, record.refused), (exchanges, reuse, 0), "{user}");
        assert_eq!(site.asked(user).len(), 2, "{user} was asked for once more, and no more often");
        let top: serde_json::Value = serde_json::from_slice(&site.file(user, "grid.top").unwrap()).unwrap();
        assert_eq!(control.standing(top["refresh_token"].as_str().unwrap()), Standing::Current, "{user}");
    }
    for user in ["alice", "bob"] {
        let told =
            site.log().lines().filter(|l| l.contains(&format!("user={user} ")) && l.contains("courier-lost")).count();
        assert_eq!(told, 1, "{user}: one word about it\n{}", site.log());
    }
    assert!(tokens.iter().all(|token| !site.log().contains(token)));
}

#[test]
fn a_reload_asks_for_nothing_that_was_refused_for_good() {
    let mut site = Site::new(600, Rotation::None);
    site.grid("good");
    let dead = site.grid("dead");
    assert!(site.issuer.control().revoke(&dead));
    let mut command = site.command();
    site.credmon = Some(command.args(["--confirm-after", "1s"]).spawn().unwrap());
    site.wait("the end of it", 20, |s| s.log().contains("parked: refused twice"));
    site.wait("good's", 20, |s| s.file("good", "grid.use").is_some());
    site.configure_with("full_scan = \"9m\"", "", "");
    site.signal("-HUP");
    site.wait("the reload", 20, |s| s.log().contains("configuration reloaded"));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((site.asked("dead").len(), site.asked("good").len()), (2, 1));
    let status = Command::new(env!("CARGO_BIN_EXE_evercred"))
        .args(["status", "--json", "--socket"])
        .arg(site.socket())
        .output()
        .unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let of = |n: usize, what: &str| status["credentials"][n][what].clone();
    assert_eq!((of(0, "user"), of(0, "state")), ("dead".into(), "parked".into()));
    assert_eq!((of(1, "user"), of(1, "state"), of(1, "generation")), ("good".into(), "fresh".into(), 1.into()));
    // A provider that is another one now may say something else.
    site.configure_with("full_scan = \"9m\"", "timeout = \"4s\"", "");
    std::thread::sleep(Duration::from_millis(1100));
    site.signal("-HUP");
    site.wait("another question", 20, |s| s.asked("dead").len() > 2);
}

#[test]
fn a_reload_while_one_issuer_hangs_keeps_nobody_elses_token_back() {
    let mut site = Site::new(600, Rotation::None);
    let control = site.issuer.control();
    site.grid("alice");
    control.set_fault(Some("alice"), Some(Fault::Hang));
    site.configure("timeout = \"20s\"");
    site.start();
    site.wait("the exchange that hangs", 15, |_| control.stats().in_flight == 1);
    site.configure("timeout = \"21s\"");
    site.signal("-HUP");
    site.wait("the word", 15, |s| s.log().contains("configuration changed"));
    std::thread::sleep(Duration::from_millis(1500));
    site.mytoken(MytokenWish { user: "bob".into(), ..MytokenWish::default() });
    site.wait("bob's, of another provider", 10, |s| s.file("bob", "mt.use").is_some());
    assert!(!site.log().contains("configuration reloaded"), "it waits for alice's answer");
    control.set_fault(Some("alice"), None);
    site.wait("the reload", 60, |s| s.log().contains("configuration reloaded"));
    site.wait("alice's", 30, |s| s.file("alice", "grid.use").is_some());
}

#[test]
fn a_courier_that_lives_and_answers_nothing_is_replaced() {
    let mut site = Site::new(600, Rotation::None);
    site.configure_with("", "timeout = \"1s\"", "timeout = \"1s\"");
    site.start();
    site.wait("the courier", 15, |s| courier(s).is_some());
    let stuck = courier(&site).unwrap();
    assert!(Command::new("kill").args(["-STOP", &stuck]).status().unwrap().success());
    site.grid("alice");
    site.wait("alice", 60, |s| s.file("alice", "grid.use").is_some());
    assert_ne!(courier(&site).unwrap(), stuck);
    assert!(site.log().contains("the courier answers nothing"));
    assert!(!std::path::Path::new(&format!("/proc/{stuck}")).exists(), "the one before is gone");
}

#[test]
fn a_courier_that_dies_again_and_again_is_restarted_more_and_more_rarely_and_what_waited_is_done_in_the_end() {
    let mut site = Site::new(600, Rotation::Strict);
    site.start();
    site.wait("the courier", 15, |s| courier(s).is_some());
    let mut pauses = Vec::new();
    for n in 0..6_u32 {
        let dying = courier(&site).unwrap();
        if n == 4 {
            site.grid("alice");
            site.issuer.control().set_fault(Some("alice"), Some(Fault::Hang));
            site.wait("alice's exchange", 15, |s| s.issuer.control().stats().in_flight == 1);
        }
        let died = Instant::now();
        kill(&dying);
        site.issuer.control().set_fault(Some("alice"), None);
        site.wait("another courier", 30, |s| courier(s).unwrap() != dying);
        let (pause, least) = (died.elapsed(), Duration::from_millis(100 << n));
        assert!(pause >= least, "death {n}: another one after {pause:?}, not {least:?}");
        pauses.push(pause);
    }
    println!("restarted after {pauses:?}");
    site.wait("alice", 30, |s| s.file("alice", "grid.use").is_some());
    assert_eq!((site.exchanges("alice"), site.record("alice").refused), (1, 0));
}

#[test]
fn a_reload_takes_a_good_configuration_and_keeps_the_old_one_over_a_broken_one() {
    let mut site = Site::new(600, Rotation::None);
    site.start();
    site.wait("the start", 15, |s| s.log().contains("courier is ready"));
    site.configure("scoops = [\"x\"]");
    site.signal("-HUP");
    site.wait("the word", 15, |s| s.log().contains("keeping the old settings"));
    assert!(site.log().contains("scoops"));
    site.configure("services = [\"grid\", \"second\"]");
    std::thread::sleep(Duration::from_millis(1100));
    site.signal("-HUP");
    site.wait("the reload", 15, |s| s.log().contains("configuration reloaded"));
    let token = site.refresh_token("alice");
    site.store("alice", "second", token.as_bytes());
    site.wait("the new service", 15, |s| s.file("alice", "second.use").is_some());
}

#[test]
fn a_reload_names_the_keys_that_take_effect_at_the_next_start_and_takes_the_others() {
    let mut site = Site::new(600, Rotation::None);
    site.start();
    site.wait("the start", 15, |s| s.log().contains("courier is ready"));
    let other = site.home.path().join("other");
    let moved = |site: &Site| {
        let path = site.home.path().join("evercred.toml");
        let text = fs::read_to_string(&path).unwrap();
        let own = format!("credential_directory = \"{}\"", site.credentials().display());
        fs::write(&path, text.replace(&own, &format!("credential_directory = \"{}\"", other.display()))).unwrap();
    };
    site.configure_with("log_format = \"json\"\nfull_scan = \"1s\"", "", "");
    moved(&site);
    site.signal("-HUP");
    site.wait("the reload", 15, |s| s.log().contains("configuration reloaded"));
    let log = site.log();
    let warning = log.lines().find(|line| line.contains("takes effect at the next start")).unwrap();
    assert!(warning.contains("credential_directory log_format"), "{warning}");
    assert!(!warning.contains("full_scan") && !warning.contains("status_socket"), "{warning}");
    // The scan of every second is there: the time of this file is that of the last one.
    let complete = || fs::metadata(site.credentials().join("CREDMON_COMPLETE")).unwrap().modified().unwrap();
    let before = complete();
    site.wait("a scan", 15, |_| complete() > before);
    let before = complete();
    site.wait("another scan", 15, |_| complete() > before);
    site.configure_with("log_format = \"text\"", "", "");
    std::thread::sleep(Duration::from_millis(1100));
    site.signal("-HUP");
    site.wait("the reload back", 15, |s| s.log().matches("configuration reloaded").count() == 2);
    assert_eq!(site.log().matches("takes effect at the next start").count(), 1, "{}", site.log());
}

#[test]
fn reloads_that_add_and_remove_providers_send_no_refresh_token_to_another_ones_issuer() {
    let mut site = Site::new(600, Rotation::None);
    // First of all providers by its name, and of a service that nobody has: nobody has anything to ask there.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    other.set_nonblocking(true).unwrap();
    let url = format!("http://{}", other.local_addr().unwrap());
    let section = format!(
        "[provider.aaa]\nkind = \"oauth2\"\nissuer = \"{url}\"\ntoken_endpoint = \"{url}/token\"\n\
         client_id = \"test\"\nservices = [\"nobodys\"]\n"
    );
    site.start();
    site.wait("the start", 15, |s| s.log().contains("courier is ready"));
    let token = format!("{{\"refresh_token\":\"{}\"}}", site.refresh_token("alice"));
    let (done, end) = (AtomicBool::new(false), Instant::now() + Duration::from_secs(90));
    let users: Vec<String> = (0..50).map(|n| format!("u{n}")).collect();
    std::thread::scope(|scope| {
        // Looks are on their way whenever the settings change.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) && Instant::now() < end {
                for user in &users {
                    site.store(user, "grid", token.as_bytes());
                }
            }
        });
        for round in 1..=6 {
            site.configure_with("", "", if round % 2 == 1 { &section } else { "" });
            std::thread::sleep(Duration::from_millis(1100));
            site.signal("-HUP");
            site.wait("the reload", 15, |s| s.log().matches("configuration reloaded").count() == round);
        }
        done.store(true, Ordering::Relaxed);
    });
    site.wait("everybody", 60, |s| users.iter().all(|user| s.file(user, "grid.use").is_some()));
    assert_eq!(other.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "{}", site.log());
    assert!(!site.log().contains("not sent"), "{}", site.log());
}

#[test]
fn an_unsafe_directory_a_second_instance_and_bad_configuration_end_with_a_clear_word() {
    let mut site = Site::new(600, Rotation::None);
    let refused = |site: &Site, code: i32, word: &str| {
        let mut child = site.command().stderr(Stdio::piped()).spawn().unwrap();
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{text}");
        assert!(text.contains(word), "{word}: {text}");
    };
    fs::set_permissions(site.credentials(), fs::Permissions::from_mode(0o755)).unwrap();
    refused(&site, 1, "others");
    fs::set_permissions(site.credentials(), fs::Permissions::from_mode(0o700)).unwrap();
    site.start();
    site.wait("the start", 15, |s| s.credentials().join("CREDMON_COMPLETE").exists());
    refused(&site, 1, "another evercred");
    site.configure("scoops = 1");
    refused(&site, 78, "scopes");
    fs::rename(site.credentials(), site.home.path().join("gone")).unwrap();
    site.configure("");
    refused(&site, 1, "credentials");
}

#[test]
fn a_credential_directory_replaced_under_it_ends_it_with_a_clear_word_and_the_next_start_takes_the_new_one() {
    let mut site = Site::new(600, Rotation::None);
    site.start();
    site.wait("the start", 15, |s| s.credentials().join("CREDMON_COMPLETE").exists());
    fs::rename(site.credentials(), site.home.path().join("away")).unwrap();
    fs::DirBuilder::new().mode(0o700).create(site.credentials()).unwrap();
    let mut child = site.credmon.take().unwrap();
    let end = Instant::now() + Duration::from_secs(15);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "it still runs\n{}", site.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(site.log().contains("another directory than the one that was opened"), "{}", site.log());
    site.grid("alice");
    site.start();
    site.wait("a token in the new directory", 15, |s| s.file("alice", "grid.use").is_some());
}

#[test]
fn once_ends_with_a_clear_word_when_only_an_issuer_that_is_down_is_left() {
    let site = Site::new(600, Rotation::None);
    // Nobody listens there.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    site.configure_with(
        "",
        "",
        &format!(
            "[provider.gone]\nkind = \"oauth2\"\nissuer = \"http://{gone}\"\n\
             token_endpoint = \"http://{gone}/token\"\nclient_id = \"test\"\nmax_in_flight = 2\n"
        ),
    );
    site.grid("alice");
    for n in 0..50 {
        site.store(&format!("u{n}"), "gone", b"{\"refresh_token\":\"t\"}");
    }
    let mut child = site.command().arg("--once").stderr(Stdio::piped()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(120);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            child.kill().unwrap();
            panic!("it still runs\n{}", site.log());
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("credentials are left") && text.contains("the issuer of gone"), "{text}");
    assert!(site.file("alice", "grid.use").is_some(), "the others are renewed");
}
