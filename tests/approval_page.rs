//! The page for approvals, by plain HTTP as somebody would who is up to no good, and by Chromium as its users would.
//!
//! The browser's tests are ignored by a plain `cargo test`, because they need Node and Chromium; `tests/run web` runs
//! them. Their issuer is npm `oidc-provider` over TLS (`tests/oidc`); in front of the page is what the documents say, by
//! the blocks that stand in them.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use evercred::demo::issuer::Rotation;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde_json::{Value, json};

use self::site::Site;

/// A site with the page, and where it listens.
struct Visited {
    site: Site,
    port: u16,
    /// How browsers reach the page, and where it listens, as lines of the configuration.
    page: String,
    listen: String,
    /// Where `ask` connects to, if it is not the port; and by which certificate it knows the page.
    socket: Option<PathBuf>,
    trusted: Option<PathBuf>,
    /// npm `oidc-provider`, where a test needs a real approval; and a web server in front of the page.
    children: Vec<Child>,
    real_issuer: bool,
    /// Further keys of the provider.
    client: &'static str,
    issuer_url: String,
}

impl Drop for Visited {
    fn drop(&mut self) {
        for child in &mut self.children {
            // A web server ends its own processes at this one.
            kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).ok();
            child.wait().ok();
        }
    }
}

/// An answer by plain HTTP.
struct Seen {
    status: u16,
    head: String,
    body: String,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    fn field(&self, name: &str) -> String {
        let from = self.body.split(&format!("name={name} value=\"")).nth(1).unwrap();
        from.split('"').next().unwrap().to_owned()
    }
}

