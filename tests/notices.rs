//! Notices of the real daemon: mails through a real mail server (aiosmtpd from pip) and through a `sendmail` program,
//! JSON to a webhook, text to a Slack-compatible one; once, also over a restart; and while the mail server is down.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test: it may stop at the first thing that is wrong"
)]

mod site;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant, SystemTime},
};

use evercred::demo::issuer::{MytokenWish, Outage, Rotation};
use serde_json::Value;

use self::site::Site;

const PASSWORD: &str = "canary-smtp-password";
const TOKEN: &str = "canary-webhook-token";

/// The mail server: writes each mail as JSON on a line of `mails`.
const SERVER: &str = r#"
import asyncio, json, ssl, sys
from aiosmtpd.smtp import SMTP, AuthResult
port, out, mode = int(sys.argv[1]), sys.argv[2], sys.argv[3]
class Keep:
    async def handle_DATA(self, server, session, envelope):
        with open(out, "a") as f:
            f.write(json.dumps({"from": envelope.mail_from, "to": envelope.rcpt_tos, "tls": session.ssl is not None or mode != "plain",
                "user": getattr(session, "auth_data", None), "data": envelope.content.decode()}) + "\n")
        return "250 OK"
def login(server, session, envelope, mechanism, data):
    ok = data.login == b"evercred" and data.password == b"canary-smtp-password"
    return AuthResult(success=ok, auth_data="evercred" if ok else None)
async def main():
    context = None
    if mode != "plain":
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(sys.argv[4], sys.argv[5])
    arguments = {}
    if mode != "plain":
        arguments = dict(authenticator=login, auth_required=True, auth_require_tls=False)
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(Keep(), hostname="localhost", **arguments), "127.0.0.1", port, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"#;

struct MailServer {
    child: Child,
    port: u16,
    mails: PathBuf,
}

impl MailServer {
    /// On this port (0: some free one); with certificate and key: TLS and a login.
    fn start(home: &Path, port: u16, tls: Option<(&Path, &Path)>) -> Option<Self> {
        let python = site::python("smtp", "aiosmtpd", "aiosmtpd==1.4.6").or_else(|| {
            println!("skipped: aiosmtpd cannot be installed here (python3 -m venv, pip)");
            None
        })?;
        let mails = home.join("mails");
        let mut command = Command::new(python);
        command.args(["-c", SERVER, &port.to_string()]).arg(&mails).arg(if tls.is_some() { "tls" } else { "plain" });
        if let Some((certificate, key)) = tls {
            command.arg(certificate).arg(key);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Some(Self { child, port: line.trim().parse().unwrap_or_else(|_| panic!("the mail server: {line:?}")), mails })
    }

    fn mails(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.mails).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Answers each POST with `status` and keeps (head, body).
struct Webhook {
    url: String,
    heard: Arc<Mutex<Vec<(String, String)>>>,
}

impl Webhook {
    fn start(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/canary-path", listener.local_addr().unwrap());
        let heard: Arc<Mutex<Vec<_>>> = Arc::default();
        let kept = Arc::clone(&heard);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Some(message) = stream.ok().and_then(|mut stream| read(&mut stream, status)) else { continue };
                kept.lock().unwrap().push(message);
            }
        });
        Self { url, heard }
    }

    fn heard(&self) -> Vec<(String, String)> {
        self.heard.lock().unwrap().clone()
    }
}

fn read(stream: &mut TcpStream, status: u16) -> Option<(String, String)> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut bytes = Vec::new();
    let (head, length) = loop {
        let mut part = [0; 4096];
        let count = stream.read(&mut part).ok()?;
        bytes.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let head = head.to_lowercase();
            let length: usize = head.split("content-length: ").nth(1)?.lines().next()?.trim().parse().ok()?;
            break (head.clone(), head.len() + 4 + length);
        }
    };
    while bytes.len() < length {
        let mut part = [0; 4096];
        let count = stream.read(&mut part).ok()?;
        bytes.extend_from_slice(&part[..count]);
    }
    write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok()?;
    Some((head.clone(), String::from_utf8_lossy(&bytes[head.len() + 4..]).into_owned()))
}

