//! Inner products of rows.

use std::ops::Range;

use super::form::{Form, Loads};
use super::product::{Factors, Scratch, Store, products};
use super::registers::Left;
use super::{Mode, cases};
use crate::error::Result;
use crate::gpu::{Caps, MatrixUnits};
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Cost, Fill, Kernel, Slice, Want, noise, widen_into};
use crate::kernels::shader;
use crate::reference;
use crate::shape::DType;

/// Inner products of the rows of two matrices, over ranges of rows and of their elements:
///
/// ```text
/// out[m, n] ← out[m, n] + Σ_p x[first_row + m, p] · y[first_column + n, p] ,  p in first..first + count
/// ```
///
/// - `x`    `[…, p]`, f32, f16 or bf16
/// - `y`    `[…, p]`, f32, f16 or bf16
/// - `out`  `[rows, columns]`, f32; with `overwrite` the old value is not read
///
/// With rows that are per-sample gradients (of some of the parameters at a time), this is a block of their Gram matrix
/// K[m, n] = ⟨g_m, g_n⟩; with a layer's inputs and its output gradients as rows, the factors of
/// Σ_{s,t} (b_ms · b_nt)(a_ms · a_nt); with one row y, the products ⟨g_m, Δ⟩ with a direction.
///
/// Must move the ranges and out once; 2·m·n·p operations. Sums are f32, one after the other: sum long rows in pieces,
/// and the pieces wider. Bitwise repeatable: each element has one owner and a fixed order. Nothing to sum gives zeros.
/// Definition: [`reference::fisher::inner_products`]. Cf. Wu et al., *An Improved Empirical Fisher
/// Approximation* (2024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gram {
    /// The shader's form.
    pub form: Form,
    /// Storage of x.
    pub x: DType,
    /// Storage of y.
    pub y: DType,
    /// Whether the old value is not read.
    pub overwrite: bool,
}

crate::params! {
    /// The numbers of one [`Gram`] step.
    pub struct GramParams {
        /// Elements of a row.
        len: u32,
        /// The first element of this step.
        first: u32,
        /// Elements of this step.
        count: u32,
        /// The first row of x.
        first_row: u32,
        /// Rows of x.
        rows: u32,
        /// The first row of y.
        first_column: u32,
        /// Rows of y.
        columns: u32,
    }
}

crate::args! {
    /// The buffers of one [`Gram`] step.
    pub struct GramArgs / GramSlices {
        /// x `[m, p]`.
        read x,
        /// y `[n, p]`.
        read y,
        /// The result `[rows, columns]`.
        write out,
    }
}

impl Kernel for Gram {
    const NAME: &'static str = "fisher.gram";
    type Params = GramParams;
    type Args = GramArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        self.form.parts(shader!("fisher/gram.wgsl"), shader!("lib/product/gather.wgsl"))
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let mut overrides = self.form.overrides().to_vec();
        overrides.extend(Mode::Gradients.overrides());
        overrides.extend([
            ("X", self.x.code().into()),
            ("Y", self.y.code().into()),
            ("OVERWRITE", f64::from(u8::from(self.overwrite))),
        ]);
        overrides
    }

    fn subgroup(&self) -> u32 {
        self.form.subgroup()
    }

    fn matrix_units(&self) -> Option<MatrixUnits> {
        self.form.matrix_units()
    }

    fn launch(&self, p: &GramParams, args: &GramArgs, caps: &Caps) -> Result<[u32; 3]> {
        super::check_range(Self::NAME, "elements", (p.first, p.count), p.len.into())?;
        let len = u64::from(p.len);
        for (what, view, dtype, range) in [
            ("x", &args.x, self.x, (p.first_row, p.rows)),
            ("y", &args.y, self.y, (p.first_column, p.columns)),
        ] {
            let rows = view.len().checked_div(len).unwrap_or(0);
            if len > 0 {
                super::check_range(Self::NAME, &format!("rows of {what}"), range, rows)?;
            }
            view.check(Self::NAME, what, super::len(Self::NAME, &[rows, len])?, Some(dtype.into()))?;
        }
        let (rows, columns) = (u64::from(p.rows), u64::from(p.columns));
        args.out.check(
            Self::NAME,
            "out",
            super::len(Self::NAME, &[rows, columns])?,
            Some(DType::F32.into()),
        )?;
        self.form.check_plain(Self::NAME)?;
        self.form.check_positions(Self::NAME, &[len, p.first.into()])?;
        self.form.grid(Self::NAME, 1, rows, columns, caps)
    }

    fn iterations(&self, p: &GramParams, _: &GramArgs) -> u64 {
        self.form.iterations(1, p.count.into())
    }

    fn host(&self, p: &GramParams, args: GramSlices<'_>) {
        let factors = Blocks {
            x: args.x,
            y: args.y,
            len: p.len as usize,
            first_row: p.first_row as usize,
            first_column: p.first_column as usize,
            elements: p.first as usize..p.first as usize + p.count as usize,
        };
        let blocks = factors.elements.len().div_ceil(BLOCK);
        let store = Store { overwrite: self.overwrite, decay: 1.0, gain: 1.0 };
        products(&factors, (p.rows as usize, p.columns as usize), 0..blocks, args.out.cast(), store);
    }

    fn cost(&self, p: &GramParams, _: &GramArgs) -> Cost {
        let [rows, columns, count] = [p.rows, p.columns, p.count].map(u64::from);
        let out = rows * columns * if self.overwrite { 4 } else { 8 };
        let factors = count * (rows * self.x.size() + columns * self.y.size());
        Cost { bytes: factors + out, flops: 2 * rows * columns * count }
    }
}

