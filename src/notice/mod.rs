//! Telling people before it hurts: [`round`] runs in the keeper and asks [`crate::core::notice`] what to tell;
//! `address` says whom it goes to, [`letter`] is what it looks like, [`outbox`] what was told and what waits, on disk; [`jobs`] asks HTCondor who has
//! jobs; [`post`] is the courier's part, which sends over the network. The program `sendmail` is started by the
//! keeper, as the courier's user, because the courier may start nothing.

mod address;
pub mod child;
pub mod jobs;
pub mod letter;
pub mod outbox;
pub mod post;
pub mod round;
pub mod sendmail;
