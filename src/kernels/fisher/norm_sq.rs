//! Squared per-sample gradients of a normalisation layer's weight.

mod cases;

use std::ops::Range;

use rayon::prelude::*;

use super::Mode;
use super::norm_stats::floats;
use super::product::{Store, sum_of_runs};
use crate::error::{Error, Result};
use crate::gpu::{Caps, DeviceClass};
use crate::kernel::{Cost, Kernel, Slice, groups_of, vectorised};
use crate::kernels::{COLUMNS, DTYPE, ELEMENT, WORKGROUP, shader};
use crate::memory::Element;
use crate::shape::DType;

/// Sum over samples of the squared gradients of a normalisation layer's weight:
///
/// ```text
/// S[c] = Σ_s weight_s · (gradient_scale · Σ_{n ∈ s} Σ_t b[n, t, c] · x̂[n, t, c])² ,  x̂ = (x − μ) · scale
/// out[c] ← decay · out[c] + gain · S[c]
/// ```
///
/// - `input`        x, the layer's own input, f32, f16 or bf16
/// - `grad_output`  b, of the same shape, f32, f16 or bf16, of the *summed* loss
/// - `stats`        (μ, scale) `[…, 2]` f32: from [`NormStats`](super::NormStats), or batch norm's fixed ones
/// - `weight`       `[s]` f32, one for each square: `fold` consecutive samples, whose gradients add before squaring
/// - `out`          `[c]` f32
///
/// x̂ is recomputed from x: inverting the affine would divide by weights that may be 0. Where x and b lie and
/// which μ and scale an element has is a [`NormLayout`]. With `decay` 0 the old value is not read.
/// `gradient_scale` is a power of two that keeps small squares from vanishing; `gain` undoes it. A square of
/// weight 0 is left out, whatever it holds.
///
/// A [`Mode`] other than squares sums or stores the gradients themselves; `out` is then `[c]` or `[s, c]`.
///
/// Moves each element of x and b once; 5 operations an element. Bitwise repeatable: a channel has one owner and a fixed
/// order. Definition: [`reference::norm::gradients`](crate::reference::norm::gradients).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormSq {
    /// What becomes of the gradients.
    pub mode: Mode,
    /// Storage of the layer's input.
    pub input: DType,
    /// Storage of the gradient.
    pub gradient: DType,
    /// Channels of a workgroup, a power of two; its other invocations share a sample's positions.
    pub channels: u32,
    /// Groups of eight channels for each invocation, up to eight, where channels lie beside each other and come in
    /// eights; 0 for one channel an invocation or several of them.
    pub octets: u32,
}

/// Where a normalisation layer's elements lie, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormLayout {
    /// Layer norm and RMS norm: `[n, t, c]`, with μ and scale for each `[n, t]`.
    Last {
        /// Positions t of a sample.
        positions: u32,
        /// Channels c.
        channels: u32,
    },
    /// Group norm: `[n, c, t]`, with μ and scale for each `[n, group]`.
    Group {
        /// Channels c.
        channels: u32,
        /// Positions t of a sample.
        positions: u32,
        /// Of equally many channels each.
        groups: u32,
    },
    /// Batch norm: `[n, c, t]`, with μ and scale for each c.
    Batch {
        /// Channels c.
        channels: u32,
        /// Positions t of a sample.
        positions: u32,
    },
}

crate::params! {
    /// The numbers of one [`NormSq`] step. Made by [`NormLayout::params`].
    pub struct NormSqParams {
        /// Samples n.
        samples: u32,
        /// Consecutive samples whose gradients add before squaring; 1 is the per-sample Fisher.
        fold: u32,
        /// Squares: ⌈n / fold⌉.
        squares: u32,
        /// Positions t of a sample.
        positions: u32,
        /// Channels c.
        channels: u32,
        /// Elements from one position to the next.
        position_stride: u32,
        /// Elements from one channel to the next.
        channel_stride: u32,
        /// Pairs of `stats` from one sample to the next.
        stats_per_sample: u32,
        /// Pairs of `stats` from one position to the next.
        stats_per_position: u32,
        /// Channels that share a pair.
        channels_per_stat: u32,
        /// Factor of a sample's gradient before it is squared.
        gradient_scale: f32,
        /// Factor of the old value; 0 does not read it.
        decay: f32,
        /// Factor of the sum.
        gain: f32,
    }
}

crate::args! {
    /// The buffers of one [`NormSq`] step.
    pub struct NormSqArgs / NormSqSlices {
        /// x, laid out as [`NormLayout`] says.
        read input,
        /// b, laid out likewise.
        read grad_output,
        /// (μ, scale) `[…, 2]`.
        read stats,
        /// `[s]`.
        read weight,
        /// `[c]`, updated in place.
        write out,
    }
}

