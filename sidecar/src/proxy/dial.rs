//! To one connection: TCP, and TLS where it is asked for.
//!
//! Not here: whether a kept one can be used instead (`pool.rs`), and what is spoken on it (`http1`, `http2`).

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::TlsConnector;
use tower::Service;

use super::transport::Transport;
use crate::tls::{self, ClientTls};

/// Where to connect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// The endpoint's address.
    pub address: SocketAddr,
    /// What the connection begins with, before any handshake.
    pub header: Option<Box<[u8]>>,
    /// TLS to be begun there.
    pub tls: Option<ClientTls>,
}

/// A future that stays on its worker's thread.
pub type Local<T> = Pin<Box<dyn Future<Output = T>>>;

/// Whatever opens connections: [`Tcp`], or a pipe in tests.
pub type Connector = Box<
    dyn Service<
            Target,
            Response = Transport,
            Error = io::Error,
            Future = Local<io::Result<Transport>>,
        >,
>;

/// Opens TCP connections without Nagle's delay, and shakes hands where TLS is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

impl Service<Target> for Tcp {
    type Response = Transport;
    type Error = io::Error;
    type Future = Local<io::Result<Transport>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Target) -> Self::Future {
        Box::pin(async move {
            let mut stream = TcpStream::connect(target.address).await?;
            stream.set_nodelay(true)?;
            if let Some(header) = &target.header {
                stream.write_all(header).await?;
            }
            let Some(tls) = target.tls else {
                return Ok(Transport::Tcp(stream));
            };
            let name = tls
                .server_name
                .unwrap_or_else(|| tls::name_of(target.address.ip()));
            let connector = TlsConnector::from(tls.config);
            let stream = connector.connect(name, stream).await?;
            Ok(Transport::Tls(Box::new(stream.into())))
        })
    }
}
