//! `kind = "iri"`: the DOE IRI Facility API of a facility (contract replication, §8; the calls are those of NERSC's
//! published v1).
//!
//! Everything that touches a file is a task: it is asked for, and its end is waited for. A token is uploaded into the
//! **staging** directory `.evercred` below the site's directory, which is closed to others (0700) before anything is
//! put there; it gets its mode there, and `mv` puts it in its place, within one file system, as rename(2) does.
//!
//! The far end runs nothing of ours and knows no sequence, so order is kept here: for each file one move at a time. What
//! a move was asked for is a note, on disk before it is asked for. While it is pending nothing newer is moved; if nobody
//! can tell what became of it, or if it takes too long, its source is removed first: a move without a source can
//! replace nothing, however late it runs. Two access points must not feed the same file.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::{Client, Method, RequestBuilder, header};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    account::{Account, Accounts, Pace},
    envelope::KeyRing,
    name,
    parcel::{self, Parcel},
    receive,
    web::{self, Answer},
    worker::Notes,
};
use crate::{
    config::site_settings::{Iri, Site},
    core::delivery::{Delivered, Undelivered},
    error::Kind,
};

/// The service publishes no figure; this is what one person with its own client would do.
const PACE: Pace = Pace { gap: Duration::from_millis(250), burst: 20 };
/// Between two looks at a task.
const LOOK_FIRST: Duration = Duration::from_millis(500);
const LOOK_MOST: Duration = Duration::from_secs(10);
/// A move that is pending for longer is taken back.
const PATIENCE: u64 = 3600;
/// Where tokens are before they are in their place.
const STAGING: &str = ".evercred";

/// A site as one delivery sees it.
struct Service<'a> {
    iri: &'a Iri,
    account: Arc<Account>,
    end: Instant,
}

/// A move that was asked for.
struct Move {
    generation: u64,
    at: u64,
    /// Which try it is: a late move of an earlier one must not find what the next one has put down.
    attempt: u32,
    /// Empty: it is not known whether it was accepted.
    task: String,
}

impl Move {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':');
        let (generation, at) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let attempt = u32::from_str_radix(parts.next()?, 16).ok()?;
        Some(Self { generation, at, attempt, task: parts.next()?.to_owned() })
    }

    fn text(&self) -> String {
        format!("{}:{}:{:x}:{}", self.generation, self.at, self.attempt, self.task)
    }
}

/// One file of a delivery.
struct File<'a> {
    resource: &'a str,
    folder: &'a str,
    name: &'a str,
    mode: u32,
    generation: u64,
}

impl File<'_> {
    fn place(&self) -> String {
        format!("{}/{}", self.folder, self.name)
    }

    fn staging(&self) -> String {
        format!("{}/{STAGING}", self.folder)
    }

    /// Before it is in its place; each try has its own.
    fn source(&self, of: &Move) -> String {
        format!("{}/{}.{:x}.{:x}", self.staging(), self.name, of.generation, of.attempt)
    }

    fn note(&self) -> String {
        format!("mv {} {}", self.resource, self.place())
    }

    fn staging_note(&self) -> String {
        format!("staging {} {}", self.resource, self.folder)
    }
}

/// Deliver, or go on with what is pending.
///
/// # Errors
/// [`Undelivered`]; [`Kind::SitePending`] while a task is.
pub async fn deliver(
    site: &Site,
    iri: &Iri,
    accounts: &Accounts<Account>,
    ring: Option<&KeyRing>,
    notes: &Notes,
    parcel: &Parcel,
) -> Result<Delivered, Undelivered> {
    let key = format!("{:?}", (&iri.api, &iri.auth, &iri.client_id, &iri.scope, iri.bare, &site.name, &site.ca_file));
    let account = accounts.of(key, || Ok(Account::new(site, PACE)?.bare(iri.bare)))?;
    let service = Service { iri, account, end: Instant::now() + site.timeout };
    let folder = name::directory(&iri.directory, &parcel.id)?;
    let mut all = Ok(Delivered::AlreadyThere);
    for name in parcel.names(site)? {
        let (resource, generation) = (iri.resource.as_str(), parcel.generation);
        let file = File { resource, folder: &folder, name: &name, mode: site.mode, generation };
        let content = match ring {
            Some(ring) => parcel.sealed(site, ring, &file.place(), receive::now())?,
            None => parcel.bytes(site)?,
        };
        let one = service.one_file(&file, notes, &content).await;
        all = parcel::worse(all, one);
    }
    all
}

