//! The `.top` of an account that the configuration names (`kind = "client-credentials"`): nobody approved anything and
//! there is no refresh token, but without a `.top` there is no credential, for HTCondor (contract, 3.5: the submit of a
//! Vault-type service fails; 3.6: `query-oauth` says nothing) no more than for us.
//!
//! It holds no secret: `{"client_credentials":{"provider":"ce","scopes":"compute.read","audience":"ce1:9619"}}`, one
//! JSON object, since credd cannot look into anything else (2.5). Scopes and audience are not at the top, where credd
//! would compare them byte for byte with every request; and they are there at all so that another wish is another file,
//! whose token is asked for at once. What is asked for, the configuration says, and never this file.

use serde_json::{Value, json};

/// By this key it is known.
const KEY: &str = "client_credentials";

/// The text for a credential.
#[must_use]
pub fn text(provider: &str, scopes: &[String], audience: &[String]) -> Vec<u8> {
    let inside = json!({ "provider": provider, "scopes": scopes.join(" "), "audience": audience.join(" ") });
    format!("{}\n", json!({ KEY: inside })).into_bytes()
}

/// Whether it is such a text; of whatever provider and wish.
#[must_use]
pub fn is_one(bytes: &[u8]) -> bool {
    matches!(serde_json::from_slice(bytes), Ok(Value::Object(members)) if members.len() == 1 && members.contains_key(KEY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{core::top::Top, error::Kind};

    #[test]
    fn it_is_told_from_every_top_with_a_token_and_another_wish_is_another_text() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let one = text("ce", &words(&["a", "b"]), &words(&["ce1.example.org:9619"]));
        assert_eq!(
            String::from_utf8(one.clone()).unwrap(),
            "{\"client_credentials\":{\"provider\":\"ce\",\"scopes\":\"a b\",\"audience\":\"ce1.example.org:9619\"}}\n"
        );
        assert!(is_one(&one));
        assert_eq!(Top::parse(&one).unwrap_err(), Kind::TopNoToken, "nobody else takes it for a credential");
        assert_ne!(one, text("ce", &words(&["a"]), &words(&["ce1.example.org:9619"])));
        assert_ne!(one, text("ce", &words(&["a", "b"]), &[]));
        for other in [
            &b"harvester"[..],
            b"",
            b"{}",
            b"[\"client_credentials\"]",
            b"{\"refresh_token\":\"r\"}",
            b"{\"refresh_token\":\"r\",\"client_credentials\":{}}",
        ] {
            assert!(!is_one(other), "{}", String::from_utf8_lossy(other));
        }
    }
}
