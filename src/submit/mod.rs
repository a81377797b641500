//! `evercred_storer`, which `condor_submit` runs for the user (`SEC_CREDENTIAL_STORER`), and the same approval for
//! `evercred login` and `evercred upload`.
//!
//! It runs as the user, cannot read a `.top`, and knows what is stored from credd (`condor_store_cred query-oauth`) and
//! how it does from the keeper's status socket. It exits 0 only with a usable credential in place for every request.
//! Standard output stays empty, messages go to standard error, URLs and codes to the terminal alone.

mod account;
pub mod browser;
pub mod cases;
mod child;
pub mod error;
pub mod flow;
mod foreign;
pub mod human;
pub mod lock;
pub mod note;
pub mod portal;
pub mod prompt;
pub mod provide;
pub mod qr;
mod remote;
pub mod request;
pub mod store;
pub mod terminal;
pub mod voice;
pub mod words;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    cell::RefCell,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool, mpsc},
    time::{Duration, Instant},
};

use nix::{
    sys::{
        prctl,
        resource::{Resource, setrlimit},
    },
    unistd::{User, geteuid, gethostname},
};

use self::{
    error::SubmitError,
    human::Human,
    provide::{Counter, Known},
    request::Request,
    store::Credd,
    terminal::Terminal,
    voice::{Event, Voice},
    words::Purpose,
};
use crate::{
    cli,
    config::{
        self, Sources,
        condor::{self, Knobs},
        settings::{Provider, STATUS_SOCKET, Settings},
    },
    ctl::daemon,
    error::{Report, exit},
};

/// How long the keeper may take in all: its own loop has 2 s for an answer.
const KEEPER_PATIENCE: Duration = Duration::from_millis(2300);
/// A reader that was turned away comes again after this; it doubles.
const KEEPER_AGAIN: Duration = Duration::from_millis(50);
/// One without an answer asks once more beside it.
const KEEPER_QUIET: Duration = Duration::from_secs(1);

/// `evercred_storer REQUEST…`
#[must_use]
pub fn main(args: &cli::Storer) -> ExitCode {
    guard();
    let settings = match settings(None) {
        Ok(settings) => settings,
        Err(report) => return report.print("evercred_storer"),
    };
    match run(&args.requests, &settings) {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => told(&error, Purpose::Submit),
    }
}

/// No core dump, of this process or of one that it starts, may hold a token, and no other process of the user may look
/// into this one.
pub fn guard() {
    // Where the kernel refuses, the token is as safe here as in the user's browser.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).ok();
    prctl::set_dumpable(false).ok();
}

/// Tell an error, in its one line.
#[must_use]
pub fn told(error: &SubmitError, purpose: Purpose) -> ExitCode {
    // Nobody is left to be told if standard error is closed.
    writeln!(std::io::stderr().lock(), "{}", error.line(purpose)).ok();
    ExitCode::from(error.code())
}

/// The configuration as a user sees it: no secret is read, and HTCondor is not asked (a process each).
///
/// # Errors
/// Every problem in it.
pub fn settings(file: Option<PathBuf>) -> Result<Settings, Report> {
    let mut sources = Sources::of_user(file).without_secrets();
    // credd knows where credentials are; we never look there.
    sources.credential_directory.get_or_insert_with(|| Path::new("/").into());
    let knobs = Knobs { program: condor::program(), ..Knobs::default() };
    config::load_with(&sources, &knobs).map_err(|problems| config::report(&problems))
}

