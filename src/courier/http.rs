//! One HTTP client per provider: no redirects, no proxies, bounded in time and size, https except to loopback.

use std::{
    error::Error as _,
    sync::Arc,
    time::{Duration, SystemTime},
};

use reqwest::{Certificate, Client, Response, header, redirect};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::discovered::Discovered;
use crate::{
    config::settings::{CaFile, OAuth2, Provider, ProviderKind},
    core::{
        answer::{ExchangeError, Grant, Outcome},
        secret::{ClientSecret, RefreshToken},
        time::Timestamp,
    },
    error::Kind,
    issuer::{self, TokenAnswer, TokenRequest, client, oauth2, revocation},
};

/// No answer is larger. What a token answer brings into a frame is less: see [`issuer::judge`].
const MAX_BODY: usize = 1 << 20;
const CONNECT: Duration = Duration::from_secs(10);

/// A provider, and how to reach it.
#[derive(Debug)]
pub struct Caller {
    provider: Provider,
    /// None can be made: this provider's exchanges fail, and nobody else's.
    client: Result<Client, ExchangeError>,
    endpoint: Discovered,
    revocation: Discovered,
}

impl Caller {
    /// Build the client.
    #[must_use]
    pub fn new(provider: Provider) -> Self {
        let client = client(&provider).map_err(|what| ExchangeError::new(Kind::TlsSetup, what));
        Self { provider, client, endpoint: Discovered::default(), revocation: Discovered::default() }
    }

    fn client(&self) -> Result<&Client, ExchangeError> {
        self.client.as_ref().map_err(ExchangeError::clone)
    }

    /// One exchange.
    ///
    /// # Errors
    /// [`ExchangeError`], classified.
    pub async fn exchange(&self, grant: &Grant) -> Outcome {
        let endpoint = self.endpoint().await?;
        let answer = self.post(&endpoint, issuer::request(&self.provider, grant)).await?;
        issuer::answer(&self.provider, grant, &answer, now())
    }

    /// Give a refresh token back.
    ///
    /// # Errors
    /// [`ExchangeError`], classified.
    pub async fn revoke(&self, token: &RefreshToken) -> Result<(), ExchangeError> {
        let endpoint = self.revocation_endpoint().await?;
        let answer = self.post(&endpoint, revocation::request(&self.provider, token)).await?;
        revocation::answer(&self.provider, token, &answer, now())
    }

    /// What the server says of a mytoken: its claims, if it lives and tells. Of a token of any other issuer nothing can be
    /// learned without spending it.
    ///
    /// # Errors
    /// [`ExchangeError`], classified: it does not live, or nobody could be asked.
    pub async fn introspect(&self, token: &RefreshToken) -> Result<Option<serde_json::Value>, ExchangeError> {
        if !matches!(self.provider.kind, ProviderKind::Mytoken { .. }) {
            return Ok(None);
        }
        let document = self.document().await?;
        let Some(endpoint) = client::tokeninfo_endpoint(self.issuer().0, &document)? else { return Ok(None) };
        let answer = self.post(&endpoint, issuer::mytoken::introspection(token)).await?;
        issuer::mytoken::introspected(token, &answer, now())
    }

    async fn post(&self, endpoint: &str, request: TokenRequest) -> Result<TokenAnswer, ExchangeError> {
        let mut post = self
            .client()?
            .post(endpoint)
            .header(header::CONTENT_TYPE, request.content_type)
            .header(header::ACCEPT, "application/json")
            .body(request.body.as_bytes().to_vec());
        if let Some(authorization) = request.authorization {
            let mut value = header::HeaderValue::from_str(&authorization)
                .map_err(|_| ExchangeError::new(Kind::ClientRefused, "client_id or secret do not fit a header"))?;
            value.set_sensitive(true);
            post = post.header(header::AUTHORIZATION, value);
        }
        answer(post.send().await.map_err(|e| failure(&e))?).await
    }

