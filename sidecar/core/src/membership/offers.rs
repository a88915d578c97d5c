//! Our own records: slots, versions, tombstones, and the one rate at which they change.
//!
//! Not here: other nodes' records (`catalogue.rs`) and how ours travel (`rumours.rs`).

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use mesh_proto::{
    codec::{CodecError, decode_record, encode_record},
    frame::KeyId,
    record::{Body, DemandRecord, Head, NODE_SLOT, NodeRecord, ServiceRecord},
};

use crate::{catalogue::SLOTS_MAX, moment::Moment};

/// A tombstone is told for this long: whoever was away shorter still learns what was taken back.
pub const TOMBSTONE_TIME: Duration = Duration::from_secs(3_600);

/// Between writing everything alive anew and declaring the rest void: ample for every exchange to carry it.
const BURIAL_TIME: Duration = Duration::from_secs(300);

type Name = (Box<str>, Box<str>);

/// What this node says of itself.
#[derive(Debug)]
pub struct Offers {
    /// Our id.
    pub id: u64,
    /// The start we write under; raised only if somebody knows records of a later one.
    pub epoch: u64,
    node: NodeRecord,
    services: BTreeMap<Name, Slot>,
    demands: BTreeMap<Box<str>, (u32, DemandRecord)>,
    slot_next: u32,
    version: u64,
    /// Slots to write, by the next flush.
    unsaid: Vec<u32>,
    tombstones: VecDeque<(Moment, u32)>,
    /// Slots of tombstones that go with the next floor; they count until then.
    buried: Vec<u32>,
    /// The floor to raise next, and since when everything alive is written above it.
    burial: Option<(Moment, u64)>,
}

#[derive(Debug)]
struct Slot {
    number: u32,
    record: ServiceRecord,
}

impl Offers {
    /// Nothing offered yet, but who we are is to be said.
    pub fn new(id: u64, epoch: u64, node: NodeRecord) -> Offers {
        Offers {
            id,
            epoch,
            node,
            services: BTreeMap::new(),
            demands: BTreeMap::new(),
            slot_next: NODE_SLOT + 1,
            version: 0,
            unsaid: vec![NODE_SLOT],
            tombstones: VecDeque::new(),
            buried: Vec::new(),
            burial: None,
        }
    }

    /// Offers an instance or says anew how it is.
    ///
    /// # Errors
    /// `TooLong` if the record is over the bound of a record, or there are too many of them.
    pub fn offer(&mut self, record: ServiceRecord) -> Result<(), CodecError> {
        let name = (record.service.clone(), record.instance.clone());
        // The widest numbers a head can take, so that a record that fits now fits in every version.
        let widest = Head {
            owner: u64::MAX,
            epoch: u64::MAX,
            slot: u32::MAX,
            version: u64::MAX,
        };
        let bytes = encode_record(&widest, &Body::Service(record.clone()))?;
        // What we cannot read ourselves, nobody can: better told here than missed there.
        if !matches!(decode_record(&bytes), Ok((_, Body::Service(_)))) {
            return Err(CodecError::TooLong);
        }
        if let Some(slot) = self.services.get_mut(&name) {
            if slot.record != record {
                slot.record = record;
                self.unsaid.push(slot.number);
            }
            return Ok(());
        }
        let number = self.new_slot()?;
        self.services.insert(name, Slot { number, record });
        self.unsaid.push(number);
        Ok(())
    }

    fn new_slot(&mut self) -> Result<u32, CodecError> {
        let said = self.services.len() + self.demands.len();
        let taken = said + self.tombstones.len() + self.buried.len();
        if taken + 1 >= SLOTS_MAX {
            // What is written next there replaces the tombstone, and takes back what that took back just as well.
            let oldest = (self.buried.pop())
                .or_else(|| self.tombstones.pop_front().map(|(_, number)| number));
            return oldest.ok_or(CodecError::TooLong);
        }
        let number = self.slot_next;
        self.slot_next += 1;
        Ok(number)
    }

