//! `evercred doctor` on live installations: one that is good, and one with faults planted, each of which it must find.
//!
//! HTCondor's knobs come from a `condor_config_val` only in the real pool (tests/pool); here it is absent.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test: it may stop at the first thing that is wrong"
)]

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use evercred::demo::issuer::{Issuer, Options, Running};
use tempfile::TempDir;

struct Site {
    home: TempDir,
    issuer: Running,
    credmon: Option<Child>,
}

impl Site {
    fn new() -> Self {
        let home = TempDir::with_prefix("evercred-test-").unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let issuer = Issuer::start(&Options::default()).unwrap();
        fs::DirBuilder::new().mode(0o700).create(home.path().join("credentials")).unwrap();
        Self { home, issuer, credmon: None }
    }

    fn credentials(&self) -> PathBuf {
        self.home.path().join("credentials")
    }

    fn configure(&self, providers: &str) {
        let text = format!(
            "[daemon]\ncredential_directory = \"{}\"\ncourier_user = \"nobody\"\n{providers}",
            self.credentials().display()
        );
        fs::write(self.home.path().join("evercred.toml"), text.replace("ISSUER", self.issuer.url())).unwrap();
    }

    fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_condor_credmon_evercred"));
        command.arg("--config").arg(self.home.path().join("evercred.toml"));
        command.arg("--log").arg(self.home.path().join("log")).stdin(Stdio::null());
        self.credmon = Some(command.spawn().unwrap());
        let end = Instant::now() + Duration::from_secs(20);
        while !self.credentials().join("CREDMON_COMPLETE").exists() {
            assert!(Instant::now() < end, "the credmon does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Exit code, text, and (check, verdict) pairs.
    fn doctor(&self) -> (Option<i32>, String, Vec<(String, String)>) {
        let config = self.home.path().join("evercred.toml");
        let run = |json: bool| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_evercred"));
            command.arg("doctor").arg("--config").arg(&config).args(json.then_some("--json"));
            command.env_clear().stdin(Stdio::null()).output().unwrap()
        };
        let text = String::from_utf8(run(false).stdout).unwrap();
        let output = run(true);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let word = |finding: &serde_json::Value, key: &str| finding[key].as_str().unwrap().to_owned();
        let checks = json["checks"].as_array().unwrap();
        let found = checks.iter().map(|f| (word(f, "check"), word(f, "verdict"))).collect();
        (output.status.code(), text, found)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut child) = self.credmon.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn has(found: &[(String, String)], check: &str, verdict: &str) -> bool {
    found.iter().any(|(c, v)| c == check && v == verdict)
}

/// They look at all processes of this host, among which one test plants another credential monitor.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

const GOOD: &str = "[provider.grid]\nkind = \"oauth2\"\nissuer = \"ISSUER\"\nclient_id = \"test\"\n\
                    [provider.mt]\nkind = \"mytoken\"\nserver = \"ISSUER/mytoken\"\nissuer = \"ISSUER\"\n";

#[test]
fn a_good_installation_has_no_failure_and_exit_code_0() {
    let _alone = alone();
    let mut site = Site::new();
    site.configure(GOOD);
    site.start();
    let (code, text, found) = site.doctor();
    assert_eq!(code, Some(0), "{text}");
    for check in ["file", "owner", "group", "mode", "running", "second", "courier", "dns", "tls", "clock", "discovery"]
    {
        assert!(has(&found, check, "ok"), "{check}\n{text}");
    }
    assert!(has(&found, "client", "ok"), "{text}");
    // How much room the machine of the test has is not for the test to say.
    assert!(has(&found, "space", "ok") || has(&found, "space", "warning"), "{text}");
    assert!(text.contains(" 0 failed"), "{text}");
}

#[test]
fn eight_planted_faults_are_all_found_and_nothing_is_changed() {
    let _alone = alone();
    let mut site = Site::new();
    site.configure(GOOD);
    site.start();
    // 1: a directory open to others. 2: a pid file of somebody else. 3: short tokens. 4: expired ones.
    fs::set_permissions(site.credentials(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(site.credentials().join("pid"), "1\n").unwrap();
    let now = jiff::Timestamp::now().as_second();
    for (user, expires) in [("alice", now + 60), ("bob", now - 1)] {
        fs::DirBuilder::new().mode(0o700).create(site.credentials().join(user)).unwrap();
        let write = |name: &str, text: String| fs::write(site.credentials().join(user).join(name), text).unwrap();
        write("grid.top", "{\"refresh_token\":\"x\"}".into());
        write("grid.use", format!("{{\"access_token\":\"t\",\"issued_at\":{},\"expires_at\":{expires}}}\n", now - 60));
    }
    // 5: nobody listens. 6: another issuer's document. 7: a client that is not known. 8: a name that is none.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    site.issuer.control().register_client("test", None);
    let secret = site.home.path().join("secret");
    fs::write(&secret, "not-the-secret\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    site.configure(&format!(
        "{GOOD}[provider.closed]\nkind = \"oauth2\"\nissuer = \"http://{closed}\"\nclient_id = \"test\"\n\
         [provider.other]\nkind = \"oauth2\"\nissuer = \"ISSUER/other\"\nclient_id = \"test\"\n\
         [provider.stranger]\nkind = \"oauth2\"\nissuer = \"ISSUER\"\nclient_id = \"stranger\"\nclient_secret_file = \"{}\"\n\
         [provider.nowhere]\nkind = \"oauth2\"\nissuer = \"https://nowhere.invalid\"\nclient_id = \"test\"\n",
        secret.display()
    ));
    let before = snapshot(&site.credentials());
    let (code, text, found) = site.doctor();
    assert_eq!(code, Some(1), "{text}");
    let faults = [
        ("mode", "failed"),
        ("running", "failed"),
        ("lifetime", "failed"),
        ("tokens", "warning"),
        ("reachable", "failed"),
        ("discovery", "failed"),
        ("client", "failed"),
        ("dns", "failed"),
    ];
    for (check, verdict) in faults {
        assert!(has(&found, check, verdict), "{check}\n{text}");
    }
    assert!(!text.contains("not-the-secret"), "{text}");
    assert_eq!(before, snapshot(&site.credentials()), "doctor changed something");
}

/// Killed, or taken away, when it is dropped.
enum Planted {
    Process(Child),
    Mount(PathBuf),
}

impl Drop for Planted {
    fn drop(&mut self) {
        match self {
            Self::Process(child) => {
                child.kill().ok();
                child.wait().ok();
            }
            Self::Mount(path) => {
                Command::new("umount").arg("--lazy").arg(path).status().ok();
            }
        }
    }
}

/// An issuer whose clock stands still in 2024.
fn slow_clock() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let issuer = url.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let body = format!("{{\"issuer\":\"{issuer}\",\"token_endpoint\":\"{issuer}/token\"}}");
            // Whoever hung up has what it wanted.
            let read = stream.read(&mut [0; 8192]);
            let head = "HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Type: application/json";
            let answer = format!("{head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            read.and_then(|_| stream.write_all(answer.as_bytes())).ok();
        }
    });
    url
}

