//! The cases: BackPACK's catalogue of shapes, what it leaves out, and what each form of the shader has edges at.

use super::{ConvSq, ConvSqParams, reach};
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Fill, noise};
use crate::kernels::fisher::cases::{self, Numbers};
use crate::kernels::fisher::{Form, Loads, Mode};
use crate::reference;
use crate::shape::DType;

/// A layer and its input, for cases: sizes are d, h, w.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    samples: u32,
    fold: u32,
    channels: u32,
    outputs: u32,
    groups: u32,
    input: [u32; 3],
    kernel: [u32; 3],
    stride: [u32; 3],
    padding: [u32; 3],
    dilation: [u32; 3],
    /// Output positions that transposed convolutions have fewer of than fit.
    missing: u32,
}

impl Shape {
    /// `axes` of 1 to 3 dimensions have the same sizes; `input` is given for each.
    pub(super) fn new<const N: usize>(
        (channels, input): (u32, [u32; N]),
        (outputs, kernel, stride, padding, dilation): (u32, u32, u32, u32, u32),
        groups: u32,
    ) -> Self {
        let axes =
            |value: u32, none: u32| std::array::from_fn(|axis| if axis + N < 3 { none } else { value });
        Self {
            samples: 3,
            fold: 1,
            channels,
            outputs,
            groups,
            input: std::array::from_fn(|axis| if axis + N < 3 { 1 } else { input[axis + N - 3] }),
            kernel: axes(kernel, 1),
            stride: axes(stride, 1),
            padding: axes(padding, 0),
            dilation: axes(dilation, 1),
            missing: 0,
        }
    }

    /// As the definition takes it.
    fn layer(&self) -> reference::fisher::Conv {
        let sizes = |sizes: [u32; 3]| sizes.map(|size| size as usize);
        reference::fisher::Conv {
            channels: self.channels as usize,
            outputs: self.outputs as usize,
            groups: self.groups as usize,
            input: sizes(self.input),
            grad: sizes(self.grad()),
            kernel: sizes(self.kernel),
            stride: sizes(self.stride),
            padding: sizes(self.padding),
            dilation: sizes(self.dilation),
        }
    }

    fn grad(&self) -> [u32; 3] {
        std::array::from_fn(|axis| {
            let [input, kernel, stride, padding, dilation] =
                [self.input, self.kernel, self.stride, self.padding, self.dilation]
                    .map(|sizes| u64::from(sizes[axis]));
            let reach = reach(input, kernel, stride, padding, dilation);
            u32::try_from(reach).expect("cases are small") - if axis == 2 { self.missing } else { 0 }
        })
    }

    pub(super) fn params(&self, numbers: Numbers) -> ConvSqParams {
        let [grad_d, grad_h, grad_w] = self.grad();
        ConvSqParams {
            samples: self.samples,
            fold: self.fold,
            first: 0,
            count: self.samples.div_ceil(self.fold),
            channels: self.channels,
            outputs: self.outputs,
            groups: self.groups,
            first_output: 0,
            output_count: self.outputs,
            out_first: 0,
            input_d: self.input[0],
            input_h: self.input[1],
            input_w: self.input[2],
            grad_d,
            grad_h,
            grad_w,
            kernel_d: self.kernel[0],
            kernel_h: self.kernel[1],
            kernel_w: self.kernel[2],
            stride_d: self.stride[0],
            stride_h: self.stride[1],
            stride_w: self.stride[2],
            padding_d: self.padding[0],
            padding_h: self.padding[1],
            padding_w: self.padding[2],
            dilation_d: self.dilation[0],
            dilation_h: self.dilation[1],
            dilation_w: self.dilation[2],
            decay: numbers.decay,
            gain: numbers.gain,
            gradient_scale: numbers.gradient_scale,
        }
    }
}

