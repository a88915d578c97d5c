//! What a client hears inside TLS that is ended here: over real sockets, for TLS is ended on TCP alone.
//!
//! Not here: handshakes and certificates (the unit tests beside `tls.rs`).

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::*;
use crate::{
    proxy::{listen::Door, welcome},
    tls::{ClientTls, Inside, ServerTls, tests::Office},
};

#[test]
fn an_answer_that_ends_with_its_connection_ends_inside_tls_too() {
    const BODIES: &[&str] = &[
        "transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "connection: close\r\n\r\nok",
        "content-length: 2\r\n\r\nok",
    ];
    let office = Office::open("ends");
    let server = office.server(office.sign("web.mesh", 1));
    let server = ServerTls::load(&server, Inside::EitherHttp).unwrap();
    let client = ClientTls::load(&office.client("web.mesh"), Inside::Http1).unwrap();
    for &body in BODIES {
        run(async {
            tokio::time::resume();
            let answers = script(move |_, mut stream| async move {
                head(&mut stream).await;
                let answer = format!("HTTP/1.1 200 OK\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
            let world = world(vec![(1, answers)], &[1], |_| {});
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = listener.local_addr().unwrap();
            let (stream, accepted) = tokio::join!(TcpStream::connect(at), listener.accept());
            let (accepted, peer) = accepted.unwrap();
            welcome::serve(
                &world.worker,
                Transport::Tcp(accepted),
                Some(peer.ip()),
                Door::Authority,
                Some(server.clone()),
                Place::uncounted(),
            );
            let connector = TlsConnector::from(Arc::clone(&client.config));
            let name = client.server_name.clone().unwrap();
            let mut stream = connector.connect(name, stream.unwrap()).await.unwrap();
            let ask = b"GET / HTTP/1.0\r\nHost: web.mesh\r\n\r\n";
            stream.write_all(ask).await.unwrap();
            let mut answer = String::new();
            let read = stream.read_to_string(&mut answer).await;
            assert!(read.is_ok(), "{body:?}: {read:?} after {answer:?}");
            assert!(answer.ends_with("\r\n\r\nok"), "{body:?}: {answer:?}");
        });
    }
}
