//! The Kubernetes cluster of a site: found by kube's own rules, asked through its client.
//!
//! **Where it is.** `kubeconfig` of the site; without it `.kube/config` in the home of `replicate_user`, and without
//! that the service account of the pod that we run in. The replicator has an empty environment, so `KUBECONFIG` does
//! not count: where tokens go is said by the configuration alone. The file is read as `replicate_user`, and again
//! when the server refuses us or is not reached, so that one that was replaced counts; a token in a file of its own
//! (`tokenFile`) once a minute. Landlock lets the replicator
//! read the directories of that file and of those that it names; give them a directory of their own.
//!
//! **What is refused in it.** `exec` and `auth-provider`: they start programs, in the one process that holds
//! everybody's access tokens, from a file that is not evercred's configuration, and the sandbox would have to be opened
//! for them. A service account's token (`tokenFile`), or a client certificate, does without. Likewise
//! `insecure-skip-tls-verify`, `proxy-url`, and `http://` beyond loopback: tokens would go to whoever answers.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{Method, Request, header};
use kube::{
    Client, Config,
    client::{Body, RustlsTlsError},
    config::{AuthInfo, Kubeconfig, KubeconfigError, LoadDataError},
};
use nix::unistd::{User, geteuid};
use zeroize::Zeroizing;

use super::web::{self, Answer};
use crate::{
    config::{ca_file::CaFile, site_settings::Kubernetes},
    core::delivery::Undelivered,
    courier::sandbox::Readable,
    error::Kind,
};

/// Where a pod finds its service account.
const POD: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// A Secret is at most 1 MiB; its base64 and what belongs to it are more.
const MAX_BODY: usize = 3 << 20;
/// A token in a file is read again after that: kubelets replace it.
const TOKEN_FILE: Duration = Duration::from_secs(60);
/// Of one request; a delivery needs two or three.
const REQUEST: Duration = Duration::from_secs(30);

/// A cluster that can be asked.
pub struct Cluster {
    client: Client,
    /// The namespace that its configuration names.
    pub namespace: String,
    /// Its address.
    pub server: String,
    fresh_until: Option<Instant>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Where a site's cluster is looked for if its configuration does not say: in the home of whoever we are.
#[must_use]
pub fn usual_file() -> Option<PathBuf> {
    User::from_uid(geteuid()).ok().flatten().map(|user| user.dir.join(".kube/config"))
}

/// Fix which file a site's cluster is found in, and say what must stay readable for it. `given`: its configuration says
/// so. Called after the change of uid, before files are closed, on a thread: these files may hang.
#[must_use]
pub fn settle(file: Option<PathBuf>, given: bool) -> (Option<PathBuf>, Vec<Readable>) {
    let file = file.filter(|path| given || path.exists());
    let Some(path) = &file else { return (None, Readable::open(Path::new(POD)).into_iter().collect()) };
    let mut files = vec![path.clone()];
    // What cannot be read is told with the first delivery.
    if let Ok(read) = Kubeconfig::read_from(path) {
        let clusters = read.clusters.into_iter().filter_map(|one| one.cluster?.certificate_authority);
        let users = read.auth_infos.into_iter().filter_map(|one| one.auth_info);
        let users = users.flat_map(|one| [one.token_file, one.client_certificate, one.client_key]).flatten();
        files.extend(clusters.chain(users).map(PathBuf::from));
    }
    // Files are replaced by rename: a rule for the file itself would hold for the old one alone.
    let readable = files.iter().filter_map(|file| file.parent()).filter_map(Readable::open).collect();
    (file, readable)
}

impl Cluster {
    /// Find it, and make a client for it. Reads all files that this takes, which may hang. Needs a runtime around it.
    ///
    /// # Errors
    /// [`Kind::SiteAuth`]: the configuration cannot be read or used; says what to do.
    pub fn find(ca_file: Option<&CaFile>, kubernetes: &Kubernetes) -> Result<Self, Undelivered> {
        let wrong = |what: &dyn std::fmt::Display| Undelivered::new(Kind::SiteAuth, what.to_string());
        let mut config = match &kubernetes.kubeconfig {
            Some(path) => read(path, kubernetes.context.as_deref())
                .map_err(|what| wrong(&format!("{}: {what}", path.display())))?,
            None => Config::incluster_dns().map_err(|e| {
                wrong(&format!("no kubeconfig, and no service account of a pod ({e}); set `kubeconfig` of the site"))
            })?,
        };
        if let Some(file) = ca_file {
            let more = file.certificates().map_err(|what| wrong(&what))?;
            config.root_cert.get_or_insert_default().extend(more.iter().map(|one| one.to_vec()));
        }
        let fresh_until = read_token(&mut config.auth_info).map_err(|what| wrong(&what))?;
        config.default_retry = false;
        config.connect_timeout = Some(Duration::from_secs(10));
        config.read_timeout = Some(REQUEST);
        config.write_timeout = Some(REQUEST);
        config.reset_reader_on_write = true;
        let namespace = config.default_namespace.trim().to_owned();
        let server = config.cluster_url.to_string().trim_end_matches('/').to_lowercase();
        let client = Client::try_from(config).map_err(|e| wrong(&no_client(&e)))?;
        Ok(Self { client, namespace, server, fresh_until })
    }

