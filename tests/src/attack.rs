//! A stranger at the gossip port: a mesh of real sidecars under hostile datagrams, and what came of it.
//!
//! Not here: how it is told (`bin/attack.rs`) and a short one that every test run does (`tests/attack.rs`).
//!
//! The stranger has no key. It has what whoever listens on the wire has: datagrams of the mesh, sealed. It gets them by
//! sitting down where a member died, for the others go on probing that one for a while.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    PATIENCE,
    sidecar::{Setup, Sidecar, own_address},
    until::until,
};

/// Different hostile datagrams made before the attack, and sent in turn.
const POOL: usize = 8_192;

/// Between two bursts the sender listens so long on each of its sockets.
const BURST: Duration = Duration::from_millis(1);

/// Genuine datagrams wanted before the attack begins.
const OVERHEARD_MIN: usize = 3;

/// Bytes of the largest datagram of the protocol, and of its header (`mesh-proto/src/frame.rs`).
const DATAGRAM_BYTES_MAX: usize = 1_200;
const HEADER_BYTES: usize = 35;

/// How long answers are waited for once the attack is over.
const AFTERMATH: Duration = Duration::from_secs(1);

const DATAGRAMS_IN: &str = "starling_gossip_datagrams_total{direction=\"in\"}";

/// Between two looks at the memory of the sidecars.
const LOOK: Duration = Duration::from_millis(100);

/// What is done to whom.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Sidecars of the mesh; one more dies before the attack.
    pub nodes: usize,
    /// How many of them are attacked.
    pub victims: usize,
    /// Hostile datagrams per second, all together.
    pub rate: u32,
    /// How long.
    pub duration: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Hostile datagrams sent, by kind.
    pub sent: BTreeMap<&'static str, u64>,
    /// Per second, as reached.
    pub rate: f64,
    /// How many of them were sent to sidecars that outlived the attack.
    pub aimed: u64,
    /// How many datagrams those read meanwhile, each other's included.
    pub read: u64,
    /// How many of those they refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Bytes that came back to any socket of the attacker.
    pub answers: u64,
    /// What is seen otherwise after the attack than before it, in words.
    pub changes: Vec<String>,
    /// Suspicions seen and identities renewed meanwhile, all sidecars together: one of them dies, so some are due.
    pub suspicions: u64,
    /// Of the sidecar that grew most, resident memory in KiB: before, at most meanwhile, and after.
    pub memory_kib: [u64; 3],
    /// Processor time that the victims took for one hostile datagram read, their own work included.
    pub cpu_us: f64,
    /// From a drain to the last node that knows: without the attack and under it.
    pub change_ms: [u64; 2],
    /// From `kill -9` to the last node that knows, likewise.
    pub crash_ms: [u64; 2],
}

impl Report {
    /// All of it as one object.
    pub fn to_json(&self) -> Value {
        json!({
            "sent": self.sent, "rate": self.rate.round(), "aimed": self.aimed, "read": self.read, "refused": self.refused,
            "answers": self.answers, "changes": self.changes, "suspicions": self.suspicions,
            "memory_kib": { "before": self.memory_kib[0], "most": self.memory_kib[1], "after": self.memory_kib[2] },
            "cpu_us": (self.cpu_us * 100.0).round() / 100.0,
            "change_ms": { "calm": self.change_ms[0], "attacked": self.change_ms[1] },
            "crash_ms": { "calm": self.crash_ms[0], "attacked": self.crash_ms[1] },
        })
    }
}

