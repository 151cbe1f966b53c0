//! What to do where names and shapes of two models differ in a way that is known.

use crate::checkpoint::{Checkpoint, TensorInfo};

/// A sentence on how `other` can be made to fit `first`, where their differences have one of the usual
/// causes.
pub(super) fn remedy(first: &Checkpoint, other: &Checkpoint) -> Option<String> {
    let lacking = |a: &Checkpoint, b: &Checkpoint| -> Vec<String> {
        a.tensors().iter().map(|tensor| tensor.name.clone()).filter(|name| b.get(name).is_none()).collect()
    };
    let (missing, extra) = (lacking(first, other), lacking(other, first));
    prefix(&extra, first)
        .map(|prefix| (prefix, other))
        .or_else(|| prefix(&missing, other).map(|prefix| (prefix, first)))
        .map(|(prefix, with)| {
            let with = with.path().display();
            format!(
                "the names of {with} have \"{}\" before them: save both from one class of model",
                prefix.escape_debug()
            )
        })
        .or_else(|| tied(&missing, &extra))
        .or_else(|| vocabulary(first, other).filter(|_| missing.is_empty() && extra.is_empty()))
}

/// What all of `names` begin with and `other`'s names do not.
fn prefix(names: &[String], other: &Checkpoint) -> Option<String> {
    let sample = names.first()?;
    let ends = sample.char_indices().filter(|(_, c)| *c == '.').map(|(at, _)| at + 1);
    let fits = |prefix: &&str| {
        names.iter().all(|name| name.strip_prefix(prefix).is_some_and(|rest| other.get(rest).is_some()))
    };
    ends.map(|end| &sample[..end]).find(fits).map(str::to_owned)
}

/// An output layer that one file has and the other ties to the embedding.
fn tied(missing: &[String], extra: &[String]) -> Option<String> {
    let (true, [only]) = (missing.is_empty() || extra.is_empty(), &[missing, extra].concat()[..]) else {
        return None;
    };
    only.ends_with("lm_head.weight").then(|| {
        "one model stores its output layer, the other ties it to the embedding: save both with the same tie_word_embeddings".to_owned()
    })
}

/// Tables of more rows in one model, and nothing else.
fn vocabulary(first: &Checkpoint, other: &Checkpoint) -> Option<String> {
    let pairs = first.tensors().iter().filter_map(|tensor| Some((tensor, other.get(&tensor.name)?)));
    let mut sizes = pairs.filter(|(a, b)| a.shape != b.shape).map(|(a, b)| rows(a, b));
    let (ours, theirs) = sizes.next()??;
    sizes.all(|size| size == Some((ours, theirs))).then(|| {
        format!(
            "the vocabularies have {ours} and {theirs} rows: give both models one tokenizer \
             (resize_token_embeddings), with every token at the same row"
        )
    })
}

/// The first axes of two shapes that differ in nothing else.
fn rows(a: &TensorInfo, b: &TensorInfo) -> Option<(u64, u64)> {
    let ((ours, rest), (theirs, others)) = (a.shape.split_first()?, b.shape.split_first()?);
    (rest == others && rest.len() == 1).then_some((*ours, *theirs))
}
