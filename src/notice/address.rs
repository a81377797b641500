//! Whom a notice goes to, and by which ways: its letters.

use std::{collections::HashMap, fs::OpenOptions, io::Read, os::unix::fs::OpenOptionsExt, path::Path};

use nix::libc;

use super::{
    letter::{self, Letter, Way},
    round::{Recipe, now},
};
use crate::{
    config::{notices::map_line, settings::Notices},
    core::notice::Notice,
};

/// No mail map is larger.
const MAX_MAP: u64 = 4 << 20;

/// How mails travel, if they do.
pub(super) fn mail_way(notices: &Notices) -> Option<Way> {
    match (&notices.post.smtp, &notices.sendmail) {
        (Some(_), _) => Some(Way::Smtp),
        (None, Some(_)) => Some(Way::Sendmail),
        (None, None) => None,
    }
}

pub(super) fn is_users(notice: &Notice) -> bool {
    matches!(notice, Notice::User { .. } | Notice::Well { .. })
}

/// A user who is to be mailed by the map, and is not in it.
pub(super) fn has_no_address(
    notice: &Notice,
    Recipe { notices, .. }: &Recipe,
    map: &HashMap<String, String>,
) -> Option<String> {
    let (Notice::User { user, .. } | Notice::Well { user, .. }) = notice else { return None };
    let mails = mail_way(notices).is_some() && notices.mail_map.is_some() && notices.mail_to.is_none();
    (mails && !map.contains_key(user.as_str())).then(|| letter::whom(notice))
}

/// The letters of a notice, by every way that is configured for its recipient.
pub(super) fn letters(notice: &Notice, recipe: &Recipe, map: &HashMap<String, String>, host: &str) -> Vec<Letter> {
    let notices = &recipe.notices;
    let (subject, text) = letter::text(notice, now(), host);
    let to: Vec<String> = match notice {
        Notice::User { user, .. } | Notice::Well { user, .. } => {
            let name = user.as_str();
            let template = || notices.mail_to.as_ref().map(|template| template.replace("{user}", name));
            map.get(name).cloned().or_else(template).into_iter().collect()
        }
        Notice::Admins { .. } | Notice::Over { .. } | Notice::Site { .. } => notices.admins.clone(),
    };
    let of_user = is_users(notice);
    let letter = |way, to: Option<String>, body: &str| Letter {
        way,
        whom: match &to {
            Some(address) if !of_user => format!("{} ({address})", letter::whom(notice)),
            _ => letter::whom(notice),
        },
        for_admins: !of_user,
        from: notices.mail_from.clone().unwrap_or_default(),
        to: to.into_iter().collect(),
        subject: subject.clone(),
        body: body.to_owned(),
    };
    let mut letters = Vec::new();
    // A letter for each address: one that a mail server refuses keeps no other from its letter.
    if let Some(way) = mail_way(notices) {
        letters.extend(to.into_iter().map(|address| letter(way, Some(address), &text)));
    }
    if notices.post.webhook.is_some() {
        letters.push(letter(Way::Webhook, None, &letter::document(notice, now(), host)));
    }
    if notices.post.slack.is_some() && !of_user {
        letters.push(letter(Way::Slack, None, &text));
    }
    letters
}

pub(super) fn read_map(path: &Path) -> std::io::Result<HashMap<String, String>> {
    let mut text = String::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if file.take(MAX_MAP + 1).read_to_string(&mut text)? > usize::try_from(MAX_MAP).unwrap_or(usize::MAX) {
        return Err(std::io::Error::other(format!("larger than {MAX_MAP} bytes")));
    }
    Ok(text.lines().filter_map(map_line).map(|(user, address)| (user.to_owned(), address.to_owned())).collect())
}
