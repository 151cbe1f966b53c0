//! How a long job tells its caller how far it has come.

/// Hears how far a job has come. Jobs call it from several threads, once per chunk;
/// `()` hears nothing.
pub trait Progress: Sync {
    /// The job, or its next pass, will read `bytes` of input in all. Called before any [`Progress::advance`] of
    /// that pass; what was counted before starts again at 0.
    fn begin(&self, bytes: u64);

    /// Another `bytes` of the input are done.
    fn advance(&self, bytes: u64);
}

impl Progress for () {
    fn begin(&self, _bytes: u64) {}

    fn advance(&self, _bytes: u64) {}
}
