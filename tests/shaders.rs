//! Shaders against their Rust descriptions, and folder against folder. Needs no device.

#[path = "support/contract.rs"]
mod contract;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use contract::Described;
use squisher::kernel::{Checked, Visitor};
use squisher::kernels::visit_all;

/// Every specialisation that the cases use, once.
#[derive(Default)]
struct Registry(Vec<Described>);

impl Visitor for Registry {
    fn kernel<K: Checked>(&mut self) {
        for case in K::cases() {
            let described = Described::of(&case.kernel);
            if !self.0.contains(&described) {
                self.0.push(described);
            }
        }
    }
}

fn registry() -> Vec<Described> {
    let mut registry = Registry::default();
    visit_all(&mut registry);
    registry.0
}

/// The files of `folder/FAMILY/` with this extension, as `family.name` with their text. `lib` and `mod.rs` are not kernels.
fn files(folder: &str, extension: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    for family in fs::read_dir(&root).expect("the folder is in the repository") {
        let family = family.expect("a readable folder").path();
        if !family.is_dir() {
            continue;
        }
        for file in fs::read_dir(&family).expect("a readable folder") {
            let file = file.expect("a readable folder").path();
            let stem = |path: &Path| path.file_stem().expect("a named file").to_string_lossy().into_owned();
            if file.extension().is_some_and(|e| e == extension) && stem(&file) != "mod" {
                let text = fs::read_to_string(&file).expect("a readable file");
                found.insert(format!("{}.{}", stem(&family), stem(&file)), text);
            }
        }
    }
    found
}

fn difference(what: &str, a: &BTreeSet<String>, b: &BTreeSet<String>) -> Vec<String> {
    a.difference(b).map(|name| format!("{name}: {what}")).collect()
}

#[test]
fn every_specialisation_keeps_its_contract_and_translates() {
    let registry = registry();
    assert!(!registry.is_empty(), "the registry is empty");
    let problems: Vec<String> = registry.iter().flat_map(contract::problems).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn shaders_hosts_and_registry_name_the_same_kernels() {
    let (mut shaders, mut hosts) = (files("shaders", "wgsl"), files("src/kernels", "rs"));
    shaders.retain(|name, _| !name.starts_with("lib."));
    // What several kernels of a family share lies beside them.
    hosts.retain(|_, text| text.contains("impl Kernel for"));
    let shaders: BTreeSet<String> = shaders.into_keys().collect();
    let hosts: BTreeSet<String> = hosts.into_keys().collect();
    let registered: BTreeSet<String> = registry().iter().map(|kernel| kernel.name.to_owned()).collect();
    let problems = [
        difference("shaders/ has a .wgsl, src/kernels/ has no .rs", &shaders, &hosts),
        difference("src/kernels/ has a .rs, shaders/ has no .wgsl", &hosts, &shaders),
        difference("shaders/ has a .wgsl, the registry has no line", &shaders, &registered),
        difference("the registry has a line, shaders/ has no .wgsl", &registered, &shaders),
    ]
    .concat();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn a_kernel_s_own_file_comes_first_and_the_rest_is_shared() {
    let files = files("shaders", "wgsl");
    let mut unused: BTreeSet<&String> = files.keys().filter(|name| name.starts_with("lib.")).collect();
    for kernel in registry() {
        let own = files.get(kernel.name).map(String::as_str);
        assert_eq!(kernel.parts.first().copied(), own, "{}: the first part is its own file", kernel.name);
        for part in &kernel.parts[1..] {
            let shared = files.iter().find(|(name, text)| name.starts_with("lib.") && text == part);
            let (name, _) = shared.unwrap_or_else(|| panic!("{}: a part is not in shaders/lib", kernel.name));
            unused.remove(name);
        }
    }
    assert!(unused.is_empty(), "no kernel uses {unused:?}");
}
