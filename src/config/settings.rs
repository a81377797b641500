//! Settings: typed and valid. Nothing downstream checks them again.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::site_settings::Site;
pub use super::{
    accounts::Accounts,
    approval::{Approval, Restrictions},
    ca_file::CaFile,
    tls_files::TlsFiles,
};
use crate::core::{
    id::Handle,
    notice::Policy,
    secret::{ClientSecret, on_wire},
    use_file::UseFormat,
};

/// Where the status socket is, unless `status_socket` says otherwise.
pub const STATUS_SOCKET: &str = "/run/evercred/status.sock";

/// Everything that is configured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `[daemon]`
    pub daemon: Daemon,
    /// `[provider.*]`, in the order of their names.
    pub providers: Vec<Provider>,
    /// `[site.*]`, in the order of their names.
    pub sites: Vec<Site>,
    /// `[storer]`
    pub storer: Storer,
    /// `[notices]`; absent: nobody is told.
    pub notices: Option<Notices>,
}

impl Settings {
    /// What of it the network process is told besides the providers.
    #[must_use]
    pub fn outward(&self) -> Outward {
        Outward {
            metrics_listen: self.daemon.metrics_listen,
            status_page: self.daemon.status_page,
            otlp: self.daemon.otlp.clone(),
            web_approval: self.daemon.web_approval.clone(),
            post: self.notices.as_ref().map(|notices| notices.post.clone()),
        }
    }
}

/// `[storer]`: what `condor_submit` runs for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storer {
    /// `stock_storer`: who gets the services that are not ours.
    pub stock: PathBuf,
    /// `use_wait`: how long a new credential may take until its `.use` is there; default 60 s.
    pub use_wait: Duration,
}

/// `[daemon]`
#[derive(Debug, Clone)]
pub struct Daemon {
    /// `credential_directory`; default `SEC_CREDENTIAL_DIRECTORY_OAUTH`.
    pub credential_directory: PathBuf,
    /// `share_directory`: `pid` and `CREDMON_COMPLETE` there are another credential monitor's; default false.
    pub share_directory: bool,
    /// `courier_user`, who the network process becomes when started as root; default `evercred`.
    pub courier_user: String,
    /// `metrics_listen`; kept for the endpoint.
    pub metrics_listen: Option<SocketAddr>,
    /// `status_page`: the page for admins is served there, too; default false.
    pub status_page: bool,
    /// `status_socket`; default: [`STATUS_SOCKET`] if the credmon runs as root or condor. The control socket is
    /// beside it.
    pub status_socket: Option<PathBuf>,
    /// `replicate_user`, who the process that replicates becomes when started as root; default `evercred-replicate`.
    pub replicate_user: String,
    /// `full_scan`: how often the directory is gone through, whatever the watch says; default 10 min.
    pub full_scan: Duration,
    /// `SEC_CREDENTIAL_REFRESH`: how often a starter asks for fresh credentials; default 300 s.
    pub refresh: Duration,
    /// `log`: a path, `syslog`, `journal` or `stderr`; default: `CREDMON_OAUTH_LOG` / the knob of our daemon's name.
    pub log: Option<String>,
    /// `log_format = "text" | "json"`; default text.
    pub log_format: LogFormat,
    /// `MAX_CREDMON_OAUTH_LOG`, bytes: a log file above it is rotated; default 10 MiB.
    pub log_limit: u64,
    /// `MAX_NUM_CREDMON_OAUTH_LOG`: so many rotated log files stay; default 1 (`.old`).
    pub log_keep: u32,
    /// `otlp`: traces go to this receiver (OTLP over HTTP); absent: no traces.
    pub otlp: Option<String>,
    /// `audit_log`: every decision as a line of JSON is appended to this file; absent: no audit.
    pub audit_log: Option<PathBuf>,
    /// `web_approval_listen` and `web_approval_url`; absent: no page for approvals.
    pub web_approval: Option<WebApproval>,
    /// `state_directory`: what we remember across restarts; default `/var/lib/evercred`.
    pub state_directory: PathBuf,
}

/// What the network process serves and tells besides its exchanges.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outward {
    /// `metrics_listen`
    pub metrics_listen: Option<SocketAddr>,
    /// `status_page`
    pub status_page: bool,
    /// `otlp`
    pub otlp: Option<String>,
    /// The page for approvals.
    pub web_approval: Option<WebApproval>,
    /// Where notices are sent to over the network.
    pub post: Option<Post>,
}

