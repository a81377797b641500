//! `evercred status` and `evercred list`: what the daemon says of its credentials, for people or as JSON.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use nix::unistd::{User, geteuid};
use serde::Serialize;

use super::{
    daemon,
    show::{self, Colour},
};
use crate::{
    advice::advice,
    cli,
    config::{self, Sources},
    core::{
        snapshot::{Credential, Issuer, Replica, SiteStanding, State, Status},
        time::{Timestamp, rfc3339},
    },
    error::{Kind, Report, exit},
};

/// So many credentials are named for each trouble of a site.
const NAMED: usize = 3;
/// Between two looks of `--watch`.
const LOOK: Duration = Duration::from_secs(2);

/// `evercred status`: 0, 3 if the named credential is not there, 4 if the daemon cannot be reached.
#[must_use]
pub fn run(args: &cli::Status) -> ExitCode {
    let socket = args.socket.clone().unwrap_or_else(|| config::status_socket(&Sources::of_user(None)));
    let me = me();
    let (which, me) = (args.which.as_deref(), me.as_deref());
    loop {
        // What is asked for by name is waited for; all that there are is told as far as it is known.
        let told = |status: &Status| args.watch || chosen(status, which, me).next().is_some();
        let status = match &args.which {
            Some(_) => daemon::status_telling(&socket, told),
            None => daemon::status(&socket),
        };
        let status = match status {
            Ok(status) => status,
            Err(error) => return error.report().print("evercred"),
        };
        let mine: Vec<&Credential> = chosen(&status, which, me).collect();
        if let (Some(which), true, false) = (&args.which, mine.is_empty(), args.watch) {
            return nothing(&status, which).print("evercred");
        }
        let text = if args.json {
            json(&status, &mine)
        } else {
            page(&status, &mine, Colour::of_stdout(), show::width_of_stdout())
        };
        let clear = if args.watch && !args.json { "\x1b[2J\x1b[H" } else { "" };
        // Nobody is left to tell if standard output is closed.
        if write!(io::stdout().lock(), "{clear}{text}").is_err() || !args.watch {
            return ExitCode::SUCCESS;
        }
        std::thread::sleep(LOOK);
    }
}

/// `evercred list`: names, one a line; 0, 4 if the daemon cannot be reached.
#[must_use]
pub fn list(args: &cli::List) -> ExitCode {
    let socket = args.socket.clone().unwrap_or_else(|| config::status_socket(&Sources::of_user(None)));
    let status = match daemon::status_telling(&socket, |_| false) {
        Ok(status) => status,
        Err(error) => return error.report().print("evercred"),
    };
    let ends = |c: &Credential| match c.state {
        // Refused or unusable: it has ended already.
        State::Parked | State::Unusable => Some(status.now),
        _ => c.ends(),
    };
    let due =
        |c: &&Credential| args.expiring.is_none_or(|within| ends(c).is_some_and(|end| end <= status.now.plus(within)));
    let mut mine: Vec<&Credential> = status.credentials.iter().filter(due).collect();
    mine.sort_by_key(|c| (ends(c).is_none(), ends(c)));
    let text = if args.json {
        json(&status, &mine)
    } else {
        show::table(
            ["CREDENTIAL", "PROVIDER", "STATE", "REFRESH TOKEN LEFT"],
            mine.iter().map(|c| {
                [
                    c.name(),
                    c.provider.clone(),
                    c.state.word().to_owned(),
                    show::left(c.refresh_token_expires, status.now),
                ]
            }),
        )
    };
    // Nobody is left to tell if standard output is closed.
    io::stdout().lock().write_all(text.as_bytes()).ok();
    ExitCode::SUCCESS
}

/// The caller's name here.
pub(super) fn me() -> Option<String> {
    User::from_uid(geteuid()).ok().flatten().map(|user| user.name)
}

