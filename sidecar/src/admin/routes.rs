//! The paths of the admin API and their answers.
//!
//! Not here: who may ask (`guard.rs`), and the rows (`listing.rs`).

use std::{
    net::IpAddr,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header};
use http_body_util::Full;
use mesh_core::{explain, policy::HashKey};
use serde::Serialize;
use serde_json::json;
use tokio::sync::oneshot;

use super::{
    Answer, Command, Instance, Refusal, State, Target, gauges,
    guard::Denied,
    keys::{self, Verb},
    listing, registry,
};
use crate::{
    proxy::{connections::row::Query, control},
    request_key,
};

/// Longest time a command may take; draining for the whole host is answered as soon as it has begun.
const COMMAND_TIME: Duration = Duration::from_secs(30);

/// A whole answer.
pub type Reply = Response<Full<Bytes>>;

/// A request, its body read.
pub struct Asked<'a> {
    pub method: &'a Method,
    pub path: &'a str,
    pub query: &'a str,
    pub body: &'a [u8],
}

/// What a path leads to.
enum Route<'a> {
    Live,
    Ready,
    Metrics,
    Status,
    Members,
    Services,
    Endpoints(&'a str),
    Connections,
    Config,
    Explain(&'a str),
    Drain,
    Undrain,
    Leave,
    Reload,
    Keys,
    Key(Verb),
    /// One instance that an application registers itself.
    Instance(Instance),
    /// Its own word on how it is.
    Health(Instance),
}

impl<'a> Route<'a> {
    fn of(path: &'a str) -> Option<Route<'a>> {
        Some(match path {
            "/live" => Route::Live,
            "/ready" => Route::Ready,
            "/metrics" => Route::Metrics,
            "/v1/status" => Route::Status,
            "/v1/members" => Route::Members,
            "/v1/services" => Route::Services,
            "/v1/connections" => Route::Connections,
            "/v1/config" => Route::Config,
            "/v1/drain" => Route::Drain,
            "/v1/undrain" => Route::Undrain,
            "/v1/leave" => Route::Leave,
            "/v1/reload" => Route::Reload,
            "/v1/keys" => Route::Keys,
            "/v1/keys/install" => Route::Key(Verb::Install),
            "/v1/keys/use" => Route::Key(Verb::Use),
            "/v1/keys/remove" => Route::Key(Verb::Remove),
            _ if path.starts_with("/v1/services/") => {
                match registry::instance_of(&path["/v1/services/".len()..])? {
                    (instance, false) => Route::Instance(instance),
                    (instance, true) => Route::Health(instance),
                }
            }
            _ => match (
                path.strip_prefix("/v1/endpoints/"),
                path.strip_prefix("/v1/explain/"),
            ) {
                (Some(service), _) if !service.is_empty() => Route::Endpoints(service),
                (_, Some(upstream)) if !upstream.is_empty() => Route::Explain(upstream),
                _ => return None,
            },
        })
    }

    /// The methods it is asked by; whatever is asked by `GET` changes nothing.
    fn methods(&self) -> &'static str {
        match self {
            Route::Drain | Route::Undrain | Route::Leave | Route::Reload | Route::Key(_) => "POST",
            Route::Instance(_) => "PUT, DELETE",
            Route::Health(_) => "PUT",
            _ => "GET",
        }
    }
}

/// Whether the body of a request to this path holds a key.
pub fn brings_key(path: &str) -> bool {
    matches!(Route::of(path), Some(Route::Key(Verb::Install)))
}

/// Answers one request that was let in.
pub async fn answer(state: &State, asked: &Asked<'_>) -> Reply {
    let Some(route) = Route::of(asked.path) else {
        return fault(
            StatusCode::NOT_FOUND,
            &format!("there is no {}", asked.path),
            "see /live /ready /metrics /v1/status /v1/members /v1/services /v1/endpoints/{service} \
             /v1/connections /v1/explain/{upstream} /v1/config /v1/keys; POST /v1/drain /v1/undrain /v1/leave /v1/reload \
             /v1/keys/install /v1/keys/use /v1/keys/remove; \
             PUT and DELETE /v1/services/{service}/{instance}; PUT /v1/services/{service}/{instance}/health",
        );
    };
    let wanted = route.methods();
    let method = match asked.method.as_str() {
        "HEAD" => "GET",
        method => method,
    };
    if !wanted.split(", ").any(|one| one == method) {
        let message = format!("{} is asked by {wanted}", asked.path);
        let mut reply = fault(StatusCode::METHOD_NOT_ALLOWED, &message, "use that method");
        reply
            .headers_mut()
            .insert(header::ALLOW, HeaderValue::from_static(wanted));
        return reply;
    }
    let now = state.clock.now();
    match route {
        Route::Live => text(StatusCode::OK, "live\n".to_owned()),
        Route::Ready => ready(state),
        Route::Metrics => metrics(state),
        Route::Status => json(StatusCode::OK, &listing::status(state)),
        Route::Members => json(
            StatusCode::OK,
            &listing::members(&state.snapshot.load().mesh, now, state.clock.unix_ms()),
        ),
        Route::Services => json(
            StatusCode::OK,
            &listing::services(&state.snapshot.load().mesh),
        ),
        Route::Endpoints(service) => endpoints(state, service),
        Route::Connections => connections(state, asked.query).await,
        Route::Config => json(StatusCode::OK, &state.config.borrow().to_json()),
        Route::Explain(upstream) => explanation(state, upstream, asked.query),
        Route::Drain => order_for(state, asked.body, Command::Drain).await,
        Route::Undrain => order_for(state, asked.body, Command::Undrain).await,
        Route::Leave => order(state, Command::Leave).await,
        Route::Reload => order(state, Command::Reload).await,
        Route::Keys => keys::status(state).await,
        Route::Key(verb) => keys::order(state, verb, asked.body).await,
        Route::Instance(instance) => {
            registry::instance(state, asked.method, instance, asked.body).await
        }
        Route::Health(instance) => registry::health(state, instance, asked.body).await,
    }
}

fn ready(state: &State) -> Reply {
    if state.ready.load(Ordering::Relaxed) {
        return text(StatusCode::OK, "ready\n".to_owned());
    }
    let why = if state.snapshot.load().mesh.joined {
        "not ready: starting, or on the way out\n"
    } else {
        "not ready: not joined yet\n"
    };
    text(StatusCode::SERVICE_UNAVAILABLE, why.to_owned())
}

fn metrics(state: &State) -> Reply {
    let ready = state.ready.load(Ordering::Relaxed);
    let gauges = gauges::render(&state.snapshot.load(), ready, state.clock.now());
    let mut reply = text(StatusCode::OK, state.metrics.render() + &gauges);
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    reply.headers_mut().insert(header::CONTENT_TYPE, kind);
    reply
}

fn endpoints(state: &State, service: &str) -> Reply {
    let snapshot = state.snapshot.load();
    match explain::of_service(&snapshot, service, state.clock.now()) {
        Some(rows) => json(StatusCode::OK, &rows),
        None => nobody_called(state, service),
    }
}

fn nobody_called(state: &State, name: &str) -> Reply {
    let snapshot = state.snapshot.load();
    let known: Vec<&str> = snapshot
        .upstreams()
        .map(|upstream| &*upstream.policy.name)
        .collect();
    let next = if known.is_empty() {
        "no service is known yet: see /v1/members and /v1/services".to_owned()
    } else {
        format!("known here: {}", known.join(", "))
    };
    fault(
        StatusCode::NOT_FOUND,
        &format!("no upstream or service is called {name:?}"),
        &next,
    )
}

async fn connections(state: &State, query: &str) -> Reply {
    let query = match connections_asked(query) {
        Ok(query) => query,
        Err(what) => {
            return fault(
                StatusCode::BAD_REQUEST,
                &format!("{what} cannot be asked for"),
                "use upstream=, endpoint=, client=, zone=, side=client|endpoint, protocol=, state=, after=NUMBER and \
                 limit=1 to 1000",
            );
        }
    };
    let (sender, receiver) = oneshot::channel();
    let command = Command::Connections(Box::new(query), sender);
    match send(state, command, receiver).await {
        Ok(rows) => json(StatusCode::OK, &rows),
        Err(reply) => reply,
    }
}

/// Reads which connections are asked for; `Err` is the pair that makes no sense.
fn connections_asked(query: &str) -> Result<Query, String> {
    let mut asked = Query::default();
    for (key, value) in pairs(query) {
        let field = match key.as_str() {
            "upstream" => &mut asked.upstream,
            "endpoint" => &mut asked.endpoint,
            "client" => &mut asked.client,
            "zone" => &mut asked.zone,
            "side" => &mut asked.side,
            "protocol" => &mut asked.protocol,
            "state" => &mut asked.state,
            "after" | "limit" => {
                let number = value.parse().ok();
                match (key.as_str(), number) {
                    ("after", Some(number)) => asked.after = number,
                    ("limit", Some(number @ 1..=1000)) => asked.limit = number as usize,
                    _ => return Err(format!("{key}={value}")),
                }
                continue;
            }
            _ => return Err(format!("{key}={value}")),
        };
        *field = Some(value);
    }
    Ok(asked)
}

fn explanation(state: &State, name: &str, query: &str) -> Reply {
    let mut head = match Head::of(query) {
        Ok(head) => head,
        Err(refused) => return *refused,
    };
    let snapshot = state.snapshot.load();
    let Some(upstream) = snapshot.upstream(name) else {
        return nobody_called(state, name);
    };
    let policy = &upstream.policy;
    let loaded = Arc::clone(&state.config.borrow());
    let config = &loaded.config;
    let mut upstreams = config.upstreams.iter();
    let declared = upstreams.any(|u| u.policy.name == policy.name);
    let repeatable = head.method.is_idempotent() || policy.retry.on.non_idempotent;
    let request = json!({
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "route": if declared { "its own table" } else { "its service's name; no table, so every rule is the default" },
        "timeout_ms": u64::try_from(policy.timeouts.request.as_millis()).unwrap_or(u64::MAX),
        "retries": if repeatable { policy.retry.retries } else { 0 },
    });
    let now = state.clock.now();
    let are_on = config.outbound.control_headers;
    let Ok(wishes) = control::take(are_on, control::is_local(head.client), &mut head.headers)
    else {
        return fault(
            StatusCode::BAD_REQUEST,
            "an x-starling-* header cannot be obeyed",
            "see `control_headers` in the documentation of the configuration",
        );
    };
    let key = policy.hash.as_ref().and_then(|hash| match &hash.key {
        HashKey::Json(pointer) => request_key::of_body(pointer, head.body.as_bytes(), true),
        key => {
            let service = config.only_service();
            let source = request_key::Source {
                client: head.client,
                service: service.filter(|_| control::is_local(head.client)),
            };
            request_key::of_request(key, &head.headers, &head.uri, source)
        }
    });
    let sticky = policy.sticky.as_ref();
    let session =
        sticky.and_then(|sticky| request_key::session(sticky, &head.headers, head.client));
    let asked = explain::Asked {
        session,
        key,
        wish: wishes.place.as_ref().map(control::Place::wish),
    };
    let way = explain::request(upstream, &asked, now);
    let view = explain::upstream(upstream, now);
    json(StatusCode::OK, &Explanation { request, way, view })
}

/// The head of a request that is asked about.
struct Head {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    client: Option<IpAddr>,
    body: String,
}

impl Head {
    fn of(query: &str) -> Result<Head, Box<Reply>> {
        let mut head = Head {
            method: Method::GET,
            uri: Uri::from_static("/"),
            headers: HeaderMap::new(),
            client: None,
            body: String::new(),
        };
        for (key, value) in pairs(query) {
            if head.takes(&key, &value).is_none() {
                return Err(Box::new(fault(
                    StatusCode::BAD_REQUEST,
                    &format!("{key}={value} cannot be explained"),
                    "use method=, path=, header=name:value (as often as needed), client=address and body=",
                )));
            }
        }
        Ok(head)
    }

    /// `None` if there is no such key, or the value is none of its kind.
    fn takes(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "method" => self.method = Method::from_bytes(value.as_bytes()).ok()?,
            "path" => self.uri = value.parse().ok()?,
            "client" => self.client = Some(value.parse().ok()?),
            "body" => self.body = value.to_owned(),
            "header" => {
                let (name, value) = value.split_once(':')?;
                let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
                let value = HeaderValue::from_str(value.trim()).ok()?;
                self.headers.try_append(name, value).ok()?;
            }
            _ => return None,
        }
        Some(())
    }
}

