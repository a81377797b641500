//! `kind = "kubernetes"`: a token as a key of a Secret (contract replication, §10, §11.4).
//!
//! **One Secret for each user** (`evercred-{user}`, unless `secret_name` says otherwise). A pod mounts what is its user's
//! and nothing else; RBAC tells users apart by the names of Secrets; one renewal changes one small object, so that
//! 10,000 users neither reach the 1 MiB of a single Secret nor wait for each other, and kubelets fetch only what their
//! pods mount. `secret_name = "panda-token"` puts all of a site into one instead, for a few service accounts.
//!
//! **Format.** The key is the file name (`{user}_{base}`), the value the token. The annotation `evercred/KEY` holds the
//! generation. Each credential has a field manager of its own, `evercred:SITE:USER/BASE`, and server-side apply says
//! everything that this credential has in the Secret: a key that it no longer has goes, and keys of other credentials
//! and of other people stay. A key that somebody else manages is left alone, and told.
//!
//! **Order.** The Secret is read first: with a newer generation it stays (superseded), with the same content nothing
//! is written. What is written names the `resourceVersion` that was read, so that a request that was stuck somewhere
//! can never replace what came after it; a Secret that does not exist is first made empty, for the same reason.
//! Interrupted after that, the next delivery fills it.
//!
//! **The end.** Of a credential that left the spool the keys go (`withdraw`), and then the Secret, if we made it
//! and nothing else is in it.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::{cluster::Cluster, name, parcel::Parcel, threads::Threads, web::Answer};
use crate::{
    config::site_settings::{Kubernetes, Site},
    core::{
        delivery::{Delivered, Undelivered},
        id::CredentialId,
    },
    error::Kind,
};

/// Says that we made the Secret.
const LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", "evercred");
/// What our field managers begin with; they are at most 128 bytes long.
const OURS: &str = "evercred:";
/// How often a Secret is read again that changed between reading and writing.
const TRIES: u32 = 8;

/// What all sites of this kind share.
#[derive(Debug, Default)]
pub struct Clusters {
    /// By the name of the site: the way to its cluster, with its own account.
    found: StdMutex<HashMap<String, Found>>,
    /// By address.
    servers: StdMutex<HashMap<String, Arc<Server>>>,
}

type Found = (Arc<Cluster>, Arc<Server>);

/// What all sites at one API server share, whatever their accounts there.
#[derive(Debug)]
struct Server {
    /// Deliveries into one Secret wait for each other here, instead of at the server, by conflict.
    turns: Vec<Mutex<()>>,
    /// It asked whomever of us to leave it alone until then.
    quiet: StdMutex<Option<Instant>>,
}

impl Default for Server {
    fn default() -> Self {
        Self { turns: (0..64).map(|_| Mutex::new(())).collect(), quiet: StdMutex::default() }
    }
}

impl Clusters {
    /// Deliver.
    ///
    /// # Errors
    /// [`Undelivered`]
    pub async fn deliver(
        &self,
        site: &Site,
        kubernetes: &Kubernetes,
        threads: &Threads,
        parcel: &Parcel,
    ) -> Result<Delivered, Undelivered> {
        let bytes = parcel.bytes(site)?;
        let value = Zeroizing::new(STANDARD.encode(&*bytes));
        let (cluster, server) = self.of(site, kubernetes, threads).await?;
        let end = async {
            let place = Place::of(site, kubernetes, &cluster, &parcel.id)?;
            let _turn = server.turn(&place).await?;
            place.put(&cluster, &value, parcel.generation).await
        };
        self.judged(site, &server, end.await)
    }

    /// Take a credential's keys away, unless something newer than `generation` is there.
    ///
    /// # Errors
    /// [`Undelivered`]
    pub async fn withdraw(
        &self,
        site: &Site,
        kubernetes: &Kubernetes,
        threads: &Threads,
        id: &CredentialId,
        generation: u64,
    ) -> Result<Delivered, Undelivered> {
        let (cluster, server) = self.of(site, kubernetes, threads).await?;
        let end = async {
            let place = Place::of(site, kubernetes, &cluster, id)?;
            let _turn = server.turn(&place).await?;
            place.clear(&cluster, generation).await
        };
        self.judged(site, &server, end.await)
    }