/// `[notices]`
#[derive(Debug, Clone)]
pub struct Notices {
    /// `steps`, longest first, and `after_failures`.
    pub policy: Policy,
    /// `every`: how often it is looked what to tell; default 5 min.
    pub every: Duration,
    /// `jobs`: ask `condor_q` who has jobs; default true.
    pub jobs: bool,
    /// `mail_to`: an address with `{user}` in it.
    pub mail_to: Option<String>,
    /// `mail_map`: a file of lines `user address`, which comes first.
    pub mail_map: Option<PathBuf>,
    /// `admins`: their addresses.
    pub admins: Vec<String>,
    /// `mail_from`
    pub mail_from: Option<String>,
    /// `sendmail`: the program that takes mails.
    pub sendmail: Option<PathBuf>,
    /// What the network process sends.
    pub post: Post,
}

/// How the network process sends notices.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Post {
    /// `smtp` and what belongs to it.
    pub smtp: Option<Smtp>,
    /// `webhook`: every notice is posted there as JSON.
    pub webhook: Option<String>,
    /// Contents of `webhook_token_file`: sent as a bearer token.
    #[serde(with = "on_wire::option")]
    pub webhook_token: Option<ClientSecret>,
    /// Contents of `slack_webhook_file`: a URL that is a secret; admins' notices are posted there as text.
    #[serde(with = "on_wire::option")]
    pub slack: Option<ClientSecret>,
    /// `ca_file`: PEM, in addition to the system's roots.
    pub ca_file: Option<CaFile>,
}

/// A mail server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Smtp {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// How it is encrypted.
    pub encryption: Encryption,
    /// `smtp_user`, with the contents of `smtp_password_file`.
    pub user: Option<String>,
    /// The password.
    #[serde(with = "on_wire::option")]
    pub password: Option<ClientSecret>,
}

/// How mail is encrypted on its way to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encryption {
    /// `smtp://` to this host: not at all.
    None,
    /// `smtp://`: STARTTLS, or not at all sent.
    StartTls,
    /// `smtps://`: from the start.
    Tls,
}

/// What a line of the log looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// Where the page for approvals is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebApproval {
    /// `web_approval_listen`
    pub listen: WebListen,
    /// `web_approval_url`, how browsers reach it; default `CREDMON_WEB_PREFIX`. Without a slash at its end.
    pub url: String,
    /// `web_approval_tls_cert` and `web_approval_tls_key`; absent: plain HTTP, for the web server of this host.
    pub tls: Option<TlsFiles>,
}

/// `web_approval_listen`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum WebListen {
    /// An address and port; without TLS one of loopback.
    Address(SocketAddr),
    /// `unix:PATH`
    Unix(PathBuf),
}

impl fmt::Display for WebListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// `[provider.NAME]`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Provider {
    /// NAME.
    pub name: String,
    /// `services`; default: the service called NAME.
    pub services: Vec<String>,
    /// `kind` and what belongs to it.
    pub kind: ProviderKind,
    /// `issuer`: the OAuth2/OIDC issuer; for mytoken the provider behind the server.
    pub issuer: Option<String>,
    /// `scopes` to ask for, unless the `.top` says otherwise.
    pub scopes: Vec<String>,
    /// `audience` to ask for, unless the `.top` says otherwise.
    pub audience: Vec<String>,
    /// `shortfall = "refuse" | "flag"`: what happens if scope or audience fall short; default refuse.
    pub shortfall: Shortfall,
    /// `default_lifetime` of access tokens without any expiry; default 1 h.
    pub default_lifetime: Duration,
    /// `use_format = "json" | "bare"`; default json.
    pub use_format: UseFormat,
    /// `max_in_flight`; default 64.
    pub max_in_flight: u32,
    /// `max_per_second`; default 50.
    pub max_per_second: u32,
    /// `timeout` of one exchange; default 20 s.
    pub timeout: Duration,
    /// `revoke_at_end`: the refresh token of a credential that left the directory is revoked; default false.
    pub revoke_at_end: bool,
    /// `revoke_after` it left; default 10 min.
    pub revoke_after: Duration,
    /// `ca_file`: PEM, in addition to the system's roots.
    pub ca_file: Option<CaFile>,
    /// `fernet_key_file`: opens `.top` files that are Fernet text. Not sent to the courier.
    #[serde(skip)]
    pub fernet_key_file: Option<PathBuf>,
    /// How its users approve. Not sent to the courier.
    #[serde(skip)]
    pub approval: Approval,
}

impl Provider {
    /// Who is asked, as configured: the mytoken server, or the issuer; empty if neither is known.
    #[must_use]
    pub fn asked(&self) -> &str {
        match &self.kind {
            ProviderKind::Mytoken { server } => server,
            ProviderKind::OAuth2(oauth2) => {
                self.issuer.as_deref().or(oauth2.token_endpoint.as_deref()).unwrap_or_default()
            }
        }
    }

