//! The best of every few.

use std::sync::atomic::{AtomicU32, Ordering};

use rayon::prelude::*;

use super::score::{BAD, Inputs, Scorer, all_scores};
use super::{SCORE, Score, Scores, mask_words};
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernel::{
    BLOCK, Bench, Case, CaseBuffer, Checked, Cost, Fill, Kernel, Want, groups_for, vectorised,
};
use crate::kernels::{DTYPE, WORKGROUP, shader};
use crate::memory::Element;
use crate::reference;
use crate::shape::DType;

/// Keeps the `keep` best of every `size` elements that lie `stride` apart (an N:M pattern along one axis):
///
/// ```text
/// mask[p] |= #{q in p's group : s[q] > s[p] or (s[q] = s[p] and q < p)} < keep
/// ```
///
/// - `theta`  θ `[p]`; F again for [`Score::Fish`]
/// - `fisher` F `[p]`
/// - `mask`   one byte an element, four a word ([`mask_words`]); to be cleared before
/// - `fault`  `[1]`, becomes at least `!p` for every p whose score cannot be ordered, as in
///   [`Histogram`](super::Histogram)
///
/// Groups never span more than `size · stride` consecutive elements, of which `p` must be whole multiples.
/// With the axis last, `stride` is 1; else it is the product of the axes behind. Reads each input once;
/// `size` comparisons an element. Exact. Definition: [`reference::select::nm`]. Pattern: Mishra et al. 2021
/// (2:4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nm {
    /// What is compared.
    pub scores: Scores,
    /// M, where it is 2, 4 or 8 and a group's elements lie beside each other: then an invocation has whole groups and
    /// whole words of the mask.
    pub beside: Option<u32>,
}

impl Nm {
    /// The form for groups of `size` elements that lie `stride` apart.
    #[must_use]
    pub fn new(scores: Scores, size: u32, stride: u32) -> Self {
        Self { scores, beside: (stride == 1 && matches!(size, 2 | 4 | 8)).then_some(size) }
    }

    /// Elements of a workgroup.
    fn elements(self, size: u32) -> u64 {
        let of_invocation = if self.beside.is_some() { 16 * SIXTEENS } else { size };
        u64::from(of_invocation) * u64::from(WORKGROUP)
    }
}

/// How many times sixteen elements an invocation has of groups that lie beside each other.
const SIXTEENS: u32 = 4;

/// The largest group: what an invocation holds.
pub const MAX_GROUP: u32 = 32;

crate::params! {
    /// The numbers of one [`Nm`] step.
    pub struct NmParams {
        /// Elements.
        len: u32,
        /// N, how many of a group are kept.
        keep: u32,
        /// M, the elements of a group.
        size: u32,
        /// From one element of a group to the next.
        stride: u32,
    }
}

crate::args! {
    /// The buffers of one [`Nm`] step.
    pub struct NmArgs / NmSlices {
        /// θ `[p]`.
        read theta,
        /// F `[p]`.
        read fisher,
        /// Four bytes a word, cleared before.
        write mask,
        /// `[1]`, `!p` of the first bad element.
        write fault,
    }
}

