//! mytokens through the real credmon: every end that one can come to, rotation, rate limit, answers that get lost.
//! What the server's words mean is in the tables of `src/issuer/mytoken.rs`; here is what becomes of it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test: it may stop at the first thing that is wrong"
)]

mod site;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use evercred::demo::issuer::{Fault, MytokenRotation, MytokenWish, Restriction, Rotation, Standing};
use serde_json::Value;

use self::site::Site;

/// A day in a test: two refusals this far apart park a credential.
const CONFIRM: Duration = Duration::from_secs(2);

fn wish(user: &str) -> MytokenWish {
    MytokenWish { user: user.into(), ..MytokenWish::default() }
}

fn rotating(user: &str) -> MytokenWish {
    let rotation = MytokenRotation { on_at: true, lifetime: 600, auto_revoke: true, ..MytokenRotation::default() };
    MytokenWish { rotation: Some(rotation), ..wish(user) }
}

fn start(site: &mut Site) {
    let mut command = site.command();
    command.arg("--confirm-after").arg(format!("{}s", CONFIRM.as_secs()));
    site.credmon = Some(command.spawn().unwrap());
}

fn claims(jwt: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

/// A member of a user's `.top` or `.use`, which must be whole.
fn member(site: &Site, user: &str, file: &str, name: &str) -> Option<String> {
    let value: Value = serde_json::from_slice(&site.file(user, file)?).unwrap();
    Some(value[name].as_str().unwrap().to_owned())
}

fn standing(site: &Site, user: &str) -> Standing {
    site.issuer.control().standing(&member(site, user, "mt.top", "mytoken").unwrap())
}

/// Lines of the log about this user with this in them.
fn lines(site: &Site, user: &str, word: &str) -> usize {
    let log = site.log();
    log.lines().filter(|line| line.contains(&format!("user={user} ")) && line.contains(word)).count()
}

/// Every file of these users as it is: inode, time, mode, bytes.
fn picture(site: &Site, users: &[&str]) -> BTreeMap<PathBuf, (u64, SystemTime, u32, Vec<u8>)> {
    let directories = users.iter().map(|user| site.credentials().join(user));
    let files = directories.flat_map(|directory| fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()));
    let look = |path: PathBuf| {
        let meta = fs::metadata(&path).unwrap();
        let seen = (meta.ino(), meta.modified().unwrap(), meta.mode(), fs::read(&path).unwrap());
        (path, seen)
    };
    files.map(look).collect()
}

/// The states of all credentials, by user.
fn states(site: &Site) -> BTreeMap<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evercred"));
    let output = command.args(["status", "--json", "--socket"]).arg(site.socket()).output().unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    status["credentials"].as_array().unwrap().iter().map(|one| (text(&one["user"]), text(&one["state"]))).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    /// Asked twice, and then no more.
    Parked,
    /// Asked once; the next time is minutes away.
    Slow,
    /// Asked again and again.
    Retried,
}

/// A mytoken of each kind that brings no access token, as it was before the start; its kind of error, and its course.
fn doomed(site: &Site) -> Vec<(&'static str, &'static str, Course)> {
    let control = site.issuer.control();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let restricted = |user, one| MytokenWish { restrictions: vec![one], ..wish(user) };
    site.mytoken(MytokenWish { lifetime: Some(1), ..wish("expired") });
    let revoked = site.mytoken(wish("revoked"));
    assert!(control.revoke(&revoked));
    let signed = control.mytoken(wish("invalid")).unwrap();
    let (text, signature) = signed.rsplit_once('.').unwrap();
    let other: String = signature.chars().rev().collect();
    site.store("invalid", "mt", format!("{{\"mytoken\":\"{text}.{other}\"}}").as_bytes());
    site.mytoken(restricted("used-up", Restriction { usages_at: Some(0), ..Restriction::default() }));
    site.mytoken(restricted(
        "elsewhere",
        Restriction { hosts: Some(vec!["192.0.2.1".into()]), ..Restriction::default() },
    ));
    site.mytoken(MytokenWish { capabilities: vec!["tokeninfo".into()], ..wish("incapable") });
    site.mytoken(restricted("early", Restriction { nbf: Some(now + 3600), ..Restriction::default() }));
    site.mytoken(wish("behind"));
    control.set_fault(Some("behind"), Some(Fault::ProviderRefuses));
    site.mytoken(wish("down"));
    control.set_fault(Some("down"), Some(Fault::ProviderDown));
    vec![
        ("expired", "expired", Course::Parked),
        ("revoked", "revoked", Course::Parked),
        ("invalid", "invalid", Course::Parked),
        ("used-up", "restricted", Course::Slow),
        ("elsewhere", "restricted", Course::Slow),
        ("incapable", "restricted", Course::Slow),
        ("early", "not-yet-valid", Course::Slow),
        ("behind", "reauth-needed", Course::Slow),
        ("down", "server-error", Course::Retried),
    ]
}

