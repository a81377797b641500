//! Where the page listens. The door is opened while the courier still has the keeper's uid: a Unix socket can then stand
//! in a directory of root's, and a port below 1024 can be had. Nobody else of the host can stand in either place while
//! we are away, as anybody could at a higher port.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv6Addr, TcpStream},
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
/// Whoever listens on this host takes a connection sooner.
const CONNECT: Duration = Duration::from_millis(200);

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

    /// Whether it could be had by a courier that starts now, as far as one that gave its privileges up can see.
    #[must_use]
    pub fn is_free(listen: &WebListen) -> bool {
        match listen {
            WebListen::Address(address) => {
                std::net::TcpListener::bind((address.ip(), 0)).is_ok()
                    && TcpStream::connect_timeout(address, CONNECT).is_err()
            }
            // Where directory or socket are closed to it, it cannot see.
            WebListen::Unix(path) => match look(path) {
                Ok(_) => true,
                Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
            },
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
    if look(path)? {
        fs::remove_file(path)?;
    }
    let listener = StdUnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Whether a courier left its socket there; an error where ours must not or cannot stand.
fn look(path: &Path) -> io::Result<bool> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let named = |at: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", at.display()));
    let real = fs::canonicalize(directory).map_err(|error| named(directory, error))?;
    for (above, at) in real.ancestors().enumerate() {
        let meta = fs::metadata(at).map_err(|error| named(at, error))?;
        let ours = meta.uid() == 0 || meta.uid() == geteuid().as_raw();
        // In a sticky directory others make new entries, and leave alone the one that leads to us.
        let sticky = above > 0 && meta.mode() & 0o1000 != 0;
        if !ours || (meta.mode() & 0o022 != 0 && !sticky) {
            let what = format!("others may write {}, so they could stand there in our place", at.display());
            return Err(io::Error::other(what));
        }
    }
    match fs::symlink_metadata(path) {
        // Somebody's who listens, else what a courier left.
        Ok(meta) if meta.file_type().is_socket() => match StdUnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
            Ok(_) | Err(_) => Err(io::ErrorKind::AddrInUse.into()),
        },
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket is there")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Listener {
    /// The next connection, and from which address; none of a Unix socket.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub async fn accept(&self) -> io::Result<(Box<dyn Stream>, Option<IpAddr>)> {
        Ok(match self {
            Self::Address(listener) => {
                let (stream, from) = listener.accept().await?;
                (Box::new(stream), Some(from.ip().to_canonical()))
            }
            Self::Unix(listener) => (Box::new(listener.accept().await?.0), None),
        })
    }
}

/// Whether a connection has shown a good key or a visit.
pub type Known = Arc<AtomicBool>;

/// The connections that are open. Where there are too many, one that has shown nothing goes first: of the address that
/// has most of them, and the oldest of those. Whoever opens connections by the thousand ends his own.
#[derive(Debug, Default)]
pub struct Guests(Vec<Guest>);

#[derive(Debug)]
struct Guest {
    task: AbortHandle,
    known: Known,
    /// None at a Unix socket: all come by the web server.
    from: Option<IpAddr>,
}

impl Guests {
    /// Make room for one more.
    pub fn make_room(&mut self) {
        if self.0.len() < CONNECTIONS {
            return;
        }
        self.0.retain(|guest| !guest.task.is_finished());
        if self.0.len() < CONNECTIONS {
            return;
        }
        let strangers: Vec<bool> = self.0.iter().map(|guest| !guest.known.load(Ordering::Relaxed)).collect();
        let mut crowds = HashMap::<_, usize>::new();
        for (guest, _) in self.0.iter().zip(&strangers).filter(|(_, stranger)| **stranger) {
            *crowds.entry(guest.from).or_default() += 1;
        }
        let most = crowds.values().max();
        let of_most = |(guest, stranger): (&Guest, &bool)| *stranger && crowds.get(&guest.from) == most;
        let first = self.0.iter().zip(&strangers).position(of_most);
        self.0.remove(first.unwrap_or(0)).task.abort();
    }

    /// One more.
    pub fn add(&mut self, task: AbortHandle, known: Known, from: Option<IpAddr>) {
        self.0.push(Guest { task, known, from: from.map(network) });
    }
}

/// An IPv6 host has a whole /64 to come from.
fn network(from: IpAddr) -> IpAddr {
    match from {
        IpAddr::V6(one) => IpAddr::V6(Ipv6Addr::from_bits(one.to_bits() & !u128::from(u64::MAX))),
        v4 @ IpAddr::V4(_) => v4,
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
            assert!(!path.exists() && !Door::is_free(&at(&path)));
        }
        // Nor below such a directory: who may write that puts another in place of ours. A sticky one is fit, like /tmp.
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o755)).unwrap();
        let path = inner.join("approval.sock");
        assert!(Door::open_once(&at(&path)).unwrap_err().to_string().contains("others may write"));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(Door::is_free(&at(&path)));
        let stands = Door::open_once(&at(&path)).unwrap();
        assert!(!Door::is_free(&at(&path)));
        drop(stands);
        assert!(Door::is_free(&at(&path)), "what was left is in nobody's way");
    }

    #[test]
    fn a_port_is_free_once_nobody_listens_there() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = WebListen::Address(taken.local_addr().unwrap());
        assert!(!Door::is_free(&listen));
        drop(taken);
        assert!(Door::is_free(&listen));
        assert!(!Door::is_free(&WebListen::Address("192.0.2.1:9".parse().unwrap())), "no address of this host");
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
            guests.add(task.abort_handle(), Arc::new(AtomicBool::new(known)), None);
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

    #[tokio::test]
    async fn who_comes_by_the_thousand_ends_none_but_his_own_connections() {
        let mut guests = Guests::default();
        let enter = |guests: &mut Guests, from: &str| {
            guests.make_room();
            let task = tokio::spawn(std::future::pending::<()>());
            guests.add(task.abort_handle(), Known::default(), Some(from.parse().unwrap()));
            task
        };
        let others: Vec<_> = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|from| enter(&mut guests, from)).into();
        let crowd: Vec<_> = (0..CONNECTIONS * 3).map(|n| enter(&mut guests, &format!("2001:db8:0:1::{n:x}"))).collect();
        settle().await;
        assert!(others.iter().all(|task| !task.is_finished()), "older, and of few");
        let ended = crowd.iter().position(|task| !task.is_finished());
        assert_eq!(ended, Some(CONNECTIONS * 2 + others.len()), "the oldest of the crowd, and no more of them");
        // The same number from each: the oldest.
        let mut guests = Guests::default();
        let tasks: Vec<_> = (0..=CONNECTIONS).map(|n| enter(&mut guests, &format!("198.51.100.{n}"))).collect();
        settle().await;
        let ended: Vec<_> = (0..tasks.len()).filter(|n| tasks[*n].is_finished()).collect();
        assert_eq!(ended, [0]);
    }
}
