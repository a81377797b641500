//! Announcements become log lines, audit lines and counts. One log line per renewal, the same field names everywhere;
//! the same error of the same credential is told once, then once an hour (at debug level in between), and once more
//! when it ends. Where many credentials of a provider fail alike, twenty a minute are told one by one, and when that
//! minute is over, how many more there were; so it is with those that are parked or cannot be used. The audit log has each. A client that is refused is its provider's trouble and told once, as that.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{
    audit::{self, Audit, Decision, Entry},
    driver::Owner,
    revoker, scanner,
    tally::Tally,
    told::Told,
};
use crate::{
    core::{
        answer::Answer,
        id::CredentialId,
        planner::Announcement,
        time::{Now, Tick},
    },
    error::{Class, Kind},
    notice::round,
};

/// How many credentials with the same error of the same provider are told one by one in [`WINDOW`].
const ALIKE: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);

/// Tells, and remembers what went wrong, in words, until it is mended.
#[derive(Debug, Default)]
pub struct Announcer {
    /// The counters.
    pub tally: Tally,
    audit: Audit,
    /// The words of an issuer's last error, with its kind: an error of another kind came without words.
    details: HashMap<CredentialId, (Kind, String)>,
    told: HashMap<CredentialId, Told<Kind>>,
    /// The same by the provider's name.
    last: HashMap<String, (Kind, String)>,
    /// The `jti`, hashed, of tokens that are being published.
    hashes: HashMap<CredentialId, String>,
    /// By the provider's name, which a reload leaves as it is.
    floods: HashMap<(String, What, Kind), Flood>,
}

/// What a line tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum What {
    NotRenewed,
    Parked,
    Unusable,
}

impl What {
    fn word(self) -> &'static str {
        match self {
            Self::NotRenewed => "not renewed",
            Self::Parked => "parked",
            Self::Unusable => "the .top cannot be used",
        }
    }
}

/// Lines of one provider, sort and kind in a window.
#[derive(Debug)]
struct Flood {
    since: Tick,
    told: u32,
    held: u32,
}

impl Announcer {
    /// With this audit log.
    #[must_use]
    pub fn new(audit: Audit) -> Self {
        Self { audit, ..Self::default() }
    }

    /// The audit log.
    #[must_use]
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// From now on this audit log.
    pub fn audit_to(&mut self, audit: Audit) {
        self.audit = audit;
    }

    /// Note the words that came with an error.
    pub fn note(&mut self, id: &CredentialId, provider: &str, kind: Kind, detail: String) {
        self.last.insert(provider.to_owned(), (kind, detail.clone()));
        self.details.insert(id.clone(), (kind, detail));
    }

    /// Note the token that is about to be published.
    pub fn note_answer(&mut self, id: &CredentialId, answer: &Answer) {
        if self.audit.is_on()
            && let Some(hash) = audit::jti_sha256(answer.access_token.expose())
        {
            self.hashes.insert(id.clone(), hash);
        }
    }

    /// The words that came with the last error, if it was of this kind.
    #[must_use]
    pub fn detail(&self, id: &CredentialId, kind: Kind) -> &str {
        words(self.details.get(id), kind)
    }

    /// Tell.
    pub fn tell(&mut self, now: Now, owners: &[Arc<Owner>], announcement: &Announcement) {
        self.tally.tell(owners, announcement);
        if self.audit.is_on()
            && let Some(entry) = self.entry(now, owners, announcement)
        {
            self.audit.record(entry);
        }
        self.log(now, owners, announcement);
        match announcement {
            Announcement::Renewed { id, .. } | Announcement::Forgotten { id } => {
                self.details.remove(id);
                self.told.remove(id);
                self.hashes.remove(id);
            }
            _ => {}
        }
    }

    /// A refresh token was given back, or could not be.
    pub fn revoked(&mut self, now: Now, owners: &[Arc<Owner>], outcome: &revoker::Outcome) {
        let revoker::Outcome { id, provider, by, jti_sha256, result } = outcome;
        let (user, service, handle) = names(id);
        let owner = owners.iter().find(|owner| owner.provider.name == *provider);
        let mut entry = Entry::new(now.wall, Decision::Revoked).of(id).from(owner.map(|owner| &owner.provider));
        // One that is not configured any more is still called by its name.
        entry.provider = Some(provider.clone()).filter(|name| !name.is_empty());
        entry.jti_sha256.clone_from(jti_sha256);
        if let Some(uid) = by {
            entry = entry.ordered_by(*uid);
        }
        match result {
            Ok(()) => {
                self.tally.revocations.0 += 1;
                tracing::info!(user, service, handle, provider, "refresh token revoked");
            }
            Err(error) => {
                self.tally.revocations.1 += 1;
                entry = entry.because(error.kind).saying(error.detail.clone());
                let (kind, detail) = (error.kind, &error.detail);
                tracing::warn!(user, service, handle, provider, %kind, detail, "refresh token not revoked");
            }
        }
        self.audit.record(entry);
    }

