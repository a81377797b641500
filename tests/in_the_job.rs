//! docs/in-the-job.md, run as it stands: its lines, taken out of it, find the token in a `.use` as evercred writes it, in
//! either format, and give it to curl (which asks a server that refuses all else), and as it is wanted to programs that
//! stand in for `XRootD`'s, gfal's and rclone's.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test: it may stop at the first thing that is wrong")]
#![expect(dead_code, reason = "of the documents' module, each test needs a part")]

mod documents;

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    thread,
    time::Duration,
};

use evercred::core::{
    answer::Answer,
    secret::AccessToken,
    time::Timestamp,
    use_file::{UseFormat, render},
};

use self::documents::{Block, code, read};

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2ln-_1";
const NEXT: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2ln-_2";

fn use_file(token: &str, format: UseFormat) -> Vec<u8> {
    let answer = Answer {
        access_token: AccessToken::parse(token).unwrap(),
        token_type: "Bearer".into(),
        lifetime: Duration::from_secs(3600),
        refresh_lifetime: None,
        scopes: None,
        rotated: None,
        flagged: None,
    };
    render(&answer, format, Timestamp::from_secs(1_764_536_400)).to_vec()
}

fn blocks(language: &str) -> Vec<Block> {
    let own = |block: &Block| block.language == language && block.mark("test") == Some("tests/in_the_job.rs");
    code(&read(Path::new("docs/in-the-job.md"))).0.into_iter().filter(own).collect()
}

/// A sandbox with that `.use`, and what stands in for other programs.
fn sandbox(format: UseFormat) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (creds, bin) = (dir.path().join("creds"), dir.path().join("bin"));
    fs::create_dir(&creds).unwrap();
    fs::create_dir(&bin).unwrap();
    fs::write(creds.join("helmholtz.use"), use_file(TOKEN, format)).unwrap();
    fs::write(dir.path().join("next"), use_file(NEXT, format)).unwrap();
    fs::write(dir.path().join("urls"), "https://s/1\nhttps://s/2\n").unwrap();
    let programs = [
        // With --recursive it goes on until the token was renewed, and its bare copy, too.
        (
            "xrdcp",
            "[ \"$(stat -c %a \"$BEARER_TOKEN_FILE\")\" = 600 ] || exit 1\n\
             echo \"xrdcp $(cat \"$BEARER_TOKEN_FILE\")\" >> told\n\
             [ \"$1\" = --recursive ] || exit 0\n\
             was=$(cat \"$BEARER_TOKEN_FILE\"); cp next \"$_CONDOR_CREDS/helmholtz.use\"\n\
             for _ in $(seq 200); do [ \"$(cat \"$BEARER_TOKEN_FILE\")\" = \"$was\" ] || break; /bin/sleep 0.05; done\n\
             echo \"later $(cat \"$BEARER_TOKEN_FILE\")\" >> told; exit 7",
        ),
        ("gfal-copy", "echo \"gfal $BEARER_TOKEN\" >> told"),
        ("rclone", "echo \"rclone $($RCLONE_WEBDAV_BEARER_TOKEN_COMMAND)\" >> told"),
        ("sleep", "exec /bin/sleep 0.1"),
    ];
    for (name, text) in programs {
        fs::write(bin.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    dir
}

/// `sh -e` in the sandbox, in a file, because a helper that is left behind would hold a pipe.
fn sh(dir: &Path, script: &str, url: &str) -> Output {
    let path = format!("{}:{}", dir.join("bin").display(), std::env::var("PATH").unwrap());
    let out = fs::File::create(dir.join("out")).unwrap();
    let status = Command::new("sh")
        .args(["-ec", script])
        .current_dir(dir)
        .env("PATH", path)
        .env("_CONDOR_CREDS", dir.join("creds"))
        .env("URL", url)
        .stdin(std::process::Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .status()
        .unwrap();
    Output { status, stdout: fs::read(dir.join("out")).unwrap(), stderr: Vec::new() }
}

fn there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        println!("skipped: there is no {program}");
    }
    found
}

