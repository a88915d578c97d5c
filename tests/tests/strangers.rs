//! Programs nobody here wrote, on hosts with networks of their own: nginx and Python's server behind sidecars,
//! curl, requests and h2load in front of them, `kill -9`, and a partition that heals.
//!
//! Not here: Redis (`tcp.rs`) and hosts that are only addresses (all other stories). Needs root.

use std::{net::IpAddr, process::Command, time::Duration};

use mesh_tests::{
    PATIENCE, binary,
    netns::{self, Network},
    process::{Process, children_of, installed, python_with, signal_to},
    scratch::Scratch,
    sidecar::{Setup, Sidecar},
    skipped,
    until::until,
};
use serde_json::Value;

const KEY: &str = "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a";
const CHECKED: &str =
    "check = { http = \"/index.html\", interval = \"500ms\", timeout = \"2s\" }\n";
/// Everybody knows everything again this long after a partition healed.
const WHOLE_AGAIN_WITHIN: Duration = Duration::from_secs(15);

/// Two zones, in each a host with nginx (service `web`) and one with Python's server (service `files`).
struct World {
    network: Network,
    /// `web-a`, `files-a`, `web-b`, `files-b`.
    sidecars: Vec<Sidecar>,
    servers: Vec<Process>,
    scratch: Scratch,
}

impl World {
    async fn start(story: &str, tables: &str) -> Option<World> {
        for program in ["nginx", "python3", "curl"] {
            if !installed(program) {
                skipped(story, &format!("{program} is not installed"));
                return None;
            }
        }
        let mut network = match Network::new() {
            Ok(network) => network,
            Err(why) => {
                skipped(story, &why);
                return None;
            }
        };
        let scratch = Scratch::new();
        let mut setups: Vec<Setup> = Vec::new();
        for (name, zone) in [
            ("web-a", "eu-1a"),
            ("files-a", "eu-1a"),
            ("web-b", "eu-1b"),
            ("files-b", "eu-1b"),
        ] {
            let service = name.split('-').next().unwrap_or_default();
            let setup = network
                .setup(name, zone, KEY)
                .expect("more namespaces can be made");
            let setup = setup.with(&format!(
                "[service.{service}]\nport = 80\ncapacity = \"5000/s\"\n{CHECKED}{tables}"
            ));
            let setup = match setups.first() {
                Some(first) => setup.joining(first),
                None => setup,
            };
            setups.push(setup);
        }
        let servers = setups.iter().map(|setup| server(setup, &scratch)).collect();
        let mut sidecars: Vec<Sidecar> = setups.into_iter().map(Sidecar::start).collect();
        for sidecar in &mut sidecars {
            sidecar.until_ready().await;
        }
        let world = World {
            network,
            sidecars,
            servers,
            scratch,
        };
        world.until_whole(PATIENCE).await;
        Some(world)
    }

    /// Everyone sees everyone alive, and both instances of both services usable.
    async fn until_whole(&self, within: Duration) {
        until(within, "everybody is whole", || async {
            for (host, sidecar) in self.sidecars.iter().enumerate() {
                let members = sidecar.members().await?;
                let alive = members.iter().filter(|(_, state)| state == "alive").count();
                if alive != 4 {
                    return Err(format!("{}: {members:?}", sidecar.setup.name));
                }
                for service in ["web", "files"] {
                    let rows = sidecar.endpoints(service).await?;
                    if rows.iter().filter(|row| row.usable).count() != 2 {
                        // One sent out comes back by a real request that goes well, so there must be one.
                        let url = format!("http://{service}.localhost:7080/index.html");
                        self.on(host, &["curl", "-sS", "-f", &url])?;
                        return Err(format!("{}: {rows:?}", sidecar.setup.name));
                    }
                }
            }
            Ok(())
        })
        .await;
    }

    fn namespace(&self, host: usize) -> &str {
        self.sidecars[host]
            .setup
            .namespace
            .as_deref()
            .unwrap_or_default()
    }

