//! The rules of replication as properties over random histories, and their corners in small beside them.
//! The file is long: all share one small world of sites, so that they are read together.

use proptest::prelude::*;

use super::*;
use crate::core::id::UserName;

const LIMITS: Limits = Limits { in_flight: 4, per_second: 50 };

fn id(user: &str) -> CredentialId {
    CredentialId::from_base(UserName::parse(user).unwrap(), "grid").unwrap()
}

fn at(secs: u64) -> Now {
    Now {
        wall: Timestamp::from_secs(1_800_000_000 + i64::try_from(secs).unwrap()),
        tick: Tick(secs.saturating_mul(1000) + 1),
    }
}

fn content(n: u8, until: u64) -> Content {
    Content { hash: [n; 16], expiry: Some(at(until).wall) }
}

/// Perform everything that needs no site; give back what is to be sent.
fn drain(r: &mut Replicas, now: Now, told: &mut Vec<Announcement>) -> Vec<(u64, CredentialId, usize, u64)> {
    let mut sends = Vec::new();
    while let Some(action) = r.next_action(now) {
        match action {
            Action::Record { id, generation, .. } => {
                r.handle(now, Event::Recorded { id, generation, durable: true });
            }
            Action::Send { number, id, site, generation, .. } => sends.push((number, id, site, generation)),
            Action::Acknowledge { .. } => {}
            Action::Announce(a) => told.push(a),
        }
    }
    sends
}

fn seen(r: &mut Replicas, now: Now, user: &str, content: Content, sites: &[usize]) {
    r.handle(now, Event::Seen { id: id(user), content, sites: sites.to_vec() });
}

fn known(site: usize, acknowledged: u64, secs: u64) -> Known {
    Known { site, acknowledged, at: at(secs).wall, elsewhere: false }
}

fn fail(kind: Kind) -> Result<Delivered, Undelivered> {
    Err(Undelivered::new(kind, ""))
}

#[test]
fn a_generation_is_recorded_before_it_is_sent_and_counts_only_when_confirmed() {
    let mut r = Replicas::new(&[LIMITS]);
    seen(&mut r, at(0), "alice", content(1, 3600), &[0]);
    let Some(Action::Record { generation, .. }) = r.next_action(at(0)) else { panic!("record first") };
    assert!(r.next_action(at(0)).is_none(), "not durable yet");
    r.handle(at(0), Event::Recorded { id: id("alice"), generation, durable: true });
    let Some(Action::Send { number, generation: sent, .. }) = r.next_action(at(0)) else { panic!("send") };
    assert_eq!(sent, generation);
    r.handle(at(1), Event::Ended { number, result: fail(Kind::SiteTimeout) });
    let row = r.replicas().next().unwrap();
    assert_eq!((row.acknowledged, row.failures), (0, 1));
    let mut told = Vec::new();
    let sends = drain(&mut r, at(60), &mut told);
    assert_eq!(sends.len(), 1, "{told:?}");
    r.handle(at(61), Event::Ended { number: sends[0].0, result: Ok(Delivered::Written) });
    let row = r.replicas().next().unwrap();
    assert_eq!((row.acknowledged, row.failures, row.standing), (generation, 0, Standing::Current));
}

#[test]
fn what_the_journal_cannot_take_is_not_sent_and_is_tried_again() {
    let mut r = Replicas::new(&[LIMITS]);
    seen(&mut r, at(0), "alice", content(1, 3600), &[0]);
    let Some(Action::Record { id, generation, .. }) = r.next_action(at(0)) else { panic!() };
    r.handle(at(0), Event::Recorded { id, generation, durable: false });
    assert!(r.next_action(at(1)).is_none());
    assert!(r.next_deadline(at(1)) <= RECORD_AGAIN);
    assert_eq!(drain(&mut r, at(20), &mut Vec::new()).len(), 1);
}

