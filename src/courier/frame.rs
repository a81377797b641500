//! Frames between keeper and courier: u32 length (big endian), then postcard. At most 1 MiB; the first one,
//! which configures, at most 64 MiB.
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
    error::Kind,
    notice::letter::Letter,
};

/// The largest frame.
pub const MAX_FRAME: usize = 1 << 20;
/// The first frame to a child holds all providers, or all sites with what is noted for each of their credentials.
pub const MAX_FIRST: usize = 64 << 20;

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
    /// Where the page for approvals stands may be free now for a courier that starts anew.
    WantRestart,
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
    /// The configuration cannot be used (privileges that do not drop).
    Failed {
        /// Why, in one line.
        why: String,
    },
}

/// What a child sends.
pub trait Sent: Serialize {
    /// The same, said so that it fits: this one is larger than [`MAX_FRAME`].
    #[must_use]
    fn shortened(self) -> Self;
}

impl Sent for FromCourier {
    fn shortened(self) -> Self {
        let error = |rotated| ExchangeError {
            rotated,
            ..ExchangeError::new(Kind::AnswerTooLarge, "the issuer's answer is larger than what is passed on")
        };
        match self {
            // Whatever else it was, a rotated refresh token is not thrown away.
            Self::Answer { number, outcome, took } => {
                let rotated = outcome.map_or_else(|error| error.rotated, |answer| answer.rotated);
                Self::Answer { number, outcome: Err(error(rotated)), took }
            }
            Self::Revoked { number, .. } => Self::Revoked { number, result: Err(error(None)) },
            Self::Delivered { number, .. } => {
                Self::Delivered { number, result: Err("its answer is larger than what is passed on".to_owned()) }
            }
            Self::Probed { provider, facts } => {
                let facts = Box::new(Facts { scopes_supported: None, providers_supported: None, ..*facts });
                Self::Probed { provider, facts }
            }
            Self::Failed { .. } => Self::Failed { why: "for more reasons than can be told".to_owned() },
            Self::Ready { .. }
            | Self::WantFigures
            | Self::Approval { .. }
            | Self::WantPage
            | Self::WantRestart
            | Self::Tell { .. } => Self::Tell {
                warn: true,
                text: "something was larger than what is passed on, and is dropped".to_owned(),
            },
        }
    }
}

/// Encode as length + postcard.
///
/// # Errors
/// A frame above [`MAX_FRAME`], as [`io::ErrorKind::InvalidInput`].
pub fn encode<T: Serialize>(frame: &T) -> io::Result<Zeroizing<Vec<u8>>> {
    encode_within(frame, MAX_FRAME)
}

fn encode_within<T: Serialize>(frame: &T, most: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let body = Zeroizing::new(postcard::to_stdvec(frame).map_err(io::Error::other)?);
    if body.len() > most {
        return Err(too_large(body.len(), most));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(body.len() + 4));
    bytes.extend_from_slice(&u32::try_from(body.len()).map_err(io::Error::other)?.to_be_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn too_large(length: usize, most: usize) -> io::Error {
    let what = if most == MAX_FIRST { "the configuration with what is noted for it" } else { "a frame" };
    let why = format!("{what} is too large: {length} bytes, of {most} at most");
    io::Error::new(io::ErrorKind::InvalidInput, why)
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

/// Blocking write of the first frame to a child, which configures it.
///
/// # Errors
/// As [`write()`]; it may be up to [`MAX_FIRST`] long.
pub fn write_first<T: Serialize>(to: &mut impl Write, frame: &T) -> io::Result<()> {
    to.write_all(&encode_within(frame, MAX_FIRST)?)
}

/// Blocking read of one frame; `None` at the end of the stream.
///
/// # Errors
/// A broken stream or frame.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    read_within(from, MAX_FRAME)
}

/// Blocking read of the first frame, which configures.
///
/// # Errors
/// A broken stream or frame.
pub fn read_first<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    read_within(from, MAX_FIRST)
}

fn read_within<T: DeserializeOwned>(from: &mut impl Read, most: usize) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
    if length > most {
        return Err(too_large(length, most));
    }
    let mut body = Zeroizing::new(vec![0; length]);
    from.read_exact(&mut body)?;
    decode(&body).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{answer::Answer, secret::AccessToken};

    #[test]
    fn an_answer_that_is_too_large_is_an_error_that_keeps_the_rotated_refresh_token() {
        let answer = Answer {
            access_token: AccessToken::parse(&"a".repeat(MAX_FRAME)).unwrap(),
            token_type: "Bearer".into(),
            lifetime: Duration::from_secs(600),
            refresh_lifetime: None,
            scopes: None,
            rotated: Some(RefreshToken::parse("the-new-one").unwrap()),
            flagged: None,
        };
        let frame = FromCourier::Answer { number: 7, outcome: Ok(answer), took: Duration::from_secs(1) };
        assert!(encode(&frame).is_err());
        let short = encode(&frame.shortened()).unwrap();
        match read::<FromCourier>(&mut &short[..]).unwrap() {
            Some(FromCourier::Answer { number: 7, outcome: Err(error), .. }) => {
                assert_eq!(error.kind, Kind::AnswerTooLarge);
                assert_eq!(error.rotated.unwrap().expose(), "the-new-one");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_frame_that_configures_may_be_large_and_says_so_where_it_is_too_large() {
        let notes = vec!["x".repeat(1000); 2000];
        let error = encode(&notes).unwrap_err();
        assert!(error.to_string().contains("a frame is too large"), "{error}");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let mut sent = Vec::new();
        write_first(&mut sent, &notes).unwrap();
        assert_eq!(read_first::<Vec<String>>(&mut &sent[..]).unwrap(), Some(notes));
        assert!(read::<Vec<String>>(&mut &sent[..]).is_err(), "another frame may not");
        let beyond = vec![0_u8; MAX_FIRST];
        let error = write_first(&mut Vec::new(), &beyond).unwrap_err().to_string();
        assert!(error.contains("the configuration") && error.contains("67108864 at most"), "{error}");
    }
}
