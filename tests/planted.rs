//! Every checker is seen to fail: planted errors, and what the checkers say of them.
//!
//! A mutant is a kernel with one snippet of its shader, or its host function, replaced. The oracle must refuse it on
//! the buffer where the error shows; the contract test must name what differs.

#[path = "support/contract.rs"]
mod contract;
mod support;

use std::collections::BTreeSet;
use std::sync::Mutex;

use contract::Described;
use squisher::gpu::{Caps, DeviceClass};
use squisher::kernel::{Access, Args, Binding, Case, Checked, Cost, Kernel, Slot};
use squisher::kernels::optimizer::{Ema, EmaArgs, EmaParams, EmaSlices};
use squisher::kernels::{ewc, fisher, likelihood, merge, select, stats, task2vec};
use squisher::memory::View;
use squisher::{Backend, Result, verify};

type Host<K> = fn(&K, &<K as Kernel>::Params, <<K as Kernel>::Args as Args>::Slices<'_>);

/// A kernel with an error planted.
#[derive(Clone)]
struct Mutant<K: Kernel> {
    kernel: K,
    parts: Vec<&'static str>,
    overrides: Vec<(&'static str, f64)>,
    host: Host<K>,
}

impl<K: Kernel> Mutant<K> {
    /// The kernel as it is.
    fn of(kernel: &K) -> Self {
        let (parts, overrides) = (kernel.wgsl(), kernel.overrides());
        Self { kernel: kernel.clone(), parts, overrides, host: K::host }
    }

    /// With each `from` in the shader replaced. A snippet that is not there would plant nothing.
    fn replaced(kernel: &K, from: &str, to: &str) -> Self {
        let mut mutant = Self::of(kernel);
        assert!(mutant.parts.iter().any(|part| part.contains(from)), "{} has no `{from}`", K::NAME);
        for part in &mut mutant.parts {
            if part.contains(from) {
                *part = interned(part.replace(from, to));
            }
        }
        mutant
    }
}

/// One address for each text: pipelines are cached by it.
fn interned(text: String) -> &'static str {
    static TEXTS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut texts = TEXTS.lock().expect("no test panics while it holds this lock");
    if let Some(known) = texts.get(text.as_str()) {
        return known;
    }
    let text = Box::leak(text.into_boxed_str());
    texts.insert(text);
    text
}

impl<K: Kernel> Kernel for Mutant<K> {
    const NAME: &'static str = K::NAME;
    type Params = K::Params;
    type Args = K::Args;

    fn wgsl(&self) -> Vec<&'static str> {
        self.parts.clone()
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        self.overrides.clone()
    }

    fn subgroup(&self) -> u32 {
        self.kernel.subgroup()
    }

    fn launch(&self, params: &K::Params, args: &K::Args, caps: &Caps) -> Result<[u32; 3]> {
        self.kernel.launch(params, args, caps)
    }

    fn host(&self, params: &K::Params, args: <K::Args as Args>::Slices<'_>) {
        (self.host)(&self.kernel, params, args);
    }

    fn cost(&self, params: &K::Params, args: &K::Args) -> Cost {
        self.kernel.cost(params, args)
    }
}

/// The kernel's cases whose name has `about`, each with its kernel mutated.
fn cases<K: Checked>(about: &str, mutate: impl Fn(&K) -> Mutant<K>) -> Vec<Case<Mutant<K>>> {
    let mutated = |case: Case<K>| Case {
        kernel: mutate(&case.kernel),
        name: case.name,
        params: case.params,
        buffers: case.buffers,
        want: case.want,
    };
    let found: Vec<_> =
        K::cases().into_iter().filter(|case| case.name.contains(about)).map(mutated).collect();
    assert!(!found.is_empty(), "{} has no case about {about}", K::NAME);
    found
}

/// What the oracle says on `backend` of the first case that it refuses.
fn refused<K: Kernel>(backend: &Backend, cases: Vec<Case<K>>) -> String {
    let verdict = verify::kernel(backend, cases);
    let first = verdict.failures.first();
    first.unwrap_or_else(|| panic!("{}: the planted error was not seen", K::NAME)).to_string()
}

