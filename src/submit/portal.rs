//! The events for a portal (`evercred login --json`): one JSON object a line on standard output, with a `schema` number.
//! `approval` carries the URL: whoever asked for `--json` shows it to the human, and to nobody else.

use std::{io::Write, sync::atomic::AtomicBool, time::Duration};

use serde_json::{Value, json};

use super::{
    cases::{Case, Left},
    error::SubmitError,
    flow::{Invitation, Watcher},
    request::Request,
    voice::{Event, Voice},
};

const SCHEMA: u32 = 1;

/// A portal.
#[derive(Debug, Default)]
pub struct Portal {
    minutes: Option<u64>,
}

impl Portal {
    fn event(mut members: Value) {
        if let Some(members) = members.as_object_mut() {
            members.insert("schema".into(), SCHEMA.into());
        }
        // Nobody is left to be told if standard output is closed.
        let mut out = std::io::stdout().lock();
        writeln!(out, "{members}").and_then(|()| out.flush()).ok();
    }

    /// The last event of a failure.
    pub fn failed(error: &SubmitError, line: &str) {
        Self::event(json!({ "event": "failed", "error": error.label(), "message": line }));
    }
}

fn about(request: &Request, event: &str, left: Left) -> Value {
    let mut members = json!({ "event": event, "service": request.service.as_str() });
    if let Some(members) = members.as_object_mut() {
        members.insert("handle".into(), request.handle.as_ref().map(ToString::to_string).into());
        let seconds = match left {
            Left::For(left) => Some(left.as_secs()),
            Left::Unlimited | Left::Unknown => None,
        };
        members.insert("seconds_left".into(), seconds.into());
    }
    members
}

impl Watcher for Portal {
    fn invite(&mut self, invitation: &Invitation) {
        Self::event(json!({
            "event": "approval", "url": invitation.url, "url_complete": invitation.complete,
            "code": invitation.code, "expires_in": invitation.expires_in.as_secs(),
        }));
    }

    fn left(&mut self, left: Duration) {
        let minutes = left.as_secs().div_ceil(60);
        if self.minutes.replace(minutes) != Some(minutes) && minutes > 0 {
            Self::event(json!({ "event": "waiting", "seconds_left": left.as_secs() }));
        }
    }
}

impl Voice for Portal {
    fn tell(&mut self, event: Event<'_>) {
        match event {
            Event::Note(note) => Self::event(json!({ "event": "note", "message": note })),
            Event::Found(request, case) => {
                let left = match case {
                    Case::Valid(left) => left,
                    Case::Ending(left) => Left::For(left),
                    _ => Left::Unknown,
                };
                let mut members = about(request, "found", left);
                if let Some(members) = members.as_object_mut() {
                    members.insert("case".into(), case.label().into());
                }
                Self::event(members);
            }
            Event::Waiting => Self::event(json!({ "event": "another-approval" })),
            Event::Created(request, left) => Self::event(about(request, "created", left)),
            Event::Done => Self::event(json!({ "event": "done" })),
            Event::Greeting => {}
        }
    }

    fn reaches_somebody(&self) -> bool {
        true
    }

    /// A portal says so beforehand, with `--renew`.
    fn renew(&mut self, _: Option<bool>, _: &AtomicBool) -> Result<bool, SubmitError> {
        Ok(false)
    }
}
