//! What jobs hold in memory, as the system counts it: a merge and a selection their budgets, whatever the
//! models' size; a Fisher a layer's captures and result, or its budget.

#![cfg(target_os = "linux")]

mod support;

use std::fs::{self, File};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use support::files::folder;
use support::tool::{self, squisher};

/// Elements of the one large tensor. With two bf16 models and two f32 Fishers this is 480 MB in and 80 MB
/// out: well above what the process may hold.
const LARGE: u64 = 40_000_000;
/// A tensor that is not a multiple of anything.
const SMALL: u64 = 1_003;

/// The most that the process may hold.
const PEAK: u64 = 400 << 20;

/// Writes a file of two tensors whose values repeat a pattern.
fn checkpoint(folder: &Path, name: &str, dtype: &str, elements: u64, pattern: &[u8]) -> PathBuf {
    let path = folder.join(name);
    let size = if dtype == "F32" { 4 } else { 2 };
    let (large, small) = (elements * size, SMALL * size);
    let header = format!(
        r#"{{"a":{{"dtype":"{dtype}","shape":[{elements}],"data_offsets":[0,{large}]}},"b":{{"dtype":"{dtype}","shape":[{SMALL}],"data_offsets":[{large},{}]}}}}"#,
        large + small
    );
    write(&path, &header, large + small, pattern);
    path
}

/// Writes a header and `bytes` of data that repeat a pattern.
fn write(path: &Path, header: &str, bytes: u64, pattern: &[u8]) {
    let mut file = BufWriter::new(File::create(path).expect("it can be made"));
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("there is room");
    file.write_all(header.as_bytes()).expect("there is room");
    let mut rest = usize::try_from(bytes).expect("below a gigabyte");
    while rest > 0 {
        let piece = rest.min(pattern.len());
        file.write_all(&pattern[..piece]).expect("there is room");
        rest -= piece;
    }
    file.flush().expect("there is room");
}

/// A pattern of a prime number of values between 1/2 and 1, in f32 or its upper half.
fn pattern(seed: u32, size: usize) -> Vec<u8> {
    let word = |i: u32| 0x3f00_0000 | (i.wrapping_mul(0x9e37_79b9).wrapping_add(seed) >> 9);
    (0..999_983).flat_map(|i| word(i).to_le_bytes()[4 - size..].to_vec()).collect()
}

fn inputs(elements: u64) -> (TempDir, Vec<PathBuf>) {
    let folder = folder();
    let paths = ["m0", "m1", "f0", "f1"].iter().zip(1..).map(|(name, seed)| {
        let (dtype, size) = if name.starts_with('m') { ("BF16", 2) } else { ("F32", 4) };
        checkpoint(folder.path(), name, dtype, elements, &pattern(seed * 77_777, size))
    });
    let paths = paths.collect();
    (folder, paths)
}

fn command(paths: &[PathBuf], output: &Path, flags: &[&str]) -> Command {
    let mut command = squisher(["merge", "--method", "fisher", "-q", "-o"]);
    command.arg(output);
    for m in 0..2 {
        command.arg("--model").arg(&paths[m]).arg("--fisher").arg(&paths[m + 2]);
    }
    command.args(flags);
    command
}

fn merge(paths: &[PathBuf], output: &Path, flags: &[&str]) -> Child {
    let mut command = command(paths, output, flags);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it can be started")
}

/// What the tool says as JSON.
fn said(paths: &[PathBuf], output: &Path, flags: &[&str]) -> Value {
    tool::json(&mut command(paths, output, &[flags, &["--json"]].concat()))
}

