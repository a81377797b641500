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
    let mytoken = grant.spends.token().map(RefreshToken::expose);
    let mut body = json!({ "grant_type": "mytoken", "mytoken": mytoken });
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
    let rotated = match update.and_then(|update| update.get("mytoken")).and_then(Value::as_str) {
        None | Some("") => None,
        Some(text) => Some(judge::refresh_token(text, "the updated mytoken")?),
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
        error.detail = client::printable(&error.detail, Some(token), None);
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
        let mut error = ExchangeError::new(kind, format!("the provider behind the mytoken server says {description}"));
        error.retry_after = client::retry_after(answer, now);
        return error;
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::settings::{ProviderKind, Shortfall},
        issuer::{
            self,
            samples::{self, Does, NOW, TOKEN, does, grant, jwt},
        },
    };

    fn provider() -> Provider {
        let kind = ProviderKind::Mytoken { server: "https://mytok.example".into() };
        Provider { issuer: Some("https://op.example/oauth2/".into()), ..samples::provider(kind) }
    }

    fn good(members: &Value) -> Outcome {
        issuer::answer(&provider(), &grant(&[], &[]), &samples::answer(200, &members.to_string()), NOW)
    }

    #[test]
    fn the_request_is_json_with_the_mytoken_in_the_body_and_the_wishes_separated_by_blanks() {
        let told = |provider: &Provider, scopes: &[&str], audience: &[&str]| {
            let request = issuer::request(provider, &grant(scopes, audience));
            assert!(request.authorization.is_none(), "with a header, the body's member would have to be left out");
            assert_eq!(request.content_type, "application/json");
            request.body.replace(TOKEN, "T")
        };
        let plain = r#"{"grant_type":"mytoken","mytoken":"T","oidc_issuer":"https://op.example/oauth2/"}"#;
        assert_eq!(told(&provider(), &[], &[]), plain);
        assert_eq!(
            told(&provider(), &["compute.read", "storage.read:/a \"b\""], &["https://a", "https://b"]),
            r#"{"grant_type":"mytoken","mytoken":"T","oidc_issuer":"https://op.example/oauth2/","scope":"compute.read storage.read:/a \"b\"","audience":"https://a https://b"}"#
        );
        let anybody = Provider { issuer: None, ..provider() };
        assert_eq!(told(&anybody, &["a"], &[]), r#"{"grant_type":"mytoken","mytoken":"T","scope":"a"}"#);
    }

    /// Contract §2.6, every row of the table of failures, and those of §4 that no row of it has.
    #[rustfmt::skip]
    const ROWS: &[(u16, &str, Kind, Does)] = &[
        (401, r#"{"error":"invalid_token","error_description":"token is expired by 1h2m3s"}"#, Kind::Expired, Does::Park),
        (401, r#"{"error":"invalid_token"}"#, Kind::Revoked, Does::Park),
        (401, r#"{"error":"invalid_token","error_description":""}"#, Kind::Revoked, Does::Park),
        (401, r#"{"error":"invalid_token","error_description":null}"#, Kind::Revoked, Does::Park),
        (401, r#"{"error":"invalid_token","error_description":"token is not valid yet"}"#, Kind::NotYetValid, Does::Slow),
        (401, r#"{"error":"invalid_token","error_description":"Token used before issued"}"#, Kind::NotYetValid, Does::Slow),
        (401, r#"{"error":"invalid_token","error_description":"crypto/ecdsa: verification error"}"#, Kind::Invalid, Does::Park),
        (401, r#"{"error":"invalid_token","error_description":"token contains an invalid number of segments"}"#, Kind::Invalid, Does::Park),
        (401, r#"{"error":"invalid_token","error_description":"No refresh token attached"}"#, Kind::Invalid, Does::Park),
        (403, r#"{"error":"usage_restricted","error_description":"The restrictions of this token does not allow this usage"}"#, Kind::Restricted, Does::Slow),
        (403, r#"{"error":"insufficient_capabilities","error_description":"The provided token does not have the required capability for this operation"}"#, Kind::Restricted, Does::Slow),
        // The status is that of the provider behind the server.
        (400, r#"{"error":"oidc_error","error_description":"invalid_grant: refresh token unknown"}"#, Kind::ReauthNeeded, Does::Slow),
        (401, r#"{"error":"oidc_error","error_description":"invalid_grant: "}"#, Kind::ReauthNeeded, Does::Slow),
        (500, r#"{"error":"oidc_error","error_description":"invalid_grant: session expired"}"#, Kind::ReauthNeeded, Does::Slow),
        (400, r#"{"error":"oidc_error","error_description":"invalid_target: resource unknown"}"#, Kind::ServerError, Does::Retry),
        (401, r#"{"error":"oidc_error","error_description":"invalid_client: "}"#, Kind::ServerError, Does::Retry),
        (429, r#"{"error":"oidc_error","error_description":"slow down"}"#, Kind::ServerError, Does::Retry),
        (503, r#"{"error":"oidc_error"}"#, Kind::ServerError, Does::Retry),
        (400, r#"{"error":"invalid_request","error_description":"token not for specified issuer"}"#, Kind::RequestRefused, Does::Slow),
        (400, r#"{"error":"invalid_request","error_description":"value 'foo' not valid for GrantType"}"#, Kind::RequestRefused, Does::Slow),
        (400, r#"{"error":"invalid_request","error_description":"invalid character 'g' looking for beginning of value"}"#, Kind::RequestRefused, Does::Slow),
        (400, r#"{"error":"invalid_request","error_description":"token not valid"}"#, Kind::RequestRefused, Does::Slow),
        (500, r#"{"error":"internal_server_error","error_description":"dial tcp: connection refused"}"#, Kind::ServerError, Does::Retry),
        (500, r#"{"error":"internal_server_error","error_description":"cipher: message authentication failed"}"#, Kind::ServerError, Does::Retry),
        (429, "Too Many Requests", Kind::RateLimited, Does::Retry),
        (404, r#"{"error":"not_found","error_description":"/api/v0/token/acces"}"#, Kind::BadAnswer, Does::Retry),
        (404, "<!doctype html><title>Not found</title>", Kind::BadAnswer, Does::Retry),
        (403, "<html>blocked by a proxy</html>", Kind::BadAnswer, Does::Retry),
        (401, "", Kind::BadAnswer, Does::Retry),
        (502, "<html>Bad Gateway</html>", Kind::ServerError, Does::Retry),
        (503, "", Kind::ServerError, Does::Retry),
        (555, "<html>trouble at the provider</html>", Kind::ServerError, Does::Retry),
        (302, "", Kind::Redirect, Does::Retry),
        (200, "<!doctype html><title>Sign in</title>", Kind::BadAnswer, Does::Retry),
        (200, r#"{"access_token":"eyJ"#, Kind::BadAnswer, Does::Retry),
        (200, r#"["access_token"]"#, Kind::BadAnswer, Does::Retry),
        (200, r#"{"token_type":"Bearer","expires_in":600}"#, Kind::BadAnswer, Does::Retry),
        (200, r#"{"access_token":"abc","expires_in":-5}"#, Kind::BadExpiry, Does::Retry),
    ];

    #[test]
    fn every_failure_of_the_contract_has_its_kind_and_its_course_and_touches_no_file() {
        for (status, body, kind, course) in ROWS {
            let error =
                issuer::answer(&provider(), &grant(&[], &[]), &samples::answer(*status, body), NOW).unwrap_err();
            assert_eq!(error.kind, *kind, "{status} {body}");
            assert!(error.rotated.is_none() && error.retry_after.is_none(), "{status} {body}");
            assert_eq!(does(&error), *course, "{status} {body}");
        }
    }

    #[test]
    fn retry_after_is_heard_in_plain_text_in_an_error_of_the_provider_behind_and_as_a_date_but_not_for_a_day() {
        let heard = |status, body: &str, wish: &str| {
            let limited = TokenAnswer { retry_after: Some(wish.to_owned()), ..samples::answer(status, body) };
            issuer::answer(&provider(), &grant(&[], &[]), &limited, NOW).unwrap_err().retry_after
        };
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(heard(429, "Too Many Requests", "42"), seconds(42));
        assert_eq!(heard(429, "Too Many Requests", "Tue, 14 Nov 2023 22:13:50 GMT"), seconds(30));
        assert_eq!(heard(429, "Too Many Requests", "86400"), seconds(900));
        assert_eq!(heard(429, "Too Many Requests", "soon"), None);
        assert_eq!(heard(503, "", "7"), seconds(7));
        assert_eq!(heard(503, r#"{"error":"oidc_error","error_description":"busy"}"#, "7"), seconds(7));
    }

    #[test]
    fn no_word_of_the_server_carries_the_mytoken_into_a_log() {
        let body = json!({ "error": "invalid_token", "error_description": format!("bad token {TOKEN}!") }).to_string();
        let error = issuer::answer(&provider(), &grant(&[], &[]), &samples::answer(401, &body), NOW).unwrap_err();
        assert_eq!(error.detail, "the mytoken server says invalid_token: bad token [masked]!");
    }

    #[test]
    fn an_opaque_token_without_a_type_is_bearer_and_lives_as_long_as_it_is_said_or_as_configured() {
        let told = good(&json!({ "access_token": "opaque", "token_type": "", "expires_in": 600 })).unwrap();
        assert_eq!((told.token_type.as_str(), told.lifetime), ("Bearer", Duration::from_secs(600)));
        let told = good(&json!({ "access_token": "opaque" })).unwrap();
        assert_eq!((told.lifetime, told.rotated.is_none()), (Duration::from_secs(3600), true));
        let exp = NOW.secs() + 500;
        let told = good(&json!({ "access_token": jwt(&json!({ "exp": exp })), "token_type": "bearer" })).unwrap();
        assert_eq!((told.token_type.as_str(), told.lifetime), ("bearer", Duration::from_secs(500)));
    }

    #[test]
    fn an_update_is_kept_under_either_name_and_whatever_else_is_wrong() {
        let update = json!({ "mytoken": "the-next-one", "mytoken_type": "token", "expires_in": 600, "mom_id": "x" });
        let next = |rotated: Option<RefreshToken>| rotated.map(|token| token.expose().to_owned());
        for name in ["token_update", "updated_token"] {
            let told = good(&json!({ "access_token": "abc", "expires_in": 600, name: update })).unwrap();
            assert_eq!(next(told.rotated).as_deref(), Some("the-next-one"), "{name}");
        }
        for (bad, kind) in [
            (json!({ "token_update": update }), Kind::BadAnswer),
            (json!({ "access_token": 7, "token_update": update }), Kind::BadAnswer),
            (json!({ "access_token": "abc", "expires_in": 0, "token_update": update }), Kind::BadExpiry),
            (json!({ "access_token": jwt(&json!({ "iss": "https://x" })), "token_update": update }), Kind::WrongIssuer),
        ] {
            let error = good(&bad).unwrap_err();
            assert_eq!((error.kind, next(error.rotated).as_deref()), (kind, Some("the-next-one")), "{bad}");
        }
        for none in [json!({}), json!({ "mytoken": "" }), json!("text"), Value::Null] {
            let told = good(&json!({ "access_token": "abc", "expires_in": 600, "token_update": none })).unwrap();
            assert!(told.rotated.is_none());
        }
        let error = good(&json!({ "access_token": "abc", "token_update": { "mytoken": "a\nb" } })).unwrap_err();
        assert_eq!(error.kind, Kind::BadAnswer);
    }

    #[test]
    fn wishes_that_an_unrestricted_mytoken_ignores_are_found_missing() {
        // Contract §2.6, the trap.
        let body = json!({ "access_token": jwt(&json!({ "aud": "https://other" })), "expires_in": 600, "scope": "offline_access" });
        let answered = |shortfall, scopes: &[&str], audience: &[&str]| {
            let provider = Provider { shortfall, ..provider() };
            issuer::answer(&provider, &grant(scopes, audience), &samples::answer(200, &body.to_string()), NOW)
        };
        for (scopes, audience, kind) in [
            (&["compute.read"][..], &[][..], Kind::ScopeShortfall),
            (&["offline_access"], &["https://a"], Kind::AudienceShortfall),
        ] {
            assert_eq!(answered(Shortfall::Refuse, scopes, audience).unwrap_err().kind, kind);
            assert_eq!(answered(Shortfall::Flag, scopes, audience).unwrap().flagged, Some(kind));
        }
        let told = answered(Shortfall::Refuse, &["offline_access"], &["https://other"]).unwrap();
        assert_eq!(told.flagged, None);
    }
}
