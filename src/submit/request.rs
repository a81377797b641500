//! What `condor_submit` asks for: one argument a request, `S[&handle=H][&scopes=a,b][&audience=A][&options=O]`.
//!
//! Nothing in it is escaped (HTCondor contract §3.4), so an `&` inside an audience or options looks like a new key. A
//! piece that is none of the four known keys is therefore never guessed at: after options it belongs to them, elsewhere
//! it is told and left out. Names pass the same check as everywhere.

use thiserror::Error;

use crate::core::id::{Handle, NameError, Service};

/// One service of a submit file, with or without a handle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `use_oauth_services`
    pub service: Service,
    /// `_H` of `<service>_oauth_permissions_H`.
    pub handle: Option<Handle>,
    /// `<service>_oauth_permissions`, as HTCondor joined it; byte for byte what credd compares.
    pub scopes: Option<String>,
    /// `<service>_oauth_resource`, likewise.
    pub audience: Option<String>,
    /// Pieces that nobody understands.
    pub ignored: Vec<String>,
}

/// Why an argument is no request.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    /// A name that HTCondor would not have taken.
    #[error("the request {request:?}: {source}")]
    Name {
        /// The argument, shortened.
        request: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// Control characters, which no submit file produces.
    #[error("the request {0:?} holds control characters")]
    Control(String),
}

impl Request {
    /// A service without anything else.
    #[must_use]
    pub fn of(service: Service, handle: Option<Handle>) -> Self {
        Self { service, handle, scopes: None, audience: None, ignored: Vec::new() }
    }

    /// Parse one argument.
    ///
    /// # Errors
    /// [`RequestError`]: a name that credd would not take, or control characters.
    pub fn parse(argument: &str) -> Result<Self, RequestError> {
        let shown = || argument.chars().take(80).collect::<String>();
        if argument.chars().any(char::is_control) {
            return Err(RequestError::Control(shown()));
        }
        let named = |source| RequestError::Name { request: shown(), source };
        let mut pieces = argument.split('&');
        let service = Service::parse(pieces.next().unwrap_or_default()).map_err(named)?;
        let mut request = Self::of(service, None);
        let mut in_options = false;
        for piece in pieces {
            match piece.split_once('=') {
                Some(("handle", value)) if !value.is_empty() => {
                    request.handle = Some(Handle::parse(value).map_err(named)?);
                }
                Some(("scopes", value)) => request.scopes = Some(value.to_owned()).filter(|v| !v.is_empty()),
                Some(("audience", value)) => request.audience = Some(value.to_owned()).filter(|v| !v.is_empty()),
                // Ours has no options; they are the Vault storer's.
                Some(("options", _)) => in_options = true,
                Some(("handle", _)) => {}
                _ if in_options => {}
                _ => request.ignored.push(piece.to_owned()),
            }
        }
        Ok(request)
    }

    /// The base name on disk and for `condor_store_cred -s`: `S` or `S_H`.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.handle {
            None => self.service.to_string(),
            Some(handle) => format!("{}_{handle}", self.service),
        }
    }

    /// The scopes one by one; HTCondor joins them with commas.
    #[must_use]
    pub fn scope_list(&self) -> Vec<String> {
        words(self.scopes.as_deref())
    }

    /// The audiences one by one.
    #[must_use]
    pub fn audience_list(&self) -> Vec<String> {
        words(self.audience.as_deref())
    }

    /// The command by which a human repeats this request outside of a submit.
    #[must_use]
    pub fn login_command(&self) -> String {
        let mut command = format!("evercred login {}", self.name());
        for (option, value) in [("--scopes", &self.scopes), ("--audience", &self.audience)] {
            if let Some(value) = value {
                let quoted = value.replace('\'', r"'\''");
                command.extend([" ", option, " '", &quoted, "'"]);
            }
        }
        command
    }
}

fn words(text: Option<&str>) -> Vec<String> {
    let separator = |c: char| c == ',' || c.is_whitespace();
    text.unwrap_or_default().split(separator).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(argument: &str) -> Request {
        Request::parse(argument).unwrap()
    }

    #[test]
    fn requests_are_read_as_condor_submit_writes_them() {
        let eu = parse("helmholtz&handle=eu&scopes=a,b&audience=u1 u2");
        assert_eq!(eu.name(), "helmholtz_eu");
        assert_eq!(eu.scopes.as_deref(), Some("a,b"));
        assert_eq!(eu.scope_list(), ["a", "b"]);
        assert_eq!(eu.audience_list(), ["u1", "u2"]);
        assert_eq!(parse("helmholtz").name(), "helmholtz");
        assert_eq!(parse("helmholtz&handle=us&options=--foo bar&baz"), parse("helmholtz&handle=us"));
    }

    #[test]
    fn an_unknown_key_is_told_and_nothing_is_lost_with_it() {
        let request = parse("helmholtz&colour=blue&scopes=a&audience=https://x/?a=1&b=2");
        assert_eq!(request.ignored, ["colour=blue", "b=2"]);
        assert_eq!((request.scopes.as_deref(), request.audience.as_deref()), (Some("a"), Some("https://x/?a=1")));
        let empty = parse("helmholtz&scopes=&handle=&audience=");
        assert_eq!((empty.scopes, empty.handle, empty.audience), (None, None, None));
    }

    #[test]
    fn names_that_credd_would_not_take_are_refused() {
        for bad in ["", "&handle=x", "a/b", ".hid", "a b", "a&handle=../x", "a\u{1b}[2J", "é"] {
            assert!(Request::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_login_command_can_be_pasted_into_a_shell() {
        let request = parse("wlcg&handle=x&scopes=a,b&audience=it's");
        assert_eq!(request.login_command(), r"evercred login wlcg_x --scopes 'a,b' --audience 'it'\''s'");
    }

    proptest::proptest! {
        #[test]
        fn any_argument_is_read_or_refused(argument: String) {
            let _read = Request::parse(&argument);
        }
    }
}
