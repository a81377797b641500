//! What the daemon tells and to whom: the status socket, `evercred status`, `needs-renewal`, `list` and `renew`.

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use evercred::demo::issuer::{MytokenWish, Outage, Restriction, Rotation};
use serde_json::Value;

use self::site::Site;

fn evercred(site: &Site, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evercred"));
    command.args(arguments).arg("--socket").arg(site.socket()).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn started(users: &[&str]) -> Site {
    let mut site = Site::new(600, Rotation::Strict);
    for user in users {
        site.grid(user);
    }
    site.start();
    for user in users {
        site.wait(user, 20, |s| s.file(user, "grid.use").is_some());
    }
    site.wait("all renewed", 10, |s| {
        let status = text(&evercred(s, &["status", "--json"]));
        status.matches("\"fresh\"").count() == users.len()
    });
    site
}

#[test]
fn status_shows_what_is_fresh_and_json_has_a_schema_and_no_secret() {
    let site = started(&["alice", "bob"]);
    let shown = text(&evercred(&site, &["status"]));
    assert!(shown.contains("alice/grid  grid      fresh  "), "{shown}");
    let json = text(&evercred(&site, &["status", "bob/grid", "--json"]));
    let value: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value.get("schema"), Some(&Value::from(1)));
    assert_eq!(value.get("credentials").and_then(Value::as_array).map(Vec::len), Some(1));
    let top = std::fs::metadata(site.credentials().join("bob/grid.top")).unwrap().modified().unwrap();
    let stored: jiff::Timestamp = value["credentials"][0]["stored"].as_str().unwrap().parse().unwrap();
    let top = i128::try_from(top.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()).unwrap();
    assert_eq!(i128::from(stored.as_millisecond()), top, "by which the storer knows it as the one of credd");
    let token = String::from_utf8(site.file("bob", "grid.top").unwrap()).unwrap();
    assert!(!json.contains(token.split('"').nth(3).unwrap()));
    assert_eq!(evercred(&site, &["status", "nobody-here/grid"]).status.code(), Some(3));
}

#[test]
fn a_user_sees_the_own_credentials_only() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can look as somebody else");
        return;
    }
    let site = started(&["alice", "nobody"]);
    std::fs::set_permissions(site.home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // The test's own build may stand where nobody can look: a copy stands with the site.
    let program = site.home.path().join("evercred");
    std::fs::copy(env!("CARGO_BIN_EXE_evercred"), &program).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(&program).args(arguments);
        command.arg("--socket").arg(site.socket()).output().unwrap()
    };
    let shown = as_nobody(&["status"]);
    assert!(shown.status.success(), "{}", text(&shown));
    let shown = text(&shown);
    assert!(shown.contains("grid        grid      fresh") && !shown.contains("alice"), "{shown}");
    assert_eq!(as_nobody(&["status", "alice/grid"]).status.code(), Some(3));
    assert_eq!(as_nobody(&["needs-renewal", "grid"]).status.code(), Some(0));
    let refused = as_nobody(&["renew", "nobody/grid"]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(text(&refused).contains("run it as root"), "{}", text(&refused));
}

#[test]
fn needs_renewal_tells_good_dead_missing_and_unreachable_by_exit_code() {
    let site = started(&["alice"]);
    let code = |which: &str| evercred(&site, &["needs-renewal", which, "--min", "2h"]).status.code();
    assert_eq!(code("alice/grid"), Some(0));
    assert_eq!(code("alice/other"), Some(3));
    if nix::unistd::geteuid().is_root() {
        let output = evercred(&site, &["needs-renewal", "grid"]);
        assert_eq!(output.status.code(), Some(64), "{}", text(&output));
        assert!(text(&output).contains("name whose, for example alice/grid"), "{}", text(&output));
    }
    site.store("alice", "grid", b"{}");
    site.wait("the bad .top", 10, |_| code("alice/grid") == Some(2));
    let listed = text(&evercred(&site, &["list", "--expiring", "7d"]));
    assert!(listed.contains("alice/grid") && listed.contains("unusable"), "{listed}");
    drop(site);
    let gone = Site::new(600, Rotation::None);
    let output = evercred(&gone, &["needs-renewal", "grid"]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output).contains("What to do"), "{}", text(&output));
}