    /// Our client's secret, where it has one and it was read.
    #[must_use]
    pub fn client_secret(&self) -> Option<&ClientSecret> {
        match &self.kind {
            ProviderKind::Mytoken { .. } => None,
            ProviderKind::OAuth2(oauth2) => oauth2.client_secret.as_ref(),
        }
    }

    /// `kind = "client-credentials"`: for whom its tokens are. Of no other kind.
    #[must_use]
    pub fn accounts(&self) -> Option<&Accounts> {
        match &self.kind {
            ProviderKind::Mytoken { .. } => None,
            ProviderKind::OAuth2(oauth2) => oauth2.accounts.as_ref(),
        }
    }

    /// The audience that is asked for, for a credential whose `.top` does not say.
    #[must_use]
    pub fn audience_of(&self, handle: Option<&Handle>) -> &[String] {
        let own = self.accounts().zip(handle).and_then(|(accounts, handle)| accounts.audiences.get(handle.as_str()));
        own.map_or(&self.audience, |own| own)
    }
}

/// Where tokens come from and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ProviderKind {
    /// `oauth2`: RFC 6749 refresh grant.
    OAuth2(OAuth2),
    /// `mytoken`: a mytoken server.
    Mytoken {
        /// `server`: the instance's URL.
        server: String,
    },
}

impl ProviderKind {
    /// As `kind` is written.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::OAuth2(oauth2) if oauth2.from_htcondor => "htcondor",
            Self::OAuth2(oauth2) if oauth2.login_client.is_some() => "token-exchange",
            Self::OAuth2(oauth2) if oauth2.accounts.is_some() => "client-credentials",
            Self::OAuth2(_) => "oauth2",
            Self::Mytoken { .. } => "mytoken",
        }
    }
}

/// `kind = "oauth2"`, and what else speaks OAuth2.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OAuth2 {
    /// `token_endpoint`; absent: discovery at `issuer`.
    pub token_endpoint: Option<String>,
    /// `revocation_endpoint`; absent: by discovery.
    pub revocation_endpoint: Option<String>,
    /// `client_id`
    pub client_id: String,
    /// There is a `client_secret_file`, whether it was read or not.
    pub confidential: bool,
    /// Contents of `client_secret_file`, without the newline; absent: a public client, or not read.
    #[serde(with = "on_wire::option")]
    pub client_secret: Option<ClientSecret>,
    /// `client_auth = "header" | "body"`; default header.
    pub client_auth: ClientAuth,
    /// `audience_style = "audience" | "repeated" | "resource"`; default audience (blank-separated).
    pub audience_style: AudienceStyle,
    /// `kind = "htcondor"`: the client is in HTCondor's knobs. Renewals ask for neither scope nor audience, as the stock
    /// credmon never did: what was approved is renewed.
    pub from_htcondor: bool,
    /// `kind = "token-exchange"`: the public client as which users approve (`login_client_id`). Its access token is
    /// exchanged (RFC 8693) for a refresh token of our own client.
    pub login_client: Option<String>,
    /// `kind = "client-credentials"`: the client asks for itself, and for whom.
    pub accounts: Option<Accounts>,
    /// `authorization_endpoint`; absent: discovery at `issuer`.
    pub authorization_endpoint: Option<String>,
    /// `return_path`: where the issuer sends the browser back to, below the page's URL; absent: `/return/SERVICE`.
    pub return_path: Option<Box<str>>,
    /// `user_claim`: this claim of the ID token must be the user's name on the access point, or what was approved on the
    /// page is not stored; absent: whoever has the link may approve.
    pub user_claim: Option<Box<str>>,
}

impl OAuth2 {
    /// Where the issuer sends the browser back to, below the page's URL.
    #[must_use]
    pub fn return_path_of(&self, service: &str) -> String {
        self.return_path.as_deref().map_or_else(|| format!("/return/{service}"), str::to_owned)
    }
}

/// How the client shows its secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientAuth {
    /// HTTP Basic.
    Header,
    /// `client_id` and `client_secret` in the form.
    Body,
}

/// How an audience is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AudienceStyle {
    /// `audience=a b`
    Audience,
    /// `audience=a&audience=b`
    Repeated,
    /// RFC 8707: `resource=a&resource=b`
    Resource,
}

/// What to do when less is granted than was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shortfall {
    /// Refuse the token.
    Refuse,
    /// Publish it, and say so.
    Flag,
}
