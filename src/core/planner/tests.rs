//! The planner's rules (DESIGN §2, 1–8) as properties over random histories of a small world.
//! The file is long: each rule has its property, over the same histories, and its corners in small beside it.

mod world;

use proptest::prelude::*;

use super::*;
use world::{HOUR, MINUTE, Mood, Note, Op, SECOND, World, issuer_of};

const PLENTY: Limits = Limits { in_flight: 50, per_second: 50 };

/// The longest waits of all: half of the longest life for a token that seems younger than it is, because the clock was
/// set back before a reload read its file, and an hour between slow retries.
const SETTLED: u64 = 5 * HOUR;

/// What a reload makes of the providers: it adds, removes, and moves them to other indices.
const RELOADS: [&[usize]; 7] = [&[0, 1], &[1, 0], &[2, 0, 1], &[0, 2, 1], &[1, 2, 0], &[1], &[2, 0]];

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(32)
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::TopEmpty, Kind::TopNotUtf8, Kind::TopSealed, Kind::TopUnreadable])
}

fn moods() -> impl Strategy<Value = Mood> {
    prop_oneof![
        3 => Just(Mood::Well),
        2 => Just(Mood::Dead),
        1 => Just(Mood::Hanging),
        2 => Just(Mood::Failing),
        2 => (1..20 * MINUTE).prop_map(Mood::Limiting),
        1 => Just(Mood::RefusesClient),
        1 => Just(Mood::Restricts),
    ]
}

/// Waits, most of them long enough for something to happen.
fn waits() -> impl Strategy<Value = Op> {
    prop_oneof![0..200_u64, 0..30 * SECOND, 0..2 * HOUR].prop_map(Op::Wait)
}

/// Everything that users, admins, disks, couriers, issuers and clocks do.
fn anything() -> impl Strategy<Value = Op> {
    let who = 0..6_usize;
    prop_oneof![
        12 => waits(),
        2 => who.clone().prop_map(Op::Scan),
        1 => Just(Op::FullScan),
        6 => (who.clone(), any::<bool>()).prop_map(|(who, hint)| Op::Store(who, hint)),
        3 => (who.clone(), any::<bool>()).prop_map(|(who, hint)| Op::StoreAnew(who, hint)),
        1 => (who.clone(), kinds(), any::<bool>()).prop_map(|(who, kind, hint)| Op::StoreBad(who, kind, hint)),
        2 => (who.clone(), any::<bool>()).prop_map(|(who, hint)| Op::Remove(who, hint)),
        1 => who.clone().prop_map(Op::RemoveUser),
        1 => (who.clone(), any::<bool>()).prop_map(|(who, hint)| Op::LoseUse(who, hint)),
        2 => (-86_400_000..86_400_000_i64).prop_map(Op::Step),
        4 => (0..2_usize, moods()).prop_map(|(issuer, mood)| Op::Mood(issuer, mood)),
        2 => (who.clone(), moods()).prop_map(|(who, mood)| Op::CredentialMood(who, mood)),
        1 => who.clone().prop_map(Op::Revoke),
        1 => any::<bool>().prop_map(Op::DiskFull),
        2 => any::<bool>().prop_map(Op::KeepTrouble),
        1 => any::<bool>().prop_map(Op::PublishTrouble),
        2 => Just(Op::CourierDies),
        2 => who.prop_map(Op::Renew),
        2 => Just(Op::Repeat),
        2 => prop::sample::select(RELOADS.to_vec()).prop_map(|providers| Op::Reload(providers.to_vec())),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    (1..4_u32, 1..4_u32).prop_map(|(in_flight, per_second)| Limits { in_flight, per_second })
}

fn worlds() -> impl Strategy<Value = World> {
    let lifetimes = prop::sample::select(vec![5 * MINUTE, 20 * MINUTE, HOUR, 6 * HOUR]);
    ([limits(), limits()], [lifetimes.clone(), lifetimes], 0..20 * MINUTE)
        .prop_map(|(limits, lifetimes, refresh)| World::new(6, limits, lifetimes, refresh))
}

fn scripts() -> impl Strategy<Value = Vec<Op>> {
    let all = (0..6).map(|who| Op::Store(who, who % 2 == 0)).collect::<Vec<_>>();
    prop::collection::vec(anything(), 0..40).prop_map(move |ops| [all.clone(), ops].concat())
}

/// All stored, all well, and each left in peace.
fn peaceful(lifetimes: [u64; 2], refresh: u64) -> World {
    let mut world = World::new(6, [PLENTY; 2], lifetimes, refresh);
    (0..6).for_each(|who| world.op(&Op::Store(who, true)));
    world
}

fn of<T>(history: &[(u64, Note)], pick: impl Fn(&Note) -> Option<T>) -> Vec<(u64, T)> {
    history.iter().filter_map(|(at, note)| pick(note).map(|t| (*at, t))).collect()
}

fn starts_of(history: &[(u64, Note)], one: usize) -> Vec<u64> {
    of(history, |note| matches!(note, Note::Started { who, .. } if *who == one).then_some(()))
        .iter()
        .map(|s| s.0)
        .collect()
}

impl World {
    fn dead_but_usable(&self) -> Vec<usize> {
        self.dead().into_iter().filter(|&who| self.is_usable(who)).collect()
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "World {{ {} }}", self.describe())
    }
}

