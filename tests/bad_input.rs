//! What bad input gets, with the real credmon: one stable kind, one line in the log, every file as it was, and nobody
//! else is delayed. Answers of a misbehaving issuer are in `renewal.rs`.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fmt::Write as _,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use evercred::{
    demo::issuer::{Issuer, Options, Rotation, Running, Standing, TokenWish},
    spool::Seal,
};

use self::site::{COURIER, NOBODY, Site};

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Mode, owner, inode, time, length and content.
type File = (u32, u32, u64, i64, u64, Vec<u8>);

/// Everything below a directory, but for what the credmon puts at its top.
fn picture(root: &Path) -> BTreeMap<PathBuf, File> {
    let mut picture = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            let (path, meta) = (entry.path(), entry.path().symlink_metadata().unwrap());
            if meta.is_dir() {
                directories.push(path.clone());
            } else if directory == root && !meta.is_symlink() {
                continue;
            }
            let small = meta.is_file() && meta.len() < 1 << 20;
            let content = if small { fs::read(&path).unwrap_or_default() } else { Vec::new() };
            let times = if meta.is_dir() { 0 } else { meta.mtime_nsec() };
            picture.insert(path, (meta.mode(), meta.uid(), meta.ino(), times, meta.len(), content));
        }
    }
    picture
}

