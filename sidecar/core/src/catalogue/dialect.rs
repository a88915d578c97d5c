//! Which version of the records a node writes and reads: another than ours only where meshes of mixed versions are
//! simulated.
//!
//! Not here: the bytes (`mesh_proto::codec`, whose golden tests hold them). What is not understood is kept and handed on
//! whatever the dialect.

use mesh_proto::record::Body;

/// A version of the records.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub enum Dialect {
    /// The first nodes': they told of no keys, and knew nothing of demand.
    First,
    /// Ours.
    #[default]
    Ours,
    /// A later one: its records have fields behind those that we know.
    Later,
}

/// Fields that a later version may add.
const LATER_FIELDS: [u8; 5] = [3, 1, 4, 1, 5];

impl Dialect {
    /// Makes a record that we wrote one of this dialect.
    pub(super) fn write(self, body: &Body, bytes: &mut Vec<u8>) {
        match self {
            Dialect::First => {
                if let Body::Node(node) = body {
                    // The number of keys and the keys: all that was added since.
                    let length = 1 + node.keys.len() * size_of::<u32>();
                    bytes.truncate(bytes.len().saturating_sub(length));
                }
            }
            Dialect::Ours => {}
            Dialect::Later => {
                if !matches!(body, Body::Tombstone) {
                    bytes.extend_from_slice(&LATER_FIELDS);
                }
            }
        }
    }

    /// What a node of this dialect makes of a record.
    pub(super) fn read(self, body: Body) -> Body {
        match (self, body) {
            (Dialect::First, Body::Demand(_)) => Body::Unknown,
            (_, body) => body,
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_proto::{
        codec::{decode_record, encode_record},
        record::{DemandRecord, Head, NodeRecord},
    };

    use super::*;

    const HEAD: Head = Head {
        owner: 1,
        epoch: 2,
        slot: 3,
        version: 4,
    };

    fn node() -> Body {
        Body::Node(NodeRecord {
            name: "web-1".into(),
            zone: "eu-1a".into(),
            region: "eu-1".into(),
            wire_version: 1,
            left: true,
            floor: 300,
            keys: Box::default(),
        })
    }

    #[test]
    fn the_first_nodes_wrote_what_they_wrote() {
        let mut bytes = encode_record(&HEAD, &node()).expect("fits");
        Dialect::First.write(&node(), &mut bytes);
        let golden = [
            1, 1, 2, 3, 4, 5, b'w', b'e', b'b', b'-', b'1', 5, b'e', b'u', b'-', b'1', b'a', 4,
            b'e', b'u', b'-', b'1', 1, 1, 251, 1, 44,
        ];
        assert_eq!(bytes, golden);
        assert_eq!(decode_record(&bytes), Ok((HEAD, node())));
    }

    #[test]
    fn later_fields_are_passed_over() {
        let mut bytes = encode_record(&HEAD, &node()).expect("fits");
        let ours = bytes.len();
        Dialect::Later.write(&node(), &mut bytes);
        assert!(bytes.len() > ours);
        let (_, body) = decode_record(&bytes).expect("can be read");
        let Body::Node(read) = body else {
            panic!("{body:?}");
        };
        assert_eq!(&*read.name, "web-1");
    }

    #[test]
    fn the_first_nodes_knew_nothing_of_demand() {
        let demand = Body::Demand(DemandRecord {
            service: "web".into(),
            per_second: 1,
        });
        assert_eq!(Dialect::First.read(demand.clone()), Body::Unknown);
        assert_eq!(Dialect::Ours.read(demand.clone()), demand);
    }
}
