// The form for convolutions with narrow groups on devices where loads cost most: one invocation has up to 4 x 4 neighbouring offsets of a
// kernel plane, whose inputs slide along a row, so that each is loaded once for four of them.
// Expects lib/product.wgsl, fisher/conv_sq.wgsl and stride_w = dilation_w; WORKGROUP_Y is 1.

const NOWHERE: u32 = 0xffffffffu;

/// Four offsets along the width, each with four along the height.
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

/// Where an input row begins, NOWHERE in the padding and past the kernel's last offset.
fn row_at(place: Place, sample: u32, d: i32, h: i32, offset: u32) -> u32 {
    let at = h + i32((place.h + offset) * params.dilation_h);
    if place.h + offset >= params.kernel_h || u32(d) >= params.input_d || u32(at) >= params.input_h {
        return NOWHERE;
    }
    let plane = (sample * params.channels + place.channel) * params.input_d + u32(d);
    return (plane * params.input_h + u32(at)) * params.input_w;
}

fn input_or_zero(row: u32, w: i32) -> f32 {
    if row == NOWHERE || u32(w) >= params.input_w {
        return 0.0;
    }
    return input_at(row + u32(w));
}

fn inputs_at(rows: vec4<u32>, w: i32) -> vec4<f32> {
    return vec4<f32>(input_or_zero(rows.x, w), input_or_zero(rows.y, w), input_or_zero(rows.z, w), input_or_zero(rows.w, w));
}

/// One row of output positions more; `first` is its first element of grad_output.
fn add_positions(sums: Window, place: Place, first: u32, rows: vec4<u32>) -> Window {
    var next = sums;
    let step = i32(params.stride_w);
    var w = i32(place.w * params.dilation_w) - i32(params.padding_w);
    var x = Window(inputs_at(rows, w), inputs_at(rows, w + step), inputs_at(rows, w + 2 * step), vec4<f32>());
    for (var i = 0u; i < params.grad_w; i++) {
        x.d = inputs_at(rows, w + 3 * step);
        let b = params.gradient_scale * grad_at(first + i);
        next = Window(next.a + b * x.a, next.b + b * x.b, next.c + b * x.c, next.d + b * x.d);
        x = Window(x.b, x.c, x.d, vec4<f32>());
        w += step;
    }
    return next;
}

fn sums_of(place: Place, square: u32) -> Window {
    var sums: Window;
    let begin = (params.first + square) * params.fold;
    for (var sample = begin; sample < min(begin + params.fold, params.samples); sample++) {
        var first = (sample * params.outputs + place.output) * positions();
        for (var line = 0u; line < params.grad_d * params.grad_h; line++) {
            let d = i32(line / params.grad_h * params.stride_d + place.d * params.dilation_d) - i32(params.padding_d);
            let h = i32(line % params.grad_h * params.stride_h) - i32(params.padding_h);
            let rows = vec4<u32>(
                row_at(place, sample, d, h, 0u),
                row_at(place, sample, d, h, 1u),
                row_at(place, sample, d, h, 2u),
                row_at(place, sample, d, h, 3u),
            );
            sums = add_positions(sums, place, first, rows);
            first += params.grad_w;
        }
    }
    return sums;
}

/// Stores four offsets along the height, of a row whose first has index `column`.
fn store_offsets(result: u32, block: u32, row: u32, place: Place, column: u32, offset: u32, sums: vec4<f32>) {
    if place.w + offset >= params.kernel_w {
        return;
    }
    let at = column + place.w + offset;
    store(result, block, row, at, sums.x);
    if place.h + 1u < params.kernel_h {
        store(result, block, row, at + params.kernel_w, sums.y);
    }
    if place.h + 2u < params.kernel_h {
        store(result, block, row, at + 2u * params.kernel_w, sums.z);
    }
    if place.h + 3u < params.kernel_h {
        store(result, block, row, at + 3u * params.kernel_w, sums.w);
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
    let column = ((channel * params.kernel_d + place.d) * params.kernel_h + place.h) * params.kernel_w;
    store_offsets(tile.result, tile.block, row, place, column, 0u, sums.a);
    store_offsets(tile.result, tile.block, row, place, column, 1u, sums.b);
    store_offsets(tile.result, tile.block, row, place, column, 2u, sums.c);
    store_offsets(tile.result, tile.block, row, place, column, 3u, sums.d);
}
