//! Which of an optimizer's tensors is its squared-gradient accumulator, and what a factor makes of it.
//!
//! ```text
//! v_t = β v_{t−1} + (1−β) ḡ²        Adam and kin (exp_avg_sq, β = betas[1]), RMSprop (square_avg, alpha), Adadelta (square_avg, rho)
//! v_t = v_{t−1} + ḡ²                Adagrad (sum, without the v_0 that it starts from: initial_accumulator_value)
//! v_ij = r_i c_j / mean(r)          Adafactor, whose row and column means r and c are kept; vectors are kept whole
//! v[i] = qmap2[code[i]] · absmax2[i / block]      8-bit Adam of bitsandbytes
//! ```
//!
//! ḡ is the *mean* gradient of a batch. What an optimizer stores under a familiar key may still be another
//! quantity (`GaLore`'s is projected, SOAP's rotated, Prodigy's weighted): [`OTHER_QUANTITIES`] tells them by
//! the company they keep, and they are refused.

use serde::Serialize;

use super::optimizer::{OptimizerState, ParamGroup, StateEntry, contents, narrow};
use crate::error::{Error, Result, printable};
use crate::shape::shape_text;

/// A squared-gradient accumulator, by the rule that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Accumulator {
    /// `exp_avg_sq` of Adam, AdamW, NAdam, RAdam.
    ExpAvgSq,
    /// `max_exp_avg_sq` of an AMSGrad run: the largest `exp_avg_sq` so far, per element. Another quantity; on
    /// request only.
    MaxExpAvgSq,
    /// `square_avg` of RMSprop.
    SquareAvgRmsprop,
    /// `square_avg` of Adadelta.
    SquareAvgAdadelta,
    /// `sum` of Adagrad: a sum over steps, read without the value that it started from.
    Sum,
    /// `row_var` and `col_var` of torch's Adafactor.
    FactorsTorch,
    /// `exp_avg_sq_row` and `exp_avg_sq_col` of the Adafactor of transformers and fairseq.
    FactorsTransformers,
    /// A vector that Adafactor keeps whole, `variance` in torch.
    WholeTorch,
    /// A vector that Adafactor keeps whole, `exp_avg_sq` in transformers and fairseq.
    WholeTransformers,
    /// `state2` of an 8-bit Adam, as codes.
    EightBit,
    /// `state2` of an 8-bit Adam where the tensor was too small to be quantised.
    EightBitWhole,
}

/// Keys of a state or its group that show that a familiar accumulator means something else.
const OTHER_QUANTITIES: &[(&str, &str)] = &[
    ("projector", "GaLore keeps it in a projected space of low rank, not per parameter"),
    ("update_proj_gap", "GaLore keeps it in a projected space of low rank, not per parameter"),
    ("GG", "SOAP keeps it in a rotated basis, not per parameter"),
    ("exp_avg_diff", "Adan squares a sum of gradients and their differences"),
    ("d_coef", "Prodigy weights every step by its own estimate of the distance"),
    ("max2", "8-bit states without blocks are not read; run with block-wise quantisation"),
    ("new_max2", "8-bit states without blocks are not read; run with block-wise quantisation"),
];

/// Keys that optimizers without squares of gradients keep, the telling ones first.
const NO_SQUARES: &[(&str, &str)] = &[
    ("exp_inf", "Adamax keeps a maximum of |gradient|, which is not a sum of squares"),
    ("exp_avg_var", "AdaBelief keeps the variance of the gradient around its mean"),
    (
        "hessian",
        "Sophia keeps an estimate of the Hessian, which is not made of squared gradients of the data's labels",
    ),
    ("vmean", "Adam-mini keeps one mean per block, not one value per parameter"),
    ("momentum_buffer", "SGD and Muon keep a momentum: averages of gradients, not of their squares"),
    ("state1", "an 8-bit optimizer with one state keeps a momentum, or does not say what it keeps"),
    ("exp_avg", "Lion keeps a momentum: averages of gradients, not of their squares"),
];

