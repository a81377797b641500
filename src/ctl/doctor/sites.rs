//! The sites: whether the daemon replicates to them, whether they take what they get, and whether what goes there is
//! sealed, and whether our own client of a site's service lives for a while yet. Only the daemon talks with sites, with rights that doctor has not; doctor tells what it last saw.

use std::{path::Path, time::SystemTime};

use super::Finding;
use crate::{
    advice::advice,
    config::{
        settings::Settings,
        site_settings::{Site, SiteKind, SshWay},
    },
    core::{
        snapshot::{SiteStanding, Status},
        time::Timestamp,
    },
    ctl::{daemon, show},
};

pub(super) fn examine(settings: &Settings, socket: &Path) -> Vec<Finding> {
    if settings.sites.is_empty() {
        return Vec::new();
    }
    let status = daemon::status(socket);
    let mut findings = Vec::new();
    for site in &settings.sites {
        findings.push(match &status {
            Ok(status) => standing(site, status),
            Err(error) => {
                Finding::skipped(area(site), "site", format!("how it does is known by the daemon alone: {error}"))
                    .advise("start the daemon, then run evercred doctor again")
            }
        });
        findings.push(key(site));
        findings.extend(client(site, status.as_ref().map_or_else(|_| wall(), |status| status.now)));
    }
    findings
}

fn wall() -> Timestamp {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(wall.as_millis()).unwrap_or(i64::MAX))
}

fn area(site: &Site) -> String {
    format!("Site {} ({})", site.name, site.kind.label())
}

fn standing(site: &Site, status: &Status) -> Finding {
    let check = "site";
    let Some(seen) = status.sites.iter().find(|seen| seen.site == site.name) else {
        return Finding::failed(area(site), check, "the daemon does not replicate to it").advise(
            "the site was added since, or replication could not start: condor_reconfig (SIGHUP), then see the log",
        );
    };
    let now = status.now;
    let confirmed = seen.confirmed.map_or_else(
        || "it has not confirmed any yet".to_owned(),
        |at| format!("it confirmed the last one {} ago", show::short(now.since(at))),
    );
    if let (true, 0, Some(words)) = (seen.down, seen.replicas, &seen.words) {
        return Finding::failed(area(site), check, format!("nothing is replicated to it: {words}"))
            .advise("correct that; the daemon tries again every minute");
    }
    if seen.replicas == 0 {
        let what = "no credential goes there; whether it is reachable shows with the first one";
        return Finding::skipped(area(site), check, what).advise("see `services`, `users` and `groups` of the site");
    }
    let confirmed = seen.words.iter().fold(confirmed, |confirmed, words| format!("{confirmed}; {words}"));
    let copies = format!("{} of {} copies are behind{}; {confirmed}", seen.behind, seen.replicas, since(seen, now));
    if seen.offline && seen.error.is_none() {
        return Finding::warning(area(site), check, format!("its endpoint is not there: {copies}"))
            .advise("start the endpoint at the site, or ask its admins to; what waits for it is delivered then");
    }
    let Some(kind) = seen.error else {
        return match (seen.down, seen.behind) {
            (true, _) => Finding::failed(area(site), check, format!("it is down or refuses us: {copies}"))
                .advise(format!("evercred replicate --site {} tells why", site.name)),
            (false, 0) => {
                Finding::ok(area(site), check, format!("all of {} copies are current; {confirmed}", seen.replicas))
            }
            (false, _) => Finding::ok(area(site), check, format!("{copies}; they are under way")),
        };
    };
    let words = advice(kind);
    let todo = if words.admin.is_empty() { words.user } else { words.admin };
    let what = format!("{kind}: {copies}. {}", words.meaning);
    if seen.down || seen.behind == seen.replicas {
        Finding::failed(area(site), check, what).advise(todo)
    } else {
        Finding::warning(area(site), check, what).advise(todo)
    }
}

fn since(seen: &SiteStanding, now: Timestamp) -> String {
    seen.behind_since.map(|at| format!(" for {}", show::short(now.since(at)))).unwrap_or_default()
}

/// Whether what goes there is sealed, and where that matters.
fn key(site: &Site) -> Finding {
    let check = "site-key";
    if let Some(sealing) = &site.sealing {
        let former = sealing.keys.len().saturating_sub(1);
        let former = if former == 0 { String::new() } else { format!(", and {former} former ones are known") };
        return Finding::ok(
            area(site),
            check,
            format!("what goes there is sealed with the first of its key_files{former}"),
        );
    }
    match &site.kind {
        SiteKind::Ssh(ssh) if ssh.way == SshWay::Sftp => Finding::ok(
            area(site),
            check,
            "no key of its own: ssh encrypts the way, and the account there guards the file",
        ),
        SiteKind::Directory { directory } => Finding::ok(
            area(site),
            check,
            format!("no key of its own: whoever may read {directory}, or its file system, has the tokens"),
        ),
        _ => Finding::ok(
            area(site),
            check,
            "no key of its own: the way there is encrypted, and the far end keeps plain tokens",
        ),
    }
}

