//! For a child process that must not outlive the one that started it.
//!
//! Not here: who starts such children (`demo/world.rs`).

use std::io::Read;

/// Ends this process, at once and with code 0, as soon as its standard input ends.
///
/// The parent holds the other end of that pipe for as long as it lives, so the kernel tells even of a
/// parent that was killed; nothing has to be sent.
///
/// # Errors
/// The watching thread cannot be started.
pub fn exit_with_parent() -> std::io::Result<()> {
    let watch = || {
        let mut nobody_cares = [0; 64];
        let mut input = std::io::stdin().lock();
        while input.read(&mut nobody_cares).is_ok_and(|n| n > 0) {}
        std::process::exit(0);
    };
    let thread = std::thread::Builder::new().name("parent".to_owned());
    thread.spawn(watch).map(drop)
}