/// Whether it is the caller's own. Who runs the daemon as oneself sees everybody's, and has own ones all the same.
fn is_own(status: &Status, me: Option<&str>, credential: &Credential) -> bool {
    !status.everybody || me == Some(credential.user.as_str())
}

/// `USER`, `USER/S_H`, or for the own credentials `S_H` alone. A user of that name comes first for an admin, and last for
/// a user.
pub(super) fn chosen<'a>(
    status: &'a Status,
    which: Option<&'a str>,
    me: Option<&'a str>,
) -> impl Iterator<Item = &'a Credential> {
    let named = |one: &str| status.everybody && status.credentials.iter().any(|c| c.user == one);
    let own = which.filter(|which| !named(which) && one(status, which, me).is_some());
    status.credentials.iter().filter(move |credential| match which.map(|which| which.split_once('/').ok_or(which)) {
        None => true,
        Some(Ok((user, base))) => credential.user == user && credential.base() == base,
        Some(Err(one)) if own.is_some() => is_own(status, me, credential) && credential.base() == one,
        Some(Err(one)) => credential.user == one,
    })
}

/// One credential: `USER/S_H`, or for the own ones `S_H` alone. A user's name alone stands for none.
pub(super) fn one<'a>(status: &'a Status, which: &str, me: Option<&str>) -> Option<&'a Credential> {
    status.credentials.iter().find(|credential| match which.split_once('/') {
        Some((user, base)) => credential.user == user && credential.base() == base,
        None => is_own(status, me, credential) && credential.base() == which,
    })
}

fn nothing(status: &Status, which: &str) -> Report {
    if !status.complete {
        return daemon::not_known_yet(which);
    }
    let whose = if status.everybody { "" } else { " of yours" };
    Report::new(format!("there is no credential{whose} called {which}"), exit::MISSING)
        .advise("evercred status shows those that are there; a new one comes with evercred login SERVICE or a submit")
}

fn json(status: &Status, chosen: &[&Credential]) -> String {
    /// The document with some of its credentials; they are many, so that none is copied.
    #[derive(Serialize)]
    struct Part<'a> {
        schema: u32,
        version: &'a str,
        pid: u32,
        #[serde(with = "rfc3339")]
        now: Timestamp,
        #[serde(with = "rfc3339")]
        started: Timestamp,
        everybody: bool,
        courier: bool,
        complete: bool,
        providers: &'a [Issuer],
        sites: &'a [SiteStanding],
        credentials: &'a [&'a Credential],
    }
    let Status { schema, version, pid, now, started, everybody, courier, complete, providers, sites, credentials: _ } =
        status;
    let (schema, pid, now, started) = (*schema, *pid, *now, *started);
    let (everybody, courier, complete, credentials) = (*everybody, *courier, *complete, chosen);
    let part = Part { schema, version, pid, now, started, everybody, courier, complete, providers, sites, credentials };
    // Only numbers, texts and times are in it.
    serde_json::to_string_pretty(&part).map_or_else(|_| String::new(), |text| text + "\n")
}

/// The table, as wide as the terminal if that can be, then what is wrong and what to do.
fn page(status: &Status, chosen: &[&Credential], colour: Colour, width: Option<usize>) -> String {
    let now = status.now;
    if chosen.is_empty() && !status.complete {
        return foot(status).trim_start().to_owned();
    }
    if chosen.is_empty() {
        let whose = if status.everybody { "There are no credentials" } else { "You have no credentials here" };
        return format!(
            "{whose}. A job with use_oauth_services brings one, or: evercred login SERVICE\n{}",
            foot(status)
        );
    }
    let plain = table(status, chosen, width);
    let mut text = String::with_capacity(plain.len() + plain.len() / 8);
    let mut lines = plain.lines();
    text.extend([lines.next().unwrap_or_default(), "\n"]);
    for (line, credential) in lines.zip(chosen) {
        let (begin, end) = colour.around(credential, now);
        text.extend([begin, line, end, "\n"]);
    }
    let wrong = |credential: &&Credential| {
        trouble(credential, status.everybody, now) + &ending(credential, status.everybody, now)
    };
    let troubles: String = chosen.iter().map(wrong).collect();
    text + &show::fold(&(troubles + &sites(status, chosen) + &foot(status)), width, 2)
}

