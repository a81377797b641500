//! A rotated refresh token becomes durable here, in three steps that a crash may cut anywhere:
//!
//! 1. the whole new text of the `.top` is written into the reserved file, which then gets a name that tells what it is:
//!    `.evercred-keep-C-A-B`, each 32 hexadecimal digits: C for the credential, A for the text that it replaces, B for
//!    its own. From here on a killed process loses nothing: the next start finds the file and goes on;
//! 2. it is synced: nor does a machine that loses its power;
//! 3. it swaps places with the `.top` (`RENAME_EXCHANGE`), and the user's directory is synced. What came out is looked
//!    at: a newer `.top` goes back, and a deleted one does not come back. Where the file system cannot swap, it is
//!    compare and rename. There is no lock between credd and us.
//!
//! A file whose text is not B's is half-written, or is what came out of the swap; one whose A is no `.top` any more
//! was superseded. Both are removed.

use std::{io, sync::Arc};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, renameat},
    sys::stat::{FileStat, fstat, fstatat},
    unistd::{Gid, Uid, fchown, fsync, geteuid},
};
use zeroize::Zeroizing;

use super::{
    Seal, Spool, SpoolError,
    dir::{self, Dir, Refusal},
    exchange::exchange,
    inventory::unseal,
    publish::{PublishError, Reservation, Temporary, check_top, look},
};
use crate::core::{
    id::CredentialId,
    secret::RefreshToken,
    top::{Identity, MAX_TOP},
};

/// Files that hold a rotated refresh token begin so.
pub(super) const KEEP: &str = ".evercred-keep-";
/// A `.top` that is replaced again and again while we write is left alone for a while.
const TRIES: usize = 3;

/// A rotation: what the exchange spent, and what must be used from now on.
#[derive(Debug, Clone, Copy)]
pub struct Rotated<'a> {
    /// Of no use any more.
    pub spent: &'a RefreshToken,
    /// Its successor.
    pub new: &'a RefreshToken,
}

/// The `.top` that holds a rotated refresh token now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Which.
    pub identity: Identity,
    /// It is not the one that the exchange started from: that was stored anew meanwhile, with the token that was spent.
    pub stored_anew: bool,
}

/// A written file that did not get into its place yet.
#[derive(Debug)]
pub(super) struct Waiting {
    temporary: Temporary,
    text: Zeroizing<Vec<u8>>,
    /// The text that it was made for; none if it must be written again.
    replaces: Option<[u8; 16]>,
}

/// A rotated refresh token that a crash left, and whether it is in its `.top` now.
pub type Recovered = (CredentialId, io::Result<()>);

/// A `.top` that is to be replaced.
struct Target {
    home: Dir,
    name: String,
    stat: FileStat,
    found: Identity,
}

impl Spool {
    /// Make a rotated refresh token durable in `.top`; the rest of its text stays.
    ///
    /// # Errors
    /// `Superseded` if `.top` holds another token than the one that was spent, or its successor; `Gone`. `NoSpace`,
    /// `Io`, also if `.top` cannot be judged now, and may hold the spent token still: the call may be repeated, and what
    /// it wrote so far stays for the next start, should there be no other call.
    pub fn keep_refresh_token(
        &self,
        id: &CredentialId,
        reservation: &mut Reservation,
        expected: Identity,
        rotated: Rotated<'_>,
        keys: Option<&Seal>,
    ) -> Result<Kept, PublishError> {
        let mut result = Ok(None);
        for _ in 0..TRIES {
            result = self.keep(id, reservation, expected, rotated, keys);
            if !matches!(result, Ok(None)) {
                break;
            }
        }
        let result = result.and_then(|kept| kept.ok_or_else(|| self.error(id, "top", MAX_TOP, Errno::EBUSY)));
        if !matches!(result, Err(PublishError::NoSpace { .. } | PublishError::Io { .. }))
            && let Some(mut waiting) = reservation.waiting.take()
        {
            waiting.temporary.stays = false;
        }
        result
    }

