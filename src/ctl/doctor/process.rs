//! The running credmon: whether `pid` names it, credd can read that and signal it, and nobody else claims the
//! directory.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use nix::unistd::User;

use super::Finding;

const AREA: &str = "Credential monitor";
/// Our lock file; its holder writes its number there.
const LOCK: &str = ".evercred.lock";

/// What `/proc` tells of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    name: String,
    real: u32,
    saved: u32,
}

/// What the directory and `/proc` tell.
#[derive(Debug, Clone)]
struct Facts {
    pid: Option<i32>,
    /// Mode, uid and gid of `pid`.
    pid_file: (u32, u32, u32),
    /// Who `pid` names, if he lives.
    named: Option<Process>,
    /// Who holds our lock.
    locked_by: Option<i32>,
    /// HTCondor's own credential monitors that run here, whichever directory they keep.
    others: Vec<(i32, String)>,
    condor: Option<(u32, u32)>,
}

pub(super) fn examine(directory: &Path) -> Vec<Finding> {
    let path = directory.join("pid");
    let meta = match std::fs::symlink_metadata(&path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return vec![
                Finding::failed(AREA, "running", "no credential monitor runs: there is no pid file")
                    .advise("start it: condor_on -daemon CREDMON_OAUTH, or systemctl start evercred; then see its log"),
            ];
        }
        Err(e) => return vec![Finding::skipped(AREA, "running", format!("{}: {e}", path.display()))],
    };
    let pid = number(&path);
    let facts = Facts {
        pid,
        pid_file: (meta.permissions().mode(), meta.uid(), meta.gid()),
        named: pid.and_then(process),
        // The number stays in the lock file after its writer's end.
        locked_by: number(&directory.join(LOCK)).filter(|holder| process(*holder).is_some()),
        others: stock_monitors(),
        condor: User::from_name("condor").ok().flatten().map(|user| (user.uid.as_raw(), user.gid.as_raw())),
    };
    judge(&facts)
}

/// With `share_directory`: `pid` is another's, our lock tells who we are.
pub(super) fn examine_beside(directory: &Path) -> Vec<Finding> {
    let finding = match number(&directory.join(LOCK)).and_then(|pid| Some((pid, process(pid)?))) {
        Some((pid, process)) => {
            Finding::ok(AREA, "running", format!("process {pid} ({}) runs; it shares the directory", process.name))
        }
        None => Finding::failed(AREA, "running", "evercred does not run: nobody holds its lock in the directory")
            .advise("start it: condor_on -daemon with its name in DAEMON_LIST; then see its log"),
    };
    vec![finding]
}

/// Whether the process that keeps the directory is evercred.
pub(super) fn is_ours(directory: &Path) -> bool {
    number(&directory.join(LOCK)).and_then(process).is_some_and(|process| is_evercred(&process))
}

/// The kernel cuts names at 15 characters.
fn is_evercred(process: &Process) -> bool {
    process.name.starts_with("condor_credmon_") || process.name.starts_with("evercred")
}

/// The uid of the running credential monitor.
pub(super) fn uid(directory: &Path, shared: bool) -> Option<u32> {
    number(&directory.join(if shared { LOCK } else { "pid" })).and_then(process).map(|process| process.real)
}

fn number(path: &Path) -> Option<i32> {
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok())
}

fn process(pid: i32) -> Option<Process> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mut uids = field("Uid:")?.split_whitespace().map(|uid| uid.parse().ok());
    let (real, saved) = (uids.next()??, uids.nth(1)??);
    Some(Process { name: field("Name:")?.to_owned(), real, saved })
}

/// They take no lock, and one that started before us has its number in `pid` no more: `/proc` alone tells.
fn stock_monitors() -> Vec<(i32, String)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let ours = namespace("self");
    let mut found: Vec<(i32, String)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let pid = name.parse().ok()?;
            let monitor = stock_monitor(&std::fs::read(entry.path().join("cmdline")).ok()?)?;
            // One in a container keeps the container's directory.
            let elsewhere = namespace(&name).is_some_and(|other| ours.as_ref() != Some(&other));
            (!elsewhere).then_some((pid, monitor))
        })
        .collect();
    found.sort_unstable();
    found
}

/// What of HTCondor's this command line runs: a script, behind its interpreter and that one's flags.
fn stock_monitor(command_line: &[u8]) -> Option<String> {
    let words = command_line.split(|byte| *byte == 0).take(4).filter_map(|word| std::str::from_utf8(word).ok());
    let name = |word: &str| word.rsplit('/').next().unwrap_or_default().trim_end_matches(".py").to_owned();
    words.map(name).find(|name| ["condor_credmon_oauth", "condor_credmon_vault"].contains(&name.as_str()))
}

