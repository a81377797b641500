//! Where an approval brings no refresh token (`kind = "token-exchange"`): storer and credmon together, against the
//! embedded issuer. credd is stood in for by a script that stores into the credmon's directory.

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

mod site;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    process::{Command, Output, Stdio},
};

use evercred::demo::issuer::Rotation;
use nix::unistd::{User, geteuid};
use serde_json::Value;

use self::site::Site;

/// What HTCondor's program says and does, for one user; the directory is beside it.
const STORE_CRED: &str = r#"#!/bin/sh
dir=${0%/bin/*}/credentials/USER verb=$1
while [ $# -gt 0 ]; do
    [ "$1" = -s ] && name=$2
    shift
done
case $verb in
    query-oauth)
        [ -e "$dir/$name.top" ] || { echo 'No credential is stored.'; exit 1; }
        printf '\nCredential info:\nTop%sTime = %s\n' "$name" "$(stat -c %Y "$dir/$name.top")"
        [ ! -e "$dir/$name.use" ] || printf '%s = %s\n' "$name" "$(stat -c %Y "$dir/$name.use")";;
    add-oauth)
        umask 077
        mkdir -p "$dir" && cat > "$dir/$name.top.tmp" && mv "$dir/$name.top.tmp" "$dir/$name.top" &&
            kill -HUP "$(cat "${0%/bin/*}/pid")";;
esac
"#;

struct Place {
    site: Site,
    user: String,
}

impl Place {
    fn new() -> Self {
        let mut site = Site::new(600, Rotation::Strict);
        let user = User::from_uid(geteuid()).unwrap().unwrap().name;
        for client in ["credmon", "public"] {
            site.issuer.control().register_client(client, None);
        }
        let swap = format!(
            "[provider.swap]\nkind = \"token-exchange\"\nissuer = \"{}\"\nclient_id = \"credmon\"\n\
             login_client_id = \"public\"\nscopes = [\"storage.read:/\"]\n",
            site.issuer.url()
        );
        site.configure_with("", "", &swap);
        let bin = site.home.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let script = bin.join("condor_store_cred");
        fs::write(&script, STORE_CRED.replace("USER", &user)).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        site.start();
        fs::write(site.home.path().join("pid"), site.credmon.as_ref().unwrap().id().to_string()).unwrap();
        site.wait("the credmon", 30, |site| site.socket().exists());
        Self { site, user }
    }

    fn program(&self, program: &str, arguments: &[&str]) -> Command {
        let home = self.site.home.path();
        let mut command = Command::new(program);
        let path = format!("{}:{}", home.join("bin").display(), std::env::var("PATH").unwrap());
        command.args(arguments).env("PATH", path).env("EVERCRED_CONFIG", home.join("evercred.toml")).env("HOME", home);
        command.env_remove("XDG_CACHE_HOME");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, program: &str, arguments: &[&str], input: &str) -> Output {
        let mut child = self.program(program, arguments).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// A form to the issuer; what it answers.
    fn post(&self, path: &str, form: &str) -> String {
        self.ask(&format!("POST {path}"), form)
    }

    fn ask(&self, what: &str, form: &str) -> String {
        let host = self.site.issuer.url().trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).unwrap();
        let head = "HTTP/1.1\r\nconnection: close\r\ncontent-type: application/x-www-form-urlencoded";
        let length = form.len();
        write!(stream, "{what} {head}\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n{form}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    fn member(&self, file: &str, name: &str) -> Option<String> {
        let value: Value = serde_json::from_slice(&self.site.file(&self.user, file)?).unwrap();
        Some(value.get(name)?.as_str()?.to_owned())
    }

    /// Jobs have an access token, and the credmon a refresh token of its own client in the place of what was stored.
    fn is_exchanged(&self) {
        assert!(self.member("swap.use", "access_token").is_some());
        assert!(self.member("swap.top", "refresh_token").is_some_and(|token| token.starts_with("ert-")));
        assert_eq!(self.member("swap.top", "subject_token"), None);
        let storer = self.run(env!("CARGO_BIN_EXE_evercred_storer"), &["swap"], "");
        let said = String::from_utf8(storer.stderr).unwrap();
        assert_eq!((storer.status.code(), said.as_str()), (Some(0), ""), "and the next submit is silent");
    }
}

#[test]
fn an_approval_by_the_public_client_becomes_a_refresh_token_of_the_credmons_own() {
    let place = Place::new();
    let mut login = place.program(env!("CARGO_BIN_EXE_evercred"), &["login", "swap", "--json"]).spawn().unwrap();
    let mut events = Vec::new();
    for line in BufReader::new(login.stdout.take().unwrap()).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if event["event"] == "approval" {
            let code = event["code"].as_str().unwrap();
            // For whoever looks where codes must not be.
            let secrets: Vec<String> = serde_json::from_str(&place.ask("GET /control/codes", "")).unwrap();
            assert!(secrets.len() == 2 && secrets.contains(&code.replace('-', "")));
            place.post("/approve", &format!("user_code={code}&user=alice&decision=approve"));
        }
        events.push(event);
    }
    assert!(login.wait().unwrap().success(), "{events:?}\n{}", place.site.log());
    assert_eq!(events.last().unwrap()["event"], "done", "{events:?}");
    place.is_exchanged();
    // What the public client was given stays unused: one family is its own, one the credmon's.
    assert_eq!(place.site.issuer.control().records(Some("alice")).len(), 2);
}

#[test]
fn a_subject_token_that_a_portal_uploads_is_exchanged_too() {
    let place = Place::new();
    let refresh_token = place.site.refresh_token("alice");
    let form = format!("grant_type=refresh_token&refresh_token={refresh_token}&client_id=public");
    let answer: Value = serde_json::from_str(&place.post("/token", &form)).unwrap();
    let subject = answer["access_token"].as_str().unwrap();
    let upload = || place.run(env!("CARGO_BIN_EXE_evercred"), &["upload", "swap"], &format!("{subject}\n"));
    for _ in 0..2 {
        let output = upload();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.as_str()), (Some(0), ""), "{}", place.site.log());
        place.is_exchanged();
    }
    assert!(!place.site.log().contains(subject), "no secret in the log");
}