    /// Runs a program on a host.
    fn on(&self, host: usize, words: &[&str]) -> Result<String, String> {
        netns::inside(self.namespace(host), words)
    }

    /// Starts the open-loop caller on a host: `rate` GETs a second by name.
    fn load(&self, host: usize, service: &str, rate: u32, seconds: u32) -> Load {
        let program = binary::caller().display().to_string();
        let mut command = netns::command(self.namespace(host), &program);
        command.args(["--to", "127.0.0.1:7080", "--authority", service]);
        command.args(["--path", "/index.html", "--zone-header", "x-host"]);
        command.args([
            "--rate",
            &rate.to_string(),
            "--seconds",
            &seconds.to_string(),
        ]);
        let log = self.scratch.path().join(format!("caller-{host}"));
        Load(Process::start("caller", command, &log))
    }
}

/// A running caller.
struct Load(Process);

impl Load {
    async fn figures(mut self) -> Value {
        self.0.end(Duration::from_secs(60)).await;
        serde_json::from_str(self.0.log().trim()).unwrap_or_else(|_| panic!("{}", self.0.log()))
    }
}

/// The stranger of one host: nginx, or Python's server.
fn server(setup: &Setup, scratch: &Scratch) -> Process {
    let root = scratch.path().join(&setup.name);
    std::fs::create_dir_all(&root).expect("a scratch directory can be written");
    std::fs::write(root.join("index.html"), format!("{}\n", setup.name)).expect("written");
    let namespace = setup.namespace.as_deref().unwrap_or_default();
    let log = scratch.path().join(format!("{}.log", setup.name));
    let command = if setup.name.starts_with("web") {
        let file = scratch.write(
            &format!("{}.conf", setup.name),
            &nginx_configuration(setup, &root),
        );
        let mut command = netns::command(namespace, "nginx");
        command.arg("-c").arg(file).arg("-p").arg(&root);
        command
    } else {
        let mut command = netns::command(namespace, "python3");
        command
            .args(["-m", "http.server", "80", "--directory"])
            .arg(&root);
        command
    };
    Process::start(&setup.name, command, &log)
}

fn nginx_configuration(setup: &Setup, root: &std::path::Path) -> String {
    let (name, root) = (&setup.name, root.display());
    format!(
        "daemon off; worker_processes 2; pid {root}/pid; error_log stderr; user root;
         events {{ worker_connections 512; }}
         http {{ access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p;
           fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;
           server {{ listen 80; root {root}; add_header x-host {name} always; }} }}"
    )
}

