//! What the daemon tells of itself: the document behind `evercred status --json`, the status page and the storer.
//!
//! [`SCHEMA`] counts; fields are added, never renamed and never given another meaning. Times are RFC 3339, durations
//! seconds. No secret is in it, nor anything from which one could be guessed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    site::Site,
    time::{Timestamp, rfc3339},
};
use crate::error::Kind;

/// Grows when a reader of old must know better.
pub const SCHEMA: u32 = 1;
/// An approval that ends within this time is told of before anything fails.
pub const SOON: Duration = Duration::from_secs(86_400);
/// So many late sites of one credential are named on the status page.
const NAMED: usize = 3;

/// The whole document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`]
    pub schema: u32,
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When this was told, by the daemon's clock.
    #[serde(with = "rfc3339")]
    pub now: Timestamp,
    /// When the daemon started.
    #[serde(with = "rfc3339")]
    pub started: Timestamp,
    /// Whether `credentials` are everybody's (root and condor see that), or only the reader's own.
    pub everybody: bool,
    /// The network process is up.
    pub courier: bool,
    /// Everything has been looked at since the start or the last reload: what is not in `credentials` is not there. Until
    /// then some may be missing.
    #[serde(default = "looked_at")]
    pub complete: bool,
    /// The providers, in the order of their names.
    pub providers: Vec<Issuer>,
    /// The sites, in the order of the configuration.
    #[serde(default)]
    pub sites: Vec<SiteStanding>,
    /// The credentials, by user and name.
    pub credentials: Vec<Credential>,
}

/// A daemon that does not tell yet whether it is complete is not asked twice.
fn looked_at() -> bool {
    true
}

/// What the status page shows. Its size depends on the number of rows and sites, not on their product.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// Name of the host.
    pub host: String,
    /// Credentials in all.
    pub total: usize,
    /// Of these, such whose approval ends soon.
    pub ending: usize,
    /// All but the credentials.
    pub status: Status,
    /// The credentials that need most attention, those first.
    pub rows: Vec<PageRow>,
}

/// A credential on the status page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PageRow {
    /// Without its copies, and without the words of its trouble.
    pub credential: Credential,
    /// Its copies, in numbers.
    pub copies: Copies,
}

/// The copies of a credential, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    /// How many.
    pub total: usize,
    /// Those that wait for a newer generation.
    pub behind: usize,
    /// The first few sites of these.
    pub late: Vec<String>,
}

impl Copies {
    /// Count them.
    #[must_use]
    pub fn of(replicas: &[Replica]) -> Self {
        let late = || replicas.iter().filter(|replica| replica.behind);
        Self {
            total: replicas.len(),
            behind: late().count(),
            late: late().take(NAMED).map(|replica| replica.site.clone()).collect(),
        }
    }
}

/// A provider and how its issuer does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Issuer {
    /// Name of the provider.
    pub provider: String,
    /// Its kind, as configured.
    pub kind: String,
    /// The services that it owns.
    pub services: Vec<String>,
    /// Only single probes go out: it is down, or refuses our client.
    pub down: bool,
    /// Exchanges under way.
    pub in_flight: u32,
    /// Renewals that wait for their turn.
    pub queued: usize,
}

/// A site and how it does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteStanding {
    /// Name of the site.
    pub site: String,
    /// Its kind, as configured.
    pub kind: String,
    /// Only single probes go out: it is down, or refuses us.
    pub down: bool,
    /// Copies that it should have.
    pub replicas: u64,
    /// Those that are not what they should be.
    pub behind: u64,
    /// Since when the first of them is.
    #[serde(with = "rfc3339::option")]
    pub behind_since: Option<Timestamp>,
    /// When it confirmed one last.
    #[serde(with = "rfc3339::option")]
    pub confirmed: Option<Timestamp>,
    /// Why most of those behind are; absent: none is, or none was tried yet.
    pub error: Option<Kind>,
    /// When our own client of its service ends, if that is known: nobody renews it but a person.
    #[serde(default, with = "rfc3339::option")]
    pub client_ends: Option<Timestamp>,
    /// That is soon, or was: it is time to make another one.
    #[serde(default)]
    pub client_ends_soon: bool,
    /// What is told of it besides: why nothing is replicated to it, or how its endpoint is.
    #[serde(default)]
    pub words: Option<String>,
    /// Its service says that its endpoint is not there.
    #[serde(default)]
    pub offline: bool,
}

impl From<&Site> for SiteStanding {
    fn from(site: &Site) -> Self {
        let (behind, behind_since) = site.behind();
        let told = site.late.iter().filter_map(|(kind, late)| Some(((*kind)?, late.count)));
        Self {
            site: site.name.clone(),
            kind: site.kind.clone(),
            down: site.down,
            replicas: site.replicas,
            behind,
            behind_since,
            confirmed: site.confirmed,
            client_ends: site.client_ends,
            client_ends_soon: site.client_ends_soon,
            words: site.words.clone(),
            offline: site.offline,
            error: told.max_by_key(|(_, count)| *count).map(|(kind, _)| kind),
        }
    }
}

