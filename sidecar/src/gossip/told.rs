//! What is new in the mesh, one debug line each, at the moment calls begin to go by it.
//!
//! Not here: what the gossip itself has to say (`agent.rs`). Scripts that time the mesh read these lines
//! (`RUST_LOG=sidecar::gossip::told=debug`), for asking every sidecar again and again would disturb what they measure.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::mesh::{Instance, Mesh, Node};
use tracing::{Level, debug, enabled};

/// Tells what `new` has that `old` had not, and what it has no more. Costs nothing unless the lines are asked for.
pub fn tell(old: &Mesh, new: &Mesh) {
    if !enabled!(Level::DEBUG) {
        return;
    }
    for change in changes(old, new) {
        match change {
            Change::Node(node) => {
                debug!(node = &*node.name, state = ?node.state, incarnation = node.incarnation, "node");
            }
            Change::Forgotten(node) => debug!(node = &*node.name, state = "Forgotten", "node"),
            Change::Instance(Instance {
                node,
                record,
                version,
                ..
            }) => debug!(
                node = &*node.name,
                service = &*record.service,
                instance = &*record.instance,
                health = ?record.health,
                state = ?record.state,
                weight = record.weight,
                version,
                "instance"
            ),
            Change::Withdrawn(Instance { node, record, .. }) => debug!(
                node = &*node.name,
                service = &*record.service,
                instance = &*record.instance,
                state = "Withdrawn",
                "instance"
            ),
        }
    }
}

/// One difference between two meshes.
#[derive(Debug)]
enum Change<'a> {
    Node(&'a Node),
    Forgotten(&'a Node),
    Instance(&'a Instance),
    Withdrawn(&'a Instance),
}

fn changes<'a>(old: &'a Mesh, new: &'a Mesh) -> Vec<Change<'a>> {
    let mut changes = Vec::new();
    let mut nodes: BTreeMap<u64, &Arc<Node>> =
        old.nodes.iter().map(|node| (node.id, node)).collect();
    for node in &new.nodes {
        let before = nodes.remove(&node.id);
        if before.is_none_or(|before| before.state != node.state) {
            changes.push(Change::Node(node));
        }
    }
    changes.extend(nodes.into_values().map(|node| Change::Forgotten(node)));
    let mut instances: BTreeMap<_, &Instance> = (old.instances.iter())
        .map(|instance| (name(instance), instance))
        .collect();
    for instance in &new.instances {
        let before = instances.remove(&name(instance));
        let is_same = |before: &Instance| {
            (before.epoch, before.version) == (instance.epoch, instance.version)
        };
        if !before.is_some_and(is_same) {
            changes.push(Change::Instance(instance));
        }
    }
    changes.extend(instances.into_values().map(Change::Withdrawn));
    changes
}

fn name(instance: &Instance) -> (u64, &str, &str) {
    let record = &instance.record;
    (instance.node.id, &record.service, &record.instance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::{mesh::NodeState, moment::Moment};
    use mesh_proto::record::{Health, InstanceState, ServiceRecord, WireProtocol};

    fn node(id: u64, state: NodeState) -> Arc<Node> {
        Arc::new(Node {
            id,
            name: format!("host-{id}").into(),
            address: ([10, 0, 0, id as u8], 7946).into(),
            zone: "eu-1a".into(),
            region: "eu-1".into(),
            state,
            since: Moment::START,
            incarnation: 0,
        })
    }

    fn instance(node: &Arc<Node>, version: u64) -> Instance {
        Instance {
            node: node.clone(),
            epoch: 1,
            record: Arc::new(ServiceRecord {
                service: "shop".into(),
                instance: format!("{}-8080", node.name).into(),
                address: ([10, 0, 0, node.id as u8], 8080).into(),
                protocol: WireProtocol::Http,
                weight: 100,
                health: Health::Passing,
                state: InstanceState::Up,
                started_at_ms: 0,
                capacity: None,
                tags: BTreeMap::new(),
            }),
            version,
        }
    }

    fn mesh(nodes: &[Arc<Node>], instances: &[Instance]) -> Mesh {
        Mesh {
            nodes: nodes.to_vec(),
            instances: instances.to_vec(),
            ..Mesh::default()
        }
    }

    #[test]
    fn only_what_differs_is_told() {
        let (one, two) = (node(1, NodeState::Alive), node(2, NodeState::Alive));
        let old = mesh(
            &[one.clone(), two.clone()],
            &[instance(&one, 1), instance(&two, 1)],
        );
        assert!(changes(&old, &old).is_empty());

        let (down, three) = (node(2, NodeState::Down), node(3, NodeState::Alive));
        let new = mesh(
            &[one.clone(), down.clone(), three],
            &[instance(&one, 2), instance(&down, 1)],
        );
        let told = changes(&old, &new);
        assert!(
            matches!(
                &told[..],
                [Change::Node(a), Change::Node(b), Change::Instance(c)]
                    if a.state == NodeState::Down && b.id == 3 && c.version == 2
            ),
            "{told:?}"
        );

        let less = mesh(&[one], &[]);
        let told = changes(&old, &less);
        assert!(
            matches!(
                &told[..],
                [Change::Forgotten(gone), Change::Withdrawn(_), Change::Withdrawn(_)] if gone.id == 2
            ),
            "{told:?}"
        );
    }
}
