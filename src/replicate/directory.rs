//! `kind = "directory"`: a directory of this host, or of a file system that it shares with the site. With keys the
//! sealed payload itself is written, for a reader that opens it.

use std::path::{Path, PathBuf};

use super::{
    envelope::KeyRing,
    name,
    parcel::{self, Parcel},
    place::{PlaceError, Placed, Root},
    receive,
};
use crate::{
    config::site_settings::Site,
    core::delivery::{Delivered, Undelivered},
    error::Kind,
};

/// Place the parcel; blocks for as long as the file system does.
///
/// # Errors
/// [`Undelivered`]
pub fn deliver(site: &Site, template: &str, ring: Option<&KeyRing>, parcel: &Parcel) -> Result<Delivered, Undelivered> {
    // What the template adds lies below what the admin wrote, and no link in it is followed.
    let fixed = fixed(template);
    let directory = name::directory(template, &parcel.id)?;
    let below = Path::new(&directory).strip_prefix(&fixed).map(Path::to_path_buf).unwrap_or_default();
    let root = Root::open(&fixed).map_err(|e| failure(&e))?;
    let mut end = Ok(Delivered::AlreadyThere);
    for name in parcel.names(site)? {
        let path = format!("{directory}/{name}");
        let bytes = match ring {
            Some(ring) => parcel.sealed(site, ring, &path, receive::now())?,
            None => parcel.bytes(site)?,
        };
        let relative = below.join(&name).to_string_lossy().into_owned();
        let placed = root.place(&relative, parcel.generation, site.mode, &bytes).map_err(|e| failure(&e));
        end = parcel::worse(end, placed.map(|placed| delivered(placed, parcel.generation)));
    }
    end
}

fn delivered(placed: Placed, generation: u64) -> Delivered {
    match placed {
        Placed::Written => Delivered::Written,
        Placed::Superseded { have } if have == generation => Delivered::AlreadyThere,
        Placed::Superseded { have } => Delivered::Superseded { have },
    }
}

/// The leading directories without a placeholder.
pub(super) fn fixed(template: &str) -> PathBuf {
    let mut path = PathBuf::from("/");
    path.extend(template.split('/').filter(|part| !part.is_empty()).take_while(|part| !part.contains('{')));
    path
}

fn failure(error: &PlaceError) -> Undelivered {
    use nix::errno::Errno;
    let kind = match error {
        PlaceError::NoSpace { .. } => Kind::SiteFull,
        PlaceError::NotAllowed { .. }
        | PlaceError::Unfit { .. }
        | PlaceError::Failed { errno: Errno::EACCES | Errno::EPERM | Errno::EROFS, .. } => Kind::SiteDenied,
        PlaceError::Failed { errno: Errno::ENOENT | Errno::ESTALE | Errno::EHOSTDOWN | Errno::ENOTCONN, .. } => {
            Kind::SiteUnreachable
        }
        PlaceError::Busy { .. } | PlaceError::Failed { .. } => Kind::SiteError,
    };
    Undelivered::new(kind, error.to_string())
}
