//! Which zone Envoy sends a request to: priority with spill, or load-aware locality picking.
//!
//! Not here: which host of the zone (`envoy.rs`). Both are written anew from Envoy's documentation; load-aware picking stays
//! in its own zone while that is no more than 0.1 busier than the mean of the others, then goes by headroom, keeps a
//! fraction of 0.03 remote always, and reckons once a second with smoothed figures.

use std::{collections::VecDeque, time::Duration};

use crate::{
    moment::Moment,
    sim::balance::{scenario::ZONES, server::Server},
    zone::{health, spill},
};

/// Between two reckonings.
const PERIOD: Duration = Duration::from_secs(1);

/// What a new figure counts.
const ALPHA: f64 = 0.3;

/// How much busier than the others the own zone may be.
const ABOVE: f64 = 0.1;

/// Share that is sent away always.
const PROBES: f64 = 0.03;

/// Between two looks at how busy servers are.
const LOOK: Duration = Duration::from_millis(100);

/// Looks that make a figure.
const LOOKS: usize = 10;

/// Envoy's load-aware locality picking in one client.
#[derive(Clone, Debug)]
pub struct LoadAware {
    own: usize,
    smoothed: Option<[f64; ZONES]>,
    waited: Duration,
    shares: [f64; ZONES],
}

impl LoadAware {
    /// A client of zone `own` whose first reckoning is due `waited` earlier than a period from now.
    pub fn new(own: usize, waited: Duration) -> LoadAware {
        LoadAware {
            own,
            smoothed: None,
            waited,
            shares: std::array::from_fn(|zone| if zone == own { 1.0 } else { 0.0 }),
        }
    }

    /// Shares by zone after `elapsed`, given what is known of capacities that are well and of how busy zones are (0 to 1).
    pub fn follow(
        &mut self,
        capacity: &[f64; ZONES],
        utilization: &[f64; ZONES],
        elapsed: Duration,
    ) -> [f64; ZONES] {
        self.waited += elapsed;
        if self.waited < PERIOD {
            return self.shares;
        }
        // Periods in which nobody asked are not made up for.
        self.waited = Duration::from_nanos((self.waited.as_nanos() % PERIOD.as_nanos()) as u64);
        let before = self.smoothed.unwrap_or(*utilization);
        let now = std::array::from_fn(|zone| {
            before[zone] + ALPHA * (utilization[zone].min(1.0) - before[zone])
        });
        self.smoothed = Some(now);
        let alive: Vec<usize> = (0..ZONES).filter(|zone| capacity[*zone] > 0.0).collect();
        let far = alive.iter().copied().filter(|zone| *zone != self.own);
        let far: Vec<usize> = far.collect();
        let mean = far.iter().map(|zone| now[*zone]).sum::<f64>() / far.len().max(1) as f64;
        let mut weights = [0.0; ZONES];
        for zone in &alive {
            weights[*zone] = capacity[*zone] * (1.0 - now[*zone]).max(0.01);
        }
        if alive.contains(&self.own) && now[self.own] <= mean + ABOVE {
            let away: f64 = far.iter().map(|zone| weights[*zone]).sum();
            for zone in &far {
                weights[*zone] *= PROBES / away;
            }
            weights[self.own] = 1.0 - PROBES;
        }
        let sum: f64 = weights.iter().sum();
        self.shares = weights.map(|weight| weight / sum);
        self.shares
    }
}

/// Shares of the own zone and of all others as one priority each, given how many of their hosts are well and how many there
/// are.
pub(super) fn priority(own: (u32, u32), others: (u32, u32)) -> [f64; 2] {
    let mut shares = [0.0; 2];
    spill(
        &[health(own.0, own.1), health(others.0, others.1)],
        &mut shares,
    );
    shares
}

/// How busy the zones are, as servers report it: a mean over a second, and as old as news is.
pub(super) struct Reports {
    news: Duration,
    next: Moment,
    looks: VecDeque<[f64; ZONES]>,
    figures: VecDeque<(Moment, [f64; ZONES])>,
}

impl Reports {
    pub fn new(news: Duration) -> Reports {
        Reports {
            news,
            next: Moment::START,
            looks: VecDeque::new(),
            figures: VecDeque::new(),
        }
    }

    pub fn heard(&mut self, servers: &[Server], now: Moment) -> [f64; ZONES] {
        if now >= self.next {
            self.next = now + LOOK;
            self.looks.push_back(busy(servers));
            if self.looks.len() > LOOKS {
                self.looks.pop_front();
            }
            let looks = self.looks.len() as f64;
            let mean = |zone: usize| self.looks.iter().map(|look| look[zone]).sum::<f64>() / looks;
            self.figures.push_back((now, std::array::from_fn(mean)));
        }
        let heard = |figure: &(Moment, _)| figure.0 + self.news <= now;
        while self.figures.get(1).is_some_and(heard) {
            self.figures.pop_front();
        }
        let first = self.figures.front().filter(|figure| heard(figure));
        first.map_or([0.0; ZONES], |(_, figures)| *figures)
    }
}

/// Share of the workers of each zone that work.
fn busy(servers: &[Server]) -> [f64; ZONES] {
    std::array::from_fn(|zone| {
        let of = servers.iter().skip(zone).step_by(ZONES);
        let (busy, all) = of.fold((0, 0), |(busy, all), server| {
            let workers = server.backend.workers;
            (busy + server.in_flight().min(workers), all + workers)
        });
        busy as f64 / (all as f64).max(1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_in_which_nobody_asked_are_not_made_up_for() {
        let mut client = LoadAware::new(0, Duration::ZERO);
        let first = client.follow(&[1.0; ZONES], &[0.9, 0.1, 0.1], 60 * PERIOD);
        assert!(first[0] < 0.5, "{first:?}");
        let soon = client.follow(&[1.0; ZONES], &[0.1, 0.9, 0.9], PERIOD / 2);
        assert_eq!(soon, first);
        let due = client.follow(&[1.0; ZONES], &[0.1, 0.9, 0.9], PERIOD / 2);
        assert_ne!(due, first);
    }
}
