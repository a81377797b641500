//! `evercred import kit`: the mytokens of the KIT credential monitor go to credd, without asking their users again.
//!
//! Its files are `DIR/USER/SERVICE.top`, each the Fernet text of a mytoken (mytoken contract §7.1); plain and JSON ones
//! are taken, too. Each is stored as its user, by `condor_store_cred`, so credd makes the file as for any other. A dry
//! run unless `--apply`; nothing is ever deleted. Run again after an interruption: what is stored already is skipped.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::{
    libc,
    unistd::{User, geteuid},
};
use zeroize::Zeroizing;

use super::{daemon, upload};
use crate::{
    cli,
    config::{
        approval::obstacle,
        input::Wrong,
        settings::{Provider, STATUS_SOCKET, Settings},
    },
    core::{
        id::{CredentialId, UserName},
        secret::RefreshToken,
        time::Timestamp,
        top::{MAX_TOP, Top},
    },
    courier::http::now,
    error::{Report, exit},
    keeper::control::{Order, Reply},
    spool::Seal,
    submit::{
        self, flow,
        request::Request,
        store::{Credd, Stored},
        words,
    },
};

/// How Fernet text of our time begins: version 0x80, and a time below 2³².
const FERNET: &[u8] = b"gAAAA";

/// One file, and what becomes of it.
struct Found<'s> {
    name: String,
    outcome: Outcome<'s>,
}

enum Outcome<'s> {
    /// It can be taken.
    Fit(Box<Fit<'s>>),
    /// It stays where it is.
    Left(String),
    /// It should have been taken.
    Failed(String),
}

struct Fit<'s> {
    request: Request,
    user: User,
    token: RefreshToken,
    key: &'static str,
    end: Option<i64>,
    provider: &'s Provider,
}

/// Look at everything, tell, and with `--apply` store.
#[must_use]
pub fn run(args: &cli::ImportKit) -> ExitCode {
    match import(args) {
        Ok(true) => ExitCode::from(exit::OK),
        Ok(false) => ExitCode::from(exit::FAILED),
        Err(report) => report.print("evercred"),
    }
}

fn import(args: &cli::ImportKit) -> Result<bool, Report> {
    if !geteuid().is_root() {
        return Err(Report::new("only root can read the old files and store for other users", exit::FAILED)
            .advise("run it as root"));
    }
    let settings = submit::settings(args.config.clone())?;
    let seal = Seal::from_key_file(&args.key).map_err(|e| Report::of(&e, exit::FAILED))?;
    let credd = Credd::find().map_err(|e| Report::of(&e, exit::FAILED))?;
    let mut all = look(&args.dir, &settings, &seal, now())?;
    for found in &mut all {
        if let Outcome::Fit(fit) = &found.outcome
            && let Some(outcome) = stored_already(fit, &credd)
        {
            found.outcome = outcome;
        }
    }
    let mut text = String::new();
    let socket = settings.daemon.status_socket.clone().unwrap_or_else(|| STATUS_SOCKET.into());
    if args.apply
        && let Err(error) = store(&mut all, &credd, settings.storer.use_wait, &socket)
    {
        text = format!("The audit log does not have them: {error}\n");
    }
    text.insert_str(0, &report(&all, args.apply, now()));
    // Nobody is left to be told if standard output is closed.
    io::stdout().lock().write_all(text.as_bytes()).ok();
    Ok(!all.iter().any(|found| matches!(found.outcome, Outcome::Failed(_))))
}

/// Every `.top` below `dir`, in the order of its name.
fn look<'s>(dir: &Path, settings: &'s Settings, seal: &Seal, now: Timestamp) -> Result<Vec<Found<'s>>, Report> {
    let list = |dir: &Path| -> io::Result<Vec<std::path::PathBuf>> {
        let mut paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        Ok(paths)
    };
    let unreadable = |e: &io::Error| Report::new(format!("{}: {e}", dir.display()), exit::FAILED).advise("see --dir");
    let mut all = Vec::new();
    for directory in list(dir).map_err(|e| unreadable(&e))? {
        if !fs::symlink_metadata(&directory).is_ok_and(|meta| meta.is_dir()) {
            continue;
        }
        let files = match list(&directory) {
            Ok(files) => files,
            Err(e) => {
                let name = directory.display().to_string();
                all.push(Found { name, outcome: Outcome::Failed(format!("cannot be listed: {e}")) });
                continue;
            }
        };
        for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "top")) {
            let word = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let user = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let (name, base) = (format!("{user}/{}", word(file)), word(file));
            let outcome = fit(&user, &base, file, settings, seal, now).unwrap_or_else(|outcome| outcome);
            all.push(Found { name, outcome });
        }
    }
    Ok(all)
}

