//! The one file that names bincode: bytes of members, records and items, every decode bounded; implements `foca::Codec`.
//!
//! Not here: what the values mean (`member.rs`, `record.rs`, `message.rs`).

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use bincode::{Decode, Encode, config};
use bytes::{Buf, BufMut};
use foca::{Header, Message, State};

use crate::{
    RECORD_BYTES_MAX,
    frame::{Floor, KEYS_MAX, KeyId},
    member::Member,
    message::{BUCKETS, Digest, Hello, Item, OwnerDigest, Purpose, Standing},
    record::{
        Body, DemandRecord, Head, Health, InstanceState, NodeRecord, ServiceRecord, WireProtocol,
    },
};

/// Bytes before an item's body: kind and length.
pub const ITEM_HEAD_BYTES: usize = 3;

/// Bytes of a floor's body.
const FLOOR_BYTES: usize = 32;

/// No decode allocates more than this, whatever the input claims. A tag of two bytes claims 48, the strings' own size,
/// so this is far above the bytes of the longest record.
const DECODE_BYTES_MAX: usize = 16 * 1_024;

/// A foca header is two or three members of at most 38 bytes and a few bytes more.
const HEADER_BYTES_MAX: usize = 160;

const CONFIG: config::Configuration<
    config::BigEndian,
    config::Varint,
    config::Limit<DECODE_BYTES_MAX>,
> = config::standard()
    .with_big_endian()
    .with_limit::<DECODE_BYTES_MAX>();

/// Bytes that cannot be read, or a value that cannot be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CodecError {
    /// Truncated, over a bound, or not what it claims to be.
    Malformed,
    /// The value takes more bytes than its bound or the space left.
    TooLong,
}

impl std::fmt::Display for CodecError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            CodecError::Malformed => "malformed bytes",
            CodecError::TooLong => "too long for the wire",
        })
    }
}

impl std::error::Error for CodecError {}

fn encode<T: Encode>(value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::encode_to_vec(value, CONFIG).map_err(|_| CodecError::TooLong)
}

/// Reads a value from the front of `bytes`; what follows it may be fields of a newer version.
fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<(T, usize), CodecError> {
    bincode::decode_from_slice(bytes, CONFIG).map_err(|_| CodecError::Malformed)
}

// ---- members and foca's packets ----

#[derive(Encode, Decode)]
enum WireAddress {
    V4([u8; 4], u16),
    V6([u8; 16], u16),
}

impl From<SocketAddr> for WireAddress {
    fn from(address: SocketAddr) -> WireAddress {
        match address.ip() {
            IpAddr::V4(ip) => WireAddress::V4(ip.octets(), address.port()),
            IpAddr::V6(ip) => WireAddress::V6(ip.octets(), address.port()),
        }
    }
}

impl From<WireAddress> for SocketAddr {
    fn from(wire: WireAddress) -> SocketAddr {
        match wire {
            WireAddress::V4(ip, port) => (Ipv4Addr::from(ip), port).into(),
            WireAddress::V6(ip, port) => (Ipv6Addr::from(ip), port).into(),
        }
    }
}

#[derive(Encode, Decode)]
struct WireMember {
    id: u64,
    address: WireAddress,
    bump: u64,
}

impl From<&Member> for WireMember {
    fn from(member: &Member) -> WireMember {
        WireMember {
            id: member.id,
            address: member.address.into(),
            bump: member.bump,
        }
    }
}

impl From<WireMember> for Member {
    fn from(wire: WireMember) -> Member {
        Member {
            id: wire.id,
            address: wire.address.into(),
            bump: wire.bump,
        }
    }
}

#[derive(Encode, Decode)]
struct WireStanding {
    member: WireMember,
    incarnation: u16,
    state: u8,
    down_for_s: u32,
}

impl From<&Standing> for WireStanding {
    fn from(standing: &Standing) -> WireStanding {
        WireStanding {
            member: (&standing.member).into(),
            incarnation: standing.incarnation,
            state: match standing.state {
                State::Alive => 0,
                State::Suspect => 1,
                State::Down => 2,
            },
            down_for_s: standing.down_for_s,
        }
    }
}

impl TryFrom<WireStanding> for Standing {
    type Error = CodecError;

