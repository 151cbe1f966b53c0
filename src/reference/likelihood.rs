//! Gradients of a loss at a network's outputs, and draws from the distribution that the outputs stand for.

/// p_c = exp(z_c) / Σ exp(z), of logits of which minus infinity is a class that cannot be.
#[must_use]
pub fn softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|z| (z - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

/// ∂ℓ/∂z of the cross-entropy ℓ = −ln p_label: p_c, and at the label p − 1, written as what the other classes have.
#[must_use]
pub fn cross_entropy(logits: &[f64], label: usize) -> Vec<f64> {
    let mut gradient = softmax(logits);
    let others: f64 = gradient.iter().enumerate().filter(|&(c, _)| c != label).map(|(_, p)| p).sum();
    gradient[label] = -others;
    gradient
}

/// The class that a uniform number in [0, 1) draws: the first whose cumulated probability exceeds it.
#[must_use]
pub fn draw(logits: &[f64], uniform: f64) -> usize {
    let mut cumulated = 0.0;
    for (c, p) in softmax(logits).into_iter().enumerate() {
        cumulated += p;
        if uniform < cumulated {
            return c;
        }
    }
    logits.len() - 1
}

/// 64 coins as a number of mean 0 and variance 1: heads less 32, over 4.
#[must_use]
pub fn noise(coins: u64) -> f64 {
    let heads: u64 = (0..64).map(|i| (coins >> i) & 1).sum();
    (heads as f64 - 32.0) / 4.0
}

/// Philox4x32-10 (Salmon et al. 2011, section 3.2): ten rounds of multiplication, exchange and exclusive or.
#[must_use]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u64; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let word = |value: u64| u32::try_from(value & 0xffff_ffff).expect("masked to 32 bits");
    (0..10_u64).fold(counter, |c, round| {
        let key = [0, 1].map(|i| word(u64::from(key[i]) + round * WEYL[i]));
        let product = [0, 1].map(|i| MULTIPLIERS[i] * u64::from(c[2 * i]));
        [
            word(product[1] >> 32) ^ c[1] ^ key[0],
            word(product[1]),
            word(product[0] >> 32) ^ c[3] ^ key[1],
            word(product[0]),
        ]
    })
}
