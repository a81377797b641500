//! `evercred upload`, also as `reana_upload_mytoken`: a token that a portal has for the user goes to credd.
//!
//! Portals call it for every job (mytoken contract §8), so the same token again costs one question to credd and
//! nothing else: a note in the user's own directory holds the SHA-256 of the token. That the `.top` was written since
//! does not matter: where refresh tokens rotate the keeper writes it at every renewal, and what was uploaded is spent. What
//! stores does so under the lock of all submits, so that it does not come between another one's store and its wait.
//!
//! A token that is new here may be an old one: the portal may hold it long after it was revoked and its user approved
//! another. So its mytoken server is asked before anything is stored, and a credential that is not known to be bad is
//! replaced only by one that ends later, also where no keeper can be asked. Of other issuers' tokens nobody can tell without
//! spending them.

use std::{
    io::{self, BufRead, Write},
    process::ExitCode,
    sync::atomic::AtomicBool,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::login;
use crate::{
    cli,
    config::settings::{OAuth2, Provider, ProviderKind, Settings},
    core::{secret::RefreshToken, time::Timestamp},
    courier::http::{Caller, now},
    error::{Class, Kind, Report, exit},
    issuer::client::trimmed,
    submit::{
        self,
        cases::{self, Case, Left},
        error::SubmitError,
        flow::{self, Fresh},
        note::Note,
        provide::Counter,
        request::Request,
        store::{Credd, Stored},
        words::Purpose,
    },
};

/// The name under which REANA knows it.
pub const REANA: &str = "reana_upload_mytoken";
/// Nobody's token is longer.
const MAX: u64 = 64 << 10;

/// Read, check, store, wait.
#[must_use]
pub fn run(args: &cli::Upload) -> ExitCode {
    submit::guard();
    let settings = match submit::settings(args.config.clone()) {
        Ok(settings) => settings,
        Err(report) => return report.print("evercred"),
    };
    let chosen = match &args.which {
        Some(which) => login::request(which, &settings),
        None => only_mytoken(&settings),
    };
    let checked = chosen.and_then(|(request, provider)| {
        let token = read(io::stdin().lock()).and_then(|token| check(&token, provider, now()).map_err(unfit))?;
        Ok((request, provider, token))
    });
    match checked {
        Err(report) => report.print("evercred"),
        Ok((request, provider, token)) => match store(&request, provider, token, &settings) {
            Ok(end) => {
                if end == End::Kept {
                    let name = request.name();
                    let line = format!(
                        "evercred: {name}: the stored credential is kept: it is not known to be bad, and this token is not \
                         known to outlive it (evercred login {name} replaces it)"
                    );
                    // Nobody is left to be told if standard error is closed.
                    writeln!(io::stderr().lock(), "{line}").ok();
                }
                ExitCode::from(exit::OK)
            }
            Err(error) => submit::told(&error, Purpose::Login),
        },
    }
}

/// As REANA calls it, the service is not said: the only one of a mytoken server, or the one that REANA means.
fn only_mytoken(settings: &Settings) -> Result<(Request, &Provider), Report> {
    let of_mytoken = settings.providers.iter().filter(|p| matches!(p.kind, ProviderKind::Mytoken { .. }));
    let services: Vec<&String> = of_mytoken.flat_map(|provider| &provider.services).collect();
    match services.as_slice() {
        [only] => login::request(only, settings),
        many if many.iter().any(|name| *name == "helmholtz") => login::request("helmholtz", settings),
        _ => Err(Report::new("for which service the token is was not said", exit::USAGE)
            .advise("run evercred upload SERVICE")),
    }
}

fn unfit(what: impl Into<String>) -> Report {
    Report::new(format!("the token was not stored: {}", what.into()), exit::FAILED)
}

/// The first line; a portal may keep the pipe open, so what comes after is not waited for.
fn read(input: impl BufRead) -> Result<RefreshToken, Report> {
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(MAX).unwrap_or(0) + 1));
    input.take(MAX + 1).read_line(&mut text).map_err(|e| unfit(format!("standard input cannot be read: {e}")))?;
    let line = text.trim();
    if line.is_empty() {
        return Err(unfit("the first line of standard input is empty").advise("write the token there, alone"));
    }
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX || line.contains(char::is_whitespace) {
        return Err(unfit("standard input holds more than one token").advise("write the token alone, on one line"));
    }
    RefreshToken::parse(line).map_err(|e| unfit(e.to_string()))
}

