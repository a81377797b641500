//! A reload of the configuration: when it is read again, whether it has changed, and what of it must wait for the next
//! start. What a change does is up to [`super::lifecycle`].

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

use super::{driver::Input, log};
use crate::{
    cli,
    config::{
        self, Sources,
        settings::{Daemon, Provider, Settings, TlsFiles},
    },
    error::Report,
};

/// At most one reload in this time.
const BETWEEN_RELOADS: Duration = Duration::from_secs(1);
/// How often it is looked whether the page's certificate was replaced: whoever replaces it need not tell us.
const BETWEEN_LOOKS: Duration = Duration::from_secs(10);

/// Reads the configuration again after hang-ups, at most once a second, and tells the driver only of a valid change.
/// A certificate that was replaced counts as a hang-up. `now`: what runs; `fits`: what only a start would find out.
///
/// # Errors
/// No thread.
pub fn start(
    sources: Sources,
    log: log::LogHandle,
    now: &Settings,
    hung_up: Receiver<()>,
    inputs: Sender<Input>,
    fits: impl Fn(&Settings) -> Result<(), Report> + Send + 'static,
) -> std::io::Result<()> {
    let mut before = fingerprint(now);
    let mut certificate = tls_files(now);
    let mut seen = certificate.as_ref().map(TlsFiles::as_read);
    std::thread::Builder::new().name("reloader".into()).spawn(move || {
        loop {
            // Without a certificate there is nothing to wake up for.
            let woken = match &certificate {
                Some(_) => hung_up.recv_timeout(BETWEEN_LOOKS),
                None => hung_up.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match woken {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) if certificate.as_ref().map(TlsFiles::seen) != seen => {}
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // A pair that cannot be used is told once, and not again until it changes.
            seen = certificate.as_ref().map(TlsFiles::seen);
            while hung_up.try_recv().is_ok() {}
            let started = Instant::now();
            if let Err(error) = log.reopen() {
                tracing::warn!(%error, "keeping the log that is open");
            }
            match config::load(&sources) {
                Ok(settings) => {
                    let now = fingerprint(&settings);
                    // What only the start would find out must not end a daemon that runs.
                    if let Err(report) = fits(&settings) {
                        tracing::error!(%report, "the configuration cannot be used; keeping the old settings");
                    } else if now != before {
                        before = now;
                        certificate = tls_files(&settings);
                        seen = certificate.as_ref().map(TlsFiles::as_read);
                        drop(inputs.send(Input::Reload(Box::new(settings))));
                    }
                }
                Err(problems) => {
                    for problem in problems {
                        let what = if problem.passing { "not known" } else { "broken" };
                        tracing::error!(%problem, "the configuration is {what}; keeping the old settings");
                    }
                }
            }
            std::thread::sleep(BETWEEN_RELOADS.saturating_sub(started.elapsed()));
        }
    })?;
    Ok(())
}

fn tls_files(settings: &Settings) -> Option<TlsFiles> {
    settings.daemon.web_approval.as_ref()?.tls.clone()
}

/// A digest of everything configured, secrets included: equal digests, nothing to do.
#[must_use]
pub fn fingerprint(settings: &Settings) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    if let Ok(bytes) = postcard::to_stdvec(&settings.providers).map(zeroize::Zeroizing::new) {
        hash.update(&*bytes);
    }
    if let Ok(bytes) = postcard::to_stdvec(&settings.sites).map(zeroize::Zeroizing::new) {
        hash.update(&*bytes);
    }
    for provider in &settings.providers {
        hash.update(format!("{:?}", provider.fernet_key_file));
        // A key may be replaced in its place.
        if let Some(path) = &provider.fernet_key_file {
            hash.update(&*zeroize::Zeroizing::new(std::fs::read(path).unwrap_or_default()));
        }
    }
    if let Some(notices) = &settings.notices {
        // Secrets are in the one, what the keeper goes by is in the other.
        if let Ok(bytes) = postcard::to_stdvec(&notices.post).map(zeroize::Zeroizing::new) {
            hash.update(&*bytes);
        }
        hash.update(format!("{notices:?}"));
    }
    // A certificate is replaced in its place.
    if let Ok(bytes) = postcard::to_stdvec(&settings.daemon.web_approval).map(zeroize::Zeroizing::new) {
        hash.update(&*bytes);
    }
    hash.update(format!("{:?}", settings.daemon));
    hash.finalize().to_vec()
}

/// Whether a provider is configured as it was. One with a key for sealed `.top` files never counts as that: the key may be
/// another one in the same file.
#[must_use]
pub fn is_same(before: &Provider, now: &Provider) -> bool {
    let bytes = |provider| postcard::to_stdvec(provider).map(zeroize::Zeroizing::new).ok();
    now.fernet_key_file.is_none() && before.fernet_key_file.is_none() && bytes(before) == bytes(now)
}

/// What a reload has found changed and cannot change: what the process has opened at its start.
#[must_use]
pub fn at_next_start(args: &cli::Credmon, now: &Daemon, new: &Daemon) -> Vec<&'static str> {
    let log = args.log.is_none() && !args.foreground;
    let keys = [
        ("credential_directory", now.credential_directory != new.credential_directory),
        ("share_directory", now.share_directory != new.share_directory),
        ("status_socket", now.status_socket != new.status_socket),
        ("log", log && now.log != new.log),
        ("log_format", now.log_format != new.log_format),
        ("MAX_CREDMON_OAUTH_LOG", now.log_limit != new.log_limit),
        ("MAX_NUM_CREDMON_OAUTH_LOG", now.log_keep != new.log_keep),
    ];
    keys.into_iter().filter_map(|(key, changed)| changed.then_some(key)).collect()
}
