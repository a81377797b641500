//! demo

use std::process::ExitCode;

use crate::cli;

/// Not part of this slice.
pub(crate) fn main(_args: cli::Demo) -> ExitCode {
    ExitCode::FAILURE
}

/// Not part of this slice.
pub(crate) fn issuer_main(_args: cli::Issuer) -> ExitCode {
    ExitCode::FAILURE
}