    async fn of(&self, site: &Site, kubernetes: &Kubernetes, threads: &Threads) -> Result<Found, Undelivered> {
        let known = self.found.lock().unwrap_or_else(PoisonError::into_inner).get(&site.name).cloned();
        if let Some(found) = known.as_ref().filter(|(cluster, _)| cluster.is_fresh()) {
            return Ok(found.clone());
        }
        let (ca_file, its) = (site.ca_file.clone(), kubernetes.clone());
        let file = kubernetes.kubeconfig.as_ref().map(|path| path.display().to_string());
        let what = file.unwrap_or_else(|| "the pod's service account".into());
        let end = tokio::time::Instant::now() + site.timeout;
        let looked = threads.run(what, end, move || Cluster::find(ca_file.as_ref(), &its)).await;
        let cluster = match (looked, known) {
            (Ok(cluster), _) => Arc::new(cluster),
            // What was read last may be good for a while; if it is not, the server says so, and it is forgotten.
            (Err(_), Some(found)) => return Ok(found),
            (Err(error), None) => return Err(error),
        };
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let server = Arc::clone(servers.entry(cluster.server.clone()).or_default());
        let found = (cluster, server);
        self.found.lock().unwrap_or_else(PoisonError::into_inner).insert(site.name.clone(), found.clone());
        Ok(found)
    }

    /// A cluster that refuses us, or is not there, is looked for again: its configuration may have been replaced.
    fn judged(
        &self,
        site: &Site,
        server: &Server,
        end: Result<Delivered, Undelivered>,
    ) -> Result<Delivered, Undelivered> {
        match &end {
            Err(Undelivered { kind: Kind::SiteAuth | Kind::SiteUnreachable, .. }) => {
                self.found.lock().unwrap_or_else(PoisonError::into_inner).remove(&site.name);
            }
            Err(Undelivered { kind: Kind::RateLimited, retry_after: Some(wait), .. }) => server.leave_alone(*wait),
            _ => {}
        }
        end
    }
}

impl Server {
    /// For whatever goes into this Secret, unless nothing may be asked just now.
    async fn turn(&self, place: &Place) -> Result<Option<tokio::sync::MutexGuard<'_, ()>>, Undelivered> {
        let mut hasher = DefaultHasher::new();
        (&place.namespace, &place.name).hash(&mut hasher);
        let count = self.turns.len().max(1) as u64;
        let index = usize::try_from(hasher.finish() % count).unwrap_or_default();
        let turn = match self.turns.get(index) {
            Some(turn) => Some(turn.lock().await),
            None => None,
        };
        let quiet = *self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        match quiet.map(|until| until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero()) {
            Some(left) => {
                let words = "the API server limits our rate, and asked another delivery to wait";
                Err(Undelivered::new(Kind::RateLimited, words).wait(Some(left)))
            }
            None => Ok(turn),
        }
    }

    fn leave_alone(&self, wait: Duration) {
        let mut quiet = self.quiet.lock().unwrap_or_else(PoisonError::into_inner);
        *quiet = (*quiet).max(Instant::now().checked_add(wait));
    }
}

/// A credential's place in a Secret.
#[derive(Debug)]
struct Place {
    namespace: String,
    name: String,
    /// Keys, each with its annotation.
    keys: BTreeMap<String, String>,
    manager: String,
}

/// What we look at in a Secret.
#[derive(Debug, Deserialize)]
struct Secret {
    metadata: Meta,
    #[serde(default)]
    data: Option<BTreeMap<String, Zeroizing<String>>>,
    #[serde(default)]
    immutable: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    uid: String,
    resource_version: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

/// How an attempt to write ended.
enum Tried {
    Done(Secret),
    /// It changed since it was read.
    Moved,
    /// Somebody else manages a key of ours; or it changed, and this is said first.
    Owned(String),
}

impl Place {
    fn of(site: &Site, kubernetes: &Kubernetes, cluster: &Cluster, id: &CredentialId) -> Result<Self, Undelivered> {
        let namespace = match &kubernetes.namespace {
            Some(template) => name::directory(template, id)?,
            None => cluster.namespace.clone(),
        };
        let name = name::directory(&kubernetes.secret_name, id)?;
        let unfit = |what: String| Undelivered::new(Kind::SiteName, what);
        for (key, name, most) in [("namespace", &namespace, 63), ("secret_name", &name, 253)] {
            let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (b == b'.' && most > 63);
            let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            if !name.bytes().all(good) || !name.starts_with(ends) || !name.ends_with(ends) || name.len() > most {
                return Err(unfit(format!(
                    "{name:?} is no name there (lower-case letters, digits and - only); set `{key}` of the site"
                )));
            }
        }
        let mut keys = BTreeMap::new();
        for key in site.file_name.names(id, &site.targets)? {
            if !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
                return Err(unfit(format!(
                    "{key:?} is no key of a Secret (letters, digits and - _ . only); set `file_name` of the site"
                )));
            }
            let annotation = format!("evercred/{}", short(&key, 63));
            keys.insert(key, annotation);
        }
        let manager = format!("{OURS}{}", short(&format!("{}:{}/{}", site.name, id.user, id.base()), 110));
        Ok(Self { namespace, name, keys, manager })
    }

