//! The embedded issuer, which the tests and benches use too, and the guided tour of `evercred demo`.

mod approval;
mod far;
pub mod issuer;
mod screen;
pub mod tour;
