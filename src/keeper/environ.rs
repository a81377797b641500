//! What `condor_master` leaves in our environment and must not stay there (HTCondor contract §5.1).

use std::{env, io, os::unix::process::CommandExt, process::Command};

/// The secret of our master's security session: with it one speaks to the daemons as one of them.
const SECRET: &str = "CONDOR_PRIVATE_INHERIT";

/// Without the secret. What a process was started with stays readable in `/proc` as long as it runs, so it is started
/// anew in its place: same pid, same arguments.
///
/// # Errors
/// The system does not start this program again.
pub fn scrub() -> io::Result<()> {
    if env::var_os(SECRET).is_none() {
        return Ok(());
    }
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_default();
    let mut command = Command::new(env::current_exe()?);
    command.arg0(name).args(arguments).env_remove(SECRET);
    Err(command.exec())
}
