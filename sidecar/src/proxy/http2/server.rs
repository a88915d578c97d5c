//! A client's connection of HTTP/2: one task reads its frames, answers its streams and writes what they have to say.
//!
//! Not here: what stands before the path and where a request goes (`front.rs`, `forward.rs`), and how the streams are
//! woken (`crew.rs`).

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    server::{Builder, Connection, Handshake, SendResponse},
};
use http::{
    Method, Request, Response,
    header::{CONTENT_LENGTH, DATE},
};
use http_body::Body;
use mesh_core::moment::Moment;
use metrics::counter;
use tower::Service;

use super::{
    CONNECTION_WINDOW, FAULTY_STREAMS_MAX, STREAM_WINDOW,
    crew::Crew,
    flood::Flood,
    incoming::{Received, tell_length_once},
    outflow::{Broken, Outflow},
    stream::Stream,
};
use crate::proxy::{
    body::Inflow,
    connections::{Entry, UnderWay, reason},
    front::{self, Caller, Guarding, Stack, old_age},
    gather::Gathered,
    http1::wire::SharedWire,
    interim::{Ear, Notes},
    patience::{Answering, Patience, RanOut},
    porter::Carrying,
    reply_body::ReplyBody,
    tunnel,
    worker::{Phase, Worker},
};

/// Bytes of answers that one stream may hold for a client that does not read: two pieces as they are read, so that the next
/// one is there while one is written. With 400 KiB, h2's default, a hundred streams of one client made us hold 44 MiB.
const SEND_BYTES_MAX: usize = 32 * 1024;
/// Rounds of one turn: a connection whose streams go on waking each other lets the others of its worker go first then.
const ROUNDS_MAX: usize = 8;

/// Serves a client that speaks HTTP/2, until it ends.
pub async fn serve(mut caller: Caller, wire: SharedWire) {
    let worker = Rc::clone(&caller.worker);
    let settings = worker.settings();
    let limits = &settings.limits;
    let header_bytes = settings.header_bytes;
    let patience = Patience::new(worker.clock, limits);
    let ends = caller.entry.end();
    let io = Gathered::of_client(wire, Arc::clone(&patience), Rc::clone(&caller.entry));
    let notes = Rc::<Notes>::default();
    caller.client = Some(Ear::Http2(Rc::clone(&notes)));
    let mut serving = Serving {
        stage: Stage::Greeting(
            Builder::new()
                .enable_connect_protocol()
                .max_concurrent_streams(limits.streams)
                // Those that are cancelled before we looked at them. h2's default of 20 takes a gRPC client that cancels
                // its calls all at once for an attacker (h2 #856); as many as may be open can be cancelled at once.
                .max_pending_accept_reset_streams(limits.streams as usize)
                .max_local_error_reset_streams(Some(FAULTY_STREAMS_MAX))
                .max_send_buffer_size(SEND_BYTES_MAX)
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
                .handshake(io.clone()),
        ),
        is_ending: false,
        requests: 0,
        crew: Crew::default(),
        io,
        worker: Rc::clone(&worker),
        entry: Rc::clone(&caller.entry),
        stack: front::stack(caller),
        notes,
        overran: Rc::default(),
        patience: Arc::clone(&patience),
        unread_max: limits.idle,
    };
    let ended = run(&worker, &patience, ends, &mut serving).await;
    let (word, detail) = match &ended {
        Ok(word) => (*word, None),
        Err(error) if error.is_io() => (reason::CLIENT_GONE, None),
        Err(error) => (reason::CLIENT_FAULT, Some(error.to_string())),
    };
    serving.entry.ends_for(word, detail);
    if let Err(error) = ended {
        // A connection that breaks is nobody's fault.
        if !error.is_io() {
            counter!("starling_client_faults_total").increment(1);
        }
        tracing::debug!(%error, "client connection ended early");
    }
}

/// Drives a connection; when the sidecar ends or the client rests too long, it finishes what is in flight and closes.
/// Yields why.
async fn run(
    worker: &Worker,
    patience: &Patience,
    ends: Option<Moment>,
    serving: &mut Serving,
) -> Result<&'static str, h2::Error> {
    let mut phase = worker.common.phase.clone();
    let reason = tokio::select! {
        // The connection first: what it has been sent already is still answered.
        biased;
        ended = poll_fn(|cx| serving.poll(cx)) => return ended.map(|()| reason::CLIENT_GONE),
        _ = phase.wait_for(|phase| *phase == Phase::Ending) => reason::LEAVING,
        () = old_age(worker, ends) => reason::OLD,
        ran_out = patience.run_out() => {
            if ran_out != RanOut::Idle {
                dawdled(ran_out);
                return Ok(reason::CLIENT_FAULT);
            }
            reason::IDLE
        }
    };
    serving.end();
    tokio::select! {
        biased;
        ended = poll_fn(|cx| serving.poll(cx)) => ended.map(|()| reason),
        // One that neither reads nor hangs up would be waited for to the end of time.
        ran_out = patience.run_out_of_farewell() => {
            dawdled(ran_out);
            Ok(reason)
        }
    }
}

