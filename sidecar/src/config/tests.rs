//! Configurations that are right, whole files that are not, drop-ins, secrets, printing.

use std::{net::IpAddr, time::Duration};

use mesh_core::policy::{
    Balance, HashKey, HashTable, HttpVersion, Place as EndpointPlace, Protocol, ProxyVersion,
    Sticky, Udp,
};

use super::{host::Host, *};

mod mistakes;

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn some_host() -> Host {
    Host {
        env: Box::new(|name| match name {
            "PORT" => Some("8123".to_owned()),
            "KEY" => Some(KEY.to_owned()),
            _ => None,
        }),
        name: "web-1".to_owned(),
        address: Some(IpAddr::from([10, 0, 0, 5])),
        cores: 2,
    }
}

fn read(text: &str) -> Result<Loaded, Faults> {
    read_on(&some_host(), text)
}

fn read_on(host: &Host, text: &str) -> Result<Loaded, Faults> {
    let mut faults = Vec::new();
    let files = raw::of_text("starling.toml", text, &mut faults);
    checked(files, faults, host)
}

fn config(text: &str) -> Config {
    read(text)
        .map_err(|faults| faults.to_string())
        .expect("no faults")
        .config
}

#[test]
fn an_empty_file_is_a_host_alone_on_loopback() {
    let config = config("");
    assert_eq!(&*config.node.id, "web-1");
    assert_eq!(config.node.advertise, IpAddr::from([127, 0, 0, 1]));
    assert_eq!(config.gossip.bind.to_string(), "127.0.0.1:7946");
    assert_eq!(config.gossip.advertise.to_string(), "127.0.0.1:7946");
    assert_eq!(config.admin.bind.to_string(), "127.0.0.1:7070");
    assert_eq!(
        config.outbound.http,
        [ListenAddress::Tcp("127.0.0.1:7080".parse().unwrap())]
    );
    assert!(config.outbound.undeclared);
    assert_eq!(config.drain.grace, Duration::from_secs(3));
    assert_eq!(config.drain.timeout, Duration::from_secs(30));
}

#[test]
fn the_fifteen_lines_most_hosts_need_are_enough() {
    let config = config(
        r#"
        [node]
        zone = "eu-1a"

        [gossip]
        join = ["10.0.0.11", "10.0.0.12:7000"]
        key  = "${env:KEY}"

        [service.checkout]
        port  = 8080
        check = { http = "/healthz" }

        [upstream.payments]
        timeout = "2s"
        "#,
    );
    assert_eq!(&*config.node.region, "eu-1");
    assert_eq!(config.node.advertise, IpAddr::from([10, 0, 0, 5]));
    assert_eq!(config.gossip.bind.to_string(), "0.0.0.0:7946");
    assert_eq!(config.gossip.advertise.to_string(), "10.0.0.5:7946");
    assert_eq!(
        *config.gossip.join,
        ["10.0.0.11:7946".into(), "10.0.0.12:7000".into()]
    );
    assert_eq!(config.gossip.keys[0].0[31], 0x1f);
    let service = &config.services[0];
    assert_eq!(
        (&*service.service, &*service.instance),
        ("checkout", "web-1-8080")
    );
    assert_eq!(service.address.to_string(), "10.0.0.5:8080");
    assert_eq!(service.advertise, service.address);
    let check = service.check.as_ref().unwrap();
    assert_eq!(check.kind, CheckKind::Http(HttpCheck::get("/healthz")));
    assert_eq!((check.fall, check.rise), (3, 2));
    let policy = &config.upstreams[0].policy;
    assert_eq!(policy.service.as_deref(), Some("payments"));
    assert_eq!(policy.timeouts.request, Duration::from_secs(2));
    assert_eq!(policy.balance, Balance::LeastResponseTime);
}

