//! Sums of the rows of a block.

use rayon::prelude::*;

use super::{exponent_of, is_good};
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernel::{
    BLOCK, Bench, Case, CaseBuffer, Checked, Cost, Fill, Floats, Kernel, Slice, Want, groups_for, noise,
    vectorised,
};
use crate::kernels::records::{index_of, index_word, power};
use crate::kernels::{DTYPE, JOIN, RECORD, RUN, WIDE, WORKGROUP, shader};
use crate::memory::Element;
use crate::reference;
use crate::shape::DType;

/// What the mean of each row of a block is made of: the sums of its rows, cut into parts of at most [`RowMean::part`]
/// elements:
///
///   record[r, j] = (Σ_{i in part j of row r} F[r, i] / 2^e,  e,  first bad),   e = ⌊log₂ max F⌋ over the part
///
/// - `values`   F, f32, f16 or bf16, of which the block `[rows, width]` begins at element `start` (any element)
/// - `records`  f32 `[rows, parts, 3]`, see [`RowMean::records`]; read one with [`RowPart::of`]
///
/// The caller adds a row's parts in f64 and divides by its width, so a row may begin in one block and end in another. A
/// value is *bad* if it is NaN, infinite or negative: told from the bits, left out of the sum, and the first one's
/// index in its part is recorded (−1 where there is none). Where no value is above 0, e is 0.
///
/// Moves each value once and 12 bytes a part; 1 operation a value. A part's sum is off by at most
/// [`RowMean::roundings`]: pairwise over lanes, one after the other within one. Bitwise repeatable: the order of
/// summation is fixed. Definition: [`reference::task2vec::row_sum`]. Cf. Task2Vec's `montecarlo_fisher`, a mean over
/// all but the first axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowMean {
    /// Storage of the values.
    pub values: DType,
    /// Invocations that share a part: 1, 16 or 256.
    pub lanes: u32,
    /// Elements of a part that one of them adds up: 32, or 512.
    pub items: u32,
}

/// Elements that an invocation loads at a time.
const ITEMS: u32 = 32;

/// Elements that an invocation adds up where no other shares its part: its record is then little beside them.
const ALONE: u32 = 512;

const WORDS: usize = 3;

impl RowMean {
    /// The specialisation for rows of `width` on a device: as many invocations a row as it keeps busy, but one for a
    /// part where a barrier costs more than it saves.
    #[must_use]
    pub fn for_width(values: DType, width: u64, caps: &Caps) -> Self {
        if caps.is_software_device() {
            return Self { values, lanes: 1, items: ALONE };
        }
        let lanes = if width <= ITEMS as u64 {
            1
        } else if width <= 16 * ITEMS as u64 {
            16
        } else {
            256
        };
        Self { values, lanes, items: ITEMS }
    }

    /// Elements of a part.
    #[must_use]
    pub const fn part(&self) -> u64 {
        (self.lanes * self.items) as u64
    }

    /// The most roundings that lie one after the other in a part's sum. Where each octet has to be taken with care:
    /// three additions within it, one for each of an invocation's octets, and those of the lanes; one more covers what
    /// is below 2⁻¹²⁶ of the maximum, which a device may flush.
    #[must_use]
    pub const fn roundings(&self) -> u32 {
        3 + self.items / 8 + 1 + self.lanes.ilog2() + 1
    }

    /// Parts of a row of `width`.
    #[must_use]
    pub const fn parts(&self, width: u64) -> u64 {
        width.div_ceil(self.part())
    }

    /// Elements of `records` for a block.
    #[must_use]
    pub const fn records(&self, rows: u64, width: u64) -> u64 {
        rows * self.parts(width) * WORDS as u64
    }
}

/// A record: what one part of a row comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowPart {
    /// Σ F over the good values.
    pub sum: f64,
    /// The index in the part of its first value that is NaN, infinite or negative.
    pub first_bad: Option<u64>,
}

impl RowPart {
    /// Elements of a record.
    pub const WORDS: usize = WORDS;

    /// Reads a record.
    #[must_use]
    pub fn of(record: [f32; WORDS]) -> Self {
        let [sum, exponent, bad] = record;
        Self { sum: f64::from(sum) * power(exponent), first_bad: index_of(bad) }
    }
}

