//! `kind = "sfapi"`: NERSC's Superfacility API (contract replication, §7).
//!
//! The service can put a file, but promises neither that it appears whole nor its mode; and only a client that ends
//! after two days may run the command that would rename it. So what is put is a sealed payload, into the site's
//! **inbox** ([`super::inbox`]), and `evercred receive --inbox` of the account there does the rest: opens it, refuses what
//! is late or leads elsewhere, writes the token as any file of ours is written, and leaves a receipt. It is run by a timer
//! there, or, with `command`, by us. Delivered is what a receipt confirms with the key.
//!
//! What was put last is a note (generation, time, digest), made before it is put. A service that takes an upload and
//! never answers, or does it an hour later, harms nothing: an old payload is refused by its sequence, and a newer one
//! that it was written over is missed here, because its receipt does not come, and is put again.
//!
//! Answers with HTTP 200 say `status: "ERROR"` where they mean no.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::{Client, Method, RequestBuilder, header};
use serde_json::Value;

use super::{
    account::{Account, Accounts, Pace},
    assertion::ClientKey,
    envelope::{KeyRing, Verdict},
    inbox, name,
    parcel::{self, Parcel},
    receive,
    web::{self, Answer},
    worker::Notes,
};
use crate::{
    config::site_settings::{Sfapi, Site},
    core::delivery::{Delivered, Undelivered},
    error::Kind,
};

/// The service publishes no figure; this is what one person with its own client would do.
const PACE: Pace = Pace { gap: Duration::from_millis(500), burst: 10 };
/// Between two looks at a task or a receipt.
const LOOK_FIRST: Duration = Duration::from_secs(1);
const LOOK_MOST: Duration = Duration::from_secs(20);
/// A site as one delivery sees it.
struct Service<'a> {
    sfapi: &'a Sfapi,
    account: Arc<Account>,
    end: Instant,
}

/// What was put last for a path.
struct Put {
    generation: u64,
    at: u64,
    digest: String,
}

impl Put {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        let (generation, at) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Self { generation, at, digest: parts.next()?.to_owned() })
    }

    fn text(&self) -> String {
        format!("{}:{}:{}", self.generation, self.at, self.digest)
    }
}

/// Deliver, or go on with what was put before.
///
/// # Errors
/// [`Undelivered`]; [`Kind::SitePending`] while nobody has emptied the inbox.
pub async fn deliver(
    site: &Site,
    sfapi: &Sfapi,
    accounts: &Accounts<Account>,
    ring: &KeyRing,
    notes: &Notes,
    parcel: &Parcel,
) -> Result<Delivered, Undelivered> {
    let key = format!("{:?}", (&sfapi.api, &sfapi.auth, &sfapi.client_id, &site.ca_file));
    let account = accounts.of(key, || Account::new(site, PACE))?;
    let service = Service { sfapi, account, end: Instant::now() + site.timeout };
    let folder = name::directory(&sfapi.directory, &parcel.id)?;
    let mut all = Ok(Delivered::AlreadyThere);
    for name in parcel.names(site)? {
        let one = service.one_file(site, ring, notes, parcel, &format!("{folder}/{name}")).await;
        all = parcel::worse(all, one);
    }
    all
}