/// One credential.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Credential {
    /// Whose.
    pub user: String,
    /// Service.
    pub service: String,
    /// Handle.
    pub handle: Option<String>,
    /// Name of its provider.
    pub provider: String,
    /// Where it stands.
    pub state: State,
    /// When the access token ends; absent: there is none, or it does not tell.
    #[serde(with = "rfc3339::option")]
    pub expires: Option<Timestamp>,
    /// When it is renewed or tried next; absent: not before its `.top` changes, or right now.
    #[serde(with = "rfc3339::option")]
    pub renews: Option<Timestamp>,
    /// When the refresh token ends, if it tells.
    #[serde(with = "rfc3339::option")]
    pub refresh_token_expires: Option<Timestamp>,
    /// Whether each renewal moves that end on, so that it comes only if renewals fail; absent: that has not shown yet.
    #[serde(default)]
    pub rolling: Option<bool>,
    /// When its `.top` was stored or rotated, by the file's own time; absent: it cannot be used. By it a reader knows
    /// whether what credd has is what this daemon speaks of.
    #[serde(default, with = "rfc3339::option")]
    pub stored: Option<Timestamp>,
    /// When this daemon last renewed it.
    #[serde(with = "rfc3339::option")]
    pub renewed: Option<Timestamp>,
    /// How often this daemon has renewed it.
    pub generation: u64,
    /// What is wrong, until it is mended.
    pub error: Option<Trouble>,
    /// The last token was published with less than was asked for.
    pub flagged: Option<Kind>,
    /// Its copies at remote sites.
    #[serde(default)]
    pub replicas: Vec<Replica>,
}

impl Credential {
    /// `S` or `S_H`, as on disk.
    #[must_use]
    pub fn base(&self) -> String {
        match &self.handle {
            None => self.service.clone(),
            Some(handle) => format!("{}_{handle}", self.service),
        }
    }

    /// `user/S_H`
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.user, self.base())
    }

    /// When the refresh token ends, unless renewals go well and each moves that end on: nobody needs to do anything then.
    #[must_use]
    pub fn ends(&self) -> Option<Timestamp> {
        self.refresh_token_expires.filter(|_| self.rolling != Some(true) || self.error.is_some())
    }

    /// See [`ends_soon`].
    #[must_use]
    pub fn ends_soon(&self, now: Timestamp) -> Option<Timestamp> {
        ends_soon(self.state, self.refresh_token_expires, self.rolling, now)
    }

    /// Whether jobs have a token that lives at `now`.
    #[must_use]
    pub fn lives(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires > now)
    }
}

/// When the refresh token of a credential that is renewed ends, if that is soon (or was) and renewals do not move it on:
/// a person must approve again, whatever the issuer says until then.
#[must_use]
pub fn ends_soon(state: State, ends: Option<Timestamp>, rolling: Option<bool>, now: Timestamp) -> Option<Timestamp> {
    ends.filter(|ends| state.lives() && rolling == Some(false) && *ends <= now.plus(SOON))
}

/// What went wrong last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    /// Stable kind, for `evercred explain`.
    pub kind: Kind,
    /// In the issuer's or the system's words; may be empty.
    pub detail: String,
    /// When it began.
    #[serde(with = "rfc3339::option")]
    pub since: Option<Timestamp>,
    /// How often in a row.
    pub times: u32,
}

/// A copy at a remote site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replica {
    /// Name of the site.
    pub site: String,
    /// The last generation that the site confirmed.
    pub generation: Option<u64>,
    /// When it did.
    #[serde(with = "rfc3339::option")]
    pub confirmed: Option<Timestamp>,
    /// Whether a newer generation waits to be sent.
    pub behind: bool,
    /// Since when.
    #[serde(default, with = "rfc3339::option")]
    pub behind_since: Option<Timestamp>,
    /// Stable kind of what is wrong, for `evercred explain`.
    #[serde(default)]
    pub kind: Option<Kind>,
    /// What is wrong; absent: nothing.
    pub error: Option<String>,
}

/// Where a credential stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The token is good, and not due.
    Fresh,
    /// It is being renewed, or waits for its turn.
    Renewing,
    /// The last try failed; it is tried again.
    Retrying,
    /// The issuer refused for good; nothing is asked until the `.top` changes.
    Parked,
    /// The `.top` cannot be used; nothing is asked until it changes.
    Unusable,
}

impl State {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Fresh, Self::Renewing, Self::Retrying, Self::Parked, Self::Unusable];

    /// Whether renewals go on without a person.
    #[must_use]
    pub fn lives(self) -> bool {
        !matches!(self, Self::Parked | Self::Unusable)
    }

    /// How much attention it needs: the most first.
    #[must_use]
    pub fn urgency(self) -> u8 {
        match self {
            Self::Parked | Self::Unusable => 0,
            Self::Retrying => 1,
            Self::Fresh | Self::Renewing => 2,
        }
    }

    /// The word for people, metrics and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Renewing => "renewing",
            Self::Retrying => "retrying",
            Self::Parked => "parked",
            Self::Unusable => "unusable",
        }
    }
}