impl Service<'_> {
    async fn one_file(&self, file: &File<'_>, notes: &Notes, content: &[u8]) -> Result<Delivered, Undelivered> {
        if let Some(before) = notes.value(&file.note()).as_deref().and_then(Move::parse) {
            let arrived = self.settle(file, &before).await?;
            notes.put(&file.note(), None).await;
            if arrived && before.generation == file.generation {
                return Ok(Delivered::Written);
            }
        }
        self.make_staging(file, notes).await?;
        let mut asked =
            Move { generation: file.generation, at: receive::now(), attempt: web::number()?, task: String::new() };
        let source = file.source(&asked);
        if let Err(error) = self.fill(file, &source, content).await {
            if error.detail.contains("No such file") {
                notes.put(&file.staging_note(), None).await;
            }
            // It may not even have come to be; the next try writes it over.
            self.remove(&source).await.ok();
            return Err(error);
        }
        asked.at = receive::now();
        // On disk first: a move that nobody remembers may run late, over something newer.
        if let Err(error) = notes.keep(&file.note(), &asked.text()).await {
            self.remove(&source).await.ok();
            return Err(error);
        }
        let body = json!({"path": source, "target_path": file.place()});
        asked.task = match self.ask(Method::POST, "mv", &body).await {
            Ok(task) => task,
            Err(error) => {
                // A plain no is known; whether anything else was accepted is not.
                if matches!(error.kind, Kind::SiteAuth | Kind::SiteDenied | Kind::RateLimited) {
                    notes.put(&file.note(), None).await;
                }
                return Err(error);
            }
        };
        notes.put(&file.note(), Some(&asked.text())).await;
        match self.wait(&asked.task).await {
            Err(error) if unknown(&error) => Err(error),
            end => {
                notes.put(&file.note(), None).await;
                end.map(|()| Delivered::Written)
            }
        }
    }

    /// What became of a move that was asked for earlier: whether it arrived. Afterwards it can replace nothing more.
    async fn settle(&self, file: &File<'_>, before: &Move) -> Result<bool, Undelivered> {
        let young = receive::now().saturating_sub(before.at) < PATIENCE;
        if !before.task.is_empty() {
            let end = if before.generation == file.generation && young {
                self.wait(&before.task).await
            } else {
                self.look(&before.task).await.and_then(|end| end.unwrap_or_else(pending))
            };
            match end {
                Ok(()) => return Ok(true),
                Err(error) if error.kind == Kind::SitePending && before.generation == file.generation && young => {
                    return Err(error);
                }
                Err(error) if !unknown(&error) => return Ok(false),
                Err(_) => {}
            }
        }
        self.remove(&file.source(before)).await?;
        Ok(false)
    }

    /// The directory that is closed to others, once.
    async fn make_staging(&self, file: &File<'_>, notes: &Notes) -> Result<(), Undelivered> {
        let note = file.staging_note();
        if notes.value(&note).is_some() {
            return Ok(());
        }
        let staging = file.staging();
        match self.task(Method::POST, "mkdir", &json!({"path": staging, "parent": true})).await {
            Err(error) if error.detail.contains("File exists") => {}
            other => other?,
        }
        self.task(Method::PUT, "chmod", &json!({"path": staging, "mode": "700"})).await?;
        notes.put(&note, Some("0700")).await;
        Ok(())
    }

    /// The whole file in the staging directory, with its mode.
    async fn fill(&self, file: &File<'_>, source: &str, content: &[u8]) -> Result<(), Undelivered> {
        let mut url = self.address("upload")?;
        url.query_pairs_mut().append_pair("path", source);
        let (kind, body) = web::file_form(content)?;
        let body = Zeroizing::new(body);
        let answer = self
            .call(|http| {
                let request = http.post(url.clone()).header(header::CONTENT_TYPE, &kind);
                request.body(body.to_vec())
            })
            .await?;
        self.wait(&task_of(&answer.json()?)?).await?;
        self.task(Method::PUT, "chmod", &json!({"path": source, "mode": format!("{:03o}", file.mode)})).await
    }

    /// Remove a file, which need not be there.
    async fn remove(&self, path: &str) -> Result<(), Undelivered> {
        let mut url = self.address("rm")?;
        url.query_pairs_mut().append_pair("path", path);
        let answer = self.call(|http| http.delete(url.clone())).await?;
        match self.wait(&task_of(&answer.json()?)?).await {
            Err(error) if error.detail.contains("No such file") => Ok(()),
            end => end,
        }
    }

    async fn task(&self, method: Method, what: &str, body: &Value) -> Result<(), Undelivered> {
        let task = self.ask(method, what, body).await?;
        self.wait(&task).await
    }

    /// Ask for a task: its id.
    async fn ask(&self, method: Method, what: &str, body: &Value) -> Result<String, Undelivered> {
        let (url, text) = (self.address(what)?, body.to_string());
        let answer = self
            .call(|http| {
                let request = http.request(method.clone(), url.clone());
                request.header(header::CONTENT_TYPE, "application/json").body(text.clone())
            })
            .await?;
        task_of(&answer.json()?)
    }

    /// Wait for the end of a task.
    async fn wait(&self, task: &str) -> Result<(), Undelivered> {
        let mut pause = LOOK_FIRST;
        loop {
            if let Some(end) = self.look(task).await? {
                return end;
            }
            if Instant::now() + pause >= self.end {
                return pending();
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LOOK_MOST);
        }
    }

    /// How a task ended; `None`: it has not.
    async fn look(&self, task: &str) -> Result<Option<Result<(), Undelivered>>, Undelivered> {
        let url = web::address(&self.iri.api, &["api", "v1", "task", task])?;
        let answer = self.call(|http| http.get(url.clone())).await?;
        if answer.status == 404 {
            return Err(Undelivered::new(Kind::SiteUnconfirmed, "the facility does not know the task any more"));
        }
        Ok(ended(&answer.json()?))
    }

    fn address(&self, what: &str) -> Result<url::Url, Undelivered> {
        web::address(&self.iri.api, &["api", "v1", "filesystem", what, &self.iri.resource])
    }

    async fn call(&self, build: impl Fn(&Client) -> RequestBuilder) -> Result<Answer, Undelivered> {
        self.account.call(|http| Ok(grant(self.iri, http)), build).await
    }
}

