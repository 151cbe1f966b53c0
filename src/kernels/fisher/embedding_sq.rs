//! Squared per-sample gradients of an embedding's rows.

mod cases;

use rayon::prelude::*;

use super::Mode;
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernel::{Cost, Kernel, Slice, groups_for, widen_into};
use crate::kernels::{DTYPE, ELEMENT, WORKGROUP, shader};
use crate::memory::Element;
use crate::shape::DType;

/// Sum over samples of the squared gradients of an embedding's rows:
///
///   S[r, d] = Σ_n weight_n · (gradient_scale · Σ_{t: id_nt = r} b[n, t, d])²
///   out[r, d] ← decay · out[r, d] + gain · S[r, d]      for the listed rows r
///
/// - `grad_output`  b `[n, t, d]`, f32, f16 or bf16, of the *summed* loss
/// - `positions`, `run_…`, `owner_…`: which positions belong to which row, from an [`EmbeddingIndex`]
/// - `weight`       `[n]` f32
/// - `out`          `[r, d]` f32
///
/// The ids of a sample that repeat add **before** squaring. With `decay` 0 the old value is not read (overwrite), with
/// 1 the sum is added, between them it is a moving average. Rows that the index does not list stay as they are.
/// `gradient_scale` is a power of two that keeps the squares of gradients below 1e-19 from vanishing; `gain` undoes it.
/// A sample of weight 0 is left out, whatever it holds. With [`Mode::Gradients`] the sums themselves are weighted and
/// added; with an index [by run](EmbeddingIndex::by_run) that gives the gradient of every sample and row. To square the
/// sum over several samples, index them as one.
///
/// No one-hot matrix and no work on rows that no sample names. Reads each element of b once, writes each
/// listed row once: 4·n·t·d + 8·r·d bytes, n·t·d additions. Bitwise repeatable: a row has one owner, which
/// walks samples and positions in their order. A row that very many positions share is one long sum.
/// Definition: [`reference::embedding::gradients`](crate::reference::embedding::gradients).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddingSq {
    /// What becomes of the gradients: squares or gradients.
    pub mode: Mode,
    /// Storage of the gradient.
    pub gradient: DType,
    /// Whether an invocation has eight neighbouring elements of a row: see [`EmbeddingSq::together`].
    pub together: bool,
}

impl EmbeddingSq {
    /// Whether rows of `dim` elements are taken eight at a time: on devices where loads are what is paid for, if they
    /// come in eights.
    #[must_use]
    pub fn together(caps: &Caps, dim: u32) -> bool {
        caps.is_software_device() && dim.is_multiple_of(8)
    }
}

crate::params! {
    /// The numbers of one [`EmbeddingSq`] step.
    pub struct EmbeddingSqParams {
        /// Rows that the index lists.
        owners: u32,
        /// Elements of a row.
        dim: u32,
        /// Factor of a sample's gradient before it is squared.
        gradient_scale: f32,
        /// Factor of the old value; 0 does not read it.
        decay: f32,
        /// Factor of the sum.
        gain: f32,
    }
}

crate::args! {
    /// The buffers of one [`EmbeddingSq`] step.
    pub struct EmbeddingSqArgs / EmbeddingSqSlices {
        /// b `[n, t, d]`.
        read grad_output,
        /// Positions in the order of row, sample, position, u32.
        read positions,
        /// The first entry of `positions` of each sample of a row, and their number, u32.
        read run_start,
        /// The sample of each run, u32.
        read run_sample,
        /// The first run of each listed row, and their number, u32.
        read owner_run,
        /// The listed rows, ascending, u32.
        read owner_row,
        /// `[n]`.
        read weight,
        /// `[r, d]`, updated in place.
        write out,
    }
}

