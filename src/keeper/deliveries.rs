//! What is told of deliveries besides the log: audit lines, counts and traces. A network that fails decides nothing and
//! is no audit line; a refusal is one, once until it changes or the site confirms.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, mpsc::Sender},
    time::Duration,
};

use super::{
    audit::{self, Audit, Decision, Entry},
    board::Board,
    driver::{Input, Owner},
    scanner,
};
use crate::{
    config::site_settings::Site,
    core::{
        course::{Course, Replication, Trace},
        delivery::{Delivered, Undelivered},
        id::CredentialId,
        time::Timestamp,
        use_file,
        withdrawal::Ended,
    },
    error::{Class, Kind},
};

/// Failed deliveries in a row that traces show; a site that is gone for a week is not news in each of them.
const TRACED: u32 = 3;

/// Where it is told.
#[derive(Debug, Clone)]
pub struct Ears {
    /// The audit log.
    pub audit: Audit,
    /// The driver, for traces; none: nobody wants any.
    pub traces: Option<Sender<Input>>,
    /// Who owns which services, for the audit log.
    pub owners: Vec<Arc<Owner>>,
}

/// A delivery under way.
#[derive(Debug)]
struct UnderWay {
    began: Timestamp,
    trace: Option<Trace>,
    jti_sha256: Option<String>,
}

/// Deliveries under way, and what the audit log has of those before.
#[derive(Debug)]
pub struct Deliveries {
    ears: Ears,
    board: Board,
    under_way: HashMap<u64, UnderWay>,
    /// Those that ended since [`Deliveries::sweep`].
    over: Vec<u64>,
    /// The numbers of the renewals that brought what lies there.
    traces: BTreeMap<CredentialId, Trace>,
    refused: BTreeMap<CredentialId, BTreeMap<String, Kind>>,
}