fn secret(site: &Site, name: &str, text: &str) -> String {
    let path = site.home.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

/// Store a mytoken that ends in an hour, and that has been there for a month.
fn store_old(site: &Site, user: &str) {
    let wish = MytokenWish { user: user.into(), lifetime: Some(3600), ..MytokenWish::default() };
    let month = Duration::from_secs(30 * 86_400);
    site.store_dated(user, "mt", site.issuer.control().mytoken(wish).unwrap().as_bytes(), SystemTime::now() - month);
}

/// alice's refresh token is revoked, bob's old mytoken ends in an hour, carol is well.
fn troubled(notices: impl FnOnce(&Site) -> String) -> Site {
    let mut site = Site::new(600, Rotation::None);
    let home = site.home.path().display().to_string();
    let section = format!("[notices]\nevery = \"1s\"\n{}", notices(&site));
    site.configure_with(
        &format!(
            "state_directory = \"{home}/state\"\naudit_log = \"{home}/audit.jsonl\"\nmetrics_listen = \"127.0.0.1:0\""
        ),
        "",
        &section,
    );
    let alice = site.grid("alice");
    assert!(site.issuer.control().revoke(&alice));
    store_old(&site, "bob");
    site.grid("carol");
    site.start();
    site
}

fn restart(site: &mut Site) {
    site.signal("-TERM");
    site.credmon.take().unwrap().wait().unwrap();
    site.start();
}

#[test]
fn users_and_admins_are_mailed_once_over_tls_with_a_login_and_not_again_after_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, private) = (home.path().join("cert.pem"), home.path().join("key.pem"));
    fs::write(&certificate, key.cert.pem()).unwrap();
    fs::write(&private, key.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let Some(server) = MailServer::start(home.path(), 0, Some((&certificate, &private))) else { return };
    let mut site = troubled(|site| {
        let map = site.home.path().join("map");
        fs::write(&map, "# names that are not addresses\nbob robert@other.example.org\n").unwrap();
        format!(
            "smtp = \"smtps://localhost:{}\"\nsmtp_user = \"evercred\"\nsmtp_password_file = \"{}\"\nca_file = \"{}\"\n\
             mail_from = \"evercred@ap.example.org\"\nmail_to = \"{{user}}@example.org\"\nmail_map = \"{}\"\n\
             admins = [\"admin@example.org\"]\n",
            server.port,
            secret(site, "password", PASSWORD),
            certificate.display(),
            map.display(),
        )
    });
    // bob at once; alice once the refusal is confirmed, after a minute.
    let to = |address: &str| server.mails().into_iter().filter(|m| m["to"][0] == address).collect::<Vec<_>>();
    site.wait("the mail to bob", 60, |_| !to("robert@other.example.org").is_empty());
    site.wait("the mail to alice", 150, |_| !to("alice@example.org").is_empty());
    site.wait("the mails to admins", 60, |_| to("admin@example.org").len() >= 2);
    restart(&mut site);
    thread::sleep(Duration::from_secs(8));
    let mails = server.mails();
    assert_eq!(to("robert@other.example.org").len(), 1, "{mails:?}");
    assert_eq!(to("alice@example.org").len(), 1, "{mails:?}");
    assert!(to("carol@example.org").is_empty());
    let alice = to("alice@example.org").remove(0);
    assert_eq!(
        (&alice["from"], &alice["tls"], &alice["user"]),
        (&"evercred@ap.example.org".into(), &true.into(), &"evercred".into())
    );
    let data = alice["data"].as_str().unwrap();
    for part in ["Auto-Submitted: auto-generated", "evercred login grid", "(revoked)", "To: alice@example.org"] {
        assert!(data.contains(part), "{part}\n{data}");
    }
    let bob = to("robert@other.example.org").remove(0);
    assert!(bob["data"].as_str().unwrap().contains("mt: the approval ends "), "{bob}");
    let audit = fs::read_to_string(site.home.path().join("audit.jsonl")).unwrap();
    assert!(audit.contains("\"event\":\"notified\""), "{audit}");
    for place in [site.log(), audit, fs::read_to_string(site.home.path().join("state/notices.json")).unwrap()] {
        assert!(!place.contains(PASSWORD), "a secret in\n{place}");
    }
    let mode = fs::metadata(site.home.path().join("state/notices.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_mail_server_that_is_down_delays_no_renewal_is_counted_and_gets_its_mails_later() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let site = troubled(|_| {
        format!(
            "smtp = \"smtp://127.0.0.1:{port}\"\nmail_from = \"evercred@ap.example.org\"\nmail_to = \"{{user}}@example.org\"\n"
        )
    });
    site.wait("the failure", 60, |s| s.log().contains("notice not delivered; trying again later"));
    for n in 0..50 {
        site.grid(&format!("user{n:02}"));
    }
    site.wait("50 tokens meanwhile", 30, |s| (0..50).all(|n| s.file(&format!("user{n:02}"), "grid.use").is_some()));
    let audit = fs::read_to_string(site.home.path().join("audit.jsonl")).unwrap();
    assert!(audit.lines().any(|l| l.contains("\"event\":\"notified\",\"result\":\"failed\"")), "{audit}");
    let failed = || site.metric("evercred_notices_total{way=\"smtp\",result=\"failed\"}");
    site.wait("counted", 20, |_| failed().is_some_and(|count| count >= 1.0));
    println!("{:?} mails failed, and 50 tokens came meanwhile", failed());
    let Some(server) = MailServer::start(site.home.path(), port, None) else { return };
    site.wait("the mail to bob", 120, |_| server.mails().iter().any(|m| m["to"][0] == "bob@example.org"));
}