/// A port that nobody has.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Visited {
    /// The embedded issuer stands in; nobody gets as far as an approval.
    fn new() -> Self {
        let (site, port) = (Site::new(600, Rotation::None), port());
        Self {
            issuer_url: site.issuer.url().to_owned(),
            site,
            port,
            page: format!("http://127.0.0.1:{port}/credmon"),
            listen: format!("web_approval_listen = \"127.0.0.1:{port}\""),
            socket: None,
            trusted: None,
            children: Vec::new(),
            real_issuer: false,
            client: "",
        }
    }

    /// At a Unix socket, for a web server.
    fn at_a_socket() -> Self {
        let mut visited = Self::new();
        let socket = visited.site.home.path().join("approval.sock");
        visited.listen = format!("web_approval_listen = \"unix:{}\"", socket.display());
        visited.page = "https://submit.example.org/credmon".into();
        visited.socket = Some(socket);
        visited
    }

    /// With TLS of its own, below this path; the certificate is one for 127.0.0.1.
    fn with_tls(path: &str) -> Self {
        let mut visited = Self::new();
        visited.page = format!("https://127.0.0.1:{}{path}", visited.port);
        let (certificate, key) = visited.pair();
        visited.listen = format!(
            "{}\nweb_approval_tls_cert = \"{}\"\nweb_approval_tls_key = \"{}\"",
            visited.listen,
            certificate.display(),
            key.display()
        );
        visited.trusted = Some(certificate);
        visited
    }

    fn pair_files(&self) -> (PathBuf, PathBuf) {
        (self.site.home.path().join("page.pem"), self.site.home.path().join("page.key"))
    }

    /// Another certificate and key in the place of those that are there, as certbot does.
    fn pair(&self) -> (PathBuf, PathBuf) {
        let (certificate, path) = self.pair_files();
        let key = rcgen::KeyPair::generate().unwrap();
        let signed = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap().self_signed(&key).unwrap();
        let new = self.site.home.path().join("new");
        for (path, text) in [(&path, key.serialize_pem()), (&certificate, signed.pem())] {
            fs::write(&new, text).unwrap();
            fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
            fs::rename(&new, path).unwrap();
        }
        (certificate, path)
    }

    /// With npm `oidc-provider`.
    fn issued(mut self, lifetime: u32) -> Self {
        let mut issuer = Command::new("node")
            .arg(installed("oidc").join("issuer.mjs"))
            .arg("--dir")
            .arg(self.site.home.path().join("issuer"))
            .args(["--lifetime", &lifetime.to_string(), "--for", "600"])
            .args(["--return-url", &format!("{}/return/web", self.page)])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(issuer.stdout.take().unwrap()).lines();
        let ready = lines.next().unwrap().unwrap();
        ready.strip_prefix("ready ").unwrap().clone_into(&mut self.issuer_url);
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        self.children.push(issuer);
        self.real_issuer = true;
        self
    }

    fn start(&mut self) {
        self.configure("");
        self.site.start();
        self.site.wait("the page", 30, |site| site.log().contains("approvals at http"));
    }

    /// `more`: a line of `[daemon]`.
    fn configure(&self, more: &str) {
        let url = &self.issuer_url;
        let client = if self.real_issuer {
            let issuer = self.site.home.path().join("issuer");
            let (secret, ca) = (issuer.join("secret"), issuer.join("ca.pem"));
            format!("client_secret_file = \"{}\"\nca_file = \"{}\"\n", secret.display(), ca.display())
        } else {
            format!("token_endpoint = \"{url}/token\"\nauthorization_endpoint = \"{url}/auth\"\n")
        };
        let provider = format!(
            "[provider.web]\nkind = \"oauth2\"\nissuer = \"{url}\"\nclient_id = \"evercred-web\"\nclient_auth = \"body\"\n\
             audience_style = \"resource\"\nscopes = [\"offline_access\"]\n{client}{}",
            self.client
        );
        let page = format!("{}\nweb_approval_url = \"{}\"\n{more}", self.listen, self.page);
        self.site.configure_with(&page, "", &provider);
    }

    fn hang_up(&self) {
        let pid = self.site.credmon.as_ref().unwrap().id();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGHUP).unwrap();
    }

    /// A web server in front, from the block with this language in a document; its user is `www-data`.
    fn behind(&mut self, kind: &str, document: &str) {
        let block = block(document, kind).replace("/run/evercred", &self.site.home.path().display().to_string());
        let dir = self.site.home.path().join(kind);
        fs::create_dir(&dir).unwrap();
        let issuer = self.site.home.path().join("issuer");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/web/proxy");
        let mut proxy = Command::new(script)
            .arg(kind)
            .arg(&dir)
            .arg(self.port.to_string())
            .args([issuer.join("issuer.pem"), issuer.join("issuer-key.pem")])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        proxy.stdin.take().unwrap().write_all(block.as_bytes()).unwrap();
        self.children.push(proxy);
        let end = Instant::now() + Duration::from_secs(180);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = fs::read_to_string(dir.join("error.log")).unwrap_or_default();
            assert!(Instant::now() < end && self.children.last_mut().unwrap().try_wait().unwrap().is_none(), "{log}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// As credd writes a request; gives the link's path.
    fn request(&self, digit: char, handles: &[&str], change: impl Fn(String) -> String) -> String {
        let (url, page) = (&self.issuer_url, &self.page);
        let ads: Vec<String> = handles
            .iter()
            .map(|handle| {
                format!(
                    "Handle = \"{handle}\"\nScopes = \"storage.read:/ compute.read\"\nAudience = \
                     \"https://storage.example.org\"\nClientId = \"evercred-web\"\nProvider = \"web\"\nTokenUrl = \
                     \"{url}/token\"\nLocalUser = \"alice\"\nReturnUrl = \"{page}/return/web\"\n\
                     ClientSecret = \"canary-secret\"\nAuthorizationUrl = \"{url}/auth\"\n"
                )
            })
            .collect();
        let key = digit.to_string().repeat(64);
        let path = self.site.credentials().join(&key);
        fs::write(&path, change(ads.join("\n"))).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap();
        format!("{}/key/{key}", self.path())
    }

    /// Path of the page's URL.
    fn path(&self) -> String {
        self.page.splitn(4, '/').nth(3).map_or(String::new(), |path| format!("/{path}"))
    }

    /// However the page is reached.
    fn connect(&self) -> Box<dyn Stream> {
        if let Some(socket) = &self.socket {
            let stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            return Box::new(stream);
        }
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let Some(trusted) = &self.trusted else { return Box::new(stream) };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(trusted).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connection = ClientConnection::new(Arc::new(config), "127.0.0.1".try_into().unwrap()).unwrap();
        Box::new(StreamOwned::new(connection, stream))
    }

    fn ask(&self, line: &str, headers: &[(&str, &str)], body: &str) -> Seen {
        self.try_ask(line, headers, body).unwrap_or_else(|error| panic!("no answer to {line}: {error}"))
    }

    fn try_ask(&self, line: &str, headers: &[(&str, &str)], body: &str) -> std::io::Result<Seen> {
        let mut stream = self.connect();
        let more: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let more = more.concat();
        let length = body.len();
        let head = format!("{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n{more}\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Ok(Seen { status, head: head.to_owned(), body: body.to_owned() })
    }

    fn get(&self, path: &str, cookie: &str) -> Seen {
        self.ask(&format!("GET {path}"), &[("Cookie", cookie)], "")
    }

    /// Open a link: the cookie and the page behind it.
    fn visit(&self, link: &str) -> (String, Seen) {
        let opened = self.get(link, "");
        let home = format!("{}/", self.path());
        assert_eq!((opened.status, opened.header("location")), (303, Some(home.as_str())), "{}", opened.body);
        let cookie = opened.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        let page = self.get(&home, &cookie);
        (cookie, page)
    }

    fn browser(&self, link: &str, arguments: &[impl AsRef<std::ffi::OsStr>]) -> Value {
        let origin = self.page.strip_suffix(&self.path()).unwrap();
        let map = format!("submit.example.org 127.0.0.1:{}", self.port);
        let output = Command::new("timeout")
            .args(["120", "node"])
            .arg(installed("web").join("approve.mjs"))
            .args(["--url", &format!("{origin}{link}"), "--user", "alice", "--map", &map])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{told}\n{complaint}\n{}", self.site.log());
        serde_json::from_str(&told).unwrap()
    }
}

/// A connection of either kind.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// The first block of code with this language in a document.
fn block(document: &str, language: &str) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).unwrap();
    let from = text.split(&format!("```{language}\n")).nth(1).unwrap_or_else(|| panic!("{document}: no {language}"));
    from.split("```").next().unwrap().to_owned()
}

