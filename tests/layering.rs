//! `src/core/` stays pure. What it names is found in its syntax (imports of any style, renamed or not, paths, macros)
//! and held against a list of what it may name: no clock, disk, network, environment, randomness, thread, async or
//! log, and nothing of this crate but the core itself and the kinds of errors. `clippy.toml` holds the same for methods
//! by their definition, whatever they are called through.

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use proc_macro2::{Delimiter, Span, TokenStream, TokenTree};
use syn::{Attribute, UseTree, spanned::Spanned, visit::Visit};

/// What the core may name: these, and what is below them.
const ALLOWED: &[&str] = &[
    "std::borrow",
    "std::cmp",
    "std::collections::BTreeMap",
    "std::collections::BTreeSet",
    "std::collections::VecDeque",
    "std::collections::btree_map",
    "std::convert",
    "std::fmt",
    "std::iter",
    "std::mem",
    "std::num",
    "std::ops",
    "std::slice",
    "std::str",
    "std::string",
    // Text that several hold: nothing that waits for anybody.
    "std::sync::Arc",
    "std::time::Duration",
    "base64",
    "jiff::Timestamp",
    "secrecy",
    "serde",
    "serde_json",
    "smallvec",
    "thiserror",
    "zeroize",
    "crate::core",
    "crate::error",
];
/// Below what is allowed, and forbidden all the same.
const FORBIDDEN: &[&str] = &["jiff::Timestamp::now", "serde_json::from_reader"];
/// Macros that print, log, or read files and environment when they are compiled.
const MACROS: &[&str] =
    &["print", "println", "eprint", "eprintln", "dbg", "env", "option_env", "include", "include_str", "include_bytes"];
/// Roots of the language's own libraries; a path that begins so is one of `std`.
const STD: &[&str] = &["std", "core", "alloc"];

/// One file, as a module of the crate.
struct Guard<'a> {
    module: Vec<String>,
    crates: &'a BTreeSet<String>,
    /// What a name of this file stands for.
    names: BTreeMap<String, Vec<String>>,
    found: Vec<(usize, String)>,
}

