//! Request files: what credd wants approved on a web page (contract `HTCondor`, 2.1 and 3.5).
//!
//! One old `ClassAd` for each service, blank lines between them, each line `Name = "value"`. Inside a value `\"` is a
//! quote and any other backslash is itself; nothing else is escaped (observed on 25.14.1). The client's secret stands
//! in there, too: it is not taken, because only configuration says where a secret goes.

use serde::{Deserialize, Serialize};

use super::id::{CredentialId, Handle, Service, UserName};

/// The largest request file.
pub const MAX_KEY_FILE: usize = 64 * 1024;
/// No request of one submit names more services.
const MAX_ITEMS: usize = 64;
/// Random bytes of a key, as hexadecimal digits.
const DIGITS: usize = 64;

/// Whether a file's name is that of a request file: 64 lower-case hexadecimal digits.
#[must_use]
pub fn is_key(name: &str) -> bool {
    name.len() == DIGITS && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// What one request file asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    /// Whose jobs.
    pub user: UserName,
    /// The credentials, each once.
    pub items: Vec<Item>,
}

/// One credential that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// `Provider` and `Handle` as the base name on disk.
    pub base: String,
    /// `Scopes` as the submit file has them, byte for byte: credd compares them so.
    pub scopes: String,
    /// `Audience`, likewise.
    pub audience: String,
    /// `ClientId`
    pub client_id: String,
    /// `TokenUrl`
    pub token_url: String,
    /// `AuthorizationUrl`
    pub authorization_url: String,
    /// `ReturnUrl`
    pub return_url: String,
}

/// Read a request file.
///
/// # Errors
/// What is wrong with it, in words that hold nothing of its content.
pub fn parse(bytes: &[u8]) -> Result<KeyFile, &'static str> {
    if bytes.len() > MAX_KEY_FILE {
        return Err("it is larger than 64 KiB");
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    let (mut user, mut items) = (None, Vec::new());
    let mut ad = Ad::default();
    for line in text.lines().map(str::trim).chain([""]) {
        if !line.is_empty() {
            ad.line(line)?;
        } else if !ad.0.is_empty() {
            let (whose, item) = std::mem::take(&mut ad).item()?;
            if *user.get_or_insert_with(|| whose.clone()) != whose {
                return Err("it names two users");
            }
            if items.iter().any(|known: &Item| known.base == item.base) {
                return Err("it names a credential twice");
            }
            items.push(item);
            if items.len() > MAX_ITEMS {
                return Err("it names too many credentials");
            }
        }
    }
    let user = user.ok_or("it asks for nothing")?;
    Ok(KeyFile { user, items })
}

/// Attributes of one ad. Not for printing: the client's secret may be among them.
#[derive(Default)]
struct Ad<'a>(Vec<(&'a str, String)>);

impl<'a> Ad<'a> {
    fn line(&mut self, line: &'a str) -> Result<(), &'static str> {
        let (name, value) = line.split_once('=').ok_or("a line of it is no attribute")?;
        let name = name.trim_end();
        let word = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !word || self.has(name) {
            return Err("a line of it is no attribute, or is there twice");
        }
        self.0.push((name, unquote(value.trim_start()).ok_or("an attribute of it is no string")?));
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known.eq_ignore_ascii_case(name))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known.eq_ignore_ascii_case(name))?;
        Some(self.0.swap_remove(at).1)
    }

    fn item(mut self) -> Result<(UserName, Item), &'static str> {
        let mut need = |name| self.take(name).filter(|value| !value.is_empty());
        let user = need("LocalUser").ok_or("it names no user")?;
        let user = UserName::parse(&user).map_err(|_| "its user has no name that credd allows")?;
        let service = need("Provider").ok_or("it names no service")?;
        let service = Service::parse(&service).map_err(|_| "its service has no name that credd allows")?;
        let handle = need("Handle").map(|handle| Handle::parse(&handle)).transpose();
        let handle = handle.map_err(|_| "its handle has no name that credd allows")?;
        let id = CredentialId { user, service, handle };
        let item = Item {
            base: id.base(),
            scopes: need("Scopes").unwrap_or_default(),
            audience: need("Audience").unwrap_or_default(),
            client_id: need("ClientId").ok_or("it names no client")?,
            token_url: need("TokenUrl").ok_or("it names no token endpoint")?,
            authorization_url: need("AuthorizationUrl").ok_or("it names no page of an issuer")?,
            return_url: need("ReturnUrl").ok_or("it names no return URL")?,
        };
        Ok((id.user, item))
    }
}

