//! What the page looks like: plain HTML without scripts, readable by everything that reads. Whatever comes from a
//! request or an issuer is text in it, never markup.

use std::fmt::Write as _;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode, header, header::HeaderValue};

use super::{
    Answer, flow,
    session::{Entry, Session, Stage},
};
use crate::{advice, core::snapshot::State, courier::http::Caller};

const STYLE: &str = include_str!("style.css");

/// The page of a visit.
pub struct Page<'a> {
    /// Path of the page's URL, without a slash at its end.
    pub path: &'a str,
    /// This access point.
    pub host: &'a str,
    /// The providers.
    pub callers: &'a [Caller],
    /// The visit.
    pub session: &'a Session,
}

impl Page<'_> {
    /// As HTTP.
    pub fn answer(&self) -> Answer {
        let ready = |entry: &Entry| matches!(entry.stage, Stage::Stored(Some((State::Fresh, _))));
        let done = self.session.entries.iter().all(ready);
        let moving = |entry: &Entry| {
            let at_work =
                |state: &Option<(State, _)>| matches!(state, None | Some((State::Renewing | State::Retrying, _)));
            matches!(&entry.stage, Stage::Redeeming) || matches!(&entry.stage, Stage::Stored(state) if at_work(state))
        };
        let refresh = self.session.entries.iter().any(moving);
        let user = text(&self.session.user);
        let host = text(self.host);
        let mut body = String::new();
        let title = if done { "All approved" } else { "Approve access for your jobs" };
        // Writing to a string does not fail.
        write!(body, "<header><h1>{title}</h1>").ok();
        if done {
            write!(
                body,
                "<p class=done role=status>Everything is in place for the HTCondor jobs of <strong>{user}</strong> on \
                 <strong>{host}</strong>. You can close this page and submit again: <code>condor_submit</code></p>"
            )
            .ok();
        } else {
            write!(
                body,
                "<p>HTCondor jobs of <strong>{user}</strong> on <strong>{host}</strong> ask for access to the services \
                 below, in your name.</p><p class=careful>Approve only if you are {user} there and have just submitted \
                 such a job. If somebody sent you this link, close the page.</p>"
            )
            .ok();
        }
        body.push_str("</header><main><ul>");
        for entry in &self.session.entries {
            self.entry(entry, &mut body);
        }
        body.push_str("</ul></main>");
        let mut answer = html(StatusCode::OK, self.path, title, refresh, &body);
        let mut origins: Vec<String> = self.callers.iter().filter_map(Caller::front_origin).collect();
        origins.sort_unstable();
        origins.dedup();
        protect(&mut answer, &origins.join(" "));
        answer
    }

    fn entry(&self, entry: &Entry, to: &mut String) {
        let item = &entry.item;
        let issuer = url::Url::parse(&item.authorization_url).ok().and_then(|url| url.host_str().map(str::to_owned));
        let issuer = text(&issuer.unwrap_or_default());
        let base = text(&item.base);
        let (class, state, act) = standing(&entry.stage);
        write!(to, "<li class={class}><h2>{base}</h2><dl><div><dt>Issuer</dt><dd>{issuer}</dd></div>").ok();
        let scopes = self.callers.get(entry.provider).map(|caller| flow::scopes(caller.provider(), item));
        let scopes = scopes.unwrap_or_default();
        to.push_str("<div><dt>Rights</dt><dd>");
        if scopes.is_empty() {
            to.push_str("what the issuer gives by itself");
        }
        for scope in scopes {
            write!(to, "<code>{}</code> ", text(&scope)).ok();
        }
        to.push_str("</dd></div>");
        if !item.audience.is_empty() {
            write!(to, "<div><dt>For</dt><dd><code>{}</code></dd></div>", text(&item.audience)).ok();
        }
        write!(to, "<div><dt>State</dt><dd class=state role=status>{}</dd></div></dl>", text(&state)).ok();
        if let Some(label) = act {
            write!(
                to,
                "<form method=post action=\"{}/approve\"><input type=hidden name=token value=\"{}\"><input type=hidden \
                 name=credential value=\"{base}\"><button>{label} at {issuer}</button></form>",
                text(self.path),
                text(&self.session.token)
            )
            .ok();
        }
        to.push_str("</li>");
    }
}

