//! What the network process gives up: its uid, all capabilities, new privileges, core dumps, and (Landlock) every file
//! but those that names and certificates need. [`super::calls`] comes on top.

use std::path::Path;

use landlock::{ABI, Access, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus};
use nix::{
    sys::{
        prctl,
        resource::{Resource, setrlimit},
    },
    unistd::{Gid, Uid, getresuid, setgroups, setresgid, setresuid},
};

/// Read-only for names, certificates and shared libraries.
const READABLE: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/ssl",
    "/etc/pki",
    "/etc/localtime",
    "/usr/share/ca-certificates",
    "/usr/lib",
    "/usr/lib64",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/run/systemd/resolve",
    "/run/nscd",
    "/dev/urandom",
    "/dev/null",
];

/// Become `ids` (when started as root), in `groups` besides, and give up every privilege.
///
/// # Errors
/// One line: what could not be given up. The caller must end then.
pub fn drop_privileges(ids: Option<(u32, u32)>, groups: &[u32]) -> Result<(), String> {
    let step = |what: &'static str| move |e: nix::Error| format!("{what}: {e}");
    if let Some((uid, gid)) = ids {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups).map_err(step("setgroups"))?;
        setresgid(gid, gid, gid).map_err(step("setresgid"))?;
        setresuid(uid, uid, uid).map_err(step("setresuid"))?;
        let now = getresuid().map_err(step("getresuid"))?;
        let back = setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0));
        if [now.real, now.effective, now.saved] != [uid; 3] || back.is_ok() {
            return Err("root can be regained".into());
        }
    }
    for set in [caps::CapSet::Ambient, caps::CapSet::Inheritable, caps::CapSet::Effective, caps::CapSet::Permitted] {
        caps::clear(None, set).map_err(|e| format!("capabilities: {e}"))?;
    }
    prctl::set_no_new_privs().map_err(step("no_new_privs"))?;
    prctl::set_dumpable(false).map_err(step("dumpable"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(step("RLIMIT_CORE"))
}

/// Close the file system, as far as this kernel can; says how far.
///
/// # Errors
/// Landlock is there, and refuses.
pub fn close_files() -> Result<String, String> {
    close_files_but(Vec::new())
}

/// What stays readable besides: opened before, since a mount that hangs would hold up whoever closes files.
#[derive(Debug)]
pub struct Readable {
    fd: PathFd,
    directory: bool,
}

impl Readable {
    /// None if it is not there.
    #[must_use]
    pub fn open(path: &Path) -> Option<Self> {
        Some(Self { fd: PathFd::new(path).ok()?, directory: path.is_dir() })
    }
}

/// As [`close_files`], but that what is below these can be read as well.
///
/// # Errors
/// Landlock is there, and refuses.
pub fn close_files_but(readable: Vec<Readable>) -> Result<String, String> {
    let abi = ABI::V3;
    let fail = |e: landlock::RulesetError| format!("landlock: {e}");
    let mut rules = Ruleset::default().handle_access(AccessFs::from_all(abi)).map_err(fail)?.create().map_err(fail)?;
    for one in READABLE.iter().filter_map(|path| Readable::open(Path::new(path))).chain(readable) {
        let all = AccessFs::from_read(abi);
        let access = if one.directory { all } else { all & AccessFs::from_file(abi) };
        rules = rules.add_rule(PathBeneath::new(one.fd, access)).map_err(fail)?;
    }
    let status = rules.restrict_self().map_err(fail)?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => "landlock",
        RulesetStatus::PartiallyEnforced => "landlock (in part)",
        RulesetStatus::NotEnforced => "no landlock in this kernel",
    }
    .to_owned())
}
