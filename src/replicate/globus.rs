//! `kind = "globus-compute"`: a token as the argument of a function at the site's endpoint (contract replication, §3–§5).
//!
//! The client authenticates as itself; the function is registered once for each site (its source holds the allowed
//! directory and the site's name) and its UUID kept as a note. A site may allow that UUID alone, so it is given up only
//! for the service's word that there is no such function, and then one new one is made. A task cannot be cancelled and may run days later, so
//! its id is a note, too: while one is pending for a credential, it is asked for and no second one is sent; when it has
//! ended, what is newer by then goes out. One `batch_status` asks for all tasks of a client, and all requests of a
//! client keep within the service's 20 in 10 seconds.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::{Duration, Instant},
};

use reqwest::{Client, Method, RequestBuilder, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, oneshot};
use zeroize::Zeroizing;

use super::{
    account::{self, Accounts, Pace},
    directory,
    envelope::{KeyRing, Verdict},
    name, pack,
    parcel::{self, Parcel},
    receive,
    web::Answer,
    worker::Notes,
};
use crate::{
    config::site_settings::{GlobusCompute, Site},
    core::delivery::{Delivered, Undelivered},
    error::Kind,
};

/// Of the service itself (contract §3.1).
const SCOPE: &str = "https://auth.globus.org/scopes/facd7ccc-c5f4-42aa-916b-a0e270e2c2a9/all";
/// 20 requests in 10 s are allowed; this leaves room for others who use the client.
const PACE: Pace = Pace { gap: Duration::from_millis(750), burst: 6 };
/// Between two looks at pending tasks.
const LOOK_FIRST: Duration = Duration::from_secs(1);
const LOOK_MOST: Duration = Duration::from_secs(20);
/// What the service says of an endpoint that is there.
pub const ONLINE: &str = "online";
/// A delivery that has waited long enough waits no longer than this to hear why.
const WORDS_PATIENCE: Duration = Duration::from_secs(3);
/// Tasks in one `batch_status`.
const BATCH: usize = 100;

/// A client of the service, shared by all sites that use it.
#[derive(Debug)]
pub struct Account {
    client: account::Account,
    /// Registration is single flight.
    registering: Mutex<()>,
    watched: StdMutex<HashMap<String, oneshot::Sender<Value>>>,
    looking: StdMutex<bool>,
    /// Why the last question how tasks stand had no answer.
    unanswered: StdMutex<Option<String>>,
}

/// The client of a site.
///
/// # Errors
/// [`web::client`](super::web::client)
pub fn account(accounts: &Accounts<Account>, site: &Site, globus: &GlobusCompute) -> Result<Arc<Account>, Undelivered> {
    let key = format!("{:?}", (&globus.api, &globus.auth, &globus.client_id, &site.ca_file));
    accounts.of(key, || {
        Ok(Account {
            client: account::Account::new(site, PACE)?,
            registering: Mutex::new(()),
            watched: StdMutex::default(),
            looking: StdMutex::new(false),
            unanswered: StdMutex::default(),
        })
    })
}

/// The note of the site's function: `VERSION:UUID`, and `:new` behind it until it was accepted once.
const FUNCTION: &str = "function";

/// A function at the service.
struct Function {
    id: String,
    /// What it is of: our source, the client, the service; `None`: the configuration names it.
    version: Option<String>,
    /// It was good before.
    accepted: bool,
}

impl Function {
    fn parse(text: &str) -> Option<Self> {
        let (version, rest) = text.split_once(':')?;
        let (id, accepted) = rest.strip_suffix(":new").map_or((rest, true), |id| (id, false));
        Some(Self { id: id.to_owned(), version: Some(version.to_owned()), accepted })
    }
}

/// Where a site's delivery stands between two tries.
struct Task {
    generation: u64,
    sealed: u64,
    id: String,
}

impl Task {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        let (generation, sealed) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self { generation, sealed, id: parts.next()?.to_owned() })
    }

    fn text(&self) -> String {
        format!("{}:{}:{}", self.generation, self.sealed, self.id)
    }
}