    fn try_from(wire: WireStanding) -> Result<Standing, CodecError> {
        Ok(Standing {
            member: wire.member.into(),
            incarnation: wire.incarnation,
            state: match wire.state {
                0 => State::Alive,
                1 => State::Suspect,
                2 => State::Down,
                _ => return Err(CodecError::Malformed),
            },
            down_for_s: wire.down_for_s,
        })
    }
}

#[derive(Encode, Decode)]
enum WireMessage {
    Ping(u8),
    Ack(u8),
    PingReq(WireMember, u8),
    IndirectPing(WireMember, u8),
    IndirectAck(WireMember, u8),
    ForwardedAck(WireMember, u8),
    Announce,
    Feed,
    Gossip,
    Broadcast,
    TurnUndead,
}

#[derive(Encode, Decode)]
struct WireHeader {
    src: WireMember,
    src_incarnation: u16,
    dst: WireMember,
    message: WireMessage,
}

impl From<&Message<Member>> for WireMessage {
    fn from(message: &Message<Member>) -> WireMessage {
        match message {
            Message::Ping(n) => WireMessage::Ping(*n),
            Message::Ack(n) => WireMessage::Ack(*n),
            Message::PingReq {
                target,
                probe_number,
            } => WireMessage::PingReq(target.into(), *probe_number),
            Message::IndirectPing {
                origin,
                probe_number,
            } => WireMessage::IndirectPing(origin.into(), *probe_number),
            Message::IndirectAck {
                target,
                probe_number,
            } => WireMessage::IndirectAck(target.into(), *probe_number),
            Message::ForwardedAck {
                origin,
                probe_number,
            } => WireMessage::ForwardedAck(origin.into(), *probe_number),
            Message::Announce => WireMessage::Announce,
            Message::Feed => WireMessage::Feed,
            Message::Gossip => WireMessage::Gossip,
            Message::Broadcast => WireMessage::Broadcast,
            Message::TurnUndead => WireMessage::TurnUndead,
        }
    }
}

impl From<WireMessage> for Message<Member> {
    fn from(wire: WireMessage) -> Message<Member> {
        match wire {
            WireMessage::Ping(n) => Message::Ping(n),
            WireMessage::Ack(n) => Message::Ack(n),
            WireMessage::PingReq(target, probe_number) => Message::PingReq {
                target: target.into(),
                probe_number,
            },
            WireMessage::IndirectPing(origin, probe_number) => Message::IndirectPing {
                origin: origin.into(),
                probe_number,
            },
            WireMessage::IndirectAck(target, probe_number) => Message::IndirectAck {
                target: target.into(),
                probe_number,
            },
            WireMessage::ForwardedAck(origin, probe_number) => Message::ForwardedAck {
                origin: origin.into(),
                probe_number,
            },
            WireMessage::Announce => Message::Announce,
            WireMessage::Feed => Message::Feed,
            WireMessage::Gossip => Message::Gossip,
            WireMessage::Broadcast => Message::Broadcast,
            WireMessage::TurnUndead => Message::TurnUndead,
        }
    }
}

/// The codec foca is given. Every header and member is length-prefixed, so a longer one of a newer version is skipped
/// over instead of spoiling the packet.
#[derive(Clone, Copy, Debug)]
pub struct MemberCodec;

/// Writes `value` behind its length, or nothing if `buf` has no room.
fn put_prefixed<T: Encode>(value: &T, mut buf: impl BufMut) -> Result<(), CodecError> {
    let mut bytes = [0; HEADER_BYTES_MAX];
    let used =
        bincode::encode_into_slice(value, &mut bytes, CONFIG).map_err(|_| CodecError::TooLong)?;
    let length = u8::try_from(used).map_err(|_| CodecError::TooLong)?;
    if buf.remaining_mut() <= used {
        return Err(CodecError::TooLong);
    }
    buf.put_u8(length);
    buf.put_slice(&bytes[..used]);
    Ok(())
}

fn get_prefixed<T: Decode<()>>(mut buf: impl Buf) -> Result<T, CodecError> {
    let length = usize::from(buf.try_get_u8().map_err(|_| CodecError::Malformed)?);
    // foca promises contiguous data, so the chunk is all there is.
    let bytes = buf.chunk().get(..length).ok_or(CodecError::Malformed)?;
    let (value, _) = decode(bytes)?;
    buf.advance(length);
    Ok(value)
}

