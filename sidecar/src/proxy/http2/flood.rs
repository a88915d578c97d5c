//! What a client's frames ask of us and what they bring: too much of the one without the other is a flood.
//!
//! Not here: what the frames mean (the h2 crate, which bounds what each of them makes us hold), and what is done about a
//! flood (`server.rs`). Only the nine bytes before each payload are read, on their way to the crate. Each kind of burden
//! draws on an allowance that grows with time and with what goes well, so that whoever gets something done may say as
//! much beside it as its library likes.

use std::{fmt, time::Duration};

use mesh_core::moment::Moment;

use crate::proxy::detect::PREFACE;

/// The bytes before a frame's payload (RFC 9113, 4.1).
const HEAD_BYTES: usize = 9;
/// Allowances grow in steps of this.
const STEP: Duration = Duration::from_millis(100);

/// Frames that move nothing (PING, PRIORITY, WINDOW_UPDATE, DATA without content, unknown ones), at once and a step.
const CHATTER: Allowance = Allowance::new(1_000, 10);
/// SETTINGS are as dear as so many of them: a change of the window is made in every stream.
const SETTINGS_COST: u32 = 10;
/// A request makes so many of them good: clients grant windows and ask about the path's speed (gRPC) as they go.
const CHATTER_PER_REQUEST: u32 = 4;
/// So do so many bytes that we sent, answers to the chatter itself aside. The smallest frame of a conversation pays for
/// the PING and the WINDOW_UPDATE that it may be answered by.
const BYTES_PER_CHATTER: u64 = 4;

/// Streams that the client cancels, in halves, at once and a step: 500, and then 100 a second.
const RESETS: Allowance = Allowance::new(1_000, 20);
/// What one costs of it; a request brings half of that back, so whoever cancels less than every other one never comes to
/// its end. (Envoy asks the same of the first 500 streams.)
const RESET_COST: u32 = 2;
const RESETS_PER_REQUEST: u32 = 1;

/// Requests that the h2 crate refuses before anybody here sees them (malformed, too large, too many at once, cancelled
/// in the same breath), at once and a step.
const REFUSALS: Allowance = Allowance::new(1_000, 10);

/// DATA whose padding may be all there is to it.
const PADDED_BYTES: usize = 256;

/// What there is too much of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flood {
    /// Frames that move nothing.
    Chatter,
    /// Requests that are cancelled.
    Resets,
    /// Requests that are none.
    Refusals,
}

impl Flood {
    /// The word for metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Flood::Chatter => "chatter",
            Flood::Resets => "resets",
            Flood::Refusals => "refusals",
        }
    }
}

impl fmt::Display for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flood::Chatter => "too many frames that move nothing",
            Flood::Resets => "too many requests that are cancelled",
            Flood::Refusals => "too many requests that are none",
        })
    }
}

/// How much of something is borne.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    left: u32,
    max: u32,
    step: u32,
}

impl Allowance {
    const fn new(max: u32, step: u32) -> Allowance {
        Allowance {
            left: max,
            max,
            step,
        }
    }

    fn grow(&mut self, by: u32) {
        self.left = self.left.saturating_add(by).min(self.max);
    }

    /// False when it is used up.
    fn spend(&mut self, cost: u32) -> bool {
        let left = self.left.checked_sub(cost);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

/// The frames of one client connection, as they come.
#[derive(Debug)]
pub struct Frames {
    /// The head of the next one, as far as it has come.
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
    /// Bytes of the present one's payload (or of the preface) still to come.
    left: usize,
    /// The present one's payload ends a header block.
    ends_block: bool,
    /// A header block has begun and not ended.
    block_since: Option<Moment>,
    /// The highest stream so far.
    stream: u32,
    /// Requests that have begun, and how many of them nobody has seen.
    requests: u64,
    unseen: u64,
    chatter: Allowance,
    resets: Allowance,
    refusals: Allowance,
    grown: Moment,
    /// What we have sent by then, and what of it was answers to chatter or has paid for some.
    settled_bytes: u64,
    flood: Option<Flood>,
}

mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const CONTINUATION: u8 = 9;
}

/// `END_STREAM`, and of PING and SETTINGS `ACK`.
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

impl Frames {
    /// Of a connection whose preface is to come.
    pub fn new(now: Moment) -> Frames {
        Frames {
            head: [0; HEAD_BYTES],
            head_bytes: 0,
            left: PREFACE.len(),
            ends_block: false,
            block_since: None,
            stream: 0,
            requests: 0,
            unseen: 0,
            chatter: CHATTER,
            resets: RESETS,
            refusals: REFUSALS,
            grown: now,
            settled_bytes: 0,
            flood: None,
        }
    }

    /// What there was too much of; once there was, nothing more is read.
    pub fn flood(&self) -> Option<Flood> {
        self.flood
    }

    /// Since when a header block is on its way.
    pub fn block_since(&self) -> Option<Moment> {
        self.block_since
    }

