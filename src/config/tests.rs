//! Every key: what it takes, what it refuses and in which words, and what the files together come to.
//! The file is long: one table after the other, over the same few lines of configuration.

use std::{fs, os::unix::fs::PermissionsExt};

use tempfile::TempDir;

use super::{settings::ProviderKind, *};

const CANARY: &str = "canary-5f1d";

fn write(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn sources() -> Sources {
    Sources { credential_directory: Some("/creds".into()), ..Sources::default() }
}

/// The problems of one file, without the directory's name. `DIR` in the text stands for the directory.
fn problems_in(dir: &TempDir, text: &str) -> Vec<String> {
    let root = dir.path().display().to_string();
    let file = write(dir, "c.toml", &text.replace("DIR", &root));
    let problems = load_files(&[file], &sources(), &Knobs::default()).expect_err("a problem");
    problems.iter().map(|p| p.to_string().replace(&format!("{root}/"), "")).collect()
}

fn problems(text: &str) -> Vec<String> {
    problems_in(&tempfile::tempdir().unwrap(), text)
}

fn settings_of(text: &str) -> Settings {
    let dir = tempfile::tempdir().unwrap();
    let file = write(&dir, "c.toml", text);
    load_files(&[file], &sources(), &Knobs::default()).unwrap()
}

/// The sites of such tables, for tests elsewhere; their key files are read.
pub(crate) fn sites(text: &str) -> Vec<super::site_settings::Site> {
    let provider = "[provider.w]\nkind = \"mytoken\"\nserver = \"https://mytok.eu\"\n";
    settings_of(&format!("{provider}{text}")).sites
}

const GOOD: &str = "[provider.a]\nkind = \"mytoken\"\nserver = \"https://mytok.eu\"\n";

#[test]
fn every_bad_configuration_has_its_message() {
    let table: &[(&str, &[&str])] = &[
        ("", &["c.toml: provider: no provider is configured; add a table [provider.NAME] for each service"]),
        ("provider = 3\n", &["c.toml:1: provider: is a number, not a table; write it as [provider.NAME]"]),
        ("[provider]\na = 3\n", &["c.toml:2: provider.a: is a number, not a table; write it as [provider.a]"]),
        (
            "[provider.a]\nserver = \"https://m.eu\"\n",
            &[
                r#"c.toml:1: provider.a.kind: is missing; set it to "oauth2", "token-exchange", "client-credentials", "htcondor" or "mytoken""#,
            ],
        ),
        (
            "[provider.a]\nkind = \"vault\"\n",
            &[
                r#"c.toml:2: provider.a.kind: the kind "vault" is not part of this version; use "oauth2", "token-exchange", "client-credentials", "htcondor" or "mytoken", or remove this provider"#,
            ],
        ),
        (
            "[provider.a]\nkind = \"oauth\"\n",
            &[r#"c.toml:2: provider.a.kind: "oauth" is not a kind; did you mean "oauth2"?"#],
        ),
        (
            "[provider.a]\nkind = \"oauth2\"\n",
            &[
                "c.toml:1: provider.a.issuer: neither `issuer` nor `token_endpoint` is set; set `issuer` (endpoints by discovery), or `token_endpoint`",
                "c.toml:1: provider.a.client_id: is missing; set it to the id under which evercred is registered there",
            ],
        ),
        (
            "[provider.a]\nkind = \"oauth2\"\nissuer = \"http://issuer.example.org/\"\nclient_idd = \"x\"\n",
            &[
                "c.toml:1: provider.a.client_id: is missing; set it to the id under which evercred is registered there",
                "c.toml:3: provider.a.issuer: is http://, which would send secrets in the clear; use https://",
                "c.toml:4: provider.a.client_idd: unknown key; did you mean `client_id`?",
            ],
        ),
        (
            "[provider.a]\nkind = \"mytoken\"\nserver = \"https://u:canary-5f1d@m.eu\"\nclient_id = \"x\"\n",
            &[
                "c.toml:3: provider.a.server: holds a user name or password; remove it from the URL",
                r#"c.toml:4: provider.a.client_id: belongs to kind = "oauth2"; remove it"#,
            ],
        ),
        (
            "[provider.a]\nkind = \"mytoken\"\nserver = \"https://m.eu\"\nclient_secret = \"canary-5f1d\"\n",
            &[
                "c.toml:4: provider.a.client_secret: secrets are files, never values in the configuration; write it to a file of mode 0600, name that with `client_secret_file` (or `fernet_key_file`)",
            ],
        ),
        (
            "[provider.a]\nkind = \"mytoken\"\nserver = \"https://m.eu\"\nmax_in_flight = 0\nmax_per_second = \"x\"\ntimeout = \"20\"\nshortfall = \"maybe\"\nscopes = [\"a b\"]\n",
            &[
                "c.toml:4: provider.a.max_in_flight: 0 is out of range; use 1 to 10000",
                "c.toml:5: provider.a.max_per_second: is a string, not a number; write a whole number without quotes",
                r#"c.toml:6: provider.a.timeout: is not a duration; write it like "20s", "10m", "2h" or "7d", or as whole seconds"#,
                r#"c.toml:7: provider.a.shortfall: "maybe" is not one of its values; use "refuse" or "flag""#,
                r#"c.toml:8: provider.a.scopes: holds a blank inside an item; write each item on its own: ["a", "b"]"#,
            ],
        ),
        (
            "[provider.scitokens]\nkind = \"mytoken\"\nserver = \"https://m.eu\"\n[provider.b]\nkind = \"mytoken\"\nserver = \"https://m.eu\"\nservices = [\"x_y\"]\n",
            &[
                "c.toml:1: provider.scitokens: HTCondor takes the service scitokens for its own local issuer; rename this table, or name the services with `services`",
                r#"c.toml:7: provider.b.services: "x_y": HTCondor splits a service from its handle at the first _; call the service without _"#,
            ],
        ),
        (
            "[provider.a]\nkind = \"mytoken\"\nserver = \"https://m.eu\"\n[provider.b]\nkind = \"mytoken\"\nserver = \"https://m.eu\"\nservices = [\"c\", \"a\"]\n",
            &[
                "c.toml:4: provider.b: the service a belongs to provider.a already; let exactly one provider own each service, by `services`",
            ],
        ),
        (
            "[deamon]\n[daemon]\nfull_scan = \"0s\"\ncourier_usr = \"x\"\nlog = \"here\"\nmetrics_listen = \"9741\"\n[site.x]\n[provider.a]\nkind = \"mytoken\"\nserver = \"https://m.eu\"\n",
            &[
                "c.toml:1: deamon: unknown key; did you mean `daemon`?",
                "c.toml:3: daemon.full_scan: 0s is out of range; use 1s to 1d",
                "c.toml:4: daemon.courier_usr: unknown key; did you mean `courier_user`?",
                r#"c.toml:5: daemon.log: is no place for a log; use a path that begins with /, "syslog", "journal" or "stderr""#,
                r#"c.toml:6: daemon.metrics_listen: is not an address and port; write it like "127.0.0.1:9741""#,
                r#"c.toml:7: site.x.kind: is missing; set it to "ssh", "globus-compute" or another kind of site"#,
            ],
        ),
        (
            "[daemon]\ncourier_user = \"nobody\"\nreplicate_user = \"nobody\"\n[provider.a]\nkind = \"mytoken\"\nserver = \"https://m.eu\"\n",
            &[
                "c.toml:1: daemon.replicate_user: is `courier_user`, too, and processes of one user could read each other's memory; let each have a user of its own (useradd --system evercred-replicate)",
            ],
        ),
    ];
    for (text, expected) in table {
        assert_eq!(&problems(text), expected, "{text}");
    }
}

#[test]
fn what_a_mytoken_cannot_be_restricted_to_has_its_message() {
    let table: &[(&str, &[&str])] = &[
        (
            "[provider.a]\nkind = \"mytoken\"\nserver = \"https://m.eu\"\n[provider.a.restrictions]\nhost = \"x\"\nhosts = [\"this\"]\nscope = \"a\"\nusages_AT = 0\ngeoip_allow = [\"Germany\"]\n",
            &[
                "c.toml:5: provider.a.restrictions.host: unknown key; did you mean `hosts`?",
                r#"c.toml:6: provider.a.restrictions.hosts: "this" is the host where the user approves, not the one that makes access tokens; name the access point's address"#,
                "c.toml:7: provider.a.restrictions.scope: is what `scopes` says; set `scopes` of the provider",
                "c.toml:8: provider.a.restrictions.usages_AT: 0 is out of range; use 1 to 4294967295",
                r#"c.toml:9: provider.a.restrictions.geoip_allow: "Germany" is no country's code; write two letters, like "de""#,
            ],
        ),
        (
            "[provider.a]\nkind = \"mytoken\"\nserver = \"https://m.eu\"\nrestrictions = { hosts = [\"10.0.0.0/33\"] }\n[provider.b]\nkind = \"mytoken\"\nserver = \"https://m.eu\"\nprofile = \"kit/x\"\nrestrictions = { usages_AT = 1, hosts = [\"2001:db8::/32\", \"ap1\"] }\n",
            &[
                r#"c.toml:4: provider.a.restrictions.hosts: "10.0.0.0/33" is neither an address, nor a network, nor a host; write it like "192.0.2.7", "192.0.2.0/24" or "ap1.example.org""#,
                "c.toml:5: provider.b.restrictions: are asked for beside `profile`, whose end would not hold for them; set `lifetime`, too, or leave the restrictions to the profile",
            ],
        ),
    ];
    for (text, expected) in table {
        assert_eq!(&problems(text), expected, "{text}");
    }
}

#[test]
fn a_syntax_error_names_its_line_and_quotes_nothing_of_it() {
    let found = problems("[provider.a]\nclient_secret = canary-5f1d\n").join("\n");
    assert!(found.starts_with("c.toml:2: not TOML: "), "{found}");
    assert!(!found.contains(CANARY), "{found}");
}

#[test]
fn a_missing_file_says_what_to_do() {
    let found = load_files(&["/nonexistent/e.toml".into()], &sources(), &Knobs::default()).unwrap_err();
    assert_eq!(
        report(&found).to_string(),
        "1 problem in the configuration\n  /nonexistent/e.toml: cannot be read: No such file or directory; \
         write it (docs/examples/evercred.toml is a start) or name another with --config\n\
         What to do: correct the lines above, then run `evercred check`\n"
    );
}

#[test]
fn a_later_file_wins_key_by_key_and_keeps_its_own_line_in_messages() {
    let dir = tempfile::tempdir().unwrap();
    let main = write(&dir, "evercred.toml", &format!("[daemon]\ncourier_user = \"one\"\n{GOOD}max_in_flight = 3\n"));
    fs::create_dir(dir.path().join("conf.d")).unwrap();
    write(&dir, "conf.d/20-b.toml", "[provider.a]\nmax_per_second = 9\nmax_in_flight = 5\n");
    write(&dir, "conf.d/10-a.toml", "[daemon]\ncourier_user = \"two\"\n[provider.a]\nmax_in_flight = 4\n");
    write(&dir, "conf.d/README", "not read");
    let files = files(&main, &dir.path().join("conf.d")).unwrap();
    let settings = load_files(&files, &sources(), &Knobs::default()).unwrap();
    let a = &settings.providers[0];
    assert_eq!((a.max_in_flight, a.max_per_second, settings.daemon.courier_user.as_str()), (5, 9, "two"));

    write(&dir, "conf.d/20-b.toml", "\n[provider.a]\nmax_in_flight = -1\n");
    let found = load_files(&files, &sources(), &Knobs::default()).unwrap_err();
    let found = found[0].to_string();
    assert!(found.ends_with("conf.d/20-b.toml:3: provider.a.max_in_flight: -1 is out of range; use 1 to 10000"));
}

#[test]
fn the_credential_directory_comes_from_the_command_line_then_the_file_then_htcondor() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(&dir, "c.toml", &format!("{GOOD}[daemon]\ncredential_directory = \"/file\"\n"));
    let knobs = Knobs { credential_directory: Some("/condor".into()), ..Knobs::default() };
    let directory = |file: &Path, sources: &Sources, knobs: &Knobs| {
        load_files(&[file.to_owned()], sources, knobs).map(|s| s.daemon.credential_directory)
    };
    assert_eq!(directory(&file, &sources(), &knobs).unwrap(), Path::new("/creds"));
    assert_eq!(directory(&file, &Sources::default(), &knobs).unwrap(), Path::new("/file"));
    let file = write(&dir, "d.toml", GOOD);
    assert_eq!(directory(&file, &Sources::default(), &knobs).unwrap(), Path::new("/condor"));
    let found = directory(&file, &Sources::default(), &Knobs::default()).unwrap_err();
    assert_eq!(found[0].key, "daemon.credential_directory");
}

#[test]
fn a_secret_file_is_judged_and_its_newline_stripped() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[provider.a]\nkind = \"oauth2\"\nissuer = \"http://127.0.0.1:1/\"\nclient_id = \"x\"\nclient_secret_file = \"DIR/secret\"\n";
    let first = |dir: &TempDir| problems_in(dir, text)[0].clone();
    let key = "c.toml:5: provider.a.client_secret_file: ";
    assert_eq!(
        first(&dir),
        format!("{key}secret cannot be read: No such file or directory; create it with mode 0600, or correct the path")
    );
    let secret = write(&dir, "secret", "canary-5f1d\n");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(first(&dir), format!("{key}secret is open to others (mode 0640); run `chmod 600 secret`"));
    write(&dir, "secret", "\n");
    assert_eq!(first(&dir), format!("{key}secret is empty; write the secret into it"));
    write(&dir, "secret", "canary-5f1d\nmore\n");
    let found = first(&dir);
    assert!(found.contains("holds more than a secret") && !found.contains(CANARY), "{found}");
    fs::remove_file(&secret).unwrap();
    fs::create_dir(&secret).unwrap();
    assert!(first(&dir).contains("secret is not a regular file"));
    fs::remove_dir(&secret).unwrap();

    write(&dir, "secret", "canary-5f1d\n");
    let file = write(&dir, "c.toml", &text.replace("DIR", &dir.path().display().to_string()));
    let settings = load_files(&[file], &sources(), &Knobs::default()).unwrap();
    assert!(!format!("{settings:?}").contains(CANARY));
    let ProviderKind::OAuth2(oauth2) = &settings.providers[0].kind else { panic!("oauth2") };
    assert_eq!(oauth2.client_secret.as_ref().unwrap().expose(), CANARY);
}

