//! On a lent device: nothing asked for, nothing hidden, every misuse refused in words.

#[allow(dead_code, unreachable_pub, reason = "an example's `main` is not called by tests")]
#[path = "../examples/embed_in_app.rs"]
mod embed_in_app;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use squisher::gpu::AdapterChoice;
use squisher::kernel::{Args, Case, Checked, Kernel, Visitor};
use squisher::kernels::Owner;
use squisher::kernels::fisher::Gram;
use squisher::kernels::merge::{
    COUNT_STRIDE, COUNT_WORDS, Factor, Fisher, FisherArgs, FisherParams, state_words,
};
use squisher::kernels::optimizer::{Ema, EmaArgs, EmaParams};
use squisher::kernels::visit_all;
use squisher::memory::{Element, Memory};
use squisher::record::MergeStep;
use squisher::wgpu::{self, BufferUsages};
use squisher::{Backend, DType, Error, Gpu, Recording, View, verify};

const PLAIN: Ema = Ema { gradient: DType::F32, accumulator: DType::F32 };

fn params(len: u32) -> EmaParams {
    EmaParams { len, decay: 0.5, gain: 0.5, gradient_scale: 1.0 }
}

/// A device with WebGPU's default limits and no features, as applications make them.
fn lent() -> Gpu {
    support::device_with(wgpu::Limits::default())
}

fn buffer(gpu: &Gpu, size: u64, usage: BufferUsages) -> wgpu::Buffer {
    let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
    gpu.device().create_buffer(&descriptor)
}

/// An EMA step over 8 values: g = 2, v = 0.
fn step(backend: &Backend) -> (Recording, View) {
    let gradient = backend.buffer(&[2.0_f32; 8], DType::F32).expect("a small buffer");
    let exp_avg_sq = backend.buffer(&[0.0_f32; 8], DType::F32).expect("a small buffer");
    let mut recording = Recording::new(backend);
    let args = EmaArgs { gradient, exp_avg_sq: exp_avg_sq.clone() };
    recording.dispatch(&PLAIN, params(8), args).expect("right arguments");
    (recording, exp_avg_sq)
}

