//! The courier's loop: frames in, exchanges at once, frames out as they end.

use std::{io, net::SocketAddr, os::unix::net::UnixStream, process::ExitCode, sync::Arc, time::Instant};

use tokio::sync::mpsc;

#[cfg(feature = "otlp")]
use super::traces::Traces;
use super::{
    calls, child,
    endpoint::{self, Board, Want},
    frame::{self, FromCourier, ToCourier},
    http::Caller,
    probe, sandbox, web,
};
use crate::{
    config::settings::Outward,
    core::answer::ExchangeError,
    error::{Kind, exit},
    notice::post::Postman,
};

/// Run as the courier until the keeper's end of standard input closes.
#[must_use]
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::from(exit::OK),
        // The keeper was told in a frame, if it still listens; the exit code is for nobody else.
        Err(_) => ExitCode::from(exit::FAILED),
    }
}

fn run() -> io::Result<()> {
    let mut stream = child::stream()?;
    let Some(ToCourier::Configure { providers, become_ids, outward }) = frame::read_first(&mut stream)? else {
        return Err(io::Error::other("the first frame is not Configure"));
    };
    // While we still may: see `web::Door`.
    let door = outward.web_approval.as_ref().map(|page| web::Door::open(&page.listen));
    let prepared = sandbox::drop_privileges(become_ids, &[]).and_then(|()| {
        let callers: Vec<_> = providers.into_iter().map(Caller::new).collect();
        let mut outward = *outward;
        let postman = outward.post.take().map(Postman::new);
        let files = sandbox::close_files()?;
        Ok((Parts { callers: callers.into(), postman, outward }, format!("{files}, {}", calls::close()?)))
    });
    let (parts, sandbox) = match prepared {
        Ok(prepared) => prepared,
        Err(why) => {
            frame::write(&mut stream, &FromCourier::Failed { why: why.clone() })?;
            return Err(io::Error::other(why));
        }
    };
    frame::write(&mut stream, &FromCourier::Ready { sandbox })?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(stream, parts, door))
}

/// Start the endpoint, and pass on to the keeper what it wants.
fn open_endpoint(listen: SocketAddr, page: bool, done: mpsc::Sender<FromCourier>) -> io::Result<Board> {
    let (board, mut wanted) = endpoint::start(listen, page)?;
    tokio::spawn(async move {
        while let Some(want) = wanted.recv().await {
            let frame = match want {
                Want::Figures => FromCourier::WantFigures,
                Want::Page => FromCourier::WantPage,
                Want::Trouble(address, why) => FromCourier::Tell {
                    warn: true,
                    text: format!("metrics_listen {address} cannot be had ({why}); renewals go on, trying again"),
                },
                Want::Listening(address) => {
                    FromCourier::Tell { warn: false, text: format!("metrics are at http://{address}/metrics") }
                }
            };
            if done.send(frame).await.is_err() {
                return;
            }
        }
    });
    Ok(board)
}

/// What frames are worked on with.
struct Parts {
    callers: Arc<[Caller]>,
    /// None is wanted; or none can be made, and that is what comes of each letter.
    postman: Option<Result<Postman, String>>,
    /// What is served besides.
    outward: Outward,
}

async fn work(parts: &Parts, frame: ToCourier) -> Option<FromCourier> {
    let callers = &parts.callers;
    match frame {
        ToCourier::Deliver { number, letter } => {
            let result = match &parts.postman {
                Some(Ok(postman)) => postman.deliver(&letter).await,
                Some(Err(why)) => Err(why.clone()),
                None => Err("no notices are configured any more".into()),
            };
            Some(FromCourier::Delivered { number, result })
        }
        ToCourier::Exchange { number, provider, grant } => {
            let began = Instant::now();
            let outcome = match callers.get(provider) {
                Some(caller) => caller.exchange(&grant).await,
                None => Err(ExchangeError::new(Kind::CourierLost, "no such provider")),
            };
            Some(FromCourier::Answer { number, outcome, took: began.elapsed() })
        }
        ToCourier::Revoke { number, provider, token } => {
            let result = match callers.get(provider) {
                Some(caller) => caller.revoke(&token).await,
                None => Err(ExchangeError::new(Kind::CourierLost, "no such provider")),
            };
            Some(FromCourier::Revoked { number, result })
        }
        ToCourier::Probe { provider } => {
            let facts = Box::new(probe::probe(callers.get(provider)?).await);
            Some(FromCourier::Probed { provider, facts })
        }
        // Only the first frame configures; the others have been dealt with.
        ToCourier::Configure { .. }
        | ToCourier::Figures(_)
        | ToCourier::Page(_)
        | ToCourier::Trace(_)
        | ToCourier::Approval { .. } => None,
    }
}

