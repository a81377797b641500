//! The mytoken server below `/mytoken` (contract, sections 2 and 3). Its OpenID provider is the OAuth2 issuer beside it.
//! The file is long: it has the whole of that protocol, one route after the other, and only this issuer speaks it.

#![expect(clippy::result_large_err, reason = "the error is the answer itself, made once a request")]

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, Response, StatusCode, Uri, header},
    response::{Html, IntoResponse},
    routing::{get, post},
};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use url::form_urlencoded;

use super::{
    Shared,
    book::{Family, Fault, Record, now_ms},
    mint::{self, Mytoken, MytokenWish},
    oauth2::{framed, plain, refuse},
    serve::{Peer, misbehave, on_its_way},
    sign,
};

const CONSENT_LIFETIME: Duration = Duration::from_secs(300);

/// A consent under way.
#[derive(Debug)]
pub(super) struct Consent {
    polling_code: String,
    wish: MytokenWish,
    application: String,
    until: Instant,
    decision: Decision,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Open,
    Accepted,
    Approved,
    Declined,
}

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/.well-known/mytoken-configuration", get(discovery))
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/jwks", get(jwks))
        .route("/api/v0/token/access", post(access))
        .route("/api/v0/token/my", post(my))
        .route("/api/v0/tokeninfo", post(tokeninfo))
        .route("/api/v0/token/revoke", post(revoke))
        .route("/c/{code}", get(page).post(consent))
        .route("/redirect/{code}", get(redirect))
        .route("/native", get(done))
        .fallback(nowhere)
}

async fn nowhere(uri: Uri) -> Response<Body> {
    if uri.path().starts_with("/api") {
        return refuse(StatusCode::NOT_FOUND, "not_found", uri.path());
    }
    (StatusCode::NOT_FOUND, Html(framed("Not found", ""))).into_response()
}

async fn discovery(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let url = &shared.mytoken_url;
    Json(json!({
        "issuer": url,
        "access_token_endpoint": format!("{url}/api/v0/token/access"),
        "token_endpoint": format!("{url}/api/v0/token/access"),
        "mytoken_endpoint": format!("{url}/api/v0/token/my"),
        "tokeninfo_endpoint": format!("{url}/api/v0/tokeninfo"),
        "revocation_endpoint": format!("{url}/api/v0/token/revoke"),
        "jwks_uri": format!("{url}/jwks"),
        "providers_supported": [{ "issuer": shared.url, "name": "demo", "scopes_supported": [] }],
        "token_signing_alg_value": "ES512",
        "tokeninfo_endpoint_actions_supported": ["introspect"],
        "access_token_endpoint_grant_types_supported": ["mytoken"],
        "mytoken_endpoint_grant_types_supported": ["oidc_flow", "polling_code"],
        "mytoken_endpoint_oidc_flows_supported": ["authorization_code"],
        "response_types_supported": ["token"],
        "restriction_claims_supported": ["nbf", "exp", "scope", "audience", "hosts", "usages_AT"],
        "version": "0.10.2",
    }))
}

async fn jwks(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    Json(json!({ "keys": [shared.mytoken_key.jwk()] }))
}

/// A new mytoken: its family and its JWT.
pub(super) fn create(shared: &Shared, wish: MytokenWish) -> io::Result<(usize, String)> {
    let user = wish.user.clone();
    let mytoken = Mytoken::new(wish);
    let jwt = shared.mytoken_key.sign(&mytoken.claims(shared, &user))?;
    let family = Family {
        record: Record { user, ..Record::default() },
        client: None,
        scopes: Vec::new(),
        audience: Vec::new(),
        mytoken: Some(mytoken),
    };
    Ok((shared.book().enter(family, jwt.clone()), jwt))
}

fn bad(description: &str) -> Response<Body> {
    refuse(StatusCode::BAD_REQUEST, "invalid_request", description)
}

fn invalid(description: &str) -> Response<Body> {
    refuse(StatusCode::UNAUTHORIZED, "invalid_token", description)
}

