//! The privileged process: it reads and writes the credential directory, and opens no network socket.
//!
//! [`driver`] is the loop around the planner; [`disk`] does the file work on threads of its own, [`scanner`] looks at
//! directories, [`link`] runs the courier. If any of them is interrupted, nothing is torn: files change by rename only.

pub mod announce;
pub mod disk;
pub mod driver;
pub mod lifecycle;
pub mod link;
pub mod log;
pub mod scanner;

pub use lifecycle::{courier, run};
