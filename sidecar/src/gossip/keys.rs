//! The keys in force: those of the configuration, as orders have changed them since; and the file that remembers it.
//!
//! Not here: sealing (`mesh_proto::frame`), and the command line and admin API that give the orders.
//!
//! Orders reach this sidecar alone. They hold over a restart if there is a state directory, and until the keys of the
//! configuration change: whoever writes those has the last word.

use std::{
    fmt,
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use mesh_core::mesh::NodeState;
use mesh_proto::frame::KeyId;
use serde::{Deserialize, Serialize};

use super::state;
use crate::config::{GOSSIP_KEYS_MAX, GossipKey};

/// The file within the state directory.
const FILE: &str = "keys.json";

/// Others named in a refusal.
const NAMED_MAX: usize = 5;

/// What can be ordered.
#[derive(Debug)]
pub enum KeyOrder {
    /// Tells of all keys, and changes nothing.
    Status,
    /// Opens with this key too.
    Install(GossipKey),
    /// Seals with this key.
    Use {
        /// Which; an id as others see it.
        id: KeyId,
        /// Even if somebody could not open it.
        force: bool,
    },
    /// Opens nothing with this key any more.
    Remove {
        /// Which.
        id: KeyId,
        /// Even if somebody seals with it.
        force: bool,
    },
}

/// Why an order was not carried out: nothing has changed then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeyFault {
    /// There is no key at all: sealing only here would shut everybody out.
    Clear,
    /// No key of the ring is called that.
    Unknown(KeyId),
    /// The ring is full.
    Full,
    /// It is what this sidecar seals with.
    InUse(KeyId),
    /// These could not open what would be sealed with it.
    NotHeld(KeyId, Vec<String>),
    /// These seal with it, or do not tell what they seal with.
    Heard(KeyId, Vec<String>),
}

impl fmt::Display for KeyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyFault::Clear => f.write_str("this sidecar gossips in clear, so it has no ring"),
            KeyFault::Unknown(id) => write!(f, "no key of this sidecar is called {id}"),
            KeyFault::Full => write!(
                f,
                "the ring holds {} keys, and that is the most",
                GOSSIP_KEYS_MAX
            ),
            KeyFault::InUse(id) => write!(f, "this sidecar seals with {id}"),
            KeyFault::NotHeld(id, names) => write!(
                f,
                "{id} is not held by {}: what is sealed with it would be lost there",
                list(names)
            ),
            KeyFault::Heard(id, names) => write!(
                f,
                "{} still seal with {id}, or do not tell: what they say would be lost here",
                list(names)
            ),
        }
    }
}

impl KeyFault {
    /// The next step.
    pub fn next(&self) -> String {
        match self {
            KeyFault::Clear => {
                "make a key with `starling key new`, set gossip.key on every host, and restart them"
                    .into()
            }
            KeyFault::Unknown(_) => "`starling key status` lists those it holds".into(),
            KeyFault::Full => "remove one that nobody seals with".into(),
            KeyFault::InUse(_) => "use another one first: `starling key use ID`".into(),
            KeyFault::NotHeld(..) => {
                "`starling key install` it there first; --force if they are to be left behind"
                    .into()
            }
            KeyFault::Heard(id, _) => format!(
                "`starling key use` another one there first (`starling key status` shows who seals with {id}); --force if they are to be left behind"
            ),
        }
    }
}

fn list(names: &[String]) -> String {
    let named: Vec<&str> = names.iter().take(NAMED_MAX).map(String::as_str).collect();
    let more = names.len().saturating_sub(NAMED_MAX);
    match more {
        0 => named.join(", "),
        _ => format!("{} and {more} more", named.join(", ")),
    }
}

/// Another node and the keys it tells of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// Its configured name, or its id where that is not known yet.
    pub node: String,
    /// How it is.
    pub state: NodeState,
    /// What it holds, the one it seals with first; `None` if it does not tell.
    pub keys: Option<Box<[KeyId]>>,
}

impl Holder {
    /// Down or left: it is asked again when it comes back.
    pub fn is_gone(&self) -> bool {
        matches!(self.state, NodeState::Down | NodeState::Left)
    }
}

/// One key of the ring, or one that was in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyRow {
    /// Which.
    pub id: KeyId,
    /// It is in the ring: what is sealed with it is opened.
    pub held: bool,
    /// It is the one that seals.
    pub seals: bool,
    /// The configuration names it.
    pub configured: bool,
    /// Datagrams and streams sealed with it since the start.
    pub sealed: u64,
    /// Datagrams and streams opened with it since the start.
    pub opened: u64,
}

