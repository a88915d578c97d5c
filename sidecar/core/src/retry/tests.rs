//! What is tried again, where, when, and what it costs.

use proptest::prelude::*;

use super::*;
use crate::staging::{at, dice};

const MS: Duration = Duration::from_millis(1);
const NOW: Verdict = Verdict::Again {
    after: Duration::ZERO,
};

fn unreachable(why: Unreachable) -> Outcome {
    Outcome::Unreachable(why)
}

struct Story {
    policy: Policy,
    budget: Budget,
    tries: Tries,
}

impl Story {
    fn new(idempotent: bool, change: impl FnOnce(&mut Policy)) -> Story {
        let mut policy = Policy::of_service("shop");
        change(&mut policy);
        let tries = Tries::start(&policy, idempotent, false, at(0));
        Story {
            policy,
            budget: Budget::default(),
            tries,
        }
    }

    fn attempt(&mut self, endpoint: u64, outcome: Outcome, sent: Sent) -> Verdict {
        self.tries.picked(endpoint, 0);
        let (budget, policy) = (&self.budget, &self.policy);
        self.tries
            .verdict(outcome, sent, budget, policy, at(1), &mut dice(1))
    }
}

#[test]
fn whoever_cannot_be_connected_to_is_replaced_at_once_the_third_time_in_another_tier() {
    for why in [
        Unreachable::Refused,
        Unreachable::ConnectTimedOut,
        Unreachable::ConnectFailed,
    ] {
        // Not even idempotent, and the policy allows no repeats: nothing was sent.
        let mut story = Story::new(false, |policy| policy.retry.retries = 0);
        assert_eq!(story.attempt(1, unreachable(why), Sent::Nothing), NOW);
        assert_eq!(story.tries.beyond_tier(), None);
        assert_eq!(story.attempt(2, unreachable(why), Sent::Nothing), NOW);
        assert_eq!(story.tries.beyond_tier(), Some(0));
        assert_eq!(
            story.attempt(3, unreachable(why), Sent::Nothing),
            Verdict::Answer
        );
        assert_eq!(story.tries.tried(), [1, 2, 3]);
        let charged = if why == Unreachable::Refused { 0 } else { 2 };
        assert_eq!(story.budget.tally(at(1)).1, charged);
    }
}

#[test]
fn connect_failures_do_not_use_up_the_policys_repeat() {
    let mut story = Story::new(true, |_| {});
    let refused = unreachable(Unreachable::Refused);
    assert_eq!(story.attempt(1, refused, Sent::Nothing), NOW);
    let gateway = Outcome::ServerFault { gateway: true };
    let again = story.attempt(2, gateway, Sent::Replayable);
    assert!(matches!(again, Verdict::Again { after } if after <= 25 * MS));
    assert_eq!(story.attempt(3, gateway, Sent::Replayable), Verdict::Answer);
}

#[test]
fn what_the_policy_repeats_is_told_by_this_table() {
    let gateway = Outcome::ServerFault { gateway: true };
    let server = Outcome::ServerFault { gateway: false };
    let broken = unreachable(Unreachable::Broken);
    let silent = unreachable(Unreachable::AnswerTimedOut);
    let full = Outcome::Overloaded {
        retry_after: Duration::from_secs(1),
    };
    type Change = fn(&mut Policy);
    let usual: Change = |_| {};
    let server_errors: Change = |p| p.retry.on.server_error = true;
    let resets: Change = |p| (p.retry.on.gateway_error, p.retry.on.reset) = (false, true);
    let posts: Change = |p| p.retry.on.non_idempotent = true;
    let off: Change = |p| p.retry.retries = 0;
    for (change, idempotent, outcome, sent, repeats) in [
        (usual, true, gateway, Sent::Replayable, true),
        (usual, true, broken, Sent::Replayable, true),
        (usual, true, silent, Sent::Replayable, true),
        (usual, true, server, Sent::Replayable, false),
        (usual, true, full, Sent::Replayable, false),
        (usual, true, Outcome::ClientFault, Sent::Replayable, false),
        (usual, true, Outcome::Success, Sent::Replayable, false),
        (usual, true, gateway, Sent::Gone, false),
        (usual, false, gateway, Sent::Replayable, false),
        (posts, false, gateway, Sent::Replayable, true),
        (server_errors, true, server, Sent::Replayable, true),
        (resets, true, gateway, Sent::Replayable, false),
        (resets, true, broken, Sent::Replayable, true),
        (off, true, gateway, Sent::Replayable, false),
        // Promised to have done nothing: safe for anybody, unless the body is gone.
        (
            off,
            false,
            unreachable(Unreachable::NotProcessed),
            Sent::Replayable,
            true,
        ),
        (
            off,
            false,
            unreachable(Unreachable::NotProcessed),
            Sent::Gone,
            false,
        ),
    ] {
        let verdict = Story::new(idempotent, change).attempt(1, outcome, sent);
        let got = matches!(verdict, Verdict::Again { .. });
        assert_eq!(
            got, repeats,
            "{outcome:?} {sent:?} idempotent: {idempotent}"
        );
    }
}

#[test]
fn whether_faults_are_repeated_is_known_before_one_is_seen() {
    let faults = [true, false].map(|gateway| Outcome::ServerFault { gateway });
    for bits in 0..32 {
        let is = |bit: u32| bits & 1 << bit != 0;
        let policy = |policy: &mut Policy| {
            policy.retry.on.gateway_error = is(0);
            policy.retry.on.server_error = is(1);
            policy.retry.on.non_idempotent = is(2);
            policy.retry.retries = u8::from(is(3));
        };
        let told = Story::new(is(4), policy);
        let told = told.tries.repeats_faults(&told.policy);
        let repeats = faults.map(|fault| {
            let mut story = Story::new(is(4), policy);
            let verdict = story.attempt(1, fault, Sent::Replayable);
            let is_used_up = !story.tries.repeats_faults(&story.policy);
            assert!(is_used_up || verdict == Verdict::Answer, "{bits:05b}");
            verdict != Verdict::Answer
        });
        assert_eq!(told, repeats.contains(&true), "{bits:05b}");
    }
    let policy = Policy::of_service("shop");
    let of_a_repeat = Tries::start(&policy, true, true, at(0));
    assert!(!of_a_repeat.repeats_faults(&policy));
}

