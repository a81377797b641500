//! A request for a client's own tokens (`kind = "client-credentials"`): whether the configuration names it.

use super::{error::SubmitError, request::Request};
use crate::{
    config::settings::Provider,
    core::id::{CredentialId, UserName},
    issuer::judge,
};

/// Whether this account gets what is asked for, without anybody's approval.
///
/// # Errors
/// [`SubmitError::NotNamed`]: it does not, and why.
pub(super) fn check(account: &str, request: &Request, provider: &Provider) -> Result<(), SubmitError> {
    let Some(accounts) = provider.accounts() else { return Ok(()) };
    let (name, service) = (request.name(), &request.service);
    let refuse = |why: String| Err(SubmitError::NotNamed(why));
    if !accounts.users.iter().any(|user| user == account) {
        return refuse(format!(
            "The tokens of {service} are for accounts that the admins have named, and {account} is none of them; ask the \
             admins if you need them."
        ));
    }
    let id = |user| CredentialId { user, service: service.clone(), handle: request.handle.clone() };
    if !UserName::parse(account).is_ok_and(|user| accounts.name(&id(user))) {
        let known: Vec<String> = accounts.bases(service.as_str()).collect();
        return refuse(format!("There is no {name} here; there is: {}.", known.join(", ")));
    }
    let audience = provider.audience_of(request.handle.as_ref());
    let wanted = request.scope_list();
    if let Some(scope) = judge::missing_scopes(&wanted, &provider.scopes).next() {
        return refuse(format!(
            "{name}: its tokens are as the admins have set them, without the scope {scope}; take it out of the submit file."
        ));
    }
    let wanted = request.audience_list();
    if let Some(other) = judge::missing_audiences(&wanted, audience).next() {
        return refuse(format!(
            "{name}: its tokens are as the admins have set them, not for the audience {other}; take it out of the submit \
             file."
        ));
    }
    Ok(())
}
