//! A connection to an endpoint that many requests share, driven by one task; and one request on it.
//!
//! Not here: which connection (`pool.rs`) and what follows from how it went (`send/http2.rs`).

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use h2::{
    SendStream,
    client::{Builder, Connection, ResponseFuture, SendRequest},
};
use http::{
    HeaderValue, Method, Request, StatusCode, Uri,
    header::CONTENT_LENGTH,
    response,
    uri::{self, Authority, PathAndQuery, Scheme},
};
use http_body::Body;
use tokio::{sync::Notify, time::Instant};

use super::{
    CONNECTION_WINDOW, FAULTY_STREAMS_MAX, STREAM_WINDOW,
    incoming::{Received, tell_length_once},
    outflow::Outflow,
    pulse::Pulse,
    stream::Stream,
};
use crate::proxy::{
    call::Call,
    connections::{Entry, reason},
    gather::Gathered,
    http1::{
        incoming::Upload,
        wire::{Buffers, Wire},
    },
    interim::{Interim, TooMany},
    request_body::RequestBody,
    transport::Transport,
};

/// Streams at once until the endpoint has said how many: the least that servers are advised to grant (RFC 9113, 6.5.2).
const STREAMS_ASSUMED: usize = 100;

/// An open connection.
#[derive(Debug)]
pub struct Line {
    /// Its place in the table, where its streams are counted.
    pub entry: Rc<Entry>,
    /// `https` if TLS protects it, else `http`: what its requests say in `:scheme`.
    scheme: Scheme,
    /// What the endpoint said of it.
    pub terms: Rc<Terms>,
    /// Sends nothing itself, so that nothing of it can wait; each request has one of its own.
    sender: RefCell<SendRequest<Bytes>>,
    /// The authority last asked for, as it came and as it goes: nearly always the next one's too.
    last: RefCell<Option<(HeaderValue, Authority)>>,
    /// When anything came last.
    heard: Rc<Cell<Instant>>,
}

/// What an endpoint's settings allow on one HTTP/2 connection; noted by the task that drives it.
#[derive(Debug)]
pub struct Terms {
    /// Streams at once; until it has said so itself, what is known of the endpoint's other connections.
    pub streams: Cell<usize>,
    /// Its settings have come.
    is_told: Cell<bool>,
    told: Notify,
    /// A request has waited in vain while nothing came.
    is_doubted: Cell<bool>,
    /// It was asked whether it is there, and has not said so yet.
    is_asked: Cell<bool>,
}

impl Line {
    /// Whether it takes other requests.
    pub fn is_open(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let ready = self.sender.borrow_mut().poll_ready(&mut cx);
        !matches!(ready, Poll::Ready(Err(_)))
    }

    /// Where a request on it goes. The authority was checked when the request was read; what fits HTTP/1 may not fit here.
    ///
    /// # Errors
    /// It does not fit.
    pub fn uri(&self, authority: &HeaderValue, path: Option<&PathAndQuery>) -> http::Result<Uri> {
        let last = &mut *self.last.borrow_mut();
        let known = last.as_ref().filter(|(known, _)| known == authority);
        let authority = match known {
            Some((_, read)) => read.clone(),
            None => {
                let read = Authority::try_from(authority.as_bytes())?;
                *last = Some((authority.clone(), read.clone()));
                read
            }
        };
        let mut parts = uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(authority);
        parts.path_and_query = Some(match path {
            Some(path) => path.clone(),
            None => PathAndQuery::from_static("/"),
        });
        Ok(Uri::from_parts(parts)?)
    }

    /// Whether the endpoint lets streams leave HTTP (extended CONNECT, RFC 8441); waits until it has said so or not.
    pub async fn lets_leave(&self) -> bool {
        loop {
            // Told of before looking, so that nothing is missed between the two.
            let told = self.terms.told.notified();
            if self.terms.is_told.get() {
                return self.sender.borrow().is_extended_connect_protocol_enabled();
            }
            told.await;
        }
    }

    /// Whether the endpoint has said by now that streams may leave HTTP.
    pub fn has_let_leave(&self) -> bool {
        self.terms.is_told.get() && self.sender.borrow().is_extended_connect_protocol_enabled()
    }

    /// Whether the endpoint takes another stream now, as far as is known.
    pub fn has_room(&self) -> bool {
        !self.terms.is_asked.get() && (self.entry.under_way() as usize) < self.terms.streams.get()
    }

    /// A request has waited in vain since then: unless anything has come, the endpoint is asked whether it is there. The
    /// end of the request's stream wakes whoever asks.
    pub fn doubt(&self, since: Instant) {
        if self.heard.get() <= since {
            self.terms.is_doubted.set(true);
        }
    }
}