    /// Looks at what came; `sent`: bytes that went to the client so far.
    pub fn look(&mut self, mut bytes: &[u8], sent: u64, now: Moment) {
        self.grow(sent, now);
        while !bytes.is_empty() && self.flood.is_none() {
            if self.left > 0 {
                let skipped = self.left.min(bytes.len());
                bytes = &bytes[skipped..];
                self.left -= skipped;
            } else {
                let taken = (HEAD_BYTES - self.head_bytes).min(bytes.len());
                self.head[self.head_bytes..self.head_bytes + taken]
                    .copy_from_slice(&bytes[..taken]);
                bytes = &bytes[taken..];
                self.head_bytes += taken;
                if self.head_bytes < HEAD_BYTES {
                    return;
                }
                self.head_bytes = 0;
                self.begin_frame(now);
            }
            if self.left == 0 && self.ends_block {
                self.ends_block = false;
                self.block_since = None;
            }
        }
    }

    /// So many requests have been seen by now of all that came; the others were refused, or are not read yet, and then
    /// they do not count once they are.
    pub fn seen(&mut self, requests: u64) {
        let unseen = self.requests.saturating_sub(requests);
        let count = |span: u64| u32::try_from(span).unwrap_or(u32::MAX);
        if !self
            .refusals
            .spend(count(unseen.saturating_sub(self.unseen)))
        {
            self.flood = self.flood.or(Some(Flood::Refusals));
        }
        self.refusals
            .grow(count(self.unseen.saturating_sub(unseen)));
        self.unseen = unseen;
    }

    fn grow(&mut self, sent: u64, now: Moment) {
        let steps = now.since(self.grown).as_nanos() / STEP.as_nanos();
        if steps > 0 {
            self.grown = now;
            let steps = u32::try_from(steps).unwrap_or(u32::MAX);
            for allowance in [&mut self.chatter, &mut self.resets, &mut self.refusals] {
                allowance.grow(allowance.step.saturating_mul(steps));
            }
        }
        let paid = sent.saturating_sub(self.settled_bytes) / BYTES_PER_CHATTER;
        self.settled_bytes += paid * BYTES_PER_CHATTER;
        self.chatter.grow(u32::try_from(paid).unwrap_or(u32::MAX));
    }

    fn begin_frame(&mut self, now: Moment) {
        let [a, b, c, kind, flags, stream @ ..] = self.head;
        self.left = u32::from_be_bytes([0, a, b, c]) as usize;
        let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
        let is_flood = match kind {
            kind::HEADERS => {
                self.begin_block(flags, now);
                // A second block on a stream is its trailers.
                if stream > self.stream {
                    self.stream = stream;
                    self.requests += 1;
                    self.resets.grow(RESETS_PER_REQUEST);
                    self.chatter.grow(CHATTER_PER_REQUEST);
                }
                None
            }
            // h2 counts those of one block.
            kind::CONTINUATION => {
                self.ends_block = flags & END_HEADERS != 0;
                None
            }
            kind::DATA => {
                let may_be_empty =
                    self.left == 0 || (flags & PADDED != 0 && self.left <= PADDED_BYTES);
                let moves_nothing = may_be_empty && flags & END_STREAM == 0;
                self.chat(u32::from(moves_nothing), 0)
            }
            kind::RST_STREAM => (!self.resets.spend(RESET_COST)).then_some(Flood::Resets),
            // Their answers are none of what goes well.
            kind::PING if flags & ACK == 0 => self.chat(1, HEAD_BYTES + 8),
            kind::SETTINGS if flags & ACK == 0 => self.chat(SETTINGS_COST, HEAD_BYTES),
            _ => self.chat(1, 0),
        };
        self.flood = self.flood.or(is_flood);
    }

    fn begin_block(&mut self, flags: u8, now: Moment) {
        self.block_since = Some(now);
        self.ends_block = flags & END_HEADERS != 0;
    }

