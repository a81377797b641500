//! Replication through the services of computing facilities, NERSC's Superfacility API and the DOE IRI Facility API: our
//! client against doubles that work on real files. The first is exercised by NERSC's own client, too, and verifies our
//! assertions with the public key; the second holds every request and answer against NERSC's published specification.
//! Skipped, and said so, without `target/test-env/facility` (`tests/run facility` makes it).

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, SystemTime},
};

use evercred::demo::issuer::Rotation;
use serde_json::{Value, json};

use self::site::{
    Site,
    far::{Double, current, evercred, holds, renew, token},
    of_stage,
};

const EVERCRED: &str = env!("CARGO_BIN_EXE_evercred");

/// A credmon with one site, and the facility: its files are below `far`.
struct Lab {
    site: Site,
    double: Double,
    far: PathBuf,
}

fn environment() -> Option<PathBuf> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-env/facility");
    of_stage("facility", "no sfapi_client and no IRI specification", || home.join("ready").exists().then_some(home))
}

impl Lab {
    /// Not started yet. `HOME`, `PORT` and `RECEIVE` in the text stand for what they say.
    fn new(sites: &str) -> Option<Self> {
        let environment = environment()?;
        let site = Site::new(3600, Rotation::Strict);
        let home = site.home.path().to_owned();
        let far = home.join("far");
        for name in ["far", "far/tokens", "far/inbox"] {
            fs::create_dir(home.join(name)).unwrap();
            fs::set_permissions(home.join(name), fs::Permissions::from_mode(0o700)).unwrap();
        }
        assert!(Command::new(EVERCRED).arg("keygen").arg(home.join("key")).output().unwrap().status.success());
        fs::write(home.join("refresh"), "refresh-1\n").unwrap();
        fs::set_permissions(home.join("refresh"), fs::Permissions::from_mode(0o600)).unwrap();
        let mut command = Command::new(environment.join("bin/python"));
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/facility/double.py")).arg("0").arg(&far);
        let double = Double::start(command.arg(home.join("client.json")).arg(environment.join("iri.json")));
        let shown = home.display().to_string();
        site.configure_with(
            &format!("state_directory = \"{shown}/state\"\nreplicate_user = \"nobody\""),
            "",
            &sites
                .replace(
                    "RECEIVE",
                    &format!("{EVERCRED} receive --inbox HOME/far/inbox --key-file HOME/key --directory"),
                )
                .replace("HOME", &shown)
                .replace("PORT", &double.port.to_string()),
        );
        site.grid("alice");
        Some(Self { site, double, far })
    }

    fn started(sites: &str) -> Option<Self> {
        let mut lab = Self::new(sites)?;
        lab.site.start();
        Some(lab)
    }

    fn restart(&mut self) {
        self.site.signal("-TERM");
        self.site.credmon.take().unwrap().wait().unwrap();
        self.site.start();
    }

    fn file(&self) -> PathBuf {
        self.far.join("tokens/panda_token")
    }

    fn arrives(&self, what: &str) {
        self.site.wait(what, 120, |s| holds(&self.file(), &token(s)));
        self.site.wait("confirmed", 60, current);
    }

    fn logs(&self, what: &str) {
        self.site.wait(what, 60, |s| s.log().contains(what));
    }

    /// The timer at the site.
    fn receive(&self) -> Output {
        let (inbox, tokens, key) = (self.far.join("inbox"), self.far.join("tokens"), self.site.home.path().join("key"));
        let mut command = Command::new(EVERCRED);
        command.arg("receive").arg("--inbox").arg(inbox).arg("--directory").arg(tokens).arg("--key-file").arg(key);
        command.output().unwrap()
    }

    fn is_clean(&self) {
        let token = token(&self.site);
        let key: Value = serde_json::from_slice(&fs::read(self.site.home.path().join("client.json")).unwrap()).unwrap();
        let private = key.pointer("/secret/d").and_then(Value::as_str).unwrap().to_owned();
        for secret in [token.as_str(), &private, "refresh-1"] {
            assert!(!self.site.log().contains(secret));
        }
    }
}