    async fn put(
        &self,
        cluster: &Cluster,
        value: &Zeroizing<String>,
        generation: u64,
    ) -> Result<Delivered, Undelivered> {
        for _ in 0..TRIES {
            let there = match self.get(cluster).await? {
                Some(there) => there,
                None => match self.create(cluster).await? {
                    Some(made) => made,
                    None => continue,
                },
            };
            if let Some(have) = self.newest(&there).filter(|have| *have > generation) {
                return Ok(Delivered::Superseded { have });
            }
            let data = there.data.as_ref();
            if self.keys.keys().all(|key| data.and_then(|data| data.get(key)).is_some_and(|held| *held == *value)) {
                return Ok(Delivered::AlreadyThere);
            }
            self.may_change(&there)?;
            let number = generation.to_string();
            let annotations: BTreeMap<&str, &str> =
                self.keys.values().map(|annotation| (annotation.as_str(), number.as_str())).collect();
            let data: BTreeMap<&str, &str> = self.keys.keys().map(|key| (key.as_str(), value.as_str())).collect();
            match self.apply(cluster, &there, json!(annotations), json!(data)).await? {
                Tried::Done(_) => return Ok(Delivered::Written),
                Tried::Moved => {}
                Tried::Owned(owner) => {
                    let now = self.get(cluster).await?.map(|now| now.metadata.resource_version);
                    if now.as_ref() == Some(&there.metadata.resource_version) {
                        return Err(self.owned(&owner));
                    }
                }
            }
        }
        Err(self.restless())
    }

