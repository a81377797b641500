//! The device flow (RFC 8628), by a public client: the user types a short code on the issuer's page, we poll.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use reqwest::Client;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use url::form_urlencoded::Serializer;
use zeroize::Zeroizing;

use super::{
    Bad, Fresh, Polled, Post, Started, Unfit, Wish, interval, later, left_until, page::Page, public_client, refused,
    top,
};
use crate::{
    config::settings::{AudienceStyle, OAuth2},
    core::{
        jwt,
        secret::{AccessToken, RefreshToken},
        time::Timestamp,
    },
    courier::http,
    issuer::{TokenAnswer, client},
    submit::{cases::Left, error::SubmitError},
};

pub(super) const WHO: &str = "The issuer";
const FORM: &str = "application/x-www-form-urlencoded";

/// An issuer, discovered.
pub(super) struct Flow<'a> {
    wish: &'a Wish<'a>,
    client_id: &'a str,
    /// The access token is what is stored: the credmon exchanges it.
    exchange: bool,
    audience_style: AudienceStyle,
    device_endpoint: String,
    token_endpoint: String,
    /// Of PKCE; made anew by each process, sent only in the request for the token.
    verifier: Option<Zeroizing<String>>,
}

#[derive(Deserialize, Default)]
struct Document {
    issuer: String,
    token_endpoint: Option<String>,
    device_authorization_endpoint: Option<String>,
}

pub(super) async fn discover<'a>(
    http: &Client,
    wish: &'a Wish<'a>,
    oauth2: &'a OAuth2,
) -> Result<Flow<'a>, SubmitError> {
    let client_id = public_client(wish.provider, oauth2)?;
    let approval = &wish.provider.approval;
    let configured = approval.device_endpoint.clone().zip(oauth2.token_endpoint.clone());
    let (device, token) = match (configured, &wish.provider.issuer) {
        (Some((device, token)), _) => (Some(device), Some(token)),
        (None, Some(issuer)) => {
            let found = discovered(http, issuer).await?;
            (
                approval.device_endpoint.clone().or(found.device_authorization_endpoint),
                oauth2.token_endpoint.clone().or(found.token_endpoint),
            )
        }
        (None, None) => {
            let what = format!(
                "The provider {} names no issuer and no device_authorization_endpoint, so nobody can approve there.",
                wish.provider.name
            );
            return Err(SubmitError::NotSetUp(what));
        }
    };
    Ok(Flow {
        wish,
        client_id,
        exchange: oauth2.login_client.is_some(),
        audience_style: oauth2.audience_style,
        device_endpoint: super::endpoint(WHO, "device authorization endpoint", device)?,
        token_endpoint: super::endpoint(WHO, "token endpoint", token)?,
        verifier: approval.pkce.then(verifier).transpose()?,
    })
}

async fn discovered(http: &Client, issuer: &str) -> Result<Document, SubmitError> {
    let url = format!("{}/.well-known/openid-configuration", client::trimmed(issuer));
    let body = super::document(http, &url, WHO).await?;
    let fail = |why: String| SubmitError::Refused { who: WHO, why };
    let document: Document =
        serde_json::from_slice(&body).map_err(|_| fail(format!("{url} is no discovery document")))?;
    if client::trimmed(&document.issuer) == client::trimmed(issuer) {
        return Ok(document);
    }
    Err(fail(format!("{url} names another issuer")))
}

/// RFC 7636 §4.1: 32 random bytes.
fn verifier() -> Result<Zeroizing<String>, SubmitError> {
    let mut bytes = Zeroizing::new([0_u8; 32]);
    aws_lc_rs::rand::fill(bytes.as_mut_slice())
        .map_err(|_| SubmitError::System { what: "no random numbers", source: std::io::Error::other("unspecified") })?;
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_slice())))
}

