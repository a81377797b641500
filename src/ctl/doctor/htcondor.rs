//! HTCondor's side: our daemon is configured, submit and credd both take our services for the storer's, sweeping
//! leaves users time, tokens travel encrypted. (Contract `HTCondor`, 3.3, 3.7, 4 and 6.1.)

use super::Finding;
use crate::config::condor;

const AREA: &str = "HTCondor";
/// The names under which 3.3 classifies, in the order of [`Names`].
const KNOBS: [&str; 7] = [
    "LOCAL_CREDMON_PROVIDER_NAMES",
    "LOCAL_CREDMON_PROVIDER_NAME",
    "CLIENT_CREDMON_PROVIDER_NAMES",
    "OAUTH2_CREDMON_PROVIDER_NAMES",
    "VAULT_CREDMON_PROVIDER_NAMES",
    "PELICAN_CREDMON_PROVIDER_NAMES",
    "SEC_CREDENTIAL_STORER",
];
/// Below this a user who pauses for an evening must approve again.
const SHORT_SWEEP: u64 = 86_400;

/// What a service is to `condor_submit` or credd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// credd makes a `.top` itself.
    Local,
    /// Likewise, with client credentials.
    Client,
    /// The stock web page is asked.
    OAuth2,
    /// The storer is called: what we want.
    Storer,
    /// The user must have stored a token.
    Unknown,
}

impl Sort {
    fn word(self) -> &'static str {
        match self {
            Self::Local => "the local credmon's",
            Self::Client => "the client credmon's",
            Self::OAuth2 => "the stock OAuth web page's",
            Self::Storer => "the storer's",
            Self::Unknown => "nobody's",
        }
    }
}

/// What one program sees.
#[derive(Debug, Clone, Default)]
struct Names {
    knobs: [Option<String>; 7],
    /// `<SERVICE>_CLIENT_ID` is defined.
    client_id: bool,
}

/// `keeper`: the uid of the running credential monitor; `shared`: `share_directory`.
pub(super) fn examine(services: &[&str], keeper: Option<u32>, shared: bool) -> Vec<Finding> {
    let Some(program) = condor::program() else {
        return vec![Finding::skipped(AREA, "htcondor", "there is no condor_config_val on this host")];
    };
    let mut findings = Vec::new();
    let [directory, trust, delay, refresh] = condor::seen_by(
        &program,
        "CREDD",
        [
            "SEC_CREDENTIAL_DIRECTORY_OAUTH",
            "TRUST_CREDENTIAL_DIRECTORY",
            "SEC_CREDENTIAL_SWEEP_DELAY",
            "SEC_CREDENTIAL_REFRESH",
        ],
    );
    let asked = ["DAEMON_LIST", "MASTER_HA_LIST", "CREDMON_OAUTH", "CREDMON_EVERCRED"];
    let [daemons, elected, usual, beside] = condor::seen_by(&program, "MASTER", asked);
    // Beside a stock one it has a name of its own; the pair of a highly available access point has not.
    let (name, credmon) = match beside {
        Some(path) if shared => ("CREDMON_EVERCRED", Some(path)),
        _ => ("CREDMON_OAUTH", usual),
    };
    let daemons = [daemons, elected].map(Option::unwrap_or_default).join(" ");
    findings.push(knob_directory(directory.as_deref()));
    findings.push(daemon(&daemons, name, credmon.as_deref()));
    findings.push(trust_directory(is_true(trust.as_deref()), keeper));
    findings.push(sweep(delay.as_deref()));
    findings.push(polling(refresh.as_deref()));
    let [encryption, negotiation] =
        condor::seen_by(&program, "SHADOW", ["SEC_DEFAULT_ENCRYPTION", "SEC_DEFAULT_NEGOTIATION"]);
    findings.push(encrypted(encryption.as_deref(), negotiation.as_deref()));
    for service in services {
        let seen = ["SUBMIT", "CREDD"].map(|subsystem| {
            let knobs = condor::seen_by(&program, subsystem, KNOBS);
            let [client_id] = condor::seen_by(&program, subsystem, [&format!("{service}_CLIENT_ID")]);
            sort(service, &Names { knobs, client_id: client_id.is_some() })
        });
        findings.push(classified(service, seen));
    }
    findings
}

