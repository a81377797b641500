//! Replication over Globus Compute: our client against a double of the service whose tasks are run by the real worker
//! code (newest release, and one from before JSON results); the double itself is exercised by the real SDK. Skipped,
//! and said so, without `target/test-env/globus-*` (`tests/run globus` makes them).

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use evercred::{
    core::secret::KeyText,
    demo::issuer::Rotation,
    error::Kind,
    replicate::{
        envelope::{Envelope, KeyRing, Verdict},
        pack,
    },
};
use serde_json::{Value, json};

use self::site::{
    Site,
    far::{Double, current, evercred, holds, renew, token},
    of_stage,
};

const ENDPOINT: &str = "9f1a3c52-0000-4000-8000-000000000002";

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn python(version: &str) -> Option<PathBuf> {
    let home = here("target/test-env").join(format!("globus-{version}"));
    let needs = format!("no globus-compute-endpoint {version}");
    of_stage("globus", &needs, || home.join("ready").exists().then(|| home.join("bin/python")))
}

/// The service, with the worker of that release.
fn double(version: &str, port: u16) -> Option<Double> {
    let mut command = Command::new(python(version)?);
    Some(Double::start(command.arg(here("tests/globus/double.py")).arg(port.to_string())))
}

/// A credmon with one Globus site; the "endpoint" writes below `far`.
fn started(double: &Double, more: &str) -> (Site, PathBuf) {
    let mut site = Site::new(3600, Rotation::Strict);
    site.configure("");
    let home = site.home.path().display().to_string();
    let far = site.home.path().join("far");
    fs::create_dir(&far).unwrap();
    let key = site.home.path().join("key");
    assert!(Command::new(env!("CARGO_BIN_EXE_evercred")).arg("keygen").arg(&key).output().unwrap().status.success());
    fs::write(site.home.path().join("secret"), "s\n").unwrap();
    fs::set_permissions(site.home.path().join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let path = site.home.path().join("evercred.toml");
    let daemon = format!("[daemon]\nstate_directory = \"{home}/state\"\nreplicate_user = \"nobody\"\n");
    let port = double.port;
    let text = fs::read_to_string(&path).unwrap().replacen("[daemon]\n", &daemon, 1)
        + &format!(
            "[site.far]\nkind = \"globus-compute\"\nservices = [\"grid\"]\nfile_name = \"panda_token\"\n\
             endpoint_id = \"{ENDPOINT}\"\nclient_id = \"9f1a3c52-0000-4000-8000-000000000001\"\n\
             client_secret_file = \"{home}/secret\"\nkey_files = [\"{home}/key\"]\nremote_key_files = [\"{home}/key\"]\n\
             directory = \"{home}/far\"\napi = \"http://127.0.0.1:{port}\"\nauth = \"http://127.0.0.1:{port}\"\n{more}\n"
        );
    fs::write(&path, text).unwrap();
    site.grid("alice");
    site.start();
    (site, far.join("panda_token"))
}

#[test]
fn the_real_worker_of_the_newest_release_writes_the_token_and_confirms_it() {
    let Some(double) = double("4.19.0", 0) else { return };
    let (site, file) = started(&double, "");
    site.wait("written by the worker", 90, |s| holds(&file, &token(s)));
    site.wait("confirmed", 30, current);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    renew(&site);
    site.wait("the next one", 90, |s| holds(&file, &token(s)));
    assert_eq!(double.asked("/v3/functions"), 1, "registered once");
    let names: Vec<_> = fs::read_dir(file.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "the token and its sequence: {names:?}");
    assert!(!site.log().contains(&token(&site)));
}

#[test]
fn the_real_worker_from_before_json_results_does_so_too() {
    let Some(double) = double("3.5.0", 0) else { return };
    let (site, file) = started(&double, "");
    site.wait("written by the worker", 90, |s| holds(&file, &token(s)));
    site.wait("confirmed", 30, current);
}

#[test]
fn a_pickled_pair_of_texts_for_the_oldest_runs_in_the_real_worker_as_well() {
    let Some(double) = double("4.19.0", 0) else { return };
    let (site, file) = started(&double, "legacy_endpoint = true");
    site.wait("written by the worker", 90, |s| holds(&file, &token(s)));
    site.wait("confirmed", 30, current);
}

#[test]
fn the_real_sdk_runs_its_own_task_on_the_double() {
    let Some(double) = double("4.19.0", 5000) else { return };
    let output = Command::new(python("4.19.0").unwrap()).arg(here("tests/globus/sdk.py")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(double.asked("/submit") >= 1);
}

#[test]
fn rate_limits_outages_and_a_revoked_token_delay_and_lose_nothing() {
    let Some(double) = double("4.19.0", 0) else { return };
    double.control(
        &json!({"fail": [["/v3/functions", 429, 1, 1], ["/submit", 503, 1, 1], ["/batch_status", 503, 1, 2]]}),
    );
    let (site, file) = started(&double, "");
    site.wait("through it all", 120, |s| holds(&file, &token(s)));
    assert!(site.log().contains("kind=rate-limited"), "{}", site.log());
    site.wait("confirmed", 60, current);
    let tokens = double.asked("oauth2/token");
    double.control(&json!({"revoke": true}));
    renew(&site);
    site.wait("with a new token of the client's", 90, |s| holds(&file, &token(s)));
    assert!(double.asked("oauth2/token") > tokens);
    double.control(&json!({"deny": true}));
    renew(&site);
    site.wait("denied, and told", 60, |s| s.log().contains("kind=site-denied"));
    assert!(!current(&site));
}

#[test]
fn a_question_for_tasks_that_fails_is_told_and_the_services_wish_is_kept() {
    let Some(double) = double("4.19.0", 0) else { return };
    double.control(&json!({"fail": [["/batch_status", 429, 20, 1]]}));
    // Long enough for several questions, were they asked.
    let (site, file) = started(&double, "timeout = \"9s\"");
    let told =
        |s: &Site| s.log().lines().any(|l| l.contains("kind=site-pending") && l.contains("HTTP 429: as ordered"));
    site.wait("told with its reason", 60, told);
    assert_eq!(double.asked("/batch_status"), 1, "not again before it wishes");
    site.wait("asked again, and written", 120, |s| holds(&file, &token(s)));
    site.wait("confirmed", 60, current);
    assert_eq!(double.asked("/submit"), 1);
}

#[test]
fn a_function_is_given_up_only_if_the_service_knows_it_no_more_and_another_service_has_its_own() {
    let Some(one) = double("4.19.0", 0) else { return };
    let (mut site, file) = started(&one, "");
    site.wait("written", 90, |s| holds(&file, &token(s)));
    site.wait("confirmed", 30, current);
    let again = |site: &Site| drop(evercred(site, &["replicate", "--now", "--wait", "5s"]));
    // Somebody has to allow it, find its endpoint or let us in: all the same, the function is the one that it was.
    let cases = [
        (json!({"deny": true}), "allowed_functions name our function"),
        (json!({"deny": false, "unknown": [ENDPOINT]}), "does not know the endpoint"),
        (json!({"unknown": [], "fail": [["/submit", 403, 0, 9]]}), "HTTP 403: as ordered"),
    ];
    for (control, words) in cases {
        one.control(&control);
        again(&site);
        site.wait(words, 60, |s| s.log().lines().any(|l| l.contains("kind=site-denied") && l.contains(words)));
        again(&site);
        assert_eq!(one.asked("/v3/functions"), 1, "{words}");
    }
    one.control(&json!({"fail": []}));
    again(&site);
    site.wait("confirmed", 60, current);
    assert_eq!(one.asked("/v3/functions"), 1, "by the one that a site may have allowed");
    one.control(&json!({"forget": true}));
    renew(&site);
    site.wait("by another function", 90, |s| holds(&file, &token(s)));
    site.wait("confirmed", 60, current);
    assert_eq!(one.asked("/v3/functions"), 2);
    // Where another one is not known either, no third one is made, whatever it is asked for.
    let gone = json!({"code": "FUNCTION_NOT_FOUND", "reason": "Function x could not be resolved"});
    one.control(&json!({"fail": [["/submit", 404, 0, 9, gone]]}));
    for _ in 0..3 {
        again(&site);
    }
    site.wait("told", 60, |s| s.log().contains("does not know our function"));
    assert_eq!(one.asked("/v3/functions"), 3);
    one.control(&json!({"fail": []}));
    again(&site);
    site.wait("by the one that was good", 60, current);
    assert_eq!(one.asked("/v3/functions"), 3);
    one.control(&json!({"deny": true}));
    renew(&site);
    site.wait("not delivered", 60, |s| !current(s));
    site.signal("-TERM");
    site.credmon.take().unwrap().wait().unwrap();
    let two = double("4.19.0", 0).unwrap();
    let path = site.home.path().join("evercred.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&format!(":{}\"", one.port), &format!(":{}\"", two.port))).unwrap();
    site.start();
    site.wait("by the other service", 90, |s| holds(&file, &token(s)));
    assert_eq!((two.asked("/v3/functions"), two.asked("/submit")), (1, 1));
}