/// Which positions belong to which row: what [`EmbeddingSq`] walks. Pure data, made on the host by one stable sort.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmbeddingIndex {
    /// Positions in the order of row, sample, position.
    pub positions: Vec<u32>,
    /// The first entry of `positions` of each sample of a row, and their number.
    pub run_start: Vec<u32>,
    /// The sample of each run.
    pub run_sample: Vec<u32>,
    /// The first run of each listed row, and their number.
    pub owner_run: Vec<u32>,
    /// The listed rows, ascending.
    pub owner_row: Vec<u32>,
}

/// Which rows an [`EmbeddingIndex`] lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// Those that a position names: what is enough to add to the others.
    Touched,
    /// All of them: what overwriting and a moving average need.
    All,
}

impl EmbeddingIndex {
    /// The index of `ids` `[n, t]` with `t` = `positions` ids a sample, over the rows `first..first + count`; other ids
    /// are passed over. Rows are counted from `first`.
    ///
    /// # Errors
    /// [`Error::Limit`] for 2³² ids or more.
    pub fn new(ids: &[u32], positions: usize, (first, count): (u32, u32), listed: Listed) -> Result<Self> {
        super::len(EmbeddingSq::NAME, &[ids.len() as u64])?;
        let inside = |&(row, _): &(u32, u32)| row < count;
        let mut order: Vec<(u32, u32)> =
            ids.iter().zip(0..).map(|(&id, at)| (id.wrapping_sub(first), at)).filter(inside).collect();
        // The pair is unique, so an unstable sort gives one order.
        order.par_sort_unstable();
        let mut index = Self { positions: Vec::with_capacity(order.len()), ..Self::default() };
        let rows = order.chunk_by(|a, b| a.0 == b.0);
        let mut next = 0;
        for row in rows {
            if listed == Listed::All {
                index.own_empty(next..row[0].0);
            }
            next = row[0].0 + 1;
            index.own(row, positions);
        }
        if listed == Listed::All {
            index.own_empty(next..count);
        }
        index.run_start.push(small(index.positions.len()));
        index.owner_run.push(small(index.run_sample.len()));
        Ok(index)
    }

    /// The index with every run (a sample's positions of one row) as its own row: row j is run j, of the sample
    /// `run_sample[j]`.
    #[must_use]
    pub fn by_run(mut self) -> Self {
        let runs = small(self.run_sample.len());
        self.owner_row = (0..runs).collect();
        self.owner_run = (0..=runs).collect();
        self
    }

    fn own_empty(&mut self, rows: std::ops::Range<u32>) {
        self.owner_run.extend(rows.clone().map(|_| small(self.run_sample.len())));
        self.owner_row.extend(rows);
    }

    /// Lists a row with its positions, ascending.
    fn own(&mut self, row: &[(u32, u32)], positions: usize) {
        self.owner_run.push(small(self.run_sample.len()));
        self.owner_row.push(row[0].0);
        let sample = |entry: &(u32, u32)| entry.1 as usize / positions;
        for run in row.chunk_by(|a, b| sample(a) == sample(b)) {
            self.run_start.push(small(self.positions.len()));
            self.run_sample.push(small(sample(&run[0])));
            self.positions.extend(run.iter().map(|entry| entry.1));
        }
    }
}

fn small(count: usize) -> u32 {
    u32::try_from(count).expect("no more runs or samples than positions, which fit u32")
}

