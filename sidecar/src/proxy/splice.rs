//! Bytes from one TCP socket to another that the kernel moves without our touching them (splice(2)).
//!
//! Not here: when that is worth it (`relay.rs`), and what it is counted as (`tunnel.rs`).

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    os::fd::OwnedFd,
    rc::Rc,
    task::{Poll, ready},
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice},
};
use tokio::{io::Interest, net::TcpStream};

use super::{connections::Entry, transport::Transport};

/// What a pipe holds, in bytes: as much as a user may have without asking. For bodies of 64 MiB over loopback, in CPU
/// seconds per GB beside HAProxy's 0.84 to 0.89 copying and 0.47 by splice(2), in the same runs: 0.39 with 256 KiB, 0.35
/// with 512 KiB, 0.29 with 1 MiB; in another run 0.47 with 64 KiB.
const PIPE_BYTES: usize = 1024 * 1024;
/// Less than this in a pipe, and copying is quicker: what each call costs is spread over too few bytes.
const PIPE_BYTES_MIN: usize = 64 * 1024;
/// Pipes of a worker that hold something at once; a direction that finds none copies meanwhile. So what slow readers
/// leave in them is 16 MiB at most. All that a user's programs have in pipes is bounded too (fs.pipe-user-pages-soft, 64
/// MiB unless set), which four workers may reach: from there on the kernel makes pipes of 8 KiB, which are not used.
const PIPES_MAX: usize = 16;
/// Empty pipes that a worker keeps for whoever needs one next.
const SPARE_MAX: usize = 4;

/// Two TCP sockets, bytes going from one to the other.
#[derive(Clone)]
pub struct Lane {
    from: Rc<Entry>,
    to: Rc<Entry>,
}

impl Lane {
    /// From one connection to another; `None` unless both are TCP without TLS.
    pub fn between(from: &Rc<Entry>, to: &Rc<Entry>) -> Option<Lane> {
        let is_plain = |entry: &Entry| {
            let is_tcp = entry.carrier(|carrier| matches!(carrier, Transport::Tcp(_)));
            is_tcp.unwrap_or(false)
        };
        (is_plain(from) && is_plain(to)).then(|| Lane {
            from: Rc::clone(from),
            to: Rc::clone(to),
        })
    }

    /// The other direction.
    pub fn back(&self) -> Lane {
        Lane {
            from: Rc::clone(&self.to),
            to: Rc::clone(&self.from),
        }
    }

    /// Waits until there may be something to read.
    ///
    /// # Errors
    /// The socket cannot be waited for.
    pub async fn readable(&self) -> io::Result<()> {
        poll_fn(|cx| on(&self.from, |socket| socket.poll_read_ready(cx))).await
    }

    /// Takes what is there, at most what the pipe has room for; `None`: there is nothing for now, 0: the end.
    ///
    /// # Errors
    /// What reading fails with.
    pub fn fill(&self, pipe: &mut Held<'_>) -> io::Result<Option<usize>> {
        // Into an empty pipe only: of a full one the kernel says the same as of an empty socket.
        let moved = self.from.tcp(|socket| {
            let into = &pipe.pipe()?.into;
            socket.try_io(Interest::READABLE, || {
                Ok(splice(socket, None, into, None, PIPE_BYTES, FLAGS)?)
            })
        });
        match moved.unwrap_or_else(no_socket) {
            Ok(count) => {
                pipe.holds = count;
                self.from.received(count);
                Ok(Some(count))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Hands on what is in the pipe, or a part of it, as soon as the other side takes it.
    ///
    /// # Errors
    /// What writing fails with.
    pub async fn drain(&self, pipe: &mut Held<'_>) -> io::Result<()> {
        let count = poll_fn(|cx| {
            loop {
                ready!(on(&self.to, |socket| socket.poll_write_ready(cx)))?;
                let moved = self.to.tcp(|socket| {
                    let out_of = &pipe.pipe()?.out_of;
                    socket.try_io(Interest::WRITABLE, || {
                        Ok(splice(out_of, None, socket, None, pipe.holds, FLAGS)?)
                    })
                });
                match moved.unwrap_or_else(no_socket) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    done => return Poll::Ready(done),
                }
            }
        })
        .await?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        pipe.holds = pipe.holds.saturating_sub(count);
        self.to.sent(count);
        Ok(())
    }
}

/// Whether what [`Lane::fill`] failed with says nothing of the socket: a sandbox may not know the call or forbid it, a
/// kernel not take these sockets for it or have no room for the pipe.
pub fn cannot_splice(error: &io::Error) -> bool {
    let of_the_call = [
        Errno::NOSYS,
        Errno::PERM,
        Errno::ACCESS,
        Errno::INVAL,
        Errno::NOMEM,
    ];
    Errno::from_io_error(error).is_some_and(|errno| of_the_call.contains(&errno))
}

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

fn on<R>(
    entry: &Entry,
    act: impl FnOnce(&TcpStream) -> Poll<io::Result<R>>,
) -> Poll<io::Result<R>> {
    entry.tcp(act).unwrap_or_else(|| Poll::Ready(no_socket()))
}

fn no_socket<R>() -> io::Result<R> {
    Err(io::ErrorKind::NotConnected.into())
}

#[derive(Debug)]
struct Pipe {
    into: OwnedFd,
    out_of: OwnedFd,
}

impl Pipe {
    /// A pipe that holds so many bytes, or fewer where a user may have only so much in pipes.
    fn open(bytes: usize) -> io::Result<Pipe> {
        let (out_of, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let holds = fcntl_setpipe_size(&into, bytes).or_else(|_| fcntl_getpipe_size(&into))?;
        if holds < PIPE_BYTES_MIN {
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                format!(
                    "{holds} bytes are all that one more pipe of this user may hold; see fs.pipe-user-pages-soft"
                ),
            ));
        }
        Ok(Pipe { into, out_of })
    }
}

/// A worker's pipes.
#[derive(Debug, Default)]
pub struct Pipes {
    spare: RefCell<Vec<Pipe>>,
    held: Cell<usize>,
}

impl Pipes {
    /// An empty pipe; `None` if too many are in use or none can be had.
    pub fn take(&self) -> Option<Held<'_>> {
        if self.held.get() == PIPES_MAX {
            return None;
        }
        let spare = self.spare.borrow_mut().pop();
        let pipe = match spare {
            Some(pipe) => pipe,
            None => Pipe::open(PIPE_BYTES)
                .inspect_err(|error| tracing::debug!(%error, "no pipe; bytes are copied"))
                .ok()?,
        };
        self.held.set(self.held.get() + 1);
        Some(Held {
            pipe: Some(pipe),
            holds: 0,
            pipes: self,
        })
    }
}

