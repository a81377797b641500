//! Connections: accept, TLS, HTTP/1.1 and HTTP/2, and the gate that counts, delays and fails requests.

use std::{convert::Infallible, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Request, Response, StatusCode, header},
    response::IntoResponse,
};
use bytes::Bytes;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::{Shared, book::Fault, control, control::Outage, mytoken, oauth2, vault};

/// The caller's address, for `hosts` restrictions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Put into a response to have its connection closed instead.
#[derive(Debug, Clone, Copy)]
struct Lost;

/// Put into a response to have it wait.
#[derive(Debug, Clone, Copy)]
struct Late(Duration);

/// What a fault does to a good answer on its way.
pub(super) fn on_its_way(mut response: Response<Body>, fault: Option<Fault>) -> Response<Body> {
    match fault {
        Some(Fault::LoseAnswer) => drop(response.extensions_mut().insert(Lost)),
        Some(Fault::LateAnswer(ms)) => drop(response.extensions_mut().insert(Late(Duration::from_millis(ms)))),
        _ => {}
    }
    response
}

/// Read certificate chain and key.
pub(super) fn tls(chain: &Path, key: &Path) -> io::Result<TlsAcceptor> {
    let named = |path: &Path, error: rustls::pki_types::pem::Error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
    };
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| named(chain, error))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| named(key, error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(certificates, secret)
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Accept until the runtime ends.
pub(super) async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let router = Router::new()
        .merge(oauth2::routes())
        .merge(vault::routes())
        .nest("/mytoken", mytoken::routes())
        .nest("/control", control::routes())
        .with_state(Arc::clone(&shared));
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors: give others the time to close theirs.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let (shared, router, tls) = (Arc::clone(&shared), router.clone(), tls.clone());
        tokio::spawn(async move {
            // A delayed acknowledgement would cost 40 ms; without it only speed is lost.
            drop(stream.set_nodelay(true));
            let _open = shared.knobs.accept();
            match tls {
                None => connection(stream, peer, Arc::clone(&shared), router).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        connection(stream, peer, Arc::clone(&shared), router).await;
                    }
                }
            }
        });
    }
}

async fn connection<S>(stream: S, peer: SocketAddr, shared: Arc<Shared>, router: Router)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (shared, router) = (Arc::clone(&shared), router.clone());
        request.extensions_mut().insert(Peer(peer));
        async move { gate(&shared, router, request).await }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(1000);
    // Whatever goes wrong with one connection is the client's to see.
    drop(builder.serve_connection(TokioIo::new(stream), service).await);
}

async fn gate(shared: &Shared, router: Router, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let request = request.map(Body::new);
    if request.uri().path().starts_with("/control/") {
        return Ok(router.oneshot(request).await.unwrap_or_else(never));
    }
    let knobs = &shared.knobs;
    let _flight = knobs.fly();
    let latency = knobs.latency();
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    match knobs.outage() {
        Outage::Off => {}
        Outage::Unavailable => {
            return Ok((StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable").into_response());
        }
        Outage::Closed => return Err(io::Error::from(io::ErrorKind::ConnectionReset)),
    }
    let response = router.oneshot(request).await.unwrap_or_else(never);
    if let Some(Late(wait)) = response.extensions().get() {
        tokio::time::sleep(*wait).await;
    }
    if response.extensions().get::<Lost>().is_some() {
        return Err(io::Error::from(io::ErrorKind::ConnectionReset));
    }
    Ok(response)
}

fn never(never: Infallible) -> Response<Body> {
    match never {}
}

/// The answer of a fault that spares the token.
pub(super) async fn misbehave(fault: Fault) -> Response<Body> {
    let json = [(header::CONTENT_TYPE, "application/json")];
    match fault {
        Fault::Hang => std::future::pending().await,
        Fault::Redirect => (StatusCode::FOUND, [(header::LOCATION, "/elsewhere")]).into_response(),
        Fault::Html => {
            ([(header::CONTENT_TYPE, "text/html")], "<!doctype html><title>Sign in</title><p>Please sign in.")
                .into_response()
        }
        Fault::Huge => {
            let chunk = Bytes::from(vec![b'a'; 64 * 1024]);
            let body = std::iter::once(Bytes::from_static(br#"{"access_token":""#))
                .chain(std::iter::repeat_n(chunk, 16 * 1024))
                .map(Ok::<_, Infallible>);
            (json, Body::from_stream(futures_util::stream::iter(body))).into_response()
        }
        Fault::HalfJson => (json, r#"{"access_token":"eyJhbGciOi"#).into_response(),
        Fault::RateLimited(seconds) => limited(seconds),
        Fault::InvalidClient => oauth2::refuse(StatusCode::UNAUTHORIZED, "invalid_client", "client unknown"),
        Fault::ProviderRefuses => {
            oauth2::refuse(StatusCode::BAD_REQUEST, "oidc_error", "invalid_grant: refresh token unknown")
        }
        _ => oauth2::refuse(StatusCode::INTERNAL_SERVER_ERROR, "internal_server_error", "as asked for"),
    }
}

/// 429 as mytoken servers answer it.
pub(super) fn limited(seconds: u64) -> Response<Body> {
    (
        StatusCode::TOO_MANY_REQUESTS,
        [(header::RETRY_AFTER, seconds.to_string()), (header::CONTENT_TYPE, "text/plain".into())],
        "Too Many Requests",
    )
        .into_response()
}
