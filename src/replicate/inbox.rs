//! An inbox: a directory at the far end into which a service lets us put files, but not move them. What lies there is
//! sealed, may be half written, and may come late; so nobody reads it but `evercred receive --inbox`, run by a timer of
//! the account there or by a command of ours.
//!
//! `NAME.sealed` is one payload (see [`super::envelope`]), written over by each newer one. `NAME.receipt` is what became
//! of it: one [`Verdict`] as JSON, whose `of` is the SHA-256 of the payload. Whoever sent it reads the receipt, and
//! believes it only if `of` is what was sent and the confirmation is made with the key. Order needs no lock in here: the
//! sequence beside the token refuses what is older, and a newer payload that was written over by a late older one is
//! missed by its sender, who sends it again. Interrupted, the next run judges the same payload again.

use std::io::{self, Write};

use sha2::{Digest, Sha256};

use super::{
    envelope::{MAX_PAYLOAD, Verdict},
    place::{PlaceError, Root},
    receive::{self, Receiver},
};

/// What is put there.
pub const SEALED: &str = ".sealed";
/// What comes back.
pub const RECEIPT: &str = ".receipt";

/// SHA-256 in hexadecimal.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |hex, byte| hex + &format!("{byte:02x}"))
}

/// NAME for a site's file at `path`: readable, and of no other site or path.
#[must_use]
pub fn name(site: &str, path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or_default();
    let whose = digest(format!("{site}\0{path}").as_bytes());
    format!("{file}.{}", whose.get(..12).unwrap_or_default())
}

/// Judge every payload that has no final receipt yet, and leave receipts: how many were refused. Each verdict is a
/// line of `output`, too.
///
/// # Errors
/// The inbox cannot be listed, or the output broke.
pub fn empty(receiver: &Receiver, inbox: &Root, output: &mut impl Write) -> io::Result<usize> {
    let mut refused = 0;
    let mut names = inbox.names().map_err(io::Error::other)?;
    names.sort();
    for name in names.iter().filter_map(|name| name.strip_suffix(SEALED)) {
        let Some(verdict) = one(receiver, inbox, name) else { continue };
        if !verdict.ok && verdict.code != "SUPERSEDED" {
            refused += 1;
        }
        serde_json::to_writer(&mut *output, &verdict).map_err(io::Error::other)?;
        output.write_all(b"\n")?;
    }
    output.flush()?;
    Ok(refused)
}

