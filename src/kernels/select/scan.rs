//! Sums of everything before.

use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Cost, Fill, Kernel, Want};
use crate::kernels::shader;
use crate::memory::Element;

/// The exclusive prefix sum, in place, with the total behind it:
///
/// ```text
/// counts[i] ← Σ_{j < i} counts[j],  counts[len] ← Σ_j counts[j]
/// ```
///
/// - `counts`  `[len + 1]`; the last word's old value is not looked at
///
/// One workgroup walks the tiles one after the other, since no workgroup may wait for another: meant for the counts of
/// blocks, of which 2³² elements have a million. Exact as long as the total fits 32 bits, else modulo 2³².
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan;

crate::params! {
    /// The number of one [`Scan`] step.
    pub struct ScanParams {
        /// Counts.
        len: u32,
    }
}

crate::args! {
    /// The buffer of one [`Scan`] step.
    pub struct ScanArgs / ScanSlices {
        /// `[len + 1]`, in place.
        write counts,
    }
}

/// Counts an invocation adds up before the workgroup meets.
const ITEMS: u32 = 8;

impl Kernel for Scan {
    const NAME: &'static str = "select.scan";
    type Params = ScanParams;
    type Args = ScanArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("select/scan.wgsl"), super::SCAN]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        vec![("ITEMS", ITEMS.into())]
    }

    fn launch(&self, params: &ScanParams, args: &ScanArgs, _: &Caps) -> Result<[u32; 3]> {
        args.counts.check(Self::NAME, "counts", u64::from(params.len) + 1, Some(Element::U32))?;
        Ok([1, 1, 1])
    }

    fn host(&self, _: &ScanParams, args: ScanSlices<'_>) {
        let mut sum = 0_u32;
        let counts = args.counts.cast::<u32>();
        if let Some(last) = counts.last_mut() {
            *last = 0;
        }
        for count in counts {
            sum = sum.wrapping_add(std::mem::replace(count, sum));
        }
    }

    fn cost(&self, params: &ScanParams, _: &ScanArgs) -> Cost {
        Cost { bytes: 8 * u64::from(params.len), flops: 0 }
    }
}

impl Checked for Scan {
    fn cases() -> Vec<Case<Self>> {
        [0, 1, 7, 8, 9, 2047, 2048, 2049, 4096, 10_007].map(case).to_vec()
    }

    fn bench(elements: u64) -> Bench<Self> {
        let len = u32::try_from(elements.div_ceil(super::BLOCK_LEN)).unwrap_or(u32::MAX - 1);
        Bench {
            name: format!("{len} counts"),
            kernel: Self,
            params: ScanParams { len },
            buffers: vec![(Element::U32, u64::from(len) + 1, Fill::Below(4096))],
        }
    }
}

fn case(len: u32) -> Case<Scan> {
    let counts: Vec<u32> = (0..len).map(|i| i.wrapping_mul(2_654_435_761) >> 20).collect();
    let want = (0..=counts.len()).map(|i| Want::exact(counts[..i].iter().map(|&c| f64::from(c)).sum()));
    Case {
        name: format!("{len}"),
        kernel: Scan,
        params: ScanParams { len },
        buffers: vec![CaseBuffer::words(&[&counts[..], &[0xA5A5_A5A5]].concat())],
        want: vec![(0, want.collect())],
    }
}