#[derive(Serialize)]
struct Explanation {
    request: serde_json::Value,
    #[serde(flatten)]
    way: explain::RequestView,
    #[serde(flatten)]
    view: explain::UpstreamView,
}

async fn order_for(
    state: &State,
    body: &[u8],
    command: fn(Target, oneshot::Sender<Answer>) -> Command,
) -> Reply {
    let target = if body.trim_ascii().is_empty() {
        Ok(Target::default())
    } else {
        serde_json::from_slice::<Target>(body)
    };
    match target {
        Err(error) => fault(
            StatusCode::BAD_REQUEST,
            &format!("the body cannot be read: {error}"),
            "send nothing, or {\"service\": \"checkout\", \"instance\": \"checkout-8080\"}",
        ),
        Ok(Target {
            service: None,
            instance: Some(_),
        }) => fault(
            StatusCode::BAD_REQUEST,
            "an instance without its service may be several",
            "send the service too",
        ),
        Ok(target) => order(state, |reply| command(target, reply)).await,
    }
}

/// Sends a command to the sidecar and tells what came of it.
pub async fn order(
    state: &State,
    command: impl FnOnce(oneshot::Sender<Answer>) -> Command,
) -> Reply {
    let (sender, receiver) = oneshot::channel();
    match send(state, command(sender), receiver).await {
        Ok(done) => json(StatusCode::OK, &json!({ "done": done })),
        Err(reply) => reply,
    }
}

