//! File names at a site: a template of plain text and `{placeholders}`.
//!
//! | placeholder | stands for |
//! |---|---|
//! | `{user}` `{service}` `{handle}` `{base}` | the parts of the credential; `{base}` is `S` or `S_H` |
//! | `{target}` | each of the handle's `targets` in turn |
//! | `{target_md5}` | the hexadecimal MD5 of it, as Harvester names its token files (contract replication, 11.2) |
//!
//! The result is one name: not empty, no `/`, no control character, no dot in front, at most 200 bytes.

use std::collections::BTreeMap;

use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

use crate::core::{delivery::Undelivered, id::CredentialId};
use crate::error::Kind;

/// What a template stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placeholder {
    /// `{user}`
    User,
    /// `{service}`
    Service,
    /// `{handle}`; empty without one.
    Handle,
    /// `{base}`
    Base,
    /// `{target}`
    Target,
    /// `{target_md5}`
    TargetMd5,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Part {
    Text(String),
    Of(Placeholder),
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileName(Vec<Part>);

const PLACEHOLDERS: &[(&str, Placeholder)] = &[
    ("user", Placeholder::User),
    ("service", Placeholder::Service),
    ("handle", Placeholder::Handle),
    ("base", Placeholder::Base),
    ("target", Placeholder::Target),
    ("target_md5", Placeholder::TargetMd5),
];

impl FileName {
    /// `{user}_{base}`
    #[must_use]
    pub fn usual() -> Self {
        Self(vec![Part::Of(Placeholder::User), Part::Text("_".into()), Part::Of(Placeholder::Base)])
    }

    /// Parse the template of a file name.
    ///
    /// # Errors
    /// What is wrong with it, for the configuration's report.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return Err("holds a /".into());
        }
        if text.starts_with('.') {
            return Err("begins with a dot".into());
        }
        Self::parse_path(text)
    }

    /// Parse the template of a directory.
    ///
    /// # Errors
    /// As [`FileName::parse`].
    pub fn parse_path(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let (word, tail) = after.split_once('}').ok_or("holds a { without its }")?;
            let known = PLACEHOLDERS.iter().find(|(name, _)| *name == word);
            parts.push(Part::Of(known.ok_or_else(|| format!("holds {{{word}}}, which stands for nothing"))?.1));
            rest = tail;
        }
        if rest.contains('}') {
            return Err("holds a } without its {".into());
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// Whether the target is in it, as text or MD5.
    #[must_use]
    pub fn uses(&self, what: Placeholder) -> bool {
        let same = |p: &Placeholder| match what {
            Placeholder::Target | Placeholder::TargetMd5 => matches!(p, Placeholder::Target | Placeholder::TargetMd5),
            other => *p == other,
        };
        self.0.iter().any(|part| matches!(part, Part::Of(p) if same(p)))
    }

    /// The names for a credential: one, or one for each of the handle's targets.
    ///
    /// # Errors
    /// [`Kind::SiteName`]: the handle has no target, or what comes out is no file name.
    pub fn names(
        &self,
        id: &CredentialId,
        targets: &BTreeMap<String, Vec<String>>,
    ) -> Result<Vec<String>, Undelivered> {
        let handle = id.handle.as_ref().map_or("", |handle| handle.as_str());
        let none = [String::new()];
        let targets: &[String] = if self.uses(Placeholder::Target) {
            targets.get(handle).ok_or_else(|| {
                Undelivered::new(Kind::SiteName, format!("`targets` of the site names no target for handle {handle:?}"))
            })?
        } else {
            &none
        };
        let mut names: Vec<String> = Vec::with_capacity(targets.len());
        for target in targets {
            let name = self.fill(id, target);
            check(&name)?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// The template with everything in place, unchecked.
    fn fill(&self, id: &CredentialId, target: &str) -> String {
        let mut name = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => name.push_str(text),
                Part::Of(Placeholder::User) => name.push_str(id.user.as_str()),
                Part::Of(Placeholder::Service) => name.push_str(id.service.as_str()),
                Part::Of(Placeholder::Handle) => name.push_str(id.handle.as_ref().map_or("", |h| h.as_str())),
                Part::Of(Placeholder::Base) => name.push_str(&id.base()),
                Part::Of(Placeholder::Target) => name.push_str(target),
                Part::Of(Placeholder::TargetMd5) => name.push_str(&md5_hex(target)),
            }
        }
        name
    }
}

/// A directory's template with the credential's parts in place; they hold no `/` and no dot in front.
///
/// # Errors
/// As [`FileName::parse`]; the configuration checks it beforehand.
pub fn directory(template: &str, id: &CredentialId) -> Result<String, Undelivered> {
    let template = FileName::parse_path(template).map_err(|what| Undelivered::new(Kind::SiteName, what))?;
    Ok(template.fill(id, ""))
}

fn check(name: &str) -> Result<(), Undelivered> {
    let good = !name.is_empty()
        && name.len() <= 200
        && !name.starts_with('.')
        && !name.chars().any(|c| c == '/' || c.is_control());
    if good { Ok(()) } else { Err(Undelivered::new(Kind::SiteName, format!("{name:?} is no file name"))) }
}

/// As Harvester: MD5 of the latin-1 bytes, in hexadecimal.
fn md5_hex(text: &str) -> String {
    let latin: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect();
    Md5::digest(latin).iter().fold(String::with_capacity(32), |hex, byte| hex + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::UserName;

    fn names(template: &str, base: &str, targets: &[(&str, &[&str])]) -> Result<Vec<String>, Undelivered> {
        let id = CredentialId::from_base(UserName::parse("alice").unwrap(), base).unwrap();
        let targets = targets
            .iter()
            .map(|(handle, list)| ((*handle).to_owned(), list.iter().map(ToString::to_string).collect()))
            .collect();
        FileName::parse(template).unwrap().names(&id, &targets)
    }

    #[test]
    fn harvesters_names_come_out_byte_for_byte() {
        let targets: &[(&str, &[&str])] = &[("ce1", &["ce1.example.org:443"])];
        assert_eq!(names("{target_md5}", "arc_ce1", targets).unwrap(), ["dee432cf39ed67ead9d8a0faf66f85f2"]);
        assert_eq!(names("panda_token", "panda", &[]).unwrap(), ["panda_token"]);
    }

    #[test]
    fn a_handle_with_aliases_gives_a_file_for_each() {
        let targets: &[(&str, &[&str])] = &[("ce1", &["ce1.example.org:2811", "ce1.example.org:443"])];
        let made = names("{target_md5}", "arc_ce1", targets).unwrap();
        assert_eq!(made.len(), 2);
        assert_eq!(made[1], "dee432cf39ed67ead9d8a0faf66f85f2");
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for (template, targets) in [("{target}", "../x"), ("{target}", ".x"), ("{target}", ""), ("{target}", "a\nb")] {
            let made = names(template, "grid_h", &[("h", &[targets])]);
            assert_eq!(made.unwrap_err().kind, Kind::SiteName, "{targets:?}");
        }
        assert_eq!(names("{target}", "grid_other", &[("h", &["x"])]).unwrap_err().kind, Kind::SiteName);
        for template in ["a/b", ".x", "{usr}", "{user", "user}"] {
            assert!(FileName::parse(template).is_err(), "{template}");
        }
    }
}
