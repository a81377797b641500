//! A usable credential for every request: look, decide, let the user approve, store, wait for the `.use`.
//!
//! Nothing is removed or revoked before the new one is stored. Ctrl-C before the store leaves nothing; after it, the
//! credential stays and only the submit is given up; the last line says which. The store itself runs to its end.

use std::{
    cell::RefCell,
    collections::HashMap,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{
    account,
    cases::{self, Case, Left},
    error::SubmitError,
    flow::{self, Fresh, Invitation, Watcher, Wish},
    lock::{Holder, Lock, Locked},
    note::Note,
    remote,
    request::Request,
    store::{Credd, StoreError, Stored},
    voice::{Event, Voice},
    words,
};
use crate::{
    config::settings::Provider,
    core::{
        snapshot::{Credential, Trouble},
        time::Timestamp,
    },
    courier::http::now,
    error::Class,
};

/// How often credd is asked whether the `.use` is there, at first and later.
const LOOK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// What issuer and credd may take, beside the approval itself and the wait for the `.use`.
const AROUND: Duration = Duration::from_secs(120);

/// What the keeper says.
#[derive(Debug, Clone)]
pub enum Known {
    /// None is on this host, as on a login node, or the one here is not meant.
    Nowhere,
    /// One is here, and did not answer.
    Silent,
    /// Of the user's credentials, by base name.
    Told(HashMap<String, Credential>),
}

/// What all requests of a call share.
pub struct Counter<'a> {
    /// The way to credd.
    pub credd: &'a Credd,
    /// The way to the keeper.
    pub keeper: &'a dyn Fn() -> Known,
    /// Login name.
    pub account: String,
    /// This host.
    pub host: String,
    /// How long a `.use` may take.
    pub use_wait: Duration,
    /// Where the lock may be.
    pub lock_places: Vec<PathBuf>,
    /// Where notes may be.
    pub note_places: Vec<PathBuf>,
    /// Set by signals.
    pub cancelled: &'a AtomicBool,
    /// Renew whatever is valid, too.
    pub renew: bool,
    /// What was stored until now, by base name.
    pub(super) made: RefCell<Vec<String>>,
}

