//! Runs a program of the site's or the system's: input on standard input, never in arguments or environment; output
//! capped; ended with its whole process group when its time is over.

use std::{ffi::OsStr, path::Path, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use crate::{core::delivery::Undelivered, error::Kind};

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
}

/// A process group that does not outlive its time.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may be gone already.
            killpg(group, Signal::SIGKILL).ok();
        }
    }
}

/// A command with an empty environment but for `PATH` and what is given; in a process group of its own.
#[must_use]
pub fn command(program: &Path, arguments: &[impl AsRef<OsStr>], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
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

/// Run it to its end.
///
/// # Errors
/// It does not start, or does not end in time.
pub async fn run(command: &mut Command, input: &[u8], patience: Duration) -> Result<Ended, Undelivered> {
    let shown = command.as_std().get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(|e| Undelivered::new(Kind::SiteError, format!("{shown}: {e}")))?;
    let mut group = Group(child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw));
    let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let whole = async {
        let feed = async {
            if let Some(stdin) = &mut stdin {
                // A program that does not read to the end says by its exit code whether it had enough.
                stdin.write_all(input).await.ok();
            }
            drop(stdin);
        };
        let (_fed, output, errors, status) = tokio::join!(feed, capped(stdout), capped(stderr), child.wait());
        status.map(|status| Ended { code: status.code(), output, errors })
    };
    let ended = tokio::time::timeout(patience, whole).await;
    match ended {
        Ok(Ok(ended)) => {
            group.0 = None;
            Ok(ended)
        }
        Ok(Err(e)) => Err(Undelivered::new(Kind::SiteError, format!("{shown}: {e}"))),
        Err(_) => {
            Err(Undelivered::new(Kind::SiteTimeout, format!("{shown} did not end within {} s", patience.as_secs())))
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
