//! Bind, accept with a limit, deal to the worker with the fewest connections.
//!
//! Not here: what a connection goes through before its protocol (`welcome.rs`), and what is spoken (`front.rs`,
//! `tunnel.rs`).

use std::{
    cell::RefCell,
    collections::HashMap,
    fs, io,
    net::{
        IpAddr, SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream,
        UdpSocket as StdUdpSocket,
    },
    os::unix::{
        fs::FileTypeExt,
        net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, counter};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{Notify, oneshot},
    task::JoinHandle,
};

use super::{
    connections::row::{Query, Row},
    crowd::{ClientPlace, Crowd, Crowded},
    datagram,
    transport::Transport,
    welcome::serve,
    worker::{Hand, Worker},
};
use crate::{
    config::{ListenAddress, ServerNames},
    tls::ServerTls,
};

/// Connections the kernel keeps for us between two accepts.
const BACKLOG: i32 = 1024;
/// Rest after the system refused an accept (out of descriptors): others get time to close.
const ACCEPT_REST: Duration = Duration::from_millis(50);
/// Connections taken off the queue at most when a listener closes.
const LAST_ACCEPTS_MAX: usize = 1024;

/// What is behind a listener.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Door {
    /// HTTP, routed by authority.
    Authority,
    /// HTTP, always to one upstream.
    Upstream(Arc<str>),
    /// Any bytes, always to one upstream.
    Tcp(Arc<str>),
    /// TLS passed through, to the upstream that its server name leads to.
    Tls(Arc<[(ServerNames, Box<str>)]>),
    /// Datagrams, always to one upstream.
    Udp(Arc<str>),
}

/// What stands over a listener: a reload may change it while the socket stays.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sign {
    /// What is behind it.
    pub door: Door,
    /// Connections open at once.
    pub connections_max: u32,
    /// TLS that ends here.
    pub tls: Option<ServerTls>,
}

/// A listener to be opened: its socket is bound already, so that a clash is found before anything is swapped.
#[derive(Debug)]
pub struct Opening {
    /// Its address, as configured: the key it is closed by.
    pub address: ListenAddress,
    /// What stands over it.
    pub sign: Sign,
    /// The socket.
    pub socket: Bound,
}

/// A bound socket.
#[derive(Debug)]
pub enum Bound {
    /// TCP.
    Tcp(StdTcpListener),
    /// UDP.
    Udp(StdUdpSocket),
    /// A Unix socket and its path, removed when the listener closes.
    Unix(StdUnixListener, PathBuf),
}

/// What a worker is told.
#[derive(Debug)]
pub enum Order {
    /// Accept here.
    Listen(Opening),
    /// Lead those accepted there from now on elsewhere.
    Redoor {
        /// Which listener.
        address: ListenAddress,
        /// What stands over it now.
        sign: Sign,
    },
    /// Accept there no more; what waits in the queue is still served.
    Close(ListenAddress, oneshot::Sender<()>),
    /// Serve a connection that worker 0 accepted.
    Serve(Accepted),
    /// Tell of your connections.
    Tell(Box<Query>, oneshot::Sender<Vec<Row>>),
}

/// A connection on its way to its worker.
#[derive(Debug)]
pub struct Accepted {
    stream: AcceptedStream,
    peer: Option<IpAddr>,
    door: Door,
    tls: Option<ServerTls>,
    place: Place,
}

#[derive(Debug)]
enum AcceptedStream {
    Tcp(StdTcpStream),
    Unix(StdUnixStream),
}

/// A connection's place under its listener's limit and in its worker's count, given up when dropped.
#[derive(Debug)]
pub struct Place {
    listener: Arc<AtomicUsize>,
    worker: Arc<AtomicUsize>,
    _client: Option<ClientPlace>,
}