/// The text between the first and the last quote of the line.
fn unquote(value: &str) -> Option<String> {
    let inside = value.strip_prefix('"')?.strip_suffix('"')?;
    let mut text = String::with_capacity(inside.len());
    let mut chars = inside.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.peek() == Some(&'"') => text.extend(chars.next()),
            '"' => return None,
            c if c.is_control() => return None,
            c => text.push(c),
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As credd 25.14.1 wrote it for a submit file with two handles.
    const OBSERVED: &str = "Handle = \"h1\"\nScopes = \"a b, c:/\\\"x\\\"\"\nAudience = \"https://aud \\\"q\\\" \\x é\"\n\
        ClientId = \"web\\\"client\"\nProvider = \"wlcg\"\nTokenUrl = \"https://127.0.0.1:8780/token\"\n\
        LocalUser = \"alice\"\nReturnUrl = \"http://127.0.0.1:8999/return/wlcg\"\n\
        ClientSecret = \"canary-s3cr\\\\\"et-value\"\nAuthorizationUrl = \"https://127.0.0.1:8780/auth\"\n\n\
        Handle = \"h2\"\nScopes = \"storage.read:/\"\nAudience = \"\"\nClientId = \"web\\\"client\"\n\
        Provider = \"wlcg\"\nTokenUrl = \"https://127.0.0.1:8780/token\"\nLocalUser = \"alice\"\n\
        ReturnUrl = \"http://127.0.0.1:8999/return/wlcg\"\nClientSecret = \"x\"\n\
        AuthorizationUrl = \"https://127.0.0.1:8780/auth\"\n";

    #[test]
    fn what_credd_wrote_is_read_byte_for_byte_and_without_the_secret() {
        let file = parse(OBSERVED.as_bytes()).unwrap();
        assert_eq!(file.user.as_str(), "alice");
        let [one, two] = &file.items[..] else { panic!("{file:?}") };
        assert_eq!((one.base.as_str(), two.base.as_str()), ("wlcg_h1", "wlcg_h2"));
        assert_eq!(one.scopes, "a b, c:/\"x\"");
        assert_eq!(one.audience, "https://aud \"q\" \\x é");
        assert_eq!(one.client_id, "web\"client");
        assert_eq!(two.audience, "");
        assert!(!format!("{file:?}").contains("canary"));
    }

    #[test]
    fn what_credd_would_not_write_is_refused_with_a_reason() {
        let changed = |from: &str, to: &str| parse(OBSERVED.replacen(from, to, 1).as_bytes()).unwrap_err();
        assert_eq!(
            changed("LocalUser = \"alice\"", "LocalUser = \"../root\""),
            "its user has no name that credd allows"
        );
        assert_eq!(changed("LocalUser = \"alice\"", "LocalUser = \"bob\""), "it names two users");
        assert_eq!(changed("\"wlcg\"", "\"a/b\""), "its service has no name that credd allows");
        assert_eq!(changed("\"h1\"", "\".\""), "its handle has no name that credd allows");
        assert_eq!(changed("\"h2\"", "\"h1\""), "it names a credential twice");
        assert_eq!(changed("\"h2\"", "h2"), "an attribute of it is no string");
        assert_eq!(changed("TokenUrl", "Nothing"), "it names no token endpoint");
        assert_eq!(changed("Scopes = ", "handle = "), "a line of it is no attribute, or is there twice");
        assert_eq!(changed("\"storage.read:/\"", "\"a\"b\""), "an attribute of it is no string");
        assert_eq!(parse(b"").unwrap_err(), "it asks for nothing");
        assert_eq!(parse(b"\xff").unwrap_err(), "it is not text");
        assert_eq!(parse(&vec![b'\n'; MAX_KEY_FILE + 1]).unwrap_err(), "it is larger than 64 KiB");
    }

    #[test]
    fn a_key_is_64_lower_case_hexadecimal_digits() {
        assert!(is_key(&"0a9f".repeat(16)));
        for bad in [&"0A9F".repeat(16), &"0a9".repeat(16), &"0a9g".repeat(16), &"../a".repeat(16), ""] {
            assert!(!is_key(bad), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _read = parse(&bytes);
        }

        #[test]
        fn any_damage_is_read_or_refused(at in 0..600_usize, byte: u8, cut in 0..700_usize) {
            let mut bytes = OBSERVED.as_bytes().to_vec();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes.truncate(cut);
            if let Ok(file) = parse(&bytes) {
                proptest::prop_assert!(file.items.iter().all(|item| !item.base.contains('/')));
            }
        }

        #[test]
        fn every_value_survives(scopes in "[ -~é]{0,40}") {
            proptest::prop_assume!(!scopes.ends_with('\\') && !scopes.contains("\\\""));
            let line = format!("\"{}\"", scopes.replace('"', "\\\""));
            proptest::prop_assert_eq!(unquote(&line), Some(scopes));
        }
    }
}