const OWN: &str = "[provider.panda]\nkind = \"client-credentials\"\nissuer = \"https://i.example.org/\"\nclient_id = \"c\"\n\
                   client_secret_file = \"DIR/secret\"\n";

#[test]
fn every_mistake_with_a_clients_own_tokens_has_its_message() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "secret", CANARY);
    let advice = r#"name the accounts that get the tokens, like ["harvester"]"#;
    let users = "users = [\"harvester\"]\n";
    let table: &[(String, Vec<String>)] = &[
        (OWN.to_owned(), vec![format!("c.toml:1: provider.panda.users: is missing; {advice}")]),
        (
            "[provider.panda]\nkind = \"client-credentials\"\nclient_id = \"c\"\nusers = []\n".to_owned(),
            vec![
                "c.toml:1: provider.panda.issuer: neither `issuer` nor `token_endpoint` is set; set `issuer` (endpoints by discovery), or `token_endpoint`".to_owned(),
                "c.toml:1: provider.panda.client_secret_file: is missing; name a file of mode 0600 with the client's secret alone: a client without one cannot ask for itself".to_owned(),
                format!("c.toml:4: provider.panda.users: is empty; {advice}"),
            ],
        ),
        (
            format!("{OWN}users = [\"har/vester\"]\n"),
            vec![
                r#"c.toml:6: provider.panda.users: "har/vester" is not a name: letters, digits and - + = _ . only, not empty, no dot in front; name an account of this host"#.to_owned(),
            ],
        ),
        (
            format!("{OWN}{users}audience = \"a\"\naudiences = {{ ce1 = \"ce1:9619\" }}\n"),
            vec![
                "c.toml:1: provider.panda.audience: is set, and so is `audiences`, which each have their own; remove one of them".to_owned(),
            ],
        ),
        (
            format!("{OWN}{users}audiences = {{ ce1 = [] }}\n"),
            vec![
                r#"c.toml:7: provider.panda.audiences: ce1 has no audience; write it as { HANDLE = "ce1.example.org:9619" }"#.to_owned(),
            ],
        ),
        (
            format!("{OWN}{users}audiences = \"ce1\"\n"),
            vec![
                r#"c.toml:7: provider.panda.audiences: is a string, not a table; write it as { HANDLE = "ce1.example.org:9619" }"#.to_owned(),
            ],
        ),
        (
            format!("{OWN}{users}revoke_at_end = true\nlogin_client_id = \"l\"\nlogin_scopes = \"s\"\nrenew_default = \"yes\"\n"),
            vec![
                r#"c.toml:7: provider.panda.revoke_at_end: has no meaning with kind = "client-credentials": there is neither an approval nor a refresh token; remove it"#.to_owned(),
                r#"c.toml:8: provider.panda.login_client_id: belongs to approvals of kind = "oauth2"; remove it"#.to_owned(),
                r#"c.toml:9: provider.panda.login_scopes: belongs to approvals of kind = "oauth2"; remove it"#.to_owned(),
                r#"c.toml:10: provider.panda.renew_default: has no meaning with kind = "client-credentials": there is neither an approval nor a refresh token; remove it"#.to_owned(),
            ],
        ),
        (
            format!("{GOOD}{users}"),
            vec![
                r#"c.toml:4: provider.a.users: belongs to kind = "client-credentials"; remove it: here each user approves"#.to_owned(),
            ],
        ),
    ];
    for (text, expected) in table {
        assert_eq!(&problems_in(&dir, text), expected, "{text}");
    }
}

