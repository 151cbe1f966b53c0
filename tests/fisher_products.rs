//! What the recorded Fisher products promise beyond single kernels: streaming, threads, transposed convolutions.

mod support;

use squisher::kernel::noise;
use squisher::kernels::fisher::Epilogue;
use squisher::record::fisher::{Bias, Buffers, Conv, Linear, Squares};
use squisher::{Backend, DType, Recording, View};

fn floats(seed: u64, len: usize) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "noise is exact in f32")]
    let narrow = |v: &f64| *v as f32;
    noise(seed, len).iter().map(narrow).collect()
}

fn upload(backend: &Backend, values: &[f32]) -> View {
    backend.buffer(values, DType::F32).expect("a small buffer")
}

/// Records, runs and reads `len` results that held sevens before.
fn result(backend: &Backend, len: usize, record: impl Fn(&mut Recording, &View)) -> Vec<f32> {
    let out = upload(backend, &vec![7.0; len]);
    let mut recording = Recording::new(backend);
    record(&mut recording, &out);
    backend.run(&recording).expect("the recording runs");
    backend.download(&out).expect("the result is there")
}

fn near(got: &[f32], want: &[f32], relative: f32) {
    support::close::all_near(got, want, |want| f64::from(relative) * want.abs() + 1e-12);
}

/// The cut depends on the shape alone: 37 samples in several runs, several tiles.
#[test]
fn the_number_of_threads_changes_no_bit() {
    let backend = Backend::Host;
    let layer = Linear { samples: 37, positions: 19, inputs: 300, outputs: 150 };
    let (a, b) = (upload(&backend, &floats(1, 37 * 19 * 300)), upload(&backend, &floats(2, 37 * 19 * 150)));
    let weight = upload(&backend, &floats(3, 37));
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        pool.install(|| {
            result(&backend, 300 * 150, |recording, out| {
                let buffers = Buffers { input: &a, grad_output: &b, weight: &weight, out };
                layer.record(recording, Squares::default(), buffers).expect("the sizes fit");
            })
        })
    };
    let one = with(1);
    for threads in [2, 3, 7] {
        assert!(with(threads).iter().zip(&one).all(|(x, y)| x.to_bits() == y.to_bits()), "{threads} threads");
    }
}

/// Streaming parts of the samples from separate buffers, as a sweep over batches does.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn batches_that_add_equal_the_whole() {
    for backend in support::backends() {
        let (t, i, o) = (3, 20, 12);
        let (a, b) = (floats(1, 5 * t * i), floats(2, 5 * t * o));
        let record = |recording: &mut Recording, out: &View, from: usize, to: usize, epilogue: Epilogue| {
            let layer = Linear {
                samples: u32::try_from(to - from).expect("few"),
                positions: 3,
                inputs: 20,
                outputs: 12,
            };
            let input = upload(&backend, &a[from * t * i..to * t * i]);
            let grad_output = upload(&backend, &b[from * t * o..to * t * o]);
            let weight = upload(&backend, &vec![1.0; to - from]);
            let buffers = Buffers { input: &input, grad_output: &grad_output, weight: &weight, out };
            layer
                .record(recording, Squares { epilogue, ..Squares::default() }, buffers)
                .expect("the sizes fit");
        };
        let whole =
            result(&backend, i * o, |recording, out| record(recording, out, 0, 5, Epilogue::Overwrite));
        let parts = result(&backend, i * o, |recording, out| {
            record(recording, out, 0, 2, Epilogue::Overwrite);
            record(recording, out, 2, 3, Epilogue::Add);
            record(recording, out, 3, 5, Epilogue::Add);
        });
        near(&parts, &whole, 8.0 * f32::EPSILON);
        let averaged = result(&backend, i * o, |recording, out| {
            record(recording, out, 0, 5, Epilogue::Ema { decay: 0.75 });
        });
        let want: Vec<f32> = whole.iter().map(|sum| 0.75 * 7.0 + 0.25 * sum).collect();
        near(&averaged, &want, 8.0 * f32::EPSILON);
    }
}

