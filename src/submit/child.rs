//! A child's input and output, all of it bounded in time: one that does not read, does not stop writing, or leaves
//! something behind that holds its pipes open, holds nobody up.

use std::{
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// As much as a pipe takes at once when it says that it can take something (POSIX `PIPE_BUF`).
const PIECE: usize = 4096;
/// More of an output than this is thrown away.
const MAX_OUTPUT: usize = 1 << 20;
/// How often a child is looked for that has ended while its pipes stay open.
const TICK: Duration = Duration::from_millis(100);

/// A child that ended by itself.
pub(super) struct Ended {
    /// Its exit code; none: a signal.
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Ended {
    /// Whether these words are in what it wrote.
    pub(super) fn says(&self, words: &str) -> bool {
        self.stdout.contains(words) || self.stderr.contains(words)
    }
}

/// Run it, with `input` and then the end of input; `None`: it did not end within `patience`, and is ended.
pub(super) fn run(command: &mut Command, input: &[u8], patience: Duration) -> io::Result<Option<Ended>> {
    let deadline = Instant::now() + patience;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let told = talk(&mut child, input, deadline);
    let ended = told.and_then(|(stdout, stderr)| {
        let status = wait(&mut child, deadline)?;
        Ok(status.map(|status| Ended { code: status.code(), stdout: text(&stdout), stderr: text(&stderr) }))
    });
    if !matches!(ended, Ok(Some(_))) {
        // Both fail only for a process that is gone already.
        child.kill().ok();
        child.wait().ok();
    }
    ended
}

/// Write and read until both outputs are at their end, the child is gone, or it is too late.
fn talk(child: &mut Child, mut input: &[u8], deadline: Instant) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut stdin = child.stdin.take();
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let (mut out, mut said) = (Vec::new(), Vec::new());
    loop {
        if input.is_empty() {
            stdin = None;
        }
        if stdout.is_none() && stderr.is_none() {
            return Ok((out, said));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let [to, from, aside] = ready(
            [
                stdin.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::POLLOUT)),
                stdout.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::POLLIN)),
                stderr.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::POLLIN)),
            ],
            left.min(TICK),
        )?;
        if let (true, Some(pipe)) = (to, &mut stdin) {
            let (piece, rest) = input.split_at(input.len().min(PIECE));
            // It may end without reading; its own words say why.
            input = if pipe.write_all(piece).is_ok() { rest } else { &[] };
        }
        if from && ended(stdout.as_mut(), &mut out)? {
            stdout = None;
        }
        if aside && ended(stderr.as_mut(), &mut said)? {
            stderr = None;
        }
        let quiet = !(to || from || aside);
        if quiet && (left.is_zero() || child.try_wait()?.is_some()) {
            return Ok((out, said));
        }
    }
}

/// Which of these have something to do; at a timeout none.
fn ready(pipes: [Option<(BorrowedFd<'_>, PollFlags)>; 3], timeout: Duration) -> io::Result<[bool; 3]> {
    let mut asked: Vec<_> = pipes.iter().flatten().map(|(pipe, what)| PollFd::new(*pipe, *what)).collect();
    match poll(&mut asked, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO)) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut answers = asked.iter().map(|one| one.any().unwrap_or(false));
    Ok(pipes.map(|pipe| pipe.is_some() && answers.next().unwrap_or(false)))
}

/// Read what is there; whether it is at its end.
fn ended(pipe: Option<&mut impl Read>, into: &mut Vec<u8>) -> io::Result<bool> {
    let mut part = [0; PIECE];
    match pipe.map_or(Ok(0), |pipe| pipe.read(&mut part)) {
        Ok(0) => Ok(true),
        Ok(read) => {
            let room = MAX_OUTPUT.saturating_sub(into.len());
            into.extend_from_slice(part.get(..read.min(room)).unwrap_or_default());
            Ok(false)
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error),
    }
}

/// Its end; `None`: too late.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    // Its pipes close a moment before it is gone.
    let mut pause = Duration::from_micros(100);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, input: &[u8], patience: Duration) -> Option<Ended> {
        run(Command::new("/bin/sh").args(["-c", script]), input, patience).unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn more_than_a_pipe_holds_goes_in_and_comes_out() {
        let input = vec![b'x'; 300_000];
        let ended = sh("cat; echo aside >&2; exit 3", &input, LONG).unwrap();
        assert_eq!((ended.code, ended.stdout.len(), ended.stderr.as_str()), (Some(3), 300_000, "aside\n"));
    }

    #[test]
    fn a_child_that_never_reads_is_ended_in_time() {
        let begin = Instant::now();
        assert!(sh("exec sleep 60", &vec![b'x'; 300_000], Duration::from_millis(300)).is_none());
        assert!(sh("exec sleep 60 >&- 2>&-", b"x", Duration::from_millis(300)).is_none(), "with closed outputs");
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    }

    #[test]
    fn a_child_that_ends_without_reading_is_heard() {
        let ended = sh("echo no >&2; exit 1", &vec![b'x'; 300_000], LONG).unwrap();
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(1), "no\n"));
    }

    #[test]
    fn what_a_child_leaves_behind_holds_nobody_up() {
        let begin = Instant::now();
        let ended = sh("sleep 20 & echo done", b"", LONG).unwrap();
        assert_eq!(ended.stdout, "done\n");
        assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    }

    #[test]
    fn a_child_that_writes_without_end_is_ended_and_what_is_kept_has_an_end() {
        assert!(sh("exec yes", b"", Duration::from_millis(500)).is_none());
        assert_eq!(sh("head -c 3000000 /dev/zero", b"", LONG).unwrap().stdout.len(), MAX_OUTPUT);
    }
}