#[test]
fn a_restart_resends_nothing_that_was_acknowledged_and_everything_that_was_not() {
    let mut r = Replicas::new(&[LIMITS, LIMITS]);
    let known = vec![known(0, 7, 0), known(1, 6, 0)];
    r.handle(at(0), Event::Recalled { id: id("alice"), generation: 7, hash: [1; 16], known });
    assert!(drain(&mut r, at(0), &mut Vec::new()).is_empty(), "nothing before the spool was seen");
    seen(&mut r, at(1), "alice", content(1, 3600), &[0, 1]);
    let sends = drain(&mut r, at(1), &mut Vec::new());
    assert_eq!(sends.iter().map(|s| (s.2, s.3)).collect::<Vec<_>>(), [(1, 7)]);
}

#[test]
fn a_site_that_is_elsewhere_gets_a_generation_of_its_own_and_the_others_nothing() {
    let mut r = Replicas::new(&[LIMITS, LIMITS]);
    let moved = vec![known(0, 7, 0), Known { elsewhere: true, ..known(1, 7, 0) }];
    r.handle(at(0), Event::Recalled { id: id("alice"), generation: 7, hash: [1; 16], known: moved });
    seen(&mut r, at(1), "alice", content(1, 3600), &[0, 1]);
    assert_eq!(r.replicas().map(|row| row.at).collect::<Vec<_>>(), [Some(at(0).wall), None]);
    let sends = drain(&mut r, at(1), &mut Vec::new());
    // Its file there may have that number under another key or mode.
    assert!(matches!(sends[..], [(_, _, 1, generation)] if generation > 7), "{sends:?}");
    r.handle(at(2), Event::Ended { number: sends[0].0, result: Ok(Delivered::Written) });
    seen(&mut r, at(3), "alice", content(1, 3600), &[0, 1]);
    assert!(drain(&mut r, at(3), &mut Vec::new()).is_empty());
    assert!(r.replicas().all(|row| row.standing == Standing::Current && row.acknowledged == row.desired));
}

#[test]
fn a_new_site_gets_a_fresh_token_at_once_as_a_generation_of_its_own_and_the_others_nothing() {
    let mut r = Replicas::new(&[LIMITS, LIMITS]);
    seen(&mut r, at(0), "alice", content(1, 3600), &[0]);
    let first = drain(&mut r, at(0), &mut Vec::new());
    r.handle(at(0), Event::Ended { number: first[0].0, result: Ok(Delivered::Written) });
    seen(&mut r, at(5), "alice", content(1, 3600), &[0, 1]);
    let sends = drain(&mut r, at(5), &mut Vec::new());
    // It may be the first one's place by another name, in another form: what has that number there is no proof.
    assert!(matches!(sends[..], [(_, _, 1, generation)] if generation > first[0].3), "{sends:?}");
    r.handle(at(6), Event::Ended { number: sends[0].0, result: Ok(Delivered::Written) });
    assert!(r.replicas().all(|row| row.standing == Standing::Current && row.acknowledged == row.desired));
}

#[test]
fn a_site_with_a_new_name_gets_a_generation_that_the_old_name_never_confirmed() {
    let generation = u64::try_from(at(0).wall.secs()).unwrap();
    // Of a name that is no site any more; and of nobody: then what is there may be ours and under way.
    for (confirmed, anew) in [(vec![known(1, generation, 0)], true), (vec![known(1, generation - 9, 0)], false)] {
        let mut r = Replicas::new(&[LIMITS]);
        r.handle(at(0), Event::Recalled { id: id("alice"), generation, hash: [1; 16], known: confirmed });
        seen(&mut r, at(0), "alice", content(1, 3600), &[0]);
        let sends = drain(&mut r, at(0), &mut Vec::new());
        assert!(matches!(sends[..], [(_, _, 0, sent)] if (sent > generation) == anew), "{sends:?}");
    }
}

