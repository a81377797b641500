//! One check's result, and how results are shown.

use std::fmt::Write as _;

use serde::Serialize;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing to do.
    Ok,
    /// Works, but will bite.
    Warning,
    /// Does not work.
    Failed,
    /// Could not be looked at, and why.
    Skipped,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        }
    }
}

/// A check and what it found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Heading under which people see it.
    pub area: String,
    /// Stable name of the check, for scripts.
    pub check: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What is so.
    pub what: String,
    /// What to do; empty where nothing is.
    pub advice: String,
}

impl Finding {
    fn new(area: impl Into<String>, check: &'static str, verdict: Verdict, what: impl Into<String>) -> Self {
        Self { area: area.into(), check, verdict, what: what.into(), advice: String::new() }
    }

    /// All is well.
    pub fn ok(area: impl Into<String>, check: &'static str, what: impl Into<String>) -> Self {
        Self::new(area, check, Verdict::Ok, what)
    }

    /// It works, but.
    pub fn warning(area: impl Into<String>, check: &'static str, what: impl Into<String>) -> Self {
        Self::new(area, check, Verdict::Warning, what)
    }

    /// It does not work.
    pub fn failed(area: impl Into<String>, check: &'static str, what: impl Into<String>) -> Self {
        Self::new(area, check, Verdict::Failed, what)
    }

    /// It could not be looked at.
    pub fn skipped(area: impl Into<String>, check: &'static str, why: impl Into<String>) -> Self {
        Self::new(area, check, Verdict::Skipped, why)
    }

    /// What to do.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = advice.into();
        self
    }
}

/// Where the words begin in a line of [`text`].
pub const INDENT: usize = 11;

/// For people.
#[must_use]
pub fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    let mut area = "";
    // Writing to a string does not fail.
    for finding in findings {
        if finding.area != area {
            let gap = if area.is_empty() { "" } else { "\n" };
            writeln!(text, "{gap}{}", finding.area).ok();
            area = &finding.area;
        }
        writeln!(text, "  {:<8} {}", finding.verdict.word(), finding.what).ok();
        if !finding.advice.is_empty() {
            writeln!(text, "           What to do: {}", finding.advice).ok();
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let [ok, warnings, failed, skipped] = [Verdict::Ok, Verdict::Warning, Verdict::Failed, Verdict::Skipped].map(count);
    writeln!(text, "\n{ok} ok, {warnings} warnings, {failed} failed, {skipped} skipped").ok();
    text
}

/// For scripts: one object, `schema` 1; members are added, never renamed.
#[must_use]
pub fn json(findings: &[Finding]) -> String {
    format!("{}\n", serde_json::json!({ "schema": 1, "checks": findings }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_areas_verdicts_advice_and_a_count() {
        let findings = [
            Finding::ok("Directory", "mode", "mode 2770"),
            Finding::failed("Directory", "owner", "it belongs to alice").advise("chown root it"),
            Finding::warning("HTCondor", "sweep-delay", "1 h").advise("raise it"),
        ];
        let expected = "\
Directory
  ok       mode 2770
  FAILED   it belongs to alice
           What to do: chown root it

HTCondor
  warning  1 h
           What to do: raise it

1 ok, 1 warnings, 1 failed, 0 skipped
";
        assert_eq!(text(&findings), expected);
        assert!(json(&findings).starts_with("{\"schema\":1,\"checks\":[{\"area\":\"Directory\",\"check\":\"mode\""));
    }
}
