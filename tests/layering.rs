//! `src/core/` stays pure: what it must not name, it does not name (see also `clippy.toml`).

use std::{fs, path::Path};

const FORBIDDEN: &[&str] = &[
    "std::fs",
    "std::net",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "Instant",
    "SystemTime",
    "tokio",
    "async ",
    "await",
    "tracing",
    "println!",
    "eprintln!",
    "rand",
    "nix::",
    "reqwest",
    "crate::spool",
    "crate::keeper",
    "crate::courier",
    "crate::issuer",
    "crate::demo",
    "HashMap",
];

#[test]
fn the_core_names_no_clock_disk_network_randomness_async_or_log() {
    let mut seen = 0;
    let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/core")).unwrap();
    // A directory there holds the tests of the file that has its name.
    for path in files.map(|file| file.unwrap().path()).filter(|path| path.is_file()) {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for (number, line) in code.lines().enumerate().filter(|(_, l)| !l.trim_start().starts_with("//")) {
            for word in FORBIDDEN {
                let named = line.match_indices(word).any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
                        && !line[at + word.len()..].starts_with(|c: char| c.is_alphanumeric())
                });
                assert!(!named, "{}:{}: `{word}` has no place in the core", path.display(), number + 1);
            }
        }
        seen += 1;
    }
    assert!(seen >= 10, "the core moved; so must this test");
}
