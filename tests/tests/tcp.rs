//! TCP upstreams: real Redis through them, servers that speak first, and failover on a new connection.
//!
//! Not here: HTTP.

use std::{net::SocketAddr, process::Command, time::Duration};

use mesh_tests::{
    PATIENCE,
    process::{Process, installed},
    scratch::Scratch,
    sidecar::{Setup, Sidecar},
    skipped,
    until::until,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const REDIS_PORT: u16 = 6379;

fn redis_server(setup: &Setup, scratch: &Scratch) -> Process {
    let mut command = Command::new("redis-server");
    command.args([
        "--save",
        "",
        "--appendonly",
        "no",
        "--port",
        "6379",
        "--bind",
    ]);
    command.arg(setup.address.to_string());
    command.current_dir(scratch.path());
    let log = scratch.path().join(format!("{}.log", setup.name));
    Process::start(&format!("redis-server of {}", setup.name), command, &log)
}

/// One `redis-cli` call on a connection of its own.
fn redis(at: SocketAddr, words: &[&str]) -> Result<String, String> {
    let output = Command::new("redis-cli")
        .args(["-h", &at.ip().to_string(), "-p", &at.port().to_string()])
        .args(words)
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && !said.is_empty() {
        return Ok(said);
    }
    Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_fails_over_to_the_second_server_on_a_new_connection() {
    if !installed("redis-server") || !installed("redis-cli") {
        return skipped(
            "redis over TCP",
            "redis-server or redis-cli is not installed",
        );
    }
    let service = "[service.cache]\nport = 6379\nprotocol = \"tcp\"\ncheck = { tcp = true, interval = \"250ms\" }\n";
    let first = Setup::new("first", "eu-1a").with(service);
    let second = Setup::new("second", "eu-1b").with(service).joining(&first);
    let scratch = Scratch::new();
    let mut near = redis_server(&first, &scratch);
    let _far = redis_server(&second, &scratch);
    let listen = SocketAddr::new(first.address, 7001);
    let first = first.with(&format!(
        "[upstream.cache]\nprotocol = \"tcp\"\nlisten = \"{listen}\"\n"
    ));
    let far_address = SocketAddr::new(second.address, REDIS_PORT);
    let sidecar = Sidecar::ready(first).await;
    let _second = Sidecar::ready(second).await;
    sidecar.until_usable("cache", 2, PATIENCE).await;

    assert_eq!(redis(listen, &["SET", "where", "near"]), Ok("OK".into()));
    assert_eq!(
        redis(far_address, &["SET", "where", "far"]),
        Ok("OK".into())
    );
    for _ in 0..10 {
        assert_eq!(redis(listen, &["GET", "where"]), Ok("near".into()));
    }
    near.kill();
    // No grace: the very next connection goes to the other server.
    for _ in 0..10 {
        assert_eq!(redis(listen, &["GET", "where"]), Ok("far".into()));
    }
    let _near = redis_server(&sidecar.setup, &scratch);
    until(PATIENCE * 3, "the own zone serves again", || async {
        redis(listen, &["SET", "where", "near again"])?;
        match redis(far_address, &["GET", "where"])?.as_str() {
            "far" => Ok(()),
            other => {
                redis(far_address, &["SET", "where", "far"])?;
                Err(format!("the far one was written: {other}"))
            }
        }
    })
    .await;
}

/// Greets before it is asked, then answers everything that came once the caller has finished.
async fn greeter(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            stream.write_all(b"220 ready\r\n").await?;
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await?;
            stream
                .write_all(format!("got {}", all.len()).as_bytes())
                .await?;
            stream.shutdown().await
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_first_is_heard_and_half_close_is_kept() {
    let setup = Setup::new("host", "eu-1a");
    let server = TcpListener::bind((setup.address, 2525))
        .await
        .expect("a free address");
    let fixed = server.local_addr().expect("it is bound");
    tokio::spawn(greeter(server));
    let listen = SocketAddr::new(setup.address, 7001);
    let dead = SocketAddr::new(setup.address, 2526);
    let sidecar = Sidecar::ready(setup.with(&format!(
        "[upstream.mail]\nprotocol = \"tcp\"\nlisten = \"{listen}\"\nendpoints = [\"{fixed}\", \"{dead}\"]\n"
    )))
    .await;

    // One of the two endpoints refuses every connection: nobody may notice.
    for _ in 0..20 {
        let mut stream = TcpStream::connect(listen).await.expect("open");
        let mut greeting = [0; 11];
        let heard = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut greeting));
        heard.await.expect("in time").expect("no reset");
        assert_eq!(&greeting, b"220 ready\r\n");
        stream.write_all(&[7; 100_000]).await.expect("sent");
        stream.shutdown().await.expect("half-closed");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.expect("an end");
        assert_eq!(rest, "got 100000");
    }
    drop(sidecar);
}
