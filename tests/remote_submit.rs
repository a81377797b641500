//! Submits to another access point (`condor_submit -name AP`), by the name and the options of whoever runs the storer.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Stdio},
};

#[test]
fn only_services_of_ours_are_refused_and_others_are_the_stock_storers_matter() {
    let dir = tempfile::tempdir().unwrap();
    let (config, stock, calls) = (dir.path().join("c.toml"), dir.path().join("stock"), dir.path().join("calls"));
    fs::write(&stock, format!("#!/bin/sh\necho \"$@\" >> '{}'\n", calls.display())).unwrap();
    fs::set_permissions(&stock, fs::Permissions::from_mode(0o755)).unwrap();
    let text = format!(
        "[storer]\nstock_storer = \"{}\"\n[provider.helmholtz]\nkind = \"mytoken\"\nserver = \"https://mytok.eu\"\n",
        stock.display()
    );
    fs::write(&config, text).unwrap();
    let submit = |requests: &[&str]| {
        // A shell that is called condor_submit, and has its options.
        let mut shell = Command::new("/bin/sh");
        shell.arg0("condor_submit").args(["-c", "shift 2; \"$@\"; exit $?", "sh", "-name", "ap2.example.org"]);
        shell.arg(env!("CARGO_BIN_EXE_evercred_storer")).args(requests);
        shell.env("EVERCRED_CONFIG", &config).env("_CONDOR_CREDD_HOST", "").stdin(Stdio::null());
        let output = shell.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for ours in [&["helmholtz"][..], &["pelican", "helmholtz"]] {
        let (code, said) = submit(ours);
        assert!(said.starts_with("These jobs go to ap2.example.org, and CREDD_HOST is not set"), "{said}");
        assert!(code != Some(0) && !calls.exists(), "{ours:?}: {code:?}");
    }
    assert_eq!(submit(&["pelican&handle=x", "vault"]), (Some(0), String::new()));
    assert_eq!(fs::read_to_string(&calls).unwrap(), "pelican&handle=x vault\n");
}
