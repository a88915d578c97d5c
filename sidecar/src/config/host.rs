//! What a configuration takes from the host it is read on: name, address, processors, environment, secret files.
//!
//! Not here: what is done with it (`check/`).

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use super::value::Wrong;

/// Longest secret that is read from a file.
pub const SECRET_BYTES_MAX: u64 = 4096;

/// Looks up an environment variable.
pub type Environment = Box<dyn Fn(&str) -> Option<String>>;

/// The host as far as defaults and references need it; tests write their own.
pub struct Host {
    /// An environment variable's value.
    pub env: Environment,
    /// The host name.
    pub name: String,
    /// The source address of the default route.
    pub address: Option<IpAddr>,
    /// Processors this process may use, quota included.
    pub cores: usize,
}

impl Host {
    /// The host this process runs on.
    pub fn here() -> Host {
        Host {
            env: Box::new(|name| std::env::var(name).ok()),
            name: name(),
            address: source_address(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// The kernel's host name up to its first dot.
fn name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim().split('.').next().unwrap_or_default();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name.to_owned()
    }
}

/// The address the kernel would send from towards the rest of the world. Nothing is sent: connecting a datagram
/// socket only looks up the route.
fn source_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // 192.0.2.1 belongs to nobody (RFC 5737), so it is reached by the default route.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified()).then_some(address)
}

/// Whether an address lies in a private network (RFC 1918, RFC 6598, RFC 4193), so that telling it to the mesh
/// opens nothing to the Internet.
pub fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_private() || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

/// Reads a secret that only its owner and group may see; the end of its line is cut off.
pub fn secret_file(path: &Path) -> Result<String, Wrong> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Wrong::new(
            format!("there is no file {shown}"),
            "create it, or name another one",
        ),
        _ => Wrong::new(
            format!("{shown} cannot be read: {error}"),
            "let the sidecar's user read it",
        ),
    })?;
    if !metadata.is_file() {
        return Err(Wrong::new(
            format!("{shown} is not a file"),
            "name a file that holds the secret alone",
        ));
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o027 != 0 {
        return Err(Wrong::new(
            format!(
                "{shown} has mode {mode:04o}, so others than its owner and group get at the secret"
            ),
            format!("chmod 0600 {shown}"),
        ));
    }
    if metadata.len() > SECRET_BYTES_MAX {
        return Err(Wrong::new(
            format!(
                "{shown} has {} bytes, more than {SECRET_BYTES_MAX}",
                metadata.len()
            ),
            "name a file that holds the secret alone",
        ));
    }
    let text = std::fs::read_to_string(path).map_err(|error| {
        Wrong::new(
            format!("{shown} cannot be read: {error}"),
            "let the sidecar's user read it",
        )
    })?;
    let secret = text.trim_end_matches(['\n', '\r']);
    if secret.is_empty() {
        return Err(Wrong::new(
            format!("{shown} is empty"),
            "write the secret into it",
        ));
    }
    Ok(secret.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_the_internet_is_not_private() {
        for (address, private) in [
            ("10.1.2.3", true),
            ("172.31.0.1", true),
            ("192.168.0.1", true),
            ("100.64.0.1", true),
            ("fd00::1", true),
            ("8.8.8.8", false),
            ("2001:db8::1", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(is_private(address.parse().unwrap()), private, "{address}");
        }
    }
}
