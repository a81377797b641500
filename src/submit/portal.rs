//! The events for a portal (`evercred login --json`): one JSON object a line on standard output, with a `schema` number.
//! `approval` carries the URL: whoever asked for `--json` shows it to the human, and to nobody else. What each event
//! means stands in `docs/portals.md`, and a test holds the two together.

use std::{io::Write, sync::atomic::AtomicBool, time::Duration};

use serde_json::{Value, json};

use super::{
    cases::{Case, Left},
    error::SubmitError,
    flow::{Invitation, Watcher},
    request::Request,
    voice::{Event, Voice},
    words,
};

const SCHEMA: u32 = 1;

/// A portal.
pub struct Portal {
    minutes: Option<u64>,
    out: Box<dyn Write>,
}

impl Default for Portal {
    fn default() -> Self {
        Self::to(Box::new(std::io::stdout()))
    }
}

impl Portal {
    /// With another place for events than standard output.
    #[must_use]
    pub fn to(out: Box<dyn Write>) -> Self {
        Self { minutes: None, out }
    }

    fn event(&mut self, mut members: Value) {
        if let Some(members) = members.as_object_mut() {
            members.insert("schema".into(), SCHEMA.into());
        }
        // Nobody is left to be told if standard output is closed.
        writeln!(self.out, "{members}").and_then(|()| self.out.flush()).ok();
    }

    /// The last event of a failure: its stable label, what is wrong, and what to do.
    pub fn failed(&mut self, error: &str, message: &str, advice: &str) {
        self.event(json!({ "event": "failed", "error": error, "message": message, "advice": advice }));
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
        self.event(json!({
            "event": "approval", "url": invitation.url, "url_complete": invitation.complete,
            "code": invitation.code, "expires_in": invitation.expires_in.as_secs(),
        }));
    }

    fn left(&mut self, left: Duration) {
        let minutes = left.as_secs().div_ceil(60);
        if self.minutes.replace(minutes) != Some(minutes) && minutes > 0 {
            self.event(json!({ "event": "waiting", "seconds_left": left.as_secs() }));
        }
    }
}

impl Voice for Portal {
    fn tell(&mut self, event: Event<'_>) {
        match event {
            Event::Note(note) => self.event(json!({ "event": "note", "message": note })),
            Event::Found(request, case) => {
                let left = match case {
                    Case::Valid(left) | Case::Stored(left) => left,
                    Case::Ending(left) => Left::For(left),
                    _ => Left::Unknown,
                };
                let mut members = about(request, "found", left);
                if let Some(members) = members.as_object_mut() {
                    members.insert("case".into(), case.label().into());
                }
                self.event(members);
            }
            Event::Waiting(holder, length) => self.event(json!({
                "event": "another-approval", "pid": holder.map(|holder| holder.pid),
                "credential": holder.map(|holder| &holder.name), "seconds_left": length.as_secs(),
            })),
            Event::Created(request, left) => self.event(about(request, "created", left)),
            Event::Stale(request, stale) => {
                let mut members = about(request, "stale", Left::Unknown);
                if let Some(members) = members.as_object_mut() {
                    members.insert("message".into(), words::stale(stale).into());
                }
                self.event(members);
            }
            Event::Done => self.event(json!({ "event": "done" })),
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::{
        core::id::{Handle, Service},
        submit::{cases::Stale, lock::Holder},
    };

    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Every event in the order in which they can come, as a portal reads them.
    fn told() -> String {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let mut portal = Portal::to(Box::new(Kept(Arc::clone(&kept))));
        let plain = Request::of(Service::parse("helmholtz").unwrap(), None);
        let request = Request::of(plain.service.clone(), Some(Handle::parse("eu").unwrap()));
        let invitation = |code: Option<&str>, complete: Option<&str>| Invitation {
            url: "https://login.example.org/device".into(),
            complete: complete.map(str::to_owned),
            code: code.map(str::to_owned),
            expires_in: Duration::from_secs(300),
            facts: vec![("account", "alice on ap1".into())],
        };
        portal.tell(Event::Note("something that nobody asked for"));
        portal.tell(Event::Greeting);
        let day = Duration::from_secs(86_400);
        for case in [
            Case::Absent,
            Case::Valid(Left::For(day * 6)),
            Case::Valid(Left::Unknown),
            Case::Stored(Left::Unknown),
            Case::Stored(Left::For(day * 6)),
            Case::Ending(day / 2),
            Case::Doubted(crate::error::Kind::Revoked),
            Case::Revoked,
            Case::Expired(Some(day)),
            Case::RefusedBehind,
            Case::Mismatch,
            Case::Unusable(crate::error::Kind::TopNoToken),
        ] {
            portal.tell(Event::Found(&plain, case));
        }
        let holder = Holder { pid: 4711, name: "helmholtz_eu".into(), until: 0 };
        portal.tell(Event::Waiting(Some(&holder), Duration::from_secs(420)));
        portal.tell(Event::Waiting(None, Duration::from_secs(120)));
        portal.invite(&invitation(None, None));
        portal.invite(&invitation(Some("ABCD-EFGH"), Some("https://login.example.org/device?user_code=ABCDEFGH")));
        for secs in [300, 299, 240, 239, 0] {
            portal.left(Duration::from_secs(secs));
        }
        portal.tell(Event::Created(&request, Left::For(day * 7)));
        portal.tell(Event::Created(&request, Left::Unlimited));
        portal.tell(Event::Stale(&request, Stale::Ended(day)));
        portal.tell(Event::Done);
        let declined = SubmitError::Declined;
        portal.failed(declined.label(), &declined.line(crate::submit::words::Purpose::Login), declined.advice());
        let kept = kept.lock().unwrap();
        String::from_utf8(kept.clone()).unwrap()
    }

    #[test]
    fn events_are_one_object_a_line_with_a_schema_number() {
        let told = told();
        insta::assert_snapshot!(told);
        for line in told.lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            assert_eq!(event["schema"], 1, "{line}");
        }
    }

    #[test]
    fn every_event_member_and_case_is_in_the_page_for_portals() {
        let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/portals.md")).unwrap();
        for line in told().lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            let words = event.as_object().unwrap().keys().cloned();
            let values = ["event", "case"].into_iter().filter_map(|name| Some(event[name].as_str()?.to_owned()));
            for word in words.chain(values).filter(|word| word != "top-no-token") {
                assert!(guide.contains(&format!("`{word}`")), "{word} of {line}");
            }
        }
    }
}
