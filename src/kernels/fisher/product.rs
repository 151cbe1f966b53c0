//! The host execution that the product kernels share.
//!
//! The result is cut into tiles whose sums stay in a core's second-level cache. For each tile and square,
//! a product is taken over a block of positions at a time, register tile by register tile
//! ([`registers`](super::registers)), and squared before it leaves the registers. So the memory in use is a few tiles a
//! thread, whatever the number of samples.
//!
//! The cut depends on the shape alone, and a tile's squares are added in order: results do not depend on the number
//! of threads. Where a result has too few tiles to keep many cores busy, its squares are cut into runs whose sums
//! are then added in order.

use std::ops::Range;

use bytemuck::{Pod, Zeroable, cast_slice_mut};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::registers::{Finish, Left, ROWS, Right, Tiles, panel, vectors};

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

/// As long and as aligned as the longest vectors: none that is read from scratch memory straddles two lines
/// of the cache.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

const LINE: usize = 16;

/// Scratch memory.
#[derive(Default)]
pub(super) struct Scratch(Vec<Line>);

impl Scratch {
    /// `len` elements with old contents.
    pub(super) fn take(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(LINE);
        if self.0.len() < lines {
            self.0.resize(lines, Line::zeroed());
        }
        &mut cast_slice_mut(&mut self.0)[..len]
    }
}

/// The factors of a product kernel, cut as the engine asks. Rows are those of the left factor, whose elements are taken
/// one at a time; columns those of the right one, which is laid out for vectors.
pub(super) trait Factors: Sync {
    /// Whether the result's rows are the columns, and its columns the rows.
    const TRANSPOSED: bool = false;

    /// The most rows and columns of a tile.
    const TILE: (usize, usize);

    /// What is added to the result, times the weight: the square of a sum over positions, or that sum itself.
    fn squared(&self) -> bool;

    /// Positions of one square.
    fn positions(&self, square: usize) -> usize;

    /// How much of `positions` of a square one product takes: a block that starts where they do.
    fn block(&self, _square: usize, positions: Range<usize>) -> Range<usize> {
        positions.start..positions.end.min(positions.start + POSITIONS)
    }

    /// The factor of a square; 0 leaves it out.
    fn weight(&self, square: usize) -> f32;

    /// Where a row of a tile starts in what [`Factors::left`] gives.
    fn start(&self, rows: &Range<usize>, row: usize) -> usize;

    /// The left factor at a block of positions.
    fn left<'a>(
        &'a self,
        square: usize,
        positions: &Range<usize>,
        rows: &Range<usize>,
        scratch: &'a mut Scratch,
    ) -> Left<'a>;

    /// Writes the right factor at a block of positions: `columns` of each, and zeros behind them up to
    /// `stride` elements.
    fn right(
        &self,
        square: usize,
        positions: &Range<usize>,
        columns: &Range<usize>,
        scratch: &mut Scratch,
        out: &mut [f32],
        stride: usize,
    );
}

/// Positions of a block: a panel of them stays in a first-level cache, or nearly, and all columns of a tile in a
/// second-level one.
const POSITIONS: usize = 128;

/// Tiles times runs that keep the cores of a large machine busy.
const TASKS: usize = 16;

/// One thread's scratch.
#[derive(Default)]
struct ThreadScratch {
    left: Scratch,
    right: Scratch,
    line: Scratch,
    sums: Scratch,
    partial: Scratch,
}

/// A tile of the result: where it lies, and its pieces of rows.
struct Tile<'a> {
    rows: Range<usize>,
    columns: Range<usize>,
    out: Vec<&'a mut [f32]>,
}

/// out (row-major, rows × columns of the result) ← decay · out + gain · Σ over `squares`.
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
    let tiles = tiles(out, columns, if F::TRANSPOSED { (F::TILE.1, F::TILE.0) } else { F::TILE });
    let tasks = tiles.len();
    let grain = pulp::Arch::new().dispatch(Detect);
    tiles.into_par_iter().for_each_init(ThreadScratch::default, |scratch, mut tile| {
        let (rows, columns) =
            if F::TRANSPOSED { (&tile.columns, &tile.rows) } else { (&tile.rows, &tile.columns) };
        let panels = Panels::new(grain, rows, columns);
        let starts = starts(factors, rows);
        let sums = sum_of_runs(&squares, tasks, scratch, |scratch, squares| {
            pulp::Arch::new().dispatch(Sum { factors, panels: &panels, starts: &starts, squares, scratch })
        });
        let sums = panels.unpack(&sums, F::TRANSPOSED);
        for (out, sums) in tile.out.iter_mut().zip(sums.chunks(tile.columns.len())) {
            store.apply(out, sums);
        }
    });
}

fn tiles(out: &mut [f32], columns: usize, (height, width): (usize, usize)) -> Vec<Tile<'_>> {
    let mut tiles = Vec::new();
    for (band, part) in out.chunks_mut(height * columns).enumerate() {
        let rows = band * height..band * height + part.len() / columns;
        let first = tiles.len();
        for start in (0..columns).step_by(width) {
            let columns = start..columns.min(start + width);
            tiles.push(Tile { rows: rows.clone(), columns, out: Vec::with_capacity(rows.len()) });
        }
        for row in part.chunks_mut(columns) {
            for (tile, piece) in tiles[first..].iter_mut().zip(row.chunks_mut(width)) {
                tile.out.push(piece);
            }
        }
    }
    tiles
}

