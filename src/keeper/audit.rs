//! The audit log: one line of JSON for each decision, appended; never a secret.
//!
//! `{"time":…,"event":…,"result":…,"by":…,"user":…,"service":…,"provider":…,"issuer":…,…}`; members are added, never
//! renamed, and one that does not apply is left out. Of a token only the SHA-256 of its `jti` is told (hexadecimal).
//! `docs/operations.md` says what each event is; nothing is minted here, so there is no event for that.
//! A thread of its own writes, so that a slow or full disk delays nothing: what its queue does not hold is lost and
//! counted, and once the disk takes lines again, one line (`gap`) says how many. The file is opened anew when another
//! one lies at its path (rotation); within a second it is also flushed to the disk. A crash loses at most that second.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

use nix::libc;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{
    config::settings::Provider,
    core::{
        id::CredentialId,
        jwt,
        time::{Timestamp, rfc3339},
    },
    error::Kind,
};

/// Decisions that wait for the disk.
const QUEUE: usize = 8192;
/// Lines written at once.
const BATCH: usize = 512;
/// How long a line waits to be flushed, and how long a disk that refuses is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// A first access token for a stored credential.
    Issued,
    /// A further one.
    Renewed,
    /// The issuer refused.
    Refused,
    /// Refused for good: nothing is asked until the credential is stored again.
    Parked,
    /// What was stored cannot be used.
    Unusable,
    /// The credential left the directory.
    Forgotten,
    /// A generation was sent to a site.
    Replicated,
    /// What was replicated was taken away from a site, or could not be.
    Withdrawn,
    /// A refresh token was given back to its issuer.
    Revoked,
    /// A user approved on the web page; the refresh token was stored, or could not be.
    Approved,
    /// An admin took a credential over from another credential monitor.
    Imported,
    /// An admin's command.
    Admin,
    /// A person was told.
    Notified,
    /// Lines were lost here.
    Gap,
}

/// One line.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// When.
    #[serde(with = "rfc3339")]
    pub time: Timestamp,
    /// What.
    pub event: Decision,
    /// `ok`, or what went wrong.
    pub result: &'static str,
    /// Who decided: `evercred`, `uid N` of who gave the command, or `user NAME` of who approved on the page.
    pub by: String,
    /// Whose credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Which service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Which handle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handle: Option<String>,
    /// Name of the provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The issuer's URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Name of the remote site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// When the access token ends.
    #[serde(with = "rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// SHA-256 of the `jti` of the access token, or of the refresh token that is revoked, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jti_sha256: Option<String>,
    /// More, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Entry {
    /// A decision of the daemon's own that went well.
    #[must_use]
    pub fn new(time: Timestamp, event: Decision) -> Self {
        Self {
            time,
            event,
            result: "ok",
            by: "evercred".into(),
            user: None,
            service: None,
            handle: None,
            provider: None,
            issuer: None,
            site: None,
            expires: None,
            jti_sha256: None,
            detail: None,
        }
    }

    /// About this credential.
    #[must_use]
    pub fn of(mut self, id: &CredentialId) -> Self {
        self.user = Some(id.user.to_string());
        self.service = Some(id.service.to_string());
        self.handle = id.handle.as_ref().map(ToString::to_string);
        self
    }

    /// With who is asked for it.
    #[must_use]
    pub fn from(mut self, provider: Option<&Provider>) -> Self {
        self.provider = provider.map(|provider| provider.name.clone());
        self.issuer = provider.map(|provider| provider.asked().to_owned()).filter(|issuer| !issuer.is_empty());
        self
    }

    /// An admin's command, or what came of one.
    #[must_use]
    pub fn ordered_by(mut self, uid: u32) -> Self {
        self.by = format!("uid {uid}");
        self
    }

    /// It did not go well.
    #[must_use]
    pub fn because(mut self, kind: Kind) -> Self {
        self.result = kind.label();
        self
    }

    /// In words.
    #[must_use]
    pub fn saying(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into()).filter(|text: &String| !text.is_empty());
        self
    }
}

/// SHA-256 of the token's `jti`, hexadecimal; none if it has none.
#[must_use]
pub fn jti_sha256(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        jti: String,
    }
    let Claims { jti } = jwt::claims(token)?;
    Some(format!("{:x}", Sha256::digest(jti.as_bytes())))
}

/// The audit log cannot be opened.
#[derive(Debug, Error)]
#[error("the audit log {} cannot be written: {source}", path.display())]
pub struct AuditError {
    path: PathBuf,
    source: io::Error,
}

enum Order {
    Write(Box<Entry>),
    Flush(SyncSender<()>),
}

/// Takes decisions; clones share the one log.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    orders: Option<SyncSender<Order>>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    lost: AtomicU64,
}

