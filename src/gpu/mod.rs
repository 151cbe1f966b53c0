//! The lent device: what it can do, its pipelines, and moving bytes to and from it.
//!
//! A [`Gpu`] wraps a `wgpu::Device` and `wgpu::Queue` that an application made ([`Gpu::from_wgpu`]) or that
//! this library asked for ([`Gpu::request`], for tools and tests). On a lent device nothing is requested,
//! no handler is installed, and nothing is submitted or polled by recording: the application stays in charge.
//!
//! After a device is lost, wgpu accepts every call and does nothing. So that bytes of a dead device are
//! never taken for results, a sticky flag is checked before each readback is trusted ([`Gpu::check`]). The
//! flag of an own device is set by wgpu's callback; a lent device has one callback, which is the
//! application's, so the application passes the news on with [`Gpu::mark_lost`].

mod adapters;
mod caps;
mod matrix;
mod pipeline;
mod readback;

use std::fmt;
use std::sync::{Arc, OnceLock};

pub use adapters::{AdapterChoice, AdapterReport, adapters, default_adapter};
pub use caps::{Caps, DeviceClass};
pub use matrix::MatrixUnits;
pub(crate) use pipeline::{Pipeline, PipelineKey, Source, error_chain};
pub(crate) use readback::allows;

use crate::error::{Error, Result};

/// Of an adapter.
const NO_MATRIX_UNITS: &str = "has no matrix units that kernels can use: squares of 8 or 16, f16 with sums in f32, in subgroups of at most 64";

/// A device that was lent to us, or that we asked for, and what we learned about it. Cheap to clone.
#[derive(Clone)]
pub struct Gpu {
    inner: Arc<Inner>,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("caps", &self.inner.caps).finish_non_exhaustive()
    }
}

struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    caps: Caps,
    pipelines: pipeline::Cache,
    lost: Arc<OnceLock<String>>,
}

impl Gpu {
    /// Takes an application's device and queue. Only the limits and features that the device was created with are used.
    #[must_use]
    pub fn from_wgpu(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let caps = Caps::of(&device);
        let inner =
            Inner { device, queue, caps, pipelines: pipeline::Cache::default(), lost: Arc::default() };
        Self { inner: Arc::new(inner) }
    }

    /// The same device, whose matrix units kernels may use where `adapter`, on which it was made, has some
    /// that suit them ([`MatrixUnits::of`]). A device does not tell, so that without this call none are used.
    /// Pipelines that were made, and a pipeline cache that was lent, stay with `self`.
    ///
    /// Products of matrices then take f32 factors as two of f16 each, with errors of about 2⁻²¹ of a
    /// product's factors and 2⁻³⁷ of the largest of their row and column; see
    /// [`Form::Matrix`](crate::kernels::fisher::Form::Matrix).
    ///
    /// # Errors
    /// [`Error::Adapter`] if the adapter is another one or has no such units, [`Error::Argument`] if the
    /// device was made without [`MatrixUnits::FEATURES`].
    pub fn with_matrix_units(&self, adapter: &wgpu::Adapter) -> Result<Self> {
        let info = adapter.get_info();
        if info != self.device().adapter_info() {
            let message = format!("{} is not the adapter on which the device was made", info.name);
            return Err(Error::Adapter { message });
        }
        let Some(units) = MatrixUnits::of(adapter) else {
            return Err(Error::Adapter { message: format!("{} {NO_MATRIX_UNITS}", info.name) });
        };
        if !self.device().features().contains(MatrixUnits::FEATURES) {
            let problem = "the device was made without MatrixUnits::FEATURES";
            return Err(Error::argument("with_matrix_units", problem));
        }
        // What is measured with them is not what the device measures without.
        let MatrixUnits { side, .. } = units;
        let name = format!("{}, matrix units {side}x{side}", self.caps().name);
        Ok(self.with_caps(Caps { name, matrix_units: Some(units), ..self.caps().clone() }))
    }

    /// The same device with other caps, and no pipelines yet.
    fn with_caps(&self, caps: Caps) -> Self {
        let (device, queue) = (self.device().clone(), self.queue().clone());
        let lost = Arc::clone(&self.inner.lost);
        let pipelines = pipeline::Cache::default();
        Self { inner: Arc::new(Inner { device, queue, caps, pipelines, lost }) }
    }

    /// The same device without pipelines.
    pub(crate) fn anew(&self) -> Self {
        self.with_caps(self.caps().clone())
    }

    /// Opens an adapter with its own limits and the optional features that kernels and benches can use.
    ///
    /// # Errors
    /// [`Error::Adapter`] if none answers to `choice`, or if it refuses a device.
    pub async fn request(choice: &AdapterChoice) -> Result<Self> {
        Self::request_with(choice, wgpu::ExperimentalFeatures::disabled()).await
    }

