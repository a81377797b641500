//! The spool against real directories of each test's own: what is read and refused, what is published and when, what a
//! crash leaves. The file is long: reading, publishing and starting are shown on the same small directory.

use std::{
    fs,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink},
    sync::LazyLock,
};

use nix::fcntl::OFlag;

use super::*;
use crate::{
    core::{
        id::{CredentialId, Handle, Service},
        secret::RefreshToken,
        top::MAX_TOP,
    },
    error::Kind,
};

struct Fixture {
    dir: tempfile::TempDir,
    spool: Option<Spool>,
}

fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o2770)).unwrap();
        let spool = Spool::open(dir.path(), Owners::usual(None)).unwrap();
        let fixture = Self { dir, spool: Some(spool) };
        fixture.mkdir("alice");
        fixture
    }

    fn spool(&self) -> &Spool {
        self.spool.as_ref().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mkdir(&self, name: &str) {
        fs::create_dir(self.path(name)).unwrap();
        fs::set_permissions(self.path(name), PermissionsExt::from_mode(0o700)).unwrap();
    }

    /// As credd does: another file and a rename.
    fn store(&self, name: &str, content: impl AsRef<[u8]>) {
        let temporary = self.path(&format!("{name}.tmp"));
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary).unwrap();
        io::Write::write_all(&mut file, content.as_ref()).unwrap();
        fs::rename(temporary, self.path(name)).unwrap();
    }

    fn leftovers(&self) -> usize {
        let names = fs::read_dir(self.dir.path()).unwrap();
        names.filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().starts_with(".evercred-")).count()
    }

    fn scan(&self) -> Vec<Seen> {
        self.spool().scan_user(&alice(), &wanted).unwrap()
    }

    fn kinds(&self) -> (Option<Kind>, Option<Kind>) {
        let scanned = self.scan().first().map(|seen| seen.top);
        let read = self.spool().read_top(&id(), None).err().map(|refusal| match refusal {
            Refusal::Missing => panic!("the .top is gone"),
            Refusal::Bad(kind) => kind,
        });
        (scanned.and_then(Result::err), read)
    }
}

fn alice() -> UserName {
    UserName::parse("alice").unwrap()
}

fn id() -> CredentialId {
    CredentialId::from_base(alice(), "s").unwrap()
}

fn wanted(base: &str) -> Option<(Service, Option<Handle>)> {
    let id = CredentialId::from_base(alice(), base).ok()?;
    (id.service.as_str() == "s").then_some((id.service, id.handle))
}

fn rotated() -> Rotated<'static> {
    static TOKENS: LazyLock<[RefreshToken; 2]> =
        LazyLock::new(|| ["one", "two"].map(|t| RefreshToken::parse(t).unwrap()));
    let [spent, new] = &*TOKENS;
    Rotated { spent, new }
}

const PRETTY: &str = "{\n  \"scopes\": \"a b\",\n  \"y\": 1e400,\n  \"refresh_token\": \"one\"\n}\n";

#[test]
fn a_rotated_token_keeps_the_rest_of_the_text_owner_and_mode() {
    let f = Fixture::new();
    f.store("alice/s.top", PRETTY);
    if root() {
        chown(f.path("alice/s.top"), Some(0), Some(1)).unwrap();
    }
    let (one, top) = f.spool().read_top(&id(), None).unwrap();
    assert_eq!(top.refresh_token().expose(), "one");
    let mut reservation = f.spool().reserve(&id(), 4096, 4096).unwrap();
    let two = f.spool().keep_refresh_token(&id(), &mut reservation, one, rotated(), None).unwrap().identity;
    assert_eq!(fs::read_to_string(f.path("alice/s.top")).unwrap(), PRETTY.replace("one", "two"));
    let meta = fs::metadata(f.path("alice/s.top")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.nlink()), (0o600, 1));
    if root() {
        assert_eq!((meta.uid(), meta.gid()), (0, 1));
    }
    assert_eq!(f.spool().read_top(&id(), None).unwrap().0, two);
    f.spool().publish_use(&id(), reservation, two, b"token\n").unwrap();
    assert_eq!(fs::read(f.path("alice/s.use")).unwrap(), b"token\n");
    assert_eq!(fs::metadata(f.path("alice/s.use")).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(f.leftovers(), 0);
    let seen = &f.scan()[0];
    assert_eq!((seen.top, seen.top_newer, seen.use_file.is_some()), (Ok(two), false, true));
}