/// Attacks a mesh made for it.
///
/// # Panics
/// When the mesh does not come together, or one of its promises is not kept within [`PATIENCE`].
pub async fn run(plan: Plan) -> Report {
    let mut mesh = Mesh::start(plan.nodes).await;
    let change_calm = mesh.change(true).await;
    mesh.change(false).await;
    let (overheard, crash_calm) = mesh.overhear().await;
    let targets: Vec<SocketAddr> = mesh.hosts[..plan.victims]
        .iter()
        .map(Sidecar::gossip)
        .collect();
    let spoofed = mesh.hosts[0].setup.address;
    // It dies under attack; figures are of those that outlive it.
    let last = mesh.hosts.pop().expect("more than one");
    let victims = plan.victims.min(mesh.hosts.len());
    let before = mesh.seen().await;
    let counts = mesh.counts().await;
    let memory = mesh.memory();
    let cpu = mesh.cpu(victims);

    let pool = pool(&overheard, &mut Dice(0x5eed));
    let attacker = Attacker::start(pool, spoofed, targets, plan.rate);
    let mut most = mesh.watch_memory(plan.duration * 3 / 4).await;
    let changes = differences(&before, &mesh.seen().await);
    // The promises, while it goes on.
    let change_attacked = mesh.change(true).await;
    mesh.change(false).await;
    let crash_attacked = mesh.crash(last).await;
    let rest = mesh.watch_memory(plan.duration / 4).await;
    let attack = attacker.stop();
    mesh.until_told().await;
    let after = mesh.counts().await;
    let cpu = mesh.cpu(victims) - cpu;
    let read = after.read - counts.read;
    for (most, rest) in most.iter_mut().zip(rest) {
        *most = rest.max(*most);
    }
    let grown = |at: &usize| most[*at].saturating_sub(memory[*at]);
    let worst = (0..mesh.hosts.len()).max_by_key(grown).unwrap_or(0);
    Report {
        rate: attack.sent.values().sum::<u64>() as f64 / attack.took.as_secs_f64(),
        sent: attack.sent,
        aimed: attack.aimed[..victims].iter().sum(),
        read,
        refused: difference(&after.refused, &counts.refused),
        answers: attack.answers,
        changes,
        suspicions: after.suspicions - counts.suspicions,
        memory_kib: [memory[worst], most[worst], mesh.memory()[worst]],
        cpu_us: cpu.as_secs_f64() * 1e6 / read.max(1) as f64,
        change_ms: [change_calm, change_attacked].map(|took| took.as_millis() as u64),
        crash_ms: [crash_calm, crash_attacked].map(|took| took.as_millis() as u64),
    }
}

// ---- the mesh ----

struct Mesh {
    hosts: Vec<Sidecar>,
    dying: Option<Sidecar>,
}

/// Counts of all sidecars together.
struct Counts {
    read: u64,
    refused: BTreeMap<String, u64>,
    suspicions: u64,
}

impl Mesh {
    async fn start(nodes: usize) -> Mesh {
        let mut setups: Vec<Setup> = Vec::new();
        for number in 0..=nodes {
            let mut setup = Setup::new(&format!("host-{number}"), "eu-1a");
            setup.gossip = format!("key = \"{}\"", "c5".repeat(32));
            if number == 0 {
                // Nothing is asked of it, so it is taken to be well.
                setup = setup.with("[service.shop]\nport = 9001\n");
            }
            if let Some(first) = setups.first() {
                setup = setup.joining(first);
            }
            setups.push(setup);
        }
        let mut hosts: Vec<Sidecar> = setups.into_iter().map(Sidecar::start).collect();
        for host in &mut hosts {
            host.until_ready().await;
        }
        for host in &hosts {
            for number in 0..=nodes {
                let name = format!("host-{number}");
                host.until_member(&name, "alive", PATIENCE).await;
            }
            host.until_usable("shop", 1, PATIENCE).await;
        }
        let dying = hosts.pop();
        Mesh { hosts, dying }
    }