#[test]
fn a_clients_own_tokens_have_their_accounts_and_the_audience_of_each_handle() {
    let dir = tempfile::tempdir().unwrap();
    let secret = write(&dir, "secret", CANARY);
    let text = OWN.replace("DIR/secret", &secret.display().to_string())
        + "users = [\"harvester\"]\nservices = [\"ce\"]\naudiences = { ce1 = \"ce1:9619\", arc1 = [\"https://arc1\", \"b\"] }\n";
    let provider = settings_of(&text).providers.remove(0);
    assert_eq!((provider.kind.word(), provider.client_secret().unwrap().expose()), ("client-credentials", CANARY));
    assert!(!format!("{provider:?}").contains(CANARY));
    let audience = |handle: &str| provider.audience_of(Some(&crate::core::id::Handle::parse(handle).unwrap())).to_vec();
    assert_eq!((audience("ce1"), audience("arc1")), (vec!["ce1:9619".into()], vec!["https://arc1".into(), "b".into()]));
    // Who may not read the secret knows all the same whose the tokens are.
    fs::remove_file(&secret).unwrap();
    let file = write(&dir, "c.toml", &text);
    let as_user = load_files(&[file], &sources().without_secrets(), &Knobs::default()).unwrap().providers.remove(0);
    assert_eq!(as_user.accounts(), provider.accounts());
    assert!(as_user.client_secret().is_none());
}