/// The members of a JSON or form body.
fn members(headers: &HeaderMap, body: &[u8]) -> Result<Map<String, Value>, Response<Body>> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if kind.starts_with("application/x-www-form-urlencoded") {
        let pairs = form_urlencoded::parse(body);
        return Ok(pairs.map(|(key, value)| (key.into_owned(), Value::from(value.into_owned()))).collect());
    }
    serde_json::from_slice(body).map_err(|error| bad(&error.to_string()))
}

fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    members.get(name).and_then(Value::as_str)
}

fn words(members: &Map<String, Value>, name: &str) -> Vec<String> {
    text(members, name).unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// Why a mytoken that is not the current one of its family is refused.
fn judge_unknown(shared: &Shared, token: &str) -> Response<Body> {
    if token.len() < 32 {
        return bad("token not valid");
    }
    if token.split('.').count() != 3 {
        return invalid("token contains an invalid number of segments");
    }
    match shared.mytoken_key.open(token) {
        None => invalid("crypto/ecdsa: verification error"),
        Some(claims) => judge_time(&claims).unwrap_or_else(|| invalid("")),
    }
}

fn judge_time(claims: &Value) -> Option<Response<Body>> {
    let now = now_ms() / 1000;
    let time = |name: &str| claims.get(name).and_then(Value::as_u64);
    if let Some(exp) = time("exp").filter(|exp| *exp <= now) {
        return Some(invalid(&format!("token is expired by {}", mint::spoken(Duration::from_secs(now - exp)))));
    }
    time("nbf").filter(|nbf| *nbf > now).map(|_| invalid("token is not valid yet"))
}

/// Restrictions that allow this use; the index of the first.
fn allowed(mytoken: &Mytoken, peer: Peer, scopes: &[String], audience: &[String]) -> Option<usize> {
    let now = now_ms() / 1000;
    let address = peer.0.ip().to_string();
    mytoken.restrictions.iter().position(|one| {
        one.nbf.is_none_or(|nbf| nbf <= now)
            && one.exp.is_none_or(|exp| now < exp)
            && one.hosts.as_ref().is_none_or(|hosts| hosts.iter().any(|host| *host == address || host == "this"))
            && one.usages_at.is_none_or(|most| one.done < most)
            && one.scope.as_ref().is_none_or(|most| {
                scopes.iter().all(|scope| most.split_ascii_whitespace().any(|granted| granted == scope))
            })
            && one.audience.as_ref().is_none_or(|most| audience.iter().all(|wish| most.contains(wish)))
    })
}

/// What an access token request may have.
struct Use {
    family: usize,
    user: String,
    scopes: Vec<String>,
    audience: Vec<String>,
    fault: Option<Fault>,
    update: Option<Value>,
}

enum No {
    Misbehave(Fault),
    Answer(Response<Body>),
}

async fn access(
    State(shared): State<Arc<Shared>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let members = match members(&headers, &body) {
        Ok(members) => members,
        Err(answer) => return answer,
    };
    let name = match text(&members, "grant_type") {
        Some("mytoken") => "mytoken",
        Some("refresh_token") => "refresh_token",
        other => return bad(&format!("value '{}' not valid for GrantType", other.unwrap_or_default())),
    };
    let Some(token) = text(&members, name).or_else(|| bearer(&headers)) else {
        return bad("token not valid");
    };
    let spoken = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    shared.book().ask(token, members.iter().map(|(name, value)| (name.clone(), spoken(value))));
    let issuer = text(&members, "oidc_issuer").or_else(|| text(&members, "issuer")).filter(|text| !text.is_empty());
    if issuer.is_some_and(|issuer| issuer.trim_end_matches('/') != shared.url) {
        return bad("token not for specified issuer");
    }
    let granted = grant(&shared, token, peer, words(&members, "scope"), words(&members, "audience"));
    let granted = match granted {
        Ok(granted) => granted,
        Err(No::Misbehave(fault)) => return misbehave(fault).await,
        Err(No::Answer(answer)) => return answer,
    };
    let minted = mint::access_token(&shared, &granted.user, &granted.scopes, &granted.audience, granted.fault);
    let Ok(minted) = minted else {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, "internal_server_error", "signing failed");
    };
    shared.book().note(granted.family, minted.issued);
    let mut body = json!({
        "access_token": minted.access_token, "token_type": "Bearer", "scope": minted.scope,
    });
    if let Some(map) = body.as_object_mut() {
        if let Some(seconds) = minted.expires_in {
            map.insert("expires_in".into(), seconds.into());
        }
        if !granted.audience.is_empty() {
            map.insert("audience".into(), json!(granted.audience));
        }
        if let Some(update) = granted.update {
            map.insert("token_update".into(), update);
        }
    }
    on_its_way(Json(body).into_response(), granted.fault)
}

