//! SFTP version 3 (draft-ietf-secsh-filexfer-02), as much as putting a file needs, over the standard input and output
//! of `ssh -s HOST sftp`. Ours because a token's file must be closed to others from its creation: the mode goes into
//! the OPEN itself, which client libraries leave to the server's umask.
//!
//! A packet: u32 length, u8 type, u32 request id (but INIT and VERSION), then fields; a string is u32 length and bytes.

use std::{collections::BTreeMap, io};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

/// The largest packet that is read.
const MAX_PACKET: u32 = 256 << 10;
/// Data in one WRITE; every server takes 32 KiB.
const CHUNK: usize = 32 << 10;

const INIT: u8 = 1;
const VERSION: u8 = 2;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const READ: u8 = 5;
const WRITE: u8 = 6;
const FSETSTAT: u8 = 10;
const REMOVE: u8 = 13;
const MKDIR: u8 = 14;
const RENAME: u8 = 18;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const EXTENDED: u8 = 200;
const EXTENDED_REPLY: u8 = 201;

/// Read, or create what is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// For reading.
    Read,
    /// A new file; what is there is refused.
    New,
}

/// Why a request failed.
#[derive(Debug, Error)]
pub enum SftpError {
    /// `SSH_FX_NO_SUCH_FILE`
    #[error("no such file or directory")]
    Missing,
    /// `SSH_FX_PERMISSION_DENIED`
    #[error("permission denied")]
    Denied,
    /// Any other status, with the server's words.
    #[error("the server says {words:?} ({code})")]
    Status {
        /// As in the draft, 7.
        code: u32,
        /// Fit for a log.
        words: String,
    },
    /// The server cannot do what an atomic write needs.
    #[error("the server has no {0}")]
    Unable(&'static str),
    /// What came is no SFTP.
    #[error("what came is no SFTP: {0}")]
    Protocol(&'static str),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
}

/// A connection on which the versions have been exchanged.
#[derive(Debug)]
pub struct Sftp<R, W> {
    from: R,
    to: W,
    next: u32,
    extensions: BTreeMap<String, Vec<u8>>,
}

/// A packet being made.
struct Packet(Zeroizing<Vec<u8>>);

impl Packet {
    fn new(kind: u8, id: Option<u32>, room: usize) -> Self {
        let mut bytes = Zeroizing::new(Vec::with_capacity(room + 64));
        bytes.extend_from_slice(&[0; 4]);
        bytes.push(kind);
        bytes.extend_from_slice(&id.map(u32::to_be_bytes).unwrap_or_default());
        if id.is_none() {
            bytes.truncate(5);
        }
        Self(bytes)
    }

    fn number(mut self, number: u32) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    fn long(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    fn text(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// Attributes with nothing but permissions.
    fn mode(self, mode: u32) -> Self {
        self.number(4).number(mode)
    }

    fn finish(mut self) -> Zeroizing<Vec<u8>> {
        let length = u32::try_from(self.0.len().saturating_sub(4)).unwrap_or(u32::MAX).to_be_bytes();
        for (to, from) in self.0.iter_mut().zip(length) {
            *to = from;
        }
        self.0
    }
}

/// The fields of a packet, taken one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], SftpError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(SftpError::Protocol("a packet is too short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, SftpError> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    fn long(&mut self) -> Result<u64, SftpError> {
        Ok(u64::from(self.number()?) << 32 | u64::from(self.number()?))
    }

    fn text(&mut self) -> Result<&'a [u8], SftpError> {
        let length = usize::try_from(self.number()?).map_err(|_| SftpError::Protocol("a string is too long"))?;
        self.take(length)
    }
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Sftp<R, W> {
    /// Exchange versions.
    ///
    /// # Errors
    /// [`SftpError`]
    pub async fn start(mut from: R, mut to: W) -> Result<Self, SftpError> {
        to.write_all(&Packet::new(INIT, None, 0).number(3).finish()).await?;
        to.flush().await?;
        let (kind, body) = read(&mut from).await?;
        let mut fields = Fields(&body);
        if kind != VERSION || fields.number()? < 3 {
            return Err(SftpError::Protocol("the server does not speak version 3"));
        }
        let mut extensions = BTreeMap::new();
        while !fields.0.is_empty() {
            let name = String::from_utf8_lossy(fields.text()?).into_owned();
            extensions.insert(name, fields.text()?.to_vec());
        }
        Ok(Self { from, to, next: 1, extensions })
    }

    /// Whether the server has an extension.
    #[must_use]
    pub fn has(&self, extension: &str) -> bool {
        self.extensions.contains_key(extension)
    }

    /// Open a file; a new one with exactly this mode or less, from the beginning.
    ///
    /// # Errors
    /// [`SftpError`]
    pub async fn open(&mut self, path: &str, how: Open, mode: u32) -> Result<Vec<u8>, SftpError> {
        let flags = match how {
            Open::Read => 0x01,
            Open::New => 0x02 | 0x08 | 0x20,
        };
        let packet = self.packet(OPEN, path.len()).text(path.as_bytes()).number(flags);
        let packet = if how == Open::Read { packet.number(0) } else { packet.mode(mode) };
        let (kind, body) = self.ask(packet).await?;
        let mut fields = Fields(&body);
        match kind {
            HANDLE => Ok(fields.text()?.to_vec()),
            _ => Err(status(kind, &mut fields).err().unwrap_or(SftpError::Protocol("no handle"))),
        }
    }

    /// Write from the beginning.
    ///
    /// # Errors
    /// [`SftpError`]
    pub async fn write(&mut self, handle: &[u8], bytes: &[u8]) -> Result<(), SftpError> {
        let mut offset = 0_u64;
        for chunk in bytes.chunks(CHUNK) {
            let packet = self.packet(WRITE, chunk.len() + handle.len()).text(handle).long(offset).text(chunk);
            self.done(packet).await?;
            offset += chunk.len() as u64;
        }
        Ok(())
    }

    /// The first bytes of a file.
    ///
    /// # Errors
    /// [`SftpError`]
    pub async fn read(&mut self, handle: &[u8], most: u32) -> Result<Vec<u8>, SftpError> {
        let packet = self.packet(READ, handle.len()).text(handle).long(0).number(most);
        let (kind, body) = self.ask(packet).await?;
        let mut fields = Fields(&body);
        match kind {
            DATA => Ok(fields.text()?.to_vec()),
            // The end of the file, at once.
            _ => match status(kind, &mut fields) {
                Err(SftpError::Status { code: 1, .. }) => Ok(Vec::new()),
                Err(error) => Err(error),
                Ok(()) => Err(SftpError::Protocol("no data")),
            },
        }
    }

    /// Set the mode of an open file.
    ///
    /// # Errors
    /// [`SftpError`]
    pub async fn set_mode(&mut self, handle: &[u8], mode: u32) -> Result<(), SftpError> {
        let packet = self.packet(FSETSTAT, handle.len()).text(handle).mode(mode);
        self.done(packet).await
    }

    /// Sync to the disk, if the server can.
    ///
    /// # Errors
    /// [`SftpError`]
    pub async fn sync(&mut self, handle: &[u8]) -> Result<(), SftpError> {
        if !self.has("fsync@openssh.com") {
            return Ok(());
        }
        let packet = self.packet(EXTENDED, handle.len()).text(b"fsync@openssh.com").text(handle);
        self.done(packet).await
    }

    /// Close.
    ///
    /// # Errors
    /// [`SftpError`]
    pub async fn close(&mut self, handle: &[u8]) -> Result<(), SftpError> {
        let packet = self.packet(CLOSE, handle.len()).text(handle);
        self.done(packet).await
    }

    /// Put one file in the place of another, as rename(2) does.
    ///
    /// # Errors
    /// [`SftpError::Unable`]: the plain rename of SFTP refuses what is there, and would need a gap.
    pub async fn rename(&mut self, from: &str, to: &str) -> Result<(), SftpError> {
        const NAME: &str = "posix-rename@openssh.com";
        if !self.has(NAME) {
            return Err(SftpError::Unable(NAME));
        }
        let packet = self.packet(EXTENDED, from.len() + to.len()).text(NAME.as_bytes());
        self.done(packet.text(from.as_bytes()).text(to.as_bytes())).await
    }

    /// Rename a file to where there is none; OpenSSH refuses what is there.
    ///
    /// # Errors
    /// [`SftpError`]
    pub async fn rename_new(&mut self, from: &str, to: &str) -> Result<(), SftpError> {
        let packet = self.packet(RENAME, from.len() + to.len()).text(from.as_bytes()).text(to.as_bytes());
        self.done(packet).await
    }

    /// Remove a file.
    ///
    /// # Errors
    /// [`SftpError`]
    pub async fn remove(&mut self, path: &str) -> Result<(), SftpError> {
        let packet = self.packet(REMOVE, path.len()).text(path.as_bytes());
        self.done(packet).await
    }

    /// Make a directory for its owner alone.
    ///
    /// # Errors
    /// [`SftpError`]; also where it is there already.
    pub async fn make_directory(&mut self, path: &str) -> Result<(), SftpError> {
        let packet = self.packet(MKDIR, path.len()).text(path.as_bytes()).mode(0o700);
        self.done(packet).await
    }

    /// Whether the file system at `path` has no room; `None`: the server does not tell.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn is_full(&mut self, path: &str) -> Result<Option<bool>, SftpError> {
        const NAME: &str = "statvfs@openssh.com";
        if !self.has(NAME) {
            return Ok(None);
        }
        let packet = self.packet(EXTENDED, path.len()).text(NAME.as_bytes()).text(path.as_bytes());
        let (kind, body) = self.ask(packet).await?;
        let mut fields = Fields(&body);
        if kind != EXTENDED_REPLY {
            return Ok(None);
        }
        // bsize, frsize, blocks, bfree, bavail, files, ffree, favail, …
        let mut told = [0; 8];
        for number in &mut told {
            *number = fields.long()?;
        }
        let [.., available, files, _, inodes] = told;
        Ok(Some(available == 0 || (files > 0 && inodes == 0)))
    }

    fn packet(&mut self, kind: u8, room: usize) -> Packet {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        Packet::new(kind, Some(id), room)
    }

    async fn done(&mut self, packet: Packet) -> Result<(), SftpError> {
        let (kind, body) = self.ask(packet).await?;
        status(kind, &mut Fields(&body))
    }

    async fn ask(&mut self, packet: Packet) -> Result<(u8, Vec<u8>), SftpError> {
        let id = self.next.wrapping_sub(1);
        self.to.write_all(&packet.finish()).await?;
        self.to.flush().await?;
        let (kind, body) = read(&mut self.from).await?;
        let mut fields = Fields(&body);
        if fields.number()? != id {
            return Err(SftpError::Protocol("an answer to something else"));
        }
        Ok((kind, fields.0.to_vec()))
    }
}

async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<(u8, Vec<u8>), SftpError> {
    let length = from.read_u32().await?;
    if length == 0 || length > MAX_PACKET {
        return Err(SftpError::Protocol("a packet of absurd length (does the login shell print something?)"));
    }
    let kind = from.read_u8().await?;
    let mut body = vec![0; usize::try_from(length - 1).unwrap_or(0)];
    from.read_exact(&mut body).await?;
    Ok((kind, body))
}

fn status(kind: u8, fields: &mut Fields<'_>) -> Result<(), SftpError> {
    if kind != STATUS {
        return Err(SftpError::Protocol("an answer of another kind"));
    }
    match fields.number()? {
        0 => Ok(()),
        2 => Err(SftpError::Missing),
        3 => Err(SftpError::Denied),
        code => {
            let words = fields.text().map(|words| String::from_utf8_lossy(words).chars().take(200).collect());
            Err(SftpError::Status { code, words: words.unwrap_or_default() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_as_the_draft_lays_them_out() {
        let packet = Packet::new(OPEN, Some(7), 0).text(b"/a").number(0x2a).mode(0o600).finish();
        let expected = [
            [0, 0, 0, 23].as_slice(),
            &[3, 0, 0, 0, 7, 0, 0, 0, 2, b'/', b'a', 0, 0, 0, 0x2a, 0, 0, 0, 4, 0, 0, 1, 0x80],
        ];
        assert_eq!(*packet, expected.concat());
        assert_eq!(*Packet::new(INIT, None, 0).number(3).finish(), [0, 0, 0, 5, 1, 0, 0, 0, 3]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_of_a_server_are_an_error_and_no_panic(bytes: Vec<u8>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                if let Ok(mut sftp) = Sftp::start(bytes.as_slice(), tokio::io::sink()).await {
                    sftp.open("/a", Open::New, 0o600).await.unwrap_err();
                }
            });
        }
    }
}
