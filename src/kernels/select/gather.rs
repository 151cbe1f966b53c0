//! From the threshold to the kept elements alone.

use rayon::prelude::*;

use super::mask::cut;
use super::score::{Inputs, Scorer, all_scores};
use super::{BLOCK_LEN, FEW, KEEP, SCAN, SCORE, STATE_WORDS, Score, Scores};
use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{
    BLOCK, Bench, Case, CaseBuffer, Checked, Cost, Fill, Kernel, Want, groups_for, vectorised,
};
use crate::kernels::{BENCHED, DTYPE, LENGTHS, Owner, WORKGROUP, shader};
use crate::memory::Element;
use crate::reference;
use crate::shape::DType;

/// The kept elements of [`Mask`](super::Mask), in the order of their indices:
///
/// ```text
/// indices[r] = p, values[r] = s[p]   for the kept element p with r kept elements before it
/// ```
///
/// - `theta`   θ `[p]`; F again for [`Score::Fish`]
/// - `fisher`  F `[p]`
/// - `state`   `[2]`: the threshold, and how many of the elements equal to it are kept
/// - `above`   `[blocks + 1]`, how many elements before each block lie above the threshold, from [`Scan`](super::Scan)
/// - `ties`    `[blocks + 1]`, how many before each block equal it
/// - `indices` `[k]`, words
/// - `values`  `[k]`, f32
///
/// Reads each input once. Exact. What would not fit in `k` is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gather {
    /// What is compared.
    pub scores: Scores,
    /// Who has a block: a workgroup with a few elements each, or as many invocations as run in step, with runs of 512.
    pub owner: Owner,
}

crate::params! {
    /// The numbers of one [`Gather`] step.
    pub struct GatherParams {
        /// Elements.
        len: u32,
        /// k, the room in the outputs.
        room: u32,
    }
}

crate::args! {
    /// The buffers of one [`Gather`] step.
    pub struct GatherArgs / GatherSlices {
        /// θ `[p]`.
        read theta,
        /// F `[p]`.
        read fisher,
        /// `[2]`.
        read state,
        /// `[blocks + 1]`.
        read above,
        /// `[blocks + 1]`.
        read ties,
        /// `[k]`.
        write indices,
        /// `[k]`.
        write values,
    }
}

impl Kernel for Gather {
    const NAME: &'static str = "select.gather";
    type Params = GatherParams;
    type Args = GatherArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("select/gather.wgsl"), DTYPE, SCORE, SCAN, KEEP]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let workgroup = match self.owner {
            Owner::Workgroup => WORKGROUP,
            Owner::Invocation => FEW,
        };
        let few = f64::from(u8::from(self.owner == Owner::Invocation));
        let own = [("WORKGROUP", workgroup.into()), ("FEW", few)];
        self.scores.overrides().into_iter().chain(own).collect()
    }

    fn launch(&self, params: &GatherParams, args: &GatherArgs, caps: &Caps) -> Result<[u32; 3]> {
        self.scores.check(Self::NAME, &args.theta, &args.fisher, params.len)?;
        args.state.check(Self::NAME, "state", STATE_WORDS, Some(Element::U32))?;
        let words = u64::from(params.len).div_ceil(BLOCK_LEN) + 1;
        args.above.check(Self::NAME, "above", words, Some(Element::U32))?;
        args.ties.check(Self::NAME, "ties", words, Some(Element::U32))?;
        args.indices.check(Self::NAME, "indices", params.room.into(), Some(Element::U32))?;
        args.values.check(Self::NAME, "values", params.room.into(), Some(Element::F32))?;
        groups_for(Self::NAME, params.len.into(), BLOCK_LEN, caps)
    }

    fn host(&self, params: &GatherParams, args: GatherSlices<'_>) {
        let &[threshold, budget] = args.state.cast::<u32>() else { unreachable!("launch checks the length") };
        let (above, ties) = (args.above.cast::<u32>(), args.ties.cast::<u32>());
        let before = |block: usize| (above[block] + ties[block].min(budget)).min(params.room) as usize;
        let mut blocks = Vec::with_capacity(above.len());
        let (mut indices, mut values) = (args.indices.cast::<u32>(), args.values.cast::<u32>());
        for block in 0..above.len() - 1 {
            let own = before(block + 1) - before(block);
            let (own_indices, own_values);
            (own_indices, indices) = indices.split_at_mut(own);
            (own_values, values) = values.split_at_mut(own);
            blocks.push((block, own_indices, own_values));
        }
        let block_len = usize::try_from(BLOCK_LEN).expect("a small number");
        blocks.into_par_iter().for_each_init(Scorer::default, |scorer, (block, indices, values)| {
            let mut left = budget.saturating_sub(ties[block]);
            let mut out = indices.iter_mut().zip(values);
            let range = block * block_len..(params.len as usize).min((block + 1) * block_len);
            vectorised(
                #[inline(always)]
                || {
                    for start in range.clone().step_by(BLOCK) {
                        if out.len() == 0 {
                            return;
                        }
                        let n = BLOCK.min(range.end - start);
                        let bits = scorer.load(self.scores.score, args.theta, args.fisher, start, n);
                        left = pick(bits, start, threshold, left, &mut out);
                    }
                },
            );
        });
    }

    fn cost(&self, params: &GatherParams, _: &GatherArgs) -> Cost {
        let len = u64::from(params.len);
        Cost {
            bytes: len * self.scores.bytes() + 8 * u64::from(params.room),
            flops: len * self.scores.flops(),
        }
    }
}

