//! The server name in a TLS ClientHello, read without ending TLS: bytes in, a name or "more" out.
//!
//! Not here: where a name leads (`listen.rs`). RFC 8446, section 4.1.2, and RFC 6066, section 3.

/// Bytes of a ClientHello that are read; with post-quantum keys and tickets a real one has about 2,000.
pub const HELLO_BYTES_MAX: usize = 16 * 1024;
/// The fatal alert `unrecognized_name`: there is nobody of that name here.
pub const UNRECOGNIZED_NAME: &[u8] = &[21, 3, 1, 0, 2, 2, 112];

/// The record type of handshake messages.
const RECORD_HANDSHAKE: u8 = 22;
/// Type, version and length before each record.
const RECORD_HEAD_BYTES: usize = 5;
/// The handshake type of a ClientHello.
const CLIENT_HELLO: u8 = 1;
/// Longest host name there is.
const NAME_BYTES_MAX: usize = 253;

/// What the first bytes of a connection are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hello {
    /// The beginning of a ClientHello, as far as it goes.
    More,
    /// A whole ClientHello and the name it asks for, in lower case, if it asks for one.
    Whole(Option<Box<str>>),
    /// Something else.
    Garbled(&'static str),
}

/// Judges the first bytes of a connection.
pub fn judge(bytes: &[u8]) -> Hello {
    match message(bytes) {
        Ok(Some(message)) => match server_name(&message) {
            Some(Ok(name)) => Hello::Whole(name),
            Some(Err(why)) => Hello::Garbled(why),
            None => Hello::Garbled("its ClientHello is cut off within"),
        },
        Ok(None) if bytes.len() >= HELLO_BYTES_MAX => Hello::Garbled("its ClientHello is too long"),
        Ok(None) => Hello::More,
        Err(why) => Hello::Garbled(why),
    }
}

/// The body of the ClientHello, put together from its records; `None`: not all of it is there.
fn message(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    let mut handshake = Vec::new();
    loop {
        if bytes.first().is_some_and(|kind| *kind != RECORD_HANDSHAKE)
            || bytes.get(1).is_some_and(|major| *major != 3)
        {
            return Err("it is not TLS");
        }
        let Some((head, rest)) = bytes.split_at_checked(RECORD_HEAD_BYTES) else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if length == 0 || length > HELLO_BYTES_MAX {
            return Err("a record of its ClientHello is empty or too long");
        }
        let (record, rest) = rest.split_at(length.min(rest.len()));
        handshake.extend_from_slice(record);
        if handshake.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err("it does not begin with a ClientHello");
        }
        if let Some([_, a, b, c, body @ ..]) = handshake.get(..) {
            let whole = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if whole > HELLO_BYTES_MAX {
                return Err("its ClientHello is too long");
            }
            if let Some(body) = body.get(..whole) {
                return Ok(Some(body.to_vec()));
            }
        }
        if record.len() < length {
            return Ok(None);
        }
        bytes = rest;
    }
}

/// The host name in a ClientHello's body. `None`: a length in it leads beyond its end.
fn server_name(body: &[u8]) -> Option<Result<Option<Box<str>>, &'static str>> {
    let mut body = Fields(body);
    // Version and random.
    body.take(2 + 32)?;
    let session = body.short()?;
    body.take(session)?;
    let suites = body.long()?;
    body.take(suites)?;
    let compressions = body.short()?;
    body.take(compressions)?;
    if body.0.is_empty() {
        // Older than extensions.
        return Some(Ok(None));
    }
    let length = body.long()?;
    let mut extensions = Fields(body.take(length)?);
    while !extensions.0.is_empty() {
        let (kind, length) = (extensions.long()?, extensions.long()?);
        let content = extensions.take(length)?;
        // Extension 0 is server_name.
        if kind == 0 {
            return of_list(content);
        }
    }
    Some(Ok(None))
}

fn of_list(content: &[u8]) -> Option<Result<Option<Box<str>>, &'static str>> {
    let mut content = Fields(content);
    let length = content.long()?;
    let mut names = Fields(content.take(length)?);
    while !names.0.is_empty() {
        let (kind, length) = (names.short()?, names.long()?);
        let name = names.take(length)?;
        // Type 0 is host_name, the only one there is.
        if kind == 0 {
            let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
            let well = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.iter().all(plain);
            return Some(match std::str::from_utf8(name) {
                Ok(name) if well => Ok(Some(name.to_ascii_lowercase().into())),
                _ => Err("its server name is no host name"),
            });
        }
    }
    Some(Ok(None))
}

