//! The courier's part: letters to a mail server (RFC 5321, encrypted unless it is on this host) and to webhooks.
//! Every failure is one line without a secret: neither password nor the URL of a chat's webhook is in it.

use std::time::Duration;

use lettre::{
    AsyncSmtpTransport, AsyncTransport, Tokio1Executor,
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, Tls, TlsParameters},
    },
};
use reqwest::{Client, header, redirect};
use serde_json::json;

use super::{
    letter::{Letter, Way},
    sendmail::mail,
};
use crate::{
    config::settings::{CaFile, Encryption, Post, Smtp},
    courier::http::authorities,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Ways to the outside, ready to use.
#[derive(Debug)]
pub struct Postman {
    post: Post,
    smtp: Option<AsyncSmtpTransport<Tokio1Executor>>,
    client: Client,
}

impl Postman {
    /// Build it.
    ///
    /// # Errors
    /// One line: what is wrong with the CA file or TLS on this machine.
    pub fn new(post: Post) -> Result<Self, String> {
        let smtp = post.smtp.as_ref().map(|smtp| transport(smtp, post.ca_file.as_ref())).transpose()?;
        let mut client = Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .timeout(PATIENCE)
            .user_agent(concat!("evercred/", env!("CARGO_PKG_VERSION")));
        if let Some(file) = &post.ca_file {
            client = client.tls_certs_merge(authorities(file)?);
        }
        Ok(Self { smtp, client: client.build().map_err(|e| format!("notices: {e}"))?, post })
    }

    /// Deliver.
    ///
    /// # Errors
    /// One line.
    pub async fn deliver(&self, letter: &Letter) -> Result<(), String> {
        let sent = async {
            match letter.way {
                Way::Smtp => self.mail(letter).await,
                Way::Webhook => self.webhook(letter).await,
                Way::Slack => self.slack(letter).await,
                Way::Sendmail => Err("the network process starts no program".to_owned()),
            }
        };
        tokio::time::timeout(PATIENCE, sent).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }

    async fn mail(&self, letter: &Letter) -> Result<(), String> {
        let smtp = self.smtp.as_ref().ok_or("no mail server is configured any more")?;
        smtp.send(mail(letter)?).await.map(|_| ()).map_err(|e| told(&e))
    }

    async fn webhook(&self, letter: &Letter) -> Result<(), String> {
        let url = self.post.webhook.as_ref().ok_or("no webhook is configured any more")?;
        let mut request =
            self.client.post(url).header(header::CONTENT_TYPE, "application/json").body(letter.body.clone());
        if let Some(token) = &self.post.webhook_token {
            request = request.bearer_auth(token.expose());
        }
        answered(request).await
    }

    async fn slack(&self, letter: &Letter) -> Result<(), String> {
        let url = self.post.slack.as_ref().ok_or("no Slack webhook is configured any more")?;
        // The text is shown as it is, not as links, mentions or formatting (Slack's own three escapes).
        let escaped = letter.body.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let subject = letter.subject.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let body = json!({ "text": format!("{subject}\n```\n{escaped}\n```") }).to_string();
        answered(self.client.post(url.expose()).header(header::CONTENT_TYPE, "application/json").body(body)).await
    }
}

fn transport(smtp: &Smtp, ca_file: Option<&CaFile>) -> Result<AsyncSmtpTransport<Tokio1Executor>, String> {
    let parameters = || {
        let mut parameters = TlsParameters::builder(smtp.host.clone());
        for certificate in ca_file.map(CaFile::certificates).transpose()?.unwrap_or_default() {
            let certificate =
                Certificate::from_der(certificate.to_vec()).map_err(|e| format!("notices.ca_file: {e}"))?;
            parameters = parameters.add_root_certificate(certificate);
        }
        parameters.build_rustls().map_err(|e| format!("notices.smtp: {e}"))
    };
    let tls = match smtp.encryption {
        Encryption::None => Tls::None,
        Encryption::StartTls => Tls::Required(parameters()?),
        Encryption::Tls => Tls::Wrapper(parameters()?),
    };
    let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&smtp.host)
        .port(smtp.port)
        .tls(tls)
        .timeout(Some(PATIENCE));
    if let (Some(user), Some(password)) = (&smtp.user, &smtp.password) {
        transport = transport.credentials(Credentials::new(user.clone(), password.expose().to_owned()));
    }
    Ok(transport.build())
}

async fn answered(request: reqwest::RequestBuilder) -> Result<(), String> {
    let answer = request.send().await.map_err(|e| told(&e.without_url()))?;
    let status = answer.status();
    if status.is_success() { Ok(()) } else { Err(format!("it answers HTTP {}", status.as_u16())) }
}

/// An error with its causes, on one line.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(one) = cause {
        let more = one.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = one.source();
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}
