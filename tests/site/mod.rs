//! One site for component tests: the embedded issuer, a credential directory, a configuration, and the real credmon
//! (both processes) while it runs.

#![allow(dead_code, reason = "no test needs all of this")]
#![expect(clippy::unwrap_used, reason = "a test: it may stop at the first thing that is wrong")]

pub mod far;

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant, SystemTime},
};

use evercred::demo::issuer::{Asked, Issuer, MytokenWish, Options, Record, Rotation, Running, TokenWish};
use tempfile::TempDir;

/// Who the network process becomes; not who the process that replicates does, in the tests of that: `nobody`.
pub const COURIER: &str = "daemon";
/// The uid and gid of `nobody` on Linux.
pub const NOBODY: &str = "65534";

/// A Python of this build's own with a package of pip's; none if it cannot be installed here.
pub fn python(name: &str, module: &str, package: &str) -> Option<PathBuf> {
    // Tests of one program run side by side; pip is slow, and not made for that.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap();
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("venv-{name}"));
    let python = venv.join("bin/python");
    let import = format!("import {module}");
    let has = || Command::new(&python).args(["-c", &import]).output().is_ok_and(|output| output.status.success());
    if !has() {
        Command::new("python3").args(["-m", "venv"]).arg(&venv).output().ok()?;
        Command::new(&python).args(["-m", "pip", "-q", "install", package]).output().ok()?;
    }
    has().then_some(python)
}

/// What a test of a stage of its own (`tests/run NAME`) needs: none, and it says so, if that is not set up, or with
/// `EVERCRED_STAGES_APART=1`, which leaves such tests to their stage.
#[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
pub fn of_stage<T>(stage: &str, needs: &str, found: impl FnOnce() -> Option<T>) -> Option<T> {
    let apart = std::env::var_os("EVERCRED_STAGES_APART").is_some_and(|value| value == "1");
    let found = if apart { None } else { found() };
    if found.is_none() {
        println!("skipped: {} (tests/run {stage})", if apart { "it has a stage of its own" } else { needs });
    }
    found
}

