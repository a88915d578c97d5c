//! Bytes of members and of foca's packets.
//!
//! Not here: whether a packet makes sense (foca, and `membership/packet.rs` of the core).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut};
use foca::{Header, Message, State};

use super::{CodecError, Decode, Encode, decode, encode_into};
use crate::{member::Member, message::Standing};

/// A foca header is two or three members of at most 38 bytes and a few bytes more.
const HEADER_BYTES_MAX: usize = 160;

#[derive(Encode, Decode)]
pub(super) enum WireAddress {
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
pub(super) struct WireMember {
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
pub(super) struct WireStanding {
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
    let used = encode_into(value, &mut bytes)?;
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