/// Waits for the end of a child and returns the most memory that it was seen to hold.
///
/// The kernel keeps the peak itself (`VmHWM`), so looking now and then misses only what came after the last look.
fn peak_of(mut child: Child) -> u64 {
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = 0;
    loop {
        peak = fs::read_to_string(&status).ok().and_then(|text| high_water(&text)).unwrap_or(0).max(peak);
        if child.try_wait().expect("it is our child").is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let done = child.wait_with_output().expect("it ended");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    peak
}

fn high_water(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

#[test]
fn budgets_bound_the_memory_of_the_process_and_change_no_byte() {
    let (folder, paths) = inputs(LARGE);
    let budget = ["--device-memory", "64MiB", "--host-memory", "128MiB"];
    let out = |name: &str| folder.path().join(name);
    let unlimited = peak_of(merge(&paths, &out("unlimited"), &["--backend", "host"]));
    let host = peak_of(merge(&paths, &out("host"), &[&["--backend", "host"][..], &budget].concat()));
    let tight = peak_of(merge(&paths, &out("tight"), &["--backend", "host", "--host-memory", "8MiB"]));
    let adapter = support::gpu().device().adapter_info().name;
    let device = peak_of(merge(&paths, &out("device"), &[&["--adapter", &adapter][..], &budget].concat()));
    let mib = |bytes: u64| bytes >> 20;
    let peaks = [unlimited, host, tight, device].map(mib);
    println!("peaks in MiB: {peaks:?} (unlimited, host, tight, device)");
    assert!(host > 1 << 20 && device > 1 << 20, "no peak was seen");
    assert!(host < PEAK, "{} MiB on the host", mib(host));
    assert!(device < PEAK, "{} MiB on a device", mib(device));
    // A ring that stays in a cache needs no limit; 8 MiB more than a tight one at most.
    assert!(unlimited < tight + (8 << 20), "{} MiB in a budget of 8, {} without", mib(tight), mib(unlimited));
    let bytes = |name: &str| fs::read(out(name)).expect("it was written");
    let want = bytes("unlimited");
    assert!(want == bytes("host"), "the budget changed the host's bytes");
    assert!(want == bytes("tight"), "the tight budget changed the host's bytes");
    assert!(want == bytes("device"), "the device's bytes differ");
}

/// A sparse file of one f32 tensor: a hole, but for a run of values every `every` elements.
fn sparse(path: &Path, elements: u64, every: u64, run: &[f32]) {
    let header =
        format!(r#"{{"w":{{"dtype":"F32","shape":[{elements}],"data_offsets":[0,{}]}}}}"#, 4 * elements);
    let mut file = File::create(path).expect("it can be made");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("there is room");
    file.write_all(header.as_bytes()).expect("there is room");
    let start = 8 + header.len() as u64;
    file.set_len(start + 4 * elements).expect("a hole takes no room");
    let bytes: Vec<u8> = run.iter().flat_map(|value| value.to_le_bytes()).collect();
    for at in (0..elements).step_by(usize::try_from(every).expect("small")) {
        file.seek(SeekFrom::Start(start + 4 * at)).expect("inside the file");
        file.write_all(&bytes).expect("there is room");
    }
}

/// The statement that was also tried with 2³¹ elements and 256 MiB (see TESTING.md), at a thirty-second of both.
#[test]
fn a_selection_holds_its_budget_and_not_the_file() {
    const ELEMENTS: u64 = 1 << 26;
    const EVERY: u64 = 1 << 20;
    let run = [3.0, 0.0, 1.0, 2.0];
    let kept = 3 * (ELEMENTS / EVERY);
    // Beside what is above zero, so many of the zeros: the first ones.
    let ties = 1_000_000;
    let folder = folder();
    let (fisher, mask) = (folder.path().join("fisher"), folder.path().join("mask"));
    sparse(&fisher, ELEMENTS, EVERY, &run);
    let share = (kept + ties) as f64 / ELEMENTS as f64;
    let flags = ["-q", "--backend", "host", "--host-memory", "16MiB", "--keep", &share.to_string()];
    let mut command = squisher(["mask"]);
    command.args(flags).arg(&fisher).arg("-o").arg(&mask).stdout(Stdio::null()).stderr(Stdio::piped());
    let peak = peak_of(command.spawn().expect("it can be started"));
    println!("{} MiB for a file of {}", peak >> 20, (4 * ELEMENTS) >> 20);
    // The budget, and as much again as the program itself takes.
    assert!((1 << 20..64 << 20).contains(&peak), "{} MiB", peak >> 20);

    let mut bytes = Vec::new();
    File::open(&mask).expect("it was written").read_to_end(&mut bytes).expect("it can be read");
    let bytes = &bytes[bytes.len() - usize::try_from(ELEMENTS).expect("it fits")..];
    let (mut zeros, mut wrong) = (0, None);
    for (at, &byte) in (0_u64..).zip(bytes) {
        let in_run = at % EVERY;
        let positive = matches!(in_run, 0 | 2 | 3);
        zeros += u64::from(!positive);
        if byte != u8::from(positive || zeros <= ties) {
            wrong = wrong.or(Some(at));
        }
    }
    assert_eq!(wrong, None, "an element is kept that should not be, or the other way round");
}

/// Samples, positions, and inputs as well as outputs of a linear layer whose per-sample gradients would have 256 MiB.
const LAYER: [u64; 3] = [64, 128, 1024];

/// A layer's tiles, the program, a piece of a file on its way: what a Fisher may hold beside captures and result.
const BESIDE: u64 = 64 << 20;

/// A capture of a linear layer: samples, positions, inputs and outputs.
fn linear(folder: &TempDir, sizes: [u64; 3]) -> PathBuf {
    captured(folder, r#"\"kind\": \"linear\""#, sizes)
}

/// A capture in bf16 of a layer as wide as its input: samples, positions, width.
fn captured(folder: &TempDir, layer: &str, [samples, positions, width]: [u64; 3]) -> PathBuf {
    let bytes = 2 * samples * positions * width;
    let shape = format!("[{samples},{positions},{width}]");
    let layers = format!(r#"{{\"fc\": {{{layer}, \"bias\": false}}}}"#);
    let metadata = format!(r#"{{"format":"squisher-capture-1","layers":"{layers}"}}"#);
    let tensor = |name: &str, at: u64| {
        format!(r#""fc.{name}":{{"dtype":"BF16","shape":{shape},"data_offsets":[{at},{}]}}"#, at + bytes)
    };
    let tensors = [tensor("grad_output", 0), tensor("input", bytes)].join(",");
    let capture = folder.path().join("capture.safetensors");
    write(&capture, &format!(r#"{{"__metadata__":{metadata},{tensors}}}"#), 2 * bytes, &pattern(1, 2));
    capture
}

/// A result of four times the budget is computed some rows at a time, in the budget and what the program itself takes.
#[test]
fn a_fisher_keeps_to_its_budget() {
    let folder = folder();
    let capture = linear(&folder, [8, 4, 4096]);
    let peak = |budget: &str| {
        let flags = ["--backend", "host", "-q", "--overwrite", "--host-memory", budget, "-o"];
        let mut command = squisher(["fisher"]);
        command.args(flags);
        command.arg(folder.path().join("fisher")).arg(&capture).stdout(Stdio::null()).stderr(Stdio::piped());
        peak_of(command.spawn().expect("it can be started"))
    };
    let (most, least) = (peak("1GiB"), peak("16MiB"));
    println!("{} MiB with a result of 64, {} with a budget of 16", most >> 20, least >> 20);
    assert!(most > 64 << 20, "no peak was seen");
    assert!((1 << 20..56 << 20).contains(&least), "{} MiB", least >> 20);
}

#[test]
fn a_fisher_holds_a_layer_s_captures_and_result_and_little_more() {
    let folder = folder();
    let [samples, positions, width] = LAYER;
    let bytes = 2 * samples * positions * width;
    let capture = linear(&folder, LAYER);
    let mut command = squisher(["fisher", "--backend", "host", "-q", "-o"]);
    command.arg(folder.path().join("fisher")).arg(&capture);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it can be started");
    let peak = peak_of(child);
    let needed = 2 * bytes + 4 * width * width;
    println!("peak {} MiB, captures and result {} MiB", peak >> 20, needed >> 20);
    assert!(peak > 2 * bytes, "no peak was seen");
    assert!(peak <= needed + BESIDE, "{} MiB, {} and {} allowed", peak >> 20, needed >> 20, BESIDE >> 20);
}

/// What is read for a device does not lie in the host's memory beside what kernels work in: a step, which
/// holds a layer's data of all files, has them once.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_step_on_a_device_holds_its_captures_once() {
    let folder = folder();
    let norm = r#"\"kind\": \"layer_norm\", \"eps\": 1e-5, \"axes\": 1"#;
    let (capture, bytes) = (captured(&folder, norm, [128, 512, 1024]), 2 * 2 * 128 * 512 * 1024);
    let adapter = support::gpu().device().adapter_info().name;
    let mut command = squisher(["step", "--kind", "ef", "--damping", "1", "-q", "--adapter", &adapter, "-o"]);
    command.arg(folder.path().join("step")).arg(&capture);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it can be started");
    let peak = peak_of(child);
    println!("peak {} MiB, captures {} MiB", peak >> 20, bytes >> 20);
    assert!(peak > 1 << 20, "no peak was seen");
    // Twice the captures would be more; a driver has 100 MiB and more.
    assert!(peak < bytes + (224 << 20), "{} MiB", peak >> 20);
}

/// Once, four and sixteen times the parameters at the same budget: bytes and chunks (which are the steps)
/// grow as the parameters do, and memory does not grow.
#[test]
fn cost_grows_as_the_parameters_do_and_memory_does_not() {
    let flags = ["--backend", "host", "--host-memory", "4MiB"];
    let measured = [LARGE / 16, LARGE / 4, LARGE].map(|elements| {
        let (folder, paths) = inputs(elements);
        let out = folder.path().join("out");
        let plan = said(&paths, &out, &[&flags[..], &["--dry-run"]].concat());
        let passes = plan["passes"].as_array().expect("a list of passes").iter();
        let chunks: u64 = passes.map(|pass| pass["plan"]["chunks"].as_u64().expect("a number")).sum();
        let done = said(&paths, &out, &flags);
        assert_eq!(done["bytes_read"].as_u64(), Some(12 * (elements + SMALL)), "each input is read once");
        let header = fs::metadata(&out).expect("it was written").len() - 2 * (elements + SMALL);
        assert!(header < 1024, "the output is the merged elements and {header} bytes of header");
        (chunks, peak_of(merge(&paths, &out, &[&flags[..], &["--overwrite"]].concat())))
    });
    for [(fewer, _), (more, _)] in measured.array_windows() {
        assert!((4 * fewer).abs_diff(*more) <= 4, "{fewer} chunks became {more}");
    }
    let [(_, small), .., (_, large)] = measured;
    assert!(large < small + (16 << 20), "{} MiB became {} MiB", small >> 20, large >> 20);
}
