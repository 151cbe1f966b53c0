//! Cases whose answers PyTorch computed in f64: several models, types and shardings, weights, and Fishers
//! full of zeros.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors};
use squisher::Backend;
use squisher::methods::merge::{MergeOptions, Method};

use crate::definition::{Merged, Parameter};
use crate::files::{self, Tensor};
use crate::support::tool::squisher;
use crate::{METHODS, command, folder, method_name, options, run, support, with_base};

const CASES: [&str; 4] = ["two_f32", "three_bf16_sharded", "zeros_f16", "nine_weighted"];

/// A case's files.
struct Case {
    folder: PathBuf,
    models: Vec<(PathBuf, PathBuf)>,
    lambda: Vec<f64>,
    expected: files::Tensors,
}

impl Case {
    fn open(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/merge").join(name);
        let bytes = fs::read(folder.join("expected.safetensors")).expect("the case is in the repository");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a sound file");
        let metadata = header.metadata().as_ref().expect("it says its weights");
        let lambda: Vec<f64> = serde_json::from_str(&metadata["lambdas"]).expect("a list of numbers");
        let models = (0..lambda.len())
            .map(|m| (found(&folder, &format!("model{m}")), found(&folder, &format!("fisher{m}"))))
            .collect();
        let expected = files::read(&folder.join("expected.safetensors"));
        Self { folder, models, lambda, expected }
    }

    fn options(&self, method: Method) -> MergeOptions {
        let pairs: Vec<(&Path, &Path)> =
            self.models.iter().map(|(m, f)| (m.as_path(), f.as_path())).collect();
        let mut options = options(method, &pairs);
        for (model, &lambda) in options.models.iter_mut().zip(&self.lambda) {
            model.weight = lambda;
        }
        match method {
            Method::Ubgm => {
                with_base(options, &found(&self.folder, "base"), &found(&self.folder, "fisher_base"))
            }
            _ => options,
        }
    }

    /// The definition in f64 from the case's own inputs, for every parameter of a tensor.
    fn defined(&self, method: Method, tensor: &str) -> Vec<Merged> {
        let values = |path: &Path| files::read(path)[tensor].values();
        let thetas: Vec<_> = self.models.iter().map(|(model, _)| values(model)).collect();
        let fishers: Vec<_> = self.models.iter().map(|(_, fisher)| values(fisher)).collect();
        let base = (values(&found(&self.folder, "base")), values(&found(&self.folder, "fisher_base")));
        let one = |p: usize| {
            let theta: Vec<f64> = thetas.iter().map(|t| t[p]).collect();
            let fisher: Vec<f64> = fishers.iter().map(|f| f[p]).collect();
            let base = (base.0[p], base.1[p]);
            Parameter { theta: &theta, fisher: &fisher, lambda: &self.lambda, base }.merged(method)
        };
        (0..thetas[0].len()).map(one).collect()
    }
}

/// A file or a folder of that name.
fn found(folder: &Path, name: &str) -> PathBuf {
    let file = folder.join(format!("{name}.safetensors"));
    if file.exists() { file } else { folder.join(name) }
}

/// The most that one rounding to a type moves a value of this magnitude: half the distance between neighbours there.
pub(crate) fn rounding(dtype: Dtype, magnitude: f64) -> f64 {
    let (digits, least) = match dtype {
        Dtype::F16 => (11, -25),
        Dtype::BF16 => (8, -134),
        _ => (24, -150),
    };
    let exponent = magnitude.log2().floor().max(-200.0) as i32;
    2.0_f64.powi((exponent - digits).max(least))
}

/// How many of a tensor's values are beyond the bound, and the first of them in words.
fn beyond(got: &Tensor, want: &[f64], defined: &[Merged], models: usize) -> Vec<String> {
    let values = got.values();
    assert_eq!(values.len(), want.len(), "{} has another length", got.name);
    let far = |p: &usize| {
        let computed = defined[*p].bound(models);
        let bound = computed + rounding(got.dtype, want[*p].abs() + computed);
        let error = (values[*p] - want[*p]).abs();
        error.is_nan() || error > bound
    };
    let describe = |p: usize| format!("{}[{p}]: got {:e}, want {:e}", got.name, values[p], want[p]);
    (0..want.len()).filter(far).map(describe).collect()
}

fn check(case: &Case, method: Method, got: &files::Tensors, at: &str) {
    let models = files::read(&case.models[0].0);
    assert_eq!(got.keys().collect::<Vec<_>>(), models.keys().collect::<Vec<_>>(), "{at}");
    for (name, own) in &models {
        let (got, want) = (&got[name], &case.expected[&format!("{}/{name}", method_name(method))]);
        assert_eq!((got.dtype, &got.shape), (own.dtype, &own.shape), "{at}: {name}");
        let defined = case.defined(method, name);
        let far = beyond(got, &want.values(), &defined, case.models.len());
        assert!(far.is_empty(), "{at}: {} values beyond the bound, first {}", far.len(), far[0]);
    }
}

