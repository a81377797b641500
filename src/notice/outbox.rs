//! What people were told and which letters wait, in `<state_directory>/notices.json` (mode 0600, written beside and
//! renamed). What is told is noted, and its letters are on disk, before the first one is sent: a crash may send a
//! letter twice, never none and never all of them again. A file that is no such state is set aside, with a word.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::libc;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::letter::Letter;
use crate::core::{
    notice::Memory,
    time::{Timestamp, rfc3339},
};

/// After the first failure; it doubles, to [`LONGEST`].
const FIRST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);
/// A letter that could not be delivered for so long is given up.
const GIVE_UP: Duration = Duration::from_secs(3 * 86_400);
/// So many letters wait at most; what comes on top is given up at once.
pub const MOST: usize = 10_000;
/// No state is larger.
const MAX_FILE: u64 = 256 << 20;

/// The state cannot be kept.
#[derive(Debug, Error)]
#[error("{}: {source}", path.display())]
pub struct OutboxError {
    path: PathBuf,
    source: io::Error,
}

/// A letter that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// It.
    pub letter: Letter,
    /// Since when.
    #[serde(with = "rfc3339")]
    pub since: Timestamp,
    /// Not before.
    #[serde(with = "rfc3339")]
    pub next: Timestamp,
    /// Failed tries.
    pub tries: u32,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    schema: u32,
    memory: Memory,
    letters: Vec<Waiting>,
}

/// See the module.
#[derive(Debug)]
pub struct Outbox {
    path: PathBuf,
    /// What people were told.
    pub memory: Memory,
    letters: Vec<Waiting>,
}

impl Outbox {
    /// Open the state in this directory, which is made if it is missing.
    ///
    /// # Errors
    /// The directory cannot be made, or the file cannot be read.
    pub fn open(directory: &Path) -> Result<Self, OutboxError> {
        let path = directory.join("notices.json");
        let failed = |source| OutboxError { path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let state = match read(&path) {
            Ok(bytes) => match serde_json::from_slice::<State>(&bytes) {
                Ok(state) => state,
                Err(error) => {
                    let aside = directory.join("notices.json.bad");
                    fs::rename(&path, &aside).map_err(failed)?;
                    tracing::warn!(path = %path.display(), aside = %aside.display(), %error, "not our state: set aside");
                    State::default()
                }
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => State::default(),
            Err(e) => return Err(failed(e)),
        };
        Ok(Self { path, memory: state.memory, letters: state.letters })
    }

    /// Put a letter in; whether there was room.
    pub fn post(&mut self, now: Timestamp, letter: Letter) -> bool {
        let room = self.letters.len() < MOST;
        if room {
            self.letters.push(Waiting { letter, since: now, next: now, tries: 0 });
        }
        room
    }

    /// The letter whose turn it is, with its place.
    #[must_use]
    pub fn due(&self, now: Timestamp) -> Option<(usize, &Letter)> {
        let found = self.letters.iter().enumerate().find(|(_, waiting)| waiting.next <= now);
        found.map(|(place, waiting)| (place, &waiting.letter))
    }

    /// The letter at this place.
    #[must_use]
    pub fn letter(&self, place: usize) -> Option<&Letter> {
        self.letters.get(place).map(|waiting| &waiting.letter)
    }

    /// When the next letter is due.
    #[must_use]
    pub fn next(&self) -> Option<Timestamp> {
        self.letters.iter().map(|waiting| waiting.next).min()
    }

    /// The letter at this place was delivered.
    pub fn delivered(&mut self, place: usize) {
        if place < self.letters.len() {
            self.letters.remove(place);
        }
    }

    /// It was not; whether it is given up.
    pub fn failed(&mut self, now: Timestamp, place: usize) -> bool {
        let Some(waiting) = self.letters.get_mut(place) else { return false };
        if now.since(waiting.since) >= GIVE_UP {
            self.letters.remove(place);
            return true;
        }
        waiting.next = now.plus(FIRST.saturating_mul(1 << waiting.tries.min(6)).min(LONGEST));
        waiting.tries += 1;
        false
    }

    /// Make all of it durable.
    ///
    /// # Errors
    /// The directory does not take it; the old state stays.
    pub fn save(&self) -> Result<(), OutboxError> {
        let failed = |source| OutboxError { path: self.path.clone(), source };
        let state = State { schema: 1, memory: self.memory.clone(), letters: self.letters.clone() };
        let bytes = serde_json::to_vec(&state).map_err(|e| failed(e.into()))?;
        let beside = self.path.with_extension("json.new");
        match fs::remove_file(&beside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&beside).map_err(failed)?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&beside, &self.path).map_err(failed)?;
        match self.path.parent() {
            Some(directory) => File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed),
            None => Ok(()),
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?
        .take(MAX_FILE)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notice::letter::Way;

    fn letter(subject: &str) -> Letter {
        Letter {
            way: Way::Webhook,
            whom: "user alice".into(),
            from: String::new(),
            to: vec![],
            subject: subject.into(),
            body: String::new(),
        }
    }

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    #[test]
    fn letters_and_memory_outlive_a_restart_and_failures_come_later_and_later() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let mut outbox = Outbox::open(&state).unwrap();
        assert!(outbox.post(NOW, letter("one")) && outbox.post(NOW, letter("two")));
        outbox.memory.providers.entry("grid".into()).or_default().insert(crate::error::Kind::Tls);
        assert!(!outbox.failed(NOW, 0));
        outbox.save().unwrap();
        let mut outbox = Outbox::open(&state).unwrap();
        assert_eq!(outbox.due(NOW).unwrap().1.subject, "two");
        assert!(outbox.memory.providers.contains_key("grid"));
        outbox.delivered(1);
        assert_eq!((outbox.due(NOW), outbox.next()), (None, Some(NOW.plus(FIRST))));
        let mut now = NOW;
        while let Some(next) = outbox.next() {
            now = next;
            let (place, _) = outbox.due(now).unwrap();
            outbox.failed(now, place);
        }
        assert!(now.since(NOW) >= GIVE_UP && now.since(NOW) < GIVE_UP + LONGEST, "{:?}", now.since(NOW));
    }

    #[test]
    fn a_state_that_is_none_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("notices.json"), "half a").unwrap();
        let outbox = Outbox::open(dir.path()).unwrap();
        assert!(outbox.next().is_none());
        assert_eq!(fs::read_to_string(dir.path().join("notices.json.bad")).unwrap(), "half a");
    }
}
