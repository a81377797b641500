//! The network process: no files of the spool, no privileges; it talks to issuers and to the keeper.

pub mod frame;

/// Not part of this slice.
pub(crate) fn main() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
