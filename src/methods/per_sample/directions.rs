//! J Δ: every sample's gradient times a direction Δ, which is read from a file beside the gradients it meets.

use super::embedding::Runs;
use super::layer::Slab;
use super::products::{Matrices, dot};
use super::scale::{finite, narrow, power_of_two};
use super::{OP, PerSample, Sum};
use crate::backend::Backend;
use crate::checkpoint::{Checkpoint, widen_bytes};
use crate::error::{Error, Result, printable};
use crate::memory::Element;
use crate::methods::captured::small;
use crate::shape::{DType, shape_text, usize_of};
use crate::stream::Stage;

impl PerSample<'_> {
    /// J Δ: ⟨g_n, Δ⟩ of every sample. `direction` holds Δ under the parameters' names (other tensors are not
    /// looked at).
    ///
    /// # Errors
    /// As [`PerSample::norms`]; [`Error::Mismatch`] where a parameter is missing or has another shape,
    /// [`Error::Tensor`] for values of it that are not finite floats.
    pub fn inner_products(&self, direction: &Checkpoint) -> Result<Vec<f64>> {
        self.check_direction(direction)?;
        let mut sum = DirectionSum { direction, products: vec![0.0; self.samples()] };
        self.walk(&mut sum)?;
        let products: Vec<f64> =
            sum.products.iter().zip(&self.unit).map(|(product, unit)| unit * product).collect();
        finite(&products, "products with the direction leave f32's range")?;
        Ok(products)
    }

    /// The direction has every parameter, as floats of its shape.
    fn check_direction(&self, direction: &Checkpoint) -> Result<()> {
        for (name, shape) in self.captures[0].layers().iter().flat_map(|layer| layer.parameters()) {
            let problem = match direction.get(&name) {
                Some(tensor) if tensor.shape == shape && tensor.float().is_some() => continue,
                Some(tensor) => {
                    let (got, want) = (shape_text(&tensor.shape), shape_text(&shape));
                    format!("{} is {} {got}, expected floats of {want}", printable(&name), tensor.dtype)
                }
                None => format!("has no {}", printable(&name)),
            };
            let problem = format!("the direction {}: {problem}", direction.path().display());
            return Err(Error::mismatch(OP, problem));
        }
        Ok(())
    }
}

/// Products with a direction.
struct DirectionSum<'a> {
    direction: &'a Checkpoint,
    products: Vec<f64>,
}

impl DirectionSum<'_> {
    /// Some elements of Δ near 1, and what they were multiplied by.
    fn read(&self, name: &str, first: u64, len: u64) -> Result<(Vec<f32>, f64)> {
        let tensor =
            self.direction.get(name).ok_or_else(|| Error::argument(OP, "the direction was checked"))?;
        let dtype = tensor.float().ok_or_else(|| Error::argument(OP, "the direction was checked"))?;
        let size = Element::from(dtype).bytes();
        let mut bytes = vec![0; usize_of(len) * size];
        self.direction.read(tensor, first * size as u64, &mut bytes)?;
        let mut values = vec![0.0; bytes.len() / size];
        widen_bytes(&bytes, dtype, &mut values);
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let problem = format!("NaN or infinity at flat index {}", first + at as u64);
            return Err(Error::tensor(self.direction.path(), name, problem));
        }
        let scale = power_of_two(values.iter().fold(0.0, |most, &value| f64::from(value).abs().max(most)));
        let scaled: Vec<f64> = values.iter().map(|&value| f64::from(value) * scale).collect();
        Ok((narrow(&scaled), scale))
    }

    /// The products of a slab's gradients with the elements of Δ that they meet.
    fn add_slab(
        &mut self,
        backend: &Backend,
        slab: &Slab<'_>,
        (direction, scale): (&[f32], f64),
    ) -> Result<()> {
        let direction = backend.buffer(direction, DType::F32)?;
        for chunk in &slab.chunks {
            let (x, y) = (&chunk.gradients, &direction);
            let matrices = Matrices { backend, x, y, len: small(slab.len)? };
            let products = matrices.products(&(0..chunk.samples.len()), &(0..1))?;
            for (sum, product) in self.products[chunk.samples.clone()].iter_mut().zip(products) {
                *sum += product / (chunk.scale * scale);
            }
        }
        Ok(())
    }

    /// The products of runs with the rows of Δ from their first on.
    fn add_runs(&mut self, runs: &Runs<'_>, (direction, scale): (&[f32], f64)) {
        for run in &runs.runs {
            let row = (run.row - runs.first_row) as usize * runs.dim;
            let product = dot(runs.values(run), &direction[row..row + runs.dim]);
            self.products[run.sample] += product / (run.scale * scale);
        }
    }
}

impl Sum for DirectionSum<'_> {
    fn slab(&mut self, job: &PerSample<'_>, slab: &Slab<'_>) -> Result<()> {
        let read = || self.read(slab.name, slab.first, slab.len);
        let (direction, scale) = job.clock.time(Stage::Read, read)?;
        job.clock.time(Stage::Compute, || self.add_slab(job.run.backend, slab, (&direction, scale)))
    }

    fn runs(&mut self, job: &PerSample<'_>, runs: &Runs<'_>) -> Result<()> {
        let (first, len) = (u64::from(runs.first_row), u64::from(runs.rows));
        let read = || self.read(runs.name, first * runs.dim as u64, len * runs.dim as u64);
        let (direction, scale) = job.clock.time(Stage::Read, read)?;
        job.clock.time(Stage::Compute, || self.add_runs(runs, (&direction, scale)));
        Ok(())
    }
}