/// BackPACK's catalogue of shapes (`test/extensions/firstorder`), then what it leaves out: groups, uneven sizes, edges.
fn shapes() -> Vec<Shape> {
    let one = Shape::new((3, [7]), (2, 2, 1, 0, 1), 1);
    let mut shapes = vec![
        one,
        Shape::new((2, [7]), (3, 2, 2, 0, 2), 1),
        Shape::new((3, [7]), (2, 2, 2, 1, 1), 1),
        Shape::new((3, [8]), (6, 2, 4, 2, 3), 1),
        Shape::new((3, [7]), (2, 2, 4, 2, 1), 1),
        Shape::new((3, [7, 7]), (2, 2, 1, 0, 1), 1),
        Shape::new((2, [7, 7]), (3, 2, 2, 0, 2), 1),
        Shape::new((3, [7, 7]), (2, 2, 2, 1, 1), 1),
        Shape::new((3, [8, 8]), (6, 2, 4, 2, 3), 1),
        Shape::new((3, [2, 7, 7]), (2, 2, 1, 0, 1), 1),
        Shape::new((2, [3, 7, 7]), (3, 2, 2, 0, 2), 1),
        Shape::new((3, [4, 8, 8]), (6, 2, 4, 2, 3), 1),
        // Groups of 2 and 3, depthwise, depthwise with a multiplier, narrow input.
        Shape::new((4, [7, 6]), (6, 3, 1, 1, 1), 2),
        Shape::new((6, [5, 7]), (9, 2, 2, 1, 1), 3),
        Shape::new((8, [6, 5]), (16, 3, 1, 1, 1), 2),
        Shape::new((5, [6, 7]), (5, 3, 1, 1, 1), 5),
        Shape::new((5, [9, 7]), (10, 3, 2, 1, 2), 5),
        Shape::new((1, [9]), (7, 1, 1, 0, 1), 1),
        // Columns and rows around a tile, more positions than a depth of workgroup memory or a product of the host.
        Shape::new((7, [4, 5]), (65, 3, 1, 1, 1), 1),
        Shape::new((15, [3, 3]), (9, 3, 1, 1, 1), 1),
        Shape::new((2, [41, 27]), (5, 3, 1, 1, 1), 1),
        // A kernel larger than the input it sees, and a row that never meets the input.
        Shape::new((2, [2, 2]), (4, 3, 1, 2, 2), 1),
        Shape::new((2, [1]), (4, 1, 1, 3, 1), 1),
    ];
    shapes.extend([
        Shape { kernel: [1, 3, 2], stride: [1, 2, 1], padding: [0, 0, 2], ..shapes[12] },
        Shape { samples: 0, ..one },
        Shape { samples: 1, ..one },
        Shape { samples: 40, ..one },
        Shape { samples: 7, fold: 3, ..one },
        Shape { samples: 7, fold: 3, ..shapes[14] },
        Shape { samples: 5, fold: 2, ..shapes[15] },
        Shape { samples: 4, fold: 4, ..shapes[6] },
        Shape { missing: 1, ..shapes[6] },
        // Rows and planes around a block of positions of the host (1024), and a tile of its (768 × 128).
        Shape::new((2, [1030]), (3, 3, 1, 1, 2), 1),
        Shape::new((4, [1300]), (4, 3, 2, 2, 2), 4),
        Shape::new((1, [2, 24, 23]), (4, 2, 1, 1, 1), 1),
        Shape { samples: 1, ..Shape::new((86, [3, 4]), (129, 3, 1, 1, 1), 1) },
        // Inputs narrower than the stride or the padding.
        Shape::new((2, [1, 1]), (3, 3, 2, 1, 1), 1),
        Shape::new((2, [3, 2]), (2, 7, 4, 3, 1), 2),
        Shape::new((3, [2, 2]), (4, 3, 1, 6, 6), 1),
    ]);
    shapes
}

impl Checked for ConvSq {
    fn cases() -> Vec<Case<Self>> {
        let forms = cases::FORMS.into_iter().chain([Form::Window, Form::Slide]);
        let mut out: Vec<_> = forms.flat_map(|form| in_form(form, &shapes())).collect();
        out.extend([Loads::Own, Loads::Shared].into_iter().flat_map(in_fours));
        out.extend(cases::MATRIX_FORMS.into_iter().flat_map(|form| in_form(form, &shapes())));
        out.extend(in_windows());
        out.extend(in_slides());
        out
    }

    fn bench(elements: u64) -> Bench<Self> {
        let channels = u32::try_from(elements.isqrt()).unwrap_or(u32::MAX).clamp(8, 64);
        layer(&Caps::host(), 16, channels, 1, 28)
    }

    fn layers(caps: &Caps) -> Vec<Bench<Self>> {
        [(1, 16, 1, 8), (16, 64, 1, 28), (16, 256, 256, 28)]
            .map(|(samples, channels, groups, size)| layer(caps, samples, channels, groups, size))
            .into()
    }
}

