//! Matrix units: what an adapter has of them, and what shaders ask of the device.

/// Matrix units that multiply f16 and add up in f32, as the product kernels use them (cooperative matrices).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixUnits {
    /// Rows and columns of a matrix, 8 or 16.
    pub side: u32,
    /// The most invocations that hold a matrix together, 32 or 64: a subgroup, or the number above it.
    pub lanes: u32,
}

impl MatrixUnits {
    /// What a device must have been made with.
    pub const FEATURES: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
        .union(wgpu::Features::SHADER_F16)
        .union(wgpu::Features::SUBGROUP);

    /// All that shaders are written for.
    pub const ALL: [Self; 3] =
        [Self { side: 8, lanes: 32 }, Self { side: 16, lanes: 32 }, Self { side: 16, lanes: 64 }];

    /// Those of an adapter; nothing where it has none that shaders are written for. Of two sizes the larger.
    #[must_use]
    pub fn of(adapter: &wgpu::Adapter) -> Option<Self> {
        if !adapter.features().contains(Self::FEATURES) {
            return None;
        }
        let sides = adapter.cooperative_matrix_properties().into_iter().filter_map(side);
        Self::with(sides.max()?, adapter.get_info().subgroup_max_size)
    }

    fn with(side: u32, subgroup: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|units| units.side == side && units.lanes >= subgroup)
    }
}

/// The size of a configuration that multiplies square matrices of f16 to sums in f32.
fn side(of: wgpu::CooperativeMatrixProperties) -> Option<u32> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let square = of.m_size == of.n_size && of.n_size == of.k_size && [8, 16].contains(&of.m_size);
    // One that saturates would hide an infinite sum.
    let fits = square && (of.ab_type, of.cr_type) == (F16, F32) && !of.saturating_accumulation;
    fits.then_some(of.m_size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpu::CooperativeScalarType::{F16, F32, I32};

    #[test]
    fn square_f16_with_sums_in_f32_is_taken_and_nothing_else() {
        let good = wgpu::CooperativeMatrixProperties {
            m_size: 16,
            n_size: 16,
            k_size: 16,
            ab_type: F16,
            cr_type: F32,
            saturating_accumulation: false,
        };
        assert_eq!(side(good), Some(16));
        assert_eq!(
            side(wgpu::CooperativeMatrixProperties { m_size: 8, n_size: 8, k_size: 8, ..good }),
            Some(8)
        );
        for other in [
            wgpu::CooperativeMatrixProperties { k_size: 8, ..good },
            wgpu::CooperativeMatrixProperties { ab_type: F32, ..good },
            wgpu::CooperativeMatrixProperties { ab_type: I32, cr_type: I32, ..good },
            wgpu::CooperativeMatrixProperties { cr_type: F16, ..good },
            wgpu::CooperativeMatrixProperties { saturating_accumulation: true, ..good },
        ] {
            assert_eq!(side(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_subgroup_fits_its_lanes() {
        assert_eq!(MatrixUnits::with(8, 8), Some(MatrixUnits { side: 8, lanes: 32 }));
        assert_eq!(MatrixUnits::with(16, 32), Some(MatrixUnits { side: 16, lanes: 32 }));
        assert_eq!(MatrixUnits::with(16, 64), Some(MatrixUnits { side: 16, lanes: 64 }));
        assert_eq!(MatrixUnits::with(8, 64), None);
        assert_eq!(MatrixUnits::with(16, 128), None);
    }
}
