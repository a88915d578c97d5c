//! The real thing: snapshots, pickers, reports and ejection of `mesh-core`, one of each for every client.
//!
//! Not here: retries, which would hide what a pick was worth.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use mesh_proto::record::{Health, InstanceState, ServiceRecord, WireProtocol};
use rand::rngs::SmallRng;

use crate::{
    balance::{Ask, Picker},
    endpoint::{Endpoint, Report},
    mesh::{Instance, Mesh, Node, NodeState},
    moment::Moment,
    outcome::{Outcome, Unreachable},
    outlier::Canary,
    policy::{Balance, Policy},
    snapshot::{Inputs, Snapshot, Upstream},
};

use super::{Attempt, Ended, Fleet, Scenario, Server};

const SERVICE: &str = "shop";

/// Wall time at the start.
const UNIX_MS: u64 = 1_700_000_000_000;

/// Everybody who is there from the start has been there for an hour.
const STARTED_MS: u64 = UNIX_MS - 3_600_000;

struct Client {
    name: Box<str>,
    snapshot: Snapshot,
    upstream: Arc<Upstream>,
    picker: Picker,
    /// By backend.
    endpoints: Vec<Option<Arc<Endpoint>>>,
    /// By backend: the last request that was to find out whether it is well again, and when it began.
    canaries: Vec<Option<(Moment, Canary)>>,
}

pub(super) struct Starling {
    instances: Vec<Option<Instance>>,
    later: Vec<Instance>,
    policy: Arc<Policy>,
    clients: Vec<Client>,
    attempts: u64,
}

impl Starling {
    pub fn new(scenario: &Scenario, balance: Balance, dice: &mut SmallRng) -> Starling {
        let mut policy = Policy::of_service(SERVICE);
        policy.balance = balance;
        policy.ejection.consecutive *= u32::from(scenario.ejection);
        let later: Vec<Instance> = (0..scenario.backends.len())
            .map(|i| instance(i, scenario.backends[i].weight))
            .collect();
        let here = later.iter().zip(&scenario.backends);
        let mut starling = Starling {
            instances: here
                .map(|(instance, backend)| backend.joins.is_zero().then(|| instance.clone()))
                .collect(),
            later,
            policy: Arc::new(policy),
            clients: Vec::new(),
            attempts: 0,
        };
        for at in 0..scenario.clients {
            let name = format!("client-{at}").into_boxed_str();
            let snapshot = starling.next(&name, &Snapshot::empty(), Moment::START);
            let Some(upstream) = snapshot.upstream(SERVICE).map(Arc::clone) else {
                continue;
            };
            starling.clients.push(Client {
                name,
                picker: Picker::new(&upstream, dice),
                endpoints: places(&upstream, scenario.backends.len()),
                canaries: vec![None; scenario.backends.len()],
                snapshot,
                upstream,
            });
        }
        starling
    }

    /// What a client knows.
    pub fn upstream(&self, client: usize) -> &Upstream {
        &self.clients[client].upstream
    }

    /// An attempt begins at a backend that somebody else has picked.
    pub fn begin(&self, client: usize, backend: usize, now: Moment) {
        if let Some(endpoint) = &self.clients[client].endpoints[backend] {
            endpoint.begin(now);
        }
    }

    fn next(&self, name: &str, before: &Snapshot, now: Moment) -> Snapshot {
        let instances: Vec<Instance> = self.instances.iter().flatten().cloned().collect();
        let mesh = Arc::new(Mesh {
            nodes: instances.iter().map(|i| Arc::clone(&i.node)).collect(),
            instances,
            joined: true,
            ..Mesh::default()
        });
        let inputs = Inputs {
            mesh: &mesh,
            policies: &[Arc::clone(&self.policy)],
            undeclared: false,
            own_zone: "a1",
            own_region: "a",
            own_name: name,
            resolved: &BTreeMap::new(),
            not_passing: &BTreeMap::new(),
            session_keys: &Arc::default(),
            unix_ms: UNIX_MS + now.as_nanos() / 1_000_000,
        };
        Snapshot::build(&inputs, before, now)
    }

