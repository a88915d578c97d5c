//! Tells a service manager how the sidecar is (the `sd_notify` protocol: datagrams to `$NOTIFY_SOCKET`).
//!
//! Not here: when (`start.rs`). Without the variable nothing is sent.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// Sends one assignment such as `READY=1`; a manager that cannot be told is worth a line in the log, no more.
pub fn tell(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let told = (|| -> io::Result<()> {
        // A leading @ names a socket without a file.
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
        Ok(())
    })();
    if let Err(error) = told {
        tracing::warn!(%error, state, "the service manager could not be told");
    }
}
