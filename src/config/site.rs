//! One `[site.NAME]`: where renewed tokens are replicated to, which ones, and under which names.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::{
    Secrets,
    fragment::{Data, Value},
    input::{self, Section, Wrong, wrong},
    secret_file, site_facility,
    site_settings::{
        Credd, FileName, GlobusCompute, Kubernetes, Placeholder, Rules, Sealing, Site, SiteKind, Ssh, SshWay,
    },
};
use crate::core::{
    id::{CredentialId, Handle, Service, UserName},
    secret::KeyText,
    use_file::UseFormat,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    Exec,
    Ssh,
    GlobusCompute,
    Credd,
    Sfapi,
    Iri,
    Kubernetes,
}

const KINDS: &[(&str, Kind)] = &[
    ("globus-compute", Kind::GlobusCompute),
    ("ssh", Kind::Ssh),
    ("credd", Kind::Credd),
    ("kubernetes", Kind::Kubernetes),
    ("directory", Kind::Directory),
    ("exec", Kind::Exec),
    ("sfapi", Kind::Sfapi),
    ("iri", Kind::Iri),
];

/// What a kind is like where the configuration does not say.
struct Usual {
    timeout: u64,
    in_flight: u32,
    per_second: u32,
}

impl Kind {
    fn usual(self) -> Usual {
        let (timeout, in_flight, per_second) = match self {
            Self::Directory => (60, 4, 200),
            Self::Exec | Self::Credd => (60, 2, 20),
            Self::Ssh => (60, 8, 100),
            // A cold endpoint, or a timer at the site, may need minutes; two requests a second are what services allow.
            Self::GlobusCompute | Self::Sfapi => (600, 64, 2),
            // Each file is several tasks of seconds.
            Self::Iri => (300, 8, 2),
            // What an API server gives one client without a word (client-go asks 20 to 50 times a second).
            Self::Kubernetes => (60, 16, 50),
        };
        Usual { timeout, in_flight, per_second }
    }
}