impl Kernel for EmbeddingSq {
    const NAME: &'static str = "fisher.embedding_sq";
    type Params = EmbeddingSqParams;
    type Args = EmbeddingSqArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("fisher/embedding_sq.wgsl"), DTYPE, ELEMENT]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let [squared, _] = self.mode.overrides();
        let together = ("TOGETHER", f64::from(u8::from(self.together)));
        vec![("WORKGROUP", WORKGROUP.into()), ("GRADIENT", self.gradient.code().into()), squared, together]
    }

    fn launch(&self, params: &EmbeddingSqParams, args: &EmbeddingSqArgs, caps: &Caps) -> Result<[u32; 3]> {
        let expect = |view: &crate::View, what, len| view.check(Self::NAME, what, len, Some(Element::U32));
        if self.mode.each() {
            let problem =
                "a result for every square; index each run as its own row instead (EmbeddingIndex::by_run)";
            return Err(Error::argument(Self::NAME, problem));
        }
        if self.together && !params.dim.is_multiple_of(8) {
            let problem =
                format!("rows of {} elements, which do not come in the eights of `together`", params.dim);
            return Err(Error::argument(Self::NAME, problem));
        }
        let dim = u64::from(params.dim);
        args.grad_output.check(
            Self::NAME,
            "grad_output",
            args.grad_output.len(),
            Some(self.gradient.into()),
        )?;
        expect(&args.positions, "positions", args.positions.len())?;
        expect(&args.run_start, "run_start", args.run_sample.len() + 1)?;
        expect(&args.run_sample, "run_sample", args.run_sample.len())?;
        expect(&args.owner_run, "owner_run", u64::from(params.owners) + 1)?;
        expect(&args.owner_row, "owner_row", params.owners.into())?;
        args.weight.check(Self::NAME, "weight", args.weight.len(), Some(Element::F32))?;
        args.out.check(Self::NAME, "out", args.out.len(), Some(Element::F32))?;
        for (what, view) in [("grad_output", &args.grad_output), ("out", &args.out)] {
            if dim > 0 && !view.len().is_multiple_of(dim) {
                let got = format!("{} elements", view.len());
                return Err(Error::shape(Self::NAME, what, format!("whole rows of {dim}"), got));
            }
            super::len(Self::NAME, &[view.len()])?;
        }
        let items = u64::from(params.owners) * dim;
        if items > args.out.len() {
            let expected = format!("at least the {} rows that are listed", params.owners);
            return Err(Error::shape(Self::NAME, "out", expected, format!("{} elements", args.out.len())));
        }
        if items == 0 {
            return Ok([0, 1, 1]);
        }
        let of_group = if self.together { 8 * WORKGROUP } else { WORKGROUP };
        groups_for(Self::NAME, items, of_group.into(), caps)
    }

    /// As if one row had every position: how long the longest is, only the buffers say.
    fn iterations(&self, _: &EmbeddingSqParams, args: &EmbeddingSqArgs) -> u64 {
        2 * args.run_sample.len() + args.positions.len()
    }

    fn host(&self, params: &EmbeddingSqParams, args: EmbeddingSqSlices<'_>) {
        let dim = params.dim as usize;
        let walk = Walk {
            params,
            squared: self.mode.squared(),
            gradient: args.grad_output,
            positions: args.positions.cast(),
            run_start: args.run_start.cast(),
            run_sample: args.run_sample.cast(),
            weight: args.weight.cast(),
        };
        let rows = listed_rows(args.out.cast(), args.owner_row.cast(), dim);
        rows.into_par_iter().zip(args.owner_run.cast::<u32>().par_windows(2)).for_each_init(
            || (vec![0.0; dim], vec![0.0; dim], vec![0.0; dim]),
            |scratch, (row, runs)| walk.row(row, runs[0] as usize..runs[1] as usize, scratch),
        );
    }

    fn cost(&self, params: &EmbeddingSqParams, args: &EmbeddingSqArgs) -> Cost {
        let (dim, positions) = (u64::from(params.dim), args.positions.len());
        let kept = if params.decay == 0.0 { 1 } else { 2 };
        let rows = kept * 4 * u64::from(params.owners) * dim;
        let runs = args.run_sample.len();
        let index = 4 * (positions + 2 * runs + 2 * args.owner_row.len() + args.weight.len());
        // Each position is added; each run is scaled, squared, weighted and added.
        Cost {
            bytes: positions * dim * self.gradient.size() + rows + index,
            flops: dim * (positions + 4 * runs),
        }
    }
}

