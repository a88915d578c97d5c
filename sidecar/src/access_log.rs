//! The access log: one line of JSON for each connection that was relayed and has ended.
//!
//! Not here: what is worth a line (`proxy/tunnel.rs`, `proxy/datagram.rs`). Lines go through a bounded queue to a thread
//! of their own, so a full disk or a slow reader costs lines, which are counted, and never a worker's time.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    thread,
};

use metrics::{Counter, counter};
use serde::Serialize;

/// Lines waiting to be written; one more is dropped and counted.
pub const LINES_MAX: usize = 4096;

/// Where the log goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// A file, opened anew on every reload so that it can be rotated.
    File(PathBuf),
}

/// The way to the log; cheap to clone. The thread ends with the last of them.
#[derive(Clone, Debug)]
pub struct AccessLog {
    lines: SyncSender<Line>,
    dropped: Counter,
}

enum Line {
    Text(String),
    Reopen(File),
}

impl AccessLog {
    /// Opens `sink` and starts its thread.
    ///
    /// # Errors
    /// The file cannot be opened for appending, or there is no thread to be had.
    pub fn open(sink: &Sink) -> io::Result<AccessLog> {
        let out: Box<dyn Write + Send> = match sink {
            Sink::Stdout => Box::new(io::stdout()),
            Sink::File(path) => Box::new(appending(path)?),
        };
        AccessLog::to(out)
    }

    fn to(out: Box<dyn Write + Send>) -> io::Result<AccessLog> {
        let (lines, queue) = sync_channel(LINES_MAX);
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write(out, &queue))?;
        Ok(AccessLog {
            lines,
            dropped: counter!("starling_access_log_dropped_total"),
        })
    }

    /// Opens the file anew: from now on lines go where its name leads to.
    ///
    /// # Errors
    /// The file cannot be opened; then the old one stays.
    pub fn reopen(&self, sink: &Sink) -> io::Result<()> {
        if let Sink::File(path) = sink {
            // A full queue may lose lines, never the new file: whoever rotates waits a moment for it.
            let line = Line::Reopen(appending(path)?);
            self.lines.send(line).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Writes one line, or drops it if the queue is full.
    pub fn tell(&self, line: &impl Serialize) {
        let told = serde_json::to_string(line)
            .ok()
            .and_then(|text| self.lines.try_send(Line::Text(text)).ok());
        if told.is_none() {
            self.dropped.increment(1);
        }
    }
}

fn appending(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Writes what comes; flushed whenever nothing waits.
fn write(out: Box<dyn Write + Send>, queue: &Receiver<Line>) {
    let mut out = BufWriter::new(out);
    let failed = counter!("starling_access_log_dropped_total");
    loop {
        let line = match queue.try_recv() {
            Ok(line) => line,
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                let _ = out.flush().inspect_err(|_| failed.increment(1));
                match queue.recv() {
                    Ok(line) => line,
                    Err(_) => break,
                }
            }
        };
        match line {
            Line::Text(text) => {
                let _ = writeln!(out, "{text}").inspect_err(|_| failed.increment(1));
            }
            Line::Reopen(file) => {
                let _ = out.flush().inspect_err(|_| failed.increment(1));
                out = BufWriter::new(Box::new(file));
            }
        }
    }
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// Hands on what is written, and waits for leave before it takes anything.
    struct Slow {
        written: std::sync::mpsc::Sender<Vec<u8>>,
        leave: Receiver<()>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.leave.recv();
            let _ = self.written.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_sink_that_takes_nothing_costs_lines_and_holds_nobody_up() {
        let (written, seen) = channel();
        let (give, leave) = channel();
        let log = AccessLog::to(Box::new(Slow { written, leave })).unwrap();
        for number in 0..LINES_MAX * 20 {
            log.tell(&number);
        }
        drop(give);
        drop(log);
        let text: Vec<u8> = seen.into_iter().flatten().collect();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<usize> = text.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(lines[..3], [0, 1, 2]);
        assert!(lines.is_sorted() && lines.len() < LINES_MAX * 20);
    }
}
