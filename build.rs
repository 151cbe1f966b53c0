//! Turns `SQUISHER_SKIP_GPU_TESTS=1` into `cfg(skip_gpu_tests)`.
//!
//! A test that needs an adapter carries
//! `#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]`, so that without one it is listed as
//! ignored and never as passed. Unset, such a test fails where there is no adapter.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SQUISHER_SKIP_GPU_TESTS");
    println!("cargo::rustc-check-cfg=cfg(skip_gpu_tests)");
    if std::env::var_os("SQUISHER_SKIP_GPU_TESTS").is_some_and(|value| value == "1") {
        println!("cargo::rustc-cfg=skip_gpu_tests");
    }
}
