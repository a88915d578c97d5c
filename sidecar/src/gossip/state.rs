//! What a node keeps across restarts: its id, its bump, and whom it knew.
//!
//! Not here: the drain state, and when the files are written (`agent.rs`).

use std::{
    fs,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

/// Peers kept for the next start.
const PEERS_MAX: usize = 1_024;

/// A file longer than this was not written by us.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Where a node keeps what it must remember; without a directory it forgets on restart.
#[derive(Clone, Debug)]
pub struct State {
    directory: Option<PathBuf>,
    identity: Identity,
    /// The highest bump written; held while a file is, for two writers share one `….new`.
    written: Arc<Mutex<u64>>,
    /// Locked as long as we live: two sidecars with one id would never stop renewing themselves.
    _lock: Option<Arc<fs::File>>,
}

/// Who a node is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
struct Identity {
    id: String,
    machine: String,
    bump: u64,
}

/// A directory that cannot be used.
#[derive(Debug)]
pub struct StateError {
    /// The file.
    pub path: PathBuf,
    /// What went wrong.
    pub error: io::Error,
}

impl State {
    /// Takes up the identity kept in `directory`, or makes one; either way its bump is above every earlier one.
    ///
    /// The id belongs to this machine: a directory copied from another one with the image gets a new id.
    ///
    /// # Errors
    /// The directory cannot be made, read or written; `WouldBlock` if another sidecar uses it.
    pub fn open(directory: Option<&Path>, unix_ms: u64) -> Result<State, StateError> {
        let machine = machine_id();
        let lock = directory.map(lock).transpose()?.map(Arc::new);
        let kept = match directory {
            Some(directory) => read::<Identity>(&directory.join("node.json"))?,
            None => None,
        };
        let kept = kept.filter(|kept| kept.machine == machine && parse_id(&kept.id).is_some());
        let identity = match kept {
            Some(kept) => Identity {
                bump: unix_ms.max(kept.bump.saturating_add(1)),
                ..kept
            },
            None => Identity {
                id: format!("{:016x}", rand::random_range(1..=u64::MAX)),
                machine,
                bump: unix_ms,
            },
        };
        let state = State {
            directory: directory.map(Path::to_owned),
            identity,
            written: Arc::default(),
            _lock: lock,
        };
        state.keep_identity()?;
        Ok(state)
    }

    /// This node's id.
    pub fn id(&self) -> u64 {
        parse_id(&self.identity.id).expect("made or checked when opened")
    }

    /// This start's bump.
    pub fn bump(&self) -> u64 {
        self.identity.bump
    }

    /// Notes a higher bump; [`State::keep_identity`] writes it.
    pub fn raise_bump(&mut self, bump: u64) {
        self.identity.bump = self.identity.bump.max(bump);
    }

    /// Writes the identity.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep_identity(&self) -> Result<(), StateError> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if self.identity.bump < *written {
            return Ok(());
        }
        self.write("node.json", &self.identity)?;
        *written = self.identity.bump;
        Ok(())
    }

    /// Whom we knew, for another try at joining them. A file that cannot be read counts as none.
    pub fn peers(&self) -> Vec<SocketAddr> {
        let Some(directory) = &self.directory else {
            return Vec::new();
        };
        read(&directory.join("peers.json"))
            .ok()
            .flatten()
            .unwrap_or_default()
    }

    /// Writes whom we know, those that failed included.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep_peers(&self, mut peers: Vec<SocketAddr>) -> Result<(), StateError> {
        peers.truncate(PEERS_MAX);
        let _writing = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        self.write("peers.json", &peers)
    }

    /// The directory, if anything is kept at all.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// Whether anything is kept at all.
    pub fn is_kept(&self) -> bool {
        self.directory.is_some()
    }

    /// Writes a file whole or not at all.
    fn write(&self, name: &str, value: &impl Serialize) -> Result<(), StateError> {
        let Some(directory) = &self.directory else {
            return Ok(());
        };
        let path = directory.join(name);
        let fault = |error| StateError {
            path: path.clone(),
            error,
        };
        let bytes = serde_json::to_vec(value).map_err(|error| fault(error.into()))?;
        let fresh = directory.join(format!("{name}.new"));
        fs::create_dir_all(directory).map_err(fault)?;
        let mut file = fs::File::create(&fresh).map_err(fault)?;
        file.write_all(&bytes).map_err(fault)?;
        file.sync_all().map_err(fault)?;
        fs::rename(&fresh, &path).map_err(fault)
    }
}

