//! Which tiers an upstream has and which zone goes where, and what water-filling reckons with.
//!
//! Not here: who is in a tier (`builder.rs`) and what shares tiers get (`zone/`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use mesh_proto::record::InstanceState;

use crate::{
    mesh::{Demand, Instance, Node, NodeState},
    moment::Moment,
    policy::{Policy, ZoneMode},
    upstream::{Tier, Told, Water, WaterZone},
    zone::{
        History,
        water::{Levels, NEVER},
    },
};

use super::{Inputs, builder::region_by_name};

/// Zones told apart; those beyond, the farthest last in the alphabet, are one together.
const ZONES_MAX: usize = 64;

/// The zone of all beyond [`ZONES_MAX`], and the word for them in an operator's order.
const OTHERS: &str = "*";

/// A zone silent for so long is said to be frozen: what it last told stands.
pub const FROZEN_AFTER: Duration = Duration::from_secs(10);

/// A zone silent for so long is reckoned by the number of its hosts.
pub const HOSTS_AFTER: Duration = Duration::from_secs(60);

/// The tiers of one upstream, before anybody is in them.
pub(super) struct Layout<'a> {
    inputs: &'a Inputs<'a>,
    policy: &'a Policy,
    mode: ZoneMode,
    /// With water-filling, the zones told apart, by name, and the region of each.
    zones: Vec<(&'a str, &'a str)>,
    own: usize,
    levels: Levels,
    /// Tiers by level, then zone; with water-filling, the index of each one's zone.
    tiers: Vec<(Box<str>, usize, Option<usize>)>,
    has_backup: bool,
}

