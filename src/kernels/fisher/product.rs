//! What the product kernels share: the forms of their shaders, and their host execution.
//!
//! On the host, the result is cut into tiles that stay in a core's second-level cache. For each tile and square, one
//! single-threaded matrix product (by `faer`) fills a scratch tile, whose squares are added to a second one. So the
//! memory in use is a few tiles a thread, whatever the number of samples.
//!
//! The cut depends on the shape alone, and a tile's squares are added in order: results do not depend on the number
//! of threads. Where a result has too few tiles to keep many cores busy, its squares are cut into runs whose sums
//! are then added in order.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::error::Result;
use crate::gpu::{Caps, DeviceClass};
use crate::kernel::groups_of;
use crate::kernels::{DTYPE, ELEMENT, shader};

/// The form of a product kernel's shader. The host execution is the same for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Workgroup memory: `x` × `y` invocations (`y` even) own 8y rows × 8x columns. For GPUs.
    Tile {
        /// Invocations along the columns.
        x: u32,
        /// Invocations along the rows.
        y: u32,
    },
    /// Registers only: a workgroup owns 8 rows × 64 columns. For processors behind a graphics interface.
    Register,
    /// One invocation an element. For depthwise and other narrow groups.
    Direct,
}

const REGISTER_LANES: u32 = 16;
const DIRECT_LANES: u32 = 64;

impl Form {
    /// The form for `blocks` matrices of rows × columns on a device.
    #[must_use]
    pub fn of(caps: &Caps, blocks: u64, rows: u64, columns: u64) -> Self {
        const LARGE: Form = Form::Tile { x: 16, y: 16 };
        const SMALL: Form = Form::Tile { x: 8, y: 8 };
        // Below this share of a small tile in use, the direct form wastes less.
        let narrow = rows * columns < 16 * 16;
        if blocks > 1 && narrow {
            return Self::Direct;
        }
        if caps.class == DeviceClass::Software {
            return Self::Register;
        }
        // Large tiles load half as much, if there are enough of them to fill a large device.
        if LARGE.groups(blocks, rows, columns) >= 128 && caps.max_invocations >= 256 { LARGE } else { SMALL }
    }

    /// Workgroups for `blocks` matrices of rows × columns.
    pub(crate) fn groups(self, blocks: u64, rows: u64, columns: u64) -> u64 {
        let tiles =
            |height: u32, width: u32| blocks * rows.div_ceil(height.into()) * columns.div_ceil(width.into());
        match self {
            Self::Tile { x, y } => tiles(8 * y, 8 * x),
            Self::Register => tiles(8, 4 * REGISTER_LANES),
            Self::Direct => (blocks * rows * columns).div_ceil(DIRECT_LANES.into()),
        }
    }

    pub(super) fn grid(
        self,
        op: &str,
        blocks: u64,
        rows: u64,
        columns: u64,
        caps: &Caps,
    ) -> Result<[u32; 3]> {
        groups_of(op, self.groups(blocks, rows, columns), caps)
    }

    /// A kernel's text and the parts that it needs in this form.
    pub(super) fn parts(self, kernel: &'static str) -> Vec<&'static str> {
        let form = match self {
            Self::Tile { .. } => shader!("lib/product_tile.wgsl"),
            Self::Register => shader!("lib/product_register.wgsl"),
            Self::Direct => shader!("lib/product_direct.wgsl"),
        };
        vec![kernel, DTYPE, ELEMENT, shader!("lib/product.wgsl"), form]
    }

    pub(super) fn overrides(self) -> [(&'static str, f64); 2] {
        let (x, y) = match self {
            Self::Tile { x, y } => (x, y),
            Self::Register => (REGISTER_LANES, 1),
            Self::Direct => (DIRECT_LANES, 1),
        };
        [("WORKGROUP_X", x.into()), ("WORKGROUP_Y", y.into())]
    }
}

/// What a dispatch does with its sums.
#[derive(Clone, Copy, Debug)]
pub(super) struct Store {
    pub(super) overwrite: bool,
    pub(super) decay: f32,
    pub(super) gain: f32,
}

impl Store {
    pub(super) fn apply(self, out: &mut [f32], sums: &[f32]) {
        let Self { overwrite, decay, gain } = self;
        for (out, &sum) in out.iter_mut().zip(sums) {
            *out = if overwrite { gain * sum } else { decay * *out + gain * sum };
        }
    }
}

/// Scratch memory for one factor of a product.
#[derive(Default)]
pub(super) struct Scratch(Vec<f32>);

impl Scratch {
    /// `len` elements with old contents.
    pub(super) fn take(&mut self, len: usize) -> &mut [f32] {
        if self.0.len() < len {
            self.0.resize(len, 0.0);
        }
        &mut self.0[..len]
    }
}

/// The factors of a product kernel, cut as the engine asks.
pub(super) trait Factors: Sync {
    /// The most rows and columns of a tile.
    const TILE: (usize, usize);

    /// What is added to the result, times the weight: the square of a sum over positions, or that sum itself.
    fn squared(&self) -> bool;

    /// Positions of one square.
    fn positions(&self, square: usize) -> usize;

    /// How much of `positions` of a square one product may take: a block that starts where they do.
    fn block(&self, _square: usize, positions: Range<usize>) -> Range<usize> {
        positions
    }

    /// The factor of a square; 0 leaves it out.
    fn weight(&self, square: usize) -> f32;

    /// The left factor, rows × positions.
    fn left<'a>(
        &'a self,
        square: usize,
        positions: Range<usize>,
        rows: Range<usize>,
        scratch: &'a mut Scratch,
    ) -> MatRef<'a, f32>;

    /// The right factor, positions × columns.
    fn right<'a>(
        &'a self,
        square: usize,
        positions: Range<usize>,
        columns: Range<usize>,
        scratch: &'a mut Scratch,
    ) -> MatRef<'a, f32>;
}