impl NormLayout {
    /// (positions, channels) of a sample.
    #[must_use]
    pub fn sizes(&self) -> (u32, u32) {
        match *self {
            Self::Last { positions, channels }
            | Self::Group { channels, positions, .. }
            | Self::Batch { channels, positions } => (positions, channels),
        }
    }

    /// The uniform block for `samples` samples in squares of `fold` that overwrites with the plain sum; change the last
    /// three fields for more.
    #[must_use]
    pub fn params(&self, samples: u32, fold: u32) -> NormSqParams {
        let (positions, channels) = self.sizes();
        let (position_stride, channel_stride) = match self {
            Self::Last { .. } => (channels, 1),
            Self::Group { .. } | Self::Batch { .. } => (1, positions),
        };
        let (stats_per_sample, stats_per_position, channels_per_stat) = match *self {
            Self::Last { .. } => (positions, 1, channels.max(1)),
            Self::Group { groups, .. } => (groups, 0, (channels / groups.max(1)).max(1)),
            Self::Batch { .. } => (0, 0, 1),
        };
        NormSqParams {
            samples,
            fold,
            squares: samples.div_ceil(fold.max(1)),
            positions,
            channels,
            position_stride,
            channel_stride,
            stats_per_sample,
            stats_per_position,
            channels_per_stat,
            gradient_scale: 1.0,
            decay: 0.0,
            gain: 1.0,
        }
    }

    /// Pairs of `stats` for `samples` samples.
    #[must_use]
    pub fn stats(&self, samples: u64) -> u64 {
        match *self {
            Self::Last { positions, .. } => samples * u64::from(positions),
            Self::Group { groups, .. } => samples * u64::from(groups),
            Self::Batch { channels, .. } => channels.into(),
        }
    }
}

impl NormSq {
    /// The kernel for a layout: neighbouring invocations read neighbouring elements, and as many share a
    /// sample as it has positions.
    #[must_use]
    pub fn new(layout: &NormLayout, mode: Mode, input: DType, gradient: DType) -> Self {
        let channels = match *layout {
            NormLayout::Last { .. } => 32,
            NormLayout::Group { positions, .. } | NormLayout::Batch { positions, .. } => {
                WORKGROUP / positions.clamp(1, WORKGROUP).next_power_of_two()
            }
        };
        Self { mode, input, gradient, channels, octets: 0 }
    }

    /// The same, suited to a device: where a barrier costs more than it saves, one invocation has all positions of a
    /// channel, but for squares so long that they meet [`Caps::max_iterations`].
    #[must_use]
    pub fn for_device(self, caps: &Caps, layout: &NormLayout, fold: u32) -> Self {
        let (positions, channels) = layout.sizes();
        let positions = u64::from(positions) * u64::from(fold);
        match (caps.class, layout) {
            (_, NormLayout::Last { .. }) if super::octets_for(caps, channels, positions) > 0 => {
                Self { octets: super::octets_for(caps, channels, positions), ..self }
            }
            (DeviceClass::Software, NormLayout::Last { .. }) if positions < 4096 => {
                Self { channels: WORKGROUP, ..self }
            }
            _ => self,
        }
    }
}