#[test]
fn every_case_is_as_defined_on_host_and_device() {
    for case in CASES.map(Case::open) {
        for method in METHODS {
            for backend in support::backends() {
                let at = format!("{} {method:?} on {}", case.folder.display(), backend.name());
                let (got, _) = crate::merged(&case.options(method), &backend);
                check(&case, method, &got, &at);
            }
        }
    }
}

#[test]
fn the_command_line_gives_the_librarys_bytes_by_flags_and_by_recipe() {
    let folder = folder();
    for (at, case) in CASES.map(Case::open).iter().enumerate() {
        for method in METHODS {
            let out = |what: &str| folder.path().join(format!("{at}-{}-{what}", method_name(method)));
            let options = case.options(method);
            run(&options, &out("library"), &Backend::Host).expect("a sound merge");
            let flags =
                command(&options, &out("flags")).args(["--backend", "host"]).output().expect("it runs");
            assert!(flags.status.success(), "{flags:?}");
            let recipe = folder.path().join("recipe.yml");
            fs::write(&recipe, recipe_of(&options)).expect("it can be written");
            let by_recipe = merge_recipe(&recipe, &out("recipe"));
            assert!(by_recipe.status.success(), "{by_recipe:?}");
            let same = |what: &str| stored(&out(what)) == stored(&out("library"));
            assert!(same("flags") && same("recipe"), "{at} {method:?}: the command line's bytes differ");
        }
    }
}

#[test]
fn the_command_line_merges_on_a_device() {
    let folder = folder();
    for case in CASES.map(Case::open) {
        let output = folder.path().join(case.folder.file_name().expect("a name"));
        let done = command(&case.options(Method::Fisher), &output)
            .args(["--adapter", &support::gpu().device().adapter_info().name])
            .output()
            .expect("it runs");
        assert!(done.status.success(), "{done:?}");
        check(&case, Method::Fisher, &files::read(&output), "by the command line");
    }
}

#[test]
fn the_checker_sees_a_value_that_is_off_and_one_that_is_nan() {
    let case = Case::open("two_f32");
    let (got, _) = crate::merged(&case.options(Method::Fisher), &Backend::Host);
    let name = "lm_head.weight";
    let (want, defined) =
        (case.expected[&format!("fisher/{name}")].values(), case.defined(Method::Fisher, name));
    for (index, planted) in [(7, None), (0, Some(f32::NAN))] {
        let mut wrong = got[name].clone();
        let four = 4 * index..4 * index + 4;
        let value = f32::from_le_bytes(wrong.bytes[four.clone()].try_into().expect("four bytes"));
        let off = planted.unwrap_or(value + 4.0 * defined[index].bound(2) as f32);
        wrong.bytes[four].copy_from_slice(&off.to_le_bytes());
        let far = beyond(&wrong, &want, &defined, 2);
        assert_eq!(far.len(), 1, "{far:?}");
        assert!(far[0].starts_with(&format!("{name}[{index}]")), "{far:?}");
    }
}

#[test]
fn the_definition_agrees_with_the_oracle() {
    for case in CASES.map(Case::open) {
        for method in METHODS {
            for name in files::read(&case.models[0].0).keys() {
                let want = case.expected[&format!("{}/{name}", method_name(method))].values();
                for (want, defined) in want.iter().zip(case.defined(method, name)) {
                    assert!(
                        (want - defined.value).abs() <= 1e-13 * defined.scale,
                        "{name}: {want} {}",
                        defined.value
                    );
                }
            }
        }
    }
}

fn merge_recipe(recipe: &Path, output: &Path) -> std::process::Output {
    let mut command = squisher(["merge", "--backend", "host", "-o"]);
    command.arg(output).arg(recipe).output().expect("it runs")
}

fn recipe_of(options: &MergeOptions) -> String {
    let mut text = format!("merge_method: {}\nmodels:\n", method_name(options.method));
    for model in &options.models {
        text += &format!("- model: {:?}\n  parameters:\n    weight: {}\n", model.path, model.weight);
        if let Some(fisher) = &model.fisher {
            text += &format!("    fisher: {fisher:?}\n");
        }
    }
    if let Some(base) = &options.base {
        text += &format!("base_model: {:?}\nparameters: {{base_fisher: {:?}}}\n", base.path, base.fisher);
    }
    text
}

/// The safetensors files' bytes by their names (the model card names other paths).
fn stored(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for (file, bytes) in files::everything(path) {
        let name = file.strip_prefix(path).expect("below").to_string_lossy().into_owned();
        if name.is_empty() || name.ends_with(".safetensors") || name.ends_with(".json") {
            all.push((name, bytes));
        }
    }
    all
}
