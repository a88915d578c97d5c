//! Child processes that end with their owner, their words kept for the post-mortem.
//!
//! Not here: what a sidecar is (`sidecar.rs`), and namespaces (`netns.rs`).

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::until::until;

/// Last lines of a child's output shown when its test fails.
const LAST_LINES: usize = 40;

/// A child with its output in a file; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    exited: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with its output going to `log`.
    ///
    /// # Panics
    /// When the program does not exist.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Process {
        let out = File::create(log).expect("a scratch directory can be written");
        let err = out.try_clone().expect("descriptors are left");
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start ({command:?}): {error}"));
        Process {
            name: name.into(),
            child,
            log: log.into(),
            exited: None,
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal by name, such as `TERM`.
    pub fn signal(&self, signal: &str) {
        if self.exited.is_none() {
            signal_to(self.id(), signal);
        }
    }

    /// `kill -9`, and waits for the end of it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.exited = self.child.wait().ok();
    }

    /// Its exit status if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.exited.is_none() {
            self.exited = self.child.try_wait().ok().flatten();
        }
        self.exited
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it still runs after `within`.
    pub async fn end(&mut self, within: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        let this = std::cell::RefCell::new(self);
        until(within, &what, || async {
            this.borrow_mut().ended().ok_or("it still runs".to_owned())
        })
        .await
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its resident memory in KiB, 0 once it has ended.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(LAST_LINES);
            eprintln!("---- last words of {} ----", self.name);
            eprintln!("{}", lines[from..].join("\n"));
        }
    }
}

/// Sends a signal by name to any process.
pub fn signal_to(id: u32, signal: &str) {
    let _ = Command::new("kill")
        .args([&format!("-{signal}"), &id.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// Processes whose parent is `id`.
pub fn children_of(id: u32) -> Vec<u32> {
    let told = Command::new("ps")
        .args(["-o", "pid=", "--ppid", &id.to_string()])
        .output();
    let text = told.map(|told| told.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// Whether a program is installed.
pub fn installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|directory| directory.join(program).is_file())
    })
}

/// A Python module and the package it comes in.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// As it is imported.
    pub import: &'a str,
    /// As pip knows it.
    pub package: &'a str,
}

/// A Python that can import `module`, whose package has the same name; see [`python_having`].
pub fn python_with(module: &str) -> Option<Command> {
    python_having(&[Module {
        import: module,
        package: module,
    }])
}

/// A Python that can import these modules: the system's, or one given them by pip under `target/`. `None` if neither
/// can be.
pub fn python_having(modules: &[Module<'_>]) -> Option<Command> {
    // Two installations into one directory at once would tear each other's files.
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _alone = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python");
    let imports: Vec<&str> = modules.iter().map(|module| module.import).collect();
    let try_one = |python: &str| {
        let mut command = Command::new(python);
        command.env("PYTHONPATH", &place);
        let mut import = Command::new(python);
        import.env("PYTHONPATH", &place);
        import.args(["-c", &format!("import {}", imports.join(", "))]);
        import.stderr(Stdio::null());
        import
            .status()
            .is_ok_and(|status| status.success())
            .then_some(command)
    };
    let pythons = ["python3", "/usr/bin/python3"];
    if let Some(found) = pythons.into_iter().find_map(try_one) {
        return Some(found);
    }
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    pip.args(["--retries", "1", "--timeout", "15", "--upgrade", "--target"])
        .arg(&place)
        .args(modules.iter().map(|module| module.package));
    pip.stdout(Stdio::null()).stderr(Stdio::null());
    pip.status().ok()?;
    try_one("python3")
}