    /// What became of a letter.
    pub fn told(&mut self, now: Now, delivery: &round::Delivery) {
        let round::Delivery { way, whom, subject, result } = delivery;
        let counts = self.tally.notices.entry(way.word().to_owned()).or_default();
        let mut entry = Entry::new(now.wall, Decision::Notified);
        if result.is_ok() {
            counts.0 += 1;
        } else {
            counts.1 += 1;
            entry.result = "failed";
        }
        let why = result.as_ref().err().map_or_else(String::new, |error| format!(": {error}"));
        self.audit.record(entry.saying(format!("{whom} by {}: {subject}{why}", way.word())));
    }

    fn log(&mut self, now: Now, owners: &[Arc<Owner>], announcement: &Announcement) {
        let provider = |index: usize| owners.get(index).map_or("?", |owner| owner.provider.name.as_str());
        match announcement {
            Announcement::Renewed {
                id, provider: p, expires_in, rotated, flagged, after_failures, generation, ..
            } => {
                let (user, service, handle) = names(id);
                let (expires_in, provider, issuer) = (expires_in.as_secs(), provider(*p), issuer(owners, *p));
                // The one line on recovery is this one.
                let message = if *after_failures > 0 { "renewed again" } else { "renewed" };
                tracing::info!(
                    user,
                    service,
                    handle,
                    provider,
                    issuer,
                    expires_in,
                    generation,
                    rotated,
                    after_failures,
                    "{message}"
                );
                if let Some(kind) = flagged {
                    tracing::warn!(user, service, handle, provider, %kind, "published with less than was asked for");
                }
            }
            Announcement::Failed { id, provider: p, kind, times, next_in } => {
                let (user, service, handle) = names(id);
                let (next_in, issuer) = (next_in.map_or(0, |d| d.as_secs()), issuer(owners, *p));
                let told = kind.class() != Class::Ours
                    && self.is_news(now.tick, id, *kind)
                    && self.may_tell(now.tick, provider(*p), What::NotRenewed, *kind);
                let (detail, provider) = (self.detail(id, *kind), provider(*p));
                if told {
                    tracing::warn!(
                        user, service, handle, provider, issuer, %kind, times, next_in, detail, "not renewed"
                    );
                } else {
                    tracing::debug!(
                        user, service, handle, provider, issuer, %kind, times, next_in, detail, "not renewed"
                    );
                }
            }
            Announcement::Parked { id, provider: p, kind } => {
                let (user, service, handle) = names(id);
                let (provider, issuer) = (provider(*p), issuer(owners, *p));
                let told = self.may_tell(now.tick, provider, What::Parked, *kind);
                let detail = self.detail(id, *kind);
                let message = "parked: refused twice; the user must approve again (its files stay as they are)";
                if told {
                    tracing::error!(user, service, handle, provider, issuer, %kind, detail, "{message}");
                } else {
                    tracing::debug!(user, service, handle, provider, issuer, %kind, detail, "{message}");
                }
            }
            Announcement::Unusable { id, kind } => {
                let (user, service, handle) = names(id);
                let provider = scanner::owner(owners, &id.base()).map_or("?", |owner| owner.provider.name.as_str());
                let told =
                    self.is_news(now.tick, id, *kind) && self.may_tell(now.tick, provider, What::Unusable, *kind);
                let message = "the .top cannot be used; waiting for another";
                if told {
                    tracing::warn!(user, service, handle, %kind, "{message}");
                } else {
                    tracing::debug!(user, service, handle, %kind, "{message}");
                }
            }
            Announcement::Forgotten { id } => {
                let (user, service, handle) = names(id);
                tracing::info!(user, service, handle, "forgotten: its .top is gone");
            }
            Announcement::Issuer { provider: p, down: Some(kind) } => {
                let provider = provider(*p);
                let detail = words(self.last.get(provider), *kind);
                tracing::error!(
                    provider, issuer = issuer(owners, *p), %kind, detail,
                    "issuer is down or refuses us: single probes only"
                );
            }
            Announcement::Issuer { provider: p, down: None } => {
                tracing::info!(provider = provider(*p), issuer = issuer(owners, *p), "issuer answers again");
            }
        }
    }

