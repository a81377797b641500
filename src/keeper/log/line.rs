//! What one event looks like, without its line end.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value};
use tracing::{
    Event, Level,
    field::{Field, Visit},
};

use super::Format;

/// An event as text (`message key=value …`) or as a JSON object with time and level.
pub(super) enum Line {
    Text(String),
    Json(String),
}

impl Line {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Text(text) | Self::Json(text) => text,
        }
    }
}

pub(super) fn text(event: &Event<'_>) -> Line {
    let mut text = Text::default();
    event.record(&mut text);
    let line = format!("{}{}", text.message, text.fields);
    Line::Text(line.trim_start().to_owned())
}

pub(super) fn json(event: &Event<'_>) -> Line {
    let mut fields = Fields::default();
    event.record(&mut fields);
    let mut object = Map::new();
    object.insert("time".into(), format!("{:.3}", jiff::Timestamp::now()).into());
    object.insert("level".into(), event.metadata().level().as_str().into());
    object.insert("message".into(), fields.message.into());
    for (name, value) in fields.rest {
        // A field never takes the place of what every line has.
        object.entry(name).or_insert(value);
    }
    Line::Json(Value::Object(object).to_string())
}

/// A line of the log's own, which is no event.
pub(super) fn plain(format: Format, level: Level, at: jiff::Timestamp, message: &str, lost: u64) -> Line {
    match format {
        Format::Text => Line::Text(format!("{message} lost={lost}")),
        Format::Json => {
            let (time, level) = (format!("{at:.3}"), level.as_str());
            Line::Json(serde_json::json!({"time": time, "level": level, "message": message, "lost": lost}).to_string())
        }
    }
}

/// An event's message and its ` key=value` pairs.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn put(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            escape(&mut self.message, value);
            return;
        }
        let name = field.name();
        let bare = |c: char| !(c.is_whitespace() || c.is_control() || "\"=".contains(c));
        // What `?value` of a string gives is quoted already.
        let inner = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
        let quoted = inner.is_some_and(|v| !v.contains(|c: char| c == '"' || c.is_control()));
        let plain = quoted || (!value.is_empty() && value.chars().all(bare));
        // Writing to a string does not fail.
        if plain { write!(self.fields, " {name}={value}") } else { write!(self.fields, " {name}={value:?}") }.ok();
    }
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}"));
    }
}

fn escape(into: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() { into.extend(c.escape_default()) } else { into.push(c) }
    }
}

/// An event's message and its fields, with their types.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, Value)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match value {
            Value::String(text) if field.name() == "message" => self.message = text,
            value => self.rest.push((field.name(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}
