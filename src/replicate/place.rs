//! How a file appears at a destination, in the order of contract replication §5, and what guards it.
//!
//! Beside `NAME` stands `.NAME.seq`: the generation last written, in decimal. Under an exclusive lock on it (flock):
//! anything not above it is refused; otherwise a temporary `.NAME.*` of the right mode is written, synced, renamed, the
//! directory is synced, and then the new generation goes into `.NAME.seq` (which has room for it from before the file). Killed in between, we leave the old file or
//! the new one, whole, and at worst a temporary; sending the same generation again mends the rest.
//!
//! Everything happens beneath one directory that was opened once: no symbolic link below it is followed.

use std::{
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag, open, openat, renameat},
    sys::stat::{Mode, SFlag, fchmod, fstat, mkdirat},
    unistd::{UnlinkatFlags, fsync, ftruncate, unlinkat},
};
use thiserror::Error;

/// How long another writer of the same file may hold us up.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// It is there.
    Written,
    /// Something at least as new is there: nothing was changed.
    Superseded {
        /// Its generation.
        have: u64,
    },
}

/// Nothing was changed.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// The path leads out of the directory, through a link, or is no plain name.
    #[error("{path}: not a plain path below {}", root.display())]
    NotAllowed {
        /// What was asked for.
        path: String,
        /// The allowed directory.
        root: PathBuf,
    },
    /// The directory is not fit to hold tokens.
    #[error("{}: {why}", root.display())]
    Unfit {
        /// The directory.
        root: PathBuf,
        /// Why.
        why: &'static str,
    },
    /// No space, inodes or quota.
    #[error("{path}: no space for {bytes} bytes")]
    NoSpace {
        /// The file.
        path: String,
        /// How much was wanted.
        bytes: usize,
    },
    /// Another writer holds the file's lock.
    #[error("{path}: another writer is at it")]
    Busy {
        /// The file.
        path: String,
    },
    /// A call failed.
    #[error("{path}: cannot {doing}: {errno}")]
    Failed {
        /// The file or directory.
        path: String,
        /// In the words of "cannot …".
        doing: &'static str,
        /// Why.
        errno: Errno,
    },
}

