//! The answers that the evidence allows: by names, by shapes, by order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::Path;

use super::lookup::{Lookup, is_running_statistic};
use super::rules::GroupRule;
use super::{NameMap, NameSource, Named, OP, Param, SNIPPET};
use crate::checkpoint::optimizer::OptimizerState;
use crate::error::{Error, Result, printable};
use crate::shape::shape_text;

/// What has to be answered: the entries' shapes against the model's.
pub(super) struct Question<'a> {
    state: &'a OptimizerState,
    model: &'a [Param],
    /// The shape of each entry's parameter.
    shapes: Vec<Vec<u64>>,
    lookup: Lookup<'a>,
}

impl<'a> Question<'a> {
    pub(super) fn new(state: &'a OptimizerState, model: &'a [Param], max: bool) -> Result<Self> {
        if state.entries().is_empty() {
            let problem = "its state is empty: SGD without momentum keeps none, and neither does an optimizer before its first step";
            return Err(Error::file(state.path(), problem));
        }
        let shape = |entry| state.param_shape(entry, state.accumulator(entry, max)?);
        let shapes = state.entries().iter().map(shape).collect::<Result<Vec<_>>>()?;
        Ok(Self { state, model, shapes, lookup: Lookup::new(model) })
    }

    fn mismatch<T>(&self, problem: impl fmt::Display) -> Result<T> {
        Err(Error::mismatch(OP, format!("{}: {problem}", self.state.path().display())))
    }

    /// Finish a map from the model's index of every entry.
    fn map(&self, source: NameSource, indices: &[usize], renamed: Vec<(String, String)>) -> NameMap {
        let taken: HashSet<usize> = indices.iter().copied().collect();
        let named = indices
            .iter()
            .enumerate()
            .map(|(entry, &at)| Named {
                entry,
                name: self.model[at].0.clone(),
                shape: self.model[at].1.clone(),
            })
            .collect();
        let absent =
            (0..self.model.len()).filter(|at| !taken.contains(at)).map(|at| self.model[at].0.clone());
        NameMap { named, source, renamed, absent: absent.collect() }
    }

    pub(super) fn by_stored_names(&self) -> Result<Option<NameMap>> {
        let names: Option<Vec<&str>> = self.state.entries().iter().map(|e| e.name.as_deref()).collect();
        names.map(|names| self.by_names(NameSource::Stored, &names)).transpose()
    }

