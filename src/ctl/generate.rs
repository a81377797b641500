//! `evercred generate DIR` (hidden): man pages and completions from the command lines' definitions, pages of
//! configuration keys and error kinds from the tables in the program, so that none of them can differ from what it
//! does. `man/` and a part of `docs/` are made by it, below `DIR`; a test compares.

use std::{fmt::Write as _, fs, io, path::Path, process::ExitCode};

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};

use crate::{
    advice, cli,
    config::reference,
    error::{Report, exit},
};

/// Write everything below `DIR`, the root of the repository.
#[must_use]
pub fn run(args: &cli::Generate) -> ExitCode {
    match write(&args.directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => Report::new(format!("{}: {e}", args.directory.display()), exit::FAILED)
            .advise("name a directory that this user may write to")
            .print("evercred"),
    }
}

fn write(root: &Path) -> io::Result<()> {
    let docs = root.join("docs");
    fs::create_dir_all(&docs)?;
    for (name, text) in [("configuration.md", reference::page()), ("error-kinds.md", advice::page())] {
        fs::write(docs.join(name), text)?;
    }
    man_pages(&root.join("man"))
}

fn man_pages(man: &Path) -> io::Result<()> {
    let completions = man.join("completions");
    fs::create_dir_all(&completions)?;
    let mut evercred = cli::Evercred::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut evercred, "evercred", &completions)?;
    }
    pages(man, cli::Evercred::command())?;
    page(man, cli::Storer::command(), "8")?;
    page(man, cli::Credmon::command(), "8")?;
    fs::write(man.join("evercred.toml.5"), configuration_page())
}

/// A page for the command, called as its words with - between them, and for each of its subcommands.
fn pages(man: &Path, command: Command) -> io::Result<()> {
    let command = command.disable_help_subcommand(true);
    let words = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let words = format!("{words} {}", sub.get_name());
        // Names live as long as the program in clap; there are a dozen of them.
        let name: &'static str = Box::leak(words.replace(' ', "-").into_boxed_str());
        pages(man, sub.clone().name(name).display_name(name).bin_name(words))?;
    }
    page(man, command, "1")
}

/// Commands that show what a page is about; a test parses each.
const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    (
        "condor_credmon_evercred",
        &[
            ("condor_credmon_evercred --foreground --log stderr", "Look over its shoulder, while no other one runs."),
            ("condor_credmon_evercred --once", "Renew what is due, and end."),
        ],
    ),
    (
        "evercred_storer",
        &[("evercred_storer 'helmholtz&handle=eu&scopes=storage.read:/'", "What condor_submit runs for one request.")],
    ),
    (
        "evercred",
        &[
            ("evercred status", "How do my credentials stand?"),
            ("evercred login helmholtz", "Approve now what the next submit would ask for."),
            ("evercred demo --yes", "See it work, without root or HTCondor."),
        ],
    ),
    (
        "evercred-status",
        &[
            ("evercred status", "All that this user may see."),
            ("evercred status alice/helmholtz --json", "One credential, for a script (root)."),
        ],
    ),
    (
        "evercred-login",
        &[
            ("evercred login helmholtz", "Before a long DAG, which cannot ask."),
            ("evercred login wlcg_read --scopes storage.read:/ --renew", "Anew, although the old one lives."),
        ],
    ),
    ("evercred-upload", &[("evercred upload helmholtz < token", "Store the token in the file token.")]),
    (
        "evercred-import",
        &[
            ("evercred import stock", "What would become of the stock OAuth credmon's users?"),
            ("evercred import kit --key /etc/condor/encryption.d/key", "And of the KIT credmon's?"),
        ],
    ),
    (
        "evercred-import-stock",
        &[
            ("evercred import stock", "Tell."),
            ("evercred import stock --write /etc/evercred/conf.d/stock.toml", "Write; then: evercred check."),
        ],
    ),
    (
        "evercred-import-kit",
        &[
            ("evercred import kit --key /etc/condor/encryption.d/key", "Tell."),
            ("evercred import kit --key /etc/condor/encryption.d/key --apply", "Do it."),
        ],
    ),
    ("evercred-check", &[("evercred check && condor_reconfig", "Take a change into use, if it is good.")]),
    (
        "evercred-doctor",
        &[
            ("evercred doctor", "After an installation, and when something is wrong."),
            ("evercred doctor --json", "For monitoring."),
        ],
    ),
    ("evercred-renew", &[("evercred renew alice/helmholtz", "Also if it is parked.")]),
    ("evercred-revoke", &[("evercred revoke alice/helmholtz", "Her laptop was stolen.")]),
    (
        "evercred-needs-renewal",
        &[(
            "evercred needs-renewal helmholtz --min 2d || evercred login helmholtz --renew",
            "In a script, before a long run.",
        )],
    ),
    ("evercred-list", &[("evercred list --expiring 7d", "Whose approvals end within a week?")]),
    (
        "evercred-replicate",
        &[
            ("evercred replicate", "What do the sites have?"),
            ("evercred replicate --site perlmutter --now", "Send everything there again."),
        ],
    ),
    (
        "evercred-keygen",
        &[("evercred keygen /etc/evercred/secrets/site.key", "A new key, which the far end needs, too.")],
    ),
    (
        "evercred-receive",
        &[(
            "evercred receive --directory /data/tokens --key-file /data/.evercred-key",
            "What ssh runs at the far end, as a forced command.",
        )],
    ),
    ("evercred-explain", &[("evercred explain revoked", "What does this word mean, and what is to be done?")]),
    ("evercred-demo", &[("evercred demo", "Watch for half a minute; approve dave's request in a browser.")]),
];

