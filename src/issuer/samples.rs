//! For the tests of the kinds: a provider, a grant, an answer, and what the planner does about an error.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;
use zeroize::Zeroizing;

use super::TokenAnswer;
use crate::{
    config::settings::{Approval, AudienceStyle, ClientAuth, OAuth2, Provider, ProviderKind, Shortfall},
    core::{
        answer::{ExchangeError, Grant, Spends},
        budget::Limits,
        id::{CredentialId, UserName},
        planner::{Action, Announcement, Event, Failure, Found, Planner},
        secret::RefreshToken,
        time::{Now, Tick, Timestamp},
        top::Identity,
        use_file::UseFormat,
    },
};

/// When all this happens.
pub const NOW: Timestamp = Timestamp(1_700_000_000_000);
/// What is spent.
pub const TOKEN: &str = "the-refresh-token-of-alice-0123456789";

/// A provider with the usual settings.
pub fn provider(kind: ProviderKind) -> Provider {
    Provider {
        name: "wlcg".into(),
        services: vec!["wlcg".into()],
        kind,
        issuer: None,
        scopes: Vec::new(),
        audience: Vec::new(),
        shortfall: Shortfall::Refuse,
        default_lifetime: Duration::from_secs(3600),
        use_format: UseFormat::Json,
        max_in_flight: 1,
        max_per_second: 1,
        timeout: Duration::from_secs(5),
        revoke_at_end: false,
        revoke_after: Duration::from_secs(600),
        ca_file: None,
        fernet_key_file: None,
        approval: Approval::default(),
    }
}

/// A public client.
pub fn oauth2() -> OAuth2 {
    OAuth2 {
        token_endpoint: Some("https://i.example.org/token".into()),
        revocation_endpoint: None,
        client_id: "the client".into(),
        confidential: false,
        client_secret: None,
        client_auth: ClientAuth::Header,
        audience_style: AudienceStyle::Audience,
        from_htcondor: false,
        login_client: None,
        accounts: None,
        authorization_endpoint: None,
        return_path: None,
        user_claim: None,
    }
}

/// For [`TOKEN`].
pub fn grant(scopes: &[&str], audience: &[&str]) -> Grant {
    let all = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Grant {
        spends: Spends::RefreshToken(RefreshToken::parse(TOKEN).unwrap()),
        scopes: all(scopes),
        audience: all(audience),
    }
}

/// What came over HTTP.
pub fn answer(status: u16, body: &str) -> TokenAnswer {
    TokenAnswer { status, retry_after: None, body: Zeroizing::new(body.as_bytes().to_vec()) }
}

/// A JWT with these claims.
pub fn jwt(claims: &Value) -> String {
    format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

/// What is done about a credential whose every exchange ends alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// Again in seconds, and then every few minutes.
    Retry,
    /// Again after five minutes or more, and then more and more rarely.
    Slow,
    /// Again in seconds, since another credential might tell more, and then every five minutes.
    Probe,
    /// Once more after a minute, and never again.
    Park,
}

/// Let the planner live a day with a credential whose every exchange fails like this. Whatever it does, no file is
/// touched.
pub fn does(error: &ExchangeError) -> Does {
    let start = Now { wall: NOW, tick: Tick(1) };
    let mut planner = Planner::new(&[Limits { in_flight: 1, per_second: 1 }], Duration::ZERO);
    let user = UserName::parse("alice").unwrap();
    let found = Found {
        id: CredentialId::from_base(user.clone(), "wlcg").unwrap(),
        provider: 0,
        top: Ok(Identity { ino: 1, size: 1, mtime_ns: 1, hash: [1; 16] }),
        use_file: None,
        refresh_ends: None,
        top_newer: false,
    };
    planner.handle(start, Event::Scanned { user, as_of: start.tick, found: vec![found] });
    let (mut now, mut asked, mut parked) = (start, Vec::new(), false);
    while now.tick.since(start.tick) < Duration::from_secs(86_400) {
        while let Some(action) = planner.next_action(now) {
            match action {
                Action::Exchange { number, .. } => {
                    asked.push(now.tick);
                    let failure = Failure { kind: error.kind, retry_after: error.retry_after, rotated: false };
                    planner.handle(now, Event::Answered { number, result: Err(failure) });
                }
                Action::Keep { .. } | Action::Publish { .. } => panic!("{error}: {action:?}"),
                Action::Announce(announcement) => parked |= matches!(announcement, Announcement::Parked { .. }),
                Action::Discard { .. } | Action::Look { .. } => {}
            }
        }
        let wait = planner.next_deadline(now).max(Duration::from_millis(1));
        now = Now { wall: now.wall.plus(wait), tick: now.tick.plus(wait) };
    }
    let gaps: Vec<u64> = asked.windows(2).map(|pair| pair[1].since(pair[0]).as_secs()).collect();
    match gaps.as_slice() {
        [60] if parked => Does::Park,
        [5, rest @ ..] if !parked && rest.len() > 20 && rest.iter().all(|gap| (300..=310).contains(gap)) => Does::Probe,
        [first, ..] if !parked && (4..=6).contains(first) && gaps.iter().all(|gap| *gap <= 360) => Does::Retry,
        [first, ..] if !parked && *first >= 300 && gaps.len() > 20 => Does::Slow,
        _ => panic!("{error}: asked {gaps:?} s apart, parked: {parked}"),
    }
}
