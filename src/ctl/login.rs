//! `evercred login`: the storer's approval, outside of a submit.

use std::process::ExitCode;

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
    let settings = match submit::settings(args.config.clone()) {
        Ok(settings) => settings,
        Err(report) => return report.print("evercred"),
    };
    let (request, provider) = match request(&args.which, &settings) {
        Ok((request, provider)) => {
            (Request { scopes: args.scopes.clone(), audience: args.audience.clone(), ..request }, provider)
        }
        Err(report) => return report.print("evercred"),
    };
    let mut portal = Portal::default();
    let outcome = if args.json {
        login(args, &settings, request, provider, &mut portal)
    } else {
        let terminal = Terminal::open(args.plain || submit::plain());
        let mut human = Human::new(&submit::account(), Purpose::Login, terminal);
        human.browser = args.browser;
        let outcome = login(args, &settings, request, provider, &mut human);
        human.clear();
        outcome
    };
    match outcome {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) if args.json => {
            portal.failed(&error, &error.line(Purpose::Login));
            ExitCode::from(error.code())
        }
        Err(error) => submit::told(&error, Purpose::Login),
    }
}

fn login(
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
