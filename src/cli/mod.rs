//! Command lines, and nothing else: help comes from here.
//!
//! The file is long, for that is what people read: every option of the three programs, with its help, in one place.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::config::input::parse_duration;

const CREDMON_EXIT: &str = "\
Exit status: 0 stopped as asked; 1 failed (a second instance, an unsafe directory, with --once a renewal); 2 wrong \
arguments; 44 the log cannot be written; 78 bad configuration, or 99 for the same under condor_master, which then does \
not restart it in a loop.

Signals: HUP looks at every credential, reopens the log and reads the configuration again; TERM, INT and QUIT stop \
within two seconds, a second one at once.";

const STORER_EXIT: &str = "\
Set SEC_CREDENTIAL_STORER to this program in HTCondor's configuration. A valid credential costs nothing: without a \
terminal not even a word. Otherwise the terminal shows a URL where the credential is approved.

Environment: EVERCRED_CONFIG names another configuration file; EVERCRED_PLAIN=1 asks for lines without drawing; \
NO_COLOR and TERM=dumb are respected.

Exit status: 0 a usable credential is in place for every request; 1 it is not, and one line says why; 3 somebody must \
approve, and there is no terminal; 78 bad configuration; 130 cancelled.";

const LOGIN_EXIT: &str = "\
Environment: EVERCRED_CONFIG names another configuration file; EVERCRED_PLAIN=1 asks for lines without drawing; \
NO_COLOR and TERM=dumb are respected.

Exit status: 0 a usable credential is in place; 1 it is not, and one line says why; 3 somebody must approve, and there \
is no terminal; 78 bad configuration; 130 cancelled.";

const UPLOAD_EXIT: &str = "\
The token must be of the server that is configured for the service, alive, and without rotation. A mytoken server is \
asked once about a new token, before it is stored; the same token again costs next to nothing. A credential that is not \
known to be bad is replaced only by one that is known to end later, or when it ends soon; where nobody can tell how it \
stands and its access tokens have stopped coming, also by one of which its server says that it lives. What comes after \
the first line of input is not read.

Installed as /usr/bin/reana_upload_mytoken, too. REANA calls /usr/local/bin/reana_upload_mytoken, where packages put \
nothing: ln -s /usr/bin/reana_upload_mytoken /usr/local/bin/

Exit status: 0 a usable credential is in place, this token or a better one, and then one line says so; 1 there is none, \
or the token is dead, or its server cannot be asked: nothing was stored, and one line says why; 78 bad configuration.";

const IMPORT_EXIT: &str = "\
Without --apply it is a dry run: it tells what it would take, and changes nothing.

Each credential is stored through credd as its user; one that the user has here already stays. Nothing is deleted.

Exit status: 0 told, or taken; 1 a file could not be read or stored, and the report says which; 78 bad configuration.";

const IMPORT_STOCK_EXIT: &str = "\
Without --write it is a dry run: it tells what becomes of each service and credential, shows what it would write, and \
changes nothing.

Each service with a <SERVICE>_CLIENT_ID in HTCondor's configuration becomes a provider of kind \"htcondor\". A user's \
token is renewed only if it was approved for the client and token endpoint that are configured now. Nothing is deleted, \
and no file is replaced.

Exit status: 0 told, or written; 1 neither, and why.";

const CHECK_EXIT: &str = "Exit status: 0 the configuration is good (a warning says where users could not approve); 78 it is not, and every problem has been told.";

const DOCTOR_EXIT: &str = "\
--json: one object with \"schema\": 1 and \"checks\": area, check (a stable name), verdict (ok, warning, failed, skipped), what, \
advice.

Exit status: 0 nothing failed (there may be warnings); 1 something did. It changes nothing.";

const STATUS_EXIT: &str = "\
On a terminal the table is made as narrow as it can be; in a pipe it has every column and no colours.

Environment: NO_COLOR and TERM=dumb are respected.

--json: one object with \"schema\": 1; members are added, never renamed, and times are RFC 3339. With --watch it is told \
anew every 2 seconds, until it is interrupted or the daemon is gone.

