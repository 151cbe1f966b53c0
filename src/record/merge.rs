//! Merges that take several steps, block by block on the host.

use super::host::HostStep;
use super::{Recording, Step, check_views, overlap, same_buffer};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::kernel::{Args, Cost, Kernel};
use crate::kernels::merge::{
    COUNT_STRIDE, FOUR_COUNT_WORDS, Fisher, FisherArgs, FisherFour, FisherFourArgs, FisherFourParams,
    FisherParams,
};
use crate::memory::{Element, View};

/// One step of a merge.
#[derive(Clone, Debug)]
pub struct MergeStep {
    /// Which step it is, and the types of its buffers.
    pub kernel: Fisher,
    /// The models' weights.
    pub params: FisherParams,
    /// The buffers.
    pub args: FisherArgs,
}

impl Recording {
    /// Appends the steps of one merge, in order, over the same parameters. On the host they are run block by block,
    /// which spares the state between them; what it holds afterwards is not defined. The result has the bits of the
    /// steps dispatched one by one.
    ///
    /// # Errors
    /// [`Error::Argument`] if the steps are not those of one merge, and as [`Recording::dispatch`].
    pub fn merge(&mut self, steps: Vec<MergeStep>) -> Result<&mut Self> {
        check_order(&steps)?;
        if steps.len() < 2 || !matches!(self.backend, Backend::Host) || writes_inputs(&steps) {
            self.dispatch_steps(steps)?;
            return Ok(self);
        }
        let mut cost = Cost::default();
        for MergeStep { kernel, params, args } in &steps {
            kernel.launch(params, args, &self.caps)?;
            check_views::<Fisher>(args, &self.backend, &self.caps)?;
            let step = kernel.cost(params, args);
            // What a step hands on to the next is not moved.
            let state = 16 * u64::from(params.len) * (u64::from(!kernel.first) + u64::from(!kernel.last));
            cost.bytes += step.bytes - state;
            cost.flops += step.flops;
        }
        if steps[0].params.len > 0 {
            self.steps.push(Step::Host(HostStep::merge(steps, cost)));
        }
        Ok(self)
    }

    /// A dispatch for each step, or for two where that suits the device.
    fn dispatch_steps(&mut self, steps: Vec<MergeStep>) -> Result<()> {
        let mut steps = steps.into_iter().peekable();
        while let Some(MergeStep { kernel, params, args }) = steps.next() {
            let both = steps.peek().and_then(|next| self.counts_of_both(&kernel, &args, next));
            let next = steps.next_if(|_| both.is_some());
            if let Some((counts, second)) = both.zip(next) {
                let params = FisherFourParams::of(params, second.params);
                let args = FisherFourArgs::of(args, second.args, counts);
                self.dispatch(&FisherFour { first: kernel, second: second.kernel }, params, args)?;
            } else {
                self.dispatch(&kernel, params, args)?;
            }
        }
        Ok(())
    }

    /// The counts of two steps, where they lie as one dispatch of both leaves them and the device has such dispatches.
    fn counts_of_both(&self, first: &Fisher, args: &FisherArgs, next: &MergeStep) -> Option<View> {
        let MergeStep { kernel: second, args: of_second, .. } = next;
        let fits = FisherFour::suits(&self.caps) && first.pair && first.floored == second.floored;
        let (counts, others) = (&args.counts, &of_second.counts);
        let beside = others.offset() == counts.offset() + 4 * COUNT_STRIDE;
        let both =
            View::new(counts.memory().clone(), counts.offset(), FOUR_COUNT_WORDS, Element::U32).ok()?;
        // One dispatch would read and write what two do one after the other.
        let apart = inputs(args).iter().all(|input| !same_buffer(input, &of_second.merged));
        (fits && beside && apart && overlap(&both, others)).then_some(both)
    }
}

/// The first step starts from nothing, the last one writes the result, all are over the same parameters, and the
/// reference of all is the first model.
fn check_order(steps: &[MergeStep]) -> Result<()> {
    let last = steps.len().saturating_sub(1);
    let in_order = |(at, MergeStep { kernel, params, args }): (usize, &MergeStep)| {
        let of_first = at == 0 || is_same(&args.reference, &steps[0].args.theta_a);
        let len = steps[0].params.len;
        kernel.first == (at == 0) && kernel.last == (at == last) && params.len == len && of_first
    };
    if !steps.is_empty() && steps.iter().enumerate().all(in_order) {
        return Ok(());
    }
    let problem = "expected a first step, a last step, all of the same length, and the first model as the reference of all";
    Err(Error::argument("merge", problem))
}

