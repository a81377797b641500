//! Configuration: fragment (one file) → input (merged, with the origin of each value) → settings (typed, valid).
//!
//! `/etc/evercred/evercred.toml`, then `/etc/evercred/conf.d/*.toml` in the order of their names; a key given twice
//! keeps the later value. `--config FILE` is read instead of both. All problems are reported at once.

mod accounts;
pub mod approval;
pub mod ca_file;
pub mod condor;
pub mod fragment;
pub mod input;
pub mod notices;
mod provider;
pub mod reference;
pub(crate) mod secret_file;
pub mod settings;
mod site;
mod site_facility;
pub mod site_settings;
mod stock;
pub mod tls_files;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use self::{
    ca_file::CaFile,
    condor::{Knobs, NoAnswer},
    fragment::{Data, Origin, Table, Value},
    input::Section,
    settings::{Daemon, LogFormat, Provider, Settings, Storer},
    site_settings::Site,
    stock::Stock,
};
use crate::{
    core::id::Service,
    error::{Report, exit},
};

/// The main file.
const MAIN: &str = "/etc/evercred/evercred.toml";
/// Further files.
const FURTHER: &str = "/etc/evercred/conf.d";
/// HTCondor's own storer, for Vault and Pelican.
const STOCK_STORER: &str = "/usr/bin/condor_credential_storer";
/// What we remember across restarts.
const STATE: &str = "/var/lib/evercred";
/// What all `ca_file` together may hold: they are handed over in one frame (64 MiB).
const MAX_CERTIFICATES: usize = 32 << 20;
/// HTCondor's own default of a daemon's log.
const LOG_LIMIT: u64 = 10 << 20;

/// Where configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--config`: this file alone.
    pub config: Option<PathBuf>,
    /// `--cred-dir`: wins over the files and over HTCondor.
    pub credential_directory: Option<PathBuf>,
    /// Whether secret files are read. Users may not read them, and need none.
    pub secrets: Secrets,
    /// HTCondor did not say which file it is.
    pub unknown: Option<NoAnswer>,
}

/// Whether secret files are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Secrets {
    /// They are, and must be readable.
    #[default]
    Read,
    /// Only their names are taken.
    LeaveAlone,
}

impl Sources {
    /// For programs that a user runs: without `--config`, `EVERCRED_CONFIG` of the environment; else the usual files if
    /// they are there; else the file that HTCondor's knob of that name tells (asking HTCondor costs a process).
    #[must_use]
    pub fn of_user(config: Option<PathBuf>) -> Self {
        let config =
            config.or_else(|| std::env::var_os("EVERCRED_CONFIG").filter(|v| !v.is_empty()).map(PathBuf::from));
        if config.is_some() || Path::new(MAIN).exists() {
            return Self { config, ..Self::default() };
        }
        match condor::ask() {
            Ok(knobs) => Self { config: knobs.config, ..Self::default() },
            Err(no_answer) => Self { unknown: Some(no_answer), ..Self::default() },
        }
    }

    /// The same without reading secret files.
    #[must_use]
    pub fn without_secrets(self) -> Self {
        Self { secrets: Secrets::LeaveAlone, ..self }
    }
}

/// Where the status socket is, as far as the files tell; whatever else is wrong with them is not asked.
#[must_use]
pub fn status_socket(sources: &Sources) -> PathBuf {
    let files = match &sources.config {
        Some(file) => vec![file.clone()],
        None => files(Path::new(MAIN), Path::new(FURTHER)).unwrap_or_default(),
    };
    let told = |file: &PathBuf| match fragment::read(file, 0).ok()?.remove("daemon")?.data {
        Data::Table(mut daemon) => input::path(&daemon.remove("status_socket")?).ok(),
        _ => None,
    };
    files.iter().filter_map(told).next_back().unwrap_or_else(|| settings::STATUS_SOCKET.into())
}

/// One thing that is wrong with the configuration: `file:line: key: what; what to do`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where; `None`: in no file.
    pub origin: Option<Origin>,
    /// Full name of the key, `provider.wlcg.issuer`; may be empty.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub advice: String,
    /// It may be over by itself.
    pub passing: bool,
}

