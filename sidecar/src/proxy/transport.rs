//! One connection's bytes, whatever carries them: TCP, TLS on it, a Unix socket, in tests a pipe.
//!
//! Not here: opening them (`dial.rs`, `listen.rs`) and what the bytes mean.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsStream;

use super::connections::Entry;

/// What carries the bytes.
#[derive(Debug)]
pub enum Transport {
    /// TCP.
    Tcp(TcpStream),
    /// TLS on TCP, hands shaken; boxed, for it holds a kilobyte of keys and buffers.
    Tls(Box<TlsStream<TcpStream>>),
    /// A Unix socket.
    Unix(UnixStream),
    /// Any of these that stands in its worker's table, where its bytes are counted.
    Listed(Rc<Entry>),
    /// A pipe in memory, so that tests need no socket.
    #[cfg(test)]
    Pipe(tokio::io::DuplexStream),
}

macro_rules! each {
    ($transport:expr, $stream:ident => $body:expr, $entry:ident => $listed:expr) => {
        match $transport.get_mut() {
            Transport::Tcp($stream) => $body,
            Transport::Tls($stream) => $body,
            Transport::Unix($stream) => $body,
            Transport::Listed($entry) => $listed,
            #[cfg(test)]
            Transport::Pipe($stream) => $body,
        }
    };
}

impl Transport {
    /// Whether TLS protects it.
    pub fn is_tls(&self) -> bool {
        match self {
            Transport::Listed(entry) => entry.carrier(Transport::is_tls).unwrap_or(false),
            other => matches!(other, Transport::Tls(_)),
        }
    }

    /// Its place in its worker's table.
    pub fn entry(&self) -> Option<&Rc<Entry>> {
        match self {
            Transport::Listed(entry) => Some(entry),
            _ => None,
        }
    }

    /// Looks at its TCP socket, if there is one under it.
    pub fn tcp<R>(&self, look: impl FnOnce(&TcpStream) -> R) -> Option<R> {
        match self {
            Transport::Tcp(stream) => Some(look(stream)),
            Transport::Tls(stream) => Some(look(stream.get_ref().0)),
            Transport::Listed(entry) => entry.tcp(look),
            Transport::Unix(_) => None,
            #[cfg(test)]
            Transport::Pipe(_) => None,
        }
    }

    /// Whether both sides agreed on HTTP/2 inside TLS (RFC 7301); `None` where there is no TLS or nothing was agreed.
    pub fn agreed_http2(&self) -> Option<bool> {
        let stream = match self {
            Transport::Tls(stream) => stream,
            Transport::Listed(entry) => return entry.carrier(Transport::agreed_http2)?,
            _ => return None,
        };
        let agreed = match &**stream {
            TlsStream::Client(stream) => stream.get_ref().1.alpn_protocol(),
            TlsStream::Server(stream) => stream.get_ref().1.alpn_protocol(),
        };
        agreed.map(|name| name == b"h2")
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf), entry => entry.poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(
            self,
            stream => Pin::new(stream).poll_write(cx, buf),
            entry => entry.poll_write(|transport| transport.poll_write(cx, buf))
        )
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(
            self,
            stream => Pin::new(stream).poll_write_vectored(cx, bufs),
            entry => entry.poll_write(|transport| transport.poll_write_vectored(cx, bufs))
        )
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Transport::Tcp(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
            Transport::Unix(stream) => stream.is_write_vectored(),
            Transport::Listed(entry) => entry
                .carrier(|transport| transport.is_write_vectored())
                .unwrap_or(false),
            #[cfg(test)]
            Transport::Pipe(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(
            self,
            stream => Pin::new(stream).poll_flush(cx),
            entry => entry.on_transport(|transport| transport.poll_flush(cx))
        )
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(
            self,
            stream => Pin::new(stream).poll_shutdown(cx),
            entry => entry.on_transport(|transport| transport.poll_shutdown(cx))
        )
    }
}
