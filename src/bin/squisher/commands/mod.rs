//! The subcommands, one file each: its arguments with their help, and what it does with them.

pub(crate) mod adapters;
pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod distance;
pub(crate) mod embed;
pub(crate) mod ewc;
pub(crate) mod extract;
pub(crate) mod fisher;
pub(crate) mod inspect;
pub(crate) mod man;
pub(crate) mod mask;
pub(crate) mod merge;
pub(crate) mod prune;
pub(crate) mod report;
pub(crate) mod reset;
pub(crate) mod step;
pub(crate) mod verify;
