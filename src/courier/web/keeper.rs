//! Questions to the keeper, and its answers by number.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use crate::{
    core::approval::{Ask, Told},
    courier::frame::FromCourier,
};

/// How long the keeper may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where questions to the keeper wait for their answers.
#[derive(Debug)]
pub struct Desk {
    out: mpsc::Sender<FromCourier>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Told>>>,
}

impl Desk {
    pub(super) fn new(out: mpsc::Sender<FromCourier>) -> Self {
        Self { out, next: AtomicU64::new(1), waiting: Mutex::default() }
    }

    /// Ask; none if no answer comes in time.
    pub(super) async fn ask(&self, ask: Ask) -> Option<Told> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(number, sender);
        let asked = async {
            self.out.send(FromCourier::Approval { number, ask }).await.ok()?;
            answer.await.ok()
        };
        let told = tokio::time::timeout(PATIENCE, asked).await.ok().flatten();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        told
    }

    /// A line for the log.
    pub(super) async fn tell(&self, warn: bool, text: String) {
        // The keeper is gone if nobody takes it.
        self.out.send(FromCourier::Tell { warn, text }).await.ok();
    }

    /// The page's place may be free for a courier that starts anew.
    pub(super) async fn want_restart(&self) {
        self.out.send(FromCourier::WantRestart).await.ok();
    }

    /// An answer came.
    pub fn answered(&self, number: u64, told: Told) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        // Whoever asked may have given up.
        drop(waiting.map(|sender| sender.send(told)));
    }
}
