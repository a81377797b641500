//! Traces: what an OTLP receiver (Python, with the protocol's own messages from pip) gets of the real daemon.

#![cfg(feature = "otlp")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test: it may stop at the first thing that is wrong"
)]

mod site;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use evercred::demo::issuer::Rotation;
use serde_json::Value;

use self::site::Site;

/// Writes each span as JSON on a line of a file.
const RECEIVER: &str = r#"
import http.server, json, sys
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
out = sys.argv[1]
def text(v):
    return getattr(v, v.WhichOneof("value"))
class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        assert self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf", (self.path, self.headers)
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        with open(out, "a") as f:
            for resource in request.resource_spans:
                service = {a.key: text(a.value) for a in resource.resource.attributes}["service.name"]
                for scope in resource.scope_spans:
                    for s in scope.spans:
                        f.write(json.dumps({"service": service, "name": s.name, "trace": s.trace_id.hex(), "id": s.span_id.hex(),
                            "parent": s.parent_span_id.hex(), "start": s.start_time_unix_nano, "end": s.end_time_unix_nano,
                            "failed": s.status.code == 2, "attributes": {a.key: text(a.value) for a in s.attributes}}) + "\n")
        body = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
print(server.server_port, flush=True)
server.serve_forever()
"#;

struct Receiver(Child);

impl Drop for Receiver {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn receive(out: &Path) -> Option<(Receiver, u16)> {
    let python =
        site::python("otlp", "opentelemetry.proto.collector.trace.v1.trace_service_pb2", "opentelemetry-proto==1.45.2");
    let Some(python) = python else {
        println!("skipped: opentelemetry-proto cannot be installed here (python3 -m venv, pip)");
        return None;
    };
    let mut child = Command::new(python)
        .args(["-c", RECEIVER])
        .arg(out)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let port = line.trim().parse().unwrap_or_else(|_| panic!("the receiver: {line:?}"));
    Some((Receiver(child), port))
}

fn spans(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn a_renewal_is_a_span_with_its_parts_beneath_and_no_user_is_in_it() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("spans");
    let Some((_receiver, port)) = receive(&out) else { return };
    let mut site = Site::new(600, Rotation::Strict);
    site.configure_with(&format!("otlp = \"http://127.0.0.1:{port}\""), "", "");
    let refused = site.grid("canary-user-bob");
    assert!(site.issuer.control().revoke(&refused));
    site.grid("canary-user-alice");
    site.start();
    site.wait("the spans", 60, |_| {
        let spans = spans(&out);
        spans.iter().any(|s| s["name"] == "publish") && spans.iter().any(|s| s["failed"] == true)
    });
    let all = spans(&out);
    let publish = all.iter().find(|s| s["name"] == "publish").unwrap();
    let root = all.iter().find(|s| s["id"] == publish["parent"]).unwrap();
    assert_eq!((&root["name"], &root["parent"], &root["service"]), (&"renewal".into(), &"".into(), &"evercred".into()));
    assert_eq!(
        (&root["attributes"]["evercred.provider"], &root["attributes"]["evercred.rotated"]),
        (&"grid".into(), &true.into())
    );
    let parts: Vec<&Value> = all.iter().filter(|s| s["parent"] == root["id"]).collect();
    let names: Vec<&str> = parts.iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["exchange", "keep", "publish"]);
    for part in &parts {
        assert_eq!(part["trace"], root["trace"]);
        let (start, end) = (part["start"].as_u64().unwrap(), part["end"].as_u64().unwrap());
        assert!(
            root["start"].as_u64().unwrap() <= start && start <= end && end <= root["end"].as_u64().unwrap(),
            "{all:?}"
        );
    }
    let failed = all.iter().find(|s| s["name"] == "renewal" && s["failed"] == true).unwrap();
    assert_eq!(failed["attributes"]["error.type"], "revoked");
    let text = fs::read_to_string(&out).unwrap();
    assert!(!text.contains("canary-user"), "{text}");
}

#[test]
fn each_delivery_to_a_site_is_a_span_beneath_the_renewal_that_brought_the_token() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("spans");
    let Some((_receiver, port)) = receive(&out) else { return };
    let mut site = Site::new(600, Rotation::Strict);
    let base = site.home.path().display().to_string();
    let sites = format!(
        "[site.near]\nkind = \"exec\"\nservices = [\"grid\"]\ncommand = [\"/bin/cat\"]\n\
         [site.gone]\nkind = \"directory\"\nservices = [\"grid\"]\ndirectory = \"{base}/gone\"\n"
    );
    let daemon =
        format!("otlp = \"http://127.0.0.1:{port}\"\nstate_directory = \"{base}/state\"\nreplicate_user = \"nobody\"");
    site.configure_with(&daemon, "", &sites);
    site.grid("canary-user-alice");
    site.start();
    let to = |spans: &[Value], name: &str| {
        spans.iter().find(|s| s["name"] == "replicate" && s["attributes"]["evercred.site"] == name).cloned()
    };
    site.wait("both deliveries", 60, |_| {
        let spans = spans(&out);
        to(&spans, "near").is_some() && to(&spans, "gone").is_some()
    });
    let all = spans(&out);
    for (name, failed) in [("near", false), ("gone", true)] {
        let span = to(&all, name).unwrap();
        let root = all.iter().find(|s| s["id"] == span["parent"]).unwrap();
        assert_eq!((&root["name"], &root["trace"]), (&"renewal".into(), &span["trace"]), "{all:?}");
        assert_eq!(span["failed"], failed, "{span}");
        let publish = all.iter().find(|s| s["name"] == "publish" && s["parent"] == root["id"]).unwrap();
        assert!(publish["start"].as_u64().unwrap() <= span["start"].as_u64().unwrap(), "{all:?}");
        assert!(span["start"].as_u64().unwrap() <= span["end"].as_u64().unwrap());
    }
    assert_eq!(to(&all, "gone").unwrap()["attributes"]["error.type"], "site-unreachable");
    let text = fs::read_to_string(&out).unwrap();
    assert!(!text.contains("canary-user"), "{text}");
}

#[test]
fn a_receiver_that_is_down_or_hangs_costs_traces_and_nothing_else() {
    let listen = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    costs_traces_alone(listen().local_addr().unwrap().port());
    // The system takes connections for it, and nobody ever reads from one.
    let hanging = listen();
    costs_traces_alone(hanging.local_addr().unwrap().port());
}

fn costs_traces_alone(port: u16) {
    let mut site = Site::new(600, Rotation::Strict);
    site.configure_with(&format!("otlp = \"http://127.0.0.1:{port}\""), "", "");
    site.grid("alice");
    site.start();
    site.wait("a token", 30, |s| s.file("alice", "grid.use").is_some());
    site.wait("the word", 30, |s| s.log().contains("traces are not taken"));
    site.grid("bob");
    site.wait("another token", 30, |s| s.file("bob", "grid.use").is_some());
    assert_eq!(site.log().matches("traces are not taken").count(), 1);
}
