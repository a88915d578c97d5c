//! One address and its live figures, kept from snapshot to snapshot by identity.
//!
//! Not here: how the figures are reckoned (`load.rs`), what sends an endpoint out (`outlier.rs`), who picks it
//! (`balance/`).

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    load::Load,
    moment::Moment,
    outcome::Outcome,
    outlier::{Canary, Cause, Trial},
};

/// How long a new or readmitted endpoint takes to get its full share.
pub const RAMP: Duration = Duration::from_secs(10);

/// Where a ramp starts: a tenth of the full share.
pub const RAMP_START: f64 = 0.1;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What makes two endpoints the same one, whatever becomes of weight, tags and health.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    /// The upstream that calls it: two upstream tables of one service judge it apart.
    pub upstream: Box<str>,
    /// Its node's id; 0 outside the mesh.
    pub node: u64,
    /// Its node's boot: a restarted host's instance is a new endpoint.
    pub epoch: u64,
    /// Its instance name; for fixed endpoints the place as written.
    pub instance: Box<str>,
    /// Where it is called.
    pub address: SocketAddr,
}

/// One address of an upstream.
#[derive(Debug)]
pub struct Endpoint {
    /// Its identity.
    pub key: Key,
    /// Unique in this process and never used again; never 0.
    pub id: u64,
    /// Its zone.
    pub zone: Box<str>,
    /// Its node's configured name; empty outside the mesh.
    pub node_name: Box<str>,
    /// HTTP/2 by prior knowledge is spoken to it, else HTTP/1.1.
    pub http2: bool,
    pub(crate) load: Load,
    pub(crate) trial: Trial,
    word: AtomicU8,
    started_ms: AtomicU64,
    grown: AtomicU64,
    evenness: AtomicU32,
    sated: AtomicBool,
}

/// Changes of [`Endpoint::evenness`] below this are not told: nobody would see them, and every worker would write anew all
/// the time what the others read.
const EVENNESS_STEP: f32 = 0.005;

/// What SWIM says of an endpoint that may still be called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Word {
    /// Its host is alive, or it is none of the mesh's business.
    Sure = 0,
    /// Its host is suspected.
    Suspect = 1,
    /// Its host was declared down together with too many others to be believed.
    Vanished = 2,
}

/// What an attempt came to, told once when it is over.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Report {
    /// What it came to.
    pub outcome: Outcome,
    /// Time to the answer head, for [`Outcome::Success`] and [`Outcome::ClientFault`].
    pub latency: Option<Duration>,
    /// Tells this attempt's connection from others; 0 if there was none.
    pub connection: u64,
    /// What [`Pick::canary`](crate::balance::Pick::canary) said of it.
    pub canary: Option<Canary>,
}

impl Endpoint {
    /// A new endpoint whose application started at `started_ms` (Unix time), known of since `now` = `unix_ms`.
    pub(crate) fn new(
        key: Key,
        traits: Traits,
        started_ms: u64,
        unix_ms: u64,
        now: Moment,
    ) -> Endpoint {
        let endpoint = Endpoint {
            key,
            id: NEXT_ID.fetch_add(1, Relaxed),
            zone: traits.zone,
            node_name: traits.node_name,
            http2: traits.http2,
            load: Load::new(),
            trial: Trial::new(),
            word: AtomicU8::new(Word::Sure as u8),
            started_ms: AtomicU64::new(started_ms),
            grown: AtomicU64::new(0),
            evenness: AtomicU32::new(1_f32.to_bits()),
            sated: AtomicBool::new(false),
        };
        endpoint.grow(started_ms, unix_ms, now);
        endpoint
    }

    /// An attempt starts: in flight + 1, waiting for its head + 1.
    pub fn begin(&self, now: Moment) {
        self.load.begin(now);
    }

    /// Something came back: waiting − 1.
    pub fn head_came(&self, now: Moment) {
        self.load.head_came(now);
    }

    /// An answer began whose outcome only its end tells: no reason to spare the endpoint until then.
    pub fn answers(&self) {
        self.load.answers();
    }

    /// The attempt ended without an answer head: waiting − 1.
    pub fn gave_up(&self, _now: Moment) {
        self.load.gave_up();
    }

    /// The answer's body ended or the attempt is over: in flight − 1.
    pub fn end(&self, _now: Moment) {
        self.load.end();
    }

