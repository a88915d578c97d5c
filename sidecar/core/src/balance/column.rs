//! One tier's numbers as one worker keeps them: flat arrays that a pick scans without touching shared memory.
//!
//! Not here: what the numbers mean for a policy (the file of that policy).

use std::{collections::BTreeMap, time::Duration};

use rand::{Rng, RngExt};

use crate::{endpoint::Endpoint, moment::Moment, policy::Balance, upstream::Member};

use super::{
    Ask, costs::Costs, least_connections, least_response_time, portion::Portions, power_of_two,
    random::Random, round_robin::RoundRobin,
};

/// Up to this many endpoints the requests in flight that matter are read anew for every pick.
const FRESH_MAX: usize = 16;

/// A worker tells at most so often who had its part: it changes with every few requests, differs from worker to worker, and
/// is for people to read.
const TOLD_EVERY: Duration = Duration::from_millis(250);

/// The arrays of one tier; index = place in the tier's members.
#[derive(Debug)]
pub(super) struct Column {
    pub ids: Vec<u64>,
    /// Weight with its ramp; 0 for whom no pick may choose.
    pub weight: Vec<f32>,
    lanes: Vec<Lane>,
    /// What one more request costs.
    costs: Costs,
    portions: Portions,
    refreshed: Moment,
    /// When it was last told who had its part.
    told: Moment,
    /// Who is out by ejection.
    pub out: Vec<usize>,
    /// Whose success share is below 1.
    pub blemished: Vec<usize>,
    /// Endpoints that a pick may choose.
    pub usable: u32,
    /// Endpoints that count as well.
    pub well: u32,
    /// Capacity of those that count as well.
    pub capacity: f64,
    /// Of those that have answered, in nanoseconds.
    pub mean_latency: f64,
    endpoints: Vec<std::sync::Arc<Endpoint>>,
    limit: u32,
    /// Somebody may get no more than so many requests, so that they have to be counted whatever the policy.
    limited: bool,
    /// Nobody has to be passed over, nor counted for that.
    all_open: bool,
    picks_since_reading: usize,
    policy: Policy,
}

/// What makes up one endpoint's cost, together because a pick changes it together.
#[derive(Clone, Debug)]
struct Lane {
    /// What one more request costs while nothing is in flight; infinite for whom no pick may choose.
    base: f32,
    /// What `base` is multiplied by while nothing is in flight.
    stale: f32,
    /// What one request in flight counts for: less at whoever weighs more than the mean.
    lean: f32,
    /// This worker's picks, those of the last ten seconds or so.
    used: f32,
    /// Requests in flight as last read, and this worker's picks since.
    own: u32,
    /// Most requests in flight.
    most: u32,
}

const CLOSED: Lane = Lane {
    base: f32::INFINITY,
    stale: 1.0,
    lean: 1.0,
    used: 0.0,
    own: 0,
    most: 0,
};

impl Lane {
    /// Takes over what was asked of the endpoint: newer snapshots come every few seconds, and its part of the requests is
    /// judged over ten. Its requests in flight as well, for whoever has others than before goes to the end of the queue.
    fn carry(&mut self, before: &Lane) {
        (self.used, self.own) = (before.used, before.own);
    }
}

#[derive(Debug)]
enum Policy {
    LeastResponseTime,
    LeastConnections,
    RoundRobin(RoundRobin),
    PowerOfTwo(Random),
    Random(Random),
}