impl Kernel for NormSq {
    const NAME: &'static str = "fisher.norm_sq";
    type Params = NormSqParams;
    type Args = NormSqArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("fisher/norm_sq.wgsl"), DTYPE, ELEMENT, COLUMNS]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let mut overrides = self.mode.overrides().to_vec();
        overrides.extend([("INPUT", self.input.code().into()), ("GRADIENT", self.gradient.code().into())]);
        if self.octets == 0 {
            overrides.extend([("WORKGROUP", WORKGROUP.into()), ("CHANNELS", self.channels.into())]);
        }
        overrides.extend(super::octet_overrides(self.octets));
        overrides
    }

    fn launch(&self, params: &NormSqParams, args: &NormSqArgs, caps: &Caps) -> Result<[u32; 3]> {
        let [samples, positions, channels] =
            [params.samples, params.positions, params.channels].map(u64::from);
        let len = super::len(Self::NAME, &[samples, positions, channels])?;
        args.input.check(Self::NAME, "input", len, Some(self.input.into()))?;
        args.grad_output.check(Self::NAME, "grad_output", len, Some(self.gradient.into()))?;
        if params.fold == 0 || params.squares != params.samples.div_ceil(params.fold) {
            let problem = format!("{} squares of {} of {samples} samples", params.squares, params.fold);
            return Err(Error::argument(Self::NAME, problem));
        }
        args.weight.check(Self::NAME, "weight", params.squares.into(), Some(Element::F32))?;
        let results = self.mode.results(params.squares.into());
        args.out.check(
            Self::NAME,
            "out",
            super::len(Self::NAME, &[results, channels])?,
            Some(Element::F32),
        )?;
        let pairs = last_stat(params).map_or(0, |last| last.saturating_add(1));
        if args.stats.len() < pairs.saturating_mul(2) || args.stats.element() != Element::F32 {
            let got = format!("{} {} elements", args.stats.len(), args.stats.element());
            return Err(Error::shape(Self::NAME, "stats", format!("{pairs} f32 pairs"), got));
        }
        if !self.channels.is_power_of_two() || self.channels > WORKGROUP {
            let problem =
                format!("{} channels a workgroup, not a power of two up to {WORKGROUP}", self.channels);
            return Err(Error::argument(Self::NAME, problem));
        }
        super::check_octets(Self::NAME, self.octets, params.channels, together(params))?;
        if channels == 0 {
            return Ok([0, 1, 1]);
        }
        if self.octets > 0 {
            return groups_of(Self::NAME, results * super::octet_groups(self.octets, params.channels), caps);
        }
        groups_of(Self::NAME, results * channels.div_ceil(self.channels.into()), caps)
    }

    fn iterations(&self, p: &NormSqParams, _: &NormSqArgs) -> u64 {
        let lanes = if self.octets > 0 { 1 } else { WORKGROUP / self.channels.max(1) };
        let of_sample = 2 + u64::from(p.positions.div_ceil(lanes.max(1)));
        let of_square = of_sample * u64::from(p.fold.min(p.samples)) + 3 + u64::from(lanes.max(1).ilog2());
        self.mode.squares_of_one(p.squares).saturating_mul(of_square)
    }

    fn host(&self, params: &NormSqParams, args: NormSqSlices<'_>) {
        let walk = Walk {
            params,
            squared: self.mode.squared(),
            input: args.input,
            gradient: args.grad_output,
            stats: args.stats.cast(),
            weight: args.weight.cast(),
        };
        let squares = 0..params.squares as usize;
        let store = Store { overwrite: params.decay == 0.0, decay: params.decay, gain: params.gain };
        let block = if together(params) { TOGETHER } else { APART };
        super::for_results(self.mode, squares, args.out.cast(), |squares, out| {
            let tasks = out.len().div_ceil(block);
            out.par_chunks_mut(block).enumerate().for_each(|(at, out)| {
                let channels = at * block..at * block + out.len();
                let sums = sum_of_runs(&squares, tasks, &mut Scratch::default(), |scratch, run| {
                    vectorised(
                        #[inline(always)]
                        || walk.sums(&channels, run, scratch),
                    )
                });
                store.apply(out, &sums);
            });
        });
    }

    fn cost(&self, params: &NormSqParams, args: &NormSqArgs) -> Cost {
        let len = args.input.len();
        let kept = if params.decay == 0.0 { 4 } else { 8 };
        let sides = 4 * (args.stats.len() + args.weight.len()) + kept * args.out.len();
        Cost {
            bytes: len * (self.input.size() + self.gradient.size()) + sides,
            // Distance, scale, product, sum; then scale, square, weight, sum for each sample and channel.
            flops: 4 * len + 4 * u64::from(params.samples) * args.out.len(),
        }
    }
}

/// The largest index of a pair of `stats`, if there is an element.
fn last_stat(params: &NormSqParams) -> Option<u64> {
    let last = |count: u32| count.checked_sub(1).map(u64::from);
    let of_sample = last(params.samples)? * u64::from(params.stats_per_sample);
    let of_position = last(params.positions)? * u64::from(params.stats_per_position);
    let of_channel = last(params.channels)? / u64::from(params.channels_per_stat.max(1));
    Some(of_sample.saturating_add(of_position).saturating_add(of_channel))
}

/// Whether neighbouring channels lie beside each other and share μ and scale.
fn together(params: &NormSqParams) -> bool {
    params.channel_stride == 1 && params.channels_per_stat >= params.channels
}

/// What the host execution needs for every channel.
struct Walk<'a> {
    params: &'a NormSqParams,
    squared: bool,
    input: Slice<'a>,
    gradient: Slice<'a>,
    stats: &'a [f32],
    weight: &'a [f32],
}

/// Channels of a task that lie beside each other at every position: what is read of one follows what is read of
/// another, and a first-level cache holds their sums.
const TOGETHER: usize = 1024;

/// Channels of a task whose positions lie beside each other.
const APART: usize = 16;

#[derive(Default)]
struct Scratch {
    input: Vec<f32>,
    gradient: Vec<f32>,
    /// In f64: positions come in any number, and their sum must not lose more digits with each.
    square: Vec<f64>,
}

