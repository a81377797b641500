//! Visits: who came with which key, and how far each approval is. In memory, bounded in number and time.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, Instant},
};

use super::{bucket::Bucket, flow::Away};
use crate::{
    core::{approval::Request, key_file::Item, secret::ApprovalKey, snapshot::State},
    error::Kind,
};

/// How long a visit lasts, unless its key ends earlier.
const LIFE: Duration = Duration::from_secs(3600);
/// Visits at one time; the oldest goes for the newest.
const MOST: usize = 2000;
/// Visits by one key at one time (link checkers of mail and chat open links, too).
const MOST_BY_KEY: usize = 8;

/// Approvals that a visit may begin: so many at once, then so many a second.
const TRIES: u32 = 20;
const TRIES_PER_SECOND: u32 = 1;

/// All visits.
#[derive(Debug, Default)]
pub struct Sessions {
    by_id: HashMap<String, Session>,
    began: u64,
}

/// One visit.
pub struct Session {
    /// The key that opened it.
    pub key: ApprovalKey,
    /// Whose jobs.
    pub user: String,
    /// Every form carries it.
    pub token: String,
    /// What is asked for.
    pub entries: Vec<Entry>,
    /// What is left of the approvals that it may begin.
    pub tries: Bucket,
    until: Instant,
    number: u64,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("user", &self.user).field("entries", &self.entries).finish_non_exhaustive()
    }
}

/// One credential of a visit.
#[derive(Debug)]
pub struct Entry {
    /// What is asked for.
    pub item: Item,
    /// Index of its provider.
    pub provider: usize,
    /// How far it is.
    pub stage: Stage,
}

/// How far an approval is.
#[derive(Debug)]
pub enum Stage {
    /// Nothing happened yet.
    Open,
    /// The browser was sent to the issuer.
    Away(Away),
    /// The issuer's code is being redeemed.
    Redeeming,
    /// The refresh token is stored; how the credential stands, as far as the keeper knows.
    Stored(Option<(State, Option<Kind>)>),
    /// It did not work, and why.
    Failed(String),
}

impl Stage {
    /// Whether the user may (still, or again) be sent to the issuer.
    pub fn may_begin(&self) -> bool {
        matches!(self, Self::Open | Self::Away(_) | Self::Failed(_))
    }
}

impl Sessions {
    /// Begin a visit; gives the cookie's value.
    pub fn begin(&mut self, key: ApprovalKey, request: Request, now: Instant) -> String {
        self.by_id.retain(|_, session| session.until > now);
        let same_key = |session: &Session| same(session.key.expose(), key.expose());
        if self.by_id.values().filter(|session| same_key(session)).count() >= MOST_BY_KEY {
            self.remove_oldest(same_key);
        } else if self.by_id.len() >= MOST {
            self.remove_oldest(|_| true);
        }
        self.began += 1;
        let entries = request.items.into_iter();
        let session = Session {
            user: request.user,
            token: random(),
            entries: entries.map(|(item, provider)| Entry { item, provider, stage: Stage::Open }).collect(),
            tries: Bucket::new(TRIES, TRIES_PER_SECOND, now),
            until: now + LIFE.min(Duration::from_secs(request.seconds_left)),
            number: self.began,
            key,
        };
        let id = random();
        self.by_id.insert(id.clone(), session);
        id
    }

    fn remove_oldest(&mut self, among: impl Fn(&Session) -> bool) {
        let those = self.by_id.iter().filter(|(_, session)| among(session));
        let oldest = those.min_by_key(|(_, session)| session.number).map(|(id, _)| id.clone());
        oldest.and_then(|id| self.by_id.remove(&id));
    }

    /// The visit of a cookie.
    pub fn find(&mut self, id: &str, now: Instant) -> Option<&mut Session> {
        self.by_id.get_mut(id).filter(|session| session.until > now)
    }
}

/// 256 random bits, fit for URLs and cookies.
pub fn random() -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let mut bytes = [0; 32];
    // Without randomness nothing may go on; the next lines would hand out what can be guessed.
    while aws_lc_rs::rand::fill(&mut bytes).is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Equal, in a time that does not tell where they differ.
pub fn same(a: &str, b: &str) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(user: &str) -> Request {
        Request { user: user.into(), seconds_left: 43_200, items: Vec::new() }
    }

    fn key(digit: char) -> ApprovalKey {
        ApprovalKey::parse(&digit.to_string().repeat(64)).unwrap()
    }

    #[test]
    fn a_visit_ends_in_time_and_with_its_key() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        let long = sessions.begin(key('a'), request("alice"), now);
        let short = sessions.begin(key('b'), Request { seconds_left: 10, ..request("bob") }, now);
        assert_eq!(sessions.find(&long, now).unwrap().user, "alice");
        assert_eq!(sessions.find(&short, now).unwrap().user, "bob");
        assert!(sessions.find(&short, now + Duration::from_secs(11)).is_none());
        assert!(sessions.find(&long, now + LIFE + Duration::from_secs(1)).is_none());
        assert!(sessions.find("", now).is_none() && long != short && long.len() == 43);
    }

    #[test]
    fn no_key_and_no_crowd_fills_the_memory_and_the_oldest_goes_first() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        let first = sessions.begin(key('a'), request("alice"), now);
        let ids: Vec<_> = (0..MOST_BY_KEY).map(|_| sessions.begin(key('a'), request("alice"), now)).collect();
        assert!(sessions.find(&first, now).is_none(), "the oldest of this key");
        assert!(ids.iter().all(|id| sessions.find(id, now).is_some()));
        for n in 0..MOST + 10 {
            let key = ApprovalKey::parse(&format!("{n:064x}")).unwrap();
            sessions.begin(key, request("bob"), now);
        }
        assert_eq!(sessions.by_id.len(), MOST);
        assert!(ids.iter().all(|id| sessions.find(id, now).is_none()));
    }
}