#[test]
fn a_token_that_ended_before_it_arrived_is_not_sent_any_more() {
    let mut r = Replicas::new(&[LIMITS]);
    seen(&mut r, at(0), "alice", content(1, 100), &[0]);
    let mut now = 0;
    while now < 200 {
        for (number, ..) in drain(&mut r, at(now), &mut Vec::new()) {
            assert!(now < 100, "sent {now} s after the start");
            r.handle(at(now), Event::Ended { number, result: fail(Kind::SiteUnreachable) });
        }
        now += 1;
    }
    assert_eq!(r.replicas().next().unwrap().standing, Standing::Expired);
    seen(&mut r, at(200), "alice", content(2, 300), &[0]);
    assert_eq!(drain(&mut r, at(230), &mut Vec::new()).len(), 1, "the next token is");
}

#[test]
fn a_newer_generation_waits_for_the_one_under_way_and_follows_it() {
    let mut r = Replicas::new(&[LIMITS]);
    seen(&mut r, at(0), "alice", content(1, 3600), &[0]);
    let first = drain(&mut r, at(0), &mut Vec::new());
    seen(&mut r, at(10), "alice", content(2, 7200), &[0]);
    assert!(drain(&mut r, at(10), &mut Vec::new()).is_empty());
    r.handle(at(20), Event::Ended { number: first[0].0, result: Ok(Delivered::Written) });
    let second = drain(&mut r, at(20), &mut Vec::new());
    assert!(second.len() == 1 && second[0].3 > first[0].3);
}

#[test]
fn replicate_now_sends_again_to_the_named_site_alone() {
    let mut r = Replicas::new(&[LIMITS, LIMITS]);
    seen(&mut r, at(0), "alice", content(1, 3600), &[0, 1]);
    for (number, ..) in drain(&mut r, at(0), &mut Vec::new()) {
        r.handle(at(0), Event::Ended { number, result: Ok(Delivered::Written) });
    }
    r.handle(at(9), Event::Again { id: None, site: Some(1) });
    let sends = drain(&mut r, at(9), &mut Vec::new());
    assert_eq!(sends.iter().map(|s| s.2).collect::<Vec<_>>(), [1]);
    let other = r.replicas().find(|row| row.site == 0).unwrap();
    assert_eq!((other.standing, other.acknowledged), (Standing::Current, other.desired));
}

#[test]
fn replicate_now_does_not_wait_for_a_retry() {
    let mut r = Replicas::new(&[LIMITS]);
    seen(&mut r, at(0), "alice", content(1, 360_000), &[0]);
    let first = drain(&mut r, at(0), &mut Vec::new());
    r.handle(at(0), Event::Ended { number: first[0].0, result: fail(Kind::SiteDenied) });
    assert!(drain(&mut r, at(100), &mut Vec::new()).is_empty(), "what others must mend is tried rarely");
    r.handle(at(101), Event::Again { id: Some(id("alice")), site: None });
    assert_eq!(drain(&mut r, at(101), &mut Vec::new()).len(), 1);
}

#[test]
fn something_newer_at_the_site_is_told_kept_and_overtaken_only_by_the_next_renewal() {
    let mut r = Replicas::new(&[LIMITS]);
    seen(&mut r, at(0), "alice", content(1, 3600), &[0]);
    let first = drain(&mut r, at(0), &mut Vec::new());
    let have = first[0].3 + 1000;
    r.handle(at(1), Event::Ended { number: first[0].0, result: Ok(Delivered::Superseded { have }) });
    let mut told = Vec::new();
    assert!(drain(&mut r, at(1), &mut told).is_empty());
    assert!(matches!(told[..], [Announcement::Failed { .. }]), "{told:?}");
    let row = r.replicas().next().unwrap();
    assert_eq!((row.last, row.acknowledged, row.since.is_some()), (Some(Kind::SiteNewer), 0, true));
    assert!(matches!(row.standing, Standing::Retrying(_)), "superseded by what? {row:?}");
    seen(&mut r, at(2), "alice", content(2, 3600), &[0]);
    assert!(drain(&mut r, at(2), &mut told)[0].3 > have);
}

