//! HTCondor's side on this host: our daemon and credd are configured, all daemons mean the same directory, sweeping
//! leaves users time, jobs ask for fresh tokens. (Contract `HTCondor`, 3.7, 4 and 6.1; [`super::classification`] and
//! [`super::encryption`] look at the rest.)

use std::{path::Path, time::Duration};

use super::{
    Finding,
    classification::{self, Service},
    encryption,
    program::Program,
};
use crate::config::condor::{self, NoAnswer};

const AREA: &str = "HTCondor";
/// Below this a user who pauses for an evening must approve again.
const SHORT_SWEEP: u64 = 86_400;
/// credd waits so long for a token at submit time, if nothing else is said.
const USUAL_POLLING: u64 = 20;
/// Jobs ask for fresh tokens so often, if nothing else is said.
const USUAL_REFRESH: i64 = 300;
/// Who reads the credential directory.
const READERS: [&str; 4] = ["CREDD", "SCHEDD", "SHADOW", "MASTER"];

/// What is known of ours when HTCondor is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ours<'a> {
    /// The services of all providers; empty: the configuration cannot be read.
    pub services: &'a [Service<'a>],
    /// The credential directory that evercred keeps, if its configuration can be read.
    pub directory: Option<&'a Path>,
    /// The uid of the running credential monitor.
    pub keeper: Option<u32>,
    /// `share_directory`
    pub shared: bool,
    /// What runs is evercred.
    pub runs: bool,
}

pub(super) fn examine(ours: &Ours<'_>) -> Vec<Finding> {
    let Some(program) = condor::program() else {
        return vec![Finding::skipped(AREA, "htcondor", "there is no condor_config_val on this host")];
    };
    ask(&program, ours).unwrap_or_else(|no_answer| {
        vec![Finding::failed(AREA, "htcondor", no_answer.to_string()).advise(no_answer.advice())]
    })
}

fn ask(program: &Path, ours: &Ours<'_>) -> Result<Vec<Finding>, NoAnswer> {
    let mut findings = Vec::new();
    let seen = |subsystem: &str, knob: &str| condor::seen_by(program, subsystem, [knob]).map(|[value]| value);
    let asked =
        ["DAEMON_LIST", "MASTER_HA_LIST", "CREDMON_OAUTH", "CREDMON_EVERCRED", "AUTO_INCLUDE_CREDD_IN_DAEMON_LIST"];
    let [daemons, elected, usual, beside, include] = condor::seen_by(program, "MASTER", asked)?;
    // Beside a stock one it has a name of its own; the pair of a highly available access point has not.
    let (name, credmon) = match beside {
        Some(path) if ours.shared => ("CREDMON_EVERCRED", Some(path)),
        _ => ("CREDMON_OAUTH", usual),
    };
    let daemons = [daemons, elected].map(Option::unwrap_or_default).join(" ");
    let directories = READERS
        .map(|reader| seen(reader, "SEC_CREDENTIAL_DIRECTORY_OAUTH").map(|directory| (reader, directory)))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    findings.extend(directory(&directories, ours.directory));
    let file = credmon.as_ref().map(|path| Program::at(Path::new(path), "condor_credmon_evercred"));
    findings.push(daemon(&daemons, name, credmon.as_deref(), file, ours.runs));
    findings.push(credd(&daemons, is_true(include.as_deref())));
    findings.push(trust(is_true(seen("SHADOW", "TRUST_CREDENTIAL_DIRECTORY")?.as_deref()), ours.keeper));
    let asked = ["SEC_CREDENTIAL_SWEEP_DELAY", "CREDD_POLLING_TIMEOUT", "CRED_SUPER_USERS", "CREDD_OAUTH_MODE"];
    let [delay, polling_timeout, super_users, oauth_mode] = condor::seen_by(program, "CREDD", asked)?;
    findings.push(sweep(delay.as_deref()));
    findings.extend(waiting(polling_timeout.as_deref()));
    findings.extend(super_user(super_users.as_deref()));
    findings.extend(old_mode(oauth_mode.as_deref()));
    findings.push(polling(seen("STARTER", "SEC_CREDENTIAL_REFRESH")?.as_deref()));
    findings.extend(encryption::examine(program, listed(&daemons, "STARTD"))?);
    if ours.shared {
        findings.push(neighbour(ours.services, seen("CREDMON_OAUTH", "VAULT_CREDMON_PROVIDER_NAMES")?.as_deref()));
    }
    findings.extend(classification::examine(program, ours.services)?);
    Ok(findings)
}

fn is_true(value: Option<&str>) -> bool {
    value.is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
}