    /// Where refresh tokens are given back: configured, or by discovery.
    async fn revocation_endpoint(&self) -> Result<Arc<str>, ExchangeError> {
        if let ProviderKind::OAuth2(OAuth2 { revocation_endpoint: Some(endpoint), .. }) = &self.provider.kind {
            return Ok(endpoint.as_str().into());
        }
        if self.issuer().0.is_empty() {
            let what = "neither revocation_endpoint nor issuer is configured";
            return Err(ExchangeError::new(Kind::RequestRefused, what));
        }
        let ask = async || {
            let document = self.document().await?;
            client::revocation_endpoint(self.issuer().0, &document).map(Into::into)
        };
        self.revocation.get(ask).await
    }

    /// Where tokens are asked for: configured, or by discovery.
    pub(super) async fn endpoint(&self) -> Result<Arc<str>, ExchangeError> {
        if let ProviderKind::OAuth2(OAuth2 { token_endpoint: Some(endpoint), .. }) = &self.provider.kind {
            return Ok(endpoint.as_str().into());
        }
        self.endpoint.get(async || self.discover().await).await
    }

    /// Who is asked, and where its discovery document is.
    fn issuer(&self) -> (&str, String) {
        let (issuer, document) = match &self.provider.kind {
            ProviderKind::OAuth2(_) => (self.provider.issuer.as_deref().unwrap_or_default(), "openid-configuration"),
            ProviderKind::Mytoken { server } => (server.as_str(), "mytoken-configuration"),
        };
        (issuer, format!("{}/.well-known/{document}", client::trimmed(issuer)))
    }

    /// The first URL that anybody asks: the discovery document, or the configured token endpoint.
    pub(super) fn front_url(&self) -> String {
        match &self.provider.kind {
            ProviderKind::OAuth2(OAuth2 { token_endpoint: Some(endpoint), .. }) => endpoint.clone(),
            _ => self.issuer().1,
        }
    }

    /// What the provider asks for where a `.top` does not say: scopes and audience (of several, the first); and whether
    /// the client asks for itself.
    pub(super) fn wishes(&self) -> (Vec<String>, Vec<String>, bool) {
        let accounts = self.provider.accounts();
        let first = accounts.and_then(|accounts| accounts.audiences.values().next());
        (self.provider.scopes.clone(), first.unwrap_or(&self.provider.audience).clone(), accounts.is_some())
    }

    /// GET: status, `Date`, body.
    pub(super) async fn fetch(&self, url: &str) -> Result<(u16, Option<String>, Zeroizing<Vec<u8>>), ExchangeError> {
        let response = self.client()?.get(url).send().await.map_err(|e| failure(&e))?;
        let date = response.headers().get(header::DATE).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let answer = answer(response).await?;
        Ok((answer.status, date, answer.body))
    }

    async fn discover(&self) -> Result<Arc<str>, ExchangeError> {
        Ok(client::endpoint(self.issuer().0, &self.document().await?)?.into())
    }

    async fn document(&self) -> Result<Zeroizing<Vec<u8>>, ExchangeError> {
        let (_, url) = self.issuer();
        let answer = answer(self.client()?.get(&url).send().await.map_err(|e| failure(&e))?).await?;
        if answer.status != 200 {
            let what = format!("{url} answers HTTP {}", answer.status);
            return Err(
                client::http_failure(&answer, now()).unwrap_or_else(|| ExchangeError::new(Kind::Discovery, what))
            );
        }
        Ok(answer.body)
    }
}

/// What the page for approvals needs besides.
impl Caller {
    /// The provider's settings.
    pub(super) fn provider(&self) -> &Provider {
        &self.provider
    }

    /// Its client, if it is one of OAuth2.
    pub(super) fn oauth2(&self) -> Option<&OAuth2> {
        match &self.provider.kind {
            // Nobody approves for a client that asks for itself.
            ProviderKind::OAuth2(client) => Some(client).filter(|client| client.accounts.is_none()),
            ProviderKind::Mytoken { .. } => None,
        }
    }

    /// Where the issuer sends browsers back to, below the page's URL.
    pub(super) fn return_paths(&self) -> impl Iterator<Item = String> {
        let services = &self.provider.services;
        self.oauth2().into_iter().flat_map(|client| services.iter().map(|service| client.return_path_of(service)))
    }

    /// Scheme, host and port of the page where users approve, as far as the configuration tells.
    pub(super) fn front_origin(&self) -> Option<String> {
        let known = self.oauth2()?.authorization_endpoint.as_ref().or(self.provider.issuer.as_ref())?;
        Some(url::Url::parse(known).ok()?.origin().ascii_serialization())
    }

