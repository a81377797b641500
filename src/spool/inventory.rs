//! What is there: users, their `.top` files and what the `.use` files beside them tell. Files of services that are
//! not ours are neither opened nor judged. A file whose metadata did not change is not read again, and a directory whose
//! own metadata did not change is not even listed.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::stat::{FileStat, fstatat},
};
use smallvec::SmallVec;
use zeroize::Zeroizing;

use super::{
    Cache, Seal, Spool, SpoolError,
    dir::{self, Refusal},
};
use crate::{
    core::{
        id::{CredentialId, Handle, Service, UserName},
        stand_in,
        time::{MaybeTimestamp, Timestamp},
        top::{Identity, Top},
        use_file::{self, Use},
    },
    error::Kind,
};

/// The largest `.use` that we look into.
const MAX_USE: usize = 1 << 20;

/// Which base names (`S` or `S_H`) are ours, and what they stand for.
pub type Wanted<'a> = &'a dyn Fn(&str) -> Option<(Service, Option<Handle>)>;

/// A credential as a scan found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Which one.
    pub id: CredentialId,
    /// Its `.top`: which one it is, or why it is bad.
    pub top: Result<Identity, Kind>,
    /// What its `.use` tells; none if there is none, or no token in it.
    pub use_file: Option<Use>,
    /// When the refresh token ends, if the `.top` tells without a key.
    pub refresh_ends: Option<Timestamp>,
    /// The `.top` was put there after the `.use`, or there is no `.use`.
    pub top_newer: bool,
}

/// A user's directory as it was looked at last.
#[derive(Debug)]
pub(super) struct Known {
    /// Its metadata; 0: it may have changed after the look without a trace in them.
    pub(super) directory: u64,
    pub(super) entries: Box<[Entry]>,
}

/// What the last look read of a credential; what its files' metadata tell is not kept, as each look asks for these.
/// Small, because there may be 100,000 of them.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) base: Arc<str>,
    pub(super) top_key: u64,
    /// The hash of its content.
    pub(super) top: Result<[u8; 16], Kind>,
    pub(super) refresh_ends: MaybeTimestamp,
    /// 0: there is no `.use`.
    pub(super) use_key: u64,
    /// There is a token in it.
    pub(super) use_good: bool,
    pub(super) use_issued: MaybeTimestamp,
    pub(super) use_expiry: MaybeTimestamp,
}

impl Entry {
    pub(super) fn use_file(&self) -> Option<Use> {
        self.use_good.then(|| Use { issued: self.use_issued.get(), expiry: self.use_expiry.get() })
    }
}

/// The metadata of a credential's two files, as one look sees them.
struct Stats {
    top: FileStat,
    use_file: Option<FileStat>,
}

impl Cache {
    /// The one text of a base name.
    pub(super) fn base(&mut self, base: &str) -> Arc<str> {
        if let Some(known) = self.bases.get(base) {
            return Arc::clone(known);
        }
        let base: Arc<str> = base.into();
        self.bases.insert(Arc::clone(&base));
        base
    }
}

/// A directory that changed less than this before it was listed may change again in the same instant of its clock.
const SETTLED: Duration = Duration::from_secs(2);

impl Spool {
    /// The credentials of a user whose base name (`S` or `S_H`) is `wanted`; empty if the user is gone.
    ///
    /// # Errors
    /// The user's directory cannot be read, is a symbolic link, or belongs to somebody who may not have one.
    pub fn scan_user(&self, user: &UserName, wanted: Wanted<'_>) -> Result<Vec<Seen>, SpoolError> {
        if let Some(known) = self.cache().users.get(user)
            && let Some(stats) = self.same(user, known)
        {
            let both = known.entries.iter().zip(&stats);
            return Ok(both.filter_map(|(entry, stats)| seen(user, entry, stats, wanted)).collect());
        }
        let error = |e| self.user_error(user, e);
        let (home, stat) = match self.top.judged_user(user.as_str(), &self.owners) {
            Ok(opened) => opened,
            Err(Errno::ENOENT) => {
                self.cache().users.remove(user);
                return Ok(Vec::new());
            }
            Err(e) => {
                self.cache().users.remove(user);
                return Err(error(e));
            }
        };
        let directory = if settled(&stat) { self.key(&stat) } else { 0 };
        let old = self.cache().users.remove(user).map(|known| known.entries).unwrap_or_default();
        let (mut entries, mut all) = (Vec::new(), Vec::new());
        for (name, _) in dir::entries(&home).map_err(error)? {
            let Some(base) = name.strip_suffix(".top") else { continue };
            if wanted(base).is_some() {
                let known = old.iter().find(|entry| &*entry.base == base);
                let Some((entry, stats)) = self.look(&home, base, known) else { continue };
                all.extend(seen(user, &entry, &stats, wanted));
                entries.push(entry);
            }
        }
        self.cache().users.insert(user.clone(), Known { directory, entries: entries.into() });
        Ok(all)
    }