impl Accumulator {
    /// Tell an entry's accumulator by its keys and its group's.
    pub(crate) fn of(entry: &StateEntry, group: &ParamGroup, max: bool) -> Result<Self, String> {
        let has = |key: &str| entry.tensors.contains_key(key);
        let known = |key: &&(&str, &str)| entry.keys.iter().chain(&group.keys).any(|k| k == key.0);
        if let Some((key, reason)) = OTHER_QUANTITIES.iter().find(known) {
            return Err(format!(
                "its {} shows that {reason}; refused (keys: {})",
                printable(key),
                contents(entry)
            ));
        }
        if max {
            return if has("max_exp_avg_sq") {
                Ok(Self::MaxExpAvgSq)
            } else {
                Err(format!("has no max_exp_avg_sq, the run was not AMSGrad (keys: {})", contents(entry)))
            };
        }
        let adafactor = group.betas.is_none() && group.keys.iter().any(|k| k == "decay_rate");
        match () {
            () if has("row_var") && has("col_var") => Ok(Self::FactorsTorch),
            () if has("exp_avg_sq_row") && has("exp_avg_sq_col") => Ok(Self::FactorsTransformers),
            () if has("exp_avg_sq") && adafactor => Ok(Self::WholeTransformers),
            () if has("exp_avg_sq") => Ok(Self::ExpAvgSq),
            () if has("variance") => Ok(Self::WholeTorch),
            () if has("state2") && has("qmap2") && has("absmax2") => Ok(Self::EightBit),
            () if has("state2") && !has("qmap2") => Ok(Self::EightBitWhole),
            () if has("square_avg") => Self::square_avg(group),
            () if has("sum") => Ok(Self::Sum),
            () => Err(refusal(entry)),
        }
    }

    /// `square_avg` is RMSprop's or Adadelta's; the group's decay tells.
    fn square_avg(group: &ParamGroup) -> Result<Self, String> {
        let has = |key: &str| group.keys.iter().any(|k| k == key);
        match (has("alpha"), has("rho")) {
            (true, false) => Ok(Self::SquareAvgRmsprop),
            (false, true) => Ok(Self::SquareAvgAdadelta),
            _ => Err("square_avg with neither or both of alpha (RMSprop) and rho (Adadelta) in its group: its rule is unknown".into()),
        }
    }

    /// The key of its (first) tensor.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::ExpAvgSq | Self::WholeTransformers => "exp_avg_sq",
            Self::MaxExpAvgSq => "max_exp_avg_sq",
            Self::SquareAvgRmsprop | Self::SquareAvgAdadelta => "square_avg",
            Self::Sum => "sum",
            Self::FactorsTorch => "row_var",
            Self::FactorsTransformers => "exp_avg_sq_row",
            Self::WholeTorch => "variance",
            Self::EightBit | Self::EightBitWhole => "state2",
        }
    }

    /// The key of Adafactor's column factors.
    const fn column_key(self) -> &'static str {
        match self {
            Self::FactorsTorch => "col_var",
            _ => "exp_avg_sq_col",
        }
    }

    /// The decay β of the moving average, where its group says it.
    #[must_use]
    pub fn decay(self, group: &ParamGroup) -> Option<f64> {
        match self {
            Self::SquareAvgRmsprop => group.alpha,
            Self::SquareAvgAdadelta => group.rho,
            Self::ExpAvgSq | Self::MaxExpAvgSq | Self::EightBit | Self::EightBitWhole => {
                group.betas.map(|b| b.1)
            }
            _ => None,
        }
    }

    /// Whether it starts from zero and is meant to be divided by 1 − β^step.
    #[must_use]
    pub const fn needs_bias_correction(self) -> bool {
        matches!(self, Self::ExpAvgSq | Self::MaxExpAvgSq | Self::EightBit | Self::EightBitWhole)
    }

    /// The shape of the parameter it belongs to.
    pub(crate) fn param_shape(self, entry: &StateEntry) -> Result<Vec<u64>, String> {
        let shape =
            |key: &str| entry.tensors.get(key).map(|t| t.shape.clone()).ok_or(format!("{key} is missing"));
        let (row, col) = match self {
            Self::FactorsTorch => {
                let (mut row, col) = (shape("row_var")?, shape("col_var")?);
                if row.pop() != Some(1) || col.len() != row.len() + 1 {
                    return Err(misfit(&shape("row_var")?, &col));
                }
                let mut flat = col.clone();
                if flat.remove(col.len().saturating_sub(2)) != 1 {
                    return Err(misfit(&shape("row_var")?, &col));
                }
                (row, flat)
            }
            Self::FactorsTransformers => (shape("exp_avg_sq_row")?, shape("exp_avg_sq_col")?),
            _ => return shape(self.key()),
        };
        let fits = row.len() == col.len() && row.split_last().map(|l| l.1) == col.split_last().map(|l| l.1);
        match (fits, col.last()) {
            (true, Some(&columns)) => Ok([row, vec![columns]].concat()),
            _ => Err(misfit(&row, &col)),
        }
    }

    /// Read it whole, as f32.
    pub(crate) fn read(self, state: &OptimizerState, entry: &StateEntry) -> Result<Vec<f32>> {
        match self {
            Self::FactorsTorch | Self::FactorsTransformers => self.read_factors(state, entry),
            Self::EightBit => read_eight_bit(state, entry),
            Self::Sum => state.read_above(entry, self.key(), state.group(entry).initial_accumulator_value),
            _ => state.read_floats(entry, self.key()),
        }
    }

    /// `v_ij` = `r_i` `c_j` / mean(r), per matrix where the parameter has more than two axes. Where r is all 0 so is v.
    fn read_factors(self, state: &OptimizerState, entry: &StateEntry) -> Result<Vec<f32>> {
        let shape = state.param_shape(entry, self)?;
        let row = state.read_floats(entry, self.key())?;
        let col = state.read_floats(entry, self.column_key())?;
        let (rows, cols) = match shape.as_slice() {
            [.., rows, cols] => (length(*rows), length(*cols)),
            _ => (0, 0),
        };
        if rows == 0 || cols == 0 {
            return Ok(Vec::new());
        }
        let mut values = Vec::with_capacity(row.len().saturating_mul(cols));
        for (r, c) in row.chunks_exact(rows).zip(col.chunks_exact(cols)) {
            #[expect(clippy::cast_precision_loss, reason = "a mean; an axis is far below 2^53")]
            let mean = r.iter().map(|&x| f64::from(x)).sum::<f64>() / rows as f64;
            for &ri in r {
                let share = if mean == 0.0 { 0.0 } else { f64::from(ri) / mean };
                for &cj in c {
                    let value = narrow(share * f64::from(cj), values.len());
                    let value = value.map_err(|p| Error::tensor(state.path(), entry.label(self.key()), p))?;
                    values.push(value);
                }
            }
        }
        Ok(values)
    }
}

