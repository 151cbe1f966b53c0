//! One of two values an element, as a mask says.

use half::bf16;

use super::mask_words;
use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{
    Bench, Case, CaseBuffer, Checked, Cost, Fill, Kernel, Slice, SliceMut, Want, for_blocks, noise,
};
use crate::kernels::{DTYPE, LENGTHS, OCTETS, WORKGROUP, elementwise, shader};
use crate::memory::Element;
use crate::shape::DType;

/// Keeps elements bit for bit where the mask says so, and puts another's bits, or zero, in the place of the rest:
///
/// ```text
/// model[p] ← mask[p] ≠ 0 ? model[p] : base[p]      (`zero`: … : 0)
/// ```
///
/// - `mask`  one byte an element, four a word
/// - `base`  `[p]`; where zero takes its place, any view of the same length and type, or the mask, which is not read
/// - `model` `[p]`, f32, f16 or bf16, in place
///
/// Moves the mask, the base and twice the model. Exact: no arithmetic, so NaN payloads and −0 stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choose {
    /// Storage of the model (and the base).
    pub model: DType,
    /// Whether zero takes the place of what is not kept.
    pub zero: bool,
}

crate::params! {
    /// The number of one [`Choose`] step.
    pub struct ChooseParams {
        /// Elements.
        len: u32,
    }
}

crate::args! {
    /// The buffers of one [`Choose`] step.
    pub struct ChooseArgs / ChooseSlices {
        /// Four bytes a word.
        read mask,
        /// `[p]`.
        read base,
        /// `[p]`, in place.
        write model,
    }
}

impl Kernel for Choose {
    const NAME: &'static str = "select.choose";
    type Params = ChooseParams;
    type Args = ChooseArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("select/choose.wgsl"), DTYPE]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("WORKGROUP", WORKGROUP.into()),
            ("OCTETS", OCTETS.into()),
            ("MODEL", self.model.code().into()),
            ("ZERO", u32::from(self.zero).into()),
        ]
    }

    fn launch(&self, params: &ChooseParams, args: &ChooseArgs, caps: &Caps) -> Result<[u32; 3]> {
        let len = u64::from(params.len);
        args.mask.check(Self::NAME, "mask", mask_words(len), Some(Element::U32))?;
        if !self.zero {
            args.base.check(Self::NAME, "base", len, Some(self.model.into()))?;
        }
        args.model.check(Self::NAME, "model", len, Some(self.model.into()))?;
        elementwise(Self::NAME, len, caps)
    }

    fn host(&self, _: &ChooseParams, args: ChooseSlices<'_>) {
        let mask = args.mask.cast::<u8>();
        for_blocks(args.model, |(): &mut (), start, block| {
            let mask = &mask[start..start + block.len()];
            let base = (!self.zero).then(|| args.base.range(start, block.len()));
            if self.model == DType::F32 {
                keep::<u32>(mask, base, block);
            } else {
                keep::<u16>(mask, base, block);
            }
        });
    }

    fn cost(&self, params: &ChooseParams, _: &ChooseArgs) -> Cost {
        let streams = if self.zero { 2 } else { 3 };
        Cost { bytes: u64::from(params.len) * (1 + streams * self.model.size()), flops: 0 }
    }
}

fn keep<T: bytemuck::Pod + Default>(mask: &[u8], base: Option<Slice<'_>>, model: SliceMut<'_>) {
    let model = model.cast::<T>();
    match base {
        Some(base) => {
            for ((model, &base), &keep) in model.iter_mut().zip(base.cast::<T>()).zip(mask) {
                *model = if keep == 0 { base } else { *model };
            }
        }
        None => {
            for (model, &keep) in model.iter_mut().zip(mask) {
                *model = if keep == 0 { T::default() } else { *model };
            }
        }
    }
}

impl Checked for Choose {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for model in DType::ALL {
            for zero in [false, true] {
                cases.extend(LENGTHS.map(|len| case(Self { model, zero }, len)));
            }
        }
        cases.push(odd_bits());
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        let len = u32::try_from(elements).unwrap_or(u32::MAX);
        Bench {
            name: format!("{len} f32"),
            kernel: Self { model: DType::F32, zero: false },
            params: ChooseParams { len },
            buffers: vec![
                (Element::U32, mask_words(len.into()), Fill::Zero),
                (DType::F32.into(), len.into(), Fill::Noise),
                (DType::F32.into(), len.into(), Fill::Noise),
            ],
        }
    }
}

fn case(kernel: Choose, len: usize) -> Case<Choose> {
    let model = CaseBuffer::floats(kernel.model, &noise(20, len));
    let base = CaseBuffer::floats(kernel.model, &noise(21, len));
    let mask: Vec<bool> = noise(22, len).iter().map(|&u| u > 0.2).collect();
    let mut bytes: Vec<u8> = mask.iter().map(|&keep| u8::from(keep)).collect();
    bytes.resize(len.next_multiple_of(4), 0);
    let words: Vec<u32> =
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let base_values = base.values();
    let other = |i: usize| if kernel.zero { 0.0 } else { base_values[i] };
    let (values, others): (Vec<f64>, Vec<f64>) = (model.values(), (0..len).map(other).collect());
    let want = (0..len).map(|i| Want::exact(if mask[i] { values[i] } else { others[i] })).collect();
    Case {
        name: format!("{kernel:?} p={len}"),
        kernel,
        params: ChooseParams { len: u32::try_from(len).expect("cases are small") },
        buffers: vec![CaseBuffer::words(&words), base, model],
        want: vec![(2, want)],
    }
}

/// Subnormals and infinities pass unchanged.
fn odd_bits() -> Case<Choose> {
    let kernel = Choose { model: DType::BF16, zero: false };
    let odd = [1_u16, 0x8001, 0x7f80, 0xff80, 0x007f, 0x0080].map(|bits| bf16::from_bits(bits).to_f64());
    let values: Vec<f64> = odd.iter().cycle().take(4096).copied().collect();
    let mut case = case(kernel, values.len());
    case.name = "odd bits".into();
    (case.buffers[1], case.buffers[2]) =
        (CaseBuffer::floats(DType::BF16, &values), CaseBuffer::floats(DType::BF16, &values));
    case.want = vec![(2, values.into_iter().map(Want::exact).collect())];
    case
}
