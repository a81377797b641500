//! The watch: hints, never truth. Events get lost (a file in a just-made directory, an overflow), so a full scan runs
//! beside it. Our own temporary files and our `.use` files give no hint; a `.use` that vanishes does. Each user is
//! handed to the kernel once: that costs two switches between threads.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fmt,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use notify::{
    ErrorKind, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{ModifyKind, RemoveKind, RenameMode},
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
    source: notify::Error,
}

/// A running watch; ends when dropped.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    root: PathBuf,
    /// None: the watch ends.
    watcher: Mutex<Option<RecommendedWatcher>>,
    /// Users that are watched, by a hash of the name.
    watched: Mutex<HashSet<u64>>,
    hasher: RandomState,
    limited: AtomicBool,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("root", &self.shared.root)
            .field("limited", &self.limited())
            .finish_non_exhaustive()
    }
}

impl Watch {
    /// Watch the credential directory, and users' directories that appear in it from now on; [`Watch::user`] adds those
    /// that are there. `on_hint` runs on a thread of the watch.
    ///
    /// # Errors
    /// [`WatchError`] if not even the credential directory can be watched.
    pub fn start(root: &Path, on_hint: impl Fn(Hint) + Send + 'static) -> Result<Self, WatchError> {
        let fail = |source| WatchError { path: root.to_owned(), source };
        let (to_thread, events) = mpsc::channel();
        let base = root.to_owned();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            for change in changes(&base, event) {
                // The thread is gone only when the watch ends.
                let _sent = to_thread.send(change);
            }
        })
        .map_err(fail)?;
        watcher.watch(root, RecursiveMode::NonRecursive).map_err(fail)?;
        let shared = Arc::new(Shared {
            root: root.to_owned(),
            watcher: Mutex::new(Some(watcher)),
            watched: Mutex::default(),
            hasher: RandomState::new(),
            limited: AtomicBool::new(false),
        });
        let inside = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("watch".into())
            .spawn(move || inside.run(&events, on_hint))
            .map_err(|e| fail(notify::Error::io(e)))?;
        Ok(Self { shared, thread: Some(thread) })
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
        drop(self.shared.lock().take());
        if let Some(thread) = self.thread.take() {
            // It ends with its channel; a panic in there has been reported by then.
            let _ended = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<RecommendedWatcher>> {
        self.watcher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self, user: &UserName) {
        if !self.watched().insert(self.hasher.hash_one(user)) {
            return;
        }
        let path = self.root.join(user.as_str());
        let is_dir = std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
        let failed = is_dir.then(|| self.lock().as_mut()?.watch(&path, RecursiveMode::NonRecursive).err()).flatten();
        if failed.as_ref().is_some_and(|e| !matches!(e.kind, ErrorKind::PathNotFound)) {
            self.limited.store(true, Ordering::Relaxed);
        }
        if !is_dir || failed.is_some() {
            self.watched().remove(&self.hasher.hash_one(user));
        }
    }

    fn forget(&self, user: &UserName) {
        self.watched().remove(&self.hasher.hash_one(user));
        if let Some(watcher) = self.lock().as_mut() {
            // The kernel has dropped the watch with the directory; this is notify's memory of it.
            let _forgotten = watcher.unwatch(&self.root.join(user.as_str()));
        }
    }

    fn run(&self, events: &mpsc::Receiver<Change>, on_hint: impl Fn(Hint)) {
        while let Ok(change) = events.recv() {
            match change {
                Change::Appeared(user) => {
                    // By this name there may have been another, whose end was not told.
                    self.watched().remove(&self.hasher.hash_one(&user));
                    self.watch(&user);
                    on_hint(Hint::User(user));
                }
                Change::Vanished(user) => {
                    self.forget(&user);
                    // A directory may have come back by the same name meanwhile.
                    self.watch(&user);
                    on_hint(Hint::User(user));
                }
                Change::Inside(user) => on_hint(Hint::User(user)),
                Change::Lost => {
                    self.watched().clear();
                    on_hint(Hint::All);
                }
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    Appeared(UserName),
    Vanished(UserName),
    Inside(UserName),
    Lost,
}

fn user_of(name: &OsStr) -> Option<UserName> {
    UserName::parse(name.to_str()?).ok()
}

fn changes(root: &Path, event: notify::Result<Event>) -> Vec<Change> {
    let Ok(event) = event else { return vec![Change::Lost] };
    if event.need_rescan() {
        return vec![Change::Lost];
    }
    let (appears, vanishes) = match event.kind {
        EventKind::Access(_) | EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => return Vec::new(),
        EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => (true, false),
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => (false, true),
        _ => (false, false),
    };
    let change = |path: &PathBuf| {
        if vanishes && path == root {
            return Some(Change::Lost);
        }
        let inside = path.strip_prefix(root).ok()?;
        let mut parts = inside.iter();
        let (user, file) = (parts.next().and_then(user_of)?, parts.next());
        let Some(file) = file else {
            // Files come and go in the top directory too; they are nobody's.
            return match event.kind {
                EventKind::Remove(RemoveKind::File) => None,
                _ if appears => root.join(user.as_str()).is_dir().then_some(Change::Appeared(user)),
                _ => vanishes.then_some(Change::Vanished(user)),
            };
        };
        match Path::new(file).extension().and_then(OsStr::to_str) {
            Some("top") => Some(Change::Inside(user)),
            Some("use") if vanishes => Some(Change::Inside(user)),
            _ => None,
        }
    };
    event.paths.iter().filter_map(change).collect()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, time::Duration};

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
    fn an_overflow_hints_at_everybody() {
        let event = Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
        assert_eq!(changes(Path::new("/d"), Ok(event)), [Change::Lost]);
    }
}
