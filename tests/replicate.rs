//! Replication by the real credmon (keeper, courier and replicator) to directories, programs and `evercred receive`.

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use evercred::{
    demo::issuer::Rotation,
    replicate::place::{PlaceError, Placed, Root},
};
use serde_json::Value;

use self::site::Site;

/// Sites below `[site.…]`; `HOME` in the text is the test's directory.
fn configure(site: &Site, sites: &str) {
    site.configure("");
    let path = site.home.path().join("evercred.toml");
    let home = site.home.path().display().to_string();
    let daemon = format!("[daemon]\nstate_directory = \"{home}/state\"\nreplicate_user = \"nobody\"\n");
    let text = fs::read_to_string(&path).unwrap().replacen("[daemon]\n", &daemon, 1);
    fs::write(&path, text + &sites.replace("HOME", &home)).unwrap();
}

/// A directory that whoever replicates may write to.
fn place(site: &Site, name: &str) -> PathBuf {
    let path = site.home.path().join(name);
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    if nix::unistd::geteuid().is_root() {
        let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
        nix::unistd::chown(&path, Some(nobody.uid), Some(nobody.gid)).unwrap();
    }
    path
}

fn script(site: &Site, name: &str, text: &str) {
    let path = site.home.path().join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn token(site: &Site, user: &str) -> String {
    let text = site.file(user, "grid.use").map(|bytes| String::from_utf8(bytes).unwrap()).unwrap_or_default();
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    value.get("access_token").and_then(Value::as_str).unwrap_or("none yet").to_owned()
}

fn holds(path: &Path, text: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|there| there == text)
}

fn evercred(site: &Site, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evercred"));
    command.args(arguments).arg("--socket").arg(site.socket()).output().unwrap()
}

