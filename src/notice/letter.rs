//! What a notice looks like, by way of delivery: a mail, a JSON document for a webhook, a text for a chat.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    advice::advice,
    core::{
        id::{CredentialId, Handle},
        notice::{Failing, Item, Matter, Notice, Queue},
        site::Late,
        time::{Timestamp, rfc3339},
    },
    error::Kind,
};

/// So many credentials are named; of more, their number.
const NAMED: usize = 50;
/// So many are in a document, so that it fits into a frame to the courier whatever their names are.
const LISTED: usize = 1000;
/// How the advice names the command that approves anew.
const LOGIN: &str = "evercred login SERVICE";

/// How a letter travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// A mail through a mail server.
    Smtp,
    /// A mail through the program `sendmail`.
    Sendmail,
    /// JSON to a URL.
    Webhook,
    /// Text to a Slack-compatible URL.
    Slack,
}

impl Way {
    /// The word for log, audit and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Smtp => "smtp",
            Self::Sendmail => "sendmail",
            Self::Webhook => "webhook",
            Self::Slack => "slack",
        }
    }
}

/// One message to one recipient by one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Letter {
    /// How.
    pub way: Way,
    /// Whom it is for, in words: `user alice`, `admins of wlcg`, with an admin's address.
    pub whom: String,
    /// It is for admins: these go first.
    #[serde(default)]
    pub for_admins: bool,
    /// Sender of a mail.
    pub from: String,
    /// Addresses of a mail; empty for a webhook.
    pub to: Vec<String>,
    /// One line.
    pub subject: String,
    /// The text; for a webhook the JSON.
    pub body: String,
}

/// Whom it is for.
#[must_use]
pub fn whom(notice: &Notice) -> String {
    match notice {
        Notice::User { user, .. } | Notice::Well { user, .. } => format!("user {user}"),
        Notice::Admins { provider, .. } | Notice::Over { provider, .. } => format!("admins of {provider}"),
        Notice::Site { site, .. } => format!("admins of the site {site}"),
    }
}

/// Subject and text.
#[must_use]
pub fn text(notice: &Notice, now: Timestamp, host: &str) -> (String, String) {
    match notice {
        Notice::User { user, items, jobs } => to_user(user.as_str(), items, jobs, now, host),
        Notice::Site { site, kind, replicas, late } => of_site((site, kind), *replicas, late, now, host),
        Notice::Well { user, credentials } => {
            let mut text = format!("Dear {user},\n\ncredentials of your jobs on {host} are renewed again:\n\n");
            for id in credentials.iter().take(NAMED) {
                // Writing to a string does not fail.
                writeln!(text, "  {}", id.base()).ok();
            }
            more(&mut text, credentials.len());
            write!(
                text,
                "\nThere is nothing left to do.\n\nHow things stand: evercred status\n\n-- \nevercred on {host}\n"
            )
            .ok();
            ("Your jobs' credentials are renewed again".to_owned(), text)
        }
        Notice::Over { provider, kinds } => {
            let mut text = format!("Renewals at the provider {provider} work again. It is over with:\n\n");
            for kind in kinds {
                // Writing to a string does not fail.
                writeln!(text, "  {kind}: {}", advice(*kind).meaning).ok();
            }
            write!(text, "\nHow things stand: evercred status\n\n-- \nevercred on {host}\n").ok();
            (format!("evercred on {host}: renewals at {provider} work again"), text)
        }
        Notice::Admins { provider, items, troubles } => {
            let mut text = String::new();
            // Writing to a string does not fail.
            if !troubles.is_empty() {
                writeln!(text, "Renewals at the provider {provider} fail, and it is yours to mend:\n").ok();
                for Failing { kind, count, soonest, down_since } in troubles {
                    let words = advice(*kind);
                    writeln!(text, "  {kind}: {count} credentials. {}", words.meaning).ok();
                    if let Some(since) = down_since {
                        writeln!(text, "    No renewal at all since {}; single probes go on.", when(*since, now)).ok();
                    }
                    if let Some(soonest) = soonest {
                        writeln!(text, "    The first token of a job ends {}.", when(*soonest, now)).ok();
                    }
                    let next = if words.admin.is_empty() { words.user } else { words.admin };
                    writeln!(text, "    What to do: {next}").ok();
                }
                writeln!(text, "\nMore: evercred doctor; evercred status").ok();
            }
            if !items.is_empty() {
                let gap = if text.is_empty() { "" } else { "\n" };
                writeln!(text, "{gap}Users of the provider {provider} are told now:\n").ok();
                for item in items.iter().take(NAMED) {
                    writeln!(text, "  {}: {}", item.id, matter(item, now)).ok();
                }
                more(&mut text, items.len());
                let mut kinds: Vec<Kind> = items.iter().filter_map(Item::kind).collect();
                kinds.sort_unstable();
                kinds.dedup();
                for (kind, next) in kinds.into_iter().map(|kind| (kind, advice(kind).admin)) {
                    if !next.is_empty() {
                        writeln!(text, "  If {kind} is not theirs to mend: {next}").ok();
                    }
                }
            }
            write!(text, "\n-- \nevercred on {host}\n").ok();
            let subject = match (troubles.is_empty(), items.len()) {
                (false, _) => format!("evercred on {host}: renewals at {provider} fail"),
                (true, 1) => format!("evercred on {host}: 1 credential of {provider} needs its user"),
                (true, n) => format!("evercred on {host}: {n} credentials of {provider} need their users"),
            };
            (subject, text)
        }
    }
}