#[test]
fn durations_are_words_or_seconds() {
    for (text, secs) in [("\"20s\"", 20), ("\"10m\"", 600), ("\"1h30m\"", 5400), ("\"7d\"", 604_800), ("90", 90)] {
        let settings = settings_of(&format!("{GOOD}default_lifetime = {text}\n"));
        assert_eq!(settings.providers[0].default_lifetime, Duration::from_secs(secs), "{text}");
    }
    for bad in ["", "m", "10", "1.5h", "10 minutes", "99999999999999999999d"] {
        assert_eq!(input::parse_duration(bad), None, "{bad:?}");
    }
}

#[test]
fn the_shipped_example_is_valid_with_its_secrets_in_place() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "wlcg", "canary-5f1d\n");
    let example = include_str!("../../docs/examples/evercred.toml");
    let text = example.replace("/etc/evercred/secrets", &dir.path().display().to_string());
    assert_ne!(text, example);
    let settings = load_files(&[write(&dir, "evercred.toml", &text)], &Sources::default(), &Knobs::default()).unwrap();
    assert_eq!(settings.providers.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["helmholtz", "wlcg"]);
    let can_approve = |provider| approval::obstacle(provider, false).is_none();
    assert!(settings.providers.iter().all(can_approve), "as it stands users can approve");
}

