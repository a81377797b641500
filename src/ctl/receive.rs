//! `evercred receive`: the far end of replication. What it does is in [`crate::replicate::receive`]; here are its
//! arguments, and what it says where it cannot even begin.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use crate::{
    cli,
    config::secret_file,
    core::secret::KeyText,
    error::{Report, exit},
    replicate::{
        envelope::{KeyRing, Verdict},
        inbox,
        place::Root,
        receive::Receiver,
    },
};

/// `evercred receive`: 0 everything was written or was there already, 1 something was refused.
#[must_use]
pub fn run(args: &cli::Receive) -> ExitCode {
    let receiver = match prepare(args) {
        Ok(receiver) => receiver,
        Err((code, report)) => {
            // Whoever sends reads verdicts, not our standard error.
            let detail = Some(report.to_string().trim().replace('\n', ". "));
            let verdict = Verdict { schema: 1, code: code.to_owned(), detail, ..Verdict::default() };
            if let Ok(line) = serde_json::to_string(&verdict) {
                // Nobody is left to tell if standard output is closed.
                writeln!(io::stdout().lock(), "{line}").ok();
            }
            return report.print("evercred");
        }
    };
    let mut output = io::stdout().lock();
    let taken = match &args.inbox {
        Some(path) => match Root::open(path) {
            Ok(inbox) => inbox::empty(&receiver, &inbox, &mut output),
            Err(error) => {
                let advice = "make the inbox for the account that receives, mode 0700";
                return Report::new(error.to_string(), exit::FAILED).advise(advice).print("evercred");
            }
        },
        None => receiver.serve(&mut io::stdin().lock(), &mut output),
    };
    match taken {
        Ok(0) => ExitCode::SUCCESS,
        Ok(refused) => Report::new(format!("{refused} refused"), exit::FAILED)
            .advise("the sender has the code and the words of each; they are also the lines above")
            .print("evercred"),
        Err(e) => Report::new(format!("input or output: {e}"), exit::FAILED).print("evercred"),
    }
}

fn prepare(args: &cli::Receive) -> Result<Receiver, (&'static str, Report)> {
    let mut keys = Vec::new();
    for path in &args.key_file {
        if !path.exists() {
            // During a rotation one of them may not be there yet, or not any more.
            continue;
        }
        let text = secret_file::read(path)
            .map_err(|wrong| ("KEY_MODE", Report::new(wrong.what, exit::FAILED).advise(wrong.advice)))?;
        let not_a_key = || {
            let report = Report::new(format!("{}: no Fernet key", path.display()), exit::FAILED);
            ("NO_KEY", report.advise("make one with `evercred keygen`"))
        };
        keys.push(KeyText::parse(text.trim()).map_err(|_| not_a_key())?);
        KeyRing::new(&keys).map_err(|_| not_a_key())?;
    }
    let ring = KeyRing::new(&keys).map_err(|error| {
        ("NO_KEY", Report::new(error.to_string(), exit::FAILED).advise("name an existing file with --key-file"))
    })?;
    let root = Root::open(&args.directory).map_err(|error| {
        let advice = "make the directory for the account that receives, mode 0700";
        ("FAILED", Report::new(error.to_string(), exit::FAILED).advise(advice))
    })?;
    Ok(Receiver { ring, root, site: args.site.clone(), max_age: args.max_age.as_secs() })
}
