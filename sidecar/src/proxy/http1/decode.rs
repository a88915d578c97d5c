//! A body's bytes as they stand on the wire → its data, its trailers, its end.
//!
//! Not here: reading the bytes (`wire.rs`). A function of bytes alone, so it can be fed anything.

use bytes::Bytes;
use http::HeaderMap;

use super::head::{self, Fault, Framing, Spelling};

/// Longest line that says a chunk's size, extensions included, in bytes.
const CHUNK_LINE_BYTES_MAX: usize = 1024;
/// Extensions of all chunks of one body, in bytes: nobody needs them, and a flood of them costs us more than its sender.
const EXTENSIONS_BYTES_MAX: u64 = 16 * 1024;
/// Digits of a chunk's size: more than any chunk needs, too few to overflow.
const CHUNK_DIGITS_MAX: usize = 15;
/// Longest trailer block, in bytes.
const TRAILER_BYTES_MAX: usize = 16 * 1024;

/// What the next bytes are.
#[derive(PartialEq, Eq, Debug)]
pub enum Step {
    /// After `skip` bytes come `take` bytes of data.
    Data {
        /// Bytes of framing before the data.
        skip: usize,
        /// Bytes of data.
        take: usize,
    },
    /// `skip` bytes are used up, and more are needed.
    More {
        /// Bytes of framing.
        skip: usize,
    },
    /// The body ends after `skip` bytes.
    End {
        /// Bytes of framing.
        skip: usize,
        /// What stood behind the last chunk, and how it was spelled.
        trailers: Option<(HeaderMap, Spelling)>,
    },
}

/// Where in a body a reader is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decoder {
    state: State,
    extensions: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Length(u64),
    UntilClose,
    ChunkLine,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    Done,
    Failed,
}

impl Decoder {
    /// At the beginning of a body.
    pub fn new(framing: Framing) -> Decoder {
        let state = match framing {
            Framing::Empty => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::ChunkLine,
            Framing::UntilClose => State::UntilClose,
        };
        Decoder {
            state,
            extensions: 0,
        }
    }

    /// The body has ended.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes that are still to come, if that is known.
    pub fn left(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// The connection has ended: whether the body may end so.
    pub fn closed(&mut self) -> bool {
        let fits = matches!(self.state, State::UntilClose | State::Done);
        self.state = if fits { State::Done } else { State::Failed };
        fits
    }

    /// Says what the bytes at the beginning of `input` are. The caller takes away what it is told, and asks again.
    ///
    /// # Errors
    /// The chunks or the trailers are malformed.
    pub fn next(&mut self, input: &[u8]) -> Result<Step, Fault> {
        let step = self.step(input);
        if step.is_err() {
            self.state = State::Failed;
        }
        step
    }

    fn step(&mut self, input: &[u8]) -> Result<Step, Fault> {
        let mut skip = 0;
        loop {
            let rest = &input[skip..];
            match self.state {
                State::Done => {
                    return Ok(Step::End {
                        skip,
                        trailers: None,
                    });
                }
                State::Failed => return Err(Fault::Malformed("the body is broken already")),
                _ if rest.is_empty() => return Ok(Step::More { skip }),
                State::UntilClose => {
                    return Ok(Step::Data {
                        skip,
                        take: rest.len(),
                    });
                }
                State::Length(left) => {
                    let take = at_most(rest.len(), left);
                    let left = left - take as u64;
                    self.state = if left == 0 {
                        State::Done
                    } else {
                        State::Length(left)
                    };
                    return Ok(Step::Data { skip, take });
                }
                State::ChunkLine => match chunk_line(rest)? {
                    None => return Ok(Step::More { skip }),
                    Some((line, size)) => {
                        self.extensions += line.extension as u64;
                        if self.extensions > EXTENSIONS_BYTES_MAX {
                            return Err(Fault::Malformed("too many chunk extensions"));
                        }
                        skip += line.bytes;
                        self.state = if size == 0 {
                            State::Trailers
                        } else {
                            State::Chunk(size)
                        };
                    }
                },
                State::Chunk(left) => {
                    let take = at_most(rest.len(), left);
                    let left = left - take as u64;
                    self.state = if left == 0 {
                        State::ChunkEnd
                    } else {
                        State::Chunk(left)
                    };
                    return Ok(Step::Data { skip, take });
                }
                State::ChunkEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        skip += 2;
                        self.state = State::ChunkLine;
                    }
                    [b'\r'] => return Ok(Step::More { skip }),
                    _ => return Err(Fault::Malformed("a chunk that is longer than it says")),
                },
                State::Trailers => {
                    let (used, trailers) = match trailers(rest)? {
                        None => return Ok(Step::More { skip }),
                        Some(found) => found,
                    };
                    self.state = State::Done;
                    return Ok(Step::End {
                        skip: skip + used,
                        trailers,
                    });
                }
            }
        }
    }
}

fn at_most(available: usize, left: u64) -> usize {
    usize::try_from(left).map_or(available, |left| available.min(left))
}

struct Line {
    bytes: usize,
    extension: usize,
}

/// Reads `SIZE[;extension] CR LF`; `None` while the line is not whole.
fn chunk_line(input: &[u8]) -> Result<Option<(Line, u64)>, Fault> {
    let window = &input[..input.len().min(CHUNK_LINE_BYTES_MAX)];
    let digits = window
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    if digits > CHUNK_DIGITS_MAX || (digits == 0 && !window.is_empty()) {
        return Err(Fault::Malformed("a chunk size that is no number"));
    }
    match window.get(digits) {
        None | Some(b'\r' | b';') => {}
        Some(_) => return Err(Fault::Malformed("a chunk size that is no number")),
    }
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        return if window.len() == CHUNK_LINE_BYTES_MAX {
            Err(Fault::Malformed("a chunk line that is too long"))
        } else {
            Ok(None)
        };
    };
    let extension = &window[digits..end];
    let sound = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    match extension.split_last() {
        Some((b'\r', extension)) if extension.iter().all(sound) => {}
        _ => return Err(Fault::Malformed("a chunk line with control characters")),
    }
    let size = window[..digits].iter().fold(0, |sum, digit| {
        sum << 4 | u64::from((*digit as char).to_digit(16).unwrap_or(0))
    });
    let line = Line {
        bytes: end + 1,
        extension: extension.len() - 1,
    };
    Ok(Some((line, size)))
}

type Trailers = (usize, Option<(HeaderMap, Spelling)>);

/// Reads what stands behind the last chunk; `None` while it is not whole.
fn trailers(input: &[u8]) -> Result<Option<Trailers>, Fault> {
    match input {
        [b'\r', b'\n', ..] => return Ok(Some((2, None))),
        [b'\r'] => return Ok(None),
        _ => {}
    }
    match head::end_of(input, 0)? {
        Some(end) if end <= TRAILER_BYTES_MAX => {
            let trailers = head::trailers(&Bytes::copy_from_slice(&input[..end]))?;
            Ok(Some((end, Some(trailers))))
        }
        None if input.len() <= TRAILER_BYTES_MAX => Ok(None),
        _ => Err(Fault::TooLarge),
    }
}
