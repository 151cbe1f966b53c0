// The running weighted mean of one parameter over models, four parameters at a time.
// Expects lib/dtype.wgsl, lib/wide.wgsl, lib/count.wgsl.

/// What is known of a parameter after some models. The denominator and the largest single weight share one exponent.
struct Tally {
    mean: vec4<f32>,        // weighted mean of the distances to the reference
    denominator: vec4<f32>, // sum of the weights, mantissa
    largest: vec4<f32>,     // largest weight, mantissa
    exponent: vec4<i32>,
    unfloored: vec4<u32>,   // 1 where some Fisher stood above its floor
}

const UNTOUCHED: Tally = Tally(vec4<f32>(), vec4<f32>(), vec4<f32>(), vec4<i32>(NOTHING), vec4<u32>());

fn unpack(x: vec4<u32>, y: vec4<u32>, z: vec4<u32>, w: vec4<u32>) -> Tally {
    let tail = vec4<u32>(x.w, y.w, z.w, w.w);
    return Tally(
        bitcast<vec4<f32>>(vec4<u32>(x.x, y.x, z.x, w.x)),
        bitcast<vec4<f32>>(vec4<u32>(x.y, y.y, z.y, w.y)),
        bitcast<vec4<f32>>(vec4<u32>(x.z, y.z, z.z, w.z)),
        bitcast<vec4<i32>>(tail) >> vec4<u32>(1u),
        tail & vec4<u32>(1u),
    );
}

/// The four state words of the parameter in one lane.
fn pack(t: Tally, lane: u32) -> vec4<u32> {
    return vec4<u32>(
        bitcast<u32>(t.mean[lane]),
        bitcast<u32>(t.denominator[lane]),
        bitcast<u32>(t.largest[lane]),
        bitcast<u32>(t.exponent[lane] << 1u) | t.unfloored[lane],
    );
}

/// One model alone: what [add_model] makes of nothing and it, without dividing its weight by itself.
fn first_model(weight: Wide, distance: vec4<f32>, share: f32) -> Tally {
    let none = weight.m <= vec4<f32>(0.0);
    return Tally(select(distance, distance * share, none), weight.m, weight.m, weight.e, vec4<u32>());
}

/// Adds one model: `weight` joins the denominator, `pull` (at the exponent `e`) draws the mean to `distance`.
/// While no weight is above zero, `share` is the model's share of a plain average.
fn add_model(t: Tally, weight: Wide, pull: vec4<f32>, e: vec4<i32>, distance: vec4<f32>, share: f32) -> Tally {
    let before = t.denominator * pow2(t.exponent - e);
    let added = mantissa_at(weight, e);
    let sum = before + added;
    let none = sum <= vec4<f32>(0.0);
    let safe = select(sum, vec4<f32>(1.0), none);
    let keep = select(before / safe, vec4<f32>(1.0 - share), none);
    let draw = select(pull / safe, vec4<f32>(share), none);
    let largest = max(t.largest * pow2(t.exponent - e), added);
    return Tally(t.mean * keep + distance * draw, sum, largest, e, t.unfloored);
}

/// What one model's step is given besides its values.
struct Model {
    lambda: f32,
    exponent: i32,
    share: f32,
    least: u32,
}

/// One model's say about four parameters; `alone` if there is none before it.
fn with_model(tally: Tally, alone: bool, theta: vec4<u32>, fisher: vec4<u32>, origin: vec4<f32>, model: Model) -> Tally {
    let good = checked(fisher);
    let raised = good < vec4<u32>(model.least);
    let weight = wide_times(wide(select(good, vec4<u32>(model.least), raised)), model.lambda, model.exponent);
    let distance = floats(theta) - origin;
    var next: Tally;
    if alone {
        next = first_model(weight, distance, model.share);
    } else {
        let e = max(tally.exponent, weight.e);
        next = add_model(tally, weight, mantissa_at(weight, e), e, distance, model.share);
    }
    if FLOORED {
        next.unfloored |= select(vec4<u32>(1u), vec4<u32>(0u), raised);
    }
    return next;
}
