//! Relayed connections whose endpoint is no longer to be called: given a grace, then ended, so that their clients come
//! back and are led elsewhere.
//!
//! Not here: how bytes are relayed (`relay.rs`, `datagram.rs`), and requests, which are over soon. What counts is what
//! the snapshot says (checks, SWIM, drains, the configuration); an ejection does not, for it rests on new connections
//! alone and is over in seconds.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use mesh_core::{
    moment::Moment,
    snapshot::{Snapshot, Upstream, Why},
};
use tokio::sync::Notify;

/// An upstream and an endpoint's address: an endpoint that comes back under another identity is back.
type Watched = (Box<str>, SocketAddr);

/// What keeps watch over one worker's relayed connections.
#[derive(Debug, Default)]
pub struct Outages {
    watches: RefCell<HashMap<Watched, Rc<Outage>>>,
}

/// One endpoint as those see it that are connected to it.
#[derive(Debug, Default)]
pub struct Outage {
    /// Since when it is not to be called, and why.
    since: Cell<Option<(Moment, &'static str)>>,
    grace: Cell<Option<Duration>>,
    over: Cell<Option<&'static str>>,
    ended: Notify,
}

impl Outages {
    /// Watches `endpoint` of `upstream` for as long as somebody holds the result.
    pub fn watch(&self, upstream: &Upstream, endpoint: SocketAddr) -> Rc<Outage> {
        let key = (upstream.policy.name.clone(), endpoint);
        let mut watches = self.watches.borrow_mut();
        Rc::clone(watches.entry(key).or_insert_with(|| {
            let outage = Outage::default();
            outage.grace.set(upstream.policy.timeouts.endpoint_grace);
            Rc::new(outage)
        }))
    }

    /// Looks at every watched endpoint and ends what has outlived its grace; called once a second. Yields how many
    /// connections were told to end.
    pub fn review(&self, snapshot: &Snapshot, now: Moment) -> usize {
        let mut ended = 0;
        self.watches.borrow_mut().retain(|(name, address), outage| {
            let holders = Rc::strong_count(outage) - 1;
            if holders == 0 {
                return false;
            }
            let upstream = snapshot.upstream(name);
            if let Some(upstream) = upstream {
                outage.grace.set(upstream.policy.timeouts.endpoint_grace);
            }
            let Some(why) = why_not(upstream.map(|upstream| &**upstream), *address) else {
                outage.since.set(None);
                return true;
            };
            let (since, _) = outage.since.get().unwrap_or((now, why));
            outage.since.set(Some((since, why)));
            let is_over = (outage.grace.get()).is_some_and(|grace| now.since(since) >= grace);
            if is_over {
                outage.over.set(Some(why));
                outage.ended.notify_waiters();
                ended += holders;
            }
            // Whoever connects from now on, to an endpoint that is back, is another matter.
            !is_over
        });
        ended
    }
}

/// Why nobody is sent to `address` any more; `None`: somebody is, or there is nobody else to send anyone to.
fn why_not(upstream: Option<&Upstream>, address: SocketAddr) -> Option<&'static str> {
    let Some(upstream) = upstream else {
        return Some("upstream gone");
    };
    let mut members = upstream.members().peekable();
    members.peek()?;
    if members.any(|member| member.endpoint.key.address == address) {
        return None;
    }
    let out = upstream.out.iter();
    let mut out = out.filter(|out| out.endpoint.key.address == address);
    match out.next().map(|out| out.why) {
        // It is well, and only new connections are left to other sidecars.
        Some(Why::NotInSubset) => None,
        why => Some(why.map_or("gone", Why::as_str)),
    }
}

impl Outage {
    /// When the connection is ended unless the endpoint comes back; `None`: nothing is wrong, or it is left alone.
    pub fn ends(&self) -> Option<Moment> {
        let (since, _) = self.since.get()?;
        Some(since + self.grace.get()?)
    }

    /// Ready when the grace is over: why the endpoint is not to be called.
    pub async fn over(&self) -> &'static str {
        loop {
            // Asked for before looking, so that nothing is missed between the two.
            let told = self.ended.notified();
            if let Some(why) = self.over.get() {
                return why;
            }
            told.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use mesh_core::{
        mesh::Mesh,
        policy::{FixedEndpoint, Place, Policy, Weight},
        snapshot::Inputs,
    };
    use mesh_proto::record::Health;

    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// A snapshot of the upstream `db` at ports 1 and 2, of which these fail their check.
    fn snapshot(failing: &[u16], previous: &Snapshot) -> Snapshot {
        let mut policy = Policy::of_service("db");
        policy.service = None;
        policy.timeouts.endpoint_grace = Some(Duration::from_secs(10));
        let endpoint = |port| FixedEndpoint {
            place: Place::Address(at(port)),
            zone: None,
            weight: Weight::DEFAULT,
            backup: false,
        };
        policy.endpoints = [1, 2].map(endpoint).into();
        let not_passing: BTreeMap<_, _> = failing
            .iter()
            .map(|port| (("db".into(), at(*port)), Health::Failing))
            .collect();
        let inputs = Inputs {
            mesh: &Arc::new(Mesh::default()),
            policies: &[Arc::new(policy)],
            undeclared: true,
            own_zone: "a",
            own_region: "a",
            own_name: "n",
            resolved: &BTreeMap::new(),
            not_passing: &not_passing,
            session_keys: &Arc::default(),
            unix_ms: 1,
        };
        Snapshot::build(&inputs, previous, Moment::START)
    }

    fn second(number: u64) -> Moment {
        Moment::from_millis(number * 1000)
    }

    #[tokio::test]
    async fn a_connection_ends_a_grace_after_its_endpoint_went_bad() {
        let well = snapshot(&[], &Snapshot::empty());
        let ill = snapshot(&[1], &well);
        let outages = Outages::default();
        let upstream = well.upstream("db").unwrap();
        let (bad, good) = (
            outages.watch(upstream, at(1)),
            outages.watch(upstream, at(2)),
        );
        assert_eq!(outages.review(&ill, second(1)), 0);
        assert_eq!(bad.ends(), Some(second(11)));
        assert_eq!(outages.review(&ill, second(10)), 0);
        assert_eq!(outages.review(&ill, second(11)), 1);
        assert_eq!(bad.over().await, "check not passed");
        assert_eq!((good.ends(), good.over.get()), (None, None));
        let again = outages.watch(upstream, at(1));
        assert_eq!(
            again.over.get(),
            None,
            "a new connection has a grace of its own"
        );
    }

    #[test]
    fn whoever_comes_back_in_time_is_forgiven() {
        let well = snapshot(&[], &Snapshot::empty());
        let ill = snapshot(&[1], &well);
        let outages = Outages::default();
        let bad = outages.watch(well.upstream("db").unwrap(), at(1));
        outages.review(&ill, second(1));
        outages.review(&well, second(9));
        outages.review(&ill, second(10));
        assert_eq!(outages.review(&ill, second(19)), 0);
        assert_eq!(bad.ends(), Some(second(20)));
    }

    #[test]
    fn where_nobody_else_is_left_connections_stay() {
        let well = snapshot(&[], &Snapshot::empty());
        let ill = snapshot(&[1, 2], &well);
        let outages = Outages::default();
        let bad = outages.watch(well.upstream("db").unwrap(), at(1));
        for now in [1, 60] {
            assert_eq!(outages.review(&ill, second(now)), 0);
        }
        assert_eq!(bad.ends(), None);
    }
}
