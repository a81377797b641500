//! Who is to be told what, before it hurts: pure decisions over how credentials stand and what was told before.
//!
//! A user is told
//! - once a step before a refresh token ends; of the steps only those that are less than nine tenths of its life, so that
//!   who has just approved is told nothing; where none is, once when its last quarter begins;
//! - once when the issuer refuses it while jobs need it, and once when it is renewed again after that;
//! - what may be the user's fault or the admins' (a scope, a key) as long as no other user of the provider has it.
//!
//! Admins are told, once a provider and once a site, each kind of trouble that is theirs to mend; once that an issuer is
//! down, whatever its credentials show meanwhile; and once that it works again.
//!
//! What was told is [`Memory`], which outlives restarts. It is cleared only by what mends the trouble (a renewal, another
//! end, the credential gone), never by time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use super::standing::{Jobs, Policy, Provider, Queue, Standing, Standings};
use super::{
    budget::Outage,
    ending::same_end,
    figures::{Mender, is_issuers, mender},
    id::{CredentialId, UserName},
    site::{Late, Site},
    time::Timestamp,
};
use crate::error::Kind;

/// What people have been told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// By `user/S_H`.
    pub credentials: BTreeMap<String, Told>,
    /// Kinds of trouble that admins were told, by provider.
    pub providers: BTreeMap<String, BTreeSet<Kind>>,
    /// Providers whose issuer is down, as admins were told.
    #[serde(default)]
    pub outages: BTreeSet<String>,
    /// Reasons for which copies are behind that admins were told, by site; none: they were not tried.
    #[serde(default)]
    pub sites: BTreeMap<String, BTreeSet<Option<Kind>>>,
}

/// What was told about one credential.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The end that was told, and the shortest step, in seconds; 0: the last quarter of a short life.
    pub ending: Option<(Timestamp, u64)>,
    /// An end that will come, and since when the token with it is there, where files do not tell.
    #[serde(default)]
    pub since: Option<(Timestamp, Timestamp)>,
    /// The refusal that was told.
    pub refused: Option<Kind>,
}

impl Told {
    /// Since when the token is there that ends then.
    fn since(&self, standing: &Standing, at: Timestamp) -> Option<Timestamp> {
        let remembered = self.since.filter(|(end, _)| same_end(*end, at)).map(|(_, since)| since);
        [remembered, standing.approved].into_iter().flatten().min()
    }
}

/// What is wrong with a credential, or will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matter {
    /// The refresh token ends then.
    Ending(Timestamp),
    /// The issuer refuses it, or it cannot be used.
    Refused(Kind),
}

/// One credential in a notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Which.
    pub id: CredentialId,
    /// Name of its provider.
    pub provider: String,
    /// What.
    pub matter: Matter,
    /// Of an end: the step that this tells, as [`Told`] has it.
    pub step: Option<u64>,
    /// Until when jobs have a token.
    pub expires: Option<Timestamp>,
}

impl Item {
    fn of(standing: &Standing, matter: Matter, step: Option<u64>) -> Self {
        let (id, provider) = (standing.id.clone(), standing.provider.clone());
        Self { id, provider, matter, step, expires: standing.expires }
    }

    /// What is wrong with it already.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        match self.matter {
            Matter::Ending(_) => None,
            Matter::Refused(kind) => Some(kind),
        }
    }
}

/// A kind of trouble with a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failing {
    /// What.
    pub kind: Kind,
    /// How many credentials have it.
    pub count: usize,
    /// The soonest end of their access tokens.
    pub soonest: Option<Timestamp>,
    /// Since when the issuer is down or refuses our client; none: that is not what it is.
    pub down_since: Option<Timestamp>,
}

/// What one recipient is to be told now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A user, about own credentials.
    User {
        /// Whom.
        user: UserName,
        /// What.
        items: Vec<Item>,
        /// The user's jobs, as far as known.
        jobs: Queue,
    },
    /// A user, about own credentials that are renewed again after a notice of a refusal.
    Well {
        /// Whom.
        user: UserName,
        /// Which.
        credentials: Vec<CredentialId>,
    },
    /// The admins, about a provider.
    Admins {
        /// Which provider.
        provider: String,
        /// What users are told in this round.
        items: Vec<Item>,
        /// What is the admins' to mend.
        troubles: Vec<Failing>,
    },
    /// The admins, about a provider that works again.
    Over {
        /// Which provider.
        provider: String,
        /// What they had been told.
        kinds: Vec<Kind>,
    },
    /// The admins, about a site.
    Site {
        /// Name of the site.
        site: String,
        /// Its kind, as configured.
        kind: String,
        /// Copies that it should have.
        replicas: u64,
        /// Why how many of them are behind, and since when.
        late: Vec<(Option<Kind>, Late)>,
    },
}

