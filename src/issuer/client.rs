//! What all kinds share: discovery documents, HTTP failures, words of an issuer made fit for a log.

use std::time::Duration;

use serde::Deserialize;

use super::TokenAnswer;
use crate::{
    core::{
        answer::ExchangeError,
        secret::{ClientSecret, RefreshToken},
        time::Timestamp,
    },
    error::Kind,
};

/// The members of a discovery document that we use (OpenID Connect Discovery 1.0, RFC 8414, mytoken contract §2.1).
#[derive(Debug, Deserialize)]
struct Document {
    issuer: String,
    token_endpoint: Option<String>,
    access_token_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    tokeninfo_endpoint: Option<String>,
}

/// Without the trailing slash, which people write or not.
#[must_use]
pub fn trimmed(url: &str) -> &str {
    url.trim_end_matches('/')
}

/// https, or http to a loopback address.
#[must_use]
pub fn is_safe(url: &str) -> bool {
    url::Url::parse(url).is_ok_and(|url| match url.scheme() {
        "https" => true,
        "http" => match url.host() {
            Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
            Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost",
            None => false,
        },
        _ => false,
    })
}

/// The token endpoint that the discovery document of `issuer` names.
///
/// # Errors
/// Not such a document, another issuer's, or an endpoint that is not https.
pub fn endpoint(issuer: &str, document: &[u8]) -> Result<String, ExchangeError> {
    named(issuer, "token", parsed(issuer, document).map(|it| it.access_token_endpoint.or(it.token_endpoint))?)
}

/// The revocation endpoint that it names.
///
/// # Errors
/// As [`endpoint`].
pub fn revocation_endpoint(issuer: &str, document: &[u8]) -> Result<String, ExchangeError> {
    named(issuer, "revocation", parsed(issuer, document)?.revocation_endpoint)
}

/// Where a mytoken server tells about a token; `None`: it tells nobody.
///
/// # Errors
/// As [`endpoint`].
pub fn tokeninfo_endpoint(issuer: &str, document: &[u8]) -> Result<Option<String>, ExchangeError> {
    let endpoint = parsed(issuer, document)?.tokeninfo_endpoint;
    endpoint.map(|endpoint| named(issuer, "tokeninfo", Some(endpoint))).transpose()
}

fn parsed(issuer: &str, document: &[u8]) -> Result<Document, ExchangeError> {
    let fail = |what: String| ExchangeError::new(Kind::Discovery, what);
    let document: Document = serde_json::from_slice(document)
        .map_err(|e| fail(format!("the discovery document of {issuer} is none: {e}")))?;
    if trimmed(&document.issuer) != trimmed(issuer) {
        return Err(fail(format!("the discovery document of {issuer} names another issuer")));
    }
    Ok(document)
}

fn named(issuer: &str, what: &str, endpoint: Option<String>) -> Result<String, ExchangeError> {
    let fail = |what: String| ExchangeError::new(Kind::Discovery, what);
    let endpoint =
        endpoint.ok_or_else(|| fail(format!("the discovery document of {issuer} names no {what} endpoint")))?;
    if is_safe(&endpoint) { Ok(endpoint) } else { Err(fail(format!("the {what} endpoint of {issuer} is not https"))) }
}

/// Where users approve in a browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontDoor {
    /// The authorization endpoint.
    pub url: String,
    /// Its answers carry `iss` (RFC 9207).
    pub iss: bool,
}

/// The authorization endpoint that the discovery document of `issuer` names.
///
/// # Errors
/// As [`endpoint`].
pub fn front_door(issuer: &str, document: &[u8]) -> Result<FrontDoor, ExchangeError> {
    #[derive(Deserialize)]
    struct Door {
        issuer: String,
        authorization_endpoint: Option<String>,
        #[serde(default)]
        authorization_response_iss_parameter_supported: bool,
    }
    let fail = |what: String| ExchangeError::new(Kind::Discovery, what);
    let door: Door = serde_json::from_slice(document)
        .map_err(|e| fail(format!("the discovery document of {issuer} is none: {e}")))?;
    if trimmed(&door.issuer) != trimmed(issuer) {
        return Err(fail(format!("the discovery document of {issuer} names another issuer")));
    }
    match door.authorization_endpoint {
        Some(url) if is_safe(&url) => Ok(FrontDoor { url, iss: door.authorization_response_iss_parameter_supported }),
        Some(_) => Err(fail(format!("the authorization endpoint of {issuer} is not https"))),
        None => Err(fail(format!("the discovery document of {issuer} names no authorization endpoint"))),
    }
}

/// `scopes_supported` of a discovery document.
#[must_use]
pub fn scopes_supported(document: &[u8]) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct Scopes {
        scopes_supported: Option<Vec<String>>,
    }
    serde_json::from_slice::<Scopes>(document).ok()?.scopes_supported
}

/// The issuers of `providers_supported` in a mytoken server's document (mytoken contract §2.1): behind it, one of them is
/// where users approve.
#[must_use]
pub fn providers_supported(document: &[u8]) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct Providers {
        providers_supported: Option<Vec<One>>,
    }
    #[derive(Deserialize)]
    struct One {
        issuer: String,
    }
    let providers = serde_json::from_slice::<Providers>(document).ok()?.providers_supported?;
    Some(providers.into_iter().map(|one| one.issuer).collect())
}

/// No `Retry-After` counts for more: a proxy's day, or a date in a wrong year, would let everybody's tokens expire.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(15 * 60);

/// `Retry-After` as a delay, seconds or an HTTP date, up to [`LONGEST_PAUSE`].
#[must_use]
pub fn retry_after(answer: &TokenAnswer, now: Timestamp) -> Option<Duration> {
    let text = answer.retry_after.as_deref()?.trim();
    let wait = match text.parse::<u32>() {
        Ok(seconds) => Duration::from_secs(seconds.into()),
        Err(_) => Timestamp(jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_millisecond()).since(now),
    };
    Some(wait.min(LONGEST_PAUSE))
}

/// The failures that say nothing about the credential: redirects, 429, 5xx.
#[must_use]
pub fn http_failure(answer: &TokenAnswer, now: Timestamp) -> Option<ExchangeError> {
    let kind = match answer.status {
        300..=399 => Kind::Redirect,
        429 => Kind::RateLimited,
        500..=599 => Kind::ServerError,
        _ => return None,
    };
    let mut error = ExchangeError::new(kind, format!("the issuer answers HTTP {}", answer.status));
    error.retry_after = retry_after(answer, now);
    Some(error)
}

/// An issuer's words about a request, fit for a log: as [`presentable`], and nothing secret that it was sent.
#[must_use]
pub fn printable(text: &str, token: Option<&RefreshToken>, client_secret: Option<&ClientSecret>) -> String {
    let secrets = token.map(RefreshToken::expose).into_iter().chain(client_secret.map(ClientSecret::expose));
    presentable(&secrets.fold(text.to_owned(), |text, secret| text.replace(secret, "[masked]")))
}

/// An issuer's words: no control characters, no long runs that could be a token, 200 characters.
#[must_use]
pub fn presentable(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    clean
        .split(' ')
        .map(|word| if longest_run(word) > 40 && !word.starts_with("http") { "[masked]" } else { word })
        .collect::<Vec<_>>()
        .join(" ")
}

fn longest_run(word: &str) -> usize {
    word.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.~+/=".contains(c))).map(str::len).max().unwrap_or(0)
}