#[test]
fn a_connection_found_dead_is_replaced_once_for_nothing() {
    let broken = unreachable(Unreachable::Broken);
    let stale = |body| Sent::Stale { body };
    let mut story = Story::new(false, |policy| policy.retry.retries = 0);
    assert_eq!(story.attempt(1, broken, stale(false)), NOW);
    assert_eq!(
        story.tries.tried(),
        [],
        "the endpoint itself may be asked again"
    );
    assert_eq!(story.attempt(1, broken, stale(false)), Verdict::Answer);
    assert_eq!(story.budget.tally(at(1)), (0, 0));
    let mut posted = Story::new(false, |_| {});
    assert_eq!(posted.attempt(1, broken, stale(true)), Verdict::Answer);
    let mut put = Story::new(true, |_| {});
    assert_eq!(put.attempt(1, broken, stale(true)), NOW);
}

#[test]
fn a_request_that_is_a_repeat_already_is_repeated_on_connect_failure_only() {
    let policy = Policy::of_service("shop");
    let budget = Budget::default();
    for (why, want) in [
        (Unreachable::Refused, NOW),
        (Unreachable::Broken, Verdict::Answer),
        (Unreachable::NotProcessed, Verdict::Answer),
    ] {
        let mut tries = Tries::start(&policy, true, true, at(0));
        tries.picked(1, 0);
        let verdict = tries.verdict(
            unreachable(why),
            Sent::Replayable,
            &budget,
            &policy,
            at(1),
            &mut dice(1),
        );
        assert_eq!(verdict, want, "{why:?}");
    }
}

#[test]
fn nothing_is_repeated_that_could_not_be_answered_in_time() {
    let mut story = Story::new(true, |policy| {
        policy.timeouts.request = MS;
        policy.retry.per_try = Some(10 * MS);
    });
    assert_eq!(story.tries.attempt_deadline(at(0)), at(1));
    let broken = unreachable(Unreachable::Broken);
    assert_eq!(story.attempt(1, broken, Sent::Replayable), Verdict::Answer);
    assert_eq!(story.budget.tally(at(1)).1, 0);
    story.tries.hasten(at(500));
    assert_eq!(story.tries.deadline(), at(1));
}

#[test]
fn a_canary_that_fails_is_made_again_elsewhere_and_costs_nothing() {
    let silent = unreachable(Unreachable::AnswerTimedOut);
    let mut story = Story::new(true, |policy| policy.retry.retries = 0);
    story.tries.picked(1, 0);
    story.tries.as_canary(1_000 * MS);
    assert_eq!(story.tries.attempt_deadline(at(0)), at(1_000));
    let (budget, policy) = (&story.budget, &story.policy);
    let verdict = story.tries.verdict(
        silent,
        Sent::Replayable,
        budget,
        policy,
        at(1_000),
        &mut dice(1),
    );
    assert_eq!(verdict, NOW);
    assert_eq!(story.budget.tally(at(1_000)).1, 0);
    // The next attempt is one like any other.
    let verdict = story.attempt(2, silent, Sent::Replayable);
    assert_eq!(verdict, Verdict::Answer);
    assert_eq!(story.tries.attempt_deadline(at(0)), at(15_000));
    let mut post = Story::new(false, |_| {});
    post.tries.picked(1, 0);
    post.tries.as_canary(1_000 * MS);
    assert_eq!(post.tries.attempt_deadline(at(0)), at(15_000));
}

#[test]
fn the_second_repeat_goes_to_another_tier() {
    let mut story = Story::new(true, |policy| policy.retry.retries = 2);
    let gateway = Outcome::ServerFault { gateway: true };
    story.attempt(1, gateway, Sent::Replayable);
    assert_eq!(story.tries.beyond_tier(), None);
    story.attempt(2, gateway, Sent::Replayable);
    assert_eq!(story.tries.beyond_tier(), Some(0));
    assert_eq!(story.attempt(3, gateway, Sent::Replayable), Verdict::Answer);
    assert_eq!(story.tries.attempts(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_budget_is_never_exceeded(
        steps in proptest::collection::vec((0_u64..2_000, 0_u32..20, 0_u32..20), 1..200),
    ) {
        let rules = Retry::default();
        let budget = Budget::default();
        let (mut asked, mut granted) = (Vec::new(), Vec::new());
        let mut now = at(0);
        for (millis, requests, repeats) in steps {
            now = now + MS * millis as u32;
            for _ in 0..requests {
                budget.request(now);
                asked.push(now);
            }
            let second = now.as_nanos() / 1_000_000_000;
            let within = |m: &&Moment| m.as_nanos() / 1_000_000_000 + 10 > second;
            let requests = asked.iter().filter(within).count() as f64;
            let allowed = requests * rules.budget_share + rules.budget_per_second * 10.0;
            for _ in 0..repeats {
                let before = granted.iter().filter(within).count() as f64;
                let grant = budget.take(&rules, now);
                // Neither one too many nor one too few.
                prop_assert_eq!(grant, before + 1.0 <= allowed);
                if grant {
                    granted.push(now);
                }
            }
        }
    }
}