/// Put every bad thing into the site; what each is called in the log, and its kind.
fn spoil(site: &Site, unprivileged: bool) -> Vec<(String, &'static str)> {
    let at = |user: &str| site.credentials().join(user).join("grid.top");
    let mut expected = Vec::new();
    let mut expect = |user: &str, kind| expected.push((format!("user={user} "), kind));
    let seal = Seal::from_key("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
    let large = vec![b'a'; 256 * 1024 + 1];
    let contents: [(&str, &[u8], &str); 10] = [
        ("empty", b"", "top-empty"),
        ("blank", b" \n", "top-empty"),
        ("latin", b"{\"refresh_token\":\"caf\xe9\"}", "top-not-utf8"),
        ("large", &large, "top-too-large"),
        ("tokenless", b"{\"x\":1}", "top-no-token"),
        ("half", b"{\"refresh_token\":\"abc", "top-no-token"),
        ("list", b"[\"abc\"]", "top-no-token"),
        ("lines", b"two\nlines", "top-no-token"),
        ("control", b"{\"refresh_token\":\"a\\u0007b\"}", "top-no-token"),
        ("sealed", &seal.seal(b"{\"refresh_token\":\"abc\"}"), "top-sealed"),
    ];
    for (user, content, kind) in contents {
        site.store(user, "grid", content);
        expect(user, kind);
    }
    // Not regular, or not one of its own.
    for user in ["link", "twice", "fifo", "folder", "open", "sparse"] {
        site.store(user, "grid", b"abc");
        expect(user, if user == "open" { "top-wrong-owner" } else { "top-not-regular" });
    }
    expected.last_mut().unwrap().1 = "top-too-large";
    fs::rename(at("link"), at("link").with_file_name("elsewhere")).unwrap();
    symlink("elsewhere", at("link")).unwrap();
    fs::hard_link(at("twice"), at("twice").with_file_name("elsewhere")).unwrap();
    fs::remove_file(at("fifo")).unwrap();
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    fs::remove_file(at("folder")).unwrap();
    fs::create_dir(at("folder")).unwrap();
    mode(&at("open"), 0o640);
    fs::File::options().write(true).open(at("sparse")).unwrap().set_len(1 << 30).unwrap();
    // Directories.
    site.store("wide", "grid", b"abc");
    mode(&site.credentials().join("wide"), 0o703);
    expected.push(("user=wide ".into(), "directory-unfit"));
    symlink("wide", site.credentials().join("linked")).unwrap();
    expected.push(("path=linked ".into(), "directory-unfit"));
    for name in [OsStr::new("bad name"), OsStr::from_bytes(b"latin-\xe9")] {
        fs::DirBuilder::new().mode(0o700).create(site.credentials().join(name)).unwrap();
    }
    expected.push(("path=\"bad name\" ".into(), "name-refused"));
    expected.push(("path=latin-\u{fffd} ".into(), "name-refused"));
    site.store("odd", "grid_b\u{e4}", b"abc");
    site.store("odd", "else_b\u{e4}", b"not a service of ours: not a word about it");
    expected.push(("path=odd/grid_b\u{e4}.top ".into(), "name-refused"));
    // What only root can make, or what stops everybody but root.
    if is_root() && !unprivileged {
        site.store("foreign", "grid", b"abc");
        chown(at("foreign"), Some(12345), None).unwrap();
        expected.push(("user=foreign ".into(), "top-wrong-owner"));
        site.store("theirs", "grid", b"abc");
        chown(site.credentials().join("theirs"), Some(12345), None).unwrap();
        expected.push(("user=theirs ".into(), "directory-unfit"));
    } else {
        site.store("unreadable", "grid", b"abc");
        mode(&at("unreadable"), 0o000);
        expected.push(("user=unreadable ".into(), "top-unreadable"));
    }
    expected
}

fn bad_tops(unprivileged: bool) {
    let mut site = Site::new(600, Rotation::Strict);
    let expected = spoil(&site, unprivileged);
    site.grid("zoe");
    let mut command = if unprivileged { site.unprivileged() } else { site.command() };
    let before = picture(&site.credentials());
    let started = Instant::now();
    site.credmon = Some(command.spawn().unwrap());
    site.wait("the good one, last by name", 30, |site| site.file("zoe", "grid.use").is_some());
    println!("the good one among {} bad ones had its token after {:?}", expected.len(), started.elapsed());
    let lines = |site: &Site, who: &str, kind: &str| {
        let log = site.log();
        log.lines()
            .filter(|line| line.contains(who) && line.split(' ').any(|word| word == format!("kind={kind}")))
            .count()
    };
    for (who, kind) in &expected {
        site.wait(&format!("{who}: {kind}"), 30, |site| lines(site, who, kind) > 0);
    }
    // Everything is looked at three times more.
    for _ in 0..3 {
        let complete =
            || fs::metadata(site.credentials().join("CREDMON_COMPLETE")).and_then(|meta| meta.modified()).ok();
        let last = complete();
        site.signal("-HUP");
        site.wait("another scan", 30, |_| complete() > last);
    }
    let log = site.log();
    for (who, kind) in &expected {
        assert_eq!(lines(&site, who, kind), 1, "{who}: {kind}: one line\n{log}");
        let others = log.lines().filter(|line| line.contains(who.as_str()) && !line.contains(kind)).count();
        assert_eq!(others, 0, "{who}: no other line\n{log}");
    }
    assert!(!log.contains("else_b"), "not a word about what is not ours\n{log}");
    let mut after = picture(&site.credentials());
    let of_zoe = |path: &Path| path.parent().is_some_and(|parent| parent.ends_with("zoe"));
    after.retain(|path, _| !of_zoe(path));
    let before: BTreeMap<_, _> = before.into_iter().filter(|(path, _)| !of_zoe(path)).collect();
    assert!(after == before, "every file is as it was");
    assert_eq!(site.issuer.control().stats().exchanges, 1, "nobody was asked but for the good one");
}

#[test]
fn every_bad_top_directory_and_name_is_told_once_left_as_it_is_and_delays_nobody() {
    bad_tops(false);
}

#[test]
fn an_unprivileged_credmon_tells_the_same_and_what_it_may_not_read() {
    bad_tops(true);
}

/// An issuer with TLS and a certificate for `name`, valid from and to these years, signed by `ca`.
fn tls_issuer(home: &Path, ca: &rcgen::CertifiedIssuer<'_, rcgen::KeyPair>, name: &str, years: [i32; 2]) -> Running {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(years[0], 1, 1);
    params.not_after = rcgen::date_time_ymd(years[1], 1, 1);
    let certificate = params.signed_by(&key, ca).unwrap();
    let [chain, secret] = ["chain", "key"].map(|what| home.join(format!("{name}-{}-{what}.pem", years[1])));
    fs::write(&chain, certificate.pem()).unwrap();
    fs::write(&secret, key.serialize_pem()).unwrap();
    Issuer::start(&Options { tls: Some((chain, secret)), ..Options::default() }).unwrap()
}

#[test]
fn a_certificate_that_does_not_stand_is_kind_tls_and_nothing_is_sent_there() {
    let mut site = Site::new(600, Rotation::None);
    let home = site.home.path().to_owned();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "a site's own authority");
    let ca = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
    let ca_file = home.join("ca.pem");
    fs::write(&ca_file, ca.pem()).unwrap();
    // The network process is nobody whom this lets in.
    mode(&ca_file, 0o600);
    let good = tls_issuer(&home, &ca, "localhost", [2020, 4000]);
    let expired = tls_issuer(&home, &ca, "localhost", [2020, 2021]);
    let other = tls_issuer(&home, &ca, "other.example", [2020, 4000]);
    let cases =
        [("good", &good, true), ("unknown", &good, false), ("expired", &expired, true), ("misnamed", &other, true)];
    let mut sections = String::new();
    for (name, issuer, trusted) in cases {
        let ca = if trusted { format!("ca_file = \"{}\"", ca_file.display()) } else { String::new() };
        let url = issuer.url();
        let written =
            writeln!(sections, "[provider.{name}]\nkind = \"oauth2\"\nissuer = \"{url}\"\nclient_id = \"test\"\n{ca}");
        written.unwrap();
    }
    site.configure_with("", "", &sections);
    for (name, issuer, _) in cases {
        let wish = TokenWish { user: "alice".into(), scope: "a".into(), ..TokenWish::default() };
        site.store("alice", name, issuer.control().refresh_token(&wish).as_bytes());
    }
    let before = picture(&site.credentials());
    site.start();
    site.wait("the good one: names and TLS work inside of the sandbox", 30, |site| {
        site.file("alice", "good.use").is_some()
    });
    for name in ["unknown", "expired", "misnamed"] {
        let told = |site: &Site| {
            let log = site.log();
            log.lines().filter(|l| l.contains(&format!("service={name} ")) && l.contains("kind=tls")).count()
        };
        site.wait(name, 30, |site| told(site) > 0);
        // The second try, 5 s later, is not told.
        std::thread::sleep(Duration::from_secs(6));
        assert_eq!(told(&site), 1, "{}", site.log());
        assert!(site.file("alice", &format!("{name}.use")).is_none());
    }
    assert_eq!((expired.control().stats().requests, other.control().stats().requests), (0, 0), "nothing was sent");
    let after = picture(&site.credentials());
    assert!(before.iter().all(|(path, old)| path.is_dir() || after.get(path) == Some(old)), "every .top is as it was");
}