#[test]
fn every_end_of_a_mytoken_has_its_kind_and_its_course_and_leaves_every_file_as_it_was() {
    let mut site = Site::new(600, Rotation::None);
    let doomed = doomed(&site);
    let users: Vec<&str> = doomed.iter().map(|one| one.0).collect();
    for user in &users {
        // What their jobs have now. It is over, but a missing one would hold them.
        let path = site.credentials().join(user).join("mt.use");
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        fs::write(path, "{\"access_token\":\"old\",\"expires_at\":2000,\"issued_at\":1000}\n").unwrap();
    }
    let before = picture(&site, &users);
    // "expired" lives a second.
    std::thread::sleep(Duration::from_millis(2100));
    start(&mut site);
    for (user, kind, course) in &doomed {
        site.wait(&format!("{user}: {kind}"), 30, |site| lines(site, user, &format!("kind={kind} ")) > 0);
        if *course == Course::Parked {
            site.wait(&format!("{user} is parked"), 30, |site| lines(site, user, "parked: refused twice") == 1);
        }
    }
    site.wait("another try where the provider is down", 30, |site| site.asked("down").len() > 1);
    // Time for those that should not be asked again.
    std::thread::sleep(2 * CONFIRM);
    let states = states(&site);
    for (user, kind, course) in &doomed {
        let expected = if *course == Course::Parked { "parked" } else { "retrying" };
        assert!(*course == Course::Retried || states[*user] == expected, "{user}: {states:?}");
        let asked: Vec<u64> = site.asked(user).iter().map(|asked| asked.at_ms).collect();
        match course {
            // The issuer cannot tell whose an unreadable one is.
            Course::Parked if *user == "invalid" => assert!(asked.is_empty()),
            Course::Parked => {
                assert_eq!(asked.len(), 2, "{user}");
                assert!(asked[1] - asked[0] >= 2000, "{user}: {asked:?}");
            }
            Course::Slow => assert_eq!(asked.len(), 1, "{user}"),
            Course::Retried => assert!(asked.len() > 1, "{user}"),
        }
        assert_eq!(lines(&site, user, &format!("kind={kind} ")), 1 + usize::from(*course == Course::Parked), "{user}");
    }
    assert!(picture(&site, &users) == before, "every file is as it was");
    // A new approval ends it, and so does a provider that is back.
    for user in ["expired", "revoked", "invalid", "used-up", "early"] {
        site.mytoken(wish(user));
        site.wait(&format!("{user} again"), 20, |site| member(site, user, "mt.use", "access_token").unwrap() != "old");
    }
    site.issuer.control().set_fault(Some("down"), None);
    site.wait("down again", 60, |site| member(site, "down", "mt.use", "access_token").unwrap() != "old");
}

#[test]
fn a_mytoken_of_another_server_is_sent_to_nobody() {
    let (mut site, other) = (Site::new(600, Rotation::None), Site::new(600, Rotation::None));
    let stray = other.issuer.control().mytoken(wish("alice")).unwrap();
    let stored = format!("{{\"mytoken\":\"{stray}\"}}");
    site.store("alice", "mt", stored.as_bytes());
    // Neither as what it is, nor as a refresh token of an OAuth2 issuer.
    site.store("alice", "grid", stored.as_bytes());
    site.mytoken(wish("bob"));
    start(&mut site);
    site.wait("bob's", 20, |site| site.file("bob", "mt.use").is_some());
    site.wait("both refused", 20, |site| lines(site, "alice", "kind=top-elsewhere") == 2);
    let stats = site.issuer.control().stats();
    assert_eq!((stats.exchanges, stats.refused), (1, 0), "bob's alone");
    assert_eq!(site.file("alice", "mt.top").unwrap(), stored.as_bytes());
    assert!(site.file("alice", "mt.use").is_none() && site.file("alice", "grid.use").is_none());
    assert_eq!(states(&site)["alice"], "parked");
    // One of the right server ends it.
    site.mytoken(wish("alice"));
    site.wait("alice's", 20, |site| site.file("alice", "mt.use").is_some());
}

#[test]
fn the_rate_limit_in_plain_text_is_waited_out_by_all_of_that_server_and_by_nobody_else() {
    const WAIT: u64 = 10;
    let mut site = Site::new(600, Rotation::None);
    let control = site.issuer.control();
    control.set_fault(Some("alice"), Some(Fault::RateLimited(WAIT)));
    site.mytoken(wish("alice"));
    start(&mut site);
    site.wait("429", 20, |site| lines(site, "alice", "kind=rate-limited ") == 1);
    control.set_fault(Some("alice"), None);
    site.mytoken(wish("bob"));
    site.grid("carol");
    site.wait("carol, of another issuer", 20, |site| site.file("carol", "grid.use").is_some());
    for user in ["alice", "bob"] {
        site.wait(user, 40, |site| site.file(user, "mt.use").is_some());
    }
    let (alice, bob) = (site.asked("alice"), site.asked("bob"));
    assert_eq!((alice.len(), bob.len()), (2, 1));
    for (who, asked) in [("alice", &alice[1]), ("bob", &bob[0])] {
        let waited = asked.at_ms - alice[0].at_ms;
        assert!(waited >= WAIT * 1000, "{who} asked {waited} ms after the server said to wait {WAIT} s");
    }
    assert!(site.asked("carol")[0].at_ms < bob[0].at_ms, "carol did not wait");
}

