//! The page where users approve in their browser (`web_approval_listen`): HTCondor's web page without a web server of
//! its own. credd writes a request file and prints `URL/key/KEY`; whoever has the key may approve for that user.
//!
//! It listens where the host's own web server passes requests on to it (a Unix socket, or loopback), or with TLS of its
//! own wherever it is told. A connection carries one request and lives at most [`LIFE`]; of too many one that has shown
//! neither key nor visit is closed. A key opens a session (a cookie that scripts and other sites cannot use) and
//! leaves the address bar at once; every answer forbids scripts, frames and referrers; every form carries the session's
//! token. Redirects lead to our own paths and to the configured issuers' pages, nowhere else. Sessions live in memory:
//! after a restart the link from `condor_submit` opens another one.
//!
//! What cannot be told apart is not kept apart: every key is looked up, so that a flood of random ones keeps nobody with
//! a good one out. The keeper gets [`LOOKUPS`] of them at a time, between its other work.
//!
//! The file is long: each path that a request may take is one function beside the next, and they share one table of visits.
//! The doors, the pages and the flow of an approval have files of their own.
//!
//! PKCE (RFC 7636, S256), `state`, and `iss` (RFC 9207) where the issuer tells it; each provider has a return path of
//! its own besides. The code is redeemed here, the refresh token goes to the keeper, the access token to nobody: the
//! first `.use` is made like every other one.

mod bucket;
mod door;
mod flow;
mod keeper;
mod page;
mod session;

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;

use self::{
    bucket::Bucket,
    door::{Guests, Known, Listener, Stream},
    page::Page,
    session::{Entry, Session, Sessions, Stage},
};
pub use self::{door::Door, keeper::Desk};
use super::{frame::FromCourier, http::Caller};
use crate::{
    config::settings::{TlsFiles, WebApproval, WebListen},
    core::{
        approval::{Ask, Refusal, Told},
        key_file::{self, Item},
        secret::{ApprovalKey, RefreshToken},
    },
    issuer::oauth2,
};

/// From accepting a connection to the end of its answer.
const LIFE: Duration = Duration::from_secs(10);
/// For the handshake of TLS, and for the head of a request.
const HEAD: Duration = Duration::from_secs(5);
/// For a form, which comes with its head or just behind it.
const FORM: Duration = Duration::from_secs(2);
/// The largest form.
const MAX_FORM: usize = 4096;
/// Between two tries to listen, or looks whether one may.
const AGAIN: Duration = Duration::from_secs(10);
/// Keys that the keeper looks up at one time.
const LOOKUPS: usize = 4;
/// Keys that nobody has: so many at once, then so many a second, are answered as links that have ended; those above are
/// told to slow down, and the log of it.
const BURST: u32 = 40;
const PER_SECOND: u32 = 5;
/// Between two lines in the log about that.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(600);
/// The cookie; with TLS, browsers keep a prefix from whoever has none, and from other hosts of the domain.
const COOKIE: &str = "evercred-approval";

type Answer = Response<Full<Bytes>>;

/// Serve the page until the process ends; what the keeper tells goes to the returned desk. `door`: where, or why not (yet).
#[must_use]
pub fn start(
    web: WebApproval,
    door: io::Result<Door>,
    callers: Arc<[Caller]>,
    out: mpsc::Sender<FromCourier>,
) -> Arc<Desk> {
    let desk = Arc::new(Desk::new(out));
    // Taken from its parts and with the rules of `web_approval_url`, so it is a URL.
    let path = url::Url::parse(&web.url).map(|url| url.path().trim_end_matches('/').to_owned()).unwrap_or_default();
    let cookie = match (web.url.starts_with("https://"), path.is_empty()) {
        (true, true) => format!("__Host-{COOKIE}"),
        (true, false) => format!("__Secure-{COOKIE}"),
        (false, _) => COOKIE.to_owned(),
    };
    let site = Arc::new(Site {
        cookie,
        host: nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default(),
        path,
        web,
        callers,
        desk: Arc::clone(&desk),
        sessions: Mutex::default(),
        lookups: Semaphore::new(LOOKUPS),
        unknown: Mutex::new((Bucket::new(BURST, PER_SECOND, Instant::now()), None)),
    });
    tokio::spawn(site.listen(door));
    desk
}

