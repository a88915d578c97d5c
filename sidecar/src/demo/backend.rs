//! A backend of the demo: answers every request with its zone and its name.
//!
//! Not here: starting and killing it (`world.rs`).

use std::{convert::Infallible, io, net::SocketAddr, process::ExitCode};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::{
    cli::{Ended, Exit, Failure, print},
    parent,
};

/// The header by which a client of the demo sees which zone answered.
pub const ZONE_HEADER: &str = "x-demo-zone";

/// The arguments of `demo-backend`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Where to listen; port 0 takes a free one
    #[arg(long)]
    listen: SocketAddr,
    /// The zone to answer with
    #[arg(long)]
    zone: String,
    /// The name to answer with
    #[arg(long)]
    name: String,
}

/// Serves until standard input ends; the address it listens on is the first line of standard output.
///
/// # Errors
/// The address cannot be listened on.
pub fn run(args: &Args) -> Ended {
    let failed = |error: io::Error| {
        let message = format!("demo backend {} on {}: {error}", args.name, args.listen);
        Failure::new(Exit::Failed, message, "")
    };
    parent::exit_with_parent().map_err(failed)?;
    let zone = HeaderValue::from_str(&args.zone).map_err(|e| failed(io::Error::other(e)))?;
    let body = Bytes::from(format!("{}\n", args.name));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    runtime.block_on(async {
        let listener = TcpListener::bind(args.listen).await.map_err(failed)?;
        print(&format!("{}\n", listener.local_addr().map_err(failed)?))?;
        serve(listener, zone, body).await.map_err(failed)?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Answers every request on `listener` with `zone` in [`ZONE_HEADER`] and `body`.
pub(super) async fn serve(
    listener: TcpListener,
    zone: HeaderValue,
    body: Bytes,
) -> io::Result<Infallible> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (zone, body) = (zone.clone(), body.clone());
        let answer = service_fn(move |_: Request<Incoming>| {
            let mut response = Response::new(Full::new(body.clone()));
            response.headers_mut().insert(ZONE_HEADER, zone.clone());
            std::future::ready(Ok::<_, Infallible>(response))
        });
        // A connection that breaks is the caller's story; this one only answers.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}