    fn publish(&mut self, now: Moment) {
        for at in 0..self.clients.len() {
            let Client { name, snapshot, .. } = &self.clients[at];
            let snapshot = self.next(name, snapshot, now);
            let backends = self.instances.len();
            let client = &mut self.clients[at];
            if let Some(upstream) = snapshot.upstream(SERVICE) {
                client.upstream = Arc::clone(upstream);
                client.picker.follow(upstream, now);
                let known = places(upstream, backends);
                for (place, endpoint) in client.endpoints.iter_mut().zip(known) {
                    // One that is out still has attempts under way.
                    *place = endpoint.or_else(|| place.take());
                }
            }
            client.snapshot = snapshot;
        }
    }
}

/// The backend's number plus one is its node's id.
fn instance(i: usize, weight: u16) -> Instance {
    let address = SocketAddr::from(([10, 0, (i / 250) as u8, (i % 250) as u8 + 1], 8080));
    Instance {
        node: Arc::new(Node {
            id: i as u64 + 1,
            name: format!("host-{i}").into(),
            address,
            zone: "a1".into(),
            region: "a".into(),
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
            weight,
            health: Health::Passing,
            state: InstanceState::Up,
            started_at_ms: STARTED_MS,
            capacity: None,
            tags: BTreeMap::new(),
        }),
        version: 1,
    }
}

fn places(upstream: &Upstream, backends: usize) -> Vec<Option<Arc<Endpoint>>> {
    let mut places = vec![None; backends];
    for member in upstream.members() {
        places[member.endpoint.key.node as usize - 1] = Some(Arc::clone(&member.endpoint));
    }
    places
}

impl Fleet for Starling {
    fn pick(
        &mut self,
        client: usize,
        _: &[Server],
        now: Moment,
        dice: &mut SmallRng,
    ) -> Option<usize> {
        let ask = Ask {
            idempotent: true,
            ..Ask::default()
        };
        let client = &mut self.clients[client];
        let pick = client.picker.pick(&ask, now, dice)?;
        pick.endpoint.begin(now);
        let backend = pick.endpoint.key.node as usize - 1;
        if let Some(canary) = pick.canary {
            client.canaries[backend] = Some((now, canary));
        }
        Some(backend)
    }

    fn ended(&mut self, attempt: &Attempt, now: Moment, dice: &mut SmallRng) {
        self.attempts += 1;
        let client = &self.clients[attempt.client];
        let Some(endpoint) = &client.endpoints[attempt.backend] else {
            return;
        };
        let outcome = match attempt.ended {
            Ended::Well => Outcome::Success,
            Ended::Failed => Outcome::ServerFault { gateway: false },
            Ended::TimedOut => Outcome::Unreachable(Unreachable::AnswerTimedOut),
        };
        if attempt.ended == Ended::TimedOut {
            endpoint.gave_up(now);
        } else {
            endpoint.head_came(now);
        }
        endpoint.end(now);
        let report = Report {
            outcome,
            latency: outcome.is_well().then_some(attempt.latency),
            connection: self.attempts,
            canary: client.canaries[attempt.backend]
                .filter(|(began, _)| *began + attempt.latency == now)
                .map(|(_, canary)| canary),
        };
        client.upstream.report(endpoint, &report, now, dice);
    }

    fn joined(&mut self, backend: usize, now: Moment) {
        let mut instance = self.later[backend].clone();
        let unix_ms = UNIX_MS + now.as_nanos() / 1_000_000;
        Arc::make_mut(&mut instance.record).started_at_ms = unix_ms;
        self.instances[backend] = Some(instance);
        self.publish(now);
    }

    fn told_failing(&mut self, backend: usize, now: Moment) {
        if let Some(instance) = &mut self.instances[backend] {
            Arc::make_mut(&mut instance.record).health = Health::Failing;
            instance.version += 1;
        }
        self.publish(now);
    }
}