/// One position a sample takes another kernel, which must agree: fold = 1 factorises, and a fold of
/// one-position samples doesn't.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn one_position_factorises_and_a_fold_of_them_does_not() {
    for backend in support::backends() {
        let (n, i, o) = (6, 9, 10);
        let (a, b) = (floats(1, n * i), floats(2, n * o));
        let (input, grad_output) = (upload(&backend, &a), upload(&backend, &b));
        let run = |positions: u32, fold: u32| {
            let layer = Linear { samples: 6 / positions, positions, inputs: 9, outputs: 10 };
            let weight = upload(&backend, &vec![1.0; (6 / positions).div_ceil(fold) as usize]);
            result(&backend, i * o, |recording, out| {
                let buffers = Buffers { input: &input, grad_output: &grad_output, weight: &weight, out };
                layer
                    .record(recording, Squares { fold, ..Squares::default() }, buffers)
                    .expect("the sizes fit");
            })
        };
        let gradient = |n: usize, p: usize| f64::from(b[n * o + p / i]) * f64::from(a[n * i + p % i]);
        let square_of_sums = |size: usize, p: usize| -> f64 {
            (0..n / size)
                .map(|s| (s * size..(s + 1) * size).map(|n| gradient(n, p)).sum::<f64>().powi(2))
                .sum()
        };
        #[expect(clippy::cast_possible_truncation, reason = "compared at f32's precision")]
        let want = |size: usize| -> Vec<f32> { (0..i * o).map(|p| square_of_sums(size, p) as f32).collect() };
        near(&run(1, 1), &want(1), 1e-6);
        near(&run(1, 3), &want(3), 1e-4);
        near(&run(3, 1), &want(3), 1e-4);
        near(&run(6, 1), &want(6), 1e-4);
    }
}

