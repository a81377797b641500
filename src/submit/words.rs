//! What users read: the lines of mytoken contract §5.2, word by word, and durations as §5.3 has them.

use std::time::Duration;

use super::{
    cases::{Case, Left, Stale},
    lock::Holder,
};
use crate::error::Kind;

/// Whether jobs wait for the outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `condor_submit` runs us.
    Submit,
    /// `evercred login`
    Login,
}

/// The first line.
#[must_use]
pub fn greeting(user: &str, purpose: Purpose) -> String {
    match purpose {
        Purpose::Submit => format!("Hello {user}! You are going to submit your HTCondor jobs."),
        Purpose::Login => format!("Hello {user}!"),
    }
}

/// The line, or lines, of a case.
#[must_use]
pub fn case(case: Case) -> Vec<String> {
    let one = |line: &str| vec![line.to_owned()];
    match case {
        Case::Absent => one("No credential has been found!"),
        Case::Valid(Left::For(left)) => vec![valid(left)],
        Case::Valid(_) => one("A valid credential has been found."),
        Case::Stored(Left::For(left)) => {
            let mut lines = vec![format!(
                "A credential has been found that was approved for another {}; whether it still works is not known on \
                 this host.",
                spoken(left)
            )];
            lines.extend(case.ending().map(|_| ENDING.to_owned()));
            lines
        }
        Case::Stored(_) => {
            one("A credential has been found. Whether it still works, and how long, is not known on this host.")
        }
        Case::Ending(left) => vec![valid(left), ENDING.to_owned()],
        Case::Doubted(kind) => vec![format!(
            "Your credential was refused once ({kind}); it is asked for again before that counts, and your jobs go with \
             what there is."
        )],
        Case::Revoked => one("Your credential is no longer valid because it was revoked. A new one is needed."),
        Case::Expired(Some(ago)) => vec![format!("Your credential expired {} ago. A new one is needed.", spoken(ago))],
        Case::Expired(None) => one("Your credential expired. A new one is needed."),
        Case::RefusedBehind => one("Your identity provider no longer accepts your credential. A new one is needed."),
        Case::Mismatch => {
            one("Your credential is for other scopes or another audience than these jobs. A new one is needed.")
        }
        Case::Unusable(kind) => {
            let what = match kind {
                Kind::Restricted => "Your credential does not allow what these jobs need",
                Kind::ScopeShortfall => "Your credential gives less than the scopes that are asked for",
                Kind::AudienceShortfall => "Your credential does not give the audience that is asked for",
                _ => "What is stored is no usable credential",
            };
            vec![format!("{what} ({kind}). A new one is needed.")]
        }
    }
}

/// A credential that is good, and whose access token is not.
#[must_use]
pub fn stale(stale: Stale) -> String {
    let rest = match stale {
        Stale::Ended(_) => "and no new one has come",
        Stale::Old(_) => "and may be over",
    };
    format!(
        "Its {}, {rest}: the access point's credential monitor may not run, or its issuer is down. Jobs that start before \
         it is renewed may fail; `evercred status` on the access point may know more.",
        over(stale)
    )
}

/// What is known of an access token that is no good any more; after "its".
#[must_use]
pub fn over(stale: Stale) -> String {
    match stale {
        Stale::Ended(ago) => format!("access token ended {} ago", spoken(ago)),
        Stale::Old(age) => format!("access token was made {} ago", spoken(age)),
    }
}

/// A keeper that is there and does not answer.
pub const SILENT: &str = "the credential monitor of this host does not answer, so whether what is stored still works \
    is not known; `evercred status` may know later";

/// Who has the lock.
#[must_use]
pub fn holder(holder: Option<&Holder>) -> String {
    holder.map_or_else(
        || "a process that does not say which".to_owned(),
        |holder| format!("process {}, for {}", holder.pid, holder.name),
    )
}

/// What follows the time that is left.
const ENDING: &str = "Your credential will expire in less than 24 hours.";

fn valid(left: Duration) -> String {
    format!("A valid credential has been found with a remaining life time of {}.", spoken(left))
}

/// After a new credential is in place.
#[must_use]
pub fn created(left: Left) -> Vec<String> {
    let mut lines = vec!["Your credential has been successfully created!".to_owned()];
    match left {
        Left::For(left) => lines.push(format!("Its remaining life time is {}.", spoken(left))),
        Left::Unlimited => lines.push("Its remaining life time is unlimited.".to_owned()),
        Left::Unknown => {}
    }
    lines
}

/// The last line of a submit.
pub const SUBMITTED: &str = "Your HTCondor jobs will now be submitted!";
/// Before the URL.
pub const VISIT: &str = "Please visit the following url in order to generate your credential:";
/// After it.
pub const POLLING: &str = "Starting polling and waiting for your approval ...";
/// The question of case 3.
pub const RENEW: &str = "Renew it now? [yes/no]: ";

/// `6 days 23 hours 59 minutes 58 seconds`: years, weeks, days, hours, minutes, seconds, without those that are zero.
#[must_use]
pub fn spoken(length: Duration) -> String {
    let units =
        [(31_536_000, "year"), (604_800, "week"), (86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")];
    let mut rest = length.as_secs();
    if rest == 0 {
        return "0 seconds".to_owned();
    }
    let mut parts = Vec::new();
    for (size, name) in units {
        let count = rest / size;
        rest %= size;
        match count {
            0 => {}
            1 => parts.push(format!("1 {name}")),
            _ => parts.push(format!("{count} {name}s")),
        }
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_spoken_as_the_contract_has_them() {
        let spoken = |secs| super::spoken(Duration::from_secs(secs));
        assert_eq!(spoken(7 * 86_400 - 2), "6 days 23 hours 59 minutes 58 seconds");
        assert_eq!(spoken(604_800), "1 week");
        assert_eq!(spoken(600), "10 minutes");
        assert_eq!(spoken(1), "1 second");
        assert_eq!(spoken(31_536_000 + 2 * 604_800 + 3600), "1 year 2 weeks 1 hour");
        assert_eq!(spoken(0), "0 seconds");
    }
}