/// Deliver, or go on with what is pending.
///
/// # Errors
/// [`Undelivered`]; [`Kind::SitePending`] while the service holds the task.
pub async fn deliver(
    site: &Site,
    globus: &GlobusCompute,
    account: &Arc<Account>,
    ring: &KeyRing,
    notes: &Notes,
    parcel: &Parcel,
) -> Result<Delivered, Undelivered> {
    let end = Instant::now() + site.timeout;
    let folder = name::directory(&globus.directory, &parcel.id)?;
    let mut all = Ok(Delivered::AlreadyThere);
    for name in parcel.names(site)? {
        let path = format!("{folder}/{name}");
        let one = one_file(site, globus, account, ring, notes, parcel, &path, end).await;
        all = parcel::worse(all, one);
    }
    all
}

#[expect(clippy::too_many_arguments, reason = "one file of a delivery: everything that it needs")]
async fn one_file(
    site: &Site,
    globus: &GlobusCompute,
    account: &Arc<Account>,
    ring: &KeyRing,
    notes: &Notes,
    parcel: &Parcel,
    path: &str,
    end: Instant,
) -> Result<Delivered, Undelivered> {
    let key = format!("task {} {path}", globus.endpoint);
    let max_age = site.sealing.as_ref().map_or(86_400, |sealing| sealing.max_age.as_secs());
    if let Some(task) = notes.value(&key).as_deref().and_then(Task::parse) {
        // Past its age the function refuses it anyway: then it is lost, and the next one goes out.
        if receive::now() <= task.sealed.saturating_add(max_age) {
            let found = account.watch(globus, &task.id, end).await?;
            notes.put(&key, None).await;
            // One of an earlier generation made room for this one; how it ended does not matter any more.
            if let (Some(document), true) = (found, task.generation == parcel.generation) {
                return judge(&document, ring, parcel, site);
            }
        }
    }
    let sealed = receive::now();
    let payload = parcel.sealed(site, ring, path, sealed)?;
    let text = std::str::from_utf8(&payload).map_err(|_| Undelivered::new(Kind::SiteError, "no text"))?;
    let arguments = Zeroizing::new(pack::arguments(&json!([text, globus.keys_there, max_age])));
    let id = submit(site, globus, account, notes, &arguments).await?;
    let task = Task { generation: parcel.generation, sealed, id };
    notes.put(&key, Some(&task.text())).await;
    let found = account.watch(globus, &task.id, end).await?;
    notes.put(&key, None).await;
    let lost = || Undelivered::new(Kind::SiteError, "the service has lost the task");
    judge(&found.ok_or_else(lost)?, ring, parcel, site)
}

/// Hand a payload to the service: the task's id.
async fn submit(
    site: &Site,
    globus: &GlobusCompute,
    account: &Arc<Account>,
    notes: &Notes,
    arguments: &str,
) -> Result<String, Undelivered> {
    let url = format!("{}/v3/endpoints/{}/submit", globus.api.trim_end_matches('/'), globus.endpoint);
    let mut function = account.function(site, globus, notes, None).await?;
    let first = function.id.clone();
    let answer = loop {
        let body = json!({
            "create_queue": false,
            "tasks": {&function.id: [arguments]},
            "result_serializers": ["globus_compute_sdk.serialize.JSONData"],
        });
        let answer = account.call(globus, Method::POST, &url, Some(&body)).await?;
        if !(function.accepted && No::of(&answer) == Some(No::Function)) {
            break answer;
        }
        // It was good before, and was removed at the service.
        function = account.function(site, globus, notes, Some(&function.id)).await?;
    };
    if let Some(no) = No::of(&answer) {
        if let (No::Function, Some(version), true) = (no, &function.version, function.id != first) {
            // Another one does not help: what was good stays, and no third one is made.
            notes.put(FUNCTION, Some(&format!("{version}:{first}:new"))).await;
        }
        let Undelivered { detail, .. } = answer.refusal();
        let words = match no {
            No::Function => format!("the service does not know our function {}", function.id),
            No::Endpoint => format!("the service does not know the endpoint {}; correct endpoint_id", globus.endpoint),
            No::Permission => format!("let the endpoint's allowed_functions name our function {}", function.id),
        };
        return Err(Undelivered::new(Kind::SiteDenied, format!("{words} ({detail})")));
    }
    let answer = answer.json()?;
    if let (false, Some(version)) = (function.accepted, &function.version) {
        notes.put(FUNCTION, Some(&format!("{version}:{}", function.id))).await;
    }
    let id = answer.get("tasks").and_then(|tasks| tasks.get(&function.id)?.get(0)?.as_str());
    id.map(str::to_owned).ok_or_else(|| Undelivered::new(Kind::SiteError, "the service names no task"))
}

