//! What the cases of this family share: inputs, and how far sums of squares may be off.

use std::ops::Range;

use super::{Form, Loads, Mode};
use crate::gpu::{Caps, MatrixUnits};
use crate::kernel::{Case, CaseBuffer, FLUSHED, Kernel, Want, noise};
use crate::reference;
use crate::shape::DType;

/// Every form of a shader that has no cases itself.
pub(super) const FORMS: [Form; 5] = [
    Form::Tile { x: 16, y: 16 },
    Form::Tile { x: 8, y: 8 },
    Form::Register(Loads::Own),
    Form::Register(Loads::Shared),
    Form::Direct,
];

/// The same forms on matrix units.
pub(super) const MATRIX_FORMS: [Form; 3] = {
    let [a, b, c] = MatrixUnits::ALL;
    [Form::Matrix(a), Form::Matrix(b), Form::Matrix(c)]
};

/// The form that a device takes for a linear layer.
pub(super) fn form(caps: &Caps, outputs: usize, inputs: usize) -> Form {
    let widths = [outputs, inputs].map(|width| u32::try_from(width).expect("layers are small"));
    Form::of(caps, 1, outputs as u64, inputs as u64).for_widths(&widths)
}

/// The scalars of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub(super) overwrite: bool,
    pub(super) decay: f32,
    pub(super) gain: f32,
    pub(super) gradient_scale: f32,
}

impl Numbers {
    pub(super) const OVERWRITE: Self = Self { overwrite: true, decay: 0.0, gain: 1.0, gradient_scale: 1.0 };
    pub(super) const ADD: Self = Self { overwrite: false, decay: 1.0, gain: 1.0, gradient_scale: 1.0 };
    pub(super) const EMA: Self = Self { overwrite: false, decay: 0.95, gain: 0.05, gradient_scale: 1.0 };
    /// Gradients of which f32 could not hold the squares, and a result in units of the scale.
    pub(super) const SCALED: Self = Self { gradient_scale: 1.180_591_6e21, ..Self::ADD }; // 2^70

    /// The old value: of no meaning where it is overwritten.
    pub(super) fn out(self, len: usize) -> CaseBuffer {
        if self.overwrite {
            return CaseBuffer::sentinel(DType::F32, len);
        }
        let old: Vec<f64> = noise(3, len).iter().map(|v| v.abs()).collect();
        CaseBuffer::floats(DType::F32, &old)
    }

    /// Noise for an output's gradient: as small as the scale is large.
    pub(super) fn grad_output(self, len: usize) -> Vec<f64> {
        noise(2, len).iter().map(|b| b / f64::from(self.gradient_scale)).collect()
    }

    /// decay · old + gain · sum, of which `error` is how far the sum may be off.
    fn finish(self, old: f64, sum: f64, error: f64) -> Want {
        let [decay, gain] = [self.decay, self.gain].map(f64::from);
        let kept = if self.overwrite { 0.0 } else { decay * old };
        let wanted =
            Want::computed(kept + gain * sum, kept.abs() + gain * (sum.abs() + error), 3.0, DType::F32);
        Want { bound: wanted.bound + gain * error, ..wanted }
    }
}

/// Weights of which every third is zero; of either sign where gradients are not squared.
pub(super) fn weights(len: usize, mode: Mode) -> Vec<f64> {
    let one = |(n, w): (usize, &f64)| match (n % 3, mode) {
        (2, _) => 0.0,
        (_, Mode::Squares) => w.abs(),
        _ => *w,
    };
    noise(4, len).iter().enumerate().map(one).collect()
}

/// What each mode is defined as, over gradients of `len` elements.
pub(super) fn sums(mode: Mode, weight: &[f64], gradients: &[Vec<f64>], len: usize) -> Vec<f64> {
    let weighted = reference::fisher::weighted_sum;
    match mode {
        Mode::Squares => reference::fisher::sum_of_squares(weight, gradients, len),
        Mode::Gradients => weighted(weight, gradients, len),
        Mode::Each => {
            let one = |(w, g): (&f64, &Vec<f64>)| weighted(&[*w], std::slice::from_ref(g), len);
            weight.iter().zip(gradients).flat_map(one).collect()
        }
    }
}

