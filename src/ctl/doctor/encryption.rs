//! Whether tokens travel encrypted from the shadow to the starter (contract `HTCondor`, 6.1: without, jobs with
//! credentials do not start), judged on both sides as far as this host knows: the shadow's knobs are always its own, the
//! starter's only where a startd runs here. What HTCondor makes of two sides is the table of its manual.

use std::path::Path;

use super::Finding;
use crate::config::condor::{self, NoAnswer};

const AREA: &str = "HTCondor";

/// What one side wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Never,
    Optional,
    Preferred,
    Required,
}

/// What becomes of two wishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    Encrypted,
    Plain,
    NoConnection,
}

/// One side's knobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Side {
    /// Of its own role (`SEC_CLIENT_ENCRYPTION`, `SEC_DAEMON_ENCRYPTION`), which comes first.
    own: Option<String>,
    /// `SEC_DEFAULT_ENCRYPTION`
    usual: Option<String>,
    /// `SEC_DEFAULT_NEGOTIATION`
    negotiation: Option<String>,
    /// `SEC_DEFAULT_CRYPTO_METHODS`
    methods: Option<String>,
    /// `ALLOW_OAUTH_WITHOUT_ENCRYPTION`
    plain_allowed: Option<String>,
}

/// `startd`: whether one runs on this host, too.
pub(super) fn examine(program: &Path, startd: bool) -> Result<Vec<Finding>, NoAnswer> {
    let side = |subsystem: &str, own: &str| {
        let knobs = [
            own,
            "SEC_DEFAULT_ENCRYPTION",
            "SEC_DEFAULT_NEGOTIATION",
            "SEC_DEFAULT_CRYPTO_METHODS",
            "ALLOW_OAUTH_WITHOUT_ENCRYPTION",
        ];
        let [own, usual, negotiation, methods, plain_allowed] = condor::seen_by(program, subsystem, knobs)?;
        Ok(Side { own, usual, negotiation, methods, plain_allowed })
    };
    let starter = startd.then(|| side("STARTER", "SEC_DAEMON_ENCRYPTION")).transpose()?;
    Ok(judge(&side("SHADOW", "SEC_CLIENT_ENCRYPTION")?, starter.as_ref()))
}

impl Side {
    /// The knob that decides, and what it says; `None`: it says nothing that HTCondor knows.
    fn wish(&self, own: &'static str) -> (String, Option<Wish>) {
        let (name, value) = match (&self.own, &self.usual) {
            (Some(value), _) => (own, value.as_str()),
            (None, Some(value)) => ("SEC_DEFAULT_ENCRYPTION", value.as_str()),
            (None, None) => return ("SEC_DEFAULT_ENCRYPTION is not set".to_owned(), Some(Wish::Optional)),
        };
        let wish = match value.trim().to_ascii_lowercase().as_str() {
            "never" => Some(Wish::Never),
            "optional" => Some(Wish::Optional),
            "preferred" => Some(Wish::Preferred),
            "required" => Some(Wish::Required),
            _ => None,
        };
        (format!("{name} = {value}"), wish)
    }

    fn never_negotiates(&self) -> bool {
        self.negotiation.as_deref().is_some_and(|value| value.trim().eq_ignore_ascii_case("never"))
    }

    fn has_methods(&self) -> bool {
        let known = |name: &str| ["AES", "BLOWFISH", "3DES"].iter().any(|one| one.eq_ignore_ascii_case(name));
        self.methods.as_deref().is_none_or(|list| list.split([',', ' ', '\t']).any(known))
    }
}

fn meet(client: Wish, server: Wish) -> Met {
    use Wish::{Never, Optional, Preferred, Required};
    match (client, server) {
        (Never, Required) | (Required, Never) => Met::NoConnection,
        (Never, _) | (_, Never) | (Optional, Optional) => Met::Plain,
        (Preferred | Required, _) | (_, Preferred | Required) => Met::Encrypted,
    }
}

const REQUIRE: &str = "set SEC_DEFAULT_ENCRYPTION = REQUIRED here and on the execution points";

fn judge(shadow: &Side, starter: Option<&Side>) -> Vec<Finding> {
    let mut findings = vec![of_shadow(shadow)];
    match starter {
        None => findings.push(
            Finding::skipped(
                AREA,
                "encryption-starter",
                "what the execution points want cannot be seen from here: their knobs are their own",
            )
            .advise(
                "for each sort of them: condor_config_val -name HOST -startd SEC_DEFAULT_ENCRYPTION (REQUIRED or PREFERRED \
                 will do), or run evercred doctor there",
            ),
        ),
        Some(starter) => findings.extend(of_starter(shadow, starter)),
    }
    findings
}

