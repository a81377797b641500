//! The rounds, on a thread of the keeper's: look how credentials stand, decide, note and store what is told, deliver
//! letter by letter. The driver only answers one question a round and passes letters on; whatever hangs here (a disk,
//! `condor_q`, a mail server) delays no renewal.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel},
    time::{Duration, Instant},
};

use nix::unistd::gethostname;

use super::{
    address,
    child::Ids,
    jobs,
    letter::{Letter, Way},
    outbox::Outbox,
    sendmail,
};
use crate::{
    config::settings::{Notices, Settings},
    core::{
        id::{CredentialId, UserName},
        notice::{self, Jobs, Memory, Standings},
        time::Timestamp,
    },
    keeper::driver::Input,
};

/// After a credential was parked: others may follow at once.
const GATHER: Duration = Duration::from_secs(5);
/// How long the driver, and a letter under way, may take.
const ANSWER: Duration = Duration::from_secs(10);
const DELIVERY: Duration = Duration::from_secs(90);
/// How often `condor_q` may fail until refusals are told to everybody, and after how long it is asked again.
const ASKED: u32 = 3;
const ASK_AGAIN: Duration = Duration::from_secs(60);

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
    /// A letter can be delivered by nobody, now or later.
    Undeliverable {
        /// Its number.
        number: u64,
        /// Why.
        why: String,
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
    /// How often in a row `condor_q` did not tell.
    unanswered: u32,
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

pub(super) fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_millisecond())
}