/// What the service's no to a submit is about; its other errors are about none of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum No {
    /// There is no such function.
    Function,
    /// There is no such endpoint.
    Endpoint,
    /// The endpoint may run others only.
    Permission,
}

impl No {
    /// By the code, or where that is a number, by the words (contract §3.4).
    fn of(answer: &Answer) -> Option<Self> {
        let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let code = value.get("code").and_then(Value::as_str).unwrap_or_default();
        let words = answer.refusal().detail.to_ascii_lowercase();
        match (answer.status, code) {
            (403, "FUNCTION_NOT_PERMITTED") => Some(Self::Permission),
            (403, _) => words.contains("not permitted on endpoint").then_some(Self::Permission),
            (404, "FUNCTION_NOT_FOUND") => Some(Self::Function),
            (404, "ENDPOINT_NOT_FOUND") => Some(Self::Endpoint),
            // Whoever means the endpoint need not say so.
            (404, _) if words.contains("function") && !words.contains("endpoint") => Some(Self::Function),
            (404, _) => Some(Self::Endpoint),
            _ => None,
        }
    }
}

/// What a document of a task that has ended means (contract §3.2: `exception`, then `result`, then neither).
fn judge(document: &Value, ring: &KeyRing, parcel: &Parcel, site: &Site) -> Result<Delivered, Undelivered> {
    let text = |key: &str| document.get(key).and_then(Value::as_str);
    if let Some(exception) = text("exception") {
        let last = exception.trim().lines().last().unwrap_or_default();
        let kind = if exception.contains("not permitted on endpoint") { Kind::SiteDenied } else { Kind::SiteError };
        return Err(Undelivered::new(kind, format!("at the endpoint: {last}")));
    }
    let Some(result) = text("result") else {
        return Err(Undelivered::new(Kind::SiteError, text("reason").unwrap_or("the task failed without a word")));
    };
    let unreadable = |e: &dyn std::fmt::Display| Undelivered::new(Kind::SiteUnconfirmed, format!("the result: {e}"));
    let said = pack::result(result).map_err(|e| unreadable(&e))?;
    let verdict: Verdict = serde_json::from_str(&said).map_err(|_| unreadable(&"no word of our function"))?;
    verdict.judge(ring, parcel.generation, &parcel.bytes(site)?)
}

