//! HTCondor's own knobs, asked of `condor_config_val`.
//!
//! The program is found at absolute paths only, runs with an empty environment (but `CONDOR_CONFIG` and `HOME`), and has
//! a minute: a host may be busy, at boot most of all. No HTCondor is not an error: then its knobs are absent. A program
//! that is there and does not answer is one ([`NoAnswer`]): nobody knows then what is defined.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

/// Where `condor_config_val` may be.
const PLACES: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/usr/sbin", "/usr/local/sbin"];
/// How long HTCondor may take to answer once.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most that we read of one answer.
const MAX_ANSWER: u64 = 1 << 20;

/// HTCondor is there and does not say what is configured. It may do so later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {why}", program.display())]
pub struct NoAnswer {
    program: PathBuf,
    why: String,
}

impl NoAnswer {
    /// What to do about it.
    #[must_use]
    pub fn advice(&self) -> String {
        format!(
            "see whether this host is overloaded, and what `{} -dump` says; then try again (CONDOR_CONFIG=ONLY_ENV in the \
             environment: HTCondor is not configured here)",
            self.program.display()
        )
    }
}

/// What HTCondor says. All absent: there is no HTCondor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Knobs {
    /// `SEC_CREDENTIAL_DIRECTORY_OAUTH`
    pub credential_directory: Option<PathBuf>,
    /// `SEC_CREDENTIAL_REFRESH`; absent also where it is 0 or less.
    pub refresh: Option<Duration>,
    /// `CREDMON_OAUTH_LOG`
    pub log: Option<PathBuf>,
    /// `MAX_CREDMON_OAUTH_LOG`, bytes.
    pub log_limit: Option<u64>,
    /// `MAX_NUM_CREDMON_OAUTH_LOG`
    pub log_keep: Option<u32>,
    /// `EVERCRED_CONFIG`
    pub config: Option<PathBuf>,
    /// Who answered, to be asked for more.
    pub program: Option<PathBuf>,
}

/// Ask HTCondor; nothing is known if `condor_config_val` is nowhere.
///
/// # Errors
/// It is there, and does not answer.
pub fn ask() -> Result<Knobs, NoAnswer> {
    program().map_or_else(|| Ok(Knobs::default()), |program| ask_program(&program))
}

/// Where `condor_config_val` is, if it is anywhere.
#[must_use]
pub fn program() -> Option<PathBuf> {
    PLACES.iter().map(|place| Path::new(place).join("condor_config_val")).find(|path| path.is_file())
}

/// What the daemon or tool `subsystem` sees as the value of each knob; absent where it is not defined. One process for
/// each, side by side: only so does its own spelling of a knob (`CREDD.X`) count as HTCondor counts it.
///
/// # Errors
/// There is no answer for one of them.
pub fn seen_by<const N: usize>(
    program: &Path,
    subsystem: &str,
    knobs: [&str; N],
) -> Result<[Option<String>; N], NoAnswer> {
    let mut values = [const { None }; N];
    let asked = knobs.map(|knob| Asked::start(program, &["-subsystem", subsystem, knob]));
    for (value, asked) in values.iter_mut().zip(asked) {
        *value = asked?.value()?;
    }
    Ok(values)
}

/// Ask this `condor_config_val`: one process for all.
///
/// # Errors
/// It does not answer.
pub fn ask_program(program: &Path) -> Result<Knobs, NoAnswer> {
    let pattern = "^(SEC_CREDENTIAL_DIRECTORY_OAUTH|SEC_CREDENTIAL_REFRESH|CREDMON_OAUTH_LOG|MAX_CREDMON_OAUTH_LOG|\
                   MAX_NUM_CREDMON_OAUTH_LOG|EVERCRED_CONFIG)$";
    let dump = Asked::start(program, &["-dump", "-expand", pattern])?.text()?;
    let defined: BTreeMap<String, &str> =
        lines(&dump).map(|(name, value)| (name.to_ascii_uppercase(), value)).collect();
    let text = |name: &str| defined.get(name).map(|value| (*value).to_owned());
    Ok(Knobs {
        credential_directory: text("SEC_CREDENTIAL_DIRECTORY_OAUTH").and_then(absolute),
        refresh: text("SEC_CREDENTIAL_REFRESH")
            .and_then(|text| text.parse().ok())
            .filter(|secs: &u64| *secs > 0 && *secs <= 86_400)
            .map(Duration::from_secs),
        log: text("CREDMON_OAUTH_LOG").and_then(absolute),
        log_limit: text("MAX_CREDMON_OAUTH_LOG").and_then(|text| bytes(&text)),
        log_keep: text("MAX_NUM_CREDMON_OAUTH_LOG").and_then(|text| text.parse().ok()),
        config: text("EVERCRED_CONFIG").and_then(absolute),
        program: Some(program.to_owned()),
    })
}