impl<'a> Layout<'a> {
    pub fn new(
        inputs: &'a Inputs<'a>,
        policy: &'a Policy,
        instances: &'a [&'a Instance],
        demands: &'a [Demand],
    ) -> Layout<'a> {
        let mut layout = Layout {
            inputs,
            policy,
            mode: policy.zone_mode(),
            zones: Vec::new(),
            own: 0,
            levels: Levels::new(0, |_, _| NEVER),
            tiers: Vec::new(),
            has_backup: policy.endpoints.iter().any(|e| e.backup),
        };
        match layout.mode {
            ZoneMode::Ignore => layout.tiers.push(("all".into(), 0, None)),
            ZoneMode::Priority => {
                let names = layout.level_names().into_iter().enumerate();
                layout.tiers = names.map(|(at, name)| (name.into(), at, None)).collect();
            }
            ZoneMode::Waterfill => layout.tell_zones_apart(instances, demands),
        }
        layout
    }

    /// The tiers, empty.
    pub fn empty_tiers(&self) -> Vec<Tier> {
        let tier = |name: &str, level: usize, zone: &str, backup: bool| Tier {
            name: name.into(),
            level,
            zone: zone.into(),
            backup,
            members: Vec::new(),
            callable: 0,
            total: 0,
            live: Arc::default(),
            history: History::default(),
            counted: BTreeSet::new(),
        };
        let tiers = self.tiers.iter().map(|(name, level, zone)| {
            let zone = zone.map_or("", |at| self.zones[at].0);
            tier(name, *level, zone, false)
        });
        let mut tiers: Vec<Tier> = tiers.collect();
        if self.has_backup {
            let level = tiers.last().map_or(0, |last| last.level + 1);
            tiers.push(tier("backup", level, "", true));
        }
        tiers
    }

    /// The tier of backup endpoints.
    pub fn backup(&self) -> usize {
        self.tiers.len()
    }

    /// The tier of a zone; `None` where the operator's order has no place for it.
    pub fn tier_of(&self, zone: &str, region: &str) -> Option<usize> {
        match self.mode {
            ZoneMode::Ignore => Some(0),
            ZoneMode::Priority => self.level_of(zone, region),
            ZoneMode::Waterfill => {
                let at = self.place(zone);
                self.tiers.iter().position(|(.., held)| *held == Some(at))
            }
        }
    }

    /// What water-filling reckons with.
    pub fn water(
        &self,
        instances: &[&Instance],
        demands: &[Demand],
        deaf_since: Option<Moment>,
        now: Moment,
    ) -> Option<Water> {
        if self.mode != ZoneMode::Waterfill {
            return None;
        }
        let mut zones: Vec<WaterZone> = (self.zones.iter().enumerate())
            .map(|(at, (name, _))| WaterZone {
                name: (*name).into(),
                demand: 0.0,
                told: Told::Fresh,
                tier: self.tiers.iter().position(|(.., zone)| *zone == Some(at)),
            })
            .collect();
        for demand in demands {
            if counts(&demand.node, now) {
                zones[self.place(&demand.node.zone)].demand += f64::from(demand.record.per_second);
            }
        }
        self.doubt(&mut zones, instances, demands, deaf_since, now);
        // A part of the service has only a part of its demand, and nobody tells how much: only ratios count then.
        let is_whole = self.policy.select.is_empty() && self.policy.endpoints.is_empty();
        let on_offer = |i: &&&Instance| {
            i.record.state != InstanceState::Draining && i.node.state != NodeState::Left
        };
        let mut on_offer = instances.iter().filter(on_offer);
        Some(Water {
            zones,
            own: self.own,
            declared: is_whole && on_offer.all(|i| i.record.capacity.is_some()),
            levels: self.levels.clone(),
            joined: self.inputs.mesh.joined,
        })
    }

    fn tell_zones_apart(&mut self, instances: &'a [&'a Instance], demands: &'a [Demand]) {
        let inputs = self.inputs;
        let mut found: BTreeMap<&str, &str> = BTreeMap::new();
        let mut callable: BTreeSet<&str> = BTreeSet::from([inputs.own_zone]);
        for instance in instances {
            found.insert(&instance.node.zone, &instance.node.region);
            callable.insert(&instance.node.zone);
        }
        for fixed in self.policy.endpoints.iter().filter(|e| !e.backup) {
            let zone = fixed.zone.as_deref().unwrap_or(inputs.own_zone);
            found.entry(zone).or_insert_with(|| region_by_name(zone));
            callable.insert(zone);
        }
        for demand in demands {
            found.insert(&demand.node.zone, &demand.node.region);
        }
        found.insert(inputs.own_zone, inputs.own_region);
        let mut zones: Vec<(&str, &str)> = found.into_iter().collect();
        if zones.len() > ZONES_MAX {
            let distance = |(zone, region): &(&str, &str)| match () {
                () if *zone == inputs.own_zone => 0,
                () if *region == inputs.own_region => 1,
                () => 2,
            };
            zones.sort_by_key(|zone| (distance(zone), *zone));
            zones.truncate(ZONES_MAX - 1);
            zones.push((OTHERS, OTHERS));
            zones.sort_unstable();
            callable.insert(OTHERS);
        }
        let own = zones.iter().position(|(zone, _)| *zone == inputs.own_zone);
        self.own = own.unwrap_or(0);
        self.levels = Levels::new(zones.len(), |from, to| {
            let level = self.level_between(zones[from], zones[to]);
            level.and_then(|at| u8::try_from(at).ok()).unwrap_or(NEVER)
        });
        let names = self.level_names();
        let mut tiers: Vec<(usize, usize)> = (0..zones.len())
            .filter(|at| callable.contains(zones[*at].0))
            .map(|at| (usize::from(self.levels.of(self.own, at)), at))
            .filter(|(level, _)| *level != usize::from(NEVER))
            .collect();
        tiers.sort_unstable();
        let named = tiers.into_iter();
        self.tiers = named
            .map(|(level, at)| (names[level].into(), level, Some(at)))
            .collect();
        self.zones = zones;
    }

    fn place(&self, zone: &str) -> usize {
        let find = |name: &str| {
            self.zones
                .binary_search_by_key(&name, |(zone, _)| zone)
                .ok()
        };
        find(zone).or_else(|| find(OTHERS)).unwrap_or(self.own)
    }

    fn level_names(&self) -> Vec<&'a str> {
        let order = &self.policy.zones.order;
        if order.is_empty() {
            return vec!["zone", "region", "elsewhere"];
        }
        order.iter().map(|zone| &**zone).collect()
    }

    /// How near a zone is to this host.
    fn level_of(&self, zone: &str, region: &str) -> Option<usize> {
        let order = &self.policy.zones.order;
        if order.is_empty() {
            let own = (self.inputs.own_zone, self.inputs.own_region);
            return Some(near(own, (zone, region)));
        }
        let named = order.iter().position(|entry| &**entry == zone);
        named.or_else(|| order.iter().position(|entry| &**entry == OTHERS))
    }

    /// How near one zone is to another. What order the hosts of other zones were given nobody tells: one that begins
    /// with our own zone is taken to be ours alone, and any other to be everybody's.
    fn level_between(&self, from: (&str, &str), to: (&str, &str)) -> Option<usize> {
        let first = self.policy.zones.order.first();
        let is_own_order = first.is_some_and(|first| **first == *self.inputs.own_zone);
        if first.is_none() || (is_own_order && from.0 != self.inputs.own_zone) {
            return Some(near(from, to));
        }
        self.level_of(to.0, to.1)
    }

    /// Marks the zones that nothing is heard of, and reckons those silent for long by their hosts.
    fn doubt(
        &self,
        zones: &mut [WaterZone],
        instances: &[&Instance],
        demands: &[Demand],
        deaf_since: Option<Moment>,
        now: Moment,
    ) {
        let owners = instances.iter().map(|i| &i.node);
        let owners = owners.chain(demands.iter().map(|d| &d.node));
        // Of the owners of a zone: whether one speaks, and else when the last fell silent.
        let mut last: Vec<Option<Result<(), Moment>>> = vec![None; zones.len()];
        for node in owners {
            let heard = match node.state {
                NodeState::Alive => Ok(()),
                NodeState::Suspect | NodeState::Down => Err(node.since),
                NodeState::Left => continue,
            };
            let held = &mut last[self.place(&node.zone)];
            *held = Some(match (*held, heard) {
                (Some(Ok(())), _) | (_, Ok(())) => Ok(()),
                (Some(Err(a)), Err(b)) => Err(a.max(b)),
                (None, Err(b)) => Err(b),
            });
        }
        for (at, zone) in zones.iter_mut().enumerate() {
            let silent = match last[at] {
                Some(Err(since)) => Some(since),
                // What our own zone asks for we see for ourselves.
                Some(Ok(())) if at != self.own => deaf_since,
                _ => None,
            };
            zone.told = match silent {
                Some(since) if now.since(since) >= HOSTS_AFTER => Told::Hosts { since },
                Some(since) if now.since(since) >= FROZEN_AFTER => Told::Frozen { since },
                _ => Told::Fresh,
            };
        }
        self.count_hosts(zones);
    }

    /// A zone that is known no more asks for as much per host as the others do.
    fn count_hosts(&self, zones: &mut [WaterZone]) {
        let is_lost = |zone: &WaterZone| matches!(zone.told, Told::Hosts { .. });
        if !zones.iter().any(is_lost) {
            return;
        }
        let mut hosts = vec![0.0; zones.len()];
        for node in &self.inputs.mesh.nodes {
            if matches!(node.state, NodeState::Alive | NodeState::Suspect) {
                hosts[self.place(&node.zone)] += 1.0;
            }
        }
        let known = zones.iter().zip(&hosts).filter(|(zone, _)| !is_lost(zone));
        let (demand, host_count) = known.fold((0.0, 0.0), |(demand, count), (zone, hosts)| {
            (demand + zone.demand, count + hosts)
        });
        for (zone, hosts) in zones.iter_mut().zip(hosts) {
            if is_lost(zone) {
                zone.demand = if host_count > 0.0 {
                    demand / host_count * hosts
                } else {
                    0.0
                };
            }
        }
    }
}