/// Columns that say nothing here are left out; in a narrow terminal headings are short, and the provider is left out
/// where it is called as the service is. In a pipe the headings are always the long ones.
fn table(status: &Status, chosen: &[&Credential], width: Option<usize>) -> String {
    let now = status.now;
    let renewal = |c: &Credential| match c.renews {
        Some(at) if at > now => format!("in {}", show::short(at.since(now))),
        Some(_) => "now".into(),
        None if c.state == State::Renewing => "now".into(),
        None => "-".into(),
    };
    let columns: [(&str, &str, Vec<String>); 7] = [
        ("CREDENTIAL", "CREDENTIAL", cells(chosen, |c| if status.everybody { c.name() } else { c.base() })),
        ("PROVIDER", "PROVIDER", cells(chosen, |c| c.provider.clone())),
        ("STATE", "STATE", cells(chosen, |c| show::state(c, now))),
        ("TOKEN LEFT", "TOKEN", cells(chosen, |c| show::left(c.expires, now))),
        ("NEXT RENEWAL", "RENEWAL", cells(chosen, renewal)),
        ("REFRESH TOKEN LEFT", "REFRESH", cells(chosen, |c| show::left(c.refresh_token_expires, now))),
        ("REPLICAS", "REPLICAS", cells(chosen, behind)),
    ];
    let replicas = chosen.iter().any(|c| !c.replicas.is_empty());
    let same = chosen.iter().all(|c| c.provider == c.service);
    let draw = |short: bool, without_provider: bool| {
        let shown = columns
            .iter()
            .filter(|(head, ..)| !(without_provider && *head == "PROVIDER") && (replicas || *head != "REPLICAS"));
        show::columns(shown.map(|(long, brief, cells)| (if short { *brief } else { *long }, cells.as_slice())))
    };
    let fits = |text: &String| width.is_none_or(|width| text.lines().all(|line| line.chars().count() <= width));
    let tries = [(false, false), (true, false), (true, same)];
    let mut text = String::new();
    for (short, without_provider) in tries {
        text = draw(short, without_provider);
        if fits(&text) {
            break;
        }
    }
    text
}

fn cells(chosen: &[&Credential], cell: impl Fn(&Credential) -> String) -> Vec<String> {
    chosen.iter().map(|credential| cell(credential)).collect()
}

/// Why sites do not have what they should, of these credentials: once a site and reason.
fn sites(status: &Status, chosen: &[&Credential]) -> String {
    let mut late: BTreeMap<(&str, Kind), Vec<(&Credential, &Replica)>> = BTreeMap::new();
    for credential in chosen {
        for replica in credential.replicas.iter().filter(|replica| replica.behind) {
            if let Some(kind) = replica.kind {
                late.entry((&replica.site, kind)).or_default().push((credential, replica));
            }
        }
    }
    let mut text = String::new();
    for ((site, kind), rows) in late {
        let words = advice(kind);
        let names: Vec<String> = rows
            .iter()
            .take(NAMED)
            .map(|(credential, _)| if status.everybody { credential.name() } else { credential.base() })
            .collect();
        let more = rows.len() - names.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let since = rows.iter().filter_map(|(_, replica)| replica.behind_since).min();
        let since = since.map(|at| format!(", for {}", show::short(status.now.since(at)))).unwrap_or_default();
        // Writing to a string does not fail.
        writeln!(text, "\nSite {site}: {kind}{since}: {}{more}", names.join(", ")).ok();
        writeln!(text, "  {}", words.meaning).ok();
        if let Some(told) = rows.iter().find_map(|(_, replica)| replica.error.as_deref()) {
            writeln!(text, "  It was told: {}", told.strip_prefix(&format!("{kind}: ")).unwrap_or(told)).ok();
        }
        let todo = if status.everybody && !words.admin.is_empty() { words.admin } else { words.user };
        if !todo.is_empty() {
            writeln!(text, "  What to do: {todo}").ok();
        }
    }
    text
}