#[test]
fn the_shipped_harvester_example_is_valid_with_its_secrets_in_place() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("panda", CANARY), ("globus", CANARY), ("perlmutter.key", &spool_key())] {
        write(&dir, name, &format!("{text}\n"));
    }
    let example = include_str!("../../docs/examples/harvester.toml");
    let text = example.replace("/etc/evercred/secrets", &dir.path().display().to_string());
    let settings = load_files(&[write(&dir, "c.toml", &text)], &sources(), &Knobs::default()).unwrap();
    let sites: Vec<_> = settings.sites.iter().map(|site| (site.name.as_str(), site.kind.label())).collect();
    let expected = [("harvester-ce", "directory"), ("harvester-panda", "directory"), ("perlmutter", "globus-compute")];
    assert_eq!(sites, expected);
    let user = crate::core::id::UserName::parse("harvester").unwrap();
    let id = crate::core::id::CredentialId::from_base(user, "ce_arc1").unwrap();
    let site = &settings.sites[0];
    assert!(site.rules.want(&id, |_| false) && !settings.sites[1].rules.want(&id, |_| false));
    let names = site.file_name.names(&id, &site.targets).unwrap();
    assert!(names.len() == 2 && names.iter().all(|name| name.len() == 32), "{names:?}");
    // Whatever the submitter looks for, a credential is asked for, and goes there.
    let [ce, panda] = &settings.providers[..] else { panic!("two providers") };
    assert!(ce.accounts().unwrap().name(&id), "of the harvester itself, without an approval");
    let handles: Vec<_> = site.targets.keys().collect();
    assert_eq!(ce.accounts().unwrap().audiences.keys().collect::<Vec<_>>(), handles);
    assert_eq!(panda.accounts().unwrap().users, ["harvester"]);
}

