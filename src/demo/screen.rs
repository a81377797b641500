//! What the tour writes on: a terminal or a pipe.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use crate::submit::terminal::Look;

/// How a line looks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Quiet,
    Good,
    Bad,
    Story,
}

/// The terminal or pipe: lines that stay, and a table below them that is drawn anew.
pub struct Screen {
    start: Instant,
    colour: bool,
    live: bool,
    drawn: usize,
}

impl Screen {
    /// `plain`: as into a pipe.
    pub fn new(plain: bool) -> Self {
        let terminal = io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let live = terminal && !plain;
        let colour = live && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { start: Instant::now(), colour, live, drawn: 0 }
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Whether it has a table.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// For the prompt: as wide as usual, without the QR code, whose square would fill the screen.
    pub fn look(&self) -> Look {
        Look { columns: 80, rows: 24, colour: self.colour, live: false, blocks: false }
    }

    fn erase(&mut self, text: &mut String) -> std::fmt::Result {
        if self.drawn > 0 {
            write!(text, "\x1b[{}A\x1b[J", self.drawn)?;
            self.drawn = 0;
        }
        Ok(())
    }

    /// Lines, each with the time since the start, and the table anew below them.
    ///
    /// # Errors
    /// Nobody reads any more.
    pub fn print(&mut self, lines: &[(Tone, String)], table: &[String]) -> io::Result<()> {
        let mut text = String::new();
        self.erase(&mut text).map_err(io::Error::other)?;
        let at = self.start.elapsed().as_secs_f64();
        for (tone, line) in lines {
            let (on, off) = match tone {
                _ if !self.colour => ("", ""),
                Tone::Quiet => ("\x1b[2m", "\x1b[0m"),
                Tone::Good => ("\x1b[32m", "\x1b[0m"),
                Tone::Bad => ("\x1b[33m", "\x1b[0m"),
                Tone::Story => ("\x1b[1m", "\x1b[0m"),
            };
            writeln!(text, "{at:6.1} s  {on}{line}{off}").map_err(io::Error::other)?;
        }
        if self.live && !table.is_empty() {
            text.push('\n');
            for line in table {
                writeln!(text, "  {line}").map_err(io::Error::other)?;
            }
            self.drawn = table.len() + 1;
        }
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}