/// Errors after which nobody knows whether a task has run, or will.
fn unknown(error: &Undelivered) -> bool {
    matches!(
        error.kind,
        Kind::SitePending
            | Kind::SiteTimeout
            | Kind::SiteUnreachable
            | Kind::SiteUnconfirmed
            | Kind::RateLimited
            | Kind::SiteAuth
    ) || error.detail.starts_with("HTTP ")
}

fn pending() -> Result<(), Undelivered> {
    Err(Undelivered::new(Kind::SitePending, "the facility has not run the task yet"))
}

/// The request for a token: by the refresh token of one login, or as the client itself.
fn grant(iri: &Iri, http: &Client) -> RequestBuilder {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    match &iri.refresh_token {
        Some(token) => {
            form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", token.expose());
        }
        None => {
            form.append_pair("grant_type", "client_credentials");
        }
    }
    if let Some(scope) = &iri.scope {
        form.append_pair("scope", scope);
    }
    let request = http.post(&iri.auth).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    if let Some(secret) = &iri.client_secret {
        return request.basic_auth(&iri.client_id, Some(secret.expose())).body(form.finish());
    }
    form.append_pair("client_id", &iri.client_id);
    request.body(form.finish())
}

fn task_of(answer: &Value) -> Result<String, Undelivered> {
    let task = answer.get("task_id").and_then(Value::as_str).filter(|task| !task.is_empty());
    task.map(str::to_owned).ok_or_else(|| Undelivered::new(Kind::SiteError, "the facility names no task"))
}

