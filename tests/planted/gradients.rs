//! Errors in squared gradients and inner products.

use squisher::kernels::fisher;

use crate::{shader_is_refused, support};

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn factors_shifted_by_one_are_seen() {
    let about = "form: Register(Own), mode: Squares, input: BF16, grad_output: BF16";
    let (from, to) = ("between, (index & 1u) != 0u", "between, (index & 1u) == 0u");
    shader_is_refused::<fisher::LinearSqShared>(about, from, to, "out[0]: got");
    let (from, to) = ("vec4<u32>(hi.yzw, next), one", "vec4<u32>(hi.yzw, hi.w), one");
    shader_is_refused::<fisher::LinearSqShared>("form: Register(Own)", from, to, "out[");
    // The last positions of a row, and the first of the next sample.
    let (from, to) = ("< vec4<u32>(positions)", "< vec4<u32>(positions + 4u)");
    shader_is_refused::<fisher::Gram>("form: Quads(Own)", from, to, "out[");
    let (from, to) = ("+ column.channel) * positions() + four", "+ column.channel) * 4u + four");
    shader_is_refused::<fisher::ConvSq>("pointwise: true", from, to, "out[");
    // A row of inputs that is not the kernel's, a row of positions that is not there, and one that meets the
    // first's inputs.
    let windows = [
        ("h + offset * params.dilation_h", "h + offset"),
        ("select(0u, params.grad_w, row + 1u < params.grad_h)", "params.grad_w"),
        ("add_met(add_met(p.b, g, b.met), h, c.met)", "add_met(add_met(p.b, g, b.met), h, b.met)"),
    ];
    for (from, to) in windows {
        shader_is_refused::<fisher::ConvSq>("form: Window", from, to, "out[");
    }
    let (from, to) = ("select(position.grad + 1u, 0u, next_sample)", "position.grad + 1u");
    shader_is_refused::<fisher::ConvSq>("form: Quads(Own), mode: Each", from, to, "out[");
}

/// Values handed round in a subgroup: another lane's, another row's, past the end of a row of positions.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn another_lane_s_factors_are_seen() {
    if support::gpu().caps().subgroup != 8 {
        return eprintln!("no planted error for forms that this device does not take");
    }
    let (from, to) = ("subgroupBroadcast(own, 5u)", "subgroupBroadcast(own, 4u)");
    shader_is_refused::<fisher::LinearSqShared>("form: Register(Shared)", from, to, "out[");
    shader_is_refused::<fisher::LinearSq>("form: Octets(Shared)", from, to, "out[");
    let (from, to) = ("subgroupBroadcast(b, 7u)", "subgroupBroadcast(a, 7u)");
    shader_is_refused::<fisher::Gram>("form: Quads(Shared)", from, to, "out[");
    shader_is_refused::<fisher::ConvSq>("form: Slide", from, to, "out[");
    let slides = [
        ("four_indices(0u) < vec4<u32>(left)", "four_indices(0u) <= vec4<u32>(left)"),
        ("at < vec4<u32>(line.width)", "at <= vec4<u32>(line.width)"),
        ("vec4<f32>(lo.zw, hi.xy)", "vec4<f32>(lo.zw, hi.zw)"),
        ("index - shift + 4u", "index - shift"),
        ("line.quad + 4u, line.b, c", "line.quad + 4u, line.a, c"),
    ];
    for (from, to) in slides {
        shader_is_refused::<fisher::ConvSq>("form: Slide", from, to, "out[");
    }
}

