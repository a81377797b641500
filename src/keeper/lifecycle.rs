//! From the command line to a running credmon, and to its end: settings, log, privileges, spool, threads, signals,
//! reloads. Exit codes as in DESIGN §5.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use nix::unistd::{User, geteuid};

use super::{
    announce::Announcer,
    approvals::Approvals,
    audit::{self, Audit},
    control,
    course::Courses,
    deliveries::Ears,
    disk::{self, Disk},
    driver::{Clock, Driver, End, Input, Owner},
    environ, groups,
    link::{Link, Recipe},
    log, reload,
    replicas::{self, Replication},
    revoker::Revoker,
    scanner, status,
};
use crate::{
    cli,
    config::{
        self, Sources,
        settings::{Daemon, Outward, Provider, STATUS_SOCKET, Settings},
    },
    core::{budget::Limits, planner::Planner},
    error::{Report, exit},
    notice::round,
    replicate::frame::Become,
    spool::{Owners, Spool, Watch},
};

/// How long a stop waits for the last lines of the audit log, and of the log.
const LAST_LINES: Duration = Duration::from_millis(300);
/// How long `--once` waits for sites; a later start goes on with the rest.
const ONCE_PATIENCE: Duration = Duration::from_secs(60);

/// Run the credmon; `courier_args` make this same binary a courier.
#[must_use]
pub fn run(args: &cli::Credmon, courier_args: &[&str]) -> ExitCode {
    let mut log = None;
    let ended = start(args, courier_args, &mut log).inspect_err(|report| tracing::error!("{}", report.line()));
    let written = log.is_none_or(|log: log::LogHandle| log.flush(LAST_LINES));
    match ended {
        Ok(()) => ExitCode::from(exit::OK),
        Err(report) if written => report.print("condor_credmon_evercred"),
        // Standard error may be where nobody reads: an end does not wait for that.
        Err(report) => ExitCode::from(report.code()),
    }
}

/// Under `condor_master`, bad configuration must not be restarted in a loop.
fn config_exit() -> u8 {
    if std::env::var_os("CONDOR_INHERIT").is_some() { exit::NO_RESTART } else { exit::CONFIG }
}

fn failed(error: impl std::error::Error) -> Report {
    Report::of(&error, exit::FAILED)
}