fn message<T>(result: squisher::Result<T>) -> String {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn the_example_runs_on_default_limits_without_features() {
    let (device, queue) = support::lend(wgpu::Limits::default());
    assert_eq!(device.features(), wgpu::Features::empty());
    let got =
        embed_in_app::accumulate(&device, &queue, &[0.5, -2.0, 1e-3], &[1.0, 0.0, 0.0]).expect("it runs");
    let want = [0.999 + 0.001 * 0.25, 0.001 * 4.0, 0.001 * 1e-6];
    for (got, want) in got.into_iter().zip(want) {
        assert!((f64::from(got) - want).abs() <= 10.0 * DType::F32.unit_roundoff() * want, "{got} {want}");
    }
}

/// One case of each specialisation.
fn specialisations<K: Checked>() -> Vec<Case<K>> {
    let mut seen = Vec::new();
    let new = |case: &Case<K>| {
        let one = (case.kernel.wgsl(), case.kernel.overrides());
        let new = !seen.contains(&one);
        seen.push(one);
        new
    };
    K::cases().into_iter().filter(|case| case.buffers.iter().all(|b| !b.is_empty())).filter(new).collect()
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn every_specialisation_runs_on_default_limits() {
    struct Run(Backend);
    impl Visitor for Run {
        fn kernel<K: Checked>(&mut self) {
            let verdict = verify::kernel(&self.0, specialisations::<K>());
            // The one kernel that binds more buffers than these limits allow is never chosen within them.
            let fits = K::Args::BINDINGS.len() <= self.0.caps().max_storage_buffers as usize;
            assert_eq!(verdict.cases > 0, fits, "{}", K::NAME);
            assert!(fits || K::NAME == "merge.fisher_four", "{} runs on few devices", K::NAME);
            assert!(verdict.failures.is_empty(), "{} {:?}", K::NAME, verdict.failures);
        }
    }
    visit_all(&mut Run(Backend::Gpu(lent())));
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn encode_neither_submits_nor_polls() {
    let gpu = lent();
    let backend = Backend::Gpu(gpu.clone());
    let (recording, exp_avg_sq) = step(&backend);
    gpu.wait().expect("the device is there");

    // The device calls back only when it is polled.
    gpu.queue().submit([]);
    let polled = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&polled);
    gpu.queue().on_submitted_work_done(move || flag.store(true, Ordering::SeqCst));
    std::thread::sleep(Duration::from_millis(20));
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    recording.encode(&mut encoder).expect("a recording of this device");
    assert!(!polled.load(Ordering::SeqCst), "encode polled");

    let before = backend.download::<f32>(&exp_avg_sq).expect("the device is there");
    assert!(polled.load(Ordering::SeqCst), "a download polls");
    assert_eq!(before, [0.0; 8], "encode submitted");
    gpu.queue().submit([encoder.finish()]);
    assert_eq!(backend.download::<f32>(&exp_avg_sq).expect("the device is there"), [2.0; 8]);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn the_application_s_error_handler_and_scopes_stay() {
    let gpu = lent();
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    gpu.device().on_uncaptured_error(Arc::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    let scope = gpu.device().push_error_scope(wgpu::ErrorFilter::Validation);
    let backend = Backend::Gpu(gpu.clone());
    let (recording, _) = step(&backend);
    backend.run(&recording).expect("the device is there");
    message(backend.alloc(u64::from(u32::MAX), DType::F32));
    assert!(pollster::block_on(scope.pop()).is_none(), "an error of ours reached the application's scope");
    assert_eq!(seen.load(Ordering::SeqCst), 0, "an error of ours reached the application's handler");

    // Usages that exclude each other: the application's own mistake still reaches its own handler.
    buffer(&gpu, 32, BufferUsages::MAP_READ | BufferUsages::STORAGE | BufferUsages::MAP_WRITE);
    assert_eq!(seen.load(Ordering::SeqCst), 1, "the application's handler was replaced");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn the_application_s_lost_callback_stays() {
    let gpu = lent();
    let told = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&told);
    gpu.device().set_device_lost_callback(move |_, _| flag.store(true, Ordering::SeqCst));
    let backend = Backend::Gpu(gpu.clone());
    let (recording, _) = step(&backend);
    backend.run(&recording).expect("the device is there");
    gpu.device().destroy();
    let _lost = gpu.device().poll(wgpu::PollType::wait_indefinitely());
    assert!(told.load(Ordering::SeqCst), "the callback was replaced");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_buffer_that_cannot_be_bound_is_refused() {
    let gpu = lent();
    let plain = buffer(&gpu, 32, BufferUsages::COPY_DST);
    let problem = message(View::of_buffer(&plain, 8, DType::F32));
    assert_eq!(problem, "view: the buffer was created without BufferUsages::STORAGE");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_view_past_the_end_is_refused() {
    let gpu = lent();
    let storage = buffer(&gpu, 64, BufferUsages::STORAGE);
    let view = |offset, len, element| View::new(Memory::Device(storage.clone()), offset, len, element);
    view(32, 8, Element::F32).expect("the last 32 bytes");
    let says = "view: the buffer has 64 bytes, expected 9 f32 elements from byte 32, padded to 32 bytes";
    assert_eq!(message(view(32, 9, Element::F32)), says);
    let says = "view: the buffer has 64 bytes, expected 0 f32 elements from byte 64, padded to 32 bytes";
    assert_eq!(message(view(64, 0, Element::F32)), says);
    assert!(
        message(view(0, u64::MAX, Element::BF16)).contains("expected 18446744073709551615 bf16 elements")
    );
    assert_eq!(message(view(16, 1, Element::F32)), "view: offset 16 is not a multiple of 32 bytes");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn arguments_of_the_wrong_length_or_type_are_refused() {
    for backend in support::backends() {
        let floats = |len| backend.alloc(len, DType::F32).expect("a small buffer");
        let ema = |gradient, exp_avg_sq| {
            let mut recording = Recording::new(&backend);
            message(recording.dispatch(&PLAIN, params(8), EmaArgs { gradient, exp_avg_sq }))
        };
        let halves = backend.alloc(8, DType::F16).expect("a small buffer");
        assert_eq!(ema(halves, floats(8)), "optimizer.ema: gradient has f16 elements, expected f32 elements");
        assert_eq!(
            ema(floats(8), floats(7)),
            "optimizer.ema: exp_avg_sq has 7 elements, expected 8 elements"
        );
        let same = floats(8);
        let says = "optimizer.ema: gradient and exp_avg_sq share memory and one is written";
        assert_eq!(ema(same.clone(), same), says);
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn memory_of_another_backend_is_refused() {
    let [host, device] = support::backends();
    let says = "a host view was given to a device, or a device view to the host";
    for (backend, other) in [(&host, &device), (&device, &host)] {
        let here = backend.alloc(8, DType::F32).expect("a small buffer");
        let there = other.alloc(8, DType::F32).expect("a small buffer");
        let mut recording = Recording::new(backend);
        let args = EmaArgs { gradient: there.clone(), exp_avg_sq: here };
        let problem = message(recording.dispatch(&PLAIN, params(8), args));
        assert_eq!(problem, format!("optimizer.ema gradient: {says}"));
        assert_eq!(message(backend.download::<f32>(&there)), format!("download: {says}"));
        assert_eq!(message(backend.upload(&there, &[0; 32])), format!("upload: {says}"));
        assert_eq!(message(backend.run(Recording::new(backend).clear(&there))), format!("clear: {says}"));
    }
    let (on_host, _) = step(&host);
    let mut encoder = support::gpu().device().create_command_encoder(&Default::default());
    assert_eq!(message(on_host.encode(&mut encoder)), format!("encode: {says}"));
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_buffer_of_another_device_is_refused_and_the_encoder_stays_usable() {
    // wgpu tells devices of one instance apart, so both come from one adapter.
    let adapter = support::adapter();
    let open = || {
        let opened = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()));
        let (device, queue) = opened.expect("default limits");
        Gpu::from_wgpu(device, queue)
    };
    let (gpu, other) = (open(), open());
    let foreign = Backend::Gpu(other).alloc(8, DType::F32).expect("a small buffer");
    let (recording, exp_avg_sq) = step(&Backend::Gpu(gpu.clone()));
    let mut mixed = Recording::on(&gpu);
    let args = EmaArgs { gradient: foreign, exp_avg_sq: exp_avg_sq.clone() };
    mixed.dispatch(&PLAIN, params(8), args).expect("which device a buffer is of shows when it is bound");
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let refused = mixed.encode(&mut encoder).expect_err("another device's buffer");
    assert!(matches!(&refused, Error::Device { op, .. } if op == "encode"), "{refused}");
    recording.encode(&mut encoder).expect("nothing was written by the refused recording");
    gpu.queue().submit([encoder.finish()]);
    assert_eq!(Backend::Gpu(gpu).download::<f32>(&exp_avg_sq).expect("the device is there"), [2.0; 8]);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn matrix_units_are_used_only_where_they_were_lent() {
    let gpu = lent();
    assert_eq!(gpu.caps().matrix_units, None);
    let refused = message(gpu.with_matrix_units(&support::adapter()));
    let reasons = ["has no matrix units that kernels can use", "was made without MatrixUnits::FEATURES"];
    assert!(reasons.iter().any(|reason| refused.contains(reason)), "{refused}");
    let backend = Backend::Gpu(gpu);
    let of_units = |case: &Case<Gram>| case.kernel.matrix_units().is_some();
    let all = Gram::cases();
    assert!(all.iter().any(of_units), "no case has the form");
    let case =
        all.into_iter().find(|case| of_units(case) && case.params.rows > 0).expect("not all are empty");
    let refused = message(verify::run_case(&backend, &case));
    assert!(refused.contains("matrix units that were not lent with the device"), "{refused}");
    // Another device's cases are left out.
    assert_eq!(verify::kernel(&backend, vec![case]).cases, 0);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn pipelines_are_made_with_the_cache_that_was_lent() {
    let adapter = support::adapter();
    if !adapter.features().contains(wgpu::Features::PIPELINE_CACHE) {
        println!("NOT RUN: {} has no pipeline caches (wgpu has them on Vulkan)", adapter.get_info().name);
        return;
    }
    let descriptor =
        wgpu::DeviceDescriptor { required_features: wgpu::Features::PIPELINE_CACHE, ..Default::default() };
    let open = || pollster::block_on(adapter.request_device(&descriptor)).expect("a feature that it offers");
    let cache_of = |device: &wgpu::Device| {
        let empty = wgpu::PipelineCacheDescriptor { label: None, data: None, fallback: false };
        // SAFETY: there are no bytes that the driver could trust wrongly.
        #[allow(unsafe_code, reason = "wgpu has no other way to make a pipeline cache")]
        unsafe {
            device.create_pipeline_cache(&empty)
        }
    };
    let runs_with = |own: bool| {
        let ((device, queue), (other, _)) = (open(), open());
        let gpu = Gpu::from_wgpu(device.clone(), queue);
        gpu.lend_pipeline_cache(cache_of(if own { &device } else { &other }));
        let backend = Backend::Gpu(gpu);
        let gradient = backend.buffer(&[2.0_f32; 8], DType::F32)?;
        let exp_avg_sq = backend.buffer(&[0.0_f32; 8], DType::F32)?;
        let args = EmaArgs { gradient, exp_avg_sq: exp_avg_sq.clone() };
        let mut recording = Recording::new(&backend);
        backend.run(recording.dispatch(&PLAIN, params(8), args)?)?;
        backend.download::<f32>(&exp_avg_sq)
    };
    assert_eq!(runs_with(true).expect("the device's own cache"), [2.0; 8]);
    let refused = runs_with(false).expect_err("a cache of another device: so the one lent is used");
    assert!(matches!(&refused, Error::Shader { kernel, .. } if kernel == "optimizer.ema"), "{refused}");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn ranges_of_one_buffer_are_refused_before_the_encoder_is() {
    let backend = Backend::Gpu(lent());
    let whole = backend.alloc(72, DType::F32).expect("a small buffer");
    let part = |offset| View::new(whole.memory().clone(), offset, 8, Element::F32).expect("inside");
    let args = EmaArgs { gradient: part(0), exp_avg_sq: part(256) };
    let mut recording = Recording::new(&backend);
    let refused = recording.dispatch(&PLAIN, params(8), args).expect_err("one buffer, read and written");
    assert!(refused.to_string().contains("a device wants two buffers"), "{refused}");
}

/// The mean of four models of 100 parameters, all with Fisher 1.
fn merge_of_four(backend: &Backend, over_the_second: bool) -> squisher::Result<Vec<f32>> {
    let model = |m: f32| backend.buffer(&[m; 100], DType::F32);
    let models = [model(1.0)?, model(2.0)?, model(3.0)?, model(6.0)?];
    let fisher = model(1.0)?;
    let merged = if over_the_second { models[1].clone() } else { backend.alloc(100, DType::F32)? };
    let state = backend.alloc(state_words(100), Element::U32)?;
    let counts = backend.alloc(2 * COUNT_STRIDE, Element::U32)?;
    let kernel = Fisher { owner: Owner::of(&backend.caps()), ..Fisher::bench(100).kernel };
    let step = |at: usize| {
        let shares = [[1.0, 1.0 / 2.0], [1.0 / 3.0, 1.0 / 4.0]][at];
        let one = Factor::ONE;
        let params = FisherParams {
            len: 100,
            lambda_a: one.mantissa,
            exponent_a: one.exponent,
            share_a: shares[0],
            floor_a: 0,
            lambda_b: one.mantissa,
            exponent_b: one.exponent,
            share_b: shares[1],
            floor_b: 0,
        };
        let offset = 4 * COUNT_STRIDE * at as u64;
        let args = FisherArgs {
            theta_a: models[2 * at].clone(),
            fisher_a: fisher.clone(),
            theta_b: models[2 * at + 1].clone(),
            fisher_b: fisher.clone(),
            reference: models[0].clone(),
            state: state.clone(),
            merged: if at == 0 { backend.alloc(100, DType::F32)? } else { merged.clone() },
            counts: View::new(counts.memory().clone(), offset, COUNT_WORDS, Element::U32)?,
        };
        Ok(MergeStep { kernel: Fisher { first: at == 0, last: at == 1, ..kernel }, params, args })
    };
    let mut recording = Recording::new(backend);
    backend.run(recording.merge(vec![step(0)?, step(1)?])?)?;
    backend.download(&merged)
}

/// Also where one dispatch could make both steps: it could not bind the second model for both.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_merge_may_write_over_what_only_its_first_step_reads() {
    for backend in [Backend::Host, Backend::Gpu(lent()), Backend::Gpu(support::gpu())] {
        for over_the_second in [false, true] {
            let merged = merge_of_four(&backend, over_the_second).expect("steps of one merge");
            assert_eq!(merged, [3.0; 100], "on {}, over the second {over_the_second}", backend.name());
        }
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn transfers_need_the_buffer_s_leave() {
    let gpu = lent();
    let backend = Backend::Gpu(gpu.clone());
    let bare = View::of_buffer(&buffer(&gpu, 32, BufferUsages::STORAGE), 8, DType::F32).expect("it fits");
    let full = backend.alloc(8, DType::F32).expect("a small buffer");
    let no = |op, usage| format!("{op}: the buffer was created without BufferUsages::{usage}");
    assert_eq!(message(backend.download::<f32>(&bare)), no("download", "COPY_SRC"));
    assert_eq!(message(backend.upload(&bare, &[0; 32])), no("upload", "COPY_DST"));
    assert_eq!(message(backend.run(Recording::on(&gpu).clear(&bare))), no("clear", "COPY_DST"));
    let copied = |from: &View, to: &View| {
        let mut recording = Recording::on(&gpu);
        message(backend.run(recording.copy(from, to).expect("the same length and type")))
    };
    assert_eq!(copied(&bare, &full), no("copy", "COPY_SRC"));
    assert_eq!(copied(&full, &bare), no("copy", "COPY_DST"));
    assert_eq!(copied(&full, &full), "copy: source and target are one buffer");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_recording_larger_than_the_grid_names_the_limit() {
    let gpu = support::device_with(wgpu::Limits {
        max_compute_workgroups_per_dimension: 2,
        ..wgpu::Limits::default()
    });
    let backend = Backend::Gpu(gpu);
    let len = 5 * 4096;
    let view = || backend.alloc(len.into(), DType::F32).expect("80 KiB");
    let mut recording = Recording::new(&backend);
    let args = EmaArgs { gradient: view(), exp_avg_sq: view() };
    let problem = message(recording.dispatch(&PLAIN, params(len), args));
    let says = "optimizer.ema: max_compute_workgroups_per_dimension is 2, 3 needed";
    assert_eq!(problem, says);
}

/// Nothing that is asked of this backend gives bytes, or panics.
fn gives_nothing(backend: &Backend, recording: &Recording, view: &View) {
    let device = |op: &str, result: squisher::Result<()>| match result {
        Err(Error::Device { .. }) => {}
        Err(other) => panic!("{op}: {other}"),
        Ok(()) => panic!("{op}: a lost device answered"),
    };
    device("run", backend.run(recording));
    device("submit", backend.submit(recording));
    device("download", backend.download::<f32>(view).map(drop));
    device("upload", backend.upload(view, &[0; 32]));
    device("alloc", backend.alloc(8, DType::F32).map(drop));
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_lost_device_gives_an_error_and_never_bytes() {
    let choice = AdapterChoice { software: true, ..AdapterChoice::default() };
    let gpu = pollster::block_on(Gpu::request(&choice)).expect("an adapter");
    let backend = Backend::Gpu(gpu.clone());
    let (recording, view) = step(&backend);
    backend.run(&recording).expect("the device is there");
    gpu.device().destroy();
    // Not yet told by wgpu: still no bytes.
    message(backend.download::<f32>(&view));
    let _destroyed = gpu.device().poll(wgpu::PollType::Poll);
    gives_nothing(&backend, &recording, &view);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_lent_device_is_lost_when_the_application_says_so() {
    let gpu = lent();
    let backend = Backend::Gpu(gpu.clone());
    let (recording, view) = step(&backend);
    gpu.mark_lost("the driver was reset");
    gives_nothing(&backend, &recording, &view);
    let problem = message(backend.download::<f32>(&view));
    assert_eq!(problem, "download: the device failed: device lost (the driver was reset)");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_lost_device_that_nobody_told_of_gives_no_bytes_either() {
    let gpu = lent();
    let backend = Backend::Gpu(gpu.clone());
    let (recording, view) = step(&backend);
    backend.run(&recording).expect("the device is there");
    gpu.device().destroy();
    message(backend.download::<f32>(&view));
    let _silent = backend.run(&recording);
}
