//! The status socket: whoever connects gets one JSON document and the end of the stream. It never reads.
//!
//! The kernel says who the reader is (`SO_PEERCRED`): root, condor and the keeper's own uid see everybody's
//! credentials, a user sees the own ones. The loop is asked for rows only; making JSON of them and waiting for a slow
//! reader happen here, on threads that are few, short-lived and bounded in time. Readers beyond that number wait in
//! the socket's queue.

use std::{
    fs, io,
    io::Write as _,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{Sender, sync_channel},
    },
    time::{Duration, Instant},
};

use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::{Uid, User, geteuid},
};

use super::driver::Input;
use crate::core::{id::UserName, snapshot::Status};

/// Readers served at once.
const READERS: usize = 64;
/// Of these, one user's: more are turned away, so that nobody keeps the others out.
const READERS_OF_A_USER: usize = 8;
/// How long the loop may take to answer.
const ASK: Duration = Duration::from_secs(2);
/// How long a reader may take to read.
const READ: Duration = Duration::from_secs(5);
/// Everybody's rows are made at most this often; readers in between get the same document.
const FRESH: Duration = Duration::from_millis(100);

/// Everybody's rows as JSON, and when they were made.
type Cached = Option<(Instant, Arc<[u8]>)>;

/// What the threads share.
struct Desk {
    inputs: Sender<Input>,
    /// uids that see everything.
    trusted: Vec<u32>,
    everybody: Mutex<Cached>,
    /// uids of the readers of the moment.
    busy: Mutex<Vec<u32>>,
    done: Condvar,
}

/// Listen on `path`; `trusted` uids see everybody's credentials.
///
/// # Errors
/// The socket cannot be made there.
pub fn start(path: &Path, trusted: Vec<u32>, inputs: Sender<Input>) -> io::Result<()> {
    let listener = bind(path, 0o666)?;
    let desk = Arc::new(Desk {
        inputs,
        trusted,
        everybody: Mutex::new(None),
        busy: Mutex::new(Vec::new()),
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
            if !desk.enter(uid) {
                continue;
            }
            let inside = Arc::clone(&desk);
            let spawned =
                std::thread::Builder::new().name("status-reader".into()).stack_size(128 * 1024).spawn(move || {
                    if let Err(error) = inside.serve(&reader, uid) {
                        tracing::debug!(%error, uid, "a reader of the status got nothing");
                    }
                    inside.leave(uid);
                });
            if spawned.is_err() {
                desk.leave(uid);
            }
        }
    })?;
    Ok(())
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
    /// A place for a reader, once one is free; false: this user has enough of them.
    fn enter(&self, uid: u32) -> bool {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let own = busy.iter().filter(|one| **one == uid).count();
        if own >= READERS_OF_A_USER && !self.trusted.contains(&uid) {
            return false;
        }
        let mut busy = self.done.wait_while(busy, |busy| busy.len() >= READERS).unwrap_or_else(PoisonError::into_inner);
        busy.push(uid);
        true
    }

    fn leave(&self, uid: u32) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = busy.iter().position(|one| *one == uid) {
            busy.swap_remove(at);
        }
        self.done.notify_one();
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