/// A token that may be stored.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    secret: RefreshToken,
    /// The key in the `.top`.
    pub(super) key: &'static str,
    /// When it ends, seconds since 1970.
    pub(super) end: Option<i64>,
    /// Whether it is known that it does not end.
    endless: bool,
    /// Whether its server has said that it lives.
    lives: bool,
}

impl Checked {
    fn left(&self) -> Left {
        match self.end {
            Some(end) => Left::For(Duration::from_secs(u64::try_from(end - now().secs()).unwrap_or(0))),
            None if self.endless => Left::Unlimited,
            None => Left::Unknown,
        }
    }
}

/// What the token says of itself. A JWT is not verified: the issuer does that when the credmon asks.
#[derive(Debug, Default, Deserialize)]
struct Claims {
    iss: Option<String>,
    exp: Option<i64>,
    nbf: Option<i64>,
    capabilities: Option<Vec<String>>,
    rotation: Option<Rotation>,
}

#[derive(Debug, Default, Deserialize)]
struct Rotation {
    #[serde(default, rename = "on_AT")]
    on_at: bool,
    #[serde(default)]
    on_other: bool,
}

/// Whether a token is one for this provider, by what it says of itself; else why not.
pub(super) fn check(token: &RefreshToken, provider: &Provider, now: Timestamp) -> Result<Checked, String> {
    let claims = token
        .expose()
        .split('.')
        .nth(1)
        .and_then(|part| URL_SAFE_NO_PAD.decode(part).ok())
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    check_claims(token, claims, provider, now)
}

fn check_claims(
    token: &RefreshToken,
    claims: Option<Claims>,
    provider: &Provider,
    now: Timestamp,
) -> Result<Checked, String> {
    if provider.accounts().is_some() {
        return Err("the service's tokens are its client's own, so that nobody needs to store anything".to_owned());
    }
    let (key, issuer, what) = match &provider.kind {
        ProviderKind::Mytoken { server } => ("mytoken", Some(server), "a mytoken"),
        ProviderKind::OAuth2(OAuth2 { login_client: Some(_), .. }) => {
            ("subject_token", provider.issuer.as_ref(), "a token to exchange")
        }
        ProviderKind::OAuth2(OAuth2 { .. }) => ("refresh_token", provider.issuer.as_ref(), "a refresh token"),
    };
    // A short mytoken is 64 characters without a dot; an opaque refresh token is anything.
    let jwt = token.expose().matches('.').count() == 2;
    if jwt && claims.is_none() {
        return Err(format!("it looks like a JWT and is none, so it is not {what}"));
    }
    if token.expose().len() < 32 && key == "mytoken" {
        return Err("it is too short for a mytoken".to_owned());
    }
    let tells = claims.is_some();
    let claims = claims.unwrap_or_default();
    if let (Some(iss), Some(issuer)) = (&claims.iss, issuer)
        && trimmed(iss) != trimmed(issuer)
    {
        return Err(format!("it is not of {issuer}, which the service asks"));
    }
    if jwt && key == "mytoken" && claims.iss.is_none() {
        return Err("it names no server, so it is no mytoken".to_owned());
    }
    if let Some(exp) = claims.exp.filter(|exp| *exp <= now.secs()) {
        let ago = now.since(Timestamp::from_secs(exp));
        return Err(format!("it expired {} ago", submit::words::spoken(ago)));
    }
    if claims.nbf.is_some_and(|nbf| nbf > now.secs() + 300) {
        return Err("it is not valid yet".to_owned());
    }
    if claims.capabilities.is_some_and(|list| !list.iter().any(|capability| capability == "AT")) {
        return Err("it may not make access tokens (no capability AT)".to_owned());
    }
    // With rotation the portal's copy dies at the first access token, and the next upload would put a dead one back.
    if claims.rotation.is_some_and(|rotation| rotation.on_at || rotation.on_other) {
        return Err("it rotates, so that two holders break it; make one without rotation".to_owned());
    }
    // A subject token's own end says nothing about what it is exchanged for.
    let end = claims.exp.filter(|_| key != "subject_token");
    Ok(Checked { secret: token.clone(), key, end, endless: tells && key == "mytoken" && end.is_none(), lives: false })
}

