//! What the table of connections says of those of HTTP while they are open.

use mesh_core::policy::Sticky;

use super::*;
use crate::proxy::connections::row::Query;

#[test]
fn the_session_of_the_last_request_is_listed_and_never_its_whole_cookie() {
    run(async {
        let world = world(vec![(1, script(|_, s| echo(s)))], &[1], |policy| {
            policy.sticky = Some(Sticky::Cookie {
                name: "s".into(),
                ttl: None,
            });
        });
        let token = "0123456789abcdef0123456789abcdef";
        let mut client = world.client();
        for (cookie, listed) in [
            (format!("Cookie: s={token}\r\n"), Some("01234567")),
            (String::new(), None),
        ] {
            let ask = format!("GET / HTTP/1.1\r\nHost: web.mesh\r\n{cookie}\r\n");
            client.write_all(ask.as_bytes()).await.unwrap();
            head(&mut client).await;
            head(&mut client).await;
            let rows = world.worker.connections.rows(&Query::default());
            let row = rows.iter().find(|row| row.side == "client").unwrap();
            assert_eq!(row.sticky.as_deref(), listed, "{row:?}");
        }
    });
}