#[test]
fn before_everything_was_looked_at_nobody_is_told_that_there_is_none_nor_that_all_is_well() {
    let mut site = Site::new(600, Rotation::None);
    site.configure_with("metrics_listen = \"127.0.0.1:0\"\nstatus_page = true", "", "");
    site.grid("alice");
    site.credmon = Some(site.unprivileged().spawn().unwrap());
    site.wait("the endpoint", 30, |s| s.log().contains("metrics are at http://"));
    site.wait("ready", 20, |s| get(s, "/readyz").starts_with("HTTP/1.1 200 "));
    // A directory that cannot be listed: after a reload the look at everything does not end.
    let mode = |mode| std::fs::set_permissions(site.credentials(), std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o300);
    site.configure_with("metrics_listen = \"127.0.0.1:0\"\nstatus_page = true", "timeout = \"4s\"", "");
    site.signal("-HUP");
    site.wait("the reload", 20, |s| s.log().contains("configuration reloaded"));
    site.wait("the endpoint again", 20, |s| s.log().matches("metrics are at http://").count() == 2);
    let json: Value = serde_json::from_str(&text(&evercred(&site, &["status", "--json"]))).unwrap();
    assert_eq!(json.get("complete"), Some(&Value::Bool(false)), "{json}");
    let orders: [&[&str]; 4] = [
        &["needs-renewal", "alice/grid"],
        &["status", "alice/grid"],
        &["renew", "alice/grid"],
        &["revoke", "alice/grid"],
    ];
    for arguments in orders {
        let output = evercred(&site, arguments);
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains("not known yet"), "{arguments:?}: {}", text(&output));
    }
    let shown = text(&evercred(&site, &["status"]));
    assert!(shown.contains("there may be more") && !shown.contains("There are no credentials"), "{shown}");
    let page = get(&site, "/");
    assert!(page.contains("Not every credential is known yet.") && !page.contains("All is well"), "{page}");
    assert!(get(&site, "/readyz").starts_with("HTTP/1.1 503 "));
    // One who asks meanwhile is told once it is known.
    mode(0o700);
    site.signal("-HUP");
    let output = evercred(&site, &["needs-renewal", "alice/grid"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    site.wait("ready", 10, |s| get(s, "/readyz").starts_with("HTTP/1.1 200 "));
    assert_eq!(evercred(&site, &["needs-renewal", "alice/other"]).status.code(), Some(3));
}

#[test]
fn with_a_daemon_of_one_s_own_a_service_alone_names_the_own_credential() {
    let me = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
    let site = started(&["alice", &me]);
    site.store("alice", "grid", b"{}");
    site.wait("alice's bad .top", 10, |s| evercred(s, &["needs-renewal", "alice/grid"]).status.code() == Some(2));
    // Whoever tests is the daemon's own user, and sees everybody's.
    let output = evercred(&site, &["needs-renewal", "grid"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let shown = text(&evercred(&site, &["status", "grid"]));
    assert!(shown.contains(&format!("{me}/grid")) && !shown.contains("alice/grid"), "{shown}");
}

/// What the endpoint answers.
fn get(site: &Site, path: &str) -> String {
    let log = site.log();
    let address = log.rsplit("metrics are at http://").next().unwrap().split('/').next().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn an_approval_that_ends_soon_is_exit_code_1_and_told_though_every_renewal_goes_well() {
    let mut site = Site::new(600, Rotation::None);
    let ends = u64::try_from(jiff::Timestamp::now().as_second()).unwrap() + 3600;
    let restriction = Restriction { exp: Some(ends), ..Restriction::default() };
    let wish = MytokenWish { user: "alice".into(), restrictions: vec![restriction], ..MytokenWish::default() };
    let mytoken = site.issuer.control().mytoken(wish).unwrap();
    site.store("alice", "mt", mytoken.as_bytes());
    site.start();
    site.wait("a token", 20, |s| s.file("alice", "mt.use").is_some());
    let needs = |min: &str| evercred(&site, &["needs-renewal", "alice/mt", "--min", min]);
    site.wait("its end", 10, |_| needs("2h").status.code() == Some(1));
    let soon = text(&needs("2h"));
    assert!(soon.contains("alice/mt: soon, refresh token left: 59m"), "{soon}");
    assert_eq!(needs("10m").status.code(), Some(0));
    // Of bob's end nothing is known: it is no end within any time.
    site.grid("bob");
    site.wait("bob's token", 20, |s| s.file("bob", "grid.use").is_some());
    let listed = |within: &[&str]| text(&evercred(&site, &[&["list"], within].concat()));
    let names = |text: &str| [text.contains("alice/mt"), text.contains("bob/grid")];
    site.wait("both", 10, |_| names(&listed(&[])) == [true, true]);
    assert_eq!(names(&listed(&["--expiring", "7d"])), [true, false]);
    assert_eq!(names(&listed(&["--expiring", "10m"])), [false, false]);
    let shown = text(&evercred(&site, &["status"]));
    for part in ["fresh, ends soon", "alice/mt: its approval ends in 59m", "evercred login mt"] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
}

#[test]
fn an_ordered_renewal_is_not_judged_by_what_was_wrong_before_the_order() {
    let site = started(&["alice"]);
    let renew = || {
        let output = evercred(&site, &["renew", "alice/grid"]);
        (output.status.code(), text(&output))
    };
    site.issuer.control().set_outage(Outage::Unavailable);
    let (code, told) = renew();
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("not renewed, server-error"), "{told}");
    site.issuer.control().set_outage(Outage::Off);
    assert_eq!(renew(), (Some(0), "alice/grid: renewed\n".to_owned()), "{}", site.log());
}

#[test]
fn watch_tells_anew_until_the_daemon_is_gone_and_each_time_a_whole_object() {
    let mut site = started(&["alice"]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_evercred"));
    command.args(["status", "--watch", "--json", "--socket"]).arg(site.socket());
    let watching = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(3500));
    site.signal("-TERM");
    site.credmon.take().unwrap().wait().unwrap();
    let output = watching.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    let told: Vec<Value> =
        serde_json::Deserializer::from_slice(&output.stdout).into_iter().map(Result::unwrap).collect();
    assert!(told.len() >= 2, "{told:?}");
    assert!(told.iter().all(|one| one.get("schema") == Some(&Value::from(1))), "{told:?}");
    let times: Vec<_> = told.iter().filter_map(|one| one.get("now").and_then(Value::as_str)).collect();
    assert!(times.windows(2).all(|pair| pair.first() < pair.get(1)), "{times:?}");
}

/// Each exit code that a manual names is the one that comes; the others of a manual are tested where they arise.
#[test]
fn exit_codes_are_those_of_the_manuals() {
    let site = Site::new(600, Rotation::None);
    let code = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_evercred"));
        command.args(arguments).output().unwrap().status.code()
    };
    let socket = site.socket().display().to_string();
    for arguments in [
        &["status"][..],
        &["list"],
        &["needs-renewal", "grid"],
        &["renew", "alice/grid"],
        &["revoke", "alice/grid"],
        &["replicate"],
    ] {
        let all: Vec<&str> = arguments.iter().copied().chain(["--socket", socket.as_str()]).collect();
        assert_eq!(code(&all), Some(4), "{arguments:?}: no daemon");
        // Where 2 is an answer, a mistake must not be one.
        let (wrong, words) = if arguments[0] == "needs-renewal" { (64, "64 wrong arguments") } else { (2, "") };
        assert_eq!(code(&[arguments[0], "--nonsense"]), Some(wrong), "{arguments:?}");
        let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("man/evercred-{}.1", arguments[0]));
        let manual = std::fs::read_to_string(manual).unwrap();
        assert!(manual.contains("4 the daemon cannot be reached") && manual.contains(words), "{arguments:?}");
    }
    assert_eq!((code(&["explain", "revoked"]), code(&["explain", "no such words"])), (Some(0), Some(1)));
    for command in ["status", "list", "doctor"] {
        let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("man/evercred-{command}.1"));
        let manual = std::fs::read_to_string(manual).unwrap();
        assert!(manual.contains("json"), "{command}");
    }
}

