//! Who gossips: id, address, bump; implements `foca::Identity`.
//!
//! Not here: names, zones and everything else that may change (the node's record carries it).

use std::net::SocketAddr;

/// One member as SWIM knows it.
///
/// Nothing but what finds and orders it: foca drops what is in flight to an identity that changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Random, drawn at a machine's first start.
    pub id: u64,
    /// Where its gossip is reached, UDP and TCP.
    pub address: SocketAddr,
    /// Grows at every start and every renewal; the higher one is the living one.
    pub bump: u64,
}

impl foca::Identity for Member {
    type Addr = u64;

    /// The same member after it was declared down: Down cannot be refuted, so it comes back under the next bump.
    fn renew(&self) -> Option<Member> {
        Some(Member {
            bump: self.bump.checked_add(1)?,
            ..*self
        })
    }

    // foca asks every member for it, for every packet: a call across crates is most of that.
    #[inline]
    fn addr(&self) -> u64 {
        self.id
    }

    /// The address breaks a tie, so that every member keeps the same one of two.
    fn win_addr_conflict(&self, other: &Member) -> bool {
        (self.bump, self.address) > (other.bump, other.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foca::Identity;

    #[test]
    fn a_renewed_member_wins_over_its_old_self() {
        let old = Member {
            id: 7,
            address: ([127, 0, 0, 1], 7946).into(),
            bump: 3,
        };
        let new = old.renew().expect("not at the end of its bumps");
        assert_eq!(new.addr(), old.addr());
        assert!(new.win_addr_conflict(&old) && !old.win_addr_conflict(&new));
        assert_eq!(
            Member {
                bump: u64::MAX,
                ..old
            }
            .renew(),
            None
        );
    }
}
