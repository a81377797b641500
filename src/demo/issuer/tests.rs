use super::*;
use serde_json::{Value, json};

fn start(rotation: Rotation) -> Running {
    Issuer::start(&Options { rotation, access_lifetime: Duration::from_secs(20), ..Options::default() }).unwrap()
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn http() -> reqwest::Client {
    // Another provider may be the process's default already.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap()
}

async fn post(http: &reqwest::Client, url: &str, form: &[(&str, &str)]) -> (u16, Value) {
    let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let request = http.post(url).header("content-type", "application/x-www-form-urlencoded").body(body);
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
}

async fn post_json(http: &reqwest::Client, url: &str, body: &Value) -> (u16, Value) {
    let request = http.post(url).header("content-type", "application/json").body(body.to_string());
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
}

fn wish(user: &str) -> TokenWish {
    TokenWish { user: user.into(), scope: "read write".into(), ..TokenWish::default() }
}

#[test]
fn strict_rotation_kills_the_old_refresh_token_and_counts_its_reuse() {
    let issuer = start(Rotation::Strict);
    let first = issuer.control().refresh_token(&wish("alice"));
    run(async {
        let (http, url) = (http(), format!("{}/token", issuer.url()));
        let spend =
            async |token: &str| post(&http, &url, &[("grant_type", "refresh_token"), ("refresh_token", token)]).await;
        let (status, body) = spend(&first).await;
        assert_eq!((status, &body["scope"], &body["expires_in"]), (200, &json!("read write"), &json!(20)));
        let claims = issuer.shared.access_key.open(body["access_token"].as_str().unwrap()).unwrap();
        assert_eq!((&claims["iss"], &claims["sub"]), (&json!(issuer.url()), &json!("alice")));
        let (status, refused) = spend(&first).await;
        assert_eq!((status, &refused["error"]), (400, &json!("invalid_grant")));
        assert_eq!(spend(body["refresh_token"].as_str().unwrap()).await.0, 200);
    });
    let record = issuer.control().records(Some("alice")).remove(0);
    assert_eq!((record.exchanges, record.rotations, record.reuse, record.issued.len()), (2, 2, 1, 2));
}

#[test]
fn within_the_grace_an_old_refresh_token_still_works() {
    let issuer = start(Rotation::Grace(Duration::from_secs(60)));
    let token = issuer.control().refresh_token(&wish("alice"));
    run(async {
        let (http, url) = (http(), format!("{}/token", issuer.url()));
        for _ in 0..2 {
            assert_eq!(post(&http, &url, &[("grant_type", "refresh_token"), ("refresh_token", &token)]).await.0, 200);
        }
    });
}

#[test]
fn a_mytoken_rotates_and_its_predecessor_gets_401_without_description() {
    let issuer = start(Rotation::None);
    let rotation = Some(MytokenRotation { on_at: true, lifetime: 600, ..MytokenRotation::default() });
    let mytoken = issuer.control().mytoken(MytokenWish { user: "bob".into(), rotation, ..MytokenWish::default() });
    let mytoken = mytoken.unwrap();
    run(async {
        let (http, url) = (http(), format!("{}/api/v0/token/access", issuer.mytoken_url()));
        let body = json!({"grant_type": "mytoken", "mytoken": mytoken, "scope": "ignored", "audience": null});
        let (status, answer) = post_json(&http, &url, &body).await;
        assert_eq!((status, &answer["scope"]), (200, &json!("offline_access")));
        assert_eq!(answer["token_update"]["mom_id"].as_str().unwrap().len(), 88);
        assert_eq!(post_json(&http, &url, &body).await, (401, json!({"error": "invalid_token"})));
        let next = answer["token_update"]["mytoken"].as_str().unwrap();
        let form = [("grant_type", "refresh_token"), ("refresh_token", next)];
        assert_eq!(post(&http, &url, &form).await.0, 200);
    });
}

#[test]
fn mytoken_refusals_have_the_words_of_the_contract() {
    let issuer = start(Rotation::None);
    let make = |wish: MytokenWish| issuer.control().mytoken(MytokenWish { user: "bob".into(), ..wish }).unwrap();
    let expired = make(MytokenWish { lifetime: Some(0), ..MytokenWish::default() });
    let narrow = Restriction { scope: Some("read".into()), ..Restriction::default() };
    let narrow = make(MytokenWish { restrictions: vec![narrow], ..MytokenWish::default() });
    let weak = make(MytokenWish { capabilities: vec!["tokeninfo".into()], ..MytokenWish::default() });
    let forged = format!("{}x", narrow.rsplit_once('.').unwrap().0.to_owned() + ".AAAA");
    run(async {
        let (http, url) = (http(), format!("{}/api/v0/token/access", issuer.mytoken_url()));
        for (token, status, error, says) in [
            (expired.as_str(), 401, "invalid_token", "token is expired by"),
            (&narrow, 403, "usage_restricted", "The restrictions"),
            (&weak, 403, "insufficient_capabilities", "The provided token"),
            (&forged, 401, "invalid_token", "crypto/ecdsa: verification error"),
            ("", 400, "invalid_request", "token not valid"),
            (&"a".repeat(40), 401, "invalid_token", "token contains an invalid number of segments"),
        ] {
            let body = json!({"grant_type": "mytoken", "mytoken": token, "scope": "write"});
            let (got, answer) = post_json(&http, &url, &body).await;
            assert_eq!((got, answer["error"].as_str()), (status, Some(error)), "{says}");
            assert!(answer["error_description"].as_str().unwrap().starts_with(says), "{answer}");
        }
    });
}

#[test]
fn a_polling_code_is_pending_until_the_consent_and_works_once() {
    let issuer = start(Rotation::None);
    run(async {
        let (http, my) = (http(), format!("{}/api/v0/token/my", issuer.mytoken_url()));
        let request = json!({"grant_type": "oidc_flow", "oidc_flow": "authorization_code",
            "oidc_issuer": format!("{}/", issuer.url()), "restrictions": [{"exp": "+7d"}]});
        let (status, started) = post_json(&http, &my, &request).await;
        assert_eq!(status, 200, "{started}");
        let poll = json!({"grant_type": "polling_code", "polling_code": started["polling_code"]});
        assert_eq!(post_json(&http, &my, &poll).await, (428, json!({"error": "authorization_pending"})));
        let codes = || async {
            let answer = http.get(format!("{}/control/codes", issuer.url())).send().await.unwrap();
            serde_json::from_str::<Vec<String>>(&answer.text().await.unwrap()).unwrap()
        };
        let open = codes().await;
        assert!(open.iter().any(|code| *code == started["polling_code"]), "{open:?}");
        assert!(open.iter().any(|code| started["consent_uri"].as_str().unwrap().ends_with(code)), "{open:?}");
        let consent = started["consent_uri"].as_str().unwrap();
        let (status, next) = post_json(&http, consent, &json!({"restrictions": [{"exp": "+60"}], "user": "bob"})).await;
        assert_eq!(status, 278);
        let redirect = http.get(next["authorization_uri"].as_str().unwrap()).send().await.unwrap();
        assert_eq!(redirect.status().as_u16(), 303);
        let (status, done) = post_json(&http, &my, &poll).await;
        assert_eq!((status, &done["expires_in"]), (200, &json!(60)));
        let (status, again) = post_json(&http, &my, &poll).await;
        assert_eq!((status, &again["error_description"]), (401, &json!("Bad polling or transfer code")));
        assert!(codes().await.is_empty());
    });
}

#[test]
fn faults_outages_and_stats_are_steered_over_http() {
    let issuer = start(Rotation::None);
    run(async {
        let (http, url) = (http(), format!("{}/token", issuer.url()));
        let control = |path: &str| format!("{}/control/{path}", issuer.url());
        let (_, made) = post_json(&http, &control("refresh-token"), &json!({"user": "eve", "scope": "a"})).await;
        let token = made["refresh_token"].as_str().unwrap().to_owned();
        let form = [("grant_type", "refresh_token"), ("refresh_token", token.as_str())];
        for (fault, status) in [
            (json!("html"), 200),
            (json!("redirect"), 302),
            (json!("server-error"), 500),
            (json!({"rate-limited": 7}), 429),
            (json!("no-expiry"), 200),
            (json!("past-expiry"), 200),
        ] {
            let set = post_json(&http, &control("fault"), &json!({"user": "eve", "fault": fault})).await.0;
            assert_eq!(set, 204);
            assert_eq!(post(&http, &url, &form).await.0, status, "{fault}");
        }
        post_json(&http, &control("fault"), &json!({"user": "eve", "fault": null})).await;
        post_json(&http, &control("outage"), &json!({"mode": "unavailable"})).await;
        assert_eq!(post(&http, &url, &form).await.0, 503);
        post_json(&http, &control("outage"), &json!({"mode": "closed"})).await;
        assert!(http.post(&url).send().await.is_err());
        post_json(&http, &control("outage"), &json!({"mode": "off"})).await;
        assert_eq!(post(&http, &url, &form).await.0, 200);
        post_json(&http, &control("revoke"), &json!({"token": token})).await;
        assert_eq!(post(&http, &url, &form).await.0, 400);
    });
    let stats = issuer.control().stats();
    assert_eq!((stats.exchanges, stats.refused, stats.in_flight), (3, 1, 0));
}

#[test]
fn a_device_waits_for_its_user() {
    let issuer = start(Rotation::None);
    run(async {
        let http = http();
        let (_, device) = post(&http, &format!("{}/device", issuer.url()), &[("client_id", "c"), ("scope", "a")]).await;
        let grant = "urn:ietf:params:oauth:grant-type:device_code";
        let code = device["device_code"].as_str().unwrap();
        let form = [("grant_type", grant), ("device_code", code), ("client_id", "c")];
        let url = format!("{}/token", issuer.url());
        assert_eq!(post(&http, &url, &form).await, (400, json!({"error": "authorization_pending"})));
        assert_eq!(post(&http, &url, &form).await, (400, json!({"error": "slow_down"})));
        let approval = [("user_code", device["user_code"].as_str().unwrap()), ("user", "dora")];
        post(&http, device["verification_uri"].as_str().unwrap(), &approval).await;
        let (status, answer) = post(&http, &url, &form).await;
        assert_eq!(status, 200);
        assert!(answer["refresh_token"].is_string());
    });
}

#[test]
fn the_command_line_is_understood_or_refused() {
    let words = |line: &str| parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    let options = words("--listen 127.0.0.1:0 --rotation grace:5 --lifetime 20 --latency-ms 50").unwrap();
    assert_eq!(options.rotation, Rotation::Grace(Duration::from_secs(5)));
    assert_eq!(options.latency, Duration::from_millis(50));
    for bad in ["--listen here", "--rotation often", "--lifetime", "--what"] {
        assert!(words(bad).is_err(), "{bad}");
    }
}