/// Every small geometry of one axis, inputs narrower than kernels, strides and padding among them: too many
/// for all devices, and quick on the host, whose windows depend on it.
#[cfg(test)]
pub(super) fn small_geometries() -> Vec<Case<ConvSq>> {
    let mut out = Vec::new();
    for (input, kernel, stride) in (0..4_u32.pow(3)).map(|at| (at % 4 + 1, at / 4 % 4 + 1, at / 16 + 1)) {
        for (padding, dilation, groups) in (0..16_u32).map(|at| (at % 4, at / 4 % 2 + 1, at / 8 + 1)) {
            if input + 2 * padding > dilation * (kernel - 1) {
                let shape = Shape::new((2, [input]), (2, kernel, stride, padding, dilation), groups);
                out.push(case(plain(Form::Direct), shape, Numbers::OVERWRITE, None));
            }
        }
    }
    out
}

/// Every shape that a form takes, and every number, range, mode and storage type.
fn in_form(form: Form, shapes: &[Shape]) -> Vec<Case<ConvSq>> {
    let kernel = plain(form);
    let sliding = matches!(form, Form::Window | Form::Slide);
    let fits = |shape: &&Shape| !sliding || (shape.stride, shape.dilation) == ([1; 3], [1; 3]);
    let fitting = shapes.iter().filter(fits);
    let mut out: Vec<_> = fitting.map(|&shape| case(kernel, shape, Numbers::OVERWRITE, None)).collect();
    let (grouped, mut depthwise) = (shapes[14], shapes[16]);
    if sliding {
        depthwise = Shape { stride: [1; 3], dilation: [1; 3], ..depthwise };
    }
    for numbers in [Numbers::ADD, Numbers::EMA, Numbers::SCALED] {
        out.extend([grouped, depthwise].map(|shape| case(kernel, shape, numbers, None)));
    }
    let some = [shapes[0], shapes[5], depthwise, shapes[18], shapes[24], shapes[27]];
    for mode in [Mode::Gradients, Mode::Each] {
        let kernel = ConvSq { mode, ..kernel };
        out.extend(some.map(|shape| case(kernel, shape, Numbers::OVERWRITE, None)));
        out.push(case(kernel, grouped, Numbers::SCALED, None));
        let kernel = ConvSq { input: DType::BF16, grad_output: DType::F16, ..kernel };
        out.push(case(kernel, depthwise, Numbers::EMA, None));
    }
    out.extend(in_ranges(kernel, grouped, depthwise));
    for (input, grad_output) in [
        (DType::F16, DType::F32),
        (DType::F32, DType::BF16),
        (DType::BF16, DType::BF16),
        (DType::F16, DType::F16),
    ] {
        let kernel = ConvSq { input, grad_output, ..kernel };
        out.extend([grouped, depthwise].map(|shape| case(kernel, shape, Numbers::ADD, None)));
    }
    out
}

/// Ranges of squares and outputs: whole groups and parts of one, and results of which `out` holds a part.
fn in_ranges(kernel: ConvSq, grouped: Shape, depthwise: Shape) -> Vec<Case<ConvSq>> {
    let range = Shape { samples: 9, fold: 2, ..grouped };
    let mut out = Vec::new();
    for mode in [Mode::Squares, Mode::Gradients, Mode::Each] {
        let kernel = ConvSq { mode, ..kernel };
        out.push(case(kernel, range, Numbers::ADD, Some([1, 3, 8, 8])));
        out.push(case(kernel, range, Numbers::ADD, Some([1, 3, 9, 5])));
    }
    for mode in [Mode::Squares, Mode::Gradients] {
        let range = case(ConvSq { mode, ..kernel }, range, Numbers::ADD, Some([1, 3, 9, 5]));
        // Weights of an output: 4 channels of a group, 3 × 3.
        let mut held = cases::held(range, 8 * 36..15 * 36);
        held.params.out_first = 8;
        out.push(held);
    }
    let range = Shape { samples: 4, ..depthwise };
    out.push(case(kernel, range, Numbers::ADD, Some([1, 2, 4, 6])));
    out
}