impl Problem {
    /// A problem.
    pub fn new(
        origin: Option<Origin>,
        key: impl Into<String>,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { origin, key: key.into(), what: what.into(), advice: advice.into(), passing: false }
    }

    /// HTCondor does not say what it has.
    #[must_use]
    pub fn of_htcondor(origin: Option<Origin>, key: impl Into<String>, no_answer: &NoAnswer) -> Self {
        Self { passing: true, ..Self::new(origin, key, no_answer.to_string(), no_answer.advice()) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}; {}", self.what, self.advice)
    }
}

/// All problems as one report with exit code 78; or 1, if they may be over by themselves.
#[must_use]
pub fn report(problems: &[Problem]) -> Report {
    if problems.iter().all(|problem| problem.passing) {
        return Report::new("the configuration is not known", exit::FAILED)
            .with_details(problems.iter().map(Problem::to_string));
    }
    let count = match problems.len() {
        1 => "1 problem in the configuration".to_owned(),
        n => format!("{n} problems in the configuration"),
    };
    Report::new(count, exit::CONFIG)
        .with_details(problems.iter().map(Problem::to_string))
        .advise("correct the lines above, then run `evercred check`")
}

/// Read the configuration, with HTCondor's knobs as defaults.
///
/// # Errors
/// All problems, in the order of files and lines.
pub fn load(sources: &Sources) -> Result<Settings, Vec<Problem>> {
    load_told(sources, condor::ask())
}

/// As [`load`], with what HTCondor told, if it did.
fn load_told(sources: &Sources, told: Result<Knobs, NoAnswer>) -> Result<Settings, Vec<Problem>> {
    let knobs = told.map_err(|no_answer| vec![Problem::of_htcondor(None, "", &no_answer)])?;
    load_with(sources, &knobs)
}

/// As [`load`], with HTCondor's knobs as given.
///
/// # Errors
/// All problems, in the order of files and lines.
pub fn load_with(sources: &Sources, knobs: &Knobs) -> Result<Settings, Vec<Problem>> {
    if let Some(no_answer) = &sources.unknown {
        return Err(vec![Problem::of_htcondor(None, "EVERCRED_CONFIG", no_answer)]);
    }
    let files = match &sources.config {
        Some(file) => vec![file.clone()],
        None => files(Path::new(MAIN), Path::new(FURTHER))?,
    };
    load_files(&files, sources, knobs)
}

