//! What HTCondor's own knobs say, for sites that come from its OAuth credmon: `kind = "htcondor"` takes the client of
//! a service from `<S>_CLIENT_ID` and its companions, and the page for approvals is where `CREDMON_WEB_PREFIX` says.
//!
//! The knobs are asked as credd sees them, so that both always mean the same client. A secret stays in HTCondor's
//! file (`<S>_CLIENT_SECRET_FILE`), and is judged as our own are.

use std::{
    cell::OnceCell,
    path::{Path, PathBuf},
};

use super::{
    Secrets,
    condor::{self, NoAnswer, ServiceKnobs, WebKnobs},
    fragment::Value,
    input::{self, Section, Wrong, wrong},
    provider, secret_file,
    settings::{AudienceStyle, ClientAuth, OAuth2, TlsFiles, WebApproval, WebListen},
};
use crate::core::secret::ClientSecret;

/// HTCondor's knobs of web approvals, asked once, and only if somebody wants to know.
pub struct Stock<'a> {
    program: Option<&'a Path>,
    knobs: OnceCell<Result<WebKnobs, NoAnswer>>,
}

impl<'a> Stock<'a> {
    /// `program`: the `condor_config_val` to ask; none where there is no HTCondor.
    pub fn new(program: Option<&'a Path>) -> Self {
        Self { program, knobs: OnceCell::new() }
    }

    fn knobs(&self) -> Result<&WebKnobs, NoAnswer> {
        let ask = || self.program.map_or_else(|| Ok(WebKnobs::default()), condor::web_knobs);
        self.knobs.get_or_init(ask).as_ref().map_err(NoAnswer::clone)
    }
}