/// Where `tests/install.sh` put this folder.
fn installed(folder: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/install.sh");
    let output = Command::new(script).arg(folder).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

#[test]
fn a_link_opens_a_visit_that_shows_who_what_and_where_and_every_answer_is_closed_to_scripts_frames_and_referrers() {
    let mut visited = Visited::new();
    let link = visited.request('a', &["", "eu"], |text| text.replace("compute.read", "<b>&\\\"'"));
    visited.start();
    let opened = visited.get(&link, "");
    let cookie = opened.header("set-cookie").unwrap();
    for word in ["HttpOnly", "SameSite=Lax", "Path=/credmon/"] {
        assert!(cookie.contains(word), "{cookie}");
    }
    let (cookie, page) = visited.visit(&link);
    assert_eq!(page.status, 200);
    for word in
        ["<strong>alice</strong>", "<h2>web</h2>", "<h2>web_eu</h2>", "<code>storage.read:/</code>", "127.0.0.1"]
    {
        assert!(page.body.contains(word), "{word}: {}", page.body);
    }
    assert!(
        page.body.contains("<code>&lt;b&gt;&amp;&quot;&#39;</code>") && !page.body.contains("<b>"),
        "text, not markup"
    );
    assert!(!page.body.contains("<script") && !page.body.contains("canary-secret") && !page.body.contains(&link[13..]));
    let gone = visited.get("/elsewhere", "");
    for answer in [&opened, &page, &gone, &visited.get("/credmon/style.css", &cookie)] {
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    assert_eq!((gone.status, page.header("cache-control")), (404, Some("no-store")));
}

#[test]
fn no_form_works_without_its_visit_its_token_and_its_own_site_and_no_answer_that_was_not_asked_for_counts() {
    let mut visited = Visited::new();
    let link = visited.request('a', &[""], |text| text);
    visited.start();
    let (cookie, page) = visited.visit(&link);
    let (token, credential) = (page.field("token"), page.field("credential"));
    let form = format!("token={token}&credential={credential}");
    let approve = |cookie: &str, site: &str, form: &str| {
        visited.ask("POST /credmon/approve", &[("Cookie", cookie), ("Sec-Fetch-Site", site)], form)
    };
    assert_eq!(approve("", "same-origin", &form).header("location"), None, "no visit");
    assert_eq!(approve("evercred-approval=guess", "same-origin", &form).header("location"), None);
    assert_eq!(approve(&cookie, "cross-site", &form).status, 403);
    assert_eq!(approve(&cookie, "same-origin", &form.replace(&token, "guess")).status, 403);
    assert_eq!(approve(&cookie, "same-origin", &form.replace("credential=web", "credential=grid")).status, 403);
    assert_eq!(approve(&cookie, "same-origin", &"x".repeat(5000)).status, 413);
    // The visit of another key cannot lend its token.
    let (other, _) = visited.visit(&visited.request('b', &[""], |text| text));
    assert_eq!(approve(&other, "same-origin", &form).status, 403);
    let away = approve(&cookie, "same-origin", &form);
    let location = away.header("location").unwrap();
    assert!(location.starts_with(&format!("{}/auth?", visited.issuer_url)), "the issuer, and nowhere else: {location}");
    assert!(location.contains("code_challenge_method=S256") && location.contains("state="));
    let state = location.split("state=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    let back = |cookie: &str, query: &str| visited.get(&format!("/credmon/return/web?{query}"), cookie);
    let iss = format!("iss={}", visited.issuer_url);
    assert_eq!(back(&cookie, &format!("code=c&state=guess&{iss}")).status, 400);
    assert_eq!(back(&other, &format!("code=c&state={state}&{iss}")).status, 400, "another's state");
    assert!(back("", &format!("code=c&state={state}&{iss}")).body.contains("condor_submit"), "no visit");
    assert_eq!(back(&cookie, &format!("code=c&state={state}&iss=https://evil.example.org")).status, 303);
    assert!(visited.get("/credmon/", &cookie).body.contains("from another issuer than the configured one"));
    assert_eq!(back(&cookie, &format!("code=c&state={state}&{iss}")).status, 400, "a state serves once");
    assert!(!visited.site.credentials().join("alice").exists(), "nothing was stored");
}

#[test]
fn a_request_that_credd_did_not_write_so_or_that_names_another_client_or_endpoint_opens_nothing() {
    let mut visited = Visited::new();
    visited.start();
    let url = visited.issuer_url.clone();
    let evil =
        |text: String, name: &str| text.replace(&format!("{name} = \"{url}"), &format!("{name} = \"https://evil"));
    let cases: Vec<(String, u16, &str)> = vec![
        (visited.request('0', &[""], |text| evil(text, "TokenUrl")), 409, "different token endpoints"),
        (visited.request('1', &[""], |text| evil(text, "AuthorizationUrl")), 409, "different authorization endpoints"),
        (
            visited.request('2', &[""], |text| text.replace("ClientId = \"e", "ClientId = \"x")),
            409,
            "different clients",
        ),
        (visited.request('3', &[""], |text| text.replace("/credmon/return", "/x")), 409, "different return URLs"),
        (visited.request('4', &[""], |text| text.replace("\"web\"", "\"other\"")), 409, "other is not configured"),
        (visited.request('5', &[""], |text| text.replace("alice", "../etc")), 409, "cannot be used"),
        (format!("/credmon/key/{}", "6".repeat(64)), 404, "not valid"),
        (format!("/credmon/key/{}", "A".repeat(64)), 404, "not valid"),
        ("/credmon/key/../pid".into(), 404, "not valid"),
    ];
    let open = visited.request('7', &[""], |text| text);
    let path = visited.site.credentials().join("7".repeat(64));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    for (link, status, word) in cases.into_iter().chain([(open, 409, "cannot be used")]) {
        let seen = visited.get(&link, "");
        assert_eq!(seen.status, status, "{link}: {}", seen.body);
        assert!(seen.body.contains(word), "{word}: {}", seen.body);
        assert!(seen.header("set-cookie").is_none());
    }
    assert!(!visited.site.log().contains("canary-secret"));
}

#[test]
fn no_flood_of_random_keys_and_of_silent_connections_keeps_out_a_user_with_a_good_key() {
    let mut visited = Visited::new();
    let link = visited.request('a', &[""], |text| text);
    visited.start();
    let over = Arc::new(AtomicBool::new(false));
    let port = visited.port;
    // As fast as two can, where five a second were once enough to keep everybody out.
    let flood = |seed: u32| {
        let over = Arc::clone(&over);
        std::thread::spawn(move || {
            let mut answers = [0_u32; 2];
            let mut silent = Vec::new();
            for n in 0_u32.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                if n % 4 == 0 {
                    silent.extend(TcpStream::connect(("127.0.0.1", port)));
                    silent.drain(..silent.len().saturating_sub(200));
                }
                let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let request = format!("GET /credmon/key/{seed:032x}{n:032x} HTTP/1.1\r\nHost: x\r\n\r\n");
                let mut text = String::new();
                // Whoever opens so many may find his own closed.
                let asked = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut text));
                if asked.is_ok() {
                    answers[usize::from(text.starts_with("HTTP/1.1 429"))] += 1;
                }
            }
            answers
        })
    };
    let floods = [flood(1), flood(2)];
    std::thread::sleep(Duration::from_secs(1));
    for turn in 0..20 {
        let (cookie, page) = visited.visit(&link);
        let form = format!("token={}&credential={}", page.field("token"), page.field("credential"));
        let approve = visited.ask("POST /credmon/approve", &[("Cookie", &cookie)], &form);
        assert_eq!(approve.status, 303, "turn {turn}: {}", approve.body);
        assert!(approve.header("location").unwrap().contains("/auth?"), "on to the issuer");
    }
    over.store(true, Ordering::Relaxed);
    let [ended, slowed] =
        floods.map(|flood| flood.join().unwrap()).into_iter().fold([0, 0], |a, b| [a[0] + b[0], a[1] + b[1]]);
    println!("beside {ended} answers 404 and {slowed} answers 429");
    assert!(ended >= 1 && slowed > 100, "{ended} {slowed}");
    let told = visited.site.log().matches("keys that nobody has").count();
    assert_eq!(told, 1, "the log is not flooded");
    assert!(visited.site.log().contains("many times a second (just now by 127.0.0.1)"), "{}", visited.site.log());
}

