//! The sealed envelope, its key ring, and what the far end says about it.
//!
//! A payload is Fernet text (contract replication, 6.1) around one JSON object:
//! `{"v":1,"path":str,"seq":int,"mode":"0600","token":str,"iat":int,"max_age":int,"to":str}`. The seal makes all of it
//! authentic: where the file goes (`path`), in which order (`seq`, the generation), how old it may get (`iat` in
//! seconds, `max_age`), and which site it is for (`to`). Whoever holds no key can neither read nor make one.
//!
//! A ring seals with its first key and opens with any. Rotation without a gap: put the new key second at the far end,
//! make it first here, take the old one away after `max_age`.

use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    core::{
        delivery::{Delivered, Undelivered},
        secret::KeyText,
    },
    error::Kind,
    spool::Seal,
};

/// The only version of the envelope.
pub const VERSION: u8 = 1;
/// Clocks may differ by this much.
pub const SKEW: u64 = 60;
/// The largest sealed payload that is read.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// What is inside the seal. No `Debug`: the token is in it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// [`VERSION`]
    pub v: u8,
    /// Where the file goes, absolute.
    pub path: String,
    /// The generation.
    pub seq: u64,
    /// Octal.
    pub mode: String,
    /// What is written, byte for byte.
    pub token: Zeroizing<String>,
    /// When it was sealed, seconds since 1970.
    pub iat: u64,
    /// How many seconds later it may arrive.
    pub max_age: u64,
    /// The site's name.
    pub to: String,
}

/// Why a payload is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No key opens it, or it was changed on the way.
    #[error("no key of ours opens it, or it was changed on the way")]
    Decrypt,
    /// It is older than allowed.
    #[error("it was sealed {age} s ago, and may be {allowed} s old")]
    Stale {
        /// Seconds.
        age: u64,
        /// Seconds.
        allowed: u64,
    },
    /// It comes from the future.
    #[error("it was sealed {ahead} s in the future: clocks disagree")]
    Future {
        /// Seconds.
        ahead: u64,
    },
    /// The seal opened, and what is inside is no envelope of this version.
    #[error("what is sealed is no envelope of version 1")]
    NoEnvelope,
}

impl Refusal {
    /// The stable code that the far end reports.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Decrypt => "DECRYPT",
            Self::Stale { .. } => "STALE",
            Self::Future { .. } => "FUTURE",
            Self::NoEnvelope => "NO_ENVELOPE",
        }
    }
}

/// A key cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RingError {
    /// No key at all.
    #[error("there is no key; make one with `evercred keygen`")]
    Empty,
    /// A text that is no key.
    #[error("key {0} is no Fernet key (44 characters of URL-safe base64)")]
    NotAKey(usize),
    /// The envelope did not become JSON.
    #[error("the envelope cannot be written")]
    Unwritable,
}

/// Keys: the current one, then former ones.
#[derive(Debug)]
pub struct KeyRing {
    seals: Vec<Seal>,
    texts: Vec<KeyText>,
}

impl KeyRing {
    /// From the texts of keys.
    ///
    /// # Errors
    /// [`RingError`]
    pub fn new(keys: &[KeyText]) -> Result<Self, RingError> {
        let mut ring = Self { seals: Vec::new(), texts: Vec::new() };
        for (index, text) in keys.iter().enumerate() {
            let seal = Seal::from_key(text.expose().trim()).ok_or(RingError::NotAKey(index + 1))?;
            ring.seals.push(seal);
            ring.texts.push(KeyText::parse(text.expose().trim()).map_err(|_| RingError::NotAKey(index + 1))?);
        }
        if ring.seals.is_empty() { Err(RingError::Empty) } else { Ok(ring) }
    }

    /// Seal with the current key.
    ///
    /// # Errors
    /// [`RingError::Unwritable`]
    pub fn seal(&self, envelope: &Envelope, now: u64) -> Result<Zeroizing<Vec<u8>>, RingError> {
        let first = self.seals.first().ok_or(RingError::Empty)?;
        // Room for all of it at once: a vector that grows leaves copies behind.
        let mut json = Zeroizing::new(Vec::with_capacity(2 * envelope.token.len() + 2 * envelope.path.len() + 512));
        serde_json::to_writer(&mut *json, envelope).map_err(|_| RingError::Unwritable)?;
        Ok(first.seal_at(&json, now))
    }

