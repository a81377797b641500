//! What must outlive the keeper about replicas: the file `replicas.journal` in the state directory, one JSON object a
//! line, appended to.
//!
//! | line | says |
//! |---|---|
//! | `{"evercred_replicas":1}` | the first line |
//! | `{"c":"alice/grid_x","g":1800000000,"h":"…"}` | that credential's generation, and the hash of its content |
//! | `{"c":"alice/grid_x","s":"site","a":1800000000,"t":ms,"d":"…"}` | what the site confirmed, when, and which destination it was (a hash) |
//! | `{"s":"site","n":"key","v":"…"}` | a note of the replicator's; without `v` it is over |
//!
//! No secret is in it. A generation is on disk (fdatasync) before anything is sent under it. Killed in the middle of a
//! line, we find a torn last one, which is skipped. At the start, and when most of it is old, it is written anew beside
//! itself and renamed. One with other lines that cannot be read is kept as `replicas.journal.damaged-SECONDS`, with all
//! that is in it, before that. `replicas.lock` keeps a second credmon away.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufRead, BufReader, Seek, SeekFrom, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::core::{
    id::{CredentialId, UserName},
    time::Timestamp,
};

const NAME: &str = "replicas.journal";
/// Written anew when it has this many lines, and four times more than it needs.
const MANY: usize = 10_000;

/// The state directory cannot be used.
#[derive(Debug, Error)]
pub enum JournalError {
    /// A call failed.
    #[error("state_directory {}: cannot {doing}: {source}; make it for the credmon's user alone (mode 0700), or name another in [daemon]", path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// In the words of "cannot …".
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Others may write there.
    #[error("state_directory {}: others may write there; run `chmod 700` on it, and let it belong to the credmon's user", .0.display())]
    Open(PathBuf),
    /// Another credmon uses it.
    #[error("state_directory {}: another credmon uses it; give each its own in [daemon]", .0.display())]
    Locked(PathBuf),
    /// It is of a later version.
    #[error("{}: of another version of evercred; move it away to begin anew (every replica is then sent once more)", .0.display())]
    Version(PathBuf),
}

/// One line.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    evercred_replicas: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    c: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    g: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    h: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    a: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    t: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    d: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    v: Option<String>,
}

/// What is known of one credential.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Its last generation.
    pub generation: u64,
    /// What that stands for.
    pub hash: [u8; 16],
    /// By the name of the site: what it confirmed.
    pub sites: BTreeMap<String, Confirmed>,
}

/// What a site confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmed {
    /// The generation.
    pub generation: u64,
    /// When.
    pub at: Timestamp,
    /// Which destination the name stood for, see [`Site::destination`](crate::config::site_settings::Site::destination).
    pub destination: String,
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    file: File,
    lines: usize,
    /// With this many, it is looked whether most of it is old: one pass over everything that is known.
    look_at: usize,
    /// A write failed half way, and could not be taken back: the next line begins on a line of its own.
    torn: bool,
    credentials: BTreeMap<CredentialId, Memory>,
    notes: BTreeMap<(String, String), String>,
    _lock: Flock<OwnedFd>,
}

