//! The authorisation-code flow (RFC 6749 §4.1) with PKCE (RFC 7636) and `iss` (RFC 9207).

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use url::Url;

use super::session::{Entry, Stage, random, same};
use crate::{
    config::settings::{AudienceStyle, OAuth2, Provider, ProviderKind},
    core::{key_file::Item, secret::ClientSecret},
    courier::http::Caller,
    issuer::client,
};

/// The issuer's code: a secret for a minute.
pub type Code = ClientSecret;

/// What was asked of the issuer, to know its answer by.
pub struct Away {
    state: String,
    /// The other half of the code challenge.
    pub verifier: String,
    /// The issuer says that its answers carry `iss`.
    iss: bool,
}

impl fmt::Debug for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Away").finish_non_exhaustive()
    }
}

type Query = [(String, String)];

fn one<'q>(query: &'q Query, name: &str) -> Option<&'q str> {
    let mut all = query.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
    // RFC 6749 §3.1: parameters come once; which one of two would be meant?
    all.next().filter(|value| !value.is_empty() && all.next().is_none())
}

/// Where to send the browser.
///
/// # Errors
/// Why not, in words for the page.
pub async fn begin(caller: &Caller, item: &Item) -> Result<(String, Away), String> {
    let Some(client) = caller.oauth2() else { return Err("the service has no page for approvals".into()) };
    let door = caller.front_door().await.map_err(|error| error.detail)?;
    let token_endpoint = caller.endpoint().await.map_err(|error| error.detail)?;
    if door.url != item.authorization_url || *token_endpoint != *item.token_url {
        return Err("HTCondor and the issuer's discovery document name different endpoints; please tell the \
                    administrators of this host"
            .into());
    }
    let away = Away { state: random(), verifier: random(), iss: door.iss };
    let url = authorization_url(&door.url, caller.provider(), client, item, &away)
        .ok_or("the issuer's authorization endpoint is no URL")?;
    Ok((url, away))
}

fn authorization_url(door: &str, provider: &Provider, client: &OAuth2, item: &Item, away: &Away) -> Option<String> {
    let mut url = Url::parse(door).ok()?;
    let scopes = scopes(provider, item);
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(away.verifier.as_bytes()));
    {
        let mut query = url.query_pairs_mut();
        query
            .append_pair("response_type", "code")
            .append_pair("client_id", &client.client_id)
            .append_pair("redirect_uri", &item.return_url)
            .append_pair("state", &away.state)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        if !scopes.is_empty() {
            query.append_pair("scope", &scopes.join(" "));
        }
        if scopes.iter().any(|scope| scope == "offline_access") {
            // OpenID Connect Core §11: without it the issuer must ignore offline_access.
            query.append_pair("prompt", "consent");
        }
        match client.audience_style {
            _ if item.audience.is_empty() => {}
            AudienceStyle::Audience => {
                query.append_pair("audience", &item.audience);
            }
            AudienceStyle::Repeated => {
                query.extend_pairs(item.audience.split([' ', ',']).filter(|a| !a.is_empty()).map(|a| ("audience", a)));
            }
            AudienceStyle::Resource => {
                query.extend_pairs(item.audience.split([' ', ',']).filter(|a| !a.is_empty()).map(|a| ("resource", a)));
            }
        }
    }
    Some(url.into())
}

/// Which claim says who approved, if that counts.
pub fn user_claim(provider: &Provider) -> Option<&str> {
    match &provider.kind {
        ProviderKind::OAuth2(client) => client.user_claim.as_deref(),
        ProviderKind::Mytoken { .. } => None,
    }
}

/// What the job wants, else what the provider says; and `openid` and `offline_access` where they
/// are needed.
pub fn scopes(provider: &Provider, item: &Item) -> Vec<String> {
    let asked = item.scopes.split([' ', ',', '\t']).filter(|scope| !scope.is_empty()).map(str::to_owned);
    let mut scopes: Vec<String> = asked.collect();
    if scopes.is_empty() {
        scopes.clone_from(&provider.scopes);
    }
    let offline = "offline_access";
    let wants_offline = provider.scopes.iter().any(|scope| scope == offline);
    for (wanted, scope) in [(user_claim(provider).is_some(), "openid"), (wants_offline, offline)] {
        if wanted && !scopes.iter().any(|asked| asked == scope) {
            scopes.push(scope.to_owned());
        }
    }
    scopes
}

/// The approval that an answer belongs to, by its `state`, which serves once.
pub fn match_state<'e>(entries: &'e mut [Entry], query: &Query) -> Option<(&'e mut Entry, Away)> {
    let state = one(query, "state")?;
    let entry =
        entries.iter_mut().find(|entry| matches!(&entry.stage, Stage::Away(away) if same(&away.state, state)))?;
    match std::mem::replace(&mut entry.stage, Stage::Open) {
        Stage::Away(away) => Some((entry, away)),
        _ => None,
    }
}

