//! The OAuth2 issuer: discovery, refresh and client-credentials grants (RFC 6749), device grant (RFC 8628), revocation (RFC 7009), keys.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Query, State},
    http::{HeaderMap, Response, StatusCode, header},
    response::{Html, IntoResponse},
    routing::{get, post},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use serde_json::json;
use url::form_urlencoded;

use super::{
    Shared,
    book::{Decision, Device, Family, Record, Refusal, Spent},
    mint,
    serve::{misbehave, on_its_way},
    sign,
};

const DEVICE_LIFETIME: Duration = Duration::from_secs(300);
const DEVICE_INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/.well-known/oauth-authorization-server", get(discovery))
        .route("/jwks", get(jwks))
        .route("/token", post(token))
        .route("/device", post(device))
        .route("/approve", get(page).post(approve))
        .route("/revoke", post(revoke))
}

/// An error answer (RFC 6749, 5.2); an empty description is left out.
pub(super) fn refuse(status: StatusCode, error: &str, description: &str) -> Response<Body> {
    let body = if description.is_empty() {
        json!({ "error": error })
    } else {
        json!({ "error": error, "error_description": description })
    };
    (status, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

async fn discovery(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let url = &shared.url;
    Json(json!({
        "issuer": url,
        "token_endpoint": format!("{url}/token"),
        "device_authorization_endpoint": format!("{url}/device"),
        "revocation_endpoint": format!("{url}/revoke"),
        "jwks_uri": format!("{url}/jwks"),
        "grant_types_supported": [
            "refresh_token", "client_credentials", "urn:ietf:params:oauth:grant-type:device_code",
            "urn:ietf:params:oauth:grant-type:token-exchange",
        ],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    }))
}

async fn jwks(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    Json(json!({ "keys": [shared.access_key.jwk()] }))
}

/// A form, where a name may come more than once.
struct Form(Vec<(String, String)>);

impl Form {
    fn parse(body: &[u8]) -> Self {
        Self(form_urlencoded::parse(body).into_owned().collect())
    }

    fn one(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    fn words(&self, name: &str) -> Vec<String> {
        let all = self.0.iter().filter(|(key, _)| key == name);
        all.flat_map(|(_, value)| value.split_ascii_whitespace().map(str::to_owned)).collect()
    }
}

/// Who the client says it is, with its secret.
fn client(headers: &HeaderMap, form: &Form) -> Option<(String, Option<String>)> {
    let basic = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Basic "));
    let Some(basic) = basic else {
        return Some((form.one("client_id")?.to_owned(), form.one("client_secret").map(str::to_owned)));
    };
    let pair = String::from_utf8(STANDARD.decode(basic).ok()?).ok()?;
    let (id, secret) = pair.split_once(':')?;
    // RFC 6749, 2.3.1: both are form-encoded first.
    let plain = |text: &str| {
        form_urlencoded::parse(text.replace('&', "%26").replace('=', "%3D").as_bytes())
            .map(|(key, _)| key.into_owned())
            .next()
            .unwrap_or_default()
    };
    Some((plain(id), Some(plain(secret))))
}

async fn token(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let form = Form::parse(&body);
    let client = client(&headers, &form);
    if !shared.knobs.knows(client.as_ref()) {
        return refuse(StatusCode::UNAUTHORIZED, "invalid_client", "client unknown");
    }
    if form.one("grant_type") == Some("client_credentials") {
        return itself(&shared, &form, client).await;
    }
    let client = client.map(|(id, _)| id);
    match form.one("grant_type") {
        Some("refresh_token") => refresh(&shared, &form, client.as_deref()).await,
        Some("urn:ietf:params:oauth:grant-type:device_code") => redeem(&shared, &form, client.as_deref()),
        Some("urn:ietf:params:oauth:grant-type:token-exchange") => exchange(&shared, &form, client.as_deref()),
        Some(_) => refuse(StatusCode::BAD_REQUEST, "unsupported_grant_type", ""),
        None => refuse(StatusCode::BAD_REQUEST, "invalid_request", "grant_type is missing"),
    }
}

/// RFC 6749 §4.4: a client asks for itself, which needs a secret.
async fn itself(shared: &Shared, form: &Form, client: Option<(String, Option<String>)>) -> Response<Body> {
    let Some((client, Some(_))) = client else {
        return refuse(StatusCode::BAD_REQUEST, "unauthorized_client", "a client without a secret");
    };
    let mut audience = form.words("audience");
    audience.extend(form.words("resource"));
    let granted = shared.book().grant_itself(&client, (form.words("scope"), audience), form.0.iter().cloned());
    match granted {
        Ok(spent) => answer(shared, &spent),
        Err(Refusal::Misbehave(fault)) => misbehave(fault).await,
        Err(Refusal::Grant(why)) => refuse(StatusCode::BAD_REQUEST, "invalid_grant", why),
        Err(Refusal::Scope) => refuse(StatusCode::BAD_REQUEST, "invalid_scope", ""),
    }
}

async fn refresh(shared: &Shared, form: &Form, client: Option<&str>) -> Response<Body> {
    let Some(token) = form.one("refresh_token") else {
        return refuse(StatusCode::BAD_REQUEST, "invalid_request", "refresh_token is missing");
    };
    shared.book().ask(token, form.0.iter().cloned());
    let spent = shared.book().spend(token, client, &form.words("scope"), shared.rotation);
    let mut spent = match spent {
        Ok(spent) => spent,
        Err(Refusal::Misbehave(fault)) => return misbehave(fault).await,
        Err(Refusal::Grant(why)) => return refuse(StatusCode::BAD_REQUEST, "invalid_grant", why),
        Err(Refusal::Scope) => return refuse(StatusCode::BAD_REQUEST, "invalid_scope", "more than was approved"),
    };
    let mut audience = form.words("audience");
    audience.extend(form.words("resource"));
    if !audience.is_empty() {
        spent.audience = audience;
    }
    answer(shared, &spent)
}

fn answer(shared: &Shared, spent: &Spent) -> Response<Body> {
    let minted = mint::access_token(shared, &spent.user, &spent.scopes, &spent.audience, spent.fault);
    let Ok(minted) = minted else {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "signing failed");
    };
    shared.book().note(spent.family, minted.issued);
    let mut body = json!({
        "access_token": minted.access_token, "token_type": "Bearer", "scope": minted.scope,
    });
    if let Some(map) = body.as_object_mut() {
        if let Some(seconds) = minted.expires_in {
            map.insert("expires_in".into(), seconds.into());
        }
        if let Some(next) = &spent.rotated {
            map.insert("refresh_token".into(), next.as_str().into());
        }
    }
    on_its_way(([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response(), spent.fault)
}

async fn device(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let form = Form::parse(&body);
    let client = client(&headers, &form);
    if !shared.knobs.knows(client.as_ref()) {
        return refuse(StatusCode::UNAUTHORIZED, "invalid_client", "client unknown");
    }
    let code = sign::random::<24>();
    let letters: String = sign::random::<32>().chars().filter(char::is_ascii_alphabetic).take(8).collect();
    let user_code = letters.to_ascii_uppercase();
    let waiting = Device {
        user_code: user_code.clone(),
        client: client.map(|(id, _)| id),
        scopes: form.words("scope"),
        until: Instant::now() + DEVICE_LIFETIME,
        polled: None,
        decision: Decision::Open,
    };
    shared.book().devices.insert(code.clone(), waiting);
    let page = format!("{}/approve", shared.url);
    Json(json!({
        "device_code": code, "user_code": user_code, "verification_uri": page,
        "verification_uri_complete": format!("{page}?user_code={user_code}"),
        "expires_in": DEVICE_LIFETIME.as_secs(), "interval": DEVICE_INTERVAL.as_secs(),
    }))
    .into_response()
}

fn redeem(shared: &Shared, form: &Form, client: Option<&str>) -> Response<Body> {
    let bad = |error| refuse(StatusCode::BAD_REQUEST, error, "");
    let code = form.one("device_code").unwrap_or_default();
    let now = Instant::now();
    let (family, token, user, scopes) = {
        let mut book = shared.book();
        let Some(waiting) = book.devices.get_mut(code).filter(|waiting| waiting.client.as_deref() == client) else {
            return bad("invalid_grant");
        };
        if now > waiting.until {
            return bad("expired_token");
        }
        let hasty = waiting.polled.is_some_and(|last| now.duration_since(last) < DEVICE_INTERVAL);
        waiting.polled = Some(now);
        let user = match &waiting.decision {
            Decision::Open if hasty => return bad("slow_down"),
            Decision::Open => return bad("authorization_pending"),
            Decision::Denied => return bad("access_denied"),
            Decision::Approved(user) => user.clone(),
        };
        let scopes = waiting.scopes.clone();
        let family = Family {
            record: Record { user: user.clone(), ..Record::default() },
            client: waiting.client.clone(),
            scopes: scopes.clone(),
            audience: Vec::new(),
            mytoken: None,
        };
        book.devices.remove(code);
        let (family, token) = book.open(family);
        (family, token, user, scopes)
    };
    let spent = Spent { family, user, scopes, audience: Vec::new(), fault: None, rotated: Some(token) };
    answer(shared, &spent)
}

/// RFC 8693: one of our own access tokens for tokens of the asking client.
fn exchange(shared: &Shared, form: &Form, client: Option<&str>) -> Response<Body> {
    let token = form.one("subject_token").unwrap_or_default();
    if form.one("subject_token_type") != Some("urn:ietf:params:oauth:token-type:access_token") {
        return refuse(StatusCode::BAD_REQUEST, "invalid_request", "subject_token_type");
    }
    let claims: serde_json::Value = token
        .split('.')
        .nth(1)
        .and_then(|part| URL_SAFE_NO_PAD.decode(part).ok())
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let text = |name: &str| claims.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    let (user, scopes) = (text("sub").to_owned(), form.words("scope"));
    let mut book = shared.book();
    // Known by its number, which nobody can guess; the signature would say the same.
    let issued = |family: &Family| family.record.issued.iter().any(|issued| issued.jti == text("jti"));
    if !book.families.iter().any(|family| family.record.user == user && !family.record.revoked && issued(family)) {
        return refuse(StatusCode::BAD_REQUEST, "invalid_grant", "subject token unknown");
    }
    let family = Family {
        record: Record { user: user.clone(), ..Record::default() },
        client: client.map(str::to_owned),
        scopes: scopes.clone(),
        audience: Vec::new(),
        mytoken: None,
    };
    let (family, refresh_token) = book.open(family);
    drop(book);
    let audience = form.words("audience");
    answer(shared, &Spent { family, user, scopes, audience, fault: None, rotated: Some(refresh_token) })
}

/// Text for HTML.
pub(super) fn plain(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A page with the look of the issuer.
pub(super) fn framed(title: &str, inside: &str) -> String {
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{title}</title><style>body{{font:1.1rem/1.6 system-ui;max-width:32rem;margin:4rem auto;padding:1rem 2rem;\
         color:#223;background:#f4f5f7;border-top:.4rem solid #2a6}}h1{{font-weight:600}}dt{{color:#667}}\
         dd{{margin:0 0 .6rem}}button[value=approve],button:first-of-type{{background:#2a6;color:#fff;\
         border:1px solid #2a6}}button{{border-radius:.3rem}}button{{font:inherit;padding:.4rem 1.4rem;margin-right:.6rem}}input{{font:inherit;padding:.3rem}}\
         code{{font-size:1.3rem;letter-spacing:.1em}}</style><h1>{title}</h1>{inside}</html>"
    )
}

async fn page(Query(query): Query<HashMap<String, String>>) -> Html<String> {
    let code = plain(query.get("user_code").map_or("", String::as_str));
    Html(framed(
        "Approve a device",
        &format!(
            "<p>A program asks to act for you. Approve only if it shows this code:</p>\
             <form method=post><p><code><input name=user_code value=\"{code}\"></code>\
             <p><label>You are <input name=user value=demo></label>\
             <p><button name=decision value=approve>Approve</button><button name=decision value=deny>Deny</button>\
             </form>"
        ),
    ))
}

async fn approve(State(shared): State<Arc<Shared>>, body: Bytes) -> Response<Body> {
    let form = Form::parse(&body);
    let user = (form.one("decision") != Some("deny")).then(|| form.one("user").unwrap_or("demo").to_owned());
    let approved = user.is_some();
    // RFC 8628, 6.1: whatever groups the letters is no part of the code.
    let letters = form.one("user_code").unwrap_or_default().chars().filter(char::is_ascii_alphanumeric);
    let code = letters.collect::<String>().to_ascii_uppercase();
    let mut book = shared.book();
    let Some(waiting) = book.devices.values_mut().find(|waiting| waiting.user_code == code) else {
        let page = framed("Unknown code", "<p>Check the code that the program shows.");
        return (StatusCode::NOT_FOUND, Html(page)).into_response();
    };
    if matches!(waiting.decision, Decision::Open) {
        waiting.decision = user.map_or(Decision::Denied, Decision::Approved);
    }
    let said = if approved { "Approved" } else { "Denied" };
    Html(framed(said, "<p>You can close this window.")).into_response()
}

async fn revoke(State(shared): State<Arc<Shared>>, body: Bytes) -> StatusCode {
    let form = Form::parse(&body);
    if let Some(family) = shared.book().family_of(form.one("token").unwrap_or_default()) {
        family.record.revoked = true;
    }
    // RFC 7009, 2.2: also for an unknown token.
    StatusCode::OK
}
