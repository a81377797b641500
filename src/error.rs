//! Error kinds with stable labels, their classes, and exit codes. Logs, metrics, status and tests share the labels.
//! A [`Report`] is how a program tells its error: once, at the edge.

use std::{fmt, io::Write, process::ExitCode};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// What to do about an error (DESIGN: rule 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Retry soon, with backoff: the world is at fault.
    Transient,
    /// Retry slowly: only time or somebody else can change it, and the credential may recover.
    Slow,
    /// The issuer refuses this refresh token: confirm once, then park until the `.top` changes.
    Refused,
    /// Our own fault: the provider is parked and probed rarely.
    Ours,
    /// The `.top` itself is unusable: wait until it changes.
    Input,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $label:literal, $class:ident;)*) => {
        /// Every way in which a renewal fails.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            /// All kinds.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];
            /// The stable label.
            #[must_use]
            pub fn label(self) -> &'static str { match self { $(Kind::$name => $label,)* } }
            /// What to do about it.
            #[must_use]
            pub fn class(self) -> Class { match self { $(Kind::$name => Class::$class,)* } }
        }
    };
}

kinds! {
    /// DNS, TCP or a broken connection.
    Network = "network", Transient;
    /// TLS failed: certificate, name or protocol.
    Tls = "tls", Transient;
    /// No TLS client can be made for the provider: its `ca_file`, or the certificates of this machine.
    TlsSetup = "tls-setup", Ours;
    /// No answer in time.
    Timeout = "timeout", Transient;
    /// HTTP 5xx.
    ServerError = "server-error", Transient;
    /// HTTP 429.
    RateLimited = "rate-limited", Transient;
    /// A redirect, which a token request never follows.
    Redirect = "redirect", Transient;
    /// The answer is larger than we read.
    AnswerTooLarge = "answer-too-large", Transient;
    /// Not JSON, half a JSON, HTML, or a required member is missing.
    BadAnswer = "bad-answer", Transient;
    /// The access token's expiry is in the past or absurd.
    BadExpiry = "bad-expiry", Transient;
    /// The answer comes from another issuer than configured.
    WrongIssuer = "wrong-issuer", Slow;
    /// Granted scope does not cover the requested.
    ScopeShortfall = "scope-shortfall", Slow;
    /// Granted audience does not cover the requested.
    AudienceShortfall = "audience-shortfall", Slow;
    /// Discovery failed, or names another issuer.
    Discovery = "discovery", Transient;
    /// mytoken: not valid yet, or clocks disagree.
    NotYetValid = "not-yet-valid", Slow;
    /// mytoken: restrictions or capabilities do not allow it.
    Restricted = "restricted", Slow;
    /// mytoken: the provider behind it refuses; the user must approve again.
    ReauthNeeded = "reauth-needed", Slow;
    /// `invalid_grant`, or a mytoken that was revoked or superseded.
    Revoked = "revoked", Refused;
    /// The refresh token has expired.
    Expired = "expired", Refused;
    /// The issuer calls the refresh token malformed.
    Invalid = "invalid", Refused;
    /// `invalid_client`, `unauthorized_client`: our client's credentials.
    ClientRefused = "client-refused", Ours;
    /// `invalid_scope`, `invalid_request`, `invalid_target`, `unsupported_grant_type`: our configuration.
    RequestRefused = "request-refused", Slow;
    /// The courier died with the exchange under way.
    CourierLost = "courier-lost", Transient;
    /// No space or inodes for the answer: nothing was spent.
    NoSpace = "no-space", Transient;
    /// The credential directory did not take the file.
    PublishFailed = "publish-failed", Transient;
    /// A site cannot be reached: name, connection, TLS.
    SiteUnreachable = "site-unreachable", Transient;
    /// A site took the delivery and did not answer in time.
    SiteTimeout = "site-timeout", Transient;
    /// A site took the delivery and has not done it yet: its endpoint is offline, or its queue is long.
    SitePending = "site-pending", Transient;
    /// A site failed in its own way.
    SiteError = "site-error", Transient;
    /// A site refuses our account, key, client or host key.
    SiteAuth = "site-auth", Ours;
    /// A site does not allow this delivery: path, function, namespace, user.
    SiteDenied = "site-denied", Slow;
    /// No space, quota or inodes at a site.
    SiteFull = "site-full", Transient;
    /// The far end cannot open what we sealed: wrong key, none, or one open to others.
    SiteKey = "site-key", Slow;
    /// The far end calls the delivery too old or from the future: it was late, or clocks disagree.
    SiteStale = "site-stale", Slow;
    /// The site says that it has it, and cannot show it.
    SiteUnconfirmed = "site-unconfirmed", Transient;
    /// The site has something newer than we ever made.
    SiteNewer = "site-newer", Slow;
    /// No file name can be made for this credential, or its token does not fit.
    SiteName = "site-name", Slow;
    /// The process that replicates ended with the delivery under way.
    ReplicatorLost = "replicator-lost", Transient;
    /// The `.top` cannot be read.
    TopUnreadable = "top-unreadable", Input;
    /// Larger than 256 KiB.
    TopTooLarge = "top-too-large", Input;
    /// Not UTF-8.
    TopNotUtf8 = "top-not-utf8", Input;
    /// Nothing in it.
    TopEmpty = "top-empty", Input;
    /// A symbolic link, a hard link, or not a regular file.
    TopNotRegular = "top-not-regular", Input;
    /// Owned by somebody who may not write there, or open to others.
    TopWrongOwner = "top-wrong-owner", Input;
    /// Readable, but no refresh token in any known shape.
    TopNoToken = "top-no-token", Input;
    /// A user's directory that is a link, somebody else's, or open to others.
    DirectoryUnfit = "directory-unfit", Input;
    /// A user or credential with a name that HTCondor does not have.
    NameRefused = "name-refused", Input;
    /// Fernet text without a key that opens it.
    TopSealed = "top-sealed", Input;
    /// A token of another server than the configured one.
    TopElsewhere = "top-elsewhere", Input;
    /// Its service is for the accounts that the configuration names, and this is none of them.
    AccountNotNamed = "account-not-named", Input;
    /// The `.meta` beside it is of another client or token endpoint than the configured one.
    MetaMismatch = "meta-mismatch", Input;
}

