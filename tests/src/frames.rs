//! HTTP/2 in single frames: a client that may break any rule, and what it hears back.
//!
//! Not here: what the rules are (the stories). Header blocks are written without Huffman codes and without the dynamic
//! table unless a story asks for it.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout_at},
};

/// Frame types (RFC 9113, section 6).
pub mod kind {
    /// A body's part.
    pub const DATA: u8 = 0;
    /// Opens a stream, or ends it with trailers.
    pub const HEADERS: u8 = 1;
    /// Deprecated; must be borne.
    pub const PRIORITY: u8 = 2;
    /// Ends a stream at once.
    pub const RST_STREAM: u8 = 3;
    /// The sender's settings, or their acknowledgement.
    pub const SETTINGS: u8 = 4;
    /// Never allowed from a client.
    pub const PUSH_PROMISE: u8 = 5;
    /// Asks for its echo.
    pub const PING: u8 = 6;
    /// The connection is about to end.
    pub const GOAWAY: u8 = 7;
    /// More may be sent.
    pub const WINDOW_UPDATE: u8 = 8;
    /// The rest of a header block.
    pub const CONTINUATION: u8 = 9;
}

/// The stream, or what acknowledges, ends here (`END_STREAM`, `ACK`).
pub const END_STREAM: u8 = 0x1;
/// The header block ends here.
pub const END_HEADERS: u8 = 0x4;
/// The payload begins with the length of its padding.
pub const PADDED: u8 = 0x8;

/// What a client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame is short");
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block of literal fields, none of which enters the dynamic table.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            integer(&mut bytes, text.len());
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

/// A length with a prefix of seven bits (RFC 7541, section 5.1).
fn integer(bytes: &mut Vec<u8>, value: usize) {
    if value < 127 {
        bytes.push(value as u8);
        return;
    }
    bytes.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        bytes.push((rest % 128) as u8 | 0x80);
        rest /= 128;
    }
    bytes.push(rest as u8);
}

/// The fields of a `GET /` of `authority`.
pub fn get(authority: &str) -> Vec<(&str, &str)> {
    vec![
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/"),
        (":authority", authority),
    ]
}

/// A frame that came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heard {
    /// Its type, see [`kind`].
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Heard {
    /// The error code of a `RST_STREAM` or `GOAWAY`.
    pub fn code(&self) -> Option<u32> {
        let at = match self.kind {
            kind::RST_STREAM => 0,
            kind::GOAWAY => 4,
            _ => return None,
        };
        let four = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(four.try_into().ok()?))
    }
}

/// A client of raw frames.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Client {
    /// Connects and says preface and empty settings. Errors tell why not.
    pub async fn open(address: SocketAddr) -> std::io::Result<Client> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut hello = PREFACE.to_vec();
        hello.extend(frame(kind::SETTINGS, 0, 0, &[]));
        stream.write_all(&hello).await?;
        Ok(Client {
            stream,
            unread: Vec::new(),
        })
    }

    /// Sends bytes; an error means that the other side has closed.
    pub async fn say(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The next frame; `None` when the connection has ended or nothing came until `deadline`.
    pub async fn hear(&mut self, deadline: Instant) -> Option<Heard> {
        loop {
            if let Some(heard) = self.take() {
                return Some(heard);
            }
            let mut piece = [0; 4 * 1024];
            match timeout_at(deadline, self.stream.read(&mut piece)).await {
                Ok(Ok(count)) if count > 0 => self.unread.extend(&piece[..count]),
                _ => return None,
            }
        }
    }

    fn take(&mut self) -> Option<Heard> {
        let head = self.unread.get(..9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let payload = self.unread.get(9..9 + length)?.to_vec();
        self.unread.drain(..9 + length);
        Some(Heard {
            kind,
            flags,
            stream,
            payload,
        })
    }

    /// Throws away what has come so far, without waiting; an error means that the other side has closed.
    pub fn skip_what_came(&mut self) -> std::io::Result<()> {
        let mut piece = [0; 16 * 1024];
        loop {
            match self.stream.try_read(&mut piece) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Everything that comes until `enough` says so, the connection ends, or `within` is over.
    pub async fn hear_until(
        &mut self,
        within: Duration,
        mut enough: impl FnMut(&Heard) -> bool,
    ) -> Vec<Heard> {
        let deadline = Instant::now() + within;
        let mut all = Vec::new();
        while let Some(heard) = self.hear(deadline).await {
            let is_enough = enough(&heard);
            all.push(heard);
            if is_enough {
                break;
            }
        }
        all
    }
}