fn shown(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn stop(site: &mut Site) {
    site.signal("-TERM");
    site.credmon.take().unwrap().wait().unwrap();
}

const DIRECTORY: &str = "[site.shared]\nkind = \"directory\"\nservices = [\"grid\"]\ndirectory = \"HOME/dest\"\n";

#[test]
fn a_renewed_token_is_at_the_site_and_a_restart_sends_nothing_again() {
    let mut site = Site::new(600, Rotation::Strict);
    let dest = place(&site, "dest");
    configure(&site, DIRECTORY);
    site.grid("alice");
    site.start();
    let file = dest.join("alice_grid");
    site.wait("replicated", 20, |s| holds(&file, &token(s, "alice")));
    let meta = fs::metadata(&file).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
    site.wait("confirmed", 5, |s| shown(&evercred(s, &["replicate"])).contains("current"));
    let json = shown(&evercred(&site, &["status", "alice/grid", "--json"]));
    assert!(json.contains("\"site\": \"shared\"") && json.contains("\"behind\": false"), "{json}");
    stop(&mut site);
    site.start();
    site.wait("seen again", 20, |s| s.log().matches("replicator is ready").count() == 2);
    site.wait("current", 10, |s| shown(&evercred(s, &["replicate"])).contains("current"));
    assert_eq!(fs::metadata(&file).unwrap().ino(), meta.ino(), "not written again");
    assert_eq!(site.log().matches(" replicated ").count(), 1, "{}", site.log());
    // What an admin asks for is sent again, and a new token follows by itself.
    let now = evercred(&site, &["replicate", "alice/grid", "--now"]);
    assert!(now.status.success(), "{}", shown(&now));
    assert_ne!(fs::metadata(&file).unwrap().ino(), meta.ino());
    let before = token(&site, "alice");
    assert!(evercred(&site, &["renew", "alice/grid"]).status.success());
    site.wait("the new one", 20, |s| token(s, "alice") != before && holds(&file, &token(s, "alice")));
    assert!(!site.log().contains(&token(&site, "alice")), "no token in the log");
}

#[test]
fn a_site_that_became_another_destination_under_its_name_gets_the_token_there() {
    let mut site = Site::new(600, Rotation::Strict);
    let (dest, other) = (place(&site, "dest"), place(&site, "other"));
    let path = site.home.path().join("evercred.toml");
    configure(&site, DIRECTORY);
    site.grid("alice");
    site.start();
    let file = dest.join("alice_grid");
    site.wait("replicated", 20, |s| holds(&file, &token(s, "alice")));
    site.wait("confirmed", 10, |s| evercred(s, &["replicate"]).status.success());
    let reload = |from: &str, to: &str| {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        site.signal("-HUP");
    };
    reload("/dest\"", "/other\"");
    let moved = other.join("alice_grid");
    site.wait("at the new place", 20, |s| holds(&moved, &token(s, "alice")));
    site.wait("confirmed there", 10, |s| evercred(s, &["replicate"]).status.success());
    // The same file as something else: the generation that it has there must not keep that away.
    keygen(&site, "key");
    let home = site.home.path().display();
    reload("kind = \"directory\"", &format!("kind = \"directory\"\nkey_files = [\"{home}/key\"]"));
    site.wait("sealed", 20, |_| fs::read(&moved).is_ok_and(|bytes| bytes.starts_with(b"gAAAA")));
    site.wait("confirmed again", 10, |s| evercred(s, &["replicate"]).status.success());
    let log = fs::read_to_string(site.home.path().join("state/replicas.journal")).unwrap();
    assert!(!log.contains(fs::read_to_string(site.home.path().join("key")).unwrap().trim()));
}

#[test]
fn who_has_it_sent_once_more_hears_what_came_of_that_and_no_earlier_error() {
    let mut site = Site::new(600, Rotation::Strict);
    let dest = place(&site, "dest");
    script(&site, "slow", "[ -e \"$1/open\" ] || { echo shut >&2; exit 77; }; sleep 2; cat > \"$1/$EVERCRED_FILE\"");
    configure(&site, "[site.own]\nkind = \"exec\"\nservices = [\"grid\"]\ncommand = [\"HOME/slow\", \"HOME/dest\"]\n");
    site.grid("alice");
    site.start();
    site.wait("refused", 20, |s| shown(&evercred(s, &["replicate"])).contains("shut"));
    fs::write(dest.join("open"), "").unwrap();
    let now = evercred(&site, &["replicate", "--now"]);
    assert!(now.status.success() && shown(&now).contains("current"), "{}", shown(&now));
    assert!(holds(&dest.join("alice_grid"), &token(&site, "alice")));
}

#[test]
fn two_credentials_with_one_file_at_a_site_are_refused_there_until_one_leaves() {
    let mut site = Site::new(600, Rotation::Strict);
    let dest = place(&site, "dest");
    configure(&site, &format!("{DIRECTORY}file_name = \"token\"\n"));
    site.grid("alice");
    site.start();
    let file = dest.join("token");
    site.wait("one alone", 20, |s| holds(&file, &token(s, "alice")));
    let before = fs::read(&file).unwrap();
    site.grid("bob");
    site.wait("told", 20, |s| {
        shown(&evercred(s, &["replicate", "bob/grid"])).contains("same file there as alice/grid")
    });
    assert!(evercred(&site, &["renew", "alice/grid"]).status.success());
    site.wait("told of both", 20, |s| shown(&evercred(s, &["replicate", "alice/grid"])).contains("as bob/grid"));
    assert_eq!(fs::read(&file).unwrap(), before);
    fs::remove_dir_all(site.credentials().join("bob")).unwrap();
    site.wait("bob left", 20, |s| evercred(s, &["replicate", "bob/grid"]).status.code() == Some(3));
    evercred(&site, &["replicate", "--now"]);
    site.wait("one alone again", 20, |s| holds(&file, &token(s, "alice")) && fs::read(&file).unwrap() != before);
}

#[test]
fn without_a_journal_nothing_is_replicated_and_renewals_go_on() {
    let mut site = Site::new(600, Rotation::Strict);
    let dest = place(&site, "dest");
    let state = site.home.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o777)).unwrap();
    configure(&site, DIRECTORY);
    site.grid("alice");
    site.start();
    site.wait("renewed", 20, |s| s.file("alice", "grid.use").is_some());
    site.wait("told", 20, |s| s.log().contains("nothing is replicated until this is corrected"));
    let status = shown(&evercred(&site, &["status"]));
    assert!(status.contains("Nothing is replicated to the site shared") && status.contains("chmod 700"), "{status}");
    let doctor = Command::new(env!("CARGO_BIN_EXE_evercred"))
        .args(["doctor", "--config"])
        .arg(site.home.path().join("evercred.toml"))
        .output()
        .unwrap();
    let words = shown(&doctor).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("nothing is replicated to it") && words.contains("chmod 700"), "{words}");
    assert!(!evercred(&site, &["replicate", "--now"]).status.success());
    assert!(evercred(&site, &["renew", "alice/grid"]).status.success(), "{}", site.log());
    stop(&mut site);
    // A journal that is no journal is kept, and replication begins anew.
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(state.join("replicas.journal"), "no journal\n").unwrap();
    site.start();
    site.wait("replicated", 20, |s| holds(&dest.join("alice_grid"), &token(s, "alice")));
    assert!(site.log().contains("the whole file is kept"), "{}", site.log());
    let kept = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path());
    let kept: Vec<PathBuf> = kept.filter(|path| path.display().to_string().contains("damaged")).collect();
    assert!(matches!(&kept[..], [one] if holds(one, "no journal\n")), "{kept:?}");
}

