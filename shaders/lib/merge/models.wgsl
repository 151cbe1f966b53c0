// Models that a Fisher merge adds one after the other, four parameters at a time.
// Expects lib/dtype.wgsl, lib/wide.wgsl, lib/merge/tally.wgsl, lib/merge/count.wgsl, lib/merge/step.wgsl, and a kernel
// with the overrides REFERENCE and FIRST and the binding `reference`.

/// The storage type that stands for no Fisher: the model weighs 1 everywhere.
const NONE: u32 = 3u;
const ONES: Octet = Octet(vec4<u32>(0x3f800000u), vec4<u32>(0x3f800000u));

fn load_reference(octet: u32) -> Octet {
    if REFERENCE == F32 {
        return Octet(reference[2u * octet], reference[2u * octet + 1u]);
    }
    return widen(reference[octet], REFERENCE);
}

/// What is known of four parameters before the dispatch's first model.
fn before_models(quad: u32) -> Tally {
    if FIRST {
        return UNTOUCHED;
    }
    return load_state(quad);
}

/// What one model's step is given besides its values.
struct Model {
    lambda: f32,
    exponent: i32,
    share: f32,
    least: u32,
}

/// One model alone: what [add_model] makes of nothing and it, without dividing its weight by itself.
fn first_model(weight: Wide, distance: vec4<f32>, share: f32) -> Tally {
    let none = weight.m <= vec4<f32>(0.0);
    return Tally(select(distance, distance * share, none), weight.m, weight.m, weight.e, vec4<u32>());
}

/// Adds one model to four parameters; `alone` if there is none before it.
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