#[test]
fn one_visit_begins_so_many_approvals_and_no_other_visit_pays_for_it() {
    let mut visited = Visited::new();
    let link = visited.request('a', &[""], |text| text);
    visited.start();
    let approve = |(cookie, page): &(String, Seen)| {
        let form = format!("token={}&credential={}", page.field("token"), page.field("credential"));
        visited.ask("POST /credmon/approve", &[("Cookie", cookie)], &form).status
    };
    let (greedy, other) = (visited.visit(&link), visited.visit(&link));
    // Nor is a form waited for that does not come.
    let mut slow = visited.connect();
    let head = format!("POST /credmon/approve HTTP/1.1\r\nHost: x\r\nCookie: {}\r\nContent-Length: 9\r\n\r\n", other.0);
    slow.write_all(head.as_bytes()).unwrap();
    let (began, mut text) = (Instant::now(), String::new());
    slow.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 408") && began.elapsed() < Duration::from_secs(8), "{text}");
    let answers: Vec<u16> = (0..40).map(|_| approve(&greedy)).collect();
    assert!(answers.contains(&303) && answers.contains(&429), "{answers:?}");
    assert_eq!(approve(&other), 303);
}

#[test]
fn a_link_opens_as_a_page_of_its_own_and_not_within_another() {
    let mut visited = Visited::new();
    let link = visited.request('a', &[""], |text| text);
    visited.start();
    for (wanted, status) in [("image", 403), ("iframe", 403), ("empty", 403), ("document", 303)] {
        let seen = visited.ask(&format!("GET {link}"), &[("Sec-Fetch-Dest", wanted)], "");
        assert_eq!((seen.status, seen.header("set-cookie").is_some()), (status, status == 303), "{wanted}");
    }
    assert_eq!(visited.get(&link, "").status, 303, "a browser that does not tell");
}

