//! The credential directory: kind, owner, group, modes, what lies in it, users' directories, room on its file system.

use std::{
    collections::BTreeMap,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use nix::{
    sys::statvfs::statvfs,
    unistd::{Gid, Group, Uid, User, getegid, geteuid},
};

use super::Finding;
use crate::{config::settings::Settings, spool::TEMPORARY};

const AREA: &str = "Credential directory";
/// Less than this share free is worth a warning, where it is less than `SPACE` or `INODES` as well.
const SCARCE_PERCENT: u64 = 5;

/// How much of something is too little.
struct Limits {
    /// Less is a failure: two files of a refresh token and a token hardly fit.
    nothing: u64,
    /// So much is enough for any number of credentials, however large the file system.
    plenty: u64,
}

/// What is said where the credential directory has no room.
const ADVICE: &str = "make room: without it no token is renewed (none is lost either: space is reserved first)";

const SPACE: Limits = Limits { nothing: 1 << 20, plenty: 1 << 30 };
const INODES: Limits = Limits { nothing: 16, plenty: 100_000 };

pub(super) fn examine(path: &Path) -> Vec<Finding> {
    let meta = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) => {
            return vec![
                Finding::failed(AREA, "directory", format!("{}: {e}", path.display()))
                    .advise("condor_master makes it at start, or: install -d -o root -g condor -m 2770"),
            ];
        }
    };
    if !meta.is_dir() {
        return vec![
            Finding::failed(AREA, "directory", format!("{} is not a directory", path.display()))
                .advise("name the directory itself in SEC_CREDENTIAL_DIRECTORY_OAUTH; symbolic links are not followed"),
        ];
    }
    let who = Accepted::here(meta.uid());
    let mut findings = vec![owner(path, meta.uid(), meta.gid(), geteuid().as_raw()), mode(meta.permissions().mode())];
    findings.push(group(meta.permissions().mode(), meta.gid(), &who));
    findings.extend(room(AREA, path, "", ADVICE));
    findings.extend(contents(path, &who));
    findings
}

/// Whose directories these may be.
struct Accepted {
    users: Vec<u32>,
    groups: Vec<u32>,
}

impl Accepted {
    /// Root, condor, who we are, and whose the credential directory is.
    fn here(owner: u32) -> Self {
        let (mut users, mut groups) = (vec![0, geteuid().as_raw(), owner], vec![0, getegid().as_raw()]);
        if let Some(condor) = User::from_name("condor").ok().flatten() {
            users.push(condor.uid.as_raw());
            groups.push(condor.gid.as_raw());
        }
        Self { users, groups }
    }
}

fn name_of_group(gid: u32) -> String {
    Group::from_gid(Gid::from_raw(gid)).ok().flatten().map_or_else(|| gid.to_string(), |group| group.name)
}

/// A group that is not condor's may have no right there.
fn group(mode: u32, gid: u32, who: &Accepted) -> Finding {
    let name = name_of_group(gid);
    if mode & 0o070 == 0 || who.groups.contains(&gid) {
        return Finding::ok(AREA, "group", format!("the group {name} may be there"));
    }
    let what = if mode & 0o020 == 0 { "may look into it" } else { "may put and remove credentials there" };
    Finding::failed(AREA, "group", format!("the group {name}, which is not condor's, {what}"))
        .advise("give it to condor's group: chgrp condor, then chmod 2770")
}

/// What is wrong with a user's directory, and whether nothing in it is renewed for that.
fn of_user(mode: u32, uid: u32, gid: u32, who: &Accepted) -> Option<(&'static str, bool)> {
    if !who.users.contains(&uid) {
        Some(("belong to somebody else than root and condor", true))
    } else if mode & 0o002 != 0 {
        Some(("others may write to", true))
    } else if mode & 0o020 != 0 && !who.groups.contains(&gid) {
        Some(("a group that is not condor's may write to", false))
    } else if mode & 0o005 != 0 {
        Some(("others may look into", false))
    } else {
        None
    }
}

fn owner(path: &Path, uid: u32, gid: u32, us: u32) -> Finding {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    let group = name_of_group(gid);
    let what = format!("{} belongs to {user}:{group}", path.display());
    if uid == 0 || uid == us {
        Finding::ok(AREA, "owner", what)
    } else {
        Finding::failed(AREA, "owner", what).advise("give it to root: chown root:condor")
    }
}

fn mode(mode: u32) -> Finding {
    let what = format!("mode {:04o}", mode & 0o7777);
    if mode & 0o007 != 0 {
        Finding::failed(AREA, "mode", format!("{what}: open to others")).advise("close it: chmod 2770")
    } else if mode & 0o700 != 0o700 {
        Finding::failed(AREA, "mode", format!("{what}: its owner cannot use it")).advise("chmod 2770")
    } else {
        Finding::ok(AREA, "mode", what)
    }
}