#[test]
fn what_was_seen_before_we_wrote_tells_nothing_of_the_refresh_token_that_is_there_now() {
    let id = CredentialId::from_base(UserName::parse("alice").unwrap(), "grid").unwrap();
    let top = |ino: u8| {
        let mtime_ns = i64::from(ino) * 1_000_000;
        Identity { ino: ino.into(), size: 3, mtime_ns, hash: [5; 16] }
    };
    let end = |seconds: i64| Timestamp::from_secs(1_700_000_000 + seconds);
    let at = |tick| Now { wall: end(0).plus(Duration::from_millis(tick)), tick: Tick(tick) };
    let mut planner = Planner::new(&[PLENTY], Duration::from_secs(20));
    let look = |planner: &mut Planner, as_of, top, refresh_ends| {
        let found = Found { id: id.clone(), provider: 0, top: Ok(top), use_file: None, refresh_ends, top_newer: true };
        let event = Event::Scanned { user: id.user.clone(), as_of: Tick(as_of), found: vec![found] };
        planner.handle(at(as_of + 5), event);
        while planner.next_action(at(as_of + 5)).is_some() {}
    };
    let renewed = |planner: &mut Planner, tick, number, kept, refresh_lifetime| {
        planner.handle(at(tick), Event::Renew { id: id.clone() });
        while planner.next_action(at(tick)).is_some() {}
        let lifetime = Duration::from_secs(3600);
        let brought = Brought { lifetime, refresh_lifetime, rotated: true, flagged: None };
        planner.handle(at(tick), Event::Answered { number, result: Ok(brought) });
        planner.handle(at(tick + 1), Event::Kept { number, identity: kept, stored_anew: false });
        planner.handle(at(tick + 2), Event::Published { number });
        while planner.next_action(at(tick + 2)).is_some() {}
    };
    let told = |planner: &Planner| {
        let row = planner.rows(at(0), None).next().unwrap();
        (row.refresh_token_expires, row.rolling)
    };
    let stored = |planner: &Planner| {
        let row = planner.rows(at(0), None).next().unwrap();
        (row.stored == row.approved, row.approved)
    };
    look(&mut planner, 1, top(1), Some(end(90_000)));
    // The issuer tells the end of what it gave.
    renewed(&mut planner, 1_800_000, 1, top(2), Some(Duration::from_secs(200_000)));
    let after = told(&planner);
    assert_eq!(after, (Some(end(201_800)), Some(true)));
    look(&mut planner, 1_799_999, top(1), Some(end(90_000)));
    assert_eq!(told(&planner), after, "a look from before is late");
    // It does not: the refresh token itself does, once somebody looks.
    renewed(&mut planner, 3_600_000, 2, top(3), None);
    assert_eq!(told(&planner), after);
    look(&mut planner, 3_600_010, top(3), Some(end(201_801)));
    assert_eq!(told(&planner), (Some(end(201_800)), Some(false)));
    assert_eq!(stored(&planner), (false, Some(top(1).changed())), "nobody approved since");
    // Somebody stores another one: nothing is known of whether its end moves.
    look(&mut planner, 3_700_000, top(4), Some(end(201_801)));
    assert_eq!(told(&planner), (Some(end(201_801)), None));
}

fn seen(base: &str, provider: usize, n: u64) -> Found {
    let id = CredentialId::from_base(UserName::parse("alice").unwrap(), base).unwrap();
    let top = Ok(Identity { ino: n, size: 1, mtime_ns: 0, hash: [0; 16] });
    Found { id, provider, top, use_file: None, refresh_ends: None, top_newer: false }
}

fn exchanges(planner: &mut Planner, now: Now) -> Vec<(u64, usize)> {
    let actions = std::iter::from_fn(|| planner.next_action(now));
    actions
        .filter_map(|action| match action {
            Action::Exchange { number, provider, .. } => Some((number, provider)),
            _ => None,
        })
        .collect()
}

/// All of a user's, looked at just now.
fn look(planner: &mut Planner, now: Now, user: &str, found: Vec<Found>) {
    let user = UserName::parse(user).unwrap();
    let own = |found: Found| Found { id: CredentialId { user: user.clone(), ..found.id }, ..found };
    let found = found.into_iter().map(own).collect();
    planner.handle(now, Event::Scanned { user: user.clone(), as_of: now.tick, found });
}

/// Who is asked for, in this order, one at a time; each is refused.
fn order(planner: &mut Planner, now: Now, most: usize) -> Vec<String> {
    let mut order = Vec::new();
    while order.len() < most
        && let Some(action) = planner.next_action(now)
    {
        if let Action::Exchange { number, id, .. } = action {
            order.push(id.to_string());
            let result = Err(Failure { kind: Kind::Restricted, retry_after: None, rotated: false });
            planner.handle(now, Event::Answered { number, result });
        }
    }
    order
}

