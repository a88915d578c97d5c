//! The real thing: snapshots, pickers, reports and ejection of `mesh-core`, one of each for every client.
//!
//! Not here: retries, which would hide what a pick was worth.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use mesh_proto::record::{DemandRecord, Health, InstanceState, ServiceRecord, WireProtocol};
use rand::rngs::SmallRng;

use crate::{
    balance::{Ask, Picker},
    endpoint::{Endpoint, Report},
    mesh::{Demand, Instance, Mesh, Node, NodeState},
    moment::Moment,
    outcome::{Outcome, Unreachable},
    outlier::Canary,
    policy::{Balance, Policy, ZoneMode},
    snapshot::{Inputs, Snapshot, Upstream},
    zone::demand::{Meter, SAMPLE, Word},
};

use super::{Attempt, Ended, Fleet, Scenario, Server};
use crate::sim::balance::scenario::ZONES;

const SERVICE: &str = "shop";

/// Wall time at the start.
const UNIX_MS: u64 = 1_700_000_000_000;

/// Everybody who is there from the start has been there for an hour.
const STARTED_MS: u64 = UNIX_MS - 3_600_000;

/// Zones by number, each a region of its own.
const ZONE_NAMES: [&str; ZONES] = ["a1", "b1", "c1"];

/// A client's node has this id and its number.
const CLIENT_IDS: u64 = 1 << 32;

struct Client {
    node: Arc<Node>,
    meter: Meter,
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
    /// What clients ask for, as everybody knows it, sorted by client.
    demands: BTreeMap<usize, Demand>,
    /// What they told and nobody has heard yet: when it will be, by whom, requests per second.
    told: VecDeque<(Moment, usize, u32)>,
    /// How old news is; `None`: there are no zones, and nobody needs to know demands.
    news: Option<Duration>,
    next_sample: Moment,
}