const CONFIG: (&str, &str) = (
    "/etc/evercred/evercred.toml, /etc/evercred/conf.d/*.toml",
    "Configuration; the latter in the order of their names: evercred.toml(5).",
);
const STATUS: (&str, &str) = ("/run/evercred/status.sock", "Where the daemon is asked.");
const CONTROL: (&str, &str) = ("/run/evercred/control.sock", "Where root gives orders.");
const CREDENTIALS: (&str, &str) =
    ("/var/lib/condor/oauth_credentials", "HTCondor's SEC_CREDENTIAL_DIRECTORY_OAUTH: a directory for each user.");
const STATE: (&str, &str) = ("/var/lib/evercred", "Which notices were sent.");

fn files(name: &str) -> &'static [(&'static str, &'static str)] {
    match name.strip_prefix("evercred-").unwrap_or(name) {
        "condor_credmon_evercred" => &[CONFIG, CREDENTIALS, STATUS, CONTROL, STATE],
        "evercred" | "doctor" => &[CONFIG, CREDENTIALS, STATUS],
        "import-stock" => &[CONFIG, CREDENTIALS],
        "evercred_storer" | "login" | "upload" | "import" | "import-kit" | "check" => &[CONFIG],
        "status" | "list" | "needs-renewal" => &[STATUS],
        "renew" | "revoke" | "replicate" => &[STATUS, CONTROL],
        _ => &[],
    }
}

/// The day of this version, as the spec's changelog has it.
fn date() -> String {
    let spec = include_str!("../../rpm/evercred.spec");
    let newest = spec.lines().skip_while(|line| *line != "%changelog").find_map(|line| line.strip_prefix("* "));
    let day: String = newest.unwrap_or_default().split_whitespace().take(4).collect::<Vec<_>>().join(" ");
    jiff::civil::Date::strptime("%a %b %d %Y", &day).map_or(day, |date| date.to_string())
}

const SOURCE: &str = concat!("evercred ", env!("CARGO_PKG_VERSION"));

