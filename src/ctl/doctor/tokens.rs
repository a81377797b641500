//! The tokens that lie in the directory: what issuers really grant, and whether it lasts for HTCondor's polling.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{Duration, SystemTime},
};

use nix::libc;

use super::Finding;
use crate::{
    config::settings::{Provider, Settings},
    core::{
        id::{Handle, UserName},
        jwt,
        time::Timestamp,
        use_file,
    },
    issuer::judge,
};

const AREA: &str = "Tokens";
/// As many users as we look at: it is a probe, not a report (`evercred status` is that).
const USERS: usize = 2000;
/// No `.use` of ours is larger.
const MAX_USE: u64 = 1 << 20;

/// One provider's tokens.
#[derive(Debug, Default)]
struct Tally {
    tokens: usize,
    expired: usize,
    without_use: usize,
    shortest: Option<Duration>,
    /// Tokens that tell their scopes, and those that tell their audience.
    scoped: usize,
    addressed: usize,
    /// Scopes that the provider asks for and some token lacks.
    lacking: BTreeSet<String>,
    /// Audiences that the provider asks for and some token lacks.
    elsewhere: BTreeSet<String>,
}

/// What a `.use` tells.
struct Told {
    times: use_file::Use,
    scopes: Option<Vec<String>>,
    audience: Option<Vec<String>>,
}

/// `every`: how often jobs ask for fresh tokens; none: never.
pub(super) fn examine(settings: &Settings, every: Option<Duration>) -> Vec<Finding> {
    examine_some(settings, every, USERS)
}

fn examine_some(settings: &Settings, every: Option<Duration>, most: usize) -> Vec<Finding> {
    let directory = &settings.daemon.credential_directory;
    let Ok(entries) = std::fs::read_dir(directory) else {
        return vec![Finding::skipped(AREA, "tokens", "the credential directory cannot be read by this user")];
    };
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = Timestamp(i64::try_from(wall.as_millis()).unwrap_or(i64::MAX));
    let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
    let is_user = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| UserName::parse(name).is_ok());
    let mut users = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && is_user(&entry.file_name()));
    for entry in users.by_ref().take(most) {
        look(&entry.path(), &settings.providers, now, &mut tallies);
    }
    // A part is not told as the whole.
    let of = if users.next().is_some() { format!(" of the first {most} users") } else { String::new() };
    settings
        .providers
        .iter()
        .flat_map(|p| verdict(p, tallies.remove(p.name.as_str()).unwrap_or_default(), every, &of))
        .collect()
}

fn look<'a>(home: &Path, providers: &'a [Provider], now: Timestamp, tallies: &mut BTreeMap<&'a str, Tally>) {
    for entry in std::fs::read_dir(home).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(base) = name.to_str().and_then(|name| name.strip_suffix(".top")) else { continue };
        let first = base.split('_').next().unwrap_or(base);
        let owns = |provider: &&Provider| provider.services.iter().any(|s| s == base || s == first);
        let Some(provider) = providers.iter().find(owns) else { continue };
        let tally = tallies.entry(provider.name.as_str()).or_default();
        let Some(Told { times: found, scopes, audience }) = read(&home.join(format!("{base}.use"))) else {
            tally.without_use += 1;
            continue;
        };
        tally.tokens += 1;
        if let Some(granted) = scopes {
            tally.scoped += 1;
            tally.lacking.extend(judge::missing_scopes(&provider.scopes, &granted).map(str::to_owned));
        }
        if let Some(have) = audience {
            tally.addressed += 1;
            let handle = base.split_once('_').and_then(|(_, handle)| Handle::parse(handle).ok());
            let wanted = provider.audience_of(handle.as_ref());
            tally.elsewhere.extend(judge::missing_audiences(wanted, &have).map(str::to_owned));
        }
        if let Some(expiry) = found.expiry {
            tally.expired += usize::from(expiry <= now);
            if let Some(issued) = found.issued {
                let life = expiry.since(issued);
                tally.shortest = Some(tally.shortest.map_or(life, |shortest| shortest.min(life)));
            }
        }
    }
}

