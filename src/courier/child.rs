//! What courier and replicator have in common as the keeper's children: signals, the socketpair on standard input, and
//! frames on it from the moment that the process is ready.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use serde::de::DeserializeOwned;
use tokio::{
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use super::frame::{self, MAX_FRAME, Sent};
use crate::error::exit;

/// The keeper's end. Signals of the terminal's foreground group are the keeper's business: they are blocked.
///
/// # Errors
/// Standard input is not what the keeper gives.
pub fn stream() -> io::Result<UnixStream> {
    let mut block = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        block.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&block), None)?;
    Ok(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?))
}

/// Frames from the keeper.
#[derive(Debug)]
pub struct Requests(FramedRead<OwnedReadHalf, LengthDelimitedCodec>);

impl Requests {
    /// The next one; none when the keeper is gone.
    ///
    /// # Errors
    /// The connection broke, or what came is no frame of ours.
    pub async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        match self.0.next().await {
            Some(body) => frame::decode(&body?).map(Some),
            None => Ok(None),
        }
    }
}

/// Both directions of the stream: what the keeper sends, and a task that sends to it what `answers` brings.
///
/// # Errors
/// The stream cannot be polled.
pub fn frames<T>(stream: UnixStream, answers: mpsc::Receiver<T>) -> io::Result<(Requests, JoinHandle<io::Result<()>>)>
where
    T: Sent + Send + Sync + 'static,
{
    stream.set_nonblocking(true)?;
    let (reader, writer) = tokio::net::UnixStream::from_std(stream)?.into_split();
    let codec = LengthDelimitedCodec::builder().max_frame_length(MAX_FRAME).new_codec();
    let sending = send(FramedWrite::new(writer, codec.clone()), answers);
    let sender = tokio::spawn(async move {
        // Alive without a voice, it would hold up everybody: the keeper starts another.
        sending.await.inspect_err(|_| std::process::exit(i32::from(exit::FAILED)))
    });
    Ok((Requests(FramedRead::new(reader, codec)), sender))
}

async fn send<T: Sent>(
    mut to: FramedWrite<OwnedWriteHalf, LengthDelimitedCodec>,
    mut answers: mpsc::Receiver<T>,
) -> io::Result<()> {
    while let Some(answer) = answers.recv().await {
        // One that does not fit must not end everything else that is under way.
        let Ok(bytes) = frame::encode(&answer).or_else(|_| frame::encode(&answer.shortened())) else { continue };
        // The codec writes the length itself.
        to.feed(Bytes::copy_from_slice(bytes.get(4..).unwrap_or_default())).await?;
        if answers.is_empty() {
            SinkExt::<Bytes>::flush(&mut to).await?;
        }
    }
    Ok(())
}