fn spool_key() -> String {
    crate::spool::Seal::generate_key().to_string()
}

#[test]
fn a_ca_file_without_a_certificate_is_found_with_its_line_wherever_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "ca.pem", "none");
    let site = "[site.s]\nkind = \"directory\"\nservices = [\"a\"]\ndirectory = \"/d\"\nfile_name = \"{base}\"\n";
    let notices = "[notices]\nwebhook = \"https://h.example.org/\"\n";
    let ca_file = "ca_file = \"DIR/ca.pem\"\n";
    let text = format!("{GOOD}{ca_file}{site}{ca_file}{notices}{ca_file}");
    let told = |line: u32, key: &str| {
        format!(
            "c.toml:{line}: {key}.ca_file: ca.pem holds no certificate; name a file of PEM certificates (-----BEGIN CERTIFICATE-----)"
        )
    };
    assert_eq!(problems_in(&dir, &text), [told(4, "provider.a"), told(10, "site.s"), told(13, "notices")]);
    // Who may not read it, needs not; it says so when it is needed.
    let file = write(&dir, "c.toml", &text.replace("DIR", &dir.path().display().to_string()));
    let user = Sources { secrets: Secrets::LeaveAlone, ..sources() };
    let settings = load_files(&[file], &user, &Knobs::default()).unwrap();
    let later = settings.providers.first().and_then(|provider| provider.ca_file.as_ref()).unwrap().certificates();
    assert!(later.unwrap_err().contains("holds no certificate"));
}

