//! The trained networks and the test images, carried inside the program so that it finds them anywhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use squisher::Error;
use squisher::checkpoint::{Checkpoint, Dtype, Output, OutputLayout, OutputTensor};
use squisher::kernel::noise;

/// The networks, in the order of the tables.
pub(super) const NAMES: [&str; 3] = ["base", "top", "bottom"];

/// The test images, below the demo's folder.
pub(super) const DIGITS: &str = "test.safetensors";

/// Random numbers in a network's shape: a Fisher file that knows nothing.
pub(super) const RANDOM: &str = "random.safetensors";

/// A network of zeros.
pub(super) const ZEROS: &str = "zeros.safetensors";

/// Where the random numbers start.
const SEED: u64 = 0;

macro_rules! embed {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/", $path)))),*]
    };
}

/// Every file by its path below the folder, as training left it.
const FILES: &[(&str, &[u8])] = embed![
    "base/model.safetensors",
    "base/optimizer.pt",
    "base/parameters.json",
    "top/model.safetensors",
    "top/optimizer.pt",
    "top/parameters.json",
    "bottom/model.safetensors",
    "bottom/optimizer.pt",
    "bottom/parameters.json",
    "test.safetensors",
];

/// Writes every file below `folder`, and the random numbers and zeros to compare with.
///
/// # Errors
/// [`Error::Output`] where that cannot be written.
pub(super) fn unpack(folder: &Path) -> Result<(), Error> {
    FILES.iter().try_for_each(|(name, bytes)| write(&folder.join(name), bytes))?;
    let like = Checkpoint::open(folder.join("base/model.safetensors"))?;
    // From [−1, 1) to [0, 1): no Fisher is negative.
    fill(&folder.join(RANDOM), &like, |at, len| {
        noise(SEED + at, len).iter().map(|x| (x + 1.0) / 2.0).collect()
    })?;
    fill(&folder.join(ZEROS), &like, |_, len| vec![0.0; len])
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, bytes));
    written.map_err(|error| Error::output(path, error.to_string()))
}

/// Writes an f32 file of the tensors of `like`, with `values` of a tensor's place and its length.
fn fill(path: &Path, like: &Checkpoint, values: impl Fn(u64, usize) -> Vec<f64>) -> Result<(), Error> {
    let tensors =
        like.tensors().iter().map(|t| OutputTensor::new(t.name.clone(), Dtype::F32, t.shape.clone()));
    let layout = OutputLayout::single(tensors.collect(), BTreeMap::new());
    let output = Output::create(path, layout, true, &[])?;
    for (at, tensor) in (0..).zip(like.tensors()) {
        let len = usize::try_from(tensor.elements()).expect("the demo's own tensors are small");
        #[expect(clippy::cast_possible_truncation, reason = "noise has the 24 bits of an f32")]
        let bytes: Vec<u8> = values(at, len).iter().flat_map(|value| (*value as f32).to_le_bytes()).collect();
        let slot = output.position(&tensor.name).expect("the layout was made from these tensors");
        output.write(slot, 0, &bytes)?;
    }
    output.finish()
}