/// Elements of a block of the host's: where a result is small, its blocks are shared out to the cores.
const BLOCK: usize = 128;

struct Blocks<'a> {
    x: Slice<'a>,
    y: Slice<'a>,
    len: usize,
    first_row: usize,
    first_column: usize,
    elements: Range<usize>,
}

impl Blocks<'_> {
    /// Where some elements of a block start in a row.
    fn first(&self, block: usize, positions: &Range<usize>) -> usize {
        self.elements.start + block * BLOCK + positions.start
    }
}

/// A block's elements are its positions.
impl Factors for Blocks<'_> {
    const TILE: (usize, usize) = (258, 512);

    fn squared(&self) -> bool {
        false
    }

    fn positions(&self, block: usize) -> usize {
        BLOCK.min(self.elements.len() - block * BLOCK)
    }

    fn weight(&self, _: usize) -> f32 {
        1.0
    }

    fn start(&self, rows: &Range<usize>, row: usize) -> usize {
        (row - rows.start) * BLOCK
    }

    #[inline(always)]
    fn left<'a>(
        &'a self,
        block: usize,
        positions: &Range<usize>,
        rows: &Range<usize>,
        scratch: &'a mut Scratch,
    ) -> Left<'a> {
        let (first, run) = (self.first(block, positions), positions.len());
        let out = scratch.take(rows.len() * BLOCK);
        for (row, out) in rows.clone().zip(out.chunks_exact_mut(BLOCK)) {
            let start = (self.first_row + row) * self.len + first;
            widen_into(self.x.range(start, run), &mut out[..run]);
        }
        Left { values: out, run, pitch: 0, step: 1 }
    }

    #[inline(always)]
    fn right(
        &self,
        block: usize,
        positions: &Range<usize>,
        columns: &Range<usize>,
        scratch: &mut Scratch,
        out: &mut [f32],
        stride: usize,
    ) {
        let first = self.first(block, positions);
        out.chunks_exact_mut(stride).for_each(|out| out[columns.len()..].fill(0.0));
        let line = scratch.take(positions.len());
        for (column, row) in columns.clone().enumerate() {
            let start = (self.first_column + row) * self.len + first;
            widen_into(self.y.range(start, line.len()), line);
            out.iter_mut().skip(column).step_by(stride).zip(&*line).for_each(|(out, &y)| *out = y);
        }
    }
}

/// Rows of x, rows of y, their elements.
type Shape = (usize, usize, usize);

/// Around the edges of tiles (8, 64, 128), of the depth in workgroup memory (8), of the host's tiles (258 × 512) and
/// blocks (128 elements), of one and none.
const SHAPES: [Shape; 13] = [
    (0, 3, 5),
    (3, 0, 5),
    (3, 4, 0),
    (1, 1, 1),
    (7, 1, 9),
    (1, 9, 8),
    (8, 64, 7),
    (9, 65, 33),
    (65, 63, 5),
    (129, 257, 3),
    (259, 513, 2),
    (5, 3, 129),
    (3, 5, 5000),
];

impl Checked for Gram {
    fn cases() -> Vec<Case<Self>> {
        let mut out = Vec::new();
        for form in cases::FORMS.into_iter().chain(cases::MATRIX_FORMS) {
            let kernel = Self { form, x: DType::F32, y: DType::F32, overwrite: true };
            out.extend(SHAPES.map(|shape| case(kernel, shape, None)));
            for x in DType::ALL {
                for y in DType::ALL {
                    out.push(case(Self { x, y, ..kernel }, (11, 67, 19), None));
                }
            }
            let kernel = Self { overwrite: false, ..kernel };
            out.push(case(kernel, (9, 13, 21), None));
            out.push(case(kernel, (19, 23, 1040), Some([3, 1031, 2, 9, 5, 17])));
        }
        for loads in [Loads::Own, Loads::Shared] {
            let quads = Self { form: Form::Quads(loads), x: DType::F32, y: DType::F32, overwrite: true };
            let in_fours =
                [(7, 1, 4), (1, 9, 8), (18, 65, 36), (33, 63, 132), (3, 5, 5000), (3, 4, 0), (0, 3, 4)];
            out.extend(in_fours.map(|shape| case(quads, shape, None)));
            for x in DType::ALL {
                for y in DType::ALL {
                    out.push(case(Self { x, y, ..quads }, (11, 19, 68), None));
                }
            }
            // A range that ends between fours.
            let adding = Self { overwrite: false, ..quads };
            out.push(case(adding, (19, 23, 1040), Some([4, 1031, 2, 9, 5, 17])));
        }
        // More than one row of workgroups.
        let kernel = Self { form: Form::Direct, x: DType::F32, y: DType::F32, overwrite: true };
        out.push(case(kernel, (2048, 2050, 1), None));
        out
    }

