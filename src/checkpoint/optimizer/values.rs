//! Stored numbers as f32.

use std::path::Path;

use pytorch_reader::DType as Stored;

use crate::error::{Error, Result};

pub(super) fn unreadable(path: &Path, label: String, e: &std::io::Error) -> Error {
    Error::tensor(
        path,
        label,
        format!("cannot be read ({e}); the file is damaged: copy or download it again"),
    )
}

pub(super) fn dtype_name(dtype: Stored) -> &'static str {
    match dtype {
        Stored::F64 => "f64",
        Stored::F32 => "f32",
        Stored::F16 => "f16",
        Stored::BF16 => "bf16",
        Stored::I64 => "i64",
        Stored::I32 => "i32",
        Stored::I16 => "i16",
        Stored::I8 => "i8",
        Stored::U64 => "u64",
        Stored::U32 => "u32",
        Stored::U16 => "u16",
        Stored::U8 => "u8",
        Stored::Bool => "bool",
    }
}

/// Decode native-endian bytes to f32; an f64 that is finite but beyond f32 is refused.
pub(super) fn floats(dtype: Stored, bytes: &[u8]) -> Result<Vec<f32>, String> {
    let halves = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        Stored::F32 => Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_ne_bytes(*b)).collect()),
        Stored::F16 => Ok(halves().map(|b| half::f16::from_ne_bytes(*b).to_f32()).collect()),
        Stored::BF16 => Ok(halves().map(|b| half::bf16::from_ne_bytes(*b).to_f32()).collect()),
        Stored::F64 => {
            let narrowed =
                bytes.as_chunks::<8>().0.iter().enumerate().map(|(i, b)| narrow(f64::from_ne_bytes(*b), i));
            narrowed.collect()
        }
        other => Err(format!("is {}, expected f32, f16, bf16 or f64", dtype_name(other))),
    }
}

/// Decode sums that began at `start`, as their own type holds it, without it.
///
/// One rounding to f32 is all that this adds. What the sums lost when squares were added to the larger start,
/// up to half a unit in the last place at every step, does not come back. A sum of squares is never below its
/// start; one that is, but not below 0, becomes 0, and what is no sum of squares (negative, NaN) is left for
/// the reader's check.
pub(super) fn floats_above(dtype: Stored, bytes: &[u8], start: f64) -> Result<Vec<f32>, String> {
    let above = |sum: f64, start: f64| match sum {
        _ if sum > start => sum - start,
        _ if sum >= 0.0 => 0.0,
        _ => sum,
    };
    if dtype == Stored::F64 {
        let sums = bytes.as_chunks::<8>().0.iter().map(|b| f64::from_ne_bytes(*b));
        return sums.enumerate().map(|(i, sum)| narrow(above(sum, start), i)).collect();
    }
    let start = match dtype {
        Stored::F16 => half::f16::from_f64(start).to_f64(),
        Stored::BF16 => half::bf16::from_f64(start).to_f64(),
        _ => f64::from(start as f32),
    };
    let mut values = floats(dtype, bytes)?;
    values.iter_mut().for_each(|value| *value = above(f64::from(*value), start) as f32);
    Ok(values)
}

/// An f64 as f32, rounded to nearest; beyond f32's range is an error that names the index.
pub(crate) fn narrow(value: f64, index: usize) -> Result<f32, String> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding to nearest is meant; the range is checked below"
    )]
    let narrowed = value as f32;
    if value.is_finite() && !narrowed.is_finite() {
        return Err(format!("holds {value:e} at flat index {index}, beyond the range of f32 (3.4e38)"));
    }
    Ok(narrowed)
}
