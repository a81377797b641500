//! Directories and files by descriptor: opened beneath a verified directory, without symbolic links, then judged.
//!
//! `openat2` does it in one call. Kernels without it (EL8), and containers that forbid it, get the same component by
//! component with `O_NOFOLLOW`.

use std::{
    io::Read,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    dir::{OwningIter, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2, renameat},
    sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, lstat},
    unistd::{AccessFlags, faccessat, geteuid},
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{Owners, SpoolError};
use crate::{
    core::top::{Identity, MAX_TOP},
    error::Kind,
};

/// A directory, and how to open what is beneath it.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    /// `openat2` is not there: go component by component.
    stepwise: AtomicBool,
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Dir {
    /// Open and judge the credential directory.
    pub(super) fn open(path: &Path) -> Result<Self, SpoolError> {
        const MAKE: &str = "condor_master makes it at start, or: install -d -o root -g condor -m 2770";
        let unfit = |why: String, advice| SpoolError::Unfit { path: path.to_owned(), why, advice };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(|e| match e {
            Errno::ENOENT => unfit("there is no such directory".into(), MAKE),
            Errno::ELOOP | Errno::ENOTDIR => {
                unfit("it is not a directory (a symbolic link is not followed)".into(), "name the directory itself")
            }
            e => SpoolError::io(path, "open it", e),
        })?;
        let stat = fstat(&fd).map_err(|e| SpoolError::io(path, "look at it", e))?;
        if stat.st_mode & 0o007 != 0 {
            let why = format!("it is open to others (mode {:04o})", stat.st_mode & 0o7777);
            return Err(unfit(why, "take that away with: chmod o-rwx"));
        }
        if stat.st_uid != 0 && stat.st_uid != geteuid().as_raw() {
            let why = format!("it belongs to uid {}, neither root nor us", stat.st_uid);
            return Err(unfit(why, "give it to root with: chown root"));
        }
        let all = AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK;
        faccessat(&fd, ".", all, AtFlags::AT_EACCESS).map_err(|_| {
            let why = format!("uid {} may not read, write and search it", geteuid());
            unfit(why, "run as root or condor, and let the directory belong to group condor with mode 2770")
        })?;
        Ok(Self { fd, stepwise: AtomicBool::new(false) })
    }

    /// Whether `path` leads to this very directory.
    pub(super) fn is_at(&self, path: &Path) -> Result<bool, Errno> {
        let (here, there) = (fstat(&self.fd)?, lstat(path)?);
        Ok((here.st_dev, here.st_ino) == (there.st_dev, there.st_ino))
    }

    /// Open `path` beneath this directory, no symbolic link anywhere in it.
    pub(super) fn beneath(&self, path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
        if !self.stepwise.load(Ordering::Relaxed) {
            match whole(&self.fd, path, flags) {
                // EPERM: a seccomp filter that does not know the call.
                Err(Errno::ENOSYS | Errno::EPERM) => self.stepwise.store(true, Ordering::Relaxed),
                other => return other,
            }
        }
        stepwise(&self.fd, path, flags)
    }

    /// A user's directory, judged.
    pub(super) fn user(&self, name: &str, owners: &Owners) -> Result<Self, Errno> {
        self.judged_user(name, owners).map(|(home, _)| home)
    }

    /// As [`Dir::user`], with the metadata that it was judged by.
    pub(super) fn judged_user(&self, name: &str, owners: &Owners) -> Result<(Self, FileStat), Errno> {
        let fd = self.beneath(name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        let stat = fstat(&fd)?;
        // Writable for others, or somebody else's: what is in it may change under our hands.
        if stat.st_mode & 0o002 != 0 || !owners.accept(stat.st_uid) {
            return Err(Errno::EPERM);
        }
        Ok((Self { fd, stepwise: AtomicBool::new(self.stepwise.load(Ordering::Relaxed)) }, stat))
    }

    /// Names in this directory.
    pub(super) fn names(&self) -> Result<Vec<String>, Errno> {
        Ok(entries(&self.fd)?.into_iter().map(|(name, _)| name).collect())
    }

    /// The names in this directory that are wanted: few of 100,000, of which the others cost nothing.
    pub(super) fn names_that(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<String>, Errno> {
        let mut found = Vec::new();
        for entry in self.list()? {
            let entry = entry?;
            found.extend(entry.file_name().to_str().ok().filter(|name| wanted(name)).map(str::to_owned));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// What is in this directory, one after the other, with `.` and `..`.
    pub(super) fn list(&self) -> Result<OwningIter, Errno> {
        opened(&self.fd).map(IntoIterator::into_iter)
    }

    /// The type of what has this name, where the listing does not tell; none: it is gone.
    pub(super) fn kind(&self, name: &str, listed: Option<Type>) -> Option<Type> {
        listed.or_else(|| {
            let stat = fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
            match kind_of(&stat) {
                SFlag::S_IFDIR => Some(Type::Directory),
                SFlag::S_IFLNK => Some(Type::Symlink),
                _ => Some(Type::File),
            }
        })
    }

    /// The directories in this directory.
    pub(super) fn directories(&self) -> Result<Vec<String>, Errno> {
        let all = entries(&self.fd)?.into_iter();
        let is_directory = |(name, kind): &(String, _)| self.kind(name, *kind) == Some(Type::Directory);
        Ok(all.filter(is_directory).map(|(name, _)| name).collect())
    }

    /// A new file, mode 0600, not there before.
    pub(super) fn create(&self, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::from_bits_truncate(0o600))?;
        fchmod(&fd, Mode::from_bits_truncate(0o600))?;
        Ok(fd)
    }

    /// A public file by temporary name and rename.
    pub(super) fn place(&self, temporary: &str, name: &str, content: &[u8]) -> Result<(), Errno> {
        let fd = self.create(temporary)?;
        write_all(fd.as_fd(), content)?;
        fchmod(&fd, Mode::from_bits_truncate(0o644))?;
        renameat(&self.fd, temporary, &self.fd, name)
    }
}

fn whole(dir: &OwnedFd, path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW).resolve(resolve);
    let mut tries = 0;
    loop {
        match openat2(dir, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) if tries < 8 => tries += 1,
            other => return other,
        }
    }
}

pub(super) fn stepwise(dir: impl AsFd, path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    let mut at: Option<OwnedFd> = None;
    let mut parts = path.split('/').peekable();
    while let Some(part) = parts.next() {
        if matches!(part, "" | "." | "..") {
            return Err(Errno::EXDEV);
        }
        let flags = if parts.peek().is_some() { OFlag::O_PATH | OFlag::O_DIRECTORY } else { flags };
        let from = at.as_ref().map_or_else(|| dir.as_fd(), AsFd::as_fd);
        let fd = openat(from, part, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
        at = Some(fd);
    }
    at.ok_or(Errno::ENOENT)
}

fn opened(dir: impl AsFd) -> Result<nix::dir::Dir, Errno> {
    nix::dir::Dir::openat(dir, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Names, with their type where the file system tells; without `.` and `..`. What is not text in a name is replaced: no
/// name that we act on has any of that.
pub(super) fn entries(dir: impl AsFd) -> Result<Vec<(String, Option<Type>)>, Errno> {
    let mut found = Vec::new();
    for entry in opened(dir)?.iter() {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if name != "." && name != ".." {
            found.push((name.into_owned(), entry.file_type()));
        }
    }
    found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

pub(super) fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Ok(0) => return Err(Errno::EIO),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

pub(super) fn kind_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Nanoseconds since 1970.
pub(super) fn mtime_ns(stat: &FileStat) -> i64 {
    stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec)
}

/// Nanoseconds since 1970.
pub(super) fn ctime_ns(stat: &FileStat) -> i64 {
    stat.st_ctime.saturating_mul(1_000_000_000).saturating_add(stat.st_ctime_nsec)
}

/// The first half of the SHA-256.
pub(super) fn hash(content: &[u8]) -> [u8; 16] {
    let mut hash = [0; 16];
    for (to, from) in hash.iter_mut().zip(Sha256::digest(content)) {
        *to = from;
    }
    hash
}

pub(super) fn identity(stat: &FileStat, hash: [u8; 16]) -> Identity {
    let size = u32::try_from(stat.st_size).unwrap_or(0);
    Identity { ino: stat.st_ino, size, mtime_ns: mtime_ns(stat), hash }
}

/// Whether the metadata are still those of `expected`.
pub(super) fn is(stat: &FileStat, expected: &Identity) -> bool {
    kind_of(stat) == SFlag::S_IFREG
        && stat.st_ino == expected.ino
        && u32::try_from(stat.st_size) == Ok(expected.size)
        && mtime_ns(stat) == expected.mtime_ns
}

/// Why a `.top` is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is none (any more).
    Missing,
    /// It is bad.
    Bad(Kind),
}

/// Open, judge and read a `.top` beneath `dir`.
pub(super) fn read_top(dir: &Dir, path: &str, owners: &Owners) -> Result<(FileStat, Zeroizing<Vec<u8>>), Refusal> {
    // It may be replaced between open and fstat (no links left), or written while we read.
    for _ in 0..3 {
        let (stat, file) = open_regular(dir, path)?;
        match stat.st_nlink {
            0 => continue,
            1 => {}
            _ => return Err(Refusal::Bad(Kind::TopNotRegular)),
        }
        if !owners.accept(stat.st_uid) || stat.st_mode & 0o077 != 0 {
            return Err(Refusal::Bad(Kind::TopWrongOwner));
        }
        if u64::try_from(stat.st_size).map_or(true, |size| size > MAX_TOP as u64) {
            return Err(Refusal::Bad(Kind::TopTooLarge));
        }
        let (bytes, after) = read_up_to(file, &stat, MAX_TOP).map_err(|_| Refusal::Bad(Kind::TopUnreadable))?;
        if bytes.len() > MAX_TOP {
            return Err(Refusal::Bad(Kind::TopTooLarge));
        }
        if mtime_ns(&stat) == mtime_ns(&after) && u64::try_from(stat.st_size) == Ok(bytes.len() as u64) {
            return Ok((stat, bytes));
        }
    }
    Err(Refusal::Bad(Kind::TopUnreadable))
}

/// Open a file that must be regular. `O_NONBLOCK`: a FIFO must not hold us up.
pub(super) fn open_regular(dir: &Dir, path: &str) -> Result<(FileStat, OwnedFd), Refusal> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let fd = dir.beneath(path, flags).map_err(|e| match e {
        Errno::ENOENT => Refusal::Missing,
        Errno::ELOOP | Errno::ENXIO | Errno::ENOTDIR | Errno::ENODEV => Refusal::Bad(Kind::TopNotRegular),
        _ => Refusal::Bad(Kind::TopUnreadable),
    })?;
    let stat = fstat(&fd).map_err(|_| Refusal::Bad(Kind::TopUnreadable))?;
    if kind_of(&stat) == SFlag::S_IFREG { Ok((stat, fd)) } else { Err(Refusal::Bad(Kind::TopNotRegular)) }
}

/// At most `limit` + 1 bytes, and the metadata after the reading.
pub(super) fn read_up_to(
    file: OwnedFd,
    stat: &FileStat,
    limit: usize,
) -> std::io::Result<(Zeroizing<Vec<u8>>, FileStat)> {
    let size = usize::try_from(stat.st_size).unwrap_or(0).min(limit);
    let mut bytes = Zeroizing::new(Vec::with_capacity(size + 64));
    let mut file = std::fs::File::from(file).take(limit as u64 + 1);
    file.read_to_end(&mut bytes)?;
    Ok((bytes, fstat(file.into_inner())?))
}
