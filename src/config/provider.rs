//! One `[provider.NAME]`.

use std::{path::PathBuf, time::Duration};

use super::{
    Secrets, accounts,
    approval::{self, Way},
    ca_file,
    fragment::Value,
    input::{self, Section, Wrong, wrong},
    secret_file,
    settings::{AudienceStyle, ClientAuth, OAuth2, Provider, ProviderKind, Shortfall},
    stock,
    stock::Stock,
};
use crate::core::{id::Service, secret::ClientSecret, use_file::UseFormat};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Client,
    OAuth2,
    Exchange,
    HTCondor,
    Mytoken,
}

/// As they are written, in the order in which they are named.
const KINDS: [(&str, Kind); 5] = [
    ("oauth2", Kind::OAuth2),
    ("token-exchange", Kind::Exchange),
    ("client-credentials", Kind::Client),
    ("htcondor", Kind::HTCondor),
    ("mytoken", Kind::Mytoken),
];

/// All kinds, for a sentence.
pub(super) fn kinds() -> String {
    let names = KINDS.map(|(name, _)| format!("{name:?}"));
    let [first @ .., last] = &names;
    format!("{} or {last}", first.join(", "))
}

/// Keys of `kind = "oauth2"` alone.
const OAUTH2_KEYS: [&str; 10] = [
    "login_client_id",
    "token_endpoint",
    "revocation_endpoint",
    "client_id",
    "client_secret_file",
    "client_auth",
    "audience_style",
    "authorization_endpoint",
    "return_path",
    "user_claim",
];

/// Read one provider; `None` if it cannot be used. Problems are in the section's list.
pub fn read(name: &str, mut section: Section<'_>, secrets: Secrets, stock: &Stock<'_>) -> Option<Provider> {
    for key in ["client_secret", "secret", "password", "fernet_key"] {
        section.refuse(
            key,
            "secrets are files, never values in the configuration",
            "write it to a file of mode 0600, name that with `client_secret_file` (or `fernet_key_file`)",
        );
    }
    let kind = section.require("kind", &format!("set it to {}", kinds()), kind);
    let Some(kind) = kind else {
        section.abandon();
        return None;
    };
    let services = services(name, &mut section);
    let issuer = section.take("issuer", input::url);
    let seconds = Duration::from_secs;
    let scopes = section.take("scopes", input::words).unwrap_or_default();
    let audience = section.take("audience", input::words).unwrap_or_default();
    let shortfall = section
        .take("shortfall", input::choice(&[("refuse", Shortfall::Refuse), ("flag", Shortfall::Flag)]))
        .unwrap_or(Shortfall::Refuse);
    let default_lifetime =
        section.take("default_lifetime", input::duration(seconds(1), seconds(366 * 86_400))).unwrap_or(seconds(3600));
    let use_format = section
        .take("use_format", input::choice(&[("json", UseFormat::Json), ("bare", UseFormat::Bare)]))
        .unwrap_or(UseFormat::Json);
    let max_in_flight = section.take("max_in_flight", input::number(1..=10_000)).unwrap_or(64);
    let max_per_second = section.take("max_per_second", input::number(1..=100_000)).unwrap_or(50);
    let timeout = section.take("timeout", input::duration(seconds(1), seconds(600))).unwrap_or(seconds(20));
    if kind == Kind::Client {
        accounts::refuse_needless(&mut section);
    }
    let revoke_at_end = section.take("revoke_at_end", input::boolean).unwrap_or(false);
    let revoke_after =
        section.take("revoke_after", input::duration(seconds(1), seconds(86_400))).unwrap_or(seconds(600));
    let ca_file = section.take("ca_file", ca_file::take(secrets));
    let fernet_key_file = section.take("fernet_key_file", |value| fernet_key_file(value, secrets));
    let approval = approval::read(
        &mut section,
        match kind {
            Kind::Client => Way::Nobody,
            Kind::OAuth2 => Way::Device,
            Kind::Exchange => Way::Exchange,
            Kind::HTCondor => Way::Web,
            Kind::Mytoken => Way::Mytoken,
        },
    );
    let kind = match kind {
        Kind::OAuth2 => {
            section.refuse(
                "login_client_id",
                "a refresh token belongs to the client that it was given to, which is client_id",
                r#"remove it, or set kind = "token-exchange""#,
            );
            refuse_accounts(&mut section);
            oauth2(&mut section, issuer.is_some(), secrets).map(ProviderKind::OAuth2)
        }
        Kind::Client => {
            accounts::read(&mut section, issuer.is_some(), !audience.is_empty(), secrets).map(ProviderKind::OAuth2)
        }
        Kind::Exchange => exchange(&mut section, issuer.is_some(), secrets).map(ProviderKind::OAuth2),
        Kind::HTCondor => stock::read(&services, &mut section, secrets, stock).map(ProviderKind::OAuth2),
        Kind::Mytoken => mytoken(&mut section),
    };
    let by_claim = matches!(&kind, Some(ProviderKind::OAuth2(OAuth2 { user_claim: Some(_), .. })));
    if by_claim && issuer.is_none() && !section.took_wrongly("issuer") {
        section.complain("user_claim", "is of no use without `issuer`, whose word it is", "set `issuer`, too");
    }
    section.finish();
    Some(Provider {
        name: name.to_owned(),
        services,
        kind: kind?,
        issuer,
        scopes,
        audience,
        shortfall,
        default_lifetime,
        use_format,
        max_in_flight,
        max_per_second,
        timeout,
        revoke_at_end,
        revoke_after,
        ca_file,
        fernet_key_file,
        approval,
    })
}

