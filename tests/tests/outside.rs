//! Endpoints outside the mesh: found by name, checked by their caller.
//!
//! Not here: tiers, weights and backups of such endpoints (`request_path.rs`).

use std::net::SocketAddr;

use examples::backend::{Backend, Behaviour};
use mesh_tests::{
    PATIENCE,
    http::Call,
    sidecar::{Setup, Sidecar, backend_at},
    until::until,
};

async fn until_answered_by(sidecar: &Sidecar, name: &str) {
    until(PATIENCE, &format!("{name} answers"), || async {
        let answer = sidecar.get("legacy.mesh", "/").await?;
        let by = answer.header("x-backend").to_owned();
        if by == name { Ok(()) } else { Err(by) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_named_endpoint_is_used_while_its_callers_check_passes() {
    // The name is of every machine; its port is whatever is free.
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let named = Backend::start(anywhere, Behaviour::well("named", "eu-1a"))
        .await
        .expect("a free port");
    let setup = Setup::new("caller", "eu-1a");
    let spare = backend_at(&setup, 9001, "spare").await;
    let sidecar = Sidecar::ready(setup.with(&format!(
        r#"
[upstream.legacy]
endpoints = [
  "localhost:{}",
  {{ address = "{}", backup = true }},
]
check = {{ http = "/healthz", interval = "100ms", timeout = "2s", fall = 2, rise = 2 }}
"#,
        named.address().port(),
        spare.address(),
    )))
    .await;

    until_answered_by(&sidecar, "named").await;
    // It still answers calls well; only its own word on its health says otherwise.
    tell(&named, "/healthz/fail").await;
    until_answered_by(&sidecar, "spare").await;
    let rows = sidecar.endpoints("legacy").await.expect("a listing");
    let at = named.address().to_string();
    let row = rows.iter().find(|row| row.address == at);
    assert!(row.is_some_and(|row| !row.usable), "{rows:?}");
    tell(&named, "/healthz/pass").await;
    until_answered_by(&sidecar, "named").await;
}

async fn tell(backend: &Backend, path: &str) {
    let call = Call::get("localhost", path).with_body(http::Method::POST, "");
    let answer = call.to(backend.address()).await.expect("an answer");
    assert!(answer.status < 300, "{}", answer.status);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_never_passed_is_never_called() {
    let setup = Setup::new("caller", "eu-1a");
    let sick = backend_at(&setup, 9001, "sick").await;
    tell(&sick, "/healthz/fail").await;
    let sidecar = Sidecar::ready(setup.with(&format!(
        "[upstream.legacy]\nendpoints = [\"{}\"]\ncheck = {{ http = \"/healthz\", interval = \"100ms\" }}\n",
        sick.address(),
    )))
    .await;
    let checked = async || {
        let rows = sidecar.endpoints("legacy").await?;
        let out = rows.len() == 1 && !rows[0].usable;
        if out && sidecar.process.log().contains("check failed") {
            Ok(())
        } else {
            Err(format!("{rows:?}"))
        }
    };
    until(PATIENCE, "it was checked and is out", checked).await;
    let answer = sidecar.get("legacy.mesh", "/").await.expect("an answer");
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(sick.served(), 0, "it was called all the same");
    tell(&sick, "/healthz/pass").await;
    until_answered_by(&sidecar, "sick").await;
}
