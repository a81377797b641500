//! Whose a service is to `condor_submit` and to credd: both sort services by the same knobs, each as it sees them
//! (contract `HTCondor`, 3.3). A service is ours where both leave it to the storer, and the storer is ours; or where both
//! send users to the web page, and the page is ours.

use std::path::Path;

use super::{Finding, program::Program};
use crate::config::condor::{self, NoAnswer};

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

/// A service of ours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Service<'a> {
    /// Its name.
    pub name: &'a str,
    /// Our page for approvals serves it where HTCondor sends users to a page.
    pub by_page: bool,
    /// Nobody is asked: the configuration names its accounts.
    pub unasked: bool,
}

/// What a service is to `condor_submit` or credd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// credd makes a `.top` itself.
    Local,
    /// Likewise, with client credentials.
    Client,
    /// A web page is asked.
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

impl Names {
    fn storer(&self) -> Option<&str> {
        let [.., storer] = &self.knobs;
        storer.as_deref()
    }

    fn vaults(&self) -> Option<Vec<String>> {
        let [_, _, _, _, vaults, ..] = &self.knobs;
        vaults.is_some().then(|| list(vaults.as_ref()))
    }
}

/// Both sides, service by service.
pub(super) fn examine(program: &Path, services: &[Service<'_>]) -> Result<Vec<Finding>, NoAnswer> {
    let side = |subsystem: &str| {
        let knobs = condor::seen_by(program, subsystem, KNOBS)?;
        let names = services.iter().map(|service| {
            let [client_id] = condor::seen_by(program, subsystem, [&format!("{}_CLIENT_ID", service.name)])?;
            Ok(Names { knobs: knobs.clone(), client_id: client_id.is_some() })
        });
        names.collect::<Result<Vec<_>, NoAnswer>>()
    };
    let (submit, credd) = (side("SUBMIT")?, side("CREDD")?);
    let mut findings = Vec::new();
    if let (Some(submit), Some(credd)) = (submit.first(), credd.first()) {
        let there = |path: &str| Program::at(Path::new(path), "evercred_storer");
        if services.iter().any(|service| !service.by_page && !service.unasked) {
            findings.extend(storer([submit.storer(), credd.storer()], there));
        }
        findings.extend(listed(services, [submit, credd]));
    }
    for (service, sides) in services.iter().zip(submit.iter().zip(&credd)) {
        findings.push(classified(*service, sides.into()));
    }
    Ok(findings)
}

/// Whether what submit runs is ours, and credd knows that there is one.
fn storer([submit, credd]: [Option<&str>; 2], there: impl Fn(&str) -> Program) -> Vec<Finding> {
    let ours =
        "set SEC_CREDENTIAL_STORER = /usr/libexec/condor/evercred_storer (/usr/share/evercred/50-evercred-login.conf)";
    let Some(path) = submit else {
        return vec![
            Finding::failed(AREA, "storer", "SEC_CREDENTIAL_STORER is not set for condor_submit: nobody asks the user")
                .advise(ours),
        ];
    };
    let mut findings = vec![match there(path) {
        Program::Ours => Finding::ok(AREA, "storer", format!("condor_submit runs {path}")),
        Program::Wrapper => {
            Finding::ok(AREA, "storer", format!("condor_submit runs {path}, a script around evercred_storer"))
        }
        Program::Missing => {
            Finding::failed(AREA, "storer", format!("condor_submit is to run {path}, which is not there"))
                .advise(format!("jobs cannot be submitted: {ours}"))
        }
        Program::NotExecutable => {
            Finding::failed(AREA, "storer", format!("condor_submit is to run {path}, which is no program"))
                .advise("SEC_CREDENTIAL_STORER is a path alone, without arguments; the file needs mode 0755")
        }
        Program::Other => {
            Finding::failed(AREA, "storer", format!("condor_submit runs {path}, which is another storer"))
                .advise(format!("{ours}; ours hands on what is not its own to the stock one"))
        }
    }];
    match credd {
        None => {
            findings.push(Finding::warning(AREA, "storer-credd", "SEC_CREDENTIAL_STORER is not set for credd").advise(
                "put the line where credd reads it, too: without, and without a list of names, it demands a .use",
            ));
        }
        Some(other) if other != path => findings.push(
            Finding::warning(
                AREA,
                "storer-credd",
                format!("credd's SEC_CREDENTIAL_STORER is {other}, submit's is {path}"),
            )
            .advise("write it once, in a file that both read"),
        ),
        Some(_) => {}
    }
    findings
}

/// Whether the list of names is there, and holds ours alone.
fn listed(services: &[Service<'_>], [submit, credd]: [&Names; 2]) -> Vec<Finding> {
    let all = services.iter().map(|service| service.name).collect::<Vec<_>>().join(" ");
    let (submit, credd) = (submit.vaults(), credd.vaults());
    let mut findings = Vec::new();
    match (&submit, &credd) {
        (None, None) => findings.push(
            Finding::warning(
                AREA,
                "names",
                "VAULT_CREDMON_PROVIDER_NAMES is not set: what nobody owns is the storer's",
            )
            .advise(format!("jobs with a token stored by hand fail: set it to {all}, for submit and for credd")),
        ),
        (Some(a), Some(b)) if a == b => {
            let foreign: Vec<&str> = a
                .iter()
                .map(String::as_str)
                .filter(|name| *name != "*" && services.iter().all(|service| service.name != *name))
                .collect();
            if foreign.is_empty() {
                findings.push(Finding::ok(AREA, "names", format!("VAULT_CREDMON_PROVIDER_NAMES = {}", a.join(" "))));
            } else {
                let names = foreign.join(" ");
                findings.push(
                    Finding::warning(AREA, "names", format!("no provider of ours owns {names}, which are the storer's"))
                        .advise("take them out of VAULT_CREDMON_PROVIDER_NAMES, or add a provider; a stock Vault storer keeps its own"),
                );
            }
        }
        (a, b) => {
            let shown =
                |list: &Option<Vec<String>>| list.as_ref().map_or("(not set)".to_owned(), |list| list.join(" "));
            findings.push(
                Finding::failed(
                    AREA,
                    "names",
                    format!("VAULT_CREDMON_PROVIDER_NAMES is {:?} for submit and {:?} for credd", shown(a), shown(b)),
                )
                .advise("write it once, in a file that both read; they sort services each for itself"),
            );
        }
    }
    findings
}

fn list(text: Option<&String>) -> Vec<String> {
    let words = |text: &String| -> Vec<String> {
        text.split([',', ' ', '\t']).filter(|s| !s.is_empty()).map(str::to_owned).collect()
    };
    text.map(words).unwrap_or_default()
}

/// The first rule of the contract's 3.3 that matches. Names are compared as they are written.
fn sort(service: &str, names: &Names) -> Sort {
    let [locals, local, clients, oauth2, vault, pelican, storer] = &names.knobs;
    let local = match (locals, local) {
        (Some(_), _) => list(locals.as_ref()),
        (None, Some(_)) => list(local.as_ref()),
        (None, None) => vec!["scitokens".to_owned()],
    };
    let has = |list: &[String]| list.iter().any(|name| name == service);
    let wild = |list: &[String]| list.is_empty() || list.iter().any(|name| name == "*");
    let (oauth2, vaults) = (list(oauth2.as_ref()), list(vault.as_ref()));
    if has(&local) {
        Sort::Local
    } else if has(&list(clients.as_ref())) {
        Sort::Client
    } else if has(&oauth2) {
        Sort::OAuth2
    } else if has(&vaults) || has(&list(pelican.as_ref())) {
        Sort::Storer
    } else if names.client_id && wild(&oauth2) {
        Sort::OAuth2
    } else if (vault.is_some() || storer.is_some()) && wild(&vaults) && !names.client_id {
        Sort::Storer
    } else {
        Sort::Unknown
    }
}

/// Why one side takes a service for what it does, and what to do about that.
fn mend(service: &str, side: &str, sort: Sort, names: &Names) -> String {
    let other_case = |list: Vec<String>| list.into_iter().find(|name| name.eq_ignore_ascii_case(service));
    match sort {
        Sort::Storer => format!("put {service} into VAULT_CREDMON_PROVIDER_NAMES for {side}, too (see condor-config/)"),
        Sort::Local if names.knobs.iter().take(2).all(Option::is_none) => format!(
            "HTCondor itself owns the name {service} for {side}: call the service otherwise, or set LOCAL_CREDMON_PROVIDER_NAMES"
        ),
        Sort::Local => format!("take {service} out of LOCAL_CREDMON_PROVIDER_NAMES for {side}"),
        Sort::Client => format!("take {service} out of CLIENT_CREDMON_PROVIDER_NAMES for {side}"),
        Sort::OAuth2 if names.client_id => format!(
            "take away {service}_CLIENT_ID for {side}, or put {service} into VAULT_CREDMON_PROVIDER_NAMES; to keep that \
             page, set web_approval_listen"
        ),
        Sort::OAuth2 => format!("take {service} out of OAUTH2_CREDMON_PROVIDER_NAMES for {side}"),
        Sort::Unknown => match names.vaults().and_then(other_case) {
            Some(written) => format!(
                "VAULT_CREDMON_PROVIDER_NAMES has {written} for {side}: names are compared as written, so write {service}"
            ),
            None => format!("put {service} into VAULT_CREDMON_PROVIDER_NAMES for {side} (see condor-config/)"),
        },
    }
}

fn classified(service: Service<'_>, [submit, credd]: [&Names; 2]) -> Finding {
    let Service { name, by_page, unasked } = service;
    let (as_submit, as_credd) = (sort(name, submit), sort(name, credd));
    let check = "classification";
    if as_submit != as_credd {
        let what = format!("{name}: condor_submit takes it for {}, credd for {}", as_submit.word(), as_credd.word());
        let (side, sort, names) =
            if as_submit == Sort::Storer { ("credd", as_credd, credd) } else { ("submit", as_submit, submit) };
        return Finding::failed(AREA, check, what).advise(mend(name, side, sort, names));
    }
    let what = format!("{name}: HTCondor takes it for {}", as_submit.word());
    let advice = || mend(name, "submit and credd", as_submit, submit);
    match as_submit {
        Sort::Storer => Finding::ok(AREA, check, format!("{name}: condor_submit and credd leave it to the storer")),
        Sort::OAuth2 if by_page => {
            Finding::ok(AREA, check, format!("{name}: condor_submit and credd send users to the page, which is ours"))
        }
        // credd stores a name of its own, which we do not read, and waits for the token.
        Sort::Client if unasked => {
            Finding::ok(AREA, check, format!("{name}: credd waits for its token, nobody is asked"))
        }
        Sort::Unknown if unasked => Finding::ok(AREA, check, format!("{name}: jobs take the token that lies there")),
        Sort::Unknown => Finding::warning(AREA, check, what)
            .advise(format!("jobs are refused until a token lies there; for an approval at submit time, {}", advice())),
        Sort::Local | Sort::Client | Sort::OAuth2 => Finding::failed(AREA, check, what).advise(advice()),
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

    const STORER: (&str, &str) = ("SEC_CREDENTIAL_STORER", "/s");
    const H: Service<'_> = Service { name: "helmholtz", by_page: false, unasked: false };

    type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], Sort);

    #[test]
    fn services_are_sorted_as_submit_and_credd_do() {
        let table: &[Row<'_>] = &[
            ("helmholtz", &[], Sort::Unknown),
            ("scitokens", &[STORER], Sort::Local),
            ("scitokens", &[STORER, ("LOCAL_CREDMON_PROVIDER_NAMES", "a, b")], Sort::Storer),
            ("helmholtz", &[STORER], Sort::Storer),
            ("helmholtz", &[STORER, ("helmholtz_CLIENT_ID", "x")], Sort::OAuth2),
            ("helmholtz", &[("helmholtz_CLIENT_ID", "x"), ("VAULT_CREDMON_PROVIDER_NAMES", "helmholtz")], Sort::Storer),
            ("helmholtz", &[("VAULT_CREDMON_PROVIDER_NAMES", "other")], Sort::Unknown),
            ("helmholtz", &[("VAULT_CREDMON_PROVIDER_NAMES", "Helmholtz")], Sort::Unknown),
            ("helmholtz", &[STORER, ("OAUTH2_CREDMON_PROVIDER_NAMES", "helmholtz")], Sort::OAuth2),
            ("helmholtz", &[STORER, ("OAUTH2_CREDMON_PROVIDER_NAMES", "*")], Sort::Storer),
            ("helmholtz", &[STORER, ("CLIENT_CREDMON_PROVIDER_NAMES", "helmholtz")], Sort::Client),
        ];
        for (service, pairs, expected) in table {
            assert_eq!(sort(service, &names(pairs)), *expected, "{service} {pairs:?}");
        }
    }

    /// Every knob of either side, wrong: the verdict, and what the advice names.
    #[test]
    fn each_wrong_knob_on_either_side_is_found_and_named() {
        let good = names(&[STORER, ("VAULT_CREDMON_PROVIDER_NAMES", "helmholtz")]);
        assert_eq!(classified(H, [&good, &good]).verdict, Verdict::Ok);
        for (pairs, advice) in [
            (&[][..], "put helmholtz into VAULT_CREDMON_PROVIDER_NAMES"),
            (&[("VAULT_CREDMON_PROVIDER_NAMES", "Helmholtz")], "compared as written, so write helmholtz"),
            (&[("LOCAL_CREDMON_PROVIDER_NAMES", "helmholtz")], "out of LOCAL_CREDMON_PROVIDER_NAMES"),
            (&[("LOCAL_CREDMON_PROVIDER_NAME", "helmholtz")], "out of LOCAL_CREDMON_PROVIDER_NAMES"),
            (&[("CLIENT_CREDMON_PROVIDER_NAMES", "helmholtz")], "out of CLIENT_CREDMON_PROVIDER_NAMES"),
            (&[("OAUTH2_CREDMON_PROVIDER_NAMES", "helmholtz")], "out of OAUTH2_CREDMON_PROVIDER_NAMES"),
            (&[STORER, ("helmholtz_CLIENT_ID", "x")], "take away helmholtz_CLIENT_ID"),
        ] {
            let bad = names(pairs);
            for (sides, side) in [([&bad, &good], "submit"), ([&good, &bad], "credd")] {
                let finding = classified(H, sides);
                assert_eq!(finding.verdict, Verdict::Failed, "{pairs:?} {side}");
                assert!(finding.advice.contains(advice), "{pairs:?} {side}: {}", finding.advice);
                assert!(finding.advice.contains(side), "{pairs:?} {side}: {}", finding.advice);
            }
            assert_ne!(classified(H, [&bad, &bad]).verdict, Verdict::Ok, "{pairs:?}");
        }
        let scitokens = Service { name: "scitokens", by_page: false, unasked: false };
        assert!(classified(scitokens, [&good, &good]).advice.contains("call the service otherwise"));
    }

    #[test]
    fn a_page_of_ours_may_have_what_htcondor_sends_to_a_page() {
        let page = names(&[("helmholtz_CLIENT_ID", "x")]);
        assert_eq!(classified(H, [&page, &page]).verdict, Verdict::Failed);
        assert_eq!(classified(Service { by_page: true, ..H }, [&page, &page]).verdict, Verdict::Ok);
        // For accounts that the configuration names credd may wait for the token, and nobody needs to store one.
        let (none, good) = (names(&[]), names(&[STORER, ("VAULT_CREDMON_PROVIDER_NAMES", "helmholtz")]));
        let own = names(&[STORER, ("CLIENT_CREDMON_PROVIDER_NAMES", "helmholtz")]);
        for (sides, verdict) in [
            ([&own, &own], Verdict::Ok),
            ([&none, &none], Verdict::Ok),
            ([&good, &good], Verdict::Ok),
            ([&own, &good], Verdict::Failed),
            ([&page, &page], Verdict::Failed),
        ] {
            assert_eq!(classified(Service { unasked: true, ..H }, sides).verdict, verdict, "{sides:?}");
        }
    }

    #[test]
    fn the_storer_is_ours_and_known_to_both() {
        let found = |sides, program| {
            storer(sides, |_| program).iter().map(|finding| (finding.check, finding.verdict)).collect::<Vec<_>>()
        };
        let both = [Some("/s"), Some("/s")];
        assert_eq!(found(both, Program::Ours), [("storer", Verdict::Ok)]);
        assert_eq!(found(both, Program::Wrapper), [("storer", Verdict::Ok)]);
        for program in [Program::Missing, Program::NotExecutable, Program::Other] {
            assert_eq!(found(both, program), [("storer", Verdict::Failed)], "{program:?}");
        }
        assert_eq!(found([None, Some("/s")], Program::Ours), [("storer", Verdict::Failed)]);
        for credd in [None, Some("/other")] {
            let expected = [("storer", Verdict::Ok), ("storer-credd", Verdict::Warning)];
            assert_eq!(found([Some("/s"), credd], Program::Ours), expected);
        }
    }

    #[test]
    fn the_list_of_names_is_there_alike_and_ours() {
        let found = |a: &[(&str, &str)], b: &[(&str, &str)]| listed(&[H], [&names(a), &names(b)])[0].verdict;
        let list = |text| [("VAULT_CREDMON_PROVIDER_NAMES", text)];
        assert_eq!(found(&list("helmholtz"), &list("helmholtz")), Verdict::Ok);
        assert_eq!(found(&list("helmholtz gone"), &list("helmholtz gone")), Verdict::Warning);
        assert_eq!(found(&[], &[]), Verdict::Warning);
        assert_eq!(found(&list("helmholtz"), &[]), Verdict::Failed);
        assert_eq!(found(&list("helmholtz"), &list("wlcg")), Verdict::Failed);
    }
}
