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

/// The files of `folder/FAMILY/` with this extension, as `family.name` with their text. `lib` and `mod.rs`
/// are not kernels.
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

/// Every text in `shaders/`, by its path there.
fn texts() -> BTreeMap<String, String> {
    fn read(root: &Path, folder: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                read(root, &path, found);
            } else if path.extension().is_some_and(|extension| extension == "wgsl") {
                let names = path.strip_prefix(root).expect("what is found lies in the folder").iter();
                let names: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
                found.insert(names.join("/"), fs::read_to_string(&path).expect("a readable file"));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let mut found = BTreeMap::new();
    read(&root, &root, &mut found);
    found
}

/// The texts that a header says its own cannot do without; of several joined by "or", one.
fn expected(text: &str) -> Option<Vec<Vec<String>>> {
    let header = text.lines().map_while(|line| line.strip_prefix("//"));
    let header = header.collect::<Vec<_>>().join(" ");
    let (_, expectations) = header.split_once("Expects")?;
    let mut all: Vec<Vec<String>> = Vec::new();
    let mut or = false;
    for word in expectations.split_whitespace() {
        let name = word.trim_end_matches([',', '.', ';', ':']);
        match all.last_mut() {
            Some(either) if or && name.ends_with(".wgsl") => either.push(name.into()),
            _ if name.ends_with(".wgsl") => all.push(vec![name.into()]),
            _ => {}
        }
        or = word == "or";
    }
    Some(all)
}

/// What is wrong with the texts of one specialisation, its own first: one that a header expects is missing,
/// one is there that none expects (but for a product kernel's form, which the kernel chooses), a header does
/// not say what it expects.
fn unmet(texts: &[(&str, &str)]) -> Vec<String> {
    let names: Vec<&str> = texts.iter().map(|(name, _)| *name).collect();
    let there = |name: &String| names.contains(&name.as_str());
    let mut problems = Vec::new();
    let mut asked = BTreeSet::new();
    for (name, text) in texts {
        let Some(expected) = expected(text) else {
            problems.push(format!("{name} does not say what it expects"));
            continue;
        };
        for either in expected {
            if !either.iter().any(there) {
                problems.push(format!("{name} expects {}, which is not there", either.join(" or ")));
            }
            asked.extend(either);
        }
    }
    for (name, text) in texts.iter().skip(1) {
        if !asked.contains(*name) && !text.contains("fn product(") {
            problems.push(format!("{name} is there, and none expects it"));
        }
    }
    problems
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

/// The texts of a specialisation with their paths.
fn named<'a>(kernel: &Described, texts: &'a BTreeMap<String, String>) -> Vec<(&'a str, &'a str)> {
    let find = |part: &&str| {
        let found = texts.iter().find(|(_, text)| text == part);
        found.unwrap_or_else(|| panic!("{}: a part is not in shaders/", kernel.name))
    };
    kernel.parts.iter().map(find).map(|(name, text)| (name.as_str(), text.as_str())).collect()
}

#[test]
fn a_kernel_s_own_file_comes_first_and_the_rest_is_shared() {
    let texts = texts();
    let mut unused: BTreeSet<&str> =
        texts.keys().map(String::as_str).filter(|name| name.starts_with("lib/")).collect();
    for kernel in registry() {
        let named = named(&kernel, &texts);
        let own = format!("{}.wgsl", kernel.name.replace('.', "/"));
        assert_eq!(named[0].0, own, "{}: the first part is its own file", kernel.name);
        for (name, _) in &named[1..] {
            assert!(name.starts_with("lib/"), "{}: {name} is not in shaders/lib", kernel.name);
            unused.remove(name);
        }
    }
    assert!(unused.is_empty(), "no kernel uses {unused:?}");
}

#[test]
fn every_header_s_expectations_are_met() {
    let texts = texts();
    let problems: BTreeSet<String> =
        registry().iter().flat_map(|kernel| unmet(&named(kernel, &texts))).collect();
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn a_part_too_few_or_too_many_is_found() {
    let texts = texts();
    let registry = registry();
    let ema = registry.iter().find(|kernel| kernel.name == "optimizer.ema").expect("it is registered");
    let whole = named(ema, &texts);
    assert_eq!(unmet(&whole), [""; 0]);
    assert_eq!(unmet(&whole[..1]), ["optimizer/ema.wgsl expects lib/dtype.wgsl, which is not there"]);
    let wide = ("lib/wide.wgsl", texts["lib/wide.wgsl"].as_str());
    assert_eq!(unmet(&[&whole[..], &[wide]].concat()), ["lib/wide.wgsl is there, and none expects it"]);
    let mute = [("own.wgsl", "// What it does."), ("lib/dtype.wgsl", whole[1].1)];
    assert_eq!(
        unmet(&mute),
        ["own.wgsl does not say what it expects", "lib/dtype.wgsl is there, and none expects it"]
    );
    let either = "// Expects lib/a.wgsl\n// or lib/b.wgsl, and more.";
    assert_eq!(unmet(&[("own.wgsl", either), ("lib/b.wgsl", "// Expects no part.")]), [""; 0]);
    assert_eq!(
        unmet(&[("own.wgsl", either)]),
        ["own.wgsl expects lib/a.wgsl or lib/b.wgsl, which is not there"]
    );
}
