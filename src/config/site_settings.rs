//! Settings of sites: typed and valid. Secrets in them travel to the replicator in a frame and nowhere else.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::ca_file::CaFile;
use crate::core::{
    id::{CredentialId, UserName},
    secret::{ClientSecret, KeyText, RefreshToken, on_wire},
    time::Timestamp,
    use_file::UseFormat,
};

pub use crate::replicate::name::{FileName, Placeholder, directory as directory_of};

/// `[site.NAME]`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Site {
    /// NAME.
    pub name: String,
    /// `kind` and what belongs to it.
    pub kind: SiteKind,
    /// `services`, `users`, `groups`: which credentials go there.
    pub rules: Rules,
    /// `targets`: Harvester's targets by handle; each gives a file of its own.
    pub targets: BTreeMap<String, Vec<String>>,
    /// `file_name`; default `{user}_{base}`.
    pub file_name: FileName,
    /// `use_format`: what is in the file; default the bare token (JSON for a credd).
    pub use_format: UseFormat,
    /// `mode` of the file; default 0600.
    pub mode: u32,
    /// `timeout` of one delivery.
    pub timeout: Duration,
    /// `max_in_flight`
    pub max_in_flight: u32,
    /// `max_per_second`
    pub max_per_second: u32,
    /// `ca_file`: PEM, in addition to the system's roots.
    pub ca_file: Option<CaFile>,
    /// `key_files` and `max_age`: what goes there is sealed.
    pub sealing: Option<Sealing>,
}

impl Site {
    /// Where a credential's files are: no two credentials may have the same. None where its kind keeps them apart itself,
    /// or its own program says where, or no name can be made.
    #[must_use]
    pub fn files(&self, id: &CredentialId) -> Vec<String> {
        let (place, directory) = match &self.kind {
            SiteKind::Directory { directory } => (String::new(), directory.clone()),
            SiteKind::Ssh(ssh) => {
                (format!("{:?}:", (&ssh.host, &ssh.user, ssh.port, &ssh.ssh_config)), ssh.directory.clone())
            }
            SiteKind::GlobusCompute(globus) => (format!("{}:", globus.endpoint), globus.directory.clone()),
            SiteKind::Sfapi(sfapi) => (format!("{}:", sfapi.api), sfapi.directory.clone()),
            SiteKind::Iri(iri) => (format!("{}:", iri.resource), iri.directory.clone()),
            SiteKind::Kubernetes(cluster) => {
                let namespace = cluster.namespace.as_deref().unwrap_or_default();
                (
                    format!("{:?}:", (&cluster.kubeconfig, &cluster.context)),
                    format!("{namespace}/{}", cluster.secret_name),
                )
            }
            SiteKind::Exec { .. } | SiteKind::Credd(_) => return Vec::new(),
        };
        let Ok(directory) = directory_of(&directory, id) else { return Vec::new() };
        let names = self.file_name.names(id, &self.targets).unwrap_or_default();
        names.into_iter().map(|name| format!("{place}{directory}/{name}")).collect()
    }

    /// Two credentials that the rules name, and the file that both would have: a mistake that shows without any.
    #[must_use]
    pub fn clash(&self) -> Option<(CredentialId, CredentialId)> {
        let anybody = ["anybody".to_owned()];
        let users = if self.rules.users.is_empty() { &anybody[..] } else { &self.rules.users[..] };
        let mut known: BTreeMap<String, CredentialId> = BTreeMap::new();
        for user in users.iter().filter_map(|user| UserName::parse(user).ok()) {
            for base in &self.rules.services {
                let Ok(id) = CredentialId::from_base(user.clone(), if base == "*" { "any" } else { base }) else {
                    continue;
                };
                for file in self.files(&id) {
                    match known.get(&file) {
                        Some(other) if *other != id => return Some((other.clone(), id)),
                        _ => drop(known.insert(file, id.clone())),
                    }
                }
            }
        }
        None
    }

