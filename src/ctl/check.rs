//! `evercred check`: read the configuration as the credmon would, tell every problem, or what is configured. What works and
//! leaves users without a way to approve is a warning.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::ExitCode,
};

use super::show;
use crate::{
    cli,
    config::{
        self, Sources,
        approval::obstacle,
        condor,
        input::{Wrong, show_duration},
        settings::{Provider, ProviderKind, Settings},
        site_settings::Site,
    },
};

/// `evercred check`: 0, or 78 with every problem.
#[must_use]
pub fn run(args: cli::Check) -> ExitCode {
    match config::load(&Sources::of_user(args.config)) {
        Ok(settings) => {
            // Nobody is left to tell if standard output is closed.
            io::stdout().lock().write_all(summary(&settings, prefix(&settings).as_deref()).as_bytes()).ok();
            ExitCode::SUCCESS
        }
        Err(problems) => config::report(&problems).print("evercred"),
    }
}

/// HTCondor's `CREDMON_WEB_PREFIX`, if there is a page. That HTCondor answers, the configuration's reading has shown.
fn prefix(settings: &Settings) -> Option<String> {
    settings.daemon.web_approval.as_ref()?;
    condor::web_knobs(&condor::program()?).ok()?.prefix
}

/// The table; nothing secret is in it. `prefix`: HTCondor's `CREDMON_WEB_PREFIX`.
fn summary(settings: &Settings, prefix: Option<&str>) -> String {
    let head = ["PROVIDER", "KIND", "SERVICES", "TOKENS FROM", "LIMITS"];
    let mut text = show::table(head, settings.providers.iter().map(row));
    if !settings.sites.is_empty() {
        let site = |site: &Site| {
            let sealed = if site.sealing.is_some() { "sealed" } else { "as it is" };
            [site.name.clone(), site.kind.label().to_owned(), who(site), sealed.to_owned(), show_duration(site.timeout)]
        };
        text.push('\n');
        text.push_str(&show::table(
            ["SITE", "KIND", "TOKENS OF", "GOES THERE", "TIMEOUT"],
            settings.sites.iter().map(site),
        ));
    }
    let daemon = &settings.daemon;
    // Writing to a string does not fail.
    writeln!(
        text,
        "\nCredentials in {}, a full scan every {}, log to {}. The configuration is good.",
        daemon.credential_directory.display(),
        show_duration(daemon.full_scan),
        daemon.log.as_deref().unwrap_or("stderr"),
    )
    .ok();
    let by_page = daemon.web_approval.is_some();
    for provider in &settings.providers {
        if let Some(Wrong { what, advice, .. }) = obstacle(provider, by_page) {
            writeln!(text, "warning: provider.{}: {what}; {advice}", provider.name).ok();
        }
    }
    if let Some(page) = &daemon.web_approval
        && let Some(prefix) = prefix.filter(|prefix| prefix.trim_end_matches('/') != page.url)
    {
        writeln!(
            text,
            "warning: web_approval_url: is {}, and HTCondor's CREDMON_WEB_PREFIX, which credd tells users and issuers, is \
             {prefix}: no approval works; make them the same, or remove web_approval_url",
            page.url
        )
        .ok();
    }
    text
}

/// Whose tokens go to a site, in words.
fn who(site: &Site) -> String {
    let rules = &site.rules;
    let services = if rules.services == ["*"] { "every service".to_owned() } else { rules.services.join(" ") };
    let groups = rules.groups.iter().map(|group| format!("%{group}"));
    let people: Vec<String> = rules.users.iter().cloned().chain(groups).collect();
    if people.is_empty() { services } else { format!("{services}, of {}", people.join(" ")) }
}