/// The rows of `out` that are listed, ascending.
fn listed_rows<'a>(out: &'a mut [f32], owners: &[u32], dim: usize) -> Vec<&'a mut [f32]> {
    let mut rest = out;
    let mut at = 0;
    let mut rows = Vec::with_capacity(owners.len());
    for &row in owners {
        let row = row as usize;
        let (found, after) = std::mem::take(&mut rest)[(row - at) * dim..].split_at_mut(dim);
        rows.push(found);
        rest = after;
        at = row + 1;
    }
    rows
}

/// What the host execution needs for every row.
struct Walk<'a> {
    params: &'a EmbeddingSqParams,
    squared: bool,
    gradient: Slice<'a>,
    positions: &'a [u32],
    run_start: &'a [u32],
    run_sample: &'a [u32],
    weight: &'a [f32],
}

impl Walk<'_> {
    /// One row: `scratch` is a position's gradient, a sample's, and the sum.
    fn row(
        &self,
        out: &mut [f32],
        runs: std::ops::Range<usize>,
        scratch: &mut (Vec<f32>, Vec<f32>, Vec<f32>),
    ) {
        let (position, sample, sum) = scratch;
        sum.fill(0.0);
        for run in runs {
            sample.fill(0.0);
            let entries = self.run_start[run] as usize..self.run_start[run + 1] as usize;
            for &at in &self.positions[entries] {
                widen_into(self.gradient.range(at as usize * out.len(), out.len()), position);
                sample.iter_mut().zip(&*position).for_each(|(sample, b)| *sample += b);
            }
            self.add(sum, sample, self.weight[self.run_sample[run] as usize]);
        }
        let EmbeddingSqParams { decay, gain, .. } = *self.params;
        if decay == 0.0 {
            out.iter_mut().zip(&*sum).for_each(|(out, sum)| *out = gain * sum);
        } else {
            out.iter_mut().zip(&*sum).for_each(|(out, sum)| *out = decay * *out + gain * sum);
        }
    }

    fn add(&self, sum: &mut [f32], sample: &[f32], weight: f32) {
        if weight == 0.0 {
            return;
        }
        let scale = self.params.gradient_scale;
        for (sum, sample) in sum.iter_mut().zip(sample) {
            let g = scale * sample;
            *sum += weight * if self.squared { g * g } else { g };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_orders_by_row_then_sample_then_position() {
        // Two samples of four positions; row 5 is beyond the rows asked for.
        let ids = [3, 1, 3, 5, 1, 1, 3, 2];
        let index = EmbeddingIndex::new(&ids, 4, (1, 4), Listed::Touched).expect("small");
        assert_eq!(index.owner_row, [0, 1, 2], "rows 1, 2, 3, counted from 1");
        assert_eq!(index.owner_run, [0, 2, 3, 5]);
        assert_eq!(index.run_sample, [0, 1, 1, 0, 1]);
        assert_eq!(index.run_start, [0, 1, 3, 4, 6, 7]);
        assert_eq!(index.positions, [1, 4, 5, 7, 0, 2, 6]);
        let all = EmbeddingIndex::new(&ids, 4, (0, 5), Listed::All).expect("small");
        assert_eq!(all.owner_row, [0, 1, 2, 3, 4]);
        assert_eq!(all.owner_run, [0, 0, 2, 3, 5, 5]);
    }

    #[test]
    fn an_index_by_run_gives_every_run_a_row() {
        let ids = [3, 1, 3, 5, 1, 1, 3, 2];
        let index = EmbeddingIndex::new(&ids, 4, (1, 4), Listed::Touched).expect("small").by_run();
        assert_eq!(index.owner_row, [0, 1, 2, 3, 4]);
        assert_eq!(index.owner_run, [0, 1, 2, 3, 4, 5]);
        assert_eq!(index.run_sample, [0, 1, 1, 0, 1]);
    }
}