fn listed(daemons: &str, name: &str) -> bool {
    daemons.split([',', ' ', '\t']).any(|listed| listed.eq_ignore_ascii_case(name))
}

/// Whether all who read the directory mean the same, and that is what evercred keeps.
fn directory(seen: &[(&str, Option<String>)], kept: Option<&Path>) -> Vec<Finding> {
    let check = "directory-knob";
    let Some((first, Some(directory))) = seen.first() else {
        return vec![
            Finding::failed(AREA, check, "SEC_CREDENTIAL_DIRECTORY_OAUTH is not defined for credd")
                .advise("install condor-config/50-evercred.conf into /etc/condor/config.d, and restart HTCondor"),
        ];
    };
    let mut findings: Vec<Finding> = seen
        .iter()
        .filter(|(_, other)| other.as_ref() != Some(directory))
        .map(|(reader, other)| {
            let other = other.as_deref().unwrap_or("nothing");
            Finding::failed(AREA, check, format!("{first} has the credential directory {directory}, {reader} has {other}"))
                .advise("jobs do not get what is stored: set SEC_CREDENTIAL_DIRECTORY_OAUTH once, without a daemon's name before it")
        })
        .collect();
    if let Some(kept) = kept
        && kept != Path::new(directory)
        && !same(kept, Path::new(directory))
    {
        findings.push(
            Finding::failed(AREA, check, format!("credd stores in {directory}, evercred keeps {}", kept.display()))
                .advise("remove `credential_directory` from [daemon]: evercred asks HTCondor then"),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok(AREA, check, format!("credd stores in {directory}, and all read it there")));
    }
    findings
}