#[cfg(test)]
impl Place {
    /// A place that nobody counts.
    pub fn uncounted() -> Place {
        Place {
            listener: Arc::new(AtomicUsize::new(1)),
            worker: Arc::new(AtomicUsize::new(1)),
            _client: None,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.listener.fetch_sub(1, Ordering::Relaxed);
        self.worker.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Bound {
    /// Binds `address`.
    ///
    /// # Errors
    /// The system's, for an address in use or not ours.
    pub fn new(address: &ListenAddress) -> io::Result<Bound> {
        match address {
            ListenAddress::Tcp(address) => {
                let socket = Socket::new(
                    Domain::for_address(*address),
                    Type::STREAM,
                    Some(Protocol::TCP),
                )?;
                socket.set_reuse_address(true)?;
                socket.set_nonblocking(true)?;
                // What is accepted inherits it, which saves each connection a call.
                socket.set_tcp_nodelay(true)?;
                socket.bind(&(*address).into())?;
                socket.listen(BACKLOG)?;
                Ok(Bound::Tcp(socket.into()))
            }
            ListenAddress::Udp(address) => {
                let socket = StdUdpSocket::bind(address)?;
                socket.set_nonblocking(true)?;
                Ok(Bound::Udp(socket))
            }
            ListenAddress::Unix(path) => {
                remove_dead_socket(path)?;
                let listener = StdUnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Ok(Bound::Unix(listener, path.clone()))
            }
        }
    }

    /// The address that was bound; the port is real even if 0 was asked for.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Bound::Tcp(listener) => listener.local_addr().ok(),
            Bound::Udp(socket) => socket.local_addr().ok(),
            Bound::Unix(..) => None,
        }
    }
}

/// A socket file that nobody answers on is left over from a crash.
fn remove_dead_socket(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => match StdUnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

/// A listener at work.
struct Listening {
    stop: Rc<Notify>,
    task: JoinHandle<()>,
    sign: Rc<RefCell<Sign>>,
}

/// One worker's listeners and connections.
pub struct Floor {
    worker: Rc<Worker>,
    open: Arc<AtomicUsize>,
    peers: Rc<Vec<Hand>>,
    listeners: HashMap<String, Listening>,
    crowd: Rc<Crowd>,
}

impl Floor {
    /// No listener yet; `peers` are the workers that connections may be dealt to.
    pub fn new(worker: Rc<Worker>, open: Arc<AtomicUsize>, peers: Vec<Hand>) -> Floor {
        Floor {
            worker,
            open,
            peers: Rc::new(peers),
            listeners: HashMap::new(),
            crowd: Rc::default(),
        }
    }

    /// Does as told.
    pub fn carry_out(&mut self, order: Order) {
        match order {
            Order::Serve(accepted) => accepted.serve(&self.worker),
            Order::Listen(opening) => self.listen(opening),
            Order::Tell(query, done) => {
                let rows = self.worker.connections.rows(&query);
                // Whoever asked may have gone.
                let _ = done.send(rows);
            }
            Order::Redoor { address, sign } => {
                if let Some(listening) = self.listeners.get(&key(&address)) {
                    *listening.sign.borrow_mut() = sign;
                }
            }
            Order::Close(address, done) => {
                if let Some(Listening { stop, task, .. }) = self.listeners.remove(&key(&address)) {
                    stop.notify_one();
                    tokio::task::spawn_local(async move {
                        // A task that panicked has stopped listening too.
                        let _ = task.await;
                        let _ = done.send(());
                    });
                }
            }
        }
    }

    fn listen(&mut self, opening: Opening) {
        let stop = Rc::new(Notify::new());
        let key = key(&opening.address);
        let sign = Rc::new(RefCell::new(opening.sign));
        let (socket, door) = (opening.socket, sign.borrow().door.clone());
        let socket = match (socket, door) {
            (Bound::Udp(socket), Door::Udp(name)) => {
                let serving =
                    datagram::serve(Rc::clone(&self.worker), socket, name, Rc::clone(&stop));
                let task = tokio::task::spawn_local(serving);
                self.listeners.insert(key, Listening { stop, task, sign });
                return;
            }
            (socket, _) => socket,
        };
        let dealer = Dealer {
            worker: Rc::clone(&self.worker),
            open: Arc::clone(&self.open),
            peers: Rc::clone(&self.peers),
            listener: Arc::default(),
            sign: Rc::clone(&sign),
            crowd: Rc::clone(&self.crowd),
            refused: counter!("starling_connections_refused_total", "reason" => "busy"),
            foreign: counter!("starling_connections_refused_total", "reason" => "client"),
        };
        let listener = match Listener::new(socket) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(address = key, %error, "the listener could not be opened");
                return;
            }
        };
        let task = tokio::task::spawn_local(accept(listener, dealer, Rc::clone(&stop)));
        self.listeners.insert(key, Listening { stop, task, sign });
    }

