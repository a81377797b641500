//! The credmon as a process: how it ends and with which exit code, what signals do, and what it never opens.

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    collections::BTreeSet,
    fs,
    process::Stdio,
    time::{Duration, Instant},
};

use evercred::demo::issuer::{Fault, Rotation};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use self::site::Site;

/// How it ends that is not let start: exit code, and what it says.
fn refused(site: &Site, under_master: bool) -> (Option<i32>, String) {
    let mut command = site.command();
    if under_master {
        command.env("CONDOR_INHERIT", "4711 <127.0.0.1:9618> 0 0");
    }
    let output = command.stderr(Stdio::piped()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn bad_configuration_is_exit_code_99_under_condor_master_and_78_elsewhere() {
    let site = Site::new(600, Rotation::None);
    let key = site.home.path().join("no.key");
    // One that the reading finds, and one that only the start does.
    for (more, word) in [("scoops = 1", "scoops"), (&format!("fernet_key_file = \"{}\"", key.display()), "no.key")] {
        site.configure(more);
        for (under_master, code) in [(true, 99), (false, 78)] {
            let (ended, text) = refused(&site, under_master);
            assert_eq!(ended, Some(code), "{text}");
            assert!(text.contains(word), "{text}");
        }
    }
    // What another start may find in order is started again.
    site.configure("");
    fs::rename(site.credentials(), site.home.path().join("away")).unwrap();
    assert_eq!(refused(&site, true).0, Some(1));
}

#[test]
fn a_log_that_cannot_be_written_is_exit_code_44() {
    let site = Site::new(600, Rotation::None);
    fs::create_dir(site.home.path().join("log")).unwrap();
    for under_master in [true, false] {
        let (ended, text) = refused(&site, under_master);
        assert_eq!(ended, Some(44), "{text}");
        assert!(text.contains(&site.home.path().join("log").display().to_string()), "{text}");
    }
    assert!(!site.credentials().join("pid").exists());
}

fn send(site: &Site, signal: Signal) {
    let pid = site.credmon.as_ref().unwrap().id();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Alice has a token; bob's exchange hangs at the issuer for longer than any test takes.
fn busy() -> Site {
    let mut site = Site::new(600, Rotation::None);
    site.configure_with(
        "metrics_listen = \"127.0.0.1:0\"\nweb_approval_listen = \"127.0.0.1:0\"\nweb_approval_url = \
         \"https://ap.example.org\"\n",
        "",
        &format!(
            "[provider.slow]\nkind = \"oauth2\"\nissuer = \"{}\"\nclient_id = \"c\"\ntimeout = \"10m\"",
            site.issuer.url()
        ),
    );
    site.issuer.control().set_fault(Some("bob"), Some(Fault::Hang));
    site.store("bob", "slow", site.refresh_token("bob").as_bytes());
    site.grid("alice");
    site.start();
    site.wait("alice's token", 30, |site| site.file("alice", "grid.use").is_some());
    site.wait("bob's exchange", 30, |site| site.issuer.control().stats().in_flight > 0);
    site
}

#[test]
fn a_second_signal_ends_it_without_waiting_for_what_is_under_way() {
    for (first, second) in [(Signal::SIGTERM, Signal::SIGTERM), (Signal::SIGINT, Signal::SIGQUIT)] {
        let mut site = busy();
        send(&site, first);
        // Signals of one kind that wait for their turn are one.
        std::thread::sleep(Duration::from_millis(50));
        send(&site, second);
        let mut credmon = site.credmon.take().unwrap();
        assert_eq!(credmon.wait().unwrap().code(), Some(0));
        assert!(!site.log().lines().any(|line| line.ends_with("stopped")), "{}", site.log());
        assert!(!site.credentials().join("pid").exists());
        let left = fs::read_dir(site.credentials()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with(".evercred-")).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("keep")), "{left:?}");
    }
}

#[test]
fn many_hangups_are_one_reload_a_second_and_the_last_one_counts() {
    let mut site = Site::new(600, Rotation::None);
    site.start();
    site.wait("the start", 30, |site| site.log().contains("courier is ready"));
    site.configure("scoops = 1");
    let began = Instant::now();
    let reloads = |site: &Site| site.log().matches("keeping the old settings").count();
    let mut sent = 0;
    while began.elapsed() < Duration::from_millis(2500) {
        send(&site, Signal::SIGHUP);
        sent += 1;
        std::thread::sleep(Duration::from_millis(10));
    }
    let (found, seconds) = (reloads(&site), began.elapsed().as_secs());
    assert!(found >= 1 && u64::try_from(found).unwrap() <= seconds + 1, "{found} in {seconds} s of {sent} signals");
    // Right behind a reload: it is late, and it comes.
    site.configure("services = [\"grid\", \"second\"]");
    send(&site, Signal::SIGHUP);
    site.wait("the last reload", 30, |site| site.log().contains("configuration reloaded"));
    assert_eq!(site.log().matches("configuration reloaded").count(), 1);
}

/// Sockets that a process holds.
fn sockets(pid: u32) -> BTreeSet<String> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    // One that is closed meanwhile is gone.
    let links = descriptors.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    links.filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect()
}

/// Inodes of all sockets of the network that this host has.
fn of_the_network() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (table, column) in [
        ("tcp", 9),
        ("tcp6", 9),
        ("udp", 9),
        ("udp6", 9),
        ("udplite", 9),
        ("udplite6", 9),
        ("raw", 9),
        ("raw6", 9),
        ("icmp", 9),
        ("icmp6", 9),
        ("packet", 8),
        ("netlink", 9),
    ] {
        let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        found.extend(text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(column).map(str::to_owned)));
    }
    found
}

#[test]
fn the_keeper_opens_no_socket_of_the_network_while_it_renews_and_serves() {
    let mut site = busy();
    let keeper = site.credmon.as_ref().unwrap().id();
    let log = site.log();
    let ready = log.lines().find(|line| line.contains("courier is ready")).unwrap();
    let courier: u32 = ready.split("pid=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    site.wait("the metrics", 30, |site| site.log().contains("metrics are at http://"));
    let mut looks = 0;
    for n in 0..40 {
        site.grid(&format!("user{n}"));
        let (held, network) = (sockets(keeper), of_the_network());
        assert!(!held.is_empty(), "its socketpair, its status socket");
        assert!(held.is_disjoint(&network), "{:?}", held.intersection(&network));
        if !sockets(courier).is_disjoint(&of_the_network()) {
            looks += 1;
        }
    }
    assert!(looks > 0, "the one process that may is seen with some");
    site.wait("the tokens", 30, |site| (0..40).all(|n| site.file(&format!("user{n}"), "grid.use").is_some()));
    assert!(sockets(keeper).is_disjoint(&of_the_network()));
    assert!(site.metrics().contains("evercred_"), "it served figures meanwhile");
    assert!(sockets(keeper).is_disjoint(&of_the_network()));
    send(&site, Signal::SIGTERM);
    assert!(site.credmon.take().unwrap().wait().unwrap().success());
    assert!(site.log().lines().any(|line| line.ends_with("stopped")), "a stop of its own accord says so");
}
