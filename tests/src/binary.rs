//! Where the workspace's own programs are, freshly built.
//!
//! Not here: starting them (`sidecar.rs`, `process.rs`).

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The `starling` these tests are about: `$STARLING` if set, else built beside the tests.
///
/// # Panics
/// When it cannot be built.
pub fn starling() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| match env::var_os("STARLING") {
        Some(path) => PathBuf::from(path),
        None => built("sidecar", "starling"),
    })
}

/// The example program `backend`, for hosts whose network is not ours.
///
/// # Panics
/// When it cannot be built.
pub fn backend() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| built("examples", "backend"))
}

/// The example program `caller`, likewise.
///
/// # Panics
/// When it cannot be built.
pub fn caller() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| built("examples", "caller"))
}

/// Asks cargo, which does nothing if the program is fresh; a stale one would prove nothing.
fn built(package: &str, name: &str) -> PathBuf {
    let target = target_directory();
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The whole workspace is named so that features, and with them the built dependencies, stay the tests' own.
    build
        .args(["build", "--quiet", "--workspace", "--bin", name])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    if target.ends_with("release") {
        build.arg("--release");
    }
    let status = build.status();
    let path = target.join(name);
    match status {
        Ok(status) if status.success() && path.is_file() => path,
        other => panic!(
            "{} could not be built ({other:?}); try `cargo build -p {package}`, or set STARLING",
            path.display()
        ),
    }
}

/// `target/debug` or `target/release`, wherever this test binary lies.
fn target_directory() -> PathBuf {
    let me = env::current_exe().expect("a running program knows its path");
    me.ancestors()
        .find(|path| path.ends_with("debug") || path.ends_with("release"))
        .unwrap_or_else(|| panic!("{} lies in no target directory", me.display()))
        .to_owned()
}