    /// Says what our applications ask of a service; at 0 the record is kept, because it will be needed again.
    ///
    /// # Errors
    /// `TooLong` if there are too many records.
    pub fn demand(&mut self, record: DemandRecord) -> Result<(), CodecError> {
        if let Some((slot, held)) = self.demands.get_mut(&record.service) {
            if *held != record {
                *held = record;
                self.unsaid.push(*slot);
            }
            return Ok(());
        }
        let number = self.new_slot()?;
        let service = record.service.clone();
        self.demands.insert(service, (number, record));
        self.unsaid.push(number);
        Ok(())
    }

    /// Takes back what was said of the demand for a service.
    pub fn forget_demand(&mut self, service: &str, now: Moment) {
        if let Some((number, _)) = self.demands.remove(service) {
            self.unsaid.push(number);
            self.tombstones.push_back((now, number));
        }
    }

    /// Takes an instance back.
    pub fn withdraw(&mut self, service: &str, instance: &str, now: Moment) {
        if let Some(slot) = self.services.remove(&(service.into(), instance.into())) {
            self.unsaid.push(slot.number);
            self.tombstones.push_back((now, slot.number));
        }
    }

    /// Says which gossip keys we hold, the one we seal with first.
    pub fn set_keys(&mut self, keys: Box<[KeyId]>) {
        if self.node.keys != keys {
            self.node.keys = keys;
            self.unsaid.push(NODE_SLOT);
        }
    }

    /// Says goodbye.
    pub fn leave(&mut self) {
        self.node.left = true;
        self.unsaid.push(NODE_SLOT);
    }

    /// Somebody knows records of ours that we never wrote in this start: start over above them.
    pub fn rise_above(&mut self, epoch: u64) {
        self.epoch = self.epoch.max(epoch.saturating_add(1));
        self.tombstones.clear();
        self.buried.clear();
        self.burial = None;
        self.node.floor = 0;
        self.unsaid = self.slots();
    }

    /// Says everything anew.
    pub fn say_again(&mut self) {
        self.unsaid = self.slots();
    }

    /// The head of a record that nobody here understands, in a slot of its own.
    ///
    /// # Errors
    /// `TooLong` if there are too many records.
    pub fn claim(&mut self) -> Result<Head, CodecError> {
        let slot = self.new_slot()?;
        self.version += 1;
        Ok(Head {
            owner: self.id,
            epoch: self.epoch,
            slot,
            version: self.version,
        })
    }

    fn slots(&self) -> Vec<u32> {
        let services = self.services.values().map(|slot| slot.number);
        let demands = self.demands.values().map(|(slot, _)| *slot);
        services.chain(demands).chain([NODE_SLOT]).collect()
    }

    /// Whether something is to be said.
    pub fn is_unsaid(&self) -> bool {
        !self.unsaid.is_empty()
    }

    /// Lets old tombstones go: first everything alive is written anew, and once that has reached everybody the floor
    /// is raised above the rest.
    pub fn bury(&mut self, now: Moment) {
        if let Some((since, floor)) = self.burial {
            if now.since(since) >= BURIAL_TIME {
                self.node.floor = floor;
                self.unsaid.push(NODE_SLOT);
                self.burial = None;
                self.buried.clear();
            }
            return;
        }
        let is_old = |tombstone: &(Moment, u32)| now.since(tombstone.0) >= TOMBSTONE_TIME;
        if !self.tombstones.front().is_some_and(is_old) {
            return;
        }
        while let Some((_, number)) = self.tombstones.pop_front_if(|tombstone| is_old(tombstone)) {
            self.buried.push(number);
        }
        self.burial = Some((now, self.version));
        let young: Vec<u32> = self.tombstones.iter().map(|(_, slot)| *slot).collect();
        self.unsaid = [self.slots(), young].concat();
    }

    /// Everything unsaid, each with its next version.
    pub fn flush(&mut self) -> Vec<(Head, Body)> {
        let mut slots = std::mem::take(&mut self.unsaid);
        slots.sort_unstable();
        slots.dedup();
        let written = slots.into_iter().map(|slot| {
            self.version += 1;
            let head = Head {
                owner: self.id,
                epoch: self.epoch,
                slot,
                version: self.version,
            };
            let service = self.services.values().find(|held| held.number == slot);
            let demand = self.demands.values().find(|(number, _)| *number == slot);
            let body = match (slot, service, demand) {
                (NODE_SLOT, ..) => Body::Node(self.node.clone()),
                (_, Some(held), _) => Body::Service(held.record.clone()),
                (_, None, Some((_, record))) => Body::Demand(record.clone()),
                (_, None, None) => Body::Tombstone,
            };
            (head, body)
        });
        written.collect()
    }

