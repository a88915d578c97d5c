//! CONNECT to a name of the mesh (RFC 9110, 9.3.6): a tunnel, whatever is spoken at its end.
//!
//! Not here: extended CONNECT (`extended.rs`), and the bytes that follow (`tunnel.rs`).

use std::rc::Rc;

use http::{Request, Response, StatusCode};
use mesh_core::{
    policy::Protocol,
    route::{Target, target},
};

use super::{
    body::Inflow,
    forward::{cause_of_unreachable, own_answer},
    front::Caller,
    http1::wire::{Raw, Wire},
    reply::Cause,
    reply_body::{Exit, ReplyBody, Settle, Tunnel},
    tally::{Meters, Tally},
    tunnel,
    worker::Admission,
};

/// Opens a tunnel to an endpoint of the mesh name that CONNECT asks for.
pub async fn connect(caller: &Caller, request: &Request<Inflow>) -> Response<ReplyBody> {
    let worker = &caller.worker;
    let began = worker.clock.now();
    let refuse = |meters: &Rc<Meters>, cause| {
        let tally = Tally::new(Rc::clone(meters), worker.clock, began);
        own_answer(worker, tally, cause, false, None)
    };
    let settings = worker.settings();
    let name = match request
        .uri()
        .authority()
        .map(|authority| target(authority.as_str(), &settings.domain))
    {
        Some(Some(Target::Mesh(name))) => name,
        Some(Some(Target::External(_))) => return refuse(&worker.stray, Cause::External),
        Some(None) | None => return refuse(&worker.stray, Cause::BadRequest),
    };
    // A listener of its own leads to its upstream and nowhere else.
    if caller.upstream.as_ref().is_some_and(|own| **own != *name) {
        return refuse(&worker.stray, Cause::External);
    }
    let snapshot = worker.snapshot();
    // Where datagrams are spoken nobody takes a connection.
    let upstream = (snapshot.upstream(name)).filter(|it| it.policy.protocol != Protocol::Udp);
    let Some(upstream) = upstream else {
        return refuse(&worker.stray, Cause::UnknownService);
    };
    let desk = worker.desk(upstream);
    let Some(admission) = Admission::in_flight(upstream) else {
        return refuse(&desk.meters, Cause::Full);
    };
    let header = caller.entry.introduction(upstream);
    match tunnel::reach(worker, upstream, caller.origin.ip, header.as_deref()).await {
        Err(None) => refuse(&desk.meters, Cause::NoEndpoint),
        Err(Some(why)) => refuse(&desk.meters, cause_of_unreachable(why)),
        Ok((transport, attempt)) => {
            let mut tally = Tally::new(Rc::clone(&desk.meters), worker.clock, began);
            tally.answered(StatusCode::OK.as_u16(), "-");
            let tunnel = Tunnel {
                endpoint: Exit::Connection(Raw(Wire::new(transport, &worker.buffers))),
                settle: Settle {
                    attempt,
                    connection: None,
                    admission,
                },
                idle: upstream.policy.timeouts.idle,
            };
            Response::new(ReplyBody::tunnel(tunnel).counted(tally))
        }
    }
}
