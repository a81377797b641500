//! The far end, `evercred receive`: sealed payloads on standard input, one a line; one line of JSON
//! ([`Verdict`]) for each on standard output, at once. It may be a forced command of `authorized_keys`; what the
//! client asked for (`SSH_ORIGINAL_COMMAND`) is not looked at.
//!
//! In this order: open the seal with any key of the ring, judge age and clock, judge for whom and where, then
//! [`place`](super::place). Everything that is not in order is refused with a code; what is there stays as it is.

use std::{
    io::{BufRead, Read, Write},
    path::Path,
    time::SystemTime,
};

use zeroize::Zeroizing;

use super::{
    envelope::{KeyRing, MAX_PAYLOAD, Verdict},
    place::{PlaceError, Placed, Root},
};

/// What a far end accepts.
#[derive(Debug)]
pub struct Receiver {
    /// The keys.
    pub ring: KeyRing,
    /// Where files may appear.
    pub root: Root,
    /// Only payloads for this site; `None`: any that the key opens.
    pub site: Option<String>,
    /// No payload may be older, seconds.
    pub max_age: u64,
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Receiver {
    /// Judge one payload and place what is in it.
    #[must_use]
    pub fn take(&self, payload: &[u8], now: u64) -> Verdict {
        let refused = |code: &str, detail: String| Verdict {
            schema: 1,
            code: code.to_owned(),
            detail: Some(detail),
            ..Verdict::default()
        };
        let envelope = match self.ring.open(payload, now, self.max_age) {
            Ok(envelope) => envelope,
            Err(refusal) => return refused(refusal.code(), refusal.to_string()),
        };
        if self.site.as_ref().is_some_and(|site| *site != envelope.to) {
            return refused("NOT_FOR_US", format!("it is for the site {:?}", envelope.to));
        }
        let not_allowed = |detail| Verdict { path: Some(envelope.path.clone()), ..refused("PATH_NOT_ALLOWED", detail) };
        let Ok(relative) = Path::new(&envelope.path).strip_prefix(self.root.path()) else {
            return not_allowed(format!("it does not lie below {}", self.root.path().display()));
        };
        let Some(mode) = u32::from_str_radix(&envelope.mode, 8).ok().filter(|mode| mode & !0o660 == 0) else {
            return not_allowed(format!("{:?} is no mode for a token", envelope.mode));
        };
        let relative = relative.to_string_lossy();
        match self.root.place(&relative, envelope.seq, mode, envelope.token.as_bytes()) {
            Ok(Placed::Written) => Verdict {
                schema: 1,
                ok: true,
                code: "WRITTEN".into(),
                size: Some(envelope.token.len() as u64),
                mac: Some(self.ring.confirmation(envelope.token.as_bytes())),
                host: nix::unistd::gethostname().ok().map(|name| name.to_string_lossy().into_owned()),
                path: Some(envelope.path.clone()),
                ..Verdict::default()
            },
            Ok(Placed::Superseded { have }) => Verdict {
                have: Some(have),
                path: Some(envelope.path.clone()),
                ..refused("SUPERSEDED", format!("generation {have} is there already"))
            },
            Err(error @ PlaceError::NotAllowed { .. }) => not_allowed(error.to_string()),
            Err(error @ PlaceError::NoSpace { .. }) => refused("NO_SPACE", error.to_string()),
            Err(error) => refused("FAILED", error.to_string()),
        }
    }

    /// Payloads in, verdicts out, until the input ends: how many were refused.
    ///
    /// # Errors
    /// Input or output broke.
    pub fn serve(&self, input: &mut impl BufRead, output: &mut impl Write) -> std::io::Result<usize> {
        let mut refused = 0;
        let mut line = Zeroizing::new(Vec::with_capacity(16 << 10));
        loop {
            line.clear();
            if input.by_ref().take(MAX_PAYLOAD as u64).read_until(b'\n', &mut line)? == 0 {
                return Ok(refused);
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            let verdict = self.take(line.trim_ascii(), now());
            // To have what was meant already is what was wanted.
            if !verdict.ok && verdict.code != "SUPERSEDED" {
                refused += 1;
            }
            serde_json::to_writer(&mut *output, &verdict).map_err(std::io::Error::other)?;
            output.write_all(b"\n")?;
            output.flush()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{core::secret::KeyText, replicate::envelope::Envelope};

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const NOW: u64 = 1_800_000_000;

    fn ring(key: &str) -> KeyRing {
        KeyRing::new(&[KeyText::parse(key).unwrap()]).unwrap()
    }

    fn receiver() -> (tempfile::TempDir, Receiver) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        (dir, Receiver { ring: ring(KEY), root, site: Some("there".into()), max_age: 86_400 })
    }

    fn sealed(dir: &Path, change: impl FnOnce(&mut Envelope)) -> Zeroizing<Vec<u8>> {
        let mut envelope = Envelope {
            v: 1,
            path: dir.join("tok").display().to_string(),
            seq: 7,
            mode: "0600".into(),
            token: Zeroizing::new("canary-31".into()),
            iat: NOW,
            max_age: 3600,
            to: "there".into(),
        };
        change(&mut envelope);
        ring(KEY).seal(&envelope, envelope.iat).unwrap()
    }

    #[test]
    fn a_good_payload_is_written_and_confirmed() {
        let (dir, receiver) = receiver();
        let verdict = receiver.take(&sealed(dir.path(), |_| {}), NOW + 5);
        assert!(verdict.ok && verdict.code == "WRITTEN", "{verdict:?}");
        assert!(ring(KEY).confirms(verdict.mac.as_deref().unwrap(), b"canary-31"));
        assert_eq!(fs::read(dir.path().join("tok")).unwrap(), b"canary-31");
    }

    #[test]
    fn everything_else_is_refused_and_says_which_and_changes_nothing() {
        let (dir, receiver) = receiver();
        let here = dir.path();
        assert!(receiver.take(&sealed(here, |e| e.seq = 50), NOW).ok);
        let other = ring("HxAREhMUFRYXGBkaGxwdHh8AAQIDBAUGBwgJCgsMDQ4=");
        let misdirected = here.join("../x").display().to_string();
        let table: Vec<(&str, Zeroizing<Vec<u8>>, u64)> = vec![
            ("SUPERSEDED", sealed(here, |e| e.seq = 49), NOW),
            ("SUPERSEDED", sealed(here, |e| e.seq = 50), NOW),
            ("STALE", sealed(here, |e| e.seq = 51), NOW + 3601),
            ("FUTURE", sealed(here, |e| e.seq = 51), NOW - 3600),
            ("NOT_FOR_US", sealed(here, |e| (e.seq, e.to) = (51, "elsewhere".into())), NOW),
            ("PATH_NOT_ALLOWED", sealed(here, |e| (e.seq, e.path) = (51, "/etc/tok".into())), NOW),
            ("PATH_NOT_ALLOWED", sealed(here, |e| (e.seq, e.path) = (51, misdirected)), NOW),
            ("PATH_NOT_ALLOWED", sealed(here, |e| (e.seq, e.mode) = (51, "4777".into())), NOW),
            ("NO_ENVELOPE", sealed(here, |e| (e.seq, e.v) = (51, 2)), NOW),
            ("DECRYPT", Zeroizing::new(b"gAAAAABnot-a-token".to_vec()), NOW),
            ("DECRYPT", Zeroizing::new(b"canary-31".to_vec()), NOW),
            (
                "DECRYPT",
                {
                    let envelope = ring(KEY).open(&sealed(here, |e| e.seq = 51), NOW, 60).ok().unwrap();
                    other.seal(&envelope, NOW).unwrap()
                },
                NOW,
            ),
        ];
        let before = fs::read_dir(here).unwrap().count();
        for (code, payload, now) in table {
            let verdict = receiver.take(&payload, now);
            assert!(!verdict.ok && verdict.code == code, "{code}: {verdict:?}");
            assert!(!serde_json::to_string(&verdict).unwrap().contains("canary"), "{code}");
            assert_eq!(fs::read(here.join(".tok.seq")).unwrap(), b"50");
            assert_eq!(fs::read_dir(here).unwrap().count(), before);
        }
    }

    #[test]
    fn lines_in_verdicts_out() {
        let (dir, mut receiver) = receiver();
        receiver.max_age = u64::MAX;
        let good = sealed(dir.path(), |e| (e.iat, e.max_age) = (now(), 600));
        let mut input = good.to_vec();
        input.extend_from_slice(b"\n\nrubbish\n");
        let mut output = Vec::new();
        assert_eq!(receiver.serve(&mut &input[..], &mut output).unwrap(), 1);
        let lines: Vec<Verdict> =
            String::from_utf8(output).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.iter().map(|v| v.code.as_str()).collect::<Vec<_>>(), ["WRITTEN", "DECRYPT"]);
    }

    proptest::proptest! {
        #[test]
        fn any_line_gets_a_verdict(bytes: Vec<u8>) {
            let (_dir, receiver) = receiver();
            let mut output = Vec::new();
            receiver.serve(&mut &bytes[..], &mut output).unwrap();
        }
    }
}
