//! The PROXY protocol, versions 1 and 2: who really called, told in front of a connection's first byte.
//!
//! Not here: whose listeners expect it and whom it is sent to (the upstream's policy). Source: HAProxy's
//! `proxy-protocol.txt` (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>).

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use mesh_core::policy::ProxyVersion;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::transport::Transport;

/// What a header of version 2 begins with: no other protocol's first bytes.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of the fixed part of version 2.
const V2_HEAD_BYTES: usize = 16;
/// Bytes that may follow it: addresses and notes. The specification asks for 520; notes on TLS may be longer.
const V2_REST_BYTES_MAX: usize = 4096;
/// Bytes of the longest line of version 1, its end included.
const V1_BYTES_MAX: usize = 107;

/// Who called, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    /// The caller.
    pub source: SocketAddr,
    /// What it called.
    pub destination: SocketAddr,
}

impl Addresses {
    /// Those of a connection as its socket has them; `None` behind a Unix socket.
    pub fn of(transport: &Transport) -> Option<Addresses> {
        let addresses = transport.tcp(|stream| {
            Some(Addresses {
                source: stream.peer_addr().ok()?,
                destination: stream.local_addr().ok()?,
            })
        });
        addresses.flatten()
    }
}

/// Why a header was not understood.
#[derive(Debug)]
pub enum HeaderFault {
    /// The connection ended or broke first.
    Broken(io::Error),
    /// What came is no header; the reason.
    Garbled(&'static str),
}

impl fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderFault::Broken(error) => write!(f, "no PROXY header: {error}"),
            HeaderFault::Garbled(why) => write!(f, "no PROXY header: {why}"),
        }
    }
}

impl From<io::Error> for HeaderFault {
    fn from(error: io::Error) -> HeaderFault {
        HeaderFault::Broken(error)
    }
}

/// Reads the header off the front of a connection, and not a byte of what follows. `None`: the sender says that it
/// calls for itself, or for somebody without such an address.
///
/// # Errors
/// Whatever comes is no header of version 1 or 2.
pub async fn read(
    transport: &mut (impl AsyncRead + Unpin),
) -> Result<Option<Addresses>, HeaderFault> {
    let mut head = [0; V2_HEAD_BYTES];
    // The shortest line of version 1 has 15 bytes.
    let (begin, rest) = head.split_at_mut(SIGNATURE.len());
    transport.read_exact(begin).await?;
    if begin == SIGNATURE {
        transport.read_exact(rest).await?;
        let length = v2_length(&head)?;
        let mut body = vec![0; length];
        transport.read_exact(&mut body).await?;
        return v2(&head, &body);
    }
    if !begin.starts_with(b"PROXY ") {
        return Err(HeaderFault::Garbled(
            "the first bytes are of neither version",
        ));
    }
    let mut line = begin.to_vec();
    rest_of_line(transport, &mut line).await?;
    v1(&line)
}

/// Byte by byte, because what follows the line belongs to somebody else; a connection has but one such line.
async fn rest_of_line(
    transport: &mut (impl AsyncRead + Unpin),
    line: &mut Vec<u8>,
) -> Result<(), HeaderFault> {
    while !line.ends_with(b"\r\n") {
        if line.len() >= V1_BYTES_MAX {
            return Err(HeaderFault::Garbled("its line is longer than 107 bytes"));
        }
        line.push(transport.read_u8().await?);
    }
    Ok(())
}

/// A whole line of version 1.
fn v1(line: &[u8]) -> Result<Option<Addresses>, HeaderFault> {
    let garbled =
        HeaderFault::Garbled("its line is not PROXY TCP4|TCP6 source destination port port");
    let text = std::str::from_utf8(line).ok();
    let Some(text) = text.and_then(|text| text.strip_suffix("\r\n")) else {
        return Err(garbled);
    };
    let mut words = text.split(' ');
    let family = match (words.next(), words.next()) {
        (Some("PROXY"), Some("UNKNOWN")) => return Ok(None),
        (Some("PROXY"), Some(family @ ("TCP4" | "TCP6"))) => family,
        _ => return Err(garbled),
    };
    let words: Vec<&str> = words.collect();
    let [source, destination, source_port, destination_port] = *words else {
        return Err(garbled);
    };
    let address = |ip: &str, port: &str| {
        let ip: IpAddr = ip.parse().ok()?;
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port: u16 = port.parse().ok().filter(|_| digits)?;
        (ip.is_ipv4() == (family == "TCP4")).then_some(SocketAddr::new(ip, port))
    };
    match (
        address(source, source_port),
        address(destination, destination_port),
    ) {
        (Some(source), Some(destination)) => Ok(Some(Addresses {
            source,
            destination,
        })),
        _ => Err(garbled),
    }
}