/// The code, if the answer is the issuer's, and a yes.
///
/// # Errors
/// Why not, in words for the page.
pub fn judge(caller: &Caller, item: &Item, away: &Away, path: &str, query: &Query) -> Result<Code, String> {
    if !item.return_url.ends_with(path) {
        return Err("the answer came to another issuer's address; nothing was approved".into());
    }
    match (one(query, "iss"), &caller.provider().issuer) {
        (None, _) if away.iss => {
            return Err("the answer does not say which issuer it is from; nothing was approved".into());
        }
        (Some(iss), Some(issuer)) if client::trimmed(iss) != client::trimmed(issuer) => {
            return Err("the answer is from another issuer than the configured one; nothing was approved".into());
        }
        _ => {}
    }
    if let Some(error) = one(query, "error") {
        let description = one(query, "error_description").unwrap_or_default();
        return Err(match error {
            "access_denied" => "it was declined at the issuer".to_owned(),
            other => format!("the issuer says {}", client::presentable(&format!("{other}: {description}"))),
        });
    }
    let code = one(query, "code").ok_or("the issuer's answer holds no code")?;
    Code::parse(code).map_err(|_| "the issuer's code is not one".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::settings::ClientAuth, issuer::samples};

    fn provider(issuer: Option<&str>, scopes: &[&str]) -> Provider {
        let oauth2 = OAuth2 {
            client_auth: ClientAuth::Body,
            audience_style: AudienceStyle::Resource,
            from_htcondor: true,
            authorization_endpoint: Some("https://i.example.org/auth?access_type=offline".into()),
            ..samples::oauth2()
        };
        Provider {
            issuer: issuer.map(str::to_owned),
            scopes: scopes.iter().map(|s| (*s).to_owned()).collect(),
            ..samples::provider(ProviderKind::OAuth2(oauth2))
        }
    }

    fn item() -> Item {
        Item {
            base: "wlcg".into(),
            scopes: "openid, storage.read:/a b".into(),
            audience: "https://a.example.org https://b.example.org".into(),
            client_id: "the client".into(),
            token_url: "https://i.example.org/token".into(),
            authorization_url: "https://i.example.org/auth?access_type=offline".into(),
            return_url: "https://ap.example.org/credmon/return/wlcg".into(),
        }
    }

    fn pairs(query: &[(&str, &str)]) -> Vec<(String, String)> {
        query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[tokio::test]
    async fn the_browser_is_sent_with_state_challenge_scopes_and_resources_and_the_query_of_the_endpoint_stays() {
        let caller = Caller::new(provider(None, &["offline_access"]));
        let (url, away) = begin(&caller, &item()).await.unwrap();
        let url = Url::parse(&url).unwrap();
        assert_eq!(url.origin().ascii_serialization(), "https://i.example.org");
        let query: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let all = |name: &str| query.iter().filter(|(k, _)| k == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
        assert_eq!(all("access_type"), ["offline"]);
        assert_eq!(all("client_id"), ["the client"]);
        assert_eq!(all("redirect_uri"), ["https://ap.example.org/credmon/return/wlcg"]);
        assert_eq!(all("scope"), ["openid storage.read:/a b offline_access"]);
        assert_eq!(all("prompt"), ["consent"]);
        assert_eq!(all("resource"), ["https://a.example.org", "https://b.example.org"]);
        assert_eq!(all("state"), [away.state.as_str()]);
        assert_eq!(all("code_challenge_method"), ["S256"]);
        assert_eq!(all("code_challenge"), [URL_SAFE_NO_PAD.encode(Sha256::digest(away.verifier.as_bytes()))]);
        assert!(away.verifier.len() >= 43 && !url.as_str().contains(&away.verifier));
        let other = Item { authorization_url: "https://evil.example.org/auth".into(), ..item() };
        assert!(
            begin(&caller, &other).await.unwrap_err().contains("different endpoints"),
            "the request directs nothing"
        );
    }

    #[tokio::test]
    async fn an_answer_counts_once_by_its_state_at_its_own_address_and_from_its_own_issuer() {
        let caller = Caller::new(provider(Some("https://i.example.org/"), &[]));
        let away = || Away { state: "s1".into(), verifier: "v".into(), iss: true };
        let mut entries = [Entry { item: item(), provider: 0, stage: Stage::Away(away()) }];
        for query in [&[("code", "c")][..], &[("state", "s2")], &[("state", "")], &[("state", "s1"), ("state", "s1")]] {
            assert!(match_state(&mut entries, &pairs(query)).is_none(), "{query:?}");
        }
        assert!(match_state(&mut entries, &pairs(&[("state", "s1")])).is_some());
        assert!(match_state(&mut entries, &pairs(&[("state", "s1")])).is_none(), "once");
        let judged = |path: &str, query: &[(&str, &str)]| judge(&caller, &item(), &away(), path, &pairs(query));
        let (path, iss) = ("/credmon/return/wlcg", ("iss", "https://i.example.org"));
        assert_eq!(judged(path, &[("code", "abc"), iss]).unwrap().expose(), "abc");
        assert!(judged("/return/other", &[("code", "abc"), iss]).unwrap_err().contains("another issuer's address"));
        assert!(judged(path, &[("code", "abc")]).unwrap_err().contains("does not say which issuer"));
        assert!(
            judged(path, &[("code", "abc"), ("iss", "https://evil.example.org")])
                .unwrap_err()
                .contains("another issuer")
        );
        assert!(judged(path, &[iss]).unwrap_err().contains("no code"));
        assert!(judged(path, &[("code", "a"), ("code", "b"), iss]).unwrap_err().contains("no code"));
        assert!(judged(path, &[("error", "access_denied"), iss]).unwrap_err().contains("declined"));
        let long = "x".repeat(300);
        let told = judged(path, &[("error", "server_error"), ("error_description", &long), iss]).unwrap_err();
        assert!(told.contains("server_error") && told.len() < 260, "{told}");
    }
}
