//! Cases: inputs for a kernel, and what its definition says of them.

use std::fmt;

use half::{bf16, f16};

use super::{Kernel, narrow};
use crate::gpu::Caps;
use crate::memory::Element;
use crate::shape::DType;

/// A kernel that brings its own cases, so that tests, benches and `verify` find it in the registry.
pub trait Checked: Kernel {
    /// Inputs around every edge (0, 1, one below and above each tile, beyond one workgroup dimension where
    /// that is cheap), every specialisation, and the definition's answers in f64.
    fn cases() -> Vec<Case<Self>>;

    /// A step whose largest buffer has about `elements` elements, to be timed.
    fn bench(elements: u64) -> Bench<Self>;

    /// Steps of the sizes of real layers, in the form that suits a device: for kernels whose speed hangs on
    /// more than one size. `squisher bench` times these in place of [`Checked::bench`] at every size.
    fn layers(_caps: &Caps) -> Vec<Bench<Self>> {
        Vec::new()
    }
}

/// Walks the registry: kernels are types, so a list of them can only be visited.
pub trait Visitor {
    /// Called once for each kernel.
    fn kernel<K: Checked>(&mut self);
}

/// One input for a kernel and what its definition says of it.
#[derive(Clone, Debug)]
pub struct Case<K: Kernel> {
    /// What it is about, for messages.
    pub name: String,
    /// The specialisation.
    pub kernel: K,
    /// The uniform block.
    pub params: K::Params,
    /// The buffers before the step, in binding order; outputs are filled with a sentinel or their old value.
    pub buffers: Vec<CaseBuffer>,
    /// For each checked buffer its binding (counted from 0 among the buffers) and the wanted elements.
    pub want: Vec<(usize, Vec<Want>)>,
}

/// What an element should be, and how far the kernel's own order of operations allows it to be off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Want {
    /// The definition's value, in f64.
    pub value: f64,
    /// The largest allowed distance, computed: c · u · Σ|terms| plus what storing as a narrower type adds.
    pub bound: f64,
}

/// The least normal f32: a device may flush a result below it to zero, and a sum loses up to as much with
/// every such term.
pub(crate) const FLUSHED: f64 = f32::MIN_POSITIVE as f64;

impl Want {
    /// A value computed in f32 from terms whose magnitudes add up to `sum_abs`, in `depth` roundings one after
    /// the other, then stored as `dtype`. The bound counts 2u a rounding: WGSL promises one unit in the last place.
    #[must_use]
    pub fn computed(value: f64, sum_abs: f64, depth: f64, dtype: DType) -> Self {
        let u = DType::F32.unit_roundoff();
        let arithmetic = 2.0 * u * depth * sum_abs + depth * FLUSHED;
        let stored = match dtype {
            DType::F32 => 0.0,
            DType::F16 => dtype.unit_roundoff() * (value.abs() + arithmetic) + 2.0_f64.powi(-25),
            DType::BF16 => dtype.unit_roundoff() * (value.abs() + arithmetic) + FLUSHED,
        };
        Self { value, bound: arithmetic + stored }
    }

    /// A value that must be met bit for bit (up to the sign of zero).
    #[must_use]
    pub fn exact(value: f64) -> Self {
        Self { value, bound: 0.0 }
    }

    /// Whether `got` is near enough. A wanted NaN wants a NaN.
    #[must_use]
    pub fn accepts(&self, got: f64) -> bool {
        if self.value.is_nan() {
            return got.is_nan();
        }
        got == self.value || (got - self.value).abs() <= self.bound
    }
}

/// A buffer of a case.
#[derive(Clone, PartialEq)]
pub struct CaseBuffer {
    /// What the bytes are.
    pub element: Element,
    /// The elements' bytes.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for CaseBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.len(), self.element)
    }
}

impl CaseBuffer {
    /// Values rounded to `dtype`.
    #[must_use]
    pub fn floats(dtype: DType, values: &[f64]) -> Self {
        let bytes = values.iter().flat_map(|&v| store(dtype.into(), v)).collect();
        Self { element: dtype.into(), bytes }
    }

    /// Words.
    #[must_use]
    pub fn words(values: &[u32]) -> Self {
        Self { element: Element::U32, bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }

    /// An output that holds what no kernel writes, so that "not written" differs from zero.
    #[must_use]
    pub fn sentinel(element: impl Into<Element>, len: usize) -> Self {
        let element = element.into();
        Self { element, bytes: vec![0xA5; len * element.bytes()] }
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.element.bytes()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The stored values, exactly: what the definition is given.
    #[must_use]
    pub fn values(&self) -> Vec<f64> {
        self.bytes.chunks_exact(self.element.bytes()).map(|b| load(self.element, b)).collect()
    }
}

fn store(element: Element, value: f64) -> Vec<u8> {
    #[expect(clippy::cast_possible_truncation, reason = "rounding to the storage type is what storing means")]
    let value = value as f32;
    match element {
        Element::F32 | Element::U32 => value.to_le_bytes().to_vec(),
        Element::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        Element::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
    }
}

fn load(element: Element, bytes: &[u8]) -> f64 {
    let four = || [bytes[0], bytes[1], bytes[2], bytes[3]];
    match element {
        Element::F32 => f32::from_le_bytes(four()).into(),
        Element::U32 => u32::from_le_bytes(four()).into(),
        Element::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
        Element::BF16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f64(),
    }
}

/// Values that look random and are the same everywhere: uniform in [−1, 1), from `seed`, as f32 holds them.
#[must_use]
pub fn noise(seed: u64, len: usize) -> Vec<f64> {
    (0..len as u64)
        .map(|i| {
            // splitmix64
            let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            let bits = (z ^ (z >> 31)) >> 40;
            let unit = bits as f64 / f64::from(1 << 23) - 1.0;
            #[expect(clippy::cast_possible_truncation, reason = "24 bits are exact in f32")]
            let unit = narrow(DType::F32, unit as f32);
            unit.into()
        })
        .collect()
}

/// A step to be timed.
#[derive(Clone, Debug)]
pub struct Bench<K: Kernel> {
    /// The sizes, for the report.
    pub name: String,
    /// The specialisation.
    pub kernel: K,
    /// The uniform block.
    pub params: K::Params,
    /// The buffers, in binding order.
    pub buffers: Vec<(Element, u64, Fill)>,
}

/// What a bench's buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Zeros.
    Zero,
    /// Values in [−1, 1).
    Noise,
    /// Values in [0, 1).
    Positive,
    /// Words below this number.
    Below(u32),
    /// Words that count: the i-th is i.
    Count,
    /// Not its own buffer: that of an earlier binding, as the kernel's callers bind it.
    Same(usize),
}