fn behind(credential: &Credential) -> String {
    match (credential.replicas.len(), credential.replicas.iter().filter(|r| r.behind).count()) {
        (0, _) => "-".into(),
        (all, 0) => format!("{all} up to date"),
        (all, behind) => format!("{behind} of {all} behind"),
    }
}

/// What is wrong with a credential, what it means, what to do.
fn trouble(credential: &Credential, everybody: bool, now: Timestamp) -> String {
    let Some(error) = &credential.error else { return String::new() };
    let words = advice(error.kind);
    let name = if everybody { credential.name() } else { credential.base() };
    let since = error.since.map(|since| format!(", since {}", show::short(now.since(since)))).unwrap_or_default();
    let mut text = String::new();
    // Writing to a string does not fail.
    writeln!(text, "\n{name}: {}{since}", error.kind).ok();
    writeln!(text, "  {}", words.meaning).ok();
    if !error.detail.is_empty() {
        writeln!(text, "  It was told: {}", error.detail).ok();
    }
    let todo = if everybody && !words.admin.is_empty() { words.admin } else { words.user };
    if !todo.is_empty() {
        writeln!(text, "  What to do: {}", todo.replace("SERVICE", &credential.base())).ok();
    }
    text
}

/// An approval that ends soon, whatever renewals bring: told before anything fails.
fn ending(credential: &Credential, everybody: bool, now: Timestamp) -> String {
    let Some(end) = credential.ends_soon(now) else { return String::new() };
    let name = if everybody { credential.name() } else { credential.base() };
    let when = match end.since(now) {
        left if left.is_zero() => "has ended".to_owned(),
        left => format!("ends in {}", show::short(left)),
    };
    let whose = if everybody { "its user approves again" } else { "approve again" };
    format!(
        "\n{name}: its approval {when}\n  Renewals do not move that end on; after it there are no more tokens.\n  \
         What to do: {whose}: evercred login {}\n",
        credential.base()
    )
}