/// How many bytes follow the fixed part of version 2.
fn v2_length(head: &[u8; V2_HEAD_BYTES]) -> Result<usize, HeaderFault> {
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > V2_REST_BYTES_MAX {
        return Err(HeaderFault::Garbled("it is longer than 4096 bytes"));
    }
    Ok(length)
}

/// A whole header of version 2; notes behind the addresses are left alone.
fn v2(head: &[u8; V2_HEAD_BYTES], body: &[u8]) -> Result<Option<Addresses>, HeaderFault> {
    let [.., version_command, family, _, _] = *head;
    match version_command {
        0x20 => return Ok(None),
        0x21 => {}
        _ => return Err(HeaderFault::Garbled("its version or command is unknown")),
    }
    let short = || HeaderFault::Garbled("its addresses are cut off");
    let (source, destination, ports) = match family {
        0x11 => {
            let bytes: &[u8; 12] = body.first_chunk().ok_or_else(short)?;
            let ip = |at: usize| {
                let octets = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
                IpAddr::V4(Ipv4Addr::from(octets))
            };
            (ip(0), ip(4), &bytes[8..])
        }
        0x21 => {
            let bytes: &[u8; 36] = body.first_chunk().ok_or_else(short)?;
            let ip = |half: &[u8]| {
                let mut octets = [0; 16];
                octets.copy_from_slice(half);
                IpAddr::V6(Ipv6Addr::from(octets))
            };
            (ip(&bytes[..16]), ip(&bytes[16..32]), &bytes[32..])
        }
        // Unix sockets, datagrams and what is not specified have no address that means anything here.
        0x00 | 0x12 | 0x22 | 0x31 | 0x32 => return Ok(None),
        _ => return Err(HeaderFault::Garbled("its address family is unknown")),
    };
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Ok(Some(Addresses {
        source: SocketAddr::new(source, port(0)),
        destination: SocketAddr::new(destination, port(2)),
    }))
}

/// The header for a connection made on behalf of `addresses`, or for our own sake if there are none.
pub fn write(version: ProxyVersion, addresses: Option<Addresses>) -> Vec<u8> {
    // Both have to be of one family: an IPv4 address in IPv6's clothes is the IPv4 address, if both are.
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let addresses = addresses.map(|told| {
        let canonical = (plain(told.source), plain(told.destination));
        if canonical.0.is_ipv4() == canonical.1.is_ipv4() {
            canonical
        } else {
            (as_v6(canonical.0), as_v6(canonical.1))
        }
    });
    match version {
        ProxyVersion::One => line(addresses).into_bytes(),
        ProxyVersion::Two => bytes(addresses),
    }
}

