//! How tests, benches and the demo steer and watch the issuer: [`Control`] in the same process, `/control/…` (JSON)
//! from other processes.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Shared,
    book::{Family, Fault, Record, Standing},
    mint::MytokenWish,
};

/// How the issuer is out of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outage {
    /// It is in order.
    Off,
    /// Everything answers 503.
    Unavailable,
    /// Connections are closed without an answer.
    Closed,
}

/// Counters since the start; `/control` is not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Requests.
    pub requests: u64,
    /// Connections accepted, those of `/control` too.
    pub connections: u64,
    /// The most of them open at one time.
    pub peak_open: u64,
    /// Requests being answered now.
    pub in_flight: u64,
    /// The most requests at one time.
    pub peak_in_flight: u64,
    /// Good answers with an access token.
    pub exchanges: u64,
    /// Answers that refused a refresh token.
    pub refused: u64,
    /// Refresh tokens rotated.
    pub rotations: u64,
    /// Uses of refresh tokens that were superseded before.
    pub reuse: u64,
}

/// What a new OAuth2 refresh token is to be like.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct TokenWish {
    /// Whose.
    pub user: String,
    /// The only client that may use it; none: any.
    pub client_id: Option<String>,
    /// Approved scopes, blank-separated.
    pub scope: String,
    /// `aud` of the access tokens, unless asked for otherwise.
    pub audience: Vec<String>,
}

/// What can be changed while it runs, and the counters.
pub(super) struct Knobs {
    latency_us: AtomicU64,
    outage: AtomicU8,
    requests: AtomicU64,
    connections: AtomicU64,
    open: AtomicU64,
    peak_open: AtomicU64,
    in_flight: AtomicU64,
    peak: AtomicU64,
    clients: Mutex<HashMap<String, Option<String>>>,
}

/// One of those that are counted now, until it is dropped.
pub(super) struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn new(all: &AtomicU64, now: &'a AtomicU64, peak: &AtomicU64) -> Self {
        all.fetch_add(1, Relaxed);
        peak.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
        Self(now)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Knobs {
    pub(super) fn new(latency: Duration) -> Self {
        let knobs = Self {
            latency_us: AtomicU64::new(0),
            outage: AtomicU8::new(0),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            open: AtomicU64::new(0),
            peak_open: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            clients: Mutex::default(),
        };
        knobs.set_latency(latency);
        knobs
    }

    fn set_latency(&self, latency: Duration) {
        self.latency_us.store(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(super) fn latency(&self) -> Duration {
        Duration::from_micros(self.latency_us.load(Relaxed))
    }

    pub(super) fn outage(&self) -> Outage {
        match self.outage.load(Relaxed) {
            0 => Outage::Off,
            1 => Outage::Unavailable,
            _ => Outage::Closed,
        }
    }

    /// Count a request until the answer is dropped.
    pub(super) fn fly(&self) -> Counted<'_> {
        Counted::new(&self.requests, &self.in_flight, &self.peak)
    }

    /// Count a connection until it is closed.
    pub(super) fn accept(&self) -> Counted<'_> {
        Counted::new(&self.connections, &self.open, &self.peak_open)
    }

    /// Whether a client may come; until one is registered, all may.
    pub(super) fn knows(&self, client: Option<&(String, Option<String>)>) -> bool {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.is_empty() || client.is_some_and(|(id, secret)| clients.get(id).is_some_and(|known| known == secret))
    }
}

/// The handle in the same process.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

impl Control {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Delay every answer.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.knobs.set_latency(latency);
    }

    /// Begin or end an outage.
    pub fn set_outage(&self, outage: Outage) {
        let number = match outage {
            Outage::Off => 0,
            Outage::Unavailable => 1,
            Outage::Closed => 2,
        };
        self.shared.knobs.outage.store(number, Relaxed);
    }

    /// Let only registered clients in from now on.
    pub fn register_client(&self, id: &str, secret: Option<&str>) {
        let mut clients = self.shared.knobs.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.insert(id.to_owned(), secret.map(str::to_owned));
    }

    /// Make a refresh token, as an approval would.
    #[must_use]
    pub fn refresh_token(&self, wish: &TokenWish) -> String {
        let family = Family {
            record: Record { user: wish.user.clone(), ..Record::default() },
            client: wish.client_id.clone(),
            scopes: wish.scope.split_ascii_whitespace().map(str::to_owned).collect(),
            audience: wish.audience.clone(),
            mytoken: None,
        };
        self.shared.book().open(family).1
    }

    /// Make a mytoken, as an approval would.
    ///
    /// # Errors
    /// Signing failed.
    pub fn mytoken(&self, wish: MytokenWish) -> io::Result<String> {
        super::mytoken::create(&self.shared, wish).map(|(_, jwt)| jwt)
    }

    /// How a refresh token or mytoken stands, without using it.
    #[must_use]
    pub fn standing(&self, token: &str) -> Standing {
        self.shared.book().standing(token)
    }

    /// The refresh tokens of a user that the next exchange takes; what is revoked is none.
    #[must_use]
    pub fn current(&self, user: &str) -> Vec<String> {
        self.shared.book().current(user)
    }

    /// Approve every open consent as it was asked for, as the button of its page does.
    pub fn approve(&self) {
        super::mytoken::approve_all(&self.shared);
    }

    /// Revoke a refresh token or mytoken with all its rotations; false if it is unknown.
    #[must_use]
    pub fn revoke(&self, token: &str) -> bool {
        self.shared.book().family_of(token).map(|family| family.record.revoked = true).is_some()
    }

    /// Revoke everything of a user; the number of families.
    #[must_use]
    pub fn revoke_user(&self, user: &str) -> usize {
        let mut book = self.shared.book();
        let of_user = book.families.iter_mut().filter(|family| family.record.user == user);
        of_user.map(|family| family.record.revoked = true).count()
    }

    /// Misbehave towards a user (`None`: everybody), or stop it.
    pub fn set_fault(&self, user: Option<&str>, fault: Option<Fault>) {
        let mut book = self.shared.book();
        match (user, fault) {
            (None, fault) => book.everybody = fault,
            (Some(user), None) => drop(book.faults.remove(user)),
            (Some(user), Some(fault)) => drop(book.faults.insert(user.to_owned(), fault)),
        }
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let knobs = &self.shared.knobs;
        let mut stats = Stats {
            requests: knobs.requests.load(Relaxed),
            connections: knobs.connections.load(Relaxed),
            peak_open: knobs.peak_open.load(Relaxed),
            in_flight: knobs.in_flight.load(Relaxed),
            peak_in_flight: knobs.peak.load(Relaxed),
            ..Stats::default()
        };
        for family in &self.shared.book().families {
            stats.exchanges += family.record.exchanges;
            stats.refused += family.record.refused;
            stats.rotations += family.record.rotations;
            stats.reuse += family.record.reuse;
        }
        stats
    }

    /// The records of a user's refresh tokens (`None`: everybody's).
    #[must_use]
    pub fn records(&self, user: Option<&str>) -> Vec<Record> {
        let book = self.shared.book();
        let all = book.families.iter().map(|family| &family.record);
        all.filter(|record| user.is_none_or(|user| record.user == user)).cloned().collect()
    }
}