/// How a task ended; `None`: it has not.
fn ended(document: &Value) -> Option<Result<(), Undelivered>> {
    let status = document.get("status").and_then(Value::as_str).unwrap_or_default();
    match status {
        "pending" | "active" => None,
        "completed" => Some(Ok(())),
        _ => {
            // The specification leaves the form of a result open.
            let result = document.get("result").unwrap_or(&Value::Null);
            let word = ["error", "detail", "message", "output"].iter().find_map(|key| result.get(key)?.as_str());
            let words = result.as_str().or(word).unwrap_or("no words");
            let kind = web::kind_of_words(words);
            Some(Err(Undelivered::new(kind, format!("the task is {status:?}: {words}"))))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::TcpListener,
        sync::Mutex,
        thread,
    };

    use super::*;
    use crate::{
        config::{site_settings::SiteKind, tests::sites},
        core::{
            id::{CredentialId, UserName},
            secret::KeyText,
        },
    };

    #[test]
    fn a_task_has_ended_only_as_the_specification_says() {
        let end = |status: &str, result: Value| ended(&json!({"id": "1", "status": status, "result": result}));
        assert_eq!(end("pending", Value::Null), None);
        assert_eq!(end("active", Value::Null), None);
        assert_eq!(end("completed", Value::Null), Some(Ok(())));
        let kind = |status: &str, result: Value| end(status, result).unwrap().unwrap_err().kind;
        assert_eq!(kind("failed", json!("mv: Permission denied")), Kind::SiteDenied);
        assert_eq!(kind("failed", json!({"error": "No space left on device"})), Kind::SiteFull);
        assert_eq!(kind("canceled", Value::Null), Kind::SiteError);
        assert_eq!(kind("something", Value::Null), Kind::SiteError);
    }

    #[test]
    fn what_failed_for_sure_and_what_may_still_run_are_told_apart() {
        assert!(unknown(&pending().unwrap_err()));
        assert!(unknown(&Undelivered::new(Kind::SiteError, "HTTP 503: no words")));
        assert!(!unknown(&ended(&json!({"status": "failed"})).unwrap().unwrap_err()));
    }

    /// A facility that does at once whatever it is asked for, and what it was asked for.
    fn facility() -> (String, Arc<Mutex<Vec<String>>>) {
        const ANSWER: &str = "{\"access_token\":\"t\",\"task_id\":\"1\",\"status\":\"completed\"}";
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (base, asked) = (format!("http://{}", listener.local_addr().unwrap()), Arc::default());
        let log = Arc::<Mutex<Vec<String>>>::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let lines = stream.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty());
                let lines: Vec<_> = lines.map(|line| line.to_ascii_lowercase()).collect();
                let length = lines.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                std::io::copy(&mut stream.by_ref().take(length.unwrap_or(0)), &mut std::io::sink()).unwrap();
                log.lock().unwrap().extend(lines.into_iter().take(1));
                let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", ANSWER.len());
                stream.get_mut().write_all((head + ANSWER).as_bytes()).unwrap();
            }
        });
        (base, asked)
    }

    #[tokio::test]
    async fn no_move_is_asked_for_that_the_journal_does_not_remember() {
        let (base, asked) = facility();
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, "r\n").unwrap();
        std::fs::set_permissions(&token, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let site = sites(&format!(
            "[site.x]\nkind = \"iri\"\nservices = [\"w\"]\ndirectory = \"/d\"\nresource_id = \"cfs\"\nclient_id = \"c\"\n\
             refresh_token_file = \"{}\"\napi = \"{base}\"\nauth = \"{base}/token\"\n",
            token.display()
        ))
        .remove(0);
        let SiteKind::Iri(iri) = &site.kind else { panic!("it is one") };
        let parcel = Parcel {
            id: CredentialId::from_base(UserName::parse("alice").unwrap(), "w").unwrap(),
            generation: 7,
            expiry: None,
            content: KeyText::parse("a-token").unwrap(),
        };
        // Nobody keeps these notes.
        let end = deliver(&site, iri, &Accounts::default(), None, &Notes::default(), &parcel).await;
        assert_eq!(end.map_err(|error| error.kind), Err(Kind::NoSpace));
        let asked = asked.lock().unwrap();
        let said = |what: &str| asked.iter().any(|line| line.contains(what));
        assert!(said("/filesystem/upload/") && said("delete /api/v1/filesystem/rm/"), "{asked:?}");
        assert!(!said("/filesystem/mv/"), "{asked:?}");
    }
}