/// Gives the sidecar a command and waits for what it came to; else the reply that says why there is nothing.
pub async fn send<T>(
    state: &State,
    command: Command,
    answer: oneshot::Receiver<Result<T, Refusal>>,
) -> Result<T, Reply> {
    if state.commands.try_send(command).is_err() {
        return Err(fault(
            StatusCode::SERVICE_UNAVAILABLE,
            "the sidecar is busy with other commands, or on its way out",
            "try again in a moment",
        ));
    }
    match tokio::time::timeout(COMMAND_TIME, answer).await {
        Ok(Ok(Ok(done))) => Ok(done),
        Ok(Ok(Err(refusal))) => {
            let status = if refusal.unknown {
                StatusCode::NOT_FOUND
            } else {
                StatusCode::CONFLICT
            };
            Err(fault(status, &refusal.message, &refusal.next))
        }
        Ok(Err(_)) => Err(fault(
            StatusCode::SERVICE_UNAVAILABLE,
            "the sidecar ended before it could answer",
            "see its log",
        )),
        Err(_) => Err(fault(
            StatusCode::GATEWAY_TIMEOUT,
            &format!("no answer within {} s", COMMAND_TIME.as_secs()),
            "see the sidecar's log; the command may still be carried out",
        )),
    }
}

/// Says why a request is not let in, and how it could be.
pub fn denied(denied: Denied, socket: Option<&Path>, has_token: bool) -> Reply {
    let by_socket =
        socket.map(|path| format!("use the admin socket: --admin unix:{}", path.display()));
    let (status, message, next) = match denied {
        Denied::Host => (
            StatusCode::MISDIRECTED_REQUEST,
            "this Host is no address and not localhost, so it may be a name bent to this host",
            "ask by address, or with the token",
        ),
        Denied::Origin => (
            StatusCode::FORBIDDEN,
            "pages of another origin may not ask here",
            "open the page from this address",
        ),
        Denied::Clear => (
            StatusCode::FORBIDDEN,
            "a key is taken on this host alone: over TCP it crosses the network in clear",
            "take another key, for this one may have been read, and use the host's socket: `ssh HOST starling key install < FILE`",
        ),
        Denied::Token if has_token => (
            StatusCode::UNAUTHORIZED,
            "this needs the token",
            "send `Authorization: Bearer …` (`STARLING_TOKEN` for the command line)",
        ),
        Denied::Token | Denied::Write if by_socket.is_some() => (
            StatusCode::FORBIDDEN,
            "this is not done over TCP without a token",
            by_socket.as_deref().unwrap_or_default(),
        ),
        Denied::Token | Denied::Write => (
            StatusCode::FORBIDDEN,
            "nobody may do this yet: the configuration names neither a socket nor a token",
            "add [admin] socket = \"/run/starling/admin.sock\" or token = \"file:/etc/starling/admin.token\"",
        ),
    };
    let mut reply = fault(status, message, next);
    if status == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Bearer realm=\"starling\"");
        reply
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, challenge);
    }
    reply
}

/// An answer that tells what is wrong and the next step.
pub fn fault(status: StatusCode, message: &str, next: &str) -> Reply {
    json(status, &json!({ "error": message, "next": next }))
}

/// An answer in JSON.
pub fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    match serde_json::to_string(value) {
        Ok(mut body) => {
            body.push('\n');
            let mut reply = text(status, body);
            let kind = HeaderValue::from_static("application/json");
            reply.headers_mut().insert(header::CONTENT_TYPE, kind);
            reply
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(status: StatusCode, body: String) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    reply
}

/// The pairs of a query, percent-decoded; what is not UTF-8 is replaced.
fn pairs(query: &str) -> Vec<(String, String)> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (decoded(key), decoded(value))
        })
        .collect()
}

/// Percent-decodes a part of a path or query.
pub fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = text.get(at + 1..at + 3);
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (bytes[at], byte) {
            (b'%', Some(byte)) => {
                plain.push(byte);
                at += 3;
                continue;
            }
            (b'+', _) => plain.push(b' '),
            (byte, _) => plain.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&plain).into_owned()
}
