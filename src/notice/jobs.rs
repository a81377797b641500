//! Who has jobs that need a token: asked of `condor_q`. If it is not there, nobody knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::child::{self, Ids};
use crate::core::{
    id::UserName,
    notice::{Jobs, Queue},
};

/// Where `condor_q` may be.
const PLACES: [&str; 2] = ["/usr/bin/condor_q", "/usr/local/bin/condor_q"];
const PATIENCE: Duration = Duration::from_secs(30);
/// Users in one question.
const AT_ONCE: usize = 200;
/// No line of an answer is longer, bytes.
const LINE: u64 = 512;
/// Jobs kept of one user.
const KEPT: usize = 20;

/// Where `condor_q` is, if it is anywhere.
#[must_use]
pub fn program() -> Option<PathBuf> {
    PLACES.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// The jobs of these users that are neither removed nor completed; unknown if there is no `condor_q`.
///
/// # Errors
/// It does not tell.
pub fn of(program: Option<&Path>, ids: Ids, users: &BTreeSet<UserName>) -> io::Result<Jobs> {
    let Some(program) = program else { return Ok(Jobs::Unknown) };
    let users: Vec<&str> = users.iter().map(UserName::as_str).collect();
    let mut jobs = BTreeMap::new();
    for some in users.chunks(AT_ONCE) {
        jobs.extend(ask(program, ids, some)?);
    }
    Ok(Jobs::Known(jobs))
}

fn ask(program: &Path, ids: Ids, users: &[&str]) -> io::Result<BTreeMap<String, Queue>> {
    // A user's name has no quotes in it (core::id).
    let owners: Vec<String> = users.iter().map(|user| format!("Owner == \"{user}\"")).collect();
    let constraint = format!("({}) && JobStatus =!= 3 && JobStatus =!= 4", owners.join(" || "));
    let mut command = Command::new(program);
    command.args(["-allusers", "-constraint", &constraint, "-format", "%s ", "Owner"]);
    command.args(["-format", "%d.", "ClusterId", "-format", "%d\n", "ProcId"]);
    let mut jobs: BTreeMap<String, Queue> = users.iter().map(|user| ((*user).to_owned(), Queue::default())).collect();
    child::run_with(command, ids, b"", PATIENCE, move |out| {
        read(out, &mut jobs)?;
        jobs.retain(|_, queue| queue.count > 0);
        Ok(jobs)
    })
}

/// Lines `owner cluster.proc` of these owners, however many: all are counted, some are kept.
fn read(from: &mut dyn Read, jobs: &mut BTreeMap<String, Queue>) -> io::Result<()> {
    let mut from = BufReader::new(from);
    let (mut line, mut begins) = (Vec::new(), true);
    while (&mut from).take(LINE).read_until(b'\n', &mut line)? > 0 {
        // A piece of a longer line is none of ours.
        let ends = line.ends_with(b"\n");
        if begins && ends {
            count(&String::from_utf8_lossy(&line), jobs);
        }
        begins = ends;
        line.clear();
    }
    Ok(())
}

fn count(line: &str, jobs: &mut BTreeMap<String, Queue>) {
    let Some((owner, job)) = line.trim_end().split_once(' ') else { return };
    let Some(queue) = jobs.get_mut(owner) else { return };
    if job.split('.').count() == 2 && job.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        queue.count += 1;
        if queue.named.len() < KEPT {
            queue.named.push(job.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn users() -> BTreeSet<UserName> {
        ["alice", "bob"].iter().map(|name| UserName::parse(name).unwrap()).collect()
    }

    fn fake(script: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("condor_q");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        // A fork of another test may hold the file open for writing for a moment.
        while Command::new(&path).stdout(std::process::Stdio::null()).status().is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        (dir, path)
    }

    #[test]
    fn of_a_long_answer_all_jobs_are_counted_and_some_are_kept() {
        // 6 MB, with a line without an end in between, and the last one cut off.
        let script = "awk 'BEGIN { for (n = 0; n < 300000; n++) printf \"alice 1000000.%d\\n\", n }'
head -c 100000 /dev/zero | tr '\\0' 'x'; echo ' 9.9'; echo 'mallory 6.6'; echo 'bob 5.0'; printf 'bob 5.1'";
        let (_dir, program) = fake(script);
        let Jobs::Known(jobs) = of(Some(&program), None, &users()).unwrap() else { panic!("unknown") };
        let counts: Vec<(&str, u64, usize)> =
            jobs.iter().map(|(user, queue)| (user.as_str(), queue.count, queue.named.len())).collect();
        assert_eq!(counts, [("alice", 300_000, KEPT), ("bob", 1, 1)]);
        assert_eq!(jobs["bob"].named, ["5.0"]);
    }

    #[test]
    fn lines_become_jobs_by_user_and_a_failure_is_none() {
        let (_dir, program) = fake("echo 'alice 17.0'; echo 'alice 17.1'; echo nonsense; echo 'bob x.1'");
        let queue = Queue { count: 2, named: vec!["17.0".to_owned(), "17.1".to_owned()] };
        let expected = BTreeMap::from([("alice".to_owned(), queue)]);
        assert_eq!(of(Some(&program), None, &users()).unwrap(), Jobs::Known(expected));
        let (_dir, program) = fake("exit 1");
        assert!(of(Some(&program), None, &users()).is_err());
        assert_eq!(of(None, None, &users()).unwrap(), Jobs::Unknown);
    }
}