/// A transposed convolution's weight gradient by its own definition: the output element q takes x[p] · W[k]
/// where q = stride·p + dilation·k − padding.
fn transposed_gradient(layer: &Conv, x: &[f32], grad: &[f32]) -> Vec<f64> {
    let [_, height, width] = layer.input.map(|size| size as usize);
    let [_, grad_height, grad_width] = layer.output.map(|size| size as usize);
    let [_, kernel_height, kernel_width] = layer.kernel.map(|size| size as usize);
    let (inputs, groups) = (layer.inputs as usize, layer.groups as usize);
    let of_group = layer.outputs as usize / groups;
    let meets = |axis: usize, p: usize, k: usize, q: usize| {
        p * layer.stride[axis] as usize + k * layer.dilation[axis] as usize
            == q + layer.padding[axis] as usize
    };
    let mut gradient = vec![0.0; inputs * of_group * kernel_height * kernel_width];
    for (index, g) in gradient.iter_mut().enumerate() {
        let (kx, ky) = (index % kernel_width, index / kernel_width % kernel_height);
        let (o, i) = (
            index / kernel_width / kernel_height % of_group,
            index / kernel_width / kernel_height / of_group,
        );
        let channel = i / (inputs / groups) * of_group + o;
        for py in 0..height {
            for px in 0..width {
                for qy in (0..grad_height).filter(|&qy| meets(1, py, ky, qy)) {
                    for qx in (0..grad_width).filter(|&qx| meets(2, px, kx, qx)) {
                        let x = f64::from(x[(i * height + py) * width + px]);
                        *g += x * f64::from(grad[(channel * grad_height + qy) * grad_width + qx]);
                    }
                }
            }
        }
    }
    gradient
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_transposed_convolution_is_a_convolution_with_its_roles_swapped() {
    let base = Conv {
        samples: 1,
        inputs: 4,
        outputs: 6,
        groups: 2,
        input: [1, 4, 5],
        output: [1, 0, 0],
        kernel: [1, 3, 2],
        stride: [1, 2, 3],
        padding: [0, 1, 0],
        dilation: [1, 1, 2],
        transposed: true,
    };
    for backend in support::backends() {
        for (groups, output_padding) in [(1, [0, 0]), (2, [1, 2]), (2, [0, 1])] {
            // (input − 1)·stride − 2·padding + dilation·(kernel − 1) + output_padding + 1
            let layer = Conv { groups, output: [1, 7 + output_padding[0], 15 + output_padding[1]], ..base };
            let x = floats(1, 4 * 4 * 5);
            let grad = floats(2, 6 * (layer.output[1] * layer.output[2]) as usize);
            let want = transposed_gradient(&layer, &x, &grad);
            let (input, grad_output) = (upload(&backend, &x), upload(&backend, &grad));
            let weight = upload(&backend, &[1.0]);
            let got = result(&backend, want.len(), |recording, out| {
                let buffers = Buffers { input: &input, grad_output: &grad_output, weight: &weight, out };
                layer.record(recording, Squares::default(), buffers).expect("the sizes fit");
            });
            for (index, (got, want)) in got.iter().zip(&want).enumerate() {
                // 20 positions of terms below 1, squared.
                assert!(
                    (f64::from(*got) - want * want).abs() < 1e-4,
                    "{layer:?} [{index}]: {got} {}",
                    want * want
                );
            }
        }
        let wrong = Conv { output: [1, 9, 15], ..base };
        let view = upload(&backend, &[0.0]);
        let buffers = Buffers { input: &view, grad_output: &view, weight: &view, out: &view };
        let refusal = wrong.record(&mut Recording::new(&backend), Squares::default(), buffers);
        let text = refusal.expect_err("9 rows do not follow from 4").to_string();
        assert!(text.contains("the output's axis h has 9, expected 7 to 8"), "{text}");
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_bias_counts_every_position_in_either_layout() {
    for backend in support::backends() {
        let weight = upload(&backend, &[1.0, 0.5]);
        // Two samples, two positions, two outputs: sums 4 and 6, then 12 and 14.
        let run = |values: &[f32], channels_first: bool| {
            let grad_output = upload(&backend, values);
            result(&backend, 2, |recording, out| {
                let layer = Bias { samples: 2, positions: 2, outputs: 2, channels_first };
                layer
                    .record(recording, Squares::default(), &grad_output, &weight, out)
                    .expect("the sizes fit");
            })
        };
        let want = [16.0 + 72.0, 36.0 + 98.0];
        assert_eq!(run(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], false), want);
        assert_eq!(run(&[1.0, 3.0, 2.0, 4.0, 5.0, 7.0, 6.0, 8.0], true), want);
    }
}

/// More samples than one invocation's loops can take on software Vulkan are cut into several dispatches.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn more_samples_than_loops_run_are_cut() {
    let samples = 70_000_u32;
    for backend in support::backends() {
        let (a, b) = (upload(&backend, &vec![1.0; 3 * 70_000]), upload(&backend, &vec![2.0; 2 * 70_000]));
        let weight = upload(&backend, &vec![0.5; 70_000]);
        for positions in [1, 2] {
            let layer = Linear { samples: samples / positions, positions, inputs: 3, outputs: 2 };
            let weight =
                View::new(weight.memory().clone(), 0, u64::from(samples / positions), DType::F32.into())
                    .expect("fewer weights");
            let of_sample = 0.5 * (2.0 * f64::from(positions)).powi(2);
            #[expect(clippy::cast_possible_truncation, reason = "small whole numbers")]
            let want = (of_sample * f64::from(samples / positions)) as f32;
            let weights = result(&backend, 6, |recording, out| {
                let buffers = Buffers { input: &a, grad_output: &b, weight: &weight, out };
                layer.record(recording, Squares::default(), buffers).expect("the sizes fit");
            });
            near(&weights, &[want; 6], 1e-5);
            let biases = result(&backend, 2, |recording, out| {
                let bias =
                    Bias { samples: samples / positions, positions, outputs: 2, channels_first: false };
                bias.record(recording, Squares::default(), &b, &weight, out).expect("the sizes fit");
            });
            near(&biases, &[want; 2], 1e-5);
        }
    }
}
