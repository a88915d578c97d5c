//! Bytes both ways between two streams, until both ends have ended, one broke or both were silent for too long.
//!
//! Not here: whose bytes they are and where they go (`tunnel.rs`), and the system calls by which the kernel moves them
//! (`splice.rs`).

use std::{cell::Cell, io, time::Duration};

use mesh_core::{moment::Moment, policy::Timeouts};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    task::yield_now,
    time::sleep,
};

use super::{
    outage::Outage,
    splice::{Lane, cannot_splice},
    worker::Worker,
};

/// Bytes of one direction held between reading and writing them. Measured for bodies of 1 MiB over loopback, in CPU
/// seconds per GB of the relay alone: 0.22 to 0.24 with 16 KiB, 0.31 to 0.46 with 64 KiB, 0.27 to 0.29 with 256 KiB (the
/// caches are left), and with splice(2) 0.36 through a pipe of 64 KiB, 0.23 to 0.35 through larger ones: so bytes are
/// copied until a direction has shown that it carries much.
const BUFFER_BYTES: usize = 16 * 1024;
/// Bytes that go one way without a rest before the kernel is left to move the others.
const SPLICE_AFTER_BYTES: u64 = 4 << 20;
/// Bytes that the kernel moves one way before the worker's other connections have their turn: the runtime counts calls,
/// and one of these may move as much as a pipe holds.
const TURN_BYTES: usize = 4 << 20;
/// Silence that is a rest.
const REST: Duration = Duration::from_millis(100);
/// Silence is looked at no more often than this.
const LOOK: Duration = Duration::from_secs(1);

/// How a relayed connection ended.
#[derive(Debug)]
pub enum End {
    /// Both sides had said all.
    Done,
    /// The client's side broke.
    Client(io::Error),
    /// The endpoint's side broke.
    Endpoint(io::Error),
    /// Neither said anything for too long.
    Silent,
    /// Its endpoint was no longer to be called, and its grace was over; why.
    Outage(&'static str),
    /// No endpoint took it.
    Unreachable,
}

impl End {
    /// The word for logs.
    pub fn reason(&self) -> &'static str {
        match self {
            End::Done => "done",
            End::Client(_) => "client broke off",
            End::Endpoint(_) => "endpoint broke off",
            End::Silent => "idle",
            End::Outage(_) => "endpoint not to be called",
            End::Unreachable => "no endpoint",
        }
    }

    /// What the reason does not say.
    pub fn detail(&self) -> Option<String> {
        match self {
            End::Client(error) | End::Endpoint(error) => Some(error.to_string()),
            End::Outage(why) => Some((*why).to_owned()),
            End::Done | End::Silent | End::Unreachable => None,
        }
    }
}

/// Copies both ways until both ends have ended, half-close kept, silence bounded, and tells how it ended. `lane`: from
/// client to endpoint, if the kernel may move what goes there and back.
pub async fn relay(
    worker: &Worker,
    client: impl AsyncRead + AsyncWrite,
    endpoint: impl AsyncRead + AsyncWrite,
    lane: Option<Lane>,
    timeouts: &Timeouts,
    outage: &Outage,
) -> End {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_endpoint, mut to_endpoint) = tokio::io::split(endpoint);
    let watch = Watch {
        last: Cell::new(worker.clock.now()),
        limit: Cell::new(timeouts.idle),
        half_closed: timeouts.half_closed,
    };
    let both = async {
        let back = lane.as_ref().map(Lane::back);
        let up = one_way(worker, &watch, &mut from_client, &mut to_endpoint, lane);
        let down = one_way(worker, &watch, &mut from_endpoint, &mut to_client, back);
        tokio::try_join!(
            async {
                up.await
                    .map_err(|broken| broken.end(End::Client, End::Endpoint))
            },
            async {
                down.await
                    .map_err(|broken| broken.end(End::Endpoint, End::Client))
            },
        )
    };
    tokio::select! {
        ended = both => ended.map_or_else(|end| end, |_| End::Done),
        () = watch.silent(worker) => End::Silent,
        why = outage.over() => End::Outage(why),
    }
}

/// Which side of a direction broke.
enum Broken {
    Reading(io::Error),
    Writing(io::Error),
}

impl Broken {
    fn end(self, reading: fn(io::Error) -> End, writing: fn(io::Error) -> End) -> End {
        match self {
            Broken::Reading(error) => reading(error),
            Broken::Writing(error) => writing(error),
        }
    }
}

