//! Models taken back to their base but for a mask.

use safetensors::Dtype;
use squisher::methods::reset::{ResetOptions, Unmasked, reset};
use squisher::{Backend, Run};

use crate::support::files::{Tensor, Tensors, folder, read, write};

#[test]
fn a_reset_takes_masked_elements_from_the_model_and_the_rest_from_the_base() {
    let out = folder();
    let at = |name: &str| out.path().join(format!("{name}.safetensors"));
    let halves = |start: u16| (Dtype::BF16, vec![3], (start..start + 3).flat_map(u16::to_le_bytes).collect());
    let longs = |start: i64| (Dtype::I64, vec![3], (start..start + 3).flat_map(i64::to_le_bytes).collect());
    let bools = |keep: [u8; 3]| (Dtype::BOOL, vec![3], keep.to_vec());
    let of = |tensors: [(&str, Tensor); 3]| -> Tensors {
        tensors.map(|(name, tensor)| (name.to_owned(), tensor)).into()
    };
    // Bit patterns of NaNs, which a copy must keep.
    write(&at("model"), &of([("h", halves(0x7fc1)), ("n", longs(10)), ("same", longs(5))]));
    write(&at("base"), &of([("h", halves(0xffd1)), ("n", longs(20)), ("same", longs(5))]));
    write(&at("mask"), [("h", bools([1, 0, 1])), ("n", bools([0, 0, 1]))]);
    let run = |options: &ResetOptions| {
        reset(&at("mask"), &at("model"), &at("base"), options, &at("out"), &Run::new(&Backend::Host))
    };
    let report = run(&ResetOptions::default()).expect("sound inputs");
    assert_eq!((report.elements, report.kept, report.copied), (6, 3, vec!["same".to_owned()]));
    let words = |words: [u16; 3]| words.into_iter().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let got = read(&at("out"));
    assert_eq!(got["h"].2, words([0x7fc1, 0xffd2, 0x7fc3]));
    assert_eq!(got["n"].2, [20_i64, 21, 12].into_iter().flat_map(i64::to_le_bytes).collect::<Vec<u8>>());
    assert_eq!(got["same"], longs(5));

    write(&at("base"), &of([("h", halves(0xffd1)), ("n", longs(20)), ("same", longs(6))]));
    let refused = run(&ResetOptions { overwrite: true, ..ResetOptions::default() }).expect_err("they differ");
    assert!(refused.to_string().contains("\"same\" is not in the mask and differs"), "{refused}");
    assert_eq!(read(&at("out")), got, "the old output is untouched");
    let options = ResetOptions { unmasked: Unmasked::Base, overwrite: true };
    run(&options).expect("told which one to take");
    assert_eq!(read(&at("out"))["same"], longs(6));

    write(&at("mask"), [("h", bools([1, 2, 1]))]);
    let refused = run(&options).expect_err("2 is no BOOL").to_string();
    assert!(refused.contains("tensor \"h\": element 1 is 2"), "{refused}");
    write(&at("mask"), [("x", bools([1, 0, 1]))]);
    let refused = run(&options).expect_err("no such tensor");
    assert_eq!(refused.exit_code(), 4, "{refused}");
    assert!(refused.to_string().contains("\"x\" of the mask is not in the model"), "{refused}");
}
