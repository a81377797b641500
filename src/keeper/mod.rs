//! keeper

pub mod log;

use std::process::ExitCode;

use crate::cli;

/// Not part of this slice.
pub(crate) fn run(_args: cli::Credmon) -> ExitCode {
    ExitCode::FAILURE
}
