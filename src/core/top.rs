//! `.top`: what a user stored, and how a rotated refresh token is put back into it.
//!
//! Shapes (contract `HTCondor`, 2.5): a JSON object in any formatting with `mytoken` or `refresh_token`, or the bare
//! token on one line. Keys are case-insensitive and the last duplicate wins, as for credd's `ClassAd`s. A rotation
//! replaces the token's value in the original text and nothing else: unknown keys, numbers and formatting survive.

use std::{fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::{jwt, secret::RefreshToken, time::Timestamp};
use crate::error::Kind;

/// The largest `.top` that we read.
pub const MAX_TOP: usize = 256 * 1024;

/// Which `.top` it was: the file and its content. Never a time alone. Without the device: all are beneath one directory,
/// and one with the same content is not another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Inode.
    pub ino: u64,
    /// Bytes; no more than [`MAX_TOP`] are ever read.
    pub size: u32,
    /// Time of the last change of content, ns since 1970.
    pub mtime_ns: i64,
    /// The first 16 bytes of the SHA-256 of the bytes on disk.
    pub hash: [u8; 16],
}

impl Identity {
    /// The file's own time of its last change.
    #[must_use]
    pub fn changed(self) -> Timestamp {
        Timestamp(self.mtime_ns.div_euclid(1_000_000))
    }
}

/// A `.top` that holds a refresh token.
pub struct Top {
    /// Scopes to ask for, if the `.top` says so.
    pub scopes: Option<Vec<String>>,
    /// Audiences to ask for, if the `.top` says so.
    pub audience: Option<Vec<String>>,
    refresh_token: RefreshToken,
    /// When the refresh token ends, if it or the `.top` tells.
    ends: Option<Timestamp>,
    text: Zeroizing<String>,
    /// Where the token stands in `text`; with its quotes if `json`.
    place: Range<usize>,
    json: bool,
    /// It is a subject token (RFC 8693); `place` has its key, too, since the key says what a token is.
    subject: bool,
}

impl fmt::Debug for Top {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Top")
            .field("scopes", &self.scopes)
            .field("audience", &self.audience)
            .field("json", &self.json)
            .finish_non_exhaustive()
    }
}

impl Top {
    /// Read any of the shapes.
    ///
    /// # Errors
    /// `TopTooLarge`, `TopNotUtf8`, `TopEmpty` or `TopNoToken`.
    pub fn parse(bytes: &[u8]) -> Result<Self, Kind> {
        if bytes.len() > MAX_TOP {
            return Err(Kind::TopTooLarge);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Kind::TopNotUtf8)?;
        let body = text.trim_start_matches('\u{feff}').trim();
        match body.chars().next() {
            None => Err(Kind::TopEmpty),
            Some('{') => Self::parse_object(text, body),
            Some('[' | '"') => Err(Kind::TopNoToken),
            Some(_) => Self::parse_bare(text, body),
        }
    }

    fn parse_bare(text: &str, body: &str) -> Result<Self, Kind> {
        if body.contains(char::is_whitespace) {
            return Err(Kind::TopNoToken);
        }
        Ok(Self {
            scopes: None,
            audience: None,
            refresh_token: RefreshToken::parse(body).map_err(|_| Kind::TopNoToken)?,
            ends: jwt::end_of_refresh_token(body),
            text: Zeroizing::new(text.to_owned()),
            place: place_of(text, body).ok_or(Kind::TopNoToken)?,
            json: false,
            subject: false,
        })
    }

