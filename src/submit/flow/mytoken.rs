//! The flow of a mytoken server (mytoken contract §2.1–2.4): a consent URL for the user, a polling code for us.
//!
//! There is no device flow and no `slow_down`. The polling code is single use: an answer that gets lost loses the token.

use std::time::Duration;

use reqwest::Client;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{Bad, Fresh, Polled, Post, Started, Unfit, Wish, interval, later, left_until, page::Page, refused, top};
use crate::{
    config::settings::{Provider, Restrictions},
    core::secret::RefreshToken,
    courier::http,
    issuer::{TokenAnswer, client},
    submit::{cases::Left, error::SubmitError},
};

pub(super) const WHO: &str = "The mytoken server";
/// Without a profile and without a configured lifetime.
const WEEK: Duration = Duration::from_secs(604_800);

/// A server, discovered.
pub(super) struct Flow<'a> {
    wish: &'a Wish<'a>,
    endpoint: String,
    /// The OpenID provider behind the server, which a start must name (contract §2.2).
    issuer: String,
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    mytoken_endpoint: Option<String>,
}

/// What is asked for; `None`: what the profile says.
fn lifetime(provider: &Provider) -> Option<Duration> {
    provider.approval.lifetime.or(provider.approval.profile.is_empty().then_some(WEEK))
}

pub(super) async fn discover<'a>(http: &Client, wish: &'a Wish<'a>, server: &str) -> Result<Flow<'a>, SubmitError> {
    let url = format!("{}/.well-known/mytoken-configuration", client::trimmed(server));
    let body = super::document(http, &url, WHO).await?;
    let fail = |why: String| SubmitError::Refused { who: WHO, why };
    let document: Document =
        serde_json::from_slice(&body).map_err(|_| fail(format!("{url} is no discovery document")))?;
    if client::trimmed(&document.issuer) != client::trimmed(server) {
        return Err(fail(format!("{url} names another server")));
    }
    let endpoint = super::endpoint(WHO, "mytoken endpoint", document.mytoken_endpoint)?;
    let issuer = behind(wish.provider, client::providers_supported(&body).unwrap_or_default())?;
    Ok(Flow { wish, endpoint, issuer })
}

/// The configured provider behind the server, or the only one that it has.
fn behind(provider: &Provider, mut supported: Vec<String>) -> Result<String, SubmitError> {
    if let Some(issuer) = &provider.issuer {
        return Ok(issuer.clone());
    }
    match supported.pop() {
        Some(only) if supported.is_empty() => Ok(only),
        last => {
            supported.extend(last);
            Err(SubmitError::NotSetUp(format!(
                "The provider {} does not say at which of its mytoken server's providers users approve ({}); ask the \
                 admins to set `issuer`.",
                provider.name,
                if supported.is_empty() { "it lists none".to_owned() } else { super::printable(&supported.join(" ")) }
            )))
        }
    }
}

/// What the request for a mytoken restricts it to.
pub(super) struct Restriction<'a> {
    pub(super) scopes: Vec<String>,
    pub(super) lifetime: Duration,
    pub(super) further: &'a Restrictions,
}

/// What it is restricted to; `None`: nothing, and a profile decides. The audience only where the provider's settings
/// restrict it: servers clip it to what the first access token has.
pub(super) fn restriction<'a>(wish: &Wish<'a>) -> Option<Restriction<'a>> {
    let lifetime = lifetime(wish.provider)?;
    Some(Restriction { scopes: wish.scopes(), lifetime, further: &wish.provider.approval.restrictions })
}

