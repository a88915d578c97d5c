//! What is to be said of a member beside its state, as a sentence with the next step.
//!
//! Not here: how it was found out (`mesh_core::membership`).

use mesh_core::mesh::{Node, NodeState, Remark, Stream};

/// The sentence about a node, if there is one.
pub fn note(node: &Node, remark: Option<&Remark>) -> Option<String> {
    let address = node.address;
    let port = address.port();
    let words = match (node.state, remark?) {
        (NodeState::Alive, Remark::StreamsOnly { .. }) => format!(
            "UDP to {address} or back is lost, but TCP works: open port {port} for UDP in both directions, in the firewalls of both hosts and between them"
        ),
        (NodeState::Suspect, Remark::Suspected { by_us, stream }) => {
            let by = if *by_us {
                "it answered no probe of this node, neither by UDP nor through other nodes"
            } else {
                "other nodes say that it answers no probe"
            };
            let stream = match stream {
                Some(Stream::Refused) => {
                    "; its host refused TCP, so its sidecar is probably gone: look for it there (`systemctl status starling`)"
                }
                Some(Stream::Silent) => {
                    "; TCP was not answered either: host, network or a stalled process"
                }
                Some(Stream::Answered) => {
                    "; TCP was answered, so datagrams are lost or the host is very busy"
                }
                None => "",
            };
            format!("{by}{stream}. It is down in some seconds unless it objects")
        }
        // The state went on and the remark is of before.
        _ => return None,
    };
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::moment::Moment;

    fn node(state: NodeState) -> Node {
        Node {
            id: 1,
            name: "web-1".into(),
            address: ([10, 0, 0, 5], 7946).into(),
            zone: "eu-1a".into(),
            region: "eu-1".into(),
            state,
            since: Moment::START,
            incarnation: 0,
        }
    }

    #[test]
    fn a_blocked_path_is_told_with_the_port_to_open() {
        let remark = Remark::StreamsOnly {
            since: Moment::START,
        };
        let words = note(&node(NodeState::Alive), Some(&remark)).unwrap();
        assert!(words.contains("UDP to 10.0.0.5:7946"), "{words}");
        assert!(words.contains("open port 7946 for UDP"), "{words}");
        assert_eq!(note(&node(NodeState::Down), Some(&remark)), None);
        assert_eq!(note(&node(NodeState::Alive), None), None);
    }

    #[test]
    fn a_suspicion_tells_whose_it_is_and_what_was_tried() {
        for (by_us, stream, said) in [
            (true, Some(Stream::Refused), "refused TCP"),
            (true, Some(Stream::Silent), "TCP was not answered"),
            (true, Some(Stream::Answered), "TCP was answered"),
            (true, None, "no probe of this node"),
            (false, None, "other nodes say"),
        ] {
            let remark = Remark::Suspected { by_us, stream };
            let words = note(&node(NodeState::Suspect), Some(&remark)).unwrap();
            assert!(
                words.contains(said) && words.ends_with("unless it objects"),
                "{words}"
            );
        }
    }
}
