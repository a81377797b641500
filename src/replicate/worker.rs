//! The replicator's loop: frames in, deliveries at once, frames out as they end. Each delivery has its site's
//! `timeout`, whatever the site does: accepts and never answers, answers late, answers twice.

use std::{
    collections::HashMap,
    io,
    os::unix::net::UnixStream,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    account::{Account, Accounts},
    envelope::KeyRing,
    frame::{FromReplicator, Note, ToReplicator},
    parcel::Parcel,
    sandbox,
    threads::{THREADS, Threads},
};
use crate::{
    config::site_settings::{Site, SiteKind},
    core::{
        delivery::{Delivered, Undelivered},
        id::{CredentialId, UserName},
        secret::KeyText,
        time::Timestamp,
    },
    courier::{child, frame},
    error::{Kind, exit},
};

/// Beyond the site's own `timeout`, for ending what it started.
const GRACE: Duration = Duration::from_secs(5);

/// Threads for what blocks and is no site's own, such as the look-up of names.
const OTHER_THREADS: usize = 256;

/// Between two questions how a site's endpoint is, at least.
const ENDPOINT_LOOK: Duration = Duration::from_secs(60);
/// With many sites so much of it for each: most of what a service allows us is for deliveries.
const ENDPOINT_SHARE: Duration = Duration::from_secs(6);

/// A site and what is kept for it between deliveries.
struct Place {
    site: Site,
    ring: Option<KeyRing>,
    notes: Notes,
    shared: Arc<Shared>,
    threads: Threads,
}

/// What all sites share.
#[derive(Default)]
struct Shared {
    ssh: Arc<super::ssh::Sessions>,
    globus: Accounts<super::globus::Account>,
    facilities: Accounts<Account>,
    kubernetes: super::kubernetes::Clusters,
    receipts: Arc<Receipts>,
}

/// What a site wants to have remembered.
#[derive(Debug)]
pub struct Notes {
    site: usize,
    known: Mutex<HashMap<String, String>>,
    to: mpsc::Sender<FromReplicator>,
    receipts: Arc<Receipts>,
}

/// Who waits for a note to be on disk.
#[derive(Debug, Default)]
struct Receipts {
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<bool>>>,
}

impl Receipts {
    fn expect(&self) -> (u64, oneshot::Receiver<bool>) {
        let (number, (told, kept)) = (self.next.fetch_add(1, Ordering::Relaxed), oneshot::channel());
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(number, told);
        (number, kept)
    }

    fn kept(&self, number: u64, durable: bool) {
        if let Some(told) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&number) {
            // Whoever waited may have given up.
            told.send(durable).ok();
        }
    }
}

#[cfg(test)]
impl Default for Notes {
    /// Nothing is noted, and nobody keeps it.
    fn default() -> Self {
        Self { site: 0, known: Mutex::default(), to: mpsc::channel(1).0, receipts: Arc::default() }
    }
}

impl Notes {
    /// What is noted.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Note it, here and in the keeper's journal.
    pub async fn put(&self, key: &str, value: Option<&str>) {
        self.pass_on(key, value, None).await;
    }

    /// Note what must not be lost: it is in the keeper's journal, on disk, when this is over.
    ///
    /// # Errors
    /// It cannot be, and is not noted here either.
    pub async fn keep(&self, key: &str, value: &str) -> Result<(), Undelivered> {
        let (receipt, kept) = self.receipts.expect();
        self.pass_on(key, Some(value), Some(receipt)).await;
        if kept.await.unwrap_or(false) {
            return Ok(());
        }
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        let words = "the journal here takes no note of what was to be done, so it was not; see evercred's log";
        Err(Undelivered::new(Kind::NoSpace, words))
    }

    async fn pass_on(&self, key: &str, value: Option<&str>, receipt: Option<u64>) {
        {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            match value {
                Some(value) => drop(known.insert(key.to_owned(), value.to_owned())),
                None => drop(known.remove(key)),
            }
        }
        let note = Note { site: self.site, key: key.to_owned(), value: value.map(str::to_owned) };
        // The keeper is gone if nobody takes it.
        if self.to.send(FromReplicator::Remember { note, receipt }).await.is_err()
            && let Some(receipt) = receipt
        {
            self.receipts.kept(receipt, false);
        }
    }
}