impl Service<'_> {
    async fn one_file(
        &self,
        site: &Site,
        ring: &KeyRing,
        notes: &Notes,
        parcel: &Parcel,
        path: &str,
    ) -> Result<Delivered, Undelivered> {
        let place = format!("{}/{}", self.sfapi.inbox, inbox::name(&site.name, path));
        let note = format!("put {path}");
        let now = receive::now();
        let before = notes.value(&note).as_deref().and_then(Put::parse);
        // Without a receipt for as long as a whole delivery may take, it may have been written over: it is put again.
        let again = site.timeout.as_secs();
        let before = before.filter(|put| put.generation == parcel.generation && now.saturating_sub(put.at) < again);
        let digest = if let Some(put) = before {
            put.digest
        } else {
            let payload = parcel.sealed(site, ring, path, now)?;
            let put = Put { generation: parcel.generation, at: now, digest: inbox::digest(&payload) };
            notes.put(&note, Some(&put.text())).await;
            if let Err(error) = self.upload(&format!("{place}{}", inbox::SEALED), &payload).await {
                // Whether it is there is not known if there was no answer; then its receipt may still come.
                if !matches!(error.kind, Kind::SiteTimeout | Kind::SiteUnreachable) {
                    notes.put(&note, None).await;
                }
                return Err(error);
            }
            put.digest
        };
        let command = match &self.sfapi.command {
            Some(command) => self.run(command).await,
            None => Ok(()),
        };
        let receipt = format!("{place}{}", inbox::RECEIPT);
        let mut pause = LOOK_FIRST;
        let verdict = loop {
            if let Some(verdict) = self.receipt(&receipt, &digest).await? {
                break verdict;
            }
            // What the command left undone is told in its own words.
            command.clone()?;
            if Instant::now() + pause >= self.end {
                let words = "the payload is in the inbox; nobody has run `evercred receive --inbox` there yet";
                return Err(Undelivered::new(Kind::SitePending, words));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LOOK_MOST);
        };
        notes.put(&note, None).await;
        verdict.judge(ring, parcel.generation, &parcel.bytes(site)?)
    }

    async fn upload(&self, path: &str, payload: &[u8]) -> Result<(), Undelivered> {
        let url = self.address("upload", path)?;
        let (kind, body) = web::file_form(payload)?;
        let answer = self
            .call(|http| http.request(Method::PUT, url.clone()).header(header::CONTENT_TYPE, &kind).body(body.clone()))
            .await?;
        said(&answer.json()?).map(drop)
    }

    /// The receipt, if it is there and about our payload.
    async fn receipt(&self, path: &str, digest: &str) -> Result<Option<Verdict>, Undelivered> {
        let mut url = self.address("download", path)?;
        url.query_pairs_mut().append_pair("binary", "false");
        let answer = self.call(|http| http.get(url.clone())).await?.json()?;
        match said(&answer) {
            Ok(()) => {}
            Err(error) if error.detail.contains("No such file") => return Ok(None),
            Err(error) => return Err(error),
        }
        let text = answer.get("file").and_then(Value::as_str).unwrap_or_default();
        // Half a receipt is none yet; the next look reads it again.
        let verdict = serde_json::from_str::<Verdict>(text).ok();
        Ok(verdict.filter(|verdict| verdict.of.as_deref() == Some(digest)))
    }

    /// Run the command, and wait for its end.
    async fn run(&self, command: &str) -> Result<(), Undelivered> {
        let url = web::address(&self.sfapi.api, &["utilities", "command", &self.sfapi.machine])?;
        let form = url::form_urlencoded::Serializer::new(String::new()).append_pair("executable", command).finish();
        let answer = self
            .call(|http| {
                let request = http.post(url.clone());
                request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.clone())
            })
            .await?;
        let answer = answer.json()?;
        said(&answer)?;
        let task = answer.get("task_id").and_then(Value::as_str);
        let task = task.ok_or_else(|| Undelivered::new(Kind::SiteError, "the service names no task"))?;
        let url = web::address(&self.sfapi.api, &["tasks", task])?;
        let mut pause = LOOK_FIRST;
        loop {
            let document = self.call(|http| http.get(url.clone())).await?.json()?;
            if let Some(end) = ended(&document) {
                return end;
            }
            if Instant::now() + pause >= self.end {
                return Err(Undelivered::new(Kind::SitePending, "the service has not run the command yet"));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LOOK_MOST);
        }
    }

    fn address(&self, what: &str, path: &str) -> Result<url::Url, Undelivered> {
        let mut segments = vec!["utilities", what, self.sfapi.machine.as_str()];
        segments.extend(path.split('/'));
        web::address(&self.sfapi.api, &segments)
    }

    async fn call(&self, build: impl Fn(&Client) -> RequestBuilder) -> Result<Answer, Undelivered> {
        self.account.call(|http| grant(self.sfapi, http), build).await
    }
}

/// The request for the client's own token: an assertion, and no header.
fn grant(sfapi: &Sfapi, http: &Client) -> Result<RequestBuilder, Undelivered> {
    let wrong = |why: &str| Undelivered::new(Kind::SiteAuth, why);
    let key = sfapi.client_key.as_ref().ok_or_else(|| wrong("the client's key was not read"))?;
    let key = ClientKey::parse(key).map_err(|e| wrong(&format!("client_file {e}")))?;
    let made = key.assertion(&sfapi.client_id, &sfapi.auth, receive::now()).map_err(|e| wrong(&e.to_string()))?;
    let form = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "client_credentials")
        .append_pair("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
        .append_pair("client_assertion", &made)
        .finish();
    Ok(http.post(&sfapi.auth).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(form))
}

