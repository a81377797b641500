//! `pid`: whom credd signals. Decimal and a newline, mode 0644 (credd reads it as condor), replaced atomically (half
//! a number could be another process), removed at the end only while it is still ours.

use std::io::Read;

use nix::fcntl::OFlag;

use super::{Spool, SpoolError};

const NAME: &str = "pid";

pub(super) fn write(spool: &Spool) -> Result<(), SpoolError> {
    spool.place_small(NAME, format!("{}\n", std::process::id()).as_bytes())
}

pub(super) fn remove_if_ours(spool: &Spool) {
    let mut text = String::new();
    let ours = spool.top.beneath(NAME, OFlag::O_RDONLY | OFlag::O_NONBLOCK).is_ok_and(|fd| {
        std::fs::File::from(fd).take(256).read_to_string(&mut text).is_ok()
            && text.trim() == std::process::id().to_string()
    });
    if ours {
        // A `pid` that stays behind is rewritten by the next start.
        let _removed = spool.remove(NAME);
    }
}