fn row(provider: &Provider) -> [String; 5] {
    let from = match &provider.kind {
        ProviderKind::OAuth2(oauth2) => oauth2.token_endpoint.as_ref().or(provider.issuer.as_ref()),
        ProviderKind::Mytoken { server } => Some(server),
    };
    let services = provider.services.join(" ");
    let services = match provider.accounts() {
        Some(accounts) => format!("{services}, of {}", accounts.users.join(" ")),
        None => services,
    };
    [
        provider.name.clone(),
        provider.kind.word().to_owned(),
        services,
        from.cloned().unwrap_or_default(),
        format!("{} in flight, {} a second", provider.max_in_flight, provider.max_per_second),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{condor::Knobs, load_with};

    #[test]
    fn the_summary_names_services_kinds_issuers_and_limits() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        let text = "[daemon]\ncredential_directory = \"/creds\"\n[provider.helmholtz]\nkind = \"mytoken\"\n\
                    server = \"https://mytok.eu\"\nissuer = \"https://op.example.org\"\n[provider.w]\nkind = \"oauth2\"\nclient_id = \"x\"\n\
                    issuer = \"https://i.example.org/\"\nservices = [\"cms\", \"atlas\"]\nmax_in_flight = 8\n\
                    [provider.panda]\nkind = \"client-credentials\"\nissuer = \"https://i.example.org/\"\n\
                    client_id = \"x\"\nclient_secret_file = \"/s\"\nusers = [\"harvester\", \"pilot\"]\n";
        std::fs::write(&file, text).unwrap();
        let sources = Sources { config: Some(file), ..Sources::default() };
        let settings = load_with(&sources.without_secrets(), &Knobs::default()).unwrap();
        let expected = "\
PROVIDER   KIND                SERVICES                   TOKENS FROM             LIMITS
helmholtz  mytoken             helmholtz                  https://mytok.eu        64 in flight, 50 a second
panda      client-credentials  panda, of harvester pilot  https://i.example.org/  64 in flight, 50 a second
w          oauth2              cms atlas                  https://i.example.org/  8 in flight, 50 a second

Credentials in /creds, a full scan every 10m, log to stderr. The configuration is good.
";
        assert_eq!(summary(&settings, None), expected);
    }

    #[test]
    fn a_provider_at_which_users_cannot_approve_is_a_warning_that_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let warnings = |daemon: &str, provider: &str| {
            let file = dir.path().join("c.toml");
            let text = format!("[daemon]\ncredential_directory = \"/c\"\n{daemon}[provider.p]\n{provider}");
            std::fs::write(&file, text).unwrap();
            let sources = Sources { config: Some(file), ..Sources::default() }.without_secrets();
            let settings = load_with(&sources, &Knobs::default()).unwrap_or_else(|p| panic!("{p:?}"));
            let text = summary(&settings, Some("https://ap.example.org/"));
            text.lines().filter(|line| line.starts_with("warning: ")).collect::<Vec<_>>().join("\n")
        };
        let mytoken = "kind = \"mytoken\"\nserver = \"https://mytok.eu\"\n";
        let told = warnings("", mytoken);
        assert!(told.starts_with("warning: provider.p: users can approve only while https://mytok.eu has a single"));
        assert!(told.contains("set `issuer`") && told.contains("OAUTH_ISSUER_URL"), "{told}");
        assert_eq!(warnings("", &format!("{mytoken}issuer = \"https://op.example.org\"\n")), "");
        let public = "kind = \"oauth2\"\nissuer = \"https://i.example.org/\"\nclient_id = \"x\"\n";
        let secret = "client_secret_file = \"/etc/evercred/secrets/p\"\n";
        assert_eq!(warnings("", public), "");
        let told = warnings("", &format!("{public}{secret}"));
        assert!(told.starts_with("warning: provider.p: users cannot approve with condor_submit or evercred login"));
        assert!(told.contains("register a public client") && told.contains("web_approval_listen"), "{told}");
        let page = "web_approval_listen = \"127.0.0.1:9742\"\nweb_approval_url = \"https://ap.example.org\"\n";
        assert_eq!(warnings(page, &format!("{public}{secret}")), "");
        let below = page.replace("example.org", "example.org/credmon");
        let told = warnings(&below, &format!("{public}{secret}"));
        assert!(told.contains("CREDMON_WEB_PREFIX, which credd tells users and issuers, is https://ap.example.org/: "));
        assert!(told.contains("web_approval_url: is https://ap.example.org/credmon, "), "{told}");
        let exchange = public.replace("oauth2", "token-exchange") + "login_client_id = \"of-users\"\n";
        assert_eq!(warnings("", &format!("{exchange}{secret}")), "");
        let own = public.replace("oauth2", "client-credentials") + "users = [\"harvester\"]\n";
        assert_eq!(warnings("", &format!("{own}{secret}")), "", "nobody approves what a client asks for itself");
    }
}
