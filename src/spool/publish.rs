//! Durable publishing. Space for both files is reserved before a refresh token is spent; a rotated refresh token is
//! in `.top`, synced, before the access token appears in `.use`.
//!
//! There is no lock between credd and us. `.top` is compared with what the exchange started from as late as possible.
//! A rotation swaps the files (`RENAME_EXCHANGE`) and looks at what came out: a newer `.top` goes back, and a deleted
//! one does not come back. Where the file system cannot swap, it is compare and rename.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, posix_fallocate, renameat},
    sys::stat::{FileStat, fstat, fstatat},
    unistd::{Gid, Uid, UnlinkatFlags, fchown, fsync, ftruncate, geteuid, unlinkat},
};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{
    Seal, Spool,
    dir::{self, Dir, Refusal},
    exchange::exchange,
    inventory::unseal,
};
use crate::core::{id::CredentialId, secret::RefreshToken, top::Identity};

/// Nothing was published; what was there is as it was.
#[derive(Debug, Error)]
pub enum PublishError {
    /// The `.top` is not the one that the exchange started from.
    #[error("the .top was replaced meanwhile")]
    Superseded,
    /// The `.top` or the user's directory was removed.
    #[error("the credential was removed meanwhile")]
    Gone,
    /// No space, inodes or quota.
    #[error("{}: no space for {bytes} bytes; free space or inodes there, or raise the quota", path.display())]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// How much was wanted.
        bytes: usize,
    },
    /// A call failed.
    #[error("{}: cannot publish: {source}; check owner, mode and the file system", path.display())]
    Io {
        /// What it was about.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Two temporary files with space allocated. Dropped, it removes what was not published.
#[derive(Debug)]
pub struct Reservation {
    /// For the rotated `.top`; used up by [`Spool::keep_refresh_token`].
    top: Option<Temporary>,
    use_file: Temporary,
}

#[derive(Debug)]
struct Temporary {
    directory: OwnedFd,
    file: OwnedFd,
    name: String,
    placed: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.placed {
            // What stays behind is removed at the next start.
            let _removed = unlinkat(&self.directory, self.name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

impl Spool {
    /// Reserve space for a rotated `.top` and a `.use`.
    ///
    /// # Errors
    /// `NoSpace`, `Io`.
    pub fn reserve(&self, id: &CredentialId, top_bytes: usize, use_bytes: usize) -> Result<Reservation, PublishError> {
        let top = self.temporary(top_bytes).map_err(|e| self.error(id, "top", top_bytes, e))?;
        let use_file = self.temporary(use_bytes).map_err(|e| self.error(id, "use", use_bytes, e))?;
        Ok(Reservation { top: Some(top), use_file })
    }

    /// Make a rotated refresh token durable in `.top`; the rest of its text stays.
    ///
    /// # Errors
    /// `Superseded` or `Gone` if `.top` is not `expected` any more; `NoSpace`, `Io`. A failed call may be repeated
    /// with a fresh reservation.
    pub fn keep_refresh_token(
        &self,
        id: &CredentialId,
        reservation: &mut Reservation,
        expected: Identity,
        new: &RefreshToken,
        keys: Option<&Seal>,
    ) -> Result<Identity, PublishError> {
        let name = format!("{}.top", id.base());
        let home = self.home(id)?;
        let (stat, bytes) = dir::read_top(&home, &name, &self.owners).map_err(|refusal| match refusal {
            Refusal::Missing => PublishError::Gone,
            Refusal::Bad(_) => PublishError::Superseded,
        })?;
        if dir::identity(&stat, &bytes) != expected {
            return Err(PublishError::Superseded);
        }
        let text = unseal(&bytes, keys).map_err(|_| PublishError::Superseded)?.with_refresh_token(new);
        let text = match keys {
            Some(seal) if Seal::looks_sealed(&bytes) => seal.seal(&text),
            _ => text,
        };
        let fail = |e| self.error(id, "top", text.len(), e);
        let mut temporary = match reservation.top.take() {
            Some(reserved) => reserved,
            None => self.temporary(text.len()).map_err(fail)?,
        };
        temporary.fill(&text).map_err(fail)?;
        if geteuid().is_root() {
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            fchown(&temporary.file, Some(uid), Some(gid)).map_err(fail)?;
        }
        fsync(&temporary.file).map_err(fail)?;
        check_top(&home, &name, &expected)?;
        self.swap(&home, &name, &mut temporary, &expected, &text).map_err(|e| e.into_error(fail))?;
        let now = fstat(&temporary.file).map_err(fail)?;
        fsync(&home).map_err(fail)?;
        Ok(dir::identity(&now, &text))
    }

    /// Publish the bytes of a `.use`.
    ///
    /// # Errors
    /// `Superseded` or `Gone` if `.top` is not `expected` any more; `NoSpace`, `Io`.
    pub fn publish_use(
        &self,
        id: &CredentialId,
        reservation: Reservation,
        expected: Identity,
        bytes: &[u8],
    ) -> Result<(), PublishError> {
        let (top, name) = (format!("{}.top", id.base()), format!("{}.use", id.base()));
        let Reservation { top: unused, use_file: mut temporary } = reservation;
        drop(unused);
        let fail = |e| self.error(id, "use", bytes.len(), e);
        if bytes.is_empty() {
            return Err(fail(Errno::EINVAL));
        }
        temporary.fill(bytes).map_err(fail)?;
        fsync(&temporary.file).map_err(fail)?;
        let home = self.home(id)?;
        let before = look(&home, &name).map_err(fail)?;
        check_top(&home, &top, &expected)?;
        renameat(&self.top, temporary.name.as_str(), &home, name.as_str()).map_err(|e| gone_or(e, fail))?;
        temporary.placed = true;
        fsync(&home).map_err(fail)?;
        let Err(why) = check_top(&home, &top, &expected) else { return Ok(()) };
        // The `.top` went away under us: an orphan `.use` of ours goes too, unless one was there before.
        let ours = fstat(&temporary.file).map_err(fail)?;
        if before.is_none()
            && look(&home, &name)
                .map_err(fail)?
                .is_some_and(|now| (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino))
        {
            match unlinkat(&home, name.as_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(e) => return Err(fail(e)),
            }
        }
        Err(why)
    }

    /// Put the temporary file in the place of the expected `.top`.
    fn swap(
        &self,
        home: &Dir,
        name: &str,
        temporary: &mut Temporary,
        expected: &Identity,
        text: &Zeroizing<Vec<u8>>,
    ) -> Result<(), Swapped> {
        let swap = || exchange(&self.top, temporary.name.as_str(), home, name);
        match swap() {
            Ok(()) => {}
            Err(Errno::ENOENT) => return Err(Swapped::Done(PublishError::Gone)),
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EPERM) => {
                return match renameat(&self.top, temporary.name.as_str(), home, name) {
                    Ok(()) => {
                        temporary.placed = true;
                        Ok(())
                    }
                    Err(Errno::ENOENT) => Err(Swapped::Done(PublishError::Gone)),
                    Err(e) => Err(Swapped::Failed(e)),
                };
            }
            Err(e) => return Err(Swapped::Failed(e)),
        }
        let came_out = fstatat(&self.top, temporary.name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        if came_out.is_ok_and(|stat| dir::is(&stat, expected)) {
            return Ok(());
        }
        // A newer `.top` came between check and swap. It goes back, unless yet another took our place.
        let ours = fstat(&temporary.file).map(|stat| dir::identity(&stat, text));
        match (ours, look(home, name)) {
            (Ok(ours), Ok(Some(stat))) if dir::is(&stat, &ours) => {
                if let Err(e) = swap() {
                    temporary.placed = true;
                    return Err(Swapped::Failed(e));
                }
            }
            _ => {}
        }
        Err(Swapped::Done(PublishError::Superseded))
    }

    fn home(&self, id: &CredentialId) -> Result<Dir, PublishError> {
        self.top
            .user(id.user.as_str(), &self.owners)
            .map_err(|e| gone_or(e, |e| PublishError::Io { path: self.path.join(id.user.as_str()), source: e.into() }))
    }

    fn temporary(&self, bytes: usize) -> Result<Temporary, Errno> {
        let directory = self.top.as_fd().try_clone_to_owned().map_err(|e| errno(&e))?;
        let name = self.temporary_name();
        let file = self.top.create(&name)?;
        let temporary = Temporary { directory, file, name, placed: false };
        let length = i64::try_from(bytes.max(1)).map_err(|_| Errno::EFBIG)?;
        match posix_fallocate(&temporary.file, 0, length) {
            // The file system cannot allocate ahead: then writing is the only way to know.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {
                dir::write_all(temporary.file.as_fd(), &vec![0; bytes])?;
            }
            other => other?,
        }
        Ok(temporary)
    }

    fn error(&self, id: &CredentialId, suffix: &str, bytes: usize, errno: Errno) -> PublishError {
        let path = self.path.join(id.user.as_str()).join(format!("{}.{suffix}", id.base()));
        match errno {
            Errno::ENOSPC | Errno::EDQUOT => PublishError::NoSpace { path, bytes },
            e => PublishError::Io { path, source: e.into() },
        }
    }
}

/// Why a swap did not happen.
#[derive(Debug)]
enum Swapped {
    Done(PublishError),
    Failed(Errno),
}

impl Swapped {
    fn into_error(self, fail: impl FnOnce(Errno) -> PublishError) -> PublishError {
        match self {
            Self::Done(e) => e,
            Self::Failed(e) => fail(e),
        }
    }
}

impl Temporary {
    /// Exactly these bytes, from the start.
    fn fill(&self, bytes: &[u8]) -> Result<(), Errno> {
        nix::unistd::lseek(&self.file, 0, nix::unistd::Whence::SeekSet)?;
        dir::write_all(self.file.as_fd(), bytes)?;
        ftruncate(&self.file, i64::try_from(bytes.len()).map_err(|_| Errno::EFBIG)?)
    }
}

fn look(home: &Dir, name: &str) -> Result<Option<FileStat>, Errno> {
    match fstatat(home, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

fn check_top(home: &Dir, name: &str, expected: &Identity) -> Result<(), PublishError> {
    match look(home, name) {
        Ok(Some(stat)) if dir::is(&stat, expected) => Ok(()),
        Ok(None) => Err(PublishError::Gone),
        _ => Err(PublishError::Superseded),
    }
}

fn gone_or(e: Errno, fail: impl FnOnce(Errno) -> PublishError) -> PublishError {
    if e == Errno::ENOENT { PublishError::Gone } else { fail(e) }
}

fn errno(e: &io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::{core::id::UserName, spool::Owners};

    /// A spool with alice's `.top` read, another stored after the check, and a swap on its way.
    fn late(change: impl Fn(&std::path::Path)) -> (tempfile::TempDir, Result<(), Swapped>) {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        fs::create_dir(dir.path().join("alice")).unwrap();
        fs::set_permissions(dir.path().join("alice"), PermissionsExt::from_mode(0o700)).unwrap();
        let top = dir.path().join("alice/s.top");
        fs::write(&top, "one").unwrap();
        fs::set_permissions(&top, PermissionsExt::from_mode(0o600)).unwrap();
        let spool = Spool::open(dir.path(), Owners::usual(None)).unwrap();
        let id = CredentialId::from_base(UserName::parse("alice").unwrap(), "s").unwrap();
        let expected = spool.read_top(&id, None).unwrap().0;
        let text = Zeroizing::new(b"two".to_vec());
        let mut temporary = spool.temporary(3).unwrap();
        temporary.fill(&text).unwrap();
        let home = spool.home(&id).unwrap();
        change(&top);
        let swapped = spool.swap(&home, "s.top", &mut temporary, &expected, &text);
        drop(temporary);
        drop(spool);
        (dir, swapped)
    }

    #[test]
    fn a_top_stored_between_check_and_swap_goes_back() {
        let (dir, swapped) = late(|top| {
            fs::write(top.with_extension("tmp"), "new").unwrap();
            fs::rename(top.with_extension("tmp"), top).unwrap();
        });
        assert!(matches!(swapped, Err(Swapped::Done(PublishError::Superseded))), "{swapped:?}");
        assert_eq!(fs::read(dir.path().join("alice/s.top")).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "alice and the lock");
    }

    #[test]
    fn a_top_deleted_between_check_and_swap_stays_deleted() {
        let (dir, swapped) = late(|top| fs::remove_file(top).unwrap());
        assert!(matches!(swapped, Err(Swapped::Done(PublishError::Gone))), "{swapped:?}");
        assert!(!dir.path().join("alice/s.top").exists());
    }

    #[test]
    fn an_undisturbed_swap_puts_ours_there_and_removes_the_old() {
        let (dir, swapped) = late(|_| {});
        assert!(swapped.is_ok(), "{swapped:?}");
        assert_eq!(fs::read(dir.path().join("alice/s.top")).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "alice and the lock");
    }
}
