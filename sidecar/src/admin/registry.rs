//! What applications say of themselves: that they are there, that they go, and how they are.
//!
//! Not here: what becomes of it (`gossip/probe.rs`).

use http::{Method, StatusCode};
use mesh_proto::record::Health;
use serde::Deserialize;
use tokio::sync::oneshot;

use super::{
    Answer, Command, Instance, State,
    routes::{Reply, decoded, fault, order},
};
use crate::config;

/// The instance that the rest of a path names, and whether its health is meant.
pub fn instance_of(rest: &str) -> Option<(Instance, bool)> {
    let mut parts = rest.split('/');
    let instance = Instance {
        service: decoded(parts.next()?).into(),
        instance: decoded(parts.next()?).into(),
    };
    let of_health = match parts.next() {
        None => false,
        Some("health") => true,
        Some(_) => return None,
    };
    let whole = !instance.service.is_empty() && !instance.instance.is_empty();
    (whole && parts.next().is_none()).then_some((instance, of_health))
}

/// `PUT` registers or renews, `DELETE` takes back.
pub async fn instance(state: &State, method: &Method, instance: Instance, body: &[u8]) -> Reply {
    if *method == Method::DELETE {
        return order(state, |reply| Command::Deregister(instance, reply)).await;
    }
    let said = match serde_json::from_slice(body) {
        Ok(said) => said,
        Err(error) => {
            return unreadable(&error, "send one like {\"port\": 8080, \"lease\": \"30s\"}");
        }
    };
    let lease = {
        let loaded = state.config.borrow();
        config::lease(&instance.service, &instance.instance, &said, &loaded.config)
    };
    match lease {
        Ok(lease) => {
            let register = |reply: oneshot::Sender<Answer>| Command::Register(lease.into(), reply);
            order(state, register).await
        }
        Err(faults) => {
            let what: Vec<String> = faults
                .iter()
                .map(|fault| format!("{}: {}", fault.key, fault.what))
                .collect();
            let fixes: Vec<&str> = faults.iter().map(|fault| &*fault.fix).collect();
            fault(StatusCode::BAD_REQUEST, &what.join("\n"), &fixes.join("\n"))
        }
    }
}

/// The body of an instance's word; left out, it is well.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    #[serde(default)]
    health: Word,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    #[default]
    Passing,
    Warning,
    Failing,
}

/// Takes an instance's own word on how it is.
pub async fn health(state: &State, instance: Instance, body: &[u8]) -> Reply {
    let said = if body.trim_ascii().is_empty() {
        Ok(Said::default())
    } else {
        serde_json::from_slice(body)
    };
    let health = match said {
        Ok(Said { health }) => match health {
            Word::Passing => Health::Passing,
            Word::Warning => Health::Warning,
            Word::Failing => Health::Failing,
        },
        Err(error) => {
            let next =
                "send nothing, or {\"health\": \"warning\"}; passing and failing are the others";
            return unreadable(&error, next);
        }
    };
    order(state, |reply| Command::Say(instance, health, reply)).await
}

fn unreadable(error: &serde_json::Error, next: &str) -> Reply {
    let message = format!("the body cannot be read: {error}");
    fault(StatusCode::BAD_REQUEST, &message, next)
}