impl Kernel for Nm {
    const NAME: &'static str = "select.nm";
    type Params = NmParams;
    type Args = NmArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        let groups = match self.beside {
            Some(_) => shader!("lib/select/groups_beside.wgsl"),
            None => shader!("lib/select/groups_apart.wgsl"),
        };
        vec![shader!("select/nm.wgsl"), DTYPE, SCORE, groups]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let mut overrides = self.scores.overrides();
        overrides.push(("WORKGROUP", WORKGROUP.into()));
        if let Some(size) = self.beside {
            overrides.extend([("SIZE", size.into()), ("SIXTEENS", SIXTEENS.into())]);
        }
        overrides
    }

    fn launch(&self, params: &NmParams, args: &NmArgs, caps: &Caps) -> Result<[u32; 3]> {
        let &NmParams { len, keep, size, stride } = params;
        self.scores.check(Self::NAME, &args.theta, &args.fisher, len)?;
        args.mask.check(Self::NAME, "mask", mask_words(len.into()), Some(Element::U32))?;
        args.fault.check(Self::NAME, "fault", 1, Some(Element::U32))?;
        if size == 0 || size > MAX_GROUP || keep > size {
            let problem = format!(
                "pattern {keep}:{size}; expected at most {MAX_GROUP} with no more kept than there are"
            );
            return Err(Error::argument(Self::NAME, problem));
        }
        if stride == 0 || !u64::from(len).is_multiple_of(u64::from(size) * u64::from(stride)) {
            let problem = format!("{len} elements are no multiple of {size} times stride {stride}");
            return Err(Error::argument(Self::NAME, problem));
        }
        if self.beside.is_some() && *self != Self::new(self.scores, size, stride) {
            let problem = format!("groups of {size} with stride {stride} in the form for {:?}", self.beside);
            return Err(Error::argument(Self::NAME, problem));
        }
        groups_for(Self::NAME, len.into(), self.elements(size), caps)
    }

    fn host(&self, params: &NmParams, args: NmSlices<'_>) {
        let unit = params.size as usize * params.stride as usize;
        // As many whole units as fit a block, at least one.
        let step = unit * (BLOCK / unit).max(1);
        let first_bad = AtomicU32::new(0);
        let mask = &mut args.mask.cast::<u8>()[..params.len as usize];
        let scratch = || (Scorer::default(), Vec::new(), <(Vec<u32>, Vec<u8>)>::default());
        mask.par_chunks_mut(step).enumerate().for_each_init(scratch, |(scorer, bits, columns), (at, out)| {
            let start = at * step;
            let bad = vectorised(
                #[inline(always)]
                || {
                    bits.clear();
                    for start in (start..start + out.len()).step_by(BLOCK) {
                        let n = BLOCK.min(at * step + out.len() - start);
                        bits.extend_from_slice(scorer.load(
                            self.scores.score,
                            args.theta,
                            args.fisher,
                            start,
                            n,
                        ));
                    }
                    if params.stride == 1 {
                        choose_beside(bits, out, params, columns);
                    } else {
                        for (bits, out) in bits.chunks_exact(unit).zip(out.chunks_exact_mut(unit)) {
                            choose(bits, out, params.keep, params.stride as usize);
                        }
                    }
                    bits.iter().fold(0, |bad, &bits| bad | u32::from(bits == BAD)) > 0
                },
            );
            if let Some(bad) = bad.then(|| bits.iter().position(|&bits| bits == BAD)).flatten() {
                let index = u32::try_from(start + bad).expect("the length of a step is a u32");
                first_bad.fetch_max(!index, Ordering::Relaxed);
            }
        });
        let fault = &mut args.fault.cast::<u32>()[0];
        *fault = (*fault).max(first_bad.into_inner());
    }

    fn cost(&self, params: &NmParams, _: &NmArgs) -> Cost {
        let len = u64::from(params.len);
        Cost { bytes: len * (self.scores.bytes() + 1), flops: len * self.scores.flops() }
    }
}

/// The groups of one unit of `size · stride` elements: the elements of one lie a stride apart, the groups side by side,
/// and all are looked at together.
#[inline(always)]
fn choose(bits: &[u32], out: &mut [u8], keep: u32, stride: usize) {
    const TOGETHER: usize = 64;
    let elements = |i: usize, first: usize, len: usize| &bits[i * stride + first..][..len];
    let size = bits.len() / stride;
    for first in (0..stride).step_by(TOGETHER) {
        let len = TOGETHER.min(stride - first);
        for i in 0..size {
            let own = elements(i, first, len);
            let mut better = [0_u32; TOGETHER];
            for j in (0..size).filter(|&j| j != i) {
                // Of those before, equals win; of those behind, only the better.
                let equal = u32::from(j < i);
                for ((better, &other), &own) in better.iter_mut().zip(elements(j, first, len)).zip(own) {
                    *better += u32::from(other > own) | (u32::from(other == own) & equal);
                }
            }
            let kept = better.map(|better| u8::from(better < keep));
            for (out, kept) in out[i * stride + first..][..len].iter_mut().zip(&kept[..len]) {
                *out |= kept;
            }
        }
    }
}

/// The same where groups lie one after the other: they are brought side by side, and the choice back.
#[inline(always)]
fn choose_beside(
    bits: &[u32],
    out: &mut [u8],
    params: &NmParams,
    (columns, chosen): &mut (Vec<u32>, Vec<u8>),
) {
    let size = params.size as usize;
    let groups = bits.len() / size;
    columns.resize(bits.len(), 0);
    chosen.clear();
    chosen.resize(bits.len(), 0);
    // The sizes that hardware knows, at which the compiler can bring elements side by side in registers.
    match size {
        2 => split::<2>(bits, columns),
        4 => split::<4>(bits, columns),
        8 => split::<8>(bits, columns),
        _ => {
            for (i, column) in columns.chunks_exact_mut(groups).enumerate() {
                for (own, group) in column.iter_mut().zip(bits.chunks_exact(size)) {
                    *own = group[i];
                }
            }
        }
    }
    choose(columns, chosen, params.keep, groups);
    match size {
        2 => join::<2>(chosen, out),
        4 => join::<4>(chosen, out),
        8 => join::<8>(chosen, out),
        _ => {
            for (i, chosen) in chosen.chunks_exact(groups).enumerate() {
                for (group, chosen) in out.chunks_exact_mut(size).zip(chosen) {
                    group[i] |= chosen;
                }
            }
        }
    }
}