fn misfit(row: &[u64], col: &[u64]) -> String {
    format!("row factors {} and column factors {} belong to no one shape", shape_text(row), shape_text(col))
}

/// A length that is already in memory fits `usize`; one that is not ends as 0 elements read.
fn length(n: u64) -> usize {
    usize::try_from(n).unwrap_or(0)
}

/// v[i] = qmap2[code[i]] · absmax2[i / block].
///
/// The block is not stored. bitsandbytes uses powers of two (256, formerly 2048), and for more than one block
/// at most one power of two gives the number of blocks that is there.
fn read_eight_bit(state: &OptimizerState, entry: &StateEntry) -> Result<Vec<f32>> {
    let refuse = |problem: String| Err(Error::tensor(state.path(), entry.label("state2"), problem));
    let codes = state.read_codes(entry, "state2")?;
    let map = state.read_floats(entry, "qmap2")?;
    let scales = state.read_floats(entry, "absmax2")?;
    if map.len() != 256 {
        return refuse(format!("qmap2 has {} values, expected 256", map.len()));
    }
    let Some(block) = block_length(codes.len(), scales.len()) else {
        return refuse(format!(
            "{} codes with {} block scales: no power of two is their block",
            codes.len(),
            scales.len()
        ));
    };
    Ok(codes.iter().enumerate().map(|(i, &code)| map[usize::from(code)] * scales[i / block]).collect())
}

/// The power of two b with ceil(len / b) = blocks.
fn block_length(len: usize, blocks: usize) -> Option<usize> {
    (6..=30).map(|bits| 1_usize << bits).find(|&b| len.div_ceil(b) == blocks)
}

/// Why an entry has no accumulator: the keys it has, and what their optimizer keeps instead.
fn refusal(entry: &StateEntry) -> String {
    for key in
        ["exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "state2", "row_var", "col_var", "variance"]
    {
        if let Some(import) = entry.foreign(key) {
            return format!(
                "{key} would have to be made by {}, which is not followed: refused (a tensor subclass? save its dequantised values)",
                printable(import)
            );
        }
    }
    let reason = NO_SQUARES.iter().find(|(key, _)| entry.keys.iter().any(|k| k == key));
    let reason = reason.map_or("no key of it is a known squared-gradient accumulator", |(_, reason)| reason);
    format!("holds no squared-gradient accumulator: {reason} (keys: {})", contents(entry))
}

/// What an accumulator is multiplied by.
///
/// `E[ḡ²] = μ² + (E[g²] − μ²)/B` and μ ≈ 0 after training, hence B; a mean over N samples becomes a sum by N.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// v, as stored. Right wherever a common scale cancels.
    Raw,
    /// v̂ = v / (1 − β^step); v itself where the optimizer corrects nothing; v / step for Adagrad's sum.
    Unbiased,
    /// B · v̂: estimates the mean empirical Fisher.
    Mean,
    /// N · B · v̂: estimates the summed empirical Fisher.
    Sum,
    /// N · v, the scale of *Fishers for Free?* (Li et al., ICML 2025) for EWC.
    Paper,
}

impl Scale {
    /// Every scale, `raw` first.
    pub const ALL: [Self; 5] = [Self::Raw, Self::Unbiased, Self::Mean, Self::Sum, Self::Paper];

