//! What the documents say can be typed, can be typed: every command of ours in them is one that the programs take, and
//! every piece of configuration is one that `evercred check` finds good. (docs/installation.md is run to the letter by
//! `tests/packages/ten-minutes`; the rsyslog line by `tests/syslog.rs`; the dashboards' YAML by `tests/dashboards.rs`.)

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use clap::{Parser, error::ErrorKind};
use evercred::{
    cli::{Credmon, Evercred, Storer},
    config::reference::KEYS,
    spool::Seal,
};

/// Every document, with its text.
fn documents() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found =
        vec![root.join("README.md"), root.join("condor-config/README.md"), root.join("docs/dashboards/README.md")];
    found.extend(fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    found.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    found.sort();
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// A block of code: its language, its lines, and the line it begins at.
struct Block {
    language: String,
    lines: Vec<String>,
    at: usize,
}

/// The blocks of code of a document, and the pieces of code within its sentences, each with its line.
fn code(text: &str) -> (Vec<Block>, Vec<(usize, String)>) {
    let (mut blocks, mut pieces, mut open): (Vec<Block>, Vec<_>, Option<Block>) = (Vec::new(), Vec::new(), None);
    for (number, line) in text.lines().enumerate() {
        // Within a list a block stands further in.
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(language), None) => {
                open = Some(Block { language: language.to_owned(), lines: Vec::new(), at: number + 1 });
            }
            (None, Some(block)) => block.lines.push(line.to_owned()),
            (None, None) => pieces.extend(line.split('`').skip(1).step_by(2).map(|code| (number + 1, code.to_owned()))),
        }
    }
    (blocks, pieces)
}

/// The commands of ours in a line of shell, without prompts, pipes and redirections.
fn commands(line: &str) -> Vec<Vec<String>> {
    let line = line.split(" # ").next().unwrap_or_default();
    let line = line.trim_start_matches(['$', '#', ' ']).replace("until ", "").replace("sudo ", "");
    let simple = line.split(['|', ';', '&']).map(|command| {
        let words = command.split_whitespace().take_while(|word| !word.starts_with(['<', '>']) && !word.ends_with('>'));
        // What may be left out is there.
        words.map(|word| word.trim_matches(['[', ']']).trim_matches('"').to_owned()).collect::<Vec<_>>()
    });
    simple.filter(|words| words.first().is_some_and(|program| ours(program))).collect()
}

fn ours(program: &str) -> bool {
    matches!(program, "evercred" | "evercred_storer" | "condor_credmon_evercred")
}

