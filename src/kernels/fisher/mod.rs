//! The exact Fisher diagonal: sums over samples of squared per-sample gradients, fused so that no per-sample
//! gradient is ever stored.
//!
//! Every kernel here computes
//!
//!   out ← decay · out + gain · Σ_s weight_s · (gradient_scale · g_s)²
//!
//! with g_s the gradient of one *square* s: of `fold` consecutive samples, all of whose positions are added **before**
//! squaring. `fold` = 1 is the per-sample Fisher; `fold` = B the minibatch-joint one, `fold` = N the joint one (the last
//! square may have fewer samples). They differ only in what a gradient is: see each kernel.
//!
//! - **A [`Mode`]** says what becomes of the gradients: their squares are summed, as above; or they are summed themselves, as a
//!   natural-gradient step Σ_n x_n g_n needs; or each is stored, as the inner products of a Gram matrix need for a few
//!   parameters at a time.
//! - **Weights** `[squares]`: one for each square. They serve padding masks, class balance, 1/k of Monte Carlo
//!   samples, p(c) of the exact Fisher, 1/s of the improved empirical one. A square of weight 0 is left out, whatever it holds.
//! - **What becomes of the old value** is an [`Epilogue`]: overwritten (never read), added to, or decayed. Streaming
//!   consecutive ranges of squares (`first`, `count`) with [`Epilogue::Add`] gives the whole.
//! - **`gradient_scale`** multiplies `grad_output` before anything else. A power of two keeps squares of gradients below 1e-19
//!   from vanishing; `gain` can undo it, or the consumer keeps the result in units of its square.
//! - **Ranges of outputs** (`first_output`, `output_count`) let one long step be cut into short dispatches. A result that one buffer
//!   cannot hold is kept in several: `out_first` is the first output that a step's `out` holds.
//! - **Sums** run over positions in f32 and then over squares in f32, in a fixed order: the same inputs give the same
//!   bits, on the host whatever the number of threads. Rounding grows with positions and squares, see the cases' bounds.
//! - NaN and infinity in a square of weight other than 0 reach every element they touch.
//!

mod cases;
mod conv_sq;
mod embedding_sq;
mod gram;
mod linear_sq;
mod linear_sq_shared;
mod norm_sq;
mod norm_stats;
mod product;
mod registers;
mod sum_sq;

pub use conv_sq::{ConvSq, ConvSqArgs, ConvSqParams, ConvSqSlices};
pub use embedding_sq::{
    EmbeddingIndex, EmbeddingSq, EmbeddingSqArgs, EmbeddingSqParams, EmbeddingSqSlices, Listed,
};
pub use gram::{Gram, GramArgs, GramParams, GramSlices};
pub use linear_sq::{LinearSq, LinearSqArgs, LinearSqParams, LinearSqSlices};
pub use linear_sq_shared::{LinearSqShared, LinearSqSharedArgs, LinearSqSharedParams, LinearSqSharedSlices};
pub use norm_sq::{NormLayout, NormSq, NormSqArgs, NormSqParams, NormSqSlices};
pub use norm_stats::{NormStats, NormStatsArgs, NormStatsParams, NormStatsSlices};
pub(crate) use product::STORES;
pub use product::{Form, Loads};
pub use sum_sq::{SumSq, SumSqArgs, SumSqParams, SumSqSlices};

use std::ops::Range;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::gpu::{Caps, DeviceClass};
use crate::memory::View;
use crate::shape::{DType, elements};

/// What a step makes of the gradients g_s of its squares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Σ_s weight_s · g_s²: a Fisher diagonal.
    #[default]
    Squares,
    /// Σ_s weight_s · g_s: a weighted gradient. Weights may have either sign.
    Gradients,
    /// weight_s · g_s of every square by itself. `out` is `[s, …]`, with the step's own range of outputs alone; a step writes its own
    /// squares.
    Each,
}