    fn bench(elements: u64) -> Bench<Self> {
        let len = u32::try_from(elements / u64::from(ROWS)).unwrap_or(u32::MAX).clamp(16, 1 << 20);
        layer(&Caps::host(), len)
    }

    fn layers(caps: &Caps) -> Vec<Bench<Self>> {
        [16, 256, 4096, 65_536].map(|len| layer(caps, len)).into()
    }
}

/// Rows of a bench's matrices.
const ROWS: u32 = 256;

fn layer(caps: &Caps, len: u32) -> Bench<Gram> {
    let rows = u64::from(ROWS);
    let form = Form::of(caps, 1, rows, rows).for_positions(&[len.into()]).for_matrix_units(caps);
    let floats = |len: u64, fill| (DType::F32.into(), len, fill);
    Bench {
        name: format!("{ROWS} rows of {len} f32"),
        kernel: Gram { form, x: DType::F32, y: DType::F32, overwrite: true },
        params: whole((ROWS as usize, ROWS as usize, len as usize)),
        buffers: vec![
            floats(rows * u64::from(len), Fill::Noise),
            floats(rows * u64::from(len), Fill::Noise),
            floats(rows * rows, Fill::Zero),
        ],
    }
}

fn whole((rows, columns, len): Shape) -> GramParams {
    let [rows, columns, len] = [rows, columns, len].map(|x| u32::try_from(x).expect("cases are small"));
    GramParams { len, first: 0, count: len, first_row: 0, rows, first_column: 0, columns }
}

/// `range`: first element, their number, first row of x, their number, first row of y, their number.
fn case(kernel: Gram, shape: Shape, range: Option<[u32; 6]>) -> Case<Gram> {
    let (rows, columns, len) = shape;
    let mut params = whole(shape);
    if let Some([first, count, first_row, rows, first_column, columns]) = range {
        params = GramParams { len: params.len, first, count, first_row, rows, first_column, columns };
    }
    let x = CaseBuffer::floats(kernel.x, &noise(1, rows * len));
    let y = CaseBuffer::floats(kernel.y, &noise(2, columns * len));
    let results = params.rows as usize * params.columns as usize;
    let out = match kernel.overwrite {
        true => CaseBuffer::sentinel(DType::F32, results),
        false => CaseBuffer::floats(DType::F32, &noise(3, results)),
    };
    let rows_of = |buffer: &CaseBuffer, (first, count): (u32, u32)| -> Vec<Vec<f64>> {
        let values = buffer.values();
        let row =
            |m: u32| values[m as usize * len + params.first as usize..][..params.count as usize].to_vec();
        (first..first + count).map(row).collect()
    };
    let x_rows = rows_of(&x, (params.first_row, params.rows));
    let y_rows = rows_of(&y, (params.first_column, params.columns));
    let abs = |rows: &[Vec<f64>]| rows.iter().map(|row| cases::abs(row)).collect::<Vec<_>>();
    let sums = reference::fisher::inner_products(&x_rows, &y_rows);
    let magnitudes = reference::fisher::inner_products(&abs(&x_rows), &abs(&y_rows));
    let depth = f64::from(params.count) + 2.0;
    let tops = |rows: &[Vec<f64>]| rows.iter().map(|row| cases::tops(row, |_| 0)).collect::<Vec<_>>();
    let tops = reference::fisher::inner_products(&tops(&x_rows), &tops(&y_rows));
    let added =
        cases::added(kernel.form, std::slice::from_ref(&magnitudes), &[tops], params.count as usize).concat();
    let element = |(index, (old, sum)): (usize, (f64, f64))| {
        let old = if kernel.overwrite { 0.0 } else { old };
        let want = Want::computed(old + sum, old.abs() + magnitudes[index], depth, DType::F32);
        Want { bound: want.bound + added.get(index).unwrap_or(&0.0), ..want }
    };
    let want = out.values().into_iter().zip(sums).enumerate().map(element).collect();
    Case {
        name: format!("{kernel:?} m,n,p={shape:?} range={range:?}"),
        kernel,
        params,
        buffers: vec![x, y, out],
        want: vec![(2, want)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Backend;
    use crate::verify;

    /// The oracle is seen to fail: the last element left out, and rows taken for columns.
    #[test]
    fn a_missing_element_and_swapped_rows_are_found() {
        let kernel = Gram { form: Form::Direct, x: DType::F32, y: DType::F32, overwrite: true };
        let mut short = case(kernel, (7, 9, 33), None);
        short.params.count -= 1;
        let mut swapped = case(kernel, (7, 7, 33), None);
        swapped.buffers.swap(0, 1);
        assert_eq!(verify::kernel(&Backend::Host, vec![short, swapped]).failures.len(), 2);
    }
}