/// A sum over squares, taken by runs of them that are added in order: `sum(scratch, run)` gives `len` sums. There are
/// as many runs as make about [`TASKS`] tasks of `tasks` that are there anyway.
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

/// The sum of one tile over a run of squares, in panels.
struct Sum<'a, F> {
    factors: &'a F,
    panels: &'a Panels<'a>,
    starts: &'a [usize],
    squares: Range<usize>,
    scratch: &'a mut ThreadScratch,
}

impl<F: Factors> WithSimd for Sum<'_, F> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Sum { factors, panels, starts, squares, scratch } = self;
        scratch.sums.take(panels.len()).fill(0.0);
        for square in squares {
            if factors.weight(square) != 0.0 {
                panels.add(simd, factors, square, starts, scratch);
            }
        }
        scratch.sums.take(panels.len()).to_vec()
    }
}

/// How wide this processor's vectors and register tiles are.
#[derive(Clone, Copy)]
struct Grain {
    lanes: usize,
    width: usize,
}

struct Detect;

impl WithSimd for Detect {
    type Output = Grain;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Grain {
        Grain { lanes: S::F32_LANES, width: vectors::<S>() * S::F32_LANES }
    }
}

/// Where each row starts, and the last one's as often as fills a register tile.
fn starts<F: Factors>(factors: &F, rows: &Range<usize>) -> Vec<usize> {
    let last = rows.end - 1;
    let filled = rows.start..rows.start + rows.len().next_multiple_of(ROWS);
    filled.map(|row| factors.start(rows, row.min(last))).collect()
}

/// The columns of a tile in panels as wide as a register tile; the last one may be narrower. Sums lie panel
/// by panel, and in a panel row by row.
struct Panels<'a> {
    grain: Grain,
    rows: &'a Range<usize>,
    columns: &'a Range<usize>,
    /// Rows of whole register tiles.
    height: usize,
}

impl<'a> Panels<'a> {
    fn new(grain: Grain, rows: &'a Range<usize>, columns: &'a Range<usize>) -> Self {
        Self { grain, rows, columns, height: rows.len().next_multiple_of(ROWS) }
    }

    /// The columns of each panel, counted from the tile's first, and its width in whole vectors.
    fn iter(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        let Grain { lanes, width } = self.grain;
        (0..self.columns.len()).step_by(width).map(move |start| {
            let columns = start..self.columns.len().min(start + width);
            let width = columns.len().next_multiple_of(lanes);
            (columns, width)
        })
    }

    /// Columns in whole vectors.
    fn width(&self) -> usize {
        self.columns.len().next_multiple_of(self.grain.lanes)
    }

    /// From one position of the right factor to the next. A power of two would put the positions of a panel in the same
    /// few places of the caches; a line of the cache more does not.
    fn stride(&self) -> usize {
        self.width().next_multiple_of(LINE) + LINE
    }

    /// Elements of the sums.
    fn len(&self) -> usize {
        self.height * self.width()
    }

    /// Adds one square.
    #[inline(always)]
    fn add<S: Simd, F: Factors>(
        &self,
        simd: S,
        factors: &F,
        square: usize,
        starts: &[usize],
        scratch: &mut ThreadScratch,
    ) {
        let ThreadScratch { left, right, line, sums, partial } = scratch;
        let positions = factors.positions(square);
        let sums = sums.take(self.len());
        let partial = partial.take(self.len());
        let mut start = 0;
        while start < positions {
            let block = factors.block(square, start..positions);
            let finish = Finish {
                resumed: factors.squared() && start > 0,
                last: !factors.squared() || block.end == positions,
                squared: factors.squared(),
                weight: factors.weight(square),
            };
            let left = factors.left(square, &block, self.rows, left);
            let right = right.take(block.len() * self.stride());
            factors.right(square, &block, self.columns, line, right, self.stride());
            let right = Right { values: right, stride: self.stride() };
            let mut at = 0;
            for (columns, width) in self.iter() {
                let tiles = at..at + self.height * width;
                let tiles = Tiles { sums: &mut sums[tiles.clone()], partial: &mut partial[tiles] };
                panel(simd, (left, starts), right, (columns.start, width), tiles, finish);
                at += self.height * width;
            }
            start = block.end;
        }
    }

    /// The sums row-major, or column-major.
    fn unpack(&self, sums: &[f32], transposed: bool) -> Vec<f32> {
        let (rows, columns) = (self.rows.len(), self.columns.len());
        let mut out = vec![0.0; rows * columns];
        let mut panels = sums;
        for (of_panel, width) in self.iter() {
            let (panel, rest) = panels.split_at(self.height * width);
            let (first, count) = (of_panel.start, of_panel.len());
            for (row, sums) in panel.chunks_exact(width).take(rows).enumerate() {
                if transposed {
                    for (out, &sum) in
                        out.iter_mut().skip(first * rows + row).step_by(rows).zip(&sums[..count])
                    {
                        *out = sum;
                    }
                } else {
                    out[row * columns + first..][..count].copy_from_slice(&sums[..count]);
                }
            }
            panels = rest;
        }
        out
    }
}
