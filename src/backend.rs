//! Where steps run: a wgpu device, or the host's own threads.

use crate::error::{Error, Result};
use crate::gpu::{Caps, Gpu};
use crate::memory::{Element, HostMemory, Memory, View};
use crate::record::Recording;
use crate::shape::usize_of;

/// One of the two executions of every kernel. What is built on [`record`](crate::record) asks which one it is only to
/// plan its memory, and to move data into it.
#[derive(Clone, Debug)]
pub enum Backend {
    /// The host's threads and memory. Needs no driver; as fast as the cores and memory allow.
    Host,
    /// A wgpu device.
    Gpu(Gpu),
}

impl From<Gpu> for Backend {
    fn from(gpu: Gpu) -> Self {
        Self::Gpu(gpu)
    }
}

impl Backend {
    /// The best hardware adapter's device, or the host where there is none. One that is there and refuses a device is
    /// told in the log. Blocks while the driver starts; an async application awaits [`Gpu::request`].
    #[must_use]
    pub fn detect() -> Self {
        match pollster::block_on(Gpu::request_default()) {
            Ok(found) => found.map_or(Self::Host, Self::Gpu),
            Err(error) => {
                log::warn!("{error}; on the host's threads instead");
                Self::Host
            }
        }
    }

    /// What it allows.
    #[must_use]
    pub fn caps(&self) -> Caps {
        match self {
            Self::Host => Caps::host(),
            Self::Gpu(gpu) => gpu.caps().clone(),
        }
    }

    /// Its name for reports.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Host => format!("host ({} threads)", rayon::current_num_threads()),
            Self::Gpu(gpu) => gpu.caps().name.clone(),
        }
    }

    /// A new zeroed buffer of `len` elements that every kernel can bind and that can be read back.
    ///
    /// # Errors
    /// [`Error::Limit`] above the device's buffer or binding size, [`Error::Device`] where memory ran out.
    pub fn alloc(&self, len: u64, element: impl Into<Element>) -> Result<View> {
        let element = element.into();
        let size = element.padded_bytes(len);
        let memory = match self {
            Self::Host => Memory::Host(HostMemory::zeroed(size)),
            Self::Gpu(gpu) => Memory::Device(device_buffer(gpu, size, STORAGE, false)?),
        };
        View::new(memory, 0, len, element)
    }

    /// A new buffer with these elements, or with the elements that these bytes are.
    ///
    /// # Errors
    /// [`Error::Shape`] where a `T` has not as many bytes as an element; as [`Backend::alloc`] and
    /// [`Backend::upload`].
    pub fn buffer<T: bytemuck::NoUninit>(&self, values: &[T], element: impl Into<Element>) -> Result<View> {
        let element = element.into();
        check_size::<T>("buffer", element)?;
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let view = self.alloc((bytes.len() / element.bytes()) as u64, element)?;
        self.upload(&view, bytes)?;
        Ok(view)
    }

    /// Writes a view's elements.
    ///
    /// # Errors
    /// [`Error::Shape`] if the lengths differ, [`Error::Device`] after a loss.
    pub fn upload(&self, view: &View, bytes: &[u8]) -> Result<()> {
        check_bytes("upload", view, bytes.len())?;
        match (self, view.memory()) {
            (Self::Host, Memory::Host(memory)) => memory.write(|all| {
                let start = usize_of(view.offset());
                all[start..start + bytes.len()].copy_from_slice(bytes);
            }),
            (Self::Gpu(gpu), Memory::Device(buffer)) => gpu.upload(buffer, view.offset(), bytes),
            _ => Err(wrong_backend("upload")),
        }
    }

    /// Reads a view's elements, after everything submitted before.
    ///
    /// # Errors
    /// [`Error::Shape`] if the lengths differ, [`Error::Device`] after a loss.
    pub fn download_into(&self, view: &View, out: &mut [u8]) -> Result<()> {
        check_bytes("download", view, out.len())?;
        match (self, view.memory()) {
            (Self::Host, Memory::Host(memory)) => memory.read(|all| {
                let start = usize_of(view.offset());
                out.copy_from_slice(&all[start..start + out.len()]);
            }),
            (Self::Gpu(gpu), Memory::Device(buffer)) => gpu.download(buffer, view.offset(), out),
            _ => Err(wrong_backend("download")),
        }
    }

    /// A view's elements, or their bytes.
    ///
    /// # Errors
    /// [`Error::Shape`] where a `T` has not as many bytes as an element; as [`Backend::download_into`].
    pub fn download<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&self, view: &View) -> Result<Vec<T>> {
        check_size::<T>("download", view.element())?;
        let mut out = vec![T::zeroed(); usize_of(view.bytes()) / size_of::<T>()];
        self.download_into(view, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }

    /// Runs a recording to its end: on a device, submits it and waits.
    ///
    /// An application that submits its own encoder uses [`Recording::encode`] instead.
    ///
    /// # Errors
    /// [`Error::Device`] after a loss.
    pub fn run(&self, recording: &Recording) -> Result<()> {
        match self {
            Self::Host => recording.run_on_host(),
            Self::Gpu(gpu) => {
                self.submit(recording)?;
                gpu.wait()
            }
        }
    }

    /// Starts a recording: on a device, submits it and returns at once; on the host, runs it.
    ///
    /// # Errors
    /// [`Error::Device`] after a loss.
    pub fn submit(&self, recording: &Recording) -> Result<()> {
        match self {
            Self::Host => recording.run_on_host(),
            Self::Gpu(gpu) => {
                gpu.check("submit")?;
                recording.encode_apart(|encoder| {
                    gpu.scoped("submit", || gpu.queue().submit([encoder.finish()])).map(|_| ())
                })?;
                gpu.check("submit")
            }
        }
    }
}

