//! A packet of foca's, read once before foca sees it: what is known already is left out, what cannot be true refused.
//!
//! Not here: what foca makes of it (`swim.rs`). foca looks through all members for every update it is handed, and nearly
//! all updates are repetitions; our own table finds that out in a few steps.

use bytes::Buf;
use foca::{Codec, Header};
use mesh_proto::{
    codec::{CodecError, MemberCodec},
    member::Member,
};

/// Bytes before the updates that tell how many there are.
const COUNT_BYTES: usize = 2;

/// A packet and the members it tells of.
#[derive(Debug)]
pub struct Packet {
    /// From whom, to whom, and what for.
    pub header: Header<Member>,
    /// What it tells of members.
    pub updates: Vec<foca::Member<Member>>,
    has_count: bool,
}

impl Packet {
    /// Reads one.
    ///
    /// # Errors
    /// `Malformed` if any part cannot be read: then nothing of it is believed.
    pub fn read(mut bytes: &[u8]) -> Result<Packet, CodecError> {
        let header = MemberCodec.decode_header(&mut bytes)?;
        let has_count = bytes.len() >= COUNT_BYTES;
        let count = if has_count { bytes.get_u16() } else { 0 };
        let mut updates = Vec::new();
        for _ in 0..count {
            updates.push(MemberCodec.decode_member(&mut bytes)?);
        }
        if !bytes.is_empty() {
            return Err(CodecError::Malformed);
        }
        Ok(Packet {
            header,
            updates,
            has_count,
        })
    }

    /// Its bytes, with the updates it holds now.
    pub fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        // Everything here was read from a packet, and a list has no other bound.
        let _ = MemberCodec.encode_header(&self.header, &mut bytes);
        if self.has_count {
            let count = u16::try_from(self.updates.len()).unwrap_or(u16::MAX);
            bytes.extend_from_slice(&count.to_be_bytes());
            for update in self.updates.iter().take(count.into()) {
                let _ = MemberCodec.encode_member(update, &mut bytes);
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use foca::{Message, State};

    use super::*;

    fn member(id: u64) -> Member {
        Member {
            id,
            address: ([10, 0, 0, id as u8], 7946).into(),
            bump: 9,
        }
    }

    #[test]
    fn a_packet_is_written_as_it_was_read() {
        let packet = Packet {
            header: Header {
                src: member(1),
                src_incarnation: 3,
                dst: member(2),
                message: Message::Ping(7),
            },
            updates: vec![foca::Member::new(member(3), 1, State::Suspect)],
            has_count: true,
        };
        let bytes = packet.write();
        let read = Packet::read(&bytes).expect("ours");
        assert_eq!(read.write(), bytes);
        assert_eq!(read.updates, packet.updates);
        for length in 1..bytes.len() {
            let cut = Packet::read(&bytes[..length]);
            assert!(cut.is_err() || cut.expect("whole").updates.is_empty());
        }
    }
}
