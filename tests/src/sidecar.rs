//! One real `starling agent`: its configuration written, its process started, its admin API read.
//!
//! Not here: several of them (`mesh.rs`) and their network (`netns.rs`).

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use examples::backend::{Backend, Behaviour};
use serde_json::Value;

use crate::{
    PATIENCE, binary,
    http::{Answer, Call},
    process::Process,
    scratch::Scratch,
    until::until,
};

static NEXT_ADDRESS: AtomicU32 = AtomicU32::new(0);

/// A loopback address that no other test of this machine's present has: ports on it need no luck.
///
/// Taken from 127.64.0.0 upwards by process id and counter, 64 for each process.
pub fn own_address() -> Ipv4Addr {
    let number = NEXT_ADDRESS.fetch_add(1, Ordering::Relaxed);
    assert!(number < 250, "a test binary has at most 250 hosts");
    let process = std::process::id() % (1 << 14);
    // 6 bits of 64..127, 8 bits of the third byte; the counter is the last.
    Ipv4Addr::new(
        127,
        64 + (process >> 8) as u8,
        process as u8,
        1 + number as u8,
    )
}

/// What one host's configuration says.
#[derive(Clone, Debug)]
pub struct Setup {
    /// `node.id`.
    pub name: String,
    /// `node.zone`.
    pub zone: String,
    /// `node.advertise` and every bind of its own.
    pub address: IpAddr,
    /// Where admin and outbound are bound; the same as `address` unless the host has a network of its own.
    pub local: IpAddr,
    /// `gossip.join`.
    pub join: Vec<String>,
    /// More lines for `[gossip]`, such as a key.
    pub gossip: String,
    /// More lines for `[node]`.
    pub node: String,
    /// More lines for `[outbound]`.
    pub outbound: String,
    /// Tables that follow: services, upstreams.
    pub tables: String,
    /// The namespace its process lives in, if any.
    pub namespace: Option<String>,
    /// What follows `starling` instead of `agent`; `--config FILE` is put behind the first word.
    pub command: Vec<String>,
}

impl Setup {
    /// A host on a loopback address of its own.
    pub fn new(name: &str, zone: &str) -> Setup {
        let address = IpAddr::V4(own_address());
        Setup {
            name: name.into(),
            zone: zone.into(),
            address,
            local: address,
            join: Vec::new(),
            gossip: String::new(),
            node: String::new(),
            outbound: String::new(),
            tables: String::new(),
            namespace: None,
            command: vec!["agent".into()],
        }
    }

    /// The same, joining the host of another setup.
    pub fn joining(mut self, other: &Setup) -> Setup {
        self.join.push(format!("{}:7946", other.address));
        self
    }

    /// The same with more tables.
    pub fn with(mut self, tables: &str) -> Setup {
        self.tables.push_str(tables);
        self.tables.push('\n');
        self
    }

    /// The same offering an HTTP instance at `port` of its own address, checked by `/healthz`.
    pub fn offering(self, service: &str, port: u16) -> Setup {
        self.with(&format!(
            "[service.{service}]\nport = {port}\ncapacity = \"2000/s\"\ncheck = {{ http = \"/healthz\", interval = \"250ms\", timeout = \"2s\" }}\n"
        ))
    }

    fn text(&self, socket: &std::path::Path) -> String {
        let Setup {
            name,
            zone,
            address,
            local,
            node,
            gossip,
            outbound,
            tables,
            ..
        } = self;
        let join: Vec<String> = self.join.iter().map(|seed| format!("\"{seed}\"")).collect();
        let join = join.join(", ");
        let socket = socket.display();
        let own_drain = if tables.contains("[drain]") {
            ""
        } else {
            "[drain]\ngrace = \"1s\"\ntimeout = \"10s\"\n"
        };
        format!(
            "[node]\nid = \"{name}\"\nzone = \"{zone}\"\nadvertise = \"{address}\"\nworkers = 1\n{node}\n\
             [gossip]\nbind = \"{address}:7946\"\njoin = [{join}]\n{gossip}\n\
             [admin]\nbind = \"{local}:7070\"\nsocket = \"{socket}\"\n\
             [outbound]\nhttp = \"{local}:7080\"\n{outbound}\n{own_drain}{tables}"
        )
    }
}

/// A running sidecar; killed when dropped.
#[derive(Debug)]
pub struct Sidecar {
    /// What it was started with.
    pub setup: Setup,
    /// Its process.
    pub process: Process,
    scratch: Scratch,
}