impl Kind {
    /// The kind of a label.
    #[must_use]
    pub fn of_label(label: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.label() == label)
    }

    /// Of a stored credential: whether it may be over without another `.top`, as owners, modes and links are.
    #[must_use]
    pub fn passes(self) -> bool {
        matches!(
            self,
            Self::TopUnreadable | Self::TopNotRegular | Self::TopWrongOwner | Self::DirectoryUnfit | Self::MetaMismatch
        )
    }
}

/// As its label, in frames and in JSON.
impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.label())
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let label = String::deserialize(from)?;
        Self::of_label(&label).ok_or_else(|| D::Error::custom(format!("{label:?} is no kind of error")))
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

/// What is wrong, what to do about it, and the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    what: String,
    details: Vec<String>,
    advice: Option<String>,
    code: u8,
}

impl Report {
    /// What is wrong, and the exit code of [`exit`].
    pub fn new(what: impl Into<String>, code: u8) -> Self {
        Self { what: what.into(), details: Vec::new(), advice: None, code }
    }

    /// An error with the chain of its causes.
    #[must_use]
    pub fn of(error: &dyn std::error::Error, code: u8) -> Self {
        let mut what = error.to_string();
        let mut cause = error.source();
        while let Some(e) = cause {
            let text = e.to_string();
            // Many errors quote their cause already.
            if !what.contains(&text) {
                what = format!("{what}: {text}");
            }
            cause = e.source();
        }
        Self::new(what, code)
    }

    /// One line for each thing that is wrong.
    #[must_use]
    pub fn with_details(mut self, details: impl IntoIterator<Item = String>) -> Self {
        self.details.extend(details);
        self
    }

    /// What to do.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// The exit code.
    #[must_use]
    pub fn code(&self) -> u8 {
        self.code
    }

    /// Another exit code (99 under `condor_master`).
    #[must_use]
    pub fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// The same in one line, for a log.
    #[must_use]
    pub fn line(&self) -> String {
        let advice = self.advice.iter().map(|advice| format!("; what to do: {advice}"));
        std::iter::once(self.message()).chain(advice).collect()
    }

    /// What is wrong in one line, without what to do.
    #[must_use]
    pub fn message(&self) -> String {
        let details = self.details.iter().map(|detail| format!("; {detail}"));
        std::iter::once(self.what.clone()).chain(details).collect()
    }

    /// What to do, if that is known.
    #[must_use]
    pub fn advice(&self) -> Option<&str> {
        self.advice.as_deref()
    }

    /// Print to standard error, `program: what`, and turn into the exit code.
    #[must_use]
    pub fn print(&self, program: &str) -> ExitCode {
        // Nobody is left to tell if standard error is closed.
        write!(std::io::stderr().lock(), "{program}: {self}").ok();
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        for detail in &self.details {
            writeln!(f, "  {detail}")?;
        }
        match &self.advice {
            Some(advice) => writeln!(f, "What to do: {advice}"),
            None => Ok(()),
        }
    }
}

/// Exit codes that others script against.
pub mod exit {
    /// Stopped as asked.
    pub const OK: u8 = 0;
    /// Failed.
    pub const FAILED: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// The command line is wrong, of a command of which 2 is an answer.
    pub const MISUSED: u8 = 64;
    /// The log cannot be written.
    pub const LOG: u8 = 44;
    /// There is no such credential.
    pub const MISSING: u8 = 3;
    /// A human is needed, and there is no terminal.
    pub const NEEDS_HUMAN: u8 = 3;
    /// The daemon cannot be reached.
    pub const UNREACHABLE: u8 = 4;
    /// Cancelled by the user.
    pub const CANCELLED: u8 = 130;
    /// Bad configuration.
    pub const CONFIG: u8 = 78;
    /// Bad configuration, under `condor_master`: do not restart in a loop.
    pub const NO_RESTART: u8 = 99;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_report_tells_the_chain_of_causes_once_and_what_to_do() {
        let report = Report::of(&Outer(std::io::Error::other("the inner")), exit::FAILED).advise("do it");
        assert_eq!(report.to_string(), "the outer: the inner\nWhat to do: do it\n");
        assert_eq!(report.code(), 1);
        let report = report.with_details(["one".into(), "two".into()]);
        assert_eq!(report.line(), "the outer: the inner; one; two; what to do: do it");
    }
}
