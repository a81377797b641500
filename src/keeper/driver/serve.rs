//! What others ask of the driver between two exchanges: readers of status and metrics, notices, and the revocations at the
//! end of life; what admins order is in [`super::orders`]. Each answer is one pass over what the planner knows, and waits for nobody.

use std::{io, sync::Arc, time::Duration};

use super::{Driver, Input, Owner};
use crate::{
    core::{
        answer::ExchangeError,
        figures::Figures,
        id::{CredentialId, UserName},
        notice::{Provider, Standing, Standings},
        planner::{Event, Found, Row},
        secret::RefreshToken,
        snapshot::{Credential, Issuer, Page, PageRow, Replica, SCHEMA, SiteStanding, Status, Trouble, ends_soon},
        time::Now,
        top::Identity,
    },
    courier::frame::ToCourier,
    error::Kind,
    keeper::{
        control::Reply,
        disk::{self, Job},
        log::LogHandle,
        revoker, scanner,
    },
    notice::round,
};

/// Credentials on the status page.
const ON_PAGE: usize = 500;

impl Driver {
    pub(super) fn serve(&mut self, now: Now, input: Input) {
        match input {
            Input::Learned { id, found, order } => self.learned(now, id, found, order),
            Input::Revoked { generation, number, result } if generation == self.link.generation() => {
                if let Some(outcome) = self.revoker.answered(now.tick, number, result) {
                    self.revoked(now, &outcome);
                }
            }
            Input::Standings(question) => self.standings(now, &question),
            Input::Deliver { number, letter } => {
                if let Err(error) = self.link.send(&ToCourier::Deliver { number, letter }) {
                    let why = error.to_string();
                    self.tell_notices(match error.kind() {
                        // It never fits into a frame.
                        io::ErrorKind::InvalidInput => round::Event::Undeliverable { number, why },
                        _ => round::Event::Delivered { number, result: Err(why) },
                    });
                }
            }
            // Of an earlier courier, too: what it delivered is not to be sent again.
            Input::Delivered { number, result } => self.tell_notices(round::Event::Delivered { number, result }),
            Input::Course(course) => self.trace(*course),
            Input::Delivery(delivery) => self.announcer.told(now, &delivery),
            Input::WantPage { generation } if generation == self.link.generation() => self.tell_page(now),
            Input::WantRestart { generation } if generation == self.link.generation() => self.restart_for_page(),
            Input::WantFigures { generation } if generation == self.link.generation() => self.tell_figures(now),
            // A reader that gave up meanwhile needs no answer.
            Input::Status { user, reply } => drop(reply.try_send(Box::new(self.status(now, user.as_ref())))),
            Input::Order { uid, order, reply } => self.order(now, uid, &order, &reply),
            Input::OrderRefused { uid, order, why } => self.refusal_is_audited(now, uid, order.as_ref(), &why),
            // Of a courier that is gone, or of what `take` has dealt with.
            _ => {}
        }
    }

    pub(super) fn owner_of(&self, id: &CredentialId) -> Option<&Owner> {
        scanner::owner(&self.owners, &id.base())
    }

