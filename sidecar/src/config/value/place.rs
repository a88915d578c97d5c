//! Addresses, networks and paths.
//!
//! Not here: names that are called (`name.rs`), and whether an address may be used (`check/`).

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use super::{Setting, Value, Wrong, quote, text};
use crate::config::{ListenAddress, Network};

/// Longest path of a Unix socket that the kernel takes.
const SOCKET_PATH_BYTES_MAX: usize = 107;

impl Setting for PathBuf {
    fn read(value: &Value) -> Result<PathBuf, Wrong> {
        match text(value, "/var/lib/starling")? {
            "" => Err(Wrong::new(
                "an empty path names nothing",
                "write a path, or drop the line",
            )),
            text => Ok(PathBuf::from(text)),
        }
    }

    fn show(&self) -> String {
        quote(&self.display().to_string())
    }
}

/// A path of a Unix socket.
pub fn socket_path(path: &str) -> Result<PathBuf, Wrong> {
    if !path.starts_with('/') {
        return Err(Wrong::new(
            format!("{path:?} is not a whole path"),
            "write the socket's path from the root",
        ));
    }
    if path.len() > SOCKET_PATH_BYTES_MAX {
        return Err(Wrong::new(
            format!(
                "a socket's path of {} bytes is too long for the kernel",
                path.len()
            ),
            format!("use at most {SOCKET_PATH_BYTES_MAX} bytes"),
        ));
    }
    Ok(PathBuf::from(path))
}

impl Setting for IpAddr {
    fn read(value: &Value) -> Result<IpAddr, Wrong> {
        let text = text(value, "10.0.0.5")?;
        text.parse().map_err(|_| {
            Wrong::new(
                format!("{text:?} is not an IP address"),
                "write it like \"10.0.0.5\" or \"fd00::5\"",
            )
        })
    }

    fn show(&self) -> String {
        quote(&self.to_string())
    }
}

impl Setting for SocketAddr {
    fn read(value: &Value) -> Result<SocketAddr, Wrong> {
        let text = text(value, "127.0.0.1:8080")?;
        text.parse().map_err(|_| {
            Wrong::new(
                format!("{text:?} is not an address with a port"),
                address_fix(text),
            )
        })
    }

    fn show(&self) -> String {
        quote(&self.to_string())
    }
}

fn address_fix(text: &str) -> String {
    let port = text
        .rsplit(':')
        .next()
        .and_then(|port| port.parse::<u16>().ok());
    match (text.parse::<IpAddr>(), port) {
        (Ok(ip), _) => format!("add a port: \"{}\"", SocketAddr::new(ip, 8080)),
        (_, Some(port)) if text.starts_with("localhost:") => format!("write \"127.0.0.1:{port}\""),
        (_, Some(port)) if text.starts_with([':', '*']) => {
            format!("write \"127.0.0.1:{port}\", or \"0.0.0.0:{port}\" for every interface")
        }
        (_, Some(port)) => format!(
            "write the address itself: names are not looked up here, as in \"10.0.0.5:{port}\""
        ),
        _ => "write it like \"127.0.0.1:8080\" or \"[::1]:8080\"".to_owned(),
    }
}

impl Setting for ListenAddress {
    fn read(value: &Value) -> Result<ListenAddress, Wrong> {
        match text(value, "127.0.0.1:7080")?.strip_prefix("unix:") {
            Some(path) => socket_path(path).map(ListenAddress::Unix),
            None => SocketAddr::read(value).map(ListenAddress::Tcp),
        }
    }

    fn show(&self) -> String {
        match self {
            ListenAddress::Tcp(address) | ListenAddress::Udp(address) => {
                quote(&address.to_string())
            }
            ListenAddress::Unix(path) => quote(&format!("unix:{}", path.display())),
        }
    }
}

impl Setting for Network {
    fn read(value: &Value) -> Result<Network, Wrong> {
        let whole = text(value, "10.0.0.0/8")?;
        let wrong = |what: &str| {
            Wrong::new(
                format!("{whole:?} {what}"),
                "write it like \"172.26.64.0/20\" or \"fd00::/8\"",
            )
        };
        let (address, bits) = match whole.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (whole, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong("is not a network"))?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => width,
            Some(bits) => bits.parse().map_err(|_| wrong("has no prefix length"))?,
        };
        if bits > width {
            return Err(wrong(&format!("has more than {width} bits")));
        }
        let network = Network {
            address: masked(address, bits),
            bits,
        };
        if network.address != address {
            return Err(Wrong::new(
                format!("{whole:?} has bits beyond its prefix"),
                format!(
                    "write {}, or \"{address}/{width}\" for one host",
                    network.show()
                ),
            ));
        }
        Ok(network)
    }

    fn show(&self) -> String {
        quote(&format!("{}/{}", self.address, self.bits))
    }
}

fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

/// Splits `host:port`, filling in a port where one is known; brackets of IPv6 literals are taken off.
pub fn host_and_port(text: &str, default: Option<u16>) -> Result<(Box<str>, u16), Wrong> {
    let wrong = |what: &str| {
        let example = if default.is_some() {
            "\"10.0.0.11\" or \"seed.internal:7946\""
        } else {
            "\"db.internal:5432\""
        };
        Wrong::new(
            format!("{text:?} {what}"),
            format!("write it like {example}"),
        )
    };
    let (host, port) = if let Ok(address) = text.parse::<SocketAddr>() {
        (address.ip().to_string(), Some(address.port()))
    } else if let Ok(ip) = text.parse::<IpAddr>() {
        (ip.to_string(), None)
    } else if let Some((host, port)) = text.rsplit_once(':') {
        let port = port
            .parse()
            .map_err(|_| wrong("has no port that is a number"))?;
        (host.to_owned(), Some(port))
    } else {
        (text.to_owned(), None)
    };
    let port = port.or(default).ok_or_else(|| wrong("has no port"))?;
    if port == 0 {
        return Err(wrong("has port 0"));
    }
    let well = !host.is_empty()
        && host.len() <= 253
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
    if !well {
        return Err(wrong("has no host name"));
    }
    Ok((host.into(), port))
}