    /// The issuer's page for approvals: configured, or by discovery.
    ///
    /// # Errors
    /// [`ExchangeError`], classified.
    pub(super) async fn front_door(&self) -> Result<client::FrontDoor, ExchangeError> {
        if let Some(url) = self.oauth2().and_then(|client| client.authorization_endpoint.clone()) {
            return Ok(client::FrontDoor { url, iss: false });
        }
        let (issuer, url) = self.issuer();
        let (status, _, document) = self.fetch(&url).await?;
        if status != 200 {
            return Err(ExchangeError::new(Kind::Discovery, format!("{url} answers HTTP {status}")));
        }
        client::front_door(issuer, &document)
    }

    /// An authorisation code (and the verifier of its challenge) into a refresh token, and who approved if that is told.
    ///
    /// # Errors
    /// [`ExchangeError`], classified.
    pub(super) async fn redeem(
        &self,
        code: &ClientSecret,
        verifier: &str,
        return_url: &str,
    ) -> Result<(RefreshToken, Option<oauth2::IdToken>), ExchangeError> {
        let client = self.oauth2().ok_or_else(|| ExchangeError::new(Kind::RequestRefused, "no OAuth2 provider"))?;
        let endpoint = self.endpoint().await?;
        let answer = self.post(&endpoint, oauth2::code_request(client, code.expose(), verifier, return_url)).await?;
        oauth2::code_answer(&answer, now()).map_err(|mut error| {
            error.detail = client::presentable(&error.detail.replace(code.expose(), "[masked]"));
            error
        })
    }
}

/// The HTTP client of a provider, with the rules of this module.
///
/// # Errors
/// One line: what is wrong with the CA file or TLS on this machine.
pub(crate) fn client(provider: &Provider) -> Result<Client, String> {
    let mut builder = Client::builder()
        .redirect(redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT)
        .timeout(provider.timeout)
        .pool_idle_timeout(Duration::from_secs(90))
        .user_agent(concat!("evercred/", env!("CARGO_PKG_VERSION")));
    if let Some(file) = &provider.ca_file {
        builder = builder.tls_certs_merge(authorities(file)?);
    }
    builder.build().map_err(|e| format!("no client for TLS: {}", failure(&e).detail))
}

/// What is trusted besides the system's authorities.
///
/// # Errors
/// One line: what is wrong with the file.
pub(crate) fn authorities(file: &CaFile) -> Result<Vec<Certificate>, String> {
    let certificate = |der: CertificateDer<'_>| Certificate::from_der(&der).map_err(|e| format!("ca_file: {e}"));
    file.certificates()?.into_iter().map(certificate).collect()
}

/// The wall clock.
pub(crate) fn now() -> Timestamp {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(wall.as_millis()).unwrap_or(i64::MAX))
}

/// Status and body, capped.
///
/// # Errors
/// The connection broke, or the body is larger than 1 MiB.
pub(crate) async fn answer(mut response: Response) -> Result<TokenAnswer, ExchangeError> {
    let status = response.status().as_u16();
    let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let mut body = Zeroizing::new(Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(|e| failure(&e))? {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(ExchangeError::new(Kind::AnswerTooLarge, "the answer is larger than 1 MiB"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(TokenAnswer { status, retry_after, body })
}

/// What went wrong on the way; the chain of causes holds no secret, and the URL is configured.
pub(crate) fn failure(error: &reqwest::Error) -> ExchangeError {
    let mut detail = error.to_string();
    let mut tls = false;
    let mut cause = error.source();
    while let Some(one) = cause {
        tls |= is_tls(one);
        detail = one.to_string();
        cause = one.source();
    }
    let kind = if tls {
        Kind::Tls
    } else if error.is_timeout() {
        Kind::Timeout
    } else {
        Kind::Network
    };
    ExchangeError::new(kind, detail)
}

/// TLS errors come inside of IO errors, which may come inside of another and do not tell of it as their source.
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    if error.is::<rustls::Error>() {
        return true;
    }
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    inner.is_some_and(|inner| is_tls(inner))
}