crate::params! {
    /// The numbers of one [`RowMean`] step.
    pub struct RowMeanParams {
        /// The block's first element.
        start: u32,
        /// Rows.
        rows: u32,
        /// Elements of a row.
        width: u32,
        /// Parts of a row, [`RowMean::parts`].
        parts: u32,
    }
}

crate::args! {
    /// The buffers of one [`RowMean`] step.
    pub struct RowMeanArgs / RowMeanSlices {
        /// F, with the block in it.
        read values,
        /// `[rows, parts, 3]`.
        write records,
    }
}

impl Kernel for RowMean {
    const NAME: &'static str = "task2vec.row_mean";
    type Params = RowMeanParams;
    type Args = RowMeanArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("task2vec/row_mean.wgsl"), DTYPE, WIDE, RUN, RECORD, JOIN]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("WORKGROUP", WORKGROUP.into()),
            ("LANES", self.lanes.into()),
            ("ITEMS", self.items.into()),
            ("VALUES", self.values.code().into()),
        ]
    }

    fn launch(&self, params: &RowMeanParams, args: &RowMeanArgs, caps: &Caps) -> Result<[u32; 3]> {
        let (rows, width) = (u64::from(params.rows), u64::from(params.width));
        let len = args.values.len();
        args.values.check(Self::NAME, "values", len, Some(self.values.into()))?;
        let end = rows.checked_mul(width).and_then(|block| block.checked_add(params.start.into()));
        if end.is_none_or(|end| end > len.min(u32::MAX.into())) {
            let expected = format!("{rows} rows of {width} elements from element {}", params.start);
            return Err(Error::shape(Self::NAME, "values", expected, format!("{len} elements")));
        }
        if ![1, 16, 256].contains(&self.lanes) || ![ITEMS, ALONE].contains(&self.items) {
            let got = format!("{} lanes of {} items", self.lanes, self.items);
            return Err(Error::argument(
                Self::NAME,
                format!("{got}, expected 1, 16 or 256 of {ITEMS} or {ALONE}"),
            ));
        }
        if u64::from(params.parts) != self.parts(width) {
            let expected = format!("{} for rows of {width} elements", self.parts(width));
            return Err(Error::shape(Self::NAME, "parts", expected, params.parts.to_string()));
        }
        args.records.check(Self::NAME, "records", self.records(rows, width), Some(Element::F32))?;
        groups_for(Self::NAME, rows * self.parts(width), (WORKGROUP / self.lanes).into(), caps)
    }

    fn host(&self, params: &RowMeanParams, args: RowMeanSlices<'_>) {
        let (start, width, parts) = (params.start as usize, params.width as usize, params.parts as usize);
        let (values, part) = (args.values, self.lanes as usize * self.items as usize);
        // One part can be a single element: threads take runs of them.
        let records = args.records.cast::<f32>().par_chunks_exact_mut(WORDS).with_min_len(64).enumerate();
        records.for_each_init(Floats::default, |scratch, (index, record)| {
            let (row, from) = (index / parts, index % parts * part);
            let len = part.min(width - from);
            let part = values.range(start + row * width + from, len);
            let words = vectorised(
                #[inline(always)]
                || sum(scratch, part),
            );
            record.copy_from_slice(&words);
        });
    }

    fn cost(&self, params: &RowMeanParams, _: &RowMeanArgs) -> Cost {
        let (rows, width) = (u64::from(params.rows), u64::from(params.width));
        Cost { bytes: rows * width * self.values.size() + 4 * self.records(rows, width), flops: rows * width }
    }
}

/// Sums kept side by side, so that they are vectors.
const LANES: usize = 8;

