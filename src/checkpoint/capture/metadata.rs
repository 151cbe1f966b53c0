//! What a capture's metadata say: its format, its loss, whose labels that was of, and what each layer is.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::{LayerKind, Tied};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, printable};

/// The value of `format` in a capture's metadata.
pub const CAPTURE_FORMAT: &str = "squisher-capture-1";

/// Whether the captured gradients are those of a summed or of a mean loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LossReduction {
    /// ∂ℓ_n.
    #[default]
    Sum,
    /// ∂ℓ_n / B.
    Mean,
}

/// Whose labels the captured loss was of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Labels {
    /// The data's.
    #[default]
    Data,
    /// Drawn from the model; `sample_weight` is 1/k.
    Sampled,
    /// Every class in turn; `sample_weight` is its probability.
    All,
}

impl Labels {
    /// As a capture's metadata spell it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Sampled => "sampled",
            Self::All => "all",
        }
    }
}

/// What a header entry says of a layer.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Described {
    #[serde(flatten)]
    pub(super) kind: LayerKind,
    pub(super) bias: bool,
    #[serde(default)]
    pub(super) tied: Tied,
}

/// Whether a checkpoint says that it is a capture.
#[must_use]
pub fn is_capture(checkpoint: &Checkpoint) -> bool {
    checkpoint.metadata().get("format").is_some_and(|format| format.starts_with("squisher-capture-"))
}

/// Refuses other files, and captures of formats to come.
pub(super) fn check_format(checkpoint: &Checkpoint) -> Result<()> {
    let problem = match checkpoint.metadata().get("format").map(String::as_str) {
        Some(CAPTURE_FORMAT) => return Ok(()),
        Some(other) if other.starts_with("squisher-capture-") => format!(
            "format is {}, this version reads \"{CAPTURE_FORMAT}\"; capture again or update squisher",
            printable(other)
        ),
        _ => format!(
            "no capture: its metadata lacks format = \"{CAPTURE_FORMAT}\"; examples/pytorch/capture.py writes captures"
        ),
    };
    Err(Error::file(checkpoint.path(), problem))
}

/// `loss_reduction`.
pub(super) fn loss_reduction(checkpoint: &Checkpoint) -> Result<LossReduction> {
    let known = [("sum", LossReduction::Sum), ("mean", LossReduction::Mean)];
    choice(checkpoint, "loss_reduction", &known)
}

/// `labels`.
pub(super) fn labels(checkpoint: &Checkpoint) -> Result<Labels> {
    let known = [("data", Labels::Data), ("sampled", Labels::Sampled), ("all", Labels::All)];
    choice(checkpoint, "labels", &known)
}

/// What a key says, its default where it is not there.
fn choice<T: Copy + Default>(checkpoint: &Checkpoint, key: &str, known: &[(&str, T)]) -> Result<T> {
    let Some(got) = checkpoint.metadata().get(key) else { return Ok(T::default()) };
    let found = known.iter().find(|(name, _)| name == got);
    found.map(|&(_, value)| value).ok_or_else(|| {
        let known: Vec<&str> = known.iter().map(|&(name, _)| name).collect();
        let problem = format!("{key} is {}, expected one of {}", printable(got), known.join(", "));
        Error::file(checkpoint.path(), problem)
    })
}

/// The metadata's `layers`, by name.
pub(super) fn layers(checkpoint: &Checkpoint) -> Result<BTreeMap<String, Described>> {
    let Some(json) = checkpoint.metadata().get("layers") else {
        return Err(Error::file(checkpoint.path(), "its metadata has no \"layers\"; capture again"));
    };
    serde_json::from_str::<UniqueLayers>(json).map(|layers| layers.0).map_err(|error| {
        Error::file(checkpoint.path(), format!("\"layers\" of the metadata is not valid: {error}"))
    })
}

/// An object of layers in which no name comes twice.
struct UniqueLayers(BTreeMap<String, Described>);

impl<'de> Deserialize<'de> for UniqueLayers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LayersVisitor;

        impl<'de> Visitor<'de> for LayersVisitor {
            type Value = UniqueLayers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of layers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueLayers, A::Error> {
                let mut layers = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    let described: Described = map
                        .next_value()
                        .map_err(|error| A::Error::custom(format!("layer {}: {error}", printable(&name))))?;
                    if layers.contains_key(&name) {
                        return Err(A::Error::custom(format!("layer {} is given twice", printable(&name))));
                    }
                    layers.insert(name, described);
                }
                Ok(UniqueLayers(layers))
            }
        }

        deserializer.deserialize_map(LayersVisitor)
    }
}