/// How a result is cut. Depends on the shape alone.
#[derive(Clone, Copy, Debug)]
struct Cut {
    rows: usize,
    columns: usize,
    positions: usize,
}

/// Rows and columns of a tile whose products are squared: product and sums, 128 KiB each, stay in a second-level cache
/// beside the packed factors.
pub(super) const TILE: (usize, usize) = (128, 256);

/// Positions of one matrix product: bounds the scratch of factors that have to be unfolded or widened.
const POSITIONS: usize = 512;

/// Tiles times runs that keep the cores of a large machine busy.
const TASKS: usize = 16;

impl Cut {
    fn of<F: Factors>(rows: usize, columns: usize) -> Self {
        Self { rows: F::TILE.0.min(rows), columns: F::TILE.1.min(columns), positions: POSITIONS }
    }
}

/// One thread's scratch.
#[derive(Default)]
struct Bench {
    left: Scratch,
    right: Scratch,
    product: Scratch,
}

/// A tile of the result: where it lies, and its pieces of rows.
struct Tile<'a> {
    rows: Range<usize>,
    columns: Range<usize>,
    out: Vec<&'a mut [f32]>,
}

/// out (row-major, rows × columns) ← decay · out + gain · Σ over `squares`.
pub(super) fn products<F: Factors>(
    factors: &F,
    (rows, columns): (usize, usize),
    squares: Range<usize>,
    out: &mut [f32],
    store: Store,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    let cut = Cut::of::<F>(rows, columns);
    let tiles = tiles(out, columns, cut);
    let tasks = tiles.len();
    tiles.into_par_iter().for_each_init(Bench::default, |bench, mut tile| {
        let (rows, columns) = (&tile.rows, &tile.columns);
        let sums =
            sum_of_runs(&squares, tasks, bench, |bench, run| sum(factors, rows, columns, run, cut, bench));
        for (out, sums) in tile.out.iter_mut().zip(sums.chunks(tile.columns.len())) {
            store.apply(out, sums);
        }
    });
}

fn tiles(out: &mut [f32], columns: usize, cut: Cut) -> Vec<Tile<'_>> {
    let mut tiles = Vec::new();
    for (band, part) in out.chunks_mut(cut.rows * columns).enumerate() {
        let rows = band * cut.rows..band * cut.rows + part.len() / columns;
        let first = tiles.len();
        for start in (0..columns).step_by(cut.columns) {
            let columns = start..columns.min(start + cut.columns);
            tiles.push(Tile { rows: rows.clone(), columns, out: Vec::with_capacity(rows.len()) });
        }
        for row in part.chunks_mut(columns) {
            for (tile, piece) in tiles[first..].iter_mut().zip(row.chunks_mut(cut.columns)) {
                tile.out.push(piece);
            }
        }
    }
    tiles
}

/// A sum over squares, taken by runs of them that are added in order: `sum(scratch, run)` gives `len` sums. There are as many
/// runs as make about [`TASKS`] tasks of `tasks` that are there anyway.
pub(super) fn sum_of_runs<S: Default + Send>(
    squares: &Range<usize>,
    tasks: usize,
    scratch: &mut S,
    sum: impl Fn(&mut S, Range<usize>) -> Vec<f32> + Sync,
) -> Vec<f32> {
    let runs = TASKS.div_ceil(tasks.max(1)).min(squares.len()).max(1);
    if runs == 1 {
        return sum(scratch, squares.clone());
    }
    let bound = |run: usize| squares.start + squares.len() * run / runs;
    let sums: Vec<Vec<f32>> = (0..runs)
        .into_par_iter()
        .map_init(S::default, |scratch, run| sum(scratch, bound(run)..bound(run + 1)))
        .collect();
    let add = |mut total: Vec<f32>, sum: Vec<f32>| {
        for (total, sum) in total.iter_mut().zip(sum) {
            *total += sum;
        }
        total
    };
    sums.into_iter().reduce(add).unwrap_or_default()
}

/// The sum of one tile over a run of squares.
fn sum<F: Factors>(
    factors: &F,
    rows: &Range<usize>,
    columns: &Range<usize>,
    squares: Range<usize>,
    cut: Cut,
    bench: &mut Bench,
) -> Vec<f32> {
    let mut sums = vec![0.0; rows.len() * columns.len()];
    for square in squares {
        let weight = factors.weight(square);
        if weight == 0.0 {
            continue;
        }
        let positions = factors.positions(square);
        if positions == 0 {
            continue;
        }
        let product = if factors.squared() { bench.product.take(sums.len()) } else { sums.as_mut_slice() };
        let scale = if factors.squared() { 1.0 } else { weight };
        let mut start = 0;
        while start < positions {
            let block = factors.block(square, start..positions.min(start + cut.positions));
            let end = block.end;
            let left = factors.left(square, block.clone(), rows.clone(), &mut bench.left);
            let right = factors.right(square, block, columns.clone(), &mut bench.right);
            let product = MatMut::from_row_major_slice_mut(&mut *product, rows.len(), columns.len());
            let accum = if factors.squared() && start == 0 { Accum::Replace } else { Accum::Add };
            matmul(product, accum, left, right, scale, Par::Seq);
            start = end;
        }
        if factors.squared() {
            for (sum, &p) in sums.iter_mut().zip(bench.product.take(rows.len() * columns.len()).iter()) {
                *sum += weight * (p * p);
            }
        }
    }
    sums
}