/// Takes the directory for this process, until the file is dropped.
fn lock(directory: &Path) -> Result<fs::File, StateError> {
    let path = directory.join("lock");
    let fault = |error| StateError {
        path: path.clone(),
        error,
    };
    fs::create_dir_all(directory).map_err(fault)?;
    let file = fs::File::create(&path).map_err(fault)?;
    file.try_lock().map_err(|error| fault(error.into()))?;
    Ok(file)
}

fn parse_id(id: &str) -> Option<u64> {
    u64::from_str_radix(id, 16).ok().filter(|id| *id != 0)
}

/// The kept value, or `None` if there is no file, or none that we can have written.
pub(super) fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>, StateError> {
    let fault = |error| StateError {
        path: path.to_owned(),
        error,
    };
    match fs::metadata(path) {
        Ok(data) if data.len() > FILE_BYTES_MAX => return Ok(None),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault(error)),
    }
    let bytes = fs::read(path).map_err(fault)?;
    Ok(serde_json::from_slice(&bytes).ok())
}

/// What tells this machine from its clones; empty where there is no such thing.
fn machine_id() -> String {
    let text = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    text.trim().chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> PathBuf {
        std::env::temp_dir().join(format!("starling-state-{:016x}", rand::random::<u64>()))
    }

    #[test]
    fn a_node_keeps_its_id_and_never_repeats_a_bump() {
        let directory = directory();
        let first = State::open(Some(&directory), 1_000).expect("writable");
        let (id, bump) = (first.id(), first.bump());
        drop(first);
        let mut again = State::open(Some(&directory), 500).expect("writable");
        assert_eq!(again.id(), id);
        assert_eq!((bump, again.bump()), (1_000, 1_001));
        let late = again.clone();
        again.raise_bump(7_000);
        again.keep_identity().expect("writable");
        late.keep_identity().expect("passed over");
        drop((again, late));
        let third = State::open(Some(&directory), 2_000).expect("writable");
        assert_eq!(third.bump(), 7_001);
        fs::remove_dir_all(directory).expect("ours");
    }

    #[test]
    fn a_clone_on_another_machine_gets_an_id_of_its_own() {
        let directory = directory();
        let first = State::open(Some(&directory), 1_000).expect("writable");
        let mut foreign = first.clone();
        foreign.identity.machine = "another".into();
        foreign.keep_identity().expect("writable");
        let id = first.id();
        drop((first, foreign));
        let here = State::open(Some(&directory), 1_000).expect("writable");
        assert_ne!(here.id(), id);
        fs::remove_dir_all(directory).expect("ours");
    }

    #[test]
    fn a_spoilt_file_counts_as_none() {
        let directory = directory();
        let state = State::open(Some(&directory), 1).expect("writable");
        state
            .keep_peers(vec![([127, 0, 0, 1], 1).into()])
            .expect("writable");
        assert_eq!(state.peers().len(), 1);
        fs::write(directory.join("peers.json"), b"{{{").expect("writable");
        fs::write(directory.join("node.json"), b"\0\0").expect("writable");
        assert!(state.peers().is_empty());
        let id = state.id();
        drop(state);
        let again = State::open(Some(&directory), 1).expect("writable");
        assert_ne!(again.id(), id);
        fs::remove_dir_all(directory).expect("ours");
    }

    #[test]
    fn two_sidecars_cannot_share_a_directory() {
        let directory = directory();
        let _first = State::open(Some(&directory), 1).expect("writable");
        let fault = State::open(Some(&directory), 1).expect_err("taken");
        assert_eq!(fault.error.kind(), io::ErrorKind::WouldBlock);
        fs::remove_dir_all(directory).expect("ours");
    }

    #[test]
    fn without_a_directory_nothing_is_kept() {
        let state = State::open(None, 5).expect("nothing to fail");
        assert!(!state.is_kept() && state.bump() == 5 && state.peers().is_empty());
    }
}
