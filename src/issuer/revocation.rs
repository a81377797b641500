//! Giving a refresh token back: RFC 7009, and a mytoken server's revocation endpoint (mytoken contract §2.9), where
//! the mytokens made from it end, too. A token that has ended already is a good answer with both.

use serde_json::json;
use url::form_urlencoded::Serializer;
use zeroize::Zeroizing;

use super::{TokenAnswer, TokenRequest, client, mytoken, oauth2};
use crate::{
    config::settings::{Provider, ProviderKind},
    core::{answer::ExchangeError, secret::RefreshToken, time::Timestamp},
};

/// The request.
#[must_use]
pub fn request(provider: &Provider, token: &RefreshToken) -> TokenRequest {
    match &provider.kind {
        ProviderKind::OAuth2(oauth2) => {
            let mut form = Serializer::new(String::with_capacity(1024));
            form.append_pair("token", token.expose()).append_pair("token_type_hint", "refresh_token");
            TokenRequest {
                authorization: oauth2::show_client(oauth2, &mut form),
                content_type: "application/x-www-form-urlencoded",
                body: Zeroizing::new(form.finish()),
            }
        }
        ProviderKind::Mytoken { .. } => {
            let mut body = json!({ "token": token.expose(), "recursive": true });
            if let (Some(members), Some(issuer)) = (body.as_object_mut(), &provider.issuer) {
                members.insert("oidc_issuer".into(), json!(issuer));
            }
            TokenRequest {
                authorization: None,
                content_type: "application/json",
                body: Zeroizing::new(body.to_string()),
            }
        }
    }
}

/// What the answer means.
///
/// # Errors
/// [`ExchangeError`]: the token may live on.
pub fn answer(
    provider: &Provider,
    token: &RefreshToken,
    answer: &TokenAnswer,
    now: Timestamp,
) -> Result<(), ExchangeError> {
    if (200..300).contains(&answer.status) {
        return Ok(());
    }
    let mut error = match &provider.kind {
        ProviderKind::OAuth2(_) => oauth2::refused(answer, now),
        ProviderKind::Mytoken { .. } => mytoken::refused(answer, now),
    };
    error.detail = client::printable(&error.detail, Some(token), provider.client_secret());
    Err(error)
}
