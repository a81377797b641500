//! Refresh tokens given back at the end of life, for providers with `revoke_at_end` and by `evercred revoke`.
//!
//! When credd has swept a `.top`, nobody else holds its refresh token any more: for those providers it is kept here, in
//! memory alone, wiped when it is dropped, from the first look at the `.top` on. A credential that left is given back
//! only after `revoke_after`, and not at all if it came back, or if another credential holds the same token. A failure
//! that may pass is tried again, five times (an order is not: its giver is told). A stop in between leaves the token alive: it is best effort, and what
//! became of it is in the audit log.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::audit;
use crate::{
    core::{answer::ExchangeError, id::CredentialId, secret::RefreshToken, time::Tick, top::Identity},
    error::{Class, Kind},
};

/// Tries of one revocation.
const TRIES: u32 = 5;
/// After the first failure; it doubles.
const AGAIN: Duration = Duration::from_secs(60);
/// Revocations under way at one time.
const AT_ONCE: usize = 8;

/// A refresh token, and whose it is.
#[derive(Debug, Clone)]
pub struct Held {
    /// Name of the provider.
    pub provider: String,
    /// The secret.
    pub token: RefreshToken,
}

#[derive(Debug)]
struct Known {
    held: Held,
    /// The `.top` that it was read from.
    identity: Identity,
}

#[derive(Debug)]
struct Ended {
    held: Held,
    due: Tick,
    tries: u32,
    /// The uid of who ordered it; none: it left the directory.
    by: Option<u32>,
    flying: Option<u64>,
}

/// Something to ask of an issuer.
#[derive(Debug)]
pub struct Ask {
    /// Comes back with the answer.
    pub number: u64,
    /// Which credential's.
    pub id: CredentialId,
    /// What.
    pub held: Held,
}

/// How a revocation ended.
#[derive(Debug)]
pub struct Outcome {
    /// Which credential's.
    pub id: CredentialId,
    /// Name of the provider.
    pub provider: String,
    /// The uid of who ordered it; none: it left the directory.
    pub by: Option<u32>,
    /// The hash of the refresh token's `jti`, if it has one.
    pub jti_sha256: Option<String>,
    /// What the issuer said.
    pub result: Result<(), ExchangeError>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Revoker {
    known: HashMap<CredentialId, Known>,
    ended: BTreeMap<CredentialId, Ended>,
    next_number: u64,
}

impl Revoker {
    /// A credential of this provider, which revokes, was seen with this `.top`: whether its token must be read. One that
    /// had left and is back keeps its token.
    pub fn seen(&mut self, id: &CredentialId, identity: Identity, provider: &str) -> bool {
        if self.ended.get(id).is_some_and(|ended| ended.by.is_none() && ended.flying.is_none()) {
            self.ended.remove(id);
        }
        self.known.get(id).is_none_or(|known| known.identity != identity || known.held.provider != provider)
    }

    /// Name of the provider of a token that is held.
    #[must_use]
    pub fn provider_of(&self, id: &CredentialId) -> Option<&str> {
        self.known.get(id).map(|known| known.held.provider.as_str())
    }

    /// The token that was read.
    pub fn learned(&mut self, id: CredentialId, identity: Identity, held: Held) {
        self.known.insert(id, Known { held, identity });
    }

    /// The credential left the directory; its token is given back after `wait`.
    pub fn left(&mut self, now: Tick, id: &CredentialId, wait: Duration) {
        if let Some(Known { held, .. }) = self.known.remove(id) {
            self.ended.insert(id.clone(), Ended { held, due: now.plus(wait), tries: 0, by: None, flying: None });
        }
    }

    /// Somebody orders it, now.
    pub fn order(&mut self, now: Tick, id: CredentialId, held: Held, uid: u32) {
        self.ended.insert(id, Ended { held, due: now, tries: 0, by: Some(uid), flying: None });
    }

