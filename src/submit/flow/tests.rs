//! What issuers may answer, from a scripted server: each flow ends as it must, and nothing else does.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
};

use base64::Engine as _;
use sha2::Digest as _;

use super::*;
use crate::{
    config::{Sources, condor::Knobs, load_with},
    core::id::Service,
};

/// Answers to POSTs in their order, `STATUS BODY`; the last one stays. A GET gets the discovery document.
struct Server {
    url: String,
    posts: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answers: &[&str]) -> Self {
        Self::listing(&[], answers)
    }

    /// A mytoken server with these providers behind it.
    fn listing(providers: &[&str], answers: &[&str]) -> Self {
        let providers: Vec<_> = providers.iter().map(|issuer| serde_json::json!({ "issuer": issuer })).collect();
        let providers = serde_json::json!(providers).to_string();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let posts = Arc::new(Mutex::new(Vec::new()));
        let (base, seen) = (url.clone(), Arc::clone(&posts));
        let answers: Vec<String> = answers.iter().map(|answer| answer.replace("URL", &url)).collect();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut head, mut length) = (String::new(), 0);
                reader.read_line(&mut head).unwrap();
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    if line.trim().is_empty() {
                        break;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let answer = if head.starts_with("GET") {
                    format!(
                        "200 {{\"issuer\":\"{base}\",\"mytoken_endpoint\":\"{base}/my\",\"token_endpoint\":\"{base}/t\",\
                         \"device_authorization_endpoint\":\"{base}/d\",\"revocation_endpoint\":\"{base}/r\",\
                         \"providers_supported\":{providers}}}"
                    )
                } else {
                    let mut seen = seen.lock().unwrap();
                    seen.push(String::from_utf8(body).unwrap());
                    answers[(seen.len() - 1).min(answers.len() - 1)].clone()
                };
                if answer == "lost" {
                    continue;
                }
                let (status, body) = answer.split_once(' ').unwrap();
                let kind = "content-type: application/json\r\nconnection: close\r\nretry-after: 0";
                let length = body.len();
                write!(stream, "HTTP/1.1 {status} X\r\n{kind}\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
            }
        });
        Self { url, posts }
    }

    fn provider(&self, kind: &str) -> Provider {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        let text =
            format!("[daemon]\ncredential_directory = \"/c\"\n[provider.p]\n{}\n", kind.replace("URL", &self.url));
        std::fs::write(&file, text).unwrap();
        let sources = Sources { config: Some(file), ..Sources::default() };
        load_with(&sources, &Knobs::default()).unwrap_or_else(|p| panic!("{p:?}")).providers.remove(0)
    }

    fn post(&self, number: usize) -> String {
        self.posts.lock().unwrap()[number].clone()
    }
}

#[derive(Default)]
struct Seen(Vec<Invitation>);

impl Watcher for Seen {
    fn invite(&mut self, invitation: &Invitation) {
        self.0.push(invitation.clone());
    }

    fn left(&mut self, _: Duration) {}
}

const MYTOKEN: &str = "kind = \"mytoken\"\nserver = \"URL\"\nissuer = \"https://op.example.org\"";
const DEVICE: &str = "kind = \"oauth2\"\nissuer = \"URL\"\nclient_id = \"public\"\nscopes = [\"a\"]";

fn approve_at(server: &Server, kind: &str) -> (Result<Fresh, SubmitError>, Seen) {
    let provider = server.provider(kind);
    let request = Request::of(Service::parse("p").unwrap(), None);
    let wish = Wish { provider: &provider, request: &request, account: "alice".into(), host: "ap1".into() };
    let mut seen = Seen::default();
    let outcome = approve(&wish, &mut seen, &AtomicBool::new(false));
    (outcome, seen)
}

const STARTED: &str =
    "200 {\"consent_uri\":\"URL/c/x\",\"polling_code\":\"poll-canary\",\"expires_in\":60,\"interval\":1}";
const PENDING: &str = "428 {\"error\":\"authorization_pending\"}";
const MADE: &str = "200 {\"mytoken\":\"mt-canary-0123456789\",\"mytoken_type\":\"token\",\"expires_in\":600,\"capabilities\":[\"AT\"]}";
const CODE: &str = "200 {\"device_code\":\"dc-canary\",\"user_code\":\"ABCDEFGH\",\"verification_uri\":\"URL/v\",\
    \"expires_in\":60,\"interval\":1}";
const TOKEN: &str = "200 {\"access_token\":\"at\",\"token_type\":\"Bearer\",\"refresh_token\":\"rt-canary\"}";

