//! What this user stored last for a credential, as far as it is no secret: in `evercred` in the user's own cache
//! directory, which outlasts a session, as `stored-NAME`, one JSON object.
//!
//! Two things need it. A portal that uploads the same token for each job costs one question to credd; and where no
//! keeper can be asked, as on a login node, the end of a credential that was approved here is known all the same.
//! Lost or damaged, it costs one more upload, or a line that tells less. The end counts for the `.top` of that time alone:
//! a rotation may move it. What was uploaded counts until something else is stored here.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{lock, request::Request};

/// What was stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Seconds since 1970 of the `.top` that was made, as credd tells them.
    pub top: i64,
    /// When the credential ends, seconds since 1970; none: it did not tell.
    #[serde(default)]
    pub end: Option<i64>,
    /// SHA-256 of what was uploaded; none: it was approved.
    #[serde(default)]
    pub sha256: Option<String>,
}

impl Note {
    /// What was noted of this credential.
    #[must_use]
    pub fn read(places: &[PathBuf], request: &Request) -> Option<Self> {
        let mut text = String::new();
        File::open(path(places, request)?).ok()?.take(4096).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Note it, where there is a place for it.
    pub fn write(&self, places: &[PathBuf], request: &Request) {
        let write = |path: &Path| std::fs::write(path, serde_json::to_vec(self).ok()?).ok();
        // Nothing depends on it.
        path(places, request).as_deref().and_then(write);
    }
}

fn path(places: &[PathBuf], request: &Request) -> Option<PathBuf> {
    Some(lock::directory(places)?.join(format!("stored-{}", request.name())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::Service;

    #[test]
    fn a_note_is_read_as_it_was_written_and_garbage_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let places = vec![dir.path().to_owned()];
        let request = Request::of(Service::parse("s").unwrap(), None);
        assert_eq!(Note::read(&places, &request), None);
        let note = Note { top: 7, end: Some(9), sha256: None };
        note.write(&places, &request);
        assert_eq!(Note::read(&places, &request), Some(note));
        for garbage in [&b"\xff\xfe"[..], b"{", b"{}", b"{\"top\":\"x\"}"] {
            std::fs::write(dir.path().join("evercred/stored-s"), garbage).unwrap();
            assert_eq!(Note::read(&places, &request), None);
        }
        // Without a place nothing is noted, and nothing fails.
        Note { top: 7, end: None, sha256: None }.write(&[], &request);
    }
}
