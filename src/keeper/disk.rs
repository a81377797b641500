//! File work on a few threads, so that one slow flush delays no other credential. Every job ends in one [`Input`]. A
//! rotated refresh token is written at once, by a thread that waits for no flush, and then takes its turn. What comes
//! before an exchange waits for no flush either, or the issuer would be idle meanwhile; only when many flushes are due
//! it does, since a token that waits for its turn holds files open.

use std::sync::{Arc, mpsc::Sender};

use super::{
    crew::Crew,
    driver::{Held, Input, Owner},
    revoker,
};
use crate::{
    config::settings::{Provider, ProviderKind},
    core::{
        answer::{ExchangeError, Grant, Spends},
        id::CredentialId,
        jwt,
        planner::Event,
        secret::RefreshToken,
        time::Timestamp,
        top::{Identity, Top},
        use_file,
    },
    error::Kind,
    spool::{Kept, PublishError, Refusal, Rotated, Seal, Spool},
};

/// Threads that flush: those that wait at once share one commit of the file system's journal.
const FLUSHING: usize = 64;
/// Threads that read and reserve.
const PREPARING: usize = 2;
/// While so many jobs with a flush are due, no further exchange is prepared.
const BEHIND: usize = 128;

/// Space for a `.use` whose predecessor does not tell how large it will be.
const USE_ROOM: usize = 4096;

/// What is to be done.
#[derive(Debug)]
pub enum Job {
    /// Read the `.top`, reserve space, and hand the request back for the courier.
    Prepare {
        /// Exchange.
        number: u64,
        /// Credential.
        id: CredentialId,
        /// The `.top` the planner knows.
        identity: Identity,
        /// Its provider.
        owner: Arc<Owner>,
    },
    /// Make the rotated refresh token durable.
    Keep {
        /// Exchange.
        number: u64,
        /// The `.top` to replace.
        identity: Identity,
        /// What is held for the exchange.
        held: Box<Held>,
    },
    /// Publish the access token.
    Publish {
        /// Exchange.
        number: u64,
        /// The `.top` it belongs to.
        identity: Identity,
        /// What is held for the exchange.
        held: Box<Held>,
        /// When the issuer gave the token, for `issued_at` and `expires_at`.
        issued: Timestamp,
    },
    /// Read the refresh token, to give it back one day.
    Learn {
        /// Credential.
        id: CredentialId,
        /// Its provider.
        owner: Arc<Owner>,
        /// The uid of who orders that it be given back now.
        order: Option<u32>,
    },
}

/// The crews.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Before an exchange.
    reading: Crew<Job>,
    /// Refresh tokens that came with an answer, for their first step.
    urgent: Crew<Job>,
    flushing: Crew<Job>,
}

impl Disk {
    /// No thread is there before its first job.
    #[must_use]
    pub fn new(spool: &Arc<Spool>, inputs: &Sender<Input>) -> Self {
        let worker = || {
            let (spool, inputs) = (Arc::clone(spool), inputs.clone());
            // The driver is gone only when the process ends.
            move |job| drop(inputs.send(run(&spool, job)))
        };
        let flushing = Crew::new("flush", FLUSHING, worker());
        let (due, read) = (flushing.clone(), worker());
        let reading = Crew::new("read", PREPARING, move |job| {
            due.wait_below(BEHIND);
            read(job);
        });
        let (then, files) = (flushing.clone(), Arc::clone(spool));
        let urgent = Crew::new("keep", 1, move |mut job| {
            write(&files, &mut job);
            then.submit(job);
        });
        Self { reading, urgent, flushing }
    }

    /// Hand over a job.
    pub fn submit(&self, job: Job) {
        match job {
            Job::Prepare { .. } | Job::Learn { .. } => self.reading.submit(job),
            Job::Keep { .. } => self.urgent.submit(job),
            Job::Publish { .. } => self.flushing.submit(job),
        }
    }
}

/// Let a kill lose nothing from here on, before the job waits for its turn and for the disk.
fn write(spool: &Spool, job: &mut Job) {
    let Job::Keep { identity, held, .. } = job else { return };
    let Held { id, owner, reservation, spent: Some(spent), rotated: Some(new), .. } = &mut **held else { return };
    let rotated = Rotated { spent, new };
    if let Err(error) = spool.write_refresh_token(id, reservation, *identity, rotated, owner.seal.as_ref()) {
        tracing::debug!(credential = %id, %error, "a refresh token is not written yet");
    }
}

