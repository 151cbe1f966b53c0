//! `squisher report`: one page that stands alone, whatever names the tensors have.

mod support;

use std::path::Path;

use assert_cmd::assert::OutputAssertExt;
use safetensors::tensor::Dtype;

use support::files::{self, folder};
use support::tool::squisher;

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn save(path: &Path, tensors: &[(&str, Dtype, Vec<u8>)]) {
    let vector = |(name, dtype, bytes): &(&str, Dtype, Vec<u8>)| {
        (name.to_string(), (*dtype, vec![bytes.len() * 8 / dtype.bitsize()], bytes.clone()))
    };
    files::write(path, tensors.iter().map(vector));
}

fn report(folder: &Path, inputs: &[&str]) -> assert_cmd::assert::Assert {
    let mut command = squisher(["report", "-o", "report.html", "--json", "-q"]);
    command.current_dir(folder).args(inputs).assert()
}

#[test]
fn a_page_stands_alone_and_shows_every_input() {
    let folder = folder();
    let one = floats(&[1.0, 2.0, 3.0, 0.0, 5e-9]);
    let other = floats(&[1.0, 4.0, 9.0, 0.5, 1e-9]);
    save(&folder.path().join("a.safetensors"), &[("layers.2.weight", Dtype::F32, one)]);
    save(&folder.path().join("b.safetensors"), &[("layers.2.weight", Dtype::F32, other)]);
    save(&folder.path().join("m.safetensors"), &[("layers.2.weight", Dtype::BOOL, vec![1, 0, 1, 0])]);
    let done = report(folder.path(), &["a.safetensors", "b.safetensors", "m.safetensors"]).success();
    let result: serde_json::Value =
        serde_json::from_slice(&done.get_output().stdout).expect("one JSON object");
    let correlation = result["rank_correlation"].as_f64().expect("two Fishers of one network were given");
    // Ranks 2 3 4 0 1 against 2 3 4 1 0.
    assert!((correlation - 0.9).abs() < 1e-12, "{correlation}");
    // (1 + 8 + 27) / (√14 · √98.25), as the last value of each is far below f32 beside the rest.
    let cosine = 36.0 / (14.0_f64 * 98.25).sqrt();
    let similar = |a: usize, b: usize| result["similarity"][a][b].as_f64().expect("a number");
    assert!((similar(0, 1) - cosine).abs() < 1e-6 && similar(0, 1) == similar(1, 0), "{}", similar(0, 1));
    assert_eq!((similar(0, 0), similar(1, 1)), (1.0, 1.0));
    let page = std::fs::read_to_string(folder.path().join("report.html")).expect("the page was written");
    for expected in [
        "a.safetensors",
        "b.safetensors",
        "m.safetensors",
        "layers.2",
        "2 of 4 elements kept",
        "<svg",
        ">0.971</text>",
    ] {
        assert!(page.contains(expected), "{expected} is missing");
    }
    let links = page.replace("http://www.w3.org/2000/svg", "");
    for foreign in ["http", "src=", "href=", "@import", "<script"] {
        assert!(!links.contains(foreign), "the page refers to something outside: {foreign}");
    }
}

#[test]
fn fishers_of_different_networks_are_shown_without_a_comparison() {
    let folder = folder();
    save(&folder.path().join("a.safetensors"), &[("w", Dtype::F32, floats(&[1.0, 2.0]))]);
    save(&folder.path().join("b.safetensors"), &[("w", Dtype::F32, floats(&[1.0]))]);
    report(folder.path(), &["a.safetensors", "b.safetensors"]).success();
    let page = std::fs::read_to_string(folder.path().join("report.html")).expect("the page was written");
    assert!(
        page.contains("The Fishers are not compared:") && page.contains("different networks"),
        "no reason"
    );
}

#[test]
fn doubles_are_shown_as_what_they_are_narrowed_to() {
    let folder = folder();
    let values = [1.0_f32, 2.0, 0.5, 0.0];
    let doubles = values.iter().flat_map(|&value| f64::from(value).to_le_bytes()).collect();
    save(&folder.path().join("a.safetensors"), &[("w", Dtype::F32, floats(&values))]);
    save(&folder.path().join("b.safetensors"), &[("w", Dtype::F64, doubles)]);
    let done = report(folder.path(), &["a.safetensors", "b.safetensors"]).success();
    let result: serde_json::Value =
        serde_json::from_slice(&done.get_output().stdout).expect("one JSON object");
    assert_eq!((&result["rank_correlation"], &result["similarity"][0][1]), (&1.0.into(), &1.0.into()));
}

