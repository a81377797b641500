//! How each kind of issuer is asked, and what its answers mean. Pure: bytes in, values out; the courier sends them.

pub mod client;
pub mod judge;
pub mod mytoken;
pub mod oauth2;
pub mod revocation;
#[cfg(test)]
pub(crate) mod samples;

use zeroize::Zeroizing;

use crate::{
    config::settings::{Provider, ProviderKind},
    core::answer::{ExchangeError, Grant, Outcome},
    core::time::Timestamp,
};

/// One POST to a token endpoint.
#[derive(Debug)]
pub struct TokenRequest {
    /// Value of `Authorization`, if any.
    pub authorization: Option<Zeroizing<String>>,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// The body.
    pub body: Zeroizing<String>,
}

/// What came back over HTTP.
#[derive(Debug)]
pub struct TokenAnswer {
    /// Status code.
    pub status: u16,
    /// `Retry-After`, in seconds or as an HTTP date.
    pub retry_after: Option<String>,
    /// The body, capped by the courier.
    pub body: Zeroizing<Vec<u8>>,
}

/// The request for one exchange.
#[must_use]
pub fn request(provider: &Provider, grant: &Grant) -> TokenRequest {
    match &provider.kind {
        ProviderKind::OAuth2(oauth2) => oauth2::request(oauth2, grant),
        ProviderKind::Mytoken { .. } => mytoken::request(provider, grant),
    }
}

/// What the answer to it means.
///
/// # Errors
/// [`ExchangeError`], classified; a refresh token that was rotated all the same comes with it.
pub fn answer(provider: &Provider, grant: &Grant, answer: &TokenAnswer, now: Timestamp) -> Outcome {
    let outcome = match &provider.kind {
        ProviderKind::OAuth2(_) => oauth2::answer(provider, grant, answer, now),
        ProviderKind::Mytoken { .. } => mytoken::answer(provider, grant, answer, now),
    };
    outcome.map_err(|mut error: ExchangeError| {
        error.detail = client::printable(&error.detail, grant.spends.token(), provider.client_secret());
        error
    })
}