    /// Its name on the command line and in metadata.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Unbiased => "unbiased",
            Self::Mean => "mean",
            Self::Sum => "sum",
            Self::Paper => "paper",
        }
    }

    /// The factor for one parameter.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the flag where B or N is needed and not given; [`Error::Tensor`] where the
    /// step or the decay is needed and the state has none or an impossible one.
    pub fn factor(
        self,
        accumulator: Accumulator,
        state: &OptimizerState,
        entry: &StateEntry,
        batch_size: Option<u64>,
        samples: Option<u64>,
    ) -> Result<f64> {
        let b = || positive(self, "batch size", "--batch-size", batch_size);
        let n = || positive(self, "number of samples", "--samples", samples);
        let unbiased = || correction(accumulator, state, entry);
        Ok(match self {
            Self::Raw => 1.0,
            Self::Unbiased => unbiased()?,
            Self::Mean => b()? * unbiased()?,
            Self::Sum => n()? * b()? * unbiased()?,
            Self::Paper => n()?,
        })
    }
}

impl std::fmt::Display for Scale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Scale {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let unknown = || {
            Error::argument("extract", format!("scale \"{s}\" is not one of raw, unbiased, mean, sum, paper"))
        };
        Self::ALL.into_iter().find(|scale| scale.name() == s).ok_or_else(unknown)
    }
}

fn positive(scale: Scale, what: &str, flag: &str, value: Option<u64>) -> Result<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a factor, rounded once")]
    match value {
        Some(0) => Err(Error::argument("extract", format!("{flag} is 0, expected at least 1"))),
        Some(value) => Ok(value as f64),
        None => Err(Error::argument(
            "extract",
            format!("scale {scale} needs the {what} of the training run: pass {flag}"),
        )),
    }
}

/// What makes v̂ of v.
fn correction(accumulator: Accumulator, state: &OptimizerState, entry: &StateEntry) -> Result<f64> {
    if accumulator == Accumulator::Sum {
        return Ok(1.0 / step(state, entry)?);
    }
    if !accumulator.needs_bias_correction() {
        return Ok(1.0);
    }
    let group = state.group(entry);
    let tensor = entry.label(accumulator.key());
    let Some(beta) = accumulator.decay(group) else {
        let found = group
            .foreign("betas")
            .map_or("has no betas".into(), |by| format!("has betas made by {}", printable(by)));
        let problem =
            format!("its group {found}, which 1 − β^step needs; only --scale raw and paper are possible");
        return Err(Error::tensor(state.path(), tensor, problem));
    };
    if !(0.0..1.0).contains(&beta) {
        return Err(Error::tensor(state.path(), tensor, format!("β₂ is {beta}, expected 0 ≤ β₂ < 1")));
    }
    // 1 − β^step without cancellation; β = 0 gives 1.
    Ok(-1.0 / (step(state, entry)? * beta.ln()).exp_m1())
}

fn step(state: &OptimizerState, entry: &StateEntry) -> Result<f64> {
    let refuse = |problem: String| Err(Error::tensor(state.path(), entry.label("step"), problem));
    match entry.step {
        Some(step) if step.is_finite() && step >= 1.0 => Ok(step),
        Some(step) => {
            refuse(format!("is {step}, expected at least 1; only --scale raw and paper are possible"))
        }
        None => {
            let found = entry
                .foreign("step")
                .map_or("is missing".into(), |by| format!("was made by {}", printable(by)));
            refuse(format!("{found}, which this scale needs; only --scale raw and paper are possible"))
        }
    }
}

/// The largest |m| / √v that Adam's own recursions allow, or nothing where they allow any.
///
/// Cauchy–Schwarz: m² ≤ v · (1−β₁)² / ((1−β₂)(1−β₁²/β₂)). 7.27 at (0.9, 0.999).
#[must_use]
pub fn momentum_bound(beta1: f64, beta2: f64) -> Option<f64> {
    let r = beta1 * beta1 / beta2;
    let usable = (0.0..1.0).contains(&beta1) && beta2 > 0.0 && beta2 < 1.0 && r < 1.0;
    usable.then(|| (1.0 - beta1) / ((1.0 - beta2) * (1.0 - r)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_momentum_bound_at_the_default_betas() {
        let c = momentum_bound(0.9, 0.999).unwrap();
        assert!((c - 7.27).abs() < 0.005, "{c}");
        assert_eq!(momentum_bound(0.999, 0.9), None);
    }

    #[test]
    fn the_block_is_the_one_power_of_two_that_fits() {
        assert_eq!(block_length(4096, 16), Some(256));
        assert_eq!(block_length(4097, 17), Some(256));
        assert_eq!(block_length(4096, 2), Some(2048));
        assert_eq!(block_length(4096, 3), None);
        assert_eq!(block_length(4096, 0), None);
        assert_eq!(block_length(0, 0), Some(64));
    }
}