Exit status: 0 shown; 2 wrong arguments; 3 there is no credential of that name; 4 the daemon cannot be \
reached, or has not looked at everything yet.";

const LIST_EXIT: &str = "\
--json: as evercred status --json.

Exit status: 0 listed, also if there is none; 2 wrong arguments; 4 the daemon cannot be reached.";

const EXPLAIN_EXIT: &str = "Exit status: 0 explained; 1 nothing is known about these words.";

const NEEDS_RENEWAL_EXIT: &str = "Exit status: 0 good; 1 soon: the refresh token ends within --min; 2 dead: it ended, \
the issuer refuses it, or it cannot be used; 3 missing: there is no such credential; 4 the daemon cannot be reached, \
or has not looked at everything yet; 64 wrong arguments.";

const RENEW_EXIT: &str = "Exit status: 0 renewed; 1 not renewed, and why; 3 there is no credential of that name; 4 the \
daemon cannot be reached, or has not looked at everything yet.";

const REVOKE_EXIT: &str = "The files stay as they are: jobs keep their access token until it ends, and the user must \
approve again for another. It is written to the audit log.

Exit status: 0 the issuer has revoked it; 1 it has not, and why; 4 the daemon cannot be reached, or has not \
looked at everything yet.";

const REPLICATE_EXIT: &str = "Exit status: 0 every site has what it should have; 1 some do not; 3 nothing is \
replicated, or there is no such credential or site; 4 the daemon cannot be reached.";

const RECEIVE_HELP: &str = "\
Standard input: sealed payloads, one a line. Standard output: one JSON object for each, with \"code\": WRITTEN; \
SUPERSEDED (something at least as new is there); DECRYPT, KEY_MODE, NO_KEY (keys); STALE, FUTURE (age and clocks); \
NOT_FOR_US, PATH_NOT_ALLOWED (where to); NO_SPACE, FAILED, NO_ENVELOPE.

With --inbox, payloads are files that a facility's service put there (kind = \"sfapi\"); those that were taken are \
passed over. In a crontab or scrontab: */5 * * * * evercred receive --inbox /path/inbox --directory /path --key-file \
/path/key

In authorized_keys: restrict,command=\"evercred receive --directory /path --key-file /path/key\" ssh-ed25519 ...

Exit status: 0 everything was written or was there already; 1 something was refused.";

/// HTCondor's credential monitor: renews the tokens of all jobs on this access point.
#[derive(Debug, Clone, Parser)]
#[command(name = "condor_credmon_evercred", version, after_long_help = CREDMON_EXIT)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of a command line, not a state machine")]
pub struct Credmon {
    /// Read this file instead of /etc/evercred/evercred.toml and /etc/evercred/conf.d
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The credential directory, instead of the configured one
    #[arg(long, value_name = "DIR")]
    pub cred_dir: Option<PathBuf>,
    /// Renew what is due, then exit
    #[arg(long)]
    pub once: bool,
    /// Stay in the foreground and log to standard error, unless --log says otherwise
    #[arg(long)]
    pub foreground: bool,
    /// Where to log: a file, syslog, journal or stderr
    #[arg(long, value_name = "FILE|syslog|journal|stderr")]
    pub log: Option<String>,
    /// Two refusals this far apart park a credential; the demo and tests have no minute.
    #[arg(long, hide = true, value_name = "DURATION", value_parser = length, default_value = "60s")]
    pub confirm_after: Duration,
    /// Be the network process; the keeper starts it so.
    #[arg(long, hide = true)]
    pub courier: bool,
    /// Be the process that replicates; the keeper starts it so.
    #[arg(long, hide = true)]
    pub replicator: bool,
}

/// What `condor_submit` runs for the user: a usable credential for each service of the submit file.
#[derive(Debug, Clone, Parser)]
#[command(name = "evercred_storer", version, after_long_help = STORER_EXIT)]
pub struct Storer {
    /// One for each credential of the submit file.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "REQUEST",
        help = "SERVICE[&handle=H][&scopes=a,b][&audience=A][&options=O]"
    )]
    pub requests: Vec<String>,
}