    /// Whether this error of this credential is to be told now.
    fn is_news(&mut self, now: Tick, id: &CredentialId, kind: Kind) -> bool {
        self.told.entry(id.clone()).or_default().tell(now, kind)
    }

    /// Whether one more line of this provider, sort and kind is told one by one.
    fn may_tell(&mut self, now: Tick, provider: &str, what: What, kind: Kind) -> bool {
        self.tell_held(now);
        let flood =
            self.floods.entry((provider.to_owned(), what, kind)).or_insert(Flood { since: now, told: 0, held: 0 });
        let told = flood.told < ALIKE;
        if told {
            flood.told += 1;
        } else {
            flood.held += 1;
        }
        told
    }

    /// Tell how many lines were not told one by one, once their minute is over.
    pub fn tell_held(&mut self, now: Tick) {
        self.floods.retain(|(provider, what, kind), flood| {
            let over = now.since(flood.since) >= WINDOW;
            if over && flood.held > 0 {
                let (what, more) = (what.word(), flood.held);
                tracing::warn!(provider, %kind, more, "{what}: that many more, for the same reason");
            }
            !over
        });
    }

    /// How long nothing of that kind is to be told; none: until something fails.
    #[must_use]
    pub fn held_wait(&self, now: Tick) -> Option<Duration> {
        let waiting = self.floods.values().filter(|flood| flood.held > 0);
        waiting.map(|flood| WINDOW.saturating_sub(now.since(flood.since))).min()
    }

    /// The audit line, if it is a decision of the issuer's or ours (a network that fails decides nothing).
    fn entry(&self, now: Now, owners: &[Arc<Owner>], announcement: &Announcement) -> Option<Entry> {
        let entry = |event, id: &CredentialId| {
            let owner = scanner::owner(owners, &id.base());
            Entry::new(now.wall, event).of(id).from(owner.map(|owner| &owner.provider))
        };
        Some(match announcement {
            Announcement::Renewed { id, expires_in, first, flagged, .. } => {
                let event = if *first { Decision::Issued } else { Decision::Renewed };
                let mut entry = entry(event, id);
                entry.expires = Some(now.wall.plus(*expires_in));
                entry.jti_sha256 = self.hashes.get(id).cloned();
                entry.detail = flagged.map(|kind| format!("with less than was asked for: {kind}"));
                entry
            }
            Announcement::Failed { id, kind, .. } if kind.class() != Class::Transient => {
                entry(Decision::Refused, id).because(*kind).saying(self.detail(id, *kind))
            }
            Announcement::Parked { id, kind, .. } => {
                entry(Decision::Parked, id).because(*kind).saying(self.detail(id, *kind))
            }
            Announcement::Unusable { id, kind } => entry(Decision::Unusable, id).because(*kind),
            Announcement::Forgotten { id } => entry(Decision::Forgotten, id),
            Announcement::Failed { .. } | Announcement::Issuer { .. } => return None,
        })
    }
}

fn words(noted: Option<&(Kind, String)>, kind: Kind) -> &str {
    noted.filter(|(of, _)| *of == kind).map_or("", |(_, words)| words.as_str())
}

/// Who is asked, as configured.
fn issuer(owners: &[Arc<Owner>], index: usize) -> &str {
    owners.get(index).map_or("", |owner| owner.provider.asked())
}