/// What the file tells, the scopes that were granted and for whom, as far as it or its token tells.
fn read(path: &Path) -> Option<Told> {
    #[derive(serde::Deserialize)]
    struct Object<'a> {
        #[serde(borrow)]
        access_token: std::borrow::Cow<'a, str>,
        scope: Option<serde_json::Value>,
    }
    #[derive(serde::Deserialize)]
    struct Claims {
        aud: Option<serde_json::Value>,
        scope: Option<serde_json::Value>,
    }
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    let mut bytes = zeroize::Zeroizing::new(Vec::new());
    file.take(MAX_USE).read_to_end(&mut bytes).ok()?;
    let times = use_file::read(&bytes)?;
    let object = serde_json::from_slice::<Object<'_>>(&bytes).ok();
    let token =
        object.as_ref().map_or_else(|| std::str::from_utf8(&bytes).ok().map(str::trim), |o| Some(&o.access_token));
    let claims: Option<Claims> = token.and_then(jwt::claims);
    let scope = object.as_ref().and_then(|object| object.scope.as_ref());
    let scope = scope.or_else(|| claims.as_ref().and_then(|claims| claims.scope.as_ref()));
    let scopes = judge::words(scope);
    Some(Told { times, scopes, audience: judge::words(claims.as_ref().and_then(|claims| claims.aud.as_ref())) })
}

/// What issuers grant is read in the tokens that they gave; nothing is asked, which would spend a refresh token.
fn grants(name: &str, provider: &Provider, tally: &Tally) -> Option<Finding> {
    if !tally.lacking.is_empty() || !tally.elsewhere.is_empty() || tally.tokens == 0 {
        return None;
    }
    let mut told = Vec::new();
    let mut silent = Vec::new();
    for (wanted, what, tell) in
        [(&provider.scopes, "scopes", tally.scoped), (&provider.audience, "audience", tally.addressed)]
    {
        match (wanted.is_empty(), tell) {
            (true, _) => {}
            (false, 0) => silent.push(what),
            (false, _) => told.push(format!("the {what} asked for in {tell}")),
        }
    }
    let tokens = tally.tokens;
    if !silent.is_empty() {
        let what = format!("{name}: none of {tokens} tokens tells its {}", silent.join(" and "));
        return Some(
            Finding::skipped(AREA, "grants", what)
                .advise("only who takes the tokens can judge these; try one where it is used"),
        );
    }
    (!told.is_empty()).then(|| Finding::ok(AREA, "grants", format!("{name}: of {tokens} tokens {}", told.join(", "))))
}

