//! A log file in HTCondor's manner: above its limit it is renamed, to `.old` if one is kept, else to
//! `.YYYYMMDDTHHMMSS` (local time), of which the newest are kept.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::libc;

use super::LogError;

/// When a log file is renamed, and how many renamed ones stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes (`MAX_<NAME>_LOG`); 0: never.
    pub limit: u64,
    /// How many (`MAX_NUM_<NAME>_LOG`); 0 counts as 1.
    pub keep: u32,
}

/// The open file.
pub(super) struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    size: u64,
}

impl LogFile {
    pub(super) fn open(path: &Path, rotation: Rotation) -> Result<Self, LogError> {
        let (file, size) = open(path)?;
        Ok(Self { path: path.to_owned(), rotation, file, size })
    }

    pub(super) fn reopen(&mut self) -> Result<(), LogError> {
        (self.file, self.size) = open(&self.path)?;
        Ok(())
    }

    pub(super) fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
        let limit = self.rotation.limit;
        let full = limit > 0 && self.size > 0 && self.size.saturating_add(length) > limit;
        if full {
            self.rotate();
        }
        self.file.write_all(line)?;
        self.size = self.size.saturating_add(length);
        Ok(())
    }

    /// Once renamed, or gone, the file is nothing to write on to, whatever becomes of older ones. What fails is tried again
    /// at the next line.
    fn rotate(&mut self) {
        let keep = self.rotation.keep;
        match rename(&self.path, keep) {
            Ok(()) => {}
            // Renamed before, when no new one could be opened.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return,
        }
        if let Ok(fresh) = open(&self.path) {
            (self.file, self.size) = fresh;
        }
        if keep > 1 {
            // One that cannot be removed now stays; the next rotation tries again.
            prune(&self.path, keep).ok();
        }
    }
}

/// Never through a symbolic link: the log directory belongs to condor, and we may be root.
fn open(path: &Path) -> Result<(File, u64), LogError> {
    let failed = |source| LogError::File { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    options.append(true).custom_flags(libc::O_NOFOLLOW | libc::O_NOCTTY | libc::O_NONBLOCK).mode(0o644);
    let file = match options.clone().create_new(true).open(path) {
        Ok(file) => {
            // The umask may have closed it to condor.
            file.set_permissions(Permissions::from_mode(0o644)).map_err(failed)?;
            file
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => options.open(path).map_err(failed)?,
        Err(e) => return Err(failed(e)),
    };
    let size = file.metadata().map_err(failed)?.len();
    Ok((file, size))
}

fn rename(path: &Path, keep: u32) -> io::Result<()> {
    if keep <= 1 {
        return std::fs::rename(path, beside(path, "old"));
    }
    let name = beside(path, &jiff::ZonedDateTime::now().strftime("%Y%m%dT%H%M%S").to_string());
    if name.exists() {
        // Twice in a second: the next line tries again, and nothing is overwritten.
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    std::fs::rename(path, name)
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// Remove the oldest renamed ones above the number that is kept.
fn prune(path: &Path, keep: u32) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(());
    };
    let mut old: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let is_ours = entry
            .file_name()
            .to_str()
            .and_then(|found| found.strip_prefix(name)?.strip_prefix('.').map(is_stamp))
            .unwrap_or(false);
        if is_ours {
            old.push(entry.path());
        }
    }
    old.sort();
    let surplus = old.len().saturating_sub(usize::try_from(keep).unwrap_or(usize::MAX));
    let removed: Vec<io::Result<()>> = old.iter().take(surplus).map(std::fs::remove_file).collect();
    removed.into_iter().collect()
}

/// `YYYYMMDDTHHMMSS`
fn is_stamp(text: &str) -> bool {
    text.len() == 15 && text.bytes().enumerate().all(|(at, b)| if at == 8 { b == b'T' } else { b.is_ascii_digit() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_log_is_followed_although_an_older_one_cannot_be_removed_and_others_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::create_dir(dir.path().join("log.20250101T000000")).unwrap();
        for name in ["log.20250102T000000", "log.20250103T000000"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let mut log = LogFile::open(&path, Rotation { limit: 10, keep: 2 }).unwrap();
        log.write(b"0123456789").unwrap();
        log.write(b"next\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"next\n");
        assert!(!dir.path().join("log.20250102T000000").exists());
    }

    #[test]
    fn a_log_that_could_not_be_opened_after_it_was_renamed_is_once_that_is_possible() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::open(&path, Rotation { limit: 10, keep: 1 }).unwrap();
        log.write(b"0123456789").unwrap();
        std::fs::rename(&path, dir.path().join("log.old")).unwrap();
        log.write(b"next\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"next\n");
    }

    #[test]
    fn of_several_rotated_logs_the_newest_stay_and_other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let touch = |name: &str| std::fs::write(dir.path().join(name), name).unwrap();
        for name in
            ["log.20250101T000000", "log.20250102T000000", "log.20250103T000000", "log.old", "log.2025", "other"]
        {
            touch(name);
        }
        let mut log = LogFile::open(&path, Rotation { limit: 10, keep: 3 }).unwrap();
        log.write(b"0123456789").unwrap();
        log.write(b"next\n").unwrap();
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names.len(), 7, "{names:?}");
        assert!(!names.contains(&"log.20250101T000000".to_owned()), "{names:?}");
        assert_eq!(std::fs::read(&path).unwrap(), b"next\n");
        // In the same second nothing is overwritten: the log grows instead.
        log.write(b"0123456789").unwrap();
        log.write(b"0123456789").unwrap();
        assert_eq!(names.iter().filter(|name| name.len() == 19).count(), 3, "{names:?}");
    }
}
