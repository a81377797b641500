//! `kind = "client-credentials"`: the client asks for itself (RFC 6749 §4.4), and the accounts that the admin names get
//! its tokens. Nobody approves anything, so the keys of approvals and of refresh tokens have no place here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Secrets,
    fragment::{Data, Value},
    input::{self, Section, Wrong, wrong},
    provider,
    settings::{AudienceStyle, ClientAuth, OAuth2},
};
use crate::core::id::{CredentialId, Handle, UserName};

/// For whom a client's own tokens are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounts {
    /// `users`: these accounts, and nobody else whatever they store.
    pub users: Vec<String>,
    /// `audiences`: a credential for each handle, with its own audience; empty: one, with the provider's.
    pub audiences: BTreeMap<String, Vec<String>>,
}

impl Accounts {
    /// Whether the configuration names this credential, apart from its service.
    #[must_use]
    pub fn name(&self, id: &CredentialId) -> bool {
        let handle = match &id.handle {
            None => self.audiences.is_empty(),
            Some(handle) => self.audiences.contains_key(handle.as_str()),
        };
        handle && self.users.iter().any(|user| user == id.user.as_str())
    }

    /// The base names of an account's credentials of a service.
    pub fn bases<'a>(&'a self, service: &'a str) -> impl Iterator<Item = String> {
        let only = self.audiences.is_empty().then(|| service.to_owned());
        only.into_iter().chain(self.audiences.keys().map(move |handle| format!("{service}_{handle}")))
    }
}

/// What nobody needs where nobody approves, and there is no refresh token.
const NEEDLESS: [&str; 5] = ["revoke_at_end", "revoke_after", "fernet_key_file", "approval_hosts", "renew_default"];

/// Refuse what every other kind takes.
pub(super) fn refuse_needless(section: &mut Section<'_>) {
    for key in NEEDLESS {
        section.needless(
            key,
            r#"has no meaning with kind = "client-credentials": there is neither an approval nor a refresh token"#,
        );
    }
}

/// The keys of the kind; `with_audience`: the provider has an `audience`.
pub(super) fn read(
    section: &mut Section<'_>,
    issuer_usable: bool,
    with_audience: bool,
    secrets: Secrets,
) -> Option<OAuth2> {
    section.refuse("server", r#"belongs to kind = "mytoken""#, "remove it, or set `issuer` or `token_endpoint`");
    for key in ["login_client_id", "revocation_endpoint", "authorization_endpoint", "return_path", "user_claim"] {
        section.refuse(key, r#"belongs to approvals of kind = "oauth2""#, "remove it");
    }
    let token_endpoint = provider::token_endpoint(section, issuer_usable);
    let client_id =
        section.require("client_id", "set it to the id under which evercred is registered there", input::text);
    let advice = "name a file of mode 0600 with the client's secret alone: a client without one cannot ask for itself";
    let client_secret = match secrets {
        Secrets::Read => section.require("client_secret_file", advice, provider::client_secret).map(Some),
        Secrets::LeaveAlone => section.require("client_secret_file", advice, input::path).map(|_| None),
    };
    let client_auth = provider::client_auth(section).unwrap_or(ClientAuth::Header);
    let audience_style = provider::audience_style(section).unwrap_or(AudienceStyle::Audience);
    let users = section.require("users", r#"name the accounts that get the tokens, like ["harvester"]"#, users);
    let audiences = section.take("audiences", audiences).unwrap_or_default();
    if !audiences.is_empty() && with_audience {
        section.complain("audience", "is set, and so is `audiences`, which each have their own", "remove one of them");
    }
    if token_endpoint.is_none() && !issuer_usable {
        return None;
    }
    Some(OAuth2 {
        token_endpoint,
        revocation_endpoint: None,
        client_id: client_id?,
        confidential: true,
        client_secret: client_secret?,
        client_auth,
        audience_style,
        from_htcondor: false,
        login_client: None,
        accounts: Some(Accounts { users: users?, audiences }),
        authorization_endpoint: None,
        return_path: None,
        user_claim: None,
    })
}

fn users(value: &Value) -> Result<Vec<String>, Wrong> {
    let users = input::texts(value)?;
    if users.is_empty() {
        return Err(wrong("is empty", r#"name the accounts that get the tokens, like ["harvester"]"#));
    }
    for user in &users {
        UserName::parse(user).map_err(|e| wrong(e.to_string(), "name an account of this host"))?;
    }
    Ok(users)
}

/// `audiences = { HANDLE = "ce1.example.org:9619" }`
fn audiences(value: &Value) -> Result<BTreeMap<String, Vec<String>>, Wrong> {
    const FORM: &str = r#"write it as { HANDLE = "ce1.example.org:9619" }"#;
    let Data::Table(table) = &value.data else {
        return Err(wrong(format!("is {}, not a table", value.data.what()), FORM));
    };
    if table.is_empty() {
        return Err(wrong("is empty", "name at least one handle with its audience, or remove the key"));
    }
    let mut audiences = BTreeMap::new();
    for (handle, value) in table {
        Handle::parse(handle).map_err(|e| wrong(e.to_string(), FORM))?;
        let words = input::words(value).map_err(|w| wrong(format!("{handle}: {}", w.what), w.advice))?;
        if words.is_empty() {
            return Err(wrong(format!("{handle} has no audience"), FORM));
        }
        audiences.insert(handle.clone(), words);
    }
    Ok(audiences)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_the_credentials_that_are_named_for_it_and_no_others() {
        let id = |user: &str, base: &str| CredentialId::from_base(UserName::parse(user).unwrap(), base).unwrap();
        let one = Accounts { users: vec!["harvester".into()], audiences: BTreeMap::new() };
        assert_eq!(one.bases("panda").collect::<Vec<_>>(), ["panda"]);
        assert!(one.name(&id("harvester", "panda")));
        assert!(!one.name(&id("alice", "panda")) && !one.name(&id("harvester", "panda_x")));
        let audiences = ["ce1", "ce2"].map(|handle| (handle.to_owned(), vec![format!("{handle}:9619")])).into();
        let many = Accounts { audiences, ..one };
        assert_eq!(many.bases("ce").collect::<Vec<_>>(), ["ce_ce1", "ce_ce2"]);
        assert!(many.name(&id("harvester", "ce_ce2")));
        for other in [id("harvester", "ce"), id("harvester", "ce_ce3"), id("alice", "ce_ce1")] {
            assert!(!many.name(&other), "{other}");
        }
    }
}
