//! Submits to another access point: HTCondor does not tell the storer where the jobs go (`condor_submit -remote AP`,
//! `-name AP`, `-addr <IP:PORT>`, or `SCHEDD_HOST` on a login node), and `condor_store_cred` goes to `CREDD_HOST` or the local credd. A
//! credential at the wrong access point would leave the jobs without one, so that is refused before anybody approves
//! anything.

use std::{net::IpAddr, os::unix::process::parent_id};

use super::error::SubmitError;
use crate::config::condor;

/// Refuse a submit by `-remote`, `-name` or `-addr` whose credd is not known to be there; `true`: it goes elsewhere, and this
/// host's keeper knows nothing of it. Costs nothing for other submits.
///
/// # Errors
/// [`SubmitError::NotSetUp`]
pub(super) fn check() -> Result<bool, SubmitError> {
    let words = parent();
    let Some(remote) = access_point(&words).filter(|remote| !is_here(remote, &super::host())) else {
        return Ok(false);
    };
    let credd = knob("CREDD_HOST")?;
    if credd.as_ref().is_some_and(|credd| same_host(credd, remote)) {
        return Ok(true);
    }
    if remote.starts_with('<') {
        // An address of a schedd, with the name of its socket, is none that credd can be found at.
        return Err(SubmitError::NotSetUp(format!(
            "These jobs go to the address {remote} (-addr), and CREDD_HOST {}, so their credential may be stored \
             elsewhere. Submit with -remote or -name and the access point's name instead.",
            told(credd)
        )));
    }
    Err(SubmitError::NotSetUp(format!(
        "These jobs go to {remote}, and CREDD_HOST {}. Submit with _CONDOR_CREDD_HOST={remote} in the environment, or \
         have the admins set CREDD_HOST and SCHEDD_HOST.",
        elsewhere(credd)
    )))
}

/// The same for what this host is configured to do. Costs HTCondor's `condor_config_val` twice, so it is for the moment
/// before an approval.
///
/// # Errors
/// [`SubmitError::NotSetUp`]
pub(super) fn check_knobs() -> Result<(), SubmitError> {
    if access_point(&parent()).is_some() {
        // That one counts, and was checked.
        return Ok(());
    }
    let Some(schedd) = knob("SCHEDD_HOST")?.filter(|schedd| !is_here(schedd, &super::host())) else { return Ok(()) };
    let credd = knob("CREDD_HOST")?;
    if credd.as_ref().is_some_and(|credd| same_host(credd, &schedd)) {
        return Ok(());
    }
    Err(SubmitError::NotSetUp(format!(
        "Jobs of this host go to {schedd} (SCHEDD_HOST), and CREDD_HOST {}. Have the admins set CREDD_HOST to the same \
         host; or submit with _CONDOR_CREDD_HOST={schedd} in the environment.",
        elsewhere(credd)
    )))
}

fn told(credd: Option<String>) -> String {
    credd.map_or_else(|| "is not set".to_owned(), |credd| format!("is {credd}"))
}

/// The same, and what comes of it. Two names may be those of one host, which only its admins know.
fn elsewhere(credd: Option<String>) -> String {
    match credd {
        None => "is not set, so their credential would be stored on this host".to_owned(),
        Some(credd) => {
            format!("is {credd}, which is not known to be the same host, so their credential may be stored elsewhere")
        }
    }
}

/// A knob as `condor_store_cred` sees it: the environment first, where an empty value counts as none.
fn knob(name: &str) -> Result<Option<String>, SubmitError> {
    let wanted = format!("_condor_{name}");
    let own = std::env::vars_os().find(|(variable, _)| variable.eq_ignore_ascii_case(&wanted));
    if let Some((_, value)) = own {
        return Ok(Some(value.to_string_lossy().into_owned()).filter(|value| !value.is_empty()));
    }
    let Some(program) = condor::program() else { return Ok(None) };
    let [value] = condor::seen_by(&program, "TOOL", [name])
        .map_err(|no_answer| SubmitError::NotSetUp(format!("HTCondor does not say what {name} is: {no_answer}.")))?;
    Ok(value)
}

