//! How a client proves who it is with its own key (RFC 7523, `private_key_jwt`): an assertion signed with RS256, in the
//! words that NERSC's issuer wants (contract replication, §7).
//!
//! The client's file is what the service's page or its tools hand out: `{"client_id": …, "secret": JWK}`; the id on
//! a line of its own and then PEM; or a JWK or PEM alone. The key is RSA, of 2048 bits or more.

use std::time::Duration;

use aws_lc_rs::{
    rand::{self, SystemRandom},
    rsa::KeyPair,
    signature::RSA_PKCS1_SHA256,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use pkcs1::{UintRef, der::Encode};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::core::secret::KeyText;

/// The life that the service's own client asks for.
const LIFE: Duration = Duration::from_secs(3600);

/// Why a file is no client's key. Nothing of the file is in the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Neither JSON nor PEM.
    #[error("holds neither a JWK nor a key in PEM")]
    Form,
    /// A JWK of another kind.
    #[error("holds a JWK that is no RSA key; the service signs with RS256")]
    NotRsa,
    /// A JWK without this member.
    #[error("holds a JWK without {0:?}: it is a public key, or was cut")]
    Member(&'static str),
    /// Not accepted by the cryptography.
    #[error("holds an RSA key that does not fit together, or of less than 2048 bits")]
    Unfit,
    /// It did not sign.
    #[error("the key does not sign")]
    Signature,
}

/// What a client's file says: the id, if it is in it, and the key alone.
#[derive(Debug)]
pub struct ClientFile {
    /// `client_id`
    pub id: Option<String>,
    /// A JWK or PEM.
    pub key: KeyText,
}

impl ClientFile {
    /// Parse; the key is a key, which is tried.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        let (id, key) = if text.starts_with('{') {
            let value: Value = serde_json::from_str(text).map_err(|_| KeyError::Form)?;
            match value.get("secret") {
                Some(secret) => {
                    let id = value.get("client_id").and_then(Value::as_str).map(|id| id.trim().to_owned());
                    // Some tools write the JWK as a text in the JSON.
                    let key = secret.as_str().map_or_else(|| secret.to_string(), str::to_owned);
                    (id, Zeroizing::new(key))
                }
                None => (None, Zeroizing::new(value.to_string())),
            }
        } else {
            let begin = text.find("-----BEGIN").ok_or(KeyError::Form)?;
            let (id, key) = text.split_at(begin);
            let id = Some(id.trim()).filter(|id| !id.is_empty());
            (id.map(str::to_owned), Zeroizing::new(key.to_owned()))
        };
        let key = KeyText::parse(&key).map_err(|_| KeyError::Form)?;
        ClientKey::parse(&key)?;
        Ok(Self { id, key })
    }
}

/// A key that signs.
#[derive(Debug)]
pub struct ClientKey(KeyPair);

/// The private members of an RSA JWK (RFC 7518, 6.3).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    n: Option<Zeroizing<String>>,
    e: Option<Zeroizing<String>>,
    d: Option<Zeroizing<String>>,
    p: Option<Zeroizing<String>>,
    q: Option<Zeroizing<String>>,
    dp: Option<Zeroizing<String>>,
    dq: Option<Zeroizing<String>>,
    qi: Option<Zeroizing<String>>,
}

impl ClientKey {
    /// From a JWK or PEM (PKCS#1 or PKCS#8).
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn parse(text: &KeyText) -> Result<Self, KeyError> {
        let text = text.expose().trim();
        let pair = if text.starts_with('{') {
            let jwk: Jwk = serde_json::from_str(text).map_err(|_| KeyError::Form)?;
            KeyPair::from_der(&pkcs1_of(&jwk)?)
        } else {
            match PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| KeyError::Form)? {
                PrivateKeyDer::Pkcs1(der) => KeyPair::from_der(der.secret_pkcs1_der()),
                PrivateKeyDer::Pkcs8(der) => KeyPair::from_pkcs8(der.secret_pkcs8_der()),
                _ => return Err(KeyError::NotRsa),
            }
        };
        pair.map(Self).map_err(|_| KeyError::Unfit)
    }

    /// An assertion for the token endpoint `audience`, made at `now` (seconds since 1970).
    ///
    /// # Errors
    /// [`KeyError::Signature`]
    pub fn assertion(&self, client: &str, audience: &str, now: u64) -> Result<Zeroizing<String>, KeyError> {
        let mut number = [0; 16];
        rand::fill(&mut number).map_err(|_| KeyError::Signature)?;
        let claims = json!({
            "iss": client, "sub": client, "aud": audience, "iat": now, "exp": now + LIFE.as_secs(),
            "jti": URL_SAFE_NO_PAD.encode(number),
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({"typ": "JWT", "alg": "RS256"})), part(&claims));
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .map_err(|_| KeyError::Signature)?;
        Ok(Zeroizing::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))))
    }
}