/// Room where the daemon writes besides, on file systems that were not looked at yet.
pub(super) fn room_besides(settings: &Settings) -> Vec<Finding> {
    const AREA: &str = "Room";
    let daemon = &settings.daemon;
    let log = daemon.log.as_deref().map(Path::new).filter(|path| path.is_absolute());
    let places = [
        (Some(daemon.state_directory.as_path()), "make room: what was told and what sites have is not kept without it"),
        (log.and_then(Path::parent), "make room: lines of the log are lost without it"),
        (daemon.audit_log.as_deref().and_then(Path::parent), "make room: lines of the audit log are lost without it"),
    ];
    let device = |path: &Path| std::fs::metadata(path).ok().map(|meta| meta.dev());
    let mut seen = vec![device(&daemon.credential_directory)];
    let mut findings = Vec::new();
    for (path, advice) in places {
        // One that the daemon has not made yet will be where the first that is there is.
        let Some(path) = path.and_then(|path| path.ancestors().find(|path| path.exists())) else { continue };
        let here = device(path);
        if !seen.contains(&here) {
            seen.push(here);
            findings.extend(room(AREA, path, &format!("{}: ", path.display()), advice));
        }
    }
    findings
}

/// Room for data and for files.
fn room(area: &str, path: &Path, name: &str, advice: &str) -> Vec<Finding> {
    let stat = match statvfs(path) {
        Ok(stat) => stat,
        Err(e) => return vec![Finding::skipped(area, "space", format!("{name}room on its file system: {e}"))],
    };
    let (free, all) = (stat.blocks_available() * stat.fragment_size(), stat.blocks() * stat.fragment_size());
    let what = format!("{name}{} MiB of {} MiB free", free >> 20, all >> 20);
    let mut findings = vec![share((area, "space"), &what, free, all, &SPACE, advice)];
    // Some file systems have no fixed number of inodes and say 0.
    if stat.files() > 0 {
        let (free, all) = (stat.files_available(), stat.files());
        findings.push(share(
            (area, "inodes"),
            &format!("{name}{free} of {all} inodes free"),
            free,
            all,
            &INODES,
            advice,
        ));
    }
    findings
}