impl Memory {
    /// Note that this is told.
    pub fn note(&mut self, notice: &Notice) {
        match notice {
            Notice::User { items, .. } => {
                for item in items {
                    let told = self.credentials.entry(item.id.to_string()).or_default();
                    match item.matter {
                        Matter::Ending(at) => told.ending = item.step.map(|step| (at, step)),
                        Matter::Refused(kind) => told.refused = Some(kind),
                    }
                }
            }
            Notice::Well { credentials, .. } => {
                for id in credentials {
                    if let Some(told) = self.credentials.get_mut(&id.to_string()) {
                        told.refused = None;
                    }
                }
                self.credentials.retain(|_, told| *told != Told::default());
            }
            Notice::Admins { provider, troubles, .. } => {
                for Failing { kind, down_since, .. } in troubles {
                    self.providers.entry(provider.clone()).or_default().insert(*kind);
                    if down_since.is_some() {
                        self.outages.insert(provider.clone());
                    }
                }
            }
            Notice::Over { provider, kinds } => {
                if let Some(told) = self.providers.get_mut(provider) {
                    told.retain(|kind| !kinds.contains(kind));
                }
                self.providers.retain(|_, kinds| !kinds.is_empty());
            }
            Notice::Site { site, late, .. } => {
                self.sites.entry(site.clone()).or_default().extend(late.iter().map(|(kind, _)| *kind));
            }
        }
    }

    fn admins_know(&self, provider: &str, kind: Kind) -> bool {
        self.providers.get(provider).is_some_and(|kinds| kinds.contains(&kind))
    }
}

/// Users for whom it matters now whether they have jobs.
#[must_use]
pub fn asks_for_jobs(policy: &Policy, memory: &Memory, now: Timestamp, standings: &[Standing]) -> BTreeSet<UserName> {
    due(policy, memory, now, standings).map(|item| item.id.user).collect()
}

/// What is to be told now, and how many users have to wait since only so many can be told. What `memory` has to forget is
/// [`settle`]d before; what is really told is noted in it afterwards ([`Memory::note`]): the rest is decided anew.
#[must_use]
pub fn decide(
    policy: &Policy,
    memory: &Memory,
    now: Timestamp,
    all: &Standings,
    jobs: &Jobs,
    room: usize,
) -> (Vec<Notice>, usize) {
    let mut users: BTreeMap<UserName, Vec<Item>> = BTreeMap::new();
    for item in due(policy, memory, now, &all.credentials) {
        if item.kind().is_none() || jobs.may_have(&item.id.user) {
            users.entry(item.id.user.clone()).or_default().push(item);
        }
    }
    let well = healed(memory, &all.credentials);
    let waiting = (users.len() + well.len()).saturating_sub(room);
    let mut providers: BTreeMap<String, Vec<Item>> = BTreeMap::new();
    let mut notices = Vec::new();
    for (user, items) in users.into_iter().take(room) {
        for item in &items {
            providers.entry(item.provider.clone()).or_default().push(item.clone());
        }
        notices.push(Notice::User { jobs: jobs.of(&user), user, items });
    }
    let left = room - notices.len();
    let mut troubles = troubles(policy, memory, all);
    for (provider, items) in providers {
        let troubles = troubles.remove(provider.as_str()).unwrap_or_default();
        notices.push(Notice::Admins { provider, items, troubles });
    }
    notices.extend(troubles.into_iter().map(|(provider, troubles)| Notice::Admins {
        provider: provider.to_owned(),
        items: Vec::new(),
        troubles,
    }));
    notices.extend(well.into_iter().take(left));
    notices.extend(over(memory, all));
    notices.extend(all.sites.iter().filter_map(|site| stays_behind(policy, memory, now, site)));
    (notices, waiting)
}

/// Forget what is mended, or gone, and of which nobody wants to hear; take note of what needs no telling.
pub fn settle(memory: &mut Memory, Standings { credentials, providers, sites }: &Standings) {
    let by_name: BTreeMap<String, &Standing> = credentials.iter().map(|s| (s.id.to_string(), s)).collect();
    memory.credentials.retain(|name, told| {
        let Some(standing) = by_name.get(name) else { return false };
        // After a start only a renewal may tell it again.
        let stays = |at| standing.refresh_ends.is_none_or(|end| same_end(end, at));
        told.ending = told.ending.filter(|(at, _)| stays(*at));
        told.since = told.since.filter(|(at, _)| stays(*at));
        *told != Told::default()
    });
    for standing in credentials.iter().filter(|standing| standing.rotated && standing.rolling == Some(false)) {
        if let (Some(at), Some(approved)) = (standing.refresh_ends, standing.approved) {
            let told = memory.credentials.entry(standing.id.to_string()).or_default();
            told.since.get_or_insert((at, approved));
        }
    }
    let configured: BTreeSet<&str> = providers.iter().map(|provider| provider.name.as_str()).collect();
    memory.providers.retain(|name, _| configured.contains(name.as_str()));
    memory.outages.retain(|name| configured.contains(name.as_str()));
    for provider in providers {
        if provider.well {
            memory.outages.remove(&provider.name);
        }
    }
    // After a start it takes a moment until sites and their copies are known again.
    let caught_up = |site: &&Site| site.replicas > 0 && site.late.is_empty();
    let well: BTreeSet<&str> = sites.iter().filter(caught_up).map(|site| site.name.as_str()).collect();
    memory.sites.retain(|name, _| !well.contains(name.as_str()));
}

