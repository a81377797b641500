//! Runs the courier: the same binary with a hidden flag, its end of a socketpair as standard input, nothing in its
//! environment. When it dies it is started again, 100 ms to 10 s later; what it had been asked is reported as lost.

use std::{
    io,
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream, unix::process::CommandExt},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    time::{Duration, Instant},
};

use super::driver::Input;
use crate::{
    config::settings::{Outward, Provider},
    courier::frame::{self, FromCourier, ToCourier},
};

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(10);
/// A courier that does not read for this long counts as dead.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// How to run a courier.
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
}

/// The supervisor's handle; dropping it ends the courier.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Mutex<Shared>>,
    generation: u64,
}

#[derive(Debug, Default)]
struct Shared {
    /// Our end, while a courier runs.
    stream: Option<UnixStream>,
    /// The courier takes requests.
    ready: bool,
    /// Nobody wants a courier any more.
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
    pub fn start(recipe: Recipe, generation: u64, inputs: Sender<Input>) -> io::Result<Self> {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("courier-link".into())
            .spawn(move || supervise(&recipe, generation, &theirs, &inputs))?;
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
    /// The courier is down; the supervisor will say so, too.
    pub fn send(&self, frame: &ToCourier) -> io::Result<()> {
        let mut shared = lock(&self.shared);
        let ready = shared.ready;
        let Some(stream) = shared.stream.as_mut().filter(|_| ready) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        frame::write(stream, frame).inspect_err(|_| drop(stream.shutdown(Shutdown::Both)))
    }

    /// End the courier, and start no other.
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

fn supervise(recipe: &Recipe, generation: u64, shared: &Mutex<Shared>, inputs: &Sender<Input>) {
    let mut backoff = BACKOFF_FIRST;
    loop {
        let started = Instant::now();
        let why = match one_life(recipe, generation, shared, inputs) {
            Ok(()) => "it ended".to_owned(),
            Err(error) => error.to_string(),
        };
        if lock(shared).closed || inputs.send(Input::CourierDown { generation, why }).is_err() {
            return;
        }
        if started.elapsed() > Duration::from_secs(60) {
            backoff = BACKOFF_FIRST;
        }
        std::thread::sleep(backoff);
        backoff = (backoff * 2).min(BACKOFF_MOST);
    }
}

fn one_life(recipe: &Recipe, generation: u64, shared: &Mutex<Shared>, inputs: &Sender<Input>) -> io::Result<()> {
    let (mut ours, theirs) = UnixStream::pair()?;
    {
        let mut shared = lock(shared);
        if shared.closed {
            return Ok(());
        }
        shared.stream = Some(ours.try_clone()?);
    }
    let mut child = Command::new("/proc/self/exe")
        .arg0("evercred-courier")
        .args(&recipe.args)
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .current_dir("/")
        .spawn()?;
    let result = converse(recipe, generation, shared, inputs, &mut ours, child.id());
    {
        let mut shared = lock(shared);
        shared.ready = false;
        shared.stream = None;
    }
    drop(ours.shutdown(Shutdown::Both));
    let patience = Instant::now();
    while child.try_wait()?.is_none() {
        if patience.elapsed() > Duration::from_secs(1) {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    result
}

fn converse(
    recipe: &Recipe,
    generation: u64,
    shared: &Mutex<Shared>,
    inputs: &Sender<Input>,
    ours: &mut UnixStream,
    pid: u32,
) -> io::Result<()> {
    ours.set_write_timeout(Some(WRITE_PATIENCE))?;
    let configure = ToCourier::Configure {
        providers: recipe.providers.clone(),
        become_ids: recipe.become_ids,
        outward: Box::new(recipe.outward.clone()),
    };
    frame::write(ours, &configure)?;
    let mut reader = io::BufReader::new(ours.try_clone()?);
    while let Some(frame) = frame::read::<FromCourier>(&mut reader)? {
        let input = match frame {
            FromCourier::Ready { sandbox } => {
                lock(shared).ready = true;
                Input::CourierUp { generation, pid, sandbox }
            }
            FromCourier::Answer { number, outcome, took } => Input::Answer { generation, number, outcome, took },
            FromCourier::Approval { number, ask } => Input::Approval { generation, number, ask },
            FromCourier::Revoked { number, result } => Input::Revoked { generation, number, result },
            FromCourier::Delivered { number, result } => Input::Delivered { generation, number, result },
            FromCourier::WantPage => Input::WantPage { generation },
            FromCourier::WantFigures => Input::WantFigures { generation },
            FromCourier::Tell { warn: true, text } => {
                tracing::warn!("{text}");
                continue;
            }
            FromCourier::Tell { warn: false, text } => {
                tracing::info!("{text}");
                continue;
            }
            FromCourier::Probed { provider, facts } => Input::Probed { provider, facts },
            FromCourier::Failed { why } => return Err(io::Error::other(why)),
        };
        if inputs.send(input).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
