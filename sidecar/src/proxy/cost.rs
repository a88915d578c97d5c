//! What a request costs that no clock is needed to see: the memory that the path asks for.
//!
//! Not here: socket calls, which take a whole process (the story `calls`), and time (`tests/bench/run`).

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

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

const REQUEST: &[u8] =
    b"GET /a?b=1 HTTP/1.1\r\nHost: web.mesh\r\nUser-Agent: cost\r\nAccept: */*\r\n\r\n";

thread_local! {
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LARGE: AtomicU64 = AtomicU64::new(0);

/// Counts what the threads ask for that say so; the system's allocator does the work.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

impl Counting {
    fn count(&self, bytes: usize) {
        if IS_COUNTED.try_with(Cell::get).unwrap_or(false) {
            ALLOCATIONS.fetch_add(1, Relaxed);
            LARGE.fetch_add(u64::from(bytes as u64 > BYTES_MAX), Relaxed);
        }
    }
}

#[expect(unsafe_code, reason = "an allocator cannot be written without")]
// SAFETY: every call is handed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System` by way of `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.count(size);
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

#[test]
fn a_request_over_kept_connections_asks_for_little_memory() {
    let backend = backend();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asking = thread::spawn(move || client(address));
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (common, _phase) = common([backend].into_iter(), |_| {});
    let serving = async {
        let worker = Worker::new(Arc::new(common));
        let stream = tokio::net::TcpStream::from_std(stream).unwrap();
        let caller = Caller {
            ip: Some([127, 0, 0, 1].into()),
            told: None,
        };
        IS_COUNTED.set(true);
        let place = Place::uncounted();
        front::serve(
            Rc::clone(&worker),
            Transport::Tcp(stream),
            caller,
            None,
            place,
        )
        .await;
    };
    runtime.block_on(tokio::task::LocalSet::new().run_until(serving));
    let (allocations, large) = asking.join().unwrap();
    let each = allocations as f64 / COUNTED as f64;
    println!(
        "{each} allocations a request, {large} of {COUNTED} requests' were larger than {BYTES_MAX} B"
    );
    assert!(each <= ALLOCATIONS_MAX, "{each} allocations a request");
    assert!(
        large <= COUNTED / 100,
        "{large} large ones in {COUNTED} requests"
    );
}