    pub(super) fn by_file(&self, path: &Path) -> Result<NameMap> {
        let names = read_names(path)?;
        let count = self.state.param_count();
        if names.len() != count {
            return self.mismatch(format!(
                "the names file {} has {} names, the optimizer lists {count} parameters{}",
                path.display(),
                names.len(),
                SNIPPET
            ));
        }
        let mut seen = HashSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
            return self.mismatch(format!(
                "the names file {} has {} twice",
                path.display(),
                printable(twice)
            ));
        }
        let of_entries: Vec<&str> = self.state.entries().iter().map(|e| names[e.position].as_str()).collect();
        self.by_names(NameSource::File(path.to_owned()), &of_entries).map_err(|error| match error {
            Error::Mismatch { op, problem } => {
                Error::Mismatch { op, problem: problem + &self.regrouped(&names) }
            }
            other => other,
        })
    }

    /// What to say of names that do not fit as they stand, and fit grouped as a known trainer groups them:
    /// `named_parameters()` gives the model's order. Nothing where no rule fits, or where two do and differ.
    fn regrouped(&self, names: &[String]) -> String {
        let Some(order) = names.iter().map(|name| self.lookup.find(name)).collect::<Option<Vec<usize>>>()
        else {
            return String::new();
        };
        let fitting = self.hypotheses(&order).into_iter().filter_map(|(source, parts)| {
            match (source, self.lay(&parts)) {
                (NameSource::GroupRule(rule), Laid::Only(indices)) => Some((rule, indices)),
                _ => None,
            }
        });
        let fitting: Vec<_> = fitting.collect();
        match fitting.split_first() {
            Some(((rule, indices), others)) if others.iter().all(|(_, other)| other == indices) => format!(
                "\nThese are in the model's order, not the optimizer's: grouped they fit, in one way only ({rule}). Write the names in that \
                 order if the trainer grouped them so.{SNIPPET}"
            ),
            _ => String::new(),
        }
    }

    /// The map that `names`, one per entry, say; checked against the model.
    fn by_names(&self, source: NameSource, names: &[&str]) -> Result<NameMap> {
        let (mut indices, mut renamed, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        let mut owner: HashMap<usize, &str> = HashMap::new();
        for (&name, shape) in names.iter().zip(&self.shapes) {
            let Some(at) = self.lookup.find(name) else {
                problems.push(format!("{} {} is not in the model", printable(name), shape_text(shape)));
                continue;
            };
            let (own, expected) = &self.model[at];
            if let Some(other) = owner.insert(at, name) {
                problems.push(format!(
                    "{} and {} are both the model's {}",
                    printable(other),
                    printable(name),
                    printable(own)
                ));
            } else if expected != shape {
                let (got, expected) = (shape_text(shape), shape_text(expected));
                problems
                    .push(format!("{} is {got} in the state and {expected} in the model", printable(name)));
            }
            if own != name {
                renamed.push((name.to_owned(), own.clone()));
            }
            indices.push(at);
        }
        if problems.is_empty() {
            return Ok(self.map(source, &indices, renamed));
        }
        let verb = if matches!(source, NameSource::File(_)) { "does" } else { "do" };
        self.mismatch(format!("{source} {verb} not fit the model: {}", listed(&problems, problems.len())))
    }

    /// A shape that the model lacks, or has less often, shows that the state is another model's.
    pub(super) fn every_shape_occurs(&self) -> Result<()> {
        let in_model = census(self.model.iter().map(|(_, shape)| shape.as_slice()));
        let in_state = census(self.shapes.iter().map(Vec::as_slice));
        let short: Vec<String> = in_state
            .iter()
            .filter_map(|(shape, entries)| {
                let there = in_model.get(shape).map_or(0, Vec::len);
                (there < entries.len())
                    .then(|| format!("{} × {}, the model has {there}", entries.len(), shape_text(shape)))
            })
            .collect();
        if short.is_empty() {
            return Ok(());
        }
        self.mismatch(format!("the state is not this model's: it has {}", listed(&short, short.len())))
    }

    /// Accepted only where no other assignment has the same shapes.
    pub(super) fn by_shapes(&self) -> Option<NameMap> {
        let in_model = census(self.model.iter().map(|(_, shape)| shape.as_slice()));
        let in_state = census(self.shapes.iter().map(Vec::as_slice));
        let only = |shape: &Vec<u64>| match (
            in_state.get(shape.as_slice())?.len(),
            in_model.get(shape.as_slice())?.as_slice(),
        ) {
            (1, &[at]) => Some(at),
            _ => None,
        };
        let indices = self.shapes.iter().map(only).collect::<Option<Vec<usize>>>()?;
        Some(self.map(NameSource::Shapes, &indices, Vec::new()))
    }

    pub(super) fn by_order(&self, given: Option<&[String]>) -> Result<NameMap> {
        let beside = self.state.model_orders();
        let orders: Vec<&[String]> = given.into_iter().chain(beside.iter().map(Vec::as_slice)).collect();
        let orders: Vec<Vec<usize>> =
            orders.into_iter().filter_map(|order| self.whole_order(order)).collect();
        let mut fits = Vec::new();
        let mut notes = Vec::new();
        for order in &orders {
            for (source, parts) in self.hypotheses(order) {
                match self.lay(&parts) {
                    Laid::Only(indices) => {
                        let certain = source != NameSource::Order || self.groups_are_settled(order);
                        fits.push(Fit { source, indices, certain });
                    }
                    Laid::Several => notes.push(format!("{source} leaves more than one possibility")),
                    Laid::Never => {}
                }
            }
        }
        let Some(first) = fits.first() else {
            return Err(match orders.is_empty() {
                true => self.refuse(NO_ORDER, &notes, ORDER_SNIPPET),
                false => self.refuse(NO_RULE, &notes, ""),
            });
        };
        if let Some(other) = fits.iter().find(|other| other.indices != first.indices) {
            notes = vec![format!("{} and {} both fit and differ", first.source, other.source)];
            return Err(self.refuse("two rules give different maps", &notes, ""));
        }
        // A hypothesis that fits in several ways could be the true one, and then differ.
        if !notes.is_empty() {
            notes.insert(0, format!("{} fits", first.source));
            return Err(self.refuse("more than one rule is possible", &notes, ""));
        }
        match fits.iter().find(|fit| fit.certain) {
            Some(fit) => Ok(self.map(fit.source.clone(), &fit.indices, Vec::new())),
            None => {
                let note = format!(
                    "{} fits, and with the parameters in other groups it could fit otherwise",
                    first.source
                );
                Err(self.refuse("the groups could have been made in more than one way", &[note], ""))
            }
        }
    }

    /// Whether the shapes alone say what each group holds; of one group, there is no question.
    fn groups_are_settled(&self, order: &[usize]) -> bool {
        let groups = 0..self.state.groups().len();
        groups.len() == 1 || are_settled(groups.map(|group| self.params_of(&[group])), order, self.model)
    }

    /// An order as indices into the model. Nothing where one of the two has a tensor that the other lacks:
    /// the optimizer may know it, and another of its shape would stand in its place.
    fn whole_order(&self, order: &[String]) -> Option<Vec<usize>> {
        let indices: Vec<usize> = order.iter().map(|name| self.lookup.find(name)).collect::<Option<_>>()?;
        let distinct: HashSet<usize> = indices.iter().copied().collect();
        let whole = distinct.len() == indices.len() && indices.len() == self.model.len();
        whole.then(|| indices.into_iter().filter(|&at| !is_running_statistic(&self.model[at].0)).collect())
    }

    /// Each hypothesis with the part of the model that each group would have been made from.
    fn hypotheses(&self, order: &[usize]) -> Vec<(NameSource, Vec<Part>)> {
        let groups = self.state.groups();
        let whole = Part { groups: (0..groups.len()).collect(), tensors: order.to_vec() };
        let mut all = vec![(NameSource::Order, vec![whole])];
        if groups.len() != 2 {
            return all;
        }
        for rule in GroupRule::ALL {
            let without = rule.group_without_decay();
            if groups[without].weight_decay != 0.0 {
                continue;
            }
            let (last, first): (Vec<usize>, Vec<usize>) = order.iter().partition(|&&at| {
                let (name, shape) = &self.model[at];
                rule.without_decay(name, shape)
            });
            let parts = vec![
                Part { groups: vec![1 - without], tensors: first },
                Part { groups: vec![without], tensors: last },
            ];
            all.push((NameSource::GroupRule(rule), parts));
        }
        all
    }

    /// Lay the parameters of each part's groups onto its tensors, in order.
    fn lay(&self, parts: &[Part]) -> Laid {
        let mut indices = vec![None; self.shapes.len()];
        let mut several = false;
        for part in parts {
            let params = self.params_of(&part.groups);
            let Some((left, right)) = both_ends(&params, &part.tensors, self.model) else {
                return Laid::Never;
            };
            for ((entry, l), r) in params.iter().map(|p| p.entry).zip(left).zip(right) {
                let Some(entry) = entry else { continue };
                several |= l != r;
                indices[entry] = Some(l);
            }
        }
        match (several, indices.into_iter().collect()) {
            (false, Some(indices)) => Laid::Only(indices),
            _ => Laid::Several,
        }
    }

    /// The parameters that some groups list, in order; those without an entry have an unknown shape.
    fn params_of(&self, groups: &[usize]) -> Vec<Laying<'_>> {
        let entry_at: HashMap<usize, usize> =
            self.state.entries().iter().enumerate().map(|(index, e)| (e.position, index)).collect();
        let mut position = 0;
        let mut params = Vec::new();
        for (index, group) in self.state.groups().iter().enumerate() {
            for _ in &group.params {
                if groups.contains(&index) {
                    let entry = entry_at.get(&position).copied();
                    params.push(Laying { entry, shape: entry.map(|e| self.shapes[e].as_slice()) });
                }
                position += 1;
            }
        }
        params
    }

    /// The refusal: what is open, and how to settle it.
    fn refuse(&self, why: &str, notes: &[String], remedy: &str) -> Error {
        let in_model = census(self.model.iter().map(|(_, shape)| shape.as_slice()));
        let in_state = census(self.shapes.iter().map(Vec::as_slice));
        let mut open = Vec::new();
        for (shape, entries) in &in_state {
            let names = in_model.get(shape).map(Vec::as_slice).unwrap_or_default();
            if entries.len() == 1 && names.len() == 1 {
                continue;
            }
            let ids: Vec<String> = entries.iter().map(|&e| self.state.entries()[e].id.to_string()).collect();
            let names: Vec<String> = names.iter().map(|&at| printable(&self.model[at].0)).collect();
            open.push(format!(
                "\n  {}: ids {} could be {}",
                shape_text(shape),
                listed(&ids, ids.len()),
                listed(&names, names.len())
            ));
        }
        let notes: String = notes.iter().map(|note| format!("\n  {note}")).collect();
        let shown = open.len().min(8);
        let more = if open.len() > shown {
            format!("\n  and {} more shapes", open.len() - shown)
        } else {
            String::new()
        };
        let hint = self.names_file_nearby();
        Error::mismatch(
            OP,
            format!(
                "{}: which parameter each id means is not certain: {why}{notes}{}{more}{hint}{remedy}{SNIPPET}",
                self.state.path().display(),
                open[..shown].concat()
            ),
        )
    }

    /// A names file beside the optimizer is pointed out, never read without being asked.
    fn names_file_nearby(&self) -> String {
        let nearby = self.state.path().with_file_name("parameters.json");
        if !nearby.is_file() {
            return String::new();
        }
        format!(
            "\nThere is a parameters.json beside it; if it has this optimizer's order, pass --names {}",
            nearby.display()
        )
    }
}

