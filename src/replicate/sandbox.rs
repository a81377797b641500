//! What the replicator gives up: its uid, all capabilities, new privileges (so nothing setuid helps whatever it
//! starts), core dumps; and files (Landlock), as far as its kinds of sites allow:
//!
//! | sites | files |
//! |---|---|
//! | only services (`globus-compute`, `kubernetes`, `sfapi`, `iri`) | read what names, certificates, libraries and kubeconfigs need |
//! | any that start a program (`ssh`, `exec`, `credd`) | as the uid may |
//! | any `directory` | as the uid may: a rule would not outlive the next mount of a shared file system |
//! | a `kubernetes` one whose kubeconfig does not answer within three seconds | as the uid may, until the next start: what it names is not known, and no other site waits for it |

use std::{
    path::PathBuf,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    config::site_settings::{Site, SiteKind},
    courier::sandbox::{self as courier, Readable},
    replicate::{cluster, frame::Become},
};

/// So long may sites' files hold up our start.
const PATIENCE: Duration = Duration::from_secs(3);

/// Give up privileges, then files; says what is in force.
///
/// # Errors
/// One line: what could not be given up. The caller must end then.
pub fn enter(ids: Option<&Become>, sites: &mut [Site]) -> Result<String, String> {
    courier::drop_privileges(ids.map(|ids| (ids.uid, ids.gid)), ids.map_or(&[], |ids| ids.groups.as_slice()))?;
    let readable = settle(sites);
    if sites.iter().any(|site| needs_files(&site.kind)) {
        return Ok("its own uid".into());
    }
    match readable {
        Some(readable) => courier::close_files_but(readable),
        None => Ok("its own uid (no landlock: a kubeconfig does not answer)".into()),
    }
}

/// Fix where each cluster is found, and what must stay readable for that; `None`: not all answered in time.
fn settle(sites: &mut [Site]) -> Option<Vec<Readable>> {
    let (to, settled) = mpsc::channel::<(usize, (Option<PathBuf>, Vec<Readable>))>();
    let mut all = Some(Vec::new());
    let mut asked = 0;
    for (index, site) in sites.iter_mut().enumerate() {
        let SiteKind::Kubernetes(kubernetes) = &mut site.kind else { continue };
        let given = kubernetes.kubeconfig.is_some();
        if !given {
            // It stays that one if it does not answer: tokens must not go to another cluster then.
            kubernetes.kubeconfig = cluster::usual_file();
        }
        let (file, to) = (kubernetes.kubeconfig.clone(), to.clone());
        // Whoever waited may have gone on.
        let look = move || to.send((index, cluster::settle(file, given))).ok();
        match thread::Builder::new().name("settle".into()).spawn(look) {
            Ok(_) => asked += 1,
            Err(_) => all = None,
        }
    }
    let end = Instant::now() + PATIENCE;
    for _ in 0..asked {
        let found = settled.recv_timeout(end.saturating_duration_since(Instant::now()));
        let Ok((index, (file, readable))) = found else { return None };
        if let Some(SiteKind::Kubernetes(kubernetes)) = sites.get_mut(index).map(|site| &mut site.kind) {
            kubernetes.kubeconfig = file;
        }
        if let Some(all) = &mut all {
            all.extend(readable);
        }
    }
    all
}

fn needs_files(kind: &SiteKind) -> bool {
    match kind {
        SiteKind::Directory { .. } | SiteKind::Exec { .. } | SiteKind::Ssh(_) | SiteKind::Credd(_) => true,
        SiteKind::GlobusCompute(_) | SiteKind::Kubernetes(_) | SiteKind::Sfapi(_) | SiteKind::Iri(_) => false,
    }
}
