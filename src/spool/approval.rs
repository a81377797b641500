//! Request files (keys) of credd, and the first `.top` of a user who approved on our page.
//!
//! Elsewhere we never make a user's directory and never a `.top` that was not there, because both are credd's. An
//! approval on a web page is an exception (`stand_in` is the other one): credd cannot be asked to store for another user
//! (that needs `CRED_SUPER_USERS`), so HTCondor's own web page writes both itself (contract `HTCondor`, 2.1 and 2.3), and
//! so does ours, only while a request file that credd wrote for just that user and service is there and not older than
//! [`LIFE`]. What we leave is what credd would: the directory condor's, mode 02700 by the set-group-id bit above it;
//! the `.top` root's (ours, where we are not root), mode 0600.
//!
//! Request files hold a client's secret, so they do not stay: used up or older than [`LIFE`], they are removed, which
//! is the stock credmon's and web page's duty where they run.
//!
//! Killed in between, we leave an empty directory of root's, which credd, schedd and we accept, or a temporary file,
//! which the next start removes; the key can be used again.

use std::time::{Duration, SystemTime};

use nix::{
    errno::Errno,
    fcntl::{OFlag, renameat},
    sys::stat::{Mode, mkdirat},
    unistd::{Uid, fchown, fsync, geteuid},
};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{
    PublishError, Spool, SpoolError,
    dir::{self, Refusal},
};
use crate::core::{
    id::CredentialId,
    key_file::{self, KeyFile, MAX_KEY_FILE},
};

/// How long a request file counts.
pub const LIFE: Duration = Duration::from_secs(12 * 3600);

/// A request file is not to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RequestError {
    /// There is none of this key, or it is too old.
    #[error("there is no such request, or not any more")]
    Unknown,
    /// It is not as credd writes it.
    #[error("{0}")]
    Unfit(&'static str),
}

impl Spool {
    /// The request file of a key, judged, and how long it still counts. Every name is compared to its end, so that
    /// time does not tell how much of a guess was right.
    ///
    /// # Errors
    /// [`RequestError`]
    pub fn request(&self, key: &str) -> Result<(KeyFile, Duration), RequestError> {
        let same = |name: &String| aws_lc_rs::constant_time::verify_slices_are_equal(name.as_bytes(), key.as_bytes());
        let names = self.top.names_that(key_file::is_key).map_err(|_| RequestError::Unknown)?;
        let name = names
            .into_iter()
            .fold(None, |found, name| if same(&name).is_ok() { Some(name) } else { found })
            .ok_or(RequestError::Unknown)?;
        let (stat, file) = dir::open_regular(&self.top, &name).map_err(|refusal| match refusal {
            Refusal::Missing => RequestError::Unknown,
            Refusal::Bad(_) => RequestError::Unfit("it is no regular file"),
        })?;
        if !self.owners.accept(stat.st_uid) || stat.st_mode & 0o037 != 0 || stat.st_nlink != 1 {
            return Err(RequestError::Unfit("its owner, mode or number of links is not credd's"));
        }
        let left = LIFE.checked_sub(age(&stat)).ok_or(RequestError::Unknown)?;
        let (bytes, _) =
            dir::read_up_to(file, &stat, MAX_KEY_FILE).map_err(|_| RequestError::Unfit("it is unreadable"))?;
        key_file::parse(&bytes).map(|file| (file, left)).map_err(RequestError::Unfit)
    }

    /// Store the `.top` that a user approved on our page; `condor`: whose a user's directory is made.
    ///
    /// # Errors
    /// `NoSpace`, `Io`; what was there is as it was.
    pub fn store_approved(&self, id: &CredentialId, text: &[u8], condor: Option<u32>) -> Result<(), PublishError> {
        let fail = |e| self.error(id, "top", text.len(), e);
        let mut temporary = self.temporary(text.len()).map_err(fail)?;
        temporary.fill(text).map_err(fail)?;
        fsync(&temporary.file).map_err(fail)?;
        self.make_home(id.user.as_str(), condor).map_err(fail)?;
        let home = self.home(id)?;
        renameat(&self.top, temporary.name.as_str(), &home, format!("{}.top", id.base()).as_str()).map_err(fail)?;
        temporary.placed = true;
        fsync(&home).map_err(fail)
    }