fn grant(shared: &Shared, token: &str, peer: Peer, scopes: Vec<String>, audience: Vec<String>) -> Result<Use, No> {
    let mut book = shared.book();
    let Some(&(index, superseded)) = book.tokens.get(token) else {
        drop(book);
        return Err(No::Answer(judge_unknown(shared, token)));
    };
    let fault = book.families.get(index).and_then(|family| book.fault(&family.record.user));
    if let Some(fault) = fault.filter(|fault| fault.spares_the_token()) {
        return Err(No::Misbehave(fault));
    }
    let Some((record, mytoken)) =
        book.families.get_mut(index).and_then(|family| Some((&mut family.record, family.mytoken.as_mut()?)))
    else {
        return Err(No::Answer(invalid("token contains an invalid number of segments")));
    };
    if superseded.is_some() {
        record.reuse += 1;
        record.revoked |= mytoken.rotation.is_some_and(|rotation| rotation.auto_revoke);
    }
    if let Some(answer) = judge_time(&json!({ "exp": mytoken.exp, "nbf": mytoken.nbf() })) {
        record.refused += 1;
        return Err(No::Answer(answer));
    }
    if superseded.is_some() || record.revoked {
        record.refused += 1;
        return Err(No::Answer(invalid("")));
    }
    if !mytoken.capabilities.iter().any(|capability| capability == "AT") {
        return Err(No::Answer(refuse(
            StatusCode::FORBIDDEN,
            "insufficient_capabilities",
            "The provided token does not have the required capability for this operation",
        )));
    }
    // Without any restriction the wishes are ignored, silently (contract, 2.6).
    let (mut scopes, audience) =
        if mytoken.restrictions.is_empty() { (Vec::new(), Vec::new()) } else { (scopes, audience) };
    if !mytoken.restrictions.is_empty() {
        let Some(first) = allowed(mytoken, peer, &scopes, &audience) else {
            return Err(No::Answer(refuse(
                StatusCode::FORBIDDEN,
                "usage_restricted",
                "The restrictions of this token does not allow this usage",
            )));
        };
        if let Some(one) = mytoken.restrictions.get_mut(first) {
            one.done += 1;
            if scopes.is_empty() {
                scopes = one.scope.iter().flat_map(|all| all.split_ascii_whitespace().map(str::to_owned)).collect();
            }
        }
    }
    if !scopes.iter().any(|scope| scope == "offline_access") {
        scopes.push("offline_access".into());
    }
    record.exchanges += 1;
    let user = record.user.clone();
    let mut update = None;
    if mytoken.rotation.is_some_and(|rotation| rotation.on_at) {
        record.rotations += 1;
        mytoken.rotate();
        let Ok(jwt) = shared.mytoken_key.sign(&mytoken.claims(shared, &user)) else {
            return Err(No::Misbehave(Fault::ServerError));
        };
        update = Some(mytoken.response(&jwt));
        if let Some(entry) = book.tokens.get_mut(token) {
            entry.1 = Some(Instant::now());
        }
        book.tokens.insert(jwt, (index, None));
    }
    Ok(Use { family: index, user, scopes, audience, fault, update })
}

