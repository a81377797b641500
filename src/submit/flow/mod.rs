//! Approvals: start at the issuer, show the user where to go, ask until it is decided.
//!
//! Two flows, each one file of what is asked and what answers mean (pure), and this driver. The network follows the
//! courier's rules (no redirects, capped bodies, https or loopback). A token exists in this process only between the
//! issuer's answer and credd; interrupted before, nothing is stored anywhere. One that is not stored is given back to the
//! issuer, as far as it takes it within some seconds.

mod device;
mod mytoken;
mod page;
#[cfg(test)]
mod tests;

use std::{
    ops::RangeInclusive,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use reqwest::{Client, header};
use zeroize::Zeroizing;

pub use page::Invitation;

use super::{cases::Left, error::SubmitError, request::Request};
use crate::{
    config::settings::{OAuth2, Provider, ProviderKind},
    core::{answer::ExchangeError, secret::RefreshToken, top::Top},
    courier::http::{self, Caller},
    issuer::{TokenAnswer, client},
};

/// How often the user's Ctrl-C is looked for and the time left is told.
const TICK: Duration = Duration::from_millis(100);
/// RFC 8628 §3.2: without `interval`.
const INTERVAL: u64 = 5;
/// Between two questions, in seconds: what an issuer wants beyond that would break it, or wait for ever.
const INTERVALS: RangeInclusive<u64> = 1..=60;
/// RFC 8628 §3.5.
const SLOW_DOWN: Duration = Duration::from_secs(5);
/// No approval page is open longer, whatever the issuer says.
pub(super) const LONGEST: Duration = Duration::from_secs(3600);
/// How long giving a token back may take, while the user waits.
const BACK: Duration = Duration::from_secs(10);
/// Codes that ran out, or an answer that got lost, are replaced once.
const ATTEMPTS: u32 = 2;

/// Who asks for what.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// Where.
    pub provider: &'a Provider,
    /// For which service.
    pub request: &'a Request,
    /// Login name.
    pub account: String,
    /// This host.
    pub host: String,
}

impl Wish<'_> {
    /// Scopes of the request, else the provider's, as they are asked for.
    #[must_use]
    pub fn scopes(&self) -> Vec<String> {
        let asked = Some(self.request.scope_list()).filter(|list| !list.is_empty());
        let mut scopes = asked.unwrap_or_else(|| self.provider.scopes.clone());
        for scope in &self.provider.approval.login_scopes {
            if !scopes.contains(scope) {
                scopes.push(scope.clone());
            }
        }
        scopes
    }

    /// Audiences of the request, else the provider's.
    #[must_use]
    pub fn audience(&self) -> Vec<String> {
        let asked = Some(self.request.audience_list()).filter(|list| !list.is_empty());
        asked.unwrap_or_else(|| self.provider.audience.clone())
    }
}

/// What an approval brought: a `.top` ready for credd.
pub struct Fresh {
    /// One JSON object.
    pub top: Zeroizing<String>,
    /// How long it lives.
    pub left: Left,
}

/// Who watches the flow.
pub trait Watcher {
    /// Show where to go.
    fn invite(&mut self, invitation: &Invitation);
    /// Time passes.
    fn left(&mut self, left: Duration);
}

/// One question whether it is decided.
enum Polled {
    Pending,
    SlowDown,
    /// The issuer is in trouble; ask again, not before this.
    Later(Option<Duration>),
    Done(Box<Fresh>),
    Declined,
    /// The code ran out.
    RanOut,
    /// Approved, and of no use.
    Unfit(Unfit),
    /// The code is unknown: used, or its answer got lost.
    Gone(String),
    Over(SubmitError),
}

/// What was approved and cannot do what it is for.
struct Unfit {
    why: String,
    /// What lives on at the issuer, if anything that we can name.
    token: Option<RefreshToken>,
}

impl Unfit {
    /// Of an answer that holds no token to give back.
    fn without_token(why: impl Into<String>) -> Self {
        Self { why: why.into(), token: None }
    }
}

enum Flow<'a> {
    Mytoken(mytoken::Flow<'a>),
    Device(device::Flow<'a>),
}

/// A POST, by either flow.
struct Post {
    url: String,
    content_type: &'static str,
    body: Zeroizing<String>,
}

/// Let the user approve.
///
/// # Errors
/// Whatever ended it; see [`SubmitError`].
pub fn approve(wish: &Wish<'_>, watcher: &mut dyn Watcher, cancelled: &AtomicBool) -> Result<Fresh, SubmitError> {
    let client = http::client(wish.provider).map_err(SubmitError::NotSetUp)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| SubmitError::System { what: "no event loop", source })?;
    let work = async {
        let flow = match &wish.provider.kind {
            ProviderKind::Mytoken { server } => Flow::Mytoken(mytoken::discover(&client, wish, server).await?),
            ProviderKind::OAuth2(oauth2) => Flow::Device(device::discover(&client, wish, oauth2).await?),
        };
        drive(&client, &flow, wish, watcher, cancelled).await
    };
    runtime.block_on(async {
        tokio::select! {
            biased;
            done = work => done,
            () = until(cancelled) => Err(SubmitError::Cancelled),
        }
    })
}