fn same(a: &Path, b: &Path) -> bool {
    matches!((std::fs::canonicalize(a), std::fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

/// `file`: what lies where the knob points to; `runs`: the process that keeps the directory is evercred.
fn daemon(daemons: &str, name: &str, credmon: Option<&str>, file: Option<Program>, runs: bool) -> Finding {
    let check = "daemon";
    let shown = credmon.unwrap_or("nothing");
    if !listed(daemons, name) {
        return Finding::warning(AREA, check, format!("{name} is not in DAEMON_LIST"))
            .advise("add it, unless systemd runs evercred on this host");
    }
    let advice = format!("set {name} = /usr/sbin/condor_credmon_evercred, and restart HTCondor");
    match file {
        Some(Program::Ours) => Finding::ok(AREA, check, format!("condor_master runs {shown}")),
        Some(Program::Wrapper) => {
            Finding::ok(AREA, check, format!("condor_master runs {shown}, a script around condor_credmon_evercred"))
        }
        Some(Program::Other) if runs => {
            Finding::ok(AREA, check, format!("condor_master runs {shown}, and what keeps the directory is evercred"))
        }
        Some(Program::Missing) => {
            Finding::failed(AREA, check, format!("{name} is {shown}, which is not there")).advise(advice)
        }
        Some(Program::NotExecutable) => {
            Finding::failed(AREA, check, format!("{name} is {shown}, which cannot be executed")).advise(advice)
        }
        Some(Program::Other) | None => {
            Finding::failed(AREA, check, format!("{name} is {shown}: condor_master runs another one")).advise(advice)
        }
    }
}

fn credd(daemons: &str, included: bool) -> Finding {
    if included || listed(daemons, "CREDD") {
        return Finding::ok(AREA, "credd", "condor_master runs a credd");
    }
    Finding::failed(AREA, "credd", "no credd runs on this host: CREDD is not in DAEMON_LIST").advise(
        "nothing can be stored here: `use feature: OAUTH`, or AUTO_INCLUDE_CREDD_IN_DAEMON_LIST = True; on a login node \
         without a schedd, run evercred doctor on the access point",
    )
}

fn trust(trusted: bool, keeper: Option<u32>) -> Finding {
    match (trusted, keeper) {
        (true, _) => Finding::ok(AREA, "trust", "the shadow takes .use files of any owner"),
        (false, Some(0)) => {
            Finding::ok(AREA, "trust", "the shadow takes .use files of root, which is how we write them")
        }
        (false, Some(uid)) => Finding::failed(
            AREA,
            "trust",
            format!("the shadow takes .use files of root only; ours belong to uid {uid}"),
        )
        .advise("jobs are held: set TRUST_CREDENTIAL_DIRECTORY = True, or run the credential monitor as root"),
        (false, None) => {
            Finding::skipped(AREA, "trust", "whose .use files the shadow takes: no credential monitor runs")
        }
    }
}

fn sweep(delay: Option<&str>) -> Finding {
    let check = "sweep-delay";
    let advice = "users must approve again after each pause: SEC_CREDENTIAL_SWEEP_DELAY = 604800 (7 days)";
    let seconds = match delay.map(|text| text.trim().parse::<u64>()) {
        None => 3600,
        Some(Ok(seconds)) => seconds,
        Some(Err(_)) => {
            let what = format!("SEC_CREDENTIAL_SWEEP_DELAY = {} is no number of seconds", delay.unwrap_or_default());
            return Finding::failed(AREA, check, what).advise("write 604800 (7 days)");
        }
    };
    let what = format!("credd keeps credentials for {} h after the last job", seconds / 3600);
    if seconds < SHORT_SWEEP {
        Finding::warning(AREA, check, what).advise(advice)
    } else {
        Finding::ok(AREA, check, what)
    }
}

/// How often jobs on this host ask for fresh tokens: never is none, and where there is no HTCondor, `usual` is meant.
pub(super) fn asks_every(usual: Duration) -> Option<Duration> {
    let Some(program) = condor::program() else { return Some(usual) };
    // That there is no answer is told by the checks of HTCondor's knobs.
    let Ok([refresh]) = condor::seen_by(&program, "STARTER", ["SEC_CREDENTIAL_REFRESH"]) else { return Some(usual) };
    every(refresh.as_deref(), usual)
}

fn every(refresh: Option<&str>, usual: Duration) -> Option<Duration> {
    match refresh.map_or(Ok(USUAL_REFRESH), |text| text.trim().parse::<i64>()) {
        Ok(seconds) => u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs),
        // What is wrong with it, `polling` tells.
        Err(_) => Some(usual),
    }
}

/// How long credd waits for a first token.
fn waiting(timeout: Option<&str>) -> Option<Finding> {
    let seconds = timeout?.trim().parse::<u64>().ok();
    if seconds.is_some_and(|seconds| seconds >= 5) {
        return None;
    }
    let what = format!("CREDD_POLLING_TIMEOUT = {}", timeout.unwrap_or_default());
    Some(
        Finding::warning(AREA, "polling-timeout", what).advise(format!(
            "submits fail where an issuer takes longer for the first token: set it to {USUAL_POLLING}"
        )),
    )
}

fn super_user(users: Option<&str>) -> Option<Finding> {
    let all = users?.split([',', ' ', '\t']).any(|user| user == "*" || user == "*@*");
    all.then(|| {
        Finding::failed(AREA, "super-users", "CRED_SUPER_USERS names everybody: anybody may store for anybody")
            .advise("name accounts of this site's services alone, like condor@$(UID_DOMAIN)")
    })
}

fn old_mode(mode: Option<&str>) -> Option<Finding> {
    let off = mode?.trim().eq_ignore_ascii_case("false");
    off.then(|| {
        Finding::failed(AREA, "oauth-mode", "CREDD_OAUTH_MODE = False: credd stores OAuth credentials in an old way")
            .advise("remove the line, and restart HTCondor")
    })
}

fn polling(refresh: Option<&str>) -> Finding {
    match refresh.map_or(Ok(USUAL_REFRESH), |text| text.trim().parse::<i64>()) {
        Ok(seconds) if seconds > 0 => Finding::ok(
            AREA,
            "refresh",
            format!(
                "jobs on this host ask for fresh tokens every {seconds} s; execution points have a knob of their own"
            ),
        ),
        Ok(_) => {
            Finding::failed(AREA, "refresh", "running jobs never ask for fresh tokens (SEC_CREDENTIAL_REFRESH ≤ 0)")
                .advise("set SEC_CREDENTIAL_REFRESH = 300, here and on the execution points")
        }
        Err(_) => {
            let what = format!("SEC_CREDENTIAL_REFRESH = {} is no number of seconds", refresh.unwrap_or_default());
            Finding::failed(AREA, "refresh", what).advise("write 300, here and on the execution points")
        }
    }
}

/// Beside a stock credential monitor: the names that it takes for its own.
fn neighbour(services: &[Service<'_>], vaults: Option<&str>) -> Finding {
    let check = "neighbour";
    let ours = services.iter().map(|service| service.name);
    let Some(vaults) = vaults else {
        return Finding::warning(
            AREA,
            check,
            "the stock credential monitor beside us may take every service for its own",
        )
        .advise("set CREDMON_OAUTH.VAULT_CREDMON_PROVIDER_NAMES to a list without ours (condor-config/beside-*.conf)");
    };
    let names: Vec<&str> = vaults.split([',', ' ', '\t']).filter(|name| !name.is_empty()).collect();
    let both: Vec<&str> = ours.filter(|name| names.contains(name) || names.contains(&"*")).collect();
    if both.is_empty() {
        Finding::ok(AREA, check, "the stock credential monitor beside us leaves our services alone")
    } else {
        let what = format!("the stock credential monitor beside us takes {} for its own, too", both.join(" "));
        Finding::failed(AREA, check, what).advise(
            "it deletes what it cannot renew: set CREDMON_OAUTH.VAULT_CREDMON_PROVIDER_NAMES to a list without ours \
             (condor-config/beside-*.conf)",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::Verdict;

    #[test]
    fn knobs_that_harm_jobs_are_found() {
        assert_eq!(sweep(None).verdict, Verdict::Warning);
        assert_eq!(sweep(Some("604800")).verdict, Verdict::Ok);
        assert_eq!(sweep(Some("7d")).verdict, Verdict::Failed);
        assert_eq!(polling(Some("-1")).verdict, Verdict::Failed);
        assert_eq!(polling(Some("often")).verdict, Verdict::Failed);
        assert_eq!(polling(None).verdict, Verdict::Ok);
        let secs = Duration::from_secs;
        for (knob, expected) in [(None, Some(300)), (Some("60"), Some(60)), (Some("0"), None), (Some("often"), Some(7))]
        {
            assert_eq!(every(knob, secs(7)), expected.map(secs), "{knob:?}");
        }
        assert_eq!(trust(false, Some(64)).verdict, Verdict::Failed);
        assert_eq!(trust(false, Some(0)).verdict, Verdict::Ok);
        assert_eq!(credd("MASTER SCHEDD", false).verdict, Verdict::Failed);
        assert_eq!(credd("MASTER, CREDD", false).verdict, Verdict::Ok);
        assert_eq!(credd("MASTER", true).verdict, Verdict::Ok);
        assert_eq!((waiting(None), waiting(Some("20"))), (None, None));
        assert!(waiting(Some("1")).is_some() && waiting(Some("x")).is_some());
        assert_eq!((super_user(None), super_user(Some("condor@site"))), (None, None));
        assert!(super_user(Some("condor@site, *")).is_some());
        assert_eq!((old_mode(None), old_mode(Some("true"))), (None, None));
        assert!(old_mode(Some("False")).is_some());
    }

    #[test]
    fn the_credential_monitor_of_the_knob_is_ours_also_behind_a_script() {
        let list = "MASTER, CREDD CREDMON_OAUTH";
        let verdict = |file, runs| daemon(list, "CREDMON_OAUTH", Some("/x"), Some(file), runs).verdict;
        assert_eq!(verdict(Program::Ours, false), Verdict::Ok);
        assert_eq!(verdict(Program::Wrapper, false), Verdict::Ok);
        assert_eq!(verdict(Program::Other, true), Verdict::Ok, "a binary that starts ours");
        for program in [Program::Other, Program::Missing, Program::NotExecutable] {
            assert_eq!(verdict(program, false), Verdict::Failed, "{program:?}");
        }
        assert_eq!(daemon("MASTER", "CREDMON_OAUTH", None, None, false).verdict, Verdict::Warning);
    }

    #[test]
    fn one_directory_is_everybody_s() {
        let seen = |shadow: &str| [("CREDD", Some("/a".to_owned())), ("SHADOW", Some(shadow.to_owned()))];
        let verdicts = |seen: &[(&str, Option<String>)], kept: Option<&str>| {
            directory(seen, kept.map(Path::new)).iter().map(|finding| finding.verdict).collect::<Vec<_>>()
        };
        assert_eq!(verdicts(&seen("/a"), Some("/a")), [Verdict::Ok]);
        assert_eq!(verdicts(&seen("/b"), Some("/a")), [Verdict::Failed]);
        assert_eq!(verdicts(&seen("/a"), Some("/c")), [Verdict::Failed]);
        assert_eq!(verdicts(&[("CREDD", None)], None), [Verdict::Failed]);
    }

    #[test]
    fn a_neighbour_that_takes_our_services_is_found() {
        let ours = [Service { name: "grid", by_page: false, unasked: false }];
        assert_eq!(neighbour(&ours, None).verdict, Verdict::Warning);
        assert_eq!(neighbour(&ours, Some("none")).verdict, Verdict::Ok);
        for taken in ["*", "x, grid"] {
            assert_eq!(neighbour(&ours, Some(taken)).verdict, Verdict::Failed);
        }
    }
}
