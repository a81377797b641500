//! What the replicator gives up: its uid, all capabilities, new privileges (so nothing setuid helps whatever it
//! starts), core dumps; and files (Landlock), as far as its kinds of sites allow:
//!
//! | sites | files |
//! |---|---|
//! | only services (`globus-compute`, `kubernetes`, `sfapi`, `iri`) | read what names, certificates, libraries and kubeconfigs need |
//! | any that start a program (`ssh`, `exec`, `credd`) | as the uid may |
//! | any `directory` | as the uid may: a rule would not outlive the next mount of a shared file system |

use std::path::{Path, PathBuf};

use crate::{
    config::site_settings::{Site, SiteKind},
    courier::sandbox as courier,
    replicate::{cluster, frame::Become},
};

/// Give up privileges, then files; says what is in force.
///
/// # Errors
/// One line: what could not be given up. The caller must end then.
pub fn enter(ids: Option<&Become>, sites: &mut [Site]) -> Result<String, String> {
    courier::drop_privileges(ids.map(|ids| (ids.uid, ids.gid)), ids.map_or(&[], |ids| ids.groups.as_slice()))?;
    let mut clusters: Vec<PathBuf> = Vec::new();
    for site in &mut *sites {
        if let SiteKind::Kubernetes(kubernetes) = &mut site.kind {
            clusters.extend(cluster::settle(kubernetes));
        }
    }
    if sites.iter().any(|site| needs_files(&site.kind)) {
        return Ok("its own uid".into());
    }
    let readable: Vec<&Path> = clusters.iter().map(PathBuf::as_path).collect();
    courier::close_files_but(&readable)
}

fn needs_files(kind: &SiteKind) -> bool {
    match kind {
        SiteKind::Directory { .. } | SiteKind::Exec { .. } | SiteKind::Ssh(_) | SiteKind::Credd(_) => true,
        SiteKind::GlobusCompute(_) | SiteKind::Kubernetes(_) | SiteKind::Sfapi(_) | SiteKind::Iri(_) => false,
    }
}