/// Kernels around a window's four offsets, rows around four positions, their number around two.
fn in_windows() -> Vec<Case<ConvSq>> {
    let deep = Shape::new((2, [3, 9, 8]), (4, 2, 1, 1, 1), 2);
    let shapes = [
        Shape::new((6, [9, 11]), (6, 5, 1, 2, 1), 6),
        Shape::new((4, [12, 10]), (8, 7, 1, 3, 1), 4),
        Shape::new((3, [6, 20]), (3, 4, 1, 0, 1), 3),
        Shape::new((2, [23, 25]), (2, 9, 1, 4, 1), 2),
        Shape { stride: [1, 3, 1], dilation: [1, 3, 1], ..Shape::new((2, [23, 27]), (4, 5, 1, 4, 1), 2) },
        Shape::new((3, [40]), (3, 8, 1, 4, 1), 3),
        Shape { kernel: [2, 5, 4], padding: [1, 2, 0], ..deep },
        Shape { input: [3, 9, 21], kernel: [3, 1, 6], stride: [2, 1, 1], ..deep },
        Shape { samples: 5, fold: 2, ..deep },
    ];
    shapes.map(|shape| case(plain(Form::Window), shape, Numbers::OVERWRITE, None)).into()
}

/// Kernels around four offsets, rows around four positions that begin anywhere, channels around 16 rows and 8
/// invocations.
fn in_slides() -> Vec<Case<ConvSq>> {
    let kernel = plain(Form::Slide);
    let deep = Shape::new((2, [3, 9, 8]), (17, 2, 1, 1, 1), 1);
    let shapes = [
        Shape::new((3, [9, 11]), (15, 5, 1, 2, 1), 1),
        Shape::new((2, [12, 12]), (16, 7, 1, 3, 1), 1),
        Shape::new((9, [6, 20]), (33, 4, 1, 0, 1), 1),
        Shape::new((8, [4, 13]), (5, 1, 1, 0, 1), 1),
        Shape::new((3, [39]), (3, 9, 1, 4, 1), 1),
        Shape::new((1, [2, 2]), (4, 2, 1, 3, 1), 1),
        Shape { kernel: [2, 5, 4], padding: [1, 2, 0], ..deep },
        Shape { input: [3, 9, 21], kernel: [3, 3, 6], stride: [2, 2, 1], dilation: [1, 2, 1], ..deep },
        Shape { samples: 5, fold: 2, ..deep },
    ];
    let mut out: Vec<_> = shapes.map(|shape| case(kernel, shape, Numbers::OVERWRITE, None)).into();
    for (input, grad_output) in [(DType::F16, DType::BF16), (DType::BF16, DType::F32)] {
        let kernel = ConvSq { input, grad_output, ..kernel };
        out.extend([shapes[0], shapes[2]].map(|shape| case(kernel, shape, Numbers::SCALED, None)));
    }
    out
}

/// Positions in multiples of four, whose samples and rows end inside of and between four of them.
fn in_fours(loads: Loads) -> Vec<Case<ConvSq>> {
    let kernel = plain(Form::Quads(loads));
    let shapes = [
        Shape::new((3, [8]), (6, 3, 1, 1, 1), 1),
        Shape::new((7, [4, 5]), (65, 3, 1, 1, 1), 1),
        Shape::new((2, [9, 8]), (5, 3, 2, 1, 2), 1),
        Shape::new((2, [4, 5, 3]), (17, 2, 1, 0, 1), 1),
        Shape { samples: 7, fold: 3, ..Shape::new((8, [6, 6]), (16, 3, 1, 1, 1), 2) },
        Shape { samples: 0, ..Shape::new((3, [8]), (6, 3, 1, 1, 1), 1) },
    ];
    let mut out: Vec<_> = shapes.map(|shape| case(kernel, shape, Numbers::OVERWRITE, None)).into();
    let range = Shape { samples: 9, fold: 2, ..shapes[4] };
    for mode in [Mode::Squares, Mode::Gradients, Mode::Each] {
        out.push(case(ConvSq { mode, ..kernel }, range, Numbers::ADD, Some([1, 3, 8, 8])));
    }
    for (input, grad_output) in [(DType::F16, DType::BF16), (DType::F32, DType::F16)] {
        out.push(case(ConvSq { input, grad_output, ..kernel }, shapes[1], Numbers::SCALED, None));
    }
    let kernel = ConvSq { pointwise: true, ..kernel };
    let points = [
        Shape::new((70, [2, 6]), (17, 1, 1, 0, 1), 1),
        Shape { samples: 5, fold: 2, ..Shape::new((6, [3, 2, 2]), (10, 1, 1, 0, 1), 2) },
    ];
    out.extend(points.map(|shape| case(kernel, shape, Numbers::OVERWRITE, None)));
    for (input, grad_output) in [(DType::BF16, DType::F32), (DType::F32, DType::F16)] {
        out.push(case(ConvSq { input, grad_output, ..kernel }, points[1], Numbers::ADD, None));
    }
    out
}

