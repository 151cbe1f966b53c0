//! Host executions: storage types in and out of f32, and blocks shared out to the cores.
//!
//! An elementwise kernel walks its streams in blocks that stay in the first-level cache. A block of f32 is
//! used where it lies; f16 and bf16 are widened into a scratch block (by the processor's own conversion where it
//! has one) and narrowed with round-to-nearest-even on the way out.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::{Slice, SliceMut};
use crate::memory::Element;
use crate::shape::DType;

/// Elements of one block: eight streams of f32 blocks together fit a 32 KiB first-level cache.
pub const BLOCK: usize = 1024;

/// A scratch block. Its memory is taken when it is needed first: f32 never need it.
#[derive(Clone, Debug, Default)]
pub struct Floats(Vec<f32>);

impl Floats {
    /// The first `len` elements of the block.
    #[inline(always)]
    fn block(&mut self, len: usize) -> &mut [f32] {
        if self.0.is_empty() {
            self.0.resize(BLOCK, 0.0);
        }
        &mut self.0[..len]
    }

    /// The elements of `slice` (at most [`BLOCK`]) as f32: in place if they are, else widened into this block.
    #[inline(always)]
    pub fn load<'a>(&'a mut self, slice: Slice<'a>) -> &'a [f32] {
        if slice.element() == Element::F32 {
            return slice.cast();
        }
        let out = self.block(slice.len());
        widen_into(slice, out);
        out
    }

    /// Lets `fill` write the elements of `slice` (at most [`BLOCK`]) as f32: in place if they are, else by way of this
    /// block.
    #[inline(always)]
    pub fn store(&mut self, slice: SliceMut<'_>, fill: impl FnOnce(&mut [f32])) {
        if slice.element() == Element::F32 {
            return fill(slice.cast());
        }
        let out = self.block(slice.len());
        fill(out);
        narrow_into(out, slice);
    }

    /// Lets `change` rewrite the elements of `slice` (at most [`BLOCK`]) as f32: in place if they are, else by way of
    /// this block.
    #[inline(always)]
    pub fn update(&mut self, slice: SliceMut<'_>, change: impl FnOnce(&mut [f32])) {
        if slice.element() == Element::F32 {
            return change(slice.cast());
        }
        let values = self.block(slice.len());
        widen_into(slice.as_slice(), values);
        change(values);
        narrow_into(values, slice);
    }
}

/// Widens the elements of `slice` to f32. Exact.
///
/// # Panics
/// If the elements are not floats, which a kernel's `launch` has refused.
#[inline(always)]
pub fn widen_into(slice: Slice<'_>, out: &mut [f32]) {
    match slice.element() {
        Element::F32 => out.copy_from_slice(slice.cast()),
        Element::F16 => slice.cast::<f16>().convert_to_f32_slice(out),
        // The upper half of an f32: the shift vectorises, and keeps subnormals whatever the mode of the processor.
        Element::BF16 => {
            for (out, &bits) in out.iter_mut().zip(slice.cast::<u16>()) {
                *out = f32::from_bits(u32::from(bits) << 16);
            }
        }
        Element::U32 => unreachable!("launch checks that float arguments are floats"),
    }
}

/// Narrows f32 to the elements of `slice`, rounding to nearest, ties to even.
///
/// # Panics
/// If the elements are not floats, which a kernel's `launch` has refused.
#[inline(always)]
pub fn narrow_into(values: &[f32], slice: SliceMut<'_>) {
    match slice.element() {
        Element::F32 => slice.cast::<f32>().copy_from_slice(values),
        Element::F16 => slice.cast::<f16>().convert_from_f32_slice(values),
        Element::BF16 => {
            for (out, &value) in slice.cast::<u16>().iter_mut().zip(values) {
                *out = round_bf16(value);
            }
        }
        Element::U32 => unreachable!("launch checks that float arguments are floats"),
    }
}

/// Round to nearest even by integer arithmetic, which vectorises; a NaN stays one.
#[inline(always)]
fn round_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    let word = if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded };
    #[expect(clippy::cast_possible_truncation, reason = "shifted right by 16: the upper half is zero")]
    let word = word as u16;
    word
}

/// One value as it comes back from storage as `dtype`: rounded to nearest even.
#[must_use]
pub fn narrow(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F32 => value,
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::BF16 => bf16::from_f32(value).to_f32(),
    }
}

/// Runs `work`, which is inlined, compiled for the widest vectors that this processor has. Wider vectors
/// change no bit: no multiplication and addition are ever contracted.
#[inline(always)]
pub(crate) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

/// The elements of `slice` as f32.
#[must_use]
pub fn widen(slice: Slice<'_>) -> Vec<f32> {
    let mut out = vec![0.0; slice.len()];
    widen_into(slice, &mut out);
    out
}

/// Elements of one task of `len`, in whole blocks: several tasks a thread where that leaves each a few microseconds of
/// work (chunks that are streamed are only some dozens of blocks long), and no more than 64 blocks.
#[must_use]
pub(crate) fn task_len(len: usize) -> usize {
    let tasks = 4 * rayon::current_num_threads();
    BLOCK * len.div_ceil(BLOCK * tasks).clamp(4, 64)
}

/// Shares blocks of one output out to the cores: `each(start, block)` for consecutive blocks of at most
/// [`BLOCK`] elements, compiled for the widest vectors that this processor has.
///
/// `scratch` is made once per task of the thread pool, not per block.
pub fn for_blocks<S: Default + Send>(
    out: SliceMut<'_>,
    each: impl Fn(&mut S, usize, SliceMut<'_>) + Send + Sync,
) {
    let task_len = task_len(out.len());
    let tasks: Vec<SliceMut<'_>> = out.chunks(task_len);
    tasks.into_par_iter().enumerate().for_each_init(S::default, |scratch, (task, part)| {
        vectorised(
            #[inline(always)]
            || {
                for (block, piece) in part.chunks(BLOCK).into_iter().enumerate() {
                    each(scratch, task * task_len + block * BLOCK, piece);
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectorised rounding against the `half` crate's, over every upper half and the interesting lower ones.
    #[test]
    fn bf16_rounding_is_nearest_even_for_every_upper_half() {
        for upper in 0..=u16::MAX {
            for lower in [0_u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(upper) << 16 | lower);
                let want = bf16::from_f32(value);
                let got = bf16::from_bits(round_bf16(value));
                assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{value:e}");
            }
        }
    }
}
