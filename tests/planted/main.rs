//! Every checker is seen to fail: planted errors, and what the checkers say of them.
//!
//! A mutant is a kernel with one snippet of its shader, or its host function, replaced. The oracle must refuse it on
//! the buffer where the error shows; the contract test must name what differs.

mod bindings;
#[path = "../support/contract.rs"]
mod contract;
mod elementwise;
mod gradients;
mod host;
mod labels;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::sync::Mutex;

use squisher::gpu::{Caps, MatrixUnits};
use squisher::kernel::{Args, Case, Checked, Cost, Kernel};
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

    fn matrix_units(&self) -> Option<MatrixUnits> {
        self.kernel.matrix_units()
    }

    fn launch(&self, params: &K::Params, args: &K::Args, caps: &Caps) -> Result<[u32; 3]> {
        self.kernel.launch(params, args, caps)
    }

    fn iterations(&self, params: &K::Params, args: &K::Args) -> u64 {
        self.kernel.iterations(params, args)
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
