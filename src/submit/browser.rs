//! Opening the issuer's page in the user's browser: only where one is local, and only a URL that is no secret, because
//! it travels as an argument that others on this host can read.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use super::flow::Invitation;

const OPENER: &str = "/usr/bin/xdg-open";

/// Open the page of a device flow, without the code; false: nothing was opened.
#[must_use]
pub fn open(invitation: &Invitation) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    open_with(OPENER.as_ref(), set, invitation)
}

fn open_with(opener: &Path, set: impl Fn(&str) -> bool, invitation: &Invitation) -> bool {
    let local = (set("DISPLAY") || set("WAYLAND_DISPLAY")) && !set("SSH_CONNECTION");
    // The consent URL of a mytoken server is a secret as long as it is open; a page where a code is typed is none.
    if !local || invitation.code.is_none() {
        return false;
    }
    let mut command = Command::new(opener);
    command.arg(&invitation.url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().is_ok()
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt,
        time::{Duration, Instant},
    };

    use super::*;

    fn page(code: Option<&str>) -> Invitation {
        Invitation {
            url: "https://login.example.org/device".into(),
            complete: Some("https://login.example.org/device?user_code=ABCDEFGH".into()),
            code: code.map(str::to_owned),
            expires_in: Duration::from_secs(300),
            facts: Vec::new(),
        }
    }

    #[test]
    fn only_a_local_browser_is_given_only_a_page_whose_address_is_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let (opener, seen) = (dir.path().join("xdg-open"), dir.path().join("seen"));
        std::fs::write(&opener, format!("#!/bin/sh\nprintf '%s' \"$*\" > {0}.new; mv {0}.new {0}\n", seen.display()))
            .unwrap();
        std::fs::set_permissions(&opener, std::fs::Permissions::from_mode(0o755)).unwrap();
        let device = page(Some("ABCD-EFGH"));
        for (set, page) in [
            (&["DISPLAY"][..], &page(None)),
            (&[], &device),
            (&["DISPLAY", "SSH_CONNECTION"], &device),
            (&["WAYLAND_DISPLAY", "SSH_CONNECTION"], &device),
        ] {
            assert!(!open_with(&opener, |name| set.contains(&name), page), "{set:?}");
        }
        assert!(!open_with(&dir.path().join("none"), |name| name == "DISPLAY", &device), "no xdg-open");
        assert!(!seen.exists());
        // A fork of another test may hold the script open for writing for a moment.
        let end = Instant::now() + Duration::from_secs(30);
        while !open_with(&opener, |name| name == "WAYLAND_DISPLAY", &device) && Instant::now() < end {}
        while !seen.exists() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(std::fs::read_to_string(&seen).unwrap(), "https://login.example.org/device", "without the code");
    }
}