const EVERY_KEY: &str = r#"
[node]
id = "a"
zone = "z1"
region = "r"
advertise = "10.0.0.9"
state_dir = "/var/lib/starling"
workers = 4
[gossip]
bind = "0.0.0.0:7000"
advertise = "10.0.0.5:27946"
join = "seed.internal"
cluster = "prod"
keys = ["${env:KEY}", "${env:KEY}"]
profile = "calm"
[admin]
bind = "127.0.0.1:7001"
socket = "/run/starling/admin.sock"
token = "0123456789abcdef"
[outbound]
connection_age = "1d"
limits = { connections = 5, all_connections = 9, per_client = { connections = 3 }, streams = 50, headers = 60, request_line_bytes = "4KiB" }
head_timeout = "5s"
idle_timeout = "1m"
http = ["127.0.0.1:7002", "unix:/run/starling/http.sock"]
domain = "grid"
undeclared = "refuse"
external = "refuse"
clients = ["172.26.64.0/20"]
trusted_proxies = ["127.0.0.1"]
control_headers = true
[access_log]
path = "/var/log/starling/access.jsonl"
[drain]
grace = "1s"
timeout = "10s"
[service.s]
service = "shop"
instance = "one"
address = "127.0.0.1:${env:PORT}"
advertise = "10.0.0.9:28123"
protocol = "grpc"
weight = 50
capacity = "500/s"
tags = { version = "1.4.2", role = "primary" }
check = { tcp = true, interval = "5s", timeout = "2s", fall = 2, rise = 1 }
[service.asked]
port = 8001
check = { http = "/role?of=me", method = "POST", status = [200, "300-302"], body = "\\bmain\\b" }
[service.called]
port = 8002
check = { grpc = "pkg.Service" }
[service.tried]
port = 8003
check = { exec = ["/bin/true", "--now"] }
[service.telling]
port = 8004
check = { ttl = "10s" }
[upstream.shop-primary]
service = "shop"
select = { tags = { role = "primary" } }
listen = ["127.0.0.1:7003", "127.0.0.2:7003"]
protocol = "grpc"
balance = { policy = "power_of_two" }
timeout = "3s"
connect_timeout = "200ms"
idle_timeout = "1m"
half_close_timeout = "45s"
endpoint_grace = "never"
connection_age = "2h"
retry = { on = ["gateway-error", "5xx", "reset", "non-idempotent"], retries = "2", per_try_timeout = "1s", budget = "10%" }
ejection = { consecutive = 0, success_below = "50%", base = "2s", max = "20s", max_ejected = "30%" }
limits = { connections = 1, requests = 2, pending = 3, header_bytes = "16KiB", body_bytes = "5MiB", per_endpoint = { requests = 4 } }
sticky = { cookie = "starling", ttl = "1h" }
zones = { mode = "waterfill", order = ["z2", "*"] }
subset = 100
[upstream.db]
listen = "127.0.0.1:5432"
protocol = "tcp"
endpoints = ["10.0.9.1:5432", "db.internal:5432", "mesh", { address = "10.0.9.9:5432", zone = "z2", weight = 50, backup = true }]
zones = { mode = "ignore" }
check = { exec = "/bin/true" }
balance = { policy = "consistent_hash", key = "source_ip", table = "maglev-1" }
sticky = { source_ip = true }
[upstream.resolver]
listen = "127.0.0.1:5432"
protocol = "udp"
udp = { idle = "5s", replies = 1, max_flows = 100 }
endpoints = ["10.0.0.2:53"]
[upstream.passed-on]
listen = "127.0.0.1:5433"
protocol = "tcp"
accept_proxy_protocol = true
send_proxy_protocol = "v1"
[upstream.named]
listen = "127.0.0.1:7445"
protocol = "tls"
sni = ["A.example", "*.b.example"]
[upstream.other-names]
listen = "127.0.0.1:7445"
protocol = "tls"
[upstream.sink]
listen = "127.0.0.1:514"
protocol = "udp"
"#;

