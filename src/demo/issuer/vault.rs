//! The one path of a Vault server that HTCondor's own credmon reads, so that benchmarks have it beside us at the same
//! issuer: a refresh token of ours goes in as the Vault token, an access token comes out.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Response, StatusCode},
    response::IntoResponse,
    routing::get,
};
use serde_json::json;

use super::{
    Shared,
    book::{Refusal, Rotation},
    mint,
    serve::misbehave,
};

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new().route("/v1/secret/oauth/creds/{issuer}/{key}", get(bearer))
}

fn errors(status: StatusCode, why: &str) -> Response<Body> {
    (status, Json(json!({ "errors": [why] }))).into_response()
}

async fn bearer(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response<Body> {
    let Some(token) = headers.get("x-vault-token").and_then(|value| value.to_str().ok()) else {
        return errors(StatusCode::FORBIDDEN, "permission denied");
    };
    let spent = shared.book().spend(token, None, &[], Rotation::None);
    let spent = match spent {
        Ok(spent) => spent,
        Err(Refusal::Misbehave(fault)) => return misbehave(fault).await,
        Err(Refusal::Grant(_) | Refusal::Scope) => return errors(StatusCode::FORBIDDEN, "permission denied"),
    };
    let minted = mint::access_token(&shared, &spent.user, &spent.scopes, &spent.audience, spent.fault);
    let Ok(minted) = minted else { return errors(StatusCode::INTERNAL_SERVER_ERROR, "signing failed") };
    shared.book().note(spent.family, minted.issued);
    Json(json!({ "data": { "access_token": minted.access_token, "type": "bearer", "server": shared.url } }))
        .into_response()
}
