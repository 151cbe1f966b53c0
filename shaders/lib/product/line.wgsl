// Four output positions of a row at a time, for convolutions with stride_w = dilation_w = 1: the inputs that they meet
// with four offsets in a row are seven neighbours. Expects lib/dtype.wgsl, lib/element.wgsl, lib/product/gather.wgsl
// and fisher/conv_sq.wgsl.

/// The output gradients of `left` positions from an element on, at most four; zeros behind them.
fn gradients_from(index: u32, left: u32) -> vec4<f32> {
    let shift = index & 3u;
    var b = grad_quad(index - shift);
    if shift != 0u {
        b = floats(eight_words(patterns(b), patterns(grad_quad(index - shift + 4u)), vec4<u32>(), shift).lo);
    }
    return params.gradient_scale * select(vec4<f32>(), b, four_indices(0u) < vec4<u32>(left));
}

/// A row of inputs on its way: its `width` elements (0 for one in the padding), the position at which the next four
/// outputs begin, and the two quads that hold inputs from there on.
struct Line {
    width: u32,
    at: u32,
    shift: u32,
    quad: u32,
    a: vec4<f32>,
    b: vec4<f32>,
}

/// The row of a channel's inputs at plane d and height h, from position w on. All may lie in the padding: as u32, what
/// lies before the start lies past the end.
fn line_from(sample: u32, channel: u32, d: u32, h: u32, w: u32) -> Line {
    let inside = d < params.input_d && h < params.input_h;
    let plane = (sample * params.channels + channel) * params.input_d + d;
    let index = (plane * params.input_h + h) * params.input_w + w;
    let quad = index & ~3u;
    var line = Line(select(0u, params.input_w, inside), w, index & 3u, quad, vec4<f32>(), vec4<f32>());
    if inside {
        line.a = input_quad(quad);
        line.b = input_quad(quad + 4u);
    }
    return line;
}

fn next_line(line: Line, c: vec4<f32>) -> Line {
    return Line(line.width, line.at + 4u, line.shift, line.quad + 4u, line.b, c);
}

/// The quad after the two.
fn third_of(line: Line) -> vec4<f32> {
    if line.width == 0u {
        return vec4<f32>();
    }
    return input_quad(line.quad + 8u);
}

/// What four positions meet with each of four offsets: the offsets of one position are a vector.
struct Met {
    p0: vec4<f32>,
    p1: vec4<f32>,
    p2: vec4<f32>,
    p3: vec4<f32>,
}

fn met(line: Line, c: vec4<f32>) -> Met {
    let eight = eight_words(patterns(line.a), patterns(line.b), patterns(c), line.shift);
    let at = four_indices(line.at);
    let lo = select(vec4<f32>(), floats(eight.lo), at < vec4<u32>(line.width));
    let hi = select(vec4<f32>(), floats(eight.hi), at + vec4<u32>(4u) < vec4<u32>(line.width));
    return Met(lo, vec4<f32>(lo.yzw, hi.x), vec4<f32>(lo.zw, hi.xy), vec4<f32>(lo.w, hi.xyz));
}

/// The sums of four offsets with four positions more, of gradients b.
fn add_met(sums: vec4<f32>, b: vec4<f32>, x: Met) -> vec4<f32> {
    return sums + b.x * x.p0 + b.y * x.p1 + b.z * x.p2 + b.w * x.p3;
}
