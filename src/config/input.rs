//! The merged input, and the reader that turns a table of it into typed values.
//!
//! A [`Section`] takes key by key; what is wrong is collected, not returned, so that all problems come at once.
//! [`Section::finish`] reports the keys that nobody took.

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use super::{
    Problem,
    condor::NoAnswer,
    fragment::{Data, Origin, Table, Value},
};

/// Put `later` over `earlier`: tables key by key, of anything else the later one stays.
pub fn merge(earlier: &mut Table, later: Table) {
    for (key, value) in later {
        match (earlier.get_mut(&key), value) {
            (Some(Value { data: Data::Table(old), .. }), Value { data: Data::Table(new), .. }) => merge(old, new),
            (_, value) => {
                earlier.insert(key, value);
            }
        }
    }
}

/// What is wrong with a value, and what to do.
#[derive(Debug)]
pub struct Wrong {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub advice: String,
    /// It may be over by itself.
    pub passing: bool,
}

/// Shorthand for [`Wrong`].
pub fn wrong(what: impl Into<String>, advice: impl Into<String>) -> Wrong {
    Wrong { what: what.into(), advice: advice.into(), passing: false }
}

/// One table being read.
pub struct Section<'p> {
    path: String,
    origin: Origin,
    table: Table,
    known: Vec<&'static str>,
    wrong: Vec<&'static str>,
    problems: &'p mut Vec<Problem>,
}

impl<'p> Section<'p> {
    /// Begin to read `table`, called `path` in messages (empty: the top).
    pub fn new(path: impl Into<String>, origin: Origin, table: Table, problems: &'p mut Vec<Problem>) -> Self {
        Self { path: path.into(), origin, table, known: Vec::new(), wrong: Vec::new(), problems }
    }

    /// Begin to read `value`, if it is a table at all.
    pub fn open(path: impl Into<String>, value: Value, problems: &'p mut Vec<Problem>) -> Option<Self> {
        let path = path.into();
        match value.data {
            Data::Table(table) => Some(Self::new(path, value.origin, table, problems)),
            data => {
                let what = format!("is {}, not a table", data.what());
                let advice = format!("write it as [{path}]");
                problems.push(Problem::new(Some(value.origin), path, what, advice));
                None
            }
        }
    }

    fn full(&self, key: &str) -> String {
        match (self.path.is_empty(), key.is_empty()) {
            (true, _) => key.to_owned(),
            (_, true) => self.path.clone(),
            _ => format!("{}.{key}", self.path),
        }
    }

    /// Whether the key is (still) there.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Take a key as it is.
    pub fn take_raw(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.table.remove(key)
    }

    /// Take a key through one of the parsers of this module; `None` if it is absent or wrong.
    pub fn take<T>(&mut self, key: &'static str, parse: impl FnOnce(&Value) -> Result<T, Wrong>) -> Option<T> {
        let value = self.take_raw(key)?;
        match parse(&value) {
            Ok(parsed) => Some(parsed),
            Err(wrong) => {
                self.wrong.push(key);
                let problem = Problem::new(Some(value.origin), self.full(key), wrong.what, wrong.advice);
                self.problems.push(Problem { passing: wrong.passing, ..problem });
                None
            }
        }
    }