#[test]
fn the_page_stands_at_a_socket_that_the_courier_itself_could_not_make_and_after_a_reload_again() {
    let mut visited = Visited::at_a_socket();
    let link = visited.request('a', &[""], |text| text);
    visited.configure("");
    visited.site.start();
    visited.site.wait("the page", 30, |site| site.log().contains("served at unix:"));
    let socket = visited.socket.clone().unwrap();
    let meta = fs::metadata(&socket).unwrap();
    assert_eq!(meta.mode() & 0o777, 0o666, "as the web server, so everybody");
    let directory = fs::metadata(visited.site.home.path()).unwrap();
    assert_eq!((directory.mode() & 0o022, meta.uid()), (0, directory.uid()), "but only its owner stands there");
    let (cookie, page) = visited.visit(&link);
    assert!(page.body.contains("<strong>alice</strong>"));
    assert!(cookie.starts_with("__Secure-evercred-approval="), "{cookie}");
    visited.configure("full_scan = \"7m\"");
    visited.hang_up();
    visited.site.wait("the page again", 30, |site| site.log().matches("served at unix:").count() == 2);
    visited.visit(&link);
}

#[test]
fn with_a_certificate_the_page_needs_no_web_server_and_takes_a_new_one_without_a_signal() {
    let mut visited = Visited::with_tls("");
    let link = visited.request('a', &[""], |text| text);
    visited.start();
    let (cookie, page) = visited.visit(&link);
    assert!(cookie.starts_with("__Host-evercred-approval="), "{cookie}");
    assert!(page.body.contains("<strong>alice</strong>"));
    let mut plain = TcpStream::connect(("127.0.0.1", visited.port)).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = Vec::new();
    plain.read_to_end(&mut text).ok();
    assert!(!text.starts_with(b"HTTP"), "nothing in the clear");
    // A key that does not belong to the certificate: told once, and the old pair stays.
    let (_, key) = visited.pair_files();
    let (right, old) = (fs::read(&key).unwrap(), fs::read(visited.trusted.as_ref().unwrap()).unwrap());
    fs::write(&key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    visited
        .site
        .wait("a word about it", 30, |site| site.log().contains("page.key is not the key of the certificate in"));
    visited.visit(&link);
    fs::write(&key, right).unwrap();
    let kept = visited.site.home.path().join("old.pem");
    fs::write(&kept, old).unwrap();
    visited.pair();
    let end = Instant::now() + Duration::from_secs(40);
    while visited.try_ask(&format!("GET {link}"), &[], "").is_err() {
        assert!(Instant::now() < end, "the new certificate: {}", visited.site.log());
        std::thread::sleep(Duration::from_millis(500));
    }
    visited.visit(&link);
    visited.trusted = Some(kept);
    assert!(visited.try_ask("GET /", &[], "").is_err(), "the old one is gone");
    assert!(!visited.site.log().contains("PRIVATE KEY"));
}

/// A port below 1024 that nobody has.
fn low_port() -> Option<u16> {
    (700..1000).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
}

/// Somebody else has the place at the start, and leaves it.
fn has_the_page_once_it_is_free(mut visited: Visited, taken: impl Sized) {
    let link = visited.request('a', &[""], |text| text);
    visited.configure("");
    visited.site.start();
    visited.site.wait("the trouble", 30, |site| site.log().contains("cannot be had"));
    drop(taken);
    visited.site.wait("the page", 60, |site| site.log().contains(", served at "));
    visited.visit(&link);
    assert_eq!(visited.site.log().matches("is free now: starting another courier").count(), 1);
}

#[test]
fn what_the_courier_cannot_open_itself_it_has_by_another_start_once_it_is_free() {
    let visited = Visited::at_a_socket();
    let socket = visited.socket.as_ref().unwrap();
    let taken = UnixListener::bind(socket).unwrap();
    // Open, as the page's are, so that the courier sees whether it is free.
    for (path, mode) in [(visited.site.home.path(), 0o755), (socket, 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    has_the_page_once_it_is_free(visited, taken);
}

#[test]
fn root_has_the_page_at_a_low_port_by_another_start_once_it_is_free() {
    let Some(port) = low_port().filter(|_| nix::unistd::geteuid().is_root()) else {
        println!("skipped: only root may listen below 1024");
        return;
    };
    let mut visited = Visited::new();
    visited.listen = format!("web_approval_listen = \"127.0.0.1:{port}\"");
    visited.port = port;
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    has_the_page_once_it_is_free(visited, taken);
}

#[test]
fn root_has_the_page_at_a_port_that_no_user_could_take_while_it_is_down() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root may listen below 1024");
        return;
    }
    let mut visited = Visited::new();
    let Some(port) = low_port() else {
        println!("skipped: no port below 1024 is free");
        return;
    };
    visited.listen = format!("web_approval_listen = \"127.0.0.1:{port}\"");
    visited.port = port;
    let link = visited.request('a', &[""], |text| text);
    visited.start();
    visited.visit(&link);
    visited.configure("full_scan = \"7m\"");
    visited.hang_up();
    visited.site.wait("the page again", 30, |site| site.log().matches("served at http:").count() == 2);
    visited.visit(&link);
}

#[test]
#[ignore = "needs Node and Chromium: `tests/run web`"]
fn in_chromium_two_approvals_become_tokens_the_key_is_used_up_and_nothing_secret_is_told() {
    let mut visited = Visited::new().issued(20);
    let link = visited.request('a', &["", "eu"], |text| text);
    visited.start();
    let declined = visited.browser(&link, &arguments(&["--deny"], "declined"));
    assert!(!visited.site.credentials().join("alice").exists(), "{declined}");
    for narrow in [&["--only", "--narrow"][..], &["--only", "--narrow", "--dark"]] {
        let told = visited.browser(&link, &arguments(narrow, narrow.last().unwrap()));
        assert_eq!((&told["complaints"], &told["wide"]), (&json!([]), &json!(0)), "nothing is wider than the screen");
    }
    let told = visited.browser(&link, &arguments(&[], "approved"));
    assert_eq!(told["complaints"], serde_json::json!([]), "the browser has nothing to complain about");
    assert_eq!(told["scripts"], 0);
    assert_eq!(told["cookies"], cookie("evercred-approval", "/credmon/"));
    for base in ["web", "web_eu"] {
        let top: Value = serde_json::from_slice(&visited.site.file("alice", &format!("{base}.top")).unwrap()).unwrap();
        assert_eq!(top["scopes"], "storage.read:/ compute.read", "byte for byte, as credd compares");
        assert_eq!(top["audience"], "https://storage.example.org");
        let meta = fs::metadata(visited.site.credentials().join(format!("alice/{base}.top"))).unwrap();
        assert_eq!((meta.mode() & 0o777, meta.nlink()), (0o600, 1));
        assert!(visited.site.file("alice", &format!("{base}.use")).is_some());
    }
    assert!(!visited.site.credentials().join("a".repeat(64)).exists(), "the request file is gone");
    assert_eq!(visited.get(&link, "").status, 404);
    // What was approved goes on by itself.
    let first = visited.site.file("alice", "web.use");
    visited.site.wait("a renewal", 60, |site| site.file("alice", "web.use") != first);
    let log = visited.site.log();
    let secret = fs::read_to_string(visited.site.home.path().join("issuer/secret")).unwrap();
    let top: Value = serde_json::from_slice(&visited.site.file("alice", "web.top").unwrap()).unwrap();
    for word in [secret.trim(), "canary-secret", top["refresh_token"].as_str().unwrap(), &"a".repeat(64), "code="] {
        assert!(!log.contains(word), "in the log: {word}");
    }
    assert!(log.contains("approved on the web page"));
}

/// For the browser; with `EVERCRED_TEST_SHOTS`, pictures go below it (`tests/pictures/approval`).
fn arguments(given: &[&str], name: &str) -> Vec<String> {
    let mut all: Vec<String> = given.iter().map(|one| (*one).to_owned()).collect();
    if let Some(shots) = std::env::var_os("EVERCRED_TEST_SHOTS").filter(|_| !name.is_empty()) {
        let shots = Path::new(&shots).join(name.trim_start_matches('-'));
        all.extend(["--shots".to_owned(), shots.to_str().unwrap().to_owned()]);
    }
    all
}

/// The page's one cookie, as a browser keeps it.
fn cookie(name: &str, path: &str) -> Value {
    let secure = name.starts_with("__");
    json!([{"name": name, "path": path, "httpOnly": true, "sameSite": "Lax", "secure": secure}])
}

fn approves_in_chromium(visited: &Visited, link: &str, name: &str, path: &str) {
    let told = visited.browser(link, &arguments(&[], ""));
    let seen = |what: &str| told.get(what).cloned().unwrap_or_default();
    assert_eq!(seen("title"), "All approved");
    assert_eq!(seen("complaints"), json!([]));
    assert_eq!(seen("cookies"), cookie(name, path));
    assert!(visited.site.file("alice", "web.use").is_some());
    assert!(!visited.site.credentials().join("a".repeat(64)).exists(), "the request file is gone");
}

#[test]
#[ignore = "needs Node and Chromium: `tests/run web`"]
fn in_chromium_the_page_is_visited_over_tls_of_its_own() {
    let mut visited = Visited::with_tls("");
    visited.page = "https://submit.example.org".into();
    let mut visited = visited.issued(600);
    let link = visited.request('a', &[""], |text| text);
    visited.start();
    approves_in_chromium(&visited, &link, "__Host-evercred-approval", "/");
}

#[test]
#[ignore = "needs Node and Chromium: `tests/run web`"]
fn in_chromium_somebody_elses_approval_is_not_taken_where_a_claim_says_whose_it_is() {
    let mut visited = Visited::new().issued(600);
    visited.client = "user_claim = \"sub\"\n";
    let link = visited.request('a', &[""], |text| text);
    visited.start();
    let told = visited.browser(&link, &["--user", "mallory", "--refused"]);
    let state = told["states"][0].as_str().unwrap();
    assert!(state.contains("mallory is signed in at the issuer, and the jobs are those of alice"), "{told}");
    assert!(!visited.site.credentials().join("alice").exists(), "nothing was stored");
    assert!(visited.site.log().contains("the refresh token was given back"), "{}", visited.site.log());
    approves_in_chromium(&visited, &link, "evercred-approval", "/credmon/");
}

/// As the documents say it, and with their very block.
fn in_chromium_behind(kind: &str, document: &str, path: &str, name: &str) {
    let mut visited = Visited::at_a_socket();
    visited.page = format!("https://submit.example.org{path}");
    let mut visited = visited.issued(600);
    let link = visited.request('a', &[""], |text| text);
    visited.configure("");
    visited.site.start();
    visited.site.wait("the page", 30, |site| site.log().contains("served at unix:"));
    visited.behind(kind, document);
    approves_in_chromium(&visited, &link, name, &format!("{path}/"));
    let log = fs::read_to_string(visited.site.home.path().join(kind).join("access.log")).unwrap_or_default();
    assert!(!log.contains("/key/") && !log.contains("code="), "neither key nor code is in the access log: {log}");
}

#[test]
#[ignore = "needs Node and Chromium: `tests/run web`"]
fn in_chromium_the_page_is_visited_through_apache_below_a_path() {
    in_chromium_behind("apache", "docs/admin-guide.md", "/credmon", "__Secure-evercred-approval");
}

#[test]
#[ignore = "needs Node and Chromium: `tests/run web`"]
fn in_chromium_the_page_is_visited_through_nginx_below_a_path() {
    in_chromium_behind("nginx", "docs/admin-guide.md", "/credmon", "__Secure-evercred-approval");
}

#[test]
#[ignore = "needs Node and Chromium: `tests/run web`"]
fn in_chromium_the_page_is_visited_through_apache_where_the_host_name_is_its_own() {
    in_chromium_behind("apache", "docs/migration.md", "", "__Host-evercred-approval");
}

#[test]
#[ignore = "needs Node and Chromium: `tests/run web`"]
fn in_chromium_the_page_is_visited_through_nginx_where_the_host_name_is_its_own() {
    in_chromium_behind("nginx", "docs/migration.md", "", "__Host-evercred-approval");
}

#[test]
#[ignore = "needs Node and Chromium: `tests/run web`"]
fn an_old_link_is_refused_in_chromium_too_with_what_to_do() {
    let mut visited = Visited::new();
    visited.start();
    let told = visited.browser(&format!("/credmon/key/{}", "b".repeat(64)), &arguments(&["--only"], "old"));
    assert_eq!(told["status"], 404);
    assert!(told["text"].as_str().unwrap().contains("Submit your job again"), "{told}");
}

/// What HTCondor 25.14.1 answers, over the site's own credential directory; the pool's tests have the real one.
const STORE_CRED: &str = r#"#!/bin/sh
dir=CREDENTIALS/alice verb=$1
while [ $# -gt 0 ]; do [ "$1" != -s ] || name=$2; shift; done
case $verb in
    query-oauth)
        [ -e "$dir/$name.top" ] || { echo 'No credential is stored.'; exit 1; }
        printf 'Credential info:\nTop%sTime = %s\n' "$name" "$(stat -c %Y "$dir/$name.top")"
        [ ! -e "$dir/$name.use" ] || printf '%s = %s\n' "$name" "$(stat -c %Y "$dir/$name.use")";;
    add-oauth)
        umask 077; mkdir -p "$dir" && cat > "$dir/$name.tmp" && mv "$dir/$name.tmp" "$dir/$name.top";;