    /// The first step of [`Spool::keep_refresh_token`] alone, which waits for no disk: after it, a killed process loses
    /// nothing. The call itself does whatever of it is not done.
    ///
    /// # Errors
    /// As there.
    pub fn write_refresh_token(
        &self,
        id: &CredentialId,
        reservation: &mut Reservation,
        expected: Identity,
        rotated: Rotated<'_>,
        keys: Option<&Seal>,
    ) -> Result<(), PublishError> {
        self.written(id, reservation, expected, rotated, keys).map(drop)
    }

    /// None: another `.top` came between look and swap. It must be looked at.
    fn keep(
        &self,
        id: &CredentialId,
        reservation: &mut Reservation,
        expected: Identity,
        rotated: Rotated<'_>,
        keys: Option<&Seal>,
    ) -> Result<Option<Kept>, PublishError> {
        let Target { home, name, stat, found } = self.written(id, reservation, expected, rotated, keys)?;
        let fail = |e| self.error(id, "top", MAX_TOP, e);
        let Some(waiting) = &mut reservation.waiting else {
            // It is there since an earlier call, which failed at the very end.
            fsync(&home).map_err(fail)?;
            return Ok(Some(Kept { identity: found, stored_anew: false }));
        };
        belongs_to(&waiting.temporary, &stat).map_err(fail)?;
        if let Err(e) = fsync(&waiting.temporary.file) {
            // The kernel tells of lost pages once: they must be written again, into another file.
            waiting.replaces = None;
            return Err(fail(e));
        }
        let swapped = check_top(&home, &name, &found, fail)
            .and_then(|()| self.swap(&home, &name, waiting, &found).map_err(|e| e.into_error(fail)));
        match swapped {
            Err(PublishError::Superseded) => return Ok(None),
            other => other?,
        }
        let now = fstat(&waiting.temporary.file).map_err(fail)?;
        fsync(&home).map_err(fail)?;
        Ok(Some(Kept { identity: dir::identity(&now, dir::hash(&waiting.text)), stored_anew: found != expected }))
    }

    /// Look at the `.top`, and have the text that is to replace it written: in `reservation.waiting` then, unless the
    /// `.top` holds the new token already.
    fn written(
        &self,
        id: &CredentialId,
        reservation: &mut Reservation,
        expected: Identity,
        Rotated { spent, new }: Rotated<'_>,
        keys: Option<&Seal>,
    ) -> Result<Target, PublishError> {
        let name = format!("{}.top", id.base());
        let home = self.home(id)?;
        // It may be the one that we know: linked by a backup, closed for a moment, or there are no descriptors.
        let unjudged = |kind| {
            let source = io::Error::other(format!("it cannot be judged ({kind})"));
            PublishError::Io { path: self.path.join(id.user.as_str()).join(&name), source }
        };
        let (stat, bytes) = dir::read_top(&home, &name, &self.owners).map_err(|refusal| match refusal {
            Refusal::Missing => PublishError::Gone,
            Refusal::Bad(kind) => unjudged(kind),
        })?;
        let found = dir::identity(&stat, dir::hash(&bytes));
        let top = unseal(&bytes, keys).map_err(unjudged)?;
        if top.refresh_token().expose() == new.expose() {
            if let Some(mut waiting) = reservation.waiting.take() {
                waiting.temporary.stays = false;
            }
            return Ok(Target { home, name, stat, found });
        }
        if found != expected && top.refresh_token().expose() != spent.expose() {
            return Err(PublishError::Superseded);
        }
        let before = reservation.waiting.take();
        let waiting = match before {
            Some(waiting) if waiting.replaces == Some(found.hash) => waiting,
            before => {
                let text = top.with_refresh_token(new);
                let text = match keys {
                    Some(seal) if Seal::looks_sealed(&bytes) => seal.seal(&text),
                    _ => text,
                };
                let bytes = text.len();
                let written = self.write(id, reservation, before, text, found.hash);
                written.map_err(|e| self.error(id, "top", bytes, e))?
            }
        };
        reservation.waiting = Some(waiting);
        Ok(Target { home, name, stat, found })
    }

