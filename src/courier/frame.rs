//! Frames between keeper and courier: u32 length (big endian), then postcard. At most 1 MiB.
//! The first frame to a courier is `Configure`; its answer is `Ready`, after privileges are gone.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{self, Read, Write},
    time::Duration,
};
use zeroize::Zeroizing;

use crate::{
    config::settings::{Outward, Provider},
    core::{
        answer::{ExchangeError, Grant, Outcome},
        approval::{Ask, Told},
        course::Course,
        figures::Figures,
        secret::{RefreshToken, on_wire},
        snapshot::Page,
    },
    courier::probe::Facts,
    notice::letter::Letter,
};

/// The largest frame.
pub const MAX_FRAME: usize = 1 << 20;

/// Keeper → courier.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToCourier {
    /// The providers (index = position), and who to become.
    Configure {
        /// Settings of all providers.
        providers: Vec<Provider>,
        /// uid and gid to drop to, if started as root.
        become_ids: Option<(u32, u32)>,
        /// What it serves and tells besides.
        outward: Box<Outward>,
    },
    /// Give a refresh token back.
    Revoke {
        /// Comes back with the answer.
        number: u64,
        /// Index into the providers of `Configure`.
        provider: usize,
        /// The refresh token.
        #[serde(with = "on_wire")]
        token: RefreshToken,
    },
    /// Deliver a letter.
    Deliver {
        /// Comes back with what became of it.
        number: u64,
        /// It.
        letter: Box<Letter>,
    },
    /// The figures that it asked for.
    Figures(Box<Figures>),
    /// The answer to a question of the page for approvals.
    Approval {
        /// The question's number.
        number: u64,
        /// The answer.
        told: Told,
    },
    /// The course of a renewal, or of a delivery of what it brought, for traces.
    Trace(Box<Course>),
    /// What the status page shows, which it asked for.
    Page(Box<Page>),
    /// Do one exchange.
    Exchange {
        /// Comes back with the answer.
        number: u64,
        /// Index into the providers of `Configure`.
        provider: usize,
        /// What to ask for.
        grant: Grant,
    },
    /// Look at a provider's issuer, for `evercred doctor`.
    Probe {
        /// Index into the providers of `Configure`.
        provider: usize,
    },
}

/// Courier → keeper.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromCourier {
    /// Configured; privileges dropped; sandboxed as far as `sandbox` says.
    Ready {
        /// What of the sandbox is in force, for the log.
        sandbox: String,
    },
    /// An exchange ended.
    Answer {
        /// The exchange's number.
        number: u64,
        /// How it ended.
        outcome: Outcome,
        /// How long the issuer took.
        took: Duration,
    },
    /// A revocation ended.
    Revoked {
        /// Its number.
        number: u64,
        /// How it ended.
        result: Result<(), ExchangeError>,
    },
    /// What became of a letter.
    Delivered {
        /// Its number.
        number: u64,
        /// How it ended.
        result: Result<(), String>,
    },
    /// A reader wants figures.
    WantFigures,
    /// A question of the page for approvals.
    Approval {
        /// Comes back with the answer.
        number: u64,
        /// What it asks.
        ask: Ask,
    },
    /// A reader wants the status page.
    WantPage,
    /// A line for the log.
    Tell {
        /// It is a warning.
        warn: bool,
        /// In words.
        text: String,
    },
    /// A probe ended.
    Probed {
        /// Index of the provider.
        provider: usize,
        /// What was seen.
        facts: Box<Facts>,
    },
    /// The configuration cannot be used (a CA file that does not parse, privileges that do not drop).
    Failed {
        /// Why, in one line.
        why: String,
    },
}

/// Encode as length + postcard.
///
/// # Errors
/// A frame above [`MAX_FRAME`].
pub fn encode<T: Serialize>(frame: &T) -> io::Result<Zeroizing<Vec<u8>>> {
    let body = Zeroizing::new(postcard::to_stdvec(frame).map_err(io::Error::other)?);
    if body.len() > MAX_FRAME {
        return Err(io::Error::other("frame too large"));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(body.len() + 4));
    bytes.extend_from_slice(&u32::try_from(body.len()).map_err(io::Error::other)?.to_be_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Decode the postcard part of a frame.
///
/// # Errors
/// Bytes that are not such a frame.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    postcard::from_bytes(body).map_err(io::Error::other)
}

/// Blocking write of one frame.
///
/// # Errors
/// The peer is gone, or the frame is too large.
pub fn write<T: Serialize>(to: &mut impl Write, frame: &T) -> io::Result<()> {
    to.write_all(&encode(frame)?)
}

/// Blocking read of one frame; `None` at the end of the stream.
///
/// # Errors
/// A broken stream or frame.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
    if length > MAX_FRAME {
        return Err(io::Error::other("frame too large"));
    }
    let mut body = Zeroizing::new(vec![0; length]);
    from.read_exact(&mut body)?;
    decode(&body).map(Some)
}