#[test]
fn a_sequence_that_we_never_issued_is_asked_about_until_it_is_gone() {
    let mut r = Replicas::new(&[LIMITS]);
    seen(&mut r, at(0), "alice", content(1, 86_400), &[0]);
    let first = drain(&mut r, at(0), &mut Vec::new());
    let ours = first[0].3;
    let mut number = first[0].0;
    for step in [1, 3601, 7202] {
        r.handle(at(step), Event::Ended { number, result: Ok(Delivered::Superseded { have: u64::MAX }) });
        assert!(drain(&mut r, at(step + 60), &mut Vec::new()).is_empty(), "not at once");
        let again = drain(&mut r, at(step + 3600), &mut Vec::new());
        assert!(matches!(again[..], [(_, _, 0, generation)] if generation == ours), "{again:?}");
        number = again[0].0;
    }
    r.handle(at(10_900), Event::Ended { number, result: Ok(Delivered::Written) });
    let row = r.replicas().next().unwrap();
    assert_eq!((row.standing, row.acknowledged, row.last, row.since), (Standing::Current, ours, None, None));
}

#[test]
fn a_newer_one_of_ours_that_was_faster_is_no_error() {
    let mut r = Replicas::new(&[LIMITS]);
    seen(&mut r, at(0), "alice", content(1, 3600), &[0]);
    let first = drain(&mut r, at(0), &mut Vec::new());
    seen(&mut r, at(10), "alice", content(2, 7200), &[0]);
    let have = r.replicas().next().unwrap().desired;
    r.handle(at(20), Event::Ended { number: first[0].0, result: Ok(Delivered::Superseded { have }) });
    let mut told = Vec::new();
    assert_eq!(drain(&mut r, at(20), &mut told).len(), 1, "it is asked for its confirmation");
    assert!(matches!(told[..], [Announcement::Superseded { .. }]), "{told:?}");
}

#[test]
fn an_absurd_word_of_a_far_end_does_not_use_up_the_generations() {
    let mut r = Replicas::new(&[LIMITS]);
    seen(&mut r, at(0), "alice", content(1, 3600), &[0]);
    let first = drain(&mut r, at(0), &mut Vec::new());
    r.handle(at(1), Event::Ended { number: first[0].0, result: Ok(Delivered::Superseded { have: u64::MAX }) });
    seen(&mut r, at(2), "alice", content(2, 3600), &[0]);
    let next = drain(&mut r, at(2), &mut Vec::new())[0].3;
    assert!(next > first[0].3 && next < first[0].3 + 1000);
}

#[test]
fn generations_grow_even_where_the_journal_was_lost() {
    let mut before = Replicas::new(&[LIMITS]);
    seen(&mut before, at(0), "alice", content(1, 3600), &[0]);
    let old = drain(&mut before, at(0), &mut Vec::new())[0].3;
    let mut after = Replicas::new(&[LIMITS]);
    seen(&mut after, at(5), "alice", content(2, 3600), &[0]);
    assert!(drain(&mut after, at(5), &mut Vec::new())[0].3 > old);
}

#[test]
fn a_hanging_and_a_dead_site_delay_no_other_one() {
    // Site 0 never answers, site 1 refuses connections, sites 2.. are well: 200 credentials reach them all.
    let mut r = Replicas::new(&[LIMITS; 5]);
    let mut good = 0;
    for n in 0..200 {
        seen(&mut r, at(0), &format!("u{n}"), content(1, 3600), &[0, 1, 2, 3, 4]);
    }
    for second in 0..40 {
        loop {
            let sends = drain(&mut r, at(second), &mut Vec::new());
            if sends.is_empty() {
                break;
            }
            for (number, _, site, _) in sends {
                match site {
                    0 => {}
                    1 => r.handle(at(second), Event::Ended { number, result: fail(Kind::SiteUnreachable) }),
                    _ => {
                        good += 1;
                        r.handle(at(second), Event::Ended { number, result: Ok(Delivered::Written) });
                    }
                }
            }
        }
    }
    assert_eq!(good, 600);
}

