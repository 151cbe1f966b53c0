//! Where a parameter's result is kept: in one buffer, or, where one binding cannot hold it, in several of
//! consecutive rows.

use std::ops::Range;

use super::{Parameter, Unit, cut, room};
use crate::backend::Backend;
use crate::error::{Error, Result, printable};
use crate::gpu::Caps;
use crate::memory::{Element, View};
use crate::shape::DType;
use crate::stream::Budget;

/// Bytes of a result that are downloaded at a time.
const PIECE: u64 = 4 << 20;

/// Some rows of a parameter.
pub(crate) struct Held {
    pub(crate) rows: Range<u32>,
    pub(crate) view: View,
}

/// Zeroed buffers for some rows of a parameter.
///
/// # Errors
/// [`Error::Limit`] where one row is more than a binding; [`Error::Device`] where memory ran out.
pub(crate) fn hold(backend: &Backend, parameter: &Parameter, ranges: &[Range<u32>]) -> Result<Vec<Held>> {
    let hold = |rows: &Range<u32>| {
        let view = backend.alloc(rows.len() as u64 * parameter.rows.len, DType::F32);
        let view = view.map_err(|error| of_row(error, &parameter.name))?;
        Ok(Held { rows: rows.clone(), view })
    };
    ranges.iter().map(hold).collect()
}

/// Downloads an f32 view piece by piece: `each` gets the index of a piece's first element, and its elements.
pub(crate) fn in_pieces(
    backend: &Backend,
    view: &View,
    mut each: impl FnMut(u64, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let step = PIECE / 4;
    for first in (0..view.len().div_ceil(step)).map(|piece| piece * step) {
        let len = step.min(view.len() - first);
        let piece = View::new(view.memory().clone(), view.offset() + 4 * first, len, Element::F32)?;
        let mut values: Vec<f32> = backend.download(&piece)?;
        each(first, &mut values)?;
    }
    Ok(())
}

/// The rows of every parameter of a unit that are computed at a time: all of them at once where they are
/// within `budget` bytes. Each range is one buffer's.
///
/// # Errors
/// [`Error::Budget`] where one row is more.
pub(crate) fn passes(unit: &Unit, caps: &Caps, share: Share) -> Result<Vec<Vec<Vec<Range<u32>>>>> {
    let none = vec![Vec::new(); unit.parameters.len()];
    let mut passes = vec![none.clone()];
    let mut used = 0;
    for (at, Parameter { name, rows, .. }) in unit.parameters.iter().enumerate() {
        let row = 4 * rows.len;
        share.check(row, name)?;
        // The index of an embedding has a word more than there are rows, which may be of one element.
        for range in cut(*rows, room(caps).min(share.bytes) / row.max(8)) {
            let bytes = range.len() as u64 * row;
            if used > 0 && used + bytes > share.bytes {
                passes.push(none.clone());
                used = 0;
            }
            passes.last_mut().expect("there is a first")[at].push(range);
            used += bytes;
        }
    }
    Ok(passes)
}

/// What results may have of a memory budget.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    /// Bytes of the parameters that are computed at a time.
    pub(crate) bytes: u64,
    budget: u64,
    is_host: bool,
}

impl Share {
    /// Half of the budget for results, of which there are `copies`. The other half is for inputs and
    /// gradients of what is computed and of what is read meanwhile, an eighth each: that is what bindings are
    /// taken to have.
    pub(crate) fn of(budget: &Budget, caps: &Caps, copies: u64) -> (Self, Caps) {
        let all = if caps.is_host { budget.host_bytes } else { budget.device_bytes };
        let within = Caps { max_binding_bytes: caps.max_binding_bytes.min(all / 8), ..caps.clone() };
        (Self { bytes: all / 2 / copies, budget: all, is_host: caps.is_host }, within)
    }

    fn check(self, row: u64, name: &str) -> Result<()> {
        if row <= self.bytes {
            return Ok(());
        }
        let (what, flag) = match self.is_host {
            true => ("host memory", "--host-memory"),
            false => ("device memory", "--device-memory"),
        };
        Err(Error::Budget {
            op: format!("the result {}", printable(name)),
            what: what.into(),
            need: (self.budget / self.bytes.max(1)).max(2).saturating_mul(row),
            have: self.budget,
            flag: flag.into(),
        })
    }
}

/// Where one buffer does not do, it is a row that is too large.
fn of_row(error: Error, name: &str) -> Error {
    match error {
        Error::Limit { limit, max, asked, .. } => {
            let limit = format!("{limit} for a row of it (the host backend has no such limit)");
            Error::Limit { op: format!("the result {}", printable(name)), limit, max, asked }
        }
        other => other,
    }
}