/// Users whose credentials are renewed again after a refusal that they were told.
fn healed(memory: &Memory, credentials: &[Standing]) -> Vec<Notice> {
    let mut healed: BTreeMap<&UserName, Vec<CredentialId>> = BTreeMap::new();
    for standing in credentials.iter().filter(|standing| standing.well) {
        if memory.credentials.get(&standing.id.to_string()).is_some_and(|told| told.refused.is_some()) {
            healed.entry(&standing.id.user).or_default().push(standing.id.clone());
        }
    }
    healed.into_iter().map(|(user, credentials)| Notice::Well { user: user.clone(), credentials }).collect()
}

/// Providers with which it is over what admins were told.
fn over(memory: &Memory, Standings { credentials, providers, .. }: &Standings) -> Vec<Notice> {
    let mut over = Vec::new();
    // That nothing fails may only mean that nothing was tried yet.
    for provider in providers.iter().filter(|provider| provider.well) {
        let failing = |kind: Kind| {
            credentials.iter().any(|s| s.provider == provider.name && s.error.is_some_and(|(found, _)| found == kind))
        };
        let told = memory.providers.get(&provider.name).into_iter().flatten();
        let kinds: Vec<Kind> = told.copied().filter(|kind| !failing(*kind)).collect();
        if !kinds.is_empty() {
            over.push(Notice::Over { provider: provider.name.clone(), kinds });
        }
    }
    over
}

/// What may be a user's or the admins' to mend, and is the admins' since several users of a provider have it.
fn shared(standings: &[Standing]) -> BTreeSet<(&str, Kind)> {
    let mut first: BTreeMap<(&str, Kind), &UserName> = BTreeMap::new();
    let troubled = standings.iter().filter_map(|standing| Some((standing, standing.error?.0)));
    let either = troubled.filter(|(_, kind)| mender(*kind) == Mender::Either);
    either
        .filter_map(|(standing, kind)| {
            let key = (standing.provider.as_str(), kind);
            (*first.entry(key).or_insert(&standing.id.user) != &standing.id.user).then_some(key)
        })
        .collect()
}

/// Whether this is the user's to mend.
fn is_users(shared: &BTreeSet<(&str, Kind)>, standing: &Standing, kind: Kind) -> bool {
    match mender(kind) {
        Mender::User => true,
        Mender::Either => !shared.contains(&(standing.provider.as_str(), kind)),
        Mender::Admin => false,
    }
}

/// What users have to hear, and have not heard.
fn due<'a, 'm>(
    policy: &'m Policy,
    memory: &'m Memory,
    now: Timestamp,
    standings: &'a [Standing],
) -> impl Iterator<Item = Item> + use<'a, 'm> {
    let shared = shared(standings);
    standings.iter().filter_map(move |standing| {
        let told = memory.credentials.get(&standing.id.to_string()).cloned().unwrap_or_default();
        if let Some((kind, times)) = standing.error
            && is_users(&shared, standing, kind)
            && standing.stays(policy, times)
        {
            // Another kind of refusal is no news.
            return told.refused.is_none().then(|| Item::of(standing, Matter::Refused(kind), None));
        }
        let at = standing.refresh_ends.filter(|_| !standing.parked)?;
        let since = told.since(standing, at);
        let told = told.ending.filter(|(end, _)| same_end(*end, at));
        // What was told once, before a restart, and is still the end, is known not to move.
        let stays = standing.rolling == Some(false) || (standing.rolling.is_none() && told.is_some());
        let fails = standing.error.is_some_and(|(_, times)| times >= policy.after_failures);
        let step = step(policy, now, at, since).filter(|_| stays || fails)?;
        let heard = told.is_some_and(|(_, least)| least <= step);
        (!heard).then(|| Item::of(standing, Matter::Ending(at), Some(step)))
    })
}

