//! One backend: a bounded pool of workers, a queue, and what goes wrong with it.
//!
//! Not here: who sends it requests.

use std::{collections::VecDeque, time::Duration};

use rand::Rng;

use crate::moment::Moment;

use super::{
    exponential,
    scenario::{Backend, Flip},
};

/// A backend at work.
#[derive(Debug)]
pub struct Server {
    /// What it is.
    pub backend: Backend,
    busy: usize,
    queue: VecDeque<usize>,
    /// When it stands still, in order and without overlap.
    stalls: Vec<(Moment, Moment)>,
}

impl Server {
    /// A backend without requests, its stalls until `end` drawn.
    pub fn new(backend: Backend, end: Moment, rng: &mut impl Rng) -> Server {
        let mut stalls = Vec::new();
        if let Some(stall) = backend.stalls {
            let mut at = Moment::START;
            loop {
                at = at + stall.every.mul_f64(exponential(rng));
                if at >= end {
                    break;
                }
                stalls.push((at, at + stall.lasting));
                at = at + stall.lasting;
            }
        }
        Server {
            backend,
            busy: 0,
            queue: VecDeque::new(),
            stalls,
        }
    }

    /// Takes a request; true if a worker is free for it, else it waits its turn.
    pub(super) fn takes(&mut self, request: usize) -> bool {
        let free = self.busy < self.backend.workers;
        if free {
            self.busy += 1;
        } else {
            self.queue.push_back(request);
        }
        free
    }

    /// A worker is free: who is next for it, if anybody waits.
    pub(super) fn next(&mut self) -> Option<usize> {
        let next = self.queue.pop_front();
        if next.is_none() {
            self.busy -= 1;
        }
        next
    }

    /// Requests it works on or that wait in its queue.
    pub fn in_flight(&self) -> usize {
        self.busy + self.queue.len()
    }

    /// Mean service time of a request that starts at `now`.
    pub fn mean(&self, now: Moment) -> Duration {
        let factor = match self.backend.flip {
            Some(Flip { every, factor }) => {
                let turns = now.as_nanos() / every.as_nanos().max(1) as u64;
                if turns % 2 == 1 { factor } else { 1.0 }
            }
            None => 1.0,
        };
        let came = self.backend.came(now);
        let age = now.since(came);
        let cold = match self.backend.cold {
            // Whoever was always there is warm until it was gone.
            Some(cold) if came > Moment::START && age < cold.lasting => {
                let left = 1.0 - age.as_secs_f64() / cold.lasting.as_secs_f64();
                1.0 + (cold.factor - 1.0) * left
            }
            _ => 1.0,
        };
        self.backend.mean.mul_f64(factor * cold)
    }

    /// When work of `work` means that starts at `now` is done, stalls included.
    pub(super) fn done_at(&self, now: Moment, work: f64) -> Moment {
        let mut done = now + self.mean(now).mul_f64(work);
        let first = self.stalls.partition_point(|(_, end)| *end <= now);
        for (start, end) in &self.stalls[first..] {
            if *start >= done {
                break;
            }
            done = done + end.since((*start).max(now));
        }
        done
    }

    /// How long one more request would take on average if it did not stall, as nobody but a simulator can know.
    pub fn true_wait(&self, now: Moment) -> Duration {
        let mean = self.mean(now);
        let ahead = (self.in_flight() + 1).saturating_sub(self.backend.workers);
        mean + mean.mul_f64(ahead as f64 / self.backend.workers as f64)
    }
}