    fn chat(&mut self, cost: u32, answer_bytes: usize) -> Option<Flood> {
        self.settled_bytes += answer_bytes as u64;
        (!self.chatter.spend(cost)).then_some(Flood::Chatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        [&head, payload].concat()
    }

    fn begun() -> Frames {
        let mut frames = Frames::new(Moment::START);
        frames.look(PREFACE, 0, Moment::START);
        frames
    }

    /// How many rounds of the same are borne, all in one moment; at most `max`.
    fn borne(max: u32, round: impl Fn(u32) -> Vec<u8>) -> (u32, Option<Flood>) {
        let mut frames = begun();
        for number in 0..max {
            frames.look(&round(number), 0, Moment::START);
            if frames.flood().is_some() {
                return (number, frames.flood());
            }
        }
        (max, None)
    }

    fn request(number: u32) -> Vec<u8> {
        frame(
            kind::HEADERS,
            END_HEADERS | END_STREAM,
            2 * number + 1,
            b"x",
        )
    }

    #[test]
    fn what_moves_nothing_is_borne_so_long() {
        let chatter = Some(Flood::Chatter);
        let ping = |_| frame(kind::PING, 0, 0, &[0; 8]);
        let settings = |_| frame(kind::SETTINGS, 0, 0, &[]);
        let empty = |_| frame(kind::DATA, 0, 1, &[]);
        let padded = |_| frame(kind::DATA, PADDED, 1, &[0; 2]);
        let unknown = |_| frame(0x20, 0, 0, b"what?");
        assert_eq!(borne(5_000, ping), (1_000, chatter));
        assert_eq!(borne(5_000, settings), (100, chatter));
        assert_eq!(borne(5_000, empty), (1_000, chatter));
        assert_eq!(borne(5_000, padded), (1_000, chatter));
        assert_eq!(borne(5_000, unknown), (1_000, chatter));
        // What moves something may go on for ever.
        assert_eq!(borne(5_000, |_| frame(kind::DATA, 0, 1, b"x")).1, None);
        assert_eq!(borne(5_000, request).1, None);
    }

    #[test]
    fn whoever_cancels_every_other_request_at_most_may_go_on() {
        let cancel = |number: u32| frame(kind::RST_STREAM, 0, 2 * number + 1, &[0; 4]);
        let all = |number| [request(number), cancel(number)].concat();
        let (rounds, flood) = borne(5_000, all);
        assert_eq!(flood, Some(Flood::Resets));
        assert!((900..1_100).contains(&rounds), "{rounds}");
        let half = |number: u32| {
            [
                request(2 * number),
                request(2 * number + 1),
                cancel(2 * number),
            ]
            .concat()
        };
        assert_eq!(borne(5_000, half).1, None);
        // All of a hundred at once, as gRPC does when its own caller goes.
        let at_once = |burst: u32| {
            let numbers = || burst * 100..burst * 100 + 100;
            let asked: Vec<u8> = numbers().flat_map(request).collect();
            [asked, numbers().flat_map(cancel).collect()].concat()
        };
        assert_eq!(borne(9, at_once).1, None);
    }

    #[test]
    fn what_goes_well_pays_for_chatter_and_its_answers_do_not() {
        let ping = frame(kind::PING, 0, 0, &[0; 8]);
        let mut frames = begun();
        let mut sent = 0;
        for _ in 0..10_000 {
            // A message of five bytes, answered by the question how fast the path is and by a wider window.
            sent += 9 + 5;
            frames.look(&ping, sent, Moment::START);
            frames.look(&frame(8, 0, 0, &[0, 0, 0, 5]), sent, Moment::START);
            sent += 17;
        }
        assert_eq!(frames.flood(), None);
        let mut frames = begun();
        let mut pings = 0;
        while frames.flood().is_none() {
            frames.look(&ping, pings * 17, Moment::START);
            pings += 1;
        }
        assert_eq!(pings, 1_001);
    }

    #[test]
    fn time_heals() {
        let ping = frame(kind::PING, 0, 0, &[0; 8]);
        let mut frames = begun();
        for number in 0..10_000 {
            frames.look(&ping, 0, Moment::from_millis(number * 10));
        }
        assert_eq!(frames.flood(), None, "a hundred a second");
    }

    #[test]
    fn requests_that_nobody_saw_were_refused() {
        let mut frames = begun();
        for number in 0..5_000 {
            frames.look(&request(number), 0, Moment::START);
            frames.seen(frames.requests);
        }
        assert_eq!(frames.flood(), None);
        // One that is late is none.
        frames.look(&request(5_000), 0, Moment::START);
        frames.seen(frames.requests - 1);
        frames.seen(frames.requests);
        let seen = frames.requests;
        for number in 5_001..6_002 {
            assert_eq!(frames.flood(), None, "{number}");
            frames.look(&request(number), 0, Moment::START);
            frames.seen(seen);
        }
        assert_eq!(frames.flood(), Some(Flood::Refusals));
    }

    #[test]
    fn a_header_block_is_on_its_way_until_its_last_byte_however_it_comes() {
        let (whole, at) = (frame(kind::HEADERS, 0, 1, b"head"), Moment::from_millis);
        let rest = frame(kind::CONTINUATION, END_HEADERS, 1, b"rest");
        let ping = frame(kind::PING, 0, 0, &[0; 8]);
        let said = [PREFACE, &ping, &whole, &rest, &ping].concat();
        let begins = PREFACE.len() + ping.len() + HEAD_BYTES;
        let ends = said.len() - ping.len();
        let mut frames = Frames::new(Moment::START);
        for (index, byte) in said.iter().enumerate() {
            frames.look(&[*byte], 0, at(index as u64));
            let count = index + 1;
            let expected = (begins..ends)
                .contains(&count)
                .then(|| at(begins as u64 - 1));
            assert_eq!(frames.block_since(), expected, "after {count} bytes");
        }
        // The next one has its own time.
        frames.look(&frame(kind::HEADERS, 0, 3, b"head"), 0, at(9_000));
        assert_eq!(frames.block_since(), Some(at(9_000)));
    }
}
