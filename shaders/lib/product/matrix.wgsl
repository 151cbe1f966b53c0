// The form for matrix units that multiply f16 and add up in f32: a workgroup owns a tile of 4 × 4 matrices,
// each of four subgroups 2 × 2 of them.
//
// A factor of f32 is split into two of f16: x · 2^s = high + low · 2^-11, with a power of two for each row
// and column of the tile that brings its largest magnitude over a square's positions to 2^14 … 2^15. Then x ·
// y is high · high + 2^-11 (high · low + low · high), and low · low is left out. Sums of the low products are
// kept apart, so that nothing underflows. Cf. Ootomo and Yokota, Recovering single precision accuracy from
// Tensor Cores while surpassing the FP32 theoretical peak performance (2022).
//
// The text before everything else must be `enable f16;` and `enable wgpu_cooperative_matrix;`, and where an
// implementation asks for it, `enable subgroups;`.
// Expects lib/product/base.wgsl, lib/product/matrix_8.wgsl or lib/product/matrix_16.wgsl, and a product kernel with
// WORKGROUP_X: at least four subgroups, and a multiple of 4 · SIDE that is at least SIDE² / 2. WORKGROUP_Y is 1.

/// Subgroups that multiply.
const UNITS: u32 = 4u;
/// Rows, and columns, of a tile.
const SPAN: u32 = 4u * SIDE;
/// Elements of a matrix.
const MATRIX: u32 = SIDE * SIDE;
const FACTORS: u32 = SIDE * SPAN;
const STAGED: u32 = UNITS * MATRIX;
/// The bits of infinity.
const INFINITE: u32 = 0x7f800000u;

// Position by position, the tile's rows or columns beside each other.
var<workgroup> left_high: array<f16, FACTORS>;
var<workgroup> left_low: array<f16, FACTORS>;
var<workgroup> right_high: array<f16, FACTORS>;
var<workgroup> right_low: array<f16, FACTORS>;
/// The bits of the largest magnitude of each row and column over a square's positions.
var<workgroup> left_tops: array<atomic<u32>, SPAN>;
var<workgroup> right_tops: array<atomic<u32>, SPAN>;
/// Whether a low part was not zero yet: captures of 16 bits have none.
var<workgroup> left_rough: atomic<u32>;
var<workgroup> right_rough: atomic<u32>;
/// One matrix of each unit.
var<workgroup> staged: array<f32, STAGED>;
var<workgroup> arrivals: atomic<u32>;

/// What an invocation loads of every position: one row, one column.
struct Slot {
    index: u32,
    block: u32,
    row: u32,
    row_there: bool,
    column: Column,
    column_there: bool,
}

/// A subgroup's number. How invocations come to subgroups is the implementation's; a number changes no result.
fn unit_of(invocation: u32) -> u32 {
    var number = 0u;
    if subgroupMin(invocation) == invocation {
        number = atomicAdd(&arrivals, 1u);
    }
    return subgroupMax(number);
}

fn magnitude(value: f32) -> u32 {
    return bitcast<u32>(value) & 0x7fffffffu;
}

/// The exponent field of a row's largest magnitude, within what has a factor and the factor an inverse.
fn exponent_of(top: u32) -> u32 {
    return clamp(top >> 23u, 15u, 254u);
}

/// A value times its row's power of two; rows that are not finite are left to `restored`.
fn scaled(value: f32, top: u32) -> f32 {
    if top >= INFINITE {
        return 0.0;
    }
    return value * bitcast<f32>((268u - exponent_of(top)) << 23u);
}

/// Rounded to the 11 digits of f16, so that the conversion is exact, whatever its rounding is. Zero where f16 would be
/// subnormal: some units have none.
fn rounded(value: f32) -> f32 {
    let bits = (bitcast<u32>(value) + 0x1000u) & 0xffffe000u;
    return select(bitcast<f32>(bits), 0.0, (bits & 0x7fffffffu) < 0x38800000u);
}

/// What is left of a value, in units of 2^-11.
fn rest(value: f32, high: f32) -> f32 {
    return rounded((value - high) * 2048.0);
}

fn find_tops(square: u32, positions: u32, slot: Slot, invocation: u32) {
    var left_top = 0u;
    var right_top = 0u;
    for (var t = invocation / SPAN; t < positions; t += WORKGROUP_X / SPAN) {
        let position = position_of(square, t);
        left_top = max(left_top, magnitude(left_or_zero(position, slot.block, slot.row, slot.row_there)));
        right_top = max(right_top, magnitude(right_or_zero(position, slot.column, slot.column_there)));
    }
    atomicMax(&left_tops[slot.index], left_top);
    atomicMax(&right_tops[slot.index], right_top);
}

