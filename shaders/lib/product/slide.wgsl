// The form for convolutions with stride_w = dilation_w = 1 on processors behind a graphics interface, where a workgroup
// is one subgroup of eight: an invocation owns four neighbouring offsets of a kernel row for sixteen output channels.
// Its inputs slide along the row of an image, four positions a turn; the gradients of the sixteen channels are loaded
// by all eight invocations together.
// Expects lib/product/base.wgsl, lib/product/fours.wgsl, lib/product/fours_shared.wgsl, lib/product/line.wgsl and
// fisher/conv_sq.wgsl; WORKGROUP_X is 8, WORKGROUP_Y is 1.

const SLIDE_ROWS: u32 = 16u;

/// The input channel and the first offset of an invocation.
struct Offsets {
    channel: u32,
    d: u32,
    h: u32,
    w: u32,
}

/// Adds a row of output positions, whose inputs are on `first`; `grads` are where the gradients begin of the two
/// channels that this invocation loads.
fn add_row(sums: Fours, first: Line, grads: vec2<u32>) -> Fours {
    var p = sums;
    var line = first;
    for (var i = 0u; i < params.grad_w; i += 4u) {
        let c = third_of(line);
        let x = met(line, c);
        line = next_line(line, c);
        let left = params.grad_w - i;
        let b = fours_of_all(gradients_from(grads.x + i, left), gradients_from(grads.y + i, left));
        p.r0 = add_met(p.r0, b.r0, x);
        p.r1 = add_met(p.r1, b.r1, x);
        p.r2 = add_met(p.r2, b.r2, x);
        p.r3 = add_met(p.r3, b.r3, x);
        p.r4 = add_met(p.r4, b.r4, x);
        p.r5 = add_met(p.r5, b.r5, x);
        p.r6 = add_met(p.r6, b.r6, x);
        p.r7 = add_met(p.r7, b.r7, x);
        p.r8 = add_met(p.r8, b.r8, x);
        p.r9 = add_met(p.r9, b.r9, x);
        p.r10 = add_met(p.r10, b.r10, x);
        p.r11 = add_met(p.r11, b.r11, x);
        p.r12 = add_met(p.r12, b.r12, x);
        p.r13 = add_met(p.r13, b.r13, x);
        p.r14 = add_met(p.r14, b.r14, x);
        p.r15 = add_met(p.r15, b.r15, x);
    }
    return p;
}

/// The products of one square.
fn sums_of(offsets: Offsets, outputs: vec2<u32>, square: u32) -> Fours {
    var p: Fours;
    let begin = (params.first + square) * params.fold;
    for (var sample = begin; sample < min(begin + params.fold, params.samples); sample++) {
        var grads = (sample * params.outputs + outputs) * positions();
        for (var row = 0u; row < params.grad_d * params.grad_h; row++) {
            let d = row / params.grad_h * params.stride_d + offsets.d * params.dilation_d - params.padding_d;
            let h = row % params.grad_h * params.stride_h + offsets.h * params.dilation_h - params.padding_h;
            p = add_row(p, line_from(sample, offsets.channel, d, h, offsets.w - params.padding_w), grads);
            grads += params.grad_w;
        }
    }
    return p;
}

fn product(group: u32, lane: vec2<u32>) {
    let extent = extent();
    let channels = params.channels / params.groups;
    let wide = (params.kernel_w + 3u) / 4u;
    let windows = channels * params.kernel_d * params.kernel_h * wide;
    let window_tiles = (windows + WORKGROUP_X - 1u) / WORKGROUP_X;
    let row_tiles = (extent.rows + SLIDE_ROWS - 1u) / SLIDE_ROWS;
    let tile = tile_of(group, row_tiles * window_tiles, extent.blocks);
    if tile.result >= results(extent.squares) {
        return;
    }
    // Rows and windows past the end repeat the last one and are not stored: they load for the others.
    let index = tile.index % window_tiles * WORKGROUP_X + lane.x;
    let window = min(index, windows - 1u);
    let channel = window / (wide * params.kernel_h * params.kernel_d);
    let first_group = params.first_output / (params.outputs / params.groups);
    let offsets = Offsets(
        (first_group + tile.block) * channels + channel,
        window / wide / params.kernel_h % params.kernel_d,
        window / wide % params.kernel_h,
        4u * (window % wide),
    );
    let row = tile.index / window_tiles * SLIDE_ROWS;
    let rows = min(row + lane.x + vec2<u32>(0u, 8u), vec2<u32>(extent.rows - 1u));
    let outputs = params.first_output + tile.block * extent.rows + rows;

    var sums: Fours;
    for (var square = tile.result; square < end_of(tile.result, extent.squares); square++) {
        let weight = weight_of(square);
        if weight == 0.0 {
            continue;
        }
        let p = sums_of(offsets, outputs, square);
        sums = Fours(
            fold(sums.r0, p.r0, weight),
            fold(sums.r1, p.r1, weight),
            fold(sums.r2, p.r2, weight),
            fold(sums.r3, p.r3, weight),
            fold(sums.r4, p.r4, weight),
            fold(sums.r5, p.r5, weight),
            fold(sums.r6, p.r6, weight),
            fold(sums.r7, p.r7, weight),
            fold(sums.r8, p.r8, weight),
            fold(sums.r9, p.r9, weight),
            fold(sums.r10, p.r10, weight),
            fold(sums.r11, p.r11, weight),
            fold(sums.r12, p.r12, weight),
            fold(sums.r13, p.r13, weight),
            fold(sums.r14, p.r14, weight),
            fold(sums.r15, p.r15, weight),
        );
    }
    if index < windows {
        let column = ((channel * params.kernel_d + offsets.d) * params.kernel_h + offsets.h) * params.kernel_w;
        store_fours(sums, tile, row, column, offsets.w);
    }
}

/// Stores what lies inside of the result, of a kernel row whose first offset has index `column`.
fn store_fours(sums: Fours, tile: Tile, row: u32, column: u32, first: u32) {
    for (var i = 0u; i < SLIDE_ROWS && row + i < extent().rows; i++) {
        var sum = sums.r0;
        switch i {
            case 1u: { sum = sums.r1; }
            case 2u: { sum = sums.r2; }
            case 3u: { sum = sums.r3; }
            case 4u: { sum = sums.r4; }
            case 5u: { sum = sums.r5; }
            case 6u: { sum = sums.r6; }
            case 7u: { sum = sums.r7; }
            case 8u: { sum = sums.r8; }
            case 9u: { sum = sums.r9; }
            case 10u: { sum = sums.r10; }
            case 11u: { sum = sums.r11; }
            case 12u: { sum = sums.r12; }
            case 13u: { sum = sums.r13; }
            case 14u: { sum = sums.r14; }
            case 15u: { sum = sums.r15; }
            default: {}
        }
        for (var w = first; w < min(first + 4u, params.kernel_w); w++) {
            store(tile.result, tile.block, row + i, column + w, sum.x);
            sum = vec4<f32>(sum.yzw, 0.0);
        }
    }
}