#[expect(clippy::too_many_lines, reason = "the start and every reload, from top to bottom")]
fn start(args: &cli::Credmon, courier_args: &[&str], logs: &mut Option<log::LogHandle>) -> Result<(), Report> {
    environ::scrub().map_err(failed)?;
    let sources =
        Sources { config: args.config.clone(), credential_directory: args.cred_dir.clone(), ..Sources::default() };
    let mut settings = config::load(&sources).map_err(|problems| {
        let report = config::report(&problems);
        // What may be over by itself is worth another start.
        if report.code() == exit::CONFIG { report.with_code(config_exit()) } else { report }
    })?;
    let log = log::start(&log_target(args, &settings), settings.daemon.log_format, "evercred")
        .map_err(|error| Report::of(&error, error.exit_code()))?;
    *logs = Some(log.clone());
    harden().map_err(failed)?;
    let started_with = settings.daemon.clone();
    let (inputs, queue) = channel();
    // Before there is a `pid`: whoever reads it may signal at once.
    let at_work = Arc::new(OnceLock::new());
    signals(inputs.clone(), Arc::clone(&at_work)).map_err(failed)?;
    let mut audit_log = settings.daemon.audit_log.clone();
    let mut audit = Audit::start(audit_log.as_deref())
        .map(audit::Open::new)
        .map_err(|error| Report::of(&error, exit::LOG).advise("correct `audit_log` in [daemon], or its directory"))?;
    let condor = User::from_name("condor").ok().flatten();
    let mut accepted = vec![0, geteuid().as_raw()];
    let condor = condor.map(|user| user.uid.as_raw());
    accepted.extend(condor);
    let directory = settings.daemon.credential_directory.clone();
    let open = if settings.daemon.share_directory { Spool::open_beside } else { Spool::open };
    let spool = Arc::new(open(&directory, Owners { accepted }).map_err(failed)?);
    let _retires = Retires(Arc::clone(&spool));
    let _only_once = at_work.set(Arc::clone(&spool));
    for (id, result) in spool.recovered() {
        match result {
            Ok(()) => {
                tracing::info!(credential = %id, "a refresh token that was rotated before the last end is in its .top now");
            }
            Err(error) => tracing::error!(
                credential = %id, %error, "a refresh token that was rotated before the last end does not get into its .top; the next start tries again"
            ),
        }
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        directory = %directory.display(),
        providers = settings.providers.len(),
        "started"
    );
    let clock = Clock::new();
    let (hangups, hung_up) = channel();
    let (looks, look_queue) = channel();
    let readers = sockets(&settings, condor, &inputs)?;
    let disk = Disk::new(&spool, &inputs);
    let approvals = Approvals::start(&spool, condor, inputs.clone()).map_err(failed)?;
    let replication = Replication::default();
    let ears = |audit: &Audit, settings: &Settings, owners: &[Arc<Owner>]| Ears {
        audit: audit.clone(),
        traces: settings.daemon.otlp.is_some().then(|| inputs.clone()),
        owners: owners.to_vec(),
    };
    let mut owners = owners(&settings)?;
    replicate(&replication, &settings, courier_args, &spool, clock, ears(audit.audit(), &settings, &owners))?;
    let mut link = courier(&settings, settings.outward(), courier_args, 1, &inputs)?;
    let mut before: Option<Driver> = None;
    let mut scan_from = clock.now().tick;
    start_scanner(&settings, &spool, &owners, &looks, look_queue, &inputs, &replication, clock, condor)?;
    let fits = |settings: &Settings| self::owners(settings).and_then(|_| become_ids(&settings.daemon)).map(drop);
    reload::start(sources, log.clone(), &settings, hung_up, inputs.clone(), fits).map_err(failed)?;
    let mut notices = None;
    tell_people(&settings, &mut notices, &inputs)?;
    let mut announcer = Announcer::new(audit.audit().clone());
    let mut revoker = Revoker::default();
    for generation in 2.. {
        let planner =
            Planner::new(&limits(&settings.providers), settings.daemon.refresh).confirming_after(args.confirm_after);
        let mut driver = Driver::new(
            planner,
            clock,
            Arc::clone(&spool),
            disk.clone(),
            link,
            owners,
            looks.clone(),
            replication.clone(),
            hangups.clone(),
            args.once,
            announcer,
            revoker,
        );
        driver.log = Some(log.clone());
        driver.readers = readers.clone();
        driver.notices.clone_from(&notices);
        driver.first_scan = scanner::FirstScan::from(scan_from);
        driver.courses = Courses::new(settings.daemon.otlp.is_some());
        if let Some(before) = before.take() {
            driver.inherit(before);
        }
        driver.page = settings.daemon.web_approval.clone().map(|page| (page, approvals.clone()));
        match driver.run(&queue) {
            End::Stopped => break,
            End::Done { failed: false } => {
                replication.settle(ONCE_PATIENCE);
                break;
            }
            End::SpoolGone(error) => return Err(failed(error)),
            End::Done { failed: true } => {
                return Err(Report::new("not everything could be renewed", exit::FAILED).advise("see the log"));
            }
            End::GaveUp { left, why } => {
                return Err(Report::new(
                    format!("{left} credentials are left, and nothing goes on: {why}"),
                    exit::FAILED,
                )
                .advise("see the log, and `evercred doctor`; the next start goes on with them"));
            }
            End::Reload => {}
        }
        if let Some(new) = driver.reloaded.take() {
            settings = *new;
        }
        let late = reload::at_next_start(args, &started_with, &settings.daemon);
        if !late.is_empty() {
            tracing::warn!(keys = late.join(" "), "changed, and takes effect at the next start");
        }
        announcer = std::mem::take(&mut driver.announcer);
        revoker = std::mem::take(&mut driver.revoker);
        // Its courier ends with this.
        driver.link.close();
        before = Some(driver);
        audit_elsewhere(&settings, &mut audit_log, &mut audit, &mut announcer);
        owners = self::owners(&settings)?;
        tell_people(&settings, &mut notices, &inputs)?;
        link = courier(&settings, settings.outward(), courier_args, generation, &inputs)?;
        let ears = ears(announcer.audit(), &settings, &owners);
        if let Err(report) = replicate(&replication, &settings, courier_args, &spool, clock, ears) {
            // Renewals go on; that is what jobs live on.
            tracing::error!("{}", report.line());
        }
        // The scanner keeps its watches and tells the new planner everything.
        scan_from = clock.now().tick;
        drop(looks.send(scanner::Look::Owners(owners.clone(), scanner::Rounds::of(&settings.daemon))));
        tracing::info!(providers = settings.providers.len(), "configuration reloaded");
    }
    replication.stop();
    tracing::info!("stopped");
    Ok(())
}

/// However the run ends, with threads that still hold the spool: no `pid` and no reserved space stay behind.
struct Retires(Arc<Spool>);

