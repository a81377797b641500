//! `web_approval_tls_cert` and `web_approval_tls_key`: how the page for approvals shows who it is.
//!
//! The keeper reads and judges both files when it reads the configuration, and hands what is in them to the courier,
//! which may read neither: the key is root's. A new pair in their place counts as a change of the configuration, and
//! [`TlsFiles::seen`] shows it to whoever looks.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, pem::PemObject},
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    ca_file,
    input::{Wrong, wrong},
    secret_file,
};

/// Which files they were.
pub type Stamps = Vec<Option<(u64, u64, i64, i64)>>;

/// Certificate chain and key, as PEM. Empty where secrets are left alone, by a program of a user.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsFiles {
    paths: [PathBuf; 2],
    #[serde(skip)]
    read: Stamps,
    chain: Arc<[u8]>,
    key: Arc<Zeroizing<String>>,
}

impl fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsFiles").finish_non_exhaustive()
    }
}

impl TlsFiles {
    /// Read and judge both.
    ///
    /// # Errors
    /// One cannot be read or used, or they do not belong together.
    pub(super) fn read(certificate: &Path, key: &Path) -> Result<Self, Wrong> {
        let paths = [certificate.to_owned(), key.to_owned()];
        // What comes while they are read is seen later.
        let read = stamps(&paths);
        let chain = ca_file::read(certificate)?;
        ca_file::parse(certificate, &chain)?;
        let files = Self { paths, read, chain: chain.into(), key: Arc::new(secret_file::read(key)?) };
        files.server().map_err(|why| match why {
            Unfit::Key => wrong(
                format!("{} holds no private key", key.display()),
                "name the key of the certificate, as PEM (-----BEGIN PRIVATE KEY-----) and without a passphrase",
            ),
            Unfit::Pair(rustls::Error::InconsistentKeys(_)) => wrong(
                format!("{} is not the key of the certificate in {}", key.display(), certificate.display()),
                "name the two files that were made together, the host's own certificate first in its file",
            ),
            Unfit::Pair(error) => {
                wrong(format!("{} cannot be used: {error}", certificate.display()), "replace certificate and key")
            }
        })?;
        Ok(files)
    }

    /// Which files are there now, behind symbolic links if they are some: another answer, other files.
    #[must_use]
    pub fn seen(&self) -> Stamps {
        stamps(&self.paths)
    }

    /// Which files were read.
    #[must_use]
    pub fn as_read(&self) -> Stamps {
        self.read.clone()
    }

    /// TLS 1.2 and 1.3 with this certificate, for HTTP/1.1.
    ///
    /// # Errors
    /// Which of the files cannot be used.
    pub fn server(&self) -> Result<ServerConfig, Unfit> {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|_| Unfit::Key)?;
        let chain = ca_file::parse(Path::new(""), &self.chain).unwrap_or_default();
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(Unfit::Pair)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn stamps(paths: &[PathBuf]) -> Stamps {
    let stamp = |path: &PathBuf| fs::metadata(path).ok().map(|m| (m.ino(), m.size(), m.mtime(), m.mtime_nsec()));
    paths.iter().map(stamp).collect()
}

/// What cannot be used.
#[derive(Debug)]
pub enum Unfit {
    /// There is no key.
    Key,
    /// Certificate and key.
    Pair(rustls::Error),
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_pair_is_judged_and_each_fault_names_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("page.pem"), dir.path().join("page.key"));
        let pair = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let signed = rcgen::CertificateParams::new(vec![name.into()]).unwrap().self_signed(&key).unwrap();
            (signed.pem(), key.serialize_pem())
        };
        let ((mine, my_key), (other, other_key)) = (pair("a.example.org"), pair("b.example.org"));
        let write = |chain: &str, text: &str, mode: u32| {
            fs::write(&certificate, chain).unwrap();
            fs::write(&key, text).unwrap();
            fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
            TlsFiles::read(&certificate, &key)
        };
        let whole = write(&format!("{mine}{other}"), &my_key, 0o600).unwrap();
        let before = whole.as_read();
        assert_eq!(whole.seen(), before);
        fs::rename(&certificate, dir.path().join("page-1.pem")).unwrap();
        assert_ne!(whole.seen(), before, "it is gone");
        // As certbot does: a link to the newest.
        std::os::unix::fs::symlink("page-1.pem", &certificate).unwrap();
        assert_eq!(whole.seen(), before);
        fs::write(dir.path().join("page-2.pem"), &other).unwrap();
        fs::remove_file(&certificate).unwrap();
        std::os::unix::fs::symlink("page-2.pem", &certificate).unwrap();
        assert_ne!(whole.seen(), before);
        fs::remove_file(&certificate).unwrap();
        let whole = write(&format!("{mine}{other}"), &my_key, 0o600).unwrap();
        assert!(whole.server().is_ok(), "with those that it is signed by behind it");
        assert!(!format!("{whole:?}").contains("PRIVATE"));
        for (chain, text, mode, expected) in [
            (&mine, &my_key, 0o644, "page.key is open to others"),
            (&mine, &other_key, 0o600, "page.key is not the key of the certificate in"),
            (&format!("{other}{mine}"), &my_key, 0o600, "is not the key of the certificate in"),
            (&mine, &mine, 0o600, "page.key holds no private key"),
            (&my_key, &my_key, 0o600, "page.pem holds no certificate"),
            (&String::new(), &my_key, 0o600, "page.pem holds no certificate"),
        ] {
            let wrong = write(chain, text, mode).unwrap_err();
            assert!(wrong.what.contains(expected), "{expected}: {}", wrong.what);
            assert!(!format!("{wrong:?}").contains("BEGIN PRIVATE KEY-----\nM"), "no secret is told");
        }
        fs::write(&certificate, &mine).unwrap();
        fs::remove_file(&key).unwrap();
        assert!(TlsFiles::read(&certificate, &key).unwrap_err().what.contains("page.key cannot be read"));
    }
}
