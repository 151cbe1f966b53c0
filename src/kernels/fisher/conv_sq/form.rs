//! Which form of the shader a convolution takes, and how long its loops are.

use super::{ConvSq, ConvSqParams};
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernel::Kernel;
use crate::kernels::fisher::form::{Form, Loads};

/// Neighbouring offsets of a kernel along an axis that an invocation has whose inputs slide.
const OFFSETS: u32 = 4;

impl ConvSqParams {
    /// The form for all outputs on a device. What has no meaning is refused later, by `launch`.
    pub(crate) fn form(&self, caps: &Caps) -> Form {
        let groups = self.groups.max(1);
        let kernel = self.kernel().into_iter().fold(1, u64::saturating_mul);
        let columns = u64::from(self.channels / groups).saturating_mul(kernel);
        let plain = Form::of(caps, groups.into(), (self.outputs / groups).into(), columns)
            .for_positions(&[self.positions()])
            .for_matrix_units(caps);
        let sliding = match plain {
            Form::Direct if caps.is_software_device() => Form::Window,
            Form::Register(Loads::Shared) | Form::Quads(Loads::Shared) => Form::Slide,
            _ => return plain,
        };
        // A longer square is taken in parts that are counted for the other forms.
        let short = self.turns(sliding) < caps.max_iterations;
        if self.slides(sliding) && short { sliding } else { plain }
    }

    /// Whether a form whose inputs slide is worth it: one offset or a few positions would leave most of it unused.
    fn slides(&self, form: Form) -> bool {
        let wide = form == Form::Window || self.kernel_w > 1;
        self.can_slide(form) && wide && self.grad_w >= OFFSETS
    }

    /// Whether neighbouring positions meet neighbouring inputs, in every row and, of [`Form::Window`], from row to row.
    fn can_slide(&self, form: Form) -> bool {
        let rows = form != Form::Window || self.stride_h == self.dilation_h;
        rows && self.stride_w == 1 && self.dilation_w == 1
    }

    /// Refuses a form whose inputs would not slide.
    pub(super) fn check_form(&self, form: Form) -> Result<()> {
        if matches!(form, Form::Window | Form::Slide) && !self.can_slide(form) {
            let steps = [self.stride_h, self.stride_w, self.dilation_h, self.dilation_w];
            let problem = format!(
                "form {form:?} is for a stride and dilation of 1 along the width, and Window for the same of both along the height; \
                 they are {steps:?} (stride and dilation, height before width)"
            );
            return Err(Error::argument(ConvSq::NAME, problem));
        }
        form.check_positions(ConvSq::NAME, &[self.positions()])
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

    /// Loop iterations of one square. A loop counts one more than it turns.
    pub(crate) fn turns(&self, form: Form) -> u64 {
        let samples = u64::from(self.fold.min(self.samples));
        let rows = match form {
            Form::Window => self.grad_h.div_ceil(2),
            Form::Slide => self.grad_h,
            _ => return form.turns(self.positions().saturating_mul(samples)),
        };
        let of_row = u64::from(self.grad_w.div_ceil(4)) + 2;
        let of_plane = of_row.saturating_mul(rows.into()).saturating_add(2);
        let of_sample = of_plane.saturating_mul(self.grad_d.into()).saturating_add(2);
        of_sample.saturating_mul(samples).saturating_add(2)
    }

    /// Whether each position meets one input, at its own place.
    pub(crate) fn is_pointwise(&self) -> bool {
        self.kernel() == [1; 3]
            && self.stride() == [1; 3]
            && self.padding() == [0; 3]
            && self.input() == self.grad()
    }

    /// Output positions of a sample.
    pub(super) fn positions(&self) -> u64 {
        self.grad().into_iter().fold(1, u64::saturating_mul)
    }
}
