//! The trained networks and the test images, carried inside the program so that it finds them anywhere.

use std::fs;
use std::path::Path;

use squisher::Error;

/// The networks, in the order of the tables.
pub(super) const NAMES: [&str; 3] = ["base", "top", "bottom"];

/// The test images, below the demo's folder.
pub(super) const DIGITS: &str = "test.safetensors";

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

/// Writes every file below `folder`.
///
/// # Errors
/// [`Error::Output`] where that cannot be written.
pub(super) fn unpack(folder: &Path) -> Result<(), Error> {
    FILES.iter().try_for_each(|(name, bytes)| {
        let path = folder.join(name);
        let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, bytes));
        written.map_err(|error| Error::output(path, error.to_string()))
    })
}
