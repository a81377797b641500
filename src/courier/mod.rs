//! The network process: no files of the spool, no privileges; it talks to issuers and to the keeper.
//!
//! Its end of the socketpair is standard input. It ends when the keeper's end closes, and ignores signals meant for
//! the keeper's terminal. What it knows it was told by `Configure`; it keeps nothing on disk.

pub mod calls;
pub mod child;
mod discovered;
pub mod endpoint;
pub mod frame;
pub mod http;
pub mod probe;
pub mod sandbox;
#[cfg(feature = "otlp")]
mod traces;
mod web;
mod worker;

pub use worker::main;
