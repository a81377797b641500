//! How a file appears over SFTP, as [`super::place`] does it on a disk of ours: whole, with its mode, and nothing older
//! over anything newer. SFTP has no locks, so one is made of a file that is created exclusively.
//!
//! | beside `NAME` | what it is |
//! |---|---|
//! | `.NAME.seq` | the generation last written, in decimal |
//! | `.NAME.lock` | for the time of one delivery: its ID |
//! | `.NAME.ID`, `.NAME.ID.seq` | the new file and the new sequence, before each is renamed over |
//!
//! In this order: lock; look at the sequence; write the file (0600 from its creation, then its mode, sync) and the new
//! sequence; see that the lock is still ours; rename the file; rename the sequence; unlock. A delivery that was cut off leaves its lock. Whoever finds
//! one that is abandoned (it is of a delivery of ours that is over, perhaps of an earlier process, or has stood unchanged for [`ABANDONED`])
//! first takes that delivery's file away, so that even a rename that is still on its way moves nothing; if the file was
//! renamed already, the sequence is renamed after it. Then the lock goes, and the delivery begins anew.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::io::{AsyncRead, AsyncWrite};

use super::sftp::{Open, Sftp, SftpError};
use crate::{
    core::delivery::{Delivered, Undelivered},
    error::Kind,
};

/// How long another delivery of the same file may hold us up; then we try again later.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at its lock.
const LOOK: Duration = Duration::from_millis(50);
/// A lock of somebody else that has not changed for this long belongs to nobody.
pub const ABANDONED: Duration = Duration::from_secs(120);
/// So does one without an ID, which is written right after it was made.
const UNWRITTEN: Duration = Duration::from_secs(10);

/// A site's deliveries, and the locks of others that they have met.
#[derive(Debug)]
pub struct Locks {
    /// What all our IDs begin with, also after a restart: what an earlier process left is ours.
    ours: String,
    count: AtomicU64,
    under_way: Mutex<HashSet<String>>,
    met: Mutex<HashMap<String, (String, Instant)>>,
}

impl Default for Locks {
    /// Those of a sender that nobody knows yet.
    fn default() -> Self {
        Self::of(format!("{:016x}", random()))
    }
}

fn random() -> u64 {
    let mut number = [0; 8];
    // Without randomness the time tells senders apart.
    match aws_lc_rs::rand::fill(&mut number) {
        Ok(()) => u64::from_be_bytes(number),
        Err(_) => super::receive::now(),
    }
}

/// A delivery that is under way; over when it is dropped.
struct Holder<'a> {
    locks: &'a Locks,
    id: String,
}

impl Drop for Holder<'_> {
    fn drop(&mut self) {
        self.locks.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Locks {
    /// Those of a sender that was called so before.
    #[must_use]
    pub fn of(ours: String) -> Self {
        // Not from the start again: an ID of an earlier process must not come twice.
        Self { ours, count: AtomicU64::new(random()), under_way: Mutex::default(), met: Mutex::default() }
    }

    /// What they are called, for the next process.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.ours
    }

    fn begin(&self, generation: u64) -> Holder<'_> {
        let id = format!("{}-{generation:x}-{:x}", self.ours, self.count.fetch_add(1, Ordering::Relaxed));
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        Holder { locks: self, id }
    }

    /// Whether the delivery with that lock is over, as far as anybody can tell.
    fn is_abandoned(&self, lock: &str, id: &str) -> bool {
        if id.split('-').next() == Some(self.ours.as_str()) {
            return !self.under_way.lock().unwrap_or_else(PoisonError::into_inner).contains(id);
        }
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        met.retain(|_, (_, since)| since.elapsed() < 10 * ABANDONED);
        let (known, since) = met.entry(lock.to_owned()).or_insert_with(|| (id.to_owned(), Instant::now()));
        if known != id {
            (*known, *since) = (id.to_owned(), Instant::now());
        }
        since.elapsed() >= if id.is_empty() { UNWRITTEN } else { ABANDONED }
    }
}

/// A file and the names beside it.
struct File<'a> {
    directory: &'a str,
    name: &'a str,
}

impl File<'_> {
    fn place(&self) -> String {
        format!("{}/{}", self.directory, self.name)
    }

    fn beside(&self, what: &str) -> String {
        format!("{}/.{}.{what}", self.directory, self.name)
    }
}