#[test]
fn without_its_account_nothing_is_replicated_and_renewals_go_on() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root becomes another user");
        return;
    }
    let mut site = Site::new(600, Rotation::Strict);
    let dest = place(&site, "dest");
    configure(&site, DIRECTORY);
    let path = site.home.path().join("evercred.toml");
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.replace("\"nobody\"", "\"evercred-nobody-has-this\"")).unwrap();
    site.grid("alice");
    site.start();
    site.wait("renewed", 20, |s| s.file("alice", "grid.use").is_some());
    site.wait("told", 20, |s| s.log().contains("nothing is replicated until this is corrected"));
    let status = shown(&evercred(&site, &["status"]));
    assert!(status.contains("Nothing is replicated to the site shared"), "{status}");
    assert!(status.contains("evercred-nobody-has-this") && status.contains("useradd --system"), "{status}");
    assert!(evercred(&site, &["renew", "alice/grid"]).status.success(), "{}", site.log());
    assert!(!dest.join("alice_grid").exists());
    fs::write(&path, whole).unwrap();
    site.signal("-HUP");
    site.wait("replicated", 20, |s| holds(&dest.join("alice_grid"), &token(s, "alice")));
}

#[test]
fn rules_say_whose_tokens_go_where() {
    let mut site = Site::new(600, Rotation::Strict);
    let dest = place(&site, "dest");
    configure(
        &site,
        "[site.one]\nkind = \"directory\"\nservices = [\"grid\"]\nusers = [\"alice\"]\ndirectory = \"HOME/dest/{user}\"\n\
         file_name = \"one\"\n[site.group]\nkind = \"directory\"\nservices = [\"*\"]\ngroups = [\"root\"]\n\
         directory = \"HOME/dest\"\nfile_name = \"group-{user}\"\n",
    );
    for user in ["alice", "bob", "root"] {
        site.grid(user);
    }
    site.start();
    site.wait("both", 20, |s| {
        holds(&dest.join("alice/one"), &token(s, "alice")) && holds(&dest.join("group-root"), &token(s, "root"))
    });
    site.wait("bob renewed", 20, |s| s.file("bob", "grid.use").is_some());
    std::thread::sleep(Duration::from_millis(500));
    let mut names: Vec<_> = fs::read_dir(&dest).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".group-root.seq", "alice", "group-root"]);
}

#[test]
fn a_program_gets_the_token_on_its_input_alone() {
    let mut site = Site::new(600, Rotation::Strict);
    let dest = place(&site, "dest");
    script(
        &site,
        "push",
        "cat > \"$1/token\"; tr '\\0' '\\n' < /proc/$$/environ > \"$1/environ\"; tr '\\0' ' ' < /proc/$$/cmdline > \"$1/argv\"",
    );
    configure(&site, "[site.own]\nkind = \"exec\"\nservices = [\"grid\"]\ncommand = [\"HOME/push\", \"HOME/dest\"]\n");
    site.grid("alice");
    site.start();
    site.wait("delivered", 20, |s| holds(&dest.join("token"), &token(s, "alice")));
    site.wait("told", 20, |_| dest.join("argv").exists());
    let environment = fs::read_to_string(dest.join("environ")).unwrap();
    for line in ["EVERCRED_SITE=own", "EVERCRED_USER=alice", "EVERCRED_SERVICE=grid", "EVERCRED_FILE=alice_grid"] {
        assert!(environment.lines().any(|l| l == line), "{environment}");
    }
    let token = token(&site, "alice");
    for file in ["environ", "argv"] {
        assert!(!fs::read_to_string(dest.join(file)).unwrap().contains(&token), "{file}");
    }
}