/// Run as the replicator until the keeper's end of standard input closes.
#[must_use]
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::from(exit::OK),
        // The keeper was told in a frame, if it still listens; the exit code is for nobody else.
        Err(_) => ExitCode::from(exit::FAILED),
    }
}

fn run() -> io::Result<()> {
    let mut stream = child::stream()?;
    let Some(ToReplicator::Configure { mut sites, ids, notes }) = frame::read_first(&mut stream)? else {
        return Err(io::Error::other("the first frame is not Configure"));
    };
    let (done, ended) = mpsc::channel::<FromReplicator>(256);
    let prepared = sandbox::enter(ids.as_ref(), &mut sites).and_then(|sandbox| {
        let shared = Arc::new(Shared::default());
        let places = sites.into_iter().enumerate().map(|(index, site)| place(index, site, &notes, &shared, &done));
        Ok((places.collect::<Result<Vec<_>, _>>()?, sandbox))
    });
    let (places, sandbox) = match prepared {
        Ok(prepared) => prepared,
        Err(why) => {
            frame::write(&mut stream, &FromReplicator::Failed { why: why.clone() })?;
            return Err(io::Error::other(why));
        }
    };
    frame::write(&mut stream, &FromReplicator::Ready { sandbox })?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(OTHER_THREADS + places.len() * THREADS).build()?;
    let result = runtime.block_on(serve(stream, places, done, ended));
    // A file system that hangs must not keep us from ending.
    runtime.shutdown_background();
    result
}

fn place(
    index: usize,
    site: Site,
    notes: &[Note],
    shared: &Arc<Shared>,
    to: &mpsc::Sender<FromReplicator>,
) -> Result<Place, String> {
    let ring = match &site.sealing {
        Some(sealing) => Some(KeyRing::new(&sealing.keys).map_err(|e| format!("site {}: {e}", site.name))?),
        None => None,
    };
    let known = notes.iter().filter(|note| note.site == index);
    let known = known.filter_map(|note| Some((note.key.clone(), note.value.clone()?))).collect();
    let notes = Notes { site: index, known: Mutex::new(known), to: to.clone(), receipts: Arc::clone(&shared.receipts) };
    Ok(Place { site, ring, notes, shared: Arc::clone(shared), threads: Threads::default() })
}

async fn serve(
    stream: UnixStream,
    places: Vec<Place>,
    done: mpsc::Sender<FromReplicator>,
    ended: mpsc::Receiver<FromReplicator>,
) -> io::Result<()> {
    let places: Vec<Arc<Place>> = places.into_iter().map(Arc::new).collect();
    let (mut requests, sender) = child::frames(stream, ended)?;
    let with_endpoints = places.iter().enumerate().filter(|(_, at)| matches!(at.site.kind, SiteKind::GlobusCompute(_)));
    let looks: Vec<_> = with_endpoints.map(|(site, place)| (site, Arc::clone(place))).collect();
    let many = u32::try_from(looks.len()).unwrap_or(u32::MAX);
    let every = ENDPOINT_LOOK.max(ENDPOINT_SHARE.saturating_mul(many));
    for (turn, (site, place)) in (0_u32..).zip(looks) {
        let first = every / many * turn;
        tokio::spawn(look_at_endpoint(site, place, done.clone(), first, every));
    }
    while let Some(frame) = requests.next().await? {
        let (number, site, user, base, job) = match frame {
            ToReplicator::Configure { .. } => continue,
            ToReplicator::Kept { receipt, durable } => {
                // All sites share them.
                if let Some(place) = places.first() {
                    place.shared.receipts.kept(receipt, durable);
                }
                continue;
            }
            ToReplicator::Deliver { number, site, user, base, generation, expiry, content } => {
                (number, site, user, base, Job::Deliver { generation, expiry, content })
            }
            ToReplicator::Withdraw { number, site, user, base, generation } => {
                (number, site, user, base, Job::Withdraw { generation })
            }
        };
        let place = places.get(site).map(Arc::clone);
        let id = UserName::parse(&user).and_then(|user| CredentialId::from_base(user, &base));
        let done = done.clone();
        tokio::spawn(async move {
            let result = match (place, id) {
                (Some(place), Ok(id)) => in_time(place, id, job).await,
                _ => Err(Undelivered::new(Kind::SiteError, "no such site or credential")),
            };
            // The keeper is gone if nobody takes it.
            done.send(FromReplicator::Ended { number, result }).await.ok();
        });
    }
    // The keeper is gone: whatever is under way has nobody to go to.
    sender.abort();
    Ok(())
}