struct Site {
    web: WebApproval,
    /// Path of the page's URL, without a slash at its end.
    path: String,
    /// The cookie's name.
    cookie: String,
    host: String,
    callers: Arc<[Caller]>,
    desk: Arc<Desk>,
    sessions: Mutex<Sessions>,
    lookups: Semaphore,
    /// Keys that nobody has, and when the log was told last.
    unknown: Mutex<(Bucket, Option<Instant>)>,
}

impl Site {
    /// A listener. What somebody else has may come free. A port from 1024 on we take ourselves then; for the rest it
    /// takes what the courier had at its start (see [`Door`]), so we ask for another start once the way looks free.
    async fn enter(&self, mut door: io::Result<Door>) -> Option<Listener> {
        let (listen, mut trouble) = (&self.web.listen, None);
        loop {
            let error = match door.and_then(Door::listener) {
                Ok(listener) => return Some(listener),
                Err(error) => error,
            };
            // Not even at the start.
            let again = error.kind() != io::ErrorKind::PermissionDenied;
            if trouble.replace(error.kind()) != Some(error.kind()) {
                let then = if again { "trying again" } else { "there is no page for approvals until the next start" };
                self.desk.tell(true, format!("web_approval_listen {listen} cannot be had ({error}); {then}")).await;
            }
            if !again {
                return None;
            }
            tokio::time::sleep(AGAIN).await;
            while !matches!(listen, WebListen::Address(address) if address.port() >= 1024) {
                if Door::is_free(listen) {
                    self.desk.want_restart().await;
                }
                tokio::time::sleep(AGAIN).await;
            }
            door = Door::open_once(listen);
        }
    }