    /// Write the text into the reserved file, or a new one, and give that the name that tells what it is. What an
    /// earlier call wrote stays until then.
    fn write(
        &self,
        id: &CredentialId,
        reservation: &mut Reservation,
        before: Option<Waiting>,
        text: Zeroizing<Vec<u8>>,
        replaces: [u8; 16],
    ) -> Result<Waiting, Errno> {
        let name =
            format!("{KEEP}{}-{}-{}", hex(dir::hash(id.to_string().as_bytes())), hex(replaces), hex(dir::hash(&text)));
        let written =
            reservation.top.take().map_or_else(|| self.temporary(text.len()), Ok).and_then(|mut temporary| {
                temporary.fill(&text)?;
                renameat(&*self.top, temporary.name.as_str(), &*self.top, name.as_str())?;
                temporary.name = name;
                Ok(temporary)
            });
        match written {
            Ok(mut temporary) => {
                if let Some(mut before) = before {
                    before.temporary.stays = before.temporary.name == temporary.name;
                }
                temporary.stays = true;
                Ok(Waiting { temporary, text, replaces: Some(replaces) })
            }
            Err(e) => {
                reservation.waiting = before;
                Err(e)
            }
        }
    }

    /// Put the written file in the place of the expected `.top`.
    fn swap(&self, home: &Dir, name: &str, waiting: &mut Waiting, expected: &Identity) -> Result<(), Swapped> {
        let Waiting { temporary, text, .. } = waiting;
        match exchange(&*self.top, &temporary.name, home, name) {
            Ok(()) => {}
            Err(Errno::ENOENT) => return Err(Swapped::Done(PublishError::Gone)),
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EPERM) => {
                return match renameat(&*self.top, temporary.name.as_str(), home, name) {
                    Ok(()) => {
                        temporary.placed = true;
                        Ok(())
                    }
                    Err(Errno::ENOENT) => Err(Swapped::Done(PublishError::Gone)),
                    Err(e) => Err(Swapped::Failed(e)),
                };
            }
            Err(e) => return Err(Swapped::Failed(e)),
        }
        let came_out = fstatat(&*self.top, temporary.name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        if came_out.is_ok_and(|stat| dir::is(&stat, expected)) {
            return Ok(());
        }
        // A newer `.top` came between check and swap, or nobody knows. It goes back, unless yet another took our place.
        let ours = fstat(&temporary.file).map(|stat| dir::identity(&stat, dir::hash(text)));
        match (ours, look(home, name)) {
            (Ok(ours), Ok(Some(stat))) if dir::is(&stat, &ours) => {
                if let Err(e) = exchange(&*self.top, &temporary.name, home, name) {
                    temporary.placed = true;
                    return Err(Swapped::Failed(e));
                }
            }
            _ => {}
        }
        Err(came_out.map_or_else(Swapped::Failed, |_| Swapped::Done(PublishError::Superseded)))
    }

    /// Go on with what a crash cut: at the start, before anything is read, by the `names` of our own files. Says whose tokens were found, and whether
    /// they are in their `.top` now; those that are not stay for the next start.
    pub(super) fn recover(&self, names: &[String]) -> Result<Vec<Recovered>, SpoolError> {
        let mut left: Vec<Left> = names.iter().filter_map(|name| Left::parse(name)).collect();
        let mut recovered = Vec::new();
        if !left.is_empty() {
            for user in self.users()? {
                let home = self.top.user(user.as_str(), &self.owners);
                let listed = home.and_then(|home| dir::entries(&home).map(|entries| (home, entries)));
                let (home, entries) = match listed {
                    Ok(listed) => listed,
                    Err(Errno::ENOENT) => continue,
                    // Whose file is left cannot be told without looking there: they all stay.
                    Err(_) => {
                        for left in &mut left {
                            left.stays = true;
                        }
                        continue;
                    }
                };
                for (name, _) in entries {
                    let base = name.strip_suffix(".top");
                    let Some(Ok(id)) = base.map(|base| CredentialId::from_base(user.clone(), base)) else { continue };
                    let credential = dir::hash(id.to_string().as_bytes());
                    for left in left.iter_mut().filter(|left| left.credential == credential) {
                        match self.go_on(&home, &name, left) {
                            Ok(false) => {}
                            Ok(true) => recovered.push((id.clone(), Ok(()))),
                            Err(e) => {
                                left.stays = true;
                                recovered.push((id.clone(), Err(e.into())));
                            }
                        }
                    }
                }
            }
        }
        for left in left.iter().filter(|left| !left.stays) {
            self.remove(&left.name)?;
        }
        Ok(recovered)
    }