    /// Who we say we are.
    pub fn node(&self) -> &NodeRecord {
        &self.node
    }

    /// Whether another's copy of one of our records is beyond anything we wrote.
    pub fn is_beyond(&self, head: &Head) -> bool {
        (head.epoch, head.version) > (self.epoch, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Catalogue, Content};
    use mesh_proto::record::{Health, InstanceState, WireProtocol};

    fn service(name: &str) -> ServiceRecord {
        ServiceRecord {
            service: name.into(),
            instance: "1".into(),
            address: ([10, 0, 0, 1], 80).into(),
            protocol: WireProtocol::Http,
            weight: 100,
            health: Health::Passing,
            state: InstanceState::Up,
            started_at_ms: 1,
            capacity: None,
            tags: BTreeMap::new(),
        }
    }

    fn offers() -> Offers {
        let node = NodeRecord {
            name: "n".into(),
            zone: "a".into(),
            region: "r".into(),
            wire_version: 1,
            left: false,
            floor: 0,
            keys: Box::default(),
        };
        Offers::new(1, 9, node)
    }

    #[test]
    fn a_record_of_many_short_tags_can_be_read_by_others() {
        let tag = |n: u32| (n.to_string().into(), "x".into());
        let mut record = service("web");
        record.tags = (0..60).map(tag).collect();
        let mut offers = offers();
        offers.offer(record.clone()).expect("short enough");
        let said = offers.flush();
        let (head, body) = said.last().expect("said");
        let bytes = encode_record(head, body).expect("fits");
        assert_eq!(decode_record(&bytes), Ok((*head, Body::Service(record))));
    }

    fn flush_into(offers: &mut Offers, catalogue: &mut Catalogue) -> usize {
        let written = offers.flush();
        let count = written.len();
        for (head, body) in written {
            catalogue.write(head, body).expect("fits");
        }
        count
    }

    #[test]
    fn many_short_lives_leave_room_for_the_next_one() {
        let mut offers = offers();
        let mut catalogue = Catalogue::default();
        for count in 0..SLOTS_MAX + 10 {
            let name = format!("job-{count}");
            offers.offer(service(&name)).expect("room");
            flush_into(&mut offers, &mut catalogue);
            offers.withdraw(&name, "1", Moment::START);
            flush_into(&mut offers, &mut catalogue);
        }
        assert!(catalogue.len() <= SLOTS_MAX);
        // What lives is never given up for what is new.
        for count in 0..SLOTS_MAX - 1 {
            offers.offer(service(&count.to_string())).expect("room");
        }
        let one_more = offers.offer(service("one more"));
        assert_eq!(one_more, Err(CodecError::TooLong));
        flush_into(&mut offers, &mut catalogue);
        assert_eq!(catalogue.len(), SLOTS_MAX);
    }

    #[test]
    fn saying_the_same_again_writes_nothing() {
        let mut offers = offers();
        let mut catalogue = Catalogue::default();
        offers.offer(service("web")).expect("fits");
        assert_eq!(flush_into(&mut offers, &mut catalogue), 2);
        offers.offer(service("web")).expect("fits");
        assert_eq!(flush_into(&mut offers, &mut catalogue), 0);
    }

    #[test]
    fn a_tombstone_goes_after_its_time_and_takes_nothing_living_along() {
        let mut offers = offers();
        let mut catalogue = Catalogue::default();
        offers.offer(service("web")).expect("fits");
        offers.offer(service("old")).expect("fits");
        flush_into(&mut offers, &mut catalogue);
        offers.withdraw("old", "1", Moment::START);
        flush_into(&mut offers, &mut catalogue);
        assert_eq!(catalogue.len(), 3);
        for time in [TOMBSTONE_TIME, TOMBSTONE_TIME + BURIAL_TIME] {
            offers.bury(Moment::START + time);
            flush_into(&mut offers, &mut catalogue);
        }
        let left: Vec<_> = (catalogue.owner(1).expect("ours").entries())
            .map(|(_, entry)| entry.content.clone())
            .collect();
        assert_eq!(left.len(), 2);
        assert!(!left.contains(&Content::Tombstone));
    }
}
