//! How the approval looks on a terminal: who asks for what, the URL alone on its line, the code, the QR code, the time
//! left. Pure: text in, text out; the terminal is elsewhere.

use std::{fmt::Write, time::Duration};

use super::{
    flow::Invitation,
    qr,
    terminal::Look,
    words::{self, spoken},
};

/// What stays on the screen besides the QR code: the lines from "Please visit" to the countdown.
const AROUND: usize = 7;

/// Everything up to the countdown.
#[must_use]
pub fn invitation(invitation: &Invitation, look: &Look) -> String {
    let bold = |text: &str| if look.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() };
    let columns = usize::from(look.columns.max(20));
    let mut text = String::from("\n");
    for (name, value) in &invitation.facts {
        fact(&mut text, name, value, columns);
    }
    text.push('\n');
    wrapped(&mut text, words::VISIT, columns);
    // Alone, at the first column, in one piece: whatever the width, it can be clicked and copied.
    text.push_str(&bold(&invitation.url));
    text.push('\n');
    if let Some(code) = &invitation.code {
        wrapped(&mut text, "and enter this code there:", columns);
        text.push_str(&bold(code));
        text.push('\n');
    }
    let whole = invitation.complete.as_ref().unwrap_or(&invitation.url);
    let rows = usize::from(look.rows).saturating_sub(AROUND);
    if let Some(lines) = look.blocks.then(|| qr::draw(whole, columns, rows, look.colour)).flatten() {
        text.push('\n');
        for line in lines {
            text.push_str(&line);
            text.push('\n');
        }
        text.push('\n');
    }
    wrapped(&mut text, words::POLLING, columns);
    text
}

