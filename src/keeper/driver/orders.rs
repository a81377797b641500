//! What admins order: renew, revoke, replicate, and what they have imported. Each order is audited, and so is its refusal.

use std::{
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use super::Driver;
use crate::{
    core::{
        id::{CredentialId, UserName},
        planner::Event,
        time::Now,
    },
    keeper::{
        audit::{Decision, Entry},
        control::{Order, Reply},
        disk::Job,
        replicas,
    },
};

/// How long the thread of the replicas may take to answer an order: it does no network.
const REPLICATION_PATIENCE: Duration = Duration::from_millis(500);
/// So many orders wait for the first look at the most.
const EARLY: usize = 64;

impl Driver {
    /// What is refused is audited as what is done. What is about a credential that the first look may still find waits
    /// for the end of that.
    pub(super) fn order(&mut self, now: Now, uid: u32, order: &Order, reply: &SyncSender<Reply>) {
        let unknown = match order {
            Order::Revoke { user, credential } => self.named(now, user, Some(credential)).is_empty(),
            Order::Renew { user, credential } => self.named(now, user, credential.as_deref()).is_empty(),
            Order::Replicate { .. } | Order::Imported { .. } => false,
        };
        if unknown && !self.first_scan.is_over() && self.early.len() < EARLY {
            self.early.push((uid, order.clone(), reply.clone()));
            return;
        }
        let answer = match order {
            Order::Revoke { user, credential } => match self.order_revocation(now, uid, user, credential, reply) {
                // The answer comes when the issuer's does.
                Ok(()) => return,
                Err(why) => Reply::Refused { why },
            },
            Order::Renew { user, credential } => self.order_renewal(now, uid, user, credential.as_deref()),
            Order::Replicate { credential, site } => {
                self.order_replication(now, uid, credential.as_deref(), site.clone())
            }
            Order::Imported { user, credential, from } => self.imported(now, uid, user, credential, from),
        };
        if let Reply::Refused { why } = &answer {
            self.refusal_is_audited(now, uid, Some(order), why);
        }
        // Whoever gave it may be gone.
        drop(reply.try_send(answer));
    }

    /// Send what sites have or should have once more.
    fn order_replication(&self, now: Now, uid: u32, credential: Option<&str>, site: Option<String>) -> Reply {
        let refused = |why: String| Reply::Refused { why };
        let id = match credential.map(|name| name.split_once('/').ok_or(name)) {
            None => None,
            Some(Err(name)) => return refused(format!("{name:?} is not USER/SERVICE")),
            Some(Ok((user, base))) => {
                match UserName::parse(user).and_then(|user| CredentialId::from_base(user, base)) {
                    Ok(id) => Some(id),
                    Err(error) => return refused(error.to_string()),
                }
            }
        };
        let (reply, count) = sync_channel(1);
        let words = site.clone();
        self.replication.tell(replicas::Told::Again { id: id.clone(), site, reply });
        match count.recv_timeout(REPLICATION_PATIENCE) {
            Ok(Some(0)) => refused("no site wants that credential; see the rules of the sites".to_owned()),
            Ok(Some(credentials)) => {
                self.order_is_audited(now, uid, "replicate", id.as_ref(), words);
                Reply::Done { credentials }
            }
            Ok(None) => refused(format!("there is no site {}", words.unwrap_or_default())),
            Err(_) => refused(
                "nothing is replicated just now: no site is configured, or evercred doctor tells why".to_owned(),
            ),
        }
    }

    /// An admin has stored what another credential monitor had, by `evercred import`.
    fn imported(&self, now: Now, uid: u32, user: &str, base: &str, from: &str) -> Reply {
        let id = UserName::parse(user).and_then(|user| CredentialId::from_base(user, base));
        let id = match id {
            Ok(id) => id,
            Err(error) => return Reply::Refused { why: error.to_string() },
        };
        let entry = Entry::new(now.wall, Decision::Imported).of(&id).from(self.owner_of(&id).map(|o| &o.provider));
        self.announcer.audit().record(entry.ordered_by(uid).saying(from));
        Reply::Done { credentials: 1 }
    }

    /// The audit line of an admin's command.
    fn order_is_audited(&self, now: Now, uid: u32, what: &str, id: Option<&CredentialId>, site: Option<String>) {
        let mut entry = Entry::new(now.wall, Decision::Admin).ordered_by(uid).saying(what);
        if let Some(id) = id {
            entry = entry.of(id).from(self.owner_of(id).map(|owner| &owner.provider));
        }
        self.announcer.audit().record(Entry { site, ..entry });
    }

    /// The audit line of a command that was refused. What it names may be no user or credential at all, and stands in
    /// the detail alone.
    pub(super) fn refusal_is_audited(&self, now: Now, uid: u32, order: Option<&Order>, why: &str) {
        let words = [order.map_or("order", Order::word), &order.map(Order::whose).unwrap_or_default()]
            .into_iter()
            .filter(|word| !word.is_empty())
            .collect::<Vec<_>>()
            .join(" ");
        let entry = Entry::new(now.wall, Decision::Admin).ordered_by(uid).saying(format!("{words}: {why}"));
        self.announcer.audit().record(Entry { result: "refused", ..entry });
    }

    /// The credentials that an admin means, with their providers.
    pub(super) fn named(&self, now: Now, user: &str, credential: Option<&str>) -> Vec<(CredentialId, usize)> {
        let Ok(user) = UserName::parse(user) else { return Vec::new() };
        self.planner
            .rows(now, Some(&user))
            .filter(|row| credential.is_none_or(|base| row.id.base() == *base))
            .map(|row| (row.id.clone(), row.provider))
            .collect()
    }

    fn there_is_no(&self, name: &str) -> String {
        if self.first_scan.is_over() {
            format!("there is no credential {name}")
        } else {
            format!("{name} is not known yet: not every directory was looked at since the start or the last reload")
        }
    }

    /// An admin gives a refresh token back now; the answer comes when the issuer's does, or at once: why not.
    fn order_revocation(
        &mut self,
        now: Now,
        uid: u32,
        user: &str,
        credential: &str,
        reply: &SyncSender<Reply>,
    ) -> Result<(), String> {
        let known = self.named(now, user, Some(credential)).into_iter().next();
        let owner = known.and_then(|(id, provider)| Some((id, Arc::clone(self.owners.get(provider)?))));
        let (id, owner) = owner.ok_or_else(|| self.there_is_no(&format!("{user}/{credential}")))?;
        self.order_is_audited(now, uid, "revoke", Some(&id), None);
        self.waiting.insert(id.clone(), reply.clone());
        self.disk.submit(Job::Learn { id, owner, order: Some(uid) });
        Ok(())
    }

    /// Renew what an admin orders.
    fn order_renewal(&mut self, now: Now, uid: u32, user: &str, credential: Option<&str>) -> Reply {
        let known = self.named(now, user, credential);
        if known.is_empty() {
            let name = credential.map_or_else(|| user.to_owned(), |base| format!("{user}/{base}"));
            return Reply::Refused { why: self.there_is_no(&name) };
        }
        let credentials = known.len();
        for (id, _) in known {
            self.order_is_audited(now, uid, "renew", Some(&id), None);
            self.planner.handle(now, Event::Renew { id });
        }
        Reply::Done { credentials }
    }
}
