//! Every registered kernel, all its cases, both executions, against the f64 definitions.

mod support;

use squisher::{Backend, verify};

fn holds_on(backend: &Backend) {
    let mut kernels = 0;
    let mut problems = Vec::new();
    verify::all(backend, |verdict| {
        assert!(verdict.cases + verdict.skipped > 0, "{} has no cases", verdict.kernel);
        assert!(verdict.cases == 0 || verdict.elements > 0, "{} checks nothing", verdict.kernel);
        assert!(
            verdict.skipped == 0 || !matches!(backend, Backend::Host),
            "{}: the host runs all",
            verdict.kernel
        );
        kernels += 1;
        problems.extend(verdict.failures.iter().map(|failure| format!("{} {failure}", verdict.kernel)));
    });
    assert!(kernels > 0, "the registry is empty");
    assert!(problems.is_empty(), "{}:\n{}", backend.name(), problems.join("\n"));
}

#[test]
fn every_kernel_holds_on_the_host() {
    holds_on(&Backend::Host);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn every_kernel_holds_on_the_device() {
    holds_on(&Backend::Gpu(support::gpu()));
}