/// Second in which each of `n` credentials arrived at a site that is well but for the first `bad` of them, which end
/// first and fail as this, always; and whether the site ever counted as down.
fn arrivals(kind: Kind, bad: usize, n: usize) -> (Vec<Option<u64>>, bool) {
    let mut r = Replicas::new(&[LIMITS]);
    let (mut told, mut arrived) = (Vec::new(), vec![None; n]);
    let name = |k: usize| format!("u{k:03}");
    for k in 0..n {
        seen(&mut r, at(0), &name(k), content(1, 36_000 + k as u64), &[0]);
    }
    for second in 0..300 {
        loop {
            let sends = drain(&mut r, at(second), &mut told);
            if sends.is_empty() {
                break;
            }
            for (number, who, ..) in sends {
                let k = (0..n).find(|k| id(&name(*k)) == who).unwrap();
                let result = if k < bad { fail(kind) } else { Ok(Delivered::Written) };
                if k >= bad {
                    arrived[k].get_or_insert(second);
                }
                r.handle(at(second), Event::Ended { number, result });
            }
        }
    }
    let down = told.iter().any(|a| matches!(a, Announcement::Site { down: Some(_), .. }));
    (arrived.split_off(bad), down)
}

#[test]
fn what_is_one_credentials_own_trouble_delays_no_other_however_many_have_it() {
    for kind in [
        Kind::SiteFull,
        Kind::SitePending,
        Kind::SiteUnconfirmed,
        Kind::SiteDenied,
        Kind::SiteKey,
        Kind::SiteStale,
        Kind::SiteName,
        Kind::SiteNewer,
    ] {
        for bad in [1, 4, 5, 12, 29] {
            let (arrived, down) = arrivals(kind, bad, 30);
            assert!(!down, "{kind}: {bad} of 30");
            assert!(arrived.iter().all(|at| at.is_some_and(|at| at <= 1)), "{kind}: {bad} of 30: {arrived:?}");
        }
    }
}

#[test]
fn what_may_be_the_site_but_is_a_few_credentials_delays_the_others_by_one_round() {
    for kind in [Kind::SiteError, Kind::SiteTimeout, Kind::SiteUnreachable, Kind::SiteAuth] {
        // A second one whose account is refused shows that it is ours.
        for bad in if kind == Kind::SiteAuth { 1..2 } else { 1..9 } {
            let (arrived, _) = arrivals(kind, bad, 30);
            let latest = arrived.iter().max().copied().flatten();
            assert!(arrived.iter().all(Option::is_some), "{kind}: {bad} of 30: {arrived:?}");
            assert!(latest.is_some_and(|at| at <= 16), "{kind}: {bad} of 30: {arrived:?}");
        }
    }
}

#[test]
fn a_probe_takes_the_one_that_failed_longest_ago_and_its_answer_brings_the_site_back() {
    let mut r = Replicas::new(&[Limits { in_flight: 5, ..LIMITS }]);
    for user in ["a", "b", "c", "d", "e"] {
        seen(&mut r, at(0), user, content(1, 36_000), &[0]);
    }
    for (second, (number, ..)) in drain(&mut r, at(0), &mut Vec::new()).into_iter().enumerate() {
        r.handle(at(second as u64), Event::Ended { number, result: fail(Kind::SiteError) });
    }
    // Each in its turn, although the first one is always due again.
    let mut asked = BTreeSet::new();
    let mut second = 5;
    while asked.len() < 5 {
        for (number, who, ..) in drain(&mut r, at(second), &mut Vec::new()) {
            assert!(asked.insert(who.clone()), "{who:?} again, before the others: {asked:?}");
            assert_eq!(r.site(0).1, 1, "one at a time");
            r.handle(at(second), Event::Ended { number, result: fail(Kind::SiteError) });
        }
        second += 1;
        assert!(second < 1000, "{asked:?}");
    }
}

