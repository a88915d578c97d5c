//! Which of this host's instances are drained, and the file that remembers it over a restart.
//!
//! Not here: telling the mesh (`probe.rs`).

use std::{collections::BTreeSet, io, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::Key;

/// The file within the state directory.
const FILE: &str = "drain.json";
/// A longer file was not written by us: a host has a few instances, not a million.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What is drained until somebody says `undrain`.
#[derive(Debug, Default)]
pub struct DrainState {
    kept: Kept,
    state_dir: Option<PathBuf>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// Everything, and what comes later.
    #[serde(default)]
    node: bool,
    /// Service and instance.
    #[serde(default)]
    instances: BTreeSet<Key>,
}

impl DrainState {
    /// Reads what a run before left in `state_dir`; a file that cannot be read counts as none, with a warning.
    pub fn load(state_dir: Option<PathBuf>) -> DrainState {
        let kept = match &state_dir {
            Some(dir) => read(&dir.join(FILE)).unwrap_or_else(|error| {
                tracing::warn!(file = %dir.join(FILE).display(), %error, "drain state not read: nothing is drained");
                Kept::default()
            }),
            None => Kept::default(),
        };
        if kept.node || !kept.instances.is_empty() {
            tracing::warn!(
                node = kept.node,
                instances = kept.instances.len(),
                "still drained from an earlier run; `starling undrain` ends it"
            );
        }
        DrainState { kept, state_dir }
    }

    /// Whether `key` is drained.
    pub fn holds(&self, key: &Key) -> bool {
        self.kept.node || self.kept.instances.contains(key)
    }

    /// Drains everything, and what comes later.
    pub fn drain_node(&mut self) {
        self.kept.node = true;
    }

    /// Drains these instances.
    pub fn drain(&mut self, keys: impl IntoIterator<Item = Key>) {
        self.kept.instances.extend(keys);
    }

    /// Nothing is drained any more.
    pub fn undrain_node(&mut self) {
        self.kept = Kept::default();
    }

    /// Ends the drain of `keys`; where the whole node was drained, the others of `all` stay so.
    pub fn undrain<'a>(&mut self, keys: &[Key], all: impl IntoIterator<Item = &'a Key>) {
        if std::mem::take(&mut self.kept.node) {
            self.kept.instances.extend(all.into_iter().cloned());
        }
        for key in keys {
            self.kept.instances.remove(key);
        }
    }

    /// Writes it down: a new file beside the old one, then renamed over it.
    ///
    /// # Errors
    /// A sentence that says why a restart will not know of it.
    pub async fn save(&self) -> Result<(), String> {
        let Some(dir) = &self.state_dir else {
            return Err(
                "node.state_dir is not set, so a restart ends the drain; set it to keep drains"
                    .to_owned(),
            );
        };
        let path = dir.join(FILE);
        let write = async {
            let bytes = serde_json::to_vec(&self.kept).map_err(io::Error::other)?;
            tokio::fs::create_dir_all(dir).await?;
            let fresh = dir.join(format!("{FILE}.new"));
            tokio::fs::write(&fresh, bytes).await?;
            tokio::fs::File::open(&fresh).await?.sync_all().await?;
            tokio::fs::rename(&fresh, &path).await
        };
        write
            .await
            .map_err(|error| format!("{} not written: {error}", path.display()))
    }
}

fn read(path: &std::path::Path) -> io::Result<Kept> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
        Err(error) => return Err(error),
        Ok(about) if about.len() > FILE_BYTES_MAX => {
            return Err(io::Error::other(format!(
                "longer than {FILE_BYTES_MAX} bytes"
            )));
        }
        Ok(_) => {}
    }
    serde_json::from_slice(&std::fs::read(path)?).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(service: &str, instance: &str) -> Key {
        (service.into(), instance.into())
    }

    #[test]
    fn undraining_one_of_a_drained_node_leaves_the_others_drained() {
        let all = [key("web", "1"), key("web", "2"), key("db", "1")];
        let mut state = DrainState::default();
        state.drain_node();
        assert!(all.iter().all(|key| state.holds(key)));
        state.undrain(&all[..1], &all);
        assert_eq!(
            all.each_ref().map(|key| state.holds(key)),
            [false, true, true]
        );
        state.undrain_node();
        assert!(!all.iter().any(|key| state.holds(key)));
    }

    #[tokio::test]
    async fn without_a_directory_the_loss_is_told() {
        let why = DrainState::default().save().await.unwrap_err();
        assert!(why.contains("node.state_dir"), "{why}");
    }

    #[tokio::test]
    async fn a_broken_file_drains_nothing() {
        let dir = std::env::temp_dir().join(format!("starling-drain-{}", rand::random::<u64>()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(FILE), b"{\"node\": tr").unwrap();
        let mut state = DrainState::load(Some(dir.clone()));
        assert!(!state.holds(&key("web", "1")));
        state.drain([key("web", "1")]);
        state.save().await.unwrap();
        let state = DrainState::load(Some(dir.clone()));
        assert!(state.holds(&key("web", "1")) && !state.holds(&key("web", "2")));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
