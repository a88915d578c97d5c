//! Bytes → a request's or an answer's head, or what is wrong with them.
//!
//! Not here: bodies (`decode.rs`) and what is done about a fault (`server.rs`, `client.rs`). Whatever two readers
//! could take for two different messages is refused (RFC 9112, 2.2, 3.2, 5.1 and 6.3; RFC 9110, 5.5).

use std::fmt;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
};
use memchr::memchr;

use crate::proxy::{headers::expects_continue, present::Present};

/// Most fields of an answer's head, and of trailers.
const FIELDS_MAX: usize = 100;

/// How large a request's head may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of its first line.
    pub line_bytes: usize,
    /// Bytes of all the rest.
    pub bytes: usize,
    /// Its fields.
    pub fields: usize,
}

/// Why a head is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It is malformed, or could be read in two ways; the words say how.
    Malformed(&'static str),
    /// The request line is too long.
    LineTooLong,
    /// The field block is too long, or there are too many fields.
    TooLarge,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Malformed(why) => why,
            Fault::LineTooLong => "the request line is too long",
            Fault::TooLarge => "the fields are too long or too many",
        })
    }
}

/// How a body's end is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// There is no body.
    Empty,
    /// So many bytes, at least one.
    Length(u64),
    /// Chunks.
    Chunked,
    /// The connection's end; answers only.
    UntilClose,
}

/// What a head says of its connection and its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meaning {
    /// Where the body ends.
    pub framing: Framing,
    /// The connection may carry another message after this one.
    pub keep_alive: bool,
    /// The sender waits for `100 Continue` before its body.
    pub expects_continue: bool,
    /// What stands in it.
    pub there: Present,
}

/// How a head, or a block of trailers, was written where it can be written more than one way: the case of names, the
/// reason phrase.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Spelling {
    head: Bytes,
    reason: (u32, u32),
    /// Where names stand that are not lower case, in their order.
    names: Vec<(u32, u32)>,
}

impl Spelling {
    /// The name as it was written; `after` is where the last one was found and makes the usual case quick.
    pub fn of<'a>(&'a self, name: &'a HeaderName, after: &mut usize) -> &'a [u8] {
        let count = self.names.len();
        let lower = name.as_str().as_bytes();
        for step in 0..count {
            let index = (*after + step) % count;
            let (from, to) = self.names[index];
            let written = &self.head[from as usize..to as usize];
            if written.eq_ignore_ascii_case(lower) {
                *after = index + 1;
                return written;
            }
        }
        lower
    }

    /// The reason phrase of an answer.
    pub fn reason(&self) -> &[u8] {
        &self.head[self.reason.0 as usize..self.reason.1 as usize]
    }
}

/// A request's head.
pub type RequestHead = (Request<()>, Meaning, Spelling);
/// An answer's head.
pub type AnswerHead = (Response<()>, Meaning, Spelling);

/// Where the head at the beginning of `input` ends, its empty line included; `None`: more bytes are needed.
/// The first `seen` bytes were looked at before.
///
/// # Errors
/// A line that does not end with CR LF.
pub fn end_of(input: &[u8], seen: usize) -> Result<Option<usize>, Fault> {
    // The last two bytes looked at may begin what ends the head.
    let mut from = seen.saturating_sub(2);
    while let Some(found) = memchr(b'\n', &input[from..]) {
        let end = from + found;
        if end < 1 || input[end - 1] != b'\r' {
            return Err(Fault::Malformed("a line feed without its carriage return"));
        }
        // An empty line, but not the one that may stand before a request.
        if end >= 3 && input[end - 2] == b'\n' {
            return Ok(Some(end + 1));
        }
        from = end + 1;
    }
    Ok(None)
}

/// Whether a head of which only `input` came can still be within its bounds.
///
/// # Errors
/// It cannot.
pub fn check_unfinished(input: &[u8], bounds: Bounds) -> Result<(), Fault> {
    let line = input.len().min(bounds.line_bytes + 2);
    if input.len() > bounds.line_bytes && !input[..line].contains(&b'\n') {
        return Err(Fault::LineTooLong);
    }
    // What came may be the line alone, which does not count among the fields.
    if input.len() > bounds.bytes + bounds.line_bytes {
        return Err(Fault::TooLarge);
    }
    // What is neither a method nor an empty line will not become a request, and its sender may wait for our word.
    match input.first() {
        Some(byte) if !is_token_byte(*byte) && *byte != b'\r' => {
            Err(Fault::Malformed("this is no HTTP request"))
        }
        _ => Ok(()),
    }
}

