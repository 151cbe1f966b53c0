//! The forms of the product kernels' shaders: which suits a device, and which parts it is put together from.

use crate::error::{Error, Result};
use crate::gpu::{Caps, DeviceClass, MatrixUnits};
use crate::kernel::groups_of;
use crate::kernels::{DTYPE, ELEMENT, shader};

/// The form of a product kernel's shader. The host execution is the same for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Workgroup memory: `x` × `y` invocations (`y` even) own 8y rows × 8x columns. For GPUs.
    Tile {
        /// Invocations along the columns.
        x: u32,
        /// Invocations along the rows.
        y: u32,
    },
    /// Matrix units: a workgroup of four subgroups owns 4 × 4 matrices. Each f32 factor x is split into two
    /// of f16, scaled by a power of two that the largest magnitude X of its row (or column) has over a
    /// square's positions. A product x · y is off by 2⁻²¹|x||y| + 2⁻³⁷XY, and sums may be cut off where other
    /// forms round; so a sum keeps the digits of f32 unless nearly all that it adds is 2¹⁶ times smaller than
    /// XY. What is not finite makes all of its row and column so, as elsewhere; an infinite sum may have
    /// another sign, or be infinite where others are NaN. It reads factors twice. Cf. Ootomo and Yokota,
    /// *Recovering single precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak
    /// performance* (2022).
    Matrix(MatrixUnits),
    /// Registers only: a workgroup owns 16 rows × 64 columns. For processors behind a graphics interface.
    Register(Loads),
    /// The same for a linear layer whose widths and first output are multiples of eight: whole octets are loaded.
    Octets(Loads),
    /// The same for a convolution or a Gram matrix whose positions are a multiple of four: four of them are loaded
    /// together.
    Quads(Loads),
    /// The same for convolutions with `stride_w` = `dilation_w` = 1, with [`Loads::Shared`]: a workgroup owns 16 rows ×
    /// 8 times four neighbouring offsets of a kernel row, past which the inputs slide.
    Slide,
    /// One invocation an element. For depthwise and other narrow groups.
    Direct,
    /// The same where loads cost most, for convolutions with `stride_w` = `dilation_w` = 1 and `stride_h` =
    /// `dilation_h`: 4 × 4 neighbouring offsets of a kernel an invocation, past which the inputs slide.
    Window,
}

/// How an invocation of a register form has the factors of its 16 rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loads {
    /// It loads them.
    Own,
    /// The 8 invocations of a workgroup load two each, and hand them round: for devices whose subgroups have that size.
    Shared,
}

/// The most loop iterations that storing takes.
pub(crate) const STORES: u64 = 162;

const REGISTER_LANES: u32 = 8;
const DIRECT_LANES: u32 = 64;

/// Inputs that slide, and four positions of sixteen rows.
const LINE_PART: &str = shader!("lib/product/line.wgsl");
const FOURS_PART: &str = shader!("lib/product/fours.wgsl");

impl Form {
    /// The form for `blocks` matrices of rows × columns on a device.
    #[must_use]
    pub fn of(caps: &Caps, blocks: u64, rows: u64, columns: u64) -> Self {
        const LARGE: Form = Form::Tile { x: 16, y: 16 };
        const SMALL: Form = Form::Tile { x: 8, y: 8 };
        // Below this share of a small tile in use, the direct form wastes less.
        let narrow = rows * columns < 16 * 16;
        if blocks > 1 && narrow {
            return Self::Direct;
        }
        if caps.class == DeviceClass::Software {
            let shared = caps.subgroup == REGISTER_LANES;
            return Self::Register(if shared { Loads::Shared } else { Loads::Own });
        }
        // Large tiles load half as much, if there are enough of them to fill a large device.
        if LARGE.groups(blocks, rows, columns) >= 128 && caps.max_invocations >= 256 { LARGE } else { SMALL }
    }

    /// This form, or the one for matrix units where an application lent them, unless blocks are so narrow that
    /// [`Form::Direct`] has them.
    #[must_use]
    pub fn for_matrix_units(self, caps: &Caps) -> Self {
        match (self, caps.matrix_units) {
            (Self::Direct, _) | (_, None) => self,
            (_, Some(units)) => Self::Matrix(units),
        }
    }

    /// This form, with loads of whole octets if it has those and all of these are multiples of eight: the distances of
    /// rows, and where the first begins.
    #[must_use]
    pub fn for_widths(self, widths: &[u32]) -> Self {
        match self {
            Self::Register(loads) if is_aligned(widths) => Self::Octets(loads),
            _ => self,
        }
    }

