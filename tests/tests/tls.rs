//! TLS at both doors: ended at a listener, begun towards endpoints, swapped while connections live; seen by curl and
//! openssl, which nobody here wrote.
//!
//! Not here: what a certificate must be like (the unit tests beside `tls.rs`).

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use mesh_tests::{
    PATIENCE,
    http::{Answer, Call, raw},
    process::installed,
    scratch::Scratch,
    sidecar::{Setup, Sidecar, backend_at},
    skipped,
    until::until,
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
};

const NAME: &str = "shop.internal";
const BACKEND_PORT: u16 = 9001;
const TLS_PORT: u16 = 7443;

/// An authority and what it signs, made with openssl.
struct Office {
    scratch: Scratch,
}

impl Office {
    /// `None`, and a word why, where a program is missing.
    fn open(story: &str) -> Option<Office> {
        for program in ["openssl", "curl"] {
            if !installed(program) {
                skipped(story, &format!("{program} is not installed"));
                return None;
            }
        }
        let scratch = Scratch::new();
        let office = Office { scratch };
        office.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=authority",
            "-days",
            "30",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ]);
        Some(office)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn openssl(&self, words: &[&str]) {
        let done = Command::new("openssl")
            .args(words)
            .current_dir(self.scratch.path())
            .output()
            .expect("openssl starts");
        assert!(
            done.status.success(),
            "{words:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }

    /// `FILE.pem` and `FILE.key` for a name, with a serial number to know it by.
    fn sign(&self, file: &str, name: &str, serial: u32) {
        let extensions = self.scratch.write(
            &format!("{file}.ext"),
            &format!("subjectAltName=DNS:{name}\nextendedKeyUsage=serverAuth,clientAuth\n"),
        );
        self.openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            &format!("/CN={name}"),
            "-keyout",
            &format!("{file}.key"),
            "-out",
            &format!("{file}.csr"),
        ]);
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &format!("{file}.csr"),
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-set_serial",
            &serial.to_string(),
            "-days",
            "30",
            "-extfile",
            &extensions.display().to_string(),
            "-out",
            &format!("{file}.pem"),
        ]);
    }

    /// The keys of a `listen_tls` or `tls` table that name files of this office.
    fn files(&self, keys: &[(&str, &str)]) -> String {
        let named = keys
            .iter()
            .map(|(key, file)| format!("{key} = \"{}\"", self.path(file).display()));
        named.collect::<Vec<_>>().join(", ")
    }

    /// curl by the certificate's name to an address. `Err` with what it said when it failed.
    fn curl(&self, at: SocketAddr, path: &str, more: &[&str]) -> Result<String, String> {
        let place = format!("{NAME}:{}:{}", at.port(), at.ip());
        let url = format!("https://{NAME}:{}{path}", at.port());
        let done = Command::new("curl")
            .args([
                "-sS",
                "-f",
                "--max-time",
                "20",
                "--noproxy",
                "*",
                "--resolve",
                &place,
                "--cacert",
            ])
            .arg(self.path("ca.pem"))
            .args(more)
            .arg(url)
            .output()
            .expect("curl starts");
        let (said, complained) = (done.stdout, String::from_utf8_lossy(&done.stderr));
        if done.status.success() {
            return Ok(String::from_utf8_lossy(&said).into_owned());
        }
        Err(complained.into_owned())
    }

    /// What openssl sees of a handshake.
    fn s_client(&self, at: SocketAddr, more: &[&str]) -> String {
        let done = Command::new("openssl")
            .args([
                "s_client",
                "-connect",
                &at.to_string(),
                "-servername",
                NAME,
                "-CAfile",
            ])
            .arg(self.path("ca.pem"))
            .args(["-verify_hostname", NAME])
            .args(more)
            .stdin(Stdio::null())
            .output()
            .expect("openssl starts");
        format!(
            "{}{}",
            String::from_utf8_lossy(&done.stdout),
            String::from_utf8_lossy(&done.stderr)
        )
    }
}

