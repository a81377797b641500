//! The accounts that the configuration names (`kind = "client-credentials"`): each of their credentials gets a `.top`
//! that stands in for an approval (`core::stand_in`), so that everything from there on is as for any other credential.
//! It is put there before each look, so that one that was swept or deleted is back before anybody could take it for
//! gone: the next access token follows at once, and no replica is taken away meanwhile.
//!
//! A `.top` that is not ours stays as it is: what is in it is of no account for these services, and may be worth
//! something to whoever stored it.

use std::sync::Arc;

use super::{driver::Owner, told::Told};
use crate::{
    config::settings::Accounts,
    core::{
        id::{CredentialId, UserName},
        stand_in,
        time::Tick,
    },
    spool::Spool,
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

    /// Everybody's.
    pub(super) fn provide_all(&mut self, spool: &Spool, owners: &[Arc<Owner>], now: Tick) {
        for (owner, accounts) in with_accounts(owners) {
            for user in accounts.users.iter().filter_map(|user| UserName::parse(user).ok()) {
                self.provide_of(spool, owner, accounts, &user, now);
            }
        }
    }

    /// One user's, if any provider names that one.
    pub(super) fn provide(&mut self, spool: &Spool, owners: &[Arc<Owner>], user: &UserName, now: Tick) {
        for (owner, accounts) in with_accounts(owners) {
            if accounts.users.iter().any(|name| name == user.as_str()) {
                self.provide_of(spool, owner, accounts, user, now);
            }
        }
    }

    fn provide_of(&mut self, spool: &Spool, owner: &Owner, accounts: &Accounts, user: &UserName, now: Tick) {
        let provider = &owner.provider;
        let ids = provider.services.iter().flat_map(|service| accounts.bases(service));
        for id in ids.filter_map(|base| CredentialId::from_base(user.clone(), &base).ok()) {
            let audience = provider.audience_of(id.handle.as_ref());
            let text = stand_in::text(&provider.name, &provider.scopes, audience);
            match spool.stand_in(&id, &text, self.condor) {
                Ok(made) => {
                    self.told.retain(|(other, _)| *other != id);
                    if made {
                        let handle = id.handle.as_ref().map_or("", |handle| handle.as_str());
                        let (service, provider) = (id.service.as_str(), provider.name.as_str());
                        tracing::info!(%user, service, handle, provider, "the configuration names this account");
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
}

fn with_accounts(owners: &[Arc<Owner>]) -> impl Iterator<Item = (&Owner, &Accounts)> {
    owners.iter().filter_map(|owner| Some((owner.as_ref(), owner.provider.accounts()?)))
}