/// `+7d`, `+3600` → seconds since 1970, resolved now.
fn resolve(restrictions: &mut Value) {
    let now = now_ms() / 1000;
    let objects: Vec<&mut Value> = match restrictions {
        Value::Array(list) => list.iter_mut().collect(),
        one => vec![one],
    };
    for object in objects {
        for name in ["exp", "nbf"] {
            let Some(value) = object.get_mut(name) else { continue };
            let Some(text) = value.as_str().and_then(|text| text.strip_prefix('+')) else { continue };
            let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let unit = match text.get(digits.len()..).unwrap_or_default() {
                "m" => 60,
                "h" => 3600,
                "d" => 86_400,
                "w" => 604_800,
                "y" => 31_536_000,
                _ => 1,
            };
            *value = json!(now + digits.parse::<u64>().unwrap_or(0).saturating_mul(unit));
        }
    }
}

/// Restrictions, capabilities and rotation out of a start request or a consent.
fn wish(members: &Map<String, Value>) -> Result<MytokenWish, Response<Body>> {
    let mut restrictions = members.get("restrictions").cloned().unwrap_or(json!([]));
    resolve(&mut restrictions);
    if restrictions.is_object() {
        restrictions = json!([restrictions]);
    }
    let part = |name: &str| members.get(name).filter(|value| !value.is_null()).cloned();
    let wished = json!({
        "restrictions": restrictions, "capabilities": part("capabilities").unwrap_or(json!([])),
        "rotation": part("rotation"), "name": part("name"),
    });
    serde_json::from_value(wished).map_err(|error| bad(&error.to_string()))
}

async fn my(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("application/json") {
        return bad("JSON expected");
    }
    let members = match members(&headers, &body) {
        Ok(members) => members,
        Err(answer) => return answer,
    };
    match text(&members, "grant_type") {
        Some("oidc_flow") => start(&shared, &members),
        Some("polling_code") => poll(&shared, text(&members, "polling_code").unwrap_or_default()),
        _ => refuse(StatusCode::BAD_REQUEST, "invalid_grant", "Unsupported grant_type"),
    }
}

fn start(shared: &Shared, members: &Map<String, Value>) -> Response<Body> {
    let flow = text(members, "oidc_flow").unwrap_or_default();
    if flow != "authorization_code" {
        return bad(&format!("value '{flow}' not valid for OIDCFlow"));
    }
    if text(members, "oidc_issuer").unwrap_or_default().trim_end_matches('/') != shared.url {
        return bad("The provided issuer is not supported");
    }
    let wish = match wish(members) {
        Ok(wish) => wish,
        Err(answer) => return answer,
    };
    let now = now_ms() / 1000;
    if !wish.restrictions.is_empty() && wish.restrictions.iter().all(|one| one.exp.is_some_and(|exp| exp <= now)) {
        return bad("token would already be expired");
    }
    let code: String = sign::random::<32>().chars().filter(char::is_ascii_alphabetic).take(8).collect();
    let polling_code = sign::random::<6>();
    let consent = Consent {
        polling_code: polling_code.clone(),
        wish,
        application: text(members, "application_name").unwrap_or_default().to_owned(),
        until: Instant::now() + CONSENT_LIFETIME,
        decision: Decision::Open,
    };
    shared.book().consents.insert(code.clone(), consent);
    Json(json!({
        "consent_uri": format!("{}/c/{code}", shared.mytoken_url), "polling_code": polling_code,
        "expires_in": CONSENT_LIFETIME.as_secs(), "interval": 5,
    }))
    .into_response()
}

/// The secrets of the consents under way.
pub(super) fn codes(shared: &Shared) -> Vec<String> {
    let book = shared.book();
    let consents = book.consents.iter().map(|(code, consent)| [code.clone(), consent.polling_code.clone()]);
    consents
        .chain(book.devices.iter().map(|(code, device)| [code.clone(), device.user_code.clone()]))
        .flatten()
        .collect()
}

