//! The control socket, beside the status socket: for root and the keeper's own uid (mode 0600, and the kernel's word
//! on the peer). One JSON object on one line in, one out, then the end.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::mpsc::{Sender, SyncSender, sync_channel},
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
    std::thread::Builder::new().name("control".into()).stack_size(128 * 1024).spawn(move || {
        // One after another: admins are few.
        for caller in listener.incoming() {
            match caller.and_then(|caller| serve(&caller, &inputs)) {
                Ok(()) => {}
                Err(error) => {
                    tracing::debug!(%error, "an order was not heard out");
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    })?;
    Ok(())
}

fn serve(mut caller: &UnixStream, inputs: &Sender<Input>) -> io::Result<()> {
    let uid = getsockopt(&caller, PeerCredentials)?.uid();
    if uid != 0 && uid != geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    caller.set_read_timeout(Some(PATIENCE))?;
    caller.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(caller.take(MAX_ORDER)).read_line(&mut line)?;
    let reply = match serde_json::from_str::<Order>(&line) {
        Ok(order) => {
            tracing::info!(uid, ?order, "order");
            let patience = if matches!(order, Order::Revoke { .. }) { ISSUERS_PATIENCE } else { PATIENCE };
            let (sender, answer): (SyncSender<Reply>, _) = sync_channel(1);
            inputs
                .send(Input::Order { uid, order, reply: sender })
                .map_err(|_| io::Error::other("the daemon stops"))?;
            answer.recv_timeout(patience).map_err(io::Error::other)?
        }
        Err(error) => Reply::Refused { why: format!("not an order: {error}") },
    };
    let mut text = serde_json::to_vec(&reply)?;
    text.push(b'\n');
    caller.write_all(&text)
}