#[test]
fn a_rotated_mytoken_is_in_its_top_before_its_access_token_is_in_the_use() {
    let mut site = Site::new(2, Rotation::None);
    let users = ["ann", "ben", "cat", "dan"];
    for user in users {
        let token = site.issuer.control().mytoken(rotating(user)).unwrap();
        site.store(user, "mt", format!("{{\"note\":\"kept\",\"mytoken\":\"{token}\"}}\n").as_bytes());
    }
    start(&mut site);
    let end = Instant::now() + Duration::from_secs(30);
    let mut looks = 0;
    while !users.iter().all(|user| site.exchanges(user) > 4) {
        assert!(Instant::now() < end, "not renewed\n{}", site.log());
        for user in users {
            let Some(token) = member(&site, user, "mt.use", "access_token") else { continue };
            // Read after the `.use`: what came with it must be there already.
            let number = claims(&member(&site, user, "mt.top", "mytoken").unwrap())["seq_no"].as_u64().unwrap();
            let jti = claims(&token)["jti"].clone();
            let answer = site.record(user).issued.iter().position(|issued| issued.jti == jti).unwrap();
            assert!(number >= u64::try_from(answer).unwrap() + 2, "{user}: answer {answer}, and mytoken {number}");
            looks += 1;
        }
    }
    assert!(looks > 100, "{looks}");
    site.signal("-TERM");
    assert!(site.credmon.take().unwrap().wait().unwrap().success());
    for user in users {
        assert_eq!(standing(&site, user), Standing::Current, "{user}");
        assert_eq!(member(&site, user, "mt.top", "note").as_deref(), Some("kept"));
        let record = site.record(user);
        assert_eq!((record.reuse, record.refused, record.rotations), (0, 0, record.exchanges), "{user}");
    }
}

#[test]
fn where_the_rotated_mytoken_cannot_be_stored_the_access_token_waits_for_it() {
    let mut site = Site::new(600, Rotation::None);
    site.mytoken(rotating("ann"));
    let mut command = site.unprivileged();
    let directory = site.credentials().join("ann");
    let mode = |bits| fs::set_permissions(&directory, fs::Permissions::from_mode(bits)).unwrap();
    mode(0o500);
    site.credmon = Some(command.spawn().unwrap());
    site.wait("the disk refuses", 20, |site| lines(site, "ann", "kind=publish-failed ") == 1);
    assert!(site.file("ann", "mt.use").is_none());
    assert!(matches!(standing(&site, "ann"), Standing::Superseded { .. }));
    mode(0o700);
    site.wait("both files", 40, |site| site.file("ann", "mt.use").is_some());
    assert_eq!((standing(&site, "ann"), site.exchanges("ann")), (Standing::Current, 1));
}

#[test]
fn an_answer_that_is_of_no_use_still_brings_the_rotated_mytoken() {
    let mut site = Site::new(600, Rotation::None);
    site.mytoken(rotating("ann"));
    site.issuer.control().set_fault(Some("ann"), Some(Fault::PastExpiry));
    start(&mut site);
    site.wait("the bad answer", 20, |site| lines(site, "ann", "kind=bad-expiry ") == 1);
    site.issuer.control().set_fault(Some("ann"), None);
    site.wait("ann", 30, |site| site.file("ann", "mt.use").is_some());
    assert_eq!((standing(&site, "ann"), site.record("ann").reuse), (Standing::Current, 0));
}

#[test]
fn a_lost_answer_costs_nothing_unless_it_held_a_rotated_mytoken_and_then_it_is_told_and_nothing_touched() {
    let mut site = Site::new(600, Rotation::None);
    let control = site.issuer.control();
    site.mytoken(wish("plain"));
    let token = site.mytoken(rotating("rotating"));
    for user in ["plain", "rotating"] {
        control.set_fault(Some(user), Some(Fault::LoseAnswer));
    }
    start(&mut site);
    for user in ["plain", "rotating"] {
        site.wait(user, 20, |site| lines(site, user, "kind=network ") == 1);
        control.set_fault(Some(user), None);
    }
    site.wait("plain", 30, |site| site.file("plain", "mt.use").is_some());
    site.wait("the loss is told", 30, |site| lines(site, "rotating", "parked: refused twice") == 1);
    assert_eq!(site.file("rotating", "mt.top").unwrap(), format!("{{\"mytoken\":\"{token}\"}}").as_bytes());
    assert!(!site.log().contains(&token));
}
