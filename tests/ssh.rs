//! Replication by ssh to a real sshd with GSSAPI against a real KDC: `tests/ssh/lab.sh` brings them up. Skipped, and
//! said so, where it cannot (root, Debian's packages); `tests/run ssh` installs what is missing first.

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    fmt::Write as _,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use evercred::{
    core::delivery::Delivered,
    demo::issuer::Rotation,
    replicate::{
        sftp::{Sftp, SftpError},
        sftp_place::{self, Locks},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    process::{Child, ChildStdin, ChildStdout},
};

use self::site::{
    Site,
    far::{current, holds, renew, token},
    of_stage,
};

const ACCOUNTS: usize = 50;

/// The lab's ports are fixed: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

struct Lab(PathBuf, #[expect(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

fn fetched() -> Option<PathBuf> {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-env/ssh");
    let ready = || nix::unistd::geteuid().is_root() && lab.join("fetched").exists();
    of_stage("ssh", "needs root and target/test-env/ssh", || ready().then(|| lab.clone()))
}

impl Lab {
    fn up() -> Option<Self> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (lab, one) = (fetched()?, ONE.lock().unwrap_or_else(PoisonError::into_inner));
        let run = |words: &[&str]| Command::new(here.join("tests/ssh/lab.sh")).arg(&lab).args(words).status().unwrap();
        run(&["down"]);
        assert!(run(&["up", &ACCOUNTS.to_string()]).success());
        Some(Self(lab, one))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ssh/lab.sh");
        Command::new(script).arg(&self.0).arg("down").status().ok();
    }
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
    // Nothing but the file and its sequence stays (the lock goes last), and no token is in the log.
    site.wait("the locks are gone", 30, |_| {
        places.iter().all(|place| {
            let listed = fs::read_dir(place.parent().unwrap()).unwrap();
            let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names == [".alice_grid.seq", "alice_grid"]
        })
    });
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
    site.wait("told", 20, |s| s.log().contains("generation 9999999999 is there"));
    assert!(!current(&site), "what we never issued is not what it should have");
    assert_eq!(fs::read_to_string(far.join("alice_grid")).unwrap(), "newer");
}

#[test]
fn sealed_payloads_go_to_evercred_receive_behind_a_forced_command() {
    let Some(lab) = Lab::up() else { return };
    let mut site = Site::new(3600, Rotation::Strict);
    let home = site.home.path().display().to_string();
    let (ssh, far) = (lab.0.display(), lab.0.join("homes/recv/tokens"));
    let evercred = env!("CARGO_BIN_EXE_evercred");
    for key in ["key", "other"] {
        assert!(Command::new(evercred).args(["keygen", &format!("{home}/{key}")]).output().unwrap().status.success());
    }
    fs::create_dir_all(&far).unwrap();
    fs::set_permissions(&far, fs::Permissions::from_mode(0o700)).unwrap();
    let forced = |key: &str| {
        let program = format!(
            "#!/bin/sh\nunset LD_LIBRARY_PATH\nprintf '%s\\n' \"$SSH_ORIGINAL_COMMAND\" >> {ssh}/asked\n\
             exec {evercred} receive --site far --directory {ssh}/homes/recv/tokens --key-file {home}/{key}\n"
        );
        fs::write(lab.0.join("receive"), program).unwrap();
        fs::set_permissions(lab.0.join("receive"), fs::Permissions::from_mode(0o755)).unwrap();
    };
    forced("key");
    fs::write(lab.0.join("asked"), "").unwrap();
    let receive = |name: &str, directory: &str| {
        format!(
            "[site.{name}]\nkind = \"ssh\"\nway = \"receive\"\nservices = [\"grid\"]\nhost = \"localhost\"\nport = 12222\n\
             user = \"recv\"\nssh_program = \"{ssh}/ssh\"\nkrb5_ccache = \"FILE:{ssh}/cc\"\ndirectory = \"{directory}\"\n\
             key_files = [\"{home}/key\"]\n"
        )
    };
    let there = far.display().to_string();
    let sites = receive("far", &there) + &receive("outside", "/tmp/evercred-outside") + &receive("misnamed", &there);
    site.configure_with(&format!("state_directory = \"{home}/state\"\nreplicate_user = \"nobody\""), "", &sites);
    site.grid("alice");
    site.start();
    let file = far.join("alice_grid");
    site.wait("received", 90, |s| holds(&file, &token(s)));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    site.wait("the others are refused", 60, |s| s.log().matches("kind=site-denied").count() >= 2);
    assert!(site.log().contains("NOT_FOR_US"), "the far end takes what is for its own name alone: {}", site.log());
    assert!(!Path::new("/tmp/evercred-outside").exists());
    let log = site.log();
    site.wait("confirmed with the key", 30, |s| {
        let mut command = Command::new(evercred);
        command.args(["replicate", "--site", "far", "--socket"]).arg(s.socket()).output().unwrap().status.success()
    });
    let before = token(&site);
    renew(&site);
    site.wait("the next one", 60, |s| token(s) != before && holds(&file, &token(s)));
    let asked = fs::read_to_string(lab.0.join("asked")).unwrap();
    assert!(asked.lines().all(|line| line == "evercred receive"), "no secret on a command line: {asked}");
    assert!(!current(&site), "the two others have nothing");
    // A far end with another key confirms nothing, and changes nothing.
    forced("other");
    // The session that is up has the key in it: a new one.
    site.signal("-TERM");
    site.credmon.take().unwrap().wait().unwrap();
    site.start();
    site.wait("up again", 30, |s| s.log().matches("replicator is ready").count() == 2);
    let before = token(&site);
    renew(&site);
    site.wait("the wrong key is told", 60, |s| s.log().replace(&log, "").contains("kind=site-key"));
    assert!(holds(&file, &before));
    let names: Vec<_> = fs::read_dir(&far).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(!site.log().contains(&token(&site)));
}

/// An agent of whoever replicates, with a key that is nowhere else.
struct Agent(std::process::Child);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Agent {
    fn start(lab: &Path, home: &Path) -> Self {
        let as_nobody = |program: &str| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", site::NOBODY, "--regid", site::NOBODY, "--clear-groups"]);
            command.arg(lab.join("root/usr/bin").join(program)).env("SSH_AUTH_SOCK", home.join("agent"));
            command
        };
        assert!(Command::new("chown").args([site::NOBODY]).arg(home).status().unwrap().success());
        let key = home.join("key");
        let made = as_nobody("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().unwrap();
        assert!(made.success());
        fs::copy(home.join("key.pub"), lab.join("keyed.pub")).unwrap();
        let agent = Self(
            as_nobody("ssh-agent").arg("-D").arg("-a").arg(home.join("agent")).stdout(Stdio::null()).spawn().unwrap(),
        );
        let end = Instant::now() + Duration::from_secs(20);
        while !as_nobody("ssh-add").arg("-q").arg(&key).stderr(Stdio::null()).status().unwrap().success() {
            assert!(Instant::now() < end, "no agent");
            std::thread::sleep(Duration::from_millis(50));
        }
        fs::remove_file(&key).unwrap();
        agent
    }
}

#[test]
fn an_agent_is_used_where_the_configuration_names_it_and_not_because_our_environment_does() {
    let Some(lab) = Lab::up() else { return };
    let mut site = Site::new(3600, Rotation::Strict);
    let home = site.home.path().display().to_string();
    let keys = site.home.path().join("keys");
    fs::create_dir(&keys).unwrap();
    let _agent = Agent::start(&lab.0, &keys);
    let config = site.home.path().join("ssh_config");
    let (here, lab_home) = (lab.0.display(), lab.0.join("homes/keyed"));
    let usual = format!("Host *\n  UserKnownHostsFile {here}/known_hosts\n");
    fs::write(&config, &usual).unwrap();
    let text = format!(
        "[site.far]\nkind = \"ssh\"\nservices = [\"grid\"]\nhost = \"localhost\"\nport = 12222\nuser = \"keyed\"\n\
         ssh_program = \"{here}/root/usr/bin/ssh\"\nssh_config = \"{home}/ssh_config\"\ndirectory = \"{}/tokens\"\n",
        lab_home.display()
    );
    site.configure_with(&format!("state_directory = \"{home}/state\"\nreplicate_user = \"nobody\""), "", &text);
    site.grid("alice");
    site.credmon = Some(site.command().env("SSH_AUTH_SOCK", keys.join("agent")).spawn().unwrap());
    site.wait("refused", 60, |s| s.log().contains("kind=site-auth"));
    fs::write(&config, format!("{usual}  IdentityAgent {home}/keys/agent\n")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_evercred"))
        .args(["replicate", "--now", "--socket"])
        .arg(site.socket())
        .output()
        .unwrap();
    site.wait("by the agent's key", 60, |s| holds(&lab_home.join("tokens/alice_grid"), &token(s)));
}

/// A real sftp-server as the far end of one session.
struct Server {
    child: Child,
    from: ChildStdout,
    to: ChildStdin,
}

fn server(lab: &Path) -> Server {
    let mut child = tokio::process::Command::new(lab.join("root/usr/lib/openssh/sftp-server"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (from, to) = (child.stdout.take().unwrap(), child.stdin.take().unwrap());
    Server { child, from, to }
}

/// The way there breaks after so many requests, the way back after so many reads.
struct Cut<T>(T, usize);

impl<T: AsyncWrite + Unpin> AsyncWrite for Cut<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.1 == 0 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.1 -= 1;
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Cut<T> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = Pin::new(&mut self.0).poll_read(context, into);
        if matches!(polled, Poll::Ready(Ok(()))) && into.filled().len() > before {
            if self.1 == 0 {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            self.1 -= 1;
        }
        polled
    }
}

/// Before the request of that number somebody else takes the lock over, if there is one.
struct Taken<T>(T, usize, PathBuf);

impl<T: AsyncWrite + Unpin> AsyncWrite for Taken<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.1 = self.1.wrapping_sub(1);
        if self.1 == 0 && self.2.exists() {
            fs::write(&self.2, ANOTHER).unwrap();
        }
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

const ANOTHER: &str = "00112233-5-0";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap()
}

async fn put(lab: &Path, locks: &Locks, directory: &str, generation: u64) -> Result<Delivered, String> {
    let server = server(lab);
    let mut sftp = Sftp::start(server.from, server.to).await.unwrap();
    let text = generation.to_string();
    let end = sftp_place::put(&mut sftp, locks, (directory, "tok"), 0o600, generation, text.as_bytes()).await;
    drop(server.child);
    end.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn deliveries_at_once_from_several_senders_over_real_sftp_servers_leave_the_newest() {
    let Some(lab) = fetched() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display().to_string();
    runtime().block_on(async {
        let watch = {
            let file = dir.path().join("tok");
            tokio::spawn(async move {
                let mut newest = 0;
                loop {
                    if let Ok(text) = fs::read_to_string(&file) {
                        let there: u64 = text.parse().unwrap();
                        assert!(there >= newest, "{there} after {newest}");
                        newest = there;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
        };
        let senders = (0..6_u64).map(|sender| {
            let (lab, path) = (lab.clone(), path.clone());
            tokio::spawn(async move {
                // Each knows nothing of the others, as on hosts of their own.
                let locks = Locks::default();
                for k in 0..15_u64 {
                    let generation = (k * 37 + sender * 11) % 90 + 1;
                    while let Err(error) = put(&lab, &locks, &path, generation).await {
                        assert!(error.contains("another delivery"), "{error}");
                    }
                }
                while put(&lab, &locks, &path, 100 + sender).await.is_err() {}
            })
        });
        for sender in senders.collect::<Vec<_>>() {
            sender.await.unwrap();
        }
        watch.abort();
        assert!(watch.await.unwrap_err().is_cancelled(), "it never went back");
    });
    assert!(holds(&dir.path().join("tok"), "105") && holds(&dir.path().join(".tok.seq"), "105"));
    assert_eq!(names(dir.path()), [".tok.seq", "tok"]);
}

#[test]
fn a_delivery_that_was_cut_off_anywhere_is_taken_back_or_finished_by_the_next_one() {
    let Some(lab) = fetched() else { return };
    let (mut taken_back, mut finished) = (0, 0);
    for cut in 1..90 {
        for way_back in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().display().to_string();
            runtime().block_on(async {
                let locks = Locks::default();
                assert_eq!(put(&lab, &locks, &path, 5).await, Ok(Delivered::Written));
                let (there, back) = if way_back { (usize::MAX, cut) } else { (cut, usize::MAX) };
                let server = server(&lab);
                let broken = async {
                    let mut sftp = Sftp::start(Cut(server.from, back), Cut(server.to, there)).await?;
                    sftp_place::put(&mut sftp, &locks, (&path, "tok"), 0o600, 10, b"10").await
                };
                let end = broken.await;
                if matches!(end, Ok(Ok(Delivered::Written))) {
                    return;
                }
                assert!(matches!(end, Err(SftpError::Broken(_))), "{end:?}");
                drop(server.child);
                // An older one afterwards: it is written only if the newer one never was.
                let file = dir.path().join("tok");
                let mut end = put(&lab, &locks, &path, 7).await;
                // A lock without an ID is left alone for a while.
                while end.as_ref().is_err_and(|error| error.contains("another delivery")) {
                    end = put(&lab, &locks, &path, 7).await;
                }
                if end == Ok(Delivered::Written) {
                    assert!(holds(&file, "7"), "cut after {cut}, {way_back}");
                    taken_back += 1;
                } else {
                    assert_eq!(end, Ok(Delivered::Superseded { have: 10 }), "cut after {cut}, {way_back}");
                    assert!(holds(&file, "10"), "cut after {cut}, {way_back}");
                    finished += 1;
                }
                assert_eq!(put(&lab, &locks, &path, 11).await, Ok(Delivered::Written));
                assert!(holds(&file, "11"));
            });
            assert_eq!(names(dir.path()), [".tok.seq", "tok"], "cut after {cut}, {way_back}");
        }
    }
    assert!(taken_back > 10 && finished > 5, "{taken_back} taken back, {finished} finished");
}

#[test]
fn the_lock_of_another_delivery_that_took_us_for_dead_stays() {
    let Some(lab) = fetched() else { return };
    let (mut kept, mut gone) = (0, 0);
    for number in 1..40 {
        let dir = tempfile::tempdir().unwrap();
        let (path, lock) = (dir.path().display().to_string(), dir.path().join(".tok.lock"));
        let taken = runtime().block_on(async {
            let server = server(&lab);
            let mut sftp = Sftp::start(server.from, Taken(server.to, number, lock.clone())).await.unwrap();
            let locks = Locks::default();
            let end = sftp_place::put(&mut sftp, &locks, (&path, "tok"), 0o600, 5, b"5").await;
            drop(server.child);
            let refused = end.is_err_and(|error| error.to_string().contains("another delivery has taken the lock"));
            assert!(refused || holds(&dir.path().join("tok"), "5"), "request {number}");
            refused || lock.exists()
        });
        match (taken, holds(&lock, ANOTHER)) {
            (true, true) => kept += 1,
            (true, false) => panic!("request {number}: the other one's lock was taken away"),
            (false, _) => gone += 1,
        }
    }
    assert!(kept > 8 && gone > 8, "{kept} kept, {gone} not taken or already given back");
}