#[test]
fn hostile_names_stay_text() {
    let folder = folder();
    let name = "<script>alert('1')</script>.weight";
    save(&folder.path().join("a.safetensors"), &[(name, Dtype::F32, floats(&[1.0]))]);
    report(folder.path(), &["a.safetensors"]).success();
    let page = std::fs::read_to_string(folder.path().join("report.html")).expect("the page was written");
    assert!(!page.contains("<script"), "a name became an element");
    assert!(page.contains("&lt;script&gt;"), "the name is shown");
}

#[test]
fn what_is_no_fisher_is_refused_and_the_old_page_stays() {
    let folder = folder();
    save(&folder.path().join("a.safetensors"), &[("w", Dtype::F32, floats(&[1.0, -1.0]))]);
    let refused = report(folder.path(), &["a.safetensors"]).code(3);
    let message = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(message.contains("tensor \"w\": index 1 is NaN, infinite, negative or beyond f32"), "{message}");
    assert!(!folder.path().join("report.html").exists());

    save(&folder.path().join("a.safetensors"), &[("w", Dtype::F32, floats(&[1.0]))]);
    let before = std::fs::read(folder.path().join("a.safetensors")).expect("just written");
    std::fs::rename(folder.path().join("a.safetensors"), folder.path().join("a.html")).expect("renamed");
    std::fs::create_dir(folder.path().join("folder.html")).expect("a temporary folder is writable");
    for (out, says) in [
        ("a.html", "the output is part of the input a.html"),
        ("none/report.html", "the folder none does not exist"),
        ("folder.html", "is a folder"),
    ] {
        let mut command = squisher(["report", "a.html", "--overwrite", "-o", out]);
        let refused = command.current_dir(folder.path()).assert().code(7);
        let message = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
        assert!(message.contains(says), "{message}");
    }
    assert_eq!(std::fs::read(folder.path().join("a.html")).expect("still there"), before);
    std::fs::write(folder.path().join("report.html"), "old").expect("a temporary folder is writable");
    let refused = report(folder.path(), &["a.safetensors"]).code(7);
    assert!(String::from_utf8_lossy(&refused.get_output().stderr).contains("--overwrite"));
    assert_eq!(std::fs::read(folder.path().join("report.html")).expect("still there"), b"old");
}

#[test]
fn a_bench_record_becomes_a_roofline_and_a_torn_one_is_refused() {
    let folder = folder();
    let head = "adapter,date,version,kernel,shape,bytes,flops,seconds,clock,bytes_per_second,flops_per_second,bound,ceiling_per_second,share,first_seconds";
    let line = |kernel: &str, bytes: u64, flops: u64, seconds: &str| {
        // What was measured beside a kernel, not ceiling.copy, is what its share is of.
        let roof = if kernel.starts_with("ceiling.") { "," } else { "bandwidth,8e10" };
        format!(
            "\"a <b> device, 256 bits\",2026-11-21,0.1.0,{kernel},4096 f32,{bytes},{flops},{seconds},host,1e9,1e9,{roof},,"
        )
    };
    let lines = [
        head.to_owned(),
        line("ceiling.copy", 100, 0, "1e-9"),
        line("ceiling.fma", 8, 1000, "1e-9"),
        line("ceiling.latency", 12, 4, "1e-6"),
        line("optimizer.ema", 60, 20, "1e-9"),
        line("select.mask", 50, 0, "1e-9"),
    ];
    std::fs::write(folder.path().join("a.csv"), lines.join("\n")).expect("a temporary folder is writable");
    report(folder.path(), &["a.csv"]).success();
    let page = std::fs::read_to_string(folder.path().join("report.html")).expect("the page was written");
    assert!(page.contains("a &lt;b&gt; device, 256 bits on 2026-11-21"), "the device and the day are named");
    assert!(
        page.contains("optimizer.ema 4096 f32: 20.0 GFLOP/s, 75.0 % of the roof"),
        "the point says its share"
    );
    assert!(page.contains("select.mask 2"), "what computes nothing is among the bars");

    std::fs::remove_file(folder.path().join("report.html")).expect("it was written above");
    let torn = lines.join("\n").replace(",1e-6,", ",soon,");
    std::fs::write(folder.path().join("a.csv"), torn).expect("a temporary folder is writable");
    let refused = report(folder.path(), &["a.csv"]).code(3);
    let message = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(message.contains("a.csv") && message.contains("line 4 is not a measurement"), "{message}");
    assert!(!folder.path().join("report.html").exists());
}
