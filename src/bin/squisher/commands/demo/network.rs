//! The demo's networks in a few plain loops, so that what a merge made can be tried without any framework.
//!
//! ```text
//! logits = W₄ · relu(W₂ · relu(W₀ · x + b₀) + b₂) + b₄        64 pixels → 128 → 64 → 10 digits, all f32
//! ```

use std::path::Path;

use serde::Serialize;
use squisher::Error;
use squisher::checkpoint::{Checkpoint, Dtype, TensorInfo};

/// The layers as PyTorch's `nn.Sequential` numbers them; between them are the ReLUs.
const LAYERS: [&str; 3] = ["0", "2", "4"];

/// Pixels of an image.
const PIXELS: usize = 64;

/// Three affine maps with ReLU between.
pub(super) struct Network(Vec<Layer>);

/// `weight` is `[o, i]`, row-major; `bias` is `[o]`.
struct Layer {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// The test images, whole and with one half blank, and which digits they show.
pub(super) struct Digits {
    whole: Vec<f32>,
    top: Vec<f32>,
    bottom: Vec<f32>,
    labels: Vec<i64>,
}

/// The share of images read correctly: whole ones, and ones of which only a half shows.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Accuracy {
    pub(super) whole: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
}

impl Network {
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let file = Checkpoint::open(path)?;
        let mut inputs = PIXELS;
        let layers = LAYERS.iter().map(|layer| {
            let bias = floats(&file, &format!("{layer}.bias"))?;
            let name = format!("{layer}.weight");
            let weight = floats(&file, &name)?;
            let expected = inputs * bias.len();
            if bias.is_empty() || weight.len() != expected {
                let problem = format!("has {} elements, expected {expected}", weight.len());
                return Err(Error::tensor(path, &name, problem));
            }
            inputs = bias.len();
            Ok(Layer { weight, bias })
        });
        layers.collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn accuracy(&self, digits: &Digits) -> Accuracy {
        let share = |images: &[f32]| {
            let read = images.chunks_exact(PIXELS).zip(&digits.labels);
            let correct = read.filter(|(image, label)| self.digit(image) == **label).count();
            correct as f64 / digits.len().max(1) as f64
        };
        Accuracy { whole: share(&digits.whole), top: share(&digits.top), bottom: share(&digits.bottom) }
    }

    /// The digit that an image shows: the first of the largest logits, as `argmax` has it.
    fn digit(&self, image: &[f32]) -> i64 {
        let logits = self.0.iter().enumerate().fold(image.to_vec(), |mut values, (at, layer)| {
            if at > 0 {
                values.iter_mut().for_each(|value| *value = value.max(0.0));
            }
            layer.apply(&values)
        });
        let best = (0..).zip(&logits).reduce(|best, next| if next.1 > best.1 { next } else { best });
        best.map_or(-1, |(digit, _)| digit)
    }
}

impl Layer {
    fn apply(&self, values: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(values.len()).zip(&self.bias);
        rows.map(|(row, bias)| bias + row.iter().zip(values).map(|(w, x)| w * x).sum::<f32>()).collect()
    }
}

impl Digits {
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let file = Checkpoint::open(path)?;
        let info = tensor(&file, "labels", Dtype::I64)?;
        let labels: Vec<i64> = elements(&file, info, i64::from_le_bytes)?;
        let images = |view: &str| {
            let pixels = floats(&file, view)?;
            if pixels.len() != labels.len() * PIXELS {
                let problem = format!("has {} elements, expected {}", pixels.len(), labels.len() * PIXELS);
                return Err(Error::tensor(path, view, problem));
            }
            Ok(pixels)
        };
        Ok(Self { whole: images("whole")?, top: images("top")?, bottom: images("bottom")?, labels })
    }

    pub(super) fn len(&self) -> usize {
        self.labels.len()
    }
}

fn floats(file: &Checkpoint, name: &str) -> Result<Vec<f32>, Error> {
    elements(file, tensor(file, name, Dtype::F32)?, f32::from_le_bytes)
}

fn tensor<'a>(file: &'a Checkpoint, name: &str, dtype: Dtype) -> Result<&'a TensorInfo, Error> {
    let info = file.get(name).ok_or_else(|| Error::tensor(file.path(), name, "is missing"))?;
    if info.dtype == dtype {
        return Ok(info);
    }
    Err(Error::tensor(file.path(), name, format!("has dtype {}, expected {dtype}", info.dtype)))
}

fn elements<T, const N: usize>(
    file: &Checkpoint,
    info: &TensorInfo,
    value: fn([u8; N]) -> T,
) -> Result<Vec<T>, Error> {
    let len = usize::try_from(info.bytes)
        .map_err(|_| Error::tensor(file.path(), &info.name, "is larger than the address space"))?;
    let mut bytes = vec![0; len];
    file.read(info, 0, &mut bytes)?;
    Ok(bytes.as_chunks().0.iter().copied().map(value).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One pixel decides: it is passed on, negated, through both hidden layers.
    fn toy() -> Network {
        let layer = |weight: Vec<f32>, bias: Vec<f32>| Layer { weight, bias };
        let mut first = vec![0.0; 2 * PIXELS];
        (first[0], first[PIXELS]) = (1.0, -1.0);
        Network(vec![
            layer(first, vec![0.0, 0.5]),
            layer(vec![1.0, 0.0, 0.0, 1.0], vec![0.0, 0.0]),
            layer(vec![1.0, 0.0, 0.0, 1.0, 0.0, 0.0], vec![0.0, 0.0, 0.25]),
        ])
    }

    fn image(pixel: f32) -> Vec<f32> {
        std::iter::once(pixel).chain(std::iter::repeat_n(0.0, PIXELS - 1)).collect()
    }

    #[test]
    fn the_largest_logit_wins_and_relu_stops_what_is_negative() {
        // Logits (relu(x), relu(0.5 − x), 0.25).
        assert_eq!(toy().digit(&image(1.0)), 0);
        assert_eq!(toy().digit(&image(-1.0)), 1);
        assert_eq!(toy().digit(&image(0.25)), 0, "the first of equal logits");
    }

    #[test]
    fn accuracy_counts_every_view_by_itself() {
        let digits = Digits {
            whole: [image(1.0), image(-1.0)].concat(),
            top: [image(1.0), image(1.0)].concat(),
            bottom: [image(-1.0), image(1.0)].concat(),
            labels: vec![0, 1],
        };
        let Accuracy { whole, top, bottom } = toy().accuracy(&digits);
        assert_eq!((whole, top, bottom), (1.0, 0.5, 0.0));
    }
}
