//! The control socket, beside the status socket: for root and the keeper's own uid (mode 0600, and the kernel's word
//! on the peer). One JSON object on one line in, one out, then the end. Each caller has a thread of its own, because an
//! issuer that does not answer holds up a revocation for [`ISSUERS_PATIENCE`], and another order must not wait for it.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{Sender, SyncSender, sync_channel},
    },
    time::Duration,
};

use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::geteuid,
};
use serde::{Deserialize, Serialize};

use super::{driver::Input, status};

/// The longest order.
const MAX_ORDER: u64 = 4096;
/// How long a caller may take to say it, and the daemon to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Callers heard at once, and of these such that wait for an issuer.
const CALLERS: usize = 64;
const WAITING: usize = 48;

/// How long the daemon may take where it asks an issuer.
pub const ISSUERS_PATIENCE: Duration = Duration::from_secs(45);

/// What an admin orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Order {
    /// Renew now, also what is parked.
    Renew {
        /// Whose.
        user: String,
        /// `S` or `S_H`; absent: all of the user's.
        credential: Option<String>,
    },
    /// Give the refresh token back to the issuer now. The files stay.
    Revoke {
        /// Whose.
        user: String,
        /// `S` or `S_H`.
        credential: String,
    },
    /// Replicate now, also what sites have confirmed.
    Replicate {
        /// `USER/S[_H]`; absent: all.
        credential: Option<String>,
        /// Name of the site; absent: all.
        site: Option<String>,
    },
    /// Nothing is to be done: `evercred import` has stored this one, and that belongs into the audit log.
    Imported {
        /// Whose.
        user: String,
        /// `S` or `S_H`.
        credential: String,
        /// From what.
        from: String,
    },
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Done for so many credentials.
    Done {
        /// How many.
        credentials: usize,
    },
    /// Not done.
    Refused {
        /// Why, in one line.
        why: String,
    },
}

/// Listen on `path`.
///
/// # Errors
/// The socket cannot be made there.
pub fn start(path: &Path, inputs: Sender<Input>) -> io::Result<()> {
    let listener = status::bind(path, 0o600)?;
    let desk = Desk { inputs, callers: Count::default(), waiting: Count::default() };
    std::thread::Builder::new().name("control".into()).stack_size(128 * 1024).spawn(move || {
        for caller in listener.incoming() {
            let (Ok(caller), Some(place)) = (caller, desk.callers.place(CALLERS)) else {
                // Out of descriptors, or of places: those of the moment give theirs back.
                std::thread::sleep(Duration::from_millis(50));
                continue;
            };
            let desk = desk.clone();
            let spawned = std::thread::Builder::new().name("order".into()).stack_size(128 * 1024).spawn(move || {
                let _place = place;
                if let Err(error) = desk.serve(&caller) {
                    tracing::debug!(%error, "an order was not heard out");
                }
            });
            if let Err(error) = spawned {
                tracing::debug!(%error, "no thread for an order");
            }
        }
    })?;
    Ok(())
}