impl Drop for Retires {
    fn drop(&mut self) {
        self.0.retire();
    }
}

/// After a reload: the audit log may be another one.
fn audit_elsewhere(
    settings: &Settings,
    audit_log: &mut Option<PathBuf>,
    open: &mut audit::Open,
    announcer: &mut Announcer,
) {
    if settings.daemon.audit_log != *audit_log {
        match Audit::start(settings.daemon.audit_log.as_deref()) {
            Ok(audit) => {
                announcer.audit_to(audit.clone());
                open.replace(audit);
                audit_log.clone_from(&settings.daemon.audit_log);
            }
            Err(error) => tracing::error!(%error, "keeping the audit log that is open"),
        }
    }
}

/// Start the thread that tells people, or tell it what has changed.
fn tell_people(
    settings: &Settings,
    notices: &mut Option<Sender<round::Event>>,
    inputs: &Sender<Input>,
) -> Result<(), Report> {
    let recipe = round::Recipe::of(settings, become_ids(&settings.daemon)?);
    match (notices.as_ref(), recipe) {
        // It ends only with the process.
        (Some(events), recipe) => drop(events.send(round::Event::Configure(recipe.map(Box::new)))),
        (None, Some(recipe)) => *notices = Some(round::start(recipe, inputs.clone()).map_err(failed)?),
        (None, None) => {}
    }
    Ok(())
}

/// The status and control sockets. One that is configured must work; the default one is a convenience that the log
/// may miss (another uid's `/run/evercred`, a second credmon for another directory).
fn sockets(settings: &Settings, condor: Option<u32>, inputs: &Sender<Input>) -> Result<status::Tally, Report> {
    let us = geteuid().as_raw();
    let usual = || (us == 0 || Some(us) == condor).then(|| STATUS_SOCKET.into());
    let configured = settings.daemon.status_socket.clone();
    let Some(path) = configured.clone().or_else(usual) else { return Ok(status::Tally::default()) };
    let started = status::start(&path, status::trusted(condor), inputs.clone())
        .and_then(|tally| control::start(&status::control_path(&path), inputs.clone()).map(|()| tally));
    match started {
        Ok(tally) => Ok(tally),
        Err(error) if configured.is_some() => {
            Err(Report::new(format!("status_socket {}: {error}", path.display()), exit::FAILED)
                .advise("let its directory exist and belong to the credmon's user, or name another in [daemon]"))
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "no status socket; `evercred status` will not work");
            Ok(status::Tally::default())
        }
    }
}

/// `--log`, else `--foreground`, else the configuration (which knows HTCondor's knob), else standard error.
fn log_target(args: &cli::Credmon, settings: &Settings) -> log::Target {
    let configured = settings.daemon.log.as_deref().filter(|_| !args.foreground);
    let text = args.log.as_deref().or(configured).unwrap_or("stderr");
    let rotation = log::Rotation { limit: settings.daemon.log_limit, keep: settings.daemon.log_keep };
    log::Target::parse(text, rotation)
}

fn harden() -> nix::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // An exchange under way holds three descriptors; 1,024, the usual soft limit, is reached with 300 in flight.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    nix::sys::prctl::set_dumpable(false)
}

fn limits(providers: &[Provider]) -> Vec<Limits> {
    providers.iter().map(|p| Limits { in_flight: p.max_in_flight, per_second: p.max_per_second }).collect()
}

fn owners(settings: &Settings) -> Result<Vec<Arc<Owner>>, Report> {
    settings
        .providers
        .iter()
        .map(|provider| {
            let seal = disk::seal(provider).map_err(|text| Report::new(text, config_exit()))?;
            Ok(Arc::new(Owner { provider: provider.clone(), seal }))
        })
        .collect()
}

/// Start a courier for these providers; `outward`: what it serves and tells besides.
///
/// # Errors
/// There is no such `courier_user`, or it is root.
pub fn courier(
    settings: &Settings,
    outward: Outward,
    args: &[&str],
    generation: u64,
    inputs: &Sender<Input>,
) -> Result<Link, Report> {
    let become_ids = become_ids(&settings.daemon)?;
    let recipe = Recipe {
        args: args.iter().map(ToString::to_string).collect(),
        become_ids,
        providers: settings.providers.clone(),
        outward,
        generation,
        inputs: inputs.clone(),
    };
    Link::start(recipe, generation).map_err(failed)
}

