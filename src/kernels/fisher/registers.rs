//! Products that never leave the registers: the innermost loop of the product kernels' host execution.
//!
//! A tile of six rows and up to four vectors of columns is summed over positions in registers, squared there,
//! and only then added to the sums in cache. So a square costs its multiplications and a load and a store for
//! each element, whatever the number of positions. Row elements are taken one at a time, from wherever they
//! lie; vectors of columns from a block that the factors have laid out for it.
//!
//! Each element is one lane's sum over positions in their order, so its bits depend neither on the width of the vectors
//! nor on the cut of the result. (They do on whether the processor has a fused multiply-add.)

use pulp::Simd;

/// Rows of a register tile.
pub(super) const ROWS: usize = 6;

/// The rows' factor: row r at position q·run + k, k < run, is `values[start of r + q·pitch + k·step]`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) values: &'a [f32],
    pub(super) run: usize,
    pub(super) pitch: usize,
    pub(super) step: usize,
}

/// The columns' factor: all columns of a position, in whole vectors, every `stride` elements.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
}

/// What becomes of a tile that was summed over a block of positions.
#[derive(Clone, Copy)]
pub(super) struct Finish {
    /// Whether the square's earlier positions are in `partial`.
    pub(super) resumed: bool,
    /// Whether there are no later ones.
    pub(super) last: bool,
    /// Whether the square of the product is added, or the product.
    pub(super) squared: bool,
    /// The factor of what is added.
    pub(super) weight: f32,
}

/// Vectors of columns in a register tile: with the rows, they leave registers for a row's element and the columns' own.
pub(super) fn vectors<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 4 } else { 2 }
}

/// Some tiles beside each other: sums of all rows, and partial products of theirs.
pub(super) struct Tiles<'a> {
    pub(super) sums: &'a mut [f32],
    pub(super) partial: &'a mut [f32],
}

/// All rows (whose `starts` are whole tiles) times one panel of columns: `width`, in whole vectors, from `first` on.
#[inline(always)]
pub(super) fn panel<S: Simd>(
    simd: S,
    (left, starts): (Left<'_>, &[usize]),
    right: Right<'_>,
    (first, width): (usize, usize),
    tiles: Tiles<'_>,
    finish: Finish,
) {
    let right = Columns {
        vectors: S::as_simd_f32s(right.values).0,
        stride: right.stride / S::F32_LANES,
        first: first / S::F32_LANES,
    };
    match width / S::F32_LANES {
        1 => panel_of::<S, 1>(simd, left, starts, right, tiles, finish),
        2 => panel_of::<S, 2>(simd, left, starts, right, tiles, finish),
        3 => panel_of::<S, 3>(simd, left, starts, right, tiles, finish),
        _ => panel_of::<S, 4>(simd, left, starts, right, tiles, finish),
    }
}

/// A panel of the right factor, counted in vectors.
#[derive(Clone, Copy)]
struct Columns<'a, V> {
    vectors: &'a [V],
    stride: usize,
    first: usize,
}

type Tile<V, const N: usize> = [[V; N]; ROWS];

#[inline(always)]
fn panel_of<S: Simd, const N: usize>(
    simd: S,
    left: Left<'_>,
    starts: &[usize],
    right: Columns<'_, S::f32s>,
    tiles: Tiles<'_>,
    finish: Finish,
) {
    let sums = S::as_mut_simd_f32s(tiles.sums).0.as_chunks_mut().0.as_chunks_mut().0;
    let partial = S::as_mut_simd_f32s(tiles.partial).0.as_chunks_mut().0.as_chunks_mut().0;
    for ((starts, sums), partial) in starts.as_chunks().0.iter().zip(sums).zip(partial) {
        let mut tile: Tile<S::f32s, N> = multiply(simd, left, starts, right);
        if finish.resumed {
            add(simd, &mut tile, partial);
        }
        if !finish.last {
            *partial = tile;
        } else if finish.squared {
            add_squares(simd, finish.weight, &tile, sums);
        } else {
            add_multiples(simd, finish.weight, &tile, sums);
        }
    }
}

#[inline(always)]
fn multiply<S: Simd, const N: usize>(
    simd: S,
    left: Left<'_>,
    starts: &[usize; ROWS],
    right: Columns<'_, S::f32s>,
) -> Tile<S::f32s, N> {
    let mut tile = [[simd.splat_f32s(0.0); N]; ROWS];
    for (run, vectors) in right.vectors.chunks(left.run * right.stride).enumerate() {
        let len = (vectors.len() / right.stride - 1) * left.step + 1;
        // `map` would be a call, and the tile would go to memory for it.
        let mut rows = [&left.values[..0]; ROWS];
        for (row, start) in rows.iter_mut().zip(starts) {
            *row = &left.values[start + run * left.pitch..][..len];
        }
        let mut at = 0;
        for columns in vectors.chunks_exact(right.stride) {
            let columns = &columns[right.first..][..N];
            for (sums, row) in tile.iter_mut().zip(rows) {
                let element = simd.splat_f32s(row[at]);
                for (sum, &column) in sums.iter_mut().zip(columns) {
                    *sum = simd.mul_add_e_f32s(element, column, *sum);
                }
            }
            at += left.step;
        }
    }
    tile
}

#[inline(always)]
fn add<S: Simd, const N: usize>(simd: S, tile: &mut Tile<S::f32s, N>, partial: &Tile<S::f32s, N>) {
    for (sum, &part) in tile.as_flattened_mut().iter_mut().zip(partial.as_flattened()) {
        *sum = simd.add_f32s(part, *sum);
    }
}

#[inline(always)]
fn add_squares<S: Simd, const N: usize>(
    simd: S,
    weight: f32,
    tile: &Tile<S::f32s, N>,
    sums: &mut Tile<S::f32s, N>,
) {
    let weight = simd.splat_f32s(weight);
    for (sum, &p) in sums.as_flattened_mut().iter_mut().zip(tile.as_flattened()) {
        *sum = simd.mul_add_e_f32s(weight, simd.mul_f32s(p, p), *sum);
    }
}

#[inline(always)]
fn add_multiples<S: Simd, const N: usize>(
    simd: S,
    weight: f32,
    tile: &Tile<S::f32s, N>,
    sums: &mut Tile<S::f32s, N>,
) {
    let weight = simd.splat_f32s(weight);
    for (sum, &p) in sums.as_flattened_mut().iter_mut().zip(tile.as_flattened()) {
        *sum = simd.mul_add_e_f32s(weight, p, *sum);
    }
}
