//! The rounds, on a thread of the keeper's: look how credentials stand, decide, note and store what is told, deliver
//! letter by letter. The driver only answers one question a round and passes letters on; whatever hangs here (a disk,
//! `condor_q`, a mail server) delays no renewal.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::OpenOptions,
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel},
    time::{Duration, Instant},
};

use nix::{libc, unistd::gethostname};

use super::{
    child::Ids,
    jobs,
    letter::{self, Letter, Way},
    outbox::Outbox,
    sendmail,
};
use crate::{
    config::{
        notices::map_line,
        settings::{Notices, Settings},
    },
    core::{
        id::{CredentialId, UserName},
        notice::{self, Jobs, Notice, Standings},
        time::Timestamp,
    },
    keeper::driver::Input,
};

/// After a credential was parked: others may follow at once.
const GATHER: Duration = Duration::from_secs(5);
/// How long the driver, and a letter under way, may take.
const ANSWER: Duration = Duration::from_secs(10);
const DELIVERY: Duration = Duration::from_secs(90);
/// No mail map is larger.
const MAX_MAP: u64 = 4 << 20;

/// What the rounds go by.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// `[notices]`
    pub notices: Notices,
    /// Where what was told is remembered.
    pub state_directory: PathBuf,
    /// Who `condor_q` and `sendmail` run as.
    pub ids: Ids,
}

impl Recipe {
    /// Of these settings; none: nobody is to be told anything.
    #[must_use]
    pub fn of(settings: &Settings, ids: Ids) -> Option<Self> {
        let state_directory = settings.daemon.state_directory.clone();
        settings.notices.clone().map(|notices| Self { notices, state_directory, ids })
    }
}

/// What the rounds hear.
#[derive(Debug)]
pub enum Event {
    /// Something is wrong that may be news.
    Poke,
    /// What became of a letter that the courier had.
    Delivered {
        /// Its number.
        number: u64,
        /// How it ended.
        result: Result<(), String>,
    },
    /// The configuration changed.
    Configure(Option<Box<Recipe>>),
}

/// A question to the driver.
#[derive(Debug)]
pub struct Question {
    /// Tell of credentials whose refresh token ends before.
    pub before: Timestamp,
    /// Tell of these in any case.
    pub remembered: BTreeSet<CredentialId>,
    /// Where the answer goes; it is dropped as long as not everything has been looked at.
    pub reply: SyncSender<Standings>,
}

/// What became of a letter, for counts and audit.
#[derive(Debug)]
pub struct Delivery {
    /// How it travelled.
    pub way: Way,
    /// Whom it is for, in words.
    pub whom: String,
    /// Its subject.
    pub subject: String,
    /// How it ended.
    pub result: Result<(), String>,
}

/// Start the thread.
///
/// # Errors
/// The system refuses a thread.
pub fn start(recipe: Recipe, inputs: Sender<Input>) -> std::io::Result<Sender<Event>> {
    let (events, heard) = channel();
    let own = events.clone();
    std::thread::Builder::new().name("notices".into()).spawn(move || {
        let mut rounds = Rounds::new(recipe, inputs, own);
        // It ends only with the process.
        while rounds.turn(&heard) {}
    })?;
    Ok(events)
}

struct Rounds {
    recipe: Option<Recipe>,
    outbox: Option<Outbox>,
    inputs: Sender<Input>,
    /// To ourselves, for those who deliver.
    events: Sender<Event>,
    host: String,
    look_at: Instant,
    /// At most one delivery by each way.
    under_way: BTreeMap<Way, UnderWay>,
    number: u64,
    troubled: bool,
}

/// A letter that somebody delivers.
#[derive(Debug, Clone, Copy)]
struct UnderWay {
    /// The delivery's number.
    number: u64,
    /// The letter's number in the outbox.
    letter: u64,
    since: Instant,
}

fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond())
}

