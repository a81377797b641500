//! The guided tour tells its whole story in half a minute, and the README's transcript of it is true.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Lines in their order; `*` is anything.
const STORY: &[&str] = &[
    "An issuer on loopback at http://127.0.0.1:*, access tokens of 20 s.",
    "The credential monitor starts, as its own processes.",
    "Every renewed token is also replicated to a second directory, sealed on the way.",
    "Three credentials are stored: alice and carol (OAuth2, rotating), bob (mytoken).",
    "carol/grid.use appeared, good for * s",
    "carol's refresh token is revoked at the issuer.",
    "The issuer goes down: every request gets 503.",
    "log: * WARN not renewed user=alice * kind=server-error *",
    "The issuer is back.",
    "The issuer refused carol's refresh token; her .use is kept, the others go on.",
    "log: * WARN not renewed user=carol * kind=revoked *",
    "log: * ERROR parked: refused twice; * user=carol *",
    "carol/grid is parked: refused twice, it is asked for no more until her .top changes; the others go on.",
    "alice/grid.use renewed, good for * s",
    "alice/grid: .use published * times, .top rotated * times",
    "carol/grid: .use published 1 times, .top rotated 1 times",
    "Issuer: * requests on * connections, * exchanges, * rotations, 2 refused, 0 reused",
    "The monitor stopped in * s; the directory is removed.",
    "The far site received * tokens, sealed; * were published.",
];
/// Lines that come when they come.
const BESIDE: &[&str] = &[
    "Dave submits a job. This is what he sees:",
    "Please visit the following url in order to generate your credential:",
    "http://127.0.0.1:*/mytoken/c/*",
    "(--yes approves it for him.)",
    "Approved: dave's credential is stored.",
    "dave/mytoken.use appeared, good for * s",
    "alice/grid.top rotated: sha256 * -> *",
    "bob/mytoken.use renewed, good for * s",
    "far/alice_grid received: sealed on the way, * bytes, mode 0600",
    "far/carol_grid received: sealed on the way, * bytes, mode 0600",
];
/// What no good tour says.
const NEVER: &[&str] = &["*gone or unreadable*", "*never appeared*", "*was not *", "*ended.", "Nothing came *"];

fn is_like(line: &str, pattern: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return line == pattern };
    let Some(line) = line.strip_prefix(start) else { return false };
    (0..=line.len()).filter(|at| line.is_char_boundary(*at)).any(|at| is_like(line.split_at(at).1, rest))
}

/// What is told after the time of each line.
fn told(transcript: &str) -> Vec<&str> {
    let line = |line| str::split_once(line, " s  ").filter(|(time, _)| time.trim().parse::<f64>().is_ok());
    transcript.lines().filter_map(line).map(|(_, told)| told.trim()).collect()
}

fn check(transcript: &str) {
    let lines = told(transcript);
    let mut rest = lines.iter();
    for pattern in STORY {
        assert!(rest.any(|line| is_like(line, pattern)), "not there, or not in its place: {pattern}\n{transcript}");
    }
    for pattern in BESIDE {
        assert!(lines.iter().any(|line| is_like(line, pattern)), "not there: {pattern}\n{transcript}");
    }
    for pattern in NEVER {
        assert!(!lines.iter().any(|line| is_like(line, pattern)), "{pattern}\n{transcript}");
    }
}

#[test]
fn the_tour_shows_rotation_an_outage_survived_and_a_revoked_token_parked_in_half_a_minute() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evercred"));
    // As the README says to type it.
    let typed = include_str!("../README.md").split_once("$ cargo run --release -- ").unwrap().1.lines().next().unwrap();
    assert_eq!(typed, "demo --yes");
    let output = command.args(typed.split(' ')).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    check(&text);
}

#[test]
fn ctrl_c_ends_it_at_once_and_leaves_neither_a_process_nor_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_evercred"));
    let demo = command.args(["demo", "--for", "60"]).env("TMPDIR", directory.path()).stdout(Stdio::piped());
    let mut demo = demo.spawn().unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("alice/grid.use appeared")));
    let of_it = |process: &PathBuf| {
        let environ = std::fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&environ).contains(&*directory.path().to_string_lossy())
    };
    let processes = || std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).filter(of_it).count();
    assert!(processes() >= 1, "the monitor is there");
    let pressed = Instant::now();
    assert!(Command::new("kill").args(["-INT", &demo.id().to_string()]).status().unwrap().success());
    let rest: Vec<String> = lines.collect();
    let status = demo.wait().unwrap();
    assert!(pressed.elapsed() < Duration::from_secs(5), "{:?}", pressed.elapsed());
    assert!(rest.iter().any(|line| line.contains("The monitor stopped")), "{status}: {rest:#?}");
    // What goes to a pipe is lines, without `--plain`, too.
    assert!(!rest.iter().any(|line| line.contains('\x1b')), "{rest:#?}");
    assert_eq!(processes(), 0);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn the_readme_shows_a_tour_as_it_is() {
    let readme = include_str!("../README.md");
    let start = readme.split_once("```console test=tests/demo.rs\n$ cargo run --release -- demo --yes\n").unwrap().1;
    check(start.split_once("```").unwrap().0);
}

#[test]
fn the_recording_is_of_that_tour() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::File::open(root.join("README.md")).unwrap();
    let output = Command::new("python3").arg(root.join("tests/pictures/recording")).stdin(readme).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let same = std::fs::read(root.join("docs/pictures/demo.svg")).unwrap() == output.stdout;
    assert!(same, "it is old: tests/pictures/recording < README.md > docs/pictures/demo.svg");
}
