//! evercred keeps every HTCondor job's tokens alive.
//!
//! The crate reads from the inside out:
//!
//! * [`core`] decides and does nothing else: data in, data out, no clock, no disk, no network.
//! * [`spool`] touches the credential directory, [`issuer`] knows how each kind of issuer asks and answers.
//! * [`keeper`] is the privileged process (files, no network); [`courier`] is the network process (no files).
//! * [`submit`] is what `condor_submit` runs for the user: one approval, then nothing to ask.
//! * [`notice`] tells people what is about to end.
//! * [`replicate`] is the process that carries renewed tokens to sites, and the far end that takes them.
//! * [`config`] turns TOML into settings; [`cli`] defines the command lines; [`ctl`] holds `evercred`'s subcommands.
//! * [`demo`] is the embedded issuer, which tests use too, and the guided tour.
//! * [`error`] names what can go wrong, with labels that logs, metrics and tests share; [`advice`] says what each means and what to do.

pub mod advice;
pub mod cli;
pub mod config;
pub mod core;
pub mod courier;
pub mod ctl;
pub mod demo;
pub mod error;
pub mod issuer;
pub mod keeper;
pub mod notice;
pub mod replicate;
pub mod spool;
pub mod submit;

use std::process::ExitCode;

/// `evercred`: the tool of users and admins.
#[must_use]
pub fn evercred_main() -> ExitCode {
    ctl::main()
}

/// `evercred_storer`: what `condor_submit` runs for the user.
#[must_use]
pub fn storer_main() -> ExitCode {
    ctl::storer_main()
}

/// `condor_credmon_evercred`: the credential monitor (keeper, and courier by a hidden flag).
#[must_use]
pub fn credmon_main() -> ExitCode {
    ctl::credmon_main()
}