    /// This form, with loads of four positions if it has those and all of these are multiples of four: the positions of
    /// a row, and where the first lies.
    #[must_use]
    pub fn for_positions(self, positions: &[u64]) -> Self {
        match self {
            Self::Register(loads) if in_fours(positions) => Self::Quads(loads),
            _ => self,
        }
    }

    /// The size of the subgroups that its shader exchanges values in, 0 for none.
    pub(super) fn subgroup(self) -> u32 {
        match self {
            Self::Register(Loads::Shared)
            | Self::Octets(Loads::Shared)
            | Self::Quads(Loads::Shared)
            | Self::Slide => REGISTER_LANES,
            _ => 0,
        }
    }

    /// The matrix units that its shader is for.
    pub(super) fn matrix_units(self) -> Option<MatrixUnits> {
        match self {
            Self::Matrix(units) => Some(units),
            _ => None,
        }
    }

    /// Refuses the forms of convolutions.
    pub(super) fn check_plain(self, op: &str) -> Result<()> {
        if matches!(self, Self::Window | Self::Slide) {
            return Err(Error::argument(op, format!("form {self:?} is for convolutions")));
        }
        Ok(())
    }

    /// Refuses [`Form::Quads`] where four positions would not lie together.
    pub(super) fn check_positions(self, op: &str, positions: &[u64]) -> Result<()> {
        if matches!(self, Self::Quads(_)) && !in_fours(positions) {
            let problem = format!("positions {positions:?} are not multiples of 4, as form Quads has them");
            return Err(Error::argument(op, problem));
        }
        Ok(())
    }

    /// Whether it loads whole octets, for the shader.
    pub(super) fn aligned(self) -> (&'static str, f64) {
        ("ALIGNED", f64::from(u8::from(matches!(self, Self::Octets(_)))))
    }

    /// Refuses [`Form::Octets`] where octets would begin between others.
    pub(super) fn check_widths(self, op: &str, widths: &[u32]) -> Result<()> {
        self.check_plain(op)?;
        if matches!(self, Self::Quads(_)) {
            return Err(Error::argument(op, "form Quads is for convolutions and Gram matrices"));
        }
        if matches!(self, Self::Octets(_)) && !is_aligned(widths) {
            let problem =
                format!("widths and first output {widths:?} are not multiples of 8, as form Octets has them");
            return Err(Error::argument(op, problem));
        }
        Ok(())
    }

    /// Workgroups for `blocks` matrices of rows × columns; of [`Form::Window`] and [`Form::Slide`], columns
    /// are windows.
    pub(crate) fn groups(self, blocks: u64, rows: u64, columns: u64) -> u64 {
        let tiles =
            |height: u32, width: u32| blocks * rows.div_ceil(height.into()) * columns.div_ceil(width.into());
        match self {
            Self::Tile { x, y } => tiles(8 * y, 8 * x),
            Self::Matrix(MatrixUnits { side, .. }) => tiles(4 * side, 4 * side),
            Self::Register(_) | Self::Octets(_) | Self::Quads(_) => tiles(16, 8 * REGISTER_LANES),
            Self::Slide => tiles(16, REGISTER_LANES),
            Self::Direct => (blocks * rows * columns).div_ceil(DIRECT_LANES.into()),
            Self::Window => (blocks * rows * columns).div_ceil(REGISTER_LANES.into()),
        }
    }

    /// The most loop iterations of an invocation for so many squares, each of so many positions.
    pub(crate) fn iterations(self, squares: u64, positions: u64) -> u64 {
        squares.saturating_mul(self.turns(positions)).saturating_add(STORES)
    }

    /// Those of one square. (The forms whose inputs slide have rows of positions: see
    /// [`ConvSqParams`](super::ConvSqParams).)
    pub(super) fn turns(self, positions: u64) -> u64 {
        let turns = match self {
            // Eight positions: one turn, some to load the factors, eight to multiply, and the ends of these
            // three loops.
            Self::Tile { x, y } => {
                let loads = 8_u64.div_ceil(u64::from(x / 2).max(1)) + 8_u64.div_ceil(u64::from(y / 2).max(1));
                positions.div_ceil(8).saturating_mul(12 + loads)
            }
            // The largest magnitudes; then for `side` positions one turn, some to load the factors, and a loop's end.
            Self::Matrix(MatrixUnits { side, lanes }) => {
                let step = u64::from(lanes / side);
                let loads = positions.div_ceil(side.into()).saturating_mul(u64::from(side) / step + 2);
                positions.div_ceil(step).saturating_add(loads).saturating_add(2)
            }
            Self::Quads(_) => positions.div_ceil(4),
            _ => positions,
        };
        turns.saturating_add(2)
    }