/// Splits the factors of SIDE positions, zeros past the last.
fn load_factors(square: u32, start: u32, positions: u32, slot: Slot, invocation: u32) {
    let left_top = atomicLoad(&left_tops[slot.index]);
    let right_top = atomicLoad(&right_tops[slot.index]);
    for (var k = invocation / SPAN; k < SIDE; k += WORKGROUP_X / SPAN) {
        let there = start + k < positions;
        let position = position_of(square, min(start + k, positions - 1u));
        let at = k * SPAN + slot.index;
        let a = scaled(left_or_zero(position, slot.block, slot.row, there && slot.row_there), left_top);
        let b = scaled(right_or_zero(position, slot.column, there && slot.column_there), right_top);
        let a_high = rounded(a);
        let b_high = rounded(b);
        let a_low = rest(a, a_high);
        let b_low = rest(b, b_high);
        left_high[at] = f16(a_high);
        left_low[at] = f16(a_low);
        right_high[at] = f16(b_high);
        right_low[at] = f16(b_low);
        if a_low != 0.0 {
            atomicStore(&left_rough, 1u);
        }
        if b_low != 0.0 {
            atomicStore(&right_rough, 1u);
        }
    }
}

/// Where four elements of `staged` in a row lie in the tile, of a matrix of each unit.
struct Quad {
    row: u32,
    column: u32,
}

fn quad_at(index: u32, matrix: u32) -> Quad {
    let unit = 4u * index / MATRIX;
    let element = 4u * index % MATRIX;
    return Quad(
        (unit / 2u * 2u + matrix / 2u) * SIDE + element / SIDE,
        (unit % 2u * 2u + matrix % 2u) * SIDE + element % SIDE,
    );
}

fn staged_quad(index: u32) -> vec4<f32> {
    if index >= STAGED / 4u {
        return vec4<f32>();
    }
    return vec4<f32>(staged[4u * index], staged[4u * index + 1u], staged[4u * index + 2u], staged[4u * index + 3u]);
}

fn staged_strip(invocation: u32) -> Strip {
    return Strip(staged_quad(invocation), staged_quad(invocation + WORKGROUP_X));
}

/// 2^exponent, from -126 to 127.
fn power(exponent: vec4<i32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(exponent + vec4<i32>(127)) << vec4<u32>(23u));
}

/// Sums without their rows' and columns' powers of two. They are taken off in two steps, of which the first leaves f32
/// only where the second does. What meets a factor that is not finite is not finite.
fn restored(sums: vec4<f32>, index: u32, matrix: u32) -> vec4<f32> {
    if index >= STAGED / 4u {
        return vec4<f32>();
    }
    let at = quad_at(index, matrix);
    let left = atomicLoad(&left_tops[at.row]);
    let right = vec4<u32>(
        atomicLoad(&right_tops[at.column]),
        atomicLoad(&right_tops[at.column + 1u]),
        atomicLoad(&right_tops[at.column + 2u]),
        atomicLoad(&right_tops[at.column + 3u]),
    );
    let columns = clamp(right >> vec4<u32>(23u), vec4<u32>(15u), vec4<u32>(254u));
    let exponent = vec4<i32>(vec4<u32>(exponent_of(left)) + columns) - vec4<i32>(282);
    let half = exponent / vec4<i32>(2);
    let finite = sums * power(half) * power(exponent - half);
    let tops = bitcast<f32>(left) * bitcast<vec4<f32>>(right);
    return select(finite, tops, max(vec4<u32>(left), right) >= vec4<u32>(INFINITE));
}

/// Adds what a square gives to one matrix of every unit. All invocations of the workgroup call it.
fn folded(
    sum: Strip,
    high: SumMatrix,
    low: SumMatrix,
    weight: f32,
    matrix: u32,
    unit: u32,
    invocation: u32,
) -> Strip {
    if unit < UNITS {
        coopStoreT(high, &staged[unit * MATRIX], SIDE);
    }
    workgroupBarrier();
    var p = staged_strip(invocation);
    workgroupBarrier();
    // The same for all of them, and for as long as no factors are loaded.
    if (atomicLoad(&left_rough) | atomicLoad(&right_rough)) != 0u {
        if unit < UNITS {
            coopStoreT(low, &staged[unit * MATRIX], SIDE);
        }
        workgroupBarrier();
        p = multiply_add(p, 0.00048828125, staged_strip(invocation));
        workgroupBarrier();
    }
    let whole = Strip(
        restored(p.lo, invocation, matrix),
        restored(p.hi, invocation + WORKGROUP_X, matrix),
    );
    return fold_strip(sum, whole, weight);
}

