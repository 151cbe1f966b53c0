//! The exact Fisher diagonal: sums over samples of squared per-sample gradients, fused so that no per-sample
//! gradient is ever stored.
//!
//! Every kernel here computes
//!
//!   out ← decay · out + gain · Σ_s weight_s · (gradient_scale · g_s)²
//!
//! with g_s the gradient of one *square* s: of `fold` consecutive samples, all of whose positions are added **before**
//! squaring. `fold` = 1 is the per-sample Fisher; `fold` = B the minibatch-joint one, `fold` = N the joint
//! one (the last square may have fewer samples). They differ only in what a gradient is: see each kernel.
//!
//! - **A [`Mode`]** says what becomes of the gradients: their squares are summed, as above; or they are summed
//!   themselves, as a
//!   natural-gradient step Σ_n x_n g_n needs; or each is stored, as the inner products of a Gram matrix need for a few
//!   parameters at a time.
//! - **Weights** `[squares]`: one for each square. They serve padding masks, class balance, 1/k of Monte
//!   Carlo samples, p(c) of the exact Fisher, 1/s of the improved empirical one. A square of weight 0 is left
//!   out, whatever it holds.
//! - **What becomes of the old value** is an [`Epilogue`]: overwritten (never read), added to, or decayed. Streaming
//!   consecutive ranges of squares (`first`, `count`) with [`Epilogue::Add`] gives the whole.
//! - **`gradient_scale`** multiplies `grad_output` before anything else. A power of two keeps squares of gradients
//!   below 1e-19
//!   from vanishing; `gain` can undo it, or the consumer keeps the result in units of its square.
//! - **Ranges of outputs** (`first_output`, `output_count`) let one long step be cut into short dispatches. A result
//!   that one buffer
//!   cannot hold is kept in several: `out_first` is the first output that a step's `out` holds.
//! - **Sums** run over positions in f32 and then over squares in f32, in a fixed order: the same inputs give
//!   the same bits, on the host whatever the number of threads. Rounding grows with positions and squares,
//!   see the cases' bounds.
//! - NaN and infinity in a square of weight other than 0 reach every element they touch.

mod cases;
mod checks;
mod conv_sq;
mod embedding_sq;
mod form;
mod gram;
#[cfg(test)]
mod halves;
mod linear_sq;
mod linear_sq_shared;
mod mode;
mod norm_sq;
mod norm_stats;
mod octets;
mod product;
mod registers;
mod sum_sq;

pub use conv_sq::{ConvSq, ConvSqArgs, ConvSqParams, ConvSqSlices};
pub use embedding_sq::{
    EmbeddingIndex, EmbeddingSq, EmbeddingSqArgs, EmbeddingSqParams, EmbeddingSqSlices, Listed,
};
pub(crate) use form::STORES;
pub use form::{Form, Loads};
pub use gram::{Gram, GramArgs, GramParams, GramSlices};
pub use linear_sq::{LinearSq, LinearSqArgs, LinearSqParams, LinearSqSlices};
pub use linear_sq_shared::{LinearSqShared, LinearSqSharedArgs, LinearSqSharedParams, LinearSqSharedSlices};
pub use mode::{Epilogue, Mode};
pub use norm_sq::{NormLayout, NormSq, NormSqArgs, NormSqParams, NormSqSlices};
pub use norm_stats::{NormStats, NormStatsArgs, NormStatsParams, NormStatsSlices};
pub use sum_sq::{SumSq, SumSqArgs, SumSqParams, SumSqSlices};

use checks::{check_fold, check_out, check_range, len, samples_of};
use mode::{for_results, written};
use octets::{check_octets, octet_groups, octet_overrides, octets_for};

use crate::shape::DType;

/// The overrides of a product kernel that takes squares of gradients.
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
}