#[test]
fn rule_5_one_users_thousands_of_new_ones_stand_behind_everybody_else() {
    let limits = Limits { in_flight: 1, per_second: 100_000 };
    let mut planner = Planner::new(&[limits], Duration::ZERO);
    let now = Now { wall: Timestamp(1_000_000_000), tick: Tick(1000) };
    let many = |from: u64| (0..5000).map(|n| seen(&format!("grid_{n}"), 0, from + n)).collect::<Vec<_>>();
    look(&mut planner, now, "mallory", many(1));
    // Stored again, the places stay; swept and stored again, the turns taken stay taken.
    look(&mut planner, now, "mallory", many(10_000));
    look(&mut planner, now, "mallory", Vec::new());
    look(&mut planner, now, "mallory", many(20_000));
    planner.roster.check();
    let past = crate::core::use_file::Use { issued: Some(Timestamp(0)), expiry: Some(Timestamp(1_000_700_000)) };
    look(&mut planner, now, "renewed", vec![Found { use_file: Some(past), ..seen("grid", 0, 2) }]);
    look(&mut planner, now, "new", vec![seen("grid", 0, 3), seen("grid_x", 0, 4)]);
    let asked = order(&mut planner, now, 10);
    assert_eq!(asked[..3], ["new/grid", "new/grid_x", "renewed/grid"], "{asked:?}");
    assert!(
        asked[3..].iter().all(|id| id.starts_with("mallory/")),
        "and when nobody else waits, it goes on: {asked:?}"
    );
    look(&mut planner, now, "mallory", Vec::new());
    look(&mut planner, now, "new", Vec::new());
    assert_eq!(planner.roster.with_turns(), 2);
    let later = Now { tick: Tick(1000 + 2 * HOUR), ..now };
    order(&mut planner, later, usize::MAX);
    assert_eq!(planner.roster.with_turns(), 0, "nothing is remembered of those who stored long ago");
}

#[test]
fn rule_5_a_user_with_a_few_new_ones_goes_before_renewals_and_takes_turns_with_other_users() {
    let limits = Limits { in_flight: 1, per_second: 100_000 };
    let mut planner = Planner::new(&[limits], Duration::ZERO);
    let now = Now { wall: Timestamp(1_000_000_000), tick: Tick(1000) };
    let past = crate::core::use_file::Use { issued: Some(Timestamp(0)), expiry: Some(Timestamp(1_000_700_000)) };
    look(&mut planner, now, "renewed", vec![Found { use_file: Some(past), ..seen("grid", 0, 2) }]);
    let many = (0..30).map(|n| seen(&format!("grid_{n}"), 0, 100 + n)).collect::<Vec<_>>();
    look(&mut planner, now, "busy", many);
    look(&mut planner, now, "new", vec![seen("grid", 0, 3), seen("grid_x", 0, 4)]);
    let asked = order(&mut planner, now, 33);
    let place = |id: &str| asked.iter().position(|asked| asked == id).unwrap();
    assert!(place("new/grid") <= 1 && place("new/grid_x") <= 3, "{asked:?}");
    assert_eq!(place("renewed/grid"), 22, "after twenty of one user and both of the other: {asked:?}");
}

#[test]
fn rule_5_a_token_that_would_expire_goes_before_new_ones() {
    let limits = Limits { in_flight: 1, per_second: 100_000 };
    for (lifetime, left, first) in [
        (24 * HOUR, 9 * MINUTE, "renewed/grid"),
        (24 * HOUR, 11 * MINUTE, "new/grid"),
        (MINUTE, 5 * SECOND, "renewed/grid"),
        (MINUTE, 15 * SECOND, "new/grid"),
    ] {
        let mut planner = Planner::new(&[limits], Duration::ZERO);
        let now = Now { wall: Timestamp(1_000_000_000), tick: Tick(1000) };
        let expiry = now.wall.plus(Duration::from_millis(left));
        let issued = expiry.minus(Duration::from_millis(lifetime));
        let used = crate::core::use_file::Use { issued: Some(issued), expiry: Some(expiry) };
        // The one before has expired: it can wait for those that would.
        let over = crate::core::use_file::Use {
            issued: Some(Timestamp(0)),
            expiry: Some(now.wall.minus(Duration::from_secs(1))),
        };
        look(&mut planner, now, "over", vec![Found { use_file: Some(over), ..seen("grid", 0, 1) }]);
        look(&mut planner, now, "renewed", vec![Found { use_file: Some(used), ..seen("grid", 0, 2) }]);
        look(&mut planner, now, "new", vec![seen("grid", 0, 3)]);
        let asked = order(&mut planner, now, 3);
        assert_eq!(asked[0], first, "{left} of {lifetime}: {asked:?}");
    }
}