    /// Open with any key, then judge the age by its own time, ours, and the smaller of both limits.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn open(&self, payload: &[u8], now: u64, max_age: u64) -> Result<Envelope, Refusal> {
        let json = self.seals.iter().find_map(|seal| seal.open(payload)).ok_or(Refusal::Decrypt)?;
        let envelope: Envelope = serde_json::from_slice(&json).map_err(|_| Refusal::NoEnvelope)?;
        if envelope.v != VERSION {
            return Err(Refusal::NoEnvelope);
        }
        // The time inside decides; a seal with another time on it was not made by us.
        if Seal::time(payload) != Some(envelope.iat) {
            return Err(Refusal::NoEnvelope);
        }
        in_time(envelope.iat, now, max_age.min(envelope.max_age)).map(|()| envelope)
    }

    /// HMAC-SHA256 over what was written, in hexadecimal, with the text of the first key: what a far end confirms.
    #[must_use]
    pub fn confirmation(&self, bytes: &[u8]) -> String {
        self.texts.first().map(|key| mac(key, bytes)).unwrap_or_default()
    }

    /// Whether a far end that holds one of our keys has written these bytes.
    #[must_use]
    pub fn confirms(&self, shown: &str, bytes: &[u8]) -> bool {
        self.texts.iter().any(|key| mac(key, bytes) == shown)
    }
}

/// Whether what was sealed then may arrive now.
fn in_time(sealed: u64, now: u64, allowed: u64) -> Result<(), Refusal> {
    if sealed > now.saturating_add(SKEW) {
        return Err(Refusal::Future { ahead: sealed - now });
    }
    let age = now.saturating_sub(sealed);
    if age > allowed { Err(Refusal::Stale { age, allowed }) } else { Ok(()) }
}

fn mac(key: &KeyText, bytes: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.expose().as_bytes());
    hmac::sign(&key, bytes).as_ref().iter().fold(String::with_capacity(64), |hex, byte| hex + &format!("{byte:02x}"))
}

