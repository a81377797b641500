//! The status page for admins: plain HTML that refreshes itself, no script. Words, signs and colours all say the same,
//! so that none of them alone is needed. Everything that comes from outside is escaped by the template.

use maud::{DOCTYPE, Markup, html};

use crate::{
    advice::advice,
    core::{
        figures::{Figures, ProviderFigures},
        snapshot::{Credential, Issuer, Page, PageRow, SiteStanding, State, Status},
        time::Timestamp,
    },
    ctl::show,
};

/// The style sheet, served beside the page so that no inline style is allowed.
pub(super) const STYLE: &str = include_str!("page.css");
/// Seconds between two looks of a browser.
const REFRESH: u32 = 30;

/// How something does: a class of the style sheet, and a sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Good,
    Busy,
    Warn,
    Bad,
}

impl Look {
    fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Busy => "busy",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Good => "✓",
            Self::Busy => "↻",
            Self::Warn => "!",
            Self::Bad => "✗",
        }
    }
}

fn badge(look: Look, words: &str) -> Markup {
    html! { span class={ "badge " (look.class()) } data-sign=(look.sign()) { (words) } }
}

fn look(credential: &Credential, now: Timestamp) -> Look {
    match credential.state {
        State::Parked | State::Unusable => Look::Bad,
        State::Retrying if !credential.lives(now) => Look::Bad,
        State::Retrying => Look::Warn,
        State::Fresh | State::Renewing if credential.ends_soon(now).is_some() => Look::Warn,
        State::Fresh if credential.flagged.is_some() => Look::Warn,
        State::Fresh => Look::Good,
        State::Renewing => Look::Busy,
    }
}

/// The whole page.
#[must_use]
pub(super) fn render(page: &Page, figures: &Figures) -> String {
    let status = &page.status;
    let now = status.now;
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="refresh" content=(REFRESH);
                title { (title(page, figures)) " – evercred on " (page.host) }
                link rel="stylesheet" href="/page.css";
            }
            body {
                header {
                    h1 { "evercred on " (page.host) }
                    p { "as of " time datetime=(rfc3339(now)) { (shown(now)) } ", renewed every " (REFRESH) " s" }
                }
                main {
                    (verdict(page, figures))
                    h2 { "Providers" }
                    (providers(status, figures, now))
                    @if !status.sites.is_empty() {
                        h2 { "Sites" }
                        (sites(&status.sites, now))
                    }
                    h2 { "Credentials" }
                    (credentials(page, now))
                }
                footer {
                    "evercred " (status.version) ", process " (status.pid) ", up for " (show::short(now.since(status.started)))
                    ". The same in a terminal: " code { "evercred status" } "; what is wrong with the installation: "
                    code { "evercred doctor" } ". Figures for Prometheus: " a href="/metrics" { "/metrics" } "."
                }
            }
        }
    }
    .into_string()
}

/// Credentials whose jobs have no token or will lose it, and those that are tried again.
fn counts(figures: &Figures) -> (u64, u64) {
    let of = |wanted: &[State]| -> u64 {
        figures
            .providers
            .iter()
            .flat_map(|provider| State::ALL.iter().zip(provider.states))
            .filter(|(state, _)| wanted.contains(state))
            .map(|(_, count)| count)
            .sum()
    };
    (of(&[State::Parked, State::Unusable]), of(&[State::Retrying]))
}

fn title(page: &Page, figures: &Figures) -> String {
    let status = &page.status;
    match counts(figures) {
        _ if !status.courier => "network process down".into(),
        _ if status.providers.iter().any(|issuer| issuer.down) => "an issuer is down".into(),
        (0, _) if page.ending > 0 => format!("{} end soon", page.ending),
        (0, 0) if status.sites.iter().any(|site| site.down) => "a site is down".into(),
        (0, 0) if status.sites.iter().any(|site| site.offline || site.client_ends_soon) => {
            "a site needs a person".into()
        }
        (0, 0) if !status.complete => "not all known yet".into(),
        (0, 0) => "all well".into(),
        (0, retrying) => format!("{retrying} retrying"),
        (bad, _) => format!("{bad} need a person"),
    }
}

