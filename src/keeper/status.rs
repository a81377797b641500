//! The status socket: whoever connects gets one JSON document and the end of the stream. It never reads.
//!
//! The kernel says who the reader is (`SO_PEERCRED`): root, condor and the keeper's own uid see everybody's
//! credentials, a user sees the own ones. The loop is asked for rows only; making JSON of them and waiting for a slow
//! reader happen here, on threads that are few, short-lived and bounded in time. Readers beyond that number wait in
//! line; some places are for those who see everything alone, so that no user's idle connections keep an admin out.

use std::{
    collections::VecDeque,
    fs, io,
    io::Write as _,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Sender, sync_channel},
    },
    time::{Duration, Instant},
};

use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::{Uid, User, geteuid},
};

use super::driver::Input;
use crate::core::{figures::Readers, id::UserName, snapshot::Status};

/// Readers served at once.
const READERS: usize = 64;
/// Of these, users: the other places are for those who see everything.
const USERS: usize = 56;
/// One user's readers, inside and in line: more are turned away, so that nobody keeps the others out.
const READERS_OF_A_USER: usize = 8;
/// Readers in line of either sort; beyond that users are turned away, and the others wait in the socket's queue.
const LINE: usize = 1024;
/// How long the loop may take to answer.
const ASK: Duration = Duration::from_secs(2);
/// How long a reader may take to read.
const READ: Duration = Duration::from_secs(5);
/// Everybody's rows are made at most this often; readers in between get the same document.
const FRESH: Duration = Duration::from_millis(100);

/// Everybody's rows as JSON, and when they were made.
type Cached = Option<(Instant, Arc<[u8]>)>;

/// Counts readers; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Tally(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    served: AtomicU64,
    failed: AtomicU64,
    turned_away: AtomicU64,
}

impl Tally {
    /// How many there were.
    #[must_use]
    pub fn readers(&self) -> Readers {
        let Counters { served, failed, turned_away } = &*self.0;
        Readers { served: served.load(Relaxed), failed: failed.load(Relaxed), turned_away: turned_away.load(Relaxed) }
    }
}

/// What the threads share.
struct Desk {
    inputs: Sender<Input>,
    tally: Tally,
    /// uids that see everything.
    trusted: Vec<u32>,
    everybody: Mutex<Cached>,
    line: Mutex<Line<UnixStream>>,
    done: Condvar,
}

/// Who is inside, and who waits.
#[derive(Debug)]
struct Line<R> {
    /// uids of those inside, and whether they see everything.
    inside: Vec<(u32, bool)>,
    trusted: VecDeque<(R, u32)>,
    users: VecDeque<(R, u32)>,
}

impl<R> Default for Line<R> {
    fn default() -> Self {
        Self { inside: Vec::new(), trusted: VecDeque::new(), users: VecDeque::new() }
    }
}

impl<R> Line<R> {
    /// Put a reader in line; one that is turned away comes back.
    fn arrive(&mut self, reader: R, uid: u32, trusted: bool) -> Result<(), R> {
        if trusted {
            self.trusted.push_back((reader, uid));
            return Ok(());
        }
        let inside = self.inside.iter().filter(|(one, _)| *one == uid).count();
        let waiting = self.users.iter().filter(|(_, one)| *one == uid).count();
        if inside + waiting >= READERS_OF_A_USER || self.users.len() >= LINE {
            return Err(reader);
        }
        self.users.push_back((reader, uid));
        Ok(())
    }

    /// The next one who may come in: those who see everything first.
    fn next(&mut self) -> Option<(R, u32, bool)> {
        let users = self.inside.iter().filter(|(_, trusted)| !trusted).count();
        let (reader, uid, trusted) = if self.inside.len() >= READERS {
            return None;
        } else if let Some((reader, uid)) = self.trusted.pop_front() {
            (reader, uid, true)
        } else if users < USERS {
            let (reader, uid) = self.users.pop_front()?;
            (reader, uid, false)
        } else {
            return None;
        };
        self.inside.push((uid, trusted));
        Some((reader, uid, trusted))
    }

    fn leave(&mut self, uid: u32, trusted: bool) {
        if let Some(at) = self.inside.iter().position(|one| *one == (uid, trusted)) {
            self.inside.swap_remove(at);
        }
    }
}

/// Listen on `path`; `trusted` uids see everybody's credentials.
///
/// # Errors
/// The socket cannot be made there.
pub fn start(path: &Path, trusted: Vec<u32>, inputs: Sender<Input>) -> io::Result<Tally> {
    let listener = bind(path, 0o666)?;
    let tally = Tally::default();
    let desk = Arc::new(Desk {
        inputs,
        tally: tally.clone(),
        trusted,
        everybody: Mutex::new(None),
        line: Mutex::new(Line::default()),
        done: Condvar::new(),
    });
    std::thread::Builder::new().name("status".into()).stack_size(128 * 1024).spawn(move || {
        for reader in listener.incoming() {
            let Ok(reader) = reader else {
                // Out of descriptors, most likely: the readers of the moment give theirs back.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            let Ok(uid) = getsockopt(&reader, PeerCredentials).map(|peer| peer.uid()) else { continue };
            let Some(first) = desk.arrive(reader, uid) else { continue };
            let ((_, uid, trusted), inside) = (&first, Arc::clone(&desk));
            let (uid, trusted) = (*uid, *trusted);
            let spawned = std::thread::Builder::new()
                .name("status-reader".into())
                .stack_size(128 * 1024)
                .spawn(move || inside.serve_all(first));
            if spawned.is_err() {
                desk.tally.0.failed.fetch_add(1, Relaxed);
                desk.open().leave(uid, trusted);
            }
        }
    })?;
    Ok(tally)
}

/// A socket at `path`, in place of one that an earlier process left; its directory is made if it is missing.
pub(super) fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        fs::DirBuilder::new().mode(0o755).create(directory)?;
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            if UnixStream::connect(path).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon listens there"));
            }
            fs::remove_file(path)?;
        }
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there")),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// Where the control socket is: beside the status socket.
#[must_use]
pub fn control_path(status: &Path) -> PathBuf {
    status.with_file_name("control.sock")
}

