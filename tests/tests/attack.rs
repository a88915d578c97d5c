//! A stranger without the key: a short attack on a mesh of real sidecars.
//!
//! Not here: the long one at full rate (`tests/gossip/attack`).

use std::time::Duration;

use mesh_tests::attack::{self, Plan};

/// Heap that a sidecar may still come to need when it meets each kind of datagram for the first time.
const GROWTH_KIB_MAX: u64 = 4_096;

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_changes_nothing_learns_nothing_and_stops_nothing() {
    let plan = Plan {
        nodes: 3,
        victims: 3,
        rate: 4_000,
        duration: Duration::from_secs(3),
    };
    let report = attack::run(plan).await;
    let told = report.to_json();
    println!("{told}");
    assert!(report.sent.values().all(|count| *count > 500), "{told}");
    assert!(report.read > report.aimed / 2, "{told}");
    for reason in ["malformed", "key", "tag", "replayed", "version"] {
        assert!(
            report.refused.contains_key(reason),
            "never {reason}: {told}"
        );
    }
    assert_eq!(report.answers, 0, "{told}");
    assert!(report.changes.is_empty(), "{told}");
    let [before, most, _] = report.memory_kib;
    assert!(most <= before + GROWTH_KIB_MAX, "{told}");
    // The change and the crash were awaited by the run itself.
}