#[test]
fn an_endpoint_that_is_away_holds_one_task_and_gets_the_newest_token_when_it_is_back() {
    let Some(double) = double("4.19.0", 0) else { return };
    double.control(&json!({"offline": true}));
    let (mut site, file) = started(&double, "timeout = \"3s\"");
    site.wait("told", 60, |s| s.log().contains("kind=site-pending"));
    let first = token(&site);
    renew(&site);
    // A restart in between: the pending task is remembered, not sent again.
    site.signal("-TERM");
    site.credmon.take().unwrap().wait().unwrap();
    site.start();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(double.asked("/submit"), 1, "one task in the queue, not one for each renewal or try");
    assert!(!file.exists());
    // What the service says of the endpoint is what people are told.
    let told = |arguments: &[&str]| String::from_utf8(evercred(&site, arguments).stdout).unwrap();
    site.wait("the endpoint is told", 30, |_| told(&["status"]).contains("the endpoint is offline"));
    site.wait("with the replica, too", 30, |_| told(&["replicate"]).contains("the endpoint, which is offline,"));
    let status: Value = serde_json::from_str(&told(&["status", "--json"])).unwrap();
    assert_eq!(status.pointer("/sites/0/offline"), Some(&Value::Bool(true)), "{status}");
    let doctor = Command::new(env!("CARGO_BIN_EXE_evercred"))
        .args(["doctor", "--config"])
        .arg(site.home.path().join("evercred.toml"))
        .output()
        .unwrap();
    let doctor = String::from_utf8(doctor.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(doctor.contains("the endpoint is offline"), "{doctor}");
    double.control(&json!({"offline": false}));
    site.wait("the newest", 180, |s| holds(&file, &token(s)));
    assert_ne!(token(&site), first);
}

#[test]
fn a_task_that_the_service_loses_is_sent_again_and_a_wrong_key_is_told() {
    let Some(double) = double("4.19.0", 0) else { return };
    double.control(&json!({"lose": true}));
    let (site, file) = started(&double, "");
    site.wait("lost, and told", 60, |s| s.log().contains("lost the task"));
    double.control(&json!({"lose": false}));
    site.wait("sent again", 120, |s| holds(&file, &token(s)));
    let key = site.home.path().join("key");
    let other = site.home.path().join("other");
    assert!(Command::new(env!("CARGO_BIN_EXE_evercred")).arg("keygen").arg(&other).output().unwrap().status.success());
    fs::rename(&other, &key).unwrap();
    let before = token(&site);
    renew(&site);
    site.wait("the wrong key is told", 90, |s| s.log().contains("kind=site-key"));
    assert!(holds(&file, &before), "what was there stays");
}

#[test]
fn a_task_that_runs_long_after_a_newer_one_changes_nothing_and_alarms_nobody() {
    let Some(double) = double("4.19.0", 0) else { return };
    double.control(&json!({"lose": true}));
    let (site, file) = started(&double, "");
    site.wait("lost, and told", 60, |s| s.log().contains("lost the task"));
    let old = token(&site);
    double.control(&json!({"lose": false}));
    renew(&site);
    site.wait("the newer one", 120, |s| holds(&file, &token(s)) && token(s) != old);
    site.wait("confirmed", 60, current);
    let (newer, log) = (token(&site), site.log());
    let told = double.control(&json!({"release": true}));
    let released = told.get("released").and_then(|all| all.as_array()).unwrap();
    assert!(!released.is_empty(), "the late task has run");
    for result in released {
        assert!(result.as_str().unwrap().contains("SUPERSEDED"), "{result}");
    }
    std::thread::sleep(Duration::from_secs(2));
    assert!(holds(&file, &newer) && current(&site));
    let since = site.log().replace(&log, "");
    assert!(!since.contains("WARN") && !since.contains("ERROR"), "{since}");
}

#[test]
fn a_submit_whose_reply_was_lost_is_sent_again_and_written_once() {
    let Some(double) = double("4.19.0", 0) else { return };
    double.control(&json!({"deaf": true}));
    let (site, file) = started(&double, "");
    site.wait("written by a task that nobody knows", 90, |s| holds(&file, &token(s)));
    assert!(!current(&site), "what nobody confirmed is not there");
    let written = fs::metadata(&file).unwrap().modified().unwrap();
    double.control(&json!({"deaf": false}));
    site.wait("confirmed", 120, current);
    assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), written, "the second copy found the first one there");
    assert!(double.asked("/submit") >= 2);
}

