//! Bytes of records: head, kind and body.
//!
//! Not here: which record is the newer one (`catalogue.rs` of the core).

use std::collections::BTreeMap;

use super::{CodecError, Decode, Encode, decode, encode, packets::WireAddress};
use crate::{
    RECORD_BYTES_MAX,
    frame::{KEYS_MAX, KeyId},
    record::{
        Body, DemandRecord, Head, Health, InstanceState, NodeRecord, ServiceRecord, WireProtocol,
    },
};

const KIND_NODE: u8 = 1;
const KIND_SERVICE: u8 = 2;
const KIND_TOMBSTONE: u8 = 3;
const KIND_DEMAND: u8 = 4;

#[derive(Encode, Decode)]
struct WireHead {
    kind: u8,
    owner: u64,
    epoch: u64,
    slot: u32,
    version: u64,
}

#[derive(Encode, Decode)]
struct WireNode {
    name: String,
    zone: String,
    region: String,
    wire_version: u8,
    left: bool,
    floor: u64,
}

#[derive(Encode, Decode)]
struct WireService {
    service: String,
    instance: String,
    address: WireAddress,
    protocol: u8,
    weight: u16,
    health: u8,
    state: u8,
    started_at_ms: u64,
    capacity: Option<u32>,
    tags: Vec<(String, String)>,
}

#[derive(Encode, Decode)]
struct WireDemand {
    service: String,
    per_second: u32,
}

impl From<&ServiceRecord> for WireService {
    fn from(record: &ServiceRecord) -> WireService {
        WireService {
            service: record.service.to_string(),
            instance: record.instance.to_string(),
            address: record.address.into(),
            protocol: match record.protocol {
                WireProtocol::Http => 0,
                WireProtocol::Grpc => 1,
                WireProtocol::Tcp => 2,
                WireProtocol::Udp => 3,
                WireProtocol::Tls => 4,
            },
            weight: record.weight,
            health: match record.health {
                Health::Passing => 0,
                Health::Warning => 1,
                Health::Failing => 2,
            },
            state: match record.state {
                InstanceState::Warming => 0,
                InstanceState::Up => 1,
                InstanceState::Draining => 2,
            },
            started_at_ms: record.started_at_ms,
            capacity: record.capacity,
            tags: (record.tags.iter())
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
        }
    }
}

impl TryFrom<WireService> for ServiceRecord {
    type Error = CodecError;

    fn try_from(wire: WireService) -> Result<ServiceRecord, CodecError> {
        if wire.weight == 0 || wire.service.is_empty() {
            return Err(CodecError::Malformed);
        }
        Ok(ServiceRecord {
            service: wire.service.into(),
            instance: wire.instance.into(),
            address: wire.address.into(),
            protocol: match wire.protocol {
                0 => WireProtocol::Http,
                1 => WireProtocol::Grpc,
                2 => WireProtocol::Tcp,
                3 => WireProtocol::Udp,
                4 => WireProtocol::Tls,
                _ => return Err(CodecError::Malformed),
            },
            weight: wire.weight,
            health: match wire.health {
                0 => Health::Passing,
                1 => Health::Warning,
                2 => Health::Failing,
                _ => return Err(CodecError::Malformed),
            },
            state: match wire.state {
                0 => InstanceState::Warming,
                1 => InstanceState::Up,
                2 => InstanceState::Draining,
                _ => return Err(CodecError::Malformed),
            },
            started_at_ms: wire.started_at_ms,
            capacity: wire.capacity,
            tags: (wire.tags.into_iter())
                .map(|(key, value)| (key.into(), value.into()))
                .collect::<BTreeMap<_, _>>(),
        })
    }
}

/// The bytes of a record.
///
/// # Errors
/// `TooLong` over [`RECORD_BYTES_MAX`] bytes (long names or many tags), or for a body that is not ours to write.
pub fn encode_record(head: &Head, body: &Body) -> Result<Vec<u8>, CodecError> {
    let (kind, tail) = match body {
        Body::Node(node) => {
            let wire = WireNode {
                name: node.name.to_string(),
                zone: node.zone.to_string(),
                region: node.region.to_string(),
                wire_version: node.wire_version,
                left: node.left,
                floor: node.floor,
            };
            let keys: Vec<[u8; 4]> = node.keys.iter().map(|key| key.0).collect();
            (KIND_NODE, [encode(&wire)?, encode(&keys)?].concat())
        }
        Body::Service(service) => (KIND_SERVICE, encode(&WireService::from(service))?),
        Body::Demand(demand) => {
            let wire = WireDemand {
                service: demand.service.to_string(),
                per_second: demand.per_second,
            };
            (KIND_DEMAND, encode(&wire)?)
        }
        Body::Tombstone => (KIND_TOMBSTONE, Vec::new()),
        Body::Unknown => return Err(CodecError::TooLong),
    };
    let mut bytes = encode(&WireHead {
        kind,
        owner: head.owner,
        epoch: head.epoch,
        slot: head.slot,
        version: head.version,
    })?;
    bytes.extend_from_slice(&tail);
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(CodecError::TooLong);
    }
    Ok(bytes)
}

/// Reads a record. A body of an unknown kind, or of a known kind with values this version does not know, is
/// [`Body::Unknown`]: the caller keeps and relays the bytes.
///
/// # Errors
/// `Malformed` if not even the head can be read, or over [`RECORD_BYTES_MAX`].
pub fn decode_record(bytes: &[u8]) -> Result<(Head, Body), CodecError> {
    let (kind, head, tail) = split_record(bytes)?;
    let body = match kind {
        KIND_NODE => decode::<WireNode>(tail).map(|(node, used)| {
            Body::Node(NodeRecord {
                name: node.name.into(),
                zone: node.zone.into(),
                region: node.region.into(),
                wire_version: node.wire_version,
                left: node.left,
                floor: node.floor,
                keys: decode_keys(&tail[used..]),
            })
        }),
        KIND_SERVICE => decode::<WireService>(tail)
            .and_then(|(service, _)| ServiceRecord::try_from(service))
            .map(Body::Service),
        KIND_DEMAND => decode::<WireDemand>(tail).map(|(demand, _)| {
            Body::Demand(DemandRecord {
                service: demand.service.into(),
                per_second: demand.per_second,
            })
        }),
        KIND_TOMBSTONE => Ok(Body::Tombstone),
        _ => Ok(Body::Unknown),
    };
    Ok((head, body.unwrap_or(Body::Unknown)))
}

/// Reads only a record's head: nearly all records that come are known already, and the head tells.
///
/// # Errors
/// As of [`decode_record`].
pub fn decode_head(bytes: &[u8]) -> Result<Head, CodecError> {
    split_record(bytes).map(|(_, head, _)| head)
}

/// A record's kind, its head, and the bytes of its body.
fn split_record(bytes: &[u8]) -> Result<(u8, Head, &[u8]), CodecError> {
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(CodecError::Malformed);
    }
    let (wire, used) = decode::<WireHead>(bytes)?;
    let head = Head {
        owner: wire.owner,
        epoch: wire.epoch,
        slot: wire.slot,
        version: wire.version,
    };
    Ok((wire.kind, head, &bytes[used..]))
}

/// The keys a node tells of at the end of its record: the first nodes told none.
fn decode_keys(tail: &[u8]) -> Box<[KeyId]> {
    let keys = decode::<Vec<[u8; 4]>>(tail).map(|(keys, _)| keys);
    let keys = keys.unwrap_or_default().into_iter().take(KEYS_MAX);
    keys.map(KeyId).collect()
}