#[test]
fn a_mytoken_request_says_what_the_provider_wants() {
    let server = Server::start(&[STARTED, PENDING, MADE]);
    let more = "\nlifetime = \"2h\"\ncapabilities = [\"AT\"]\nscopes = [\"s1\", \"s2\"]";
    let (fresh, seen) = approve_at(&server, &format!("{MYTOKEN}{more}"));
    assert_eq!(
        fresh.ok().unwrap().top.split(",\"expires_at\"").next().unwrap(),
        "{\"mytoken\":\"mt-canary-0123456789\""
    );
    let body: serde_json::Value = serde_json::from_str(&server.post(0)).unwrap();
    assert_eq!(body["restrictions"], serde_json::json!([{ "exp": "+7200s", "scope": "s1 s2" }]));
    assert_eq!(body["capabilities"], serde_json::json!(["AT"]));
    assert_eq!((&body["name"], &body["include"]), (&serde_json::json!("mytoken-p"), &serde_json::Value::Null));
    assert_eq!(body["oidc_issuer"], "https://op.example.org");
    assert_eq!(seen.0.len(), 1);
}

#[test]
fn a_mytoken_is_restricted_as_the_settings_say_and_the_user_is_told() {
    let server = Server::start(&[STARTED, MADE]);
    let restrictions = "restrictions = { audience = [\"https://a.example\"], hosts = [\"192.0.2.0/24\"], usages_AT = 99, \
                        geoip_allow = [\"de\", \"fr\"], geoip_disallow = [\"xx\"] }";
    let (fresh, seen) =
        approve_at(&server, &format!("{MYTOKEN}\nlifetime = \"2h\"\nscopes = [\"s1\"]\n{restrictions}"));
    assert!(fresh.is_ok());
    let body: serde_json::Value = serde_json::from_str(&server.post(0)).unwrap();
    let restriction = serde_json::json!({
        "exp": "+7200s", "scope": "s1", "audience": ["https://a.example"], "hosts": ["192.0.2.0/24"], "usages_AT": 99,
        "geoip_allow": ["de", "fr"], "geoip_disallow": ["xx"],
    });
    assert_eq!(body["restrictions"], serde_json::json!([restriction]));
    let told = [
        ("scopes", "s1"),
        ("audience", "https://a.example"),
        ("lifetime", "2 hours"),
        ("hosts", "192.0.2.0/24"),
        ("countries", "de fr"),
        ("not from", "xx"),
        ("uses", "99 access tokens"),
    ];
    assert_eq!(seen.0[0].facts[3..], told.map(|(name, value)| (name, value.to_owned())));
}

#[test]
fn without_an_issuer_the_only_provider_of_a_mytoken_server_is_taken_and_one_of_several_is_not_guessed() {
    let bare = MYTOKEN.replace("\nissuer = \"https://op.example.org\"", "");
    assert_ne!(bare, MYTOKEN);
    let server = Server::listing(&["https://only.example.org"], &[STARTED, MADE]);
    assert!(approve_at(&server, &bare).0.is_ok());
    let body: serde_json::Value = serde_json::from_str(&server.post(0)).unwrap();
    assert_eq!(body["oidc_issuer"], "https://only.example.org");
    let cases: [(&[&str], &str); 2] =
        [(&["https://a.example", "https://b.example"], "https://a.example https://b.example"), (&[], "lists none")];
    for (providers, told) in cases {
        let server = Server::listing(providers, &[STARTED, MADE]);
        let error = approve_at(&server, &bare).0.err().unwrap();
        assert!(matches!(error, SubmitError::NotSetUp(_)), "{error}");
        let said = error.to_string();
        assert!(said.contains(told) && said.ends_with("ask the admins to set `issuer`."), "{said}");
        assert!(server.posts.lock().unwrap().is_empty(), "nothing was begun");
    }
    // A configured one counts.
    let server = Server::listing(&["https://a.example", "https://op.example.org"], &[STARTED, MADE]);
    assert!(approve_at(&server, MYTOKEN).0.is_ok());
    assert!(server.post(0).contains("https://op.example.org"));
}

