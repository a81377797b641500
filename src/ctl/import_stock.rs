//! `evercred import stock`: from HTCondor's own OAuth credmon. Its users' files stay where they are and serve as they
//! are; what is missing is a provider for each service, which this writes: the client itself stays in HTCondor's knobs
//! (`kind = "htcondor"`).
//!
//! Everything is looked at first: the knobs as credd sees them, and each `.meta` that the old web page wrote, for a
//! token is renewed only if it was approved for the client and token endpoint that are configured now. A dry run unless
//! `--write FILE`, which never replaces a file; nothing is ever deleted.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    process::ExitCode,
};

use nix::unistd::{User, geteuid};

use crate::{
    cli,
    config::condor::{self, NoAnswer, ServiceKnobs, WebKnobs},
    core::id::Service,
    error::{Report, exit},
    spool::{self, Meta, Owners, StockCredential},
};

/// What becomes of one thing.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    name: String,
    taken: Result<String, String>,
}

/// Look at everything, tell, and with `--write` write.
#[must_use]
pub fn run(args: &cli::ImportStock) -> ExitCode {
    match import(args) {
        Ok(()) => ExitCode::from(exit::OK),
        Err(report) => report.print("evercred"),
    }
}

fn import(args: &cli::ImportStock) -> Result<(), Report> {
    if !geteuid().is_root() {
        let what = "only root can read the credential directory";
        return Err(Report::new(what, exit::FAILED).advise("run it as root"));
    }
    let program = condor::program().ok_or_else(|| {
        Report::new("condor_config_val is not installed, so HTCondor's knobs cannot be read", exit::FAILED)
            .advise("run it on the access point")
    })?;
    let unanswered = |e: NoAnswer| Report::new(e.to_string(), exit::FAILED).advise(e.advice());
    let directory = match args.dir.clone() {
        Some(directory) => Some(directory),
        None => condor::ask_program(&program).map_err(unanswered)?.credential_directory,
    };
    let directory = directory.ok_or_else(|| {
        Report::new("HTCondor has no SEC_CREDENTIAL_DIRECTORY_OAUTH", exit::FAILED).advise("name it with --dir")
    })?;
    let condor = User::from_name("condor").ok().flatten().map(|user| user.uid.as_raw());
    let found =
        spool::stock_credentials(&directory, &Owners::usual(condor)).map_err(|e| Report::of(&e, exit::FAILED))?;
    let knobs = condor::web_knobs(&program).map_err(unanswered)?;
    let services = services(&knobs);
    let credentials = credentials(&found, &knobs, &services);
    let mut text = report("SERVICE", &services);
    text.push('\n');
    text.push_str(&report("CREDENTIAL", &credentials));
    let snippet = snippet(&knobs, &services);
    let end = match (&args.write, services.iter().any(|line| line.taken.is_ok())) {
        (_, false) => "\nNo service can be taken: nothing to write.\n".to_owned(),
        (Some(path), true) => {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map_err(|e| {
                let advice = match e.kind() {
                    io::ErrorKind::AlreadyExists => "no file is replaced: name another, or move this one away",
                    _ => "name a file in a directory that is there",
                };
                Report::new(format!("{}: {e}", path.display()), exit::FAILED).advise(advice)
            })?;
            file.write_all(snippet.as_bytes())
                .and_then(|()| file.sync_all())
                .map_err(|e| Report::new(format!("{}: {e}", path.display()), exit::FAILED).advise("make room there"))?;
            format!("\nWritten to {}. Nothing was deleted. Next: evercred check\n", path.display())
        }
        (None, true) => format!(
            "\nNothing was changed. With --write /etc/evercred/conf.d/stock.toml this would be written:\n\n{snippet}"
        ),
    };
    text.push_str(&end);
    // Nobody is left to be told if standard output is closed.
    io::stdout().lock().write_all(text.as_bytes()).ok();
    Ok(())
}

/// Every service of the knobs, and whether it can be a provider.
fn services(knobs: &WebKnobs) -> Vec<Line> {
    let own = knobs.services.iter().filter(|(_, service)| service.client_id.is_some());
    own.map(|(name, service)| Line { name: name.clone(), taken: usable(name, service) }).collect()
}

