//! `evercred explain`: an error kind, or words of HTCondor that a user sees, in plain language with the next command.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::ExitCode,
};

use crate::{
    advice::advice,
    cli,
    error::{Kind, Report, exit},
};

/// What HTCondor says about credentials, told by a part of it (contract `HTCondor`, 1, 3.4 and 3.5).
const SAYINGS: &[(&str, &str, &str)] = &[
    (
        "Job credentials are not available",
        "The job was held because its access token was not there (a missing .use file).",
        "See why with `evercred status`; when the token is back: condor_release JOB.",
    ),
    (
        "Failed to process job credential requests",
        "condor_submit asked for your approval through the storer, and did not get a credential.",
        "The lines above it say why. Try the approval alone: evercred login SERVICE.",
    ),
    (
        "Vault credential",
        "credd has no credential for this service, although the submit file asks for one.",
        "Make it: evercred login SERVICE. If that asks nothing, the admin runs evercred doctor.",
    ),
    (
        "of unknown type is missing",
        "HTCondor does not know who provides this service.",
        "Check the name in use_oauth_services. Admin: evercred doctor, checks under HTCondor.",
    ),
    (
        "CRED: communication failure",
        "credd did not answer in time.",
        "Try again; if it stays, the admin looks into CredLog.",
    ),
    (
        "Failure parsing credential as JSON",
        "What is stored for this service is not JSON, so credd cannot look into it.",
        "A submit asks for your approval if no token comes of it. To replace it now: evercred login SERVICE --renew.",
    ),
    (
        "waiting for processing",
        "credd has your credential, and the credential monitor has not made a token from it yet.",
        "Wait some seconds; if it stays, `evercred status` says why.",
    ),
];

/// `evercred explain WORDS`: 0, or 1 if they are not known.
#[must_use]
pub fn run(args: &cli::Explain) -> ExitCode {
    let words = args.words.join(" ");
    match explain(&words) {
        Some(text) => {
            // Nobody is left to tell if standard output is closed.
            io::stdout().lock().write_all(text.as_bytes()).ok();
            ExitCode::SUCCESS
        }
        None => Report::new("these words are not known", exit::FAILED)
            .advise(format!("give a hold reason of HTCondor, or one of: {}", labels()))
            .print("evercred"),
    }
}

fn labels() -> String {
    Kind::ALL.iter().map(|kind| kind.label()).collect::<Vec<_>>().join(", ")
}

fn explain(words: &str) -> Option<String> {
    let lower = words.to_lowercase();
    // `kind=revoked` of a log line, the label alone, or a longer text with a label in it.
    let said =
        |kind: &&Kind| lower.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).any(|w| w == kind.label());
    let kind = Kind::ALL.iter().find(|kind| lower.trim() == kind.label()).or_else(|| {
        let told = lower.split("kind=").nth(1)?.split_whitespace().next()?;
        Kind::ALL.iter().find(|kind| kind.label() == told)
    });
    let mut text = String::new();
    for (part, meaning, next) in SAYINGS {
        if lower.contains(&part.to_lowercase()) {
            // Writing to a string does not fail.
            write!(text, "{meaning}\nWhat to do: {next}\n").ok();
        }
    }
    if text.is_empty() || kind.is_some() {
        let kind = kind.or_else(|| Kind::ALL.iter().find(said))?;
        let told = advice(*kind);
        writeln!(text, "{kind}: {}", told.meaning).ok();
        if !told.user.is_empty() {
            writeln!(text, "What to do: {}", told.user).ok();
        }
        if !told.admin.is_empty() {
            writeln!(text, "Admin: {}", told.admin).ok();
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_and_every_saying_is_explained() {
        for kind in Kind::ALL {
            assert!(explain(kind.label()).unwrap().starts_with(kind.label()), "{kind}");
        }
        for (part, meaning, _) in SAYINGS {
            assert!(explain(&format!("Hold reason: {}!", part.to_uppercase())).unwrap().starts_with(meaning), "{part}");
        }
    }

    #[test]
    fn a_log_line_is_explained_by_its_kind_and_strange_words_are_not() {
        let line = "11/24/26 02:32:46 WARN not renewed user=carol service=grid kind=revoked times=1";
        assert_eq!(explain(line).unwrap(), explain("revoked").unwrap());
        assert_eq!(explain("the weather is fine"), None);
    }

    #[test]
    fn the_answer_has_cause_and_next_command() {
        let expected = "\
expired: The refresh token's life is over.
What to do: Approve once more: evercred login SERVICE (or submit a job, which asks for it).
";
        assert_eq!(explain("expired").unwrap(), expected);
    }
}