/// The state of issuers that are down, and of the daemon.
fn foot(status: &Status) -> String {
    let mut text = String::new();
    if !status.complete {
        text.push_str("\nNot every directory was looked at since the start or the last reload: there may be more.\n");
    }
    for issuer in status.providers.iter().filter(|issuer| issuer.down) {
        // Writing to a string does not fail.
        writeln!(text, "\nThe issuer of {} is down or refuses us; {} wait.", issuer.provider, issuer.queued).ok();
    }
    for site in status.sites.iter().filter(|site| site.client_ends_soon && status.everybody) {
        let left = site.client_ends.map(|ends| ends.since(status.now)).filter(|left| !left.is_zero());
        let when = left.map_or_else(|| "has ended".to_owned(), |left| format!("ends in {}", show::short(left)));
        // Writing to a string does not fail.
        writeln!(
            text,
            "\nThe client of the site {} {when}.\n  What to do: make another at the service, write its file, and reload \
             the credmon.",
            site.site
        )
        .ok();
    }
    for site in status.sites.iter().filter(|site| site.down) {
        let (name, behind, all) = (&site.site, site.behind, site.replicas);
        match (&site.words, all) {
            (Some(words), 0) => writeln!(text, "\nNothing is replicated to the site {name}.\n  {words}").ok(),
            _ => {
                writeln!(text, "\nThe site {name} is down or refuses us; {behind} of {all} tokens there are old.").ok()
            }
        };
    }
    for site in status.sites.iter().filter(|site| site.offline && status.everybody) {
        let words = site.words.as_deref().unwrap_or("its endpoint is not there");
        writeln!(
            text,
            "\nThe site {}: {words}.\n  What to do: start it there, or ask the site's admins to.",
            site.site
        )
        .ok();
    }
    if !status.courier {
        text.push_str("\nThe network process is down; the daemon starts another.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::snapshot::{SCHEMA, Trouble};

    const NOW: Timestamp = Timestamp(1_790_000_000_000);

    fn credential(user: &str, service: &str, state: State) -> Credential {
        Credential {
            user: user.into(),
            service: service.into(),
            handle: None,
            provider: service.into(),
            state,
            expires: Some(NOW.plus(Duration::from_secs(2530))),
            renews: Some(NOW.plus(Duration::from_secs(700))),
            refresh_token_expires: Some(NOW.plus(Duration::from_secs(604_798))),
            rolling: None,
            stored: Some(NOW),
            renewed: Some(NOW),
            generation: 3,
            error: None,
            flagged: None,
            replicas: Vec::new(),
        }
    }

    fn status() -> Status {
        let mut parked = credential("alice", "helmholtz", State::Parked);
        parked.expires = Some(NOW.minus(Duration::from_secs(60)));
        parked.renews = None;
        parked.error = Some(Trouble {
            kind: Kind::Revoked,
            detail: "the mytoken server says invalid_token".into(),
            since: Some(NOW.minus(Duration::from_secs(3600))),
            times: 2,
        });
        Status {
            schema: SCHEMA,
            version: "0".into(),
            pid: 1,
            now: NOW,
            started: NOW,
            everybody: false,
            courier: true,
            complete: true,
            providers: vec![Issuer {
                provider: "wlcg".into(),
                kind: "oauth2".into(),
                services: vec!["wlcg".into()],
                down: true,
                in_flight: 0,
                queued: 7,
            }],
            sites: Vec::new(),
            credentials: vec![parked, credential("alice", "wlcg", State::Fresh)],
        }
    }

    #[test]
    fn the_table_tells_the_state_in_words_and_what_to_do() {
        let status = status();
        let all: Vec<_> = chosen(&status, None, None).collect();
        insta::assert_snapshot!(page(&status, &all, Colour::none(), None));
    }

    #[test]
    fn replicas_behind_are_a_column_and_each_trouble_of_a_site_is_told_once_within_80_columns() {
        let mut status = status();
        status.everybody = true;
        let replica = |site: &str, kind: Option<Kind>| Replica {
            site: site.into(),
            generation: Some(1_790_000_000),
            confirmed: Some(NOW.minus(Duration::from_secs(1800))),
            behind: kind.is_some(),
            behind_since: kind.map(|_| NOW.minus(Duration::from_secs(900))),
            kind,
            error: kind.map(|kind| format!("{kind}: Connection timed out")),
        };
        for credential in &mut status.credentials {
            credential.replicas = vec![replica("farm", Some(Kind::SiteUnreachable)), replica("shared", None)];
        }
        status.sites = vec![SiteStanding {
            site: "farm".into(),
            kind: "ssh".into(),
            down: true,
            replicas: 2,
            behind: 2,
            behind_since: Some(NOW.minus(Duration::from_secs(900))),
            confirmed: Some(NOW.minus(Duration::from_secs(1800))),
            client_ends: None,
            client_ends_soon: false,
            words: None,
            offline: false,
            error: Some(Kind::SiteUnreachable),
        }];
        let all: Vec<_> = chosen(&status, None, None).collect();
        let narrow = page(&status, &all, Colour::none(), Some(80));
        insta::assert_snapshot!(narrow);
        let table: Vec<&str> = narrow.lines().take(3).collect();
        assert!(table.iter().all(|line| line.chars().count() <= 80), "{table:#?}");
        let wide = page(&status, &all, Colour::none(), None);
        assert!(wide.starts_with("CREDENTIAL       PROVIDER   STATE "), "{wide}");
    }

    #[test]
    fn an_approval_that_ends_soon_is_told_with_what_to_do_unless_renewals_move_it_on() {
        let mut status = status();
        status.credentials.remove(0);
        status.credentials[0].refresh_token_expires = Some(NOW.plus(Duration::from_secs(600)));
        for (rolling, told) in [(Some(true), false), (None, false), (Some(false), true)] {
            status.credentials[0].rolling = rolling;
            let all: Vec<_> = chosen(&status, None, None).collect();
            let text = page(&status, &all, Colour::none(), None);
            assert_eq!(text.contains("fresh, ends soon"), told, "{text}");
            let advice = "\nwlcg: its approval ends in 10m\n  Renewals do not move that end on; after it there are no more \
                          tokens.\n  What to do: approve again: evercred login wlcg\n";
            assert_eq!(text.contains(advice), told, "{text}");
        }
    }

    #[test]
    fn json_has_a_schema_number_rfc_3339_times_and_labels() {
        let status = status();
        let text = json(&status, &chosen(&status, Some("helmholtz"), None).collect::<Vec<_>>());
        insta::assert_snapshot!(text);
        let back: Status = serde_json::from_str(&text).unwrap();
        assert_eq!(back.credentials.len(), 1);
        let older = text.replace("  \"complete\": true,\n", "");
        assert!(older != text && serde_json::from_str::<Status>(&older).unwrap().complete, "{older}");
    }

    #[test]
    fn a_user_names_the_own_credential_by_its_service_alone_and_an_admin_by_user_too() {
        let mut status = status();
        assert_eq!(chosen(&status, Some("wlcg"), None).count(), 1);
        assert_eq!(chosen(&status, Some("alice/wlcg"), None).count(), 1);
        assert_eq!(chosen(&status, Some("alice"), None).count(), 2);
        assert_eq!(chosen(&status, Some("bob"), None).count(), 0);
        assert_eq!(one(&status, "wlcg", None).map(Credential::name).as_deref(), Some("alice/wlcg"));
        assert!(one(&status, "alice", None).is_none(), "that is a user");
        // A user who is called as one of the services.
        for credential in &mut status.credentials {
            credential.user = "wlcg".into();
        }
        let names = |which| chosen(&status, Some(which), None).map(Credential::base).collect::<Vec<_>>();
        assert_eq!(names("wlcg"), ["wlcg"]);
        assert_eq!(names("wlcg/helmholtz"), ["helmholtz"]);
        assert_eq!(one(&status, "wlcg", None).map(Credential::base).as_deref(), Some("wlcg"));
        status.everybody = true;
        assert_eq!(chosen(&status, Some("wlcg"), None).count(), 2, "an admin names users");
        assert_eq!(chosen(&status, Some("helmholtz"), None).count(), 0);
        assert!(one(&status, "wlcg", None).is_none() && one(&status, "wlcg/wlcg", None).is_some());
    }

    #[test]
    fn who_runs_the_daemon_as_oneself_sees_everybody_s_and_names_the_own_ones_by_their_service_alone() {
        let mut status = status();
        status.everybody = true;
        status.credentials.push(credential("bob", "wlcg", State::Fresh));
        let names = |which, me| chosen(&status, Some(which), me).map(Credential::name).collect::<Vec<_>>();
        assert_eq!(names("wlcg", Some("alice")), ["alice/wlcg"]);
        assert_eq!(one(&status, "wlcg", Some("bob")).map(Credential::name).as_deref(), Some("bob/wlcg"));
        assert_eq!(names("bob", Some("alice")), ["bob/wlcg"]);
        assert!(names("wlcg", Some("root")).is_empty() && one(&status, "wlcg", Some("root")).is_none());
        assert!(one(&status, "bob", Some("bob")).is_none(), "that is a user");
    }
}
