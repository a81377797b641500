//! Replication into Secrets of a real API server: kube-apiserver and etcd, and Debian's kubectl to look with and to be
//! somebody else (`tests/kubernetes/setup` says where they come from). Who wrote what is read from the server's audit
//! log. Between the credmon and the server stands a gate that passes requests on, and says 429 or holds one back when
//! it is told to. Skipped, and said so, without the programs (`tests/run kubernetes` makes them).

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    body::Bytes,
    extract::{Request, State},
    http::{HeaderMap, Method, Response, StatusCode},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use evercred::demo::issuer::Rotation;
use serde_json::Value;
use tempfile::TempDir;

use self::site::{Site, of_stage};

/// etcd and API server.
struct Server {
    home: TempDir,
    bin: PathBuf,
    port: u16,
    etcd: Mutex<Child>,
    api: Mutex<Option<Child>>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn programs() -> Option<PathBuf> {
    // As tests/needs.sh has it for root.
    let cache = std::env::var_os("EVERCRED_TEST_CACHE");
    let cache = cache.map_or_else(|| PathBuf::from("/var/cache/evercred-tests"), PathBuf::from);
    let bin = cache.join("kubernetes");
    let ready = || nix::unistd::geteuid().is_root() && bin.join("ready").exists();
    of_stage("kubernetes", "needs root and kube-apiserver", || ready().then(|| bin.clone()))
}

impl Server {
    fn start() -> Option<Self> {
        let bin = programs()?;
        let home = TempDir::with_prefix("evercred-kubernetes-").unwrap();
        let (client, peer) = (free_port(), free_port());
        let url = |port| format!("http://127.0.0.1:{port}");
        let etcd = Command::new(bin.join("etcd"))
            .arg("--data-dir")
            .arg(home.path().join("etcd"))
            .args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)])
            .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
            .args(["--initial-cluster", &format!("default={}", url(peer)), "--logger", "zap"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(home.path().join("etcd.log")).unwrap())
            .spawn()
            .unwrap();
        let path = |name: &str| home.path().join(name);
        let key = rcgen::KeyPair::generate().unwrap();
        fs::write(path("sa.key"), key.serialize_pem()).unwrap();
        fs::write(path("sa.pub"), key.public_key_pem()).unwrap();
        fs::write(path("tokens.csv"), "admin-t,admin,1,system:masters\ncanary-5d1f07,evercred,2\nother-t,other,3\n")
            .unwrap();
        let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
                      - {level: Metadata, resources: [{group: \"\", resources: [secrets]}]}\n- {level: None}\n";
        fs::write(path("audit.yaml"), policy).unwrap();
        fs::write(path("etcd.url"), url(client)).unwrap();
        let server = Self { home, bin, port: free_port(), etcd: Mutex::new(etcd), api: Mutex::new(None) };
        server.up();
        Some(server)
    }

    /// Start the API server, and wait until it is ready.
    fn up(&self) {
        let path = |name: &str| self.home.path().join(name).display().to_string();
        let options = [
            format!("--etcd-servers={}", fs::read_to_string(path("etcd.url")).unwrap()),
            format!("--secure-port={}", self.port),
            "--bind-address=127.0.0.1".into(),
            "--service-cluster-ip-range=10.0.0.0/24".into(),
            format!("--cert-dir={}", path("certs")),
            format!("--token-auth-file={}", path("tokens.csv")),
            format!("--service-account-key-file={}", path("sa.pub")),
            format!("--service-account-signing-key-file={}", path("sa.key")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            "--disable-admission-plugins=ServiceAccount".into(),
            "--authorization-mode=RBAC".into(),
            "--anonymous-auth=false".into(),
            format!("--audit-policy-file={}", path("audit.yaml")),
            format!("--audit-log-path={}", path("audit.log")),
        ];
        let api = Command::new(self.bin.join("kube-apiserver"))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::OpenOptions::new().create(true).append(true).open(path("api.log")).unwrap())
            .spawn()
            .unwrap();
        *self.api.lock().unwrap() = Some(api);
        let url = format!("https://127.0.0.1:{}", self.port);
        let end = Instant::now() + Duration::from_secs(180);
        loop {
            if Path::new(&path("certs/apiserver.crt")).exists() {
                fs::write(path("admin"), kubeconfig(&url, &path("certs/apiserver.crt"), "token: admin-t", "default"))
                    .unwrap();
                if self.kubectl(&["get", "--raw", "/readyz"]).is_ok() {
                    return;
                }
            }
            let ended = self.api.lock().unwrap().as_mut().unwrap().try_wait().unwrap();
            let log = || fs::read_to_string(path("api.log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < end, "no API server: {ended:?}\n{}", log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn down(&self) {
        if let Some(mut api) = self.api.lock().unwrap().take() {
            api.kill().ok();
            api.wait().ok();
        }
    }

    fn kubectl(&self, words: &[&str]) -> Result<String, String> {
        let mut command = Command::new(self.bin.join("kubectl"));
        command.arg("--kubeconfig").arg(self.home.path().join("admin")).arg("--request-timeout=20s");
        command.env_clear().env("HOME", self.home.path());
        let output = command.args(words).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// A namespace in which evercred may do that with Secrets.
    fn namespace(&self, name: &str, verbs: &str) {
        self.kubectl(&["create", "namespace", name]).unwrap();
        let verbs = format!("--verb={verbs}");
        self.kubectl(&["-n", name, "create", "role", "evercred", &verbs, "--resource=secrets"]).unwrap();
        self.kubectl(&["-n", name, "create", "rolebinding", "evercred", "--role=evercred", "--user=evercred"]).unwrap();
    }

    fn secret(&self, namespace: &str, name: &str) -> Option<Value> {
        let text = self.kubectl(&["-n", namespace, "get", "secret", name, "-o", "json"]).ok()?;
        Some(serde_json::from_str(&text).unwrap())
    }

    /// The keys of a Secret and what they hold.
    fn keys(&self, namespace: &str, name: &str) -> BTreeMap<String, String> {
        let secret = self.secret(namespace, name).unwrap_or_default();
        let data = secret.get("data").and_then(Value::as_object).cloned().unwrap_or_default();
        let text = |value: &Value| String::from_utf8(STANDARD.decode(value.as_str().unwrap()).unwrap()).unwrap();
        data.iter().map(|(key, value)| (key.clone(), text(value))).collect()
    }

    /// Successful writes of evercred's in a namespace, by the audit log.
    fn writes(&self, namespace: &str) -> Vec<String> {
        let log = fs::read_to_string(self.home.path().join("audit.log")).unwrap_or_default();
        let text = |value: &Value, pointer: &str| {
            value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ours = lines.filter(|line| {
            text(line, "/user/username") == "evercred"
                && text(line, "/objectRef/namespace") == namespace
                && line.pointer("/responseStatus/code").and_then(Value::as_u64).is_some_and(|code| code < 300)
        });
        ours.map(|line| text(&line, "/verb")).filter(|verb| verb != "get").collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.down();
        let mut etcd = self.etcd.lock().unwrap();
        etcd.kill().ok();
        etcd.wait().ok();
    }
}

/// The server of most tests, ended by the last of them; who comes later starts another.
fn shared() -> Option<Arc<Server>> {
    static SHARED: Mutex<std::sync::Weak<Server>> = Mutex::new(std::sync::Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(server) = shared.upgrade() {
        return Some(server);
    }
    let server = Arc::new(Server::start()?);
    *shared = Arc::downgrade(&server);
    Some(server)
}

fn kubeconfig(url: &str, ca: &str, user: &str, namespace: &str) -> String {
    let ca = if ca.is_empty() { String::new() } else { format!(", certificate-authority: \"{ca}\"") };
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         contexts: [{{name: c, context: {{cluster: k, user: u, namespace: {namespace}}}}}]\n\
         clusters: [{{name: k, cluster: {{server: \"{url}\"{ca}}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\n"
    )
}

/// What stands between credmon and server.
#[derive(Default)]
struct Orders {
    /// So many requests are told to come again in two seconds.
    limit: u32,
    /// The next write waits for as long as this holds.
    hold: bool,
    held: bool,
    limited: Vec<Instant>,
    passed: Vec<Instant>,
}

struct Gate {
    port: u16,
    orders: Arc<Mutex<Orders>>,
    _runtime: tokio::runtime::Runtime,
}

impl Gate {
    fn open(server: &Server) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let orders = Arc::new(Mutex::new(Orders::default()));
        let ca = fs::read(server.home.path().join("certs/apiserver.crt")).unwrap();
        let ca = reqwest::Certificate::from_pem_bundle(&ca).unwrap();
        let client = reqwest::Client::builder().tls_certs_only(ca).build().unwrap();
        let state = (client, format!("https://127.0.0.1:{}", server.port), Arc::clone(&orders));
        let app = axum::Router::new().fallback(pass).with_state(state);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(async move {
            axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), app).await.unwrap();
        });
        Self { port, orders, _runtime: runtime }
    }
}

type Passing = (reqwest::Client, String, Arc<Mutex<Orders>>);

async fn pass(State((client, to, orders)): State<Passing>, request: Request) -> Response<axum::body::Body> {
    let (parts, body) = request.into_parts();
    let body: Bytes = axum::body::to_bytes(body, 4 << 20).await.unwrap();
    let limit = {
        let mut orders = orders.lock().unwrap();
        let limit = orders.limit > 0;
        if limit {
            orders.limit -= 1;
            orders.limited.push(Instant::now());
        } else {
            orders.passed.push(Instant::now());
        }
        limit
    };
    let answer = |status: StatusCode, headers: HeaderMap, body: Vec<u8>| {
        let mut response = Response::new(axum::body::Body::from(body));
        *response.status_mut() = status;
        for name in ["content-type", "retry-after"] {
            if let Some(value) = headers.get(name) {
                response.headers_mut().insert(axum::http::HeaderName::from_static(name), value.clone());
            }
        }
        response
    };
    if limit {
        // As the server's own filter says it.
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "2".parse().unwrap());
        return answer(StatusCode::TOO_MANY_REQUESTS, headers, b"Too many requests, please try again later.".to_vec());
    }
    while parts.method == Method::PATCH && {
        let mut orders = orders.lock().unwrap();
        orders.held |= orders.hold;
        orders.hold
    } {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut request = client.request(parts.method, format!("{to}{}", parts.uri.path_and_query().unwrap()));
    for name in ["authorization", "content-type", "accept"] {
        if let Some(value) = parts.headers.get(name) {
            request = request.header(name, value.clone());
        }
    }
    match request.body(body.to_vec()).send().await {
        Ok(got) => answer(got.status(), got.headers().clone(), got.bytes().await.unwrap().to_vec()),
        Err(_) => answer(StatusCode::BAD_GATEWAY, HeaderMap::new(), Vec::new()),
    }
}

/// A credmon whose one site is that namespace.
fn started(server: &Server, url: &str, namespace: &str, more: &str, users: &[&str]) -> Site {
    let mut site = Site::new(3600, Rotation::Strict);
    let home = site.home.path().to_owned();
    let secrets = home.join("kube");
    fs::create_dir(&secrets).unwrap();
    let ca = secrets.join("ca.crt");
    fs::copy(server.home.path().join("certs/apiserver.crt"), &ca).unwrap();
    let ca = if url.starts_with("https") { ca.display().to_string() } else { String::new() };
    let user = format!("tokenFile: \"{}\"", secrets.join("token").display());
    fs::write(secrets.join("config"), kubeconfig(url, &ca, &user, namespace)).unwrap();
    fs::write(secrets.join("token"), "canary-5d1f07").unwrap();
    let owned = Command::new("chown").args(["-R", "nobody"]).arg(&secrets).status().unwrap();
    assert!(owned.success());
    fs::set_permissions(&secrets, fs::Permissions::from_mode(0o700)).unwrap();
    let daemon = format!(
        "state_directory = \"{0}/state\"\nreplicate_user = \"nobody\"\naudit_log = \"{0}/audit.jsonl\"\n\
         metrics_listen = \"127.0.0.1:0\"",
        home.display()
    );
    let kubernetes = format!(
        "[site.k8s]\nkind = \"kubernetes\"\nservices = [\"grid\"]\nkubeconfig = \"{}\"\n{more}\n",
        secrets.join("config").display()
    );
    site.configure_with(&daemon, "", &kubernetes);
    for user in users {
        site.grid(user);
    }
    site.start();
    site
}

fn direct(server: &Server) -> String {
    format!("https://127.0.0.1:{}", server.port)
}

fn token(site: &Site, user: &str) -> String {
    let value: Value = serde_json::from_slice(&site.file(user, "grid.use").unwrap_or_default()).unwrap_or_default();
    value.get("access_token").and_then(Value::as_str).unwrap_or("none yet").to_owned()
}

fn evercred(site: &Site, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evercred")).args(arguments).arg("--socket").arg(site.socket()).output().unwrap()
}

fn renew(site: &Site, who: &str) {
    let output = evercred(site, &["renew", who]);
    assert!(output.status.success(), "{output:?}");
}

fn current(site: &Site) -> bool {
    evercred(site, &["replicate"]).status.success()
}

fn times(log: &str, word: &str) -> usize {
    log.matches(word).count()
}

#[test]
fn a_token_is_written_once_again_when_it_was_renewed_and_not_when_it_is_there_already() {
    let Some(server) = shared() else { return };
    server.namespace("first", "get,create,patch,delete");
    let site = started(&server, &direct(&server), "first", "", &["alice"]);
    let there = || server.keys("first", "evercred-alice");
    site.wait("the first write", 60, |s| there().get("alice_grid").is_some_and(|held| *held == token(s, "alice")));
    site.wait("confirmed", 30, current);
    assert!(site.log().contains("sandbox=\""), "{}", site.log());
    // Made empty, then filled: two writes, and no more for what is there already.
    assert_eq!(server.writes("first"), ["create", "patch"]);
    let secret = server.secret("first", "evercred-alice").unwrap();
    let generation = secret.pointer("/metadata/annotations/evercred~1alice_grid").and_then(Value::as_str).unwrap();
    assert!(generation.parse::<u64>().unwrap() > 1_700_000_000);
    assert_eq!(secret.get("type").and_then(Value::as_str), Some("Opaque"));
    let told = times(&site.log(), "msg=replicated").max(times(&site.log(), "replicated"));
    assert!(evercred(&site, &["replicate", "--now", "--wait", "20s"]).status.success());
    site.wait("confirmed anew", 30, |s| times(&s.log(), "replicated") > told && current(s));
    assert_eq!(server.writes("first").len(), 2, "nothing changed, nothing is written");
    let before = token(&site, "alice");
    renew(&site, "alice/grid");
    site.wait("the renewed one", 60, |s| there().get("alice_grid").is_some_and(|held| *held == token(s, "alice")));
    assert_ne!(token(&site, "alice"), before);
    site.wait("confirmed", 30, current);
    assert_eq!(server.writes("first"), ["create", "patch", "patch"]);
    assert_eq!(there().len(), 1);
    for secret in [before.as_str(), &token(&site, "alice"), "canary-5d1f07"] {
        assert!(!site.log().contains(secret));
    }
}

#[test]
fn nothing_older_replaces_anything_newer_not_even_by_a_request_that_was_stuck() {
    let Some(server) = shared() else { return };
    server.namespace("order", "get,create,patch,delete");
    let gate = Gate::open(&server);
    let site = started(&server, &format!("http://127.0.0.1:{}", gate.port), "order", "", &["alice"]);
    site.wait("the first write", 60, current);
    // Its patch waits in front of the server, after the Secret was read; somebody else is faster.
    gate.orders.lock().unwrap().hold = true;
    renew(&site, "alice/grid");
    site.wait("stuck", 60, |_| gate.orders.lock().unwrap().held);
    let newer = STANDARD.encode("newer");
    let patch = format!(
        "{{\"metadata\":{{\"annotations\":{{\"evercred/alice_grid\":\"9999999999\"}}}},\"data\":{{\"alice_grid\":\"{newer}\"}}}}"
    );
    server.kubectl(&["-n", "order", "patch", "secret", "evercred-alice", "--type=merge", "-p", &patch]).unwrap();
    gate.orders.lock().unwrap().hold = false;
    site.wait("told", 60, |s| s.log().contains("generation 9999999999 is there"));
    assert_eq!(server.keys("order", "evercred-alice")["alice_grid"], "newer");
    // Which generation of ours was refused last.
    let ours = |s: &Site| {
        let table = String::from_utf8(evercred(s, &["replicate"]).stdout).unwrap();
        table.split("our last one is ").nth(1).and_then(|rest| rest.split(',').next()).map(str::to_owned)
    };
    site.wait("shown", 30, |s| ours(s).is_some());
    let before = ours(&site).unwrap();
    renew(&site, "alice/grid");
    site.wait("refused again", 60, |s| ours(s).is_some_and(|now| now != before));
    assert!(!current(&site), "what we never issued is not what it should have");
    assert_eq!(server.keys("order", "evercred-alice")["alice_grid"], "newer");
}

#[test]
fn a_user_that_is_gone_leaves_no_key_and_what_others_have_there_stays() {
    let Some(server) = shared() else { return };
    server.namespace("gone", "get,create,patch,delete");
    let mut site = started(&server, &direct(&server), "gone", "", &["alice", "bob", "carol"]);
    site.wait("all three", 60, current);
    let key = STANDARD.encode("theirs");
    let patch = format!("{{\"data\":{{\"other\":\"{key}\"}}}}");
    server.kubectl(&["-n", "gone", "patch", "secret", "evercred-bob", "--type=merge", "-p", &patch]).unwrap();
    for user in ["alice", "bob"] {
        fs::remove_dir_all(site.credentials().join(user)).unwrap();
    }
    site.wait("the Secret of alice goes", 90, |_| server.secret("gone", "evercred-alice").is_none());
    site.wait("bob's key goes", 90, |_| server.keys("gone", "evercred-bob").keys().eq(["other"]));
    let annotations = server.secret("gone", "evercred-bob").unwrap();
    assert!(annotations.pointer("/metadata/annotations/evercred~1bob_grid").is_none());
    let audited = |s: &Site, user: &str| {
        let text = fs::read_to_string(s.home.path().join("audit.jsonl")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|l| l["event"] == "withdrawn" && l["user"] == user).collect::<Vec<_>>()
    };
    site.wait("audited", 20, |s| ["alice", "bob"].iter().all(|user| audited(s, user).len() == 1));
    let line = audited(&site, "alice").remove(0);
    assert_eq!((&line["result"], &line["site"], &line["by"]), (&"ok".into(), &"k8s".into(), &"evercred".into()));
    assert_eq!((line["provider"].as_str(), line["issuer"].as_str()), (Some("grid"), Some(site.issuer.url())), "{line}");
    for (series, expected) in [
        ("evercred_withdrawals_total{site=\"k8s\",result=\"ok\"}", 2.0),
        ("evercred_withdrawals_total{site=\"k8s\",result=\"failed\"}", 0.0),
        ("evercred_forgotten_total{provider=\"grid\"}", 2.0),
    ] {
        site.wait(series, 20, |s| s.metric(series) == Some(expected));
    }
    // One that goes while we are not there is missed at the next start.
    site.signal("-TERM");
    site.credmon.take().unwrap().wait().unwrap();
    fs::remove_dir_all(site.credentials().join("carol")).unwrap();
    site.start();
    site.wait("carol's, too", 90, |_| server.secret("gone", "evercred-carol").is_none());
    // And one that comes back is there again.
    site.grid("carol");
    site.wait("back", 90, |s| server.keys("gone", "evercred-carol").get("carol_grid") == Some(&token(s, "carol")));
    assert!(site.log().contains("withdrawn"), "{}", site.log());
}

#[test]
fn what_the_server_refuses_is_told_with_what_to_do_and_delivered_when_it_is_mended() {
    let Some(server) = shared() else { return };
    server.namespace("denied", "get,create");
    let site = started(&server, &direct(&server), "denied", "", &["alice"]);
    site.wait("403, told", 60, |s| s.log().contains("kind=site-denied"));
    let log = site.log();
    assert!(log.contains("cannot patch resource") && log.contains("let the account get, create, patch"), "{log}");
    assert!(!current(&site));
    server.kubectl(&["-n", "denied", "create", "role", "more", "--verb=patch", "--resource=secrets"]).unwrap();
    server.kubectl(&["-n", "denied", "create", "rolebinding", "more", "--role=more", "--user=evercred"]).unwrap();
    let now = || evercred(&site, &["replicate", "--now", "--wait", "20s"]);
    site.wait("mended", 90, |s| now().status.success() && current(s));
    // A token of ours that the server no longer knows, replaced in its file.
    let file = site.home.path().join("kube/token");
    let put = |text: &str| {
        let new = file.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o644)).unwrap();
        fs::rename(&new, &file).unwrap();
    };
    put("unknown-t");
    // kube reads the file again after a minute at most.
    std::thread::sleep(Duration::from_secs(61));
    renew(&site, "alice/grid");
    site.wait("401, told", 60, |s| s.log().contains("kind=site-auth"));
    put("canary-5d1f07");
    let held = || server.keys("denied", "evercred-alice").get("alice_grid").cloned();
    site.wait("with the new token", 90, |s| now().status.success() && held() == Some(token(s, "alice")));
}

#[test]
fn a_namespace_that_is_not_there_and_names_that_do_not_fit_are_told() {
    let Some(server) = shared() else { return };
    server.kubectl(&["create", "clusterrole", "anywhere", "--verb=get,create,patch", "--resource=secrets"]).unwrap();
    server.kubectl(&["create", "clusterrolebinding", "anywhere", "--clusterrole=anywhere", "--user=evercred"]).unwrap();
    let site = started(&server, &direct(&server), "default", "namespace = \"ns-{user}\"", &["alice", "Bob_X"]);
    site.wait("404, told", 60, |s| s.log().contains("create namespace ns-alice"));
    site.wait("the name, told", 60, |s| s.log().contains("kind=site-name"));
    server.kubectl(&["create", "namespace", "ns-alice"]).unwrap();
    evercred(&site, &["replicate", "--now", "alice/grid", "--wait", "20s"]);
    site.wait("there", 60, |s| server.keys("ns-alice", "evercred-alice").get("alice_grid") == Some(&token(s, "alice")));
    server.kubectl(&["delete", "clusterrolebinding", "anywhere"]).unwrap();
}

#[test]
fn an_immutable_secret_and_a_key_of_somebody_else_stay_as_they_are() {
    let Some(server) = shared() else { return };
    server.namespace("others", "get,create,patch,delete");
    let immutable =
        "apiVersion: v1\nkind: Secret\nmetadata: {name: evercred-alice}\nimmutable: true\nstringData: {x: held}\n";
    let theirs = "apiVersion: v1\nkind: Secret\nmetadata: {name: evercred-bob}\nstringData: {bob_grid: theirs}\n";
    for (name, text) in [("a.yaml", immutable), ("b.yaml", theirs)] {
        let path = server.home.path().join(name);
        fs::write(&path, text).unwrap();
        server.kubectl(&["-n", "others", "create", "-f", path.to_str().unwrap()]).unwrap();
    }
    let site = started(&server, &direct(&server), "others", "", &["alice", "bob"]);
    site.wait("immutable, told", 60, |s| s.log().contains("is immutable; delete it there"));
    site.wait("somebody else's, told", 60, |s| s.log().contains("has bob_grid from"));
    assert_eq!(server.keys("others", "evercred-bob")["bob_grid"], "theirs");
    assert!(server.writes("others").is_empty(), "{:?}", server.writes("others"));
    server.kubectl(&["-n", "others", "delete", "secret", "evercred-alice", "evercred-bob"]).unwrap();
    evercred(&site, &["replicate", "--now", "--wait", "20s"]);
    site.wait("made anew", 60, current);
}

#[test]
fn a_server_that_limits_our_rate_is_left_alone_for_as_long_as_it_says() {
    let Some(server) = shared() else { return };
    server.namespace("limits", "get,create,patch,delete");
    let gate = Gate::open(&server);
    gate.orders.lock().unwrap().limit = 1;
    let site = started(&server, &format!("http://127.0.0.1:{}", gate.port), "limits", "", &["alice"]);
    site.wait("told", 60, |s| s.log().contains("kind=rate-limited"));
    site.wait("delivered", 60, current);
    let orders = gate.orders.lock().unwrap();
    let (limited, passed) =
        (orders.limited[0], orders.passed.iter().copied().find(|at| *at > orders.limited[0]).unwrap());
    assert!(passed - limited >= Duration::from_secs(2), "{:?}", passed - limited);
}

#[test]
fn forty_users_in_one_secret_neither_lose_nor_touch_each_others_keys() {
    let Some(server) = shared() else { return };
    server.namespace("pool", "get,create,patch,delete");
    let users: Vec<String> = (0..40).map(|n| format!("u{n:02}")).collect();
    let names: Vec<&str> = users.iter().map(String::as_str).collect();
    let site = started(&server, &direct(&server), "pool", "secret_name = \"pool-tokens\"\nmax_in_flight = 16", &names);
    site.wait("all of them", 120, |s| {
        let keys = server.keys("pool", "pool-tokens");
        keys.len() == 40 && users.iter().all(|user| keys.get(&format!("{user}_grid")) == Some(&token(s, user)))
    });
    site.wait("confirmed", 60, current);
    let before = server.keys("pool", "pool-tokens");
    renew(&site, "u07/grid");
    site.wait("one renewed", 60, |s| server.keys("pool", "pool-tokens")["u07_grid"] == token(s, "u07"));
    let after = server.keys("pool", "pool-tokens");
    let changed: Vec<&String> = after.keys().filter(|key| after.get(*key) != before.get(*key)).collect();
    assert_eq!(changed, ["u07_grid"]);
    assert_eq!(after.len(), 40);
}

#[test]
fn a_server_that_was_away_gets_the_newest_token_when_it_is_back() {
    let Some(server) = Server::start() else { return };
    server.namespace("away", "get,create,patch,delete");
    let site = started(&server, &direct(&server), "away", "timeout = \"10s\"", &["alice"]);
    site.wait("there", 60, current);
    let first = token(&site, "alice");
    server.down();
    for _ in 0..2 {
        renew(&site, "alice/grid");
    }
    site.wait("told", 60, |s| s.log().contains("kind=site-unreachable"));
    server.up();
    assert_ne!(token(&site, "alice"), first);
    site.wait("the newest", 180, |s| {
        server.keys("away", "evercred-alice").get("alice_grid") == Some(&token(s, "alice"))
    });
    // Once more, by a single write: what was in between is not sent.
    assert_eq!(server.writes("away"), ["create", "patch", "patch"]);
}

#[test]
fn a_kubeconfig_that_wants_a_program_started_is_refused_and_the_program_is_not() {
    let Some(server) = shared() else { return };
    let mut site = started(&server, &direct(&server), "default", "", &["alice"]);
    site.signal("-TERM");
    site.credmon.take().unwrap().wait().unwrap();
    let ran = site.home.path().join("ran");
    let mut user =
        "exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: /usr/bin/touch, args: [".to_owned();
    write!(user, "\"{}\"]}}", ran.display()).unwrap();
    let config = site.home.path().join("kube/config");
    fs::write(&config, kubeconfig(&direct(&server), "", &user, "default")).unwrap();
    site.start();
    site.wait("told", 60, |s| s.log().contains("tokenFile") && s.log().contains("kind=site-auth"));
    assert!(!ran.exists());
}
