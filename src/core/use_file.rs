//! `.use`: what a job gets. One line of JSON, or the bare access token, and one newline (contract `HTCondor`, 6.4:
//! the readers in the sandbox go by lines).

use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{answer::Answer, jwt, secret::AccessToken, time::Timestamp};

/// What a `.use` looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UseFormat {
    /// One line of JSON.
    Json,
    /// The access token alone.
    Bare,
}

/// What a published `.use` tells about its access token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// When it was issued, if the file or the token tells.
    pub issued: Option<Timestamp>,
    /// When it expires, if the file or the token tells.
    pub expiry: Option<Timestamp>,
}

/// Times are whole seconds since 1970.
#[derive(Serialize)]
struct Line<'a> {
    access_token: &'a str,
    token_type: &'a str,
    expires_in: u64,
    expires_at: i64,
    issued_at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
}

/// The bytes of a `.use`; never empty.
#[must_use]
pub fn render(answer: &Answer, format: UseFormat, now: Timestamp) -> Zeroizing<Vec<u8>> {
    let token = answer.access_token.expose();
    // Room for all of it at once: a vector that grows leaves copies behind. A quote or backslash doubles.
    let scopes = answer.scopes.iter().flatten().map(|s| 2 * s.len() + 1).sum::<usize>();
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 * token.len() + 2 * answer.token_type.len() + scopes + 256));
    let line = Line {
        access_token: token,
        token_type: &answer.token_type,
        expires_in: answer.lifetime.as_secs(),
        expires_at: now.plus(answer.lifetime).secs(),
        issued_at: now.secs(),
        scope: answer.scopes.as_ref().map(|s| s.join(" ")),
    };
    if format == UseFormat::Bare || serde_json::to_writer(&mut *bytes, &line).is_err() {
        bytes.clear();
        bytes.extend_from_slice(token.as_bytes());
    }
    bytes.push(b'\n');
    bytes
}

/// What a `.use` tells, whoever wrote it; none if no token is in it.
#[must_use]
pub fn read(bytes: &[u8]) -> Option<Use> {
    #[derive(Deserialize)]
    struct Object<'a> {
        #[serde(borrow)]
        access_token: std::borrow::Cow<'a, str>,
        expires_at: Option<Value>,
        issued_at: Option<Value>,
    }
    let text = std::str::from_utf8(bytes).ok()?.trim();
    if !text.starts_with('{') {
        AccessToken::parse(text).ok()?;
        return Some(claims(text).unwrap_or(Use { issued: None, expiry: None }));
    }
    let object: Object<'_> = serde_json::from_str(text).ok()?;
    AccessToken::parse(&object.access_token).ok()?;
    let told = claims(&object.access_token);
    Some(Use {
        issued: object.issued_at.as_ref().and_then(jwt::date).or(told.and_then(|t| t.issued)),
        expiry: object.expires_at.as_ref().and_then(jwt::date).or(told.and_then(|t| t.expiry)),
    })
}

/// The access token alone, without a newline, out of a `.use` of either format.
#[must_use]
pub fn token(bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    #[derive(Deserialize)]
    struct Object<'a> {
        #[serde(borrow)]
        access_token: std::borrow::Cow<'a, str>,
    }
    let text = std::str::from_utf8(bytes).ok()?.trim();
    let token = if text.starts_with('{') {
        let object: Object<'_> = serde_json::from_str(text).ok()?;
        Zeroizing::new(object.access_token.into_owned())
    } else {
        Zeroizing::new(text.to_owned())
    };
    AccessToken::parse(&token).ok()?;
    Some(Zeroizing::new(token.as_bytes().to_vec()))
}

/// One line of JSON out of a `.use` of either format.
#[must_use]
pub fn json(bytes: &[u8], expiry: Option<Timestamp>) -> Option<Zeroizing<Vec<u8>>> {
    #[derive(Serialize)]
    struct Small<'a> {
        access_token: &'a str,
        token_type: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_at: Option<i64>,
    }
    let token = token(bytes)?;
    let text = std::str::from_utf8(bytes).ok()?.trim();
    let mut line = Zeroizing::new(Vec::with_capacity(2 * bytes.len() + 128));
    if text.starts_with('{') {
        line.extend_from_slice(text.as_bytes());
    } else {
        let access_token = std::str::from_utf8(&token).ok()?;
        let small = Small { access_token, token_type: "Bearer", expires_at: expiry.map(Timestamp::secs) };
        serde_json::to_writer(&mut *line, &small).ok()?;
    }
    line.push(b'\n');
    Some(line)
}

/// `iat` and `exp` of a JWT, unverified: they only say when to renew.
fn claims(token: &str) -> Option<Use> {
    #[derive(Deserialize)]
    struct Claims {
        iat: Option<Value>,
        exp: Option<Value>,
    }
    let claims: Claims = jwt::claims(token)?;
    Some(Use { issued: claims.iat.as_ref().and_then(jwt::date), expiry: claims.exp.as_ref().and_then(jwt::date) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

    use super::*;

    fn answer(token: &str) -> Answer {
        Answer {
            access_token: AccessToken::parse(token).unwrap(),
            token_type: "Bearer".into(),
            lifetime: Duration::from_secs(3600),
            refresh_lifetime: None,
            scopes: Some(vec!["a".into(), "b".into()]),
            rotated: None,
            flagged: None,
        }
    }

    const NOW: Timestamp = Timestamp(1_700_000_000_999);

    #[test]
    fn json_is_one_line_with_whole_seconds_and_reads_back() {
        let bytes = render(&answer("abc"), UseFormat::Json, NOW);
        assert_eq!(
            std::str::from_utf8(&bytes).unwrap(),
            "{\"access_token\":\"abc\",\"token_type\":\"Bearer\",\"expires_in\":3600,\"expires_at\":1700003600,\
             \"issued_at\":1700000000,\"scope\":\"a b\"}\n"
        );
        let told = read(&bytes).unwrap();
        assert_eq!(told.issued, Some(Timestamp::from_secs(1_700_000_000)));
        assert_eq!(told.expiry, Some(Timestamp::from_secs(1_700_003_600)));
    }

    #[test]
    fn bare_is_the_token_and_one_newline() {
        let bytes = render(&answer("abc"), UseFormat::Bare, NOW);
        assert_eq!(&*bytes, b"abc\n");
        assert_eq!(read(&bytes), Some(Use { issued: None, expiry: None }));
    }

    #[test]
    fn a_jwt_tells_its_own_times() {
        let payload = URL_SAFE_NO_PAD.encode(r#"{"iat":100,"exp":200.5}"#);
        let jwt = format!("e30.{payload}.sig");
        let told = Some(Use { issued: Some(Timestamp::from_secs(100)), expiry: Some(Timestamp::from_secs(200)) });
        assert_eq!(read(format!("{jwt}\n").as_bytes()), told);
        assert_eq!(read(format!("{{\"access_token\":\"{jwt}\",\"expires_in\":5}}").as_bytes()), told);
    }

    #[test]
    fn only_expires_in_tells_nothing_about_when() {
        let told = read(br#"{"access_token":"abc","expires_in":1200}"#);
        assert_eq!(told, Some(Use { issued: None, expiry: None }));
    }

    #[test]
    fn without_a_token_there_is_nothing() {
        for bad in ["", "\n", "{}", "{\"access_token\":\"\"}", "a\nb", "{"] {
            assert_eq!(read(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(read(b"\xff"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _read = read(&bytes);
        }
    }
}
