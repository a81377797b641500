//! The users, listed a part at a time: of 100,000 the whole takes tens of milliseconds, in which nothing else is looked at.

use std::{collections::BTreeSet, sync::Arc};

use nix::dir::{OwningIter, Type};

use super::{Cache, Spool, SpoolError};
use crate::{core::id::UserName, error::Kind};

/// So many users who left may stay in the cache: to look for them takes as long as the listing.
const LEFT: usize = 64;

/// A listing under way.
#[derive(Debug)]
pub struct Listing {
    entries: OwningIter,
    users: BTreeSet<UserName>,
    /// How many of them are in the cache.
    known: usize,
}

impl Spool {
    /// Begin to list the users: directories, no symbolic links, names as credd allows them.
    ///
    /// # Errors
    /// The credential directory cannot be listed.
    pub fn listing(&self) -> Result<Listing, SpoolError> {
        let opened = self.top.list().map_err(|e| SpoolError::io(&self.path, "list it", e))?;
        Ok(Listing { entries: opened, users: BTreeSet::new(), known: 0 })
    }

    /// Go on with up to `most` names: all users, after the last one. Others go to `stray`: links in a user's place, and
    /// directories by a name that HTCondor does not have.
    ///
    /// # Errors
    /// The credential directory cannot be listed.
    pub fn list(
        &self,
        listing: &mut Listing,
        most: usize,
        mut stray: impl FnMut(&str, Kind),
    ) -> Result<Option<BTreeSet<UserName>>, SpoolError> {
        let Listing { entries, users, known } = listing;
        for _ in 0..most {
            let Some(entry) = entries.next() else {
                self.forget_those_who_left(users, *known);
                return Ok(Some(std::mem::take(users)));
            };
            let entry = entry.map_err(|e| SpoolError::io(&self.path, "list it", e))?;
            let name = entry.file_name().to_string_lossy();
            let Some(kind) = self.top.kind(&name, entry.file_type()) else { continue };
            // One text for each name.
            let cached = self.cache().users.get_key_value(&*name).map(|(user, _)| user.clone());
            *known += usize::from(cached.is_some());
            match (cached.map_or_else(|| UserName::parse(&name), Ok), kind) {
                (Ok(user), Type::Directory) => drop(users.insert(user)),
                (Ok(_), Type::Symlink) => stray(&name, Kind::DirectoryUnfit),
                // Names with a dot in front are legal for credd, and not for us.
                (Err(_), Type::Directory) if !name.starts_with('.') => stray(&name, Kind::NameRefused),
                _ => {}
            }
        }
        Ok(None)
    }

    /// All of them at once; what else there is, nobody hears of.
    ///
    /// # Errors
    /// The credential directory cannot be listed.
    pub fn users(&self) -> Result<BTreeSet<UserName>, SpoolError> {
        let mut listing = self.listing()?;
        Ok(self.list(&mut listing, usize::MAX, |_, _| {})?.unwrap_or_default())
    }

    fn forget_those_who_left(&self, users: &BTreeSet<UserName>, known: usize) {
        let Cache { users: cached, bases } = &mut *self.cache();
        if cached.len().saturating_sub(known) > LEFT {
            cached.retain(|user, _| users.contains(user));
        }
        bases.retain(|base| Arc::strong_count(base) > 1);
    }
}