/// What a far end says; one line of JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// 1
    #[serde(default)]
    pub schema: u8,
    /// Written, now.
    pub ok: bool,
    /// `WRITTEN`, `SUPERSEDED`, or why it was refused.
    pub code: String,
    /// Where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Bytes written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// [`KeyRing::confirmation`]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The host that wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// With `SUPERSEDED`: the generation that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub have: Option<u64>,
    /// In an inbox: SHA-256 of the payload that it is about, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Verdict {
    /// What it means for a delivery of `seq` with these bytes.
    ///
    /// # Errors
    /// [`Undelivered`], classified. A success that the far end cannot show is none.
    pub fn judge(&self, ring: &KeyRing, seq: u64, bytes: &[u8]) -> Result<Delivered, Undelivered> {
        let words = || format!("{}: {}", self.code, self.detail.as_deref().unwrap_or("no more words"));
        match (self.ok, self.code.as_str(), self.have) {
            (true, "WRITTEN", _) => match &self.mac {
                Some(shown) if ring.confirms(shown, bytes) => Ok(Delivered::Written),
                _ => Err(Undelivered::new(Kind::SiteUnconfirmed, "WRITTEN, with a confirmation that is not ours")),
            },
            (false, "SUPERSEDED", Some(have)) if have == seq => Ok(Delivered::AlreadyThere),
            (false, "SUPERSEDED", Some(have)) if have > seq => Ok(Delivered::Superseded { have }),
            (false, "DECRYPT" | "NO_KEY" | "KEY_MODE" | "NO_ENVELOPE", _) => {
                Err(Undelivered::new(Kind::SiteKey, words()))
            }
            (false, "STALE" | "FUTURE", _) => Err(Undelivered::new(Kind::SiteStale, words())),
            (false, "PATH_NOT_ALLOWED" | "NOT_FOR_US", _) => Err(Undelivered::new(Kind::SiteDenied, words())),
            (false, "NO_SPACE", _) => Err(Undelivered::new(Kind::SiteFull, words())),
            (false, "FAILED", _) => Err(Undelivered::new(Kind::SiteError, words())),
            _ => Err(Undelivered::new(Kind::SiteUnconfirmed, words())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const OTHER: &str = "HxAREhMUFRYXGBkaGxwdHh8AAQIDBAUGBwgJCgsMDQ4=";
    const NOW: u64 = 1_800_000_000;

    fn ring(keys: &[&str]) -> KeyRing {
        KeyRing::new(&keys.iter().map(|k| KeyText::parse(k).unwrap()).collect::<Vec<_>>()).unwrap()
    }

    fn envelope(iat: u64, max_age: u64) -> Envelope {
        Envelope {
            v: 1,
            path: "/d/f".into(),
            seq: 7,
            mode: "0600".into(),
            token: Zeroizing::new("canary-77".into()),
            iat,
            max_age,
            to: "there".into(),
        }
    }

    fn opened(iat: u64, max_age: u64, now: u64) -> Result<u64, Refusal> {
        let sealed = ring(&[KEY]).seal(&envelope(iat, max_age), iat).unwrap();
        ring(&[KEY]).open(&sealed, now, 86_400).map(|e| e.seq)
    }

    /// The specification's secret, its one good token, and when that was made.
    const SPEC: (&str, &str, u64) = (
        "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=",
        "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==",
        499_162_800,
    );

    /// Fernet text as the specification says it is made, from its parts.
    fn made(key: &str, time: u64, iv: [u8; 16], text: &[u8]) -> String {
        use aws_lc_rs::cipher::{AES_128, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};
        use base64::{Engine, engine::general_purpose::URL_SAFE};
        let key = URL_SAFE.decode(key).unwrap();
        let (signing, encryption) = key.split_at(16);
        let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(UnboundCipherKey::new(&AES_128, encryption).unwrap()).unwrap();
        let mut inside = text.to_vec();
        cipher.less_safe_encrypt(&mut inside, EncryptionContext::Iv128((&iv).into())).unwrap();
        let mut all = [&[0x80][..], &time.to_be_bytes(), &iv, &inside].concat();
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, signing), &all);
        all.extend_from_slice(tag.as_ref());
        URL_SAFE.encode(all)
    }

    #[test]
    fn what_we_seal_is_made_as_the_vector_for_generation_is() {
        use base64::{Engine, engine::general_purpose::URL_SAFE};
        let (key, token, time) = SPEC;
        let first: [u8; 16] = std::array::from_fn(|n| u8::try_from(n).unwrap());
        assert_eq!(made(key, time, first, b"hello"), token);
        let ours = Seal::from_key(key).unwrap().seal_at(b"hello", time);
        let iv = URL_SAFE.decode(&*ours).unwrap()[9..25].try_into().unwrap();
        assert_eq!(made(key, time, iv, b"hello").as_bytes(), &**ours);
    }

    #[test]
    fn the_specifications_vectors_for_verification_open_and_its_invalid_ones_are_refused() {
        // Contract replication, 6.1 (made by Python's cryptography).
        let seal = Seal::from_key(KEY).unwrap();
        let text =
            "gAAAAABlU_EAAAECAwQFBgcICQoLDA0OD_LG9llg0BZtMD3zNgh4iefMnOjNv372E5bk8NRGk1NQHRahLuU3nflkz9pCAdpJ1g==";
        assert_eq!(&**seal.open(text.as_bytes()).unwrap(), b"eyJ.token");
        assert_eq!(Seal::time(text.as_bytes()), Some(1_700_000_000));
        // verify.json and invalid.json; each may be 60 s old.
        let (key, token, time) = SPEC;
        let seal = Seal::from_key(key).unwrap();
        let opened = |token: &str, now: u64| {
            let inside = seal.open(token.as_bytes()).ok_or(Refusal::Decrypt)?;
            in_time(Seal::time(token.as_bytes()).unwrap(), now, 60).map(|()| inside.to_vec())
        };
        assert_eq!(opened(token, time + 1), Ok(b"hello".to_vec()));
        for (what, bad) in [
            (
                "incorrect mac",
                "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykQUFBQUFBQUFBQQ==",
            ),
            ("too short", "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPA=="),
            (
                "invalid base64",
                "%%%%%%%%%%%%%AECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykRtfsH-p1YsUD2Q==",
            ),
            (
                "payload size not multiple of block size",
                "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPOm73QeoCk9uGib28Xe5vz6oxq5nmxbx_v7mrfyudzUm",
            ),
            (
                "payload padding error",
                "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0ODz4LEpdELGQAad7aNEHbf-JkLPIpuiYRLQ3RtXatOYREu2FWke6CnJNYIbkuKNqOhw==",
            ),
            (
                "incorrect IV (causes padding error)",
                "gAAAAAAdwJ6xBQECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAkLhFLHpGtDBRLRTZeUfWgHSv49TF2AUEZ1TIvcZjK1zQ==",
            ),
        ] {
            assert_eq!(opened(bad, time + 1), Err(Refusal::Decrypt), "{what}");
        }
        // Good seals with a wrong time on them: far in the future, and 90 s old.
        let future =
            "gAAAAAAdwStRAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAnja1xKYyhd-Y6mSkTOyTGJmw2Xc2a6kBd-iX9b_qXQcw==";
        assert_eq!(opened(future, time + 1), Err(Refusal::Future { ahead: 36_000 }));
        let expired =
            "gAAAAAAdwJ6xAAECAwQFBgcICQoLDA0OD3HkMATM5lFqGaerZ-fWPAl1-szkFVzXTuGb4hR8AKtwcaX1YdykRtfsH-p1YsUD2Q==";
        assert_eq!(opened(expired, time + 91), Err(Refusal::Stale { age: 90, allowed: 60 }));
    }

    #[test]
    fn rotation_has_no_gap() {
        let (old, new) = (ring(&[KEY]), ring(&[OTHER, KEY]));
        // 1. The far end knows the new key as its second; 2. we seal with it; 3. the old one goes.
        let far = ring(&[KEY, OTHER]);
        for sender in [&old, &new] {
            let sealed = sender.seal(&envelope(NOW, 60), NOW).unwrap();
            assert_eq!(far.open(&sealed, NOW, 60).ok().unwrap().token.as_str(), "canary-77");
            assert!(sender.confirms(&far.confirmation(b"canary-77"), b"canary-77"));
        }
        assert!(new.confirms(&far.confirmation(b"x"), b"x"), "the far end confirms with its first key, still ours");
        let sealed = new.seal(&envelope(NOW, 60), NOW).unwrap();
        assert_eq!(ring(&[OTHER]).open(&sealed, NOW, 60).ok().unwrap().seq, 7);
        assert_eq!(old.open(&sealed, NOW, 60).err(), Some(Refusal::Decrypt));
    }

    #[test]
    fn age_is_judged_with_both_clocks_and_the_smaller_limit() {
        assert_eq!(opened(NOW, 100, NOW + 100), Ok(7));
        assert_eq!(opened(NOW, 100, NOW + 101), Err(Refusal::Stale { age: 101, allowed: 100 }));
        assert_eq!(opened(NOW, u64::MAX, NOW + 86_401), Err(Refusal::Stale { age: 86_401, allowed: 86_400 }));
        assert_eq!(opened(NOW, 100, NOW - 60), Ok(7), "clocks may differ a little");
        assert_eq!(opened(NOW, 100, NOW - 3600), Err(Refusal::Future { ahead: 3600 }));
    }

    #[test]
    fn times_at_the_ends_of_the_number_are_refused_and_do_not_panic() {
        for iat in [u64::MAX, u64::MAX - 1, u64::MAX - 59, u64::MAX - 60, u64::MAX - 61] {
            assert!(matches!(opened(iat, u64::MAX, NOW), Err(Refusal::Future { .. })), "{iat}");
            assert_eq!(opened(iat, u64::MAX, u64::MAX), Ok(7));
        }
        assert!(matches!(opened(0, u64::MAX, u64::MAX), Err(Refusal::Stale { .. })));
        assert!(matches!(opened(0, 0, NOW), Err(Refusal::Stale { .. })));
    }

    #[test]
    fn a_change_anywhere_is_noticed() {
        let sealed = ring(&[KEY]).seal(&envelope(NOW, 60), NOW).unwrap();
        for at in 0..sealed.len() {
            let mut changed = sealed.to_vec();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            if changed[..] != sealed[..] {
                assert!(ring(&[KEY]).open(&changed, NOW, 60).is_err(), "byte {at}");
            }
        }
    }

    #[test]
    fn what_a_far_end_says_counts_only_if_it_shows_it() {
        let ring = ring(&[KEY]);
        let say = |ok, code: &str, mac: Option<String>, have| Verdict {
            ok,
            code: code.into(),
            mac,
            have,
            ..Verdict::default()
        };
        let judge = |v: Verdict| v.judge(&ring, 7, b"t");
        assert_eq!(judge(say(true, "WRITTEN", Some(ring.confirmation(b"t")), None)), Ok(Delivered::Written));
        for bad in [None, Some(ring.confirmation(b"u")), Some(String::new())] {
            assert_eq!(judge(say(true, "WRITTEN", bad, None)).unwrap_err().kind, Kind::SiteUnconfirmed);
        }
        assert_eq!(judge(say(false, "SUPERSEDED", None, Some(7))), Ok(Delivered::AlreadyThere));
        assert_eq!(judge(say(false, "SUPERSEDED", None, Some(9))), Ok(Delivered::Superseded { have: 9 }));
        assert_eq!(judge(say(false, "SUPERSEDED", None, Some(3))).unwrap_err().kind, Kind::SiteUnconfirmed);
        assert_eq!(judge(say(false, "DECRYPT", None, None)).unwrap_err().kind, Kind::SiteKey);
        assert_eq!(judge(say(false, "STALE", None, None)).unwrap_err().kind, Kind::SiteStale);
        assert_eq!(judge(say(false, "NO_SPACE", None, None)).unwrap_err().kind, Kind::SiteFull);
        assert_eq!(judge(say(true, "whatever", None, None)).unwrap_err().kind, Kind::SiteUnconfirmed);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_opened_or_refused(bytes: Vec<u8>, now: u64, max_age: u64) {
            let _opened = ring(&[KEY]).open(&bytes, now, max_age).is_ok();
        }
    }
}
