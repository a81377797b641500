//! How a user approves a credential: what of `[provider.NAME]` only the storer and `evercred login` need.

use std::{net::IpAddr, time::Duration};

use super::{
    fragment::Value,
    input::{self, Section, Wrong, wrong},
    settings::{OAuth2, Provider, ProviderKind},
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
    /// `restrictions` of the mytoken, beside its lifetime and scopes.
    pub restrictions: Restrictions,
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

/// What a mytoken is restricted to (mytoken contract §2.7); an empty list or `None`: not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restrictions {
    /// `audience`: for whom access tokens may be made.
    pub audience: Vec<String>,
    /// `hosts`: addresses, networks or names of those who may use it.
    pub hosts: Vec<String>,
    /// `usages_AT`: how many access tokens may be made.
    pub usages_at: Option<u32>,
    /// `geoip_allow`: countries from which it may be used.
    pub geoip_allow: Vec<String>,
    /// `geoip_disallow`: countries from which it may not be used.
    pub geoip_disallow: Vec<String>,
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

const MYTOKEN_KEYS: [&str; 4] = ["profile", "lifetime", "capabilities", "restrictions"];
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
            if let Some(restrictions) = section.table("restrictions") {
                approval.restrictions = read_restrictions(restrictions);
            }
            let restricted = approval.restrictions != Restrictions::default();
            let endless = approval.lifetime.is_none() && !section.took_wrongly("lifetime");
            if restricted && !approval.profile.is_empty() && endless {
                let what = "are asked for beside `profile`, whose end would not hold for them";
                section.complain("restrictions", what, "set `lifetime`, too, or leave the restrictions to the profile");
            }
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

fn read_restrictions(mut section: Section<'_>) -> Restrictions {
    section.refuse("exp", "is what `lifetime` says", "set `lifetime` of the provider");
    section.refuse("scope", "is what `scopes` says", "set `scopes` of the provider");
    let restrictions = Restrictions {
        audience: section.take("audience", input::words).unwrap_or_default(),
        hosts: section.take("hosts", places).unwrap_or_default(),
        usages_at: section.take("usages_AT", input::number(1..=u32::MAX)),
        geoip_allow: section.take("geoip_allow", countries).unwrap_or_default(),
        geoip_disallow: section.take("geoip_disallow", countries).unwrap_or_default(),
    };
    section.finish();
    restrictions
}

/// Addresses, networks and names, as a mytoken server takes them.
fn places(value: &Value) -> Result<Vec<String>, Wrong> {
    let words = input::words(value)?;
    if words.iter().any(|word| word == "this") {
        let what = "\"this\" is the host where the user approves, not the one that makes access tokens";
        return Err(wrong(what, "name the access point's address"));
    }
    let is_network = |word: &str| {
        let (address, length) = word.split_once('/').unwrap_or((word, "0"));
        let bits = address.parse::<IpAddr>().map(|address| if address.is_ipv4() { 32 } else { 128 });
        bits.is_ok_and(|bits| length.parse::<u8>().is_ok_and(|length| length <= bits))
    };
    match words.iter().find(|word| !is_network(word) && url::Host::parse(word).is_err()) {
        None => Ok(words),
        Some(bad) => Err(wrong(
            format!("{bad:?} is neither an address, nor a network, nor a host"),
            r#"write it like "192.0.2.7", "192.0.2.0/24" or "ap1.example.org""#,
        )),
    }
}

fn countries(value: &Value) -> Result<Vec<String>, Wrong> {
    let words = input::words(value)?;
    match words.iter().find(|word| word.len() != 2 || !word.bytes().all(|byte| byte.is_ascii_alphabetic())) {
        None => Ok(words),
        Some(bad) => Err(wrong(format!("{bad:?} is no country's code"), r#"write two letters, like "de""#)),
    }
}

/// Why users may not be able to approve at a provider from a terminal, by `condor_submit` or `evercred login`, and what to
/// do. `by_page`: there is a page for approvals.
#[must_use]
pub fn obstacle(provider: &Provider, by_page: bool) -> Option<Wrong> {
    match &provider.kind {
        // It needs nobody's approval.
        _ if provider.accounts().is_some() => None,
        ProviderKind::Mytoken { server } if provider.issuer.is_none() => Some(wrong(
            format!("users can approve only while {server} has a single provider, because `issuer` is not set"),
            "set `issuer` to the OpenID provider behind the server (KIT's OAUTH_ISSUER_URL)",
        )),
        ProviderKind::OAuth2(OAuth2 { confidential: true, login_client: None, .. }) if !by_page => Some(wrong(
            "users cannot approve with condor_submit or evercred login: its client has a secret, as which they cannot act",
            "register a public client: as client_id without client_secret_file, or as login_client_id of kind = \
             \"token-exchange\"; or set web_approval_listen",
        )),
        _ => None,
    }
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