    fn parse_object(text: &str, body: &str) -> Result<Self, Kind> {
        let Members(members) = serde_json::from_str(body).map_err(|_| Kind::TopNoToken)?;
        let value = |key: &str| {
            members.iter().rev().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value.get())
        };
        let token = |key: &str| {
            let raw = value(key)?;
            let token: Zeroizing<String> = Zeroizing::new(serde_json::from_str(raw).ok()?);
            Some((RefreshToken::parse(&token).ok()?, place_of(text, raw)?))
        };
        let subject = || {
            let (token, place) = token("subject_token")?;
            Some((token, key_before(text, place.start)?..place.end))
        };
        let long_lived = token("mytoken").or_else(|| token("refresh_token"));
        let is_subject = long_lived.is_none();
        let (refresh_token, place) = long_lived.or_else(subject).ok_or(Kind::TopNoToken)?;
        let told = || jwt::date(&serde_json::from_str(value("expires_at")?).ok()?);
        Ok(Self {
            scopes: value("scopes").and_then(words),
            audience: value("audience").and_then(words),
            // A subject token lives for minutes, which says nothing about what it is exchanged for.
            ends: if is_subject { None } else { jwt::end_of_refresh_token(refresh_token.expose()).or_else(told) },
            refresh_token,
            text: Zeroizing::new(text.to_owned()),
            place,
            json: true,
            subject: is_subject,
        })
    }

    /// Whether the secret is a subject token, to be exchanged for a refresh token.
    #[must_use]
    pub fn is_subject(&self) -> bool {
        self.subject
    }

    /// The secret that the next exchange spends.
    #[must_use]
    pub fn refresh_token(&self) -> &RefreshToken {
        &self.refresh_token
    }

    /// When the refresh token ends: by its own word, else by the member `expires_at` (seconds since 1970) that the
    /// storer writes for a token that does not tell. For people only; what decides is the issuer's answer.
    #[must_use]
    pub fn ends(&self) -> Option<Timestamp> {
        self.ends
    }

    /// The same text with another refresh token in the place of the old one (of a subject token: key and all).
    #[must_use]
    pub fn with_refresh_token(&self, new: &RefreshToken) -> Zeroizing<Vec<u8>> {
        let before = self.text.get(..self.place.start).unwrap_or_default();
        let after = self.text.get(self.place.end..).unwrap_or_default();
        // A token is printable ASCII: only these two need an escape, and credd never sees a `\u`.
        let escapes = if self.json { new.expose().matches(['"', '\\']).count() + 2 } else { 0 };
        let key = if self.subject { "\"refresh_token\":" } else { "" };
        let mut bytes = Vec::with_capacity(before.len() + key.len() + new.expose().len() + escapes + after.len());
        bytes.extend_from_slice(before.as_bytes());
        bytes.extend_from_slice(key.as_bytes());
        if self.json {
            bytes.push(b'"');
            for byte in new.expose().bytes() {
                if matches!(byte, b'"' | b'\\') {
                    bytes.push(b'\\');
                }
                bytes.push(byte);
            }
            bytes.push(b'"');
        } else {
            bytes.extend_from_slice(new.expose().as_bytes());
        }
        bytes.extend_from_slice(after.as_bytes());
        Zeroizing::new(bytes)
    }
}

/// Where `part`, a slice of `whole`, stands in it.
fn place_of(whole: &str, part: &str) -> Option<Range<usize>> {
    let start = part.as_ptr().addr().checked_sub(whole.as_ptr().addr())?;
    let place = start..start.checked_add(part.len())?;
    (whole.get(place.clone()) == Some(part)).then_some(place)
}

/// Where the key of the value at `value` begins, with its quote: no key that we know has an escape in it.
fn key_before(text: &str, value: usize) -> Option<usize> {
    let key = text.get(..value)?.trim_end().strip_suffix(':')?.trim_end().strip_suffix('"')?;
    key.rfind('"')
}

/// A list as text (separated by blanks or commas) or as an array of strings; none if there is nothing in it.
fn words(raw: &str) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum List {
        Text(String),
        Array(Vec<String>),
    }
    let words: Vec<String> = match serde_json::from_str(raw).ok()? {
        List::Text(text) => {
            text.split(|c: char| c == ',' || c.is_whitespace()).filter(|w| !w.is_empty()).map(Into::into).collect()
        }
        List::Array(words) => words,
    };
    (!words.is_empty()).then_some(words)
}

