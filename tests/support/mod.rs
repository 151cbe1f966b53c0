//! What several test files share: the adapter that shader tests run on.

use std::sync::OnceLock;

use squisher::Backend;
use squisher::gpu::{AdapterChoice, Gpu};

/// The device for shader tests: a hardware adapter, or software Vulkan. Its absence is a failure.
pub(crate) fn gpu() -> Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    let open = || {
        let wanted = std::env::var("SQUISHER_TEST_ADAPTER").ok();
        let choice = AdapterChoice { wanted, backends: None, software: true };
        pollster::block_on(Gpu::request(&choice))
            .expect("an adapter (`cargo xtask test` installs a software one)")
    };
    GPU.get_or_init(open).clone()
}

/// Both executions, the host first.
#[allow(dead_code, reason = "not every test file uses both")]
pub(crate) fn backends() -> [Backend; 2] {
    [Backend::Host, Backend::Gpu(gpu())]
}
