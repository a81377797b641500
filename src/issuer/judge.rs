//! Whether a good answer is good enough: issuer, audience, scope and expiry of the access token, as far as it tells.
//! A JWT is read without its signature: it came over TLS from the issuer itself.

use std::time::Duration;

use serde_json::Value;

use crate::{
    config::settings::{Provider, Shortfall},
    core::{
        answer::{Answer, ExchangeError, Grant, Outcome},
        jwt,
        secret::{AccessToken, RefreshToken},
        time::Timestamp,
        top::MAX_TOP,
    },
    error::Kind,
};

/// WLCG profile: a token for any audience.
const ANY_AUDIENCE: &str = "https://wlcg.cern.ch/jwt/v1/any";
/// Longer lives than this are mistakes.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The longest refresh token: a `.top` of up to [`MAX_TOP`] must hold it.
const LONGEST_REFRESH_TOKEN: usize = MAX_TOP / 2;
/// An access token and what is told of it. Together with the above it is well below what fits into a frame.
const MOST: usize = 256 << 10;

/// A refresh token out of an answer.
///
/// # Errors
/// [`Kind::BadAnswer`]: no `.top` can hold it.
pub fn refresh_token(text: &str, what: &str) -> Result<RefreshToken, ExchangeError> {
    let bad =
        |why: &dyn std::fmt::Display| ExchangeError::new(Kind::BadAnswer, format!("{what} cannot be stored: {why}"));
    if text.len() > LONGEST_REFRESH_TOKEN {
        return Err(bad(&"it is larger than 128 KiB"));
    }
    RefreshToken::parse(text).map_err(|e| bad(&e))
}

/// What an answer says, before it is judged.
#[derive(Debug)]
pub struct Claimed {
    /// `access_token`
    pub access_token: AccessToken,
    /// `token_type`
    pub token_type: String,
    /// `expires_in`, seconds.
    pub expires_in: Option<i64>,
    /// Seconds that the refresh token lives, where the issuer tells (`refresh_expires_in` and the like).
    pub refresh_expires_in: Option<i64>,
    /// `scope`
    pub scopes: Option<Vec<String>>,
    /// `audience`
    pub audience: Option<Vec<String>>,
    /// The rotated refresh token.
    pub rotated: Option<RefreshToken>,
}

/// Judge.
///
/// # Errors
/// `wrong-issuer`, `bad-expiry`, `answer-too-large`, `scope-shortfall`, `audience-shortfall`; a rotated refresh token comes along.
pub fn judge(provider: &Provider, grant: &Grant, claimed: Claimed, now: Timestamp) -> Outcome {
    let claims: serde_json::Map<String, Value> = jwt::claims(claimed.access_token.expose()).unwrap_or_default();
    let refuse = |kind, detail: String| {
        let mut error = ExchangeError::new(kind, detail);
        error.rotated.clone_from(&claimed.rotated);
        error
    };
    if let (Some(issuer), Some(Value::String(iss))) = (&provider.issuer, claims.get("iss"))
        && super::client::trimmed(iss) != super::client::trimmed(issuer)
    {
        return Err(refuse(Kind::WrongIssuer, format!("the access token's issuer is not {issuer}")));
    }
    let lifetime = lifetime(provider, claims.get("exp"), claimed.expires_in, now)
        .map_err(|detail| refuse(Kind::BadExpiry, detail))?;
    let scopes = claimed.scopes.clone().or_else(|| words(claims.get("scope").or_else(|| claims.get("scp"))));
    let told = scopes.iter().flatten().map(|scope| scope.len() + 1).sum::<usize>() + claimed.token_type.len();
    if claimed.access_token.expose().len() + told > MOST {
        let what = "the access token with its scopes is larger than 256 KiB";
        return Err(refuse(Kind::AnswerTooLarge, what.to_owned()));
    }
    let audience = words(claims.get("aud")).or_else(|| claimed.audience.clone());
    let missing_scope = scopes.as_ref().and_then(|granted| missing_scopes(&grant.scopes, granted).next());
    let missing_audience = match &audience {
        Some(have) => missing_audiences(&grant.audience, have).next(),
        // An opaque token tells nothing: nothing to find fault with.
        None if claims.is_empty() => None,
        None => grant.audience.first().map(String::as_str),
    };
    let shortfall = match (missing_scope, missing_audience) {
        (Some(scope), _) => Some((Kind::ScopeShortfall, format!("the scope {scope} was not granted"))),
        (None, Some(aud)) => Some((Kind::AudienceShortfall, format!("the audience {aud} was not granted"))),
        (None, None) => None,
    };
    let flagged = match shortfall {
        Some((kind, detail)) if provider.shortfall == Shortfall::Refuse => return Err(refuse(kind, detail)),
        other => other.map(|(kind, _)| kind),
    };
    Ok(Answer {
        access_token: claimed.access_token,
        token_type: claimed.token_type,
        lifetime,
        // 0 stands for "never ends" (Keycloak's offline sessions).
        refresh_lifetime: claimed
            .refresh_expires_in
            .and_then(|secs| u64::try_from(secs).ok())
            .filter(|secs| *secs > 0)
            .map(Duration::from_secs)
            .filter(|lifetime| *lifetime <= LONGEST),
        scopes,
        rotated: claimed.rotated,
        flagged,
    })
}

