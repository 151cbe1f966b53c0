//! Philox4x32-10 on the host.

use super::halves;

/// 128 random bits of a counter and a key.
///
/// Source: Salmon, Moraes, Dror & Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3* (SC 2011), section 3.2.
#[inline(always)]
pub(super) fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (even_low, even_high) = halves(u64::from(counter[0]) * 0xD251_1F53);
        let (odd_low, odd_high) = halves(u64::from(counter[2]) * 0xCD9E_8D57);
        counter = [odd_high ^ counter[1] ^ key[0], odd_low, even_high ^ counter[3] ^ key[1], even_low];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::likelihood as definition;

    /// The known answers that the authors publish with Random123.
    #[test]
    fn known_answers() {
        let pi = ([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
        for ((counter, key), answer) in [
            (([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            (([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
        ] {
            assert_eq!(philox(counter, key), answer);
            assert_eq!(definition::philox(counter, key), answer);
        }
    }
}
