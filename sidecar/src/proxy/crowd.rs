//! How many connections clients may have, of one address and of all listeners; whoever is one too many is told so.
//!
//! Not here: accepting, and a listener's own limit (`listen.rs`). Whoever is turned away holds up nobody else: what is said
//! to it is short, and it is waited for beside the others, or not at all when too many are.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use http::header;
use metrics::{Counter, counter};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    http1::encode,
    listen::Door,
    reply::{Cause, reply, text},
    transport::Transport,
};

/// Of those that are turned away, how many are told so at once.
const TOLD_MAX: usize = 256;
/// How long one of them may take to hang up. A socket that is closed with bytes unread is reset, which may overtake what
/// was said.
const FAREWELL: Duration = Duration::from_secs(1);
/// How much of what it says meanwhile is thrown away.
const UNHEARD_BYTES_MAX: usize = 64 * 1024;

/// Bits of an IPv6 address that its holder does not choose: a host or a site has a network of 64 to itself (RFC 4291,
/// 2.5.4; RFC 6177), and whoever counted addresses would find a new client in each.
const NETWORK_BITS: u32 = 64;

/// A connection's place among those of its client's address.
pub type ClientPlace = Arc<()>;

/// Why a connection is one too many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crowded {
    /// Its listener has as many as it may.
    Listener,
    /// All listeners together have.
    All,
    /// Its client's address has.
    Client,
}

/// Those who are in, by address, and those who are turned away.
pub struct Crowd {
    /// Each place is a clone; addresses without one are swept away now and then.
    clients: RefCell<HashMap<IpAddr, ClientPlace>>,
    /// Addresses at which they are swept.
    sweep_at: Cell<usize>,
    told: Rc<Cell<usize>>,
    refused: [Counter; 3],
}

/// Fewest addresses that a sweep is worth.
const SWEEP_AT_MIN: usize = 64;

impl Default for Crowd {
    fn default() -> Crowd {
        let refused = |reason: &'static str| counter!("starling_connections_refused_total", "reason" => reason);
        Crowd {
            clients: RefCell::default(),
            sweep_at: Cell::new(SWEEP_AT_MIN),
            told: Rc::default(),
            refused: [refused("limit"), refused("all"), refused("per_client")],
        }
    }
}

impl Crowd {
    /// A place for one more connection of `client`, unless it has `max`, or its network has where that is IPv6.
    pub fn place(&self, client: IpAddr, max: u32) -> Option<ClientPlace> {
        let clients = &mut *self.clients.borrow_mut();
        if clients.len() >= self.sweep_at.get() {
            clients.retain(|_, place| Arc::strong_count(place) > 1);
            self.sweep_at.set((clients.len() * 2).max(SWEEP_AT_MIN));
        }
        let place = clients.entry(counted(client)).or_default();
        let has = Arc::strong_count(place) - 1;
        (has < max as usize).then(|| Arc::clone(place))
    }

    /// Lets a connection go that is one too many: HTTP is told why.
    pub fn turn_away(
        &self,
        mut connection: Transport,
        door: &Door,
        is_plain: bool,
        why: Crowded,
        node: &str,
    ) {
        self.refused[why as usize].increment(1);
        let speaks_http = matches!(door, Door::Authority | Door::Upstream(_));
        if !speaks_http || !is_plain || self.told.get() >= TOLD_MAX {
            return;
        }
        let answer = answer(node);
        let told = Told::new(&self.told);
        tokio::task::spawn_local(async move {
            let _told = told;
            let farewell = async {
                connection.write_all(&answer).await?;
                connection.shutdown().await?;
                let mut unheard = [0; 1024];
                let mut left = UNHEARD_BYTES_MAX;
                while let count @ 1.. = connection.read(&mut unheard).await?
                    && count <= left
                {
                    left -= count;
                }
                std::io::Result::Ok(())
            };
            // It may have gone already.
            let _ = timeout(FAREWELL, farewell).await;
        });
    }
}

/// Whose connections are counted together with this client's.
fn counted(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & (u128::MAX << (u128::BITS - NETWORK_BITS));
            IpAddr::V6(network.into())
        }
        address => address,
    }
}

/// One that is being told, until dropped.
struct Told(Rc<Cell<usize>>);

impl Told {
    fn new(count: &Rc<Cell<usize>>) -> Told {
        count.set(count.get() + 1);
        Told(Rc::clone(count))
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// What HTTP is told, whatever it was about to ask.
fn answer(node: &str) -> Vec<u8> {
    let (mut head, _) = reply(Cause::Crowded, false, node, None).into_parts();
    let body = text(Cause::Crowded);
    head.headers
        .insert(header::CONTENT_LENGTH, body.len().into());
    head.headers.insert(
        header::CONNECTION,
        header::HeaderValue::from_static("close"),
    );
    let mut answer = Vec::with_capacity(512);
    encode::status_line(&mut answer, head.status, None);
    encode::fields(&mut answer, &head.headers, None);
    answer.extend_from_slice(b"\r\n");
    answer.extend_from_slice(body.as_bytes());
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_places_and_others_have_their_own() {
        let crowd = Crowd::default();
        let (one, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let held: Vec<_> = (0..2)
            .map(|_| crowd.place(one, 2).expect("there is room"))
            .collect();
        assert!(crowd.place(one, 2).is_none());
        assert!(crowd.place(other, 2).is_some());
        drop(held);
        assert!(crowd.place(one, 2).is_some());
    }

    #[test]
    fn a_network_of_ipv6_is_one_client_and_ipv4_in_it_is_itself() {
        let crowd = Crowd::default();
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let held = crowd.place(address("2001:db8:1:2::1"), 1);
        assert!(held.is_some());
        let neighbour = address("2001:db8:1:2:ffff:ffff:ffff:ffff");
        assert!(crowd.place(neighbour, 1).is_none());
        assert!(crowd.place(address("2001:db8:1:3::1"), 1).is_some());
        let mapped = crowd.place(address("::ffff:10.0.0.1"), 1);
        assert!(mapped.is_some());
        assert!(crowd.place(address("::ffff:10.0.0.2"), 1).is_some());
        assert!(crowd.place(address("10.0.0.1"), 1).is_none());
    }

    #[test]
    fn addresses_that_have_gone_are_forgotten() {
        let crowd = Crowd::default();
        let stays = crowd.place([10, 0, 0, 1].into(), 1);
        for number in 0..10_000_u32 {
            assert!(crowd.place(IpAddr::V4(number.into()), 1).is_some());
        }
        assert!(crowd.clients.borrow().len() <= 2 * SWEEP_AT_MIN);
        assert!(crowd.place([10, 0, 0, 1].into(), 1).is_none());
        drop(stays);
    }

    #[test]
    fn whoever_is_turned_away_from_http_is_told_when_to_come_back() {
        let answer = String::from_utf8(answer("n")).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        for field in [
            "retry-after: 1",
            "connection: close",
            &format!("content-length: {}", body.len()),
        ] {
            assert!(head.contains(field), "{field} in {head}");
        }
        assert!(body.starts_with("503 UO: too many connections"), "{body}");
    }
}