fn verdict(page: &Page, figures: &Figures) -> Markup {
    let status = &page.status;
    let (bad, retrying) = counts(figures);
    let down: Vec<&str> =
        status.providers.iter().filter(|issuer| issuer.down).map(|issuer| issuer.provider.as_str()).collect();
    let (look, words, more) = if !status.courier {
        (Look::Bad, "The network process is down.".to_owned(), "The daemon starts another; see its log.".to_owned())
    } else if !down.is_empty() {
        let words = format!("Down, or refusing us: {}.", down.join(", "));
        (Look::Bad, words, "Single probes go out; running jobs keep their tokens until these end.".into())
    } else if bad > 0 {
        let words =
            if bad == 1 { "1 credential needs a person.".into() } else { format!("{bad} credentials need a person.") };
        (Look::Bad, words, "What to do is told below; all others are renewed.".into())
    } else if page.ending > 0 {
        let words = match page.ending {
            1 => "1 approval ends within a day.".into(),
            many => format!("{many} approvals end within a day."),
        };
        (Look::Warn, words, "Renewals do not move these ends on: their users must approve again.".into())
    } else if retrying > 0 {
        let words = format!("{retrying} being tried again.");
        (Look::Warn, words, "Jobs have their tokens until these end.".into())
    } else if let Some(site) = status.sites.iter().find(|site| site.down) {
        let words = format!("The site {} is down, or refuses us.", site.site);
        (Look::Warn, words, "Every credential is renewed; the tokens there are old.".into())
    } else if let Some(site) = status.sites.iter().find(|site| site.offline) {
        let words = format!("The endpoint of the site {} is not there.", site.site);
        (Look::Warn, words, "Every credential is renewed; what the site has of them grows old.".into())
    } else if let Some(site) = status.sites.iter().find(|site| site.client_ends_soon) {
        let words = format!("Our client of the site {} {}.", site.site, client_end(site, status.now));
        (Look::Warn, words, "Nobody renews it but a person; what to do is told below.".into())
    } else if !status.complete {
        let words = "Not every credential is known yet.".to_owned();
        (Look::Busy, words, "Not every directory was looked at since the start or the last reload.".into())
    } else {
        (Look::Good, "All is well.".into(), "Every credential is renewed before its token ends.".into())
    };
    html! { p class={ "verdict " (look.class()) } role="status" { (look.sign()) " " (words) " " span { (more) } } }
}

fn providers(status: &Status, figures: &Figures, now: Timestamp) -> Markup {
    html! {
        div class="scroll" {
            table {
                caption { "Providers and how their issuers do" }
                thead {
                    tr {
                        th scope="col" { "Provider" }
                        th scope="col" { "Issuer" }
                        th scope="col" class="number" { "Credentials" }
                        th scope="col" class="number" { "Need a person" }
                        th scope="col" class="number" { "Retrying" }
                        th scope="col" { "First token ends" }
                        th scope="col" class="number" { "Renewed" }
                        th scope="col" class="number" { "Failed" }
                        th scope="col" class="number" { "Answer time" }
                        th scope="col" class="number" { "Budget use" }
                    }
                }
                tbody {
                    @for issuer in &status.providers {
                        (provider(issuer, figures.providers.iter().find(|p| p.name == issuer.provider), now))
                    }
                }
            }
        }
    }
}

fn provider(issuer: &Issuer, figures: Option<&ProviderFigures>, now: Timestamp) -> Markup {
    let none = ProviderFigures::default();
    let figures = figures.unwrap_or(&none);
    let [_, _, retrying, parked, unusable] = figures.states;
    let dash = || "–".to_owned();
    let usage = figures.demand().zip(figures.capacity()).map(|(demand, capacity)| demand / capacity);
    html! {
        tr {
            th scope="row" { (issuer.provider) small { (issuer.kind) ": " (issuer.services.join(", ")) } }
            td data-label="Issuer" { @if issuer.down { (badge(Look::Bad, "down")) } @else { (badge(Look::Good, "answers")) } }
            td class="number" data-label="Credentials" { (figures.states.iter().sum::<u64>()) }
            td class="number" data-label="Need a person" { (parked + unusable) }
            td class="number" data-label="Retrying" { (retrying) }
            td data-label="First token ends" { (left(figures.soonest_expiry, now)) }
            td class="number" data-label="Renewed" { (figures.counts.renewed) }
            td class="number" data-label="Failed" { (figures.counts.errors.values().sum::<u64>()) }
            td class="number" data-label="Answer time" { (figures.counts.latency.map_or_else(dash, |s| format!("{:.0} ms", s * 1000.0))) }
            td class="number" data-label="Budget use" { (usage.map_or_else(dash, |share| format!("{:.1} %", share * 100.0))) }
        }
    }
}

