//! Who has jobs that need a token: asked of `condor_q`. If it is not there or does not answer, nobody knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::child::{self, Ids};
use crate::core::{id::UserName, notice::Jobs};

/// Where `condor_q` may be.
const PLACES: [&str; 2] = ["/usr/bin/condor_q", "/usr/local/bin/condor_q"];
const PATIENCE: Duration = Duration::from_secs(30);
/// Users in one question.
const AT_ONCE: usize = 200;
/// The most that is read of an answer, bytes.
const MOST: u64 = 4 << 20;
/// Jobs kept of one user.
const KEPT: usize = 1000;

/// Where `condor_q` is, if it is anywhere.
#[must_use]
pub fn program() -> Option<PathBuf> {
    PLACES.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// The jobs of these users that are neither removed nor completed.
#[must_use]
pub fn of(program: Option<&Path>, ids: Ids, users: &BTreeSet<UserName>) -> Jobs {
    let Some(program) = program else { return Jobs::Unknown };
    let users: Vec<&str> = users.iter().map(UserName::as_str).collect();
    let mut jobs = BTreeMap::new();
    for some in users.chunks(AT_ONCE) {
        match ask(program, ids, some) {
            Ok(text) => read(&text, &mut jobs),
            Err(error) => {
                tracing::warn!(%error, "condor_q does not tell who has jobs; telling everybody");
                return Jobs::Unknown;
            }
        }
    }
    Jobs::Known(jobs)
}

fn ask(program: &Path, ids: Ids, users: &[&str]) -> std::io::Result<String> {
    // A user's name has no quotes in it (core::id).
    let owners: Vec<String> = users.iter().map(|user| format!("Owner == \"{user}\"")).collect();
    let constraint = format!("({}) && JobStatus =!= 3 && JobStatus =!= 4", owners.join(" || "));
    let mut command = Command::new(program);
    command.args(["-allusers", "-constraint", &constraint, "-format", "%s ", "Owner"]);
    command.args(["-format", "%d.", "ClusterId", "-format", "%d\n", "ProcId"]);
    let output = child::run(command, ids, b"", PATIENCE, MOST)?;
    Ok(String::from_utf8_lossy(&output).into_owned())
}

/// Lines `owner cluster.proc`.
fn read(text: &str, jobs: &mut BTreeMap<String, Vec<String>>) {
    for line in text.lines() {
        let Some((owner, job)) = line.split_once(' ') else { continue };
        if job.split('.').count() == 2 && job.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            let jobs = jobs.entry(owner.to_owned()).or_default();
            if jobs.len() < KEPT {
                jobs.push(job.to_owned());
            }
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
    fn lines_become_jobs_by_user_and_a_failure_is_unknown() {
        let (_dir, program) = fake("echo 'alice 17.0'; echo 'alice 17.1'; echo nonsense; echo 'bob x.1'");
        let expected = BTreeMap::from([("alice".to_owned(), vec!["17.0".to_owned(), "17.1".to_owned()])]);
        assert_eq!(of(Some(&program), None, &users()), Jobs::Known(expected));
        let (_dir, program) = fake("exit 1");
        assert_eq!(of(Some(&program), None, &users()), Jobs::Unknown);
        assert_eq!(of(None, None, &users()), Jobs::Unknown);
    }
}