async fn serve(stream: UnixStream, parts: Parts, door: Option<io::Result<web::Door>>) -> io::Result<()> {
    let parts = Arc::new(parts);
    let (done, ended) = mpsc::channel::<FromCourier>(256);
    let (mut requests, sender) = child::frames(stream, ended)?;
    #[cfg(feature = "otlp")]
    let traces = match parts.outward.otlp.as_deref().map(Traces::new) {
        None => None,
        Some(Ok((traces, sending))) => {
            let done = done.clone();
            tokio::spawn(sending.run(move |trouble| {
                let (warn, text) = match trouble {
                    Some(error) => (true, format!("traces are not taken: {error}")),
                    None => (false, "traces are taken again".to_owned()),
                };
                // The log may miss it while the keeper is busy.
                done.try_send(FromCourier::Tell { warn, text }).ok();
            }));
            Some(traces)
        }
        Some(Err(text)) => {
            done.send(FromCourier::Tell { warn: true, text }).await.ok();
            None
        }
    };
    let board = match parts.outward.metrics_listen {
        Some(listen) => Some(open_endpoint(listen, parts.outward.status_page, done.clone())?),
        None => None,
    };
    let desk = parts.outward.web_approval.clone().zip(door);
    let desk = desk.map(|(page, door)| web::start(page, door, Arc::clone(&parts.callers), done.clone()));
    while let Some(frame) = requests.next().await? {
        if let (ToCourier::Approval { .. }, Some(desk)) = (&frame, &desk) {
            if let ToCourier::Approval { number, told } = frame {
                desk.answered(number, told);
            }
            continue;
        }
        let frame = match (frame, &board) {
            (ToCourier::Figures(figures), Some(board)) => {
                board.figures.send_replace(Some((Instant::now(), figures.into())));
                continue;
            }
            (ToCourier::Page(page), Some(board)) => {
                board.page.send_replace(Some((Instant::now(), page.into())));
                continue;
            }
            #[cfg(feature = "otlp")]
            (ToCourier::Trace(course), _) => {
                if let Some(traces) = &traces {
                    traces.send(*course);
                }
                continue;
            }
            (frame, _) => frame,
        };
        let (parts, done) = (Arc::clone(&parts), done.clone());
        tokio::spawn(async move {
            if let Some(answer) = work(&parts, frame).await {
                // The keeper is gone if nobody takes it.
                done.send(answer).await.ok();
            }
        });
    }
    // The keeper is gone: whatever is under way has nobody to go to.
    sender.abort();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{self, Sources, condor::Knobs},
        core::{
            answer::{Grant, Spends},
            secret::RefreshToken,
        },
        notice::letter::Letter,
    };

    #[test]
    fn a_client_that_cannot_be_made_fails_its_own_provider_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        let provider = |name: &str| {
            format!(
                "[provider.{name}]\nkind = \"oauth2\"\nclient_id = \"c\"\ntoken_endpoint = \"http://127.0.0.1:1/token\"\n"
            )
        };
        let ca_file = "ca_file = \"/nowhere/ca.pem\"\n";
        let (bad, good) = (provider("bad"), provider("good"));
        let notices = format!("[notices]\nwebhook = \"http://127.0.0.1:1/\"\n{ca_file}");
        std::fs::write(&file, format!("{bad}{ca_file}{good}{notices}")).unwrap();
        let sources =
            Sources { config: Some(file), credential_directory: Some(dir.path().into()), ..Sources::default() }
                .without_secrets();
        let settings = config::load_with(&sources, &Knobs::default()).unwrap();
        let parts = Parts {
            callers: settings.providers.into_iter().map(Caller::new).collect(),
            postman: settings.notices.map(|notices| Postman::new(notices.post)),
            outward: Outward::default(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let grant = || Grant {
            spends: Spends::RefreshToken(RefreshToken::parse("r").unwrap()),
            scopes: Vec::new(),
            audience: Vec::new(),
        };
        let exchange = |provider| {
            let frame = ToCourier::Exchange { number: 7, provider, grant: grant() };
            match runtime.block_on(work(&parts, frame)) {
                Some(FromCourier::Answer { number: 7, outcome, .. }) => outcome.unwrap_err(),
                other => panic!("{other:?}"),
            }
        };
        let error = exchange(0);
        assert_eq!(error.kind, Kind::TlsSetup);
        assert!(error.detail.contains("/nowhere/ca.pem cannot be read"), "{}", error.detail);
        assert_eq!(exchange(1).kind, Kind::Network, "it was asked");
        let letter = Letter {
            way: crate::notice::letter::Way::Webhook,
            whom: "admins".into(),
            for_admins: true,
            from: String::new(),
            to: Vec::new(),
            subject: "s".into(),
            body: "{}".into(),
        };
        let delivered = runtime.block_on(work(&parts, ToCourier::Deliver { number: 8, letter: Box::new(letter) }));
        let Some(FromCourier::Delivered { number: 8, result: Err(why) }) = delivered else { panic!("{delivered:?}") };
        assert!(why.contains("/nowhere/ca.pem cannot be read"), "{why}");
    }
}