fn judge(facts: &Facts) -> Vec<Finding> {
    let Some(pid) = facts.pid else {
        return vec![
            Finding::failed(AREA, "running", "the pid file holds no process id")
                .advise("another program wrote it; let one credential monitor only use this directory"),
        ];
    };
    let Some(process) = &facts.named else {
        return vec![
            Finding::failed(AREA, "running", format!("the pid file names process {pid}, which is gone"))
                .advise("start it: condor_on -daemon CREDMON_OAUTH, or systemctl start evercred; then see its log"),
        ];
    };
    let mut findings = Vec::new();
    if is_evercred(process) {
        findings.push(Finding::ok(AREA, "running", format!("process {pid} ({}) runs", process.name)));
    } else {
        findings.push(
            Finding::failed(AREA, "running", format!("the pid file names process {pid}, which is {}", process.name))
                .advise("credd would signal a stranger: remove the file, start the credential monitor"),
        );
    }
    match facts.locked_by {
        Some(holder) if holder != pid => findings.push(
            Finding::failed(
                AREA,
                "second",
                format!("evercred is process {holder}, but the pid file names {pid}: a second credential monitor"),
            )
            .advise("take the other one out of DAEMON_LIST, or give it another directory; then restart evercred"),
        ),
        Some(_) if !facts.others.is_empty() => {
            let names: Vec<_> = facts.others.iter().map(|(pid, name)| format!("{name} (process {pid})")).collect();
            findings.push(
                Finding::warning(AREA, "second", format!("HTCondor's own runs here, too: {}", names.join(", "))).advise(
                    "unless it keeps another directory, take it out of DAEMON_LIST and stop it: two that renew the same \
                     refresh tokens revoke them",
                ),
            );
        }
        Some(_) => findings.push(Finding::ok(AREA, "second", "it is the only one in the directory")),
        None => findings.push(
            Finding::failed(AREA, "second", "the directory is kept by a credential monitor that is not evercred")
                .advise("let CREDMON_OAUTH name condor_credmon_evercred, and restart HTCondor"),
        ),
    }
    findings.push(signal(facts, process));
    findings
}

/// Whether credd, which reads `pid` as condor and signals with real uid root and effective uid condor, reaches it.
fn signal(facts: &Facts, process: &Process) -> Finding {
    let (mode, uid, gid) = facts.pid_file;
    let Some((condor, group)) = facts.condor else {
        return Finding::skipped(AREA, "signal", "credd's signal: there is no user condor on this host");
    };
    let readable = mode & 0o004 != 0 || (uid == condor && mode & 0o400 != 0) || (gid == group && mode & 0o040 != 0);
    if !readable {
        return Finding::failed(
            AREA,
            "signal",
            format!("condor cannot read the pid file (mode {:04o})", mode & 0o7777),
        )
        .advise("credd then signals nobody and says nothing; restart evercred, which writes it with mode 0644");
    }
    let reachable = [process.real, process.saved].iter().any(|uid| *uid == 0 || *uid == condor);
    if reachable {
        Finding::ok(AREA, "signal", "credd can read the pid file and signal the process")
    } else {
        Finding::failed(AREA, "signal", format!("credd may not signal it: it runs as uid {}", process.real))
            .advise("run it as root or condor (CREDMON_OAUTH_USERID); it drops what it does not need by itself")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::Verdict;

    fn good() -> Facts {
        let named = Process { name: "condor_credmon_".into(), real: 0, saved: 0 };
        Facts {
            pid: Some(7),
            pid_file: (0o100_644, 0, 0),
            named: Some(named),
            locked_by: Some(7),
            others: Vec::new(),
            condor: Some((64, 64)),
        }
    }

    fn failed(facts: &Facts) -> Vec<&'static str> {
        judge(facts).iter().filter(|f| f.verdict == Verdict::Failed).map(|f| f.check).collect()
    }

    #[test]
    fn each_thing_that_is_wrong_is_found() {
        assert_eq!(failed(&good()), [""; 0]);
        assert_eq!(failed(&Facts { pid: None, ..good() }), ["running"]);
        assert_eq!(failed(&Facts { named: None, ..good() }), ["running"]);
        assert_eq!(failed(&Facts { pid_file: (0o100_600, 0, 0), ..good() }), ["signal"]);
        assert_eq!(failed(&Facts { locked_by: Some(8), ..good() }), ["second"]);
        assert_eq!(failed(&Facts { locked_by: None, ..good() }), ["second"]);
        let other =
            |name: &str, real, saved| Facts { named: Some(Process { name: name.into(), real, saved }), ..good() };
        assert_eq!(failed(&other("cron", 0, 0)), ["running"]);
        assert_eq!(failed(&other("condor_credmon_", 500, 500)), ["signal"]);
        assert_eq!(failed(&other("condor_credmon_", 64, 64)), [""; 0]);
    }

    #[test]
    fn a_monitor_of_htcondor_s_is_known_by_its_command_line_and_warned_of_whoever_started_first() {
        for (line, name) in [
            ("/usr/bin/python3\0-s\0/usr/sbin/condor_credmon_oauth\0-f\0", Some("condor_credmon_oauth")),
            ("/usr/sbin/condor_credmon_vault\0", Some("condor_credmon_vault")),
            ("/usr/sbin/condor_credmon_evercred\0--log\0x\0", None),
            ("less\0-R\0-S\0-M\0/var/log/condor_credmon_oauth\0", None),
            ("", None),
        ] {
            assert_eq!(stock_monitor(line.as_bytes()).as_deref(), name, "{line:?}");
        }
        let both = Facts { others: vec![(5, "condor_credmon_oauth".into())], ..good() };
        let second = judge(&both).into_iter().find(|finding| finding.check == "second").unwrap();
        assert_eq!(second.verdict, Verdict::Warning);
    }

    #[test]
    fn this_very_process_can_be_looked_at() {
        let us = process(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert_eq!(us.real, nix::unistd::getuid().as_raw());
        assert!(!us.name.is_empty());
    }
}
