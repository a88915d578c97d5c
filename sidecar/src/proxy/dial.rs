//! To one connection: TCP, TLS where it is asked for, then the HTTP handshake, under one deadline.
//!
//! Not here: whether a kept one can be used instead (`pool.rs`).

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{client::conn::http2, rt::Executor};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::TlsConnector;
use tower::Service;

use super::{
    body::RequestBody,
    gather::{Gathered, Turns},
    http1::wire::{Buffers, Wire},
    pool::Terms,
    transport::Transport,
};
use crate::tls::{self, ClientTls};

/// Flow-control window of one HTTP/2 stream towards an endpoint, in bytes; bounds what a slow reader makes us hold.
const H2_STREAM_WINDOW: u32 = 256 * 1024;
/// Flow-control window of one HTTP/2 connection towards an endpoint, in bytes.
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;

/// A connection with streams that hears nothing for this long is asked whether it is still there ...
const H2_PING_AFTER: Duration = Duration::from_secs(5);
/// ... and given up after this: packets may vanish without a word.
const H2_PING_TIMEOUT: Duration = Duration::from_secs(3);

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

/// Runs hyper's connection tasks on the worker's own thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnThisThread;

impl<F> Executor<F> for OnThisThread
where
    F: Future + 'static,
{
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}

/// Speaks HTTP/2 by prior knowledge over `transport`.
///
/// # Errors
/// The connection broke while the preface was written.
pub async fn http2(
    transport: Transport,
    buffers: &Rc<Buffers>,
    header_bytes: usize,
) -> hyper::Result<(http2::SendRequest<RequestBody>, Rc<Terms>)> {
    let io = Gathered::new(Wire::new(transport, buffers), None);
    let (sender, connection) = http2::Builder::new(Turns(io.clone()))
        .timer(TokioTimer::new())
        .keep_alive_interval(H2_PING_AFTER)
        .keep_alive_timeout(H2_PING_TIMEOUT)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
        .handshake(TokioIo::new(io))
        .await?;
    let assumed = connection.current_max_send_streams();
    let terms = Rc::new(Terms {
        streams: Cell::new(assumed),
        connects: Cell::new(false),
        driver: RefCell::default(),
    });
    let noted = Rc::clone(&terms);
    tokio::task::spawn_local(async move {
        let mut connection = pin!(connection);
        let mut is_known = false;
        let ended = poll_fn(|cx| {
            if !is_known {
                is_known = true;
                noted.driver.replace(Some(cx.waker().clone()));
            }
            let polled = connection.as_mut().poll(cx);
            // Settings come and change while it is driven.
            let streams = connection.current_max_send_streams();
            if streams != assumed || noted.driver.borrow().is_none() {
                noted.streams.set(streams);
            }
            noted
                .connects
                .set(connection.is_extended_connect_protocol_enabled());
            polled
        });
        if let Err(error) = ended.await {
            tracing::trace!(%error, "upstream connection ended");
        }
    });
    Ok((sender, terms))
}