impl Column {
    /// The arrays for `members`; `before` hands over cursors, and what this worker knows of those who were there.
    pub fn new(
        balance: Balance,
        limit: Option<u32>,
        members: &[Member],
        before: Option<&Column>,
        salt: u64,
    ) -> Column {
        let n = members.len();
        let ids: Vec<u64> = members.iter().map(|m| m.endpoint.id).collect();
        let policy = match balance {
            Balance::LeastResponseTime => Policy::LeastResponseTime,
            Balance::LeastConnections => Policy::LeastConnections,
            Balance::PowerOfTwo => Policy::PowerOfTwo(Random::default()),
            Balance::Random => Policy::Random(Random::default()),
            Balance::RoundRobin => Policy::RoundRobin(match before {
                Some(Column {
                    policy: Policy::RoundRobin(turns),
                    ids: old,
                    ..
                }) => turns.carried(old, &ids, salt),
                _ => RoundRobin::new(n, salt),
            }),
        };
        let mut costs = Costs::new(n, salt);
        let mut lanes = vec![CLOSED; n];
        if let Some(before) = before {
            let old: BTreeMap<u64, usize> = (before.ids.iter().copied()).zip(0..).collect();
            let places = || ids.iter().map(|id| old.get(id).copied());
            costs.carry(&before.costs, places());
            for (lane, place) in lanes.iter_mut().zip(places()) {
                if let Some(place) = place {
                    lane.carry(&before.lanes[place]);
                }
            }
        }
        Column {
            ids,
            weight: vec![0.0; n],
            lanes,
            costs,
            portions: Portions::new(members),
            refreshed: before.map_or(Moment::START, |before| before.refreshed),
            told: before.map_or(Moment::START, |before| before.told),
            out: Vec::with_capacity(n),
            blemished: Vec::with_capacity(n),
            usable: 0,
            well: 0,
            capacity: 0.0,
            mean_latency: 0.0,
            endpoints: members.iter().map(|m| m.endpoint.clone()).collect(),
            limit: limit.unwrap_or(u32::MAX),
            limited: true,
            all_open: false,
            picks_since_reading: 0,
            policy,
        }
    }

    /// Reads the shared figures anew. Unless anybody `may_be_silent`, silence says nothing now.
    pub fn refresh(&mut self, members: &[Member], may_be_silent: bool, now: Moment) {
        let proven = |m: &Member| {
            let endpoint = &m.endpoint;
            endpoint.load().answered() && !endpoint.is_ejected() && endpoint.full_for(now).is_none()
        };
        let others_answered = members.iter().any(proven);
        let top_ramp = members.iter().filter(|m| !m.endpoint.is_ejected());
        // Where all are new there is nobody to spare them for: the ramp is against the oldest.
        let top_ramp = top_ramp.map(|m| m.endpoint.ramp(now)).fold(0.0, f64::max);
        let mean = least_response_time::mean_latency(members);
        let mean_weight = least_response_time::mean_weight(members);
        self.mean_latency = mean;
        (self.usable, self.well, self.capacity) = (0, 0, 0.0);
        self.out.clear();
        self.blemished.clear();
        self.limited = self.limit != u32::MAX;
        let mut claim = 0.0_f64;
        for (i, member) in members.iter().enumerate() {
            let endpoint = &*member.endpoint;
            let lane = &mut self.lanes[i];
            (self.weight[i], lane.base) = (0.0, f32::INFINITY);
            if endpoint.is_ejected() {
                self.out.push(i);
                continue;
            }
            if !may_be_silent || member.is_well(now) {
                self.well += 1;
                self.capacity += member.capacity;
            }
            if endpoint.full_for(now).is_some() {
                continue;
            }
            if endpoint.load().success() < 1.0 {
                self.blemished.push(i);
            }
            self.usable += 1;
            let ramp = endpoint.ramp(now) / top_ramp;
            self.weight[i] = (member.weight * ramp) as f32;
            let lone = others_answered && !endpoint.load().answered();
            let allowance = endpoint.load().allowance().or(lone.then_some(1));
            self.limited |= allowance.is_some();
            lane.most = allowance.unwrap_or(u32::MAX).min(self.limit);
            lane.base = match self.policy {
                Policy::LeastResponseTime => {
                    let weight = member.weight / mean_weight;
                    lane.lean = weight.recip() as f32;
                    let factors =
                        least_response_time::Factors::of(endpoint, weight, ramp, mean, now);
                    claim = claim.max(member.weight * factors.soundness());
                    factors.at_rest() as f32
                }
                _ => least_connections::at_rest(self.weight[i]),
            };
        }
        match &mut self.policy {
            Policy::RoundRobin(turns) => turns.weigh(&self.weight),
            Policy::PowerOfTwo(random) | Policy::Random(random) => random.weigh(&self.weight),
            Policy::LeastResponseTime | Policy::LeastConnections => {}
        }
        self.all_open =
            !self.ids.is_empty() && !self.limited && self.weight.iter().all(|weight| *weight > 0.0);
        if matches!(self.policy, Policy::LeastResponseTime) {
            self.even_out(now);
            self.doubt_the_quiet(now);
            self.spare_the_sated(members, claim, now);
        }
        self.refreshed = now;
        self.read_in_flight(true);
    }