/// Who the network process, and programs that we start, become; none if we are not root.
fn become_ids(daemon: &Daemon) -> Result<Option<(u32, u32)>, Report> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let name = &daemon.courier_user;
    let user = User::from_name(name).ok().flatten().ok_or_else(|| {
        Report::new(format!("courier_user: there is no user {name:?}"), config_exit())
            .advise(format!("create it (useradd --system {name}), or name another in [daemon]"))
    })?;
    if user.uid.is_root() {
        return Err(Report::new("courier_user: the network process must not be root", config_exit())
            .advise("name another user in [daemon]"));
    }
    Ok(Some((user.uid.as_raw(), user.gid.as_raw())))
}

/// Replicate to the configured sites, with a replicator that is started as the courier is.
fn replicate(
    replication: &Replication,
    settings: &Settings,
    courier_args: &[&str],
    spool: &Arc<Spool>,
    clock: Clock,
    ears: Ears,
) -> Result<(), Report> {
    let args = courier_args.iter().map(|arg| if *arg == "--courier" { "--replicator" } else { arg });
    let recipe = replicas::Recipe { args: args.map(str::to_owned).collect(), ids: None, sites: settings.sites.clone() };
    // Without that account nobody's renewals may stop: what is wrong stops replication alone.
    let daemon = settings.daemon.clone();
    let who = Box::new(move || replicate_ids(&daemon));
    replication.start(recipe, who, &settings.daemon.state_directory, spool, clock, ears).map_err(failed)
}

/// Who the process that replicates becomes; none if we are not root.
fn replicate_ids(daemon: &Daemon) -> Result<Option<Become>, Report> {
    let Some((courier, _)) = become_ids(daemon)? else { return Ok(None) };
    let name = &daemon.replicate_user;
    let user = User::from_name(name).ok().flatten().ok_or_else(|| {
        Report::new(format!("replicate_user: there is no user {name:?}"), config_exit())
            .advise(format!("create it (useradd --system {name}), or name another in [daemon]"))
    })?;
    if user.uid.is_root() {
        return Err(Report::new("replicate_user: the process that replicates must not be root", config_exit())
            .advise("name another user in [daemon]"));
    }
    // By other names than each other's, they may still be one user.
    if courier == user.uid.as_raw() {
        let what = format!(
            "replicate_user: {name:?} and courier_user have the same uid, so that they could read each other's memory"
        );
        return Err(Report::new(what, config_exit()).advise("let each have a user of its own"));
    }
    let ids = groups::ids(&user).unwrap_or_else(|| vec![user.gid]);
    let groups = ids.into_iter().map(nix::unistd::Gid::as_raw).collect();
    Ok(Some(Become { uid: user.uid.as_raw(), gid: user.gid.as_raw(), groups }))
}

#[expect(clippy::too_many_arguments, reason = "the scanner takes everything that it tells")]
fn start_scanner(
    settings: &Settings,
    spool: &Arc<Spool>,
    owners: &[Arc<Owner>],
    looks: &Sender<scanner::Look>,
    queue: Receiver<scanner::Look>,
    inputs: &Sender<Input>,
    replication: &Replication,
    clock: Clock,
    condor: Option<u32>,
) -> Result<(), Report> {
    let hints = looks.clone();
    let directory: &Path = &settings.daemon.credential_directory;
    let watch = Watch::start(directory, move |hint| drop(hints.send(hint.into())));
    let watch = watch
        .inspect_err(|error| {
            tracing::warn!(%error, "cannot watch the credential directory; scanning it every minute instead");
        })
        .ok();
    let rounds = scanner::Rounds::of(&settings.daemon);
    let (spool, owners, inputs, replication) =
        (Arc::clone(spool), owners.to_vec(), inputs.clone(), replication.clone());
    std::thread::Builder::new()
        .name("scanner".into())
        .spawn(move || scanner::run(&spool, owners, &queue, &inputs, clock, rounds, watch, &replication, condor))
        .map(|_| ())
        .map_err(failed)
}

/// Signals become inputs; the second one that ends us does so at once. `at_work`: the spool, once it is open.
fn signals(inputs: Sender<Input>, at_work: Arc<OnceLock<Arc<Spool>>>) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGTERM, SIGINT, SIGQUIT])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut stopping = false;
        for signal in signals.forever() {
            if signal == SIGHUP {
                drop(inputs.send(Input::Hangup));
            } else if std::mem::replace(&mut stopping, true) {
                if let Some(spool) = at_work.get() {
                    spool.retire();
                }
                std::process::exit(i32::from(exit::OK));
            } else {
                drop(inputs.send(Input::Stop));
            }
        }
    })?;
    Ok(())
}