/// The main file and the further ones that are there; the main file's name if there are none.
fn files(main: &Path, further: &Path) -> Result<Vec<PathBuf>, Vec<Problem>> {
    let unreadable = |e: &std::io::Error| {
        let origin = Origin { file: further.into(), rank: 0, line: 0 };
        let what = format!("cannot be listed: {}", fragment::reason(e));
        vec![Problem::new(Some(origin), "", what, "make the directory readable, or remove it")]
    };
    let mut files = Vec::new();
    match std::fs::read_dir(further) {
        Ok(entries) => {
            for entry in entries {
                let path = entry.map_err(|e| unreadable(&e))?.path();
                let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
                if path.extension().is_some_and(|e| e == "toml") && !hidden {
                    files.push(path);
                }
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(unreadable(&e)),
    }
    files.sort();
    if files.is_empty() || main.exists() {
        files.insert(0, main.to_owned());
    }
    Ok(files)
}

fn load_files(files: &[PathBuf], sources: &Sources, knobs: &Knobs) -> Result<Settings, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut merged = Table::new();
    for (rank, file) in files.iter().enumerate() {
        match fragment::read(file, rank) {
            Ok(table) => input::merge(&mut merged, table),
            Err(found) => problems.extend(found),
        }
    }
    // What is missing from a file that did not parse would only be reported falsely.
    if !problems.is_empty() {
        return Err(problems);
    }
    let main = files.first().map_or_else(|| PathBuf::from(MAIN), Clone::clone);
    let origin = Origin { file: main.into(), rank: 0, line: 0 };
    let settings = settings(merged, origin, sources, knobs, &mut problems);
    match settings {
        Some(settings) if problems.is_empty() => Ok(settings),
        _ => {
            problems.sort_by_key(|p| p.origin.as_ref().map(|o| (o.rank, o.line)));
            Err(problems)
        }
    }
}

fn settings(
    merged: Table,
    origin: Origin,
    sources: &Sources,
    knobs: &Knobs,
    problems: &mut Vec<Problem>,
) -> Option<Settings> {
    let mut top = Section::new("", origin.clone(), merged, problems);
    let daemon = top.take_raw("daemon").unwrap_or(Value { origin, data: Data::Table(Table::new()) });
    let providers = top.take_raw("provider");
    let storer = top.take_raw("storer");
    let notices = top.take_raw("notices");
    let sites = top.take_raw("site");
    if providers.is_none() {
        top.complain("provider", "no provider is configured", "add a table [provider.NAME] for each service");
    }
    top.finish();
    let stock = Stock::new(knobs.program.as_deref());
    let daemon = Section::open("daemon", daemon, problems).and_then(|s| read_daemon(s, sources, knobs, &stock));
    let storer = read_storer(storer.and_then(|value| Section::open("storer", value, problems)));
    let providers = read_providers(providers?, sources.secrets, &stock, problems);
    let told = notices.is_some();
    let notices = notices
        .and_then(|value| Section::open("notices", value, problems))
        .and_then(|section| notices::read(section, sources.secrets));
    (!told || notices.is_some()).then_some(())?;
    let sites = sites.map(|sites| read_sites(sites, sources.secrets, problems)).unwrap_or_default();
    let files = providers.iter().filter_map(|provider| provider.ca_file.as_ref());
    let files = files.chain(sites.iter().filter_map(|site| site.ca_file.as_ref()));
    if files.map(CaFile::size).sum::<usize>() > MAX_CERTIFICATES {
        let advice = "name files of the few authorities that are needed, not of all that the system knows";
        problems.push(Problem::new(None, "ca_file", "all of them together are larger than 32 MiB", advice));
    }
    Some(Settings { daemon: daemon?, providers, sites, storer, notices })
}

fn read_storer(section: Option<Section<'_>>) -> Storer {
    let mut storer = Storer { stock: PathBuf::from(STOCK_STORER), use_wait: Duration::from_secs(60) };
    if let Some(mut section) = section {
        storer.stock = section.take("stock_storer", input::path).unwrap_or(storer.stock);
        let limits = input::duration(Duration::from_secs(1), Duration::from_secs(3600));
        storer.use_wait = section.take("use_wait", limits).unwrap_or(storer.use_wait);
        section.finish();
    }
    storer
}

fn read_daemon(mut section: Section<'_>, sources: &Sources, knobs: &Knobs, stock: &Stock<'_>) -> Option<Daemon> {
    let configured = section.has("credential_directory");
    let directory = section.take("credential_directory", input::path);
    let directory = sources.credential_directory.clone().or(directory);
    let directory = if configured { directory } else { directory.or_else(|| knobs.credential_directory.clone()) };
    if directory.is_none() && !configured {
        section.complain(
            "credential_directory",
            "is given nowhere, and HTCondor does not name one either",
            "set it here, or SEC_CREDENTIAL_DIRECTORY_OAUTH in HTCondor (`use feature: OAUTH`), or pass --cred-dir",
        );
    }
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let daemon = Daemon {
        credential_directory: directory.clone().unwrap_or_default(),
        share_directory: section.take("share_directory", input::boolean).unwrap_or(false),
        courier_user: section.take("courier_user", input::text).unwrap_or_else(|| "evercred".to_owned()),
        metrics_listen: section.take("metrics_listen", input::listen),
        status_page: section.take("status_page", input::boolean).unwrap_or(false),
        status_socket: section.take("status_socket", input::path),
        replicate_user: section.take("replicate_user", input::text).unwrap_or_else(|| "evercred-replicate".to_owned()),
        full_scan: section
            .take("full_scan", input::duration(Duration::from_secs(1), minutes(24 * 60)))
            .unwrap_or(minutes(10)),
        refresh: knobs.refresh.unwrap_or(minutes(5)),
        log: section.take("log", log_target).or_else(|| knobs.log.as_ref().map(|p| p.display().to_string())),
        log_format: section
            .take("log_format", input::choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)]))
            .unwrap_or_default(),
        log_limit: knobs.log_limit.unwrap_or(LOG_LIMIT),
        log_keep: knobs.log_keep.unwrap_or(1),
        otlp: section.take("otlp", otlp),
        audit_log: section.take("audit_log", input::path),
        web_approval: stock::web_approval(&mut section, sources.secrets, stock),
        state_directory: section.take("state_directory", input::path).unwrap_or_else(|| STATE.into()),
    };
    if daemon.status_page && daemon.metrics_listen.is_none() && !section.took_wrongly("metrics_listen") {
        section.complain("status_page", "is set, and there is no listener", "set `metrics_listen`, too");
    }
    if daemon.replicate_user == daemon.courier_user {
        let what = "is `courier_user`, too, and processes of one user could read each other's memory";
        section.complain(
            "replicate_user",
            what,
            "let each have a user of its own (useradd --system evercred-replicate)",
        );
    }
    section.finish();
    directory.map(|_| daemon)
}

