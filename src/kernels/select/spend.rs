//! How many ties are left for what comes next.

use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Cost, Fill, Kernel, Want};
use crate::kernels::shader;
use crate::memory::Element;

use super::STATE_WORDS;

/// Takes the ties of one part of a stream off the number that may be kept, so that the next part keeps what is left:
///
/// ```text
/// left ← max(left − ties[len], 0),  state[1] ← min(left, 2³² − 1)
/// ```
///
/// - `ties`   `[len + 1]`, as [`Scan`](super::Scan) leaves it: the part's ties are the last word
/// - `left`   `[2]`, the lower and the upper half of a number of 64 bits
/// - `state`  the state of a selection, whose second word is how many ties the next [`Mask`](super::Mask) keeps
///
/// Three words in, three out. Exact. Recorded behind each part, it lets a stream's parts follow each other on a device
/// without the host waiting between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spend;

crate::params! {
    /// The number of one [`Spend`] step.
    pub struct SpendParams {
        /// Blocks, behind whose counts the total is.
        len: u32,
    }
}

crate::args! {
    /// The buffers of one [`Spend`] step.
    pub struct SpendArgs / SpendSlices {
        /// `[len + 1]`.
        read ties,
        /// `[2]`, in place.
        write left,
        /// The selection's state.
        write state,
    }
}

impl Kernel for Spend {
    const NAME: &'static str = "select.spend";
    type Params = SpendParams;
    type Args = SpendArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("select/spend.wgsl")]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    fn launch(&self, params: &SpendParams, args: &SpendArgs, _: &Caps) -> Result<[u32; 3]> {
        args.ties.check(Self::NAME, "ties", u64::from(params.len) + 1, Some(Element::U32))?;
        args.left.check(Self::NAME, "left", 2, Some(Element::U32))?;
        args.state.check(Self::NAME, "state", STATE_WORDS, Some(Element::U32))?;
        Ok([1, 1, 1])
    }

    fn host(&self, params: &SpendParams, args: SpendSlices<'_>) {
        let found = args.ties.cast::<u32>()[params.len as usize];
        let left = args.left.cast::<u32>();
        let now = (u64::from(left[1]) << 32 | u64::from(left[0])).saturating_sub(found.into());
        let [low, high] = halves(now);
        left.copy_from_slice(&[low, high]);
        args.state.cast::<u32>()[1] = if high > 0 { u32::MAX } else { low };
    }

    fn cost(&self, _: &SpendParams, _: &SpendArgs) -> Cost {
        Cost { bytes: 4 * 6, flops: 0 }
    }
}

/// The lower and the upper half.
fn halves(number: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

impl Checked for Spend {
    fn cases() -> Vec<Case<Self>> {
        const WORD: u64 = 1 << 32;
        let all = u32::MAX;
        let mut cases = Vec::new();
        for (left, found) in [
            (0, 0),
            (0, 7),
            (7, 0),
            (7, 6),
            (7, 7),
            (7, 8),
            (WORD - 1, all),
            (WORD - 1, 1),
            (WORD, 0),
            (WORD, 1),
            (WORD + 5, 6),
            (WORD + 5, 5),
            (3 * WORD, all),
            (u64::MAX, all),
        ] {
            cases.extend([0, 3].map(|len| case(len, left, found)));
        }
        cases
    }

    fn bench(_: u64) -> Bench<Self> {
        Bench {
            name: "a state".to_owned(),
            kernel: Self,
            params: SpendParams { len: 255 },
            buffers: vec![
                (Element::U32, 256, Fill::Below(4096)),
                (Element::U32, 2, Fill::Below(4096)),
                (Element::U32, STATE_WORDS, Fill::Zero),
            ],
        }
    }
}

fn case(len: u32, left: u64, found: u32) -> Case<Spend> {
    let mut ties = vec![9; len as usize];
    ties.push(found);
    let want = left.saturating_sub(found.into());
    let exact = |words: &[u32]| words.iter().map(|&word| Want::exact(word.into())).collect();
    Case {
        name: format!("{found} of {left}, {len} blocks"),
        kernel: Spend,
        params: SpendParams { len },
        buffers: vec![
            CaseBuffer::words(&ties),
            CaseBuffer::words(&halves(left)),
            CaseBuffer::words(&[0x3f80_0000, 0xA5A5_A5A5]),
        ],
        want: vec![
            (1, exact(&halves(want))),
            (2, exact(&[0x3f80_0000, u32::try_from(want).unwrap_or(u32::MAX)])),
        ],
    }
}