fn is_true(value: Option<&str>) -> bool {
    value.is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

fn knob_directory(directory: Option<&str>) -> Finding {
    match directory {
        Some(directory) => Finding::ok(AREA, "directory-knob", format!("credd stores in {directory}")),
        None => Finding::failed(AREA, "directory-knob", "SEC_CREDENTIAL_DIRECTORY_OAUTH is not defined for credd")
            .advise("install condor-config/50-evercred.conf into /etc/condor/config.d, and restart HTCondor"),
    }
}

fn daemon(daemons: &str, name: &str, credmon: Option<&str>) -> Finding {
    let listed = daemons.split([',', ' ', '\t']).any(|listed| listed.eq_ignore_ascii_case(name));
    let ours = credmon.is_some_and(|path| path.ends_with("condor_credmon_evercred"));
    let shown = credmon.unwrap_or("nothing");
    match (listed, ours) {
        (true, true) => Finding::ok(AREA, "daemon", format!("condor_master runs {shown}")),
        (true, false) => Finding::failed(AREA, "daemon", format!("{name} is {shown}: condor_master runs another one"))
            .advise(format!("set {name} = /usr/sbin/condor_credmon_evercred, and restart HTCondor")),
        (false, _) => Finding::warning(AREA, "daemon", format!("{name} is not in DAEMON_LIST"))
            .advise("add it, unless systemd runs evercred on this host"),
    }
}

fn trust_directory(trusted: bool, keeper: Option<u32>) -> Finding {
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
    let seconds = delay.and_then(|text| text.parse().ok()).unwrap_or(3600);
    let what = format!("credd keeps credentials for {} h after the last job", seconds / 3600);
    if seconds < SHORT_SWEEP {
        Finding::warning(AREA, "sweep-delay", what)
            .advise("users must approve again after each pause: SEC_CREDENTIAL_SWEEP_DELAY = 604800 (7 days)")
    } else {
        Finding::ok(AREA, "sweep-delay", what)
    }
}

fn polling(refresh: Option<&str>) -> Finding {
    match refresh.and_then(|text| text.parse::<i64>().ok()).unwrap_or(300) {
        seconds if seconds > 0 => {
            Finding::ok(AREA, "refresh", format!("running jobs ask for fresh tokens every {seconds} s"))
        }
        _ => Finding::failed(AREA, "refresh", "running jobs never ask for fresh tokens (SEC_CREDENTIAL_REFRESH ≤ 0)")
            .advise("set SEC_CREDENTIAL_REFRESH = 300, here and on the execution points"),
    }
}

fn encrypted(encryption: Option<&str>, negotiation: Option<&str>) -> Finding {
    let never = |value: Option<&str>| value.is_some_and(|value| value.eq_ignore_ascii_case("never"));
    let what = format!("SEC_DEFAULT_ENCRYPTION = {}", encryption.unwrap_or("(not set)"));
    if never(encryption) || never(negotiation) {
        return Finding::failed(AREA, "encryption", what).advise(
            "jobs with credentials do not start over plain connections: set SEC_DEFAULT_ENCRYPTION = REQUIRED",
        );
    }
    if encryption.is_some_and(|value| value.eq_ignore_ascii_case("required")) {
        return Finding::ok(AREA, "encryption", what);
    }
    Finding::warning(AREA, "encryption", what)
        .advise("jobs fail where an execution point does not encrypt: set SEC_DEFAULT_ENCRYPTION = REQUIRED on all")
}

/// The first rule of the contract's 3.3 that matches. Names are compared as they are written.
fn sort(service: &str, names: &Names) -> Sort {
    let list = |text: &Option<String>| -> Vec<String> {
        text.iter().flat_map(|text| text.split([',', ' ', '\t'])).filter(|s| !s.is_empty()).map(str::to_owned).collect()
    };
    let [locals, local, clients, oauth2, vault, pelican, storer] = &names.knobs;
    let local = if locals.is_some() {
        list(locals)
    } else if local.is_some() {
        list(local)
    } else {
        vec!["scitokens".to_owned()]
    };
    let has = |list: &[String]| list.iter().any(|name| name == service);
    let wild = |list: &[String]| list.is_empty() || list.iter().any(|name| name == "*");
    let (oauth2, vaults) = (list(oauth2), list(vault));
    if has(&local) {
        Sort::Local
    } else if has(&list(clients)) {
        Sort::Client
    } else if has(&oauth2) {
        Sort::OAuth2
    } else if has(&vaults) || has(&list(pelican)) {
        Sort::Storer
    } else if names.client_id && wild(&oauth2) {
        Sort::OAuth2
    } else if (vault.is_some() || storer.is_some()) && wild(&vaults) && !names.client_id {
        Sort::Storer
    } else {
        Sort::Unknown
    }
}

fn classified(service: &str, [submit, credd]: [Sort; 2]) -> Finding {
    let fix = format!("put {service} into VAULT_CREDMON_PROVIDER_NAMES, for submit and for credd (see condor-config/)");
    if submit == Sort::Storer && credd == Sort::Storer {
        return Finding::ok(
            AREA,
            "classification",
            format!("{service}: condor_submit and credd leave it to the storer"),
        );
    }
    if submit != credd {
        let what = format!("{service}: condor_submit takes it for {}, credd for {}", submit.word(), credd.word());
        return Finding::failed(AREA, "classification", what).advise(fix);
    }
    let what = format!("{service}: HTCondor takes it for {}", submit.word());
    match submit {
        Sort::Local => Finding::failed(AREA, "classification", what).advise(
            "HTCondor itself uses that name: call the service otherwise, or change LOCAL_CREDMON_PROVIDER_NAMES",
        ),
        Sort::Unknown => Finding::warning(AREA, "classification", what)
            .advise(format!("jobs are refused until a token lies there; for an approval at submit time, {fix}")),
        _ => Finding::failed(AREA, "classification", what).advise(fix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::Verdict;

    fn names(pairs: &[(&str, &str)]) -> Names {
        let knobs = KNOBS.map(|knob| pairs.iter().find(|(name, _)| *name == knob).map(|(_, v)| (*v).to_owned()));
        Names { knobs, client_id: pairs.iter().any(|(name, _)| name.ends_with("_CLIENT_ID")) }
    }

    type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], Sort);

    #[test]
    fn services_are_sorted_as_submit_and_credd_do() {
        let storer = ("SEC_CREDENTIAL_STORER", "/s");
        let table: &[Row<'_>] = &[
            ("helmholtz", &[], Sort::Unknown),
            ("scitokens", &[storer], Sort::Local),
            ("scitokens", &[storer, ("LOCAL_CREDMON_PROVIDER_NAMES", "a, b")], Sort::Storer),
            ("helmholtz", &[storer], Sort::Storer),
            ("helmholtz", &[storer, ("helmholtz_CLIENT_ID", "x")], Sort::OAuth2),
            ("helmholtz", &[("helmholtz_CLIENT_ID", "x"), ("VAULT_CREDMON_PROVIDER_NAMES", "helmholtz")], Sort::Storer),
            ("helmholtz", &[("VAULT_CREDMON_PROVIDER_NAMES", "other")], Sort::Unknown),
            ("helmholtz", &[("VAULT_CREDMON_PROVIDER_NAMES", "Helmholtz")], Sort::Unknown),
            ("helmholtz", &[storer, ("OAUTH2_CREDMON_PROVIDER_NAMES", "helmholtz")], Sort::OAuth2),
            ("helmholtz", &[storer, ("OAUTH2_CREDMON_PROVIDER_NAMES", "*")], Sort::Storer),
            ("helmholtz", &[storer, ("CLIENT_CREDMON_PROVIDER_NAMES", "helmholtz")], Sort::Client),
        ];
        for (service, pairs, expected) in table {
            assert_eq!(sort(service, &names(pairs)), *expected, "{service} {pairs:?}");
        }
    }

    #[test]
    fn sides_that_disagree_fail() {
        assert_eq!(classified("h", [Sort::Storer, Sort::Storer]).verdict, Verdict::Ok);
        assert_eq!(classified("h", [Sort::Storer, Sort::Unknown]).verdict, Verdict::Failed);
        assert_eq!(classified("h", [Sort::Unknown, Sort::Unknown]).verdict, Verdict::Warning);
        assert_eq!(classified("h", [Sort::Local, Sort::Local]).verdict, Verdict::Failed);
    }

    #[test]
    fn knobs_that_harm_jobs_are_found() {
        assert_eq!(sweep(None).verdict, Verdict::Warning);
        assert_eq!(sweep(Some("604800")).verdict, Verdict::Ok);
        assert_eq!(polling(Some("-1")).verdict, Verdict::Failed);
        assert_eq!(polling(None).verdict, Verdict::Ok);
        assert_eq!(encrypted(Some("NEVER"), None).verdict, Verdict::Failed);
        assert_eq!(encrypted(Some("required"), None).verdict, Verdict::Ok);
        assert_eq!(encrypted(None, None).verdict, Verdict::Warning);
        assert_eq!(
            daemon("MASTER, CREDD CREDMON_OAUTH", "CREDMON_OAUTH", Some("/usr/sbin/condor_credmon_evercred")).verdict,
            Verdict::Ok
        );
        assert_eq!(
            daemon("MASTER CREDMON_OAUTH", "CREDMON_OAUTH", Some("/usr/sbin/condor_credmon_oauth")).verdict,
            Verdict::Failed
        );
        assert_eq!(daemon("MASTER", "CREDMON_OAUTH", None).verdict, Verdict::Warning);
        assert_eq!(trust_directory(false, Some(64)).verdict, Verdict::Failed);
        assert_eq!(trust_directory(false, Some(0)).verdict, Verdict::Ok);
        assert_eq!(knob_directory(None).verdict, Verdict::Failed);
    }
}