/// Two hours after a start: bob's new ones always fail so, alice's token is good and falls due. When she was asked for.
fn beside_bad_ones(bad: u64, kind: Kind) -> Vec<u64> {
    let mut planner = Planner::new(&[PLENTY], Duration::ZERO);
    let at = |tick: u64| Now { wall: Timestamp(1_700_000_000_000 + i64::try_from(tick).unwrap()), tick: Tick(tick) };
    let (issued, lifetime) = (at(0).wall, Duration::from_secs(1800));
    let used = crate::core::use_file::Use { issued: Some(issued), expiry: Some(issued.plus(lifetime)) };
    look(&mut planner, at(1), "alice", vec![Found { use_file: Some(used), ..seen("grid", 0, 1) }]);
    look(&mut planner, at(1), "bob", (0..bad).map(|n| seen(&format!("grid_{n}"), 0, 10 + n)).collect());
    let mut asked = Vec::new();
    let mut tick = 1;
    while tick < 2 * HOUR {
        while let Some(action) = planner.next_action(at(tick)) {
            match action {
                Action::Exchange { number, id, .. } if id.user.as_str() == "alice" => {
                    asked.push(tick);
                    let brought = Brought { lifetime, refresh_lifetime: None, rotated: false, flagged: None };
                    planner.handle(at(tick), Event::Answered { number, result: Ok(brought) });
                }
                Action::Exchange { number, .. } => {
                    let failure = Failure { kind, retry_after: None, rotated: false };
                    planner.handle(at(tick), Event::Answered { number, result: Err(failure) });
                }
                Action::Publish { number, .. } => planner.handle(at(tick), Event::Published { number }),
                _ => {}
            }
        }
        let wait = planner.next_deadline(at(tick)).as_millis();
        tick += u64::try_from(wait).unwrap().max(1);
    }
    asked
}

#[test]
fn rule_5_new_ones_that_always_fail_keep_no_renewal_from_an_issuer_that_is_well() {
    let kinds = [Kind::ServerError, Kind::Timeout, Kind::ClientRefused, Kind::TlsSetup, Kind::RateLimited];
    for (bad, kind) in [1, 2, 5, 8, 30].into_iter().flat_map(|bad| kinds.map(|kind| (bad, kind))) {
        let asked = beside_bad_ones(bad, kind);
        assert!(asked.len() >= 4, "{bad} with {kind}: {asked:?}");
        let late = asked.windows(2).find(|pair| pair[1] - pair[0] >= 30 * MINUTE);
        assert!(late.is_none() && asked[0] < 30 * MINUTE, "{bad} with {kind}: {asked:?}");
    }
}

#[test]
fn what_was_wrong_with_a_top_for_a_moment_does_not_park_it() {
    let at = |tick| Now { wall: Timestamp(1_700_000_000_000 + i64::try_from(tick).unwrap()), tick: Tick(tick) };
    for kind in Kind::ALL.iter().copied().filter(|kind| kind.class() == Class::Input) {
        let mut planner = Planner::new(&[PLENTY], Duration::ZERO);
        look(&mut planner, at(1), "alice", vec![seen("grid", 0, 1)]);
        let (number, _) = exchanges(&mut planner, at(1))[0];
        let result = Err(Failure { kind, retry_after: None, rotated: false });
        planner.handle(at(1), Event::Answered { number, result });
        assert_eq!(exchanges(&mut planner, at(5 * MINUTE + 1)).len(), usize::from(kind.passes()), "{kind}");
        // A look that finds it as it was changes nothing.
        look(&mut planner, at(6 * MINUTE), "alice", vec![seen("grid", 0, 1)]);
        planner.roster.check();
    }
}

