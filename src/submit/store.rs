//! credd, through `condor_store_cred`: what is stored, and storing. Its standard output is parsed, because "stored"
//! and "usable" have the same exit code (HTCondor contract, fact 10).
//!
//! The program is found at fixed places (else in `PATH`), gets the secret on its standard input and an environment of
//! what HTCondor's authentication reads and nothing else. Interrupted between two calls, nothing is half stored: credd
//! replaces a `.top` by a rename.

use std::{
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::unistd::User;
use thiserror::Error;
use zeroize::Zeroizing;

use super::{
    child::{self, Ended},
    request::Request,
};

/// Where it may be.
const PLACES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
/// HTCondor's own timeout for a credd that does not answer is 20 s.
const PATIENCE: Duration = Duration::from_secs(40);
/// What HTCondor's configuration and authentication methods read; with it goes everything that begins with `_CONDOR_`.
const ENVIRONMENT: [&str; 14] = [
    "CONDOR_CONFIG",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "TZ",
    "KRB5CCNAME",
    "KRB5_CONFIG",
    "X509_USER_PROXY",
    "X509_CERT_DIR",
    "BEARER_TOKEN",
    "BEARER_TOKEN_FILE",
    "XDG_RUNTIME_DIR",
    "TMPDIR",
];

/// What credd has of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Nothing.
    Missing,
    /// Something for other scopes or another audience.
    Mismatch,
    /// A `.top`, and no `.use` yet.
    Waiting {
        /// Seconds since 1970 of its last change.
        top: i64,
    },
    /// Both; seconds since 1970 of their last change.
    Ready {
        /// Of the `.top`.
        top: i64,
        /// Of the `.use`.
        published: i64,
    },
    /// A `.top` that is no JSON, like a bare token or Fernet text, into which credd cannot look.
    NotJson {
        /// Seconds since 1970 of its last change.
        top: i64,
        /// Of the `.use`, if there is one.
        published: Option<i64>,
    },
}

impl Stored {
    /// Seconds since 1970 of the `.top`'s last change, if there is one for this request.
    #[must_use]
    pub fn top(self) -> Option<i64> {
        match self {
            Self::Missing | Self::Mismatch => None,
            Self::Waiting { top } | Self::Ready { top, .. } | Self::NotJson { top, .. } => Some(top),
        }
    }

    /// Seconds since 1970 of the `.use`'s last change, if there is one.
    #[must_use]
    pub fn published(self) -> Option<i64> {
        match self {
            Self::Missing | Self::Mismatch | Self::Waiting { .. } => None,
            Self::Ready { published, .. } => Some(published),
            Self::NotJson { published, .. } => published,
        }
    }

    /// Whether there is a `.use` of this `.top`; an older one is of the `.top` before.
    #[must_use]
    pub fn is_usable(self) -> bool {
        self.published().is_some_and(|published| self.top().is_some_and(|top| published >= top))
    }
}

/// What went wrong between us and credd.
#[derive(Debug, Error)]
pub enum StoreError {
    /// No HTCondor here.
    #[error("condor_store_cred is not in {}, nor in PATH: is HTCondor installed?", PLACES.join(", "))]
    NoProgram,
    /// It could not be started or read.
    #[error("{} could not be run", .program.display())]
    Run {
        /// Which program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It did not end.
    #[error("condor_store_cred did not end within {} s: does credd answer?", PATIENCE.as_secs())]
    Slow,
    /// It said no.
    #[error("HTCondor does not {what}: {said}")]
    Refused {
        /// `answer about SERVICE` or `store SERVICE`.
        what: String,
        /// Its own words.
        said: String,
    },
}

/// The way to credd.
#[derive(Debug, Clone)]
pub struct Credd {
    program: PathBuf,
    environment: Vec<(OsString, OsString)>,
    /// What follows by HTCondor's conventions for storers: `-u` with `CONDOR_VAULT_STORER_USER`, and the words of
    /// `SEC_CREDENTIAL_STORECRED_OPTS`.
    further: Vec<OsString>,
    /// Run as somebody else, as only root can.
    identity: Option<(u32, u32)>,
}

impl Credd {
    /// Find the program.
    ///
    /// # Errors
    /// [`StoreError::NoProgram`].
    pub fn find() -> Result<Self, StoreError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let further = std::env::split_paths(&path).filter(|place| place.is_absolute());
        let program = PLACES
            .iter()
            .map(PathBuf::from)
            .chain(further)
            .map(|place| place.join("condor_store_cred"))
            .find(|program| program.is_file())
            .ok_or(StoreError::NoProgram)?;
        Ok(Self::at(program))
    }

