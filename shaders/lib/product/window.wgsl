// The form for convolutions with narrow groups on devices where loads cost most, with stride_w = dilation_w = 1 and
// stride_h = dilation_h: one invocation has up to 4 x 4 neighbouring offsets of a kernel plane. Inputs slide along the
// rows of an image, four positions a turn; of the rows that one row of positions meets, the next one meets all but the
// first, so two of them are taken together. Lines and sums have names, not an index: see Strips in
// lib/product/strips.wgsl.
// Expects lib/product/base.wgsl, lib/product/line.wgsl and fisher/conv_sq.wgsl; WORKGROUP_Y is 1.

/// Four offsets along the height, each with four along the width.
struct Window {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
}

/// A window's input channel, output channel and first offset.
struct Place {
    channel: u32,
    output: u32,
    d: u32,
    h: u32,
    w: u32,
}

/// The rows of inputs that two rows of positions meet.
struct Lines {
    a: Line,
    b: Line,
    c: Line,
    d: Line,
    e: Line,
}

/// One of them, `offset` after the first; none past the kernel's last row, counted for the second row of positions.
fn line_of(place: Place, sample: u32, d: u32, h: u32, offset: u32) -> Line {
    let there = place.h + offset <= params.kernel_h;
    let at = select(params.input_h, h + offset * params.dilation_h, there);
    return line_from(sample, place.channel, d, at, place.w - params.padding_w);
}

/// A line four positions on, and what those met.
struct Step {
    line: Line,
    met: Met,
}

fn step_of(line: Line) -> Step {
    let c = third_of(line);
    return Step(next_line(line, c), met(line, c));
}

/// Two rows of output positions more: `first` is where the gradients of the first begin, and the second has
/// `second_width`, all or none.
fn add_rows(sums: Window, start: Lines, first: u32, second_width: u32) -> Window {
    var p = sums;
    var lines = start;
    for (var i = 0u; i < params.grad_w; i += 4u) {
        let a = step_of(lines.a);
        let b = step_of(lines.b);
        let c = step_of(lines.c);
        let d = step_of(lines.d);
        let e = step_of(lines.e);
        lines = Lines(a.line, b.line, c.line, d.line, e.line);
        let g = gradients_from(first + i, params.grad_w - i);
        let h = gradients_from(first + params.grad_w + i, max(second_width, i) - i);
        p = Window(
            add_met(add_met(p.a, g, a.met), h, b.met),
            add_met(add_met(p.b, g, b.met), h, c.met),
            add_met(add_met(p.c, g, c.met), h, d.met),
            add_met(add_met(p.d, g, d.met), h, e.met),
        );
    }
    return p;
}

fn sums_of(place: Place, square: u32) -> Window {
    var sums: Window;
    let begin = (params.first + square) * params.fold;
    for (var sample = begin; sample < min(begin + params.fold, params.samples); sample++) {
        for (var plane = 0u; plane < params.grad_d; plane++) {
            let d = plane * params.stride_d + place.d * params.dilation_d - params.padding_d;
            let first = ((sample * params.outputs + place.output) * params.grad_d + plane) * params.grad_h;
            for (var row = 0u; row < params.grad_h; row += 2u) {
                let h = row * params.stride_h + place.h * params.dilation_h - params.padding_h;
                let lines = Lines(
                    line_of(place, sample, d, h, 0u),
                    line_of(place, sample, d, h, 1u),
                    line_of(place, sample, d, h, 2u),
                    line_of(place, sample, d, h, 3u),
                    line_of(place, sample, d, h, 4u),
                );
                let second = select(0u, params.grad_w, row + 1u < params.grad_h);
                sums = add_rows(sums, lines, (first + row) * params.grad_w, second);
            }
        }
    }
    return sums;
}

/// Stores four offsets along the width, of a kernel row whose first has index `column`.
fn store_offsets(result: u32, block: u32, row: u32, place: Place, column: u32, offset: u32, sums: vec4<f32>) {
    if place.h + offset >= params.kernel_h {
        return;
    }
    let at = column + (place.h + offset) * params.kernel_w;
    var sum = sums;
    for (var w = place.w; w < min(place.w + 4u, params.kernel_w); w++) {
        store(result, block, row, at + w, sum.x);
        sum = vec4<f32>(sum.yzw, 0.0);
    }
}

fn product(group: u32, lane: vec2<u32>) {
    let extent = extent();
    let channels = params.channels / params.groups;
    let high = (params.kernel_h + 3u) / 4u;
    let wide = (params.kernel_w + 3u) / 4u;
    let windows = channels * params.kernel_d * high * wide;
    let tile = tile_of(group * WORKGROUP_X + lane.x, extent.rows * windows, extent.blocks);
    if tile.result >= results(extent.squares) {
        return;
    }
    let row = tile.index / windows;
    let window = tile.index % windows;
    let channel = window / (wide * high * params.kernel_d);
    let first_group = params.first_output / (params.outputs / params.groups);
    let place = Place(
        (first_group + tile.block) * channels + channel,
        params.first_output + tile.block * extent.rows + row,
        window / wide / high % params.kernel_d,
        4u * (window / wide % high),
        4u * (window % wide),
    );
    var sums: Window;
    for (var square = tile.result; square < end_of(tile.result, extent.squares); square++) {
        let weight = weight_of(square);
        if weight == 0.0 {
            continue;
        }
        let p = sums_of(place, square);
        sums = Window(
            fold(sums.a, p.a, weight), fold(sums.b, p.b, weight), fold(sums.c, p.c, weight), fold(sums.d, p.d, weight),
        );
    }
    let column = (channel * params.kernel_d + place.d) * params.kernel_h * params.kernel_w;
    store_offsets(tile.result, tile.block, row, place, column, 0u, sums.a);
    store_offsets(tile.result, tile.block, row, place, column, 1u, sums.b);
    store_offsets(tile.result, tile.block, row, place, column, 2u, sums.c);
    store_offsets(tile.result, tile.block, row, place, column, 3u, sums.d);
}