    async fn clear(&self, cluster: &Cluster, generation: u64) -> Result<Delivered, Undelivered> {
        for _ in 0..TRIES {
            let Some(there) = self.get(cluster).await? else { return Ok(Delivered::AlreadyThere) };
            if let Some(have) = self.newest(&there).filter(|have| *have > generation) {
                return Ok(Delivered::Superseded { have });
            }
            self.may_change(&there)?;
            let Tried::Done(left) = self.apply(cluster, &there, json!({}), json!({})).await? else { continue };
            let ours =
                left.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL.0)).is_some_and(|v| v == LABEL.1);
            if ours && left.data.as_ref().is_none_or(BTreeMap::is_empty) {
                let only = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions":
                    {"uid": left.metadata.uid, "resourceVersion": left.metadata.resource_version}});
                // The keys are gone, which is what counts: an empty Secret may stay where we may not delete.
                self.ask(cluster, Method::DELETE, "", Some(("application/json", &only))).await?;
            }
            return Ok(Delivered::Written);
        }
        Err(self.restless())
    }

    fn newest(&self, there: &Secret) -> Option<u64> {
        let annotations = there.metadata.annotations.as_ref()?;
        self.keys.values().filter_map(|annotation| annotations.get(annotation)?.parse().ok()).max()
    }

    fn may_change(&self, there: &Secret) -> Result<(), Undelivered> {
        if there.immutable != Some(true) {
            return Ok(());
        }
        Err(self.denied("is immutable; delete it there, and it is made anew"))
    }

    fn denied(&self, what: &str) -> Undelivered {
        Undelivered::new(Kind::SiteDenied, format!("Secret {}/{} {what}", self.namespace, self.name))
    }

    fn owned(&self, owner: &str) -> Undelivered {
        let keys = self.keys.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        self.denied(&format!(
            "has {keys} from {owner:?}; delete that key or the Secret there, or set another `file_name`"
        ))
    }

    fn restless(&self) -> Undelivered {
        let text = format!("Secret {}/{} changes faster than it can be written", self.namespace, self.name);
        Undelivered::new(Kind::SiteError, text)
    }

    async fn get(&self, cluster: &Cluster) -> Result<Option<Secret>, Undelivered> {
        let answer = self.ask(cluster, Method::GET, "", None).await?;
        if answer.status == 404 {
            return Ok(None);
        }
        self.secret(&answer).map(Some)
    }

    /// Make it empty; `None`: somebody else was faster.
    async fn create(&self, cluster: &Cluster) -> Result<Option<Secret>, Undelivered> {
        let body = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": self.name, "labels": {LABEL.0: LABEL.1}}});
        let path = format!("/api/v1/namespaces/{}/secrets?fieldManager=evercred", self.namespace);
        let answer = cluster.ask(Method::POST, &path, Some(("application/json", bytes(&body)))).await?;
        if answer.status == 409 {
            return Ok(None);
        }
        self.secret(&answer).map(Some)
    }

    /// Say what this credential has in the Secret as it was read.
    async fn apply(
        &self,
        cluster: &Cluster,
        there: &Secret,
        annotations: Value,
        data: Value,
    ) -> Result<Tried, Undelivered> {
        let body = json!({"apiVersion": "v1", "kind": "Secret", "data": data, "metadata": {
            "name": self.name, "namespace": self.namespace, "uid": there.metadata.uid,
            "resourceVersion": there.metadata.resource_version, "annotations": annotations}});
        let query =
            form_urlencoded::Serializer::new("?".to_owned()).append_pair("fieldManager", &self.manager).finish();
        let kind = "application/apply-patch+yaml";
        let answer = self.ask(cluster, Method::PATCH, &query, Some((kind, &body))).await?;
        if answer.status != 409 {
            return self.secret(&answer).map(Tried::Done);
        }
        let owners = owners(&answer);
        match owners.iter().find(|owner| !owner.starts_with(OURS)) {
            Some(owner) => Ok(Tried::Owned(owner.clone())),
            None if owners.is_empty() => Ok(Tried::Moved),
            // Ours, under a former name of the site or from another access point: the generation has decided.
            None => {
                let answer =
                    self.ask(cluster, Method::PATCH, &format!("{query}&force=true"), Some((kind, &body))).await?;
                if answer.status == 409 { Ok(Tried::Moved) } else { self.secret(&answer).map(Tried::Done) }
            }
        }
    }

    async fn ask(
        &self,
        cluster: &Cluster,
        method: Method,
        query: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Answer, Undelivered> {
        let path = format!("/api/v1/namespaces/{}/secrets/{}{query}", self.namespace, self.name);
        cluster.ask(method, &path, body.map(|(kind, body)| (kind, bytes(body)))).await
    }

    fn secret(&self, answer: &Answer) -> Result<Secret, Undelivered> {
        if !(200..300).contains(&answer.status) {
            return Err(self.refusal(answer));
        }
        serde_json::from_slice(&answer.body).map_err(|_| {
            Undelivered::new(Kind::SiteError, "the answer is no Secret; is `kubeconfig` about an API server?")
        })
    }

    /// What a Status that is no success means.
    fn refusal(&self, answer: &Answer) -> Undelivered {
        let status: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let words = status.get("message").and_then(Value::as_str).unwrap_or("no words");
        let full = words.contains("exceeded quota") || words.contains("space exceeded");
        let kind = match answer.status {
            _ if full => Kind::SiteFull,
            401 => Kind::SiteAuth,
            403 | 404 | 405 | 409 | 413 | 415 | 422 => Kind::SiteDenied,
            408 | 425 | 429 => Kind::RateLimited,
            _ => Kind::SiteError,
        };
        let advice = match answer.status {
            403 if !full => {
                format!("; let the account get, create, patch and delete Secrets in namespace {}", self.namespace)
            }
            404 => format!("; create namespace {}, or set `namespace` of the site", self.namespace),
            413 | 422 => "; is it too large? then `secret_name` of the site wants {user} in it".to_owned(),
            _ => String::new(),
        };
        // Our advice counts more than the end of long words.
        let words: String = words.chars().take(180).collect();
        Undelivered::new(kind, format!("HTTP {}: {words}{advice}", answer.status)).wait(answer.retry_after)
    }
}

/// Who else manages what we would change (a `Status` with causes, one for each field).
fn owners(answer: &Answer) -> Vec<String> {
    let status: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let causes = status.get("details").and_then(|details| details.get("causes")?.as_array()).cloned();
    let conflict = |cause: &Value| cause.get("reason").and_then(Value::as_str) == Some("FieldManagerConflict");
    let owner = |cause: &Value| cause.get("message")?.as_str()?.split('"').nth(1).map(str::to_owned);
    causes.unwrap_or_default().iter().filter(|cause| conflict(cause)).map(|c| owner(c).unwrap_or_default()).collect()
}

fn bytes(body: &Value) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(body.to_string().into_bytes())
}

