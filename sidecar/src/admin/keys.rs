//! Gossip keys over the admin API: what is told of them (ids, never a key), and the orders read from a body.
//!
//! Not here: what an order does (`gossip/keys.rs`).

use http::StatusCode;
use mesh_proto::frame::KeyId;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;

use super::{
    Command, State, listing,
    routes::{Reply, fault, json, send},
};
use crate::{
    config::GossipKey,
    gossip::keys::{Holder, KeyOrder, KeyStatus},
};

/// `/v1/keys`.
#[derive(Serialize)]
struct Listing {
    /// In the order of the ring; those that were in it since the start follow.
    keys: Vec<Key>,
    /// The other nodes.
    nodes: Vec<Node>,
    /// Whether orders made the ring other than the configuration has it.
    ordered: bool,
}

#[derive(Serialize)]
struct Key {
    id: String,
    /// `seals`, `opens`, or `removed`.
    state: &'static str,
    /// The configuration names it.
    configured: bool,
    sealed: u64,
    opened: u64,
    /// Other nodes that are there and hold it.
    held_by: usize,
    /// Other nodes that are there and seal with it.
    sealed_by: usize,
}

#[derive(Serialize)]
struct Node {
    node: String,
    state: &'static str,
    /// The one it seals with first; null if it does not tell.
    keys: Option<Vec<String>>,
}

impl Listing {
    fn of(status: &KeyStatus) -> Listing {
        let count = |is: &dyn Fn(&[KeyId]) -> bool| {
            let there = status.others.iter().filter(|other| !other.is_gone());
            there
                .filter(|other| other.keys.as_deref().is_some_and(is))
                .count()
        };
        let key = |row: &crate::gossip::keys::KeyRow| Key {
            id: row.id.to_string(),
            state: match (row.held, row.seals) {
                (_, true) => "seals",
                (true, false) => "opens",
                (false, false) => "removed",
            },
            configured: row.configured,
            sealed: row.sealed,
            opened: row.opened,
            held_by: count(&|keys| keys.contains(&row.id)),
            sealed_by: count(&|keys| keys.first() == Some(&row.id)),
        };
        let node = |other: &Holder| Node {
            node: other.node.clone(),
            state: listing::state(other.state),
            keys: (other.keys.as_ref()).map(|keys| keys.iter().map(KeyId::to_string).collect()),
        };
        let mut nodes: Vec<Node> = status.others.iter().map(node).collect();
        nodes.sort_by(|a, b| a.node.cmp(&b.node));
        Listing {
            keys: status.keys.iter().map(key).collect(),
            nodes,
            ordered: status.ordered,
        }
    }
}

/// Which order a path gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    Install,
    Use,
    Remove,
}

/// The body of an order; never shown, for it may hold a key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    key: Option<String>,
    id: Option<String>,
    #[serde(default)]
    force: bool,
}

fn read(verb: Verb, body: &[u8]) -> Option<KeyOrder> {
    // What serde says of a fault may quote the body.
    let asked: Asked = serde_json::from_slice(body).ok()?;
    let force = asked.force;
    match (verb, asked.key, asked.id) {
        (Verb::Install, Some(key), None) => Some(KeyOrder::Install(key.parse::<GossipKey>().ok()?)),
        (Verb::Use, None, Some(id)) => Some(KeyOrder::Use {
            id: id.parse().ok()?,
            force,
        }),
        (Verb::Remove, None, Some(id)) => Some(KeyOrder::Remove {
            id: id.parse().ok()?,
            force,
        }),
        _ => None,
    }
}

/// Tells of all keys.
pub async fn status(state: &State) -> Reply {
    match ask(state, KeyOrder::Status).await {
        Ok(answer) => json(StatusCode::OK, &Listing::of(&answer.status)),
        Err(reply) => reply,
    }
}

/// Carries an order out.
pub async fn order(state: &State, verb: Verb, body: &[u8]) -> Reply {
    let Some(order) = read(verb, body) else {
        let next = match verb {
            Verb::Install => "send {\"key\": \"64 hex digits\"}; `starling key new` makes one",
            Verb::Use | Verb::Remove => {
                "send {\"id\": \"8 hex digits\"}, as `starling key status` lists them"
            }
        };
        return fault(StatusCode::BAD_REQUEST, "the body is no such order", next);
    };
    match ask(state, order).await {
        Ok(answer) => {
            let mut done = answer.done;
            if let Some(why) = answer.not_kept {
                done.push_str(&format!("; a restart forgets it: {why}"));
            }
            json(StatusCode::OK, &json!({ "done": done }))
        }
        Err(reply) => reply,
    }
}

async fn ask(state: &State, order: KeyOrder) -> Result<crate::gossip::keys::KeyAnswer, Reply> {
    let (sender, receiver) = oneshot::channel();
    send(state, Command::Keys(order, sender), receiver).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_says_one_thing_and_the_rest_is_refused() {
        let key = "ab".repeat(32);
        let install = format!("{{\"key\": \"{key}\"}}");
        assert!(matches!(
            read(Verb::Install, install.as_bytes()),
            Some(KeyOrder::Install(_))
        ));
        let id = br#"{"id": "01020304", "force": true}"#;
        assert!(matches!(
            read(Verb::Use, id),
            Some(KeyOrder::Use {
                id: KeyId([1, 2, 3, 4]),
                force: true
            })
        ));
        assert!(matches!(
            read(Verb::Remove, br#"{"id": "01020304"}"#),
            Some(KeyOrder::Remove { force: false, .. })
        ));
        for (verb, body) in [
            (Verb::Install, id.as_slice()),
            (Verb::Install, br#"{"key": "abcd"}"#),
            (Verb::Install, b""),
            (Verb::Use, install.as_bytes()),
            (Verb::Use, br#"{"id": "1"}"#),
            (Verb::Use, br#"{"id": "+1020304"}"#),
            (Verb::Remove, br#"{"id": "01020304", "why": "old"}"#),
        ] {
            assert!(read(verb, body).is_none(), "{verb:?}");
        }
    }
}
