//! `kind = "exec"`: a program of the site's. Standard input is the content of the file (sealed, if the site has keys).
//! The environment tells `EVERCRED_SITE`, `EVERCRED_USER`, `EVERCRED_SERVICE`, `EVERCRED_HANDLE`, `EVERCRED_FILE` and
//! `EVERCRED_GENERATION`, none of them secret. It is run once for each file name.
//!
//! Exit codes, as in sysexits(3): 0 it is there; 69 the site is not reachable; 73 no room there; 75 try again; 77 the
//! site refuses us; anything else is a failure of the site. A generation may come twice, and the program must not put
//! an older one over a newer: that is what `EVERCRED_GENERATION` is for.

use super::{
    envelope::KeyRing,
    name,
    parcel::{self, Parcel},
    program, receive,
};
use crate::{
    config::site_settings::Site,
    core::{
        delivery::{Delivered, Undelivered},
        use_file,
    },
    error::Kind,
};

/// Run the program.
///
/// # Errors
/// [`Undelivered`]
pub async fn deliver(
    site: &Site,
    command: &[String],
    directory: Option<&str>,
    ring: Option<&KeyRing>,
    parcel: &Parcel,
) -> Result<Delivered, Undelivered> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(Undelivered::new(Kind::SiteError, "no command"));
    };
    let folder = directory.map(|template| name::directory(template, &parcel.id)).transpose()?;
    let mut end = Ok(Delivered::Written);
    for name in parcel.names(site)? {
        let content = match ring {
            Some(ring) => {
                let path = folder.as_ref().map_or_else(|| name.clone(), |folder| format!("{folder}/{name}"));
                parcel.sealed(site, ring, &path, receive::now())?
            }
            None => parcel.bytes(site)?,
        };
        let generation = parcel.generation.to_string();
        let environment = [
            ("EVERCRED_SITE", site.name.as_str()),
            ("EVERCRED_USER", parcel.id.user.as_str()),
            ("EVERCRED_SERVICE", parcel.id.service.as_str()),
            ("EVERCRED_HANDLE", parcel.id.handle.as_ref().map_or("", |handle| handle.as_str())),
            ("EVERCRED_FILE", name.as_str()),
            ("EVERCRED_GENERATION", generation.as_str()),
        ];
        let command = program::command(program.as_ref(), arguments, &environment);
        let ended = program::run(command, program, &content, site.timeout).await?;
        end = parcel::worse(end, judge(program, &ended, &content));
    }
    end
}

fn judge(program: &str, ended: &program::Ended, content: &[u8]) -> Result<Delivered, Undelivered> {
    let kind = match ended.code {
        Some(0) => return Ok(Delivered::Written),
        Some(69) => Kind::SiteUnreachable,
        Some(73) => Kind::SiteFull,
        Some(77) => Kind::SiteAuth,
        _ => Kind::SiteError,
    };
    let how = ended.code.map_or_else(|| "was ended by a signal".to_owned(), |code| format!("exits {code}"));
    // A program that prints what it was given must not get it into our log.
    let token = use_file::token(content);
    let words = ended.words_without(token.as_ref().map_or(content, |token| token.as_slice()));
    Err(Undelivered::new(kind, format!("{program} {how}: {words}")))
}
