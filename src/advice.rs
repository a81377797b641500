//! What each error kind means for people, and what to do next: one table for `explain`, `status`, notices and pages.

use std::fmt::Write as _;

use crate::error::{Class, Kind};

/// Words for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advice {
    /// What is so, in one sentence.
    pub meaning: &'static str,
    /// What the user does; empty: nothing, evercred or the admin does.
    pub user: &'static str,
    /// What the admin does; empty: nothing.
    pub admin: &'static str,
}

const WAIT: &str = "Nothing: evercred tries again by itself, and jobs keep the token they have.";
const APPROVE: &str = "Approve once more: evercred login SERVICE (or submit a job, which asks for it).";
const STORE_AGAIN: &str = "Store it again: evercred login SERVICE, or condor_store_cred add-oauth -s SERVICE -i FILE.";
const DOCTOR: &str = "See what this host sees of the issuer: evercred doctor.";
const SITE: &str = "Try the same by hand from this host; the log has the site's own words.";

/// What `kind` means and what to do.
#[must_use]
#[expect(clippy::too_many_lines, reason = "a table: one entry for each kind, checked by the compiler")]
pub fn advice(kind: Kind) -> Advice {
    let (meaning, user, admin) = match kind {
        Kind::Network => ("The issuer could not be reached (name service, connection).", WAIT, DOCTOR),
        Kind::Tls => (
            "The issuer's TLS certificate does not stand, or the TLS versions do not meet.",
            WAIT,
            "evercred doctor shows why; a private authority goes into the provider's ca_file.",
        ),
        Kind::TlsSetup => (
            "There is nothing to check the issuer's certificate with: its ca_file, or this machine's authorities, are missing.",
            WAIT,
            "evercred check says what is wrong with ca_file; the system's authorities are in the package ca-certificates.",
        ),
        Kind::Timeout => (
            "The issuer did not answer in time.",
            WAIT,
            "If it lasts: evercred doctor, then the issuer's status page; `timeout` sets how long we wait.",
        ),
        Kind::ServerError => {
            ("The issuer answers with an error of its own (HTTP 5xx).", WAIT, "If it lasts, tell the issuer's admins.")
        }
        Kind::RateLimited => (
            "The issuer asks us to slow down (HTTP 429).",
            WAIT,
            "Lower the provider's max_per_second, or ask the issuer for a higher limit.",
        ),
        Kind::Redirect => (
            "The issuer redirects a token request, which is never followed.",
            WAIT,
            "Name the final address in the provider's issuer, server or token_endpoint.",
        ),
        Kind::AnswerTooLarge => (
            "The issuer's answer is larger than any token answer.",
            WAIT,
            "The address is likely not a token endpoint: evercred doctor.",
        ),
        Kind::BadAnswer => (
            "The issuer's answer is not a token answer (HTML, half a JSON, a missing member).",
            WAIT,
            "A proxy or login page may stand in between: evercred doctor.",
        ),
        Kind::BadExpiry => (
            "The new token is expired already, or its expiry is absurd: clocks disagree.",
            WAIT,
            "Set this host's clock (timedatectl); evercred doctor shows the difference.",
        ),
        Kind::WrongIssuer => (
            "The token comes from another issuer than the one configured.",
            WAIT,
            "Correct the provider's `issuer`, or the server that gives such tokens.",
        ),
        Kind::ScopeShortfall => (
            "The issuer grants less scope than was asked for.",
            "Ask your experiment for the missing right, then approve once more.",
            "Take the scope out of the provider's `scopes`, or set shortfall = \"flag\" to publish such tokens.",
        ),
        Kind::AudienceShortfall => (
            "The issuer grants another audience than was asked for.",
            "Correct the audience in the submit file, then submit again.",
            "Correct the provider's `audience` or `audience_style`.",
        ),
        Kind::Discovery => (
            "The issuer's discovery document cannot be used.",
            WAIT,
            "Correct the provider's `issuer` or `server`; evercred doctor shows what comes back.",
        ),
        Kind::NotYetValid => (
            "The mytoken is not valid yet: clocks disagree, or it was made for later.",
            WAIT,
            "Compare clocks: evercred doctor.",
        ),
        Kind::Restricted => (
            "The mytoken's restrictions or capabilities do not allow this use.",
            APPROVE,
            "See that the provider's profile and capabilities allow access tokens from this host.",
        ),
        Kind::ReauthNeeded => (
            "The provider behind the mytoken server no longer accepts the approval.",
            APPROVE,
            "If it hits everybody, tell the mytoken server's admins.",
        ),
        Kind::Revoked => ("The issuer refuses the refresh token: revoked, superseded or unknown.", APPROVE, ""),
        Kind::Expired => ("The refresh token's life is over.", APPROVE, ""),
        Kind::Invalid => ("The issuer calls the refresh token malformed.", STORE_AGAIN, ""),
        Kind::ClientRefused => (
            "The issuer refuses our client (client_id, secret, or the way it is shown).",
            WAIT,
            "Correct client_id, client_secret_file or client_auth, then send SIGHUP; evercred doctor tests it.",
        ),
        Kind::RequestRefused => (
            "The issuer refuses what is asked for (scope, audience, grant type).",
            "If your submit file names scopes or an audience, correct them.",
            "Correct the provider's scopes or audience, or have the issuer allow them to our client.",
        ),
        Kind::CourierLost => (
            "The network process ended during the exchange; another one was started.",
            WAIT,
            "If it comes again, the log says why it ended.",
        ),
        Kind::NoSpace => (
            "There is no room for new tokens; no refresh token was spent.",
            WAIT,
            "Make room (space or inodes) on the credential directory's file system: df, df -i.",
        ),
        Kind::PublishFailed => (
            "The credential directory did not take the new token.",
            WAIT,
            "See owner, mode and mount of the credential directory: evercred doctor.",
        ),
        Kind::SiteUnreachable => ("The site could not be reached (name service, connection, TLS).", WAIT, SITE),
        Kind::SiteTimeout => (
            "The site took the token and did not confirm it in time.",
            WAIT,
            "If it lasts, tell the site's admins; the site's `timeout` sets how long we wait.",
        ),
        Kind::SitePending => (
            "The site has the delivery in its queue: its endpoint is offline or busy.",
            WAIT,
            "If it lasts, see that the endpoint at the site runs.",
        ),
        Kind::SiteError => ("The site failed in its own way; the log has its words.", WAIT, SITE),
        Kind::SiteAuth => (
            "The site refuses our account, key, client or ticket, or its host key is not known.",
            WAIT,
            "Correct the site's account or secret files, or have its host key accepted, then send SIGHUP.",
        ),
        Kind::SiteDenied => (
            "The site knows us and does not allow this delivery (path, function, namespace or user).",
            WAIT,
            "Have the site allow it, or correct `directory`, `function`, `namespace` or the rules of the site.",
        ),
        Kind::SiteFull => {
            ("There is no room at the site for the token.", WAIT, "Have the site make room (df, df -i, quota).")
        }
        Kind::SiteKey => (
            "The far end cannot open what we sealed: another key, none, or a key file open to others.",
            WAIT,
            "Put the key of `key_files` there with mode 0600; new keys go there first, and first here afterwards.",
        ),
        Kind::SiteStale => (
            "The far end calls the token too old or from the future: it came late, or clocks disagree.",
            WAIT,
            "Compare clocks (timedatectl, date -u at the site); `max_age` sets how long a delivery may take.",
        ),
        Kind::SiteUnconfirmed => (
            "The site says that it has the token, but what it shows is not what was sent.",
            WAIT,
            "See who else writes to that path, and whether the site's keys are ours.",
        ),
        Kind::SiteNewer => (
            "The site calls what it has newer than anything that we sent, and keeps it.",
            WAIT,
            "If two access points feed the same path, give each a path of its own. If none does, the sequence there is \
             damaged: remove it (.NAME.seq beside the file, the annotation evercred/KEY of a Secret), then run evercred \
             replicate --now.",
        ),
        Kind::SiteName => (
            "No file name of its own can be made for this credential at the site.",
            WAIT,
            "Correct the site's `file_name`: it must give one plain name, without / and not beginning with a dot, and another \
             one for each credential ({user}, {base}).",
        ),
        Kind::ReplicatorLost => (
            "The process that replicates ended during the delivery; another one was started.",
            WAIT,
            "If it comes again, the log says why it ended.",
        ),
        Kind::TopUnreadable => {
            ("The stored credential cannot be read.", STORE_AGAIN, "See owner and mode of the .top file.")
        }
        Kind::TopTooLarge => ("The stored credential is larger than 256 KiB.", STORE_AGAIN, ""),
        Kind::TopNotUtf8 => ("The stored credential is not text.", STORE_AGAIN, ""),
        Kind::TopEmpty => ("The stored credential is empty.", STORE_AGAIN, ""),
        Kind::TopNotRegular => (
            "The stored credential is a link or no regular file.",
            STORE_AGAIN,
            "Find out who put it there: only credd writes .top files.",
        ),
        Kind::TopWrongOwner => (
            "The stored credential belongs to somebody else than root or condor, or others may read it.",
            STORE_AGAIN,
            "Find out who put it there: only credd writes .top files.",
        ),
        Kind::TopNoToken => ("The stored credential holds no refresh token.", STORE_AGAIN, ""),
        Kind::DirectoryUnfit => (
            "The user's directory is a link, belongs to somebody else than root or condor, or others may write to it.",
            "",
            "Find out who put it there: only credd makes users' directories. Remove a link; chown condor and chmod 2700 a \
             directory.",
        ),
        Kind::NameRefused => (
            "A directory or .top has a name that HTCondor does not have (letters, digits and - + = _ . only).",
            "",
            "Find out who put it there, and remove it: no job can use it.",
        ),
        Kind::TopSealed => (
            "The stored credential is sealed with a key that is not configured.",
            STORE_AGAIN,
            "Name the key in the provider's fernet_key_file.",
        ),
        Kind::TopElsewhere => (
            "The stored credential names another server than the one that its service asks: it is not sent.",
            STORE_AGAIN,
            "If the users are right, correct server or issuer of the provider, then send SIGHUP.",
        ),
        Kind::AccountNotNamed => (
            "The service's tokens are for the accounts and handles that the admins have named, and this is none of them.",
            "Remove it: condor_store_cred delete-oauth -s SERVICE. If you need such tokens, ask the admins.",
            "Name the account in the provider's `users`, or its handle in `audiences`, then send SIGHUP.",
        ),
        Kind::MetaMismatch => (
            "The old web page had it approved for another client or token endpoint than the configured one: it is not sent.",
            APPROVE,
            "If the .meta file is right, correct the provider (evercred import stock compares them all); else have the \
             users approve anew.",
        ),
    };
    Advice { meaning, user, admin }
}