/// The members of an object in their order, duplicates and all, each value as it is written.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> RefreshToken {
        RefreshToken::parse(text).unwrap()
    }

    #[test]
    fn rotation_changes_the_token_and_no_other_byte_of_what_credd_wrote() {
        let text = "{\n  \"Scopes\": \"openid  a,b\",\n  \"big\": 12345678901234567890123,\n  \"refresh_token\": \
                    \"ol\\/d\\\"\",\n  \"x\": { \"refresh_token\": \"inner\", \"é\": 1.50e3 },\n  \"audience\": \"u1 u2\"\n}\n";
        let top = Top::parse(text.as_bytes()).unwrap();
        assert_eq!(top.refresh_token().expose(), "ol/d\"");
        assert_eq!(top.scopes.as_deref().unwrap(), ["openid", "a", "b"]);
        assert_eq!(top.audience.as_deref().unwrap(), ["u1", "u2"]);
        let new = top.with_refresh_token(&token("n\\e\"w"));
        assert_eq!(std::str::from_utf8(&new).unwrap(), text.replace(r#""ol\/d\"""#, r#""n\\e\"w""#));
        assert_eq!(Top::parse(&new).unwrap().refresh_token().expose(), "n\\e\"w");
    }

    #[test]
    fn keys_ignore_case_and_the_last_duplicate_wins() {
        let text = r#"{"refresh_token":"a","Refresh_Token":"b"}"#;
        let top = Top::parse(text.as_bytes()).unwrap();
        assert_eq!(top.refresh_token().expose(), "b");
        assert_eq!(&*top.with_refresh_token(&token("c")), br#"{"refresh_token":"a","Refresh_Token":"c"}"#);
        assert_eq!(Top::parse(br#"{"MyToken":"m"}"#).unwrap().refresh_token().expose(), "m");
    }

    #[test]
    fn the_end_of_a_subject_token_is_not_that_of_the_credential() {
        let jwt = "e30.eyJleHAiOjE4MDAwMDA2MDB9.sig";
        let ends = |key: &str| Top::parse(format!("{{\"{key}\":\"{jwt}\"}}").as_bytes()).unwrap().ends();
        assert_eq!(ends("refresh_token"), Some(Timestamp::from_secs(1_800_000_600)));
        assert_eq!(ends("subject_token"), None);
    }

    #[test]
    fn a_subject_token_becomes_a_refresh_token_key_and_all() {
        let text = "{\n  \"scopes\": \"a,b\",\n  \"subject_token\" : \"sub\\\"j\",\n  \"audience\": \"u\"\n}\n";
        let top = Top::parse(text.as_bytes()).unwrap();
        assert!(top.is_subject());
        assert_eq!(top.refresh_token().expose(), "sub\"j");
        let new = top.with_refresh_token(&token("n\"ew"));
        let expected = text.replace("\"subject_token\" : \"sub\\\"j\"", "\"refresh_token\":\"n\\\"ew\"");
        assert_eq!(std::str::from_utf8(&new).unwrap(), expected);
        let again = Top::parse(&new).unwrap();
        assert!(!again.is_subject());
        assert_eq!(again.refresh_token().expose(), "n\"ew");
        let both = Top::parse(br#"{"subject_token":"s","refresh_token":"r"}"#).unwrap();
        assert!(!both.is_subject(), "what was exchanged already is not exchanged again");
    }

    #[test]
    fn bare_stays_bare() {
        let top = Top::parse(b"  old\n").unwrap();
        assert_eq!(top.refresh_token().expose(), "old");
        assert_eq!(&*top.with_refresh_token(&token("new")), b"  new\n");
    }

    #[test]
    fn every_bad_content_has_its_kind() {
        assert_eq!(Top::parse(b"").unwrap_err(), Kind::TopEmpty);
        assert_eq!(Top::parse(b" \n").unwrap_err(), Kind::TopEmpty);
        assert_eq!(Top::parse(b"\xff\xfe").unwrap_err(), Kind::TopNotUtf8);
        assert_eq!(Top::parse(&vec![b'a'; MAX_TOP + 1]).unwrap_err(), Kind::TopTooLarge);
        let deep = "{\"a\":".repeat(10_000);
        for bad in ["{}", "[]", "\"t\"", "{\"refresh_token\":1}", "{\"refresh_token\":\"\"}", "{", "a b", "a\nb", &deep]
        {
            assert_eq!(Top::parse(bad.as_bytes()).unwrap_err(), Kind::TopNoToken, "{bad:.40}");
        }
    }

    #[test]
    fn debug_never_shows_the_token() {
        let top = Top::parse(br#"{"refresh_token":"canary"}"#).unwrap();
        assert!(!format!("{top:?}").contains("canary"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _read = Top::parse(&bytes);
        }

        #[test]
        fn what_was_put_in_is_read_back(old in "[!-~]{1,40}", new in "[!-~]{1,40}", pad in "[ \n\t]{0,3}") {
            let quoted = serde_json::to_string(&old).unwrap();
            let text = format!("{pad}{{{pad}\"refresh_token\"{pad}:{pad}{quoted}{pad},\"z\":[1]}}{pad}");
            let top = Top::parse(text.as_bytes()).unwrap();
            proptest::prop_assert_eq!(top.refresh_token().expose(), &old);
            let text = top.with_refresh_token(&token(&new));
            let again = Top::parse(&text).unwrap();
            proptest::prop_assert_eq!(again.refresh_token().expose(), &new);
        }
    }
}