#[test]
fn a_site_that_never_answers_and_one_that_prints_the_token_delay_nobody_and_leak_nothing() {
    let mut site = Site::new(600, Rotation::Strict);
    let dest = place(&site, "dest");
    script(&site, "hang", "while :; do sleep 1; done");
    script(&site, "blab", "cat >&2; exit 1");
    let hang = "[site.hang]\nkind = \"exec\"\nservices = [\"grid\"]\ncommand = [\"HOME/hang\"]\ntimeout = \"2s\"\n\
                [site.blab]\nkind = \"exec\"\nservices = [\"grid\"]\ncommand = [\"HOME/blab\"]\n";
    configure(&site, &format!("{hang}{DIRECTORY}"));
    for n in 0..30 {
        site.grid(&format!("u{n}"));
    }
    site.start();
    site.wait("all at the good site", 30, |s| {
        (0..30).all(|n| holds(&dest.join(format!("u{n}_grid")), &token(s, &format!("u{n}"))))
    });
    site.wait("the failures are told", 20, |s| {
        let log = s.log();
        log.contains("kind=site-timeout") && log.contains("kind=site-error")
    });
    let status = shown(&evercred(&site, &["replicate", "u1/grid"]));
    assert!(status.contains("hang") && status.contains("behind"), "{status}");
    for n in 0..30 {
        assert!(!site.log().contains(&token(&site, &format!("u{n}"))), "the program printed it, the log has it not");
    }
    // Thirty were started by then; each is a process by this name, as long as it runs.
    let left =
        Command::new("pgrep").args(["-c", "-f", &format!("{}/hang", site.home.path().display())]).output().unwrap();
    let left: usize = String::from_utf8(left.stdout).unwrap().trim().parse().unwrap();
    assert!(left <= 4, "hanging programs do not pile up: {left}");
}

/// Whoever opens this file waits, as for a mount that hangs: its lease (fcntl(2)) is held, and not given back before
/// the kernel takes it, 45 s later.
struct Hung(std::process::Child);

fn hang(path: &Path) -> Hung {
    const HOLD: &str = "import fcntl, os, signal, sys\n\
        signal.signal(signal.SIGIO, signal.SIG_IGN)\n\
        fcntl.fcntl(os.open(sys.argv[1], os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
        print('held', flush=True)\n\
        sys.stdin.read()\n";
    let mut holder = Command::new("python3");
    let mut holder = holder.args(["-c", HOLD]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    std::io::BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "held\n");
    Hung(holder)
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Of a server that is not there, with a token in a file.
fn kubeconfig(token_file: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         clusters: [{{name: k, cluster: {{server: 'https://127.0.0.1:1'}}}}]\n\
         users: [{{name: u, user: {{tokenFile: {token_file}}}}}]\n"
    )
}