/// docs/error-kinds.md.
#[must_use]
pub fn page() -> String {
    let mut text = String::from(
        "# Error kinds\n\n<!-- Made by `evercred generate`; a test compares it with the program. -->\n\n\
         The labels in the log (`kind=`), in `evercred status`, in metrics and in notices. `evercred explain LABEL` says \
         the same on\nthe command line.\n",
    );
    for (class, heading) in [
        (Class::Transient, "Tried again soon: 5 s doubling to 5 min, never before the issuer's `Retry-After`"),
        (Class::Slow, "Tried again slowly: 5 min doubling to 1 h"),
        (
            Class::Refused,
            "Refused: asked once more after 60 s, then parked until the `.top` changes or an admin renews",
        ),
        (Class::Ours, "Ours: the provider is parked and probed every 5 min"),
        (Class::Input, "The stored credential: looked at again when it changes"),
    ] {
        text.push_str("\n## ");
        text.push_str(heading);
        text.push_str("\n\n| kind | meaning | the user | the admin |\n|---|---|---|---|\n");
        for kind in Kind::ALL.iter().filter(|kind| kind.class() == class) {
            let Advice { meaning, user, admin } = advice(*kind);
            // Writing to a string does not fail.
            writeln!(text, "| `{kind}` | {meaning} | {user} | {admin} |").ok();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::figures::{Mender, mender};

    #[test]
    fn whoever_can_mend_a_kind_is_told_how() {
        for kind in Kind::ALL {
            let Advice { user, admin, .. } = advice(*kind);
            let (users, admins) = (!user.is_empty() && user != WAIT, !admin.is_empty());
            match mender(*kind) {
                Mender::User => assert!(users, "{kind}"),
                Mender::Either => assert!(users && admins, "{kind}"),
                Mender::Admin => assert!(!users && admins, "{kind}"),
            }
        }
    }

    #[test]
    fn every_kind_has_a_meaning_and_tells_somebody_what_to_do() {
        for kind in Kind::ALL {
            let advice = advice(*kind);
            assert!(advice.meaning.ends_with('.'), "{kind}");
            assert!(!advice.user.is_empty() || !advice.admin.is_empty(), "{kind}");
        }
    }
}
