//! How a driver ends: what is out comes home first, as far as there is time for it; and what the next one goes on from
//! after a reload.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Driver, End, Owner};
use crate::{
    core::{id::CredentialId, planner::Unkept, time::Now},
    keeper::{announce, reload, scanner},
};

/// A reload waits for answers that take longer than this before it waits for all others.
pub(super) const SLOW: Duration = Duration::from_secs(1);
/// The courier is started anew for the page no more often than this.
const BETWEEN_RESTARTS: Duration = Duration::from_secs(60);

impl Driver {
    /// Whether it is time to let nothing more out for a reload. Where an issuer hangs, it alone is asked no more until its
    /// answers came or their time is over, and the others' renewals go on.
    pub(super) fn reload_is_near(&mut self, now: Now) -> bool {
        let Some(since) = self.reload_since.filter(|_| self.stop_by.is_none()) else { return false };
        let slow = self.planner.hold_where_answers_take(now, SLOW);
        let home = self.planner.is_idle() || (!slow && since.elapsed() >= SLOW);
        let near = home || since.elapsed() >= self.exchange_patience();
        if near {
            self.reload_since = None;
        }
        near
    }

    /// Let nothing more out; what is out may come in for so long.
    pub(super) fn bring_home(&mut self, now: Now, patience: Duration, end: End) {
        self.planner.stop();
        self.stop_by = Some((Instant::now() + patience, end));
        for (number, ..) in std::mem::take(&mut self.unsent) {
            self.lost(now, number);
        }
    }

    /// Longer than any exchange takes: discovery and the request itself have a timeout each.
    pub(super) fn exchange_patience(&self) -> Duration {
        let longest = self.owners.iter().map(|owner| owner.provider.timeout).max().unwrap_or_default();
        longest.saturating_mul(2).saturating_add(Duration::from_secs(10))
    }

    /// Of the oldest request the end should have come long ago: then a courier that is stuck makes room for another.
    /// How long until the next look.
    pub(super) fn wake_the_courier(&mut self) -> Duration {
        let Some((_, since)) = self.asked.first_key_value() else { return Duration::MAX };
        let patience = self.exchange_patience();
        let left = patience.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return left;
        }
        tracing::error!(requests = self.asked.len(), seconds = patience.as_secs(), "the courier answers nothing");
        self.link.restart();
        // That it is down comes as an input.
        self.asked.values_mut().for_each(|since| *since = Instant::now());
        patience
    }

    /// The page's place is free again: a courier that starts now has it. Not while issuers are asked, and not often; it
    /// is wanted again soon.
    pub(super) fn restart_for_page(&mut self) {
        let often = self.for_page.is_some_and(|last| last.elapsed() < BETWEEN_RESTARTS);
        if often || !self.asked.is_empty() || self.revoker.is_asking() {
            return;
        }
        self.for_page = Some(Instant::now());
        tracing::info!("where the page for approvals stands is free now: starting another courier, which may open it");
        self.link.restart();
    }

    pub(super) fn is_home(&self) -> bool {
        let reload = matches!(self.stop_by, Some((_, End::Reload)));
        self.planner.is_idle() || (reload && self.planner.waits_only_for_the_disk())
    }

    /// Go on from where the driver before a reload was: with its numbers, with the refresh tokens that the disk has not
    /// taken yet, with the admins who wait, and with what it knew, of which some may have left meanwhile. What its courier
    /// had been asked is lost with that one.
    pub fn inherit(&mut self, mut before: Self) {
        self.waiting = std::mem::take(&mut before.waiting);
        self.early = std::mem::take(&mut before.early);
        self.revocations_lost(self.clock.now());
        self.keep_what_may_be_revoked();
        let now_at = |unkept: Unkept| {
            let index = scanner::provider_of(&self.owners, &unkept.id);
            (unkept, index)
        };
        let unkept: Vec<_> = before.planner.unkept().into_iter().map(now_at).collect();
        for (Unkept { number, .. }, _) in &unkept {
            // One that is with the disk comes back by its number.
            if let Some(held) = before.held.remove(number) {
                self.held.insert(*number, held);
            }
        }
        self.planner.inherit(self.clock.now(), &before.planner, unkept);
        let as_it_was = |owner: &Arc<Owner>| {
            let was = before.owners.iter().find(|was| was.provider.name == owner.provider.name);
            was.is_some_and(|was| reload::is_same(&was.provider, &owner.provider))
        };
        let as_they_were: Vec<bool> = self.owners.iter().map(as_it_was).collect();
        let provider = |id: &CredentialId| as_they_were.get(scanner::provider_of(&self.owners, id)?).copied();
        self.planner.expect(self.first_scan.since(), before.planner, provider);
    }

    /// Say of which credentials the refresh token did not get into its `.top`.
    pub(super) fn tell_unkept(&self) {
        for Unkept { number, id, .. } in self.planner.unkept() {
            // One that is not here is with the disk at this moment: what it writes, the next start finds.
            let written = self.held.get(&number).is_none_or(|held| held.reservation.is_written());
            let (user, service, handle) = announce::names(&id);
            if written {
                tracing::warn!(
                    user,
                    service,
                    handle,
                    "a rotated refresh token did not get into its .top; the next start tries again"
                );
            } else {
                tracing::error!(
                    user,
                    service,
                    handle,
                    "a rotated refresh token could not be written anywhere: it is lost, the user must approve again"
                );
            }
        }
    }

    /// Say for which credentials the issuer's answer was not waited for.
    pub(super) fn tell_unanswered(&self) {
        for held in self.asked.keys().filter_map(|number| self.held.get(number)) {
            let (user, service, handle) = announce::names(&held.id);
            tracing::warn!(
                user,
                service,
                handle,
                provider = held.owner.provider.name,
                "stopped before the issuer answered: if it rotates refresh tokens, the user may have to approve again"
            );
        }
    }
}
