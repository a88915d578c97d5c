//! An exec check: a program in a process group of its own, its end code the result.
//!
//! Not here: the time limit (`active_check.rs`): whoever drops the future kills the whole group.

use std::{
    net::SocketAddr,
    process::{ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{Fault, Finding};

/// Programs that run at once: a sidecar is a guest on its host.
const AT_ONCE_MAX: usize = 8;
/// Bytes of what a program says that are kept.
const KEPT_BYTES_MAX: usize = 1024;
/// Bytes of it that are read at all; a program with more to say waits until its time is over.
const READ_BYTES_MAX: usize = 1 << 20;
/// For the last words of a program that has ended, if something it left behind holds its output open.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// The exit code that means half a success, as Nagios has it.
const WARNING_CODE: i32 = 1;

static TURNS: Semaphore = Semaphore::const_new(AT_ONCE_MAX);

/// Waits for a turn; the check's own time begins after it.
pub async fn turn() -> Option<SemaphorePermit<'static>> {
    // The semaphore is never closed.
    TURNS.acquire().await.ok()
}

/// Runs `command`, which finds the address it is about in `STARLING_ADDRESS` and the name in `STARLING_HOST`.
///
/// # Errors
/// It cannot be run, or ended with 2 or more, or by a signal.
pub async fn run(command: &[Box<str>], address: SocketAddr, host: &str) -> Result<Finding, Fault> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(Fault::Garbled("a command without a program"));
    };
    let mut child = Command::new(&**program)
        .args(arguments.iter().map(|word| &**word))
        .env("STARLING_ADDRESS", address.to_string())
        .env("STARLING_HOST", host)
        // It is not the program's to say that the sidecar is ready.
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(Fault::Spawn)?;
    let group = Group::led_by(child.id());
    let said = Mutex::new(Vec::new());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let hearing = async { tokio::join!(hear(out, &said), hear(err, &said)) };
    let mut hearing = std::pin::pin!(hearing);
    let mut is_open = true;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.map_err(Fault::Spawn)?,
            _ = &mut hearing, if is_open => is_open = false,
        }
    };
    // What it has started and not waited for goes with it.
    drop(group);
    if is_open {
        let _ = timeout(LAST_WORDS, hearing).await;
    }
    judge(status, &first_line(&said))
}

fn judge(status: ExitStatus, said: &str) -> Result<Finding, Fault> {
    match status.code() {
        Some(0) => Ok(Finding::Well),
        Some(WARNING_CODE) => Ok(Finding::Warning(said.to_owned())),
        _ => Err(Fault::Exit {
            status,
            said: said.to_owned(),
        }),
    }
}

async fn hear(pipe: Option<impl AsyncRead + Unpin>, said: &Mutex<Vec<u8>>) {
    let Some(mut pipe) = pipe else {
        return;
    };
    let (mut room, mut read) = ([0; 1024], 0);
    while read < READ_BYTES_MAX {
        match pipe.read(&mut room).await {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                read += count;
                let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                let left = KEPT_BYTES_MAX.saturating_sub(said.len());
                said.extend_from_slice(&room[..count.min(left)]);
            }
        }
    }
    std::future::pending().await
}

/// The first line that says something, without what would disturb a log.
fn first_line(said: &Mutex<Vec<u8>>) -> String {
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    let text = String::from_utf8_lossy(&said);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or_default()
        .chars()
        .filter(|letter| !letter.is_control())
        .collect()
}

/// A program and whatever it has started in its group. Dropped, all of it is killed.
struct Group(Option<Pid>);

impl Group {
    fn led_by(id: Option<u32>) -> Group {
        Group(id.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The usual reason for an error is that nobody of the group is left.
        let _ = self.0.map(|group| kill_process_group(group, Signal::KILL));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::waiting::until;

    async fn shell(script: &str) -> Result<Finding, Fault> {
        let command = ["/bin/sh", "-c", script].map(Box::from);
        let address = SocketAddr::from(([10, 0, 0, 5], 8080));
        timeout(Duration::from_secs(20), run(&command, address, "app:80"))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn the_exit_code_is_the_result() {
        for (script, expected) in [
            ("exit 0", "Ok(Well)"),
            (
                "echo; echo disk 91 % full; exit 1",
                "Ok(Warning(\"disk 91 % full\"))",
            ),
            ("exit 2", "exit status: 2"),
            ("echo no master >&2; exit 3", "\"no master\""),
            ("kill -9 $$", "signal: 9"),
            (
                "test $STARLING_ADDRESS = 10.0.0.5:8080 -a $STARLING_HOST = app:80",
                "Ok(Well)",
            ),
            ("read line", "Ok(Warning(\"\"))"),
        ] {
            let got = match shell(script).await {
                Err(fault @ Fault::Exit { .. }) => format!("{fault} {fault:?}"),
                other => format!("{other:?}"),
            };
            assert!(got.contains(expected), "{script}: {got}");
        }
        let missing = ["/nowhere/check"].map(Box::from);
        let address = SocketAddr::from(([10, 0, 0, 5], 8080));
        let fault = run(&missing, address, "").await.unwrap_err();
        assert!(matches!(fault, Fault::Spawn(_)), "{fault}");
    }

    #[tokio::test]
    async fn a_program_with_much_to_say_is_heard_to_a_bound() {
        let result = shell("head -c 300000 /dev/zero | tr '\\0' x; exit 1").await;
        match result.unwrap() {
            Finding::Warning(said) => assert_eq!(said.len(), KEPT_BYTES_MAX),
            other => panic!("{other:?}"),
        }
        let endless = timeout(Duration::from_millis(300), shell("yes")).await;
        assert!(endless.is_err(), "it waits for somebody to read on");
    }

    #[tokio::test]
    async fn what_a_program_leaves_behind_is_not_waited_for() {
        let began = Instant::now();
        let result = shell("sleep 600 & exit 0").await.unwrap();
        assert!(matches!(result, Finding::Well));
        // In a group of its own it lives on, and holds the output open.
        let result = shell("setsid sleep 10 & exit 0").await.unwrap();
        assert!(matches!(result, Finding::Well));
        assert!(began.elapsed() < Duration::from_secs(8));
    }

    #[tokio::test]
    async fn whoever_stops_waiting_ends_the_whole_group() {
        let file = std::env::temp_dir().join(format!("starling-exec-{}", rand::random::<u64>()));
        let script = format!(
            "sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait",
            file.display()
        );
        let mut running = Box::pin(shell(&script));
        let told = until("it tells its child", || std::fs::read_to_string(&file).ok());
        let child = tokio::select! {
            ended = &mut running => panic!("{ended:?}"),
            told = told => told.trim().to_owned(),
        };
        drop(running);
        let stat = format!("/proc/{child}/stat");
        let is_gone = || match std::fs::read_to_string(&stat) {
            Ok(text) => text.contains(") Z "),
            Err(_) => true,
        };
        until("its child is gone", || is_gone().then_some(())).await;
        std::fs::remove_file(file).unwrap();
    }
}
