//! One upstream of a snapshot, built from its policy, its instances and what it was before.
//!
//! Not here: which upstreams there are (`snapshot.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_proto::record::{Health, InstanceState, WireProtocol};

use crate::{
    endpoint::{Endpoint, Key, Traits, Word},
    mesh::{Demand, Instance, NodeState},
    moment::Moment,
    policy::{FixedEndpoint, HttpVersion, Place, Policy},
    session::Hosts,
    upstream::{Member, Out, Seat, Tier, Told, Upstream, WaterZone, Why},
};

use super::{
    Inputs,
    layout::Layout,
    names::{Claim, Stay, hosts, owners},
};

/// An endpoint whose check warns gets this part of its weight.
const WARNING_FACTOR: f64 = 0.5;

/// An endpoint whose host is suspected gets this part of its weight: enough for a refusal to confirm it soon.
const SUSPECT_FACTOR: f64 = 0.25;

/// Builds one upstream.
pub(super) struct Builder<'a> {
    pub inputs: &'a Inputs<'a>,
    pub policy: &'a Arc<Policy>,
    pub instances: &'a [&'a Instance],
    pub demands: &'a [Demand],
    pub deaf_since: Option<Moment>,
    pub only_http: bool,
    pub generation: u64,
    pub previous: Option<&'a Arc<Upstream>>,
    pub now: Moment,
}

/// One endpoint on its way to a tier.
pub(super) struct Candidate {
    pub endpoint: Arc<Endpoint>,
    pub tier: Option<usize>,
    weight: f64,
    pub capacity: f64,
    /// The weight without what this host suspects.
    told_weight: f64,
    warns: bool,
    pub standing: Result<Word, Why>,
    /// When its host was declared down.
    pub down_since: Option<Moment>,
    /// It is draining, and well enough to end the sessions it has.
    ends_sessions: bool,
}

impl Candidate {
    /// Whether it may be called, if not from here.
    pub fn is_callable(&self) -> bool {
        matches!(self.standing, Ok(_) | Err(Why::NotInSubset)) && self.tier.is_some()
    }
}

