//! `evercred revoke`: an admin gives a credential's refresh token back to its issuer.

use std::{io::Write as _, process::ExitCode};

use super::{daemon, status::one};
use crate::{
    cli,
    config::{self, Sources},
    core::snapshot::Status,
    error::{Report, exit},
    keeper::control::{Order, Reply},
};

/// `evercred revoke`: 0 revoked, 1 not, 4 the daemon cannot be reached or does not know it yet.
#[must_use]
pub fn run(args: &cli::Revoke) -> ExitCode {
    match revoke(args) {
        Ok(line) => {
            // Nobody is left to tell if standard output is closed.
            writeln!(std::io::stdout().lock(), "{line}").ok();
            ExitCode::SUCCESS
        }
        Err(report) => report.print("evercred"),
    }
}

fn revoke(args: &cli::Revoke) -> Result<String, Report> {
    let socket = args.socket.clone().unwrap_or_else(|| config::status_socket(&Sources::of_user(None)));
    let Some((user, base)) = args.which.split_once('/') else {
        return Err(Report::new(format!("{:?} is not USER/SERVICE", args.which), exit::USAGE)
            .advise("name the credential as evercred status does"));
    };
    let there = |status: &Status| one(status, &args.which, None).is_some();
    let status = daemon::status_telling(&socket, there).map_err(|error| error.report())?;
    if !status.complete && !there(&status) {
        return Err(daemon::not_known_yet(&args.which));
    }
    let order = Order::Revoke { user: user.to_owned(), credential: base.to_owned() };
    match daemon::order(&socket, &order).map_err(|error| error.report())? {
        Reply::Done { .. } => Ok(format!("{}: the issuer has revoked it", args.which)),
        Reply::Refused { why } => Err(Report::new(format!("{}: {why}", args.which), exit::FAILED)
            .advise("see evercred status and the audit log; where a kind is named, evercred explain KIND")),
    }
}
