//! What a knob names as a program: ours, a script that starts ours, or something else.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use nix::libc;

/// No wrapper is longer.
const MAX_SCRIPT: u64 = 64 << 10;

/// What lies at the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    /// Nothing.
    Missing,
    /// Something that nobody may execute, or no file.
    NotExecutable,
    /// The program itself, or a link to it.
    Ours,
    /// A script that names it.
    Wrapper,
    /// Another program.
    Other,
}

impl Program {
    /// Look at what `path` is; `name`: what our program is called.
    pub(super) fn at(path: &Path, name: &str) -> Self {
        let Ok(meta) = std::fs::metadata(path) else { return Self::Missing };
        if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
            return Self::NotExecutable;
        }
        let called = |path: &Path| path.file_name().is_some_and(|file| file == name);
        if called(path) || std::fs::canonicalize(path).is_ok_and(|path| called(&path)) {
            return Self::Ours;
        }
        let mut text = Vec::new();
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        // What cannot be read cannot be known.
        file.and_then(|file| file.take(MAX_SCRIPT).read_to_end(&mut text)).ok();
        let names_it = text.windows(name.len()).any(|part| part == name.as_bytes());
        if text.starts_with(b"#!") && names_it { Self::Wrapper } else { Self::Other }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_and_a_wrapper_are_ours_another_program_and_a_plain_file_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, mode: u32, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let at = |path: &Path| Program::at(path, "evercred_storer");
        let ours = write("evercred_storer", 0o755, "\x7fELF");
        let link = dir.path().join("storer");
        std::os::unix::fs::symlink(&ours, &link).unwrap();
        assert_eq!((at(&ours), at(&link)), (Program::Ours, Program::Ours));
        let script = "#!/bin/sh\nexec /usr/libexec/condor/evercred_storer \"$@\"\n";
        assert_eq!(at(&write("wrapper", 0o755, script)), Program::Wrapper);
        assert_eq!(at(&write("other", 0o755, "#!/bin/sh\nexec true\n")), Program::Other);
        assert_eq!(at(&write("plain", 0o644, script)), Program::NotExecutable);
        assert_eq!((at(dir.path()), at(&dir.path().join("none"))), (Program::NotExecutable, Program::Missing));
    }
}