fn sites(all: &[SiteStanding], now: Timestamp) -> Markup {
    html! {
        div class="scroll" {
            table {
                caption { "Sites and the copies that they have" }
                thead {
                    tr {
                        th scope="col" { "Site" }
                        th scope="col" { "State" }
                        th scope="col" class="number" { "Copies" }
                        th scope="col" class="number" { "Behind" }
                        th scope="col" { "For" }
                        th scope="col" { "Last confirmed" }
                        th scope="col" { "What is wrong, what to do" }
                    }
                }
                tbody { @for site in all { (of_site(site, now)) } }
            }
        }
    }
}

fn of_site(site: &SiteStanding, now: Timestamp) -> Markup {
    let (look, word) = match (site.down, site.behind, site.error) {
        (true, ..) => (Look::Bad, "down"),
        _ if site.offline => (Look::Warn, "endpoint offline"),
        (false, 0, _) => (Look::Good, "current"),
        (false, _, Some(_)) => (Look::Warn, "behind"),
        (false, _, None) => (Look::Busy, "behind"),
    };
    let length = |at: Option<Timestamp>| at.map(|at| show::short(now.since(at)));
    html! {
        tr {
            th scope="row" { (site.site) small { (site.kind) } }
            td data-label="State" { (badge(look, word)) }
            td class="number" data-label="Copies" { (site.replicas) }
            td class="number" data-label="Behind" { (site.behind) }
            td data-label="For" { (length(site.behind_since).unwrap_or_else(|| "–".into())) }
            td data-label="Last confirmed" { (length(site.confirmed).map_or_else(|| "–".into(), |text| format!("{text} ago"))) }
            td class="error" data-label="What is wrong, what to do" {
                @if let Some(kind) = site.error {
                    @let words = advice(kind);
                    code { (kind) } " " (words.meaning)
                    small { (if words.admin.is_empty() { words.user } else { words.admin }) }
                }
                @if let Some(words) = &site.words {
                    small { (words) }
                }
                @if site.offline {
                    small { "Start it there, or ask the site's admins to." }
                }
                @if site.client_ends_soon {
                    small {
                        "Our client there " (client_end(site, now))
                        ": make another at the service, write its file, and reload the credmon."
                    }
                }
            }
        }
    }
}

fn client_end(site: &SiteStanding, now: Timestamp) -> String {
    let left = site.client_ends.map(|ends| ends.since(now)).filter(|left| !left.is_zero());
    left.map_or_else(|| "has ended".to_owned(), |left| format!("ends in {}", show::short(left)))
}

fn credentials(page: &Page, now: Timestamp) -> Markup {
    let all = &page.rows;
    if all.is_empty() && !page.status.complete {
        return html! { div class="scroll" { p class="empty" { "None is known yet." } } };
    }
    if all.is_empty() {
        return html! { div class="scroll" { p class="empty" { "There are none yet: a job with use_oauth_services brings one." } } };
    }
    html! {
        @if page.total > all.len() {
            p { "The " (all.len()) " of " (page.total) " that need most attention." }
        }
        div class="scroll" {
            table {
                caption { "Credentials, those that need most attention first" }
                thead {
                    tr {
                        th scope="col" { "Credential" }
                        th scope="col" { "State" }
                        th scope="col" { "Token left" }
                        th scope="col" { "Next renewal" }
                        th scope="col" { "Refresh token left" }
                        th scope="col" { "What is wrong, what to do" }
                    }
                }
                tbody { @for one in all { (credential(one, now)) } }
            }
        }
    }
}