fn dawdled(ran_out: RanOut) {
    counter!("starling_client_faults_total").increment(1);
    tracing::debug!(?ran_out, "a client dawdled too long");
}

/// A connection and its streams.
struct Serving {
    stage: Stage,
    /// It takes no more streams than were on their way.
    is_ending: bool,
    /// Requests so far.
    requests: u64,
    crew: Crew<Exchange>,
    io: Gathered,
    worker: Rc<Worker>,
    entry: Rc<Entry>,
    stack: Stack,
    notes: Rc<Notes>,
    /// The client has sent more on a stream than the stream's window allowed.
    overran: Rc<Cell<bool>>,
    patience: Arc<Patience>,
    /// How long an answer's pieces may be left unread.
    unread_max: Duration,
}

enum Stage {
    /// The preface is exchanged.
    Greeting(Handshake<Gathered, Bytes>),
    /// Streams come and go.
    Open(Connection<Gathered, Bytes>),
}

impl Serving {
    /// Lets the client know that it should open no other stream; what is under way goes on.
    fn end(&mut self) {
        self.is_ending = true;
        if let Stage::Open(connection) = &mut self.stage {
            connection.graceful_shutdown();
        }
        self.crew.connection().wake();
    }

    /// One turn: the connection reads, the streams that were woken go on, the connection writes.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        self.crew.wakes(cx.waker());
        let waker = self.crew.connection();
        let mut of_connection = Context::from_waker(&waker);
        let mut polled = Poll::Pending;
        for _ in 0..ROUNDS_MAX {
            if self.crew.begin_round() {
                polled = self.poll_connection(&mut of_connection);
                if polled.is_pending()
                    && let Some(flood) = self.io.flood(self.requests)
                {
                    polled = self.stem(flood, &mut of_connection);
                }
                if polled.is_ready() {
                    break;
                }
            }
            self.crew.poll_round();
            if self.overran.get() {
                polled = self.cut(Reason::FLOW_CONTROL_ERROR, &mut of_connection);
                break;
            }
            if self.crew.may_rest() {
                break;
            }
        }
        self.io.end_turn(&mut of_connection);
        if polled.is_pending() && !self.crew.may_rest() {
            cx.waker().wake_by_ref();
        }
        polled
    }

    fn poll_connection(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            match &mut self.stage {
                Stage::Greeting(handshake) => {
                    let mut connection = ready!(Pin::new(handshake).poll(cx))?;
                    if self.is_ending {
                        connection.graceful_shutdown();
                    }
                    self.stage = Stage::Open(connection);
                }
                Stage::Open(connection) => match ready!(connection.poll_accept(cx)) {
                    Some(accepted) => {
                        let (request, respond) = accepted?;
                        self.begin(request, respond);
                    }
                    None => return Poll::Ready(Ok(())),
                },
            }
        }
    }

    /// Ends a connection that is flooded. It is told so if it reads; it is not waited for.
    fn stem(&mut self, flood: Flood, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        counter!("starling_client_floods_total", "kind" => flood.word()).increment(1);
        tracing::debug!(%flood, peer = ?self.entry.client_address(), "a client's connection is cut");
        self.cut(Reason::ENHANCE_YOUR_CALM, cx)
    }

    fn cut(&mut self, reason: Reason, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        if let Stage::Open(connection) = &mut self.stage {
            connection.abrupt_shutdown(reason);
            let _ = self.poll_connection(cx);
        }
        Poll::Ready(Err(reason.into()))
    }

    /// Sends a request on its way.
    fn begin(&mut self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        self.requests += 1;
        let answering = self.patience.answer(UnderWay::on(&self.entry));
        let (mut head, stream) = request.into_parts();
        tell_length_once(&mut head.headers);
        let is_head = head.method == Method::HEAD;
        let (body, leaving) = if head.method == Method::CONNECT {
            (Received::empty(), Some(stream))
        } else {
            (Received::new(stream, &head.headers), None)
        };
        let request = Request::from_parts(head, Inflow::Http2(body));
        self.crew.add(Exchange {
            answer: self.stack.call(request),
            notes: Rc::clone(&self.notes),
            overran: Rc::clone(&self.overran),
            respond,
            is_head,
            leaving,
            unread_max: self.unread_max,
            answering: Some(answering),
            outflow: None,
            worker: Rc::clone(&self.worker),
            client: Rc::clone(&self.entry),
        });
    }
}

