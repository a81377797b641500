//! The credential directory: everything that touches it, and nothing that decides.
//!
//! On disk (contract `HTCondor`, 2): `<user>/<S[_H]>.top` is written by credd, `<user>/<S[_H]>.use` by us. Ours in
//! the top directory are `pid`, `CREDMON_COMPLETE`, `.evercred.lock`, `.evercred-index`, and temporary files
//! `.evercred-tmp-*` and `.evercred-keep-*`, which stand on the same file system as their targets and in nobody's way when credd sweeps a
//! user's directory.
//!
//! Beside a stock credential monitor ([`Spool::open_beside`]) `pid` and `CREDMON_COMPLETE` are not ours, and untouched.
//!
//! Rules: open first, then judge the descriptor; never follow a symbolic link; never make a user's directory (but for
//! an approval on our page and for accounts of the configuration, see `approval` and `stand_in`); never
//! delete a `.top`, a `.mark`, or a `.use` that was there before us. A file appears by rename, after fsync. Killed at
//! any point, we leave whole files and temporary ones; the next start removes the latter, after it has brought the
//! refresh tokens in them (`.evercred-keep-*`) to their places.

mod approval;
mod dir;
mod exchange;
mod index;
mod inventory;
mod keep;
mod listing;
mod lock;
mod meta;
mod pidfile;
mod publish;
mod seal;
mod stand_in;
mod watch;

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use nix::{errno::Errno, unistd::UnlinkatFlags};
use thiserror::Error;

pub use approval::{RequestError, top_text};
pub use dir::Refusal;
pub use inventory::{Seen, Wanted};
pub use keep::{Kept, Recovered, Rotated};
pub use listing::Listing;
pub use meta::{Meta, StockCredential, stock_credentials};
pub use publish::{PublishError, Reservation};
pub use seal::{Seal, SealError};
pub use watch::{Hint, Watch, WatchError};

use crate::{core::id::UserName, error::Kind};

/// The names of our own files in there begin so.
const OURS: &str = ".evercred-";
/// Our temporary files' names begin so.
pub(crate) const TEMPORARY: &str = ".evercred-tmp-";

/// Who may own a user's directory and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owners {
    /// Their uids: root, our own, condor's.
    pub accepted: Vec<u32>,
}

impl Owners {
    /// Root, ourselves, and condor if there is such an account.
    #[must_use]
    pub fn usual(condor: Option<u32>) -> Self {
        let mut accepted = vec![0, nix::unistd::geteuid().as_raw()];
        accepted.extend(condor);
        accepted.sort_unstable();
        accepted.dedup();
        Self { accepted }
    }

    pub(crate) fn accept(&self, uid: u32) -> bool {
        self.accepted.contains(&uid)
    }
}

/// The credential directory cannot be used.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// Not fit to hold secrets.
    #[error("{}: {why}; {advice}", path.display())]
    Unfit {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        why: String,
        /// What to do.
        advice: &'static str,
    },
    /// Another credmon runs here.
    #[error(
        "{}: another evercred ({}) keeps this credential directory; stop that one first",
        path.display(),
        holder.map_or_else(|| "process unknown".to_owned(), |pid| format!("process {pid}"))
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// The other's process id, if the lock file tells.
        holder: Option<i32>,
    },
    /// A call failed.
    #[error("{}: cannot {doing}: {source}; check owner, mode and the file system", path.display())]
    Io {
        /// What it was about.
        path: PathBuf,
        /// In the words of "cannot …".
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl SpoolError {
    /// The label of what is wrong with a user's directory.
    #[must_use]
    pub fn kind(&self) -> Kind {
        if matches!(self, Self::Unfit { .. }) { Kind::DirectoryUnfit } else { Kind::TopUnreadable }
    }

    fn io(path: impl Into<PathBuf>, doing: &'static str, errno: Errno) -> Self {
        Self::Io { path: path.into(), doing, source: errno.into() }
    }
}

/// What the last looks found.
#[derive(Debug, Default)]
struct Cache {
    users: HashMap<UserName, inventory::Known>,
    /// The base names of their credentials: most users have the same few, and share their text.
    bases: HashSet<Arc<str>>,
}

/// The credential directory, verified, locked and ours.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    top: Arc<dir::Dir>,
    owners: Owners,
    /// What the last scan read, so that unchanged files are not read again.
    cache: Mutex<Cache>,
    /// Of the hashes in there.
    salt: Mutex<[u8; 16]>,
    serial: AtomicU64,
    /// `pid` and `CREDMON_COMPLETE` are ours.
    alone: bool,
    recovered: Vec<Recovered>,
    /// Space for rotated `.top`s that was reserved in vain.
    spares: Mutex<Vec<publish::Temporary>>,
    _lock: lock::Lock,
}