impl Audit {
    /// Append to `path`; without one, decisions go nowhere.
    ///
    /// # Errors
    /// It cannot be opened now. What happens later costs lines, and is counted.
    pub fn start(path: Option<&Path>) -> Result<Self, AuditError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let failed = |source| AuditError { path: path.to_owned(), source };
        let file = open(path).map_err(failed)?;
        let (orders, queue) = sync_channel(QUEUE);
        let counts = Arc::new(Counts::default());
        let mut book = Book {
            path: path.to_owned(),
            file,
            counts: Arc::clone(&counts),
            told_lost: 0,
            failing: false,
            synced: Instant::now(),
            dirty: false,
        };
        std::thread::Builder::new().name("audit".into()).spawn(move || book.keep(&queue)).map_err(failed)?;
        Ok(Self { orders: Some(orders), counts })
    }

    /// Whether there is an audit log at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.orders.is_some()
    }

    /// Write a line, soon.
    pub fn record(&self, entry: Entry) {
        let Some(orders) = &self.orders else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            orders.try_send(Order::Write(Box::new(entry)))
        {
            self.counts.lost.fetch_add(1, Relaxed);
        }
    }

    /// Wait until what was recorded is on the disk, at most this long.
    pub fn flush(&self, patience: Duration) {
        let Some(orders) = &self.orders else { return };
        let end = Instant::now() + patience;
        let (done, waiting) = sync_channel(1);
        let mut order = Order::Flush(done);
        while let Err(TrySendError::Full(back)) = orders.try_send(order) {
            if Instant::now() >= end {
                return;
            }
            order = back;
            std::thread::sleep(Duration::from_millis(2));
        }
        waiting.recv_timeout(end.saturating_duration_since(Instant::now())).ok();
    }

    /// Lines written and lost.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.counts.written.load(Relaxed), self.counts.lost.load(Relaxed))
    }
}

/// The audit log that is open now. However the run ends, what was recorded is waited for.
#[derive(Debug)]
pub struct Open(Audit);

impl Open {
    /// How long the last lines may take.
    const PATIENCE: Duration = Duration::from_millis(300);

    /// This one.
    #[must_use]
    pub fn new(audit: Audit) -> Self {
        Self(audit)
    }

    /// A handle of it.
    #[must_use]
    pub fn audit(&self) -> &Audit {
        &self.0
    }

    /// From now on this one.
    pub fn replace(&mut self, audit: Audit) {
        // The one before ends here, as at the end of the run.
        drop(std::mem::replace(self, Self(audit)));
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.flush(Self::PATIENCE);
    }
}

/// The writer's side.
struct Book {
    path: PathBuf,
    file: File,
    counts: Arc<Counts>,
    told_lost: u64,
    failing: bool,
    synced: Instant,
    dirty: bool,
}

impl Book {
    fn keep(&mut self, queue: &Receiver<Order>) {
        loop {
            let order = if self.dirty {
                match queue.recv_timeout(PAUSE.saturating_sub(self.synced.elapsed())) {
                    Err(RecvTimeoutError::Timeout) => {
                        self.sync();
                        continue;
                    }
                    other => other.ok(),
                }
            } else {
                queue.recv().ok()
            };
            // All handles are gone: so is the daemon.
            let Some(mut order) = order else { return };
            let (mut lines, mut text, mut flushed) = (0_u64, Vec::new(), None);
            loop {
                match order {
                    Order::Write(entry) => lines += u64::from(append(&mut text, &entry)),
                    Order::Flush(done) => {
                        flushed = Some(done);
                        break;
                    }
                }
                if text.len() > BATCH * 512 {
                    break;
                }
                match queue.try_recv() {
                    Ok(next) => order = next,
                    Err(_) => break,
                }
            }
            self.gap(&mut text);
            let count = if self.write(&text, flushed.is_some()) { &self.counts.written } else { &self.counts.lost };
            count.fetch_add(lines, Relaxed);
            if let Some(done) = flushed {
                self.sync();
                done.send(()).ok();
            }
        }
    }

    /// Tell in the log itself how much of it is missing.
    fn gap(&mut self, text: &mut Vec<u8>) {
        let lost = self.counts.lost.load(Relaxed);
        if lost > self.told_lost {
            let entry = Entry::new(now(), Decision::Gap).saying(format!("{} lines lost", lost - self.told_lost));
            append(text, &entry);
            self.told_lost = lost;
        }
    }