/// The key as PKCS#1, which the cryptography reads.
fn pkcs1_of(jwk: &Jwk) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    if jwk.kty != "RSA" {
        return Err(KeyError::NotRsa);
    }
    let number = |name: &'static str, text: &Option<Zeroizing<String>>| {
        let text = text.as_ref().ok_or(KeyError::Member(name))?;
        URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map(Zeroizing::new).map_err(|_| KeyError::Form)
    };
    let numbers = [
        number("n", &jwk.n)?,
        number("e", &jwk.e)?,
        number("d", &jwk.d)?,
        number("p", &jwk.p)?,
        number("q", &jwk.q)?,
        number("dp", &jwk.dp)?,
        number("dq", &jwk.dq)?,
        number("qi", &jwk.qi)?,
    ];
    let [modulus, public_exponent, private_exponent, prime1, prime2, exponent1, exponent2, coefficient] =
        numbers.each_ref().map(|bytes| UintRef::new(bytes));
    let fit = |number: Result<_, pkcs1::der::Error>| number.map_err(|_| KeyError::Unfit);
    let key = pkcs1::RsaPrivateKey {
        modulus: fit(modulus)?,
        public_exponent: fit(public_exponent)?,
        private_exponent: fit(private_exponent)?,
        prime1: fit(prime1)?,
        prime2: fit(prime2)?,
        exponent1: fit(exponent1)?,
        exponent2: fit(exponent2)?,
        coefficient: fit(coefficient)?,
        other_prime_infos: None,
    };
    key.to_der().map(Zeroizing::new).map_err(|_| KeyError::Unfit)
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        encoding::AsDer,
        rsa::KeySize,
        signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey},
    };
    use base64::engine::general_purpose::STANDARD;
    use pkcs1::der::Decode;

    use super::*;

    /// A fresh key as PKCS#8 and as JWK.
    fn fresh() -> (Vec<u8>, Value, Vec<u8>) {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let pkcs8 = pair.as_der().unwrap().as_ref().to_vec();
        let key = pkcs1::RsaPrivateKey::from_der(&pkcs8[26..]).unwrap();
        let text = |number: UintRef<'_>| URL_SAFE_NO_PAD.encode(number.as_bytes());
        let jwk = json!({
            "kty": "RSA", "n": text(key.modulus), "e": text(key.public_exponent), "d": text(key.private_exponent),
            "p": text(key.prime1), "q": text(key.prime2), "dp": text(key.exponent1), "dq": text(key.exponent2),
            "qi": text(key.coefficient),
        });
        (pkcs8.clone(), jwk, pair.public_key().as_ref().to_vec())
    }

    fn pem(pkcs8: &[u8]) -> String {
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(pkcs8))
    }

    #[test]
    fn every_form_of_the_clients_file_gives_an_assertion_that_its_public_key_verifies() {
        let (pkcs8, jwk, public) = fresh();
        let forms = [
            (json!({"client_id": "abcdefghijklm", "secret": jwk}).to_string(), true),
            (json!({"client_id": "abcdefghijklm", "secret": jwk.to_string()}).to_string(), true),
            (format!("abcdefghijklm\n{}", pem(&pkcs8)), true),
            (jwk.to_string(), false),
            (pem(&pkcs8), false),
        ];
        for (text, has_id) in forms {
            let file = ClientFile::parse(&text).unwrap();
            assert_eq!(file.id.as_deref(), has_id.then_some("abcdefghijklm"));
            let key = ClientKey::parse(&file.key).unwrap();
            let made = key.assertion("abcdefghijklm", "https://t.example.org/token", 1_800_000_000).unwrap();
            let (signed, signature) = made.rsplit_once('.').unwrap();
            let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &public).verify(signed.as_bytes(), &signature).unwrap();
            let (header, claims) = signed.split_once('.').unwrap();
            assert_eq!(URL_SAFE_NO_PAD.decode(header).unwrap(), br#"{"typ":"JWT","alg":"RS256"}"#);
            let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
            assert_eq!(claims["exp"], 1_800_003_600_u64);
            assert_eq!((&claims["iss"], &claims["aud"]), (&claims["sub"], &json!("https://t.example.org/token")));
            assert!(!format!("{file:?}{key:?}").contains(jwk["d"].as_str().unwrap()));
        }
    }

    #[test]
    fn what_is_no_private_key_is_refused_and_not_quoted() {
        let (_, jwk, _) = fresh();
        let without = |name: &str| {
            let mut jwk = jwk.clone();
            jwk.as_object_mut().unwrap().remove(name);
            jwk.to_string()
        };
        let changed = |name: &str, value: &str| {
            let mut jwk = jwk.clone();
            jwk[name] = value.into();
            jwk.to_string()
        };
        let table = [
            (String::new(), KeyError::Form),
            ("canary".into(), KeyError::Form),
            ("{".into(), KeyError::Form),
            (r#"{"kty":"EC","crv":"P-256"}"#.into(), KeyError::NotRsa),
            (without("d"), KeyError::Member("d")),
            (without("qi"), KeyError::Member("qi")),
            (changed("d", "AQAB"), KeyError::Unfit),
            (changed("n", "!"), KeyError::Form),
            (pem(b"canary"), KeyError::Unfit),
        ];
        for (text, error) in table {
            assert_eq!(ClientFile::parse(&text).err(), Some(error), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _read = (ClientFile::parse(&text).is_ok(), ClientFile::parse(&format!("{{{text}")).is_ok());
        }
    }
}