impl Counter<'_> {
    /// A usable credential for every request.
    ///
    /// # Errors
    /// [`SubmitError`]: for at least one there is none.
    pub fn provide(&self, wanted: &[(Request, &Provider)], voice: &mut dyn Voice) -> Result<(), SubmitError> {
        self.each(wanted, voice).map_err(|error| self.given_up(error))
    }

    /// Whatever ended it, after a Ctrl-C that is what the caller must know.
    #[must_use]
    pub fn given_up(&self, error: SubmitError) -> SubmitError {
        if !self.cancelled.load(Relaxed) {
            return error;
        }
        match (error, self.made.borrow().join(", ")) {
            (error @ SubmitError::Interrupted(_), _) => error,
            // It may have done something.
            (error @ SubmitError::Stock(_), _) => SubmitError::Interrupted(Box::new(error)),
            (_, made) if made.is_empty() => SubmitError::Cancelled,
            (_, made) => SubmitError::CancelledAfter(made),
        }
    }

    fn each(&self, wanted: &[(Request, &Provider)], voice: &mut dyn Voice) -> Result<(), SubmitError> {
        voice.tell(Event::Greeting);
        let (named, wanted): (Vec<_>, Vec<_>) =
            wanted.iter().cloned().partition(|(_, provider)| provider.accounts().is_some());
        for (request, provider) in &named {
            self.named(request, provider)?;
        }
        let wanted = &wanted[..];
        if wanted.is_empty() {
            return Ok(());
        }
        // A credd that does not answer may be one that was never meant.
        let stored = self.look(wanted).or_else(|error| self.right_place().and(Err(error)))?;
        // It has nothing to say about what is not there.
        let known = if stored.iter().any(|one| one.top().is_some()) { (self.keeper)() } else { Known::Nowhere };
        if matches!(known, Known::Silent) {
            voice.tell(Event::Note(words::SILENT));
        }
        let judged: Vec<_> = wanted
            .iter()
            .zip(stored)
            .map(|((request, provider), stored)| (request, *provider, stored, self.judge(request, stored, &known)))
            .collect();
        if !voice.reaches_somebody() {
            self.all_there(&judged, voice)?;
        }
        for (request, provider, stored, case) in judged {
            if self.cancelled.load(Relaxed) {
                return Err(SubmitError::Cancelled);
            }
            voice.tell(Event::Found(request, case));
            let create = self.renew
                || !case.is_good()
                || (case.ending().is_some() && voice.renew(provider.approval.renew_default, self.cancelled)?);
            if create {
                self.approve(request, provider, (stored, case), voice)?;
            } else if stored.is_usable() {
                self.wait_for_renewal(request, stored, &known, voice)?;
            } else {
                // A `.use` that is older than the `.top` is of the one before.
                self.wait_for_use(request, None)?;
            }
        }
        Ok(())
    }

    /// A client's own tokens: nobody approves; the configuration says who gets them, and the keeper sees to it.
    fn named(&self, request: &Request, provider: &Provider) -> Result<(), SubmitError> {
        account::check(&self.account, request, provider)?;
        // credd compares what a submit file asks for with the `.top`, which says nothing of it.
        let bare = Request::of(request.service.clone(), request.handle.clone());
        match self.credd.query(&bare)? {
            stored if stored.is_usable() => Ok(()),
            Stored::Missing => {
                self.right_place()?;
                Err(SubmitError::NotSetUp(format!(
                    "{}: the access point's credential monitor has not put it there; ask the admins whether it runs.",
                    bare.name()
                )))
            }
            // A user's own, stored with scopes or an audience; without it the keeper puts its own there.
            Stored::Mismatch => Err(SubmitError::NotNamed(format!(
                "{0}: something else is stored there; remove it: condor_store_cred delete-oauth -s {0}",
                bare.name()
            ))),
            _ => self.wait_for_use(&bare, None).map(drop),
        }
    }

    /// Where nobody can be asked: that nobody needs to be, known before anything is waited for.
    fn all_there(
        &self,
        judged: &[(&Request, &Provider, Stored, Case)],
        voice: &mut dyn Voice,
    ) -> Result<(), SubmitError> {
        let needs = |case: Case| self.renew || !case.is_good();
        let missing: Vec<_> = judged
            .iter()
            .filter(|(.., case)| needs(*case))
            .map(|(request, .., case)| self.needs_human(request, *case))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        for (request, .., case) in judged {
            voice.tell(Event::Found(request, *case));
        }
        Err(SubmitError::NeedsHuman(missing.join("\n")))
    }

    /// What credd has of each; side by side, because each costs a process.
    fn look(&self, wanted: &[(Request, &Provider)]) -> Result<Vec<Stored>, SubmitError> {
        let stored: Result<Vec<_>, StoreError> = match wanted {
            [(request, _)] => self.credd.query(request).map(|stored| vec![stored]),
            many => std::thread::scope(|scope| {
                let asked: Vec<_> = many.iter().map(|(request, _)| scope.spawn(|| self.credd.query(request))).collect();
                asked.into_iter().map(|one| one.join().unwrap_or(Err(StoreError::Slow))).collect()
            }),
        };
        Ok(stored?)
    }

    /// Which case it is, as far as it can be known on this host.
    pub(crate) fn judge(&self, request: &Request, stored: Stored, known: &Known) -> Case {
        if let Some(credential) = spoken_of(request, stored, known) {
            return cases::judge(stored, credential, now());
        }
        let end = || Note::read(&self.note_places, request).filter(|note| stored.top() == Some(note.top))?.end;
        cases::without_keeper(stored, end(), now())
    }

    /// The line that names the command.
    fn needs_human(&self, request: &Request, case: Case) -> String {
        let (name, command) = (request.name(), request.login_command());
        if case.is_good() && self.renew {
            return format!(
                "evercred: {name}: A new credential needs your approval. Give it on a terminal: {command} --renew"
            );
        }
        let why = words::case(case).first().cloned().unwrap_or_default();
        format!("evercred: {name}: {why} Approve it on a terminal: {command}")
    }

    /// Let the user approve, unless another submit has done it since what was found `before`.
    fn approve(
        &self,
        request: &Request,
        provider: &Provider,
        before: (Stored, Case),
        voice: &mut dyn Voice,
    ) -> Result<(), SubmitError> {
        let waiting = |holder: Option<&Holder>, length| voice.tell(Event::Waiting(holder, length));
        let lock = self.lock(request, Duration::MAX, waiting)?;
        // Whoever had the lock before may have stored just this: also without having held us up here, while we were at
        // another request or at a question.
        let stored = self.credd.query(request)?;
        let case = self.judge(request, stored, &(self.keeper)());
        // Of the very `.top` that was bad only the keeper can say that it is not: a keeper that cannot be asked now says
        // nothing.
        // A keeper that rotates gives it another time, too: where a new approval is wanted, it counts if it was noted by who
        // stored it, or ends soon no more.
        let wanted = self.renew || before.1.ending().is_some();
        let noted = || Note::read(&self.note_places, request).map(|note| note.top) == stored.top();
        let longer = before.1.ending().is_some() && case.ending().is_none();
        let replaced = stored.top() != before.0.top() && (!wanted || noted() || longer);
        let recovered = !before.1.is_good() && matches!(case, Case::Valid(_) | Case::Ending(_));
        if case.is_good() && (replaced || recovered) {
            voice.tell(Event::Found(request, case));
            return self.wait_for_use(request, None).map(drop);
        }
        self.right_place()?;
        let wish = Wish { provider, request, account: self.account.clone(), host: self.host.clone() };
        let mut watcher = Inviting { voice, lock: &lock, name: request.name(), after: self.around() };
        let fresh = flow::approve(&wish, &mut watcher, self.cancelled)?;
        let end = match fresh.left {
            Left::For(left) => Some(now().plus(left).secs()),
            Left::Unlimited | Left::Unknown => None,
        };
        let made = self.made.borrow().len();
        let ready = self.make_ready(request);
        let begun = ready.is_ok();
        let put = ready.and_then(|()| self.put_now(request, &fresh));
        if let Err(error) = &put
            && self.made.borrow().len() == made
            && !(begun && self.may_be_stored(request, stored, error))
            && let Err(why) = flow::give_back(provider, &fresh)
        {
            voice.tell(Event::Note(&format!(
                "{}: what you approved is not stored, and could not be revoked either ({why}): revoke it at the provider",
                request.name()
            )));
        }
        let top = put?;
        Note { top, end, sha256: None }.write(&self.note_places, request);
        voice.tell(Event::Created(request, fresh.left));
        drop(lock);
        Ok(())
    }

    /// The lock, for a credential; who has it is waited for as long as it may take, and not beyond `patience`.
    ///
    /// # Errors
    /// [`SubmitError::Busy`], or cancelled.
    pub fn lock(
        &self,
        request: &Request,
        patience: Duration,
        waiting: impl FnOnce(Option<&Holder>, Duration),
    ) -> Result<Lock, SubmitError> {
        let me = Holder::me(&request.name(), self.around());
        match Lock::take(&self.lock_places, &me, patience, self.cancelled, waiting) {
            Locked::Held(lock) => Ok(lock),
            Locked::Cancelled => Err(SubmitError::Cancelled),
            Locked::Busy(holder, waited) => Err(SubmitError::Busy { holder, waited }),
        }
    }

    /// What an approval may take without the human.
    fn around(&self) -> Duration {
        AROUND + self.use_wait
    }

    /// Refuse to store where this host's jobs do not go.
    ///
    /// # Errors
    /// [`SubmitError::NotSetUp`]
    pub fn right_place(&self) -> Result<(), SubmitError> {
        remote::check_knobs()
    }

    /// Store, and wait until it is usable; the time of the `.top`.
    ///
    /// # Errors
    /// It was not stored, or no `.use` came of it.
    pub fn put(&self, request: &Request, fresh: &Fresh) -> Result<i64, SubmitError> {
        self.make_ready(request)?;
        self.put_now(request, fresh)
    }

    /// What comes before a store; nothing is sent yet.
    fn make_ready(&self, request: &Request) -> Result<(), SubmitError> {
        if let Some(published) = self.credd.published(request)? {
            // credd tells whole seconds: the new .top must be younger than the .use that is there, so that a .use as
            // old as the .top is known to be of it.
            while now().secs() <= published && published - now().secs() < 2 {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if self.cancelled.load(Relaxed) { Err(SubmitError::Cancelled) } else { Ok(()) }
    }

    fn put_now(&self, request: &Request, fresh: &Fresh) -> Result<i64, SubmitError> {
        let since = now();
        self.credd.store(request, &fresh.top).map_err(|error| {
            let error = SubmitError::from(error);
            // Whether it was stored only its own words can tell.
            if self.cancelled.load(Relaxed) { SubmitError::Interrupted(Box::new(error)) } else { error }
        })?;
        self.made.borrow_mut().push(request.name());
        self.wait_for_use(request, Some(since))
    }

    /// Whether a store that failed may have been one all the same; `before`: what was there.
    fn may_be_stored(&self, request: &Request, before: Stored, error: &SubmitError) -> bool {
        match error {
            SubmitError::Interrupted(error) => self.may_be_stored(request, before, error),
            SubmitError::Store(StoreError::Slow) => true,
            // Its answer may have been lost; one that cannot be asked may have it.
            SubmitError::Store(StoreError::Refused { .. } | StoreError::Run { .. }) => {
                self.credd.query(request).map_or(true, |there| there.top().is_some() && there.top() != before.top())
            }
            _ => false,
        }
    }

    /// Where the access token is over: until the next one is there, as long as the keeper is at it. What only somebody
    /// can mend ends it then; of an outage it is said, and the jobs go: they may start later, and the credential is good.
    fn wait_for_renewal(
        &self,
        request: &Request,
        mut stored: Stored,
        known: &Known,
        voice: &mut dyn Voice,
    ) -> Result<(), SubmitError> {
        let end = Instant::now() + self.use_wait;
        let mut pause = LOOK.0;
        let mut later = None;
        loop {
            let known = later.as_ref().unwrap_or(known);
            let credential = spoken_of(request, stored, known);
            let Some(stale) = cases::stale(stored, credential, now()) else { return Ok(()) };
            let trouble = credential.and_then(|credential| credential.error.as_ref());
            let doubted = credential.is_some_and(cases::is_doubted);
            if let Some(trouble) =
                trouble.filter(|trouble| !doubted && matches!(trouble.kind.class(), Class::Ours | Class::Refused))
            {
                let why = format!("its {}, and {}", words::over(stale), no_token(trouble));
                return Err(SubmitError::NotUsable { name: request.name(), why });
            }
            let is_at_it = credential.is_some() && (trouble.is_none() || doubted);
            if !is_at_it || Instant::now() + pause > end {
                voice.tell(Event::Stale(request, stale));
                return Ok(());
            }
            if self.cancelled.load(Relaxed) {
                return Err(SubmitError::Cancelled);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LOOK.1);
            stored = self.credd.query(request)?;
            // One that falls silent has said what it has said.
            match (self.keeper)() {
                Known::Told(credentials) => later = Some(Known::Told(credentials)),
                Known::Silent | Known::Nowhere => {}
            }
        }
    }

    /// Whether this one was stored by us.
    #[must_use]
    pub fn has_stored(&self, request: &Request) -> bool {
        self.made.borrow().contains(&request.name())
    }

    /// Until the `.use` is as young as the `.top`; the time of that one. `since`: when we stored it.
    ///
    /// # Errors
    /// None comes, or we are cancelled.
    pub fn wait_for_use(&self, request: &Request, since: Option<Timestamp>) -> Result<i64, SubmitError> {
        let end = Instant::now() + self.use_wait;
        let mut pause = LOOK.0;
        let not_usable = |why: String| Err(SubmitError::NotUsable { name: request.name(), why });
        loop {
            let stored = self.credd.query(request)?;
            if let (true, Some(top)) = (stored.is_usable(), stored.top()) {
                return Ok(top);
            }
            if matches!(stored, Stored::Missing | Stored::Mismatch) {
                return not_usable("somebody else has removed or replaced it since".to_owned());
            }
            if self.cancelled.load(Relaxed) {
                return Err(SubmitError::Cancelled);
            }
            // What the issuer refuses now it will not give in a minute.
            if pause >= Duration::from_millis(300)
                && let Some(trouble) =
                    spoken_of(request, stored, &(self.keeper)()).and_then(|credential| credential.error.clone())
                && trouble
                    .since
                    .is_none_or(|began| Some(began.secs()) >= stored.top() && since.is_none_or(|since| began >= since))
                && trouble.kind.class() != Class::Transient
            {
                return not_usable(no_token(&trouble));
            }
            if Instant::now() + pause > end {
                return not_usable(format!(
                    "no access token came within {}: the access point's credential monitor may not run, or its issuer \
                     is down; `evercred status` there may know",
                    words::spoken(self.use_wait)
                ));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LOOK.1);
        }
    }
}

/// Why there is none.
fn no_token(trouble: &Trouble) -> String {
    let Trouble { kind, detail, .. } = trouble;
    format!("it gets no access token ({kind}: {detail}); see `evercred explain {kind}`")
}

/// What the keeper says of a request's credential, if it is the one that credd has.
fn spoken_of<'k>(request: &Request, stored: Stored, known: &'k Known) -> Option<&'k Credential> {
    let Known::Told(credentials) = known else { return None };
    credentials.get(&request.name()).filter(|credential| cases::speaks_of(credential, stored))
}

/// Tells those who wait for the lock for how long the page is open.
struct Inviting<'a> {
    voice: &'a mut dyn Voice,
    lock: &'a Lock,
    name: String,
    after: Duration,
}

impl Watcher for Inviting<'_> {
    fn invite(&mut self, invitation: &Invitation) {
        self.lock.tell(&Holder::me(&self.name, invitation.expires_in.min(flow::LONGEST) + self.after));
        self.voice.invite(invitation);
    }

    fn left(&mut self, left: Duration) {
        self.voice.left(left);
    }
}
