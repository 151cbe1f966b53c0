//! Means and scales of normalisation layers.

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::gpu::{Caps, DeviceClass};
use crate::kernel::{
    Bench, Case, CaseBuffer, Checked, Cost, Fill, Kernel, Slice, Want, groups_for, noise, widen_into,
};
use crate::kernels::{DTYPE, JOIN, RUN, WORKGROUP, shader};
use crate::memory::Element;
use crate::reference;
use crate::shape::DType;

/// Mean and scale of runs of consecutive elements, as layer norm, RMS norm and group norm need them:
///
///   μ_g = 1/l Σ_i x[g, i] ,  scale_g = 1 / √(1/l Σ_i (x[g, i] − μ_g)² + eps) ,  μ_g = 0 where not `centered` (RMS norm)
///
/// - `input`  x `[g, l]`, f32, f16 or bf16
/// - `stats`  `[g, 2]` f32: μ, then the scale
///
/// The variance is divided by l, as PyTorch does, and made of distances from a mean: the difference of the mean square
/// and the squared mean would lose all digits where |μ| is large. The host takes the distances in a second
/// pass; a device takes those of 32 elements from their own mean while it holds them, and joins such parts
/// (Chan, Golub & LeVeque 1979).
///
/// Moves each element of x once; 5 operations an element. Bitwise repeatable. A constant
/// run has the scale 1/√eps, which is infinite for `eps` 0. Source: Ba, Kiros & Hinton (2016), eq. 4; Zhang & Sennrich
/// (2019); Wu & He (2018). Definition: [`reference::norm::stats`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormStats {
    /// Storage of the input.
    pub input: DType,
    /// Whether the mean is taken off.
    pub centered: bool,
    /// Invocations that share a run: a power of two up to the workgroup's size.
    pub lanes: u32,
}

/// Elements that a lane takes a turn.
const TURN: u32 = 32;

impl NormStats {
    /// The specialisation for runs of `len` on a device.
    #[must_use]
    pub fn for_len(input: DType, centered: bool, len: u64, caps: &Caps) -> Self {
        let lanes = match caps.class {
            // A run's elements lie in the cache lines that its one invocation reads, and no barrier is paid for.
            DeviceClass::Software if len <= 1 << 20 => 1,
            // A turn for each, and as many as make a load whole.
            _ => len.div_ceil(TURN.into()).next_power_of_two().clamp(8, WORKGROUP.into()),
        };
        Self { input, centered, lanes: u32::try_from(lanes).unwrap_or(WORKGROUP) }
    }
}

crate::params! {
    /// The numbers of one [`NormStats`] step.
    pub struct NormStatsParams {
        /// Runs.
        runs: u32,
        /// Elements of a run.
        len: u32,
        /// Added to the variance.
        eps: f32,
    }
}

crate::args! {
    /// The buffers of one [`NormStats`] step.
    pub struct NormStatsArgs / NormStatsSlices {
        /// x `[g, l]`.
        read input,
        /// (μ, scale) `[g, 2]`.
        write stats,
    }
}

