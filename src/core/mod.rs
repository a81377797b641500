//! Everything that is decided, and nothing that is done: no IO, clock, randomness, async or logging in here.
//! `clippy.toml` (methods and types, by their definitions) and `tests/layering.rs` (whatever is named) hold that.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod action;
pub mod answer;
pub mod approval;
pub mod budget;
pub mod course;
pub mod delivery;
pub mod ending;
pub mod event;
pub mod figures;
pub mod id;
pub mod jwt;
pub mod key_file;
pub mod notice;
pub mod planner;
pub mod replica;
mod roll_call;
mod roster;
pub mod schedule;
pub mod secret;
pub mod site;
pub mod snapshot;
pub mod stand_in;
pub mod standing;
pub mod time;
pub mod top;
pub mod use_file;
pub mod withdrawal;
