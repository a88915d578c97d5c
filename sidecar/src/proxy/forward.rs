//! THE PATH: route, policy, pick, try, answer.
//!
//! Not here: how a decision is made (`mesh-core`) and how bytes move (`send.rs`, `body.rs`).

use std::{rc::Rc, sync::Arc, time::Duration};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header, request, uri::Scheme,
};
use http_body::Body;
use mesh_core::{
    balance::Ask,
    explain::{Account, Asked},
    moment::Moment,
    outcome::{Outcome, Unreachable},
    policy::Protocol,
    retry::{Sent, Tries, Verdict},
    route::{Target, target},
    session::Session,
    snapshot::Upstream,
};

use super::{
    body::{BodyTime, Exit, Inflow, ReplyBody, Settle, Source, Tunnel, grpc_outcome},
    control,
    front::Caller,
    headers::{self, Introduction, Origin},
    http1::head::Spelling,
    interim::Ear,
    key_in_body,
    present::Present,
    reply::{Cause, reply},
    send::{self, Answer, Failure, Terms},
    standby::Standby,
    tally::{Meters, Tally},
    worker::{Admission, Worker},
};
use crate::request_key;

/// Longest `grpc-timeout` that is believed.
const GRPC_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

const ENVOY_ATTEMPTS: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const GRPC_PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// A request as the tries need it: read once, sent as often as it takes.
pub struct Call {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub uri: Uri,
    /// What `Host` or `:authority` said.
    pub authority: HeaderValue,
    /// The headers to send, hop-by-hop ones gone.
    pub headers: HeaderMap,
    /// What stood in them as they came.
    pub there: Present,
    /// What is sent beside them of who called; `None`: they say it.
    pub introduction: Option<Rc<Introduction>>,
    /// The client's body; `None` if it is empty.
    pub source: Option<Source>,
    /// gRPC is spoken.
    pub grpc: bool,
    /// The client wishes to leave HTTP.
    pub upgrade: bool,
    /// How the client spelled its head, if that is known.
    pub spelling: Option<Spelling>,
    /// Where the client can be told something before the answer; `None` for one that would not understand it.
    pub client: Option<Ear>,
    /// Its id, sent beside its headers unless they came with one.
    pub id: HeaderValue,
    /// Its session, if it has one.
    session: Option<Session>,
    /// What it belongs to an endpoint by, hashed.
    key: Option<u64>,
    /// The client's own deadline, from `grpc-timeout` or a control header.
    pub timeout: Option<Duration>,
    /// Where the caller wants it.
    place: Option<control::Place>,
    /// The account of its decision that the caller asked for.
    account: Option<Box<Account>>,
}

impl Call {
    /// Passes an interim answer on to the client.
    pub fn inform(&self, status: StatusCode, headers: &HeaderMap, spelling: Option<&Spelling>) {
        if let Some(client) = &self.client {
            client.tell(status, headers, spelling);
        }
    }

    /// What decides where it goes.
    fn asked(&self) -> Asked<'_> {
        Asked {
            session: self.session,
            key: self.key,
            wish: self.place.as_ref().map(control::Place::wish),
        }
    }

    /// Whether the client waits for a word before it sends its body, of which nothing has come.
    pub fn awaits_word(&self) -> bool {
        // It stands only in the head of one that waits.
        self.there.has(Present::EXPECT)
            && self.headers.contains_key(header::EXPECT)
            && (self.source.as_ref()).is_some_and(|source| !source.has_begun())
    }

    /// Tells a client that waits for it to send its body.
    pub fn go_on(&self) {
        if self.there.has(Present::EXPECT) && self.headers.contains_key(header::EXPECT) {
            self.inform(StatusCode::CONTINUE, &HeaderMap::new(), None);
        }
    }
}

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

/// A request that is refused before any endpoint is asked.
struct Refused {
    cause: Cause,
    grpc: bool,
    id: Option<HeaderValue>,
}

impl Refused {
    fn answer(self, caller: &Caller, meters: &Rc<Meters>, began: Moment) -> Response<ReplyBody> {
        let worker = &caller.worker;
        let tally = Tally::new(Rc::clone(meters), worker.clock, began);
        own_answer(worker, tally, self.cause, self.grpc, self.id.as_ref())
    }
}