/// Reads a whole request head, from its first line to its empty line, into `map`, which is empty.
///
/// # Errors
/// It is malformed, ambiguous, or too large.
pub fn request(head: &Bytes, bounds: Bounds, map: HeaderMap) -> Result<RequestHead, Fault> {
    let start = if head.starts_with(b"\r\n") { 2 } else { 0 };
    let line_end = start + line_of(&head[start..]).ok_or(Fault::Malformed("no request line"))?;
    if line_end - start > bounds.line_bytes {
        return Err(Fault::LineTooLong);
    }
    let line = &head[start..line_end];
    let method_end = memchr(b' ', line).ok_or(Fault::Malformed("no target"))?;
    let version_at = line
        .len()
        .checked_sub(8)
        .filter(|at| *at > method_end + 1 && line[at - 1] == b' ')
        .ok_or(Fault::Malformed("no HTTP version"))?;
    let version = match &line[version_at..] {
        b"HTTP/1.1" => Version::HTTP_11,
        b"HTTP/1.0" => Version::HTTP_10,
        _ => return Err(Fault::Malformed("not HTTP/1.1 or HTTP/1.0")),
    };
    let method = Method::from_bytes(&line[..method_end])
        .map_err(|_| Fault::Malformed("a method that is no token"))?;
    let target = head.slice(start + method_end + 1..start + version_at - 1);
    let uri = target_of(&method, target)?;

    let mut spelling = Spelling {
        head: head.clone(),
        ..Spelling::default()
    };
    let (mut headers, there) = fields(head, line_end + 2, bounds.fields, &mut spelling.names, map)?;
    let meaning = meaning_of_request(&mut headers, there, version)?;
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = version;
    *request.headers_mut() = headers;
    Ok((request, meaning, spelling))
}

/// Reads a whole answer head into `map`, which is empty; `to_head`: it answers HEAD, so it has no body whatever it
/// says.
///
/// # Errors
/// It is malformed, ambiguous, or too large.
pub fn answer(head: &Bytes, to_head: bool, map: HeaderMap) -> Result<AnswerHead, Fault> {
    let line_end = line_of(head).ok_or(Fault::Malformed("no status line"))?;
    let line = &head[..line_end];
    let version = match line.get(..9) {
        Some(b"HTTP/1.1 ") => Version::HTTP_11,
        Some(b"HTTP/1.0 ") => Version::HTTP_10,
        _ => return Err(Fault::Malformed("not HTTP/1.1 or HTTP/1.0")),
    };
    let status = line
        .get(9..12)
        .and_then(|digits| StatusCode::from_bytes(digits).ok())
        .ok_or(Fault::Malformed("no status code"))?;
    // Some servers leave out the blank that stands before an empty reason.
    let reason = match line.get(12) {
        None => 12,
        Some(b' ') => 13,
        Some(_) => return Err(Fault::Malformed("no status code")),
    };
    if !line[reason..].iter().all(|byte| is_value_byte(*byte)) {
        return Err(Fault::Malformed("a reason with control characters"));
    }
    let mut spelling = Spelling {
        head: head.clone(),
        reason: (reason as u32, line_end as u32),
        names: Vec::new(),
    };
    let (mut headers, there) = fields(head, line_end + 2, FIELDS_MAX, &mut spelling.names, map)?;
    let meaning = meaning_of_answer(&mut headers, there, version, (status, to_head))?;
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = version;
    *response.headers_mut() = headers;
    Ok((response, meaning, spelling))
}

/// Whether the beginning of an answer may become one.
pub fn may_be_answer(input: &[u8]) -> bool {
    let start = b"HTTP/1.";
    let known = input.len().min(start.len());
    input[..known] == start[..known]
}

