//! `kind = "ssh"`: the system's OpenSSH, so that Kerberos, keys, `ssh_config` and known hosts are what they are for a
//! person at this host; an agent is named in `ssh_config` (`IdentityAgent`), for our environment is empty. One session for each account and host, kept for a minute after its last use: an SFTP channel,
//! or `evercred receive` at the far end, to which sealed payloads go line by line.
//!
//! sshd drops new connections from ten that have not authenticated yet (`MaxStartups 10:30:100`), so at most
//! `STARTUPS` are set up at a host at once, and those that are up stay in use.
//!
//! Sites of one account share its session, and with it the order of their deliveries. Who has waited a quarter of its
//! time for that, or for a turn at the host, goes its own way: another site's directory or `ssh_config` may hang.
//!
//! How a file appears by SFTP is in [`super::sftp_place`]. A session on which anything went wrong is ended.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{ChildStdin, ChildStdout},
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    envelope::{KeyRing, MAX_PAYLOAD, Verdict},
    name,
    parcel::{self, Parcel},
    program::{self, Started},
    receive,
    sftp::{Sftp, SftpError},
    sftp_place::{Locks, put},
    worker::Notes,
};
use crate::{
    config::site_settings::{Site, Ssh, SshWay},
    core::delivery::{Delivered, Undelivered},
    error::Kind,
};

/// Connections being set up at one host.
const STARTUPS: usize = 4;
/// A session is ended when it was not used for this long.
const IDLE: Duration = Duration::from_secs(60);

/// The note of what a site's locks are called.
const LOCKS: &str = "locks";

/// All sessions of the replicator.
#[derive(Debug, Default)]
pub struct Sessions {
    by_account: StdMutex<HashMap<String, Arc<Mutex<Option<Session>>>>>,
    startups: StdMutex<HashMap<String, Arc<Semaphore>>>,
    /// By the name of the site.
    locks: StdMutex<HashMap<String, Arc<Locks>>>,
}

#[derive(Debug)]
struct Session {
    /// Ended with the session.
    _program: Started,
    channel: Channel,
    used: Instant,
    words: Arc<StdMutex<String>>,
    /// `evercred receive` says nothing before it has a payload: until its first answer the connection is being set up.
    starting: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum Channel {
    Sftp(Box<Sftp<BufReader<ChildStdout>, ChildStdin>>),
    Receive(BufReader<ChildStdout>, ChildStdin),
}

impl Sessions {
    /// Deliver.
    ///
    /// # Errors
    /// [`Undelivered`]
    pub async fn deliver(
        self: &Arc<Self>,
        site: &Site,
        ssh: &Ssh,
        ring: Option<&KeyRing>,
        notes: &Notes,
        parcel: &Parcel,
    ) -> Result<Delivered, Undelivered> {
        let locks = self.locks(site, notes).await;
        let account = account(ssh);
        let slot = self.slot(account.clone());
        let (slot, mut held) = if let Ok(held) = timeout(patience(site), Arc::clone(&slot).lock_owned()).await {
            (slot, held)
        } else {
            let own = self.slot(format!("{account} {}", site.name));
            let held = Arc::clone(&own).lock_owned().await;
            (own, held)
        };
        let reused = held.is_some();
        let mut end = self.attempt(&mut held, &locks, site, ssh, ring, parcel).await;
        // A session that went stale while nobody used it tells nothing about the site.
        if reused && held.is_none() && end.as_ref().is_err_and(|e| e.kind == Kind::SiteUnreachable) {
            end = self.attempt(&mut held, &locks, site, ssh, ring, parcel).await;
        }
        if held.is_some() {
            tokio::spawn(async move {
                tokio::time::sleep(IDLE).await;
                if let Ok(mut held) = slot.try_lock()
                    && held.as_ref().is_some_and(|session| session.used.elapsed() >= IDLE)
                {
                    *held = None;
                }
            });
        }
        end
    }