fn of_shadow(shadow: &Side) -> Finding {
    let (what, wish) = shadow.wish("SEC_CLIENT_ENCRYPTION");
    let what = format!("shadow: {what}");
    if shadow.never_negotiates() {
        return Finding::failed(AREA, "encryption", "shadow: SEC_DEFAULT_NEGOTIATION = NEVER: nothing is encrypted")
            .advise("jobs with credentials do not start: set SEC_DEFAULT_NEGOTIATION = REQUIRED");
    }
    if !shadow.has_methods() {
        let methods = shadow.methods.as_deref().unwrap_or_default();
        return Finding::failed(
            AREA,
            "encryption",
            format!("shadow: SEC_DEFAULT_CRYPTO_METHODS = {methods}: HTCondor knows none of these"),
        )
        .advise("jobs with credentials do not start: remove the line (HTCondor takes AES then)");
    }
    match wish {
        None => Finding::failed(AREA, "encryption", format!("{what}: HTCondor does not know that word"))
            .advise(format!("write NEVER, OPTIONAL, PREFERRED or REQUIRED; for tokens, {REQUIRE}")),
        Some(Wish::Never) => Finding::failed(AREA, "encryption", what)
            .advise(format!("jobs with credentials do not start over plain connections: {REQUIRE}")),
        Some(Wish::Required) => Finding::ok(AREA, "encryption", what),
        Some(Wish::Preferred) => Finding::warning(AREA, "encryption", what)
            .advise(format!("jobs fail at an execution point that says NEVER: {REQUIRE}")),
        Some(Wish::Optional) => Finding::warning(AREA, "encryption", what)
            .advise(format!("jobs fail at an execution point that does not ask for it: {REQUIRE}")),
    }
}

fn of_starter(shadow: &Side, starter: &Side) -> Vec<Finding> {
    let (what, wish) = starter.wish("SEC_DAEMON_ENCRYPTION");
    let what = format!("starter on this host: {what}");
    let mut findings = Vec::new();
    let (_, client) = shadow.wish("SEC_CLIENT_ENCRYPTION");
    findings.push(match (client, wish) {
        (_, None) => Finding::failed(AREA, "encryption-starter", format!("{what}: HTCondor does not know that word"))
            .advise(REQUIRE),
        (None, Some(_)) => Finding::skipped(AREA, "encryption-starter", format!("{what}; see the shadow's first")),
        (Some(client), Some(server)) => match meet(client, server) {
            Met::Encrypted if starter.never_negotiates() || !starter.has_methods() => {
                Finding::failed(AREA, "encryption-starter", format!("{what}, but it negotiates no method"))
                    .advise("correct SEC_DEFAULT_NEGOTIATION and SEC_DEFAULT_CRYPTO_METHODS there")
            }
            Met::Encrypted => Finding::ok(AREA, "encryption-starter", format!("{what}: tokens travel encrypted to it")),
            Met::Plain => {
                Finding::failed(AREA, "encryption-starter", format!("{what}: neither side asks for encryption"))
                    .advise(format!("jobs with credentials do not start: {REQUIRE}"))
            }
            Met::NoConnection => {
                Finding::failed(AREA, "encryption-starter", format!("{what}: the two sides do not meet"))
                    .advise(format!("no job starts: {REQUIRE}"))
            }
        },
    });
    if starter.plain_allowed.as_deref().is_some_and(|value| value.trim().eq_ignore_ascii_case("true")) {
        findings.push(
            Finding::warning(AREA, "encryption-plain", "starter on this host: ALLOW_OAUTH_WITHOUT_ENCRYPTION = True")
                .advise("tokens may travel in clear: remove it, unless this pool is this one host"),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::Verdict;

    fn side(usual: Option<&str>) -> Side {
        Side { usual: usual.map(str::to_owned), ..Side::default() }
    }

    fn verdicts(shadow: &Side, starter: Option<&Side>) -> Vec<Verdict> {
        judge(shadow, starter).iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn two_sides_meet_as_the_manual_says() {
        use Verdict::{Failed, Ok, Skipped, Warning};
        for (shadow, starter, expected) in [
            (Some("REQUIRED"), Some("optional"), [Ok, Ok]),
            (Some("required"), Some("NEVER"), [Ok, Failed]),
            (Some("PREFERRED"), None, [Warning, Ok]),
            (None, None, [Warning, Failed]),
            (None, Some("PREFERRED"), [Warning, Ok]),
            (Some("NEVER"), Some("OPTIONAL"), [Failed, Failed]),
            (Some("NEVER"), Some("REQUIRED"), [Failed, Failed]),
            (Some("on"), Some("REQUIRED"), [Failed, Skipped]),
        ] {
            assert_eq!(verdicts(&side(shadow), Some(&side(starter))), expected, "{shadow:?} {starter:?}");
        }
        assert_eq!(verdicts(&side(Some("REQUIRED")), None), [Ok, Skipped], "what cannot be seen is said");
    }

    #[test]
    fn a_role_s_own_knob_comes_first_and_methods_must_exist() {
        let own = Side { own: Some("NEVER".into()), ..side(Some("REQUIRED")) };
        assert_eq!(verdicts(&own, None)[0], Verdict::Failed);
        let none = Side { methods: Some("ROT13".into()), ..side(Some("REQUIRED")) };
        assert_eq!(verdicts(&none, None)[0], Verdict::Failed);
        let silent = Side { negotiation: Some("NEVER".into()), ..side(Some("REQUIRED")) };
        assert_eq!(verdicts(&silent, None)[0], Verdict::Failed);
        assert_eq!(verdicts(&side(Some("REQUIRED")), Some(&silent))[1], Verdict::Failed);
        let plain = Side { plain_allowed: Some("True".into()), ..side(Some("REQUIRED")) };
        assert_eq!(judge(&side(Some("REQUIRED")), Some(&plain))[2].check, "encryption-plain");
    }
}