/// Bytes that are taken off the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn short(&mut self) -> Option<usize> {
        self.take(1).map(|byte| usize::from(byte[0]))
    }

    fn long(&mut self) -> Option<usize> {
        self.take(2)
            .map(|bytes| usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    fn long(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
    }

    fn short(bytes: &[u8]) -> Vec<u8> {
        [&[bytes.len() as u8][..], bytes].concat()
    }

    /// A ClientHello with these extensions, its handshake header before it.
    fn hello(extensions: Option<&[u8]>) -> Vec<u8> {
        let mut body = [&[3, 3][..], &[7; 32]].concat();
        body.extend(short(&[9; 32]));
        body.extend(long(&[0x13, 0x01, 0x13, 0x02]));
        body.extend(short(&[0]));
        body.extend(extensions.map(long).unwrap_or_default());
        let length = (body.len() as u32).to_be_bytes();
        [&[CLIENT_HELLO][..], &length[1..], &body].concat()
    }

    fn named(name: &[u8]) -> Vec<u8> {
        let entry = [&[0][..], &long(name)].concat();
        let other = [&[0, 43][..], &long(&[2, 3, 4])].concat();
        hello(Some(
            &[other, [&[0, 0][..], &long(&long(&entry))].concat()].concat(),
        ))
    }

    /// In records of at most this many bytes.
    fn records(handshake: &[u8], most: usize) -> Vec<u8> {
        let record = |piece: &[u8]| [&[RECORD_HANDSHAKE, 3, 1][..], &long(piece)].concat();
        handshake.chunks(most).flat_map(record).collect()
    }

    #[test]
    fn a_name_is_found_in_one_record_and_in_many() {
        let expected = Hello::Whole(Some("shop.example".into()));
        for most in [16_384, 100, 7, 1] {
            let bytes = records(&named(b"Shop.Example"), most);
            for cut in 0..bytes.len() {
                assert_eq!(judge(&bytes[..cut]), Hello::More, "{cut} of {most}");
            }
            assert_eq!(judge(&bytes), expected);
            let more = [&bytes[..], b"early data"].concat();
            assert_eq!(judge(&more), expected);
        }
    }

    #[test]
    fn a_client_may_ask_for_nobody() {
        for extensions in [None, Some(&b""[..]), Some(&[0, 43, 0, 3, 2, 3, 4][..])] {
            assert_eq!(judge(&records(&hello(extensions), 500)), Hello::Whole(None));
        }
    }

    #[test]
    fn what_is_no_client_hello_is_known_by_its_first_bytes() {
        let cut = |mut handshake: Vec<u8>, at: usize, byte: u8| {
            handshake[at] = byte;
            records(&handshake, 16_384)
        };
        let whole = named(b"a.example");
        for bytes in [
            b"G".to_vec(),
            b"GET / HTTP/1.1\r\n".to_vec(),
            vec![22, 9],
            vec![22, 3, 1, 0, 0],
            vec![22, 3, 1, 0xff, 0xff],
            records(&[2, 0, 0, 0], 500),
            records(&[1, 1, 0, 0], 500),
            // The session id leads beyond the end.
            cut(whole.clone(), 4 + 34, 255),
            records(&named(b"a b"), 500),
            records(&named(b""), 500),
            records(&named(&[b'a'; 254]), 500),
        ] {
            assert!(matches!(judge(&bytes), Hello::Garbled(_)), "{bytes:?}");
        }
        // What never comes to an end is given up.
        let endless = records(&[&[1, 0, 0x3f, 0xff][..], &[0; 16_000]].concat(), 1);
        assert!(matches!(judge(&endless), Hello::Garbled(_)));
    }

    #[test]
    fn nothing_that_comes_makes_it_stumble() {
        let mut rng = SmallRng::seed_from_u64(11);
        let good = named(b"shop.example");
        for _ in 0..50_000 {
            let mut bytes = records(&good, rng.random_range(1..300));
            for _ in 0..rng.random_range(0..6) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
            bytes.truncate(rng.random_range(0..=bytes.len()));
            judge(&bytes);
            let random: Vec<u8> = (0..rng.random_range(0..80)).map(|_| rng.random()).collect();
            judge(&random);
        }
    }
}