    /// Called the same after a restart, by a note.
    async fn locks(&self, site: &Site, notes: &Notes) -> Arc<Locks> {
        let (locks, is_new) = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            let plain = |name: &String| name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            let known = notes.value(LOCKS).filter(plain);
            let is_new = known.is_none() && !locks.contains_key(&site.name);
            let its =
                locks.entry(site.name.clone()).or_insert_with(|| Arc::new(known.map(Locks::of).unwrap_or_default()));
            (Arc::clone(its), is_new)
        };
        if is_new {
            notes.put(LOCKS, Some(locks.name())).await;
        }
        locks
    }

    fn slot(&self, of: String) -> Arc<Mutex<Option<Session>>> {
        let mut sessions = self.by_account.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(sessions.entry(of).or_default())
    }

    /// One try; whatever is not a plain answer of the far end costs the session.
    async fn attempt(
        &self,
        held: &mut Option<Session>,
        locks: &Locks,
        site: &Site,
        ssh: &Ssh,
        ring: Option<&KeyRing>,
        parcel: &Parcel,
    ) -> Result<Delivered, Undelivered> {
        // Taken out, so that it is gone if we are cancelled in the middle.
        let mut session = match held.take() {
            Some(session) => session,
            None => self.connect(ssh, patience(site)).await?,
        };
        let result = session.put_all(locks, site, ssh, ring, parcel).await;
        let usable = result.as_ref().is_ok_and(Result::is_ok)
            || matches!(&result, Ok(Err(e)) if !matches!(e.kind, Kind::SiteUnreachable | Kind::SiteTimeout));
        match result {
            Ok(end) => {
                if usable {
                    session.used = Instant::now();
                    // Whether or not anything was handed over: who waits idly is not starting.
                    session.starting = None;
                    *held = Some(session);
                }
                end
            }
            Err(error) => {
                // What ssh had to say comes a moment after its end.
                tokio::time::sleep(Duration::from_millis(50)).await;
                let words = session.words.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Err(failure(&words, &error))
            }
        }
    }

    async fn connect(&self, ssh: &Ssh, patience: Duration) -> Result<Session, Undelivered> {
        let gate = {
            let mut startups = self.startups.lock().unwrap_or_else(PoisonError::into_inner);
            let host = format!("{}:{}", ssh.host, ssh.port.unwrap_or(0));
            Arc::clone(startups.entry(host).or_insert_with(|| Arc::new(Semaphore::new(STARTUPS))))
        };
        let turn = timeout(patience, gate.acquire_owned()).await.ok().and_then(Result::ok);
        let ccache = ssh.ccache.as_deref().map(|ccache| ("KRB5CCNAME", ccache));
        let environment: Vec<(&str, &str)> = ccache.into_iter().collect();
        let mut started = program::start(program::command(&ssh.program, &arguments(ssh), &environment))?;
        let child = &mut started.child;
        let (Some(to), Some(from), Some(errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Undelivered::new(Kind::SiteError, "no pipes to ssh"));
        };
        let words = Arc::new(StdMutex::new(String::new()));
        let heard = Arc::clone(&words);
        tokio::spawn(async move {
            let mut lines = BufReader::new(errors.take(64 << 10)).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                line.chars()
                    .take(300)
                    .collect::<String>()
                    .clone_into(&mut heard.lock().unwrap_or_else(PoisonError::into_inner));
            }
        });
        let from = BufReader::new(from);
        let (channel, turn) = match ssh.way {
            SshWay::Sftp => match Sftp::start(from, to).await {
                Ok(sftp) => (Channel::Sftp(Box::new(sftp)), None),
                Err(error) => {
                    // ssh ends after it said why.
                    timeout(Duration::from_secs(2), child.wait()).await.ok();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let words = words.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    return Err(failure(&words, &error));
                }
            },
            SshWay::Receive => (Channel::Receive(from, to), turn),
        };
        Ok(Session { _program: started, channel, used: Instant::now(), words, starting: turn })
    }
}

/// How long a site waits for what others may hold.
fn patience(site: &Site) -> Duration {
    site.timeout / 4
}

