//! Clients and servers nobody here wrote, each with its own idea of the protocols, through one sidecar: grpcio with all
//! kinds of calls, httpx, aiohttp, `websockets`, Node's fetch and http2, PostgreSQL.
//!
//! Not here: curl, requests, h2load and nginx on hosts of their own (`strangers.rs`), Redis (`tcp.rs`). The programs
//! stand in `tests/clients/`; each checks what it sees and prints "fine".

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use mesh_tests::{
    PATIENCE,
    process::{Module, Process, installed, python_having},
    scratch::Scratch,
    sidecar::{Setup, Sidecar},
    skipped,
};

const GRPC_PORT: u16 = 9010;
const HTTP_PORT: u16 = 9011;
/// For a client's whole conversation, on a crowded machine too.
const TALK_WITHIN: Duration = Duration::from_secs(90);

const GRPC: [Module<'_>; 2] = [
    Module {
        import: "grpc",
        package: "grpcio",
    },
    Module {
        import: "grpc_health.v1.health",
        package: "grpcio-health-checking",
    },
];
const AIOHTTP: Module<'_> = Module {
    import: "aiohttp",
    package: "aiohttp",
};
const WEBSOCKETS: Module<'_> = Module {
    import: "websockets",
    package: "websockets",
};
const HTTPX: [Module<'_>; 2] = [
    Module {
        import: "httpx",
        package: "httpx",
    },
    Module {
        import: "h2",
        package: "h2",
    },
];

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("clients")
        .join(name)
}

/// Runs a client to its end; it must print "fine".
async fn talk(name: &str, mut command: Command, scratch: &Scratch) {
    // A proxy of the surroundings is not the one meant here.
    for variable in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        command.env_remove(variable);
    }
    let mut client = Process::start(name, command, &scratch.path().join(name));
    let status = client.end(TALK_WITHIN).await;
    let said = client.log();
    assert!(
        status.success() && said.ends_with("fine\n"),
        "{name}: {status}\n{said}"
    );
}

/// A sidecar beside `http_server.py`, offered as `web`, with a listener of the upstream's own at port 7001.
struct Web {
    sidecar: Sidecar,
    _server: Process,
    scratch: Scratch,
}

impl Web {
    async fn start(story: &str, mut python: Command) -> Web {
        let setup = Setup::new("host", "eu-1a");
        let scratch = Scratch::new();
        python
            .arg(program("http_server.py"))
            .args([setup.address.to_string(), HTTP_PORT.to_string()]);
        let server = Process::start(story, python, &scratch.path().join("server"));
        let listen = SocketAddr::new(setup.address, 7001);
        let setup = setup.with(&format!(
            "[service.web]\nport = {HTTP_PORT}\ncheck = {{ tcp = true, interval = \"250ms\" }}\n\
             [upstream.web]\nlisten = \"{listen}\"\n"
        ));
        let sidecar = Sidecar::ready(setup).await;
        sidecar.until_usable("web", 1, PATIENCE).await;
        Web {
            sidecar,
            _server: server,
            scratch,
        }
    }

