//! The issuers, as a courier of our own sees them: names, TLS, clock, discovery, client, scopes.

use std::{
    os::unix::fs::MetadataExt,
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use super::Finding;
use crate::{
    config::settings::{Outward, Provider, Settings},
    courier::{frame::ToCourier, probe::Facts},
    error::{Class, Kind},
    keeper,
    keeper::{driver::Input, link::Link},
};

/// How long all probes together may take, beyond the slowest provider's timeout.
const PATIENCE: Duration = Duration::from_secs(40);
/// Beyond this tokens are judged wrongly.
const SKEW_FAILS: i64 = 300;
const SKEW_WARNS: i64 = 10;

pub(super) fn examine(settings: &Settings) -> Vec<Finding> {
    let (inputs, queue) = channel();
    let link = match keeper::courier(settings, Outward::default(), &["credmon", "--courier"], 1, &inputs) {
        Ok(link) => link,
        Err(report) => {
            return vec![Finding::failed("Network process", "courier", report.to_string().trim().replace('\n', ". "))];
        }
    };
    // Now only the link's thread can end the queue.
    drop(inputs);
    match probe_all(&link, &queue, settings) {
        Ok((sandbox, seen)) => {
            let mut findings =
                vec![Finding::ok("Network process", "courier", format!("it starts, confined by {sandbox}"))];
            for (provider, facts) in settings.providers.iter().zip(seen) {
                findings.extend(closed_ca_file(provider));
                match facts {
                    Some(facts) => findings.extend(judge(provider, &facts)),
                    None => findings.push(
                        Finding::failed(area(provider), "issuer", "no answer in time")
                            .advise("see whether a firewall drops what this host sends"),
                    ),
                }
            }
            findings
        }
        Err(why) => vec![
            Finding::failed("Network process", "courier", why)
                .advise("without it nothing is renewed: correct what it says, then run evercred doctor again"),
        ],
    }
}

type Seen = (String, Vec<Option<Facts>>);

fn probe_all(link: &Link, queue: &Receiver<Input>, settings: &Settings) -> Result<Seen, String> {
    let slowest = settings.providers.iter().map(|p| p.timeout).max().unwrap_or_default();
    let end = Instant::now() + PATIENCE + slowest;
    let mut sandbox = String::new();
    let mut seen: Vec<Option<Facts>> = settings.providers.iter().map(|_| None).collect();
    while seen.iter().any(Option::is_none) {
        match queue.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Input::CourierUp { sandbox: told, .. }) => {
                sandbox = told;
                for provider in 0..seen.len() {
                    link.send(&ToCourier::Probe { provider }).map_err(|e| e.to_string())?;
                }
            }
            Ok(Input::Probed { provider, facts }) => {
                if let Some(place) = seen.get_mut(provider) {
                    *place = Some(*facts);
                }
            }
            Ok(Input::CourierDown { why, .. }) => return Err(format!("the network process does not stay up: {why}")),
            Ok(_) => {}
            Err(_) if sandbox.is_empty() => return Err("the network process does not get ready".into()),
            Err(_) => break,
        }
    }
    Ok((sandbox, seen))
}

fn area(provider: &Provider) -> String {
    format!("Provider {}", provider.name)
}

/// The credmon has read it; `condor_submit` and `evercred login` do as the user.
fn closed_ca_file(provider: &Provider) -> Option<Finding> {
    let path = provider.ca_file.as_ref()?.path();
    let mode = std::fs::metadata(path).ok()?.mode() & 0o7777;
    let what = || format!("users cannot read {} (mode {mode:04o}), and so cannot approve", path.display());
    let closed = || Finding::warning(area(provider), "ca_file", what()).advise(format!("chmod 644 {}", path.display()));
    (mode & 0o004 == 0).then(closed)
}

fn judge(provider: &Provider, facts: &Facts) -> Vec<Finding> {
    let area = || area(provider);
    let mut findings = Vec::new();
    match &facts.addresses {
        Ok(addresses) if !addresses.is_empty() => {
            findings.push(Finding::ok(area(), "dns", format!("{} is at {}", facts.url, addresses.join(", "))));
        }
        Ok(_) => findings.push(Finding::failed(area(), "dns", format!("{}: its host has no address", facts.url))),
        Err(why) => {
            findings.push(
                Finding::failed(area(), "dns", format!("{}: {why}", facts.url))
                    .advise("correct the URL, or this host's name service (/etc/resolv.conf)"),
            );
            return findings;
        }
    }
    match &facts.reached {
        Ok(status) => {
            let tls =
                if facts.url.starts_with("https:") { ", its certificate stands" } else { " without TLS, on this host" };
            findings.push(Finding::ok(area(), "tls", format!("it answers (HTTP {status}){tls}")));
        }
        Err((Kind::Tls, detail)) => {
            findings.push(
                Finding::failed(area(), "tls", format!("its certificate does not stand: {detail}")).advise(
                    "if it is signed by a private authority, name that in ca_file; else ask the issuer's admin",
                ),
            );
            return findings;
        }
        Err((kind, detail)) => {
            findings.push(
                Finding::failed(area(), "reachable", format!("it cannot be reached: {kind}: {detail}"))
                    .advise("see whether it is up, and whether a firewall lets this host out"),
            );
            return findings;
        }
    }
    findings.extend(facts.skew.map(|skew| clock(area(), skew)));
    match &facts.endpoint {
        Ok(endpoint) => findings.push(Finding::ok(area(), "discovery", format!("tokens come from {endpoint}"))),
        Err((_, detail)) => findings.push(
            Finding::failed(area(), "discovery", detail.clone())
                .advise("correct issuer or server, or name token_endpoint"),
        ),
    }
    findings.extend(facts.client.as_ref().map(|said| match said {
        Ok(()) => Finding::ok(area(), "client", "it gives our client a token of its own"),
        Err((kind, detail)) => client(area(), *kind, detail),
    }));
    if let Some(supported) = &facts.scopes_supported {
        findings.push(scopes(area(), &provider.scopes, supported));
    }
    findings
}