/// Read one site; `None` if it cannot be used. Problems are in the section's list.
pub fn read(name: &str, mut section: Section<'_>, secrets: Secrets) -> Option<Site> {
    for key in ["client_secret", "client_key", "secret", "password", "fernet_key", "key", "token", "refresh_token"] {
        section.refuse(
            key,
            "secrets are files, never values in the configuration",
            "write it to a file of mode 0600, name that with `key_files` or `client_secret_file`",
        );
    }
    let Some(kind) = section.require("kind", r#"set it to "ssh", "globus-compute" or another kind of site"#, kind)
    else {
        section.abandon();
        return None;
    };
    let usual = kind.usual();
    let seconds = Duration::from_secs;
    let rules = rules(&mut section);
    let targets = section.take("targets", targets).unwrap_or_default();
    let file_name = section.take("file_name", file_name).unwrap_or_else(FileName::usual);
    if file_name.uses(Placeholder::Target) && targets.is_empty() {
        section.complain("targets", "is missing, and `file_name` uses it", r#"write it as { HANDLE = ["host:port"] }"#);
    }
    let bare = if kind == Kind::Credd { UseFormat::Json } else { UseFormat::Bare };
    let formats = &[("json", UseFormat::Json), ("bare", UseFormat::Bare)];
    let use_format = section.take("use_format", input::choice(formats)).unwrap_or(bare);
    let mode = section.take("mode", mode).unwrap_or(0o600);
    let timeout =
        section.take("timeout", input::duration(seconds(1), seconds(86_400))).unwrap_or(seconds(usual.timeout));
    let max_in_flight = section.take("max_in_flight", input::number(1..=1000)).unwrap_or(usual.in_flight);
    let max_per_second = section.take("max_per_second", input::number(1..=10_000)).unwrap_or(usual.per_second);
    let ca_file = section.take("ca_file", super::ca_file::take(secrets));
    let sealing = sealing(&mut section, secrets);
    if sealing.is_some() && matches!(kind, Kind::Credd | Kind::Kubernetes) {
        section.complain("key_files", "does not go with this kind, which stores the token itself", "remove the key");
    }
    let kind = match kind {
        Kind::Directory => directory(&mut section).map(|directory| SiteKind::Directory { directory }),
        Kind::Exec => {
            let directory = section.take("directory", remote_directory);
            let command = section.require("command", r#"set it to ["/absolute/program", "argument"]"#, command);
            command.map(|command| SiteKind::Exec { command, directory })
        }
        Kind::Ssh => ssh(&mut section, sealing.is_some()).map(SiteKind::Ssh),
        Kind::GlobusCompute => {
            needs_keys(&mut section, sealing.is_some());
            globus(&mut section, secrets).map(SiteKind::GlobusCompute)
        }
        Kind::Credd => credd(&mut section).map(SiteKind::Credd),
        Kind::Sfapi => {
            needs_keys(&mut section, sealing.is_some());
            site_facility::sfapi(&mut section, secrets).map(SiteKind::Sfapi)
        }
        Kind::Iri => site_facility::iri(&mut section, secrets).map(SiteKind::Iri),
        Kind::Kubernetes => Some(SiteKind::Kubernetes(kubernetes(&mut section))),
    };
    let (Some(kind), Some(rules)) = (kind, rules) else {
        section.finish();
        return None;
    };
    let site = Site {
        name: name.to_owned(),
        kind,
        rules,
        targets,
        file_name,
        use_format,
        mode,
        timeout,
        max_in_flight,
        max_per_second,
        ca_file,
        sealing,
    };
    if let Some((one, other)) = site.clash() {
        let what = |id: CredentialId| if site.rules.users.is_empty() { id.base() } else { id.to_string() };
        let what = format!("gives {} and {} the same file there", what(one), what(other));
        section.complain(
            "file_name",
            &what,
            r#"put {user} or {base} into it, as "{user}_{base}", or into the directory"#,
        );
    }
    section.finish();
    Some(site)
}

fn kind(value: &Value) -> Result<Kind, Wrong> {
    let word = input::text(value)?;
    if let Some((_, kind)) = KINDS.iter().find(|(name, _)| *name == word) {
        return Ok(*kind);
    }
    if word == "s3m" {
        return Err(wrong(
            "S3M has no way to write a file, only batch jobs that its own pages call unfit for production",
            r#"use kind = "globus-compute" or "ssh" for this site"#,
        ));
    }
    let names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
    Err(match input::nearest(&word, &names) {
        Some(near) => wrong(format!("{word:?} is not a kind of site"), format!("did you mean {near:?}?")),
        None => wrong(format!("{word:?} is not a kind of site"), format!("use one of {}", names.join(", "))),
    })
}

/// Which credentials go there; there is no default, since it would send tokens where nobody meant them to go.
fn rules(section: &mut Section<'_>) -> Option<Rules> {
    let services = section.require("services", r#"name the services whose tokens go there, or "*" for all"#, services);
    let users = section.take("users", names(|text| UserName::parse(text).is_ok())).unwrap_or_default();
    let groups = section.take("groups", names(|text| UserName::parse(text).is_ok())).unwrap_or_default();
    let usable = !section.took_wrongly("users") && !section.took_wrongly("groups");
    services.filter(|_| usable).map(|services| Rules { services, users, groups })
}

fn services(value: &Value) -> Result<Vec<String>, Wrong> {
    let list = names(|text| text == "*" || Service::parse(text).is_ok())(value)?;
    if list.len() > 1 && list.iter().any(|name| name == "*") {
        return Err(wrong(r#"names "*" beside others"#, r#"write "*" alone, or name each service"#));
    }
    Ok(list)
}

fn names(good: fn(&str) -> bool) -> impl FnOnce(&Value) -> Result<Vec<String>, Wrong> {
    move |value| {
        let list = input::texts(value)?;
        if list.is_empty() {
            return Err(wrong("is empty", "name at least one, or remove the key"));
        }
        match list.iter().find(|text| !good(text)) {
            Some(bad) => Err(wrong(format!("{bad:?} is not a name"), "use letters, digits and - + = _ . only")),
            None => Ok(list),
        }
    }
}

/// `targets = { HANDLE = ["ce1.example.org:443", …] }`
fn targets(value: &Value) -> Result<BTreeMap<String, Vec<String>>, Wrong> {
    const FORM: &str = r#"write it as { HANDLE = ["ce1.example.org:443"] }"#;
    let Data::Table(table) = &value.data else {
        return Err(wrong(format!("is {}, not a table", value.data.what()), FORM));
    };
    let mut targets = BTreeMap::new();
    for (handle, value) in table {
        Handle::parse(handle).map_err(|e| wrong(e.to_string(), FORM))?;
        let list = input::texts(value)?;
        if list.is_empty() {
            return Err(wrong(format!("{handle} has no target"), FORM));
        }
        targets.insert(handle.clone(), list);
    }
    Ok(targets)
}

fn file_name(value: &Value) -> Result<FileName, Wrong> {
    FileName::parse(&input::text(value)?).map_err(|what| {
        wrong(what, r#"use plain characters and {user} {service} {handle} {base} {target} {target_md5}, as "{base}""#)
    })
}

fn mode(value: &Value) -> Result<u32, Wrong> {
    let text = input::text(value)?;
    let mode =
        u32::from_str_radix(&text, 8).ok().filter(|mode| text.len() <= 4 && mode & !0o640 == 0 && mode & 0o400 != 0);
    mode.ok_or_else(|| wrong("is not a mode for a token", r#"use "0600", "0400", "0640" or "0440""#))
}

fn sealing(section: &mut Section<'_>, secrets: Secrets) -> Option<Sealing> {
    let age = Duration::from_secs(86_400);
    let max_age = section.take("max_age", input::duration(Duration::from_secs(60), 14 * age)).unwrap_or(age);
    let keys = section.take("key_files", |value| {
        let paths = input::texts(value)?;
        if paths.is_empty() {
            return Err(wrong("is empty", "name the current key first, then former ones"));
        }
        let keys = paths.iter().map(|path| key_file(value, path, secrets)).collect::<Result<Vec<_>, _>>()?;
        Ok(keys.into_iter().flatten().collect())
    })?;
    Some(Sealing { keys, max_age })
}

fn key_file(value: &Value, path: &str, secrets: Secrets) -> Result<Option<KeyText>, Wrong> {
    let path = input::path(&Value { origin: value.origin.clone(), data: Data::Text(path.to_owned()) })?;
    if secrets == Secrets::LeaveAlone {
        return Ok(None);
    }
    let text = secret_file::read(&path)?;
    let not_a_key =
        || wrong(format!("{} holds no Fernet key", path.display()), "make one with `evercred keygen`".to_owned());
    let key = KeyText::parse(text.trim()).map_err(|_| not_a_key())?;
    crate::spool::Seal::from_key(key.expose()).ok_or_else(not_a_key)?;
    Ok(Some(key))
}

fn needs_keys(section: &mut Section<'_>, given: bool) {
    if !given && !section.took_wrongly("key_files") {
        section.complain(
            "key_files",
            "is missing: what goes through others' services must be sealed",
            "make a key with `evercred keygen`, and put it at the site as well",
        );
    }
}

pub(super) fn directory(section: &mut Section<'_>) -> Option<String> {
    section.require("directory", "set it to the directory for the tokens there", remote_directory)
}

/// An absolute path, in which `{user}` and the like may stand for whole or partial names.
pub(super) fn remote_directory(value: &Value) -> Result<String, Wrong> {
    let text = input::text(value)?;
    let plain = text.starts_with('/') && !text.split('/').any(|part| part == ".." || part == ".");
    if !plain || FileName::parse_path(&text).is_err() {
        return Err(wrong("is not an absolute path", "begin it with /, without . or .. in it"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn command(value: &Value) -> Result<Vec<String>, Wrong> {
    let words = input::texts(value)?;
    match words.first() {
        Some(program) if program.starts_with('/') => Ok(words),
        _ => Err(wrong("does not begin with an absolute path", r#"write it as ["/absolute/program", "argument"]"#)),
    }
}

/// A host, account or name that becomes an argument: it must not look like an option.
pub(super) fn plain(value: &Value) -> Result<String, Wrong> {
    let text = input::text(value)?;
    let good = !text.starts_with('-') && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:@%+".contains(&b));
    if good {
        Ok(text)
    } else {
        Err(wrong(format!("{text:?} is not a plain name"), "use letters, digits and - _ . only"))
    }
}

/// What stands behind the @ of a user.
fn domain(value: &Value) -> Result<String, Wrong> {
    let text = plain(value)?;
    if text.contains('@') { Err(wrong("holds an @", "write the domain alone")) } else { Ok(text) }
}

fn ssh(section: &mut Section<'_>, sealed: bool) -> Option<Ssh> {
    let host = section.require("host", "set it to the host, as you would say it to ssh", plain);
    let ways = &[("sftp", SshWay::Sftp), ("receive", SshWay::Receive)];
    let way = section.take("way", input::choice(ways)).unwrap_or(SshWay::Sftp);
    if way == SshWay::Receive {
        needs_keys(section, sealed);
    }
    let directory = directory(section);
    let user = section.take("user", plain);
    let port = section.take("port", input::number(1..=65535)).and_then(|port| u16::try_from(port).ok());
    let ssh_config = section.take("ssh_config", input::path);
    let program = section.take("ssh_program", input::path).unwrap_or_else(|| PathBuf::from("/usr/bin/ssh"));
    let ccache = section.take("krb5_ccache", input::text);
    Some(Ssh { host: host?, user, port, ssh_config, program, ccache, way, directory: directory? })
}

fn globus(section: &mut Section<'_>, secrets: Secrets) -> Option<GlobusCompute> {
    let directory = directory(section);
    let endpoint = section.require("endpoint_id", "set it to the UUID of the site's endpoint", uuid);
    let client_id = section.require("client_id", "set it to the Globus client's UUID", uuid);
    let secret = section.require("client_secret_file", "name the file of mode 0600 that holds it", |value| {
        unless(secrets, value, super::provider::client_secret)
    });
    let keys_there = section.require("remote_key_files", "name the key files at the site, as paths there", |value| {
        let list = input::texts(value)?;
        if list.iter().all(|path| path.starts_with('/')) && !list.is_empty() {
            return Ok(list);
        }
        Err(wrong("holds no absolute path", r#"write it as ["/absolute/path"]"#))
    });
    let api = section.take("api", input::url).unwrap_or_else(|| "https://compute.api.globus.org".into());
    let auth = section.take("auth", input::url).unwrap_or_else(|| "https://auth.globus.org".into());
    let function = section.take("function", uuid);
    let legacy = section.take("legacy_endpoint", boolean).unwrap_or(false);
    Some(GlobusCompute {
        endpoint: endpoint?,
        client_id: client_id?,
        client_secret: secret?,
        directory: directory?,
        keys_there: keys_there?,
        api,
        auth,
        function,
        legacy,
    })
}

fn credd(section: &mut Section<'_>) -> Option<Credd> {
    let host = section.require("host", "set it to the name of the schedd's host or its credd", plain);
    let advice =
        "set it to UID_DOMAIN of that credd: its users are USER@UID_DOMAIN (condor_config_val UID_DOMAIN, there)";
    let user_domain = section.require("user_domain", advice, domain);
    let program = section.take("condor_store_cred", input::path).unwrap_or_else(store_cred);
    let condor_config = section.take("condor_config", input::path);
    Some(Credd { host: host?, user_domain: user_domain?, program, condor_config })
}

/// Where packages put it: in one of these.
fn store_cred() -> PathBuf {
    let places = ["/usr/sbin", "/usr/bin"].map(|place| PathBuf::from(place).join("condor_store_cred"));
    let [usual, _] = &places;
    places.iter().find(|path| path.exists()).unwrap_or(usual).clone()
}

fn kubernetes(section: &mut Section<'_>) -> Kubernetes {
    let kubeconfig = section.take("kubeconfig", input::path);
    let context = section.take("context", input::text);
    let namespace = section.take("namespace", kubernetes_name);
    let secret_name = section.take("secret_name", kubernetes_name).unwrap_or_else(|| "evercred-{user}".to_owned());
    Kubernetes { kubeconfig, context, namespace, secret_name }
}

/// The name of an object, in which `{user}` and the like may stand.
fn kubernetes_name(value: &Value) -> Result<String, Wrong> {
    const FORM: &str = "use lower-case letters, digits and -, and {user} {service} {handle} {base}";
    let text = input::text(value)?;
    let template = FileName::parse(&text).map_err(|what| wrong(what, FORM))?;
    let mut plain = text.clone();
    for word in ["{user}", "{service}", "{handle}", "{base}"] {
        plain = plain.replace(word, "x");
    }
    let good = plain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
    if good && !plain.is_empty() && !template.uses(Placeholder::Target) {
        return Ok(text);
    }
    Err(wrong(format!("{text:?} is no name of an object there"), FORM))
}

fn uuid(value: &Value) -> Result<String, Wrong> {
    let text = input::text(value)?.to_ascii_lowercase();
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    if lengths == [8, 4, 4, 4, 12] && text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit()) {
        return Ok(text);
    }
    Err(wrong("is not a UUID", r#"write it like "5e1f9ad2-4f0c-4a8e-9d3b-0c7a1b2e3f40""#))
}

fn boolean(value: &Value) -> Result<bool, Wrong> {
    match &value.data {
        Data::Boolean(yes) => Ok(*yes),
        other => Err(wrong(format!("is {}, not true or false", other.what()), "write true or false without quotes")),
    }
}

/// The secret in the file, or nothing where secrets are left alone.
pub(super) fn unless<T>(
    secrets: Secrets,
    value: &Value,
    read: impl FnOnce(&Value) -> Result<T, Wrong>,
) -> Result<Option<T>, Wrong> {
    match secrets {
        Secrets::Read => read(value).map(Some),
        Secrets::LeaveAlone => input::path(value).map(|_| None),
    }
}
