//! `evercred replicate`: what sites have; with `--now` an admin has it sent once more, and waits for what becomes of it.

use std::{
    io::Write as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use super::{
    daemon, show,
    status::{chosen, me},
};
use crate::{
    cli,
    config::{self, Sources},
    core::snapshot::{Replica, Status},
    error::{Report, exit},
    keeper::control::{Order, Reply},
};

const LOOK: Duration = Duration::from_millis(200);

/// `evercred replicate`: 0 every site has what it should have, 1 some do not, 3 there is none, 4 no daemon.
#[must_use]
pub fn run(args: &cli::Replicate) -> ExitCode {
    match replicate(args) {
        Ok((text, behind)) => {
            // Nobody is left to tell if standard output is closed.
            std::io::stdout().lock().write_all(text.as_bytes()).ok();
            if behind == 0 { ExitCode::SUCCESS } else { ExitCode::from(exit::FAILED) }
        }
        Err(report) => report.print("evercred"),
    }
}

fn replicate(args: &cli::Replicate) -> Result<(String, usize), Report> {
    let socket = args.socket.clone().unwrap_or_else(|| config::status_socket(&Sources::of_user(None)));
    let me = me();
    let me = me.as_deref();
    let ask = || daemon::status(&socket).map_err(|error| error.report());
    if args.now {
        let order = Order::Replicate { credential: args.which.clone(), site: args.site.clone() };
        match daemon::order(&socket, &order).map_err(|error| error.report())? {
            Reply::Done { .. } => {}
            Reply::Refused { why } => {
                return Err(Report::new(why, exit::MISSING).advise("evercred replicate shows what goes where"));
            }
        }
        let end = Instant::now() + args.wait;
        // The order is taken before it is answered; its rows are behind until the sites have confirmed.
        std::thread::sleep(LOOK);
        while Instant::now() < end
            && rows(&ask()?, args, me).any(|(_, replica)| replica.behind && replica.error.is_none())
        {
            std::thread::sleep(LOOK);
        }
    }
    let status = ask()?;
    let behind = rows(&status, args, me).filter(|(_, replica)| replica.behind).count();
    if rows(&status, args, me).next().is_none() {
        return Err(Report::new("nothing is replicated", exit::MISSING)
            .advise("add a [site.NAME] to the configuration, or name another credential or site"));
    }
    Ok((table(&status, args, me), behind))
}

fn rows<'a>(
    status: &'a Status,
    args: &'a cli::Replicate,
    me: Option<&'a str>,
) -> impl Iterator<Item = (String, &'a Replica)> {
    chosen(status, args.which.as_deref(), me)
        .flat_map(|credential| credential.replicas.iter().map(|replica| (credential.name(), replica)))
        .filter(|(_, replica)| args.site.as_ref().is_none_or(|site| *site == replica.site))
}

fn table(status: &Status, args: &cli::Replicate, me: Option<&str>) -> String {
    let row = |(name, replica): (String, &Replica)| {
        let ago = |at| format!("{} ago", show::short(status.now.since(at)));
        let confirmed = replica.confirmed.map_or_else(|| "never".to_owned(), ago);
        let state = if replica.behind { "behind" } else { "current" };
        let error = replica.error.clone().unwrap_or_default();
        [name, replica.site.clone(), state.to_owned(), confirmed, error]
    };
    show::table(["CREDENTIAL", "SITE", "STATE", "CONFIRMED", "LAST ERROR"], rows(status, args, me).map(row))
}
