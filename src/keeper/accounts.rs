//! The accounts that the configuration names (`kind = "client-credentials"`): each of their credentials gets a `.top`
//! that stands in for an approval (`core::stand_in`), so that everything from there on is as for any other credential.
//! It is put there before each look, so that one that was swept or deleted is back before anybody could take it for
//! gone: the next access token follows at once, and no replica is taken away meanwhile.
//!
//! A `.top` that is not ours stays as it is: what is in it is of no account for these services, and may be worth
//! something to whoever stored it.

use std::sync::Arc;

use super::{announce, driver::Owner, told::Told};
use crate::{
    config::settings::Provider,
    core::{
        id::{CredentialId, UserName},
        stand_in,
        time::Tick,
    },
    spool::{Seen, Spool},
};

/// Sees to them.
#[derive(Debug)]
pub(super) struct Stewards {
    /// Whose users' directories are.
    condor: Option<u32>,
    told: Told<(CredentialId, String)>,
}

impl Stewards {
    pub(super) fn new(condor: Option<u32>) -> Self {
        Self { condor, told: Told::default() }
    }

    /// Whether one of the credentials that these name for the user is not among what was seen: it went between
    /// [`Stewards::provide`] and the look.
    pub(super) fn miss(owners: &[Arc<Owner>], user: &UserName, seen: &[Seen]) -> bool {
        named(owners, Some(user)).any(|(_, id)| seen.iter().all(|seen| seen.id != id))
    }

    /// Whether the user's directory lacks what these put there.
    pub(super) fn lack(spool: &Spool, owners: &[Arc<Owner>], user: &UserName) -> bool {
        named(owners, Some(user)).any(|(_, id)| spool.lacks_top(&id))
    }

    /// Whom the configuration names.
    pub(super) fn users(owners: &[Arc<Owner>]) -> impl Iterator<Item = UserName> {
        named(owners, None).map(|(_, id)| id.user)
    }

    /// Everybody's.
    pub(super) fn provide_all(&mut self, spool: &Spool, owners: &[Arc<Owner>], now: Tick) {
        for (provider, id) in named(owners, None) {
            self.put(spool, provider, &id, now);
        }
    }

    /// One user's, if any provider names that one.
    pub(super) fn provide(&mut self, spool: &Spool, owners: &[Arc<Owner>], user: &UserName, now: Tick) {
        for (provider, id) in named(owners, Some(user)) {
            self.put(spool, provider, &id, now);
        }
    }

    fn put(&mut self, spool: &Spool, provider: &Provider, id: &CredentialId, now: Tick) {
        let text = stand_in::text(&provider.name, &provider.scopes, provider.audience_of(id.handle.as_ref()));
        match spool.stand_in(id, &text, self.condor) {
            Ok(made) => {
                self.told.retain(|(other, _)| other != id);
                if made {
                    let (user, service, handle) = announce::names(id);
                    let provider = provider.name.as_str();
                    tracing::info!(user, service, handle, provider, "the configuration names this account");
                }
            }
            Err(error) => {
                if self.told.tell(now, (id.clone(), error.to_string())) {
                    tracing::error!(credential = %id, provider = provider.name, %error, "no .top for an account");
                }
            }
        }
    }
}

/// Every credential that the configuration names; `only`: of this user.
fn named<'o>(
    owners: &'o [Arc<Owner>],
    only: Option<&'o UserName>,
) -> impl Iterator<Item = (&'o Provider, CredentialId)> {
    let with_accounts = owners.iter().filter_map(|owner| Some((&owner.provider, owner.provider.accounts()?)));
    with_accounts.flat_map(move |(provider, accounts)| {
        let wanted = move |user: &&String| only.is_none_or(|only| only.as_str() == user.as_str());
        let users = accounts.users.iter().filter(wanted).filter_map(|user| UserName::parse(user).ok());
        users.flat_map(move |user| {
            let bases = provider.services.iter().flat_map(|service| accounts.bases(service));
            bases.filter_map(move |base| Some((provider, CredentialId::from_base(user.clone(), &base).ok()?)))
        })
    })
}