impl Rounds {
    fn new(recipe: Recipe, inputs: Sender<Input>, events: Sender<Event>) -> Self {
        let host = gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "this host".into());
        // The first look comes after the first exchanges.
        let look_at = Instant::now() + GATHER.min(recipe.notices.every);
        let (recipe, under_way) = (Some(recipe), BTreeMap::new());
        Self { recipe, outbox: None, inputs, events, host, look_at, under_way, number: 0, troubled: false }
    }

    /// One turn; false: the daemon ends.
    fn turn(&mut self, heard: &Receiver<Event>) -> bool {
        let Some(recipe) = self.recipe.clone() else {
            return heard.recv().map(|event| self.hear(event)).is_ok();
        };
        if self.outbox.is_none() {
            match Outbox::open(&recipe.state_directory) {
                Ok(outbox) => self.outbox = Some(outbox),
                Err(error) => self.trouble(&error.to_string()),
            }
        }
        if Instant::now() >= self.look_at {
            self.look_at = Instant::now() + recipe.notices.every;
            self.look(&recipe);
        }
        self.send(&recipe);
        let mut wait = self.look_at.saturating_duration_since(Instant::now());
        for UnderWay { number, since, .. } in self.under_way.values().copied().collect::<Vec<_>>() {
            let left = DELIVERY.saturating_sub(since.elapsed());
            if left.is_zero() {
                self.delivered(number, Err("no answer of who delivers it".into()));
            }
            wait = wait.min(left);
        }
        self.save();
        if let Some(outbox) = &self.outbox {
            let next = outbox.next(|way| self.is_free(way)).map(|next| next.since(now()));
            wait = [next, outbox.save_wait(Instant::now())].into_iter().flatten().fold(wait, Duration::min);
        }
        match heard.recv_timeout(wait.max(Duration::from_millis(10))) {
            Ok(event) => {
                self.hear(event);
                true
            }
            Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => false,
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Poke => self.look_at = self.look_at.min(Instant::now() + GATHER),
            Event::Delivered { number, result } => self.delivered(number, result),
            Event::Configure(recipe) => {
                self.recipe = recipe.map(|recipe| *recipe);
                if let Some(Err(error)) = self.outbox.as_mut().map(Outbox::flush) {
                    self.trouble(&error.to_string());
                }
                self.close();
                self.look_at = Instant::now() + GATHER;
            }
        }
    }

    /// What is on disk counts: letters under way are nobody's any more.
    fn close(&mut self) {
        self.outbox = None;
        self.under_way.clear();
    }

    fn is_free(&self, way: Way) -> bool {
        !self.under_way.contains_key(&way)
    }

    fn trouble(&mut self, error: &str) {
        if !std::mem::replace(&mut self.troubled, true) {
            tracing::error!(
                error,
                "what was told cannot be remembered, so nobody is told; make state_directory writable"
            );
        }
    }

    /// Look how credentials stand, and write what is to be told.
    fn look(&mut self, recipe: &Recipe) {
        let Some(outbox) = &mut self.outbox else { return };
        let policy = &recipe.notices.policy;
        // Twice as far: of a token that is rotated, it is to be known how long it is there before a step comes.
        let horizon = policy.steps.first().copied().unwrap_or_default().saturating_mul(2);
        let (reply, answer) = sync_channel(1);
        let remembered = outbox.memory.credentials.keys().filter_map(|name| id(name)).collect();
        let question = Question { before: now().plus(horizon), remembered, reply };
        if self.inputs.send(Input::Standings(question)).is_err() {
            return;
        }
        let Ok(standings) = answer.recv_timeout(ANSWER) else { return };
        let users = notice::asks_for_jobs(policy, &outbox.memory, now(), &standings.credentials);
        let jobs = match (users.is_empty(), recipe.notices.jobs) {
            (false, true) => jobs::of(jobs::program().as_deref(), recipe.ids, &users),
            _ => Jobs::Unknown,
        };
        let before = outbox.memory.clone();
        let notices = notice::decide(policy, &mut outbox.memory, now(), &standings, &jobs);
        if notices.is_empty() && outbox.memory == before {
            return;
        }
        let map = recipe.notices.mail_map.as_deref().map(read_map).unwrap_or_default();
        let mut lost = 0;
        for notice in &notices {
            for letter in letters(notice, recipe, &map, &self.host) {
                lost += u32::from(!outbox.post(now(), letter));
            }
        }
        if lost > 0 {
            tracing::error!(lost, "too many letters wait; these are given up");
        }
        if let Err(error) = outbox.save() {
            // What is not on disk was not told: it is decided anew in the next round.
            self.close();
            self.trouble(&error.to_string());
        } else if std::mem::take(&mut self.troubled) {
            tracing::info!("what was told can be remembered again");
        }
    }

    /// Save what became of letters, if it is time.
    fn save(&mut self) {
        let Some(outbox) = &mut self.outbox else { return };
        if let Err(error) = outbox.save_in_time(now(), Instant::now()) {
            self.trouble(&error.to_string());
        }
    }

    /// Send the letters whose turn it is, one by each way.
    fn send(&mut self, recipe: &Recipe) {
        loop {
            let due = self.outbox.as_ref().and_then(|outbox| outbox.due(now(), |way| self.is_free(way)));
            let Some((place, letter)) = due.map(|(number, letter)| (number, letter.clone())) else { return };
            self.number += 1;
            let number = self.number;
            self.under_way.insert(letter.way, UnderWay { number, letter: place, since: Instant::now() });
            if letter.way == Way::Sendmail {
                let (program, ids, events) = (recipe.notices.sendmail.clone(), recipe.ids, self.events.clone());
                let send = move || {
                    let result = match program {
                        Some(program) => sendmail::send(&program, ids, &letter),
                        None => Err("no sendmail is configured any more".into()),
                    };
                    // We end only with the process.
                    events.send(Event::Delivered { number, result }).ok();
                };
                if let Err(error) = std::thread::Builder::new().name("sendmail".into()).spawn(send) {
                    self.delivered(number, Err(format!("no thread for sendmail: {error}")));
                }
            } else if self.inputs.send(Input::Deliver { number, letter: Box::new(letter) }).is_err() {
                return;
            }
        }
    }

    fn delivered(&mut self, number: u64, result: Result<(), String>) {
        let Some((way, place)) =
            self.under_way.iter().find(|(_, one)| one.number == number).map(|(w, o)| (*w, o.letter))
        else {
            return;
        };
        self.under_way.remove(&way);
        let Some(outbox) = &mut self.outbox else { return };
        let Some(letter) = outbox.letter(place).cloned() else { return };
        let Letter { way, whom, subject, .. } = letter;
        match &result {
            Ok(()) => {
                outbox.delivered(place);
                tracing::info!(way = way.word(), whom, subject, "notice delivered");
            }
            Err(error) => {
                if outbox.failed(now(), place) {
                    tracing::error!(way = way.word(), whom, subject, error, "notice given up");
                } else {
                    tracing::warn!(way = way.word(), whom, subject, error, "notice not delivered; trying again later");
                }
            }
        }
        outbox.changed();
        self.save();
        // The driver goes with the daemon.
        self.inputs.send(Input::Delivery(Delivery { way, whom, subject, result })).ok();
    }
}

