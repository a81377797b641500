//! Remote sites: whether our own client of a site's service lives for a while yet.

use std::time::SystemTime;

use super::Finding;
use crate::{
    config::{settings::Settings, site_settings::Site},
    core::time::Timestamp,
    ctl::show,
};

const AREA: &str = "Sites";

/// One finding for each site whose client has an end.
pub(super) fn examine(settings: &Settings) -> Vec<Finding> {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = Timestamp(i64::try_from(wall.as_millis()).unwrap_or(i64::MAX));
    settings.sites.iter().filter_map(|site| judge(site, now)).collect()
}

fn judge(site: &Site, now: Timestamp) -> Option<Finding> {
    let end = site.kind.client_end()?;
    let advice = "make another client at the service, write its file, and reload the credmon; nobody renews it but you";
    let left = end.at.since(now);
    let name = &site.name;
    if left.is_zero() {
        return Some(
            Finding::failed(AREA, "client", format!("the client of the site {name} has ended")).advise(advice),
        );
    }
    let what = format!("the client of the site {name} ends in {}", show::short(left));
    Some(if end.is_near(now) {
        Finding::warning(AREA, "client", what).advise(advice)
    } else {
        Finding::ok(AREA, "client", what)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::{Sources, condor::Knobs, load_with},
        ctl::doctor::Verdict,
    };

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_client_of_two_days_is_told_half_a_day_before_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(
            &file,
            "[daemon]\ncredential_directory = \"/c\"\n[provider.p]\nkind = \"mytoken\"\nserver = \"https://m.example.org\"\n\
             [site.s]\nkind = \"sfapi\"\nservices = [\"p\"]\ndirectory = \"/t\"\ninbox = \"/i\"\ncommand = \"/c\"\n\
             client_file = \"/k\"\nkey_files = [\"/f\"]\n",
        )
        .unwrap();
        let sources = Sources { config: Some(file), secrets: crate::config::Secrets::LeaveAlone, ..Sources::default() };
        let mut settings = load_with(&sources, &Knobs::default()).unwrap();
        let site = settings.sites.first_mut().unwrap();
        let now = Timestamp(1_790_000_000_000);
        let mut at = |ends: Option<Timestamp>| {
            if let crate::config::site_settings::SiteKind::Sfapi(sfapi) = &mut site.kind {
                sfapi.client_ends = ends;
            }
            judge(site, now).map(|finding| finding.verdict)
        };
        assert_eq!(at(None), None);
        assert_eq!(at(Some(now.plus(13 * HOUR))), Some(Verdict::Ok));
        assert_eq!(at(Some(now.plus(12 * HOUR))), Some(Verdict::Warning));
        assert_eq!(at(Some(now.minus(HOUR))), Some(Verdict::Failed));
    }
}
