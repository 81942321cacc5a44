//! Arithmetic modulo the CRC-32 polynomial P, on which the recovery of the IP identification stands.
//!
//! Polynomials are reflected, as in the CRC: bit 31 is the coefficient of z^0, bit 0 that of z^31. P is
//! primitive, so z has the order 2^32 - 1 and every power of it has an inverse.

/// P without its leading term, reflected.
const P: u32 = 0xEDB8_8320;
/// The polynomial 1.
const ONE: u32 = 1 << 31;
/// z.
const Z: u32 = 1 << 30;
/// 1 / z: (P - 1) / z + z^31, since P = 0.
const Z_INVERSE: u32 = (P << 1) | 1;

/// z to this power is 1.
const ORDER: u64 = (1 << 32) - 1;

/// Bits from the end of the IP identification to the end of the ICRC's register, without the datagram: the
/// rest of the IP header and UDP header (14 + 8 bytes); the ICRC itself counts once in the datagram's
/// length and once as the 32 steps by which a CRC shifts its message.
const FIXED_BITS: u64 = 8 * (14 + 8);

/// Multiplies two polynomials. The time depends on the highest power of z in `b`.
pub(super) const fn multiply(mut a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    // The coefficient of z^0 first, in bit 31 of `b`.
    while b != 0 {
        product ^= a & ((b as i32) >> 31) as u32;
        a = times_z(a);
        b <<= 1;
    }
    product
}

/// The same as [`multiply`] in a third of the time, whatever `b` is: for products that a packet waits for.
pub(super) fn multiply_fast(a: u32, b: u32) -> u32 {
    // Of two reflected numbers of 32 bits the product has 63; one more makes a reflected number of 64.
    let product = multiply_without_carry(a, b) << 1;
    // Its low half holds z^32 to z^63: four steps of a CRC bring them below z^32.
    let mut high_powers = product as u32;
    for _ in 0..4 {
        high_powers = high_powers >> 8 ^ TIMES_Z8[(high_powers & 0xFF) as usize];
    }
    (product >> 32) as u32 ^ high_powers
}

/// The product of two polynomials over GF(2) that are not reduced.
///
/// Ordinary multiplications of every fourth bit of `a` by every fourth bit of `b`: at most eight ones meet in
/// a bit, and their sum stays within the three zeros above it, where it is masked away.
fn multiply_without_carry(a: u32, b: u32) -> u64 {
    const EVERY_FOURTH: u64 = 0x1111_1111_1111_1111;
    let every_fourth = |x: u32| [0, 1, 2, 3].map(|i| u64::from(x) & (EVERY_FOURTH << i));
    let (a, b) = (every_fourth(a), every_fourth(b));
    let mut product = 0;
    for k in 0..4 {
        let mut sum = 0;
        for (i, a) in a.iter().enumerate() {
            sum ^= a.wrapping_mul(b[(k + 4 - i) % 4]);
        }
        product |= sum & (EVERY_FOURTH << k);
    }
    product
}

/// A byte times z^8, by the byte: the table of a bytewise CRC.
static TIMES_Z8: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut a = byte as u32;
        let mut i = 0;
        while i < 8 {
            a = times_z(a);
            i += 1;
        }
        table[byte] = a;
        byte += 1;
    }
    table
};

pub(super) const fn times_z(a: u32) -> u32 {
    a >> 1 ^ (P & (a & 1).wrapping_neg())
}

const fn power(mut base: u32, mut exponent: u64) -> u32 {
    let mut result = ONE;
    while exponent != 0 {
        if exponent & 1 != 0 {
            result = multiply(result, base);
        }
        base = multiply(base, base);
        exponent >>= 1;
    }
    result
}

/// Entries of the tables, one for each multiple of four: datagrams of up to 4 KiB of payload, with all
/// headers. Longer ones are computed.
const ENTRIES: usize = (4096 + 128) / 4;

static SHIFT: [u32; ENTRIES] = powers(Z);
static INVERSE_SHIFT: [u32; ENTRIES] = powers(Z_INVERSE);

const fn powers(base: u32) -> [u32; ENTRIES] {
    let step = power(base, 32);
    let mut table = [power(base, FIXED_BITS); ENTRIES];
    let mut i = 1;
    while i < ENTRIES {
        table[i] = multiply(table[i - 1], step);
        i += 1;
    }
    table
}

/// What the identification is multiplied by on its way into the ICRC of a datagram of this length:
/// z^(8 datagram_len + [`FIXED_BITS`]).
pub(super) fn shift(datagram_len: usize) -> u32 {
    lookup(&SHIFT, Z, datagram_len)
}

/// The inverse of [`shift`].
pub(super) fn inverse_shift(datagram_len: usize) -> u32 {
    lookup(&INVERSE_SHIFT, Z_INVERSE, datagram_len)
}

fn lookup(table: &[u32; ENTRIES], base: u32, datagram_len: usize) -> u32 {
    match table.get(datagram_len / 4) {
        Some(&entry) if datagram_len.is_multiple_of(4) => entry,
        _ => power(base, FIXED_BITS + 8 * (datagram_len as u64 % ORDER)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn z_has_its_inverse_and_its_order() {
        assert_eq!(multiply(Z, Z_INVERSE), ONE);
        assert_eq!(power(Z, ORDER), ONE);
        for prime in [3, 5, 17, 257, 65537] {
            assert_ne!(power(Z, ORDER / prime), ONE, "the order divides 2^32 - 1 properly");
        }
    }

    #[test]
    fn multiplication_is_that_of_a_ring() {
        let mut x = 1u32;
        let mut next = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            x
        };
        for extreme in [0, 1, ONE, u32::MAX] {
            assert_eq!(multiply_fast(extreme, u32::MAX), multiply(extreme, u32::MAX));
        }
        for _ in 0..1000 {
            let (a, b, c) = (next(), next(), next());
            assert_eq!(multiply(a, b), multiply(b, a));
            assert_eq!(multiply(a, multiply(b, c)), multiply(multiply(a, b), c));
            assert_eq!(multiply(a, b ^ c), multiply(a, b) ^ multiply(a, c));
            assert_eq!(multiply(a, ONE), a);
            assert_eq!(multiply_fast(a, b), multiply(a, b));
        }
    }

    #[test]
    fn tables_agree_with_the_definition_at_every_length() {
        for len in 0..2 * 4 * ENTRIES {
            assert_eq!(shift(len), power(Z, FIXED_BITS + 8 * len as u64));
            assert_eq!(multiply(shift(len), inverse_shift(len)), ONE);
        }
    }

    /// No single wrong bit, from the start of the IP header to the end of the ICRC, in any datagram with a
    /// table entry, can pass for another identification.
    #[test]
    fn a_single_bit_is_never_an_identification() {
        let mut before = ONE; // powers of z from the identification's last bit backwards, towards the start
        for bit in 0..8 * 6 {
            let is_identification = bit < 16;
            assert_eq!(before & 0xFFFF == 0, is_identification, "bit {bit} before");
            before = times_z(before);
        }
        let mut after = ONE;
        for bit in 1..=FIXED_BITS + 8 * 4 * ENTRIES as u64 {
            after = multiply(after, Z_INVERSE);
            assert_ne!(after & 0xFFFF, 0, "bit {bit} after");
        }
    }
}
