//! From the threshold to one byte an element.

use rayon::prelude::*;

use super::score::{BAD, Inputs, Scorer, all_scores};
use super::{BLOCK_LEN, FEW, KEEP, SCAN, SCORE, STATE_WORDS, Score, Scores, mask_words};
use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{
    BLOCK, Bench, Case, CaseBuffer, Checked, Cost, Fill, Kernel, Want, groups_for, vectorised,
};
use crate::kernels::{BENCHED, DTYPE, LENGTHS, Owner, WORKGROUP, shader};
use crate::memory::Element;
use crate::reference;
use crate::shape::DType;

/// Keeps what lies above the threshold t = `state[0]`, and of what equals it the first `state[1]` elements:
///
/// ```text
/// mask[p] = s[p] > t  or  (s[p] = t  and  #{q < p : s[q] = t} < state[1])
/// ```
///
/// - `theta`  θ `[p]`; F again for [`Score::Fish`]
/// - `fisher` F `[p]`
/// - `state`  `[2]`
/// - `ties`   `[blocks + 1]`, how many elements before each block equal t, from [`Scan`](super::Scan)
/// - `mask`   one byte an element, 1 or 0, four a word ([`mask_words`]); bytes behind the last element become 0
///
/// Reads each input once and writes the mask once. Exact. Definition: [`reference::select::mask`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask {
    /// What is compared.
    pub scores: Scores,
    /// Who looks for the end of the budget within a block: its workgroup together, or one invocation and nobody waits.
    pub owner: Owner,
}

crate::params! {
    /// The number of one [`Mask`] step.
    pub struct MaskParams {
        /// Elements.
        len: u32,
    }
}

crate::args! {
    /// The buffers of one [`Mask`] step.
    pub struct MaskArgs / MaskSlices {
        /// θ `[p]`.
        read theta,
        /// F `[p]`.
        read fisher,
        /// `[2]`: the threshold, and how many of the elements equal to it are kept.
        read state,
        /// `[blocks + 1]`.
        read ties,
        /// Four bytes a word.
        write mask,
    }
}

impl Kernel for Mask {
    const NAME: &'static str = "select.mask";
    type Params = MaskParams;
    type Args = MaskArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("select/mask.wgsl"), DTYPE, SCORE, SCAN, KEEP]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let workgroup = match self.owner {
            Owner::Workgroup => WORKGROUP,
            Owner::Invocation => FEW,
        };
        let alone = f64::from(u8::from(self.owner == Owner::Invocation));
        let own = [("WORKGROUP", workgroup.into()), ("ALONE", alone)];
        self.scores.overrides().into_iter().chain(own).collect()
    }

    fn launch(&self, params: &MaskParams, args: &MaskArgs, caps: &Caps) -> Result<[u32; 3]> {
        self.scores.check(Self::NAME, &args.theta, &args.fisher, params.len)?;
        args.state.check(Self::NAME, "state", STATE_WORDS, Some(Element::U32))?;
        let words = u64::from(params.len).div_ceil(BLOCK_LEN) + 1;
        args.ties.check(Self::NAME, "ties", words, Some(Element::U32))?;
        args.mask.check(Self::NAME, "mask", mask_words(params.len.into()), Some(Element::U32))?;
        groups_for(Self::NAME, params.len.into(), BLOCK_LEN, caps)
    }

    fn host(&self, params: &MaskParams, args: MaskSlices<'_>) {
        let &[threshold, budget] = args.state.cast::<u32>() else { unreachable!("launch checks the length") };
        let ties = args.ties.cast::<u32>();
        let mask = args.mask.cast::<u8>();
        let (kept, behind) = mask.split_at_mut(params.len as usize);
        behind.fill(0);
        let block_len = usize::try_from(BLOCK_LEN).expect("a small number");
        kept.par_chunks_mut(block_len).enumerate().for_each_init(Scorer::default, |scorer, (block, out)| {
            let mut left = budget.saturating_sub(ties[block]);
            let all = ties[block + 1] - ties[block] <= left;
            vectorised(
                #[inline(always)]
                || {
                    for (piece, out) in out.chunks_mut(BLOCK).enumerate() {
                        let start = block * block_len + piece * BLOCK;
                        let bits = scorer.load(self.scores.score, args.theta, args.fisher, start, out.len());
                        match (all, left) {
                            (true, _) => compare(out, bits, |b| b >= threshold),
                            (false, 0) => compare(out, bits, |b| b > threshold),
                            (false, _) => left = in_order(out, bits, threshold, left),
                        }
                    }
                },
            );
        });
    }

    fn cost(&self, params: &MaskParams, _: &MaskArgs) -> Cost {
        let len = u64::from(params.len);
        Cost { bytes: len * (self.scores.bytes() + 1), flops: len * self.scores.flops() }
    }
}

