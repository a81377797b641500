//! The courses of renewals under way, for traces; only kept while traces are configured.

use std::{collections::HashMap, time::Duration};

use crate::{
    core::{
        course::{Renewal, Trace},
        id::CredentialId,
        time::Timestamp,
    },
    error::Kind,
};

/// By number of the exchange.
#[derive(Debug, Default)]
pub struct Courses {
    on: bool,
    under_way: HashMap<u64, (CredentialId, Renewal)>,
}

impl Courses {
    /// Kept, or not.
    #[must_use]
    pub fn new(on: bool) -> Self {
        Self { on, under_way: HashMap::new() }
    }

    /// A renewal begins.
    pub fn began(&mut self, now: Timestamp, number: u64, id: &CredentialId, provider: &str) {
        if self.on {
            let mut trace = Trace { id: [0; 16], root: [0; 8] };
            if aws_lc_rs::rand::fill(&mut trace.id).and_then(|()| aws_lc_rs::rand::fill(&mut trace.root)).is_err() {
                // Without numbers there is no trace of this one.
                return;
            }
            let renewal = Renewal {
                trace,
                provider: provider.to_owned(),
                service: id.service.to_string(),
                began: now,
                ended: now,
                exchange: None,
                keep: None,
                publish: None,
                rotated: false,
                kind: None,
            };
            self.under_way.insert(number, (id.clone(), renewal));
        }
    }

    /// The issuer answered after so long.
    pub fn answered(&mut self, now: Timestamp, number: u64, took: Duration, rotated: bool, kind: Option<Kind>) {
        if let Some((_, renewal)) = self.under_way.get_mut(&number) {
            renewal.exchange = Some((now.minus(took).max(renewal.began), now));
            renewal.rotated = rotated;
            renewal.kind = kind;
        }
    }

    /// The rotated refresh token goes to the disk; it may again.
    pub fn keeping(&mut self, now: Timestamp, number: u64) {
        if let Some((_, renewal)) = self.under_way.get_mut(&number) {
            let since = renewal.keep.map_or(now, |(since, _)| since);
            renewal.keep = Some((since, now));
        }
    }

    /// It is there.
    pub fn kept(&mut self, now: Timestamp, number: u64) {
        if let Some((_, end)) = self.under_way.get_mut(&number).and_then(|(_, renewal)| renewal.keep.as_mut()) {
            *end = now;
        }
    }

    /// The access token goes to the disk: whose it is, and the numbers of its trace.
    pub fn publishing(&mut self, now: Timestamp, number: u64) -> Option<(CredentialId, Trace)> {
        let (id, renewal) = self.under_way.get_mut(&number)?;
        renewal.publish = Some((now, now));
        Some((id.clone(), renewal.trace))
    }

    /// What failed, if it was not the exchange.
    pub fn failed(&mut self, number: u64, kind: Kind) {
        if let Some((_, renewal)) = self.under_way.get_mut(&number) {
            renewal.kind = Some(kind);
        }
    }

    /// It ended: its course.
    pub fn ended(&mut self, now: Timestamp, number: u64) -> Option<Renewal> {
        let (_, mut renewal) = self.under_way.remove(&number)?;
        renewal.ended = now;
        if let Some((_, end)) = &mut renewal.publish {
            *end = now;
        }
        Some(renewal)
    }
}