/// Names of what lies in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const SFAPI: &str = "[site.far]\nkind = \"sfapi\"\nservices = [\"grid\"]\nfile_name = \"panda_token\"\n\
                     directory = \"HOME/far/tokens\"\ninbox = \"HOME/far/inbox\"\nclient_file = \"HOME/client.json\"\n\
                     key_files = [\"HOME/key\"]\napi = \"http://127.0.0.1:PORT/api/v1.2\"\n\
                     auth = \"http://127.0.0.1:PORT/c2id/token\"\n";
const COMMAND: &str = "command = \"RECEIVE HOME/far/tokens\"\n";
const IRI: &str = "[site.far]\nkind = \"iri\"\nservices = [\"grid\"]\nfile_name = \"panda_token\"\n\
                   directory = \"HOME/far/tokens\"\nresource_id = \"cfs\"\nclient_id = \"evercred\"\n\
                   refresh_token_file = \"HOME/refresh\"\napi = \"http://127.0.0.1:PORT\"\n\
                   auth = \"http://127.0.0.1:PORT/v2/oauth2/token\"\n";

fn sfapi(more: &str) -> Option<Lab> {
    Lab::started(&format!("{SFAPI}{COMMAND}{more}"))
}

fn iri(more: &str) -> Option<Lab> {
    Lab::started(&format!("{IRI}{more}"))
}

#[test]
fn nerscs_own_client_has_its_way_with_the_double() {
    let Some(lab) = Lab::new("") else { return };
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/facility/client.py");
    let mut command = Command::new(environment().unwrap().join("bin/python"));
    command.args(["-W", "ignore"]).arg(program).arg(lab.double.port.to_string());
    let output = command.arg(lab.site.home.path().join("client.json")).arg(&lab.far).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(lab.double.asked("/utilities/upload") == 1 && lab.double.asked("/utilities/command") == 1);
}

#[test]
fn a_command_at_the_machine_writes_the_token_and_its_receipt_confirms_it() {
    let Some(lab) = sfapi("") else { return };
    lab.arrives("written");
    assert_eq!(fs::metadata(lab.file()).unwrap().permissions().mode() & 0o7777, 0o600);
    let first = token(&lab.site);
    renew(&lab.site);
    lab.arrives("the next one");
    assert_ne!(token(&lab.site), first);
    assert_eq!(names(&lab.far.join("tokens")), [".panda_token.seq", "panda_token"]);
    let inbox = names(&lab.far.join("inbox"));
    assert_eq!(inbox.len(), 2, "one payload and one receipt, however often: {inbox:?}");
    for name in inbox {
        let text = fs::read_to_string(lab.far.join("inbox").join(&name)).unwrap();
        assert!(!text.contains(&token(&lab.site)) && !text.contains(&first), "{name} is open");
    }
    assert_eq!(lab.double.asked("/c2id/token"), 1, "one token for both deliveries");
    lab.is_clean();
}

#[test]
fn without_a_command_the_payload_waits_for_the_timer_at_the_site() {
    let Some(mut lab) = Lab::started(&format!("{SFAPI}timeout = \"3s\"\n")) else { return };
    lab.logs("kind=site-pending");
    assert!(!current(&lab.site), "what nobody has taken is not there");
    let first = token(&lab.site);
    renew(&lab.site);
    lab.restart();
    let output = lab.receive();
    assert!(output.status.success(), "{output:?}");
    lab.site.wait("newest", 120, |s| {
        lab.receive();
        holds(&lab.file(), &token(s))
    });
    lab.site.wait("confirmed", 60, current);
    assert_ne!(token(&lab.site), first);
    assert_eq!(lab.double.asked("/utilities/command"), 0);
}

#[test]
fn rate_limits_outages_and_a_refused_token_delay_and_lose_nothing() {
    let Some(lab) = Lab::new(&format!("{SFAPI}{COMMAND}")) else { return };
    let mut lab = lab;
    let fail = json!([
        ["/utilities/upload", 429, 1, 1],
        ["/utilities/command", 503, 1, 1],
        ["/tasks/", 503, 1, 1],
        ["/utilities/download", 502, 0, 1]
    ]);
    lab.double.control(&json!({"fail": fail}));
    lab.site.start();
    lab.arrives("through it all");
    assert!(lab.site.log().contains("kind=rate-limited"), "{}", lab.site.log());
    let tokens = lab.double.asked("/c2id/token");
    lab.double.control(&json!({"revoke": true}));
    renew(&lab.site);
    lab.arrives("with a new token of the client's");
    assert_eq!(lab.double.asked("/c2id/token"), tokens + 1);
}

