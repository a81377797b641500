//! The first byte says which parser, the rest is what it reads.

#![no_main]

#[path = "../../tests/parsers/feed.rs"]
mod feed;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some((first, rest)) = bytes.split_first() {
        feed::feed(usize::from(*first) % feed::SAMPLES.len(), rest);
    }
});