/// Give a token back that was approved and is not stored, within ten seconds.
///
/// # Errors
/// Why it may live on, in one line.
pub fn give_back(provider: &Provider, fresh: &Fresh) -> Result<(), String> {
    let top = Top::parse(fresh.top.as_bytes()).map_err(|kind| kind.to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(given_back(provider, top.refresh_token()))
}

async fn given_back(provider: &Provider, token: &RefreshToken) -> Result<(), String> {
    let mut provider = provider.clone();
    if let ProviderKind::OAuth2(oauth2) = &mut provider.kind
        && let Some(login_client) = oauth2.login_client.take()
    {
        // It is that client's, and users cannot act as the other one.
        oauth2.client_id = login_client;
        oauth2.client_secret = None;
    }
    let caller = Caller::new(provider);
    match tokio::time::timeout(BACK, caller.revoke(token)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(printable(&error.detail)),
        Err(_) => Err(format!("no answer within {} seconds", BACK.as_secs())),
    }
}

async fn unsuitable(provider: &Provider, unfit: Unfit) -> SubmitError {
    let Unfit { mut why, token } = unfit;
    if let Some(token) = token
        && let Err(error) = given_back(provider, &token).await
    {
        why = format!("{why}; nor could it be revoked ({error}): revoke it at the provider");
    }
    SubmitError::Unsuitable(why)
}

/// When the user gives up.
pub(crate) async fn until(cancelled: &AtomicBool) {
    while !cancelled.load(Relaxed) {
        tokio::time::sleep(TICK).await;
    }
}

async fn drive(
    client: &Client,
    flow: &Flow<'_>,
    wish: &Wish<'_>,
    watcher: &mut dyn Watcher,
    cancelled: &AtomicBool,
) -> Result<Fresh, SubmitError> {
    let who = flow.who();
    for attempt in 1..=ATTEMPTS {
        let answer = send(client, flow.start()).await.map_err(|error| unreachable(who, &error))?;
        let started = flow.started(&answer)?;
        let invitation = page::check(wish, &started.page)?;
        watcher.invite(&invitation);
        let end = Instant::now() + started.expires_in.min(LONGEST);
        let mut interval = started.interval;
        let mut lost = false;
        let token_lost = loop {
            if !wait(interval, end, watcher, cancelled).await {
                break false;
            }
            let mut post = std::pin::pin!(send(client, flow.poll(&started.code, started.verifier.as_ref())));
            let answer = loop {
                tokio::select! {
                    answer = &mut post => break answer,
                    () = tokio::time::sleep(TICK) => watcher.left(end.saturating_duration_since(Instant::now())),
                }
            };
            let polled = if let Ok(answer) = &answer {
                flow.polled(answer)
            } else {
                // RFC 8628 §3.5: a connection that fails is no decision. The answer may have been the token, though.
                lost = true;
                Polled::Later(None)
            };
            match polled {
                Polled::Pending => {}
                Polled::SlowDown => interval = interval.saturating_add(SLOW_DOWN),
                Polled::Later(after) => {
                    let longer = after.and_then(|after| after.checked_sub(interval)).unwrap_or_default();
                    if !wait(longer, end, watcher, cancelled).await {
                        break false;
                    }
                }
                Polled::Done(fresh) => return Ok(*fresh),
                Polled::Unfit(unfit) => return Err(unsuitable(wish.provider, unfit).await),
                Polled::Declined => return Err(SubmitError::Declined),
                Polled::RanOut => break false,
                Polled::Gone(_) if lost => break true,
                Polled::Gone(why) => return Err(SubmitError::Refused { who, why }),
                Polled::Over(error) => return Err(error),
            }
        };
        // RFC 8628 §3.5: the user may begin anew with another code. At a mytoken server only a lost answer is a reason.
        if attempt == ATTEMPTS || !(token_lost || matches!(flow, Flow::Device(_))) {
            break;
        }
    }
    Err(SubmitError::NotInTime)
}

/// Wait, telling the time left; false: the end came first.
async fn wait(length: Duration, end: Instant, watcher: &mut dyn Watcher, cancelled: &AtomicBool) -> bool {
    let until = Instant::now().checked_add(length).unwrap_or(end);
    loop {
        let now = Instant::now();
        watcher.left(end.saturating_duration_since(now));
        if now >= end {
            return false;
        }
        if now >= until || cancelled.load(Relaxed) {
            return true;
        }
        tokio::time::sleep(TICK.min(until - now)).await;
    }
}

impl Flow<'_> {
    fn who(&self) -> &'static str {
        match self {
            Self::Mytoken(_) => mytoken::WHO,
            Self::Device(_) => device::WHO,
        }
    }

    fn start(&self) -> Post {
        match self {
            Self::Mytoken(flow) => flow.start(),
            Self::Device(flow) => flow.start(),
        }
    }

    fn started(&self, answer: &TokenAnswer) -> Result<Started, SubmitError> {
        match self {
            Self::Mytoken(_) => mytoken::Flow::started(answer),
            Self::Device(flow) => flow.started(answer),
        }
    }

    fn poll(&self, code: &Zeroizing<String>, verifier: Option<&Zeroizing<String>>) -> Post {
        match self {
            Self::Mytoken(flow) => flow.poll(code),
            Self::Device(flow) => flow.poll(code, verifier),
        }
    }

    fn polled(&self, answer: &TokenAnswer) -> Polled {
        match self {
            Self::Mytoken(_) => mytoken::Flow::polled(answer),
            Self::Device(flow) => flow.polled(answer),
        }
    }
}