    /// Drains the first host's service, or puts it back, until everybody knows. Yields how long that took.
    async fn change(&self, drain: bool) -> Duration {
        let (path, state) = if drain {
            ("/v1/drain", "draining")
        } else {
            ("/v1/undrain", "up")
        };
        let began = Instant::now();
        let answer = self.hosts[0].order(path, "").await.expect("an answer");
        assert!(answer.status < 300, "{answer:?}");
        for host in &self.hosts {
            let what = format!("{} sees the service {state}", host.setup.name);
            until(PATIENCE, &what, || async {
                let services = host.listing("/v1/services").await?;
                if services[0]["state"] == state {
                    Ok(())
                } else {
                    Err(services.to_string())
                }
            })
            .await;
        }
        began.elapsed()
    }

    /// Kills a host until everybody knows. Yields how long that took.
    async fn crash(&self, mut host: Sidecar) -> Duration {
        let name = host.setup.name.clone();
        let began = Instant::now();
        host.process.kill();
        for host in &self.hosts {
            host.until_member(&name, "down", PATIENCE).await;
        }
        began.elapsed()
    }

    /// Kills one host and listens in its place until everybody knows: what was heard, and how long that took.
    async fn overhear(&mut self) -> (Vec<Vec<u8>>, Duration) {
        let mut dying = self.dying.take().expect("it dies once");
        let (name, address) = (dying.setup.name.clone(), dying.gossip());
        let began = Instant::now();
        dying.process.kill();
        let ear = tokio::net::UdpSocket::bind(address)
            .await
            .expect("its port is free");
        let mut heard = Vec::new();
        let mut room = vec![0; 65_536];
        let mut took = Duration::ZERO;
        while took.is_zero() || heard.len() < OVERHEARD_MIN {
            let one = tokio::time::timeout(Duration::from_millis(20), ear.recv_from(&mut room));
            if let Ok(Ok((length, _))) = one.await {
                heard.push(room[..length].to_vec());
            }
            assert!(
                began.elapsed() < PATIENCE * 2,
                "{} heard of {name}",
                heard.len()
            );
            if took.is_zero() && self.all_see_down(&name).await {
                took = began.elapsed();
            }
        }
        (heard, took)
    }

    async fn all_see_down(&self, name: &str) -> bool {
        for host in &self.hosts {
            let members = host.members().await.unwrap_or_default();
            if !members
                .iter()
                .any(|(node, state)| node == name && state == "down")
            {
                return false;
            }
        }
        true
    }

    /// What each host sees of members and services.
    async fn seen(&self) -> Vec<[Value; 2]> {
        let mut seen = Vec::new();
        for host in &self.hosts {
            let members = host.listing("/v1/members").await.expect("a listing");
            let services = host.listing("/v1/services").await.expect("a listing");
            seen.push([members, services]);
        }
        seen
    }

    /// Waits until every host's metrics hold all that it has read so far: they are brought up to date once a second, so
    /// whatever the first change leaves out is in the second one.
    async fn until_told(&self) {
        for host in &self.hosts {
            for _ in 0..2 {
                let before = datagrams_in(host).await;
                until(PATIENCE, "the metrics go on", || async {
                    match datagrams_in(host).await {
                        now if now == before => Err(now),
                        _ => Ok(()),
                    }
                })
                .await;
            }
        }
    }

    async fn counts(&self) -> Counts {
        let mut counts = Counts {
            read: 0,
            refused: BTreeMap::new(),
            suspicions: 0,
        };
        for host in &self.hosts {
            let text = host.ask("/metrics").await.expect("an answer").text();
            for line in text.lines().filter(|line| !line.starts_with('#')) {
                let (name, number) = line.rsplit_once(' ').unwrap_or_default();
                let number = number.parse::<f64>().unwrap_or(0.0) as u64;
                let reason = name.strip_prefix("starling_gossip_refused_total{reason=\"");
                if let Some(reason) = reason.and_then(|rest| rest.strip_suffix("\"}")) {
                    *counts.refused.entry(reason.to_owned()).or_default() += number;
                } else if name == DATAGRAMS_IN {
                    counts.read += number;
                } else if name == "starling_gossip_suspicions_total"
                    || name == "starling_gossip_renewals_total"
                {
                    counts.suspicions += number;
                }
            }
        }
        counts
    }