/// The text, or its hash where it is too long or does not begin and end with a letter or digit.
fn short(text: &str, most: usize) -> String {
    let ends = |c: char| c.is_ascii_alphanumeric();
    if text.len() <= most && text.starts_with(ends) && text.ends_with(ends) {
        return text.to_owned();
    }
    let hash = Sha256::digest(text).iter().take(20).fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    format!("sha256-{hash}")
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        config::{site_settings::SiteKind, tests::sites},
        core::{id::UserName, secret::KeyText},
    };

    const BUSY: &str = "429 Too Many Requests\r\nRetry-After: 60";

    /// A server that answers everything so, and what it was asked.
    async fn server(status: &'static str) -> (String, Arc<StdMutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<StdMutex<Vec<String>>> = Arc::default();
        let heard = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                heard.lock().unwrap().push(String::from_utf8_lossy(&request[..length]).into_owned());
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (address, asked)
    }

    fn kubeconfig(server: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: \"{server}\"}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
        )
    }

    fn parcel() -> Parcel {
        let id = CredentialId::from_base(UserName::parse("alice").unwrap(), "w").unwrap();
        Parcel { id, generation: 7, expiry: None, content: KeyText::parse("a-token").unwrap() }
    }

    #[tokio::test]
    async fn a_token_in_a_file_is_read_again_and_the_last_one_counts_while_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (address, asked) = server("500 No").await;
        let (config, file) = (dir.path().join("config"), dir.path().join("token"));
        std::fs::write(&config, kubeconfig(&address, &format!("tokenFile: {}", file.display()))).unwrap();
        let text =
            format!("[site.k]\nkind = \"kubernetes\"\nservices = [\"w\"]\nkubeconfig = \"{}\"\n", config.display());
        let sites = sites(&text);
        let SiteKind::Kubernetes(kubernetes) = &sites[0].kind else { panic!("kubernetes") };
        let (clusters, threads) = (Clusters::default(), Threads::default());
        let mut used = Vec::new();
        for (content, a_minute_later) in
            [(Some("one\n"), false), (Some("two\n"), false), (None, true), (Some("three"), true)]
        {
            match content {
                Some(content) => std::fs::write(&file, content).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            if let Some((cluster, _)) = clusters.found.lock().unwrap().get_mut("k").filter(|_| a_minute_later) {
                Arc::get_mut(cluster).unwrap().age();
            }
            let error = clusters.deliver(&sites[0], kubernetes, &threads, &parcel()).await.unwrap_err();
            assert_eq!(error.kind, Kind::SiteError, "{error}");
            let request = asked.lock().unwrap().pop().unwrap().to_lowercase();
            used.push(request.split("bearer ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned());
        }
        assert_eq!(used, ["one", "one", "one", "three"]);
    }

    #[tokio::test]
    async fn sites_at_one_server_wait_together_and_those_at_another_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().display();
        let (one, asked_one) = server(BUSY).await;
        let (two, asked_two) = server(BUSY).await;
        let text: String = [("a", &one), ("b", &one), ("c", &two)]
            .map(|(name, server)| {
                let config = kubeconfig(server, &format!("token: {name}"));
                std::fs::write(dir.path().join(name), config).unwrap();
                format!("[site.{name}]\nkind = \"kubernetes\"\nservices = [\"w\"]\nkubeconfig = \"{home}/{name}\"\n")
            })
            .concat();
        let clusters = Clusters::default();
        for site in sites(&text) {
            let SiteKind::Kubernetes(kubernetes) = &site.kind else { panic!("kubernetes") };
            let error = clusters.deliver(&site, kubernetes, &Threads::default(), &parcel()).await.unwrap_err();
            assert_eq!(error.kind, Kind::RateLimited, "{error}");
            assert!(error.retry_after.is_some_and(|wait| wait > Duration::from_secs(30)), "{error:?}");
        }
        assert_eq!((asked_one.lock().unwrap().len(), asked_two.lock().unwrap().len()), (1, 1));
    }

    #[test]
    fn a_long_or_odd_key_is_annotated_by_its_hash() {
        assert_eq!(short("alice_grid", 63), "alice_grid");
        assert_eq!(short("alice_", 63).len(), 47);
        assert_eq!(short(&"x".repeat(64), 63).len(), 47);
        assert_ne!(short(&"x".repeat(64), 63), short(&"x".repeat(65), 63));
    }

    #[test]
    fn a_conflict_with_other_managers_is_told_from_a_secret_that_changed() {
        let answer = |text: &str| Answer { status: 409, retry_after: None, body: Zeroizing::new(text.into()) };
        let conflict = r#"{"kind":"Status","reason":"Conflict","details":{"causes":[{"reason":"FieldManagerConflict",
            "message":"conflict with \"kubectl-edit\" using v1","field":".data.alice_grid"}]}}"#;
        assert_eq!(owners(&answer(conflict)), ["kubectl-edit"]);
        assert!(owners(&answer(r#"{"kind":"Status","reason":"Conflict","details":{"name":"x"}}"#)).is_empty());
        assert!(owners(&answer("<html>")).is_empty());
    }
}
