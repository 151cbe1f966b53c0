//! Typed ranges of memory, on a device or on the host: what kernels are given.

use std::fmt;
use std::sync::{Arc, RwLock};

use bytemuck::{cast_slice, cast_slice_mut};

use crate::error::{Error, Result};
use crate::shape::{DType, GROUP_BYTES};

/// What the elements of a buffer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// Four-byte words: ids, counts, packed state.
    U32,
}

impl Element {
    /// Bytes of one element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The floating-point type, if it is one.
    #[must_use]
    pub const fn dtype(self) -> Option<DType> {
        match self {
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::BF16 => Some(DType::BF16),
            Self::U32 => None,
        }
    }

    /// Bytes of a buffer for `len` elements, in whole groups (see [`DType::padded_bytes`]).
    #[must_use]
    pub const fn padded_bytes(self, len: u64) -> u64 {
        let bytes = (len * self.bytes() as u64).next_multiple_of(GROUP_BYTES);
        if bytes == 0 { GROUP_BYTES } else { bytes }
    }
}

impl From<DType> for Element {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self::F32,
            DType::F16 => Self::F16,
            DType::BF16 => Self::BF16,
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dtype() {
            Some(dtype) => dtype.fmt(f),
            None => f.write_str("u32"),
        }
    }
}

/// Host memory that steps read and write. Cheap to clone: clones are the same memory.
///
/// It is made of 16-byte words, so that every element type is aligned in it.
#[derive(Clone)]
pub struct HostMemory {
    words: Arc<RwLock<Vec<u128>>>,
    bytes: u64,
}

impl HostMemory {
    /// Zeroed memory of `bytes` bytes, rounded up to whole groups.
    #[must_use]
    pub fn zeroed(bytes: u64) -> Self {
        let bytes = bytes.next_multiple_of(GROUP_BYTES);
        let words = usize::try_from(bytes / 16).expect("a host buffer fits the address space");
        Self { words: Arc::new(RwLock::new(vec![0; words])), bytes }
    }

    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads the bytes while nothing writes them.
    ///
    /// # Errors
    /// [`Error::Argument`] if a step is writing them.
    pub fn read<R>(&self, use_bytes: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let words = self.words.try_read().map_err(|_| busy())?;
        Ok(use_bytes(cast_slice(&words)))
    }

    /// Writes the bytes while nothing else uses them.
    ///
    /// # Errors
    /// [`Error::Argument`] if a step is using them.
    pub fn write<R>(&self, use_bytes: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        let mut words = self.words.try_write().map_err(|_| busy())?;
        Ok(use_bytes(cast_slice_mut(&mut words)))
    }

    pub(crate) fn words(&self) -> &RwLock<Vec<u128>> {
        &self.words
    }
}

pub(crate) fn busy() -> Error {
    Error::argument("host memory", "one buffer is written and used again in the same step; bind another")
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory({} bytes)", self.bytes)
    }
}

/// Where a view lies.
#[derive(Clone, Debug)]
pub enum Memory {
    /// A buffer of the device, the caller's or ours.
    Device(wgpu::Buffer),
    /// Host memory.
    Host(HostMemory),
}

impl Memory {
    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Device(buffer) => buffer.size(),
            Self::Host(memory) => memory.bytes(),
        }
    }
}

/// A typed range of memory: `len` elements from byte `offset`.
///
/// Kernels load and store whole 32-byte groups, so the range must be followed by room up to a multiple of 32
/// bytes; what lies there is overwritten. As views start at multiples of 32, no other view is touched.
#[derive(Clone, Debug)]
pub struct View {
    memory: Memory,
    offset: u64,
    len: u64,
    element: Element,
}

impl View {
    /// `len` elements of `memory` from byte `offset`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the padded range does not lie inside, [`Error::Argument`] if `offset` is no
    /// multiple of 32 or a device buffer cannot be bound as storage.
    pub fn new(memory: Memory, offset: u64, len: u64, element: Element) -> Result<Self> {
        if !offset.is_multiple_of(GROUP_BYTES) {
            return Err(Error::argument(
                "view",
                format!("offset {offset} is not a multiple of {GROUP_BYTES} bytes"),
            ));
        }
        if let Memory::Device(buffer) = &memory
            && !buffer.usage().contains(wgpu::BufferUsages::STORAGE)
        {
            return Err(Error::argument("view", "the buffer was created without BufferUsages::STORAGE"));
        }
        let room = memory.bytes().checked_sub(offset);
        let fits = len
            .checked_mul(element.bytes() as u64)
            .and_then(|bytes| bytes.checked_next_multiple_of(GROUP_BYTES))
            .is_some_and(|bytes| room.is_some_and(|room| bytes.max(GROUP_BYTES) <= room));
        if !fits {
            let expected =
                format!("{len} {element} elements from byte {offset}, padded to {GROUP_BYTES} bytes");
            return Err(Error::shape("view", "the buffer", expected, format!("{} bytes", memory.bytes())));
        }
        Ok(Self { memory, offset, len, element })
    }

    /// A whole buffer of the caller's device as `len` elements.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn of_buffer(buffer: &wgpu::Buffer, len: u64, element: impl Into<Element>) -> Result<Self> {
        Self::new(Memory::Device(buffer.clone()), 0, len, element.into())
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the elements are.
    #[must_use]
    pub fn element(&self) -> Element {
        self.element
    }

    /// Where the view lies.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Its first byte.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of its elements.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.len * self.element.bytes() as u64
    }

    /// Bytes of its elements in whole groups: what a kernel binds.
    #[must_use]
    pub fn padded_bytes(&self) -> u64 {
        self.element.padded_bytes(self.len)
    }

    /// The first `len` elements.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are fewer.
    pub fn first(&self, len: u64) -> Result<Self> {
        if len > self.len {
            return Err(Error::shape(
                "view",
                "the range",
                format!("at most {} elements", self.len),
                len.to_string(),
            ));
        }
        Ok(Self { len, ..self.clone() })
    }

    /// The float type of the elements, checked for an operation's argument.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are words.
    pub fn float(&self, op: &str, what: &str) -> Result<DType> {
        self.element
            .dtype()
            .ok_or_else(|| Error::shape(op, what, "f32, f16 or bf16 elements", "u32 elements"))
    }

    /// Checks length and, if given, element type for an operation's argument.
    ///
    /// # Errors
    /// [`Error::Shape`] with both values.
    pub fn check(&self, op: &str, what: &str, len: u64, element: Option<Element>) -> Result<()> {
        if self.len != len {
            let got = format!("{} elements", self.len);
            return Err(Error::shape(op, what, format!("{len} elements"), got));
        }
        match element {
            Some(element) if element != self.element => Err(Error::shape(
                op,
                what,
                format!("{element} elements"),
                format!("{} elements", self.element),
            )),
            _ => Ok(()),
        }
    }
}