/// The gradients of squares.
#[derive(Clone, Copy)]
pub(super) struct Formed<'a> {
    pub(super) gradients: &'a [Vec<f64>],
    /// The same sums over |terms|.
    pub(super) magnitudes: &'a [Vec<f64>],
    /// What the form adds to the error of each element, if it adds any: see [`added`].
    pub(super) added: &'a [Vec<f64>],
    /// The most terms of an element.
    pub(super) terms: usize,
}

/// What a form adds to the error of sums of products x · y, given the sums of |x| · |y| and of X · Y, where X and Y are
/// the largest magnitudes that may share an exponent with x and y.
///
/// [`Form::Matrix`] rounds x to two parts of 11 digits: it is off by 2⁻²³|x|, or by 2⁻³⁹X where one would be
/// subnormal (2⁻²⁵ of what is at least 2¹⁴ for X). The same goes for y. The product of the low parts is left
/// out: they are at most 2⁻¹¹|x| or, where the high one would be subnormal, 2⁻²⁸X. Together that is
/// 2⁻²¹|x||y| + 2⁻³⁷XY, and what is small beside them. Matrix units may cut off what they add (Fasi et al.,
/// *Numerical behavior of NVIDIA tensor cores*, 2021): with `side` products and the sum before them, that is
/// 2⁻²³ for each, and once more for the result.
pub(super) fn added(form: Form, magnitudes: &[Vec<f64>], tops: &[Vec<f64>], terms: usize) -> Vec<Vec<f64>> {
    let Form::Matrix(MatrixUnits { side, .. }) = form else { return Vec::new() };
    let side = f64::from(side);
    let u2 = 2.0 * DType::F32.unit_roundoff();
    // Beside the one rounding for each term that all forms have.
    let cut = (terms as f64 / side).ceil() * (side + 2.0) - terms as f64;
    // The result: parts put together, and two powers of two.
    let relative = u2 * (cut + 3.0) + 2.0_f64.powi(-21) * (1.0 + 2.0_f64.powi(-10));
    let one = |(magnitude, top): (&f64, &f64)| relative * magnitude + 2.0_f64.powi(-36) * top;
    magnitudes.iter().zip(tops).map(|(m, t)| m.iter().zip(t).map(one).collect()).collect()
}

/// Each value replaced by the largest magnitude of its row, which `row` tells of an index.
pub(super) fn tops(values: &[f64], row: impl Fn(usize) -> usize) -> Vec<f64> {
    let mut largest = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let row = row(index);
        largest.resize(largest.len().max(row + 1), 0.0_f64);
        largest[row] = largest[row].max(value.abs());
    }
    (0..values.len()).map(|index| largest[row(index)]).collect()
}

/// The wanted result of sums of squares, or of the gradients themselves.
///
/// A gradient is off by at most δ = 2u · (terms + 2) · Σ|terms| (a product, its sums, the scale), in whatever
/// order it is summed, and what its form adds; hence its square by 2|g|δ + δ². A sum over squares adds a
/// square, a weight and as many roundings as there are squares.
pub(super) fn want(
    mode: Mode,
    numbers: Numbers,
    formed: Formed<'_>,
    weight: &[f64],
    old: &[f64],
) -> Vec<Want> {
    let scale = f64::from(numbers.gradient_scale);
    let u2 = 2.0 * DType::F32.unit_roundoff();
    let scaled = |gradients: &[Vec<f64>]| -> Vec<Vec<f64>> {
        gradients.iter().map(|g| g.iter().map(|g| scale * g).collect()).collect()
    };
    let Formed { gradients, magnitudes, added, terms } = formed;
    let [gradients, magnitudes, added] = [gradients, magnitudes, added].map(scaled);
    let sums = sums(mode, weight, &gradients, old.len());
    // A weighted sum may take positions and squares in any order.
    let terms = if mode == Mode::Squares { terms } else { terms * weight.len() };
    let depth = terms as f64 + 2.0;
    let element = |p: usize| {
        let mut error = 0.0;
        let mut sum_abs = 0.0;
        for (s, ((w, g), magnitude)) in weight.iter().zip(&gradients).zip(&magnitudes).enumerate() {
            // Inputs are at most about 1 once scaled, so a flushed factor is off by no more than a flushed product.
            let added = added.get(s).map_or(0.0, |added| added[p]);
            let delta = u2 * depth * magnitude[p] + 2.0 * depth * FLUSHED + added;
            let size = g[p].abs();
            let (off, largest) = match mode {
                Mode::Squares => (2.0 * size * delta + delta * delta, (size + delta).powi(2)),
                _ => (delta, size + delta),
            };
            error += w.abs() * off;
            sum_abs += w.abs() * largest;
        }
        let roundings = weight.len() as f64 + 2.0;
        error += u2 * roundings * sum_abs + 2.0 * roundings * FLUSHED;
        numbers.finish(old[p], sums[p], error)
    };
    (0..old.len()).map(element).collect()
}