/// What the oracle says on the device of a shader with `from` replaced by `to`.
#[track_caller]
fn shader_is_refused<K: Checked>(about: &str, from: &str, to: &str, says: &str) {
    let backend = Backend::Gpu(support::gpu());
    let problem = refused(&backend, cases::<K>(about, |kernel| Mutant::replaced(kernel, from, to)));
    assert!(problem.contains(says), "expected `{says}` in: {problem}");
}

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
    // A row of inputs that is not the kernel's, a row of positions that is not there, and one that meets the first's inputs.
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
        ("NEXT < vec4<u32>(left)", "NEXT <= vec4<u32>(left)"),
        ("at < vec4<u32>(line.width)", "at <= vec4<u32>(line.width)"),
        ("vec4<f32>(lo.zw, hi.xy)", "vec4<f32>(lo.zw, hi.zw)"),
        ("index - shift + 4u", "index - shift"),
        ("line.quad + 4u, line.b, c", "line.quad + 4u, line.a, c"),
    ];
    for (from, to) in slides {
        shader_is_refused::<fisher::ConvSq>("form: Slide", from, to, "out[");
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_sum_that_overflows_is_seen() {
    let from = "total(scaled * scaled)";
    let to = "total(floats(kept) * floats(kept))";
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

/// What the oracle says of the EMA's host execution in its place.
fn host_is_refused(about: &str, host: Host<Ema>) -> String {
    refused(&Backend::Host, cases::<Ema>(about, |kernel| Mutant { host, ..Mutant::of(kernel) }))
}

#[test]
fn an_error_of_the_host_execution_is_seen() {
    let dropped: Host<Ema> = |kernel, params, args| kernel.host(&EmaParams { gain: 1.0, ..*params }, args);
    let problem = host_is_refused("p=8 ", dropped);
    assert!(problem.contains("exp_avg_sq[0]: got"), "{problem}");

    let short: Host<Ema> = |kernel, params, args| {
        let but_one = args.exp_avg_sq.len() - 1;
        let exp_avg_sq = args.exp_avg_sq.chunks(but_one).remove(0);
        kernel.host(params, EmaSlices { gradient: args.gradient.range(0, but_one), exp_avg_sq });
    };
    let problem = host_is_refused("F32, accumulator: F32 } p=9 ", short);
    assert!(problem.contains("exp_avg_sq[8]: got"), "{problem}");
}

/// The EMA's arguments, handed to a step in the wrong order: it writes the gradient.
#[derive(Clone)]
struct Crossed(EmaArgs);

impl Args for Crossed {
    const BINDINGS: &'static [Binding] = &[
        Binding { name: "gradient", access: Access::Read },
        Binding { name: "exp_avg_sq", access: Access::Write },
    ];
    type Slices<'a> = EmaSlices<'a>;

    fn views(&self) -> Vec<&View> {
        vec![&self.0.exp_avg_sq, &self.0.gradient]
    }

    fn from_views(views: Vec<View>) -> Self {
        Self(EmaArgs::from_views(views))
    }

    fn slices<'a>(slots: Vec<Slot<'a>>) -> EmaSlices<'a> {
        EmaArgs::slices(slots)
    }
}

#[derive(Clone)]
struct Overwriting(Ema);

impl Kernel for Overwriting {
    const NAME: &'static str = "planted.overwriting";
    type Params = EmaParams;
    type Args = Crossed;

