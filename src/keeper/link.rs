//! Runs a process beside the keeper: the same binary with a hidden flag, its end of a socketpair as standard input,
//! nothing in its environment. When it dies it is started again, 100 ms to 10 s later; what it had been asked is
//! reported as lost. There are two such processes, the courier and the replicator: each is a [`Peer`].

use std::{
    io::{self, Write},
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream, unix::process::CommandExt},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};

use super::driver::Input;
use crate::{
    config::settings::{Outward, Provider},
    courier::frame::{self, FromCourier, ToCourier},
};

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(10);
/// A process that does not read for this long counts as dead.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);
/// And so does one that is not ready this long after its start.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// One that was told to end has so long, before it is killed.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// And so long until another one is started all the same.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// The other process, as the link sees it.
pub trait Peer: Send + 'static {
    /// Frames to it.
    type To: Serialize;
    /// Frames from it.
    type From: DeserializeOwned;
    /// Its name in the process list.
    const NAME: &'static str;
    /// Arguments that make this binary such a process.
    fn args(&self) -> &[String];
    /// Its first frame.
    fn configure(&self) -> Self::To;
    /// Whether this frame says that it is configured, and may be sent frames.
    fn is_ready(frame: &Self::From) -> bool;
    /// Pass a frame on; false: nobody listens here any more.
    ///
    /// # Errors
    /// It says that it cannot work.
    fn take(&self, pid: u32, frame: Self::From) -> io::Result<bool>;
    /// It is gone; false: nobody wants another one.
    fn down(&self, why: String) -> bool;
}

/// The courier.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Arguments that make this binary a courier.
    pub args: Vec<String>,
    /// Who it becomes.
    pub become_ids: Option<(u32, u32)>,
    /// What it is told.
    pub providers: Vec<Provider>,
    /// What it serves and tells besides.
    pub outward: Outward,
    /// Tells this link's inputs from those of an earlier one.
    pub generation: u64,
    /// To the driver.
    pub inputs: Sender<Input>,
}

impl Peer for Recipe {
    type To = ToCourier;
    type From = FromCourier;
    const NAME: &'static str = "evercred-courier";

    fn args(&self) -> &[String] {
        &self.args
    }

    fn configure(&self) -> ToCourier {
        ToCourier::Configure {
            providers: self.providers.clone(),
            become_ids: self.become_ids,
            outward: Box::new(self.outward.clone()),
        }
    }

    fn is_ready(frame: &FromCourier) -> bool {
        matches!(frame, FromCourier::Ready { .. })
    }

    fn take(&self, pid: u32, frame: FromCourier) -> io::Result<bool> {
        let generation = self.generation;
        let input = match frame {
            FromCourier::Ready { sandbox } => Input::CourierUp { generation, pid, sandbox },
            FromCourier::Answer { number, outcome, took } => Input::Answer { generation, number, outcome, took },
            FromCourier::Approval { number, ask } => Input::Approval { generation, number, ask },
            FromCourier::Revoked { number, result } => Input::Revoked { generation, number, result },
            FromCourier::Delivered { number, result } => Input::Delivered { number, result },
            FromCourier::WantPage => Input::WantPage { generation },
            FromCourier::WantRestart => Input::WantRestart { generation },
            FromCourier::WantFigures => Input::WantFigures { generation },
            FromCourier::Tell { warn: true, text } => {
                tracing::warn!("{text}");
                return Ok(true);
            }
            FromCourier::Tell { warn: false, text } => {
                tracing::info!("{text}");
                return Ok(true);
            }
            FromCourier::Probed { provider, facts } => Input::Probed { provider, facts },
            FromCourier::Failed { why } => return Err(io::Error::other(why)),
        };
        Ok(self.inputs.send(input).is_ok())
    }

    fn down(&self, why: String) -> bool {
        self.inputs.send(Input::CourierDown { generation: self.generation, why }).is_ok()
    }
}