impl Builder<'_> {
    /// The upstream of the snapshot before, if a glance is enough to see that nothing in it changed: in a large
    /// mesh that is nearly all of them. [`Builder::upstream`] would come to the same at greater length.
    pub fn unchanged(&self) -> Option<Arc<Upstream>> {
        let previous = self.previous?;
        let same = |(now, before): (&&Instance, &Instance)| {
            Arc::ptr_eq(&now.record, &before.record)
                && (Arc::ptr_eq(&now.node, &before.node) || now.node == before.node)
                && now.epoch == before.epoch
                // What is made of doubtful hosts depends on the time.
                && now.node.state == NodeState::Alive
        };
        let still = previous.water.as_ref().is_none_or(|water| {
            let fresh = |zone: &WaterZone| zone.told == Told::Fresh;
            let speaks = |demand: &Demand| demand.node.state == NodeState::Alive;
            water.joined == self.inputs.mesh.joined
                && self.deaf_since.is_none()
                && water.zones.iter().all(fresh)
                && self.demands == previous.demands
                && self.demands.iter().all(speaks)
        });
        let mut histories = previous.tiers.iter().map(|tier| &tier.history);
        let unchanged = Arc::ptr_eq(&previous.policy, self.policy)
            && self.policy.endpoints.is_empty()
            && !previous.panic
            && (previous.hosts.iter()).all(|hosts| hosts.uses(self.inputs.session_keys))
            && still
            && previous.sources.len() == self.instances.len()
            && self.instances.iter().zip(&previous.sources).all(same)
            && histories.all(|h| h.changes_at().is_none_or(|at| self.now < at));
        unchanged.then(|| Arc::clone(previous))
    }

    pub fn upstream(&self) -> Arc<Upstream> {
        let known = self.known();
        let layout = Layout::new(self.inputs, self.policy, self.instances, self.demands);
        let water = layout.water(self.instances, self.demands, self.deaf_since, self.now);
        let declared = water.as_ref().is_some_and(|water| water.declared);
        let mut candidates: Vec<Candidate> = Vec::new();
        for instance in self.instances {
            if !self.only_http || instance.record.protocol.is_http() {
                candidates.push(self.of_instance(instance, &layout, declared, &known));
            }
        }
        for fixed in &self.policy.endpoints {
            self.of_fixed(fixed, &layout, &known, &mut candidates);
        }
        candidates.sort_by(|a, b| a.endpoint.key.cmp(&b.endpoint.key));
        candidates.dedup_by(|a, b| a.endpoint.key == b.endpoint.key);
        let callable = self.callable();
        let panic = self.disbelieve(&mut candidates, &callable);
        self.welcome_back(&candidates);
        let out_before = self.believed_down();

        let mut tiers = layout.empty_tiers();
        let wholes = self.narrow(&mut candidates, tiers.len());
        let mut out = Vec::new();
        let mut claims = Vec::new();
        for candidate in &candidates {
            match (candidate.standing, candidate.tier) {
                (Ok(word), Some(tier)) => {
                    candidate.endpoint.set_word(word);
                    if word == Word::Vanished && out_before.contains(&candidate.endpoint.id) {
                        candidate.endpoint.doubt_again();
                    }
                    let place = tiers[tier].members.len();
                    if !tiers[tier].backup {
                        claims.push(Claim {
                            endpoint: &candidate.endpoint,
                            weight: candidate.told_weight,
                            seat: Seat { tier, place },
                        });
                    }
                    tiers[tier].members.push(Member {
                        endpoint: Arc::clone(&candidate.endpoint),
                        weight: candidate.weight,
                        capacity: candidate.capacity,
                        word,
                        warns: candidate.warns,
                    });
                }
                (standing, tier) => out.push(Out {
                    endpoint: Arc::clone(&candidate.endpoint),
                    tier,
                    why: standing.err().unwrap_or(Why::NotInOrder),
                    was_callable: standing == Err(Why::Down)
                        && callable.contains(&candidate.endpoint.id),
                }),
            }
        }
        for (at, tier) in tiers.iter_mut().enumerate() {
            tier.callable = wholes[at].count;
            self.remember(at, tier, &candidates);
        }
        let hash = self.policy.hash.as_ref();
        let known = self.previous.and_then(|u| u.owners.as_ref());
        let owners = hash.map(|hash| owners(self.policy, hash.table, &claims, known));
        let hosts = self.hosts(&candidates);
        let shared = self.previous.map(|u| Arc::clone(&u.shared));
        let upstream = Upstream {
            policy: Arc::clone(self.policy),
            tiers,
            out,
            water,
            panic,
            owners,
            hosts,
            shared: shared.unwrap_or_default(),
            generation: self.generation,
            sources: self.instances.iter().copied().cloned().collect(),
            demands: self.demands.to_vec(),
        };
        match self.previous {
            Some(previous) if previous.says_the_same(&upstream) => Arc::clone(previous),
            _ => Arc::new(upstream),
        }
    }

    fn hosts(&self, candidates: &[Candidate]) -> Option<Hosts> {
        let sticky = self.policy.sticky.as_ref()?;
        let stays = candidates.iter().filter_map(|candidate| {
            let stays = candidate.is_callable() || candidate.ends_sessions;
            // Whoever has no place in the order of zones has no sessions to end.
            let tier = candidate.tier?;
            stays.then_some((&candidate.endpoint, tier, candidate.ends_sessions))
        });
        let stays: Vec<Stay<'_>> = stays.collect();
        let known = self.previous.and_then(|u| u.hosts.as_ref());
        Some(hosts(self.policy, sticky, self.inputs, &stays, known))
    }

    fn known(&self) -> BTreeMap<&Key, &Arc<Endpoint>> {
        let Some(previous) = self.previous else {
            return BTreeMap::new();
        };
        let members = previous.members().map(|m| &m.endpoint);
        let all = members.chain(previous.out.iter().map(|o| &o.endpoint));
        all.map(|endpoint| (&endpoint.key, endpoint)).collect()
    }

    fn endpoint(
        &self,
        key: Key,
        traits: Traits,
        started_ms: u64,
        known: &BTreeMap<&Key, &Arc<Endpoint>>,
    ) -> Arc<Endpoint> {
        let unix_ms = self.inputs.unix_ms;
        match known.get(&key) {
            Some(endpoint) if traits.fit(endpoint) => {
                endpoint.started(started_ms, unix_ms, self.now);
                Arc::clone(endpoint)
            }
            _ => Arc::new(Endpoint::new(key, traits, started_ms, unix_ms, self.now)),
        }
    }

    fn of_instance(
        &self,
        instance: &Instance,
        layout: &Layout<'_>,
        declared: bool,
        known: &BTreeMap<&Key, &Arc<Endpoint>>,
    ) -> Candidate {
        let (node, record) = (&instance.node, &instance.record);
        let key = Key {
            upstream: self.policy.name.clone(),
            node: node.id,
            epoch: instance.epoch,
            instance: record.instance.clone(),
            address: record.address,
        };
        let http2 = match self.policy.http {
            HttpVersion::One => false,
            HttpVersion::Two => true,
            HttpVersion::Auto => record.protocol == WireProtocol::Grpc,
        };
        let traits = Traits {
            zone: node.zone.clone(),
            node_name: node.name.clone(),
            http2,
        };
        let mut select = self.policy.select.iter();
        let selected = select.all(|(tag, word)| record.tags.get(tag) == Some(word));
        let standing = match (node.state, record.state, record.health) {
            _ if !selected => Err(Why::NotSelected),
            (NodeState::Left, ..) => Err(Why::Left),
            (_, InstanceState::Draining, _) => Err(Why::Draining),
            (_, InstanceState::Warming, _) => Err(Why::Warming),
            (_, _, Health::Failing) => Err(Why::Failing),
            (NodeState::Down, ..) => Err(Why::Down),
            (NodeState::Suspect, ..) => Ok(Word::Suspect),
            (NodeState::Alive, ..) => Ok(Word::Sure),
        };
        let mut weight = f64::from(record.weight.max(1));
        let mut capacity = match record.capacity {
            Some(capacity) if declared => f64::from(capacity),
            _ => weight,
        };
        let warns = record.health == Health::Warning;
        if warns {
            weight *= WARNING_FACTOR;
            capacity *= WARNING_FACTOR;
        }
        let told_weight = weight;
        if node.state == NodeState::Suspect {
            weight *= SUSPECT_FACTOR;
        }
        Candidate {
            endpoint: self.endpoint(key, traits, record.started_at_ms, known),
            tier: layout.tier_of(&node.zone, &node.region),
            weight,
            capacity,
            told_weight,
            warns,
            standing,
            down_since: (node.state == NodeState::Down).then_some(node.since),
            ends_sessions: standing == Err(Why::Draining)
                && matches!(node.state, NodeState::Alive | NodeState::Suspect)
                && record.health != Health::Failing,
        }
    }

    fn of_fixed(
        &self,
        fixed: &FixedEndpoint,
        layout: &Layout<'_>,
        known: &BTreeMap<&Key, &Arc<Endpoint>>,
        candidates: &mut Vec<Candidate>,
    ) {
        let literal;
        let (name, addresses) = match &fixed.place {
            Place::Address(address) => {
                literal = [*address];
                (address.to_string(), &literal[..])
            }
            place @ Place::Name { host, port } => {
                let answers = self.inputs.resolved.get(place);
                (
                    format!("{host}:{port}"),
                    answers.map_or(&[][..], Vec::as_slice),
                )
            }
        };
        let zone = fixed.zone.as_deref().unwrap_or(self.inputs.own_zone);
        let tier = if fixed.backup {
            Some(layout.backup())
        } else {
            layout.tier_of(zone, &self.region_of(zone))
        };
        for address in addresses {
            let key = Key {
                upstream: self.policy.name.clone(),
                node: 0,
                epoch: 0,
                instance: name.as_str().into(),
                address: *address,
            };
            let traits = Traits {
                zone: zone.into(),
                node_name: "".into(),
                http2: self.policy.http == HttpVersion::Two,
            };
            let check = (self.policy.name.clone(), *address);
            let health = self.inputs.not_passing.get(&check);
            let mut weight = f64::from(fixed.weight.get());
            let warns = health == Some(&Health::Warning);
            if warns {
                weight *= WARNING_FACTOR;
            }
            candidates.push(Candidate {
                endpoint: self.endpoint(key, traits, 0, known),
                tier,
                weight,
                capacity: weight,
                // What only this host knows must not move keys from where the others look for them.
                told_weight: f64::from(fixed.weight.get()),
                warns,
                standing: if health == Some(&Health::Failing) {
                    Err(Why::CheckNotPassed)
                } else {
                    Ok(Word::Sure)
                },
                down_since: None,
                ends_sessions: false,
            });
        }
    }

    /// Whoever was out for a reason of its owner's or SWIM's and is in again need not sit out its ejection.
    fn welcome_back(&self, candidates: &[Candidate]) {
        let Some(previous) = self.previous else {
            return;
        };
        // Whoever was left to other sidecars was out for no such reason.
        let was_out = previous.out.iter().filter(|o| o.why != Why::NotInSubset);
        let was_out: BTreeSet<u64> = was_out.map(|o| o.endpoint.id).collect();
        for candidate in candidates {
            let sure = candidate.standing == Ok(Word::Sure);
            if sure && was_out.contains(&candidate.endpoint.id) {
                candidate.endpoint.trial.reconsider(self.now);
            }
        }
    }

    /// Counts those that may be called in the `at`-th tier into its history and takes off those that left gracefully.
    fn remember(&self, at: usize, tier: &mut Tier, candidates: &[Candidate]) {
        let here = candidates.iter().filter(|c| c.tier == Some(at));
        let callable = here.filter(|c| c.is_callable()).map(|c| c.endpoint.id);
        let mut counted: BTreeSet<u64> = callable.collect();
        let mut left = 0;
        let before = self
            .previous
            .and_then(|u| u.tiers.iter().find(|t| t.is_same_as(tier)));
        if let Some(before) = before {
            let now: BTreeMap<u64, &Candidate> =
                candidates.iter().map(|c| (c.endpoint.id, c)).collect();
            let known = self.known();
            let keys: BTreeMap<u64, &Key> = known.iter().map(|(k, e)| (e.id, *k)).collect();
            for id in before
                .counted
                .difference(&counted)
                .copied()
                .collect::<Vec<_>>()
            {
                let graceful = match (now.get(&id), keys.get(&id)) {
                    (Some(candidate), _) => matches!(
                        candidate.standing,
                        Err(Why::Draining | Why::Left | Why::NotSelected | Why::NotInOrder)
                    ),
                    (None, Some(key)) => self.was_withdrawn(key),
                    (None, None) => false,
                };
                left += u32::from(graceful);
                if !graceful && now.contains_key(&id) {
                    counted.insert(id);
                }
            }
            tier.live = Arc::clone(&before.live);
        }
        let history = before.map(|t| t.history.clone()).unwrap_or_default();
        tier.history = history.next(tier.callable, left, self.now);
        tier.total = tier.history.total();
        tier.counted = counted;
    }

    /// Whether an endpoint that is no longer told of was taken back by its owner, rather than lost with a crash.
    fn was_withdrawn(&self, key: &Key) -> bool {
        if key.node == 0 {
            return true;
        }
        let mesh = self.inputs.mesh;
        let restarted = mesh
            .instances
            .iter()
            .any(|i| i.node.id == key.node && i.epoch > key.epoch);
        let node = mesh.nodes.iter().find(|n| n.id == key.node);
        let speaks = node.is_some_and(|n| n.state != NodeState::Down);
        speaks && !restarted
    }

    /// The region of a zone that only a table names: what its hosts say, else by the rule for `node.region`.
    fn region_of(&self, zone: &str) -> Box<str> {
        if zone == self.inputs.own_zone {
            return self.inputs.own_region.into();
        }
        let nodes = &self.inputs.mesh.nodes;
        match nodes.iter().find(|node| &*node.zone == zone) {
            Some(node) => node.region.clone(),
            None => region_by_name(zone).into(),
        }
    }
}