fn fit<'s>(
    user: &str,
    base: &str,
    file: &Path,
    settings: &'s Settings,
    seal: &Seal,
    now: Timestamp,
) -> Result<Outcome<'s>, Outcome<'s>> {
    let left = |why: &str| Outcome::Left(why.to_owned());
    let id = UserName::parse(user).and_then(|user| CredentialId::from_base(user, base));
    let id = id.map_err(|e| Outcome::Left(e.to_string()))?;
    let request = Request::of(id.service, id.handle);
    let provider = submit::owner(&request, settings).ok_or_else(|| left("no provider owns this service here"))?;
    let account = User::from_name(user).ok().flatten().ok_or_else(|| left("there is no such user here"))?;
    if account.uid.is_root() {
        return Err(left("root submits no jobs"));
    }
    let bytes = read(file).map_err(|e| Outcome::Failed(format!("cannot be read: {e}")))?;
    let bytes = if Seal::looks_sealed(&bytes) {
        seal.open(&bytes).ok_or_else(|| Outcome::Failed("the key does not open it".to_owned()))?
    } else if bytes.trim_ascii_start().starts_with(FERNET) {
        return Err(Outcome::Failed("it is Fernet text, and damaged".to_owned()));
    } else {
        bytes
    };
    let top = Top::parse(&bytes).map_err(|kind| Outcome::Failed(format!("no credential is in it ({kind})")))?;
    let checked = upload::check(top.refresh_token(), provider, now).map_err(Outcome::Left)?;
    let token = top.refresh_token().clone();
    Ok(Outcome::Fit(Box::new(Fit { request, user: account, token, key: checked.key, end: checked.end, provider })))
}

/// Opened without following links, judged as it was opened, capped.
fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    let owned = meta.uid() == 0 || meta.uid() == geteuid().as_raw();
    let refuse = |why| Err(io::Error::other(why));
    if !meta.is_file() {
        return refuse("not a regular file");
    }
    if meta.nlink() != 1 {
        return refuse("it has another name as well, a hard link");
    }
    if !owned || meta.mode() & 0o077 != 0 {
        return refuse("it is not root's, or open to others: somebody else may have written it");
    }
    let mut bytes = Zeroizing::new(Vec::new());
    let most = u64::try_from(MAX_TOP).unwrap_or(u64::MAX);
    file.take(most + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A credential that the user has here is never replaced by an older one.
fn stored_already<'s>(fit: &Fit<'s>, credd: &Credd) -> Option<Outcome<'s>> {
    match credd.for_user(&fit.user).query(&fit.request) {
        Ok(Stored::Missing) => None,
        Ok(_) => Some(Outcome::Left("there is a credential here already".to_owned())),
        Err(error) => Some(Outcome::Failed(error.to_string())),
    }
}

