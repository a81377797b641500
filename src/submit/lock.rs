//! Two submits of one user at once make one prompt: the second waits here, then finds what the first one stored.
//!
//! `flock` on `storer.lock` in `/run/user/UID/evercred`, else `$HOME/.cache/evercred`: a place that no other user can
//! write to, the same one for every session of the user (so not `XDG_RUNTIME_DIR`, which cron and ssh may not have).
//! Directory and file are opened without following links and judged by what was opened. The kernel lets go when the
//! process ends, however it ends.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, Flock, FlockArg, OFlag, openat},
    sys::stat::{Mode, SFlag, fstat, mkdirat},
    unistd::{Uid, geteuid},
};

/// How often a lock in other hands is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// Held until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: Option<Flock<OwnedFd>>,
}

/// How it went.
#[derive(Debug)]
pub enum Locked {
    /// Held now; `true`: somebody else had it before.
    Held(Lock, bool),
    /// The user gave up waiting.
    Cancelled,
}

impl Lock {
    /// Take the lock; `waiting` is called once if somebody else has it. Where no safe place is, there is no lock: then
    /// two submits at once prompt twice, and nothing worse happens.
    pub fn take(places: &[PathBuf], cancelled: &AtomicBool, waiting: impl FnOnce()) -> Locked {
        let Some(mut file) = places.iter().find_map(|place| open(place).ok()) else {
            return Locked::Held(Self { _file: None }, false);
        };
        let mut waiting = Some(waiting);
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(held) => return Locked::Held(Self { _file: Some(held) }, waiting.is_none()),
                Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => file = back,
                // A file system without locks.
                Err(_) => return Locked::Held(Self { _file: None }, false),
            }
            if let Some(waiting) = waiting.take() {
                waiting();
            }
            if cancelled.load(Relaxed) {
                return Locked::Cancelled;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Where the lock may be, best first.
#[must_use]
pub fn places() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    let mut places = vec![PathBuf::from(format!("/run/user/{}", geteuid()))];
    places.extend(home.map(|home| home.join(".cache")));
    places
}

/// `PLACE/evercred` of the first place that is safe, for what is only the user's.
#[must_use]
pub fn directory(places: &[PathBuf]) -> Option<PathBuf> {
    places.iter().find(|place| open(place).is_ok()).map(|place| place.join("evercred"))
}

/// `PLACE/evercred/storer.lock`, made where it is missing.
fn open(place: &Path) -> nix::Result<OwnedFd> {
    let directory = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let exists = |made: nix::Result<()>| match made {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    };
    // `~/.cache` itself may be missing; `/run/user/UID` is not ours to make.
    if place.ends_with(".cache") {
        exists(mkdirat(AT_FDCWD, place, Mode::S_IRWXU))?;
    }
    let parent = openat(AT_FDCWD, place, directory, Mode::empty())?;
    ours(&parent, SFlag::S_IFDIR)?;
    exists(mkdirat(&parent, "evercred", Mode::S_IRWXU))?;
    let home = openat(&parent, "evercred", directory, Mode::empty())?;
    ours(&home, SFlag::S_IFDIR)?;
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = openat(&home, "storer.lock", flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    ours(&file, SFlag::S_IFREG)?;
    Ok(file)
}

/// Of the right type, our own, and nobody else may write there.
fn ours(file: &OwnedFd, kind: SFlag) -> nix::Result<()> {
    let meta = fstat(file)?;
    let is_kind = SFlag::from_bits_truncate(meta.st_mode & SFlag::S_IFMT.bits()) == kind;
    let closed = meta.st_mode & (Mode::S_IWGRP | Mode::S_IWOTH).bits() == 0;
    if is_kind && closed && Uid::from_raw(meta.st_uid) == geteuid() { Ok(()) } else { Err(Errno::EPERM) }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::{PermissionsExt, symlink},
        sync::{Arc, mpsc},
    };

    use super::*;

    static NOT: AtomicBool = AtomicBool::new(false);

    #[test]
    fn the_second_one_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let places = vec![dir.path().to_owned()];
        let Locked::Held(first, false) = Lock::take(&places, &NOT, || panic!("nobody has it")) else { panic!("free") };
        let (told, hear) = mpsc::channel();
        let second = std::thread::spawn(move || Lock::take(&places, &NOT, || told.send(()).unwrap()));
        hear.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(!second.is_finished());
        drop(first);
        assert!(matches!(second.join().unwrap(), Locked::Held(Lock { _file: Some(_) }, true)));
    }

    #[test]
    fn who_waits_can_be_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let places = vec![dir.path().to_owned()];
        let first = Lock::take(&places, &NOT, || ());
        let cancelled = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&cancelled);
        assert!(matches!(Lock::take(&places, &cancelled, || told.store(true, Relaxed)), Locked::Cancelled));
        drop(first);
    }

    #[test]
    fn a_link_a_pipe_or_a_place_that_others_write_to_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        std::fs::create_dir(&target).unwrap();
        let place = dir.path().join("a");
        std::fs::create_dir(&place).unwrap();
        symlink(&target, place.join("evercred")).unwrap();
        assert!(open(&place).is_err());
        let place = dir.path().join("b");
        std::fs::create_dir_all(place.join("evercred")).unwrap();
        symlink(target.join("victim"), place.join("evercred/storer.lock")).unwrap();
        assert!(open(&place).is_err());
        assert!(!target.join("victim").exists());
        let place = dir.path().join("c");
        std::fs::create_dir_all(place.join("evercred")).unwrap();
        nix::unistd::mkfifo(&place.join("evercred/storer.lock"), Mode::S_IRWXU).unwrap();
        assert!(open(&place).is_err());
        let place = dir.path().join("d");
        std::fs::create_dir(&place).unwrap();
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(open(&place).is_err());
        // Without any safe place there is no lock, and no failure either.
        assert!(matches!(Lock::take(&[place], &NOT, || ()), Locked::Held(Lock { _file: None }, false)));
    }
}
