//! Merges two models by their Fishers, from files to a file.
//!
//! `cargo run --example merge_two_models`
//!
//! Two models of one layer were trained on different tasks. Each is sure of some parameters (a large Fisher)
//! and indifferent to others. The merge takes each parameter from whoever is surer of it: θ = Σ_m F_m θ_m /
//! Σ_m F_m.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use squisher::methods::merge::{MergeOptions, Method, Model, merge};
use squisher::{Backend, Run};

type Failure = Box<dyn std::error::Error>;

/// A checkpoint of one tensor, `layer.weight`.
fn save(path: PathBuf, values: &[f32]) -> Result<PathBuf, Failure> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![values.len()], &bytes)?;
    serialize_to_file([("layer.weight", view)], None, &path)?;
    Ok(path)
}

/// Its values.
fn load(path: &Path) -> Result<Vec<f32>, Failure> {
    let bytes = std::fs::read(path)?;
    let values = SafeTensors::deserialize(&bytes)?.tensor("layer.weight")?.data().to_vec();
    Ok(values.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

fn main() -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let a = save(at("a.safetensors"), &[1.0, 1.0, 1.0, 1.0])?;
    let b = save(at("b.safetensors"), &[3.0, 3.0, 3.0, 3.0])?;
    let fisher_a = save(at("a.fisher.safetensors"), &[9.0, 1.0, 1.0, 0.0])?;
    let fisher_b = save(at("b.fisher.safetensors"), &[1.0, 1.0, 9.0, 0.0])?;

    let model = |path, fisher| Model { path, fisher: Some(fisher), weight: 1.0 };
    let options = MergeOptions::new(Method::Fisher, vec![model(a, fisher_a), model(b, fisher_b)]);
    let out = at("merged.safetensors");
    let report = merge(&options, &out, &Run::new(&Backend::Host))?;

    println!("merged  {:?}", load(&out)?);
    println!("{} of {} parameters have no Fisher above 0 and are averaged", report.fallback, report.elements);
    Ok(())
}