impl foca::Codec<Member> for MemberCodec {
    type Error = CodecError;

    fn encode_header(
        &mut self,
        header: &Header<Member>,
        buf: impl BufMut,
    ) -> Result<(), CodecError> {
        let wire = WireHeader {
            src: (&header.src).into(),
            src_incarnation: header.src_incarnation,
            dst: (&header.dst).into(),
            message: (&header.message).into(),
        };
        put_prefixed(&wire, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Member>, CodecError> {
        let wire: WireHeader = get_prefixed(buf)?;
        Ok(Header {
            src: wire.src.into(),
            src_incarnation: wire.src_incarnation,
            dst: wire.dst.into(),
            message: wire.message.into(),
        })
    }

    fn encode_member(
        &mut self,
        member: &foca::Member<Member>,
        buf: impl BufMut,
    ) -> Result<(), CodecError> {
        let standing = Standing {
            member: *member.id(),
            incarnation: member.incarnation(),
            state: member.state(),
            down_for_s: 0,
        };
        put_prefixed(&WireStanding::from(&standing), buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<foca::Member<Member>, CodecError> {
        let wire: WireStanding = get_prefixed(buf)?;
        let standing = Standing::try_from(wire)?;
        Ok(foca::Member::new(
            standing.member,
            standing.incarnation,
            standing.state,
        ))
    }
}

// ---- records ----

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

// ---- items ----

mod kind {
    pub const FOCA: u8 = 1;
    pub const HASH: u8 = 2;
    pub const ASK: u8 = 3;
    pub const RECORD: u8 = 4;
    pub const HELLO: u8 = 16;
    pub const WELCOME: u8 = 17;
    pub const REFUSED: u8 = 18;
    pub const DIGEST: u8 = 19;
    pub const STANDING: u8 = 20;
    pub const BUCKETS: u8 = 21;
    pub const OWNER: u8 = 22;
    pub const WANT: u8 = 23;
    pub const END: u8 = 24;
    pub const FLOOR: u8 = 25;
}

#[derive(Encode, Decode)]
struct WireHello {
    cluster: String,
    from: WireMember,
    purpose: u8,
}

/// Appends an item to a datagram or frame under construction.
///
/// # Errors
/// `TooLong` if the body does not fit its length field; nothing is appended then.
pub fn put_item(out: &mut Vec<u8>, item: &Item<'_>) -> Result<(), CodecError> {
    match item {
        Item::Foca(bytes) => put_raw(out, kind::FOCA, bytes),
        Item::Hash(hash) => put_raw(out, kind::HASH, &hash.to_be_bytes()),
        Item::Ask => put_raw(out, kind::ASK, &[]),
        Item::Record(bytes) => put_raw(out, kind::RECORD, bytes),
        Item::Hello(hello) => {
            let wire = WireHello {
                cluster: hello.cluster.to_string(),
                from: (&hello.from).into(),
                purpose: match hello.purpose {
                    Purpose::Exchange => 0,
                    Purpose::Probe => 1,
                },
            };
            put_raw(out, kind::HELLO, &encode(&wire)?)
        }
        Item::Welcome { from } => put_raw(out, kind::WELCOME, &encode(&WireMember::from(from))?),
        Item::Refused { cluster } => put_raw(out, kind::REFUSED, &encode(&cluster.to_string())?),
        Item::Digest(digest) => {
            let mut bytes = Vec::with_capacity(8 * (BUCKETS + 1));
            bytes.put_u64(digest.members);
            for hash in digest.buckets {
                bytes.put_u64(hash);
            }
            put_raw(out, kind::DIGEST, &bytes)
        }
        Item::Standing(standing) => {
            put_raw(out, kind::STANDING, &encode(&WireStanding::from(standing))?)
        }
        Item::Buckets(set) => put_raw(out, kind::BUCKETS, &set.to_be_bytes()),
        Item::Owner(owner) => put_raw(
            out,
            kind::OWNER,
            &encode(&(owner.id, owner.epoch, owner.hash))?,
        ),
        Item::Want(id) => put_raw(out, kind::WANT, &id.to_be_bytes()),
        Item::Floor(floor) => {
            let mut bytes = Vec::with_capacity(FLOOR_BYTES);
            bytes.put_u64(floor.sender);
            bytes.put_u128(floor.boot);
            bytes.put_u64(floor.counter);
            put_raw(out, kind::FLOOR, &bytes)
        }
        Item::End => put_raw(out, kind::END, &[]),
    }
}

fn put_raw(out: &mut Vec<u8>, kind: u8, body: &[u8]) -> Result<(), CodecError> {
    let length = u16::try_from(body.len()).map_err(|_| CodecError::TooLong)?;
    out.put_u8(kind);
    out.put_u16(length);
    out.put_slice(body);
    Ok(())
}

/// The items of a datagram or frame, unknown kinds left out. Ends after the first malformed one.
pub fn items(bytes: &[u8]) -> Items<'_> {
    Items { rest: bytes }
}

/// Iterator of [`items`].
#[derive(Debug)]
pub struct Items<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Item<'a>, CodecError>;

    fn next(&mut self) -> Option<Result<Item<'a>, CodecError>> {
        while !self.rest.is_empty() {
            let Some((kind, body, rest)) = split_item(self.rest) else {
                self.rest = &[];
                return Some(Err(CodecError::Malformed));
            };
            self.rest = rest;
            match decode_item(kind, body) {
                Ok(None) => continue,
                Ok(Some(item)) => return Some(Ok(item)),
                Err(error) => {
                    self.rest = &[];
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

fn split_item(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[kind, high, low], rest) = bytes.split_first_chunk()?;
    let (body, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
    Some((kind, body, rest))
}

fn decode_u64(body: &[u8]) -> Result<u64, CodecError> {
    let head = body.first_chunk().ok_or(CodecError::Malformed)?;
    Ok(u64::from_be_bytes(*head))
}

fn decode_item(kind: u8, body: &[u8]) -> Result<Option<Item<'_>>, CodecError> {
    Ok(Some(match kind {
        kind::FOCA => Item::Foca(body),
        kind::HASH => Item::Hash(decode_u64(body)?),
        kind::ASK => Item::Ask,
        kind::RECORD => Item::Record(body),
        kind::HELLO => {
            let (wire, _) = decode::<WireHello>(body)?;
            Item::Hello(Hello {
                cluster: wire.cluster.into(),
                from: wire.from.into(),
                purpose: match wire.purpose {
                    0 => Purpose::Exchange,
                    1 => Purpose::Probe,
                    _ => return Err(CodecError::Malformed),
                },
            })
        }
        kind::WELCOME => Item::Welcome {
            from: decode::<WireMember>(body)?.0.into(),
        },
        kind::REFUSED => Item::Refused {
            cluster: decode::<String>(body)?.0.into(),
        },
        kind::DIGEST => Item::Digest(Box::new(decode_digest(body)?)),
        kind::STANDING => Item::Standing(decode::<WireStanding>(body)?.0.try_into()?),
        kind::BUCKETS => Item::Buckets(decode_u64(body)?),
        kind::OWNER => {
            let ((id, epoch, hash), _) = decode::<(u64, u64, u64)>(body)?;
            Item::Owner(OwnerDigest { id, epoch, hash })
        }
        kind::WANT => Item::Want(decode_u64(body)?),
        kind::END => Item::End,
        kind::FLOOR => Item::Floor(decode_floor(body)?),
        _ => return Ok(None),
    }))
}

fn decode_digest(mut body: &[u8]) -> Result<Digest, CodecError> {
    if body.len() < 8 * (BUCKETS + 1) {
        return Err(CodecError::Malformed);
    }
    let members = body.get_u64();
    Ok(Digest {
        members,
        buckets: std::array::from_fn(|_| body.get_u64()),
    })
}

fn decode_floor(mut body: &[u8]) -> Result<Floor, CodecError> {
    if body.len() < FLOOR_BYTES {
        return Err(CodecError::Malformed);
    }
    Ok(Floor {
        sender: body.get_u64(),
        boot: body.get_u128(),
        counter: body.get_u64(),
    })
}

#[cfg(test)]
mod tests;