fn run(spool: &Spool, job: Job) -> Input {
    match job {
        Job::Learn { id, owner, order } => learn(spool, id, &owner, order),
        Job::Prepare { number, id, identity, owner } => prepare(spool, number, id, identity, owner),
        Job::Keep { number, identity, mut held } => {
            let Held { id, owner, reservation, spent, rotated, .. } = &mut *held;
            let kept = match (spent, rotated) {
                (Some(spent), Some(new)) => {
                    let rotated = Rotated { spent, new };
                    spool.keep_refresh_token(id, reservation, identity, rotated, owner.seal.as_ref())
                }
                // Kept before.
                _ => Ok(Kept { identity, stored_anew: false }),
            };
            let event = match kept {
                Ok(Kept { identity, stored_anew }) => {
                    held.rotated = None;
                    Event::Kept { number, identity, stored_anew }
                }
                Err(error) => failed(number, &error).unwrap_or(Event::KeepFailed { number, kind: kind(&error) }),
            };
            Input::Back { held, number, event }
        }
        Job::Publish { number, identity, held, issued } => {
            let Held { id, owner, reservation, answer, .. } = *held;
            let Some(answer) = answer else {
                return Input::Event(Event::PublishFailed { number, kind: Kind::BadAnswer });
            };
            let bytes = use_file::render(&answer, owner.provider.use_format, issued);
            Input::Event(match spool.publish_use(&id, reservation, identity, &bytes) {
                Ok(()) => Event::Published { number },
                Err(error) => failed(number, &error).unwrap_or(Event::PublishFailed { number, kind: kind(&error) }),
            })
        }
    }
}

fn learn(spool: &Spool, id: CredentialId, owner: &Owner, order: Option<u32>) -> Input {
    let found = match read_own(spool, &id, owner) {
        Ok((_, None)) => Err(ExchangeError::new(
            Kind::TopNoToken,
            "its client asks for itself: no user's refresh token is spent there",
        )),
        Ok((_, Some(top))) if top.is_subject() => {
            Err(ExchangeError::new(Kind::TopNoToken, "it is a subject token, not yet exchanged for a refresh token"))
        }
        Ok((identity, Some(top))) => {
            let token = top.refresh_token().clone();
            Ok((identity, revoker::Held { provider: owner.provider.name.clone(), token }))
        }
        Err(Withheld::Missing) => Err(ExchangeError::new(Kind::TopUnreadable, "it is not there any more")),
        Err(Withheld::Bad(kind, words)) => Err(ExchangeError::new(kind, words)),
    };
    Input::Learned { id, found, order }
}

fn prepare(spool: &Spool, number: u64, id: CredentialId, identity: Identity, owner: Arc<Owner>) -> Input {
    let fail = |kind| {
        Input::Event(Event::Answered {
            number,
            result: Err(crate::core::planner::Failure { kind, retry_after: None, rotated: false }),
        })
    };
    let grant = match read_grant(spool, &id, &owner) {
        Ok((found, grant)) if found == identity => grant,
        Ok(_) | Err(Withheld::Missing) => return Input::Event(Event::Superseded { number }),
        Err(Withheld::Bad(kind, words)) => {
            tracing::warn!(credential = %id, provider = owner.provider.name, words, "not sent");
            return fail(kind);
        }
    };
    let room = usize::try_from(identity.size).unwrap_or(0).saturating_add(8192);
    let reservation = match spool.reserve(&id, room, USE_ROOM) {
        Ok(reservation) => reservation,
        Err(error) => return failed(number, &error).map_or_else(|| fail(kind(&error)), Input::Event),
    };
    let spent = grant.spends.token().cloned();
    Input::Ask { number, grant, held: Box::new(Held { id, owner, reservation, spent, answer: None, rotated: None }) }
}

/// What is to be asked for, and the `.top` that says so.
fn read_grant(spool: &Spool, id: &CredentialId, owner: &Owner) -> Result<(Identity, Grant), Withheld> {
    let provider = &owner.provider;
    let (found, top) = read_own(spool, id, owner)?;
    let grant = match top {
        Some(top) => grant(provider, &top),
        None => Grant {
            spends: Spends::Nothing,
            scopes: provider.scopes.clone(),
            audience: provider.audience_of(id.handle.as_ref()).to_vec(),
        },
    };
    Ok((found, grant))
}

/// Why nothing of a `.top` may go to its provider.
enum Withheld {
    /// It is not there.
    Missing,
    /// Its kind, and what is wrong in words.
    Bad(Kind, String),
}

impl From<Refusal> for Withheld {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Missing => Self::Missing,
            Refusal::Bad(kind) => Self::Bad(kind, "it cannot be used".into()),
        }
    }
}