/// A server that answers 200 to this token as a bearer's, else 401.
fn server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/data.root", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                request.push(byte[0]);
            }
            let good = String::from_utf8_lossy(&request).contains(&format!("Authorization: Bearer {TOKEN}\r\n"));
            let status = if good { "200 OK" } else { "401 Unauthorized" };
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndata").ok();
        }
    });
    url
}

#[test]
fn the_file_is_what_the_page_shows() {
    let (blocks, _) = code(&read(Path::new("docs/in-the-job.md")));
    let shown = blocks.iter().find(|block| block.language == "json").unwrap().text();
    let members = |text: &str| {
        let object: serde_json::Map<_, _> = serde_json::from_str(text).unwrap();
        object.keys().cloned().collect::<Vec<_>>()
    };
    let real = use_file(TOKEN, UseFormat::Json);
    assert_eq!(members(&shown), members(std::str::from_utf8(&real).unwrap()));
}

#[test]
fn each_way_to_read_the_token_gives_the_token_alone() {
    let ways: Vec<Block> = blocks("sh").into_iter().filter(|block| block.lines[0].starts_with("TOKEN=")).collect();
    assert_eq!(ways.len(), 3, "jq, python3, and cat at a site of bare tokens");
    for (way, (format, program)) in
        ways.iter().zip([(UseFormat::Json, "jq"), (UseFormat::Json, "python3"), (UseFormat::Bare, "cat")])
    {
        assert!(way.lines[0].contains(program), "{}", way.text());
        let dir = sandbox(format);
        if there(program) {
            let output = sh(dir.path(), &(way.text() + "printf %s \"$TOKEN\""), "");
            assert_eq!(String::from_utf8_lossy(&output.stdout), TOKEN, "{program}");
        }
    }
    // The user guide's line is the first of them.
    assert!(read(Path::new("docs/user-guide.md")).contains(&ways[0].text()));
}

#[test]
fn the_python_function_reads_both_formats() {
    for format in [UseFormat::Json, UseFormat::Bare] {
        let (dir, block) = (sandbox(format), blocks("python").remove(0));
        fs::write(dir.path().join("job.py"), block.text() + "print(token(\"helmholtz\"), end=\"\")\n").unwrap();
        let output = sh(dir.path(), "python3 job.py", "");
        assert_eq!(String::from_utf8_lossy(&output.stdout), TOKEN);
    }
}

#[test]
fn every_other_line_of_the_page_gives_each_program_the_present_token_as_it_wants_it() {
    let url = server();
    // The rest is one story, which ends as its last program does.
    let rest = blocks("sh").into_iter().filter(|block| !block.lines[0].starts_with("TOKEN="));
    let script: String = rest.map(|block| block.text()).collect();
    for program in ["curl", "rclone", "gfal-copy", "xrdcp"] {
        assert!(script.contains(program), "{program}");
    }
    if !there("curl") {
        return;
    }
    for format in [UseFormat::Json, UseFormat::Bare] {
        let dir = sandbox(format);
        let output = sh(dir.path(), &script, &url);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(7), "as the last xrdcp ended: {said}");
        assert_eq!(fs::read_to_string(dir.path().join("data.root")).unwrap(), "data", "{said}");
        let told = fs::read_to_string(dir.path().join("told")).unwrap();
        let (first, later) = (format!("xrdcp {TOKEN}"), format!("later {NEXT}"));
        let gfal = format!("gfal {TOKEN}");
        let rclone = format!("rclone {TOKEN}");
        let expected = [&first, &gfal, &rclone, &first, &first, &first, &later];
        assert_eq!(told.lines().collect::<Vec<_>>(), expected, "{said}");
    }
    // What the page warns of: the file as a whole is no token.
    let whole = "printf 'Authorization: Bearer %s\\n' \"$(cat \"$_CONDOR_CREDS/helmholtz.use\")\" | curl -s --fail --header @- \"$URL\"";
    let output = sh(sandbox(UseFormat::Json).path(), whole, &url);
    assert_eq!(output.status.code(), Some(22), "curl's word for a 401");
}
