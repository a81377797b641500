//! `.evercred-index`: what the last run read, so that a start reads only files whose metadata changed since.
//!
//! Format: a line `evercred-index LAYOUT VERSION SERVICES`, 16 bytes of salt, for each user a record (u32 length, big endian,
//! then postcard of [`Stored`]), a length of zero, and 16 bytes of the SHA-256 of all that. No secret is in it, and
//! nothing is sent anywhere because of it: before an exchange the `.top` itself is read and compared.
//!
//! It is replaced by rename and not synced. One that is torn, foreign, of another version or of other services is
//! ignored, and so is one that is not ours alone: then everything is read.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
};

use nix::{
    fcntl::{OFlag, renameat},
    sys::stat::{SFlag, fstat},
    unistd::geteuid,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    Cache, Spool, SpoolError,
    dir::kind_of,
    inventory::{Entry, Known},
};
use crate::core::{
    id::UserName,
    time::{MaybeTimestamp, Timestamp},
};

const NAME: &str = ".evercred-index";
/// Of what follows the first line; another one with each change of [`Stored`].
const LAYOUT: u32 = 2;
/// No user has so many credentials that this would not do.
const MOST: usize = 1 << 24;

/// A user's directory as it was looked at last; the keys are hashes of metadata.
#[derive(Serialize, Deserialize)]
struct Stored {
    user: String,
    directory: u64,
    entries: Vec<StoredEntry>,
}

#[derive(Serialize, Deserialize)]
struct StoredEntry {
    base: String,
    top_key: u64,
    top: [u8; 16],
    refresh_ends: Option<i64>,
    use_key: u64,
    use_file: Option<(Option<i64>, Option<i64>)>,
}

impl Spool {
    /// Read what an earlier run remembered, if it looked after the same `services`. Before the first scan.
    pub fn recall(&self, services: &str) {
        // Whatever is wrong with it: it is only a shortcut.
        let recalled = self.read_index(services).ok().flatten();
        if let Some((salt, known)) = recalled {
            self.set_salt(salt);
            *self.cache() = known;
        }
    }

    /// Write down what is known, for the next run.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn remember(&self, services: &str) -> Result<(), SpoolError> {
        let temporary = self.temporary_name();
        self.write_index(&temporary, services).map_err(|source| {
            // What stays behind is removed at the next start.
            self.remove(&temporary).err().unwrap_or_else(|| SpoolError::Io {
                path: self.path.join(NAME),
                doing: "write it",
                source,
            })
        })
    }

    fn write_index(&self, temporary: &str, services: &str) -> io::Result<()> {
        let file = File::from(self.top.create(temporary)?);
        let mut out = Hashed { inner: BufWriter::new(file), hash: Sha256::new() };
        out.write_all(head(services).as_bytes())?;
        out.write_all(&self.salt())?;
        for (user, known) in &self.cache().users {
            let entries: Option<Vec<_>> = known.entries.iter().map(stored).collect();
            // A bad file may become good without a change of its own.
            let Some(entries) = entries.filter(|_| known.directory != 0) else { continue };
            let record = Stored { user: user.as_str().to_owned(), directory: known.directory, entries };
            let record = postcard::to_stdvec(&record).map_err(io::Error::other)?;
            out.write_all(&u32::try_from(record.len()).map_err(io::Error::other)?.to_be_bytes())?;
            out.write_all(&record)?;
        }
        out.write_all(&[0; 4])?;
        let digest = out.digest();
        out.inner.write_all(&digest)?;
        out.inner.flush()?;
        renameat(&*self.top, temporary, &*self.top, NAME)?;
        Ok(())
    }

    fn read_index(&self, services: &str) -> io::Result<Option<([u8; 16], Cache)>> {
        let fd = self.top.beneath(NAME, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
        let stat = fstat(&fd)?;
        let ours = kind_of(&stat) == SFlag::S_IFREG && stat.st_uid == geteuid().as_raw();
        if !ours || stat.st_nlink != 1 || stat.st_mode & 0o077 != 0 {
            return Ok(None);
        }
        let mut from = Hashed { inner: BufReader::new(File::from(fd)), hash: Sha256::new() };
        let expected = head(services);
        let mut head = vec![0; expected.len()];
        from.read_exact(&mut head)?;
        if head != expected.as_bytes() {
            return Ok(None);
        }
        let mut salt = [0; 16];
        from.read_exact(&mut salt)?;
        let mut cache = Cache::default();
        let mut record = Vec::new();
        loop {
            let mut length = [0; 4];
            from.read_exact(&mut length)?;
            let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
            match length {
                0 => break,
                MOST.. => return Ok(None),
                _ => record.resize(length, 0),
            }
            from.read_exact(&mut record)?;
            let (stored, rest): (Stored, _) = postcard::take_from_bytes(&record).map_err(io::Error::other)?;
            if !rest.is_empty() {
                return Ok(None);
            }
            let user = UserName::parse(&stored.user).map_err(io::Error::other)?;
            let entries = stored.entries.iter().map(|stored| entry(&mut cache, stored)).collect();
            cache.users.insert(user, Known { directory: stored.directory, entries });
        }
        let expected = from.digest();
        let mut digest = [0; 16];
        from.inner.read_exact(&mut digest)?;
        Ok((digest == expected).then_some((salt, cache)))
    }
}

fn head(services: &str) -> String {
    format!("evercred-index {LAYOUT} {} {services}\n", env!("CARGO_PKG_VERSION"))
}

fn stored(entry: &Entry) -> Option<StoredEntry> {
    let millis = |at: MaybeTimestamp| at.get().map(|at| at.0);
    Some(StoredEntry {
        base: entry.base.to_string(),
        top_key: entry.top_key,
        top: entry.top.ok()?,
        refresh_ends: millis(entry.refresh_ends),
        use_key: entry.use_key,
        use_file: entry.use_good.then(|| (millis(entry.use_issued), millis(entry.use_expiry))),
    })
}

fn entry(cache: &mut Cache, stored: &StoredEntry) -> Entry {
    let at = |millis: Option<i64>| millis.map(Timestamp).into();
    let (issued, expiry) = stored.use_file.unwrap_or_default();
    Entry {
        base: cache.base(&stored.base),
        top_key: stored.top_key,
        top: Ok(stored.top),
        refresh_ends: at(stored.refresh_ends),
        use_key: stored.use_key,
        use_good: stored.use_file.is_some(),
        use_issued: at(issued),
        use_expiry: at(expiry),
    }
}

/// Hashes what passes through.
struct Hashed<T> {
    inner: T,
    hash: Sha256,
}

impl<T> Hashed<T> {
    fn digest(&self) -> [u8; 16] {
        let mut first = [0; 16];
        for (to, from) in first.iter_mut().zip(self.hash.clone().finalize()) {
            *to = from;
        }
        first
    }
}

impl<T: Write> Hashed<T> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<T: Read> Hashed<T> {
    fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(bytes)?;
        self.hash.update(bytes);
        Ok(())
    }
}
