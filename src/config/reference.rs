//! Every configuration key with its default and meaning: the table behind docs/configuration.md. A test holds it
//! against what the readers really take.

use std::fmt::Write as _;

use super::provider;

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its table, as it is written.
    pub table: &'static str,
    /// Its name.
    pub key: &'static str,
    /// What holds without it; empty: it is required.
    pub default: &'static str,
    /// What it means, with its unit or its values.
    pub meaning: &'static str,
}

impl Key {
    /// `meaning`, with the kinds of provider that there are.
    #[must_use]
    pub fn meaning(&self) -> String {
        let kinds = provider::kinds().replace(", \"", "`, `\"").replace(" or \"", "` or `\"");
        self.meaning.replace("{kinds}", &format!("`{kinds}`"))
    }
}

/// Every table once, in the order in which people meet them.
#[must_use]
pub fn tables() -> Vec<&'static str> {
    let mut tables: Vec<&str> = Vec::new();
    for key in KEYS {
        if !tables.contains(&key.table) {
            tables.push(key.table);
        }
    }
    tables
}

const fn key(table: &'static str, key: &'static str, default: &'static str, meaning: &'static str) -> Key {
    Key { table, key, default, meaning }
}

const DAEMON: &str = "[daemon]";
const NOTICES: &str = "[notices]";
const PROVIDER: &str = "[provider.NAME]";
const OAUTH2: &str = "[provider.NAME] kind = \"oauth2\"";
const CLIENT: &str = "[provider.NAME] kind = \"client-credentials\"";
const EXCHANGE: &str = "[provider.NAME] kind = \"token-exchange\"";
const HTCONDOR: &str = "[provider.NAME] kind = \"htcondor\"";
const SITE: &str = "[site.NAME]";
const DIRECTORY: &str = "[site.NAME] kind = \"directory\"";
const EXEC: &str = "[site.NAME] kind = \"exec\"";
const SSH: &str = "[site.NAME] kind = \"ssh\"";
const GLOBUS: &str = "[site.NAME] kind = \"globus-compute\"";
const CREDD: &str = "[site.NAME] kind = \"credd\"";
const SFAPI: &str = "[site.NAME] kind = \"sfapi\"";
const IRI: &str = "[site.NAME] kind = \"iri\"";
const KUBERNETES: &str = "[site.NAME] kind = \"kubernetes\"";
const MYTOKEN: &str = "[provider.NAME] kind = \"mytoken\"";
const RESTRICTIONS: &str = "[provider.NAME.restrictions]";
const STORER: &str = "[storer]";

