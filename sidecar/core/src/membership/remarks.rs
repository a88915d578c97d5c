//! What is to be said of single members beside their state: who suspects them and what was tried, and datagrams that
//! do not get through.
//!
//! Not here: how it becomes known (`swim.rs`, `exchange.rs`), and the sentences (`sidecar/src/admin/words.rs`).

use std::{collections::BTreeMap, time::Duration};

use mesh_proto::member::Member;

use super::{Membership, peers::Peer, repair::DIFFERENCE_TIME};
use crate::{
    mesh::{NodeState, Remark, Stream},
    moment::Moment,
};

/// Members whose streams are remembered. Where it is more, the fault is not theirs, and the first ones say so too.
const STREAMS_MAX: usize = 256;

/// Late answers are no blocked path: only what lasts so long is told.
const BLOCKED_AFTER: Duration = Duration::from_secs(5);

/// What a stream came to explains a suspicion for so long.
const TRIED_TIME: Duration = Duration::from_secs(60);

/// What streams to members that did not answer datagrams came to.
#[derive(Default, Debug)]
pub(super) struct Streams {
    tried: BTreeMap<u64, (Stream, Moment)>,
    blocked: BTreeMap<u64, Blocked>,
}

/// A member that answers streams and no datagrams.
#[derive(Debug)]
struct Blocked {
    since: Moment,
    /// When that was seen last.
    last: Moment,
    lasts: bool,
}

impl Streams {
    /// A stream to a member that had not answered a datagram is over.
    pub fn note(&mut self, id: u64, came_to: Stream, now: Moment) {
        if self.tried.len() < STREAMS_MAX || self.tried.contains_key(&id) {
            self.tried.insert(id, (came_to, now));
        }
        if came_to == Stream::Answered && self.blocked.len() < STREAMS_MAX {
            let new = Blocked {
                since: now,
                last: now,
                lasts: false,
            };
            self.blocked.entry(id).or_insert(new).last = now;
        }
    }

    /// A datagram was answered. Yields whether the member was told to be blocked.
    fn hear(&mut self, id: u64) -> bool {
        self.blocked
            .remove(&id)
            .is_some_and(|blocked| blocked.lasts)
    }

    /// Forgets whoever `is_there` no more. Yields whether anybody is told to be blocked from now on.
    fn look(&mut self, is_there: impl Fn(u64) -> bool, now: Moment) -> bool {
        self.tried.retain(|_, (_, at)| now.since(*at) < TRIED_TIME);
        self.blocked.retain(|id, _| is_there(*id));
        let mut is_new = false;
        for blocked in self.blocked.values_mut().filter(|blocked| !blocked.lasts) {
            // A single datagram lost is nothing that lasts, however long ago it was.
            blocked.lasts = blocked.last.since(blocked.since) >= BLOCKED_AFTER;
            is_new |= blocked.lasts;
        }
        is_new
    }
}

impl Membership {
    /// What is to be said of members, by id. Few have a remark.
    pub(super) fn remarks(&self) -> BTreeMap<u64, Remark> {
        let mut remarks = BTreeMap::new();
        for (member, peer) in self.peers.active() {
            let blocked = self.streams.blocked.get(&member.id);
            let blocked = blocked.filter(|blocked| blocked.lasts);
            if peer.state == NodeState::Suspect {
                let remark = Remark::Suspected {
                    by_us: self.swim.holds(&member),
                    stream: self
                        .streams
                        .tried
                        .get(&member.id)
                        .map(|(stream, _)| *stream),
                };
                remarks.insert(member.id, remark);
            } else if let Some(Blocked { since, .. }) = blocked {
                remarks.insert(member.id, Remark::StreamsOnly { since: *since });
            }
        }
        remarks
    }

    /// How many living peers have known something else than we for how long, the longest of them; a peer whose hash is
    /// ours again does not count. While news is on its way this is never quite nothing.
    pub fn divergence(&self, now: Moment) -> (usize, Duration) {
        let differing = self.peers.differing().filter(|(_, peer)| peer.is_active());
        let since = differing.filter_map(|(member, _)| self.peers.differs(member.id));
        let spans = since.map(|since| now.since(since));
        spans.fold((0, Duration::ZERO), |(count, longest), span| {
            (count + 1, longest.max(span))
        })
    }

    /// The owners that have said for longest to know something else than we, for a second at least: name and span, at
    /// most `most` of them, the longest first.
    pub fn behind(&self, most: usize, now: Moment) -> Vec<(&str, Duration)> {
        let differing = self.peers.differing().filter(|(_, peer)| peer.is_active());
        let spans = differing.filter_map(|(member, _)| {
            let span = now.since(self.peers.differs(member.id)?);
            let node = self.record_of(member.id)?;
            (span >= DIFFERENCE_TIME).then_some((&*node.name, span))
        });
        let mut spans: Vec<_> = spans.collect();
        spans.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        spans.truncate(most);
        spans
    }

    /// A blocked path is told once it has lasted, though nothing else changes then.
    pub(super) fn look_after_remarks(&mut self, now: Moment) {
        let peers = &self.peers;
        let is_there = |id| peers.get(id).is_some_and(Peer::is_active);
        self.changed |= self.streams.look(is_there, now);
    }

    /// A member answered a datagram of ours.
    pub(super) fn hear_answer(&mut self, member: &Member) {
        self.changed |= self.streams.hear(member.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lost_datagram_is_no_blocked_path() {
        let at = |seconds| Moment::START + Duration::from_secs(seconds);
        let mut streams = Streams::default();
        streams.note(7, Stream::Answered, at(0));
        assert!(!streams.look(|_| true, at(60)));
        streams.note(7, Stream::Answered, at(61));
        assert!(streams.look(|_| true, at(61)));
        assert!(!streams.look(|_| true, at(62)), "it is told once");
        assert!(streams.hear(7));

        streams.note(8, Stream::Answered, at(70));
        streams.look(|id| id != 8, at(71));
        assert!(streams.blocked.is_empty(), "it is gone");
    }
}