#[test]
fn a_profile_brings_its_own_restrictions() {
    let server = Server::start(&[STARTED, MADE]);
    let more = "scopes = [\"s1\"]\naudience = [\"https://a.example\"]\nprofile = \"kit/c4p-htcondor\"";
    let (fresh, seen) = approve_at(&server, &format!("{MYTOKEN}\n{more}"));
    assert!(fresh.is_ok());
    let body: serde_json::Value = serde_json::from_str(&server.post(0)).unwrap();
    assert_eq!(body["include"], serde_json::json!(["kit/c4p-htcondor"]));
    assert_eq!((body.get("restrictions"), body.get("capabilities")), (None, None));
    // What is not asked for is not shown, whatever the settings say.
    let facts = |seen: &Seen| seen.0[0].facts.get(3..).unwrap_or_default().to_vec();
    let decides = "kit/c4p-htcondor, which decides at the server what is approved and for how long";
    assert_eq!(facts(&seen), [("profile", decides.to_owned())]);
    let server = Server::start(&[STARTED, MADE]);
    let (_, seen) = approve_at(&server, &format!("{MYTOKEN}\n{more}\nlifetime = \"2h\""));
    let body: serde_json::Value = serde_json::from_str(&server.post(0)).unwrap();
    assert_eq!(body["restrictions"], serde_json::json!([{ "exp": "+7200s", "scope": "s1" }]));
    let rest = "kit/c4p-htcondor, which decides the rest at the server";
    let told = [("scopes", "s1"), ("lifetime", "2 hours"), ("profile", rest)];
    assert_eq!(facts(&seen), told.map(|(name, value)| (name, value.to_owned())));
}

#[test]
fn a_mytoken_that_does_not_end_is_unlimited() {
    let server = Server::start(&[STARTED, "200 {\"mytoken\":\"mt-canary-0123456789\"}"]);
    let fresh = approve_at(&server, MYTOKEN).0.ok().unwrap();
    assert_eq!((fresh.top.as_str(), fresh.left), ("{\"mytoken\":\"mt-canary-0123456789\"}", Left::Unlimited));
}

#[test]
fn what_the_user_took_away_makes_a_mytoken_useless_and_it_is_given_back() {
    let useless = "200 {\"mytoken\":\"mt-canary-0123456789\",\"capabilities\":[\"tokeninfo\"]}";
    let server = Server::start(&[STARTED, useless, "204 "]);
    let said = approve_at(&server, MYTOKEN).0.err().unwrap().to_string();
    assert!(said.contains("capability AT") && !said.contains("canary") && !said.contains("revoke"), "{said}");
    let body: serde_json::Value = serde_json::from_str(&server.post(2)).unwrap();
    assert_eq!((&body["token"], &body["recursive"]), (&"mt-canary-0123456789".into(), &true.into()));
    let server = Server::start(&[STARTED, useless, "500 mt-canary-0123456789"]);
    let said = approve_at(&server, MYTOKEN).0.err().unwrap().to_string();
    assert!(said.contains("nor could it be revoked (the issuer answers HTTP 500): revoke it at"), "{said}");
    assert!(!said.contains("canary"), "{said}");
}

#[test]
fn what_is_not_stored_is_given_back_as_the_client_that_it_was_given_to() {
    let give = |kind: &str, key: &str| {
        let server = Server::start(&["200 {}"]);
        let provider = server.provider(kind);
        give_back(&provider, &Fresh { top: top(key, "rt-canary", None), left: Left::Unknown }).unwrap();
        let body = server.post(0);
        url::form_urlencoded::parse(body.as_bytes()).into_owned().collect::<std::collections::HashMap<_, _>>()
    };
    let form = give(DEVICE, "refresh_token");
    assert_eq!((form["token"].as_str(), form["client_id"].as_str()), ("rt-canary", "public"));
    let exchange = DEVICE.replace("oauth2", "token-exchange") + "\nlogin_client_id = \"of-users\"";
    let form = give(&exchange, "subject_token");
    assert_eq!((form["token"].as_str(), form["client_id"].as_str()), ("rt-canary", "of-users"));
}

#[test]
fn trouble_of_the_server_is_no_decision() {
    let html = "502 <html>bad gateway</html>";
    let server = Server::start(&[
        STARTED,
        PENDING,
        html,
        "429 Too Many Requests",
        "500 {\"error\":\"internal_server_error\"}",
        MADE,
    ]);
    assert!(approve_at(&server, MYTOKEN).0.is_ok());
    let server = Server::start(&[CODE, "503 x", "400 {\"error\":\"authorization_pending\"}", TOKEN]);
    assert!(approve_at(&server, DEVICE).0.is_ok());
}

