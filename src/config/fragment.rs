//! One configuration file: read, parsed as TOML, every key and value with its line.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read},
    ops::Range,
    path::Path,
    sync::Arc,
};

use toml::de::{DeTable, DeValue};

use super::Problem;

/// The largest configuration file.
const MAX_FILE: u64 = 1 << 20;

/// Where a key or value stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub file: Arc<Path>,
    /// Position of the file among those that were read, for sorting.
    pub rank: usize,
    /// Line, from 1; 0: the file as a whole.
    pub line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 { write!(f, ":{}", self.line) } else { Ok(()) }
    }
}

/// Keys of a table.
pub type Table = BTreeMap<String, Value>;

/// A value and where its key stands.
#[derive(Clone)]
pub struct Value {
    /// Where.
    pub origin: Origin,
    /// What.
    pub data: Data,
}

/// What a value can be. No `Debug`: somebody may have written a secret into it.
#[derive(Clone)]
pub enum Data {
    /// A string.
    Text(String),
    /// An integer.
    Integer(i64),
    /// `true` or `false`.
    Boolean(bool),
    /// `[…]`
    List(Vec<Value>),
    /// `[table]` or `{…}`
    Table(Table),
    /// What no key of ours is: a date, a number with a fraction or out of range.
    Other(&'static str),
}

impl Data {
    /// What it is, for messages; never what is in it.
    #[must_use]
    pub fn what(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) => "a number",
            Self::Boolean(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(what) => what,
        }
    }
}

/// Read and parse one file.
///
/// # Errors
/// All syntax errors of the file, or why it cannot be read.
pub fn read(path: &Path, rank: usize) -> Result<Table, Vec<Problem>> {
    let file: Arc<Path> = path.into();
    let whole = Origin { file: Arc::clone(&file), rank, line: 0 };
    let text = text(path).map_err(|e| {
        let advice = match e.kind() {
            io::ErrorKind::NotFound => {
                "write it (docs/examples/evercred.toml is a start) or name another with --config"
            }
            io::ErrorKind::InvalidData => "save it as UTF-8",
            _ => "make it a readable file of at most 1 MiB",
        };
        vec![Problem::new(Some(whole), "", format!("cannot be read: {}", reason(&e)), advice)]
    })?;
    parse(&text, &file, rank)
}

/// Parse the text of a file.
///
/// # Errors
/// All syntax errors.
pub fn parse(text: &str, file: &Arc<Path>, rank: usize) -> Result<Table, Vec<Problem>> {
    let lines = Lines { starts: line_starts(text), file, rank };
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(own_table(table.get_ref(), &lines));
    }
    let problem = |e: &toml::de::Error| {
        // The parser's message alone: its `Display` quotes the line, which may hold a secret.
        let what = format!("not TOML: {}", e.message().replace('\n', ", "));
        Problem::new(Some(lines.at(&e.span().unwrap_or(0..0))), "", what, "correct this line")
    };
    Err(errors.iter().map(problem).collect())
}

fn text(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if meta.len() > MAX_FILE {
        return Err(io::Error::other("larger than 1 MiB"));
    }
    let mut text = String::new();
    file.by_ref().take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// An IO error in words, without "(os error 2)".
pub(super) fn reason(e: &io::Error) -> String {
    let text = e.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

struct Lines<'a> {
    starts: Vec<usize>,
    file: &'a Arc<Path>,
    rank: usize,
}

impl Lines<'_> {
    fn at(&self, span: &Range<usize>) -> Origin {
        let line = self.starts.partition_point(|start| *start <= span.start);
        Origin { file: Arc::clone(self.file), rank: self.rank, line }
    }
}

fn line_starts(text: &str) -> Vec<usize> {
    std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect()
}

fn own_table(table: &DeTable<'_>, lines: &Lines<'_>) -> Table {
    let entry = |(key, value): (&toml::Spanned<std::borrow::Cow<'_, str>>, &toml::Spanned<DeValue<'_>>)| {
        (key.get_ref().to_string(), Value { origin: lines.at(&key.span()), data: own(value.get_ref(), lines) })
    };
    table.iter().map(entry).collect()
}

fn own(value: &DeValue<'_>, lines: &Lines<'_>) -> Data {
    match value {
        DeValue::String(text) => Data::Text(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Data::Integer(number),
            Err(_) => Data::Other("a number out of range"),
        },
        DeValue::Float(_) => Data::Other("a number with a fraction"),
        DeValue::Boolean(yes) => Data::Boolean(*yes),
        DeValue::Datetime(_) => Data::Other("a date"),
        DeValue::Array(list) => Data::List(
            list.iter()
                .map(|item| Value { origin: lines.at(&item.span()), data: own(item.get_ref(), lines) })
                .collect(),
        ),
        DeValue::Table(table) => Data::Table(own_table(table, lines)),
    }
}