/// What a started flow waits for.
struct Started {
    page: page::Page,
    /// The polling or device code: a secret.
    code: Zeroizing<String>,
    verifier: Option<Zeroizing<String>>,
    interval: Duration,
    expires_in: Duration,
}

/// How often to ask, whatever an issuer says.
fn interval(told: Option<u64>) -> Duration {
    let told = told.filter(|secs| *secs > 0).unwrap_or(INTERVAL);
    Duration::from_secs(told.clamp(*INTERVALS.start(), *INTERVALS.end()))
}

async fn send(client: &Client, post: Post) -> Result<TokenAnswer, ExchangeError> {
    let request = client
        .post(&post.url)
        .header(header::CONTENT_TYPE, post.content_type)
        .header(header::ACCEPT, "application/json")
        .body(post.body.as_bytes().to_vec());
    http::answer(request.send().await.map_err(|error| http::failure(&error))?).await
}

/// The discovery document at a configured address.
async fn document(client: &Client, url: &str, who: &'static str) -> Result<Zeroizing<Vec<u8>>, SubmitError> {
    let fetch = async { http::answer(client.get(url).send().await.map_err(|e| http::failure(&e))?).await };
    let answer = fetch.await.map_err(|error| unreachable(who, &error))?;
    match answer.status {
        200 => Ok(answer.body),
        status => Err(SubmitError::Unreachable { who, why: format!("{url} answers HTTP {status}") }),
    }
}

fn unreachable(who: &'static str, error: &ExchangeError) -> SubmitError {
    SubmitError::Unreachable { who, why: printable(&error.detail) }
}

/// An endpoint out of a discovery document: it must be https, or loopback.
fn endpoint(who: &'static str, name: &str, url: Option<String>) -> Result<String, SubmitError> {
    let why = match url {
        Some(url) if client::is_safe(&url) => return Ok(url),
        Some(_) => format!("its {name} is not https"),
        None => format!("it has no {name}"),
    };
    Err(SubmitError::Refused { who, why })
}

/// A server's words, fit for a terminal: no control characters, 200 characters, no full stop at the end.
fn printable(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    clean.trim().trim_end_matches('.').to_owned()
}

/// What an error answer says, as far as it can be read.
#[derive(serde::Deserialize)]
struct Bad {
    error: String,
    #[serde(default)]
    error_description: Option<String>,
}

impl Bad {
    fn of(answer: &TokenAnswer) -> Option<Self> {
        serde_json::from_slice(&answer.body).ok()
    }

    fn words(&self) -> String {
        let description = self.error_description.as_deref().filter(|text| !text.is_empty());
        printable(description.unwrap_or(&self.error))
    }
}

/// An error answer to a start.
fn refused(who: &'static str, answer: &TokenAnswer) -> SubmitError {
    match Bad::of(answer) {
        Some(bad) if answer.status < 500 => SubmitError::Refused { who, why: bad.words() },
        _ => SubmitError::Unreachable { who, why: format!("it answers HTTP {}", answer.status) },
    }
}

/// Trouble that is no decision: 429 with its `Retry-After`, 5xx, what is no JSON.
fn later(answer: &TokenAnswer) -> Polled {
    Polled::Later(client::retry_after(answer, http::now()))
}

/// Seconds since 1970 → what is left.
fn left_until(end: Option<i64>) -> Left {
    match end {
        None => Left::Unknown,
        Some(end) => Left::For(Duration::from_secs(u64::try_from(end.saturating_sub(http::now().secs())).unwrap_or(0))),
    }
}

/// The `.top`: ASCII, lower-case keys, an integer time (HTCondor contract, 2.5); a token is printable ASCII.
#[must_use]
pub fn top(key: &str, token: &str, end: Option<i64>) -> Zeroizing<String> {
    let escaped = Zeroizing::new(token.replace('\\', "\\\\").replace('"', "\\\""));
    let end = end.map(|end| format!(",\"expires_at\":{end}")).unwrap_or_default();
    Zeroizing::new(format!("{{\"{key}\":\"{}\"{end}}}", escaped.as_str()))
}

/// The provider's client id, if users may act as that client: one without a secret.
fn public_client<'a>(provider: &Provider, oauth2: &'a OAuth2) -> Result<&'a str, SubmitError> {
    if let Some(login_client) = &oauth2.login_client {
        return Ok(login_client);
    }
    if !oauth2.confidential {
        return Ok(&oauth2.client_id);
    }
    Err(SubmitError::NotSetUp(format!(
        "The provider {} has a client with a secret, as which users cannot act; ask the admins for a public client or \
         kind = \"token-exchange\".",
        provider.name
    )))
}