/// Halves of factors, their powers of two, and which subgroup has which part of a tile. Without a device that
/// has matrix units, `kernels/fisher/halves.rs` plants some of these in a model.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn errors_on_matrix_units_are_seen() {
    let Some(units) = support::gpu().caps().matrix_units else {
        return eprintln!("no planted error for forms that this device does not take");
    };
    let form =
        format!("form: Matrix({units:?}), mode: Squares, input: F32, grad_output: F32, overwrite: true");
    let errors = [
        ("atomicStore(&left_rough, 1u)", "atomicStore(&left_rough, 0u)"),
        ("atomicStore(&right_rough, 1u)", "atomicStore(&right_rough, 0u)"),
        ("0.00048828125", "0.0009765625"),
        ("low_3 = coopMultiplyAdd(c_1, b_1, low_3)", "low_3 = coopMultiplyAdd(c_0, b_1, low_3)"),
        ("return rounded((value - high) * 2048.0)", "return 0.0"),
        ("vec4<i32>(282)", "vec4<i32>(281)"),
        ("let there = start + k < positions", "let there = start + k <= positions"),
        ("unit % 2u * 2u * SIDE", "unit % 2u * SIDE"),
        (
            "coopLoadT<RightMatrix>(&right_high[columns], SPAN)",
            "coopLoad<RightMatrix>(&right_high[columns], SPAN)",
        ),
        // A power of two that is another row's; a row that is infinite or no number.
        (
            "let left_top = atomicLoad(&left_tops[slot.index])",
            "let left_top = atomicLoad(&left_tops[slot.index / 4u])",
        ),
        ("select(finite, tops, ", "select(finite, finite, "),
    ];
    for (from, to) in errors {
        shader_is_refused::<fisher::LinearSqShared>(&form, from, to, "out[");
    }
    let (from, to) = errors[0];
    shader_is_refused::<fisher::ConvSq>(&form, from, to, "out[");
    let form = format!("form: Matrix({units:?}), x: F32, y: F32, overwrite: true");
    shader_is_refused::<fisher::Gram>(&form, from, to, "out[");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn gradients_squared_or_stored_in_another_s_place_are_seen() {
    let (from, to) = ("select(p, p * p, SQUARED)", "p * p");
    shader_is_refused::<fisher::LinearSqShared>(
        "Register(Own), mode: Gradients, input: BF16",
        from,
        to,
        "out[",
    );
    shader_is_refused::<fisher::ConvSq>("Direct, mode: Each, input: BF16", from, to, "out[");
    let (from, to) = ("select(whole, whole * whole, SQUARED)", "whole * whole");
    shader_is_refused::<fisher::SumSq>("mode: Gradients, lanes: 1, ", from, to, "out[");
    let (from, to) = ("select(g, g * g, SQUARED)", "g * g");
    shader_is_refused::<fisher::NormSq>("mode: Each, input: F16", from, to, "out[");
    let (from, to) = ("begin * params.channels + channel", "channel");
    shader_is_refused::<fisher::NormSq>("mode: Each, input: F16", from, to, "out[");
    let about = "Direct, mode: Each, input: F32, grad_output: F32, overwrite: false";
    let (from, to) = ("(params.first + result) * params.output_count", "result * params.output_count");
    shader_is_refused::<fisher::LinearSqShared>(about, from, to, "out[");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn errors_in_squared_gradients_are_seen() {
    // An id that occurs twice in a sample.
    let (from, to) = ("sum = Values(sum.lo + b.lo, sum.hi + b.hi)", "sum = b");
    shader_is_refused::<fisher::EmbeddingSq>("Touched", from, to, "out[");
    let (from, to) = ("floats(grad_output[word / 4u + 1u])", "floats(words)");
    shader_is_refused::<fisher::EmbeddingSq>("gradient: F32, together: true", from, to, "out[4]");
    shader_is_refused::<fisher::NormSq>("Last", "(x - run.x)", "x", "out[");
    // Columns of the next row, another's mean, and columns past the last.
    let (from, to) = ("row * (params.channels / 8u) + octet", "row + octet");
    shader_is_refused::<fisher::NormSq>("octets: 2", from, to, "out[");
    shader_is_refused::<fisher::NormSq>("octets: 4", "let run = stats[row];", "let run = stats[0];", "out[");
    let (from, to) =
        ("OCTETS > 1u && octet + WORKGROUP < octets", "OCTETS > 2u && octet + WORKGROUP < octets");
    shader_is_refused::<fisher::SumSq>("octets: 2", from, to, "out[64]: got");
    // What lies between the means of two parts.
    for lanes in ["lanes: 1 ", "lanes: 256 "] {
        let (from, to) = ("q.spread + between", "q.spread");
        shader_is_refused::<fisher::NormStats>(lanes, from, to, "stats[");
    }
    let (from, to) = ("i32(w * params.stride_w) - i32(params.padding_w)", "i32(w * params.stride_w)");
    shader_is_refused::<fisher::ConvSq>("input: BF16, grad_output: F16", from, to, "out[");
    let (from, to) = (" - params.out_first", "");
    shader_is_refused::<fisher::LinearSq>("held=", from, to, "out[");
    shader_is_refused::<fisher::LinearSqShared>("held=", from, to, "out[");
    shader_is_refused::<fisher::ConvSq>("held=", from, to, "out[");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn inner_products_of_other_elements_or_rows_are_seen() {
    let about = "Direct, x: F32, y: F32, overwrite: false } m,n,p=(19";
    shader_is_refused::<fisher::Gram>(about, "params.first + t", "t", "out[");
    shader_is_refused::<fisher::Gram>(about, "params.first_column + column", "column", "out[");
    shader_is_refused::<fisher::Gram>(about, "out[index] += sum", "out[index] = sum", "out[");
}