    fn make_home(&self, user: &str, condor: Option<u32>) -> Result<(), Errno> {
        match mkdirat(&self.top, user, Mode::S_IRWXU) {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Ok(()),
            Err(e) => return Err(e),
        }
        if let Some(condor) = condor.filter(|_| geteuid().is_root()) {
            let made = self.top.beneath(user, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
            fchown(&made, Some(Uid::from_raw(condor)), None)?;
        }
        fsync(&self.top)
    }

    /// Remove a request file: all that it asked for is approved.
    ///
    /// # Errors
    /// [`SpoolError::Io`]
    pub fn close_request(&self, key: &str) -> Result<(), SpoolError> {
        if key_file::is_key(key) { self.remove(key) } else { Ok(()) }
    }

    /// Remove the request files that count no longer; says how many.
    ///
    /// # Errors
    /// [`SpoolError::Io`]
    pub fn sweep_requests(&self) -> Result<usize, SpoolError> {
        let names = self.top.names_that(key_file::is_key).map_err(|e| SpoolError::io(&self.path, "list it", e))?;
        let mut removed = 0;
        for name in &names {
            let stale = dir::open_regular(&self.top, name)
                .is_ok_and(|(stat, _)| self.owners.accept(stat.st_uid) && age(&stat) > LIFE);
            if stale {
                self.remove(name)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// By the time of the last change of the inode, which nobody can set; never negative.
fn age(stat: &nix::sys::stat::FileStat) -> Duration {
    let changed = u64::try_from(dir::ctime_ns(stat)).unwrap_or(0);
    let changed = SystemTime::UNIX_EPOCH + Duration::from_nanos(changed);
    SystemTime::now().duration_since(changed).unwrap_or_default()
}

/// The text of a `.top`: what credd compares stays byte for byte (a list without its blanks, as HTCondor's own page
/// writes it, is another list for credd: the next submit would be refused).
#[must_use]
pub fn top_text(refresh_token: &str, scopes: &str, audience: &str) -> Zeroizing<Vec<u8>> {
    let mut object = serde_json::Map::new();
    object.insert("refresh_token".into(), refresh_token.into());
    for (name, value) in [("scopes", scopes), ("audience", audience)] {
        if !value.is_empty() {
            object.insert(name.into(), value.into());
        }
    }
    // Strings alone: this cannot fail.
    let mut text = Zeroizing::new(serde_json::to_vec(&object).unwrap_or_default());
    if let Some(serde_json::Value::String(token)) = object.get_mut("refresh_token") {
        zeroize::Zeroize::zeroize(token);
    }
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::{core::id::UserName, spool::Owners};

    const REQUEST: &str = "Provider = \"wlcg\"\nHandle = \"\"\nScopes = \"a b, c\"\nClientId = \"c\"\nTokenUrl = \"https://i/t\"\n\
        LocalUser = \"alice\"\nReturnUrl = \"https://ap/return/wlcg\"\nClientSecret = \"canary\"\nAuthorizationUrl = \"https://i/a\"\n";

    fn spool() -> (tempfile::TempDir, Spool, String) {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o2770)).unwrap();
        let spool = Spool::open(dir.path(), Owners::usual(None)).unwrap();
        let key = "0123456789abcdef".repeat(4);
        fs::write(dir.path().join(&key), REQUEST).unwrap();
        fs::set_permissions(dir.path().join(&key), PermissionsExt::from_mode(0o640)).unwrap();
        (dir, spool, key)
    }

    fn alice() -> CredentialId {
        CredentialId::from_base(UserName::parse("alice").unwrap(), "wlcg").unwrap()
    }

    #[test]
    fn a_request_is_read_by_its_whole_key_alone_and_goes_when_it_is_closed() {
        let (dir, spool, key) = spool();
        let (file, left) = spool.request(&key).unwrap();
        assert_eq!((file.user.as_str(), file.items.len()), ("alice", 1));
        assert!(left <= LIFE && left > Duration::from_secs(11 * 3600));
        for bad in [&key[1..], &key.to_uppercase(), &"f".repeat(64), "", "pid", "../alice"] {
            assert_eq!(spool.request(bad).unwrap_err(), RequestError::Unknown, "{bad}");
        }
        assert_eq!(spool.sweep_requests().unwrap(), 0, "it counts still");
        spool.close_request("pid").unwrap();
        assert!(dir.path().join("pid").exists(), "nothing else can be closed");
        spool.close_request(&key).unwrap();
        assert_eq!(spool.request(&key).unwrap_err(), RequestError::Unknown);
    }

    #[test]
    fn a_request_file_that_credd_did_not_write_is_refused() {
        let (dir, spool, key) = spool();
        let path = dir.path().join(&key);
        let refused = |what: &str| match spool.request(&key) {
            Err(RequestError::Unfit(why)) => assert!(why.contains(what), "{why}"),
            other => panic!("{what}: {other:?}"),
        };
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        refused("mode");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o660)).unwrap();
        refused("mode");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        fs::hard_link(&path, dir.path().join("other")).unwrap();
        refused("links");
        fs::remove_file(dir.path().join("other")).unwrap();
        fs::write(&path, "Provider = \"x\"\n").unwrap();
        refused("no user");
        fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        refused("no regular file");
    }

    #[test]
    fn what_was_approved_is_stored_as_credd_stores_it_in_a_directory_new_or_old() {
        let (dir, spool, _) = spool();
        let text = top_text("canary\"\\", "a b, c:/\"x\"", "");
        for _ in 0..2 {
            spool.store_approved(&alice(), &text, Some(geteuid().as_raw())).unwrap();
            let home = fs::metadata(dir.path().join("alice")).unwrap();
            assert_eq!(home.mode() & 0o7777, 0o2700, "the set-group-id bit comes from above");
            let top = fs::metadata(dir.path().join("alice/wlcg.top")).unwrap();
            assert_eq!((top.mode() & 0o777, top.nlink()), (0o600, 1));
        }
        let (_, top) = spool.read_top(&alice(), None).unwrap();
        assert_eq!(top.refresh_token().expose(), "canary\"\\");
        let stored: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.path().join("alice/wlcg.top")).unwrap()).unwrap();
        assert_eq!(stored["scopes"], "a b, c:/\"x\"", "byte for byte");
        assert!(stored.get("audience").is_none());
        let left = fs::read_dir(dir.path()).unwrap().flatten();
        assert!(
            left.into_iter().all(|entry| !entry.file_name().to_string_lossy().contains("tmp")),
            "no temporary file"
        );
    }

    #[test]
    fn a_user_who_is_a_symbolic_link_gets_nothing() {
        let (dir, spool, _) = spool();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("alice")).unwrap();
        spool.store_approved(&alice(), b"x", None).unwrap_err();
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }
}
