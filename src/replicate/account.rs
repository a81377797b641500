//! A client of a service, shared by all sites that use it: one token, kept until half of its life is over or until it
//! is refused, and one pace for all requests, for tokens as well.

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
        let mut refused: Option<Zeroizing<String>> = None;
        loop {
            let token = self.token(&grant, refused.as_deref()).await?;
            self.turn().await;
            let text = Zeroizing::new(format!("{}{}", if self.bare { "" } else { "Bearer " }, token.as_str()));
            let mut value = header::HeaderValue::from_str(&text)
                .map_err(|_| Undelivered::new(Kind::SiteAuth, "the service's token fits no header"))?;
            value.set_sensitive(true);
            let answer = web::ask(build(&self.http).header(header::AUTHORIZATION, value)).await?;
            if answer.status != 401 || refused.is_some() {
                return Ok(answer);
            }
            refused = Some(token);
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

    /// The client's own token, and not the one that was `refused`: of all deliveries that are told so, one asks for another.
    async fn token(
        &self,
        grant: impl Fn(&Client) -> Result<RequestBuilder, Undelivered>,
        refused: Option<&String>,
    ) -> Result<Zeroizing<String>, Undelivered> {
        let mut held = self.token.lock().await;
        if let Some((until, token)) = &*held
            && refused != Some(&**token)
            && Instant::now() < *until
        {
            return Ok(token.clone());
        }
        self.turn().await;
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

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::{TcpListener, TcpStream},
        thread,
    };

    use super::*;
    use crate::config::tests::sites;

    /// Answers one request: with a new token, or with 401 to whoever brings the first one. Whether a token was given.
    fn answer(stream: TcpStream, given: u32) -> bool {
        let mut stream = BufReader::new(stream);
        let mut lines = Vec::new();
        for line in stream.by_ref().lines().map(Result::unwrap) {
            if line.is_empty() {
                break;
            }
            lines.push(line.to_ascii_lowercase());
        }
        let grants = lines.first().is_some_and(|line| line.starts_with("get /token "));
        let (status, body) = if grants {
            ("200 OK", format!("{{\"access_token\":\"t{}\"}}", given + 1))
        } else if lines.iter().any(|line| line == "authorization: bearer t1") {
            ("401 Unauthorized", "{}".to_owned())
        } else {
            ("200 OK", "{}".to_owned())
        };
        let length = body.len();
        let text = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.get_mut().write_all(text.as_bytes()).unwrap();
        grants
    }

    #[test]
    fn a_refused_token_is_asked_for_anew_once_for_all_deliveries_and_each_request_takes_its_turn() {
        const MANY: u32 = 8;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        // The first token, everybody's 401, the second token, everybody's answer.
        let server = thread::spawn(move || {
            let requests = 2 * MANY + 2;
            (0..requests).fold(0, |given, _| given + u32::from(answer(listener.accept().unwrap().0, given)))
        });
        let site = "[site.x]\nkind = \"directory\"\nservices = [\"w\"]\ndirectory = \"/x\"\n";
        let pace = Pace { gap: Duration::from_millis(1), burst: 60_000 };
        let account = Arc::new(Account::new(&sites(site)[0], pace).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let turns = runtime.block_on(async {
            // Rested for a while: nobody waits.
            let rested = Instant::now().checked_sub(Duration::from_secs(30)).unwrap();
            *account.next.lock().await = rested;
            let calls: Vec<_> = (0..MANY)
                .map(|_| {
                    let (account, base) = (Arc::clone(&account), base.clone());
                    tokio::spawn(async move {
                        let grant = |http: &Client| Ok(http.get(format!("{base}/token")));
                        account.call(grant, |http| http.get(&base)).await.unwrap().status
                    })
                })
                .collect();
            for call in calls {
                assert_eq!(call.await.unwrap(), 200);
            }
            account.next.lock().await.duration_since(rested)
        });
        assert_eq!(server.join().unwrap(), 2, "tokens");
        assert_eq!(turns, pace.gap * (2 * MANY + 2));
    }
}
