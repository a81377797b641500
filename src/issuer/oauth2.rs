//! RFC 6749 §6, the refresh grant; §4.4, a client that asks for itself; RFC 8693, a user's token exchanged for a refresh
//! token of our own client. Audiences as RFC 8707 `resource` or as `audience`.

use base64::Engine as _;
use serde::Deserialize;
use serde_json::{Map, Value};
use url::form_urlencoded::{Serializer, byte_serialize};
use zeroize::Zeroizing;

use super::{TokenAnswer, TokenRequest, client, judge};
use crate::{
    config::settings::{AudienceStyle, ClientAuth, OAuth2, Provider, ProviderKind},
    core::{
        answer::{ExchangeError, Grant, Outcome, Spends},
        jwt,
        secret::{AccessToken, RefreshToken},
        time::Timestamp,
    },
    error::{Class, Kind},
};

/// The form.
#[must_use]
pub fn request(oauth2: &OAuth2, grant: &Grant) -> TokenRequest {
    let mut form = Serializer::new(String::with_capacity(1024));
    let mut scopes: Vec<&str> = grant.scopes.iter().map(String::as_str).collect();
    match &grant.spends {
        Spends::RefreshToken(token) => {
            form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", token.expose());
        }
        Spends::SubjectToken(token) => {
            form.append_pair("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
                .append_pair("subject_token", token.expose())
                .append_pair("subject_token_type", "urn:ietf:params:oauth:token-type:access_token");
            // By it an issuer knows that a refresh token is wanted as well.
            if !scopes.contains(&"offline_access") {
                scopes.push("offline_access");
            }
        }
        Spends::Nothing => {
            form.append_pair("grant_type", "client_credentials");
        }
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
pub fn code_answer(answer: &TokenAnswer, now: Timestamp) -> Result<(RefreshToken, Option<IdToken>), ExchangeError> {
    #[derive(Deserialize)]
    struct Granted {
        refresh_token: Option<String>,
        id_token: Option<String>,
    }
    if !(200..300).contains(&answer.status) {
        return Err(refused(answer, now));
    }
    let granted: Granted = serde_json::from_slice(&answer.body).map_err(|_| not_a_token_answer(answer))?;
    let approver = granted.id_token.and_then(|token| jwt::claims(&token));
    let text = granted.refresh_token.map(Zeroizing::new).filter(|text| !text.is_empty()).ok_or_else(|| {
        let what = "the issuer gave no refresh token, so nothing can be renewed; the administrators of this host may need \
                    to ask for the scope offline_access (`scopes` of the provider)";
        ExchangeError::new(Kind::BadAnswer, what)
    })?;
    Ok((judge::refresh_token(&text, "the refresh token")?, approver))
}

/// What an ID token says. It came from the token endpoint itself over TLS, which stands in for its signature (OpenID
/// Connect Core §3.1.3.7, 6).
pub type IdToken = Map<String, Value>;

/// Whether `user` approved, by a claim of the ID token.
///
/// # Errors
/// In words for the page: who else did, or that nobody knows.
pub fn approver(id_token: Option<&IdToken>, claim: &str, provider: &Provider, user: &str) -> Result<(), String> {
    let client_id = match &provider.kind {
        ProviderKind::OAuth2(client) => client.client_id.as_str(),
        ProviderKind::Mytoken { .. } => "",
    };
    let unknown = |why: &str| Err(format!("it is not known who approved ({why}); nothing was stored"));
    let Some(token) = id_token else { return unknown("the issuer gave no ID token") };
    let text = |name: &str| token.get(name).and_then(Value::as_str);
    let issuer = provider.issuer.as_deref().map(client::trimmed);
    if issuer.is_none() || text("iss").map(client::trimmed) != issuer {
        return unknown("the ID token is from another issuer than the configured one");
    }
    let for_us = match token.get("aud") {
        Some(Value::String(one)) => one == client_id,
        Some(Value::Array(all)) => all.iter().any(|one| one.as_str() == Some(client_id)),
        _ => false,
    };
    if !for_us {
        return unknown("the ID token is for another client");
    }
    match text(claim) {
        Some(name) if name == user => Ok(()),
        Some(name) => {
            let name = client::presentable(name);
            Err(format!("{name} is signed in at the issuer, and the jobs are those of {user}; nothing was stored"))
        }
        None => unknown(&format!("the ID token has no {claim}")),
    }
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
    let spent = grant.spends.token();
    if !(200..300).contains(&answer.status) {
        let mut error = refused(answer, now);
        // No refresh token can be at fault where none was spent: nobody could approve anew, and time may mend it.
        if spent.is_none() && error.kind.class() == Class::Refused {
            error.kind = Kind::RequestRefused;
        }
        return Err(error);
    }
    // RFC 6749 §5.1, taken apart member by member: whatever else is wrong, a new refresh token is not thrown away.
    let good: Map<String, Value> = serde_json::from_slice(&answer.body).map_err(|_| not_a_token_answer(answer))?;
    let rotated = match good.get("refresh_token").and_then(Value::as_str) {
        None | Some("") => None,
        // RFC 6749 §4.4.3: there should be none, and it is of no use.
        Some(_) if spent.is_none() => None,
        Some(text) if spent.is_some_and(|spent| spent.expose() == text) => None,
        Some(text) => Some(judge::refresh_token(text, "the new refresh token")?),
    };
    if matches!(grant.spends, Spends::SubjectToken(_)) && rotated.is_none() {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::{
        config::settings::{ProviderKind, Shortfall},
        core::secret::ClientSecret,
        issuer::{
            self,
            samples::{self, Does, NOW, TOKEN, does, grant, jwt},
        },
    };

    fn provider(oauth2: OAuth2) -> Provider {
        Provider { issuer: Some("https://i.example.org/".into()), ..samples::provider(ProviderKind::OAuth2(oauth2)) }
    }

    fn answered(body: &Value) -> Outcome {
        issuer::answer(&provider(samples::oauth2()), &grant(&[], &[]), &samples::answer(200, &body.to_string()), NOW)
    }

    /// The form and the `Authorization`.
    fn asked(oauth2: OAuth2, grant: &Grant) -> (String, Option<String>) {
        let request = issuer::request(&provider(oauth2), grant);
        assert_eq!(request.content_type, "application/x-www-form-urlencoded");
        (request.body.replace(TOKEN, "T"), request.authorization.map(|text| text.to_string()))
    }

    #[test]
    fn who_approved_is_whom_the_claim_of_the_configured_issuers_token_for_us_names() {
        let provider = provider(samples::oauth2());
        let token = |change: &[(&str, Value)]| {
            let mut token = json!({"iss": "https://i.example.org", "aud": "the client", "sub": "alice"});
            for (name, value) in change {
                token[*name] = value.clone();
            }
            token.as_object().unwrap().clone()
        };
        let judged = |token: &IdToken, claim: &str| approver(Some(token), claim, &provider, "alice");
        assert_eq!(judged(&token(&[]), "sub"), Ok(()));
        assert_eq!(judged(&token(&[("aud", json!(["other", "the client"]))]), "sub"), Ok(()));
        for (token, claim, expected) in [
            (token(&[("sub", json!("bob"))]), "sub", "bob is signed in at the issuer, and the jobs are those of alice"),
            (token(&[("sub", json!("alice2"))]), "sub", "alice2 is signed in"),
            (token(&[("sub", json!(["alice"]))]), "sub", "no sub"),
            (token(&[]), "preferred_username", "no preferred_username"),
            (token(&[("aud", json!("other"))]), "sub", "another client"),
            (token(&[("iss", json!("https://evil.example.org"))]), "sub", "another issuer"),
        ] {
            let why = judged(&token, claim).unwrap_err();
            assert!(why.contains(expected), "{expected}: {why}");
        }
        assert!(approver(None, "sub", &provider, "alice").unwrap_err().contains("no ID token"));
        let answer = |more: &str| samples::answer(200, &format!("{{\"refresh_token\": \"{TOKEN}\"{more}}}"));
        let given = jwt(&Value::Object(token(&[])));
        let (_, approver) = code_answer(&answer(&format!(", \"id_token\": \"{given}\"")), NOW).unwrap();
        assert_eq!(approver, Some(token(&[])));
        assert_eq!(code_answer(&answer(""), NOW).unwrap().1, None);
    }

    #[test]
    fn the_request_is_a_form_with_scopes_audiences_and_client_as_configured() {
        let plain = "grant_type=refresh_token&refresh_token=T&client_id=the+client";
        assert_eq!(asked(samples::oauth2(), &grant(&[], &[])), (plain.to_owned(), None));
        let wish = grant(&["storage.read:/", "openid"], &["https://a", "b c"]);
        for (audience_style, words) in [
            (AudienceStyle::Audience, "audience=https%3A%2F%2Fa+b+c"),
            (AudienceStyle::Repeated, "audience=https%3A%2F%2Fa&audience=b+c"),
            (AudienceStyle::Resource, "resource=https%3A%2F%2Fa&resource=b+c"),
        ] {
            let client = OAuth2 { audience_style, ..samples::oauth2() };
            assert_eq!(asked(client.clone(), &grant(&[], &[])).0, plain, "{audience_style:?}");
            let form = format!(
                "grant_type=refresh_token&refresh_token=T&scope=storage.read%3A%2F+openid&{words}&client_id=the+client"
            );
            assert_eq!(asked(client, &wish), (form, None), "{audience_style:?}");
        }
    }

    #[test]
    fn a_secret_goes_into_the_header_encoded_first_or_into_the_form() {
        let secret = ClientSecret::parse("p:a ss/%").unwrap();
        let client = OAuth2 { client_id: "a:b".into(), client_secret: Some(secret), ..samples::oauth2() };
        let (form, header) = asked(client.clone(), &grant(&[], &[]));
        assert_eq!(form, "grant_type=refresh_token&refresh_token=T", "who is in the header is not in the form");
        // RFC 6749 §2.3.1.
        let basic = base64::engine::general_purpose::STANDARD.encode("a%3Ab:p%3Aa+ss%2F%25");
        assert_eq!(header, Some(format!("Basic {basic}")));
        let (form, header) = asked(OAuth2 { client_auth: ClientAuth::Body, ..client }, &grant(&[], &[]));
        let end = "client_id=a%3Ab&client_secret=p%3Aa+ss%2F%25";
        assert_eq!(form, format!("grant_type=refresh_token&refresh_token=T&{end}"));
        assert_eq!(header, None);
    }

    fn subject(scopes: &[&str], audience: &[&str]) -> Grant {
        Grant { spends: Spends::SubjectToken(RefreshToken::parse(TOKEN).unwrap()), ..grant(scopes, audience) }
    }

    #[test]
    fn a_subject_token_is_exchanged_with_the_wish_for_a_refresh_token() {
        let form = |scopes: &[&str]| asked(samples::oauth2(), &subject(scopes, &["a"])).0;
        let start = "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token=T\
                     &subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Aaccess_token";
        assert_eq!(form(&["x"]), format!("{start}&scope=x+offline_access&audience=a&client_id=the+client"));
        assert_eq!(form(&["offline_access"]), format!("{start}&scope=offline_access&audience=a&client_id=the+client"));
        let body = json!({ "access_token": "abc", "expires_in": 600 }).to_string();
        let wish = subject(&[], &[]);
        let error = issuer::answer(&provider(samples::oauth2()), &wish, &samples::answer(200, &body), NOW).unwrap_err();
        assert_eq!(error.kind, Kind::RequestRefused, "nothing could be renewed later");
    }

    fn own(scopes: &[&str], audience: &[&str]) -> Grant {
        Grant { spends: Spends::Nothing, ..grant(scopes, audience) }
    }

    #[test]
    fn a_client_that_asks_for_itself_shows_nothing_but_itself_and_keeps_no_refresh_token() {
        let secret = ClientSecret::parse("p:a ss").unwrap();
        let client = OAuth2 { client_secret: Some(secret), ..samples::oauth2() };
        let (form, header) = asked(client.clone(), &own(&["compute.read", "compute.modify"], &["ce1:9619"]));
        assert_eq!(form, "grant_type=client_credentials&scope=compute.read+compute.modify&audience=ce1%3A9619");
        let basic = base64::engine::general_purpose::STANDARD.encode("the+client:p%3Aa+ss");
        assert_eq!(header, Some(format!("Basic {basic}")));
        // As Harvester asks, but for the empty scope, which RFC 6749 does not know.
        let (form, header) = asked(OAuth2 { client_auth: ClientAuth::Body, ..client }, &own(&[], &["a"]));
        assert_eq!(form, "grant_type=client_credentials&audience=a&client_id=the+client&client_secret=p%3Aa+ss");
        assert_eq!(header, None);
        let body = json!({ "access_token": "abc", "expires_in": 600, "refresh_token": "two" }).to_string();
        let told = issuer::answer(&provider(samples::oauth2()), &own(&[], &[]), &samples::answer(200, &body), NOW);
        assert!(told.unwrap().rotated.is_none(), "RFC 6749 §4.4.3");
    }

    #[test]
    fn what_a_client_that_asks_for_itself_is_refused_is_never_a_users_to_mend_nor_given_up() {
        let secret = "s3cr3t-of-the-client";
        let client = OAuth2 { client_secret: ClientSecret::parse(secret).ok(), ..samples::oauth2() };
        let asks = |status, body: &str, shortfall| {
            let provider = Provider { shortfall, ..provider(client.clone()) };
            issuer::answer(
                &provider,
                &own(&["compute.read", "compute.modify"], &["a"]),
                &samples::answer(status, body),
                NOW,
            )
        };
        for (status, error, kind) in [
            (401, "invalid_client", Kind::ClientRefused),
            (400, "unauthorized_client", Kind::ClientRefused),
            (400, "unsupported_grant_type", Kind::RequestRefused),
            (400, "invalid_scope", Kind::RequestRefused),
            (400, "invalid_target", Kind::RequestRefused),
            (400, "invalid_grant", Kind::RequestRefused),
            (401, "invalid_token", Kind::RequestRefused),
        ] {
            let body = json!({ "error": error, "error_description": format!("no: {secret} expired") }).to_string();
            let told = asks(status, &body, Shortfall::Refuse).unwrap_err();
            let course = if kind == Kind::ClientRefused { Does::Probe } else { Does::Slow };
            assert_eq!((told.kind, does(&told)), (kind, course), "{error}");
            assert!(told.detail.contains(error) && !told.detail.contains(secret), "{}", told.detail);
        }
        let less = json!({ "access_token": "abc", "expires_in": 600, "scope": "compute.read" }).to_string();
        assert_eq!(asks(200, &less, Shortfall::Refuse).unwrap_err().kind, Kind::ScopeShortfall);
        assert_eq!(asks(200, &less, Shortfall::Flag).unwrap().flagged, Some(Kind::ScopeShortfall));
        let other = json!({ "access_token": jwt(&json!({ "aud": "b" })), "expires_in": 600 }).to_string();
        assert_eq!(asks(200, &other, Shortfall::Refuse).unwrap_err().kind, Kind::AudienceShortfall);
        let endless = asks(200, &json!({ "access_token": "abc" }).to_string(), Shortfall::Refuse).unwrap();
        assert_eq!(endless.lifetime, Duration::from_secs(3600), "without an expiry, as configured");
        let dead = json!({ "access_token": "abc", "expires_in": 0 }).to_string();
        assert_eq!(asks(200, &dead, Shortfall::Refuse).unwrap_err().kind, Kind::BadExpiry);
    }

    /// RFC 6749 §5.2, RFC 8707, and what else issuers and proxies answer.
    #[rustfmt::skip]
    const ROWS: &[(u16, &str, Kind, Does)] = &[
        (400, r#"{"error":"invalid_grant"}"#, Kind::Revoked, Does::Park),
        (400, r#"{"error":"invalid_grant","error_description":"Token is not active"}"#, Kind::Revoked, Does::Park),
        (400, r#"{"error":"invalid_grant","error_description":"Refresh token Expired"}"#, Kind::Expired, Does::Park),
        (401, r#"{"error":"invalid_token","error_description":"unknown"}"#, Kind::Revoked, Does::Park),
        (401, r#"{"error":"invalid_client"}"#, Kind::ClientRefused, Does::Probe),
        (400, r#"{"error":"unauthorized_client"}"#, Kind::ClientRefused, Does::Probe),
        (401, r#"{"error":"something"}"#, Kind::ClientRefused, Does::Probe),
        (400, r#"{"error":"invalid_scope"}"#, Kind::RequestRefused, Does::Slow),
        (400, r#"{"error":"invalid_request"}"#, Kind::RequestRefused, Does::Slow),
        (400, r#"{"error":"invalid_target"}"#, Kind::RequestRefused, Does::Slow),
        (400, r#"{"error":"unsupported_grant_type"}"#, Kind::RequestRefused, Does::Slow),
        (400, r#"{"error":"temporarily_unavailable"}"#, Kind::ServerError, Does::Retry),
        (400, r#"{"error":"server_error"}"#, Kind::ServerError, Does::Retry),
        (400, r#"{"error":"new_to_us"}"#, Kind::BadAnswer, Does::Retry),
        (400, r#"{"message":"no"}"#, Kind::BadAnswer, Does::Retry),
        (403, "<html>blocked</html>", Kind::BadAnswer, Does::Retry),
        (404, "", Kind::BadAnswer, Does::Retry),
        (429, "slow down", Kind::RateLimited, Does::Retry),
        (500, r#"{"error":"invalid_grant"}"#, Kind::ServerError, Does::Retry),
        (503, "", Kind::ServerError, Does::Retry),
        (307, "", Kind::Redirect, Does::Retry),
        (200, "<html>Sign in</html>", Kind::BadAnswer, Does::Retry),
        (200, "{}", Kind::BadAnswer, Does::Retry),
        (200, r#"{"access_token":""}"#, Kind::BadAnswer, Does::Retry),
        (200, r#"{"access_token":"a\u0000b"}"#, Kind::BadAnswer, Does::Retry),
        (200, r#"{"access_token":"abc","expires_in":0}"#, Kind::BadExpiry, Does::Retry),
        (200, r#"{"access_token":"abc","expires_in":999999999999}"#, Kind::BadExpiry, Does::Retry),
    ];

    #[test]
    fn every_failure_has_its_kind_and_its_course_and_touches_no_file() {
        for (status, body, kind, course) in ROWS {
            let provider = provider(samples::oauth2());
            let error = issuer::answer(&provider, &grant(&[], &[]), &samples::answer(*status, body), NOW).unwrap_err();
            assert_eq!(error.kind, *kind, "{status} {body}");
            assert!(error.rotated.is_none(), "{status} {body}");
            assert_eq!(does(&error), *course, "{status} {body}");
        }
    }

    #[test]
    fn what_an_issuer_repeats_of_the_client_secret_or_the_refresh_token_is_told_to_nobody() {
        let secret = ClientSecret::parse("short-secret").unwrap();
        let provider = provider(OAuth2 { client_secret: Some(secret), ..samples::oauth2() });
        let spends = Spends::RefreshToken(RefreshToken::parse("the-token").unwrap());
        let grant = Grant { spends, ..grant(&[], &[]) };
        let body = r#"{"error":"invalid_client","error_description":"not short-secret, and the-token neither"}"#;
        let error = issuer::answer(&provider, &grant, &samples::answer(401, body), NOW).unwrap_err();
        assert!(error.detail.contains("not [masked], and [masked] neither"), "{}", error.detail);
    }

    #[test]
    fn the_smaller_of_what_the_answer_and_the_token_say_is_the_lifetime_and_without_both_the_configured_one() {
        let token = |left: i64| jwt(&json!({ "exp": NOW.secs() + left }));
        for (body, seconds) in [
            (json!({ "access_token": token(500) }), 500),
            (json!({ "access_token": token(500), "expires_in": 600 }), 500),
            (json!({ "access_token": token(700), "expires_in": 600 }), 600),
            (json!({ "access_token": "opaque", "expires_in": "600" }), 600),
            (json!({ "access_token": "opaque", "expires_in": 599.9 }), 599),
            (json!({ "access_token": "opaque", "expires_in": null }), 3600),
            (json!({ "access_token": "opaque" }), 3600),
            (json!({ "access_token": jwt(&json!({ "sub": "alice" })) }), 3600),
        ] {
            assert_eq!(answered(&body).unwrap().lifetime, Duration::from_secs(seconds), "{body}");
        }
        for body in [json!({ "access_token": token(-1) }), json!({ "access_token": token(0), "expires_in": 600 })] {
            assert_eq!(answered(&body).unwrap_err().kind, Kind::BadExpiry, "{body}");
        }
    }

    #[test]
    fn a_new_refresh_token_is_kept_whatever_else_is_wrong_and_the_same_one_is_no_rotation() {
        let next = |rotated: Option<RefreshToken>| rotated.map(|token| token.expose().to_owned());
        let told =
            answered(&json!({ "access_token": "abc", "refresh_token": "two", "refresh_expires_in": 1800 })).unwrap();
        assert_eq!((told.refresh_lifetime, next(told.rotated)), (Some(Duration::from_secs(1800)), Some("two".into())));
        let told =
            answered(&json!({ "access_token": "abc", "refresh_token": TOKEN, "refresh_expires_in": 0 })).unwrap();
        assert_eq!((told.refresh_lifetime, next(told.rotated)), (None, None));
        for (bad, kind) in [
            (json!({ "refresh_token": "two" }), Kind::BadAnswer),
            (json!({ "refresh_token": "two", "access_token": "abc", "expires_in": -1 }), Kind::BadExpiry),
            (json!({ "refresh_token": "two", "access_token": jwt(&json!({ "iss": "https://x" })) }), Kind::WrongIssuer),
        ] {
            let error = answered(&bad).unwrap_err();
            assert_eq!((error.kind, next(error.rotated)), (kind, Some("two".into())), "{bad}");
        }
    }

    #[test]
    fn less_than_was_asked_for_is_refused_or_flagged_and_its_refresh_token_kept() {
        let body = json!({
            "access_token": jwt(&json!({ "iss": "https://i.example.org", "aud": ["a"], "scope": "storage.read:/" })),
            "refresh_token": "two",
        });
        let answered = |shortfall, scopes: &[&str], audience: &[&str]| {
            let provider = Provider { shortfall, ..provider(samples::oauth2()) };
            issuer::answer(&provider, &grant(scopes, audience), &samples::answer(200, &body.to_string()), NOW)
        };
        for (scopes, audience, kind) in [
            (&["storage.read:/deep", "compute.read"][..], &["a"][..], Kind::ScopeShortfall),
            (&["storage.read:/deep"], &["a", "b"], Kind::AudienceShortfall),
        ] {
            let error = answered(Shortfall::Refuse, scopes, audience).unwrap_err();
            assert_eq!((error.kind, error.rotated.is_some()), (kind, true));
            let told = answered(Shortfall::Flag, scopes, audience).unwrap();
            assert_eq!((told.flagged, told.rotated.is_some()), (Some(kind), true));
        }
        assert_eq!(
            answered(Shortfall::Refuse, &["storage.read:/deep", "offline_access"], &["a"]).unwrap().flagged,
            None
        );
    }
}
