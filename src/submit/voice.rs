//! Who is told how a submit goes: a human, or a portal.

use std::{sync::atomic::AtomicBool, time::Duration};

use super::{
    cases::{Case, Left, Stale},
    error::SubmitError,
    flow::Watcher,
    lock::Holder,
    request::Request,
};

/// What happens, in the order in which it can.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// Something that nobody asked for, like an unknown key.
    Note(&'a str),
    /// It begins.
    Greeting,
    /// What there is for a request.
    Found(&'a Request, Case),
    /// Another program of the same user asks for approval just now; which, and for how long it may.
    Waiting(Option<&'a Holder>, Duration),
    /// A new credential is stored and usable.
    Created(&'a Request, Left),
    /// The credential is good, its access token is not, and the jobs go all the same.
    Stale(&'a Request, Stale),
    /// All requests have a credential.
    Done,
}

/// A human at a terminal (or none), or a portal that reads JSON.
pub trait Voice: Watcher {
    /// Tell.
    fn tell(&mut self, event: Event<'_>);

    /// Whether an invitation reaches somebody.
    fn reaches_somebody(&self) -> bool;

    /// Whether to renew what ends within a day.
    ///
    /// # Errors
    /// No answer, or Ctrl-C.
    fn renew(&mut self, default: Option<bool>, cancelled: &AtomicBool) -> Result<bool, SubmitError>;
}
