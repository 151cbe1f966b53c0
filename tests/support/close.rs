//! How near a result is to what it should be.

/// Requires |got − want| ≤ `bound`.
#[track_caller]
pub(crate) fn near(got: f64, want: f64, bound: f64) {
    assert!((got - want).abs() <= bound, "got {got:e}, want {want:e}, allowed {bound:e}");
}

/// Requires |got − want| ≤ `bound(want)` of every element.
#[track_caller]
pub(crate) fn all_near<G, W>(got: &[G], want: &[W], bound: impl Fn(f64) -> f64)
where
    G: Copy + Into<f64>,
    W: Copy + Into<f64>,
{
    assert_eq!(got.len(), want.len(), "the same number of elements");
    for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
        let (got, want): (f64, f64) = (got.into(), want.into());
        let bound = bound(want);
        assert!((got - want).abs() <= bound, "[{index}]: got {got:e}, want {want:e}, allowed {bound:e}");
    }
}
