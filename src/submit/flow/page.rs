//! The page where the user approves, as far as it may be shown: https (or loopback) on the issuer's own hosts, and
//! nothing in it that could play with a terminal.

use std::time::Duration;

use url::Url;

use super::{Wish, mytoken};
use crate::{
    config::settings::{OAuth2, ProviderKind},
    submit::{error::SubmitError, words::spoken},
};

/// As the issuer names it.
pub(super) struct Page {
    pub(super) url: String,
    pub(super) complete: Option<String>,
    pub(super) code: Option<String>,
    pub(super) expires_in: Duration,
}

/// What the user is shown. For a mytoken the URL is a secret as long as it is open.
#[derive(Clone)]
pub struct Invitation {
    /// Where to go.
    pub url: String,
    /// The same with the code in it.
    pub complete: Option<String>,
    /// What to type there.
    pub code: Option<String>,
    /// How long it is open.
    pub expires_in: Duration,
    /// Who asks for what: names and values.
    pub facts: Vec<(&'static str, String)>,
}

/// Check and dress a page.
pub(super) fn check(wish: &Wish<'_>, page: &Page) -> Result<Invitation, SubmitError> {
    let hosts = hosts(wish);
    let url = safe(&page.url, &hosts)?;
    let complete = page.complete.as_deref().map(|complete| safe(complete, &hosts)).transpose()?;
    let code = page.code.as_deref().map(grouped).transpose()?;
    Ok(Invitation { url, complete, code, expires_in: page.expires_in, facts: facts(wish) })
}

/// Host names of everything that the admin configured, and `approval_hosts`.
fn hosts(wish: &Wish<'_>) -> Vec<String> {
    let provider = wish.provider;
    let server = match &provider.kind {
        ProviderKind::Mytoken { server } => Some(server),
        ProviderKind::OAuth2(OAuth2 { token_endpoint, .. }) => provider.issuer.as_ref().or(token_endpoint.as_ref()),
    };
    let configured = server.into_iter().chain(&provider.approval.device_endpoint);
    configured
        .filter_map(|url| Url::parse(url).ok()?.host_str().map(str::to_ascii_lowercase))
        .chain(provider.approval.hosts.iter().cloned())
        .collect()
}

/// The URL as it may be printed: parsed, so without control characters, blanks or look-alike letters.
fn safe(text: &str, hosts: &[String]) -> Result<String, SubmitError> {
    let refuse = |why: String| SubmitError::UnsafePage(why);
    let url = Url::parse(text).map_err(|_| refuse("it is no URL".to_owned()))?;
    let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
    if !crate::issuer::client::is_safe(url.as_str()) {
        return Err(refuse(format!("it is not https ({}://{host})", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("its URL holds a user name".to_owned()));
    }
    if !hosts.contains(&host) {
        return Err(refuse(format!(
            "{host} is none of the issuer's hosts ({}); an admin may name it in approval_hosts",
            hosts.join(", ")
        )));
    }
    Ok(url.into())
}

/// `ABCDEFGH` → `ABCD-EFGH`; what has its groups already stays (RFC 8628 §6.1: servers ignore such marks).
fn grouped(code: &str) -> Result<String, SubmitError> {
    if code.is_empty() || code.len() > 64 || !code.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
        return Err(SubmitError::UnsafePage("its code holds characters that cannot be shown".to_owned()));
    }
    if code.len() < 6 || !code.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Ok(code.to_owned());
    }
    let letters: Vec<char> = code.chars().collect();
    Ok(letters.chunks(4).map(|group| group.iter().collect::<String>()).collect::<Vec<_>>().join("-"))
}

/// Host and port: who it is, in few letters.
fn place(server: &str) -> String {
    let url = Url::parse(server).ok();
    let host = url.as_ref().and_then(Url::host_str).unwrap_or(server);
    url.as_ref().and_then(Url::port).map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Who asks for what: nothing but what the request says.
fn facts(wish: &Wish<'_>) -> Vec<(&'static str, String)> {
    let (server, scopes, audience, lifetime) = match &wish.provider.kind {
        ProviderKind::Mytoken { server } => match mytoken::restriction(wish) {
            Some(mytoken::Restriction { scopes, lifetime, further }) => {
                (server.clone(), scopes, further.audience.clone(), Some(lifetime))
            }
            None => (server.clone(), Vec::new(), Vec::new(), None),
        },
        ProviderKind::OAuth2(oauth2) => {
            let server = wish.provider.issuer.clone().or_else(|| oauth2.token_endpoint.clone()).unwrap_or_default();
            (server, wish.scopes(), wish.audience(), None)
        }
    };
    let mut facts = vec![
        ("service", wish.request.name()),
        ("account", format!("{} on {}", wish.account, wish.host)),
        ("provider", format!("{} at {}", wish.provider.name, place(&server))),
    ];
    for (name, words) in [("scopes", scopes), ("audience", audience)] {
        if !words.is_empty() {
            facts.push((name, words.join(" ")));
        }
    }
    facts.extend(lifetime.map(|lifetime| ("lifetime", spoken(lifetime))));
    let further = &wish.provider.approval.restrictions;
    for (name, words) in
        [("hosts", &further.hosts), ("countries", &further.geoip_allow), ("not from", &further.geoip_disallow)]
    {
        if !words.is_empty() {
            facts.push((name, words.join(" ")));
        }
    }
    facts.extend(further.usages_at.map(|usages| ("uses", format!("{usages} access tokens"))));
    let profile = wish.provider.approval.profile.join(" ");
    if !profile.is_empty() {
        let decides = match lifetime {
            Some(_) => "which decides the rest at the server",
            None => "which decides at the server what is approved and for how long",
        };
        facts.push(("profile", format!("{profile}, {decides}")));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_on_the_issuers_own_hosts_are_shown() {
        let hosts = vec!["login.example.org".to_owned(), "127.0.0.1".to_owned()];
        let safe = |url: &str| super::safe(url, &hosts);
        assert_eq!(safe("https://LOGIN.example.org/c/x").unwrap(), "https://login.example.org/c/x");
        assert!(safe("http://127.0.0.1:8780/c/x").is_ok());
        for bad in [
            "http://login.example.org/c/x",
            "https://login.example.org.evil.example/",
            "https://evil.example/login.example.org",
            "https://login.example.org@evil.example/",
            "https://user@login.example.org/",
            "javascript:alert(1)",
            "file:///etc/passwd",
            "https://xn--login-example-org/",
            "",
        ] {
            assert!(matches!(safe(bad), Err(SubmitError::UnsafePage(_))), "{bad}");
        }
    }

    #[test]
    fn a_url_cannot_play_with_the_terminal() {
        let hosts = vec!["login.example.org".to_owned()];
        let url = safe("https://login.example.org/c/\u{1b}]52;c;aGk\u{7}\n\u{202e}x", &hosts).unwrap();
        assert!(url.bytes().all(|b| (0x21..=0x7e).contains(&b)), "{url:?}");
    }

    #[test]
    fn codes_are_grouped_unless_they_have_groups() {
        let grouped = |code: &str| super::grouped(code).unwrap();
        assert_eq!(grouped("ABCDEFGH"), "ABCD-EFGH");
        assert_eq!(grouped("WDJB-MJHT"), "WDJB-MJHT");
        assert_eq!(grouped("123456789"), "1234-5678-9");
        assert_eq!(grouped("AB12"), "AB12");
        for bad in ["", "a b", "a\u{1b}[2J", "é", &"x".repeat(65)] {
            assert!(super::grouped(bad).is_err(), "{bad:?}");
        }
    }
}
