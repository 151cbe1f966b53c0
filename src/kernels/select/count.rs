//! How many scores of each block lie above a threshold, and how many are equal to it.

use rayon::prelude::*;

use super::score::{Inputs, Scorer, all_scores};
use super::{BLOCK_LEN, SCORE, STATE_WORDS, Score, Scores};
use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{
    BLOCK, Bench, Case, CaseBuffer, Checked, Cost, Fill, Kernel, Want, groups_for, vectorised,
};
use crate::kernels::{DTYPE, LENGTHS, OCTETS, WORKGROUP, shader};
use crate::memory::Element;
use crate::shape::DType;

/// Counts, in blocks of [`BLOCK_LEN`] consecutive elements, with t = `state[0]` and s the ordered score bits:
///
/// ```text
/// above[block] = #{p in block : s[p] > t},  ties[block] = #{p in block : s[p] = t}
/// ```
///
/// - `theta`  θ `[p]`; F again for [`Score::Fish`]
/// - `fisher` F `[p]`
/// - `state`  `[2]`, the threshold first
/// - `above`  `[blocks + 1]`, the last word untouched: room for the total that [`Scan`](super::Scan) writes
/// - `ties`   `[blocks + 1]`, the same
///
/// Reads each input once. Exact. A score that cannot be ordered counts as above;
/// [`Histogram`](super::Histogram) tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// What is counted.
    pub scores: Scores,
}

crate::params! {
    /// The number of one [`Count`] step.
    pub struct CountParams {
        /// Elements.
        len: u32,
    }
}

crate::args! {
    /// The buffers of one [`Count`] step.
    pub struct CountArgs / CountSlices {
        /// θ `[p]`.
        read theta,
        /// F `[p]`.
        read fisher,
        /// `[2]`, the threshold first.
        read state,
        /// `[blocks + 1]`.
        write above,
        /// `[blocks + 1]`.
        write ties,
    }
}

impl Kernel for Count {
    const NAME: &'static str = "select.count";
    type Params = CountParams;
    type Args = CountArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("select/count.wgsl"), DTYPE, SCORE]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let own = [("WORKGROUP", WORKGROUP.into()), ("OCTETS", OCTETS.into())];
        self.scores.overrides().into_iter().chain(own).collect()
    }

    fn launch(&self, params: &CountParams, args: &CountArgs, caps: &Caps) -> Result<[u32; 3]> {
        const { assert!(BLOCK_LEN == 8 * WORKGROUP as u64 * OCTETS as u64, "a workgroup counts a block") };
        self.scores.check(Self::NAME, &args.theta, &args.fisher, params.len)?;
        args.state.check(Self::NAME, "state", STATE_WORDS, Some(Element::U32))?;
        let words = u64::from(params.len).div_ceil(BLOCK_LEN) + 1;
        args.above.check(Self::NAME, "above", words, Some(Element::U32))?;
        args.ties.check(Self::NAME, "ties", words, Some(Element::U32))?;
        groups_for(Self::NAME, params.len.into(), BLOCK_LEN, caps)
    }

    fn host(&self, params: &CountParams, args: CountSlices<'_>) {
        let (len, threshold) = (params.len as usize, args.state.cast::<u32>()[0]);
        let block_len = usize::try_from(BLOCK_LEN).expect("a small number");
        let blocks = args.above.cast::<u32>().par_iter_mut().zip(args.ties.cast::<u32>());
        blocks.take(len.div_ceil(block_len)).enumerate().for_each_init(
            Scorer::default,
            |scorer, (block, (above, ties))| {
                (*above, *ties) = (0, 0);
                let range = block * block_len..len.min((block + 1) * block_len);
                vectorised(
                    #[inline(always)]
                    || {
                        for start in range.clone().step_by(BLOCK) {
                            let n = BLOCK.min(range.end - start);
                            let bits = scorer.load(self.scores.score, args.theta, args.fisher, start, n);
                            *above += bits.iter().map(|&b| u32::from(b > threshold)).sum::<u32>();
                            *ties += bits.iter().map(|&b| u32::from(b == threshold)).sum::<u32>();
                        }
                    },
                );
            },
        );
    }

    fn cost(&self, params: &CountParams, _: &CountArgs) -> Cost {
        let len = u64::from(params.len);
        Cost {
            bytes: len * self.scores.bytes() + 8 * len.div_ceil(BLOCK_LEN),
            flops: len * self.scores.flops(),
        }
    }
}

impl Checked for Count {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for scores in all_scores() {
            cases.push(case(&Inputs::mixed(scores, 3, 9000), 0.25));
        }
        let fish = all_scores()[0];
        for len in LENGTHS.into_iter().chain([8191, 8192, 8193]) {
            cases.push(case(&Inputs::mixed(fish, 4, len), 0.5));
        }
        cases.push(case(&Inputs::mixed(fish, 5, 5000), 0.0));
        cases.push(case(&Inputs::new(fish, &[], &[2.0; 9000]), 2.0));
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        let len = u32::try_from(elements).unwrap_or(u32::MAX);
        let scores = Scores { score: Score::Fish, theta: DType::F32, fisher: DType::F32 };
        let words = u64::from(len).div_ceil(BLOCK_LEN) + 1;
        Bench {
            name: format!("{len} f32"),
            kernel: Self { scores },
            params: CountParams { len },
            buffers: vec![
                (DType::F32.into(), len.into(), Fill::Positive),
                (DType::F32.into(), len.into(), Fill::Positive),
                (Element::U32, STATE_WORDS, Fill::Zero),
                (Element::U32, words, Fill::Zero),
                (Element::U32, words, Fill::Zero),
            ],
        }
    }
}

fn case(inputs: &Inputs, threshold: f32) -> Case<Count> {
    let blocks = inputs.values.chunks(usize::try_from(BLOCK_LEN).expect("a small number"));
    let count = |holds: fn(f64, f64) -> bool| {
        let of = |block: &[f64]| block.iter().filter(|&&s| holds(s, threshold.into())).count();
        let mut want: Vec<Want> = blocks.clone().map(|block| Want::exact(of(block) as f64)).collect();
        // Not written: the sentinel stays.
        want.push(Want::exact(f64::from(0xA5A5_A5A5_u32)));
        want
    };
    let (above, ties) = (count(|s, t| s > t), count(|s, t| s == t));
    let room = CaseBuffer::sentinel(Element::U32, above.len());
    Case {
        name: format!("{:?} p={} t={threshold}", inputs.scores, inputs.len()),
        kernel: Count { scores: inputs.scores },
        params: CountParams { len: inputs.len() },
        buffers: vec![
            inputs.theta.clone(),
            inputs.fisher.clone(),
            CaseBuffer::words(&[threshold.to_bits(), 7]),
            room.clone(),
            room,
        ],
        want: vec![(3, above), (4, ties)],
    }
}
