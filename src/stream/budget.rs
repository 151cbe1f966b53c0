//! What memory a run may use.

use crate::error::{Error, Result};
use crate::gpu::Caps;

/// Limits on the memory of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Device memory: the buffers that kernels work in. Does not apply to the host backend.
    pub device_bytes: u64,
    /// Host memory: the mappable buffers on the way to a device and back, or what kernels work in on the host backend.
    pub host_bytes: u64,
    /// The largest buffer that can be made and bound.
    pub max_binding_bytes: u64,
    /// Depth of the ring: how many chunks are on their way at a time.
    pub slots: u32,
    /// Where kernels work, as files see it.
    pub memories: Memories,
}

/// Where kernels work, as seen from where files are read to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memories {
    /// In the host's memory: the host backend.
    Host,
    /// In a device's buffers that files are read to: its memory is the host's.
    Shared,
    /// In a device's own memory, behind mappable buffers that files are read to and written from.
    Separate,
}

/// Three chunks on their way: one being read, one being computed, one being written.
const SLOTS: u32 = 3;

impl Default for Budget {
    /// No limit but what is useful: see [`Plan::new`](super::Plan::new).
    fn default() -> Self {
        Self {
            device_bytes: u64::MAX,
            host_bytes: u64::MAX,
            max_binding_bytes: u64::MAX,
            slots: SLOTS,
            memories: Memories::Host,
        }
    }
}

impl Budget {
    /// This budget on a backend that allows `caps`.
    #[must_use]
    pub fn within(self, caps: &Caps) -> Self {
        let max_binding_bytes = self.max_binding_bytes.min(caps.max_binding_bytes).min(caps.max_buffer_bytes);
        let memories = match caps {
            Caps { is_host: true, .. } => Memories::Host,
            Caps { mappable_storage: true, .. } => Memories::Shared,
            _ => Memories::Separate,
        };
        Self { max_binding_bytes, memories, ..self }
    }
}

/// Bytes from text such as `64MiB`, `1.5GB`, `5B`, `4096`. Suffixes with an i are powers of 1024, without one of 1000.
///
/// # Errors
/// [`Error::Argument`] for anything else.
pub fn parse_size(text: &str) -> Result<u64> {
    let refuse = || Error::argument("size", format!("\"{text}\" is not a size such as 64MiB, 1.5GB or 4096"));
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, suffix) = trimmed.split_at(digits);
    let unit: u64 = match suffix.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        "ti" | "tib" => 1 << 40,
        _ => return Err(refuse()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit).ok_or_else(refuse);
    }
    let bytes = number.parse::<f64>().map_err(|_| refuse())? * unit as f64;
    // 2^53: below it f64 holds every whole number.
    if !(0.0..9e15).contains(&bytes) {
        return Err(refuse());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "in range, and a part of a byte is none"
    )]
    let bytes = bytes as u64;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("4096", 4096),
            ("5B", 5),
            ("64MiB", 64 << 20),
            ("64 mib", 64 << 20),
            ("1.5GB", 1_500_000_000),
            ("2g", 2_000_000_000),
        ] {
            assert_eq!(parse_size(text).ok(), Some(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1e9", "64MiBs", "99999999999999999999", "18446744073709551615KiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
