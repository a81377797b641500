//! What the documents say can be typed, can be typed: every command of ours in them is one that the programs take, every
//! block of commands names the test that runs it, and every piece of configuration is one that `evercred check` finds
//! good.
//!
//! Behind the fence of a block of commands (`sh`, `console`, `python`) stands `test=PATH`: a file below tests/ that reads
//! the commands out of the document, which it then names, or has them itself. What no test here can run stands in
//! [`NOT_RUN`], with the reason, and says `unrun=WHY` instead. The other languages are no commands: `text` is what is shown,
//! `toml` goes through `evercred check` here.

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

mod documents;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    process::Command,
};

use clap::{Parser, error::ErrorKind};
use evercred::{
    cli::{Credmon, Evercred, Storer},
    config::reference::KEYS,
    spool::Seal,
};

use self::documents::{Block, all, code, read, root};

/// What no test can run here, and why.
const NOT_RUN: &[(&str, &str)] = &[
    ("el", "dnf needs an EL or Fedora host, with HTCondor's packages from its own repository"),
    ("person", "it waits for a person at a browser; tests/pool/e2e-storer has one, with jobs of its own"),
    ("self", "tests/run is what runs the tests"),
];

/// Blocks of pages that other tests read by their fences, which must stay as they are: the page, the language, the first
/// words, and the mark that would stand there.
const MARKED_HERE: &[(&str, &str, &str, &str)] = &[
    ("docs/installation.md", "console", "# dnf install", "unrun=el"),
    ("docs/installation.md", "console", "$ cat first.sub", "unrun=person"),
    ("docs/installation.md", "console", "$ evercred status", "test=tests/pool/e2e-storer"),
    ("docs/installation.md", "sh", "rpm/build", "test=tests/packages/build"),
    ("docs/installation.md", "sh", "", "test=tests/packages/ten-minutes"),
];

/// Tests that take the blocks of a page out of it, and run them as they stand.
const TAKEN_OUT: &[(&str, &str)] = &[
    ("tests/packages/ten-minutes", "docs/installation.md"),
    ("tests/packages/build", "docs/installation.md"),
    ("tests/in_the_job.rs", "docs/in-the-job.md"),
    ("tests/pool/e2e-storer", "docs/admin-guide.md"),
];

/// The languages of blocks that hold no commands.
const NO_COMMANDS: &[&str] = &["text", "json", "toml", "yaml", "ini", "condor", "apache", "nginx", "ssh"];

/// The mark of a block of commands, as `test` or `unrun` and its value.
fn mark(page: &str, block: &Block) -> Option<(String, String)> {
    let first = block.lines.first().map_or("", String::as_str);
    let here = MARKED_HERE
        .iter()
        .find(|(p, language, start, _)| *p == page && *language == block.language && first.starts_with(start));
    let split = |mark: &str| mark.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    let own = ["test", "unrun"].iter().find_map(|key| Some(((*key).to_owned(), block.mark(key)?.to_owned())));
    own.or_else(|| here.and_then(|(.., mark)| split(mark)))
}

/// The lines of a block that are typed, without prompts; what is shown or stands in a here-document is left out.
fn typed(block: &Block) -> Vec<String> {
    let mut until = None;
    let mut found: Vec<String> = Vec::new();
    for line in &block.lines {
        if until.as_deref() == Some(line.trim()) {
            until = None;
            continue;
        }
        if until.is_some() || line.trim().is_empty() {
            continue;
        }
        let line = match (block.language.as_str(), line.strip_prefix("$ ").or(line.strip_prefix("# "))) {
            ("console", Some(line)) => line,
            ("console", None) => continue,
            _ => line,
        };
        until = line.split_once("<<").map(|(_, mark)| mark.trim_start_matches('-').trim_matches('\'').to_owned());
        found.push(line.split(" # ").next().unwrap().trim().to_owned());
    }
    found
}

/// What a test that runs this command must hold: its words up to the first that stands for something, and its options.
fn signature(command: &str) -> Vec<String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    // A submit file has the name that its user gives it.
    let stands = |word: &&&str| {
        word.contains(['<', '>', '$', '|', '"', '*', '['])
            || word.chars().any(char::is_uppercase)
            || Path::new(word).extension().is_some_and(|extension| extension == "sub")
    };
    let fixed = words.iter().take_while(|word| !stands(word)).copied().collect::<Vec<_>>().join(" ");
    let options = words.iter().filter(|word| word.starts_with("--") && word.len() > 2).map(|word| (*word).to_owned());
    [fixed].into_iter().chain(options).filter(|part| !part.is_empty()).collect()
}

#[test]
fn every_block_of_commands_is_run_by_a_test_or_says_why_not() {
    let (mut seen, mut unrun) = (0, BTreeSet::new());
    for (path, text) in all() {
        let page = path.to_str().unwrap().to_owned();
        for block in code(&text).0 {
            let at = format!("{page}:{}", block.at);
            let is_shown = block.language == "text";
            assert!(
                !is_shown || block.lines.iter().all(|line| !line.starts_with("$ ")),
                "{at}: commands are `console`"
            );
            if NO_COMMANDS.contains(&block.language.as_str()) {
                continue;
            }
            assert!(["sh", "console", "python"].contains(&block.language.as_str()), "{at}: of which language is it?");
            let commands = typed(&block);
            assert!(!commands.is_empty(), "{at}: no command in it");
            seen += commands.len();
            let Some((kind, value)) = mark(&page, &block) else { panic!("{at}: no test is named that runs it") };
            if kind == "unrun" {
                assert!(NOT_RUN.iter().any(|(name, _)| *name == value), "{at}: {value:?} is no reason");
                unrun.insert(value);
                continue;
            }
            let test = fs::read_to_string(root().join(&value)).unwrap_or_else(|e| panic!("{at}: {value}: {e}"));
            if TAKEN_OUT.contains(&(value.as_str(), page.as_str())) {
                assert!(test.contains(&page), "{at}: {value} does not read it");
                continue;
            }
            for command in &commands {
                for part in signature(command) {
                    assert!(test.contains(&part), "{at}: {value} does not run {part:?}");
                }
            }
        }
    }
    assert!(seen > 30, "only {seen} commands were found");
    assert_eq!(unrun.len(), NOT_RUN.len(), "a reason that nothing has any more");
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
    for (path, text) in all() {
        let (blocks, pieces) = code(&text);
        let lines = blocks
            .iter()
            .filter(|block| ["sh", "console"].contains(&block.language.as_str()))
            .flat_map(|block| typed(block).into_iter().map(|line| (block.at, line)).collect::<Vec<_>>());
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
fn every_script_of_the_pool_has_a_line_among_the_versions_of_htcondor() {
    let page = read(Path::new("docs/htcondor-versions.md"));
    let scripts = fs::read_dir(root().join("tests/pool")).unwrap().map(|entry| entry.unwrap().file_name());
    let names = scripts.map(|name| name.into_string().unwrap());
    let mut seen = 0;
    for name in names.filter(|name| name.starts_with("e2e") && !name.contains('.')) {
        assert!(page.contains(&format!("\n| `{name}`")), "{name}");
        seen += 1;
    }
    assert!(seen >= 9, "{seen}");
}

#[test]
fn every_key_of_harvesters_token_managers_is_mapped_or_named_as_not_needed() {
    let page = read(Path::new("docs/replication.md"));
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
    for path in fs::read_dir(root().join("condor-config")).unwrap() {
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
    for (path, text) in all() {
        for block in code(&text).0.into_iter().filter(|block| block.language == "toml") {
            let mut text = block.text().replace("/etc/evercred", &etc.display().to_string());
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
