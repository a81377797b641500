//! RFC 6749 §6, the refresh grant, and RFC 8693, a user's token exchanged for a refresh token of our own client; audiences as RFC 8707 `resource` or as `audience`.

use base64::Engine as _;
use serde::Deserialize;
use serde_json::{Map, Value};
use url::form_urlencoded::{Serializer, byte_serialize};
use zeroize::Zeroizing;

use super::{TokenAnswer, TokenRequest, client, judge};
use crate::{
    config::settings::{AudienceStyle, ClientAuth, OAuth2, Provider},
    core::{
        answer::{ExchangeError, Grant, Outcome},
        secret::{AccessToken, RefreshToken},
        time::Timestamp,
    },
    error::Kind,
};

/// The form.
#[must_use]
pub fn request(oauth2: &OAuth2, grant: &Grant) -> TokenRequest {
    let mut form = Serializer::new(String::with_capacity(1024));
    let mut scopes: Vec<&str> = grant.scopes.iter().map(String::as_str).collect();
    if grant.subject {
        form.append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
            .append_pair("subject_token", grant.refresh_token.expose())
            .append_pair("subject_token_type", "urn:ietf:params:oauth:token-type:access_token");
        // By it an issuer knows that a refresh token is wanted as well.
        if !scopes.contains(&"offline_access") {
            scopes.push("offline_access");
        }
    } else {
        form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", grant.refresh_token.expose());
    }
    if !scopes.is_empty() {
        form.append_pair("scope", &scopes.join(" "));
    }
    match oauth2.audience_style {
        _ if grant.audience.is_empty() => {}
        AudienceStyle::Audience => {
            form.append_pair("audience", &grant.audience.join(" "));
        }
        AudienceStyle::Repeated => {
            form.extend_pairs(grant.audience.iter().map(|a| ("audience", a)));
        }
        AudienceStyle::Resource => {
            form.extend_pairs(grant.audience.iter().map(|a| ("resource", a)));
        }
    }
    authenticated(oauth2, form)
}

/// RFC 6749 §4.1.3 and RFC 7636: an authorisation code for a refresh token.
#[must_use]
pub fn code_request(oauth2: &OAuth2, code: &str, verifier: &str, return_url: &str) -> TokenRequest {
    let mut form = Serializer::new(String::with_capacity(1024));
    form.append_pair("grant_type", "authorization_code")
        .append_pair("code", code)
        .append_pair("redirect_uri", return_url)
        .append_pair("code_verifier", verifier);
    authenticated(oauth2, form)
}

/// What the answer to a code means: the refresh token. The access token beside it is dropped, because the first `.use`
/// is made as every other one.
///
/// # Errors
/// [`ExchangeError`]; also if there is no refresh token, without which nothing could be kept alive.
pub fn code_answer(answer: &TokenAnswer, now: Timestamp) -> Result<RefreshToken, ExchangeError> {
    #[derive(Deserialize)]
    struct Granted {
        refresh_token: Option<String>,
    }
    if !(200..300).contains(&answer.status) {
        return Err(refused(answer, now));
    }
    let granted: Granted = serde_json::from_slice(&answer.body).map_err(|_| not_a_token_answer(answer))?;
    let text = granted.refresh_token.map(Zeroizing::new).filter(|text| !text.is_empty()).ok_or_else(|| {
        let what = "the issuer gave no refresh token, so nothing can be renewed; the administrators of this host may need \
                    to ask for the scope offline_access (`scopes` of the provider)";
        ExchangeError::new(Kind::BadAnswer, what)
    })?;
    judge::refresh_token(&text, "the refresh token")
}

/// The form with the client's name and, where it has one, secret.
fn authenticated(oauth2: &OAuth2, mut form: Serializer<'_, String>) -> TokenRequest {
    let authorization = show_client(oauth2, &mut form);
    TokenRequest {
        authorization,
        content_type: "application/x-www-form-urlencoded",
        body: Zeroizing::new(form.finish()),
    }
}

/// Put who we are into the form, or into the header that comes back.
pub(super) fn show_client(oauth2: &OAuth2, form: &mut Serializer<'_, String>) -> Option<Zeroizing<String>> {
    match (&oauth2.client_secret, oauth2.client_auth) {
        (Some(secret), ClientAuth::Header) => {
            // RFC 6749 §2.3.1: both are form-encoded before they are joined.
            let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
            let joined = Zeroizing::new(format!("{}:{}", encoded(&oauth2.client_id), encoded(secret.expose())));
            let basic = base64::engine::general_purpose::STANDARD.encode(joined.as_bytes());
            return Some(Zeroizing::new(format!("Basic {basic}")));
        }
        (Some(secret), ClientAuth::Body) => {
            form.append_pair("client_id", &oauth2.client_id).append_pair("client_secret", secret.expose());
        }
        (None, _) => {
            form.append_pair("client_id", &oauth2.client_id);
        }
    }
    None
}