    /// Among those whose costs are about the same, whoever was asked less than its share comes first.
    fn even_out(&mut self, now: Moment) {
        let kept = least_response_time::use_kept(now.since(self.refreshed));
        let mut sum = (0.0, 0.0);
        for (lane, weight) in self.lanes.iter_mut().zip(&self.weight) {
            lane.used *= kept;
            if *weight > 0.0 {
                sum = (sum.0 + lane.used, sum.1 + *weight);
            }
        }
        if sum.0 <= 0.0 {
            return;
        }
        let fair = sum.0 / sum.1;
        let places = self.lanes.iter_mut().zip(&self.weight);
        for ((lane, weight), endpoint) in places.zip(&self.endpoints) {
            if *weight > 0.0 {
                let evenness = least_response_time::evenness(lane.used / (fair * weight));
                lane.base *= evenness;
                endpoint.set_evenness(evenness);
            }
        }
    }

    /// Where requests come thick enough for a stall to show, whoever has not answered for a while comes after those who
    /// have: nothing is in flight there that could tell.
    fn doubt_the_quiet(&mut self, now: Moment) {
        let busy: u32 = self.endpoints.iter().map(|e| e.in_flight()).sum();
        let is_thick = least_response_time::is_thick(busy, self.usable);
        for (lane, endpoint) in self.lanes.iter_mut().zip(&self.endpoints) {
            lane.stale = if is_thick {
                least_response_time::staleness(endpoint, now)
            } else {
                1.0
            };
        }
    }

    /// Whoever weighs less than others and has had its part of the requests costs, idle, as much as with one in flight.
    fn spare_the_sated(&mut self, members: &[Member], claim: f64, now: Moment) {
        let used = |place: usize| self.lanes[place].used;
        let over = self.portions.overdrawn(members, used, &self.weight, claim);
        let tells = now.since(self.told) >= TOLD_EVERY;
        if tells {
            self.told = now;
        }
        for (lane, member) in self.lanes.iter_mut().zip(members) {
            let sated = member.weight <= over;
            if tells {
                member.endpoint.set_sated(sated);
            }
            if sated {
                lane.stale *= least_response_time::crowding(lane.lean);
            }
        }
    }

    /// Index of the endpoint for one more request; `None` if nobody untried may be chosen.
    #[inline]
    pub fn pick(&mut self, tried: &[u64], rng: &mut impl Rng) -> Option<usize> {
        if tried.is_empty() {
            let in_flight = |place: usize| self.endpoints[place].in_flight();
            match &mut self.policy {
                Policy::LeastResponseTime => return self.cheapest(least_response_time::BLOCK, rng),
                Policy::LeastConnections => return self.cheapest(least_connections::BLOCK, rng),
                _ if !self.all_open => {}
                Policy::RoundRobin(turns) => return turns.next_of_all(),
                Policy::Random(random) => return random.draw_of_all(rng),
                Policy::PowerOfTwo(random) => {
                    return power_of_two::draw_of_all(random, in_flight, rng);
                }
            }
        }
        let ask = Ask {
            tried,
            ..Ask::default()
        };
        self.pick_among(&ask, rng)
    }