/// What is told of keys: ids, never a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyStatus {
    /// This sidecar's, in the order of the ring.
    pub keys: Vec<KeyRow>,
    /// Whether the ring is not the configuration's, but as orders made it.
    pub ordered: bool,
    /// The other nodes.
    pub others: Vec<Holder>,
}

/// What an order came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyAnswer {
    /// What was done, in a few words; empty where nothing was to be done.
    pub done: String,
    /// How it is now.
    pub status: KeyStatus,
    /// Why a restart forgets it, if it does.
    pub not_kept: Option<String>,
}

/// The keys in force.
#[derive(Clone, Debug)]
pub struct Keys {
    configured: Vec<GossipKey>,
    /// As orders made it of `configured`; `None`: nothing was ordered.
    ordered: Option<Vec<GossipKey>>,
    /// Counts changes, so that the file never falls back to an earlier one.
    version: u64,
    /// The last one written; held while the file is.
    written: Arc<Mutex<u64>>,
}

/// What the file says.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// The configuration's keys, by id, when the orders were given.
    configured: Vec<String>,
    /// The ring, as hex digits.
    ring: Vec<String>,
}

impl Keys {
    /// The configuration's keys, as orders of an earlier run left them in `directory`.
    ///
    /// A file that cannot be read counts as none, with a warning.
    pub fn load(configured: Vec<GossipKey>, directory: Option<&Path>) -> Keys {
        let mut keys = Keys {
            configured: distinct(configured),
            ordered: None,
            version: 0,
            written: Arc::default(),
        };
        let Some(path) = directory.map(|directory| directory.join(FILE)) else {
            return keys;
        };
        let kept = match state::read::<Kept>(&path) {
            Ok(kept) => kept,
            Err(fault) => {
                tracing::warn!(path = %path.display(), error = %fault.error, "keys ordered earlier were not read: those of the configuration are in force");
                return keys;
            }
        };
        let Some(kept) = kept else {
            return keys;
        };
        let ring: Option<Vec<GossipKey>> = kept.ring.iter().map(|key| key.parse().ok()).collect();
        match ring.filter(|ring| (1..=GOSSIP_KEYS_MAX).contains(&ring.len())) {
            Some(ring) if kept.configured == names(&keys.configured) => keys.ordered = Some(ring),
            _ => {
                tracing::info!(
                    "the configuration's gossip keys changed: those ordered earlier are forgotten"
                );
                // Or they would be back once the configuration says again what it said then.
                let _ = std::fs::remove_file(path);
            }
        }
        keys
    }

    /// The ring: the first seals, all open; empty in clear.
    pub fn ring(&self) -> &[GossipKey] {
        self.ordered.as_ref().unwrap_or(&self.configured)
    }

    /// The same by their ids.
    pub fn ids(&self) -> Box<[KeyId]> {
        self.ring().iter().map(GossipKey::id).collect()
    }

    /// Whether orders made the ring what it is.
    pub fn is_ordered(&self) -> bool {
        self.ordered.is_some()
    }

    /// Whether the configuration names this key.
    pub fn is_configured(&self, id: KeyId) -> bool {
        self.configured.iter().any(|key| key.id() == id)
    }

    /// Takes the configuration's keys over. Where they are not as before, whatever was ordered is void.
    pub fn configure(&mut self, configured: Vec<GossipKey>) {
        let configured = distinct(configured);
        if self.configured != configured {
            self.configured = configured;
            self.ordered = None;
            self.version += 1;
        }
    }