fn clock(area: String, skew: i64) -> Finding {
    let what = match skew {
        0 => "its clock and ours agree".to_owned(),
        1.. => format!("its clock is {skew} s ahead of ours"),
        _ => format!("its clock is {} s behind ours", -skew),
    };
    let advice = "one of the two clocks is wrong: see timedatectl on this host";
    match skew.abs() {
        SKEW_FAILS.. => Finding::failed(area, "clock", what).advise(advice),
        SKEW_WARNS.. => Finding::warning(area, "clock", what).advise(advice),
        _ => Finding::ok(area, "clock", what),
    }
}

fn client(area: String, kind: Kind, detail: &str) -> Finding {
    match (kind, kind.class()) {
        (_, Class::Refused) => {
            Finding::ok(area, "client", "it knows our client (and refuses a token that does not exist)")
        }
        (Kind::ClientRefused, _) => Finding::failed(area, "client", format!("it refuses our client: {detail}"))
            .advise("correct client_id, client_secret_file and client_auth; nothing is renewed until then"),
        (Kind::RequestRefused, _) => Finding::failed(area, "client", format!("it refuses what we ask for: {detail}"))
            .advise("correct scopes and audience, or have the issuer allow them to this client"),
        _ => Finding::warning(area, "client", format!("it answers a token request with {kind}: {detail}"))
            .advise("run evercred doctor again; if it stays, ask the issuer's admin"),
    }
}

fn scopes(area: String, wanted: &[String], supported: &[String]) -> Finding {
    // A path behind a scope is not listed: storage.read stands for storage.read:/any/where.
    let right = |scope: &str| scope.split_once(":/").map_or(scope, |(right, _)| right).to_owned();
    let known = |scope: &&String| supported.iter().any(|listed| right(listed) == right(scope));
    let unknown: Vec<_> = wanted.iter().filter(|scope| !known(scope)).map(String::as_str).collect();
    if unknown.is_empty() {
        return Finding::ok(area, "scopes", "it offers every scope we ask for");
    }
    Finding::warning(area, "scopes", format!("it does not list the scopes {}", unknown.join(" ")))
        .advise("renewals fail if it does not grant them: ask the issuer's admin, or take them out of `scopes`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::Verdict;

    #[test]
    fn clocks_clients_and_scopes_are_judged() {
        let area = || "P".to_owned();
        assert_eq!(clock(area(), 3).verdict, Verdict::Ok);
        assert_eq!(clock(area(), -30).verdict, Verdict::Warning);
        assert_eq!(clock(area(), 3600).verdict, Verdict::Failed);
        assert_eq!(client(area(), Kind::Revoked, "").verdict, Verdict::Ok);
        assert_eq!(client(area(), Kind::ClientRefused, "").verdict, Verdict::Failed);
        assert_eq!(client(area(), Kind::RequestRefused, "").verdict, Verdict::Failed);
        assert_eq!(client(area(), Kind::ServerError, "").verdict, Verdict::Warning);
        let words = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let supported = words(&["openid", "storage.read:/"]);
        assert_eq!(scopes(area(), &words(&["openid", "storage.read:/a"]), &supported).verdict, Verdict::Ok);
        assert_eq!(scopes(area(), &words(&["storage.modify:/"]), &supported).verdict, Verdict::Warning);
    }

    #[test]
    fn a_ca_file_that_users_cannot_read_is_told() {
        use crate::config::{self, Sources, condor::Knobs};
        use std::{fs, os::unix::fs::PermissionsExt};
        let dir = tempfile::tempdir().unwrap();
        let (file, ca_file) = (dir.path().join("c.toml"), dir.path().join("ca.pem"));
        fs::write(&ca_file, "").unwrap();
        let text = format!(
            "[provider.a]\nkind = \"mytoken\"\nserver = \"https://m.eu\"\nca_file = \"{}\"\n",
            ca_file.display()
        );
        fs::write(&file, text).unwrap();
        let sources =
            Sources { config: Some(file), credential_directory: Some(dir.path().into()), ..Sources::default() }
                .without_secrets();
        let settings = config::load_with(&sources, &Knobs::default()).unwrap();
        for (mode, told) in [(0o644, false), (0o600, true)] {
            fs::set_permissions(&ca_file, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(closed_ca_file(&settings.providers[0]).is_some(), told);
        }
    }
}