fn to_user(user: &str, items: &[Item], jobs: &Queue, now: Timestamp, host: &str) -> (String, String) {
    let refused = items.iter().any(|item| matches!(item.matter, Matter::Refused(_)));
    let mut text = format!("Dear {user},\n\n");
    let what = if refused { "cannot be renewed any more" } else { "will soon end" };
    // Writing to a string does not fail.
    writeln!(text, "credentials of your jobs on {host} {what}:\n").ok();
    for item in items.iter().take(NAMED) {
        writeln!(text, "  {}: {}", item.id.base(), matter(item, now)).ok();
        match item.expires {
            Some(expires) if expires > now => {
                writeln!(text, "    Your jobs have a token until then: {}.", when(expires, now))
            }
            Some(expires) => writeln!(text, "    The token of your jobs ended {}.", when(expires, now)),
            None => writeln!(text, "    Your jobs have no token."),
        }
        .ok();
        if let Matter::Refused(kind) = item.matter {
            writeln!(text, "    What to do: {}", for_user(kind, &item.id)).ok();
        }
    }
    more(&mut text, items.len());
    let Queue { count, named } = jobs;
    if *count > 0 {
        let more = count.saturating_sub(u64::try_from(named.len()).unwrap_or(u64::MAX));
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        writeln!(text, "\nYour jobs in the queue: {}{more}", named.join(", ")).ok();
    }
    let approving = |item: &&Item| match item.matter {
        Matter::Ending(_) => true,
        Matter::Refused(kind) => advice(kind).user.contains(LOGIN),
    };
    let mut names: Vec<String> = items.iter().filter(approving).map(|item| item.id.base()).collect();
    names.sort_unstable();
    let please = if names.is_empty() { "please see what to do" } else { "please approve again" };
    let more_names = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    if !names.is_empty() {
        text.push_str("\nWhat to do, on the login node (running jobs get the new token by themselves):\n\n");
    }
    for name in names {
        writeln!(text, "  evercred login {name}").ok();
    }
    if more_names > 0 {
        writeln!(text, "  and so on for the {more_names} others that evercred status shows").ok();
    }
    write!(text, "\nHow things stand: evercred status\n\n-- \nevercred on {host}\n").ok();
    let subject = match (refused, items.len()) {
        (true, 1) => format!("Your jobs' credential cannot be renewed: {please}"),
        (true, n) => format!("{n} credentials of your jobs need you: {please}"),
        (false, 1) => format!("Your jobs' credential will end soon: {please}"),
        (false, n) => format!("{n} credentials of your jobs will end soon: {please}"),
    };
    (subject, text)
}

/// What the user does about it, with the command of this credential.
fn for_user(kind: Kind, id: &CredentialId) -> String {
    advice(kind).user.replace(LOGIN, &format!("evercred login {}", id.base()))
}

fn of_site(
    (site, kind): (&str, &str),
    replicas: u64,
    late: &[(Option<Kind>, Late)],
    now: Timestamp,
    host: &str,
) -> (String, String) {
    let behind: u64 = late.iter().map(|(_, late)| late.count).sum();
    // Writing to a string does not fail.
    let mut text = format!("The site {site} ({kind}) stays behind: {behind} of {replicas} tokens there are old.\n\n");
    for (kind, late) in late {
        let since = when(late.since, now);
        if let Some(kind) = kind {
            let words = advice(*kind);
            writeln!(text, "  {kind}: {} since {since}. {}", late.count, words.meaning).ok();
            let next = if words.admin.is_empty() { words.user } else { words.admin };
            writeln!(text, "    What to do: {next}").ok();
        } else {
            writeln!(text, "  not tried: {} since {since}; they wait for their turn.", late.count).ok();
            text.push_str("    What to do: see the daemon's log for the replicator, the journal and this site.\n");
        }
        if let Some(expires) = late.expires {
            let ends = if expires > now { "ends" } else { "ended" };
            writeln!(text, "    The first token that should be there {ends} {}.", when(expires, now)).ok();
        }
    }
    write!(text, "\nMore: evercred replicate --site {site}; evercred doctor\n\n-- \nevercred on {host}\n").ok();
    (format!("evercred on {host}: the site {site} stays behind"), text)
}

