// The running weighted mean of one parameter over models, four parameters at a time. Expects lib/wide.wgsl.

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
