//! Durable publishing. Space for both files is reserved before a refresh token is spent; a rotated refresh token is
//! in `.top`, synced, before the access token appears in `.use`. A `.top` reserved in vain (most issuers do not rotate)
//! serves the next exchange.
//!
//! There is no lock between credd and us: `.top` is compared with what the exchange started from as late as possible.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, FallocateFlags, fallocate, renameat},
    sys::stat::{FileStat, fstat, fstatat},
    unistd::{UnlinkatFlags, fsync, ftruncate, unlinkat},
};
use thiserror::Error;

use super::{
    Spool,
    dir::{self, Dir},
    keep::Waiting,
};
use crate::core::{id::CredentialId, top::Identity};

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

/// At least this much is allocated for a `.top`, so that one reservation is as good as the next.
const TOP_ROOM: usize = 16 * 1024;
/// So many `.top`s reserved in vain are kept for the next exchanges.
const SPARES: usize = 64;
/// Allocated space beyond the content that is worth a call to give it back.
const WASTE: usize = 4096;

/// The user's directory, and two temporary files with space allocated. Dropped, it removes what was not published.
#[derive(Debug)]
pub struct Reservation {
    home: Dir,
    /// For the rotated `.top`; used up by [`Spool::keep_refresh_token`].
    pub(super) top: Option<Temporary>,
    /// The rotated `.top`, written, but not in its place.
    pub(super) waiting: Option<Waiting>,
    use_file: Temporary,
}

impl Reservation {
    /// A rotated refresh token is written that did not get into its `.top` yet: the next start finds it.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.waiting.is_some()
    }
}

/// A file of ours in the top directory.
#[derive(Debug)]
pub(super) struct Temporary {
    pub(super) directory: Arc<Dir>,
    pub(super) file: OwnedFd,
    pub(super) name: String,
    /// So many bytes are allocated.
    pub(super) room: usize,
    /// The file system cannot allocate ahead: there are zeros in it.
    pub(super) zeros: bool,
    /// It is in its place.
    pub(super) placed: bool,
    /// The next start needs it, or it is somebody else's to remove.
    pub(super) stays: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.placed && !self.stays {
            // What stays behind is removed at the next start.
            let _removed = unlinkat(&*self.directory, self.name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

impl Spool {
    /// Reserve space for a rotated `.top` and a `.use`; for the latter a quarter more than the present one has, too.
    ///
    /// # Errors
    /// `Gone`, `NoSpace`, `Io`.
    pub fn reserve(&self, id: &CredentialId, top_bytes: usize, use_bytes: usize) -> Result<Reservation, PublishError> {
        let home = self.home(id)?;
        let present = look(&home, &format!("{}.use", id.base())).ok().flatten();
        let present = present.and_then(|stat| usize::try_from(stat.st_size).ok()).unwrap_or(0);
        let use_bytes = use_bytes.max(present.saturating_add(present / 4));
        let spare = self.spares().pop().filter(|spare| spare.room >= top_bytes);
        let top = match spare {
            Some(spare) => spare,
            None => self.temporary(top_bytes.max(TOP_ROOM)).map_err(|e| self.error(id, "top", top_bytes, e))?,
        };
        let use_file = self.temporary(use_bytes).map_err(|e| self.error(id, "use", use_bytes, e))?;
        Ok(Reservation { home, top: Some(top), waiting: None, use_file })
    }

    fn spares(&self) -> MutexGuard<'_, Vec<Temporary>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remove the space that is reserved for exchanges to come.
    pub(super) fn release_spares(&self) {
        self.spares().clear();
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
        let Reservation { home, top: unused, waiting: None, use_file: mut temporary } = reservation else {
            return Err(self.error(id, "top", bytes.len(), Errno::EBUSY));
        };
        let fail = |e| self.error(id, "use", bytes.len(), e);
        if bytes.is_empty() {
            return Err(fail(Errno::EINVAL));
        }
        temporary.fill(bytes).map_err(fail)?;
        fsync(&temporary.file).map_err(fail)?;
        let before = look(&home, &name).map_err(fail)?;
        check_top(&home, &top, &expected, fail)?;
        renameat(&*self.top, temporary.name.as_str(), &home, name.as_str()).map_err(|e| gone_or(e, fail))?;
        temporary.placed = true;
        fsync(&home).map_err(fail)?;
        let why = match check_top(&home, &top, &expected, fail) {
            Ok(()) => {
                let mut spares = self.spares();
                let room = spares.len() < SPARES;
                spares.extend(unused.filter(|_| room));
                return Ok(());
            }
            Err(why @ (PublishError::Superseded | PublishError::Gone)) => why,
            Err(unknown) => return Err(unknown),
        };
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

    pub(super) fn home(&self, id: &CredentialId) -> Result<Dir, PublishError> {
        self.top
            .user(id.user.as_str(), &self.owners)
            .map_err(|e| gone_or(e, |e| PublishError::Io { path: self.path.join(id.user.as_str()), source: e.into() }))
    }

    pub(super) fn temporary(&self, bytes: usize) -> Result<Temporary, Errno> {
        let name = self.temporary_name();
        let file = self.top.create(&name)?;
        let room = bytes.max(1);
        let directory = Arc::clone(&self.top);
        let mut temporary = Temporary { directory, file, name, room, zeros: false, placed: false, stays: false };
        let length = i64::try_from(room).map_err(|_| Errno::EFBIG)?;
        match fallocate(&temporary.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
            // The file system cannot allocate ahead: then writing is the only way to know.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {
                temporary.zeros = true;
                dir::write_all(temporary.file.as_fd(), &vec![0; room])?;
            }
            other => other?,
        }
        Ok(temporary)
    }

    pub(super) fn error(&self, id: &CredentialId, suffix: &str, bytes: usize, errno: Errno) -> PublishError {
        let path = self.path.join(id.user.as_str()).join(format!("{}.{suffix}", id.base()));
        match errno {
            Errno::ENOSPC | Errno::EDQUOT => PublishError::NoSpace { path, bytes },
            e => PublishError::Io { path, source: e.into() },
        }
    }
}

impl Temporary {
    /// Exactly these bytes, from the start.
    pub(super) fn fill(&self, bytes: &[u8]) -> Result<(), Errno> {
        if self.zeros {
            nix::unistd::lseek(&self.file, 0, nix::unistd::Whence::SeekSet)?;
        }
        dir::write_all(self.file.as_fd(), bytes)?;
        if self.zeros || self.room.saturating_sub(bytes.len()) >= WASTE {
            ftruncate(&self.file, i64::try_from(bytes.len()).map_err(|_| Errno::EFBIG)?)?;
        }
        Ok(())
    }
}

pub(super) fn look(home: &Dir, name: &str) -> Result<Option<FileStat>, Errno> {
    match fstatat(home, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn check_top(
    home: &Dir,
    name: &str,
    expected: &Identity,
    fail: impl FnOnce(Errno) -> PublishError,
) -> Result<(), PublishError> {
    match look(home, name).map_err(fail)? {
        Some(stat) if dir::is(&stat, expected) => Ok(()),
        Some(_) => Err(PublishError::Superseded),
        None => Err(PublishError::Gone),
    }
}

fn gone_or(e: Errno, fail: impl FnOnce(Errno) -> PublishError) -> PublishError {
    if e == Errno::ENOENT { PublishError::Gone } else { fail(e) }
}
