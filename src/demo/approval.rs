//! The approval in the tour. Dave has no credential: he is asked as at a submit, by the storer's own flow and prompt, and
//! approves on the issuer's page in a browser, or `--yes` does it for him. There is no credd here, so the tour puts the
//! `.top` into the directory itself. Nobody needs to approve; the tour goes on without him.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::AtomicBool,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use zeroize::Zeroizing;

use super::issuer::Control;
use crate::{
    config::{self, Sources},
    submit::{
        flow::{self, Invitation, Watcher, Wish},
        prompt,
        request::Request,
        terminal::Look,
    },
};

/// Who asks, and for which service.
pub(super) const WHO: (&str, &str) = ("dave", "mytoken");

/// What happens meanwhile.
pub(super) enum News {
    /// The prompt, or a word about how it ended.
    Lines(String),
    /// Approved: the `.top`.
    Approved(Zeroizing<String>),
}

/// Ask for dave's approval, on a thread of its own. `yes`: approve for him.
pub(super) fn start(config: &Path, control: Control, look: Look, yes: bool, stop: Arc<AtomicBool>) -> Receiver<News> {
    let (tell, news) = channel();
    let sources = Sources { config: Some(config.to_owned()), ..Sources::default() }.without_secrets();
    thread::spawn(move || {
        let end = match ask(&sources, &mut Shown { tell: tell.clone(), control, look, yes }, &stop) {
            Ok(top) => News::Approved(top),
            Err(why) => News::Lines(format!("Dave's request: {why}")),
        };
        // The tour may be over.
        tell.send(end).ok();
    });
    news
}

fn ask(sources: &Sources, watcher: &mut Shown, stop: &AtomicBool) -> Result<Zeroizing<String>, String> {
    let settings = config::load(sources).map_err(|problems| config::report(&problems).to_string())?;
    let provider = settings.providers.iter().find(|provider| provider.name == WHO.1).ok_or("no such provider")?;
    let request = Request::parse(WHO.1).map_err(|e| e.to_string())?;
    let wish = Wish { provider, request: &request, account: WHO.0.to_owned(), host: "this demo".to_owned() };
    flow::approve(&wish, watcher, stop).map(|fresh| fresh.top).map_err(|e| e.to_string())
}

/// The prompt goes to the tour's screen.
struct Shown {
    tell: Sender<News>,
    control: Control,
    look: Look,
    yes: bool,
}

impl Watcher for Shown {
    fn invite(&mut self, invitation: &Invitation) {
        let mut text = String::from("Dave submits a job. This is what he sees:\n");
        text.push_str(&prompt::invitation(invitation, &self.look));
        if self.yes {
            self.control.approve();
            text.push_str("(--yes approves it for him.)\n");
        }
        self.tell.send(News::Lines(text)).ok();
    }

    fn left(&mut self, _left: Duration) {}
}
