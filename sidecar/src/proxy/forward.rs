//! THE PATH: route, policy, pick, try, answer.
//!
//! Not here: how a head is read (`call.rs`), how a decision is made (`mesh-core`) and how bytes move (`send.rs`,
//! `reply_body.rs`).

use std::{rc::Rc, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use mesh_core::{
    balance::Ask,
    explain::Account,
    moment::Moment,
    outcome::{Outcome, Unreachable},
    retry::{Sent, Tries, Verdict},
    snapshot::Upstream,
};

use super::{
    body::Inflow,
    call::{Call, Refused, is_grpc, read},
    control,
    front::Caller,
    headers, key_in_body,
    present::Present,
    reply::{Cause, reply},
    reply_body::{BodyTime, Exit, ReplyBody, Settle, Tunnel, grpc_outcome},
    request_body::Source,
    send::{self, Answer, Failure, Terms},
    standby::Standby,
    tally::{Meters, Tally},
    worker::{Admission, Worker},
};
use crate::request_key;

const ENVOY_ATTEMPTS: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const GRPC_PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// Carries one request to an endpoint and its answer back.
pub async fn forward(caller: &Caller, request: Request<Inflow>) -> Response<ReplyBody> {
    let worker = &caller.worker;
    let began = worker.clock.now();
    let snapshot = worker.snapshot();
    let (upstream, mut call) = match read(caller, request, |name| {
        snapshot.upstream(name).map(Arc::clone)
    }) {
        Ok(read) => read,
        Err(refused) => return refused.answer(caller, &worker.stray, began),
    };
    let desk = worker.desk(&upstream);
    let tally = Tally::new(Rc::clone(&desk.meters), worker.clock, began);
    let refuse = |tally, cause, call: &mut Call| refuse_call(worker, tally, cause, call);

    let Some(admission) = Admission::in_flight(&upstream) else {
        return refuse(tally, Cause::Full, &mut call);
    };
    let mut tries = start(&upstream, &call, began);
    if upstream.policy.looks_into_bodies() {
        // Apart, so that calls without a body need no room for it.
        let key = Box::pin(key_in_body::read(
            worker,
            &upstream,
            &mut call,
            tries.deadline(),
        ));
        match key.await {
            Ok(key) => call.key = key,
            Err(key_in_body::TooSlow) => return refuse(tally, Cause::BodyTooSlow, &mut call),
        }
        call.account = call.account.take().map(|_| {
            let account = Account::new(&upstream, &call.asked(), worker.clock.now());
            Box::new(account)
        });
    }
    let mut last: Option<Result<Answer, Failure>> = None;
    let mut fresh = false;
    let mut standby = Standby::default();
    loop {
        let now = worker.clock.now();
        let ask = Ask {
            tried: tries.tried(),
            beyond_tier: tries.beyond_tier(),
            idempotent: call.method.is_idempotent(),
            session: call.session,
            key: call.key,
            wish: call.place.as_ref().map(control::Place::wish),
        };
        let Some(pick) = desk.pick(worker, &upstream, &ask, now) else {
            if !matches!(last, Some(Ok(_)))
                && standby
                    .a_verdict(worker, &upstream, tries.tried(), tries.deadline())
                    .await
            {
                continue;
            }
            // Nobody is left to ask: the last answer, even a bad one, tells the client more than ours would.
            return match last {
                Some(Ok(answer)) => {
                    pass_on(caller, &upstream, call, answer, admission, tally, &tries)
                }
                Some(Err(failure)) => refuse(tally, cause_of(&failure, &call), &mut call),
                None if upstream.is_full() => refuse(tally, Cause::Full, &mut call),
                None => refuse(tally, Cause::NoEndpoint, &mut call),
            };
        };
        standby.leave();
        drop(last.take());
        tries.picked(pick.endpoint.id, pick.tier);
        if let Some(account) = &mut call.account {
            account.picked(&upstream, &pick);
        }
        if let (Some(patience), None) = (pick.patience, &call.source) {
            tries.as_canary(patience);
        }
        let terms = Terms {
            deadline: tries.attempt_deadline(now),
            fresh,
            client: &caller.entry,
            canary: pick.canary,
            looks_ahead: call.grpc && tries.repeats_faults(&upstream.policy),
        };
        let tried = send::once(worker, &upstream, &pick.endpoint, &call, terms).await;

        let (outcome, sent) = match &tried {
            Ok(answer) => (answer.outcome, answer.sent),
            Err(failure) => (Outcome::Unreachable(failure.why), failure.sent),
        };
        let ours = matches!(&tried, Err(failure) if failure.full || failure.client_failed);
        if !ours {
            desk.meters.attempt(outcome);
        }
        let verdict = if outcome.is_well() || ours {
            Verdict::Answer
        } else {
            let rng = &mut *worker.rng.borrow_mut();
            let budget = &upstream.shared.budget;
            tries.verdict(
                outcome,
                sent,
                budget,
                &upstream.policy,
                worker.clock.now(),
                rng,
            )
        };
        match (verdict, tried) {
            (Verdict::Answer, Ok(answer)) => {
                return pass_on(caller, &upstream, call, answer, admission, tally, &tries);
            }
            (Verdict::Answer, Err(failure)) => {
                return refuse(tally, cause_of(&failure, &call), &mut call);
            }
            (Verdict::Again { after }, tried) => {
                desk.meters.retry();
                fresh = matches!(sent, Sent::Stale { .. });
                if let Some(source) = &call.source {
                    source.supersede();
                }
                last = Some(tried);
                if !after.is_zero() {
                    tokio::time::sleep(after).await;
                }
            }
        }
    }
}

fn start(upstream: &Upstream, call: &Call, began: Moment) -> Tries {
    upstream.shared.budget.request(began);
    let count = |name: HeaderName| -> u32 {
        let value = call
            .headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok());
        value.and_then(|count| count.parse().ok()).unwrap_or(0)
    };
    // Envoy counts the first attempt too, gRPC only those before this one.
    let already_retry = call.there.has(Present::PREVIOUS_ATTEMPTS)
        && (count(ENVOY_ATTEMPTS) > 1 || count(GRPC_PREVIOUS_ATTEMPTS) > 0);
    let mut tries = Tries::start(
        &upstream.policy,
        call.method.is_idempotent(),
        already_retry,
        began,
    );
    if let Some(timeout) = call.timeout {
        tries.hasten(began + timeout);
    }
    tries
}