fn read_sites(value: Value, secrets: Secrets, problems: &mut Vec<Problem>) -> Vec<Site> {
    let Data::Table(table) = value.data else {
        let what = format!("is {}, not a table", value.data.what());
        problems.push(Problem::new(Some(value.origin), "site", what, "write it as [site.NAME]"));
        return Vec::new();
    };
    let mut sites = Vec::new();
    for (name, value) in table {
        let path = format!("site.{name}");
        if Service::parse(&name).is_err() {
            let advice = "use letters, digits and - + = _ . only";
            problems.push(Problem::new(Some(value.origin), path, "is no name for a site", advice));
            continue;
        }
        if let Some(section) = Section::open(path, value, problems) {
            sites.extend(site::read(&name, section, secrets));
        }
    }
    sites
}

/// An OTLP receiver's URL, if this program was built with traces.
fn otlp(value: &Value) -> Result<String, input::Wrong> {
    if cfg!(feature = "otlp") {
        return input::url(value);
    }
    Err(input::wrong("is not in this build", "remove it, or build with the feature `otlp` (the packages have it)"))
}

fn log_target(value: &Value) -> Result<String, input::Wrong> {
    let target = input::text(value)?;
    if target.starts_with('/') || ["syslog", "journal", "stderr"].contains(&target.as_str()) {
        return Ok(target);
    }
    Err(input::wrong("is no place for a log", r#"use a path that begins with /, "syslog", "journal" or "stderr""#))
}

fn read_providers(value: Value, secrets: Secrets, stock: &Stock<'_>, problems: &mut Vec<Problem>) -> Vec<Provider> {
    let table = match value.data {
        Data::Table(table) if !table.is_empty() => table,
        Data::Table(_) => {
            let advice = "add a table [provider.NAME] for each service";
            problems.push(Problem::new(Some(value.origin), "provider", "no provider is configured", advice));
            return Vec::new();
        }
        data => {
            let what = format!("is {}, not a table", data.what());
            problems.push(Problem::new(Some(value.origin), "provider", what, "write it as [provider.NAME]"));
            return Vec::new();
        }
    };
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    let mut providers = Vec::new();
    for (name, value) in table {
        let origin = value.origin.clone();
        let path = format!("provider.{name}");
        let Some(section) = Section::open(path.clone(), value, problems) else { continue };
        let Some(provider) = provider::read(&name, section, secrets, stock) else { continue };
        for service in &provider.services {
            if let Some(owner) = owners.insert(service.clone(), name.clone()) {
                let what = format!("the service {service} belongs to provider.{owner} already");
                let advice = "let exactly one provider own each service, by `services`";
                problems.push(Problem::new(Some(origin.clone()), path.clone(), what, advice));
            }
        }
        providers.push(provider);
    }
    providers
}

#[cfg(test)]
pub(crate) mod tests;
