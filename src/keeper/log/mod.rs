//! Where the log goes: a file in HTCondor's manner, syslog, journal or standard error; as text or as JSON.
//!
//! Text in a file and on standard error: `MM/DD/YY HH:MM:SS LEVEL message key=value …`, local time. Journal: the same
//! without the time, after `<N>` (sd-daemon(3)), on standard error. Syslog: RFC 5424. JSON: one object a line, `time`
//! (RFC 3339), `level`, `message`, then the fields. Control characters never reach the log as such, so that one event
//! is one line. A log that cannot be written later on, or that nobody reads, is no reason to stop renewing,
//! and none to wait: a thread of its own writes, what its queue does not hold is lost and counted, and once lines are
//! taken again, one of them says how many were lost.

mod file;
mod line;
mod syslog;

use std::{
    fmt,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use thiserror::Error;
use tracing::{Event, Level, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{Layer, layer::Context, layer::SubscriberExt};

pub use self::file::Rotation;
use self::{file::LogFile, line::Line, syslog::Syslog};
use crate::{config::settings::LogFormat as Format, error::exit};

/// Where the log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Append to a file, rotated.
    File {
        /// The file.
        path: PathBuf,
        /// When and into what.
        rotation: Rotation,
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
    pub fn parse(text: &str, rotation: Rotation) -> Self {
        match text {
            "syslog" => Self::Syslog,
            "journal" => Self::Journal,
            "stderr" => Self::Stderr,
            path => Self::File { path: path.into(), rotation },
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
    #[error("syslog cannot be reached at {}: {source}", path.display())]
    Syslog {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system refuses a thread.
    #[error("there is no thread for the log: {0}")]
    Thread(io::Error),
    /// What is written to takes nothing, so that it cannot be opened anew just now.
    #[error("the log takes no lines at this moment")]
    Stuck,
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

/// Lines that wait to be written.
const QUEUE: usize = 4096;
/// How long opening it anew may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks whether the queue has room for an order.
const PAUSE: Duration = Duration::from_millis(5);

/// The running log.
#[derive(Clone)]
pub struct LogHandle {
    orders: SyncSender<Order>,
    lost: Arc<AtomicU64>,
}

enum Order {
    Write(Level, jiff::Timestamp, Line),
    Reopen(SyncSender<Result<(), LogError>>),
    Flush(SyncSender<()>),
}

impl LogHandle {
    /// Open the file anew (it may have been moved away) or connect to the log daemon again.
    ///
    /// # Errors
    /// It cannot be opened, or takes nothing just now; the old one stays in use.
    pub fn reopen(&self) -> Result<(), LogError> {
        self.ask(Order::Reopen, PATIENCE).unwrap_or(Err(LogError::Stuck))
    }

    /// Wait until what has been told is written, but not longer than `patience`: whether it is.
    pub fn flush(&self, patience: Duration) -> bool {
        self.ask(Order::Flush, patience).is_some()
    }

    /// Lines that could not be written.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    fn ask<T>(&self, order: impl FnOnce(SyncSender<T>) -> Order, patience: Duration) -> Option<T> {
        let end = Instant::now() + patience;
        let (reply, answer) = sync_channel(1);
        let mut order = order(reply);
        while let Err(TrySendError::Full(back)) = self.orders.try_send(order) {
            if Instant::now() >= end {
                return None;
            }
            order = back;
            std::thread::sleep(PAUSE);
        }
        answer.recv_timeout(end.saturating_duration_since(Instant::now())).ok()
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
pub fn start(target: &Target, format: Format, name: &str) -> Result<LogHandle, LogError> {
    let (lines, handle, writer) = parts(format, Sink::open(target, name)?, QUEUE);
    std::thread::Builder::new().name("log".into()).spawn(move || writer.run()).map_err(LogError::Thread)?;
    tracing::subscriber::set_global_default(subscriber(lines)).map_err(|_| LogError::Twice)?;
    Ok(handle)
}

fn parts(format: Format, sink: Sink, queue: usize) -> (Lines, LogHandle, Writer) {
    let (orders, queue) = sync_channel(queue);
    let handle = LogHandle { orders, lost: Arc::default() };
    let writer = Writer { sink, format, queue, lost: Arc::clone(&handle.lost), told: 0, well: false };
    (Lines { format, handle: handle.clone() }, handle, writer)
}

fn subscriber(lines: Lines) -> impl Subscriber + Send + Sync {
    tracing_subscriber::registry().with(lines.with_filter(LevelFilter::INFO))
}

struct Lines {
    format: Format,
    handle: LogHandle,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = match self.format {
            Format::Text => line::text(event),
            Format::Json => line::json(event),
        };
        let order = Order::Write(*event.metadata().level(), jiff::Timestamp::now(), line);
        if self.handle.orders.try_send(order).is_err() {
            self.handle.lost.fetch_add(1, Relaxed);
        }
    }
}

/// What the log's thread does.
struct Writer {
    sink: Sink,
    format: Format,
    queue: Receiver<Order>,
    lost: Arc<AtomicU64>,
    /// Of these, so many have been told.
    told: u64,
    /// The last line was taken.
    well: bool,
}

impl Writer {
    fn run(mut self) {
        loop {
            let order = match self.queue.try_recv() {
                Ok(order) => Ok(order),
                Err(TryRecvError::Empty) => {
                    self.gap();
                    self.queue.recv()
                }
                Err(TryRecvError::Disconnected) => return self.gap(),
            };
            match order {
                Ok(Order::Write(level, at, line)) => {
                    // Errors have nowhere to go but into the count: see the module's header.
                    self.well = self.sink.write(level, at, &line).is_ok();
                    self.lost.fetch_add(u64::from(!self.well), Relaxed);
                }
                // Who asked may have given up.
                Ok(Order::Reopen(reply)) => drop(reply.try_send(self.sink.reopen())),
                Ok(Order::Flush(reply)) => {
                    self.gap();
                    reply.try_send(()).ok();
                }
                Err(_) => return self.gap(),
            }
        }
    }

    /// Say how many lines are missing, once lines are taken again.
    fn gap(&mut self) {
        let lost = self.lost.load(Relaxed);
        if !self.well || lost == self.told {
            return;
        }
        let at = jiff::Timestamp::now();
        let line = line::plain(self.format, Level::WARN, at, "lines of this log were lost", lost - self.told);
        self.well = self.sink.write(Level::WARN, at, &line).is_ok();
        if self.well {
            self.told = lost;
        }
    }
}

struct Sink {
    place: Place,
}

enum Place {
    File(LogFile),
    Syslog(Syslog),
    Journal,
    Stderr,
}

impl Sink {
    fn open(target: &Target, name: &str) -> Result<Self, LogError> {
        let place = match target {
            Target::File { path, rotation } => Place::File(LogFile::open(path, *rotation)?),
            Target::Syslog => Place::Syslog(Syslog::connect(Path::new(syslog::SOCKET), name)?),
            Target::Journal => Place::Journal,
            Target::Stderr => Place::Stderr,
        };
        Ok(Self { place })
    }

    fn reopen(&mut self) -> Result<(), LogError> {
        match &mut self.place {
            Place::File(file) => file.reopen(),
            Place::Syslog(syslog) => syslog.reconnect(),
            Place::Journal | Place::Stderr => Ok(()),
        }
    }

    fn write(&mut self, level: Level, at: jiff::Timestamp, line: &Line) -> io::Result<()> {
        match &mut self.place {
            Place::File(file) => file.write(stamped(level, at, line).as_bytes()),
            Place::Syslog(syslog) => syslog.send(level, line.as_str()),
            Place::Journal => writeln!(io::stderr().lock(), "<{}>{}", syslog::severity(level), line.as_str()),
            Place::Stderr => io::stderr().lock().write_all(stamped(level, at, line).as_bytes()),
        }
    }
}

/// With the time and level in front, unless they are in it already.
fn stamped(level: Level, at: jiff::Timestamp, line: &Line) -> String {
    match line {
        Line::Text(text) => {
            let local = at.to_zoned_datetime(jiff::tz::TimeZone::system());
            format!("{} {level} {text}\n", local.strftime("%m/%d/%y %H:%M:%S"))
        }
        Line::Json(text) => format!("{text}\n"),
    }
}

/// For tests elsewhere: what `act` logs, into a file.
#[cfg(test)]
pub(super) fn logging_to(path: &Path, act: impl FnOnce()) {
    let target = Target::File { path: path.to_owned(), rotation: Rotation { limit: 0, keep: 1 } };
    tests::logged(Format::Text, Sink::open(&target, "test").unwrap(), |_| act());
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, net::UnixDatagram};

    use super::*;

    const UNBOUNDED: Rotation = Rotation { limit: 0, keep: 1 };

    const LONG: Duration = Duration::from_secs(20);

    pub(super) fn logged(format: Format, sink: Sink, act: impl FnOnce(&LogHandle)) {
        let (lines, handle, writer) = parts(format, sink, QUEUE);
        let thread = std::thread::spawn(move || writer.run());
        tracing::subscriber::with_default(subscriber(lines), || act(&handle));
        assert!(handle.flush(LONG));
        drop(handle);
        thread.join().unwrap();
    }

    fn logging_as(format: Format, path: &Path, rotation: Rotation, act: impl FnOnce(&LogHandle)) {
        let target = Target::File { path: path.to_owned(), rotation };
        logged(format, Sink::open(&target, "test").unwrap(), act);
    }

    fn logging(path: &Path, rotation: Rotation, act: impl FnOnce(&LogHandle)) {
        logging_as(Format::Text, path, rotation, act);
    }

    fn lines(path: &Path) -> Vec<String> {
        std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_is_time_level_message_and_fields_and_holds_no_control_characters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        logging(&path, UNBOUNDED, |_| {
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
    fn a_json_line_is_one_object_with_time_level_message_and_typed_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        logging_as(Format::Json, &path, UNBOUNDED, |_| {
            tracing::info!(user = "alice", expires_in = 3600_u64, rotated = true, kind = %"x", "renewed");
            tracing::warn!(why = "two\nlines", "bad\n");
        });
        let lines = lines(&path);
        assert_eq!(lines.len(), 2, "{lines:?}");
        let first: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!((&first["level"], &first["message"]), (&"INFO".into(), &"renewed".into()));
        assert_eq!((&first["expires_in"], &first["rotated"]), (&3600.into(), &true.into()));
        assert_eq!((&first["user"], &first["kind"]), (&"alice".into(), &"x".into()));
        assert!(first["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{first}");
        let second: serde_json::Value = serde_json::from_str(&lines[1]).unwrap();
        assert_eq!(second["why"], "two\nlines");
    }

    #[test]
    fn a_log_is_appended_to_and_reopened_after_it_was_moved() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("log"), dir.path().join("moved"));
        std::fs::write(&path, "earlier\n").unwrap();
        logging(&path, UNBOUNDED, |handle| {
            tracing::info!("one");
            assert!(handle.flush(LONG));
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
        let rotation = Rotation { limit: 100, keep: 1 };
        logging(&path, rotation, |_| (0..7).for_each(|n| tracing::info!(n, "a line of some length")));
        let (new, old) = (lines(&path), lines(&dir.path().join("log.old")));
        assert_eq!((old.len(), new.len()), (2, 1), "{old:?} {new:?}");
        assert!(new[0].ends_with("n=6"));
    }

    #[test]
    fn a_full_disk_loses_lines_counts_them_and_goes_on() {
        let target = Target::File { path: "/dev/full".into(), rotation: UNBOUNDED };
        logged(Format::Text, Sink::open(&target, "test").unwrap(), |handle| {
            (0..5).for_each(|n| tracing::info!(n, "lost"));
            assert!(handle.flush(LONG));
            assert_eq!(handle.lost(), 5);
        });
    }

    #[test]
    fn what_the_queue_does_not_hold_is_counted_and_told_and_no_order_waits_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let target = Target::File { path: path.clone(), rotation: UNBOUNDED };
        let (told, handle, writer) = parts(Format::Text, Sink::open(&target, "test").unwrap(), 2);
        // Nobody writes yet: as if the file took nothing.
        tracing::subscriber::with_default(subscriber(told), || (0..5).for_each(|n| tracing::info!(n, "line")));
        assert_eq!(handle.lost(), 3);
        assert!(!handle.flush(Duration::from_millis(20)));
        drop(handle);
        writer.run();
        let lines = lines(&path);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].ends_with("line n=0") && lines[1].ends_with("line n=1"), "{lines:?}");
        assert!(lines[2].ends_with("WARN lines of this log were lost lost=3"), "{lines:?}");
    }

    #[test]
    fn syslog_lines_are_rfc_5424_and_a_restarted_log_daemon_gets_the_next_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.sock");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let place = Place::Syslog(Syslog::connect(&path, "evercred").unwrap());
        let receive = |daemon: &UnixDatagram| {
            daemon.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
            let mut buffer = [0; 2048];
            let length = daemon.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        logged(Format::Text, Sink { place }, |handle| {
            tracing::warn!(user = "alice", "first");
            let text = receive(&daemon);
            // <facility daemon 3 * 8 + severity 4>VERSION TIME HOST APP PID MSGID SD MSG
            let words: Vec<&str> = text.splitn(8, ' ').collect();
            assert_eq!((words[0], words[3]), ("<28>1", "evercred"), "{text}");
            assert!(words[1].parse::<jiff::Timestamp>().is_ok(), "{text}");
            assert_eq!((words[4], words[6]), (std::process::id().to_string().as_str(), "-"), "{text}");
            assert_eq!(words[7], "first user=alice");
            drop(daemon);
            tracing::info!("nobody hears this");
            assert!(handle.flush(LONG));
            std::fs::remove_file(&path).unwrap();
            tracing::info!("nor this");
            assert!(handle.flush(LONG));
            let daemon = UnixDatagram::bind(&path).unwrap();
            tracing::info!("after the restart");
            assert!(receive(&daemon).ends_with(" after the restart"));
            assert_eq!(handle.lost(), 2);
            assert!(receive(&daemon).ends_with(" lines of this log were lost lost=2"));
            // A log daemon that does not read costs lines, never time.
            (0..2000).for_each(|n| tracing::info!(n, "flood"));
            assert!(handle.flush(LONG));
            assert!(handle.lost() > 2, "its queue is bounded");
        });
    }

    #[test]
    fn a_log_that_cannot_be_written_is_exit_code_44() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("link")).unwrap();
        for path in [dir.path().join("link"), dir.path().to_owned(), dir.path().join("none/log")] {
            let target = Target::File { path: path.clone(), rotation: UNBOUNDED };
            let failed = Sink::open(&target, "test").err().unwrap();
            assert_eq!(failed.exit_code(), 44);
            assert!(failed.to_string().starts_with(&format!("the log {} cannot be written: ", path.display())));
        }
    }

    #[test]
    fn targets_are_words_or_a_path() {
        assert_eq!(Target::parse("syslog", UNBOUNDED), Target::Syslog);
        assert_eq!(Target::parse("journal", UNBOUNDED), Target::Journal);
        assert_eq!(Target::parse("stderr", UNBOUNDED), Target::Stderr);
        assert_eq!(Target::parse("/l", UNBOUNDED), Target::File { path: "/l".into(), rotation: UNBOUNDED });
    }
}
