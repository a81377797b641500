//! One instance per credential directory: an exclusive `flock` on `.evercred.lock`, which is never removed (removing
//! it would let two instances hold a lock each). The kernel drops the lock with the process, however that ends.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag, openat},
    sys::stat::Mode,
};

use super::{SpoolError, dir::Dir};

const NAME: &str = ".evercred.lock";

/// Held until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _held: Flock<File>,
}

impl Lock {
    pub(super) fn take(top: &Dir, path: &Path) -> Result<Self, SpoolError> {
        let path = path.join(NAME);
        let base = OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        // A lock file that another uid of ours made (root before, condor now) can still be locked if it can be read.
        let fd = openat(top, NAME, base | OFlag::O_RDWR, mode)
            .or_else(|e| match e {
                Errno::EACCES => openat(top, NAME, OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, mode),
                e => Err(e),
            })
            .map_err(|e| SpoolError::io(&path, "open the lock", e))?;
        match Flock::lock(File::from(fd), FlockArg::LockExclusiveNonblock) {
            Ok(mut held) => {
                // Only for the message that names the holder; without it the lock is as good.
                let _told = held
                    .set_len(0)
                    .and_then(|()| held.rewind())
                    .and_then(|()| writeln!(held, "{}", std::process::id()));
                Ok(Self { _held: held })
            }
            Err((file, Errno::EWOULDBLOCK)) => {
                let mut text = String::new();
                let holder = file.take(32).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                Err(SpoolError::Locked { path, holder })
            }
            Err((_, e)) => Err(SpoolError::io(&path, "lock it", e)),
        }
    }
}