#[test]
fn every_command_in_the_documents_is_one_that_the_programs_take() {
    let mut seen = 0;
    for (path, text) in documents() {
        let (blocks, pieces) = code(&text);
        let shell = blocks.into_iter().filter(|block| matches!(block.language.as_str(), "sh" | "console" | ""));
        let lines = shell
            .flat_map(|block| block.lines.into_iter().enumerate().map(move |(n, line)| (block.at + 1 + n, line)))
            .filter(|(_, line)| !line.trim_start().contains("   "));
        // In a sentence, `evercred login` is the name of what takes more words.
        let lines = lines.map(|line| (line, false)).chain(pieces.into_iter().map(|piece| (piece, true)));
        for ((number, line), named) in lines {
            for mut words in commands(&line).into_iter().filter(|words| words.len() > 1) {
                if named && words.len() == 2 {
                    words.push("--help".to_owned());
                }
                let parsed = match words[0].as_str() {
                    "evercred" => Evercred::try_parse_from(&words).map(drop),
                    "evercred_storer" => Storer::try_parse_from(&words).map(drop),
                    _ => Credmon::try_parse_from(&words).map(drop),
                };
                // Help was asked for; or, in a sentence, an option is named without its value.
                let incomplete = |kind| matches!(kind, ErrorKind::MissingRequiredArgument | ErrorKind::InvalidValue);
                let shows = |error: &clap::Error| error.exit_code() == 0 || (named && incomplete(error.kind()));
                assert!(
                    parsed.as_ref().is_ok_and(|()| true) || parsed.as_ref().is_err_and(shows),
                    "{}:{number}: {words:?}: {}",
                    path.display(),
                    parsed.unwrap_err()
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 40, "only {seen} commands were found");
}

#[test]
fn every_key_of_harvesters_token_managers_is_mapped_or_named_as_not_needed() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/replication.md")).unwrap();
    let (_, section) = page.split_once("## From Harvester's token managers").unwrap();
    let keys: String =
        section.lines().filter(|line| line.starts_with("| ")).filter_map(|line| line.split(" | ").next()).collect();
    for key in "pluginConfigs module name configs setup_name moduleName className credmanagers queueName sleepTime inFile \
                client_cred_file issuer client_id client_secret client_credentials audience scope target_type target_list \
                target_list_file out_dir panda_token_filename lifetime update_ts_path check_interval refresh_interval \
                pandaURLSSL ce_endpoint ce_flavour remote_out_dir endpoint_id local_key_file remote_key_file task_timeout \
                GLOBUS_COMPUTE_CLIENT_ID GLOBUS_COMPUTE_CLIENT_SECRET tokenDir tokenDirAnalysis tokenName tokenOrigin \
                pandaTokenDir pandaTokenFilename pandaTokenKeyPath cred_dir lifetime_days k8s_config_file proxy_files \
                secret_name token_key_file client_name inCertFile outCertFile certFile voms key cert genFromKeyCert \
                checkPeriod renewCommand extraRenewOpts lifetimeOptFormat"
        .split_whitespace()
    {
        let named = [format!("`{key}`"), format!("`{key} "), format!(".{key}`")];
        assert!(named.iter().any(|named| keys.contains(named)), "{key}");
    }
}

/// `evercred check` finds this file good.
fn checks(file: &Path, from: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_evercred"))
        .args(["check".as_ref(), "--config".as_ref(), file.as_os_str()])
        .env_clear()
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{from}: {told}\n{}", fs::read_to_string(file).unwrap());
    assert!(!told.contains("canary-77aa") && !told.contains("warning: "), "{from}: {told}");
}

/// `key = value` in a comment, where the value is one of TOML.
fn assignments(comment: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (at, _) in comment.match_indices(" = ") {
        let key = comment[..at].rsplit(|c: char| !c.is_ascii_lowercase() && c != '_').next().unwrap();
        let rest = &comment[at + 3..];
        let value = match rest.strip_prefix('"') {
            Some(text) => text.split_once('"').map(|(text, _)| format!("\"{text}\"")),
            None => rest.split_whitespace().next().map(str::to_owned),
        };
        let value = value.filter(|value| value.starts_with('"') || ["true", "false"].contains(&value.as_str()));
        found.extend(value.filter(|_| !key.is_empty()).map(|value| (key.to_owned(), value)));
    }
    found
}

#[test]
fn what_htcondors_snippets_say_of_evercreds_configuration_is_good() {
    let dir = tempfile::tempdir().unwrap();
    let (etc, file) = (dir.path().join("etc"), dir.path().join("evercred.toml"));
    let known = |table: &str, key: &str| KEYS.iter().any(|k| k.table.starts_with(table) && k.key == key);
    let (mut providers, mut keys) = (0, 0);
    for path in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("condor-config")).unwrap() {
        let path = path.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "conf") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let comments: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix('#')).collect();
        let comment = comments.join("\n");
        // Services that are ours (or a neighbour's storer's), and tables that are named.
        let lists = text
            .lines()
            .filter_map(|line| line.trim_start_matches(['#', ' ']).strip_prefix("VAULT_CREDMON_PROVIDER_NAMES = "));
        let mut names: Vec<&str> =
            lists.flat_map(|list| list.split([',', ' '])).filter(|name| !name.is_empty()).collect();
        names.extend(comment.split("[provider.").skip(1).filter_map(|rest| rest.split(']').next()));
        names.sort_unstable();
        names.dedup();
        names.retain(|name| *name != "…");
        let mut daemon = format!("[daemon]\ncredential_directory = \"{}\"\n", dir.path().display());
        let mut provider = String::new();
        for (key, value) in assignments(&comment) {
            let value = match key.as_str() {
                "server" | "issuer" | "token_endpoint" => value.replace('…', "https://a.example.org/"),
                "client_id" => value.replace('…', "c"),
                "fernet_key_file" => format!("\"{}\"", etc.join("a.key").display()),
                "client_secret_file" => format!("\"{}\"", etc.join("secret").display()),
                _ => value,
            };
            for named in value.trim_matches('"').lines().map(Path::new).filter(|named| named.starts_with(&etc)) {
                secret(named);
            }
            let table = if known("[daemon]", &key) { &mut daemon } else { &mut provider };
            assert!(known("[daemon]", &key) || known("[provider.NAME]", &key), "{}: {key}", path.display());
            if !table.contains(&format!("{key} = ")) {
                writeln!(table, "{key} = {value}").unwrap();
                keys += 1;
            }
        }
        if !provider.contains("kind = ") {
            provider
                .push_str("kind = \"mytoken\"\nserver = \"https://mytok.eu\"\nissuer = \"https://a.example.org/\"\n");
        }
        if names.is_empty() {
            names.push("of-the-test");
        }
        for name in names {
            write!(daemon, "[provider.{name}]\n{provider}").unwrap();
            providers += 1;
        }
        fs::write(&file, &daemon).unwrap();
        checks(&file, &path.display().to_string());
    }
    assert!(providers > 15 && keys > 10, "only {providers} providers and {keys} keys were found");
}