/// One stream: its request is answered, then the answer's body follows.
struct Exchange {
    answer: Guarding<Carrying>,
    /// What the client is to be told before.
    notes: Rc<Notes>,
    /// Set once it is ended because the client overran its window. The h2 crate ends the stream alone, and would go on taking
    /// what is sent on it; the same beyond the connection's window ends the connection (RFC 9113, 6.9.1, allows both).
    overran: Rc<Cell<bool>>,
    respond: SendResponse<Bytes>,
    /// Whatever the answer, no body follows.
    is_head: bool,
    /// What comes from a client that asks to leave HTTP.
    leaving: Option<RecvStream>,
    unread_max: Duration,
    answering: Option<Answering>,
    /// The answer's body, once its head is sent.
    outflow: Option<Outflow<ReplyBody>>,
    worker: Rc<Worker>,
    client: Rc<Entry>,
}

impl Future for Exchange {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Err(broken) = ready!(self.poll_sent(cx)) {
            match &broken {
                Broken::Unread => counter!("starling_client_faults_total").increment(1),
                Broken::Stream(error) if error.reason() == Some(Reason::FLOW_CONTROL_ERROR) => {
                    self.overran.set(true);
                }
                Broken::Stream(_) | Broken::Body(_) => {}
            }
            tracing::debug!(%broken, "a stream ended early");
        }
        Poll::Ready(())
    }
}

impl Exchange {
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if let Some(outflow) = &mut self.outflow {
            return outflow.poll(cx);
        }
        let answered = Pin::new(&mut self.answer).poll(cx);
        self.tell(cx)?;
        let Poll::Ready(Ok(answer)) = answered else {
            // A client that gives its stream up takes its request with it.
            let reason = ready!(self.respond.poll_reset(cx))?;
            return Poll::Ready(Err(Broken::Stream(reason.into())));
        };
        match self.send(answer) {
            Ok(Some(outflow)) => self.outflow.insert(outflow).poll(cx),
            Ok(None) => Poll::Ready(Ok(())),
            Err(error) => {
                // Nothing can be said on a stream that has ended; why it has is worth more than that.
                if let Poll::Ready(Ok(reason)) = self.respond.poll_reset(cx) {
                    return Poll::Ready(Err(Broken::Stream(reason.into())));
                }
                self.respond.send_reset(Reason::INTERNAL_ERROR);
                Poll::Ready(Err(Broken::Stream(error)))
            }
        }
    }

    /// Tells the client what it is to hear before its answer.
    fn tell(&mut self, cx: &mut Context<'_>) -> Result<(), h2::Error> {
        for note in self.notes.take() {
            // h2 would write it to a stream that the client has given up, too.
            if let Poll::Ready(reason) = self.respond.poll_reset(cx)? {
                return Err(reason.into());
            }
            self.respond.send_informational(note)?;
        }
        Ok(())
    }

    /// Sends an answer's head, and whatever is behind it on its way.
    fn send(
        &mut self,
        answer: Response<ReplyBody>,
    ) -> Result<Option<Outflow<ReplyBody>>, h2::Error> {
        let (mut head, body) = answer.into_parts();
        let date = head.headers.entry(DATE);
        date.or_insert_with(|| self.worker.date());
        if let (Some(stream), true) = (self.leaving.take(), body.is_tunnel()) {
            head.headers.remove(CONTENT_LENGTH);
            let send = self
                .respond
                .send_response(Response::from_parts(head, ()), false)?;
            self.leave(Stream::new(send, stream), body);
            return Ok(None);
        }
        let is_whole = body.is_end_stream();
        if !is_whole && let Some(length) = body.size_hint().exact() {
            let told = head.headers.entry(CONTENT_LENGTH);
            told.or_insert_with(|| length.into());
        }
        let is_whole = is_whole || self.is_head;
        let stream = self
            .respond
            .send_response(Response::from_parts(head, ()), is_whole)?;
        let answering = self.answering.take();
        Ok(answering
            .filter(|_| !is_whole)
            .map(|answering| Outflow::new(body.served(answering), stream, Some(self.unread_max))))
    }

    /// Leads a stream that has left HTTP to where the answer came from.
    fn leave(&mut self, stream: Stream, body: ReplyBody) {
        let (client, answering) = (Rc::clone(&self.client), self.answering.take());
        if let Some(tunnel) = body.into_tunnel() {
            tokio::task::spawn_local(async move {
                tunnel::streamed(stream, &client, tunnel).await;
                drop(answering);
            });
        }
    }
}