fn share(
    (area, check): (&str, &'static str),
    what: &str,
    free: u64,
    all: u64,
    limits: &Limits,
    advice: &str,
) -> Finding {
    if free < limits.nothing {
        Finding::failed(area, check, what).advise(advice)
    } else if free < limits.plenty && u128::from(free) * 100 < u128::from(all) * u128::from(SCARCE_PERCENT) {
        Finding::warning(area, check, what).advise(advice)
    } else {
        Finding::ok(area, check, what)
    }
}

/// Whether what lies in there is what ought to.
fn contents(path: &Path, who: &Accepted) -> Vec<Finding> {
    const ADVICE: &str = "chown them to root:condor and chmod them to 2700, as credd makes them";
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten(),
        Err(e) => return vec![Finding::skipped(AREA, "contents", format!("users' directories: {e}"))],
    };
    let (mut users, mut links, mut temporary) = (0_usize, Vec::new(), 0_usize);
    let mut unfit: BTreeMap<(&str, bool), Vec<String>> = BTreeMap::new();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => {
                users += 1;
                // One that was swept meanwhile has nothing wrong.
                let meta = std::fs::symlink_metadata(entry.path()).ok();
                let wrong = meta.and_then(|meta| of_user(meta.permissions().mode(), meta.uid(), meta.gid(), who));
                if let Some(wrong) = wrong {
                    unfit.entry(wrong).or_default().push(name);
                }
            }
            Ok(kind) if kind.is_symlink() => links.push(name),
            _ if name.starts_with(TEMPORARY) => temporary += 1,
            _ => {}
        }
    }
    let mut findings = vec![Finding::ok(AREA, "contents", format!("{users} users have credentials"))];
    for ((what, refused), mut names) in unfit {
        let count = names.len();
        names.sort_unstable();
        names.truncate(5);
        let more = if count > names.len() { format!(" and {} more", count - names.len()) } else { String::new() };
        let what = format!("users' directories that {what}: {}{more}", names.join(", "));
        findings.push(if refused {
            Finding::failed(AREA, "users", format!("{what}; nothing in them is renewed")).advise(ADVICE)
        } else {
            Finding::warning(AREA, "users", what).advise(ADVICE)
        });
    }
    if !links.is_empty() {
        links.truncate(5);
        findings.push(
            Finding::warning(AREA, "links", format!("symbolic links in it: {}", links.join(", ")))
                .advise("remove them: they are never followed, so what is behind them is never renewed"),
        );
    }
    if temporary > 64 {
        findings.push(
            Finding::warning(AREA, "leftovers", format!("{temporary} temporary files of ours"))
                .advise("a credmon was killed often; the next start removes them"),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::Verdict;

    fn verdicts(findings: &[Finding]) -> Vec<(&'static str, Verdict)> {
        findings.iter().map(|finding| (finding.check, finding.verdict)).collect()
    }

    #[test]
    fn a_good_directory_is_good_and_an_open_or_missing_one_fails() {
        let dir = tempfile::tempdir().unwrap();
        let set = |mode| std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        set(0o700);
        assert!(examine(dir.path()).iter().all(|f| f.verdict != Verdict::Failed), "{:?}", examine(dir.path()));
        set(0o755);
        assert!(verdicts(&examine(dir.path())).contains(&("mode", Verdict::Failed)));
        assert_eq!(verdicts(&examine(&dir.path().join("none"))), [("directory", Verdict::Failed)]);
        std::os::unix::fs::symlink("/tmp", dir.path().join("bob")).unwrap();
        assert!(verdicts(&examine(dir.path())).contains(&("links", Verdict::Warning)));
        assert_eq!(verdicts(&examine(&dir.path().join("bob"))), [("directory", Verdict::Failed)]);
    }

    #[test]
    fn an_owner_who_is_neither_root_nor_us_fails() {
        assert_eq!(owner(Path::new("/c"), 0, 0, 5).verdict, Verdict::Ok);
        assert_eq!(owner(Path::new("/c"), 5, 0, 5).verdict, Verdict::Ok);
        assert_eq!(owner(Path::new("/c"), 6, 0, 5).verdict, Verdict::Failed);
    }

    #[test]
    fn a_group_that_is_not_condor_s_and_users_directories_that_are_open_or_somebody_s_are_found() {
        let who = Accepted { users: vec![0, 64], groups: vec![0, 64] };
        assert_eq!(group(0o2770, 64, &who).verdict, Verdict::Ok);
        assert_eq!(group(0o700, 1000, &who).verdict, Verdict::Ok);
        assert_eq!(group(0o2770, 1000, &who).verdict, Verdict::Failed);
        let refused = |mode, uid, gid| of_user(mode, uid, gid, &who).map(|(_, refused)| refused);
        assert_eq!((refused(0o2700, 64, 1000), refused(0o2770, 0, 64)), (None, None));
        assert_eq!((refused(0o2700, 1000, 64), refused(0o702, 0, 0)), (Some(true), Some(true)));
        assert_eq!((refused(0o770, 0, 1000), refused(0o755, 0, 0)), (Some(false), Some(false)));
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("alice");
        std::fs::create_dir(&home).unwrap();
        let users = |mode| {
            std::fs::set_permissions(&home, std::fs::Permissions::from_mode(mode)).unwrap();
            verdicts(&examine(dir.path())).into_iter().filter(|(check, _)| *check == "users").collect::<Vec<_>>()
        };
        assert_eq!(users(0o700), []);
        assert_eq!(users(0o705), [("users", Verdict::Warning)]);
        assert_eq!(users(0o702), [("users", Verdict::Failed)]);
    }

    #[test]
    fn scarce_room_warns_and_none_fails() {
        let limits = Limits { nothing: 10, plenty: 1000 };
        for (free, all, verdict) in [
            (50, 100, Verdict::Ok),
            (40, 1000, Verdict::Warning),
            (1000, 100_000, Verdict::Ok),
            (9, 10, Verdict::Failed),
        ] {
            assert_eq!(share((AREA, "space"), "", free, all, &limits, "").verdict, verdict, "{free} of {all}");
        }
    }

    #[test]
    fn room_is_looked_at_once_for_each_file_system_that_the_daemon_writes_to() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        let examined = |keys: &str| {
            let text = format!(
                "[daemon]\ncredential_directory = \"{}\"\n{keys}\n[provider.w]\nkind = \"oauth2\"\nclient_id = \"x\"\n\
                 issuer = \"https://i.example.org/\"\n",
                dir.path().display()
            );
            std::fs::write(&file, text).unwrap();
            let sources = crate::config::Sources { config: Some(file.clone()), ..Default::default() };
            room_besides(&crate::config::load_with(&sources, &crate::config::condor::Knobs::default()).unwrap())
        };
        let state = format!("state_directory = \"{}/not/yet\"", dir.path().display());
        assert_eq!(examined(&state), [], "it is the credential directory's");
        let findings = examined(&format!("{state}\naudit_log = \"/proc/audit\"\nlog = \"/proc/log\""));
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert_eq!((findings[0].area.as_str(), findings[0].check), ("Room", "space"));
        assert!(findings[0].what.starts_with("/proc: "), "{findings:?}");
        assert!(findings[0].advice.contains("lines of the log"), "{findings:?}");
    }
}
