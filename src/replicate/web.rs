//! HTTP to the services of sites: as the courier asks issuers, no redirects, no proxies, bounded in time and size.

use std::time::Duration;

use reqwest::{Client, RequestBuilder, header, redirect};
use zeroize::Zeroizing;

use crate::{config::site_settings::Site, core::delivery::Undelivered, courier::http::authorities, error::Kind};

/// No answer is larger.
const MAX_BODY: usize = 1 << 20;
/// Of one request; a delivery may need several.
const REQUEST: Duration = Duration::from_secs(30);

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// The service's wish.
    pub retry_after: Option<Duration>,
    /// The body.
    pub body: Zeroizing<Vec<u8>>,
}

/// A client for a site.
///
/// # Errors
/// One line: what is wrong with the CA file or TLS on this machine.
pub fn client(site: &Site) -> Result<Client, String> {
    let mut builder = Client::builder()
        .redirect(redirect::Policy::none())
        .no_proxy()
        .connect_timeout(Duration::from_secs(10))
        .timeout(REQUEST)
        .user_agent(concat!("evercred/", env!("CARGO_PKG_VERSION")));
    if let Some(file) = &site.ca_file {
        builder = builder.tls_certs_merge(authorities(file)?);
    }
    builder.build().map_err(|e| format!("site {}: {e}", site.name))
}

/// A random number.
///
/// # Errors
/// There is no randomness.
pub fn number() -> Result<u32, Undelivered> {
    let mut number = [0; 4];
    aws_lc_rs::rand::fill(&mut number).map_err(|_| Undelivered::new(Kind::SiteError, "no random numbers"))?;
    Ok(u32::from_ne_bytes(number))
}

/// A form with one file in it (RFC 7578), as both facility services want it: its content type, and its bytes.
///
/// # Errors
/// There is no randomness for its boundary.
pub fn file_form(bytes: &[u8]) -> Result<(String, Vec<u8>), Undelivered> {
    let mut number = [0; 16];
    aws_lc_rs::rand::fill(&mut number).map_err(|_| Undelivered::new(Kind::SiteError, "no random numbers"))?;
    let boundary = number.iter().fold(String::from("evercred-"), |text, byte| text + &format!("{byte:02x}"));
    // Room for all of it at once: a vector that grows leaves copies behind.
    let mut body = Vec::with_capacity(bytes.len() + 512);
    body.extend_from_slice(
        format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"upload\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        )
        .as_bytes(),
    );
    body.extend_from_slice(bytes);
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    Ok((format!("multipart/form-data; boundary={boundary}"), body))
}

/// The URL of a service with further segments, each of them escaped; a path's leading slash stays, as an empty segment.
///
/// # Errors
/// The base is no URL for that, which the configuration sees to.
pub fn address(base: &str, segments: &[&str]) -> Result<url::Url, Undelivered> {
    let wrong = || Undelivered::new(Kind::SiteError, "the service's address takes no path");
    let mut url = url::Url::parse(base).map_err(|_| wrong())?;
    url.path_segments_mut().map_err(|()| wrong())?.pop_if_empty().extend(segments);
    Ok(url)
}

/// Ask.
///
/// # Errors
/// It was not reached, did not answer in time, or answers more than we read.
pub async fn ask(request: RequestBuilder) -> Result<Answer, Undelivered> {
    let mut response = request.send().await.map_err(|e| failure(&e))?;
    let status = response.status().as_u16();
    let text = response.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let retry_after = wish(text);
    let mut body = Zeroizing::new(Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(|e| failure(&e))? {
        if body.len() + chunk.len() > MAX_BODY {
            return Err(Undelivered::new(Kind::SiteError, "the answer is larger than 1 MiB"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, retry_after, body })
}

/// `Retry-After`: seconds or a date, at most an hour.
pub(super) fn wish(text: &str) -> Option<Duration> {
    let text = text.trim();
    let wait = if let Ok(seconds) = text.parse::<u32>() {
        Duration::from_secs(seconds.into())
    } else {
        let at = u64::try_from(jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_second()).ok()?;
        Duration::from_secs(at.saturating_sub(super::receive::now()))
    };
    Some(wait.min(Duration::from_secs(3600)))
}

fn failure(error: &reqwest::Error) -> Undelivered {
    let kind = if error.is_timeout() { Kind::SiteTimeout } else { Kind::SiteUnreachable };
    let mut detail = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(one) = cause {
        detail = one.to_string();
        cause = one.source();
    }
    Undelivered::new(kind, detail)
}

/// What the words of a file system's error mean, where a service hands on no more than these.
#[must_use]
pub fn kind_of_words(words: &str) -> Kind {
    let lower = words.to_ascii_lowercase();
    let any = |list: &[&str]| list.iter().any(|text| lower.contains(text));
    if any(&["no space left", "quota exceeded", "disk quota"]) {
        Kind::SiteFull
    } else if any(&["permission denied", "not permitted", "not allowed", "forbidden", "read-only file system"]) {
        Kind::SiteDenied
    } else {
        Kind::SiteError
    }
}

impl Answer {
    /// A good answer as JSON.
    ///
    /// # Errors
    /// [`Undelivered`], classified by the status, with the service's words (contract replication, 3.4).
    pub fn json(&self) -> Result<serde_json::Value, Undelivered> {
        if (200..300).contains(&self.status) {
            return serde_json::from_slice(&self.body)
                .map_err(|_| Undelivered::new(Kind::SiteError, "the answer is no JSON"));
        }
        Err(self.refusal())
    }

    /// What a status that is no success means.
    #[must_use]
    pub fn refusal(&self) -> Undelivered {
        let kind = match self.status {
            401 => Kind::SiteAuth,
            403 | 404 | 405 | 409 | 413 | 422 => Kind::SiteDenied,
            408 | 425 | 429 => Kind::RateLimited,
            507 => Kind::SiteFull,
            _ => Kind::SiteError,
        };
        let value: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let words = ["reason", "message", "detail", "title", "error"].iter().find_map(|key| value.get(key)?.as_str());
        let detail = format!("HTTP {}: {}", self.status, words.unwrap_or("no words"));
        Undelivered::new(kind, detail).wait(self.retry_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_keeps_its_leading_slash_and_is_escaped() {
        let of = |path: &str| {
            let segments: Vec<&str> = ["utilities", "ls", "perlmutter"].into_iter().chain(path.split('/')).collect();
            address("https://api.example.org/api/v1.2/", &segments).unwrap().to_string()
        };
        let base = "https://api.example.org/api/v1.2/utilities/ls/perlmutter/";
        assert_eq!(of("/global/homes/h/.t"), format!("{base}/global/homes/h/.t"));
        assert_eq!(of("/a b/c?d#e%f"), format!("{base}/a%20b/c%3Fd%23e%25f"));
    }
}