pub(super) fn names(id: &CredentialId) -> (&str, &str, &str) {
    (id.user.as_str(), id.service.as_str(), id.handle.as_ref().map_or("", |handle| handle.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{id::UserName, time::Timestamp};

    fn told(announcer: &mut Announcer, tick: u64, kind: Kind) -> bool {
        announcer.may_tell(Tick(tick), "grid", What::NotRenewed, kind)
    }

    #[test]
    fn twenty_errors_alike_a_minute_are_told_one_by_one_and_another_kind_has_its_own_count() {
        let mut announcer = Announcer::default();
        let first: u32 = (0..100).map(|tick| u32::from(told(&mut announcer, tick, Kind::Timeout))).sum();
        assert_eq!(first, ALIKE);
        assert!(told(&mut announcer, 100, Kind::Network));
        assert!(!told(&mut announcer, 59_000, Kind::Timeout));
        assert!(told(&mut announcer, 60_000, Kind::Timeout), "a new minute");
    }

    #[test]
    fn how_many_more_there_were_is_told_when_the_minute_is_over_though_nothing_fails_again() {
        let mut announcer = Announcer::default();
        assert_eq!((0..30).filter(|_| told(&mut announcer, 1000, Kind::Timeout)).count(), 20);
        assert_eq!(announcer.held_wait(Tick(2000)), Some(Duration::from_secs(59)));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        super::super::log::logging_to(&path, || {
            announcer.tell_held(Tick(2000));
            announcer.tell_held(Tick(61_000));
            announcer.tell_held(Tick(62_000));
        });
        assert_eq!(announcer.held_wait(Tick(62_000)), None);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("more=10") && text.contains("provider=grid"), "{text}");
    }

    #[test]
    fn words_of_an_earlier_error_are_told_with_no_other_kind() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut announcer = Announcer::default();
        let id = CredentialId::from_base(UserName::parse("alice").unwrap(), "grid").unwrap();
        let now = Now { wall: Timestamp(0), tick: Tick(1000) };
        announcer.note(&id, "grid", Kind::Expired, "it has ended, says the issuer".into());
        super::super::log::logging_to(&log, || {
            for kind in [Kind::Expired, Kind::NoSpace, Kind::CourierLost] {
                let failed = Announcement::Failed { id: id.clone(), provider: 0, kind, times: 1, next_in: None };
                announcer.tell(now, &[], &failed);
                announcer.tell(now, &[], &Announcement::Parked { id: id.clone(), provider: 0, kind });
                announcer.tell(now, &[], &Announcement::Issuer { provider: 0, down: Some(kind) });
                let words = announcer.entry(now, &[], &Announcement::Parked { id: id.clone(), provider: 0, kind });
                let spoken = words.unwrap().detail.unwrap_or_default();
                assert_eq!(spoken.contains("says the issuer"), kind == Kind::Expired, "{kind}: {spoken}");
            }
        });
        assert_eq!(announcer.detail(&id, Kind::Expired), "it has ended, says the issuer");
        assert_eq!(announcer.detail(&id, Kind::NoSpace), "");
        let text = std::fs::read_to_string(&log).unwrap();
        let with: Vec<&str> = text.lines().filter(|line| line.contains("says the issuer")).collect();
        assert!(with.len() >= 2 && with.iter().all(|line| line.contains("kind=expired")), "{text}");
    }

    #[test]
    fn of_many_that_are_parked_or_unusable_alike_twenty_are_told_then_how_many_more_and_each_is_audited() {
        const MANY: usize = 300;
        let dir = tempfile::tempdir().unwrap();
        let (log, path) = (dir.path().join("log"), dir.path().join("audit.jsonl"));
        let mut announcer = Announcer::new(Audit::start(Some(&path)).unwrap());
        let now = Now { wall: Timestamp(0), tick: Tick(1000) };
        super::super::log::logging_to(&log, || {
            for n in 0..MANY {
                let id = CredentialId::from_base(UserName::parse(&format!("user{n}")).unwrap(), "grid").unwrap();
                let parked = Announcement::Parked { id: id.clone(), provider: 0, kind: Kind::Revoked };
                announcer.tell(now, &[], &parked);
                announcer.tell(now, &[], &Announcement::Unusable { id, kind: Kind::TopNoToken });
            }
            announcer.tell_held(Tick(61_000));
        });
        announcer.audit().flush(Duration::from_secs(10));
        let text = std::fs::read_to_string(&log).unwrap();
        let of = |words: &str| text.lines().filter(|line| line.contains(words)).count();
        assert_eq!((of("parked: refused twice"), of("cannot be used; waiting")), (20, 20), "{text}");
        assert_eq!((of("parked: that many more"), of("used: that many more"), of("more=280")), (1, 1, 2), "{text}");
        let audited = std::fs::read_to_string(&path).unwrap();
        let each = |event: &str| audited.matches(&format!("\"event\":\"{event}\"")).count();
        assert_eq!((each("parked"), each("unusable")), (MANY, MANY));
    }
}
