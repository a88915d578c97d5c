//! The functions by which keys and owners become numbers: version 1 of every table's name.
//!
//! Not here: the tables. A change of anything here moves keys between sidecars of different versions, so it needs
//! another name in [`HashTable::name`](crate::policy::HashTable::name) beside the old one.

/// The hash of a key's bytes: XXH64 with seed 0 (<https://github.com/Cyan4973/xxHash>, its specification).
pub fn hash_of(bytes: &[u8]) -> u64 {
    xxh64(bytes, 0)
}

/// What names an owner, hashed: the parts with their lengths, so that `ab`, `c` is not `a`, `bc`.
pub fn seed_of(parts: &[&[u8]]) -> u64 {
    let chained = |seed: u64, part: &&[u8]| xxh64(part, seed ^ part.len() as u64);
    parts.iter().fold(parts.len() as u64, chained)
}

/// Every bit of `x` moves every bit of the result (the finalizer of MurmurHash3).
pub(super) const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// The `n`-th of a sequence of odd steps round all 64-bit numbers.
pub(super) const fn nth(n: u64) -> u64 {
    (n.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// −ln of a number above 0 and at most 1, by additions and multiplications alone: the logarithms of C libraries
/// differ in the last bit, and with it two sidecars could differ in an owner.
pub(super) fn minus_ln(x: f64) -> f64 {
    const FRACTION: u64 = (1 << 52) - 1;
    const BIAS: i64 = 1023;
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i64 - BIAS;
    let mut m = f64::from_bits(bits & FRACTION | (BIAS as u64) << 52);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    // ln m = 2 artanh z; |z| is at most 0.172, so that the first term left out is below 1e-11.
    let z = (m - 1.0) / (m + 1.0);
    let zz = z * z;
    let sum = 1.0 / 11.0 + zz * (1.0 / 13.0);
    let sum = 1.0 / 7.0 + zz * (1.0 / 9.0 + zz * sum);
    let sum = 1.0 + zz * (1.0 / 3.0 + zz * (1.0 / 5.0 + zz * sum));
    -(exponent as f64 * std::f64::consts::LN_2 + 2.0 * z * sum)
}

const PRIMES: [u64; 5] = [
    0x9e37_79b1_85eb_ca87,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
    0x85eb_ca77_c2b2_ae63,
    0x27d4_eb2f_1656_67c5,
];

fn xxh64(bytes: &[u8], seed: u64) -> u64 {
    let [p1, p2, p3, p4, p5] = PRIMES;
    let (stripes, rest) = bytes.as_chunks::<32>();
    let mut hash = if stripes.is_empty() {
        seed.wrapping_add(p5)
    } else {
        let mut lanes = [
            seed.wrapping_add(p1).wrapping_add(p2),
            seed.wrapping_add(p2),
            seed,
            seed.wrapping_sub(p1),
        ];
        for stripe in stripes {
            for (lane, word) in lanes.iter_mut().zip(stripe.as_chunks::<8>().0) {
                *lane = round(*lane, u64::from_le_bytes(*word));
            }
        }
        let [a, b, c, d] = lanes;
        let hash = a
            .rotate_left(1)
            .wrapping_add(b.rotate_left(7))
            .wrapping_add(c.rotate_left(12))
            .wrapping_add(d.rotate_left(18));
        lanes.iter().fold(hash, |hash, lane| {
            (hash ^ round(0, *lane)).wrapping_mul(p1).wrapping_add(p4)
        })
    };
    hash = hash.wrapping_add(bytes.len() as u64);
    let (words, rest) = rest.as_chunks::<8>();
    for word in words {
        hash ^= round(0, u64::from_le_bytes(*word));
        hash = hash.rotate_left(27).wrapping_mul(p1).wrapping_add(p4);
    }
    let (halves, rest) = rest.as_chunks::<4>();
    for half in halves {
        hash ^= u64::from(u32::from_le_bytes(*half)).wrapping_mul(p1);
        hash = hash.rotate_left(23).wrapping_mul(p2).wrapping_add(p3);
    }
    for byte in rest {
        hash ^= u64::from(*byte).wrapping_mul(p5);
        hash = hash.rotate_left(11).wrapping_mul(p1);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(p2);
    hash = (hash ^ (hash >> 29)).wrapping_mul(p3);
    hash ^ (hash >> 32)
}

fn round(lane: u64, word: u64) -> u64 {
    let lane = lane.wrapping_add(word.wrapping_mul(PRIMES[1]));
    lane.rotate_left(31).wrapping_mul(PRIMES[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        // Of the reference implementation, https://github.com/Cyan4973/xxHash.
        for (text, hash) in [
            ("", 0xef46_db37_51d8_e999),
            ("a", 0xd24e_c4f1_a98c_6e5b),
            ("abc", 0x44bc_2cf5_ad77_0999),
            (
                "Nobody inspects the spammish repetition",
                0xfbce_a83c_8a37_8bf1,
            ),
        ] {
            assert_eq!(hash_of(text.as_bytes()), hash, "{text:?}");
        }
    }

    #[test]
    fn names_that_are_cut_elsewhere_are_other_names() {
        assert_ne!(seed_of(&[b"ab", b"c"]), seed_of(&[b"a", b"bc"]));
        assert_ne!(seed_of(&[b"", b"a"]), seed_of(&[b"a", b""]));
        assert_ne!(seed_of(&[b"a"]), seed_of(&[b"a", b""]));
    }

    #[test]
    fn the_logarithm_is_one() {
        for x in [
            1.0,
            0.999_999,
            0.75,
            0.5,
            0.1,
            1e-3,
            1e-9,
            f64::EPSILON / 2.0,
        ] {
            let want: f64 = -f64::ln(x);
            assert!((minus_ln(x) - want).abs() < 1e-10 * want.max(1.0), "{x}");
        }
    }
}