fn page(directory: &Path, command: Command, section: &str) -> io::Result<()> {
    let name = command.get_name().to_owned();
    let others: Vec<String> =
        command.get_subcommands().filter(|sub| !sub.is_hide_set()).map(|sub| sub.get_name().to_owned()).collect();
    let man = clap_mangen::Man::new(command).title(name.to_uppercase()).section(section);
    let mut text = Vec::new();
    man.date(date()).source(SOURCE).manual("evercred").render(&mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    // The version is in the footer.
    let text = text.split(".SH VERSION\n").next().unwrap_or_default();
    let (body, extra) = text.split_once(".SH EXTRA\n").unwrap_or((text, ""));
    let lines = body.lines().map(str::trim_end);
    let mut body: String = lines.flat_map(|line| [line, "\n"]).collect();
    let parts =
        [("", "NOTES"), ("Environment: ", "ENVIRONMENT"), ("Signals: ", "SIGNALS"), ("Exit status: ", "EXIT STATUS")];
    for (prefix, heading) in parts {
        let of = |paragraph: &&str| parts.iter().rev().find(|(p, _)| paragraph.starts_with(p)).map(|(p, _)| *p);
        let own = extra.trim().split("\n\n").filter(|paragraph| of(paragraph) == Some(prefix) && !paragraph.is_empty());
        let own: Vec<String> = own.map(|paragraph| capital(paragraph.trim_start_matches(prefix))).collect();
        if !own.is_empty() {
            // Writing to a string does not fail.
            write!(body, ".SH \"{heading}\"\n{}\n", own.join("\n.PP\n")).ok();
        }
        if prefix == "Environment: " {
            body.push_str(&list("FILES", files(&name).iter().map(|(path, what)| (*path, *what))));
        }
    }
    let examples = EXAMPLES.iter().filter(|(page, _)| *page == name).flat_map(|(_, examples)| *examples);
    body.push_str(&list("EXAMPLES", examples.copied()));
    body.push_str(&see_also(&name, &others));
    fs::write(directory.join(format!("{name}.{section}")), body)
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// A section of terms, each with what it means; nothing if there is none.
fn list<'a>(heading: &str, terms: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (term, meaning) in terms {
        write!(text, ".TP\n\\fB{}\\fR\n{}\n", roff(term), roff(meaning)).ok();
    }
    if text.is_empty() { text } else { format!(".SH {heading}\n{text}") }
}

fn see_also(name: &str, subcommands: &[String]) -> String {
    let mut pages: Vec<String> = Vec::new();
    if let Some((parent, _)) = name.rsplit_once("import-").filter(|(before, _)| *before == "evercred-") {
        pages.push(format!("{parent}import(1)"));
    }
    if name != "evercred" {
        pages.push("evercred(1)".to_owned());
    }
    pages.extend(subcommands.iter().map(|sub| {
        let words = if sub.starts_with("evercred-") { sub.clone() } else { format!("{name}-{sub}") };
        format!("{words}(1)")
    }));
    for page in [
        "evercred.toml(5)",
        "condor_credmon_evercred(8)",
        "evercred_storer(8)",
        "condor_submit(1)",
        "condor_store_cred(1)",
    ] {
        if !page.starts_with(&format!("{name}(")) {
            pages.push(page.to_owned());
        }
    }
    format!(".SH \"SEE ALSO\"\n{}\n", pages.iter().map(|page| roff(page)).collect::<Vec<_>>().join(",\n"))
}

/// evercred.toml(5), from the table of keys.
fn configuration_page() -> String {
    let mut text = format!(
        ".TH EVERCRED.TOML 5 {} \"{SOURCE}\" evercred\n.SH NAME\nevercred.toml \\- configuration of evercred\n.SH DESCRIPTION\n",
        date()
    );
    let paragraphs = reference::INTRODUCTION.map(markdown);
    writeln!(text, "{}", paragraphs.join("\n.PP\n")).ok();
    for table in reference::tables() {
        writeln!(text, ".SH \"{}\"", roff(table).replace('"', "\\(dq")).ok();
        for key in reference::KEYS.iter().filter(|key| key.table == table) {
            let default = match key.default {
                "" => "Required.".to_owned(),
                default => format!("Default: {}.", markdown(default)),
            };
            write!(text, ".TP\n\\fB{}\\fR\n{}\n{}\n", roff(key.key), markdown(&key.meaning()), default).ok();
        }
    }
    text.push_str(
        ".SH FILES\n.TP\n\\fB/etc/evercred/evercred.toml\\fR\nRead first.\n.TP\n\\fB/etc/evercred/conf.d/*.toml\\fR\nRead \
         after it, in the order of their names.\n.SH EXAMPLES\n.nf\n",
    );
    for line in EXAMPLE.lines() {
        writeln!(text, "{}", roff(line)).ok();
    }
    text.push_str(".fi\n");
    text.push_str(&see_also("evercred.toml", &["evercred-check".to_owned(), "evercred-doctor".to_owned()]));
    text
}

const EXAMPLE: &str = r#"[provider.helmholtz]
kind = "mytoken"
server = "https://mytok.eu"
issuer = "https://login.helmholtz.de/oauth2"
"#;