    /// Tells one destination from another: a hash of what decides where a token lands, and as what. Where it changes, what
    /// was confirmed under this name was confirmed by somebody else, or for something else. No secret can be read from it.
    #[must_use]
    pub fn destination(&self) -> String {
        let place = match &self.kind {
            SiteKind::Directory { directory } => json!([directory]),
            SiteKind::Exec { command, directory } => json!([command, directory]),
            SiteKind::Ssh(ssh) => json!([ssh.host, ssh.user, ssh.port, ssh.ssh_config, ssh.way, ssh.directory]),
            SiteKind::GlobusCompute(globus) => json!([globus.api, globus.endpoint, globus.directory]),
            SiteKind::Credd(credd) => json!([credd.host, credd.user_domain, credd.condor_config]),
            SiteKind::Sfapi(sfapi) => json!([sfapi.api, sfapi.machine, sfapi.directory]),
            SiteKind::Iri(iri) => json!([iri.api, iri.resource, iri.directory]),
            SiteKind::Kubernetes(cluster) => {
                json!([cluster.kubeconfig, cluster.context, cluster.namespace, cluster.secret_name])
            }
        };
        let what = json!([self.kind.label(), place, self.file_name, self.targets, self.use_format, self.mode]);
        let mut hash = Sha256::new_with_prefix(what.to_string());
        // A Fernet key is random: nobody finds it by trying.
        if let Some(key) = self.sealing.as_ref().and_then(|sealing| sealing.keys.first()) {
            hash.update(key.expose().trim());
        }
        hash.finalize().iter().take(8).fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }
}

/// Which credentials go to a site: a service of `services`, and a user of `users` or of one of `groups`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Services, or base names `S_H`; `*` alone: all.
    pub services: Vec<String>,
    /// Users; empty, with `groups` empty, too: all.
    pub users: Vec<String>,
    /// Unix groups of this host.
    pub groups: Vec<String>,
}

impl Rules {
    /// Whether the credential goes there; `in_group` is asked only if it decides.
    pub fn want(&self, id: &CredentialId, in_group: impl Fn(&str) -> bool) -> bool {
        let base = id.base();
        let service = self.services.iter().any(|s| s == "*" || s == id.service.as_str() || *s == base);
        let everybody = self.users.is_empty() && self.groups.is_empty();
        service
            && (everybody
                || self.users.iter().any(|user| user == id.user.as_str())
                || self.groups.iter().any(|group| in_group(group)))
    }
}

/// How what goes to a site is sealed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sealing {
    /// The current key, then former ones.
    pub keys: Vec<KeyText>,
    /// How late a delivery may arrive; default 1 day.
    pub max_age: Duration,
}

/// What kind of site it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum SiteKind {
    /// A directory of this host, or of a file system that it shares.
    Directory {
        /// `directory`
        directory: String,
    },
    /// A program of the site's.
    Exec {
        /// `command`: absolute path and arguments.
        command: Vec<String>,
        /// `directory`: where a sealed payload says that it goes; without it the file name alone.
        directory: Option<String>,
    },
    /// A host, by the system's OpenSSH.
    Ssh(Ssh),
    /// A Globus Compute endpoint.
    GlobusCompute(GlobusCompute),
    /// Another schedd's credd.
    Credd(Credd),
    /// NERSC's Superfacility API.
    Sfapi(Sfapi),
    /// A facility's IRI API.
    Iri(Iri),
    /// A Kubernetes cluster.
    Kubernetes(Kubernetes),
}

impl SiteKind {
    /// As in the configuration.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Directory { .. } => "directory",
            Self::Exec { .. } => "exec",
            Self::Ssh(_) => "ssh",
            Self::GlobusCompute(_) => "globus-compute",
            Self::Credd(_) => "credd",
            Self::Sfapi(_) => "sfapi",
            Self::Iri(_) => "iri",
            Self::Kubernetes(_) => "kubernetes",
        }
    }

    /// Whether a replica is taken away there when its credential left the spool.
    #[must_use]
    pub fn withdraws(&self) -> bool {
        matches!(self, Self::Kubernetes(_))
    }

    /// When our own client of the site's service ends; `None`: nobody says.
    #[must_use]
    pub fn client_end(&self) -> Option<ClientEnd> {
        match self {
            Self::Sfapi(sfapi) => Some(ClientEnd { at: sfapi.client_ends?, life: sfapi.client_lifetime }),
            Self::Directory { .. }
            | Self::Exec { .. }
            | Self::Ssh(_)
            | Self::GlobusCompute(_)
            | Self::Credd(_)
            | Self::Iri(_)
            | Self::Kubernetes(_) => None,
        }
    }
}

/// The end of a client that people make by hand and no program can renew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientEnd {
    /// When.
    pub at: Timestamp,
    /// How long such a client lives.
    pub life: Duration,
}

impl ClientEnd {
    /// The longest time before the end at which it is told.
    const EARLY: Duration = Duration::from_secs(3 * 86_400);