fn usable(name: &str, knobs: &ServiceKnobs) -> Result<String, String> {
    Service::parse(name).map_err(|e| e.to_string())?;
    if name.contains('_') {
        return Err("its name holds a _, which splits a service from its handle".into());
    }
    if name == "scitokens" {
        return Err("HTCondor takes the service scitokens for its own local issuer".into());
    }
    let url = |knob: &str, value: Option<&String>| -> Result<(), String> {
        let value = value.ok_or_else(|| format!("{name}_{knob} is not set"))?;
        crate::config::input::url_text(value).map(|_| ()).map_err(|wrong| format!("{name}_{knob} {}", wrong.what))
    };
    url("TOKEN_URL", knobs.token_url.as_ref())?;
    url("AUTHORIZATION_URL", knobs.authorization_url.as_ref())?;
    let secret = if knobs.client_secret_file.is_some() { "" } else { ", without a secret" };
    Ok(format!(
        "client {:?} at {}{secret}",
        knobs.client_id.as_deref().unwrap_or_default(),
        host(knobs.token_url.as_ref())
    ))
}

fn host(url: Option<&String>) -> String {
    let parsed = url.and_then(|url| url::Url::parse(url).ok());
    parsed.and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default()
}

/// Every credential with a `.meta`, and whether it is renewed from now on.
fn credentials(found: &[StockCredential], knobs: &WebKnobs, services: &[Line]) -> Vec<Line> {
    let taken: BTreeSet<String> =
        services.iter().filter(|line| line.taken.is_ok()).map(|line| line.name.to_ascii_lowercase()).collect();
    let one = |credential: &StockCredential| {
        let service = credential.id.service.as_str();
        if !taken.contains(&service.to_ascii_lowercase()) {
            return Err("its service is not taken".to_owned());
        }
        if !credential.counts {
            return Ok("was stored anew since; the .meta beside it is of no account".to_owned());
        }
        let meta = credential.meta.as_ref().ok_or("its .meta cannot be read: its user must approve again")?;
        let none = ServiceKnobs::default();
        same(meta, knobs.of(service).unwrap_or(&none))?;
        Ok("approved for this very client".to_owned())
    };
    found.iter().map(|credential| Line { name: credential.id.to_string(), taken: one(credential) }).collect()
}

fn same(meta: &Meta, knobs: &ServiceKnobs) -> Result<(), String> {
    let short = |text: &str| text.chars().take(100).collect::<String>();
    if !meta.use_refresh_token {
        return Err("it has no refresh token: its user must approve again when the token has ended".into());
    }
    if knobs.client_id.as_ref() != Some(&meta.client_id) {
        return Err(format!(
            "it was approved for the client {:?}: its user must approve again",
            short(&meta.client_id)
        ));
    }
    if knobs.token_url.as_ref() != Some(&meta.token_url) {
        return Err(format!("it was approved at {:?}: its user must approve again", short(&meta.token_url)));
    }
    Ok(())
}

fn report(heading: &str, lines: &[Line]) -> String {
    let width = lines.iter().map(|line| line.name.chars().count()).chain([heading.len()]).max().unwrap_or(0);
    let mut text = format!("{heading:width$}  WHAT BECOMES OF IT\n");
    for line in lines {
        let said = match &line.taken {
            Ok(what) => format!("taken: {what}"),
            Err(why) => format!("not taken: {why}"),
        };
        // Writing to a string does not fail.
        writeln!(text, "{:width$}  {said}", line.name).ok();
    }
    let taken = lines.iter().filter(|line| line.taken.is_ok()).count();
    writeln!(text, "{taken} taken, {} not.", lines.len() - taken).ok();
    text
}

