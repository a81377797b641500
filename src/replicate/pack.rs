//! Globus Compute's byte layouts (contract replication, §4): a buffer is a two-character id, a newline and a body; a
//! pack is, for each buffer, its length in characters, a newline and the buffer. Everything we send is ASCII, so that
//! characters and bytes are the same.

use std::fmt::Write as _;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use thiserror::Error;

/// The function that runs at the endpoint; `@ROOT@` and `@SITE@` are put in at registration.
const SOURCE: &str = include_str!("function.py");
/// Its name.
pub const NAME: &str = "replicate_v1";

/// A result that is none of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PackError {
    /// Another serialisation.
    #[error("the result is packed in a way that we do not open")]
    Unknown,
    /// Lengths or base64 or JSON are wrong.
    #[error("the result is torn")]
    Torn,
}

/// The function's source for a site: what it may write is fixed when it is registered.
#[must_use]
pub fn source(root: &str, site: &str) -> String {
    SOURCE.replace("@ROOT@", &ascii(&Value::from(root))).replace("@SITE@", &ascii(&Value::from(site)))
}

/// JSON with everything beyond ASCII escaped.
#[must_use]
pub fn ascii(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                write!(text, "\\u{unit:04x}").ok();
            }
        }
    }
    text
}

fn pack(buffer: &str) -> String {
    format!("{}\n{buffer}", buffer.chars().count())
}

/// `function_code`: source text (`st`), or for endpoints before 3.3.0 a pickled pair of texts (`04`).
#[must_use]
pub fn code(name: &str, source: &str, legacy: bool) -> String {
    if !legacy {
        return pack(&format!("st\n{name}:{source}"));
    }
    let mut bytes = vec![0x80, 0x02];
    for text in [name, source] {
        bytes.push(b'X');
        bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes.extend_from_slice(&[0x86, 0x2e]);
    pack(&format!("04\n{}", STANDARD.encode(bytes)))
}

/// Arguments as JSON: an array, and no keyword arguments.
#[must_use]
pub fn arguments(array: &Value) -> String {
    pack(&format!("11\n{}", ascii(array))) + &pack("11\n{}")
}

/// The text that our function returned.
///
/// # Errors
/// [`PackError`]
pub fn result(text: &str) -> Result<String, PackError> {
    let (id, body) = text.split_once('\n').ok_or(PackError::Torn)?;
    match id {
        "11" => match serde_json::from_str(body).map_err(|_| PackError::Torn)? {
            Value::String(text) => Ok(text),
            _ => Err(PackError::Unknown),
        },
        "13" => {
            let (length, rest) = body.split_once('\n').ok_or(PackError::Torn)?;
            let length: usize = length.parse().map_err(|_| PackError::Torn)?;
            let first: String = rest.chars().take(length).collect();
            // Not nested any deeper than this.
            if first.starts_with("13") { Err(PackError::Unknown) } else { result(&first) }
        }
        "00" => {
            let packed: String = body.split_whitespace().collect();
            unpickle(&STANDARD.decode(packed).map_err(|_| PackError::Torn)?)
        }
        _ => Err(PackError::Unknown),
    }
}

/// A pickle of one text; every other opcode is an error, so that nothing can be executed (contract §4.5).
fn unpickle(bytes: &[u8]) -> Result<String, PackError> {
    let mut at = bytes;
    let mut text = None;
    let take = |at: &mut &[u8], count: usize| -> Result<Vec<u8>, PackError> {
        let (taken, rest) = at.split_at_checked(count).ok_or(PackError::Torn)?;
        *at = rest;
        Ok(taken.to_vec())
    };
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    loop {
        match take(&mut at, 1)?.first() {
            Some(0x80 | b'q') => drop(take(&mut at, 1)?),
            Some(0x95) => drop(take(&mut at, 8)?),
            Some(b'r') => drop(take(&mut at, 4)?),
            Some(0x94) => {}
            Some(opcode @ (0x8c | b'X' | 0x8d)) => {
                let width = match opcode {
                    0x8c => 1,
                    b'X' => 4,
                    _ => 8,
                };
                let length = number(&take(&mut at, width)?);
                let length = usize::try_from(length).map_err(|_| PackError::Torn)?;
                text = Some(String::from_utf8(take(&mut at, length)?).map_err(|_| PackError::Torn)?);
            }
            Some(b'.') => return text.ok_or(PackError::Unknown),
            _ => return Err(PackError::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_contracts_vectors_come_out_byte_for_byte() {
        let f = "def f(x):\n    return x\n";
        assert_eq!(code("f", f, false), "28\nst\nf:def f(x):\n    return x\n");
        assert_eq!(code("f", f, true), format!("{}\n04\ngAJYAQAAAGZYFwAAAGRlZiBmKHgpOgogICAgcmV0dXJuIHgKhi4=", 55));
        assert_eq!(arguments(&json!([1])), "6\n11\n[1]5\n11\n{}");
        assert_eq!(ascii(&json!("é😀")), "\"\\u00e9\\ud83d\\ude00\"");
    }

    #[test]
    fn results_of_every_release_are_read_and_nothing_else_is() {
        assert_eq!(result("11\n\"hi\"").unwrap(), "hi");
        assert_eq!(result("00\ngASVBgAAAAAAAACMAmhplC4=\n").unwrap(), "hi");
        assert_eq!(result("13\n7\n11\n\"hi\"32\n00\nx").unwrap(), "hi");
        // A dict: an opcode that could begin anything.
        assert_eq!(result("00\ngASVCgAAAAAAAAB9lIwCb2uUiHMu\n"), Err(PackError::Unknown));
        for bad in ["", "11", "99\nx", "00\n!!", "13\nx", "11\n{"] {
            assert!(result(bad).is_err(), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String, bytes: Vec<u8>) {
            let _read = (result(&text), unpickle(&bytes), result(&format!("13\n{text}")));
        }
    }
}