#[test]
fn sealed_stays_sealed_when_rotated() {
    let f = Fixture::new();
    let seal = Seal::from_key(&fernet::Fernet::generate_key()).unwrap();
    f.store("alice/s.top", &*seal.seal(PRETTY.as_bytes()));
    assert_eq!(f.kinds(), (None, Some(Kind::TopSealed)));
    let (one, top) = f.spool().read_top(&id(), Some(&seal)).unwrap();
    assert_eq!(top.refresh_token().expose(), "one");
    let mut reservation = f.spool().reserve(&id(), 4096, 4096).unwrap();
    f.spool().keep_refresh_token(&id(), &mut reservation, one, rotated(), Some(&seal)).unwrap();
    let text = seal.open(&fs::read(f.path("alice/s.top")).unwrap()).unwrap();
    assert_eq!(&**text, PRETTY.replace("one", "two").as_bytes());
}

#[test]
fn a_re_stored_top_is_never_overwritten_and_its_use_not_published() {
    let f = Fixture::new();
    f.store("alice/s.top", "one");
    let one = f.spool().read_top(&id(), None).unwrap().0;
    let mut reservation = f.spool().reserve(&id(), 64, 64).unwrap();
    f.store("alice/s.top", "new");
    let kept = f.spool().keep_refresh_token(&id(), &mut reservation, one, rotated(), None);
    assert!(matches!(kept, Err(PublishError::Superseded)));
    assert!(matches!(f.spool().publish_use(&id(), reservation, one, b"t\n"), Err(PublishError::Superseded)));
    assert_eq!(fs::read(f.path("alice/s.top")).unwrap(), b"new");
    assert!(!f.path("alice/s.use").exists());
    assert_eq!(f.leftovers(), 0);
}

#[test]
fn a_top_stored_anew_with_the_token_that_was_spent_gets_its_successor() {
    let f = Fixture::new();
    f.store("alice/s.top", "one");
    let one = f.spool().read_top(&id(), None).unwrap().0;
    let mut reservation = f.spool().reserve(&id(), 64, 64).unwrap();
    f.store("alice/s.top", PRETTY);
    let kept = f.spool().keep_refresh_token(&id(), &mut reservation, one, rotated(), None).unwrap();
    assert!(kept.stored_anew);
    assert_eq!(fs::read_to_string(f.path("alice/s.top")).unwrap(), PRETTY.replace("one", "two"));
    // As after a failure at the very end: it is there already.
    let again = f.spool().keep_refresh_token(&id(), &mut reservation, one, rotated(), None).unwrap();
    assert_eq!((again.identity, again.stored_anew), (kept.identity, false));
    drop(reservation);
    assert_eq!(f.leftovers(), 0);
}

