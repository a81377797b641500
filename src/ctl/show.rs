//! How tables, times and states look to people. JSON is for scripts; this is not.

use std::{io::IsTerminal, time::Duration};

use crate::core::{
    snapshot::{Credential, State},
    time::Timestamp,
};

/// Columns without lines, as wide as their content.
#[must_use]
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut cells: [Vec<String>; N] = std::array::from_fn(|_| Vec::new());
    for row in rows {
        for (column, cell) in cells.iter_mut().zip(row) {
            column.push(cell);
        }
    }
    columns(head.into_iter().zip(cells.iter().map(Vec::as_slice)))
}

/// The same, column by column: heading and cells. Our own few lines, because a table of 10,000 credentials is to be there
/// in 100 ms with all else, which a library for tables of every shape took for itself.
#[must_use]
pub fn columns<'a>(all: impl IntoIterator<Item = (&'a str, &'a [String])>) -> String {
    let length = |text: &str| text.chars().count();
    let all: Vec<(&str, &[String], usize)> = all
        .into_iter()
        .map(|(head, cells)| (head, cells, cells.iter().map(|cell| length(cell)).max().unwrap_or(0).max(length(head))))
        .collect();
    let rows = all.iter().map(|(_, cells, _)| cells.len()).max().unwrap_or(0);
    let mut text = String::with_capacity((rows + 1) * all.iter().map(|(.., width)| width + 2).sum::<usize>());
    for row in 0..=rows {
        let mut blanks = 0;
        for (head, cells, width) in &all {
            let cell =
                row.checked_sub(1).map_or(Some(*head), |at| cells.get(at).map(String::as_str)).unwrap_or_default();
            if !cell.is_empty() {
                text.extend(std::iter::repeat_n(' ', std::mem::take(&mut blanks)));
                text.push_str(cell);
            }
            // Of the last column, and of empty ones at the end, nothing is written.
            blanks += width + 2 - length(cell);
        }
        text.push('\n');
    }
    text
}

/// How many columns the terminal has; none: standard output is no terminal, or does not tell.
#[must_use]
pub fn width_of_stdout() -> Option<usize> {
    let stdout = std::io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Lines that are longer than the terminal broken between words; what goes on stands below its begin, or at `hanging` in
/// lines that begin with a blank. `None`: no terminal, nothing is broken.
#[must_use]
pub fn fold(text: &str, width: Option<usize>, hanging: usize) -> String {
    let Some(width) = width.filter(|width| *width > 2 * hanging + 20) else { return text.to_owned() };
    let mut folded = String::with_capacity(text.len() + text.len() / 16);
    for line in text.split_inclusive('\n') {
        let begin = line.chars().take_while(|c| *c == ' ').count();
        let indent = if begin == 0 { 0 } else { begin.max(hanging) };
        let mut column = 0;
        for word in line.split_inclusive(' ') {
            let length = word.trim_end().chars().count();
            if column > indent && length > 0 && column + length > width {
                while folded.ends_with(' ') {
                    folded.pop();
                }
                folded.push('\n');
                folded.push_str(&" ".repeat(indent));
                column = indent;
            }
            folded.push_str(word);
            column += word.chars().count();
        }
    }
    folded
}

/// The two largest units: `6d 23h`, `42m 10s`, `9s`.
#[must_use]
pub fn short(length: Duration) -> String {
    let secs = length.as_secs();
    let parts = [(secs / 86_400, 'd'), (secs / 3600 % 24, 'h'), (secs / 60 % 60, 'm'), (secs % 60, 's')];
    let from = parts.iter().position(|(n, _)| *n > 0).unwrap_or(3);
    let told: Vec<_> =
        parts.iter().skip(from).take(2).filter(|(n, _)| *n > 0).map(|(n, u)| format!("{n}{u}")).collect();
    if told.is_empty() { "0s".into() } else { told.join(" ") }
}

/// What is left until `end`, or how long ago it was; `-` if that is not known.
#[must_use]
pub fn left(end: Option<Timestamp>, now: Timestamp) -> String {
    match end {
        None => "-".into(),
        Some(end) if end >= now => short(end.since(now)),
        Some(end) => format!("{} ago", short(now.since(end))),
    }
}

/// A state as a person reads it: with what it means for jobs.
#[must_use]
pub fn state(credential: &Credential, now: Timestamp) -> String {
    let word = credential.state.word();
    match credential.state {
        State::Renewing if credential.renewed.is_none() && credential.expires.is_none() => "waiting".into(),
        State::Renewing | State::Fresh if credential.ends_soon(now).is_some() => format!("{word}, ends soon"),
        State::Renewing | State::Fresh if credential.flagged.is_some() => format!("{word}, flagged"),
        State::Renewing | State::Fresh => word.into(),
        _ if credential.lives(now) => word.into(),
        _ => format!("{word}, no token"),
    }
}

/// Green, yellow, red; or none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour(bool);

impl Colour {
    /// On a terminal that has colours, unless `NO_COLOR` is set.
    #[must_use]
    pub fn of_stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let able = std::env::var_os("TERM").is_some_and(|term| term != "dumb");
        Self(wanted && able && std::io::stdout().is_terminal())
    }

    /// Never.
    #[must_use]
    pub fn none() -> Self {
        Self(false)
    }

    /// What begins and ends the line of a credential, by how it does.
    #[must_use]
    pub fn around(self, credential: &Credential, now: Timestamp) -> (&'static str, &'static str) {
        match credential.state {
            _ if !self.0 => ("", ""),
            State::Parked | State::Unusable => ("\x1b[31m", "\x1b[0m"),
            State::Retrying if !credential.lives(now) => ("\x1b[31m", "\x1b[0m"),
            State::Retrying => ("\x1b[33m", "\x1b[0m"),
            _ if credential.ends_soon(now).is_some() => ("\x1b[33m", "\x1b[0m"),
            State::Fresh | State::Renewing => ("", ""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_shows_its_two_largest_units() {
        for (secs, text) in [
            (0, "0s"),
            (9, "9s"),
            (60, "1m"),
            (2530, "42m 10s"),
            (3600, "1h"),
            (3601, "1h"),
            (604_798, "6d 23h"),
            (86_400 + 59, "1d"),
        ] {
            assert_eq!(short(Duration::from_secs(secs)), text);
        }
    }

    #[test]
    fn long_lines_are_broken_between_words_and_go_on_below_their_begin() {
        let text = "Heading that is long enough to be broken somewhere\n  ok       one two three four five six seven\n";
        let folded = fold(text, Some(43), 11);
        let expected = "Heading that is long enough to be broken\nsomewhere\n  ok       one two three four five six\n           seven\n";
        assert_eq!(folded, expected);
        assert_eq!(fold(text, None, 11), text, "a pipe gets lines as they are");
        let url = format!("  {}\n", "x".repeat(100));
        assert_eq!(fold(&url, Some(43), 2), url, "what has no blank is not broken");
    }

    #[test]
    fn columns_are_as_wide_as_their_content_and_lines_end_without_blanks() {
        let text = table(["A", "LONG"], [["x".into(), "y".into()], ["xxxx".into(), "z".into()]]);
        assert_eq!(text, "A     LONG\nx     y\nxxxx  z\n");
    }
}