/// Everything that tells one session from another.
fn account(ssh: &Ssh) -> String {
    format!("{:?}", (&ssh.host, &ssh.user, ssh.port, &ssh.ssh_config, &ssh.program, &ssh.ccache, ssh.way))
}

fn arguments(ssh: &Ssh) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    if let Some(config) = &ssh.ssh_config {
        arguments.extend(["-F".into(), config.display().to_string()]);
    }
    for option in [
        "BatchMode=yes",
        "ClearAllForwardings=yes",
        "ForwardAgent=no",
        "ForwardX11=no",
        "PermitLocalCommand=no",
        "RequestTTY=no",
        "ConnectTimeout=20",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=2",
    ] {
        arguments.extend(["-o".into(), option.into()]);
    }
    if let Some(port) = ssh.port {
        arguments.extend(["-p".into(), port.to_string()]);
    }
    if let Some(user) = &ssh.user {
        arguments.extend(["-l".into(), user.clone()]);
    }
    match ssh.way {
        SshWay::Sftp => arguments.extend(["-s".into(), "--".into(), ssh.host.clone(), "sftp".into()]),
        SshWay::Receive => arguments.extend(["--".into(), ssh.host.clone(), "evercred receive".into()]),
    }
    arguments
}

/// From what ssh says, and from what broke.
fn failure(words: &str, error: &SftpError) -> Undelivered {
    let refused = ["Permission denied", "Host key verification failed", "No Kerberos credentials", "Too many auth"];
    let kind = if refused.iter().any(|text| words.contains(text)) {
        Kind::SiteAuth
    } else {
        match error {
            SftpError::Broken(_) => Kind::SiteUnreachable,
            SftpError::Denied | SftpError::Unable(_) => Kind::SiteDenied,
            SftpError::Missing | SftpError::Status { .. } | SftpError::Protocol(_) => Kind::SiteError,
        }
    };
    let words = words.trim();
    if words.is_empty() {
        Undelivered::new(kind, error.to_string())
    } else {
        Undelivered::new(kind, format!("{error}; ssh: {words}"))
    }
}

impl Session {
    /// The outer error broke the session; the inner one is the far end's word.
    async fn put_all(
        &mut self,
        locks: &Locks,
        site: &Site,
        ssh: &Ssh,
        ring: Option<&KeyRing>,
        parcel: &Parcel,
    ) -> Result<Result<Delivered, Undelivered>, SftpError> {
        let prepared = name::directory(&ssh.directory, &parcel.id).and_then(|d| Ok((d, parcel.names(site)?)));
        let (directory, names) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Err(error)),
        };
        let mut end = Ok(Delivered::AlreadyThere);
        for name in names {
            let path = format!("{directory}/{name}");
            let sealed = ring.map(|ring| parcel.sealed(site, ring, &path, receive::now()));
            let bytes = match sealed.unwrap_or_else(|| parcel.bytes(site)) {
                Ok(bytes) => bytes,
                Err(error) => return Ok(Err(error)),
            };
            let one = match (&mut self.channel, ring) {
                (Channel::Sftp(sftp), _) => {
                    match put(sftp, locks, (&directory, &name), site.mode, parcel.generation, &bytes).await {
                        Err(error @ (SftpError::Broken(_) | SftpError::Protocol(_))) => return Err(error),
                        Err(error) => Err(failure("", &error)),
                        Ok(end) => end,
                    }
                }
                (Channel::Receive(from, to), Some(ring)) => {
                    let verdict = hand_over(from, to, &bytes).await?;
                    self.starting = None;
                    let bytes = parcel.bytes(site);
                    bytes.and_then(|bytes| verdict.judge(ring, parcel.generation, &bytes))
                }
                (Channel::Receive(..), None) => Err(Undelivered::new(Kind::SiteKey, "no key for what is received")),
            };
            end = parcel::worse(end, one);
        }
        Ok(end)
    }
}

