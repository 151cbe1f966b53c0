//! Which form of the shader a convolution takes, and how long its loops are.

use super::ConvSqParams;
use crate::gpu::{Caps, DeviceClass};
use crate::kernels::fisher::product::{Form, Loads};

/// Neighbouring offsets of a kernel along an axis that an invocation has whose inputs slide.
const OFFSETS: u32 = 4;

impl ConvSqParams {
    /// The form for all outputs on a device.
    pub(crate) fn form(&self, caps: &Caps) -> Form {
        let (blocks, rows, columns) = Self { output_count: self.outputs, ..*self }.matrices();
        let plain = Form::of(caps, blocks, rows, columns).for_positions(&[self.positions()]);
        let software = caps.class == DeviceClass::Software && !caps.is_host;
        let sliding = match plain {
            Form::Direct if software => Form::Window,
            Form::Register(Loads::Shared) | Form::Quads(Loads::Shared) => Form::Slide,
            _ => return plain,
        };
        // A longer square is taken in parts that are counted for the other forms.
        let short = self.turns(sliding) < caps.max_iterations;
        if self.slides(sliding) && short { sliding } else { plain }
    }

    /// Whether a form whose inputs slide along a row can be used, and is: one offset or a few positions would leave most of it unused.
    fn slides(&self, form: Form) -> bool {
        match form {
            Form::Window => self.stride_w == self.dilation_w && self.grad_w >= 2 * OFFSETS,
            _ => self.stride_w == 1 && self.dilation_w == 1 && self.kernel_w > 1 && self.grad_w >= OFFSETS,
        }
    }

    /// Windows of an output channel's weight, if the form has those.
    pub(super) fn windows(&self, form: Form) -> Option<u64> {
        let wide = u64::from(self.kernel_w.div_ceil(OFFSETS));
        let high = match form {
            Form::Window => self.kernel_h.div_ceil(OFFSETS),
            Form::Slide => self.kernel_h,
            _ => return None,
        };
        let channels = u64::from(self.channels) / u64::from(self.groups).max(1);
        Some(channels * u64::from(self.kernel_d) * u64::from(high) * wide)
    }

    /// Loop iterations of one square.
    pub(crate) fn turns(&self, form: Form) -> u64 {
        let samples = u64::from(self.fold.min(self.samples));
        let of_row = match form {
            Form::Window => self.grad_w,
            Form::Slide => self.grad_w.div_ceil(4),
            _ => return form.turns(self.positions().saturating_mul(samples)),
        };
        // Each of three loops counts one more than it turns.
        let rows = u64::from(self.grad_d).saturating_mul(self.grad_h.into());
        let of_sample = rows.saturating_mul(u64::from(of_row) + 2).saturating_add(2);
        of_sample.saturating_mul(samples).saturating_add(2)
    }

    /// Output positions of a sample.
    pub(super) fn positions(&self) -> u64 {
        self.grad().into_iter().fold(1, u64::saturating_mul)
    }
}
