//! The network process: no files of the spool, no privileges; it talks to issuers and to the keeper.

pub mod frame;
