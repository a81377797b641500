//! `evercred keygen FILE`: a new Fernet key for sealing what is replicated. It goes into a file that only this user can
//! read, and nowhere else; a file that is there is never overwritten, since a key that is lost opens nothing any more.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    process::ExitCode,
};

use crate::{
    cli,
    error::{Report, exit},
    spool::Seal,
};

/// `evercred keygen`: 0, or 1.
#[must_use]
pub fn run(args: &cli::Keygen) -> ExitCode {
    let shown = args.file.display();
    match write(args) {
        Ok(()) => {
            let text = format!(
                "{shown}: a new key. Put a copy at the site (mode 0600), then name it first in `key_files` of the site here.\n"
            );
            // Nobody is left to tell if standard output is closed.
            io::stdout().lock().write_all(text.as_bytes()).ok();
            ExitCode::SUCCESS
        }
        Err(e) => Report::new(format!("{shown}: {e}"), exit::FAILED)
            .advise(if e.kind() == io::ErrorKind::AlreadyExists {
                "name a new file: a key that is in use must not be lost"
            } else {
                "name a file in a directory that this user may write to"
            })
            .print("evercred"),
    }
}

fn write(args: &cli::Keygen) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.file)?;
    let mut key = Seal::generate_key();
    key.push('\n');
    file.write_all(key.as_bytes())?;
    file.sync_all()
}
