//! How tables, times and states look to people. JSON is for scripts; this is not.

use std::{io::IsTerminal, time::Duration};

use comfy_table::{ContentArrangement, Row, Table, presets};

use crate::core::{
    snapshot::{Credential, State},
    time::Timestamp,
};

/// Columns without lines, as wide as their content.
#[must_use]
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    draw(head, rows)
}

/// The same, column by column: heading and cells.
#[must_use]
pub fn columns<'a>(all: impl IntoIterator<Item = (&'a str, &'a [String])>) -> String {
    let (head, cells): (Vec<&str>, Vec<&[String]>) = all.into_iter().unzip();
    let count = cells.first().map_or(0, |column| column.len());
    let row = |at: usize| cells.iter().map(|column| column.get(at).cloned().unwrap_or_default()).collect::<Vec<_>>();
    draw(head, (0..count).map(row))
}

fn draw(head: impl Into<Row>, rows: impl IntoIterator<Item = impl Into<Row>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
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

    /// A whole line, by how its credential does.
    #[must_use]
    pub fn line(self, credential: &Credential, now: Timestamp, line: &str) -> String {
        let code = match credential.state {
            _ if !self.0 => return line.to_owned(),
            State::Parked | State::Unusable => "31",
            State::Retrying if !credential.lives(now) => "31",
            State::Retrying => "33",
            State::Fresh | State::Renewing => return line.to_owned(),
        };
        format!("\x1b[{code}m{line}\x1b[0m")
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
    fn columns_are_as_wide_as_their_content_and_lines_end_without_blanks() {
        let text = table(["A", "LONG"], [["x".into(), "y".into()], ["xxxx".into(), "z".into()]]);
        assert_eq!(text, "A     LONG\nx     y\nxxxx  z\n");
    }
}