/// Request head → upstream and call.
fn read(
    caller: &Caller,
    request: Request<Inflow>,
    upstream: impl FnOnce(&str) -> Option<Arc<Upstream>>,
) -> Result<(Arc<Upstream>, Call), Refused> {
    let worker = &caller.worker;
    let settings = worker.settings();
    let there = Present::of(request.headers());
    let grpc = there.has(Present::CONTENT_TYPE) && is_grpc(request.headers());
    let refused = |cause| Refused {
        cause,
        grpc,
        id: None,
    };
    let (mut parts, mut body) = request.into_parts();
    // What follows the body of such a request would have to be told from the other protocol's first bytes.
    let upgrade = parts.version == Version::HTTP_11
        && there.has(Present::UPGRADE)
        && body.is_end_stream()
        && headers::is_upgrade(&parts.headers);
    let own = caller
        .upstream
        .as_deref()
        .map(|name| (name, &*settings.domain));
    let authority =
        authority(&parts, &caller.origin, own).ok_or_else(|| refused(Cause::BadRequest))?;
    let text = authority.to_str().map_err(|_| refused(Cause::BadRequest))?;
    let name = match (&caller.upstream, target(text, &settings.domain)) {
        (_, None) => return Err(refused(Cause::BadRequest)),
        (Some(name), Some(_)) => name,
        (None, Some(Target::Mesh(name))) => name,
        (None, Some(Target::External(_))) => return Err(refused(Cause::External)),
    };
    let found = upstream(name)
        .filter(|upstream| upstream.policy.protocol == Protocol::Http)
        .ok_or_else(|| refused(Cause::UnknownService))?;
    if header_bytes(&parts.headers) > found.policy.limits.header_bytes {
        return Err(refused(Cause::HeadersTooLarge));
    }
    let body_bytes = found.policy.limits.body_bytes;
    if body_bytes.is_some_and(|max| body.size_hint().lower() > max) {
        return Err(refused(Cause::BodyTooLarge));
    }

    let are_on = settings.control_headers;
    let wishes = control::take(are_on, caller.origin.is_local, &mut parts.headers)
        .map_err(|control::Disobeyed| refused(Cause::BadRequest))?;
    let client = || headers::client(&parts.headers, &caller.origin, &settings.trusted_proxies);
    let sticky = found.policy.sticky.as_ref();
    let session = sticky.and_then(|sticky| request_key::session(sticky, &parts.headers, client()));
    if sticky.is_some() {
        caller.entry.stays(session);
    }
    let hash = found.policy.hash.as_ref();
    let key = hash.and_then(|hash| {
        let source = request_key::Source {
            client: client(),
            service: settings.service_of(caller.origin.is_local),
        };
        request_key::of_request(&hash.key, &parts.headers, &parts.uri, source)
    });
    let spelling = body.take_spelling();
    let connection = caller
        .client
        .clone()
        .filter(|_| parts.version != Version::HTTP_10);
    let source = Source::new(body, body_bytes);
    let timeout = if grpc {
        parts
            .headers
            .get(headers::GRPC_TIMEOUT)
            .and_then(grpc_timeout)
    } else {
        None
    };
    let timeout = [timeout, wishes.timeout].into_iter().flatten().min();
    let account = wishes.explain.then(|| {
        let wish = wishes.place.as_ref().map(control::Place::wish);
        let asked = Asked { session, key, wish };
        Box::new(Account::new(&found, &asked, worker.clock.now()))
    });
    let waits =
        connection.is_some() && source.is_some() && headers::expects_continue(&parts.headers);
    headers::strip_hop_by_hop(&mut parts.headers, there, upgrade);
    // What `Connection` named is gone.
    let there = if there.has(Present::CONNECTION) {
        Present::of(&parts.headers)
    } else {
        there
    };
    headers::strip_answered(&mut parts.headers, there, source.is_some(), waits);
    headers::join_cookies(&mut parts.headers, there);
    let via = settings.via.of(parts.version);
    let fields = &mut parts.headers;
    let introduction = headers::introduce(fields, there, &caller.origin, &authority, via);
    let id = headers::request_id(&mut parts.headers, there, &mut *worker.rng.borrow_mut());
    if there.has(Present::HOST) {
        parts.headers.remove(header::HOST);
    }
    let call = Call {
        uri: origin_form(&parts.uri),
        method: parts.method,
        headers: parts.headers,
        there,
        introduction,
        authority,
        source,
        grpc,
        upgrade,
        spelling,
        client: connection,
        id,
        session,
        key,
        timeout,
        place: wishes.place,
        account,
    };
    Ok((found, call))
}

/// The one authority of a request; `None` when there is none, more than one, or two that disagree. `own`: the upstream
/// whose own listener it came by, and the mesh's domain: there HTTP/1.0 need not say (RFC 9112, 3.2), and means it.
fn authority(
    parts: &request::Parts,
    origin: &Origin,
    own: Option<(&str, &str)>,
) -> Option<HeaderValue> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return None;
    }
    match (parts.uri.authority(), host) {
        (Some(absolute), Some(host)) => {
            let (host_text, absolute) = (host.to_str().ok()?, absolute.as_str());
            if host_text.eq_ignore_ascii_case(absolute) {
                return Some(host.clone());
            }
            // The target's own is the one that counts (RFC 9112, 3.2.2).
            let port = default_port(parts.uri.scheme()?)?;
            let (host, target) = (without(port, host_text), without(port, absolute));
            let same = host.eq_ignore_ascii_case(target);
            same.then(|| origin.host(absolute)).flatten()
        }
        (Some(absolute), None) => origin.host(absolute.as_str()),
        (None, Some(host)) => Some(host.clone()),
        (None, None) => {
            let (name, domain) = own.filter(|_| parts.version == Version::HTTP_10)?;
            HeaderValue::try_from(format!("{name}.{domain}")).ok()
        }
    }
}

