//! The keys of sites that are reached through a computing facility's own service: `sfapi` and `iri`.

use std::{path::Path, time::Duration};

use super::{
    Secrets,
    fragment::Value,
    input::{self, Section, Wrong, wrong},
    secret_file, site,
    site_settings::{Iri, Sfapi},
};
use crate::{
    core::{secret::RefreshToken, time::Timestamp},
    replicate::assertion::ClientFile,
};

const DAY: u64 = 86_400;

/// What a client's file gave.
struct Client {
    file: Option<ClientFile>,
    written: Option<Timestamp>,
}

/// `kind = "sfapi"`
pub fn sfapi(section: &mut Section<'_>, secrets: Secrets) -> Option<Sfapi> {
    let directory = site::directory(section);
    let inbox = section.require("inbox", "set it to the directory there for sealed payloads", site::remote_directory);
    if let (Some(directory), Some(inbox)) = (&directory, &inbox)
        && (inbox == directory || inbox.contains('{'))
    {
        section.complain(
            "inbox",
            "is the directory for the tokens, or holds a placeholder",
            "name one directory of its own, which the account there makes with mode 0700",
        );
    }
    let client = section.require("client_file", "name the file of mode 0600 with the client's id and key", |value| {
        client(value, secrets)
    });
    let given = section.take("client_id", site::plain);
    let command = section.take("command", |value| {
        let text = input::text(value)?;
        if text.starts_with('/') {
            return Ok(text);
        }
        Err(wrong("does not begin with an absolute path", "write it as \"/path/evercred receive --inbox ...\""))
    });
    // What the service allows: two days for a client that may run commands, a month or two for others.
    let usual = Duration::from_secs(if command.is_some() { 2 * DAY } else { 30 * DAY });
    let most = Duration::from_secs(366 * DAY);
    let lifetime = section.take("client_lifetime", input::duration(Duration::from_secs(60), most)).unwrap_or(usual);
    let machine = section.take("machine", site::plain).unwrap_or_else(|| "perlmutter".into());
    let api = section.take("api", input::url).unwrap_or_else(|| "https://api.nersc.gov/api/v1.2".into());
    let auth = section.take("auth", input::url).unwrap_or_else(|| "https://oidc.nersc.gov/c2id/token".into());
    let Client { file, written } = client?;
    let told = file.as_ref().and_then(|file| file.id.clone());
    let client_id = given.or(told);
    if client_id.is_none() && secrets == Secrets::Read {
        section.complain("client_id", "is missing, and `client_file` does not say it", "set it to the client's id");
        return None;
    }
    Some(Sfapi {
        client_id: client_id.unwrap_or_default(),
        client_key: file.map(|file| file.key),
        client_ends: written.map(|written| written.plus(lifetime)),
        client_lifetime: lifetime,
        machine,
        directory: directory?,
        inbox: inbox?,
        command,
        api,
        auth,
    })
}

fn client(value: &Value, secrets: Secrets) -> Result<Client, Wrong> {
    let path = input::path(value)?;
    if secrets == Secrets::LeaveAlone {
        return Ok(Client { file: None, written: None });
    }
    let text = secret_file::read(&path)?;
    let advice = "write what the service's page gave: its JSON, or the id on a line and then the key in PEM";
    let file = ClientFile::parse(&text).map_err(|e| wrong(format!("{} {e}", path.display()), advice))?;
    Ok(Client { file: Some(file), written: secret_file::in_time(&path, |path| Ok(written(path)))? })
}

/// When the file was written.
fn written(path: &Path) -> Option<Timestamp> {
    let modified = std::fs::metadata(path).ok()?.modified().ok()?;
    let since = modified.duration_since(std::time::SystemTime::UNIX_EPOCH).ok()?;
    Some(Timestamp::from_secs(i64::try_from(since.as_secs()).ok()?))
}

/// `kind = "iri"`
pub fn iri(section: &mut Section<'_>, secrets: Secrets) -> Option<Iri> {
    let directory = site::directory(section);
    let advice = "set it to the id of the file system's resource, from the facility's /api/v1/status/resources";
    let resource = section.require("resource_id", advice, site::plain);
    let client_id = section.require("client_id", "set it to the id of the client at the issuer", site::plain);
    let secret_given = section.has("client_secret_file");
    let secret = section
        .take("client_secret_file", |value| site::unless(secrets, value, super::provider::client_secret))
        .flatten();
    let refresh_given = section.has("refresh_token_file");
    let refresh_token =
        section.take("refresh_token_file", |value| site::unless(secrets, value, refresh_token)).flatten();
    if !secret_given && !refresh_given {
        section.complain(
            "refresh_token_file",
            "is missing, and so is `client_secret_file`",
            "name a file of mode 0600 with the refresh token of one login, or with the secret of a client of its own",
        );
    }
    let bare = section.take("token_header", input::choice(&[("bearer", false), ("bare", true)])).unwrap_or(false);
    let scope = section.take("scope", input::text);
    if scope.is_none() && !refresh_given && !section.took_wrongly("scope") {
        section.complain("scope", "is missing: a client that acts as itself asks for one", "ask the facility which");
    }
    let api = section.take("api", input::url).unwrap_or_else(|| "https://api.iri.nersc.gov".into());
    let auth = section.take("auth", input::url).unwrap_or_else(|| "https://auth.globus.org/v2/oauth2/token".into());
    let usable = !section.took_wrongly("client_secret_file") && !section.took_wrongly("refresh_token_file");
    Some(Iri {
        resource: resource?,
        directory: directory.filter(|_| usable)?,
        client_id: client_id?,
        client_secret: secret,
        refresh_token,
        scope,
        bare,
        api,
        auth,
    })
}

fn refresh_token(value: &Value) -> Result<RefreshToken, Wrong> {
    let path = input::path(value)?;
    let text = secret_file::read(&path)?;
    RefreshToken::parse(text.trim())
        .map_err(|_| wrong(format!("{} holds more than a token", path.display()), "write the token alone into it"))
}
