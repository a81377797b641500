//! The endpoint on `metrics_listen`: `/metrics`, `/healthz`, `/readyz`, and the status page where it is configured.
//!
//! It runs on a thread of its own, so that no reader delays an exchange. A connection carries one request and lives at
//! most `LIFE`; above `CONNECTIONS` the newest takes the place of the oldest that has said nothing in its `GRACE`, so
//! that readers who hang keep nobody out and a crowd is served one after the other.
//! What is told comes from the keeper, asked at most once a second however many read; a keeper that does not answer
//! leaves the last figures in place, with their age. If the address cannot be had, it is tried again: renewals go on.

mod metrics;
mod page;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{mpsc, watch},
    task::AbortHandle,
};

pub use self::metrics::documented;
use crate::core::{figures::Figures, snapshot::Page};

/// Connections at one time.
const CONNECTIONS: usize = 512;
/// From accepting a connection to the end of its answer.
const LIFE: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// Nobody is closed for others before it.
const GRACE: Duration = Duration::from_secs(2);
/// For the head of a request.
const HEAD: Duration = Duration::from_secs(5);
/// Figures younger than this are told as they are.
const FRESH: Duration = Duration::from_secs(1);
/// How long a reader waits for younger ones.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Between two tries to listen.
const AGAIN: Duration = Duration::from_secs(10);
/// The first tries come quicker.
const QUICK: Duration = Duration::from_millis(200);
const QUICK_TRIES: u32 = 10;

/// What the endpoint wants of the keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Its figures.
    Figures,
    /// What the status page shows.
    Page,
    /// To have this said in the log: the address cannot be had, and why.
    Trouble(SocketAddr, io::ErrorKind),
    /// It listens (again).
    Listening(SocketAddr),
}

/// Where the keeper's answers arrive.
#[derive(Debug)]
pub struct Board {
    /// The newest figures, and when they came.
    pub figures: watch::Sender<Told<Figures>>,
    /// What the status page shows, likewise.
    pub page: watch::Sender<Told<Page>>,
}

/// What the keeper told, and when.
pub type Told<T> = Option<(Instant, Arc<T>)>;