impl Guard<'_> {
    /// Everything in this text that has no place in the core: line and what.
    fn look(text: &str, module: &[&str], crates: &BTreeSet<String>) -> Vec<(usize, String)> {
        let file = syn::parse_file(text).unwrap();
        let module = module.iter().map(|part| (*part).to_owned()).collect();
        let mut guard = Guard { module, crates, names: BTreeMap::new(), found: Vec::new() };
        // Names may be used before they are imported.
        let mut imports = Imports(Vec::new());
        imports.visit_file(&file);
        for (path, name) in imports.0 {
            let path = guard.resolve(&path);
            guard.names.insert(name, path);
        }
        guard.visit_file(&file);
        guard.found
    }

    /// From the root: `std`, `crate`, or another crate's name.
    fn resolve(&self, path: &[String]) -> Vec<String> {
        let (mut module, mut rest) = (self.module.clone(), path);
        let Some(first) = path.first() else { return Vec::new() };
        match first.as_str() {
            "crate" => path.to_vec(),
            "self" | "super" => {
                while let Some((step, after)) =
                    rest.split_first().filter(|(step, _)| ["self", "super"].contains(&step.as_str()))
                {
                    if step == "super" {
                        module.pop();
                    }
                    rest = after;
                }
                module.into_iter().chain(rest.iter().cloned()).collect()
            }
            _ => match self.names.get(first) {
                // `use fmt;` and the like stand for themselves.
                Some(known) if known.first() != Some(first) || known.len() > 1 => {
                    known.iter().chain(path.iter().skip(1)).cloned().collect()
                }
                _ if STD.contains(&first.as_str()) => {
                    std::iter::once("std".to_owned()).chain(path.iter().skip(1).cloned()).collect()
                }
                _ => path.to_vec(),
            },
        }
    }

    /// Whether something of this name may be here; a path into no other module is this file's own business.
    fn judge(&mut self, span: Span, path: &[String]) {
        let full = self.resolve(path);
        let root = full.first().map(String::as_str).unwrap_or_default();
        if !["std", "crate"].contains(&root) && !self.crates.contains(root) {
            return;
        }
        let name = full.join("::");
        let under = |list: &[&str]| list.iter().any(|one| name == *one || name.starts_with(&format!("{one}::")));
        if !under(ALLOWED) || under(FORBIDDEN) {
            self.found.push((span.start().line, name));
        }
    }

    fn tree(&mut self, prefix: &mut Vec<String>, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.tree(prefix, &path.tree);
                prefix.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|item| self.tree(prefix, item)),
            UseTree::Name(syn::UseName { ident }) | UseTree::Rename(syn::UseRename { ident, .. }) => {
                let mut path = prefix.clone();
                path.extend((ident != "self").then(|| ident.to_string()));
                // A module of `std` that is not allowed as a whole may not be imported as a whole either.
                self.judge(tree.span(), &path);
            }
            UseTree::Glob(_) => {
                let path = [prefix.as_slice(), &["*".to_owned()]].concat();
                self.judge(tree.span(), &path);
            }
        }
    }

    /// Paths and words in what a macro is given: it is no syntax yet.
    fn tokens(&mut self, tokens: TokenStream) {
        let (mut path, mut joined, mut last) = (Vec::new(), false, Span::call_site());
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if !joined {
                        self.end(&mut path, last);
                    }
                    let word = ident.to_string();
                    if ["async", "await"].contains(&word.as_str()) {
                        self.found.push((ident.span().start().line, word.clone()));
                    }
                    (joined, last) = (false, ident.span());
                    path.push(word);
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => joined = true,
                TokenTree::Punct(punct) if punct.as_char() == '!' && path.len() == 1 => {
                    let name = path.drain(..).collect::<String>();
                    self.name_of_macro(punct.span(), &name);
                    joined = false;
                }
                other => {
                    self.end(&mut path, last);
                    joined = false;
                    if let TokenTree::Group(group) = other
                        && group.delimiter() != Delimiter::None
                    {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.end(&mut path, last);
    }

    fn end(&mut self, path: &mut Vec<String>, span: Span) {
        // A single word is a variable more often than an import; what is imported has been judged.
        if path.len() > 1 {
            self.judge(span, path);
        }
        path.clear();
    }

    fn name_of_macro(&mut self, span: Span, name: &str) {
        if MACROS.contains(&name) {
            self.found.push((span.start().line, format!("{name}!")));
        }
    }
}

/// Whether it is there for tests only.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

fn attributes_of(item: &syn::Item) -> &[Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Every import: the path as it is written, and the name that it gets here.
struct Imports(Vec<(Vec<String>, String)>);

impl Imports {
    fn tree(&mut self, prefix: &mut Vec<String>, tree: &UseTree) {
        let path = |ident: &syn::Ident, prefix: &[String]| {
            let mut path = prefix.to_vec();
            path.extend((ident != "self").then(|| ident.to_string()));
            path
        };
        match tree {
            UseTree::Path(at) => {
                prefix.push(at.ident.to_string());
                self.tree(prefix, &at.tree);
                prefix.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|item| self.tree(prefix, item)),
            UseTree::Name(name) => {
                let path = path(&name.ident, prefix);
                let last = path.last().unwrap().clone();
                self.0.push((path, last));
            }
            UseTree::Rename(name) => self.0.push((path(&name.ident, prefix), name.rename.to_string())),
            UseTree::Glob(_) => {}
        }
    }
}

impl<'ast> Visit<'ast> for Imports {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !is_test(attributes_of(item)) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(&mut Vec::new(), &item.tree);
    }
}

impl<'ast> Visit<'ast> for Guard<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !is_test(attributes_of(item)) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            syn::visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        // A module within the file has its own `self`.
        self.module.push(item.ident.to_string());
        syn::visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.tree(&mut Vec::new(), &item.tree);
    }

    fn visit_item_extern_crate(&mut self, item: &'ast syn::ItemExternCrate) {
        self.found.push((item.span().start().line, format!("extern crate {}", item.ident)));
    }

    fn visit_attribute(&mut self, _: &'ast Attribute) {
        // Derives and serde's own words do nothing.
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        // A single word is this file's own, or was judged where it is imported.
        if names.len() > 1 {
            self.judge(path.span(), &names);
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let names: Vec<String> = call.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.name_of_macro(call.span(), names.last().unwrap());
        self.judge(call.span(), &names);
        self.tokens(call.tokens.clone());
    }

    fn visit_expr_async(&mut self, block: &'ast syn::ExprAsync) {
        self.found.push((block.span().start().line, "async".into()));
        syn::visit::visit_expr_async(self, block);
    }

    fn visit_expr_await(&mut self, expression: &'ast syn::ExprAwait) {
        self.found.push((expression.span().start().line, "await".into()));
        syn::visit::visit_expr_await(self, expression);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        if signature.asyncness.is_some() {
            self.found.push((signature.span().start().line, "async".into()));
        }
        syn::visit::visit_signature(self, signature);
    }
}

