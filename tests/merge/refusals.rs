//! Every refusal: its message, its exit code, and the old output left as it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use squisher::methods::merge::{Base, MergeOptions, Method, Missing, Model, Normalize};
use squisher::progress::Progress;
use squisher::stream::Budget;
use squisher::{Backend, DType, Error, Run, wgpu};
use tempfile::TempDir;

use crate::files::{Tensor, everything, floats, integers, raw, shaped, write, write_with};
use crate::{command, folder, options, run, run_within, support, with_base};

/// Two models with Fishers, and an old output that nothing may touch.
struct Scene {
    folder: TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { folder: folder() };
        for m in ["0", "1", "_base"] {
            scene.put(&format!("model{m}"), &[weights("a"), weights("b")]);
            scene.put(&format!("fisher{m}"), &[weights("a"), weights("b")]);
        }
        fs::create_dir(scene.path("old")).expect("a fresh folder");
        write(&scene.output(), &[floats("old", DType::F32, &[1.0])]);
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.safetensors"))
    }

    fn put(&self, name: &str, tensors: &[Tensor]) {
        write(&self.file(name), tensors);
    }

    fn output(&self) -> PathBuf {
        self.path("old").join("merged.safetensors")
    }

    /// A merge of the two models over the old output.
    fn options(&self, method: Method) -> MergeOptions {
        let file = |name: &str| self.file(name);
        let (m0, m1, f0, f1) = (file("model0"), file("model1"), file("fisher0"), file("fisher1"));
        let options = options(method, &[(&m0, &f0), (&m1, &f1)]);
        let options = MergeOptions { overwrite: true, ..options };
        match method {
            Method::Ubgm => with_base(options, &file("model_base"), &file("fisher_base")),
            _ => options,
        }
    }

    /// Asserts the refusal by library and command line, on both backends.
    #[track_caller]
    fn refuses(&self, options: &MergeOptions, exit: u8, says: &[&str]) {
        let before = everything(&self.path("old"));
        for backend in support::backends() {
            let error = run(options, &self.output(), &backend).expect_err("this must be refused");
            assert_eq!(error.exit_code(), exit, "{error}");
            assert_says(&error.to_string(), says);
            assert!(
                everything(&self.path("old")) == before,
                "the old output changed, or something was left beside it"
            );
        }
    }

    /// Asserts the refusal by the command line.
    #[track_caller]
    fn exits(&self, options: &MergeOptions, flags: &[&str], exit: i32, says: &[&str]) {
        let before = everything(&self.path("old"));
        let mut command = command(options, &self.output());
        if !flags.contains(&"--adapter") {
            command.args(["--backend", "host"]);
        }
        if options.overwrite {
            command.arg("--overwrite");
        }
        let done = command.args(flags).output().expect("it runs");
        assert_refused(&done, exit, says);
        assert!(
            everything(&self.path("old")) == before,
            "the old output changed, or something was left beside it"
        );
    }
}

fn weights(name: &str) -> Tensor {
    floats(name, DType::F32, &[0.5, 1.0, 2.0, 3.0])
}