    /// Attempts begun and not ended, by all workers.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        self.load.in_flight()
    }

    /// Whether an attempt waits for its answer head; bodies and streams that go on do not count.
    #[inline]
    pub fn is_waited_for(&self) -> bool {
        self.load.is_waited_for()
    }

    /// Its smoothed figures.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Whether it is sent out at `now` or on trial for its return.
    pub fn is_ejected(&self) -> bool {
        self.trial.is_out()
    }

    /// How long it stays out from `now`; zero when only its canary is awaited, `None` when it is in.
    pub fn ejected_for(&self, now: Moment) -> Option<Duration> {
        self.trial.out_for(now)
    }

    /// Why it is sent out; `None` when it is in.
    pub fn ejected_because(&self) -> Option<Cause> {
        self.trial.cause()
    }

    /// Until when it asked to be left alone because it is full; `None` if it is not.
    pub fn full_for(&self, now: Moment) -> Option<Duration> {
        self.trial.full_for(now)
    }

    /// What SWIM says of it, as of the newest snapshot.
    pub fn word(&self) -> Word {
        match self.word.load(Relaxed) {
            1 => Word::Suspect,
            2 => Word::Vanished,
            _ => Word::Sure,
        }
    }

    /// One that SWIM took away and that is kept all the same has to answer before it gets more than one request.
    pub(crate) fn set_word(&self, word: Word) {
        let before = self.word.swap(word as u8, Relaxed);
        let (had_vanished, has_vanished) = (before == Word::Vanished as u8, word == Word::Vanished);
        if had_vanished != has_vanished {
            self.load.doubt(has_vanished);
        }
    }

    /// SWIM was believed for a while, and is not any more: whatever it answered before that is old.
    pub(crate) fn doubt_again(&self) {
        self.load.doubt(true);
    }

    /// What it makes of its cost that it was asked more or less than its share lately, 0.75 to 1.25, as the worker has it
    /// that looked last; 1 where nothing is evened out.
    pub fn evenness(&self) -> f32 {
        f32::from_bits(self.evenness.load(Relaxed))
    }

    pub(crate) fn set_evenness(&self, factor: f32) {
        if (factor - self.evenness()).abs() > EVENNESS_STEP {
            self.evenness.store(factor.to_bits(), Relaxed);
        }
    }

    /// Whether it weighs less than others and has had its part of the requests, as the worker has it that told last.
    pub fn is_sated(&self) -> bool {
        self.sated.load(Relaxed)
    }

    pub(crate) fn set_sated(&self, sated: bool) {
        if sated != self.is_sated() {
            self.sated.store(sated, Relaxed);
        }
    }

    /// Share of its weight it gets at `now`, 0.1 to 1: of its age and of its return from an ejection.
    pub fn ramp(&self, now: Moment) -> f64 {
        let grown = Moment::from_nanos(self.grown.load(Relaxed));
        ramp_until(grown, now) * self.trial.ramp(now)
    }

    /// Notes when the application behind the address started; a later start makes it new again.
    pub(crate) fn started(&self, started_ms: u64, unix_ms: u64, now: Moment) {
        if self.started_ms.swap(started_ms, Relaxed) != started_ms {
            self.grow(started_ms, unix_ms, now);
        }
    }

    fn grow(&self, started_ms: u64, unix_ms: u64, now: Moment) {
        // A clock ahead of ours makes the age zero and not negative, so no ramp lasts longer than RAMP.
        let age = Duration::from_millis(unix_ms.saturating_sub(started_ms));
        let left = RAMP.saturating_sub(age);
        let grown = if left.is_zero() {
            Moment::START
        } else {
            now + left
        };
        self.grown.store(grown.as_nanos(), Relaxed);
    }
}

/// The share that a ramp ending at `end` gives at `now`, [`RAMP_START`] to 1.
pub(crate) fn ramp_until(end: Moment, now: Moment) -> f64 {
    let left = end.since(now).as_secs_f64() / RAMP.as_secs_f64();
    (1.0 - (1.0 - RAMP_START) * left).clamp(RAMP_START, 1.0)
}

/// What belongs to an endpoint without being its identity, and without changing while it lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Traits {
    pub zone: Box<str>,
    pub node_name: Box<str>,
    pub http2: bool,
}

impl Traits {
    pub(crate) fn fit(&self, endpoint: &Endpoint) -> bool {
        self.zone == endpoint.zone
            && self.node_name == endpoint.node_name
            && self.http2 == endpoint.http2
    }
}
