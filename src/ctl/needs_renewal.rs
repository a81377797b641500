//! `evercred needs-renewal`: one word for scripts, and an exit code.

use std::{io::Write as _, process::ExitCode};

use nix::unistd::geteuid;

use super::{
    daemon, show,
    status::{me, one},
};
use crate::{
    advice::advice,
    cli,
    config::{self, Sources},
    core::{
        snapshot::{Credential, State},
        time::Timestamp,
    },
    error::{Report, exit},
};

/// Whether a person must approve again, and how soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Nothing to do within the asked time.
    Good,
    /// The refresh token ends within it.
    Soon,
    /// It has ended, is refused, or cannot be used.
    Dead,
    /// There is none.
    Missing,
}

impl Need {
    fn of(credential: Option<&Credential>, now: Timestamp, min: std::time::Duration) -> Self {
        match credential {
            None => Self::Missing,
            Some(c) if matches!(c.state, State::Parked | State::Unusable) => Self::Dead,
            Some(c) => match c.ends() {
                Some(end) if end <= now => Self::Dead,
                Some(end) if end < now.plus(min) => Self::Soon,
                _ => Self::Good,
            },
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Good => exit::OK,
            Self::Soon => 1,
            Self::Dead => 2,
            Self::Missing => exit::MISSING,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Soon => "soon",
            Self::Dead => "dead",
            Self::Missing => "missing",
        }
    }
}

/// `evercred needs-renewal`: 0 good, 1 soon, 2 dead, 3 missing, 4 the daemon cannot be reached or does not know yet; 64, not 2, for wrong
/// arguments, of which it never hears.
#[must_use]
pub fn run(args: &cli::NeedsRenewal) -> ExitCode {
    let socket = args.socket.clone().unwrap_or_else(|| config::status_socket(&Sources::of_user(None)));
    let me = me();
    let status = match daemon::status_telling(&socket, |status| one(status, &args.which, me.as_deref()).is_some()) {
        Ok(status) => status,
        Err(error) => return error.report().print("evercred"),
    };
    let credential = one(&status, &args.which, me.as_deref());
    // To an admin a service alone names nothing, and "missing" would be no answer to what was meant.
    if credential.is_none() && geteuid().is_root() && status.everybody && !args.which.contains('/') {
        let whose = status.credentials.iter().find(|credential| credential.base() == args.which);
        let name = whose.map_or_else(|| format!("USER/{}", args.which), Credential::name);
        return Report::new(format!("{:?} is not USER/SERVICE", args.which), exit::MISUSED)
            .advise(format!("root sees everybody's credentials: name whose, for example {name}"))
            .print("evercred");
    }
    if credential.is_none() && !status.complete {
        return daemon::not_known_yet(&args.which).print("evercred");
    }
    let need = Need::of(credential, status.now, args.min);
    let mut line = format!("{}: {}", args.which, need.word());
    if let Some(credential) = credential {
        if let Some(error) = &credential.error {
            line = format!("{line}, {}: {}", error.kind, advice(error.kind).meaning);
        } else {
            line = format!("{line}, refresh token left: {}", show::left(credential.refresh_token_expires, status.now));
        }
    }
    // Nobody is left to tell if standard output is closed.
    writeln!(std::io::stdout().lock(), "{line}").ok();
    ExitCode::from(need.code())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{core::snapshot::Trouble, error::Kind};

    #[test]
    fn a_refused_or_ended_refresh_token_is_dead_one_that_ends_within_the_asked_time_is_soon() {
        let now = Timestamp::from_secs(1_000_000);
        let with = |state, left: i64| Credential {
            user: "a".into(),
            service: "s".into(),
            handle: None,
            provider: "s".into(),
            state,
            expires: None,
            renews: None,
            refresh_token_expires: Some(Timestamp(now.0 + left * 1000)),
            rolling: None,
            stored: None,
            renewed: None,
            generation: 0,
            error: None,
            flagged: None,
            replicas: Vec::new(),
        };
        let need = |c: Option<&Credential>| Need::of(c, now, Duration::from_secs(7200));
        assert_eq!(need(Some(&with(State::Fresh, 7200))), Need::Good);
        assert_eq!(need(Some(&with(State::Retrying, 7199))), Need::Soon);
        assert_eq!(need(Some(&with(State::Fresh, 0))), Need::Dead);
        assert_eq!(need(Some(&with(State::Parked, 99_999))), Need::Dead);
        assert_eq!(need(None), Need::Missing);
        let rolling = Credential { rolling: Some(true), ..with(State::Fresh, 600) };
        assert_eq!(need(Some(&rolling)), Need::Good, "each renewal moves it on");
        let error = Some(Trouble { kind: Kind::Timeout, detail: String::new(), since: None, times: 3 });
        assert_eq!(need(Some(&Credential { error, ..rolling })), Need::Soon, "unless they fail");
        let unlimited = Credential { refresh_token_expires: None, ..with(State::Fresh, 0) };
        assert_eq!(need(Some(&unlimited)), Need::Good);
    }
}