/// Takes what is kept of one piece; gives what is left of the budget for ties.
#[inline(always)]
fn pick<'a>(
    bits: &[u32],
    start: usize,
    threshold: u32,
    mut left: u32,
    out: &mut impl Iterator<Item = (&'a mut u32, &'a mut u32)>,
) -> u32 {
    const GROUP: usize = 64;
    for (group, bits) in bits.chunks(GROUP).enumerate() {
        // Few groups of a sparse selection have anything in them.
        if bits.iter().fold(0, |all, &b| all.max(b)) < threshold {
            continue;
        }
        for (i, &b) in bits.iter().enumerate() {
            let tie = b == threshold && left > 0;
            left -= u32::from(tie);
            if b > threshold || tie {
                let Some((index, value)) = out.next() else { return left };
                *index = u32::try_from(start + group * GROUP + i).expect("the length of a step is a u32");
                *value = b;
            }
        }
    }
    left
}

impl Checked for Gather {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for scores in all_scores() {
            cases.push(case(&Inputs::mixed(scores, 9, 9000), 0.3));
        }
        let fish = all_scores()[0];
        for len in LENGTHS.into_iter().chain([15, 16, 17, 8191, 8192, 8193]) {
            cases.push(case(&Inputs::mixed(fish, 10, len), 0.5));
        }
        let equal = Inputs::new(fish, &[], &[2.0; 9001]);
        for share in [0.0, 0.0002, 0.4, 0.455, 0.5, 0.9999, 1.0] {
            cases.push(case(&equal, share));
            cases.push(case(&Inputs::mixed(fish, 11, 9001), share));
        }
        let few: Vec<_> = cases.iter().cloned().map(few).collect();
        cases.extend(few);
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        let len = u32::try_from(elements).unwrap_or(u32::MAX);
        let scores = Scores { score: Score::Fish, theta: DType::F32, fisher: DType::F32 };
        let words = u64::from(len).div_ceil(BLOCK_LEN) + 1;
        Bench {
            name: format!("{len} f32, none found"),
            kernel: Self { scores, owner: Owner::Workgroup },
            params: GatherParams { len, room: len / 64 },
            // Blocks of which nothing is kept need not be read: here each has one, the counts say, and none is found.
            buffers: vec![
                (DType::F32.into(), len.into(), Fill::Zero),
                (DType::F32.into(), len.into(), Fill::Zero),
                (Element::U32, STATE_WORDS, Fill::Positive),
                (Element::U32, words, Fill::Count),
                (Element::U32, words, Fill::Zero),
                (Element::U32, u64::from(len / 64), Fill::Zero),
                (Element::F32, u64::from(len / 64), Fill::Zero),
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

fn few(case: Case<Gather>) -> Case<Gather> {
    let kernel = Gather { owner: Owner::Invocation, ..case.kernel };
    Case { name: format!("{} in runs", case.name), kernel, ..case }
}

fn case(inputs: &Inputs, share: f64) -> Case<Gather> {
    let (k, state, ties) = cut(&inputs.values, share);
    let mut kept = reference::select::best(&inputs.values, k);
    let worst = kept.last().map_or(f64::INFINITY, |&i| inputs.values[i]);
    kept.sort_unstable();
    let above: Vec<u32> = (0..ties.len())
        .map(|block| {
            inputs.values[..inputs.values.len().min(block * 4096)].iter().filter(|&&s| s > worst).count()
        })
        .map(|count| u32::try_from(count).expect("cases are small"))
        .collect();
    Case {
        name: format!("{:?} p={} k={k}", inputs.scores, inputs.len()),
        kernel: Gather { scores: inputs.scores, owner: Owner::Workgroup },
        params: GatherParams { len: inputs.len(), room: u32::try_from(k).expect("cases are small") },
        buffers: vec![
            inputs.theta.clone(),
            inputs.fisher.clone(),
            CaseBuffer::words(&state),
            CaseBuffer::words(&above),
            CaseBuffer::words(&ties),
            CaseBuffer::sentinel(Element::U32, k),
            CaseBuffer::sentinel(Element::F32, k),
        ],
        want: vec![
            (5, kept.iter().map(|&i| Want::exact(i as f64)).collect()),
            (6, kept.iter().map(|&i| Want::exact(inputs.values[i])).collect()),
        ],
    }
}