/// Ask for as long as we run how a site's endpoint is, and tell what is news.
async fn look_at_endpoint(
    site: usize,
    place: Arc<Place>,
    to: mpsc::Sender<FromReplicator>,
    first: Duration,
    every: Duration,
) {
    let SiteKind::GlobusCompute(globus) = &place.site.kind else { return };
    tokio::time::sleep(first).await;
    let mut before = None;
    loop {
        let state = match super::globus::account(&place.shared.globus, &place.site, globus) {
            Ok(account) => account.endpoint(globus).await,
            Err(error) => Err(error),
        };
        let now = match state {
            Ok(state) => (format!("the service says that the endpoint is {state}"), state != super::globus::ONLINE),
            Err(error) => (format!("the service does not say how the endpoint is ({})", error.kind), false),
        };
        if before.as_ref() != Some(&now) {
            let (words, offline) = now.clone();
            before = Some(now);
            if to.send(FromReplicator::Endpoint { site, words, offline }).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// What is to be done for a credential at a site.
enum Job {
    Deliver { generation: u64, expiry: Option<Timestamp>, content: KeyText },
    Withdraw { generation: u64 },
}

async fn in_time(place: Arc<Place>, id: CredentialId, job: Job) -> Result<Delivered, Undelivered> {
    let patience = place.site.timeout + GRACE;
    let name = place.site.name.clone();
    let done = async {
        match job {
            Job::Deliver { generation, expiry, content } => {
                attempt(place, Parcel { id, generation, expiry, content }).await
            }
            Job::Withdraw { generation } => withdraw(&place, &id, generation).await,
        }
    };
    match tokio::time::timeout(patience, done).await {
        Ok(result) => result,
        Err(_) => Err(Undelivered::new(Kind::SiteTimeout, format!("{name} timed out: it did not answer in time"))),
    }
}

async fn attempt(place: Arc<Place>, parcel: Parcel) -> Result<Delivered, Undelivered> {
    match &place.site.kind {
        SiteKind::Directory { directory } => {
            let one = Arc::clone(&place);
            let job = move || match &one.site.kind {
                SiteKind::Directory { directory } => {
                    super::directory::deliver(&one.site, directory, one.ring.as_ref(), &parcel)
                }
                _ => Err(Undelivered::new(Kind::SiteError, "not a directory")),
            };
            place.threads.run(directory, Instant::now() + place.site.timeout, job).await
        }
        SiteKind::Exec { command, directory } => {
            super::exec::deliver(&place.site, command, directory.as_deref(), place.ring.as_ref(), &parcel).await
        }
        SiteKind::Ssh(ssh) => {
            place.shared.ssh.deliver(&place.site, ssh, place.ring.as_ref(), &place.notes, &parcel).await
        }
        SiteKind::GlobusCompute(globus) => {
            let Some(ring) = &place.ring else { return Err(Undelivered::new(Kind::SiteKey, "no key")) };
            let account = super::globus::account(&place.shared.globus, &place.site, globus)?;
            super::globus::deliver(&place.site, globus, &account, ring, &place.notes, &parcel).await
        }
        SiteKind::Credd(credd) => super::credd::deliver(&place.site, credd, &parcel).await,
        SiteKind::Sfapi(sfapi) => {
            let Some(ring) = &place.ring else { return Err(Undelivered::new(Kind::SiteKey, "no key")) };
            let accounts = &place.shared.facilities;
            super::sfapi::deliver(&place.site, sfapi, accounts, ring, &place.notes, &parcel).await
        }
        SiteKind::Iri(iri) => {
            let (ring, accounts) = (place.ring.as_ref(), &place.shared.facilities);
            super::iri::deliver(&place.site, iri, accounts, ring, &place.notes, &parcel).await
        }
        SiteKind::Kubernetes(kubernetes) => {
            place.shared.kubernetes.deliver(&place.site, kubernetes, &place.threads, &parcel).await
        }
    }
}

/// Only kinds that [`SiteKind::withdraws`] are asked.
async fn withdraw(place: &Place, id: &CredentialId, generation: u64) -> Result<Delivered, Undelivered> {
    match &place.site.kind {
        SiteKind::Kubernetes(kubernetes) => {
            place.shared.kubernetes.withdraw(&place.site, kubernetes, &place.threads, id, generation).await
        }
        other => Err(Undelivered::new(Kind::SiteError, format!("{} takes nothing away", other.label()))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::fcntl::{Flock, FlockArg};

    use super::*;
    use crate::config::tests::sites;

    #[tokio::test]
    async fn a_note_that_must_not_be_lost_is_kept_when_the_keeper_says_so_and_not_before() {
        let (to, mut from) = mpsc::channel(1);
        let notes = Arc::new(Notes { to, ..Notes::default() });
        for durable in [true, false] {
            let keeping = tokio::spawn({
                let notes = Arc::clone(&notes);
                async move { notes.keep("mv x", "7").await }
            });
            let Some(FromReplicator::Remember { note, receipt: Some(receipt) }) = from.recv().await else {
                panic!("a note with a receipt")
            };
            assert_eq!((note.key.as_str(), note.value.as_deref()), ("mv x", Some("7")));
            // The receipt of another one is none of this.
            notes.receipts.kept(receipt + 1, true);
            tokio::task::yield_now().await;
            assert!(!keeping.is_finished());
            notes.receipts.kept(receipt, durable);
            let end = keeping.await.unwrap();
            assert_eq!(end.map_err(|error| error.kind), if durable { Ok(()) } else { Err(Kind::NoSpace) });
            assert_eq!(notes.value("mv x").is_some(), durable);
        }
        drop(from);
        assert!(notes.keep("mv x", "7").await.is_err(), "nobody is there to keep it");
    }

    #[test]
    fn a_site_whose_file_system_hangs_holds_few_threads_and_delays_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().display();
        let text: String = ["stuck", "well"]
            .map(|name| {
                fs::create_dir(dir.path().join(name)).unwrap();
                format!(
                    "[site.{name}]\nkind = \"directory\"\nservices = [\"w\"]\ndirectory = \"{home}/{name}\"\ntimeout = \"1s\"\n"
                )
            })
            .concat();
        // A delivery blocks, on its thread, until it has the lock of its sequence.
        let held: Vec<_> = (0..12)
            .map(|n| {
                let file = fs::File::create(dir.path().join(format!("stuck/.u{n}_w.seq"))).unwrap();
                Flock::lock(file, FlockArg::LockExclusive).unwrap()
            })
            .collect();
        let (to, _from) = mpsc::channel(1);
        let shared = Arc::default();
        let places: Vec<_> = sites(&text)
            .into_iter()
            .enumerate()
            .map(|(index, site)| Arc::new(place(index, site, &[], &shared, &to).unwrap()))
            .collect();
        let [stuck, well] = &places[..] else { panic!("two sites") };
        let deliver = |place: &Arc<Place>, n: u32| {
            let id = CredentialId::from_base(UserName::parse(&format!("u{n}")).unwrap(), "w").unwrap();
            let content = KeyText::parse("a-token").unwrap();
            in_time(Arc::clone(place), id, Job::Deliver { generation: 7, expiry: None, content })
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).build().unwrap();
        runtime.block_on(async {
            let hanging: Vec<_> = (0..12).map(|n| tokio::spawn(deliver(stuck, n))).collect();
            tokio::task::yield_now().await;
            assert_eq!(deliver(well, 99).await, Ok(Delivered::Written));
            for one in hanging {
                assert_eq!(one.await.unwrap().unwrap_err().kind, Kind::SiteTimeout);
            }
            drop(held);
            // What came back gives its turn back.
            while stuck.threads.free() < THREADS {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(deliver(stuck, 98).await, Ok(Delivered::Written));
        });
    }
}