/// The `.top`, if what it holds may go to its provider: every token that leaves, to be spent or to be given back, passes
/// here. None: the client asks for itself, and what a user has stored there neither is spent nor says what is asked for.
fn read_own(spool: &Spool, id: &CredentialId, owner: &Owner) -> Result<(Identity, Option<Top>), Withheld> {
    let provider = &owner.provider;
    let bad = |kind, words: String| Err(Withheld::Bad(kind, words));
    if let Some(accounts) = provider.accounts() {
        let found = spool.top_identity(id)?;
        if !accounts.name(id) {
            return bad(Kind::AccountNotNamed, format!("users of the provider {} does not name it", provider.name));
        }
        return Ok((found, None));
    }
    let (found, top) = spool.read_top(id, owner.seal.as_ref())?;
    if top.is_subject() && !exchanges(provider) {
        return bad(Kind::TopNoToken, "it is a subject token, which this provider does not exchange".into());
    }
    if let Some(maker) = made_elsewhere(top.refresh_token(), provider) {
        return bad(Kind::TopElsewhere, format!("it is of the server {maker:?}"));
    }
    if let Err(error) = approved_here(spool, id, provider) {
        return bad(Kind::MetaMismatch, error);
    }
    Ok((found, Some(top)))
}

fn exchanges(provider: &Provider) -> bool {
    matches!(&provider.kind, ProviderKind::OAuth2(client) if client.login_client.is_some())
}

/// The server that a token is of by its own word, if that is another one than it would go to. Of OAuth2 refresh tokens
/// only mytokens are judged: what others say of their maker is between them and their issuer.
pub(super) fn made_elsewhere(token: &RefreshToken, provider: &Provider) -> Option<String> {
    let maker = jwt::maker(token.expose())?;
    let here = |url: &str| url.trim_end_matches('/') == maker.iss.trim_end_matches('/');
    let is_here = match &provider.kind {
        ProviderKind::Mytoken { server } => here(server),
        ProviderKind::OAuth2(_) if maker.token_type.as_deref() != Some("mytoken") => true,
        ProviderKind::OAuth2(client) => {
            let endpoint = client.token_endpoint.as_deref();
            provider.issuer.as_deref().is_some_and(here)
                || endpoint.is_some_and(|endpoint| origin(endpoint).is_some_and(|it| Some(it) == origin(&maker.iss)))
        }
    };
    (!is_here).then(|| maker.iss.chars().take(200).collect())
}

/// A refresh token that the stock web page had approved goes only to the client and endpoint it was approved for.
fn approved_here(spool: &Spool, id: &CredentialId, provider: &Provider) -> Result<(), String> {
    let ProviderKind::OAuth2(client) = &provider.kind else { return Ok(()) };
    let meta = match spool.meta(id) {
        Ok(Some(meta)) => meta,
        Ok(None) => return Ok(()),
        Err(_) => return Err("the .meta beside it cannot be read".into()),
    };
    let short = |text: &str| text.chars().take(200).collect::<String>();
    if meta.client_id != client.client_id {
        let theirs = short(&meta.client_id);
        return Err(format!("it was approved for the client {theirs:?}, configured is {:?}", client.client_id));
    }
    let same = match (&client.token_endpoint, &provider.issuer) {
        (Some(endpoint), _) => *endpoint == meta.token_url,
        // The endpoint is found by discovery, which is the courier's: the issuer's own host is the same place.
        (None, Some(issuer)) => origin(issuer).is_some_and(|ours| Some(ours) == origin(&meta.token_url)),
        (None, None) => false,
    };
    if same {
        return Ok(());
    }
    let configured = client.token_endpoint.as_ref().or(provider.issuer.as_ref());
    Err(format!(
        "it was approved for {:?}, configured is {:?}",
        short(&meta.token_url),
        configured.map_or("", String::as_str)
    ))
}

fn origin(url: &str) -> Option<url::Origin> {
    url::Url::parse(url).ok().map(|url| url.origin()).filter(url::Origin::is_tuple)
}

/// The `.top`'s own wishes come before the provider's; from HTCondor's knobs, what was approved is renewed unasked.
fn grant(provider: &Provider, top: &Top) -> Grant {
    let token = top.refresh_token().clone();
    if matches!(&provider.kind, ProviderKind::OAuth2(client) if client.from_htcondor) {
        return Grant { spends: Spends::RefreshToken(token), scopes: Vec::new(), audience: Vec::new() };
    }
    Grant {
        spends: if top.is_subject() { Spends::SubjectToken(token) } else { Spends::RefreshToken(token) },
        scopes: top.scopes.clone().unwrap_or_else(|| provider.scopes.clone()),
        audience: top.audience.clone().unwrap_or_else(|| provider.audience.clone()),
    }
}

fn failed(number: u64, error: &PublishError) -> Option<Event> {
    matches!(error, PublishError::Superseded | PublishError::Gone).then_some(Event::Superseded { number })
}

fn kind(error: &PublishError) -> Kind {
    if matches!(error, PublishError::NoSpace { .. }) { Kind::NoSpace } else { Kind::PublishFailed }
}

/// Opens `.top` files that are Fernet text.
///
/// # Errors
/// The key file is missing, open to others, or holds no key.
pub fn seal(provider: &Provider) -> Result<Option<Seal>, String> {
    provider
        .fernet_key_file
        .as_deref()
        .map(|path| Seal::from_key_file(path).map_err(|e| format!("{}: {e}", path.display())))
        .transpose()
}