    /// Whether nothing changed since the last look, as far as metadata tell. Opens nothing.
    #[must_use]
    pub fn unchanged(&self, user: &UserName) -> bool {
        self.cache().users.get(user).is_some_and(|known| self.same(user, known).is_some())
    }

    /// Whether the last look found everything good, so that a watch tells of what comes next. What is bad may be mended
    /// without a trace in its directory, as a hard link from elsewhere is.
    #[must_use]
    pub fn is_sure_of(&self, user: &UserName) -> bool {
        let sure = |known: &Known| known.directory != 0 && known.entries.iter().all(|entry| entry.top.is_ok());
        self.cache().users.get(user).is_some_and(sure)
    }

    /// Look at every user anew, as other services are wanted now.
    pub fn relist(&self) {
        self.cache().users.values_mut().for_each(|known| known.directory = 0);
    }

    /// The metadata of what is known of a user, if they are the same as then.
    fn same(&self, user: &UserName, known: &Known) -> Option<SmallVec<[Stats; 1]>> {
        let stat = |path: &str| match fstatat(&*self.top, path, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(Some(stat)),
            Err(Errno::ENOENT) => Some(None),
            Err(_) => None,
        };
        let is = |stat: Option<&FileStat>, key: u64| stat.map_or(0, |stat| self.key(stat)) == key;
        if known.directory == 0 || !is(stat(user.as_str())?.as_ref(), known.directory) {
            return None;
        }
        let mut path = format!("{user}/");
        let stats = known.entries.iter().map(|entry| {
            // An unreadable file may become readable without any change of its own.
            if entry.top == Err(Kind::TopUnreadable) {
                return None;
            }
            path.truncate(user.as_str().len() + 1);
            path.extend([&*entry.base, ".top"]);
            let top = stat(&path)?.filter(|stat| is(Some(stat), entry.top_key))?;
            path.truncate(path.len() - ".top".len());
            path.push_str(".use");
            let use_file = stat(&path)?;
            is(use_file.as_ref(), entry.use_key).then_some(Stats { top, use_file })
        });
        stats.collect()
    }

    /// Read a `.top` for an exchange.
    ///
    /// # Errors
    /// Why it is bad, or that it is gone (a sweep removes file by file).
    pub fn read_top(&self, id: &CredentialId, keys: Option<&Seal>) -> Result<(Identity, Top), Refusal> {
        let (stat, bytes) = self.top_bytes(id)?;
        Ok((dir::identity(&stat, dir::hash(&bytes)), unseal(&bytes, keys).map_err(Refusal::Bad)?))
    }

    fn top_bytes(&self, id: &CredentialId) -> Result<(FileStat, Zeroizing<Vec<u8>>), Refusal> {
        let home = self.top.user(id.user.as_str(), &self.owners).map_err(|e| match e {
            Errno::ENOENT => Refusal::Missing,
            Errno::ELOOP | Errno::ENOTDIR => Refusal::Bad(Kind::TopNotRegular),
            Errno::EPERM => Refusal::Bad(Kind::TopWrongOwner),
            _ => Refusal::Bad(Kind::TopUnreadable),
        })?;
        dir::read_top(&home, &format!("{}.top", id.base()), &self.owners)
    }

    /// Which `.top` there is, whatever is in it.
    ///
    /// # Errors
    /// As [`Spool::read_top`].
    pub fn top_identity(&self, id: &CredentialId) -> Result<Identity, Refusal> {
        let (stat, bytes) = self.top_bytes(id)?;
        Ok(dir::identity(&stat, dir::hash(&bytes)))
    }