#[test]
fn faults_of_tls_clock_disk_users_directories_and_another_monitor_are_found() {
    let _alone = alone();
    let mut site = Site::new();
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let [chain, secret] = ["chain.pem", "key.pem"].map(|name| site.home.path().join(name));
    fs::write(&chain, key.cert.pem()).unwrap();
    fs::write(&secret, key.signing_key.serialize_pem()).unwrap();
    let stranger = Issuer::start(&Options { tls: Some((chain, secret)), ..Options::default() }).unwrap();
    site.configure(&format!(
        "{GOOD}[provider.stranger]\nkind = \"oauth2\"\nissuer = \"{}\"\nclient_id = \"test\"\n\
         [provider.slow]\nkind = \"oauth2\"\nissuer = \"{}\"\nclient_id = \"test\"\n",
        stranger.url(),
        slow_clock(),
    ));
    // HTCondor's own was there first: what it wrote to `pid`, ours has overwritten.
    let program = site.home.path().join("condor_credmon_oauth");
    fs::write(&program, "#!/bin/sh\nwhile sleep 1; do :; done\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let _other = Planted::Process(Command::new(&program).stdin(Stdio::null()).spawn().unwrap());
    let mut faults = vec![("tls", "failed"), ("clock", "failed"), ("second", "warning"), ("users", "failed")];
    let options = "size=900k,nr_inodes=24,mode=0700";
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(site.credentials()).output();
    let mounted = mount.is_ok_and(|output| output.status.success());
    let _small = mounted.then(|| Planted::Mount(site.credentials()));
    if mounted {
        faults.extend([("space", "failed"), ("inodes", "failed")]);
    } else {
        println!("skipped: no small file system can be mounted here");
    }
    site.start();
    let home = site.credentials().join("alice");
    fs::DirBuilder::new().mode(0o700).create(&home).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o777)).unwrap();
    for n in 0..(if mounted { 10 } else { 0 }) {
        fs::write(site.credentials().join(format!("filler-{n}")), "").unwrap();
    }
    let (code, text, found) = site.doctor();
    assert_eq!(code, Some(1), "{text}");
    for (check, verdict) in faults {
        assert!(has(&found, check, verdict), "{check}\n{text}");
    }
    assert!(text.contains("condor_credmon_oauth (process "), "{text}");
}

fn snapshot(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(next) = directories.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            // The credmon goes on renewing meanwhile.
            } else if path.extension().is_none_or(|e| e != "use")
                && !["CREDMON_COMPLETE", ".evercred-index"].iter().any(|own| path.file_name().unwrap() == *own)
            {
                files.push((path.clone(), fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}
