//! The six cases of a submit (mytoken contract §5.1), decided from what credd has and what the keeper says. Pure.

use std::time::Duration;

use super::store::Stored;
use crate::{
    core::{
        snapshot::{Credential, State, Trouble},
        time::Timestamp,
    },
    error::{Class, Kind},
};

/// With less left, a user is asked whether to renew.
pub const SOON: Duration = Duration::from_secs(86_400);

/// How long a credential still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// So long.
    For(Duration),
    /// It does not end.
    Unlimited,
    /// The issuer does not tell.
    Unknown,
}

/// What a submit finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// 1: no credential.
    Absent,
    /// 2: valid.
    Valid(Left),
    /// Stored, and nobody here knows whether it works: no keeper can be asked, as on a login node, or it
    /// does not answer. Approved for so long.
    Stored(Left),
    /// 3: valid, with less than a day left.
    Ending(Duration),
    /// Refused once, which counts only once it is confirmed.
    Doubted(Kind),
    /// 4: revoked or superseded.
    Revoked,
    /// 5: expired, so long ago where that is known.
    Expired(Option<Duration>),
    /// 6: alive on paper, refused by the issuer behind it.
    RefusedBehind,
    /// Stored for other scopes or another audience than this submit asks for.
    Mismatch,
    /// Stored, and of no use: not a token at all, or one that does not allow what is asked.
    Unusable(Kind),
}

impl Case {
    /// Whether jobs can run with it.
    #[must_use]
    pub fn is_good(self) -> bool {
        matches!(self, Self::Valid(_) | Self::Stored(_) | Self::Ending(_) | Self::Doubted(_))
    }

    /// How long it still lives, if that is less than a day.
    #[must_use]
    pub fn ending(self) -> Option<Duration> {
        match self {
            Self::Ending(left) | Self::Stored(Left::For(left)) if left <= SOON => Some(left),
            _ => None,
        }
    }

    /// The stable label, for scripts.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Valid(_) => "valid",
            Self::Stored(_) => "stored",
            Self::Ending(_) => "ending",
            Self::Doubted(_) => "doubted",
            Self::Revoked => "revoked",
            Self::Expired(_) => "expired",
            Self::RefusedBehind => "reauth-needed",
            Self::Mismatch => "mismatch",
            Self::Unusable(kind) => kind.label(),
        }
    }
}

/// Which case it is where no keeper can be asked: what credd has is let pass, unless it is noted when it `end`s
/// (seconds since 1970), and it has. That it was not revoked since, nobody here can know.
#[must_use]
pub fn without_keeper(stored: Stored, end: Option<i64>, now: Timestamp) -> Case {
    match (stored, end.map(Timestamp::from_secs)) {
        (Stored::Missing, _) => Case::Absent,
        (Stored::Mismatch, _) => Case::Mismatch,
        // Nothing came of it, and that something else will nobody here can know.
        (Stored::NotJson { .. }, _) if !stored.is_usable() => Case::Unusable(Kind::TopNoToken),
        (_, None) => Case::Stored(Left::Unknown),
        (_, Some(end)) if end <= now => Case::Expired(Some(now.since(end))),
        (_, Some(end)) => Case::Stored(Left::For(end.since(now))),
    }
}

/// Whether the keeper speaks of the very `.top` that credd has: it may be another host's credd, or one that was stored
/// just now. A `.top` that cannot be used has no time to go by, and is believed.
#[must_use]
pub fn speaks_of(known: &Credential, stored: Stored) -> bool {
    match known.stored {
        Some(time) => stored.top() == Some(time.secs()),
        None => known.state == State::Unusable,
    }
}

/// Whether what is wrong is a single refusal: it may be the issuer's mistake, and is asked again before it counts.
#[must_use]
pub fn is_doubted(known: &Credential) -> bool {
    let once = |trouble: &Trouble| trouble.kind.class() == Class::Refused && trouble.times < 2;
    known.state != State::Parked && known.error.as_ref().is_some_and(once)
}

