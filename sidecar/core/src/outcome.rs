//! What an attempt came to, in the few kinds that balancing, ejection and retries tell apart.
//!
//! Not here: what the client is told (the sidecar's `proxy/reply.rs`).

use std::time::Duration;

/// Longest `Retry-After` that is believed; an endpoint may not park itself for longer.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// What one attempt at one endpoint came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// An answer that shows a well endpoint: 1xx–3xx, gRPC OK, a relayed connection.
    Success,
    /// The caller's own fault (4xx, 501, 505, most gRPC codes): says nothing bad of the endpoint.
    ClientFault,
    /// The endpoint answered that it failed: 500, 502, 503, 504, gRPC UNAVAILABLE and the like.
    ServerFault {
        /// 502, 503 or 504: what operators call a gateway error.
        gateway: bool,
    },
    /// The endpoint is full, not sick: 429, 503 with `Retry-After`, RESOURCE_EXHAUSTED.
    Overloaded {
        /// How long the endpoint asked to be left alone, at most [`RETRY_AFTER_MAX`].
        retry_after: Duration,
    },
    /// No answer at all.
    Unreachable(Unreachable),
}

/// Why an attempt got no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreachable {
    /// The kernel of the other side said no: nobody listens there.
    Refused,
    /// No connection within the connect timeout.
    ConnectTimedOut,
    /// The connection could not be made for another reason (no route, out of descriptors, handshake).
    ConnectFailed,
    /// Connected, but no answer within the attempt's time.
    AnswerTimedOut,
    /// The connection closed or was reset before a whole answer head.
    Broken,
    /// The endpoint promised that it did nothing: H2 REFUSED_STREAM, or GOAWAY below the stream.
    NotProcessed,
    /// What came back was not the protocol that was spoken to it.
    Garbled,
}

impl Unreachable {
    /// Whether the failure came before the endpoint could see any of the request.
    pub const fn at_connect(self) -> bool {
        matches!(
            self,
            Unreachable::Refused | Unreachable::ConnectTimedOut | Unreachable::ConnectFailed
        )
    }
}

impl Outcome {
    /// Judges an HTTP status (RFC 9110), given the answer's `Retry-After` in seconds if it had one.
    pub fn of_status(status: u16, retry_after: Option<Duration>) -> Outcome {
        match (status, retry_after) {
            (429, after) => Outcome::Overloaded {
                retry_after: after.unwrap_or_default().min(RETRY_AFTER_MAX),
            },
            (503, Some(after)) => Outcome::Overloaded {
                retry_after: after.min(RETRY_AFTER_MAX),
            },
            // Not implemented and HTTP version not supported describe the request, not the endpoint's health.
            (501 | 505, _) => Outcome::ClientFault,
            (502..=504, _) => Outcome::ServerFault { gateway: true },
            (500.., _) => Outcome::ServerFault { gateway: false },
            (400..=499, _) => Outcome::ClientFault,
            _ => Outcome::Success,
        }
    }

    /// Judges a gRPC status code (the `grpc-status` header or trailer).
    pub const fn of_grpc(code: u32) -> Outcome {
        match code {
            0 => Outcome::Success,
            // DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS.
            4 | 13 | 15 => Outcome::ServerFault { gateway: false },
            14 => Outcome::ServerFault { gateway: true },
            8 => Outcome::Overloaded {
                retry_after: Duration::ZERO,
            },
            _ => Outcome::ClientFault,
        }
    }

    /// Whether the endpoint did its part.
    pub const fn is_well(self) -> bool {
        matches!(self, Outcome::Success | Outcome::ClientFault)
    }

    /// Whether the attempt counts against the endpoint's health.
    pub const fn is_sick(self) -> bool {
        matches!(self, Outcome::ServerFault { .. } | Outcome::Unreachable(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_judged_by_who_is_at_fault() {
        let after = Some(Duration::from_secs(7));
        assert_eq!(Outcome::of_status(200, None), Outcome::Success);
        assert_eq!(Outcome::of_status(404, None), Outcome::ClientFault);
        assert_eq!(
            Outcome::of_status(500, None),
            Outcome::ServerFault { gateway: false }
        );
        assert_eq!(
            Outcome::of_status(503, None),
            Outcome::ServerFault { gateway: true }
        );
        assert_eq!(
            Outcome::of_status(503, after),
            Outcome::Overloaded {
                retry_after: Duration::from_secs(7)
            }
        );
        assert_eq!(Outcome::of_status(501, None), Outcome::ClientFault);
        assert_eq!(Outcome::of_status(505, None), Outcome::ClientFault);
    }

    #[test]
    fn grpc_codes_are_judged_by_who_is_at_fault() {
        const FULL: Outcome = Outcome::Overloaded {
            retry_after: Duration::ZERO,
        };
        const FAULT: Outcome = Outcome::ServerFault { gateway: false };
        const GATEWAY: Outcome = Outcome::ServerFault { gateway: true };
        // All that the specification names, by number, and one more.
        let judged = [
            ("OK", Outcome::Success),
            ("CANCELLED", Outcome::ClientFault),
            ("UNKNOWN", Outcome::ClientFault),
            ("INVALID_ARGUMENT", Outcome::ClientFault),
            ("DEADLINE_EXCEEDED", FAULT),
            ("NOT_FOUND", Outcome::ClientFault),
            ("ALREADY_EXISTS", Outcome::ClientFault),
            ("PERMISSION_DENIED", Outcome::ClientFault),
            ("RESOURCE_EXHAUSTED", FULL),
            ("FAILED_PRECONDITION", Outcome::ClientFault),
            ("ABORTED", Outcome::ClientFault),
            ("OUT_OF_RANGE", Outcome::ClientFault),
            ("UNIMPLEMENTED", Outcome::ClientFault),
            ("INTERNAL", FAULT),
            ("UNAVAILABLE", GATEWAY),
            ("DATA_LOSS", FAULT),
            ("UNAUTHENTICATED", Outcome::ClientFault),
            ("17, which has no name", Outcome::ClientFault),
        ];
        for (code, (name, want)) in (0..).zip(judged) {
            let got = Outcome::of_grpc(code);
            assert_eq!(got, want, "{name}");
            assert_eq!(got.is_sick(), [4, 13, 14, 15].contains(&code), "{name}");
            assert_eq!(got.is_well(), !got.is_sick() && code != 8, "{name}");
        }
    }

    #[test]
    fn nobody_is_believed_to_be_full_for_longer_than_five_minutes() {
        let outcome = Outcome::of_status(503, Some(Duration::from_secs(86_400)));
        assert_eq!(
            outcome,
            Outcome::Overloaded {
                retry_after: RETRY_AFTER_MAX
            }
        );
    }
}