    /// True if the file was whole and its `.top` still there.
    fn go_on(&self, home: &Dir, name: &str, left: &Left) -> Result<bool, Errno> {
        // What cannot be read now may be read at the next start; only what is gone or is another is done with.
        let read = |dir: &Dir, name: &str| match dir::read_top(dir, name, &self.owners) {
            Ok(read) => Ok(Some(read)),
            Err(Refusal::Missing) => Ok(None),
            Err(Refusal::Bad(_)) => Err(Errno::EIO),
        };
        let Some((_, text)) = read(&self.top, &left.name)? else { return Ok(false) };
        let Some((stat, bytes)) = read(home, name)? else { return Ok(false) };
        let found = dir::identity(&stat, dir::hash(&bytes));
        if dir::hash(&text) != left.own || found.hash != left.replaces {
            return Ok(false);
        }
        let temporary = Temporary {
            directory: Arc::clone(&self.top),
            file: self.top.beneath(&left.name, OFlag::O_RDONLY)?,
            name: left.name.clone(),
            room: 0,
            zeros: false,
            placed: false,
            // Removed by the caller.
            stays: true,
        };
        belongs_to(&temporary, &stat)?;
        fsync(&temporary.file)?;
        let mut waiting = Waiting { temporary, text, replaces: Some(left.replaces) };
        match self.swap(home, name, &mut waiting, &found) {
            Ok(()) => fsync(home).map(|()| true),
            Err(Swapped::Done(_)) => Ok(false),
            Err(Swapped::Failed(e)) => Err(e),
        }
    }
}

/// The new file belongs to whom the old one belonged.
fn belongs_to(temporary: &Temporary, stat: &FileStat) -> Result<(), Errno> {
    if !geteuid().is_root() {
        return Ok(());
    }
    fchown(&temporary.file, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

/// A file that a crash left.
struct Left {
    name: String,
    credential: [u8; 16],
    replaces: [u8; 16],
    own: [u8; 16],
    stays: bool,
}

impl Left {
    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(KEEP)?.split('-').map(unhex);
        let (credential, replaces, own) = (parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then(|| Self { name: name.to_owned(), credential, replaces, own, stays: false })
    }
}

fn hex(bytes: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(bytes))
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    let fits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)).flatten()
}

/// Why a swap did not happen.
#[derive(Debug)]
enum Swapped {
    Done(PublishError),
    Failed(Errno),
}

