//! Replication by ssh to a real sshd with GSSAPI against a real KDC: `tests/ssh/lab.sh` brings them up. Skipped, and
//! said so, where it cannot (root, Debian's packages); `tests/run ssh` installs what is missing first.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test: it may stop at what is wrong, and says what it skips"
)]

mod site;

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use evercred::demo::issuer::Rotation;
use serde_json::Value;

use self::site::Site;

const ACCOUNTS: usize = 50;

struct Lab(PathBuf);

impl Lab {
    fn up() -> Option<Self> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let lab = here.join("target/test-env/ssh");
        if !nix::unistd::geteuid().is_root() || !lab.join("fetched").exists() {
            eprintln!("skipped: needs root and target/test-env/ssh (tests/run ssh)");
            return None;
        }
        let run = |words: &[&str]| Command::new(here.join("tests/ssh/lab.sh")).arg(&lab).args(words).status().unwrap();
        run(&["down"]);
        assert!(run(&["up", &ACCOUNTS.to_string()]).success());
        Some(Self(lab))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ssh/lab.sh");
        Command::new(script).arg(&self.0).arg("down").status().ok();
    }
}

fn token(site: &Site) -> String {
    let value: Value = serde_json::from_slice(&site.file("alice", "grid.use").unwrap_or_default()).unwrap_or_default();
    value.get("access_token").and_then(Value::as_str).unwrap_or("none yet").to_owned()
}

fn holds(path: &Path, text: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|there| there == text)
}

#[test]
fn a_hundred_destinations_behind_a_default_max_startups_get_the_token_and_none_is_lost() {
    let Some(lab) = Lab::up() else { return };
    let mut site = Site::new(3600, Rotation::Strict);
    site.configure("");
    let path = site.home.path().join("evercred.toml");
    let home = site.home.path().display().to_string();
    let ssh = lab.0.display();
    let daemon = format!("[daemon]\nstate_directory = \"{home}/state\"\nreplicate_user = \"nobody\"\n");
    let mut text = fs::read_to_string(&path).unwrap().replacen("[daemon]\n", &daemon, 1);
    for n in 0..ACCOUNTS {
        for d in ["one", "two/deep"] {
            let name = d.replace('/', "-");
            write!(
                text,
                "[site.a{n}-{name}]\nkind = \"ssh\"\nservices = [\"grid\"]\nhost = \"localhost\"\nport = 12222\n\
                 user = \"a{n}\"\nssh_program = \"{ssh}/ssh\"\nkrb5_ccache = \"FILE:{ssh}/cc\"\n\
                 directory = \"{ssh}/homes/a{n}/{d}\"\ntimeout = \"120s\"\n"
            )
            .unwrap();
        }
    }
    // One account that does not exist: it is told, and parks itself alone.
    write!(
        text,
        "[site.nobody]\nkind = \"ssh\"\nservices = [\"grid\"]\nhost = \"localhost\"\nport = 12222\nuser = \"none\"\n\
         ssh_program = \"{ssh}/ssh\"\nkrb5_ccache = \"FILE:{ssh}/cc\"\ndirectory = \"/tmp/x\"\n"
    )
    .unwrap();
    fs::write(&path, text).unwrap();
    site.grid("alice");
    site.start();
    let places: Vec<PathBuf> = (0..ACCOUNTS)
        .flat_map(|n| ["one", "two/deep"].map(|d| lab.0.join(format!("homes/a{n}/{d}/alice_grid"))))
        .collect();
    site.wait("the first hundred", 180, |s| places.iter().all(|place| holds(place, &token(s))));
    for place in &places {
        assert_eq!(fs::metadata(place).unwrap().permissions().mode() & 0o7777, 0o600);
    }
    site.wait("the account that is not there", 60, |s| s.log().contains("kind=site-auth"));
    let log = fs::read_to_string(lab.0.join("sshd/log")).unwrap();
    assert!(!log.contains("MaxStartups throttling"), "sshd had to drop connections");
    let sessions = log.matches("Accepted gssapi-with-mic").count();
    assert!((ACCOUNTS..ACCOUNTS + 10).contains(&sessions), "one session for each account, not {sessions}");
    // B12: what one renewed token needs to be everywhere, over the sessions that are up.
    // From the order on: the renewal itself, and the tool's own look every 200 ms, are in it.
    let before = token(&site);
    let start = Instant::now();
    let renewed = Command::new(env!("CARGO_BIN_EXE_evercred"))
        .args(["renew", "alice/grid", "--socket"])
        .arg(site.socket())
        .output()
        .unwrap();
    assert!(renewed.status.success(), "{renewed:?}");
    site.wait("everywhere again", 60, |s| token(s) != before && places.iter().all(|place| holds(place, &token(s))));
    let took = start.elapsed();
    println!("100 destinations of {ACCOUNTS} accounts after one renewal: {took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    // Nothing but the file and its sequence stays, and no token is in the log.
    for place in &places {
        let mut names: Vec<_> =
            fs::read_dir(place.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".alice_grid.seq", "alice_grid"]);
    }
    assert!(!site.log().contains(&token(&site)));
    // A sequence at the destination that is newer is respected: nothing older replaces it.
    let far = lab.0.join("homes/a0/one");
    fs::write(far.join(".alice_grid.seq"), "9999999999").unwrap();
    fs::write(far.join("alice_grid"), "newer").unwrap();
    Command::new(env!("CARGO_BIN_EXE_evercred"))
        .args(["replicate", "--now", "--site", "a0-one", "--wait", "5s", "--socket"])
        .arg(site.socket())
        .output()
        .unwrap();
    site.wait("told", 20, |s| s.log().contains("have=9999999999"));
    assert_eq!(fs::read_to_string(far.join("alice_grid")).unwrap(), "newer");
}
