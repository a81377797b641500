//! What `evercred doctor` wants to know of an issuer: its addresses, whether TLS stands, its clock, its discovery
//! document, and what it says to our client.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::http::Caller;
use crate::{
    core::{
        answer::{Grant, Spends},
        secret::RefreshToken,
    },
    error::Kind,
    issuer::client,
};

/// What a probe saw. Texts are the issuer's or the system's, made fit for a terminal; no secret is in them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Facts {
    /// What was asked: the URL of the discovery document or the token endpoint.
    pub url: String,
    /// Addresses of its host.
    pub addresses: Result<Vec<String>, String>,
    /// HTTP status of a GET at `url`, or why there is none.
    pub reached: Result<u16, (Kind, String)>,
    /// The issuer's clock minus ours, seconds, by `Date`.
    pub skew: Option<i64>,
    /// The token endpoint, by configuration or discovery.
    pub endpoint: Result<String, (Kind, String)>,
    /// `scopes_supported` of the discovery document.
    pub scopes_supported: Option<Vec<String>>,
    /// The issuers behind a mytoken server, by its document.
    pub providers_supported: Option<Vec<String>>,
    /// What the issuer says to a request with a refresh token that does not exist, where `invalid_grant` is the good
    /// answer: our client is known. A client that asks for itself asks just so, and the token is dropped.
    pub client: Option<Result<(), (Kind, String)>>,
}

/// The refresh token of the test request. Nobody has it.
const NOBODYS: &str = "evercred-doctor-asks-whether-this-client-is-known";
const LOOKUP: Duration = Duration::from_secs(10);

/// Look at a provider's issuer.
pub async fn probe(caller: &Caller) -> Facts {
    let url = caller.front_url();
    let (reached, skew, document) = match caller.fetch(&url).await {
        Ok((status, date, body)) => (Ok(status), date.as_deref().and_then(skew), Some(body)),
        Err(error) => (Err((error.kind, error.detail)), None, None),
    };
    let endpoint = caller.endpoint().await.map(|endpoint| endpoint.to_string()).map_err(|e| (e.kind, e.detail));
    let (scopes, audience, own) = caller.wishes();
    let spends = if own { Ok(Spends::Nothing) } else { RefreshToken::parse(NOBODYS).map(Spends::RefreshToken) };
    let client = match (&endpoint, spends) {
        (Ok(_), Ok(spends)) => match caller.exchange(&Grant { spends, scopes, audience }).await {
            Ok(_) => own.then_some(Ok(())),
            Err(error) => Some(Err((error.kind, error.detail))),
        },
        _ => None,
    };
    let scopes_supported = document.as_ref().and_then(|document| client::scopes_supported(document));
    let providers_supported = document.as_ref().and_then(|document| client::providers_supported(document));
    let addresses = addresses(&url).await;
    Facts { url, addresses, reached, skew, endpoint, scopes_supported, providers_supported, client }
}

async fn addresses(url: &str) -> Result<Vec<String>, String> {
    let parsed = url::Url::parse(url).map_err(|e| e.to_string())?;
    let host = parsed.host_str().ok_or("no host in the URL")?.trim_matches(['[', ']']).to_owned();
    let port = parsed.port_or_known_default().unwrap_or(443);
    let found = tokio::time::timeout(LOOKUP, tokio::net::lookup_host((host, port)))
        .await
        .map_err(|_| "no answer from the name service within 10 s".to_owned())?
        .map_err(|e| e.to_string())?;
    Ok(found.map(|address| address.ip().to_string()).collect())
}

fn skew(date: &str) -> Option<i64> {
    let theirs = jiff::fmt::rfc2822::parse(date).ok()?.timestamp().as_second();
    let ours = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    Some(theirs - i64::try_from(ours).ok()?)
}