impl Kernel for NormStats {
    const NAME: &'static str = "fisher.norm_stats";
    type Params = NormStatsParams;
    type Args = NormStatsArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("fisher/norm_stats.wgsl"), DTYPE, RUN, JOIN]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("WORKGROUP", WORKGROUP.into()),
            ("LANES", self.lanes.into()),
            ("INPUT", self.input.code().into()),
            ("CENTERED", self.centered.into()),
        ]
    }

    fn launch(&self, params: &NormStatsParams, args: &NormStatsArgs, caps: &Caps) -> Result<[u32; 3]> {
        let (runs, len) = (u64::from(params.runs), u64::from(params.len));
        args.input.check(Self::NAME, "input", runs * len, Some(self.input.into()))?;
        args.stats.check(Self::NAME, "stats", 2 * runs, Some(Element::F32))?;
        super::len(Self::NAME, &[runs * len])?;
        if runs > 0 && len == 0 {
            return Err(Error::argument(Self::NAME, "runs of 0 elements have no mean"));
        }
        if !self.lanes.is_power_of_two() || self.lanes > WORKGROUP {
            let problem = format!("{} lanes are no power of two up to {WORKGROUP}", self.lanes);
            return Err(Error::argument(Self::NAME, problem));
        }
        groups_for(Self::NAME, runs, (WORKGROUP / self.lanes).into(), caps)
    }

    fn iterations(&self, params: &NormStatsParams, _: &NormStatsArgs) -> u64 {
        // A run may begin and end within an octet.
        let turns = (u64::from(params.len) + 14).div_ceil(u64::from(TURN * self.lanes.max(1)));
        turns + u64::from(self.lanes.max(1).ilog2()) + 2
    }

    fn host(&self, params: &NormStatsParams, args: NormStatsSlices<'_>) {
        let len = params.len as usize;
        let stats: &mut [f32] = args.stats.cast();
        stats.par_chunks_exact_mut(2).enumerate().for_each_init(
            || vec![0.0; len],
            |scratch, (run, stat)| {
                let values = floats(args.input.range(run * len, len), scratch);
                let mean = if self.centered { average(values, |x| x) } else { 0.0 };
                let variance = average(values, |x| (x - mean) * (x - mean));
                stat.copy_from_slice(&[mean, 1.0 / (variance + params.eps).sqrt()]);
            },
        );
    }

    fn cost(&self, params: &NormStatsParams, _: &NormStatsArgs) -> Cost {
        let (runs, len) = (u64::from(params.runs), u64::from(params.len));
        Cost { bytes: runs * len * self.input.size() + 8 * runs, flops: 5 * runs * len }
    }
}

/// The elements as f32: where they lie if they are, else widened into `scratch`.
pub(super) fn floats<'a>(slice: Slice<'a>, scratch: &'a mut [f32]) -> &'a [f32] {
    if slice.element() == Element::F32 {
        return slice.cast();
    }
    widen_into(slice, scratch);
    scratch
}

/// The mean of term(x): sums of blocks, added in f64, so that its error does not grow with the length.
fn average(values: &[f32], term: impl Fn(f32) -> f32 + Copy) -> f32 {
    const BLOCK: usize = 4096;
    let sum: f64 = values.chunks(BLOCK).map(|block| f64::from(sum(block, term))).sum();
    #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
    let average = (sum / values.len() as f64) as f32;
    average
}

/// Σ term(x) by eight interleaved sums, which vectorise, as no single one would.
fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (eights, rest) = values.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for eight in eights {
        for (lane, &x) in lanes.iter_mut().zip(eight) {
            *lane += term(x);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|&x| term(x)).sum::<f32>()
}

impl Checked for NormStats {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for input in DType::ALL {
            for centered in [true, false] {
                for lanes in [1, 8, 256] {
                    let kernel = Self { input, centered, lanes };
                    for sizes in [(0, 3), (1, 1), (3, 2), (5, 31), (4, 33), (5, 255), (2, 257), (7, 1000)] {
                        cases.push(case(kernel, sizes, 0.0, 1e-5));
                    }
                }
            }
        }
        for lanes in [1, 8, 256] {
            let kernel = Self { input: DType::F32, centered: true, lanes };
            // A mean a thousand times the spread, where the squares' mean would be wrong in the third digit.
            cases.push(case(kernel, (3, 300), 1000.0, 1e-6));
            // More runs than a workgroup has, and more turns than one.
            cases.push(case(kernel, (300, 7), 0.0, 1e-5));
            cases.push(case(kernel, (2, 20_001), 0.0, 1e-5));
        }
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        let runs = u32::try_from(elements / u64::from(BENCH_LEN)).unwrap_or(1 << 19).clamp(1, 1 << 19);
        layer(&Caps::host(), runs)
    }

    fn layers(caps: &Caps) -> Vec<Bench<Self>> {
        [1, 16, 256, 1024, 4096, 16_384, 65_536].map(|runs| layer(caps, runs)).into()
    }
}

