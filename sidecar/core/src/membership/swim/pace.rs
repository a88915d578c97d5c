//! How hasty the gossip is, and how foca is set up for it.
//!
//! Not here: what it is used for (`swim.rs`).

use std::{
    num::{NonZeroU8, NonZeroUsize},
    time::Duration,
};

use foca::Config;
use mesh_proto::frame::PAYLOAD_BYTES_MAX;

use super::{FANOUT, FORGET_AFTER};

/// What foca may put into one datagram: our hash, a question, a suspicion and item heads go beside it.
const FOCA_BYTES_MAX: usize = PAYLOAD_BYTES_MAX - 96;

/// How hasty the gossip is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// One member is probed per period.
    pub period: Duration,
    /// A direct answer is waited for so long before others are asked to probe.
    pub patience: Duration,
    /// A suspect has at least so long to refute.
    pub suspicion: Duration,
    /// Whoever is left alone waits so long for peers that do not even refuse.
    pub calm: Duration,
}

impl Pace {
    /// A crash is known to all within about 3 s.
    pub const FAST: Pace = Pace {
        period: Duration::from_millis(500),
        patience: Duration::from_millis(200),
        suspicion: Duration::from_secs(2),
        calm: Duration::from_secs(5),
    };

    /// A crash is known to all within about 8 s; half the traffic.
    pub const CALM: Pace = Pace {
        period: Duration::from_secs(1),
        patience: Duration::from_millis(500),
        suspicion: Duration::from_secs(4),
        calm: Duration::from_secs(10),
    };

    /// Silence from everybody for so long means that it is we who are cut off.
    pub fn deaf_after(&self) -> Duration {
        self.period * 3
    }

    pub(super) fn config(&self, members: usize) -> Config {
        let largest = NonZeroUsize::new(FOCA_BYTES_MAX).expect("a datagram has room");
        Config {
            probe_period: self.period,
            probe_rtt: self.patience,
            num_indirect_probes: NonZeroUsize::new(FANOUT).expect("not zero"),
            max_transmissions: NonZeroU8::new(transmissions(members)).expect("at least 10"),
            suspect_to_down_after: self.suspicion,
            remove_down_after: Some(FORGET_AFTER),
            max_packet_size: largest,
            notify_down_members: true,
            periodic_announce: None,
            periodic_announce_to_down_members: None,
            // The membership's own tick does it, together with the records on their way.
            periodic_gossip: None,
        }
    }
}

/// How often one piece of news is told by each member.
///
/// A node misses what each of the others tells so often, to somebody drawn, with a probability of e to the minus of it.
/// So of every 20,000 pieces of news one is missed by anybody, however many they are; with the count of memberlist (4 for
/// each decimal digit of their number) it would be one in 50 among 64.
pub fn transmissions(members: usize) -> u8 {
    let times = 10.0 + (members.max(1) as f64).ln();
    times.ceil() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_members_the_more_often_news_is_told() {
        let times = [0, 1, 3, 64, 1_000, 16_000].map(transmissions);
        assert_eq!(times, [10, 10, 12, 15, 17, 20]);
    }
}