/// What HTCondor's configuration says of one service that is approved on a web page (`<S>_CLIENT_ID` and so on).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceKnobs {
    /// `<S>_CLIENT_ID`
    pub client_id: Option<String>,
    /// `<S>_CLIENT_SECRET_FILE`
    pub client_secret_file: Option<String>,
    /// `<S>_TOKEN_URL`
    pub token_url: Option<String>,
    /// `<S>_AUTHORIZATION_URL`
    pub authorization_url: Option<String>,
    /// `<S>_RETURN_URL_SUFFIX`
    pub return_url_suffix: Option<String>,
}

/// The knobs of web approvals, as credd sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WebKnobs {
    /// `CREDMON_WEB_PREFIX`
    pub prefix: Option<String>,
    /// By service as the knobs spell it. HTCondor's names ignore case: ask through [`WebKnobs::of`].
    pub services: BTreeMap<String, ServiceKnobs>,
}

impl WebKnobs {
    /// The knobs of a service.
    #[must_use]
    pub fn of(&self, service: &str) -> Option<&ServiceKnobs> {
        self.services.iter().find(|(name, _)| name.eq_ignore_ascii_case(service)).map(|(_, knobs)| knobs)
    }
}

/// Ask for the knobs of web approvals: one process, whatever the number of services.
///
/// # Errors
/// There is no answer.
pub fn web_knobs(program: &Path) -> Result<WebKnobs, NoAnswer> {
    let pattern = "_(CLIENT_ID|CLIENT_SECRET_FILE|TOKEN_URL|AUTHORIZATION_URL|RETURN_URL_SUFFIX)$|^CREDMON_WEB_PREFIX$";
    let dump = Asked::start(program, &["-subsystem", "CREDD", "-dump", "-expand", pattern])?.text()?;
    Ok(read_dump(&dump))
}

/// Lines `NAME = value` of a dump, comments between them; what is empty is not defined.
fn lines(dump: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = dump.lines().filter_map(|line| line.split_once(" = ")).map(|(name, value)| (name, value.trim()));
    pairs.filter(|(name, value)| !name.starts_with('#') && !value.is_empty())
}

fn read_dump(text: &str) -> WebKnobs {
    let mut knobs = WebKnobs::default();
    for (name, value) in lines(text) {
        if name.eq_ignore_ascii_case("CREDMON_WEB_PREFIX") {
            knobs.prefix = Some(value.to_owned());
            continue;
        }
        let Some((service, pick)) = PARTS.iter().find_map(|(suffix, pick)| {
            let at = name.len().checked_sub(suffix.len())?;
            let (service, rest) = (name.get(..at)?, name.get(at..)?);
            (!service.is_empty() && rest.eq_ignore_ascii_case(suffix)).then_some((service, pick))
        }) else {
            continue;
        };
        let known = knobs.services.keys().find(|known| known.eq_ignore_ascii_case(service)).cloned();
        let entry = knobs.services.entry(known.unwrap_or_else(|| service.to_owned())).or_default();
        *pick(entry) = Some(value.to_owned());
    }
    knobs
}

/// Which part of a service's knobs a name's end stands for.
type Pick = fn(&mut ServiceKnobs) -> &mut Option<String>;
const PARTS: [(&str, Pick); 5] = [
    ("_CLIENT_ID", |knobs| &mut knobs.client_id),
    ("_CLIENT_SECRET_FILE", |knobs| &mut knobs.client_secret_file),
    ("_TOKEN_URL", |knobs| &mut knobs.token_url),
    ("_AUTHORIZATION_URL", |knobs| &mut knobs.authorization_url),
    ("_RETURN_URL_SUFFIX", |knobs| &mut knobs.return_url_suffix),
];

