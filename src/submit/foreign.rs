//! Services that are none of ours: only one storer can be configured in HTCondor, so they are handed on to HTCondor's
//! own (Vault, Pelican), with their arguments as they came.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    error::SubmitError,
    request::Request,
    voice::{Event, Voice},
};
use crate::config::settings::Settings;

/// HTCondor's own storer since 25.14, and before that.
const NAMES: (&str, &str) = ("condor_credential_storer", "condor_vault_storer");

/// The stock storer, if it is there: where its newer name is not, under the older one.
fn there(stock: &Path) -> Option<PathBuf> {
    if stock.is_file() {
        return Some(stock.to_owned());
    }
    let older = stock.file_name().filter(|name| *name == NAMES.0).map(|_| stock.with_file_name(NAMES.1));
    older.filter(|older| older.is_file())
}

/// Refuse what looks like one of ours in another spelling: HTCondor takes the spelling of the submit key for the file.
///
/// # Errors
/// [`SubmitError::NotSetUp`]
pub(super) fn check(foreign: &[(Request, &str)], settings: &Settings) -> Result<(), SubmitError> {
    for (request, _) in foreign {
        let name = request.service.as_str();
        let ours = settings.providers.iter().flat_map(|provider| &provider.services);
        if let Some(near) = ours.into_iter().find(|service| service.eq_ignore_ascii_case(name)) {
            return Err(SubmitError::NotSetUp(format!(
                "The service {name} is not known; write it {near} everywhere in the submit file, as in \
                 {near}_oauth_permissions."
            )));
        }
    }
    Ok(())
}

/// Hand them on, or say that nobody is there.
///
/// # Errors
/// The stock storer failed.
pub(super) fn hand_on(
    foreign: &[(Request, &str)],
    settings: &Settings,
    voice: &mut dyn Voice,
) -> Result<(), SubmitError> {
    if foreign.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = foreign.iter().map(|(request, _)| request.name()).collect();
    let names = names.join(", ");
    let Some(stock) = there(&settings.storer.stock) else {
        let shown = settings.storer.stock.display();
        voice
            .tell(Event::Note(&format!("{names}: not a service of evercred, and there is no {shown} to ask; skipped")));
        return Ok(());
    };
    let fail = |why: String| SubmitError::Stock(format!("{} failed for {names}: {why}.", stock.display()));
    let mut command = Command::new(&stock);
    command.args(foreign.iter().map(|(_, argument)| argument)).stdin(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(fail(status.to_string())),
        Err(error) => Err(fail(error.to_string())),
    }
}