/// All keys, in the order in which people meet them.
pub const KEYS: &[Key] = &[
    key(
        DAEMON,
        "credential_directory",
        "HTCondor's `SEC_CREDENTIAL_DIRECTORY_OAUTH`",
        "Where credd stores credentials. An absolute path. A change takes effect at the next start.",
    ),
    key(
        DAEMON,
        "share_directory",
        "`false`",
        "`true`: another credential monitor works in the same directory, or another host's credd may: leave `pid` and \
         `CREDMON_COMPLETE` alone. credd then signals the other one; the watch and `full_scan` find what is new. A \
         change takes effect at the next start.",
    ),
    key(
        DAEMON,
        "courier_user",
        "`\"evercred\"`",
        "Who the network process becomes when the credmon is started as root. Never root.",
    ),
    key(
        DAEMON,
        "replicate_user",
        "`\"evercred-replicate\"`",
        "Who the process that replicates becomes when the credmon is started as root. Never root, nor `courier_user`.",
    ),
    key(
        DAEMON,
        "status_socket",
        "`/run/evercred/status.sock`, if started as root or condor",
        "Where `evercred status` and the storer ask. The control socket `control.sock` is beside it. \
         A change takes effect at the next start.",
    ),
    key(
        DAEMON,
        "metrics_listen",
        "no listener",
        "Address and port of the metrics and health endpoint ([metrics](metrics.md)).",
    ),
    key(
        DAEMON,
        "status_page",
        "`false`",
        "Serve the status page for admins there, too (`/`). Whoever reaches the address sees all users' names.",
    ),
    key(
        DAEMON,
        "full_scan",
        "`\"10m\"`",
        "How often the directory is gone through, whatever the watch says: its users are listed and the credentials looked \
         at. From 5 min on, where the watch works and the directory is not shared, it is a 144th of those who are well at a \
         time. 1 s to 24 h.",
    ),
    key(
        DAEMON,
        "log",
        "HTCondor's `CREDMON_OAUTH_LOG`",
        "A path, `\"syslog\"`, `\"journal\"` or `\"stderr\"`. A change takes effect at the next start.",
    ),
    key(
        DAEMON,
        "log_format",
        "`\"text\"`",
        "What a line looks like: `\"text\"`, or `\"json\"` (one object a line). A change takes effect at the next start.",
    ),
    key(
        DAEMON,
        "audit_log",
        "no audit",
        "A file to which every decision is appended as one line of JSON; never a secret.",
    ),
    key(
        DAEMON,
        "web_approval_listen",
        "no page",
        "The page where users approve: `unix:/run/evercred/approval.sock` or a loopback address and port, for the web \
         server of this host to pass on to; with `web_approval_tls_cert` any address, and no web server is needed.",
    ),
    key(
        DAEMON,
        "web_approval_url",
        "HTCondor's `CREDMON_WEB_PREFIX`",
        "How browsers reach that page. credd tells users `CREDMON_WEB_PREFIX`, so this must say the same.",
    ),
    key(
        DAEMON,
        "web_approval_tls_cert",
        "no TLS",
        "The certificate of that page, with those that it is signed by behind it, as PEM. A new pair of files is taken \
         into use within seconds.",
    ),
    key(DAEMON, "web_approval_tls_key", "no TLS", "Its key, as PEM: root's, mode 0600."),
    key(
        DAEMON,
        "otlp",
        "no traces",
        "An OTLP receiver, like `\"http://localhost:4318\"`: a span a renewal goes there, with its parts and deliveries beneath (OTLP over HTTP).",
    ),
    key(
        DAEMON,
        "state_directory",
        "`/var/lib/evercred`",
        "What is remembered across restarts (which notices were sent). Never a secret of a user.",
    ),
    key(
        NOTICES,
        "steps",
        "`[\"7d\", \"2d\", \"6h\"]`",
        "How long before a refresh token ends its user is told. Of a token that lives little longer than a step, that step is left out; if none remains, its last quarter is one.",
    ),
    key(NOTICES, "after_failures", "3", "So many failures in a row are told; fewer are a passing thing. 1 to 1000."),
    key(
        NOTICES,
        "site_behind",
        "`\"30m\"`",
        "Admins are told once when a site has been behind for so long, for each reason. 1 s to 7 d.",
    ),
    key(NOTICES, "every", "`\"5m\"`", "How often it is looked whom to tell. 1 s to 24 h."),
    key(
        NOTICES,
        "jobs",
        "`true`",
        "Ask `condor_q` who has jobs: a refusal is told only to those. `false`: to everybody.",
    ),
    key(NOTICES, "mail_to", "no mail to users", "Users' addresses, like `\"{user}@example.org\"`."),
    key(NOTICES, "mail_map", "none", "A file of lines `user address`; it comes before `mail_to`."),
    key(NOTICES, "admins", "no mail to admins", "Addresses of those who are told about providers and sites. A list."),
    key(NOTICES, "mail_from", "", "Where mails come from. Required with `smtp` or `sendmail`."),
    key(
        NOTICES,
        "smtp",
        "none",
        "The mail server: `smtp://HOST[:587]` (STARTTLS; to this host without), or `smtps://HOST[:465]`.",
    ),
    key(NOTICES, "smtp_user", "no login", "User at the mail server."),
    key(NOTICES, "smtp_password_file", "no login", "A file with that user's password alone. Mode 0600."),
    key(NOTICES, "sendmail", "none", "Instead of `smtp`: the program that takes mails, as an absolute path."),
    key(NOTICES, "webhook", "none", "A URL to which every notice is posted as JSON."),
    key(NOTICES, "webhook_token_file", "none", "A file with a bearer token for it. Mode 0600."),
    key(
        NOTICES,
        "slack_webhook_file",
        "none",
        "A file with the URL of a Slack-compatible webhook, to which admins' notices are posted. Mode 0600.",
    ),
    key(
        NOTICES,
        "ca_file",
        "the system's certificates",
        "PEM certificates in addition to the system's; read at the start and at a reload.",
    ),
    key(PROVIDER, "kind", "", "{kinds}. With `\"htcondor\"` the client is in HTCondor's knobs."),
    key(PROVIDER, "services", "the service called NAME", "The services that this provider owns; names without `_`."),
    key(
        PROVIDER,
        "issuer",
        "none",
        "The OAuth2/OIDC issuer, for discovery and to check tokens; for mytoken the OpenID provider behind the server, where \
         users approve: needed there unless the server has a single one.",
    ),
    key(PROVIDER, "scopes", "the issuer's", "What to ask for, unless the `.top` says otherwise. A list."),
    key(PROVIDER, "audience", "the issuer's", "For whom to ask, unless the `.top` says otherwise. A list."),
    key(
        PROVIDER,
        "shortfall",
        "`\"refuse\"`",
        "If less is granted than was asked for: `\"refuse\"` the token, or `\"flag\"` it and publish.",
    ),
    key(PROVIDER, "default_lifetime", "`\"1h\"`", "Of access tokens that come without any expiry. 1 s to 366 d."),
    key(PROVIDER, "use_format", "`\"json\"`", "A `.use` is one line of JSON, or `\"bare\"`: the access token alone."),
    key(
        PROVIDER,
        "max_in_flight",
        "64",
        "Requests of this provider under way at once; those of several providers at one issuer add up. 1 to 10,000.",
    ),
    key(PROVIDER, "max_per_second", "50", "Requests of this provider started in one second, likewise. 1 to 100,000."),
    key(PROVIDER, "timeout", "`\"20s\"`", "Of one exchange. 1 s to 10 min."),
    key(
        PROVIDER,
        "revoke_at_end",
        "`false`",
        "Give the refresh token back to the issuer (RFC 7009, mytoken) once its credential left the directory.",
    ),
    key(PROVIDER, "revoke_after", "`\"10m\"`", "How long after it left: a credential that comes back keeps its token."),
    key(
        PROVIDER,
        "ca_file",
        "the system's certificates",
        "PEM certificates in addition to the system's. The credmon reads the file at its start and at a reload; `condor_submit` and `evercred login` read it as the user, so give it mode 0644.",
    ),
    key(
        PROVIDER,
        "fernet_key_file",
        "none",
        "Opens `.top` files that are Fernet text. Owner root or the credmon's, mode 0600.",
    ),
    key(
        PROVIDER,
        "approval_hosts",
        "none",
        "Hosts beside the issuer's own on which users may be asked to approve, like `[\"login.example.org\"]`.",
    ),
    key(
        PROVIDER,
        "renew_default",
        "ask again",
        "With less than a day left, what an empty answer to `Renew it now?` means: `\"yes\"` or `\"no\"`.",
    ),
    key(OAUTH2, "token_endpoint", "by discovery at `issuer`", "Where tokens are asked for."),
    key(OAUTH2, "revocation_endpoint", "by discovery at `issuer`", "Where refresh tokens are given back."),
    key(OAUTH2, "client_id", "", "Under which id evercred is registered at the issuer."),
    key(
        OAUTH2,
        "client_secret_file",
        "a public client",
        "A file with the client's secret alone. Owner root or the credmon's, mode 0600.",
    ),
    key(OAUTH2, "client_auth", "`\"header\"`", "The secret goes into the header (HTTP Basic) or into the `\"body\"`."),
    key(
        OAUTH2,
        "audience_style",
        "`\"audience\"`",
        "`audience=a b`; or `\"repeated\"`: `audience=a&audience=b`; or `\"resource\"` (RFC 8707).",
    ),
    key(
        OAUTH2,
        "device_authorization_endpoint",
        "by discovery at `issuer`",
        "Where the device flow of `evercred login` and of submits begins; it needs a public client.",
    ),
    key(
        OAUTH2,
        "login_scopes",
        "`[\"offline_access\"]`",
        "Asked for at an approval beside `scopes`; many OpenID providers want `[\"openid\", \"offline_access\"]`.",
    ),
    key(OAUTH2, "login_pkce", "`false`", "Send a code challenge (RFC 7636) with the device flow."),
    key(
        OAUTH2,
        "authorization_endpoint",
        "by discovery at `issuer`",
        "Where users approve in a browser. Only the page for approvals needs it.",
    ),
    key(
        OAUTH2,
        "return_path",
        "`/return/SERVICE`",
        "Where the issuer sends the browser back to, below the page's URL: HTCondor's `<S>_RETURN_URL_SUFFIX`.",
    ),
    key(
        OAUTH2,
        "user_claim",
        "whoever has the link",
        "On the page, only the user may approve: this claim of the issuer's ID token, like `\"preferred_username\"`, must \
         be the user's name on the access point. Asks for the scope `openid`, and needs `issuer`.",
    ),
    key(HTCONDOR, "user_claim", "whoever has the link", "As for `\"oauth2\"`."),
    key(HTCONDOR, "revocation_endpoint", "by discovery at `issuer`", "Where refresh tokens are given back."),
    key(
        EXCHANGE,
        "login_client_id",
        "",
        "All keys of `\"oauth2\"`, and the public client as which users approve; its access token is exchanged (RFC \
         8693) for a refresh token of `client_id`. `login_scopes` is empty unless set.",
    ),
    key(
        CLIENT,
        "users",
        "",
        "The client asks for itself, without anybody's approval, and these accounts get its tokens, like \
         `[\"harvester\"]`. Nobody else does, whatever they store.",
    ),
    key(
        CLIENT,
        "audiences",
        "one credential, with `audience`",
        "A credential `SERVICE_HANDLE` for each handle, with its own audience: `{ ce1 = \"ce1.example.org:9619\" }`.",
    ),
    key(CLIENT, "token_endpoint", "by discovery at `issuer`", "Where tokens are asked for."),
    key(CLIENT, "client_id", "", "Under which id evercred is registered at the issuer, for `client_credentials`."),
    key(CLIENT, "client_secret_file", "", "As for `\"oauth2\"`; read again at a reload."),
    key(CLIENT, "client_auth", "`\"header\"`", "As for `\"oauth2\"`."),
    key(CLIENT, "audience_style", "`\"audience\"`", "As for `\"oauth2\"`."),
    key(
        HTCONDOR,
        "client_auth",
        "`\"body\"`",
        "As for `\"oauth2\"`. The client itself is `<NAME>_CLIENT_ID`, `_CLIENT_SECRET_FILE`, `_TOKEN_URL`, \
         `_AUTHORIZATION_URL` and `_RETURN_URL_SUFFIX`, as credd sees them.",
    ),
    key(
        HTCONDOR,
        "audience_style",
        "`\"resource\"`",
        "How the page for approvals asks; renewals ask for neither scope nor audience.",
    ),
    key(MYTOKEN, "server", "", "The mytoken server, like `https://mytok.eu`."),
    key(MYTOKEN, "profile", "none", "Server profiles that users approve, like `\"kit/c4p-htcondor\"`."),
    key(
        MYTOKEN,
        "lifetime",
        "what the profile says, else `\"7d\"`",
        "How long an approval lasts. 10 min to 3,660 d; the server may give less.",
    ),
    key(MYTOKEN, "capabilities", "the server's: `AT` and `tokeninfo`", "Capabilities to ask for; `AT` among them."),
    key(
        MYTOKEN,
        "restrictions",
        "none",
        "A table of further restrictions to ask for, beside `lifetime` and `scopes`; with `profile` it needs `lifetime`.",
    ),
    key(RESTRICTIONS, "audience", "none", "For whom access tokens may be made. A list."),
    key(
        RESTRICTIONS,
        "hosts",
        "none",
        "Who may use the mytoken: addresses, networks (`192.0.2.0/24`) and host names, the access point's among them.",
    ),
    key(
        RESTRICTIONS,
        "usages_AT",
        "none",
        "How many access tokens may be made; each renewal is one. 1 to 4,294,967,295.",
    ),
    key(RESTRICTIONS, "geoip_allow", "none", "Countries from which it may be used, like `[\"de\"]`."),
    key(RESTRICTIONS, "geoip_disallow", "none", "Countries from which it may not be used."),
    key(
        STORER,
        "stock_storer",
        "`/usr/bin/condor_credential_storer`",
        "Who gets the services of a submit that no provider owns (Vault, Pelican). Before HTCondor 25.14 it is \
         `condor_vault_storer`, which is found there, too.",
    ),
    key(
        STORER,
        "use_wait",
        "`\"60s\"`",
        "How long a submit waits for the first access token of a new credential. 1 s to 1 h.",
    ),
    key(SITE, "kind", "", "`globus-compute`, `ssh`, `credd`, `kubernetes`, `sfapi`, `iri`, `directory` or `exec`."),
    key(SITE, "services", "", "Whose tokens go there: services or `S_H`; `*` alone: all."),
    key(SITE, "users", "everybody's", "Only these users' tokens, and those of `groups`."),
    key(SITE, "groups", "everybody's", "Only tokens of members of these Unix groups, and of `users`."),
    key(
        SITE,
        "file_name",
        "`{user}_{base}`",
        "Name of the file: text and `{user}`, `{service}`, `{handle}`, `{base}`, `{target}`, `{target_md5}`.",
    ),
    key(SITE, "targets", "none", "For `{target}`: `{ HANDLE = [\"ce1.example.org:443\"] }`; a file for each."),
    key(SITE, "use_format", "`bare`, for a credd `json`", "What is in the file: the token alone, or one line of JSON."),
    key(SITE, "mode", "`0600`", "Of the file: `0600`, `0400`, `0640` or `0440`."),
    key(SITE, "timeout", "by kind: 30 s to 10 min", "Of one delivery, whatever the site does. 1 s to 1 d."),
    key(SITE, "max_in_flight", "by kind: 2 to 64", "Deliveries under way to this site at once. 1 to 1,000."),
    key(SITE, "max_per_second", "by kind: 2 to 200", "Deliveries started in one second. 1 to 10,000."),
    key(
        SITE,
        "ca_file",
        "the system's certificates",
        "PEM certificates in addition to the system's; read at the start and at a reload.",
    ),
    key(SITE, "key_files", "not sealed", "Fernet keys: the current one, then former ones. Mode 0600."),
    key(SITE, "max_age", "`1d`", "How late a sealed delivery may arrive. 60 s to 14 d."),
    key(DIRECTORY, "directory", "", "Where the files go, absolute; `{user}` and the like may stand in it."),
    key(EXEC, "command", "", "`[\"/absolute/program\", \"argument\"]`; the token is its standard input."),
    key(EXEC, "directory", "the file name alone", "Where a sealed payload says that it goes, for `evercred receive`."),
    key(SSH, "host", "", "As you would say it to ssh."),
    key(SSH, "directory", "", "Where the files go at the site, absolute."),
    key(SSH, "way", "`sftp`", "`sftp`, or `receive`: a sealed payload to `evercred receive` there."),
    key(SSH, "user", "as `ssh_config` says", "The account there."),
    key(SSH, "port", "as `ssh_config` says", "The port there."),
    key(SSH, "ssh_config", "ssh's own", "Another configuration file for ssh."),
    key(SSH, "ssh_program", "`/usr/bin/ssh`", "Another ssh."),
    key(SSH, "krb5_ccache", "Kerberos' own", "The credential cache for GSSAPI, like `FILE:/run/evercred/cc`."),
    key(GLOBUS, "endpoint_id", "", "UUID of the site's endpoint."),
    key(GLOBUS, "client_id", "", "UUID of the Globus client (a confidential application)."),
    key(GLOBUS, "client_secret_file", "", "A file with its secret alone, mode 0600."),
    key(GLOBUS, "directory", "", "Where the files go at the endpoint; the function writes below its fixed part alone."),
    key(GLOBUS, "remote_key_files", "", "Paths of the key files at the endpoint, mode 0600 there."),
    key(GLOBUS, "function", "registered once", "UUID of a function that the site allows."),
    key(GLOBUS, "legacy_endpoint", "false", "The endpoint is older than 3.3.0."),
    key(GLOBUS, "api", "`https://compute.api.globus.org`", "The service."),
    key(GLOBUS, "auth", "`https://auth.globus.org`", "Where its tokens come from."),
    key(CREDD, "host", "", "The other credd's host, as in its pool's collector, or `HOST:PORT`."),
    key(CREDD, "user_domain", "", "`UID_DOMAIN` of that credd: its users are `USER@DOMAIN`."),
    key(CREDD, "condor_store_cred", "that of `/usr/sbin` or `/usr/bin`", "HTCondor's program."),
    key(CREDD, "condor_config", "HTCondor's own", "Another configuration file for that program."),
    key(SFAPI, "directory", "", "Where the files go at the site, absolute."),
    key(SFAPI, "inbox", "", "A directory there for sealed payloads, which `evercred receive --inbox` empties."),
    key(SFAPI, "client_file", "", "The client as Iris gives it (JSON, or its id and PEM), a JWK or PEM. Mode 0600."),
    key(SFAPI, "client_id", "what `client_file` says", "The client's id, if the file holds its key alone."),
    key(
        SFAPI,
        "client_lifetime",
        "`30d`, with `command` `2d`",
        "How long the service lets a client live, from when the file was written.",
    ),
    key(SFAPI, "command", "a timer at the site", "What empties the inbox, run by the service; only a red client may."),
    key(SFAPI, "machine", "`perlmutter`", "The machine, in the service's words."),
    key(SFAPI, "api", "`https://api.nersc.gov/api/v1.2`", "The service."),
    key(SFAPI, "auth", "`https://oidc.nersc.gov/c2id/token`", "Where its tokens come from."),
    key(IRI, "directory", "", "Where the files go at the facility, absolute; `.evercred` in it is ours."),
    key(IRI, "resource_id", "", "The id of the file system's resource there."),
    key(IRI, "client_id", "", "The client's id at the issuer."),
    key(IRI, "client_secret_file", "a public client", "A file with its secret alone, mode 0600."),
    key(
        IRI,
        "refresh_token_file",
        "the client acts as itself",
        "A file with the refresh token of one login, mode 0600.",
    ),
    key(IRI, "scope", "that of the login", "Asked for; **required** without `refresh_token_file`."),
    key(IRI, "token_header", "`bearer`", "`bare`: the facility wants the token without `Bearer`."),
    key(IRI, "api", "`https://api.iri.nersc.gov`", "The facility's service."),
    key(IRI, "auth", "`https://auth.globus.org/v2/oauth2/token`", "Where its tokens come from."),
    key(
        KUBERNETES,
        "kubeconfig",
        "`~/.kube/config` of `replicate_user`, else our pod's",
        "Where the cluster is and who we are there.",
    ),
    key(KUBERNETES, "context", "its `current-context`", "Another context in it."),
    key(KUBERNETES, "namespace", "the context's", "Where the Secrets are; `{user}` and the like may stand in it."),
    key(KUBERNETES, "secret_name", "`evercred-{user}`", "Name of the Secret; `{user}` and the like may stand in it."),
];

