//! One stream of HTTP/2 that has left HTTP: bytes both ways.
//!
//! Not here: where they go (`tunnel.rs`).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Largest piece that is written at once, in bytes, and that may wait for the other side's window.
const PIECE_BYTES_MAX: usize = 16 * 1024;

/// A stream as its two directions.
#[derive(Debug)]
pub struct Stream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Come, and not read yet.
    held: Bytes,
    has_ended: bool,
}

impl Stream {
    /// Both directions of a stream whose heads were exchanged.
    pub fn new(send: SendStream<Bytes>, recv: RecvStream) -> Stream {
        Stream {
            send,
            recv,
            held: Bytes::new(),
            has_ended: false,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.held.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(data)) => self.held = data,
                Some(Err(error)) => return Poll::Ready(read_to_the_end(error)),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.held.len().min(buf.remaining());
        buf.put_slice(&self.held[..count]);
        self.held.advance(count);
        // It fails for a stream that has ended, which needs no window.
        let _ = self.recv.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

/// A stream that was given up says no more, and nothing went wrong.
fn read_to_the_end(error: h2::Error) -> io::Result<()> {
    match error.reason() {
        Some(Reason::NO_ERROR | Reason::CANCEL) => Ok(()),
        _ => Err(as_io(error)),
    }
}

fn as_io(error: h2::Error) -> io::Error {
    if error.reason() == Some(Reason::STREAM_CLOSED) {
        return io::Error::new(io::ErrorKind::BrokenPipe, error);
    }
    io::Error::other(error)
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(1);
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(room) => room.map_err(as_io)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let count = buf.len().min(PIECE_BYTES_MAX);
        let piece = Bytes::copy_from_slice(&buf[..count]);
        self.send.send_data(piece, false).map_err(as_io)?;
        Poll::Ready(Ok(count))
    }

    /// The connection writes at the end of its turn.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_ended {
            self.has_ended = true;
            self.send.send_data(Bytes::new(), true).map_err(as_io)?;
        }
        Poll::Ready(Ok(()))
    }
}