/// The `.top` still holds the token that was spent, and cannot be judged for a while, or is not what it seems: after
/// `undo` its successor is there. `early`: already when the successor comes, so that it is not even written.
fn outlives(
    what: &str,
    keys: Option<&Seal>,
    others: Option<&Seal>,
    change: impl Fn(&Fixture),
    undo: impl Fn(&Fixture),
) {
    for early in [false, true] {
        let f = Fixture::new();
        let text = |f: &Fixture| {
            let bytes = fs::read(f.path("alice/s.top")).unwrap();
            keys.map_or(bytes.clone(), |seal| seal.open(&bytes).unwrap().to_vec())
        };
        f.store("alice/s.top", keys.map_or(PRETTY.into(), |seal| seal.seal(PRETTY.as_bytes()).to_vec()));
        let one = f.spool().read_top(&id(), keys).unwrap().0;
        let mut reservation = f.spool().reserve(&id(), 4096, 4096).unwrap();
        if !early {
            f.spool().write_refresh_token(&id(), &mut reservation, one, rotated(), keys).unwrap();
        }
        change(&f);
        for _ in 0..2 {
            let kept = f.spool().keep_refresh_token(&id(), &mut reservation, one, rotated(), others);
            assert!(matches!(kept, Err(PublishError::Io { .. })), "{what}: {kept:?}");
        }
        assert_eq!(reservation.is_written(), !early, "{what}: what is written stays");
        undo(&f);
        f.spool().keep_refresh_token(&id(), &mut reservation, one, rotated(), keys).unwrap();
        assert_eq!(text(&f), PRETTY.replace("one", "two").as_bytes(), "{what}");
        drop(reservation);
        assert_eq!(f.leftovers(), 0, "{what}");
    }
}

#[test]
fn a_rotated_token_outlives_a_time_in_which_its_top_cannot_be_judged() {
    let mode = |f: &Fixture, mode| fs::set_permissions(f.path("alice/s.top"), PermissionsExt::from_mode(mode)).unwrap();
    let (top, link, aside) = ("alice/s.top", "alice/backup", "alice/aside");
    outlives(
        "a hard link",
        None,
        None,
        |f| fs::hard_link(f.path(top), f.path(link)).unwrap(),
        |f| fs::remove_file(f.path(link)).unwrap(),
    );
    outlives("a chmod", None, None, |f| mode(f, 0o644), |f| mode(f, 0o600));
    let put_aside = |f: &Fixture| fs::rename(f.path(top), f.path(aside)).unwrap();
    let back = |f: &Fixture| fs::rename(f.path(aside), f.path(top)).unwrap();
    let no_text = |f: &Fixture, text: &str| {
        put_aside(f);
        f.store(top, text);
    };
    outlives("an empty one for a while", None, None, |f| no_text(f, ""), back);
    outlives(
        "a symbolic link",
        None,
        None,
        |f| {
            put_aside(f);
            symlink("aside", f.path(top)).unwrap();
        },
        back,
    );
    let [seal, other] = [(); 2].map(|()| Seal::from_key(&fernet::Fernet::generate_key()).unwrap());
    outlives("no key", Some(&seal), None, |_| {}, |_| {});
    outlives("another key", Some(&seal), Some(&other), |_| {}, |_| {});
}

#[test]
fn what_was_deleted_does_not_come_back() {
    let f = Fixture::new();
    f.store("alice/s.top", "one");
    let one = f.spool().read_top(&id(), None).unwrap().0;
    let gone = |r| matches!(r, Err(PublishError::Gone));
    let mut reservation = f.spool().reserve(&id(), 64, 64).unwrap();
    fs::remove_file(f.path("alice/s.top")).unwrap();
    let kept = f.spool().keep_refresh_token(&id(), &mut reservation, one, rotated(), None);
    assert!(matches!(kept, Err(PublishError::Gone)));
    assert!(gone(f.spool().publish_use(&id(), reservation, one, b"t\n")));
    assert_eq!(fs::read_dir(f.path("alice")).unwrap().count(), 0);
    let reservation = f.spool().reserve(&id(), 64, 64).unwrap();
    fs::remove_dir(f.path("alice")).unwrap();
    assert!(gone(f.spool().publish_use(&id(), reservation, one, b"t\n")));
    assert!(!f.path("alice").exists());
    assert_eq!(f.scan(), []);
    assert_eq!(f.leftovers(), 0);
}