#[test]
fn a_lost_answer_of_a_mytoken_server_begins_anew_once() {
    let gone = "401 {\"error\":\"invalid_token\",\"error_description\":\"Bad polling or transfer code\"}";
    let server = Server::start(&[STARTED, "lost", gone, STARTED, MADE]);
    let (fresh, seen) = approve_at(&server, MYTOKEN);
    assert!(fresh.is_ok());
    assert_eq!(seen.0.len(), 2, "a second page");
    // Without a loss it is what it says.
    let server = Server::start(&[STARTED, gone]);
    let (outcome, seen) = approve_at(&server, MYTOKEN);
    assert!(matches!(outcome, Err(SubmitError::Refused { .. })));
    assert_eq!(seen.0.len(), 1);
}

#[test]
fn an_expired_mytoken_page_ends_it_and_an_expired_device_code_is_replaced_once() {
    let expired = "401 {\"error\":\"expired_token\"}";
    let server = Server::start(&[STARTED, expired]);
    let (outcome, seen) = approve_at(&server, MYTOKEN);
    assert!(matches!(outcome, Err(SubmitError::NotInTime)));
    assert_eq!(seen.0.len(), 1);
    let expired = "400 {\"error\":\"expired_token\"}";
    let server = Server::start(&[CODE, expired, CODE, TOKEN]);
    let (outcome, seen) = approve_at(&server, DEVICE);
    assert!(outcome.is_ok());
    assert_eq!(seen.0.len(), 2);
    let server = Server::start(&[CODE, expired, CODE, expired]);
    let (outcome, seen) = approve_at(&server, DEVICE);
    assert!(matches!(outcome, Err(SubmitError::NotInTime)));
    assert_eq!(seen.0.len(), 2, "one new code, not two");
}

#[test]
fn slow_down_means_five_seconds_more() {
    let server = Server::start(&[CODE, "400 {\"error\":\"slow_down\"}", TOKEN]);
    let begin = Instant::now();
    assert!(approve_at(&server, DEVICE).0.is_ok());
    assert!(begin.elapsed() >= Duration::from_secs(7), "1 s, then 1 + 5 s: {:?}", begin.elapsed());
}

#[test]
fn an_interval_of_any_length_neither_breaks_the_flow_nor_outlasts_it() {
    for (told, length) in
        [(None, 5), (Some(0), 5), (Some(1), 1), (Some(61), 60), (Some(86_400), 60), (Some(u64::MAX), 60)]
    {
        assert_eq!(interval(told), Duration::from_secs(length), "{told:?}");
    }
    // The page is open for a second, so what comes of it is that nobody approved in time.
    for most in ["86400", "18446744073709551615"] {
        let of = |start: &str| {
            start
                .replace("\"interval\":1", &format!("\"interval\":{most}"))
                .replace("\"expires_in\":60", "\"expires_in\":1")
        };
        for (start, next, kind) in [(STARTED, PENDING, MYTOKEN), (CODE, "400 {\"error\":\"slow_down\"}", DEVICE)] {
            let outcome = approve_at(&Server::start(&[&of(start), next]), kind).0;
            // A device code that ran out is asked for once more, and the script has no other one.
            assert!(matches!(outcome, Err(SubmitError::NotInTime | SubmitError::Refused { .. })), "{most}: {kind}");
        }
    }
}

#[test]
fn a_length_that_no_clock_can_hold_ends_with_the_page() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let end = Instant::now() + Duration::from_millis(50);
    let in_time = runtime.block_on(wait(Duration::MAX, end, &mut Seen::default(), &AtomicBool::new(false)));
    assert!(!in_time);
}

#[test]
fn access_denied_is_the_users_no() {
    for (answers, kind) in [
        ([STARTED, "401 {\"error\":\"access_denied\",\"error_description\":\"user declined consent\"}"], MYTOKEN),
        ([CODE, "400 {\"error\":\"access_denied\"}"], DEVICE),
    ] {
        let outcome = approve_at(&Server::start(&answers), kind).0;
        assert!(matches!(outcome, Err(SubmitError::Declined)), "{kind}");
    }
}

