//! Everything at once for less than a minute: no request lost that must not be, no growth that goes on.
//!
//! Not here: the ten minutes of it, which `tests/soak/run` is for; the same script with fewer seconds runs here.

use std::{path::Path, process::Command, time::Duration};

use mesh_tests::{
    binary,
    process::{Process, installed},
    scratch::Scratch,
    skipped,
};

/// Short runs are still warming up when their second sixth begins, so they are allowed more than the 5 % of long ones.
const GROWTH_WITHIN: &str = "0.3";

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_under_everything_at_once_loses_nothing_and_keeps_its_size() {
    if !installed("python3") {
        return skipped("the short soak", "python3 is not installed");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("soak/run");
    let scratch = Scratch::new();
    let programs = scratch.path().join("programs");
    std::fs::create_dir(&programs).expect("a scratch directory can be written");
    for program in [binary::starling(), binary::backend()] {
        let name = program.file_name().expect("a program has a name");
        std::os::unix::fs::symlink(program, programs.join(name)).expect("a link can be made");
    }
    let mut command = Command::new("python3");
    command
        .arg(script)
        .args(["--seconds", "40", "--within", GROWTH_WITHIN, "--programs"])
        .arg(&programs);
    let mut soak = Process::start("soak", command, &scratch.path().join("soak"));
    let status = soak.end(Duration::from_secs(120)).await;
    assert!(status.success(), "{status}: {}", soak.log());
    println!("{}", soak.log());
}