#[test]
fn every_key_of_this_version_is_honoured() {
    let config = config(EVERY_KEY);
    let limits = ClientLimits {
        all_connections: Some(9),
        client_connections: Some(3),
        streams: 50,
        headers: 60,
        request_line_bytes: 4096,
        head: Duration::from_secs(5),
        idle: Duration::from_secs(60),
    };
    assert_eq!(
        (config.outbound.connections, config.outbound.limits),
        (5, limits)
    );
    assert_eq!(config.upstreams[0].policy.limits.body_bytes, Some(5 << 20));
    let service = &config.services[0];
    assert_eq!(service.address.port(), 8123);
    assert_eq!(service.capacity, Some(500));
    assert_eq!(&*service.tags[0].0, "role");
    let check = |table: &str| {
        let service = config.services.iter().find(|s| &*s.table == table);
        service
            .and_then(|s| s.check.clone())
            .expect("it is checked")
    };
    let CheckKind::Http(asked) = check("asked").kind else {
        panic!("{:?}", check("asked"));
    };
    assert_eq!(
        (&*asked.path, asked.method),
        ("/role?of=me", http::Method::POST)
    );
    assert_eq!(asked.status, [Statuses(200..=200), Statuses(300..=302)]);
    assert!(asked.body.is_some_and(|body| body.is_in(b"a main b")));
    let service = "pkg.Service".into();
    assert_eq!(check("called").kind, CheckKind::Grpc { service });
    let command = ["/bin/true", "--now"].map(Box::from).into();
    assert_eq!(check("tried").kind, CheckKind::Exec { command });
    let telling = check("telling");
    let within = Duration::from_secs(10);
    assert_eq!(telling.kind, CheckKind::Ttl { within });
    assert_eq!((telling.fall, telling.rise), (1, 1));
    let shop = &config.upstreams[0];
    assert_eq!(&*shop.policy.name, "shop-primary");
    assert_eq!(shop.policy.http, HttpVersion::Two);
    assert_eq!(shop.policy.balance, Balance::PowerOfTwo);
    assert_eq!(shop.policy.retry.retries, 2);
    assert!(shop.policy.retry.on.reset && shop.policy.retry.on.non_idempotent);
    assert!((shop.policy.retry.budget_share - 0.1).abs() < 1e-9);
    assert_eq!(shop.policy.retry.budget_per_second, 0.0);
    assert_eq!(shop.policy.limits.endpoint_requests, Some(4));
    assert_eq!(shop.listen.len(), 2);
    let hour = Duration::from_secs(3_600);
    let cookie = Sticky::Cookie {
        name: "starling".into(),
        ttl: Some(hour),
    };
    assert_eq!(shop.policy.sticky, Some(cookie));
    let db = &config.upstreams[1].policy;
    assert_eq!(
        (db.protocol, db.service.as_deref()),
        (Protocol::Tcp, Some("db"))
    );
    assert_eq!(db.timeouts.idle, Duration::from_secs(3600));
    assert_eq!(db.endpoints.len(), 3);
    assert!(matches!(
        db.endpoints[1].place,
        EndpointPlace::Name { port: 5432, .. }
    ));
    assert!(db.endpoints[2].backup);
    assert_eq!(db.sticky, Some(Sticky::SourceIp { ttl: hour }));
    let resolver = &config.upstreams[2];
    let at = "127.0.0.1:5432".parse().unwrap();
    assert_eq!(resolver.listen, [ListenAddress::Udp(at)], "beside tcp");
    let policy = &resolver.policy;
    assert_eq!((policy.udp.replies, policy.udp.flows_max), (1, 100));
    assert_eq!(policy.timeouts.idle, Duration::from_secs(5));
    let passed = &config.upstreams[3].policy;
    assert_eq!(
        (passed.accept_proxy, passed.send_proxy),
        (true, Some(ProxyVersion::One))
    );
    let named = ["a.example"].map(|name| ServerNames::One(name.into()));
    assert_eq!(config.upstreams[4].sni[..1], named);
    assert_eq!(config.upstreams[5].sni, [ServerNames::Others]);
    let sink = &config.upstreams[6].policy;
    assert_eq!((sink.protocol, sink.udp), (Protocol::Udp, Udp::default()));
    assert_eq!(sink.timeouts.idle, Duration::from_secs(60));
    let hash = db.hash.as_ref().unwrap();
    assert_eq!(
        (&hash.key, hash.table),
        (&HashKey::SourceIp, HashTable::Maglev)
    );
}

#[test]
fn every_key_of_a_request_may_be_hashed_by() {
    for (written, key) in [
        ("source_ip", HashKey::SourceIp),
        ("header:X-User", HashKey::Header("x-user".into())),
        ("cookie:uid", HashKey::Cookie("uid".into())),
        ("query:id", HashKey::Query("id".into())),
        ("path", HashKey::Path),
        ("source_service", HashKey::SourceService),
        ("json:/user/id", HashKey::Json("/user/id".into())),
    ] {
        let text = format!(
            "[service.web]\nport = 80\n[upstream.p]\nbalance = {{ policy = \"consistent_hash\", key = \"{written}\" }}"
        );
        let loaded = read(&text).unwrap();
        assert!(
            loaded.print().contains("table = \"rendezvous-1\""),
            "{}",
            loaded.print()
        );
        let policy = &loaded.config.upstreams[0].policy;
        let hash = policy.hash.as_ref().unwrap();
        assert_eq!((&hash.key, hash.table), (&key, HashTable::Rendezvous));
        assert_eq!(policy.balance, Balance::LeastResponseTime);
    }
}

