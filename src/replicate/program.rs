//! Runs a program of the site's or the system's: input on standard input, never in arguments or environment; output
//! capped; ended with its whole process group when its time is over.
//!
//! **Where its file hangs.** Starting a program waits until its file was opened, and on a mount that hangs that is never:
//! whoever starts it hangs as well, and the half-started process keeps open what was open here, such as other
//! programs' pipes. So what we start is the system's shell, which becomes the program at once (`exec`): what hangs then
//! is a process of its own, without anything of ours, which is ended when its time is over.

use std::{collections::HashSet, ffi::OsStr, path::Path, pin::pin, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

use crate::{core::delivery::Undelivered, error::Kind};

/// For the shell: become the first argument, with the others as arguments of that.
const BECOME: &str = r#"exec "$0" "$@""#;
/// The program that runs, whatever its path is.
const OURSELVES: &str = "/proc/self/exe";
/// The most that is read of either output.
const MAX_OUTPUT: u64 = 64 << 10;

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None`: a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub output: String,
    /// Standard error.
    pub errors: String,
}

impl Ended {
    /// The last line of its words, for people.
    #[must_use]
    pub fn words(&self) -> &str {
        let last = |text: &'_ str| text.trim_end().rfind('\n').map_or(0, |at| at + 1);
        let errors = self.errors.trim_end();
        let text = if errors.is_empty() { self.output.trim_end() } else { errors };
        text.get(last(text)..).unwrap_or(text)
    }

    /// The same, without any part of the secret that it was given.
    #[must_use]
    pub fn words_without(&self, secret: &[u8]) -> String {
        masked(self.words(), secret)
    }
}

/// So long must a part of a secret be to be masked; what is shorter tells nothing.
const PART: usize = 8;

/// The text with every part of the secret masked, as of a token that was printed line by line or claim by claim.
fn masked(text: &str, secret: &[u8]) -> String {
    let secret = secret.trim_ascii();
    let part = PART.min(secret.len()).max(1);
    let parts: HashSet<&[u8]> = secret.windows(part).collect();
    let mut hidden = vec![false; text.len()];
    for (at, seen) in text.as_bytes().windows(part).enumerate() {
        if parts.contains(seen)
            && let Some(hide) = hidden.get_mut(at..at + part)
        {
            hide.fill(true);
        }
    }
    let mut shown = Vec::with_capacity(text.len());
    let mut before = false;
    for (byte, hide) in text.bytes().zip(hidden) {
        match (hide, before) {
            (false, _) => shown.push(byte),
            (true, false) => shown.extend_from_slice(b"[masked]"),
            (true, true) => {}
        }
        before = hide;
    }
    String::from_utf8_lossy(&shown).into_owned()
}

/// A process group that does not outlive its time.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may be gone already.
            killpg(group, Signal::SIGKILL).ok();
        }
    }
}

/// A program that was started. Dropped, it is ended with its whole group, and only then its standard input: what is
/// cut off there is no content.
#[derive(Debug)]
pub struct Started {
    group: Group,
    /// The program itself.
    pub child: Child,
}

/// Start it.
///
/// # Errors
/// The system refuses a process.
pub fn start(mut command: Command) -> Result<Started, Undelivered> {
    let child = command.spawn().map_err(|e| Undelivered::new(Kind::SiteError, format!("no process for it: {e}")))?;
    let group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    Ok(Started { group: Group(group), child })
}

/// A command with an empty environment but for `PATH` and what is given; in a process group of its own.
#[must_use]
pub fn command(program: &Path, arguments: &[impl AsRef<OsStr>], environment: &[(&str, &str)]) -> Command {
    // Our own program is in memory: it keeps nobody waiting, and starts by this name where the way to it is closed to us.
    let mut command = if program == Path::new(OURSELVES) {
        Command::new(OURSELVES)
    } else {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", BECOME]).arg(program);
        shell
    };
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin")
        .envs(environment.iter().copied())
        .current_dir("/")
        .process_group(0)
        .kill_on_drop(true)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Run it to its end; `shown`: its name, for people.
///
/// # Errors
/// It does not start, or does not end in time.
pub async fn run(command: Command, shown: &str, input: &[u8], patience: Duration) -> Result<Ended, Undelivered> {
    let Started { group, mut child } = start(command)?;
    let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let mut whole = pin!(async {
        let feed = async {
            if let Some(stdin) = &mut stdin {
                // A program that does not read to the end says by its exit code whether it had enough.
                stdin.write_all(input).await.ok();
            }
            drop(stdin);
        };
        let (_fed, output, errors, status) = tokio::join!(feed, capped(stdout), capped(stderr), child.wait());
        status.map(|status| Ended { code: status.code(), output, errors })
    });
    // Behind what holds its standard input, so that it is dropped before that.
    let mut group = group;
    match tokio::time::timeout(patience, &mut whole).await {
        Ok(Ok(ended)) => {
            group.0 = None;
            Ok(ended)
        }
        Ok(Err(e)) => Err(Undelivered::new(Kind::SiteError, format!("{shown}: {e}"))),
        Err(_) => {
            let words = format!("{shown} timed out: it did not end within {} s", patience.as_secs());
            Err(Undelivered::new(Kind::SiteTimeout, words))
        }
    }
}

async fn capped(from: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        let mut from = from;
        // What came until it broke is what there is to tell; the rest is read and dropped, so that nobody blocks.
        (&mut from).take(MAX_OUTPUT).read_to_end(&mut bytes).await.ok();
        tokio::io::copy(&mut from, &mut tokio::io::sink()).await.ok();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSIsImp0aSI6IjEifQ.c2lnbmF0dXJlLW9mLWl0";

    #[test]
    fn no_part_of_a_secret_is_in_the_words_of_a_program_however_it_prints_it() {
        let (head, rest) = TOKEN.split_once('.').unwrap();
        let (claims, signature) = rest.split_once('.').unwrap();
        for printed in [
            format!("got {TOKEN}, no use"),
            format!("header={head} claims={claims} signature={signature}"),
            format!("cut: {}", &TOKEN[5..17]),
            format!("Bearer {}...", &TOKEN[..12]),
            format!("é{}é", &TOKEN[30..60]),
            TOKEN.as_bytes().chunks(9).map(|part| String::from_utf8_lossy(part).into_owned() + " ").collect(),
        ] {
            let shown = masked(&printed, format!("{TOKEN}\n").as_bytes());
            assert!(shown.contains("[masked]"), "{shown}");
            for part in TOKEN.as_bytes().windows(PART) {
                assert!(!shown.contains(std::str::from_utf8(part).unwrap()), "{printed} -> {shown}");
            }
        }
        assert_eq!(masked("é: no route to host", TOKEN.as_bytes()), "é: no route to host");
        assert_eq!(masked("it is abc, not abd", b"abc"), "it is [masked], not abd");
        assert_eq!(masked("words", b""), "words");
    }

    #[tokio::test]
    async fn a_program_whose_time_is_over_ends_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let (script, file) = ("sleep 1000 & echo $! > \"$0\"; wait", dir.path().join("pid"));
        let command = command("/bin/sh".as_ref(), &["-c", script, file.to_str().unwrap()], &[]);
        let error = run(command, "sh", b"", Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.kind, Kind::SiteTimeout);
        let pid = std::fs::read_to_string(file).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        // Ended, whether or not somebody has looked after it.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
