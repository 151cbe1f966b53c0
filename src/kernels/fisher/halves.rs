//! A model of what `shaders/lib/product/matrix.wgsl` does with factors, for tests where no device has matrix
//! units: that the bounds of the cases hold for it, and that they find what could go wrong with it.
//!
//! It is written from the paper (Ootomo and Yokota, 2022) and shares nothing with the shader: parts are made
//! by the `half` crate, and sums are cut off after every matrix, as units may do.

use half::f16;

use super::cases::{added, tops};
use super::form::Form;
use crate::gpu::MatrixUnits;
use crate::kernel::{Want, noise};
use crate::shape::DType;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Planted {
    Nothing,
    /// The parts' products beside the largest are left out.
    HighAlone,
    /// Those of one side are.
    OneSide,
    /// A power of two is taken off once too rarely.
    Doubled,
    /// Factors are not brought near 2¹⁴.
    Unscaled,
    /// The power of two is another row's, which is this much larger.
    Shared(i32),
    /// Low parts are not kept in units of 2⁻¹¹, on units that have no subnormal numbers.
    Flushed,
}

/// A factor's two parts.
#[derive(Clone, Copy)]
struct Parts {
    high: f64,
    low: f64,
}

fn parts(value: f64, unit: f64) -> Parts {
    let half = |value: f64| f16::from_f64(value).to_f64();
    let high = half(value);
    Parts { high, low: half((value - high) * unit) }
}

/// 2^e that brings the largest of these into 2¹⁴ … 2¹⁵.
fn scale(values: &[f64], planted: Planted) -> f64 {
    let largest = values.iter().fold(f64::from(f32::MIN_POSITIVE), |top, v| top.max(v.abs()));
    let by = match planted {
        Planted::Unscaled => return 1.0,
        Planted::Shared(exponent) => exponent,
        _ => 0,
    };
    #[expect(clippy::cast_possible_truncation, reason = "an exponent of f32")]
    let exponent = largest.log2().floor() as i32;
    2.0_f64.powi(14 - exponent - by)
}

/// The nearest f32 towards zero.
fn cut(value: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "what is cut off is put right below")]
    let near = value as f32;
    let beyond = f64::from(near).abs() > value.abs();
    f64::from(if beyond { f32::from_bits(near.to_bits() - 1) } else { near })
}

/// Σ x · y as matrix units have it.
fn product(x: &[f64], y: &[f64], side: usize, planted: Planted) -> f64 {
    let (x_scale, y_scale) = (scale(x, planted), scale(y, planted));
    let unit = if planted == Planted::Flushed { 1.0 } else { 2048.0 };
    let flush =
        |part: f64| if planted == Planted::Flushed && part.abs() < 2.0_f64.powi(-14) { 0.0 } else { part };
    let (mut high, mut low) = (0.0, 0.0);
    for (x, y) in x.chunks(side).zip(y.chunks(side)) {
        for (&x, &y) in x.iter().zip(y) {
            let (x, y) = (parts(x * x_scale, unit), parts(y * y_scale, unit));
            high += x.high * y.high;
            let sides = [x.high * flush(y.low), flush(x.low) * y.high];
            low += match planted {
                Planted::HighAlone => 0.0,
                Planted::OneSide => sides[0],
                _ => sides[0] + sides[1],
            };
        }
        (high, low) = (cut(high), cut(low));
    }
    let doubled = if planted == Planted::Doubled { 2.0 } else { 1.0 };
    (high + low / unit) / x_scale / y_scale * doubled
}

/// The error of a product as a share of the bound of the cases.
fn share(x: &[f64], y: &[f64], units: MatrixUnits, planted: Planted) -> f64 {
    let of = |x: &[f64], y: &[f64]| vec![vec![x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>()]];
    let abs = |values: &[f64]| values.iter().map(|v| v.abs()).collect::<Vec<_>>();
    let magnitudes = of(&abs(x), &abs(y));
    let tops = of(&tops(x, |_| 0), &tops(y, |_| 0));
    let added = added(Form::Matrix(units), &magnitudes, &tops, x.len())[0][0];
    let exact = of(x, y)[0][0];
    let want = Want::computed(exact, magnitudes[0][0], x.len() as f64 + 2.0, DType::F32);
    (product(x, y, units.side as usize, planted) - exact).abs() / (want.bound + added)
}

/// Rows and columns of several lengths: even ones, ones of which each value is half the one before, and one
/// whose largest value meets a zero.
fn rows(magnitude: i32) -> Vec<(Vec<f64>, Vec<f64>)> {
    let row = |seed: u64, len: usize, falls: bool, by: i32| -> Vec<f64> {
        let power = |t: usize| by - if falls { i32::try_from(t % 40).expect("small") } else { 0 };
        noise(seed, len).iter().enumerate().map(|(t, v)| v * 2.0_f64.powi(power(t))).collect()
    };
    let pair = |(len, falls): (usize, bool)| {
        (row(len as u64, len, falls, magnitude), row(1000 + len as u64, len, falls, -magnitude))
    };
    let mut rows: Vec<_> =
        [(1, false), (7, false), (16, false), (130, false), (33, true), (130, true)].map(pair).into();
    let (mut x, mut y) = rows[1].clone();
    x[1..].iter_mut().for_each(|value| *value *= 2.0_f64.powi(-18));
    y[0] = 0.0;
    rows.push((x, y));
    rows
}

#[test]
fn two_halves_a_factor_stay_within_the_bounds() {
    for units in MatrixUnits::ALL {
        for magnitude in [-90, -30, -14, 0, 13, 40, 100] {
            for (x, y) in rows(magnitude) {
                let share = share(&x, &y, units, Planted::Nothing);
                assert!(share < 1.0, "{units:?} 2^{magnitude} {}: {share}", x.len());
            }
        }
    }
}

#[test]
fn what_goes_wrong_with_halves_is_found() {
    let planted = [
        (Planted::HighAlone, 0),
        (Planted::OneSide, 0),
        (Planted::Doubled, 0),
        (Planted::Unscaled, -30),
        (Planted::Unscaled, 30),
        (Planted::Shared(40), 0),
        (Planted::Flushed, 0),
    ];
    for (planted, magnitude) in planted {
        for units in MatrixUnits::ALL {
            let worst = rows(magnitude)
                .iter()
                .map(|(x, y)| share(x, y, units, planted))
                .fold(0.0, |worst: f64, share| if share.is_nan() { f64::INFINITY } else { worst.max(share) });
            assert!(worst > 1.0, "{planted:?} {units:?}: {worst}");
        }
    }
}