fn as_v6(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

fn line(addresses: Option<(SocketAddr, SocketAddr)>) -> String {
    let Some((from, to)) = addresses else {
        return "PROXY UNKNOWN\r\n".to_owned();
    };
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    format!(
        "PROXY {family} {} {} {} {}\r\n",
        from.ip(),
        to.ip(),
        from.port(),
        to.port()
    )
}

fn bytes(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    let Some((from, to)) = addresses else {
        // LOCAL, unspecified, nothing more.
        header.extend([0x20, 0x00, 0, 0]);
        return header;
    };
    header.extend([0x21, if from.is_ipv4() { 0x11 } else { 0x21 }]);
    let length: u16 = if from.is_ipv4() { 12 } else { 36 };
    header.extend(length.to_be_bytes());
    for ip in [from.ip(), to.ip()] {
        match ip {
            IpAddr::V4(ip) => header.extend(ip.octets()),
            IpAddr::V6(ip) => header.extend(ip.octets()),
        }
    }
    header.extend(from.port().to_be_bytes());
    header.extend(to.port().to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// What is read of `sent`, and what is left for whoever reads on.
    async fn of(sent: &[u8]) -> (Result<Option<Addresses>, HeaderFault>, Vec<u8>) {
        let (mut far, near) = tokio::io::duplex(8192);
        far.write_all(sent).await.unwrap();
        drop(far);
        let mut near = Transport::Pipe(near);
        let told = read(&mut near).await;
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.unwrap();
        (told, rest)
    }

    fn addresses(source: &str, destination: &str) -> Addresses {
        Addresses {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        }
    }

    #[tokio::test]
    async fn what_is_written_is_read_again_and_nothing_behind_it() {
        let some = [
            None,
            Some(addresses("10.1.2.3:40000", "10.9.9.9:443")),
            Some(addresses("[2001:db8::1]:1", "[2001:db8::2]:65535")),
        ];
        for version in [ProxyVersion::One, ProxyVersion::Two] {
            for expected in some {
                let mut sent = write(version, expected);
                sent.extend(b"GET / HTTP/1.1\r\n");
                let (told, rest) = of(&sent).await;
                assert_eq!(told.unwrap(), expected, "{version:?}");
                assert_eq!(rest, b"GET / HTTP/1.1\r\n");
            }
        }
    }

    #[tokio::test]
    async fn two_families_become_one() {
        let mixed = addresses("[::ffff:10.0.0.1]:1", "[::ffff:10.0.0.2]:2");
        let line = write(ProxyVersion::One, Some(mixed));
        assert_eq!(line, b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n");
        let mixed = addresses("10.0.0.1:1", "[2001:db8::2]:2");
        let line = write(ProxyVersion::One, Some(mixed));
        assert_eq!(line, b"PROXY TCP6 ::ffff:10.0.0.1 2001:db8::2 1 2\r\n");
    }

    #[tokio::test]
    async fn only_a_header_is_a_header() {
        let v2 = |command: u8, family: u8, length: u16, body: &[u8]| {
            let head = [command, family];
            [&SIGNATURE[..], &head, &length.to_be_bytes(), body].concat()
        };
        let v4 = [1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 0, 10];
        let noted = [&v4[..], b"\x03\x00\x04abcd"].concat();
        let expected = Some(addresses("1.2.3.4:9", "5.6.7.8:10"));
        for (sent, told) in [
            (v2(0x21, 0x11, 19, &noted), Some(expected)),
            (v2(0x20, 0x11, 12, &v4), Some(None)),
            (v2(0x21, 0x00, 0, b""), Some(None)),
            (v2(0x21, 0x31, 216, &[b'a'; 216]), Some(None)),
            (b"PROXY UNKNOWN ffff::1 x y z\r\n".to_vec(), Some(None)),
            (v2(0x22, 0x11, 12, &v4), None),
            (v2(0x11, 0x11, 12, &v4), None),
            (v2(0x21, 0x41, 12, &v4), None),
            (v2(0x21, 0x11, 11, &v4[..11]), None),
            (v2(0x21, 0x11, 12, &v4[..9]), None),
            (v2(0x21, 0x11, 5000, &[0; 5000]), None),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), None),
            (b"PROXY".to_vec(), None),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n".to_vec(), None),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n".to_vec(), None),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n".to_vec(), None),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n".to_vec(), None),
            (b"PROXY TCP4 ::1 ::2 1 2\r\n".to_vec(), None),
            (b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n".to_vec(), None),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n".to_vec(), None),
            ([&b"PROXY TCP4 "[..], &[b'1'; 200]].concat(), None),
        ] {
            let (got, _) = of(&sent).await;
            let text = String::from_utf8_lossy(&sent).into_owned();
            assert_eq!(got.ok(), told, "{text:?}");
        }
    }

    #[tokio::test]
    async fn nothing_that_comes_makes_it_stumble() {
        let mut rng = SmallRng::seed_from_u64(7);
        let good = [
            write(
                ProxyVersion::One,
                Some(addresses("10.1.2.3:4", "5.6.7.8:9")),
            ),
            write(
                ProxyVersion::Two,
                Some(addresses("10.1.2.3:4", "5.6.7.8:9")),
            ),
        ];
        for round in 0..20_000 {
            let mut sent = good[round % 2].clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..sent.len());
                sent[at] = rng.random();
            }
            sent.truncate(rng.random_range(0..=sent.len()));
            // Whatever it comes to: it ends, and within bounds.
            let _ = of(&sent).await;
        }
    }
}