/// Speaks HTTP/2 by prior knowledge, or as was agreed, on a connection just opened and entered into the table.
///
/// # Errors
/// The connection broke while the preface was written.
pub async fn open(
    entry: Rc<Entry>,
    buffers: &Rc<Buffers>,
    header_bytes: usize,
) -> Result<Rc<Line>, h2::Error> {
    let transport = Transport::Listed(Rc::clone(&entry));
    let scheme = if transport.is_tls() {
        Scheme::HTTPS
    } else {
        Scheme::HTTP
    };
    let io = Gathered::new(Wire::new(transport, buffers));
    let (sender, mut connection) = Builder::new()
        .initial_max_send_streams(STREAMS_ASSUMED)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
        .max_local_error_reset_streams(Some(FAULTY_STREAMS_MAX))
        .enable_push(false)
        .handshake(io.clone())
        .await?;
    let terms = Rc::new(Terms {
        streams: Cell::new(STREAMS_ASSUMED),
        is_told: Cell::new(false),
        told: Notify::new(),
        is_doubted: Cell::new(false),
        is_asked: Cell::new(false),
    });
    let heard = io.heard();
    tokio::task::spawn_local(Driver {
        pulse: connection.ping_pong().map(Pulse::new),
        connection,
        io,
        heard: Rc::clone(&heard),
        entry: Rc::clone(&entry),
        terms: Rc::clone(&terms),
    });
    Ok(Rc::new(Line {
        entry,
        scheme,
        terms,
        sender: RefCell::new(sender),
        last: RefCell::default(),
        heard,
    }))
}

/// Moves a connection's bytes until it ends: after its last stream, once nobody holds its [`Line`].
struct Driver {
    connection: Connection<Gathered, Bytes>,
    io: Gathered,
    heard: Rc<Cell<Instant>>,
    pulse: Option<Pulse>,
    entry: Rc<Entry>,
    terms: Rc<Terms>,
}

impl Drop for Driver {
    /// Whoever waits for the endpoint's settings finds out that none come.
    fn drop(&mut self) {
        self.terms.is_told.set(true);
        self.terms.told.notify_waiters();
    }
}

impl Driver {
    /// Ready when nobody is at the other end.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pulse) = &mut self.pulse else {
            return Poll::Pending;
        };
        let heard = self.heard.get();
        if self.terms.is_doubted.take() {
            pulse.doubt(heard);
        }
        let silence = pulse.poll_silence(heard, self.entry.under_way() > 0, cx);
        self.terms.is_asked.set(pulse.is_asked());
        silence
    }

    fn note_terms(&self) {
        let streams = self.connection.max_concurrent_send_streams();
        // Its settings come before anything else it says.
        if streams != STREAMS_ASSUMED || self.entry.bytes().0 > 0 {
            self.terms.streams.set(streams);
            if !self.terms.is_told.replace(true) {
                self.terms.told.notify_waiters();
            }
        }
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let driver = &mut *self;
        if driver.poll_silence(cx).is_ready() {
            tracing::debug!("an endpoint's connection has gone silent");
            let detail = Some("it has gone silent".to_owned());
            driver.entry.ends_for(reason::ENDPOINT_BROKE, detail);
            return Poll::Ready(());
        }
        let polled = Pin::new(&mut driver.connection).poll(cx);
        driver.note_terms();
        driver.io.end_turn(cx);
        polled.map(|ended| match ended {
            Ok(()) => driver.entry.ends_for(reason::ENDPOINT_GONE, None),
            Err(error) => {
                tracing::trace!(%error, "upstream connection ended");
                let detail = Some(error.to_string());
                driver.entry.ends_for(reason::ENDPOINT_BROKE, detail);
            }
        })
    }
}

/// What befell a request.
#[derive(Debug)]
pub enum Trouble {
    /// The connection had ended before anything of the request was written.
    Unsent(h2::Error),
    /// No answer came, or a bad one.
    Broken(h2::Error),
    /// What came before the answer may not.
    Garbled(&'static str),
}

/// Sends a request, made of `call`; what comes of it is awaited.
///
/// # Errors
/// What befell it at once.
pub fn send<'a>(
    line: &Line,
    mut request: Request<()>,
    call: &'a Call,
) -> Result<Exchange<'a>, Trouble> {
    let body = RequestBody::of(call.source.as_ref());
    tell_length(&mut request, &body);
    let is_whole = body.is_end_stream();
    let (sender, answer, stream) = begin(line, request, is_whole)?;
    Ok(Exchange {
        unopened: Some(sender),
        interim: Interim::of(call),
        answer,
        // An endpoint that does not read has the time that its answer has.
        outflow: (!is_whole).then(|| Outflow::new(body, stream, None)),
    })
}

