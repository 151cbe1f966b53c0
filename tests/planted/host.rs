//! Errors of a host execution, and what is wrong with more than values.

use squisher::gpu::Caps;
use squisher::kernel::{Access, Args, Binding, Case, Cost, Kernel, Slot};
use squisher::kernels::optimizer::{Ema, EmaArgs, EmaParams, EmaSlices};
use squisher::memory::View;
use squisher::{Backend, Result};

use crate::{Host, Mutant, cases, refused, support};

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
