//! Errors in kernels that go element by element, and in reductions over them.

use squisher::gpu::DeviceClass;
use squisher::kernels::optimizer::Ema;
use squisher::kernels::{ewc, merge, select, stats, task2vec};
use squisher::verify;

use crate::{Mutant, cases, shader_is_refused, support};

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_mutant_without_an_error_passes() {
    for backend in support::backends() {
        let verdict = verify::kernel(&backend, cases::<Ema>("p=9 ", Mutant::of));
        assert!(verdict.failures.is_empty(), "{:?}", verdict.failures);
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_bound_off_by_one_is_seen() {
    let (from, to) = ("octet * 8u < params.len", "octet * 8u + 8u < params.len");
    shader_is_refused::<Ema>("F32, accumulator: F32 } p=9 ", from, to, "exp_avg_sq[8]: got");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_dropped_factor_is_seen() {
    let (from, to) = ("params.gain * (scaled * scaled)", "(scaled * scaled)");
    shader_is_refused::<Ema>("F32, accumulator: F32 } p=8 ", from, to, "exp_avg_sq[0]: got");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn swapped_operands_are_seen() {
    shader_is_refused::<Ema>("F32 } p=8 ", "update(v.lo, g.lo)", "update(g.lo, v.lo)", "exp_avg_sq[0]: got");
    let (from, to) = ("with_model(tally, false, tb, fb", "with_model(tally, false, tb, fa");
    shader_is_refused::<merge::Fisher>("magnitude: 38", from, to, "merged[");
    // What an invocation alone counts, not handed over.
    let from = "atomicAdd(&counts[word_of_own(slot)], count);";
    shader_is_refused::<merge::Fisher>("magnitude: 38 } alone", from, "", "counts[");
    let (from, to) = ("models.td, models.fd, zero, d)", "models.td, models.fc, zero, d)");
    shader_is_refused::<merge::FisherFour>("magnitude: 38", from, to, "merged[");
    // What the first of two steps raised, counted with the second's.
    let (from, to) = ("raised[model / 2u]", "raised[1u]");
    shader_is_refused::<merge::FisherFour>("floor: [0.25", from, to, "counts[3]");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_missing_tail_is_seen() {
    let about = "F32, accumulator: F32 } p=4095 ";
    shader_is_refused::<Ema>(about, "update(v.hi, g.hi)", "v.hi", "exp_avg_sq[4]: got");
    shader_is_refused::<Ema>(about, "i < OCTETS", "i + 1u < OCTETS", "exp_avg_sq[2048]: got");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn an_output_that_is_not_written_is_seen() {
    // The sentinel's word, not zero.
    let written = "counts[5u * share + 2u] = whole.zeros;";
    shader_is_refused::<stats::Summary>("zeros p=3", written, "", "counts[2]: got 2.779096485e9, want 3e0");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn truncation_in_place_of_rounding_is_seen() {
    let (from, to) = ("(bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u", "bits >> 16u");
    shader_is_refused::<Ema>("accumulator: BF16 } p=2047 ", from, to, "exp_avg_sq[");
    let (from, to) = ("magnitude + 0xfffu + ((magnitude >> 13u) & 1u)", "magnitude");
    shader_is_refused::<Ema>("accumulator: F16 } p=2047 ", from, to, "exp_avg_sq[");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_missing_barrier_is_seen() {
    // A race need not show on a device that runs a workgroup's invocations in step; software does not.
    if support::gpu().caps().class == DeviceClass::Software {
        shader_is_refused::<stats::Summary>("positive p=65536", "workgroupBarrier();", "", "sums[0]: got");
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_sum_that_overflows_is_seen() {
    let from = "sum_of_four(scaled * scaled)";
    let to = "sum_of_four(floats(kept) * floats(kept))";
    shader_is_refused::<stats::Summary>("largest", from, to, "sums[1]: got inf");
    // A sum that keeps an old unit.
    for owner in ["Workgroup growing", "Invocation growing"] {
        shader_is_refused::<stats::Summary>(
            owner,
            "before.squares * scale.y",
            "before.squares",
            "sums[1]: got",
        );
    }
    shader_is_refused::<stats::Summary>("Invocation many zeros", "before.zeros + ", "", "counts[2]: got");
    // Zeros past the end.
    let (from, to) = ("octet + 3u * LANES + 1u) <= params.len", "octet) <= params.len");
    shader_is_refused::<stats::Summary>("Invocation positive", from, to, "counts[");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_forgotten_floor_is_seen() {
    let from = "select(good, vec4<u32>(model.least), raised)";
    shader_is_refused::<merge::Fisher>("floor: [0.25", from, "good", "merged[");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn errors_in_selection_are_seen() {
    let (from, to) = ("score.hi == threshold", "score.hi >= threshold");
    shader_is_refused::<select::Count>("", from, to, "ties[");
    shader_is_refused::<select::Mask>("", "rank < most", "rank <= most", "mask[");
    let (from, to) = ("if ties[block + 1u] <= most", "if before <= most");
    shader_is_refused::<select::Mask>("", from, to, "mask[");
    shader_is_refused::<select::Gather>("", "end; strip++", "end; strip += 2u", "indices[");
    shader_is_refused::<select::Histogram>("", "atomicMax(&fault[0]", "atomicMin(&fault[0]", "fault[0]: got");
    shader_is_refused::<select::Histogram>(
        "sparse",
        "both.x + both.y == 8u",
        "both.x + both.y >= 7u",
        "counts[",
    );
    shader_is_refused::<select::Histogram>("lengths", "octet * 8u >= 8u", "octet * 8u >= 7u", "counts[");
    shader_is_refused::<select::Scan>("2049", "carried += sum_of_all();", "", "counts[2048]: got");
    // A tie that goes to the later element.
    let (from, to) = ("group_scores[i] && j < i", "group_scores[i] && j > i");
    shader_is_refused::<select::Nm>("apart", from, to, "mask[");
    // The forms without barriers, and of groups that lie beside each other.
    let (from, to) = ("*before = rank.w + equal.w", "*before = rank.w");
    shader_is_refused::<select::Mask>("alone", from, to, "mask[");
    shader_is_refused::<select::Mask>("alone", "(score >= least) & inside", "score > least", "mask[");
    shader_is_refused::<select::Gather>("in runs", "(*place).ties += u32(tie)", "", "indices[");
    shader_is_refused::<select::Nm>("4:8 stride 1 beside", "better.lo + across.lo", "better.lo", "mask[");
    shader_is_refused::<select::Nm>("2:4 stride 1 beside", "2u - zx - zy + wz", "2u - zx - zy", "mask[");
    shader_is_refused::<select::Nm>("bad at 5 beside", "of_a, of_b", "of_b, of_b", "fault[0]");
    shader_is_refused::<select::Choose>("", "lo.yw, hi.yw", "lo.xz, hi.xz", "model[");
    // The borrow from the upper half.
    shader_is_refused::<select::Spend>("", "high -= 1u;", "", "left[1]: got");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn errors_in_distances_between_tasks_are_seen() {
    shader_is_refused::<task2vec::RowMean>("bf16", "b.sum * scale.y", "b.sum", "records[");
    // A sum that keeps an old unit, and an element of the next row.
    shader_is_refused::<task2vec::RowMean>("alone", "before.sums * scale.x", "before.sums", "records[");
    let (from, to) = ("< vec4<u32>(run.len)", "< vec4<u32>(run.len + 1u)");
    shader_is_refused::<task2vec::RowMean>("alone", from, to, "records[");
    // The exponent of a square counted once.
    let (from, to) = ("2 * (p.y - y), 2 * (q.y - y)", "p.y - y, q.y - y");
    shader_is_refused::<task2vec::Similarity>("metric: Normalized, a: F32, b: F32", from, to, "records[");
    // A quotient that vanishes, and a value that the other does not have.
    let about = "metric: Normalized, a: F32, b: F32, owner: Invocation";
    shader_is_refused::<task2vec::Similarity>(
        about,
        "(low >> 23u) + 120u",
        "(low >> 23u) + 400u",
        "records[",
    );
    shader_is_refused::<task2vec::Similarity>(about, "near && !apart", "near", "records[");
    let (from, to) = ("one.m / select(", "other.m / select(");
    shader_is_refused::<task2vec::Similarity>("metric: Normalized, a: F32, b: F32", from, to, "records[");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn errors_in_weight_consolidation_are_seen() {
    // The halves of the difference were not undone.
    shader_is_refused::<ewc::Penalty>(
        "theta: F32, anchor: F32, fisher: F32",
        "2 * distance.e + 2",
        "2 * distance.e",
        "records[",
    );
    // A term that is lost beside the product of the largest Fisher and the largest distance.
    shader_is_refused::<ewc::Penalty>("opposed", "own + 60 > product", "own + 600 > product", "records[");
    shader_is_refused::<ewc::Gradient>("add: true", "floats(g) + pull", "floats(g) - pull", "gradient[");
    shader_is_refused::<ewc::Gradient>("", "pow2(exponent - half)", "pow2(half)", "gradient[");
}
