//! Names: users, services, handles, and the credential that they make up.
//!
//! Characters as credd allows them (`[A-Za-z0-9] - + = _ .`), minus empty names and a leading dot. A copy of a name shares
//! its text: 100,000 credentials are known in several places.

use std::{borrow::Borrow, collections::BTreeMap, fmt, sync::Arc};

use thiserror::Error;

/// A name that credd would not have written, or that we do not act on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a name: letters, digits and - + = _ . only, not empty, no dot in front")]
pub struct NameError(pub String);

fn check(text: &str) -> Result<(), NameError> {
    let ok = !text.is_empty()
        && text.len() <= 200
        && !text.starts_with('.')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-+=_.".contains(&b));
    if ok { Ok(()) } else { Err(NameError(text.chars().take(80).collect())) }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parse and check the characters.
            ///
            /// # Errors
            /// [`NameError`] if credd would not have allowed the name.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                check(text)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A user, as the directory below the credential directory is called.
    UserName
);
name!(
    /// A service, HTCondor's word (`use_oauth_services`).
    Service
);
name!(
    /// A handle, HTCondor's word (`<service>_oauth_permissions_<handle>`).
    Handle
);

/// (user, service, handle): one `.top` in, one `.use` out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CredentialId {
    /// Whose it is.
    pub user: UserName,
    /// Which service.
    pub service: Service,
    /// Which handle, if any.
    pub handle: Option<Handle>,
}

impl CredentialId {
    /// From the user and the base name on disk, split at the first `_`.
    ///
    /// # Errors
    /// [`NameError`] if a part is not a name.
    pub fn from_base(user: UserName, base: &str) -> Result<Self, NameError> {
        let (service, handle) = match base.split_once('_') {
            None => (Service::parse(base)?, None),
            Some((service, handle)) => (Service::parse(service)?, Some(Handle::parse(handle)?)),
        };
        Ok(Self { user, service, handle })
    }

    /// Those of one user in a map of all, without a look at the others'.
    pub fn of_user<'m, V>(all: &'m BTreeMap<Self, V>, user: &UserName) -> impl Iterator<Item = (&'m Self, &'m V)> {
        // No service is called "", so that this is before each of the user's.
        let before = Self { user: user.clone(), service: Service("".into()), handle: None };
        all.range::<Self, _>(&before..).take_while(move |(id, _)| id.user == before.user)
    }

    /// The base name on disk, `S` or `S_H`.
    #[must_use]
    pub fn base(&self) -> String {
        match &self.handle {
            None => self.service.to_string(),
            Some(handle) => format!("{}_{handle}", self.service),
        }
    }

    /// A stable number for spreading work (FNV-1a); the same in every process and version.
    #[must_use]
    pub fn spread(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in self.user.0.bytes().chain([b'/']).chain(self.base().into_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hash
    }
}

impl fmt::Display for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.user, self.base())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_credentials_of_each_of_100000_users_are_found_without_a_look_at_those_of_the_others() {
        let user = |n: u32| UserName::parse(&format!("user{n}")).unwrap();
        let id = |n, base: &str| CredentialId::from_base(user(n), base).unwrap();
        let all: BTreeMap<CredentialId, u32> =
            (0..100_000).flat_map(|n| [(id(n, "+"), n), (id(n, "grid"), n), (id(n, "grid_x"), n)]).collect();
        let began = Instant::now();
        for n in 0..100_000 {
            assert_eq!(CredentialId::of_user(&all, &user(n)).filter(|(_, m)| **m == n).count(), 3);
        }
        // A pass over all of them for each would be 30,000,000,000 comparisons.
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        assert_eq!(CredentialId::of_user(&all, &UserName::parse("user").unwrap()).count(), 0);
    }
}