/// Read a provider of `kind = "htcondor"`; its one service is the table's name.
pub fn read(services: &[String], section: &mut Section<'_>, secrets: Secrets, stock: &Stock<'_>) -> Option<OAuth2> {
    for (key, knob) in [
        ("client_id", "<S>_CLIENT_ID"),
        ("client_secret_file", "<S>_CLIENT_SECRET_FILE"),
        ("token_endpoint", "<S>_TOKEN_URL"),
        ("authorization_endpoint", "<S>_AUTHORIZATION_URL"),
        ("return_path", "<S>_RETURN_URL_SUFFIX"),
    ] {
        let advice = format!("remove it (HTCondor's {knob} says it), or set kind = \"oauth2\"");
        section.refuse(key, r#"is HTCondor's matter with kind = "htcondor""#, &advice);
    }
    section.refuse("server", r#"belongs to kind = "mytoken""#, "remove it");
    let revocation_endpoint = section.take("revocation_endpoint", input::url);
    let client_auth = provider::client_auth(section);
    let audience_style = provider::audience_style(section);
    let user_claim = provider::user_claim(section);
    let [service] = services else {
        if services.len() > 1 {
            let what = r#"kind = "htcondor" is one service each, because HTCondor's knobs are"#;
            section.complain("services", what, "write one table for each service");
        }
        return None;
    };
    let Some(program) = stock.program else {
        let what = "HTCondor cannot be asked for its knobs: condor_config_val is not installed here";
        section.complain("kind", what, r#"install HTCondor's tools, or write the client down with kind = "oauth2""#);
        return None;
    };
    let none = ServiceKnobs::default();
    let knobs = match stock.knobs() {
        Ok(knobs) => knobs.of(service).unwrap_or(&none),
        Err(no_answer) => {
            section.complain_of_htcondor("kind", &no_answer);
            return None;
        }
    };
    let ask = format!("see `{} -subsystem CREDD -dump {service}_`", program.display());
    let mut complain = |knob: &str, what: &str, advice: &str| {
        section.complain("kind", &format!("HTCondor's {service}_{knob} {what}"), advice);
    };
    let mut url = |knob: &str, value: Option<&String>| match value.map(|url| input::url_text(url)) {
        None => None,
        Some(Ok(url)) => Some(url),
        Some(Err(Wrong { what, advice, .. })) => {
            complain(knob, &what, &advice);
            None
        }
    };
    let (token_endpoint, authorization_endpoint) =
        (url("TOKEN_URL", knobs.token_url.as_ref()), url("AUTHORIZATION_URL", knobs.authorization_url.as_ref()));
    if knobs.token_url.is_none() {
        complain("TOKEN_URL", "is not set", &format!("set it in HTCondor's configuration; {ask}"));
    }
    if knobs.client_id.is_none() {
        complain("CLIENT_ID", "is not set", &format!("set it in HTCondor's configuration; {ask}"));
    }
    let return_path = knobs.return_url_suffix.as_deref().and_then(|suffix| {
        provider::return_path(suffix)
            .inspect_err(|wrong| complain("RETURN_URL_SUFFIX", &wrong.what, &wrong.advice))
            .ok()
    });
    let client_secret = match (&knobs.client_secret_file, secrets) {
        (Some(path), Secrets::Read) => Some(
            secret(Path::new(path))
                .inspect_err(|wrong| complain("CLIENT_SECRET_FILE:", &wrong.what, &wrong.advice))
                .ok()?,
        ),
        _ => None,
    };
    Some(OAuth2 {
        token_endpoint: Some(token_endpoint?),
        revocation_endpoint,
        client_id: knobs.client_id.clone()?,
        confidential: knobs.client_secret_file.is_some(),
        client_secret,
        // As the stock credmon and its web server do.
        client_auth: client_auth.unwrap_or(ClientAuth::Body),
        audience_style: audience_style.unwrap_or(AudienceStyle::Resource),
        from_htcondor: true,
        login_client: None,
        accounts: None,
        authorization_endpoint,
        return_path: return_path.map(Into::into),
        user_claim,
    })
}

fn secret(path: &Path) -> Result<ClientSecret, Wrong> {
    let text = secret_file::read_as_credd(path)?;
    ClientSecret::parse(&text).map_err(|_| {
        let what = format!("{} holds more than a secret (blanks at an end or other characters)", path.display());
        wrong(what, "write the secret alone into it, on one line")
    })
}

/// `web_approval_listen` and the keys that go with it.
pub fn web_approval(section: &mut Section<'_>, secrets: Secrets, stock: &Stock<'_>) -> Option<WebApproval> {
    let wanted = section.has("web_approval_listen");
    let companions = ["web_approval_url", "web_approval_tls_cert", "web_approval_tls_key"];
    let given @ [url_given, ..] = companions.map(|key| section.has(key));
    let listen = section.take("web_approval_listen", web_listen);
    let url = section.take("web_approval_url", |value| page_url(&input::text(value)?));
    let certificate = section.take("web_approval_tls_cert", input::path);
    let key = section.take("web_approval_tls_key", input::path);
    if !wanted {
        for (name, _) in companions.into_iter().zip(given).filter(|(_, given)| *given) {
            let advice = format!("set web_approval_listen = {UNIX_EXAMPLE:?}, or remove it");
            section.complain(name, "is of no use without web_approval_listen", &advice);
        }
        return None;
    }
    let listen = listen?;
    let tls = match given {
        [_, false, false] => None,
        [_, true, false] => {
            section.complain("web_approval_tls_cert", "is set, and its key is not", "set web_approval_tls_key, too");
            return None;
        }
        [_, false, true] => {
            section.complain(
                "web_approval_tls_key",
                "is set, and its certificate is not",
                "set web_approval_tls_cert, too",
            );
            return None;
        }
        [_, true, true] => Some(tls_files(section, secrets, &certificate?, &key?)?),
    };
    suits(section, &listen, tls.is_some())?;
    let url = if url_given { url? } else { stock_url(section, stock)? };
    if tls.is_some() && !url.starts_with("https://") {
        let advice = "give the URL (web_approval_url, else HTCondor's CREDMON_WEB_PREFIX) with https://";
        section.complain("web_approval_listen", &format!("has TLS, and browsers are told {url}"), advice);
        return None;
    }
    Some(WebApproval { listen, url, tls })
}

/// Where a web server of the same host finds the page.
const UNIX_EXAMPLE: &str = "unix:/run/evercred/approval.sock";

fn tls_files(section: &mut Section<'_>, secrets: Secrets, certificate: &Path, key: &Path) -> Option<TlsFiles> {
    match secrets {
        Secrets::LeaveAlone => Some(TlsFiles::default()),
        Secrets::Read => TlsFiles::read(certificate, key)
            .inspect_err(|wrong| section.complain("web_approval_tls_cert", &wrong.what, &wrong.advice))
            .ok(),
    }
}

/// In the clear only where nobody else listens in.
fn suits(section: &mut Section<'_>, listen: &WebListen, tls: bool) -> Option<()> {
    let (what, advice) = match listen {
        WebListen::Address(address) if !tls && !address.ip().is_loopback() => (
            "is not on loopback: approvals would travel in the clear",
            format!(
                "set web_approval_tls_cert and web_approval_tls_key; or use {UNIX_EXAMPLE:?}, and let the web server of \
                 this host pass https requests on to it"
            ),
        ),
        WebListen::Unix(_) if tls => (
            "is a Unix socket, which has no TLS",
            "remove web_approval_tls_cert and web_approval_tls_key (they are the web server's matter), or name an \
             address and port"
                .to_owned(),
        ),
        _ => return Some(()),
    };
    section.complain("web_approval_listen", what, &advice);
    None
}

/// The URL that credd tells users.
fn stock_url(section: &mut Section<'_>, stock: &Stock<'_>) -> Option<String> {
    let knobs = match stock.knobs() {
        Ok(knobs) => knobs,
        Err(no_answer) => {
            section.complain_of_htcondor("web_approval_listen", &no_answer);
            return None;
        }
    };
    match knobs.prefix.as_deref().map(page_url) {
        Some(Ok(url)) => Some(url),
        Some(Err(Wrong { what, advice, .. })) => {
            section.complain("web_approval_listen", &format!("HTCondor's CREDMON_WEB_PREFIX {what}"), &advice);
            None
        }
        None => {
            let advice = "set CREDMON_WEB_PREFIX in HTCondor's configuration (credd prints it to users), like \
                          https://submit.example.org";
            section.complain("web_approval_listen", "has no URL: HTCondor's CREDMON_WEB_PREFIX is not set", advice);
            None
        }
    }
}

fn web_listen(value: &Value) -> Result<WebListen, Wrong> {
    let text = input::text(value)?;
    let Some(path) = text.strip_prefix("unix:") else {
        let either = |wrong: Wrong| Wrong { advice: format!("{}, or {UNIX_EXAMPLE:?}", wrong.advice), ..wrong };
        return input::listen(value).map(WebListen::Address).map_err(either);
    };
    let path = PathBuf::from(path);
    // What fits into an address of the kernel, with the zero at its end.
    if !path.is_absolute() || path.as_os_str().len() > 107 {
        return Err(wrong("is no absolute path of at most 107 bytes", format!("write it like {UNIX_EXAMPLE:?}")));
    }
    Ok(WebListen::Unix(path))
}

/// The page's URL: as for any endpoint, and without query; a slash at its end goes.
fn page_url(text: &str) -> Result<String, Wrong> {
    let url = input::url_text(text)?;
    if url.contains('?') {
        return Err(wrong("holds a ?query", "remove it from the URL"));
    }
    let path = url::Url::parse(&url).map(|url| url.path().to_owned()).unwrap_or_default();
    let path = path.trim_end_matches('/');
    if !path.is_empty() {
        provider::return_path(path)?;
    }
    Ok(url.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, process::Command};

    use super::*;
    use crate::config::{
        Sources,
        condor::Knobs,
        load_files,
        settings::{Provider, ProviderKind},
    };

    /// A `condor_config_val` that dumps these lines.
    fn htcondor_says(dir: &Path, dump: &str) -> Knobs {
        let program = dir.join("condor_config_val");
        fs::write(&program, format!("#!/bin/sh\ncat <<'EOF'\n{dump}\nEOF\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        // A fork of another test may hold the file open for writing for a moment.
        while Command::new(&program).stdout(std::process::Stdio::null()).status().is_err() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Knobs { program: Some(program), credential_directory: Some("/condor".into()), ..Knobs::default() }
    }

    #[test]
    fn a_provider_of_htcondors_knobs_has_the_client_that_credd_sees() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "s3cret\n# the old one was shorter\n").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let dump = format!(
            "CREDMON_WEB_PREFIX = https://ap.example.org/credmon/\nCMS_CLIENT_ID = cms at ap\n\
             cms_CLIENT_SECRET_FILE = {}\ncms_TOKEN_URL = https://i.example.org/token\n\
             cms_AUTHORIZATION_URL = https://i.example.org/auth?access_type=offline\ncms_RETURN_URL_SUFFIX = /return/cms",
            secret.display()
        );
        let knobs = htcondor_says(dir.path(), &dump);
        let file = dir.path().join("c.toml");
        fs::write(
            &file,
            "[daemon]\nweb_approval_listen = \"127.0.0.1:9742\"\n[provider.cms]\nkind = \"htcondor\"\nmax_in_flight = 3\n",
        )
        .unwrap();
        let settings = load_files(std::slice::from_ref(&file), &Sources::default(), &knobs).unwrap();
        let page = settings.daemon.web_approval.unwrap();
        assert_eq!(
            (page.url.as_str(), page.listen.to_string().as_str()),
            ("https://ap.example.org/credmon", "127.0.0.1:9742")
        );
        let [Provider { kind: ProviderKind::OAuth2(client), max_in_flight: 3, .. }] = &settings.providers[..] else {
            panic!("{:?}", settings.providers)
        };
        assert_eq!(client.client_id, "cms at ap");
        assert_eq!(client.client_secret.as_ref().unwrap().expose(), "s3cret", "as credd reads it");
        assert_eq!(client.token_endpoint.as_deref(), Some("https://i.example.org/token"));
        assert_eq!(client.authorization_endpoint.as_deref(), Some("https://i.example.org/auth?access_type=offline"));
        assert_eq!(client.return_path_of("cms"), "/return/cms");
        assert!(client.from_htcondor && client.client_auth == ClientAuth::Body);
        assert_eq!(settings.providers[0].kind.word(), "htcondor");
    }

    #[test]
    fn htcondors_knobs_that_are_missing_or_unsafe_are_told_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        fs::write(&open, "canary-secret").unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
        let file = dir.path().join("c.toml");
        let told = |text: &str, knobs: &Knobs| {
            fs::write(&file, text).unwrap();
            let problems = load_files(std::slice::from_ref(&file), &Sources::default(), knobs).unwrap_err();
            problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let dump = format!(
            "plain_TOKEN_URL = http://i.example.org/token\nplain_CLIENT_ID = c\nopen_CLIENT_ID = c\n\
             open_TOKEN_URL = https://i.example.org/token\nopen_CLIENT_SECRET_FILE = {}\ngood_CLIENT_ID = c\n\
             good_TOKEN_URL = https://i.example.org/token",
            open.display()
        );
        let knobs = htcondor_says(dir.path(), &dump);
        let table = |name: &str| format!("[provider.{name}]\nkind = \"htcondor\"\n");
        let nothing = told(&table("nothing"), &knobs);
        assert!(nothing.contains("nothing_TOKEN_URL is not set") && nothing.contains("nothing_CLIENT_ID is not set"));
        assert!(nothing.contains("-dump nothing_"), "{nothing}");
        assert!(
            told(&table("plain"), &knobs).contains("plain_TOKEN_URL is http://, which would send secrets in the clear")
        );
        let open = told(&table("open"), &knobs);
        assert!(open.contains("open_CLIENT_SECRET_FILE: ") && open.contains("chmod 600") && !open.contains("canary"));
        let both = told(&format!("{}client_id = \"x\"\n", table("plain")), &knobs);
        assert!(both.contains("HTCondor's <S>_CLIENT_ID says it"), "{both}");
        let claim = told(&format!("{}user_claim = \"sub\"\n", table("open").replace("open", "good")), &knobs);
        assert!(claim.contains("user_claim: is of no use without `issuer`"), "{claim}");
        let many = told(&format!("{}services = [\"plain\", \"open\"]\n", table("p")), &knobs);
        assert!(many.contains("one service each"), "{many}");
        assert!(
            told(&table("plain"), &Knobs { program: None, ..knobs.clone() })
                .contains("condor_config_val is not installed")
        );
        let page = |line: &str| told(&format!("[daemon]\n{line}\n"), &knobs);
        assert!(page("web_approval_listen = \"unix:approval.sock\"").contains("no absolute path"));
        assert!(page("web_approval_listen = \"9742\"").contains("unix:/run/evercred/approval.sock"));
        assert!(page("web_approval_tls_key = \"/k\"").contains("without web_approval_listen"));
        let tls = "web_approval_url = \"https://ap.example.org\"\nweb_approval_tls_cert = \"/nowhere/c\"\n";
        let both = format!("{tls}web_approval_tls_key = \"/nowhere/k\"\n");
        assert!(
            page(&format!("web_approval_listen = \"0.0.0.0:443\"\n{tls}")).contains("set web_approval_tls_key, too")
        );
        assert!(page(&format!("web_approval_listen = \"0.0.0.0:443\"\n{both}")).contains("/nowhere/c cannot be read"));
        assert!(page("web_approval_listen = \"0.0.0.0:9742\"").contains("in the clear"));
        assert!(page("web_approval_listen = \"127.0.0.1:9742\"").contains("CREDMON_WEB_PREFIX is not set"));
        assert!(page("web_approval_url = \"https://ap.example.org\"").contains("without web_approval_listen"));
        let url = "web_approval_listen = \"127.0.0.1:9742\"\nweb_approval_url = ";
        assert!(page(&format!("{url}\"http://ap.example.org\"")).contains("https://"));
        assert!(page(&format!("{url}\"https://ap.example.org/?x\"")).contains("?query"));
    }
}