/// `status` in an answer with HTTP 200.
fn said(answer: &Value) -> Result<(), Undelivered> {
    let text = |key: &str| answer.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    match text("status") {
        Some(status) if status.eq_ignore_ascii_case("ok") => Ok(()),
        Some(_) => Err(refusal(text("error").or_else(|| text("output")).unwrap_or("an error without words"))),
        None => Err(Undelivered::new(Kind::SiteError, "the answer has no status")),
    }
}

/// How a task ended; `None`: it has not.
fn ended(document: &Value) -> Option<Result<(), Undelivered>> {
    let status = document.get("status").and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
    if !["completed", "cancelled", "failed"].contains(&status.as_str()) {
        return None;
    }
    // The result is JSON in a string, and has a status of its own.
    let result = document.get("result").and_then(Value::as_str).unwrap_or_default();
    let inner: Value = serde_json::from_str(result).unwrap_or_default();
    let word = |key: &str| inner.get(key).and_then(Value::as_str).filter(|text| !text.trim().is_empty());
    let failed = status != "completed"
        || word("status").is_some_and(|status| !status.eq_ignore_ascii_case("ok"))
        || inner.get("exit_code").and_then(Value::as_i64).is_some_and(|code| code != 0);
    let words = word("error").or_else(|| word("output")).unwrap_or("no words");
    let last = words.trim().lines().last().unwrap_or_default();
    if failed {
        let mut error = refusal(last);
        error.detail = format!("the command {status}: {}", error.detail);
        return Some(Err(error));
    }
    Some(Ok(()))
}

/// A refusal in the words of the machine's file system.
fn refusal(words: &str) -> Undelivered {
    Undelivered::new(web::kind_of_words(words), words)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kind(end: Result<(), Undelivered>) -> Option<Kind> {
        end.err().map(|error| error.kind)
    }

    #[test]
    fn an_error_with_http_200_is_a_failure_and_its_words_say_of_which_kind() {
        let answer = |status: &str, error: &str| said(&json!({"status": status, "output": null, "error": error}));
        assert_eq!(kind(answer("OK", "")), None);
        assert_eq!(kind(answer("ERROR", "cp: No space left on device")), Some(Kind::SiteFull));
        assert_eq!(kind(answer("ERROR", "Disk quota exceeded")), Some(Kind::SiteFull));
        assert_eq!(kind(answer("ERROR", "/global/x: Permission denied")), Some(Kind::SiteDenied));
        assert_eq!(kind(answer("ERROR", "")), Some(Kind::SiteError));
        assert_eq!(kind(said(&json!({}))), Some(Kind::SiteError));
    }

    #[test]
    fn a_task_that_completed_may_have_failed_and_one_that_is_new_has_not_ended() {
        let task = |status: &str, result: Value| ended(&json!({"id": "1", "status": status, "result": result}));
        let ok = json!(r#"{"status":"ok","output":"","error":null}"#);
        assert_eq!(task("new", Value::Null), None);
        assert_eq!(task("completed", ok.clone()).map(kind), Some(None));
        assert_eq!(task("failed", ok).map(kind), Some(Some(Kind::SiteError)));
        assert_eq!(task("cancelled", Value::Null).map(kind), Some(Some(Kind::SiteError)));
        for bad in [r#"{"status":"error","error":"sh: not found"}"#, r#"{"status":"ok","exit_code":1,"output":"x"}"#] {
            assert_eq!(task("completed", json!(bad)).map(kind), Some(Some(Kind::SiteError)), "{bad}");
        }
    }

    #[test]
    fn what_was_put_is_remembered_as_it_was() {
        let put = Put { generation: 7, at: 9, digest: "ab".into() };
        let back = Put::parse(&put.text()).unwrap();
        assert_eq!((back.generation, back.at, back.digest.as_str()), (7, 9, "ab"));
        assert!(Put::parse("7:x:ab").is_none() && Put::parse("7").is_none());
    }
}
