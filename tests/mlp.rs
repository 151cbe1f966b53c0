//! The example that trains on the device: its loss falls, and its Fishers are what the definition says of the
//! weights it ended with.

#[allow(dead_code, unreachable_pub, reason = "an example's `main` is not called by tests")]
#[path = "../examples/fisher_of_mlp.rs"]
mod fisher_of_mlp;
mod support;

use fisher_of_mlp::{SIZES, cosine, images, run};
use squisher::reference::likelihood::{cross_entropy, softmax};
use squisher::wgpu;

/// Σ over images and labels of probability times squared gradient, both layers' one after the other. The
/// labels of an image come with their probabilities from `labels`.
fn definition(
    [first, second]: &[Vec<f32>; 2],
    labels: impl Fn(&[f64], u32) -> Vec<(usize, f64)>,
) -> Vec<f64> {
    let [samples, pixels, hidden, classes] = SIZES.map(|size| size as usize);
    let (images, data_labels) = images().expect("the images come with the library");
    let dot = |w: &[f32], x: &[f64]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
    let mut fisher = vec![0.0; hidden * pixels + classes * hidden];
    let used = data_labels.len() / samples * samples;
    for (image, &label) in images.chunks(pixels).zip(&data_labels).take(used) {
        let x: Vec<f64> = image.iter().map(|&v| v.into()).collect();
        let h: Vec<f64> = first.chunks(pixels).map(|w| dot(w, &x).max(0.0)).collect();
        let z: Vec<f64> = second.chunks(hidden).map(|w| dot(w, &h)).collect();
        for (y, p) in labels(&z, label) {
            let dz = cross_entropy(&z, y);
            let (of_first, of_second) = fisher.split_at_mut(hidden * pixels);
            for (j, &h) in h.iter().enumerate() {
                let back: f64 = (0..classes).map(|c| dz[c] * f64::from(second[c * hidden + j])).sum();
                let dh = if h > 0.0 { back } else { 0.0 };
                (0..pixels).for_each(|i| of_first[j * pixels + i] += p * (dh * x[i]).powi(2));
                (0..classes).for_each(|c| of_second[c * hidden + j] += p * (dz[c] * h).powi(2));
            }
        }
    }
    fisher
}

/// ‖got − want‖ / ‖want‖: a hidden unit within rounding of zero may be on here and off there.
fn distance(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    square(&mut got.iter().zip(want).map(|(g, w)| f64::from(*g) - w)) / square(&mut want.iter().copied())
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn the_example_learns_and_its_fishers_are_right() {
    let (device, queue) = support::lend(wgpu::Limits::default());
    let report = run(device, queue).expect("it runs");
    let (first, last) = (report.epochs[0], report.epochs[report.epochs.len() - 1]);
    assert!(last.0 < 0.5 * first.0 && last.1 > 0.9, "{:?}", report.epochs);

    let fisher = |name: &str| {
        let found = report.fishers.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("no {name}")).1.concat()
    };
    let exact = definition(&report.weights, |z, _| softmax(z).into_iter().enumerate().collect());
    let off = distance(&fisher("exact"), &exact);
    assert!(off < 1e-3, "the exact Fisher is off by {off}");
    let empirical = definition(&report.weights, |_, label| vec![(label as usize, 1.0)]);
    let off = distance(&fisher("empirical"), &empirical);
    assert!(off < 1e-3, "the empirical Fisher is off by {off}");
    assert!(distance(&fisher("exact"), &empirical) > 0.1, "two kinds are one");

    let alike = |name: &str| cosine(&fisher(name), &fisher("exact"));
    let (many, one) = (alike("Monte Carlo, 16 labels"), alike("Monte Carlo, 1 label"));
    assert!(many > 0.99 && one > 0.9 && many > one, "{many} {one}");
    assert!(alike("average while training") > 0.9, "{}", alike("average while training"));
}