const NO_ORDER: &str =
    "equal shapes, and the model's order of definition is unknown (safetensors files are sorted)";
/// How to tell the order where nothing is left but files.
const ORDER_SNIPPET: &str = r#"
The model's order mostly settles it, and needs no trainer: a pytorch_model.bin of the model has it, and so has the file that these lines write
(with the class that was trained, and your folder). Then pass --model order.pt:
  import torch, transformers
  torch.save(transformers.AutoModelForCausalLM.from_pretrained("run-a").state_dict(), "order.pt")
Or:"#;
const NO_RULE: &str = "no known order or grouping rule fits in exactly one way";

/// Some groups, and the tensors they would have been made from, in order.
struct Part {
    groups: Vec<usize>,
    tensors: Vec<usize>,
}

/// A parameter to lay: its entry, and its shape where it has one.
#[derive(Clone, Copy)]
struct Laying<'a> {
    entry: Option<usize>,
    shape: Option<&'a [u64]>,
}

/// A hypothesis that fits in one way, and whether it says itself what each group holds.
struct Fit {
    source: NameSource,
    indices: Vec<usize>,
    certain: bool,
}

enum Laid {
    Only(Vec<usize>),
    Several,
    Never,
}

/// Whether the shapes alone say what each group holds, if every group keeps the model's order and nothing
/// else is known of them: a trainer may list the head before the body, or pick the parameters of a group by
/// name. The groups must fit in one way at least.
///
/// A group that is laid alone, from the left and from the right, tells between which tensors each of its
/// parameters lies. Where both agree the tensor is taken, and the other groups are laid around it, until
/// nothing more is settled. What is settled so is certain; what is not may still have one answer, and is
/// refused: to search for a second one takes a time exponential in the groups.
fn are_settled<'a>(groups: impl Iterator<Item = Vec<Laying<'a>>>, order: &[usize], model: &[Param]) -> bool {
    let mut open: Vec<_> = groups.enumerate().collect();
    // The group that has each tensor of the model.
    let mut owner: Vec<Option<usize>> = vec![None; model.len()];
    loop {
        let (mut settled, groups) = (0, open.len());
        open.retain(|(group, params)| {
            let free = |at: &usize| owner[*at].is_none_or(|by| by == *group);
            let tensors: Vec<usize> = order.iter().copied().filter(free).collect();
            let Some((left, right)) = both_ends(params, &tensors, model) else { return true };
            let mut is_open = false;
            for (param, (l, r)) in params.iter().zip(left.into_iter().zip(right)) {
                if l == r {
                    settled += usize::from(owner[l].replace(*group).is_none());
                } else {
                    is_open |= param.entry.is_some();
                }
            }
            is_open
        });
        if open.is_empty() {
            return true;
        }
        if settled == 0 && open.len() == groups {
            return false;
        }
        // What settles one group may settle its neighbour, on either side.
        open.reverse();
    }
}

