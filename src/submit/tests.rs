//! The cases as users see them, on a real terminal (a pty), with the embedded issuer. credd is stood in for by a script
//! that answers as HTCondor 25.14.1 does; `tests/pool/e2e-storer` runs the same against the real one.
//! The file is long: every case of the prompt, one after the other, on the same stand-in.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, mpsc},
    time::Instant,
};

use nix::{
    fcntl::OFlag,
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
};
use serde_json::{Value, json};

use super::{provide::Known, *};
use crate::{
    config::load_with,
    core::{
        snapshot::{Credential, State, Trouble},
        stand_in,
        time::Timestamp,
    },
    courier::http::now,
    demo::issuer::{Issuer, Options, Running},
    error::Kind,
    submit::{
        cases::Case,
        lock::{Holder, Lock, Locked},
        portal::Portal,
    },
};

/// What HTCondor 25.14.1 says, over files beside the script.
const STORE_CRED: &str = r#"#!/bin/sh
dir=${0%/*} verb=$1 name= scopes= audience=
[ $# -gt 0 ] && shift
while [ $# -gt 0 ]; do
    case $1 in
        -s) name=$2; shift;;
        -S) scopes=$2; shift;;
        -A) audience=$2; shift;;
        -i) shift;;
    esac
    shift
done
printf 'Account: <current> (alice)\nCredType: oauth\n\n'
[ -n "$verb" ] && echo "$verb $name" >> "$dir/calls"
case $verb in
    query-oauth)
        if [ -z "$name" ]; then
            echo 'A credential was stored and is valid.'; printf '\nCredential info:\n'
            for file in "$dir"/*.top "$dir"/*.use; do
                [ -e "$file" ] && printf "'%s' = %s\n" "${file##*/}" "$(stat -c %Y "$file")"
            done
            exit 0
        fi
        [ -e "$dir/$name.top" ] || { echo 'No credential is stored.'; exit 1; }
        case $(cat "$dir/$name.top") in
            "{"*) ;;
            *) echo 'Operation failed.'; echo '    Failure parsing credential as JSON'; exit 1;;
        esac
        [ "$scopes|$audience" = "$(cat "$dir/$name.wish")" ] || exit 2
        if [ -e "$dir/$name.use" ]; then echo 'A credential was stored and is valid.'
        else echo 'A credential was stored and is waiting for processing.'; fi
        printf '\nCredential info:\nTop%sTime = %s\n' "$name" "$(stat -c %Y "$dir/$name.top")"
        [ -e "$dir/$name.use" ] && printf '%s = %s\n' "$name" "$(stat -c %Y "$dir/$name.use")"
        exit 0;;
    add-oauth)
        cat > "$dir/$name.new" && mv "$dir/$name.new" "$dir/$name.top"
        printf '%s' "$scopes|$audience" > "$dir/$name.wish"
        [ -e "$dir/no-use" ] || echo token > "$dir/$name.use"
        echo 'Operation succeeded and is waiting for processing.';;
esac
"#;

