//! Errors in gradients at the outputs and in drawn labels.

use squisher::kernels::likelihood;

use crate::shader_is_refused;

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_true_class_taken_from_one_minus_p_is_seen() {
    let (from, to) = ("scale, -(others * scale),", "scale, own - 1.0,");
    for lanes in [1, 64] {
        let about = format!("Given, unit: false, lanes: {lanes} }} one class leads by 60");
        shader_is_refused::<likelihood::Softmax>(&about, from, to, "gradient[4]: got");
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_softmax_over_the_wrong_classes_is_seen() {
    for lanes in [1, 64] {
        let about = format!("F32, labels: Given, unit: false, lanes: {lanes} }} r=2 n=4 c=65");
        let (from, to) = ("counts & (bits != vec4<u32>(NEVER))", "(bits != vec4<u32>(NEVER))");
        shader_is_refused::<likelihood::Softmax>(&about, from, to, "gradient[");
        shader_is_refused::<likelihood::Softmax>(&about, "given == params.ignored", "false", "gradient[");
        // A class of the next row.
        shader_is_refused::<likelihood::Softmax>(
            &about,
            "< vec4<u32>(run.len)",
            "<= vec4<u32>(run.len)",
            "got",
        );
    }
    let about = "F32, labels: Each { masked: false }, unit: false, lanes: 1 } r=3 n=5 c=64";
    shader_is_refused::<likelihood::Softmax>(about, "select(1.0, own, EACH)", "1.0", "weight[0]: got");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_draw_off_by_little_is_seen() {
    let about = "F32, masked: false } Sizes { samples: 2, classes: 1000";
    // One of ten rounds missing; a carry forgotten; a share of the classes that is not found.
    shader_is_refused::<likelihood::Draw>(about, "round < 10u", "round < 9u", "drawn[");
    shader_is_refused::<likelihood::Draw>(about, "a.y + b.y + u32(low < a.x)", "a.y + b.y", "drawn[");
    shader_is_refused::<likelihood::Draw>(
        about,
        "at_most(below[i], place)",
        "at_most(place, below[i])",
        "drawn[",
    );
    shader_is_refused::<likelihood::Draw>(
        "samples: 5, classes: 5003",
        "238388332u",
        "238388332u / 2u",
        "drawn[",
    );
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn noise_of_other_coins_is_seen() {
    let about = "Drawn, unit: false } r=3 n=5 c=64";
    shader_is_refused::<likelihood::Gaussian>(about, "index >> 1u", "index >> 2u", "gradient[");
    shader_is_refused::<likelihood::Gaussian>(about, "32.0", "31.5", "gradient[0]: got");
    let about = "F32, targets: Given, unit: true } n=3 c=70 of 1e-30";
    shader_is_refused::<likelihood::Gaussian>(
        about,
        "residual(round, sample, i) / top",
        "residual(round, sample, i)",
        "gradient[",
    );
}