#[track_caller]
fn assert_says(message: &str, says: &[&str]) {
    for part in says {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

#[track_caller]
fn assert_refused(done: &Output, exit: i32, says: &[&str]) {
    let message = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(exit), "{message}");
    assert!(done.stdout.is_empty(), "a refusal wrote to stdout");
    assert_says(&message, says);
}

#[test]
fn the_scene_merges_before_anything_is_changed() {
    for method in crate::METHODS {
        let scene = Scene::new();
        run(&scene.options(method), &scene.output(), &Backend::Host).expect("the sound scene");
    }
}

/// What is done to a file, and what the refusal says.
type Damage = (fn(&mut Vec<u8>), &'static str);

#[test]
fn damaged_files_name_the_file() {
    let damage: [Damage; 4] = [
        (|bytes| bytes.truncate(bytes.len() - 5), "5 missing"),
        (|bytes| bytes.extend([0; 3]), "3 too many at the end"),
        (|bytes| bytes[..8].fill(0xff), "18446744073709551615 bytes"),
        (|bytes| overlap(bytes), "\"b\""),
    ];
    for (damage, says) in damage {
        for victim in ["model1", "fisher0"] {
            let scene = Scene::new();
            let mut bytes = fs::read(scene.file(victim)).expect("it is there");
            damage(&mut bytes);
            fs::write(scene.file(victim), bytes).expect("it can be written");
            let name = format!("{victim}.safetensors");
            scene.refuses(&scene.options(Method::Fisher), 3, &[&name, says]);
            scene.exits(&scene.options(Method::Fisher), &[], 3, &[&name, says]);
        }
    }
}

/// Lets the second tensor begin within the first.
fn overlap(bytes: &mut [u8]) {
    let at = bytes.windows(7).position(|window| window == b"[16,32]").expect("the second tensor's place");
    bytes[at..at + 7].copy_from_slice(b"[12,32]");
}

#[test]
fn a_missing_file_is_named() {
    let scene = Scene::new();
    fs::remove_file(scene.file("fisher1")).expect("it was there");
    scene.exits(&scene.options(Method::Fisher), &[], 3, &["fisher1.safetensors", "No such file"]);
}

#[test]
fn models_that_do_not_fit_list_what_differs() {
    let scene = Scene::new();
    scene.put("model1", &[shaped("a", DType::F32, &[2, 2], &[1.0; 4]), weights("c")]);
    let says = [
        "model1.safetensors does not fit",
        "\"a\" has shape [2, 2], expected [4]",
        "\"b\" is missing",
        "\"c\" is not in the first model",
    ];
    for method in crate::METHODS {
        scene.refuses(&scene.options(method), 4, &says);
    }
    scene.exits(&scene.options(Method::Fisher), &[], 4, &says);
}

#[test]
fn long_lists_of_differences_are_cut_and_counted() {
    let scene = Scene::new();
    let many: Vec<Tensor> = (0..9).map(|t| weights(&format!("x{t}"))).collect();
    scene.put("model0", &many);
    scene.put("fisher0", &many);
    scene.refuses(&scene.options(Method::Fisher), 4, &["\"x4\" is missing; and 6 more"]);
}

#[test]
fn floats_do_not_merge_with_integers() {
    let scene = Scene::new();
    scene.put("model1", &[integers("a", &[1, 2, 3, 4]), weights("b")]);
    scene.refuses(&scene.options(Method::Linear), 4, &["\"a\" has type I64, expected F32"]);
}

#[test]
fn integers_that_differ_are_named_with_their_index() {
    let scene = Scene::new();
    scene.put("model0", &[integers("ids", &[1, 2, 3]), weights("b")]);
    scene.put("model1", &[integers("ids", &[1, 2, 300]), weights("b")]);
    let says = ["\"ids\" of type I64 differs", "first at index 2", "model1.safetensors"];
    scene.refuses(&scene.options(Method::Linear), 4, &says);
    // The base is a model too.
    let scene = Scene::new();
    for name in ["model0", "model1"] {
        scene.put(name, &[integers("ids", &[1, 2, 3]), weights("b")]);
    }
    scene.put("model_base", &[integers("ids", &[0, 2, 3]), weights("b")]);
    for fisher in ["fisher0", "fisher1", "fisher_base"] {
        scene.put(fisher, &[weights("b")]);
    }
    let says = ["\"ids\" of type I64 differs", "first at index 0", "model_base.safetensors"];
    scene.refuses(&scene.options(Method::Ubgm), 4, &says);
}

#[test]
fn fishers_of_other_networks_are_refused_with_a_list() {
    let scene = Scene::new();
    scene.put(
        "fisher1",
        &[shaped("a", DType::F32, &[2, 2], &[1.0; 4]), weights("other"), integers("b", &[1, 2, 3, 4])],
    );
    let says = [
        "fisher1.safetensors does not fit",
        "model1.safetensors",
        "\"a\" has shape [2, 2], expected [4]",
        "\"other\" is not in the model",
        "\"b\" has type I64",
    ];
    scene.refuses(&scene.options(Method::Fisher), 4, &says);
    scene.exits(&scene.options(Method::Ubgm), &[], 4, &says);
}

#[test]
fn a_tensor_without_a_fisher_is_named() {
    let scene = Scene::new();
    scene.put("fisher1", &[weights("a")]);
    let says = ["no Fisher for \"b\" of", "model1.safetensors", "--missing average"];
    scene.refuses(&scene.options(Method::Fisher), 4, &says);
    let averaged = MergeOptions { missing: Missing::Average, ..scene.options(Method::Fisher) };
    run(&averaged, &scene.output(), &Backend::Host).expect("the remedy works");
}

#[test]
fn values_no_fisher_can_have_are_named_with_tensor_and_index() {
    for (value, shown) in
        [(f64::NAN, "NaN"), (f64::INFINITY, "inf"), (-1e-3, "-0.001"), (f64::NEG_INFINITY, "-inf")]
    {
        for (victim, method) in
            [("fisher0", Method::Fisher), ("fisher1", Method::Ubgm), ("fisher_base", Method::Ubgm)]
        {
            let scene = Scene::new();
            scene.put(victim, &[weights("a"), floats("b", DType::F32, &[1.0, 1.0, value, value])]);
            let file = format!("{victim}.safetensors: tensor \"b\": index 2 is {shown}");
            let says = [file.as_str(), "expected a finite number of at least 0", "--non-finite zero"];
            scene.refuses(&scene.options(method), 3, &says);
            let normalized = MergeOptions { normalize: Normalize::Mean, ..scene.options(method) };
            scene.refuses(&normalized, 3, &says);
        }
    }
}

#[test]
fn bad_values_are_found_in_every_type_and_in_the_odd_model_out() {
    for dtype in [DType::F16, DType::BF16] {
        let scene = Scene::new();
        scene.put("model2", &[weights("a"), weights("b")]);
        scene.put("fisher2", &[weights("a"), floats("b", dtype, &[1.0, -2.0, 1.0, 1.0])]);
        let mut options = scene.options(Method::Fisher);
        options.models.push(Model {
            path: scene.file("model2"),
            fisher: Some(scene.file("fisher2")),
            weight: 1.0,
        });
        scene.refuses(&options, 3, &["fisher2.safetensors: tensor \"b\": index 1 is -2.0"]);
    }
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    for (victim, method) in
        [("model0", Method::Linear), ("model1", Method::Fisher), ("model_base", Method::Ubgm)]
    {
        for value in [f64::NAN, f64::NEG_INFINITY] {
            let scene = Scene::new();
            scene.put(victim, &[weights("a"), floats("b", DType::BF16, &[1.0, 1.0, 1.0, value])]);
            let says =
                [&*format!("{victim}.safetensors: tensor \"b\": index 3 is "), "expected a finite number"];
            scene.refuses(&scene.options(method), 3, &says);
        }
    }
}

#[test]
fn a_result_beyond_its_type_is_named() {
    let scene = Scene::new();
    for model in ["model0", "model1"] {
        scene.put(model, &[weights("a"), floats("b", DType::F32, &[0.0, 65519.0, 65520.0, 1e5])]);
    }
    let options = MergeOptions { dtype: Some(DType::F16), ..scene.options(Method::Linear) };
    scene.refuses(
        &options,
        4,
        &["tensor \"b\": the merged value at index 2 is beyond the range of f16", "--dtype"],
    );
    scene.exits(&options, &["--dtype", "f16"], 4, &["index 2 is beyond the range of f16"]);
}

#[test]
fn a_double_beyond_f32_is_named() {
    let scene = Scene::new();
    scene.put(
        "model1",
        &[
            crate::files::doubles("a", &[1.0, 2.0, 3.0, 4.0]),
            crate::files::doubles("b", &[1.0, 1e39, 1.0, 1.0]),
        ],
    );
    scene.refuses(
        &scene.options(Method::Linear),
        3,
        &["model1.safetensors: tensor \"b\": index 1 is 1e39, beyond the range of f32"],
    );
}

#[test]
fn fishers_on_different_scales_need_a_word() {
    for (key, one, other) in [
        ("squisher.kind", "empirical", "accumulator"),
        ("squisher.reduction", "sum", "mean"),
        ("squisher.scale", "raw", "sum"),
    ] {
        let scene = Scene::new();
        for (fisher, value) in [("fisher0", one), ("fisher1", other)] {
            write_with(&scene.file(fisher), &[weights("a"), weights("b")], &[(key, value)]);
        }
        let options = scene.options(Method::Fisher);
        scene.refuses(
            &options,
            4,
            &[&format!("says {key} = {one}"), &format!("says {other}"), "--normalize mean", "--allow-mixed"],
        );
        for remedy in [
            MergeOptions { normalize: Normalize::Norm, ..options.clone() },
            MergeOptions { allow_mixed: true, ..options.clone() },
        ] {
            run(&remedy, &scene.output(), &Backend::Host).expect("the remedy works");
        }
    }
}

#[test]
fn a_weight_that_ubgm_cannot_hold_is_refused() {
    let scene = Scene::new();
    let with_weight = |method, weight| {
        let mut options = scene.options(method);
        options.models[0].weight = weight;
        options
    };
    scene.refuses(&with_weight(Method::Ubgm, 1e39), 2, &["above 2^100"]);
    for (method, weight) in [(Method::Ubgm, 1e30), (Method::Fisher, 1e39)] {
        run(&with_weight(method, weight), &scene.output(), &Backend::Host).expect("it fits");
    }
}

#[test]
fn an_output_that_is_an_input_is_refused() {
    let scene = Scene::new();
    let linked = scene.path("linked.safetensors");
    fs::hard_link(scene.file("model1"), &linked).expect("a link can be made");
    let mut ways = vec![scene.file("model0"), scene.file("fisher1"), scene.file("model_base"), linked];
    #[cfg(unix)]
    {
        let symbolic = scene.path("symbolic.safetensors");
        std::os::unix::fs::symlink(scene.file("model1"), &symbolic).expect("a link can be made");
        ways.push(symbolic);
    }
    let before = everything(scene.folder.path());
    for output in ways {
        let error = run(&scene.options(Method::Ubgm), &output, &Backend::Host).expect_err("it is an input");
        assert_eq!(error.exit_code(), 7, "{error}");
        assert_says(&error.to_string(), &[".safetensors"]);
        let done =
            command(&scene.options(Method::Ubgm), &output).arg("--overwrite").output().expect("it runs");
        assert_refused(&done, 7, &[".safetensors"]);
    }
    assert!(everything(scene.folder.path()) == before, "an input was touched");
}

#[test]
fn an_output_that_exists_is_kept_without_overwrite() {
    let scene = Scene::new();
    let options = MergeOptions { overwrite: false, ..scene.options(Method::Fisher) };
    scene.refuses(&options, 7, &["merged.safetensors", "exists", "--overwrite"]);
    scene.exits(&options, &[], 7, &["exists", "--overwrite"]);
    scene.exits(&options, &["--overwrite", "--floor=-1"], 2, &["floor"]);
    let done = command(&options, &scene.output())
        .args(["--backend", "host", "--overwrite"])
        .output()
        .expect("it runs");
    assert!(done.status.success(), "{done:?}");
    assert_eq!(crate::files::read(&scene.output()).len(), 2, "the old output was not replaced");
}

#[test]
fn an_output_that_cannot_be_made_is_named() {
    let scene = Scene::new();
    let options = scene.options(Method::Fisher);
    for path in ["no/such/folder/out.safetensors", "model0.safetensors/out"] {
        let error = run(&options, &scene.path(path), &Backend::Host).expect_err("no such folder");
        assert_eq!(error.exit_code(), 7, "{error}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_refuses_files_is_named() {
    let scene = Scene::new();
    let error = run(&scene.options(Method::Fisher), Path::new("/proc/merged.safetensors"), &Backend::Host);
    let error = error.expect_err("/proc holds no files of ours");
    assert_eq!(error.exit_code(), 7, "{error}");
    assert_says(&error.to_string(), &["/proc/merged.safetensors"]);
}

#[test]
fn an_adapter_that_is_not_there_exits_5() {
    let scene = Scene::new();
    scene.exits(&scene.options(Method::Fisher), &["--adapter", "no such adapter"], 5, &["no such adapter"]);
}

#[test]
fn usage_that_means_nothing_exits_2() {
    let scene = Scene::new();
    let with = |change: &dyn Fn(&mut MergeOptions)| {
        let mut options = scene.options(Method::Ubgm);
        change(&mut options);
        options
    };
    let cases: [(MergeOptions, &str); 7] = [
        (with(&|o| o.models.clear()), "no models"),
        (with(&|o| o.models[0].weight = -1.0), "weight"),
        (with(&|o| o.models[0].weight = f64::NAN), "weight"),
        (with(&|o| o.models.iter_mut().for_each(|m| m.weight = 0.0)), "all weights are 0"),
        (with(&|o| o.base = None), "base"),
        (with(&|o| o.models[1].fisher = None), "no Fisher"),
        (with(&|o| o.floor = f64::INFINITY), "floor"),
    ];
    for (options, says) in cases {
        scene.refuses(&options, 2, &[says]);
    }
    let base = |delta| Base { path: scene.file("model_base"), fisher: scene.file("fisher_base"), delta };
    scene.refuses(&with(&|o| o.base = Some(base(-1.0))), 2, &["delta"]);
    scene.refuses(&MergeOptions { method: Method::Fisher, ..scene.options(Method::Ubgm) }, 2, &["base"]);
    scene.exits(&scene.options(Method::Fisher), &["--delta", "1"], 2, &["delta", "ubgm"]);
}

#[test]
fn a_floor_beyond_f32_is_refused() {
    let scene = Scene::new();
    let options = MergeOptions { floor: 1e300, ..scene.options(Method::Fisher) };
    scene.refuses(&options, 2, &["floor of", "beyond the range of f32"]);
}

#[test]
fn a_budget_that_is_too_small_names_the_smallest_that_works() {
    let scene = Scene::new();
    let options = scene.options(Method::Fisher);
    for (backend, device) in support::backends().into_iter().zip([false, true]) {
        let with = |bytes: u64| {
            let budget = match device {
                true => Budget { device_bytes: bytes, ..Budget::default() },
                false => Budget { host_bytes: bytes, ..Budget::default() },
            };
            run_within(budget, &options, &scene.output(), &backend)
        };
        let error = with(1).expect_err("nothing fits one byte");
        assert_eq!(error.exit_code(), 2, "{error}");
        let Error::Budget { need, flag, .. } = error else { panic!("{error}") };
        assert_eq!(flag, if device { "--device-memory" } else { "--host-memory" });
        with(need).expect("the named budget works");
        with(need - 1).expect_err("one byte less does not");
    }
    scene.exits(
        &options,
        &["--host-memory", "10B"],
        2,
        &["host memory needs at least", "the budget is 10", "--host-memory"],
    );
}

/// Does something when the merge begins to read.
struct AtBegin<F: Fn() + Sync>(F);

impl<F: Fn() + Sync> Progress for AtBegin<F> {
    fn begin(&self, _bytes: u64) {
        (self.0)();
    }

    fn advance(&self, _bytes: u64) {}
}

#[test]
fn an_input_that_changes_while_it_is_read_yields_nothing() {
    for victim in ["model1", "fisher0"] {
        let scene = Scene::new();
        let before = everything(&scene.path("old"));
        let appends = AtBegin(|| {
            let mut bytes = fs::read(scene.file(victim)).expect("it is there");
            bytes.push(0);
            fs::write(scene.file(victim), bytes).expect("it can be written");
        });
        let options = scene.options(Method::Fisher);
        let run = Run { progress: &appends, ..Run::new(&Backend::Host) };
        let result = squisher::methods::merge::merge(&options, &scene.output(), &run);
        let error = result.expect_err("an input changed");
        assert_eq!(error.exit_code(), 3, "{error}");
        assert_says(&error.to_string(), &[&format!("{victim}.safetensors")]);
        assert!(everything(&scene.path("old")) == before, "the old output changed");
    }
}

#[test]
fn an_interrupt_yields_nothing() {
    let scene = Scene::new();
    let before = everything(&scene.path("old"));
    let run = Run::new(&Backend::Host);
    run.interrupt.request(15);
    for floor in [0.0, 0.1] {
        let options = MergeOptions { floor, ..scene.options(Method::Fisher) };
        let result = squisher::methods::merge::merge(&options, &scene.output(), &run);
        assert_eq!(result.expect_err("it was asked to end").exit_code(), 143);
        assert!(everything(&scene.path("old")) == before, "the old output changed");
    }
}

/// A device that is destroyed when the merge begins to stream.
#[test]
fn a_device_lost_on_the_way_yields_nothing() {
    let scene = Scene::new();
    let long = vec![0.5; 400_000];
    for name in ["model0", "model1", "fisher0", "fisher1"] {
        scene.put(name, &[floats("a", DType::F32, &long)]);
    }
    let before = everything(&scene.path("old"));
    let gpu = support::device_with(wgpu::Limits::default());
    let device = gpu.device().clone();
    let backend = Backend::Gpu(gpu);
    let lost = AtBegin(|| device.destroy());
    let budget = Budget { device_bytes: 2 << 20, ..Budget::default() };
    let run = Run { budget, progress: &lost, ..Run::new(&backend) };
    let result = squisher::methods::merge::merge(&scene.options(Method::Fisher), &scene.output(), &run);
    let error = result.expect_err("nothing of a lost device can be trusted");
    assert_eq!(error.exit_code(), 6, "{error}");
    assert!(everything(&scene.path("old")) == before, "the old output changed");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_and_leaves_the_old_output() {
    let scene = Scene::new();
    let long = vec![0.5; 40_000];
    for name in ["model0", "model1"] {
        scene.put(
            name,
            &[raw("a", safetensors::Dtype::F32, long.len(), floats("a", DType::F32, &long).bytes)],
        );
    }
    let small = scene.path("small");
    fs::create_dir(&small).expect("a fresh folder");
    let output = small.join("merged.safetensors");
    let mut merge = command(&scene.options(Method::Linear), &output);
    merge.args(["--backend", "host", "--overwrite"]);
    let words: Vec<String> =
        std::iter::once(merge.get_program()).chain(merge.get_args()).map(quoted).collect();
    // A file system of 64 KiB in a mount namespace of its own: it goes away with the shell.
    let script = format!(
        "mount -t tmpfs -o size=64k none {small} || exit 99; echo old > {output}; {merge}; code=$?; \
         [ \"$(cat {output})\" = old ] || exit 98; [ \"$(ls -A {small} | wc -l)\" = 1 ] || exit 97; exit $code",
        small = quoted(small.as_os_str()),
        output = quoted(output.as_os_str()),
        merge = words.join(" ")
    );
    let done = std::process::Command::new("unshare").args(["-m", "bash", "-c", &script]).output();
    match done {
        Ok(done) if !matches!(done.status.code(), Some(1 | 99)) => {
            assert_refused(&done, 7, &["merged.safetensors"]);
        }
        other => eprintln!("not tested, for no file system can be mounted here: {other:?}"),
    }
}

#[cfg(target_os = "linux")]
fn quoted(word: &std::ffi::OsStr) -> String {
    format!("'{}'", word.to_str().expect("paths here are UTF-8"))
}