impl Swapped {
    fn into_error(self, fail: impl FnOnce(Errno) -> PublishError) -> PublishError {
        match self {
            Self::Done(e) => e,
            Self::Failed(e) => fail(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt},
        path::Path,
    };

    use super::*;
    use crate::{core::id::UserName, spool::Owners};

    struct Alice {
        dir: tempfile::TempDir,
        id: CredentialId,
    }

    impl Alice {
        /// Her `.top` holds `one`.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
            fs::create_dir(dir.path().join("alice")).unwrap();
            fs::set_permissions(dir.path().join("alice"), PermissionsExt::from_mode(0o700)).unwrap();
            let alice = Self { dir, id: CredentialId::from_base(UserName::parse("alice").unwrap(), "s").unwrap() };
            alice.store("one");
            alice
        }

        fn top(&self) -> std::path::PathBuf {
            self.dir.path().join("alice/s.top")
        }

        fn store(&self, text: &str) {
            let temporary = self.top().with_extension("tmp");
            fs::write(&temporary, text).unwrap();
            fs::set_permissions(&temporary, PermissionsExt::from_mode(0o600)).unwrap();
            fs::rename(&temporary, self.top()).unwrap();
        }

        fn read(&self) -> String {
            fs::read_to_string(self.top()).unwrap()
        }

        fn open(&self) -> Spool {
            Spool::open(self.dir.path(), Owners::usual(None)).unwrap()
        }

        /// `two`, written for `one`, as after a crash: what is done up to the swap.
        fn written(&self) -> (Spool, Waiting) {
            let spool = self.open();
            let found = spool.read_top(&self.id, None).unwrap().0;
            let mut reservation = spool.reserve(&self.id, 64, 64).unwrap();
            let text = Zeroizing::new(b"two".to_vec());
            let waiting = spool.write(&self.id, &mut reservation, None, text, found.hash).unwrap();
            (spool, waiting)
        }

        fn left(&self) -> Vec<String> {
            let names = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.starts_with(".evercred-")).collect()
        }
    }

    /// Alice's `.top` changes after the last look and before the swap.
    fn late(change: impl Fn(&Alice)) -> (Alice, Result<(), Swapped>) {
        let alice = Alice::new();
        let (spool, mut waiting) = alice.written();
        let expected = spool.read_top(&alice.id, None).unwrap().0;
        let home = spool.home(&alice.id).unwrap();
        change(&alice);
        let swapped = spool.swap(&home, "s.top", &mut waiting, &expected);
        waiting.temporary.stays = false;
        drop((waiting, spool));
        assert_eq!(alice.left(), [""; 0]);
        (alice, swapped)
    }

    #[test]
    fn a_top_stored_between_check_and_swap_goes_back() {
        let (alice, swapped) = late(|alice| alice.store("new"));
        assert!(matches!(swapped, Err(Swapped::Done(PublishError::Superseded))), "{swapped:?}");
        assert_eq!(alice.read(), "new");
    }

    #[test]
    fn a_top_deleted_between_check_and_swap_stays_deleted() {
        let (alice, swapped) = late(|alice| fs::remove_file(alice.top()).unwrap());
        assert!(matches!(swapped, Err(Swapped::Done(PublishError::Gone))), "{swapped:?}");
        assert!(!alice.top().exists());
    }

    #[test]
    fn an_undisturbed_swap_puts_ours_there_and_removes_the_old() {
        let (alice, swapped) = late(|_| {});
        assert!(swapped.is_ok(), "{swapped:?}");
        assert_eq!(alice.read(), "two");
    }

    /// The process ends: what is written stays.
    fn crash(spool: Spool, waiting: Waiting) {
        drop((waiting, spool));
    }

    #[test]
    fn a_start_after_a_crash_brings_a_written_refresh_token_to_its_place() {
        let alice = Alice::new();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        let (spool, waiting) = alice.written();
        crash(spool, waiting);
        assert_eq!((alice.read().as_str(), alice.left().len()), ("one", 1));
        let spool = alice.open();
        assert!(matches!(spool.recovered(), [(id, Ok(()))] if *id == alice.id), "{:?}", spool.recovered());
        assert_eq!((alice.read().as_str(), mode(&alice.top())), ("two", 0o600));
        assert_eq!(alice.left(), [""; 0]);
    }

    #[test]
    fn a_start_after_a_crash_behind_the_swap_leaves_the_top_alone() {
        let alice = Alice::new();
        let (spool, mut waiting) = alice.written();
        let expected = spool.read_top(&alice.id, None).unwrap().0;
        spool.swap(&spool.home(&alice.id).unwrap(), "s.top", &mut waiting, &expected).unwrap();
        crash(spool, waiting);
        assert_eq!((alice.read().as_str(), alice.left().len()), ("two", 1));
        assert!(alice.open().recovered().is_empty());
        assert_eq!((alice.read().as_str(), alice.left().len()), ("two", 0));
    }

    #[test]
    fn a_start_after_a_crash_never_puts_half_a_text_or_an_old_one_over_a_newer_top() {
        for what in ["half", "newer", "gone", "foreign name"] {
            let alice = Alice::new();
            let (spool, waiting) = alice.written();
            let path = alice.dir.path().join(&waiting.temporary.name);
            crash(spool, waiting);
            match what {
                "half" => fs::write(&path, "tw").unwrap(),
                "newer" => alice.store("new"),
                "gone" => fs::remove_file(alice.top()).unwrap(),
                _ => fs::rename(&path, path.with_file_name(format!("{KEEP}x-y-z"))).unwrap(),
            }
            let before = fs::read_to_string(alice.top()).ok();
            assert!(alice.open().recovered().is_empty(), "{what}");
            assert_eq!(fs::read_to_string(alice.top()).ok(), before, "{what}");
            assert_eq!(alice.left().len(), usize::from(what == "foreign name"), "{what}");
        }
    }
}