fn more(text: &mut String, count: usize) {
    if count > NAMED {
        // Writing to a string does not fail.
        writeln!(text, "  and {} more", count - NAMED).ok();
    }
}

fn matter(item: &Item, now: Timestamp) -> String {
    match item.matter {
        Matter::Ending(at) => format!("the approval ends {}", when(at, now)),
        Matter::Refused(kind) => format!("{} ({kind})", advice(kind).meaning.trim_end_matches('.')),
    }
}

/// `2026-11-24 22:09 UTC, in 2 days`
fn when(at: Timestamp, now: Timestamp) -> String {
    let shown = jiff::Timestamp::from_millisecond(at.0).unwrap_or_default().strftime("%Y-%m-%d %H:%M UTC").to_string();
    let (length, back) = if at > now { (at.since(now), false) } else { (now.since(at), true) };
    let seconds = length.as_secs();
    let count = |n: u64, unit: &str| format!("{n} {unit}{}", if n == 1 { "" } else { "s" });
    let length = match seconds {
        172_800.. => count(seconds / 86_400, "day"),
        7200.. => count(seconds / 3600, "hour"),
        120.. => count(seconds / 60, "minute"),
        _ => count(seconds, "second"),
    };
    if back { format!("{shown}, {length} ago") } else { format!("{shown}, in {length}") }
}