/// Asks with an extended CONNECT to leave HTTP; the answer, and the stream if the endpoint agrees.
///
/// # Errors
/// What befell it.
pub async fn leave(
    line: &Line,
    request: Request<()>,
) -> Result<(response::Parts, Result<Stream, Received>), Trouble> {
    let (mut sender, answer, send) = begin(line, request, false)?;
    // Its failure says nothing of this stream, which may be on its way: the answer's does.
    let _ = poll_fn(|cx| sender.poll_ready(cx)).await;
    let (mut head, recv) = answer.await.map_err(Trouble::Broken)?.into_parts();
    tell_length_once(&mut head.headers);
    let behind = if head.status.is_success() {
        Ok(Stream::new(send, recv))
    } else {
        Err(Received::new(recv, &head.headers))
    };
    Ok((head, behind))
}

/// Sends a request's head; its sender is ready once the stream is open.
fn begin(
    line: &Line,
    request: Request<()>,
    is_whole: bool,
) -> Result<(SendRequest<Bytes>, ResponseFuture, SendStream<Bytes>), Trouble> {
    let mut sender = line.sender.borrow().clone();
    let sent = sender.send_request(request, is_whole);
    let (answer, stream) = sent.map_err(|error| {
        let is_of_connection = error.is_io() || error.is_go_away();
        let trouble = if is_of_connection {
            Trouble::Unsent
        } else {
            Trouble::Broken
        };
        trouble(error)
    })?;
    Ok((sender, answer, stream))
}

/// A length that is known goes with the request, where the method gives a body a meaning or there is one.
fn tell_length(request: &mut Request<()>, body: &RequestBody) {
    let Some(length) = body.size_hint().exact() else {
        return;
    };
    let needs_none = [Method::GET, Method::HEAD, Method::DELETE, Method::CONNECT];
    if length > 0 || !needs_none.contains(request.method()) {
        let headers = request.headers_mut();
        headers
            .entry(CONTENT_LENGTH)
            .or_insert_with(|| length.into());
    }
}

/// A request on its way out and its answer on its way in, at once; yields the answer's head. Dropped before, the stream
/// is given up.
pub struct Exchange<'a> {
    /// Knows when the stream is opened: at once, or when the endpoint takes one more.
    unopened: Option<SendRequest<Bytes>>,
    interim: Interim<'a>,
    answer: ResponseFuture,
    outflow: Option<Outflow<RequestBody>>,
}

impl Exchange<'_> {
    fn poll_outflow(&mut self, cx: &mut Context<'_>) {
        if let Some(outflow) = &mut self.outflow
            && let Poll::Ready(sent) = outflow.poll(cx)
        {
            self.outflow = None;
            if let Err(broken) = sent {
                tracing::debug!(%broken, "a request was not sent whole");
            }
        }
    }

    /// Passes on what the endpoint says before its answer; ready when that comes next.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Trouble>> {
        // The answer itself, asked for first, would throw away what stands before it.
        while let Some(said) = ready!(self.answer.poll_informational(cx)) {
            let (head, ()) = said.map_err(Trouble::Broken)?.into_parts();
            if head.status == StatusCode::SWITCHING_PROTOCOLS {
                return Poll::Ready(Err(Trouble::Garbled("101, which HTTP/2 does not know")));
            }
            let passed = self.interim.pass(head.status, &head.headers, None);
            passed.map_err(|TooMany| Trouble::Garbled("too many interim answers"))?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Future for Exchange<'_> {
    type Output = Result<(response::Parts, Received), Trouble>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(sender) = &mut self.unopened {
            // Its failure says nothing of this stream, which may be on its way: the answer's does.
            let _ = ready!(sender.poll_ready(cx));
            self.unopened = None;
        }
        self.interim.poll_patience(cx);
        self.poll_outflow(cx);
        ready!(self.poll_interim(cx))?;
        let answer = ready!(Pin::new(&mut self.answer).poll(cx)).map_err(Trouble::Broken)?;
        let upload = self.outflow.take().map(|mut outflow| {
            // An answer may begin before its request has ended, as in a conversation. Dropped with it, what is left of the
            // request ends too, and with both their stream.
            let task = tokio::task::spawn_local(async move {
                if let Err(broken) = poll_fn(|cx| outflow.poll(cx)).await {
                    tracing::debug!(%broken, "a request was not sent whole");
                }
            });
            Upload(task.abort_handle())
        });
        let (mut head, stream) = answer.into_parts();
        tell_length_once(&mut head.headers);
        let received = Received::new(stream, &head.headers).with(upload);
        Poll::Ready(Ok((head, received)))
    }
}