/// Which case it is, by the keeper's word.
#[must_use]
pub fn judge(stored: Stored, known: &Credential, now: Timestamp) -> Case {
    let top = match stored {
        Stored::Missing => return Case::Absent,
        Stored::Mismatch => return Case::Mismatch,
        Stored::Waiting { top } | Stored::Ready { top, .. } | Stored::NotJson { top, .. } => top,
    };
    // Trouble from before the `.top` is that of an older one, which the keeper has not looked past yet.
    let trouble = known.error.as_ref().filter(|trouble| trouble.since.is_none_or(|since| since.secs() >= top));
    let ended = known.refresh_token_expires.filter(|end| *end <= now);
    match (trouble.map(|trouble| trouble.kind), ended) {
        (Some(kind), None) if is_doubted(known) => return Case::Doubted(kind),
        (Some(Kind::Revoked), _) => return Case::Revoked,
        (_, Some(end)) => return Case::Expired(Some(now.since(end))),
        (Some(Kind::Expired), None) => return Case::Expired(None),
        (Some(Kind::ReauthNeeded), None) => return Case::RefusedBehind,
        // Only another approval can give what the present one does not.
        (Some(kind @ (Kind::Invalid | Kind::Restricted | Kind::ScopeShortfall | Kind::AudienceShortfall)), None) => {
            return Case::Unusable(kind);
        }
        (Some(kind), None) if kind.class() == Class::Input => return Case::Unusable(kind),
        _ => {}
    }
    match known.ends().map(|end| end.since(now)) {
        None => Case::Valid(Left::Unknown),
        Some(left) if left <= SOON => Case::Ending(left),
        Some(left) => Case::Valid(Left::For(left)),
    }
}

/// What is wrong with the access token that jobs get, although the credential is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// It ended so long ago, by the keeper's word.
    Ended(Duration),
    /// It was made so long ago; when it ends nobody here knows.
    Old(Duration),
}

/// Most access tokens live for an hour and the longest of the field for six, and they are renewed at about half of that:
/// an older one may be over.
const OLD: Duration = Duration::from_secs(4 * 3600);