/// The record of one part: f64 holds every sum, so nothing needs scaling before the end.
#[inline(always)]
fn sum(scratch: &mut Floats, part: Slice<'_>) -> [f32; WORDS] {
    let (mut sums, mut greatest, mut bad) = ([0.0_f64; LANES], 0_i32, 0_u32);
    let kept = |value: &f32| match value.to_bits() {
        bits if is_good(bits) => bits & 0x7fff_ffff,
        _ => 0,
    };
    for at in (0..part.len()).step_by(BLOCK) {
        let block = scratch.load(part.range(at, BLOCK.min(part.len() - at)));
        let (octets, rest) = block.as_chunks::<LANES>();
        for octet in octets {
            for (sum, value) in sums.iter_mut().zip(octet) {
                *sum += f64::from(f32::from_bits(kept(value)));
            }
        }
        for (sum, value) in sums.iter_mut().zip(rest) {
            *sum += f64::from(f32::from_bits(kept(value)));
        }
        greatest = block.iter().map(|value| kept(value).cast_signed()).fold(greatest, i32::max);
        bad |= block.iter().map(|value| u32::from(!is_good(value.to_bits()))).fold(0, |any, bad| any | bad);
    }
    let exponent = exponent_of(greatest.cast_unsigned()).unwrap_or(0);
    let first_bad = if bad == 0 { None } else { first_bad(scratch, part) };
    #[expect(clippy::cast_possible_truncation, reason = "the record's sum is f32")]
    let sum = (sums.iter().sum::<f64>() * 2.0_f64.powi(-exponent)) as f32;
    [sum, exponent as f32, index_word(first_bad)]
}

fn first_bad(scratch: &mut Floats, part: Slice<'_>) -> Option<usize> {
    (0..part.len()).find(|&i| scratch.load(part.range(i, 1)).iter().any(|v| !is_good(v.to_bits())))
}

impl Checked for RowMean {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for values in DType::ALL {
            for width in [1, 9, 31, 33, 511, 512, 513, 1029] {
                let block: Vec<f64> = noise(width, 300 * width as usize).iter().map(|v| v.abs()).collect();
                cases.push(alone(values, "positive", (300, width as usize, 5), &block));
            }
            let wide: Vec<f64> = noise(3, 9000).iter().map(|v| (138.0 * v - 11.0).exp2()).collect();
            for shape in [(10, 900, 1), (100, 90, 3)] {
                cases.push(alone(values, "every magnitude", shape, &wide));
                cases.push(alone(values, "bad", shape, &with_bad(9000)));
                cases.push(alone(values, "largest", shape, &[3.0e38; 9000]));
                cases.push(alone(values, "smallest", shape, &[2.0_f64.powi(-149); 9000]));
                cases.push(alone(values, "zeros", shape, &[-0.0; 9000]));
            }
            for width in [1, 3, 4, 31, 32, 33, 127, 512, 513, 8191, 8192, 8193, 20_001] {
                let rows = if width < 100 { 300 } else { 3 };
                let block: Vec<f64> = noise(width, rows * width as usize).iter().map(|v| v.abs()).collect();
                cases.push(case(values, "positive", (rows, width as usize, 5), &block));
            }
            for rows in [0, 1, 255, 256, 257] {
                let block: Vec<f64> = noise(7, rows * 2).iter().map(|v| v.abs()).collect();
                cases.push(case(values, "rows", (rows, 2, 0), &block));
            }
            let wide: Vec<f64> = noise(3, 4 * 9000).iter().map(|v| (138.0 * v - 11.0).exp2()).collect();
            cases.push(case(values, "every magnitude", (4, 9000, 1), &wide));
            cases.push(case(values, "every magnitude", (400, 90, 1), &wide));
            cases.push(case(values, "largest", (2, 9000, 3), &[3.0e38; 18_000]));
            cases.push(case(values, "smallest", (2, 9000, 3), &[2.0_f64.powi(-149); 18_000]));
            cases.push(case(values, "zeros", (2, 3, 0), &[0.0, -0.0, 0.0, -0.0, -0.0, -0.0]));
            cases.push(case(values, "bad", (20, 700, 1), &with_bad(20 * 700)));
            cases.push(case(values, "bad", (700, 20, 1), &with_bad(20 * 700)));
        }
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        rows_of(&Caps::host(), (elements.min(u32::MAX.into()) / WIDTH).max(1))
    }

    fn layers(caps: &Caps) -> Vec<Bench<Self>> {
        [1, 16, 256, 1024, 4096, 16_384, 65_536].map(|rows| rows_of(caps, rows)).into()
    }
}

/// Of a bench's rows.
const WIDTH: u64 = 4096;

fn rows_of(caps: &Caps, rows: u64) -> Bench<RowMean> {
    let kernel = RowMean::for_width(DType::F32, WIDTH, caps);
    let [rows32, width, parts] = [rows, WIDTH, kernel.parts(WIDTH)].map(|n| u32::try_from(n).unwrap_or(1));
    Bench {
        name: format!("{rows}x{WIDTH} f32"),
        kernel,
        params: RowMeanParams { start: 0, rows: rows32, width, parts },
        buffers: vec![
            (Element::F32, rows * WIDTH, Fill::Positive),
            (Element::F32, kernel.records(rows, WIDTH), Fill::Zero),
        ],
    }
}

