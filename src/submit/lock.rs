//! Two submits of one user at once make one prompt: the second waits here, then finds what the first one stored.
//!
//! `flock` on `storer.lock` in `/run/user/UID/evercred`, else `$HOME/.cache/evercred`: a place that no other user can
//! write to, the same one for every session of the user (so not `XDG_RUNTIME_DIR`, which cron and ssh may not have).
//! Directory and file are opened without following links and judged by what was opened. The kernel lets go when the
//! process ends, however it ends. In the file whoever holds it says who it is and until when it may take, so that
//! nobody waits for longer than an approval can last.

use std::{
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, Flock, FlockArg, OFlag, openat},
    sys::stat::{Mode, SFlag, fstat, mkdirat},
    unistd::{Uid, geteuid},
};
use serde::{Deserialize, Serialize};

use crate::{core::time::Timestamp, courier::http::now};

/// How often a lock in other hands is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// A holder that does not say until when may take so long.
const UNTOLD: Duration = Duration::from_secs(120);
/// Longer than it says: what stands in the file may be of the one before, for a moment.
const GRACE: Duration = Duration::from_secs(2);
/// Nobody waits for longer, whatever holders say and however many come one after the other.
const LONGEST: Duration = Duration::from_secs(2 * 3600);

/// Who has the lock, as far as it tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// The credential that it is at.
    pub name: String,
    /// Seconds since 1970 until which it may take.
    pub until: i64,
}

impl Holder {
    /// This process, at a credential, for so long.
    #[must_use]
    pub fn me(name: &str, length: Duration) -> Self {
        Self { pid: std::process::id(), name: name.to_owned(), until: now().plus(length).secs() }
    }

    fn read(file: &OwnedFd) -> Option<Self> {
        let mut bytes = [0; 512];
        let read = File::from(file.try_clone().ok()?).read_at(&mut bytes, 0).ok()?;
        let holder: Self = serde_json::from_slice(bytes.get(..read)?).ok()?;
        // It goes to a terminal.
        holder.name.bytes().all(|byte| byte.is_ascii_graphic()).then_some(holder)
    }
}

/// Held until dropped.
#[derive(Debug)]
pub struct Lock {
    file: Option<Flock<OwnedFd>>,
}

/// How it went.
#[derive(Debug)]
pub enum Locked {
    /// Held now.
    Held(Lock),
    /// The user gave up waiting.
    Cancelled,
    /// Somebody else still has it after so long; who, as far as it told.
    Busy(Option<Holder>, Duration),
}

impl Lock {
    /// Take the lock; `waiting` is called once if somebody else has it, with who and for how long it may take. Waits for
    /// as long as who has it says that it may take, at most for `patience`. Where no safe place is, there is no lock:
    /// then two submits at once prompt twice, and nothing worse happens.
    pub fn take(
        places: &[PathBuf],
        me: &Holder,
        patience: Duration,
        cancelled: &AtomicBool,
        waiting: impl FnOnce(Option<&Holder>, Duration),
    ) -> Locked {
        let Some(mut file) = places.iter().find_map(|place| open(place).ok()) else {
            return Locked::Held(Self { file: None });
        };
        let (begin, mut waiting) = (Instant::now(), Some(waiting));
        // The last one that told, and until when it is waited for.
        let (mut holder, mut end) = (None, begin + UNTOLD);
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(held) => {
                    let lock = Self { file: Some(held) };
                    lock.tell(me);
                    return Locked::Held(lock);
                }
                Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => file = back,
                // A file system without locks.
                Err(_) => return Locked::Held(Self { file: None }),
            }
            if let Some(told) = Holder::read(&file).filter(|told| holder.as_ref() != Some(told)) {
                end = Instant::now() + Timestamp::from_secs(told.until).since(now()).min(LONGEST) + GRACE;
                holder = Some(told);
            }
            end = end.min(begin + patience.min(LONGEST));
            if let Some(waiting) = waiting.take() {
                waiting(holder.as_ref(), end.saturating_duration_since(begin));
            }
            if cancelled.load(Relaxed) {
                return Locked::Cancelled;
            }
            if Instant::now() >= end {
                return Locked::Busy(holder, begin.elapsed());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Say who has it and until when, for those who wait.
    pub fn tell(&self, me: &Holder) {
        let Some(file) = &self.file else { return };
        let write = |line: &[u8]| {
            let file = File::from(file.as_fd().try_clone_to_owned()?);
            file.set_len(0)?;
            file.write_all_at(line, 0)
        };
        // Whoever cannot read it waits for a time that does not depend on it.
        serde_json::to_vec(me).map_err(std::io::Error::from).and_then(|line| write(&line)).ok();
    }
}

/// Where the lock may be, best first.
#[must_use]
pub fn places() -> Vec<PathBuf> {
    let mut places = vec![PathBuf::from(format!("/run/user/{}", geteuid()))];
    places.extend(home().map(|home| home.join(".cache")));
    places
}

/// Where what must outlast a session may be, best first: `/run/user/UID` goes with the last one.
#[must_use]
pub fn cache_places() -> Vec<PathBuf> {
    caches(std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from), home())
}

