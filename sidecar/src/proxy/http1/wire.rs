//! One HTTP/1 connection's bytes: those read and not used yet, those still to be written.
//!
//! Not here: what the bytes mean (`head.rs`, `decode.rs`). A connection that rests holds no buffer: it borrows one
//! of its worker's while there is something in it.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    decode::{Decoder, Step},
    head::{Framing, Spelling},
};
use crate::proxy::{body::BodyError, connections::Entry, transport::Transport};

/// Size of a buffer, in bytes; a read that does not fill it tells the runtime that there is no more for now.
pub const BUFFER_BYTES: usize = 16 * 1024;
/// Buffers of each kind that a worker keeps for the next connection that needs one.
const SPARE_MAX: usize = 64;
/// Data up to this size is copied behind what is written already; longer data is written from where it lies.
const COPY_BYTES_MAX: usize = 4 * 1024;
/// Bytes gathered before they are written.
const GATHER_BYTES: usize = 16 * 1024;
/// Pieces that are written at once behind what waits.
const GATHERED_SLICES_MAX: usize = 7;

/// Fields that a map has room for without growing: a browser sends about so many, and we add seven.
const FIELDS_EXPECTED: usize = 24;
/// A map that has grown beyond this for a long head is not kept.
const FIELDS_KEPT_MAX: usize = 64;

/// A worker's buffers, and maps of fields, that no connection uses now.
#[derive(Debug, Default)]
pub struct Buffers {
    inputs: RefCell<Vec<Box<[u8]>>>,
    outputs: RefCell<Vec<Vec<u8>>>,
    maps: RefCell<Vec<HeaderMap>>,
}

impl Buffers {
    fn input(&self) -> Box<[u8]> {
        let spare = self.inputs.borrow_mut().pop();
        spare.unwrap_or_else(|| vec![0; BUFFER_BYTES].into())
    }

    fn take_input(&self, buffer: Box<[u8]>) {
        let mut inputs = self.inputs.borrow_mut();
        // One that has grown for a long head is not kept.
        if buffer.len() == BUFFER_BYTES && inputs.len() < SPARE_MAX {
            inputs.push(buffer);
        }
    }

    fn output(&self) -> Vec<u8> {
        self.outputs
            .borrow_mut()
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES))
    }

    fn take_output(&self, mut buffer: Vec<u8>) {
        let mut outputs = self.outputs.borrow_mut();
        if buffer.capacity() <= 2 * BUFFER_BYTES && outputs.len() < SPARE_MAX {
            buffer.clear();
            outputs.push(buffer);
        }
    }

    /// An empty map of fields.
    pub fn map(&self) -> HeaderMap {
        let spare = self.maps.borrow_mut().pop();
        spare.unwrap_or_else(|| HeaderMap::with_capacity(FIELDS_EXPECTED))
    }

    /// Keeps a map that is done with.
    pub fn take_map(&self, mut map: HeaderMap) {
        let mut maps = self.maps.borrow_mut();
        if (1..=FIELDS_KEPT_MAX).contains(&map.capacity()) && maps.len() < SPARE_MAX {
            map.clear();
            maps.push(map);
        }
    }
}

/// A connection that its reader and its writer share, always on one thread.
pub type SharedWire = Rc<RefCell<Wire>>;

/// One connection.
#[derive(Debug)]
pub struct Wire {
    transport: Transport,
    buffers: Rc<Buffers>,
    input: Box<[u8]>,
    from: usize,
    to: usize,
    output: Vec<u8>,
    written: usize,
    /// Written after `output`.
    tail: Bytes,
    written_ever: u64,
    /// What waits to be written has let the other connections of this turn go first.
    has_stood_back: bool,
    /// What was written is kept back by the transport (TLS), and must be flushed.
    flushing: bool,
    /// What was gathered could not be written.
    broken: bool,
    decoder: Decoder,
    /// Counts the messages read; whoever holds an earlier one reads no more.
    message: u64,
    /// How the trailers were spelled that were read last.
    spelling: Option<Box<Spelling>>,
    /// Whoever waits for the end of the body being read, which somebody else reads.
    on_body_end: Option<Waker>,
    /// The other side has ended, or the connection broke.
    ended: bool,
    /// After the message under way another one may follow.
    keeps: bool,
}

impl Wire {
    /// A connection on which nothing was said yet.
    pub fn new(transport: Transport, buffers: &Rc<Buffers>) -> SharedWire {
        let wire = Wire {
            transport,
            buffers: Rc::clone(buffers),
            input: Box::default(),
            from: 0,
            to: 0,
            output: Vec::new(),
            written: 0,
            tail: Bytes::new(),
            written_ever: 0,
            has_stood_back: false,
            flushing: false,
            broken: false,
            decoder: Decoder::new(Framing::Empty),
            message: 0,
            spelling: None,
            on_body_end: None,
            ended: false,
            keeps: true,
        };
        Rc::new(RefCell::new(wire))
    }

