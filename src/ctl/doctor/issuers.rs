//! The issuers, as a courier of our own sees them: names, TLS, clock, discovery, client, scopes.

use std::{
    os::unix::fs::MetadataExt,
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use super::Finding;
use crate::{
    config::{
        approval::obstacle,
        input::Wrong,
        settings::{Outward, Provider, ProviderKind, Settings},
    },
    courier::{frame::ToCourier, probe::Facts},
    error::{Class, Kind},
    issuer::client::{presentable, trimmed},
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
                    Some(facts) => findings.extend(judge(provider, &facts, settings.daemon.web_approval.is_some())),
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

fn judge(provider: &Provider, facts: &Facts, by_page: bool) -> Vec<Finding> {
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
    findings.extend(approval(provider, facts.providers_supported.as_deref(), by_page));
    findings
}

/// Whether users can approve there; `behind`: the issuers that a mytoken server lists.
fn approval(provider: &Provider, behind: Option<&[String]>, by_page: bool) -> Option<Finding> {
    if !matches!(provider.kind, ProviderKind::Mytoken { .. }) {
        let warning = |Wrong { what, advice, .. }| Finding::warning(area(provider), "approval", what).advise(advice);
        return obstacle(provider, by_page).map(warning);
    }
    // A server that does not answer has its finding.
    let behind = behind?;
    let listed = presentable(&behind.join(" "));
    Some(match (&provider.issuer, behind) {
        (None, [only]) => {
            let only = presentable(only);
            Finding::ok(area(provider), "approval", format!("users approve at {only}, the server's only provider"))
        }
        (None, _) => {
            let what = format!("users cannot approve: `issuer` is not set, and the server's providers are {listed}");
            Finding::failed(area(provider), "approval", what).advise("set `issuer` to the one that jobs need")
        }
        (Some(issuer), _) if behind.iter().any(|one| trimmed(one) == trimmed(issuer)) => {
            Finding::ok(area(provider), "approval", format!("users approve at {issuer}"))
        }
        (Some(issuer), _) => {
            let what = format!("users cannot approve: {issuer} is none of the server's providers: {listed}");
            Finding::failed(area(provider), "approval", what).advise("correct `issuer`")
        }
    })
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
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::{
        config::{self, Sources, condor::Knobs},
        ctl::doctor::Verdict,
    };

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

    fn provider(text: &str) -> Provider {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        fs::write(&file, format!("[daemon]\ncredential_directory = \"/c\"\n[provider.p]\n{text}\n")).unwrap();
        let sources = Sources { config: Some(file), ..Sources::default() }.without_secrets();
        config::load_with(&sources, &Knobs::default()).unwrap().providers.remove(0)
    }

    #[test]
    fn it_is_told_where_users_approve_and_why_they_cannot() {
        let found = |text: &str, behind: &[&str], by_page: bool| {
            let behind: Vec<_> = behind.iter().map(ToString::to_string).collect();
            approval(&provider(text), Some(&behind), by_page).map(|finding| (finding.verdict, finding.what))
        };
        let bare = "kind = \"mytoken\"\nserver = \"https://m.eu\"";
        let with = format!("{bare}\nissuer = \"https://a.eu/\"");
        let (a, b) = ("https://a.eu", "https://b.eu");
        let cases: [(&str, &[&str], Verdict, &str); 5] = [
            (bare, &[a], Verdict::Ok, "the server's only provider"),
            (bare, &[a, b], Verdict::Failed, "the server's providers are https://a.eu https://b.eu"),
            (bare, &[], Verdict::Failed, "`issuer` is not set"),
            (&with, &[b, a], Verdict::Ok, "users approve at https://a.eu/"),
            (&with, &[b], Verdict::Failed, "https://a.eu/ is none of the server's providers: https://b.eu"),
        ];
        for (text, behind, verdict, words) in cases {
            let (found, what) = found(text, behind, false).unwrap();
            assert!(found == verdict && what.contains(words), "{text}: {what}");
        }
        let secret = "kind = \"oauth2\"\nissuer = \"https://a.eu\"\nclient_id = \"x\"\nclient_secret_file = \"/s\"";
        assert_eq!(found(secret, &[], false).unwrap().0, Verdict::Warning);
        assert_eq!(found(secret, &[], true), None);
    }

    #[test]
    fn a_ca_file_that_users_cannot_read_is_told() {
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
