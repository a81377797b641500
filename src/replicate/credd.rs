//! `kind = "credd"`: another schedd's credd, by HTCondor's own `condor_store_cred add-oauth -P` (contract replication,
//! §10): the credd stores what it gets as `<service>[_<handle>].use`, by a temporary file and rename. The token is on
//! standard input. The credd wants us authenticated and the connection encrypted, and `CRED_SUPER_USERS` there must
//! name us, since we store for others; the user that it says it stored for must be the one that we meant.

use super::{
    parcel::Parcel,
    program::{self, Ended},
};
use crate::{
    config::site_settings::{Credd, Site},
    core::delivery::{Delivered, Undelivered},
    error::Kind,
};

/// Store it there.
///
/// # Errors
/// [`Undelivered`]
pub async fn deliver(site: &Site, credd: &Credd, parcel: &Parcel) -> Result<Delivered, Undelivered> {
    let bytes = parcel.bytes(site)?;
    let user = match &credd.user_domain {
        Some(domain) => format!("{}@{domain}", parcel.id.user),
        None => parcel.id.user.to_string(),
    };
    let mut arguments = vec!["-n", &credd.host, "-u", &user, "add-oauth", "-s", parcel.id.service.as_str()];
    if let Some(handle) = &parcel.id.handle {
        arguments.extend(["-H", handle.as_str()]);
    }
    arguments.extend(["-P", "-i", "-"]);
    let config = credd.condor_config.as_ref().map(|path| path.display().to_string());
    let environment: Vec<(&str, &str)> = config.as_deref().map(|path| ("CONDOR_CONFIG", path)).into_iter().collect();
    let mut command = program::command(&credd.program, &arguments, &environment);
    let ended = program::run(&mut command, &bytes, site.timeout).await?;
    judge(&ended, &user)
}

fn judge(ended: &Ended, user: &str) -> Result<Delivered, Undelivered> {
    let said = format!("{}\n{}", ended.output, ended.errors);
    // The credd says for whom it stored, and may have mapped us to somebody else.
    let stored_for = said.lines().find_map(|line| line.trim().strip_prefix("fully_qualified_user")?.split('"').nth(1));
    let short = |name: &str| name.split('@').next().unwrap_or_default().to_owned();
    if let Some(other) = stored_for.filter(|other| short(other) != short(user)) {
        return Err(Undelivered::new(Kind::SiteDenied, format!("the credd stored it for {other}, not for {user}")));
    }
    if ended.code == Some(0) {
        return Ok(Delivered::Written);
    }
    let words = ended.words();
    let lower = said.to_lowercase();
    let kind = if ["authenticat", "secure", "encrypt"].iter().any(|word| lower.contains(word)) {
        Kind::SiteAuth
    } else if ["not permitted", "permission", "not allowed", "denied"].iter().any(|word| lower.contains(word)) {
        Kind::SiteDenied
    } else if ["connect", "locate", "address", "communication"].iter().any(|word| lower.contains(word)) {
        Kind::SiteUnreachable
    } else {
        Kind::SiteError
    };
    Err(Undelivered::new(kind, format!("condor_store_cred: {words}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credd_that_stored_for_somebody_else_has_not_delivered() {
        let end = |code, output: &str| {
            let ended = Ended { code: Some(code), output: output.into(), errors: String::new() };
            judge(&ended, "alice@pool").map_err(|e| e.kind)
        };
        assert_eq!(end(0, "Operation succeeded\n"), Ok(Delivered::Written));
        assert_eq!(end(0, "fully_qualified_user = \"alice@other\"\n"), Ok(Delivered::Written));
        assert_eq!(end(0, "fully_qualified_user = \"root@pool\"\n"), Err(Kind::SiteDenied));
        assert_eq!(end(1, "Operation failed because it was not permitted\n"), Err(Kind::SiteDenied));
        assert_eq!(end(1, "failed to connect to credd\n"), Err(Kind::SiteUnreachable));
    }
}
