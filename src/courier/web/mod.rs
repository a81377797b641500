//! The page where users approve in their browser (`web_approval_listen`): HTCondor's web page without a web server of
//! its own. credd writes a request file and prints `URL/key/KEY`; whoever has the key may approve for that user.
//!
//! It listens on loopback, behind the host's own web server, which has TLS. A connection carries one request and lives
//! at most [`LIFE`]; above [`CONNECTIONS`] the oldest is closed. A key opens a session (a cookie that scripts and other
//! sites cannot use) and leaves the address bar at once; every answer forbids scripts, frames and referrers; every form
//! carries the session's token. Redirects lead to our own paths and to the configured issuers' pages, nowhere else.
//! Sessions live in memory: after a restart the link from `condor_submit` opens another one.
//!
//! PKCE (RFC 7636, S256), `state`, and `iss` (RFC 9207) where the issuer tells it; each provider has a return path of
//! its own besides. The code is redeemed here, the refresh token goes to the keeper, the access token to nobody: the
//! first `.use` is made like every other one.

mod flow;
mod keeper;
mod page;
mod session;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::AbortHandle,
};

pub use self::keeper::Desk;
use self::{
    page::Page,
    session::{Entry, Session, Sessions, Stage},
};
use super::{frame::FromCourier, http::Caller};
use crate::{
    config::settings::WebApproval,
    core::{
        approval::{Ask, Refusal, Told},
        secret::ApprovalKey,
    },
};

/// Connections at one time.
const CONNECTIONS: usize = 128;
/// From accepting a connection to the end of its answer.
const LIFE: Duration = Duration::from_secs(10);
/// For the head of a request.
const HEAD: Duration = Duration::from_secs(5);
/// The largest form.
const MAX_FORM: usize = 4096;
/// Between two tries to listen; the first ones come quicker, because the courier before us may still hold it.
const AGAIN: Duration = Duration::from_secs(10);
const QUICK: Duration = Duration::from_millis(200);
const QUICK_TRIES: u32 = 10;
/// Keys tried and approvals begun: so many at once, then so many a second, by all browsers together.
const BURST: f64 = 40.0;
const PER_SECOND: f64 = 5.0;
/// The cookie.
const COOKIE: &str = "evercred-approval";

type Answer = Response<Full<Bytes>>;

/// Serve the page until the process ends; what the keeper tells goes to the returned desk.
#[must_use]
pub fn start(web: WebApproval, callers: Arc<[Caller]>, out: mpsc::Sender<FromCourier>) -> Arc<Desk> {
    let desk = Arc::new(Desk::new(out));
    // Taken from its parts and with the rules of `web_approval_url`, so it is a URL.
    let path = url::Url::parse(&web.url).map(|url| url.path().trim_end_matches('/').to_owned()).unwrap_or_default();
    let site = Arc::new(Site {
        secure: web.url.starts_with("https://"),
        host: nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default(),
        path,
        web,
        callers,
        desk: Arc::clone(&desk),
        sessions: Mutex::default(),
        bucket: Mutex::new((BURST, Instant::now())),
    });
    tokio::spawn(site.listen());
    desk
}

struct Site {
    web: WebApproval,
    /// Path of the page's URL, without a slash at its end.
    path: String,
    secure: bool,
    host: String,
    callers: Arc<[Caller]>,
    desk: Arc<Desk>,
    sessions: Mutex<Sessions>,
    bucket: Mutex<(f64, Instant)>,
}