    /// Whether it is as its files say; where the token is in a file of its own that is known for a minute at a time.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.fresh_until.is_none_or(|until| Instant::now() < until)
    }

    /// As a minute later.
    #[cfg(test)]
    pub fn age(&mut self) {
        self.fresh_until = self.fresh_until.map(|_| Instant::now());
    }

    /// Ask. `body`: content type and bytes.
    ///
    /// # Errors
    /// It was not reached, did not answer in time, or answers more than we read; or it refuses what everybody may
    /// ask, too: one that has just started knows nobody's roles yet, and a refusal by it means nothing.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Zeroizing<Vec<u8>>)>,
    ) -> Result<Answer, Undelivered> {
        let answer = self.once(method, path, body).await?;
        if answer.status == 403 {
            let ready = self.once(Method::GET, "/readyz", None).await?.status;
            if ready != 200 {
                let text = format!("the API server is not ready yet (403, and HTTP {ready} at /readyz)");
                return Err(Undelivered::new(Kind::SiteUnreachable, text));
            }
        }
        Ok(answer)
    }

    async fn once(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Zeroizing<Vec<u8>>)>,
    ) -> Result<Answer, Undelivered> {
        let unreadable = |e: &dyn std::error::Error| Undelivered::new(Kind::SiteError, deepest(e));
        let mut request = Request::builder().method(method).uri(path).header(header::ACCEPT, "application/json");
        let mut bytes = Vec::new();
        if let Some((kind, mut body)) = body {
            request = request.header(header::CONTENT_TYPE, kind);
            bytes = std::mem::take(&mut *body);
        }
        let request = request.body(Body::from(bytes)).map_err(|e| unreadable(&e))?;
        let whole = async {
            let response = self.client.send(request).await.map_err(|e| failure(&e))?;
            let status = response.status().as_u16();
            let wish = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let retry_after = web::wish(wish.unwrap_or_default());
            let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(|e| {
                let long = e.is::<LengthLimitError>();
                if long {
                    Undelivered::new(Kind::SiteError, "the answer is larger than 3 MiB")
                } else {
                    Undelivered::new(Kind::SiteUnreachable, deepest(&*e))
                }
            })?;
            Ok(Answer { status, retry_after, body: Zeroizing::new(body.to_bytes().to_vec()) })
        };
        match tokio::time::timeout(REQUEST, whole).await {
            Ok(answer) => answer,
            Err(_) => Err(Undelivered::new(Kind::SiteTimeout, "the API server does not answer")),
        }
    }
}