#[test]
fn the_device_flow_sends_pkce_where_it_is_asked_for() {
    let server = Server::start(&[CODE, TOKEN]);
    let (fresh, seen) = approve_at(&server, &format!("{DEVICE}\nlogin_pkce = true\nlogin_scopes = [\"openid\"]"));
    assert_eq!(fresh.ok().unwrap().top.as_str(), "{\"refresh_token\":\"rt-canary\"}");
    let fields = |body: &str| {
        url::form_urlencoded::parse(body.as_bytes()).into_owned().collect::<std::collections::HashMap<_, _>>()
    };
    let (start, poll) = (fields(&server.post(0)), fields(&server.post(1)));
    assert_eq!((start["client_id"].as_str(), start["scope"].as_str()), ("public", "a openid"));
    assert_eq!(poll["device_code"], "dc-canary");
    let challenge =
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(sha2::Sha256::digest(&poll["code_verifier"]));
    assert_eq!(
        (start["code_challenge"].as_str(), start["code_challenge_method"].as_str()),
        (challenge.as_str(), "S256")
    );
    assert_eq!(seen.0[0].code.as_deref(), Some("ABCD-EFGH"));
    let server = Server::start(&[CODE, TOKEN]);
    assert!(approve_at(&server, DEVICE).0.is_ok());
    assert!(!server.post(0).contains("challenge") && !server.post(1).contains("verifier"));
}

#[test]
fn for_an_exchange_the_public_client_is_approved_and_its_access_token_stored() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "s").unwrap();
    let closed = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
    std::fs::set_permissions(&secret, closed).unwrap();
    let kind = format!(
        "kind = \"token-exchange\"\nissuer = \"URL\"\nclient_id = \"credmon\"\nclient_secret_file = \"{}\"\n\
         login_client_id = \"public\"\nscopes = [\"a\"]",
        secret.display()
    );
    let server = Server::start(&[CODE, TOKEN]);
    let fresh = approve_at(&server, &kind).0.ok().unwrap();
    // The refresh token of the public client is nobody's: the credmon gets one of its own client. How long that lives
    // nobody knows yet.
    assert_eq!((fresh.top.as_str(), fresh.left), ("{\"subject_token\":\"at\"}", Left::Unknown));
    for number in [0, 1] {
        let body = server.post(number);
        assert!(body.contains("client_id=public"), "{body}");
        assert!(!body.contains("offline_access") && !body.contains("credmon"), "{body}");
    }
    // Nothing to exchange.
    let server = Server::start(&[CODE, "200 {\"refresh_token\":\"rt-canary\"}"]);
    let said = approve_at(&server, &kind).0.err().unwrap().to_string();
    assert!(said.contains("no token answer") && !said.contains("canary"), "{said}");
}

#[test]
fn a_page_on_another_host_is_refused_before_anybody_sees_it() {
    let elsewhere = CODE.replace("URL/v", "https://evil.example/v");
    let (outcome, seen) = approve_at(&Server::start(&[&elsewhere, TOKEN]), DEVICE);
    assert!(matches!(outcome, Err(SubmitError::UnsafePage(_))));
    assert!(seen.0.is_empty());
    let complete =
        CODE.replace("\"expires_in\"", "\"verification_uri_complete\":\"https://evil.example/\",\"expires_in\"");
    assert!(matches!(approve_at(&Server::start(&[&complete, TOKEN]), DEVICE).0, Err(SubmitError::UnsafePage(_))));
    let allowed = format!("{DEVICE}\napproval_hosts = [\"evil.example\"]");
    assert!(approve_at(&Server::start(&[&elsewhere, TOKEN]), &allowed).0.is_ok());
}

#[test]
fn a_refused_start_is_told_in_the_issuers_words_without_control_characters() {
    let no = "400 {\"error\":\"invalid_request\",\"error_description\":\"unknown include name: '\\u001b[31mx'\"}";
    let error = approve_at(&Server::start(&[no]), MYTOKEN).0.err().unwrap();
    assert_eq!(error.to_string(), "The mytoken server refuses the request: unknown include name: ' [31mx'.");
    let error = approve_at(&Server::start(&["400 {\"error\":\"invalid_client\"}"]), DEVICE).0.err().unwrap();
    assert_eq!(error.to_string(), "The issuer refuses the request: invalid_client.");
}

#[test]
fn an_issuer_without_a_refresh_token_is_told() {
    let server = Server::start(&[CODE, "200 {\"access_token\":\"at-canary\"}"]);
    let said = approve_at(&server, DEVICE).0.err().unwrap().to_string();
    assert!(said.contains("offline_access") && !said.contains("canary"), "{said}");
}

#[test]
fn users_cannot_act_as_a_client_with_a_secret() {
    let server = Server::start(&[CODE, TOKEN]);
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "s").unwrap();
    let closed = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
    std::fs::set_permissions(&secret, closed).unwrap();
    let (outcome, _) = approve_at(&server, &format!("{DEVICE}\nclient_secret_file = \"{}\"", secret.display()));
    assert!(matches!(outcome, Err(SubmitError::NotSetUp(_))));
    assert!(server.posts.lock().unwrap().is_empty());
}
