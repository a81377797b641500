//! Secrets that cannot leak by accident: no `Display`, no `Serialize`, a `Debug` that says nothing, wiped on drop.
//! `expose` is called only where bytes leave for a file or the wire; [`on_wire`] is that place for frames.

use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;

/// Why a string is not a token. The string itself is never part of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SecretError {
    /// Nothing there.
    #[error("the token is empty")]
    Empty,
    /// RFC 6749 appendix A allows 0x20..=0x7E only; blanks at the ends would be lost in files.
    #[error("the token holds characters that no token has (control, non-ASCII, or blanks at an end)")]
    Characters,
}

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(SecretString);

        impl $name {
            /// Parse: printable ASCII without blanks at the ends (RFC 6749 appendix A).
            ///
            /// # Errors
            /// [`SecretError`] for an empty string or other characters.
            pub fn parse(text: &str) -> Result<Self, SecretError> {
                if text.is_empty() {
                    return Err(SecretError::Empty);
                }
                if text.trim() != text || !text.bytes().all(|b| (0x20..=0x7e).contains(&b)) {
                    return Err(SecretError::Characters);
                }
                Ok(Self(SecretString::from(text.to_owned())))
            }

            /// The bytes themselves; only for a file or the wire.
            #[must_use]
            pub fn expose(&self) -> &str {
                self.0.expose_secret()
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    };
}

secret!(
    /// The long-lived secret of a `.top` (an OAuth2 refresh token, a mytoken).
    RefreshToken
);
secret!(
    /// The short-lived secret of a `.use`.
    AccessToken
);
secret!(
    /// A client secret from a file of the admin.
    ClientSecret
);

secret!(
    /// The key of a request file: whoever has it may approve for its user.
    ApprovalKey
);
/// The text of a key: one line, or PEM. It travels in frames, and nowhere else.
#[derive(Clone)]
pub struct KeyText(SecretString);

impl KeyText {
    /// Parse: printable ASCII and line ends.
    ///
    /// # Errors
    /// [`SecretError`] for an empty string or other characters.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        if text.trim().is_empty() {
            return Err(SecretError::Empty);
        }
        if !text.bytes().all(|b| (0x20..=0x7e).contains(&b) || b == b'\n' || b == b'\r') {
            return Err(SecretError::Characters);
        }
        Ok(Self(SecretString::from(text.to_owned())))
    }

    /// The text itself; only for the operation that needs the key.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl std::fmt::Debug for KeyText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyText(…)")
    }
}

impl serde::Serialize for KeyText {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        on_wire::serialize(self, to)
    }
}

impl<'de> serde::Deserialize<'de> for KeyText {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        on_wire::deserialize(from)
    }
}

/// Serde for secrets inside frames between keeper and courier, and nowhere else.
pub mod on_wire {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    /// A secret that may travel in a frame.
    pub trait Secret: Sized {
        /// The bytes for the frame.
        fn bare(&self) -> &str;
        /// Back from the frame.
        fn parse_bare(text: &str) -> Result<Self, super::SecretError>;
    }

    macro_rules! travels {
        ($($name:ident)*) => {$(
            impl Secret for super::$name {
                fn bare(&self) -> &str { self.expose() }
                fn parse_bare(text: &str) -> Result<Self, super::SecretError> { Self::parse(text) }
            }
        )*};
    }
    travels!(RefreshToken AccessToken ClientSecret ApprovalKey KeyText);

    /// `#[serde(with = "on_wire")]`
    pub fn serialize<T: Secret, S: Serializer>(secret: &T, to: S) -> Result<S::Ok, S::Error> {
        secret.bare().serialize(to)
    }

    /// `#[serde(with = "on_wire")]`
    pub fn deserialize<'de, T: Secret, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        let text = zeroize::Zeroizing::new(String::deserialize(from)?);
        T::parse_bare(&text).map_err(D::Error::custom)
    }

    /// `#[serde(with = "on_wire::option")]`
    pub mod option {
        use super::{Deserialize, Deserializer, Error, Secret, Serialize, Serializer};

        /// As [`super::serialize`], for an optional secret.
        pub fn serialize<T: Secret, S: Serializer>(secret: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
            secret.as_ref().map(Secret::bare).serialize(to)
        }

        /// As [`super::deserialize`], for an optional secret.
        pub fn deserialize<'de, T: Secret, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
            match Option::<String>::deserialize(from)?.map(zeroize::Zeroizing::new) {
                None => Ok(None),
                Some(text) => T::parse_bare(&text).map(Some).map_err(D::Error::custom),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_the_secret() {
        let t = RefreshToken::parse("canary-1234").unwrap();
        assert_eq!(format!("{t:?}"), "RefreshToken(…)");
    }

    #[test]
    fn blanks_at_the_ends_and_control_characters_are_refused() {
        for bad in ["", " a", "a\n", "a\u{7}b", "é"] {
            assert!(AccessToken::parse(bad).is_err(), "{bad:?}");
        }
    }
}