impl Mode {
    fn squared(self) -> bool {
        self == Self::Squares
    }

    fn each(self) -> bool {
        self == Self::Each
    }

    /// Squares that one invocation forms, of the `count` of a step.
    fn squares_of_one(self, count: u32) -> u64 {
        if self.each() { 1 } else { count.into() }
    }

    /// Results of a step over so many squares.
    fn results(self, squares: u64) -> u64 {
        if self.each() { squares } else { 1 }
    }

    fn overrides(self) -> [(&'static str, f64); 2] {
        [("SQUARED", f64::from(u8::from(self.squared()))), ("EACH", f64::from(u8::from(self.each())))]
    }
}

/// What becomes of the value that `out` held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epilogue {
    /// out ← result. The old value is not read, so it may be anything.
    Overwrite,
    /// out ← out + result.
    Add,
    /// out ← decay · out + (1 − decay) · result.
    Ema {
        /// β, the share of the old value that stays.
        decay: f32,
    },
}

impl Epilogue {
    /// Whether the old value is not read.
    #[must_use]
    pub fn overwrites(self) -> bool {
        self == Self::Overwrite
    }

    /// The factor of the old value.
    #[must_use]
    pub fn decay(self) -> f32 {
        match self {
            Self::Overwrite => 0.0,
            Self::Add => 1.0,
            Self::Ema { decay } => decay,
        }
    }

    /// The factor of the new value, which is multiplied by `factor` in any case.
    #[must_use]
    pub fn gain(self, factor: f32) -> f32 {
        match self {
            Self::Overwrite | Self::Add => factor,
            Self::Ema { decay } => (1.0 - decay) * factor,
        }
    }
}

fn overrides(
    form: Form,
    mode: Mode,
    input: DType,
    grad_output: DType,
    overwrite: bool,
) -> Vec<(&'static str, f64)> {
    let mut overrides = form.overrides().to_vec();
    overrides.extend(mode.overrides());
    overrides.extend([
        ("INPUT", input.code().into()),
        ("GRAD_OUTPUT", grad_output.code().into()),
        ("OVERWRITE", f64::from(u8::from(overwrite))),
    ]);
    overrides
}

fn check_fold(op: &str, fold: u64) -> Result<()> {
    if fold == 0 {
        return Err(Error::argument(op, "fold is 0; 1 squares each sample's gradient"));
    }
    Ok(())
}

/// Checks that a step's range of squares or outputs lies inside the whole.
fn check_range(op: &str, what: &str, (first, count): (u32, u32), all: u64) -> Result<()> {
    let end = u64::from(first) + u64::from(count);
    if end > all {
        return Err(Error::argument(op, format!("{what} {first}..{end} of {all}")));
    }
    Ok(())
}

/// Checks that `out` holds what a step writes: of every square its `output_count` outputs with [`Mode::Each`], else whole outputs from
/// `out_first` on, with those of the step among them. Sizes are squares, outputs, elements of an output.
fn check_out(
    op: &str,
    mode: Mode,
    out: &View,
    (out_first, first_output, output_count): (u32, u32, u32),
    [squares, outputs, width]: [u64; 3],
) -> Result<()> {
    if mode.each() {
        let all = len(op, &[squares, output_count.into(), width])?;
        return out.expect(op, "out", all, Some(DType::F32.into()));
    }
    out.expect(op, "out", len(op, &[out.len()])?, Some(DType::F32.into()))?;
    let held = out.len().checked_div(width).unwrap_or(outputs.saturating_sub(out_first.into()));
    let end = u64::from(out_first) + held;
    let (first, last) = (u64::from(first_output), u64::from(first_output) + u64::from(output_count));
    if held.checked_mul(width) == Some(out.len())
        && u64::from(out_first) <= first
        && last <= end
        && end <= outputs
    {
        return Ok(());
    }
    let expected = format!("whole outputs of {width} elements of {outputs}, with {first}..{last} among them");
    Err(Error::shape(op, "out", expected, format!("{} elements from output {out_first} on", out.len())))
}