#[test]
fn a_reload_goes_on_from_what_was_known_unless_the_provider_changed() {
    let at = |tick: u64| Now { wall: Timestamp(1_700_000_000_000 + i64::try_from(tick).unwrap()), tick: Tick(tick) };
    let fresh = |tick: u64| {
        let issued = at(tick).wall;
        Some(crate::core::use_file::Use { issued: Some(issued), expiry: Some(issued.plus(Duration::from_secs(7200))) })
    };
    for same in [true, false] {
        let mut planner = Planner::new(&[PLENTY], Duration::ZERO);
        let lives = |planner: &mut Planner, from: u64, to: u64| {
            let mut asked = Vec::new();
            let mut tick = from;
            while tick < to {
                while let Some(action) = planner.next_action(at(tick)) {
                    match action {
                        Action::Exchange { number, id, .. } => {
                            asked.push((id.user.to_string(), tick));
                            let fail = |kind, wait: u64| {
                                let retry_after = Some(Duration::from_secs(wait));
                                Err(Failure { kind, retry_after, rotated: false })
                            };
                            let result = match id.user.as_str() {
                                "parked" => fail(Kind::Revoked, 0),
                                "retrying" => fail(Kind::Restricted, 3000),
                                _ => Ok(Brought {
                                    lifetime: Duration::from_secs(7200),
                                    refresh_lifetime: Some(Duration::from_secs(100_000)),
                                    rotated: false,
                                    flagged: Some(Kind::ScopeShortfall),
                                }),
                            };
                            planner.handle(at(tick), Event::Answered { number, result });
                        }
                        Action::Publish { number, .. } => planner.handle(at(tick), Event::Published { number }),
                        _ => {}
                    }
                }
                tick += u64::try_from(planner.next_deadline(at(tick)).as_millis()).unwrap().max(1);
            }
            asked
        };
        for (n, user) in ["good", "parked", "retrying"].into_iter().enumerate() {
            look(&mut planner, at(1), user, vec![seen("grid", 0, n as u64)]);
        }
        lives(&mut planner, 1, 2 * MINUTE);
        let mut after = Planner::new(&[PLENTY], Duration::ZERO);
        after.inherit(at(2 * MINUTE), &planner, []);
        after.expect(Tick(2 * MINUTE), planner, |_| Some(same));
        for (n, user) in ["good", "parked", "retrying"].into_iter().enumerate() {
            let use_file = if user == "good" { fresh(1) } else { None };
            look(&mut after, at(2 * MINUTE), user, vec![Found { use_file, ..seen("grid", 0, n as u64) }]);
        }
        let asked = lives(&mut after, 2 * MINUTE, 40 * MINUTE);
        assert_eq!(asked.is_empty(), same, "nobody is asked for before the time: {asked:?}");
        let rows: BTreeMap<String, Row<'_>> =
            after.rows(at(40 * MINUTE), None).map(|row| (row.id.user.to_string(), row)).collect();
        let good = rows["good"];
        assert_eq!((good.generation, good.flagged), (1, Some(Kind::ScopeShortfall)), "{good:?}");
        assert!(good.renewed.is_some() && good.refresh_token_expires.is_some(), "{good:?}");
        let parked = rows["parked"].error.unwrap();
        assert_eq!(
            (rows["parked"].state, parked.0, parked.2),
            (crate::core::snapshot::State::Parked, Kind::Revoked, 2)
        );
        // Another `.top` ends it, as ever.
        look(&mut after, at(40 * MINUTE), "parked", vec![seen("grid", 0, 99)]);
        assert_eq!(exchanges(&mut after, at(40 * MINUTE)).len(), 1);
    }
}

#[test]
fn a_credential_that_is_seen_with_another_provider_is_asked_for_there_whatever_it_waits_for() {
    let at = |tick| Now { wall: Timestamp(1_000_000_000 + i64::try_from(tick).unwrap()), tick: Tick(tick) };
    let told = |tick, provider| {
        let found = vec![seen("grid", provider, 1)];
        (at(tick), Event::Scanned { user: UserName::parse("alice").unwrap(), as_of: Tick(tick), found })
    };
    let fail = |kind| Err(Failure { kind, retry_after: None, rotated: false });
    // Nobody's at first, as after a reload that knew no provider of its service.
    for (before, result) in [(usize::MAX, None), (0, Some(Kind::TopNoToken)), (0, Some(Kind::Network)), (0, None)] {
        let mut planner = Planner::new(&[PLENTY; 2], Duration::ZERO);
        let (now, event) = told(1, before);
        planner.handle(now, event);
        if let Some(kind) = result {
            let (number, provider) = exchanges(&mut planner, now)[0];
            assert_eq!(provider, 0);
            planner.handle(now, Event::Answered { number, result: fail(kind) });
        }
        let (now, event) = told(2, 1);
        planner.handle(now, event);
        planner.roster.check();
        let asked = exchanges(&mut planner, at(HOUR));
        assert_eq!(asked.iter().map(|a| a.1).collect::<Vec<_>>(), [1], "{before} {result:?}");
    }
}