/// The supervisor's handle; dropping it ends the process.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Mutex<Shared>>,
    generation: u64,
}

#[derive(Debug, Default)]
struct Shared {
    /// Our end, while it runs.
    stream: Option<UnixStream>,
    /// It takes requests.
    ready: bool,
    /// Nobody wants one any more.
    closed: bool,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// Start supervising. `generation` tells this link's inputs from those of an earlier one.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start<P: Peer>(peer: P, generation: u64) -> io::Result<Self> {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().name(P::NAME.into()).spawn(move || supervise(&peer, &theirs))?;
        Ok(Self { shared, generation })
    }

    /// Which link this is.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Send one frame.
    ///
    /// # Errors
    /// It is down, the supervisor will say so, too; or the frame is too large, which harms no other.
    pub fn send(&self, frame: &impl Serialize) -> io::Result<()> {
        let bytes = frame::encode(frame)?;
        let mut shared = lock(&self.shared);
        let ready = shared.ready;
        let Some(stream) = shared.stream.as_mut().filter(|_| ready) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        stream.write_all(&bytes).inspect_err(|_| drop(stream.shutdown(Shutdown::Both)))
    }

    /// End it, and have another one started.
    pub fn restart(&self) {
        if let Some(stream) = &lock(&self.shared).stream {
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    /// End it, and start no other.
    pub fn close(&self) {
        let mut shared = lock(&self.shared);
        shared.closed = true;
        if let Some(stream) = shared.stream.take() {
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

fn supervise<P: Peer>(peer: &P, shared: &Mutex<Shared>) {
    let mut backoff = BACKOFF_FIRST;
    loop {
        let started = Instant::now();
        let why = match one_life(peer, shared) {
            Ok(()) => "it ended".to_owned(),
            Err(error) => error.to_string(),
        };
        if lock(shared).closed || !peer.down(why) {
            return;
        }
        if started.elapsed() > Duration::from_secs(60) {
            backoff = BACKOFF_FIRST;
        }
        std::thread::sleep(backoff);
        backoff = (backoff * 2).min(BACKOFF_MOST);
    }
}

fn one_life<P: Peer>(peer: &P, shared: &Mutex<Shared>) -> io::Result<()> {
    let (mut ours, theirs) = UnixStream::pair()?;
    {
        let mut shared = lock(shared);
        if shared.closed {
            return Ok(());
        }
        shared.stream = Some(ours.try_clone()?);
    }
    let mut child = Command::new("/proc/self/exe")
        .arg0(P::NAME)
        .args(peer.args())
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .current_dir("/")
        .spawn()?;
    let result = converse(peer, shared, &mut ours, child.id());
    {
        let mut shared = lock(shared);
        shared.ready = false;
        shared.stream = None;
    }
    drop(ours.shutdown(Shutdown::Both));
    let asked = Instant::now();
    while child.try_wait()?.is_none() {
        if asked.elapsed() > END_PATIENCE {
            child.kill()?;
        }
        if asked.elapsed() > KILL_PATIENCE {
            // It sits in the kernel, with a file system that hangs; the next one does not wait for that.
            let reap = move || drop(child.wait());
            drop(std::thread::Builder::new().name("reaper".into()).spawn(reap)?);
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    result
}

fn converse<P: Peer>(peer: &P, shared: &Mutex<Shared>, ours: &mut UnixStream, pid: u32) -> io::Result<()> {
    ours.set_write_timeout(Some(WRITE_PATIENCE))?;
    frame::write_first(ours, &peer.configure())?;
    ours.set_read_timeout(Some(START_PATIENCE))?;
    let mut reader = io::BufReader::new(ours.try_clone()?);
    while let Some(frame) = frame::read::<P::From>(&mut reader)? {
        if P::is_ready(&frame) {
            ours.set_read_timeout(None)?;
            lock(shared).ready = true;
        }
        if !peer.take(pid, frame)? {
            return Ok(());
        }
    }
    Ok(())
}