#[test]
fn an_account_that_is_refused_is_asked_for_again_in_seconds_and_parks_the_site_with_a_second_credential() {
    let refuse = |r: &mut Replicas, second, number| {
        let mut told = Vec::new();
        r.handle(at(second), Event::Ended { number, result: fail(Kind::SiteAuth) });
        let next = drain(r, at(second), &mut told);
        (next, told.iter().any(|a| matches!(a, Announcement::Site { down: Some(Kind::SiteAuth), .. })))
    };
    let mut r = Replicas::new(&[Limits { in_flight: 1, ..LIMITS }]);
    seen(&mut r, at(0), "alice", content(1, 36_000), &[0]);
    seen(&mut r, at(0), "bob", content(1, 36_000), &[0]);
    let first = drain(&mut r, at(0), &mut Vec::new());
    let (next, down) = refuse(&mut r, 0, first[0].0);
    assert!(next.is_empty() && down, "nobody was served yet");
    let second = drain(&mut r, at(5), &mut Vec::new());
    assert!(matches!(&second[..], [(_, who, ..)] if *who != first[0].1), "in seconds, and another one: {second:?}");
    assert_eq!(refuse(&mut r, 5, second[0].0), (vec![], false));
    assert!(drain(&mut r, at(290), &mut Vec::new()).is_empty(), "two say that it is ours");
    let third = drain(&mut r, at(306), &mut Vec::new());
    r.handle(at(306), Event::Ended { number: third[0].0, result: Ok(Delivered::Written) });
    let fourth = drain(&mut r, at(306), &mut Vec::new());
    assert_eq!(fourth.len(), 1, "and it is back");
    assert!(!refuse(&mut r, 306, fourth[0].0).1, "while it serves one, the other's refusal is its own");
    assert!(!r.site(0).0);
}

#[test]
fn too_many_requests_pause_the_site_and_do_not_count_against_it() {
    let mut r = Replicas::new(&[Limits { in_flight: 6, ..LIMITS }]);
    for n in 0..7 {
        seen(&mut r, at(0), &format!("u{n}"), content(1, 36_000), &[0]);
    }
    let mut told = Vec::new();
    for (number, ..) in drain(&mut r, at(0), &mut told) {
        let result = Err(Undelivered::new(Kind::RateLimited, "").wait(Some(Duration::from_secs(20))));
        r.handle(at(0), Event::Ended { number, result });
    }
    assert!(drain(&mut r, at(19), &mut told).is_empty(), "as it wishes");
    assert_eq!(drain(&mut r, at(40), &mut told).len(), 6, "and then as before");
    assert!(!told.iter().any(|a| matches!(a, Announcement::Site { .. })), "{told:?}");
}

#[test]
fn a_credential_that_left_is_forgotten_and_its_late_answer_changes_nothing() {
    let mut r = Replicas::new(&[LIMITS]);
    seen(&mut r, at(0), "alice", content(1, 3600), &[0]);
    let first = drain(&mut r, at(0), &mut Vec::new());
    r.handle(at(1), Event::Gone { id: id("alice") });
    seen(&mut r, at(2), "bob", content(2, 3600), &[0]);
    r.handle(at(3), Event::Ended { number: first[0].0, result: Ok(Delivered::Written) });
    let row = r.replicas().next().unwrap();
    assert!(row.id == id("bob") && row.acknowledged == 0);
    assert_eq!(drain(&mut r, at(3), &mut Vec::new()).len(), 1);
}

#[derive(Debug, Clone)]
enum Step {
    Seen { user: u8, hash: u8, sites: u8 },
    Gone { user: u8 },
    End { which: usize, good: bool, have: u16 },
    Pass { secs: u16 },
    Journal { good: bool },
    Lost,
    Again { user: Option<u8>, site: Option<u8> },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..4, 0_u8..4, 0_u8..8).prop_map(|(user, hash, sites)| Step::Seen { user, hash, sites }),
        1 => (0_u8..4).prop_map(|user| Step::Gone { user }),
        6 => (0_usize..8, any::<bool>(), any::<u16>()).prop_map(|(which, good, have)| Step::End { which, good, have }),
        3 => (0_u16..400).prop_map(|secs| Step::Pass { secs }),
        1 => any::<bool>().prop_map(|good| Step::Journal { good }),
        1 => Just(Step::Lost),
        1 => (proptest::option::of(0_u8..4), proptest::option::of(0_u8..3))
            .prop_map(|(user, site)| Step::Again { user, site }),
        1 => Just(Step::Restart),
    ]
}

