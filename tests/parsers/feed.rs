//! Every parser that reads a file, an argument or the network, by number: what the tests and the fuzzer feed.

use std::{path::Path, sync::OnceLock};

use evercred::{
    config::{self, Secrets, Sources, condor::Knobs, fragment, input, settings::Provider},
    core::{
        answer::{Grant, Spends},
        id::{CredentialId, UserName},
        jwt, key_file,
        secret::{ClientSecret, RefreshToken},
        time::Timestamp,
        top::Top,
        use_file,
    },
    courier::frame::{self, FromCourier, ToCourier},
    issuer::{self, TokenAnswer, client},
    replicate::{
        envelope::KeyRing,
        frame::{FromReplicator, ToReplicator},
        name::FileName,
        pack,
    },
    spool::Seal,
    submit::request::Request,
};
use zeroize::Zeroizing;

/// The parsers, and for each something that it takes.
pub const SAMPLES: &[(&str, &str)] = &[
    (".top", r#"{"refresh_token": "abc", "scopes": "a b", "audience": ["x"], "other": {"n": 1}}"#),
    (".use", r#"{"access_token": "abc", "expires_in": 3600, "expires_at": 1764000000.5, "issued_at": 1763996400}"#),
    (
        "request file",
        "[User]\nName = alice\nProvider = \"box\" \"d ata\"\n[Service]\nService = \"box\"\nHandle = \"\"\n",
    ),
    ("JWT", "eyJhbGciOiJub25lIn0.eyJleHAiOjE3NjQwMDAwMDAsImlzcyI6Imh0dHBzOi8vYSJ9.c2ln"),
    ("configuration", "[provider.a]\nkind = \"oauth2\"\nissuer = \"https://a.example\"\nclient_id = \"x\" # c\n"),
    ("duration", "1h 30m"),
    ("request", "Service=grid&Handle=h&Scopes=storage.read:/&Audience=https://a.example&Username=alice"),
    ("base name", "grid_handle"),
    (
        "OAuth2 answer",
        r#"{"access_token": "abc", "token_type": "Bearer", "expires_in": "3600", "scope": "a", "refresh_token": "n"}"#,
    ),
    (
        "mytoken answer",
        r#"{"access_token": "abc", "expires_in": 3600, "token_update": {"mytoken": "n", "expires_in": 9}}"#,
    ),
    (
        "discovery",
        r#"{"issuer": "https://a.example", "token_endpoint": "https://a.example/t", "scopes_supported": ["a"], "providers_supported": [{"issuer": "https://b.example"}]}"#,
    ),
    ("Retry-After", "Wed, 21 Oct 2026 07:28:00 GMT"),
    ("secret", "s3cret with blanks"),
    (
        "sealed .top",
        "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==",
    ),
    (
        "sealed payload",
        "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==",
    ),
    ("result of a task", "11\n11\n[\"OK\", 1]"),
    ("file name at a site", "{user}/{service}.use"),
    ("frames", "\u{1}\u{0}\u{3}abc"),
];

/// Feed one.
pub fn feed(parser: usize, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match SAMPLES.get(parser).map_or("", |(name, _)| *name) {
        ".top" => drop(Top::parse(bytes)),
        ".use" => {
            let _read = use_file::read(bytes);
            drop(use_file::token(bytes));
        }
        "request file" => drop(key_file::parse(bytes)),
        "JWT" => {
            drop(jwt::claims::<serde_json::Value>(&text));
            let _end = jwt::end_of_refresh_token(&text);
        }
        "configuration" => drop(fragment::parse(&text, &Path::new("c.toml").into(), 0)),
        "duration" => {
            let _length = input::parse_duration(&text);
        }
        "request" => drop(Request::parse(&text)),
        "base name" => {
            if let Ok(user) = UserName::parse("alice")
                && let Ok(id) = CredentialId::from_base(user.clone(), &text)
            {
                assert_eq!(CredentialId::from_base(user, &id.base()).as_ref(), Ok(&id), "a name means one thing");
            }
        }
        "OAuth2 answer" => answered(0, bytes),
        "mytoken answer" => answered(1, bytes),
        "discovery" => {
            for issuer in ["https://a.example", ""] {
                drop(client::endpoint(issuer, bytes));
                drop(client::revocation_endpoint(issuer, bytes));
                drop(client::front_door(issuer, bytes));
            }
            drop(client::scopes_supported(bytes));
            drop(client::providers_supported(bytes));
        }
        "Retry-After" => {
            let answer =
                TokenAnswer { status: 429, retry_after: Some(text.into_owned()), body: Zeroizing::new(Vec::new()) };
            let _wait = client::retry_after(&answer, Timestamp::from_secs(1_764_000_000));
            drop(client::http_failure(&answer, Timestamp::from_secs(i64::MAX)));
        }
        "secret" => {
            drop(ClientSecret::parse(&text));
            drop(RefreshToken::parse(&text));
            let shown = client::presentable(&text);
            assert!(!shown.chars().any(char::is_control), "what an issuer says cannot steer a terminal: {shown:?}");
        }
        "sealed .top" => drop(Seal::from_key(KEY).and_then(|seal| seal.open(bytes))),
        "sealed payload" => {
            if let Some(key) = config_key() {
                drop(key.open(bytes, 1_764_000_000, 3600));
            }
        }
        "result of a task" => drop(pack::result(&text)),
        "file name at a site" => {
            drop(FileName::parse(&text));
            drop(FileName::parse_path(&text));
        }
        "frames" => {
            drop(frame::decode::<ToCourier>(bytes));
            drop(frame::decode::<FromCourier>(bytes));
            drop(frame::decode::<ToReplicator>(bytes));
            drop(frame::decode::<FromReplicator>(bytes));
        }
        _ => {}
    }
}

/// The key of the Fernet specification's own vectors.
const KEY: &str = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=";

fn config_key() -> Option<&'static KeyRing> {
    static RING: OnceLock<Option<KeyRing>> = OnceLock::new();
    RING.get_or_init(|| {
        let key = evercred::core::secret::KeyText::parse(KEY).ok()?;
        KeyRing::new(&[key]).ok()
    })
    .as_ref()
}

fn answered(provider: usize, bytes: &[u8]) {
    static PROVIDERS: OnceLock<Vec<Provider>> = OnceLock::new();
    let providers = PROVIDERS.get_or_init(providers);
    let Some(provider) = providers.get(provider) else { panic!("the configuration of the test is wrong") };
    let Ok(refresh_token) = RefreshToken::parse("the-refresh-token") else { return };
    for spends in [Spends::RefreshToken(refresh_token.clone()), Spends::SubjectToken(refresh_token), Spends::Nothing] {
        let grant = Grant { spends, scopes: vec!["a".into()], audience: vec!["b".into()] };
        for status in [200, 400, 401, 429, 503] {
            let answer = TokenAnswer { status, retry_after: None, body: Zeroizing::new(bytes.to_vec()) };
            if let Err(error) = issuer::answer(provider, &grant, &answer, Timestamp::from_secs(1_764_000_000)) {
                let spent = grant.spends.token().is_some();
                assert!(!spent || !error.detail.contains("the-refresh-token"), "no secret in an error");
            }
        }
    }
}

fn providers() -> Vec<Provider> {
    let text = "[daemon]\ncredential_directory = \"/tmp\"\n[provider.a]\nkind = \"oauth2\"\nissuer = \"https://a.example\"\n\
                client_id = \"x\"\n[provider.b]\nkind = \"mytoken\"\nserver = \"https://m.example\"\nissuer = \"https://a.example\"\n";
    let path = std::env::temp_dir().join(format!("evercred-parsers-{}.toml", std::process::id()));
    let written = std::fs::write(&path, text);
    let sources = Sources { config: Some(path.clone()), secrets: Secrets::LeaveAlone, ..Sources::default() };
    let loaded = config::load_with(&sources, &Knobs::default());
    drop(written.and_then(|()| std::fs::remove_file(&path)));
    loaded.map(|settings| settings.providers).unwrap_or_default()
}