/// A `condor_config_val` that was started.
struct Asked<'a> {
    program: &'a Path,
    child: Child,
    texts: [Receiver<String>; 2],
    deadline: Instant,
}

impl<'a> Asked<'a> {
    fn start(program: &'a Path, arguments: &[&str]) -> Result<Self, NoAnswer> {
        let fail = |e: &std::io::Error| NoAnswer { program: program.to_owned(), why: format!("does not start: {e}") };
        let mut command = Command::new(program);
        command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A personal HTCondor's files say $ENV(HOME).
        for name in ["CONDOR_CONFIG", "HOME"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let mut child = command.spawn().map_err(|e| fail(&e))?;
        let texts = [child.stdout.take().map(read_all), child.stderr.take().map(read_all)];
        // Both were asked for.
        let texts = texts.map(|text| text.unwrap_or_else(|| channel().1));
        Ok(Self { program, child, texts, deadline: Instant::now() + PATIENCE })
    }

    /// The value of a knob; none: it says that it is not defined, or that it is empty.
    fn value(self) -> Result<Option<String>, NoAnswer> {
        let program = self.program;
        let (well, [told, error]) = self.end()?;
        if !well && ![&told, &error].into_iter().any(|text| text.trim_start().starts_with("Not defined")) {
            return Err(failed(program, &error));
        }
        let value = told.lines().next().map(|line| line.trim().to_owned());
        Ok(value.filter(|value| well && !value.is_empty()))
    }

    /// Everything that it prints.
    fn text(self) -> Result<String, NoAnswer> {
        let program = self.program;
        let (well, [told, error]) = self.end()?;
        if well { Ok(told) } else { Err(failed(program, &error)) }
    }

    /// Whether it ended well, its output and its errors.
    fn end(mut self) -> Result<(bool, [String; 2]), NoAnswer> {
        let late = || NoAnswer {
            program: self.program.to_owned(),
            why: format!("does not answer within {} s", PATIENCE.as_secs()),
        };
        let well = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status.success(),
                Ok(None) if Instant::now() < self.deadline => thread::sleep(Duration::from_millis(2)),
                _ => {
                    // Both fail only for a process that is gone already.
                    self.child.kill().ok();
                    self.child.wait().ok();
                    return Err(late());
                }
            }
        };
        // Whatever it has started may hold its output open.
        let [told, error] = self
            .texts
            .map(|text| text.recv_timeout(self.deadline.saturating_duration_since(Instant::now())).map_err(|_| late()));
        Ok((well, [told?, error?]))
    }
}

/// All of a pipe as text, by a thread: a program that prints much does not wait for us.
fn read_all(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (to, text) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What broke off says nothing; nobody listens if it is late.
        let read = pipe.take(MAX_ANSWER).read_to_end(&mut bytes);
        read.map(|_| to.send(String::from_utf8_lossy(&bytes).into_owned()).ok()).ok();
    });
    text
}

fn failed(program: &Path, error: &str) -> NoAnswer {
    let words = error.split_whitespace().take(40).collect::<Vec<_>>().join(" ");
    NoAnswer { program: program.to_owned(), why: format!("fails: {words}") }
}

fn absolute(text: String) -> Option<PathBuf> {
    Some(PathBuf::from(text)).filter(|path| path.is_absolute())
}