fn verdict(provider: &Provider, tally: Tally, every: Option<Duration>, of: &str) -> Vec<Finding> {
    let name = &provider.name;
    let mut findings = Vec::new();
    let total = tally.tokens + tally.without_use;
    if let Some(accounts) = provider.accounts().filter(|_| total == 0) {
        let what = format!("{name}: no token yet for {}", accounts.users.join(", "));
        let advice = "the credential monitor gets them by itself when it runs: see its log";
        return vec![Finding::skipped(AREA, "tokens", what).advise(advice)];
    }
    if total == 0 {
        let granted = format!(
            "{name}: what the issuer really grants shows in the first token; to ask now would spend a refresh token"
        );
        return vec![
            Finding::skipped(AREA, "tokens", format!("{name}: nobody{of} has a credential yet")),
            Finding::skipped(AREA, "grants", granted),
        ];
    }
    let bad = tally.expired + tally.without_use;
    if bad == 0 {
        findings.push(Finding::ok(AREA, "tokens", format!("{name}: {total} credentials{of}, all with a living token")));
    } else {
        let what = format!(
            "{name}: of {total} credentials{of} {} have an expired token and {} none yet",
            tally.expired, tally.without_use
        );
        findings.push(Finding::warning(AREA, "tokens", what).advise("see which and why: evercred status"));
    }
    findings.extend(grants(name, provider, &tally));
    if !tally.lacking.is_empty() {
        let lacking = tally.lacking.into_iter().collect::<Vec<_>>().join(" ");
        findings.push(
            Finding::warning(AREA, "scopes", format!("{name}: tokens without the scopes asked for: {lacking}"))
                .advise("the issuer does not grant them to these users: ask it, or take them out of `scopes`"),
        );
    }
    if !tally.elsewhere.is_empty() {
        let elsewhere = tally.elsewhere.into_iter().collect::<Vec<_>>().join(" ");
        findings.push(
            Finding::warning(AREA, "audience", format!("{name}: tokens that are not for {elsewhere}"))
                .advise("the issuer does not grant that audience: see `audience` and `audience_style`, or ask it"),
        );
    }
    if let Some(life) = tally.shortest {
        let what = format!("{name}: the shortest access token lives {} s", life.as_secs());
        let Some(refresh) = every else {
            let finding = Finding::warning(AREA, "lifetime", format!("{what}, and jobs never ask for another one"));
            findings.push(finding.advise("set SEC_CREDENTIAL_REFRESH = 300, here and on the execution points"));
            return findings;
        };
        let what = format!("{what}, jobs ask every {} s", refresh.as_secs());
        if life < refresh * 2 {
            findings
                .push(Finding::failed(AREA, "lifetime", what).advise(
                    "jobs see expired tokens: ask the issuer for longer ones, or lower SEC_CREDENTIAL_REFRESH",
                ));
        } else if life < refresh * 4 {
            findings.push(
                Finding::warning(AREA, "lifetime", what)
                    .advise("an outage of minutes reaches the jobs: ask the issuer for longer tokens"),
            );
        } else {
            findings.push(Finding::ok(AREA, "lifetime", what));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::DirBuilderExt;

    use super::*;
    use crate::{
        config::{Sources, condor::Knobs, load_with},
        ctl::doctor::Verdict,
    };

    const EVERY: Option<Duration> = Some(Duration::from_secs(300));

    #[test]
    fn expired_missing_short_and_lesser_tokens_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        let text = format!(
            "[daemon]\ncredential_directory = \"{}\"\n[provider.w]\nkind = \"oauth2\"\nclient_id = \"x\"\n\
             issuer = \"https://i.example.org/\"\nscopes = [\"storage.read:/\", \"compute.read\"]\n\
             audience = [\"https://se.example.org\"]\n",
            dir.path().display()
        );
        std::fs::write(&file, text).unwrap();
        let sources = Sources { config: Some(file), ..Sources::default() };
        let settings = load_with(&sources, &Knobs::default()).unwrap();
        assert_eq!(examine(&settings, EVERY)[0].verdict, Verdict::Skipped);
        let now = jiff::Timestamp::now().as_second();
        for (user, issued, expires) in [("alice", now, now + 500), ("bob", now - 7200, now - 3600)] {
            let home = dir.path().join(user);
            std::fs::DirBuilder::new().mode(0o700).create(&home).unwrap();
            std::fs::write(home.join("w.top"), "{}").unwrap();
            std::fs::write(home.join("w_x.top"), "{}").unwrap();
            // For somebody else: {"aud":"https://other.example.org"}
            let token = "e30.eyJhdWQiOiJodHRwczovL290aGVyLmV4YW1wbGUub3JnIn0.x";
            let line = format!(
                "{{\"access_token\":\"{token}\",\"issued_at\":{issued},\"expires_at\":{expires},\"scope\":\"storage.read:/\"}}\n"
            );
            std::fs::write(home.join("w.use"), line).unwrap();
        }
        let findings = examine(&settings, EVERY);
        let found: Vec<_> = findings.iter().map(|f| (f.check, f.verdict)).collect();
        let expected = [
            ("tokens", Verdict::Warning),
            ("scopes", Verdict::Warning),
            ("audience", Verdict::Warning),
            ("lifetime", Verdict::Failed),
        ];
        assert_eq!(found, expected, "{findings:?}");
        assert_eq!(findings[0].what, "w: of 4 credentials 1 have an expired token and 2 none yet");
        assert!(findings[1].what.ends_with("asked for: compute.read"), "{}", findings[1].what);
        assert_eq!(findings[2].what, "w: tokens that are not for https://se.example.org");
        assert!(findings[3].what.ends_with("lives 500 s, jobs ask every 300 s"), "{}", findings[3].what);
        let never = examine(&settings, None);
        assert!(never[3].what.ends_with("lives 500 s, and jobs never ask for another one"), "{}", never[3].what);
        // One of the two users: not all there is.
        let part = examine_some(&settings, EVERY, 1);
        assert!(part[0].what.starts_with("w: of 2 credentials of the first 1 users "), "{}", part[0].what);
    }
}