    /// Begin to read the table below a key, if there is one.
    pub fn table(&mut self, key: &'static str) -> Option<Section<'_>> {
        let value = self.take_raw(key)?;
        Section::open(self.full(key), value, self.problems)
    }

    /// As [`Section::take`], but absence is a problem, too.
    pub fn require<T>(
        &mut self,
        key: &'static str,
        advice: &str,
        parse: impl FnOnce(&Value) -> Result<T, Wrong>,
    ) -> Option<T> {
        if !self.has(key) {
            self.known.push(key);
            self.complain(key, "is missing", advice);
            return None;
        }
        self.take(key, parse)
    }

    /// A key that must not be here: if it is, say why and what to do. It is not offered as a nearest key.
    pub fn refuse(&mut self, key: &'static str, what: &str, advice: &str) {
        if let Some(value) = self.table.remove(key) {
            self.wrong.push(key);
            self.problems.push(Problem::new(Some(value.origin), self.full(key), what, advice));
        }
    }

    /// A key of every kind that has no meaning with this one.
    pub fn needless(&mut self, key: &'static str, what: &str) {
        self.known.push(key);
        self.refuse(key, what, "remove it");
    }

    /// A problem of the table as a whole, or of an absent key.
    pub fn complain(&mut self, key: &str, what: &str, advice: &str) {
        self.problems.push(Problem::new(Some(self.origin.clone()), self.full(key), what, advice));
    }

    /// HTCondor did not say what this key needs.
    pub fn complain_of_htcondor(&mut self, key: &str, no_answer: &NoAnswer) {
        self.problems.push(Problem::of_htcondor(Some(self.origin.clone()), self.full(key), no_answer));
    }

    /// Whether the key was there, and wrong.
    #[must_use]
    pub fn took_wrongly(&self, key: &str) -> bool {
        self.wrong.contains(&key)
    }

    /// Nobody reads this table further (its kind is unknown): no word about its other keys.
    pub fn abandon(self) {}

    /// Report the keys that nobody took.
    pub fn finish(mut self) {
        for (key, value) in std::mem::take(&mut self.table) {
            let advice = match nearest(&key, &self.known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            self.problems.push(Problem::new(Some(value.origin), self.full(&key), "unknown key", advice));
        }
    }
}

/// The nearest known word, if it is near enough to be a slip.
#[must_use]
pub fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let near = |k: &&'k str| (strsim::damerau_levenshtein(&word.replace('-', "_"), &k.replace('-', "_")), *k);
    let (distance, best) = known.iter().map(near).min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + word.chars().count() / 4).then_some(best)
}

/// A string that is not empty and has no control characters.
pub fn text(value: &Value) -> Result<String, Wrong> {
    match &value.data {
        Data::Text(text) if text.is_empty() => Err(wrong("is empty", "give it a value or remove it")),
        Data::Text(text) if text.chars().any(char::is_control) => Err(wrong("holds control characters", "remove them")),
        Data::Text(text) => Ok(text.clone()),
        other => Err(wrong(format!("is {}, not a string", other.what()), "write it in quotes")),
    }
}

