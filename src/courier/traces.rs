//! Traces by OTLP over HTTP: a span a renewal, with the exchange, the rotated refresh token, the publish and each delivery
//! to a site beneath.
//!
//! The keeper tells a renewal, and a delivery, when it has ended; spans are made from its times and sent in batches. What the receiver
//! does not take within its time is dropped: traces are for looking closer, not for accounts. No user is in them.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanExporter as _, SpanLinks},
};
use tokio::sync::mpsc;

use crate::core::{
    course::{Course, Renewal, Replication, Trace},
    time::Timestamp,
};

/// Renewals and deliveries that wait to be sent; more are dropped.
const QUEUE: usize = 2048;
/// Spans of so many of them go together, or those of [`PAUSE`].
const BATCH: usize = 256;
const PAUSE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(10);

/// Where courses are handed in.
#[derive(Debug, Clone)]
pub struct Traces(mpsc::Sender<Course>);

impl Traces {
    /// Make the exporter to the receiver at `url` (`http://localhost:4318`).
    ///
    /// # Errors
    /// One line: what is wrong with the URL or TLS on this machine.
    pub fn new(url: &str) -> Result<(Self, Sending), String> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(PATIENCE)
            .build()
            .map_err(|e| format!("otlp: {e}"))?;
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client(client))
            .with_endpoint(format!("{}/v1/traces", url.trim_end_matches('/')))
            .build()
            .map_err(|e| format!("otlp: {e}"))?;
        exporter.set_resource(
            &Resource::builder_empty()
                .with_attributes([
                    KeyValue::new("service.name", "evercred"),
                    KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                ])
                .build(),
        );
        let (courses, queue) = mpsc::channel(QUEUE);
        Ok((Self(courses), Sending { exporter, queue }))
    }

    /// Hand one in; dropped if too many wait.
    pub fn send(&self, course: Course) {
        self.0.try_send(course).ok();
    }
}

/// The sending side; [`Sending::run`] is a task of the courier's.
#[derive(Debug)]
pub struct Sending {
    exporter: SpanExporter,
    queue: mpsc::Receiver<Course>,
}

impl Sending {
    /// Until nobody hands in any more. `trouble` hears the first failure, and the first success after one.
    pub async fn run(mut self, trouble: impl Fn(Option<String>)) {
        let scope = InstrumentationScope::builder("evercred").build();
        let mut failing = false;
        while let Some(first) = self.queue.recv().await {
            let mut courses = vec![first];
            let fill = async {
                while courses.len() < BATCH {
                    match self.queue.recv().await {
                        Some(course) => courses.push(course),
                        None => return,
                    }
                }
            };
            // What is there by then goes.
            tokio::time::timeout(PAUSE, fill).await.ok();
            let batch = courses.iter().flat_map(|course| spans(course, &scope)).collect();
            match self.exporter.export(batch).await {
                Ok(()) if std::mem::take(&mut failing) => trouble(None),
                Err(error) if !std::mem::replace(&mut failing, true) => trouble(Some(error.to_string())),
                Ok(()) | Err(_) => {}
            }
        }
    }
}

fn spans(course: &Course, scope: &InstrumentationScope) -> Vec<SpanData> {
    match course {
        Course::Renewal(renewal) => of_renewal(renewal, scope),
        Course::Replication(replication) => vec![of_replication(replication, scope)],
    }
}

fn numbers(trace: Trace) -> (TraceId, SpanId) {
    (TraceId::from_bytes(trace.id), SpanId::from_bytes(trace.root))
}

/// A delivery, beneath its renewal.
fn of_replication(replication: &Replication, scope: &InstrumentationScope) -> SpanData {
    let (trace, root) = numbers(replication.trace);
    let mut attributes = vec![
        KeyValue::new("evercred.site", replication.site.clone()),
        KeyValue::new("evercred.site.kind", replication.kind.clone()),
        KeyValue::new("evercred.failures", i64::from(replication.failures)),
    ];
    let mut status = Status::Unset;
    if let Some(kind) = replication.error {
        attributes.push(KeyValue::new("error.type", kind.label()));
        status = Status::error(kind.label());
    }
    let Replication { began, ended, .. } = *replication;
    let part = Part { name: "replicate", began, ended, kind: SpanKind::Client };
    span(scope, trace, RandomIdGenerator::default().new_span_id(), root, &part, attributes, status)
}

/// The spans of one renewal: the whole, and its parts.
fn of_renewal(renewal: &Renewal, scope: &InstrumentationScope) -> Vec<SpanData> {
    let ids = RandomIdGenerator::default();
    let (trace, root) = numbers(renewal.trace);
    let mut attributes = vec![
        KeyValue::new("evercred.provider", renewal.provider.clone()),
        KeyValue::new("evercred.service", renewal.service.clone()),
        KeyValue::new("evercred.rotated", renewal.rotated),
    ];
    let mut status = Status::Unset;
    if let Some(kind) = renewal.kind {
        attributes.push(KeyValue::new("error.type", kind.label()));
        status = Status::error(kind.label());
    }
    let whole = Part { name: "renewal", began: renewal.began, ended: renewal.ended, kind: SpanKind::Internal };
    let mut spans = vec![span(scope, trace, root, SpanId::INVALID, &whole, attributes, status.clone())];
    let child = |part: &Part, status| span(scope, trace, ids.new_span_id(), root, part, Vec::new(), status);
    if let Some((began, ended)) = renewal.exchange {
        let failed = if renewal.publish.is_none() && renewal.keep.is_none() { status } else { Status::Unset };
        spans.push(child(&Part { name: "exchange", began, ended, kind: SpanKind::Client }, failed));
    }
    if let Some((began, ended)) = renewal.keep {
        spans.push(child(&Part { name: "keep", began, ended, kind: SpanKind::Internal }, Status::Unset));
    }
    if let Some((began, ended)) = renewal.publish {
        spans.push(child(&Part { name: "publish", began, ended, kind: SpanKind::Internal }, Status::Unset));
    }
    spans
}

struct Part {
    name: &'static str,
    began: Timestamp,
    ended: Timestamp,
    kind: SpanKind,
}

fn span(
    scope: &InstrumentationScope,
    trace: TraceId,
    id: SpanId,
    parent: SpanId,
    part: &Part,
    attributes: Vec<KeyValue>,
    status: Status,
) -> SpanData {
    SpanData {
        span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::default()),
        parent_span_id: parent,
        parent_span_is_remote: false,
        span_kind: part.kind.clone(),
        name: part.name.into(),
        start_time: system_time(part.began),
        end_time: system_time(part.ended.max(part.began)),
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status,
        instrumentation_scope: scope.clone(),
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(time.0).unwrap_or(0))
}

/// Our HTTP client as the exporter wants it.
#[derive(Debug, Clone)]
struct Client(reqwest::Client);

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request.map(reqwest::Body::from))?;
        let answer = self.0.execute(request).await?;
        let status = answer.status();
        let mut response = Response::new(answer.bytes().await?);
        *response.status_mut() = status;
        Ok(response)
    }
}