/// Reads a trailer block, from its first field to its empty line, and how its names were written.
///
/// # Errors
/// It is malformed, too large, or names what trailers may not say (RFC 9110, 6.5.1).
pub fn trailers(block: &Bytes) -> Result<(HeaderMap, Spelling), Fault> {
    let mut spelling = Spelling {
        head: block.clone(),
        ..Spelling::default()
    };
    let (trailers, _) = fields(block, 0, FIELDS_MAX, &mut spelling.names, HeaderMap::new())?;
    let forbidden = [
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
        header::HOST,
        header::CONNECTION,
        header::UPGRADE,
        header::EXPECT,
        header::TRAILER,
        header::AUTHORIZATION,
        header::CONTENT_ENCODING,
        header::CONTENT_TYPE,
        header::CONTENT_RANGE,
        header::TE,
    ];
    if forbidden.iter().any(|name| trailers.contains_key(name)) {
        return Err(Fault::Malformed("a trailer that belongs into the head"));
    }
    Ok((trailers, spelling))
}

/// Where the first line ends, before its CR LF.
fn line_of(bytes: &[u8]) -> Option<usize> {
    memchr(b'\n', bytes)?.checked_sub(1)
}

/// At most `max` fields from `from` to the empty line that ends the block, added to `headers`, and which they are; where
/// names are not lower case is noted in `names`.
fn fields(
    block: &Bytes,
    mut from: usize,
    max: usize,
    names: &mut Vec<(u32, u32)>,
    mut headers: HeaderMap,
) -> Result<(HeaderMap, Present), Fault> {
    let mut count = 0;
    let mut there = Present::default();
    loop {
        let line = &block[from..];
        let end = line_of(line).ok_or(Fault::Malformed("a line without an end"))?;
        if end == 0 {
            return Ok((headers, there));
        }
        count += 1;
        if count > max {
            return Err(Fault::TooLarge);
        }
        // A folded line begins with a blank, and a blank is no part of a name.
        let colon =
            memchr(b':', &line[..end]).ok_or(Fault::Malformed("a field without a colon"))?;
        let name = HeaderName::from_bytes(&line[..colon])
            .map_err(|_| Fault::Malformed("a field name that is no token"))?;
        there = there.and(&name);
        let (mut left, mut right) = (colon + 1, end);
        while left < right && is_blank(line[left]) {
            left += 1;
        }
        while left < right && is_blank(line[right - 1]) {
            right -= 1;
        }
        let value = HeaderValue::from_maybe_shared(block.slice(from + left..from + right))
            .map_err(|_| Fault::Malformed("a field value with control characters"))?;
        if line[..colon].iter().any(u8::is_ascii_uppercase) {
            if names.is_empty() {
                names.reserve(NAMES_EXPECTED);
            }
            names.push((from as u32, (from + colon) as u32));
        }
        headers
            .try_append(name, value)
            .map_err(|_| Fault::TooLarge)?;
        from += end + 2;
    }
}

/// Names with capitals that a head has room for without growing.
const NAMES_EXPECTED: usize = 16;

const fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

const fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// Reads a request target in the form that its method allows (RFC 9112, 3.2).
fn target_of(method: &Method, target: Bytes) -> Result<Uri, Fault> {
    // A fragment is never sent, and what is not printable ASCII has to be escaped.
    let sound = |byte: &u8| byte.is_ascii_graphic() && *byte != b'#';
    if target.is_empty() || !target.iter().all(sound) {
        return Err(Fault::Malformed(
            "a target with characters that are not allowed",
        ));
    }
    let origin = target[0] == b'/';
    let asterisk = target[..] == *b"*";
    let uri =
        Uri::from_maybe_shared(target).map_err(|_| Fault::Malformed("a target that is no URI"))?;
    let parts = (uri.scheme_str(), uri.authority());
    let fits = match (method, parts) {
        (&Method::CONNECT, (None, Some(authority))) => authority.port_u16().is_some(),
        (&Method::CONNECT, _) => false,
        (_, (Some("http" | "https"), Some(authority))) => !authority.as_str().contains('@'),
        (method, (None, None)) => origin || (asterisk && method == Method::OPTIONS),
        _ => false,
    };
    if fits {
        Ok(uri)
    } else {
        Err(Fault::Malformed("a target in a form that does not fit"))
    }
}

