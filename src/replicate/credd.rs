//! `kind = "credd"`: another schedd's credd, by HTCondor's own `condor_store_cred add-oauth -P` (contract replication,
//! §10): the credd stores what it gets as `<service>[_<handle>].use`, by a temporary file and rename. The token is on
//! standard input.
//!
//! **Which credd.** Not by `-n`: that names a schedd, which takes no OAuth credentials (seen with 25.14). `CREDD_HOST` in
//! the program's environment does, looked up in the pool of `condor_config`, or as `HOST:PORT`.
//!
//! **For whom.** The credd wants us authenticated and the connection encrypted, and `CRED_SUPER_USERS` there must hold
//! our name (without a domain), since we store for others. It refuses a user that is neither us nor allowed to us; the
//! `fully_qualified_user` of its reply is who we are there, and `Account` the user that it was asked to store for.
//!
//! **Order.** The credd keeps no sequence: what is stored last is there. We send one at a time, the newest.

use super::{
    parcel::Parcel,
    program::{self, Ended},
};
use crate::{
    config::site_settings::{Credd, Site},
    core::{
        delivery::{Delivered, Undelivered},
        use_file,
    },
    error::Kind,
};

/// Store it there.
///
/// # Errors
/// [`Undelivered`]
pub async fn deliver(site: &Site, credd: &Credd, parcel: &Parcel) -> Result<Delivered, Undelivered> {
    let bytes = parcel.bytes(site)?;
    let user = format!("{}@{}", parcel.id.user, credd.user_domain);
    let mut arguments = vec!["-u", &user, "add-oauth", "-s", parcel.id.service.as_str()];
    if let Some(handle) = &parcel.id.handle {
        arguments.extend(["-H", handle.as_str()]);
    }
    arguments.extend(["-P", "-i", "-"]);
    let config = credd.condor_config.as_ref().map(|path| path.display().to_string());
    let mut environment = vec![("_CONDOR_CREDD_HOST", credd.host.as_str())];
    environment.extend(config.as_deref().map(|path| ("CONDOR_CONFIG", path)));
    let command = program::command(&credd.program, &arguments, &environment);
    let ended = program::run(command, &credd.program.display().to_string(), &bytes, site.timeout).await?;
    let token = use_file::token(&bytes);
    judge(&ended, &user, token.as_ref().map_or(&bytes, |token| token))
}

fn judge(ended: &Ended, user: &str, secret: &[u8]) -> Result<Delivered, Undelivered> {
    let said = format!("{}\n{}", ended.output, ended.errors);
    let stored_for = said.lines().find_map(|line| line.trim().strip_prefix("Account:")).map(str::trim);
    let short = |name: &str| name.split('@').next().unwrap_or_default().to_owned();
    if let Some(other) = stored_for.filter(|other| short(other) != short(user)) {
        return Err(Undelivered::new(Kind::SiteDenied, format!("it was stored for {other}, not for {user}")));
    }
    if ended.code == Some(0) {
        return Ok(Delivered::Written);
    }
    let words = ended.words_without(secret);
    let lower = said.to_lowercase();
    let refused = ["not permitted", "permission", "not allowed", "denied"].iter().any(|word| lower.contains(word));
    if refused {
        let advice = "name us in CRED_SUPER_USERS of that credd, without a domain, and run condor_reconfig there";
        let text = format!("the credd does not let us store for {user}; {advice}");
        return Err(Undelivered::new(Kind::SiteDenied, text));
    }
    // All that condor_store_cred says of a credd that it did not reach, or that does not let us in at all.
    if lower.contains("allow_write") {
        let advice = "not reached, or its ALLOW_WRITE or our credentials for it are wrong (condor_ping tells)";
        return Err(Undelivered::new(Kind::SiteUnreachable, format!("the credd was {advice}")));
    }
    let kind = if ["authenticat", "secure", "encrypt"].iter().any(|word| lower.contains(word)) {
        Kind::SiteAuth
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
            judge(&ended, "alice@pool", b"").map_err(|e| e.kind)
        };
        // As condor_store_cred 25.14 says it: the user of the reply is us, the account the one that was meant.
        let stored = "Account: alice@pool\nCredType: oauth\n\nOperation succeeded.\n\nfully_qualified_user = \"evercred@pool\"\n";
        assert_eq!(end(0, stored), Ok(Delivered::Written));
        assert_eq!(end(0, "Account: root@pool\nOperation succeeded.\n"), Err(Kind::SiteDenied));
        assert_eq!(end(1, "Operation failed because it is not allowed\nAccount: alice@pool\n"), Err(Kind::SiteDenied));
        let away = "Operation failed.\n    Make sure your ALLOW_WRITE setting includes this host.\n";
        assert_eq!(end(1, away), Err(Kind::SiteUnreachable));
        assert_eq!(end(1, "failed to connect to credd\n"), Err(Kind::SiteUnreachable));
    }
}