/// Values in [0, 1) with a few that no Fisher can have.
fn with_bad(len: usize) -> Vec<f64> {
    let bad = [f64::NAN, f64::INFINITY, -1.0, f64::NEG_INFINITY];
    let value = |(i, v): (usize, f64)| if i % 401 == 17 { bad[i % 4] } else { v.abs() };
    noise(5, len).into_iter().enumerate().map(value).collect()
}

/// Rows, their width, and the block's first element.
type Shape = (usize, usize, usize);

fn case(dtype: DType, name: &str, shape: Shape, block: &[f64]) -> Case<RowMean> {
    case_of(RowMean::for_width(dtype, shape.1 as u64, &Caps::host()), name, shape, block)
}

/// One invocation for a part.
fn alone(dtype: DType, name: &str, shape: Shape, block: &[f64]) -> Case<RowMean> {
    case_of(RowMean { values: dtype, lanes: 1, items: ALONE }, &format!("{name} alone"), shape, block)
}

/// The block lies behind `start` elements that are in no row, and before some more.
fn case_of(kernel: RowMean, name: &str, (rows, width, start): Shape, block: &[f64]) -> Case<RowMean> {
    let dtype = kernel.values;
    let mut values = vec![f64::NAN; start];
    values.extend(block);
    values.extend([f64::NAN; 9]);
    let values = CaseBuffer::floats(dtype, &values);
    let part = usize::try_from(kernel.part()).expect("parts are small");
    let stored = values.values();
    let rows_of = stored[start..start + rows * width].chunks(width);
    let want =
        rows_of.flat_map(|row| row.chunks(part)).flat_map(|part| want(part, kernel.roundings())).collect();
    let records = rows * width.div_ceil(part) * WORDS;
    let [start, rows, width32, parts] =
        [start, rows, width, width.div_ceil(part)].map(|n| u32::try_from(n).expect("cases are small"));
    Case {
        name: format!("{dtype} {name} {rows}x{width} from {start}"),
        kernel,
        params: RowMeanParams { start, rows, width: width32, parts },
        buffers: vec![values, CaseBuffer::sentinel(Element::F32, records)],
        want: vec![(1, want)],
    }
}

/// What the definition says of one part, in the record's form.
fn want(part: &[f64], roundings: u32) -> [Want; WORDS] {
    let good: Vec<f64> = part.iter().copied().filter(|v| reference::stats::is_good(*v)).collect();
    let max = good.iter().copied().fold(0.0, f64::max);
    let exponent = if max > 0.0 { max.log2().floor() } else { 0.0 };
    let sum = reference::task2vec::row_sum(&good, good.len().max(1))
        .first()
        .map_or(0.0, |sum| sum / exponent.exp2());
    let bad = part.iter().position(|v| !reference::stats::is_good(*v));
    let bad = bad.map_or(-1.0, |i| i as f64);
    [Want::computed(sum, sum, roundings.into(), DType::F32), Want::exact(exponent), Want::exact(bad)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_shared_by_as_many_lanes_as_it_keeps_busy() {
        for (width, lanes, parts) in
            [(1, 1, 1), (32, 1, 1), (33, 16, 1), (512, 16, 1), (513, 256, 1), (8193, 256, 2)]
        {
            let kernel = RowMean::for_width(DType::F32, width, &Caps::host());
            assert_eq!((kernel.lanes, kernel.parts(width)), (lanes, parts), "{width}");
        }
        let software = Caps { is_host: false, ..Caps::host() };
        let kernel = RowMean::for_width(DType::F32, 4096, &software);
        assert_eq!((kernel.lanes, kernel.parts(4096)), (1, 8));
    }

    #[test]
    fn a_record_is_read_in_its_own_unit() {
        assert_eq!(
            RowPart::of([1.5, 100.0, -1.0]),
            RowPart { sum: 1.5 * 2.0_f64.powi(100), first_bad: None }
        );
        assert_eq!(RowPart::of([0.0, 0.0, 7.0]).first_bad, Some(7));
    }
}