/// The command line of who runs us. Of our own user, so readable; a parent that is gone says nothing.
fn parent() -> Vec<String> {
    let line = std::fs::read(format!("/proc/{}/cmdline", parent_id())).unwrap_or_default();
    line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The access point in a `condor_submit` command line; options may be shortened (`-a` is another one).
fn access_point(words: &[String]) -> Option<&str> {
    let program = words.first()?.rsplit('/').next()?;
    if program != "condor_submit" {
        return None;
    }
    let mut words = words.iter().skip(1);
    while let Some(word) = words.next() {
        let option = word.trim_start_matches('-');
        let named = !option.is_empty() && ["remote", "name"].iter().any(|name| name.starts_with(option));
        let addressed = option.len() >= 2 && "addr".starts_with(option);
        if word.starts_with('-') && (named || addressed) {
            return words.next().map(String::as_str);
        }
    }
    None
}

fn is_here(remote: &str, here: &str) -> bool {
    host(remote).parse::<IpAddr>().is_ok_and(|address| address.is_loopback()) || same_host(remote, here)
}

/// `schedd@host:port` and `host` are the same host, and so are its long and its short name.
fn same_host(one: &str, other: &str) -> bool {
    let (one, other) = (host(one), host(other));
    let is_address = |host: &str| host.parse::<IpAddr>().is_ok();
    if one == other || is_address(&one) || is_address(&other) {
        return one == other;
    }
    let first = |host: &str| host.split('.').next().unwrap_or_default().to_owned();
    (!one.contains('.') || !other.contains('.')) && first(&one) == first(&other)
}

/// The host in `schedd@host:port`, `<1.2.3.4:9618?sock=schedd>` and `<[::1]:9618>`.
fn host(text: &str) -> String {
    let text = text.rsplit('@').next().unwrap_or_default().trim_start_matches('<');
    let host = match text.strip_prefix('[') {
        Some(address) => address.split(']').next(),
        None => text.split([':', '?', '>']).next(),
    };
    host.unwrap_or_default().to_ascii_lowercase()
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
        assert_eq!(of("condor_submit -addr <10.0.0.2:9618?sock=s> job.sub").as_deref(), Some("<10.0.0.2:9618?sock=s>"));
        assert_eq!(of("condor_submit job.sub -ad <10.0.0.2:9618>").as_deref(), Some("<10.0.0.2:9618>"));
        assert_eq!(of("condor_submit -a addr=x job.sub"), None);
        assert_eq!(of("condor_dagman -remote x"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        assert_eq!(elsewhere(None), "is not set, so their credential would be stored on this host");
        let told = elsewhere(Some("cname.example.org".to_owned()));
        assert!(told.contains("not known to be the same host") && told.contains("may be stored elsewhere"), "{told}");
        assert!(!told.contains("would"), "{told}");
    }

    #[test]
    fn hosts_are_compared_without_port_and_name() {
        assert!(same_host("AP2.example.org:9618", "schedd@ap2.example.org"));
        assert!(!same_host("ap1.example.org", "ap2.example.org"));
        assert!(same_host("ap2.example.org:9618", "schedd@ap2") && same_host("ap2", "AP2.example.org"));
        assert!(!same_host("ap2", "ap22.example.org") && !same_host("ap2.other.org", "ap2.example.org"));
        assert!(!same_host("10", "10.0.0.2") && !same_host("", "ap2"));
        assert!(is_here("ap1", "ap1.example.org") && is_here("schedd@ap1.example.org", "ap1"));
        assert!(same_host("<10.0.0.2:9618?addrs=10.0.0.2-9618&alias=ap1>", "10.0.0.2"));
        assert!(!same_host("<[2001:db8::1]:9618>", "[2001:db8::2]:9618"));
        assert!(is_here("<127.0.0.1:9618>", "ap1") && is_here("<[::1]:9618>", "ap1"));
        assert!(!is_here("<10.0.0.2:9618>", "ap1.example.org"));
        assert!(!is_here("ap1.other.org", "ap1.example.org") && !is_here("ap2", "ap1.example.org"));
    }
}
