//! Where the log goes: a file in HTCondor's manner, syslog, journal or standard error.
//!
//! File and standard error: `MM/DD/YY HH:MM:SS LEVEL message key=value …`, local time. Journal: the same without the
//! time, after `<N>` (sd-daemon(3)), on standard error. Control characters never reach the log as such, so that one
//! event is one line. A file above its limit is renamed to `.old`. A log that cannot be written later on is no reason
//! to stop renewing: lines are lost, and the next one tries again.

use std::{
    fmt::{self, Write as _},
    fs::{File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::libc;
use syslog::{Facility, Formatter3164, Logger, LoggerBackend};
use thiserror::Error;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt};

use crate::error::exit;

/// HTCondor's own default, `MAX_DEFAULT_LOG`.
pub const DEFAULT_LIMIT: u64 = 10 << 20;

/// Where the log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Append to a file; above `limit` bytes it becomes `.old`.
    File {
        /// The file.
        path: PathBuf,
        /// Bytes; 0: no limit.
        limit: u64,
    },
    /// The log daemon, facility `daemon`.
    Syslog,
    /// Standard error with `<N>` in front of each line.
    Journal,
    /// Standard error.
    Stderr,
}

impl Target {
    /// What `--log` and the key `log` say.
    #[must_use]
    pub fn parse(text: &str, limit: u64) -> Self {
        match text {
            "syslog" => Self::Syslog,
            "journal" => Self::Journal,
            "stderr" => Self::Stderr,
            path => Self::File { path: path.into(), limit },
        }
    }
}

/// Why there is no log.
#[derive(Debug, Error)]
pub enum LogError {
    /// The file cannot be opened for appending.
    #[error("the log {} cannot be written: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No log daemon answers.
    #[error("syslog cannot be reached: {0}")]
    Syslog(#[source] syslog::Error),
    /// Somebody logs in this process already.
    #[error("the log has been started already")]
    Twice,
}

impl LogError {
    /// 44, the code that HTCondor knows for it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        exit::LOG
    }
}

/// The running log.
#[derive(Clone)]
pub struct LogHandle(Arc<Mutex<Sink>>);

impl LogHandle {
    /// Open the file anew (it may have been moved away) or connect to the log daemon again.
    ///
    /// # Errors
    /// It cannot be opened; the old one stays in use.
    pub fn reopen(&self) -> Result<(), LogError> {
        lock(&self.0).reopen()
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogHandle")
    }
}

/// Send this process's events from INFO on to `target`; `name` is the program's for syslog.
///
/// # Errors
/// [`LogError`]: exit code 44.
pub fn start(target: &Target, name: &str) -> Result<LogHandle, LogError> {
    let (subscriber, handle) = subscriber(target, name)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Twice)?;
    Ok(handle)
}

fn subscriber(target: &Target, name: &str) -> Result<(impl Subscriber + Send + Sync + use<>, LogHandle), LogError> {
    let sink = Arc::new(Mutex::new(Sink::open(target, name)?));
    let layer = Lines(Arc::clone(&sink)).with_filter(LevelFilter::INFO);
    Ok((tracing_subscriber::registry().with(layer), LogHandle(sink)))
}

fn lock(sink: &Mutex<Sink>) -> MutexGuard<'_, Sink> {
    sink.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Lines(Arc<Mutex<Sink>>);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let line = format!("{}{}", text.message, text.fields);
        lock(&self.0).write(*event.metadata().level(), line.trim_start());
    }
}

/// An event's message and its ` key=value` pairs.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn put(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            escape(&mut self.message, value);
            return;
        }
        let name = field.name();
        let bare = |c: char| !(c.is_whitespace() || c.is_control() || "\"=".contains(c));
        // What `?value` of a string gives is quoted already.
        let inner = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
        let quoted = inner.is_some_and(|v| !v.contains(|c: char| c == '"' || c.is_control()));
        let plain = quoted || (!value.is_empty() && value.chars().all(bare));
        // Writing to a string does not fail.
        if plain { write!(self.fields, " {name}={value}") } else { write!(self.fields, " {name}={value:?}") }.ok();
    }
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}"));
    }
}

fn escape(into: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() { into.extend(c.escape_default()) } else { into.push(c) }
    }
}

type Syslog = Logger<LoggerBackend, Formatter3164>;

enum Sink {
    File { path: PathBuf, limit: u64, file: File, size: u64 },
    Syslog { name: String, logger: Option<Syslog> },
    Journal,
    Stderr,
}

impl Sink {
    fn open(target: &Target, name: &str) -> Result<Self, LogError> {
        Ok(match target {
            Target::File { path, limit } => {
                let (file, size) = open(path)?;
                Self::File { path: path.clone(), limit: *limit, file, size }
            }
            Target::Syslog => Self::Syslog { name: name.to_owned(), logger: Some(connect(name)?) },
            Target::Journal => Self::Journal,
            Target::Stderr => Self::Stderr,
        })
    }

    fn reopen(&mut self) -> Result<(), LogError> {
        match self {
            Self::File { path, file, size, .. } => (*file, *size) = open(path)?,
            Self::Syslog { name, logger } => *logger = Some(connect(name)?),
            Self::Journal | Self::Stderr => {}
        }
        Ok(())
    }

