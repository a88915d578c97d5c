//! What an HTTP/2 connection says, gathered until its task's turn ends.
//!
//! Not here: frames (the h2 crate). h2 hands over every frame of data by itself and flushes behind it: a hundred answers
//! of a kilobyte that came together would leave in a hundred writes, and behind TLS in a hundred records. So a flush
//! waits until the task that speaks for the connection has had its turn; what waits is bounded, and more than that is
//! written at once.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    connections::Entry,
    http1::wire::{Raw, SharedWire},
    http2::flood::{Flood, Frames},
    patience::Patience,
};

/// One connection of HTTP/2, held by the task that drives it and by the h2 crate.
#[derive(Clone, Debug)]
pub struct Gathered {
    wire: SharedWire,
    client: Option<Rc<Client>>,
    /// When anything came last.
    heard: Rc<Cell<Instant>>,
}

/// What a client's connection is watched for.
#[derive(Debug)]
struct Client {
    /// Told of its slowness.
    patience: Arc<Patience>,
    frames: RefCell<Frames>,
    entry: Rc<Entry>,
}

impl Client {
    /// Looks at what came; false: it is a flood, of which nothing is to be read.
    fn bears(&self, bytes: &[u8]) -> bool {
        let frames = &mut *self.frames.borrow_mut();
        let (_, sent) = self.entry.bytes();
        frames.look(bytes, sent, self.patience.now());
        self.patience.head_since(frames.block_since());
        frames.flood().is_none()
    }
}

impl Gathered {
    /// A connection to an endpoint.
    pub fn new(wire: SharedWire) -> Gathered {
        Gathered {
            wire,
            client: None,
            heard: Rc::new(Cell::new(Instant::now())),
        }
    }

    /// A client's connection, some of whose first bytes may have been read.
    pub fn of_client(wire: SharedWire, patience: Arc<Patience>, entry: Rc<Entry>) -> Gathered {
        let frames = RefCell::new(Frames::new(patience.now()));
        let client = Client {
            patience,
            frames,
            entry,
        };
        Gathered {
            client: Some(Rc::new(client)),
            ..Gathered::new(wire)
        }
    }

    /// Whether what came is a flood, where so many requests have been seen by now.
    pub fn flood(&self, requests: u64) -> Option<Flood> {
        let frames = &mut *self.client.as_ref()?.frames.borrow_mut();
        frames.seen(requests);
        frames.flood()
    }

    /// When anything came last, or it was opened; kept up to date.
    pub fn heard(&self) -> Rc<Cell<Instant>> {
        Rc::clone(&self.heard)
    }

    /// Whatever was said goes out.
    pub fn end_turn(&self, cx: &mut Context<'_>) {
        let wire = &mut *self.wire.borrow_mut();
        let before = wire.written();
        let is_out = wire.poll_gathered(cx).is_ready();
        if let Some(Client { patience, .. }) = self.client.as_deref() {
            patience.wrote(is_out || wire.written() != before);
        }
    }

    fn taken(&self, taken: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let (Some(client), Poll::Pending) = (&self.client, &taken) {
            client.patience.wrote(false);
        }
        taken
    }
}

impl AsyncRead for Gathered {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut Raw(Rc::clone(&self.wire))).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.heard.set(Instant::now());
            let client = self.client.as_ref();
            if client.is_some_and(|client| !client.bears(&buf.filled()[before..])) {
                // Whoever drives the connection is about to ask for it.
                buf.set_filled(before);
                return Poll::Pending;
            }
        }
        read
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let taken = (self.wire.borrow_mut()).poll_gather(cx, &[io::IoSlice::new(buf)]);
        self.taken(taken)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let taken = self.wire.borrow_mut().poll_gather(cx, bufs);
        self.taken(taken)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Done at the end of the turn.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wire = &mut *self.wire.borrow_mut();
        match wire.poll_gathered(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => wire.poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::proxy::{
        http1::wire::{Buffers, Wire},
        transport::Transport,
    };

    /// A connection, and its other end behind a pipe of so many bytes.
    fn connection(pipe_bytes: usize) -> (Gathered, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(pipe_bytes);
        let wire = Wire::new(Transport::Pipe(ours), &Rc::<Buffers>::default());
        (Gathered::new(wire), theirs)
    }

    /// What has arrived at the other end.
    async fn arrived(theirs: &mut DuplexStream) -> Vec<u8> {
        let mut all = Vec::new();
        let mut piece = vec![0; 64 * 1024];
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            let mut room = ReadBuf::new(&mut piece);
            match Pin::new(&mut *theirs).poll_read(&mut cx, &mut room) {
                Poll::Ready(Ok(())) if !room.filled().is_empty() => {
                    all.extend_from_slice(room.filled());
                }
                _ => return all,
            }
        }
    }

    #[tokio::test]
    async fn what_is_said_in_one_turn_goes_out_at_its_end() {
        let (connection, mut theirs) = connection(1 << 20);
        let mut said = connection.clone();
        for word in ["one ", "two ", "three"] {
            said.write_all(word.as_bytes()).await.expect("it is taken");
            said.flush().await.expect("it is believed");
        }
        let theirs_before = arrived(&mut theirs).await;
        poll_fn(|cx| {
            connection.end_turn(cx);
            Poll::Ready(())
        })
        .await;
        assert!(theirs_before.is_empty());
        assert_eq!(arrived(&mut theirs).await, b"one two three");
    }

    #[tokio::test]
    async fn long_pieces_go_out_at_once_behind_what_waits() {
        let (mut connection, mut theirs) = connection(1 << 20);
        let long = vec![b'x'; 10_000];
        connection.write_all(b"short").await.expect("it is taken");
        connection.write_all(&long).await.expect("it is written");
        connection.write_all(b"after").await.expect("it is taken");
        let seen = arrived(&mut theirs).await;
        assert_eq!((&seen[..5], seen.len()), (&b"short"[..], 10_005));
        poll_fn(|cx| {
            connection.end_turn(cx);
            Poll::Ready(())
        })
        .await;
        assert_eq!(arrived(&mut theirs).await, b"after");
    }

    #[tokio::test]
    async fn no_more_is_held_for_a_peer_that_does_not_read() {
        let (mut connection, _theirs) = connection(1);
        let mut held = 0;
        poll_fn(|cx| {
            while let Poll::Ready(taken) = Pin::new(&mut connection).poll_write(cx, &[0; 1000]) {
                held += taken.expect("the pipe is open");
            }
            Poll::Ready(())
        })
        .await;
        assert!((16_000..=20_000).contains(&held), "{held}");
    }

    #[tokio::test]
    async fn whoever_shuts_down_has_said_everything_before() {
        let (mut connection, mut theirs) = connection(1 << 20);
        connection.write_all(b"goodbye").await.expect("it is taken");
        connection.shutdown().await.expect("it is open");
        let mut heard = Vec::new();
        theirs.read_to_end(&mut heard).await.expect("it is open");
        assert_eq!(heard, b"goodbye");
    }

    #[tokio::test]
    async fn a_broken_connection_is_told_when_more_is_said() {
        let (mut connection, theirs) = connection(1 << 20);
        connection.write_all(b"hello").await.expect("it is taken");
        drop(theirs);
        poll_fn(|cx| {
            connection.end_turn(cx);
            Poll::Ready(())
        })
        .await;
        let told = connection.write_all(b"again").await;
        assert_eq!(
            told.expect_err("it broke").kind(),
            io::ErrorKind::BrokenPipe
        );
    }
}
