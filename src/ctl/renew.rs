//! `evercred renew`: an admin orders a renewal now, also of what is parked, and waits for what becomes of it.

use std::{
    io::Write as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use super::{daemon, status::one};
use crate::{
    advice::advice,
    cli,
    config::{self, Sources},
    core::{
        snapshot::{Credential, State, Status},
        time::Timestamp,
    },
    error::{Report, exit},
    keeper::control::{Order, Reply},
};

const LOOK: Duration = Duration::from_millis(200);

/// `evercred renew`: 0 renewed, 1 not within `--wait`, 3 there is none, 4 the daemon cannot be reached or does not know it yet.
#[must_use]
pub fn run(args: &cli::Renew) -> ExitCode {
    match renew(args) {
        Ok(line) => {
            // Nobody is left to tell if standard output is closed.
            writeln!(std::io::stdout().lock(), "{line}").ok();
            ExitCode::SUCCESS
        }
        Err(report) => report.print("evercred"),
    }
}

fn renew(args: &cli::Renew) -> Result<String, Report> {
    let socket = args.socket.clone().unwrap_or_else(|| config::status_socket(&Sources::of_user(None)));
    let Some((user, base)) = args.which.split_once('/') else {
        return Err(Report::new(format!("{:?} is not USER/SERVICE", args.which), exit::USAGE)
            .advise("name the credential as evercred status does"));
    };
    let find = || -> Result<(Timestamp, Option<Credential>), Report> {
        let there = |status: &Status| one(status, &args.which, None).is_some();
        let status = daemon::status_telling(&socket, there).map_err(|error| error.report())?;
        match one(&status, &args.which, None).cloned() {
            None if !status.complete => Err(daemon::not_known_yet(&args.which)),
            found => Ok((status.now, found)),
        }
    };
    let before = find()?.1.map_or(0, |credential| credential.generation);
    let order = Order::Renew { user: user.to_owned(), credential: Some(base.to_owned()) };
    match daemon::order(&socket, &order).map_err(|error| error.report())? {
        Reply::Done { .. } => {}
        Reply::Refused { why } => {
            return Err(Report::new(why, exit::MISSING).advise("evercred status shows those that are there"));
        }
    }
    // The daemon is on this host: by the same clock.
    let ordered = Timestamp(jiff::Timestamp::now().as_millisecond());
    let end = Instant::now() + args.wait;
    loop {
        let (as_of, found) = find()?;
        let Some(now) = found else {
            return Err(Report::new(format!("{} was removed meanwhile", args.which), exit::MISSING));
        };
        if now.generation > before {
            return Ok(format!("{}: renewed", args.which));
        }
        // Readers share a document for a moment: one from before the order tells the trouble that it is to mend.
        if as_of > ordered
            && let (Some(error), State::Retrying | State::Parked | State::Unusable) = (&now.error, now.state)
        {
            let words = advice(error.kind);
            return Err(Report::new(format!("{}: not renewed, {}: {}", args.which, error.kind, words.meaning), 1)
                .with_details((!error.detail.is_empty()).then(|| error.detail.clone()))
                .advise(if words.admin.is_empty() { words.user } else { words.admin }));
        }
        if Instant::now() >= end {
            return Err(Report::new(format!("{}: not renewed yet", args.which), exit::FAILED)
                .advise("it goes on; evercred status shows how it ends"));
        }
        std::thread::sleep(LOOK);
    }
}
