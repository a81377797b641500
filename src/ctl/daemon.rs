//! The daemon as its clients see it: the status socket tells, the control socket takes orders. What comes back is
//! bounded in time and size.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use thiserror::Error;

use crate::{
    core::snapshot::Status,
    error::{Report, exit},
    keeper::{
        control::{ISSUERS_PATIENCE, Order, Reply},
        status::control_path,
    },
};

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the first look of the daemon at everything is waited for, and how often it is asked meanwhile.
const FIRST_LOOK: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(200);
/// The largest document: a million credentials.
const MAX: u64 = 1 << 30;

/// The daemon did not tell.
#[derive(Debug, Error)]
pub enum NotReachable {
    /// Nobody listens.
    #[error("{}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else than we know.
    #[error("{}: not the status of an evercred daemon: {source}", path.display())]
    Document {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The daemon closed without a word: the reader's uid has no name here, or the daemon is busy or stops.
    #[error("{}: the daemon told nothing", path.display())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
}

impl NotReachable {
    /// There is no socket: no daemon was started on this host since it booted.
    #[must_use]
    pub fn nobody_is_there(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// For people, with exit code 4.
    #[must_use]
    pub fn report(&self) -> Report {
        let advice = match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run it as root, or as the user that the credmon runs as"
            }
            Self::Io { .. } => {
                "start the credmon (condor_on -daemon CREDMON_OAUTH, or systemctl start evercred); on a login node \
                 without one, run this on the access point"
            }
            Self::Document { .. } => "install the same version of evercred as the daemon's",
            Self::Silent { .. } => "try again; if it lasts, see the daemon's log",
        };
        Report::new(format!("the daemon cannot be reached: {self}"), exit::UNREACHABLE).advise(advice)
    }
}

/// How things stand, as far as this user may see.
///
/// # Errors
/// [`NotReachable`]
pub fn status(socket: &Path) -> Result<Status, NotReachable> {
    let bytes = document(socket)?;
    serde_json::from_slice(&bytes).map_err(|source| NotReachable::Document { path: socket.to_owned(), source })
}

/// The same, once it tells what is looked for or the daemon has looked at everything since its start or last reload.
/// After `FIRST_LOOK` it comes as it is.
///
/// # Errors
/// [`NotReachable`]
pub fn status_telling(socket: &Path, told: impl Fn(&Status) -> bool) -> Result<Status, NotReachable> {
    let end = Instant::now() + FIRST_LOOK;
    loop {
        let status = status(socket)?;
        if status.complete || told(&status) || Instant::now() >= end {
            return Ok(status);
        }
        std::thread::sleep(AGAIN);
    }
}

/// For people, with exit code 4: whether there is such a credential, the daemon cannot say.
#[must_use]
pub fn not_known_yet(which: &str) -> Report {
    let what = "the daemon has not looked at every directory since its start or last reload";
    Report::new(format!("{which}: not known yet: {what}"), exit::UNREACHABLE)
        .advise("try again in a moment; if it lasts, see the daemon's log")
}

/// The document as the daemon wrote it.
///
/// # Errors
/// [`NotReachable`]
pub fn document(socket: &Path) -> Result<Vec<u8>, NotReachable> {
    let fail = |source| NotReachable::Io { path: socket.to_owned(), source };
    let stream = UnixStream::connect(socket).map_err(fail)?;
    let bytes = read_all(&stream, PATIENCE).map_err(fail)?;
    if bytes.is_empty() { Err(NotReachable::Silent { path: socket.to_owned() }) } else { Ok(bytes) }
}

/// Give an order.
///
/// # Errors
/// [`NotReachable`]
pub fn order(status_socket: &Path, order: &Order) -> Result<Reply, NotReachable> {
    let path = control_path(status_socket);
    let fail = |source| NotReachable::Io { path: path.clone(), source };
    let mut stream = UnixStream::connect(&path).map_err(fail)?;
    let mut line = serde_json::to_vec(order).map_err(|e| fail(e.into()))?;
    line.push(b'\n');
    stream.write_all(&line).map_err(fail)?;
    let patience = if matches!(order, Order::Revoke { .. }) { ISSUERS_PATIENCE } else { Duration::ZERO } + PATIENCE;
    let bytes = read_all(&stream, patience).map_err(fail)?;
    if bytes.is_empty() {
        return Err(NotReachable::Silent { path });
    }
    serde_json::from_slice(&bytes).map_err(|source| NotReachable::Document { path, source })
}

fn read_all(stream: &UnixStream, patience: Duration) -> io::Result<Vec<u8>> {
    let end = Instant::now() + patience;
    let mut bytes = Vec::new();
    let mut part = vec![0; 256 << 10];
    let mut stream = stream.take(MAX);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.get_mut().set_read_timeout(Some(left))?;
        match stream.read(&mut part) {
            Ok(0) => return Ok(bytes),
            Ok(n) => bytes.extend_from_slice(part.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