/// Root, and who we are.
fn may_order(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

/// How many there are of something.
#[derive(Debug, Clone, Default)]
struct Count(Arc<AtomicUsize>);

/// One of them, as long as it is held.
struct Place(Count);

impl Count {
    /// One more, if there are fewer than `most`.
    fn place(&self, most: usize) -> Option<Place> {
        let more = |count: usize| (count < most).then_some(count + 1);
        self.0.fetch_update(Relaxed, Relaxed, more).ok().map(|_| Place(self.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// What the threads share.
#[derive(Clone)]
struct Desk {
    inputs: Sender<Input>,
    callers: Count,
    waiting: Count,
}

impl Order {
    /// The command's name.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Renew { .. } => "renew",
            Self::Revoke { .. } => "revoke",
            Self::Replicate { .. } => "replicate",
            Self::Imported { .. } => "import",
        }
    }

    /// What it is about, as the caller named it: `USER/S_H`, `USER`, or nothing in particular.
    #[must_use]
    pub fn whose(&self) -> String {
        match self {
            Self::Renew { user, credential: None } => user.clone(),
            Self::Renew { user, credential: Some(base) }
            | Self::Revoke { user, credential: base }
            | Self::Imported { user, credential: base, .. } => format!("{user}/{base}"),
            Self::Replicate { credential, .. } => credential.clone().unwrap_or_default(),
        }
    }
}

impl Desk {
    fn serve(&self, mut caller: &UnixStream) -> io::Result<()> {
        let uid = getsockopt(&caller, PeerCredentials)?.uid();
        if !may_order(uid) {
            self.refused(uid, None, "this user may not order anything");
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        caller.set_read_timeout(Some(PATIENCE))?;
        caller.set_write_timeout(Some(PATIENCE))?;
        let mut line = String::new();
        BufReader::new(caller.take(MAX_ORDER)).read_line(&mut line)?;
        let reply = match serde_json::from_str::<Order>(&line) {
            Ok(order) => self.order(uid, order)?,
            Err(error) => {
                let why = format!("not an order: {error}");
                self.refused(uid, None, &why);
                Reply::Refused { why }
            }
        };
        let mut text = serde_json::to_vec(&reply)?;
        text.push(b'\n');
        caller.write_all(&text)
    }

    /// For the audit log.
    fn refused(&self, uid: u32, order: Option<Order>, why: &str) {
        // The driver goes with the daemon.
        self.inputs.send(Input::OrderRefused { uid, order, why: why.to_owned() }).ok();
    }

    fn order(&self, uid: u32, order: Order) -> io::Result<Reply> {
        tracing::info!(uid, ?order, "order");
        let asks_issuer = matches!(order, Order::Revoke { .. });
        let _waiting = if asks_issuer {
            let Some(place) = self.waiting.place(WAITING) else {
                let why = format!("{WAITING} revocations wait for their issuers already; try again in a minute");
                self.refused(uid, Some(order), &why);
                return Ok(Reply::Refused { why });
            };
            Some(place)
        } else {
            None
        };
        let patience = if asks_issuer { ISSUERS_PATIENCE } else { PATIENCE };
        let (sender, answer): (SyncSender<Reply>, _) = sync_channel(1);
        self.inputs
            .send(Input::Order { uid, order, reply: sender })
            .map_err(|_| io::Error::other("the daemon stops"))?;
        answer.recv_timeout(patience).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::channel, time::Instant};

    use super::*;

    fn ask(path: &Path, order: &str) -> Reply {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(format!("{order}\n").as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    const REVOKE: &str = r#"{"do":"revoke","user":"alice","credential":"grid"}"#;
    const RENEW: &str = r#"{"do":"renew","user":"alice","credential":null}"#;

    #[test]
    fn a_revocation_whose_issuer_does_not_answer_holds_up_no_other_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let (inputs, orders) = channel();
        start(&path, inputs).unwrap();
        // The driver: an issuer never answers a revocation, a renewal is taken at once.
        let (arrived, arrivals) = channel();
        let (told, refusals) = channel();
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for input in orders {
                match input {
                    Input::Order { order: Order::Renew { .. }, reply, .. } => {
                        reply.send(Reply::Done { credentials: 1 }).unwrap();
                    }
                    Input::Order { reply, .. } => {
                        held.push(reply);
                        arrived.send(()).unwrap();
                    }
                    Input::OrderRefused { order, why, .. } => told.send((order, why)).unwrap(),
                    _ => {}
                }
            }
        });
        let stuck: Vec<UnixStream> = (0..WAITING)
            .map(|_| {
                let mut stream = UnixStream::connect(&path).unwrap();
                stream.write_all(format!("{REVOKE}\n").as_bytes()).unwrap();
                stream
            })
            .collect();
        // One who says nothing is there, too.
        let silent = UnixStream::connect(&path).unwrap();
        let began = Instant::now();
        assert_eq!(ask(&path, RENEW), Reply::Done { credentials: 1 });
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        // With every place taken, one more is refused and not left waiting.
        for _ in 0..WAITING {
            arrivals.recv_timeout(Duration::from_secs(60)).unwrap();
        }
        let Reply::Refused { why: refused } = ask(&path, REVOKE) else { panic!("one more revocation was taken") };
        assert!(refused.contains("try again in a minute"), "{refused}");
        drop((stuck, silent));
        assert!(matches!(ask(&path, "nonsense"), Reply::Refused { .. }));
        // Both are told for the audit log.
        let (order, why) = refusals.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!((order.unwrap().whose().as_str(), why), ("alice/grid", refused));
        let (order, why) = refusals.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(order.is_none() && why.starts_with("not an order: "), "{why}");
    }

    #[test]
    fn only_root_and_ourselves_may_order() {
        let us = geteuid().as_raw();
        assert!(may_order(0) && may_order(us));
        assert!(!may_order(us + 1));
    }

    #[test]
    fn a_place_is_free_again_when_it_is_dropped() {
        let count = Count::default();
        let one = count.place(1).unwrap();
        assert!(count.place(1).is_none());
        drop(one);
        assert!(count.place(1).is_some());
    }
}