impl Deliveries {
    /// Tells these; counts are kept on the board.
    #[must_use]
    pub fn new(ears: Ears, board: Board) -> Self {
        Self {
            ears,
            board,
            under_way: HashMap::new(),
            over: Vec::new(),
            traces: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// What is sent of this credential from now on came by that renewal.
    pub fn traced(&mut self, id: CredentialId, trace: Trace) {
        if self.ears.traces.is_some() {
            self.traces.insert(id, trace);
        }
    }

    /// One begins, of these bytes of a `.use`.
    pub fn began(&mut self, now: Timestamp, number: u64, id: &CredentialId, bytes: &[u8]) {
        let jti_sha256 = if self.ears.audit.is_on() { jti_sha256(bytes) } else { None };
        let trace = self.traces.get(id).copied();
        self.under_way.insert(number, UnderWay { began: now, trace, jti_sha256 });
    }

    /// One ended; what became of it may be told until the next sweep.
    pub fn ended(&mut self, number: u64) {
        self.over.push(number);
    }

    /// All that were under way ended.
    pub fn all_ended(&mut self) {
        self.over.extend(self.under_way.keys());
    }

    /// Forget those that ended.
    pub fn sweep(&mut self) {
        for number in self.over.drain(..) {
            self.under_way.remove(&number);
        }
    }

    /// The credential left.
    pub fn forget(&mut self, id: &CredentialId) {
        self.traces.remove(id);
        self.refused.remove(id);
    }

    /// The site confirmed.
    pub fn confirmed(
        &mut self,
        now: Timestamp,
        number: u64,
        id: &CredentialId,
        site: &Site,
        (failures, lag): (u32, Duration),
        expires: Option<Timestamp>,
    ) {
        self.board.count(&site.name, |counts| {
            counts.delivered += 1;
            counts.lag.observe(lag);
        });
        self.mended(id, site);
        self.audit(now, number, Decision::Replicated, id, site, |entry| entry.expires = expires);
        self.trace(now, number, site, failures, None);
    }

    /// The site has a newer one of ours already, whose own confirmation is told.
    pub fn superseded(&mut self, now: Timestamp, number: u64, id: &CredentialId, site: &Site) {
        self.board.count(&site.name, |counts| {
            counts.delivered += 1;
            counts.superseded += 1;
        });
        self.mended(id, site);
        self.trace(now, number, site, 0, None);
    }

    /// It failed, for the `times`-th time in a row.
    pub fn failed(
        &mut self,
        now: Timestamp,
        number: u64,
        id: &CredentialId,
        site: &Site,
        error: &Undelivered,
        times: u32,
    ) {
        let kind = error.kind;
        self.board.count(&site.name, |counts| *counts.errors.entry(kind).or_default() += 1);
        if kind.class() != Class::Transient && self.is_news(id, site, kind) {
            self.audit(now, number, Decision::Refused, id, site, |entry| {
                entry.result = kind.label();
                entry.detail = Some(error.detail.clone()).filter(|text| !text.is_empty());
            });
        }
        if times <= TRACED {
            self.trace(now, number, site, times.saturating_sub(1), Some(kind));
        }
    }

    fn mended(&mut self, id: &CredentialId, site: &Site) {
        if let Some(kinds) = self.refused.get_mut(id) {
            kinds.remove(&site.name);
            if kinds.is_empty() {
                self.refused.remove(id);
            }
        }
    }

    /// A withdrawal ended; of one that is tried again, only a refusal is told, once until it changes.
    pub fn withdrawn(&mut self, now: Timestamp, ended: &Ended, site: &Site) {
        let (number, id) = (ended.number, &ended.id);
        let told = match &ended.result {
            Ok(Delivered::Superseded { .. }) => Some((Kind::SiteNewer, "")),
            Ok(_) => None,
            Err((error, ..)) => Some((error.kind, error.detail.as_str())),
        };
        self.board.count(&site.name, |counts| match &ended.result {
            Ok(Delivered::Superseded { .. }) => counts.withdrawals.superseded += 1,
            Ok(_) => counts.withdrawals.done += 1,
            Err(_) => counts.withdrawals.failed += 1,
        });
        let news = match told {
            Some((kind, _)) if ended.result.is_err() => {
                kind.class() != Class::Transient && self.is_news(id, site, kind)
            }
            _ => {
                self.mended(id, site);
                true
            }
        };
        if news {
            self.audit(now, number, Decision::Withdrawn, id, site, |entry| {
                if let Some((kind, detail)) = told {
                    entry.result = kind.label();
                    entry.detail = Some(detail.to_owned()).filter(|text| !text.is_empty());
                }
            });
        }
    }

    /// Whether that is another refusal than the last one.
    fn is_news(&mut self, id: &CredentialId, site: &Site, kind: Kind) -> bool {
        self.refused.entry(id.clone()).or_default().insert(site.name.clone(), kind) != Some(kind)
    }

    fn audit(
        &self,
        now: Timestamp,
        number: u64,
        what: Decision,
        id: &CredentialId,
        site: &Site,
        more: impl FnOnce(&mut Entry),
    ) {
        if self.ears.audit.is_on() {
            let jti_sha256 = self.under_way.get(&number).and_then(|one| one.jti_sha256.clone());
            let owner = scanner::owner(&self.ears.owners, &id.base());
            let entry = Entry::new(now, what).of(id).from(owner.map(|owner| &owner.provider));
            let mut entry = Entry { site: Some(site.name.clone()), jti_sha256, ..entry };
            more(&mut entry);
            self.ears.audit.record(entry);
        }
    }

    fn trace(&self, now: Timestamp, number: u64, site: &Site, failures: u32, error: Option<Kind>) {
        let Some(to) = &self.ears.traces else { return };
        let Some(UnderWay { began, trace: Some(trace), .. }) = self.under_way.get(&number) else { return };
        let replication = Replication {
            trace: *trace,
            site: site.name.clone(),
            kind: site.kind.label().to_owned(),
            began: *began,
            ended: now.max(*began),
            failures,
            error,
        };
        // The driver goes with the daemon.
        to.send(Input::Course(Box::new(Course::Replication(replication)))).ok();
    }
}

/// Of the access token in a `.use`, whoever wrote it.
fn jti_sha256(bytes: &[u8]) -> Option<String> {
    let token = use_file::token(bytes)?;
    audit::jti_sha256(std::str::from_utf8(&token).ok()?)
}