#[test]
fn a_webhook_gets_json_and_a_slack_webhook_text_for_admins_and_no_secret_is_told() {
    let (webhook, slack) = (Webhook::start(200), Webhook::start(200));
    let site = troubled(|site| {
        format!(
            "webhook = \"{}\"\nwebhook_token_file = \"{}\"\nslack_webhook_file = \"{}\"\n",
            webhook.url,
            secret(site, "token", TOKEN),
            secret(site, "slack", &slack.url),
        )
    });
    site.wait("both", 60, |_| webhook.heard().len() >= 2 && !slack.heard().is_empty());
    let heard = webhook.heard();
    let documents: Vec<Value> = heard.iter().map(|(_, body)| serde_json::from_str(body).unwrap()).collect();
    let bob = documents.iter().find(|d| d["user"] == "bob").unwrap();
    assert_eq!((&bob["schema"], &bob["for"]), (&1.into(), &"user".into()));
    assert_eq!((&bob["credentials"][0]["service"], &bob["credentials"][0]["matter"]), (&"mt".into(), &"ending".into()));
    assert!(bob["text"].as_str().unwrap().contains("evercred login mt"));
    assert!(documents.iter().any(|d| d["for"] == "admins" && d["provider"] == "mt"), "{documents:?}");
    assert!(heard.iter().all(|(head, _)| head.contains(&format!("authorization: bearer {TOKEN}"))), "{heard:?}");
    let (_, text) = slack.heard().remove(0);
    let text: Value = serde_json::from_str(&text).unwrap();
    assert!(text["text"].as_str().unwrap().contains("bob/mt"), "{text}");
    let audit = fs::read_to_string(site.home.path().join("audit.jsonl")).unwrap();
    for place in [site.log(), audit] {
        assert!(!place.contains(TOKEN) && !place.contains("canary-path"), "a secret in\n{place}");
    }
}

#[test]
fn admins_hear_once_that_an_issuer_is_down_for_all_its_credentials_and_once_that_it_answers() {
    let webhook = Webhook::start(200);
    let mut site = Site::new(600, Rotation::None);
    let home = site.home.path().display().to_string();
    let section = format!("[notices]\nevery = \"1s\"\nafter_failures = 2\nwebhook = \"{}\"\n", webhook.url);
    site.configure_with(&format!("state_directory = \"{home}/state\""), "", &section);
    site.issuer.control().set_outage(Outage::Unavailable);
    // Each of them fails once or twice: probes go round.
    for n in 0..20 {
        site.grid(&format!("user{n:02}"));
    }
    site.start();
    let documents =
        || -> Vec<Value> { webhook.heard().iter().map(|(_, body)| serde_json::from_str(body).unwrap()).collect() };
    site.wait("the outage", 60, |_| !documents().is_empty());
    thread::sleep(Duration::from_secs(3));
    let told = documents();
    assert_eq!(told.len(), 1, "{told:#?}");
    let trouble = &told[0]["troubles"][0];
    assert_eq!((&told[0]["for"], &told[0]["provider"]), (&"admins".into(), &"grid".into()));
    assert_eq!((&trouble["kind"], &trouble["credentials"]), (&"server-error".into(), &20.into()));
    assert!(trouble["down_since"].is_string(), "{told:#?}");
    site.issuer.control().set_outage(Outage::Off);
    site.wait("the end of it", 90, |_| documents().len() >= 2);
    thread::sleep(Duration::from_secs(3));
    let told = documents();
    assert_eq!((told.len(), &told[1]["over"]), (2, &serde_json::json!(["server-error"])), "{told:#?}");
}

