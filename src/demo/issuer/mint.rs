//! The two kinds of tokens that are signed: access tokens (WLCG profile 1.0) and mytokens (contract, section 3).

use std::{io, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha512};

use super::{
    Shared,
    book::{Fault, Issued, now_ms},
    sign,
};

/// An access token and what an answer says about it.
pub(super) struct Minted {
    pub(super) access_token: String,
    pub(super) scope: String,
    /// `None`: the answer leaves `expires_in` out.
    pub(super) expires_in: Option<u64>,
    pub(super) issued: Issued,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: Value,
    scope: &'a str,
    iat: u64,
    nbf: u64,
    exp: u64,
    jti: &'a str,
    #[serde(rename = "wlcg.ver")]
    version: &'a str,
}

/// Sign an access token, with what `fault` does to it.
pub(super) fn access_token(
    shared: &Shared,
    user: &str,
    scopes: &[String],
    audience: &[String],
    fault: Option<Fault>,
) -> io::Result<Minted> {
    let lifetime = shared.access_lifetime.as_secs();
    let at_ms = now_ms();
    let now = at_ms / 1000;
    let (issued_at, exp) = match fault {
        Some(Fault::PastExpiry) => (now.saturating_sub(2 * lifetime), now.saturating_sub(lifetime)),
        _ => (now, now + lifetime),
    };
    let granted = match fault {
        Some(Fault::ScopeShortfall) => scopes.get(..scopes.len() / 2).unwrap_or_default(),
        _ => scopes,
    };
    let scope = granted.join(" ");
    let elsewhere = ["https://elsewhere.example".to_owned()];
    let audience = if fault == Some(Fault::AudienceShortfall) { &elsewhere } else { audience };
    let jti = sign::uuid();
    let claims = Claims {
        iss: if fault == Some(Fault::WrongIssuer) { "https://elsewhere.example/" } else { &shared.url },
        sub: user,
        aud: match audience {
            [] => json!("https://wlcg.cern.ch/jwt/v1/any"),
            [one] => json!(one),
            many => json!(many),
        },
        scope: &scope,
        iat: issued_at,
        nbf: issued_at,
        exp,
        jti: &jti,
        version: "1.0",
    };
    let access_token = match fault {
        Some(Fault::Opaque) => sign::random::<48>(),
        Some(Fault::Bulky(bytes)) => "a".repeat(usize::try_from(bytes).unwrap_or_default()),
        _ => shared.access_key.sign(&claims)?,
    };
    let expires_in = match fault {
        Some(Fault::NoExpiry | Fault::Opaque) => None,
        Some(Fault::PastExpiry) => Some(0),
        _ => Some(lifetime),
    };
    Ok(Minted { access_token, scope, expires_in, issued: Issued { jti, at_ms, exp } })
}

/// One of a mytoken's restrictions; several are OR-ed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Restriction {
    /// Not before, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// Expiry, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exp: Option<u64>,
    /// The most that may be asked for, blank-separated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The audiences that may be asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<Vec<String>>,
    /// The addresses that may use it (single addresses only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<String>>,
    /// How many access tokens may be made.
    #[serde(default, rename = "usages_AT", skip_serializing_if = "Option::is_none")]
    pub usages_at: Option<u64>,
    /// How many access tokens were made.
    #[serde(skip)]
    pub done: u64,
}

/// A mytoken's own rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MytokenRotation {
    /// With each access token.
    #[serde(rename = "on_AT")]
    pub on_at: bool,
    /// With each other use.
    pub on_other: bool,
    /// Dead when not used for this many seconds; 0: never.
    pub lifetime: u64,
    /// One use of a superseded token revokes all.
    pub auto_revoke: bool,
}

/// The state of one mytoken through its rotations.
#[derive(Debug, Clone)]
pub(super) struct Mytoken {
    pub(super) jti: String,
    pub(super) seq_no: u64,
    pub(super) auth_time: u64,
    pub(super) iat: u64,
    pub(super) exp: Option<u64>,
    pub(super) name: Option<String>,
    pub(super) restrictions: Vec<Restriction>,
    pub(super) capabilities: Vec<String>,
    pub(super) rotation: Option<MytokenRotation>,
}