#[test]
fn a_ca_file_without_a_certificate_ends_a_start_and_changes_nothing_at_a_reload() {
    let mut site = Site::new(600, Rotation::None);
    let ca_file = site.home.path().join("ca.pem");
    fs::write(&ca_file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    site.configure(&format!("ca_file = \"{}\"", ca_file.display()));
    let config = site.home.path().join("evercred.toml");
    let line = fs::read_to_string(&config).unwrap().lines().position(|line| line.starts_with("ca_file")).unwrap() + 1;
    let expected = format!(
        "{}:{line}: provider.grid.ca_file: certificate 1 in {} cannot be used: ",
        config.display(),
        ca_file.display()
    );
    let check =
        Command::new(env!("CARGO_BIN_EXE_evercred")).arg("check").arg("--config").arg(&config).output().unwrap();
    for output in [check, site.command().output().unwrap()] {
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{text}");
        assert!(text.contains(&expected), "{text}");
    }
    site.configure("");
    site.grid("alice");
    site.start();
    site.wait("a token", 30, |site| site.file("alice", "grid.use").is_some());
    site.configure(&format!("ca_file = \"{}\"", ca_file.display()));
    site.signal("-HUP");
    site.wait("the refusal", 30, |site| site.log().contains("keeping the old settings"));
    site.grid("bob");
    site.wait("bob's token", 30, |site| site.file("bob", "grid.use").is_some());
    assert!(
        !site.log().contains("configuration reloaded") && !site.log().contains("courier is down"),
        "{}",
        site.log()
    );
}

#[test]
fn an_unreadable_secret_ends_with_a_clear_word_and_exit_code_78() {
    let site = Site::new(600, Rotation::None);
    let secret = site.home.path().join("secret");
    let cases = [
        ("cannot be read", None),
        ("others", Some(("s3cret\n", 0o644))),
        ("empty", Some(("\n", 0o600))),
        ("more than a secret", Some(("s3cret\nand more\n", 0o600))),
    ];
    for (word, file) in cases {
        drop(fs::remove_file(&secret));
        if let Some((text, bits)) = file {
            fs::write(&secret, text).unwrap();
            mode(&secret, bits);
        }
        site.configure(&format!("client_secret_file = \"{}\"", secret.display()));
        let output = site.command().output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{text}");
        assert!(text.contains("client_secret_file") && text.contains(word), "{word}: {text}");
        assert!(!text.contains("s3cret"), "the secret itself is not told");
    }
}

/// As credd leaves it under a credmon that is not root: the directory belongs to the credmon's user, the `.top` to root.
#[test]
fn a_user_with_cap_dac_read_search_alone_renews_what_root_stored() {
    if !is_root() {
        println!("skipped: only root can store as root and hand out a capability");
        return;
    }
    let mut site = Site::new(600, Rotation::Strict);
    let token = site.grid("alice");
    let mut unprivileged = site.unprivileged();
    let top = site.credentials().join("alice/grid.top");
    chown(&top, Some(0), Some(0)).unwrap();
    mode(&site.credentials().join("alice"), 0o2700);
    let capability = ["--inh-caps", "-all,+dac_read_search", "--ambient-caps", "-all,+dac_read_search"];
    let bounded = ["--bounding-set", "-all,+dac_read_search", "--no-new-privs"];
    let mut command = Command::new(unprivileged.get_program());
    command.args(capability).args(bounded).args(unprivileged.get_args());
    // Without the capability it cannot read that.
    site.credmon = Some(unprivileged.spawn().unwrap());
    site.wait("no", 30, |site| site.log().contains("kind=top-unreadable"));
    site.signal("-TERM");
    assert!(site.credmon.take().unwrap().wait().unwrap().success());
    site.credmon = Some(command.spawn().unwrap());
    site.wait("a token", 30, |site| site.file("alice", "grid.use").is_some());
    let keeper = site.credmon.as_ref().unwrap().id();
    let status = fs::read_to_string(format!("/proc/{keeper}/status")).unwrap();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("CapEff").ends_with("0000000000000004"), "CAP_DAC_READ_SEARCH and no other: {}", line("CapEff"));
    assert!(line("Uid").contains(NOBODY) && line("NoNewPrivs").ends_with('1'));
    for name in ["grid.top", "grid.use"] {
        let meta = fs::metadata(site.credentials().join("alice").join(name)).unwrap();
        assert_eq!((meta.uid().to_string().as_str(), meta.mode() & 0o7777), (NOBODY, 0o600), "{name}");
    }
    let now = fs::read_to_string(&top).unwrap();
    assert!(!now.contains(&token), "the issuer rotated it");
    let now: serde_json::Value = serde_json::from_str(&now).unwrap();
    let held = now.get("refresh_token").and_then(serde_json::Value::as_str).unwrap();
    assert_eq!(site.issuer.control().standing(held), Standing::Current);
}

