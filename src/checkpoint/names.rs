//! Which parameter of the model each entry of an optimizer state belongs to, with the evidence.
//!
//! A wrong map is the worst outcome: every number looks right and belongs to another parameter. So a map is
//! accepted only where it is said, or where nothing else is possible; a guess is never accepted. Sources,
//! best first:
//!
//! 1. **Stored**: the state is keyed by name or carries `param_names`.
//! 2. **File**: the user names a file with the names in the optimizer's order.
//! 3. **Shapes**: every entry's shape occurs once in the state and once in the model. No order is needed.
//! 4. **Order**: the model's order of definition is known (a `pytorch_model.bin` or a state dict beside the
//!    optimizer; safetensors files are sorted and know no order), and the parameters were given to the
//!    optimizer in that order.
//! 5. **Group rule**: as 4, and the parameters were split into two groups by a rule of a known trainer, each
//!    in the model's order.
//!
//! For 4 and 5 the hypotheses are a short list. One *fits* when every group's parameters can be laid onto the
//! group's part of the model, in order, with every shape matching, the group without decay has weight decay
//! 0, and no other layout is possible. Frozen parameters and buffers are in the model and not in the
//! optimizer, so a layout may leave tensors out: it is the only one exactly if laying from the left and
//! laying from the right give the same. If two hypotheses fit and differ, or one leaves two layouts, the
//! state is refused and the way to write a names file is printed.
//!
//! With several groups, 4 needs more: a trainer may list the head before the body, or pick a group's
//! parameters by name, and layers of equal shapes then fit the order of definition all the same. So the order
//! through all groups is accepted only where the shapes settle what each group holds, whichever tensors it
//! was made from (in the model's order), or where a group rule says the same.
//!
//! Every source is checked against every shape. Wrappers' parts of names (`module.`, `_orig_mod.`, …) are
//! dropped where the model lacks them; two names that become one are refused. Parameters without an entry
//! (frozen, or never given a gradient) are absent from the map.

mod lookup;
mod question;
mod rules;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use question::Question;
pub use rules::GroupRule;

use super::optimizer::OptimizerState;
use crate::error::{Error, Result, printable};

/// A parameter of the model: its name and shape.
pub type Param = (String, Vec<u64>);

/// Where a map of names comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameSource {
    /// The state itself.
    Stored,
    /// A names file.
    File(PathBuf),
    /// Shapes that each occur once.
    Shapes,
    /// The model's order of definition, through all groups.
    Order,
    /// The model's order of definition inside groups made by a known rule.
    GroupRule(GroupRule),
}

impl fmt::Display for NameSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stored => f.write_str("names stored in the optimizer state"),
            Self::File(path) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                write!(f, "the names file {}", printable(&name))
            }
            Self::Shapes => f.write_str("shapes: each occurs once in the state and once in the model"),
            Self::Order => f.write_str("the model's order of definition"),
            Self::GroupRule(rule) => write!(f, "the model's order of definition, grouped: {rule}"),
        }
    }
}

impl Serialize for NameSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What else is known about names.
#[derive(Clone, Copy, Debug, Default)]
pub struct NameHints<'a> {
    /// A names file: a JSON list or one name per line, in the order of the optimizer's parameters.
    pub names_file: Option<&'a Path>,
    /// The model's floating-point tensors in their order of definition ([`super::ModelParams::definition_order`]).
    pub definition_order: Option<&'a [String]>,
}

/// A resolved name of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The entry's index in [`OptimizerState::entries`].
    pub entry: usize,
    /// The model's own name of the parameter.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
}

/// The map from entries to the model's names.
#[derive(Clone, Debug)]
pub struct NameMap {
    /// One for every entry, in the entries' order.
    pub named: Vec<Named>,
    /// The evidence.
    pub source: NameSource,
    /// Names that lost a wrapper's part: as given, and the model's.
    pub renamed: Vec<(String, String)>,
    /// Tensors of the model without an entry: frozen, never given a gradient, tied or no parameters at all.
    pub absent: Vec<String>,
}

/// Map every entry of `state` to a tensor of `model`. `max` as in [`OptimizerState::accumulator`].
///
/// # Errors
/// [`Error::Mismatch`] where the evidence does not suffice or contradicts itself, listing what is open and
/// how to settle it; [`Error::Tensor`] where an entry has no accumulator; [`Error::File`] where the names
/// file cannot be read.
pub fn resolve(state: &OptimizerState, model: &[Param], hints: NameHints<'_>, max: bool) -> Result<NameMap> {
    let question = Question::new(state, model, max)?;
    let file = hints.names_file.map(|path| question.by_file(path)).transpose()?;
    if let Some(stored) = question.by_stored_names()? {
        return match file {
            Some(file) if file.named != stored.named => Err(Error::mismatch(
                OP,
                format!("{} contradicts the names stored in the state; leave --names out", file.source),
            )),
            _ => Ok(stored),
        };
    }
    if let Some(map) = file {
        return Ok(map);
    }
    question.every_shape_occurs()?;
    if let Some(map) = question.by_shapes() {
        return Ok(map);
    }
    question.by_order(hints.definition_order)
}

const OP: &str = "extract";

/// How to write a names file.
pub const SNIPPET: &str = r#"
Write a names file where the optimizer lives (Trainer: model = trainer.model, optimizer = trainer.optimizer), then pass --names parameters.json:
  import json
  name_of = {id(p): n for n, p in model.named_parameters()}
  names = [name_of[id(p)] for g in optimizer.param_groups for p in g["params"]]
  with open("parameters.json", "w") as f:
      json.dump(names, f)"#;
