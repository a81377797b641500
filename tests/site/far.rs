//! What tests of replication to a service share: its double, and looks at both ends.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use serde_json::{Value, json};

use super::Site;

/// A program that plays a service, prints its port first, and takes orders at `/control`.
pub struct Double {
    child: Child,
    pub port: u16,
}

impl Double {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, port: line.trim().parse().unwrap() }
    }

    pub fn control(&self, orders: &Value) -> Value {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let url = format!("http://127.0.0.1:{}/control", self.port);
            let request = reqwest::Client::new().put(url).header("Content-Type", "application/json");
            let answer = request.body(orders.to_string()).send().await.unwrap();
            serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
        })
    }

    pub fn asked(&self, path: &str) -> u64 {
        let told = self.control(&json!({}));
        let asked = told.get("asked").and_then(Value::as_object).unwrap();
        asked.iter().filter(|(key, _)| key.contains(path)).filter_map(|(_, count)| count.as_u64()).sum()
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub fn token(site: &Site) -> String {
    let value: Value = serde_json::from_slice(&site.file("alice", "grid.use").unwrap_or_default()).unwrap_or_default();
    value.get("access_token").and_then(Value::as_str).unwrap_or("none yet").to_owned()
}

pub fn holds(path: &Path, text: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|there| there == text)
}

pub fn evercred(site: &Site, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evercred")).args(arguments).arg("--socket").arg(site.socket()).output().unwrap()
}

pub fn renew(site: &Site) {
    let output = evercred(site, &["renew", "alice/grid"]);
    assert!(output.status.success(), "{output:?}");
}

pub fn current(site: &Site) -> bool {
    evercred(site, &["replicate"]).status.success()
}