    /// Stops listening, and waits until the worker's last connection is over.
    pub async fn close(self) {
        for (_, Listening { stop, task, .. }) in self.listeners {
            stop.notify_one();
            let _ = task.await;
        }
        while self.open.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn key(address: &ListenAddress) -> String {
    address.to_string()
}

/// A listener that the runtime waits on.
struct Listener {
    socket: ListenerSocket,
    file: Option<SocketFile>,
}

enum ListenerSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A listener that is closing: its queue is emptied without waiting.
struct LastCall {
    socket: LastSocket,
    _file: Option<SocketFile>,
}

enum LastSocket {
    Tcp(StdTcpListener),
    Unix(StdUnixListener),
}

/// A Unix socket's file, removed when dropped.
struct SocketFile(PathBuf);

impl Listener {
    fn new(bound: Bound) -> io::Result<Listener> {
        Ok(match bound {
            Bound::Tcp(listener) => Listener {
                socket: ListenerSocket::Tcp(TcpListener::from_std(listener)?),
                file: None,
            },
            // Datagrams have no connections; they are served elsewhere.
            Bound::Udp(_) => return Err(io::ErrorKind::Unsupported.into()),
            Bound::Unix(listener, path) => Listener {
                socket: ListenerSocket::Unix(UnixListener::from_std(listener)?),
                file: Some(SocketFile(path)),
            },
        })
    }

    async fn accept(&self) -> io::Result<(Transport, Option<IpAddr>)> {
        match &self.socket {
            ListenerSocket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(of_tcp(stream, peer))
            }
            ListenerSocket::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Transport::Unix(stream), None))
            }
        }
    }

    fn into_last(self) -> io::Result<LastCall> {
        let socket = match self.socket {
            ListenerSocket::Tcp(listener) => LastSocket::Tcp(listener.into_std()?),
            ListenerSocket::Unix(listener) => LastSocket::Unix(listener.into_std()?),
        };
        Ok(LastCall {
            socket,
            _file: self.file,
        })
    }
}

impl LastCall {
    fn accept(&self) -> io::Result<(Transport, Option<IpAddr>)> {
        match &self.socket {
            LastSocket::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(of_tcp(TcpStream::from_std(stream)?, peer))
            }
            LastSocket::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok((Transport::Unix(UnixStream::from_std(stream)?), None))
            }
        }
    }
}

fn of_tcp(stream: TcpStream, peer: SocketAddr) -> (Transport, Option<IpAddr>) {
    (Transport::Tcp(stream), Some(peer.ip().to_canonical()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "the socket file was gone already");
        }
    }
}

/// Hands connections of one listener to workers.
struct Dealer {
    worker: Rc<Worker>,
    open: Arc<AtomicUsize>,
    peers: Rc<Vec<Hand>>,
    listener: Arc<AtomicUsize>,
    sign: Rc<RefCell<Sign>>,
    crowd: Rc<Crowd>,
    /// Those that no worker had room for.
    refused: Counter,
    foreign: Counter,
}