    /// Which `.use` it is, by its metadata, and what is in it unless it is the one that `known` tells.
    ///
    /// # Errors
    /// There is none (any more), or it cannot be read.
    pub fn read_use(&self, id: &CredentialId, known: Option<u64>) -> io::Result<(u64, Option<Zeroizing<Vec<u8>>>)> {
        let home = self.top.user(id.user.as_str(), &self.owners)?;
        let name = format!("{}.use", id.base());
        let key = self.key(&fstatat(&home, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?);
        if known == Some(key) {
            return Ok((key, None));
        }
        let (stat, file) = dir::open_regular(&home, &name).map_err(|_| io::Error::from(Errno::ENOENT))?;
        let key = self.key(&stat);
        let (bytes, _) = dir::read_up_to(file, &stat, MAX_USE)?;
        if bytes.len() > MAX_USE { Err(Errno::EFBIG.into()) } else { Ok((key, Some(bytes))) }
    }

    fn look(&self, home: &dir::Dir, base: &str, known: Option<&Entry>) -> Option<(Entry, Stats)> {
        let (top_name, use_name) = (format!("{base}.top"), format!("{base}.use"));
        let mut top_stat = fstatat(home, top_name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
        let use_stat = fstatat(home, use_name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).ok();
        let top_key = self.key(&top_stat);
        let use_key = use_stat.as_ref().map_or(0, |stat| self.key(stat));
        let (top, refresh_ends) = match known {
            // An unreadable file may become readable without any change of its own.
            Some(entry) if entry.top_key == top_key && entry.top != Err(Kind::TopUnreadable) => {
                (entry.top, entry.refresh_ends.get())
            }
            _ => match dir::read_top(home, &top_name, &self.owners) {
                Ok((stat, bytes)) => {
                    // It may be another one by now; the next look finds that the key is not its own.
                    top_stat = stat;
                    judge(&bytes).map_or_else(|kind| (Err(kind), None), |ends| (Ok(dir::hash(&bytes)), ends))
                }
                Err(Refusal::Missing) => return None,
                Err(Refusal::Bad(kind)) => (Err(kind), None),
            },
        };
        let use_file = match known {
            Some(entry) if entry.use_key == use_key => entry.use_file(),
            _ => use_stat.and_then(|_| read_use(home, &use_name)),
        };
        let entry = Entry {
            base: self.cache().base(base),
            top_key,
            top,
            refresh_ends: refresh_ends.into(),
            use_key,
            use_good: use_file.is_some(),
            use_issued: use_file.and_then(|told| told.issued).into(),
            use_expiry: use_file.and_then(|told| told.expiry).into(),
        };
        Some((entry, Stats { top: top_stat, use_file: use_stat }))
    }

    /// Metadata as one number, never 0.
    fn key(&self, stat: &FileStat) -> u64 {
        let mut hasher = DefaultHasher::new();
        let owner = (stat.st_uid, stat.st_mode, stat.st_nlink);
        let times = (dir::mtime_ns(stat), dir::ctime_ns(stat));
        (self.salt(), stat.st_dev, stat.st_ino, stat.st_size, times, owner).hash(&mut hasher);
        hasher.finish().max(1)
    }

    pub(super) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn user_error(&self, user: &UserName, errno: Errno) -> SpoolError {
        let path = self.path.join(user.as_str());
        match errno {
            Errno::ELOOP | Errno::ENOTDIR => SpoolError::Unfit {
                path,
                why: "it is not a directory (a symbolic link is not followed)".into(),
                advice: "remove it; credd makes users' directories itself",
            },
            Errno::EPERM => SpoolError::Unfit {
                path,
                why: "it belongs to somebody else than root, condor or us, or others may write to it".into(),
                advice: "chown it to condor and chmod it to 2700",
            },
            e => SpoolError::io(path, "read it", e),
        }
    }
}

fn seen(user: &UserName, entry: &Entry, stats: &Stats, wanted: Wanted<'_>) -> Option<Seen> {
    let (service, handle) = wanted(&entry.base)?;
    let newer = |use_file: &FileStat| dir::ctime_ns(&stats.top) > dir::ctime_ns(use_file);
    Some(Seen {
        id: CredentialId { user: user.clone(), service, handle },
        top: entry.top.map(|hash| dir::identity(&stats.top, hash)),
        use_file: entry.use_file(),
        refresh_ends: entry.refresh_ends.get(),
        top_newer: stats.use_file.as_ref().is_none_or(newer),
    })
}

fn settled(stat: &FileStat) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let changed = u64::try_from(dir::ctime_ns(stat)).map_or(Duration::MAX, Duration::from_nanos);
    now.checked_sub(changed).is_some_and(|age| age > SETTLED)
}

/// What can be told without a key: whether it is good, and when the refresh token ends.
fn judge(bytes: &[u8]) -> Result<Option<Timestamp>, Kind> {
    if Seal::looks_sealed(bytes) {
        return Ok(None);
    }
    match Top::parse(bytes) {
        // Whether that is enough, its provider tells.
        Err(Kind::TopNoToken) if stand_in::is_one(bytes) => Ok(None),
        read => read.map(|top| top.ends()),
    }
}

/// The text as stored, or what is inside of Fernet text.
pub(super) fn unseal(bytes: &[u8], keys: Option<&Seal>) -> Result<Top, Kind> {
    if !Seal::looks_sealed(bytes) {
        return Top::parse(bytes);
    }
    let inside = keys.and_then(|seal| seal.open(bytes)).ok_or(Kind::TopSealed)?;
    Top::parse(&inside)
}

fn read_use(home: &dir::Dir, name: &str) -> Option<Use> {
    let (stat, file) = dir::open_regular(home, name).ok()?;
    let (bytes, _) = dir::read_up_to(file, &stat, MAX_USE).ok()?;
    if bytes.len() > MAX_USE { None } else { use_file::read(&bytes) }
}