/// Store all and tell the daemon, for its audit log; then wait for their access tokens together.
///
/// # Errors
/// Why the daemon does not have it; what is stored is stored.
fn store(all: &mut [Found<'_>], credd: &Credd, patience: Duration, socket: &Path) -> Result<(), String> {
    let mut heard = Ok(());
    for found in &mut *all {
        if let Outcome::Fit(fit) = &found.outcome {
            let top = flow::top(fit.key, fit.token.expose(), fit.end);
            if let Err(error) = credd.for_user(&fit.user).store(&fit.request, &top) {
                found.outcome = Outcome::Failed(error.to_string());
            } else if heard.is_ok()
                && let Some((user, credential)) = found.name.split_once('/')
            {
                let (user, credential, from) = (user.to_owned(), credential.to_owned(), "kit".to_owned());
                heard = match daemon::order(socket, &Order::Imported { user, credential, from }) {
                    Ok(Reply::Done { .. }) => Ok(()),
                    Ok(Reply::Refused { why }) => Err(why),
                    Err(error) => Err(error.to_string()),
                };
            }
        }
    }
    let end = Instant::now() + patience;
    for found in all {
        let Outcome::Fit(fit) = &found.outcome else { continue };
        let credd = credd.for_user(&fit.user);
        while !matches!(credd.query(&fit.request), Ok(Stored::Ready { .. })) {
            if Instant::now() > end {
                found.outcome = Outcome::Failed("stored, but no access token came yet: see evercred status".to_owned());
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    heard
}

fn report(all: &[Found<'_>], applied: bool, now: Timestamp) -> String {
    let width = all.iter().map(|found| found.name.chars().count()).max().unwrap_or(0);
    let (mut lines, mut taken) = (Vec::new(), 0);
    for found in all {
        let said = match &found.outcome {
            Outcome::Fit(fit) => {
                taken += 1;
                let left = fit.end.map_or_else(
                    || "without an end".to_owned(),
                    |end| format!("{} left", words::spoken(Timestamp::from_secs(end).since(now))),
                );
                let what = if applied { "taken" } else { "would be taken" };
                format!("{what} for provider {}, {left}", fit.provider.name)
            }
            Outcome::Left(why) => format!("not taken: {why}"),
            Outcome::Failed(why) => format!("FAILED: {why}"),
        };
        lines.push(format!("{:width$}  {said}", found.name));
    }
    let owner = |found: &Found<'_>| match &found.outcome {
        Outcome::Fit(fit) => Some((fit.provider.name.clone(), obstacle(fit.provider, false)?)),
        _ => None,
    };
    let owners: BTreeMap<String, Wrong> = all.iter().filter_map(owner).collect();
    lines.extend(
        owners
            .into_iter()
            .map(|(name, Wrong { what, advice, .. })| format!("warning: provider.{name}: {what}; {advice}")),
    );
    let rest = all.len() - taken;
    lines.push(if applied {
        format!("{taken} taken, {rest} not. Nothing was deleted.")
    } else {
        format!("{taken} would be taken, {rest} not. Nothing was changed: add --apply to store them.")
    });
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

    use super::*;
    use crate::config::{Sources, condor::Knobs, load_with};

    const NOW: Timestamp = Timestamp(1_800_000_000_000);
    const KEY: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";

    fn jwt(claims: &str) -> String {
        format!("eyJhbGciOiJFUzUxMiJ9.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn the_report_tells_for_every_file_what_becomes_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(
            &file,
            "[daemon]\ncredential_directory = \"/c\"\n[provider.helmholtz]\nkind = \"mytoken\"\nserver = \"https://mytok.eu\"\n",
        )
        .unwrap();
        let sources = Sources { config: Some(file), ..Sources::default() };
        let settings = load_with(&sources, &Knobs::default()).unwrap();
        let seal = Seal::from_key(KEY).unwrap();
        let old = dir.path().join("old");
        let put = |user: &str, name: &str, bytes: &[u8]| {
            std::fs::create_dir_all(old.join(user)).unwrap();
            let path = old.join(user).join(name);
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        };
        let good = jwt(r#"{"iss":"https://mytok.eu","exp":1800086400,"capabilities":["AT"]}"#);
        let sealed = |text: &str| seal.seal(format!("{text}\n").as_bytes());
        put("daemon", "helmholtz.top", &sealed(&good));
        put("daemon", "helmholtz_x.top", good.as_bytes());
        put("daemon", "helmholtz.use", b"an access token");
        put("bin", "helmholtz.top", &sealed(&jwt(r#"{"iss":"https://mytok.eu","exp":1799999990}"#)));
        put("sys", "helmholtz.top", &sealed(&jwt(r#"{"iss":"https://evil.example","exp":1800086400}"#)));
        put("games", "other.top", &sealed(&good));
        put("nobody-of-that-name", "helmholtz.top", &sealed(&good));
        let other = Seal::from_key("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").unwrap();
        put("mail", "helmholtz.top", &other.seal(good.as_bytes()));
        put("man", "helmholtz.top", b"");
        let damaged = sealed(&good);
        put("backup", "helmholtz.top", damaged.get(..damaged.len() / 2).unwrap());
        put("backup", "helmholtz_x.top", format!("{}\n", "gAAAAA".repeat(20)).as_bytes());
        put("lp", "helmholtz.top", &sealed(&good));
        std::fs::set_permissions(old.join("lp/helmholtz.top"), PermissionsExt::from_mode(0o640)).unwrap();
        put("uucp", "helmholtz.top", &sealed(&good));
        std::fs::hard_link(old.join("uucp/helmholtz.top"), old.join("uucp/other")).unwrap();
        std::fs::create_dir_all(old.join("news")).unwrap();
        symlink("/etc/shadow", old.join("news/helmholtz.top")).unwrap();
        symlink("/etc", old.join("link")).unwrap();
        put("root", "helmholtz.top", &sealed(&good));
        let all = look(&old, &settings, &seal, NOW).map_err(|report| report.to_string()).unwrap();
        let text = report(&all, false, NOW);
        assert!(!text.contains(&good), "no secret is in it");
        insta::assert_snapshot!(text);
    }
}