    /// What its worker keeps for all connections.
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// What was read and not used yet.
    pub fn input(&self) -> &[u8] {
        &self.input[self.from..self.to]
    }

    /// Uses up `count` bytes of the input.
    pub fn consume(&mut self, count: usize) {
        self.from += count;
        if self.from == self.to {
            self.release_input();
        }
    }

    fn release_input(&mut self) {
        (self.from, self.to) = (0, 0);
        if !self.input.is_empty() {
            self.buffers.take_input(std::mem::take(&mut self.input));
        }
    }

    /// Reads once; the number of bytes that came, 0 at the end. The input grows while nothing of it is used up, so
    /// whoever waits for more of it bounds it.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        if self.input.is_empty() {
            self.input = self.buffers.input();
        } else if self.to == self.input.len() {
            if self.from > 0 {
                self.input.copy_within(self.from..self.to, 0);
            } else {
                let mut grown = std::mem::take(&mut self.input).into_vec();
                grown.resize(grown.len() * 2, 0);
                self.input = grown.into();
            }
            (self.from, self.to) = (0, self.to - self.from);
        }
        let mut room = ReadBuf::new(&mut self.input[self.to..]);
        let read = Pin::new(&mut self.transport).poll_read(cx, &mut room);
        let count = room.filled().len();
        self.to += count;
        if self.to == self.from {
            self.release_input();
        }
        ready!(read).inspect_err(|_| self.ended = true)?;
        self.ended |= count == 0;
        Poll::Ready(Ok(count))
    }

    /// Whether it is open and silent, as a connection at rest has to be. Costs no system call while it is.
    pub fn rests(&mut self) -> bool {
        if self.ended || self.from < self.to {
            return false;
        }
        let mut byte = [0];
        let mut room = ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(&mut self.transport)
            .poll_read(&mut cx, &mut room)
            .is_pending()
    }

    /// The other side has ended, or the connection broke.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Where to append what is to be written.
    pub fn output(&mut self) -> &mut Vec<u8> {
        if self.output.capacity() == 0 {
            self.output = self.buffers.output();
        }
        &mut self.output
    }

    /// Something is waiting to be written.
    pub fn has_output(&self) -> bool {
        self.has_unwritten() || self.flushing
    }

    fn has_unwritten(&self) -> bool {
        !self.output.is_empty() || !self.tail.is_empty()
    }

    /// Enough is waiting to be written; nothing may be added before it is.
    pub fn is_full(&self) -> bool {
        self.output.len() >= GATHER_BYTES || !self.tail.is_empty()
    }

    /// Adds data; not to a wire that is full.
    pub fn push(&mut self, data: Bytes) {
        if data.len() <= COPY_BYTES_MAX {
            self.output().extend_from_slice(&data);
        } else {
            self.tail = data;
        }
    }

    /// Bytes written since the connection was opened.
    pub fn written(&self) -> u64 {
        self.written_ever
    }

    /// Writes what waits.
    ///
    /// What is short stands back once, until every other connection that is ready now has been read. Then many pieces
    /// leave one after another, and a peer on this machine is woken once for all of them; woken for each and asleep
    /// again before the next, it would cost the kernel more than all else that it does for a request.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.has_unwritten() && !self.has_stood_back && !self.is_full() {
            self.has_stood_back = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.poll_flush_now(cx)
    }

    /// Writes what waits, for whoever may not be asked again.
    pub fn poll_flush_now(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.has_unwritten() {
            let head = &self.output[self.written..];
            let transport = Pin::new(&mut self.transport);
            let count = if self.tail.is_empty() {
                ready!(transport.poll_write(cx, head))?
            } else if head.is_empty() {
                ready!(transport.poll_write(cx, &self.tail))?
            } else {
                let slices = [io::IoSlice::new(head), io::IoSlice::new(&self.tail)];
                ready!(transport.poll_write_vectored(cx, &slices))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written_ever += count as u64;
            let of_head = count.min(head.len());
            self.written += of_head;
            self.tail.advance(count - of_head);
            if self.written == self.output.len() {
                self.written = 0;
                self.output.clear();
            }
        }
        self.has_stood_back = false;
        if self.output.capacity() > 0 {
            self.buffers.take_output(std::mem::take(&mut self.output));
        }
        // TLS keeps a record back until it is flushed; a socket has nothing to flush.
        let flushed = Pin::new(&mut self.transport).poll_flush(cx);
        self.flushing = flushed.is_pending();
        flushed
    }

    /// Takes `slices`, if they are short to be written by the next [`Wire::poll_gathered`], else by writing them behind
    /// what waits; how many bytes of them were taken.
    pub fn poll_gather(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if length <= COPY_BYTES_MAX {
            if self.is_full() {
                ready!(self.poll_flush_now(cx))?;
            }
            for slice in slices {
                self.output().extend_from_slice(slice);
            }
            return Poll::Ready(Ok(length));
        }
        loop {
            let waiting = &self.output[self.written..];
            let mut all = [io::IoSlice::new(waiting); 1 + GATHERED_SLICES_MAX];
            let more = slices.len().min(GATHERED_SLICES_MAX);
            all[1..=more].copy_from_slice(&slices[..more]);
            let transport = Pin::new(&mut self.transport);
            let count = ready!(transport.poll_write_vectored(cx, &all[..=more]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written_ever += count as u64;
            let of_waiting = count.min(waiting.len());
            self.written += of_waiting;
            if self.written < self.output.len() {
                continue;
            }
            self.written = 0;
            self.output.clear();
            // TLS may keep it back.
            self.flushing = true;
            if count > of_waiting {
                return Poll::Ready(Ok(count - of_waiting));
            }
        }
    }

    /// Writes what was gathered. A connection that cannot be written to says so when more is gathered: what it still
    /// has to tell is read first.
    pub fn poll_gathered(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.has_output() {
            return Poll::Ready(());
        }
        if ready!(self.poll_flush_now(cx)).is_err() {
            self.broken = true;
            self.flushing = false;
            (self.written, self.tail) = (0, Bytes::new());
            self.output.clear();
        }
        Poll::Ready(())
    }

    /// Ends our direction.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }

    /// A message's head was read: its body follows, and then another message if `keeps`.
    pub fn begin_body(&mut self, framing: Framing, keeps: bool) {
        self.decoder = Decoder::new(framing);
        self.message += 1;
        self.on_body_end = None;
        self.spelling = None;
        self.keeps = keeps;
    }

    /// How the trailers of the body just read were spelled; once.
    pub fn take_spelling(&mut self) -> Option<Spelling> {
        self.spelling.take().map(|spelling| *spelling)
    }

    /// The number of the message being read.
    pub fn message(&self) -> u64 {
        self.message
    }

    /// Whoever reads the body now has lost it: what is left of it is read, or thrown away, by the caller.
    pub fn disown(&mut self) {
        self.message += 1;
    }

    /// Wakes `cx` once the body being read has ended, whoever reads it.
    pub fn await_body_end(&mut self, cx: &Context<'_>) {
        self.on_body_end = Some(cx.waker().clone());
    }

    /// The body being read has ended.
    pub fn body_is_done(&self) -> bool {
        self.decoder.is_done()
    }

    /// Bytes that the body being read still has, if that is known.
    pub fn body_left(&self) -> Option<u64> {
        self.decoder.left()
    }

    /// No other message may follow the one under way.
    pub fn forsake(&mut self) {
        self.keeps = false;
    }

    /// The message was read whole and another may follow.
    pub fn is_reusable(&self) -> bool {
        self.keeps
            && self.decoder.is_done()
            && !self.ended
            && self.from == self.to
            && !self.has_output()
    }

    /// The next piece of the body being read.
    pub fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.poll_piece(cx);
        let is_over = self.decoder.is_done() || matches!(&polled, Poll::Ready(Some(Err(_))));
        if is_over && let Some(waker) = self.on_body_end.take() {
            waker.wake();
        }
        polled
    }

    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let step = self.decoder.next(&self.input[self.from..self.to]);
            match step.map_err(BodyError::Malformed)? {
                Step::Data { skip, take } => {
                    self.consume(skip);
                    let data = Bytes::copy_from_slice(&self.input[self.from..self.from + take]);
                    self.consume(take);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Step::End { skip, trailers } => {
                    self.consume(skip);
                    let trailers = trailers.map(|(trailers, spelling)| {
                        self.spelling = Some(Box::new(spelling));
                        Ok(Frame::trailers(trailers))
                    });
                    return Poll::Ready(trailers);
                }
                Step::More { skip } => {
                    self.consume(skip);
                    if ready!(self.poll_fill(cx))? == 0 {
                        return Poll::Ready(if self.decoder.closed() {
                            None
                        } else {
                            Some(Err(BodyError::Cut))
                        });
                    }
                }
            }
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.release_input();
        if self.output.capacity() > 0 {
            self.buffers.take_output(std::mem::take(&mut self.output));
        }
    }
}

/// A connection that has left HTTP: what was read already comes first.
#[derive(Debug)]
pub struct Raw(pub SharedWire);

impl Raw {
    /// Its place in its worker's table.
    pub fn entry(&self) -> Option<Rc<Entry>> {
        self.0.borrow().transport.entry().cloned()
    }
}

impl AsyncRead for Raw {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = &mut *self.0.borrow_mut();
        let held = wire.input().len().min(buf.remaining());
        if held > 0 {
            buf.put_slice(&wire.input()[..held]);
            wire.consume(held);
            return Poll::Ready(Ok(()));
        }
        if wire.ended {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut wire.transport).poll_read(cx, buf)
    }
}

impl AsyncWrite for Raw {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.borrow_mut().transport).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.borrow_mut().transport).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().transport.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().transport).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().transport).poll_shutdown(cx)
    }
}