/// Put a file; the outer error broke the session, or is the server's word about the file.
///
/// # Errors
/// [`SftpError`], and [`Undelivered`] where the reason is known better.
pub async fn put<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    sftp: &mut Sftp<R, W>,
    locks: &Locks,
    (directory, name): (&str, &str),
    mode: u32,
    generation: u64,
    bytes: &[u8],
) -> Result<Result<Delivered, Undelivered>, SftpError> {
    let file = File { directory, name };
    let holder = locks.begin(generation);
    if let Err(error) = lock(sftp, &file, &holder).await? {
        return Ok(Err(error));
    }
    let end = write(sftp, &file, &holder.id, mode, generation, bytes).await;
    if !matches!(end, Err(SftpError::Broken(_) | SftpError::Protocol(_))) {
        unlock(sftp, &file, &holder.id).await?;
    }
    end
}

/// Take our lock away; not another's, if we were held up for long enough to be taken for dead.
async fn unlock<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    sftp: &mut Sftp<R, W>,
    file: &File<'_>,
    id: &str,
) -> Result<(), SftpError> {
    let lock = file.beside("lock");
    if text(sftp, &lock).await?.as_deref() != Some(id) {
        return Ok(());
    }
    match sftp.remove(&lock).await {
        Err(SftpError::Missing) => Ok(()),
        end => end,
    }
}