/// When a byte last went either way.
struct Watch {
    last: Cell<Moment>,
    limit: Cell<Duration>,
    /// How long the second direction may stay silent once the first has ended.
    half_closed: Duration,
}

impl Watch {
    async fn silent(&self, worker: &Worker) {
        loop {
            let now = worker.clock.now();
            let ends = self.last.get() + self.limit.get();
            if ends <= now {
                return;
            }
            sleep(ends.since(now).min(self.half_closed.max(LOOK))).await;
        }
    }
}

async fn one_way(
    worker: &Worker,
    watch: &Watch,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    lane: Option<Lane>,
) -> Result<(), Broken> {
    let mut buffer = vec![0u8; BUFFER_BYTES];
    let mut streak = Streak::default();
    loop {
        if let Some(lane) = lane.as_ref().filter(|_| streak.is_long())
            && spliced(worker, watch, lane, &mut streak).await?
        {
            break;
        }
        let count = from.read(&mut buffer).await.map_err(Broken::Reading)?;
        if count == 0 {
            break;
        }
        let now = worker.clock.now();
        watch.last.set(now);
        streak.goes_on(count, now);
        to.write_all(&buffer[..count])
            .await
            .map_err(Broken::Writing)?;
        to.flush().await.map_err(Broken::Writing)?;
        watch.last.set(worker.clock.now());
    }
    watch.last.set(worker.clock.now());
    watch.limit.set(watch.limit.get().min(watch.half_closed));
    to.shutdown().await.map_err(Broken::Writing)
}

/// What went one way without a rest.
#[derive(Default)]
struct Streak {
    bytes: u64,
    last: Moment,
}

impl Streak {
    fn goes_on(&mut self, count: usize, now: Moment) {
        if now.since(self.last) > REST {
            self.bytes = 0;
        }
        self.bytes += count as u64;
        self.last = now;
    }

    /// The kernel could not be left to it: nobody asks again before as much has gone by as before.
    fn begins_anew(&mut self) {
        self.bytes = 0;
    }

    fn is_long(&self) -> bool {
        self.bytes >= SPLICE_AFTER_BYTES
    }
}

/// What was moved since others had their turn.
#[derive(Default)]
struct Turn {
    bytes: usize,
}

impl Turn {
    /// Lets the others have it once enough was moved.
    async fn moved(&mut self, count: usize) {
        self.bytes += count;
        if self.bytes >= TURN_BYTES {
            self.bytes = 0;
            yield_now().await;
        }
    }
}

/// Lets the kernel move what comes, until it has rested or finds no pipe; whether that was all.
async fn spliced(
    worker: &Worker,
    watch: &Watch,
    lane: &Lane,
    streak: &mut Streak,
) -> Result<bool, Broken> {
    let mut turn = Turn::default();
    while streak.is_long() {
        lane.readable().await.map_err(Broken::Reading)?;
        // Taken for what is there and given back, so that none is kept by who waits.
        let Some(mut pipe) = worker.pipes.take() else {
            streak.begins_anew();
            break;
        };
        let count = match lane.fill(&mut pipe) {
            Ok(None) => continue,
            Ok(Some(0)) => return Ok(true),
            Ok(Some(count)) => count,
            Err(error) if cannot_splice(&error) => {
                streak.begins_anew();
                break;
            }
            // The call has taken the error from the socket: whoever reads on would be told of a clean end.
            Err(error) => return Err(Broken::Reading(error)),
        };
        let now = worker.clock.now();
        watch.last.set(now);
        streak.goes_on(count, now);
        while !pipe.is_empty() {
            lane.drain(&mut pipe).await.map_err(Broken::Writing)?;
            watch.last.set(worker.clock.now());
        }
        drop(pipe);
        turn.moved(count).await;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use super::*;

    #[test]
    fn who_moves_much_lets_others_have_their_turn() {
        let mut turn = Turn::default();
        let yields = |count| {
            let mut cx = Context::from_waker(Waker::noop());
            pin!(turn.moved(count)).poll(&mut cx).is_pending()
        };
        let half = TURN_BYTES / 2;
        let moved = [half, half - 1, 1, half, half, TURN_BYTES];
        assert_eq!(moved.map(yields), [false, false, true, false, true, true]);
    }
}
