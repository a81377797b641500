//! `[notices]`: whom to tell what is about to end, and how.

use std::time::Duration;

use super::{
    Secrets, ca_file,
    fragment::Value,
    input::{self, Section, Wrong, wrong},
    provider,
    settings::{Encryption, Notices, Post, Smtp},
};
use crate::core::notice::Policy;

/// Read the section; `None` if it cannot be used. Problems are in the section's list.
pub fn read(mut section: Section<'_>, secrets: Secrets) -> Option<Notices> {
    for key in ["smtp_password", "webhook_token", "slack_webhook"] {
        section.refuse(
            key,
            "secrets are files, never values in the configuration",
            "write it to a file of mode 0600, and name that with the same key and `_file` behind it",
        );
    }
    let seconds = Duration::from_secs;
    let steps =
        section.take("steps", steps).unwrap_or_else(|| [7 * 86_400, 2 * 86_400, 6 * 3600].map(seconds).to_vec());
    let after_failures = section.take("after_failures", input::number(1..=1000)).unwrap_or(3);
    let every = section.take("every", input::duration(seconds(1), seconds(86_400))).unwrap_or(seconds(300));
    let site_behind = section.take("site_behind", input::duration(seconds(1), seconds(7 * 86_400)));
    let jobs = section.take("jobs", input::boolean).unwrap_or(true);
    let mail_to = section.take("mail_to", mail_to);
    let mail_map = section.take("mail_map", input::path);
    let admins = section.take("admins", addresses).unwrap_or_default();
    let mail_from = section.take("mail_from", address);
    let smtp = section.take("smtp", smtp);
    let user = section.take("smtp_user", input::text);
    let mut secret = |key| match secrets {
        Secrets::Read => section.take(key, provider::client_secret),
        Secrets::LeaveAlone => section.take(key, input::path).and(None),
    };
    let password = secret("smtp_password_file");
    let webhook_token = secret("webhook_token_file");
    let slack = secret("slack_webhook_file");
    let sendmail = section.take("sendmail", input::path);
    let webhook = section.take("webhook", input::url);
    let ca_file = section.take("ca_file", ca_file::take(secrets));
    let mails = smtp.is_some() || sendmail.is_some();
    if smtp.is_some() && sendmail.is_some() {
        section.complain("sendmail", "is set beside `smtp`", "keep one of the two");
    }
    if mails && mail_from.is_none() && !section.took_wrongly("mail_from") {
        section.complain("mail_from", "is missing", "set it to the address that mails come from");
    }
    if mails && mail_to.is_none() && mail_map.is_none() && admins.is_empty() {
        let advice = r#"set `mail_to` (like "{user}@example.org"), `mail_map` or `admins`"#;
        section.complain("mail_to", "there is nobody to mail to", advice);
    }
    // One that is there and wrong has been told already, or is now.
    let tried = slack.is_some()
        || ["smtp", "sendmail", "webhook", "slack_webhook", "slack_webhook_file"]
            .iter()
            .any(|way| section.took_wrongly(way));
    let slack = slack.filter(|url| {
        let good = input::is_safe_url(url.expose());
        if !good {
            section.complain(
                "slack_webhook_file",
                "does not hold an https:// URL",
                "write the webhook's URL alone into it",
            );
        }
        good
    });
    let smtp = smtp.map(|(host, port, encryption)| Smtp { host, port, encryption, user, password });
    if !mails && webhook.is_none() && !tried && secrets == Secrets::Read {
        let advice = "set `smtp`, `sendmail`, `webhook` or `slack_webhook_file`, or remove the section";
        section.complain("", "has no way to tell anybody", advice);
    }
    section.finish();
    Some(Notices {
        policy: Policy { steps, after_failures, site_behind: site_behind.unwrap_or(seconds(1800)) },
        every,
        jobs,
        mail_to,
        mail_map,
        admins,
        mail_from,
        sendmail,
        post: Post { smtp, webhook, webhook_token, slack, ca_file },
    })
}

fn steps(value: &Value) -> Result<Vec<Duration>, Wrong> {
    let texts = input::texts(value)?;
    let mut steps = texts
        .iter()
        .map(|text| {
            input::parse_duration(text)
                .filter(|step| !step.is_zero())
                .ok_or_else(|| wrong(format!("{text:?} is not a duration"), r#"write it as ["7d", "2d", "6h"]"#))
        })
        .collect::<Result<Vec<_>, _>>()?;
    if steps.is_empty() {
        return Err(wrong("is empty", r#"write it as ["7d", "2d", "6h"]"#));
    }
    steps.sort();
    steps.dedup();
    steps.reverse();
    Ok(steps)
}

fn mail_to(value: &Value) -> Result<String, Wrong> {
    let template = input::text(value)?;
    if !template.contains("{user}") {
        return Err(wrong("does not hold {user}", r#"write it like "{user}@example.org""#));
    }
    check(&template.replace("{user}", "user"))?;
    Ok(template)
}

fn addresses(value: &Value) -> Result<Vec<String>, Wrong> {
    let addresses = input::texts(value)?;
    addresses.iter().try_for_each(|one| check(one))?;
    Ok(addresses)
}

fn address(value: &Value) -> Result<String, Wrong> {
    let address = input::text(value)?;
    check(&address)?;
    Ok(address)
}

fn check(address: &str) -> Result<(), Wrong> {
    match address.parse::<lettre::Address>() {
        Ok(_) => Ok(()),
        Err(_) => Err(wrong(format!("{address:?} is not a mail address"), r#"write it like "name@example.org""#)),
    }
}

fn smtp(value: &Value) -> Result<(String, u16, Encryption), Wrong> {
    let text = input::text(value)?;
    let form = r#"write it like "smtp://mail.example.org" (STARTTLS) or "smtps://mail.example.org""#;
    let url = url::Url::parse(&text).map_err(|e| wrong(format!("is not a URL ({e})"), form))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("holds a user name or password", "set `smtp_user` and `smtp_password_file`"));
    }
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| wrong("names no host", form))?;
    let host = host.trim_matches(['[', ']']).to_owned();
    let here = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match url.scheme() {
        "smtps" => Ok((host, url.port().unwrap_or(465), Encryption::Tls)),
        "smtp" if here => Ok((host, url.port().unwrap_or(25), Encryption::None)),
        "smtp" => Ok((host, url.port().unwrap_or(587), Encryption::StartTls)),
        _ => Err(wrong("is not a mail server's URL", form)),
    }
}

/// What a line of `mail_map` says: user and address.
#[must_use]
pub fn map_line(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_whitespace();
    let (user, address) = (words.next()?, words.next()?);
    (!user.starts_with('#') && words.next().is_none() && address.parse::<lettre::Address>().is_ok())
        .then_some((user, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_line_is_a_user_and_an_address() {
        assert_eq!(map_line("alice  alice@example.org"), Some(("alice", "alice@example.org")));
        for bad in ["", "# alice a@b.org", "alice", "alice a@b.org c", "alice nonsense"] {
            assert_eq!(map_line(bad), None, "{bad:?}");
        }
    }
}