#[test]
fn steps_of_notices_are_as_configured_and_every_bad_key_has_its_message_and_no_secret_in_it() {
    let policy = |keys: &str| {
        let text = format!("{GOOD}[notices]\nwebhook = \"https://h.example.org/\"\n{keys}");
        settings_of(&text).notices.unwrap().policy
    };
    let hours = |hours: &[u64]| hours.iter().map(|hours| Duration::from_secs(hours * 3600)).collect::<Vec<_>>();
    let usual = policy("");
    assert_eq!((usual.steps, usual.after_failures), (hours(&[168, 48, 6]), 3));
    let own = policy("steps = [\"1h\", \"3d\", \"60m\"]\nafter_failures = 5\n");
    assert_eq!((own.steps, own.after_failures), (hours(&[72, 1]), 5));
    let steps = r#"write it as ["7d", "2d", "6h"]"#;
    let table = [
        ("steps = []", format!("6: notices.steps: is empty; {steps}")),
        ("steps = [\"2d\", \"soon\"]", format!("6: notices.steps: \"soon\" is not a duration; {steps}")),
        ("steps = [\"0s\"]", format!("6: notices.steps: \"0s\" is not a duration; {steps}")),
        ("after_failures = 0", "6: notices.after_failures: 0 is out of range; use 1 to 1000".into()),
        ("admins = [\"root\"]", r#"6: notices.admins: "root" is not a mail address; write it like "name@example.org""#.into()),
        ("mail_to = \"all@example.org\"", r#"6: notices.mail_to: does not hold {user}; write it like "{user}@example.org""#.into()),
        ("smtp = \"smtp://localhost\"\nadmins = [\"a@example.org\"]", "4: notices.mail_from: is missing; set it to the address that mails come from".into()),
        ("sendmail = \"/x\"\nmail_from = \"a@example.org\"", r#"4: notices.mail_to: there is nobody to mail to; set `mail_to` (like "{user}@example.org"), `mail_map` or `admins`"#.into()),
    ];
    let webhook = "webhook = \"https://h.example.org/\"";
    for (keys, message) in table {
        assert_eq!(problems(&format!("{GOOD}[notices]\n{webhook}\n{keys}\n")), [format!("c.toml:{message}")], "{keys}");
    }
    // The one way that is there is wrong: told of that alone, and not of what it holds.
    let files = "secrets are files, never values in the configuration; write it to a file of mode 0600, and name that with the same key and `_file` behind it";
    for (way, message) in [
        (
            format!("smtp = \"smtp://joe:{CANARY}@mail.example.org\""),
            "smtp: holds a user name or password; set `smtp_user` and `smtp_password_file`".to_owned(),
        ),
        (format!("slack_webhook = \"https://hooks.example.org/{CANARY}\""), format!("slack_webhook: {files}")),
        (
            "webhook = \"http://chat.example.org/\"".into(),
            "webhook: is http://, which would send secrets in the clear; use https://".into(),
        ),
    ] {
        assert_eq!(problems(&format!("{GOOD}[notices]\n{way}\n")), [format!("c.toml:5: notices.{message}")], "{way}");
    }
    let none = "c.toml:4: notices: has no way to tell anybody; set `smtp`, `sendmail`, `webhook` or `slack_webhook_file`, or remove the section";
    assert_eq!(problems(&format!("{GOOD}[notices]\nevery = \"1m\"\n")), [none]);
}

#[test]
fn every_bad_site_has_its_message_and_no_secret_in_it() {
    let bad = |text: &str| problems(&format!("{GOOD}[site.s]\n{text}"));
    let table: &[(&str, &str)] = &[
        ("kind = \"sssh\"\n", r#"c.toml:5: site.s.kind: "sssh" is not a kind of site; did you mean "ssh"?"#),
        (
            "kind = \"s3m\"\n",
            r#"c.toml:5: site.s.kind: S3M has no way to write a file, only batch jobs that its own pages call unfit for production; use kind = "globus-compute" or "ssh" for this site"#,
        ),
        (
            "kind = \"directory\"\ndirectory = \"/d\"\n",
            r#"c.toml:4: site.s.services: is missing; name the services whose tokens go there, or "*" for all"#,
        ),
        (
            "kind = \"directory\"\nservices = [\"a\"]\ndirectory = \"/d/../e\"\n",
            "c.toml:7: site.s.directory: is not an absolute path; begin it with /, without . or .. in it",
        ),
        (
            "kind = \"exec\"\nservices = [\"a\"]\ncommand = [\"push\"]\n",
            r#"c.toml:7: site.s.command: does not begin with an absolute path; write it as ["/absolute/program", "argument"]"#,
        ),
        (
            "kind = \"ssh\"\nservices = [\"a\"]\nhost = \"-oProxyCommand=x\"\ndirectory = \"/d\"\n",
            r#"c.toml:7: site.s.host: "-oProxyCommand=x" is not a plain name; use letters, digits and - _ . only"#,
        ),
        (
            "kind = \"directory\"\nservices = [\"a\"]\ndirectory = \"/d\"\nmode = \"0666\"\n",
            r#"c.toml:8: site.s.mode: is not a mode for a token; use "0600", "0400", "0640" or "0440""#,
        ),
        (
            "kind = \"directory\"\nservices = [\"a\"]\ndirectory = \"/d\"\nkey = \"canary-5f1d\"\n",
            "c.toml:8: site.s.key: secrets are files, never values in the configuration; write it to a file of mode 0600, name that with `key_files` or `client_secret_file`",
        ),
        (
            "kind = \"directory\"\nservices = [\"a\"]\ndirectory = \"/d\"\nfile_name = \"{usr}\"\n",
            r#"c.toml:8: site.s.file_name: holds {usr}, which stands for nothing; use plain characters and {user} {service} {handle} {base} {target} {target_md5}, as "{base}""#,
        ),
        (
            "kind = \"directory\"\nservices = [\"a\", \"a_x\"]\ndirectory = \"/d\"\nfile_name = \"t\"\n",
            r#"c.toml:4: site.s.file_name: gives a and a_x the same file there; put {user} or {base} into it, as "{user}_{base}", or into the directory"#,
        ),
        (
            "kind = \"kubernetes\"\nservices = [\"a\"]\nusers = [\"alice\", \"bob\"]\nsecret_name = \"s\"\nfile_name = \"{base}\"\n",
            r#"c.toml:4: site.s.file_name: gives alice/a and bob/a the same file there; put {user} or {base} into it, as "{user}_{base}", or into the directory"#,
        ),
        (
            "kind = \"credd\"\nservices = [\"a\"]\nhost = \"far.example.org\"\n",
            "c.toml:4: site.s.user_domain: is missing; set it to UID_DOMAIN of that credd: its users are USER@UID_DOMAIN (condor_config_val UID_DOMAIN, there)",
        ),
        (
            "kind = \"credd\"\nservices = [\"a\"]\nhost = \"far.example.org\"\nuser_domain = \"alice@far\"\n",
            "c.toml:8: site.s.user_domain: holds an @; write the domain alone",
        ),
        (
            "kind = \"sfapi\"\nservices = [\"a\"]\ndirectory = \"/d\"\ninbox = \"/i\"\nclient_file = \"FILE\"\nkey_files = \"KEY\"\n",
            "c.toml:9: site.s.client_file: FILE holds neither a JWK nor a key in PEM; write what the service's page gave: its JSON, or the id on a line and then the key in PEM",
        ),
        (
            "kind = \"iri\"\nservices = [\"a\"]\ndirectory = \"/d\"\nresource_id = \"cfs\"\nclient_id = \"c\"\nclient_secret_file = \"FILE\"\n",
            "c.toml:4: site.s.scope: is missing: a client that acts as itself asks for one; ask the facility which",
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    let file = write(&dir, "canary", &format!("{CANARY}\n")).display().to_string();
    let key = write(&dir, "key", &spool_key()).display().to_string();
    for (text, expected) in table {
        let told = bad(&text.replace("FILE", &file).replace("KEY", &key));
        assert_eq!(told, [expected.replace("FILE", &file)], "{text}");
    }
}

#[test]
fn htcondor_without_an_answer_is_no_lack_of_anything_and_may_be_over_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(&dir, "c.toml", "[provider.w]\nkind = \"htcondor\"\n");
    let program = write(&dir, "condor_config_val", "#!/bin/sh\necho busy >&2\nexit 1\n");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    let no_answer = || {
        loop {
            match condor::ask_program(&program).unwrap_err() {
                // A fork of another test may hold the file open for writing for a moment.
                busy if busy.to_string().contains("does not start") => {}
                no_answer => return no_answer,
            }
        }
    };
    let no_answer = no_answer();
    let bare = Sources { config: Some(file), ..Sources::default() };
    let knobs = Knobs { program: Some(program), ..Knobs::default() };
    let cases = [
        load_told(&bare, Err(no_answer.clone())),
        load_with(&Sources { unknown: Some(no_answer), ..Sources::default() }, &Knobs::default()),
        load_with(&Sources { credential_directory: Some("/creds".into()), ..bare }, &knobs),
    ];
    for case in cases {
        let problems = case.unwrap_err();
        let report = report(&problems);
        assert_eq!((problems.len(), report.code()), (1, exit::FAILED), "{}", report.line());
        assert!(report.line().contains("condor_config_val fails: busy; see whether this host is overloaded"));
        assert!(!report.line().contains("is given nowhere"), "{}", report.line());
    }
    // Something else that is wrong stays so.
    let problem = |passing| Problem { passing, ..Problem::new(None, "k", "w", "a") };
    assert_eq!(report(&[problem(true), problem(false)]).code(), exit::CONFIG);
}