#[test]
fn a_cluster_is_found_although_files_are_closed_and_one_that_hangs_keeps_no_other_from_that() {
    let mut site = Site::new(600, Rotation::Strict);
    let cluster = |name: &str| {
        format!(
            "[site.{name}]\nkind = \"kubernetes\"\nservices = [\"grid\"]\ntimeout = \"2s\"\nkubeconfig = \"HOME/{name}/config\"\n"
        )
    };
    let good = place(&site, "good");
    // In another directory, and relative to the kubeconfig's.
    fs::write(place(&site, "tokens").join("token"), "a-token").unwrap();
    fs::set_permissions(site.home.path().join("tokens/token"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(good.join("config"), kubeconfig("../tokens/token")).unwrap();
    configure(&site, &cluster("good"));
    site.grid("alice");
    site.start();
    let told = |s: &Site, name: &str, kind: &str| {
        let (name, kind) = (format!(" site={name} "), format!("kind={kind}"));
        s.log().lines().any(|line| line.contains(&name) && line.contains(&kind))
    };
    site.wait("found, and not there", 20, |s| told(s, "good", "site-unreachable"));
    assert!(!site.log().contains("a kubeconfig does not answer"), "{}", site.log());
    stop(&mut site);
    fs::remove_file(site.home.path().join("log")).unwrap();
    let pipe = place(&site, "hung").join("config");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    configure(&site, &(cluster("hung") + &cluster("good")));
    site.start();
    site.wait("timed out", 20, |s| told(s, "hung", "site-timeout"));
    site.wait("found all the same", 20, |s| told(s, "good", "site-unreachable"));
    assert!(site.log().contains("no landlock: a kubeconfig does not answer"), "{}", site.log());
    stop(&mut site);
}

#[test]
fn sites_whose_files_and_programs_hang_time_out_and_delay_neither_another_nor_the_end() {
    let mut site = Site::new(600, Rotation::Strict);
    let dest = place(&site, "dest");
    let hanging = ["program", "ssh", "store"].map(|name| {
        script(&site, name, "exit 0");
        hang(&site.home.path().join(name))
    });
    let pipe = site.home.path().join("kubeconfig");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    let all = "services = [\"grid\"]\ntimeout = \"1s\"\n";
    fs::write(site.home.path().join("keyed"), kubeconfig("kubeconfig")).unwrap();
    let sites = [
        format!("[site.keyed]\nkind = \"kubernetes\"\n{all}kubeconfig = \"HOME/keyed\"\n"),
        format!("[site.cluster]\nkind = \"kubernetes\"\n{all}kubeconfig = \"HOME/kubeconfig\"\n"),
        format!("[site.own]\nkind = \"exec\"\n{all}command = [\"HOME/program\"]\n"),
        format!("[site.far]\nkind = \"ssh\"\n{all}host = \"far\"\nssh_program = \"HOME/ssh\"\ndirectory = \"/d\"\n"),
        format!(
            "[site.pool]\nkind = \"credd\"\n{all}host = \"p\"\nuser_domain = \"d\"\ncondor_store_cred = \"HOME/store\"\n"
        ),
        DIRECTORY.to_owned(),
    ];
    configure(&site, &sites.concat());
    site.grid("alice");
    site.start();
    let file = dest.join("alice_grid");
    site.wait("at the good site", 20, |s| holds(&file, &token(s, "alice")));
    for name in ["cluster", "keyed", "own", "far", "pool"] {
        site.wait(name, 20, |s| {
            let named = format!(" site={name} ");
            s.log().lines().any(|line| line.contains(&named) && line.contains("kind=site-timeout"))
        });
    }
    let before = token(&site, "alice");
    assert!(evercred(&site, &["renew", "alice/grid"]).status.success());
    site.wait("the next one, while they hang", 20, |s| token(s, "alice") != before && holds(&file, &token(s, "alice")));
    let replicator = Path::new("/proc").join(replicator_pid(&site));
    site.signal("-TERM");
    let mut credmon = site.credmon.take().unwrap();
    site.wait("the end", 10, |_| credmon.try_wait().unwrap().is_some());
    site.wait("and that of its replicator", 10, |_| !replicator.exists());
    drop(hanging);
}

#[test]
fn a_site_that_was_gone_gets_the_newest_when_it_comes_back() {
    let mut site = Site::new(600, Rotation::Strict);
    let dest = place(&site, "dest");
    configure(&site, DIRECTORY);
    let away = site.home.path().join("away");
    fs::rename(&dest, &away).unwrap();
    site.grid("alice");
    site.start();
    site.wait("told", 20, |s| s.log().contains("kind=site-unreachable"));
    assert!(site.file("alice", "grid.use").is_some(), "renewals go on");
    let before = token(&site, "alice");
    assert!(evercred(&site, &["renew", "alice/grid"]).status.success());
    assert_ne!(token(&site, "alice"), before);
    assert!(!evercred(&site, &["replicate"]).status.success(), "a failed replication is no success");
    fs::rename(&away, &dest).unwrap();
    site.wait("back", 40, |s| holds(&dest.join("alice_grid"), &token(s, "alice")));
    site.wait("current", 10, |s| evercred(s, &["replicate"]).status.success());
}

#[test]
fn a_full_disk_at_the_site_is_told_keeps_the_old_file_and_mends() {
    let mut site = Site::new(600, Rotation::Strict);
    let dest = place(&site, "dest");
    let mount = |args: &[&str]| Command::new("mount").args(args).arg(&dest).stderr(Stdio::null()).status();
    let options = "size=16k,mode=777,nr_inodes=100";
    if !mount(&["-t", "tmpfs", "-o", options, "none"]).is_ok_and(|status| status.success()) {
        eprintln!("skipped: a file system of 16 KiB cannot be mounted here (needs root)");
        return;
    }
    let _mounted = Unmount(dest.clone());
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    nix::unistd::chown(&dest, Some(nobody.uid), Some(nobody.gid)).unwrap();
    fs::set_permissions(&dest, fs::Permissions::from_mode(0o700)).unwrap();
    configure(&site, DIRECTORY);
    site.grid("alice");
    site.start();
    let file = dest.join("alice_grid");
    site.wait("the first", 20, |s| holds(&file, &token(s, "alice")));
    let old = fs::read(&file).unwrap();
    fs::File::create(dest.join("fill")).unwrap().write_all(&[0; 16 << 10]).unwrap_err();
    assert!(evercred(&site, &["renew", "alice/grid"]).status.success());
    site.wait("told", 20, |s| s.log().contains("kind=site-full"));
    assert_eq!(fs::read(&file).unwrap(), old);
    fs::remove_file(dest.join("fill")).unwrap();
    site.wait("mended", 40, |s| holds(&file, &token(s, "alice")));
}

#[test]
fn where_there_is_no_room_for_its_sequence_a_first_file_does_not_appear_and_the_next_try_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=32k,mode=700", "none"]).arg(&disk).status();
    if !mount.is_ok_and(|status| status.success()) {
        println!("skipped: a file system of 32 KiB cannot be mounted here (needs root)");
        return;
    }
    let _mounted = Unmount(disk.clone());
    let root = Root::open(&disk).unwrap();
    // One page is left: enough for the file, and not for its sequence as well.
    let mut fill = fs::File::create(disk.join("fill")).unwrap();
    fill.write_all(&vec![0; 28 << 10]).unwrap();
    assert!(matches!(root.place("token", 7, 0o600, b"seven"), Err(PlaceError::NoSpace { .. })));
    assert!(!disk.join("token").exists());
    drop(fill);
    fs::remove_file(disk.join("fill")).unwrap();
    assert_eq!(root.place("token", 7, 0o600, b"seven").unwrap(), Placed::Written);
    assert_eq!(root.place("token", 6, 0o600, b"six").unwrap(), Placed::Superseded { have: 7 });
    assert!(holds(&disk.join("token"), "seven"));
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// Of the first one.
fn replicator_pid(site: &Site) -> String {
    let log = site.log();
    let told = log.lines().find(|line| line.contains("replicator is ready")).unwrap().split("pid=").nth(1).unwrap();
    told.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn a_replicator_that_is_killed_is_started_again_and_loses_nothing() {
    let mut site = Site::new(600, Rotation::Strict);
    let dest = place(&site, "dest");
    script(&site, "slow", "sleep 3; cat > \"$1/$EVERCRED_FILE\"");
    configure(&site, "[site.slow]\nkind = \"exec\"\nservices = [\"grid\"]\ncommand = [\"HOME/slow\", \"HOME/dest\"]\n");
    site.grid("alice");
    site.start();
    site.wait("it is up", 20, |s| s.log().contains("replicator is ready") && s.file("alice", "grid.use").is_some());
    std::thread::sleep(Duration::from_millis(500));
    assert!(Command::new("kill").args(["-KILL", &replicator_pid(&site)]).status().unwrap().success());
    site.wait("delivered by the next one", 40, |s| holds(&dest.join("alice_grid"), &token(s, "alice")));
    assert_eq!(site.log().matches("replicator is ready").count(), 2);
}

fn keygen(site: &Site, name: &str) -> PathBuf {
    let path = site.home.path().join(name);
    let made = Command::new(env!("CARGO_BIN_EXE_evercred")).arg("keygen").arg(&path).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!shown(&made).contains(fs::read_to_string(&path).unwrap().trim()), "the key is not printed");
    let again = Command::new(env!("CARGO_BIN_EXE_evercred")).arg("keygen").arg(&path).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "a key is never overwritten");
    path
}

fn receive(arguments: &[&str], input: &[u8]) -> (Option<i32>, Vec<Value>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_evercred"))
        .arg("receive")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // One that refuses to begin does not read.
    child.stdin.take().unwrap().write_all(input).ok();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn what_is_sealed_here_is_received_there_once_and_by_its_key_alone() {
    let mut site = Site::new(600, Rotation::Strict);
    let dest = place(&site, "dest");
    keygen(&site, "key");
    let other = keygen(&site, "other");
    configure(&site, &format!("{DIRECTORY}key_files = [\"HOME/key\"]\nmax_age = \"1h\"\n"));
    site.grid("alice");
    site.start();
    let file = dest.join("alice_grid");
    site.wait("sealed", 20, |_| file.exists());
    let first = fs::read(&file).unwrap();
    assert!(first.starts_with(b"gAAAA") && !String::from_utf8_lossy(&first).contains(&token(&site, "alice")));
    let old = token(&site, "alice");
    assert!(evercred(&site, &["renew", "alice/grid"]).status.success());
    site.wait("the second", 20, |_| fs::read(&file).unwrap() != first);
    let second = fs::read(&file).unwrap();
    stop(&mut site);
    // The far end has the same path in a place of its own: the envelope is bound to it.
    let key = site.home.path().join("key");
    let far = site.home.path().join("far");
    fs::create_dir(&far).unwrap();
    let (root, key) = (dest.display().to_string(), key.display().to_string());
    let codes = |(code, verdicts): (Option<i32>, Vec<Value>)| {
        let codes: Vec<String> = verdicts.iter().map(|v| v.get("code").unwrap().as_str().unwrap().to_owned()).collect();
        (code, codes)
    };
    let good = ["--directory", root.as_str(), "--key-file", key.as_str(), "--site", "shared"];
    // What lies there carries its own sequence; the far end begins with none.
    fs::remove_file(dest.join(".alice_grid.seq")).unwrap();
    let lines = [second.as_slice(), b"\n", &first, b"\n", &second, b"\n"].concat();
    let expected = vec!["WRITTEN".to_owned(), "SUPERSEDED".into(), "SUPERSEDED".into()];
    assert_eq!(codes(receive(&good, &lines)), (Some(0), expected));
    assert!(!holds(&file, &old) && fs::read_to_string(&file).unwrap() == token(&site, "alice"));
    let refused = |arguments: &[&str], want: &str| {
        assert_eq!(codes(receive(arguments, &second)), (Some(1), vec![want.to_owned()]), "{arguments:?}");
    };
    let (other, far) = (other.display().to_string(), far.display().to_string());
    refused(&["--directory", &root, "--key-file", &other], "DECRYPT");
    refused(&["--directory", &far, "--key-file", &key], "PATH_NOT_ALLOWED");
    refused(&["--directory", &root, "--key-file", &key, "--site", "another"], "NOT_FOR_US");
    refused(&["--directory", &root, "--key-file", "/nowhere/key"], "NO_KEY");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    refused(&["--directory", &root, "--key-file", &key], "KEY_MODE");
}

#[test]
fn one_renewed_token_reaches_a_hundred_sites_of_two_kinds() {
    let mut site = Site::new(600, Rotation::Strict);
    let dest = place(&site, "dest");
    script(&site, "push", "cat > \"$1/$EVERCRED_SITE\"");
    let mut sites = String::new();
    for n in 0..50 {
        write!(
            sites,
            "[site.d{n}]\nkind = \"directory\"\nservices = [\"grid\"]\ndirectory = \"HOME/dest\"\nfile_name = \"d{n}\"\n\
             [site.e{n}]\nkind = \"exec\"\nservices = [\"grid\"]\ncommand = [\"HOME/push\", \"HOME/dest\"]\n"
        )
        .unwrap();
    }
    configure(&site, &sites);
    site.grid("alice");
    site.start();
    let all = |s: &Site| {
        let token = token(s, "alice");
        (0..50).all(|n| holds(&dest.join(format!("d{n}")), &token) && holds(&dest.join(format!("e{n}")), &token))
    };
    site.wait("everywhere", 60, all);
    let before = token(&site, "alice");
    // From the order on: the renewal itself, and the tool's own look every 200 ms, are in it.
    let renewed = Instant::now();
    assert!(evercred(&site, &["renew", "alice/grid"]).status.success());
    site.wait("everywhere again", 60, |s| token(s, "alice") != before && all(s));
    let took = renewed.elapsed();
    // How fast, `benches/run --only B12` measures.
    println!("100 sites of two kinds after one renewal: {took:?}");
}