    /// Whether it is time to make another one: a quarter of its life is left, at most three days.
    #[must_use]
    pub fn is_near(&self, now: Timestamp) -> bool {
        self.at.since(now) <= (self.life / 4).min(Self::EARLY)
    }
}

/// `kind = "ssh"`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ssh {
    /// `host`, as one says it to ssh.
    pub host: String,
    /// `user` there; default what `ssh_config` says.
    pub user: Option<String>,
    /// `port`
    pub port: Option<u16>,
    /// `ssh_config`: `-F`.
    pub ssh_config: Option<PathBuf>,
    /// `ssh_program`; default `/usr/bin/ssh`.
    pub program: PathBuf,
    /// `krb5_ccache`: `KRB5CCNAME` of that ssh.
    pub ccache: Option<String>,
    /// `way = "sftp" | "receive"`
    pub way: SshWay,
    /// `directory` there.
    pub directory: String,
}

/// How a file gets there by ssh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SshWay {
    /// SFTP: a temporary file and `posix-rename`.
    Sftp,
    /// A sealed payload to `evercred receive`, which may be a forced command.
    Receive,
}

/// `kind = "globus-compute"`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GlobusCompute {
    /// `endpoint_id`
    pub endpoint: String,
    /// `client_id`
    pub client_id: String,
    /// Contents of `client_secret_file`; `None` where secrets are left alone.
    #[serde(with = "on_wire::option")]
    pub client_secret: Option<ClientSecret>,
    /// `directory` at the endpoint; the function writes below it alone.
    pub directory: String,
    /// `remote_key_files`: the key ring at the endpoint.
    pub keys_there: Vec<String>,
    /// `api`
    pub api: String,
    /// `auth`
    pub auth: String,
    /// `function`: registered by hand; default: registered once, and its UUID kept.
    pub function: Option<String>,
    /// `legacy_endpoint`: before 3.3.0, which knows no source text.
    pub legacy: bool,
}

/// `kind = "credd"`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Credd {
    /// `host`: `CREDD_HOST` of `condor_store_cred`.
    pub host: String,
    /// `user_domain`: the user is `USER@DOMAIN` there. No default: `condor_store_cred` takes no user without
    /// one, and our own pool's need not be theirs.
    pub user_domain: String,
    /// `condor_store_cred`
    pub program: PathBuf,
    /// `condor_config`: `CONDOR_CONFIG` of that program.
    pub condor_config: Option<PathBuf>,
}

/// `kind = "sfapi"`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sfapi {
    /// `client_id`, or what the client's file says.
    pub client_id: String,
    /// The key in `client_file`; `None` where secrets are left alone.
    pub client_key: Option<KeyText>,
    /// When the client ends: when its file was written, and `client_lifetime`.
    pub client_ends: Option<Timestamp>,
    /// `client_lifetime`
    pub client_lifetime: Duration,
    /// `machine`, in the service's words.
    pub machine: String,
    /// `directory` there.
    pub directory: String,
    /// `inbox` there: where sealed payloads are put.
    pub inbox: String,
    /// `command`: what empties the inbox, if we are to run it; without it a timer there does.
    pub command: Option<String>,
    /// `api`
    pub api: String,
    /// `auth`: the token endpoint.
    pub auth: String,
}

/// `kind = "iri"`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Iri {
    /// `resource_id`: the file system, in the facility's words.
    pub resource: String,
    /// `directory` there.
    pub directory: String,
    /// `client_id`
    pub client_id: String,
    /// Contents of `client_secret_file`; `None`: a public client, or secrets are left alone.
    #[serde(with = "on_wire::option")]
    pub client_secret: Option<ClientSecret>,
    /// Contents of `refresh_token_file`; `None`: the client acts as itself, or secrets are left alone.
    #[serde(with = "on_wire::option")]
    pub refresh_token: Option<RefreshToken>,
    /// `scope`
    pub scope: Option<String>,
    /// `token_header = "bare"`: the token is the header without `Bearer`.
    pub bare: bool,
    /// `api`
    pub api: String,
    /// `auth`
    pub auth: String,
}

/// `kind = "kubernetes"`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kubernetes {
    /// `kubeconfig`; default `~/.kube/config` of `replicate_user`, then the service account of our pod.
    pub kubeconfig: Option<PathBuf>,
    /// `context` in it; default its `current-context`.
    pub context: Option<String>,
    /// `namespace`, a template; default the context's.
    pub namespace: Option<String>,
    /// `secret_name`, a template.
    pub secret_name: String,
}