/// A directory below which files are placed.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// Open and judge it. Links on the way to it are the admin's own.
    ///
    /// # Errors
    /// It is not there, no directory, or writable for everybody.
    pub fn open(path: &Path) -> Result<Self, PlaceError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let failed = |doing, errno| PlaceError::Failed { path: path.display().to_string(), doing, errno };
        let fd = open(path, flags, Mode::empty()).map_err(|e| failed("open the directory", e))?;
        let stat = fstat(&fd).map_err(|e| failed("look at it", e))?;
        if stat.st_mode & 0o002 != 0 {
            return Err(PlaceError::Unfit { root: path.to_owned(), why: "everybody may write there; chmod o-w it" });
        }
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Its path, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Place `bytes` at `relative` below this directory, as generation `seq`.
    ///
    /// # Errors
    /// [`PlaceError`]; what was there is as it was.
    pub fn place(&self, relative: &str, seq: u64, mode: u32, bytes: &[u8]) -> Result<Placed, PlaceError> {
        let failed = |doing| {
            let path = relative.to_owned();
            let bytes = bytes.len();
            move |errno| match errno {
                Errno::ENOSPC | Errno::EDQUOT => PlaceError::NoSpace { path, bytes },
                errno => PlaceError::Failed { path, doing, errno },
            }
        };
        let not_allowed = || PlaceError::NotAllowed { path: relative.to_owned(), root: self.path.clone() };
        let parts: Vec<&str> = relative.split('/').collect();
        if parts.iter().any(|part| matches!(*part, "" | "." | "..") || part.contains('\0')) {
            return Err(not_allowed());
        }
        let (name, parents) = parts.split_last().ok_or_else(not_allowed)?;
        let mut directory: Option<OwnedFd> = None;
        for part in parents {
            let at = directory.as_ref().unwrap_or(&self.fd);
            let next = descend(at, part).map_err(|e| match e {
                Errno::ELOOP | Errno::ENOTDIR => not_allowed(),
                e => failed("make or open its directory")(e),
            })?;
            directory = Some(next);
        }
        let directory = directory.as_ref().unwrap_or(&self.fd);
        let lock = self.lock(directory, name, relative)?;
        let have = read_seq(&lock).map_err(failed("read its sequence"))?;
        if have >= seq {
            return Ok(Placed::Superseded { have });
        }
        if have == 0 {
            // Room for it before anything changes: a new file without its sequence would let an older one over it.
            write_seq(&lock, 0).map_err(failed("write its sequence"))?;
        }
        let temporary = format!(".{name}.{}-{seq:x}", std::process::id());
        put(directory, name, &temporary, mode, bytes).map_err(failed("write it"))?;
        write_seq(&lock, seq).map_err(failed("write its sequence"))?;
        Ok(Placed::Written)
    }

    /// Put a file that has no sequence right here, whole, with mode 0600: the last one who writes wins.
    ///
    /// # Errors
    /// [`PlaceError`]; what was there is as it was.
    pub fn leave(&self, name: &str, bytes: &[u8]) -> Result<(), PlaceError> {
        let failed = |errno| PlaceError::Failed { path: name.to_owned(), doing: "write it", errno };
        put(&self.fd, name, &format!(".{name}.{}", std::process::id()), 0o600, bytes).map_err(failed)
    }

    /// The names of what lies right here.
    ///
    /// # Errors
    /// It cannot be listed.
    pub fn names(&self) -> Result<Vec<String>, PlaceError> {
        let failed = |errno| PlaceError::Failed { path: self.path.display().to_string(), doing: "list it", errno };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut directory = Dir::openat(&self.fd, ".", flags, Mode::empty()).map_err(failed)?;
        let names = directory.iter().map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect::<Result<_, _>>().map_err(failed)
    }

    /// The first bytes of a regular file right here, never through a link; `None`: there is none.
    ///
    /// # Errors
    /// It is something else, or cannot be read.
    pub fn read(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, PlaceError> {
        let failed = |errno| PlaceError::Failed { path: name.to_owned(), doing: "read it", errno };
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = match openat(&self.fd, name, flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(None),
            other => other.map_err(failed)?,
        };
        let stat = fstat(&fd).map_err(failed)?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(PlaceError::NotAllowed { path: name.to_owned(), root: self.path.clone() });
        }
        let mut bytes = Vec::new();
        let read = std::fs::File::from(fd).take(most).read_to_end(&mut bytes);
        read.map_err(|e| failed(Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
        Ok(Some(bytes))
    }

    fn lock(&self, directory: &OwnedFd, name: &str, relative: &str) -> Result<Flock<OwnedFd>, PlaceError> {
        let failed = |errno| match errno {
            Errno::ENOSPC | Errno::EDQUOT => PlaceError::NoSpace { path: relative.to_owned(), bytes: 0 },
            Errno::ELOOP => PlaceError::NotAllowed { path: relative.to_owned(), root: self.path.clone() },
            errno => PlaceError::Failed { path: relative.to_owned(), doing: "lock it", errno },
        };
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = openat(directory, format!(".{name}.seq").as_str(), flags, Mode::from_bits_truncate(0o600));
        let mut fd = fd.map_err(failed)?;
        let stat = fstat(&fd).map_err(failed)?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(PlaceError::NotAllowed { path: relative.to_owned(), root: self.path.clone() });
        }
        let until = Instant::now() + LOCK_PATIENCE;
        loop {
            match Flock::lock(fd, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((back, Errno::EWOULDBLOCK)) if Instant::now() < until => fd = back,
                Err((_, Errno::EWOULDBLOCK)) => return Err(PlaceError::Busy { path: relative.to_owned() }),
                Err((_, errno)) => return Err(failed(errno)),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A whole file in place of `name`, or nothing. Nobody else writes `temporary` at the same time.
fn put(directory: &OwnedFd, name: &str, temporary: &str, mode: u32, bytes: &[u8]) -> Result<(), Errno> {
    let write = || -> Result<(), Errno> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let create = || openat(directory, temporary, flags, Mode::from_bits_truncate(mode & 0o600));
        let fd = match create() {
            // Left by a crash of ours.
            Err(Errno::EEXIST) => {
                unlinkat(directory, temporary, UnlinkatFlags::NoRemoveDir)?;
                create()?
            }
            other => other?,
        };
        fchmod(&fd, Mode::from_bits_truncate(mode))?;
        let mut file = std::fs::File::from(fd);
        file.write_all(bytes).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?;
        fsync(&file)?;
        renameat(directory, temporary, directory, name)?;
        fsync(directory)
    };
    write().inspect_err(|_| {
        // It may not even have come to be.
        unlinkat(directory, temporary, UnlinkatFlags::NoRemoveDir).ok();
    })
}

/// Open a directory in `at`, made with 0700 if it is not there; never through a link.
fn descend(at: &OwnedFd, part: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(at, part, flags, Mode::empty()) {
        Err(Errno::ENOENT) => {
            match mkdirat(at, part, Mode::from_bits_truncate(0o700)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => return Err(e),
            }
            openat(at, part, flags, Mode::empty())
        }
        other => other,
    }
}

fn read_seq(file: &Flock<OwnedFd>) -> Result<u64, Errno> {
    let mut text = [0; 24];
    let read = nix::sys::uio::pread(file.as_fd(), &mut text, 0)?;
    let text = text.get(..read).and_then(|text| std::str::from_utf8(text).ok()).map_or("", str::trim);
    // Something else in it is no sequence of ours, and guards nothing.
    Ok(text.parse().unwrap_or(0))
}

/// In place, since sequences only get longer; then whatever stood behind it goes.
fn write_seq(file: &Flock<OwnedFd>, seq: u64) -> Result<(), Errno> {
    let text = seq.to_string();
    let written = nix::sys::uio::pwrite(file.as_fd(), text.as_bytes(), 0)?;
    ftruncate(file.as_fd(), i64::try_from(written).map_err(|_| Errno::EFBIG)?)?;
    fsync(file.as_fd())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn a_file_appears_whole_with_its_mode_and_only_it_and_its_sequence_stay() {
        let (dir, root) = root();
        assert_eq!(root.place("a/b/tok", 5, 0o640, b"one").unwrap(), Placed::Written);
        let home = dir.path().join("a/b");
        assert_eq!(fs::read(home.join("tok")).unwrap(), b"one");
        assert_eq!(fs::metadata(home.join("tok")).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(fs::metadata(&home).unwrap().permissions().mode() & 0o7777, 0o700);
        let mut names: Vec<_> = fs::read_dir(&home).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".tok.seq", "tok"]);
    }

    #[test]
    fn nothing_older_and_nothing_equal_replaces_what_is_there() {
        let (dir, root) = root();
        let file = dir.path().join("tok");
        assert_eq!(root.place("tok", 9, 0o600, b"new").unwrap(), Placed::Written);
        for seq in [0, 1, 8, 9] {
            assert_eq!(root.place("tok", seq, 0o600, b"old").unwrap(), Placed::Superseded { have: 9 });
            assert_eq!(fs::read(&file).unwrap(), b"new");
        }
        assert_eq!(root.place("tok", 10, 0o600, b"newer").unwrap(), Placed::Written);
        assert_eq!(fs::read(&file).unwrap(), b"newer");
    }

    #[test]
    fn concurrent_writers_in_any_order_leave_the_newest() {
        let (dir, root) = root();
        std::thread::scope(|scope| {
            for n in 0..8_u64 {
                let root = &root;
                scope.spawn(move || {
                    for k in 0..25 {
                        let seq = (k * 7 + n * 13) % 200 + 1;
                        root.place("tok", seq, 0o600, format!("{seq}").as_bytes()).unwrap();
                    }
                    root.place("tok", 500 + n, 0o600, format!("{}", 500 + n).as_bytes()).unwrap();
                });
            }
        });
        assert_eq!(fs::read(dir.path().join("tok")).unwrap(), b"507");
        assert_eq!(fs::read(dir.path().join(".tok.seq")).unwrap(), b"507");
    }

    #[test]
    fn paths_that_leave_the_directory_or_go_through_links_are_refused() {
        let (dir, root) = root();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        for path in ["../x", "a/../../x", "/etc/x", "", "a//b", "link/x", "."] {
            assert!(matches!(root.place(path, 1, 0o600, b"t"), Err(PlaceError::NotAllowed { .. })), "{path:?}");
        }
        std::os::unix::fs::symlink(outside.path().join("there"), dir.path().join("tok")).unwrap();
        assert_eq!(root.place("tok", 1, 0o600, b"t").unwrap(), Placed::Written, "a link in its place is replaced");
        assert!(fs::read_dir(outside.path()).unwrap().next().is_none(), "nothing came out");
        std::os::unix::fs::symlink(outside.path().join("seq"), dir.path().join(".two.seq")).unwrap();
        assert!(matches!(root.place("two", 1, 0o600, b"t"), Err(PlaceError::NotAllowed { .. })));
        assert!(fs::read_dir(outside.path()).unwrap().next().is_none(), "nothing came out");
    }

    #[test]
    fn a_directory_open_to_everybody_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Root::open(dir.path()), Err(PlaceError::Unfit { .. })));
        assert!(matches!(Root::open(&dir.path().join("none")), Err(PlaceError::Failed { errno: Errno::ENOENT, .. })));
    }
}