/// Keeps every HTCondor job's tokens alive.
#[derive(Debug, Clone, Parser)]
#[command(name = "evercred", version, arg_required_else_help = true)]
pub struct Evercred {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands of `evercred`.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Show how credentials stand: state, time left, what is wrong and what to do
    Status(Status),
    /// Approve a credential for your jobs, as a submit would ask for it
    Login(Login),
    /// Store a token that a portal has: one line on standard input
    Upload(Upload),
    /// Take credentials over from another credential monitor (root)
    #[command(subcommand)]
    Import(Import),
    /// Check the configuration and tell every problem in it
    Check(Check),
    /// Probe the live installation: directory, daemon, HTCondor, tokens, sites, issuers
    Doctor(Doctor),
    /// Renew a credential now, also one that is parked (root)
    Renew(Renew),
    /// Give a credential's refresh token back to its issuer, now (root)
    Revoke(Revoke),
    /// Tell whether a person must approve again, by exit code
    NeedsRenewal(NeedsRenewal),
    /// List credentials, those that end first at the top
    List(List),
    /// Show what remote sites have, or send it to them now
    Replicate(Replicate),
    /// Make a key for sealing what is replicated
    Keygen(Keygen),
    /// Receive sealed tokens: the far end of replication, also as a forced command of ssh
    Receive(Receive),
    /// Explain an error kind or a hold reason, with the next command
    Explain(Explain),
    /// Watch tokens being renewed: needs no root, no HTCondor and no network
    Demo(Demo),
    /// The credential monitor, as `condor_credmon_evercred`.
    #[command(hide = true)]
    Credmon(Credmon),
    /// Man pages, completions and reference pages, for the packages.
    #[command(hide = true)]
    Generate(Generate),
    /// The embedded issuer of demo and tests.
    #[command(hide = true)]
    Issuer(Issuer),
}

