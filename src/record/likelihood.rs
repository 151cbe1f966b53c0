//! Gradients at a network's outputs, for each kind of Fisher: what an application backpropagates.
//!
//! One recording goes from logits to gradients; the application's own backward pass takes them on, and
//! [`record::fisher`](crate::record::fisher) squares what arrives at the layers, weighted. In words, for a
//! classifier on a device:
//!
//! ```text
//! let loss = Softmax::new(&backend, samples, classes)?;             once
//! let out = Gradients::new(&backend, 1, samples, classes)?;
//! for class in 0..classes {
//!     loss.exact(&mut recording, &logits, None, class..class + 1, &out)?;
//!     recording.encode(&mut encoder)?;   then the backward pass of out.gradient
//!     layer.record(&mut recording, squares, Buffers { grad_output, weight: &out.weight, .. })?;
//! }                                      the first class overwrites, the others add
//! loss.check(&backend)?;                 after the submission: were all logits and labels sound?
//! ```
//!
//! Rounds may also be taken several at a time, as further samples. The whole, with a network of two layers,
//! is `examples/fisher_of_mlp.rs`. What each kind means, and why draws are the same on every device:
//! [`kernels::likelihood`](crate::kernels::likelihood).

mod gaussian;
mod softmax;

use std::ops::Range;

pub use gaussian::Gaussian;
pub use softmax::{IGNORED, Softmax};

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::kernels::likelihood::FAULTS;
use crate::memory::{Element, View};

/// What a recording leaves for the backward pass. All f32; `r` rounds (draws, classes, directions) of `n`
/// samples of `c` outputs.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// ∂ℓ/∂z `[r, n, c]`, of the *summed* loss.
    pub gradient: View,
    /// `[r, n]`: the weight of each sample's square.
    pub weight: View,
    /// `[r, n]`: s = ‖∂ℓ/∂z‖², by which the improved empirical Fisher divides.
    pub norm_sq: View,
}

impl Gradients {
    /// New buffers.
    ///
    /// # Errors
    /// As [`Backend::alloc`].
    pub fn new(backend: &Backend, rounds: u32, samples: u32, outputs: u32) -> Result<Self> {
        let rows = u64::from(rounds) * u64::from(samples);
        let elements = rows.checked_mul(outputs.into());
        let too_many = || Error::argument("gradients", format!("{rounds} x {samples} x {outputs} elements"));
        Ok(Self {
            gradient: backend.alloc(elements.ok_or_else(too_many)?, Element::F32)?,
            weight: backend.alloc(rows, Element::F32)?,
            norm_sq: backend.alloc(rows, Element::F32)?,
        })
    }
}

/// Which labels are drawn. A draw depends on the seed, the sample's number and the draw's own, and on nothing
/// else: batches may be cut anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draws {
    /// The seed.
    pub seed: u64,
    /// The number, in the whole data, of the batch's first sample.
    pub first_sample: u64,
    /// The draws of this step, of `of`.
    pub draws: Range<u32>,
    /// k, all draws of a sample: each has weight 1/k.
    pub of: u32,
}

impl Draws {
    fn count(&self, op: &str) -> Result<u32> {
        if self.draws.end > self.of {
            let problem = format!("draws {}..{} of {}", self.draws.start, self.draws.end, self.of);
            return Err(Error::argument(op, problem));
        }
        Ok(self.draws.end.saturating_sub(self.draws.start))
    }

    fn weight(&self) -> f32 {
        1.0 / self.of.max(1) as f32
    }
}

/// The first fault, in words.
fn check(op: &str, backend: &Backend, fault: &View, problems: [String; FAULTS as usize]) -> Result<()> {
    let words = backend.download::<u32>(fault)?;
    let found = words.into_iter().zip(problems).find(|(word, _)| *word != 0);
    found.map_or(Ok(()), |(word, problem)| Err(Error::argument(op, format!("sample {}: {problem}", !word))))
}

/// Low and high word.
#[expect(clippy::cast_possible_truncation, reason = "the two halves")]
const fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}
