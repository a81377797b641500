//! Secrets are files: regular, owned by root or by us, closed to everybody else.
//!
//! Each is read on a thread of its own, that is left alone when it takes too long: one whose mount hangs is told, and a
//! reload keeps the old settings, instead of waiting for ever.

use std::{
    fs::OpenOptions,
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::{libc, unistd::geteuid};
use zeroize::Zeroizing;

use super::{
    fragment,
    input::{Wrong, wrong},
};

/// The largest secret.
const MAX: u64 = 16 << 10;
/// A file that a setting names may take so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// The text of a secret file as credd reads those of `<S>_CLIENT_SECRET_FILE`: up to the first control character.
pub fn read_as_credd(path: &Path) -> Result<Zeroizing<String>, Wrong> {
    let mut text = read(path)?;
    let kept = text.find(char::is_control).unwrap_or(text.len());
    text.truncate(kept);
    if text.is_empty() {
        return Err(wrong(format!("{} is empty", path.display()), "write the secret into it"));
    }
    Ok(text)
}

/// The text of a secret file without the newline at its end. No message holds any of it.
pub fn read(path: &Path) -> Result<Zeroizing<String>, Wrong> {
    in_time(path, read_now)
}

/// Read a file that a setting names, or say that it does not answer.
pub(super) fn in_time<T: Send + 'static>(
    path: &Path,
    read: impl FnOnce(&Path) -> Result<T, Wrong> + Send + 'static,
) -> Result<T, Wrong> {
    within(PATIENCE, path, read)
}

fn within<T: Send + 'static>(
    patience: Duration,
    path: &Path,
    read: impl FnOnce(&Path) -> Result<T, Wrong> + Send + 'static,
) -> Result<T, Wrong> {
    let silent = |what: String| Wrong { passing: true, ..wrong(what, "see that what is mounted there answers") };
    let (to, came) = mpsc::sync_channel(1);
    let its = path.to_owned();
    // Whoever waited may have gone on.
    let thread = thread::Builder::new().name("file".into()).spawn(move || to.send(read(&its)).ok());
    thread.map_err(|e| silent(format!("{} cannot be read: no thread: {e}", path.display())))?;
    came.recv_timeout(patience)
        .unwrap_or_else(|_| Err(silent(format!("{} does not answer within {} s", path.display(), patience.as_secs()))))
}

fn read_now(path: &Path) -> Result<Zeroizing<String>, Wrong> {
    let shown = path.display();
    // Not blocking, so that a pipe in this place cannot hold us; what was opened is what is judged.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|e| unreadable(path, &e))?;
    let meta = file.metadata().map_err(|e| unreadable(path, &e))?;
    if !meta.is_file() {
        return Err(wrong(format!("{shown} is not a regular file"), "name a file that holds the secret alone"));
    }
    if meta.uid() != 0 && meta.uid() != geteuid().as_raw() {
        let what = format!("{shown} belongs to uid {}", meta.uid());
        return Err(wrong(what, format!("run `chown root {shown}` and write the secret anew")));
    }
    if meta.mode() & 0o077 != 0 {
        let what = format!("{shown} is open to others (mode {:04o})", meta.mode() & 0o7777);
        return Err(wrong(what, format!("run `chmod 600 {shown}`")));
    }
    if meta.len() > MAX {
        return Err(wrong(format!("{shown} is larger than 16 KiB"), "name a file that holds the secret alone"));
    }
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(MAX).unwrap_or(0)));
    file.by_ref().take(MAX).read_to_string(&mut text).map_err(|e| unreadable(path, &e))?;
    let kept = text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t)).len();
    text.truncate(kept);
    if text.is_empty() {
        return Err(wrong(format!("{shown} is empty"), "write the secret into it"));
    }
    Ok(text)
}

fn unreadable(path: &Path, e: &std::io::Error) -> Wrong {
    let shown = path.display();
    let advice = match e.kind() {
        std::io::ErrorKind::NotFound => "create it with mode 0600, or correct the path".to_owned(),
        std::io::ErrorKind::PermissionDenied => "run as the user that the credmon runs as (root)".to_owned(),
        _ => "name a file that holds the secret alone".to_owned(),
    };
    wrong(format!("{shown} cannot be read: {}", fragment::reason(e)), advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_does_not_answer_is_told_and_may_answer_later() {
        let (never, wait) = mpsc::channel::<()>();
        let hang = move |_: &Path| {
            wait.recv().ok();
            Ok(())
        };
        let wrong = within(Duration::from_millis(10), Path::new("/net/key"), hang).unwrap_err();
        assert!(wrong.passing && wrong.what.starts_with("/net/key does not answer"), "{wrong:?}");
        drop(never);
        assert!(within(PATIENCE, Path::new("/net/key"), |_| Ok(())).is_ok());
    }
}
