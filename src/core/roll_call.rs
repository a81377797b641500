//! What was known before a reload, until it has been seen since: a planner after a reload knows nothing yet, and what
//! left the directory meanwhile must not go unnoticed, nor what was refused for good be asked for again. A look that fails
//! tells nothing: what it is about goes on to be missed.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    id::{CredentialId, UserName},
    roster::Entry,
    time::Tick,
};

/// A credential as it was before the reload.
#[derive(Debug)]
pub(super) struct Before {
    pub(super) entry: Entry,
    /// Its provider is configured as it was.
    pub(super) same_provider: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RollCall {
    since: Tick,
    missed: BTreeMap<UserName, BTreeMap<CredentialId, Before>>,
}

impl RollCall {
    /// These are missed; looks that began before `since` tell nothing of what is there now.
    pub(super) fn new(since: Tick, known: impl Iterator<Item = Before>) -> Self {
        let mut missed: BTreeMap<UserName, BTreeMap<CredentialId, Before>> = BTreeMap::new();
        for before in known {
            let id = before.entry.id.clone();
            missed.entry(id.user.clone()).or_default().insert(id, before);
        }
        Self { since, missed }
    }

    /// All that are missed still.
    pub(super) fn into_missed(self) -> impl Iterator<Item = Before> {
        self.missed.into_values().flat_map(BTreeMap::into_values)
    }

    /// It is there: as it was, if it was missed.
    pub(super) fn seen(&mut self, id: &CredentialId) -> Option<Before> {
        let ids = self.missed.get_mut(&id.user)?;
        let before = ids.remove(id);
        if ids.is_empty() {
            self.missed.remove(&id.user);
        }
        before
    }

    /// A user's directory was looked at, and all that is there has been [`Self::seen`]: the others of that user are gone.
    pub(super) fn looked(&mut self, user: &UserName, as_of: Tick) -> BTreeSet<CredentialId> {
        if as_of < self.since {
            return BTreeSet::new();
        }
        self.missed.remove(user).unwrap_or_default().into_keys().collect()
    }

    /// These are all users: what others had is gone.
    pub(super) fn listed(&mut self, users: &BTreeSet<UserName>, as_of: Tick) -> Vec<CredentialId> {
        if as_of < self.since {
            return Vec::new();
        }
        let (here, gone) = std::mem::take(&mut self.missed).into_iter().partition(|(user, _)| users.contains(user));
        self.missed = here;
        let gone: BTreeMap<UserName, BTreeMap<CredentialId, Before>> = gone;
        gone.into_values().flat_map(BTreeMap::into_keys).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn user(name: &str) -> UserName {
        UserName::parse(name).unwrap()
    }

    fn id(name: &str, base: &str) -> CredentialId {
        CredentialId::from_base(user(name), base).unwrap()
    }

    fn of<const N: usize>(ids: [CredentialId; N]) -> impl Iterator<Item = Before> {
        ids.into_iter().map(|id| Before { entry: Entry::new(id, 0, Err(Kind::TopEmpty)), same_provider: true })
    }

    fn missed(roll: RollCall) -> Vec<String> {
        roll.into_missed().map(|before| before.entry.id.to_string()).collect()
    }

    #[test]
    fn what_a_look_since_then_does_not_show_is_gone_and_an_earlier_look_tells_nothing() {
        let known = [id("alice", "a"), id("alice", "b"), id("bob", "a")];
        let mut roll = RollCall::new(Tick(10), of(known));
        assert!(roll.looked(&user("alice"), Tick(9)).is_empty());
        roll.seen(&id("alice", "a"));
        assert_eq!(roll.looked(&user("alice"), Tick(10)), BTreeSet::from([id("alice", "b")]));
        assert!(roll.looked(&user("alice"), Tick(11)).is_empty(), "it is told once");
        assert_eq!(missed(roll), ["bob/a"]);
    }

    #[test]
    fn what_users_had_who_are_not_listed_is_gone_and_a_listed_one_who_cannot_be_looked_at_stays_missed() {
        let mut roll = RollCall::new(Tick(10), of([id("alice", "a"), id("bob", "a")]));
        let users = BTreeSet::from([user("bob")]);
        assert!(roll.listed(&users, Tick(9)).is_empty());
        assert_eq!(roll.listed(&users, Tick(10)), [id("alice", "a")]);
        assert_eq!(missed(roll), ["bob/a"]);
    }
}