/// Elements of groups of `SIZE`, each place of a group in its own column.
#[inline(always)]
fn split<const SIZE: usize>(groups: &[u32], columns: &mut [u32]) {
    let (groups, _) = groups.as_chunks::<SIZE>();
    for (i, column) in columns.chunks_exact_mut(groups.len().max(1)).enumerate() {
        for (own, group) in column.iter_mut().zip(groups) {
            *own = group[i];
        }
    }
}

/// Adds such columns to the groups.
#[inline(always)]
fn join<const SIZE: usize>(columns: &[u8], groups: &mut [u8]) {
    let (groups, _) = groups.as_chunks_mut::<SIZE>();
    let columns: [&[u8]; SIZE] = std::array::from_fn(|i| &columns[i * groups.len()..][..groups.len()]);
    for (at, group) in groups.iter_mut().enumerate() {
        for (own, column) in group.iter_mut().zip(columns) {
            *own |= column[at];
        }
    }
}

impl Checked for Nm {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for scores in all_scores() {
            cases.push(case(&Inputs::mixed(scores, 12, 4 * 300), (2, 4, 1)));
        }
        let fish = all_scores()[0];
        for (keep, size, stride) in [
            (1, 4, 1),
            (4, 8, 1),
            (1, 2, 1),
            (3, 8, 1),
            (2, 4, 9),
            (16, 32, 3),
            (0, 4, 1),
            (4, 4, 1),
            (1, 1, 5),
            (2, 3, 1),
            (1, 5, 700),
        ] {
            for units in [0, 1, 3, 257] {
                let len = if size * stride > 1000 { units.min(3) } else { units } * (size * stride) as usize;
                cases.push(case(&Inputs::mixed(fish, 13, len), (keep, size, stride)));
            }
        }
        cases.push(case(&Inputs::new(fish, &[], &[0.5; 64]), (2, 4, 1)));
        // Around an invocation's elements and a workgroup's.
        for len in [8, 16, 24, 56, 64, 72, 16_376, 16_384, 16_392, 40_000] {
            cases.push(case(&Inputs::mixed(fish, 14, len), (2, 4, 1)));
            cases.push(case(&Inputs::mixed(fish, 15, len), (4, 8, 1)));
        }
        cases.extend([0, 5, 1199].map(bad));
        // The general form, for sizes that have their own.
        let apart = |case: Case<Self>| Case {
            name: case.name.replace("beside", "apart"),
            kernel: Self { beside: None, ..case.kernel },
            ..case
        };
        let has_own = |case: &&Case<Self>| case.kernel.beside.is_some();
        let apart: Vec<_> = cases.iter().filter(has_own).cloned().map(apart).collect();
        cases.extend(apart);
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        let len = u32::try_from(elements).unwrap_or(u32::MAX) / 4 * 4;
        let scores = Scores { score: Score::Prune, theta: DType::F32, fisher: DType::F32 };
        Bench {
            name: format!("{len} f32, 2:4"),
            kernel: Self::new(scores, 4, 1),
            params: NmParams { len, keep: 2, size: 4, stride: 1 },
            buffers: vec![
                (DType::F32.into(), len.into(), Fill::Noise),
                (DType::F32.into(), len.into(), Fill::Positive),
                (Element::U32, mask_words(len.into()), Fill::Zero),
                (Element::U32, 1, Fill::Zero),
            ],
        }
    }
}

fn case(inputs: &Inputs, (keep, size, stride): (u32, u32, u32)) -> Case<Nm> {
    let want = reference::select::nm(&inputs.values, keep as usize, size as usize, stride as usize);
    let mut bytes: Vec<u8> = want.into_iter().map(u8::from).collect();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let words = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let want: Vec<Want> = words.map(|word| Want::exact(word.into())).collect();
    let kernel = Nm::new(inputs.scores, size, stride);
    let form = if kernel.beside.is_some() { " beside" } else { "" };
    Case {
        name: format!("{:?} p={} {keep}:{size} stride {stride}{form}", inputs.scores, inputs.len()),
        kernel,
        params: NmParams { len: inputs.len(), keep, size, stride },
        buffers: vec![
            inputs.theta.clone(),
            inputs.fisher.clone(),
            CaseBuffer::words(&vec![0; want.len()]),
            CaseBuffer::words(&[0]),
        ],
        want: vec![(2, want), (3, vec![Want::exact(0.0)])],
    }
}

/// Bad elements at `first` and at the end: the first is told.
fn bad(first: usize) -> Case<Nm> {
    let mut fisher = vec![1.0; 1200];
    (fisher[first], fisher[1199]) = (f64::NAN, f64::NAN);
    let buffer = CaseBuffer::floats(DType::F32, &fisher);
    let mut case = case(&Inputs::new(all_scores()[0], &[], &vec![1.0; 1200]), (2, 4, 1));
    (case.buffers[0], case.buffers[1]) = (buffer.clone(), buffer);
    case.name = format!("bad at {first} beside");
    let told = !u32::try_from(first).expect("cases are small");
    case.want = vec![(3, vec![Want::exact(told.into())])];
    case
}