/// `evercred status`
#[derive(Debug, Clone, Args)]
#[command(after_long_help = STATUS_EXIT)]
pub struct Status {
    /// One credential (USER/SERVICE), or all of a user; users may leave out USER/
    #[arg(value_name = "USER[/SERVICE]")]
    pub which: Option<String>,
    /// One JSON object, for scripts
    #[arg(long)]
    pub json: bool,
    /// Show it anew every 2 seconds
    #[arg(long)]
    pub watch: bool,
    /// The daemon's status socket, instead of the configured one
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// `evercred login`
#[derive(Debug, Clone, Args)]
#[command(after_long_help = LOGIN_EXIT)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
pub struct Login {
    /// The service, or service and handle as `S_H`
    #[arg(value_name = "SERVICE")]
    pub which: String,
    /// Scopes, as the submit file has them; its commas and blanks count
    #[arg(long, value_name = "SCOPES", value_parser = printable)]
    pub scopes: Option<String>,
    /// Audience, as the submit file has it
    #[arg(long, value_name = "AUDIENCE", value_parser = printable)]
    pub audience: Option<String>,
    /// Make a new credential, even if there is a valid one
    #[arg(long)]
    pub renew: bool,
    /// Plain lines: no drawing, no QR code; for screen readers
    #[arg(long)]
    pub plain: bool,
    /// Open the page in a browser, where one is local and the page's address is no secret
    #[arg(long, conflicts_with = "json")]
    pub browser: bool,
    /// One JSON object a line, for portals; needs no terminal
    #[arg(long)]
    pub json: bool,
    /// Use this file instead of /etc/evercred/evercred.toml and /etc/evercred/conf.d
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `evercred upload`
#[derive(Debug, Clone, Args)]
#[command(after_long_help = UPLOAD_EXIT)]
pub struct Upload {
    /// The service, or service and handle as `S_H`; default: the only one of a mytoken server
    #[arg(value_name = "SERVICE")]
    pub which: Option<String>,
    /// Use this file instead of /etc/evercred/evercred.toml and /etc/evercred/conf.d
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `evercred import`
#[derive(Debug, Clone, Subcommand)]
pub enum Import {
    /// From the KIT credential monitor (condor-credmon-mytoken): its Fernet-sealed .top files
    Kit(ImportKit),
    /// From HTCondor's own OAuth credmon: its services become providers, its users' files serve as they are
    Stock(ImportStock),
}

/// `evercred import stock`
#[derive(Debug, Clone, Args)]
#[command(after_long_help = IMPORT_STOCK_EXIT)]
pub struct ImportStock {
    /// Write the providers to this new file, like /etc/evercred/conf.d/stock.toml; without it, only tell
    #[arg(long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// The credential directory, instead of HTCondor's `SEC_CREDENTIAL_DIRECTORY_OAUTH`
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// `evercred import kit`
#[derive(Debug, Clone, Args)]
#[command(after_long_help = IMPORT_EXIT)]
pub struct ImportKit {
    /// Its Fernet key (`SEC_ENCRYPTION_KEY_DIRECTORY`, which is a file)
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Its credential directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/condor/mytoken_credentials")]
    pub dir: PathBuf,
    /// Store what can be taken; without it, only tell
    #[arg(long)]
    pub apply: bool,
    /// Use this file instead of /etc/evercred/evercred.toml and /etc/evercred/conf.d
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `evercred list`
#[derive(Debug, Clone, Args)]
#[command(after_long_help = LIST_EXIT)]
pub struct List {
    /// Only those whose refresh token ends within this time (like 7d), or has ended or was refused
    #[arg(long, value_name = "TIME", value_parser = length)]
    pub expiring: Option<Duration>,
    /// One JSON object, for scripts
    #[arg(long)]
    pub json: bool,
    /// The daemon's status socket, instead of the configured one
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// `evercred needs-renewal`
#[derive(Debug, Clone, Args)]
#[command(after_long_help = NEEDS_RENEWAL_EXIT)]
pub struct NeedsRenewal {
    /// The service of an own credential, or service and handle as `S_H`; as root: USER/SERVICE
    #[arg(value_name = "SERVICE")]
    pub which: String,
    /// How long the refresh token must still live
    #[arg(long, value_name = "TIME", default_value = "2h", value_parser = length)]
    pub min: Duration,
    /// The daemon's status socket, instead of the configured one
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// `evercred renew`
#[derive(Debug, Clone, Args)]
#[command(after_long_help = RENEW_EXIT)]
pub struct Renew {
    /// The credential
    #[arg(value_name = "USER/SERVICE")]
    pub which: String,
    /// How long to wait for it
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = length)]
    pub wait: Duration,
    /// The daemon's status socket, instead of the configured one
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// `evercred revoke`
#[derive(Debug, Clone, Args)]
#[command(after_long_help = REVOKE_EXIT)]
pub struct Revoke {
    /// The credential
    #[arg(value_name = "USER/SERVICE")]
    pub which: String,
    /// The daemon's status socket, instead of the configured one
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// `evercred replicate`
#[derive(Debug, Clone, Args)]
#[command(after_long_help = REPLICATE_EXIT)]
pub struct Replicate {
    /// One credential; all without it
    #[arg(value_name = "USER/SERVICE")]
    pub which: Option<String>,
    /// One site; all without it
    #[arg(long, value_name = "NAME")]
    pub site: Option<String>,
    /// Send it now, also what was confirmed
    #[arg(long)]
    pub now: bool,
    /// How long to wait for the sites
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = length)]
    pub wait: Duration,
    /// The daemon's status socket, instead of the configured one
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// `evercred keygen`
#[derive(Debug, Clone, Args)]
pub struct Keygen {
    /// A new file, which only this user will be able to read
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// `evercred receive`
#[derive(Debug, Clone, Args)]
#[command(after_long_help = RECEIVE_HELP)]
pub struct Receive {
    /// Files may appear below this directory and nowhere else
    #[arg(long, value_name = "DIR")]
    pub directory: PathBuf,
    /// A key, and during a rotation a second one; the first one confirms
    #[arg(long, value_name = "FILE", required = true)]
    pub key_file: Vec<PathBuf>,
    /// Instead of standard input: every NAME.sealed in this directory; what became of it is NAME.receipt
    #[arg(long, value_name = "DIR")]
    pub inbox: Option<PathBuf>,
    /// Accept only what is for the site of this name at the sender
    #[arg(long, value_name = "NAME")]
    pub site: Option<String>,
    /// Accept nothing older, whatever the sender allows
    #[arg(long, value_name = "TIME", default_value = "14d", value_parser = length)]
    pub max_age: Duration,
}

/// `evercred check`
#[derive(Debug, Clone, Args)]
#[command(after_long_help = CHECK_EXIT)]
pub struct Check {
    /// Check this file instead of /etc/evercred/evercred.toml and /etc/evercred/conf.d
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `evercred doctor`
#[derive(Debug, Clone, Args)]
#[command(after_long_help = DOCTOR_EXIT)]
pub struct Doctor {
    /// Use this file instead of /etc/evercred/evercred.toml and /etc/evercred/conf.d
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One JSON object, for scripts
    #[arg(long)]
    pub json: bool,
}

/// `evercred explain`
#[derive(Debug, Clone, Args)]
#[command(after_long_help = EXPLAIN_EXIT)]
pub struct Explain {
    /// A kind, a line of the log, or what HTCondor said
    #[arg(required = true, value_name = "WORDS")]
    pub words: Vec<String>,
}

/// `evercred demo`
#[derive(Debug, Clone, Args)]
pub struct Demo {
    /// How long it runs: seconds, or like 30s or 2m
    #[arg(long = "for", value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub length: Duration,
    /// Plain lines, as in a pipe
    #[arg(long)]
    pub plain: bool,
    /// Approve the request that the tour shows, instead of in a browser
    #[arg(long)]
    pub yes: bool,
}

/// `evercred generate`
#[derive(Debug, Clone, Args)]
pub struct Generate {
    /// The root of the repository
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// `evercred issuer`
#[derive(Debug, Clone, Args)]
pub struct Issuer {
    /// Passed on as they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    pub arguments: Vec<String>,
}

fn length(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write it like 30s, 10m, 2h or 7d".to_owned())
}

fn printable(text: &str) -> Result<String, String> {
    let fit = !text.is_empty() && !text.chars().any(char::is_control);
    fit.then(|| text.to_owned()).ok_or_else(|| "it is empty, or holds control characters".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .map(Duration::from_secs)
        .ok()
        .or_else(|| parse_duration(text))
        .filter(|length| !length.is_zero())
        .ok_or_else(|| "write it as seconds, or like 30s or 2m".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Credmon::command().debug_assert();
        Evercred::command().debug_assert();
    }

    #[test]
    fn help_lists_only_what_users_run() {
        let command = Evercred::command();
        let shown: Vec<&str> =
            command.get_subcommands().filter(|sub| !sub.is_hide_set()).map(clap::Command::get_name).collect();
        assert!(shown.contains(&"check") && shown.contains(&"demo"), "{shown:?}");
        for own in ["issuer", "generate"] {
            assert!(!shown.contains(&own), "{own} is ours alone");
            assert!(command.find_subcommand(own).is_some(), "{own} is there");
        }
        assert!(!Credmon::command().render_long_help().to_string().contains("courier"));
    }

    #[test]
    fn the_issuer_takes_its_arguments_as_they_are() {
        let parsed = Evercred::try_parse_from(["evercred", "issuer", "--listen", "127.0.0.1:0", "--scenario", "f"]);
        let Command::Issuer(issuer) = parsed.unwrap().command else { panic!("issuer") };
        assert_eq!(issuer.arguments, ["--listen", "127.0.0.1:0", "--scenario", "f"]);
    }
}