#[test]
fn a_reload_takes_up_what_changed_in_notices_also_a_secret_in_its_place() {
    let (before, after) = (Webhook::start(200), Webhook::start(200));
    let mut site = Site::new(600, Rotation::None);
    let home = site.home.path().display().to_string();
    let daemon = format!("state_directory = \"{home}/state\"");
    let url = secret(&site, "slack", &before.url);
    site.configure_with(&daemon, "", "");
    store_old(&site, "alice");
    site.start();
    site.wait("a token", 30, |s| s.file("alice", "mt.use").is_some());
    site.configure_with(&daemon, "", &format!("[notices]\nevery = \"1s\"\nslack_webhook_file = \"{url}\"\n"));
    site.signal("-HUP");
    let reloads = |site: &Site| site.log().matches("configuration reloaded").count();
    site.wait("the first reload", 30, |s| reloads(s) == 1);
    store_old(&site, "bob");
    site.wait("a notice", 60, |_| before.heard().iter().any(|(_, body)| body.contains("bob/mt")));
    secret(&site, "slack", &after.url);
    site.signal("-HUP");
    site.wait("the second reload", 30, |s| reloads(s) == 2);
    store_old(&site, "carol");
    site.wait("another notice", 60, |_| after.heard().iter().any(|(_, body)| body.contains("carol/mt")));
    assert!(!before.heard().iter().any(|(_, body)| body.contains("carol/mt")));
}

#[test]
fn a_mail_server_that_hangs_holds_up_no_webhook() {
    let webhook = Webhook::start(200);
    let hanging = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = hanging.local_addr().unwrap().port();
    let held: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let holder = Arc::clone(&held);
    // It accepts, and never says a word.
    thread::spawn(move || hanging.incoming().flatten().for_each(|stream| holder.lock().unwrap().push(stream)));
    let site = troubled(|_| {
        format!(
            "smtp = \"smtp://127.0.0.1:{port}\"\nmail_from = \"evercred@ap.example.org\"\n\
             mail_to = \"{{user}}@example.org\"\nwebhook = \"{}\"\n",
            webhook.url
        )
    });
    site.wait("the mail server", 60, |_| !held.lock().unwrap().is_empty());
    site.wait("both notices", 60, |_| webhook.heard().len() >= 2);
    assert!(!site.log().contains("notice not delivered"), "the mail is still under way\n{}", site.log());
    site.wait("the failure", 60, |s| s.log().contains("notice not delivered; trying again later way=smtp"));
}

#[test]
fn a_chat_that_refuses_is_told_again_later_and_its_url_stays_secret() {
    let slack = Webhook::start(403);
    let site = troubled(|site| format!("slack_webhook_file = \"{}\"\n", secret(site, "slack", &slack.url)));
    site.wait("the failure", 60, |s| s.log().contains("it answers HTTP 403"));
    assert!(!site.log().contains("canary-path"), "{}", site.log());
}

#[test]
fn sendmail_runs_without_our_privileges_or_environment_and_takes_addresses_as_arguments() {
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = home.path().join("sendmail");
    let out = home.path().join("out");
    fs::write(&program, format!("#!/bin/sh\n(id -u; env; echo \"$@\"; cat) > {}.$$\nmv {0}.$$ {0}\n", out.display()))
        .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let site = troubled(|_| {
        format!(
            "sendmail = \"{}\"\nmail_from = \"evercred@ap.example.org\"\nmail_to = \"{{user}}@example.org\"\n",
            program.display()
        )
    });
    let end = Instant::now() + Duration::from_secs(60);
    while !out.exists() {
        assert!(Instant::now() < end, "{}", site.log());
        thread::sleep(Duration::from_millis(50));
    }
    let text = fs::read_to_string(&out).unwrap();
    let uid = text.lines().next().unwrap();
    if nix::unistd::geteuid().is_root() {
        assert_ne!(uid, "0", "{text}");
    }
    assert!(text.contains("-i -f evercred@ap.example.org -- bob@example.org\n"), "{text}");
    assert!(text.contains("Subject: Your jobs' credential will end soon"), "{text}");
    assert!(!text.contains("CARGO") && !text.contains("HOME="), "{text}");
}
