//! Two kinds of time. Expiries live on the wall clock, which may step; waiting lives on the monotonic clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Wall time, milliseconds since 1970 (UTC).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

/// Monotonic time, milliseconds since an arbitrary start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tick(pub u64);

/// Both clocks, read at once by whoever calls into the core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Wall clock.
    pub wall: Timestamp,
    /// Monotonic clock.
    pub tick: Tick,
}

fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}

impl Timestamp {
    /// From whole seconds since 1970; saturates.
    #[must_use]
    pub fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Whole seconds since 1970, rounded down.
    #[must_use]
    pub fn secs(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// `self + d`, saturating.
    #[must_use]
    pub fn plus(self, d: Duration) -> Self {
        Self(self.0.saturating_add(millis(d)))
    }

    /// `self - d`, saturating.
    #[must_use]
    pub fn minus(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(millis(d)))
    }

    /// Time from `earlier` to `self`; zero if `earlier` is later (ages are clamped).
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

macro_rules! maybe {
    ($(#[$doc:meta])* $maybe:ident, $time:ident, $none:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $maybe($time);

        impl $maybe {
            /// The time, if there is one.
            #[must_use]
            pub fn get(self) -> Option<$time> {
                (self != Self::default()).then_some(self.0)
            }
        }

        impl Default for $maybe {
            fn default() -> Self {
                Self($time($none))
            }
        }

        impl From<Option<$time>> for $maybe {
            fn from(time: Option<$time>) -> Self {
                time.map_or_else(Self::default, Self)
            }
        }
    };
}

maybe!(
    /// `Option<Timestamp>` in eight bytes: several are kept of each of 100,000 credentials.
    MaybeTimestamp,
    Timestamp,
    i64::MIN
);
maybe!(
    /// `Option<Tick>` in eight bytes.
    MaybeTick,
    Tick,
    u64::MAX
);

impl Tick {
    /// `self + d`, saturating.
    #[must_use]
    pub fn plus(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to `self`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// `#[serde(with = "rfc3339")]`: a [`Timestamp`] as people and scripts read it, `2026-11-24T22:09:50.123Z`.
///
/// Documents hold many of them, so that none is a string of its own on its way.
pub mod rfc3339 {
    use std::fmt;

    use serde::{
        Deserialize, Deserializer, Serialize, Serializer,
        de::{Error, Visitor},
    };

    use super::Timestamp;

    /// A [`Timestamp`] in this form.
    struct Text(Timestamp);

    impl Serialize for Text {
        fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
            to.collect_str(&calendar(self.0))
        }
    }

    impl<'de> Deserialize<'de> for Text {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            from.deserialize_str(Parse)
        }
    }

    struct Parse;

    impl Visitor<'_> for Parse {
        type Value = Text;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a time as in RFC 3339")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
            let time: jiff::Timestamp = text.parse().map_err(E::custom)?;
            Ok(Text(Timestamp(time.as_millisecond())))
        }
    }

    fn calendar(time: Timestamp) -> jiff::Timestamp {
        // Beyond the year 9999 there is nothing to show.
        let clamped = time.0.clamp(jiff::Timestamp::MIN.as_millisecond(), jiff::Timestamp::MAX.as_millisecond());
        jiff::Timestamp::from_millisecond(clamped).unwrap_or_default()
    }

    /// The text.
    #[must_use]
    pub fn show(time: Timestamp) -> String {
        calendar(time).to_string()
    }

    /// As text.
    pub fn serialize<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
        Text(*time).serialize(to)
    }

    /// From text.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
        Text::deserialize(from).map(|text| text.0)
    }

    /// `#[serde(with = "rfc3339::option")]`
    pub mod option {
        use super::{Deserialize, Deserializer, Serialize, Serializer, Text, Timestamp};

        /// As text, or null.
        pub fn serialize<S: Serializer>(time: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
            time.map(Text).serialize(to)
        }

        /// From text or null.
        pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Timestamp>, D::Error> {
            Ok(Option::<Text>::deserialize(from)?.map(|text| text.0))
        }
    }
}