/// `  name      value`, the value's further lines below its first.
fn fact(text: &mut String, name: &str, value: &str, columns: usize) {
    const INDENT: usize = 12;
    let mut line = format!("  {name:<10}");
    let mut empty = true;
    for word in value.split(' ') {
        if !empty && line.chars().count() + 1 + word.chars().count() > columns {
            text.push_str(line.trim_end());
            text.push('\n');
            line = " ".repeat(INDENT);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

/// A sentence, broken between words.
pub fn wrapped(text: &mut String, sentence: &str, columns: usize) {
    let mut used = 0;
    for word in sentence.split(' ') {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > columns {
            text.push('\n');
            used = 0;
        }
        if used > 0 {
            text.push(' ');
            used += 1;
        }
        text.push_str(word);
        used += length;
    }
    text.push('\n');
}

/// The countdown: a line that is drawn anew each second, or one line a minute.
#[derive(Debug, Default)]
pub struct Countdown {
    shown: Option<u64>,
}

impl Countdown {
    /// What to write now, if anything.
    pub fn next(&mut self, left: Duration, look: &Look) -> Option<String> {
        // Up, so that a just-opened page of 5 minutes begins with 5 minutes.
        let secs = left.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX);
        let step = if look.live { secs } else { secs.div_ceil(60) };
        if self.shown == Some(step) {
            return None;
        }
        let first = self.shown.replace(step).is_none();
        if look.live {
            return Some(format!("\r\x1b[K{} left", short(secs)));
        }
        // The invitation has just said it.
        (!first && secs > 0).then(|| format!("{} left\n", spoken(Duration::from_secs(step * 60))))
    }

    /// Take the live line away.
    #[must_use]
    pub fn clear(&mut self, look: &Look) -> &'static str {
        if self.shown.take().is_some() && look.live { "\r\x1b[K" } else { "" }
    }
}

/// `4:58`, `1:02:03`
fn short(secs: u64) -> String {
    let (hours, minutes, rest) = (secs / 3600, secs / 60 % 60, secs % 60);
    let mut text = String::new();
    // Writing to a string does not fail.
    if hours > 0 {
        write!(text, "{hours}:{minutes:02}:{rest:02}").ok();
    } else {
        write!(text, "{minutes}:{rest:02}").ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Invitation {
        Invitation {
            url: "https://wlcg.cloud.cnaf.infn.it/device".into(),
            complete: Some("https://wlcg.cloud.cnaf.infn.it/device?user_code=WDJBMJHT".into()),
            code: Some("WDJB-MJHT".into()),
            expires_in: Duration::from_secs(300),
            facts: vec![
                ("service", "wlcg".into()),
                ("account", "alice on ap1.example.org".into()),
                ("provider", "wlcg at wlcg.cloud.cnaf.infn.it".into()),
                ("scopes", "storage.read:/ storage.create:/ compute.create offline_access wlcg.groups".into()),
            ],
        }
    }

    fn mytoken() -> Invitation {
        Invitation {
            url: "https://mytok.eu/c/AbCdEfGh".into(),
            complete: None,
            code: None,
            expires_in: Duration::from_secs(300),
            facts: vec![
                ("service", "helmholtz".into()),
                ("account", "alice on ap1.example.org".into()),
                ("provider", "helmholtz at mytok.eu".into()),
                ("lifetime", "1 week".into()),
            ],
        }
    }

    const WIDE: Look = Look { columns: 80, rows: 40, colour: false, live: true, blocks: true };

    #[test]
    fn the_prompt_at_80_columns_with_qr() {
        insta::assert_snapshot!(invitation(&mytoken(), &WIDE));
    }

    #[test]
    fn the_prompt_at_40_columns_breaks_sentences_and_never_the_url() {
        let narrow = Look { columns: 40, rows: 24, blocks: false, ..WIDE };
        let text = invitation(&device(), &narrow);
        assert!(text.lines().any(|line| line == device().url));
        insta::assert_snapshot!(text);
    }

    #[test]
    fn the_prompt_at_40_columns_with_a_code_and_qr() {
        insta::assert_snapshot!(invitation(&device(), &Look { columns: 40, rows: 60, ..WIDE }));
    }

    #[test]
    fn with_no_color_the_prompt_is_the_same_without_escapes() {
        let colours = invitation(&mytoken(), &Look { colour: true, ..WIDE });
        insta::assert_snapshot!(colours.replace('\x1b', "ESC"));
        let mut plain = colours;
        for escape in ["\x1b[1m", "\x1b[0m", "\x1b[38;5;231;48;5;16m"] {
            plain = plain.replace(escape, "");
        }
        assert_eq!(plain, invitation(&mytoken(), &WIDE));
    }

    #[test]
    fn the_prompt_at_200_columns() {
        let text = invitation(&device(), &Look { columns: 200, rows: 60, blocks: false, ..WIDE });
        insta::assert_snapshot!(text);
    }

    #[test]
    fn without_colour_and_blocks_the_prompt_is_plain_ascii() {
        let plain = Look { blocks: false, live: false, ..WIDE };
        for one in [device(), mytoken()] {
            let text = invitation(&one, &plain);
            assert!(text.is_ascii() && !text.contains('\x1b'), "{text}");
        }
    }

    #[test]
    fn time_left_is_a_countdown_or_one_line_a_minute() {
        let mut live = Countdown::default();
        assert_eq!(live.next(Duration::from_secs(300), &WIDE).unwrap(), "\r\x1b[K5:00 left");
        assert_eq!(live.next(Duration::from_millis(299_500), &WIDE), None);
        assert_eq!(live.next(Duration::from_secs(299), &WIDE).unwrap(), "\r\x1b[K4:59 left");
        assert_eq!(live.clear(&WIDE), "\r\x1b[K");
        let look = Look { live: false, ..WIDE };
        let mut plain = Countdown::default();
        let told: Vec<_> = (0..=300).rev().filter_map(|secs| plain.next(Duration::from_secs(secs), &look)).collect();
        assert_eq!(told, ["4 minutes left\n", "3 minutes left\n", "2 minutes left\n", "1 minute left\n"]);
        assert_eq!(plain.clear(&look), "");
    }
}