    /// Carries an order out. Yields what was done, in a few words.
    ///
    /// # Errors
    /// Why it would tear the mesh, or cannot be done.
    pub fn order(&mut self, order: KeyOrder, others: &[Holder]) -> Result<String, KeyFault> {
        if self.ring().is_empty() {
            return Err(KeyFault::Clear);
        }
        let mut ring = self.ring().to_vec();
        let done = match order {
            KeyOrder::Status => return Ok(String::new()),
            KeyOrder::Install(key) => {
                let id = key.id();
                if ring.contains(&key) {
                    return Ok(format!("{id} is in the ring already"));
                }
                if ring.len() >= GOSSIP_KEYS_MAX {
                    return Err(KeyFault::Full);
                }
                ring.push(key);
                format!("{id} is installed: it opens, and does not seal yet")
            }
            KeyOrder::Use { id, force } => {
                let at = place(&ring, id)?;
                let lacks = |other: &Holder| {
                    let keys = other.keys.as_deref();
                    keys.is_none_or(|keys| !keys.contains(&id))
                };
                if at > 0 && !force {
                    refuse(others, lacks, |names| KeyFault::NotHeld(id, names))?;
                }
                ring[..=at].rotate_right(1);
                format!("{id} seals from now on")
            }
            KeyOrder::Remove { id, force } => {
                let at = place(&ring, id)?;
                if at == 0 {
                    return Err(KeyFault::InUse(id));
                }
                let seals = |other: &Holder| {
                    let keys = other.keys.as_deref();
                    // Whoever does not tell may seal with any.
                    keys.is_none_or(|keys| keys.first() == Some(&id))
                };
                if !force {
                    refuse(others, seals, |names| KeyFault::Heard(id, names))?;
                }
                ring.remove(at);
                format!("{id} is removed: nothing is opened with it any more")
            }
        };
        // Back to what the configuration says: then that is all there is to remember.
        self.ordered = (ring != self.configured).then_some(ring);
        self.version += 1;
        Ok(done)
    }

    /// Writes down what was ordered, readable by this sidecar's user alone; or that nothing is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, directory: &Path) -> io::Result<()> {
        let path = directory.join(FILE);
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if self.version < *written {
            return Ok(());
        }
        *written = self.version;
        let Some(ring) = &self.ordered else {
            return match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        };
        let kept = Kept {
            configured: names(&self.configured),
            ring: ring.iter().map(GossipKey::to_hex).collect(),
        };
        let bytes = serde_json::to_vec(&kept)?;
        let fresh = directory.join(format!("{FILE}.new"));
        // One left behind by a crash may have another mode.
        let _ = std::fs::remove_file(&fresh);
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)
    }
}

/// Each key once: a second time it only makes forgeries dearer to refuse.
fn distinct(keys: Vec<GossipKey>) -> Vec<GossipKey> {
    let mut distinct = Vec::with_capacity(keys.len());
    for key in keys {
        if !distinct.contains(&key) {
            distinct.push(key);
        }
    }
    distinct
}

fn names(keys: &[GossipKey]) -> Vec<String> {
    keys.iter().map(|key| key.id().to_string()).collect()
}

fn place(ring: &[GossipKey], id: KeyId) -> Result<usize, KeyFault> {
    let at = ring.iter().position(|key| key.id() == id);
    at.ok_or(KeyFault::Unknown(id))
}

