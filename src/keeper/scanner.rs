//! Looks at directories, on one thread: hints before the full scan, which it interleaves user by user.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError},
    },
    time::{Duration, Instant},
};

use super::{
    driver::{Clock, Input, Owner},
    told::Told,
};
use crate::{
    core::{
        id::{CredentialId, Handle, Service, UserName},
        planner::{Event, Found},
        time::Tick,
    },
    spool::{Hint, Spool, Watch},
};

/// A full scan that a hint of overflow asks for comes at most this often.
const BETWEEN_FULL_SCANS: Duration = Duration::from_millis(200);
/// Full scans come at least this often where the system refuses watches.
const BLIND_SCAN: Duration = Duration::from_secs(60);

/// What the scanner is told.
#[derive(Debug)]
pub enum Look {
    /// One user.
    User(UserName),
    /// Everything.
    All,
    /// The owners of services changed.
    Owners(Vec<Arc<Owner>>),
}

/// Run until the channel closes. `every`: a full scan runs at least that often.
pub fn run(
    spool: &Arc<Spool>,
    mut owners: Vec<Arc<Owner>>,
    looks: &Receiver<Look>,
    inputs: &Sender<Input>,
    clock: Clock,
    every: Duration,
    mut watch: Option<Watch>,
) {
    let mut urgent: BTreeSet<UserName> = BTreeSet::new();
    let mut sweep: VecDeque<UserName> = VecDeque::new();
    let mut sweeping: Option<(Tick, BTreeSet<UserName>)> = None;
    let mut told = Told::default();
    let mut again = true;
    let mut last = Instant::now().checked_sub(BETWEEN_FULL_SCANS).unwrap_or_else(Instant::now);
    loop {
        // Take every message that is there; sleep only if there is nothing to do.
        loop {
            let idle = urgent.is_empty() && sweep.is_empty() && sweeping.is_none();
            let message = if idle {
                let wait = if again {
                    BETWEEN_FULL_SCANS.saturating_sub(last.elapsed())
                } else {
                    let blind = watch.as_ref().is_none_or(Watch::limited);
                    (if blind { every.min(BLIND_SCAN) } else { every }).saturating_sub(last.elapsed())
                };
                match looks.recv_timeout(wait) {
                    Err(RecvTimeoutError::Timeout) => {
                        again = true;
                        break;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                    Ok(message) => message,
                }
            } else {
                match looks.try_recv() {
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                    Ok(message) => message,
                }
            };
            match message {
                Look::User(user) => {
                    urgent.insert(user);
                }
                Look::All => again = true,
                Look::Owners(new) => {
                    owners = new;
                    again = true;
                }
            }
        }
        if let Some(user) = urgent.pop_first() {
            look(spool, &owners, &user, inputs, clock, watch.as_mut(), &mut told);
        } else if let Some(user) = sweep.pop_front() {
            look(spool, &owners, &user, inputs, clock, watch.as_mut(), &mut told);
        } else if let Some((as_of, users)) = sweeping.take() {
            if inputs.send(Input::FullScan { as_of, users }).is_err() {
                return;
            }
        } else if again && last.elapsed() >= BETWEEN_FULL_SCANS {
            again = false;
            last = Instant::now();
            if let Err(error) = spool.verify() {
                drop(inputs.send(Input::SpoolGone(error)));
                return;
            }
            let as_of = clock.now().tick;
            match spool.users() {
                Ok(users) => {
                    sweeping = Some((as_of, users.iter().cloned().collect()));
                    sweep = users.into();
                }
                Err(error) => tracing::error!(%error, "cannot list the credential directory"),
            }
        }
    }
}

fn look(
    spool: &Spool,
    owners: &[Arc<Owner>],
    user: &UserName,
    inputs: &Sender<Input>,
    clock: Clock,
    watch: Option<&mut Watch>,
    told: &mut Told<(UserName, String)>,
) {
    if let Some(watch) = watch {
        watch.user(user);
    }
    let as_of = clock.now().tick;
    match spool.scan_user(user, &|base| owner_of(owners, base).map(|(_, service, handle)| (service, handle))) {
        Ok(seen) => {
            let found = seen
                .into_iter()
                .filter_map(|seen| {
                    let (provider, ..) = owner_of(owners, &seen.id.base())?;
                    Some(Found {
                        id: seen.id,
                        provider,
                        top: seen.top,
                        use_file: seen.use_file,
                        refresh_ends: seen.refresh_ends,
                        top_newer: seen.top_newer,
                    })
                })
                .collect();
            told.retain(|(other, _)| other != user);
            drop(inputs.send(Input::Event(Event::Scanned { user: user.clone(), as_of, found })));
        }
        Err(error) => {
            if told.tell(as_of, (user.clone(), error.to_string())) {
                tracing::warn!(%user, %error, "cannot look at the user's directory");
            }
        }
    }
}

/// The provider of a base name: the service named exactly so, else the part before the first `_`.
pub(super) fn owner_of(owners: &[Arc<Owner>], base: &str) -> Option<(usize, Service, Option<Handle>)> {
    let find = |name: &str| owners.iter().position(|o| o.provider.services.iter().any(|s| s == name));
    if let Some(provider) = find(base) {
        let id = CredentialId::from_base(UserName::parse("x").ok()?, base).ok()?;
        return Some((provider, id.service, id.handle));
    }
    let id = CredentialId::from_base(UserName::parse("x").ok()?, base).ok()?;
    find(id.service.as_str()).map(|provider| (provider, id.service, id.handle))
}

impl From<Hint> for Look {
    fn from(hint: Hint) -> Self {
        match hint {
            Hint::User(user) => Self::User(user),
            Hint::All => Self::All,
        }
    }
}