/// What is true of all keys, in paragraphs of Markdown.
pub const INTRODUCTION: [&str; 2] = [
    "`/etc/evercred/evercred.toml`, then `/etc/evercred/conf.d/*.toml` in the order of their names; a key given twice keeps \
     the\nlater value. Durations are written like `\"20s\"`, `\"10m\"`, `\"2h\"` or `\"7d\"`. `http://` is accepted only \
     for loopback\naddresses. Secrets are files, never values.",
    "`evercred check` tells every problem at once, as `file:line: key: what; what to do`.",
];

/// docs/configuration.md.
#[must_use]
pub fn page() -> String {
    let mut text = format!(
        "# Configuration keys\n\n<!-- Made by `evercred generate`; a test compares it with the program. -->\n\n{}\n\n\
         A commented example: [evercred.toml](examples/evercred.toml). The same as a man page: `man evercred.toml`.\n",
        INTRODUCTION.join("\n\n")
    );
    for table in tables() {
        // Writing to a string does not fail.
        write!(text, "\n## `{table}`\n\n| key | default | meaning |\n|---|---|---|\n").ok();
        for key in KEYS.iter().filter(|key| key.table == table) {
            let default = if key.default.is_empty() { "**required**" } else { key.default };
            writeln!(text, "| `{}` | {default} | {} |", key.key, key.meaning()).ok();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::{Sources, condor::Knobs, load_with};

    /// What the reader of a table offers when it meets a key that nobody knows.
    fn known(text: &str) -> BTreeSet<String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, text).unwrap();
        let sources = Sources { config: Some(file), ..Sources::default() };
        let problems = load_with(&sources, &Knobs::default()).unwrap_err();
        let told = problems.iter().find_map(|p| p.advice.strip_prefix("known here: ")).unwrap();
        told.split(", ").map(str::to_owned).collect()
    }

    fn documented(tables: &[&str]) -> BTreeSet<String> {
        KEYS.iter().filter(|key| tables.contains(&key.table)).map(|key| key.key.to_owned()).collect()
    }

    #[test]
    fn every_key_that_is_taken_is_documented_and_no_other() {
        let daemon = "[daemon]\ncredential_directory = \"/c\"\nxqzxqzxqzxqz = 1\n[provider.p]\nkind = \"mytoken\"\n\
                      server = \"https://m.example.org\"\n";
        assert_eq!(known(daemon), documented(&[DAEMON]));
        let notices = "[daemon]\ncredential_directory = \"/c\"\n[notices]\nwebhook = \"https://w.example.org\"\n\
                       xqzxqzxqzxqz = 1\n[provider.p]\nkind = \"mytoken\"\nserver = \"https://m.example.org\"\n";
        assert_eq!(known(notices), documented(&[NOTICES]));
        let provider =
            |more: &str| format!("[daemon]\ncredential_directory = \"/c\"\n[provider.p]\nxqzxqzxqzxqz = 1\n{more}");
        let oauth2 = provider("kind = \"oauth2\"\nclient_id = \"c\"\nissuer = \"https://i.example.org\"\n");
        assert_eq!(known(&oauth2), documented(&[PROVIDER, OAUTH2]));
        let exchange = "kind = \"token-exchange\"\nclient_id = \"c\"\nlogin_client_id = \"l\"\nissuer = \"https://i.example.org\"\n";
        assert_eq!(known(&provider(exchange)), documented(&[PROVIDER, OAUTH2, EXCHANGE]));
        // Keys of every kind that this one refuses are known to it: the advice is another.
        let own = "kind = \"client-credentials\"\nclient_id = \"c\"\nclient_secret_file = \"/s\"\nusers = [\"u\"]\nissuer = \"https://i.example.org/\"\n";
        assert_eq!(known(&provider(own)), documented(&[PROVIDER, CLIENT]));
        let htcondor = provider("kind = \"htcondor\"\n");
        assert_eq!(known(&htcondor), documented(&[PROVIDER, HTCONDOR]));
        let mytoken = provider("kind = \"mytoken\"\nserver = \"https://m.example.org\"\n");
        assert_eq!(known(&mytoken), documented(&[PROVIDER, MYTOKEN]));
        let restrictions = "[daemon]\ncredential_directory = \"/c\"\n[provider.p]\nkind = \"mytoken\"\nserver = \
                            \"https://m.example.org\"\n[provider.p.restrictions]\nxqzxqzxqzxqz = 1\n";
        assert_eq!(known(restrictions), documented(&[RESTRICTIONS]));
        let storer = "[daemon]\ncredential_directory = \"/c\"\n[storer]\nxqzxqzxqzxqz = 1\n[provider.p]\nkind = \
                      \"mytoken\"\nserver = \"https://m.example.org\"\n";
        assert_eq!(known(storer), documented(&[STORER]));
        let kinds = [DIRECTORY, EXEC, SSH, GLOBUS, CREDD, KUBERNETES, SFAPI, IRI];
        for table in kinds {
            let kind = table.strip_prefix("[site.NAME] ").unwrap();
            let site = format!(
                "[provider.p]\nkind = \"mytoken\"\nserver = \"https://m.example.org\"\n[site.s]\n{kind}\nxqzxqzxqzxqz = 1\n"
            );
            assert_eq!(known(&site), documented(&[SITE, table]), "{kind}");
        }
    }
}