/// Start the endpoint's thread, with the status page or without. What it wants comes out of the receiver.
///
/// # Errors
/// The system refuses a thread.
pub fn start(listen: SocketAddr, page: bool) -> io::Result<(Board, mpsc::Receiver<Want>)> {
    let (wants, wanted) = mpsc::channel(16);
    let (figures, seen_figures) = watch::channel(None);
    let (pages, seen_page) = watch::channel(None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let endpoint = Arc::new(Endpoint {
        figures: Source::new(seen_figures, Want::Figures),
        page: page.then(|| Source::new(seen_page, Want::Page)),
        wants,
        counts: Mutex::default(),
        rendered: Mutex::default(),
    });
    std::thread::Builder::new()
        .name("endpoint".into())
        .spawn(move || runtime.block_on(endpoint.listen(listen)))
        .map(|_| (Board { figures, page: pages }, wanted))
}

/// What the endpoint counts of itself.
#[derive(Debug, Default, Clone)]
struct Counts {
    /// By path (of ours, or `other`) and status.
    requests: BTreeMap<(&'static str, u16), u64>,
    /// Connections by how they ended.
    connections: BTreeMap<&'static str, u64>,
}

struct Endpoint {
    figures: Source<Figures>,
    /// None: there is no status page.
    page: Option<Source<Page>>,
    wants: mpsc::Sender<Want>,
    counts: Mutex<Counts>,
    /// The last texts: Prometheus', `OpenMetrics`, the page.
    rendered: Mutex<[Option<Rendered>; 3]>,
}

/// When a text was made, its type, and it.
type Rendered = (Instant, &'static str, Bytes);

/// An open connection.
struct Open {
    since: Instant,
    /// Its request has been read: it is being answered.
    heard: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Endpoint {
    async fn listen(self: Arc<Self>, address: SocketAddr) {
        let (mut trouble, mut tries) = (None, 0);
        let listener = loop {
            match open(address) {
                Ok(listener) => break listener,
                Err(error) => {
                    tries += 1;
                    // The courier before us may still hold it for a moment.
                    if tries <= QUICK_TRIES {
                        tokio::time::sleep(QUICK).await;
                        continue;
                    }
                    if trouble.replace(error.kind()) != Some(error.kind()) {
                        self.wants.send(Want::Trouble(address, error.kind())).await.ok();
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        };
        self.wants.send(Want::Listening(listener.local_addr().unwrap_or(address))).await.ok();
        let mut open: Vec<Open> = Vec::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors or memory: those that are open end within their lives.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            self.make_room(&mut open).await;
            let (endpoint, heard) = (Arc::clone(&self), Arc::new(AtomicBool::new(false)));
            let task = tokio::spawn(endpoint.serve(stream, Arc::clone(&heard))).abort_handle();
            open.push(Open { since: Instant::now(), heard, task });
        }
    }

    /// Wait for a free place, and take it from the oldest connection that has had its time and not asked for anything.
    async fn make_room(&self, open: &mut Vec<Open>) {
        while open.len() >= CONNECTIONS {
            open.retain(|one| !one.task.is_finished());
            if open.len() < CONNECTIONS {
                return;
            }
            let idle = |one: &Open| !one.heard.load(Relaxed) && one.since.elapsed() >= GRACE;
            if let Some(place) = open.iter().position(idle) {
                open.remove(place).task.abort();
                self.ended("closed-for-others");
            } else {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, heard: Arc<AtomicBool>) {
        let service = service_fn(|request: Request<Incoming>| {
            heard.store(true, Relaxed);
            let endpoint = Arc::clone(&self);
            async move { Ok::<_, std::convert::Infallible>(endpoint.answer(request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .keep_alive(false)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service);
        self.ended(match tokio::time::timeout(LIFE, connection).await {
            Ok(Ok(())) => "served",
            Ok(Err(error)) if error.is_timeout() => "timed-out",
            Ok(Err(_)) => "broken",
            Err(_) => "timed-out",
        });
    }

    fn ended(&self, how: &'static str) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.connections.entry(how).or_default() += 1;
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = match request.uri().path() {
            "/" if self.page.is_some() => "/",
            "/page.css" if self.page.is_some() => "/page.css",
            "/metrics" => "/metrics",
            "/healthz" => "/healthz",
            "/readyz" => "/readyz",
            _ => "other",
        };
        let response = if request.method() != Method::GET && request.method() != Method::HEAD {
            plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n")
        } else {
            match path {
                "/" => self.status_page().await,
                "/page.css" => typed(StatusCode::OK, "text/css; charset=utf-8", page::STYLE.into()),
                "/metrics" => self.metrics(&request).await,
                "/healthz" => self.health().await,
                "/readyz" => self.readiness().await,
                _ => plain(StatusCode::NOT_FOUND, "here are /metrics, /healthz and /readyz\n"),
            }
        };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.requests.entry((path, response.status().as_u16())).or_default() += 1;
        response
    }

    async fn metrics(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let figures = self.figures.fresh(&self.wants).await;
        let accepts = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let open_metrics = accepts.contains("application/openmetrics-text");
        let mut rendered = self.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = rendered.get_mut(usize::from(open_metrics)) else {
            return plain(StatusCode::INTERNAL_SERVER_ERROR, "");
        };
        // A crowd gets one text.
        if let Some((at, kind, text)) = place
            && at.elapsed() < FRESH
            && figures.as_ref().is_none_or(|(came, _)| came <= at)
        {
            return typed(StatusCode::OK, kind, text.clone());
        }
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match metrics::render(figures.as_ref().map(|(at, figures)| (at.elapsed(), &**figures)), &counts, open_metrics) {
            Ok((kind, text)) => {
                let (_, kind, text) = place.insert((Instant::now(), kind, text.into()));
                typed(StatusCode::OK, kind, text.clone())
            }
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the figures cannot be written\n"),
        }
    }

    /// Both processes are alive and talk with each other.
    async fn health(&self) -> Response<Full<Bytes>> {
        match self.figures.fresh(&self.wants).await {
            Some((at, _)) if at.elapsed() < FRESH + PATIENCE => plain(StatusCode::OK, "ok\n"),
            _ => plain(StatusCode::SERVICE_UNAVAILABLE, "the keeper does not answer\n"),
        }
    }

    /// And all credentials are known.
    async fn readiness(&self) -> Response<Full<Bytes>> {
        match self.figures.fresh(&self.wants).await {
            Some((at, figures)) if at.elapsed() < FRESH + PATIENCE => {
                if figures.scanned {
                    plain(StatusCode::OK, "ready\n")
                } else {
                    plain(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "the credential directory has not been looked through since the start or the last reload\n",
                    )
                }
            }
            _ => plain(StatusCode::SERVICE_UNAVAILABLE, "the keeper does not answer\n"),
        }
    }

    async fn status_page(&self) -> Response<Full<Bytes>> {
        let Some(source) = &self.page else { return plain(StatusCode::NOT_FOUND, "") };
        let (told, figures) = tokio::join!(source.fresh(&self.wants), self.figures.fresh(&self.wants));
        let (Some((came, told)), Some((_, figures))) = (told, figures) else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "the keeper does not answer\n");
        };
        let mut rendered = self.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        let [_, _, place] = &mut *rendered;
        let text = match place {
            Some((at, _, text)) if came <= *at => text.clone(),
            place => place.insert((Instant::now(), "", page::render(&told, &figures).into())).2.clone(),
        };
        drop(rendered);
        typed(StatusCode::OK, "text/html; charset=utf-8", text)
    }
}

/// Something that the keeper tells when it is asked.
struct Source<T> {
    seen: watch::Receiver<Told<T>>,
    want: Want,
    asked: Mutex<Option<Instant>>,
}

impl<T> Source<T> {
    fn new(seen: watch::Receiver<Told<T>>, want: Want) -> Self {
        Self { seen, want, asked: Mutex::default() }
    }

    /// What is of this second, if the keeper answers in time; else the last it told.
    async fn fresh(&self, wants: &mpsc::Sender<Want>) -> Told<T> {
        let mut seen = self.seen.clone();
        let young = |told: &Told<T>| told.as_ref().is_some_and(|(at, _)| at.elapsed() < FRESH);
        if !young(&seen.borrow_and_update()) {
            let ask = {
                let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
                let due = asked.is_none_or(|at| at.elapsed() >= FRESH);
                if due {
                    *asked = Some(Instant::now());
                }
                due
            };
            if ask {
                wants.try_send(self.want).ok();
            }
            // Nobody answers: what is there is told, with its age.
            tokio::time::timeout(PATIENCE, seen.wait_for(young)).await.ok();
        }
        self.seen.borrow().clone()
    }
}

/// A crowd waits in the kernel until it is accepted; with a shorter queue its packets would be dropped and sent again.
fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", text.into())
}

fn typed(status: StatusCode, kind: &'static str, text: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    // No script, no frame, nothing from elsewhere; the page's own style sheet alone.
    let policy = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    headers.insert(header::CONTENT_SECURITY_POLICY, header::HeaderValue::from_static(policy));
    headers.insert(header::REFERRER_POLICY, header::HeaderValue::from_static("no-referrer"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}