#[derive(Deserialize)]
struct Latency {
    ms: u64,
}

#[derive(Deserialize)]
struct Mode {
    mode: Outage,
}

#[derive(Deserialize)]
struct Client {
    id: String,
    secret: Option<String>,
}

#[derive(Deserialize)]
struct Which {
    token: Option<String>,
    user: Option<String>,
}

#[derive(Deserialize)]
struct FaultFor {
    user: Option<String>,
    fault: Option<Fault>,
}

/// One token, or `count` of them for the users `USER0`, `USER1`, …
#[derive(Deserialize)]
struct Many<T> {
    #[serde(flatten)]
    wish: T,
    count: Option<u64>,
}

type Shares = State<Arc<Shared>>;

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/latency", post(latency))
        .route("/outage", post(outage))
        .route("/client", post(client))
        .route("/refresh-token", post(refresh_token))
        .route("/mytoken", post(mytoken))
        .route("/revoke", post(revoke))
        .route("/fault", post(fault))
        .route("/stats", get(stats))
        .route("/records", get(records))
        .route("/codes", get(codes))
}

async fn latency(State(shared): Shares, Json(body): Json<Latency>) -> StatusCode {
    Control::new(shared).set_latency(Duration::from_millis(body.ms));
    StatusCode::NO_CONTENT
}

async fn outage(State(shared): Shares, Json(body): Json<Mode>) -> StatusCode {
    Control::new(shared).set_outage(body.mode);
    StatusCode::NO_CONTENT
}

async fn client(State(shared): Shares, Json(body): Json<Client>) -> StatusCode {
    Control::new(shared).register_client(&body.id, body.secret.as_deref());
    StatusCode::NO_CONTENT
}

async fn refresh_token(State(shared): Shares, Json(body): Json<Many<TokenWish>>) -> Response {
    let control = Control::new(shared);
    let Some(count) = body.count else {
        return Json(json!({ "refresh_token": control.refresh_token(&body.wish) })).into_response();
    };
    let tokens: Vec<_> = (0..count)
        .map(|n| control.refresh_token(&TokenWish { user: format!("{}{n}", body.wish.user), ..body.wish.clone() }))
        .collect();
    Json(json!({ "refresh_tokens": tokens })).into_response()
}

async fn mytoken(State(shared): Shares, Json(body): Json<Many<MytokenWish>>) -> Response {
    let control = Control::new(shared);
    let made = match body.count {
        None => control.mytoken(body.wish).map(|jwt| json!({ "mytoken": jwt })),
        Some(count) => (0..count)
            .map(|n| control.mytoken(MytokenWish { user: format!("{}{n}", body.wish.user), ..body.wish.clone() }))
            .collect::<io::Result<Vec<_>>>()
            .map(|jwts| json!({ "mytokens": jwts })),
    };
    made.map_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response(), |body| Json(body).into_response())
}

async fn revoke(State(shared): Shares, Json(body): Json<Which>) -> Response {
    let control = Control::new(shared);
    let revoked = body.token.map_or(0, |token| usize::from(control.revoke(&token)))
        + body.user.map_or(0, |user| control.revoke_user(&user));
    Json(json!({ "revoked": revoked })).into_response()
}

async fn fault(State(shared): Shares, Json(body): Json<FaultFor>) -> StatusCode {
    Control::new(shared).set_fault(body.user.as_deref(), body.fault);
    StatusCode::NO_CONTENT
}

async fn stats(State(shared): Shares) -> Json<Stats> {
    Json(Control::new(shared).stats())
}

/// Consent and polling codes, device and user codes of the approvals under way: for tests that look where they must not be.
async fn codes(State(shared): Shares) -> Json<Vec<String>> {
    Json(super::mytoken::codes(&shared))
}

async fn records(State(shared): Shares, Query(query): Query<HashMap<String, String>>) -> Json<Vec<Record>> {
    Json(Control::new(shared).records(query.get("user").map(String::as_str)))
}
