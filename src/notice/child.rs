//! A program of the system's, run for its answer: absolute path, clean environment, no privileges of ours, its own
//! process group, bounded in time and in what is kept of its output: what is beyond is read and dropped, since a program that
//! finds its pipe closed dies of it. It runs as the courier's user if we are root.

use std::{
    io::{self, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, Stdio},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// Who a child becomes: uid and gid; none: who we are.
pub type Ids = Option<(u32, u32)>;

/// Most that is kept of what it says about itself.
const SAID: u64 = 64 << 10;

/// Run to its end; the first `most` bytes of standard output.
///
/// # Errors
/// As [`run_with`].
pub fn run(command: Command, ids: Ids, input: &[u8], patience: Duration, most: u64) -> io::Result<Vec<u8>> {
    run_with(command, ids, input, patience, move |out| kept(out, most))
}

fn kept(from: &mut dyn Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    (&mut *from).take(most).read_to_end(&mut bytes)?;
    io::copy(from, &mut io::sink())?;
    Ok(bytes)
}

/// Run to its end; what `read` makes of standard output, on a thread of its own.
///
/// # Errors
/// It cannot be started, ends with a failure (with the first line of what it says), or takes too long.
pub fn run_with<T: Send + 'static>(
    mut command: Command,
    ids: Ids,
    input: &[u8],
    patience: Duration,
    read: impl FnOnce(&mut dyn Read) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    command.env_clear().current_dir("/").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some((uid, gid)) = ids {
        // As root this drops the supplementary groups, too.
        command.uid(uid).gid(gid);
    }
    let end = Instant::now() + patience;
    let mut child = command.spawn()?;
    let group = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    let input = input.to_vec();
    let mut stdin = child.stdin.take();
    let writer = thread::spawn(move || {
        // A program that does not read what it is given says so by its status.
        stdin.take().map(|mut stdin| stdin.write_all(&input))
    });
    // Whoever waited is gone if nobody takes what these send.
    let ((told, out), (complained, said)) = (channel(), channel());
    if let Some(mut stdout) = child.stdout.take() {
        thread::spawn(move || told.send(read(&mut stdout)).ok());
    }
    if let Some(mut stderr) = child.stderr.take() {
        thread::spawn(move || complained.send(kept(&mut stderr, SAID)).ok());
    }
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() < end => thread::sleep(Duration::from_millis(5)),
            None => {
                // Gone already is as good.
                killpg(group, Signal::SIGKILL).ok();
                child.wait()?;
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no end within {} s", patience.as_secs())));
            }
        }
    };
    // What it left behind may hold the pipes open.
    killpg(group, Signal::SIGKILL).ok();
    let left = || end.saturating_duration_since(Instant::now()).max(Duration::from_millis(200));
    if status.success() {
        return out.recv_timeout(left()).map_err(|_| io::Error::other("its output does not end"))?;
    }
    drop(writer);
    let said = said.recv_timeout(left()).ok().and_then(Result::ok).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
    let line: String = line.chars().filter(|c| !c.is_control()).take(200).collect();
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "a strange end".to_owned(),
    };
    Err(io::Error::other(format!("{how}: {line}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, input: &[u8], patience: Duration) -> io::Result<Vec<u8>> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        run(command, None, input, patience, 1 << 20)
    }

    #[test]
    fn output_comes_back_the_environment_is_clean_and_a_failure_tells_why() {
        let long = Duration::from_secs(20);
        assert_eq!(sh("cat; echo $HOME$CARGO", b"in ", long).unwrap(), b"in \n");
        let error = sh("echo first >&2; echo second >&2; exit 3", b"", long).unwrap_err();
        assert_eq!(error.to_string(), "exit status 3: first");
    }

    #[test]
    fn of_one_that_says_too_much_the_beginning_is_kept_and_it_comes_to_its_end() {
        let mut command = Command::new("/bin/sh");
        // Closed pipes end it, with a failure.
        command.args(["-c", "set -e; head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2; echo end"]);
        assert_eq!(run(command, None, b"", Duration::from_secs(20), 1000).unwrap().len(), 1000);
    }

    #[test]
    fn one_that_hangs_is_ended_with_all_its_children() {
        let began = Instant::now();
        let error = sh("sleep 60 & sleep 60", b"", Duration::from_millis(300)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
}