impl Site {
    async fn listen(self: Arc<Self>) {
        let (address, mut trouble, mut tries) = (self.web.listen, None, 0);
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(error) => {
                    tries += 1;
                    if tries > QUICK_TRIES && trouble.replace(error.kind()) != Some(error.kind()) {
                        let why = error.kind();
                        self.desk
                            .tell(true, format!("web_approval_listen {address} cannot be had ({why}); trying again"))
                            .await;
                    }
                    tokio::time::sleep(if tries > QUICK_TRIES { AGAIN } else { QUICK }).await;
                }
            }
        };
        let url = &self.web.url;
        self.desk.tell(false, format!("approvals at {url}/, served at http://{address}{}/", self.path)).await;
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors or memory: those that are open end within their lives.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            if open.len() >= CONNECTIONS {
                open.retain(|one| !one.is_finished());
            }
            if open.len() >= CONNECTIONS
                && let Some(oldest) = open.pop_front()
            {
                oldest.abort();
            }
            let site = Arc::clone(&self);
            open.push_back(tokio::spawn(site.serve(stream)).abort_handle());
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let service = service_fn(|request: Request<Incoming>| {
            let site = Arc::clone(&self);
            async move { Ok::<_, std::convert::Infallible>(site.answer(request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .keep_alive(false)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service);
        // A browser that broke off is nobody's business.
        drop(tokio::time::timeout(LIFE, connection).await);
    }

    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Answer {
        let method = request.method().clone();
        let full = request.uri().path().to_owned();
        let Some(path) = full.strip_prefix(self.path.as_str()) else { return self.nothing_here() };
        match (method, path) {
            (Method::GET | Method::HEAD, "" | "/") => self.show(&request).await,
            (Method::GET | Method::HEAD, "/style.css") => page::style(),
            (Method::GET, _) if path.starts_with("/key/") => self.open(path.trim_start_matches("/key/")).await,
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

    /// Whether one more try is within the limits; takes it.
    fn within_limits(&self) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let filled = (bucket.0 + now.duration_since(bucket.1).as_secs_f64() * PER_SECOND).min(BURST);
        *bucket = if filled >= 1.0 { (filled - 1.0, now) } else { (filled, now) };
        filled >= 1.0
    }

    fn too_many(&self) -> Answer {
        let mut answer =
            self.message(StatusCode::TOO_MANY_REQUESTS, "Too many at once", "Please try again in a few seconds.");
        answer.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("5"));
        answer
    }

    /// `/key/KEY`: a session, and away from the key.
    async fn open(&self, key: &str) -> Answer {
        if !self.within_limits() {
            return self.too_many();
        }
        let told = match ApprovalKey::parse(key) {
            Ok(key) if crate::core::key_file::is_key(key.expose()) => {
                self.desk.ask(Ask::Open { key: key.clone() }).await.map(|told| (key, told))
            }
            _ => return self.refused(&Refusal::Unknown),
        };
        match told {
            Some((key, Told::Request(request))) => {
                if request.items.is_empty() {
                    return self.refused(&Refusal::Unknown);
                }
                let id = self.sessions().begin(key, request, Instant::now());
                let mut answer = self.home();
                let secure = if self.secure { "; Secure" } else { "" };
                let cookie =
                    format!("{COOKIE}={id}; Path={}/; HttpOnly; SameSite=Lax; Max-Age=3600{secure}", self.path);
                if let Ok(value) = header::HeaderValue::from_str(&cookie) {
                    answer.headers_mut().insert(header::SET_COOKIE, value);
                }
                answer
            }
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
        let id = ours.filter(|(name, _)| *name == COOKIE).map(|(_, id)| id.to_owned()).next()?;
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
        if !self.within_limits() {
            return self.too_many();
        }
        let Ok(body) = Limited::new(request.into_body(), MAX_FORM).collect().await else {
            return page::plain(StatusCode::PAYLOAD_TOO_LARGE, "The form is too large.");
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
        item: crate::core::key_file::Item,
        provider: usize,
        code: flow::Code,
        away: flow::Away,
    ) {
        let stage = match self.callers.get(provider) {
            None => Stage::Failed("the configuration has changed".into()),
            Some(caller) => match caller.redeem(&code, &away.verifier, &item.return_url).await {
                Err(error) => {
                    let text = format!("approval of {user}/{}: {}: {}", item.base, error.kind, error.detail);
                    self.desk.tell(true, text).await;
                    Stage::Failed(error.detail)
                }
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
}

impl Session {
    fn entry(&mut self, base: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.item.base == base)
    }
}