    /// What to ask now. Of a token that another credential holds, too, nothing is asked: it lives on with that one.
    pub fn next(&mut self, now: Tick) -> Option<Ask> {
        if self.is_full() {
            return None;
        }
        loop {
            let due = |ended: &Ended| ended.flying.is_none() && ended.due <= now;
            let id = self.ended.iter().find(|(_, ended)| due(ended)).map(|(id, _)| id.clone())?;
            let ended = self.ended.get_mut(&id)?;
            let shared = |(other, known): (&CredentialId, &Known)| {
                *other != id && known.held.token.expose() == ended.held.token.expose()
            };
            if ended.by.is_none() && self.known.iter().any(shared) {
                self.ended.remove(&id);
                continue;
            }
            self.next_number += 1;
            ended.flying = Some(self.next_number);
            return Some(Ask { number: self.next_number, id, held: ended.held.clone() });
        }
    }

    fn is_full(&self) -> bool {
        self.ended.values().filter(|ended| ended.flying.is_some()).count() >= AT_ONCE
    }

    /// Whether an answer is to come.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.ended.values().any(|ended| ended.flying.is_some())
    }

    /// How long there is nothing to ask; none: until something ends.
    #[must_use]
    pub fn wait(&self, now: Tick) -> Option<Duration> {
        if self.is_full() {
            return None;
        }
        self.ended.values().filter(|ended| ended.flying.is_none()).map(|ended| ended.due.since(now)).min()
    }

    /// An answer came: how the revocation ended, unless it is tried again.
    pub fn answered(&mut self, now: Tick, number: u64, result: Result<(), ExchangeError>) -> Option<Outcome> {
        let id = self.ended.iter().find(|(_, ended)| ended.flying == Some(number)).map(|(id, _)| id.clone())?;
        let ended = self.ended.get_mut(&id)?;
        ended.flying = None;
        ended.tries += 1;
        if let Err(error) = &result
            && error.kind.class() == Class::Transient
            && ended.tries < TRIES
            && ended.by.is_none()
        {
            let wait = AGAIN.saturating_mul(1 << (ended.tries - 1)).max(error.retry_after.unwrap_or_default());
            ended.due = now.plus(wait);
            return None;
        }
        let Ended { held, by, .. } = self.ended.remove(&id)?;
        let jti_sha256 = audit::jti_sha256(held.token.expose());
        Some(Outcome { id, provider: held.provider, by, jti_sha256, result })
    }

    /// Let go of the tokens that this does not hold for (of a credential, and a provider's name); orders stay.
    pub fn retain(&mut self, may: impl Fn(&CredentialId, &str) -> bool) {
        self.known.retain(|id, known| may(id, &known.held.provider));
        self.ended.retain(|id, ended| ended.by.is_some() || may(id, &ended.held.provider));
    }

