//! Whether the other end of an HTTP/2 connection is still there: asked when streams wait, or have waited in vain, and
//! nothing is heard.
//!
//! Not here: driving the connection (`client.rs`).

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep};

/// A connection with streams that hears nothing for this long is asked whether it is still there ...
const ASK_AFTER: Duration = Duration::from_secs(5);
/// ... and if nothing but the answer to that comes, again after this: gRPC servers take more for abuse and end
/// the connection with all its streams (gRPC proposal A8: at most one in five minutes, where nothing else is said).
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(300);
/// ... and given up after this: packets may vanish without a word.
const GIVE_UP_AFTER: Duration = Duration::from_secs(3);

/// Asks and waits, by one timer that is moved only when it goes off.
pub struct Pulse {
    pings: PingPong,
    timer: Pin<Box<Sleep>>,
    stage: Stage,
    /// When it last said that it is there.
    answered: Option<Instant>,
}

enum Stage {
    /// No stream waits for anything.
    Rests,
    /// The timer goes off when it may be time to ask.
    Listens,
    /// The timer goes off when it is given up.
    Asked,
}

impl Pulse {
    /// Of a connection just opened.
    pub fn new(pings: PingPong) -> Pulse {
        Pulse {
            pings,
            timer: Box::pin(sleep(ASK_AFTER)),
            stage: Stage::Rests,
            answered: None,
        }
    }

    /// Whether it was asked and has not answered yet.
    pub fn is_asked(&self) -> bool {
        matches!(self.stage, Stage::Asked)
    }

    /// A request has waited in vain while nothing came: it is asked at once, but no more often than servers bear.
    pub fn doubt(&mut self, heard: Instant) {
        let has_just_answered = self.answered.is_some_and(|answered| heard <= answered);
        if !self.is_asked() && (!has_just_answered || self.due(heard) <= Instant::now()) {
            self.ask();
        }
    }

    /// False if the connection is over, as its driver is about to see.
    fn ask(&mut self) -> bool {
        let is_sent = self.pings.send_ping(Ping::opaque()).is_ok();
        if is_sent {
            self.timer.as_mut().reset(Instant::now() + GIVE_UP_AFTER);
            self.stage = Stage::Asked;
        }
        is_sent
    }

    /// When to ask, where nothing more comes.
    fn due(&self, heard: Instant) -> Instant {
        match self.answered {
            Some(answered) if heard <= answered => answered + ASK_AGAIN_AFTER,
            _ => heard + ASK_AFTER,
        }
    }

    /// Ready when nobody is there. `heard`: when anything came last; `waits`: whether a stream waits for more.
    pub fn poll_silence(&mut self, heard: Instant, waits: bool, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.stage {
                Stage::Rests if !waits => return Poll::Pending,
                Stage::Rests => {
                    let due = self.due(heard);
                    self.timer.as_mut().reset(due);
                    self.stage = Stage::Listens;
                }
                Stage::Listens => {
                    let due = self.due(heard);
                    if self.timer.deadline() > due {
                        self.timer.as_mut().reset(due);
                    }
                    ready!(self.timer.as_mut().poll(cx));
                    if !waits {
                        self.stage = Stage::Rests;
                    } else if Instant::now() < due {
                        self.timer.as_mut().reset(due);
                    } else if !self.ask() {
                        return Poll::Pending;
                    }
                }
                Stage::Asked => {
                    if self.pings.poll_pong(cx).is_ready() {
                        self.answered = Some(Instant::now());
                        self.stage = Stage::Rests;
                        continue;
                    }
                    ready!(self.timer.as_mut().poll(cx));
                    return Poll::Ready(());
                }
            }
        }
    }
}
