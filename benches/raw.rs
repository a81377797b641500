//! The limits of the machine, beside which `benches/run` puts evercred: no daemon, no plan, only the calls themselves.
//!
//! * `raw publish DIR USERS THREADS SECONDS`: durable publishes a second in DIR, which is on the file system in question:
//!   create, write, fsync, rename into one of USERS directories, fsync of that directory.
//! * `raw exchange URL CA TOKENS IN_FLIGHT`: exchanges a second over one TLS client, with the refresh tokens in the file
//!   TOKENS, one a line, so many at once.
//!
//! Each prints one JSON object.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a measuring tool: it may stop at the first thing that is wrong"
)]

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["publish", directory, users, threads, seconds] => publish(
            Path::new(directory),
            users.parse().unwrap(),
            threads.parse().unwrap(),
            Duration::from_secs_f64(seconds.parse().unwrap()),
        ),
        ["exchange", url, ca, tokens, in_flight] => exchange(url, ca, tokens, in_flight.parse().unwrap()),
        _ => println!("usage: raw publish DIR USERS THREADS SECONDS | raw exchange URL CA TOKENS IN_FLIGHT"),
    }
}

/// The size of a `.use` with a signed token in it.
const BYTES: usize = 700;

fn publish(directory: &Path, users: u64, threads: u64, length: Duration) {
    let home = |n: u64| directory.join(format!("user{n}"));
    for n in 0..users {
        DirBuilder::new().mode(0o700).create(home(n)).unwrap();
    }
    let done = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (done, home) = (&done, &home);
            scope.spawn(move || {
                let mut n = thread;
                while start.elapsed() < length {
                    publish_one(&directory.join(format!(".tmp-{thread}")), &home(n % users));
                    done.fetch_add(1, Relaxed);
                    n += threads;
                }
            });
        }
    });
    let (done, seconds) = (done.load(Relaxed), start.elapsed().as_secs_f64());
    for n in 0..users {
        fs::remove_dir_all(home(n)).unwrap();
    }
    println!(
        "{{\"threads\": {threads}, \"published\": {done}, \"seconds\": {seconds:.3}, \"per_second\": {:.1}}}",
        done as f64 / seconds
    );
}

fn publish_one(temporary: &Path, home: &Path) {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary).unwrap();
    file.write_all(&[b'x'; BYTES]).unwrap();
    file.sync_all().unwrap();
    fs::rename(temporary, home.join("grid.use")).unwrap();
    File::open(home).unwrap().sync_all().unwrap();
}

fn exchange(url: &str, ca: &str, tokens: &str, in_flight: usize) {
    let tokens: Arc<[String]> = fs::read_to_string(PathBuf::from(tokens)).unwrap().lines().map(str::to_owned).collect();
    let certificates = reqwest::Certificate::from_pem_bundle(&fs::read(ca).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = reqwest::Client::builder().no_proxy().tls_certs_merge(certificates).build().unwrap();
    let next = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    runtime.block_on(async {
        let workers: Vec<_> = (0..in_flight)
            .map(|_| {
                let (client, url, tokens, next) =
                    (client.clone(), url.to_owned(), Arc::clone(&tokens), Arc::clone(&next));
                tokio::spawn(async move {
                    while let Some(token) = tokens.get(usize::try_from(next.fetch_add(1, Relaxed)).unwrap()) {
                        let answer = client
                            .post(&url)
                            .header("content-type", "application/x-www-form-urlencoded")
                            .body(format!("grant_type=refresh_token&client_id=bench&refresh_token={token}"))
                            .send()
                            .await
                            .unwrap();
                        assert!(answer.status().is_success());
                        answer.bytes().await.unwrap();
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.await.unwrap();
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{{\"exchanges\": {}, \"seconds\": {seconds:.3}, \"per_second\": {:.1}}}",
        tokens.len(),
        tokens.len() as f64 / seconds
    );
}