/// Refuses if any node that is there is `wronged`.
fn refuse(
    others: &[Holder],
    wronged: impl Fn(&Holder) -> bool,
    fault: impl FnOnce(Vec<String>) -> KeyFault,
) -> Result<(), KeyFault> {
    let wronged = others
        .iter()
        .filter(|other| !other.is_gone() && wronged(other));
    let names: Vec<String> = wronged.map(|other| other.node.clone()).collect();
    if names.is_empty() {
        Ok(())
    } else {
        Err(fault(names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const OLD: GossipKey = GossipKey([1; 32]);
    const NEW: GossipKey = GossipKey([2; 32]);

    fn keys() -> Keys {
        Keys::load(vec![OLD], None)
    }

    fn holder(node: &str, state: NodeState, keys: &[&GossipKey]) -> Holder {
        Holder {
            node: node.into(),
            state,
            keys: Some(keys.iter().map(|key| key.id()).collect()),
        }
    }

    fn usage(id: KeyId) -> KeyOrder {
        KeyOrder::Use { id, force: false }
    }

    fn removal(id: KeyId) -> KeyOrder {
        KeyOrder::Remove { id, force: false }
    }

    #[test]
    fn a_key_is_installed_then_used_then_the_old_one_removed() {
        let mut keys = keys();
        keys.order(KeyOrder::Install(NEW), &[]).expect("room");
        assert_eq!(keys.ring(), [OLD, NEW]);
        keys.order(usage(NEW.id()), &[]).expect("installed");
        assert_eq!(keys.ring(), [NEW, OLD]);
        keys.order(removal(OLD.id()), &[]).expect("unused");
        assert_eq!(keys.ring(), [NEW]);
        assert!(keys.is_ordered());
    }

    #[test]
    fn no_order_may_wrong_a_node_that_is_there() {
        let mut keys = keys();
        let alive = NodeState::Alive;
        keys.order(KeyOrder::Install(NEW), &[]).expect("room");
        let behind = holder("behind", alive, &[&OLD]);
        let ready = holder("ready", alive, &[&OLD, &NEW]);
        let silent = Holder {
            keys: None,
            ..holder("silent", NodeState::Suspect, &[])
        };
        let silent_too = silent.clone();
        let gone = holder("gone", NodeState::Down, &[&OLD]);
        let not_held = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            Err(KeyFault::NotHeld(NEW.id(), names))
        };
        let everybody = [behind.clone(), ready.clone(), silent, gone.clone()];
        assert_eq!(
            keys.order(usage(NEW.id()), &everybody),
            not_held(&["behind", "silent"])
        );
        let others = [ready, gone];
        keys.order(usage(NEW.id()), &others).expect("all have it");
        assert_eq!(
            keys.order(removal(OLD.id()), &others),
            Err(KeyFault::Heard(OLD.id(), vec!["ready".into()]))
        );
        assert_eq!(
            keys.order(removal(OLD.id()), &[silent_too]),
            Err(KeyFault::Heard(OLD.id(), vec!["silent".into()]))
        );
        let force = KeyOrder::Remove {
            id: OLD.id(),
            force: true,
        };
        keys.order(force, &[behind]).expect("forced");
        assert_eq!(keys.ring(), [NEW]);
    }

    #[test]
    fn what_cannot_be_done_is_told_with_its_next_step_and_changes_nothing() {
        let mut keys = keys();
        for (order, fault) in [
            (usage(NEW.id()), KeyFault::Unknown(NEW.id())),
            (removal(NEW.id()), KeyFault::Unknown(NEW.id())),
            (removal(OLD.id()), KeyFault::InUse(OLD.id())),
        ] {
            assert_eq!(keys.order(order, &[]), Err(fault.clone()));
            assert!(!fault.next().is_empty() && !fault.to_string().is_empty());
        }
        for byte in 10.. {
            match keys.order(KeyOrder::Install(GossipKey([byte; 32])), &[]) {
                Ok(_) => assert!(keys.ring().len() <= GOSSIP_KEYS_MAX),
                Err(fault) => {
                    assert_eq!(fault, KeyFault::Full);
                    break;
                }
            }
        }
        let mut clear = Keys::load(Vec::new(), None);
        let order = KeyOrder::Install(NEW);
        assert_eq!(clear.order(order, &[]), Err(KeyFault::Clear));
    }

    #[test]
    fn orders_survive_a_restart_until_the_configuration_changes() {
        let directory =
            std::env::temp_dir().join(format!("starling-keys-{:016x}", rand::random::<u64>()));
        std::fs::create_dir_all(&directory).expect("writable");
        let mut keys = Keys::load(vec![OLD], Some(&directory));
        keys.order(KeyOrder::Install(NEW), &[]).expect("room");
        keys.keep(&directory).expect("writable");
        let file = directory.join(FILE);
        let mode = std::fs::metadata(&file).expect("written").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let again = Keys::load(vec![OLD], Some(&directory));
        assert_eq!(again.ring(), [OLD, NEW]);
        let other = Keys::load(vec![NEW], Some(&directory));
        assert_eq!(other.ring(), [NEW]);
        assert!(
            !file.exists(),
            "they would be back with the old configuration"
        );

        keys.configure(vec![OLD]);
        assert!(keys.is_ordered());
        keys.configure(vec![NEW, OLD, NEW]);
        assert_eq!(keys.ring(), [NEW, OLD]);
        assert!(!keys.is_ordered());
        keys.keep(&directory).expect("writable");
        assert!(!file.exists());

        std::fs::write(&file, b"{\"configured\": [], \"ring\": [\"zz\"]}").expect("writable");
        assert_eq!(Keys::load(Vec::new(), Some(&directory)).ring(), []);
        std::fs::remove_dir_all(directory).expect("ours");
    }

    #[test]
    fn no_word_about_keys_shows_a_key() {
        let keys = keys();
        let shown = format!("{keys:?} {:?} {}", KeyOrder::Install(NEW), KeyFault::Full);
        for key in [OLD, NEW] {
            assert!(!shown.contains(&key.to_hex()));
            assert!(!shown.contains(&format!("{:?}", key.0)));
        }
    }
}
