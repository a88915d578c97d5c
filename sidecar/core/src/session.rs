//! Sessions that stay with an instance: who a cookie means, and where clients by their address were sent.
//!
//! Not here: cookies as text (the sidecar), and what becomes of a session whose instance is out (`balance/bound.rs`).

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_proto::session::{SessionKeys, Token};

use crate::{endpoint::Endpoint, moment::Moment};

/// Clients remembered by their address, for one upstream.
pub const SOURCES_MAX: usize = SETS * WAYS;

/// Clients are spread over this many sets; where one is full, whoever was not seen for longest is forgotten.
const SETS: usize = 8_192;

/// Clients of one set.
const WAYS: usize = 8;

/// What a request says of its session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Session {
    /// Its cookie.
    Token(Token),
    /// Its client's address, hashed.
    Source(u64),
}

impl Session {
    /// A short word for it, that tells sessions apart and cannot be used in their place.
    pub fn word(&self) -> u32 {
        match self {
            Session::Token(token) => token.beginning(),
            Session::Source(hash) => (hash >> 32) as u32,
        }
    }
}

/// One that sessions may stay with.
#[derive(Clone, Debug)]
pub struct Host {
    /// Who.
    pub endpoint: Arc<Endpoint>,
    /// Index of its tier.
    pub tier: usize,
    /// What names it, hashed ([`crate::hash::seed_of`]).
    pub seed: u64,
    /// It takes no new sessions.
    pub draining: bool,
    /// Its token under each key, the one to give out first; none where no cookie is used.
    tokens: Box<[Token]>,
}

/// Everybody that sessions may stay with: whoever may be called, and whoever is draining and has sessions to end.
#[derive(Debug)]
pub struct Hosts {
    keys: Arc<SessionKeys>,
    /// By seed.
    all: Vec<Host>,
    /// Of every key, by token, and whose they are.
    tokens: Vec<(Token, usize)>,
    /// Of endpoints, by id, and whose they are.
    ids: Vec<(u64, usize)>,
}

/// One that may host sessions, on its way into [`Hosts`].
pub struct Guest<'a> {
    /// Who.
    pub endpoint: &'a Arc<Endpoint>,
    /// See [`Host::tier`].
    pub tier: usize,
    /// See [`Host::draining`].
    pub draining: bool,
    /// What names it, and that hashed.
    pub name: (Vec<Box<[u8]>>, u64),
}

impl Hosts {
    /// These hosts; with cookies their tokens are made under `keys`, or taken over from `previous`.
    pub fn new(
        guests: Vec<Guest<'_>>,
        keys: &Arc<SessionKeys>,
        cookies: bool,
        previous: Option<&Hosts>,
    ) -> Hosts {
        let previous = previous.filter(|hosts| Arc::ptr_eq(&hosts.keys, keys));
        let host = |guest: Guest<'_>| {
            let (parts, seed) = guest.name;
            let known = previous.and_then(|hosts| hosts.by_seed(seed));
            let tokens = match known {
                _ if !cookies => Box::default(),
                Some(known) if !known.tokens.is_empty() => known.tokens.clone(),
                _ => keys.tokens(&parts.iter().map(|part| &**part).collect::<Vec<_>>()),
            };
            Host {
                endpoint: Arc::clone(guest.endpoint),
                tier: guest.tier,
                seed,
                draining: guest.draining,
                tokens,
            }
        };
        let mut all: Vec<Host> = guests.into_iter().map(host).collect();
        all.sort_by_key(|host| host.seed);
        let numbered = || all.iter().enumerate();
        let mut tokens: Vec<(Token, usize)> = numbered()
            .flat_map(|(at, host)| host.tokens.iter().map(move |token| (*token, at)))
            .collect();
        tokens.sort_unstable();
        let mut ids: Vec<(u64, usize)> = numbered().map(|(at, h)| (h.endpoint.id, at)).collect();
        ids.sort_unstable();
        Hosts {
            keys: Arc::clone(keys),
            all,
            tokens,
            ids,
        }
    }

    /// Whether tokens are made with these keys.
    pub(crate) fn uses(&self, keys: &Arc<SessionKeys>) -> bool {
        Arc::ptr_eq(&self.keys, keys)
    }

    pub(crate) fn says_the_same(&self, other: &Hosts) -> bool {
        let same = |(a, b): (&Host, &Host)| {
            Arc::ptr_eq(&a.endpoint, &b.endpoint)
                && (a.seed, a.tier, a.draining) == (b.seed, b.tier, b.draining)
        };
        let pairs = self.all.iter().zip(&other.all);
        self.uses(&other.keys) && self.all.len() == other.all.len() && pairs.into_iter().all(same)
    }

    /// Whose token this is.
    pub fn by_token(&self, token: Token) -> Option<&Host> {
        let found = self
            .tokens
            .binary_search_by_key(&token, |(token, _)| *token);
        found.ok().map(|at| &self.all[self.tokens[at].1])
    }

    /// Whose name this is.
    pub fn by_seed(&self, seed: u64) -> Option<&Host> {
        let found = self.all.binary_search_by_key(&seed, |host| host.seed);
        found.ok().map(|at| &self.all[at])
    }

    /// The host that is this endpoint.
    pub fn by_id(&self, id: u64) -> Option<&Host> {
        let found = self.ids.binary_search_by_key(&id, |(id, _)| *id);
        found.ok().map(|at| &self.all[self.ids[at].1])
    }
}