fn read(path: &Path, context: Option<&str>) -> Result<Config, String> {
    let mut read = Kubeconfig::read_from(path).map_err(|e| unusable(&e))?;
    if let Some(context) = context {
        read.current_context = Some(context.to_owned());
    }
    let config = Config::try_from(read).map_err(|e| unusable(&e))?;
    if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
        return Err(
            "its user needs a program (`exec`, `auth-provider`), which is not started here; give it a service \
                    account's token (`tokenFile`) or a client certificate"
                .into(),
        );
    }
    if config.accept_invalid_certs {
        return Err("insecure-skip-tls-verify would send tokens to whoever answers; set certificate-authority".into());
    }
    if config.proxy_url.is_some() {
        return Err("proxy-url is not supported; name a server that is reached without a proxy".into());
    }
    let host = config.cluster_url.host().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if config.cluster_url.scheme_str() != Some("https") && !loopback {
        return Err(format!("the server {} is not reached by https", config.cluster_url));
    }
    Ok(config)
}

/// Take the token out of its file, if that is how we authenticate; says until when it counts. The client would read the
/// file itself, in the middle of a request, on the one thread that must not hang.
fn read_token(auth: &mut AuthInfo) -> Result<Option<Instant>, String> {
    let password = auth.username.is_some() && auth.password.is_some();
    let Some(file) = auth.token_file.take().filter(|_| auth.token.is_none() && !password) else { return Ok(None) };
    let text = Zeroizing::new(std::fs::read_to_string(&file).map_err(|e| format!("tokenFile {file}: {e}"))?);
    auth.token = Some(text.trim().to_owned().into());
    Ok(Some(Instant::now() + TOKEN_FILE))
}

/// Why a kubeconfig cannot be used, without a word of what is in it but the names of its parts: it holds secrets, and
/// where it is broken anything may stand anywhere.
fn unusable(error: &KubeconfigError) -> String {
    let loaded = |what: &str, error: &LoadDataError| match error {
        LoadDataError::DecodeBase64(_) => format!("{what}-data is no base64"),
        LoadDataError::ReadFile(error, path) => format!("{what} {}: {error}", path.display()),
        LoadDataError::NoBase64DataOrFile => format!("{what} is missing"),
    };
    match error {
        KubeconfigError::CurrentContextNotSet => "no current-context is set; set it, or `context` of the site".into(),
        KubeconfigError::LoadContext(name) => format!("there is no context {name:?}"),
        KubeconfigError::LoadClusterOfContext(name) => format!("there is no cluster {name:?}"),
        KubeconfigError::ReadConfig(error, _) => error.to_string(),
        KubeconfigError::Parse(error) => match error.location() {
            Some(at) => format!("line {} is no part of a kubeconfig; `kubectl config view` checks it", at.line()),
            None => "it is no kubeconfig; `kubectl config view` checks it".into(),
        },
        KubeconfigError::MissingClusterUrl => "the cluster has no server".into(),
        KubeconfigError::ParseClusterUrl(_) => "the cluster's server is no URL".into(),
        KubeconfigError::ParseProxyUrl(_) => "the cluster's proxy-url is no URL".into(),
        KubeconfigError::LoadCertificateAuthority(error) => loaded("certificate-authority", error),
        KubeconfigError::LoadClientCertificate(error) => loaded("client-certificate", error),
        KubeconfigError::LoadClientKey(error) => loaded("client-key", error),
        KubeconfigError::ParseCertificates(_) => "certificate-authority is no PEM".into(),
        _ => "it cannot be used".into(),
    }
}

/// The same of what the client is made from.
fn no_client(error: &kube::Error) -> String {
    match error {
        kube::Error::InferKubeconfig(error) => unusable(error),
        kube::Error::RustlsTls(RustlsTlsError::NoValidNativeRootCA(error)) => error.to_string(),
        kube::Error::RustlsTls(_) => {
            "its client certificate, the key of that, or its certificate-authority is no PEM that can be used".into()
        }
        other => deepest(other),
    }
}

fn failure(error: &kube::Error) -> Undelivered {
    let words = deepest(error);
    let kind = match error {
        kube::Error::Auth(_) => Kind::SiteAuth,
        _ if words.contains("timed out") || words.contains("deadline") => Kind::SiteTimeout,
        _ => Kind::SiteUnreachable,
    };
    Undelivered::new(kind, words)
}