fn poll(shared: &Shared, polling_code: &str) -> Response<Body> {
    let wish = {
        let mut book = shared.book();
        let found = book.consents.iter().find(|(_, consent)| consent.polling_code == polling_code);
        let Some((code, consent)) = found.map(|(code, consent)| (code.clone(), consent)) else {
            return invalid("Bad polling or transfer code");
        };
        match consent.decision {
            Decision::Declined => {
                return refuse(StatusCode::UNAUTHORIZED, "access_denied", "user declined consent");
            }
            _ if Instant::now() > consent.until => {
                return refuse(StatusCode::UNAUTHORIZED, "expired_token", "polling or transfer code is expired");
            }
            Decision::Open | Decision::Accepted => {
                let pending = StatusCode::PRECONDITION_REQUIRED;
                return refuse(pending, "authorization_pending", "");
            }
            Decision::Approved => {}
        }
        // Single use: an answer that gets lost loses the token.
        match book.consents.remove(&code) {
            Some(consent) => consent.wish,
            None => return invalid("Bad polling or transfer code"),
        }
    };
    match create(shared, wish) {
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "internal_server_error", "signing failed"),
        Ok((index, jwt)) => {
            let book = shared.book();
            let mytoken = book.families.get(index).and_then(|family| family.mytoken.as_ref());
            mytoken.map_or_else(|| invalid(""), |mytoken| Json(mytoken.response(&jwt)).into_response())
        }
    }
}

/// What the token is good for, in words.
fn rights(wish: &MytokenWish) -> String {
    let scopes: Vec<&str> = wish.restrictions.iter().filter_map(|one| one.scope.as_deref()).collect();
    if scopes.is_empty() { "everything that you may".to_owned() } else { scopes.join(", or ") }
}

/// When it ends, in words.
fn end(wish: &MytokenWish) -> String {
    let ends: Option<Vec<u64>> = wish.restrictions.iter().map(|one| one.exp).collect();
    match ends.and_then(|ends| ends.into_iter().max()) {
        Some(end) => format!("in {} hours", end.saturating_sub(now_ms() / 1000).div_ceil(3600)),
        None => "never".to_owned(),
    }
}

async fn page(State(shared): State<Arc<Shared>>, Path(code): Path<String>) -> Response<Body> {
    let book = shared.book();
    let Some(consent) = book.consents.get(&code) else {
        return (StatusCode::NOT_FOUND, Html(framed("Unknown consent", ""))).into_response();
    };
    let inside = format!(
        "<p>{} asks for a mytoken named {}.<dl><dt>It may<dd>{}<dt>It ends<dd>{}</dl><p><button onclick=\"go(JSON.stringify(wish))\">Approve</button>\
         <button onclick=\"go('')\">Decline</button><script>const wish={};\
         async function go(body){{const r=await fetch(location,{{method:'POST',body,\
         headers:{{'Content-Type':'application/json'}}}});const a=await r.json();\
         location=a.authorization_uri||a.url}}</script>",
        plain(&consent.application),
        plain(consent.wish.name.as_deref().unwrap_or("(no name)")),
        plain(&rights(&consent.wish)),
        plain(&end(&consent.wish)),
        json!({
            "oidc_issuer": shared.url, "restrictions": consent.wish.restrictions,
            "capabilities": consent.wish.capabilities, "name": consent.wish.name,
        })
        .to_string()
        .replace('<', "\\u003c"),
    );
    Html(framed("Create a mytoken", &inside)).into_response()
}

/// 278: the page's script goes where the answer says.
fn go(member: &str, url: &str) -> Response<Body> {
    let status = StatusCode::from_u16(278).unwrap_or(StatusCode::OK);
    (status, Json(json!({ member: url }))).into_response()
}

