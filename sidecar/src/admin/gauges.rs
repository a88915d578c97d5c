//! Figures that are read off the snapshot when somebody scrapes: a series ends with what it tells of.
//!
//! Not here: what is counted as it happens, and the families' help (`metrics.rs`).

use std::{collections::BTreeMap, fmt::Write};

use mesh_core::{explain, moment::Moment, snapshot::Snapshot};

use super::listing;
use crate::metrics::help_of;

/// Renders the snapshot's gauges as Prometheus text.
pub fn render(snapshot: &Snapshot, ready: bool, now: Moment) -> String {
    let mut text = Text(String::new());
    text.family("starling_ready");
    text.sample("starling_ready", &[], f64::from(u8::from(ready)));
    text.family("starling_gossip_members");
    for (state, count) in listing::by_state(&snapshot.mesh) {
        text.sample("starling_gossip_members", &[("state", state)], count as f64);
    }
    text.family("starling_endpoint_state");
    for upstream in snapshot.upstreams() {
        let mut counts: BTreeMap<(Box<str>, &str), u32> = BTreeMap::new();
        for endpoint in explain::endpoints(upstream, now) {
            let state = match (endpoint.usable, endpoint.why) {
                (true, _) => "usable",
                (false, why) => why.unwrap_or("out"),
            };
            *counts.entry((endpoint.zone, state)).or_default() += 1;
        }
        for ((zone, state), count) in counts {
            let labels = [
                ("upstream", &*upstream.policy.name),
                ("zone", &*zone),
                ("state", state),
            ];
            text.sample("starling_endpoint_state", &labels, f64::from(count));
        }
    }
    text.family("starling_tier_share");
    for upstream in snapshot.upstreams() {
        // Zones that are equally near are one tier here.
        let mut shares: BTreeMap<(usize, Box<str>), f64> = BTreeMap::new();
        for tier in explain::tiers(upstream, now) {
            *shares.entry((tier.tier, tier.name)).or_default() += tier.share;
        }
        for ((_, name), share) in shares {
            let labels = [("upstream", &*upstream.policy.name), ("tier", &*name)];
            text.sample("starling_tier_share", &labels, share);
        }
    }
    zones(&mut text, snapshot, now);
    text.0
}

fn zones(text: &mut Text, snapshot: &Snapshot, now: Moment) {
    let upstreams = snapshot.upstreams();
    let waters: Vec<_> = upstreams
        .filter_map(|upstream| Some((&*upstream.policy.name, explain::water(upstream, now)?)))
        .collect();
    let mut family = |name: &str, figure: fn(&explain::WaterZoneView) -> f64, with_unit: bool| {
        text.family(name);
        for (upstream, water) in &waters {
            for zone in &water.zones {
                let mut labels = vec![("upstream", *upstream), ("peer_zone", &*zone.zone)];
                if with_unit {
                    labels.push(("unit", water.capacity_unit));
                }
                text.sample(name, &labels, figure(zone));
            }
        }
    };
    family("starling_zone_share", |zone| zone.share, false);
    family("starling_zone_capacity", |zone| zone.capacity, true);
    family("starling_zone_demand", |zone| zone.demand, false);
}

/// Prometheus text in the making.
struct Text(String);

impl Text {
    fn family(&mut self, name: &str) {
        let help = help_of(name);
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} gauge");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (index, (label, word)) in labels.iter().enumerate() {
            let word = word
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(
                self.0,
                "{}{label}=\"{word}\"",
                if index == 0 { '{' } else { ',' }
            );
        }
        let _ = writeln!(
            self.0,
            "{} {value}",
            if labels.is_empty() { "" } else { "}" }
        );
    }
}