/// Calls `run` for every result of a step: with its squares, and with its part of `out`.
fn for_results(
    mode: Mode,
    squares: Range<usize>,
    out: &mut [f32],
    run: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    if out.is_empty() {
        return;
    }
    match mode {
        Mode::Squares | Mode::Gradients => run(squares, out),
        Mode::Each => {
            let len = out.len() / squares.len();
            out.par_chunks_mut(len).zip(squares).for_each(|(out, square)| run(square..square + 1, out));
        }
    }
}

/// The elements of `out` that a step writes, of rows of outputs of `width` elements, counted from the first that `out` holds.
fn written(
    mode: Mode,
    squares: &Range<usize>,
    (first_output, outputs): (u32, u32),
    width: usize,
) -> Range<usize> {
    let (first, outputs) = (first_output as usize * width, outputs as usize * width);
    match mode {
        Mode::Squares | Mode::Gradients => first..first + outputs,
        Mode::Each => squares.start * outputs..squares.end * outputs,
    }
}

/// The elements of a shape, which shaders count in u32.
fn len(op: &str, shape: &[u64]) -> Result<u64> {
    let max = u64::from(u32::MAX);
    match elements(shape) {
        Some(len) if len <= max => Ok(len),
        len => Err(Error::Limit {
            op: op.into(),
            limit: "elements of one argument".into(),
            max,
            asked: len.unwrap_or(u64::MAX),
        }),
    }
}

/// Samples of a range of squares.
fn samples_of(samples: u32, fold: u32, first: u32, count: u32) -> u64 {
    let [samples, fold, first, count] = [samples, fold, first, count].map(u64::from);
    samples.min((first + count) * fold).saturating_sub(first * fold)
}

/// Invocations of a workgroup that sums neighbouring columns: as many as software devices run in step. Each reads its own octets of every
/// row, so a workgroup goes through all rows before the next one begins.
const COLUMN_LANES: u32 = 8;

/// Octets of neighbouring columns for each invocation on a device, 0 where one invocation, or several, have one column: on a GPU, where that is
/// as good, and for widths that are no multiple of eight. As many as leave a workgroup for each processor, or four: the wider the piece of a
/// row that is read at a time, the fewer pages are begun. The number changes no bit: a column is summed by one invocation.
fn octets_for(caps: &Caps, columns: u32, rows: u64) -> u32 {
    let software = caps.class == DeviceClass::Software && !caps.is_host;
    // A square so long meets `Caps::max_iterations`.
    if !software || !columns.is_multiple_of(8) || columns == 0 || rows >= 4096 {
        return 0;
    }
    let processors = std::thread::available_parallelism().map_or(4, |number| number.get().min(4));
    let least = u32::try_from(processors).expect("at most four");
    let of_one = columns / (8 * COLUMN_LANES);
    [8, 4, 2].into_iter().find(|octets| of_one / octets >= least).unwrap_or(1)
}

/// Refuses octets that are none, or of columns that do not come in eights.
fn check_octets(op: &str, octets: u32, columns: u32, together: bool) -> Result<()> {
    if ![0, 1, 2, 4, 8].contains(&octets) {
        return Err(Error::argument(op, format!("{octets} octets an invocation, expected 0, 1, 2, 4 or 8")));
    }
    if octets > 0 && !(together && columns.is_multiple_of(8)) {
        let problem =
            format!("{columns} columns do not lie beside each other in eights, as octets have them");
        return Err(Error::argument(op, problem));
    }
    Ok(())
}

/// Workgroups for so many columns in octets.
fn octet_groups(octets: u32, columns: u32) -> u64 {
    u64::from(columns).div_ceil(8 * u64::from(COLUMN_LANES * octets.max(1)))
}

