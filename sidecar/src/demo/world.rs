//! The demo's hosts: real sidecars and backends as child processes, in three zones of this machine.
//!
//! Each backend has a sidecar of its own beside it, as a host would; the client's sidecar is one more
//! host in the first zone, without a backend. Children end when this process does, however it ends:
//! they watch the pipe on their standard input. Not here: load (`load.rs`) and claims (`script.rs`).

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::Deserialize;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::Instant,
};

use super::{BACKENDS_PER_ZONE, SERVICE, ZONE_NAMES, ZONES, ask};
use crate::cli::{Exit, Failure};

/// Hosts in the mesh: every backend's, and the client's.
pub const MEMBERS: usize = ZONES * BACKENDS_PER_ZONE + 1;
/// Instances on offer when all is well.
pub const ENDPOINTS: usize = ZONES * BACKENDS_PER_ZONE;

/// Requests per second that a backend declares to take: more than the load, so that its zone keeps its own calls.
const CAPACITY: u32 = 20_000;

/// Between two looks at the sidecars.
pub const LOOK: Duration = Duration::from_millis(50);

/// How long a backend may take to say where it listens.
const BACKEND_START_MAX: Duration = Duration::from_secs(10);
/// Tries to find one port number that is free for UDP and TCP.
const PORT_TRIES_MAX: usize = 64;

/// All processes of the demo. Dropping it kills them and removes their directory.
#[derive(Debug)]
pub struct World {
    /// By zone.
    zones: Vec<Vec<Host>>,
    client: Host,
    /// Last, as it is removed after the processes that use it were killed.
    dir: Directory,
}

/// One host: a sidecar, and for most a backend beside it.
#[derive(Debug)]
struct Host {
    name: String,
    zone: usize,
    ports: Ports,
    /// `None`: killed.
    sidecar: Option<Child>,
    /// `None`: killed, or it has none.
    backend: Option<Child>,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    gossip: SocketAddr,
    admin: SocketAddr,
    outbound: SocketAddr,
}

/// One row of `/v1/members`.
#[derive(Deserialize, Debug)]
pub struct Member {
    /// The node's configured name.
    pub node: String,
    /// `alive`, `suspect`, `down` or `left`.
    pub state: String,
}

/// One row of `/v1/endpoints/{service}`.
#[derive(Deserialize, Debug)]
pub struct Endpoint {
    /// The instance's name.
    pub instance: String,
    /// Its zone.
    pub zone: String,
    /// Whether it may be called now.
    pub usable: bool,
    /// Why not.
    #[serde(default)]
    pub why: Option<String>,
}

impl World {
    /// Starts all backends and all sidecars; they have not met yet when it returns.
    ///
    /// # Errors
    /// What could not be started, and why.
    pub async fn start() -> Result<World, Failure> {
        let dir = Directory::new().map_err(|e| failed("a directory for the demo", &e))?;
        let mut taken = Vec::new();
        let mut host = |name: String, zone: usize| {
            let ports = Ports::free(address_of(zone), &mut taken);
            ports.map(|ports| Host {
                name,
                zone,
                ports,
                sidecar: None,
                backend: None,
            })
        };
        let mut zones = Vec::new();
        for (zone, letter) in ZONE_NAMES.iter().enumerate() {
            let names = (1..=BACKENDS_PER_ZONE).map(|n| format!("{letter}-{n}"));
            let hosts: io::Result<Vec<Host>> = names.map(|name| host(name, zone)).collect();
            zones.push(hosts.map_err(|e| failed("free ports", &e))?);
        }
        let client = host("client".to_owned(), 0).map_err(|e| failed("free ports", &e))?;
        // Until here they were held, so that none was given twice.
        drop(taken);
        let mut world = World { zones, client, dir };
        let seeds = world.seeds();
        for zone in 0..ZONES {
            world.revive(zone).await?;
        }
        world.client.start_sidecar(&world.dir.path, &seeds, None)?;
        Ok(world)
    }

    /// Leaves configurations and logs where they are; gives their directory.
    pub fn keep(&mut self) -> PathBuf {
        self.dir.kept = true;
        self.dir.path.clone()
    }

    /// Where the client calls the mesh.
    pub fn outbound(&self) -> SocketAddr {
        self.client.ports.outbound
    }

    /// The admin API of the client's sidecar.
    pub fn client_admin(&self) -> SocketAddr {
        self.client.ports.admin
    }

    /// Whether the processes of a zone are there (the client's aside).
    pub fn is_alive(&self, zone: usize) -> bool {
        self.zones[zone].iter().all(|host| host.sidecar.is_some())
    }

    /// Kills every backend and every backend's sidecar of a zone: SIGKILL, no goodbye.
    ///
    /// Gives the moment before the first of them was killed.
    pub async fn kill(&mut self, zone: usize) -> Instant {
        let before = Instant::now();
        let mut killed = Vec::new();
        for host in &mut self.zones[zone] {
            for mut child in [host.backend.take(), host.sidecar.take()]
                .into_iter()
                .flatten()
            {
                // An error says that it had ended already.
                let _ = child.start_kill();
                killed.push(child);
            }
        }
        for mut child in killed {
            let _ = child.wait().await;
        }
        before
    }

