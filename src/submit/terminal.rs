//! The user's terminal, `/dev/tty`: the one place where a URL or a code may go. Standard input is not ours (it is at
//! its end under `condor_submit`), and standard error may be a file.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Read, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{getpgrp, tcgetpgrp},
};

/// What can be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
    /// Colours and bold: not with `NO_COLOR`, `TERM=dumb` or `--plain`.
    pub colour: bool,
    /// A line may be drawn anew: not with `TERM=dumb` or `--plain`.
    pub live: bool,
    /// Block characters: the locale is UTF-8, and not `--plain`.
    pub blocks: bool,
}

impl Look {
    /// Of a terminal of so many columns and rows, by the environment.
    fn of((columns, rows): (u16, u16), plain: bool, environment: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| environment(name).filter(|value| !value.is_empty());
        let dumb = plain || set("TERM").is_none_or(|term| term == "dumb");
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| set(name)).unwrap_or_default();
        let utf8 = ["UTF-8", "UTF8"].iter().any(|name| locale.to_ascii_uppercase().ends_with(name));
        Self { columns, rows, colour: !dumb && set("NO_COLOR").is_none(), live: !dumb, blocks: utf8 && !plain }
    }
}

/// An open terminal in whose foreground we are.
#[derive(Debug)]
pub struct Terminal {
    file: File,
    plain: bool,
    shows_messages: bool,
}

impl Terminal {
    /// Open it; `None` where there is none, or we are in its background (where reading would stop us).
    #[must_use]
    pub fn open(plain: bool) -> Option<Self> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open("/dev/tty").ok()?;
        let foreground = tcgetpgrp(&file).is_ok_and(|group| group == getpgrp());
        foreground.then(|| Self::of(file, plain, io::stderr().is_terminal()))
    }

    /// An open one; `shows_messages`: messages appear on it, too.
    #[must_use]
    pub fn of(file: File, plain: bool, shows_messages: bool) -> Self {
        Self { file, plain, shows_messages }
    }

    /// What it can show now; it may have been resized.
    #[must_use]
    pub fn look(&self) -> Look {
        let size = terminal_size::terminal_size_of(self.file.as_fd());
        let size = size.map_or((80, 24), |(width, height)| (width.0, height.0));
        Look::of(size, self.plain, |name| std::env::var(name).ok())
    }

    /// Write; a terminal that is gone has nobody to be told.
    pub fn write(&mut self, text: &str) {
        drop(self.file.write_all(text.as_bytes()).and_then(|()| self.file.flush()));
    }

    /// Read one line without its end; `None` at the end of input or when cancelled.
    pub fn read_line(&mut self, cancelled: &AtomicBool) -> Option<String> {
        let mut line = Vec::new();
        loop {
            let mut ready = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
            let polled = poll(&mut ready, PollTimeout::from(100_u8));
            if cancelled.load(Relaxed) {
                return None;
            }
            match polled {
                Ok(1..) => {}
                Ok(_) | Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return None,
            }
            let mut byte = [0_u8];
            match self.file.read(&mut byte) {
                Ok(0) => return None,
                Ok(_) if byte == *b"\n" => return Some(String::from_utf8_lossy(&line).trim().to_owned()),
                // Nobody types more than this.
                Ok(_) if line.len() < 256 => line.extend_from_slice(&byte),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    /// Whether messages appear on it: then they are broken to its width.
    #[must_use]
    pub fn shows_messages(&self) -> bool {
        self.shows_messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_follows_the_environment() {
        let look = |plain, set: &[(&str, &str)]| {
            let find = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            let Look { colour, live, blocks, .. } = Look::of((80, 24), plain, find);
            (colour, live, blocks)
        };
        let usual = [("TERM", "xterm-256color"), ("LANG", "de_DE.UTF-8")];
        assert_eq!(look(false, &usual), (true, true, true));
        assert_eq!(look(true, &usual), (false, false, false), "--plain");
        let with = |more: &[(&'static str, &'static str)]| look(false, &[more, &usual].concat());
        assert_eq!(with(&[("NO_COLOR", "1")]), (false, true, true));
        assert_eq!(with(&[("NO_COLOR", "")]), (true, true, true), "no-color.org: when not empty");
        assert_eq!(with(&[("TERM", "dumb")]), (false, false, true));
        assert_eq!(with(&[("LC_ALL", "C")]), (true, true, false), "LC_ALL before LANG");
        assert_eq!(look(false, &[]), (false, false, false), "nothing set");
    }
}