fn credential(row: &PageRow, now: Timestamp) -> Markup {
    let PageRow { credential: one, copies } = row;
    let unnamed = copies.behind.saturating_sub(copies.late.len());
    let next = match (one.renews, one.state) {
        (Some(at), _) if at > now => format!("in {}", show::short(at.since(now))),
        (Some(_), _) | (None, State::Renewing) => "now".into(),
        (None, _) => "–".into(),
    };
    html! {
        tr {
            th scope="row" { (one.name()) small { (one.provider) } }
            td data-label="State" { (badge(look(one, now), &show::state(one, now))) }
            td data-label="Token left" { (left(one.expires, now)) }
            td data-label="Next renewal" { (next) }
            td data-label="Refresh token left" { (left(one.refresh_token_expires, now)) }
            td class="error" data-label="What is wrong, what to do" {
                @if let Some(error) = &one.error {
                    code { (error.kind) } " " (advice(error.kind).meaning)
                    @if error.times > 1 { " (" (error.times) " times)" }
                    @let words = advice(error.kind);
                    @let todo = if words.admin.is_empty() { words.user } else { words.admin };
                    small { (todo.replace("SERVICE", &one.base())) }
                } @else if let Some(end) = one.ends_soon(now) {
                    "Renewals do not move the end of its refresh token on: " (left(Some(end), now))
                    small { "Its user approves again: evercred login " (one.base()) }
                } @else if copies.behind > 0 {
                    (copies.behind) " of " (copies.total) " replicas behind"
                    small { (copies.late.join(", ")) @if unnamed > 0 { " and " (unnamed) " more" } }
                }
            }
        }
    }
}

/// What is left, or how long ago it was.
fn left(end: Option<Timestamp>, now: Timestamp) -> String {
    end.map_or_else(|| "–".into(), |end| show::left(Some(end), now))
}

fn rfc3339(time: Timestamp) -> String {
    crate::core::time::rfc3339::show(time)
}