#[test]
fn an_empty_use_is_never_published() {
    let f = Fixture::new();
    f.store("alice/s.top", "one");
    let one = f.spool().read_top(&id(), None).unwrap().0;
    let reservation = f.spool().reserve(&id(), 64, 64).unwrap();
    assert!(f.spool().publish_use(&id(), reservation, one, b"").is_err());
    assert!(!f.path("alice/s.use").exists());
}

#[test]
fn every_bad_top_has_its_kind_and_stays_as_it_was() {
    let f = Fixture::new();
    let both = |kind| (Some(kind), Some(kind));
    f.store("alice/s.top", "");
    assert_eq!(f.kinds(), both(Kind::TopEmpty));
    f.store("alice/s.top", b"\xff");
    assert_eq!(f.kinds(), both(Kind::TopNotUtf8));
    f.store("alice/s.top", vec![b'a'; MAX_TOP + 1]);
    assert_eq!(f.kinds(), both(Kind::TopTooLarge));
    f.store("alice/s.top", "{\"x\":1}");
    assert_eq!(f.kinds(), both(Kind::TopNoToken));
    f.store("alice/s.top", "good");
    assert_eq!(f.kinds(), (None, None));
    fs::set_permissions(f.path("alice/s.top"), PermissionsExt::from_mode(0o640)).unwrap();
    assert_eq!(f.kinds(), both(Kind::TopWrongOwner));
    f.store("alice/s.top", "good");
    fs::hard_link(f.path("alice/s.top"), f.path("alice/other")).unwrap();
    assert_eq!(f.kinds(), both(Kind::TopNotRegular));
    fs::remove_file(f.path("alice/s.top")).unwrap();
    symlink("other", f.path("alice/s.top")).unwrap();
    assert_eq!(f.kinds(), both(Kind::TopNotRegular));
    fs::remove_file(f.path("alice/s.top")).unwrap();
    nix::unistd::mkfifo(&f.path("alice/s.top"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    assert_eq!(f.kinds(), both(Kind::TopNotRegular));
    fs::remove_file(f.path("alice/s.top")).unwrap();
    fs::create_dir(f.path("alice/s.top")).unwrap();
    assert_eq!(f.kinds(), both(Kind::TopNotRegular));
    fs::remove_dir(f.path("alice/s.top")).unwrap();
    f.store("alice/s.top", "good");
    if root() {
        chown(f.path("alice/s.top"), Some(12345), None).unwrap();
        assert_eq!(f.kinds(), both(Kind::TopWrongOwner));
    } else {
        fs::set_permissions(f.path("alice/s.top"), PermissionsExt::from_mode(0o000)).unwrap();
        assert_eq!(f.kinds(), both(Kind::TopUnreadable));
    }
}

#[test]
fn a_top_or_user_that_is_gone_is_told_from_a_bad_one() {
    let f = Fixture::new();
    assert_eq!(f.spool().read_top(&id(), None).unwrap_err(), Refusal::Missing, "no user");
    f.store("alice/other.top", "x");
    assert_eq!(f.spool().read_top(&id(), None).unwrap_err(), Refusal::Missing, "no .top");
    f.store("alice/s.top", "");
    assert_eq!(f.spool().read_top(&id(), None).unwrap_err(), Refusal::Bad(Kind::TopEmpty));
}

#[test]
fn a_users_directory_that_is_a_link_or_anybodys_is_not_entered() {
    let f = Fixture::new();
    f.store("alice/s.top", "one");
    symlink("alice", f.path("bob")).unwrap();
    f.mkdir("carol");
    fs::set_permissions(f.path("carol"), PermissionsExt::from_mode(0o703)).unwrap();
    fs::write(f.path("dave.mark"), "").unwrap();
    f.mkdir("bad name");
    let mut strays = Vec::new();
    let mut listing = f.spool().listing().unwrap();
    let users = loop {
        // One name at a time, as a busy scanner takes them.
        let told = f.spool().list(&mut listing, 1, |name, kind| strays.push((name.to_owned(), kind))).unwrap();
        if let Some(users) = told {
            break users;
        }
    };
    strays.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(users.iter().map(ToString::to_string).collect::<Vec<_>>(), ["alice", "carol"]);
    let expected = [("bad name", Kind::NameRefused), ("bob", Kind::DirectoryUnfit)];
    assert_eq!(strays, expected.map(|(name, kind)| (name.to_owned(), kind)));
    for user in ["bob", "carol"] {
        let user = UserName::parse(user).unwrap();
        let error = f.spool().scan_user(&user, &wanted).unwrap_err();
        assert!(matches!(error, SpoolError::Unfit { .. }), "{error}");
        let id = CredentialId::from_base(user, "s").unwrap();
        assert!(f.spool().read_top(&id, None).is_err());
    }
}

#[test]
fn openat2_and_the_way_component_by_component_agree() {
    let f = Fixture::new();
    f.store("alice/s.top", "one");
    symlink("alice", f.path("bob")).unwrap();
    symlink("s.top", f.path("alice/l.top")).unwrap();
    for stepwise in [false, true] {
        let top = dir::Dir::open(f.dir.path()).unwrap();
        let open = |path: &str| {
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
            if stepwise { dir::stepwise(&top, path, flags) } else { top.beneath(path, flags) }.map(drop)
        };
        assert_eq!(open("alice/s.top"), Ok(()));
        assert!(matches!(open("bob/s.top"), Err(Errno::ELOOP | Errno::ENOTDIR)));
        assert_eq!(open("alice/l.top"), Err(Errno::ELOOP));
        assert_eq!(open("alice/n.top"), Err(Errno::ENOENT));
        assert_eq!(open("../x"), Err(Errno::EXDEV));
    }
}

#[test]
fn services_that_are_not_ours_are_not_seen() {
    let f = Fixture::new();
    for name in ["alice/s.top", "alice/s_h.top", "alice/other.top", "alice/s.use", "alice/s.meta"] {
        f.store(name, "one");
    }
    let seen: Vec<_> = f.scan().iter().map(|seen| seen.id.base()).collect();
    assert_eq!(seen, ["s", "s_h"]);
}

#[test]
fn a_changed_file_is_seen_although_the_last_scan_is_remembered() {
    let f = Fixture::new();
    f.store("alice/s.top", "one");
    let before = f.scan();
    assert_eq!(f.scan(), before);
    assert!(before[0].top_newer);
    f.store("alice/s.top", "two");
    assert_ne!(f.scan()[0].top, before[0].top);
}

/// The next run's spool, with what this one remembers.
fn next_run(f: &mut Fixture, services: &str) {
    f.spool().remember("s").unwrap();
    f.spool = None;
    f.spool = Some(Spool::open(f.dir.path(), Owners::usual(None)).unwrap());
    f.spool().recall(services);
}

#[test]
fn what_a_run_read_is_not_read_again_by_the_next_unless_it_changed() {
    let mut f = Fixture::new();
    f.store("alice/s.top", "one");
    f.store("alice/s.use", "{\"access_token\":\"t\",\"issued_at\":1,\"expires_at\":2}\n");
    // A directory that has just changed is not trusted.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let before = f.scan();
    next_run(&mut f, "s");
    assert!(f.spool().unchanged(&alice()), "known without a look");
    assert_eq!(f.scan(), before);
    let index = fs::read(f.path(".evercred-index")).unwrap();
    assert_eq!(fs::metadata(f.path(".evercred-index")).unwrap().mode() & 0o7777, 0o600);
    assert!(!index.windows(3).any(|w| w == b"one"), "no secret in it");
    for change in ["in place", "another .top", "another .use", "another credential", "no .use"] {
        next_run(&mut f, "s");
        f.scan();
        std::thread::sleep(std::time::Duration::from_millis(2100));
        f.scan();
        next_run(&mut f, "s");
        assert!(f.spool().unchanged(&alice()), "before: {change}");
        match change {
            "in place" => fs::write(f.path("alice/s.top"), "two").unwrap(),
            "another .top" => f.store("alice/s.top", "three"),
            "another .use" => f.store("alice/s.use", "{\"access_token\":\"u\",\"expires_at\":3}\n"),
            "another credential" => f.store("alice/s_h.top", "four"),
            _ => fs::remove_file(f.path("alice/s.use")).unwrap(),
        }
        assert!(!f.spool().unchanged(&alice()), "after: {change}");
        let found = f.scan();
        f.spool = None;
        f.spool = Some(Spool::open(f.dir.path(), Owners::usual(None)).unwrap());
        assert_eq!(f.scan(), found, "{change}: as if there were no index");
    }
}

#[test]
fn an_index_that_is_torn_of_other_services_or_open_to_others_is_ignored() {
    let mut f = Fixture::new();
    f.store("alice/s.top", "one");
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let before = f.scan();
    next_run(&mut f, "s other");
    assert!(!f.spool().unchanged(&alice()));
    assert_eq!(f.scan(), before);
    next_run(&mut f, "s");
    let whole = fs::read(f.path(".evercred-index")).unwrap();
    for n in [0, 1, whole.len() / 2, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[n] ^= 1;
        for bad in [&whole[..n], &flipped] {
            fs::write(f.path(".evercred-index"), bad).unwrap();
            f.spool = None;
            f.spool = Some(Spool::open(f.dir.path(), Owners::usual(None)).unwrap());
            f.spool().recall("s");
            assert!(!f.spool().unchanged(&alice()), "byte {n}");
            assert_eq!(f.scan(), before);
        }
    }
    fs::write(f.path(".evercred-index"), &whole).unwrap();
    fs::set_permissions(f.path(".evercred-index"), PermissionsExt::from_mode(0o640)).unwrap();
    f.spool = None;
    f.spool = Some(Spool::open(f.dir.path(), Owners::usual(None)).unwrap());
    f.spool().recall("s");
    assert!(!f.spool().unchanged(&alice()));
}

#[test]
fn space_reserved_for_a_rotation_in_vain_serves_the_next_exchange_and_goes_at_the_stop() {
    let f = Fixture::new();
    f.store("alice/s.top", "one");
    let one = f.scan()[0].top.unwrap();
    for _ in 0..3 {
        let reservation = f.spool().reserve(&id(), 64, 64).unwrap();
        assert_eq!(f.leftovers(), 2);
        f.spool().publish_use(&id(), reservation, one, b"token\n").unwrap();
        assert_eq!(f.leftovers(), 1);
    }
    let mut reservation = f.spool().reserve(&id(), 64, 64).unwrap();
    let two = f.spool().keep_refresh_token(&id(), &mut reservation, one, rotated(), None).unwrap().identity;
    assert_eq!(fs::read(f.path("alice/s.top")).unwrap(), b"two");
    f.spool().publish_use(&id(), reservation, two, b"token\n").unwrap();
    assert_eq!(f.leftovers(), 0, "used up");
    let reservation = f.spool().reserve(&id(), 64, 64).unwrap();
    f.spool().publish_use(&id(), reservation, two, b"token\n").unwrap();
    f.spool().retire();
    assert_eq!(f.leftovers(), 0);
}

#[test]
fn a_second_instance_is_refused_and_told_who_the_first_is() {
    let f = Fixture::new();
    let error = Spool::open(f.dir.path(), Owners::usual(None)).unwrap_err();
    let SpoolError::Locked { holder, .. } = &error else { panic!("{error}") };
    assert_eq!(*holder, i32::try_from(std::process::id()).ok());
    assert!(f.path("pid").exists());
}

#[test]
fn beside_another_credential_monitor_pid_and_complete_stay_the_others_and_a_second_evercred_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o2770)).unwrap();
    for name in ["pid", "CREDMON_COMPLETE"] {
        fs::write(dir.path().join(name), "4711\n").unwrap();
    }
    let spool = Spool::open_beside(dir.path(), Owners::usual(None)).unwrap();
    spool.touch_complete().unwrap();
    let second = Spool::open_beside(dir.path(), Owners::usual(None)).unwrap_err();
    assert!(matches!(second, SpoolError::Locked { .. }), "{second}");
    spool.retire();
    drop(spool);
    for name in ["pid", "CREDMON_COMPLETE"] {
        assert_eq!(fs::read_to_string(dir.path().join(name)).unwrap(), "4711\n");
    }
}