impl Rounds {
    fn new(recipe: Recipe, inputs: Sender<Input>, events: Sender<Event>) -> Self {
        let host = gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "this host".into());
        // The first look comes after the first exchanges.
        let look_at = Instant::now() + GATHER.min(recipe.notices.every);
        let (recipe, under_way) = (Some(recipe), BTreeMap::new());
        Self {
            recipe,
            outbox: None,
            inputs,
            events,
            host,
            look_at,
            under_way,
            number: 0,
            unanswered: 0,
            troubled: false,
        }
    }

    /// One turn; false: the daemon ends.
    fn turn(&mut self, heard: &Receiver<Event>) -> bool {
        let Some(recipe) = self.recipe.clone() else {
            let heard = heard.recv().map(|event| self.hear(event)).is_ok();
            self.save();
            return heard;
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
            Event::Undeliverable { number, why } => self.ended(number, Err(why), false),
            Event::Configure(recipe) => {
                self.recipe = recipe.map(|recipe| *recipe);
                if let Some(Err(error)) = self.outbox.as_mut().map(Outbox::flush) {
                    self.trouble(&error.to_string());
                }
                // Letters under way stay so: who delivers them says what became of them.
                let stays = |recipe: &Recipe| self.outbox.as_ref().is_some_and(|o| o.is_in(&recipe.state_directory));
                if !self.recipe.as_ref().is_none_or(stays) {
                    self.close();
                }
                self.look_at = Instant::now() + GATHER;
            }
        }
    }

    /// For another directory: letters under way are nobody's any more.
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
        let Some(outbox) = &self.outbox else { return };
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
        let mut memory = outbox.memory.clone();
        notice::settle(&mut memory, &standings);
        let users = notice::asks_for_jobs(policy, &memory, now(), &standings.credentials);
        let jobs = match (users.is_empty(), recipe.notices.jobs) {
            (false, true) => self.who_has_jobs(jobs::of(jobs::program().as_deref(), recipe.ids, &users)),
            _ => Jobs::Unknown,
        };
        let Some(outbox) = &self.outbox else { return };
        // A user gets a mail, and the webhook a document of it.
        let ways = [address::mail_way(&recipe.notices).is_some(), recipe.notices.post.webhook.is_some()];
        let room = outbox.room(false) / ways.into_iter().filter(|way| *way).count().max(1);
        let (mut notices, mut waiting) = notice::decide(policy, &memory, now(), &standings, &jobs, room);
        let mut why = "too many letters wait".to_owned();
        let mut map = HashMap::new();
        if let Some(path) = &recipe.notices.mail_map
            && notices.iter().any(address::is_users)
        {
            match address::read_map(path) {
                Ok(read) => map = read,
                Err(error) => {
                    why = format!("notices.mail_map {}: {error}", path.display());
                    (notices, waiting) = notice::decide(policy, &memory, now(), &standings, &jobs, 0);
                }
            }
        }
        let letters: Vec<Letter> =
            notices.iter().flat_map(|one| address::letters(one, recipe, &map, &self.host)).collect();
        if letters.iter().filter(|letter| letter.for_admins).count() > outbox.room(true) {
            let whom = "those of a whole round".to_owned();
            return self.not_told(recipe, whom, "too many letters wait".into());
        }
        let without: Vec<String> =
            notices.iter().filter_map(|one| address::has_no_address(one, recipe, &map)).collect();
        for notice in &notices {
            memory.note(notice);
        }
        if (memory != outbox.memory || !letters.is_empty()) && !self.tell(memory, letters) {
            return;
        }
        if waiting > 0 {
            self.not_told(recipe, format!("users ({waiting})"), format!("{why}; it is decided anew in the next round"));
        }
        for whom in without {
            let why = "notices.mail_map does not name this user, and notices.mail_to is not set".to_owned();
            self.not_told(recipe, whom, why);
        }
    }

    /// Who has jobs. As long as `condor_q` may have a bad moment, nobody is known to have any, so that refusals wait for the
    /// next round, which comes soon.
    fn who_has_jobs(&mut self, answer: std::io::Result<Jobs>) -> Jobs {
        let error = match answer {
            Ok(jobs) => {
                self.unanswered = 0;
                return jobs;
            }
            Err(error) => error,
        };
        self.unanswered = self.unanswered.saturating_add(1);
        if self.unanswered < ASKED {
            tracing::warn!(%error, "condor_q does not tell who has jobs; asking again");
            self.look_at = self.look_at.min(Instant::now() + ASK_AGAIN);
            return Jobs::Known(BTreeMap::new());
        }
        tracing::warn!(%error, "condor_q does not tell who has jobs; telling everybody");
        Jobs::Unknown
    }

    /// Note what is told, and put the letters into the outbox; whether that could be saved. If not, it is decided anew in
    /// the next round.
    fn tell(&mut self, memory: Memory, letters: Vec<Letter>) -> bool {
        let told = match &mut self.outbox {
            Some(outbox) => outbox.tell(now(), memory, letters),
            None => return false,
        };
        match told {
            Ok(()) => self.remembers(),
            Err(error) => {
                self.trouble(&error.to_string());
                return false;
            }
        }
        true
    }

    fn remembers(&mut self) {
        if std::mem::take(&mut self.troubled) {
            tracing::info!("what was told can be remembered again");
        }
    }

    /// Somebody is not told, or not yet: for the log, the counts and the audit log.
    fn not_told(&self, recipe: &Recipe, whom: String, why: String) {
        let way = address::mail_way(&recipe.notices).unwrap_or(Way::Webhook);
        tracing::error!(way = way.word(), whom, why, "not told");
        let subject = "not told".to_owned();
        // The driver goes with the daemon.
        self.inputs.send(Input::Delivery(Delivery { way, whom, subject, result: Err(why) })).ok();
    }

    /// Save what became of letters, if it is time.
    fn save(&mut self) {
        let Some(outbox) = &mut self.outbox else { return };
        match outbox.save_in_time(now(), Instant::now()) {
            Ok(true) => self.remembers(),
            Ok(false) => {}
            Err(error) => self.trouble(&error.to_string()),
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
        self.ended(number, result, true);
    }

    /// What became of a letter; and if it failed, whether it is tried again.
    fn ended(&mut self, number: u64, result: Result<(), String>, again: bool) {
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
                if if again { outbox.failed(now(), place) } else { outbox.give_up(place) } {
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

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, sync::mpsc};

    use super::*;
    use crate::{
        config::settings::Post,
        core::{
            budget::Outage,
            notice::{Policy, Provider, Standing},
            standing,
        },
        error::Kind,
        notice::outbox::MOST,
    };

    /// Rounds in a directory of their own, with mails by a `sendmail` that nobody starts.
    struct Desk {
        home: tempfile::TempDir,
        rounds: Rounds,
        inputs: Receiver<Input>,
    }

    impl Desk {
        fn new(more: impl FnOnce(&Path, &mut Notices)) -> Self {
            let home = tempfile::tempdir().unwrap();
            let policy =
                Policy { steps: vec![Duration::from_secs(3600)], after_failures: 3, site_behind: Duration::MAX };
            let mut notices = Notices {
                policy,
                every: Duration::from_secs(300),
                jobs: false,
                mail_to: None,
                mail_map: None,
                admins: vec!["one@example.org".into(), "two@example.org".into()],
                mail_from: Some("evercred@example.org".into()),
                sendmail: Some("/bin/false".into()),
                post: Post::default(),
            };
            more(home.path(), &mut notices);
            let (inputs, heard) = mpsc::channel();
            let recipe = Recipe { notices, state_directory: home.path().join("state"), ids: None };
            let mut rounds = Rounds::new(recipe.clone(), inputs, mpsc::channel().0);
            rounds.outbox = Some(Outbox::open(&recipe.state_directory).unwrap());
            Self { home, rounds, inputs: heard }
        }

        fn outbox(&mut self) -> &mut Outbox {
            self.rounds.outbox.as_mut().unwrap()
        }

        /// One look, at these; who was not told, and why.
        fn look(&mut self, standings: &Standings) -> Vec<(String, String)> {
            let recipe = self.rounds.recipe.clone().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| self.rounds.look(&recipe));
                let question = loop {
                    if let Input::Standings(question) = self.inputs.recv().unwrap() {
                        break question;
                    }
                };
                question.reply.send(standings.clone()).unwrap();
            });
            let told = self.inputs.try_iter().map(|input| match input {
                Input::Delivery(Delivery { whom, result, .. }) => (whom, result.unwrap_err()),
                other => panic!("{other:?}"),
            });
            told.collect()
        }

        /// Send what is due; the numbers of letters that go to the courier.
        fn send(&mut self) -> Vec<u64> {
            let recipe = self.rounds.recipe.clone().unwrap();
            self.rounds.send(&recipe);
            let sent = self.inputs.try_iter().filter_map(|input| match input {
                Input::Deliver { number, .. } => Some(number),
                _ => None,
            });
            sent.collect()
        }

        /// Addresses of letters that wait, in the order in which they go; they wait no more.
        fn letters(&mut self) -> Vec<String> {
            self.outbox().drain().into_iter().flat_map(|letter| letter.to).collect()
        }
    }

    fn a_letter(way: Way, for_admins: bool) -> Letter {
        let (whom, from, subject, body) = ("x".into(), String::new(), String::new(), String::new());
        Letter { way, whom, for_admins, from, to: vec![], subject, body }
    }

    #[test]
    fn while_nothing_can_be_remembered_nothing_new_is_told_and_no_letter_leaves_twice() {
        let mut desk = Desk::new(|_, notices| notices.mail_to = Some("{user}@example.org".into()));
        desk.outbox().tell(now(), Memory::default(), vec![a_letter(Way::Webhook, false)]).unwrap();
        let beside = desk.home.path().join("state/notices.json.new");
        fs::create_dir_all(beside.join("full")).unwrap();
        assert_eq!(desk.send(), [1]);
        desk.rounds.hear(Event::Delivered { number: 1, result: Ok(()) });
        for _ in 0..3 {
            assert_eq!(desk.look(&standings(&["alice"])).len(), 0);
            assert_eq!(desk.send(), [0; 0], "neither that letter again nor a new one");
        }
        assert!(desk.rounds.troubled);
        fs::remove_dir_all(&beside).unwrap();
        assert_eq!(desk.look(&standings(&["alice"])), []);
        assert!(!desk.rounds.troubled);
        assert_eq!(desk.letters(), ["one@example.org", "two@example.org", "alice@example.org"]);
    }

    #[test]
    fn a_reload_sends_no_letter_again_that_is_under_way() {
        let mut desk = Desk::new(|_, _| ());
        let letters = vec![a_letter(Way::Webhook, false), a_letter(Way::Webhook, false)];
        desk.outbox().tell(now(), Memory::default(), letters).unwrap();
        assert_eq!(desk.send(), [1]);
        let recipe = desk.rounds.recipe.clone().unwrap();
        for recipe in [Some(recipe.clone()), None, Some(recipe.clone())] {
            desk.rounds.hear(Event::Configure(recipe.map(Box::new)));
        }
        assert_eq!(desk.send(), [0; 0]);
        desk.rounds.hear(Event::Delivered { number: 1, result: Ok(()) });
        assert_eq!(desk.send(), [2]);
        // Another directory is another outbox.
        let elsewhere = Recipe { state_directory: desk.home.path().join("elsewhere"), ..recipe };
        desk.rounds.hear(Event::Configure(Some(Box::new(elsewhere))));
        assert!(desk.rounds.outbox.is_none() && desk.rounds.under_way.is_empty());
    }

    #[test]
    fn refusals_wait_while_condor_q_may_only_have_a_bad_moment() {
        let mut desk = Desk::new(|_, _| ());
        let rounds = &mut desk.rounds;
        let fails = || Err(std::io::Error::other("exit status 1"));
        let nobody = Jobs::Known(BTreeMap::new());
        rounds.look_at = Instant::now() + Duration::from_secs(300);
        assert_eq!(rounds.who_has_jobs(fails()), nobody);
        assert!(rounds.look_at <= Instant::now() + ASK_AGAIN, "it is asked again soon");
        assert_eq!([rounds.who_has_jobs(fails()), rounds.who_has_jobs(fails())], [nobody.clone(), Jobs::Unknown]);
        assert_eq!(rounds.who_has_jobs(fails()), Jobs::Unknown, "also in further rounds");
        assert_eq!(rounds.who_has_jobs(Ok(nobody.clone())), nobody);
        assert_eq!(rounds.who_has_jobs(fails()), nobody, "another bad moment");
    }

    #[test]
    fn a_letter_that_can_never_be_delivered_is_given_up_at_once_and_holds_up_no_other() {
        let mut desk = Desk::new(|_, _| ());
        desk.outbox().post(now(), a_letter(Way::Webhook, true));
        desk.outbox().post(now(), a_letter(Way::Webhook, false));
        assert_eq!(desk.send(), [1]);
        desk.rounds.hear(Event::Undeliverable { number: 1, why: "a frame is too large".into() });
        let heard: Vec<Input> = desk.inputs.try_iter().collect();
        assert!(
            matches!(&heard[..], [Input::Delivery(Delivery { result: Err(why), .. })] if why.contains("too large"))
        );
        assert_eq!(desk.send(), [2], "the next one");
        assert_eq!(desk.outbox().drain().len(), 1);
    }

    /// These users' tokens end soon, and the issuer is down.
    fn standings(users: &[&str]) -> Standings {
        let credential = |user: &&str| Standing {
            refresh_ends: Some(now().plus(Duration::from_secs(600))),
            ..standing::of_tests(user)
        };
        let outage = Some(Outage { kind: Kind::Timeout, since: now(), times: 9 });
        let grid = Provider { name: "grid".into(), outage, living: 1, soonest: None, well: false };
        let credentials = users.iter().map(credential).collect();
        Standings { credentials, providers: vec![grid], sites: Vec::new() }
    }

    #[test]
    fn while_the_mail_map_cannot_be_read_users_wait_and_admins_are_told_each_by_a_letter_of_their_own() {
        let mut desk = Desk::new(|home, notices| notices.mail_map = Some(home.join("map")));
        let all = standings(&["alice", "bob"]);
        let not_told = desk.look(&all);
        assert_eq!((not_told.len(), not_told[0].0.as_str()), (1, "users (2)"));
        assert!(not_told[0].1.contains("notices.mail_map /") && not_told[0].1.contains("No such file"), "{not_told:?}");
        assert_eq!(desk.letters(), ["one@example.org", "two@example.org"]);
        for bad in [vec![0xff], vec![b' '; 4_194_305]] {
            fs::write(desk.home.path().join("map"), bad).unwrap();
            assert_eq!(desk.look(&all).len(), 1);
        }
        assert_eq!(desk.letters(), [""; 0]);
        fs::write(desk.home.path().join("map"), "alice a@example.org\n").unwrap();
        let not_told = desk.look(&all);
        assert_eq!((not_told.len(), not_told[0].0.as_str()), (1, "user bob"), "{not_told:?}");
        assert!(not_told[0].1.contains("does not name this user"), "{not_told:?}");
        assert_eq!(desk.letters(), ["one@example.org", "two@example.org", "a@example.org"]);
        assert_eq!(desk.look(&all), [], "nobody is told twice");
        assert_eq!(desk.letters(), [""; 0]);
    }

    #[test]
    fn a_full_outbox_has_room_for_admins_and_users_are_told_once_there_is_room() {
        let mut desk = Desk::new(|_, notices| notices.mail_to = Some("{user}@example.org".into()));
        for _ in 0..MOST {
            desk.outbox().post(now(), a_letter(Way::Slack, false));
        }
        let not_told = desk.look(&standings(&["alice"]));
        assert_eq!((not_told.len(), not_told[0].0.as_str()), (1, "users (1)"));
        assert!(not_told[0].1.starts_with("too many letters wait"), "{not_told:?}");
        assert_eq!(desk.letters(), ["one@example.org", "two@example.org"]);
        assert_eq!(desk.look(&standings(&["alice"])), []);
        assert_eq!(desk.letters(), ["one@example.org", "two@example.org", "alice@example.org"]);
        // Not even the admins' fit: nothing is noted.
        while desk.outbox().room(true) > 0 {
            desk.outbox().post(now(), a_letter(Way::Slack, true));
        }
        desk.outbox().memory = Memory::default();
        let not_told = desk.look(&standings(&["bob"]));
        assert_eq!((not_told.len(), not_told[0].0.as_str()), (1, "those of a whole round"));
        assert_eq!(desk.letters(), [""; 0]);
        assert_eq!(desk.outbox().memory, Memory::default());
        assert_eq!(desk.look(&standings(&["bob"])), []);
        assert_eq!(desk.letters().last().unwrap(), "bob@example.org");
    }
}
