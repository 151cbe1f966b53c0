//! Statistics of whole tensors, against their definition.

mod support;

use squisher::kernel::noise;
use squisher::kernels::Owner;
use squisher::kernels::stats::{Stats, Summary};
use squisher::memory::{Element, View};
use squisher::record::ops::summary;
use squisher::{Backend, DType, Error, reference, wgpu};

fn near(got: f64, want: f64) {
    // The kernel's own bound, 21 roundings of at most two units.
    support::close::near(got, want, 42.0 * DType::F32.unit_roundoff() * want);
}

fn is_the_definition(got: &Stats, values: &[f32]) {
    let values: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
    near(got.sum, reference::stats::sum(&values));
    near(got.sum_sq, reference::stats::sum_sq(&values));
    assert_eq!(got.elements, values.len() as u64);
    assert_eq!(got.zeros, reference::stats::zeros(&values));
    assert_eq!(got.max.map(f64::from), reference::stats::max(&values));
    assert_eq!(got.min.map(f64::from), reference::stats::min(&values));
    assert_eq!(got.bad, reference::stats::bad(&values));
}

/// Magnitudes from the smallest subnormal to the largest number; one value is bad where `bad` says so.
fn values(len: usize, bad: Option<usize>) -> Vec<f32> {
    let mut values: Vec<f32> = noise(7, len).iter().map(|v| (138.0 * v - 11.0).exp2() as f32).collect();
    if let Some(i) = bad {
        values[i] = -1.0;
    }
    values
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_tensor_of_any_length_is_its_definition() {
    for backend in support::backends() {
        for (len, bad) in [(0, None), (1, None), (16_384, None), (200_003, Some(150_001))] {
            let values = values(len, bad);
            let view = backend.buffer(&values, DType::F32).expect("a small buffer");
            let got = summary(&backend, &view).expect("floats");
            is_the_definition(&got, &values);
        }
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_tensor_larger_than_a_binding_is_taken_in_pieces() {
    let lent = support::gpu();
    let share = Summary { values: DType::F32, owner: Owner::Workgroup }.share();
    let limit = 3 * 4 * share;
    let limits = wgpu::Limits { max_storage_buffer_binding_size: limit, ..lent.device().limits() };
    let gpu = support::device_with(limits);
    let len = usize::try_from(13 * share).expect("a small number") + 3;
    let values = values(len, Some(len / 4 * 3));
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: Element::F32.padded_bytes(values.len() as u64),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    let view = View::of_buffer(&buffer, values.len() as u64, Element::F32).expect("it fits");
    assert!(view.bytes() > 4 * limit, "several pieces");
    let backend = Backend::Gpu(gpu);
    backend.upload(&view, bytemuck::cast_slice(&values)).expect("the device is there");
    is_the_definition(&summary(&backend, &view).expect("floats"), &values);
}

#[test]
fn words_have_no_statistics() {
    let view = Backend::Host.buffer(&[1_u32, 2], Element::U32).expect("a small buffer");
    let refused: Error = summary(&Backend::Host, &view).expect_err("words are not values");
    assert_eq!(refused.to_string(), "summary: values has u32 elements, expected f32, f16 or bf16 elements");
}

#[test]
fn mean_and_norm_are_those_of_all_values() {
    let view = Backend::Host.buffer(&[3.0_f32, 4.0, 0.0, 0.0], DType::F32).expect("a small buffer");
    let stats = summary(&Backend::Host, &view).expect("floats");
    assert_eq!((stats.mean(), stats.norm()), (1.75, 5.0));
    assert_eq!((Stats::default().mean(), Stats::default().norm()), (0.0, 0.0));
}