impl Water {
    /// When it would be another one although nothing else changed.
    pub(super) fn changes_at(&self, deaf_since: Option<Moment>, now: Moment) -> Option<Moment> {
        let silences = self.zones.iter().filter_map(|zone| match zone.told {
            Told::Frozen { since } => Some(since + HOSTS_AFTER),
            Told::Fresh | Told::Hosts { .. } => None,
        });
        let deaf = deaf_since.map(|since| [since + FROZEN_AFTER, since + HOSTS_AFTER]);
        let all = silences.chain(deaf.into_iter().flatten());
        all.filter(|at| *at > now).min()
    }
}

/// When what these nodes asked for stands or counts no more, although nothing else is heard of them.
pub(super) fn silences(nodes: &[Arc<Node>], now: Moment) -> impl Iterator<Item = Moment> {
    let silent = |node: &&Arc<Node>| matches!(node.state, NodeState::Suspect | NodeState::Down);
    let ends = nodes.iter().filter(silent);
    let ends = ends.flat_map(|node| [node.since + FROZEN_AFTER, node.since + HOSTS_AFTER]);
    ends.filter(move |at| *at > now)
}

fn near(from: (&str, &str), to: (&str, &str)) -> usize {
    match () {
        () if from.0 == to.0 => 0,
        () if from.1 == to.1 => 1,
        () => 2,
    }
}

/// Whether what a node said of its demand still stands: what a dead one asked for, others ask for soon, and missing
/// news is not zero; but not for ever.
fn counts(node: &Node, now: Moment) -> bool {
    match node.state {
        NodeState::Alive | NodeState::Suspect => true,
        NodeState::Down => now.since(node.since) < HOSTS_AFTER,
        NodeState::Left => false,
    }
}