/// The port that a name without one means, as it stands behind a name (RFC 9110, 4.2.1 and 4.2.2).
fn default_port(scheme: &Scheme) -> Option<&'static str> {
    [(Scheme::HTTP, ":80"), (Scheme::HTTPS, ":443")]
        .into_iter()
        .find_map(|(known, port)| (known == *scheme).then_some(port))
}

/// A name without this port; an empty one says as little (RFC 3986, 3.2.3).
fn without<'a>(port: &str, authority: &'a str) -> &'a str {
    let bare = authority.strip_suffix(port);
    bare.or(authority.strip_suffix(':')).unwrap_or(authority)
}

/// Bytes of a header block as HTTP/1 would write it.
fn header_bytes(headers: &HeaderMap) -> usize {
    let around = ": \r\n".len();
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + around)
        .sum()
}

fn origin_form(uri: &Uri) -> Uri {
    match uri.path_and_query() {
        // An absolute form may go from its host straight to its query (RFC 9112, 3.2.1).
        Some(path) if path.as_str().starts_with('?') => {
            Uri::try_from(format!("/{}", path.as_str())).unwrap_or_else(|_| Uri::from_static("/"))
        }
        Some(path) => Uri::from(path.clone()),
        None => Uri::from_static("/"),
    }
}

/// Whether a head says that gRPC is spoken.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Reads `grpc-timeout` (at most eight digits and a unit); `None` when it is malformed.
pub fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let (digits, unit) = value
        .to_str()
        .ok()?
        .split_at_checked(value.len().checked_sub(1)?)?;
    // A number is read with a sign before it, too.
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    };
    Some(timeout.min(GRPC_TIMEOUT_MAX))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_and_bad_ones_passed_over() {
        let read = |text: &'static str| grpc_timeout(&HeaderValue::from_static(text));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        assert_eq!(read("3S"), Some(Duration::from_secs(3)));
        assert_eq!(read("99999999H"), Some(GRPC_TIMEOUT_MAX));
        for bad in ["", "S", "123456789m", "1x", "-1S", "+1S", "1 S"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_host_that_disagrees_with_the_absolute_form_is_no_authority() {
        let parts = |uri: &str, hosts: &[&'static str]| {
            let mut builder = Request::builder().uri(uri);
            for host in hosts {
                builder = builder.header("host", *host);
            }
            builder.body(()).expect("valid").into_parts().0
        };
        let origin = Origin::new(None, false, false, false);
        let authority = |uri, hosts: &[&'static str]| authority(&parts(uri, hosts), &origin, None);
        assert_eq!(
            authority("http://a.mesh/", &["a.mesh"]).expect("same"),
            "a.mesh"
        );
        for (uri, host) in [
            ("http://a.mesh:80/", "a.mesh"),
            ("http://a.mesh/", "A.mesh:80"),
            ("http://a.mesh:/", "a.mesh"),
            ("https://a.mesh:443/", "a.mesh"),
        ] {
            let target = Uri::from_static(uri);
            let told = authority(uri, &[host]).expect("the same");
            assert_eq!(
                Some(told.to_str().expect("text")),
                target.authority().map(|at| at.as_str())
            );
        }
        for (uri, host) in [
            ("http://a.mesh/", "b.mesh"),
            ("http://a.mesh:8080/", "a.mesh"),
            ("http://a.mesh:80/", "a.mesh:8080"),
            ("http://a.mesh:443/", "a.mesh"),
            ("https://a.mesh:80/", "a.mesh"),
        ] {
            assert_eq!(authority(uri, &[host]), None, "{uri} {host}");
        }
        assert_eq!(authority("/", &["a.mesh", "a.mesh"]), None);
        assert_eq!(authority("/", &[]), None);
        // An upstream's own listener knows what HTTP/1.0 means that does not say.
        let own = Some(("shop", "mesh"));
        let mut silent = parts("/", &[]);
        assert_eq!(super::authority(&silent, &origin, own), None);
        silent.version = Version::HTTP_10;
        let told = super::authority(&silent, &origin, own);
        assert_eq!(told.expect("its own"), "shop.mesh");
        assert_eq!(super::authority(&silent, &origin, None), None);
        assert_eq!(
            origin_form(&Uri::from_static("http://a.mesh/x?y=1")),
            "/x?y=1"
        );
        assert_eq!(origin_form(&Uri::from_static("http://a.mesh")), "/");
        assert_eq!(origin_form(&Uri::from_static("http://a.mesh?y=1")), "/?y=1");
    }
}
