//! Mails: built by lettre, for both ways; and handed to the program `sendmail`.
//!
//! Addresses are arguments after `--`, so that nothing in a mail decides where it goes.

use std::{path::Path, process::Command, time::Duration};

use lettre::{
    Message,
    message::{Mailbox, header::ContentType},
};

use super::{
    child::{self, Ids},
    letter::Letter,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// The letter as a mail.
///
/// # Errors
/// One line: which address is none.
pub fn mail(letter: &Letter) -> Result<Message, String> {
    let mailbox = |address: &String| {
        address.parse().map(|address| Mailbox::new(None, address)).map_err(|e| format!("{address}: {e}"))
    };
    let mut message = Message::builder()
        .from(mailbox(&letter.from)?)
        .subject(&letter.subject)
        .header(ContentType::TEXT_PLAIN)
        // RFC 3834: nobody's holiday answer is wanted.
        .raw_header(lettre::message::header::HeaderValue::new(
            lettre::message::header::HeaderName::new_from_ascii_str("Auto-Submitted"),
            "auto-generated".to_owned(),
        ));
    for address in &letter.to {
        message = message.to(mailbox(address)?);
    }
    message.body(letter.body.clone()).map_err(|e| e.to_string())
}

/// Hand it to the program.
///
/// # Errors
/// One line: what it says.
pub fn send(program: &Path, ids: Ids, letter: &Letter) -> Result<(), String> {
    let message = mail(letter)?.formatted();
    let mut command = Command::new(program);
    command.args(["-i", "-f", &letter.from, "--"]).args(&letter.to);
    child::run(command, ids, &message, PATIENCE, 64 << 10)
        .map(|_| ())
        .map_err(|e| format!("{}: {e}", program.display()))
}