    pub(super) fn grid(
        self,
        op: &str,
        blocks: u64,
        rows: u64,
        columns: u64,
        caps: &Caps,
    ) -> Result<[u32; 3]> {
        groups_of(op, self.groups(blocks, rows, columns), caps)
    }

    /// A kernel's text and the parts that it needs in this form; `eights` is how it has eight factors at a time.
    pub(super) fn parts(self, kernel: &'static str, eights: &'static str) -> Vec<&'static str> {
        let strips = shader!("lib/product/strips.wgsl");
        let shared = shader!("lib/product/fours_shared.wgsl");
        let form = match self {
            Self::Tile { .. } => vec![shader!("lib/product/tile.wgsl")],
            Self::Matrix(units) => {
                let size = match units.side {
                    8 => shader!("lib/product/matrix_8.wgsl"),
                    _ => shader!("lib/product/matrix_16.wgsl"),
                };
                vec![shader!("lib/product/matrix.wgsl"), size]
            }
            Self::Register(loads) | Self::Octets(loads) => {
                let left = match loads {
                    Loads::Own => shader!("lib/product/left_own.wgsl"),
                    Loads::Shared => shader!("lib/product/left_shared.wgsl"),
                };
                vec![shader!("lib/product/register.wgsl"), strips, left]
            }
            Self::Quads(loads) => {
                let left = match loads {
                    Loads::Own => shader!("lib/product/fours_own.wgsl"),
                    Loads::Shared => shared,
                };
                vec![shader!("lib/product/quads.wgsl"), strips, FOURS_PART, left]
            }
            Self::Slide => vec![shader!("lib/product/slide.wgsl"), LINE_PART, FOURS_PART, shared],
            Self::Direct => vec![shader!("lib/product/direct.wgsl")],
            Self::Window => vec![shader!("lib/product/window.wgsl"), LINE_PART],
        };
        [vec![kernel, DTYPE, ELEMENT, shader!("lib/product/base.wgsl"), eights], form].concat()
    }

    pub(super) fn overrides(self) -> [(&'static str, f64); 2] {
        let (x, y) = match self {
            Self::Tile { x, y } => (x, y),
            Self::Matrix(MatrixUnits { lanes, .. }) => (4 * lanes, 1),
            Self::Register(_) | Self::Octets(_) | Self::Quads(_) | Self::Slide | Self::Window => {
                (REGISTER_LANES, 1)
            }
            Self::Direct => (DIRECT_LANES, 1),
        };
        [("WORKGROUP_X", x.into()), ("WORKGROUP_Y", y.into())]
    }
}

fn in_fours(positions: &[u64]) -> bool {
    positions.iter().all(|count| count.is_multiple_of(4))
}

fn is_aligned(widths: &[u32]) -> bool {
    widths.iter().all(|width| width.is_multiple_of(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrix_units_are_used_where_they_were_lent_and_nowhere_else() {
        let without = [DeviceClass::Gpu, DeviceClass::Software].map(|class| Caps { class, ..Caps::host() });
        let sizes = [(1, 1, 1), (1, 10, 64), (1, 4096, 4096), (8, 16, 16), (64, 1, 9), (64, 64, 576)];
        for caps in without {
            for (blocks, rows, columns) in sizes {
                let plain = Form::of(&caps, blocks, rows, columns);
                assert_eq!(plain.for_matrix_units(&caps), plain);
                assert_eq!(plain.matrix_units(), None);
                for units in MatrixUnits::ALL {
                    let caps = Caps { matrix_units: Some(units), ..caps.clone() };
                    assert_eq!(Form::of(&caps, blocks, rows, columns), plain);
                    let form = plain.for_matrix_units(&caps);
                    let wanted = if plain == Form::Direct { plain } else { Form::Matrix(units) };
                    assert_eq!(form, wanted, "{blocks} of {rows} x {columns}");
                }
            }
        }
    }

    #[test]
    fn a_position_takes_less_than_two_turns_on_matrix_units() {
        for units in MatrixUnits::ALL {
            let turns = Form::Matrix(units).turns(30_000);
            assert!(turns < 60_000, "{units:?}: {turns}");
        }
    }
}
