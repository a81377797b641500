//! Which groups of this host a user is in, as far as the name service tells. One that does not answer is no news: it may
//! be away for a moment, and whoever was in a group then still is, until it says something else.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use nix::unistd::{Gid, Group, User, getgrouplist};

use crate::core::id::UserName;

/// How long an answer is believed.
const LIFE: Duration = Duration::from_secs(600);
/// How soon it is asked again after none.
pub const AGAIN: Duration = Duration::from_secs(60);

/// What was told of users so far.
#[derive(Debug, Default)]
pub struct Groups(HashMap<UserName, Known>);

#[derive(Debug)]
struct Known {
    asked: Instant,
    answered: bool,
    /// The last answer there was.
    groups: Option<BTreeSet<String>>,
}

impl Groups {
    /// The names of a user's groups, by the last answer of `ask`, which is asked if that is old; none: there was no answer
    /// yet.
    pub fn of(
        &mut self,
        user: &UserName,
        now: Instant,
        ask: impl FnOnce(&UserName) -> Option<BTreeSet<String>>,
    ) -> Option<&BTreeSet<String>> {
        let believed = |known: &Known| now.duration_since(known.asked) < if known.answered { LIFE } else { AGAIN };
        if !self.0.get(user).is_some_and(believed) {
            let answer = ask(user);
            let answered = answer.is_some();
            if !answered && self.0.get(user).is_none_or(|known| known.answered) {
                tracing::warn!(%user, "the name service does not tell the user's groups; what was known of them counts");
            }
            let groups = answer.or_else(|| self.0.remove(user)?.groups);
            self.0.insert(user.clone(), Known { asked: now, answered, groups });
        }
        self.0.get(user)?.groups.as_ref()
    }
}

/// Ask this host's name service; none: it does not tell, or does not know the user (as where a directory is away).
#[must_use]
pub fn ask(user: &UserName) -> Option<BTreeSet<String>> {
    let account = User::from_name(user.as_str()).ok()??;
    let ids = ids(&account)?;
    // A group without a name is in no rule.
    let names =
        ids.into_iter().filter_map(|gid| Group::from_gid(gid).map(|group| group.map(|group| group.name)).transpose());
    names.collect::<Result<_, _>>().ok()
}

/// All groups of an account; none: the name service does not tell.
#[must_use]
pub fn ids(account: &User) -> Option<Vec<Gid>> {
    let name = std::ffi::CString::new(account.name.as_str()).ok()?;
    getgrouplist(&name, account.gid).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_service_that_does_not_answer_takes_nobody_out_of_a_group() {
        let (alice, start) = (UserName::parse("alice").unwrap(), Instant::now());
        let mut groups = Groups::default();
        let told = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>());
        let mut of = |after: u64, answer: Option<BTreeSet<String>>| {
            let mut asked = false;
            let now = start + Duration::from_secs(after);
            let known = groups.of(&alice, now, |_| {
                asked = true;
                answer
            });
            (known.cloned(), asked)
        };
        assert_eq!(of(0, None), (None, true), "not known");
        assert_eq!(of(59, told(&["atlas"])), (None, false));
        assert_eq!(of(60, told(&["atlas"])), (told(&["atlas"]), true));
        assert_eq!(of(659, None), (told(&["atlas"]), false));
        assert_eq!(of(660, None), (told(&["atlas"]), true), "away");
        assert_eq!(of(720, None), (told(&["atlas"]), true), "asked soon again");
        assert_eq!(of(780, told(&[])), (told(&[]), true), "a word of it counts");
    }

    #[test]
    fn this_host_knows_root_and_nobody_by_a_name_that_is_not_there() {
        assert!(ask(&UserName::parse("root").unwrap()).is_some_and(|groups| groups.contains("root")));
        assert_eq!(ask(&UserName::parse("nobody.is.called.this").unwrap()), None);
    }
}