impl Desk {
    fn open(&self) -> MutexGuard<'_, Line<UnixStream>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader comes; whoever may come in now needs a thread.
    fn arrive(&self, reader: UnixStream, uid: u32) -> Option<(UnixStream, u32, bool)> {
        let full = |line: &mut Line<UnixStream>| line.trusted.len() >= LINE;
        let mut line = self.done.wait_while(self.open(), full).unwrap_or_else(PoisonError::into_inner);
        if line.arrive(reader, uid, self.trusted.contains(&uid)).is_err() {
            self.tally.0.turned_away.fetch_add(1, Relaxed);
            tracing::debug!(uid, "a reader of the status was turned away: this user has enough of them");
        }
        line.next()
    }

    /// One reader after the other, as long as some wait.
    fn serve_all(&self, first: (UnixStream, u32, bool)) {
        let mut next = Some(first);
        while let Some((reader, uid, trusted)) = next {
            let served = self.serve(&reader, uid);
            let count = if served.is_ok() { &self.tally.0.served } else { &self.tally.0.failed };
            count.fetch_add(1, Relaxed);
            if let Err(error) = served {
                tracing::debug!(%error, uid, "a reader of the status got nothing");
            }
            drop(reader);
            let mut line = self.open();
            line.leave(uid, trusted);
            next = line.next();
            drop(line);
            self.done.notify_one();
        }
    }

    fn serve(&self, reader: &UnixStream, uid: u32) -> io::Result<()> {
        let document = if self.trusted.contains(&uid) {
            self.everybody()?
        } else {
            // A uid without a name, or with one that credd would not take, has no credentials here.
            let name = User::from_uid(Uid::from_raw(uid))?.and_then(|user| UserName::parse(&user.name).ok());
            let name = name.ok_or_else(|| io::Error::other(format!("uid {uid} has no user name")))?;
            self.ask(Some(name))?
        };
        send(reader, &document)
    }

    fn everybody(&self) -> io::Result<Arc<[u8]>> {
        let mut cached = self.everybody.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, document)) = &*cached
            && made.elapsed() < FRESH
        {
            return Ok(Arc::clone(document));
        }
        let document = self.ask(None)?;
        *cached = Some((Instant::now(), Arc::clone(&document)));
        Ok(document)
    }

    fn ask(&self, user: Option<UserName>) -> io::Result<Arc<[u8]>> {
        let (reply, answer) = sync_channel::<Box<Status>>(1);
        self.inputs.send(Input::Status { user, reply }).map_err(|_| io::Error::other("the daemon stops"))?;
        let status = answer.recv_timeout(ASK).map_err(io::Error::other)?;
        let mut bytes = serde_json::to_vec(&status)?;
        bytes.push(b'\n');
        Ok(bytes.into())
    }
}

/// All of it within [`READ`], however slowly it is taken.
fn send(mut reader: &UnixStream, mut document: &[u8]) -> io::Result<()> {
    let end = Instant::now() + READ;
    while !document.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        reader.set_write_timeout(Some(left))?;
        match reader.write(document) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => document = document.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The uids that see and steer everything: root, the keeper's own, condor.
#[must_use]
pub fn trusted(condor: Option<u32>) -> Vec<u32> {
    let mut uids = vec![0, geteuid().as_raw()];
    uids.extend(condor);
    uids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_that_fill_their_places_keep_no_admin_out_and_nobody_keeps_out_others() {
        let mut line = Line::default();
        // Ten users, ten connections each: eight of each are taken, and 56 are inside.
        let taken = (0..100).filter(|n| line.arrive(*n, 1000 + n / 10, false).is_ok()).count();
        assert_eq!(taken, 10 * READERS_OF_A_USER);
        let mut inside = Vec::new();
        while let Some((_, uid, trusted)) = line.next() {
            inside.push((uid, trusted));
        }
        assert_eq!(inside.len(), USERS);
        // The admin comes in at once, however many users wait.
        for n in 0..READERS - USERS {
            line.arrive(1000 + u32::try_from(n).unwrap(), 0, true).unwrap();
            assert!(matches!(line.next(), Some((_, 0, true))), "{n}");
        }
        assert_eq!(line.next(), None, "the house is full");
        line.arrive(2000, 0, true).unwrap();
        line.leave(inside[0].0, false);
        assert!(matches!(line.next(), Some((2000, 0, true))), "and is first in line");
        line.leave(inside[1].0, false);
        line.leave(0, true);
        let (_, uid, trusted) = line.next().unwrap();
        assert!(uid >= 1000 && !trusted, "then users, too");
    }

    #[test]
    fn a_user_s_ninth_reader_is_turned_away_until_one_has_left() {
        let mut line = Line::default();
        for n in 0..READERS_OF_A_USER {
            line.arrive(n, 1000, false).unwrap();
        }
        assert_eq!(line.arrive(8, 1000, false), Err(8));
        assert!(line.arrive(9, 1001, false).is_ok());
        line.next().unwrap();
        assert_eq!(line.arrive(8, 1000, false), Err(8), "inside counts, too");
        line.leave(1000, false);
        assert!(line.arrive(8, 1000, false).is_ok());
    }
}