/// The innermost cause, which says most.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::site_settings::SiteKind;

    fn refused(server: &str, cluster: &str, user: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: \"{server}\"{cluster}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
        );
        std::fs::write(&path, text).unwrap();
        read(&path, None).map_or_else(|what| what, |_| "accepted".into())
    }

    #[test]
    fn a_kubeconfig_that_starts_programs_or_trusts_anybody_is_refused_with_what_to_do() {
        let https = "https://k.example.org";
        assert_eq!(refused(https, "", "token: x"), "accepted");
        assert_eq!(refused("http://127.0.0.1:8080", "", ""), "accepted");
        assert!(refused("http://k.example.org", "", "").contains("https"));
        assert!(refused(https, "", "exec: {command: /bin/x, apiVersion: v1}").contains("tokenFile"));
        assert!(refused(https, "", "auth-provider: {name: gcp}").contains("tokenFile"));
        assert!(refused(https, ", insecure-skip-tls-verify: true", "").contains("certificate-authority"));
        assert!(refused(https, ", proxy-url: \"http://p:3128\"", "").contains("proxy"));
    }

    #[test]
    fn what_is_wrong_with_a_kubeconfig_is_told_without_what_is_in_it() {
        const CANARY: &str = "canary-7c2e41";
        let https = "https://k.example.org";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let mut told = vec![
            refused(https, &format!(", certificate-authority-data: \"{CANARY}!\""), ""),
            refused(&format!("https://{CANARY} {CANARY}"), "", ""),
            refused(https, &format!(", proxy-url: \"http://u:{CANARY}@p q\""), ""),
            refused(https, "", &format!("exec: {CANARY}")),
            refused(https, "", &format!("token: {{x: {CANARY}}}")),
        ];
        for broken in [
            format!("{CANARY}\n"),
            format!("users: {CANARY}\n"),
            format!("users:\n- name: u\n  user:\n    token: \"{CANARY}\n"),
            format!("users:\n- name: u\n  user:\n    token: *{CANARY}\n"),
            format!("users:\n- name: u\n  user: [{CANARY}]\n\tx: {CANARY}\n"),
            format!("{CANARY}: 1\n{CANARY}: 1\n: : :\n"),
        ] {
            std::fs::write(&path, broken).unwrap();
            told.push(read(&path, None).unwrap_err());
        }
        for words in told {
            assert!(!words.contains("canary") && words.len() > 10, "{words}");
            assert_ne!(words, "accepted");
        }
    }

    #[tokio::test]
    async fn a_client_certificate_that_is_none_is_not_cited() {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let site =
            format!("[site.k]\nkind = \"kubernetes\"\nservices = [\"w\"]\nkubeconfig = \"{}\"\n", path.display());
        let sites = crate::config::tests::sites(&site);
        let SiteKind::Kubernetes(kubernetes) = &sites[0].kind else { panic!("kubernetes") };
        let broken = STANDARD.encode("-----BEGIN canary-7c2e41\ncanary-7c2e41\n");
        for data in ["canary-7c2e41!", &broken] {
            let text = format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
                 clusters: [{{name: k, cluster: {{server: \"https://k.example.org\"}}}}]\n\
                 users: [{{name: u, user: {{client-certificate-data: \"{data}\", client-key-data: \"{data}\"}}}}]\n"
            );
            std::fs::write(&path, text).unwrap();
            let words = Cluster::find(None, kubernetes).unwrap_err().detail;
            assert!(words.contains("client") && !words.contains("canary"), "{words}");
        }
    }

    #[test]
    fn a_context_or_file_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&dir.path().join("none"), None).is_err());
        let path = dir.path().join("config");
        std::fs::write(&path, "apiVersion: v1\nkind: Config\ncontexts: []\nclusters: []\nusers: []\n").unwrap();
        assert!(read(&path, Some("prod")).unwrap_err().contains("prod"));
    }
}