/// Take the lock; the inner error says why it is not to be had.
async fn lock<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    sftp: &mut Sftp<R, W>,
    file: &File<'_>,
    holder: &Holder<'_>,
) -> Result<Result<(), Undelivered>, SftpError> {
    let path = file.beside("lock");
    let until = Instant::now() + PATIENCE;
    let mut made = false;
    loop {
        match sftp.open(&path, Open::New, 0o600).await {
            Ok(handle) => {
                let written = sftp.write(&handle, holder.id.as_bytes()).await;
                let Err(error) = sftp.close(&handle).await.and(written) else { return Ok(Ok(())) };
                return failed(sftp, file, &[&path], error).await;
            }
            Err(SftpError::Missing) if !made => {
                make_directories(sftp, file.directory).await?;
                made = true;
                continue;
            }
            // It is there already, or the server has another reason, which it does not tell apart.
            Err(SftpError::Status { code, words }) => match text(sftp, &path).await? {
                Some(id) if holder.locks.is_abandoned(&path, &id) => {
                    end_abandoned(sftp, file, &id, &holder.id).await?;
                    continue;
                }
                None if sftp.is_full(file.directory).await? == Some(true) => return Ok(Err(full(file))),
                None if Instant::now() >= until => return Err(SftpError::Status { code, words }),
                _ => {}
            },
            Err(error) => return Err(error),
        }
        if Instant::now() >= until {
            return Ok(Err(Undelivered::new(
                Kind::SiteError,
                format!("another delivery of {} is at it", file.place()),
            )));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Make sure that a delivery that was cut off changes nothing more, then take its lock away.
async fn end_abandoned<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    sftp: &mut Sftp<R, W>,
    file: &File<'_>,
    id: &str,
    ours: &str,
) -> Result<(), SftpError> {
    let plain = !id.is_empty() && id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if plain {
        let sequence = file.beside(&format!("{id}.seq"));
        let end = match sftp.remove(&file.beside(id)).await {
            Ok(()) => sftp.remove(&sequence).await,
            Err(SftpError::Missing) => sftp.rename(&sequence, &file.beside("seq")).await,
            Err(error) => Err(error),
        };
        match end {
            Ok(()) | Err(SftpError::Missing) => {}
            Err(error) => return Err(error),
        }
    }
    // Two may find it abandoned at once: who takes away another one than that puts it back.
    let (lock, aside) = (file.beside("lock"), file.beside(&format!("{ours}.lock")));
    match sftp.rename(&lock, &aside).await {
        Ok(()) => {}
        Err(SftpError::Missing) => return Ok(()),
        Err(error) => return Err(error),
    }
    if text(sftp, &aside).await?.as_deref() != Some(id) {
        // It fails if there is one again.
        match sftp.rename_new(&aside, &lock).await {
            Ok(()) => return Ok(()),
            Err(SftpError::Status { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    sftp.remove(&aside).await
}

/// Under the lock.
async fn write<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    sftp: &mut Sftp<R, W>,
    file: &File<'_>,
    id: &str,
    mode: u32,
    generation: u64,
    bytes: &[u8],
) -> Result<Result<Delivered, Undelivered>, SftpError> {
    let sequence = file.beside("seq");
    // Something else in it is no sequence of ours, and guards nothing.
    let have = text(sftp, &sequence).await?.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    if have >= generation {
        let newer = have > generation;
        return Ok(Ok(if newer { Delivered::Superseded { have } } else { Delivered::AlreadyThere }));
    }
    let (new, new_sequence) = (file.beside(id), file.beside(&format!("{id}.seq")));
    let in_place = async |sftp: &mut Sftp<R, W>| {
        fill(sftp, &new, mode, bytes).await?;
        fill(sftp, &new_sequence, 0o600, generation.to_string().as_bytes()).await?;
        // Whoever is held up for long enough may have been taken for dead.
        if text(sftp, &file.beside("lock")).await?.as_deref() != Some(id) {
            return Err(SftpError::Status { code: 4, words: "another delivery has taken the lock".into() });
        }
        sftp.rename(&new, &file.place()).await
    };
    if let Err(error) = in_place(sftp).await {
        return failed(sftp, file, &[&new, &new_sequence], error).await.map(|end| end.map(|()| Delivered::Written));
    }
    sftp.rename(&new_sequence, &sequence).await?;
    Ok(Ok(Delivered::Written))
}

async fn fill<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    sftp: &mut Sftp<R, W>,
    path: &str,
    mode: u32,
    bytes: &[u8],
) -> Result<(), SftpError> {
    let handle = sftp.open(path, Open::New, 0o600).await?;
    let content = async |sftp: &mut Sftp<R, W>| {
        sftp.set_mode(&handle, mode).await?;
        sftp.write(&handle, bytes).await?;
        sftp.sync(&handle).await
    };
    let written = content(sftp).await;
    sftp.close(&handle).await.and(written)
}

/// What an error of the server means, after what is half done was taken away.
async fn failed<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    sftp: &mut Sftp<R, W>,
    file: &File<'_>,
    half_done: &[&str],
    error: SftpError,
) -> Result<Result<(), Undelivered>, SftpError> {
    if matches!(error, SftpError::Broken(_) | SftpError::Protocol(_)) {
        return Err(error);
    }
    let no_room = sftp.is_full(file.directory).await? == Some(true);
    for path in half_done {
        // It may not even have come to be.
        sftp.remove(path).await.ok();
    }
    if no_room { Ok(Err(full(file))) } else { Err(error) }
}

fn full(file: &File<'_>) -> Undelivered {
    Undelivered::new(Kind::SiteFull, format!("{} has no room", file.directory))
}

/// The text of a small file; `None`: there is none.
async fn text<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    sftp: &mut Sftp<R, W>,
    path: &str,
) -> Result<Option<String>, SftpError> {
    let handle = match sftp.open(path, Open::Read, 0).await {
        Err(SftpError::Missing) => return Ok(None),
        other => other?,
    };
    let bytes = sftp.read(&handle, 128).await;
    sftp.close(&handle).await?;
    Ok(Some(String::from_utf8_lossy(&bytes?).into_owned()))
}

/// Those of the path that are missing, for their owner alone.
async fn make_directories<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    sftp: &mut Sftp<R, W>,
    directory: &str,
) -> Result<(), SftpError> {
    let mut path = String::new();
    for part in directory.split('/').filter(|part| !part.is_empty()) {
        path.push('/');
        path.push_str(part);
        match sftp.make_directory(&path).await {
            // Most are there already, which the server calls a failure; what is really wrong shows at the file.
            Ok(()) | Err(SftpError::Status { .. } | SftpError::Denied) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_of_ours_is_abandoned_when_its_delivery_is_over_or_from_before_a_restart_and_one_of_others_is_not_yet() {
        let locks = Locks::default();
        let holder = locks.begin(7);
        let id = holder.id.clone();
        assert!(!locks.is_abandoned("/a/.b.lock", &id));
        drop(holder);
        assert!(locks.is_abandoned("/a/.b.lock", &id));
        let after_restart = Locks::of(locks.name().to_owned());
        assert!(after_restart.is_abandoned("/a/.b.lock", &id));
        assert_ne!(after_restart.begin(7).id, id, "the same delivery, and another lock");
        let other = Locks::default();
        assert!(!other.is_abandoned("/a/.b.lock", &id) && !other.is_abandoned("/a/.b.lock", ""));
    }
}