#[test]
fn callers_that_all_have_one_address_are_warned_of() {
    let hashed = |listen: &str| {
        let text = format!(
            "[outbound]\nclients = [\"10.0.0.0/8\"]\n[upstream.p]\n{listen}\nbalance = {{ policy = \"consistent_hash\", key = \"source_ip\" }}"
        );
        read(&text).unwrap().warnings
    };
    let warnings = hashed("listen = \"127.0.0.1:7001\"");
    assert_eq!(warnings.len(), 1);
    assert_eq!(
        (warnings[0].place.line, &*warnings[0].key),
        (5, "upstream.p.balance.key")
    );
    assert!(
        warnings[0].to_string().contains("one endpoint"),
        "{}",
        warnings[0]
    );
    assert!(hashed("listen = \"10.0.0.5:7001\"").is_empty());
}

#[test]
fn all_faults_of_a_file_are_told_at_once() {
    let faults = read(
        r#"[node]
zonne = "a"
[admin]
bind = "0.0.0.0:7070"
[service.web]
port = 0
[upstream.p]
timeout = "0s"
retry = { retries = 11 }
balance = fair
"#,
    )
    .map(|_| ())
    .unwrap_err();
    let told: Vec<(u32, &str)> = faults
        .iter()
        .map(|fault| (fault.place.line, fault.key.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (2, "node.zonne"),
            (6, "service.web.port"),
            (8, "upstream.p.timeout"),
            (9, "upstream.p.retry.retries"),
            (10, ""),
        ],
        "{faults}"
    );
}

#[test]
fn a_fault_reads_as_one_line() {
    let faults = read("[node]\nzne = \"a\"").map(|_| ()).unwrap_err();
    assert_eq!(
        faults.to_string(),
        "starling.toml:2:1: node.zne: no such key; did you mean \"zone\"?"
    );
}

#[test]
fn a_public_address_is_not_told_to_others_unasked() {
    let host = Host {
        address: Some(IpAddr::from([203, 0, 113, 5])),
        ..some_host()
    };
    let faults = read_on(&host, "[gossip]\nkey = \"${env:KEY}\"")
        .map(|_| ())
        .unwrap_err();
    assert!(
        faults
            .to_string()
            .contains("write advertise = \"203.0.113.5\""),
        "{faults}"
    );
    assert!(
        read_on(
            &host,
            "[gossip]\nkey = \"${env:KEY}\"\n[node]\nadvertise = \"203.0.113.5\""
        )
        .is_ok()
    );
}

#[test]
fn a_host_bound_to_one_loopback_address_is_told_by_it() {
    let config = config("[gossip]\nbind = \"127.0.0.3:7946\"\n[service.s]\nport = 80");
    assert_eq!(config.gossip.advertise.to_string(), "127.0.0.3:7946");
    assert_eq!(config.services[0].address.to_string(), "127.0.0.3:80");
}

#[test]
fn what_is_printed_is_a_configuration_again() {
    let text = "[node]\nid = \"n\"\n[upstream.\"p.q\"]\ntimeout = \"1500ms\"\nendpoints = [{ address = \"a:1\", weight = 3 }, \"mesh\"]\nselect = { tags = { \"a b\" = \"c\" } }\n[gossip]\nkey = \"${env:KEY}\"\n[admin]\ntoken = \"0123456789abcdef\"\n[service.s]\nport = 80\ncheck = { http = \"/\", method = \"POST\", status = [\"200-299\", 304], body = '\"up\"\\s' }\n";
    let loaded = read(text).unwrap();
    let printed = loaded.print();
    assert!(
        !printed.contains(KEY) && !printed.contains("0123456789abcdef"),
        "{printed}"
    );
    assert!(printed.contains("# env KEY (starling.toml:8)"), "{printed}");
    assert!(printed.contains("# starling.toml:4"), "{printed}");
    assert!(printed.contains("# default"), "{printed}");
    let again = printed
        .replace("key = \"(hidden)\"", "key = \"${env:KEY}\"")
        .replace("token = \"(hidden)\"", "token = \"0123456789abcdef\"");
    let again = read(&again)
        .map_err(|faults| format!("{faults}\n{printed}"))
        .unwrap();
    assert_eq!(
        format!("{:?}", again.config),
        format!("{:?}", loaded.config)
    );
}

#[test]
fn a_file_and_its_drop_ins_are_one_configuration() {
    let directory = Scratch::new("drop-ins");
    directory.write(
        "starling.toml",
        "[node]\nid = \"n\"\n[service.a]\nport = 81\n",
        0o644,
    );
    directory.write("conf.d/b.toml", "[service.b]\nport = 82\n", 0o644);
    directory.write("conf.d/ignored.txt", "nonsense", 0o644);
    let loaded = load(&directory.path("starling.toml")).unwrap();
    let names: Vec<&str> = loaded
        .config
        .services
        .iter()
        .map(|service| &*service.table)
        .collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(loaded.files.len(), 2);

    directory.write(
        "conf.d/c.toml",
        "\n[service.a]\nport = 83\n[node]\nzone = \"z\"\n",
        0o644,
    );
    let faults = load(&directory.path("starling.toml"))
        .map(|_| ())
        .unwrap_err();
    let told: Vec<(u32, &str)> = faults
        .iter()
        .map(|fault| (fault.place.line, fault.key.as_str()))
        .collect();
    assert_eq!(told, [(2, "service.a"), (4, "node")], "{faults}");
    assert!(faults.to_string().contains("conf.d/c.toml:2"), "{faults}");
}