/// `10000000`, `10 Mb`, `500Kb`; HTCondor's other form, a time, is not a size.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1 << 10,
        "m" | "mb" => 1 << 20,
        "g" | "gb" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn fake(script: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("condor_config_val");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        // A fork of another test may hold the file open for writing for a moment.
        while Command::new(&path).stdout(Stdio::null()).status().is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        (dir, path)
    }

    #[test]
    fn knobs_are_read_and_undefined_ones_are_absent() {
        let (_dir, program) = fake(
            r#"test "$1 $2" = "-dump -expand" || exit 1
            cat <<'EOF'
# Configuration from machine: ap.example.org

# Parameters with names that match x = y:
sec_credential_directory_oauth = /var/lib/condor/oauth_credentials
SEC_CREDENTIAL_REFRESH = 120
MAX_CREDMON_OAUTH_LOG = 10 Mb
MAX_NUM_CREDMON_OAUTH_LOG = 5
CREDMON_OAUTH_LOG =
# Contributing configuration file(s):
EOF"#,
        );
        let expected = Knobs {
            credential_directory: Some("/var/lib/condor/oauth_credentials".into()),
            refresh: Some(Duration::from_secs(120)),
            log: None,
            log_limit: Some(10 << 20),
            log_keep: Some(5),
            config: None,
            program: Some(program.clone()),
        };
        assert_eq!(ask_program(&program), Ok(expected));
    }

    #[test]
    fn the_knobs_of_web_approvals_come_from_one_dump_as_credd_sees_it() {
        let (_dir, program) = fake(
            r#"test "$1 $2 $3 $4" = "-subsystem CREDD -dump -expand" || exit 1
            cat <<'EOF'
# Configuration from machine: ap.example.org

# Parameters with names that match x:
BOX_TOKEN_URL = https://api.box.com/oauth2/token
CREDMON_WEB_PREFIX = https://ap.example.org/credmon
cms_AUTHORIZATION_URL = https://i.example.org/auth?a=b = c
CMS_client_id = web"client
cms_CLIENT_SECRET_FILE = /etc/condor/secrets/cms
cms_RETURN_URL_SUFFIX = /return/cms
_CLIENT_ID = nobody's
# Contributing configuration file(s):
EOF"#,
        );
        let knobs = web_knobs(&program).unwrap();
        assert_eq!(knobs.prefix.as_deref(), Some("https://ap.example.org/credmon"));
        assert_eq!(knobs.services.len(), 2, "{knobs:?}");
        let cms = ServiceKnobs {
            client_id: Some("web\"client".into()),
            client_secret_file: Some("/etc/condor/secrets/cms".into()),
            token_url: None,
            authorization_url: Some("https://i.example.org/auth?a=b = c".into()),
            return_url_suffix: Some("/return/cms".into()),
        };
        assert_eq!(knobs.of("Cms"), Some(&cms));
        assert_eq!(knobs.of("atlas"), None);
    }

    #[test]
    fn no_answer_is_told_from_a_knob_that_is_not_defined() {
        let (_dir, program) = fake(
            r#"case $3 in
                DEFINED) echo value;;
                EMPTY) echo;;
                BROKEN) echo 'Configuration Error "/etc/condor/condor_config", Line 3' >&2; exit 1;;
                *) echo "Not defined: $3" >&2; exit 1;;
            esac"#,
        );
        assert_eq!(
            seen_by(&program, "CREDD", ["DEFINED", "EMPTY", "NOT_THERE"]),
            Ok([Some("value".into()), None, None])
        );
        let broken = seen_by(&program, "CREDD", ["DEFINED", "BROKEN"]).unwrap_err();
        assert!(broken.to_string().ends_with(r#"fails: Configuration Error "/etc/condor/condor_config", Line 3"#));
        // As `-dump` does where HTCondor's files cannot be read.
        let (_dir, broken) = fake("echo '\"/nowhere\" does not exist.' >&2; exit 1");
        assert!(ask_program(&broken).unwrap_err().to_string().contains("does not exist"));
        assert!(web_knobs(&broken).is_err());
        assert!(ask_program(Path::new("/nowhere")).unwrap_err().to_string().contains("does not start"));
    }

    #[test]
    fn who_does_not_answer_in_time_is_ended_and_that_is_no_answer() {
        for script in ["exec sleep 600", "sleep 600 & exit 0"] {
            let (_dir, program) = fake(&format!("test -n \"$1\" || exit 0\n{script}"));
            let mut asked = Asked::start(&program, &["-dump"]).unwrap();
            asked.deadline = Instant::now() + Duration::from_millis(300);
            let pid = asked.child.id();
            assert!(asked.text().unwrap_err().to_string().contains("does not answer within 60 s"), "{script}");
            assert!(!Path::new(&format!("/proc/{pid}")).exists());
        }
    }

    #[test]
    fn of_the_environment_little_is_passed_on() {
        let (_dir, program) = fake(r#"test -z "$USER$CARGO_MANIFEST_DIR" && echo "CREDMON_OAUTH_LOG = $HOME/clean""#);
        let home = std::env::var("HOME").unwrap_or_default();
        assert_eq!(ask_program(&program).unwrap().log, Some(format!("{home}/clean").into()));
    }
}
