//! The access log: one line of JSON for each connection or flow that has ended.
//!
//! Not here: what a line says (`proxy/connections/row.rs`). Lines go through a bounded queue to a thread
//! of their own, so a full disk or a slow reader costs lines, which are counted, and never a worker's time.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread,
    time::Duration,
};

use metrics::{Counter, counter};
use serde::Serialize;
use tokio::{sync::oneshot, time::timeout};

/// Lines waiting to be written; one more is dropped and counted.
pub const LINES_MAX: usize = 4096;
/// Longest wait for the last lines of a sidecar that goes.
pub const LAST_LINES: Duration = Duration::from_secs(1);

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
    orders: Arc<Orders>,
    dropped: Counter,
}

enum Line {
    Text(String),
    /// Nothing to write, but an order to see.
    Order,
}

/// What the thread is told beside lines. It looks at them before each line and when there is none, so they wait in no
/// queue that could be full.
#[derive(Debug, Default)]
struct Orders {
    /// From now on lines go here.
    reopened: Mutex<Option<File>>,
    /// Is told once everything is written.
    written: Mutex<Option<oneshot::Sender<()>>>,
}

impl Orders {
    fn put<T>(place: &Mutex<Option<T>>, order: T) {
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
    }

    fn take<T>(place: &Mutex<Option<T>>) -> Option<T> {
        place.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
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
        let orders = Arc::<Orders>::default();
        let seen = Arc::clone(&orders);
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write(out, &queue, &seen))?;
        Ok(AccessLog {
            lines,
            orders,
            dropped: counter!("starling_access_log_dropped_total"),
        })
    }

    /// Opens the file anew: from now on lines go where its name leads to. Waits for nobody, whatever the old file does.
    ///
    /// # Errors
    /// The file cannot be opened; then the old one stays.
    pub fn reopen(&self, sink: &Sink) -> io::Result<()> {
        if let Sink::File(path) = sink {
            Orders::put(&self.orders.reopened, appending(path)?);
            self.wake();
        }
        Ok(())
    }

    /// Waits until everything that was told is written, or for [`LAST_LINES`]; false if it took longer.
    pub async fn written(&self) -> bool {
        let (done, written) = oneshot::channel();
        Orders::put(&self.orders.written, done);
        self.wake();
        matches!(timeout(LAST_LINES, written).await, Ok(Ok(())))
    }

    /// Lets the thread see an order; if the queue is full it comes by soon anyway.
    fn wake(&self) {
        let _ = self.lines.try_send(Line::Order);
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
fn write(out: Box<dyn Write + Send>, queue: &Receiver<Line>, orders: &Orders) {
    let mut out = BufWriter::new(out);
    let failed = counter!("starling_access_log_dropped_total");
    let mut asked = None;
    loop {
        // Before the look at the queue: whoever asks later wants lines that may come after it.
        asked = Orders::take(&orders.written).or(asked);
        let line = match queue.try_recv() {
            Ok(line) => line,
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                let _ = out.flush().inspect_err(|_| failed.increment(1));
                if let Some(done) = asked.take() {
                    // Whoever asked may have waited long enough.
                    let _ = done.send(());
                }
                match queue.recv() {
                    Ok(line) => line,
                    Err(_) => break,
                }
            }
        };
        if let Some(file) = Orders::take(&orders.reopened) {
            let _ = out.flush().inspect_err(|_| failed.increment(1));
            out = BufWriter::new(Box::new(file));
        }
        if let Line::Text(text) = line {
            let _ = writeln!(out, "{text}").inspect_err(|_| failed.increment(1));
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

    /// A log whose sink waits for leave, what it was given, and the leave.
    fn slow() -> (AccessLog, Receiver<Vec<u8>>, std::sync::mpsc::Sender<()>) {
        let (written, seen) = channel();
        let (give, leave) = channel();
        let log = AccessLog::to(Box::new(Slow { written, leave })).unwrap();
        (log, seen, give)
    }

    #[test]
    fn a_sink_that_takes_nothing_costs_lines_and_holds_nobody_up() {
        let (log, seen, give) = slow();
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

    #[tokio::test]
    async fn whoever_goes_waits_for_the_last_line_and_not_for_ever() {
        let (log, seen, give) = slow();
        log.tell(&"before");
        tokio::time::pause();
        assert!(!log.written().await, "it takes nothing");
        tokio::time::resume();
        for number in 0..100 {
            log.tell(&number);
        }
        drop(give);
        assert!(log.written().await);
        let text: Vec<u8> = seen.try_iter().flatten().collect();
        assert!(text.ends_with(b"\n98\n99\n"));
    }

    #[tokio::test]
    async fn a_file_is_opened_anew_while_the_old_one_takes_nothing() {
        let (log, seen, give) = slow();
        for number in 0..LINES_MAX * 20 {
            log.tell(&number);
        }
        let name = format!("starling-access-log-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        log.reopen(&Sink::File(path.clone())).unwrap();
        drop(give);
        assert!(log.written().await);
        log.tell(&"after");
        assert!(log.written().await);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(text.ends_with("\n\"after\"\n"));
        let before: Vec<u8> = seen.try_iter().flatten().collect();
        assert!(before.starts_with(b"0\n"), "what was written stays");
    }
}