/// The document for a webhook: `schema` 1; members are added, never renamed. It lists so many credentials at most, and tells
/// their `total`.
#[must_use]
pub fn document(notice: &Notice, now: Timestamp, host: &str) -> String {
    let (subject, text) = text(notice, now, host);
    let item = |item: &Item| {
        let (matter, at, kind) = match item.matter {
            Matter::Ending(at) => ("ending", Some(rfc3339::show(at)), None),
            Matter::Refused(kind) => ("refused", None, Some(kind.label())),
        };
        json!({
            "user": item.id.user.as_str(),
            "service": item.id.service.as_str(),
            "handle": item.id.handle.as_ref().map(Handle::as_str),
            "provider": item.provider,
            "matter": matter,
            "kind": kind,
            "refresh_token_expires": at,
            "expires": item.expires.map(rfc3339::show),
        })
    };
    let no_jobs = Queue::default();
    let (audience, user, provider, items, jobs, troubles) = match notice {
        Notice::User { user, items, jobs } => ("user", Some(user.as_str()), None, items.as_slice(), jobs, &[][..]),
        Notice::Well { user, .. } => ("user", Some(user.as_str()), None, &[][..], &no_jobs, &[][..]),
        Notice::Admins { provider, items, troubles } => {
            ("admins", None, Some(provider.as_str()), items.as_slice(), &no_jobs, troubles.as_slice())
        }
        Notice::Over { provider, .. } => ("admins", None, Some(provider.as_str()), &[][..], &no_jobs, &[][..]),
        Notice::Site { .. } => ("admins", None, None, &[][..], &no_jobs, &[][..]),
    };
    let well = if let Notice::Well { credentials, .. } = notice { credentials.as_slice() } else { &[] };
    let over = if let Notice::Over { kinds, .. } = notice { kinds.as_slice() } else { &[] };
    let (site, late) = match notice {
        Notice::Site { site, late, .. } => (Some(site.as_str()), late.as_slice()),
        Notice::User { .. } | Notice::Well { .. } | Notice::Admins { .. } | Notice::Over { .. } => (None, &[][..]),
    };
    json!({
        "schema": 1,
        "time": rfc3339::show(now),
        "host": host,
        "for": audience,
        "user": user,
        "provider": provider,
        "subject": subject,
        "text": text,
        "credentials": items.iter().take(LISTED).map(item).collect::<Vec<_>>(),
        "total": items.len() + well.len(),
        "jobs": jobs.named,
        "jobs_total": jobs.count,
        "troubles": troubles
            .iter()
            .map(|Failing { kind, count, soonest, down_since }| {
                json!({ "kind": kind, "credentials": count, "soonest_expiry": soonest.map(rfc3339::show),
                    "down_since": down_since.map(rfc3339::show) })
            })
            .collect::<Vec<_>>(),
        "over": over,
        "renewed_again": well.iter().take(LISTED).map(CredentialId::base).collect::<Vec<_>>(),
        "site": site,
        "behind": late
            .iter()
            .map(|(kind, late)| {
                json!({ "kind": kind, "replicas": late.count, "since": rfc3339::show(late.since),
                    "soonest_expiry": late.expires.map(rfc3339::show) })
            })
            .collect::<Vec<_>>(),
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::UserName;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn item(base: &str, matter: Matter) -> Item {
        Item {
            id: CredentialId::from_base(UserName::parse("alice").unwrap(), base).unwrap(),
            provider: "wlcg".into(),
            matter,
            step: None,
            expires: Some(Timestamp(NOW.0 + 3_600_000)),
        }
    }

    fn user(items: Vec<Item>) -> Notice {
        Notice::User {
            user: UserName::parse("alice").unwrap(),
            items,
            jobs: Queue { count: 9, named: vec!["17.0".into(), "17.1".into()] },
        }
    }

    #[test]
    fn a_user_reads_which_credential_until_when_which_jobs_and_what_to_run() {
        let items = vec![item("wlcg_prod", Matter::Ending(Timestamp(NOW.0 + 2 * 86_400_000)))];
        let (subject, text) = text(&user(items), NOW, "ap1.example.org");
        assert_eq!(subject, "Your jobs' credential will end soon: please approve again");
        let expected = "\
Dear alice,

credentials of your jobs on ap1.example.org will soon end:

  wlcg_prod: the approval ends 2023-11-16 22:13 UTC, in 2 days
    Your jobs have a token until then: 2023-11-14 23:13 UTC, in 60 minutes.

Your jobs in the queue: 17.0, 17.1 and 7 more

What to do, on the login node (running jobs get the new token by themselves):

  evercred login wlcg_prod

How things stand: evercred status

-- 
evercred on ap1.example.org
";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_approving_again_does_not_mend_is_told_with_what_does() {
        let notice = user(vec![item("wlcg_prod", Matter::Refused(Kind::AudienceShortfall))]);
        let (subject, told) = text(&notice, NOW, "ap1");
        assert_eq!(subject, "Your jobs' credential cannot be renewed: please see what to do");
        assert!(
            told.contains("    What to do: Correct the audience in the submit file, then submit again.\n"),
            "{told}"
        );
        assert!(!told.contains("evercred login"), "{told}");
        let (provider, items) = ("wlcg".to_owned(), vec![item("wlcg", Matter::Refused(Kind::AudienceShortfall))]);
        let (_, told) = text(&Notice::Admins { provider, items, troubles: vec![] }, NOW, "ap1");
        assert!(told.contains("  If audience-shortfall is not theirs to mend: Correct the provider's"), "{told}");
        // One that does, beside one that does not.
        let both = [Kind::RequestRefused, Kind::TopEmpty].map(|kind| item(kind.label(), Matter::Refused(kind)));
        let (_, told) = text(&user(both.to_vec()), NOW, "ap1");
        assert!(told.contains("    What to do: Store it again: evercred login top-empty, or"), "{told}");
        assert!(told.contains("\n  evercred login top-empty\n") && !told.contains("login request-refused"), "{told}");
    }

    #[test]
    fn a_refusal_is_told_in_words_with_its_kind_for_explain() {
        let (subject, text) = text(&user(vec![item("wlcg", Matter::Refused(Kind::Revoked))]), NOW, "ap1");
        assert!(subject.contains("cannot be renewed"), "{subject}");
        let line = "  wlcg: The issuer refuses the refresh token: revoked, superseded or unknown (revoked)\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn admins_read_which_site_stays_behind_why_since_when_and_what_to_do() {
        let late = Late { count: 3, since: Timestamp(NOW.0 - 3_600_000), expires: Some(Timestamp(NOW.0 + 600_000)) };
        let (site, kind) = ("farm".to_owned(), "ssh".to_owned());
        let notice = Notice::Site { site, kind, replicas: 4, late: vec![(Some(Kind::SiteAuth), late)] };
        let (subject, text) = text(&notice, NOW, "ap1");
        assert_eq!(
            (subject.as_str(), whom(&notice).as_str()),
            ("evercred on ap1: the site farm stays behind", "admins of the site farm")
        );
        for part in [
            "farm (ssh) stays behind: 3 of 4",
            "site-auth: 3 since 2023-11-14 21:13 UTC, 60 minutes ago.",
            "What to do: ",
            "ends 2023-11-14 22:23 UTC",
            "evercred replicate --site farm",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let document: serde_json::Value = serde_json::from_str(&document(&notice, NOW, "ap1")).unwrap();
        assert_eq!((&document["site"], &document["behind"][0]["kind"]), (&"farm".into(), &"site-auth".into()));
    }

    #[test]
    fn a_document_of_a_mass_refusal_fits_into_a_frame_and_tells_how_many_there_are() {
        let name = "n".repeat(100);
        let items = |n: usize| -> Vec<Item> {
            (0..n).map(|n| item(&format!("{name}_{n:0100}"), Matter::Refused(Kind::Revoked))).collect()
        };
        let credentials = items(LISTED + 1).into_iter().map(|item| item.id).collect();
        let user = UserName::parse("alice").unwrap();
        for (notice, total, list) in [
            (Notice::Admins { provider: "wlcg".into(), items: items(20_000), troubles: vec![] }, 20_000, "credentials"),
            (Notice::Well { user, credentials }, LISTED + 1, "renewed_again"),
        ] {
            let body = document(&notice, NOW, "ap1");
            let told: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(
                (told["total"].as_u64(), told[list].as_array().map(Vec::len)),
                (Some(total as u64), Some(LISTED))
            );
            let (way, whom, subject) = (Way::Webhook, whom(&notice), String::new());
            let letter = Letter { way, whom, for_admins: true, from: String::new(), to: vec![], subject, body };
            crate::courier::frame::encode(&crate::courier::frame::ToCourier::Deliver {
                number: 1,
                letter: Box::new(letter),
            })
            .unwrap();
        }
    }

    #[test]
    fn a_user_reads_that_all_is_well_again() {
        let credentials = vec![item("wlcg_prod", Matter::Refused(Kind::Revoked)).id];
        let notice = Notice::Well { user: UserName::parse("alice").unwrap(), credentials };
        let (subject, text) = text(&notice, NOW, "ap1");
        assert_eq!(
            (subject.as_str(), whom(&notice).as_str()),
            ("Your jobs' credentials are renewed again", "user alice")
        );
        assert!(text.contains("renewed again:\n\n  wlcg_prod\n\nThere is nothing left to do."), "{text}");
        let document: serde_json::Value = serde_json::from_str(&document(&notice, NOW, "ap1")).unwrap();
        assert_eq!((&document["for"], &document["renewed_again"][0]), (&"user".into(), &"wlcg_prod".into()));
    }

    #[test]
    fn admins_read_that_it_is_over() {
        let notice = Notice::Over { provider: "wlcg".into(), kinds: vec![Kind::Timeout] };
        let (subject, text) = text(&notice, NOW, "ap1");
        assert_eq!(subject, "evercred on ap1: renewals at wlcg work again");
        assert!(text.contains("\n  timeout: "), "{text}");
        let document: serde_json::Value = serde_json::from_str(&document(&notice, NOW, "ap1")).unwrap();
        assert_eq!((&document["over"][0], &document["provider"]), (&"timeout".into(), &"wlcg".into()));
    }

    #[test]
    fn admins_read_what_fails_for_how_many_and_what_to_do() {
        let notice = Notice::Admins {
            provider: "wlcg".into(),
            items: vec![item("wlcg", Matter::Refused(Kind::Revoked))],
            troubles: vec![Failing {
                kind: Kind::ClientRefused,
                count: 12,
                soonest: Some(Timestamp(NOW.0 + 600_000)),
                down_since: Some(Timestamp(NOW.0 - 180_000)),
            }],
        };
        let (subject, text) = text(&notice, NOW, "ap1");
        assert_eq!(subject, "evercred on ap1: renewals at wlcg fail");
        for part in [
            "client-refused: 12 credentials.",
            "22:10 UTC, 3 minutes ago;",
            "in 10 minutes",
            "What to do: Correct client_id",
            "alice/wlcg: ",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let document: serde_json::Value = serde_json::from_str(&document(&notice, NOW, "ap1")).unwrap();
        assert_eq!(document["troubles"][0]["kind"], "client-refused");
        assert_eq!(document["troubles"][0]["down_since"], "2023-11-14T22:10:20Z");
        assert_eq!(document["credentials"][0]["matter"], "refused");
        assert_eq!((&document["schema"], &document["for"]), (&1.into(), &"admins".into()));
    }
}
