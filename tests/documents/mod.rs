//! The documents, and the blocks of code in them: with what is written behind their fences, also within lists.

#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A block of code.
pub struct Block {
    /// The first word behind the fence.
    pub language: String,
    /// The words behind it, as `key=value`.
    pub marks: Vec<(String, String)>,
    /// Without the blanks that the fence has in a list.
    pub lines: Vec<String>,
    /// The line of its fence.
    pub at: usize,
}

impl Block {
    pub fn mark(&self, key: &str) -> Option<&str> {
        self.marks.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        self.lines.join("\n") + "\n"
    }
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every document, by its path below the root, with its text.
pub fn all() -> Vec<(PathBuf, String)> {
    let mut found: Vec<PathBuf> =
        ["README.md", "benches/README.md", "condor-config/README.md", "docs/dashboards/README.md"]
            .map(PathBuf::from)
            .into();
    found.extend(
        fs::read_dir(root().join("docs")).unwrap().map(|entry| Path::new("docs").join(entry.unwrap().file_name())),
    );
    found.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    found.sort();
    found.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

pub fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The blocks of code of a document, and the pieces of code within its sentences, each with its line.
pub fn code(text: &str) -> (Vec<Block>, Vec<(usize, String)>) {
    let (mut blocks, mut pieces, mut open): (Vec<Block>, Vec<_>, Option<(usize, Block)>) = (vec![], vec![], None);
    for (number, line) in text.lines().enumerate() {
        let inner = line.trim_start();
        match (inner.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take().map(|(_, block)| block)),
            (Some(behind), None) => {
                let mut words = behind.split_whitespace();
                let language = words.next().unwrap_or_default().to_owned();
                let marks = words.map(|word| word.split_once('=').unwrap_or((word, "")));
                let marks = marks.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
                let block = Block { language, marks, lines: Vec::new(), at: number + 1 };
                open = Some((line.len() - inner.len(), block));
            }
            (None, Some((indent, block))) => {
                let blanks = (line.len() - inner.len()).min(*indent);
                block.lines.push(line.get(blanks..).unwrap().to_owned());
            }
            (None, None) => pieces.extend(line.split('`').skip(1).step_by(2).map(|code| (number + 1, code.to_owned()))),
        }
    }
    assert!(open.is_none(), "a block of code is not closed");
    (blocks, pieces)
}