    /// As [`Gpu::request`]; with `experimental` enabled, which is `unsafe` to say, the adapter's matrix units
    /// too: wgpu's support of them is an experiment.
    ///
    /// # Errors
    /// As [`Gpu::request`], and for an adapter without matrix units that suit the kernels where they are asked for.
    pub async fn request_with(
        choice: &AdapterChoice,
        experimental: wgpu::ExperimentalFeatures,
    ) -> Result<Self> {
        let (adapter, _) = adapters::find(choice).await?;
        Self::open(&adapter, experimental).await
    }

    /// As [`Gpu::request`] without wishes; nothing where there is no hardware adapter.
    pub(crate) async fn request_default() -> Result<Option<Self>> {
        match adapters::find(&AdapterChoice::default()).await {
            Ok((adapter, _)) => Self::open(&adapter, wgpu::ExperimentalFeatures::disabled()).await.map(Some),
            Err(_) => Ok(None),
        }
    }

    async fn open(adapter: &wgpu::Adapter, experimental: wgpu::ExperimentalFeatures) -> Result<Self> {
        let wanted = experimental.is_enabled();
        if wanted && MatrixUnits::of(adapter).is_none() {
            let message = format!("{} {NO_MATRIX_UNITS}", adapter.get_info().name);
            return Err(Error::Adapter { message });
        }
        let (device, queue) = adapters::open(adapter, experimental).await?;
        let mut gpu = Self::from_wgpu(device, queue);
        if wanted {
            gpu = gpu.with_matrix_units(adapter)?;
        }
        let lost = Arc::clone(&gpu.inner.lost);
        gpu.device().set_device_lost_callback(move |reason, message| {
            let _already_set = lost.set(format!("{reason:?}: {message}"));
        });
        Ok(gpu)
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    /// The queue.
    #[must_use]
    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    /// What the device allows.
    #[must_use]
    pub fn caps(&self) -> &Caps {
        &self.inner.caps
    }

    /// Makes pipelines with the application's pipeline cache from now on, so that what the driver compiles
    /// can be kept in a file. The first one lent stays.
    ///
    /// wgpu has these on Vulkan (`Features::PIPELINE_CACHE`) and makes them in an `unsafe` function, since
    /// drivers trust the bytes that they are given; so the application makes, stores and answers for it. Most
    /// desktop drivers keep such files by themselves.
    pub fn lend_pipeline_cache(&self, cache: wgpu::PipelineCache) {
        let _already_lent = self.inner.pipelines.compiled.set(cache);
    }

    /// Notes that the device is lost. For applications, whose lost callback is their own.
    pub fn mark_lost(&self, message: impl Into<String>) {
        let _already_set = self.inner.lost.set(message.into());
    }

    /// An error if the device was lost at any time: what it returns can't be trusted.
    ///
    /// # Errors
    /// [`Error::Device`], with the driver's words.
    pub fn check(&self, op: &str) -> Result<()> {
        match self.inner.lost.get() {
            None => Ok(()),
            Some(message) => {
                Err(Error::Device { op: op.into(), message: format!("device lost ({message})") })
            }
        }
    }

    /// Runs wgpu calls so that what they refuse is an error here, not a panic or a call of the application's handler.
    pub(crate) fn scoped<R>(&self, op: &str, calls: impl FnOnce() -> R) -> Result<R> {
        match refusals(self.device(), calls) {
            (result, None) => Ok(result),
            (_, Some(error)) => Err(Error::Device { op: op.into(), message: error_chain(&error) }),
        }
    }

    pub(crate) fn pipeline(&self, key: PipelineKey, source: &Source<'_>) -> Result<Arc<Pipeline>> {
        self.inner.pipelines.get(&self.inner.device, key, source)
    }
}

/// What wgpu calls return, and the first of what wgpu refused of them: calls of its words, memory that a
/// device does not have, shaders that a driver's compiler gives up. What no error scope takes goes to the
/// application's handler, and wgpu's own one panics.
pub(crate) fn refusals<R>(device: &wgpu::Device, calls: impl FnOnce() -> R) -> (R, Option<wgpu::Error>) {
    use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
    let scopes = [OutOfMemory, Internal, Validation].map(|filter| device.push_error_scope(filter));
    let result = calls();
    // Scopes end in the reverse of the order that they began in, and every one of them has to.
    let errors = scopes.into_iter().rev().map(|scope| pollster::block_on(scope.pop()));
    let refused = errors.fold(None, Option::or);
    (result, refused)
}