    /// With this program.
    #[must_use]
    pub fn at(program: impl Into<PathBuf>) -> Self {
        let kept = |name: &OsString| {
            ENVIRONMENT.iter().any(|known| name == known)
                || name.as_encoded_bytes().starts_with(b"LC_")
                || is_knob(name)
        };
        let mut environment: Vec<_> = std::env::vars_os().filter(|(name, _)| kept(name)).collect();
        environment.push(("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into()));
        let further = further(|name| std::env::var_os(name));
        Self { program: program.into(), environment, further, identity: None }
    }

    /// The way of another user, for root: credd sees that user.
    #[must_use]
    pub fn for_user(&self, user: &User) -> Self {
        // Whatever root is known by to credd stays here: it would make the child root there, or show another user root's.
        let common = |name: &OsString| {
            ["LANG", "TZ", "PATH", "CONDOR_CONFIG"].iter().any(|known| name == known)
                || name.as_encoded_bytes().starts_with(b"LC_")
                || is_knob(name)
        };
        let mut environment: Vec<_> = self.environment.iter().filter(|(name, _)| common(name)).cloned().collect();
        environment.push(("HOME".into(), user.dir.clone().into()));
        environment.extend(["USER", "LOGNAME"].map(|name| (name.into(), user.name.clone().into())));
        let identity = Some((user.uid.as_raw(), user.gid.as_raw()));
        Self { program: self.program.clone(), environment, further: Vec::new(), identity }
    }

    /// Which program it is.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// `request`: none: all of the user's.
    fn run(
        &self,
        verb: &str,
        request: Option<&Request>,
        secret: Option<&Zeroizing<String>>,
    ) -> Result<Ended, StoreError> {
        let mut command = Command::new(&self.program);
        command.arg(verb);
        if let Some(request) = request {
            command.arg("-s").arg(request.name());
            for (option, value) in [("-S", &request.scopes), ("-A", &request.audience)] {
                if let Some(value) = value {
                    command.arg(option).arg(value);
                }
            }
        }
        command.args(&self.further);
        if secret.is_some() {
            command.args(["-i", "-"]);
        }
        if secret.is_some() {
            // A Ctrl-C at the terminal must not end it halfway: nobody would know whether it was stored.
            command.process_group(0);
        }
        if let Some((uid, gid)) = self.identity {
            command.uid(uid).gid(gid).current_dir("/");
        }
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        // The end of input follows the secret at once: on an open channel it may ask a question (contract, 3.1).
        let input = secret.map_or(&[][..], |secret| secret.as_bytes());
        child::run(&mut command, input, PATIENCE)
            .map_err(|source| StoreError::Run { program: self.program.clone(), source })?
            .ok_or(StoreError::Slow)
    }

    /// What is stored. Asking also takes the sweep's mark away.
    ///
    /// # Errors
    /// [`StoreError`]: no answer, or one that says nothing about the credential.
    pub fn query(&self, request: &Request) -> Result<Stored, StoreError> {
        let name = request.name();
        let ended = self.run("query-oauth", Some(request), None)?;
        let told = match stored(&ended, &name) {
            None if ended.says(NOT_JSON) => {
                // What holds no scopes of its own is for others than these, as credd has it of what it can read.
                let asked = request.scopes.is_some() || request.audience.is_some();
                let all = || Ok::<_, StoreError>(listed(&self.run("query-oauth", None, None)?, &name));
                if asked { Some(Stored::Mismatch) } else { all()? }
            }
            told => told,
        };
        told.ok_or_else(|| StoreError::Refused { what: format!("answer about {name}"), said: said(&ended) })
    }

    /// When the `.use` that is there was published, whatever it is for; seconds since 1970.
    ///
    /// # Errors
    /// As [`Credd::query`].
    pub fn published(&self, request: &Request) -> Result<Option<i64>, StoreError> {
        match self.query(request)? {
            // No more is said of what is for other scopes, except in the list of all.
            Stored::Mismatch => {
                let all = self.run("query-oauth", None, None)?;
                Ok(listed(&all, &request.name()).and_then(Stored::published))
            }
            stored => Ok(stored.published()),
        }
    }

    /// Store a `.top`, one JSON object.
    ///
    /// # Errors
    /// [`StoreError`]: it was not stored.
    pub fn store(&self, request: &Request, top: &Zeroizing<String>) -> Result<(), StoreError> {
        let ended = self.run("add-oauth", Some(request), Some(top))?;
        if ended.code == Some(0) {
            return Ok(());
        }
        Err(StoreError::Refused { what: format!("store {}", request.name()), said: said(&ended) })
    }
}

/// `_CONDOR_KNOB`
fn is_knob(name: &OsStr) -> bool {
    name.as_encoded_bytes().get(..8).is_some_and(|start| start.eq_ignore_ascii_case(b"_CONDOR_"))
}

/// Arguments that the user's environment adds to both verbs, as HTCondor's own storer does.
fn further(environment: impl Fn(&str) -> Option<OsString>) -> Vec<OsString> {
    let user = environment("CONDOR_VAULT_STORER_USER").filter(|user| !user.is_empty());
    let mut further: Vec<OsString> = user.into_iter().flat_map(|user| ["-u".into(), user]).collect();
    let options = environment("SEC_CREDENTIAL_STORECRED_OPTS").unwrap_or_default();
    further.extend(options.to_string_lossy().split_whitespace().map(OsString::from));
    further
}

/// credd's answer about a `.top` that it cannot look into (contract §2.5).
const NOT_JSON: &str = "Failure parsing credential as JSON";

/// What the list of all that the user has says of one whose `.top` is no JSON: it reads none of them.
fn listed(ended: &Ended, name: &str) -> Option<Stored> {
    let time = |end: &str| time_of(&ended.stdout, &format!("{name}.{end}"));
    Some(Stored::NotJson { top: time("top")?, published: time("use") })
}

/// What an answer to `query-oauth` says (contract §3.4, 5); `None`: nothing about the credential.
fn stored(ended: &Ended, name: &str) -> Option<Stored> {
    let text = &ended.stdout;
    match ended.code? {
        2 => Some(Stored::Mismatch),
        0 => match (time_of(text, &format!("Top{name}Time")), time_of(text, name)) {
            (top, Some(published)) => Some(Stored::Ready { top: top.unwrap_or(published), published }),
            (Some(top), None) => Some(Stored::Waiting { top }),
            (None, None) => None,
        },
        // "not found" has the exit code of every error.
        _ => text.contains("No credential is stored").then_some(Stored::Missing),
    }
}

/// `NAME = 1795558760` among old-ClassAd lines; unusual names are quoted.
fn time_of(text: &str, name: &str) -> Option<i64> {
    text.lines()
        .filter_map(|line| line.rsplit_once('='))
        .find_map(|(key, value)| (key.trim().trim_matches('\'') == name).then(|| value.trim().parse().ok()).flatten())
}

/// Its own words, on one line.
fn said(ended: &Ended) -> String {
    let noise = |line: &&str| {
        let line = line.trim();
        !(line.is_empty() || line.starts_with("Account:") || line.starts_with("CredType:"))
    };
    let words: Vec<&str> =
        ended.stderr.lines().chain(ended.stdout.lines()).filter(noise).map(str::trim).take(3).collect();
    let clean: String = words.join("; ").chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
    match (clean.is_empty(), ended.code) {
        (false, _) => clean,
        (true, Some(code)) => format!("exit status {code} without a word"),
        (true, None) => "ended by a signal".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: i32, stdout: &str) -> Ended {
        Ended { code: Some(code), stdout: stdout.to_owned(), stderr: String::new() }
    }

    /// As HTCondor 25.14.1 answers.
    const READY: &str = "Account: <current> (alice)\nCredType: oauth\n\nA credential was stored and is valid.\n\n\
        Credential info:\nTophelm_h-xTime = 1795558760\nfully_qualified_user = \"alice@lab\"\nhelm_h-x = 1795558761\n\n";

    #[test]
    fn every_answer_of_credd_is_told_apart() {
        let waiting = READY.replace("helm_h-x = 1795558761\n", "");
        let none = "Account: <current> (alice)\nCredType: oauth\n\nNo credential is stored.\n";
        assert_eq!(
            stored(&answer(0, READY), "helm_h-x"),
            Some(Stored::Ready { top: 1_795_558_760, published: 1_795_558_761 })
        );
        assert_eq!(stored(&answer(0, &waiting), "helm_h-x"), Some(Stored::Waiting { top: 1_795_558_760 }));
        assert_eq!(stored(&answer(1, none), "helm"), Some(Stored::Missing));
        assert_eq!(stored(&answer(2, "Account: x\n"), "helm"), Some(Stored::Mismatch));
        let quoted = READY.replace("helm_h-x =", "'helm_h-x' =").replace("Tophelm_h-xTime", "'Tophelm_h-xTime'");
        assert!(matches!(stored(&answer(0, &quoted), "helm_h-x"), Some(Stored::Ready { .. })));
    }

    #[test]
    fn a_top_that_is_no_json_is_found_in_the_list_of_all() {
        let list = |text: &str| listed(&answer(0, &format!("Credential info:\n{text}")), "helm");
        let both = "'helm_x.top' = 7\n'helm.top' = 1795558760\n'helm.use' = 1795558761\n";
        assert_eq!(list(both), Some(Stored::NotJson { top: 1_795_558_760, published: Some(1_795_558_761) }));
        assert!(list(both).is_some_and(Stored::is_usable));
        let alone = list("helm.top = 1795558760\n");
        assert_eq!(alone, Some(Stored::NotJson { top: 1_795_558_760, published: None }));
        assert!(!alone.is_some_and(Stored::is_usable));
        assert_eq!(list("helm_x.top = 7\nhelm.use = 7\n"), None);
    }

    #[test]
    fn a_store_is_in_a_process_group_of_its_own_and_a_question_is_not() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("condor_store_cred");
        std::fs::write(&script, "#!/bin/sh\ncut -d' ' -f1,5 /proc/$$/stat >&2\nexit 1\n").unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        // A fork of another test may hold the file open for writing for a moment.
        while Command::new(&script).stderr(std::process::Stdio::null()).status().is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (credd, request) = (Credd::at(script), Request::parse("s").unwrap());
        let process_and_group = |outcome: StoreError| {
            let StoreError::Refused { said, .. } = outcome else { panic!("{outcome}") };
            let (process, group) = said.split_once(' ').unwrap();
            (process.to_owned(), group.to_owned())
        };
        let (process, group) = process_and_group(credd.store(&request, &Zeroizing::new("{}".to_owned())).unwrap_err());
        assert_eq!(process, group);
        let (_, group) = process_and_group(credd.query(&request).unwrap_err());
        assert_eq!(group, nix::unistd::getpgrp().to_string());
    }

    #[test]
    fn another_user_gets_nothing_that_root_is_known_by() {
        let mut credd = Credd::at("/usr/bin/condor_store_cred");
        credd.environment = ENVIRONMENT
            .iter()
            .chain(&["LC_ALL", "PATH", "_CONDOR_CREDD_HOST", "_condor_x"])
            .map(|name| (OsString::from(name), OsString::from("of root")))
            .collect();
        let me = User::from_uid(nix::unistd::geteuid()).unwrap().unwrap();
        let mut names: Vec<_> = credd.for_user(&me).environment.into_iter().collect();
        names.sort();
        let inherited: Vec<_> = names.iter().filter(|(_, value)| value == "of root").map(|(name, _)| name).collect();
        assert_eq!(inherited, ["CONDOR_CONFIG", "LANG", "LC_ALL", "PATH", "TZ", "_CONDOR_CREDD_HOST", "_condor_x"]);
        let own: Vec<_> = names.iter().filter(|(_, value)| value != "of root").map(|(name, _)| name).collect();
        assert_eq!(own, ["HOME", "LOGNAME", "USER"]);
    }

    #[test]
    fn htcondors_conventions_for_storers_are_kept() {
        let with = |set: &[(&str, &str)]| {
            further(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value)))
        };
        assert_eq!(with(&[]), Vec::<OsString>::new());
        assert_eq!(with(&[("CONDOR_VAULT_STORER_USER", ""), ("SEC_CREDENTIAL_STORECRED_OPTS", " ")]), with(&[]));
        let both = with(&[("CONDOR_VAULT_STORER_USER", "bob@lab"), ("SEC_CREDENTIAL_STORECRED_OPTS", "-d  -S x")]);
        assert_eq!(both, ["-u", "bob@lab", "-d", "-S", "x"]);
    }

    #[test]
    fn an_error_is_never_taken_for_an_absent_credential() {
        for said in ["", "CRED: communication failure!\n", "Operation failed.\n  Make sure your ALLOW_WRITE setting"] {
            assert_eq!(stored(&answer(1, said), "helm"), None, "{said}");
        }
        assert_eq!(stored(&answer(0, "Account: x\n"), "helm"), None);
        assert_eq!(super::said(&answer(3, "Account: x\n\n")), "exit status 3 without a word");
    }
}