#[test]
fn the_network_process_has_given_up_everything_in_each_of_its_threads() {
    let mut site = Site::new(600, Rotation::None);
    site.grid("alice");
    site.start();
    site.wait("a token", 30, |site| site.file("alice", "grid.use").is_some());
    let log = site.log();
    let ready = log.lines().find(|line| line.contains("courier is ready")).unwrap();
    assert!(ready.contains("seccomp"), "{ready}");
    let pid = ready.split("pid=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(Result::unwrap) {
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        let value = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
        };
        assert_eq!((value("Seccomp:").as_str(), value("NoNewPrivs:").as_str()), ("2", "1"), "{status}");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(value(set), "0000000000000000", "{set}");
        }
        if is_root() {
            let uid = nix::unistd::User::from_name(COURIER).unwrap().unwrap().uid.to_string();
            assert_eq!(value("Uid:"), [uid.as_str(); 4].join(" "), "real, effective, saved, file system");
            assert_eq!(value("Groups:"), "");
        }
        threads += 1;
    }
    assert!(threads >= 1);
    let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    assert_eq!(environ, b"", "nothing in its environment");
    let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|fd| fs::read_link(fd.unwrap().path()).unwrap());
    for file in files.map(|file| file.display().to_string()) {
        assert!(!file.contains("credentials") && !file.contains("/log"), "it holds {file}");
    }
}

#[test]
fn a_log_that_nobody_reads_delays_no_renewal_and_no_end() {
    use std::process::Stdio;

    let mut site = Site::new(600, Rotation::None);
    let users: Vec<String> = (0..60).map(|n| format!("user{n}")).collect();
    for user in &users {
        site.grid(user);
    }
    // Of one page, so that far fewer lines than there will be fill it.
    let (unread, theirs) = std::io::pipe().unwrap();
    nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_condor_credmon_evercred"));
    command.arg("--config").arg(site.home.path().join("evercred.toml")).args(["--log", "journal"]);
    site.credmon = Some(command.stdin(Stdio::null()).stderr(theirs).spawn().unwrap());
    drop(command);
    site.wait("all tokens", 60, |s| users.iter().all(|user| s.file(user, "grid.use").is_some()));
    site.signal("-TERM");
    let mut ended = None;
    let child = site.credmon.as_mut().unwrap();
    let by = Instant::now() + Duration::from_secs(20);
    while ended.is_none() && Instant::now() < by {
        ended = child.try_wait().unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ended.and_then(|status| status.code()), Some(0));
    drop(unread);
}
