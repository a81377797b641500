//! A program of the system's, run for its answer: absolute path, clean environment, no privileges of ours, its own
//! process group, bounded in time and output. It runs as the courier's user if we are root.

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

/// Run to its end; standard output.
///
/// # Errors
/// It cannot be started, ends with a failure (with the first line of what it says), or takes too long.
pub fn run(mut command: Command, ids: Ids, input: &[u8], patience: Duration, most: u64) -> io::Result<Vec<u8>> {
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
    let (done, answers) = channel();
    for (which, stream) in [
        (0, child.stdout.take().map(|out| Box::new(out) as Box<dyn Read + Send>)),
        (1, child.stderr.take().map(|err| Box::new(err) as Box<dyn Read + Send>)),
    ] {
        let done = done.clone();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let read = stream.map_or(Ok(0), |stream| stream.take(most).read_to_end(&mut bytes));
            // Whoever waited is gone if nobody takes it.
            done.send((which, read.map(|_| bytes))).ok();
        });
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
    drop(done);
    let (mut out, mut said) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(200));
        let Ok((which, bytes)) = answers.recv_timeout(left) else { break };
        if which == 0 { out = bytes? } else { said = bytes? }
    }
    if status.success() {
        return Ok(out);
    }
    drop(writer);
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
    fn one_that_hangs_is_ended_with_all_its_children() {
        let began = Instant::now();
        let error = sh("sleep 60 & sleep 60", b"", Duration::from_millis(300)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
}