fn put_script(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    // A fork of another test may hold the file open for writing for a moment.
    while std::process::Command::new(path).stdin(Stdio::null()).stdout(Stdio::null()).status().is_err() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A place to submit from.
pub(crate) struct Desk {
    dir: tempfile::TempDir,
    pub(crate) issuer: Running,
    settings: Settings,
    keeper: Mutex<Known>,
    cancelled: AtomicBool,
}

impl Desk {
    pub(crate) fn new(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let issuer = Issuer::start(&Options::default()).unwrap();
        put_script(&dir.path().join("condor_store_cred"), STORE_CRED);
        let text = format!(
            "[storer]\nuse_wait = \"3s\"\n[provider.helmholtz]\nkind = \"mytoken\"\nserver = \"{url}/mytoken\"\n\
             issuer = \"{url}\"\n{more}\n[provider.wlcg]\nkind = \"oauth2\"\nissuer = \"{url}\"\nclient_id = \"x\"\n\
             scopes = [\"storage.read:/\"]\n[provider.swap]\nkind = \"token-exchange\"\nissuer = \"{url}\"\n\
             client_id = \"credmon\"\nlogin_client_id = \"public\"\n[provider.own]\nkind = \"client-credentials\"\n\
             issuer = \"{url}\"\nclient_id = \"x\"\nclient_secret_file = \"/nobody/reads/it\"\nusers = [\"alice\"]\n\
             services = [\"own\", \"ce\"]\nscopes = [\"compute.read\"]\naudiences = {{ ce1 = \"https://ce1\" }}\n\
             [provider.others]\nkind = \"client-credentials\"\nissuer = \"{url}\"\nclient_id = \"x\"\n\
             client_secret_file = \"/nobody/reads/it\"\nusers = [\"harvester\"]\n",
            url = issuer.url()
        );
        let settings = settings_of(dir.path(), &text);
        Self { dir, issuer, settings, keeper: Mutex::new(Known::Nowhere), cancelled: AtomicBool::new(false) }
    }

    /// Let this file be older.
    pub(crate) fn age(&self, name: &str, seconds: u64) {
        let file = File::options().write(true).open(self.file(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }

    fn cancel(&self) {
        self.cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// The provider of a service.
    pub(crate) fn provider(&self, service: &str) -> Provider {
        owner(&Request::parse(service).unwrap(), &self.settings).expect("one of ours").clone()
    }

    /// How often credd was asked to do this.
    pub(crate) fn calls(&self, verb: &str) -> usize {
        std::fs::read_to_string(self.file("calls")).unwrap_or_default().matches(verb).count()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn stored_at(&self, name: &str) -> Option<Timestamp> {
        let modified = std::fs::metadata(self.file(name)).ok()?.modified().ok()?;
        let since = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some(Timestamp::from_secs(i64::try_from(since.as_secs()).ok()?))
    }

    pub(crate) fn knows(&self, left: i64, kind: Option<Kind>) {
        let end = Timestamp(now().0 + left * 1000);
        let credential = Credential {
            user: "alice".into(),
            service: "helmholtz".into(),
            handle: None,
            provider: "helmholtz".into(),
            state: State::Fresh,
            expires: None,
            renews: None,
            refresh_token_expires: Some(end),
            rolling: None,
            stored: self.stored_at("helmholtz.top"),
            renewed: None,
            generation: 1,
            error: kind.map(|kind| Trouble { kind, detail: "so it says".into(), since: Some(now()), times: 2 }),
            flagged: None,
            replicas: Vec::new(),
        };
        *self.keeper.lock().unwrap() = Known::Told(HashMap::from([("helmholtz".to_owned(), credential)]));
    }

    /// Let the keeper say something else of what it knows.
    fn keeper_says(&self, otherwise: impl FnMut(&mut Credential)) {
        if let Known::Told(credentials) = &mut *self.keeper.lock().unwrap() {
            credentials.values_mut().for_each(otherwise);
        }
    }

    /// As a credmon and credd leave it.
    fn stored(&self) {
        std::fs::write(self.file("helmholtz.top"), "{\"mytoken\":\"old\"}").unwrap();
        std::fs::write(self.file("helmholtz.wish"), "|").unwrap();
        std::fs::write(self.file("helmholtz.use"), "old").unwrap();
    }

    fn top(&self, name: &str) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.file(&format!("{name}.top"))).ok()?).ok()
    }

    /// Submit on this terminal, or on none; several requests are told apart by ` + `.
    fn submit(&self, requests: &str, terminal: Option<Terminal>, messages: Box<dyn Write>) -> Result<(), SubmitError> {
        let mut human = Human::with("alice", Purpose::Submit, terminal, messages);
        human.several = requests.contains(" + ");
        let outcome = self.provide(requests, false, &mut human);
        human.clear();
        outcome
    }

    /// `evercred login` without a terminal; what it says.
    fn login(&self, renew: bool) -> (Result<(), SubmitError>, String) {
        let (said, messages) = recorder();
        let outcome = self.provide("helmholtz", renew, &mut Human::with("alice", Purpose::Login, None, messages));
        (outcome, said())
    }

    fn provide(&self, requests: &str, renew: bool, voice: &mut dyn Voice) -> Result<(), SubmitError> {
        let wanted: Vec<_> = requests
            .split(" + ")
            .map(|request| {
                let request = Request::parse(request)?;
                let provider = owner(&request, &self.settings).expect("one of ours");
                Ok((request, provider))
            })
            .collect::<Result<_, SubmitError>>()?;
        self.at_counter(renew, |counter| counter.provide(&wanted, voice))?;
        voice.tell(Event::Done);
        Ok(())
    }

    /// With what all programs share, as they have it here.
    pub(crate) fn at_counter<T>(&self, renew: bool, work: impl FnOnce(&Counter<'_>) -> T) -> T {
        let credd = Credd::at(self.file("condor_store_cred"));
        let keeper = || self.keeper.lock().unwrap().clone();
        let mut counter = counter(&credd, &keeper, &self.settings, &self.cancelled, renew);
        counter.account = "alice".into();
        counter.host = "ap1".into();
        counter.lock_places = vec![self.dir.path().to_owned()];
        counter.note_places = vec![self.dir.path().join("cache")];
        work(&counter)
    }

    /// Another program of the user, which has the lock and may take so long.
    fn busy(&self, length: Duration) -> Lock {
        let me = Holder { pid: 4711, ..Holder::me("helmholtz_eu", length) };
        let places = [self.dir.path().to_owned()];
        let Locked::Held(lock) = Lock::take(&places, &me, length, &self.cancelled, |_, _| ()) else { panic!("free") };
        lock
    }

    /// Submit on a terminal of 100 columns without drawing; what is on it then, with what changes from run to run
    /// taken out.
    fn on_terminal(&self, request: &str, user: impl FnOnce(&Desk, &mut Screen) + Send) -> String {
        let (mut screen, terminal, messages) = pty();
        let mut outcome = std::thread::scope(|scope| {
            let submit = scope.spawn(move || {
                let outcome = self.submit(request, Some(terminal), Box::new(messages));
                outcome.map_or_else(
                    |error| format!("{} [{}]\n", error.line(Purpose::Submit), error.code()),
                    |()| String::new(),
                )
            });
            let fail = Fail(self);
            user(self, &mut screen);
            std::mem::forget(fail);
            submit.join().unwrap()
        });
        screen.drain();
        outcome.insert_str(0, &screen.seen.replace("\r\n", "\n"));
        let at = self.issuer.url().trim_start_matches("http://");
        let mut text = outcome.replace(self.issuer.url(), "https://issuer.example").replace(at, "issuer.example");
        for start in ["/mytoken/c/", "enter this code there:\n"] {
            text = masked(&text, start);
        }
        text.lines().map(|line| steady(line) + "\n").collect()
    }
}

/// A user who panics must not leave a submit that waits.
struct Fail<'a>(&'a Desk);

impl Drop for Fail<'_> {
    fn drop(&mut self) {
        self.0.cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// The 8 letters (and the dash) after `start`.
fn masked(text: &str, start: &str) -> String {
    match text.split_once(start) {
        Some((before, after)) => {
            let rest = after.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-');
            format!("{before}{start}CODE{rest}")
        }
        None => text.to_owned(),
    }
}

/// A second more or less.
fn steady(line: &str) -> String {
    for (begin, instead) in [
        ("6 days 23 hours 59 minutes", "6 days 23 hours 59 minutes 58 seconds"),
        ("2 days 11 hours 59 minutes", "2 days 11 hours 59 minutes 58 seconds"),
        ("1 hour 59 minutes", "1 hour 59 minutes 58 seconds"),
        ("2 hours ago", "2 hours ago"),
        ("2 hours 1 second ago", "2 hours ago"),
        ("2 hours 2 seconds ago", "2 hours ago"),
    ] {
        if let Some((before, after)) = line.split_once(begin) {
            let end = if after.contains("ago") || begin.ends_with("ago") { " A new one is needed." } else { "" };
            let stop = if before.contains("time") || begin.ends_with("ago") { "." } else { "" };
            return format!("{before}{instead}{stop}{end}");
        }
    }
    line.to_owned()
}

fn settings_of(dir: &Path, text: &str) -> Settings {
    let file = dir.join("evercred.toml");
    std::fs::write(&file, text).unwrap();
    let sources = Sources { config: Some(file), credential_directory: Some("/creds".into()), ..Sources::default() };
    load_with(&sources.without_secrets(), &Knobs::default()).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// The user's end of a terminal.
struct Screen {
    master: File,
    seen: String,
}

impl Screen {
    fn read(&mut self) -> bool {
        let mut ready = [nix::poll::PollFd::new(self.master.as_fd(), nix::poll::PollFlags::POLLIN)];
        if nix::poll::poll(&mut ready, nix::poll::PollTimeout::from(50_u8)).unwrap_or(0) == 0 {
            return false;
        }
        let mut part = [0; 4096];
        let Ok(read) = self.master.read(&mut part) else { return false };
        self.seen.push_str(&String::from_utf8_lossy(&part[..read]));
        true
    }

    fn wait_for(&mut self, text: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        while !self.seen.contains(text) {
            self.read();
            assert!(Instant::now() < end, "{text:?} never came: {}", self.seen);
        }
    }

    fn drain(&mut self) {
        while self.read() {}
    }

    fn type_line(&mut self, line: &str) {
        self.master.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn url(&self) -> String {
        self.seen.lines().rfind(|line| line.starts_with("http")).unwrap().trim().to_owned()
    }
}

fn pty() -> (Screen, Terminal, File) {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let open = || OpenOptions::new().read(true).write(true).open(ptsname_r(&master).unwrap()).unwrap();
    let (slave, messages) = (open(), open());
    let master = File::from(master.as_fd().try_clone_to_owned().unwrap());
    (Screen { master, seen: String::new() }, Terminal::of(slave, true, true), messages)
}

fn post(url: &str, kind: &str, body: String) -> (u16, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let request = reqwest::Client::new().post(url).header("content-type", kind).body(body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    })
}

/// On the consent page of the mytoken server.
fn consent(url: &str, yes: bool) {
    let exp = now().secs() + 604_800;
    let body = json!({ "restrictions": [{ "exp": exp }], "capabilities": ["AT", "tokeninfo"], "user": "alice" });
    let (status, answer) = post(url, "application/json", if yes { body.to_string() } else { String::new() });
    assert_eq!(status, 278, "{answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    if let Some(next) = answer["authorization_uri"].as_str() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { reqwest::get(next).await.unwrap() });
    }
}

fn approving(_: &Desk, screen: &mut Screen) {
    screen.wait_for(words::POLLING);
    consent(&screen.url(), true);
}

#[test]
fn case_1_without_a_credential_one_approval_makes_one() {
    let desk = Desk::new("");
    insta::assert_snapshot!(desk.on_terminal("helmholtz", approving));
    let top = desk.top("helmholtz").unwrap();
    assert!(top["mytoken"].as_str().unwrap().starts_with("eyJ"));
    assert!((top["expires_at"].as_i64().unwrap() - now().secs() - 604_800).abs() < 60);
}

#[test]
fn case_2_with_a_valid_credential_the_jobs_go_at_once() {
    let desk = Desk::new("");
    desk.stored();
    desk.knows(2 * 86_400 + 43_200 - 1, None);
    insta::assert_snapshot!(desk.on_terminal("helmholtz", |_, _| ()));
    assert_eq!(
        std::fs::read_to_string(desk.file("calls")).unwrap(),
        "query-oauth helmholtz\n",
        "one question to credd"
    );
}

#[test]
fn where_no_keeper_can_be_asked_no_more_is_said_than_is_known() {
    let desk = Desk::new("");
    desk.on_terminal("helmholtz", approving);
    // Approved here, so its end is noted.
    let text = desk.on_terminal("helmholtz", |_, _| ());
    assert!(text.contains("A credential has been found that was approved for another 6 days 23 hours"), "{text}");
    assert!(text.contains("whether it still works is not known on this host."), "{text}");
    assert!(!text.contains("valid credential"), "{text}");
    // Stored by another hand since.
    desk.age("helmholtz.top", 60);
    insta::assert_snapshot!(desk.on_terminal("helmholtz", |_, _| ()));
}

#[test]
fn a_keeper_that_is_there_and_does_not_answer_is_told_also_without_a_terminal() {
    let desk = Desk::new("");
    desk.stored();
    *desk.keeper.lock().unwrap() = Known::Silent;
    let (said, messages) = recorder();
    desk.submit("helmholtz", None, messages).unwrap();
    let warning = said();
    assert!(warning.starts_with("evercred: the credential monitor of this host does not answer"), "{warning}");
    assert_eq!(warning.lines().count(), 1, "{warning}");
    // About what is not there it has nothing to say.
    let error = desk.submit("wlcg", None, recorder().1).unwrap_err();
    assert_eq!(error.code(), 3);
}

/// Readers in their order, each answered with one of these; `None`: kept waiting. The last one stays.
fn keeper_socket(dir: &Path, answers: Vec<Option<Vec<u8>>>) -> PathBuf {
    let path = dir.join("status.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let mut hanging = Vec::new();
        for (number, reader) in listener.incoming().enumerate() {
            let mut reader = reader.unwrap();
            match &answers[number.min(answers.len() - 1)] {
                // One that was turned away gets nothing.
                Some(answer) => drop(reader.write_all(answer)),
                None => hanging.push(reader),
            }
        }
    });
    path
}

#[test]
fn only_a_host_without_the_socket_has_no_keeper_and_one_that_turns_away_is_asked_again() {
    let status = json!({
        "schema": 1, "version": "0", "pid": 1, "now": "2026-11-24T22:09:50.123Z", "started": "2026-11-24T22:09:50.123Z",
        "everybody": false, "courier": true, "providers": [], "credentials": [],
    });
    let told = || Some(serde_json::to_vec(&status).unwrap());
    let nothing = || Some(Vec::new());
    let soon = Duration::from_millis(400);
    let ask = |answers: Vec<Option<Vec<u8>>>, patience| {
        let dir = tempfile::tempdir().unwrap();
        asked(&keeper_socket(dir.path(), answers), "alice", patience)
    };
    assert!(matches!(ask(vec![nothing()], soon), Known::Silent), "it closes at once");
    assert!(matches!(ask(vec![None], soon), Known::Silent), "it hangs");
    let long = Duration::from_secs(60);
    assert!(matches!(ask(vec![nothing(), nothing(), told()], long), Known::Told(_)), "it was full");
    assert!(matches!(ask(vec![None, told()], long), Known::Told(_)), "the first one hangs");
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("status.sock");
    assert!(matches!(asked(&socket, "alice", long), Known::Nowhere), "no socket");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(matches!(asked(&socket, "alice", soon), Known::Silent), "nobody listens any more");
}

#[test]
fn a_keeper_of_another_credd_is_not_believed() {
    let desk = Desk::new("");
    desk.stored();
    // This host's keeper has a credential of the same name, of another `.top`: the jobs' credd is elsewhere.
    for kind in [None, Some(Kind::Revoked)] {
        desk.knows(86_400 * 5, kind);
        desk.age("helmholtz.top", 60);
        let text = desk.on_terminal("helmholtz", |_, _| ());
        assert!(text.contains("Whether it still works, and how long, is not known"), "{text}");
        assert!(!text.contains("valid credential") && !text.contains("revoked"), "{text}");
        assert!(text.ends_with("will now be submitted!\n"), "{text}");
        desk.stored();
    }
    // Nor if it has none of that name.
    *desk.keeper.lock().unwrap() = Known::Told(HashMap::new());
    assert!(desk.on_terminal("helmholtz", |_, _| ()).contains("and how long, is not known"));
}

#[test]
fn an_access_token_that_is_over_is_waited_for_while_the_keeper_is_at_it_else_told() {
    let desk = Desk::new("");
    desk.stored();
    desk.age("helmholtz.top", 7200);
    desk.age("helmholtz.use", 7200);
    let ended = |ago: i64, kind| {
        desk.knows(86_400 * 5, kind);
        desk.keeper_says(|credential| credential.expires = Some(Timestamp(now().0 - ago * 1000)));
    };
    // It comes while we wait.
    ended(3600, None);
    let text = desk.on_terminal("helmholtz", |desk, _| {
        while desk.calls("query-oauth") < 3 {
            std::thread::sleep(Duration::from_millis(5));
        }
        ended(-3600, None);
    });
    assert!(!text.contains("access token") && text.ends_with("will now be submitted!\n"), "{text}");
    // It does not, and the keeper knows why: nobody waits.
    ended(3600, Some(Kind::CourierLost));
    let asked = desk.calls("query-oauth");
    let text = desk.on_terminal("helmholtz", |_, _| ());
    assert!(text.contains("Its access token ended 1 hour") && !text.contains("will now be submitted"), "{text}");
    assert_eq!(desk.calls("query-oauth"), asked + 1);
    // It does not, and the keeper does not say why: after the usual wait.
    ended(3600, None);
    let (said, messages) = recorder();
    desk.submit("helmholtz", None, messages).unwrap();
    let warning = said();
    assert!(warning.starts_with("evercred: helmholtz: Its access token ended 1 hour"), "{warning}");
    assert_eq!(warning.lines().count(), 1, "{warning}");
    // It does not, and only somebody can mend that: the jobs do not go.
    for (kind, times) in [(Kind::ClientRefused, 1), (Kind::ClientRefused, 9)] {
        ended(3600, Some(kind));
        desk.keeper_says(|credential| credential.error.as_mut().unwrap().times = times);
        let error = desk.submit("helmholtz", None, recorder().1).unwrap_err();
        let line = error.line(Purpose::Submit);
        assert_eq!((error.code(), error.label()), (1, "not-usable"), "{line}");
        assert!(
            line.starts_with("The credential for helmholtz was stored, but its access token ended 1 hour"),
            "{line}"
        );
        assert!(line.ends_with(&format!("({kind}: so it says); see `evercred explain {kind}`.")), "{line}");
    }
    // A single refusal does not count yet: it is waited for as usual, and told.
    ended(3600, Some(Kind::Revoked));
    desk.keeper_says(|credential| credential.error.as_mut().unwrap().times = 1);
    let (said, messages) = recorder();
    desk.submit("helmholtz", None, messages).unwrap();
    let warning = said();
    assert!(warning.contains("Its access token ended 1 hour"), "{warning}");
    // No keeper: by its age.
    *desk.keeper.lock().unwrap() = Known::Nowhere;
    desk.age("helmholtz.top", 3600);
    desk.age("helmholtz.use", 3600);
    let (said, messages) = recorder();
    desk.submit("helmholtz", None, messages).unwrap();
    assert_eq!(said(), "", "an hour is no reason");
    desk.age("helmholtz.top", 3 * 86_400);
    desk.age("helmholtz.use", 3 * 86_400);
    let text = desk.on_terminal("helmholtz", |_, _| ());
    assert!(text.contains("Its access token was made 3 days"), "{text}");
    assert!(!text.contains("will now be submitted"), "{text}");
}

#[test]
fn case_3_with_less_than_a_day_left_the_user_is_asked() {
    let desk = Desk::new("");
    desk.stored();
    desk.knows(7199, None);
    let answered = desk.on_terminal("helmholtz", |_, screen| {
        screen.wait_for(words::RENEW);
        for (answer, times) in [("", 2), ("Y", 3), ("no", 3)] {
            screen.type_line(answer);
            while screen.seen.matches(words::RENEW).count() < times {
                screen.read();
            }
        }
    });
    insta::assert_snapshot!("case_3_no", answered);
    assert_eq!(desk.top("helmholtz").unwrap()["mytoken"], "old");
    let answered = desk.on_terminal("helmholtz", |desk, screen| {
        screen.wait_for(words::RENEW);
        screen.type_line("yes");
        approving(desk, screen);
    });
    insta::assert_snapshot!("case_3_yes", answered);
    assert_ne!(desk.top("helmholtz").unwrap()["mytoken"], "old");
}

#[test]
fn case_3_an_empty_answer_is_what_the_provider_says() {
    let desk = Desk::new("renew_default = \"no\"");
    desk.stored();
    desk.knows(7199, None);
    desk.on_terminal("helmholtz", |_, screen| {
        screen.wait_for(words::RENEW);
        screen.type_line("");
    });
    assert_eq!(desk.top("helmholtz").unwrap()["mytoken"], "old");
}

#[test]
fn case_4_a_revoked_credential_is_replaced() {
    let desk = Desk::new("");
    desk.stored();
    desk.knows(86_400 * 5, Some(Kind::Revoked));
    insta::assert_snapshot!(desk.on_terminal("helmholtz", approving));
}

#[test]
fn case_5_an_expired_credential_is_replaced() {
    let desk = Desk::new("");
    desk.stored();
    desk.knows(-7200, Some(Kind::Expired));
    insta::assert_snapshot!(desk.on_terminal("helmholtz", approving));
}

#[test]
fn case_6_a_credential_that_the_issuer_behind_refuses_is_replaced() {
    let desk = Desk::new("");
    desk.stored();
    desk.knows(86_400 * 5, Some(Kind::ReauthNeeded));
    insta::assert_snapshot!(desk.on_terminal("helmholtz", approving));
}

#[test]
fn other_scopes_than_stored_need_a_new_credential() {
    let desk = Desk::new("");
    desk.stored();
    insta::assert_snapshot!(desk.on_terminal("helmholtz&scopes=a,b&audience=u1 u2", approving));
    assert_eq!(std::fs::read_to_string(desk.file("helmholtz.wish")).unwrap(), "a,b|u1 u2");
}

#[test]
fn a_declined_request_stores_nothing_and_submits_nothing() {
    let desk = Desk::new("");
    let text = desk.on_terminal("helmholtz", |_, screen| {
        screen.wait_for(words::POLLING);
        consent(&screen.url(), false);
    });
    insta::assert_snapshot!(text);
    assert_eq!(desk.top("helmholtz"), None);
}

#[test]
fn ctrl_c_at_the_prompt_stores_nothing_and_is_130() {
    let desk = Desk::new("");
    let text = desk.on_terminal("helmholtz", |desk, screen| {
        screen.wait_for(words::POLLING);
        desk.cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(text.ends_with("Cancelled: nothing was stored. [130]\n"), "{text}");
    assert_eq!(desk.top("helmholtz"), None);
}

#[test]
fn an_issuer_that_is_down_is_told_in_one_line() {
    let mut desk = Desk::new("");
    let gone = std::mem::replace(&mut desk.issuer, Issuer::start(&Options::default()).unwrap());
    let url = gone.url().to_owned();
    drop(gone);
    std::thread::sleep(Duration::from_millis(200));
    let text = desk.on_terminal("helmholtz", |_, _| ());
    let last = text.lines().last().unwrap().to_owned();
    assert!(last.starts_with("The mytoken server could not be reached: "), "{url}: {text}");
    assert!(last.ends_with(". [1]"), "{text}");
}

#[test]
fn without_a_terminal_a_good_credential_costs_no_word() {
    let desk = Desk::new("");
    desk.stored();
    desk.knows(86_401 * 2, None);
    let (said, messages) = recorder();
    desk.submit("helmholtz", None, messages).unwrap();
    assert_eq!(said(), "");
    desk.knows(7199, None);
    let (said, messages) = recorder();
    desk.submit("helmholtz", None, messages).unwrap();
    let warning = said();
    assert_eq!(warning.lines().count(), 1, "{warning}");
    assert!(warning.contains("ends in 1 hour 59 minutes") && warning.contains("evercred login helmholtz --renew"));
}

#[test]
fn without_a_terminal_a_missing_credential_names_the_command_at_once() {
    let desk = Desk::new("");
    let start = Instant::now();
    let (said, messages) = recorder();
    let error = desk.submit("helmholtz&handle=eu&scopes=a,b", None, messages).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(error.code(), 3);
    assert_eq!(
        error.line(Purpose::Submit),
        "evercred: helmholtz_eu: No credential has been found! Approve it on a terminal: \
         evercred login helmholtz_eu --scopes 'a,b'"
    );
    assert_eq!(said(), "");
    assert_eq!(desk.issuer.control().stats().requests, 0, "nobody was asked");
}

#[test]
fn without_a_terminal_a_missing_second_credential_is_told_before_the_first_is_waited_for() {
    let desk = Desk::new("");
    // Its `.use` is not there yet, or is over: both are waited for.
    for over in [false, true] {
        desk.stored();
        if over {
            desk.knows(86_400 * 5, None);
            desk.keeper_says(|credential| credential.expires = Some(Timestamp(now().0 - 60_000)));
        } else {
            std::fs::remove_file(desk.file("helmholtz.use")).unwrap();
        }
        let asked = desk.calls("query-oauth");
        let error = desk.submit("helmholtz + wlcg", None, recorder().1).unwrap_err();
        assert_eq!(error.code(), 3, "{error}");
        assert!(error.to_string().starts_with("evercred: wlcg: No credential has been found!"), "{error}");
        assert_eq!(desk.calls("query-oauth"), asked + 2, "each once: nothing was waited for");
    }
}

#[test]
fn a_login_without_a_terminal_says_what_there_is_and_what_a_renewal_needs() {
    let desk = Desk::new("");
    desk.stored();
    desk.knows(86_401 * 2, None);
    let (outcome, said) = desk.login(false);
    assert!(outcome.is_ok());
    assert!(said.starts_with("A valid credential has been found with a remaining life time of 2 days"), "{said}");
    let (outcome, said) = desk.login(true);
    let error = outcome.unwrap_err();
    assert_eq!((error.code(), error.label()), (3, "needs-human"));
    assert_eq!(
        error.line(Purpose::Login),
        "evercred: helmholtz: A new credential needs your approval. Give it on a terminal: evercred login helmholtz \
         --renew"
    );
    assert!(said.starts_with("A valid credential has been found"), "{said}");
    assert_eq!((desk.calls("add-oauth"), desk.issuer.control().stats().requests), (0, 0));
}

#[test]
fn a_portal_renews_a_valid_credential_by_events() {
    let desk = Desk::new("");
    desk.stored();
    desk.age("helmholtz.top", 60);
    desk.knows(86_401 * 2, None);
    let (said, messages) = recorder();
    std::thread::scope(|scope| {
        let login = scope.spawn(|| desk.provide("helmholtz", true, &mut Portal::to(messages)));
        let fail = Fail(&desk);
        let (mut events, end) = (String::new(), Instant::now() + Duration::from_secs(30));
        let url = loop {
            events.push_str(&said());
            let approval = events.lines().find(|line| line.contains("\"approval\"")).map(str::to_owned);
            if let Some(approval) = approval {
                break serde_json::from_str::<Value>(&approval).unwrap()["url"].as_str().unwrap().to_owned();
            }
            assert!(Instant::now() < end, "{events}");
            std::thread::sleep(Duration::from_millis(20));
        };
        consent(&url, true);
        login.join().unwrap().unwrap();
        std::mem::forget(fail);
        events.push_str(&said());
        let names: Vec<_> = events
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].as_str().unwrap().to_owned())
            .filter(|name| name != "waiting")
            .collect();
        assert_eq!(names, ["found", "approval", "created", "done"]);
    });
    assert_ne!(desk.top("helmholtz").unwrap()["mytoken"], "old");
}

#[test]
fn two_submits_at_once_make_one_prompt() {
    let desk = Desk::new("");
    let (mut first, first_terminal, first_messages) = pty();
    let (mut second, second_terminal, second_messages) = pty();
    std::thread::scope(|scope| {
        let one = scope.spawn(|| desk.submit("helmholtz", Some(first_terminal), Box::new(first_messages)));
        first.wait_for(words::POLLING);
        let other = scope.spawn(|| desk.submit("helmholtz", Some(second_terminal), Box::new(second_messages)));
        second.wait_for("waiting for it ...");
        consent(&first.url(), true);
        one.join().unwrap().unwrap();
        other.join().unwrap().unwrap();
    });
    second.drain();
    assert!(second.seen.contains("A credential has been found that was approved for another"), "{}", second.seen);
    assert!(!second.seen.contains(words::VISIT), "{}", second.seen);
    let calls = std::fs::read_to_string(desk.file("calls")).unwrap();
    assert_eq!(calls.matches("add-oauth").count(), 1, "{calls}");
}

#[test]
fn another_submit_is_waited_for_as_long_as_it_may_take_and_then_told() {
    let desk = Desk::new("");
    let other = desk.busy(Duration::from_secs(2));
    let text = desk.on_terminal("helmholtz", |_, _| ());
    assert!(text.contains("It is process 4711, for helmholtz_eu, and may take another "), "{text}");
    let end = "process 4711, for helmholtz_eu. Nothing was stored. Approve there, or end it; then submit again. [1]\n";
    assert!(text.ends_with(end), "{text}");
    // Where nobody can be asked, nobody is waited for.
    let asked = Instant::now();
    let error = desk.submit("helmholtz", None, recorder().1).unwrap_err();
    assert_eq!(error.code(), 3);
    assert!(error.to_string().ends_with("Approve it on a terminal: evercred login helmholtz"), "{error}");
    assert!(asked.elapsed() < Duration::from_secs(30));
    assert_eq!(desk.calls("add-oauth"), 0);
    drop(other);
}

#[test]
fn who_waits_is_told_how_long_the_page_of_the_first_is_open() {
    let desk = Desk::new("");
    let text = desk.on_terminal("helmholtz", |desk, screen| {
        screen.wait_for(words::POLLING);
        let holder = std::fs::read_to_string(desk.file("evercred/storer.lock")).unwrap();
        let holder: Holder = serde_json::from_str(&holder).unwrap();
        let left = holder.until - now().secs();
        // The page for 300 s, issuer and credd for 120, the .use for 3.
        assert!((400..=423).contains(&left), "{left}");
        assert_eq!((holder.pid, holder.name.as_str()), (std::process::id(), "helmholtz"));
        desk.cancel();
    });
    assert!(text.ends_with("[130]\n"), "{text}");
}

#[test]
fn two_handles_and_another_service_in_one_submit_are_approved_one_after_the_other() {
    let desk = Desk::new("");
    let wanted = "helmholtz&handle=eu&scopes=storage.read:/ + helmholtz&handle=us&scopes=a,b&audience=https://x + wlcg";
    let text = desk.on_terminal(wanted, |desk, screen| {
        let mut pages = Vec::new();
        for count in 1..=3 {
            while screen.seen.matches(words::POLLING).count() < count {
                screen.read();
            }
            let url = screen.url();
            assert!(!pages.contains(&url), "a page of its own for each");
            if count < 3 {
                consent(&url, true);
            } else {
                approve_code(desk, screen);
            }
            pages.push(url);
        }
    });
    assert!(text.ends_with("will now be submitted!\n"), "{text}");
    for name in ["helmholtz_eu", "helmholtz_us", "wlcg"] {
        assert!(text.contains(&format!("{name}: Your credential has been successfully created!")), "{text}");
        assert!(desk.top(name).is_some(), "{name}");
    }
    assert_eq!(std::fs::read_to_string(desk.file("helmholtz_us.wish")).unwrap(), "a,b|https://x");
    let text = desk.on_terminal(wanted, |_, _| ());
    assert!(!text.contains(words::VISIT) && text.ends_with("will now be submitted!\n"), "{text}");
    assert_eq!(desk.calls("add-oauth"), 3);
}

/// Type the code that is on the screen on the issuer's page.
fn approve_code(desk: &Desk, screen: &Screen) {
    let code = screen.seen.rsplit("enter this code there:").next().unwrap().split_whitespace().next().unwrap();
    assert_eq!(code.len(), 9, "{code}");
    let form = format!("user_code={code}&user=alice&decision=approve");
    let url = format!("{}/approve", desk.issuer.url());
    assert_eq!(post(&url, "application/x-www-form-urlencoded", form).0, 200);
}

#[test]
fn two_submits_at_once_that_need_two_credentials_make_two_prompts() {
    let desk = Desk::new("");
    let wanted = "helmholtz&handle=a + helmholtz&handle=b";
    let (mut first, first_terminal, first_messages) = pty();
    let (mut second, second_terminal, second_messages) = pty();
    std::thread::scope(|scope| {
        let fail = Fail(&desk);
        let one = scope.spawn(|| desk.submit(wanted, Some(first_terminal), Box::new(first_messages)));
        first.wait_for(words::POLLING);
        // It has asked credd for both before it waits.
        let other = scope.spawn(|| desk.submit(wanted, Some(second_terminal), Box::new(second_messages)));
        second.wait_for("waiting for it ...");
        let end = Instant::now() + Duration::from_secs(60);
        let mut approved = [0, 0];
        while !(one.is_finished() && other.is_finished()) {
            for (screen, approved) in [&mut first, &mut second].into_iter().zip(&mut approved) {
                screen.read();
                if screen.seen.matches(words::POLLING).count() > *approved {
                    *approved += 1;
                    consent(&screen.url(), true);
                }
            }
            assert!(Instant::now() < end, "{} | {}", first.seen, second.seen);
        }
        std::mem::forget(fail);
        one.join().unwrap().unwrap();
        other.join().unwrap().unwrap();
    });
    first.drain();
    second.drain();
    let prompts = first.seen.matches(words::VISIT).count() + second.seen.matches(words::VISIT).count();
    assert_eq!((prompts, desk.calls("add-oauth")), (2, 2), "{} | {}", first.seen, second.seen);
}

#[test]
fn a_yes_to_renew_counts_as_done_when_another_submit_has_renewed() {
    let desk = Desk::new("");
    desk.stored();
    desk.age("helmholtz.top", 60);
    desk.knows(7199, None);
    let text = desk.on_terminal("helmholtz", |desk, screen| {
        screen.wait_for(words::RENEW);
        desk.stored();
        desk.knows(600_000, None);
        screen.type_line("yes");
    });
    assert!(!text.contains(words::VISIT) && text.ends_with("will now be submitted!\n"), "{text}");
    assert_eq!(desk.calls("add-oauth"), 0);
}

#[test]
fn a_revoked_credential_is_not_let_pass_because_the_keeper_falls_silent_while_another_submit_is_waited_for() {
    for kind in [Kind::Revoked, Kind::Expired, Kind::ReauthNeeded, Kind::ScopeShortfall] {
        let desk = Desk::new("");
        desk.stored();
        desk.knows(86_400 * 5, Some(kind));
        let other = desk.busy(Duration::from_secs(60));
        let text = desk.on_terminal("helmholtz", |desk, screen| {
            screen.wait_for("waiting for it ...");
            *desk.keeper.lock().unwrap() = Known::Silent;
            drop(other);
            approving(desk, screen);
        });
        assert!(text.contains(words::VISIT) && text.contains("successfully created"), "{kind}: {text}");
        assert_eq!(desk.calls("add-oauth"), 1, "{kind}");
    }
}

#[test]
fn a_credential_that_the_keeper_calls_good_by_now_is_not_asked_for() {
    let desk = Desk::new("");
    desk.stored();
    desk.knows(86_400 * 5, Some(Kind::Revoked));
    let other = desk.busy(Duration::from_secs(60));
    let text = desk.on_terminal("helmholtz", |desk, screen| {
        screen.wait_for("waiting for it ...");
        desk.knows(86_400 * 5, None);
        drop(other);
    });
    assert!(!text.contains(words::VISIT) && text.ends_with("will now be submitted!\n"), "{text}");
}

#[test]
fn a_rotation_by_the_keeper_is_not_the_approval_that_was_asked_for() {
    let desk = Desk::new("");
    desk.stored();
    desk.knows(7199, None);
    let other = desk.busy(Duration::from_secs(60));
    let text = desk.on_terminal("helmholtz", |desk, screen| {
        screen.wait_for(words::RENEW);
        screen.type_line("yes");
        screen.wait_for("waiting for it ...");
        std::fs::write(desk.file("helmholtz.top"), r#"{"mytoken":"rotated"}"#).unwrap();
        desk.age("helmholtz.top", 30);
        desk.knows(7199, None);
        drop(other);
        approving(desk, screen);
    });
    assert!(text.contains(words::VISIT), "{text}");
}

#[test]
fn a_use_that_is_older_than_the_top_is_waited_for() {
    let desk = Desk::new("");
    desk.stored();
    desk.age("helmholtz.use", 60);
    let text = desk.on_terminal("helmholtz", |_, _| ());
    assert!(text.contains("was stored, but no access token came within 3 seconds"), "{text}");
    let text = desk.on_terminal("helmholtz", |desk, _| {
        let asked = desk.calls("query-oauth");
        while desk.calls("query-oauth") < asked + 2 {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::fs::write(desk.file("helmholtz.use"), "new").unwrap();
    });
    assert!(text.ends_with("will now be submitted!\n"), "{text}");
}

#[test]
fn a_credential_that_gives_less_than_is_asked_for_is_replaced() {
    let desk = Desk::new("");
    desk.stored();
    desk.knows(86_400 * 5, Some(Kind::ScopeShortfall));
    insta::assert_snapshot!(desk.on_terminal("helmholtz", approving));
    for (kind, line) in [
        (Kind::Restricted, "does not allow what these jobs need (restricted)."),
        (Kind::AudienceShortfall, "does not give the audience that is asked for (audience-shortfall)."),
    ] {
        desk.stored();
        desk.knows(86_400 * 5, Some(kind));
        let error = desk.submit("helmholtz", None, recorder().1).unwrap_err();
        assert_eq!(error.code(), 3);
        assert!(error.to_string().contains(line), "{error}");
    }
}

#[test]
fn a_top_that_is_no_json_is_good_by_the_keepers_word_else_replaced_by_an_approval() {
    let desk = Desk::new("");
    let bare = |desk: &Desk| {
        desk.stored();
        std::fs::write(desk.file("helmholtz.top"), "gAAAAAsealed").unwrap();
        desk.age("helmholtz.top", 60);
    };
    // The keeper renews it, as it does a bare token.
    bare(&desk);
    desk.knows(86_401 * 2, None);
    let (said, messages) = recorder();
    desk.submit("helmholtz", None, messages).unwrap();
    assert_eq!(said(), "");
    // What it has no scopes for is for others.
    assert_eq!(desk.submit("helmholtz&scopes=a", None, recorder().1).unwrap_err().code(), 3);
    // The keeper cannot use it; it tells no time then.
    desk.knows(86_401 * 2, Some(Kind::TopSealed));
    desk.keeper_says(|credential| (credential.state, credential.stored) = (State::Unusable, None));
    let error = desk.submit("helmholtz", None, recorder().1).unwrap_err();
    assert_eq!(error.code(), 3, "{error}");
    assert!(error.to_string().contains("no usable credential (top-sealed)"), "{error}");
    let text = desk.on_terminal("helmholtz", approving);
    assert!(text.ends_with("will now be submitted!\n"), "{text}");
    assert!(desk.top("helmholtz").unwrap()["mytoken"].as_str().unwrap().starts_with("eyJ"));
    // Without a keeper nothing came of it.
    bare(&desk);
    std::fs::remove_file(desk.file("helmholtz.use")).unwrap();
    *desk.keeper.lock().unwrap() = Known::Nowhere;
    assert_eq!(desk.submit("helmholtz", None, recorder().1).unwrap_err().code(), 3);
    desk.on_terminal("helmholtz", approving);
    assert!(desk.top("helmholtz").is_some());
}

#[test]
fn one_refusal_is_told_and_the_jobs_go() {
    let desk = Desk::new("");
    desk.stored();
    desk.knows(86_400 * 5, Some(Kind::Revoked));
    desk.keeper_says(|credential| credential.error.as_mut().unwrap().times = 1);
    insta::assert_snapshot!(desk.on_terminal("helmholtz", |_, _| ()));
    let (said, messages) = recorder();
    desk.submit("helmholtz", None, messages).unwrap();
    let warning = said();
    assert!(warning.starts_with("evercred: helmholtz: Your credential was refused once (revoked)"), "{warning}");
    assert_eq!(warning.lines().count(), 1, "{warning}");
}

#[test]
fn ctrl_c_while_waiting_for_the_access_token_is_130_and_says_what_is_stored() {
    let desk = Desk::new("");
    std::fs::write(desk.file("no-use"), "").unwrap();
    let text = desk.on_terminal("helmholtz", |desk, screen| {
        approving(desk, screen);
        while desk.top("helmholtz").is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        // credd has answered when it is asked again.
        let asked = desk.calls("query-oauth");
        while desk.calls("query-oauth") == asked {
            std::thread::sleep(Duration::from_millis(5));
        }
        desk.cancel();
    });
    assert!(text.ends_with("Cancelled: the new credential for helmholtz is stored, and stays. [130]\n"), "{text}");
    // The same wait for one that is not of this submit.
    desk.cancelled.store(false, std::sync::atomic::Ordering::Relaxed);
    let text = desk.on_terminal("helmholtz", |desk, screen| {
        screen.wait_for("A credential has been found");
        desk.cancel();
    });
    assert!(text.ends_with("Cancelled: nothing was stored. [130]\n"), "{text}");
}

#[test]
fn ctrl_c_at_the_second_service_is_130_and_says_what_is_stored() {
    let desk = Desk::new("");
    let text = desk.on_terminal("helmholtz&handle=a + helmholtz&handle=b", |desk, screen| {
        approving(desk, screen);
        while screen.seen.matches(words::POLLING).count() < 2 {
            screen.read();
        }
        desk.cancel();
    });
    assert!(text.ends_with("Cancelled: the new credential for helmholtz_a is stored, and stays. [130]\n"), "{text}");
    assert_eq!(desk.top("helmholtz_b"), None);
}

#[test]
fn what_was_approved_and_is_not_stored_is_given_back() {
    // credd refuses it, without and after a Ctrl-C; it has it although it says no; it may have it, and cannot be asked;
    // and it could not be asked before, so that nothing was sent.
    let slow = "sleep 1; echo no >&2; exit 1";
    let deaf = "touch \"$dir/deaf\"; exit 1";
    for (store, cancel, deaf_before, alive) in [
        ("echo no >&2; exit 1", false, false, 0),
        (slow, true, false, 0),
        ("cat > \"$dir/$name.top\"; printf '|' > \"$dir/$name.wish\"; exit 1", false, false, 1),
        (deaf, false, false, 1),
        (deaf, false, true, 0),
    ] {
        let desk = Desk::new("");
        let failing = STORE_CRED.replace("add-oauth)\n", &format!("add-oauth)\n        {store}\n")).replace(
            "query-oauth)\n",
            "query-oauth)\n        [ -e \"$dir/deaf\" ] && { echo 'no answer' >&2; exit 1; }\n",
        );
        put_script(&desk.file("condor_store_cred"), &failing);
        let text = desk.on_terminal("helmholtz", |desk, screen| {
            if deaf_before {
                screen.wait_for(words::POLLING);
                std::fs::write(desk.file("deaf"), "").unwrap();
            }
            approving(desk, screen);
            if cancel {
                while desk.calls("add-oauth") == 0 {
                    std::thread::sleep(Duration::from_millis(5));
                }
                desk.cancel();
            }
        });
        let refused = if deaf_before { "answer about helmholtz" } else { "store helmholtz" };
        assert!(text.contains(refused) && !text.contains("revoke"), "{text}");
        let records = desk.issuer.control().records(None);
        let living = records.iter().filter(|record| !record.revoked).count();
        assert_eq!((records.len(), living), (1, alive), "{store}");
    }
}

#[test]
fn what_cannot_be_given_back_is_said() {
    let mut desk = Desk::new("");
    let failing = STORE_CRED.replace("add-oauth)\n", "add-oauth)\n        touch \"$dir/tried\"; sleep 2; exit 1\n");
    put_script(&desk.file("condor_store_cred"), &failing);
    let issuer = Mutex::new(Some(std::mem::replace(&mut desk.issuer, Issuer::start(&Options::default()).unwrap())));
    let text = desk.on_terminal("helmholtz", |desk, screen| {
        approving(desk, screen);
        while !desk.file("tried").exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(issuer.lock().unwrap().take());
    });
    assert!(text.contains("evercred: helmholtz: what you approved is not stored, and could not be revoked"), "{text}");
    assert!(text.contains("revoke it at"), "{text}");
}

#[test]
fn a_store_that_fails_after_ctrl_c_is_130_in_its_own_words() {
    let desk = Desk::new("");
    let failing = STORE_CRED.replace("add-oauth)\n", "add-oauth)\n        sleep 1; echo no >&2; exit 1\n");
    put_script(&desk.file("condor_store_cred"), &failing);
    let text = desk.on_terminal("helmholtz", |desk, screen| {
        approving(desk, screen);
        while desk.calls("add-oauth") == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        desk.cancel();
    });
    let last = text.lines().last().unwrap_or_default();
    assert!(last.contains("store helmholtz") && last.contains("no") && last.ends_with("[130]"), "{text}");
    assert!(!last.contains("nothing was stored"), "{text}");
}

#[test]
fn a_credential_without_an_access_token_does_not_let_jobs_go() {
    let desk = Desk::new("");
    std::fs::write(desk.file("no-use"), "").unwrap();
    let text = desk.on_terminal("helmholtz", approving);
    insta::assert_snapshot!(text);
}

#[test]
fn a_wait_ends_early_when_the_issuer_refuses_the_new_credential() {
    let desk = Desk::new("");
    std::fs::write(desk.file("no-use"), "").unwrap();
    let text = desk.on_terminal("helmholtz", |desk, screen| {
        screen.wait_for(words::POLLING);
        consent(&screen.url(), true);
        while desk.top("helmholtz").is_none() {
            std::thread::sleep(Duration::from_millis(20));
        }
        desk.knows(600_000, Some(Kind::Restricted));
    });
    assert!(
        text.ends_with(
            "The credential for helmholtz was stored, but it gets no access token (restricted: so it says); see \
             `evercred explain restricted`. [1]\n"
        ),
        "{text}"
    );
}

#[test]
fn the_device_flow_shows_a_code_and_stores_a_refresh_token() {
    let desk = Desk::new("");
    let text = desk.on_terminal("wlcg", |desk, screen| {
        screen.wait_for(words::POLLING);
        approve_code(desk, screen);
    });
    insta::assert_snapshot!(text);
    assert!(desk.top("wlcg").unwrap()["refresh_token"].as_str().unwrap().starts_with("ert-"));
}

#[test]
fn a_service_in_another_spelling_is_refused_with_the_right_one() {
    let desk = Desk::new("");
    let error = run(&["HELMHOLTZ".to_owned()], &desk.settings).unwrap_err();
    assert!(error.to_string().contains("write it helmholtz everywhere"), "{error}");
}

#[test]
fn services_of_others_go_to_the_stock_storer_as_they_came() {
    let mut desk = Desk::new("");
    let stock = desk.file("stock");
    std::fs::write(&stock, "#!/bin/sh\nprintf '<%s>' \"$@\" > \"${0%/*}/args\"\nexit $(cat \"${0%/*}/status\")\n")
        .unwrap();
    std::fs::set_permissions(&stock, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(desk.file("status"), "0").unwrap();
    desk.settings.storer.stock.clone_from(&stock);
    let requests = ["vault&handle=x&options=-v -d".to_owned(), "pelican".to_owned()];
    while run(&requests, &desk.settings).is_err_and(|error| error.to_string().contains("busy")) {}
    assert_eq!(std::fs::read_to_string(desk.file("args")).unwrap(), "<vault&handle=x&options=-v -d><pelican>");
    std::fs::write(desk.file("status"), "1").unwrap();
    let error = run(&requests, &desk.settings).unwrap_err();
    assert!(error.to_string().contains("failed for vault_x, pelican: exit status: 1"), "{error}");
    // Nobody to ask: told, and left to credd.
    std::fs::remove_file(stock).unwrap();
    run(&requests, &desk.settings).unwrap();
}

/// Where the test below runs itself with another environment.
const HANDS_ON: &str = "EVERCRED_TEST_HANDS_ON";
/// What HTCondor says to a storer since 25.14.
const MODE: &str = "CONDOR_CREDENTIAL_STORER_MODE";

#[test]
fn every_mode_and_either_name_of_the_stock_storer_is_handed_on_to() {
    let requests = ["vault&handle=x&options=-v -d".to_owned(), "pelican".to_owned()];
    if let Some(dir) = std::env::var_os(HANDS_ON).map(PathBuf::from) {
        let stock = dir.join("condor_credential_storer");
        let text = format!(
            "[storer]\nstock_storer = \"{}\"\n[provider.p]\nkind = \"mytoken\"\nserver = \"https://mytok.eu\"\n",
            stock.display()
        );
        return run(&requests, &settings_of(&dir, &text)).unwrap();
    }
    for name in ["condor_vault_storer", "condor_credential_storer"] {
        let dir = tempfile::tempdir().unwrap();
        let stock = dir.path().join(name);
        let script = format!("#!/bin/sh\nprintf '<%s>' \"${{{MODE}-none}}\" \"$@\" > \"${{0%/*}}/args\"\n");
        put_script(&stock, &script);
        // Unset before HTCondor 25.14; and one that nobody knows yet.
        for mode in [None, Some(""), Some("vault"), Some("pelican"), Some("another one")] {
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            let own = "submit::tests::every_mode_and_either_name_of_the_stock_storer_is_handed_on_to";
            again.args(["--exact", own]).env(HANDS_ON, dir.path()).env_remove(MODE);
            if let Some(mode) = mode {
                again.env(MODE, mode);
            }
            let ended = again.output().unwrap();
            let said = String::from_utf8_lossy(&ended.stdout).into_owned();
            assert!(ended.status.success() && said.contains("1 passed"), "{name} {mode:?}: {said}");
            let args = std::fs::read_to_string(dir.path().join("args")).unwrap();
            assert_eq!(args, format!("<{}><vault&handle=x&options=-v -d><pelican>", mode.unwrap_or("none")), "{name}");
            std::fs::remove_file(dir.path().join("args")).unwrap();
        }
    }
}

/// Messages into memory.
fn recorder() -> (impl Fn() -> String, Box<dyn Write + Send>) {
    struct Sender(mpsc::Sender<Vec<u8>>);
    impl Write for Sender {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            drop(self.0.send(bytes.to_vec()));
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (sender, said) = mpsc::channel();
    (move || String::from_utf8(said.try_iter().flatten().collect()).unwrap(), Box::new(Sender(sender)))
}

#[test]
fn every_case_has_one_stable_label() {
    let labels: Vec<_> =
        [Case::Absent, Case::Revoked, Case::Expired(None), Case::RefusedBehind, Case::Mismatch].map(Case::label).into();
    assert_eq!(labels, ["absent", "revoked", "expired", "reauth-needed", "mismatch"]);
}

#[test]
fn a_clients_own_tokens_are_taken_without_an_approval_and_refused_where_the_configuration_does_not_name_them() {
    let desk = Desk::new("");
    let submit = |request: &str| desk.submit(request, None, Box::new(std::io::sink()));
    let refused = |request: &str, word: &str| {
        let line = submit(request).unwrap_err().line(Purpose::Submit);
        assert!(line.contains(word), "{request}: {line}");
    };
    refused("others", "accounts that the admins have named, and alice is none");
    refused("ce", "There is no ce here; there is: ce_ce1.");
    refused("ce&handle=ce2", "There is no ce_ce2 here");
    refused("ce&handle=ce1&scopes=compute.read,compute.modify", "without the scope compute.modify");
    refused("ce&handle=ce1&audience=https://ce2", "not for the audience https://ce2");
    assert_eq!(desk.calls("query-oauth"), 0, "credd is not asked for what cannot be");
    refused("ce&handle=ce1", "the access point's credential monitor has not put it there");
    // As the keeper and credd have it: the `.top` says nothing of scopes and audience.
    std::fs::write(desk.file("ce_ce1.top"), stand_in::text("own", &["compute.read".into()], &[])).unwrap();
    std::fs::write(desk.file("ce_ce1.wish"), "|").unwrap();
    std::fs::write(desk.file("ce_ce1.use"), "token").unwrap();
    submit("ce&handle=ce1").unwrap();
    submit("ce&handle=ce1&scopes=compute.read&audience=https://ce1").unwrap();
    std::fs::write(desk.file("ce_ce1.wish"), "storage.read:/|").unwrap();
    refused("ce&handle=ce1", "remove it: condor_store_cred delete-oauth -s ce_ce1");
    assert_eq!(desk.calls("add-oauth"), 0, "nothing is stored");
}

#[test]
fn the_use_of_a_credential_for_other_scopes_is_not_taken_for_that_of_the_new_one() {
    let desk = Desk::new("");
    desk.stored();
    std::fs::write(desk.file("helmholtz.wish"), "other|").unwrap();
    std::fs::write(desk.file("no-use"), "").unwrap();
    // Of this very second, by a clock that is ahead.
    let ahead = std::time::SystemTime::now() + Duration::from_secs(1);
    File::options().write(true).open(desk.file("helmholtz.use")).unwrap().set_modified(ahead).unwrap();
    let request = Request::parse("helmholtz").unwrap();
    let fresh = flow::Fresh { top: flow::top("mytoken", "new", None), left: super::cases::Left::Unknown };
    let put = desk.at_counter(false, |counter| counter.put(&request, &fresh));
    assert_eq!(put.unwrap_err().label(), "not-usable", "no .use has come of it");
    assert!(desk.stored_at("helmholtz.top") > desk.stored_at("helmholtz.use"));
}
