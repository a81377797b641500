//! The payload of a JWT, read without its signature: it only says when to renew, and what came over TLS anyway.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::time::Timestamp;

/// The claims of a JWT as `T`; none if the token is not one.
#[must_use]
pub fn claims<T: DeserializeOwned>(token: &str) -> Option<T> {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?).ok()
}

/// Seconds since 1970, also as a fraction (RFC 7519 `NumericDate`).
#[must_use]
pub fn date(value: &Value) -> Option<Timestamp> {
    #[expect(clippy::cast_possible_truncation, reason = "a float cast saturates, and whole seconds are wanted")]
    let secs = value.as_i64().or_else(|| value.as_f64().map(|f| f as i64))?;
    Some(Timestamp::from_secs(secs))
}

/// When a refresh token ends by its own word: the earliest of `exp`, the latest restriction (if each of them ends)
/// and the rotation's lifetime (mytoken contract §3). None: it does not tell, or never ends.
#[must_use]
pub fn end_of_refresh_token(token: &str) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Claims {
        iat: Option<Value>,
        exp: Option<Value>,
        #[serde(default)]
        restrictions: Vec<Restriction>,
        rotation: Option<Rotation>,
    }
    #[derive(Deserialize)]
    struct Restriction {
        exp: Option<Value>,
    }
    #[derive(Deserialize)]
    struct Rotation {
        lifetime: Option<u64>,
    }
    let claims: Claims = claims(token)?;
    let restricted: Option<Vec<Timestamp>> =
        claims.restrictions.iter().map(|one| one.exp.as_ref().and_then(date)).collect();
    let rotated = claims.iat.as_ref().and_then(date).and_then(|issued| {
        let lifetime = claims.rotation.as_ref()?.lifetime.filter(|secs| *secs > 0)?;
        Some(issued.plus(Duration::from_secs(lifetime)))
    });
    [claims.exp.as_ref().and_then(date), restricted.and_then(|ends| ends.into_iter().max()), rotated]
        .into_iter()
        .flatten()
        .min()
}

/// Who made a long-lived token, by its own word; none: it does not tell.
#[must_use]
pub fn maker(token: &str) -> Option<Maker> {
    claims(token)
}

/// See [`maker`].
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Maker {
    /// The issuer or server.
    pub iss: String,
    /// `mytoken` for a mytoken.
    pub token_type: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(claims: &str) -> Option<i64> {
        end_of_refresh_token(&format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims))).map(Timestamp::secs)
    }

    #[test]
    fn a_mytoken_ends_with_the_first_of_exp_restrictions_and_rotation() {
        assert_eq!(end(r#"{"exp":100}"#), Some(100));
        assert_eq!(end(r#"{"exp":100,"restrictions":[{"exp":50},{"exp":70}]}"#), Some(70));
        assert_eq!(end(r#"{"restrictions":[{"exp":50},{}]}"#), None);
        assert_eq!(end(r#"{"iat":10,"exp":100,"rotation":{"lifetime":20}}"#), Some(30));
        assert_eq!(end(r#"{"iat":10,"rotation":{"lifetime":0}}"#), None);
        assert_eq!(end_of_refresh_token("opaque"), None);
        assert_eq!(end_of_refresh_token("a.b.c"), None);
    }
}
