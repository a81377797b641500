//! The `.top` of an account that the configuration names, which stands in for an approval (`core::stand_in`).
//!
//! As for an approval on our page, credd cannot be asked to store it: that needs `CRED_SUPER_USERS`, and credd's own
//! sweep would take it away with the user's directory. So directory and `.top` are made as there ([`super::approval`]),
//! for these accounts alone. A `.top` of anybody else is not touched; one of ours is replaced when its text differs.
//! Killed in between, we leave an empty directory or a temporary file, and the next look makes what is missing.

use nix::errno::Errno;

use super::{
    PublishError, Spool,
    dir::{self, Refusal},
    publish::look,
};
use crate::core::{id::CredentialId, stand_in};

impl Spool {
    /// Whether the user's directory is there, and this `.top` is not: credd sweeps just now, or it was deleted alone.
    #[must_use]
    pub fn lacks_top(&self, id: &CredentialId) -> bool {
        let home = self.top.user(id.user.as_str(), &self.owners);
        home.is_ok_and(|home| matches!(look(&home, &format!("{}.top", id.base())), Ok(None)))
    }

    /// See that there is a `.top`: this text, or one that is not ours; whether it was made now. `condor`: whose a user's
    /// directory is made.
    ///
    /// # Errors
    /// `NoSpace`, `Io`, also if the user's directory is unfit; what was there is as it was.
    pub fn stand_in(&self, id: &CredentialId, text: &[u8], condor: Option<u32>) -> Result<bool, PublishError> {
        let there = match self.top.user(id.user.as_str(), &self.owners) {
            Ok(home) => dir::read_top(&home, &format!("{}.top", id.base()), &self.owners),
            Err(Errno::ENOENT) => Err(Refusal::Missing),
            Err(errno) => return Err(self.error(id, "top", text.len(), errno)),
        };
        match there {
            Ok((_, bytes)) if *bytes == text || !stand_in::is_one(&bytes) => Ok(false),
            // The look at it tells what is wrong with it.
            Err(Refusal::Bad(_)) => Ok(false),
            Ok(_) | Err(Refusal::Missing) => self.store_approved(id, text, condor).map(|()| true),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::{
        core::id::UserName,
        spool::{Owners, Spool},
    };

    #[test]
    fn it_is_made_where_there_is_none_replaced_where_it_is_ours_and_never_in_the_place_of_anothers() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o2770)).unwrap();
        let spool = Spool::open(dir.path(), Owners::usual(None)).unwrap();
        let id = CredentialId::from_base(UserName::parse("harvester").unwrap(), "ce_ce1").unwrap();
        let path = dir.path().join("harvester/ce_ce1.top");
        let wish = |scope: &str| stand_in::text("ce", &[scope.to_owned()], &["ce1:9619".to_owned()]);
        assert!(!spool.lacks_top(&id), "nobody has a directory yet");
        assert!(spool.stand_in(&id, &wish("a"), None).unwrap(), "in a directory that is made for it");
        assert_eq!(fs::read(&path).unwrap(), wish("a"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let first = spool.top_identity(&id).unwrap();
        assert!(!spool.stand_in(&id, &wish("a"), None).unwrap());
        assert_eq!(spool.top_identity(&id).unwrap(), first, "left alone");
        assert!(spool.stand_in(&id, &wish("b"), None).unwrap(), "another wish");
        assert_ne!(spool.top_identity(&id).unwrap(), first);
        fs::remove_file(&path).unwrap();
        assert!(spool.lacks_top(&id), "as in the middle of a sweep");
        fs::remove_dir_all(dir.path().join("harvester")).unwrap();
        assert!(!spool.lacks_top(&id));
        assert!(spool.stand_in(&id, &wish("b"), None).unwrap(), "after a sweep");
        for theirs in ["{\"refresh_token\":\"worth something\"}", "harvester", "\u{e9}"] {
            fs::write(&path, theirs).unwrap();
            assert!(!spool.stand_in(&id, &wish("a"), None).unwrap());
            assert_eq!(fs::read_to_string(&path).unwrap(), theirs);
        }
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(!spool.stand_in(&id, &wish("a"), None).unwrap(), "a link is not followed, and not replaced");
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
    }
}