/// What kernels can bind, and copies begin and end at.
pub(crate) const STORAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

/// A buffer of a size that the device allows.
pub(crate) fn device_buffer(
    gpu: &Gpu,
    size: u64,
    usage: wgpu::BufferUsages,
    mapped_at_creation: bool,
) -> Result<wgpu::Buffer> {
    gpu.check("alloc")?;
    let caps = gpu.caps();
    for (limit, max) in [
        ("max_storage_buffer_binding_size", caps.max_binding_bytes),
        ("max_buffer_size", caps.max_buffer_bytes),
    ] {
        if size > max {
            return Err(Error::Limit { op: "alloc".into(), limit: limit.into(), max, asked: size });
        }
    }
    let label = Some("squisher.buffer");
    gpu.scoped(&format!("alloc of {size} bytes"), || {
        gpu.device().create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation })
    })
}

/// Values of a type are elements of the same size, or bytes.
fn check_size<T>(op: &str, element: Element) -> Result<()> {
    match size_of::<T>() {
        1 => Ok(()),
        size if size == element.bytes() => Ok(()),
        size => {
            let expected = format!("{} bytes, as {element} has", element.bytes());
            Err(Error::shape(op, "a value", expected, format!("{size} bytes")))
        }
    }
}

fn check_bytes(op: &str, view: &View, bytes: usize) -> Result<()> {
    if view.bytes() == bytes as u64 {
        return Ok(());
    }
    Err(Error::shape(op, "the host slice", format!("{} bytes", view.bytes()), format!("{bytes} bytes")))
}

pub(crate) fn wrong_backend(op: &str) -> Error {
    Error::argument(op, "a host view was given to a device, or a device view to the host")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::DType;

    #[test]
    fn values_of_another_size_than_the_elements_are_refused() {
        let host = Backend::Host;
        let refused = host.buffer(&[0.5_f32], DType::BF16).expect_err("four bytes for two").to_string();
        assert_eq!(refused, "buffer: a value has 4 bytes, expected 2 bytes, as bf16 has");
        assert!(host.buffer(&[0.5_f64], DType::F32).is_err(), "eight bytes for four");
        assert!(host.buffer(&[()], DType::F32).is_err(), "nothing for four");
        let halves = host.buffer(&[half::bf16::ONE; 2], DType::BF16).expect("two for two");
        assert!(host.download::<f32>(&halves).is_err(), "two elements as one value");
        assert_eq!(host.download::<half::bf16>(&halves).expect("two for two"), [half::bf16::ONE; 2]);
        let bytes = host.download::<u8>(&halves).expect("bytes are bytes");
        assert_eq!((bytes.len(), host.buffer(&bytes, DType::BF16).expect("whole elements").len()), (4, 2));
        assert!(host.buffer(&bytes[..3], DType::BF16).is_err(), "an element and a half");
    }
}