/// What became of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It is stored, now or before.
    Stored,
    /// What is stored already stays.
    Kept,
}

fn store(request: &Request, provider: &Provider, token: Checked, settings: &Settings) -> Result<End, SubmitError> {
    let credd = Credd::find()?;
    let cancelled = submit::cancelled()?;
    let keeper = || submit::known(settings);
    upload(request, provider, token, &submit::counter(&credd, &keeper, settings, &cancelled, false))
}

/// What the token's server says of it, which is asked once: it lives, and is what it says.
fn vouched(token: Checked, provider: &Provider, cancelled: &AtomicBool) -> Result<Checked, SubmitError> {
    let who = match provider.kind {
        ProviderKind::Mytoken { .. } => "The mytoken server",
        ProviderKind::OAuth2(_) => return Ok(token),
    };
    let caller = Caller::new(provider.clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| SubmitError::System { what: "no event loop", source })?;
    let answer = runtime.block_on(async {
        tokio::select! {
            biased;
            answer = caller.introspect(&token.secret) => Ok(answer),
            () = flow::until(cancelled) => Err(SubmitError::Cancelled),
        }
    })?;
    match answer {
        Ok(None) => Ok(token),
        Ok(Some(claims)) => {
            let claims = Claims::deserialize(&claims).map_err(|_| SubmitError::Unreachable {
                who,
                why: "its answer about the token makes no sense; nothing was stored".to_owned(),
            })?;
            let checked =
                check_claims(&token.secret, Some(claims), provider, now()).map_err(SubmitError::Unsuitable)?;
            Ok(Checked { lives: true, ..checked })
        }
        Err(error) => Err(match (error.kind, error.kind.class()) {
            (Kind::Revoked, _) => SubmitError::Unsuitable("it was revoked, or replaced by a newer one".to_owned()),
            (Kind::Expired, _) => SubmitError::Unsuitable("it has expired".to_owned()),
            (Kind::NotYetValid, _) | (_, Class::Refused) => SubmitError::Unsuitable(error.detail),
            (_, Class::Transient) => {
                SubmitError::Unreachable { who, why: format!("{}; nothing was stored", error.detail) }
            }
            _ => SubmitError::Refused { who, why: format!("{}; nothing was stored", error.detail) },
        }),
    }
}

/// Whether what is stored stays. What is not known to be bad is replaced only by a token that is known to end later: a
/// portal's may be spent, or older than what the user approved since. Two exceptions: one that ends soon; and where
/// nobody can tell how it stands and its access tokens have stopped coming, for a token of which its server says that it
/// lives.
fn stays(stored: Stored, case: Case, token: &Checked) -> bool {
    let works = || stored.is_usable() && cases::stale(stored, None, now()).is_none();
    let (left, soon) = match case {
        Case::Stored(Left::Unknown) | Case::Doubted(_) => return works() || !token.lives,
        Case::Valid(left) | Case::Stored(left) => (left, false),
        Case::Ending(left) => (Left::For(left), true),
        Case::Absent | Case::Mismatch | Case::Revoked | Case::Expired(_) | Case::RefusedBehind | Case::Unusable(_) => {
            return false;
        }
    };
    match (left, token.left()) {
        (Left::For(stored), Left::For(new)) => stored >= new,
        (Left::For(_), Left::Unlimited) => false,
        _ => !soon,
    }
}

