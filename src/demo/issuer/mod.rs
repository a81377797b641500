//! The embedded issuer: OAuth2 with refresh and device grants, and a mytoken server below `/mytoken`, both on
//! loopback and in memory, with real signatures. Tests, benches and the demo use it; it is no issuer for production:
//! `/control/…` is open to whoever reaches the port.

mod book;
mod control;
mod mint;
mod mytoken;
mod oauth2;
mod serve;
mod sign;
mod vault;

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub use book::{Asked, Fault, Issued, Record, Rotation, Standing};
pub use control::{Control, Outage, Stats, TokenWish};
pub use mint::{MytokenRotation, MytokenWish, Restriction};

/// How the issuer is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Certificate chain and key, PEM. With TLS, HTTP/2 is offered by ALPN.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Lifetime of access tokens, whole seconds.
    pub access_lifetime: Duration,
    /// What happens to OAuth2 refresh tokens at an exchange.
    pub rotation: Rotation,
    /// Delay before each answer; [`Control::set_latency`] changes it.
    pub latency: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: None,
            access_lifetime: Duration::from_secs(3600),
            rotation: Rotation::None,
            latency: Duration::ZERO,
        }
    }
}

/// What all requests share.
struct Shared {
    url: String,
    mytoken_url: String,
    access_lifetime: Duration,
    rotation: Rotation,
    access_key: sign::Key,
    mytoken_key: sign::Key,
    book: Mutex<book::Book>,
    knobs: control::Knobs,
}

impl Shared {
    /// The book; never held across an await.
    fn book(&self) -> MutexGuard<'_, book::Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The embedded issuer.
#[derive(Debug)]
pub struct Issuer;

impl Issuer {
    /// Start it on threads of its own; it serves until the answer is dropped.
    ///
    /// # Errors
    /// The address is taken, or certificate and key cannot be read.
    pub fn start(options: &Options) -> io::Result<Running> {
        let tls = options.tls.as_ref().map(|(chain, key)| serve::tls(chain, key)).transpose()?;
        let listener = TcpListener::bind(options.listen)?;
        listener.set_nonblocking(true)?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let at = listener.local_addr()?;
        // Certificates name the host, so loopback goes by its name under TLS.
        let host = if tls.is_some() { format!("localhost:{}", at.port()) } else { at.to_string() };
        let url = format!("{scheme}://{host}");
        let shared = Arc::new(Shared {
            mytoken_url: format!("{url}/mytoken"),
            url,
            access_lifetime: options.access_lifetime,
            rotation: options.rotation,
            access_key: sign::Key::es256()?,
            mytoken_key: sign::Key::es512()?,
            book: Mutex::default(),
            knobs: control::Knobs::new(options.latency),
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("issuer").enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(serve::serve(listener, tls, Arc::clone(&shared)));
        Ok(Running { shared, runtime: Some(runtime) })
    }
}

/// A running issuer. Dropping it ends it.
pub struct Running {
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Running {
    /// The OAuth2 issuer's URL, without a trailing slash.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// The mytoken instance's URL.
    #[must_use]
    pub fn mytoken_url(&self) -> &str {
        &self.shared.mytoken_url
    }

    /// The handle for changing and watching it.
    #[must_use]
    pub fn control(&self) -> Control {
        Control::new(Arc::clone(&self.shared))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Also right inside of another runtime, where waiting is not allowed.
            runtime.shutdown_background();
        }
    }
}

const USAGE: &str = "usage: evercred issuer --listen ADDR [--tls CERT KEY] [--lifetime SECONDS] \
                     [--rotation none|strict|grace:SECONDS] [--latency-ms N]";

/// `evercred issuer …`: prints `ready URL` and serves until SIGTERM or SIGINT.
#[must_use]
#[expect(clippy::print_stderr, reason = "the edge of the program")]
pub fn main(args: &[String]) -> ExitCode {
    let options = match parse(args) {
        Ok(options) => options,
        Err(what) => {
            eprintln!("evercred issuer: {what}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("evercred issuer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<()> {
    let running = Issuer::start(options)?;
    let mut out = io::stdout().lock();
    writeln!(out, "ready {}", running.url())?;
    out.flush()?;
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])?;
    signals.forever().next();
    Ok(())
}

fn parse(args: &[String]) -> Result<Options, String> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(name) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{name} needs a value"));
        match name.as_str() {
            "--listen" => {
                let text = value()?;
                options.listen = text.parse().map_err(|_| format!("{text:?} is no ADDRESS:PORT"))?;
            }
            "--tls" => options.tls = Some((value()?.into(), value()?.into())),
            "--lifetime" => options.access_lifetime = Duration::from_secs(number(value()?)?),
            "--latency-ms" => options.latency = Duration::from_millis(number(value()?)?),
            "--rotation" => {
                options.rotation = match value()?.as_str() {
                    "none" => Rotation::None,
                    "strict" => Rotation::Strict,
                    other => match other.strip_prefix("grace:") {
                        Some(seconds) => Rotation::Grace(Duration::from_secs(number(seconds)?)),
                        None => return Err(format!("{other:?} is no rotation")),
                    },
                }
            }
            other => return Err(format!("{other:?} is unknown")),
        }
    }
    Ok(options)
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no whole number"))
}

#[cfg(test)]
mod tests;
