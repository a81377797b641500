//! Submits to another access point (`condor_submit -remote AP`, `-name AP`): HTCondor does not tell the storer where
//! the jobs go, and `condor_store_cred` goes to `CREDD_HOST` or the local credd. A credential at the wrong access point
//! would leave the jobs without one, so that is refused before anybody approves anything.

use std::os::unix::process::parent_id;

use super::error::SubmitError;
use crate::config::condor;

/// Refuse a remote submit whose credd is not known to be there.
///
/// # Errors
/// [`SubmitError::NotSetUp`]
pub(super) fn check() -> Result<(), SubmitError> {
    // Of our own user, so readable; a parent that is gone or no condor_submit says nothing.
    let line = std::fs::read(format!("/proc/{}/cmdline", parent_id())).unwrap_or_default();
    let words: Vec<String> =
        line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let Some(remote) = access_point(&words).filter(|remote| !is_here(remote, &super::host())) else {
        return Ok(());
    };
    let credd = condor::program().and_then(|program| {
        let [credd] = condor::seen_by(&program, "SUBMIT", ["CREDD_HOST"]);
        credd
    });
    match credd {
        Some(credd) if same_host(&credd, remote) => Ok(()),
        told => {
            let told = told.map_or_else(|| "is not set".to_owned(), |credd| format!("is {credd}"));
            Err(SubmitError::NotSetUp(format!(
                "These jobs go to {remote}, and CREDD_HOST {told}, so their credential would be stored elsewhere. Submit \
                 with _CONDOR_CREDD_HOST={remote} in the environment, or have the admins set CREDD_HOST and SCHEDD_HOST."
            )))
        }
    }
}

/// The access point in a `condor_submit` command line; options may be shortened.
fn access_point(words: &[String]) -> Option<&str> {
    let program = words.first()?.rsplit('/').next()?;
    if program != "condor_submit" {
        return None;
    }
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        let option = word.trim_start_matches('-');
        if word.starts_with('-') && !option.is_empty() && ["remote", "name"].iter().any(|name| name.starts_with(option))
        {
            return words.next().map(String::as_str);
        }
    }
    None
}

/// A long and a short name of this host are the same one.
fn is_here(remote: &str, here: &str) -> bool {
    let first = |text: &str| text.split('.').next().unwrap_or_default().to_owned();
    let short = !remote.contains('.') || !here.contains('.');
    same_host(remote, here) || (short && same_host(&first(remote.rsplit('@').next().unwrap_or_default()), &first(here)))
}

/// `schedd@host:port` and `host` are the same host.
fn same_host(one: &str, other: &str) -> bool {
    let host = |text: &str| {
        let text = text.rsplit('@').next().unwrap_or_default();
        text.split(':').next().unwrap_or_default().to_ascii_lowercase()
    };
    host(one) == host(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Option<String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        access_point(&words).map(str::to_owned)
    }

    #[test]
    fn a_remote_submit_is_recognised_and_a_local_one_is_not() {
        assert_eq!(of("/usr/bin/condor_submit -remote ap2.example.org job.sub").as_deref(), Some("ap2.example.org"));
        assert_eq!(of("condor_submit job.sub -n ap2").as_deref(), Some("ap2"));
        assert_eq!(of("condor_submit -r ap2 job.sub").as_deref(), Some("ap2"));
        assert_eq!(of("condor_submit -terse job.sub -a name=x -queue 3"), None);
        assert_eq!(of("condor_dagman -remote x"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn hosts_are_compared_without_port_and_name() {
        assert!(same_host("AP2.example.org:9618", "schedd@ap2.example.org"));
        assert!(!same_host("ap1.example.org", "ap2.example.org"));
        assert!(is_here("ap1", "ap1.example.org") && is_here("schedd@ap1.example.org", "ap1"));
        assert!(!is_here("ap1.other.org", "ap1.example.org") && !is_here("ap2", "ap1.example.org"));
    }
}