/// Whether the result lies where an earlier step reads: it may be written only after all blocks of that step then.
fn writes_inputs(steps: &[MergeStep]) -> bool {
    let merged = &steps[steps.len() - 1].args.merged;
    steps.iter().any(|step| inputs(&step.args).iter().any(|input| overlap(input, merged)))
}

/// Whether two views are of the same elements.
fn is_same(a: &View, b: &View) -> bool {
    let apart = (a.offset(), a.len(), a.element()) != (b.offset(), b.len(), b.element());
    overlap(a, b) && !apart
}

/// What a step reads, in the order of its bindings.
pub(super) fn inputs(args: &FisherArgs) -> [View; 5] {
    let views = args.views();
    std::array::from_fn(|binding| views[binding].clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Checked;
    use crate::kernels::merge::{COUNT_WORDS, state_words};

    /// Steps that merge three models of 5000 parameters, the last one into `merged` (or its own buffer), and
    /// that buffer.
    fn three(merged: impl Fn(&[View]) -> Option<View>) -> (Vec<MergeStep>, View) {
        let host = Backend::Host;
        let len = 5000_u32;
        let values = |m: u32| (0..len).map(|p| ((p * 7 + m * 13) % 101) as f32).collect::<Vec<_>>();
        let models: Vec<View> =
            (0..6).map(|m| host.buffer(&values(m), Element::F32).expect("a small buffer")).collect();
        let alloc = |len: u64, element| host.alloc(len, element).expect("a small buffer");
        let merged = merged(&models).unwrap_or_else(|| alloc(len.into(), Element::F32));
        let state = alloc(state_words(len.into()), Element::U32);
        let bench = Fisher::bench(len.into());
        let step = |at: usize| {
            let (first, a, b) = (at == 0, 2 * at, (2 * at + 1).min(2));
            let kernel = Fisher { first, last: !first, pair: first, ..bench.kernel };
            let spare = alloc(8, Element::F32);
            let args = FisherArgs {
                theta_a: models[a].clone(),
                fisher_a: models[3 + a].clone(),
                theta_b: models[b].clone(),
                fisher_b: models[3 + b].clone(),
                reference: models[0].clone(),
                state: state.clone(),
                merged: if first { spare } else { merged.clone() },
                counts: alloc(COUNT_WORDS, Element::U32),
            };
            MergeStep { kernel, params: bench.params, args }
        };
        let steps = vec![step(0), step(1)];
        (steps, merged)
    }

    fn merged((steps, merged): (Vec<MergeStep>, View)) -> Vec<u32> {
        let mut recording = Recording::new(&Backend::Host);
        recording.merge(steps).expect("the steps are those of one merge");
        Backend::Host.run(&recording).expect("the host is there");
        Backend::Host.download(&merged).expect("the host's memory")
    }

    /// The second model is read by the first step alone, so the last one may write over it.
    #[test]
    fn a_result_may_lie_where_an_earlier_step_reads() {
        let apart = merged(three(|_| None));
        assert!(apart.iter().any(|&word| word != 0));
        assert_eq!(apart, merged(three(|models| Some(models[1].clone()))));
    }

    #[test]
    fn steps_of_several_merges_are_refused() {
        let mut recording = Recording::new(&Backend::Host);
        let (steps, _) = three(|_| None);
        for wrong in [vec![], steps[..1].to_vec(), steps[1..].to_vec(), [&steps[..], &steps[..]].concat()] {
            assert!(matches!(recording.merge(wrong), Err(Error::Argument { .. })));
        }
        let mut shorter = steps;
        shorter[1].params.len -= 1;
        assert!(matches!(recording.merge(shorter), Err(Error::Argument { .. })));
        let (mut strange, _) = three(|_| None);
        strange[1].args.reference = strange[0].args.theta_b.clone();
        assert!(matches!(recording.merge(strange), Err(Error::Argument { .. })));
        assert!(recording.is_empty());
    }
}
