//! Replication: renewed tokens carried to sites.
//!
//! **Which process runs what.** The keeper decides ([`crate::core::replica`]), remembers ([`crate::keeper::journal`])
//! and reads the `.use` at the moment of sending; all of that on a thread of its own, so that no site can hold up a
//! renewal. Sites are reached by a third process, the **replicator**: this binary with a hidden flag, started only if
//! sites are configured, under a uid of its own (`replicate_user`). The courier is not used for it, on purpose: it
//! holds refresh tokens, may neither open files nor start programs, and must not parse what sites answer. The
//! replicator sees access tokens alone, and may do what its sites need: start `ssh`, `condor_store_cred` or a program
//! of the site's, write below the directories of `directory` sites, speak TLS ([`sandbox`] says how it is confined).
//!
//! **Frames** ([`frame`]) are those of the courier: length and postcard over the socketpair that is its standard
//! input. It keeps nothing on disk; what must outlive it (the UUID of a registered function, a task that a service
//! still has in its queue) goes back to the keeper as a note. When it dies another one is started; what was under way
//! counts as failed and is sent again under the same generation, which the far end recognises.
//!
//! **What hangs.** The replicator has one thread for everything that waits by itself. A site's files are read and written
//! on [`threads`] of that site, and a program is started so that it hangs alone ([`program`]).
//!
//! **Far ends.** Where our own code runs there ([`receive`], the function of [`globus`]), it checks seal, age, path and
//! sequence before it writes, and a late or repeated delivery changes nothing. [`place`] is the one way in which a
//! file appears: temporary, mode first, fsync, rename, fsync, then the sequence.

pub mod account;
pub mod assertion;
pub mod cluster;
pub mod credd;
pub mod directory;
pub mod envelope;
pub mod exec;
pub mod frame;
pub mod globus;
pub mod inbox;
pub mod iri;
pub mod kubernetes;
pub mod name;
pub mod pack;
pub mod parcel;
pub mod place;
pub mod program;
pub mod receive;
pub mod sandbox;
pub mod sfapi;
pub mod sftp;
pub mod sftp_place;
pub mod ssh;
pub mod threads;
pub mod web;
pub mod worker;

pub use worker::main;