/// The layout that takes every tensor as early as possible.
fn leftmost(params: &[Laying<'_>], tensors: &[usize], model: &[Param]) -> Option<Vec<usize>> {
    let mut rest = tensors.iter();
    let fits = |param: &Laying<'_>, at: usize| param.shape.is_none_or(|shape| shape == model[at].1);
    params.iter().map(|param| rest.by_ref().copied().find(|&at| fits(param, at))).collect()
}

/// The layouts that take every tensor as early and as late as possible.
fn both_ends(params: &[Laying<'_>], tensors: &[usize], model: &[Param]) -> Option<(Vec<usize>, Vec<usize>)> {
    let left = leftmost(params, tensors, model)?;
    let backwards: Vec<_> = params.iter().rev().copied().collect();
    let mut right = leftmost(&backwards, &tensors.iter().rev().copied().collect::<Vec<_>>(), model)?;
    right.reverse();
    Some((left, right))
}

/// Positions by shape, shapes in order.
fn census<'a>(shapes: impl Iterator<Item = &'a [u64]>) -> BTreeMap<&'a [u64], Vec<usize>> {
    let mut all: BTreeMap<&[u64], Vec<usize>> = BTreeMap::new();
    for (position, shape) in shapes.enumerate() {
        all.entry(shape).or_default().push(position);
    }
    all
}