impl Sidecar {
    /// Writes the configuration and starts the process; does not wait until it is ready.
    pub fn start(setup: Setup) -> Sidecar {
        let scratch = Scratch::new();
        Sidecar::start_in(setup, scratch)
    }

    fn start_in(setup: Setup, scratch: Scratch) -> Sidecar {
        let file = scratch.write(
            "starling.toml",
            &setup.text(&scratch.path().join("admin.sock")),
        );
        let mut command = match &setup.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]);
                command.arg(binary::starling());
                command
            }
            None => Command::new(binary::starling()),
        };
        let (first, more) = setup.command.split_first().expect("a command has a name");
        command.arg(first).arg("--config").arg(file).args(more);
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "info");
        }
        let log = scratch.path().join("log");
        let process = Process::start(&format!("sidecar {}", setup.name), command, &log);
        Sidecar {
            setup,
            process,
            scratch,
        }
    }

    /// Starts it and waits until it says that it is ready.
    pub async fn ready(setup: Setup) -> Sidecar {
        let mut sidecar = Sidecar::start(setup);
        sidecar.until_ready().await;
        sidecar
    }

    /// Waits until `/ready` answers 200.
    pub async fn until_ready(&mut self) {
        let what = format!("{} is ready", self.setup.name);
        until(PATIENCE, &what, async || {
            if let Some(status) = self.process.ended() {
                panic!(
                    "{} ended at once with {status}:\n{}",
                    self.setup.name,
                    self.process.log()
                );
            }
            match self.ask("/ready").await {
                Ok(answer) if answer.status == 200 => Ok(()),
                said => Err(format!("{said:?}")),
            }
        })
        .await;
    }

    /// Kills it with -9 and starts it anew with the same configuration and directory.
    pub async fn restart(self) -> Sidecar {
        let Sidecar {
            setup,
            mut process,
            scratch,
        } = self;
        process.kill();
        drop(process);
        let mut sidecar = Sidecar::start_in(setup, scratch);
        sidecar.until_ready().await;
        sidecar
    }

    /// Replaces the configuration file's tables; the sidecar is not told.
    pub fn rewrite(&mut self, tables: &str) {
        self.setup.tables = tables.into();
        let text = self.setup.text(&self.socket());
        self.scratch.write("starling.toml", &text);
    }

    /// Replaces the configuration file by any text; the sidecar is not told.
    pub fn rewrite_file(&self, text: &str) {
        self.scratch.write("starling.toml", text);
    }

    /// Its admin socket.
    pub fn socket(&self) -> PathBuf {
        self.scratch.path().join("admin.sock")
    }

    /// Its port for calls by name.
    pub fn outbound(&self) -> SocketAddr {
        SocketAddr::new(self.setup.local, 7080)
    }

    /// Its admin port.
    pub fn admin(&self) -> SocketAddr {
        SocketAddr::new(self.setup.local, 7070)
    }

    /// Its gossip port.
    pub fn gossip(&self) -> SocketAddr {
        SocketAddr::new(self.setup.address, 7946)
    }

    /// Some other port of its host.
    pub fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.setup.local, port)
    }

    /// A backend on its host, started in this process.
    pub async fn backend(&self, port: u16, name: &str) -> Backend {
        backend_at(&self.setup, port, name).await
    }

    /// Calls a service by name through it.
    pub async fn get(&self, authority: &str, path: &str) -> Result<Answer, String> {
        Call::get(authority, path).to(self.outbound()).await
    }

    /// `GET` on the admin API: by its port, or by its socket where the port is in another network.
    pub async fn ask(&self, path: &str) -> Result<Answer, String> {
        let call = Call::get("localhost", path);
        match self.setup.namespace {
            Some(_) => call.to_socket(&self.socket()).await,
            None => call.to(self.admin()).await,
        }
    }

    /// `POST` on the admin API's socket.
    pub async fn order(&self, path: &str, body: &str) -> Result<Answer, String> {
        Call::get("localhost", path)
            .with_body(http::Method::POST, body.to_owned())
            .header("content-type", "application/json")
            .to_socket(&self.socket())
            .await
    }

    /// One listing of the admin API. Errors when it cannot be had or is not JSON.
    pub async fn listing(&self, path: &str) -> Result<Value, String> {
        let answer = self.ask(path).await?;
        if answer.status != 200 {
            return Err(format!("{path}: {} {}", answer.status, answer.text()));
        }
        serde_json::from_slice(&answer.body).map_err(|error| format!("{path}: {error}"))
    }

    /// Whom it sees, as (node, state).
    pub async fn members(&self) -> Result<Vec<(String, String)>, String> {
        let listing = self.listing("/v1/members").await?;
        Ok(rows(&listing)
            .iter()
            .map(|row| (word(row, "node"), word(row, "state")))
            .collect())
    }

    /// Waits until it sees `node` in `state`.
    pub async fn until_member(&self, node: &str, state: &str, within: Duration) {
        let what = format!("{} sees {node} {state}", self.setup.name);
        until(within, &what, || async {
            let members = self.members().await?;
            let found = members.iter().any(|(n, s)| n == node && s == state);
            if found {
                Ok(())
            } else {
                Err(format!("{members:?}"))
            }
        })
        .await;
    }

    /// Waits until exactly `count` endpoints of `service` are usable here.
    pub async fn until_usable(&self, service: &str, count: usize, within: Duration) {
        let what = format!("{} can use {count} of {service}", self.setup.name);
        until(within, &what, || async {
            let rows = self.endpoints(service).await?;
            let usable = rows.iter().filter(|row| row.usable).count();
            if usable == count {
                Ok(())
            } else {
                Err(format!("{rows:?}"))
            }
        })
        .await;
    }

    /// The endpoints of a service as this host sees them.
    pub async fn endpoints(&self, service: &str) -> Result<Vec<Endpoint>, String> {
        let listing = self.listing(&format!("/v1/endpoints/{service}")).await?;
        Ok(rows(&listing).iter().map(Endpoint::of).collect())
    }

    /// The sum of a metric's series on `/metrics` whose line contains `needle`; 0 when there is none.
    pub async fn metric(&self, needle: &str) -> f64 {
        let text = self.ask("/metrics").await.map(|answer| answer.text());
        text.unwrap_or_default()
            .lines()
            .filter(|line| !line.starts_with('#') && line.contains(needle))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Until `more` requests have been answered from now on: a load is under way.
    pub async fn until_served(&self, more: u32) {
        let before = self.metric("starling_requests_total").await;
        until(PATIENCE, "the load is under way", || async {
            let served = self.metric("starling_requests_total").await - before;
            if served >= f64::from(more) {
                return Ok(());
            }
            Err(format!("{served} of {more} requests answered"))
        })
        .await;
    }

    /// Until some request to `service` has stayed in flight for five looks in a row: a slow one is under way.
    pub async fn until_busy(&self, service: &str) {
        let looks = std::cell::Cell::new(0);
        until(PATIENCE, "a slow request is under way", || async {
            let rows = self.listing(&format!("/v1/endpoints/{service}")).await?;
            let rows = rows.as_array().into_iter().flatten();
            let in_flight: u64 = rows.filter_map(|row| row["in_flight"].as_u64()).sum();
            looks.set(if in_flight > 0 { looks.get() + 1 } else { 0 });
            if looks.get() >= 5 {
                return Ok(());
            }
            Err(format!("{in_flight} requests in flight"))
        })
        .await;
    }
}

/// A backend on the host of a setup, telling its zone.
pub async fn backend_at(setup: &Setup, port: u16, name: &str) -> Backend {
    let address = SocketAddr::new(setup.address, port);
    Backend::start(address, Behaviour::well(name, &setup.zone))
        .await
        .unwrap_or_else(|error| panic!("no backend at {address}: {error}"))
}

/// One row of `/v1/endpoints/{service}`.
#[derive(Clone, PartialEq, Debug)]
pub struct Endpoint {
    /// The instance's name.
    pub instance: String,
    /// Where it is called.
    pub address: String,
    /// Its zone.
    pub zone: String,
    /// May be chosen now.
    pub usable: bool,
    /// Why, or why not.
    pub why: String,
}

impl Endpoint {
    fn of(row: &Value) -> Endpoint {
        Endpoint {
            instance: word(row, "instance"),
            address: word(row, "address"),
            zone: word(row, "zone"),
            usable: row["usable"].as_bool().unwrap_or(false),
            why: word(row, "why"),
        }
    }
}

fn rows(listing: &Value) -> &[Value] {
    listing.as_array().map_or(&[], Vec::as_slice)
}

fn word(row: &Value, key: &str) -> String {
    row[key].as_str().unwrap_or_default().to_owned()
}