#[test]
fn a_command_that_fails_behind_http_200_is_a_failure_and_told_in_its_words() {
    let Some(lab) = sfapi("") else { return };
    lab.arrives("first");
    let before = token(&lab.site);
    lab.double.control(&json!({"task_fails": true}));
    renew(&lab.site);
    lab.logs("Connection refused");
    assert!(lab.site.log().contains("kind=site-error") && !current(&lab.site));
    assert!(holds(&lab.file(), &before));
    lab.double.control(&json!({"task_fails": false}));
    lab.arrives("mended");
}

#[test]
fn an_upload_without_room_is_told_and_what_it_left_behind_replaces_nothing() {
    let Some(lab) = sfapi("") else { return };
    lab.arrives("first");
    let before = token(&lab.site);
    lab.double.control(&json!({"full": true}));
    renew(&lab.site);
    lab.logs("kind=site-full");
    let output = lab.receive();
    assert!(String::from_utf8_lossy(&output.stdout).contains("DECRYPT"), "half a payload: {output:?}");
    assert!(holds(&lab.file(), &before));
    lab.double.control(&json!({"full": false}));
    lab.arrives("with room again");
}

#[test]
fn a_service_that_accepts_and_never_answers_holds_up_no_renewal() {
    let Some(lab) = Lab::new(&format!("{SFAPI}{COMMAND}timeout = \"2s\"\n")) else { return };
    let mut lab = lab;
    lab.double.control(&json!({"hang": "/utilities/upload"}));
    lab.site.start();
    lab.logs("kind=site-timeout");
    let first = token(&lab.site);
    renew(&lab.site);
    assert_ne!(token(&lab.site), first);
    lab.double.control(&json!({"hang": ""}));
    lab.arrives("the newest");
}

#[test]
fn an_upload_that_is_done_long_after_a_newer_one_replaces_nothing() {
    let Some(lab) = Lab::new(&format!("{SFAPI}{COMMAND}timeout = \"2s\"\n")) else { return };
    let mut lab = lab;
    lab.double.control(&json!({"late": "/utilities/upload"}));
    lab.site.start();
    lab.logs("kind=site-timeout");
    lab.double.control(&json!({"late": ""}));
    renew(&lab.site);
    lab.arrives("the newer one");
    lab.double.control(&json!({"release": true}));
    let output = lab.receive();
    assert!(String::from_utf8_lossy(&output.stdout).contains("SUPERSEDED"), "{output:?}");
    assert!(holds(&lab.file(), &token(&lab.site)) && current(&lab.site));
}

#[test]
fn a_newer_payload_that_a_late_one_wrote_over_is_put_again() {
    let Some(lab) = Lab::new(&format!("{SFAPI}timeout = \"2s\"\n")) else { return };
    let mut lab = lab;
    lab.double.control(&json!({"late": "/utilities/upload"}));
    lab.site.start();
    lab.logs("kind=site-timeout");
    let old = token(&lab.site);
    lab.double.control(&json!({"late": ""}));
    renew(&lab.site);
    lab.logs("kind=site-pending");
    lab.double.control(&json!({"release": true}));
    lab.receive();
    let there = fs::read_to_string(lab.file()).unwrap();
    assert!(there == old || there == token(&lab.site), "one of ours, whole");
    lab.site.wait("put again, and taken", 120, |s| {
        lab.receive();
        holds(&lab.file(), &token(s)) && current(s)
    });
    assert_ne!(token(&lab.site), old);
}

#[test]
fn what_leads_out_of_the_directory_is_refused_at_the_site() {
    let more = format!("{SFAPI}command = \"RECEIVE HOME/far/inbox\"\n");
    let Some(lab) = Lab::started(&more) else { return };
    lab.logs("kind=site-denied");
    assert!(lab.site.log().contains("PATH_NOT_ALLOWED") && !lab.file().exists());
    assert!(!current(&lab.site));
}

