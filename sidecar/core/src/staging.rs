//! What the tests of several rooms stage: a mesh in a few words, snapshots of it, and the life of an attempt.
//!
//! Not here: any test.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use mesh_proto::{
    record::{DemandRecord, Health, InstanceState, ServiceRecord, WireProtocol},
    session::SessionKeys,
};
use rand::{SeedableRng, rngs::StdRng};

use crate::{
    balance::Ask,
    endpoint::Report,
    mesh::{Demand, Instance, Mesh, Node, NodeState},
    moment::Moment,
    outcome::Outcome,
    outlier::Ejected,
    policy::{Balance, Place, Policy, ZoneMode},
    snapshot::{Inputs, Snapshot, Upstream},
};

pub(crate) const MS: Duration = Duration::from_millis(1);

/// The service everybody of the stage offers.
pub(crate) const SERVICE: &str = "shop";

/// Wall time at [`Moment::START`]; every instance started an hour before unless told otherwise.
pub(crate) const UNIX_MS: u64 = 1_700_000_000_000;

/// Every policy that asks whoever is best, and not whom a key belongs to.
pub(crate) const BALANCES: [Balance; 5] = [
    Balance::LeastResponseTime,
    Balance::RoundRobin,
    Balance::LeastConnections,
    Balance::PowerOfTwo,
    Balance::Random,
];

/// A first try of what may be asked twice.
pub(crate) const REPEATABLE: Ask<'_> = Ask {
    tried: &[],
    beyond_tier: None,
    idempotent: true,
    session: None,
    key: None,
    wish: None,
};

pub(crate) fn at(millis: u64) -> Moment {
    Moment::from_millis(millis)
}

pub(crate) fn dice(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// A mesh whose instances can be changed one by one, and the snapshots that follow from it.
pub(crate) struct Stage {
    pub instances: Vec<Instance>,
    pub demands: Vec<Demand>,
    pub isolated: bool,
    pub policies: Vec<Arc<Policy>>,
    pub undeclared: bool,
    pub resolved: BTreeMap<Place, Vec<SocketAddr>>,
    pub not_passing: BTreeMap<(Box<str>, SocketAddr), Health>,
    pub session_keys: Arc<SessionKeys>,
    pub own_name: String,
    pub snapshot: Snapshot,
}

impl Stage {
    /// One instance on one node for each zone named; zone `a1` is the own one, `a` the own region.
    pub fn new(zones: &[&str]) -> Stage {
        let instances = zones.iter().enumerate();
        Stage {
            instances: instances.map(|(i, zone)| instance(i, zone)).collect(),
            demands: Vec::new(),
            isolated: false,
            policies: Vec::new(),
            undeclared: true,
            resolved: BTreeMap::new(),
            not_passing: BTreeMap::new(),
            session_keys: Arc::default(),
            own_name: "here".to_owned(),
            snapshot: Snapshot::empty(),
        }
    }

    /// The same by priority with spill.
    pub fn by_priority(zones: &[&str]) -> Stage {
        Stage::with(zones, |policy| policy.zones.mode = ZoneMode::Priority)
    }

    /// The same with a table of its own for the service.
    pub fn with(zones: &[&str], change: impl FnOnce(&mut Policy)) -> Stage {
        let mut policy = Policy::of_service(SERVICE);
        change(&mut policy);
        let mut stage = Stage::new(zones);
        stage.policies.push(Arc::new(policy));
        stage
    }

    pub fn build(&mut self, now: Moment) -> Arc<Upstream> {
        // A node is one, whatever is told of it.
        for demand in &mut self.demands {
            let holder = self.instances.iter().find(|i| i.node.id == demand.node.id);
            if let Some(holder) = holder {
                demand.node = Arc::clone(&holder.node);
            }
        }
        let nodes = self.instances.iter().map(|i| Arc::clone(&i.node)).collect();
        let mesh = Arc::new(Mesh {
            nodes,
            instances: self.instances.clone(),
            demands: self.demands.clone(),
            isolated: self.isolated,
            joined: true,
            ..Mesh::default()
        });
        let inputs = Inputs {
            mesh: &mesh,
            policies: &self.policies,
            undeclared: self.undeclared,
            own_zone: "a1",
            own_region: "a",
            own_name: &self.own_name,
            resolved: &self.resolved,
            not_passing: &self.not_passing,
            session_keys: &self.session_keys,
            unix_ms: UNIX_MS + now.as_nanos() / 1_000_000,
        };
        self.snapshot = Snapshot::build(&inputs, &self.snapshot, now);
        self.upstream()
    }

    pub fn upstream(&self) -> Arc<Upstream> {
        Arc::clone(
            self.snapshot
                .upstream(SERVICE)
                .expect("the service is there"),
        )
    }

    /// What the zones ask for, each by the first host in it.
    pub fn demand(&mut self, zones: &[(&str, u32)]) {
        let demand = |(zone, per_second): &(&str, u32)| {
            let host = self.instances.iter().find(|i| &*i.node.zone == *zone);
            Demand {
                node: Arc::clone(&host.expect("somebody is in the zone").node),
                record: Arc::new(DemandRecord {
                    service: SERVICE.into(),
                    per_second: *per_second,
                }),
            }
        };
        self.demands = zones.iter().map(demand).collect();
    }

    pub fn node(&mut self, i: usize, change: impl FnOnce(&mut Node)) {
        change(Arc::make_mut(&mut self.instances[i].node));
    }

    pub fn state(&mut self, i: usize, state: NodeState, since: Moment) {
        self.node(i, |node| (node.state, node.since) = (state, since));
    }

    pub fn record(&mut self, i: usize, change: impl FnOnce(&mut ServiceRecord)) {
        change(Arc::make_mut(&mut self.instances[i].record));
    }
}

fn instance(i: usize, zone: &str) -> Instance {
    let address = SocketAddr::from(([10, 0, (i / 250) as u8, (i % 250) as u8 + 1], 8080));
    Instance {
        node: Arc::new(Node {
            id: i as u64 + 1,
            name: format!("host-{i}").into(),
            address,
            zone: zone.into(),
            region: zone.trim_end_matches(|c: char| c.is_ascii_digit()).into(),
            state: NodeState::Alive,
            since: Moment::START,
            incarnation: 0,
        }),
        epoch: 1,
        record: Arc::new(ServiceRecord {
            service: SERVICE.into(),
            instance: format!("{SERVICE}-{i}").into(),
            address,
            protocol: WireProtocol::Http,
            weight: 100,
            health: Health::Passing,
            state: InstanceState::Up,
            started_at_ms: UNIX_MS - 3_600_000,
            capacity: None,
            tags: BTreeMap::new(),
        }),
        version: 1,
    }
}

/// Tells the `i`-th member what an attempt came to: its canary, if one is under way.
pub(crate) fn report(
    upstream: &Upstream,
    i: usize,
    outcome: Outcome,
    connection: u64,
    now: Moment,
) -> Option<Ejected> {
    let member = upstream.members().nth(i).expect("the member is there");
    let report = Report {
        outcome,
        latency: outcome.is_well().then_some(MS),
        connection,
        canary: member.endpoint.trial.canary_under_way(),
    };
    upstream.report(&member.endpoint, &report, now, &mut dice(7))
}
