//! TLS passed through by server name: OpenSSL's servers behind one listener, its client and curl before it.
//!
//! Not here: every form a ClientHello may have (the sidecar's `client_hello.rs`).

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    time::Duration,
};

use mesh_tests::{
    PATIENCE,
    http::raw,
    process::{Process, installed},
    scratch::Scratch,
    sidecar::{Setup, Sidecar},
    skipped,
    until::until,
};

/// OpenSSL's server with a certificate for `name` of its own making.
fn server(name: &str, at: SocketAddr, scratch: &Scratch) -> Process {
    let file = |end: &str| scratch.path().join(format!("{name}.{end}"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args(["-nodes", "-days", "2", "-subj", &format!("/CN={name}")])
        .args(["-addext", &format!("subjectAltName=DNS:{name}")])
        .arg("-keyout")
        .arg(file("key"))
        .arg("-out")
        .arg(file("pem"))
        .stderr(Stdio::null())
        .status();
    assert!(
        made.is_ok_and(|status| status.success()),
        "openssl makes certificates"
    );
    let mut command = Command::new("openssl");
    command.args(["s_server", "-quiet", "-www", "-accept", &at.to_string()]);
    command
        .arg("-cert")
        .arg(file("pem"))
        .arg("-key")
        .arg(file("key"));
    Process::start(&format!("openssl of {name}"), command, &file("log"))
}

/// What OpenSSL's client says of a connection that asks for `name`, or for nobody.
fn told(at: SocketAddr, name: Option<&str>) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &at.to_string()]);
    match name {
        Some(name) => command.args(["-servername", name]),
        None => command.arg("-noservername"),
    };
    let output = command.stdin(Stdio::null()).output().expect("openssl runs");
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_name_leads_to_its_upstream_and_tls_is_not_opened() {
    for program in ["openssl", "curl"] {
        if !installed(program) {
            return skipped("TLS by server name", &format!("{program} is not installed"));
        }
    }
    let setup = Setup::new("host", "eu-1a");
    let at = |port: u16| SocketAddr::new(setup.address, port);
    let scratch = Scratch::new();
    let _servers = [
        server("a.example", at(8441), &scratch),
        server("x.b.example", at(8442), &scratch),
        server("rest.example", at(8443), &scratch),
    ];
    let (shared, strict) = (at(7445), at(7446));
    let table = |name: &str, listen: SocketAddr, sni: &str, port: u16| {
        format!(
            "[upstream.{name}]\nprotocol = \"tls\"\nlisten = \"{listen}\"\n{sni}\nendpoints = [\"{}\", \"{}\"]\n",
            at(port),
            // Nobody listens there: a connection that is refused is made elsewhere, what was read first goes with it.
            at(port + 100),
        )
    };
    let tables = [
        table("a", shared, "sni = [\"a.example\"]", 8441),
        table("b", shared, "sni = [\"*.b.example\"]", 8442),
        table("rest", shared, "", 8443),
        table("strict", strict, "sni = [\"A.Example\"]", 8441),
    ];
    let sidecar = Sidecar::ready(setup.clone().with(&tables.concat())).await;
    for (name, listen, expected) in [
        (Some("a.example"), shared, "a.example"),
        (Some("A.EXAMPLE"), shared, "a.example"),
        (Some("x.b.example"), shared, "x.b.example"),
        (Some("b.example"), shared, "rest.example"),
        (None, shared, "rest.example"),
        (Some("a.example"), strict, "a.example"),
    ] {
        until(
            PATIENCE,
            &format!("{name:?} leads to {expected}"),
            || async {
                let said = told(listen, name);
                let subject = said.lines().find(|line| line.starts_with("subject="));
                let ends_there = subject.is_some_and(|line| line.trim_end().ends_with(expected));
                if ends_there { Ok(()) } else { Err(said) }
            },
        )
        .await;
    }
    // curl trusts the certificate of the server itself, so nobody in between has opened anything.
    let page = Command::new("curl")
        .args(["-sS", "-f", "--max-time", "10", "--cacert"])
        .arg(scratch.path().join("a.example.pem"))
        .args(["--connect-to", &format!("a.example:443:{shared}")])
        .arg("https://a.example/")
        .output()
        .expect("curl runs");
    let text = String::from_utf8_lossy(&page.stdout);
    assert!(
        page.status.success() && text.contains("s_server"),
        "{page:?}"
    );

    let stranger = told(strict, Some("stranger.example"));
    assert!(stranger.contains("unrecognized name"), "{stranger}");
    let before = sidecar.metric("starling_client_faults_total").await;
    let plain = raw(
        shared,
        b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        Duration::from_secs(5),
    )
    .await;
    assert!(plain.is_empty(), "{}", String::from_utf8_lossy(&plain));
    assert_eq!(
        sidecar.metric("starling_client_faults_total").await - before,
        1.0
    );
}