    fn memory(&self) -> Vec<u64> {
        let kib = self.hosts.iter().map(|host| host.process.resident_kib());
        kib.collect()
    }

    /// The most that each host holds within this time.
    async fn watch_memory(&self, time: Duration) -> Vec<u64> {
        let until = Instant::now() + time;
        let mut looks = tokio::time::interval(LOOK);
        let mut most = self.memory();
        while Instant::now() < until {
            looks.tick().await;
            for (most, now) in most.iter_mut().zip(self.memory()) {
                *most = now.max(*most);
            }
        }
        most
    }

    /// Processor time taken by the first `victims` since their start.
    fn cpu(&self, victims: usize) -> Duration {
        let ticks = |host: &Sidecar| {
            let path = format!("/proc/{}/stat", host.process.id());
            let stat = fs::read_to_string(path).unwrap_or_default();
            // Behind the name in brackets, user and system time are words 12 and 13, in hundredths of a second.
            let words = stat
                .rsplit(')')
                .next()
                .unwrap_or_default()
                .split_whitespace();
            let times = words.skip(11).take(2);
            times
                .filter_map(|word| word.parse::<u64>().ok())
                .sum::<u64>()
        };
        Duration::from_millis(10 * self.hosts[..victims].iter().map(ticks).sum::<u64>())
    }
}

/// What a host says that it has read.
async fn datagrams_in(host: &Sidecar) -> String {
    let text = host.ask("/metrics").await.expect("an answer").text();
    let mut lines = text.lines();
    let line = lines.find(|line| line.starts_with(DATAGRAMS_IN));
    line.unwrap_or_default().to_owned()
}

fn difference(
    now: &BTreeMap<String, u64>,
    before: &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let grown = now.iter().map(|(reason, count)| {
        let grown = count - before.get(reason).copied().unwrap_or(0);
        (reason.clone(), grown)
    });
    grown.filter(|(_, count)| *count > 0).collect()
}

/// What is seen otherwise, in words. A moment is reckoned from a clock that runs on, so it may be off by a little.
fn differences(before: &[[Value; 2]], after: &[[Value; 2]]) -> Vec<String> {
    let mut told = Vec::new();
    for (number, (before, after)) in before.iter().zip(after).enumerate() {
        for (before, after) in before.iter().zip(after) {
            if !is_alike(before, after) {
                told.push(format!("host-{number} saw {before} and sees {after}"));
            }
        }
    }
    told
}

fn is_alike(before: &Value, after: &Value) -> bool {
    match (before, after) {
        (Value::Array(before), Value::Array(after)) => {
            before.len() == after.len() && before.iter().zip(after).all(|(a, b)| is_alike(a, b))
        }
        (Value::Object(before), Value::Object(after)) => {
            before.len() == after.len()
                && before
                    .iter()
                    .all(|(key, value)| match (key.as_str(), value.as_u64()) {
                        ("since_ms", Some(then)) => {
                            let now = after[key].as_u64().unwrap_or(0);
                            now.abs_diff(then) < 100
                        }
                        _ => after.get(key) == Some(value),
                    })
        }
        _ => before == after,
    }
}

// ---- the attacker ----

/// splitmix64 (Steele, Lea, Flood 2014).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound.max(1) as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.roll() as u8).collect()
    }
}

const KINDS: [&str; 8] = [
    "replayed",
    "truncated",
    "mutated",
    "oversized",
    "spoofed",
    "stranger",
    "clear",
    "noise",
];

