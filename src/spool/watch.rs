//! The watch (inotify): hints, never truth. Events get lost (a file in a just-made directory, an overflow), so a full scan
//! runs beside it. Our own temporary files and our `.use` files give no hint; a `.use` that vanishes does. Of each of
//! 100,000 users it keeps a name and two numbers.

use std::{
    collections::HashMap,
    ffi::OsStr,
    hash::{BuildHasher, RandomState},
    io::PipeWriter,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use hashbrown::HashTable;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use thiserror::Error;

use crate::core::id::UserName;

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// At this user (who may be gone).
    User(UserName),
    /// At everybody: events were lost, or the directory itself went away.
    All,
}

/// There is no watch; full scans must do.
#[derive(Debug, Error)]
#[error(
    "{}: cannot watch: {source}; raise fs.inotify.max_user_watches or max_user_instances, until then new credentials \
     wait for the next full scan",
    path.display()
)]
pub struct WatchError {
    path: PathBuf,
    source: std::io::Error,
}

/// A running watch; ends when dropped.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    /// Closed, it ends the thread.
    alive: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    inotify: Inotify,
    top: WatchDescriptor,
    watched: Mutex<Watched>,
    limited: AtomicBool,
}

/// The users that are watched.
#[derive(Debug, Default)]
struct Watched {
    users: HashMap<WatchDescriptor, UserName>,
    /// The same by the hash of the name, without another copy of it.
    by_name: HashTable<WatchDescriptor>,
    hasher: RandomState,
}

impl Watched {
    fn of(&self, user: &UserName) -> Option<WatchDescriptor> {
        let is = |descriptor: &WatchDescriptor| self.users.get(descriptor) == Some(user);
        self.by_name.find(self.hasher.hash_one(user), is).copied()
    }

    fn insert(&mut self, user: &UserName, descriptor: WatchDescriptor) {
        // A directory that was renamed keeps its descriptor.
        self.remove(descriptor);
        self.users.insert(descriptor, user.clone());
        let Self { users, by_name, hasher } = self;
        let hash = |descriptor: &WatchDescriptor| users.get(descriptor).map_or(0, |user| hasher.hash_one(user));
        by_name.insert_unique(hasher.hash_one(user), descriptor, hash);
    }

    fn remove(&mut self, descriptor: WatchDescriptor) {
        let Some(user) = self.users.remove(&descriptor) else { return };
        let hash = self.hasher.hash_one(&user);
        if let Ok(found) = self.by_name.find_entry(hash, |known| *known == descriptor) {
            found.remove();
        }
    }
}

const APPEARS: AddWatchFlags = AddWatchFlags::IN_CREATE.union(AddWatchFlags::IN_MOVED_TO);
const VANISHES: AddWatchFlags = AddWatchFlags::IN_DELETE.union(AddWatchFlags::IN_MOVED_FROM);
/// The directory that is watched goes, or the watch.
const ENDS: AddWatchFlags =
    AddWatchFlags::IN_DELETE_SELF.union(AddWatchFlags::IN_MOVE_SELF).union(AddWatchFlags::IN_IGNORED);
/// Of the credential directory: what comes and goes.
const TOP: AddWatchFlags = APPEARS.union(VANISHES).union(ENDS).union(AddWatchFlags::IN_ONLYDIR);
/// Of a user's directory: also what is written, and owners and modes that change.
const USER: AddWatchFlags = APPEARS
    .union(VANISHES)
    .union(AddWatchFlags::IN_MODIFY)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_ONLYDIR)
    .union(AddWatchFlags::IN_DONT_FOLLOW);

impl Watch {
    /// Watch the credential directory, and users' directories that appear in it from now on; [`Watch::user`] adds those
    /// that are there. `on_hint` runs on a thread of the watch.
    ///
    /// # Errors
    /// [`WatchError`] if not even the credential directory can be watched.
    pub fn start(root: &Path, on_hint: impl Fn(Hint) + Send + 'static) -> Result<Self, WatchError> {
        let fail = |source| WatchError { path: root.to_owned(), source };
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(|e| fail(e.into()))?;
        let top = inotify.add_watch(root, TOP).map_err(|e| fail(e.into()))?;
        let shared = Arc::new(Shared {
            root: root.to_owned(),
            inotify,
            top,
            watched: Mutex::default(),
            limited: AtomicBool::new(false),
        });
        let (ended, alive) = std::io::pipe().map_err(fail)?;
        let inside = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("watch".into());
        let thread = thread.spawn(move || inside.run(&ended, on_hint)).map_err(fail)?;
        Ok(Self { shared, alive: Some(alive), thread: Some(thread) })
    }

