//! What the product kernels share: the forms of their shaders, and their host execution.
//!
//! On the host, the result is cut into tiles whose sums stay in a core's second-level cache. For each tile and square,
//! a product is taken over a block of positions at a time, register tile by register tile ([`registers`](super::registers)), and
//! squared before it leaves the registers. So the memory in use is a few tiles a thread, whatever the number of samples.
//!
//! The cut depends on the shape alone, and a tile's squares are added in order: results do not depend on the number
//! of threads. Where a result has too few tiles to keep many cores busy, its squares are cut into runs whose sums
//! are then added in order.

use std::ops::Range;

use bytemuck::{Pod, Zeroable, cast_slice_mut};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::registers::{Finish, Left, ROWS, Right, Tiles, panel, vectors};
use crate::error::{Error, Result};
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
    /// Registers only: a workgroup owns 16 rows × 64 columns. For processors behind a graphics interface.
    Register(Loads),
    /// The same for a linear layer whose widths and first output are multiples of eight: whole octets are loaded.
    Octets(Loads),
    /// The same for a convolution or a Gram matrix whose positions are a multiple of four: four of them are loaded together.
    Quads(Loads),
    /// The same for convolutions with `stride_w` = `dilation_w` = 1, with [`Loads::Shared`]: a workgroup owns 16 rows × 8 times four neighbouring
    /// offsets of a kernel row, past which the inputs slide.
    Slide,
    /// One invocation an element. For depthwise and other narrow groups.
    Direct,
    /// The same where loads cost most, for convolutions with `stride_w` = `dilation_w` = 1 and `stride_h` = `dilation_h`: 4 × 4 neighbouring offsets of a
    /// kernel an invocation, past which the inputs slide.
    Window,
}

/// How an invocation of a register form has the factors of its 16 rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loads {
    /// It loads them.
    Own,
    /// The 8 invocations of a workgroup load two each, and hand them round: for devices whose subgroups have that size.
    Shared,
}

/// The most loop iterations that storing takes.
pub(crate) const STORES: u64 = 162;

const REGISTER_LANES: u32 = 8;
const DIRECT_LANES: u32 = 64;

/// Inputs that slide, and four positions of sixteen rows.
const LINE_PART: &str = shader!("lib/product_line.wgsl");
const FOURS_PART: &str = shader!("lib/product_fours.wgsl");

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
            let shared = caps.subgroup == REGISTER_LANES;
            return Self::Register(if shared { Loads::Shared } else { Loads::Own });
        }
        // Large tiles load half as much, if there are enough of them to fill a large device.
        if LARGE.groups(blocks, rows, columns) >= 128 && caps.max_invocations >= 256 { LARGE } else { SMALL }
    }

    /// This form, with loads of whole octets if it has those and all of these are multiples of eight: the distances of rows, and
    /// where the first begins.
    #[must_use]
    pub fn for_widths(self, widths: &[u32]) -> Self {
        match self {
            Self::Register(loads) if is_aligned(widths) => Self::Octets(loads),
            _ => self,
        }
    }

    /// This form, with loads of four positions if it has those and all of these are multiples of four: the positions of a row, and where
    /// the first lies.
    #[must_use]
    pub fn for_positions(self, positions: &[u64]) -> Self {
        match self {
            Self::Register(loads) if in_fours(positions) => Self::Quads(loads),
            _ => self,
        }
    }

    /// The size of the subgroups that its shader exchanges values in, 0 for none.
    pub(super) fn subgroup(self) -> u32 {
        match self {
            Self::Register(Loads::Shared)
            | Self::Octets(Loads::Shared)
            | Self::Quads(Loads::Shared)
            | Self::Slide => REGISTER_LANES,
            _ => 0,
        }
    }

    /// Refuses the forms of convolutions.
    pub(super) fn check_plain(self, op: &str) -> Result<()> {
        if matches!(self, Self::Window | Self::Slide) {
            return Err(Error::argument(op, format!("form {self:?} is for convolutions")));
        }
        Ok(())
    }

    /// Refuses [`Form::Quads`] where four positions would not lie together.
    pub(super) fn check_positions(self, op: &str, positions: &[u64]) -> Result<()> {
        if matches!(self, Self::Quads(_)) && !in_fours(positions) {
            let problem = format!("positions {positions:?} are no multiples of 4, as form Quads has them");
            return Err(Error::argument(op, problem));
        }
        Ok(())
    }

    /// Whether it loads whole octets, for the shader.
    pub(super) fn aligned(self) -> (&'static str, f64) {
        ("ALIGNED", f64::from(u8::from(matches!(self, Self::Octets(_)))))
    }

    /// Refuses [`Form::Octets`] where octets would begin between others.
    pub(super) fn check_widths(self, op: &str, widths: &[u32]) -> Result<()> {
        self.check_plain(op)?;
        if matches!(self, Self::Quads(_)) {
            return Err(Error::argument(op, "form Quads is for convolutions and Gram matrices"));
        }
        if matches!(self, Self::Octets(_)) && !is_aligned(widths) {
            let problem =
                format!("widths and first output {widths:?} are no multiples of 8, as form Octets has them");
            return Err(Error::argument(op, problem));
        }
        Ok(())
    }

    /// Workgroups for `blocks` matrices of rows × columns; of [`Form::Window`] and [`Form::Slide`], columns are windows.
    pub(crate) fn groups(self, blocks: u64, rows: u64, columns: u64) -> u64 {
        let tiles =
            |height: u32, width: u32| blocks * rows.div_ceil(height.into()) * columns.div_ceil(width.into());
        match self {
            Self::Tile { x, y } => tiles(8 * y, 8 * x),
            Self::Register(_) | Self::Octets(_) | Self::Quads(_) => tiles(16, 8 * REGISTER_LANES),
            Self::Slide => tiles(16, REGISTER_LANES),
            Self::Direct => (blocks * rows * columns).div_ceil(DIRECT_LANES.into()),
            Self::Window => (blocks * rows * columns).div_ceil(REGISTER_LANES.into()),
        }
    }

    /// The most loop iterations of an invocation for so many squares, each of so many positions.
    pub(crate) fn iterations(self, squares: u64, positions: u64) -> u64 {
        squares.saturating_mul(self.turns(positions)).saturating_add(STORES)
    }

    /// Those of one square. (The forms whose inputs slide have rows of positions: see [`ConvSqParams`](super::ConvSqParams).)
    pub(super) fn turns(self, positions: u64) -> u64 {
        let turns = match self {
            // Eight positions: one turn, some to load the factors, eight to multiply, and the ends of these three loops.
            Self::Tile { x, y } => {
                let loads = 8_u64.div_ceil(u64::from(x / 2).max(1)) + 8_u64.div_ceil(u64::from(y / 2).max(1));
                positions.div_ceil(8).saturating_mul(12 + loads)
            }
            Self::Quads(_) => positions.div_ceil(4),
            _ => positions,
        };
        turns.saturating_add(2)
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

    /// A kernel's text and the parts that it needs in this form; `eights` is how it has eight factors at a time.
    pub(super) fn parts(self, kernel: &'static str, eights: &'static str) -> Vec<&'static str> {
        let strips = shader!("lib/product_strips.wgsl");
        let shared = shader!("lib/product_fours_shared.wgsl");
        let form = match self {
            Self::Tile { .. } => vec![shader!("lib/product_tile.wgsl")],
            Self::Register(loads) | Self::Octets(loads) => {
                let left = match loads {
                    Loads::Own => shader!("lib/product_left_own.wgsl"),
                    Loads::Shared => shader!("lib/product_left_shared.wgsl"),
                };
                vec![shader!("lib/product_register.wgsl"), strips, left]
            }
            Self::Quads(loads) => {
                let left = match loads {
                    Loads::Own => shader!("lib/product_fours_own.wgsl"),
                    Loads::Shared => shared,
                };
                vec![shader!("lib/product_quads.wgsl"), strips, FOURS_PART, left]
            }
            Self::Slide => vec![shader!("lib/product_slide.wgsl"), LINE_PART, FOURS_PART, shared],
            Self::Direct => vec![shader!("lib/product_direct.wgsl")],
            Self::Window => vec![shader!("lib/product_window.wgsl"), LINE_PART],
        };
        [vec![kernel, DTYPE, ELEMENT, shader!("lib/product.wgsl"), eights], form].concat()
    }

    pub(super) fn overrides(self) -> [(&'static str, f64); 2] {
        let (x, y) = match self {
            Self::Tile { x, y } => (x, y),
            Self::Register(_) | Self::Octets(_) | Self::Quads(_) | Self::Slide | Self::Window => {
                (REGISTER_LANES, 1)
            }
            Self::Direct => (DIRECT_LANES, 1),
        };
        [("WORKGROUP_X", x.into()), ("WORKGROUP_Y", y.into())]
    }
}