/// Hostile datagrams, each with its kind.
fn pool(overheard: &[Vec<u8>], dice: &mut Dice) -> Vec<(usize, Vec<u8>)> {
    let one = |number: usize| {
        let kind = number % KINDS.len();
        let mut bytes = overheard[dice.below(overheard.len())].clone();
        match KINDS[kind] {
            "truncated" => bytes.truncate(dice.below(bytes.len())),
            "mutated" => {
                for _ in 0..=dice.below(4) {
                    let at = dice.below(bytes.len());
                    bytes[at] ^= 1 << dice.below(8);
                }
            }
            "oversized" => {
                let more = DATAGRAM_BYTES_MAX + 1 + dice.below(7_000)
                    - bytes.len().min(DATAGRAM_BYTES_MAX);
                bytes.extend(dice.bytes(more));
            }
            // In a member's name, of its newest start, with a counter to come: the dearest to refuse.
            "spoofed" => {
                bytes.truncate(HEADER_BYTES);
                bytes[27..31].copy_from_slice(&[0, 0, 1, dice.roll() as u8]);
                let length = 20 + dice.below(1_100);
                bytes.extend(dice.bytes(length));
            }
            // In nobody's name, under the right id of the key: a key must be derived to refuse it.
            "stranger" => {
                bytes.truncate(3);
                let length = 100 + dice.below(1_000);
                bytes.extend(dice.bytes(length));
            }
            "clear" => {
                bytes[1..3].fill(0);
            }
            "noise" => {
                let length = dice.below(1_400);
                bytes = dice.bytes(length);
            }
            _ => {}
        }
        (kind, bytes)
    };
    (0..POOL).map(one).collect()
}

struct Attacker {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Attack>,
}

struct Attack {
    sent: BTreeMap<&'static str, u64>,
    /// By target.
    aimed: Vec<u64>,
    answers: u64,
    took: Duration,
}

impl Attacker {
    /// Sends from an address of its own and from a member's, to the targets in turn.
    fn start(
        pool: Vec<(usize, Vec<u8>)>,
        spoofed: IpAddr,
        targets: Vec<SocketAddr>,
        rate: u32,
    ) -> Attacker {
        let sockets = [own_address().into(), spoofed].map(|address| {
            let socket = UdpSocket::bind((address, 0)).expect("a free port");
            (socket.set_read_timeout(Some(BURST))).expect("a span that is not zero");
            socket
        });
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut counts = [0; KINDS.len()];
            let mut aimed = vec![0; targets.len()];
            let began = Instant::now();
            let (mut number, mut answers) = (0usize, 0);
            while !stopped.load(Ordering::Relaxed) {
                // As many as are due by now: a late burst is caught up with.
                let due = (began.elapsed().as_secs_f64() * f64::from(rate)) as usize;
                for number in number..due {
                    let (kind, bytes) = &pool[number % POOL];
                    let target = number / KINDS.len() % targets.len();
                    // Both sockets meet every kind and every target.
                    let socket = &sockets[number / POOL % 2];
                    if socket.send_to(bytes, targets[target]).is_ok() {
                        counts[*kind] += 1;
                        aimed[target] += 1;
                    }
                }
                number = due.max(number);
                answers += sockets.iter().map(heard).sum::<u64>();
            }
            let took = began.elapsed();
            // An answer may be on its way.
            for socket in &sockets {
                (socket.set_read_timeout(Some(AFTERMATH))).expect("a span that is not zero");
            }
            answers += sockets.iter().map(heard).sum::<u64>();
            Attack {
                sent: KINDS.into_iter().zip(counts).collect(),
                aimed,
                answers,
                took,
            }
        });
        Attacker { stop, thread }
    }

    fn stop(self) -> Attack {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic")
    }
}

/// Datagrams that came back, unread until now, and those that come before the socket's patience ends.
fn heard(socket: &UdpSocket) -> u64 {
    let mut room = [0; 2_048];
    let mut count = 0;
    loop {
        match socket.recv_from(&mut room) {
            Ok(_) => count += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return count,
            // A port that refuses is told by the system, not by a sidecar.
            Err(_) => {}
        }
    }
}
