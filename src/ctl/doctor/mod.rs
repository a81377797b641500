//! `evercred doctor`: probes the live installation and reports each check as ok, warning or failed, with what to do.
//!
//! Order: configuration, credential directory, running credmon, HTCondor, tokens in the directory, sites, issuers. Facts are
//! gathered first and judged by pure functions. Issuers are asked by a courier of our own (its sandbox
//! and uid), so that this process, which may be root, reads nothing from the network. It never prints a secret and
//! changes nothing: the request that tests the client secret carries a refresh token that does not exist.

mod classification;
mod directory;
mod encryption;
mod finding;
mod htcondor;
mod issuers;
mod process;
mod program;
mod sites;
mod tokens;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use classification::Service;
pub use finding::{Finding, Verdict};
use htcondor::Ours;

use crate::{
    cli,
    config::{
        self, Sources,
        settings::{Provider, ProviderKind},
    },
    ctl::show,
    error::exit,
};

/// `evercred doctor`: 0 if nothing failed, 1 if something did.
#[must_use]
pub fn run(args: cli::Doctor) -> ExitCode {
    let findings = examine(&Sources::of_user(args.config));
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Failed);
    let text = if args.json {
        finding::json(&findings)
    } else {
        show::fold(&finding::text(&findings), show::width_of_stdout(), finding::INDENT)
    };
    // Nobody is left to tell if standard output is closed.
    io::stdout().lock().write_all(text.as_bytes()).ok();
    ExitCode::from(if failed { exit::FAILED } else { exit::OK })
}

fn examine(sources: &Sources) -> Vec<Finding> {
    let mut findings = Vec::new();
    let settings = match config::load(sources) {
        Ok(settings) => settings,
        Err(problems) => {
            let advice = "correct it; the checks that need the configuration were left out";
            findings.extend(
                problems.iter().map(|p| Finding::failed("Configuration", "file", p.to_string()).advise(advice)),
            );
            let none = Ours { services: &[], directory: None, keeper: None, shared: false, runs: false };
            findings.extend(htcondor::examine(&none));
            return findings;
        }
    };
    let services: Vec<&str> = settings.providers.iter().flat_map(|p| p.services.iter().map(String::as_str)).collect();
    let what = format!("{} providers for the services {}", settings.providers.len(), services.join(", "));
    findings.push(Finding::ok("Configuration", "file", what));
    let directory = &settings.daemon.credential_directory;
    findings.extend(directory::examine(directory));
    findings.extend(directory::room_besides(&settings));
    let shared = settings.daemon.share_directory;
    findings.extend(if shared { process::examine_beside(directory) } else { process::examine(directory) });
    let by_page = |provider: &Provider| {
        let of_oauth2 = matches!(provider.kind, ProviderKind::OAuth2(_)) && provider.accounts().is_none();
        settings.daemon.web_approval.is_some() && of_oauth2
    };
    let services: Vec<Service<'_>> = settings
        .providers
        .iter()
        .flat_map(|p| {
            p.services.iter().map(move |name| Service { name, by_page: by_page(p), unasked: p.accounts().is_some() })
        })
        .collect();
    findings.extend(htcondor::examine(&Ours {
        services: &services,
        directory: Some(directory),
        keeper: process::uid(directory, shared),
        shared,
        runs: process::is_ours(directory),
    }));
    findings.extend(tokens::examine(&settings, htcondor::asks_every(settings.daemon.refresh)));
    findings.extend(sites::examine(&settings, &config::status_socket(sources)));
    findings.extend(issuers::examine(&settings));
    findings
}