/// A file of a secret that the configuration names.
fn secret(path: &Path) {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path.parent().unwrap()).unwrap();
    let content = match path.extension().and_then(|extension| extension.to_str()) {
        Some("key") => Seal::generate_key().to_string(),
        Some("json") => {
            format!("client-77aa\n{}", rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap().serialize_pem())
        }
        _ => "canary-77aa".to_owned(),
    };
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    std::io::Write::write_all(&mut file, content.as_bytes()).unwrap();
}

/// As certbot leaves them.
fn certificate(dir: &Path) {
    let key = rcgen::KeyPair::generate().unwrap();
    let signed = rcgen::CertificateParams::new(vec!["submit.example.org".into()]).unwrap().self_signed(&key).unwrap();
    fs::write(dir.join("fullchain.pem"), signed.pem()).unwrap();
    let path = dir.join("privkey.pem");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(key.serialize_pem().as_bytes()).unwrap();
}

#[test]
fn every_piece_of_configuration_in_the_documents_is_good() {
    const PROVIDER: &str = "\n[provider.of-the-test]\nkind = \"mytoken\"\nserver = \"https://mytok.eu\"\nissuer = \"https://a.example.org/\"\n";
    let dir = tempfile::tempdir().unwrap();
    let etc = dir.path().join("etc");
    let mut seen = String::new();
    for (path, text) in documents() {
        for block in code(&text).0.into_iter().filter(|block| block.language == "toml") {
            let lines: Vec<&str> = block.lines.iter().map(|line| line.trim_start()).collect();
            let mut text = (lines.join("\n") + "\n").replace("/etc/evercred", &etc.display().to_string());
            if text.contains("/etc/letsencrypt/live/submit.example.org") {
                text = text.replace("/etc/letsencrypt/live/submit.example.org", &dir.path().display().to_string());
                certificate(dir.path());
            }
            for named in text.split('"').skip(1).step_by(2).map(Path::new).filter(|named| named.starts_with(&etc)) {
                secret(named);
            }
            let spool = dir.path().join("spool");
            fs::create_dir_all(&spool).unwrap();
            let known = format!("credential_directory = \"{}\"\n", spool.display());
            text = if let Some((before, after)) = text.split_once("[daemon]\n") {
                format!("{before}[daemon]\n{known}{after}")
            } else {
                format!("[daemon]\n{known}{text}")
            };
            if !text.contains("[provider.") {
                text.push_str(PROVIDER);
            }
            let file = dir.path().join("evercred.toml");
            fs::write(&file, &text).unwrap();
            checks(&file, &format!("{}:{}", path.display(), block.at));
            seen.push_str(&text);
        }
    }
    for kind in ["mytoken", "oauth2", "client-credentials", "directory", "credd", "sfapi", "iri", "kubernetes"] {
        assert!(seen.contains(&format!("kind = \"{kind}\"")), "no example of {kind}");
    }
}
