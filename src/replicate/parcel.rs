//! One delivery: what is sent, under which names, as which generation.

use zeroize::Zeroizing;

use crate::{
    config::site_settings::Site,
    core::{
        delivery::{Delivered, Undelivered},
        id::CredentialId,
        secret::KeyText,
        time::Timestamp,
        use_file::{self, UseFormat},
    },
    error::Kind,
    replicate::envelope::{self, Envelope, KeyRing},
};

/// What is sent to a site.
#[derive(Debug)]
pub struct Parcel {
    /// Which credential.
    pub id: CredentialId,
    /// The sequence number for the far end.
    pub generation: u64,
    /// When the access token ends, if it is known.
    pub expiry: Option<Timestamp>,
    /// The bytes of the `.use`.
    pub content: KeyText,
}

impl Parcel {
    /// The file names at the site, one or several.
    ///
    /// # Errors
    /// [`Kind::SiteName`].
    pub fn names(&self, site: &Site) -> Result<Vec<String>, Undelivered> {
        site.file_name.names(&self.id, &site.targets)
    }

    /// The bytes of the file at the site, in its format.
    ///
    /// # Errors
    /// [`Kind::SiteName`]: there is no token in the `.use`.
    pub fn bytes(&self, site: &Site) -> Result<Zeroizing<Vec<u8>>, Undelivered> {
        let source = self.content.expose().as_bytes();
        let made = match site.use_format {
            UseFormat::Bare => use_file::token(source),
            UseFormat::Json => use_file::json(source, self.expiry),
        };
        made.ok_or_else(|| Undelivered::new(Kind::SiteName, "the .use holds no access token"))
    }

    /// A sealed payload for the file at `path`.
    ///
    /// # Errors
    /// The site has no key, or the token cannot go into an envelope.
    pub fn sealed(&self, site: &Site, ring: &KeyRing, path: &str, now: u64) -> Result<Zeroizing<Vec<u8>>, Undelivered> {
        let bytes = self.bytes(site)?;
        let token =
            std::str::from_utf8(&bytes).map_err(|_| Undelivered::new(Kind::SiteName, "the token is no text"))?;
        let max_age = site.sealing.as_ref().map_or(86_400, |sealing| sealing.max_age.as_secs());
        let envelope = Envelope {
            v: envelope::VERSION,
            path: path.to_owned(),
            seq: self.generation,
            mode: format!("{:04o}", site.mode),
            token: Zeroizing::new(token.to_owned()),
            iat: now,
            max_age,
            to: site.name.clone(),
        };
        ring.seal(&envelope, now).map_err(|e| Undelivered::new(Kind::SiteKey, e.to_string()))
    }
}

/// The worse of two ends, for a parcel of several files: delivered is only what arrived under every name.
///
/// # Errors
/// The first one's, else the other's.
pub fn worse(
    one: Result<Delivered, Undelivered>,
    other: Result<Delivered, Undelivered>,
) -> Result<Delivered, Undelivered> {
    match (one?, other?) {
        (Delivered::Superseded { have: a }, Delivered::Superseded { have: b }) => {
            Ok(Delivered::Superseded { have: a.max(b) })
        }
        (superseded @ Delivered::Superseded { .. }, _) | (_, superseded @ Delivered::Superseded { .. }) => {
            Ok(superseded)
        }
        (Delivered::Written, _) | (_, Delivered::Written) => Ok(Delivered::Written),
        _ => Ok(Delivered::AlreadyThere),
    }
}