/// The verdict over one payload; none if there is nothing new.
fn one(receiver: &Receiver, inbox: &Root, name: &str) -> Option<Verdict> {
    let failed = |error: &PlaceError| Verdict {
        schema: 1,
        code: "FAILED".into(),
        detail: Some(error.to_string()),
        ..Verdict::default()
    };
    let payload = match inbox.read(&format!("{name}{SEALED}"), MAX_PAYLOAD as u64) {
        Ok(payload) => payload?,
        Err(error) => return Some(failed(&error)),
    };
    let of = digest(&payload);
    let receipt = format!("{name}{RECEIPT}");
    let before = inbox.read(&receipt, MAX_PAYLOAD as u64).ok().flatten();
    let before = before.and_then(|text| serde_json::from_slice::<Verdict>(&text).ok());
    let same = before.as_ref().is_some_and(|verdict| verdict.of.as_ref() == Some(&of));
    // What was refused may be in order once a key or a disk is: it is judged again each time.
    if same && before.as_ref().is_some_and(|verdict| verdict.ok || verdict.code == "SUPERSEDED") {
        return None;
    }
    let verdict = Verdict { of: Some(of), ..receiver.take(payload.trim_ascii(), receive::now()) };
    if same && before.is_some_and(|before| before.code == verdict.code) {
        return Some(verdict);
    }
    let text = serde_json::to_vec(&verdict).unwrap_or_default();
    match inbox.leave(&receipt, &text) {
        Ok(()) => Some(verdict),
        Err(error) => Some(failed(&error)),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use zeroize::Zeroizing;

    use super::*;
    use crate::{
        core::secret::KeyText,
        replicate::envelope::{Envelope, KeyRing},
    };

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn ring() -> KeyRing {
        KeyRing::new(&[KeyText::parse(KEY).unwrap()]).unwrap()
    }

    fn sealed(path: &Path, seq: u64) -> Vec<u8> {
        let envelope = Envelope {
            v: 1,
            path: path.display().to_string(),
            seq,
            mode: "0600".into(),
            token: Zeroizing::new(format!("token {seq}")),
            iat: receive::now(),
            max_age: 600,
            to: "far".into(),
        };
        ring().seal(&envelope, receive::now()).unwrap().to_vec()
    }

    struct Far {
        home: tempfile::TempDir,
        receiver: Receiver,
        inbox: Root,
    }

    impl Far {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            for name in ["tokens", "inbox"] {
                fs::create_dir(home.path().join(name)).unwrap();
            }
            let root = Root::open(&home.path().join("tokens")).unwrap();
            let inbox = Root::open(&home.path().join("inbox")).unwrap();
            Self { receiver: Receiver { ring: ring(), root, site: None, max_age: 3600 }, inbox, home }
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.home.path().join(name)
        }

        fn run(&self) -> Vec<String> {
            let mut output = Vec::new();
            empty(&self.receiver, &self.inbox, &mut output).unwrap();
            let lines = String::from_utf8(output).unwrap();
            lines.lines().map(|line| serde_json::from_str::<Verdict>(line).unwrap().code).collect()
        }

        fn receipt(&self) -> Verdict {
            serde_json::from_slice(&fs::read(self.path("inbox/t.receipt")).unwrap()).unwrap()
        }
    }

    #[test]
    fn a_payload_is_taken_once_and_its_receipt_says_which_it_was() {
        let far = Far::new();
        let payload = sealed(&far.path("tokens/tok"), 7);
        fs::write(far.path("inbox/t.sealed"), &payload).unwrap();
        fs::write(far.path("inbox/other"), "not ours").unwrap();
        assert_eq!(far.run(), ["WRITTEN"]);
        assert_eq!(fs::read(far.path("tokens/tok")).unwrap(), b"token 7");
        let receipt = far.receipt();
        assert_eq!(receipt.of, Some(digest(&payload)));
        assert!(ring().confirms(receipt.mac.as_deref().unwrap(), b"token 7"));
        assert!(far.run().is_empty(), "nothing new");
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(far.path("inbox/t.receipt")).unwrap().permissions());
        assert_eq!(mode & 0o7777, 0o600);
    }

    #[test]
    fn a_half_written_payload_is_refused_and_taken_when_it_is_whole() {
        let far = Far::new();
        let payload = sealed(&far.path("tokens/tok"), 7);
        fs::write(far.path("inbox/t.sealed"), &payload[..payload.len() / 2]).unwrap();
        assert_eq!(far.run(), ["DECRYPT"]);
        assert_ne!(far.receipt().of, Some(digest(&payload)), "the receipt is not for the whole one");
        assert!(!far.path("tokens/tok").exists());
        fs::write(far.path("inbox/t.sealed"), &payload).unwrap();
        assert_eq!(far.run(), ["WRITTEN"]);
    }

    #[test]
    fn an_older_payload_that_comes_late_changes_nothing() {
        let far = Far::new();
        fs::write(far.path("inbox/t.sealed"), sealed(&far.path("tokens/tok"), 8)).unwrap();
        assert_eq!(far.run(), ["WRITTEN"]);
        fs::write(far.path("inbox/t.sealed"), sealed(&far.path("tokens/tok"), 7)).unwrap();
        assert_eq!(far.run(), ["SUPERSEDED"]);
        assert_eq!(far.receipt().have, Some(8));
        assert_eq!(fs::read(far.path("tokens/tok")).unwrap(), b"token 8");
    }

    #[test]
    fn links_and_paths_that_lead_out_are_refused() {
        let far = Far::new();
        std::os::unix::fs::symlink(far.path("tokens"), far.path("inbox/l.sealed")).unwrap();
        fs::write(far.path("inbox/t.sealed"), sealed(&far.path("elsewhere/tok"), 7)).unwrap();
        assert_eq!(far.run(), ["FAILED", "PATH_NOT_ALLOWED"]);
        assert!(!far.path("elsewhere").exists());
    }

    #[test]
    fn names_differ_by_site_and_path() {
        let names = [name("a", "/t/x/tok"), name("b", "/t/x/tok"), name("a", "/t/y/tok")];
        assert!(names.iter().all(|name| name.starts_with("tok.")));
        assert!(names[0] != names[1] && names[0] != names[2]);
    }
}
