//! The log daemon, by RFC 5424 over its datagram socket. It may be restarted: the next line then connects anew. It
//! may hang: a line that does not fit into its queue is lost, and we go on.

use std::{
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
};

use nix::unistd::gethostname;
use syslog::{Facility, Formatter5424, Logger, LoggerBackend};
use tracing::Level;

use super::LogError;

/// Where log daemons listen.
pub(super) const SOCKET: &str = "/dev/log";
/// `MSGID`: we have one kind of message.
const MESSAGE: u32 = 0;

pub(super) struct Syslog {
    path: PathBuf,
    name: String,
    logger: Option<Logger<LoggerBackend, Formatter5424>>,
}

impl Syslog {
    pub(super) fn connect(path: &Path, name: &str) -> Result<Self, LogError> {
        let mut syslog = Self { path: path.to_owned(), name: name.to_owned(), logger: None };
        syslog.reconnect()?;
        Ok(syslog)
    }

    pub(super) fn reconnect(&mut self) -> Result<(), LogError> {
        self.logger = None;
        let open = || {
            let socket = UnixDatagram::unbound()?;
            socket.connect(&self.path)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let socket = open().map_err(|source| LogError::Syslog { path: self.path.clone(), source })?;
        let formatter = Formatter5424 {
            facility: Facility::LOG_DAEMON,
            hostname: gethostname().ok().and_then(|name| name.into_string().ok()).filter(|name| !name.is_empty()),
            process: self.name.clone(),
            pid: std::process::id(),
        };
        self.logger = Some(Logger::new(LoggerBackend::Unix(socket), formatter));
        Ok(())
    }

    pub(super) fn send(&mut self, level: Level, line: &str) -> io::Result<()> {
        match self.try_send(level, line) {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => {
                // The log daemon may have been restarted: its socket is another one then.
                self.reconnect().map_err(io::Error::other)?;
                self.try_send(level, line)
            }
            other => other,
        }
    }

    fn try_send(&mut self, level: Level, line: &str) -> io::Result<()> {
        let Some(logger) = &mut self.logger else { return Err(io::ErrorKind::NotConnected.into()) };
        let message = (MESSAGE, std::collections::BTreeMap::new(), line);
        let sent = match level {
            Level::ERROR => logger.err(message),
            Level::WARN => logger.warning(message),
            Level::INFO => logger.info(message),
            _ => logger.debug(message),
        };
        sent.map_err(|error| match error {
            syslog::Error::Write(e) | syslog::Error::Io(e) => e,
            syslog::Error::Initialization(e) => io::Error::other(e),
        })
    }
}

/// RFC 5424's number, which the journal takes, too.
pub(super) fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}
