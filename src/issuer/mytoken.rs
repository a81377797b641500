//! A mytoken server's access-token endpoint (mytoken contract §2.6, §2.8, §4), and its introspection (§2.9).

use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{TokenAnswer, TokenRequest, client, judge, oauth2};
use crate::{
    config::settings::Provider,
    core::{
        answer::{ExchangeError, Grant, Outcome},
        secret::RefreshToken,
        time::Timestamp,
    },
    error::Kind,
};

/// The JSON body.
#[must_use]
pub fn request(provider: &Provider, grant: &Grant) -> TokenRequest {
    let mut body = json!({ "grant_type": "mytoken", "mytoken": grant.refresh_token.expose() });
    if let Some(members) = body.as_object_mut() {
        if let Some(issuer) = &provider.issuer {
            members.insert("oidc_issuer".into(), json!(issuer));
        }
        if !grant.scopes.is_empty() {
            members.insert("scope".into(), json!(grant.scopes.join(" ")));
        }
        if !grant.audience.is_empty() {
            members.insert("audience".into(), json!(grant.audience.join(" ")));
        }
    }
    TokenRequest { authorization: None, content_type: "application/json", body: Zeroizing::new(body.to_string()) }
}

/// What the answer means.
///
/// # Errors
/// [`ExchangeError`].
pub fn answer(provider: &Provider, grant: &Grant, answer: &TokenAnswer, now: Timestamp) -> Outcome {
    if !(200..300).contains(&answer.status) {
        return Err(refused(answer, now));
    }
    let good: Map<String, Value> =
        serde_json::from_slice(&answer.body).map_err(|_| oauth2::not_a_token_answer(answer))?;
    // Whatever else is wrong, an updated mytoken is not thrown away.
    let update = good.get("token_update").or_else(|| good.get("updated_token"));
    let rotated =
        match update.and_then(|update| update.get("mytoken")).and_then(Value::as_str) {
            None | Some("") => None,
            Some(text) => Some(RefreshToken::parse(text).map_err(|e| {
                ExchangeError::new(Kind::BadAnswer, format!("the updated mytoken cannot be stored: {e}"))
            })?),
        };
    let claimed = oauth2::claimed(&good, rotated)?;
    judge::judge(provider, grant, claimed, now)
}

/// The question what a mytoken is; it costs the token nothing.
#[must_use]
pub fn introspection(token: &RefreshToken) -> TokenRequest {
    let body = json!({ "action": "introspect", "mytoken": token.expose() });
    TokenRequest { authorization: None, content_type: "application/json", body: Zeroizing::new(body.to_string()) }
}

/// What the answer says: the claims of a token that lives; `None`: it lives, and may not ask about itself.
///
/// # Errors
/// [`ExchangeError`]: it does not live, or nobody knows.
pub fn introspected(
    token: &RefreshToken,
    answer: &TokenAnswer,
    now: Timestamp,
) -> Result<Option<Value>, ExchangeError> {
    if !(200..300).contains(&answer.status) {
        let mut error = refused(answer, now);
        if error.kind == Kind::Restricted {
            return Ok(None);
        }
        error.detail = client::printable(&error.detail, token);
        return Err(error);
    }
    let mut good: Map<String, Value> =
        serde_json::from_slice(&answer.body).map_err(|_| oauth2::not_a_token_answer(answer))?;
    match good.get("valid").and_then(Value::as_bool) {
        Some(true) => Ok(good.remove("token")),
        Some(false) => Err(ExchangeError::new(Kind::Invalid, "the mytoken server says that it is not valid")),
        None => Err(oauth2::not_a_token_answer(answer)),
    }
}

pub(super) fn refused(answer: &TokenAnswer, now: Timestamp) -> ExchangeError {
    let bad = serde_json::from_slice::<oauth2::Bad>(&answer.body).ok();
    // The status of the provider behind the server comes through: look at the error before the status.
    if let Some(bad) = &bad
        && bad.error == "oidc_error"
    {
        let description = bad.error_description.as_deref().unwrap_or_default();
        let kind = if description.contains("invalid_grant") { Kind::ReauthNeeded } else { Kind::ServerError };
        return ExchangeError::new(kind, format!("the provider behind the mytoken server says {description}"));
    }
    if let Some(error) = client::http_failure(answer, now) {
        return error;
    }
    let Some(bad) = bad else { return oauth2::not_a_token_answer(answer) };
    let description = bad.error_description.unwrap_or_default();
    let kind = match (answer.status, bad.error.as_str()) {
        (401, "invalid_token") if description.is_empty() => Kind::Revoked,
        (401, "invalid_token") if description.contains("is expired") => Kind::Expired,
        (401, "invalid_token") if description.contains("not valid yet") || description.contains("before issued") => {
            Kind::NotYetValid
        }
        (401, "invalid_token") => Kind::Invalid,
        (_, "usage_restricted" | "insufficient_capabilities") => Kind::Restricted,
        (_, "invalid_request" | "invalid_grant" | "invalid_scope") => Kind::RequestRefused,
        _ => Kind::BadAnswer,
    };
    let words = if description.is_empty() { String::new() } else { format!(": {description}") };
    ExchangeError::new(kind, format!("the mytoken server says {}{words}", bad.error))
}