/// Whether the `.use` that is there is of no use any more; `known`: what the keeper says of it, if it can be asked.
#[must_use]
pub fn stale(stored: Stored, known: Option<&Credential>, now: Timestamp) -> Option<Stale> {
    let published = stored.published()?;
    match known {
        Some(known) => known.expires.filter(|end| *end <= now).map(|end| Stale::Ended(now.since(end))),
        None => Some(now.since(Timestamp::from_secs(published))).filter(|age| *age > OLD).map(Stale::Old),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const READY: Stored = Stored::Ready { top: 1_799_990_000, published: 1_799_990_000 };

    fn known(left: i64, kind: Option<Kind>) -> Credential {
        Credential {
            user: "alice".into(),
            service: "helmholtz".into(),
            handle: None,
            provider: "helmholtz".into(),
            state: State::Fresh,
            expires: None,
            renews: None,
            refresh_token_expires: Some(Timestamp(NOW.0 + left * 1000)),
            rolling: None,
            stored: Some(Timestamp::from_secs(1_799_990_000)),
            renewed: None,
            generation: 1,
            error: kind.map(|kind| Trouble { kind, detail: String::new(), since: Some(NOW), times: 2 }),
            flagged: None,
            replicas: Vec::new(),
        }
    }

    #[test]
    fn the_six_cases_are_told_apart() {
        let case = |left, kind| judge(READY, &known(left, kind), NOW);
        assert_eq!(judge(Stored::Missing, &known(9999, None), NOW), Case::Absent);
        assert_eq!(case(86_401, None), Case::Valid(Left::For(Duration::from_secs(86_401))));
        assert_eq!(case(86_400, None), Case::Ending(SOON));
        assert_eq!(case(86_401, Some(Kind::Revoked)), Case::Revoked);
        assert_eq!(case(-60, Some(Kind::Expired)), Case::Expired(Some(Duration::from_secs(60))));
        assert_eq!(case(86_401, Some(Kind::ReauthNeeded)), Case::RefusedBehind);
    }

    #[test]
    fn an_outage_never_costs_a_credential() {
        for kind in Kind::ALL.iter().filter(|kind| matches!(kind.class(), Class::Transient | Class::Ours)) {
            assert!(judge(READY, &known(86_401, Some(*kind)), NOW).is_good(), "{kind}");
        }
    }

    #[test]
    fn without_a_keeper_no_more_is_said_than_is_known() {
        let case = |end: Option<i64>| without_keeper(READY, end.map(|left| NOW.secs() + left), NOW);
        let stored = |left| Case::Stored(Left::For(Duration::from_secs(left)));
        assert_eq!(case(None), Case::Stored(Left::Unknown));
        assert_eq!(case(Some(90_000)), stored(90_000));
        assert_eq!((case(Some(90_000)).ending(), case(Some(90_000)).is_good()), (None, true));
        assert_eq!(case(Some(3600)), stored(3600));
        assert_eq!(case(Some(3600)).ending(), Some(Duration::from_secs(3600)));
        assert_eq!(case(Some(-60)), Case::Expired(Some(Duration::from_secs(60))));
        assert_eq!(without_keeper(Stored::Missing, Some(NOW.secs() + 90_000), NOW), Case::Absent);
        assert_eq!(without_keeper(Stored::Mismatch, None, NOW), Case::Mismatch);
    }

    #[test]
    fn of_a_top_that_is_no_json_the_keepers_word_counts_and_without_one_whether_a_use_came_of_it() {
        let (top, use_of) = (1_799_990_000, |published| Stored::NotJson { top: 1_799_990_000, published });
        let stored = use_of(Some(top));
        assert!(speaks_of(&known(86_401, None), stored));
        assert_eq!(judge(stored, &known(86_401, None), NOW), Case::Valid(Left::For(Duration::from_secs(86_401))));
        assert_eq!(judge(stored, &known(86_401, Some(Kind::TopSealed)), NOW), Case::Unusable(Kind::TopSealed));
        assert_eq!(without_keeper(stored, None, NOW), Case::Stored(Left::Unknown));
        for published in [None, Some(top - 1)] {
            assert_eq!(without_keeper(use_of(published), None, NOW), Case::Unusable(Kind::TopNoToken));
        }
    }

    #[test]
    fn trouble_of_an_older_top_is_not_held_against_a_new_one() {
        let newer = Stored::Waiting { top: NOW.secs() + 1 };
        assert!(judge(newer, &known(86_401, Some(Kind::Revoked)), NOW).is_good());
    }

    #[test]
    fn a_keeper_is_believed_about_the_very_top_that_credd_has() {
        let mut keepers = known(86_401, None);
        assert!(speaks_of(&keepers, READY));
        // Stored anew just now, or in another host's credd.
        assert!(!speaks_of(&keepers, Stored::Waiting { top: 1_799_990_001 }));
        assert!(!speaks_of(&keepers, Stored::Missing));
        // A daemon of before does not tell.
        keepers.stored = None;
        assert!(!speaks_of(&keepers, READY));
        keepers.state = State::Unusable;
        assert!(speaks_of(&keepers, READY));
    }

    #[test]
    fn one_refusal_is_no_revocation_until_it_is_confirmed() {
        for kind in Kind::ALL.iter().filter(|kind| kind.class() == Class::Refused) {
            let mut once = known(86_401, Some(*kind));
            once.error.as_mut().unwrap().times = 1;
            assert_eq!(judge(READY, &once, NOW), Case::Doubted(*kind));
            assert!(Case::Doubted(*kind).is_good());
            once.state = State::Parked;
            assert!(!judge(READY, &once, NOW).is_good(), "{kind}: parked");
            assert!(!judge(READY, &known(86_401, Some(*kind)), NOW).is_good(), "{kind}: twice");
            // Its end is no opinion.
            let mut over = known(-60, Some(*kind));
            over.error.as_mut().unwrap().times = 1;
            assert!(!judge(READY, &over, NOW).is_good(), "{kind}: over");
        }
    }

    #[test]
    fn what_does_not_allow_what_is_asked_needs_another_approval() {
        for kind in [Kind::Restricted, Kind::ScopeShortfall, Kind::AudienceShortfall] {
            assert_eq!(judge(READY, &known(86_401, Some(kind)), NOW), Case::Unusable(kind));
        }
    }

    #[test]
    fn a_use_that_is_over_is_told_by_its_end_or_by_its_age() {
        let mut keepers = known(86_401, None);
        assert_eq!(stale(READY, Some(&keepers), NOW), None, "it does not tell");
        keepers.expires = Some(Timestamp(NOW.0 + 1));
        assert_eq!(stale(READY, Some(&keepers), NOW), None);
        keepers.expires = Some(Timestamp(NOW.0 - 60_000));
        assert_eq!(stale(READY, Some(&keepers), NOW), Some(Stale::Ended(Duration::from_secs(60))));
        let made = |ago: u64| {
            let published = NOW.minus(Duration::from_secs(ago)).secs();
            stale(Stored::Ready { top: 0, published }, None, NOW)
        };
        assert_eq!(made(4 * 3600), None);
        assert_eq!(made(4 * 3600 + 1), Some(Stale::Old(Duration::from_secs(4 * 3600 + 1))));
        assert_eq!(made(86_400), Some(Stale::Old(Duration::from_secs(86_400))));
        assert_eq!(stale(Stored::Waiting { top: 0 }, None, NOW), None);
    }

    #[test]
    fn what_is_no_token_is_of_no_use() {
        let case = judge(READY, &known(86_401, Some(Kind::TopNoToken)), NOW);
        assert_eq!(case, Case::Unusable(Kind::TopNoToken));
        assert_eq!(judge(Stored::Mismatch, &known(86_401, None), NOW), Case::Mismatch);
    }
}
