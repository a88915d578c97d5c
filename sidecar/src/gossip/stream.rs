//! Join, exchange and probe over TCP: one task a stream, frames in and out.
//!
//! Not here: what the frames say (`mesh_core::membership`).

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use mesh_core::membership::{CallEnd, CallId};
use mesh_proto::{
    EXCHANGE_BYTES_MAX,
    frame::{
        self, Answered, Call, Half, KeyId, KeyRing, PREAMBLE_BYTES, Preamble, Reject,
        SEALED_FRAME_BYTES_MAX,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};

use super::Counters;

/// Frames waiting to be written on one stream: a whole exchange of the largest size.
pub const FRAMES_MAX: usize = EXCHANGE_BYTES_MAX / mesh_proto::FRAME_BYTES_MAX + 16;

/// What streams tell the gossip task, waiting.
pub const EVENTS_MAX: usize = 64;

/// Streams of others that are served at once; those who showed a key wait their turn.
pub const INBOUND_MAX: usize = 8;

/// Streams that strangers may have open while they show their key; more are closed at once.
pub const STRANGERS_MAX: usize = 128;

/// The first frame of a stream is a name and a digest.
const HELLO_BYTES_MAX: usize = 4_096;

/// A frame's length stands before it.
const FRAME_HEAD_BYTES: usize = 4;

/// For whoever opens a stream here to say who he is.
const HELLO_TIME: Duration = Duration::from_secs(3);

/// For whoever showed a key to be served.
const TURN_TIME: Duration = Duration::from_secs(5);

/// For each frame to arrive, and each to be taken.
const FRAME_TIME: Duration = Duration::from_secs(5);

/// What a stream tells the gossip task.
#[derive(Debug)]
pub enum Event {
    /// Somebody called and holds a key.
    Hello {
        /// The first frame.
        hello: Vec<u8>,
        /// The key; `None` in clear.
        key: Option<KeyId>,
        /// Where the call's name and its frames are to be sent; dropped: no answer.
        answer: oneshot::Sender<(CallId, mpsc::Receiver<Vec<u8>>)>,
    },
    /// A frame came.
    Frame {
        /// On which.
        call: CallId,
        /// Its items.
        payload: Vec<u8>,
    },
    /// The stream is over.
    End {
        /// Which.
        call: CallId,
        /// How.
        end: CallEnd,
    },
    /// Something that is not ours came in.
    Rejected(Reject),
}

/// What every stream works with.
#[derive(Clone)]
pub struct Line {
    /// Keys to open with, and the one to seal with.
    pub ring: KeyRing,
    /// The way to the gossip task.
    pub events: mpsc::Sender<Event>,
    /// Where bytes are counted.
    pub counters: Arc<Counters>,
}

impl Line {
    fn count_in(&self, bytes: usize) {
        let count = &self.counters.stream_bytes_in;
        count.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn count_out(&self, bytes: usize) {
        let count = &self.counters.stream_bytes_out;
        count.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Why a stream ended.
enum Broken {
    Io(io::Error),
    Late,
    Rejected(Reject),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Broken {
        Broken::Io(error)
    }
}

impl From<tokio::time::error::Elapsed> for Broken {
    fn from(_: tokio::time::error::Elapsed) -> Broken {
        Broken::Late
    }
}

impl From<Reject> for Broken {
    fn from(reject: Reject) -> Broken {
        Broken::Rejected(reject)
    }
}

/// Calls another node: opens a stream, says `hello`, then carries frames until either side is done.
pub async fn call(
    call: CallId,
    to: SocketAddr,
    hello: Vec<u8>,
    within: Duration,
    frames: mpsc::Receiver<Vec<u8>>,
    line: Line,
) {
    let opened = timeout(within, open(to, &hello, &line)).await;
    let end = match opened {
        Ok(Ok((stream, out, back))) => {
            match timeout(within, carry(call, stream, out, back, frames, &line)).await {
                Ok(end) => end,
                Err(_) => Some(CallEnd::Failed),
            }
        }
        Ok(Err(Broken::Io(error))) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Some(CallEnd::Refused)
        }
        // Whoever does not know our key says nothing.
        Ok(Err(Broken::Io(error))) if is_cut(&error) => Some(CallEnd::Closed),
        Ok(Err(broken)) => {
            tell_rejected(&line, broken).await;
            Some(CallEnd::Failed)
        }
        Err(_) => Some(CallEnd::Failed),
    };
    if let Some(end) = end {
        // The gossip task is gone: there is nobody left to tell.
        let _ = line.events.send(Event::End { call, end }).await;
    }
}

fn is_cut(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

async fn open(
    to: SocketAddr,
    hello: &[u8],
    line: &Line,
) -> Result<(TcpStream, Half, Half), Broken> {
    let mut stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (call, bytes) = Call::start(&line.ring, rand::random(), hello).ok_or(Reject::Malformed)?;
    stream.write_all(&bytes).await?;
    line.count_out(bytes.len());
    let mut preamble: Preamble = [0; PREAMBLE_BYTES];
    stream.read_exact(&mut preamble).await?;
    line.count_in(PREAMBLE_BYTES);
    let (out, back) = call.answered(&preamble)?;
    Ok((stream, out, back))
}

/// Answers a stream that somebody opened here. Noise is closed without a word.
///
/// `turns` lets [`INBOUND_MAX`] be served at once.
pub async fn answer(mut stream: TcpStream, turns: Arc<Semaphore>, line: Line) {
    let greeted = timeout(HELLO_TIME, greet(&mut stream, &line)).await;
    let answered = match greeted.map_err(Broken::from) {
        Ok(Ok(answered)) => answered,
        Ok(Err(broken)) | Err(broken) => return tell_rejected(&line, broken).await,
    };
    let Ok(Ok(_turn)) = timeout(TURN_TIME, turns.acquire_owned()).await else {
        return;
    };
    let (sender, named) = oneshot::channel();
    let event = Event::Hello {
        hello: answered.hello,
        key: answered.key,
        answer: sender,
    };
    if line.events.send(event).await.is_err() {
        return;
    }
    let Ok((call, frames)) = named.await else {
        return;
    };
    let end = match stream.write_all(&answered.preamble).await {
        Ok(()) => {
            line.count_out(answered.preamble.len());
            carry(call, stream, answered.out, answered.back, frames, &line).await
        }
        Err(_) => Some(CallEnd::Failed),
    };
    if let Some(end) = end {
        let _ = line.events.send(Event::End { call, end }).await;
    }
}

async fn greet(stream: &mut TcpStream, line: &Line) -> Result<Answered, Broken> {
    stream.set_nodelay(true)?;
    let mut preamble: Preamble = [0; PREAMBLE_BYTES];
    stream.read_exact(&mut preamble).await?;
    let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
    if length > HELLO_BYTES_MAX {
        return Err(Reject::Malformed.into());
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    line.count_in(PREAMBLE_BYTES + FRAME_HEAD_BYTES + length);
    Ok(frame::answer(&line.ring, &preamble, &body, rand::random())?)
}

/// Garbage that ends early or comes late is garbage too.
async fn tell_rejected(line: &Line, broken: Broken) {
    let reject = match broken {
        Broken::Rejected(reject) => reject,
        Broken::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => Reject::Malformed,
        Broken::Late => Reject::Malformed,
        Broken::Io(_) => return,
    };
    let _ = line.events.send(Event::Rejected(reject)).await;
}

/// Carries frames both ways. `None`: our side hung up.
async fn carry(
    call: CallId,
    stream: TcpStream,
    out: Half,
    back: Half,
    frames: mpsc::Receiver<Vec<u8>>,
    line: &Line,
) -> Option<CallEnd> {
    let (reader, writer) = stream.into_split();
    tokio::select! {
        end = read(call, reader, back, line) => Some(end),
        written = write(writer, out, frames, line) => written.err().map(|_| CallEnd::Failed),
    }
}

async fn read(call: CallId, mut reader: OwnedReadHalf, mut back: Half, line: &Line) -> CallEnd {
    let mut budget = EXCHANGE_BYTES_MAX;
    loop {
        match timeout(FRAME_TIME, read_frame(&mut reader, &mut back, &mut budget)).await {
            Ok(Ok((payload, bytes))) => {
                line.count_in(bytes);
                if line
                    .events
                    .send(Event::Frame { call, payload })
                    .await
                    .is_err()
                {
                    return CallEnd::Failed;
                }
            }
            Ok(Err(Broken::Io(error))) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return CallEnd::Closed;
            }
            Ok(Err(broken)) => {
                tell_rejected(line, broken).await;
                return CallEnd::Failed;
            }
            Err(_) => return CallEnd::Failed,
        }
    }
}

/// Yields a frame's payload and how many bytes it was on the wire.
async fn read_frame(
    reader: &mut OwnedReadHalf,
    back: &mut Half,
    budget: &mut usize,
) -> Result<(Vec<u8>, usize), Broken> {
    let length = usize::try_from(reader.read_u32().await?).unwrap_or(usize::MAX);
    if length > SEALED_FRAME_BYTES_MAX || length > *budget {
        return Err(Reject::Malformed.into());
    }
    *budget -= length;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    Ok((back.open(body)?, FRAME_HEAD_BYTES + length))
}

async fn write(
    mut writer: OwnedWriteHalf,
    mut out: Half,
    mut frames: mpsc::Receiver<Vec<u8>>,
    line: &Line,
) -> Result<(), Broken> {
    while let Some(payload) = frames.recv().await {
        let sealed = out.seal(&payload).ok_or(Reject::Malformed)?;
        timeout(FRAME_TIME, writer.write_all(&sealed)).await??;
        line.count_out(sealed.len());
    }
    timeout(FRAME_TIME, writer.shutdown()).await??;
    Ok(())
}