impl Walk<'_> {
    /// The sums over some squares for some channels.
    #[inline(always)]
    fn sums(&self, channels: &Range<usize>, squares: Range<usize>, scratch: &mut Scratch) -> Vec<f32> {
        let mut sums = vec![0.0; channels.len()];
        let (samples, fold) = (self.params.samples as usize, self.params.fold as usize);
        for square in squares.filter(|&square| self.weight[square] != 0.0) {
            let weight = self.weight[square];
            scratch.square.clear();
            scratch.square.resize(channels.len(), 0.0);
            for sample in square * fold..samples.min((square + 1) * fold) {
                if together(self.params) {
                    self.add_together(sample, channels, scratch);
                } else {
                    self.add_apart(sample, channels, scratch);
                }
            }
            for (sum, &g) in sums.iter_mut().zip(&scratch.square) {
                #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
                let g = self.params.gradient_scale * g as f32;
                *sum += weight * if self.squared { g * g } else { g };
            }
        }
        sums
    }

    /// μ and the scale of a sample's channel at a position.
    #[inline(always)]
    fn stat(&self, sample: usize, position: usize, channel: usize) -> (f32, f32) {
        let p = self.params;
        let at = sample * p.stats_per_sample as usize
            + position * p.stats_per_position as usize
            + channel / p.channels_per_stat as usize;
        (self.stats[2 * at], self.stats[2 * at + 1])
    }

    /// Adds one sample's gradients of channels that lie beside each other.
    #[inline(always)]
    fn add_together(&self, sample: usize, channels: &Range<usize>, scratch: &mut Scratch) {
        let Scratch { input, gradient, square } = scratch;
        let start = sample * self.sample() + channels.start;
        for position in 0..self.params.positions as usize {
            let at = start + position * self.params.position_stride as usize;
            let (x, b) = self.load(at, channels.len(), input, gradient);
            let (mean, scale) = self.stat(sample, position, channels.start);
            for ((sum, x), b) in square.iter_mut().zip(x).zip(b) {
                *sum += f64::from(b * ((x - mean) * scale));
            }
        }
    }

    /// Adds one sample's gradients of channels whose positions lie beside each other.
    #[inline(always)]
    fn add_apart(&self, sample: usize, channels: &Range<usize>, scratch: &mut Scratch) {
        let Scratch { input, gradient, square } = scratch;
        for (channel, sum) in channels.clone().zip(square) {
            let at = sample * self.sample() + channel * self.params.channel_stride as usize;
            let (x, b) = self.load(at, self.params.positions as usize, input, gradient);
            let (mean, scale) = self.stat(sample, 0, channel);
            for (x, b) in x.chunks(BLOCK).zip(b.chunks(BLOCK)) {
                *sum += f64::from(products(x, b, mean, scale));
            }
        }
    }

    /// Elements of a sample.
    fn sample(&self) -> usize {
        self.params.positions as usize * self.params.channels as usize
    }

    #[inline(always)]
    fn load<'a>(
        &'a self,
        at: usize,
        len: usize,
        input: &'a mut Vec<f32>,
        gradient: &'a mut Vec<f32>,
    ) -> (&'a [f32], &'a [f32]) {
        input.resize(len, 0.0);
        gradient.resize(len, 0.0);
        (floats(self.input.range(at, len), input), floats(self.gradient.range(at, len), gradient))
    }
}

/// Terms that are summed in f32.
const BLOCK: usize = 4096;

/// Σ b · (x − mean) · scale by interleaved sums, which vectorise, as no single one would.
#[inline(always)]
fn products(x: &[f32], b: &[f32], mean: f32, scale: f32) -> f32 {
    const LANES: usize = 32;
    let mut lanes = [0.0_f32; LANES];
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (x, b) in x.iter().zip(b) {
        for i in 0..LANES {
            lanes[i] += b[i] * ((x[i] - mean) * scale);
        }
    }
    for ((lane, x), b) in lanes.iter_mut().zip(x_rest).zip(b_rest) {
        *lane += b * ((x - mean) * scale);
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;

    #[test]
    fn sizes_whose_product_leaves_64_bits_are_refused() {
        let layout = NormLayout::Last { positions: u32::MAX, channels: u32::MAX };
        let kernel = NormSq::new(&layout, Mode::Squares, DType::F32, DType::F32);
        let view = || Backend::Host.alloc(8, Element::F32).expect("a small buffer");
        let args =
            NormSqArgs { input: view(), grad_output: view(), stats: view(), weight: view(), out: view() };
        let refused = kernel.launch(&layout.params(u32::MAX, 1), &args, &Caps::host());
        assert!(matches!(refused, Err(Error::Limit { .. })), "{refused:?}");
    }
}