fn caches(cache: Option<PathBuf>, home: Option<PathBuf>) -> Vec<PathBuf> {
    // A relative one is to be ignored, by the XDG base directory specification.
    let cache = cache.filter(|cache| cache.is_absolute());
    cache.into_iter().chain(home.map(|home| home.join(".cache"))).collect()
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute())
}

/// `PLACE/evercred` of the first place that is safe, for what is only the user's.
#[must_use]
pub fn directory(places: &[PathBuf]) -> Option<PathBuf> {
    places.iter().find(|place| own(place).is_ok()).map(|place| place.join("evercred"))
}

/// `PLACE/evercred`, made where it is missing.
fn own(place: &Path) -> nix::Result<OwnedFd> {
    let directory = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let exists = |made: nix::Result<()>| match made {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    };
    // A cache itself may be missing; `/run/user/UID` is not ours to make.
    if !place.starts_with("/run/user") {
        exists(mkdirat(AT_FDCWD, place, Mode::S_IRWXU))?;
    }
    let parent = openat(AT_FDCWD, place, directory, Mode::empty())?;
    ours(&parent, SFlag::S_IFDIR)?;
    exists(mkdirat(&parent, "evercred", Mode::S_IRWXU))?;
    let own = openat(&parent, "evercred", directory, Mode::empty())?;
    ours(&own, SFlag::S_IFDIR)?;
    Ok(own)
}

/// `PLACE/evercred/storer.lock`, made where it is missing.
fn open(place: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = openat(&own(place)?, "storer.lock", flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
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
    const LONG: Duration = Duration::from_secs(60);

    fn me() -> Holder {
        Holder::me("helmholtz", LONG)
    }

    #[test]
    fn the_second_one_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let places = vec![dir.path().to_owned()];
        let Locked::Held(first) = Lock::take(&places, &me(), LONG, &NOT, |_, _| panic!("nobody has it")) else {
            panic!("free")
        };
        let (told, hear) = mpsc::channel();
        let second = std::thread::spawn(move || {
            Lock::take(&places, &me(), LONG, &NOT, |holder, _| told.send(holder.cloned()).unwrap())
        });
        let holder = hear.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
        assert_eq!((holder.pid, holder.name.as_str()), (std::process::id(), "helmholtz"));
        assert!(!second.is_finished());
        drop(first);
        assert!(matches!(second.join().unwrap(), Locked::Held(Lock { file: Some(_) })));
    }

    #[test]
    fn who_waits_can_be_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let places = vec![dir.path().to_owned()];
        let first = Lock::take(&places, &me(), LONG, &NOT, |_, _| ());
        let cancelled = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&cancelled);
        let second = Lock::take(&places, &me(), LONG, &cancelled, |_, _| told.store(true, Relaxed));
        assert!(matches!(second, Locked::Cancelled));
        drop(first);
    }

    #[test]
    fn who_has_it_is_waited_for_as_long_as_it_says_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let places = vec![dir.path().to_owned()];
        let Locked::Held(first) = Lock::take(&places, &me(), LONG, &NOT, |_, _| ()) else { panic!("free") };
        // Its code runs out in a second.
        let ending = Holder { name: "helmholtz_eu".into(), ..Holder::me("", Duration::from_secs(1)) };
        first.tell(&ending);
        let second = Lock::take(&places, &me(), LONG, &NOT, |_, _| ());
        assert!(matches!(second, Locked::Busy(Some(holder), _) if holder == ending));
        // More patience than this the caller does not have, whatever it says.
        first.tell(&Holder { until: i64::MAX, ..me() });
        let second = Lock::take(&places, &me(), Duration::from_millis(300), &NOT, |_, _| ());
        assert!(matches!(second, Locked::Busy(Some(_), waited) if waited < LONG));
        // What is no word of a holder, or would play with a terminal, is none.
        for garbage in ["", "{", r#"{"pid":1,"name":"\u001b[2J","until":9}"#] {
            std::fs::write(dir.path().join("evercred/storer.lock"), garbage).unwrap();
            let second = Lock::take(&places, &me(), Duration::from_millis(1), &NOT, |_, _| ());
            assert!(matches!(second, Locked::Busy(None, _)), "{garbage}");
        }
    }

    #[test]
    fn what_outlasts_a_session_is_in_the_cache() {
        let caches =
            |cache: Option<&str>, home: Option<&str>| super::caches(cache.map(Into::into), home.map(Into::into));
        assert_eq!(caches(None, Some("/home/a")), [PathBuf::from("/home/a/.cache")]);
        assert_eq!(caches(Some("/x/c"), Some("/home/a")), ["/x/c", "/home/a/.cache"].map(PathBuf::from));
        assert_eq!(caches(Some("relative"), Some("/home/a")), [PathBuf::from("/home/a/.cache")]);
        assert_eq!(caches(Some(""), None), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_cache_is_made_for_its_user_alone_and_without_a_home_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        assert_eq!(directory(std::slice::from_ref(&cache)), Some(cache.join("evercred")));
        for made in [&cache, &cache.join("evercred")] {
            assert_eq!(std::fs::metadata(made).unwrap().permissions().mode() & 0o777, 0o700);
        }
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(directory(&[dir.path().join("no/such/home"), file.join("cache"), file]), None);
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
        let none = Lock::take(&[place], &me(), LONG, &NOT, |_, _| ());
        assert!(matches!(none, Locked::Held(Lock { file: None })));
    }
}