#[test]
fn an_order_to_renew_is_carried_out_at_once_and_tells_why_not() {
    let site = started(&["alice"]);
    let before = site.file("alice", "grid.use");
    let renewed = evercred(&site, &["renew", "alice/grid"]);
    assert_eq!(text(&renewed), "alice/grid: renewed\n");
    assert_ne!(site.file("alice", "grid.use"), before);
    assert_eq!(evercred(&site, &["renew", "alice/other"]).status.code(), Some(3));
    site.issuer.control().set_outage(Outage::Unavailable);
    let refused = evercred(&site, &["renew", "alice/grid"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("server-error"), "{}", text(&refused));
}

#[test]
fn readers_that_never_read_and_a_thousand_at_once_do_not_delay_a_renewal() {
    let mut site = Site::new(600, Rotation::Strict);
    site.configure_with("metrics_listen = \"127.0.0.1:0\"", "", "");
    site.grid("alice");
    site.start();
    site.wait("a token", 20, |s| s.file("alice", "grid.use").is_some());
    // So many rows that the document does not fit into a socket's buffer.
    for n in 0..3000 {
        site.store(&format!("user{n}"), "grid", b"{}");
    }
    site.wait("3,000 more rows", 30, |s| {
        let status = text(&evercred(s, &["list", "--json"]));
        status.matches("\"unusable\"").count() == 3000
    });
    // None of them reads, and each holds a place for a while.
    let idle: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(site.socket()).unwrap()).collect();
    let asked = Instant::now();
    let renewed = evercred(&site, &["renew", "alice/grid"]);
    println!("renewed in {:?} beside {} readers that do not read", asked.elapsed(), idle.len());
    assert_eq!(text(&renewed), "alice/grid: renewed\n");
    let count = |outcome: &str| site.metric(&format!("evercred_status_readers_total{{outcome=\"{outcome}\"}}"));
    // They are given up after five seconds, while they still sit there.
    site.wait("those that did not read are counted", 30, |_| count("failed").is_some_and(|failed| failed >= 40.0));
    drop(idle);
    let readers: Vec<_> = (0..1000)
        .map(|_| {
            let socket = site.socket();
            std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
                let mut stream = UnixStream::connect(socket).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                let mut document = Vec::new();
                // Whole from its first byte to its last: parsing a megabyte a thousand times would measure the test.
                stream
                    .read_to_end(&mut document)
                    .is_ok_and(|_| document.starts_with(b"{\"schema\":") && document.ends_with(b"]}\n"))
            })
        })
        .collect();
    site.grid("bob");
    site.wait("a new credential beside a thousand readers", 10, |s| s.file("bob", "grid.use").is_some());
    let told = readers.into_iter().filter_map(|reader| reader.unwrap().join().ok()).filter(|told| *told).count();
    site.wait("all are counted", 20, |_| count("served").is_some_and(|served| served >= 1000.0));
    println!("{told} of 1000 readers got the document; {:?} failed", count("failed"));
    assert_eq!(told, 1000);
}