#[test]
fn start_writes_pid_and_clears_what_a_crash_left_and_the_end_removes_pid() {
    let mut f = Fixture::new();
    f.spool().touch_complete().unwrap();
    assert!(f.path("CREDMON_COMPLETE").exists());
    f.spool = None;
    assert!(!f.path("pid").exists() && f.path(".evercred.lock").exists());
    fs::write(f.path(".evercred-tmp-1-1"), "secret").unwrap();
    fs::write(f.path("tmpabc"), "not ours").unwrap();
    let spool = Spool::open(f.dir.path(), Owners::usual(None)).unwrap();
    assert_eq!(f.leftovers(), 0);
    assert!(f.path("tmpabc").exists() && !f.path("CREDMON_COMPLETE").exists());
    assert_eq!(fs::read_to_string(f.path("pid")).unwrap(), format!("{}\n", std::process::id()));
    assert_eq!(fs::metadata(f.path("pid")).unwrap().mode() & 0o7777, 0o644);
    fs::write(f.path("pid"), "1\n").unwrap();
    drop(spool);
    assert!(f.path("pid").exists());
}

#[test]
fn a_directory_that_is_missing_a_link_or_open_to_others_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| Spool::open(&dir.path().join(name), Owners::usual(None)).unwrap_err().to_string();
    assert!(open("none").contains("no such directory"));
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::set_permissions(dir.path().join("d"), PermissionsExt::from_mode(0o771)).unwrap();
    assert!(open("d").contains("open to others (mode 0771)"));
    symlink("d", dir.path().join("l")).unwrap();
    assert!(open("l").contains("not a directory"));
    assert_eq!(fs::read_dir(dir.path().join("d")).unwrap().count(), 0);
    if root() {
        fs::set_permissions(dir.path().join("d"), PermissionsExt::from_mode(0o770)).unwrap();
        chown(dir.path().join("d"), Some(12345), None).unwrap();
        assert!(open("d").contains("belongs to uid 12345"));
    }
}

/// A mounted tmpfs of 64 KiB; unmounted when dropped.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().ok()?;
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k,mode=0770", "tmpfs"])
            .arg(dir.path())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

#[test]
fn without_space_the_reservation_fails_before_anything_is_spent() {
    let Some(small) = root().then(Small::mount).flatten() else {
        eprintln!("skipped: cannot mount a tmpfs here");
        return;
    };
    let spool = Spool::open(small.0.path(), Owners::usual(None)).unwrap();
    fs::create_dir(small.0.path().join("alice")).unwrap();
    let error = spool.reserve(&id(), 4096, 128 * 1024).unwrap_err();
    assert!(matches!(error, PublishError::NoSpace { .. }), "{error}");
    let left = fs::read_dir(small.0.path()).unwrap().flatten().map(|e| e.file_name());
    assert!(!left.into_iter().any(|name| name.to_str().unwrap().starts_with(TEMPORARY)));
    spool.reserve(&id(), 4096, 4096).unwrap();
}

#[test]
fn it_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Spool>();
    shared::<Reservation>();
    shared::<Watch>();
    shared::<Seal>();
}
