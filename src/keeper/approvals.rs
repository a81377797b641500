//! Approvals on the web page, the keeper's part, on a thread of its own: it reads request files, compares them with
//! what is configured, and stores what the user approved. The courier has the browser and the issuer.
//!
//! A key serves once for each credential that it names; when all are stored, its file goes. What was stored with a key
//! is remembered in memory only: after a restart the same link works for the same credentials until it ends.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::Duration,
};

use super::{
    audit::{Audit, Decision, Entry},
    driver::{Clock, Input, Owner},
    scanner,
};
use crate::{
    config::settings::{OAuth2, ProviderKind, WebApproval},
    core::{
        approval::{Ask, Refusal, Request, Told},
        id::CredentialId,
        key_file::Item,
        secret::{ApprovalKey, RefreshToken},
    },
    error::Kind,
    spool::{self, PublishError, RequestError, Spool},
};

/// How often stale request files are looked for.
const SWEEP: Duration = Duration::from_secs(3600);

/// One question of the courier.
#[derive(Debug)]
pub struct Job {
    /// Of which link.
    pub generation: u64,
    /// Comes back with the answer.
    pub number: u64,
    /// What.
    pub ask: Ask,
    /// Who owns which services.
    pub owners: Vec<Arc<Owner>>,
    /// Where the page is.
    pub page: WebApproval,
    /// Where it is told that a user approved.
    pub audit: Audit,
}

/// The thread's handle.
#[derive(Debug, Clone)]
pub struct Approvals {
    jobs: Sender<Job>,
}

impl Approvals {
    /// Start the thread; `condor`: whose users' directories are.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(spool: &Arc<Spool>, condor: Option<u32>, inputs: Sender<Input>) -> std::io::Result<Self> {
        let (jobs, queue) = channel();
        let clerk = Clerk { spool: Arc::clone(spool), condor, stored: HashMap::new() };
        std::thread::Builder::new().name("approvals".into()).spawn(move || run(clerk, &queue, &inputs))?;
        Ok(Self { jobs })
    }

    /// Hand over a question; the answer comes as an input.
    pub fn submit(&self, job: Job) {
        // The thread ends only with the process.
        drop(self.jobs.send(job));
    }
}