async fn consent(State(shared): State<Arc<Shared>>, Path(code): Path<String>, body: Bytes) -> Response<Body> {
    let mut book = shared.book();
    let Some(consent) = book.consents.get_mut(&code).filter(|consent| consent.decision == Decision::Open) else {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, "internal_server_error", "Not Found");
    };
    if body.is_empty() {
        consent.decision = Decision::Declined;
        return go("url", &format!("{}/native/abort", shared.mytoken_url));
    }
    let members: Map<String, Value> = match serde_json::from_slice(&body) {
        Ok(members) => members,
        Err(error) => return bad(&error.to_string()),
    };
    let mut given = match wish(&members) {
        Ok(given) => given,
        Err(answer) => return answer,
    };
    // What the user posts replaces what was asked for; what is left out is unrestricted.
    text(&members, "user").unwrap_or("demo").clone_into(&mut given.user);
    given.rotation = given.rotation.or(consent.wish.rotation);
    consent.wish = given;
    consent.decision = Decision::Accepted;
    go("authorization_uri", &format!("{}/redirect/{code}", shared.mytoken_url))
}

/// Every open consent is approved as it was asked for.
pub(super) fn approve_all(shared: &Shared) {
    let mut book = shared.book();
    for consent in book.consents.values_mut().filter(|consent| consent.decision == Decision::Open) {
        "demo".clone_into(&mut consent.wish.user);
        consent.decision = Decision::Approved;
    }
}

async fn redirect(State(shared): State<Arc<Shared>>, Path(code): Path<String>) -> Response<Body> {
    if let Some(consent) = shared.book().consents.get_mut(&code)
        && consent.decision == Decision::Accepted
    {
        consent.decision = Decision::Approved;
        let native = format!("{}/native", shared.mytoken_url);
        return (StatusCode::SEE_OTHER, [(header::LOCATION, native)]).into_response();
    }
    let status = StatusCode::from_u16(555).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, Html(framed("Login failed", ""))).into_response()
}

async fn done() -> Html<String> {
    Html(framed("Mytoken created", "<p>You can close this window."))
}

async fn tokeninfo(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let members = match members(&headers, &body) {
        Ok(members) => members,
        Err(answer) => return answer,
    };
    let action = text(&members, "action").unwrap_or_default();
    if action != "introspect" {
        return bad(&format!("value '{action}' not valid for TokeninfoAction"));
    }
    let Some(token) = text(&members, "mytoken").or_else(|| bearer(&headers)) else {
        return bad("token not valid");
    };
    let book = shared.book();
    let known = book.tokens.get(token).and_then(|(index, superseded)| {
        let family = book.families.get(*index)?;
        Some((&family.record, family.mytoken.as_ref()?, superseded.is_some()))
    });
    let Some((record, mytoken, superseded)) = known else {
        drop(book);
        return judge_unknown(&shared, token);
    };
    if let Some(answer) = judge_time(&json!({ "exp": mytoken.exp, "nbf": mytoken.nbf() })) {
        return answer;
    }
    if superseded || record.revoked {
        return invalid("");
    }
    if !mytoken.capabilities.iter().any(|one| one == "tokeninfo" || one == "tokeninfo:introspect") {
        return refuse(
            StatusCode::FORBIDDEN,
            "insufficient_capabilities",
            "The provided token does not have the required capability for this operation",
        );
    }
    let mut claims = mytoken.claims(&shared, &record.user);
    if let Some(list) = claims.get_mut("restrictions").and_then(Value::as_array_mut) {
        for (claim, one) in list.iter_mut().filter_map(Value::as_object_mut).zip(&mytoken.restrictions) {
            claim.insert("usages_AT_done".into(), one.done.into());
            claim.insert("usages_other_done".into(), 0.into());
        }
    }
    Json(json!({ "valid": true, "token_type": "token", "mom_id": mytoken.mom_id(), "token": claims })).into_response()
}

async fn revoke(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let members = match members(&headers, &body) {
        Ok(members) => members,
        Err(answer) => return answer,
    };
    let issuer = text(&members, "oidc_issuer").filter(|text| !text.is_empty());
    if issuer.is_some_and(|issuer| issuer.trim_end_matches('/') != shared.url) {
        return bad("token not for specified issuer");
    }
    let mut book = shared.book();
    if let Some(family) = text(&members, "token").and_then(|token| book.family_of(token)) {
        family.record.revoked = true;
    }
    StatusCode::NO_CONTENT.into_response()
}
