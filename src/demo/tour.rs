//! `evercred demo`: the guided tour. The embedded issuer, a temporary credential directory and the real credential
//! monitor as processes of their own; what is shown is read from the files, the issuer's records and the monitor's log.
//! Interrupted or not, the children are stopped and the directory is removed; after SIGKILL it is left behind in the
//! system's temporary directory, without anything of value in it.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    approval::{self, News},
    far::Far,
    issuer::{Issuer, MytokenWish, Options, Outage, Rotation, Running, TokenWish},
    screen::{Screen, Tone},
};

const LIFETIME: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(200);
const PARKED: &str =
    "carol/grid is parked: refused twice, it is asked for no more until her .top changes; the others go on.";
/// Two refusals this far apart park a credential here: the tour is over in half of the usual minute.
const CONFIRM: &str = "5s";
/// Shorter runs end before a renewal is due everywhere.
const LONG_ENOUGH: Duration = Duration::from_secs(25);

/// Run the tour for `run_for`; `plain` asks for lines without colour and live table, `yes` approves what is asked.
#[must_use]
#[expect(clippy::print_stderr, reason = "the edge of the program")]
pub fn main(run_for: Duration, plain: bool, yes: bool) -> ExitCode {
    match tour(run_for, plain, yes) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("evercred demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One credential as its files show it.
struct Watched {
    user: &'static str,
    service: &'static str,
    dir: PathBuf,
    top: String,
    jti: Option<String>,
    exp: u64,
    published: u32,
    rotations: u32,
    gone: bool,
}

impl Watched {
    fn store(home: &Path, user: &'static str, service: &'static str, top: &Value) -> io::Result<Self> {
        let dir = home.join(user);
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let temporary = dir.join(".store");
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(top.to_string().as_bytes())?;
        fs::rename(&temporary, dir.join(format!("{service}.top")))?;
        let mut made =
            Self { user, service, dir, top: String::new(), jti: None, exp: 0, published: 0, rotations: 0, gone: false };
        made.top = made.fingerprint().unwrap_or_default();
        Ok(made)
    }

    /// The beginning of the hash of the `.top`; never the token.
    fn fingerprint(&self) -> Option<String> {
        let bytes = fs::read(self.dir.join(format!("{}.top", self.service))).ok()?;
        let hash = Sha256::digest(bytes);
        hash.get(..4).map(|start| start.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")))
    }

    /// Look at the files and tell what changed.
    fn look(&mut self, tell: &mut dyn FnMut(Tone, String)) {
        let name = format!("{}/{}", self.user, self.service);
        if let Some(top) = self.fingerprint()
            && top != self.top
        {
            self.rotations += 1;
            tell(Tone::Good, format!("{name}.top rotated: sha256 {} -> {top}", self.top));
            self.top = top;
        }
        let path = self.dir.join(format!("{}.use", self.service));
        let Some((jti, exp)) = fs::read_to_string(path).ok().as_deref().and_then(claims) else {
            if self.jti.is_some() && !self.gone {
                self.gone = true;
                tell(Tone::Bad, format!("{name}.use is gone or unreadable"));
            }
            return;
        };
        self.gone = false;
        if self.jti.as_ref() != Some(&jti) {
            self.published += 1;
            let left = exp.saturating_sub(wall());
            if self.published == 1 {
                tell(Tone::Good, format!("{name}.use appeared, good for {left} s"));
            } else {
                tell(Tone::Good, format!("{name}.use renewed, good for {left} s"));
            }
            self.jti = Some(jti);
            self.exp = exp;
        }
    }
}

/// `jti` and `exp` of the access token in a `.use`, JSON or bare.
fn claims(text: &str) -> Option<(String, u64)> {
    let parsed: Option<Value> = serde_json::from_str(text).ok();
    let token = parsed.as_ref().and_then(|value| value.get("access_token")?.as_str()).unwrap_or(text.trim());
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?).ok()?;
    Some((claims.get("jti")?.as_str()?.to_owned(), claims.get("exp")?.as_u64()?))
}

fn wall() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// A directory that goes with us.
struct Home(PathBuf);

impl Home {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("evercred-demo-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Nobody is left to be told.
        drop(fs::remove_dir_all(&self.0));
    }
}

/// The credential monitor; stopped with us.
struct Monitor(Child);

impl Monitor {
    fn start(config: &Path, credentials: &Path, log: &Path) -> io::Result<Self> {
        // A monitor that cannot even start says why on stderr, which must reach the user.
        let child = Command::new("/proc/self/exe")
            .args(["credmon", "--foreground", "--confirm-after", CONFIRM, "--config"])
            .arg(config)
            .arg("--cred-dir")
            .arg(credentials)
            .arg("--log")
            .arg(log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }

    fn ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if self.ended() {
            return;
        }
        if let Ok(pid) = i32::try_from(self.0.id()) {
            // It may have ended by itself meanwhile.
            kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        }
        let patience = Instant::now() + Duration::from_secs(3);
        while Instant::now() < patience {
            if self.ended() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// For the table below the lines.
fn table(all: &[Watched]) -> Vec<String> {
    let row = |one: &Watched| {
        let left = one.exp.saturating_sub(wall());
        let bar = "#".repeat(usize::try_from(left.min(20)).unwrap_or(0));
        let name = format!("{}/{}", one.user, one.service);
        format!("{name:<14} {bar:<20} {left:>2} s left  published {}", one.published)
    };
    all.iter().map(row).collect()
}

/// New lines of the monitor's log.
struct Log {
    path: PathBuf,
    seen: usize,
}

impl Log {
    /// Complete lines since the last call.
    fn fresh(&mut self) -> Vec<String> {
        let bytes = fs::read(&self.path).unwrap_or_default();
        let rest = bytes.get(self.seen..).unwrap_or_default();
        let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.seen += whole;
        let text = String::from_utf8_lossy(rest.get(..whole).unwrap_or_default()).into_owned();
        text.lines().map(str::to_owned).collect()
    }
}

fn config(issuer: &Running, credentials: &Path, far: &Far) -> String {
    let (daemon, site) = far.config();
    format!(
        "[daemon]\ncredential_directory = {credentials}\nstatus_socket = {socket}\ncourier_user = \"daemon\"\n{daemon}\n\
         [provider.grid]\nkind = \"oauth2\"\nissuer = \"{url}\"\nclient_id = \"demo\"\n\
         scopes = [\"storage.read:/\"]\n\n\
         [provider.mytoken]\nkind = \"mytoken\"\nserver = \"{mytoken}\"\nissuer = \"{url}\"\n\n{site}",
        credentials = json!(credentials),
        socket = json!(credentials.with_file_name("status.sock")),
        url = issuer.url(),
        mytoken = issuer.mytoken_url(),
    )
}

fn opening(issuer: &Running) -> [(Tone, String); 3] {
    let lifetime = LIFETIME.as_secs();
    [
        (Tone::Story, format!("An issuer on loopback at {}, access tokens of {lifetime} s.", issuer.url())),
        (Tone::Story, "The credential monitor starts, as its own processes.".into()),
        (Tone::Story, "Every renewed token is also replicated to a second directory, sealed on the way.".into()),
    ]
}

/// What came to the far site, and in [`Tone::Bad`] if nothing did.
fn far_lines(far: &Far, all: &[Watched], interrupted: bool) -> Vec<(Tone, String)> {
    let published: u32 = all.iter().map(|one| one.published).sum();
    let told = format!("The far site received {} tokens, sealed; {published} were published.", far.received);
    let mut lines = vec![(Tone::Story, told)];
    if !interrupted && far.received == 0 {
        lines.push((Tone::Bad, "Nothing came to the far site: replication does not work here.".into()));
    }
    lines
}

fn tour(run_for: Duration, plain: bool, yes: bool) -> io::Result<bool> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let mut screen = Screen::new(plain);
    let issuer =
        Issuer::start(&Options { access_lifetime: LIFETIME, rotation: Rotation::Strict, ..Options::default() })?;
    let control = issuer.control();
    let home = Home::new()?;
    let credentials = home.0.join("credentials");
    fs::DirBuilder::new().mode(0o700).create(&credentials)?;
    fs::set_permissions(&credentials, fs::Permissions::from_mode(0o2700))?;
    let (config_file, log_file) = (home.0.join("evercred.toml"), home.0.join("log"));
    let mut far = Far::new(&home.0)?;
    fs::write(&config_file, config(&issuer, &credentials, &far))?;
    screen.print(&opening(&issuer), &[])?;
    let mut monitor = Monitor::start(&config_file, &credentials, &log_file)?;
    let oauth2 = |user: &str| {
        let wish = TokenWish { user: user.into(), scope: "storage.read:/".into(), ..TokenWish::default() };
        json!({ "refresh_token": control.refresh_token(&wish) })
    };
    let mytoken =
        control.mytoken(MytokenWish { user: "bob".into(), lifetime: Some(3600), ..MytokenWish::default() })?;
    let mut all = vec![
        Watched::store(&credentials, "alice", "grid", &oauth2("alice"))?,
        Watched::store(&credentials, "bob", "mytoken", &json!({ "mytoken": mytoken }))?,
        Watched::store(&credentials, "carol", "grid", &oauth2("carol"))?,
    ];
    screen.print(
        &[(Tone::Story, "Three credentials are stored: alice and carol (OAuth2, rotating), bob (mytoken).".into())],
        &[],
    )?;

    let news = approval::start(&config_file, issuer.control(), screen.look(), yes, Arc::clone(&stop));
    let mut log = Log { path: log_file, seen: 0 };
    let (begin, end) = (run_for.mul_f64(0.27), run_for.mul_f64(0.43));
    let revoke_at = run_for.mul_f64(0.12);
    let (mut revoked, mut out, mut back, mut refused, mut parked) = (false, false, false, false, false);
    let mut died = false;
    while screen.elapsed() < run_for && !stop.load(Relaxed) {
        let mut lines = Vec::new();
        let elapsed = screen.elapsed();
        if !revoked && elapsed >= revoke_at {
            revoked = control.revoke_user("carol") > 0;
            lines.push((Tone::Story, "carol's refresh token is revoked at the issuer.".into()));
        }
        if !out && elapsed >= begin {
            out = true;
            control.set_outage(Outage::Unavailable);
            lines.push((Tone::Story, "The issuer goes down: every request gets 503.".into()));
        }
        if out && !back && elapsed >= end {
            back = true;
            control.set_outage(Outage::Off);
            lines.push((Tone::Story, "The issuer is back.".into()));
        }
        for said in news.try_iter() {
            heard(said, &credentials, &mut lines, &mut all)?;
        }
        for one in &mut all {
            one.look(&mut |tone, line| lines.push((tone, line)));
        }
        far.look(&mut |line| lines.push((Tone::Quiet, line)));
        let refusals: u64 = control.records(Some("carol")).iter().map(|record| record.refused).sum();
        if !refused && refusals > 0 {
            refused = true;
            let kept = all.iter().any(|one| one.user == "carol" && one.jti.is_some() && !one.gone);
            let kept = if kept { "her .use is kept" } else { "her .use is not there" };
            lines.push((Tone::Bad, format!("The issuer refused carol's refresh token; {kept}, the others go on.")));
        }
        lines.extend(noteworthy(&mut log, &mut parked));
        if monitor.ended() {
            died = true;
            lines.push((Tone::Bad, "The credential monitor ended.".into()));
        }
        if !lines.is_empty() || screen.is_live() {
            screen.print(&lines, &table(&all))?;
        }
        if died {
            break;
        }
        thread::sleep(LOOK);
    }
    let interrupted = stop.swap(true, Relaxed);
    let stopping = Instant::now();
    drop(monitor);
    let mut lines = summary(&mut all, &issuer, run_for, interrupted, stopping.elapsed());
    lines.extend(far_lines(&far, &all, interrupted));
    if !interrupted && !parked && run_for >= LONG_ENOUGH {
        lines.push((Tone::Bad, "carol/grid was not parked, although its refresh token is revoked.".into()));
    }
    lines.extend(unapproved(&all, yes && !interrupted));
    let good = !died && lines.iter().all(|(tone, _)| *tone != Tone::Bad);
    screen.print(&lines, &[])?;
    if !good {
        let last: Vec<_> = fs::read_to_string(&log.path).unwrap_or_default().lines().map(str::to_owned).collect();
        let last = last.iter().rev().take(5).rev().map(|line| (Tone::Quiet, format!("log: {line}")));
        screen.print(&last.collect::<Vec<_>>(), &[])?;
    }
    Ok(good || interrupted)
}

/// The renewals are shown from the files already; of the log, what went wrong, and that carol is parked.
fn noteworthy(log: &mut Log, parked: &mut bool) -> Vec<(Tone, String)> {
    let mut lines = Vec::new();
    for line in log.fresh().into_iter().filter(|line| ["WARN", "ERROR"].iter().any(|level| line.contains(level))) {
        let parks = line.contains("user=carol ") && line.contains("parked");
        lines.push((Tone::Quiet, format!("log: {line}")));
        if parks && !*parked {
            *parked = true;
            lines.push((Tone::Bad, PARKED.into()));
        }
    }
    lines
}

/// What comes of dave's request.
fn heard(news: News, credentials: &Path, lines: &mut Vec<(Tone, String)>, all: &mut Vec<Watched>) -> io::Result<()> {
    match news {
        News::Lines(text) => lines.extend(text.lines().map(|line| (Tone::Story, line.to_owned()))),
        News::Approved(top) => {
            let (user, service) = approval::WHO;
            lines.push((Tone::Story, "Approved: dave's credential is stored.".into()));
            all.push(Watched::store(credentials, user, service, &serde_json::from_str(&top)?)?);
        }
    }
    Ok(())
}

/// `approved`: dave's request was approved for him, so that he has a credential; else in [`Tone::Bad`] that he has none.
fn unapproved(all: &[Watched], approved: bool) -> Option<(Tone, String)> {
    let has = all.iter().any(|one| one.user == approval::WHO.0);
    (approved && !has)
        .then(|| (Tone::Bad, "Dave has no credential, although he approved: approvals do not work here.".into()))
}

/// The counts, and in [`Tone::Bad`] whatever did not happen as it should.
fn summary(
    all: &mut [Watched],
    issuer: &Running,
    run_for: Duration,
    interrupted: bool,
    stopping: Duration,
) -> Vec<(Tone, String)> {
    let mut lines = Vec::new();
    for one in &mut *all {
        one.look(&mut |tone, line| lines.push((tone, line)));
    }
    if interrupted {
        lines.push((Tone::Story, "Interrupted.".into()));
    }
    for one in &*all {
        lines.push((
            Tone::Story,
            format!(
                "{}/{}: .use published {} times, .top rotated {} times",
                one.user, one.service, one.published, one.rotations
            ),
        ));
    }
    let stats = issuer.control().stats();
    lines.push((
        Tone::Story,
        format!(
            "Issuer: {} requests on {} connections, {} exchanges, {} rotations, {} refused, {} reused",
            stats.requests, stats.connections, stats.exchanges, stats.rotations, stats.refused, stats.reuse
        ),
    ));
    lines.push((
        Tone::Quiet,
        format!("The monitor stopped in {:.1} s; the directory is removed.", stopping.as_secs_f64()),
    ));
    if !interrupted {
        for one in &*all {
            let name = format!("{}/{}", one.user, one.service);
            if one.published == 0 {
                lines.push((
                    Tone::Bad,
                    format!("{name}.use never appeared: the credential monitor does not work here."),
                ));
            } else if one.published == 1 && !["carol", approval::WHO.0].contains(&one.user) && run_for >= LONG_ENOUGH {
                lines.push((Tone::Bad, format!("{name}.use was not renewed, although it was due.")));
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_use_file_is_read_as_json_and_bare() {
        let token = format!("h.{}.s", URL_SAFE_NO_PAD.encode(r#"{"jti":"a","exp":7}"#));
        let told = Some(("a".to_owned(), 7));
        assert_eq!(claims(&format!("{{\"access_token\":\"{token}\"}}\n")), told);
        assert_eq!(claims(&format!("{token}\n")), told);
        assert_eq!(claims("{"), None);
    }

    #[test]
    fn an_approval_that_was_given_and_brought_nothing_fails_the_tour() {
        let dir = tempfile::tempdir().unwrap();
        let of = |user: &'static str| Watched::store(dir.path(), user, "mytoken", &json!({})).unwrap();
        let mut all = vec![of("alice")];
        assert!(unapproved(&all, true).is_some_and(|(tone, _)| tone == Tone::Bad));
        assert!(unapproved(&all, false).is_none(), "nobody needs to approve");
        all.push(of(approval::WHO.0));
        assert!(unapproved(&all, true).is_none());
    }

    #[test]
    fn only_complete_lines_of_the_log_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "one\ntw").unwrap();
        let mut log = Log { path: path.clone(), seen: 0 };
        assert_eq!(log.fresh(), ["one"]);
        fs::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(log.fresh(), ["two"]);
    }
}
