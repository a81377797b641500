//! Crashes: the real processes are killed at random, faults are injected into every system call of a publish, disks
//! fill up. Nothing may be torn or empty, and a refresh token may be lost only if it had left the issuer and was not
//! on the disk yet; each loss is counted, and proved from the issuer's own records and from every file that the kill
//! left behind: no file held the token but one that was being written at that moment (it has its name last, and until
//! then nobody can tell what it is), and the issuer had given it so late that nobody could have written it.
//!
//! `EVERCRED_KILLS=n` sets how often is killed (default 40 with each kind of rotation), `EVERCRED_SEED=n` repeats the
//! moments.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a test: it may stop at the first thing that is wrong"
)]

mod site;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use evercred::{
    core::{
        id::{CredentialId, UserName},
        secret::RefreshToken,
    },
    demo::issuer::{Rotation, Standing},
    spool::{Owners, PublishError, Rotated, Spool},
};
use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::Value;

use self::site::Site;

const USERS: usize = 40;

struct Random(u64);

impl Random {
    fn new() -> Self {
        let seed = std::env::var("EVERCRED_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::try_from(now().as_nanos() % u128::from(u64::MAX)).unwrap());
        println!("EVERCRED_SEED={seed}");
        Self(seed | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

fn kill(signal: Signal, pid: u32) {
    // One that is gone already is as good.
    nix::sys::signal::kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).ok();
}

/// What an answer may take from the issuer into a file on a machine that does nothing else: through the courier, the
/// keeper's loop, and the thread that writes.
const ON_ITS_WAY: Duration = Duration::from_millis(30);
/// So many threads of ours have to be given a processor on that way: each may meet the worst.
const HOPS: u32 = 5;
/// So many answers that came together may be written before it, one after the other.
const QUEUE: u32 = 20;

/// How late this machine is at the moment: a thread that sleeps a millisecond, then writes and renames a file, over
/// and over.
struct Lateness {
    /// When each turn began, by the wall clock, and how long it took.
    turns: Arc<Mutex<Vec<(Duration, Duration)>>>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Lateness {
    fn start() -> Self {
        let (turns, done) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (theirs, until) = (Arc::clone(&turns), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            // Where the credentials are, too.
            let home = tempfile::tempdir().unwrap();
            while !until.load(Relaxed) {
                let (began, turn) = (now(), Instant::now());
                std::thread::sleep(Duration::from_millis(1));
                fs::write(home.path().join("new"), [0; 1000]).unwrap();
                fs::rename(home.path().join("new"), home.path().join("file")).unwrap();
                theirs.lock().unwrap().push((began, turn.elapsed()));
            }
        });
        Self { turns, done, thread: Some(thread) }
    }

    /// What an answer may have taken that was on its way at this moment, by the turns of the second before it.
    fn allows(&self, moment: Duration) -> Duration {
        let turns = self.turns.lock().unwrap();
        let near = turns.iter().rev().skip_while(|(began, _)| *began > moment);
        let near = near.take_while(|(began, took)| *began + *took + Duration::from_secs(1) > moment);
        let near: Vec<Duration> = near.map(|(_, took)| *took).collect();
        let mean = near.iter().sum::<Duration>() / u32::try_from(near.len()).unwrap().max(1);
        ON_ITS_WAY + HOPS * near.into_iter().max().unwrap_or_default() + QUEUE * mean
    }
}

impl Drop for Lateness {
    fn drop(&mut self) {
        self.done.store(true, Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// The courier of a keeper, while it runs.
fn courier_of(keeper: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).ok()?;
    let by_any_thread = fs::read_dir(format!("/proc/{keeper}/task"))
        .ok()?
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    std::iter::once(children).chain(by_any_thread).find_map(|text| text.split_whitespace().next()?.parse().ok())
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "not in a minute: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_gone(pid: u32) -> bool {
    // A zombie whose parent was killed is init's.
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

/// The refresh token of a `.top` that must be whole.
fn whole_top(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let top: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("torn: {}: {e}: {text:?}", path.display()));
    top["refresh_token"].as_str().unwrap().to_owned()
}

fn assert_whole_use(path: &Path) {
    let Ok(text) = fs::read_to_string(path) else { return };
    let used: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("torn: {}: {e}: {text:?}", path.display()));
    assert!(used["access_token"].as_str().is_some_and(|token| token.len() > 20) && text.ends_with("}\n"), "{text:?}");
    assert_eq!(text.lines().count(), 1, "one line");
}

/// Every file below the credential directory, as text.
fn contents(site: &Site) -> Vec<(PathBuf, String)> {
    let inside = |path: PathBuf| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let (directories, mut files): (Vec<_>, Vec<_>) =
        inside(site.credentials()).into_iter().partition(|path| path.is_dir());
    files.extend(directories.into_iter().flat_map(inside));
    files
        .into_iter()
        .map(|path| (path.clone(), String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()))
        .collect()
}

fn ours(site: &Site) -> Vec<String> {
    let names =
        fs::read_dir(site.credentials()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| is_left(name)).collect()
}

/// What a publish may leave behind; the index of what was read is meant to stay.
fn is_left(name: &str) -> bool {
    name.starts_with(".evercred-") && name != ".evercred-index"
}

#[derive(Debug, Default)]
struct Tally {
    keeper: u32,
    courier: u32,
    both: u32,
    saved: usize,
    in_grace: u32,
    losses: Vec<Loss>,
}

/// A refresh token that the issuer gave and nobody has.
#[derive(Debug)]
struct Loss {
    /// Who was killed.
    who: &'static str,
    /// It was being written, into a file that had no name of its own yet.
    being_written: bool,
    /// When it was given, in ms after the kill.
    given: i64,
    /// How many ms before the kill could not be enough to write it.
    allowed: i64,
}

/// The proof of a loss, up to the time: the issuer gave the next token with its very last answer, and no file that was
/// `left` by the kill holds it, but one that had no name of its own yet.
fn prove(
    site: &Site,
    user: &str,
    left: &[(PathBuf, String)],
    ago: Duration,
    killed_at: Duration,
    allowed: Duration,
) -> Loss {
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap();
    let control = site.issuer.control();
    let spent = ms(now().saturating_sub(ago));
    let given = control.records(Some(user)).iter().filter_map(|record| record.issued.back()).map(|i| i.at_ms).max();
    let given = i64::try_from(given.unwrap()).unwrap();
    assert!(spent.abs_diff(given) <= 250, "{user}: only the last answer is missing");
    let next = control.current(user);
    assert!(!next.is_empty());
    let holds = left.iter().find(|(_, text)| next.iter().any(|token| text.contains(token)));
    let name = holds.map(|(path, _)| path.file_name().unwrap().to_str().unwrap());
    let being_written = name.is_some_and(|name| name.starts_with(".evercred-tmp-"));
    assert!(name.is_none() || being_written, "{user}: {name:?} held it");
    Loss { who: "", being_written, given: given - ms(killed_at), allowed: ms(allowed) }
}

/// Kill `kills` times at random moments while renewals run; look at everything after each.
fn storm(rotation: Rotation, kills: u32) -> Tally {
    // One at a time: what is measured is to be the machine, not the other storm.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut random = Random::new();
    let mut site = Site::new(2, rotation);
    let control = site.issuer.control();
    control.set_latency(Duration::from_millis(3));
    let user = |n: usize| format!("user{n:02}");
    (0..USERS).for_each(|n| drop(site.grid(&user(n))));
    let mut tally = Tally::default();
    let lateness = Lateness::start();
    for _ in 0..kills {
        let before = control.stats().exchanges;
        site.start();
        let keeper = site.credmon.as_ref().unwrap().id();
        wait_until("renewals run", || control.stats().exchanges > before + 2);
        std::thread::sleep(Duration::from_micros(random.below(300_000)));
        let courier = courier_of(keeper);
        let killed_at = now();
        let who = match (random.below(3), courier) {
            (0, Some(courier)) => {
                kill(Signal::SIGKILL, courier);
                // What the keeper has got from it goes home; then everything rests.
                std::thread::sleep(Duration::from_millis(random.below(30)));
                kill(Signal::SIGTERM, keeper);
                tally.courier += 1;
                "courier"
            }
            (1, Some(courier)) => {
                kill(Signal::SIGKILL, courier);
                kill(Signal::SIGKILL, keeper);
                tally.both += 1;
                "both"
            }
            _ => {
                kill(Signal::SIGKILL, keeper);
                tally.keeper += 1;
                "keeper"
            }
        };
        let status = site.credmon.take().unwrap().wait().unwrap();
        assert!(who != "courier" || status.success(), "a stop exits 0: {status}\n{}", site.log());
        if let Some(courier) = courier {
            wait_until("the courier ends with its keeper", || is_gone(courier));
        }
        wait_until("the issuer has nothing to answer any more", || control.stats().in_flight == 0);
        for n in 0..USERS {
            whole_top(&site.credentials().join(user(n)).join("grid.top"));
            assert_whole_use(&site.credentials().join(user(n)).join("grid.use"));
        }
        let left = contents(&site);
        // What every start does first, here without the rest of it.
        let spool = Spool::open(&site.credentials(), Owners::usual(None)).unwrap();
        assert!(spool.recovered().iter().all(|(_, result)| result.is_ok()), "{:?}", spool.recovered());
        tally.saved += spool.recovered().len();
        drop(spool);
        assert_eq!(ours(&site), [".evercred.lock"; 0], "leftovers are cleaned");
        for n in 0..USERS {
            let directory = site.credentials().join(user(n));
            let token = whole_top(&directory.join("grid.top"));
            assert_whole_use(&directory.join("grid.use"));
            let Standing::Superseded { ago } = control.standing(&token) else {
                assert_eq!(control.standing(&token), Standing::Current, "{}", user(n));
                continue;
            };
            if matches!(rotation, Rotation::Grace(_)) {
                tally.in_grace += 1;
                continue;
            }
            let allowed = lateness.allows(killed_at);
            tally.losses.push(Loss { who, ..prove(&site, &user(n), &left, ago, killed_at, allowed) });
            // Whoever approves again starts anew.
            assert!(control.revoke_user(&user(n)) > 0);
            site.grid(&user(n));
        }
    }
    // All is well with everybody in the end.
    site.start();
    let refused: u64 = control.records(None).iter().map(|record| record.refused).sum();
    let before: Vec<u64> = (0..USERS).map(|n| site.exchanges(&user(n))).collect();
    site.wait("everybody is renewed twice", 60, |site| (0..USERS).all(|n| site.exchanges(&user(n)) >= before[n] + 2));
    let after: u64 = control.records(None).iter().map(|record| record.refused).sum();
    assert_eq!(after, refused, "and nobody is refused");
    if matches!(rotation, Rotation::Grace(_)) {
        assert_eq!(refused, 0, "with grace nobody ever was");
    }
    tally
}

fn kills() -> u32 {
    std::env::var("EVERCRED_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(40)
}

#[test]
fn kill_9_at_any_moment_tears_nothing_and_loses_only_what_was_on_its_way_from_a_strictly_rotating_issuer() {
    let started = Instant::now();
    let tally = storm(Rotation::Strict, kills());
    let Tally { keeper, courier, both, saved, losses, .. } = &tally;
    println!(
        "strict rotation: keeper killed {keeper} times, courier {courier}, both {both}; {USERS} credentials renewed each \
         second; {saved} refresh tokens saved by the next start, {} lost; {:.0} s",
        losses.len(),
        started.elapsed().as_secs_f64()
    );
    for who in ["keeper", "courier", "both"] {
        let after: Vec<i64> = losses.iter().filter(|loss| loss.who == who).map(|loss| loss.given).collect();
        if let (Some(first), Some(last)) = (after.iter().min(), after.iter().max()) {
            println!(
                "  {} with the {who}: the answers that held them were given {first} to {last} ms after the kill",
                after.len()
            );
        }
    }
    let spare = losses.iter().map(|loss| loss.given + loss.allowed).min();
    if let (Some(most), Some(spare)) = (losses.iter().map(|loss| loss.allowed).max(), spare) {
        let being_written = losses.iter().filter(|loss| loss.being_written).count();
        println!("  {being_written} of them were being written at that moment");
        println!(
            "  and could not have been written in time if given less than {most} ms before the kill, or less; spare {spare} ms"
        );
    }
    for loss in losses {
        assert!(loss.given >= -loss.allowed, "there was time to write it: {loss:?}\n{losses:?}");
    }
}

#[test]
fn kill_9_at_any_moment_loses_nothing_where_the_issuer_lets_a_token_be_used_again_for_a_while() {
    let started = Instant::now();
    let tally = storm(Rotation::Grace(Duration::from_secs(600)), kills());
    let Tally { keeper, courier, both, saved, in_grace, .. } = &tally;
    println!(
        "rotation with grace: keeper killed {keeper} times, courier {courier}, both {both}; {saved} refresh tokens saved \
         by the next start, {in_grace} answers repeated by grace, 0 lost; {:.0} s",
        started.elapsed().as_secs_f64()
    );
}

/// What the child publishes, and where; set for the child only.
const CHILD: &str = "EVERCRED_CRASH_CHILD";
const OLD_TOP: &str = "{\n \"scopes\": \"a b\",\n \"refresh_token\": \"one\"\n}\n";
const OLD_USE: &str = "{\"access_token\":\"old\"}\n";
const NEW_USE: &str = "{\"access_token\":\"new\"}\n";

fn alice() -> CredentialId {
    CredentialId::from_base(UserName::parse("alice").unwrap(), "s").unwrap()
}

/// Not a test of its own: one publish with rotation, step by step as the keeper does it, for the test below to break.
#[test]
fn one_publish_with_rotation_for_strace() {
    let Ok(directory) = std::env::var(CHILD) else { return };
    let code = one_publish(Path::new(&directory));
    std::process::exit(code);
}

/// 0 done; 3 it did not start; 4 nothing was spent; 5 the refresh token is nowhere but in `.evercred-keep-*`, or lost;
/// 6 the access token is not published.
fn one_publish(directory: &Path) -> i32 {
    let [spent, new] = ["one", "two"].map(|text| RefreshToken::parse(text).unwrap());
    let Ok(spool) = Spool::open(directory, Owners::usual(None)) else { return 3 };
    let Ok((identity, _)) = spool.read_top(&alice(), None) else { return 4 };
    let Ok(mut reservation) = spool.reserve(&alice(), 4096, 4096) else { return 4 };
    // The mark in the trace: from here on the issuer takes nothing but the new one.
    drop(std::env::set_current_dir("/spent"));
    let rotated = Rotated { spent: &spent, new: &new };
    let keep = |reservation: &mut _| match spool.keep_refresh_token(&alice(), reservation, identity, rotated, None) {
        Ok(kept) => Some(kept),
        Err(PublishError::NoSpace { .. } | PublishError::Io { .. }) => None,
        Err(error) => panic!("nobody replaced it: {error}"),
    };
    let Some(kept) = (0..3).find_map(|_| keep(&mut reservation)) else { return 5 };
    if spool.publish_use(&alice(), reservation, kept.identity, NEW_USE.as_bytes()).is_err() {
        return 6;
    }
    0
}

struct Broken {
    home: tempfile::TempDir,
}

impl Broken {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let broken = Self { home };
        let alice = broken.directory().join("alice");
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&alice).unwrap();
        for (name, text) in [("s.top", OLD_TOP), ("s.use", OLD_USE)] {
            fs::write(alice.join(name), text).unwrap();
            fs::set_permissions(alice.join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        broken
    }

    fn directory(&self) -> PathBuf {
        self.home.path().join("c")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.directory().join("alice").join(name)).unwrap()
    }

    /// Run the child under strace; its exit code (none: killed) and the trace.
    fn publish(&self, inject: Option<&str>) -> (Option<i32>, String) {
        let trace = self.home.path().join("trace");
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-s", "200", "-e", &format!("trace=chdir,{}", CALLS.join(","))]);
        if let Some(inject) = inject {
            command.args(["-e", &format!("inject={inject}")]);
        }
        command.arg("-o").arg(&trace).arg(std::env::current_exe().unwrap());
        command.args(["one_publish_with_rotation_for_strace", "--exact", "--nocapture", "--test-threads=1"]);
        command.env(CHILD, self.directory()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let code = command.status().unwrap().code();
        // strace ends as its tracee did.
        (code.filter(|code| *code < 128), fs::read_to_string(trace).unwrap())
    }
}

/// Every call that can fail in a publish and leaves something behind.
const CALLS: &[&str] = &[
    "openat",
    "openat2",
    "fallocate",
    "write",
    "pwrite64",
    "ftruncate",
    "fsync",
    "rename",
    "renameat",
    "renameat2",
    "fchown",
    "fchmod",
    "unlinkat",
];

/// Lines of the thread that publishes: it is the one that marks its way.
fn of_the_publisher(trace: &str) -> Vec<&str> {
    let thread = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let publisher = trace.lines().find(|line| line.contains("/c\"") || line.contains(".evercred")).and_then(thread);
    trace.lines().filter(|line| thread(line) == publisher).collect()
}

fn call_of(line: &str) -> &str {
    line.split_whitespace().nth(1).and_then(|rest| rest.split('(').next()).unwrap_or_default()
}

fn strace_works() -> bool {
    let tried = Command::new("strace").args(["-f", "-qq", "-o", "/dev/null", "true"]).output();
    tried.is_ok_and(|output| output.status.success())
}

#[test]
fn a_fault_in_any_system_call_of_a_publish_tears_nothing_and_loses_nothing_that_was_written() {
    if !strace_works() {
        println!("skipped: strace is not there, or may not trace (apt-get install strace)");
        return;
    }
    let started = Instant::now();
    let (code, trace) = Broken::new().publish(None);
    assert_eq!(code, Some(0), "undisturbed it works\n{trace}");
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    of_the_publisher(&trace).into_iter().map(call_of).for_each(|call| *counts.entry(call).or_default() += 1);
    let (mut runs, mut lost) = (0, Vec::new());
    for (&call, &count) in counts.iter().filter(|(call, _)| **call != "chdir") {
        for n in 1..=count {
            let mut faults = vec!["signal=SIGKILL".to_owned()];
            for error in ["ENOSPC", "EIO", "EROFS", "EMFILE"] {
                if error != "EMFILE" || call.starts_with("open") {
                    faults.push(format!("error={error}"));
                }
            }
            for (fault, when) in
                faults.iter().map(|fault| (fault, format!("{n}"))).chain([(&faults[2], format!("{n}+"))])
            {
                let inject = format!("{call}:{fault}:when={when}");
                let broken = Broken::new();
                let (code, trace) = broken.publish(Some(&inject));
                runs += 1;
                judge(&broken, &inject, code, &trace, &mut lost);
            }
        }
    }
    println!(
        "{runs} publishes broken, one at each of {counts:?}; refresh tokens lost: {} (each before it was written), {:.0} s",
        lost.len(),
        started.elapsed().as_secs_f64()
    );
    for inject in lost {
        println!("  {inject}");
    }
}

/// What is on the disk after a fault, and after the next start.
fn judge(broken: &Broken, inject: &str, code: Option<i32>, trace: &str, lost: &mut Vec<String>) {
    let new_top = OLD_TOP.replace("one", "two");
    let (top, used) = (broken.read("s.top"), broken.read("s.use"));
    assert!(top == OLD_TOP || top == new_top, "{inject}: torn: {top:?}");
    assert!(used == OLD_USE || used == NEW_USE, "{inject}: torn: {used:?}");
    assert!(used == OLD_USE || top == new_top, "{inject}: the access token is visible before the refresh token");
    let spool = Spool::open(&broken.directory(), Owners::usual(None)).unwrap_or_else(|e| panic!("{inject}: {e}"));
    drop(spool);
    let (top, again) = (broken.read("s.top"), broken.read("s.use"));
    assert!(top == OLD_TOP || top == new_top, "{inject}: torn by the start: {top:?}");
    assert_eq!(again, used, "{inject}: the start does not touch the .use");
    let left = fs::read_dir(broken.directory()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = left.filter(|name| is_left(name)).collect();
    assert_eq!(left, Vec::<String>::new(), "{inject}: leftovers are cleaned");
    let (spent, written) = (trace.contains("\"/spent\""), is_written(trace));
    match code {
        Some(0) => assert!(top == new_top && used == NEW_USE, "{inject}: it said that it was done"),
        // It did not start, or got no further than the reservation (127, 101: not even the test program could start).
        Some(3 | 4 | 101 | 127) => assert!(!spent && top == OLD_TOP, "{inject}: nothing was spent"),
        Some(5 | 6) | None => {}
        Some(other) => panic!("{inject}: exit {other}\n{trace}"),
    }
    if inject.contains("SIGKILL") {
        assert_eq!(code, None, "{inject}: killed");
    }
    if spent && top != new_top {
        assert!(!written, "{inject}: written, and lost all the same\n{trace}");
        lost.push(inject.to_owned());
    }
    // A fault that passes is no reason to lose anything.
    let passes = inject.contains("error=") && !inject.ends_with('+');
    assert!(!(passes && spent) || top == new_top, "{inject}: the next try did not save it\n{trace}");
}

/// The rotated text got its name.
fn is_written(trace: &str) -> bool {
    trace
        .lines()
        .any(|line| call_of(line).starts_with("rename") && line.contains(".evercred-keep-") && line.ends_with("= 0"))
}

/// The credmon under strace, with a fault in one call of every one of its threads.
fn traced(site: &Site, call: &str, fault: &str) -> Command {
    let plain = site.command();
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e"]);
    traced.arg(format!("inject={call}:{fault}")).arg(plain.get_program()).args(plain.get_args());
    traced.stdin(Stdio::null()).stderr(Stdio::null());
    traced
}

/// Alice's refresh token is the one that the issuer takes, and the next start goes on with it.
fn goes_on(mut site: Site, what: &str) {
    drop(Spool::open(&site.credentials(), Owners::usual(None)).unwrap());
    let token = whole_top(&site.credentials().join("alice/grid.top"));
    assert_eq!(site.issuer.control().standing(&token), Standing::Current, "{what}\n{}", site.log());
    site.start();
    site.wait("the next start goes on", 30, |site| site.file("alice", "grid.use").is_some());
    assert_eq!(site.issuer.control().stats().refused, 0, "{what}\n{}", site.log());
}

#[test]
fn a_credmon_killed_at_a_sync_or_at_the_swap_loses_no_refresh_token() {
    if !strace_works() {
        println!("skipped: strace is not there, or may not trace (apt-get install strace)");
        return;
    }
    for call in ["fsync", "renameat2"] {
        let site = Site::new(600, Rotation::Strict);
        site.grid("alice");
        let status = traced(&site, call, "signal=SIGKILL:when=1").arg("--once").status().unwrap();
        assert!(!status.success() && site.exchanges("alice") == 1, "{call}: {status}\n{}", site.log());
        goes_on(site, call);
    }
}

#[test]
fn a_stop_while_the_disk_takes_nothing_comes_in_time_and_loses_no_refresh_token() {
    if !strace_works() {
        println!("skipped: strace is not there, or may not trace (apt-get install strace)");
        return;
    }
    for (call, error) in [("fsync", "EIO"), ("fsync", "ENOSPC"), ("renameat2", "EROFS"), ("renameat2", "EIO")] {
        let what = format!("{call}: {error}");
        let mut site = Site::new(600, Rotation::Strict);
        site.grid("alice");
        site.credmon = Some(traced(&site, call, &format!("error={error}")).spawn().unwrap());
        site.wait("the disk refuses", 30, |site| {
            site.log().contains("kind=publish-failed") || site.log().contains("kind=no-space")
        });
        let keeper = fs::read_to_string(site.credentials().join("pid")).unwrap().trim().parse().unwrap();
        let asked = Instant::now();
        kill(Signal::SIGTERM, keeper);
        let status = site.credmon.take().unwrap().wait().unwrap();
        // Two seconds, and what strace takes.
        assert!(
            status.success() && asked.elapsed() < Duration::from_secs(4),
            "{what}: {status}, {:?}",
            asked.elapsed()
        );
        assert!(site.file("alice", "grid.use").is_none(), "{what}: the access token stays behind the refresh token");
        goes_on(site, &what);
    }
}

#[test]
fn a_rotated_refresh_token_that_does_not_get_into_its_place_outlives_a_reload_and_a_stop() {
    let mut site = Site::new(600, Rotation::Strict);
    let control = site.issuer.control();
    for user in ["alice", "carol"] {
        site.grid(user);
    }
    let mut unprivileged = site.unprivileged();
    let mode = |user: &str, mode| {
        fs::set_permissions(site.credentials().join(user), fs::Permissions::from_mode(mode)).unwrap();
    };
    // Nothing can be renamed in there.
    mode("alice", 0o500);
    mode("carol", 0o500);
    site.credmon = Some(unprivileged.spawn().unwrap());
    let written = |site: &Site| ours(site).iter().filter(|name| name.starts_with(".evercred-keep-")).count();
    site.wait("both are written", 30, |site| {
        written(site) == 2 && site.log().matches("kind=publish-failed").count() == 2
    });
    site.configure("services = [\"grid\", \"second\"]");
    site.signal("-HUP");
    site.wait("the reload", 30, |site| site.log().contains("configuration reloaded"));
    let standing =
        |site: &Site, user: &str| control.standing(&whole_top(&site.credentials().join(user).join("grid.top")));
    assert!(matches!(standing(&site, "alice"), Standing::Superseded { .. }), "not there yet");
    fs::set_permissions(site.credentials().join("alice"), fs::Permissions::from_mode(0o700)).unwrap();
    site.wait("alice's token gets there after the reload", 60, |site| standing(site, "alice") == Standing::Current);
    site.wait("and brings an access token", 30, |site| site.file("alice", "grid.use").is_some());
    let asked = Instant::now();
    site.signal("-TERM");
    let status = site.credmon.take().unwrap().wait().unwrap();
    assert!(status.success() && asked.elapsed() < Duration::from_secs(2), "{status} after {:?}", asked.elapsed());
    assert!(site.log().contains("a rotated refresh token did not get into its .top; the next start tries again"));
    assert!(matches!(standing(&site, "carol"), Standing::Superseded { .. }) && written(&site) == 1);
    fs::set_permissions(site.credentials().join("carol"), fs::Permissions::from_mode(0o700)).unwrap();
    site.credmon = Some(unprivileged.spawn().unwrap());
    site.wait("carol's token gets there at the start", 30, |site| site.file("carol", "grid.use").is_some());
    assert_eq!((standing(&site, "carol"), written(&site)), (Standing::Current, 0));
    assert_eq!(control.stats().refused, 0, "{}", site.log());
}

/// A small disk over the credential directory; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(site: &Site) -> Option<Self> {
        let at = site.credentials();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=160k,mode=0700", "tmpfs"]).arg(&at).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(at))
    }

    /// Leave that many bytes.
    fn fill(&self, leave: u64) {
        let filler = self.0.join("filler");
        let full = fs::write(&filler, vec![b'x'; 1 << 20]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        let file = fs::OpenOptions::new().write(true).open(&filler).unwrap();
        file.set_len(file.metadata().unwrap().len() - leave).unwrap();
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
fn a_disk_full_before_the_exchange_spends_nothing_and_one_that_fills_up_during_it_has_room_reserved() {
    let mut site = Site::new(600, Rotation::Strict);
    let Some(disk) = SmallDisk::mount(&site) else {
        println!("skipped: only root may mount a small disk");
        return;
    };
    let control = site.issuer.control();
    site.start();
    site.wait("the start", 30, |site| site.credentials().join("CREDMON_COMPLETE").exists());
    // A .top finds room, and nothing else does.
    disk.fill(8192);
    site.grid("alice");
    site.wait("no space", 30, |site| site.log().contains("kind=no-space"));
    assert_eq!(control.stats().requests, 0, "nobody was asked");
    disk.free();
    site.wait("room again", 60, |site| site.file("alice", "grid.use").is_some());
    control.set_latency(Duration::from_millis(1500));
    site.grid("bob");
    site.wait("the exchange is under way", 30, |_| control.stats().in_flight == 1);
    disk.fill(0);
    site.wait("bob all the same", 30, |site| site.file("bob", "grid.use").is_some());
    assert_eq!(site.exchanges("bob"), 1);
    for user in ["alice", "bob"] {
        let directory = site.credentials().join(user);
        assert_eq!(control.standing(&whole_top(&directory.join("grid.top"))), Standing::Current);
        assert_whole_use(&directory.join("grid.use"));
    }
    drop(site.credmon.take().map(|mut child| child.kill().and_then(|()| child.wait())));
    drop(disk);
}