/// A sidecar that ends TLS before a backend, with `more` in its `listen_tls`.
async fn terminating(office: &Office, more: &str) -> (Sidecar, examples::backend::Backend) {
    office.sign("server", NAME, 7);
    let setup = Setup::new("door", "eu-1a");
    let backend = backend_at(&setup, BACKEND_PORT, "shop").await;
    let tls = office.files(&[("cert", "server.pem"), ("key", "server.key")]);
    let address = setup.address;
    let sidecar = Sidecar::ready(setup.with(&format!(
        "[upstream.shop]\nlisten = \"{address}:{TLS_PORT}\"\nendpoints = [\"{address}:{BACKEND_PORT}\"]\nlisten_tls = {{ {tls}{more} }}\n"
    )))
    .await;
    (sidecar, backend)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_ends_tls_for_both_versions_of_http() {
    let Some(office) = Office::open("TLS ended at a listener") else {
        return;
    };
    let (sidecar, backend) = terminating(&office, "").await;
    let door = sidecar.port(TLS_PORT);
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let told = office.curl(door, "/headers", &[flag, "-w", "spoken %{http_version}"]);
        let told = told.unwrap_or_else(|why| panic!("{why}"));
        assert!(told.ends_with(&format!("spoken {version}")), "{told}");
        assert!(told.contains("[\"x-forwarded-proto\",\"https\"]"), "{told}");
    }
    // A body that takes many records.
    let body = office.curl(door, "/bytes/3000000", &[]).expect("an answer");
    assert_eq!(body.len(), 3_000_000);
    assert_eq!(backend.served(), 3);

    let seen = office.s_client(door, &["-alpn", "h2,http/1.1"]);
    assert!(seen.contains("Verify return code: 0 (ok)"), "{seen}");
    assert!(
        seen.contains("ALPN protocol: h2") && seen.contains("TLSv1.3"),
        "{seen}"
    );
    let old = office.s_client(door, &["-tls1_2"]);
    assert!(
        old.contains("alert") && !old.contains("Cipher is ECDHE"),
        "{old}"
    );
    // Words in the clear are no handshake, and hurt nobody.
    let clear = Call::get(NAME, "/").to(door).await;
    assert!(clear.is_err(), "{clear:?}");
    assert!(office.curl(door, "/", &[]).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_certificate_is_refused_where_one_is_asked_for() {
    let Some(office) = Office::open("client certificates") else {
        return;
    };
    let more = format!(
        ", {}, min_version = \"1.2\"",
        office.files(&[("client_ca", "ca.pem")])
    );
    let (sidecar, backend) = terminating(&office, &more).await;
    let door = sidecar.port(TLS_PORT);
    office.sign("me", "web", 8);
    let me = [office.path("me.pem"), office.path("me.key")].map(|path| path.display().to_string());
    let known = ["--cert", &me[0], "--key", &me[1]];
    assert!(office.curl(door, "/", &known).is_ok());
    let with_1_2 = office.curl(door, "/", &[&known[..], &["--tls-max", "1.2"]].concat());
    assert!(with_1_2.is_ok(), "{with_1_2:?}");
    let nobody = office.curl(door, "/", &[]);
    assert!(nobody.is_err(), "{nobody:?}");
    assert_eq!(backend.served(), 2);
}

/// `GET` through the first of two sidecars, which reaches the second over TLS.
async fn through(sidecar: &Sidecar, path: &str) -> Answer {
    sidecar.get("far.mesh", path).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_encrypted_again_towards_its_endpoint() {
    let Some(office) = Office::open("TLS towards endpoints") else {
        return;
    };
    let more = format!(", {}", office.files(&[("client_ca", "ca.pem")]));
    let (door, backend) = terminating(&office, &more).await;
    office.sign("me", "web", 8);
    let ca = office.files(&[("ca", "ca.pem")]);
    let me = office.files(&[("cert", "me.pem"), ("key", "me.key")]);
    let endpoint = door.port(TLS_PORT);
    let table = |name: &str, http: &str, tls: &str| {
        format!(
            "[upstream.{name}]\nendpoints = [\"{endpoint}\"]\nhttp = \"{http}\"\ntls = {{ {tls} }}\nretry = {{ retries = 0 }}\n"
        )
    };
    let well = format!("{ca}, {me}, server_name = \"{NAME}\"");
    let setup = Setup::new("caller", "eu-1a")
        .with(&table("far", "auto", &well))
        .with(&table("one", "1", &well))
        .with(&table("two", "2", &well))
        .with(&table(
            "misnamed",
            "auto",
            &format!("{ca}, {me}, server_name = \"other.internal\""),
        ))
        .with(&table("unnamed", "auto", &format!("{ca}, {me}")))
        .with(&table(
            "unknown",
            "auto",
            &format!("{ca}, server_name = \"{NAME}\""),
        ));
    let caller = Sidecar::ready(setup).await;
    for (authority, version) in [("far.mesh", "2"), ("one.mesh", "1.1"), ("two.mesh", "2")] {
        for _ in 0..3 {
            let answer = caller.get(authority, "/headers").await.expect("an answer");
            assert_eq!(answer.status, 200, "{authority}: {}", answer.text());
            // The far side's Via tells in which version the request came to it.
            assert!(
                answer.text().contains(&format!("{version} starling-door")),
                "{authority}: {}",
                answer.text()
            );
        }
    }
    // The endpoint would rather speak HTTP/2, where nothing can be upgraded: such a request comes by HTTP/1.1.
    let asked = "GET /headers HTTP/1.1\r\nHost: far.mesh\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let told = raw(caller.outbound(), asked.as_bytes(), Duration::from_secs(2)).await;
    let told = String::from_utf8_lossy(&told);
    assert!(told.contains("[\"upgrade\",\"websocket\"]"), "{told}");
    let large = through(&caller, "/bytes/5000000").await;
    assert_eq!((large.status, large.body.len()), (200, 5_000_000));
    let served = backend.served();
    for authority in ["misnamed.mesh", "unnamed.mesh", "unknown.mesh"] {
        let answer = caller.get(authority, "/").await.expect("an answer");
        assert!(
            matches!(answer.status, 502 | 503),
            "{authority}: {} {}",
            answer.status,
            answer.text()
        );
    }
    assert_eq!(
        backend.served(),
        served,
        "nothing reached it without a sound handshake"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_shakes_hands_as_requests_do() {
    let Some(office) = Office::open("checks over TLS") else {
        return;
    };
    let more = format!(", {}", office.files(&[("client_ca", "ca.pem")]));
    let (door, _backend) = terminating(&office, &more).await;
    office.sign("me", "web", 8);
    let me = office.files(&[("ca", "ca.pem"), ("cert", "me.pem"), ("key", "me.key")]);
    let ca = office.files(&[("ca", "ca.pem")]);
    let endpoint = door.port(TLS_PORT);
    let table = |name: &str, check: &str, tls: &str| {
        format!(
            "[upstream.{name}]\nendpoints = [\"{endpoint}\"]\ntls = {{ {tls}, server_name = \"{NAME}\" }}\n\
             check = {{ http = \"/healthz\", interval = \"100ms\"{check} }}\n"
        )
    };
    let setup = Setup::new("caller", "eu-1a")
        .with(&table("known", "", &me))
        .with(&table("ill", ", status = 503", &me))
        .with(&table("unknown", "", &ca));
    let caller = Sidecar::ready(setup).await;
    let checked = async || {
        let rows = caller.endpoints("known").await?;
        let log = caller.process.log();
        let failed = ["answered 200 OK", "no HTTP answer"].map(|why| log.contains(why));
        if rows[0].usable && failed == [true; 2] {
            Ok(())
        } else {
            Err(format!("{rows:?} {failed:?}"))
        }
    };
    until(PATIENCE, "one passes and the others fail", checked).await;
    for name in ["ill", "unknown"] {
        let rows = caller.endpoints(name).await.expect("a listing");
        assert!(!rows[0].usable, "{name}: {rows:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_while_connections_live_on() {
    let Some(office) = Office::open("certificates swapped hot") else {
        return;
    };
    let (sidecar, _backend) = terminating(&office, "").await;
    let door = sidecar.port(TLS_PORT);
    assert!(
        office
            .s_client(door, &["-showcerts"])
            .contains("Verify return code: 0")
    );
    let serial = |seen: &str| {
        let mut show = Command::new("openssl");
        show.args(["x509", "-noout", "-serial"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = show.spawn().expect("openssl starts");
        let mut input = child.stdin.take().expect("piped");
        std::io::Write::write_all(&mut input, seen.as_bytes()).expect("it reads");
        drop(input);
        let said = child.wait_with_output().expect("it ends").stdout;
        String::from_utf8_lossy(&said).trim().to_owned()
    };
    assert_eq!(serial(&office.s_client(door, &[])), "serial=07");

    // A request that lasts from before the change until after it.
    let lasting = {
        let place = format!("{NAME}:{}:{}", door.port(), door.ip());
        Command::new("curl")
            .args([
                "-sS",
                "-f",
                "--noproxy",
                "*",
                "--resolve",
                &place,
                "--cacert",
            ])
            .arg(office.path("ca.pem"))
            .arg(format!("https://{NAME}:{}/delay/6000", door.port()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("curl starts")
    };
    sidecar.until_busy("shop").await;
    // A key without its certificate is refused whole, and the old pair stays.
    office.sign("next", NAME, 9);
    std::fs::copy(office.path("next.key"), office.path("server.key")).expect("copied");
    let refused = sidecar.order("/v1/reload", "").await.expect("an answer");
    assert!(
        refused.status >= 400 && refused.text().contains("do not serve together"),
        "{}",
        refused.text()
    );
    assert_eq!(serial(&office.s_client(door, &[])), "serial=07");
    // The sidecar looks at the files by itself; nobody tells it.
    std::fs::copy(office.path("next.pem"), office.path("server.pem")).expect("copied");
    until(PATIENCE, "the new certificate is shown", || async {
        match serial(&office.s_client(door, &[])).as_str() {
            "serial=09" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    let done = lasting.wait_with_output().expect("it ends");
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert_eq!(String::from_utf8_lossy(&done.stdout), "late\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_understood_are_encrypted_and_decrypted_too() {
    let Some(office) = Office::open("TLS of tcp upstreams") else {
        return;
    };
    office.sign("server", NAME, 7);
    let far = Setup::new("far", "eu-1a");
    let backend = backend_at(&far, BACKEND_PORT, "shop").await;
    let (at, ca) = (far.address, office.files(&[("ca", "ca.pem")]));
    let pair = office.files(&[("cert", "server.pem"), ("key", "server.key")]);
    let far = Sidecar::ready(far.with(&format!(
        "[upstream.ends]\nprotocol = \"tcp\"\nlisten = \"{at}:{TLS_PORT}\"\nendpoints = [\"{at}:{BACKEND_PORT}\"]\nlisten_tls = {{ {pair} }}\n"
    )))
    .await;
    let near = Setup::new("near", "eu-1a");
    let listen = SocketAddr::new(near.address, 7001);
    let _near = Sidecar::ready(near.with(&format!(
        "[upstream.begins]\nprotocol = \"tcp\"\nlisten = \"{listen}\"\nendpoints = [\"{at}:{TLS_PORT}\"]\ntls = {{ {ca}, server_name = \"{NAME}\" }}\n"
    )))
    .await;
    let body = office.curl(far.port(TLS_PORT), "/bytes/3000000", &["--http1.1"]);
    assert_eq!(body.map(|body| body.len()), Ok(3_000_000));
    // In the clear to the first sidecar, by TLS from there to the second, in the clear to the backend.
    let answer = Call::get(NAME, "/bytes/3000000").to(listen).await;
    assert_eq!(answer.map(|answer| answer.body.len()), Ok(3_000_000));
    assert_eq!(backend.served(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_header_goes_before_the_handshake() {
    let Some(office) = Office::open("a PROXY header before TLS") else {
        return;
    };
    let setup = Setup::new("host", "eu-1a");
    let (listen, server) = (
        SocketAddr::new(setup.address, TLS_PORT),
        SocketAddr::new(setup.address, BACKEND_PORT),
    );
    let listener = TcpListener::bind(server).await.expect("a free address");
    let _sidecar = Sidecar::ready(setup.with(&format!(
        "[upstream.shop]\nprotocol = \"tcp\"\nlisten = \"{listen}\"\nendpoints = [\"{server}\"]\n\
         send_proxy_protocol = \"v1\"\ntls = {{ ca = \"{}\", server_name = \"{NAME}\" }}\n",
        office.path("ca.pem").display()
    )))
    .await;
    let client = TcpStream::connect(listen).await.expect("open");
    let from = client.local_addr().expect("bound");
    let (mut stream, _) = listener.accept().await.expect("the sidecar calls");
    let wanted = format!(
        "PROXY TCP4 {} {} {} {}\r\n",
        from.ip(),
        listen.ip(),
        from.port(),
        listen.port()
    );
    let mut said = vec![0; wanted.len() + 1];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut said)).await;
    read.expect("in time").expect("a header and a handshake");
    let (header, handshake) = said.split_at(wanted.len());
    assert_eq!(String::from_utf8_lossy(header), wanted);
    assert_eq!(handshake, [22], "a TLS handshake follows");
}