/// The wanted result of a sum of products of squares: all terms are non-negative, so the value is the sum of their
/// magnitudes.
///
/// A term has two squares, a product, the weight and the scale (counted twice by its square), then its sum.
pub(super) fn want_factorised(
    numbers: Numbers,
    gradients: &[Vec<f64>],
    weight: &[f64],
    old: &[f64],
) -> Vec<Want> {
    let scale = f64::from(numbers.gradient_scale);
    let scaled: Vec<Vec<f64>> = gradients.iter().map(|g| g.iter().map(|g| scale * g).collect()).collect();
    let sums = reference::fisher::sum_of_squares(weight, &scaled, old.len());
    let depth = weight.len() as f64 + 6.0;
    let element = |(&sum, &old): (&f64, &f64)| {
        // Inputs are at most about 1 once scaled, so that a flushed factor is off by no more than a flushed term.
        let error = 2.0 * DType::F32.unit_roundoff() * depth * sum + 4.0 * depth * FLUSHED;
        numbers.finish(old, sum, error)
    };
    sums.iter().zip(old).map(element).collect()
}

/// One step's ranges: its first square, and the elements of a gradient that it covers.
pub(super) struct Covered {
    pub(super) first: usize,
    pub(super) elements: Range<usize>,
}

/// What `out` should be after a step in any mode; `gradients` and `weight` are those of its squares.
pub(super) fn wanted(
    mode: Mode,
    numbers: Numbers,
    covered: &Covered,
    formed: Formed<'_>,
    weight: &[f64],
    old: &[f64],
) -> Vec<Want> {
    let elements = covered.elements.clone();
    if mode != Mode::Each {
        return only(elements, want(mode, numbers, formed, weight, old), old);
    }
    let mut out: Vec<Want> = old.iter().map(|&value| Want::exact(value)).collect();
    for (s, &weight) in weight.iter().enumerate() {
        let at = (covered.first + s) * elements.len()..(covered.first + s + 1) * elements.len();
        let part = |all: &[Vec<f64>]| -> Vec<Vec<f64>> {
            all.get(s).map(|one| one[elements.clone()].to_vec()).into_iter().collect()
        };
        let (gradients, magnitudes, added) =
            (part(formed.gradients), part(formed.magnitudes), part(formed.added));
        let formed =
            Formed { gradients: &gradients, magnitudes: &magnitudes, added: &added, terms: formed.terms };
        out.splice(at.clone(), want(mode, numbers, formed, &[weight], &old[at]));
    }
    out
}

/// Outside of a step's range, elements stay as they were.
pub(super) fn only(range: Range<usize>, want: Vec<Want>, old: &[f64]) -> Vec<Want> {
    want.into_iter()
        .enumerate()
        .map(|(p, want)| if range.contains(&p) { want } else { Want::exact(old[p]) })
        .collect()
}

/// A case whose `out`, its fourth buffer, has some elements alone.
pub(super) fn held<K: Kernel>(case: Case<K>, elements: Range<usize>) -> Case<K> {
    let Case { name, kernel, params, mut buffers, mut want } = case;
    buffers[3] = CaseBuffer::floats(DType::F32, &buffers[3].values()[elements.clone()]);
    want[0].1 = want[0].1[elements.clone()].to_vec();
    Case { name: format!("{name} held={elements:?}"), kernel, params, buffers, want }
}

/// Gradients of consecutive samples from one sample's definition, joined by `fold`.
pub(super) fn gradients(samples: usize, fold: usize, one: impl Fn(usize) -> Vec<f64>) -> Vec<Vec<f64>> {
    let each: Vec<Vec<f64>> = (0..samples).map(one).collect();
    reference::fisher::joint(&each, fold)
}

/// |values|.
pub(super) fn abs(values: &[f64]) -> Vec<f64> {
    values.iter().map(|v| v.abs()).collect()
}