impl Account {
    /// One request.
    async fn call(
        self: &Arc<Self>,
        globus: &GlobusCompute,
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Undelivered> {
        let build = |http: &Client| {
            let request = http.request(method.clone(), url);
            match body {
                Some(body) => {
                    let text = Zeroizing::new(body.to_string());
                    request.header(header::CONTENT_TYPE, "application/json").body(text.as_bytes().to_vec())
                }
                None => request,
            }
        };
        self.client.call(|http| Ok(grant(globus, http)), build).await
    }

    /// The site's function: configured, noted, or registered now; not the one that is `unknown` to the service, if
    /// it was good before.
    async fn function(
        self: &Arc<Self>,
        site: &Site,
        globus: &GlobusCompute,
        notes: &Notes,
        unknown: Option<&str>,
    ) -> Result<Function, Undelivered> {
        if let Some(function) = &globus.function {
            return Ok(Function { id: function.clone(), version: None, accepted: false });
        }
        let root = directory::fixed(&globus.directory).display().to_string();
        let code = pack::code(pack::NAME, &pack::source(&root, &site.name), globus.legacy);
        // Another service does not know it, and another client may not use it.
        let of = json!([globus.api, globus.client_id, code]).to_string();
        let version = Sha256::digest(of).iter().take(8).fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        let _one = self.registering.lock().await;
        let known = notes.value(FUNCTION).and_then(|known| Function::parse(&known));
        if let Some(known) = known
            && known.version.as_ref() == Some(&version)
            && (unknown != Some(known.id.as_str()) || !known.accepted)
        {
            return Ok(known);
        }
        let identifier = if globus.legacy { "04" } else { "st" };
        let body = json!({
            "function_name": pack::NAME,
            "function_code": code,
            "serialized": true,
            "meta": {"python_version": "3.11.0", "sdk_version": "4.19.0", "serde_identifier": identifier},
            "description": "evercred: opens a sealed token and writes it below one directory",
        });
        let url = format!("{}/v3/functions", globus.api.trim_end_matches('/'));
        let answer = self.call(globus, Method::POST, &url, Some(&body)).await?.json()?;
        let function = answer.get("function_uuid").and_then(Value::as_str);
        let function = function.ok_or_else(|| Undelivered::new(Kind::SiteError, "the service names no function"))?;
        notes.put(FUNCTION, Some(&format!("{version}:{function}:new"))).await;
        Ok(Function { id: function.to_owned(), version: Some(version), accepted: false })
    }

    /// What the service says of the site's endpoint: [`ONLINE`], or another word.
    ///
    /// # Errors
    /// It does not say.
    pub async fn endpoint(self: &Arc<Self>, globus: &GlobusCompute) -> Result<String, Undelivered> {
        let url = format!("{}/v2/endpoints/{}/status", globus.api.trim_end_matches('/'), globus.endpoint);
        let answer = self.call(globus, Method::GET, &url, None).await?.json()?;
        let state = answer.get("status").and_then(Value::as_str).unwrap_or_default();
        let state: String = state.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(20).collect();
        if state.is_empty() { Err(Undelivered::new(Kind::SiteError, "no status")) } else { Ok(state.to_lowercase()) }
    }

    /// Wait until a task has ended; `None`: the service does not know it.
    async fn watch(
        self: &Arc<Self>,
        globus: &GlobusCompute,
        task: &str,
        end: Instant,
    ) -> Result<Option<Value>, Undelivered> {
        let (ended, document) = oneshot::channel();
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).insert(task.to_owned(), ended);
        let idle = !std::mem::replace(&mut *self.looking.lock().unwrap_or_else(PoisonError::into_inner), true);
        if idle {
            let (account, globus) = (Arc::clone(self), globus.clone());
            tokio::spawn(async move { account.look(&globus).await });
        }
        match tokio::time::timeout_at(end.into(), document).await {
            Ok(Ok(document)) => Ok(Some(document).filter(|document| !document.is_null())),
            Ok(Err(_)) => Err(Undelivered::new(Kind::SitePending, "the task is still pending")),
            Err(_) => {
                self.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(task);
                let unanswered = self.unanswered.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(why) = unanswered {
                    let words = format!("the service does not say how the task stands ({why}); it stays in its queue");
                    return Err(Undelivered::new(Kind::SitePending, words));
                }
                let state = tokio::time::timeout(WORDS_PATIENCE, self.endpoint(globus)).await;
                let state = match state {
                    Ok(Ok(state)) => format!(", which is {state},"),
                    _ => String::new(),
                };
                let words = format!("the endpoint{state} has not run the task yet; it stays in its queue");
                Err(Undelivered::new(Kind::SitePending, words))
            }
        }
    }

