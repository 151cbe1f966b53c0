//! What a step makes of its gradients, and what becomes of the value that was there.

use std::ops::Range;

use rayon::prelude::*;

/// What a step makes of the gradients g_s of its squares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Σ_s weight_s · g_s²: a Fisher diagonal.
    #[default]
    Squares,
    /// Σ_s weight_s · g_s: a weighted gradient. Weights may have either sign.
    Gradients,
    /// weight_s · g_s of every square by itself. `out` is `[s, …]`, with the step's own range of outputs alone; a step
    /// writes its own squares.
    Each,
}

impl Mode {
    pub(super) fn squared(self) -> bool {
        self == Self::Squares
    }

    pub(super) fn each(self) -> bool {
        self == Self::Each
    }

    /// Squares that one invocation forms, of the `count` of a step.
    pub(super) fn squares_of_one(self, count: u32) -> u64 {
        if self.each() { 1 } else { count.into() }
    }

    /// Results of a step over so many squares.
    pub(super) fn results(self, squares: u64) -> u64 {
        if self.each() { squares } else { 1 }
    }

    pub(super) fn overrides(self) -> [(&'static str, f64); 2] {
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

/// Calls `run` for every result of a step: with its squares, and with its part of `out`.
pub(super) fn for_results(
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

/// The elements of `out` that a step writes, of rows of outputs of `width` elements, counted from the first that `out`
/// holds.
pub(super) fn written(
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