fn kind(value: &Value) -> Result<Kind, Wrong> {
    let text = input::text(value)?;
    if let Some((_, kind)) = KINDS.iter().find(|(name, _)| *name == text) {
        return Ok(*kind);
    }
    if ["vault", "local"].contains(&text.as_str()) {
        let what = format!("the kind {text:?} is not part of this version");
        return Err(wrong(what, format!("use {}, or remove this provider", kinds())));
    }
    let advice = match input::nearest(&text, &KINDS.map(|(name, _)| name)) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("use {}", kinds()),
    };
    Err(wrong(format!("{text:?} is not a kind"), advice))
}

fn services(name: &str, section: &mut Section<'_>) -> Vec<String> {
    let given = section.has("services");
    let services = section.take("services", services_of);
    if given {
        return services.unwrap_or_default();
    }
    if let Err(wrong) = service(name) {
        section.complain("", &wrong.what, "rename this table, or name the services with `services`");
        return Vec::new();
    }
    vec![name.to_owned()]
}

fn services_of(value: &Value) -> Result<Vec<String>, Wrong> {
    let services = input::texts(value)?;
    if services.is_empty() {
        return Err(wrong("is empty", "name at least one service, or remove the key"));
    }
    for (at, name) in services.iter().enumerate() {
        service(name)?;
        if services.iter().take(at).any(|earlier| earlier == name) {
            return Err(wrong(format!("names {name} twice"), "remove one of them"));
        }
    }
    Ok(services)
}

fn service(name: &str) -> Result<(), Wrong> {
    Service::parse(name).map_err(|e| wrong(e.to_string(), "use a name that HTCondor takes for a service"))?;
    if name == "scitokens" {
        let what = "HTCondor takes the service scitokens for its own local issuer";
        return Err(wrong(what, "call the service otherwise"));
    }
    if name.contains('_') {
        let what = format!("{name:?}: HTCondor splits a service from its handle at the first _");
        return Err(wrong(what, "call the service without _"));
    }
    Ok(())
}

/// `token_endpoint`, if it is given; else there must be an issuer.
pub(super) fn token_endpoint(section: &mut Section<'_>, issuer_usable: bool) -> Option<String> {
    // An issuer that is there but wrong has been reported already.
    let endpoint_given = section.has("token_endpoint");
    let token_endpoint = section.take("token_endpoint", input::url);
    if !endpoint_given && !issuer_usable && !section.took_wrongly("issuer") {
        section.complain(
            "issuer",
            "neither `issuer` nor `token_endpoint` is set",
            "set `issuer` (endpoints by discovery), or `token_endpoint`",
        );
    }
    token_endpoint
}