/// The overrides of a kernel that has neighbouring columns in octets; nothing where it has not.
fn octet_overrides(octets: u32) -> Vec<(&'static str, f64)> {
    if octets == 0 {
        return Vec::new();
    }
    vec![("TOGETHER", 1.0), ("OCTETS", octets.into()), ("WORKGROUP", COLUMN_LANES.into())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Backend;
    use crate::kernel::{Case, Checked};
    use crate::verify;

    /// The host's verdict over all cases after `plant` has changed them: how many it finds wrong, of how many it could.
    fn found<K: Checked>(plant: impl Fn(&mut Case<K>) -> bool) -> (usize, usize) {
        let mut cases = K::cases();
        cases.retain_mut(|case| plant(case));
        let planted = cases.len();
        assert!(planted > 0, "no case to plant an error in");
        let verdict = verify::kernel(&Backend::Host, cases);
        (verdict.failures.len(), planted)
    }

    /// Positions as samples: the most often reported mistake.
    #[test]
    fn squaring_before_positions_are_added_is_found() {
        let (found, planted) = found::<LinearSqShared>(|case| {
            let one_sample = case.params.samples == 1 && case.params.positions > 1;
            std::mem::swap(&mut case.params.samples, &mut case.params.positions);
            case.params.count = case.params.samples;
            case.buffers[2] =
                crate::kernel::CaseBuffer::floats(DType::F32, &vec![1.0; case.params.samples as usize]);
            one_sample
        });
        assert_eq!(found, planted);
    }

    #[test]
    fn a_gradient_scale_off_by_one_part_in_a_thousand_is_found() {
        let scale = |scale: &mut f32, weighted: bool| {
            *scale *= 1.001;
            weighted
        };
        let (linear, of) =
            found::<LinearSq>(|case| scale(&mut case.params.gradient_scale, case.params.samples == 9));
        assert_eq!(linear, of);
        let (shared, of) = found::<LinearSqShared>(|case| {
            scale(&mut case.params.gradient_scale, case.params.samples == 3 && case.params.positions == 5)
        });
        assert_eq!(shared, of);
        let (conv, of) =
            found::<ConvSq>(|case| scale(&mut case.params.gradient_scale, case.params.groups == 2));
        assert_eq!(conv, of);
        let (bias, of) =
            found::<SumSq>(|case| scale(&mut case.params.gradient_scale, case.params.samples == 4));
        assert_eq!(bias, of);
    }

    #[test]
    fn a_convolution_with_another_geometry_is_found() {
        let square = |params: &ConvSqParams| params.input_h == params.input_w && params.samples > 0;
        let (found, planted) = found::<ConvSq>(|case| {
            let p = &mut case.params;
            let plant = case.kernel.input == DType::F32 && square(p) && p.padding_w > 0 && p.kernel_w > 1;
            // The patches start one element late; the reach only grows.
            p.padding_w -= u32::from(plant);
            p.input_w += 2 * u32::from(plant);
            if plant {
                let wide = |value: u32| value as usize;
                let len =
                    wide(p.samples) * wide(p.channels) * wide(p.input_d) * wide(p.input_h) * wide(p.input_w);
                let mut values = case.buffers[0].values();
                values.resize(len, 0.0);
                case.buffers[0] = crate::kernel::CaseBuffer::floats(DType::F32, &values);
            }
            plant
        });
        assert_eq!(found, planted);
    }

    #[test]
    fn a_step_s_faults_are_refused_by_name() {
        assert!(check_fold("op", 0).is_err_and(|e| e.to_string().contains("fold is 0")));
        let range = check_range("op", "squares", (3, 2), 4);
        assert!(range.is_err_and(|e| e.to_string().contains("squares 3..5 of 4")));
        assert!(check_range("op", "squares", (u32::MAX, u32::MAX), 4).is_err());
        assert!(len("op", &[65_536, 65_536]).is_err_and(|e| e.to_string().contains("4294967296 needed")));
        assert!(len("op", &[u64::MAX, 2]).is_err());
    }
}
