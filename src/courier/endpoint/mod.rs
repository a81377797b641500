//! The endpoint on `metrics_listen`: `/metrics`, `/healthz`, `/readyz`, and the status page where it is configured.
//!
//! It runs on a thread of its own, so that no reader delays an exchange. A connection carries one request and lives at
//! most `LIFE`; above `CONNECTIONS` the newest takes the place of the oldest that has said nothing in its `GRACE`, so
//! that readers who hang keep nobody out and a crowd is served one after the other.
//! What is told comes from the keeper, asked at most once a second however many read; a keeper that does not answer
//! leaves the last figures in place, with their age. If the address cannot be had, it is tried again: renewals go on.

mod metrics;

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
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::AbortHandle,
};

pub use self::metrics::documented;
use crate::core::figures::Figures;

/// Connections at one time.
const CONNECTIONS: usize = 512;
/// From accepting a connection to the end of its answer.
const LIFE: Duration = Duration::from_secs(10);
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
    /// To have this said in the log: the address cannot be had, and why.
    Trouble(SocketAddr, io::ErrorKind),
    /// It listens (again).
    Listening(SocketAddr),
}

/// Where the keeper's answers arrive.
#[derive(Debug)]
pub struct Board {
    /// The newest figures, and when they came.
    pub figures: watch::Sender<Option<(Instant, Arc<Figures>)>>,
}

/// Start the endpoint's thread. What it wants comes out of the receiver.
///
/// # Errors
/// The system refuses a thread.
pub fn start(listen: SocketAddr) -> io::Result<(Board, mpsc::Receiver<Want>)> {
    let (wants, wanted) = mpsc::channel(16);
    let (figures, seen) = watch::channel(None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let endpoint = Arc::new(Endpoint {
        figures: seen,
        wants,
        asked: Mutex::default(),
        counts: Mutex::default(),
        rendered: Mutex::default(),
    });
    std::thread::Builder::new()
        .name("endpoint".into())
        .spawn(move || runtime.block_on(endpoint.listen(listen)))
        .map(|_| (Board { figures }, wanted))
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
    figures: watch::Receiver<Option<(Instant, Arc<Figures>)>>,
    wants: mpsc::Sender<Want>,
    asked: Mutex<Option<Instant>>,
    counts: Mutex<Counts>,
    /// The last texts: Prometheus', `OpenMetrics`.
    rendered: Mutex<[Option<Rendered>; 2]>,
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
            match TcpListener::bind(address).await {
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
            "/metrics" => "/metrics",
            "/healthz" => "/healthz",
            "/readyz" => "/readyz",
            _ => "other",
        };
        let response = if request.method() != Method::GET && request.method() != Method::HEAD {
            plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n")
        } else {
            match path {
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
        let figures = self.fresh().await;
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
        match self.fresh().await {
            Some((at, _)) if at.elapsed() < FRESH + PATIENCE => plain(StatusCode::OK, "ok\n"),
            _ => plain(StatusCode::SERVICE_UNAVAILABLE, "the keeper does not answer\n"),
        }
    }

    /// And all credentials are known.
    async fn readiness(&self) -> Response<Full<Bytes>> {
        match self.fresh().await {
            Some((at, figures)) if at.elapsed() < FRESH + PATIENCE => {
                if figures.scanned {
                    plain(StatusCode::OK, "ready\n")
                } else {
                    plain(StatusCode::SERVICE_UNAVAILABLE, "the credential directory has not been looked through yet\n")
                }
            }
            _ => plain(StatusCode::SERVICE_UNAVAILABLE, "the keeper does not answer\n"),
        }
    }

    /// Figures of this second, if the keeper answers in time; else the last ones.
    async fn fresh(&self) -> Option<(Instant, Arc<Figures>)> {
        let mut seen = self.figures.clone();
        let young = |told: &Option<(Instant, Arc<Figures>)>| told.as_ref().is_some_and(|(at, _)| at.elapsed() < FRESH);
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
                self.wants.try_send(Want::Figures).ok();
            }
            // Nobody answers: what is there is told, with its age.
            tokio::time::timeout(PATIENCE, seen.wait_for(young)).await.ok();
        }
        self.figures.borrow().clone()
    }
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
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    response
}