#[test]
fn a_secret_file_is_read_unless_others_could_read_it_too() {
    let directory = Scratch::new("secrets");
    directory.write(
        "starling.toml",
        "[gossip]\nkey = \"file:gossip.key\"\n[node]\nadvertise = \"10.0.0.5\"",
        0o644,
    );
    directory.write("gossip.key", &format!("{KEY}\n"), 0o600);
    let loaded = load(&directory.path("starling.toml")).unwrap();
    assert_eq!(loaded.config.gossip.keys.len(), 1);
    assert!(loaded.files.contains(&directory.path("gossip.key")));

    directory.write("gossip.key", KEY, 0o644);
    let faults = load(&directory.path("starling.toml"))
        .map(|_| ())
        .unwrap_err();
    let told = faults.to_string();
    assert!(
        told.contains("mode 0644") && told.contains("chmod 0600"),
        "{told}"
    );
}

#[test]
fn every_key_is_documented() {
    let text = include_str!("../../../deploy/configuration.md");
    let loaded = read(EVERY_KEY).unwrap();
    for line in &loaded.lines {
        let keys: Vec<&str> = line.path.iter().map(String::as_str).collect();
        let (section, key) = match &*keys {
            [table @ ("service" | "upstream"), _, rest @ ..] => (*table, rest.join(".")),
            [table, rest @ ..] => (*table, rest.join(".")),
            [] => continue,
        };
        let start = text.find(&format!("## `[{section}"));
        let section_text = &text[start.expect(section)..];
        let section_text = section_text.split("\n## ").next().unwrap();
        // Tags are the operator's own words; what is said of a check under a service holds for an upstream's.
        let documented = match key.split_once('.') {
            Some(("select" | "tags" | "check", _)) => continue,
            Some(("balance", "policy")) => "balance".to_owned(),
            _ => key.clone(),
        };
        assert!(
            section_text.contains(&format!("| `{documented}` |")),
            "{section}: {key}"
        );
    }
}

#[test]
fn no_text_at_all_makes_it_panic() {
    use rand::{RngExt, SeedableRng};
    let mut dice = rand::rngs::StdRng::seed_from_u64(7);
    let signs = b"\"'[]{}=.,#\n${:%";
    let host = some_host();
    for _ in 0..3_000 {
        let mut text = EVERY_KEY.as_bytes().to_vec();
        for _ in 0..dice.random_range(1..6) {
            let at = dice.random_range(0..text.len());
            match dice.random_range(0..4) {
                0 => text[at] = dice.random(),
                1 => text.truncate(at.max(1)),
                2 => text.insert(at, signs[dice.random_range(0..signs.len())]),
                _ => drop(text.drain(at..(at + dice.random_range(0..30)).min(text.len()))),
            }
            text.push(b' ');
        }
        // Whatever it says, it says where.
        if let Err(faults) = read_on(&host, &String::from_utf8_lossy(&text)) {
            assert!(
                faults
                    .iter()
                    .all(|fault| fault.place.line > 0 && !fault.fix.is_empty())
            );
        }
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let faults = load(Path::new("/does/not/exist.toml"))
        .map(|_| ())
        .unwrap_err();
    assert!(
        faults.to_string().contains("create /does/not/exist.toml"),
        "{faults}"
    );
}

#[test]
fn every_example_configuration_checks_clean() {
    fn visit(directory: &Path, found: &mut usize) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, found);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "toml")
                && path.file_name().is_some_and(|name| name != "Cargo.toml")
            {
                *found += 1;
                if let Err(faults) = load(&path) {
                    panic!("{faults}");
                }
            }
        }
    }
    let mut found = 0;
    visit(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples"),
        &mut found,
    );
    println!("{found} example configurations");
}

/// A directory of a test's own, gone when it ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path =
            std::env::temp_dir().join(format!("starling-config-{name}-{}", std::process::id()));
        std::fs::create_dir_all(path.join("conf.d")).unwrap();
        Scratch(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(self.path(name), text).unwrap();
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