#[inline(always)]
fn compare(out: &mut [u8], bits: &[u32], keep: impl Fn(u32) -> bool) {
    for (out, &b) in out.iter_mut().zip(bits) {
        *out = keep(b).into();
    }
}

/// Where the budget for ties ends within the piece; gives what is left of it.
fn in_order(out: &mut [u8], bits: &[u32], threshold: u32, mut left: u32) -> u32 {
    for (out, &b) in out.iter_mut().zip(bits) {
        let tie = b == threshold && left > 0;
        left -= u32::from(tie);
        *out = u8::from(b > threshold || tie);
    }
    left
}

impl Checked for Mask {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for scores in all_scores() {
            cases.push(case(&Inputs::mixed(scores, 6, 9000), 0.3));
        }
        let fish = all_scores()[0];
        for len in LENGTHS.into_iter().chain([15, 16, 17, 8191, 8192, 8193]) {
            cases.push(case(&Inputs::mixed(fish, 7, len), 0.5));
        }
        let equal = Inputs::new(fish, &[], &[2.0; 9001]);
        let zeros = Inputs::new(fish, &[], &[-0.0; 9001]);
        for share in [0.0, 0.0002, 0.4, 0.455, 0.5, 0.9999, 1.0] {
            cases.push(case(&equal, share));
            cases.push(case(&zeros, share));
            cases.push(case(&Inputs::mixed(fish, 8, 9001), share));
        }
        let alone: Vec<_> = cases.iter().cloned().map(alone).collect();
        cases.extend(alone);
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        let len = u32::try_from(elements).unwrap_or(u32::MAX);
        let scores = Scores { score: Score::Fish, theta: DType::F32, fisher: DType::F32 };
        Bench {
            name: format!("{len} f32"),
            kernel: Self { scores, owner: Owner::Workgroup },
            params: MaskParams { len },
            buffers: vec![
                (DType::F32.into(), len.into(), Fill::Positive),
                (DType::F32.into(), len.into(), Fill::Positive),
                (Element::U32, STATE_WORDS, Fill::Zero),
                (Element::U32, u64::from(len).div_ceil(BLOCK_LEN) + 1, Fill::Zero),
                (Element::U32, mask_words(len.into()), Fill::Zero),
            ],
        }
    }

    fn layers(caps: &Caps) -> Vec<Bench<Self>> {
        let owner = Owner::of(caps);
        BENCHED
            .map(|elements| {
                let bench = Self::bench(elements);
                Bench { kernel: Self { owner, ..bench.kernel }, ..bench }
            })
            .into()
    }
}

fn alone(case: Case<Mask>) -> Case<Mask> {
    let kernel = Mask { owner: Owner::Invocation, ..case.kernel };
    Case { name: format!("{} alone", case.name), kernel, ..case }
}

/// What the steps before would have left for the `share` best: threshold and budget, and ties before each block.
pub(super) fn cut(values: &[f64], share: f64) -> (usize, [u32; 2], Vec<u32>) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "cases are small")]
    let k = (values.len() as f64 * share) as usize;
    let worst = reference::select::best(values, k).last().map(|&i| values[i]);
    // Nothing is kept above a threshold that no score reaches.
    let Some(worst) = worst else { return (0, [BAD, 0], vec![0; values.len().div_ceil(4096) + 1]) };
    let above = values.iter().filter(|&&s| s > worst).count();
    #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
    let bits = (worst as f32).to_bits();
    let before =
        |block: usize| values[..values.len().min(block * 4096)].iter().filter(|&&s| s == worst).count();
    let word = |count: usize| u32::try_from(count).expect("cases are small");
    let ties = (0..=values.len().div_ceil(4096)).map(|block| word(before(block))).collect();
    (k, [bits, word(k - above)], ties)
}

fn case(inputs: &Inputs, share: f64) -> Case<Mask> {
    let (k, state, ties) = cut(&inputs.values, share);
    let mut bytes: Vec<u8> = reference::select::mask(&inputs.values, k).into_iter().map(u8::from).collect();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let words = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let want: Vec<Want> = words.map(|word| Want::exact(word.into())).collect();
    Case {
        name: format!("{:?} p={} k={k}", inputs.scores, inputs.len()),
        kernel: Mask { scores: inputs.scores, owner: Owner::Workgroup },
        params: MaskParams { len: inputs.len() },
        buffers: vec![
            inputs.theta.clone(),
            inputs.fisher.clone(),
            CaseBuffer::words(&state),
            CaseBuffer::words(&ties),
            CaseBuffer::sentinel(Element::U32, want.len()),
        ],
        want: vec![(4, want)],
    }
}