    /// Ask for all watched tasks, until there are none.
    async fn look(self: Arc<Self>, globus: &GlobusCompute) {
        let url = format!("{}/v2/batch_status", globus.api.trim_end_matches('/'));
        let mut pause = LOOK_FIRST;
        loop {
            tokio::time::sleep(pause).await;
            let ids: Vec<String> = {
                let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
                if watched.is_empty() {
                    *self.looking.lock().unwrap_or_else(PoisonError::into_inner) = false;
                    return;
                }
                watched.keys().cloned().collect()
            };
            let mut ended = 0;
            let mut wish = None;
            for batch in ids.chunks(BATCH) {
                let body = json!({"task_ids": batch});
                let answer = self.call(globus, Method::POST, &url, Some(&body)).await.and_then(|answer| answer.json());
                // Whatever is wrong: the tasks go on, and are asked for again.
                let why = answer.as_ref().err().map(|error| error.detail.clone());
                *self.unanswered.lock().unwrap_or_else(PoisonError::into_inner) = why;
                let answer = match answer {
                    Ok(answer) => answer,
                    Err(error) => {
                        wish = error.retry_after;
                        break;
                    }
                };
                for id in batch {
                    let document = answer.get("results").and_then(|results| results.get(id));
                    let over = match document {
                        None => Some(Value::Null),
                        Some(document) => is_over(document).then(|| document.clone()),
                    };
                    if let Some(document) = over
                        && let Some(watcher) = self.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(id)
                    {
                        ended += 1;
                        // Whoever waited may have given up.
                        watcher.send(document).ok();
                    }
                }
            }
            pause = if ended > 0 { LOOK_FIRST } else { (pause * 3 / 2).min(LOOK_MOST) };
            pause = pause.max(wish.unwrap_or_default());
        }
    }
}

/// The request for the client's own token.
fn grant(globus: &GlobusCompute, http: &Client) -> RequestBuilder {
    let secret = globus.client_secret.as_ref().map(|secret| secret.expose().to_owned()).map(Zeroizing::new);
    let form = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "client_credentials")
        .append_pair("scope", SCOPE)
        .finish();
    http.post(format!("{}/v2/oauth2/token", globus.auth.trim_end_matches('/')))
        .basic_auth(&globus.client_id, secret.as_deref())
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(form)
}

/// Only `success` and `failed` are ends.
fn is_over(document: &Value) -> bool {
    let status = document.get("status").and_then(Value::as_str).unwrap_or_default();
    status.eq_ignore_ascii_case("success") || status.eq_ignore_ascii_case("failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_no_of_the_service_is_about_what_its_code_or_its_words_name() {
        let function = "0b1c2d3e-0000-4000-8000-000000000001";
        for (status, code, words, about) in [
            (404, json!("FUNCTION_NOT_FOUND"), "gone", Some(No::Function)),
            (404, json!(3), "Function 0b1c could not be resolved", Some(No::Function)),
            (404, json!("ENDPOINT_NOT_FOUND"), "gone", Some(No::Endpoint)),
            (404, json!(4), "Endpoint 9f1a could not be resolved", Some(No::Endpoint)),
            (404, json!(4), "no endpoint for this function", Some(No::Endpoint)),
            (404, Value::Null, "Not Found", Some(No::Endpoint)),
            (403, json!("FUNCTION_NOT_PERMITTED"), "no", Some(No::Permission)),
            (403, json!(10), &format!("Function {function} not permitted on endpoint 9f1a"), Some(No::Permission)),
            (403, json!("ENDPOINT_ACCESS_FORBIDDEN"), "no", None),
            (403, Value::Null, "as ordered", None),
            (503, json!("FUNCTION_NOT_FOUND"), "no such function", None),
            (200, Value::Null, "", None),
        ] {
            let body = json!({"code": code, "reason": words}).to_string().into_bytes();
            let answer = Answer { status, retry_after: None, body: Zeroizing::new(body) };
            assert_eq!(No::of(&answer), about, "{status} {code} {words}");
        }
    }
}