fn meaning_of_request(
    headers: &mut HeaderMap,
    there: Present,
    version: Version,
) -> Result<Meaning, Fault> {
    let framing = match (is_chunked(headers, there)?, length(headers, there)?) {
        (true, Some(_)) => {
            return Err(Fault::Malformed("Content-Length beside Transfer-Encoding"));
        }
        (true, None) if version == Version::HTTP_10 => {
            return Err(Fault::Malformed("Transfer-Encoding in HTTP/1.0"));
        }
        (true, None) => Framing::Chunked,
        (false, None | Some(0)) => Framing::Empty,
        (false, Some(length)) => Framing::Length(length),
    };
    if headers.get_all(header::HOST).iter().nth(1).is_some() {
        return Err(Fault::Malformed("more than one Host"));
    }
    if version == Version::HTTP_11 && !there.has(Present::HOST) {
        return Err(Fault::Malformed("no Host"));
    }
    let waits =
        version == Version::HTTP_11 && framing != Framing::Empty && expects_continue(headers);
    Ok(Meaning {
        framing,
        keep_alive: keeps_alive(headers, there, version),
        expects_continue: waits,
        there,
    })
}

fn meaning_of_answer(
    headers: &mut HeaderMap,
    there: Present,
    version: Version,
    (status, to_head): (StatusCode, bool),
) -> Result<Meaning, Fault> {
    let (chunked, length) = (is_chunked(headers, there)?, length(headers, there)?);
    if chunked && length.is_some() {
        return Err(Fault::Malformed("Content-Length beside Transfer-Encoding"));
    }
    if chunked && version == Version::HTTP_10 {
        return Err(Fault::Malformed("Transfer-Encoding in HTTP/1.0"));
    }
    let mut keep_alive = keeps_alive(headers, there, version);
    let no_content = status.is_informational() || status == StatusCode::NO_CONTENT;
    let framing = if no_content || to_head || status == StatusCode::NOT_MODIFIED {
        if no_content {
            // Whatever follows is no body (RFC 9110, 8.6), and a reader who believes the length would wait for one.
            keep_alive &= !chunked && length.unwrap_or(0) == 0;
            headers.remove(header::CONTENT_LENGTH);
        }
        Framing::Empty
    } else if chunked {
        Framing::Chunked
    } else {
        match length {
            Some(0) => Framing::Empty,
            Some(length) => Framing::Length(length),
            None => {
                keep_alive = false;
                Framing::UntilClose
            }
        }
    };
    Ok(Meaning {
        framing,
        keep_alive,
        expects_continue: false,
        there,
    })
}

/// Whether the body comes in chunks; any other transfer coding is one that we could not pass on.
fn is_chunked(headers: &HeaderMap, there: Present) -> Result<bool, Fault> {
    if !there.has(Present::TRANSFER_ENCODING) {
        return Ok(false);
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else {
        return Ok(false);
    };
    if codings.next().is_none() && coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        Ok(true)
    } else {
        Err(Fault::Malformed("a Transfer-Encoding other than chunked"))
    }
}

/// The one length that is told; the same told several times counts as once, and goes on as one (RFC 9112, 6.3).
fn length(headers: &mut HeaderMap, there: Present) -> Result<Option<u64>, Fault> {
    if !there.has(Present::CONTENT_LENGTH) {
        return Ok(None);
    }
    let mut told = None;
    let mut times = 0;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        for number in value.as_bytes().split(|byte| *byte == b',') {
            let number = digits(number.trim_ascii())
                .ok_or(Fault::Malformed("a Content-Length that is no number"))?;
            if told.is_some_and(|before| before != number) {
                return Err(Fault::Malformed("two lengths that differ"));
            }
            told = Some(number);
            times += 1;
        }
    }
    if let Some(number) = told
        && times > 1
    {
        headers.insert(header::CONTENT_LENGTH, number.into());
    }
    Ok(told)
}

/// Digits and nothing else; 19 of them always fit.
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(
        text.iter()
            .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')),
    )
}

fn keeps_alive(headers: &HeaderMap, there: Present, version: Version) -> bool {
    if !there.has(Present::CONNECTION) {
        return version == Version::HTTP_11;
    }
    let says = |wanted: &[u8]| {
        headers.get_all(header::CONNECTION).iter().any(|value| {
            value
                .as_bytes()
                .split(|byte| *byte == b',')
                .any(|token| token.trim_ascii().eq_ignore_ascii_case(wanted))
        })
    };
    match version {
        Version::HTTP_11 => !says(b"close"),
        _ => says(b"keep-alive") && !says(b"close"),
    }
}