proptest! {
    // `PROPTEST_CASES=5000` for a long run.
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    // Always on, in every history: one exchange at a time and one wait for each credential, the budgets, the refresh
    // token before the access token, its own answer beside each `.top`, no dropped refresh token (see `World`).

    #[test]
    fn rule_1_full_scans_alone_bring_what_lost_hints_would_have(ops in scripts(), mut world in worlds()) {
        let deaf = ops.into_iter().map(|op| match op {
            Op::Store(who, _) => Op::Store(who, false),
            Op::StoreAnew(who, _) => Op::StoreAnew(who, false),
            Op::StoreBad(who, kind, _) => Op::StoreBad(who, kind, false),
            Op::Remove(who, _) => Op::Remove(who, false),
            Op::LoseUse(who, _) => Op::LoseUse(who, false),
            op => op,
        });
        world.run(&deaf.collect::<Vec<_>>(), 0);
        world.calm();
        world.pass(SETTLED);
        prop_assert_eq!(world.dead_but_usable(), Vec::<usize>::new());
        prop_assert_eq!(world.known(), world.stored(), "what is there is known, what is gone is forgotten");
    }

    #[test]
    fn rule_2_the_answer_for_one_top_never_comes_beside_another(ops in scripts(), mut world in worlds()) {
        world.run(&ops, HOUR);
        // The token that was spent for a `.use` is the one of the last request of its credential.
        let mut asked = BTreeMap::new();
        for (_, note) in &world.history {
            match *note {
                Note::Asked { who, token, .. } => drop(asked.insert(who, token)),
                Note::OnDisk { who, spent, .. } => prop_assert_eq!(asked.get(&who), Some(&spent)),
                _ => {}
            }
        }
    }

    #[test]
    fn rule_3_a_rotated_refresh_token_is_durable_before_its_access_token_is_visible(
        ops in scripts(),
        mut world in worlds(),
    ) {
        world.run(&ops, HOUR);
        let mut kept = BTreeSet::new();
        for (_, note) in &world.history {
            match *note {
                Note::KeptOnDisk { token, .. } => drop(kept.insert(token)),
                Note::OnDisk { rotated: Some(token), .. } => prop_assert!(kept.contains(&token)),
                _ => {}
            }
        }
    }

    #[test]
    fn rule_3_no_refresh_token_is_lost_but_with_a_courier(ops in scripts(), mut world in worlds()) {
        world.run(&ops, 0);
        world.calm();
        world.pass(2 * MINUTE);
        let mut orphaned = world.orphaned();
        // What is on its way at that moment has its place soon.
        world.pass(10 * SECOND);
        let still = world.orphaned();
        orphaned.retain(|token| still.contains(token));
        prop_assert_eq!(orphaned, Vec::<u64>::new());
    }

    #[test]
    fn rule_4_a_renewal_comes_at_half_of_the_life_and_leaves_the_floor(
        life in (10 * SECOND)..(24 * HOUR),
        refresh in 0..(20 * MINUTE),
    ) {
        let mut world = peaceful([life; 2], refresh);
        world.pass(life * 5);
        let floor = (2 * refresh).max(10 * MINUTE);
        for who in 0..6 {
            let starts = starts_of(&world.history, who);
            prop_assert!(starts.len() >= 8, "{} renewals in five lives", starts.len());
            for gap in starts.windows(2).map(|pair| pair[1] - pair[0]) {
                // The exchange itself takes some 70 ms.
                prop_assert!(gap <= life * 11 / 20 + 200, "{gap} of {life}");
                if life >= 2 * floor {
                    prop_assert!(life - gap + 200 >= floor, "{gap} of {life} leaves less than {floor}");
                    prop_assert!(gap >= (life * 9 / 20).min(life - floor), "{gap} of {life}");
                } else {
                    prop_assert!(gap >= life * 9 / 20, "{gap} of {life}");
                }
            }
        }
    }

    #[test]
    fn rule_4_five_tries_fit_before_expiry_when_renewals_begin_to_fail(life in (2 * MINUTE)..(24 * HOUR), who in 0..6_usize) {
        let mut world = peaceful([life; 2], 0);
        world.pass(SECOND);
        let published = world.now;
        world.op(&Op::CredentialMood(who, Mood::Failing));
        world.pass(life);
        let tries = starts_of(&world.history, who).into_iter().filter(|at| (published..published + life - 200).contains(at));
        prop_assert!(tries.count() >= 6, "the renewal and five more");
    }

    #[test]
    fn rule_4_no_retry_comes_before_it_was_announced_or_before_retry_after(ops in scripts(), mut world in worlds()) {
        world.run(&ops, HOUR);
        let mut not_before = BTreeMap::new();
        let mut paused = [0; 2];
        for (at, note) in &world.history {
            match *note {
                Note::Failed { who, kind, next_in: Some(next_in) } if kind != Kind::PublishFailed => {
                    not_before.insert(who, at + next_in);
                }
                Note::Changed { who } => drop(not_before.remove(&who)),
                Note::Answered { issuer, failure: Some(failure), .. } if failure.kind == Kind::RateLimited => {
                    let wait = u64::try_from(failure.retry_after.unwrap().as_millis()).unwrap();
                    paused[issuer] = paused[issuer].max(at + wait);
                }
                Note::Reloaded => {
                    not_before.clear();
                    paused = [0; 2];
                }
                Note::Started { who, issuer } => {
                    prop_assert!(*at >= not_before.get(&who).copied().unwrap_or(0), "{who} at {at}");
                    prop_assert!(*at >= paused[issuer], "issuer {issuer} at {at}: it said {}", paused[issuer]);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn rule_5_a_new_top_goes_first_then_the_soonest_expiry(
        lives in prop::collection::vec(prop::option::of(1..100_000_i64), 2..30),
        in_flight in 1..5_u32,
    ) {
        // All due at once: some have no token yet, the others one whose life is over.
        let limits = Limits { in_flight, per_second: 1000 };
        let mut planner = Planner::new(&[limits], Duration::ZERO);
        let now = |tick| Now { wall: Timestamp(1_000_000_000), tick: Tick(tick) };
        for (n, &past) in lives.iter().enumerate() {
            let id = CredentialId::from_base(UserName::parse(&format!("u{n}")).unwrap(), "a").unwrap();
            let identity = Identity { ino: n as u64, size: 1, mtime_ns: 0, hash: [0; 16] };
            let use_file = past.map(|past| crate::core::use_file::Use {
                issued: Some(Timestamp(0)),
                expiry: Some(Timestamp(1_000_000_000 - past)),
            });
            let found = Found { id: id.clone(), provider: 0, top: Ok(identity), use_file, refresh_ends: None, top_newer: false };
            planner.handle(now(1), Event::Scanned { user: id.user, as_of: Tick(1), found: vec![found] });
        }
        let (mut order, mut tick) = (Vec::new(), 1);
        while order.len() < lives.len() {
            while let Some(action) = planner.next_action(now(tick)) {
                if let Action::Exchange { number, identity, .. } = action {
                    order.push(usize::try_from(identity.ino).unwrap());
                    let failure = Failure { kind: Kind::Restricted, retry_after: None, rotated: false };
                    planner.handle(now(tick), Event::Answered { number, result: Err(failure) });
                }
            }
            tick += 1;
        }
        let rank = |&n: &usize| lives[n].map_or((false, 0), |past| (true, -past));
        prop_assert!(order.is_sorted_by_key(rank), "{order:?} of {lives:?}");
    }

    #[test]
    fn rule_5_whatever_one_issuer_does_changes_nothing_for_the_other(
        script in prop::collection::vec(prop_oneof![2 => waits(), 1 => moods().prop_map(|mood| Op::Mood(0, mood))], 1..20),
        lifetimes in prop::sample::select(vec![[5 * MINUTE; 2], [20 * MINUTE, 5 * MINUTE], [HOUR, 6 * HOUR]]),
        tight in limits(),
    ) {
        let run = |moody: bool| {
            let mut world = World::new(6, [tight, PLENTY], lifetimes, 0);
            (0..6).for_each(|who| world.op(&Op::Store(who, true)));
            let ops = script.iter().filter(|op| moody || !matches!(op, Op::Mood(..))).cloned().collect::<Vec<_>>();
            world.run(&ops, HOUR);
            (0..6).filter(|&who| issuer_of(who) == 1).map(|who| starts_of(&world.history, who)).collect::<Vec<_>>()
        };
        prop_assert_eq!(run(true), run(false));
    }

    #[test]
    fn rule_5_whatever_one_credential_meets_changes_nothing_for_the_others(
        script in prop::collection::vec(
            prop_oneof![
                2 => waits(),
                // What an issuer does to one credential alone: a 429 or a refusal of our client is about all.
                1 => prop::sample::select(vec![Mood::Dead, Mood::Hanging, Mood::Failing, Mood::Restricts])
                    .prop_map(|mood| Op::CredentialMood(0, mood)),
                1 => Just(Op::Revoke(0)),
                1 => kinds().prop_map(|kind| Op::StoreBad(0, kind, true)),
                1 => Just(Op::Store(0, true)),
                1 => Just(Op::Remove(0, true)),
                1 => Just(Op::Renew(0)),
            ],
            1..20,
        ),
    ) {
        let run = |bad: bool| {
            let mut world = peaceful([20 * MINUTE, HOUR], 0);
            let ops = script.iter().filter(|op| bad || matches!(op, Op::Wait(_))).cloned().collect::<Vec<_>>();
            world.run(&ops, HOUR);
            (1..6).map(|who| starts_of(&world.history, who)).collect::<Vec<_>>()
        };
        prop_assert_eq!(run(true), run(false));
    }

    #[test]
    fn rule_6_a_refusal_parks_only_after_a_second_one_a_minute_later_and_until_the_top_changes(
        ops in scripts(),
        mut world in worlds(),
    ) {
        world.run(&ops, HOUR);
        let mut refused: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        let mut parked = BTreeSet::new();
        for (at, note) in &world.history {
            match *note {
                Note::Answered { who, failure, .. } => match failure.map(|f| f.kind.class()) {
                    Some(Class::Refused) => refused.entry(who).or_default().push(*at),
                    None => drop(refused.remove(&who)),
                    Some(_) => {}
                },
                Note::Parked { who, kind } => {
                    prop_assert_eq!(kind.class(), Class::Refused);
                    let times = refused.get(&who).map_or(&[][..], Vec::as_slice);
                    prop_assert!(times.iter().any(|first| at - first >= MINUTE), "{who} at {at}: {times:?}");
                    parked.insert(who);
                }
                Note::Changed { who } => {
                    refused.remove(&who);
                    parked.remove(&who);
                }
                Note::Reloaded => parked.clear(),
                Note::Started { who, .. } => prop_assert!(!parked.contains(&who), "{who} is parked"),
                _ => {}
            }
        }
    }

    #[test]
    fn rule_6_a_parked_credential_is_asked_for_again_when_an_admin_says_renew(who in 0..6_usize) {
        let mut world = peaceful([20 * MINUTE, HOUR], 0);
        world.pass(SECOND);
        world.run(&[Op::Revoke(who), Op::Wait(6 * HOUR)], 0);
        let parked = of(&world.history, |note| matches!(note, Note::Parked { who: w, .. } if *w == who).then_some(()));
        prop_assert_eq!(parked.len(), 1);
        let before = starts_of(&world.history, who).len();
        world.run(&[Op::Renew(who)], SECOND);
        prop_assert_eq!(starts_of(&world.history, who).len(), before + 1);
    }

    #[test]
    fn rule_6_a_refused_client_parks_its_provider_with_one_alarm_and_rare_probes(
        ops in scripts(),
        mut world in worlds(),
        hours in 1..6_u64,
    ) {
        world.run(&ops, 0);
        world.calm();
        world.pass(2 * HOUR);
        let from = world.history.len();
        (0..6).for_each(|who| world.op(&Op::Store(who, true)));
        world.op(&Op::Mood(0, Mood::RefusesClient));
        world.pass(hours * HOUR);
        let history = &world.history[from..];
        let alarms = of(history, |note| match note {
            Note::Issuer { issuer: 0, down } => Some(*down),
            _ => None,
        });
        prop_assert_eq!(alarms.iter().map(|alarm| alarm.1).collect::<Vec<_>>(), vec![Some(Kind::ClientRefused)]);
        let probes = of(history, |n| matches!(n, Note::Started { issuer: 0, .. }).then_some(()));
        let after: Vec<u64> = probes.iter().map(|probe| probe.0).filter(|at| *at > alarms[0].0).collect();
        prop_assert!(after.windows(2).all(|pair| pair[1] - pair[0] >= 5 * MINUTE), "{after:?}");
    }

    #[test]
    fn rule_6_one_credential_for_which_the_client_is_refused_stops_nobody_else(
        life in prop::sample::select(vec![20 * MINUTE, HOUR, 6 * HOUR]),
        from_the_start: bool,
        mood in prop::sample::select(vec![Mood::RefusesClient, Mood::Failing]),
        bad in 0..6_usize,
    ) {
        let mut world = if from_the_start {
            let mut world = World::new(6, [PLENTY; 2], [life; 2], 0);
            world.op(&Op::CredentialMood(bad, mood));
            (0..6).for_each(|who| world.op(&Op::Store(who, true)));
            world.pass(HOUR);
            world
        } else {
            let mut world = peaceful([life; 2], 0);
            world.pass(MINUTE);
            world.op(&Op::CredentialMood(bad, mood));
            world
        };
        for _ in 0..100 {
            world.pass(life / 10);
            prop_assert!(world.dead().iter().all(|who| *who == bad), "{:?} died of {bad}", world.dead());
        }
        let parked = of(&world.history, |n| matches!(n, Note::Issuer { down: Some(Kind::ClientRefused), .. }).then_some(()));
        prop_assert!(parked.len() <= 1, "parked {} times", parked.len());
    }

    #[test]
    fn rule_7_no_step_of_the_wall_clock_lets_a_token_expire_or_causes_more_than_one_renewal(
        steps in prop::collection::vec((0..HOUR, prop_oneof![-200_000_000_000..200_000_000_000_i64, -5000..5000_i64]), 0..10),
        life in prop::sample::select(vec![MINUTE, 20 * MINUTE, HOUR, 6 * HOUR]),
    ) {
        let mut world = peaceful([life; 2], 0);
        world.pass(SECOND);
        for (wait, step) in &steps {
            let end = world.now + wait;
            while world.now < end {
                world.pass((end - world.now).min(MINUTE / 2));
                prop_assert_eq!(world.dead(), Vec::<usize>::new());
            }
            world.op(&Op::Step(*step));
        }
        world.pass(life);
        prop_assert_eq!(world.dead(), Vec::<usize>::new());
        let most = world.now / (life * 9 / 20) + 1 + steps.len() as u64;
        for who in 0..6 {
            prop_assert!(starts_of(&world.history, who).len() as u64 <= most);
        }
    }

    #[test]
    fn rule_8_what_the_planner_asks_for_never_takes_a_file_away(ops in scripts(), mut world in worlds()) {
        // `World::perform` names every action, and none of them has anything to delete.
        for op in &ops {
            world.op(op);
            let before = world.visible();
            world.pass(10 * MINUTE);
            let after = world.visible();
            prop_assert!(before.is_subset(&after), "{before:?} became {after:?}");
        }
    }

    #[test]
    fn what_left_is_told_as_forgotten_also_if_it_did_around_a_reload(ops in scripts(), mut world in worlds()) {
        // `World::announce` holds that each is told once, after it was seen.
        world.run(&ops, 0);
        world.calm();
        world.pass(HOUR);
        prop_assert_eq!(&world.shown, &world.stored());
        world.op(&Op::Remove(0, false));
        world.op(&Op::RemoveUser(2));
        world.op(&Op::Reload(vec![1, 0]));
        world.pass(HOUR);
        prop_assert_eq!(&world.shown, &world.stored());
    }

    #[test]
    fn once_all_is_well_again_every_usable_credential_is_renewed_and_stays_so(ops in scripts(), mut world in worlds()) {
        world.run(&ops, 0);
        world.calm();
        world.pass(SETTLED);
        for _ in 0..60 {
            world.pass(MINUTE);
            prop_assert_eq!(world.dead_but_usable(), Vec::<usize>::new());
        }
    }
}
