//! How a user approves a credential: what of `[provider.NAME]` only the storer and `evercred login` need.

use std::time::Duration;

use super::{
    fragment::Value,
    input::{self, Section, Wrong, wrong},
};

/// How a user approves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Approval {
    /// `profile`: server profiles of a mytoken server, `group/name`.
    pub profile: Vec<String>,
    /// `lifetime` to ask for; absent: what the profile says, else 7 days.
    pub lifetime: Option<Duration>,
    /// `capabilities` of the mytoken; default `AT` and `tokeninfo`.
    pub capabilities: Vec<String>,
    /// `device_authorization_endpoint`; absent: discovery at `issuer`.
    pub device_endpoint: Option<String>,
    /// `login_pkce`: a code challenge with the device flow (RFC 7636).
    pub pkce: bool,
    /// `login_scopes`: asked for at an approval beside the scopes of the tokens; default `offline_access`, without which
    /// many issuers give no refresh token.
    pub login_scopes: Vec<String>,
    /// `approval_hosts`: where a page for approvals may be, beside the issuer's own hosts.
    pub hosts: Vec<String>,
    /// `renew_default`: what an empty answer means when less than a day is left; absent: ask again.
    pub renew_default: Option<bool>,
}

/// Which flow a provider's users go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A mytoken server's.
    Mytoken,
    /// The device flow.
    Device,
    /// The device flow of another client, whose access token is exchanged.
    Exchange,
    /// HTCondor's own page in a browser.
    Web,
    /// None: the client asks for itself.
    Nobody,
}

const MYTOKEN_KEYS: [&str; 3] = ["profile", "lifetime", "capabilities"];
const DEVICE_KEYS: [&str; 3] = ["device_authorization_endpoint", "login_pkce", "login_scopes"];

/// Read the keys of a provider.
pub fn read(section: &mut Section<'_>, way: Way) -> Approval {
    if way != Way::Mytoken {
        for key in MYTOKEN_KEYS {
            section.refuse(key, r#"belongs to approvals of kind = "mytoken""#, "remove it");
        }
    }
    if !matches!(way, Way::Device | Way::Exchange) {
        for key in DEVICE_KEYS {
            section.refuse(key, r#"belongs to approvals of kind = "oauth2""#, "remove it");
        }
    }
    let day = Duration::from_secs(86_400);
    let mut approval = Approval::default();
    match way {
        Way::Mytoken => {
            approval.profile = section.take("profile", input::words).unwrap_or_default();
            approval.lifetime = section.take("lifetime", input::duration(Duration::from_secs(600), 3660 * day));
            approval.capabilities = section.take("capabilities", capabilities).unwrap_or_default();
        }
        Way::Device | Way::Exchange => {
            approval.device_endpoint = section.take("device_authorization_endpoint", input::url);
            approval.login_scopes = section.take("login_scopes", input::words).unwrap_or_else(|| match way {
                // The refresh token comes from the exchange, not from the approval.
                Way::Exchange => Vec::new(),
                _ => vec!["offline_access".to_owned()],
            });
            approval.pkce = section.take("login_pkce", input::boolean).unwrap_or(false);
        }
        Way::Web | Way::Nobody => {}
    }
    if way == Way::Nobody {
        return approval;
    }
    approval.hosts = section.take("approval_hosts", hosts).unwrap_or_default();
    approval.renew_default = section.take("renew_default", input::choice(&[("yes", true), ("no", false)]));
    approval
}

/// Without `AT` no access token could ever be made.
fn capabilities(value: &Value) -> Result<Vec<String>, Wrong> {
    let words = input::words(value)?;
    if words.iter().any(|word| word == "AT") {
        return Ok(words);
    }
    Err(wrong("has no \"AT\", so no access token could be made", r#"write it like ["AT", "tokeninfo"]"#))
}

fn hosts(value: &Value) -> Result<Vec<String>, Wrong> {
    let words = input::words(value)?;
    let is_host = |word: &String| url::Host::parse(word).is_ok();
    match words.iter().find(|word| !is_host(word)) {
        None => Ok(words.iter().map(|word| word.to_ascii_lowercase()).collect()),
        Some(bad) => Err(wrong(format!("{bad:?} is not a host"), r#"write the name alone, like "login.example.org""#)),
    }
}