    /// The courier died: what was under way is asked again.
    pub fn lost(&mut self, now: Tick) -> Vec<Outcome> {
        let flying: Vec<u64> = self.ended.values().filter_map(|ended| ended.flying).collect();
        let error = || ExchangeError::new(Kind::CourierLost, "the network process ended");
        flying.into_iter().filter_map(|number| self.answered(now, number, Err(error()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::UserName;

    fn id(base: &str) -> CredentialId {
        CredentialId::from_base(UserName::parse("alice").unwrap(), base).unwrap()
    }

    fn held(token: &str) -> Held {
        Held { provider: "grid".into(), token: RefreshToken::parse(token).unwrap() }
    }

    const TOP: Identity = Identity { ino: 2, size: 3, mtime_ns: 4, hash: [5; 16] };
    const WAIT: Duration = Duration::from_secs(600);
    const AFTER: Tick = Tick(600_000);

    fn with(tokens: &[(&str, &str)]) -> Revoker {
        let mut revoker = Revoker::default();
        for (base, token) in tokens {
            assert!(revoker.seen(&id(base), TOP, "grid"));
            revoker.learned(id(base), TOP, held(token));
            assert!(!revoker.seen(&id(base), TOP, "grid"), "it is read once");
        }
        revoker
    }

    #[test]
    fn a_swept_credential_is_given_back_after_its_time_and_once() {
        let mut revoker = with(&[("grid", "t")]);
        revoker.left(Tick(0), &id("grid"), WAIT);
        assert!(revoker.next(Tick(599_999)).is_none());
        assert_eq!(revoker.wait(Tick(0)), Some(WAIT));
        let ask = revoker.next(AFTER).unwrap();
        assert_eq!((ask.id, ask.held.token.expose()), (id("grid"), "t"));
        assert!(revoker.next(AFTER).is_none());
        assert!(revoker.answered(AFTER, ask.number, Ok(())).unwrap().result.is_ok());
        assert!(revoker.next(Tick(u64::MAX)).is_none());
    }

    #[test]
    fn a_full_house_waits_for_an_answer_and_not_for_a_time() {
        let mut revoker = Revoker::default();
        for n in 0..=AT_ONCE {
            revoker.order(Tick(0), id(&format!("grid_{n}")), held("t"), 0);
        }
        let asks: Vec<Ask> = std::iter::from_fn(|| revoker.next(Tick(1))).collect();
        assert_eq!((asks.len(), revoker.wait(Tick(1))), (AT_ONCE, None));
        revoker.answered(Tick(1), asks[0].number, Ok(()));
        assert_eq!(revoker.wait(Tick(1)), Some(Duration::ZERO));
    }

    #[test]
    fn what_a_lost_courier_was_asked_leaves_its_place_and_orders_are_answered() {
        let mut revoker = with(&[("grid", "t")]);
        revoker.left(Tick(0), &id("grid"), Duration::ZERO);
        for n in 1..AT_ONCE {
            revoker.order(Tick(0), id(&format!("grid_{n}")), held("t"), 0);
        }
        while revoker.next(Tick(1)).is_some() {}
        assert!(revoker.is_full());
        let told = revoker.lost(Tick(1));
        assert_eq!(told.len(), AT_ONCE - 1);
        assert!(told.iter().all(|outcome| outcome.by.is_some() && outcome.result.is_err()));
        assert_eq!(revoker.wait(Tick(1)), Some(AGAIN), "the one that left is asked again");
    }

    #[test]
    fn what_may_not_be_given_back_any_more_is_let_go_and_orders_stay() {
        let mut revoker = with(&[("grid", "t"), ("other", "u"), ("grid_x", "v")]);
        revoker.left(Tick(0), &id("grid_x"), WAIT);
        revoker.order(Tick(0), id("grid_y"), held("w"), 0);
        revoker.retain(|id, provider| provider == "grid" && id.base() == "other");
        assert_eq!(revoker.known.keys().map(CredentialId::base).collect::<Vec<_>>(), ["other"]);
        assert_eq!(revoker.ended.keys().map(CredentialId::base).collect::<Vec<_>>(), ["grid_y"]);
    }

    #[test]
    fn one_that_comes_back_keeps_its_token() {
        let mut revoker = with(&[("grid", "t")]);
        revoker.left(Tick(0), &id("grid"), WAIT);
        assert!(revoker.seen(&id("grid"), TOP, "grid"), "it is read again");
        assert!(revoker.next(AFTER).is_none());
    }

    #[test]
    fn one_whose_service_went_to_another_provider_is_read_again_for_that_one() {
        let mut revoker = with(&[("grid", "t")]);
        assert!(revoker.seen(&id("grid"), TOP, "other"));
        revoker.learned(id("grid"), TOP, Held { provider: "other".into(), ..held("t") });
        assert!(!revoker.seen(&id("grid"), TOP, "other"));
        assert_eq!(revoker.provider_of(&id("grid")), Some("other"));
    }

    #[test]
    fn a_token_that_another_credential_holds_lives_on() {
        let mut revoker = with(&[("grid", "t"), ("grid_x", "t")]);
        revoker.left(Tick(0), &id("grid"), WAIT);
        assert!(revoker.next(AFTER).is_none());
        revoker.left(AFTER, &id("grid_x"), Duration::ZERO);
        assert!(revoker.next(AFTER).is_some(), "the last one takes it along");
    }

    #[test]
    fn what_may_pass_is_tried_five_times_and_what_may_not_once() {
        for (kind, expected) in [(Kind::Timeout, 5), (Kind::ClientRefused, 1)] {
            let mut revoker = with(&[("grid", "t")]);
            revoker.left(Tick(0), &id("grid"), Duration::ZERO);
            let (mut tries, mut now) = (0, Tick(0));
            let outcome = loop {
                let Some(ask) = revoker.next(now) else {
                    now = now.plus(Duration::from_secs(60));
                    continue;
                };
                tries += 1;
                if let Some(outcome) = revoker.answered(now, ask.number, Err(ExchangeError::new(kind, ""))) {
                    break outcome;
                }
            };
            assert_eq!(tries, expected, "{kind}");
            assert_eq!(outcome.result.unwrap_err().kind, kind);
        }
    }
}