impl Flow<'_> {
    fn post(&self, body: &Value) -> Post {
        let body = Zeroizing::new(body.to_string());
        Post { url: self.endpoint.clone(), content_type: "application/json", body }
    }

    pub(super) fn start(&self) -> Post {
        let provider = self.wish.provider;
        let approval = &provider.approval;
        let mut body = json!({
            "grant_type": "oidc_flow", "oidc_flow": "authorization_code", "client_type": "native", "redirect_uri": "",
            "response_type": "token", "name": format!("mytoken-{}", self.wish.request.name()),
            "application_name": "HTCondor job submission",
        });
        if let Some(members) = body.as_object_mut() {
            members.insert("oidc_issuer".into(), json!(self.issuer));
            if !approval.profile.is_empty() {
                members.insert("include".into(), json!(approval.profile));
            }
            if !approval.capabilities.is_empty() {
                members.insert("capabilities".into(), json!(approval.capabilities));
            }
            if let Some(restriction) = self.restriction() {
                members.insert("restrictions".into(), json!([restriction]));
            }
        }
        self.post(&body)
    }

    /// One restriction, without which a server would ignore scopes and audience later (contract, fact 6). A profile
    /// brings its own.
    fn restriction(&self) -> Option<Map<String, Value>> {
        let Restriction { scopes, lifetime, further } = restriction(self.wish)?;
        let mut restriction = Map::new();
        restriction.insert("exp".into(), json!(format!("+{}s", lifetime.as_secs())));
        if !scopes.is_empty() {
            restriction.insert("scope".into(), json!(scopes.join(" ")));
        }
        let lists = [
            ("audience", &further.audience),
            ("hosts", &further.hosts),
            ("geoip_allow", &further.geoip_allow),
            ("geoip_disallow", &further.geoip_disallow),
        ];
        for (name, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            restriction.insert(name.into(), json!(list));
        }
        if let Some(usages) = further.usages_at {
            restriction.insert("usages_AT".into(), json!(usages));
        }
        Some(restriction)
    }

    pub(super) fn started(answer: &TokenAnswer) -> Result<Started, SubmitError> {
        #[derive(Deserialize)]
        struct Good {
            consent_uri: Option<String>,
            // Servers of another age say it this way.
            authorization_uri: Option<String>,
            polling_code: String,
            expires_in: Option<u64>,
            interval: Option<u64>,
        }
        if !(200..300).contains(&answer.status) {
            return Err(refused(WHO, answer));
        }
        let missing = || SubmitError::Unreachable { who: WHO, why: "its answer names no consent page".to_owned() };
        let good: Good = serde_json::from_slice(&answer.body).map_err(|_| missing())?;
        let expires_in = Duration::from_secs(good.expires_in.filter(|secs| *secs > 0).unwrap_or(300));
        let url = good.consent_uri.or(good.authorization_uri).ok_or_else(missing)?;
        Ok(Started {
            page: Page { url, complete: None, code: None, expires_in },
            code: Zeroizing::new(good.polling_code),
            verifier: None,
            interval: interval(good.interval),
            expires_in,
        })
    }

    pub(super) fn poll(&self, code: &Zeroizing<String>) -> Post {
        self.post(&json!({ "grant_type": "polling_code", "polling_code": code.as_str() }))
    }

    pub(super) fn polled(answer: &TokenAnswer) -> Polled {
        if (200..300).contains(&answer.status) {
            return match fresh(answer) {
                Ok(fresh) => Polled::Done(Box::new(fresh)),
                Err(unfit) => Polled::Unfit(unfit),
            };
        }
        let Some(bad) = Bad::of(answer) else { return later(answer) };
        match (answer.status, bad.error.as_str()) {
            (428, _) | (_, "authorization_pending") => Polled::Pending,
            (_, "slow_down") => Polled::SlowDown,
            (_, "access_denied") => Polled::Declined,
            (_, "expired_token") => Polled::RanOut,
            (429 | 500.., _) => later(answer),
            (_, "invalid_token") => Polled::Gone(bad.words()),
            _ => Polled::Over(SubmitError::Refused { who: WHO, why: bad.words() }),
        }
    }
}

/// The mytoken that was made: what counts is what the user left in it, not what was asked for.
fn fresh(answer: &TokenAnswer) -> Result<Fresh, Unfit> {
    #[derive(Deserialize)]
    struct Good {
        mytoken: String,
        mytoken_type: Option<String>,
        expires_in: Option<i64>,
        #[serde(default)]
        capabilities: Vec<String>,
    }
    let good: Good = serde_json::from_slice(&answer.body)
        .map_err(|_| Unfit::without_token("the server's answer holds no mytoken"))?;
    let mytoken = Zeroizing::new(good.mytoken);
    if good.mytoken_type.as_deref() == Some("transfer_code") {
        return Err(Unfit::without_token("the server gave a transfer code in its place"));
    }
    let token = RefreshToken::parse(&mytoken).map_err(|e| Unfit::without_token(e.to_string()))?;
    if !good.capabilities.is_empty() && !good.capabilities.iter().any(|capability| capability == "AT") {
        let why = "it may not make access tokens (the capability AT was taken away)".to_owned();
        return Err(Unfit { why, token: Some(token) });
    }
    let end = good.expires_in.filter(|secs| *secs > 0).map(|secs| http::now().secs().saturating_add(secs));
    let left = if end.is_none() { Left::Unlimited } else { left_until(end) };
    Ok(Fresh { top: top("mytoken", token.expose(), end), left })
}
