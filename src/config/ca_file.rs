//! `ca_file`: PEM certificates of authorities that are trusted in addition to the system's.
//!
//! The keeper reads and judges the file when it reads the configuration, and hands what is in it to the process that
//! uses it. That process has given up its uid by then, and could say what is wrong only when it is too late to refuse.

use std::{
    fmt,
    fs::OpenOptions,
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::libc;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde::{Deserialize, Serialize};

use super::{
    Secrets, fragment,
    fragment::Value,
    input::{self, Wrong, wrong},
    secret_file::in_time,
};

/// The largest file; a whole system's authorities are a quarter of it.
const MAX: u64 = 1 << 20;

/// A `ca_file`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaFile {
    path: PathBuf,
    /// Its content; none where it is read when it is needed, by a program of a user.
    pem: Option<Arc<[u8]>>,
}

impl fmt::Debug for CaFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaFile({})", self.path.display())
    }
}

impl CaFile {
    /// Read and judge it.
    ///
    /// # Errors
    /// It cannot be read, or holds what cannot be used.
    pub fn read(path: &Path) -> Result<Self, Wrong> {
        let pem = read(path)?;
        parse(path, &pem)?;
        Ok(Self { path: path.to_owned(), pem: Some(pem.into()) })
    }

    /// One that is read when its certificates are asked for.
    #[must_use]
    pub fn named(path: PathBuf) -> Self {
        Self { path, pem: None }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How large it is, if it was read.
    #[must_use]
    pub fn size(&self) -> usize {
        self.pem.as_ref().map_or(0, |pem| pem.len())
    }

    /// The certificates.
    ///
    /// # Errors
    /// One line: what is wrong with the file, and what to do.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let certificates = match &self.pem {
            Some(pem) => parse(&self.path, pem),
            None => read(&self.path).and_then(|pem| parse(&self.path, &pem)),
        };
        certificates.map_err(|Wrong { what, advice, .. }| format!("ca_file: {what}; {advice}"))
    }
}

/// As a key's value.
pub(super) fn take(secrets: Secrets) -> impl FnOnce(&Value) -> Result<CaFile, Wrong> {
    move |value| {
        let path = input::path(value)?;
        match secrets {
            Secrets::Read => CaFile::read(&path),
            // A user who wants something of another provider needs none of this one's.
            Secrets::LeaveAlone => Ok(CaFile::named(path)),
        }
    }
}

/// What is in a file that anybody may read.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Wrong> {
    in_time(path, read_now)
}

fn read_now(path: &Path) -> Result<Vec<u8>, Wrong> {
    let shown = path.display();
    let unreadable = |e: &std::io::Error| {
        let advice = match e.kind() {
            std::io::ErrorKind::PermissionDenied => format!("let everybody read it: chmod 644 {shown}"),
            _ => "name a file of PEM certificates".to_owned(),
        };
        wrong(format!("{shown} cannot be read: {}", fragment::reason(e)), advice)
    };
    // Not blocking, so that a pipe in this place cannot hold us; what was opened is what is judged.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|e| unreadable(&e))?;
    if !file.metadata().map_err(|e| unreadable(&e))?.is_file() {
        return Err(wrong(format!("{shown} is not a regular file"), "name a file of PEM certificates"));
    }
    let mut pem = Vec::new();
    file.take(MAX + 1).read_to_end(&mut pem).map_err(|e| unreadable(&e))?;
    if pem.len() as u64 > MAX {
        return Err(wrong(format!("{shown} is larger than 1 MiB"), "name a file of the authorities that are needed"));
    }
    Ok(pem)
}

/// The certificates in such a file.
pub(super) fn parse(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Wrong> {
    let shown = path.display();
    let advice = "name a file of PEM certificates (-----BEGIN CERTIFICATE-----)";
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        // The parser's words cite the line, and somebody may name a key by mistake.
        .map_err(|_| wrong(format!("{shown} is not PEM"), advice))?;
    if certificates.is_empty() {
        return Err(wrong(format!("{shown} holds no certificate"), advice));
    }
    for (at, certificate) in certificates.iter().enumerate() {
        RootCertStore::empty().add(certificate.clone()).map_err(|e| {
            wrong(format!("certificate {} in {shown} cannot be used: {e}", at + 1), "take it out, or replace it")
        })?;
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_judged_down_to_each_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let key = rcgen::KeyPair::generate().unwrap();
        let good = rcgen::CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&key).unwrap().pem();
        let no_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let cases = [
            (String::new(), "holds no certificate"),
            ("not PEM at all".into(), "holds no certificate"),
            (key.serialize_pem(), "holds no certificate"),
            ("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n".into(), "is not PEM"),
            (good[..good.len() - 40].into(), "is not PEM"),
            (format!("{good}{no_der}"), "certificate 2 in"),
            (format!("{good}{}", " ".repeat(1 << 20)), "larger than 1 MiB"),
        ];
        for (text, expected) in cases {
            fs::write(&path, &text).unwrap();
            let wrong = CaFile::read(&path).unwrap_err();
            assert!(wrong.what.contains(expected), "{expected}: {}", wrong.what);
            let later = CaFile::named(path.clone()).certificates().unwrap_err();
            assert_eq!(later, format!("ca_file: {}; {}", wrong.what, wrong.advice));
        }
        fs::write(&path, format!("the site's own\n{good}{good}")).unwrap();
        let read = CaFile::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(read.certificates().unwrap().len(), 2, "what was read counts, whatever becomes of the file");
        assert!(CaFile::read(&path).unwrap_err().what.contains("cannot be read"));
        assert!(CaFile::read(dir.path()).unwrap_err().what.contains("not a regular file"));
    }
}
