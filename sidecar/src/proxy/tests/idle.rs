//! How long an idle connection of HTTP/1 to an endpoint is used again: by default, as the server says, to another Starling.
//!
//! Not here: what is learned of a server that says nothing (`pool.rs`).

use super::*;

/// Answers every request with this field beside the length.
fn says(field: &'static str) -> Script {
    script(move |_, mut stream| async move {
        while !head(&mut stream).await.is_empty() {
            let answer = format!("HTTP/1.1 200 OK\r\n{field}content-length: 2\r\n\r\nok");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
}

/// Connections that two requests take where the second begins so long after the first.
async fn connections(field: &'static str, rest: Duration) -> usize {
    let world = world(vec![(1, says(field))], &[1], |_| {});
    assert!(world.ask(GET).await.ends_with("ok"));
    pass(rest).await;
    assert!(world.ask(GET).await.ends_with("ok"));
    world.dialled.borrow().len()
}

#[test]
fn an_idle_connection_is_used_again_for_as_long_as_its_server_surely_keeps_it() {
    const CASES: &[(&str, u64)] = &[
        // Nothing is known.
        ("", 3_000),
        ("keep-alive: max=100\r\n", 3_000),
        ("keep-alive: timeout=soon\r\n", 3_000),
        // A second less than it says.
        ("keep-alive: timeout=5\r\n", 4_000),
        ("keep-alive: timeout=60, max=100\r\n", 59_000),
        ("keep-alive: max=100, timeout=2\r\n", 1_000),
        ("keep-alive: timeout=100000\r\n", 90_000),
        // Another Starling, whatever stood before it.
        ("via: 1.1 starling-far\r\n", 90_000),
        ("via: 1.1 nginx, 1.1 starling-far\r\n", 90_000),
        ("via: 1.1 starling-far, 1.1 nginx\r\n", 3_000),
    ];
    for (field, lasts) in CASES {
        run(async {
            let shorter = Duration::from_millis(lasts - 100);
            assert_eq!(connections(field, shorter).await, 1, "{field:?}");
            let longer = Duration::from_millis(lasts + 100);
            assert_eq!(connections(field, longer).await, 2, "{field:?}");
        });
    }
}

#[test]
fn a_server_that_keeps_nothing_gets_a_connection_for_each_request() {
    run(async {
        let field = "keep-alive: timeout=1\r\n";
        assert_eq!(connections(field, Duration::ZERO).await, 2);
    });
}