/// What the endpoint at this address tells; none: there is none.
pub fn metrics_at(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The value of a series in such a text.
pub fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// One site: issuer, directory, configuration, and the credmon while it runs.
pub struct Site {
    pub home: TempDir,
    pub issuer: Running,
    pub credmon: Option<Child>,
}

impl Site {
    pub fn new(lifetime: u64, rotation: Rotation) -> Self {
        let home = TempDir::with_prefix("evercred-test-").unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let issuer =
            Issuer::start(&Options { access_lifetime: Duration::from_secs(lifetime), rotation, ..Options::default() })
                .unwrap();
        let site = Self { home, issuer, credmon: None };
        fs::DirBuilder::new().mode(0o700).create(site.credentials()).unwrap();
        site.configure("");
        site
    }

    pub fn credentials(&self) -> PathBuf {
        self.home.path().join("credentials")
    }

    pub fn socket(&self) -> PathBuf {
        self.home.path().join("status.sock")
    }

    pub fn configure(&self, more: &str) {
        self.configure_with("", more, "");
    }

    /// Further keys of `[daemon]` and of `[provider.grid]`, and further sections.
    pub fn configure_with(&self, daemon: &str, more: &str, sections: &str) {
        let timeout = if more.contains("timeout") { "" } else { "timeout = \"3s\"\n" };
        let text = format!(
            "[daemon]\ncredential_directory = \"{}\"\nstatus_socket = \"{}\"\ncourier_user = \"{COURIER}\"\n{daemon}\n\n[provider.grid]\nkind = \"oauth2\"\n\
             issuer = \"{url}\"\nclient_id = \"test\"\nscopes = [\"storage.read:/\"]\nmax_per_second = 1000\n\
             {timeout}{more}\n\n[provider.mt]\nkind = \"mytoken\"\nserver = \"{url}/mytoken\"\nissuer = \"{url}\"\n\n{sections}\n",
            self.credentials().display(),
            self.socket().display(),
            url = self.issuer.url(),
        );
        fs::write(self.home.path().join("evercred.toml"), text).unwrap();
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_condor_credmon_evercred"));
        command.arg("--config").arg(self.home.path().join("evercred.toml"));
        command.arg("--log").arg(self.home.path().join("log")).stdin(Stdio::null());
        command
    }

    /// The credmon as an unprivileged user; root hands everything here to `nobody`.
    pub fn unprivileged(&self) -> Command {
        if !nix::unistd::geteuid().is_root() {
            return self.command();
        }
        // Where it was built, nobody may be able to go.
        let program = self.home.path().join("condor_credmon_evercred");
        if !program.exists() {
            fs::copy(env!("CARGO_BIN_EXE_condor_credmon_evercred"), &program).unwrap();
        }
        let chowned = Command::new("chown").args(["-R", NOBODY]).arg(self.home.path()).status().unwrap();
        assert!(chowned.success());
        let mut command = Command::new("setpriv");
        command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(program);
        command.args(self.command().get_args()).stdin(Stdio::null());
        command
    }

    pub fn start(&mut self) {
        self.credmon = Some(self.command().spawn().unwrap());
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// What its endpoint tells, at the address that the log names.
    pub fn metrics(&self) -> String {
        let log = self.log();
        let address = log.rsplit("metrics are at http://").next().unwrap().split('/').next().unwrap();
        metrics_at(address).unwrap_or_default()
    }

    /// The value of a series there.
    pub fn metric(&self, series: &str) -> Option<f64> {
        value(&self.metrics(), series)
    }

    /// As credd stores: a file beside it, renamed into place.
    pub fn store(&self, user: &str, base: &str, content: &[u8]) {
        self.store_dated(user, base, content, SystemTime::now());
    }

    /// As if it had been stored then.
    pub fn store_dated(&self, user: &str, base: &str, content: &[u8], stored: SystemTime) {
        let directory = self.credentials().join(user);
        if !directory.exists() {
            fs::DirBuilder::new().mode(0o700).create(&directory).unwrap();
        }
        let (temporary, path) = (directory.join(format!("{base}.top.tmp")), directory.join(format!("{base}.top")));
        fs::write(&temporary, content).unwrap();
        File::options().append(true).open(&temporary).unwrap().set_modified(stored).unwrap();
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&temporary, &path).unwrap();
    }

    pub fn refresh_token(&self, user: &str) -> String {
        self.issuer.control().refresh_token(&TokenWish {
            user: user.into(),
            client_id: None,
            scope: "storage.read:/ offline_access".into(),
            audience: vec![],
        })
    }

    pub fn grid(&self, user: &str) -> String {
        let token = self.refresh_token(user);
        self.store(user, "grid", format!("{{\"refresh_token\":\"{token}\"}}").as_bytes());
        token
    }

    /// Store a mytoken like this.
    pub fn mytoken(&self, wish: MytokenWish) -> String {
        let user = wish.user.clone();
        let token = self.issuer.control().mytoken(wish).unwrap();
        self.store(&user, "mt", format!("{{\"mytoken\":\"{token}\"}}").as_bytes());
        token
    }

    pub fn file(&self, user: &str, name: &str) -> Option<Vec<u8>> {
        fs::read(self.credentials().join(user).join(name)).ok()
    }

    /// What the issuer remembers of the user's last refresh token and its rotations.
    pub fn record(&self, user: &str) -> Record {
        self.issuer.control().records(Some(user)).pop().unwrap()
    }

    /// Every request for the user's access tokens.
    pub fn asked(&self, user: &str) -> Vec<Asked> {
        self.issuer.control().records(Some(user)).into_iter().flat_map(|record| record.asked).collect()
    }

    pub fn exchanges(&self, user: &str) -> u64 {
        self.issuer.control().records(Some(user)).iter().map(|r| r.exchanges).sum()
    }

    pub fn wait(&self, what: &str, seconds: u64, mut done: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(seconds);
        while !done(self) {
            assert!(Instant::now() < end, "not in {seconds} s: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.credmon.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut child) = self.credmon.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