/// What goes into `/etc/evercred/conf.d`.
fn snippet(knobs: &WebKnobs, services: &[Line]) -> String {
    let mut text = String::from(
        "# Made by `evercred import stock`: the services of HTCondor's OAuth credmon. Their clients stay in HTCondor's\n\
         # knobs (NAME_CLIENT_ID and so on), where credd reads them, too.\n",
    );
    let page = "# The page where users approve; let this host's web server pass CREDMON_WEB_PREFIX on to it (docs/migration.md).\n";
    let (mark, note) = match &knobs.prefix {
        Some(prefix) => ("", format!("# CREDMON_WEB_PREFIX is {prefix}\n")),
        None => ("# ", "# CREDMON_WEB_PREFIX is not set in HTCondor: set it, then take this into use.\n".to_owned()),
    };
    write!(text, "\n{page}{note}{mark}[daemon]\n{mark}web_approval_listen = \"unix:/run/evercred/approval.sock\"\n")
        .ok();
    for line in services.iter().filter(|line| line.taken.is_ok()) {
        write!(text, "\n[provider.{:?}]\nkind = \"htcondor\"\n", line.name).ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::{CredentialId, UserName};

    fn knobs() -> WebKnobs {
        let good = ServiceKnobs {
            client_id: Some("c1".into()),
            client_secret_file: Some("/s".into()),
            token_url: Some("https://i.example.org/token".into()),
            authorization_url: Some("https://i.example.org/auth".into()),
            return_url_suffix: Some("/return/cms".into()),
        };
        let plain = ServiceKnobs { token_url: Some("http://i.example.org/token".into()), ..good.clone() };
        let half = ServiceKnobs { authorization_url: None, client_secret_file: None, ..good.clone() };
        let nobody = ServiceKnobs { client_id: None, ..good.clone() };
        let all = [("BOX", nobody), ("cms", good.clone()), ("half", half), ("plain", plain), ("a_b", good)];
        let services = all.map(|(name, knobs)| (name.to_owned(), knobs)).into_iter().collect();
        WebKnobs { prefix: Some("https://ap.example.org".into()), services }
    }

    fn credential(base: &str, change: impl Fn(&mut Meta), counts: bool) -> StockCredential {
        let mut meta =
            Meta { client_id: "c1".into(), token_url: "https://i.example.org/token".into(), use_refresh_token: true };
        change(&mut meta);
        let id = CredentialId::from_base(UserName::parse("alice").unwrap(), base).unwrap();
        StockCredential { id, meta: Some(meta), counts }
    }

    #[test]
    fn the_report_says_of_every_service_and_credential_what_becomes_of_it_and_why() {
        let services = services(&knobs());
        let found = [
            credential("cms", |_| {}, true),
            credential("cms_eu", |meta| meta.client_id = "other".into(), true),
            credential("cms_us", |meta| meta.token_url = "https://evil/".into(), true),
            credential("cms_old", |meta| meta.client_id = "other".into(), false),
            credential("cms_no", |meta| meta.use_refresh_token = false, true),
            credential("plain", |_| {}, true),
        ];
        let text = report("SERVICE", &services) + &report("CREDENTIAL", &credentials(&found, &knobs(), &services));
        let expected = "\
SERVICE  WHAT BECOMES OF IT
a_b      not taken: its name holds a _, which splits a service from its handle
cms      taken: client \"c1\" at i.example.org
half     not taken: half_AUTHORIZATION_URL is not set
plain    not taken: plain_TOKEN_URL is http://, which would send secrets in the clear
1 taken, 3 not.
CREDENTIAL     WHAT BECOMES OF IT
alice/cms      taken: approved for this very client
alice/cms_eu   not taken: it was approved for the client \"other\": its user must approve again
alice/cms_us   not taken: it was approved at \"https://evil/\": its user must approve again
alice/cms_old  taken: was stored anew since; the .meta beside it is of no account
alice/cms_no   not taken: it has no refresh token: its user must approve again when the token has ended
alice/plain    not taken: its service is not taken
2 taken, 4 not.
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_snippet_is_a_configuration_of_one_table_for_each_service_that_is_taken() {
        let services = services(&knobs());
        let text = snippet(&knobs(), &services);
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["daemon"]["web_approval_listen"].as_str(), Some("unix:/run/evercred/approval.sock"));
        let providers = table["provider"].as_table().unwrap();
        assert_eq!(providers.keys().collect::<Vec<_>>(), ["cms"]);
        assert_eq!(providers["cms"]["kind"].as_str(), Some("htcondor"));
        let without = snippet(&WebKnobs { prefix: None, ..knobs() }, &services);
        assert!(without.parse::<toml::Table>().unwrap().get("daemon").is_none(), "{without}");
    }
}
