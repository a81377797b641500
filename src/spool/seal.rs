//! `.top` files that are Fernet text: opened with a key of the admin, and sealed again when the token was rotated.
//! A text that does not open is left alone; when it was written does not matter.

use std::{fmt, io::Read, os::unix::fs::MetadataExt, path::Path, path::PathBuf};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use fernet::Fernet;
use nix::fcntl::OFlag;
use thiserror::Error;
use zeroize::Zeroizing;

/// A Fernet key cannot be used.
#[derive(Debug, Error)]
pub enum SealError {
    /// Not readable.
    #[error("{}: cannot read the Fernet key: {source}; check the path, owner and mode", path.display())]
    Io {
        /// The key file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others may read or write it.
    #[error("{}: the Fernet key is not a file of root or ours, closed to others; chown root and chmod 600 it", path.display())]
    Open {
        /// The key file.
        path: PathBuf,
    },
    /// Not a key.
    #[error("{}: not a Fernet key (44 characters of URL-safe base64); make one with Fernet.generate_key()", path.display())]
    NotAKey {
        /// The key file.
        path: PathBuf,
    },
}

/// A Fernet key.
#[derive(Clone)]
pub struct Seal(Fernet);

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(…)")
    }
}

impl Seal {
    /// Read a key file: owner root or ours, mode & 077 = 0.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn from_key_file(path: &Path) -> Result<Self, SealError> {
        use std::os::unix::fs::OpenOptionsExt;
        let io = |source| SealError::Io { path: path.to_owned(), source };
        let flags = (OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits();
        let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        let owned = meta.uid() == 0 || meta.uid() == nix::unistd::geteuid().as_raw();
        if !meta.is_file() || !owned || meta.mode() & 0o077 != 0 {
            return Err(SealError::Open { path: path.to_owned() });
        }
        let mut text = Zeroizing::new(String::with_capacity(128));
        file.take(100).read_to_string(&mut text).map_err(io)?;
        Self::from_key(text.trim()).ok_or_else(|| SealError::NotAKey { path: path.to_owned() })
    }

    /// From the key itself.
    #[must_use]
    pub fn from_key(key: &str) -> Option<Self> {
        Fernet::new(key).map(Self)
    }

    /// Whether the bytes have the form of Fernet text.
    #[must_use]
    pub fn looks_sealed(bytes: &[u8]) -> bool {
        timestamp(bytes).is_some()
    }

    /// The text inside; none if this key does not open it.
    #[must_use]
    pub fn open(&self, bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let text = std::str::from_utf8(bytes).ok()?.trim();
        // The crate refuses texts from the future and adds 60 to the clock that it is given: give it the text's own.
        let now = timestamp(bytes)?.min(u64::MAX - 60);
        self.0.decrypt_at_time(text, None, now).ok().map(Zeroizing::new)
    }

    /// The time on a Fernet text, seconds since 1970; unverified.
    #[must_use]
    pub fn time(bytes: &[u8]) -> Option<u64> {
        timestamp(bytes)
    }

    /// Fernet text of `bytes` with this time on it.
    #[must_use]
    pub fn seal_at(&self, bytes: &[u8], secs: u64) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.encrypt_at_time(bytes, secs).into_bytes())
    }

    /// A new key.
    #[must_use]
    pub fn generate_key() -> Zeroizing<String> {
        Zeroizing::new(Fernet::generate_key())
    }

    /// Fernet text of `bytes`.
    #[must_use]
    pub fn seal(&self, bytes: &[u8]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.encrypt(bytes).into_bytes())
    }
}

/// The time in a Fernet text: version 0x80, 8 bytes of time, 16 of IV, blocks of 16, 32 of HMAC.
fn timestamp(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?.trim();
    if !text.starts_with('g') {
        return None;
    }
    let raw = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
    let (version, rest) = raw.split_first()?;
    let form = *version == 0x80 && raw.len() >= 73 && (raw.len() - 57) % 16 == 0;
    form.then(|| rest.first_chunk::<8>().map(|time| u64::from_be_bytes(*time))).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_what_it_sealed_whatever_time_is_on_it() {
        let key = Fernet::generate_key();
        let (seal, fernet) = (Seal::from_key(&key).unwrap(), Fernet::new(&key).unwrap());
        for time in [0, 1, 4_000_000_000, u64::MAX - 60, u64::MAX - 1, u64::MAX] {
            let text = fernet.encrypt_at_time(b"secret", time) + "\n";
            assert!(Seal::looks_sealed(text.as_bytes()));
            assert_eq!(&**seal.open(text.as_bytes()).unwrap(), b"secret", "{time}");
        }
        assert_eq!(&**seal.open(&seal.seal(b"x")).unwrap(), b"x");
    }

    #[test]
    fn a_wrong_key_or_another_text_opens_nothing() {
        let seal = Seal::from_key(&Fernet::generate_key()).unwrap();
        let other = Seal::from_key(&Fernet::generate_key()).unwrap();
        assert!(seal.open(&other.seal(b"x")).is_none());
        for text in ["", "gAAAA", "abc", "eyJh.eyJ.sig"] {
            assert!(!Seal::looks_sealed(text.as_bytes()) && seal.open(text.as_bytes()).is_none());
        }
    }

    #[test]
    fn a_key_open_to_others_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, Fernet::generate_key() + "\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(matches!(Seal::from_key_file(&path), Err(SealError::Open { .. })));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        Seal::from_key_file(&path).unwrap();
        std::fs::write(&path, "short").unwrap();
        assert!(matches!(Seal::from_key_file(&path), Err(SealError::NotAKey { .. })));
    }
}
