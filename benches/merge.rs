//! A whole merge, from files to a synced file, against what moving the same bytes costs: `cargo bench --bench merge`.
//!
//! Two bf16 models with f32 Fishers. Beside it, in the same run: copying the inputs and writing as much as
//! the output (a merge can't be faster than that on the same files), and the copy bandwidth of the backend's
//! memory. Then the same merge of 1, 4 and 16 times the parameters: the time of a parameter and the most
//! memory that the process held must not grow. `SQUISHER_BENCH_ADAPTER=NAME` merges on that adapter instead
//! of the host, `SQUISHER_BENCH_ELEMENTS` sets the parameters of a model (8 Mi by default: 96 MB in, 16 MB
//! out).

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use criterion::{BatchSize, Criterion, Throughput};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use squisher::bench::Job;
use squisher::gpu::AdapterChoice;
use squisher::methods::merge::{MergeOptions, Method, Model, merge};
use squisher::{Backend, Gpu, Result, Run};

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let backend = backend()?;
    let elements = std::env::var("SQUISHER_BENCH_ELEMENTS").ok().and_then(|n| n.parse().ok());
    let elements: usize = elements.unwrap_or(8 << 20);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let options = options(folder.path(), elements);
    let output = folder.path().join("merged.safetensors");
    let merge_once = || merge(&options, &output, &Run::new(&backend));
    let report = merge_once()?;
    check(&output, elements);

    let mut group = criterion.benchmark_group("merge");
    group.throughput(Throughput::Bytes(report.bytes_read + report.bytes_written)).sample_size(10);
    group.bench_function(format!("fisher, 2 bf16 models of {elements} on {}", report.adapter), |bencher| {
        bencher.iter(|| merge_once().expect("it merged before"));
    });
    group.bench_function("reading the inputs and writing the output", |bencher| {
        let buffer = || vec![0; 8 << 20];
        bencher.iter_batched_ref(
            buffer,
            |buffer| move_files(&options, &output, buffer),
            BatchSize::PerIteration,
        );
    });
    group.finish();
    copy(&mut criterion, &Job::copy(&backend, 4 * elements as u64)?);
    criterion.final_summary();
    [1, 4, 16].into_iter().try_for_each(|times| growth(&backend, times, times * elements))
}

/// Merges models of `elements` parameters a few times, and prints what a parameter costs and the memory it took.
fn growth(backend: &Backend, times: usize, elements: usize) -> Result<()> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let options = options(folder.path(), elements);
    let output = folder.path().join("merged.safetensors");
    let mut seconds = Vec::new();
    forget_peak();
    for _ in 0..5 {
        seconds.push(merge(&options, &output, &Run::new(backend))?.seconds);
    }
    seconds.sort_by(f64::total_cmp);
    let (seconds, peak) =
        (seconds[2], peak().map_or("unknown".to_owned(), |kib| format!("{} MiB", kib >> 10)));
    println!(
        "{times:2} x: {elements} parameters in {seconds:.3} s, {:.3} ns a parameter, most memory resident {peak}",
        1e9 * seconds / elements as f64
    );
    Ok(())
}

/// From here on the most memory resident counts anew, where the system can do that.
fn forget_peak() {
    let _not_on_this_system = fs::write("/proc/self/clear_refs", "5");
}

/// The most memory resident in KiB, where the system says so.
fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn backend() -> Result<Backend> {
    let Ok(wanted) = std::env::var("SQUISHER_BENCH_ADAPTER") else { return Ok(Backend::Host) };
    let choice = AdapterChoice { wanted: Some(wanted), ..AdapterChoice::default() };
    Ok(Backend::Gpu(pollster::block_on(Gpu::request(&choice))?))
}

/// Values in [1/2, 1) whose upper halves are bf16's.
fn values(seed: u32, elements: usize, size: usize) -> Vec<u8> {
    let word = |i: usize| 0x3f00_0000 | (i as u32).wrapping_mul(0x9e37_79b9).wrapping_add(seed) >> 9;
    (0..elements).flat_map(|i| word(i).to_le_bytes()[4 - size..].to_vec()).collect()
}

fn file(folder: &Path, name: &str, seed: u32, dtype: Dtype, elements: usize) -> PathBuf {
    let path = folder.join(name);
    let data = values(seed, elements, dtype.bitsize() / 8);
    let view = TensorView::new(dtype, vec![elements], &data).expect("shape and bytes fit");
    serialize_to_file([("w", view)], None, &path).expect("there is room");
    path
}

fn options(folder: &Path, elements: usize) -> MergeOptions {
    let model = |m: u32| Model {
        path: file(folder, &format!("model{m}"), m, Dtype::BF16, elements),
        fisher: Some(file(folder, &format!("fisher{m}"), m + 77, Dtype::F32, elements)),
        weight: 1.0,
    };
    let models = vec![model(1), model(2_000_003)];
    MergeOptions { overwrite: true, ..MergeOptions::new(Method::Fisher, models) }
}

/// What is timed is right: every merged value lies between the models', which lie between 1/2 and 1.
fn check(output: &Path, elements: usize) {
    let bytes = fs::read(output).expect("it was written");
    let data = &bytes[bytes.len() - 2 * elements..];
    let right = |pair: &[u8]| (0x3f00..=0x3f80).contains(&u16::from_le_bytes([pair[0], pair[1]]));
    assert!(data.chunks_exact(2).all(right), "a merged value lies outside of its models'");
}

/// Reads every input once and writes, and syncs, as many bytes as the output has.
fn move_files(options: &MergeOptions, output: &Path, buffer: &mut [u8]) {
    for model in &options.models {
        for path in std::iter::once(&model.path).chain(&model.fisher) {
            let mut file = File::open(path).expect("it was written above");
            while file.read(buffer).expect("it was read before") > 0 {}
        }
    }
    let mut left = fs::metadata(output).map_or(0, |metadata| metadata.len());
    let mut file = File::create(output.with_extension("copy")).expect("there is room");
    while left > 0 {
        let piece = left.min(buffer.len() as u64);
        file.write_all(&buffer[..usize::try_from(piece).expect("a buffer's length")]).expect("there is room");
        left -= piece;
    }
    file.sync_all().expect("there is room");
}

fn copy(criterion: &mut Criterion, job: &Job) {
    let mut group = criterion.benchmark_group("merge");
    group.throughput(Throughput::Bytes(job.cost.bytes)).sample_size(10);
    group.bench_function(job.shape.as_str(), |bencher| bencher.iter(|| job.run().expect("it ran before")));
    group.finish();
}