#[test]
fn a_client_that_ends_soon_is_told_and_so_is_one_that_has_ended_until_there_is_a_new_one() {
    let Some(lab) = Lab::new(&format!("{SFAPI}{COMMAND}")) else { return };
    let mut lab = lab;
    let client = lab.site.home.path().join("client.json");
    let written = SystemTime::now() - Duration::from_secs(40 * 3600);
    fs::File::options().write(true).open(&client).unwrap().set_modified(written).unwrap();
    lab.site.start();
    lab.arrives("while it lives");
    lab.logs("the client of this site ends soon");
    let status = evercred(&lab.site, &["status", "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let told = |key: &str| status.pointer(&format!("/sites/0/{key}")).cloned().unwrap_or_default();
    assert!(told("site") == "far" && told("client_ends").is_string() && told("client_ends_soon") == true, "{status}");
    let config = lab.site.home.path().join("evercred.toml");
    let doctor = Command::new(EVERCRED).args(["doctor", "--json", "--config"]).arg(&config).output().unwrap();
    let findings = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(findings.contains("our client of it ends in 7h"), "{findings}");
    lab.double.control(&json!({"expired": true, "revoke": true}));
    renew(&lab.site);
    lab.logs("kind=site-auth");
    assert!(lab.site.log().contains("Client expired") || lab.site.log().contains("invalid_client"));
    lab.double.control(&json!({"expired": false, "client": client}));
    lab.site.signal("-HUP");
    lab.arrives("with the new client");
    lab.is_clean();
}

#[test]
fn a_key_that_others_may_read_is_not_used() {
    let Some(lab) = Lab::new(&format!("{SFAPI}{COMMAND}")) else { return };
    let client = lab.site.home.path().join("client.json");
    fs::set_permissions(&client, fs::Permissions::from_mode(0o640)).unwrap();
    let config = lab.site.home.path().join("evercred.toml");
    let check = Command::new(EVERCRED).args(["check", "--config"]).arg(config).output().unwrap();
    let told = String::from_utf8_lossy(&check.stderr).into_owned();
    assert_eq!(check.status.code(), Some(78));
    assert!(told.contains("site.far.client_file") && told.contains("chmod 600"), "{told}");
}

#[test]
fn a_move_puts_the_token_in_its_place_within_the_specification() {
    let Some(lab) = iri("") else { return };
    lab.arrives("moved");
    assert_eq!(fs::metadata(lab.file()).unwrap().permissions().mode() & 0o7777, 0o600);
    let staging = lab.far.join("tokens/.evercred");
    assert_eq!(fs::metadata(&staging).unwrap().permissions().mode() & 0o7777, 0o700);
    renew(&lab.site);
    lab.arrives("the next one");
    assert_eq!(names(&lab.far.join("tokens")), [".evercred", "panda_token"]);
    assert!(names(&staging).is_empty());
    assert_eq!(lab.double.asked("/filesystem/mkdir"), 1, "the staging directory is made once");
    assert_eq!(lab.double.control(&json!({}))["wrong"], json!([]), "nothing that the specification does not have");
    lab.is_clean();
}

#[test]
fn a_facility_that_limits_fails_or_refuses_in_the_middle_gets_it_later() {
    let Some(lab) = Lab::new(IRI) else { return };
    let mut lab = lab;
    let fail = json!([
        ["/filesystem/upload", 429, 1, 1],
        ["/filesystem/chmod", 503, 1, 1],
        ["/task/", 500, 0, 1],
        ["/filesystem/mv", 503, 1, 1]
    ]);
    lab.double.control(&json!({"fail": fail}));
    lab.site.start();
    lab.arrives("through it all");
    assert!(lab.site.log().contains("kind=rate-limited"), "{}", lab.site.log());
    lab.double.control(&json!({"revoke": true}));
    renew(&lab.site);
    lab.arrives("with a new token of the client's");
    let before = token(&lab.site);
    lab.double.control(&json!({"task_fails": true}));
    renew(&lab.site);
    lab.logs("Input/output error");
    assert!(holds(&lab.file(), &before) && !current(&lab.site));
    lab.double.control(&json!({"task_fails": false, "full": true}));
    lab.logs("kind=site-full");
    assert!(holds(&lab.file(), &before));
    lab.double.control(&json!({"full": false}));
    lab.arrives("mended");
    assert!(names(&lab.far.join("tokens/.evercred")).is_empty(), "nothing is left");
}

#[test]
fn a_move_that_is_done_long_after_a_newer_one_replaces_nothing() {
    let Some(lab) = Lab::new(&format!("{IRI}timeout = \"3s\"\n")) else { return };
    let mut lab = lab;
    lab.double.control(&json!({"late": "/filesystem/mv"}));
    lab.site.start();
    lab.logs("kind=site-timeout");
    assert!(lab.double.control(&json!({"late": ""}))["late"].as_u64().unwrap() > 0);
    let old = token(&lab.site);
    renew(&lab.site);
    lab.arrives("the newer one");
    let newer = token(&lab.site);
    assert_ne!(newer, old);
    let told = lab.double.control(&json!({"release": true}));
    assert_eq!(told["late"], 0);
    assert_eq!(told["moves"].as_array().unwrap().len(), 1, "the late move found nothing to move: {told}");
    assert!(holds(&lab.file(), &newer) && current(&lab.site));
}

#[test]
fn a_move_whose_answer_was_lost_cannot_find_what_the_next_try_of_the_same_token_puts_down() {
    let Some(lab) = Lab::new(&format!("{IRI}timeout = \"3s\"\n")) else { return };
    let mut lab = lab;
    lab.double.control(&json!({"late": "/filesystem/mv"}));
    lab.site.start();
    lab.logs("kind=site-timeout");
    let held = lab.double.control(&json!({"late": ""}))["held"].clone();
    lab.arrives("the same token");
    let told = lab.double.control(&json!({"release": true}));
    let moves: Vec<_> = told["moves"].as_array().unwrap().iter().map(|done| done[0].clone()).collect();
    assert_eq!(moves.len(), 1, "the late one found nothing: {told}");
    let held = held.as_array().unwrap();
    assert!(!held.is_empty() && !held.contains(&moves[0]), "{held:?} {told}");
}

#[test]
fn a_move_that_waits_in_a_queue_is_waited_for_across_a_restart_and_the_newest_wins() {
    let Some(lab) = Lab::new(&format!("{IRI}timeout = \"5s\"\n")) else { return };
    let mut lab = lab;
    lab.double.control(&json!({"hold": ["mv"]}));
    lab.site.start();
    lab.logs("kind=site-pending");
    lab.restart();
    lab.site.wait("told again", 60, |s| s.log().matches("kind=site-pending").count() >= 2);
    assert_eq!(lab.double.asked("/filesystem/mv"), 1, "asked for once");
    let old = token(&lab.site);
    renew(&lab.site);
    lab.site.wait("the newer one waits", 60, |_| lab.double.asked("/filesystem/mv") >= 2);
    lab.double.control(&json!({"hold": []}));
    lab.arrives("the newest");
    assert_ne!(token(&lab.site), old);
    let moves = lab.double.control(&json!({}))["moves"].clone();
    assert_eq!(moves.as_array().unwrap().len(), 1, "the older one was taken back: {moves}");
}

#[test]
fn a_directory_that_the_facility_does_not_give_us_and_a_login_that_ended_are_told() {
    let Some(lab) = Lab::new(&IRI.replace("HOME/far/tokens", "HOME/elsewhere")) else { return };
    let mut lab = lab;
    lab.site.start();
    lab.logs("kind=site-denied");
    assert!(!lab.site.home.path().join("elsewhere").exists());
    lab.double.control(&json!({"iri_refresh": "another", "revoke": true}));
    let now = evercred(&lab.site, &["replicate", "alice/grid", "--now", "--wait", "5s"]);
    assert!(!now.status.success());
    lab.logs("kind=site-auth");
    assert!(lab.site.log().contains("invalid_grant"));
}