esac
"#;

#[test]
#[ignore = "needs Node and Chromium: `tests/run web`"]
fn a_device_flow_is_approved_in_chromium_on_the_issuers_own_pages_and_the_credmon_gets_tokens_from_it() {
    if Path::new("/usr/sbin/condor_store_cred").exists() {
        println!(
            "skipped: HTCondor is installed here, and would be asked; tests/pool/e2e-storer does the same with it"
        );
        return;
    }
    let mut visited = Visited::new().issued(600);
    let home = visited.site.home.path().to_owned();
    let provider = format!(
        "[provider.wlcg]\nkind = \"oauth2\"\nissuer = \"{}\"\nclient_id = \"evercred-public\"\nca_file = \"{}\"\nscopes \
         = [\"storage.read:/\"]\nlogin_scopes = [\"openid\", \"offline_access\"]\naudience = \
         [\"https://storage.example.org\"]\naudience_style = \"resource\"\n",
        visited.issuer_url,
        home.join("issuer/ca.pem").display()
    );
    visited.site.configure_with("", "", &provider);
    visited.site.start();
    visited.site.wait("the daemon", 30, |site| site.socket().exists());
    let programs = home.join("programs");
    fs::create_dir(&programs).unwrap();
    let script = STORE_CRED.replace("CREDENTIALS", visited.site.credentials().to_str().unwrap());
    fs::write(programs.join("condor_store_cred"), script).unwrap();
    fs::set_permissions(programs.join("condor_store_cred"), fs::Permissions::from_mode(0o755)).unwrap();

    let mut login = Command::new(env!("CARGO_BIN_EXE_evercred"))
        .args(["login", "wlcg", "--json", "--config"])
        .arg(home.join("evercred.toml"))
        .env("PATH", &programs)
        .env("HOME", &home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = Vec::new();
    for line in BufReader::new(login.stdout.take().unwrap()).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if event["event"] == "approval" {
            let browser = Command::new("timeout")
                .args(["120", "node"])
                .arg(installed("web").join("device.mjs"))
                .env("ACT_URL", event["url"].as_str().unwrap())
                .env("ACT_CODE", event["code"].as_str().unwrap())
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let pages = String::from_utf8_lossy(&browser.stdout).into_owned();
            assert!(browser.status.success(), "{pages}{}", String::from_utf8_lossy(&browser.stderr));
            println!("{pages}");
        }
        told.push(event);
    }
    let events: Vec<_> = told.iter().filter_map(|event| event["event"].as_str()).filter(|e| *e != "waiting").collect();
    assert!(login.wait().unwrap().success(), "{told:?}");
    assert_eq!(events, ["found", "approval", "created", "done"]);
    let top: Value = serde_json::from_slice(&visited.site.file("alice", "wlcg.top").unwrap()).unwrap();
    let given: Value = serde_json::from_slice(&visited.site.file("alice", "wlcg.use").unwrap()).unwrap();
    assert_eq!(given["access_token"].as_str().unwrap().split('.').count(), 3, "a JWT for the resource");
    for secret in [&top["refresh_token"], &given["access_token"]] {
        let secret = secret.as_str().unwrap();
        assert!(!told.iter().any(|event| event.to_string().contains(secret)), "no token is told");
        assert!(!visited.site.log().contains(secret));
    }
}