/// Master and workers, at once and without a word.
fn kill_nginx(process: &mut Process) {
    let workers = children_of(process.id());
    assert!(!workers.is_empty(), "nginx has workers");
    signal_to(process.id(), "KILL");
    for worker in workers {
        signal_to(worker, "KILL");
    }
    process.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_call_strangers_by_name_and_a_killed_nginx_costs_no_get() {
    let story = "nginx, http.server, curl, requests and h2load through sidecars";
    let Some(mut world) = World::start(story, "").await else {
        return;
    };
    curl(&world).await;
    requests(&world);
    h2load(&world);

    // The own zone's nginx dies in mid-load, the load comes from both hosts of its zone.
    let loads = [
        world.load(0, "web.mesh", 150, 5),
        world.load(1, "web.mesh", 150, 5),
    ];
    until(PATIENCE, "the load reaches the near nginx", || async {
        match world.sidecars[0].metric("starling_requests_total").await {
            count if count > 50.0 => Ok(()),
            count => Err(format!("{count} requests")),
        }
    })
    .await;
    world.sidecars[0].until_served(100).await;
    kill_nginx(&mut world.servers[0]);
    for load in loads {
        let figures = load.figures().await;
        assert_eq!(figures["failed"], 0, "{figures}");
        assert_eq!(figures["ok"], 750, "{figures}");
        let far = figures["zone_share"]["web-b"].as_f64().unwrap_or(0.0);
        assert!(far > 0.3, "{figures}");
    }
    let setup = world.sidecars[0].setup.clone();
    world.servers[0] = server(&setup, &world.scratch);
    world.until_whole(PATIENCE).await;
}

async fn curl(world: &World) {
    for host in 0..4 {
        for service in ["web", "files"] {
            // curl takes every name under .localhost to the loopback address, as RFC 6761 asks.
            let url = format!("http://{service}.localhost:7080/index.html");
            let zone = world.sidecars[host].setup.zone.trim_start_matches("eu-1");
            let near = format!("{service}-{zone}\n");
            // A host that met the other zone's instance first gives its own zone the share back by a ramp.
            until(
                PATIENCE * 2,
                "the own zone has all of the calls",
                || async {
                    for version in ["--http1.1", "--http2-prior-knowledge"].repeat(5) {
                        let said = world.on(host, &["curl", "-sS", "-f", version, &url]);
                        let said = said.unwrap_or_else(|why| panic!("{why}"));
                        if said != near {
                            return Err(format!("host {host} heard {said:?}"));
                        }
                    }
                    Ok(())
                },
            )
            .await;
        }
    }
    let proxied = [
        "curl",
        "-sS",
        "-f",
        "-x",
        "http://127.0.0.1:7080",
        "http://web.mesh/index.html",
    ];
    assert_eq!(world.on(1, &proxied), Ok("web-a\n".into()));
}

fn requests(world: &World) {
    let Some(python) = python_with("requests") else {
        return skipped(
            "Python requests",
            "the module is not installed and pip could not get it",
        );
    };
    let script = r#"
import requests
session = requests.Session()
session.proxies = {"http": "http://127.0.0.1:7080"}
for service in ("web", "files") * 25:
    answer = session.get(f"http://{service}.mesh/index.html", timeout=10)
    answer.raise_for_status()
    assert answer.text.startswith(service), answer.text
missing = session.get("http://web.mesh/nothing-here", timeout=10)
assert missing.status_code == 404, missing.status_code
late = session.get("http://127.0.0.1:7080/index.html", headers={"Host": "web.mesh"}, timeout=10, proxies={"http": ""})
assert late.ok, late.status_code
print("fine")
"#;
    let file = world.scratch.write("call.py", script);
    let said = run_python_in(world.namespace(0), &python, &file.display().to_string());
    assert_eq!(said, Ok("fine\n".into()));
}

fn run_python_in(namespace: &str, python: &Command, script: &str) -> Result<String, String> {
    let mut words = vec!["env".to_owned()];
    for (name, value) in python.get_envs() {
        let value = value.unwrap_or_default().display();
        words.push(format!("{}={value}", name.display()));
    }
    words.push(python.get_program().display().to_string());
    words.push(script.into());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    netns::inside(namespace, &words)
}

fn h2load(world: &World) {
    if !installed("h2load") {
        return skipped("h2load", "it is not installed (Debian: nghttp2-client)");
    }
    for more in [&["-m", "10"][..], &["--h1"][..]] {
        let mut words = vec![
            "h2load",
            "-n",
            "2000",
            "-c",
            "8",
            "--connect-to=127.0.0.1:7080",
        ];
        words.extend(more);
        words.push("http://web.mesh:7080/index.html");
        let said = world.on(0, &words).unwrap_or_else(|why| panic!("{why}"));
        assert!(
            said.contains("2000 succeeded, 0 failed, 0 errored"),
            "{said}"
        );
        assert!(said.contains("2000 2xx"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_between_two_zones_heals_within_15_seconds() {
    // While a zone's share still comes back by its ramp, a request may be at the far side when the cut comes: it is
    // freed by the time of one try.
    let tables = "[upstream.web]\nretry = { retries = 1, per_try_timeout = \"1s\" }\n";
    let Some(world) = World::start("a partition between two zones", tables).await else {
        return;
    };
    let address = |host: usize| -> IpAddr { world.sidecars[host].setup.address };
    let zone_a = [world.namespace(0), world.namespace(1)];
    let loads = [
        world.load(1, "web.mesh", 50, 10),
        world.load(3, "web.mesh", 50, 10),
    ];
    world
        .network
        .cut(&zone_a, &[address(2), address(3)])
        .expect("nft takes rules");
    for (seer, lost) in [(0, "web-b"), (1, "files-b"), (2, "web-a"), (3, "files-a")] {
        world.sidecars[seer]
            .until_member(lost, "down", PATIENCE * 2)
            .await;
    }
    // Each half goes on with what it has.
    for host in 0..4 {
        let own = world.sidecars[host].setup.name.replace("web", "files");
        let url = "http://files.localhost:7080/index.html";
        assert_eq!(
            world.on(host, &["curl", "-sS", "-f", url]),
            Ok(format!("{own}\n"))
        );
    }
    for load in loads {
        let figures = load.figures().await;
        assert_eq!(figures["failed"], 0, "{figures}");
    }
    world.network.heal(&zone_a).expect("nft takes rules");
    world.until_whole(WHOLE_AGAIN_WITHIN).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_falls_silent_is_left_though_gossip_says_it_is_well() {
    // What a silent server holds already is freed by the time of one try, if the operator gave it one.
    let tables = "[upstream.web]\nretry = { retries = 1, per_try_timeout = \"500ms\" }\n";
    let Some(world) = World::start("a server that falls silent", tables).await else {
        return;
    };
    // Host 1 calls the nginx of its own zone on host 0; suddenly its packets to it vanish, and nothing says no.
    let load = world.load(1, "web.mesh", 100, 8);
    until(PATIENCE, "the load has begun", || async {
        match world.sidecars[1].metric("starling_requests_total").await {
            count if count > 100.0 => Ok(()),
            count => Err(format!("{count} requests")),
        }
    })
    .await;
    let silent = [world.sidecars[0].setup.address];
    let caller = [world.namespace(1)];
    world
        .network
        .cut_port(&caller, &silent, 80)
        .expect("nft takes rules");
    let figures = load.figures().await;
    println!("{figures}");
    world.network.heal(&caller).expect("nft takes rules");
    let members = world.sidecars[1].members().await.expect("a listing");
    assert!(
        members.iter().all(|(_, state)| state == "alive"),
        "{members:?}"
    );
    let far = figures["zone_share"]["web-b"].as_f64().unwrap_or(0.0);
    assert!(far > 0.4, "the silent one was not left: {figures}");
    assert_eq!(figures["failed"], 0, "{figures}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_websocket_client_talks_through_the_sidecar() {
    let Some(mut python) = python_with("websockets") else {
        return skipped(
            "WebSocket",
            "Python's websockets is not installed and pip could not get it",
        );
    };
    let setup = Setup::new("host", "eu-1a")
        .with("[service.chat]\nport = 9001\ncheck = { tcp = true, interval = \"250ms\" }");
    let script = r#"
import asyncio, sys, websockets
address, role = sys.argv[1], sys.argv[2]

async def echo(socket, *_):
    async for message in socket:
        await socket.send(message)

async def main():
    if role == "serve":
        async with websockets.serve(echo, address, 9001):
            await asyncio.Future()
    async with websockets.connect("ws://chat.mesh:7080/room", host=address, port=7080) as socket:
        for length in (0, 1, 125, 126, 65535, 65536, 300000):
            for message in ("x" * length, b"\x00" * length):
                await socket.send(message)
                assert await socket.recv() == message, length
        await (await socket.ping())
    print("fine")

asyncio.run(main())
"#;
    let scratch = Scratch::new();
    let file = scratch.write("chat.py", script);
    let address = setup.address.to_string();
    let mut serve = python_with("websockets").expect("it was there a moment ago");
    serve.arg(&file).args([&address, "serve"]);
    let _server = Process::start("websocket server", serve, &scratch.path().join("log"));
    let sidecar = Sidecar::ready(setup).await;
    sidecar.until_usable("chat", 1, PATIENCE).await;

    python.arg(&file).args([&address, "call"]);
    let output = python.output().expect("python runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        said,
        "fine\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