/// A list of strings, or one string.
pub fn texts(value: &Value) -> Result<Vec<String>, Wrong> {
    match &value.data {
        Data::List(items) => items.iter().map(text).collect(),
        Data::Text(_) => text(value).map(|one| vec![one]),
        other => Err(wrong(format!("is {}, not a list of strings", other.what()), r#"write it as ["a", "b"]"#)),
    }
}

/// A list of scopes or audiences: no blanks inside, since a blank separates them on the wire.
pub fn words(value: &Value) -> Result<Vec<String>, Wrong> {
    let words = texts(value)?;
    if words.iter().any(|word| word.contains(char::is_whitespace)) {
        return Err(wrong("holds a blank inside an item", r#"write each item on its own: ["a", "b"]"#));
    }
    Ok(words)
}

/// An absolute path.
pub fn path(value: &Value) -> Result<PathBuf, Wrong> {
    let path = PathBuf::from(text(value)?);
    if path.is_absolute() { Ok(path) } else { Err(wrong("is not an absolute path", "begin it with /")) }
}

/// A whole number within limits.
pub fn number(range: RangeInclusive<u32>) -> impl FnOnce(&Value) -> Result<u32, Wrong> {
    move |value| match &value.data {
        Data::Integer(n) => u32::try_from(*n)
            .ok()
            .filter(|n| range.contains(n))
            .ok_or_else(|| wrong(format!("{n} is out of range"), format!("use {} to {}", range.start(), range.end()))),
        other => Err(wrong(format!("is {}, not a number", other.what()), "write a whole number without quotes")),
    }
}

/// A duration: `"20s"`, `"10m"`, `"2h"`, `"7d"`, or whole seconds; within limits.
pub fn duration(least: Duration, most: Duration) -> impl FnOnce(&Value) -> Result<Duration, Wrong> {
    move |value| {
        let length = match &value.data {
            Data::Integer(n) => u64::try_from(*n).ok().map(Duration::from_secs),
            Data::Text(text) => parse_duration(text),
            _ => None,
        };
        let form = r#"write it like "20s", "10m", "2h" or "7d", or as whole seconds"#;
        let length = length.ok_or_else(|| wrong("is not a duration", form))?;
        if (least..=most).contains(&length) {
            return Ok(length);
        }
        Err(wrong(
            format!("{} is out of range", show_duration(length)),
            format!("use {} to {}", show_duration(least), show_duration(most)),
        ))
    }
}

/// `20s`, `10m`, `2h`, `7d`; several may follow each other (`1h30m`).
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut total = 0_u64;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (digits, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let mut tail = tail.chars();
        let unit = match tail.next()? {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        total = total.checked_add(digits.parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = tail.as_str();
    }
    (!text.trim().is_empty()).then(|| Duration::from_secs(total))
}

/// A duration as it would be written in the configuration.
#[must_use]
pub fn show_duration(length: Duration) -> String {
    let secs = length.as_secs();
    let unit =
        [(86_400, 'd'), (3600, 'h'), (60, 'm')].into_iter().find(|(unit, _)| secs > 0 && secs.is_multiple_of(*unit));
    match unit {
        Some((unit, letter)) => format!("{}{letter}", secs / unit),
        None => format!("{secs}s"),
    }
}

/// One word of several.
pub fn choice<T: Clone>(choices: &'static [(&'static str, T)]) -> impl FnOnce(&Value) -> Result<T, Wrong> {
    move |value| {
        let word = text(value)?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == word) {
            return Ok(choice.clone());
        }
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        Err(wrong(format!("{word:?} is not one of its values"), format!("use {}", names.join(" or "))))
    }
}

/// `true` or `false`.
pub fn boolean(value: &Value) -> Result<bool, Wrong> {
    match &value.data {
        Data::Boolean(answer) => Ok(*answer),
        other => Err(wrong(format!("is {}, not true or false", other.what()), "write true or false without quotes")),
    }
}

/// An address to listen on.
pub fn listen(value: &Value) -> Result<SocketAddr, Wrong> {
    text(value)?.parse().map_err(|_| wrong("is not an address and port", r#"write it like "127.0.0.1:9741""#))
}

/// The URL of an issuer, server or endpoint: `https://`, or `http://` on loopback; as it was written.
pub fn url(value: &Value) -> Result<String, Wrong> {
    url_text(&text(value)?)
}

/// As [`url()`], for a text from elsewhere.
pub fn url_text(text: &str) -> Result<String, Wrong> {
    let url = url::Url::parse(text)
        .map_err(|e| wrong(format!("is not a URL ({e})"), r#"write it like "https://issuer.example.org/""#))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("holds a user name or password", "remove it from the URL"));
    }
    if url.fragment().is_some() || text.contains(char::is_whitespace) {
        return Err(wrong("holds a blank or a #fragment", "remove it from the URL"));
    }
    match url.scheme() {
        "https" => Ok(text.to_owned()),
        "http" if is_loopback(&url) => Ok(text.to_owned()),
        "http" => Err(wrong("is http://, which would send secrets in the clear", "use https://")),
        _ => Err(wrong("is not an https:// URL", r#"write it like "https://issuer.example.org/""#)),
    }
}

/// Whether this is a URL as [`url()`] takes it.
#[must_use]
pub fn is_safe_url(text: &str) -> bool {
    url::Url::parse(text).is_ok_and(|url| url.scheme() == "https" || (url.scheme() == "http" && is_loopback(&url)))
}

fn is_loopback(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}
