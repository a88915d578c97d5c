//! What a request and a connection cost that no clock is needed to see: the memory that they ask for, and hold.
//!
//! Not here: socket calls, which take a whole process (the story `calls`), and time (`tests/bench/run`).

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    future::Future,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use bytes::Bytes;
use http::{Request, Response};
use mesh_core::policy::{HttpVersion, Policy};

use super::{
    front, listen::Place, tests::common, transport::Transport, welcome::Caller, worker::Worker,
};

/// Requests before counting begins: pools fill, handles are made.
const WARM: u64 = 200;
/// Requests that are counted.
const COUNTED: u64 = 1_000;
/// What the path may ask for per request over kept connections.
const ALLOCATIONS_MAX: f64 = 14.0;
/// The largest piece it may ask for: what is larger leaves glibc's quick lists, and its freeing gives memory back to the
/// system, to be faulted in again.
const BYTES_MAX: u64 = 1_032;

/// Connections that come and rest before counting begins, and as many again that are counted.
const RESTING: i64 = 100;
/// What one that has asked for something and rests may hold, its task and its place in the runtime's tables included.
const RESTING_BYTES_MAX: i64 = 2_304;

const REQUEST: &[u8] =
    b"GET /a?b=1 HTTP/1.1\r\nHost: web.mesh\r\nUser-Agent: cost\r\nAccept: */*\r\n\r\n";

thread_local! {
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LARGE: AtomicU64 = AtomicU64::new(0);
/// Bytes asked for and not given back.
static HELD: AtomicI64 = AtomicI64::new(0);

/// Counts what the threads ask for that say so; the system's allocator does the work.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

impl Counting {
    fn count(&self, bytes: usize, given_back: usize) {
        if IS_COUNTED.try_with(Cell::get).unwrap_or(false) {
            ALLOCATIONS.fetch_add(u64::from(bytes > 0), Relaxed);
            LARGE.fetch_add(u64::from(bytes as u64 > BYTES_MAX), Relaxed);
            HELD.fetch_add(bytes as i64 - given_back as i64, Relaxed);
        }
    }
}

#[expect(unsafe_code, reason = "an allocator cannot be written without")]
// SAFETY: every call is handed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.count(0, layout.size());
        // SAFETY: `pointer` came from `System` by way of `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.count(size, layout.size());
        // SAFETY: `pointer` came from `System` by way of `alloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Reads a head and as many bytes behind it as `body` says.
fn read(stream: &mut TcpStream, room: &mut [u8], body: usize) -> bool {
    let mut held = 0;
    loop {
        match stream.read(&mut room[held..]) {
            Ok(0) | Err(_) => return false,
            Ok(count) => held += count,
        }
        let end = room[..held].windows(4).position(|four| four == b"\r\n\r\n");
        if end.is_some_and(|end| held == end + 4 + body) {
            return true;
        }
    }
}

/// Answers every request with 1 KiB, as often as is asked.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut answer = b"HTTP/1.1 200 OK\r\nServer: cost\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\n".to_vec();
    answer.resize(answer.len() + 1000, b'x');
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let answer = answer.clone();
            thread::spawn(move || {
                let mut room = [0; 4096];
                while read(&mut stream, &mut room, 0) && stream.write_all(&answer).is_ok() {}
            });
        }
    });
    address
}

/// Answers every request by HTTP/2 with 1 KiB.
fn http2_backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        alone(async {
            let mut connection = h2::server::handshake(asynchronous(stream)).await.unwrap();
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                body.send_data(Bytes::from_static(&[b'x'; 1000]), true)
                    .unwrap();
            }
        });
    });
    address
}

/// Asks one request after another by HTTP/2; how much memory was asked for meanwhile, and how often much.
fn http2_client(address: SocketAddr) -> (u64, u64) {
    let stream = TcpStream::connect(address).unwrap();
    alone(async {
        let handshake = h2::client::handshake(asynchronous(stream)).await;
        let (mut sender, connection) = handshake.unwrap();
        tokio::spawn(connection);
        let mut before = (0, 0);
        for number in 0..WARM + COUNTED {
            if number == WARM {
                before = (ALLOCATIONS.load(Relaxed), LARGE.load(Relaxed));
            }
            let request = Request::get("http://web.mesh/a?b=1").body(()).unwrap();
            let (answer, _) = sender.send_request(request, true).unwrap();
            let mut body = answer.await.unwrap().into_body();
            let mut bytes = 0;
            while let Some(data) = body.data().await {
                bytes += data.unwrap().len();
            }
            assert_eq!(bytes, 1000);
            body.flow_control().release_capacity(bytes).unwrap();
        }
        (
            ALLOCATIONS.load(Relaxed) - before.0,
            LARGE.load(Relaxed) - before.1,
        )
    })
}

