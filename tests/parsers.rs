//! Every parser that reads a file, an argument or the network takes any bytes without a panic, and whatever is done to
//! what it likes. `fuzz/` feeds the same for as long as one wants.

#![expect(clippy::panic, clippy::indexing_slicing, reason = "a test: it may stop at the first thing that is wrong")]

#[path = "parsers/feed.rs"]
mod feed;

use feed::{SAMPLES, feed};
use proptest::{collection::vec, prelude::*, sample::Index};

/// What happens to a text on its way.
#[derive(Debug, Clone)]
enum Change {
    Byte(Index, u8),
    Insert(Index, Vec<u8>),
    Cut(Index),
    Drop(Index),
    Twice(Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (any::<Index>(), vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        // Numbers too large, deep nesting, words that mean something.
        (
            any::<Index>(),
            prop::sample::select(vec!["99999999999999999999", "-1", "1e999", "[[[[[[[[", "null", "\\u0000", "\""])
        )
            .prop_map(|(at, text)| Change::Insert(at, text.into())),
        any::<Index>().prop_map(Change::Cut),
        any::<Index>().prop_map(Change::Drop),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Change::Twice(from, to)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    if bytes.is_empty() {
        return;
    }
    let length = bytes.len();
    match change {
        Change::Byte(at, byte) => bytes[at.index(length)] = *byte,
        Change::Insert(at, more) => {
            let at = at.index(length);
            drop(bytes.splice(at..at, more.iter().copied()));
        }
        Change::Cut(at) => bytes.truncate(at.index(length)),
        Change::Drop(at) => drop(bytes.remove(at.index(length))),
        Change::Twice(a, b) => {
            let (a, b) = (a.index(length), b.index(length));
            let part = bytes[a.min(b)..a.max(b)].to_vec();
            bytes.extend(part);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn any_bytes_are_taken_or_refused(parser in 0..SAMPLES.len(), bytes in vec(any::<u8>(), 0..200)) {
        feed(parser, &bytes);
    }

    #[test]
    fn whatever_is_done_to_a_good_text_it_is_taken_or_refused(
        parser in 0..SAMPLES.len(),
        changes in vec(change(), 0..6),
    ) {
        let mut bytes = SAMPLES[parser].1.as_bytes().to_vec();
        for change in &changes {
            apply(&mut bytes, change);
        }
        feed(parser, &bytes);
    }
}