/// What a far end holds under a (credential, site), and the rules that no history may break.
#[derive(Default)]
struct World {
    journal: BTreeMap<CredentialId, (u64, [u8; 16])>,
    acknowledged: BTreeMap<(CredentialId, usize), u64>,
    sent: BTreeMap<(CredentialId, usize), u64>,
    confirmed: BTreeSet<(CredentialId, usize, u64)>,
    flying: BTreeMap<u64, (CredentialId, usize, u64)>,
}

impl World {
    fn turn(&mut self, r: &mut Replicas, now: Now, journal: bool) {
        for _ in 0..10_000 {
            let Some(action) = r.next_action(now) else { return };
            match action {
                Action::Record { id, generation, hash } => {
                    if journal {
                        let before = self.journal.insert(id.clone(), (generation, hash));
                        assert!(before.is_none_or(|(g, h)| g < generation || (g, h) == (generation, hash)));
                    }
                    r.handle(now, Event::Recorded { id, generation, durable: journal });
                }
                Action::Send { number, id, site, generation, content } => {
                    assert_eq!(self.journal.get(&id), Some(&(generation, content.hash)), "sent before it was durable");
                    assert!(content.expiry.is_some_and(|expiry| expiry > now.wall), "sent after its end");
                    let known = self.acknowledged.get(&(id.clone(), site));
                    assert!(known.is_none_or(|g| *g < generation), "sent again what was acknowledged");
                    let before = self.sent.insert((id.clone(), site), generation);
                    assert!(before.is_none_or(|g| g <= generation), "an older generation after a newer one");
                    let twice = self.flying.values().any(|(i, s, _)| *i == id && *s == site);
                    assert!(!twice, "two at once to one place");
                    self.flying.insert(number, (id, site, generation));
                }
                Action::Acknowledge { id, known } => {
                    let ever =
                        self.confirmed.iter().any(|(i, s, g)| *i == id && *s == known.site && *g <= known.acknowledged);
                    assert!(ever, "nobody confirmed");
                    self.acknowledged.insert((id, known.site), known.acknowledged);
                }
                Action::Announce(_) => {}
            }
        }
        panic!("it does not come to rest");
    }
}

