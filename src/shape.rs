//! Element types, and the sizes that follow from them.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A storage type that kernels load and store. Arithmetic is always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
}

impl DType {
    /// Every storage type, f32 first.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The number by which shaders know this type (`shaders/lib/dtype.wgsl`).
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::BF16 => 2,
        }
    }

    /// Half the distance between 1 and the next number: the relative error of one rounding.
    #[must_use]
    pub const fn unit_roundoff(self) -> f64 {
        match self {
            Self::F32 => 1.0 / 16_777_216.0,
            Self::F16 => 1.0 / 2048.0,
            Self::BF16 => 1.0 / 256.0,
        }
    }

    /// Bytes of a buffer that holds `len` elements so that every kernel can bind it: whole 32-byte groups, at
    /// least one.
    ///
    /// Kernels load and store eight elements at a time, and write what lies between `len` and the end of the
    /// last group. A view starts at a multiple of 32 bytes on every device, so no two views share a group.
    #[must_use]
    pub const fn padded_bytes(self, len: u64) -> u64 {
        let bytes = (len * self.size()).next_multiple_of(GROUP_BYTES);
        if bytes == 0 { GROUP_BYTES } else { bytes }
    }
}

/// Buffers and views are sized and placed in whole groups of this many bytes: eight f32.
pub const GROUP_BYTES: u64 = 32;

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        })
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s.to_ascii_lowercase().as_str() {
            "f32" | "float32" | "float" => Ok(Self::F32),
            "f16" | "float16" | "half" => Ok(Self::F16),
            "bf16" | "bfloat16" => Ok(Self::BF16),
            _ => Err(Error::argument("dtype", format!("\"{s}\" is not one of f32, f16, bf16"))),
        }
    }
}

/// A shape as it is printed, `[512, 2048]`.
#[must_use]
pub fn shape_text(shape: &[u64]) -> String {
    let parts: Vec<String> = shape.iter().map(u64::to_string).collect();
    format!("[{}]", parts.join(", "))
}

/// The number of elements of a shape, or nothing where it exceeds u64. A scalar has one.
#[must_use]
pub fn elements(shape: &[u64]) -> Option<u64> {
    shape.iter().try_fold(1_u64, |product, &axis| product.checked_mul(axis))
}

/// A count or size of what lies in memory, or is about to.
pub(crate) fn usize_of(count: u64) -> usize {
    usize::try_from(count).expect("what lies in memory is counted in usize")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_whole_groups_and_never_empty() {
        assert_eq!(DType::F32.padded_bytes(0), 32);
        assert_eq!(DType::F32.padded_bytes(8), 32);
        assert_eq!(DType::F32.padded_bytes(9), 64);
        assert_eq!(DType::BF16.padded_bytes(16), 32);
        assert_eq!(DType::F16.padded_bytes(17), 64);
    }

    #[test]
    fn elements_of_a_scalar_of_nothing_and_of_too_much() {
        assert_eq!(elements(&[]), Some(1));
        assert_eq!(elements(&[0, 5]), Some(0));
        assert_eq!(elements(&[u64::MAX, 2]), None);
    }
}
