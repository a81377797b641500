//! `<S[_H]>.meta`: what HTCondor's own web page wrote beside a `.top` (contract `HTCondor`, 2.4): the client that the
//! user approved, its secret, and where tokens are asked for.
//!
//! It only ever stops an exchange, and never directs one: a refresh token that was approved for another client or
//! token endpoint than the configured one is not sent anywhere. The secret in it is neither kept nor used.
//!
//! Nobody removes a `.meta` when the `.top` beside it is stored anew, so it counts only for a `.top` as that page and
//! the stock credmon leave it (mode 0400). credd and we write 0600.

use nix::errno::Errno;
use serde::Deserialize;

use super::{
    Spool,
    dir::{self, Refusal},
};
use crate::{
    core::id::{CredentialId, UserName},
    error::Kind,
};

/// The largest `.meta` that is read.
const MAX_META: usize = 64 * 1024;
/// How the stock credmon leaves its files.
const STOCK_MODE: u32 = 0o400;

/// What a `.meta` says, without the secret.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Meta {
    /// The client that was approved.
    pub client_id: String,
    /// Where its tokens are asked for.
    pub token_url: String,
    /// Whether there is a refresh token at all.
    #[serde(default = "yes")]
    pub use_refresh_token: bool,
}

fn yes() -> bool {
    true
}

/// A credential of the stock OAuth credmon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StockCredential {
    /// Which one.
    pub id: CredentialId,
    /// What the `.meta` says; none if it cannot be read as one.
    pub meta: Option<Meta>,
    /// It counts: the `.top` beside it is the one that it was written for.
    pub counts: bool,
}

impl Spool {
    /// What the `.meta` of a credential says, where it counts.
    ///
    /// # Errors
    /// [`Kind::MetaMismatch`]: it is there, counts, and says nothing that could be compared.
    pub fn meta(&self, id: &CredentialId) -> Result<Option<Meta>, Kind> {
        let home = match self.top.user(id.user.as_str(), &self.owners) {
            Ok(home) => home,
            Err(Errno::ENOENT) => return Ok(None),
            Err(_) => return Err(Kind::MetaMismatch),
        };
        match look(&home, id) {
            Some((meta, true)) => meta.map(Some).ok_or(Kind::MetaMismatch),
            _ => Ok(None),
        }
    }
}

/// The `.meta` of a credential, and whether it counts; none if there is none.
pub(super) fn look(home: &dir::Dir, id: &CredentialId) -> Option<(Option<Meta>, bool)> {
    let (stat, file) = match dir::open_regular(home, &format!("{}.meta", id.base())) {
        Ok(opened) => opened,
        Err(Refusal::Missing) => return None,
        Err(Refusal::Bad(_)) => return Some((None, stock_top(home, id))),
    };
    let bytes = dir::read_up_to(file, &stat, MAX_META).ok().map(|(bytes, _)| bytes);
    let meta = bytes.filter(|bytes| bytes.len() <= MAX_META).and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Some((meta, stock_top(home, id)))
}

fn stock_top(home: &dir::Dir, id: &CredentialId) -> bool {
    let top = dir::open_regular(home, &format!("{}.top", id.base()));
    top.is_ok_and(|(stat, _)| stat.st_mode & 0o777 == STOCK_MODE)
}

/// The stock credentials in a credential directory that nobody has opened as a spool: for `evercred import`.
///
/// # Errors
/// Why the directory cannot be looked at.
pub fn stock_credentials(
    path: &std::path::Path,
    owners: &super::Owners,
) -> Result<Vec<StockCredential>, super::SpoolError> {
    let top = dir::Dir::open(path)?;
    let mut found = Vec::new();
    for name in top.directories().map_err(|e| super::SpoolError::io(path, "list it", e))? {
        let Ok(user) = UserName::parse(&name) else { continue };
        let Ok(home) = top.user(&name, owners) else { continue };
        for file in home.names().map_err(|e| super::SpoolError::io(path.join(&name), "list it", e))? {
            let Some(base) = file.strip_suffix(".meta") else { continue };
            let Ok(id) = CredentialId::from_base(user.clone(), base) else { continue };
            if let Some((meta, counts)) = look(&home, &id) {
                found.push(StockCredential { id, meta, counts });
            }
        }
    }
    Ok(found)
}