/// Code, what that means to us (none: delivered), the payload, key files at the endpoint (with + between them), its own
/// limit of age.
type Row = (&'static str, Option<Kind>, String, &'static str, u64);

/// What the function does with each payload, in the real worker of that release, read by the real SDK and by us.
#[expect(clippy::too_many_lines, reason = "a table, and what it is about")]
fn every_refusal(version: &str) {
    let Some(python) = python(version) else { return };
    let dir = tempfile::tempdir().unwrap();
    let home = fs::canonicalize(dir.path()).unwrap();
    let at = |name: &str| home.join(name).display().to_string();
    let (far, full) = (at("far"), at("far/full"));
    for name in ["far", "far/full", "outside"] {
        fs::create_dir(at(name)).unwrap();
    }
    std::os::unix::fs::symlink(at("outside"), at("far/link")).unwrap();
    let (mine, other) =
        ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "HxAREhMUFRYXGBkaGxwdHh8AAQIDBAUGBwgJCgsMDQ4=");
    for (name, text, mode) in
        [("key", mine, 0o600), ("open", mine, 0o640), ("other", other, 0o600), ("none", "no key", 0o600)]
    {
        fs::write(at(name), text).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(at("far/file"), "").unwrap();
    let ring = |text: &str| KeyRing::new(&[KeyText::parse(text).unwrap()]).unwrap();
    let (good, bad) = (ring(mine), ring(other));
    let both = KeyRing::new(&[other, mine].map(|text| KeyText::parse(text).unwrap())).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let envelope = |change: &dyn Fn(&mut Envelope)| {
        let token = zeroize::Zeroizing::new("canary-61".to_owned());
        let (path, mode, to) = (format!("{far}/tok"), "0600".to_owned(), "there".to_owned());
        let mut envelope = Envelope { v: 1, path, seq: 60, mode, token, iat: now, max_age: 86_400, to };
        change(&mut envelope);
        envelope
    };
    let seal = |ring: &KeyRing, at: u64, envelope: &Envelope| {
        String::from_utf8(ring.seal(envelope, at).unwrap().to_vec()).unwrap()
    };
    let sealed = |change: &dyn Fn(&mut Envelope)| {
        let envelope = envelope(change);
        seal(&good, envelope.iat, &envelope)
    };
    let mut tampered = sealed(&|_| {}).into_bytes();
    let byte = tampered.get_mut(60).unwrap();
    *byte = if *byte == b'A' { b'B' } else { b'A' };
    let plain = sealed(&|_| {});
    let day = 86_400;
    let mut table: Vec<Row> = vec![
        ("KEY_MODE", Some(Kind::SiteKey), plain.clone(), "open", day),
        ("NO_KEY", Some(Kind::SiteKey), plain.clone(), "nowhere", day),
        ("NO_KEY", Some(Kind::SiteKey), plain.clone(), "none", day),
        ("DECRYPT", Some(Kind::SiteKey), plain, "other", day),
        ("DECRYPT", Some(Kind::SiteKey), seal(&bad, now, &envelope(&|_| {})), "key", day),
        ("DECRYPT", Some(Kind::SiteKey), String::from_utf8(tampered).unwrap(), "key", day),
        ("DECRYPT", Some(Kind::SiteKey), "no payload".into(), "key", day),
        ("NO_ENVELOPE", Some(Kind::SiteKey), sealed(&|e| e.v = 2), "key", day),
        ("NO_ENVELOPE", Some(Kind::SiteKey), seal(&good, now - 9, &envelope(&|_| {})), "key", day),
        ("FUTURE", Some(Kind::SiteStale), sealed(&|e| e.iat = now + 3600), "key", day),
        ("STALE", Some(Kind::SiteStale), sealed(&|e| e.iat = now - 3600), "key", 600),
        ("STALE", Some(Kind::SiteStale), sealed(&|e| (e.iat, e.max_age) = (now - 3600, 600)), "key", day),
        ("NOT_FOR_US", Some(Kind::SiteDenied), sealed(&|e| e.to = "elsewhere".into()), "key", day),
    ];
    for (path, mode) in [
        (at("outside/tok"), "0600"),
        (format!("{far}/../outside/tok"), "0600"),
        (format!("{far}/link/tok"), "0600"),
        (format!("{far}/.."), "0600"),
        (format!("{far}/"), "0600"),
        (format!("{far}/tok"), "4777"),
    ] {
        let payload = sealed(&|e| (e.path, e.mode) = (path.clone(), mode.to_owned()));
        table.push(("PATH_NOT_ALLOWED", Some(Kind::SiteDenied), payload, "key", day));
    }
    table.push(("WRITTEN", None, sealed(&|_| {}), "key", day));
    table.push(("SUPERSEDED", None, sealed(&|_| {}), "key", day));
    table.push(("SUPERSEDED", None, sealed(&|e| e.seq = 59), "key", day));
    // A change of keys: the new one second there, first here, and then the old one goes. One file may be missing.
    for (seq, code, kind, ring, keys) in [
        (1, "WRITTEN", None, &good, "key+other"),
        (2, "WRITTEN", None, &both, "key+other"),
        (3, "WRITTEN", None, &both, "nowhere+other"),
        (4, "DECRYPT", Some(Kind::SiteKey), &good, "nowhere+other"),
    ] {
        let envelope = envelope(&|e| (e.path, e.seq) = (format!("{far}/ring"), seq));
        table.push((code, kind, seal(ring, now, &envelope), keys, day));
    }
    table.push(("WRITTEN", None, sealed(&|e| e.path = format!("{far}/one/two/tok")), "key", day));
    table.push(("raised", Some(Kind::SiteError), sealed(&|e| e.path = format!("{far}/file/tok")), "key", day));
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=4k", "none", &full]).stderr(Stdio::null()).status();
    let mounted = mounted.is_ok_and(|status| status.success());
    if mounted {
        // One page is free: for the sequence, before anything is put in its place.
        let payload = sealed(&|e| e.path = format!("{full}/tok"));
        table.push(("NO_SPACE", Some(Kind::SiteFull), payload, "key", day));
        let large = zeroize::Zeroizing::new("x".repeat(50_000));
        let payload = sealed(&|e| (e.path, e.token) = (format!("{full}/tok"), large.clone()));
        table.push(("NO_SPACE", Some(Kind::SiteFull), payload, "key", day));
    }
    let payloads: Vec<String> = table
        .iter()
        .map(|(.., payload, keys, max_age)| {
            pack::arguments(&json!([payload, keys.split('+').map(at).collect::<Vec<_>>(), max_age]))
        })
        .collect();
    let input = json!({"code": pack::code(pack::NAME, &pack::source(&far, "there"), false), "payloads": payloads});
    let mut child = Command::new(python)
        .arg(here("tests/globus/refusals.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    serde_json::to_writer(child.stdin.take().unwrap(), &input).unwrap();
    let output = child.wait_with_output().unwrap();
    if mounted {
        assert!(!Path::new(&format!("{full}/tok")).exists(), "what has no sequence is not put in place");
        Command::new("umount").arg("-l").arg(&full).status().unwrap();
    }
    let answers: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answers.len(), table.len());
    for ((code, kind, ..), answer) in table.iter().zip(&answers) {
        let text = |key: &str| answer.get(key).and_then(Value::as_str);
        assert!(!answer.to_string().contains("canary"), "{code}: {answer}");
        if *code == "raised" {
            assert!(
                text("exception")
                    .is_some_and(|words| words.contains("NotADirectoryError") || words.contains("FileExistsError")),
                "{answer}"
            );
            continue;
        }
        let decoded = text("decoded").unwrap_or_default();
        assert!(!decoded.is_empty(), "{code}: {answer}");
        assert_eq!(pack::result(text("packed").unwrap()).unwrap(), decoded, "we read it as the SDK does");
        let verdict: Verdict = serde_json::from_str(decoded).unwrap();
        assert_eq!((verdict.code.as_str(), verdict.ok), (*code, *code == "WRITTEN"), "{decoded}");
        assert!(verdict.ok || verdict.detail.is_some(), "{decoded}");
        let judged = verdict.judge(&both, if verdict.have.is_some() { 60 } else { 61 }, b"canary-61");
        assert_eq!(judged.err().map(|error| error.kind), *kind, "{decoded}");
    }
    let mut left: Vec<_> = fs::read_dir(&far).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".ring.seq", ".tok.seq", "file", "full", "link", "one", "ring", "tok"]);
    for directory in ["far/one", "far/one/two"] {
        assert_eq!(fs::metadata(at(directory)).unwrap().permissions().mode() & 0o7777, 0o700, "{directory}");
    }
    for file in ["far/tok", "far/ring", "far/one/two/tok"] {
        assert_eq!(fs::read_to_string(at(file)).unwrap(), "canary-61");
    }
    assert_eq!(fs::read_to_string(at("far/.ring.seq")).unwrap(), "3");
    assert_eq!(fs::read_dir(at("outside")).unwrap().count(), 0, "nothing came out");
}

