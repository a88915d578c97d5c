//! What a session's cookie says: which instance, so that every holder of the mesh's key can tell, and nobody else.
//!
//! Not here: who sends or reads a cookie (the sidecar), and what becomes of an instance that is gone (`mesh-core`).

use ring::{hkdf, hmac};

/// Bytes of a token: 128 bits of an HMAC cannot be guessed.
pub const TOKEN_BYTES: usize = 16;

/// Says which instance a session belongs to, without telling its name or address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Token([u8; TOKEN_BYTES]);

impl Token {
    /// Reads what its `Display` writes; `None` if it is anything else.
    pub fn read(text: &[u8]) -> Option<Token> {
        let (pairs, rest) = text.as_chunks::<2>();
        if pairs.len() != TOKEN_BYTES || !rest.is_empty() {
            return None;
        }
        let mut token = [0; TOKEN_BYTES];
        let digit = |letter: u8| char::from(letter).to_digit(16);
        for (byte, [high, low]) in token.iter_mut().zip(pairs) {
            *byte = (digit(*high)? << 4 | digit(*low)?) as u8;
        }
        Some(Token(token))
    }

    /// Its first four bytes: enough to tell tokens apart, too few to use one.
    pub fn beginning(&self) -> u32 {
        u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The keys of tokens, one for each gossip key: the first makes them, all are recognised.
///
/// A mesh that gossips in clear, which only loopback may, has one that anybody knows: its tokens name instances all
/// the same, and anybody could make one.
pub struct SessionKeys(Vec<hmac::Key>);

impl std::fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SessionKeys({}, hidden)", self.0.len())
    }
}

impl Default for SessionKeys {
    fn default() -> SessionKeys {
        SessionKeys::new([])
    }
}

impl SessionKeys {
    /// The keys that follow from the gossip's (HKDF-SHA256, RFC 5869).
    pub fn new(gossip: impl IntoIterator<Item = [u8; 32]>) -> SessionKeys {
        let mut keys: Vec<hmac::Key> = gossip.into_iter().map(|key| derived(&key)).collect();
        if keys.is_empty() {
            keys.push(derived(&[]));
        }
        SessionKeys(keys)
    }

    /// The instance's token under each key, the one to give out first. `parts` name the instance.
    pub fn tokens(&self, parts: &[&[u8]]) -> Box<[Token]> {
        let token = |key: &hmac::Key| {
            let mut context = hmac::Context::with_key(key);
            for part in parts {
                context.update(&(part.len() as u64).to_be_bytes());
                context.update(part);
            }
            let tag = context.sign();
            Token(std::array::from_fn(|at| tag.as_ref()[at]))
        };
        self.0.iter().map(token).collect()
    }
}

fn derived(secret: &[u8]) -> hmac::Key {
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"starling session 1");
    let prk = salt.extract(secret);
    let okm = prk.expand(&[b"cookie"], hmac::HMAC_SHA256);
    hmac::Key::from(okm.expect("a key of the hash's own length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTANCE: [&[u8]; 3] = [b"shop", b"web-1", b"web-1-8080"];

    #[test]
    fn every_holder_of_the_key_makes_the_same_token_and_nobody_else_does() {
        let keys = SessionKeys::new([[7; 32]]);
        let token = keys.tokens(&INSTANCE)[0];
        assert_eq!(SessionKeys::new([[7; 32]]).tokens(&INSTANCE)[0], token);
        assert_ne!(SessionKeys::new([[8; 32]]).tokens(&INSTANCE)[0], token);
        assert_ne!(SessionKeys::default().tokens(&INSTANCE)[0], token);
        assert_ne!(keys.tokens(&[b"shop", b"web-1w", b"eb-1-8080"])[0], token);
        let ours = SessionKeys::new([[8; 32], [7; 32]]);
        assert_eq!(
            ours.tokens(&INSTANCE)[1],
            token,
            "known while a key is changed"
        );
    }

    #[test]
    fn a_token_is_read_as_it_was_written_and_nothing_else_is_one() {
        let token = SessionKeys::default().tokens(&INSTANCE)[0];
        let text = token.to_string();
        assert_eq!(Token::read(text.as_bytes()), Some(token));
        assert!(!text.contains("web"), "{text}");
        for wrong in [
            "",
            "zz",
            &text[1..],
            &format!("{text}0"),
            &text.replace(&text[..1], "g"),
        ] {
            assert_eq!(Token::read(wrong.as_bytes()), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_derivation_is_held() {
        // Another value here would end every session while sidecars of two versions are about.
        let token = SessionKeys::new([[0; 32]]).tokens(&INSTANCE)[0];
        // Worked out with another implementation (Python's hmac and hashlib).
        assert_eq!(token.to_string(), "cd5bc16d11d40b074665b2eb239a34db");
    }
}