    async fn listen(self: Arc<Self>, door: io::Result<Door>) {
        let tls = match self.web.tls.as_ref().map(TlsFiles::server).transpose() {
            Ok(config) => config.map(|config| TlsAcceptor::from(Arc::new(config))),
            Err(why) => return self.desk.tell(true, format!("web_approval_tls_cert cannot be used: {why:?}")).await,
        };
        let Some(listener) = self.enter(door).await else { return };
        let (url, path) = (&self.web.url, &self.path);
        let at = match (&self.web.listen, &tls) {
            (WebListen::Unix(_), _) => self.web.listen.to_string(),
            (address, None) => format!("http://{address}{path}/"),
            (address, Some(_)) => format!("https://{address}{path}/"),
        };
        self.desk.tell(false, format!("approvals at {url}/, served at {at}")).await;
        let mut guests = Guests::default();
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                // Out of descriptors or memory: those that are open end within their lives.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            guests.make_room();
            let (site, tls, known) = (Arc::clone(&self), tls.clone(), Known::default());
            let shows = Arc::clone(&known);
            let guest = async move {
                // A browser that broke off is nobody's business.
                let served = async {
                    match tls {
                        None => site.serve(stream, shows, from).await,
                        Some(tls) => {
                            if let Ok(Ok(stream)) = tokio::time::timeout(HEAD, tls.accept(stream)).await {
                                site.serve(stream, shows, from).await;
                            }
                        }
                    }
                };
                tokio::time::timeout(LIFE, served).await.ok();
            };
            guests.add(tokio::spawn(guest).abort_handle(), known, from);
        }
    }

    async fn serve(self: Arc<Self>, stream: impl Stream, known: Known, from: Option<IpAddr>) {
        let service = service_fn(|request: Request<Incoming>| {
            let (site, known) = (Arc::clone(&self), Arc::clone(&known));
            async move { Ok::<_, std::convert::Infallible>(site.answer(request, &known, from).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .keep_alive(false)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service);
        drop(connection.await);
    }

    async fn answer(self: &Arc<Self>, request: Request<Incoming>, known: &AtomicBool, from: Option<IpAddr>) -> Answer {
        known.store(self.session_of(&request).is_some(), Ordering::Relaxed);
        let method = request.method().clone();
        let full = request.uri().path().to_owned();
        let Some(path) = full.strip_prefix(self.path.as_str()) else { return self.nothing_here() };
        match (method, path) {
            (Method::GET | Method::HEAD, "" | "/") => self.show(&request).await,
            (Method::GET | Method::HEAD, "/style.css") => page::style(),
            (Method::GET, _) if path.starts_with("/key/") => self.open(&request, path, known, from).await,
            (Method::POST, "/approve") => self.approve(request).await,
            (Method::GET, _) if self.is_return(path) => self.returned(&request, path),
            (Method::GET | Method::HEAD, _) => self.nothing_here(),
            _ => page::plain(StatusCode::METHOD_NOT_ALLOWED, "This page takes no such request."),
        }
    }

    fn is_return(&self, path: &str) -> bool {
        self.callers.iter().any(|caller| caller.return_paths().any(|known| known == path))
    }

    fn nothing_here(&self) -> Answer {
        self.message(StatusCode::NOT_FOUND, "There is nothing here", "Open the link that condor_submit printed.")
    }

    fn message(&self, status: StatusCode, title: &str, text: &str) -> Answer {
        page::message(status, &self.path, title, text)
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A key that nobody has.
    async fn unknown(&self, from: Option<IpAddr>) -> Answer {
        let (few, tell) = {
            let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
            let (bucket, told) = &mut *unknown;
            let now = Instant::now();
            let few = bucket.take(now);
            let tell = !few && told.is_none_or(|told| now.duration_since(told) > BETWEEN_WARNINGS);
            if tell {
                *told = Some(now);
            }
            (few, tell)
        };
        if tell {
            // Behind a web server's socket it is not seen.
            let last = from.map(|from| format!(" (just now by {from})")).unwrap_or_default();
            let text = format!(
                "the page for approvals is asked for keys that nobody has, many times a second{last}; those who have one \
                 are served all the same"
            );
            self.desk.tell(true, text).await;
        }
        if few { self.refused(&Refusal::Unknown) } else { self.too_many() }
    }

    fn too_many(&self) -> Answer {
        let mut answer =
            self.message(StatusCode::TOO_MANY_REQUESTS, "Too many at once", "Please try again in a few seconds.");
        answer.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("5"));
        answer
    }

    /// `/key/KEY`: a session, and away from the key.
    async fn open(&self, request: &Request<Incoming>, path: &str, known: &AtomicBool, from: Option<IpAddr>) -> Answer {
        // Browsers say what they want a page for; as a picture or in a frame of another page it opens nothing.
        let wanted = request.headers().get("sec-fetch-dest").map(header::HeaderValue::as_bytes);
        if wanted.is_some_and(|wanted| wanted != b"document") {
            return page::plain(StatusCode::FORBIDDEN, "This link opens as a page of its own.");
        }
        let key = path.strip_prefix("/key/").and_then(|key| ApprovalKey::parse(key).ok());
        let Some(key) = key.filter(|key| key_file::is_key(key.expose())) else {
            return self.unknown(from).await;
        };
        let told = {
            // It is never closed.
            let _turn = self.lookups.acquire().await;
            self.desk.ask(Ask::Open { key: key.clone() }).await
        };
        match told.map(|told| (key, told)) {
            Some((key, Told::Request(request))) => {
                if request.items.is_empty() {
                    return self.refused(&Refusal::Unknown);
                }
                known.store(true, Ordering::Relaxed);
                let id = self.sessions().begin(key, request, Instant::now());
                let mut answer = self.home();
                let (name, path) = (&self.cookie, &self.path);
                let secure = if self.web.url.starts_with("https://") { "; Secure" } else { "" };
                let cookie = format!("{name}={id}; Path={path}/; HttpOnly; SameSite=Lax; Max-Age=3600{secure}");
                if let Ok(value) = header::HeaderValue::from_str(&cookie) {
                    answer.headers_mut().insert(header::SET_COOKIE, value);
                }
                answer
            }
            Some((_, Told::Refused(Refusal::Unknown))) => self.unknown(from).await,
            Some((_, Told::Refused(refusal))) => self.refused(&refusal),
            _ => self.message(
                StatusCode::SERVICE_UNAVAILABLE,
                "Not now",
                "The credential monitor does not answer. Please try again in a minute.",
            ),
        }
    }

    fn refused(&self, refusal: &Refusal) -> Answer {
        let advice = match refusal {
            Refusal::Unknown | Refusal::Used(_) => {
                "A link serves once, and for 12 hours. Submit your job again: condor_submit prints a new link if one is \
                 needed."
            }
            Refusal::NotStored(_) => "Please try again later, or tell the administrators of this host.",
            Refusal::Unfit(_) | Refusal::NotOurs(_) | Refusal::Differs(..) => {
                "You can do nothing about it: please tell the administrators of this host (the log of the credential \
                 monitor and `evercred check` say more)."
            }
        };
        let status = if *refusal == Refusal::Unknown { StatusCode::NOT_FOUND } else { StatusCode::CONFLICT };
        self.message(status, &refusal.to_string(), advice)
    }

    fn home(&self) -> Answer {
        page::redirect(&format!("{}/", self.path))
    }

    fn session_of(&self, request: &Request<Incoming>) -> Option<String> {
        let cookies = request.headers().get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let ours = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let id = ours.filter(|(name, _)| *name == self.cookie).map(|(_, id)| id.to_owned()).next()?;
        self.sessions().find(&id, Instant::now()).map(|_| id)
    }

    fn no_session(&self) -> Answer {
        self.message(
            StatusCode::OK,
            "Approvals for HTCondor jobs",
            "This page opens by the link that condor_submit prints when a job needs an approval. If you came from there \
             and see this, the visit has timed out, or your browser does not keep cookies: open the link again.",
        )
    }

    /// The page.
    async fn show(&self, request: &Request<Incoming>) -> Answer {
        let Some(id) = self.session_of(request) else { return self.no_session() };
        let stored: Option<(String, Vec<String>)> = self.sessions().find(&id, Instant::now()).map(|session| {
            let stored = session.entries.iter().filter(|entry| matches!(entry.stage, Stage::Stored(_)));
            (session.user.clone(), stored.map(|entry| entry.item.base.clone()).collect())
        });
        if let Some((user, bases)) = stored.filter(|(_, bases)| !bases.is_empty())
            && let Some(Told::Standing(standing)) = self.desk.ask(Ask::Look { user, bases: bases.clone() }).await
            && let Some(session) = self.sessions().find(&id, Instant::now())
        {
            for (base, now) in bases.iter().zip(standing) {
                if let Some(entry) = session.entries.iter_mut().find(|entry| entry.item.base == *base) {
                    entry.stage = Stage::Stored(now);
                }
            }
        }
        let mut sessions = self.sessions();
        match sessions.find(&id, Instant::now()) {
            Some(session) => Page { path: &self.path, host: &self.host, callers: &self.callers, session }.answer(),
            None => self.no_session(),
        }
    }

    /// `/approve`: off to the issuer.
    async fn approve(self: &Arc<Self>, request: Request<Incoming>) -> Answer {
        // Browsers say where a form stands; those that do not are held by cookie and token.
        let site = request.headers().get("sec-fetch-site").map(header::HeaderValue::as_bytes);
        if site.is_some_and(|site| site != b"same-origin") {
            return page::plain(StatusCode::FORBIDDEN, "This form stands on another site.");
        }
        let Some(id) = self.session_of(&request) else { return self.no_session() };
        if !self.sessions().find(&id, Instant::now()).is_some_and(|session| session.tries.take(Instant::now())) {
            return self.too_many();
        }
        let body = match tokio::time::timeout(FORM, Limited::new(request.into_body(), MAX_FORM).collect()).await {
            Ok(Ok(body)) => body,
            Ok(Err(_)) => return page::plain(StatusCode::PAYLOAD_TOO_LARGE, "The form is too large."),
            Err(_) => return page::plain(StatusCode::REQUEST_TIMEOUT, "The form came too slowly."),
        };
        let form: Vec<(String, String)> = url::form_urlencoded::parse(&body.to_bytes()).into_owned().collect();
        let field = |name: &str| form.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
        let found = self.sessions().find(&id, Instant::now()).and_then(|session| {
            let own = session::same(&session.token, field("token"));
            let entry = session.entry(field("credential"))?;
            (own && entry.stage.may_begin()).then(|| (entry.item.clone(), entry.provider))
        });
        let Some((item, provider)) = found else {
            return page::plain(StatusCode::FORBIDDEN, "This form is not of this visit: go back and reload the page.");
        };
        let Some(caller) = self.callers.get(provider) else { return self.home() };
        let away = flow::begin(caller, &item).await;
        let mut sessions = self.sessions();
        let Some(entry) = sessions.find(&id, Instant::now()).and_then(|session| session.entry(&item.base)) else {
            drop(sessions);
            return self.no_session();
        };
        match away {
            Ok((url, away)) => {
                entry.stage = Stage::Away(away);
                drop(sessions);
                page::redirect(&url)
            }
            Err(why) => {
                entry.stage = Stage::Failed(why);
                drop(sessions);
                self.home()
            }
        }
    }

    /// The issuer sends the browser back.
    fn returned(self: &Arc<Self>, request: &Request<Incoming>, path: &str) -> Answer {
        let Some(id) = self.session_of(request) else { return self.no_session() };
        let query = request.uri().query().unwrap_or_default();
        let query: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let mut sessions = self.sessions();
        let Some(session) = sessions.find(&id, Instant::now()) else {
            drop(sessions);
            return self.no_session();
        };
        let Session { key, user, entries, .. } = session;
        let Some((entry, away)) = flow::match_state(entries, &query) else {
            drop(sessions);
            let text = "Nothing was asked of the issuer that this would answer (perhaps it was answered already). Go back \
                        to the page and see how things stand.";
            return self.message(StatusCode::BAD_REQUEST, "This answer was not expected", text);
        };
        let Some(caller) = self.callers.get(entry.provider) else {
            drop(sessions);
            return self.home();
        };
        match flow::judge(caller, &entry.item, &away, path, &query) {
            Err(why) => entry.stage = Stage::Failed(why),
            Ok(code) => {
                entry.stage = Stage::Redeeming;
                let (site, key, user, item) = (Arc::clone(self), key.clone(), user.clone(), entry.item.clone());
                let provider = entry.provider;
                tokio::spawn(async move { site.redeem(id, key, user, item, provider, code, away).await });
            }
        }
        drop(sessions);
        self.home()
    }

    /// Code into refresh token, and that to the keeper; goes on though the browser leaves.
    #[expect(clippy::too_many_arguments, reason = "what one task takes along")]
    async fn redeem(
        self: Arc<Self>,
        session: String,
        key: ApprovalKey,
        user: String,
        item: Item,
        provider: usize,
        code: flow::Code,
        away: flow::Away,
    ) {
        let stage = match self.callers.get(provider) {
            None => Stage::Failed("the configuration has changed".into()),
            Some(caller) => match self.redeemed(caller, &user, &item, &code, &away.verifier).await {
                Err(why) => Stage::Failed(why),
                Ok(refresh_token) => {
                    match self.desk.ask(Ask::Store { key, base: item.base.clone(), refresh_token }).await {
                        Some(Told::Stored) => Stage::Stored(None),
                        Some(Told::Refused(refusal)) => Stage::Failed(refusal.to_string()),
                        _ => Stage::Failed("the credential monitor did not answer".into()),
                    }
                }
            },
        };
        if let Some(entry) = self.sessions().find(&session, Instant::now()).and_then(|found| found.entry(&item.base)) {
            entry.stage = stage;
        }
    }

    /// The refresh token, if it is one of whom it should be; another's is given back.
    async fn redeemed(
        &self,
        caller: &Caller,
        user: &str,
        item: &Item,
        code: &flow::Code,
        verifier: &str,
    ) -> Result<RefreshToken, String> {
        let base = &item.base;
        let (refresh_token, id_token) = match caller.redeem(code, verifier, &item.return_url).await {
            Ok(redeemed) => redeemed,
            Err(error) => {
                self.desk.tell(true, format!("approval of {user}/{base}: {}: {}", error.kind, error.detail)).await;
                return Err(error.detail);
            }
        };
        let Some(claim) = flow::user_claim(caller.provider()) else { return Ok(refresh_token) };
        let Err(why) = oauth2::approver(id_token.as_ref(), claim, caller.provider(), user) else {
            return Ok(refresh_token);
        };
        let back = match caller.revoke(&refresh_token).await {
            Ok(()) => "given back".to_owned(),
            Err(error) => format!("not given back: {}: {}", error.kind, error.detail),
        };
        self.desk.tell(true, format!("approval of {user}/{base}: {why}; the refresh token was {back}")).await;
        Err(why)
    }
}

impl Session {
    fn entry(&mut self, base: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.item.base == base)
    }
}