fn upload(request: &Request, provider: &Provider, token: Checked, counter: &Counter<'_>) -> Result<End, SubmitError> {
    let sha256 = Some(URL_SAFE_NO_PAD.encode(Sha256::digest(token.secret.expose().as_bytes())));
    // Whether it was stored before, and what became of it is good.
    let is_there = || -> Result<Option<Stored>, SubmitError> {
        let stored = counter.credd.query(request)?;
        let noted = || Note::read(&counter.note_places, request).is_some_and(|note| note.sha256 == sha256);
        let good = || counter.judge(request, stored, &(counter.keeper)()).is_good();
        Ok((noted() && good()).then_some(stored))
    };
    let usable = |stored: Stored| {
        if stored.is_usable() {
            return Ok(End::Stored);
        }
        counter.wait_for_use(request, None).map(|_| End::Stored).map_err(|error| counter.given_up(error))
    };
    if let Some(stored) = is_there().or_else(|error| counter.right_place().and(Err(error)))? {
        return usable(stored);
    }
    counter.right_place()?;
    // Nobody approves here, so an approval that is under way elsewhere is not waited for to its end.
    let _lock = counter.lock(request, counter.use_wait, |_, _| ()).map_err(|error| counter.given_up(error))?;
    // Another upload of the same token may have had it.
    if let Some(stored) = is_there()? {
        return usable(stored);
    }
    let token = vouched(token, provider, counter.cancelled)?;
    let stored = counter.credd.query(request)?;
    if let Some(top) = stored.top()
        && stays(stored, counter.judge(request, stored, &(counter.keeper)()), &token)
    {
        // The next upload of the same token need not ask again.
        let end = Note::read(&counter.note_places, request).filter(|note| note.top == top).and_then(|note| note.end);
        Note { top, end, sha256 }.write(&counter.note_places, request);
        return usable(stored).map(|_| End::Kept);
    }
    let fresh = Fresh { top: flow::top(token.key, token.secret.expose(), token.end), left: token.left() };
    let put = counter.put(request, &fresh);
    // Also where its `.use` is late: it may be spent by the time of the next upload.
    let top = match &put {
        Ok(top) => Some(*top),
        Err(_) if counter.has_stored(request) => counter.credd.query(request).ok().and_then(Stored::top),
        Err(_) => None,
    };
    if let Some(top) = top {
        Note { top, end: token.end, sha256 }.write(&counter.note_places, request);
    }
    put.map(|_| End::Stored).map_err(|error| counter.given_up(error))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::{
        config::{Sources, condor::Knobs, load_with},
        demo::issuer::{MytokenWish, Outage},
        submit::tests::Desk,
    };

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn provider(kind: &str) -> Provider {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, format!("[daemon]\ncredential_directory = \"/c\"\n[provider.p]\n{kind}\n")).unwrap();
        let sources = Sources { config: Some(file), ..Sources::default() };
        load_with(&sources, &Knobs::default()).unwrap().providers.remove(0)
    }

    fn mytoken() -> Provider {
        provider("kind = \"mytoken\"\nserver = \"https://mytok.eu\"")
    }

    fn jwt(claims: &str) -> RefreshToken {
        RefreshToken::parse(&format!("eyJhbGciOiJFUzUxMiJ9.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))).unwrap()
    }

    fn refused(claims: &str) -> String {
        check(&jwt(claims), &mytoken(), NOW).err().unwrap_or_default()
    }

    #[test]
    fn a_mytoken_of_the_configured_server_is_taken() {
        let token = jwt(r#"{"iss":"https://mytok.eu/","exp":1800000600,"capabilities":["AT"]}"#);
        let checked = check(&token, &mytoken(), NOW).unwrap();
        assert_eq!((checked.key, checked.end), ("mytoken", Some(1_800_000_600)));
        let short = RefreshToken::parse(&"a".repeat(64)).unwrap();
        assert_eq!(check(&short, &mytoken(), NOW).unwrap().end, None);
    }

    #[test]
    fn every_unfit_token_is_refused_with_its_reason_and_without_itself() {
        let table = [
            (r#"{"iss":"https://evil.example","exp":1800000600}"#, "is not of https://mytok.eu"),
            (r#"{"exp":1800000600}"#, "names no server"),
            (r#"{"iss":"https://mytok.eu","exp":1799999400}"#, "expired 10 minutes ago"),
            (r#"{"iss":"https://mytok.eu","nbf":1800001000}"#, "not valid yet"),
            (r#"{"iss":"https://mytok.eu","capabilities":["tokeninfo"]}"#, "no capability AT"),
            (r#"{"iss":"https://mytok.eu","rotation":{"on_AT":true}}"#, "rotates"),
            ("not json", "looks like a JWT and is none"),
        ];
        for (claims, why) in table {
            let said = refused(claims);
            assert!(said.contains(why), "{claims}: {said}");
            assert!(!said.contains(&URL_SAFE_NO_PAD.encode(claims)), "{said}");
        }
    }

    #[test]
    fn standard_input_is_one_token_on_one_line() {
        assert_eq!(read("  abc\r\n".as_bytes()).unwrap().expose(), "abc");
        for bad in ["", "\n", "\nabc", "a b", "é", &"a".repeat(70_000)] {
            assert!(read(bad.as_bytes()).is_err(), "{bad:.20}");
        }
        assert!(read(&b"\xff\xfe"[..]).is_err());
        // Whoever reads on would read what nobody ever writes.
        let open = "abc\n".as_bytes().chain(Never);
        assert_eq!(read(io::BufReader::new(open)).unwrap().expose(), "abc");
    }

    /// A pipe that stays open, and in which nothing comes any more.
    struct Never;

    impl Read for Never {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("read beyond the line")
        }
    }

    /// As the credmon leaves a `.top` behind.
    const ROTATED: &str = r#"{"refresh_token":"rotated"}"#;

    /// A portal of one of a desk's services.
    struct Uploader<'d>(&'d Desk, &'static str);

    impl Uploader<'_> {
        fn send(&self, token: &str) -> Result<End, SubmitError> {
            let (request, provider) = (Request::parse(self.1).unwrap(), self.0.provider(self.1));
            let checked = check(&RefreshToken::parse(token).unwrap(), &provider, now()).unwrap();
            self.0.at_counter(false, |counter| upload(&request, &provider, checked, counter))
        }

        fn top(&self) -> String {
            std::fs::read_to_string(self.0.file(&format!("{}.top", self.1))).unwrap_or_default()
        }
    }

    fn made(desk: &Desk, lifetime: u64) -> String {
        let wish = MytokenWish { user: "alice".into(), lifetime: Some(lifetime), ..MytokenWish::default() };
        desk.issuer.control().mytoken(wish).unwrap()
    }

    #[test]
    fn an_upload_waits_for_its_turn_and_not_for_ever() {
        let desk = Desk::new("");
        let (request, provider) = (Request::parse("helmholtz").unwrap(), desk.provider("helmholtz"));
        let token = RefreshToken::parse(&made(&desk, 600)).unwrap();
        let checked = check(&token, &provider, now()).unwrap();
        desk.at_counter(false, |counter| {
            let upload = || upload(&request, &provider, checked.clone(), counter);
            let submit = counter.lock(&request, Duration::ZERO, |_, _| panic!("nobody has it")).unwrap();
            let error = upload().unwrap_err();
            assert_eq!((error.label(), error.code()), ("busy", 1));
            let words = error.line(Purpose::Login);
            assert!(words.contains(&format!("process {}, for helmholtz", std::process::id())), "{words}");
            assert_eq!(desk.calls("add-oauth"), 0);
            drop(submit);
            upload().unwrap();
            let asked = desk.issuer.control().stats().requests;
            upload().unwrap();
            assert_eq!((asked, desk.issuer.control().stats().requests), (2, 2), "discovery and introspection, once");
        });
        assert_eq!(desk.calls("add-oauth"), 1, "the same token again changes nothing");
    }

    #[test]
    fn where_nobody_can_tell_which_ends_later_a_good_credential_is_kept_and_one_that_ends_soon_is_not() {
        let token = |hours: Option<i64>| Checked {
            secret: RefreshToken::parse("a-refresh-token").unwrap(),
            key: "refresh_token",
            end: hours.map(|hours| now().secs() + hours * 3600),
            endless: false,
            lives: false,
        };
        let made = |ago: i64| Stored::Ready { top: now().secs() - 90_000, published: now().secs() - ago };
        let outlives = |case: Case, token: &Checked| stays(made(60), case, token);
        let day = Left::For(Duration::from_secs(86_400));
        let (unknown, hour) = (token(None), Case::Ending(Duration::from_secs(3600)));
        assert!(outlives(Case::Valid(Left::Unknown), &unknown) && outlives(Case::Valid(day), &unknown));
        assert!(!outlives(hour, &unknown) && !outlives(hour, &token(Some(2))));
        assert!(outlives(Case::Valid(day), &token(Some(2))) && !outlives(Case::Valid(day), &token(Some(48))));
        assert!(!outlives(Case::Revoked, &unknown) && !outlives(Case::Expired(None), &unknown));
        // Where nobody knows how what is stored does, only a token that is known to live goes over one whose access tokens
        // have stopped coming.
        for case in [Case::Stored(Left::Unknown), Case::Doubted(Kind::Revoked)] {
            let lives = Checked { lives: true, ..token(Some(48)) };
            assert!(outlives(case, &unknown) && outlives(case, &lives), "{case:?}");
            assert!(stays(made(40_000), case, &unknown) && !stays(made(40_000), case, &lives), "{case:?}");
            let none = Stored::Waiting { top: now().secs() };
            assert!(stays(none, case, &unknown) && !stays(none, case, &lives), "{case:?}");
        }
    }

    #[test]
    fn where_no_keeper_answers_and_the_note_is_lost_a_spent_token_goes_over_nothing() {
        let desk = Desk::new("");
        let portal = Uploader(&desk, "wlcg");
        portal.send("a-refresh-token").unwrap();
        std::fs::write(desk.file("wlcg.top"), ROTATED).unwrap();
        desk.age("wlcg.top", 60);
        std::fs::remove_dir_all(desk.file("cache")).unwrap();
        assert_eq!(portal.send("a-refresh-token").unwrap(), End::Kept);
        assert_eq!((portal.top().as_str(), desk.calls("add-oauth")), (ROTATED, 1));
        // Also while its first access token is not there yet.
        std::fs::remove_dir_all(desk.file("cache")).unwrap();
        std::fs::remove_file(desk.file("wlcg.use")).unwrap();
        assert_eq!(portal.send("a-refresh-token").unwrap_err().label(), "not-usable");
        assert_eq!((portal.top().as_str(), desk.calls("add-oauth")), (ROTATED, 1));
    }

    #[test]
    fn a_token_that_was_rotated_since_is_not_put_back() {
        let desk = Desk::new("");
        let portal = Uploader(&desk, "wlcg");
        portal.send("a-refresh-token").unwrap();
        std::fs::write(desk.file("wlcg.top"), ROTATED).unwrap();
        desk.age("wlcg.top", 60);
        portal.send("a-refresh-token").unwrap();
        assert_eq!((portal.top().as_str(), desk.calls("add-oauth")), (ROTATED, 1));
        // Its `.use` is behind: waited for, not stored anew.
        desk.age("wlcg.use", 120);
        assert_eq!(portal.send("a-refresh-token").unwrap_err().label(), "not-usable");
        assert_eq!((portal.top().as_str(), desk.calls("add-oauth")), (ROTATED, 1));
        // Removed by somebody: stored again.
        std::fs::remove_file(desk.file("wlcg.top")).unwrap();
        portal.send("a-refresh-token").unwrap();
        assert_eq!(desk.calls("add-oauth"), 2);
    }

    #[test]
    fn a_token_whose_first_access_token_was_late_is_not_stored_twice() {
        let desk = Desk::new("");
        std::fs::write(desk.file("no-use"), "").unwrap();
        let portal = Uploader(&desk, "wlcg");
        assert_eq!(portal.send("a-refresh-token").unwrap_err().label(), "not-usable");
        std::fs::write(desk.file("wlcg.top"), ROTATED).unwrap();
        desk.age("wlcg.top", 60);
        std::fs::write(desk.file("wlcg.use"), "new").unwrap();
        portal.send("a-refresh-token").unwrap();
        assert_eq!(desk.calls("add-oauth"), 1);
    }

    #[test]
    fn where_tokens_are_exchanged_it_is_a_subject_token_whose_end_says_nothing() {
        let desk = Desk::new("");
        let portal = Uploader(&desk, "swap");
        let token = jwt(&format!(r#"{{"iss":"{}","exp":{}}}"#, desk.issuer.url(), now().secs() + 600));
        assert_eq!(portal.send(token.expose()).unwrap(), End::Stored);
        assert_eq!(portal.top(), format!("{{\"subject_token\":\"{}\"}}", token.expose()));
        assert_eq!(desk.issuer.control().stats().requests, 0, "nobody can tell without spending it");
        let elsewhere = jwt(r#"{"iss":"https://evil.example"}"#);
        let refused = check(&elsewhere, &desk.provider("swap"), now()).unwrap_err();
        assert!(refused.starts_with("it is not of http://127.0.0.1"), "{refused}");
    }

    #[test]
    fn a_dead_token_is_refused_and_what_the_user_approved_since_stays() {
        let desk = Desk::new("");
        let portal = Uploader(&desk, "helmholtz");
        let old = made(&desk, 900_000);
        portal.send(&old).unwrap();
        assert!(desk.issuer.control().revoke(&old));
        // The user approves another, which ends sooner than the old one would have; then the next job comes.
        std::fs::write(desk.file("helmholtz.top"), "{\"mytoken\":\"approved\"}").unwrap();
        desk.knows(600_000, None);
        std::fs::remove_dir_all(desk.file("cache")).unwrap();
        let short = "a".repeat(64);
        for (token, why) in [(old.as_str(), "it was revoked, or replaced"), (&short, "invalid number of segments")] {
            let error = portal.send(token).unwrap_err();
            assert_eq!((error.label(), error.code()), ("unsuitable", 1));
            let words = error.line(Purpose::Login);
            assert!(words.contains(why) && words.ends_with("Nothing was stored.") && !words.contains(token), "{words}");
        }
        assert_eq!((portal.top().contains("approved"), desk.calls("add-oauth")), (true, 1));
    }

    #[test]
    fn a_good_credential_is_replaced_only_by_one_that_ends_later() {
        let desk = Desk::new("");
        let portal = Uploader(&desk, "helmholtz");
        let (shorter, longer) = (made(&desk, 300_000), made(&desk, 900_000));
        portal.send(&made(&desk, 600_000)).unwrap();
        desk.knows(600_000, None);
        let first = portal.top();
        assert_eq!(portal.send(&shorter).unwrap(), End::Kept);
        let asked = desk.issuer.control().stats().requests;
        portal.send(&shorter).unwrap();
        assert_eq!(desk.issuer.control().stats().requests, asked, "the same token again asks nobody");
        assert_eq!(portal.top(), first);
        assert_eq!(portal.send(&longer).unwrap(), End::Stored);
        assert!(portal.top().contains(&longer));
        // One that works no more is replaced by whatever lives.
        desk.knows(900_000, Some(Kind::Revoked));
        assert_eq!(portal.send(&shorter).unwrap(), End::Stored);
        assert!(portal.top().contains(&shorter));
    }

    #[test]
    fn a_server_that_cannot_be_asked_is_told_and_nothing_is_stored() {
        let desk = Desk::new("");
        let (portal, token) = (Uploader(&desk, "helmholtz"), made(&desk, 600));
        desk.issuer.control().set_outage(Outage::Unavailable);
        let error = portal.send(&token).unwrap_err();
        assert_eq!((error.label(), error.code()), ("unreachable", 1));
        let words = error.line(Purpose::Login);
        assert!(words.starts_with("The mytoken server could not be reached: ") && words.contains("503"), "{words}");
        assert!(words.ends_with("nothing was stored."), "{words}");
        assert_eq!(desk.calls("add-oauth"), 0);
        desk.issuer.control().set_outage(Outage::Off);
        portal.send(&token).unwrap();
    }

    #[test]
    fn a_token_that_may_not_ask_about_itself_lives_and_one_that_rotates_is_refused() {
        let desk = Desk::new("");
        let portal = Uploader(&desk, "helmholtz");
        let wish = MytokenWish { user: "alice".into(), capabilities: vec!["AT".into()], ..MytokenWish::default() };
        portal.send(&desk.issuer.control().mytoken(wish).unwrap()).unwrap();
        assert_eq!(desk.calls("add-oauth"), 1);
        // What the server says counts, whatever a token shows.
        let claims = |text: &str| Some(serde_json::from_str(text).unwrap());
        let short = RefreshToken::parse(&"a".repeat(64)).unwrap();
        let told = |text: &str| check_claims(&short, claims(text), &mytoken(), NOW);
        assert!(told(r#"{"iss":"https://mytok.eu","rotation":{"on_AT":true}}"#).unwrap_err().contains("rotates"));
        let endless = told(r#"{"iss":"https://mytok.eu"}"#).unwrap();
        assert_eq!((endless.end, endless.left()), (None, Left::Unlimited));
    }
}
