//! Where the page listens. The door is opened while the courier still has the keeper's uid: a Unix socket can then stand
//! in a directory of root's, and a port below 1024 can be had. Nobody else of the host can stand in either place while
//! we are away, as anybody could at a higher port.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::unistd::geteuid;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::AbortHandle,
};

use crate::config::settings::WebListen;

/// The courier before us may still hold it; so long is waited.
const QUICK: Duration = Duration::from_millis(200);
const QUICK_TRIES: u32 = 10;
/// Connections at one time.
pub const CONNECTIONS: usize = 128;

/// A listener without a runtime yet.
#[derive(Debug)]
pub enum Door {
    /// At an address and port.
    Address(std::net::TcpListener),
    /// At a path.
    Unix(StdUnixListener),
}

/// Either kind of connection.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// One that connections come to.
#[derive(Debug)]
pub enum Listener {
    /// At an address and port.
    Address(TcpListener),
    /// At a path.
    Unix(UnixListener),
}

impl Door {
    /// Open it; waits for the courier before us to leave.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn open(listen: &WebListen) -> io::Result<Self> {
        let mut tries = 0;
        loop {
            match Self::open_once(listen) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < QUICK_TRIES => {
                    tries += 1;
                    thread::sleep(QUICK);
                }
                other => return other,
            }
        }
    }

    /// As [`Self::open()`], without waiting.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn open_once(listen: &WebListen) -> io::Result<Self> {
        match listen {
            WebListen::Address(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Address(listener))
            }
            WebListen::Unix(path) => unix(path).map(Self::Unix),
        }
    }

    /// In the runtime.
    ///
    /// # Errors
    /// It cannot be polled.
    pub fn listener(self) -> io::Result<Listener> {
        match self {
            Self::Address(listener) => TcpListener::from_std(listener).map(Listener::Address),
            Self::Unix(listener) => UnixListener::from_std(listener).map(Listener::Unix),
        }
    }
}

/// Everybody may connect, as to the web server that passes on to it; only the directory's owner may stand there.
fn unix(path: &Path) -> io::Result<StdUnixListener> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let meta = fs::metadata(directory)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", directory.display())))?;
    let ours = meta.uid() == 0 || meta.uid() == geteuid().as_raw();
    if !ours || meta.mode() & 0o022 != 0 {
        let what = format!("others may write {}, so they could stand there in our place", directory.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
    }
    match fs::symlink_metadata(path) {
        // Somebody's who listens, else what a courier left.
        Ok(meta) if meta.file_type().is_socket() => match StdUnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Ok(_) | Err(_) => return Err(io::ErrorKind::AddrInUse.into()),
        },
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = StdUnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Listener {
    /// The next connection.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Address(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

/// Whether a connection has shown a good key or a visit.
pub type Known = Arc<AtomicBool>;

/// The connections that are open. Where there are too many, one that has shown nothing goes first, and the oldest of
/// those: whoever opens connections by the thousand ends his own.
#[derive(Debug, Default)]
pub struct Guests(Vec<(AbortHandle, Known)>);

impl Guests {
    /// Make room for one more.
    pub fn make_room(&mut self) {
        if self.0.len() < CONNECTIONS {
            return;
        }
        self.0.retain(|(one, _)| !one.is_finished());
        if self.0.len() >= CONNECTIONS {
            let stranger = self.0.iter().position(|(_, known)| !known.load(Ordering::Relaxed));
            self.0.remove(stranger.unwrap_or(0)).0.abort();
        }
    }

    /// One more.
    pub fn add(&mut self, guest: AbortHandle, known: Known) {
        self.0.push((guest, known));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn at(path: &Path) -> WebListen {
        WebListen::Unix(path.to_owned())
    }

    #[test]
    fn a_socket_takes_the_place_of_one_that_was_left_and_of_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("approval.sock");
        let first = Door::open_once(&at(&path)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
        assert_eq!(Door::open_once(&at(&path)).unwrap_err().kind(), io::ErrorKind::AddrInUse, "somebody listens");
        drop(first);
        assert!(path.exists());
        drop(Door::open_once(&at(&path)).unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "x").unwrap();
        assert!(Door::open_once(&at(&path)).unwrap_err().to_string().contains("no socket"));
        fs::remove_file(&path).unwrap();
        symlink("/nowhere", &path).unwrap();
        assert!(Door::open_once(&at(&path)).is_err());
        let missing = Door::open_once(&at(&dir.path().join("none/approval.sock"))).unwrap_err().to_string();
        assert!(missing.contains("none: "), "{missing}");
    }

    #[test]
    fn no_socket_stands_where_others_could_stand_in_our_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("approval.sock");
        for mode in [0o777, 0o1777, 0o775] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = Door::open_once(&at(&path)).unwrap_err().to_string();
            assert!(error.contains("others may write"), "{mode:o}: {error}");
            assert!(!path.exists());
        }
    }

    /// Until every task that was aborted has ended.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn of_too_many_connections_the_oldest_that_has_shown_nothing_ends() {
        let mut guests = Guests::default();
        let mut tasks = Vec::new();
        let enter = |guests: &mut Guests, known: bool| {
            guests.make_room();
            let task = tokio::spawn(std::future::pending::<()>());
            guests.add(task.abort_handle(), Arc::new(AtomicBool::new(known)));
            task
        };
        tasks.push(enter(&mut guests, true));
        for _ in 0..CONNECTIONS * 3 {
            tasks.push(enter(&mut guests, false));
        }
        settle().await;
        assert!(!tasks[0].is_finished(), "the one with a visit");
        let ended = tasks.iter().filter(|task| task.is_finished()).count();
        assert_eq!(ended, tasks.len() - CONNECTIONS);
        assert!(tasks[1].is_finished() && !tasks.last().unwrap().is_finished());
        // Where all have shown one, the oldest goes.
        let mut full = Guests::default();
        let known: Vec<_> = (0..=CONNECTIONS).map(|_| enter(&mut full, true)).collect();
        settle().await;
        assert_eq!(known.iter().map(tokio::task::JoinHandle::is_finished).position(|ended| ended), Some(0));
    }
}