/// Runs a story on a runtime of its own.
fn alone<T>(story: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap().block_on(story)
}

fn asynchronous(stream: TcpStream) -> tokio::net::TcpStream {
    stream.set_nonblocking(true).unwrap();
    tokio::net::TcpStream::from_std(stream).unwrap()
}

/// Asks one request after another on one connection; what the counted ones of them came to.
fn client(address: SocketAddr) -> (u64, u64) {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut room = [0; 4096];
    let mut before = (0, 0);
    for number in 0..WARM + COUNTED {
        if number == WARM {
            before = (ALLOCATIONS.load(Relaxed), LARGE.load(Relaxed));
        }
        stream.write_all(REQUEST).unwrap();
        assert!(read(&mut stream, &mut room, 1000), "no answer");
        assert!(room.starts_with(b"HTTP/1.1 200 "));
    }
    (
        ALLOCATIONS.load(Relaxed) - before.0,
        LARGE.load(Relaxed) - before.1,
    )
}

/// All tests count in the same cells.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Serves the one connection that `client` opens, with its requests led to `backend`; what the counted requests came
/// to, one by one and in all that was large.
fn counted(
    backend: SocketAddr,
    change: impl FnOnce(&mut Policy),
    client: impl FnOnce(SocketAddr) -> (u64, u64) + Send + 'static,
) -> (f64, u64) {
    let _turn = ONE_AT_A_TIME.lock();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asking = thread::spawn(move || client(address));
    let (stream, _) = listener.accept().unwrap();
    let (common, _phase) = common([backend].into_iter(), change);
    let serving = async {
        let worker = Worker::new(Arc::new(common));
        let caller = Caller {
            ip: Some([127, 0, 0, 1].into()),
            told: None,
        };
        IS_COUNTED.set(true);
        let place = Place::uncounted();
        let transport = Transport::Tcp(asynchronous(stream));
        front::serve(Rc::clone(&worker), transport, caller, None, place).await;
        IS_COUNTED.set(false);
    };
    alone(tokio::task::LocalSet::new().run_until(serving));
    let (allocations, large) = asking.join().unwrap();
    (allocations as f64 / COUNTED as f64, large)
}

fn judge((each, large): (f64, u64)) {
    println!(
        "{each} allocations a request, {large} of {COUNTED} requests' were larger than {BYTES_MAX} B"
    );
    assert!(each <= ALLOCATIONS_MAX, "{each} allocations a request");
    assert!(
        large <= COUNTED / 100,
        "{large} large ones in {COUNTED} requests"
    );
}

#[test]
fn a_request_over_kept_connections_asks_for_little_memory() {
    judge(counted(backend(), |_| {}, client));
}

#[test]
fn a_request_of_http2_asks_for_as_little() {
    let of_http2 = |policy: &mut Policy| policy.http = HttpVersion::Two;
    judge(counted(http2_backend(), of_http2, http2_client));
}

/// Opens connections that ask for one thing each and rest; what each of the later ones is held for.
fn resting_clients(address: SocketAddr) -> i64 {
    let mut streams = Vec::new();
    let mut settle = || {
        for _ in 0..RESTING {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(REQUEST).unwrap();
            assert!(read(&mut stream, &mut [0; 4096], 1000), "no answer");
            streams.push(stream);
        }
        HELD.load(Relaxed)
    };
    let before = settle();
    (settle() - before) / RESTING
}

#[test]
fn a_connection_at_rest_holds_little_memory() {
    let _turn = ONE_AT_A_TIME.lock();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asking = thread::spawn(move || resting_clients(address));
    let (common, _phase) = common([backend()].into_iter(), |_| {});
    let serving = async {
        let worker = Worker::new(Arc::new(common));
        let caller = Caller {
            ip: Some([127, 0, 0, 1].into()),
            told: None,
        };
        IS_COUNTED.set(true);
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let mut tasks = Vec::new();
        for _ in 0..2 * RESTING {
            let transport = Transport::Tcp(listener.accept().await.unwrap().0);
            let (worker, place) = (Rc::clone(&worker), Place::uncounted());
            let served = front::serve(worker, transport, caller, None, place);
            tasks.push(tokio::task::spawn_local(served));
        }
        for task in tasks {
            task.await.unwrap();
        }
        IS_COUNTED.set(false);
    };
    alone(tokio::task::LocalSet::new().run_until(serving));
    let bytes = asking.join().unwrap();
    println!("a connection at rest holds {bytes} B");
    assert!(bytes <= RESTING_BYTES_MAX, "{bytes} B");
}
