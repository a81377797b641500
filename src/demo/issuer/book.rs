//! What the embedded issuer remembers: refresh tokens with their families, and what was issued to whom.
//! In memory only; gone with the process.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{mint::Mytoken, sign};

/// What happens to the refresh token at an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// It stays.
    None,
    /// Each answer brings a new one, and the old one is dead at once.
    Strict,
    /// Each answer brings a new one, and the old one works for this long after its first use.
    Grace(Duration),
}

/// A misbehaviour towards one user's tokens (or everybody's).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Never answer. Nothing is spent.
    Hang,
    /// 302 to another place. Nothing is spent.
    Redirect,
    /// 200 with an HTML page. Nothing is spent.
    Html,
    /// 200 with 1 GiB of JSON. Nothing is spent.
    Huge,
    /// 200 with the first half of a JSON object. Nothing is spent.
    HalfJson,
    /// 500. Nothing is spent.
    ServerError,
    /// 429 in plain text with `Retry-After` in seconds. Nothing is spent.
    RateLimited(u64),
    /// 401 `invalid_client`. Nothing is spent.
    InvalidClient,
    /// A good answer, lost on the way: the refresh token is spent and the connection closed.
    LoseAnswer,
    /// A good answer, so many milliseconds on its way: the refresh token is spent at once.
    LateAnswer(u64),
    /// An answer without `expires_in`; the JWT has its `exp`.
    NoExpiry,
    /// As `no-expiry`, and the access token is opaque.
    Opaque,
    /// An answer whose token has expired already.
    PastExpiry,
    /// A token of another issuer.
    WrongIssuer,
    /// An access token of so many bytes.
    Bulky(u32),
    /// Half of the scopes that were asked for.
    ScopeShortfall,
    /// A token for another audience than was asked for.
    AudienceShortfall,
    /// mytoken: the provider behind the server refuses its refresh token.
    ProviderRefuses,
    /// mytoken: the provider behind the server cannot be reached.
    ProviderDown,
}

impl Fault {
    /// Whether the refresh token is left alone.
    pub(super) fn spares_the_token(self) -> bool {
        !matches!(
            self,
            Self::LoseAnswer
                | Self::LateAnswer(_)
                | Self::NoExpiry
                | Self::Opaque
                | Self::PastExpiry
                | Self::WrongIssuer
                | Self::Bulky(_)
                | Self::ScopeShortfall
                | Self::AudienceShortfall
        )
    }
}

/// One access token that left the issuer. The token itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// `jti` of the access token.
    pub jti: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// `exp`, seconds since 1970.
    pub exp: u64,
}

/// One request for an access token, as it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Its parameters in their order, without the secrets among them.
    pub parameters: Vec<(String, String)>,
}

/// What one refresh token (with all its rotations) saw; no secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Whose.
    pub user: String,
    /// Good answers.
    pub exchanges: u64,
    /// Good answers that brought a new refresh token.
    pub rotations: u64,
    /// Uses of a refresh token that was superseded before.
    pub reuse: u64,
    /// Answers that refused the refresh token.
    pub refused: u64,
    /// Whether it has been revoked.
    pub revoked: bool,
    /// The last 1,000 access tokens.
    pub issued: VecDeque<Issued>,
    /// The last 20 requests, whatever came of them.
    pub asked: VecDeque<Asked>,
}

/// How a refresh token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Never handed out.
    Unknown,
    /// The next exchange takes it.
    Current,
    /// An exchange spent it, and its answer brought another.
    Superseded {
        /// How long ago.
        ago: Duration,
    },
    /// Revoked.
    Revoked,
}

/// A family: one approval and everything that followed from it.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) record: Record,
    pub(super) client: Option<String>,
    pub(super) scopes: Vec<String>,
    pub(super) audience: Vec<String>,
    pub(super) mytoken: Option<Mytoken>,
}

impl Family {
    /// Note a request in the record.
    fn ask(&mut self, parameters: impl Iterator<Item = (String, String)>) {
        let asked = &mut self.record.asked;
        if asked.len() == KEPT_REQUESTS {
            asked.pop_front();
        }
        let parameters = parameters.filter(|(name, _)| !SECRETS.contains(&name.as_str())).collect();
        asked.push_back(Asked { at_ms: now_ms(), parameters });
    }
}

/// What the user said to a device.
#[derive(Debug)]
pub(super) enum Decision {
    Open,
    Denied,
    Approved(String),
}

/// A device that waits for its user (RFC 8628).
#[derive(Debug)]
pub(super) struct Device {
    pub(super) user_code: String,
    pub(super) client: Option<String>,
    pub(super) scopes: Vec<String>,
    pub(super) until: Instant,
    pub(super) polled: Option<Instant>,
    pub(super) decision: Decision,
}

/// Everything that is remembered.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) families: Vec<Family>,
    /// Every refresh token and mytoken ever handed out → its family and when it was superseded.
    pub(super) tokens: HashMap<String, (usize, Option<Instant>)>,
    pub(super) faults: HashMap<String, Fault>,
    pub(super) everybody: Option<Fault>,
    pub(super) devices: HashMap<String, Device>,
    pub(super) consents: HashMap<String, super::mytoken::Consent>,
}

/// What an exchange may hand out.
#[derive(Debug)]
pub(super) struct Spent {
    pub(super) family: usize,
    pub(super) user: String,
    pub(super) scopes: Vec<String>,
    pub(super) audience: Vec<String>,
    pub(super) fault: Option<Fault>,
    pub(super) rotated: Option<String>,
}

