//! The privileged process: it reads and writes the credential directory, and opens no network socket.
//!
//! [`driver`] is the loop around the planner; [`disk`] does the file work on threads of a [`crew`], [`scanner`] looks at
//! directories, [`link`] runs the courier; [`status`] tells and [`control`] takes orders, on local sockets;
//! [`approvals`] reads and stores for the web page; [`lifecycle`] starts and ends all that, and [`reload`] says when the
//! configuration has changed. If any of them is interrupted, nothing is torn: files change by rename only.

mod accounts;
pub mod announce;
pub mod approvals;
pub mod audit;
pub mod board;
pub mod control;
pub mod course;
pub mod crew;
pub mod deliveries;
pub mod disk;
pub mod driver;
mod environ;
pub mod groups;
pub mod journal;
pub mod lifecycle;
pub mod link;
pub mod log;
pub mod reload;
pub mod replicas;
pub mod revoker;
pub mod scanner;
pub mod status;
pub mod tally;
mod told;

pub use lifecycle::{courier, run};
