//! The log through the real rsyslogd, in a mount namespace with a `/dev` of its own (root; `apt-get install rsyslog`): RFC
//! 5424 as `docs/operations.md` has it read, and lines go on after the log daemon was restarted.

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use evercred::demo::issuer::Rotation;

use self::site::Site;

/// A `/dev` with the devices that a daemon needs and nothing that listens on `log`.
const OWN_DEV: &str = r#"
set -e
mount -t tmpfs -o mode=755 none "$1"
for device in null zero full random urandom tty; do touch "$1/$device"; mount --bind "/dev/$device" "$1/$device"; done
mount --rbind "$1" /dev
echo ready > "$2"
exec sleep 600
"#;

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn until(what: &str, seconds: u64, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !done() {
        assert!(Instant::now() < end, "not in {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// In the namespace of that process.
fn inside(holder: &Ended, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--mount=/proc/{}/ns/mnt", holder.0.id())).arg("--").arg(program).stdin(Stdio::null());
    command
}

fn rsyslogd(holder: &Ended, program: &Path, home: &Path) -> Ended {
    let config = home.join("rsyslog.conf");
    // The module's line is the one of docs/operations.md.
    let document = include_str!("../docs/operations.md");
    let module = document.lines().find(|line| line.starts_with("module(load=\"imuxsock\"")).unwrap();
    let text = format!(
        "{module}\nglobal(workDirectory=\"{home}\")\n\
         action(type=\"omfile\" file=\"{home}/messages\" template=\"RSYSLOG_SyslogProtocol23Format\")\n",
        home = home.display()
    );
    fs::write(&config, text).unwrap();
    let child = inside(holder, program)
        .arg("-n")
        .arg("-f")
        .arg(&config)
        .arg("-i")
        .arg(home.join("rsyslogd.pid"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Ended(child)
}

#[test]
fn lines_reach_the_real_rsyslogd_as_rfc_5424_and_go_on_after_it_was_restarted() {
    let program = ["/usr/sbin/rsyslogd", "/sbin/rsyslogd"].map(PathBuf::from).into_iter().find(|path| path.exists());
    let Some(program) = program.filter(|_| nix::unistd::geteuid().is_root()) else {
        println!("skipped: needs root and rsyslogd (apt-get install rsyslog)");
        return;
    };
    let mut site = Site::new(600, Rotation::Strict);
    let home = site.home.path().to_owned();
    let (dev, ready) = (home.join("dev"), home.join("ready"));
    fs::create_dir(&dev).unwrap();
    let holder = Command::new("unshare").args(["--mount", "sh", "-c", OWN_DEV, "sh"]).arg(&dev).arg(&ready).spawn();
    let holder = Ended(holder.unwrap());
    let end = Instant::now() + Duration::from_secs(10);
    while !ready.exists() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    if !ready.exists() {
        println!("skipped: no mount namespace here");
        return;
    }
    let messages = || fs::read_to_string(home.join("messages")).unwrap_or_default();
    let listens =
        || inside(&holder, Path::new("test")).args(["-S", "/dev/log"]).status().is_ok_and(|status| status.success());
    let daemon = rsyslogd(&holder, &program, &home);
    until("rsyslogd listens", 20, listens);
    site.grid("alice");
    let mut credmon = inside(&holder, Path::new(env!("CARGO_BIN_EXE_condor_credmon_evercred")));
    credmon.arg("--config").arg(home.join("evercred.toml")).args(["--log", "syslog"]);
    site.credmon = Some(credmon.spawn().unwrap());
    until("the first lines", 30, || messages().contains("user=alice"));
    let text = messages();
    let line = text.lines().find(|line| line.contains("renewed") && line.contains("user=alice")).unwrap();
    // <PRI>1 TIME HOST evercred PID MSGID …: facility daemon, severity info.
    let words: Vec<&str> = line.split(' ').collect();
    assert!(line.starts_with("<30>1 20"), "{line}");
    assert_eq!(words.get(3), Some(&"evercred"), "{line}");

    drop(daemon);
    let before = messages().lines().count();
    site.grid("bob");
    site.wait("renewals go on without a log daemon", 30, |s| s.file("bob", "grid.use").is_some());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(messages().lines().count(), before, "nobody was there to write");
    inside(&holder, Path::new("rm")).args(["-f", "/dev/log"]).status().unwrap();
    let _daemon = rsyslogd(&holder, &program, &home);
    until("rsyslogd listens again", 20, listens);
    site.grid("carol");
    until("a line after the restart", 30, || {
        messages().lines().any(|line| line.contains("renewed") && line.contains("user=carol"))
    });
    assert!(!messages().contains("\"access_token\""));
}
