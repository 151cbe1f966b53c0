//! The outline of a PyTorch file: its dictionaries in the order they were written, its numbers and
//! texts, and the names of everything it imports. Nothing is imported, called or executed.
//!
//! Bytes of tensors are read by the crate `pytorch-reader`. What that crate cannot tell is read here from
//! the same pickle: the *order* of a dictionary (a state dict's order is the model's order of definition,
//! which is evidence for names), whether a key was a number or a text, and the list of imports, so that a
//! refusal can name them.
//!
//! | file | what it does |
//! |---|---|
//! | `containers` | finds the pickle in the archive, and refuses archives that `torch.save` does not write |
//! | `machine` | runs the pickle's operations, without calling anything |
//! | `operands` | reads the numbers and texts that follow an operation |
//! | `outline` | what is left: every value in one flat list |
//! | `state_dicts` | the dicts of names to tensors in it |

mod containers;
mod machine;
mod operands;
mod outline;
mod state_dicts;

pub(crate) use outline::{Id, Node, Outline};
pub(crate) use state_dicts::{is_float, state_dicts};
