//! The words for a human: on standard error, and everything secret on the terminal alone. Where there is no terminal,
//! only what needs attention is said.

use std::{
    io::Write,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use super::{
    cases::Case,
    error::SubmitError,
    flow::{Invitation, Watcher},
    prompt::{self, Countdown},
    request::Request,
    terminal::Terminal,
    voice::{Event, Voice},
    words::{self, Purpose},
};

/// A human who submits.
pub struct Human {
    /// Lines say which service they are about.
    pub several: bool,
    /// Open the issuer's page in a browser, too.
    pub browser: bool,
    user: String,
    purpose: Purpose,
    terminal: Option<Terminal>,
    countdown: Countdown,
    /// Something was told that may fail the jobs.
    stale: bool,
    messages: Box<dyn Write>,
}

impl Human {
    /// For `user`, with the terminal if there is one.
    #[must_use]
    pub fn new(user: &str, purpose: Purpose, terminal: Option<Terminal>) -> Self {
        Self::with(user, purpose, terminal, Box::new(std::io::stderr()))
    }

    /// With another place for messages than standard error.
    #[must_use]
    pub fn with(user: &str, purpose: Purpose, terminal: Option<Terminal>, messages: Box<dyn Write>) -> Self {
        let countdown = Countdown::default();
        Self {
            several: false,
            browser: false,
            user: user.to_owned(),
            purpose,
            terminal,
            countdown,
            stale: false,
            messages,
        }
    }

    fn say(&mut self, sentence: &str) {
        self.clear();
        let mut text = String::new();
        match &self.terminal {
            Some(terminal) if terminal.shows_messages() => {
                prompt::wrapped(&mut text, sentence, usize::from(terminal.look().columns.max(20)));
            }
            _ => {
                text.push_str(sentence);
                text.push('\n');
            }
        }
        // Nobody is left to be told if standard error is closed.
        self.messages.write_all(text.as_bytes()).ok();
    }

    fn say_about(&mut self, request: &Request, sentences: &[String]) {
        for sentence in sentences {
            if self.several {
                self.say(&format!("{}: {sentence}", request.name()));
            } else {
                self.say(sentence);
            }
        }
    }

    /// What is good now and may not be for long, for a log.
    fn warn(&mut self, request: &Request, case: Case) {
        let name = request.name();
        if let Some(left) = case.ending() {
            self.say(&format!(
                "evercred: {name}: your credential ends in {}; renew it on a terminal: {} --renew",
                words::spoken(left),
                request.login_command(),
            ));
        } else if let Case::Doubted(_) = case {
            for sentence in words::case(case) {
                self.say(&format!("evercred: {name}: {sentence}"));
            }
        }
    }

    /// Take the countdown off the screen.
    pub fn clear(&mut self) {
        if let Some(terminal) = &mut self.terminal {
            let look = terminal.look();
            terminal.write(self.countdown.clear(&look));
        }
    }
}

impl Watcher for Human {
    fn invite(&mut self, invitation: &Invitation) {
        if let Some(terminal) = &mut self.terminal {
            let look = terminal.look();
            terminal.write(&prompt::invitation(invitation, &look));
        }
        if self.browser && !super::browser::open(invitation) {
            self.say(
                "No browser was opened: it needs a local display and xdg-open, and a page whose URL is no secret.",
            );
        }
    }

    fn left(&mut self, left: Duration) {
        if let Some(terminal) = &mut self.terminal {
            let look = terminal.look();
            if let Some(text) = self.countdown.next(left, &look) {
                terminal.write(&text);
            }
        }
    }
}

impl Voice for Human {
    fn tell(&mut self, event: Event<'_>) {
        let chats = self.terminal.is_some();
        match event {
            Event::Note(note) => self.say(&format!("evercred: {note}")),
            Event::Greeting if chats => {
                if self.purpose == Purpose::Submit {
                    // condor_submit has written "Submitting job(s)" without an end of line.
                    self.say("");
                }
                self.say(&words::greeting(&self.user, self.purpose));
            }
            Event::Found(request, case) if chats => self.say_about(request, &words::case(case)),
            // A login is a human's own question, also where nobody can be asked back.
            Event::Found(request, case @ (Case::Valid(_) | Case::Stored(_))) if self.purpose == Purpose::Login => {
                self.say_about(request, &words::case(case));
            }
            Event::Found(request, case) => self.warn(request, case),
            Event::Waiting(holder, length) if chats => {
                self.say("Another program of yours asks for approval at this moment; waiting for it ...");
                self.say(&format!("It is {}, and may take another {}.", words::holder(holder), words::spoken(length)));
            }
            Event::Created(request, left) => self.say_about(request, &words::created(left)),
            Event::Stale(request, stale) => {
                self.stale = true;
                let sentence = words::stale(stale);
                if chats {
                    self.say_about(request, &[sentence]);
                } else {
                    self.say(&format!("evercred: {}: {sentence}", request.name()));
                }
            }
            Event::Done if chats && self.purpose == Purpose::Submit && !self.stale => self.say(words::SUBMITTED),
            Event::Greeting | Event::Waiting(..) | Event::Done => {}
        }
    }

    fn reaches_somebody(&self) -> bool {
        self.terminal.is_some()
    }

    fn renew(&mut self, default: Option<bool>, cancelled: &AtomicBool) -> Result<bool, SubmitError> {
        let Some(terminal) = &mut self.terminal else { return Ok(false) };
        loop {
            terminal.write(words::RENEW);
            let answer = terminal.read_line(cancelled);
            match (answer.as_deref(), default) {
                (Some("yes"), _) => return Ok(true),
                (Some("no"), _) => return Ok(false),
                (Some(""), Some(default)) => return Ok(default),
                (Some(_), _) => {}
                (None, _) if cancelled.load(Relaxed) => return Err(SubmitError::Cancelled),
                (None, _) => return Err(SubmitError::NoAnswer),
            }
        }
    }
}
