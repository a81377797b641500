//! Opening the issuer's page in the user's browser: only where one is local, and only a URL that is no secret, because
//! it travels as an argument that others on this host can read.

use std::process::{Command, Stdio};

use super::flow::Invitation;

const OPENER: &str = "/usr/bin/xdg-open";

/// Open the page of a device flow, without the code; false: nothing was opened.
#[must_use]
pub fn open(invitation: &Invitation) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let local = (set("DISPLAY") || set("WAYLAND_DISPLAY")) && !set("SSH_CONNECTION");
    // The consent URL of a mytoken server is a secret as long as it is open; a page where a code is typed is none.
    if !local || invitation.code.is_none() {
        return false;
    }
    let mut command = Command::new(OPENER);
    command.arg(&invitation.url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().is_ok()
}
