//! One connection's bytes, whatever carries them: TCP, a Unix socket, in tests a pipe.
//!
//! Not here: opening them (`dial.rs`, `listen.rs`) and what the bytes mean.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

use super::{detect::PREFACE, patience::Patience};

/// What carries the bytes.
#[derive(Debug)]
pub enum Transport {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// A pipe in memory, so that tests need no socket.
    #[cfg(test)]
    Pipe(tokio::io::DuplexStream),
}

macro_rules! each {
    ($transport:expr, $stream:ident => $body:expr) => {
        match $transport.get_mut() {
            Transport::Tcp($stream) => $body,
            Transport::Unix($stream) => $body,
            #[cfg(test)]
            Transport::Pipe($stream) => $body,
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Transport::Tcp(stream) => stream.is_write_vectored(),
            Transport::Unix(stream) => stream.is_write_vectored(),
            #[cfg(test)]
            Transport::Pipe(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// A transport whose first bytes were read already, to tell what is spoken, and are handed out again.
#[derive(Debug)]
pub struct Rewound {
    first: [u8; PREFACE.len()],
    from: u8,
    to: u8,
    transport: Transport,
    patience: Arc<Patience>,
}

impl Rewound {
    /// Hands out `first`, at most the length of the HTTP/2 preface, before anything read from `transport`; what is
    /// read and written is told to `patience`.
    pub fn new(
        first: [u8; PREFACE.len()],
        length: usize,
        transport: Transport,
        patience: Arc<Patience>,
    ) -> Rewound {
        let to = u8::try_from(length.min(PREFACE.len())).unwrap_or(0);
        Rewound {
            first,
            from: 0,
            to,
            transport,
            patience,
        }
    }
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.from < this.to {
            let kept = &this.first[usize::from(this.from)..usize::from(this.to)];
            let count = kept.len().min(buf.remaining());
            buf.put_slice(&kept[..count]);
            this.from += u8::try_from(count).unwrap_or(0);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.transport).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            this.patience.read();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.transport).poll_write(cx, buf);
        self.patience.wrote(written.is_ready());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.transport).poll_write_vectored(cx, bufs);
        self.patience.wrote(written.is_ready());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}