    /// Tell how the credentials stand that notices ask about: one pass over all of them. Before all were looked at, what
    /// is not there is no news, and nothing is told.
    fn standings(&self, now: Now, question: &round::Question) {
        if !self.first_scan.is_over() {
            return;
        }
        let is_well = |row: &Row<'_>| row.renewed.is_some() && row.error.is_none();
        let standing = |row: Row<'_>| Standing {
            id: row.id.clone(),
            provider: self.owners.get(row.provider).map(|owner| owner.provider.name.clone()).unwrap_or_default(),
            expires: row.expires,
            refresh_ends: row.refresh_token_expires,
            rolling: row.rolling,
            approved: row.approved,
            rotated: row.approved != row.stored,
            error: row.error.filter(|_| !self.planner.is_of_an_outage(&row)).map(|(kind, _, times)| (kind, times)),
            parked: !row.state.lives(),
            well: is_well(&row),
        };
        let asked = |row: &Row<'_>| {
            row.error.is_some()
                || row.refresh_token_expires.is_some_and(|ends| ends <= question.before)
                || question.remembered.contains(row.id)
        };
        let provider = |(index, owner): (usize, &Arc<Owner>)| Provider {
            name: owner.provider.name.clone(),
            outage: self.planner.outage(index),
            living: 0,
            soonest: None,
            well: false,
        };
        let mut providers: Vec<Provider> = self.owners.iter().enumerate().map(provider).collect();
        let mut credentials = Vec::new();
        for row in self.planner.rows(now, None) {
            if let Some(provider) = providers.get_mut(row.provider) {
                provider.well |= is_well(&row) && provider.outage.is_none();
                if row.state.lives() {
                    provider.living += 1;
                    provider.soonest = [provider.soonest, row.expires].into_iter().flatten().min();
                }
            }
            if asked(&row) {
                credentials.push(standing(row));
            }
        }
        // A round that gave up meanwhile needs no answer.
        drop(question.reply.try_send(Standings { credentials, providers, sites: self.replication.board.sites() }));
    }

    pub(super) fn tell_notices(&self, event: round::Event) {
        if let Some(notices) = &self.notices {
            // The thread ends only with the process.
            notices.send(event).ok();
        }
    }

    pub(super) fn forgotten(&mut self, now: Now, id: &CredentialId) {
        if let Some(wait) = self.revoker.provider_of(id).and_then(|name| revokes(&self.owners, id, name)) {
            self.revoker.left(now.tick, id, wait);
        }
    }

    /// After a reload: what is not to be given back any more is not held any longer either.
    pub(super) fn keep_what_may_be_revoked(&mut self) {
        self.revoker.retain(|id, provider| revokes(&self.owners, id, provider).is_some());
    }

    /// The courier is gone: what it had been asked is asked again, and who ordered it is told.
    pub(super) fn revocations_lost(&mut self, now: Now) {
        for outcome in self.revoker.lost(now.tick) {
            self.revoked(now, &outcome);
        }
    }

    /// Read the refresh tokens of credentials whose providers give them back at the end.
    pub(super) fn learn(&mut self, found: &[Found]) {
        for found in found {
            if let (Some(owner), Ok(identity)) = (self.owners.get(found.provider), found.top)
                && owner.provider.revoke_at_end
                && self.revoker.seen(&found.id, identity, &owner.provider.name)
            {
                self.disk.submit(Job::Learn { id: found.id.clone(), owner: Arc::clone(owner), order: None });
            }
        }
    }

    fn learned(
        &mut self,
        now: Now,
        id: CredentialId,
        found: Result<(Identity, revoker::Held), ExchangeError>,
        order: Option<u32>,
    ) {
        match (found, order) {
            // It may have been read for the settings before a reload.
            (Ok((identity, held)), None) => {
                if revokes(&self.owners, &id, &held.provider).is_some() {
                    self.revoker.learned(id, identity, held);
                }
            }
            (Ok((_, held)), Some(uid)) => self.revoker.order(now.tick, id, held, uid),
            // What may not be sent cannot be given back; the planner tells what is wrong with it.
            (Err(_), None) => {}
            (Err(mut error), by @ Some(_)) => {
                error.detail = format!("nothing is sent to the issuer: {}", error.detail);
                let result = Err(error);
                let provider = self.owner_of(&id).map_or_else(String::new, |owner| owner.provider.name.clone());
                self.revoked(now, &revoker::Outcome { id, provider, by, jti_sha256: None, result });
            }
        }
    }

    fn is_elsewhere(&self, provider: Option<usize>, token: &RefreshToken) -> bool {
        let owner = provider.and_then(|index| self.owners.get(index));
        owner.is_none_or(|owner| disk::made_elsewhere(token, &owner.provider).is_some())
    }

    fn may_revoke(&self) -> bool {
        self.courier_up && self.stop_by.is_none()
    }

    /// How long no revocation is due; none: until something happens that reaches the loop.
    pub(super) fn revocations_wait(&self, now: Now) -> Option<Duration> {
        self.revoker.wait(now.tick).filter(|_| self.may_revoke())
    }

    /// Ask for the revocations that are due. The directory must still be the one that we know: what looks swept in
    /// another one is not.
    pub(super) fn revoke(&mut self, now: Now) {
        if !self.may_revoke() {
            return;
        }
        while let Some(ask) = self.revoker.next(now.tick) {
            // Of its name there may be another one now: a token goes only where its service belongs.
            let index = scanner::provider_of(&self.owners, &ask.id)
                .filter(|&owns| self.owners.get(owns).is_some_and(|owner| owner.provider.name == ask.held.provider));
            let sent = match index {
                _ if self.spool.verify().is_err() => {
                    Err(ExchangeError::new(Kind::PublishFailed, "the directory moved"))
                }
                None => Err(ExchangeError::new(
                    Kind::ClientRefused,
                    "its service does not belong to that provider any more",
                )),
                // Since it was read, a reload may have brought that provider another server.
                Some(_) if self.is_elsewhere(index, &ask.held.token) => {
                    Err(ExchangeError::new(Kind::TopElsewhere, "nothing is sent: it is another server's"))
                }
                Some(provider) => {
                    let frame = ToCourier::Revoke { number: ask.number, provider, token: ask.held.token };
                    self.link.send(&frame).map_err(|e| ExchangeError::new(Kind::CourierLost, e.to_string()))
                }
            };
            if let Err(error) = sent
                && let Some(outcome) = self.revoker.answered(now.tick, ask.number, Err(error))
            {
                self.revoked(now, &outcome);
            }
        }
    }

    /// Send the courier the figures that it asked for; it asks at most once a second.
    fn tell_figures(&mut self, now: Now) {
        let (audit_written, audit_lost) = self.announcer.audit().counts();
        let figures = Figures {
            started: self.started,
            scanned: self.first_scan.is_over(),
            readers: self.readers.readers(),
            log_lost: self.log.as_ref().map_or(0, LogHandle::lost),
            audit_written,
            audit_lost,
            sites: self.replication.board.sites(),
            replicator_restarts: self.replication.board.restarts(),
            ..self.announcer.tally.figures(now, &self.planner, &self.owners)
        };
        self.show("figures", &ToCourier::Figures(Box::new(figures)));
    }

    /// Send the courier what the status page shows; it asks at most once a second.
    fn tell_page(&mut self, now: Now) {
        let page = self.page(now);
        self.show("status page", &ToCourier::Page(Box::new(page)));
    }

    /// What readers of metrics or of the page do not get is told once, until they get it again.
    fn show(&mut self, what: &'static str, frame: &ToCourier) {
        match self.link.send(frame) {
            Ok(()) => {
                self.unshown.remove(what);
            }
            Err(error) => {
                if self.unshown.insert(what) {
                    tracing::warn!(%error, "the courier does not take the {what}: readers get an old one, or none");
                }
            }
        }
    }

    fn page(&self, now: Now) -> Page {
        let mut rows: Vec<Row<'_>> = self.planner.rows(now, None).collect();
        let total = rows.len();
        let ends = |row: &Row<'_>| ends_soon(row.state, row.refresh_token_expires, row.rolling, now.wall);
        let ending = rows.iter().filter(|row| ends(row).is_some()).count();
        let attention = |row: &Row<'_>| (row.state.urgency(), ends(row).is_none(), row.flagged.is_none(), row.expires);
        if total > ON_PAGE {
            // Sorting all of them would cost more than picking these.
            rows.select_nth_unstable_by_key(ON_PAGE, attention);
            rows.truncate(ON_PAGE);
        }
        rows.sort_by_cached_key(|row| (attention(row), row.id.clone()));
        let shown = |row: Row<'_>| {
            let mut credential = self.credential(&row, Vec::new());
            if let Some(trouble) = &mut credential.error {
                trouble.detail.clear();
            }
            PageRow { credential, copies: self.replication.board.copies(row.id) }
        };
        Page {
            host: nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default(),
            total,
            ending,
            rows: rows.into_iter().map(shown).collect(),
            status: self.document(now, true, std::iter::empty()),
        }
    }

    /// How things stand.
    fn status(&self, now: Now, user: Option<&UserName>) -> Status {
        self.document(now, user.is_none(), self.planner.rows(now, user))
    }

    fn document<'a>(&self, now: Now, everybody: bool, rows: impl Iterator<Item = Row<'a>>) -> Status {
        let issuer = |(index, owner): (usize, &Arc<Owner>)| {
            let (down, in_flight, queued) = self.planner.issuer(index);
            Issuer {
                provider: owner.provider.name.clone(),
                kind: owner.provider.kind.word().to_owned(),
                services: owner.provider.services.clone(),
                down,
                in_flight,
                queued,
            }
        };
        Status {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            now: now.wall,
            started: self.started,
            everybody,
            courier: self.courier_up,
            complete: self.first_scan.is_over(),
            providers: self.owners.iter().enumerate().map(issuer).collect(),
            sites: self.replication.board.sites().iter().map(SiteStanding::from).collect(),
            credentials: rows.map(|row| self.credential(&row, self.replication.board.of(row.id))).collect(),
        }
    }

    fn credential(&self, row: &Row<'_>, replicas: Vec<Replica>) -> Credential {
        Credential {
            user: row.id.user.to_string(),
            service: row.id.service.to_string(),
            handle: row.id.handle.as_ref().map(ToString::to_string),
            provider: self.owners.get(row.provider).map(|owner| owner.provider.name.clone()).unwrap_or_default(),
            state: row.state,
            expires: row.expires,
            renews: row.renews,
            refresh_token_expires: row.refresh_token_expires,
            rolling: row.rolling,
            stored: row.stored,
            renewed: row.renewed,
            generation: row.generation,
            error: row.error.map(|(kind, since, times)| Trouble {
                kind,
                detail: self.announcer.detail(row.id, kind).to_owned(),
                since,
                times,
            }),
            flagged: row.flagged,
            replicas,
        }
    }

    /// A revocation ended: tell, and ask the issuer at once whether it is so, if it was ordered.
    pub(super) fn revoked(&mut self, now: Now, outcome: &revoker::Outcome) {
        self.announcer.revoked(now, &self.owners, outcome);
        if let Some(reply) = self.waiting.remove(&outcome.id) {
            drop(reply.try_send(match &outcome.result {
                Ok(()) => Reply::Done { credentials: 1 },
                Err(error) => Reply::Refused { why: format!("not revoked, {error}") },
            }));
        }
        if outcome.by.is_some() && outcome.result.is_ok() {
            self.planner.handle(now, Event::Renew { id: outcome.id.clone() });
        }
    }
}

/// After which time the refresh token of a credential that left is given back; none: it is not, or another provider has
/// the credential now.
fn revokes(owners: &[Arc<Owner>], id: &CredentialId, provider: &str) -> Option<Duration> {
    let owner = scanner::owner(owners, &id.base())?;
    (owner.provider.name == provider && owner.provider.revoke_at_end).then_some(owner.provider.revoke_after)
}