/// `user/S_H`
fn id(name: &str) -> Option<CredentialId> {
    let (user, base) = name.split_once('/')?;
    CredentialId::from_base(UserName::parse(user).ok()?, base).ok()
}

/// The letters of a notice, by every way that is configured for its recipient.
fn letters(notice: &Notice, recipe: &Recipe, map: &HashMap<String, String>, host: &str) -> Vec<Letter> {
    let notices = &recipe.notices;
    let (subject, text) = letter::text(notice, now(), host);
    let to = match notice {
        Notice::User { user, .. } | Notice::Well { user, .. } => {
            let name = user.as_str();
            let template = || notices.mail_to.as_ref().map(|template| template.replace("{user}", name));
            map.get(name).cloned().or_else(template).into_iter().collect()
        }
        Notice::Admins { .. } | Notice::Over { .. } | Notice::Site { .. } => notices.admins.clone(),
    };
    let of_user = matches!(notice, Notice::User { .. } | Notice::Well { .. });
    let letter = |way, to: Vec<String>, body: &str| Letter {
        way,
        whom: letter::whom(notice),
        for_admins: !of_user,
        from: notices.mail_from.clone().unwrap_or_default(),
        to,
        subject: subject.clone(),
        body: body.to_owned(),
    };
    let mut letters = Vec::new();
    let mail = match (&notices.post.smtp, &notices.sendmail) {
        (Some(_), _) => Some(Way::Smtp),
        (None, Some(_)) => Some(Way::Sendmail),
        (None, None) => None,
    };
    if let Some(way) = mail
        && !to.is_empty()
    {
        letters.push(letter(way, to, &text));
    }
    if notices.post.webhook.is_some() {
        letters.push(letter(Way::Webhook, Vec::new(), &letter::document(notice, now(), host)));
    }
    if notices.post.slack.is_some() && !of_user {
        letters.push(letter(Way::Slack, Vec::new(), &text));
    }
    letters
}

fn read_map(path: &Path) -> HashMap<String, String> {
    let mut text = String::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    if let Err(error) = file.and_then(|file| file.take(MAX_MAP).read_to_string(&mut text)) {
        tracing::warn!(path = %path.display(), %error, "the mail map cannot be read");
    }
    text.lines().filter_map(map_line).map(|(user, address)| (user.to_owned(), address.to_owned())).collect()
}