/// What a new mytoken is to be like.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct MytokenWish {
    /// Whose.
    pub user: String,
    /// OR-ed restrictions; none: unrestricted.
    pub restrictions: Vec<Restriction>,
    /// Capabilities; none: `AT` and `tokeninfo`.
    pub capabilities: Vec<String>,
    /// Its own rotation.
    pub rotation: Option<MytokenRotation>,
    /// Expires after this many seconds: one restriction with `exp`, unless restrictions are given.
    pub lifetime: Option<u64>,
    /// The name in the JWT.
    pub name: Option<String>,
}

impl Mytoken {
    /// A new one, made now.
    pub(super) fn new(wish: MytokenWish) -> Self {
        let now = now_ms() / 1000;
        let mut restrictions = wish.restrictions;
        if let Some(lifetime) = wish.lifetime.filter(|_| restrictions.is_empty()) {
            restrictions.push(Restriction { exp: Some(now + lifetime), ..Restriction::default() });
        }
        let mut capabilities = wish.capabilities;
        if capabilities.is_empty() {
            capabilities = vec!["AT".into(), "tokeninfo".into()];
        }
        let mut made = Self {
            jti: sign::uuid(),
            seq_no: 1,
            auth_time: now,
            iat: now,
            exp: None,
            name: wish.name,
            restrictions,
            capabilities,
            rotation: wish.rotation,
        };
        made.exp = made.expiry();
        made
    }

    /// The next one of a rotation.
    pub(super) fn rotate(&mut self) {
        self.seq_no += 1;
        self.iat = now_ms() / 1000;
        self.exp = self.expiry();
    }

    /// The latest of the restrictions', absent if one has none; a rotating one lives from now.
    fn expiry(&self) -> Option<u64> {
        match self.rotation.map(|rotation| rotation.lifetime) {
            Some(lifetime) if lifetime > 0 => Some(self.iat + lifetime),
            _ => self.restrictions.iter().map(|one| one.exp).collect::<Option<Vec<_>>>()?.into_iter().max(),
        }
    }

    /// From when on it works: the earliest of the restrictions', unless one has none.
    pub(super) fn nbf(&self) -> u64 {
        let all = self.restrictions.iter().map(|one| one.nbf).collect::<Option<Vec<_>>>();
        all.and_then(|all| all.into_iter().min()).unwrap_or(0).max(self.iat)
    }

    /// The id that may be shown.
    pub(super) fn mom_id(&self) -> String {
        STANDARD.encode(Sha512::digest(self.jti.as_bytes()))
    }

    /// The claims.
    pub(super) fn claims(&self, shared: &Shared, user: &str) -> Value {
        let mut claims = json!({
            "ver": "0.7", "token_type": "mytoken", "iss": shared.mytoken_url, "aud": shared.mytoken_url,
            "sub": STANDARD.encode(Sha512::digest(user.as_bytes())), "nbf": self.nbf(), "iat": self.iat,
            "auth_time": self.auth_time, "jti": self.jti, "seq_no": self.seq_no, "oidc_sub": user,
            "oidc_iss": shared.url, "capabilities": self.capabilities,
        });
        if let Some(map) = claims.as_object_mut() {
            if let Some(exp) = self.exp {
                map.insert("exp".into(), exp.into());
            }
            if let Some(name) = &self.name {
                map.insert("name".into(), name.as_str().into());
            }
            if !self.restrictions.is_empty() {
                map.insert("restrictions".into(), json!(self.restrictions));
            }
            if let Some(rotation) = &self.rotation {
                map.insert("rotation".into(), json!(rotation));
            }
        }
        claims
    }

    /// The `MytokenResponse` around a signed JWT (contract, 2.4).
    pub(super) fn response(&self, jwt: &str) -> Value {
        let mut body = json!({
            "mytoken": jwt, "mytoken_type": "token", "mom_id": self.mom_id(), "capabilities": self.capabilities,
        });
        if let Some(map) = body.as_object_mut() {
            if let Some(exp) = self.exp {
                map.insert("expires_in".into(), exp.saturating_sub(now_ms() / 1000).into());
            }
            if !self.restrictions.is_empty() {
                map.insert("restrictions".into(), json!(self.restrictions));
            }
            if let Some(rotation) = &self.rotation {
                map.insert("rotation".into(), json!(rotation));
            }
        }
        body
    }
}

/// Whole seconds of a duration as the issuer prints them in "token is expired by 1h2m3s".
pub(super) fn spoken(lapse: Duration) -> String {
    let seconds = lapse.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}