/// All crates that `Cargo.toml` names.
fn crates() -> BTreeSet<String> {
    let manifest: toml::Table = toml::from_str(include_str!("../Cargo.toml")).unwrap();
    let tables = ["dependencies", "dev-dependencies"].map(|name| manifest.get(name).unwrap().as_table().unwrap());
    tables.iter().flat_map(|table| table.keys().map(|name| name.replace('-', "_"))).collect()
}

/// Every file of the core that is more than a test, with its module.
fn files(directory: &Path, module: &[&str], into: &mut Vec<(PathBuf, Vec<String>)>, root: &str) {
    let path = directory.join(root);
    let file = syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap();
    into.push((path, module.iter().map(|part| (*part).to_owned()).collect()));
    for item in &file.items {
        let syn::Item::Mod(item) = item else { continue };
        if item.content.is_some() || is_test(&item.attrs) {
            continue;
        }
        let name = item.ident.to_string();
        let below = if root == "mod.rs" { directory.to_owned() } else { directory.join(root.trim_end_matches(".rs")) };
        let (below, root) = if below.join(&name).join("mod.rs").exists() {
            (below.join(&name), "mod.rs".to_owned())
        } else {
            (below, format!("{name}.rs"))
        };
        files(&below, &[module, &[name.as_str()]].concat(), into, &root);
    }
}

#[test]
fn the_core_names_no_clock_disk_network_environment_randomness_async_or_log() {
    let mut all = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/core"), &["crate", "core"], &mut all, "mod.rs");
    assert!(all.len() > 20, "the core moved; so must this test: {all:?}");
    let crates = crates();
    for (path, module) in all {
        let module: Vec<&str> = module.iter().map(String::as_str).collect();
        let found = Guard::look(&fs::read_to_string(&path).unwrap(), &module, &crates);
        assert!(found.is_empty(), "{} has no place in the core: {found:?}", path.display());
    }
}