async fn hand_over(
    from: &mut BufReader<ChildStdout>,
    to: &mut ChildStdin,
    payload: &[u8],
) -> Result<Verdict, SftpError> {
    to.write_all(payload).await?;
    to.write_all(b"\n").await?;
    to.flush().await?;
    let mut line = Vec::new();
    from.take(MAX_PAYLOAD as u64).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    serde_json::from_slice(&line).map_err(|_| SftpError::Protocol("the far end does not answer like evercred receive"))
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write as _, fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::{
        config::{site_settings::SiteKind, tests::sites},
        core::{
            id::{CredentialId, UserName},
            secret::KeyText,
        },
    };

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    /// A directory with a key and with this as `ssh`.
    fn home(ssh: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let ssh = format!("#!/bin/sh\ncd {}\n{ssh}\n", dir.path().display());
        for (name, text, mode) in [("key", KEY, 0o600), ("ssh", ssh.as_str(), 0o755)] {
            fs::write(dir.path().join(name), text).unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        dir
    }

    async fn delivered(sessions: Arc<Sessions>, site: Site) -> Result<Delivered, Undelivered> {
        let SiteKind::Ssh(ssh) = &site.kind else { panic!("ssh") };
        let id = CredentialId::from_base(UserName::parse("alice").unwrap(), "w").unwrap();
        let parcel = Parcel { id, generation: 7, expiry: None, content: KeyText::parse("a-token").unwrap() };
        let ring = KeyRing::new(&[KeyText::parse(KEY).unwrap()]).unwrap();
        sessions.deliver(&site, ssh, Some(&ring), &Notes::default(), &parcel).await
    }

    #[tokio::test]
    async fn a_site_whose_session_hangs_delays_no_other_of_the_same_account() {
        // The first one never answers.
        let dir = home("mkdir first 2> /dev/null && exec sleep 1000\nread payload\necho no");
        let home = dir.path().display();
        let site = |name: &str| {
            let text = format!(
                "[site.{name}]\nkind = \"ssh\"\nservices = [\"w\"]\nhost = \"far\"\nway = \"receive\"\ntimeout = \"2s\"\n\
                 directory = \"/{name}\"\nkey_files = [\"{home}/key\"]\nssh_program = \"{home}/ssh\"\n"
            );
            sites(&text).remove(0)
        };
        let sessions = Arc::new(Sessions::default());
        let hanging = tokio::spawn(delivered(Arc::clone(&sessions), site("a")));
        while !dir.path().join("first").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let other = timeout(Duration::from_secs(60), delivered(sessions, site("b"))).await;
        assert_eq!(other.unwrap().unwrap_err().kind, Kind::SiteError, "it was answered, if with no word of ours");
        assert!(!hanging.is_finished());
    }

    #[tokio::test]
    async fn connections_to_evercred_receive_wait_for_their_turn_as_those_by_sftp_do() {
        let dir = home("echo up >> log\nread payload\nwhile [ ! -e go ]; do sleep 0.05; done\necho no");
        let home = dir.path().display();
        let count = || fs::read_to_string(dir.path().join("log")).unwrap_or_default().lines().count();
        let mut text = String::new();
        for n in 0..10 {
            write!(
                text,
                "[site.s{n}]\nkind = \"ssh\"\nservices = [\"w\"]\nhost = \"far\"\nuser = \"u{n}\"\nway = \"receive\"\n\
                 directory = \"/d\"\nkey_files = [\"{home}/key\"]\nssh_program = \"{home}/ssh\"\n"
            )
            .unwrap();
        }
        let sessions = Arc::new(Sessions::default());
        let deliveries: Vec<_> =
            sites(&text).into_iter().map(|site| tokio::spawn(delivered(Arc::clone(&sessions), site))).collect();
        while count() < STARTUPS {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(count(), STARTUPS, "the others wait until one of these has answered");
        fs::write(dir.path().join("go"), "").unwrap();
        for delivery in deliveries {
            assert_eq!(delivery.await.unwrap().unwrap_err().kind, Kind::SiteError, "no word of evercred receive");
        }
        assert_eq!(count(), 10);
    }
}