impl Flow<'_> {
    fn post(url: &str, mut form: Serializer<'_, String>) -> Post {
        Post { url: url.to_owned(), content_type: FORM, body: Zeroizing::new(form.finish()) }
    }

    pub(super) fn start(&self) -> Post {
        let mut form = Serializer::new(String::new());
        form.append_pair("client_id", self.client_id);
        form.append_pair("scope", &self.wish.scopes().join(" "));
        let audience = self.wish.audience();
        match self.audience_style {
            _ if audience.is_empty() => {}
            AudienceStyle::Audience => {
                form.append_pair("audience", &audience.join(" "));
            }
            AudienceStyle::Repeated => {
                form.extend_pairs(audience.iter().map(|one| ("audience", one)));
            }
            AudienceStyle::Resource => {
                form.extend_pairs(audience.iter().map(|one| ("resource", one)));
            }
        }
        if let Some(verifier) = &self.verifier {
            let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.as_bytes()));
            form.append_pair("code_challenge", &challenge).append_pair("code_challenge_method", "S256");
        }
        Self::post(&self.device_endpoint, form)
    }

    pub(super) fn started(&self, answer: &TokenAnswer) -> Result<Started, SubmitError> {
        #[derive(Deserialize)]
        struct Good {
            device_code: String,
            user_code: String,
            #[serde(alias = "verification_url")]
            verification_uri: String,
            #[serde(alias = "verification_url_complete")]
            verification_uri_complete: Option<String>,
            expires_in: Option<u64>,
            interval: Option<u64>,
        }
        if !(200..300).contains(&answer.status) {
            return Err(refused(WHO, answer));
        }
        let good: Good = serde_json::from_slice(&answer.body).map_err(|_| SubmitError::Unreachable {
            who: WHO,
            why: "its answer is none of the device flow".to_owned(),
        })?;
        let expires_in = Duration::from_secs(good.expires_in.filter(|secs| *secs > 0).unwrap_or(300));
        Ok(Started {
            page: Page {
                url: good.verification_uri,
                complete: good.verification_uri_complete,
                code: Some(good.user_code),
                expires_in,
            },
            code: Zeroizing::new(good.device_code),
            verifier: self.verifier.clone(),
            interval: interval(good.interval),
            expires_in,
        })
    }

    pub(super) fn poll(&self, code: &Zeroizing<String>, verifier: Option<&Zeroizing<String>>) -> Post {
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "urn:ietf:params:oauth:grant-type:device_code")
            .append_pair("device_code", code)
            .append_pair("client_id", self.client_id);
        if let Some(verifier) = verifier {
            form.append_pair("code_verifier", verifier);
        }
        Self::post(&self.token_endpoint, form)
    }

    pub(super) fn polled(&self, answer: &TokenAnswer) -> Polled {
        if (200..300).contains(&answer.status) {
            return match if self.exchange { subject(answer) } else { fresh(answer) } {
                Ok(fresh) => Polled::Done(Box::new(fresh)),
                Err(why) => Polled::Unfit(Unfit::without_token(why)),
            };
        }
        let Some(bad) = Bad::of(answer) else { return later(answer) };
        match (answer.status, bad.error.as_str()) {
            (_, "authorization_pending") => Polled::Pending,
            (_, "slow_down") => Polled::SlowDown,
            (_, "access_denied") => Polled::Declined,
            (_, "expired_token") => Polled::RanOut,
            (429 | 500.., _) => later(answer),
            (_, "invalid_grant") => Polled::Gone(bad.words()),
            _ => Polled::Over(SubmitError::Refused { who: WHO, why: bad.words() }),
        }
    }
}

fn fresh(answer: &TokenAnswer) -> Result<Fresh, String> {
    #[derive(Deserialize)]
    struct Good {
        refresh_token: Option<String>,
        // Keycloak's; 0: it does not end.
        refresh_expires_in: Option<i64>,
    }
    let good: Good =
        serde_json::from_slice(&answer.body).map_err(|_| "the issuer's answer is no token answer".to_owned())?;
    let token = good.refresh_token.map(Zeroizing::new).ok_or_else(|| {
        "the issuer gave no refresh token (the scope offline_access may be missing from our client)".to_owned()
    })?;
    let end = good.refresh_expires_in.filter(|secs| *secs > 0).map(|secs| http::now().secs().saturating_add(secs));
    let end = end.or_else(|| jwt::end_of_refresh_token(&token).map(Timestamp::secs));
    let token = RefreshToken::parse(&token).map_err(|e| e.to_string())?;
    Ok(Fresh { top: top("refresh_token", token.expose(), end), left: left_until(end) })
}

/// A subject token lives for minutes; what it is exchanged for has an end of its own, which nobody knows yet.
fn subject(answer: &TokenAnswer) -> Result<Fresh, String> {
    #[derive(Deserialize)]
    struct Good {
        access_token: String,
    }
    let good: Good =
        serde_json::from_slice(&answer.body).map_err(|_| "the issuer's answer is no token answer".to_owned())?;
    let token = AccessToken::parse(&Zeroizing::new(good.access_token)).map_err(|e| e.to_string())?;
    Ok(Fresh { top: top("subject_token", token.expose(), None), left: Left::Unknown })
}