    /// Watch a user's directory that a scan found; nothing happens if it is watched already or is gone.
    pub fn user(&self, user: &UserName) {
        self.shared.watch(user);
    }

    /// The kernel refused a watch (its limit): scan everything more often.
    #[must_use]
    pub fn limited(&self) -> bool {
        self.shared.limited.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there has been reported by then.
            let _ended = thread.join();
        }
    }
}

impl Shared {
    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, user: &UserName) {
        let mut watched = self.watched();
        if watched.of(user).is_some() {
            return;
        }
        match self.inotify.add_watch(&self.root.join(user.as_str()), USER) {
            Ok(descriptor) => {
                watched.insert(user, descriptor);
            }
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
            Err(_) => self.limited.store(true, Ordering::Relaxed),
        }
    }

    fn run(&self, ended: &impl AsFd, on_hint: impl Fn(Hint)) {
        loop {
            let mut fds =
                [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
            let polled = poll(&mut fds, PollTimeout::NONE);
            if fds.iter().next_back().and_then(PollFd::any).unwrap_or(true) {
                return;
            }
            let events = polled.and_then(|_| self.inotify.read_events());
            match events {
                Ok(events) => events.iter().filter_map(|event| self.hint(event)).for_each(&on_hint),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                // It cannot be read: as if everything were lost, and no oftener than a scan takes.
                Err(_) => {
                    self.limited.store(true, Ordering::Relaxed);
                    on_hint(Hint::All);
                    return;
                }
            }
        }
    }

    /// What an event is a hint at.
    fn hint(&self, event: &InotifyEvent) -> Option<Hint> {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            // Those whose directory is another one by now are watched anew.
            *self.watched() = Watched::default();
            return Some(Hint::All);
        }
        if event.wd == self.top {
            return self.at_top(event);
        }
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            // The top directory tells that it went; by this name there may be another one already.
            self.watched().remove(event.wd);
            return None;
        }
        let user = || self.watched().users.get(&event.wd).cloned().map(Hint::User);
        let Some(name) = &event.name else { return user() };
        match Path::new(name).extension().and_then(OsStr::to_str) {
            Some("top") => user(),
            Some("use") if event.mask.intersects(VANISHES) => user(),
            _ => None,
        }
    }

    /// Of the credential directory itself: users come and go, or it does.
    fn at_top(&self, event: &InotifyEvent) -> Option<Hint> {
        if event.mask.intersects(ENDS) {
            return Some(Hint::All);
        }
        // Files come and go there, too; they are nobody's.
        if !event.mask.contains(AddWatchFlags::IN_ISDIR) || !event.mask.intersects(APPEARS | VANISHES) {
            return None;
        }
        let user = UserName::parse(event.name.as_ref()?.to_str()?).ok()?;
        let before = self.watched().of(&user);
        if let Some(descriptor) = before {
            self.watched().remove(descriptor);
            // Where the directory is gone, so is the watch; where it only moved, it is another's or nobody's now.
            let _gone_already = self.inotify.rm_watch(descriptor);
        }
        // Also where it went: it may have come back by the same name meanwhile.
        self.watch(&user);
        Some(Hint::User(user))
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, sync::mpsc, time::Duration};

    use super::*;

    fn started(root: &Path) -> (Watch, mpsc::Receiver<Hint>) {
        let (send, hints) = mpsc::channel();
        let watch = Watch::start(root, move |hint| drop(send.send(hint))).unwrap();
        (watch, hints)
    }

    fn alice() -> Hint {
        Hint::User(UserName::parse("alice").unwrap())
    }

    const SOON: Duration = Duration::from_secs(5);
    const QUIET: Duration = Duration::from_millis(200);

    #[test]
    fn a_new_directory_is_watched_and_hinted_and_so_is_a_top_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let (watch, hints) = started(dir.path());
        std::fs::create_dir(dir.path().join("alice")).unwrap();
        assert_eq!(hints.recv_timeout(SOON), Ok(alice()));
        while hints.recv_timeout(QUIET).is_ok() {}
        std::fs::write(dir.path().join(".t"), "x").unwrap();
        std::fs::rename(dir.path().join(".t"), dir.path().join("alice/s.top")).unwrap();
        assert_eq!(hints.recv_timeout(SOON), Ok(alice()));
        while hints.recv_timeout(QUIET).is_ok() {}
        std::fs::remove_dir_all(dir.path().join("alice")).unwrap();
        assert_eq!(hints.recv_timeout(SOON), Ok(alice()));
        assert!(!watch.limited());
    }

    #[test]
    fn what_we_write_ourselves_and_what_is_only_read_gives_no_hint() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("alice")).unwrap();
        std::fs::write(dir.path().join("alice/s.top"), "x").unwrap();
        symlink("/tmp", dir.path().join("bob")).unwrap();
        let (watch, hints) = started(dir.path());
        for user in ["alice", "bob"] {
            watch.user(&UserName::parse(user).unwrap());
        }
        let temporary = dir.path().join(".evercred-tmp-1-1");
        std::fs::write(&temporary, "x").unwrap();
        std::fs::rename(&temporary, dir.path().join("alice/s.use")).unwrap();
        std::fs::write(dir.path().join("pid"), "1").unwrap();
        std::fs::remove_file(dir.path().join("pid")).unwrap();
        std::fs::read(dir.path().join("alice/s.top")).unwrap();
        std::fs::read_dir(dir.path().join("alice")).unwrap().count();
        assert!(hints.recv_timeout(QUIET).is_err());
        std::fs::remove_file(dir.path().join("alice/s.use")).unwrap();
        assert_eq!(hints.recv_timeout(SOON), Ok(alice()));
    }

    #[test]
    fn the_credential_directory_itself_renamed_or_removed_hints_at_everybody() {
        let home = tempfile::tempdir().unwrap();
        let (root, away) = (home.path().join("c"), home.path().join("away"));
        std::fs::create_dir(&root).unwrap();
        let (_watch, hints) = started(&root);
        std::fs::rename(&root, &away).unwrap();
        assert_eq!(hints.recv_timeout(SOON), Ok(Hint::All));
        let (_watch, hints) = started(&away);
        std::fs::remove_dir(&away).unwrap();
        assert_eq!(hints.recv_timeout(SOON), Ok(Hint::All));
    }

    #[test]
    fn a_directory_by_the_name_of_one_that_went_is_watched_and_so_is_one_under_a_new_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (_watch, hints) = started(dir.path());
        let quiet = || while hints.recv_timeout(QUIET).is_ok() {};
        std::fs::create_dir(at("alice")).unwrap();
        quiet();
        std::fs::rename(at("alice"), at("bob")).unwrap();
        std::fs::create_dir(at("alice")).unwrap();
        quiet();
        for name in ["bob", "alice"] {
            std::fs::write(at(name).join("s.top"), "x").unwrap();
            assert_eq!(hints.recv_timeout(SOON), Ok(Hint::User(UserName::parse(name).unwrap())));
            quiet();
        }
        for _ in 0..3 {
            std::fs::remove_dir_all(at("alice")).unwrap();
            std::fs::create_dir(at("alice")).unwrap();
        }
        quiet();
        std::fs::write(at("alice/s.top"), "x").unwrap();
        assert_eq!(hints.recv_timeout(SOON), Ok(alice()));
    }

    #[test]
    fn a_mode_that_changes_gives_a_hint() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("alice")).unwrap();
        std::fs::write(dir.path().join("alice/s.top"), "x").unwrap();
        let (watch, hints) = started(dir.path());
        watch.user(&UserName::parse("alice").unwrap());
        for path in ["alice", "alice/s.top"] {
            std::fs::set_permissions(dir.path().join(path), std::fs::Permissions::from_mode(0o700)).unwrap();
            assert_eq!(hints.recv_timeout(SOON), Ok(alice()), "{path}");
            while hints.recv_timeout(QUIET).is_ok() {}
        }
    }

    #[test]
    fn an_overflow_hints_at_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let (watch, hints) = started(dir.path());
        let user = UserName::parse("alice").unwrap();
        std::fs::create_dir(dir.path().join("alice")).unwrap();
        assert_eq!(hints.recv_timeout(SOON), Ok(alice()));
        while hints.recv_timeout(QUIET).is_ok() {}
        // Held, so that the thread falls behind.
        let held = watch.shared.watched();
        let most = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        for n in 0..most.trim().parse::<u32>().unwrap() + 200 {
            std::fs::write(dir.path().join(format!("alice/{}.top", n % 2)), "x").unwrap();
        }
        drop(held);
        let told: Vec<Hint> =
            std::iter::from_fn(|| hints.recv_timeout(SOON).ok()).take_while(|hint| *hint != Hint::All).collect();
        assert!(told.iter().all(|hint| *hint == Hint::User(user.clone())), "{told:?}");
        // The scan that follows has it watched again.
        while hints.recv_timeout(QUIET).is_ok() {}
        watch.user(&user);
        std::fs::write(dir.path().join("alice/s.top"), "x").unwrap();
        assert_eq!(hints.recv_timeout(SOON), Ok(alice()));
    }
}