#[test]
fn a_planted_violation_of_each_style_is_found_where_it_is_and_what_is_allowed_passes() {
    let crates = crates();
    let look = |text: &str| Guard::look(text, &["crate", "core", "planner"], &crates);
    for (text, name) in [
        ("use std::fs;", "std::fs"),
        ("use std::{env, fmt};", "std::env"),
        ("use std::{collections::{BTreeMap, HashMap}, time::Duration};", "std::collections::HashMap"),
        ("use std::time::{Duration, Instant};", "std::time::Instant"),
        ("use std::time::{self, Duration};", "std::time"),
        ("use std::time::*;", "std::time::*"),
        ("use std::*;", "std::*"),
        ("use std as s;", "std"),
        ("use ::std::thread;", "std::thread"),
        ("use core::sync::atomic::AtomicBool;", "std::sync::atomic::AtomicBool"),
        ("use std::sync::{Arc, Mutex};", "std::sync::Mutex"),
        ("use std::io::Write as _;", "std::io::Write"),
        ("use std::fs::read as of;", "std::fs::read"),
        ("use crate::config::settings::UseFormat;", "crate::config::settings::UseFormat"),
        ("use crate::{core::id::UserName, issuer};", "crate::issuer"),
        ("use super::super::keeper;", "crate::keeper"),
        ("use super::{id::UserName, super::spool::Spool};", "crate::spool::Spool"),
        ("pub use tokio::sync::mpsc;", "tokio::sync::mpsc"),
        ("use tracing as quiet;", "tracing"),
        ("use jiff::Zoned;", "jiff::Zoned"),
        ("extern crate rand;", "extern crate rand"),
        ("fn f() { std::fs::remove_file(\"x\"); }", "std::fs::remove_file"),
        ("fn f() -> std::time::SystemTime { loop {} }", "std::time::SystemTime"),
        ("fn f() { let _ = jiff::Timestamp::now(); }", "jiff::Timestamp::now"),
        ("use jiff::Timestamp as T; fn f() { T::now(); }", "jiff::Timestamp::now"),
        ("fn f() { g(&[std::env::var_os]); }", "std::env::var_os"),
        ("fn f() { use std::net::TcpStream; }", "std::net::TcpStream"),
        ("fn f() { let _ = vec![(1, std::process::id())]; }", "std::process::id"),
        ("fn f() { assert!(crate::spool::there(1)); }", "crate::spool::there"),
        ("struct S { file: Option<std::fs::File> }", "std::fs::File"),
        ("impl std::io::Read for S {}", "std::io::Read"),
        ("mod below { fn f() { super::super::super::spool::open(); } }", "crate::spool::open"),
        ("fn f() { println!(\"x\"); }", "println!"),
        ("fn f() { std::eprintln!(\"x\"); }", "eprintln!"),
        ("fn f() { g(|| vec![dbg!(1)]); }", "dbg!"),
        ("const S: &str = include_str!(\"x\");", "include_str!"),
        ("fn f() { tracing::info!(\"x\"); }", "tracing::info"),
        ("async fn f() {}", "async"),
        ("fn f() { async {}; }", "async"),
        ("trait T { async fn f(); }", "async"),
    ] {
        // Where it stands: after the tests' own module, whose imports are its own.
        let planted = format!(
            "//! A header.\n#[cfg(test)]\nmod tests {{ use std::fs; fn f() {{ fs::read(\"x\"); }} }}\n{text}\n"
        );
        let found = look(&planted);
        assert!(found.contains(&(4, name.to_owned())), "{text}: {found:?}");
    }
    let pure = "use std::{collections::BTreeSet, fmt, time::Duration};\nuse serde::{Deserialize, de::Error as _};\n\
                use super::{id::UserName, time::{Now, Tick}};\nuse crate::error::{Class, Kind};\n\
                #[cfg(test)] use std::fs;\n\
                fn tokio(env: &str, now: Now) -> fmt::Result { let fs = env; matches!(fs, \"std::fs\"); now.tick.since(Tick(0)); Ok(()) }\n\
                impl S { #[cfg(test)] fn check(&self) { std::fs::read(\"x\").unwrap(); } }\n\
                #[cfg(test)] mod tests;\n";
    assert_eq!(look(pure), []);
}

/// By their definitions, and so through whatever name or value: what `clippy.toml` lists.
#[test]
fn clippy_finds_a_method_that_the_core_may_not_call_and_only_there() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let core = fs::read_to_string(repository.join("src/core/mod.rs")).unwrap();
    let attribute = "#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]";
    assert!(core.contains(attribute), "src/core/mod.rs turns it on");
    let home = tempfile::tempdir().unwrap();
    let source = home.path().join("planted.rs");
    let planted = "#![allow(dead_code, clippy::disallowed_methods, clippy::disallowed_types)]\n\
                   fn outside() { let _ = std::time::SystemTime::now(); }\n\
                   mod core {\n\
                   #![deny(clippy::disallowed_methods, clippy::disallowed_types)]\n\
                   fn a() { let _ = std::time::UNIX_EPOCH.elapsed(); }\n\
                   fn b() { std::thread::sleep(std::time::Duration::ZERO); }\n\
                   fn c(path: &std::path::Path) -> bool { path.exists() }\n\
                   fn d() { let _ = std::env::var_os(\"X\"); }\n\
                   fn e() { let read = std::fs::read; let _ = read(\"x\"); }\n\
                   fn f() -> std::collections::HashMap<u8, u8> { Default::default() }\n\
                   }\n";
    fs::write(&source, planted).unwrap();
    let clippy = Command::new("clippy-driver")
        .args(["--edition", "2024", "--crate-type", "lib", "--emit", "metadata", "--out-dir"])
        .arg(home.path())
        .arg(&source)
        .env("CLIPPY_CONF_DIR", repository)
        .output();
    let Some(output) = clippy.ok().filter(|output| String::from_utf8_lossy(&output.stderr).contains("planted.rs"))
    else {
        println!("skipped: clippy is not there (rustup component add clippy)");
        return;
    };
    let told = String::from_utf8(output.stderr).unwrap();
    let at = |line: usize| told.lines().filter(|text| text.contains(&format!("planted.rs:{line}:"))).count();
    assert_eq!(at(2), 0, "outside of the core it is allowed\n{told}");
    for line in 5..=10 {
        assert!(at(line) >= 1, "line {line}\n{told}");
    }
}