    /// All of it, however long the disk refuses; meanwhile the queue is what is kept. `hurry`: try once, and say
    /// whether it went well.
    fn write(&mut self, text: &[u8], hurry: bool) -> bool {
        let mut rest = text;
        while !rest.is_empty() {
            let written = self.same_file().and_then(|same| {
                if !same {
                    // What a full disk cut off in the file that was rotated away starts again in the new one.
                    let line = text.get(..text.len() - rest.len()).unwrap_or_default();
                    let begun = line.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                    rest = text.get(begun..).unwrap_or_default();
                    self.file = open(&self.path)?;
                }
                self.file.write(rest)
            });
            match written {
                Ok(length) if length > 0 => {
                    rest = rest.get(length..).unwrap_or_default();
                    self.dirty = true;
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(path = %self.path.display(), "the audit log is written again");
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => {
                    if !std::mem::replace(&mut self.failing, true) {
                        let error = other.err().map_or_else(|| "nothing was taken".to_owned(), |e| e.to_string());
                        tracing::error!(path = %self.path.display(), error, "the audit log cannot be written; trying on");
                    }
                    if hurry {
                        return false;
                    }
                    std::thread::sleep(PAUSE);
                }
            }
        }
        true
    }

    /// Whether the open file still is what lies at the path.
    fn same_file(&self) -> io::Result<bool> {
        let ours = self.file.metadata()?;
        match std::fs::symlink_metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn sync(&mut self) {
        // Refused by what is no file (a device in a test), or by a disk whose next write fails, too.
        self.file.sync_data().ok();
        self.synced = Instant::now();
        self.dirty = false;
    }
}

fn append(text: &mut Vec<u8>, entry: &Entry) -> bool {
    let begun = text.len();
    if serde_json::to_writer(&mut *text, entry).is_err() {
        text.truncate(begun);
        return false;
    }
    text.push(b'\n');
    true
}

/// Never through a symbolic link; readable by owner and group.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NOCTTY | libc::O_NONBLOCK)
        .mode(0o640)
        .open(path)
}

fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::UserName;

    fn entry(n: i64) -> Entry {
        let id = CredentialId::from_base(UserName::parse("alice").unwrap(), "grid_x").unwrap();
        Entry::new(Timestamp::from_secs(n), Decision::Renewed).of(&id)
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_decision_is_one_line_with_who_what_when_and_result() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let audit = Audit::start(Some(&path)).unwrap();
        audit.record(entry(1_700_000_000));
        audit.record(Entry { event: Decision::Refused, ..entry(1_700_000_001) }.because(Kind::Revoked).saying("words"));
        audit.flush(Duration::from_secs(5));
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = "{\"time\":\"2023-11-14T22:13:20Z\",\"event\":\"renewed\",\"result\":\"ok\",\"by\":\"evercred\",\
                        \"user\":\"alice\",\"service\":\"grid\",\"handle\":\"x\"}\n\
                        {\"time\":\"2023-11-14T22:13:21Z\",\"event\":\"refused\",\"result\":\"revoked\",\"by\":\"evercred\",\
                        \"user\":\"alice\",\"service\":\"grid\",\"handle\":\"x\",\"detail\":\"words\"}\n";
        assert_eq!(text, expected);
        assert_eq!(audit.counts(), (2, 0));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777 & !0o640, 0);
    }

    #[test]
    fn however_the_run_ends_the_last_lines_are_in_the_log_that_is_open_and_in_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("one"), dir.path().join("two")];
        let mut open = Open::new(Audit::start(Some(&paths[0])).unwrap());
        let record = |open: &Open| (0..5000).for_each(|n| open.audit().record(entry(n)));
        record(&open);
        open.replace(Audit::start(Some(&paths[1])).unwrap());
        assert_eq!(lines(&paths[0]).len(), 5000);
        record(&open);
        drop(open);
        assert_eq!(lines(&paths[1]).len(), 5000);
    }

    #[test]
    fn a_rotated_audit_log_goes_on_in_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("audit.jsonl"), dir.path().join("audit.jsonl.1"));
        std::fs::write(&path, "{}\n").unwrap();
        let audit = Audit::start(Some(&path)).unwrap();
        audit.record(entry(1));
        audit.flush(Duration::from_secs(5));
        std::fs::rename(&path, &moved).unwrap();
        audit.record(entry(2));
        audit.flush(Duration::from_secs(5));
        assert_eq!((lines(&moved).len(), lines(&path).len()), (2, 1), "what was there is kept");
    }

    #[test]
    fn a_full_disk_delays_nobody_and_what_is_lost_is_counted() {
        let audit = Audit::start(Some(Path::new("/dev/full"))).unwrap();
        let began = Instant::now();
        for n in 0..20_000 {
            audit.record(entry(n));
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        let (written, lost) = audit.counts();
        assert_eq!(written, 0);
        assert!(lost >= 20_000 - 2 * u64::try_from(QUEUE).unwrap(), "{lost}");
    }

    #[test]
    fn only_a_hash_of_the_jti_is_told() {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let token = format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(r#"{"jti":"abc"}"#));
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(jti_sha256(&token).as_deref(), Some(expected));
        assert_eq!(jti_sha256("opaque"), None);
    }
}
