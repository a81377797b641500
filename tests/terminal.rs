//! What drives terminals in the pool's tests (`tests/pool/on_terminal.py`) answers each page once, in order, and not
//! before it is shown whole: a terminal hands over in pieces what a program writes at once.

use std::process::Command;

/// Two pages with pauses where a reader may wake up too early.
const TWO_PAGES: &str = "
    printf 'service a\n'; sleep 0.4; printf 'http://127.0.0.1/c/fi'; sleep 0.4; printf 'rst\n'; sleep 0.4
    printf 'Starting polling\n'; sleep 0.4; printf 'service b\n'; sleep 0.4
    printf 'http://127.0.0.1/device\nand enter this code there:\n'; sleep 0.4; printf 'ABCD-EFGH\nStarting polling\n'
    sleep 1";

#[test]
fn each_page_is_answered_once_in_order_and_when_it_is_whole() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: no python3");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let driver = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pool/on_terminal.py");
    let note = format!("run:echo \"$ACT_URL $ACT_CODE\" >> {}/answered", dir.path().display());
    let ended = Command::new("python3")
        .args([driver, "--seconds", "30", "--when", "service a", &note, "--when", "service", &note])
        .args(["--", "sh", "-c", TWO_PAGES])
        .output()
        .unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let answered = std::fs::read_to_string(dir.path().join("answered")).unwrap();
    assert_eq!(answered, "http://127.0.0.1/c/first \nhttp://127.0.0.1/device ABCD-EFGH\n");
}