/// Why an exchange hands out nothing.
#[derive(Debug)]
pub(super) enum Refusal {
    Misbehave(Fault),
    Grant(&'static str),
    Scope,
}

const KEPT: usize = 1000;
const KEPT_REQUESTS: usize = 20;
const SECRETS: [&str; 4] = ["refresh_token", "mytoken", "client_secret", "subject_token"];

impl Book {
    /// A new family with its first refresh token.
    pub(super) fn open(&mut self, family: Family) -> (usize, String) {
        let token = format!("ert-{}", sign::random::<32>());
        let index = self.enter(family, token.clone());
        (index, token)
    }

    /// A new family whose first token is made already.
    pub(super) fn enter(&mut self, family: Family, token: String) -> usize {
        let index = self.families.len();
        self.families.push(family);
        self.tokens.insert(token, (index, None));
        index
    }

    /// The fault that a user's exchange meets.
    pub(super) fn fault(&self, user: &str) -> Option<Fault> {
        if self.faults.is_empty() { self.everybody } else { self.faults.get(user).copied().or(self.everybody) }
    }

    /// Spend an OAuth2 refresh token.
    pub(super) fn spend(
        &mut self,
        token: &str,
        client: Option<&str>,
        wish: &[String],
        rotation: Rotation,
    ) -> Result<Spent, Refusal> {
        let Some(&(index, superseded)) = self.tokens.get(token) else {
            return Err(Refusal::Grant("refresh token unknown"));
        };
        let fault = self.families.get(index).and_then(|family| self.fault(&family.record.user));
        let Some(family) = self.families.get_mut(index).filter(|family| family.mytoken.is_none()) else {
            return Err(Refusal::Grant("refresh token unknown"));
        };
        if let Some(fault) = fault.filter(|fault| fault.spares_the_token()) {
            return Err(Refusal::Misbehave(fault));
        }
        if family.record.revoked {
            family.record.refused += 1;
            return Err(Refusal::Grant("refresh token revoked"));
        }
        if family.client.is_some() && family.client.as_deref() != client {
            return Err(Refusal::Grant("refresh token of another client"));
        }
        let now = Instant::now();
        if let Some(at) = superseded {
            family.record.reuse += 1;
            let graceful = matches!(rotation, Rotation::Grace(grace) if now.duration_since(at) < grace);
            if !graceful {
                family.record.refused += 1;
                return Err(Refusal::Grant("refresh token used before"));
            }
        }
        if !wish.iter().all(|scope| family.scopes.contains(scope)) {
            return Err(Refusal::Scope);
        }
        let scopes = if wish.is_empty() { family.scopes.clone() } else { wish.to_vec() };
        family.record.exchanges += 1;
        let mut spent = Spent {
            family: index,
            user: family.record.user.clone(),
            scopes,
            audience: family.audience.clone(),
            fault,
            rotated: None,
        };
        if rotation != Rotation::None {
            family.record.rotations += 1;
            let next = format!("ert-{}", sign::random::<32>());
            if let Some(entry) = self.tokens.get_mut(token) {
                entry.1.get_or_insert(now);
            }
            self.tokens.insert(next.clone(), (index, None));
            spent.rotated = Some(next);
        }
        Ok(spent)
    }

    /// What a client gets that asks for itself (RFC 6749 §4.4): all of it is one family, whose user is the client.
    pub(super) fn grant_itself(
        &mut self,
        client: &str,
        (scopes, audience): (Vec<String>, Vec<String>),
        parameters: impl Iterator<Item = (String, String)>,
    ) -> Result<Spent, Refusal> {
        let fault = self.fault(client);
        let own = |family: &Family| family.record.user == client && family.client.as_deref() == Some(client);
        let index = self.families.iter().position(own).unwrap_or_else(|| {
            self.families.push(Family {
                record: Record { user: client.to_owned(), ..Record::default() },
                client: Some(client.to_owned()),
                scopes: Vec::new(),
                audience: Vec::new(),
                mytoken: None,
            });
            self.families.len() - 1
        });
        if let Some(family) = self.families.get_mut(index) {
            family.ask(parameters);
            if let Some(fault) = fault.filter(|fault| fault.spares_the_token()) {
                return Err(Refusal::Misbehave(fault));
            }
            family.record.exchanges += 1;
        }
        Ok(Spent { family: index, user: client.to_owned(), scopes, audience, fault, rotated: None })
    }

    /// Note a request in the record of its token's family.
    pub(super) fn ask(&mut self, token: &str, parameters: impl Iterator<Item = (String, String)>) {
        if let Some(family) = self.family_of(token) {
            family.ask(parameters);
        }
    }

    /// Note an access token in its family's record.
    pub(super) fn note(&mut self, family: usize, issued: Issued) {
        if let Some(family) = self.families.get_mut(family) {
            if family.record.issued.len() == KEPT {
                family.record.issued.pop_front();
            }
            family.record.issued.push_back(issued);
        }
    }

    /// How a token stands.
    pub(super) fn standing(&self, token: &str) -> Standing {
        let Some(&(index, superseded)) = self.tokens.get(token) else { return Standing::Unknown };
        match (superseded, self.families.get(index).is_some_and(|family| family.record.revoked)) {
            (_, true) => Standing::Revoked,
            (Some(at), false) => Standing::Superseded { ago: at.elapsed() },
            (None, false) => Standing::Current,
        }
    }

    /// The tokens of a user that the next exchange takes.
    pub(super) fn current(&self, user: &str) -> Vec<String> {
        let lives = |index: usize| {
            self.families.get(index).is_some_and(|family| family.record.user == user && !family.record.revoked)
        };
        let of_user = self.tokens.iter().filter(|(_, (index, superseded))| superseded.is_none() && lives(*index));
        of_user.map(|(token, _)| token.clone()).collect()
    }

    /// The family of a token, whatever its state.
    pub(super) fn family_of(&mut self, token: &str) -> Option<&mut Family> {
        let (index, _) = *self.tokens.get(token)?;
        self.families.get_mut(index)
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
