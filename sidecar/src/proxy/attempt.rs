//! One try at one endpoint, timed and reported.
//!
//! Not here: which endpoint (`mesh_core::balance`) and whether there is another try (`mesh_core::retry`).

use std::{rc::Rc, sync::Arc, time::Duration};

use mesh_core::{
    endpoint::{Endpoint, Report},
    moment::Moment,
    outcome::Outcome,
    outlier::{Canary, Cause},
    snapshot::Upstream,
};

use super::{connections::UnderWay, look, worker::Worker};

/// The account of one try: opened when the endpoint is picked, closed at the end of the answer's body.
///
/// Whatever way a try ends, dropping this settles it: a try dropped before its answer's head counts as cancelled, and
/// one dropped after it as answered, for it was the client that left.
pub struct Attempt {
    worker: Rc<Worker>,
    upstream: Arc<Upstream>,
    endpoint: Arc<Endpoint>,
    began: Moment,
    canary: Option<Canary>,
    connection: u64,
    /// Its stream, on a connection that others share.
    stream: Option<UnderWay>,
    stage: Stage,
}

enum Stage {
    /// Nothing came back yet.
    Waiting,
    /// The head came; the outcome is known only at the end (gRPC trailers).
    Headed { latency: Duration },
    /// Reported.
    Judged,
}

impl Attempt {
    /// Opens the account; `canary` as the pick has it.
    pub fn begin(
        worker: &Rc<Worker>,
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
        canary: Option<Canary>,
    ) -> Attempt {
        let began = worker.clock.now();
        endpoint.begin(began);
        Attempt {
            worker: Rc::clone(worker),
            upstream: Arc::clone(upstream),
            endpoint: Arc::clone(endpoint),
            began,
            canary,
            connection: 0,
            stream: None,
            stage: Stage::Waiting,
        }
    }

    /// Where this try goes.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Whose endpoint that is.
    pub fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// The worker it is made on.
    pub fn worker(&self) -> &Rc<Worker> {
        &self.worker
    }

    /// When it began.
    pub fn began(&self) -> Moment {
        self.began
    }

    /// Whether it has a connection yet.
    pub fn is_connected(&self) -> bool {
        self.connection != 0
    }

    /// The number of its connection; 0: it has none yet.
    pub fn connection(&self) -> u64 {
        self.connection
    }

    /// Which connection it goes over.
    pub fn on_connection(&mut self, number: u64) {
        self.connection = number;
    }

    /// Which connection it goes over together with others.
    pub fn on_stream(&mut self, connection: u64, stream: UnderWay) {
        self.connection = connection;
        self.stream = Some(stream);
    }

    /// The answer's head came. `None`: its trailers will tell the outcome.
    pub fn headed(&mut self, outcome: Option<Outcome>) {
        let now = self.worker.clock.now();
        let latency = now.since(self.began);
        self.endpoint.head_came(now);
        self.stage = Stage::Headed { latency };
        match outcome {
            Some(outcome) => self.judge(outcome, now),
            None => self.endpoint.answers(),
        }
    }

    /// Nothing is waited for, so nothing is late; the outcome is told at the end.
    pub fn awaits_nothing(&mut self) {
        let now = self.worker.clock.now();
        self.endpoint.head_came(now);
        self.stage = Stage::Headed {
            latency: now.since(self.began),
        };
    }

    /// The try failed; before the head or, with the answer half through, after it.
    pub fn failed(&mut self, outcome: Outcome) {
        let now = self.worker.clock.now();
        if let Stage::Waiting = self.stage {
            self.endpoint.gave_up(now);
            self.stage = Stage::Headed {
                latency: now.since(self.began),
            };
        }
        self.judge(outcome, now);
    }

    /// The body ended well; `outcome` as the trailers tell it, if they do.
    pub fn over(&mut self, outcome: Option<Outcome>) {
        if let Stage::Headed { .. } = self.stage {
            self.judge(outcome.unwrap_or(Outcome::Success), self.worker.clock.now());
        }
    }

    fn judge(&mut self, outcome: Outcome, now: Moment) {
        let latency = match self.stage {
            Stage::Headed { latency } => outcome.is_well().then_some(latency),
            Stage::Waiting | Stage::Judged => None,
        };
        self.stage = Stage::Judged;
        let report = Report {
            outcome,
            latency,
            connection: self.connection,
            canary: self.canary,
        };
        let was_out = self.endpoint.is_ejected();
        let ejected = {
            let rng = &mut *self.worker.rng.borrow_mut();
            self.upstream.report(&self.endpoint, &report, now, rng)
        };
        if was_out {
            self.worker.common.verdicts.notify_waiters();
        }
        if let Some(ejected) = ejected {
            self.worker
                .ejected(&self.upstream, &self.endpoint, &ejected);
            if ejected.cause == Cause::Silence && !ejected.gone {
                look::take(&self.worker, &self.upstream, &self.endpoint);
            }
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let now = self.worker.clock.now();
        match self.stage {
            Stage::Waiting => {
                self.endpoint.gave_up(now);
                let elapsed = now.since(self.began);
                self.upstream
                    .cancelled(&self.endpoint, self.canary, elapsed, now);
                if self.endpoint.is_ejected() {
                    self.worker.common.verdicts.notify_waiters();
                }
            }
            // Its answer had begun: a stream that its client ends is no doubt about the endpoint.
            Stage::Headed { .. } => self.judge(Outcome::ClientFault, now),
            Stage::Judged => {}
        }
        self.endpoint.end(now);
    }
}