impl Journal {
    /// Open the state directory (made with 0700 if it is missing), lock it, read what is there and tidy up.
    ///
    /// # Errors
    /// [`JournalError`]
    pub fn open(directory: &Path) -> Result<Self, JournalError> {
        let io = |doing| {
            let path = directory.to_owned();
            move |source| JournalError::Io { path, doing, source }
        };
        if !directory.exists() {
            DirBuilder::new().mode(0o700).create(directory).map_err(io("make it"))?;
        }
        let meta = fs::metadata(directory).map_err(io("look at it"))?;
        let ours = meta.uid() == 0 || meta.uid() == nix::unistd::geteuid().as_raw();
        if !ours || meta.mode() & 0o022 != 0 {
            return Err(JournalError::Open(directory.to_owned()));
        }
        let lock = options().open(directory.join("replicas.lock")).map_err(io("make replicas.lock in it"))?;
        let lock = Flock::lock(OwnedFd::from(lock), FlockArg::LockExclusiveNonblock)
            .map_err(|_| JournalError::Locked(directory.to_owned()))?;
        let path = directory.join(NAME);
        let (mut credentials, mut notes) = (BTreeMap::new(), BTreeMap::new());
        match File::open(&path) {
            Ok(file) => {
                let skipped = read(BufReader::new(file), &path, &mut credentials, &mut notes)?;
                if skipped > 0 {
                    let aside = set_aside(&path).map_err(io("set the damaged replicas.journal in it aside"))?;
                    tracing::error!(
                        path = %path.display(), aside = %aside.display(), skipped,
                        "lines of the journal cannot be read; what they say is sent again, and the whole file is kept"
                    );
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(io("open replicas.journal in it")(e)),
        }
        let (file, lines) = rewrite(directory, &credentials, &notes).map_err(io("write replicas.journal in it"))?;
        let look_at = MANY.max(4 * lines);
        Ok(Self { directory: directory.to_owned(), file, lines, look_at, torn: false, credentials, notes, _lock: lock })
    }

    /// Everything that is known of credentials.
    pub fn credentials(&self) -> impl Iterator<Item = (&CredentialId, &Memory)> {
        self.credentials.iter()
    }

    /// What is known of one.
    #[must_use]
    pub fn memory(&self, id: &CredentialId) -> Option<&Memory> {
        self.credentials.get(id)
    }

    /// The notes: site, key, value.
    pub fn notes(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.notes.iter().map(|((site, key), value)| (site.as_str(), key.as_str(), value.as_str()))
    }

    /// Append generations, durably.
    ///
    /// # Errors
    /// They are not durable; what stands there already still counts.
    pub fn record(&mut self, generations: &[(CredentialId, u64, [u8; 16])]) -> io::Result<()> {
        let lines = generations.iter().map(|(id, generation, hash)| Line {
            c: Some(id.to_string()),
            g: Some(*generation),
            h: Some(hex(hash)),
            ..Line::default()
        });
        self.append(lines)?;
        self.file.sync_data()?;
        for (id, generation, hash) in generations {
            let memory = self.credentials.entry(id.clone()).or_default();
            (memory.generation, memory.hash) = (*generation, *hash);
        }
        self.tidy()
    }

    /// Append what a site confirmed. Not synced: lost, it costs one delivery that the far end recognises.
    ///
    /// # Errors
    /// It could not be written.
    pub fn acknowledge(&mut self, id: &CredentialId, site: &str, confirmed: Confirmed) -> io::Result<()> {
        let line = confirmation(id, site, &confirmed);
        self.credentials.entry(id.clone()).or_default().sites.insert(site.to_owned(), confirmed);
        self.append([line])?;
        self.tidy()
    }

    /// Append a note, durably.
    ///
    /// # Errors
    /// It could not be written.
    pub fn note(&mut self, site: &str, key: &str, value: Option<&str>) -> io::Result<()> {
        let place = (site.to_owned(), key.to_owned());
        match value {
            Some(value) => drop(self.notes.insert(place, value.to_owned())),
            None => drop(self.notes.remove(&place)),
        }
        self.append([Line {
            s: Some(site.to_owned()),
            n: Some(key.to_owned()),
            v: value.map(str::to_owned),
            ..Line::default()
        }])?;
        self.file.sync_data()
    }

    /// Forget a credential that left the spool. It stays in the file until that is written anew.
    pub fn forget(&mut self, id: &CredentialId) {
        self.credentials.remove(id);
    }

    fn append(&mut self, lines: impl IntoIterator<Item = Line>) -> io::Result<()> {
        let mut text = if self.torn { "\n".to_owned() } else { String::new() };
        let mut count = 0;
        for line in lines {
            text.push_str(&serde_json::to_string(&line)?);
            text.push('\n');
            count += 1;
        }
        let end = self.file.stream_position()?;
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            // On a full disk half of it may be there. It is taken back, so that no later reader takes it for damage.
            let taken_back = self.file.set_len(end).and_then(|()| self.file.seek(SeekFrom::Start(end)));
            self.torn |= taken_back.is_err();
            return Err(error);
        }
        self.torn = false;
        self.lines += count;
        Ok(())
    }

    fn tidy(&mut self) -> io::Result<()> {
        if self.lines <= self.look_at {
            return Ok(());
        }
        let needed = self.credentials.values().map(|memory| 1 + memory.sites.len()).sum::<usize>() + self.notes.len();
        self.look_at = MANY.max(4 * needed);
        if self.lines > self.look_at {
            (self.file, self.lines) = rewrite(&self.directory, &self.credentials, &self.notes)?;
        }
        Ok(())
    }
}

fn confirmation(id: &CredentialId, site: &str, confirmed: &Confirmed) -> Line {
    Line {
        c: Some(id.to_string()),
        s: Some(site.to_owned()),
        a: Some(confirmed.generation),
        t: Some(confirmed.at.0),
        d: Some(confirmed.destination.clone()),
        ..Line::default()
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
    options
}

/// Give a damaged journal a second name, which nothing of ours writes over.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    for number in now..now.saturating_add(1000) {
        let aside = path.with_file_name(format!("{NAME}.damaged-{number}"));
        match fs::hard_link(path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other.map(|()| aside),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// How many lines could not be read, but for a last one that is torn.
fn read(
    mut from: impl BufRead,
    path: &Path,
    credentials: &mut BTreeMap<CredentialId, Memory>,
    notes: &mut BTreeMap<(String, String), String>,
) -> Result<usize, JournalError> {
    let (mut skipped, mut first) = (0_usize, true);
    let mut text = Vec::new();
    loop {
        text.clear();
        let failed = |source| JournalError::Io { path: path.to_owned(), doing: "read it", source };
        if from.read_until(b'\n', &mut text).map_err(failed)? == 0 {
            return Ok(skipped);
        }
        let first = std::mem::take(&mut first);
        let whole = text.last() == Some(&b'\n');
        if text.trim_ascii().is_empty() {
            continue;
        }
        let Ok(line) = serde_json::from_slice::<Line>(&text) else {
            skipped += usize::from(whole || first);
            continue;
        };
        if first && line.evercred_replicas.is_some_and(|version| version != 1) {
            return Err(JournalError::Version(path.to_owned()));
        }
        if first && line.evercred_replicas.is_none() {
            skipped += 1;
        }
        match line {
            Line { c: Some(c), g: Some(generation), h: Some(h), .. } => {
                if let (Some(id), Some(hash)) = (id_of(&c), unhex(&h)) {
                    let memory = credentials.entry(id).or_default();
                    (memory.generation, memory.hash) = (generation, hash);
                }
            }
            Line { c: Some(c), s: Some(site), a: Some(generation), t: Some(t), d, .. } => {
                if let Some(id) = id_of(&c) {
                    // Without a destination it is of an earlier version, and is asked for once more.
                    let confirmed = Confirmed { generation, at: Timestamp(t), destination: d.unwrap_or_default() };
                    credentials.entry(id).or_default().sites.insert(site, confirmed);
                }
            }
            Line { s: Some(site), n: Some(key), v: Some(value), .. } => drop(notes.insert((site, key), value)),
            Line { s: Some(site), n: Some(key), v: None, .. } => drop(notes.remove(&(site, key))),
            _ => {}
        }
    }
}

fn rewrite(
    directory: &Path,
    credentials: &BTreeMap<CredentialId, Memory>,
    notes: &BTreeMap<(String, String), String>,
) -> io::Result<(File, usize)> {
    let (path, temporary) = (directory.join(NAME), directory.join(".replicas.journal.new"));
    let file = options().truncate(true).open(&temporary)?;
    let mut out = io::BufWriter::new(file);
    let mut lines = 1;
    let mut put = |line: &Line| -> io::Result<()> {
        serde_json::to_writer(&mut out, line)?;
        lines += 1;
        out.write_all(b"\n")
    };
    put(&Line { evercred_replicas: Some(1), ..Line::default() })?;
    for (id, memory) in credentials {
        let c = Some(id.to_string());
        put(&Line { c, g: Some(memory.generation), h: Some(hex(&memory.hash)), ..Line::default() })?;
        for (site, confirmed) in &memory.sites {
            put(&confirmation(id, site, confirmed))?;
        }
    }
    for ((site, key), value) in notes {
        let (s, n, v) = (Some(site.clone()), Some(key.clone()), Some(value.clone()));
        put(&Line { s, n, v, ..Line::default() })?;
    }
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    File::open(directory)?.sync_all()?;
    // Positions are those of the new file's end.
    Ok((file, lines))
}

pub(super) fn id_of(text: &str) -> Option<CredentialId> {
    let (user, base) = text.split_once('/')?;
    CredentialId::from_base(UserName::parse(user).ok()?, base).ok()
}

fn hex(hash: &[u8; 16]) -> String {
    hash.iter().fold(String::with_capacity(32), |text, byte| text + &format!("{byte:02x}"))
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32).map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(user: &str) -> CredentialId {
        CredentialId::from_base(UserName::parse(user).unwrap(), "grid_x").unwrap()
    }

    fn confirmed(generation: u64) -> Confirmed {
        Confirmed { generation, at: Timestamp(5), destination: "d1".into() }
    }

    fn known(journal: &Journal) -> Vec<(String, Memory)> {
        journal.credentials().map(|(id, memory)| (id.to_string(), memory.clone())).collect()
    }

    #[test]
    fn what_was_recorded_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("state");
        let mut journal = Journal::open(&home).unwrap();
        journal.record(&[(id("alice"), 7, [0xab; 16]), (id("bob"), 9, [1; 16])]).unwrap();
        journal.acknowledge(&id("alice"), "nersc", confirmed(7)).unwrap();
        journal.note("nersc", "function", Some("uuid")).unwrap();
        journal.note("nersc", "task", Some("1")).unwrap();
        journal.note("nersc", "task", None).unwrap();
        journal.record(&[(id("bob"), 10, [2; 16])]).unwrap();
        let before = known(&journal);
        drop(journal);
        for _ in 0..2 {
            let journal = Journal::open(&home).unwrap();
            assert_eq!(known(&journal), before);
            assert_eq!(journal.notes().collect::<Vec<_>>(), [("nersc", "function", "uuid")]);
        }
        assert_eq!(before[0].1.sites["nersc"], confirmed(7));
        assert_eq!(before[1].1.generation, 10);
    }

    #[test]
    fn a_torn_last_line_loses_that_line_alone_and_what_follows_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.record(&[(id("alice"), 7, [1; 16]), (id("bob"), 9, [2; 16])]).unwrap();
        drop(journal);
        let path = dir.path().join(NAME);
        let whole = fs::read(&path).unwrap();
        let second = whole.len() - whole.split(|b| *b == b'\n').rev().nth(1).unwrap().len() - 1;
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut journal = Journal::open(dir.path()).unwrap();
            let names: Vec<String> = known(&journal).into_iter().map(|(name, _)| name).collect();
            assert!(cut < second || names.contains(&"alice/grid_x".to_owned()), "cut at {cut}: {names:?}");
            journal.record(&[(id("carol"), 1, [3; 16])]).unwrap();
            drop(journal);
            let journal = Journal::open(dir.path()).unwrap();
            assert!(known(&journal).iter().any(|(name, _)| name == "carol/grid_x"), "cut at {cut}");
        }
    }

    #[test]
    fn what_a_full_disk_took_half_of_is_taken_back_and_what_follows_is_whole() {
        struct Unmount(PathBuf);
        impl Drop for Unmount {
            fn drop(&mut self) {
                std::process::Command::new("umount").arg("-l").arg(&self.0).status().ok();
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=16k,mode=700", "none"]).arg(dir.path());
        if !mount.stderr(std::process::Stdio::null()).status().is_ok_and(|status| status.success()) {
            println!("skipped: a file system of 16 KiB cannot be mounted here (needs root)");
            return;
        }
        let _mounted = Unmount(dir.path().to_owned());
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.record(&[(id("alice"), 7, [1; 16])]).unwrap();
        let (path, fill) = (dir.path().join(NAME), dir.path().join("fill"));
        let before = fs::read(&path).unwrap();
        fs::write(&fill, [0; 16 << 10]).unwrap_err();
        // More than the rest of its page, which is all that it can have.
        let many: Vec<_> = (0..100).map(|n| (id(&format!("user{n}")), n, [2; 16])).collect();
        assert_eq!(journal.record(&many).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), before, "nothing of it stays");
        journal.acknowledge(&id("alice"), "nersc", confirmed(7)).unwrap();
        fs::remove_file(&fill).unwrap();
        journal.record(&[(id("bob"), 9, [2; 16])]).unwrap();
        let known_before = known(&journal);
        drop(journal);
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(known(&journal), known_before);
        assert_eq!(known_before.len(), 2);
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert!(!names.into_iter().any(|name| name.contains("damaged")), "half a line was taken for damage");
    }

    #[test]
    fn a_damaged_journal_is_kept_whole_and_what_can_be_read_of_it_counts() {
        let names = |dir: &Path| {
            let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.contains("damaged")).collect::<Vec<_>>()
        };
        for (at, with) in [(0, "garbage\n"), (0, "\0\0\0\0"), (1, "{\"c\":\n"), (2, "\u{fffd}\n")] {
            let dir = tempfile::tempdir().unwrap();
            let mut journal = Journal::open(dir.path()).unwrap();
            journal.record(&[(id("alice"), 7, [1; 16]), (id("bob"), 9, [2; 16])]).unwrap();
            drop(journal);
            let path = dir.path().join(NAME);
            let text = fs::read_to_string(&path).unwrap();
            let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
            if with.ends_with('\n') {
                lines[at] = with;
            } else {
                lines = vec![with];
            }
            let damaged = lines.concat();
            fs::write(&path, &damaged).unwrap();
            let journal = Journal::open(dir.path()).unwrap();
            let left = if at == 0 && lines.len() > 1 { 2 } else { lines.len() - 1 - usize::from(at > 0) };
            assert_eq!(known(&journal).len(), left, "{with:?} at {at}");
            drop(journal);
            let [aside] = &names(dir.path())[..] else { panic!("{with:?} at {at}") };
            assert_eq!(fs::read_to_string(dir.path().join(aside)).unwrap(), damaged);
            drop(Journal::open(dir.path()).unwrap());
            assert_eq!(names(dir.path()).len(), 1, "the one that was written anew is whole");
        }
    }

    #[test]
    fn a_second_credmon_another_version_and_an_open_directory_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let first = Journal::open(dir.path()).unwrap();
        assert!(matches!(Journal::open(dir.path()), Err(JournalError::Locked(_))));
        drop(first);
        fs::write(dir.path().join(NAME), "{\"evercred_replicas\":2}\n").unwrap();
        assert!(matches!(Journal::open(dir.path()), Err(JournalError::Version(_))));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Journal::open(dir.path()), Err(JournalError::Open(_))));
    }

    #[test]
    fn a_long_journal_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.record(&[(id("alice"), 1, [1; 16])]).unwrap();
        for n in 0..(MANY as u64 + 10) {
            journal.acknowledge(&id("alice"), "nersc", confirmed(n)).unwrap();
        }
        assert!(journal.lines < 100, "{}", journal.lines);
        drop(journal);
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(known(&journal)[0].1.sites["nersc"].generation, MANY as u64 + 9);
    }
}