/// A zone's name without its last letter where that follows a digit, else the name itself.
pub fn region_by_name(zone: &str) -> &str {
    match zone.as_bytes() {
        [.., digit, letter] if digit.is_ascii_digit() && letter.is_ascii_alphabetic() => {
            &zone[..zone.len() - 1]
        }
        _ => zone,
    }
}

impl Upstream {
    fn says_the_same(&self, other: &Upstream) -> bool {
        let members = |a: &Tier, b: &Tier| {
            a.members.len() == b.members.len()
                && a.members.iter().zip(&b.members).all(|(a, b)| {
                    Arc::ptr_eq(&a.endpoint, &b.endpoint)
                        && a.weight == b.weight
                        && a.capacity == b.capacity
                        && a.word == b.word
                        && a.warns == b.warns
                })
        };
        let tiers = self.tiers.len() == other.tiers.len()
            && self.tiers.iter().zip(&other.tiers).all(|(a, b)| {
                a.is_same_as(b)
                    && a.level == b.level
                    && a.backup == b.backup
                    && (a.callable, a.total) == (b.callable, b.total)
                    && a.history == b.history
                    && a.counted == b.counted
                    && members(a, b)
            });
        let out = self.out.len() == other.out.len()
            && self.out.iter().zip(&other.out).all(|(a, b)| {
                Arc::ptr_eq(&a.endpoint, &b.endpoint)
                    && (a.tier, a.why, a.was_callable) == (b.tier, b.why, b.was_callable)
            });
        let water = self.water == other.water && self.demands == other.demands;
        let hosts = match (&self.hosts, &other.hosts) {
            (Some(a), Some(b)) => a.says_the_same(b),
            (a, b) => a.is_none() && b.is_none(),
        };
        let owners = match (&self.owners, &other.owners) {
            (Some(a), Some(b)) => Arc::ptr_eq(&a.table, &b.table) && a.seats == b.seats,
            (a, b) => a.is_none() && b.is_none(),
        };
        self.panic == other.panic
            && (water && hosts && owners)
            && Arc::ptr_eq(&self.policy, &other.policy)
            && tiers
            && out
    }
}
