//! What people were told and which letters wait, in `<state_directory>/notices.json` (mode 0600, written beside and
//! renamed). What is told is noted, and its letters are on disk, before the first one is sent: a crash may send a
//! letter twice (what became of letters is written at most once a second while more are due), never none and never all of them again.
//! While the directory takes nothing, nothing new is told, and what waits goes on: what became of it is known here, and written
//! once that is possible; only a restart in between sends it again. A file that is no such state is set aside, with a word.
//! Each way of delivery has its own turn and its own pause after failures, so that one that hangs holds up no other.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::libc;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::letter::{Letter, Way};
use crate::core::{
    notice::Memory,
    time::{Timestamp, rfc3339},
};

/// After the first failure; it doubles, to [`LONGEST`].
const FIRST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);
/// How long a way is left alone after a first failure; it doubles with each further one, to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A letter that could not be delivered for so long is given up.
const GIVE_UP: Duration = Duration::from_secs(3 * 86_400);
/// So many letters wait at most, and so many more for admins; what does not fit is decided anew later.
pub const MOST: usize = 10_000;
const RESERVED: usize = 1000;
/// Between two writes of what became of letters, as long as more are due.
const BETWEEN_SAVES: Duration = Duration::from_secs(1);
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
    /// Its number, as long as the outbox is open.
    #[serde(skip)]
    pub number: u64,
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
    /// The last number.
    number: u64,
    /// Ways that failed: how often in a row, and until when they are left alone.
    pauses: BTreeMap<Way, (u32, Timestamp)>,
    /// Something became of a letter that is not on disk.
    unsaved: bool,
    saved: Option<Instant>,
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
        let State { memory, mut letters, .. } = state;
        let mut number = 0;
        for waiting in &mut letters {
            number += 1;
            waiting.number = number;
        }
        Ok(Self { path, memory, letters, number, pauses: BTreeMap::new(), unsaved: false, saved: None })
    }

    /// For how many more letters there is room.
    #[must_use]
    pub fn room(&self, for_admins: bool) -> usize {
        (if for_admins { MOST + RESERVED } else { MOST }).saturating_sub(self.letters.len())
    }

    /// Whether this is the outbox of that directory.
    #[must_use]
    pub fn is_in(&self, directory: &Path) -> bool {
        self.path.parent() == Some(directory)
    }

    /// Note what is told, and put its letters in, durably.
    ///
    /// # Errors
    /// As [`Self::save`]; then all is as it was before.
    pub fn tell(&mut self, now: Timestamp, memory: Memory, letters: Vec<Letter>) -> Result<(), OutboxError> {
        let before = self.letters.len();
        let memory = std::mem::replace(&mut self.memory, memory);
        for letter in letters {
            self.post(now, letter);
        }
        if let Err(error) = self.save() {
            self.letters.truncate(before);
            self.memory = memory;
            return Err(error);
        }
        self.unsaved = false;
        Ok(())
    }

    /// Put a letter in.
    pub fn post(&mut self, now: Timestamp, letter: Letter) {
        self.number += 1;
        self.letters.push(Waiting { number: self.number, letter, since: now, next: now, tries: 0 });
    }

    /// Not before this moment by its way.
    fn turn(&self, waiting: &Waiting) -> Timestamp {
        self.pauses.get(&waiting.letter.way).map_or(waiting.next, |(_, until)| waiting.next.max(*until))
    }

    /// The letter whose turn it is by a way that is `free`, with its number: of those that are due, the least
    /// tried, and of these the admins' before users'.
    #[must_use]
    pub fn due(&self, now: Timestamp, free: impl Fn(Way) -> bool) -> Option<(u64, &Letter)> {
        let due = self.letters.iter().filter(|waiting| free(waiting.letter.way) && self.turn(waiting) <= now);
        due.min_by_key(|waiting| (waiting.tries, !waiting.letter.for_admins))
            .map(|waiting| (waiting.number, &waiting.letter))
    }

    /// The letter of this number.
    #[must_use]
    pub fn letter(&self, number: u64) -> Option<&Letter> {
        self.letters.get(self.place(number)?).map(|waiting| &waiting.letter)
    }

    fn place(&self, number: u64) -> Option<usize> {
        self.letters.iter().position(|waiting| waiting.number == number)
    }

    /// When the next letter by a way that is `free` is due.
    #[must_use]
    pub fn next(&self, free: impl Fn(Way) -> bool) -> Option<Timestamp> {
        self.letters.iter().filter(|waiting| free(waiting.letter.way)).map(|waiting| self.turn(waiting)).min()
    }

    /// The letter of this number was delivered.
    pub fn delivered(&mut self, number: u64) {
        if let Some(place) = self.place(number) {
            let Waiting { letter, .. } = self.letters.remove(place);
            self.pauses.remove(&letter.way);
        }
    }

    /// It was not; whether it is given up.
    pub fn failed(&mut self, now: Timestamp, number: u64) -> bool {
        let Some(place) = self.place(number) else { return false };
        let Some(waiting) = self.letters.get_mut(place) else { return false };
        let (times, until) = self.pauses.entry(waiting.letter.way).or_default();
        *until = now.plus(PAUSE.saturating_mul(1 << (*times).min(16)).min(LONGEST_PAUSE));
        *times = times.saturating_add(1);
        if now.since(waiting.since) >= GIVE_UP {
            self.letters.remove(place);
            return true;
        }
        waiting.next = now.plus(FIRST.saturating_mul(1 << waiting.tries.min(6)).min(LONGEST));
        waiting.tries += 1;
        false
    }

    /// The letter of this number never will be; whether it was there.
    pub fn give_up(&mut self, number: u64) -> bool {
        let place = self.place(number);
        place.map(|place| self.letters.remove(place)).is_some()
    }

    /// Something became of a letter: it is to be saved.
    pub fn changed(&mut self) {
        self.unsaved = true;
    }

    /// All letters, in the order in which they would go.
    #[cfg(test)]
    pub fn drain(&mut self) -> Vec<Letter> {
        let mut waiting = std::mem::take(&mut self.letters);
        waiting.sort_by_key(|waiting| (waiting.tries, !waiting.letter.for_admins));
        waiting.into_iter().map(|waiting| waiting.letter).collect()
    }

    /// How long until [`Self::save_in_time`] saves for sure; none: there is nothing to save.
    #[must_use]
    pub fn save_wait(&self, clock: Instant) -> Option<Duration> {
        let left = |saved: Instant| BETWEEN_SAVES.saturating_sub(clock.saturating_duration_since(saved));
        self.unsaved.then(|| self.saved.map_or(Duration::ZERO, left))
    }

    /// Save what became of letters, at most once a second while more of them are due. Whether it did.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn save_in_time(&mut self, now: Timestamp, clock: Instant) -> Result<bool, OutboxError> {
        let Some(wait) = self.save_wait(clock) else { return Ok(false) };
        if !wait.is_zero() && self.due(now, |_| true).is_some() {
            return Ok(false);
        }
        // A disk that refuses is not asked again at once.
        self.saved = Some(clock);
        self.flush().map(|()| true)
    }

    /// Save what became of letters, now.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn flush(&mut self) -> Result<(), OutboxError> {
        if self.unsaved {
            self.save()?;
            self.unsaved = false;
        }
        Ok(())
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
            for_admins: false,
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
        outbox.post(NOW, letter("one"));
        outbox.post(NOW, letter("two"));
        outbox.memory.providers.entry("grid".into()).or_default().insert(crate::error::Kind::Tls);
        assert!(!outbox.failed(NOW, 1));
        outbox.save().unwrap();
        let mut outbox = Outbox::open(&state).unwrap();
        let (number, two) = outbox.due(NOW, all).unwrap();
        assert_eq!(two.subject, "two");
        assert!(outbox.memory.providers.contains_key("grid"));
        outbox.delivered(number);
        assert_eq!((outbox.due(NOW, all), outbox.next(all)), (None, Some(NOW.plus(FIRST))));
        let mut now = NOW;
        while let Some(next) = outbox.next(all) {
            now = next;
            let (number, _) = outbox.due(now, all).unwrap();
            outbox.failed(now, number);
        }
        assert!(now.since(NOW) >= GIVE_UP && now.since(NOW) < GIVE_UP + LONGEST, "{:?}", now.since(NOW));
    }

    fn all(_: Way) -> bool {
        true
    }

    #[test]
    fn a_way_that_fails_is_left_alone_for_a_while_and_others_go_on_with_the_least_tried_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = Outbox::open(dir.path()).unwrap();
        let mail = |subject| Letter { way: Way::Smtp, ..letter(subject) };
        for one in [mail("mail 1"), mail("mail 2"), letter("hook 1"), letter("hook 2")] {
            outbox.post(NOW, one);
        }
        let due = |outbox: &Outbox, now, busy: Option<Way>| {
            outbox.due(now, |way| Some(way) != busy).map(|(number, letter)| (number, letter.subject.clone()))
        };
        assert_eq!(due(&outbox, NOW, Some(Way::Smtp)).unwrap().1, "hook 1", "the mail server hangs");
        outbox.failed(NOW, 1);
        assert_eq!(due(&outbox, NOW, None).unwrap().1, "hook 1", "mails are left alone");
        let later = NOW.plus(PAUSE);
        assert_eq!(due(&outbox, later, Some(Way::Webhook)).unwrap(), (2, "mail 2".into()));
        // Failure by failure the pause grows, to its longest.
        let mut now = later;
        for _ in 0..20 {
            outbox.failed(now, 2);
            now = outbox.next(|way| way == Way::Smtp).unwrap();
        }
        assert!(outbox.pauses[&Way::Smtp].1.since(now) <= LONGEST_PAUSE);
        outbox.failed(now, 3);
        let now = now.plus(LONGEST);
        assert_eq!(due(&outbox, now, Some(Way::Smtp)).unwrap().1, "hook 2", "the least tried first");
        assert_eq!(due(&outbox, now, Some(Way::Webhook)).unwrap().1, "mail 1");
        outbox.delivered(1);
        assert!(!outbox.pauses.contains_key(&Way::Smtp), "it works again");
    }

    #[test]
    fn admins_letters_go_first_and_a_burst_of_them_is_saved_once_a_second_and_at_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = Outbox::open(dir.path()).unwrap();
        for n in 0..3 {
            outbox.post(NOW, letter(&n.to_string()));
        }
        outbox.post(NOW, Letter { for_admins: true, ..letter("admins") });
        let clock = Instant::now();
        let deliver = |outbox: &mut Outbox, millis| {
            let (number, letter) =
                outbox.due(NOW, all).map(|(number, letter)| (number, letter.subject.clone())).unwrap();
            outbox.delivered(number);
            outbox.changed();
            (letter, outbox.save_in_time(NOW, clock + Duration::from_millis(millis)).unwrap())
        };
        assert_eq!(deliver(&mut outbox, 0), ("admins".into(), true));
        assert_eq!(deliver(&mut outbox, 300), ("0".into(), false), "so soon after the last one");
        assert_eq!(outbox.save_wait(clock + Duration::from_millis(400)), Some(Duration::from_millis(600)));
        assert_eq!(deliver(&mut outbox, 1000), ("1".into(), true));
        assert_eq!(deliver(&mut outbox, 1001), ("2".into(), true), "the last one that is due");
        assert_eq!(outbox.save_wait(clock), None);
        assert!(Outbox::open(dir.path()).unwrap().next(all).is_none());
    }

    #[test]
    fn what_cannot_be_saved_is_not_told_and_no_letter_comes_or_goes_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = Outbox::open(dir.path()).unwrap();
        let mut told = Memory::default();
        told.outages.insert("grid".into());
        outbox.tell(NOW, told.clone(), vec![letter("before"), letter("also before")]).unwrap();
        let beside = dir.path().join("notices.json.new");
        // Nobody, not even root, writes to this one.
        fs::create_dir_all(beside.join("full")).unwrap();
        assert!(outbox.tell(NOW, Memory::default(), vec![letter("new")]).is_err());
        assert_eq!((outbox.letters.len(), &outbox.memory), (2, &told));
        outbox.delivered(1);
        outbox.changed();
        let clock = Instant::now();
        assert!(outbox.save_in_time(NOW, clock).is_err());
        assert_eq!(outbox.due(NOW, all).unwrap().1.subject, "also before", "what was delivered is not sent again");
        fs::remove_dir_all(&beside).unwrap();
        assert!(outbox.save_in_time(NOW, clock + BETWEEN_SAVES).unwrap());
        let after = Outbox::open(dir.path()).unwrap();
        assert_eq!((after.letters.len(), after.memory), (1, told));
    }

    #[test]
    fn a_state_that_is_none_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("notices.json"), "half a").unwrap();
        let outbox = Outbox::open(dir.path()).unwrap();
        assert!(outbox.next(all).is_none());
        assert_eq!(fs::read_to_string(dir.path().join("notices.json.bad")).unwrap(), "half a");
    }
}