/// Whether our own client of the site's service lives for a while yet.
fn client(site: &Site, now: Timestamp) -> Option<Finding> {
    let end = site.kind.client_end()?;
    let advice = "make another client at the service, write its file, and reload the credmon; nobody renews it but you";
    let left = end.at.since(now);
    if left.is_zero() {
        return Some(Finding::failed(area(site), "client", "our client of it has ended").advise(advice));
    }
    let what = format!("our client of it ends in {}", show::short(left));
    Some(if end.is_near(now) {
        Finding::warning(area(site), "client", what).advise(advice)
    } else {
        Finding::ok(area(site), "client", what)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::{Sources, condor::Knobs, load_with},
        core::snapshot::SCHEMA,
        ctl::doctor::Verdict,
        error::Kind,
    };

    const NOW: Timestamp = Timestamp(1_790_000_000_000);

    fn settings() -> Settings {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        let text = "[daemon]\ncredential_directory = \"/c\"\n[provider.w]\nkind = \"oauth2\"\nclient_id = \"x\"\n\
                    issuer = \"https://i.example.org/\"\n[site.farm]\nkind = \"directory\"\nservices = [\"w\"]\n\
                    directory = \"/shared\"\n";
        std::fs::write(&file, text).unwrap();
        load_with(&Sources { config: Some(file), ..Sources::default() }, &Knobs::default()).unwrap()
    }

    fn status(sites: Vec<SiteStanding>) -> Status {
        Status {
            schema: SCHEMA,
            version: "0".into(),
            pid: 1,
            now: NOW,
            started: NOW,
            everybody: true,
            complete: true,
            courier: true,
            providers: Vec::new(),
            sites,
            credentials: Vec::new(),
        }
    }

    fn seen(replicas: u64, behind: u64, down: bool, error: Option<Kind>) -> SiteStanding {
        SiteStanding {
            site: "farm".into(),
            kind: "directory".into(),
            down,
            replicas,
            behind,
            behind_since: (behind > 0).then_some(Timestamp(NOW.0 - 900_000)),
            confirmed: Some(Timestamp(NOW.0 - 60_000)),
            client_ends: None,
            client_ends_soon: false,
            words: None,
            offline: false,
            error,
        }
    }

    #[test]
    fn a_site_is_judged_by_what_the_daemon_last_saw_of_it() {
        let settings = settings();
        let site = &settings.sites[0];
        let judged = |sites: Vec<SiteStanding>| standing(site, &status(sites));
        for (one, expected) in [
            (seen(4, 0, false, None), Verdict::Ok),
            (seen(4, 1, false, None), Verdict::Ok),
            (seen(4, 1, false, Some(Kind::SiteTimeout)), Verdict::Warning),
            (seen(4, 4, false, Some(Kind::SiteAuth)), Verdict::Failed),
            (seen(4, 4, true, None), Verdict::Failed),
            (seen(0, 0, false, None), Verdict::Skipped),
        ] {
            let finding = judged(vec![one.clone()]);
            assert_eq!(finding.verdict, expected, "{one:?}");
            assert_eq!(finding.advice.is_empty(), expected == Verdict::Ok, "{finding:?}");
        }
        assert_eq!(judged(Vec::new()).verdict, Verdict::Failed, "an older configuration runs");
        let late = judged(vec![seen(4, 1, false, Some(Kind::SiteTimeout))]);
        assert!(
            late.what.contains("1 of 4 copies are behind for 15m; it confirmed the last one 1m ago"),
            "{}",
            late.what
        );
        assert!(key(site).what.contains("/shared"));
    }

    #[test]
    fn why_nothing_is_replicated_and_how_an_endpoint_is_are_told() {
        let settings = settings();
        let site = &settings.sites[0];
        let judged = |one: SiteStanding| standing(site, &status(vec![one]));
        let refused = judged(SiteStanding { words: Some("state_directory /s: no".into()), ..seen(0, 0, true, None) });
        assert_eq!(refused.verdict, Verdict::Failed);
        assert!(refused.what.contains("nothing is replicated to it: state_directory /s: no"), "{}", refused.what);
        let words = |word: &str| Some(format!("the service says that the endpoint is {word}"));
        let online = judged(SiteStanding { words: words("online"), ..seen(4, 0, false, None) });
        assert_eq!((online.verdict, online.what.contains("the endpoint is online")), (Verdict::Ok, true));
        let away = |error| SiteStanding { words: words("offline"), offline: true, ..seen(4, 0, false, error) };
        for one in [away(None), away(Some(Kind::SitePending))] {
            let finding = judged(one);
            assert_eq!(finding.verdict, Verdict::Warning);
            assert!(finding.what.contains("the endpoint is offline"), "{}", finding.what);
        }
    }

    #[test]
    fn without_a_daemon_it_is_said_that_nobody_knows() {
        let findings = examine(&settings(), Path::new("/nowhere/status.sock"));
        assert_eq!(findings[0].verdict, Verdict::Skipped);
        assert_eq!(findings.len(), 2);
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_client_of_two_days_is_told_half_a_day_before_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(
            &file,
            "[daemon]\ncredential_directory = \"/c\"\n[provider.p]\nkind = \"mytoken\"\nserver = \"https://m.example.org\"\n\
             [site.s]\nkind = \"sfapi\"\nservices = [\"p\"]\ndirectory = \"/t\"\ninbox = \"/i\"\ncommand = \"/c\"\n\
             client_file = \"/k\"\nkey_files = [\"/f\"]\n",
        )
        .unwrap();
        let sources = Sources { config: Some(file), secrets: crate::config::Secrets::LeaveAlone, ..Sources::default() };
        let mut settings = load_with(&sources, &Knobs::default()).unwrap();
        let site = settings.sites.first_mut().unwrap();
        let now = Timestamp(1_790_000_000_000);
        let mut at = |ends: Option<Timestamp>| {
            if let crate::config::site_settings::SiteKind::Sfapi(sfapi) = &mut site.kind {
                sfapi.client_ends = ends;
            }
            client(site, now).map(|finding| finding.verdict)
        };
        assert_eq!(at(None), None);
        assert_eq!(at(Some(now.plus(13 * HOUR))), Some(Verdict::Ok));
        assert_eq!(at(Some(now.plus(12 * HOUR))), Some(Verdict::Warning));
        assert_eq!(at(Some(now.minus(HOUR))), Some(Verdict::Failed));
    }
}