/// A 3 x 3 convolution that keeps channels and size; depthwise with as many groups as channels.
fn layer(caps: &Caps, samples: u32, channels: u32, groups: u32, size: u32) -> Bench<ConvSq> {
    let shape = Shape { samples, ..Shape::new((channels, [size, size]), (channels, 3, 1, 1, 1), groups) };
    let rows = u64::from(channels / groups);
    let params = shape.params(Numbers::OVERWRITE);
    let map = u64::from(samples) * u64::from(channels) * u64::from(size) * u64::from(size);
    let floats = |len: u64, fill| (DType::F32.into(), len, fill);
    let kind = if groups == 1 { "" } else { "depthwise " };
    Bench {
        name: format!("n={samples} {channels} channels {kind}3x3 on {size}x{size} f32"),
        kernel: ConvSq { overwrite: true, pointwise: params.is_pointwise(), ..plain(params.form(caps)) },
        params,
        buffers: vec![
            floats(map, Fill::Noise),
            floats(map, Fill::Noise),
            floats(samples.into(), Fill::Positive),
            floats(9 * u64::from(channels) * rows, Fill::Zero),
        ],
    }
}

fn plain(form: Form) -> ConvSq {
    let mode = Mode::Squares;
    ConvSq { form, mode, input: DType::F32, grad_output: DType::F32, overwrite: false, pointwise: false }
}

/// `range`: the first square, their number, the first output, their number.
fn case(kernel: ConvSq, shape: Shape, numbers: Numbers, range: Option<[u32; 4]>) -> Case<ConvSq> {
    let kernel = ConvSq { overwrite: numbers.overwrite, ..kernel };
    let mut params = shape.params(numbers);
    if let Some([first, count, first_output, output_count]) = range {
        params = ConvSqParams { first, count, first_output, output_count, ..params };
    }
    let layer = shape.layer();
    let (samples, fold) = (shape.samples as usize, shape.fold as usize);
    let of_input = layer.channels * layer.input.iter().product::<usize>();
    let of_grad = layer.outputs * layer.grad.iter().product::<usize>();
    let of_output = layer.channels / layer.groups * layer.kernel.iter().product::<usize>();
    let input = CaseBuffer::floats(kernel.input, &noise(1, samples * of_input));
    let grad_output = CaseBuffer::floats(kernel.grad_output, &numbers.grad_output(samples * of_grad));
    let weight = CaseBuffer::floats(DType::F32, &cases::weights(samples.div_ceil(fold), kernel.mode));
    let out = match kernel.mode {
        Mode::Each => numbers.out(samples.div_ceil(fold) * params.output_count as usize * of_output),
        _ => numbers.out(layer.outputs * of_output),
    };
    let (a, b, old) = (input.values(), grad_output.values(), out.values());
    let squares = params.first as usize..(params.first + params.count) as usize;
    let gradients = |a: &[f64], b: &[f64]| {
        let all = cases::gradients(samples, fold, |n| {
            let (a, b) = (&a[n * of_input..][..of_input], &b[n * of_grad..][..of_grad]);
            reference::fisher::conv(&layer, a, b)
        });
        all[squares.clone()].to_vec()
    };
    let magnitudes = gradients(&cases::abs(&a), &cases::abs(&b));
    let terms = fold * layer.grad.iter().product::<usize>();
    let weights = &weight.values()[squares.clone()];
    let first = params.first_output as usize * of_output;
    let elements = first..first + params.output_count as usize * of_output;
    let covered = cases::Covered { first: params.first as usize, elements };
    // A column is an offset of a channel's patches; that channel has no larger magnitude.
    let [input_len, grad_len] = [layer.input, layer.grad].map(|sizes| sizes.iter().product::<usize>());
    let tops = gradients(
        &cases::tops(&a, |index| index / input_len % layer.channels),
        &cases::tops(&b, |index| index / grad_len % layer.outputs),
    );
    let formed = cases::Formed {
        gradients: &gradients(&a, &b),
        added: &cases::added(kernel.form, &magnitudes, &tops, terms),
        magnitudes: &magnitudes,
        terms,
    };
    let want = cases::wanted(kernel.mode, numbers, &covered, formed, weights, &old);
    Case {
        name: format!("{kernel:?} {shape:?} range={range:?} scale={:e}", numbers.gradient_scale),
        kernel,
        params,
        buffers: vec![input, grad_output, weight, out],
        want: vec![(3, want)],
    }
}