fn user(n: u8) -> CredentialId {
    id(&format!("u{n}"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_nothing_old_follows_anything_new_and_no_failure_counts(
        steps in proptest::collection::vec(step(), 1..80)
    ) {
        let mut r = Replicas::new(&[LIMITS; 3]);
        let mut world = World::default();
        let (mut clock, mut journal) = (0_u64, true);
        let mut wants: BTreeMap<u8, (Content, Vec<usize>)> = BTreeMap::new();
        for step in steps {
            let now = at(clock);
            match step {
                Step::Seen { user: u, hash, sites } => {
                    let sites: Vec<usize> = (0..3).filter(|n| sites >> n & 1 == 1).collect();
                    // A new content is a new token; the same hash again is the same token.
                    let same = wants.get(&u).filter(|(c, _)| c.hash == [hash; 16]).map(|(c, _)| *c);
                    let content = same.unwrap_or(content(hash, clock + 3600));
                    wants.insert(u, (content, sites.clone()));
                    // A site that was taken away and comes back may get the same once more.
                    world.acknowledged.retain(|(i, site), _| *i != user(u) || sites.contains(site));
                    r.handle(now, Event::Seen { id: user(u), content, sites });
                }
                Step::Gone { user: u } => {
                    wants.remove(&u);
                    r.handle(now, Event::Gone { id: user(u) });
                    world.acknowledged.retain(|(i, _), _| *i != user(u));
                    clock += 1;
                }
                Step::End { which, good, have } => {
                    let number = world.flying.keys().nth(which).copied();
                    if let Some(number) = number {
                        let (id, site, generation) = world.flying.remove(&number).unwrap();
                        let result = match (good, have % 5) {
                            (true, 0) => Ok(Delivered::Superseded { have: generation + u64::from(have) }),
                            (true, _) => Ok(Delivered::Written),
                            (false, n) => fail([Kind::SiteTimeout, Kind::SiteAuth, Kind::SiteKey, Kind::RateLimited,
                                Kind::SiteFull][usize::from(n)]),
                        };
                        if good {
                            world.confirmed.insert((id, site, generation));
                        }
                        r.handle(now, Event::Ended { number, result });
                    }
                }
                Step::Pass { secs } => clock += u64::from(secs),
                Step::Journal { good } => journal = good,
                Step::Lost => {
                    world.flying.clear();
                    r.handle(now, Event::Lost);
                    world.turn(&mut r, now, journal);
                    r.handle(now, Event::Ready);
                }
                Step::Again { user: u, site } => {
                    // What an admin asks for again may be sent again.
                    world.acknowledged.clear();
                    r.handle(now, Event::Again { id: u.map(user), site: site.map(usize::from) });
                }
                Step::Restart => {
                    r = Replicas::new(&[LIMITS; 3]);
                    world.flying.clear();
                    clock += 1;
                    for (id, (generation, hash)) in &world.journal {
                        let known = world.acknowledged.iter().filter(|((i, _), _)| i == id)
                            .map(|((_, site), g)| known(*site, *g, clock));
                        let known = known.collect();
                        r.handle(at(clock),
                            Event::Recalled { id: id.clone(), generation: *generation, hash: *hash, known });
                    }
                    for (u, (content, sites)) in &wants {
                        r.handle(at(clock), Event::Seen { id: user(*u), content: *content, sites: sites.clone() });
                    }
                }
            }
            world.turn(&mut r, at(clock), journal);
        }
        // In a world that is well again, every live token comes to every site that wants it.
        for _ in 0..200 {
            world.turn(&mut r, at(clock), true);
            for (number, (id, site, generation)) in std::mem::take(&mut world.flying) {
                world.confirmed.insert((id, site, generation));
                r.handle(at(clock), Event::Ended { number, result: Ok(Delivered::Written) });
            }
            clock += 60;
        }
        for row in r.replicas() {
            let good = row.standing == Standing::Expired
                || row.standing == Standing::Current && row.acknowledged >= row.desired;
            prop_assert!(good, "{row:?}");
        }
    }
}

#[test]
fn a_site_is_behind_from_the_new_token_until_its_confirmation_and_over_a_restart() {
    let mut r = Replicas::new(&[LIMITS]);
    let since = |r: &Replicas| r.replicas().next().unwrap().since;
    seen(&mut r, at(0), "alice", content(1, 3600), &[0]);
    assert_eq!(since(&r), Some(at(0).wall));
    let sends = drain(&mut r, at(0), &mut Vec::new());
    // A newer one while the first is under way: from then on the site is behind on that.
    seen(&mut r, at(5), "alice", content(2, 3600), &[0]);
    assert_eq!(since(&r), Some(at(0).wall), "the first one is not there either");
    let mut told = Vec::new();
    r.handle(at(8), Event::Ended { number: sends[0].0, result: Ok(Delivered::Written) });
    let sends = drain(&mut r, at(8), &mut told);
    assert!(matches!(told[0], Announcement::Replicated { after, .. } if after == Duration::from_secs(8)), "{told:?}");
    assert_eq!(since(&r), Some(at(5).wall));
    r.handle(at(9), Event::Ended { number: sends[0].0, result: fail(Kind::SiteTimeout) });
    assert_eq!((since(&r), r.replicas().next().unwrap().last), (Some(at(5).wall), Some(Kind::SiteTimeout)));
    let sends = drain(&mut r, at(60), &mut Vec::new());
    r.handle(at(61), Event::Ended { number: sends[0].0, result: Ok(Delivered::Written) });
    assert_eq!(since(&r), None);

    let generation = u64::try_from(at(100).wall.secs()).unwrap();
    let mut r = Replicas::new(&[LIMITS]);
    let known = vec![known(0, generation - 50, 50)];
    r.handle(at(500), Event::Recalled { id: id("alice"), generation, hash: [1; 16], known });
    seen(&mut r, at(500), "alice", content(1, 3600), &[0]);
    assert_eq!(since(&r), Some(at(100).wall), "as the journal tells");
}
