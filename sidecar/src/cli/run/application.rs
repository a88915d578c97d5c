//! The application under `starling run`: started in a process group of its own, asked to end, killed.
//!
//! Not here: when (`run.rs`).

use std::{
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt,
    process::{ExitCode, ExitStatus},
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

/// A running application and whatever it has started in its group. Dropped, all of it is killed.
#[derive(Debug)]
pub struct Application {
    child: Child,
    group: Option<Pid>,
}

impl Application {
    /// Starts `command`: a program and its arguments. It keeps our standard streams and environment; a
    /// signal from the terminal reaches us alone, as its group is another one.
    ///
    /// # Errors
    /// The program is not there or cannot be run.
    pub fn start(command: &[OsString]) -> io::Result<Application> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(io::Error::other("no program was named"));
        };
        let child = Command::new(program)
            .args(arguments)
            .process_group(0)
            .spawn()?;
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let group = id.and_then(Pid::from_raw);
        Ok(Application { child, group })
    }

    /// Waits for its end; may be dropped and asked again.
    ///
    /// # Errors
    /// The kernel does not tell (somebody else waited for it).
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// SIGTERM to the whole group.
    pub fn ask_to_end(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGKILL to the whole group, and to what is left of it when the application itself has ended.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group
            && let Err(error) = kill_process_group(group, signal)
        {
            // The usual reason is that nobody of the group is left.
            tracing::debug!(%error, ?signal, "no signal to the application's group");
        }
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The application's code as our own; a signal that ended it counts as 128 + its number, as shells have it.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn shell(script: &str) -> Application {
        let command = ["sh", "-c", script].map(OsString::from);
        Application::start(&command).unwrap()
    }

    async fn code(application: &mut Application) -> String {
        let ended = timeout(Duration::from_secs(20), application.ended()).await;
        format!("{:?}", exit_code(ended.unwrap().unwrap()))
    }

    #[tokio::test]
    async fn its_code_becomes_ours() {
        for (script, expected) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
            let got = code(&mut shell(script)).await;
            assert_eq!(got, format!("{:?}", ExitCode::from(expected)), "{script}");
        }
    }

    #[tokio::test]
    async fn a_signal_reaches_all_of_its_group() {
        // The shell waits for its child, which only the group's signal can reach.
        let mut application = shell("sleep 600 & wait $!; sleep 600");
        application.ask_to_end();
        let got = code(&mut application).await;
        assert_eq!(got, format!("{:?}", ExitCode::from(143)));
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_told() {
        let error = Application::start(&["/nowhere/app".into()]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(Application::start(&[]).is_err());
    }
}