fn run(mut clerk: Clerk, queue: &Receiver<Job>, inputs: &Sender<Input>) {
    let mut served = false;
    loop {
        match queue.recv_timeout(SWEEP) {
            Ok(job) => {
                served = true;
                let (generation, number) = (job.generation, job.number);
                let told = clerk.answer(job);
                if inputs.send(Input::ApprovalTold { generation, number, told }).is_err() {
                    return;
                }
            }
            // Only where our page serves are the files ours to clear.
            Err(RecvTimeoutError::Timeout) if served => clerk.sweep(),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

struct Clerk {
    spool: Arc<Spool>,
    condor: Option<u32>,
    /// What was stored with each key.
    stored: HashMap<String, HashSet<String>>,
}

impl Clerk {
    fn answer(&mut self, job: Job) -> Told {
        let Job { ask, owners, page, audit, .. } = job;
        let told = match ask {
            Ask::Open { key } => self.open(&key, &owners, &page).map(Told::Request),
            Ask::Store { key, base, refresh_token } => {
                let told = self.store(&key, &base, &refresh_token, &owners, &page);
                if let Some(entry) = self.entry(&key, &base, &owners, &told) {
                    audit.record(entry);
                }
                told.map(|_| Told::Stored)
            }
            // The planner knows; the driver has answered it.
            Ask::Look { .. } => Ok(Told::Standing(Vec::new())),
        };
        told.unwrap_or_else(|refusal| {
            if refusal != Refusal::Unknown {
                tracing::warn!(%refusal, "approval page");
            }
            Told::Refused(refusal)
        })
    }

    fn open(&self, key: &ApprovalKey, owners: &[Arc<Owner>], page: &WebApproval) -> Result<Request, Refusal> {
        let (file, left) = self.spool.request(key.expose()).map_err(|error| match error {
            RequestError::Unknown => Refusal::Unknown,
            RequestError::Unfit(why) => Refusal::Unfit(why.to_owned()),
        })?;
        let stored = self.stored.get(key.expose());
        let items = file
            .items
            .into_iter()
            .filter(|item| stored.is_none_or(|stored| !stored.contains(&item.base)))
            .map(|item| {
                let provider = compare(&item, owners, page)?;
                Ok((item, provider))
            })
            .collect::<Result<Vec<_>, Refusal>>()?;
        Ok(Request { user: file.user.to_string(), seconds_left: left.as_secs(), items })
    }

    fn store(
        &mut self,
        key: &ApprovalKey,
        base: &str,
        refresh_token: &RefreshToken,
        owners: &[Arc<Owner>],
        page: &WebApproval,
    ) -> Result<CredentialId, Refusal> {
        let (file, _) = self.spool.request(key.expose()).map_err(|_| Refusal::Unknown)?;
        let item = file.items.iter().find(|item| item.base == base).ok_or(Refusal::Unknown)?;
        if self.stored.get(key.expose()).is_some_and(|stored| stored.contains(base)) {
            return Err(Refusal::Used(base.to_owned()));
        }
        let provider = compare(item, owners, page)?;
        let id = CredentialId::from_base(file.user.clone(), base).map_err(|_| Refusal::Unknown)?;
        let text = spool::top_text(refresh_token.expose(), &item.scopes, &item.audience);
        self.spool.store_approved(&id, &text, self.condor).map_err(|error| {
            tracing::error!(credential = %id, %error, "an approval could not be stored");
            let no_space = matches!(error, PublishError::NoSpace { .. });
            Refusal::NotStored(if no_space { Kind::NoSpace } else { Kind::PublishFailed })
        })?;
        let (user, service) = (id.user.as_str(), id.service.as_str());
        let handle = id.handle.as_ref().map_or("", |handle| handle.as_str());
        let provider = owners.get(provider).map_or("", |owner| owner.provider.name.as_str());
        tracing::info!(user, service, handle, provider, "approved on the web page");
        let stored = self.stored.entry(key.expose().to_owned()).or_default();
        stored.insert(base.to_owned());
        if file.items.iter().all(|item| stored.contains(&item.base)) {
            self.stored.remove(key.expose());
            if let Err(error) = self.spool.close_request(key.expose()) {
                tracing::warn!(%error, "a request file that is used up could not be removed");
            }
        }
        Ok(id)
    }

    /// The audit line of what a user approved; none where the link names no credential.
    fn entry(
        &self,
        key: &ApprovalKey,
        base: &str,
        owners: &[Arc<Owner>],
        told: &Result<CredentialId, Refusal>,
    ) -> Option<Entry> {
        let asked = || CredentialId::from_base(self.spool.request(key.expose()).ok()?.0.user, base).ok();
        let id = told.as_ref().ok().cloned().or_else(asked)?;
        let owner = scanner::owner(owners, base);
        let entry = Entry::new(Clock::new().started(), Decision::Approved).of(&id);
        let mut entry = Entry { by: format!("user {}", id.user), ..entry.from(owner.map(|owner| &owner.provider)) };
        match told {
            Ok(_) => {}
            Err(Refusal::NotStored(kind)) => entry = entry.because(*kind),
            Err(refusal) => {
                entry.result = "refused";
                entry = entry.saying(refusal.to_string());
            }
        }
        Some(entry)
    }

    fn sweep(&mut self) {
        match self.spool.sweep_requests() {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "request files for approvals that had ended"),
            Err(error) => tracing::warn!(%error, "request files that have ended could not be removed"),
        }
        self.stored.retain(|key, _| self.spool.request(key).is_ok());
    }
}

/// The provider of a requested credential, if HTCondor's knobs (by which credd wrote the request) and the provider
/// mean the same client, endpoints and return URL. What is not configured but found by discovery, the courier
/// compares. The request itself directs nothing.
fn compare(item: &Item, owners: &[Arc<Owner>], page: &WebApproval) -> Result<usize, Refusal> {
    let (index, service, _) =
        scanner::owner_of(owners, &item.base).ok_or_else(|| Refusal::NotOurs(item.base.clone()))?;
    let Some(ProviderKind::OAuth2(client @ OAuth2 { accounts: None, .. })) =
        owners.get(index).map(|owner| &owner.provider.kind)
    else {
        return Err(Refusal::NotOurs(service.to_string()));
    };
    let return_url = format!("{}{}", page.url, client.return_path_of(service.as_str()));
    let differs = |configured: Option<&String>, asked: &String| configured.is_some_and(|c| c != asked);
    let what = if client.client_id != item.client_id {
        "clients (CLIENT_ID)"
    } else if differs(client.token_endpoint.as_ref(), &item.token_url) {
        "token endpoints (TOKEN_URL)"
    } else if differs(client.authorization_endpoint.as_ref(), &item.authorization_url) {
        "authorization endpoints (AUTHORIZATION_URL)"
    } else if return_url != item.return_url {
        "return URLs (CREDMON_WEB_PREFIX, RETURN_URL_SUFFIX)"
    } else {
        return Ok(index);
    };
    Err(Refusal::Differs(service.to_string(), what.to_owned()))
}