async fn accept(listener: Listener, dealer: Dealer, stop: Rc<Notify>) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.notified() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((transport, peer)) => dealer.deal(transport, peer),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted; trying again in 50 ms");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
    // Who is in the queue already was promised an answer: closing now would reset them. The kernel is asked itself,
    // for the runtime knows only of those it was told of.
    match listener.into_last() {
        Ok(last) => {
            for _ in 0..LAST_ACCEPTS_MAX {
                match last.accept() {
                    Ok((transport, peer)) => dealer.deal(transport, peer),
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(_) => break,
                }
            }
        }
        Err(error) => tracing::warn!(%error, "connections waiting to be accepted were lost"),
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

impl Dealer {
    fn deal(&self, transport: Transport, peer: Option<IpAddr>) {
        if !may_call(&self.worker, peer) {
            self.foreign.increment(1);
            return;
        }
        let client = match self.admit(peer) {
            Ok(client) => client,
            Err(why) => {
                let Sign { door, tls, .. } = &*self.sign.borrow();
                let node = &self.worker.settings().node;
                return (self.crowd).turn_away(transport, door, tls.is_none(), why, node);
            }
        };
        let least = self
            .peers
            .iter()
            .min_by_key(|hand| hand.open.load(Ordering::Relaxed));
        let own = self.open.load(Ordering::Relaxed);
        let other = least
            .filter(|hand| hand.open.load(Ordering::Relaxed) < own && hand.orders.capacity() > 0);
        match other {
            None => {
                let place = self.place(&self.open, client);
                let Sign { door, tls, .. } = self.sign.borrow().clone();
                serve(&self.worker, transport, peer, door, tls, place);
            }
            Some(hand) => self.hand_over(hand, transport, peer, client),
        }
    }

    /// Takes a place of this listener, and of the client where those are counted; or says which there is none of.
    fn admit(&self, peer: Option<IpAddr>) -> Result<Option<ClientPlace>, Crowded> {
        let limits = self.worker.settings().limits;
        if let Some(max) = limits.all_connections {
            let others = self.peers.iter().map(|hand| &hand.open);
            let all = others
                .chain([&self.open])
                .map(|open| open.load(Ordering::Relaxed));
            if all.sum::<usize>() >= max as usize {
                return Err(Crowded::All);
            }
        }
        let client = match (peer, limits.client_connections) {
            (Some(peer), Some(max)) => Some(self.crowd.place(peer, max).ok_or(Crowded::Client)?),
            _ => None,
        };
        let max = self.sign.borrow().connections_max as usize;
        if self.listener.fetch_add(1, Ordering::Relaxed) >= max {
            self.listener.fetch_sub(1, Ordering::Relaxed);
            return Err(Crowded::Listener);
        }
        Ok(client)
    }

    fn place(&self, worker: &Arc<AtomicUsize>, client: Option<ClientPlace>) -> Place {
        worker.fetch_add(1, Ordering::Relaxed);
        Place {
            listener: Arc::clone(&self.listener),
            worker: Arc::clone(worker),
            _client: client,
        }
    }

    fn hand_over(
        &self,
        hand: &Hand,
        transport: Transport,
        peer: Option<IpAddr>,
        client: Option<ClientPlace>,
    ) {
        let place = self.place(&hand.open, client);
        let stream = match transport {
            Transport::Tcp(stream) => stream.into_std().map(AcceptedStream::Tcp),
            Transport::Unix(stream) => stream.into_std().map(AcceptedStream::Unix),
            // Handshakes are made by the worker that serves.
            Transport::Tls(_) | Transport::Listed(_) => return,
            #[cfg(test)]
            Transport::Pipe(_) => return,
        };
        match stream {
            Ok(stream) => {
                let Sign { door, tls, .. } = self.sign.borrow().clone();
                let accepted = Accepted {
                    stream,
                    peer,
                    door,
                    tls,
                    place,
                };
                if hand.orders.try_send(Order::Serve(accepted)).is_err() {
                    tracing::warn!("a worker's inbox is full; a connection was closed unserved");
                    self.refused.increment(1);
                }
            }
            Err(error) => tracing::warn!(%error, "a connection could not change threads"),
        }
    }
}

/// Loopback and Unix sockets always may call; others must be listed.
pub fn may_call(worker: &Worker, peer: Option<IpAddr>) -> bool {
    let listed = |ip: IpAddr| worker.settings().clients.iter().any(|net| net.contains(ip));
    peer.is_none_or(|ip| ip.is_loopback() || listed(ip))
}

impl Accepted {
    fn serve(self, worker: &Rc<Worker>) {
        let transport = match self.stream {
            AcceptedStream::Tcp(stream) => TcpStream::from_std(stream).map(Transport::Tcp),
            AcceptedStream::Unix(stream) => UnixStream::from_std(stream).map(Transport::Unix),
        };
        match transport {
            Ok(transport) => serve(
                worker, transport, self.peer, self.door, self.tls, self.place,
            ),
            Err(error) => tracing::warn!(%error, "a connection could not change threads"),
        }
    }
}
