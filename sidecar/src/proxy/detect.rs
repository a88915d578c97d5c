//! HTTP/1 or HTTP/2, told from a connection's first bytes.
//!
//! Not here: reading them under a time limit (`front.rs`).

/// What a client says first when it knows that HTTP/2 is spoken here (RFC 9113, 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speaks {
    /// So far it may still be the preface of HTTP/2.
    Undecided,
    /// HTTP/1, or nothing that is known: the HTTP/1 parser has the clearer errors.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
}

/// Decides by the bytes read so far; more of the same stream never changes a decision.
pub fn detect(first: &[u8]) -> Speaks {
    let known = first.len().min(PREFACE.len());
    if first[..known] != PREFACE[..known] {
        Speaks::Http1
    } else if known == PREFACE.len() {
        Speaks::Http2
    } else {
        Speaks::Undecided
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preface_is_told_from_everything_else() {
        assert_eq!(detect(b""), Speaks::Undecided);
        assert_eq!(detect(b"PRI * HT"), Speaks::Undecided);
        assert_eq!(detect(PREFACE), Speaks::Http2);
        assert_eq!(detect(b"PRI * HTTP/2.0\r\n\r\nXX"), Speaks::Http1);
        assert_eq!(detect(b"PRINT / HTTP/1.1\r\n"), Speaks::Http1);
        assert_eq!(detect(b"GET / HTTP/1.1\r\n"), Speaks::Http1);
        assert_eq!(detect(b"\x16\x03\x01"), Speaks::Http1);
    }

    #[test]
    fn a_decision_never_changes_with_more_bytes() {
        let mut bytes = PREFACE.to_vec();
        bytes.extend_from_slice(b"more");
        let mut decided = None;
        for end in 0..=bytes.len() {
            let now = detect(&bytes[..end]);
            if let Some(before) = decided {
                assert_eq!(now, before);
            } else if now != Speaks::Undecided {
                decided = Some(now);
            }
        }
        assert_eq!(decided, Some(Speaks::Http2));
    }
}
