//! From a histogram to the bin that the wanted score lies in.

use super::{LOCAL_BINS, STATE_WORDS};
use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Cost, Fill, Kernel, Want};
use crate::kernels::{WORKGROUP, shader};
use crate::memory::Element;

/// Narrows a window to one of its bins: with r = `state[1]`, the bin b of the r-th largest score in the window.
///
/// ```text
/// state[0] ← state[0] + b · 2^shift,  state[1] ← r − #{scores in bins above b}
/// ```
///
/// - `counts`  `[bins + 2]`, from [`Histogram`](super::Histogram); the two outside the window are not looked at
/// - `state`   `[2]`, the window's lower end, and r ≥ 1
///
/// If the window has fewer than r scores, which a sound sequence of steps excludes, b is 0. One workgroup; exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Narrow;

crate::params! {
    /// The numbers of one [`Narrow`] step.
    pub struct NarrowParams {
        /// A bin is 2^shift wide.
        shift: u32,
        /// Bins of the window.
        bins: u32,
    }
}

crate::args! {
    /// The buffers of one [`Narrow`] step.
    pub struct NarrowArgs / NarrowSlices {
        /// `[bins + 2]`.
        read counts,
        /// `[2]`: the window's lower end and the rank within it.
        write state,
    }
}

impl Kernel for Narrow {
    const NAME: &'static str = "select.narrow";
    type Params = NarrowParams;
    type Args = NarrowArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("select/narrow.wgsl")]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        vec![("WORKGROUP", WORKGROUP.into())]
    }

    fn launch(&self, params: &NarrowParams, args: &NarrowArgs, _: &Caps) -> Result<[u32; 3]> {
        args.counts.check(Self::NAME, "counts", u64::from(params.bins) + 2, Some(Element::U32))?;
        args.state.check(Self::NAME, "state", STATE_WORDS, Some(Element::U32))?;
        Ok([1, 1, 1])
    }

    fn host(&self, params: &NarrowParams, args: NarrowSlices<'_>) {
        let counts = &args.counts.cast::<u32>()[1..=params.bins as usize];
        let state = args.state.cast::<u32>();
        let mut bin = counts.len() - 1;
        while bin > 0 && counts[bin] < state[1] {
            state[1] -= counts[bin];
            bin -= 1;
        }
        let bin = u32::try_from(bin).expect("bins are counted by a u32");
        state[0] = state[0].wrapping_add(bin << params.shift);
    }

    fn cost(&self, params: &NarrowParams, _: &NarrowArgs) -> Cost {
        Cost { bytes: 4 * u64::from(params.bins), flops: 0 }
    }
}

impl Checked for Narrow {
    fn cases() -> Vec<Case<Self>> {
        let full = vec![3; 2048];
        let one = |bins: usize, at: usize| {
            let mut counts = vec![0; bins];
            counts[at] = 5;
            counts
        };
        vec![
            case(&[4], 2, 0, 0),
            case(&[4, 1], 1, 0, 1),
            case(&[4, 1], 2, 8, 0),
            case(&full, 1, 20, 2047),
            case(&full, 3, 20, 2047),
            case(&full, 4, 20, 2046),
            case(&full, 6144, 20, 0),
            case(&full, 3 * 1024, 20, 1024),
            case(&full[..1024], 25, 0, 1015),
            case(&full[..257], 771, 3, 0),
            case(&one(2048, 0), 5, 20, 0),
            case(&one(2048, 7), 1, 20, 7),
            case(&one(2048, 8), 1, 20, 8),
            case(&one(1024, 3), 5, 10, 3),
        ]
    }

    fn bench(_: u64) -> Bench<Self> {
        Bench {
            name: "2048 bins".into(),
            kernel: Self,
            params: NarrowParams { shift: 20, bins: LOCAL_BINS },
            buffers: vec![
                (Element::U32, u64::from(LOCAL_BINS) + 2, Fill::Zero),
                (Element::U32, STATE_WORDS, Fill::Zero),
            ],
        }
    }
}

fn case(counts: &[u32], rank: u32, shift: u32, bin: u32) -> Case<Narrow> {
    const LOW: u32 = 5;
    let bins = u32::try_from(counts.len()).expect("cases are small");
    let above: u32 = counts[bin as usize + 1..].iter().sum();
    let state = [LOW + (bin << shift), rank - above];
    Case {
        name: format!("rank {rank} in {bins} bins of 2^{shift}"),
        kernel: Narrow,
        params: NarrowParams { shift, bins },
        buffers: vec![CaseBuffer::words(&[&[9][..], counts, &[9]].concat()), CaseBuffer::words(&[LOW, rank])],
        want: vec![(1, state.map(|word| Want::exact(word.into())).to_vec())],
    }
}
