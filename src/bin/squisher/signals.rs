//! What signals do to this process.
//!
//! While a long job runs, the first SIGINT or SIGTERM asks it to end; it does so between two pieces of its input,
//! leaves no output, and the process exits with 130 or 143. The second ends it at once. Commands that are done in a
//! moment keep the system's own behaviour.

#[cfg(unix)]
use std::sync::{Arc, atomic::AtomicBool};

#[cfg(unix)]
use anyhow::Context;
#[cfg(unix)]
use signal_hook::flag;
use squisher::Interrupt;

/// A write past the process's file size limit fails with an error that can be told (SIGXFSZ is only noted), instead
/// of the process dying with a part file left.
#[cfg(unix)]
pub(crate) fn survive_file_limit() -> anyhow::Result<()> {
    let noted = Arc::new(AtomicBool::new(false));
    flag::register(signal_hook::consts::SIGXFSZ, noted).context("cannot handle SIGXFSZ")?;
    Ok(())
}

/// Where there is no such signal there is nothing to do.
#[cfg(not(unix))]
pub(crate) fn survive_file_limit() -> anyhow::Result<()> {
    Ok(())
}

/// The request to end that signals make from now on.
#[cfg(unix)]
pub(crate) fn listen() -> anyhow::Result<Interrupt> {
    let interrupt = Interrupt::default();
    let asked_before = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        pass_on(signal, &interrupt, &asked_before).context("cannot handle signals")?;
    }
    Ok(interrupt)
}

#[cfg(unix)]
fn pass_on(signal: i32, interrupt: &Interrupt, asked_before: &Arc<AtomicBool>) -> std::io::Result<()> {
    let number = usize::try_from(signal).unwrap_or_default();
    // In this order, so that the first signal finds the flag down.
    flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(asked_before))?;
    flag::register(signal, Arc::clone(asked_before))?;
    flag::register_usize(signal, interrupt.flag(), number)?;
    Ok(())
}

/// Where there are no such signals, nothing makes the request.
#[cfg(not(unix))]
pub(crate) fn listen() -> anyhow::Result<Interrupt> {
    Ok(Interrupt::default())
}
