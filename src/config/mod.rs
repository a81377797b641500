//! Configuration: fragment (one file) → input (merged, with the origin of each value) → settings (typed, valid).

pub mod settings;