impl Refused {
    fn answer(self, caller: &Caller, meters: &Rc<Meters>, began: Moment) -> Response<ReplyBody> {
        let worker = &caller.worker;
        let tally = Tally::new(Rc::clone(meters), worker.clock, began);
        own_answer(worker, tally, self.cause, self.grpc, self.id.as_ref())
    }
}

/// Hands an endpoint's answer to the client.
fn pass_on(
    caller: &Caller,
    upstream: &Arc<Upstream>,
    mut call: Call,
    answer: Answer,
    admission: Admission,
    mut tally: Tally,
    tries: &Tries,
) -> Response<ReplyBody> {
    let worker = &caller.worker;
    let Answer {
        mut head,
        there,
        mut body,
        attempt,
        connection,
        ..
    } = answer;
    let status = head.status;
    let switches = status == StatusCode::SWITCHING_PROTOCOLS && call.upgrade;
    if status == StatusCode::SWITCHING_PROTOCOLS && !switches {
        // Nobody asked for it, and nothing but HTTP can follow here.
        return own_answer(
            worker,
            tally,
            Cause::UpstreamGarbled,
            call.grpc,
            Some(&call.id),
        );
    }
    headers::strip_hop_by_hop(&mut head.headers, there, switches);
    headers::add_via(&mut head.headers, head.version, &worker.settings().via);
    if let Some(cookie) = request_key::new_cookie(upstream, attempt.endpoint().id, call.session) {
        head.headers.append(header::SET_COOKIE, cookie);
    }
    if let Some(account) = &mut call.account {
        control::tell(account, &mut head.headers);
    }
    tally.answered(status.as_u16(), "-");
    let settle = Settle {
        attempt,
        connection,
        admission,
    };
    let spelling = body.take_spelling();
    let idle = upstream.policy.timeouts.idle;
    let exit = match body {
        Inflow::Http1(received) if switches => Ok(Exit::Connection(received.into_raw())),
        Inflow::Left(stream) if switches => Ok(Exit::Stream(stream)),
        body => Err(body),
    };
    let reply = match exit {
        Ok(endpoint) => {
            head.headers
                .insert(header::CONNECTION, headers::UPGRADE_VALUE);
            ReplyBody::tunnel(Tunnel {
                endpoint,
                settle,
                idle,
            })
        }
        Err(body) => {
            let streams = call.grpc || is_event_stream(&head.headers);
            let deadline = (!streams).then(|| tries.deadline());
            ReplyBody::streaming(body, settle, BodyTime { idle, deadline })
        }
    };
    let reply = reply.spelled(spelling);
    worker.buffers.take_map(call.headers);
    let mut response = Response::new(reply.counted(tally));
    *response.status_mut() = status;
    *response.headers_mut() = head.headers;
    response
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// The answer to a call that no endpoint answers.
fn refuse_call(
    worker: &Worker,
    tally: Tally,
    cause: Cause,
    call: &mut Call,
) -> Response<ReplyBody> {
    let mut answer = own_answer(worker, tally, cause, call.grpc, Some(&call.id));
    if let Some(account) = &mut call.account {
        control::tell(account, answer.headers_mut());
    }
    answer
}

/// An answer of the sidecar's own, and its account.
pub fn own_answer(
    worker: &Worker,
    mut tally: Tally,
    cause: Cause,
    grpc: bool,
    id: Option<&HeaderValue>,
) -> Response<ReplyBody> {
    let answer = reply(cause, grpc, &worker.settings().node, id);
    tally.answered(answer.status().as_u16(), cause.line().flag);
    tracing::debug!(
        flag = cause.line().flag,
        ?id,
        "answered in the upstream's place"
    );
    answer.map(|body| body.counted(tally))
}

fn cause_of(failure: &Failure, call: &Call) -> Cause {
    let is_too_large = || call.source.as_ref().is_some_and(Source::is_too_large);
    match failure.why {
        _ if failure.client_failed && is_too_large() => Cause::BodyTooLarge,
        _ if failure.client_failed => Cause::BadRequest,
        _ if failure.full => Cause::Full,
        why => cause_of_unreachable(why),
    }
}

/// What a client is told of an endpoint that could not be reached.
pub fn cause_of_unreachable(why: Unreachable) -> Cause {
    match why {
        Unreachable::Refused => Cause::ConnectRefused,
        Unreachable::ConnectTimedOut => Cause::ConnectTimedOut,
        Unreachable::ConnectFailed => Cause::ConnectFailed,
        Unreachable::AnswerTimedOut => Cause::TimedOut,
        Unreachable::Broken | Unreachable::NotProcessed => Cause::UpstreamBroke,
        Unreachable::Garbled => Cause::UpstreamGarbled,
    }
}

/// What an answer's head, in which so much is `there`, says of how the attempt went; `None`: its trailers will tell.
pub fn judge(head: &http::response::Parts, there: Present, ends_here: bool) -> Option<Outcome> {
    let is_grpc = there.has(Present::CONTENT_TYPE) && is_grpc(&head.headers);
    if is_grpc && head.status == StatusCode::OK {
        return match grpc_outcome(&head.headers) {
            None if ends_here => Some(Outcome::Unreachable(Unreachable::Garbled)),
            told => told,
        };
    }
    let told = there
        .has(Present::RETRY_AFTER)
        .then(|| head.headers.get(header::RETRY_AFTER));
    let retry_after = told.flatten().map(|value| {
        // A date instead of seconds means "not now" all the same.
        let seconds = value
            .to_str()
            .ok()
            .and_then(|text| text.trim().parse().ok());
        Duration::from_secs(seconds.unwrap_or(1))
    });
    Some(Outcome::of_status(head.status.as_u16(), retry_after))
}
