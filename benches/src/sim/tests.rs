//! Small clusters under each fault. What is asserted of times is virtual: the same on every machine.

use std::time::Duration;

use super::{Churn, Lie, Report, Restart, Scenario, SlowRack, run};

const MIB: u64 = 1 << 20;

/// Plays it; a failure names the seed that replays it.
fn play(scenario: &Scenario, seed: u64) -> Report {
    let report = run(&Scenario { seed, limit: Duration::from_secs(300), ..scenario.clone() });
    assert!(report.is_good(), "{report}");
    report
}

fn small() -> Scenario {
    Scenario::crowd(200, 64 * MIB)
}

#[test]
fn a_seed_replays_to_the_last_event_and_another_one_does_not() {
    let scenario = Scenario {
        churn: Some(Churn { every: Duration::from_millis(100), back: Duration::from_secs(1), deaths: 5 }),
        ..Scenario::crowd(20, 32 * MIB)
    };
    let (once, again, other) = (play(&scenario, 7), play(&scenario, 7), play(&scenario, 8));
    assert_eq!(once.repeatable(), again.repeatable());
    assert_ne!(once.fingerprint, other.fingerprint);
}

#[test]
fn ten_peers_share_one_copy_from_the_origin() {
    for seed in 1..4 {
        let report = play(&Scenario::crowd(10, 256 * MIB), seed);
        assert!(report.origin_copies <= 1.02 && report.ratio <= 1.5, "{report}");
    }
}

#[test]
fn leases_add_up_what_the_origin_sends_on_a_connection() {
    let together = Scenario::named("leases", None).unwrap();
    let alone = play(&Scenario { peers: 1, ..together.clone() }, 1);
    let together = play(&together, 1);
    assert!(together.makespan * 2.0 < alone.makespan, "{alone}\n{together}");
    assert!(together.origin_copies <= 1.1, "{together}");
}

#[test]
fn two_hundred_peers_share_one_copy_from_the_origin() {
    let report = play(&small(), 1);
    assert!(report.origin_copies <= 1.05, "{report}");
}

#[test]
fn many_small_files_come_to_all() {
    let files = (0..20).map(|n| (n % 5 + 1) * MIB / 2).collect();
    play(&Scenario { files, ..Scenario::crowd(10, 0) }, 1);
}

#[test]
fn late_joiners_get_it_from_those_that_have_it() {
    let report = play(&Scenario { late: 100, later: Duration::from_secs(4), ..small() }, 1);
    assert!(report.origin_copies <= 1.05, "{report}");
}

#[test]
fn peers_that_die_and_come_back_cost_no_client_an_error() {
    let churn = Churn { every: Duration::from_millis(100), back: Duration::from_secs(2), deaths: 20 };
    play(&Scenario { churn: Some(churn), ..small() }, 1);
}

#[test]
fn a_slow_rack_does_not_hold_up_the_others_more_than_its_own_links_do() {
    let slow = SlowRack { peers: 20, factor: 0.2 };
    let report = play(&Scenario { slow: Some(slow), ..small() }, 1);
    assert!(report.origin_copies <= 1.5, "{report}");
}

#[test]
fn lost_packets_only_slow_the_links_down() {
    play(&Scenario { loss: 0.1, ..small() }, 1);
}

#[test]
fn wrong_pieces_are_refused_and_their_sender_is_blamed() {
    let report = play(&Scenario { liars: 3, lie: Lie::Pieces, ..small() }, 1);
    assert!(report.refused_pieces > 0 && report.blames >= report.refused_pieces, "{report}");
    assert_eq!(report.mismatches, 0, "{report}");
}

#[test]
fn wrong_digests_are_found_out_by_the_name_of_the_content_and_all_clients_end_with_right_bytes() {
    for (seed, peers) in [(1, 4), (2, 12), (3, 20)] {
        let report = play(&Scenario { liars: 1, lie: Lie::Digests, ..Scenario::crowd(peers, 128 * MIB) }, seed);
        assert!(report.mismatches > 0, "{report}");
        // Read once, read once more together, and what is disputed a third time.
        assert!(report.origin_copies <= 2.5, "{report}");
    }
}

#[test]
fn a_peer_that_answers_nothing_costs_the_others_seconds_at_most() {
    let honest = play(&small(), 1);
    let report = play(&Scenario { liars: 3, lie: Lie::Silence, ..small() }, 1);
    assert!(report.makespan < honest.makespan + 15.0, "{honest}\n{report}");
}

#[test]
fn a_scheduler_that_dies_in_the_middle_costs_no_client_an_error() {
    let restart = Restart { at: Duration::from_millis(1_000), down: Duration::from_secs(2) };
    play(&Scenario { restart: Some(restart), ..Scenario::crowd(50, 256 * MIB) }, 1);
}

#[test]
fn every_scenario_has_a_name_that_is_known() {
    assert!(Scenario::NAMES.iter().all(|name| Scenario::named(name, Some(40)).is_some_and(|it| it.name == *name)));
    assert!(Scenario::named("unknown", None).is_none());
}
