//! News on its way: records waiting to be told to a few peers at a time, bad news first.
//!
//! Not here: which records are news (`catalogue.rs`), and the exchange that repairs what rumours miss (`exchange.rs`).
//! This stands in for foca's custom broadcasts, which cannot put failing instances first, keep an item that never fits
//! for ever, and send each with probes that churn can crowd out.

use std::sync::Arc;

use mesh_proto::{codec::ITEM_HEAD_BYTES, record::Head};

/// Records waiting; beyond it the ones told most often make room, and exchanges repair the rest.
pub const RUMOURS_MAX: usize = 4_096;

/// Records on their way.
#[derive(Debug, Default)]
pub struct Rumours {
    waiting: Vec<Rumour>,
}

#[derive(Debug)]
struct Rumour {
    owner: u64,
    slot: u32,
    bytes: Arc<[u8]>,
    urgent: bool,
    told: u32,
}

impl Rumours {
    /// Takes up a record; an older one of the same slot is told no more.
    pub fn push(&mut self, head: &Head, bytes: Arc<[u8]>, urgent: bool) {
        self.waiting
            .retain(|rumour| (rumour.owner, rumour.slot) != (head.owner, head.slot));
        if self.waiting.len() >= RUMOURS_MAX {
            let most_told = (self.waiting.iter().enumerate())
                .max_by_key(|(_, rumour)| (!rumour.urgent, rumour.told));
            if let Some((at, _)) = most_told {
                self.waiting.swap_remove(at);
            }
        }
        self.waiting.push(Rumour {
            owner: head.owner,
            slot: head.slot,
            bytes,
            urgent,
            told: 0,
        });
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// What fits into `room` bytes of items: urgent ones first, then those told least. Each is told `times` in all.
    pub fn take(&mut self, mut room: usize, times: u32) -> Vec<Arc<[u8]>> {
        let mut taken = Vec::new();
        if self.waiting.is_empty() {
            return taken;
        }
        self.waiting
            .sort_by_key(|rumour| (rumour.told, !rumour.urgent));
        // Urgent news leads, but not for ever: once it was told a few times, fresh news goes before it.
        self.waiting
            .sort_by_key(|rumour| !(rumour.urgent && rumour.told < times / 2));
        for rumour in &mut self.waiting {
            let need = rumour.bytes.len() + ITEM_HEAD_BYTES;
            if need <= room {
                room -= need;
                rumour.told += 1;
                taken.push(rumour.bytes.clone());
            }
        }
        self.waiting.retain(|rumour| rumour.told < times);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(owner: u64, slot: u32) -> Head {
        Head {
            owner,
            epoch: 1,
            slot,
            version: 1,
        }
    }

    #[test]
    fn urgent_news_goes_first_and_each_is_told_its_times() {
        let mut rumours = Rumours::default();
        for slot in 0..9 {
            rumours.push(&head(1, slot), vec![slot as u8; 100].into(), slot == 8);
        }
        let first = rumours.take(250, 4);
        assert_eq!(first.len(), 2);
        assert_eq!(first[0][0], 8);
        let mut told = first.len();
        while !rumours.is_empty() {
            told += rumours.take(250, 4).len();
        }
        assert_eq!(told, 9 * 4);
    }

    #[test]
    fn the_queue_is_bounded_and_keeps_one_record_a_slot() {
        let mut rumours = Rumours::default();
        for owner in 0..2 * RUMOURS_MAX as u64 {
            rumours.push(&head(owner, 1), vec![0; 4].into(), false);
            rumours.push(&head(owner, 1), vec![1; 4].into(), false);
        }
        assert_eq!(rumours.len(), RUMOURS_MAX);
    }
}