fn shown(time: Timestamp) -> String {
    jiff::Timestamp::from_millisecond(time.0)
        .unwrap_or_default()
        .to_zoned_datetime(jiff::tz::TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S %Z")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::snapshot::{Copies, Replica, Trouble},
        courier::frame::{MAX_FRAME, ToCourier, encode},
        error::Kind,
    };

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn page(state: State) -> (Page, Figures) {
        let error = (state != State::Fresh).then(|| Trouble {
            kind: Kind::Revoked,
            detail: "<script>alert(1)</script>".into(),
            since: None,
            times: 2,
        });
        let credential = Credential {
            user: "alice".into(),
            service: "wlcg".into(),
            handle: Some("prod".into()),
            provider: "<b>wlcg</b>".into(),
            state,
            expires: Some(Timestamp(NOW.0 + 90_000)),
            renews: None,
            refresh_token_expires: None,
            rolling: None,
            stored: None,
            renewed: None,
            generation: 1,
            error,
            flagged: None,
            replicas: Vec::new(),
        };
        let status = Status {
            schema: 1,
            version: "0".into(),
            pid: 1,
            now: NOW,
            started: NOW,
            everybody: true,
            courier: true,
            complete: true,
            providers: Vec::new(),
            sites: Vec::new(),
            credentials: Vec::new(),
        };
        let mut provider = ProviderFigures::default();
        if let Some(count) = State::ALL.iter().position(|s| *s == state).and_then(|p| provider.states.get_mut(p)) {
            *count = 1;
        }
        let figures = Figures { providers: vec![provider], ..Figures::default() };
        let rows = vec![PageRow { credential, copies: Copies::default() }];
        (Page { host: "ap1".into(), total: 1, ending: 0, status, rows }, figures)
    }

    #[test]
    fn states_are_told_in_words_and_signs_and_nothing_from_outside_is_markup() {
        let (told, figures) = page(State::Parked);
        let text = render(&told, &figures);
        for part in [
            "parked",
            "data-sign=\"✗\"",
            "1 credential needs a person.",
            "<code>revoked</code>",
            "1m 30s",
            "evercred login wlcg_prod",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("<b>") && !text.contains("<script"), "{text}");
        let (mut told, figures) = page(State::Fresh);
        assert!(render(&told, &figures).contains("All is well."));
        let site = SiteStanding {
            site: "<i>farm</i>".into(),
            kind: "ssh".into(),
            down: true,
            replicas: 4,
            behind: 3,
            behind_since: Some(Timestamp(NOW.0 - 90_000)),
            confirmed: None,
            client_ends: None,
            client_ends_soon: false,
            words: None,
            offline: false,
            error: Some(Kind::SiteAuth),
        };
        told.status.sites.push(site);
        let text = render(&told, &figures);
        for part in ["is down, or refuses us.", "<code>site-auth</code>", "data-sign=\"✗\"", "1m 30s"] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("<i>"), "{text}");
    }

    #[test]
    fn a_site_whose_endpoint_is_offline_or_whose_client_ends_is_told_of_and_all_is_not_well() {
        let (mut told, figures) = page(State::Fresh);
        let site = SiteStanding {
            site: "farm".into(),
            kind: "globus".into(),
            down: false,
            replicas: 4,
            behind: 0,
            behind_since: None,
            confirmed: Some(NOW),
            client_ends: Some(Timestamp(NOW.0 + 90_000)),
            client_ends_soon: false,
            words: Some("the service says that the endpoint is <i>stopped</i>".into()),
            offline: true,
            error: None,
        };
        let offline = "The endpoint of the site farm is not there.";
        let ends = "Our client of the site farm ends in 1m 30s.";
        let cases = [
            (true, false, Some(offline)),
            (false, true, Some(ends)),
            (true, true, Some(offline)),
            (false, false, None),
        ];
        for (is_offline, client_ends_soon, verdict) in cases {
            told.status.sites = vec![SiteStanding { offline: is_offline, client_ends_soon, ..site.clone() }];
            let text = render(&told, &figures);
            assert!(text.contains("the endpoint is &lt;i&gt;stopped"), "the words, as text: {text}");
            assert_eq!(text.contains("All is well."), verdict.is_none(), "{text}");
            assert_eq!(text.contains("<title>all well"), verdict.is_none(), "{text}");
            assert!(verdict.is_none_or(|words| text.contains(words)), "{text}");
            assert_eq!(text.contains("Start it there"), is_offline, "{text}");
            assert_eq!(text.contains("Our client there ends in 1m 30s: make another"), client_ends_soon, "{text}");
        }
        told.status.sites = vec![SiteStanding { down: true, offline: false, replicas: 0, ..site }];
        let text = render(&told, &figures);
        assert!(text.contains("the endpoint is &lt;i&gt;stopped") && !text.contains("All is well"), "{text}");
    }

    #[test]
    fn five_hundred_rows_with_copies_at_a_hundred_sites_fit_into_a_frame_and_are_told_in_numbers() {
        let (mut told, figures) = page(State::Fresh);
        let replica = |n: usize| Replica {
            site: format!("a-site-with-a-name-of-some-length-{n}"),
            generation: Some(1),
            confirmed: Some(NOW),
            behind: true,
            behind_since: Some(NOW),
            kind: Some(Kind::SiteUnreachable),
            error: Some("site-unreachable: Connection timed out".into()),
        };
        let replicas: Vec<Replica> = (0..100).map(replica).collect();
        let mut row = told.rows.remove(0);
        row.credential.user = "u".repeat(32);
        row.copies = Copies::of(&replicas);
        told.rows = vec![row; 500];
        let bytes = encode(&ToCourier::Page(Box::new(told.clone()))).unwrap();
        assert!(bytes.len() < MAX_FRAME / 4, "{}", bytes.len());
        let text = render(&told, &figures);
        assert!(text.contains("100 of 100 replicas behind") && text.contains("length-2 and 97 more"), "{text}");
        assert!(!text.contains("length-3,"), "{text}");
    }

    #[test]
    fn an_approval_that_ends_within_a_day_is_told_of_before_anything_fails() {
        let (mut told, figures) = page(State::Fresh);
        told.ending = 1;
        let credential = &mut told.rows[0].credential;
        credential.refresh_token_expires = Some(Timestamp(NOW.0 + 600_000));
        credential.rolling = Some(false);
        let text = render(&told, &figures);
        let parts =
            ["1 approval ends within a day.", "1 end soon", "data-sign=\"!\"", "fresh, ends soon", "login wlcg_prod"];
        for part in parts {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("All is well"), "{text}");
    }
}
