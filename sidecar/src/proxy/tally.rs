//! What one request, and one upstream on one worker, add to the metrics; handles are made once and kept.
//!
//! Not here: names and help of the families (`metrics.rs`).

use std::{cell::RefCell, rc::Rc, time::Duration};

use mesh_core::{moment::Moment, outcome::Outcome};
use metrics::{Counter, Histogram, counter, histogram};

use crate::clock::Clock;

/// Distinct (code, flag) pairs counted apart per upstream and worker; a 601st status code is counted as the last.
const CODES_MAX: usize = 600;

/// The metric handles of one upstream on one worker.
pub struct Meters {
    upstream: Box<str>,
    requests: RefCell<Vec<(u16, &'static str, Counter)>>,
    duration: Histogram,
    attempts: [Counter; 5],
    retries: Counter,
    ejections: Counter,
    canaries: Counter,
    panics: Counter,
}

impl Meters {
    /// Handles under the label `upstream`.
    pub fn new(upstream: &str) -> Rc<Meters> {
        let name: String = upstream.into();
        let outcomes = [
            "success",
            "client_fault",
            "server_fault",
            "overloaded",
            "unreachable",
        ];
        Rc::new(Meters {
            upstream: upstream.into(),
            requests: RefCell::default(),
            duration: histogram!("starling_request_duration_seconds", "upstream" => name.clone()),
            attempts: outcomes.map(|outcome| {
                counter!("starling_attempts_total", "upstream" => name.clone(), "outcome" => outcome)
            }),
            retries: counter!("starling_retries_total", "upstream" => name.clone()),
            ejections: counter!("starling_ejections_total", "upstream" => name.clone()),
            canaries: counter!("starling_canaries_total", "upstream" => name.clone()),
            panics: counter!("starling_panic_total", "upstream" => name),
        })
    }

    /// Counts one attempt.
    pub fn attempt(&self, outcome: Outcome) {
        let index = match outcome {
            Outcome::Success => 0,
            Outcome::ClientFault => 1,
            Outcome::ServerFault { .. } => 2,
            Outcome::Overloaded { .. } => 3,
            Outcome::Unreachable(_) => 4,
        };
        self.attempts[index].increment(1);
    }

    /// Counts one attempt beyond the first.
    pub fn retry(&self) {
        self.retries.increment(1);
    }

    /// Counts one endpoint sent out.
    pub fn ejection(&self) {
        self.ejections.increment(1);
    }

    /// Counts one pick made to find out whether somebody is well again.
    pub fn canary(&self) {
        self.canaries.increment(1);
    }

    /// Counts one pick made in panic.
    pub fn panic(&self) {
        self.panics.increment(1);
    }

    fn request(&self, code: u16, flag: &'static str, took: Duration) {
        let mut requests = self.requests.borrow_mut();
        let known = requests
            .iter()
            .position(|(c, f, _)| *c == code && *f == flag);
        let index = known.unwrap_or_else(|| {
            if requests.len() < CODES_MAX {
                let counter = counter!(
                    "starling_requests_total",
                    "upstream" => String::from(&*self.upstream),
                    "code" => code.to_string(),
                    "flag" => flag
                );
                requests.push((code, flag, counter));
            }
            requests.len() - 1
        });
        requests[index].2.increment(1);
        self.duration.record(took.as_secs_f64());
    }
}

/// The account of one request, closed when its answer has ended; dropped before, the client went away.
pub struct Tally {
    meters: Rc<Meters>,
    clock: Clock,
    began: Moment,
    code: u16,
    flag: &'static str,
    done: bool,
}

impl Tally {
    /// An account for a request that began at `began`.
    pub fn new(meters: Rc<Meters>, clock: Clock, began: Moment) -> Tally {
        Tally {
            meters,
            clock,
            began,
            code: 0,
            flag: "DC",
            done: false,
        }
    }

    /// The answer's head: its status, and the flag if the sidecar made it (`-` if not).
    pub fn answered(&mut self, code: u16, flag: &'static str) {
        self.code = code;
        self.flag = flag;
    }

    /// The answer broke off.
    pub fn broke(&mut self, flag: &'static str) {
        self.flag = flag;
    }

    /// The answer's end.
    pub fn done(mut self) {
        self.close();
    }

    fn close(&mut self) {
        if !self.done {
            self.done = true;
            self.meters
                .request(self.code, self.flag, self.clock.now().since(self.began));
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if !self.done {
            self.flag = "DC";
            self.close();
        }
    }
}