impl Host {
    /// The token to give out.
    pub fn token(&self) -> Option<Token> {
        self.tokens.first().copied()
    }
}

/// Where clients were sent, by address: at most [`SOURCES_MAX`] of them.
#[derive(Debug, Default)]
pub struct Sources(Mutex<Vec<[Entry; WAYS]>>);

/// One client. A seed of 0 is nobody's.
#[derive(Clone, Copy, Default, Debug)]
struct Entry {
    source: u64,
    seed: u64,
    /// Where it goes while that one is away; 0 is nowhere yet.
    meanwhile: u64,
    used: Moment,
}

impl Sources {
    /// The seed of where a client was sent, if it was seen within `ttl`; it is seen now.
    pub fn find(&self, source: u64, ttl: Duration, now: Moment) -> Option<u64> {
        let mut sets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let set = sets.get_mut(set_of(source))?;
        let entry = set.iter_mut().find(|e| e.source == source && e.seed != 0)?;
        if now.since(entry.used) > ttl {
            return None;
        }
        entry.used = now;
        Some(entry.seed)
    }

    /// Where a client was sent, as [`Sources::find`] without its being seen.
    pub fn peek(&self, source: u64, ttl: Duration, now: Moment) -> Option<u64> {
        let sets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let set = sets.get(set_of(source))?;
        let entry = set.iter().find(|e| e.source == source && e.seed != 0)?;
        (now.since(entry.used) <= ttl).then_some(entry.seed)
    }

    /// Where a client goes while whoever it was sent to is away, if it had to already.
    pub fn meanwhile(&self, source: u64) -> Option<u64> {
        let sets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let set = sets.get(set_of(source))?;
        let entry = set.iter().find(|e| e.source == source && e.seed != 0)?;
        (entry.meanwhile != 0).then_some(entry.meanwhile)
    }

    /// Remembers where a known client goes until whoever it was sent to is back.
    pub fn lodge(&self, source: u64, seed: u64) {
        let mut sets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let set = sets.get_mut(set_of(source));
        let mut entries = set.into_iter().flatten();
        if let Some(entry) = entries.find(|e| e.source == source && e.seed != 0) {
            entry.meanwhile = seed;
        }
    }

    /// Remembers where a client is sent.
    pub fn remember(&self, source: u64, seed: u64, now: Moment) {
        let mut sets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sets.is_empty() {
            sets.resize(SETS, [Entry::default(); WAYS]);
        }
        let set = &mut sets[set_of(source)];
        let own = set.iter().position(|e| e.source == source && e.seed != 0);
        let oldest = (0..WAYS).min_by_key(|at| (set[*at].seed != 0, set[*at].used));
        if let Some(at) = own.or(oldest) {
            let stays = own.is_some() && set[at].seed == seed;
            let meanwhile = if stays { set[at].meanwhile } else { 0 };
            set[at] = Entry {
                source,
                seed,
                meanwhile,
                used: now,
            };
        }
    }
}

fn set_of(source: u64) -> usize {
    (source % SETS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hash::hash_of, staging::at};

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn a_client_is_remembered_from_its_last_request_on() {
        let sources = Sources::default();
        assert_eq!(sources.find(1, HOUR, at(0)), None);
        sources.remember(1, 7, at(0));
        assert_eq!(sources.find(1, HOUR, at(3_600_000)), Some(7));
        assert_eq!(sources.find(1, HOUR, at(7_200_000)), Some(7));
        assert_eq!(sources.peek(1, HOUR, at(10_800_000)), Some(7));
        assert_eq!(sources.find(1, HOUR, at(10_800_001)), None);
        sources.remember(1, 8, at(10_800_001));
        assert_eq!(sources.find(1, HOUR, at(10_800_001)), Some(8));
    }

    #[test]
    fn of_too_many_clients_those_not_seen_for_longest_are_forgotten() {
        let sources = Sources::default();
        let source = |i: u64| hash_of(&i.to_le_bytes());
        let many = SOURCES_MAX as u64 * 4;
        for i in 0..many {
            sources.remember(source(i), i + 1, at(i));
        }
        let known = |from: u64, to: u64| {
            let found = (from..to).filter(|i| sources.peek(source(*i), HOUR, at(many)).is_some());
            found.count() as u64
        };
        assert_eq!(known(many - 1_000, many), 1_000);
        assert!(known(0, 1_000) < 20);
        assert!(known(0, many) <= SOURCES_MAX as u64);
    }
}
