//! `evercred generate DIR` (hidden): man pages and completions from the command lines' definitions, pages of
//! configuration keys and error kinds from the tables in the program, so that none of them can differ from what it
//! does. `man/` and a part of `docs/` are made by it, below `DIR`; a test compares.

use std::{fs, io, path::Path, process::ExitCode};

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
    page(man, cli::Credmon::command(), "8")
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

fn page(directory: &Path, command: Command, section: &str) -> io::Result<()> {
    let path = directory.join(format!("{}.{section}", command.get_name()));
    let mut text = Vec::new();
    clap_mangen::Man::new(command).section(section).render(&mut text)?;
    // Below each command line's help stand its exit codes.
    fs::write(path, String::from_utf8_lossy(&text).replace(".SH EXTRA", ".SH \"EXIT STATUS\""))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf};

    use super::*;

    fn files(directory: &Path) -> BTreeMap<PathBuf, String> {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let file = |path: PathBuf| (PathBuf::from(path.file_name().unwrap()), fs::read_to_string(path).unwrap());
        entries.filter(|path| path.is_file()).map(file).collect()
    }

    #[test]
    fn a_page_says_its_command_as_it_is_typed() {
        let fresh = tempfile::tempdir().unwrap();
        write(fresh.path()).unwrap();
        let pages = files(&fresh.path().join("man"));
        for (page, words) in
            [("evercred-status.1", "evercred status"), ("evercred-import-kit.1", "evercred import kit")]
        {
            let text = &pages[Path::new(page)];
            assert!(text.contains(&format!(".SH SYNOPSIS\n\\fB{words}\\fR ")), "{text}");
        }
    }

    #[test]
    fn the_generated_files_in_the_repository_are_those_of_the_programs() {
        let fresh = tempfile::tempdir().unwrap();
        write(fresh.path()).unwrap();
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in ["man", "man/completions", "docs"] {
            let (new, old) = (files(&fresh.path().join(folder)), files(&here.join(folder)));
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
