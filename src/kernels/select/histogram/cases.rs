//! The cases, and what the definition says of them.

use super::{Histogram, HistogramParams, LOCAL_BINS};
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Fill, Want};
use crate::kernels::LENGTHS;
use crate::kernels::select::score::{Inputs, all_scores};
use crate::kernels::select::{STATE_WORDS, Score, Scores};
use crate::memory::Element;
use crate::reference;
use crate::shape::DType;

impl Checked for Histogram {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for scores in all_scores() {
            let inputs = Inputs::mixed(scores, 1, 5000);
            cases.push(case("coarse", true, &inputs, (0, 20, LOCAL_BINS)));
            cases.push(case("coarser", true, &inputs, (0, 24, 128)));
            cases.push(case("fine", false, &inputs, (0x3e80_0000, 12, 4096)));
        }
        let fish = all_scores()[0];
        for len in LENGTHS.into_iter().chain([65_535, 65_536, 65_537, 140_000]) {
            let inputs = Inputs::mixed(fish, 2, len);
            cases.push(case("lengths", true, &inputs, (0, 20, LOCAL_BINS)));
            cases.push(case("window inside", true, &inputs, (0x3e00_0000, 12, 1024)));
            cases.push(case("window inside", false, &inputs, (0x3e00_0000, 12, 4097)));
        }
        let equal = Inputs::new(fish, &[], &[0.25; 5000]);
        cases.push(case("all equal", true, &equal, (0x3e80_0000, 0, 1)));
        // More scores in a large window than it has bins.
        let many = Inputs::new(fish, &[], &[0.25; 300_000]);
        cases.push(case("all equal", false, &many, (0x3e80_0000, 0, 4096)));
        cases.push(case("just above", true, &equal, (0x3e80_0001, 0, 2)));
        cases.push(case("just below", true, &equal, (0x3e7f_ff00, 0, 256)));
        let edge = [0.0, -0.0, 1e-45, f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)];
        cases.push(case("extremes", true, &Inputs::new(fish, &[], &edge), (0, 20, LOCAL_BINS)));
        cases.push(case("window beyond all scores", false, &equal, (0x3e80_0000, 20, 4096)));
        cases.extend(bad(fish));
        let sparse = |case: Case<Self>| Case {
            name: format!("{} sparse", case.name),
            kernel: Self { sparse: true, ..case.kernel },
            ..case
        };
        let local = |case: &&Case<Self>| case.kernel.local;
        let sparse: Vec<_> = cases.iter().filter(local).cloned().map(sparse).collect();
        cases.extend(sparse);
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        let len = u32::try_from(elements).unwrap_or(u32::MAX);
        let scores = Scores { score: Score::Fish, theta: DType::F32, fisher: DType::F32 };
        Bench {
            name: format!("{len} f32, 2048 bins"),
            kernel: Self { scores, local: true, sparse: false },
            params: HistogramParams { len, shift: 20, bins: LOCAL_BINS },
            buffers: vec![
                (DType::F32.into(), len.into(), Fill::Positive),
                (DType::F32.into(), len.into(), Fill::Positive),
                (Element::U32, STATE_WORDS, Fill::Zero),
                (Element::U32, u64::from(LOCAL_BINS) + 2, Fill::Zero),
                (Element::U32, 1, Fill::Zero),
            ],
        }
    }
}

fn case(name: &str, local: bool, inputs: &Inputs, (low, shift, bins): (u32, u32, u32)) -> Case<Histogram> {
    const BEFORE: u32 = 3;
    // Beyond the largest finite score there is only infinity.
    let edge = |i: u64| match u32::try_from(u64::from(low) + (i << shift)) {
        Ok(bits) if bits <= f32::INFINITY.to_bits() => f64::from(f32::from_bits(bits)),
        _ => f64::INFINITY,
    };
    let edges: Vec<f64> = (0..=u64::from(bins)).map(edge).collect();
    let below = inputs.values.iter().filter(|&&s| s < edges[0]).count();
    let within = reference::select::histogram(&inputs.values, &edges);
    let above = inputs.values.len() - below - within.iter().map(|&c| c as usize).sum::<usize>();
    let outside = |count: usize| u32::try_from(count).expect("cases are small");
    let want = std::iter::once(outside(below)).chain(within).chain([outside(above)]);
    let want = want.map(|count| Want::exact((count + BEFORE).into())).collect();
    Case {
        name: format!(
            "{name} {:?} local={local} p={} from {low:#x} by 2^{shift}",
            inputs.scores,
            inputs.len()
        ),
        kernel: Histogram { scores: inputs.scores, local, sparse: false },
        params: HistogramParams { len: inputs.len(), shift, bins },
        buffers: vec![
            inputs.theta.clone(),
            inputs.fisher.clone(),
            CaseBuffer::words(&[low, 7]),
            CaseBuffer::words(&vec![BEFORE; bins as usize + 2]),
            CaseBuffer::words(&[0]),
        ],
        want: vec![(3, want), (4, vec![Want::exact(0.0)])],
    }
}

/// One bad element among many, at the edges: it is not counted, and the first is told.
fn bad(scores: Scores) -> Vec<Case<Histogram>> {
    let values = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, -1e-45];
    let at = [0_usize, 1, 1023, 1024, 4999];
    let one = |(value, first): (f64, usize)| {
        let mut fisher = vec![1.0; 5000];
        fisher[first] = value;
        fisher[4999] = value;
        let bad = if first == 4999 { 1 } else { 2 };
        let mut case = case("bad", true, &Inputs::new(scores, &[], &[]), (0, 20, LOCAL_BINS));
        let buffer = CaseBuffer::floats(scores.fisher, &fisher);
        (case.buffers[0], case.buffers[1]) = (buffer.clone(), buffer);
        case.params.len = 5000;
        case.name = format!("bad {value} at {first}");
        case.want[0].1[1 + (1.0_f32.to_bits() >> 20) as usize] = Want::exact(f64::from(3 + 5000 - bad));
        case.want[1].1 = vec![Want::exact((!u32::try_from(first).expect("cases are small")).into())];
        case
    };
    values.into_iter().zip(at).map(one).collect()
}