/// A sentence of ours in Markdown: `code` and **words** become bold, links what they say.
fn markdown(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once("](") {
        let (start, words) = before.rsplit_once('[').unwrap_or((before, ""));
        write!(plain, "{start}{words}").ok();
        rest = link.split_once(')').map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    let plain = plain.replace("**", "`");
    let parts = plain.split('`').enumerate();
    let parts = parts.map(|(n, part)| if n % 2 == 1 { format!("\\fB{}\\fR", roff(part)) } else { roff(part) });
    let text: String = parts.collect();
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

/// Text as roff takes it.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq").replace('`', "\\(ga");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf};

    use super::*;

    fn files_in(directory: &Path) -> BTreeMap<PathBuf, String> {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let file = |path: PathBuf| (PathBuf::from(path.file_name().unwrap()), fs::read_to_string(path).unwrap());
        entries.filter(|path| path.is_file()).map(file).collect()
    }

    #[test]
    fn a_page_says_its_command_as_it_is_typed() {
        let fresh = tempfile::tempdir().unwrap();
        write(fresh.path()).unwrap();
        let pages = files_in(&fresh.path().join("man"));
        for (page, words) in
            [("evercred-status.1", "evercred status"), ("evercred-import-kit.1", "evercred import kit")]
        {
            let text = &pages[Path::new(page)];
            assert!(text.contains(&format!(".SH SYNOPSIS\n\\fB{words}\\fR ")), "{text}");
        }
    }

    #[test]
    fn every_page_has_its_date_examples_that_can_be_typed_and_all_sections_by_name() {
        let fresh = tempfile::tempdir().unwrap();
        write(fresh.path()).unwrap();
        for (page, text) in files_in(&fresh.path().join("man")) {
            let name = page.file_stem().unwrap().to_str().unwrap();
            let head = text.lines().find(|line| line.starts_with(".TH ")).unwrap();
            assert!(head.contains(&date()) && head.contains(SOURCE), "{head}");
            for section in [".SH \"SEE ALSO\"\n", ".SH EXAMPLES\n"] {
                assert!(text.contains(section), "{name}: {section}");
            }
            for prefix in ["Exit status:", "Environment:", "Signals:", ".SH EXTRA", ".SH VERSION", "\n\n"] {
                assert!(!text.contains(prefix), "{name}: {prefix}");
            }
        }
        for (page, examples) in EXAMPLES {
            for (line, _) in *examples {
                for command in line.split("||").flat_map(|part| part.split("&&")) {
                    let words =
                        command.split_whitespace().take_while(|word| *word != "<").map(|w| w.trim_matches('\''));
                    let words: Vec<&str> = words.collect();
                    let parsed = match words[0] {
                        "evercred" => cli::Evercred::command().try_get_matches_from(&words),
                        "evercred_storer" => cli::Storer::command().try_get_matches_from(&words),
                        "condor_credmon_evercred" => cli::Credmon::command().try_get_matches_from(&words),
                        _ => continue,
                    };
                    assert!(parsed.is_ok(), "{page}: {line}: {parsed:?}");
                }
            }
        }
    }

    /// What the two readers of man pages have to say against them; each is asked if it is there.
    #[test]
    fn no_reader_of_man_pages_complains() {
        let fresh = tempfile::tempdir().unwrap();
        write(fresh.path()).unwrap();
        for page in files_in(&fresh.path().join("man")).keys() {
            for (program, arguments) in
                [("mandoc", &["-T", "lint", "-W", "warning"][..]), ("groff", &["-man", "-ww", "-Tutf8", "-z"])]
            {
                let path = fresh.path().join("man").join(page);
                let Ok(output) = std::process::Command::new(program).args(arguments).arg(path).output() else {
                    continue;
                };
                let said = [output.stdout, output.stderr].concat();
                assert!(said.is_empty(), "{program}: {}: {}", page.display(), String::from_utf8_lossy(&said));
            }
        }
    }

    #[test]
    fn the_generated_files_in_the_repository_are_those_of_the_programs() {
        let fresh = tempfile::tempdir().unwrap();
        write(fresh.path()).unwrap();
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in ["man", "man/completions", "docs"] {
            let (new, old) = (files_in(&fresh.path().join(folder)), files_in(&here.join(folder)));
            if folder != "docs" {
                assert_eq!(new.keys().collect::<Vec<_>>(), old.keys().collect::<Vec<_>>(), "{folder}");
            }
            for (name, text) in new {
                let same = old.get(&name) == Some(&text);
                assert!(same, "{folder}/{} is old: run `cargo run -- generate .`", name.display());
            }
        }
    }
}