/// The shortest step that has begun, in seconds, of a token that is there since then; none once the end is there: then the
/// issuer's refusal is what to tell. A step that is most of the token's life is none. If none is left, the last quarter of
/// that life is one, as 0 seconds.
fn step(policy: &Policy, now: Timestamp, at: Timestamp, since: Option<Timestamp>) -> Option<u64> {
    let left = at.since(now);
    if left.is_zero() {
        return None;
    }
    // A time in the future tells nothing.
    let life = since.filter(|since| *since <= now).map_or(Duration::MAX, |since| at.since(since));
    let steps: Vec<Duration> = policy.steps.iter().copied().filter(|step| *step < life / 10 * 9).collect();
    if steps.is_empty() {
        return (left <= life / 4).then_some(0);
    }
    steps.into_iter().filter(|step| left <= *step).min().map(|step| step.as_secs())
}

/// What admins have to mend, and have not heard: by provider, each kind once.
fn troubles<'a>(policy: &Policy, memory: &Memory, all: &'a Standings) -> BTreeMap<&'a str, Vec<Failing>> {
    let mut troubles: BTreeMap<&str, Vec<Failing>> = BTreeMap::new();
    let mut down: BTreeSet<&str> = BTreeSet::new();
    for provider in &all.providers {
        let Provider { name, outage, living, soonest, .. } = provider;
        if outage.is_some() || memory.outages.contains(name) {
            down.insert(name);
        }
        if let Some(Outage { kind, since, .. }) = provider.lasting(policy)
            && !memory.outages.contains(name)
        {
            let failing = Failing { kind, count: *living, soonest: *soonest, down_since: Some(since) };
            troubles.entry(name).or_default().push(failing);
        }
    }
    let shared = shared(&all.credentials);
    let mut counts: BTreeMap<(&str, Kind), (usize, Option<Timestamp>)> = BTreeMap::new();
    for standing in &all.credentials {
        if let Some((kind, times)) = standing.error
            && !is_users(&shared, standing, kind)
            && standing.stays(policy, times)
            && !(is_issuers(kind) && down.contains(standing.provider.as_str()))
        {
            let (count, soonest) = counts.entry((&standing.provider, kind)).or_default();
            *count += 1;
            *soonest = match (*soonest, standing.expires) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (one, None) | (None, one) => one,
            };
        }
    }
    for ((provider, kind), (count, soonest)) in counts {
        if !memory.admins_know(provider, kind) {
            troubles.entry(provider).or_default().push(Failing { kind, count, soonest, down_since: None });
        }
    }
    troubles
}