impl Spool {
    /// Verify the directory, lock it, write `pid`, remove `CREDMON_COMPLETE`, recover and remove what a crash of ours
    /// left.
    ///
    /// # Errors
    /// [`SpoolError`], with the path and what to do.
    pub fn open(path: &Path, ids: Owners) -> Result<Self, SpoolError> {
        Self::begin(path, ids, true)
    }

    /// As [`Spool::open`], but leave `pid` and `CREDMON_COMPLETE` to another credential monitor, now and later. A
    /// second evercred is refused all the same.
    ///
    /// # Errors
    /// [`SpoolError`], with the path and what to do.
    pub fn open_beside(path: &Path, ids: Owners) -> Result<Self, SpoolError> {
        Self::begin(path, ids, false)
    }

    fn begin(path: &Path, ids: Owners, alone: bool) -> Result<Self, SpoolError> {
        let top = Arc::new(dir::Dir::open(path)?);
        let lock = lock::Lock::take(&top, path)?;
        let mut spool = Self {
            path: path.to_owned(),
            top,
            owners: ids,
            cache: Mutex::default(),
            salt: Mutex::new(fresh_salt()),
            serial: AtomicU64::new(0),
            alone,
            recovered: Vec::new(),
            spares: Mutex::default(),
            _lock: lock,
        };
        if alone {
            pidfile::write(&spool)?;
        }
        let ours =
            spool.top.names_that(|name| name.starts_with(OURS)).map_err(|e| SpoolError::io(path, "list it", e))?;
        for name in ours.iter().filter(|name| name.starts_with(TEMPORARY)) {
            spool.remove(name)?;
        }
        if alone {
            spool.remove(COMPLETE)?;
        }
        spool.recovered = spool.recover(&ours)?;
        Ok(spool)
    }

    /// The rotated refresh tokens that a crash had left, and whether each is in its `.top` now.
    pub fn recovered(&self) -> &[Recovered] {
        &self.recovered
    }

    /// The directory's path, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path still leads to the directory that was opened: it was not replaced, unmounted or mounted over.
    ///
    /// # Errors
    /// [`SpoolError::Unfit`], or what the system says.
    pub fn verify(&self) -> Result<(), SpoolError> {
        let there = self.top.is_at(&self.path).map_err(|e| SpoolError::io(&self.path, "look at it", e))?;
        if there {
            return Ok(());
        }
        Err(SpoolError::Unfit {
            path: self.path.clone(),
            why: "it is another directory than the one that was opened at the start".into(),
            advice: "the credmon must be started again, to judge and lock the one that is there now",
        })
    }

    /// Touch `CREDMON_COMPLETE`: a scan is complete.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn touch_complete(&self) -> Result<(), SpoolError> {
        if self.alone { self.place_small(COMPLETE, b"") } else { Ok(()) }
    }

    /// Remove a file of the top directory; it is fine if there is none.
    fn remove(&self, name: &str) -> Result<(), SpoolError> {
        match nix::unistd::unlinkat(&*self.top, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(SpoolError::io(self.path.join(name), "remove it", e)),
        }
    }

    /// Put a small public file into the top directory, atomically, mode 0644.
    fn place_small(&self, name: &str, content: &[u8]) -> Result<(), SpoolError> {
        let temporary = self.temporary_name();
        self.top.place(&temporary, name, content).map_err(|e| {
            self.remove(&temporary).err().unwrap_or_else(|| SpoolError::io(self.path.join(name), "write it", e))
        })
    }

    fn salt(&self) -> [u8; 16] {
        *self.salt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_salt(&self, salt: [u8; 16]) {
        *self.salt.lock().unwrap_or_else(PoisonError::into_inner) = salt;
    }

    fn temporary_name(&self) -> String {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        format!("{TEMPORARY}{}-{serial}", std::process::id())
    }
}

/// Different in every process.
fn fresh_salt() -> [u8; 16] {
    let half = || RandomState::new().hash_one(0_u8).to_be_bytes();
    let mut salt = [0; 16];
    for (to, from) in salt.iter_mut().zip(half().into_iter().chain(half())) {
        *to = from;
    }
    salt
}

const COMPLETE: &str = "CREDMON_COMPLETE";

impl Spool {
    /// Remove `pid`, if it still is ours, and space reserved ahead: what a stop does while other threads still hold the
    /// spool.
    pub fn retire(&self) {
        self.release_spares();
        pidfile::remove_if_ours(self);
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        pidfile::remove_if_ours(self);
    }
}

#[cfg(test)]
mod tests;