/// Elements of a bench's runs.
const BENCH_LEN: u32 = 4096;

fn layer(caps: &Caps, runs: u32) -> Bench<NormStats> {
    Bench {
        name: format!("{runs} x {BENCH_LEN} f32"),
        kernel: NormStats::for_len(DType::F32, true, BENCH_LEN.into(), caps),
        params: NormStatsParams { runs, len: BENCH_LEN, eps: 1e-5 },
        buffers: vec![
            (DType::F32.into(), u64::from(runs) * u64::from(BENCH_LEN), Fill::Noise),
            (DType::F32.into(), 2 * u64::from(runs), Fill::Zero),
        ],
    }
}

fn case(kernel: NormStats, (runs, len): (usize, usize), offset: f64, eps: f32) -> Case<NormStats> {
    let values: Vec<f64> = noise(1, runs * len).iter().map(|x| x + offset).collect();
    let input = CaseBuffer::floats(kernel.input, &values);
    let want = input.values().chunks(len).flat_map(|run| wanted(run, eps.into(), kernel.centered)).collect();
    let small = |count: usize| u32::try_from(count).expect("cases are small");
    Case {
        name: format!("{kernel:?} {runs} x {len}, mean near {offset}"),
        kernel,
        params: NormStatsParams { runs: small(runs), len: small(len), eps },
        buffers: vec![input, CaseBuffer::sentinel(DType::F32, 2 * runs)],
        want: vec![(1, want)],
    }
}

/// Bounds. The mean: l additions and a division of Σ|x|/l. The variance: the same of itself, with each
/// distance off by its own rounding (counted twice by the square), plus the square of the mean's error, whose
/// first power cancels against the distances' sum up to their roundings.
///
/// A device's parts add, where they are joined, the square of the distance d of two means times the weight w of that
/// distance: six more roundings of itself, and the distance is off by Δ, what its means are: the additions of a turn,
/// those of the turns and lanes before it, two divisions and a difference, of at most max|x|. As Σ w d² is
/// within l times the variance and Σ w within l, that comes to 2 Δ σ + Δ², and Δ² once more, as a turn's own
/// mean is off by less than Δ. The scale's relative error is half the variance's, plus root (3 units) and
/// division (3).
fn wanted(run: &[f64], eps: f64, centered: bool) -> [Want; 2] {
    let unit = 2.0 * DType::F32.unit_roundoff();
    let len = run.len() as f64;
    let (mean, scale) = reference::norm::stats(run, eps, centered);
    let magnitude = run.iter().map(|x| x.abs()).sum::<f64>() / len;
    let mean_want = match centered {
        true => Want::computed(mean, magnitude, len + 1.0, DType::F32),
        false => Want::exact(0.0),
    };
    let variance = scale.powi(-2) - eps;
    let off = mean_want.bound;
    let spread = run.iter().map(|x| (x - mean).abs()).sum::<f64>() / len;
    let own = unit * (len + 4.0) * (variance + off * off) + off * off + 2.0 * unit * off * spread;
    let turns = len / f64::from(TURN) + 2.0;
    let apart = match centered {
        true => unit * (5.0 + turns + 8.0 + 3.0) * run.iter().fold(0.0, |max, x| x.abs().max(max)),
        false => 0.0,
    };
    let between = 6.0 * unit * variance + 2.0 * apart * variance.max(0.0).sqrt() + 2.0 * apart * apart;
    let variance_off = own + between;
    let relative = variance_off / (variance + eps) + unit;
    // d(v^-1/2) is at most half the relative change over (1 − change)^(3/2), which 2 covers for changes below a third.
    assert!(relative < 0.3, "the case leaves nothing of the scale's digits");
    [mean_want, Want { value: scale, bound: scale * (relative + 6.0 * unit) }]
}
