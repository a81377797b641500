//! `evercred`: parse the command line and hand over to the subcommand.

pub mod check;
pub mod daemon;
pub mod doctor;
pub mod explain;
mod generate;
mod import;
mod import_stock;
mod keygen;
mod login;
mod needs_renewal;
mod receive;
mod renew;
mod replicate;
mod revoke;
pub mod show;
mod status;
mod upload;

use std::{path::Path, process::ExitCode};

use clap::Parser;

use crate::{
    cli::{self, Command},
    courier, demo,
    error::exit,
    keeper, submit,
};

/// `evercred`
#[must_use]
pub fn main() -> ExitCode {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    let name = arguments.first().and_then(|name| Path::new(name).file_name());
    if name.is_some_and(|name| name == upload::REANA) {
        arguments.insert(1, "upload".into());
    }
    match cli::Evercred::try_parse_from(&arguments) {
        Ok(args) => run(args.command),
        Err(e) => {
            if e.use_stderr() {
                login::misused(&arguments, &e);
            }
            // What is mistyped in a script must not read as an answer.
            let answers = arguments.get(1).is_some_and(|command| command == "needs-renewal");
            usage(&e, if answers { exit::MISUSED } else { exit::USAGE })
        }
    }
}

/// `condor_credmon_evercred`
#[must_use]
pub fn credmon_main() -> ExitCode {
    match cli::Credmon::try_parse() {
        Ok(args) => credmon(&args, &["--courier"]),
        Err(e) => usage(&e, exit::USAGE),
    }
}

/// `evercred_storer`
#[must_use]
pub fn storer_main() -> ExitCode {
    match cli::Storer::try_parse() {
        Ok(args) => submit::main(&args),
        Err(e) => usage(&e, exit::USAGE),
    }
}

fn run(command: Command) -> ExitCode {
    match command {
        Command::Check(args) => check::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Status(args) => status::run(&args),
        Command::List(args) => status::list(&args),
        Command::NeedsRenewal(args) => needs_renewal::run(&args),
        Command::Renew(args) => renew::run(&args),
        Command::Login(args) => login::run(&args),
        Command::Upload(args) => upload::run(&args),
        Command::Import(cli::Import::Kit(args)) => import::run(&args),
        Command::Import(cli::Import::Stock(args)) => import_stock::run(&args),
        Command::Revoke(args) => revoke::run(&args),
        Command::Replicate(args) => replicate::run(&args),
        Command::Keygen(args) => keygen::run(&args),
        Command::Receive(args) => receive::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Demo(args) => demo::tour::main(args.length, args.plain, args.yes),
        Command::Credmon(args) => credmon(&args, &["credmon", "--courier"]),
        Command::Generate(args) => generate::run(&args),
        Command::Issuer(args) => demo::issuer::main(&args.arguments),
    }
}

/// `courier_args` make this same program a courier.
fn credmon(args: &cli::Credmon, courier_args: &[&str]) -> ExitCode {
    if args.courier {
        courier::main()
    } else if args.replicator {
        crate::replicate::main()
    } else {
        keeper::run(args, courier_args)
    }
}

/// Help and version go to standard output and are no error; anything else is `code`.
fn usage(e: &clap::Error, code: u8) -> ExitCode {
    // A closed pipe (`evercred --help | head -1`) is no error either.
    e.print().ok();
    if e.use_stderr() { ExitCode::from(code) } else { ExitCode::SUCCESS }
}