impl Starling {
    pub fn new(
        scenario: &Scenario,
        balance: Balance,
        zones: ZoneMode,
        dice: &mut SmallRng,
    ) -> Starling {
        let mut policy = Policy::of_service(SERVICE);
        policy.balance = balance;
        policy.zones.mode = zones;
        policy.ejection.consecutive *= u32::from(scenario.ejection);
        let later: Vec<Instance> = (0..scenario.backends.len())
            .map(|i| instance(i, scenario))
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
            demands: BTreeMap::new(),
            told: VecDeque::new(),
            news: scenario.zones.map(|zones| zones.news),
            next_sample: Moment::START + SAMPLE,
        };
        for at in 0..scenario.clients {
            let id = CLIENT_IDS + at as u64;
            let node = Arc::new(node(id, format!("client-{at}"), scenario.zone_of(at)));
            let snapshot = starling.next(&node, &Snapshot::empty(), Moment::START);
            let Some(upstream) = snapshot.upstream(SERVICE).map(Arc::clone) else {
                continue;
            };
            starling.clients.push(Client {
                node,
                meter: Meter::default(),
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

    fn next(&self, own: &Arc<Node>, before: &Snapshot, now: Moment) -> Snapshot {
        let instances: Vec<Instance> = self.instances.iter().flatten().cloned().collect();
        let owners = instances.iter().map(|i| Arc::clone(&i.node));
        let mesh = Arc::new(Mesh {
            nodes: [Arc::clone(own)].into_iter().chain(owners).collect(),
            instances,
            demands: self.demands.values().cloned().collect(),
            joined: true,
            ..Mesh::default()
        });
        let inputs = Inputs {
            mesh: &mesh,
            policies: &[Arc::clone(&self.policy)],
            undeclared: false,
            own_zone: &own.zone,
            own_region: &own.region,
            own_name: &own.name,
            resolved: &BTreeMap::new(),
            not_passing: &BTreeMap::new(),
            session_keys: &Arc::default(),
            unix_ms: unix_ms(now),
        };
        Snapshot::build(&inputs, before, now)
    }

    fn publish(&mut self, now: Moment) {
        for at in 0..self.clients.len() {
            let Client { node, snapshot, .. } = &self.clients[at];
            let snapshot = self.next(node, snapshot, now);
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

    /// What each client asks for is measured as sidecars do it, and is heard later.
    fn sample(&mut self, now: Moment) {
        let Some(news) = self.news else { return };
        for (at, client) in self.clients.iter_mut().enumerate() {
            client.picker.tell_asked();
            let asked = [(SERVICE, client.upstream.shared.asked())];
            for word in client.meter.sample(asked.into_iter(), now) {
                let per_second = match word {
                    Word::Tell { per_second, .. } => per_second,
                    Word::Forget { .. } => 0,
                };
                self.told.push_back((now + news, at, per_second));
            }
        }
    }

    /// Whether anything was heard.
    fn hear(&mut self, now: Moment) -> bool {
        let mut heard = false;
        while let Some((at, client, per_second)) = self.told.front().copied()
            && at <= now
        {
            self.told.pop_front();
            let record = DemandRecord {
                service: SERVICE.into(),
                per_second,
            };
            let demand = Demand {
                node: Arc::clone(&self.clients[client].node),
                record: Arc::new(record),
            };
            self.demands.insert(client, demand);
            heard = true;
        }
        heard
    }

    fn told(&mut self, backend: usize, health: Health, now: Moment) {
        if let Some(instance) = &mut self.instances[backend] {
            Arc::make_mut(&mut instance.record).health = health;
            instance.version += 1;
        }
        self.publish(now);
    }
}

fn unix_ms(now: Moment) -> u64 {
    UNIX_MS + now.as_nanos() / 1_000_000
}

/// The backend's number plus one is its node's id.
fn instance(i: usize, scenario: &Scenario) -> Instance {
    let backend = &scenario.backends[i];
    let per_second = backend.workers as f64 / backend.mean.as_secs_f64();
    let address = SocketAddr::from(([10, 0, (i / 250) as u8, (i % 250) as u8 + 1], 8080));
    Instance {
        node: Arc::new(node(i as u64 + 1, format!("host-{i}"), scenario.zone_of(i))),
        epoch: 1,
        record: Arc::new(ServiceRecord {
            service: SERVICE.into(),
            instance: format!("{SERVICE}-{i}").into(),
            address,
            protocol: WireProtocol::Http,
            weight: backend.weight,
            health: Health::Passing,
            state: InstanceState::Up,
            started_at_ms: STARTED_MS,
            // Where there are no zones nobody asks for it.
            capacity: scenario.zones.map(|_| per_second as u32),
            tags: BTreeMap::new(),
        }),
        version: 1,
    }
}

fn node(id: u64, name: String, zone: usize) -> Node {
    let zone = ZONE_NAMES[zone];
    Node {
        id,
        name: name.into(),
        address: SocketAddr::from(([10, 1, 0, 1], 7946)),
        zone: zone.into(),
        region: zone.trim_end_matches('1').into(),
        state: NodeState::Alive,
        since: Moment::START,
        incarnation: 0,
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
            Ended::Refused => Outcome::Unreachable(Unreachable::Refused),
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
        Arc::make_mut(&mut instance.record).started_at_ms = unix_ms(now);
        self.instances[backend] = Some(instance);
        self.publish(now);
    }

    fn told_failing(&mut self, backend: usize, now: Moment) {
        self.told(backend, Health::Failing, now);
    }

    fn told_well(&mut self, backend: usize, now: Moment) {
        if let Some(instance) = &mut self.instances[backend] {
            // A restarted host's instance is a new endpoint, and a young one.
            instance.epoch += 1;
            Arc::make_mut(&mut instance.record).started_at_ms = unix_ms(now);
        }
        self.told(backend, Health::Passing, now);
    }

    fn tick(&mut self, now: Moment) {
        if now >= self.next_sample {
            self.next_sample = now + SAMPLE;
            self.sample(now);
        }
        if self.hear(now) {
            self.publish(now);
        }
    }
}