/// Keys of `kind = "client-credentials"` alone.
fn refuse_accounts(section: &mut Section<'_>) {
    for key in ["users", "audiences"] {
        section.refuse(key, r#"belongs to kind = "client-credentials""#, "remove it: here each user approves");
    }
}

fn oauth2(section: &mut Section<'_>, issuer_usable: bool, secrets: Secrets) -> Option<OAuth2> {
    section.refuse("server", r#"belongs to kind = "mytoken""#, "remove it, or set `issuer` or `token_endpoint`");
    let token_endpoint = token_endpoint(section, issuer_usable);
    let revocation_endpoint = section.take("revocation_endpoint", input::url);
    let client_id =
        section.require("client_id", "set it to the id under which evercred is registered there", input::text);
    let secret_given = section.has("client_secret_file");
    let client_secret = match secrets {
        Secrets::Read => section.take("client_secret_file", client_secret),
        Secrets::LeaveAlone => section.take("client_secret_file", input::path).and(None),
    };
    let client_auth = client_auth(section).unwrap_or(ClientAuth::Header);
    let audience_style = audience_style(section).unwrap_or(AudienceStyle::Audience);
    let authorization_endpoint = section.take("authorization_endpoint", input::url);
    let return_path = section.take("return_path", |value| return_path(&input::text(value)?));
    let usable = (token_endpoint.is_some() || issuer_usable)
        && (client_secret.is_some() || !secret_given || secrets == Secrets::LeaveAlone);
    let client_id = client_id.filter(|_| usable)?;
    Some(OAuth2 {
        token_endpoint,
        revocation_endpoint,
        client_id,
        confidential: secret_given,
        client_secret,
        client_auth,
        audience_style,
        from_htcondor: false,
        login_client: None,
        accounts: None,
        authorization_endpoint,
        return_path: return_path.map(Into::into),
        user_claim: user_claim(section),
    })
}

/// `kind = "token-exchange"`: as oauth2, and the public client as which users approve.
fn exchange(section: &mut Section<'_>, issuer_usable: bool, secrets: Secrets) -> Option<OAuth2> {
    let advice = "set it to the id of a public client with the device flow, as which users approve";
    let login_client = section.require("login_client_id", advice, input::text);
    refuse_accounts(section);
    let oauth2 = oauth2(section, issuer_usable, secrets)?;
    Some(OAuth2 { login_client: Some(login_client?), ..oauth2 })
}

/// Which claim says who approved on the page.
pub(super) fn user_claim(section: &mut Section<'_>) -> Option<Box<str>> {
    section.take("user_claim", input::text).map(Into::into)
}

pub(super) fn client_auth(section: &mut Section<'_>) -> Option<ClientAuth> {
    section.take("client_auth", input::choice(&[("header", ClientAuth::Header), ("body", ClientAuth::Body)]))
}

pub(super) fn audience_style(section: &mut Section<'_>) -> Option<AudienceStyle> {
    let styles = &[
        ("audience", AudienceStyle::Audience),
        ("repeated", AudienceStyle::Repeated),
        ("resource", AudienceStyle::Resource),
    ];
    section.take("audience_style", input::choice(styles))
}

/// A path below the page's URL: `/return/wlcg`.
pub(super) fn return_path(text: &str) -> Result<String, Wrong> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~+=".contains(c);
    if text.starts_with('/') && text.len() > 1 && text.chars().all(plain) && !text.contains("//") {
        return Ok(text.to_owned());
    }
    Err(wrong(format!("{text:?} is not a path"), r#"write it like "/return/wlcg""#))
}

fn mytoken(section: &mut Section<'_>) -> Option<ProviderKind> {
    for key in OAUTH2_KEYS {
        section.refuse(key, r#"belongs to kind = "oauth2""#, "remove it");
    }
    refuse_accounts(section);
    let server = section.require("server", r#"set it to the mytoken server, like "https://mytok.eu""#, input::url)?;
    Some(ProviderKind::Mytoken { server })
}

pub(super) fn client_secret(value: &Value) -> Result<ClientSecret, Wrong> {
    let path = input::path(value)?;
    let text = secret_file::read(&path)?;
    ClientSecret::parse(&text).map_err(|_| {
        let what = format!(
            "{} holds more than a secret (blanks at an end, several lines or other characters)",
            path.display()
        );
        wrong(what, "write the secret alone into it, on one line")
    })
}

fn fernet_key_file(value: &Value, secrets: Secrets) -> Result<PathBuf, Wrong> {
    let path = input::path(value)?;
    if secrets == Secrets::Read {
        secret_file::read(&path)?;
    }
    Ok(path)
}
