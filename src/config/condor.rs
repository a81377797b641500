//! HTCondor's own knobs, asked of `condor_config_val`.
//!
//! The program is found at absolute paths only, runs with an empty environment (but `CONDOR_CONFIG`), and has 5 s.
//! No HTCondor is not an error: then its knobs are absent.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Where `condor_config_val` may be.
const PLACES: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/usr/sbin", "/usr/local/sbin"];
/// How long HTCondor may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that we read of one value.
const MAX_VALUE: u64 = 64 << 10;

/// What HTCondor says. All absent: there is no HTCondor, or it does not answer.
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

/// Ask HTCondor; `None` if `condor_config_val` is nowhere.
#[must_use]
pub fn ask() -> Option<Knobs> {
    Some(ask_program(&program()?))
}

/// Where `condor_config_val` is, if it is anywhere.
#[must_use]
pub fn program() -> Option<PathBuf> {
    PLACES.iter().map(|place| Path::new(place).join("condor_config_val")).find(|path| path.is_file())
}

/// What the daemon or tool `subsystem` sees as the value of each knob; absent where it is not defined.
#[must_use]
pub fn seen_by<const N: usize>(program: &Path, subsystem: &str, knobs: [&str; N]) -> [Option<String>; N] {
    let deadline = Instant::now() + PATIENCE;
    knobs
        .map(|knob| start(program, &["-subsystem", subsystem, knob]))
        .map(|child| child.and_then(|child| answer(child, deadline)))
}

/// Ask this `condor_config_val`.
#[must_use]
pub fn ask_program(program: &Path) -> Knobs {
    let deadline = Instant::now() + PATIENCE;
    let names = [
        "SEC_CREDENTIAL_DIRECTORY_OAUTH",
        "SEC_CREDENTIAL_REFRESH",
        "CREDMON_OAUTH_LOG",
        "MAX_CREDMON_OAUTH_LOG",
        "MAX_NUM_CREDMON_OAUTH_LOG",
        "EVERCRED_CONFIG",
    ];
    // One process for each knob, side by side: the answers for several in one call do not say which is which.
    let [directory, refresh, log, log_limit, log_keep, config] =
        names.map(|name| start(program, &[name])).map(|child| child.and_then(|child| answer(child, deadline)));
    Knobs {
        credential_directory: directory.and_then(absolute),
        refresh: refresh
            .and_then(|text| text.parse().ok())
            .filter(|secs: &u64| *secs > 0 && *secs <= 86_400)
            .map(Duration::from_secs),
        log: log.and_then(absolute),
        log_limit: log_limit.and_then(|text| bytes(&text)),
        log_keep: log_keep.and_then(|text| text.parse().ok()),
        config: config.and_then(absolute),
        program: Some(program.to_owned()),
    }
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
#[must_use]
pub fn web_knobs(program: &Path) -> WebKnobs {
    let pattern = "_(CLIENT_ID|CLIENT_SECRET_FILE|TOKEN_URL|AUTHORIZATION_URL|RETURN_URL_SUFFIX)$|^CREDMON_WEB_PREFIX$";
    let deadline = Instant::now() + PATIENCE;
    let dump = start(program, &["-subsystem", "CREDD", "-dump", pattern]).and_then(|child| output(child, deadline));
    read_dump(&dump.unwrap_or_default())
}

/// Lines `NAME = value`; comments between them.
fn read_dump(text: &str) -> WebKnobs {
    let mut knobs = WebKnobs::default();
    for (name, value) in text.lines().filter_map(|line| line.split_once(" = ")) {
        let value = value.trim();
        if name.starts_with('#') || value.is_empty() {
            continue;
        }
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

fn start(program: &Path, arguments: &[&str]) -> Option<Child> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some(value) = std::env::var_os("CONDOR_CONFIG") {
        command.env("CONDOR_CONFIG", value);
    }
    command.spawn().ok()
}

fn answer(child: Child, deadline: Instant) -> Option<String> {
    let text = output(child, deadline)?;
    let value = text.lines().next()?.trim().to_owned();
    (!value.is_empty()).then_some(value)
}

/// Everything that it prints, if it ends well.
fn output(mut child: Child, deadline: Instant) -> Option<String> {
    // A pipe holds 64 KiB, as much as we read: the program never waits for us.
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            _ => {
                // Both fail only for a process that is gone already.
                child.kill().ok();
                child.wait().ok();
                return None;
            }
        }
    };
    let mut text = String::new();
    child.stdout.take()?.take(MAX_VALUE).read_to_string(&mut text).ok()?;
    status.success().then_some(text)
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
            r#"case $1 in
                SEC_CREDENTIAL_DIRECTORY_OAUTH) echo /var/lib/condor/oauth_credentials;;
                SEC_CREDENTIAL_REFRESH) echo 120;;
                MAX_CREDMON_OAUTH_LOG) echo 10 Mb;;
                MAX_NUM_CREDMON_OAUTH_LOG) echo 5;;
                *) echo "Not defined: $1"; exit 1;;
            esac"#,
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
        assert_eq!(ask_program(&program), expected);
    }

    #[test]
    fn the_knobs_of_web_approvals_come_from_one_dump_as_credd_sees_it() {
        let (_dir, program) = fake(
            r#"test "$1 $2 $3" = "-subsystem CREDD -dump" || exit 1
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
        let knobs = web_knobs(&program);
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
    fn the_environment_is_not_passed_on() {
        let (_dir, program) = fake(r#"test -z "$HOME$USER$CARGO_MANIFEST_DIR" && echo /clean"#);
        assert_eq!(ask_program(&program).log, Some("/clean".into()));
    }
}
