//! Gradients of one sample, layer by layer, and the Fisher diagonal as the weighted sum of their squares.

/// ∂ℓ/∂W of a linear layer for one sample: g[o, i] = Σ_t b[t, o] · a[t, i].
///
/// `input` is a `[t, i]`, `grad_output` b `[t, o]`, the result `[o, i]`.
#[must_use]
pub fn linear(
    input: &[f64],
    grad_output: &[f64],
    positions: usize,
    inputs: usize,
    outputs: usize,
) -> Vec<f64> {
    let mut gradient = vec![0.0; outputs * inputs];
    for t in 0..positions {
        for o in 0..outputs {
            for i in 0..inputs {
                gradient[o * inputs + i] += grad_output[t * outputs + o] * input[t * inputs + i];
            }
        }
    }
    gradient
}

/// A convolution's sizes: channels of all groups together, and d, h, w of everything else.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Input channels.
    pub channels: usize,
    /// Output channels.
    pub outputs: usize,
    /// Groups.
    pub groups: usize,
    /// The input's sizes.
    pub input: [usize; 3],
    /// The output's sizes.
    pub grad: [usize; 3],
    /// The kernel's sizes.
    pub kernel: [usize; 3],
    /// Strides.
    pub stride: [usize; 3],
    /// Zeros before and after each axis.
    pub padding: [usize; 3],
    /// Distances of kernel elements.
    pub dilation: [usize; 3],
}

/// ∂ℓ/∂W of a convolution for one sample: g[o, c, k] = Σ_p b[o, p] · a[c of o's group, stride·p + dilation·k
/// − padding], a being zero outside.
///
/// `input` is a `[c, d, h, w]`, `grad_output` b `[o, d, h, w]`, the result `[o, c / groups, d, h, w]`.
#[must_use]
pub fn conv(layer: &Conv, input: &[f64], grad_output: &[f64]) -> Vec<f64> {
    let mut gradient = Vec::new();
    let [kernel_d, kernel_h, kernel_w] = layer.kernel;
    for o in 0..layer.outputs {
        for c in 0..layer.channels / layer.groups {
            for d in 0..kernel_d {
                for h in 0..kernel_h {
                    for w in 0..kernel_w {
                        gradient.push(conv_element(layer, input, grad_output, o, c, [d, h, w]));
                    }
                }
            }
        }
    }
    gradient
}

/// One element of the gradient: the sum over all output positions.
fn conv_element(layer: &Conv, a: &[f64], b: &[f64], o: usize, c: usize, k: [usize; 3]) -> f64 {
    let [grad_d, grad_h, grad_w] = layer.grad;
    let [input_d, input_h, input_w] = layer.input.map(|size| size as isize);
    let group = o / (layer.outputs / layer.groups);
    let channel = (group * (layer.channels / layer.groups) + c) as isize;
    let mut sum = 0.0;
    for d in 0..grad_d {
        for h in 0..grad_h {
            for w in 0..grad_w {
                let at = |axis: usize, position: usize| {
                    (position * layer.stride[axis] + k[axis] * layer.dilation[axis]) as isize
                        - layer.padding[axis] as isize
                };
                let [z, y, x] = [at(0, d), at(1, h), at(2, w)];
                if (0..input_d).contains(&z) && (0..input_h).contains(&y) && (0..input_w).contains(&x) {
                    let from = ((channel * input_d + z) * input_h + y) * input_w + x;
                    sum += b[((o * grad_d + d) * grad_h + h) * grad_w + w] * a[from as usize];
                }
            }
        }
    }
    sum
}

/// ∂ℓ/∂bias of one sample: `g[o] = Σ_t b[t, o]`, for b as `[t, o]`, or as `[o, t]` where channels come first.
#[must_use]
pub fn bias(grad_output: &[f64], positions: usize, outputs: usize, channels_first: bool) -> Vec<f64> {
    let mut gradient = vec![0.0; outputs];
    for t in 0..positions {
        for o in 0..outputs {
            gradient[o] += grad_output[if channels_first { o * positions + t } else { t * outputs + o }];
        }
    }
    gradient
}

/// `Σ_n weight[n] · g_n²`, elementwise, over gradients of `len` elements.
#[must_use]
pub fn sum_of_squares(weight: &[f64], gradients: &[Vec<f64>], len: usize) -> Vec<f64> {
    let mut sum = vec![0.0; len];
    for (w, gradient) in weight.iter().zip(gradients) {
        for (sum, g) in sum.iter_mut().zip(gradient) {
            *sum += w * g * g;
        }
    }
    sum
}

/// `Σ_n weight[n] · g_n`, elementwise, over gradients of `len` elements: ∇ of the weighted loss.
#[must_use]
pub fn weighted_sum(weight: &[f64], gradients: &[Vec<f64>], len: usize) -> Vec<f64> {
    let mut sum = vec![0.0; len];
    for (w, gradient) in weight.iter().zip(gradients) {
        for (sum, g) in sum.iter_mut().zip(gradient) {
            *sum += w * g;
        }
    }
    sum
}

/// `⟨x_m, y_n⟩` of every two rows, `[m, n]`: the Gram matrix where x is y.
#[must_use]
pub fn inner_products(x: &[Vec<f64>], y: &[Vec<f64>]) -> Vec<f64> {
    let inner = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    x.iter().flat_map(|x| y.iter().map(move |y| inner(x, y))).collect()
}

/// Gradients of the *sum* of the losses of `fold` consecutive samples: Σ g_n over each such run (the last may
/// be shorter).
#[must_use]
pub fn joint(gradients: &[Vec<f64>], fold: usize) -> Vec<Vec<f64>> {
    gradients
        .chunks(fold)
        .map(|run| (0..run[0].len()).map(|p| run.iter().map(|gradient| gradient[p]).sum()).collect())
        .collect()
}