    /// The same among those that suit the caller's wish.
    pub fn pick_among(&mut self, ask: &Ask<'_>, rng: &mut impl Rng) -> Option<usize> {
        if self.usable == 0 {
            return None;
        }
        if self.limited || self.scans() {
            self.keep_up();
        }
        let place = self.choose(ask, rng)?;
        self.chosen(place);
        Some(place)
    }

    /// The place of the least cost, from which on `stretch` are looked at where there are too many.
    #[inline]
    fn cheapest(&mut self, stretch: usize, rng: &mut impl Rng) -> Option<usize> {
        self.keep_up();
        let place = self.costs.cheapest(stretch, rng)?;
        self.chosen(place);
        Some(place)
    }

    /// Whether costs are compared.
    #[inline]
    fn scans(&self) -> bool {
        matches!(
            self.policy,
            Policy::LeastResponseTime | Policy::LeastConnections
        )
    }

    /// Reads anew what is in flight if it is time for that: reading costs as much as a few picks, and half a round of
    /// them is how wrong the counts may get.
    #[inline]
    fn keep_up(&mut self) {
        self.picks_since_reading += 1;
        let n = self.ids.len();
        if n <= FRESH_MAX || self.picks_since_reading > n / 2 {
            self.read_in_flight(false);
        }
    }

    /// Notes that the one at `place` gets the request.
    #[inline]
    fn chosen(&mut self, place: usize) {
        let scans = self.scans();
        let lane = &mut self.lanes[place];
        lane.own += 1;
        if scans {
            lane.used += 1.0;
            let cost = self.cost_of(place);
            self.costs.chosen(place, cost);
        }
    }

    fn choose(&mut self, ask: &Ask<'_>, rng: &mut impl Rng) -> Option<usize> {
        let open = |i: usize| {
            self.weight[i] > 0.0
                && self.lanes[i].own < self.lanes[i].most
                && !ask.tried.contains(&self.ids[i])
                && ask.suits(&self.endpoints[i])
        };
        match &mut self.policy {
            Policy::RoundRobin(turns) => turns.next(open),
            Policy::Random(random) => random.draw(open, rng),
            // Two scattered figures are read at once; only a scan of all of them would be dear.
            Policy::PowerOfTwo(random) => {
                power_of_two::draw(random, |i| self.endpoints[i].in_flight(), open, rng)
            }
            Policy::LeastResponseTime | Policy::LeastConnections => {
                // From a random place on, or the first would win every tie.
                let (n, start) = (self.ids.len(), rng.random_range(0..self.ids.len()));
                let open = (start..n).chain(0..start).filter(|i| open(*i));
                open.min_by(|a, b| self.costs.of(*a).total_cmp(&self.costs.of(*b)))
            }
        }
    }

    #[inline]
    fn read_in_flight(&mut self, all: bool) {
        self.picks_since_reading = 0;
        let scans = self.scans();
        let mut changed = all;
        for i in 0..self.endpoints.len() {
            let own = self.endpoints[i].in_flight();
            let before = std::mem::replace(&mut self.lanes[i].own, own);
            if !scans {
                continue;
            }
            if own != before {
                changed = true;
                self.costs.queue(i, self.cost_of(i));
            } else if all {
                self.costs.set(i, self.cost_of(i));
            }
        }
        if changed {
            self.costs.settle();
        }
    }

    #[inline]
    fn cost_of(&self, place: usize) -> f32 {
        let lane = &self.lanes[place];
        if lane.own >= lane.most {
            return f32::INFINITY;
        }
        match self.policy {
            Policy::LeastResponseTime => {
                let stale = if lane.own == 0 { lane.stale } else { 1.0 };
                lane.base * least_response_time::crowding(lane.own as f32 * lane.lean) * stale
            }
            _ => lane.base * least_connections::crowding(lane.own),
        }
    }
}