    fn wgsl(&self) -> Vec<&'static str> {
        self.0.wgsl()
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        self.0.overrides()
    }

    fn launch(&self, params: &EmaParams, args: &Crossed, caps: &Caps) -> Result<[u32; 3]> {
        self.0.launch(params, &args.0, caps)
    }

    fn host(&self, params: &EmaParams, args: EmaSlices<'_>) {
        self.0.host(params, args);
    }

    fn cost(&self, params: &EmaParams, args: &Crossed) -> Cost {
        self.0.cost(params, &args.0)
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_read_buffer_that_changes_is_seen() {
    for backend in support::backends() {
        let case = cases::<Ema>("F32, accumulator: F32 } p=8 ", Mutant::of).remove(0);
        let kernel = Overwriting(case.kernel.kernel);
        let (name, params, buffers, want) = (case.name, case.params, case.buffers, case.want);
        let problem = refused(&backend, vec![Case { name, kernel, params, buffers, want }]);
        assert!(problem.ends_with("gradient is only read, but changed"), "{problem}");
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_refused_shader_is_a_failure_and_no_panic() {
    let mutate = |kernel: &Ema| Mutant::replaced(kernel, "params.decay", "params.delay");
    let problem = refused(&Backend::Gpu(support::gpu()), cases::<Ema>("p=8 ", mutate));
    assert!(problem.contains("optimizer.ema") && problem.contains("delay"), "{problem}");
}

/// What the contract test says of a mutant of the plain EMA.
fn contract_of(mutate: impl Fn(&Ema) -> Mutant<Ema>) -> Vec<String> {
    contract::problems(&Described::of(&cases::<Ema>("F32, accumulator: F32 } p=8 ", mutate)[0].kernel))
}

#[test]
fn the_contract_test_names_what_differs() {
    assert_eq!(contract_of(Mutant::of), Vec::<String>::new());
    let planted = [
        ("exp_avg_sq", "exp_avg", "optimizer.ema: binding 2 is `exp_avg` in WGSL, `exp_avg_sq` in Rust"),
        (
            "decay: f32,\n    gain: f32,",
            "gain: f32,\n    decay: f32,",
            "optimizer.ema: `Params` is { len: u32 at 0, gain: f32 at 4, decay: f32 at 8, gradient_scale: f32 at 12 } in WGSL, \
             { len: u32 at 0, decay: f32 at 4, gain: f32 at 8, gradient_scale: f32 at 12 } in Rust",
        ),
        (
            "var<storage, read> gradient",
            "var<storage, read_write> gradient",
            "optimizer.ema: binding 1 `gradient` is Storage { access: StorageAccess(LOAD | STORE) } in WGSL, Read in Rust",
        ),
        (
            "@compute",
            "@group(0) @binding(3) var<storage, read> more: array<u32>;\n@compute",
            "optimizer.ema: 4 resources are bound in WGSL, 3 in Rust",
        ),
        ("OCTETS", "OCTETTES", "optimizer.ema: override `OCTETS` is given in Rust, missing in WGSL"),
        ("params", "numbers", "optimizer.ema: binding 0 is `numbers` in Uniform, not the uniform `params`"),
        ("@binding(2)", "@binding(3)", "optimizer.ema: binding 2 is missing in WGSL, `exp_avg_sq` in Rust"),
    ];
    for (from, to, says) in planted {
        let problems = contract_of(|kernel| Mutant::replaced(kernel, from, to));
        assert!(problems.iter().any(|p| p.contains(says)), "{from}: {problems:?}");
    }
}

#[test]
fn the_contract_test_sees_overrides_and_limits() {
    let unset = contract_of(|kernel| Mutant {
        overrides: Vec::new(),
        ..Mutant::replaced(kernel, "override OCTETS: u32 = 2u;", "override OCTETS: u32;")
    });
    let says = "optimizer.ema: override `OCTETS` has no default in WGSL, and no value in Rust";
    assert!(unset.iter().any(|p| p == says), "{unset:?}");

    let wide = contract_of(|kernel| Mutant { overrides: vec![("WORKGROUP", 512.0)], ..Mutant::of(kernel) });
    assert_eq!(wide, ["optimizer.ema: 512 invocations a workgroup, 256 are allowed"]);

    let mutate = |kernel: &stats::Summary| {
        Mutant::replaced(kernel, "array<Part, WORKGROUP>", "array<Part, 4u * WORKGROUP>")
    };
    let large = contract::problems(&Described::of(&cases::<stats::Summary>("", mutate)[0].kernel));
    assert_eq!(large, ["stats.summary: 32768 bytes of workgroup memory, 16384 are allowed"]);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_true_class_taken_from_one_minus_p_is_seen() {
    let (from, to) = ("scale, -(others * scale),", "scale, own - 1.0,");
    for lanes in [1, 64] {
        let about = format!("Given, unit: false, lanes: {lanes} }} one class leads by 60");
        shader_is_refused::<likelihood::Softmax>(&about, from, to, "gradient[4]: got");
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_softmax_over_the_wrong_classes_is_seen() {
    for lanes in [1, 64] {
        let about = format!("F32, labels: Given, unit: false, lanes: {lanes} }} r=2 n=4 c=65");
        let (from, to) = ("counts & (bits != vec4<u32>(NEVER))", "(bits != vec4<u32>(NEVER))");
        shader_is_refused::<likelihood::Softmax>(&about, from, to, "gradient[");
        shader_is_refused::<likelihood::Softmax>(&about, "given == params.ignored", "false", "gradient[");
        // A class of the next row.
        shader_is_refused::<likelihood::Softmax>(
            &about,
            "< vec4<u32>(run.len)",
            "<= vec4<u32>(run.len)",
            "got",
        );
    }
    let about = "F32, labels: Each { masked: false }, unit: false, lanes: 1 } r=3 n=5 c=64";
    shader_is_refused::<likelihood::Softmax>(about, "select(1.0, own, EACH)", "1.0", "weight[0]: got");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_draw_off_by_little_is_seen() {
    let about = "F32, masked: false } Sizes { samples: 2, classes: 1000";
    // One of ten rounds missing; a carry forgotten; a share of the classes that is not found.
    shader_is_refused::<likelihood::Draw>(about, "round < 10u", "round < 9u", "drawn[");
    shader_is_refused::<likelihood::Draw>(about, "a.y + b.y + u32(low < a.x)", "a.y + b.y", "drawn[");
    shader_is_refused::<likelihood::Draw>(
        about,
        "at_most(below[i], place)",
        "at_most(place, below[i])",
        "drawn[",
    );
    shader_is_refused::<likelihood::Draw>(
        "samples: 5, classes: 5003",
        "238388332u",
        "238388332u / 2u",
        "drawn[",
    );
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn noise_of_other_coins_is_seen() {
    let about = "Drawn, unit: false } r=3 n=5 c=64";
    shader_is_refused::<likelihood::Gaussian>(about, "index >> 1u", "index >> 2u", "gradient[");
    shader_is_refused::<likelihood::Gaussian>(about, "32.0", "31.5", "gradient[0]: got");
    let about = "F32, targets: Given, unit: true } n=3 c=70 of 1e-30";
    shader_is_refused::<likelihood::Gaussian>(
        about,
        "residual(round, sample, i) / top",
        "residual(round, sample, i)",
        "gradient[",
    );
}
