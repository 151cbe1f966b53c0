//! What the contract test says of bindings, parameters, overrides and limits.

use squisher::kernels::optimizer::Ema;
use squisher::kernels::stats;

use crate::contract::Described;
use crate::{Mutant, cases, contract};

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