    async fn talk(&self, name: &str, mut client: Command) {
        client
            .arg(program(name))
            .arg(self.sidecar.outbound().to_string())
            .arg("web.mesh")
            .arg(self.sidecar.port(7001).to_string());
        talk(name, client, &self.scratch).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_makes_every_kind_of_call() {
    let Some(python) = python_having(&GRPC) else {
        return skipped("grpcio", "it is not installed and pip could not get it");
    };
    let setup = Setup::new("host", "eu-1a");
    let scratch = Scratch::new();
    let at = SocketAddr::new(setup.address, GRPC_PORT);
    let mut server = python;
    server.arg(program("grpc_server.py")).arg(at.to_string());
    let mut client = Command::new(server.get_program());
    client.envs(
        server
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let _server = Process::start("grpc_server.py", server, &scratch.path().join("server"));
    let sidecar = Sidecar::ready(setup.with(&format!(
        "[service.echo]\nport = {GRPC_PORT}\nprotocol = \"grpc\"\ncheck = {{ tcp = true, interval = \"250ms\" }}\n"
    )))
    .await;
    sidecar.until_usable("echo", 1, PATIENCE).await;
    client
        .arg(program("grpc_client.py"))
        .arg(sidecar.outbound().to_string())
        .arg("echo.mesh");
    talk("grpc_client.py", client, &scratch).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn httpx_speaks_both_versions() {
    let modules = [AIOHTTP, HTTPX[0], HTTPX[1]];
    let (Some(server), Some(client)) = (python_having(&modules), python_having(&modules)) else {
        return skipped(
            "httpx",
            "it or aiohttp is not installed and pip could not get it",
        );
    };
    let web = Web::start("http_server.py", server).await;
    web.talk("httpx_client.py", client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aiohttp_and_websockets_talk_at_once_and_at_length() {
    let modules = [AIOHTTP, WEBSOCKETS];
    let (Some(server), Some(client)) = (python_having(&modules), python_having(&modules)) else {
        return skipped(
            "aiohttp and websockets",
            "they are not installed and pip could not get them",
        );
    };
    let web = Web::start("http_server.py", server).await;
    web.talk("aiohttp_client.py", client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_fetches_and_multiplexes() {
    if !installed("node") {
        return skipped(
            "Node's fetch and http2",
            "node is not installed (Debian: nodejs)",
        );
    }
    let Some(server) = python_having(&[AIOHTTP]) else {
        return skipped(
            "Node's fetch and http2",
            "their server needs aiohttp, which pip could not get",
        );
    };
    let web = Web::start("http_server.py", server).await;
    web.talk("node_client.mjs", Command::new("node")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_leaves_http_over_streams_of_http2() {
    if !installed("node") {
        return skipped(
            "CONNECT and WebSocket over HTTP/2",
            "node is not installed (Debian: nodejs)",
        );
    }
    leave_http("connect_over_http2.mjs", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_reach_a_server_of_http2_of_node() {
    if !installed("node") {
        return skipped(
            "WebSocket to a server of HTTP/2",
            "node is not installed (Debian: nodejs)",
        );
    }
    leave_http("websocket_to_http2.mjs", "2").await;
}

/// Runs a program that leaves HTTP through a sidecar, towards itself as a server of this version of HTTP.
async fn leave_http(name: &str, version: &str) {
    let setup = Setup::new("host", "eu-1a");
    let scratch = Scratch::new();
    let server = SocketAddr::new(setup.address, HTTP_PORT);
    let sidecar = Sidecar::ready(setup.with(&format!(
        "[upstream.web]\nendpoints = [\"{server}\"]\nhttp = \"{version}\"\n"
    )))
    .await;
    let mut client = Command::new("node");
    client
        .arg(program(name))
        .args([sidecar.outbound().to_string(), "web.mesh".to_owned()])
        .args([server.ip().to_string(), server.port().to_string()]);
    talk(name, client, &scratch).await;
}

/// The newest PostgreSQL's programs, which Debian keeps off the path.
fn postgres_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut programs: Vec<PathBuf> = versions
        .filter_map(|version| Some(version.ok()?.path().join("bin")))
        .filter(|programs| programs.join("initdb").is_file())
        .collect();
    programs.sort();
    programs.pop()
}

/// A command as somebody who is not root: PostgreSQL refuses to serve as root.
fn as_postgres(program: &Path) -> Command {
    let me = Command::new("id").arg("-u").output();
    if me.is_ok_and(|me| me.stdout == b"0\n") {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        return command;
    }
    Command::new(program)
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_serves_through_a_tcp_upstream() {
    let Some(programs) = postgres_programs() else {
        return skipped(
            "PostgreSQL over TCP",
            "it is not installed (Debian: postgresql)",
        );
    };
    let setup = Setup::new("host", "eu-1a");
    let scratch = Scratch::new();
    let home = scratch.path().join("postgres");
    std::fs::create_dir(&home).expect("a scratch directory can be written");
    // Both may be refused where we are not root, and are not needed there.
    let _ = Command::new("chown").arg("postgres").arg(&home).status();
    let _ = Command::new("chmod")
        .arg("755")
        .arg(scratch.path())
        .status();
    let data = home.join("data");
    let mut init = as_postgres(&programs.join("initdb"));
    init.args(["--no-sync", "--auth=trust", "--username=story", "-D"])
        .arg(&data);
    let made = init.output().expect("initdb starts");
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let mut serve = as_postgres(&programs.join("postgres"));
    serve
        .args(["-c", "fsync=off", "-c", "unix_socket_directories=", "-c"])
        .arg(format!("listen_addresses={}", setup.address))
        .arg("-D")
        .arg(&data);
    let _server = Process::start("postgres", serve, &scratch.path().join("server"));
    let address = setup.address;
    let sidecar = Sidecar::ready(setup.with(&format!(
        "[service.db]\nport = 5432\nprotocol = \"tcp\"\ncheck = {{ tcp = true, interval = \"250ms\" }}\n\
         [upstream.db]\nprotocol = \"tcp\"\nlisten = \"{address}:7001\"\n"
    )))
    .await;
    sidecar.until_usable("db", 1, PATIENCE).await;
    let through = |program: &str, words: &[&str]| {
        let output = Command::new(programs.join(program))
            .args(["-h", &address.to_string(), "-p", "7001", "-U", "story"])
            .args(words)
            .output()
            .expect("it starts");
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program}: {said}{complained}");
        said
    };
    let psql = |text: &str| through("psql", &["-d", "postgres", "-qAtX", "-c", text]);
    psql("create table rows as select n, repeat('x', 1000) as t from generate_series(1, 20000) n");
    assert_eq!(
        psql("select count(*), sum(length(t)) from rows"),
        "20000|20000000"
    );
    // Every row back: its text, its number (88,894 digits in all) and, but for the last, the end of its line.
    let whole = 20_000 * 1_000 + 88_894 + 19_999;
    assert_eq!(psql("select n || t from rows").len(), whole);
    through("pgbench", &["-i", "-q", "-s", "1", "postgres"]);
    let said = through("pgbench", &["-c", "4", "-t", "50", "-C", "postgres"]);
    assert!(
        said.contains("number of transactions actually processed: 200/200"),
        "{said}"
    );
    let kept = through("pgbench", &["-c", "8", "-t", "200", "postgres"]);
    assert!(
        kept.contains("number of transactions actually processed: 1600/1600"),
        "{kept}"
    );
}