#[test]
fn every_refusal_of_the_function_comes_out_of_the_real_worker_and_through_the_real_sdk() {
    every_refusal("4.19.0");
}

#[test]
fn every_refusal_comes_out_of_the_worker_from_before_json_results_too() {
    every_refusal("3.5.0");
}

#[test]
fn our_bytes_are_those_of_the_sdk() {
    let Some(python) = python("4.19.0") else { return };
    let program = "import json,sys\nfrom globus_compute_sdk.serialize import ComputeSerializer, JSONData\n\
                   s = ComputeSerializer(strategy_data=JSONData())\n\
                   args = json.load(sys.stdin)\nprint(json.dumps(s.pack_buffers([s.serialize(args), s.serialize({})])))";
    let arguments = json!(["gAAAA", ["/k", "/é😀"], 3600]);
    let mut child =
        Command::new(python).args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    serde_json::to_writer(child.stdin.take().unwrap(), &arguments).unwrap();
    let output = child.wait_with_output().unwrap();
    let theirs: String = serde_json::from_slice(&output.stdout).unwrap();
    // Python writes a blank after each comma; the lengths follow from that.
    let squeeze = |text: &str| text.lines().filter(|line| line.starts_with('[')).collect::<String>().replace(' ', "");
    assert_eq!(squeeze(&theirs), squeeze(&pack::arguments(&arguments)));
    assert!(theirs.ends_with("5\n11\n{}") && pack::arguments(&arguments).ends_with("5\n11\n{}"));
}

