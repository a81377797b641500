//! The demo's remote site: a second directory, which gets every renewed token sealed, through the real
//! `evercred receive` that the replicator starts.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::unistd::{User, chown, geteuid};
use serde_json::json;

use crate::spool::Seal;

/// Who the replicator becomes, if the demo runs as root.
const REPLICATE_USER: &str = "nobody";

/// The far end's directory.
pub struct Far {
    directory: PathBuf,
    home: PathBuf,
    seen: BTreeMap<String, Vec<u8>>,
    /// Files that came, counted each time.
    pub received: u32,
}

impl Far {
    /// Directory and keys below `home`; what is the far end's belongs to who receives.
    pub fn new(home: &Path) -> io::Result<Self> {
        let directory = home.join("far");
        fs::DirBuilder::new().mode(0o700).create(&directory)?;
        let key = Seal::generate_key();
        for name in ["key", "far.key"] {
            let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(home.join(name))?;
            io::Write::write_all(&mut &file, key.as_bytes())?;
        }
        if geteuid().is_root() {
            // The way to it must be open to the other uid; what is beside it is closed on its own.
            fs::set_permissions(home, fs::Permissions::from_mode(0o711))?;
            let user = User::from_name(REPLICATE_USER)?.ok_or_else(|| io::Error::other("there is no user nobody"))?;
            for path in [directory.clone(), home.join("far.key")] {
                chown(&path, Some(user.uid), Some(user.gid))?;
            }
        }
        Ok(Self { directory, home: home.to_owned(), seen: BTreeMap::new(), received: 0 })
    }

    /// What the configuration says about it: keys of `[daemon]`, and the table of the site.
    pub fn config(&self) -> (String, String) {
        let path = |name: &str| self.home.join(name).display().to_string();
        let directory = self.directory.display().to_string();
        let command = ["/proc/self/exe", "receive", "--directory", &directory, "--key-file", &path("far.key")];
        let daemon = format!("state_directory = {}\nreplicate_user = \"{REPLICATE_USER}\"\n", json!(path("state")));
        let site = format!(
            "[site.far]\nkind = \"exec\"\nservices = [\"*\"]\ncommand = {}\ndirectory = {}\nkey_files = [{}]\n",
            json!(command),
            json!(directory),
            json!(path("key")),
        );
        (daemon, site)
    }

    /// Tell what came since the last look.
    pub fn look(&mut self, tell: &mut dyn FnMut(String)) {
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(bytes) = fs::read(entry.path()) else { continue };
            if name.starts_with('.') || self.seen.get(&name).is_some_and(|seen| *seen == bytes) {
                continue;
            }
            self.received += 1;
            tell(format!("far/{name} received: sealed on the way, {} bytes, mode 0600", bytes.len()));
            self.seen.insert(name, bytes);
        }
    }
}
