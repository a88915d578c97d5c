//! One look at an endpoint that broke its connections: was that an illness, or has it ended?
//!
//! Not here: what follows from it (`mesh_core::outlier`), and checks that go on (`caller_checks.rs`).

use std::{io::ErrorKind, rc::Rc, sync::Arc, time::Duration};

use mesh_core::{endpoint::Endpoint, snapshot::Upstream};
use tokio::time::{sleep, timeout};
use tower::Service;

use super::{dial::Target, worker::Worker};

/// So long after it was sent out: a process that ends has closed its listener by then, and is hardly back yet.
const LOOK_AFTER: Duration = Duration::from_millis(100);

/// Connects to `endpoint` once, a little later and without asking for anything. At most one look is under way for an
/// endpoint, for it stays out until long after.
pub fn take(worker: &Rc<Worker>, upstream: &Arc<Upstream>, endpoint: &Arc<Endpoint>) {
    let (worker, upstream, endpoint) = (
        Rc::clone(worker),
        Arc::clone(upstream),
        Arc::clone(endpoint),
    );
    tokio::task::spawn_local(async move {
        sleep(LOOK_AFTER).await;
        let opening = worker.connector.borrow_mut().call(Target {
            address: endpoint.key.address,
            header: None,
            tls: None,
        });
        let looked = timeout(upstream.policy.timeouts.connect, opening).await;
        if matches!(looked, Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused) {
            let rng = &mut *worker.rng.borrow_mut();
            upstream.refused(&endpoint, worker.clock.now(), rng);
        }
    });
}
