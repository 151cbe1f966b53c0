//! The texts that shaders are put together from: see `shaders/README.md`.

/// The text of a shader file.
macro_rules! shader {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path))
    };
}
pub(crate) use shader;

/// Eight elements a load: the parts that most elementwise kernels share.
pub(crate) const DTYPE: &str = shader!("lib/dtype.wgsl");

/// What lanes of a workgroup have, joined to one.
pub(crate) const JOIN: &str = shader!("lib/join.wgsl");

/// Indices and exponents in records. Needs [`DTYPE`] and [`WIDE`].
pub(crate) const RECORD: &str = shader!("lib/record.wgsl");

/// Weights with their own exponent.
pub(crate) const WIDE: &str = shader!("lib/wide.wgsl");

/// One element a load: for kernels whose elements are scattered. Needs [`DTYPE`].
pub(crate) const ELEMENT: &str = shader!("lib/element.wgsl");

/// Runs of consecutive elements that begin anywhere, read by whole octets. Needs [`DTYPE`].
pub(crate) const RUN: &str = shader!("lib/run.wgsl");

/// Neighbouring columns eight at a time. Needs [`DTYPE`].
pub(crate) const COLUMNS: &str = shader!("lib/columns.wgsl");