fn run(arguments: &[String], settings: &Settings) -> Result<(), SubmitError> {
    let (mut ours, mut foreign) = (Vec::new(), Vec::new());
    for argument in arguments {
        let request = Request::parse(argument)?;
        match owner(&request, settings) {
            Some(provider) => ours.push((request, provider)),
            None => foreign.push((request, argument.as_str())),
        }
    }
    let terminal = Terminal::open(plain());
    let mut human = Human::new(&account(), Purpose::Submit, terminal);
    human.several = ours.len() > 1;
    for (request, _) in &ours {
        for piece in &request.ignored {
            human.tell(Event::Note(&format!(
                "{}: {piece:?} is no part of a request that is known; ignored",
                request.name()
            )));
        }
    }
    foreign::check(&foreign, settings)?;
    if ours.is_empty() {
        // Where these go is the stock storer's matter.
        return foreign::hand_on(&foreign, settings, &mut human);
    }
    let elsewhere = remote::check()?;
    let cancelled = cancelled()?;
    let credd = Credd::find()?;
    let keeper = || if elsewhere { Known::Nowhere } else { known(settings) };
    let counter = counter(&credd, &keeper, settings, &cancelled, false);
    let provided = counter.provide(&ours, &mut human);
    human.clear();
    provided?;
    let handed_on = foreign::hand_on(&foreign, settings, &mut human);
    handed_on.map_err(|error| counter.given_up(error))?;
    human.tell(Event::Done);
    Ok(())
}

/// What all programs of this module share.
pub fn counter<'a>(
    credd: &'a Credd,
    keeper: &'a dyn Fn() -> Known,
    settings: &Settings,
    cancelled: &'a AtomicBool,
    renew: bool,
) -> Counter<'a> {
    Counter {
        credd,
        keeper,
        account: account(),
        host: host(),
        use_wait: settings.storer.use_wait,
        lock_places: lock::places(),
        note_places: lock::cache_places(),
        cancelled,
        renew,
        made: RefCell::default(),
    }
}

/// Set when the user gives up, instead of ending us halfway.
///
/// # Errors
/// The system does not take the handler.
pub fn cancelled() -> Result<Arc<AtomicBool>, SubmitError> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&flag))
            .map_err(|source| SubmitError::System { what: "signals cannot be handled", source })?;
    }
    Ok(flag)
}

/// The provider that owns a request's service.
#[must_use]
pub fn owner<'s>(request: &Request, settings: &'s Settings) -> Option<&'s Provider> {
    settings.providers.iter().find(|provider| provider.services.iter().any(|name| name == request.service.as_str()))
}

/// What the keeper says of this user's credentials.
#[must_use]
pub fn known(settings: &Settings) -> Known {
    let socket = settings.daemon.status_socket.clone().unwrap_or_else(|| STATUS_SOCKET.into());
    asked(&socket, &account(), KEEPER_PATIENCE)
}

/// Ask within `patience`, again if we are turned away. Only a socket that is not there says that there is no keeper.
fn asked(socket: &Path, user: &str, patience: Duration) -> Known {
    let end = Instant::now() + patience;
    let (answer, answers) = mpsc::channel();
    // A keeper that hangs must not hang us.
    let ask = || {
        let (answer, socket) = (answer.clone(), socket.to_owned());
        // Whoever waited may have given up.
        std::thread::spawn(move || drop(answer.send(daemon::status(&socket))));
    };
    let mut pause = KEEPER_AGAIN;
    ask();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Known::Silent;
        }
        match answers.recv_timeout(left.min(KEEPER_QUIET)) {
            Ok(Ok(status)) => {
                let own = status.credentials.into_iter().filter(|credential| credential.user == user);
                return Known::Told(own.map(|credential| (credential.base(), credential)).collect());
            }
            Ok(Err(error)) if error.nobody_is_there() => return Known::Nowhere,
            Ok(Err(_)) => {
                std::thread::sleep(pause.min(left));
                pause *= 2;
                ask();
            }
            Err(_) => ask(),
        }
    }
}

/// Lines only, no drawing: for screen readers. `condor_submit` leaves no room for an option.
#[must_use]
pub fn plain() -> bool {
    std::env::var_os("EVERCRED_PLAIN").is_some_and(|value| !value.is_empty())
}

/// The login name.
#[must_use]
pub fn account() -> String {
    let uid = geteuid();
    User::from_uid(uid).ok().flatten().map_or_else(|| format!("uid {uid}"), |user| user.name)
}

fn host() -> String {
    gethostname().map_or_else(|_| "this host".to_owned(), |name| name.to_string_lossy().into_owned())
}