/// A pipe in use; given back when dropped, unless something is left in it.
#[derive(Debug)]
pub struct Held<'a> {
    pipe: Option<Pipe>,
    /// Bytes in it.
    holds: usize,
    pipes: &'a Pipes,
}

impl Held<'_> {
    /// Nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.holds == 0
    }

    fn pipe(&self) -> io::Result<&Pipe> {
        self.pipe.as_ref().map_or_else(no_socket, Ok)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.pipes.held.set(self.pipes.held.get() - 1);
        let spare = &mut *self.pipes.spare.borrow_mut();
        if self.holds == 0 && spare.len() < SPARE_MAX {
            spare.extend(self.pipe.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, net::SocketAddr, time::Duration};

    use mesh_core::policy::{Policy, Protocol};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::{JoinHandle, LocalSet, spawn_local},
        time::timeout,
    };

    use super::*;
    use crate::{
        access_log::{AccessLog, Sink},
        proxy::{
            connections::row::Query, listen::Place, tests::common, tunnel, welcome::Caller,
            worker::Worker,
        },
    };

    /// Much more than is copied before the kernel is left to it.
    const MUCH: usize = 24 << 20;
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Bytes in which nothing can be lost or moved unseen.
    fn bytes(seed: usize) -> Vec<u8> {
        let byte = |at: usize| (at.wrapping_mul(31).wrapping_add(at >> 9) ^ seed) as u8;
        (0..MUCH).map(byte).collect()
    }

    fn run(story: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let tasks = LocalSet::new();
        let story = tasks.run_until(async { timeout(PATIENCE, story).await });
        runtime.block_on(story).expect("in time");
    }

    /// A connection that is relayed: both its ends, and the relay.
    struct Relayed {
        worker: Rc<Worker>,
        client: TcpStream,
        endpoint: TcpStream,
        relay: JoinHandle<()>,
    }

    async fn relayed(change: impl FnOnce(&mut Policy)) -> Relayed {
        let listening = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (front, back) = (listening().await, listening().await);
        let at = |listener: &TcpListener| -> SocketAddr { listener.local_addr().unwrap() };
        // Whoever holds the other end of the phase holds the worker.
        let (common, _phase) = common([at(&back)].into_iter(), |policy| {
            policy.protocol = Protocol::Tcp;
            change(policy);
        });
        let worker = Worker::new(common.into());
        let (client, accepted) = tokio::join!(TcpStream::connect(at(&front)), front.accept());
        let caller = Caller {
            ip: Some([127, 0, 0, 1].into()),
            told: None,
        };
        let relay = spawn_local(tunnel::serve(
            Rc::clone(&worker),
            Transport::Tcp(accepted.unwrap().0),
            Vec::new(),
            caller,
            "web".into(),
            Place::uncounted(),
        ));
        let (endpoint, _) = back.accept().await.unwrap();
        Relayed {
            worker,
            client: client.unwrap(),
            endpoint,
            relay,
        }
    }

    /// Sends much one way and looks at what arrives.
    async fn goes(from: &mut TcpStream, to: &mut TcpStream, seed: usize) {
        let (sent, mut come) = (bytes(seed), vec![0; MUCH]);
        let (written, read) = tokio::join!(from.write_all(&sent), to.read_exact(&mut come));
        written.unwrap();
        read.unwrap();
        assert!(sent == come, "what arrived is not what was sent");
    }

    /// Much goes each way, the second after the first has ended.
    async fn both_ways(relayed: Relayed) -> Rc<Worker> {
        let Relayed {
            worker,
            mut client,
            mut endpoint,
            relay,
        } = relayed;
        goes(&mut client, &mut endpoint, 1).await;
        client.shutdown().await.unwrap();
        assert_eq!(endpoint.read(&mut [0]).await.unwrap(), 0, "it has ended");
        goes(&mut endpoint, &mut client, 2).await;

        let much = MUCH as u64;
        let rows = worker.connections.rows(&Query::default());
        assert_eq!(rows.len(), 2, "{rows:?}");
        for row in rows {
            let (received, sent) = (row.received_bytes, row.sent_bytes);
            assert_eq!((received, sent), (much, much), "{row:?}");
        }
        drop(endpoint);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "it has ended");
        relay.await.unwrap();
        worker
    }

    #[test]
    fn much_is_moved_by_the_kernel_and_counted_and_each_direction_ends_by_itself() {
        run(async {
            let worker = both_ways(relayed(|_| {}).await).await;
            assert_eq!(worker.pipes.held.get(), 0);
            assert!(!worker.pipes.spare.borrow().is_empty(), "no pipe was used");
        });
    }

    #[test]
    fn where_no_pipe_is_to_be_had_bytes_are_copied() {
        run(async {
            let relayed = relayed(|_| {}).await;
            relayed.worker.pipes.held.set(PIPES_MAX);
            let worker = both_ways(relayed).await;
            assert!(worker.pipes.spare.borrow().is_empty());
        });
    }

    #[test]
    fn one_that_rests_after_much_keeps_no_pipe_and_is_closed_in_its_time() {
        run(async {
            let idle = PATIENCE / 2;
            let relayed = relayed(|policy| policy.timeouts.idle = idle).await;
            let (mut client, mut endpoint) = (relayed.client, relayed.endpoint);
            goes(&mut client, &mut endpoint, 3).await;
            assert_eq!(relayed.worker.pipes.held.get(), 0);
            // Bytes take the time they take; rest takes none.
            tokio::time::pause();
            assert_eq!(endpoint.read(&mut [0]).await.unwrap(), 0);
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
            relayed.relay.await.unwrap();
        });
    }

    #[test]
    fn one_that_is_reset_after_much_ends_at_once_and_is_told_of_as_broken() {
        let path = std::env::temp_dir().join(format!("starling-reset-{}", std::process::id()));
        run(async {
            let relayed = relayed(|_| {}).await;
            let log = AccessLog::open(&Sink::File(path.clone())).unwrap();
            (relayed.worker.connections).logs_to(Some(log.clone()));
            let (mut client, mut endpoint) = (relayed.client, relayed.endpoint);
            goes(&mut client, &mut endpoint, 4).await;
            client.set_zero_linger().unwrap();
            drop(client);
            // The endpoint says nothing and keeps its side open.
            relayed.relay.await.unwrap();
            assert!(log.written().await);
        });
        let told = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(told.contains(r#""reason":"client broke off""#), "{told}");
        assert!(told.contains("reset"), "{told}");
    }

    #[test]
    fn a_pipe_too_small_to_pay_is_not_used() {
        for (bytes, pays) in [
            (8 * 1024, false),
            (PIPE_BYTES_MIN, true),
            (PIPE_BYTES, true),
        ] {
            assert_eq!(Pipe::open(bytes).is_ok(), pays, "{bytes}");
        }
    }

    #[test]
    fn a_pipe_with_something_left_in_it_is_not_used_again() {
        let pipes = Pipes::default();
        let mut left = pipes.take().expect("a pipe");
        left.holds = 1;
        drop(left);
        assert!(pipes.spare.borrow().is_empty());
        drop(pipes.take().expect("a pipe"));
        assert_eq!(pipes.spare.borrow().len(), 1);
        let held: Vec<Held<'_>> = (0..PIPES_MAX).map(|_| pipes.take().unwrap()).collect();
        assert!(pipes.take().is_none(), "there is an end");
        drop(held);
        assert_eq!(
            (pipes.held.get(), pipes.spare.borrow().len()),
            (0, SPARE_MAX)
        );
    }
}
