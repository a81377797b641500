//! Two names change places in one step (`renameat2` with `RENAME_EXCHANGE`). By system call: the C library has the
//! function since 2.28 only, and our programs run with 2.17.

use std::os::fd::AsFd;

use nix::errno::Errno;
use rustix::fs::{RenameFlags, renameat_with};

/// Exchange `from` in `there` with `to` in `here`.
///
/// # Errors
/// What the system says; `ENOSYS` or `EINVAL` where kernel or file system cannot do it.
pub(super) fn exchange(there: impl AsFd, from: &str, here: impl AsFd, to: &str) -> nix::Result<()> {
    renameat_with(there, from, here, to, RenameFlags::EXCHANGE).map_err(|e| Errno::from_raw(e.raw_os_error()))
}
