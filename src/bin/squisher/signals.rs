//! What signals do to this process.

/// A write past the process's file size limit fails with an error that can be told (SIGXFSZ is only noted), instead
/// of the process dying with a part file left.
#[cfg(unix)]
pub(crate) fn survive_file_limit() -> anyhow::Result<()> {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use anyhow::Context;

    let noted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, noted).context("cannot handle SIGXFSZ")?;
    Ok(())
}

/// Where there is no such signal there is nothing to do.
#[cfg(not(unix))]
pub(crate) fn survive_file_limit() -> anyhow::Result<()> {
    Ok(())
}