#[test]
fn what_python_seals_is_received_here() {
    let Some(python) = python("4.19.0") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (key, far) = (dir.path().join("key"), dir.path().join("far"));
    fs::create_dir(&far).unwrap();
    assert!(Command::new(env!("CARGO_BIN_EXE_evercred")).arg("keygen").arg(&key).output().unwrap().status.success());
    let program = "import json,sys,time\nfrom cryptography.fernet import Fernet\nnow = int(time.time())\n\
                   box = Fernet(open(sys.argv[1]).read().strip())\n\
                   inside = {'v': 1, 'path': sys.argv[2] + '/t', 'seq': 7, 'mode': '0600', 'token': 'canary', 'iat': now,\n\
                             'max_age': 600, 'to': 'x'}\n\
                   print(box.encrypt_at_time(json.dumps(inside).encode(), now).decode())";
    let sealed = Command::new(python).args(["-c", program]).arg(&key).arg(&far).output().unwrap();
    assert!(sealed.status.success(), "{sealed:?}");
    let mut child = Command::new(env!("CARGO_BIN_EXE_evercred"))
        .args(["receive", "--directory"])
        .arg(&far)
        .arg("--key-file")
        .arg(&key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &sealed.stdout).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("WRITTEN"), "{output:?}");
    assert!(holds(&far.join("t"), "canary"));
}
