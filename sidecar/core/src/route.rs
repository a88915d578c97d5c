//! Request head → upstream: what an authority means in this mesh.
//!
//! Not here: rules on paths, methods and headers, which a route of an upstream's own will bring.

/// What a caller asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target<'a> {
    /// A name of the mesh: an upstream's or a service's.
    Mesh(&'a str),
    /// A name of the world outside.
    External(&'a str),
}

/// The longest authority that is looked at; DNS names end at 253 octets, a port takes 6 more.
pub const AUTHORITY_BYTES_MAX: usize = 260;

/// Reads an authority such as `payments.mesh:7080`.
///
/// `NAME.domain`, `NAME.domain.internal`, `NAME.localhost` and a bare `NAME` without dots mean the upstream NAME;
/// everything else, addresses and `localhost` itself among them, is external. The port says only how the sidecar
/// was reached, so it is passed over. Case of the suffix does not matter; names of upstreams are lower case.
///
/// `None`: not an authority at all.
pub fn target<'a>(authority: &'a str, domain: &str) -> Option<Target<'a>> {
    if authority.is_empty() || authority.len() > AUTHORITY_BYTES_MAX {
        return None;
    }
    let host = host_of(authority)?;
    if host.starts_with('[') {
        return Some(Target::External(host));
    }
    let bare = host.strip_suffix('.').unwrap_or(host);
    if bare.is_empty() || !bare.bytes().all(is_name_byte) {
        return None;
    }
    let name = without_suffix(bare, "internal")
        .and_then(|rest| without_suffix(rest, domain))
        .or_else(|| without_suffix(bare, domain))
        .or_else(|| without_suffix(bare, "localhost"));
    Some(match name {
        Some(name) => Target::Mesh(name),
        None if !bare.contains('.') && !bare.eq_ignore_ascii_case("localhost") => {
            Target::Mesh(bare)
        }
        None => Target::External(host),
    })
}

/// The host of `host`, `host:port`, `[v6]` or `[v6]:port`; `None` when user information or a bad port is there.
fn host_of(authority: &str) -> Option<&str> {
    if authority.contains('@') {
        return None;
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']')?;
            let (host, after) = authority.split_at(end + 2);
            (
                host,
                after.strip_prefix(':').or(after.is_empty().then_some(""))?,
            )
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    (port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit())).then_some(host)
}

fn without_suffix<'a>(host: &'a str, suffix: &str) -> Option<&'a str> {
    let cut = host.len().checked_sub(suffix.len() + 1)?;
    let (name, rest) = (host.get(..cut)?, host.get(cut..)?);
    let fits = rest.starts_with('.') && rest.get(1..)?.eq_ignore_ascii_case(suffix);
    (fits && !name.is_empty()).then_some(name)
}

const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_mean_what_the_manual_says() {
        let mesh = |name| Some(Target::Mesh(name));
        let table = [
            ("payments.mesh", mesh("payments")),
            ("payments.mesh:7080", mesh("payments")),
            ("payments.MESH.", mesh("payments")),
            ("payments.mesh.internal", mesh("payments")),
            ("payments.localhost:80", mesh("payments")),
            ("payments", mesh("payments")),
            ("v2.payments.mesh", mesh("v2.payments")),
            ("localhost:7080", Some(Target::External("localhost"))),
            ("127.0.0.1:7080", Some(Target::External("127.0.0.1"))),
            ("[::1]:7080", Some(Target::External("[::1]"))),
            ("example.com", Some(Target::External("example.com"))),
            (".mesh", Some(Target::External(".mesh"))),
            ("user@payments.mesh", None),
            ("payments.mesh:port", None),
            ("payments.mesh:123456", None),
            ("[::1", None),
            ("pay ments.mesh", None),
            ("", None),
        ];
        for (authority, expected) in table {
            assert_eq!(target(authority, "mesh"), expected, "{authority}");
        }
    }
}