/// RFC 6749 §5.2.
#[derive(Deserialize)]
pub(super) struct Bad {
    pub(super) error: String,
    #[serde(default)]
    pub(super) error_description: Option<String>,
}

/// What the answer means.
///
/// # Errors
/// [`ExchangeError`].
pub fn answer(provider: &Provider, grant: &Grant, answer: &TokenAnswer, now: Timestamp) -> Outcome {
    if !(200..300).contains(&answer.status) {
        return Err(refused(answer, now));
    }
    // RFC 6749 §5.1, taken apart member by member: whatever else is wrong, a new refresh token is not thrown away.
    let good: Map<String, Value> = serde_json::from_slice(&answer.body).map_err(|_| not_a_token_answer(answer))?;
    let rotated = match good.get("refresh_token").and_then(Value::as_str) {
        None | Some("") => None,
        Some(text) if text == grant.refresh_token.expose() => None,
        Some(text) => Some(judge::refresh_token(text, "the new refresh token")?),
    };
    if grant.subject && rotated.is_none() {
        let what = "the exchange gave no refresh token: our client may not have offline_access";
        return Err(ExchangeError::new(Kind::RequestRefused, what));
    }
    let refresh_ends = good.get("refresh_expires_in").or_else(|| good.get("refresh_token_expires_in"));
    let refresh_expires_in = refresh_ends.and_then(seconds);
    let claimed = judge::Claimed { refresh_expires_in, ..claimed(&good, rotated)? };
    judge::judge(provider, grant, claimed, now)
}

/// A number of seconds; some issuers write it as a string or with a fraction.
fn seconds(value: &Value) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "a fraction of a second, and saturating")]
    match value {
        Value::Number(n) => n.as_i64().or_else(|| n.as_f64().map(|n| n as i64)),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// What both kinds' good answers have.
pub(super) fn claimed(
    good: &Map<String, Value>,
    rotated: Option<RefreshToken>,
) -> Result<judge::Claimed, ExchangeError> {
    let bad = |what: String, rotated: &Option<RefreshToken>| {
        let mut error = ExchangeError::new(Kind::BadAnswer, what);
        error.rotated.clone_from(rotated);
        error
    };
    let Some(text) = good.get("access_token").and_then(Value::as_str) else {
        return Err(bad("the issuer's answer has no access_token".into(), &rotated));
    };
    let access_token = AccessToken::parse(text).map_err(|e| bad(format!("access_token: {e}"), &rotated))?;
    let token_type = good.get("token_type").and_then(Value::as_str).filter(|text| !text.is_empty());
    Ok(judge::Claimed {
        access_token,
        token_type: token_type.unwrap_or("Bearer").into(),
        expires_in: good.get("expires_in").and_then(seconds),
        refresh_expires_in: None,
        scopes: judge::words(good.get("scope")),
        audience: judge::words(good.get("audience")),
        rotated,
    })
}

/// Not JSON, or not the members that we need.
pub(super) fn not_a_token_answer(answer: &TokenAnswer) -> ExchangeError {
    let what = if answer.body.trim_ascii_start().starts_with(b"<") { "HTML" } else { "no token answer" };
    ExchangeError::new(Kind::BadAnswer, format!("the issuer answers HTTP {} with {what}", answer.status))
}

pub(super) fn refused(answer: &TokenAnswer, now: Timestamp) -> ExchangeError {
    if let Some(error) = client::http_failure(answer, now) {
        return error;
    }
    let Ok(bad) = serde_json::from_slice::<Bad>(&answer.body) else { return not_a_token_answer(answer) };
    let description = bad.error_description.unwrap_or_default();
    let kind = match bad.error.as_str() {
        // Some issuers call a refresh token that is dead or unknown an invalid token.
        "invalid_grant" | "invalid_token" if description.to_ascii_lowercase().contains("expired") => Kind::Expired,
        "invalid_grant" | "invalid_token" => Kind::Revoked,
        "invalid_client" | "unauthorized_client" => Kind::ClientRefused,
        "invalid_scope" | "invalid_request" | "invalid_target" | "unsupported_grant_type" => Kind::RequestRefused,
        "temporarily_unavailable" | "server_error" => Kind::ServerError,
        _ if answer.status == 401 => Kind::ClientRefused,
        _ => Kind::BadAnswer,
    };
    let mut error = ExchangeError::new(kind, format!("the issuer says {}: {description}", bad.error));
    error.retry_after = client::retry_after(answer, now);
    error
}