/// Class, words, and what the button says if there is one.
fn standing(stage: &Stage) -> (&'static str, String, Option<&'static str>) {
    match stage {
        Stage::Open | Stage::Away(_) => ("open", "Waiting for your approval".into(), Some("Approve")),
        Stage::Redeeming => ("moving", "Approved; fetching the token …".into(), None),
        Stage::Stored(None | Some((State::Renewing, _))) => {
            ("moving", "Approved; the first token is on its way …".into(), None)
        }
        Stage::Stored(Some((State::Fresh, _))) => ("ready", "Approved, and the token is in place".into(), None),
        Stage::Stored(Some((_, kind))) => {
            let advice = kind.map(advice::advice);
            let (meaning, next) = advice.map_or(("its renewal failed.", ""), |advice| (advice.meaning, advice.user));
            ("failed", format!("Approved, but there is no token yet: {meaning} {next}"), None)
        }
        Stage::Failed(why) => {
            let end = if why.ends_with('.') { "" } else { "." };
            ("failed", format!("Not approved: {why}{end}"), Some("Try again"))
        }
    }
}

/// A page with a few words.
pub fn message(status: StatusCode, path: &str, title: &str, words: &str) -> Answer {
    let body = format!("<header><h1>{}</h1><p>{}</p></header>", text(title), text(words));
    let mut answer = html(status, path, title, false, &body);
    protect(&mut answer, "");
    answer
}

/// Words without a page.
pub fn plain(status: StatusCode, words: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from_static(words.as_bytes())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    protect(&mut answer, "");
    answer
}

/// 303: by GET, whatever it was before.
pub fn redirect(to: &str) -> Answer {
    let Ok(location) = HeaderValue::from_str(to) else {
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "The address of the issuer does not fit a header.");
    };
    let mut answer = plain(StatusCode::SEE_OTHER, "");
    answer.headers_mut().insert(header::LOCATION, location);
    answer
}

/// The style sheet: the one thing that may be kept.
pub fn style() -> Answer {
    let mut answer = plain(StatusCode::OK, STYLE);
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/css; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=600"));
    answer
}

fn html(status: StatusCode, path: &str, title: &str, refresh: bool, body: &str) -> Answer {
    let refresh = if refresh { "<meta http-equiv=refresh content=2>" } else { "" };
    let (path, title) = (text(path), text(title));
    let page = format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport \
         content=\"width=device-width,initial-scale=1\">{refresh}<title>{title}</title><link rel=stylesheet \
         href=\"{path}/style.css\"></head><body>{body}<footer>evercred, the credential monitor of this access \
         point</footer></body></html>"
    );
    let mut answer = Response::new(Full::new(Bytes::from(page)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    answer
}

/// No scripts, no frames, no referrers, nothing kept; forms lead to us, and from us to these origins.
fn protect(answer: &mut Answer, form_origins: &str) {
    let policy = format!(
        "default-src 'none'; style-src 'self'; form-action 'self' {form_origins}; base-uri 'none'; frame-ancestors 'none'"
    );
    let headers = answer.headers_mut();
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    for (name, value) in [
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// Text for HTML, inside or outside of quotes.
fn text(raw: &str) -> String {
    let mut safe = String::with_capacity(raw.len() + 8);
    for c in raw.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_elsewhere_is_text_and_never_markup() {
        assert_eq!(text("<b a='\"'>&"), "&lt;b a=&#39;&quot;&#39;&gt;&amp;");
        let answer = message(StatusCode::CONFLICT, "/credmon", "<script>", "x");
        assert_eq!(answer.status(), 409);
        let policy = answer.headers().get(header::CONTENT_SECURITY_POLICY).unwrap().to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; ") && policy.ends_with("frame-ancestors 'none'"), "{policy}");
    }
}