// Numbers of subgroups are the same for all of a subgroup, which is what matrices need; that is not seen from the text.
@diagnostic(off, derivative_uniformity)
fn product(group: u32, lane: vec2<u32>) {
    let extent = extent();
    let column_tiles = (extent.columns + SPAN - 1u) / SPAN;
    let row_tiles = (extent.rows + SPAN - 1u) / SPAN;
    let place = tile_of(group, row_tiles * column_tiles, extent.blocks);
    if place.result >= results(extent.squares) {
        return;
    }
    let first_row = place.index / column_tiles * SPAN;
    let first_column = place.index % column_tiles * SPAN;
    let invocation = lane.x;
    let index = invocation % SPAN;
    let slot = Slot(
        index,
        place.block,
        first_row + index,
        first_row + index < extent.rows,
        column_of(place.block, first_column + index),
        first_column + index < extent.columns,
    );
    if invocation == 0u {
        atomicStore(&arrivals, 0u);
    }
    workgroupBarrier();
    let unit = unit_of(invocation);
    // The first of a unit's rows and columns in the tile; units past the last multiply nothing.
    let rows = unit / 2u % 2u * 2u * SIDE;
    let columns = unit % 2u * 2u * SIDE;

    var s0: Strip;
    var s1: Strip;
    var s2: Strip;
    var s3: Strip;
    for (var square = place.result; square < end_of(place.result, extent.squares); square++) {
        let weight = weight_of(square);
        if weight == 0.0 {
            continue;
        }
        let positions = positions_of(square);
        workgroupBarrier();
        if invocation < SPAN {
            atomicStore(&left_tops[invocation], 0u);
            atomicStore(&right_tops[invocation], 0u);
        }
        if invocation == 0u {
            atomicStore(&left_rough, 0u);
            atomicStore(&right_rough, 0u);
        }
        workgroupBarrier();
        find_tops(square, positions, slot, invocation);
        var high_0 = SumMatrix();
        var high_1 = SumMatrix();
        var high_2 = SumMatrix();
        var high_3 = SumMatrix();
        var low_0 = SumMatrix();
        var low_1 = SumMatrix();
        var low_2 = SumMatrix();
        var low_3 = SumMatrix();
        for (var start = 0u; start < positions; start += SIDE) {
            workgroupBarrier();
            load_factors(square, start, positions, slot, invocation);
            workgroupBarrier();
            if unit < UNITS {
                let a_0 = coopLoad<LeftMatrix>(&left_high[rows], SPAN);
                let a_1 = coopLoad<LeftMatrix>(&left_high[rows + SIDE], SPAN);
                let b_0 = coopLoadT<RightMatrix>(&right_high[columns], SPAN);
                let b_1 = coopLoadT<RightMatrix>(&right_high[columns + SIDE], SPAN);
                high_0 = coopMultiplyAdd(a_0, b_0, high_0);
                high_1 = coopMultiplyAdd(a_0, b_1, high_1);
                high_2 = coopMultiplyAdd(a_1, b_0, high_2);
                high_3 = coopMultiplyAdd(a_1, b_1, high_3);
                if atomicLoad(&left_rough) != 0u {
                    let c_0 = coopLoad<LeftMatrix>(&left_low[rows], SPAN);
                    let c_1 = coopLoad<LeftMatrix>(&left_low[rows + SIDE], SPAN);
                    low_0 = coopMultiplyAdd(c_0, b_0, low_0);
                    low_1 = coopMultiplyAdd(c_0, b_1, low_1);
                    low_2 = coopMultiplyAdd(c_1, b_0, low_2);
                    low_3 = coopMultiplyAdd(c_1, b_1, low_3);
                }
                if atomicLoad(&right_rough) != 0u {
                    let d_0 = coopLoadT<RightMatrix>(&right_low[columns], SPAN);
                    let d_1 = coopLoadT<RightMatrix>(&right_low[columns + SIDE], SPAN);
                    low_0 = coopMultiplyAdd(a_0, d_0, low_0);
                    low_1 = coopMultiplyAdd(a_0, d_1, low_1);
                    low_2 = coopMultiplyAdd(a_1, d_0, low_2);
                    low_3 = coopMultiplyAdd(a_1, d_1, low_3);
                }
            }
        }
        s0 = folded(s0, high_0, low_0, weight, 0u, unit, invocation);
        s1 = folded(s1, high_1, low_1, weight, 1u, unit, invocation);
        s2 = folded(s2, high_2, low_2, weight, 2u, unit, invocation);
        s3 = folded(s3, high_3, low_3, weight, 3u, unit, invocation);
    }
    for (var i = 0u; i < 8u; i++) {
        var sums = s0.lo;
        switch i {
            case 1u: { sums = s0.hi; }
            case 2u: { sums = s1.lo; }
            case 3u: { sums = s1.hi; }
            case 4u: { sums = s2.lo; }
            case 5u: { sums = s2.hi; }
            case 6u: { sums = s3.lo; }
            case 7u: { sums = s3.hi; }
            default: {}
        }
        let quad = invocation + i % 2u * WORKGROUP_X;
        let at = quad_at(quad, i / 2u);
        for (var j = 0u; j < 4u; j++) {
            let row = first_row + at.row;
            let column = first_column + at.column + j;
            if quad < STAGED / 4u && row < extent.rows && column < extent.columns {
                store(place.result, place.block, row, column, sums.x);
            }
            sums = vec4<f32>(sums.yzw, 0.0);
        }
    }
}