fn in_fours(positions: &[u64]) -> bool {
    positions.iter().all(|count| count.is_multiple_of(4))
}

fn is_aligned(widths: &[u32]) -> bool {
    widths.iter().all(|width| width.is_multiple_of(8))
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

/// As long and as aligned as the longest vectors: none that is read from scratch memory straddles two lines of the cache.
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

/// The factors of a product kernel, cut as the engine asks. Rows are those of the left factor, whose elements are taken one at a
/// time; columns those of the right one, which is laid out for vectors.
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

    /// Writes the right factor at a block of positions: `columns` of each, and zeros behind them up to `stride` elements.
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

/// Positions of a block: a panel of them stays in a first-level cache, or nearly, and all columns of a tile in a second-level one.
const POSITIONS: usize = 128;

/// Tiles times runs that keep the cores of a large machine busy.
const TASKS: usize = 16;

/// One thread's scratch.
#[derive(Default)]
struct Bench {
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
    tiles.into_par_iter().for_each_init(Bench::default, |bench, mut tile| {
        let (rows, columns) =
            if F::TRANSPOSED { (&tile.columns, &tile.rows) } else { (&tile.rows, &tile.columns) };
        let panels = Panels::new(grain, rows, columns);
        let starts = starts(factors, rows);
        let sums = sum_of_runs(&squares, tasks, bench, |bench, squares| {
            pulp::Arch::new().dispatch(Sum { factors, panels: &panels, starts: &starts, squares, bench })
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

/// The sum of one tile over a run of squares, in panels.
struct Sum<'a, F> {
    factors: &'a F,
    panels: &'a Panels<'a>,
    starts: &'a [usize],
    squares: Range<usize>,
    bench: &'a mut Bench,
}

impl<F: Factors> WithSimd for Sum<'_, F> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Sum { factors, panels, starts, squares, bench } = self;
        bench.sums.take(panels.len()).fill(0.0);
        for square in squares {
            if factors.weight(square) != 0.0 {
                panels.add(simd, factors, square, starts, bench);
            }
        }
        bench.sums.take(panels.len()).to_vec()
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

/// The columns of a tile in panels as wide as a register tile; the last one may be narrower. Sums lie panel by panel, and
/// in a panel row by row.
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

    /// From one position of the right factor to the next. A power of two would put the positions of a panel in the same few places of
    /// the caches; a line of the cache more does not.
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
        bench: &mut Bench,
    ) {
        let Bench { left, right, line, sums, partial } = bench;
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