    /// Starts what [`World::kill`] killed anew, on the hosts' old names and addresses.
    ///
    /// # Errors
    /// What could not be started, and why.
    pub async fn revive(&mut self, zone: usize) -> Result<(), Failure> {
        let seeds = self.seeds();
        for host in &mut self.zones[zone] {
            if host.sidecar.is_none() {
                let application = host.start_backend(&self.dir.path).await?;
                host.start_sidecar(&self.dir.path, &seeds, Some(application))?;
            }
        }
        Ok(())
    }

    /// Waits until the mesh is whole; false if it is not within `limit`.
    ///
    /// # Errors
    /// A sidecar of the demo ended by itself: its last words.
    pub async fn until_whole(&mut self, limit: Duration) -> Result<bool, Failure> {
        let give_up = Instant::now() + limit;
        while Instant::now() < give_up {
            if self.is_whole().await? {
                return Ok(true);
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(false)
    }

    /// Whether every living sidecar sees all living ones alive and may use all their instances.
    async fn is_whole(&mut self) -> Result<bool, Failure> {
        self.none_ended()?;
        let alive = (0..ZONES).filter(|zone| self.is_alive(*zone)).count();
        let endpoints = alive * BACKENDS_PER_ZONE;
        for admin in self.admins() {
            let members: Result<Vec<Member>, _> = ask::json(admin, "/v1/members").await;
            let usable: Result<Vec<Endpoint>, _> =
                ask::json(admin, &format!("/v1/endpoints/{SERVICE}")).await;
            let (Ok(members), Ok(usable)) = (members, usable) else {
                return Ok(false);
            };
            if count(&members, |m| m.state == "alive") != endpoints + 1
                || count(&usable, |e| e.usable) != endpoints
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether every living sidecar sees every backend host of a zone as down.
    pub async fn is_seen_down(&self, zone: usize) -> bool {
        let hosts: Vec<&str> = self.zones[zone].iter().map(|host| &*host.name).collect();
        for admin in self.admins() {
            let members: Result<Vec<Member>, _> = ask::json(admin, "/v1/members").await;
            let Ok(members) = members else {
                return false;
            };
            let seen = |host: &&str| {
                let mut of_host = members.iter().filter(|member| member.node == **host);
                // Forgotten is gone as well; alive under any identity is not.
                of_host.all(|member| member.state == "down")
            };
            if !hosts.iter().all(seen) {
                return false;
            }
        }
        true
    }

    /// The last lines of a host's sidecar log.
    fn last_words(&self, name: &str) -> String {
        let log = std::fs::read(self.dir.path.join(format!("{name}.log"))).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let mut lines: Vec<&str> = log.lines().rev().take(5).collect();
        lines.reverse();
        lines.join("\n  ")
    }

    fn none_ended(&mut self) -> Result<(), Failure> {
        let mut ended = None;
        for host in self.zones.iter_mut().flatten().chain([&mut self.client]) {
            for child in [&mut host.sidecar, &mut host.backend].into_iter().flatten() {
                if let Ok(Some(status)) = child.try_wait() {
                    ended = Some((host.name.clone(), status));
                }
            }
        }
        ended.map_or(Ok(()), |(name, status)| {
            let words = self.last_words(&name);
            let message = format!("a process of demo host {name} ended by itself ({status})");
            Err(Failure::new(Exit::Failed, message, words))
        })
    }

    fn admins(&self) -> Vec<SocketAddr> {
        let hosts = self.zones.iter().flatten().chain([&self.client]);
        let living = hosts.filter(|host| host.sidecar.is_some());
        living.map(|host| host.ports.admin).collect()
    }

    /// One host of each zone: whoever joins finds the others through any of them.
    fn seeds(&self) -> Vec<SocketAddr> {
        let first = self.zones.iter().filter_map(|hosts| hosts.first());
        first.map(|host| host.ports.gossip).collect()
    }
}

impl Host {
    /// Starts the backend and gives the address it listens on.
    async fn start_backend(&mut self, dir: &Path) -> Result<SocketAddr, Failure> {
        let what = format!("demo backend {}", self.name);
        let listen = SocketAddr::new(self.ports.gossip.ip(), 0).to_string();
        let mut command = child(dir, &self.name).map_err(|e| failed(&what, &e))?;
        command.args(["demo-backend", "--listen", &listen, "--name", &self.name]);
        command
            .args(["--zone", ZONE_NAMES[self.zone]])
            .stdout(Stdio::piped());
        let mut backend = command.spawn().map_err(|e| failed(&what, &e))?;
        let mut line = String::new();
        if let Some(stdout) = backend.stdout.take() {
            let mut stdout = BufReader::new(stdout);
            let said = tokio::time::timeout(BACKEND_START_MAX, stdout.read_line(&mut line)).await;
            said.map_err(io::Error::from)
                .flatten()
                .map_err(|e| failed(&what, &e))?;
        }
        self.backend = Some(backend);
        let address = line.trim().parse();
        address.map_err(|_| failed(&what, &format!("said {line:?} instead of its address")))
    }

    fn start_sidecar(
        &mut self,
        dir: &Path,
        seeds: &[SocketAddr],
        application: Option<SocketAddr>,
    ) -> Result<(), Failure> {
        let what = format!("demo sidecar {}", self.name);
        let file = dir.join(format!("{}.toml", self.name));
        std::fs::write(&file, self.configuration(dir, seeds, application))
            .map_err(|e| failed(&what, &e))?;
        let mut command = child(dir, &self.name).map_err(|e| failed(&what, &e))?;
        command
            .arg("agent")
            .arg("--config")
            .arg(&file)
            .arg("--exit-with-parent");
        self.sidecar = Some(command.spawn().map_err(|e| failed(&what, &e))?);
        Ok(())
    }

    fn configuration(
        &self,
        dir: &Path,
        seeds: &[SocketAddr],
        application: Option<SocketAddr>,
    ) -> String {
        let Ports {
            gossip,
            admin,
            outbound,
        } = self.ports;
        let join: Vec<String> = seeds
            .iter()
            .filter(|seed| **seed != gossip)
            .map(|seed| format!("\"{seed}\""))
            .collect();
        let service = application.map_or(String::new(), |address| {
            format!(
                "[service.{SERVICE}]\naddress = \"{address}\"\ninstance = \"{name}\"\n\
                 capacity = \"{CAPACITY}/s\"\n\
                 check = {{ http = \"/healthz\", interval = \"500ms\" }}\n",
                name = self.name
            )
        });
        format!(
            "[node]\nid = \"{name}\"\nzone = \"{zone}\"\nregion = \"demo\"\nadvertise = \"{ip}\"\n\
             state_dir = \"{state}\"\nworkers = 1\n\n\
             [gossip]\nbind = \"{gossip}\"\njoin = [{join}]\ncluster = \"{cluster}\"\n\n\
             [admin]\nbind = \"{admin}\"\n\n[outbound]\nhttp = \"{outbound}\"\n\n{service}",
            name = self.name,
            zone = ZONE_NAMES[self.zone],
            ip = gossip.ip(),
            state = dir.join(&self.name).display(),
            join = join.join(", "),
            // Its own name, so that two demos on one machine never merge.
            cluster = dir.file_name().unwrap_or_default().to_string_lossy(),
        )
    }
}

/// A child that is this very binary, ends with this process, and logs into the demo's directory.
fn child(dir: &Path, name: &str) -> io::Result<Command> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join(format!("{name}.log")))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        // A group of its own: Ctrl-C at the terminal is for the demo, which then tidies up.
        .process_group(0);
    Ok(command)
}

impl Ports {
    /// Three ports free right now; the sockets that prove it are put into `held`.
    fn free(ip: IpAddr, held: &mut Vec<(TcpListener, Option<UdpSocket>)>) -> io::Result<Ports> {
        let (gossip, sockets) = (0..PORT_TRIES_MAX)
            .find_map(|_| both(ip).transpose())
            .unwrap_or_else(|| Err(io::Error::other("no port is free for UDP and TCP")))?;
        held.push((sockets.0, Some(sockets.1)));
        let mut tcp = || {
            let listener = TcpListener::bind((ip, 0))?;
            let address = listener.local_addr()?;
            held.push((listener, None));
            io::Result::Ok(address)
        };
        Ok(Ports {
            gossip,
            admin: tcp()?,
            outbound: tcp()?,
        })
    }
}

/// A port of TCP whose number is free for UDP, too; `None` if that number was not.
fn both(ip: IpAddr) -> io::Result<Option<(SocketAddr, (TcpListener, UdpSocket))>> {
    let tcp = TcpListener::bind((ip, 0))?;
    let address = tcp.local_addr()?;
    match UdpSocket::bind(address) {
        Ok(udp) => Ok(Some((address, (tcp, udp)))),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error),
    }
}

/// An address of its own for each zone where the machine has all of 127.0.0.0/8, else one for all.
fn address_of(zone: usize) -> IpAddr {
    let own = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11 + zone as u8));
    match TcpListener::bind((own, 0)) {
        Ok(_) => own,
        Err(_) => Ipv4Addr::LOCALHOST.into(),
    }
}

fn count<T>(items: &[T], which: impl Fn(&T) -> bool) -> usize {
    items.iter().filter(|item| which(item)).count()
}

fn failed(what: &str, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, format!("{what}: {why}"), "")
}

/// The demo's own directory, removed when dropped unless it is kept.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    kept: bool,
}

impl Directory {
    fn new() -> io::Result<Directory> {
        let name = format!("starling-demo-{:016x}", rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        Ok(Directory { path, kept: false })
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Left behind it harms nobody, and there is nobody to tell at this point.
        if !self.kept {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
