//! A queue of jobs, and the threads that take them. Threads come when jobs wait for one, up to a number, and go when
//! there has been nothing to do for a while: an idle daemon keeps none.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long a thread waits for another job.
const IDLE: Duration = Duration::from_secs(5);
/// What file work needs; most of it is never touched.
const STACK: usize = 256 * 1024;

/// The way to one crew. Clones lead to the same.
#[derive(Debug)]
pub struct Crew<T>(Arc<Shared<T>>);

impl<T> Clone for Crew<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<T> {
    name: &'static str,
    most: usize,
    work: Box<dyn Fn(T) + Send + Sync>,
    hall: Mutex<Hall<T>>,
    /// There is another job.
    more: Condvar,
    /// A job is done.
    fewer: Condvar,
}

struct Hall<T> {
    jobs: VecDeque<T>,
    threads: usize,
    /// Threads that wait for a job.
    idle: usize,
    /// Jobs under way.
    busy: usize,
}

impl<T> std::fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crew({}, at most {})", self.name, self.most)
    }
}

impl<T: Send + 'static> Crew<T> {
    /// No thread yet; at most `most` at once will do `work`.
    pub fn new(name: &'static str, most: usize, work: impl Fn(T) + Send + Sync + 'static) -> Self {
        let hall = Mutex::new(Hall { jobs: VecDeque::new(), threads: 0, idle: 0, busy: 0 });
        Self(Arc::new(Shared { name, most, work: Box::new(work), hall, more: Condvar::new(), fewer: Condvar::new() }))
    }

    /// Hand over a job: it is taken in its turn.
    pub fn submit(&self, job: T) {
        let mut hall = self.0.hall();
        hall.jobs.push_back(job);
        if hall.jobs.len() <= hall.idle {
            self.0.more.notify_one();
        } else if hall.threads < self.0.most {
            hall.threads += 1;
            drop(hall);
            self.spawn();
        }
    }

    /// One that was counted already. Where the system refuses a thread, others that are there take the job in their
    /// turn; where none is, it is done here and now, by who brought it.
    fn spawn(&self) {
        let shared = Arc::clone(&self.0);
        let thread = std::thread::Builder::new().name(self.0.name.into()).stack_size(STACK);
        if let Err(error) = thread.spawn(move || shared.serve()) {
            tracing::warn!(%error, "no thread for file work; it goes on more slowly");
            self.0.hall().threads -= 1;
            while let Some(job) = self.0.abandoned() {
                (self.0.work)(job);
            }
        }
    }

    /// Until fewer than `many` jobs wait or are under way.
    pub fn wait_below(&self, many: usize) {
        let hall = self.0.hall();
        let due = |hall: &mut Hall<T>| hall.jobs.len() + hall.busy >= many;
        drop(self.0.fewer.wait_while(hall, due));
    }
}

impl<T> Shared<T> {
    fn hall(&self) -> MutexGuard<'_, Hall<T>> {
        self.hall.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job that no thread will take.
    fn abandoned(&self) -> Option<T> {
        let mut hall = self.hall();
        if hall.threads == 0 { hall.jobs.pop_front() } else { None }
    }

    fn serve(&self) {
        let mut hall = self.hall();
        loop {
            let Some(job) = hall.jobs.pop_front() else {
                hall.idle += 1;
                let nothing = |hall: &mut Hall<T>| hall.jobs.is_empty();
                hall = self.more.wait_timeout_while(hall, IDLE, nothing).unwrap_or_else(PoisonError::into_inner).0;
                hall.idle -= 1;
                if hall.jobs.is_empty() {
                    hall.threads -= 1;
                    return;
                }
                continue;
            };
            hall.busy += 1;
            drop(hall);
            (self.work)(job);
            hall = self.hall();
            hall.busy -= 1;
            self.fewer.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc::channel,
    };

    use super::*;

    #[test]
    fn every_job_is_done_once_by_no_more_threads_than_allowed() {
        let (done, results) = channel();
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counted, highest) = (Arc::clone(&now), Arc::clone(&most));
        let crew = Crew::new("test", 4, move |n: usize| {
            highest.fetch_max(counted.fetch_add(1, SeqCst) + 1, SeqCst);
            std::thread::sleep(Duration::from_micros(300));
            counted.fetch_sub(1, SeqCst);
            done.send(n).unwrap();
        });
        for n in 0..500 {
            crew.submit(n);
        }
        let mut found: Vec<_> = results.iter().take(500).collect();
        found.sort_unstable();
        assert_eq!(found, (0..500).collect::<Vec<_>>());
        assert!((2..=4).contains(&most.load(SeqCst)), "{most:?}");
        crew.wait_below(1);
        assert_eq!(now.load(SeqCst), 0);
    }

    #[test]
    fn who_waits_for_fewer_jobs_goes_on_when_they_are() {
        let (leave, gate) = channel::<()>();
        let gate = Mutex::new(gate);
        let crew = Crew::new("test", 2, move |()| gate.lock().unwrap().recv().unwrap());
        for () in [(); 3] {
            crew.submit(());
        }
        crew.wait_below(4);
        let waiter = crew.clone();
        let waits = std::thread::spawn(move || waiter.wait_below(2));
        leave.send(()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waits.is_finished());
        leave.send(()).unwrap();
        waits.join().unwrap();
        leave.send(()).unwrap();
        crew.wait_below(1);
    }
}
