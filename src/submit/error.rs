//! Why a storer, `evercred login` or `evercred upload` ends without a usable credential: one line each, and the exit code.

use std::time::Duration;

use thiserror::Error;

use super::{
    lock::Holder,
    request::RequestError,
    store::StoreError,
    words::{self, Purpose},
};
use crate::error::exit;

/// Why there is no usable credential.
#[derive(Debug, Error)]
pub enum SubmitError {
    /// The user said no.
    #[error("You declined the request.")]
    Declined,
    /// Nobody said anything.
    #[error("The approval was not given in time.")]
    NotInTime,
    /// No connection, no answer, or none that makes sense.
    #[error("{who} could not be reached: {why}.")]
    Unreachable {
        /// `The mytoken server`, `The issuer`
        who: &'static str,
        /// In one line.
        why: String,
    },
    /// It answered, and does not do what is asked.
    #[error("{who} refuses the request: {why}.")]
    Refused {
        /// `The mytoken server`, `The issuer`
        who: &'static str,
        /// Its words, made fit for a terminal.
        why: String,
    },
    /// A URL or code that must not be shown to anybody.
    #[error("The page for the approval is refused: {0}.")]
    UnsafePage(String),
    /// What was approved cannot do what it is for.
    #[error("The new credential is of no use: {0}. Nothing was stored.")]
    Unsuitable(String),
    /// The provider is not set up for approvals.
    #[error("{0}")]
    NotSetUp(String),
    /// Ctrl-C, or end of input at a question.
    #[error("Cancelled: nothing was stored.")]
    Cancelled,
    /// Ctrl-C after something was stored: its names.
    #[error("Cancelled: the new credential for {0} is stored, and stays.")]
    CancelledAfter(String),
    /// Ctrl-C while something ended that has its own words.
    #[error("{0}")]
    Interrupted(Box<Self>),
    /// A question without an answer.
    #[error("No answer: nothing was submitted.")]
    NoAnswer,
    /// Another program of the user has the lock, and has it still after so long.
    #[error(
        "Another program of yours asks for an approval and is not done after {}: {}. Nothing was stored.",
        words::spoken(*.waited), words::holder(.holder.as_ref())
    )]
    Busy {
        /// Who, as far as it told.
        holder: Option<Holder>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Somebody must approve, and there is no terminal.
    #[error("{0}")]
    NeedsHuman(String),
    /// The argument of a storer.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Between us and credd.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A client's own tokens, which the configuration does not name for this request.
    #[error("{0}")]
    NotNamed(String),
    /// Stored, and no `.use` came.
    #[error("The credential for {name} was stored, but {why}.")]
    NotUsable {
        /// The credential.
        name: String,
        /// What the keeper says, or how long we waited.
        why: String,
    },
    /// The stock storer did not do its part.
    #[error("{0}")]
    Stock(String),
    /// Anything about this machine.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl SubmitError {
    /// The line for people.
    #[must_use]
    pub fn line(&self, purpose: Purpose) -> String {
        let after = match (self, purpose) {
            (Self::Declined, Purpose::Submit) => " Your jobs were not submitted.",
            (Self::Declined, Purpose::Login) => " Nothing was stored.",
            (Self::NotInTime, Purpose::Submit) => " Please submit again.",
            (Self::NotInTime, Purpose::Login) => " Please try again.",
            (Self::Busy { .. }, Purpose::Submit) => " Approve there, or end it; then submit again.",
            (Self::Busy { .. }, Purpose::Login) => " Approve there, or end it; then try again.",
            _ => "",
        };
        format!("{self}{after}")
    }

    /// The exit code.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Cancelled | Self::CancelledAfter(_) | Self::Interrupted(_) => exit::CANCELLED,
            Self::NeedsHuman(_) => exit::NEEDS_HUMAN,
            _ => exit::FAILED,
        }
    }

    /// The stable label, for `--json`.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Declined => "declined",
            Self::NotInTime => "not-in-time",
            Self::Unreachable { .. } => "unreachable",
            Self::Refused { .. } => "refused",
            Self::UnsafePage(_) => "unsafe-page",
            Self::Unsuitable(_) => "unsuitable",
            Self::NotSetUp(_) => "not-set-up",
            Self::NotNamed(_) => "not-named",
            Self::Cancelled | Self::CancelledAfter(_) | Self::Interrupted(_) | Self::NoAnswer => "cancelled",
            Self::Busy { .. } => "busy",
            Self::NeedsHuman(_) => "needs-human",
            Self::Request(_) => "bad-request",
            Self::Store(_) => "not-stored",
            Self::NotUsable { .. } => "not-usable",
            Self::Stock(_) => "stock-storer",
            Self::System { .. } => "system",
        }
    }

    /// What to do, for `--json`; the line for people has it where it is not plain.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Declined | Self::NotInTime | Self::Cancelled | Self::Interrupted(_) | Self::NoAnswer => {
                "ask the user again"
            }
            Self::CancelledAfter(_) => "nothing: the new credential is in place",
            Self::Unreachable { .. } => "try again later; jobs that run keep their token",
            Self::Refused { .. } | Self::Unsuitable(_) => "approve all that the page offers; else ask the admins",
            Self::UnsafePage(_) | Self::NotSetUp(_) | Self::Stock(_) | Self::System { .. } => "ask the admins",
            Self::Busy { .. } => "approve there, or end it, and try again",
            Self::NeedsHuman(_) => "run the command on a terminal",
            Self::Request(_) => "write the service, scopes and audience as in a submit file",
            Self::Store(_) => "see that HTCondor's credd runs and takes this user, and try again",
            Self::NotUsable { .. } => "run evercred status on the access point",
            Self::NotNamed(_) => "ask for what the admins have named, or ask them",
        }
    }
}
