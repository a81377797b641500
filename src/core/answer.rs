//! What an exchange asks for, what comes back, and how an issuer's failure is told.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::secret::{AccessToken, RefreshToken, on_wire};
use crate::error::Kind;

/// What a renewal asks the issuer for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Grant {
    /// What the exchange shows for it, besides our client's own credentials.
    pub spends: Spends,
    /// Scopes wished for; empty: the issuer's default.
    pub scopes: Vec<String>,
    /// Audiences wished for; empty: the issuer's default.
    pub audience: Vec<String>,
}

/// What an exchange spends.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Spends {
    /// A refresh token or a mytoken.
    RefreshToken(#[serde(with = "on_wire")] RefreshToken),
    /// No refresh token yet but a user's subject token (RFC 8693), exchanged for one.
    SubjectToken(#[serde(with = "on_wire")] RefreshToken),
    /// Nothing: the client asks for itself (RFC 6749 §4.4).
    Nothing,
}

impl Spends {
    /// The token that is spent, if one is.
    #[must_use]
    pub fn token(&self) -> Option<&RefreshToken> {
        match self {
            Self::RefreshToken(token) | Self::SubjectToken(token) => Some(token),
            Self::Nothing => None,
        }
    }
}

/// A verified answer of an issuer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// The new access token.
    #[serde(with = "on_wire")]
    pub access_token: AccessToken,
    /// `Bearer`, unless the issuer says otherwise.
    pub token_type: String,
    /// Lifetime from the moment of the answer; already the smaller of `expires_in` and the JWT's `exp`.
    pub lifetime: Duration,
    /// Lifetime of the refresh token from the moment of the answer, if the issuer tells.
    pub refresh_lifetime: Option<Duration>,
    /// Granted scopes, if the issuer or the token tells.
    pub scopes: Option<Vec<String>>,
    /// Present only if the issuer rotated: the refresh token that must be used from now on.
    #[serde(with = "on_wire::option")]
    pub rotated: Option<RefreshToken>,
    /// What the provider is content to have flagged instead of refused.
    pub flagged: Option<Kind>,
}

/// A failed exchange. `detail` is for people and never holds a secret.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct ExchangeError {
    /// The stable kind.
    pub kind: Kind,
    /// What happened, in one line.
    pub detail: String,
    /// The issuer's `Retry-After`.
    pub retry_after: Option<Duration>,
    /// A refresh token that came back rotated although the rest of the answer is refused: it must be kept.
    #[serde(with = "on_wire::option")]
    pub rotated: Option<RefreshToken>,
}

impl ExchangeError {
    /// Without `Retry-After`.
    #[must_use]
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), retry_after: None, rotated: None }
    }
}

/// How an exchange ended.
pub type Outcome = Result<Answer, ExchangeError>;