    /// Errors have nowhere to go: see the module's header.
    fn write(&mut self, level: Level, line: &str) {
        match self {
            Self::File { path, limit, file, size } => {
                let line = stamped(level, line);
                let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
                let full = *limit > 0 && *size > 0 && size.saturating_add(length) > *limit;
                if full
                    && rotate(path).is_ok()
                    && let Ok(fresh) = open(path)
                {
                    (*file, *size) = fresh;
                }
                if file.write_all(line.as_bytes()).is_ok() {
                    *size = size.saturating_add(length);
                }
            }
            Self::Syslog { name, logger } => {
                let sent = logger.as_mut().is_some_and(|logger| send(logger, level, line).is_ok());
                if !sent {
                    // The log daemon may have been restarted: its socket is another one then.
                    *logger = connect(name).ok();
                    if let Some(logger) = logger {
                        send(logger, level, line).ok();
                    }
                }
            }
            Self::Journal => {
                writeln!(io::stderr().lock(), "<{}>{line}", severity(level)).ok();
            }
            Self::Stderr => {
                io::stderr().lock().write_all(stamped(level, line).as_bytes()).ok();
            }
        }
    }
}

fn stamped(level: Level, line: &str) -> String {
    format!("{} {level} {line}\n", jiff::ZonedDateTime::now().strftime("%m/%d/%y %H:%M:%S"))
}

fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// Never through a symbolic link: the log directory belongs to condor, and we may be root.
fn open(path: &Path) -> Result<(File, u64), LogError> {
    let failed = |source| LogError::File { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    options.append(true).custom_flags(libc::O_NOFOLLOW | libc::O_NOCTTY | libc::O_NONBLOCK).mode(0o644);
    let file = match options.clone().create_new(true).open(path) {
        Ok(file) => {
            // The umask may have closed it to condor.
            file.set_permissions(Permissions::from_mode(0o644)).map_err(failed)?;
            file
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => options.open(path).map_err(failed)?,
        Err(e) => return Err(failed(e)),
    };
    let size = file.metadata().map_err(failed)?.len();
    Ok((file, size))
}

fn rotate(path: &Path) -> io::Result<()> {
    let mut old = path.as_os_str().to_owned();
    old.push(".old");
    std::fs::rename(path, old)
}

fn connect(name: &str) -> Result<Syslog, LogError> {
    let formatter = Formatter3164 {
        facility: Facility::LOG_DAEMON,
        hostname: None,
        process: name.to_owned(),
        pid: std::process::id(),
    };
    syslog::unix(formatter).map_err(LogError::Syslog)
}

fn send(logger: &mut Syslog, level: Level, line: &str) -> syslog::Result<()> {
    match level {
        Level::ERROR => logger.err(line),
        Level::WARN => logger.warning(line),
        Level::INFO => logger.info(line),
        _ => logger.debug(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logging(path: &Path, limit: u64, act: impl FnOnce(&LogHandle)) {
        let (subscriber, handle) = subscriber(&Target::File { path: path.to_owned(), limit }, "test").unwrap();
        tracing::subscriber::with_default(subscriber, || act(&handle));
    }

    fn lines(path: &Path) -> Vec<String> {
        std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_is_time_level_message_and_fields_and_holds_no_control_characters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        logging(&path, 0, |_| {
            let (user, expires_in) = ("alice", 3600);
            tracing::info!(user, expires_in, issuer = %"https://i.eu/", "renewed");
            tracing::info!(path = ?Path::new("/a b"), "quoted once");
            tracing::warn!(why = "two\nlines", "bad\n11/24/26 00:00:00 INFO forged");
            tracing::debug!("not from INFO on");
        });
        let lines = lines(&path);
        assert_eq!(lines.len(), 3, "{lines:?}");
        let (stamp, rest) = lines[0].split_at("MM/DD/YY HH:MM:SS".len());
        assert_eq!(rest, " INFO renewed user=alice expires_in=3600 issuer=https://i.eu/");
        let shape: String = stamp.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        assert_eq!(shape, "99/99/99 99:99:99");
        assert!(lines[1].ends_with(r#" INFO quoted once path="/a b""#), "{}", lines[1]);
        assert!(lines[2].ends_with(r#" WARN bad\n11/24/26 00:00:00 INFO forged why="two\nlines""#), "{}", lines[2]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    }

    #[test]
    fn a_log_is_appended_to_and_reopened_after_it_was_moved() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("log"), dir.path().join("moved"));
        std::fs::write(&path, "earlier\n").unwrap();
        logging(&path, 0, |handle| {
            tracing::info!("one");
            std::fs::rename(&path, &moved).unwrap();
            handle.reopen().unwrap();
            tracing::info!("two");
        });
        assert_eq!((lines(&moved).len(), lines(&path).len()), (2, 1));
    }

    #[test]
    fn a_log_above_its_limit_becomes_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        logging(&path, 100, |_| (0..7).for_each(|n| tracing::info!(n, "a line of some length")));
        let (new, old) = (lines(&path), lines(&dir.path().join("log.old")));
        assert_eq!((old.len(), new.len()), (2, 1), "{old:?} {new:?}");
        assert!(new[0].ends_with("n=6"));
    }

    #[test]
    fn a_log_that_cannot_be_written_is_exit_code_44() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("link")).unwrap();
        for path in [dir.path().join("link"), dir.path().to_owned(), dir.path().join("none/log")] {
            let failed = subscriber(&Target::File { path: path.clone(), limit: 0 }, "test").err().unwrap();
            assert_eq!(failed.exit_code(), 44);
            assert!(failed.to_string().starts_with(&format!("the log {} cannot be written: ", path.display())));
        }
    }

    #[test]
    fn targets_are_words_or_a_path() {
        assert_eq!(Target::parse("syslog", 1), Target::Syslog);
        assert_eq!(Target::parse("journal", 1), Target::Journal);
        assert_eq!(Target::parse("stderr", 1), Target::Stderr);
        assert_eq!(Target::parse("/l", 1), Target::File { path: "/l".into(), limit: 1 });
    }
}
