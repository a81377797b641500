//! A client of a service, shared by all sites that use it: one token, kept until half of its life is over or until it
//! is refused, and one pace for all requests.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::{Duration, Instant},
};

use reqwest::{Client, RequestBuilder, header};
use serde_json::Value;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::web::{self, Answer};
use crate::{config::site_settings::Site, core::delivery::Undelivered, error::Kind};

/// See the module.
#[derive(Debug)]
pub struct Account {
    http: Client,
    token: Mutex<Option<(Instant, Zeroizing<String>)>>,
    bare: bool,
    pace: Pace,
    next: Mutex<Instant>,
}

/// How fast a service may be asked.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two requests.
    pub gap: Duration,
    /// This many may come at once after a rest.
    pub burst: u32,
}

impl Account {
    /// A client that has no token yet.
    ///
    /// # Errors
    /// [`web::client`]
    pub fn new(site: &Site, pace: Pace) -> Result<Self, String> {
        let (http, next) = (web::client(site)?, Mutex::new(Instant::now()));
        Ok(Self { http, token: Mutex::new(None), bare: false, pace, next })
    }

    /// The token alone is the header, without `Bearer`.
    #[must_use]
    pub fn bare(mut self, bare: bool) -> Self {
        self.bare = bare;
        self
    }

    /// One request, as often as the service wants them, with a new token once if ours is refused. `grant` asks for a
    /// token, `build` makes the request; the token is added here.
    ///
    /// # Errors
    /// There is no token, or no answer. An answer that says no is an answer.
    pub async fn call(
        &self,
        grant: impl Fn(&Client) -> Result<RequestBuilder, Undelivered>,
        build: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Answer, Undelivered> {
        let mut renewed = false;
        loop {
            let token = self.token(&grant, renewed).await?;
            self.turn().await;
            let text = Zeroizing::new(format!("{}{}", if self.bare { "" } else { "Bearer " }, token.as_str()));
            let mut value = header::HeaderValue::from_str(&text)
                .map_err(|_| Undelivered::new(Kind::SiteAuth, "the service's token fits no header"))?;
            value.set_sensitive(true);
            let answer = web::ask(build(&self.http).header(header::AUTHORIZATION, value)).await?;
            if answer.status != 401 || renewed {
                return Ok(answer);
            }
            renewed = true;
        }
    }

    /// Wait for our turn: a burst, then one request in a gap.
    async fn turn(&self) {
        let wait = {
            let mut next = self.next.lock().await;
            let now = Instant::now();
            let earliest = now.checked_sub(self.pace.gap * self.pace.burst).unwrap_or(now);
            *next = (*next).max(earliest) + self.pace.gap;
            next.saturating_duration_since(now)
        };
        tokio::time::sleep(wait).await;
    }

    /// The client's own token; `anew`: the one that we have was refused.
    async fn token(
        &self,
        grant: impl Fn(&Client) -> Result<RequestBuilder, Undelivered>,
        anew: bool,
    ) -> Result<Zeroizing<String>, Undelivered> {
        let mut held = self.token.lock().await;
        if let Some((until, token)) = &*held
            && !anew
            && Instant::now() < *until
        {
            return Ok(token.clone());
        }
        let answer = web::ask(grant(&self.http)?).await?;
        if matches!(answer.status, 400..=403) {
            let mut refusal = answer.refusal();
            refusal.kind = Kind::SiteAuth;
            refusal.detail = format!("no token for our client: {}", refusal.detail);
            return Err(refusal);
        }
        let answer = answer.json()?;
        let token = answer.get("access_token").and_then(Value::as_str);
        let token =
            token.ok_or_else(|| Undelivered::new(Kind::SiteAuth, "the answer for our client holds no token"))?;
        let life = answer.get("expires_in").and_then(Value::as_u64).unwrap_or(600);
        let token = Zeroizing::new(token.to_owned());
        *held = Some((Instant::now() + Duration::from_secs(life / 2), token.clone()));
        Ok(token)
    }
}

/// All clients of one kind of service, by what tells them apart.
#[derive(Debug)]
pub struct Accounts<T>(StdMutex<HashMap<String, Arc<T>>>);

impl<T> Default for Accounts<T> {
    fn default() -> Self {
        Self(StdMutex::default())
    }
}

impl<T> Accounts<T> {
    /// The client called `key`, made if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn of(&self, key: String, make: impl FnOnce() -> Result<T, String>) -> Result<Arc<T>, Undelivered> {
        let mut accounts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(&key) {
            return Ok(Arc::clone(account));
        }
        let account = Arc::new(make().map_err(|why| Undelivered::new(Kind::SiteError, why))?);
        accounts.insert(key, Arc::clone(&account));
        Ok(account)
    }
}
