//! `evercred login`: the storer's approval, outside of a submit.

use std::{ffi::OsString, process::ExitCode};

use crate::{
    cli,
    config::settings::{Provider, Settings},
    core::id::{Handle, Service},
    error::{Report, exit},
    submit::{
        self,
        error::SubmitError,
        human::Human,
        portal::Portal,
        request::Request,
        store::Credd,
        terminal::Terminal,
        voice::{Event, Voice},
        words::Purpose,
    },
};

/// Approve, store, wait: 0 with a usable credential, else as the storer.
#[must_use]
pub fn run(args: &cli::Login) -> ExitCode {
    submit::guard();
    if args.json { by_events(args, &mut Portal::default()) } else { on_terminal(args) }
}

fn on_terminal(args: &cli::Login) -> ExitCode {
    let terminal = Terminal::open(args.plain || submit::plain());
    let mut human = Human::new(&submit::account(), Purpose::Login, terminal);
    human.browser = args.browser;
    let outcome = login(args, &mut human);
    human.clear();
    match outcome {
        Ok(()) => ExitCode::from(exit::OK),
        Err(Failed::Before(_, report)) => report.print("evercred"),
        Err(Failed::Then(error)) => submit::told(&error, Purpose::Login),
    }
}

/// For a portal: whatever goes wrong is the last event.
fn by_events(args: &cli::Login, portal: &mut Portal) -> ExitCode {
    let code = match login(args, portal) {
        Ok(()) => exit::OK,
        Err(Failed::Before(label, report)) => {
            portal.failed(label, &report.message(), report.advice().unwrap_or("run evercred login --help"));
            report.code()
        }
        Err(Failed::Then(error)) => {
            portal.failed(error.label(), &error.line(Purpose::Login), error.advice());
            error.code()
        }
    };
    ExitCode::from(code)
}

/// A command line that cannot be read, if it asks for events: a portal reads nothing else.
pub(super) fn misused(arguments: &[OsString], error: &clap::Error) {
    if let Some(message) = misuse(arguments, error) {
        Portal::default().failed("bad-request", &message, "run evercred login --help");
    }
}

/// What is wrong, on one line.
fn misuse(arguments: &[OsString], error: &clap::Error) -> Option<String> {
    let login = arguments.get(1).is_some_and(|verb| verb == "login");
    let asked = login && arguments.iter().any(|argument| argument == "--json");
    let text = asked.then(|| error.to_string())?;
    let what: Vec<_> = text.split("\n\n").next().unwrap_or_default().split_whitespace().collect();
    Some(what.join(" ").trim_start_matches("error: ").to_owned())
}

/// Why there is no credential.
enum Failed {
    /// Nothing was begun; with a stable label.
    Before(&'static str, Report),
    /// On the way.
    Then(SubmitError),
}

fn login(args: &cli::Login, voice: &mut dyn Voice) -> Result<(), Failed> {
    let settings = submit::settings(args.config.clone()).map_err(|report| Failed::Before("bad-config", report))?;
    let (request, provider) = request(&args.which, &settings).map_err(|report| {
        let label = if report.code() == exit::USAGE { "bad-request" } else { "unknown-service" };
        Failed::Before(label, report)
    })?;
    let request = Request { scopes: args.scopes.clone(), audience: args.audience.clone(), ..request };
    approve(args, &settings, request, provider, voice).map_err(Failed::Then)
}

fn approve(
    args: &cli::Login,
    settings: &Settings,
    request: Request,
    provider: &Provider,
    voice: &mut dyn Voice,
) -> Result<(), SubmitError> {
    let cancelled = submit::cancelled()?;
    let credd = Credd::find()?;
    let keeper = || submit::known(settings);
    let counter = submit::counter(&credd, &keeper, settings, &cancelled, args.renew);
    counter.provide(&[(request, provider)], voice)?;
    voice.tell(Event::Done);
    Ok(())
}

/// `S` or `S_H` → the request and the provider that owns it.
///
/// # Errors
/// No such name, or nobody's service.
pub(super) fn request<'s>(which: &str, settings: &'s Settings) -> Result<(Request, &'s Provider), Report> {
    let (service, handle) = which.split_once('_').map_or((which, None), |(service, handle)| (service, Some(handle)));
    let parsed = Service::parse(service).and_then(|service| {
        let handle = handle.map(Handle::parse).transpose()?;
        Ok(Request::of(service, handle))
    });
    let request = parsed.map_err(|e| Report::new(e.to_string(), exit::USAGE))?;
    if let Some(provider) = submit::owner(&request, settings) {
        return Ok((request, provider));
    }
    let known: Vec<_> = settings.providers.iter().flat_map(|provider| &provider.services).cloned().collect();
    Err(Report::new(format!("{service} is not a service that is configured here"), exit::FAILED)
        .advise(format!("use one of: {}", known.join(", "))))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use clap::Parser;
    use serde_json::Value;

    use super::*;

    struct Sent(mpsc::Sender<Vec<u8>>);

    impl std::io::Write for Sent {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.send(bytes.to_vec()).ok();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_command_line_that_cannot_be_read_is_told_to_whoever_asked_for_events() {
        let said = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            misuse(&words, &cli::Evercred::try_parse_from(&words).unwrap_err())
        };
        assert_eq!(
            said("evercred login --json").as_deref(),
            Some("the following required arguments were not provided: <SERVICE>")
        );
        assert!(said("evercred login p --json --nonsense").unwrap().contains("--nonsense"));
        assert_eq!(said("evercred login"), None);
        assert_eq!(said("evercred status --json --nonsense"), None);
    }

    #[test]
    fn every_early_failure_is_one_failed_event_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let (good, bad) = (dir.path().join("good.toml"), dir.path().join("bad.toml"));
        std::fs::write(&good, "[provider.p]\nkind = \"mytoken\"\nserver = \"https://mytok.eu\"\n").unwrap();
        std::fs::write(&bad, "[provider.p]\nkind = \"nonsense\"\n").unwrap();
        let table = [
            (
                "nobodys",
                &good,
                "unknown-service",
                1,
                "nobodys is not a service that is configured here",
                "use one of: p",
            ),
            ("a/b", &good, "bad-request", 2, "a/b", "evercred login --help"),
            ("p", &bad, "bad-config", 78, "nonsense", ""),
            ("p", &dir.path().join("none.toml"), "bad-config", 78, "none.toml", ""),
        ];
        for (which, config, error, code, message, advice) in table {
            let (sender, said) = mpsc::channel();
            let words = ["evercred", "login", which, "--json", "--config", config.to_str().unwrap()];
            let cli::Command::Login(args) = cli::Evercred::parse_from(words).command else { panic!("a login") };
            let ended = by_events(&args, &mut Portal::to(Box::new(Sent(sender))));
            assert_eq!(format!("{ended:?}"), format!("{:?}", ExitCode::from(code)), "{which}");
            let text = String::from_utf8(said.try_iter().flatten().collect()).unwrap();
            let event: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("one event: {e}: {text}"));
            assert_eq!((&event["event"], &event["error"]), (&"failed".into(), &error.into()), "{text}");
            assert!(event["message"].as_str().unwrap().contains(message), "{text}");
            let told = event["advice"].as_str().unwrap();
            assert!(!told.is_empty() && told.contains(advice), "{text}");
        }
    }
}