/// The first five, and how many more there are.
fn listed(items: &[String], count: usize) -> String {
    let some = items[..items.len().min(5)].join(", ");
    if count > 5 { format!("{some} and {} more", count - 5) } else { some }
}

/// The names of a names file: a JSON list of texts, or one name per line (blank lines are skipped).
fn read_names(path: &Path) -> Result<Vec<String>> {
    const MOST: u64 = 64 << 20;
    let bytes = std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?.len();
    if bytes > MOST {
        return Err(Error::file(path, format!("has {bytes} bytes; a names file has at most {MOST}")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData => {
            Error::file(path, "is not UTF-8; expected a JSON list of names or one name per line")
        }
        _ => Error::io("read", path, e),
    })?;
    if text.trim_start().starts_with(['[', '{']) {
        return serde_json::from_str(&text).map_err(|e| {
            Error::file(path, format!("is not a JSON list of names ({e}); expected [\"a.weight\", …]"))
        });
    }
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way to lay the groups, as the tensors of all their parameters that have an entry.
    fn layouts(
        groups: &[Vec<Laying<'_>>],
        model: &[Param],
        taken: &mut Vec<Vec<usize>>,
        all: &mut HashSet<Vec<usize>>,
    ) {
        let Some(group) = groups.iter().zip(&*taken).position(|(group, taken)| taken.len() < group.len())
        else {
            let pairs = groups.iter().flatten().zip(taken.iter().flatten());
            all.insert(pairs.filter(|(param, _)| param.entry.is_some()).map(|(_, &at)| at).collect());
            return;
        };
        let param = groups[group][taken[group].len()];
        let first = taken[group].last().map_or(0, |last| last + 1);
        for at in first..model.len() {
            let fits = param.shape.is_none_or(|shape| shape == model[at].1);
            if fits && !taken.iter().flatten().any(|&other| other == at) {
                taken[group].push(at);
                layouts(groups, model, taken, all);
                taken[group].pop();
            }
        }
    }

    /// Small models whose tensors are dealt to groups, or to none, at random: what is called settled has one layout.
    #[test]
    fn settled_groups_have_one_layout() {
        let mut state = 1_u64;
        let mut next = |most: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % most
        };
        let (mut unique, mut settled) = (0, 0);
        for case in 0..4000 {
            let (shapes, groups) = (1 + next(4), 2 + next(2));
            let model: Vec<Param> =
                (0..2 + next(5)).map(|at| (format!("p{at}"), vec![next(shapes)])).collect();
            let mut dealt: Vec<Vec<Laying<'_>>> = vec![Vec::new(); usize::try_from(groups).expect("few")];
            for (at, (_, shape)) in model.iter().enumerate() {
                // One in nine is frozen, and one in nine has no state.
                let known = next(9) > 0;
                let param = Laying { entry: known.then_some(at), shape: known.then_some(shape.as_slice()) };
                if let (true, Ok(group)) = (next(9) > 0, usize::try_from(next(groups))) {
                    dealt[group].push(param);
                }
            }
            let order: Vec<usize> = (0..model.len()).collect();
            let mut all = HashSet::new();
            layouts(&dealt, &model, &mut vec![Vec::new(); dealt.len()], &mut all);
            let is_settled = are_settled(dealt.iter().cloned(), &order, &model);
            assert!(!is_settled || all.len() == 1, "case {case}: {} layouts of {model:?}", all.len());
            unique += usize::from(all.len() == 1);
            settled += usize::from(is_settled);
        }
        assert!(
            settled > unique * 9 / 10 && unique > 500,
            "{settled} settled of {unique} that have one layout"
        );
    }
}
