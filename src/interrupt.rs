//! How a caller asks a long job to end: a flag that the job looks at between two chunks.
//!
//! The library installs no signal handler. A program that wants one lets it store the signal's number through
//! [`Interrupt::flag`]; a program with a button calls [`Interrupt::request`]. The job then returns
//! [`Error::Interrupted`], and an output that it was writing is as if it had never started (or kept for a
//! later run, where that was asked for).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};

/// A request to end, shared between a job and whoever may end it. Clones are the same request.
///
/// [`Interrupt::default`] is a request that nobody has made.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicUsize>);

impl Interrupt {
    /// Ask for an end because of `signal` (2 for an interrupt at the keyboard, 15 for a request to terminate).
    pub fn request(&self, signal: u8) {
        self.0.store(usize::from(signal), Ordering::Relaxed);
    }

    /// The flag itself, 0 until a signal's number is stored: what a signal handler may write to.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0)
    }

    /// `Ok` while nobody asked for an end.
    ///
    /// # Errors
    /// [`Error::Interrupted`] with the signal's number once somebody did.
    pub fn check(&self) -> Result<()> {
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(Error::Interrupted { signal: i32::try_from(signal).unwrap_or(i32::MAX) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reaches_every_clone() {
        let (job, other) = (Interrupt::default(), Interrupt::default());
        assert!(job.check().is_ok());
        other.request(2);
        assert!(job.check().is_ok(), "another request is another job's");
        job.clone().request(15);
        assert!(matches!(job.check(), Err(Error::Interrupted { signal: 15 })));
    }
}