fn lifetime(
    provider: &Provider,
    exp: Option<&Value>,
    expires_in: Option<i64>,
    now: Timestamp,
) -> Result<Duration, String> {
    let left = exp.and_then(jwt::date).map(|exp| exp.secs().saturating_sub(now.secs()));
    let seconds = match (expires_in, left) {
        (Some(a), Some(b)) => a.min(b),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => return Ok(provider.default_lifetime),
    };
    let lifetime = u64::try_from(seconds).ok().filter(|s| *s > 0).map(Duration::from_secs);
    match lifetime {
        Some(lifetime) if lifetime <= LONGEST => Ok(lifetime),
        Some(_) => Err("the access token lives longer than ten years".into()),
        None => Err(format!("the access token expired {} s ago; is this machine's clock right?", -seconds)),
    }
}

/// The audiences that were asked for and are not among those of the token.
pub fn missing_audiences<'a>(wanted: &'a [String], have: &'a [String]) -> impl Iterator<Item = &'a str> {
    let covered = |wanted: &String| have.iter().any(|one| one == wanted || one == ANY_AUDIENCE);
    wanted.iter().filter(move |wanted| !covered(wanted)).map(String::as_str)
}

/// A blank-separated string, or a list of strings.
#[must_use]
pub fn words(value: Option<&Value>) -> Option<Vec<String>> {
    match value? {
        Value::String(text) => Some(text.split_whitespace().map(str::to_owned).collect()),
        Value::Array(list) => Some(list.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
        _ => None,
    }
}

/// The scopes that were asked for and are not covered. `offline_access` only asks for a refresh token.
pub fn missing_scopes<'a>(wanted: &'a [String], granted: &'a [String]) -> impl Iterator<Item = &'a str> {
    let wanted = wanted.iter().map(String::as_str).filter(|scope| *scope != "offline_access");
    wanted.filter(|scope| !granted.iter().any(|have| covers(have, scope)))
}

/// Equal, or the same right on a path above (`storage.read:/` covers `storage.read:/a/b`; WLCG and SciTokens).
fn covers(have: &str, wanted: &str) -> bool {
    if have == wanted {
        return true;
    }
    match (have.split_once(":/"), wanted.split_once(":/")) {
        (Some((right, above)), Some((same, below))) if right == same => {
            let above = above.trim_end_matches('/');
            above.is_empty() || below.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, core::answer::Spends};

    #[test]
    fn a_token_that_says_too_much_is_refused_and_the_rotated_refresh_token_stays() {
        use base64::Engine as _;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(
            &file,
            "[provider.p]\nkind = \"oauth2\"\nissuer = \"https://i.example.org/\"\nclient_id = \"c\"\n",
        )
        .unwrap();
        let sources = config::Sources {
            config: Some(file),
            credential_directory: Some(dir.path().into()),
            ..config::Sources::default()
        };
        let provider = config::load_with(&sources, &config::condor::Knobs::default()).unwrap().providers.remove(0);
        let grant = Grant {
            spends: Spends::RefreshToken(RefreshToken::parse("spent").unwrap()),
            scopes: Vec::new(),
            audience: Vec::new(),
        };
        let encode = |text: String| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        let judged = |words: usize| {
            let scope = "storage.read:/ ".repeat(words);
            let claims =
                serde_json::json!({ "iss": "https://i.example.org/", "exp": 4_000_000_000_u64, "scope": scope });
            let claimed = Claimed {
                access_token: AccessToken::parse(&format!("e30.{}.s", encode(claims.to_string()))).unwrap(),
                token_type: "Bearer".into(),
                expires_in: Some(600),
                refresh_expires_in: None,
                scopes: None,
                audience: None,
                rotated: Some(refresh_token("new", "it").unwrap()),
            };
            judge(&provider, &grant, claimed, Timestamp(1_700_000_000_000))
        };
        assert_eq!(judged(5_000).unwrap().scopes.unwrap().len(), 5_000);
        let error = judged(10_000).unwrap_err();
        assert_eq!((error.kind, error.rotated.unwrap().expose()), (Kind::AnswerTooLarge, "new"));
        assert!(refresh_token(&"a".repeat(LONGEST_REFRESH_TOKEN + 1), "it").is_err());
    }

    #[test]
    fn a_path_covers_what_is_below_it_and_nothing_beside_it() {
        assert!(covers("storage.read:/", "storage.read:/a/b"));
        assert!(covers("storage.read:/a", "storage.read:/a/b"));
        assert!(!covers("storage.read:/a", "storage.read:/ab"));
        assert!(!covers("storage.read:/a", "storage.modify:/a"));
        assert!(covers("openid", "openid"));
    }
}