/// What admins have not heard of a site yet: the reasons for which copies have been behind for too long.
fn stays_behind(policy: &Policy, memory: &Memory, now: Timestamp, site: &Site) -> Option<Notice> {
    let long = |late: &Late| now.since(late.since) >= policy.site_behind;
    let told = memory.sites.get(&site.name);
    let news = |kind: &Option<Kind>| told.is_none_or(|told| !told.contains(kind));
    let late: Vec<(Option<Kind>, Late)> =
        site.late.iter().filter(|(kind, late)| long(late) && news(kind)).map(|(kind, late)| (*kind, *late)).collect();
    if late.is_empty() {
        return None;
    }
    let (name, kind) = (site.name.clone(), site.kind.clone());
    Some(Notice::Site { site: name, kind, replicas: site.replicas, late })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::standing::of_tests as standing;

    const DAY: u64 = 86_400;
    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn policy() -> Policy {
        let steps = [7 * DAY, 2 * DAY, 6 * 3600].map(Duration::from_secs).to_vec();
        Policy { steps, after_failures: 3, site_behind: Duration::from_secs(1800) }
    }

    fn ending(user: &str, left: u64) -> Standing {
        Standing { refresh_ends: Some(NOW.plus(Duration::from_secs(left))), ..standing(user) }
    }

    fn failing(user: &str, kind: Kind, times: u32) -> Standing {
        Standing { error: Some((kind, times)), ..standing(user) }
    }

    /// Credentials, and a provider that is well if one of them is.
    fn all(credentials: &[Standing]) -> Standings {
        let well = credentials.iter().any(|standing| standing.well);
        let provider = Provider { name: "grid".into(), outage: None, living: credentials.len(), soonest: None, well };
        Standings { credentials: credentials.to_vec(), providers: vec![provider], sites: Vec::new() }
    }

    /// Decide, and note that all of it is told.
    fn tell(memory: &mut Memory, now: Timestamp, all: &Standings, jobs: &Jobs) -> Vec<Notice> {
        settle(memory, all);
        let (notices, waiting) = decide(&policy(), memory, now, all, jobs, usize::MAX);
        assert_eq!(waiting, 0);
        for notice in &notices {
            memory.note(notice);
        }
        notices
    }

    /// Whom the notices are for.
    fn told(memory: &mut Memory, after: u64, standings: &[Standing], jobs: &Jobs) -> Vec<String> {
        words(tell(memory, NOW.plus(Duration::from_secs(after)), &all(standings), jobs))
    }

    fn words(notices: Vec<Notice>) -> Vec<String> {
        notices
            .into_iter()
            .map(|notice| match notice {
                Notice::User { user, items, .. } => format!("{user} {}", items.len()),
                Notice::Admins { provider, items, troubles } => {
                    format!("admins of {provider} {} {}", items.len(), troubles.len())
                }
                Notice::Well { user, credentials } => format!("{user} is well: {}", credentials.len()),
                Notice::Over { provider, kinds } => format!("{provider} is well: {} over", kinds.len()),
                Notice::Site { site, .. } => format!("site {site}"),
            })
            .collect()
    }

    #[test]
    fn a_site_that_stays_behind_is_told_once_a_reason_and_again_only_after_it_caught_up() {
        let mut memory = Memory::default();
        let mut site = Site { name: "farm".into(), replicas: 2, ..Site::default() };
        let told = |memory: &mut Memory, after: u64, site: &Site| {
            let now = NOW.plus(Duration::from_secs(after));
            let all = Standings { sites: vec![site.clone()], ..Standings::default() };
            let notices = tell(memory, now, &all, &Jobs::Unknown);
            *memory = serde_json::from_str(&serde_json::to_string(&memory).unwrap()).unwrap();
            notices.len()
        };
        site.is_late(Some(Kind::SiteTimeout), NOW, None);
        assert_eq!(told(&mut memory, 1799, &site), 0, "a passing thing");
        assert_eq!([1800, 1900, 90_000].map(|after| told(&mut memory, after, &site)), [1, 0, 0]);
        site.is_late(Some(Kind::SiteAuth), NOW, None);
        site.is_late(None, NOW, None);
        assert_eq!(told(&mut memory, 1900, &site), 1, "other reasons are news");
        site.late.clear();
        assert_eq!(told(&mut memory, 2000, &site), 0);
        site.is_late(Some(Kind::SiteTimeout), NOW, None);
        assert_eq!(told(&mut memory, 2000, &site), 1, "it had caught up in between");
        let before: Memory = serde_json::from_str("{\"credentials\":{},\"providers\":{}}").unwrap();
        assert_eq!(before, Memory::default(), "what an older version remembered is read");
    }

    #[test]
    fn a_user_is_told_once_a_step_and_again_only_for_another_end() {
        let (mut memory, jobs) = (Memory::default(), Jobs::Unknown);
        let end = [ending("alice", 10 * DAY)];
        let both = ["alice 1", "admins of grid 1 0"];
        for (after, expected) in [
            (0, &[][..]),
            (3 * DAY, &both),
            (4 * DAY, &[]),
            (8 * DAY, &both),
            (10 * DAY - 3600, &both),
            (11 * DAY, &[]),
        ] {
            assert_eq!(told(&mut memory, after, &end, &jobs), expected, "after {after}");
            memory = serde_json::from_str(&serde_json::to_string(&memory).unwrap()).unwrap();
        }
        // Approved again: another end.
        assert_eq!(told(&mut memory, 11 * DAY, &[ending("alice", 40 * DAY)], &jobs), [""; 0]);
        assert_eq!(told(&mut memory, 39 * DAY, &[ending("alice", 40 * DAY)], &jobs), both);
    }

    fn fresh(life: u64) -> Standing {
        Standing { approved: Some(NOW), ..ending("alice", life) }
    }

    #[test]
    fn who_approves_a_token_of_a_week_is_not_told_at_once_but_two_days_before_its_end() {
        let (mut memory, fresh) = (Memory::default(), [fresh(7 * DAY)]);
        let times = [10, DAY, 5 * DAY - 1, 5 * DAY, 6 * DAY, 7 * DAY - 6 * 3600, 7 * DAY - 60];
        let told = times.map(|after| told(&mut memory, after, &fresh, &Jobs::Unknown).len());
        assert_eq!(told, [0, 0, 0, 2, 0, 2, 0]);
    }

    #[test]
    fn a_token_that_lives_shorter_than_all_steps_is_told_once_in_its_last_quarter() {
        let (mut memory, fresh) = (Memory::default(), [fresh(3600)]);
        let told = [10, 1800, 2690, 2710, 2760, 3500, 3610].map(|after| {
            let jitter = Standing {
                refresh_ends: fresh[0].refresh_ends.map(|end| end.plus(Duration::from_secs(after % 7))),
                ..fresh[0].clone()
            };
            told(&mut memory, after, &[jitter], &Jobs::Unknown).len()
        });
        assert_eq!(told, [0, 0, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn a_step_that_was_crossed_while_the_daemon_was_down_is_told_at_the_next_start() {
        let start = 4 * DAY;
        let found = [fresh(10 * DAY)];
        assert_eq!(told(&mut Memory::default(), start, &found, &Jobs::Unknown).len(), 2, "the file tells its age");
        // Of a token that was rotated, only what was remembered does.
        let mut memory = Memory::default();
        let rotated = Standing { rotated: true, ..fresh(10 * DAY) };
        assert_eq!(told(&mut memory, 10, &[rotated], &Jobs::Unknown), [""; 0]);
        let mut memory: Memory = serde_json::from_str(&serde_json::to_string(&memory).unwrap()).unwrap();
        let last = NOW.plus(Duration::from_secs(3 * DAY - 600));
        let found = [Standing { approved: Some(last), ..fresh(10 * DAY) }];
        assert_eq!(told(&mut memory, start, &found, &Jobs::Unknown).len(), 2);
        // Another one is stored.
        let stored = NOW.plus(Duration::from_secs(start));
        let anew = [Standing { approved: Some(stored), ..ending("alice", 11 * DAY) }];
        assert_eq!(told(&mut memory, start, &anew, &Jobs::Unknown), [""; 0]);
        assert_eq!(memory, Memory::default());
    }

    #[test]
    fn a_file_from_the_future_hides_no_step() {
        let future = Standing { approved: Some(NOW.plus(Duration::from_secs(DAY))), ..ending("alice", 3600) };
        assert_eq!(told(&mut Memory::default(), 0, &[future], &Jobs::Unknown).len(), 2);
    }

    #[test]
    fn a_daemon_that_slept_through_steps_tells_the_last_one_alone() {
        let mut memory = Memory::default();
        assert_eq!(told(&mut memory, 0, &[ending("alice", 3600)], &Jobs::Unknown).len(), 2);
        assert_eq!(told(&mut memory, 60, &[ending("alice", 3600)], &Jobs::Unknown), [""; 0]);
    }

    #[test]
    fn an_end_that_each_renewal_moves_on_or_may_move_is_told_only_once_renewals_stay_failing() {
        for rolling in [Some(true), None] {
            let mut memory = Memory::default();
            let rolling = Standing { rolling, ..ending("alice", 3600) };
            assert_eq!(told(&mut memory, 0, std::slice::from_ref(&rolling), &Jobs::Unknown), [""; 0]);
            let failing = |times| Standing { error: Some((Kind::CourierLost, times)), ..rolling.clone() };
            assert_eq!(told(&mut memory, 0, &[failing(1)], &Jobs::Unknown), [""; 0], "a passing thing");
            assert_eq!(told(&mut memory, 0, &[failing(3)], &Jobs::Unknown)[0], "alice 1");
        }
    }

    #[test]
    fn an_end_that_jitters_by_seconds_is_told_once_a_step_also_when_it_is_not_known_any_more_whether_it_moves() {
        let mut memory = Memory::default();
        let at = |seconds: u64, rolling| Standing { rolling, ..ending("alice", DAY + seconds) };
        assert_eq!(told(&mut memory, 0, &[at(0, Some(false))], &Jobs::Unknown).len(), 2);
        for jitter in [1, 0, 3, 59] {
            assert_eq!(told(&mut memory, 60, &[at(jitter, Some(false))], &Jobs::Unknown), [""; 0]);
        }
        // After a restart the end is not known at first, and the next step comes before the second renewal.
        let unknown = Standing { refresh_ends: None, ..at(0, None) };
        assert_eq!(told(&mut memory, 120, &[unknown], &Jobs::Unknown), [""; 0]);
        assert_eq!(told(&mut memory, 120, &[at(0, Some(false))], &Jobs::Unknown), [""; 0]);
        assert_eq!(told(&mut memory, DAY - 3600, &[at(1, None)], &Jobs::Unknown).len(), 2);
        assert_eq!(told(&mut memory, DAY - 3500, &[at(0, None)], &Jobs::Unknown), [""; 0]);
    }

    #[test]
    fn a_refusal_is_told_to_those_who_have_jobs_once_and_again_only_after_it_was_well() {
        let mut memory = Memory::default();
        let none = Jobs::Known(BTreeMap::new());
        let some = Jobs::Known(BTreeMap::from([("alice".into(), Queue { count: 1, named: vec!["7.0".into()] })]));
        let refused = [Standing { parked: true, ..failing("alice", Kind::Revoked, 2) }];
        assert_eq!(told(&mut memory, 0, &refused, &none), [""; 0]);
        assert_eq!(told(&mut memory, 0, &refused, &some), ["alice 1", "admins of grid 1 0"]);
        assert_eq!(told(&mut memory, 0, &refused, &some), [""; 0]);
        // A restart: not tried yet, nothing known to be wrong.
        assert_eq!(told(&mut memory, 0, &[standing("alice")], &some), [""; 0]);
        assert_eq!(told(&mut memory, 0, &refused, &some), [""; 0]);
        let well = [Standing { well: true, ..standing("alice") }];
        assert_eq!(told(&mut memory, 0, &well, &some), ["alice is well: 1"]);
        assert_eq!(told(&mut memory, 0, &well, &some), [""; 0]);
        assert_eq!(told(&mut memory, 0, &refused, &some).len(), 2);
    }

    #[test]
    fn what_a_wrong_setting_does_to_all_users_is_told_to_admins_alone_and_what_one_has_to_that_one() {
        for kind in [Kind::RequestRefused, Kind::ScopeShortfall, Kind::Restricted] {
            let alone = [failing("alice", kind, 3), standing("bob")];
            assert_eq!(told(&mut Memory::default(), 0, &alone, &Jobs::Unknown), ["alice 1", "admins of grid 1 0"]);
            // The second one has failed once so far.
            let mut memory = Memory::default();
            let all = [failing("alice", kind, 3), failing("bob", kind, 1)];
            assert_eq!(told(&mut memory, 0, &all, &Jobs::Unknown), ["admins of grid 0 1"], "{kind}");
            let all = [failing("alice", kind, 4), failing("bob", kind, 3)];
            assert_eq!(told(&mut memory, 0, &all, &Jobs::Unknown), [""; 0], "{kind}");
        }
        // Nobody tries these again: there is no count.
        let unusable = |user: &str, kind| Standing { parked: true, ..failing(user, kind, 0) };
        for kind in [Kind::TopSealed, Kind::TopWrongOwner, Kind::TopUnreadable, Kind::MetaMismatch] {
            let all = [unusable("alice", kind), unusable("bob", kind)];
            assert_eq!(told(&mut Memory::default(), 0, &all, &Jobs::Unknown), ["admins of grid 0 1"], "{kind}");
            assert_eq!(told(&mut Memory::default(), 0, &all[..1], &Jobs::Unknown)[0], "alice 1", "{kind}");
        }
        let own = [unusable("alice", Kind::TopEmpty), unusable("bob", Kind::TopEmpty)];
        let both = ["alice 1", "bob 1", "admins of grid 2 0"];
        assert_eq!(told(&mut Memory::default(), 0, &own, &Jobs::Unknown), both, "each stored nothing");
    }

    #[test]
    fn the_threshold_holds_and_a_passing_failure_is_no_news() {
        let mut memory = Memory::default();
        for times in [1, 2] {
            assert_eq!(told(&mut memory, 0, &[failing("alice", Kind::Restricted, times)], &Jobs::Unknown), [""; 0]);
        }
        assert_eq!(told(&mut memory, 0, &[failing("alice", Kind::Restricted, 3)], &Jobs::Unknown).len(), 2);
    }

    #[test]
    fn users_hear_of_all_their_credentials_at_once_and_admins_of_all_users_of_a_provider() {
        let mut memory = Memory::default();
        let second =
            Standing { id: CredentialId::from_base(UserName::parse("a").unwrap(), "x_y").unwrap(), ..ending("a", 60) };
        let standings = [ending("a", 60), second, ending("b", 60)];
        assert_eq!(told(&mut memory, 0, &standings, &Jobs::Unknown), ["a 2", "b 1", "admins of grid 3 0"]);
    }

    #[test]
    fn what_was_not_told_is_decided_anew_and_who_has_to_wait_for_room_is_not_told_to_admins_either() {
        let mut memory = Memory::default();
        let standings = all(&[ending("a", 60), ending("b", 60), failing("c", Kind::Tls, 3)]);
        let decided = |memory: &Memory, room| decide(&policy(), memory, NOW, &standings, &Jobs::Unknown, room);
        let (notices, waiting) = decided(&memory, 1);
        assert_eq!((words(notices.clone()), waiting), (vec!["a 1".to_owned(), "admins of grid 1 1".to_owned()], 1));
        assert_eq!(decided(&memory, 1).0, notices, "nobody has noted that they were told");
        for notice in &notices {
            memory.note(notice);
        }
        let (notices, waiting) = decided(&memory, 1);
        assert_eq!((words(notices), waiting), (vec!["b 1".to_owned(), "admins of grid 1 0".to_owned()], 0));
        let (notices, waiting) = decided(&Memory::default(), 0);
        assert_eq!((words(notices), waiting), (vec!["admins of grid 0 1".to_owned()], 2));
        // That all is well is told, too, before it is forgotten.
        memory.note(&Notice::User {
            user: UserName::parse("c").unwrap(),
            jobs: Queue::default(),
            items: vec![Item::of(&standing("c"), Matter::Refused(Kind::Revoked), None)],
        });
        let well = all(&[Standing { well: true, ..standing("c") }]);
        for (room, expected) in [(0, 1), (1, 0)] {
            settle(&mut memory, &well);
            let (notices, waiting) = decide(&policy(), &memory, NOW, &well, &Jobs::Unknown, room);
            assert_eq!(waiting, expected);
            for notice in &notices {
                memory.note(notice);
            }
        }
        assert_eq!(memory, Memory::default());
    }

    #[test]
    fn what_admins_must_mend_is_theirs_alone_and_told_once_a_kind() {
        let mut memory = Memory::default();
        let down = [failing("a", Kind::Timeout, 3), failing("b", Kind::Timeout, 9), failing("c", Kind::Tls, 1)];
        assert_eq!(told(&mut memory, 0, &down, &Jobs::Unknown), ["admins of grid 0 1"]);
        assert_eq!(told(&mut memory, 0, &down, &Jobs::Unknown), [""; 0]);
        // A restart: nothing was tried yet.
        assert_eq!(told(&mut memory, 0, &[standing("a")], &Jobs::Unknown), [""; 0]);
        assert_eq!(told(&mut memory, 0, &down, &Jobs::Unknown), [""; 0], "it is still the same");
        let well = [Standing { well: true, ..standing("a") }];
        assert_eq!(told(&mut memory, 0, &well, &Jobs::Unknown), ["grid is well: 1 over"]);
        assert_eq!(told(&mut memory, 0, &well, &Jobs::Unknown), [""; 0]);
        assert_eq!(told(&mut memory, 0, &down, &Jobs::Unknown), ["admins of grid 0 1"], "it came again");
    }

    #[test]
    fn an_issuer_that_is_down_is_told_once_whatever_its_credentials_show_and_once_that_it_answers_again() {
        let mut memory = Memory::default();
        // Each of them has failed once, a probe each: none of them is what shows it.
        let mut one: Vec<Standing> = (0..100).map(|n| failing(&format!("u{n}"), Kind::Timeout, 1)).collect();
        let down = |times, kind, credentials: &[Standing]| {
            let mut all = all(credentials);
            all.providers[0].outage = Some(Outage { kind, since: NOW, times });
            all
        };
        let decided = |memory: &mut Memory, all: &Standings| {
            let notices = tell(memory, NOW, all, &Jobs::Unknown);
            *memory = serde_json::from_str(&serde_json::to_string(&memory).unwrap()).unwrap();
            notices
        };
        assert_eq!(decided(&mut memory, &down(2, Kind::Timeout, &one)), [], "a passing thing");
        let notices = decided(&mut memory, &down(3, Kind::Timeout, &one));
        let trouble = Failing { kind: Kind::Timeout, count: 100, soonest: None, down_since: Some(NOW) };
        let (provider, items, troubles) = ("grid".to_owned(), Vec::new(), vec![trouble]);
        assert_eq!(notices, [Notice::Admins { provider, items, troubles }]);
        for standing in &mut one {
            standing.error = Some((Kind::Network, 7));
        }
        assert_eq!(decided(&mut memory, &down(90, Kind::Timeout, &one)), [], "another word for the same");
        // A restart, in which it is found down for another reason.
        assert_eq!(decided(&mut memory, &all(&[standing("u1")])), []);
        assert_eq!(decided(&mut memory, &all(&one)), []);
        assert_eq!(decided(&mut memory, &down(3, Kind::ServerError, &one)), []);
        // It answers; what is left of it is not told as an error any more.
        one[0] = Standing { well: true, error: None, ..one[0].clone() };
        one[1].error = None;
        let over = ["grid is well: 1 over"];
        assert_eq!(words(decided(&mut memory, &all(&one[..2]))), over);
        assert_eq!(decided(&mut memory, &all(&one[..2])), []);
        assert_eq!(words(decided(&mut memory, &down(3, Kind::Timeout, &one[..2]))), ["admins of grid 0 1"]);
    }

    #[test]
    fn one_credential_that_fails_for_ever_hides_no_outage_of_its_issuer() {
        let mut memory = Memory::default();
        let bad = [failing("alice", Kind::ServerError, 9)];
        assert_eq!(words(tell(&mut memory, NOW, &all(&bad), &Jobs::Unknown)), ["admins of grid 0 1"]);
        let mut down = all(&bad);
        down.providers[0].outage = Some(Outage { kind: Kind::ServerError, since: NOW, times: 3 });
        let notices = tell(&mut memory, NOW, &down, &Jobs::Unknown);
        let [Notice::Admins { troubles, .. }] = &notices[..] else { panic!("{notices:?}") };
        assert_eq!(troubles.iter().map(|trouble| trouble.down_since).collect::<Vec<_>>(), [Some(NOW)]);
        assert_eq!(tell(&mut memory, NOW, &down, &Jobs::Unknown), [], "once");
    }
}
