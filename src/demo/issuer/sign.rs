//! Signing keys of the embedded issuer and the compact JWTs that they make (RFC 7515, RFC 7518).

use std::io;

use aws_lc_rs::{
    rand::{self, SystemRandom},
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED,
        ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, EcdsaVerificationAlgorithm, KeyPair, UnparsedPublicKey,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use serde_json::{Value, json};

/// One ECDSA key, made at start and never stored.
pub(super) struct Key {
    pair: EcdsaKeyPair,
    verification: &'static EcdsaVerificationAlgorithm,
    random: SystemRandom,
    header: String,
    curve: &'static str,
    algorithm: &'static str,
    kid: Option<&'static str>,
}

impl Key {
    /// The key of the OAuth2 issuer: access tokens.
    pub(super) fn es256() -> io::Result<Self> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(io::Error::other)?;
        Ok(Self {
            pair,
            verification: &ECDSA_P256_SHA256_FIXED,
            random: SystemRandom::new(),
            header: encode(br#"{"alg":"ES256","typ":"at+jwt","kid":"evercred-demo"}"#),
            curve: "P-256",
            algorithm: "ES256",
            kid: Some("evercred-demo"),
        })
    }

    /// The key of the mytoken instance: mytokens, without `kid`.
    pub(super) fn es512() -> io::Result<Self> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P521_SHA512_FIXED_SIGNING).map_err(io::Error::other)?;
        Ok(Self {
            pair,
            verification: &ECDSA_P521_SHA512_FIXED,
            random: SystemRandom::new(),
            header: encode(br#"{"alg":"ES512","typ":"MT+JWT"}"#),
            curve: "P-521",
            algorithm: "ES512",
            kid: None,
        })
    }

    /// The claims as a signed compact JWT.
    pub(super) fn sign(&self, claims: &impl Serialize) -> io::Result<String> {
        let claims = serde_json::to_vec(claims).map_err(io::Error::other)?;
        let mut jwt = String::with_capacity(self.header.len() + claims.len() * 4 / 3 + 200);
        jwt.push_str(&self.header);
        jwt.push('.');
        URL_SAFE_NO_PAD.encode_string(&claims, &mut jwt);
        let signature = self.pair.sign(&self.random, jwt.as_bytes()).map_err(io::Error::other)?;
        jwt.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut jwt);
        Ok(jwt)
    }

    /// The claims of a JWT that this key signed.
    pub(super) fn open(&self, jwt: &str) -> Option<Value> {
        let (signed, signature) = jwt.rsplit_once('.')?;
        let (_, claims) = signed.split_once('.')?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let public = UnparsedPublicKey::new(self.verification, self.pair.public_key().as_ref());
        public.verify(signed.as_bytes(), &signature).ok()?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
    }

    /// The public key (RFC 7517).
    pub(super) fn jwk(&self) -> Value {
        // An uncompressed point: 0x04, x, y.
        let point = self.pair.public_key().as_ref().get(1..).unwrap_or_default();
        let (x, y) = point.split_at(point.len() / 2);
        let mut jwk = json!({
            "kty": "EC", "use": "sig", "alg": self.algorithm, "crv": self.curve, "x": encode(x), "y": encode(y),
        });
        if let (Some(kid), Some(map)) = (self.kid, jwk.as_object_mut()) {
            map.insert("kid".into(), kid.into());
        }
        jwk
    }
}

/// Base64url without padding.
pub(super) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A fresh random string of `N` bytes, base64url.
pub(super) fn random<const N: usize>() -> String {
    let mut bytes = [0_u8; N];
    // The system's generator fails only where no process could work at all; a fixed string is caught as a duplicate.
    if rand::fill(&mut bytes).is_err() {
        return String::new();
    }
    encode(&bytes)
}

/// A fresh UUID, version 4.
pub(super) fn uuid() -> String {
    let mut bytes = [0_u8; 16];
    if rand::fill(&mut bytes).is_err() {
        return String::new();
    }
    let number = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0b11 << 62) | (0x4 << 76) | (0b10 << 62);
    let hex = format!("{number:032x}");
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0..8), part(8..12), part(12..16), part(16..20), part(20..32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_what_it_signed_and_nothing_else() {
        for key in [Key::es256().unwrap(), Key::es512().unwrap()] {
            let jwt = key.sign(&json!({"sub": "alice"})).unwrap();
            assert_eq!(key.open(&jwt).unwrap()["sub"], "alice");
            assert!(Key::es512().unwrap().open(&jwt).is_none());
        }
    }

    #[test]
    fn uuids_have_the_usual_shape() {
        let id = uuid();
        assert_eq!(id.len(), 36);
        assert_eq!(id.as_bytes()[14], b'4');
    }
}
