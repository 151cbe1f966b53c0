//! Plans, held to their promises by a checker that shares nothing with the planner: it walks the chunks as a run
//! would and adds up memory from the definition of a slot. No device, no file.

use std::collections::HashMap;

use proptest::prelude::*;
use squisher::stream::{Budget, Chunk, Direction, Layout, Memories, Plan, Stream, TensorSpec, Traffic};
use squisher::{DType, Error};

/// What a plan says of itself, open to being broken by the planted faults.
#[derive(Clone)]
struct Claims {
    chunks: Vec<Chunk>,
    slots: u64,
    elements: u64,
    scratch_bytes: u64,
    peak_device_bytes: u64,
    peak_host_bytes: u64,
    traffic: Traffic,
}

impl Claims {
    fn of(plan: &Plan) -> Self {
        Self {
            chunks: plan.chunks().to_vec(),
            slots: plan.slots().into(),
            elements: plan.elements(),
            scratch_bytes: plan.scratch_bytes(),
            peak_device_bytes: plan.peak_device_bytes(),
            peak_host_bytes: plan.peak_host_bytes(),
            traffic: plan.traffic(),
        }
    }
}

/// Checks every promise; the text names the first that is broken.
fn check(layout: &Layout, budget: &Budget, claims: &Claims) -> Result<(), String> {
    covers_once_in_order(layout, claims)?;
    chunks_are_dense_and_of_one_kind(layout, claims)?;
    lengths_are_whole_granules_and_even(claims)?;
    ring_fits(layout, budget, claims)?;
    traffic_is_the_size_of_the_tensors(layout, claims)
}

macro_rules! ensure {
    ($holds:expr, $($broken:tt)+) => {
        if !$holds {
            return Err(format!($($broken)+));
        }
    };
}

fn covers_once_in_order(layout: &Layout, claims: &Claims) -> Result<(), String> {
    let mut covered = vec![0_u64; layout.tensors.len()];
    for segment in claims.chunks.iter().flat_map(|chunk| &chunk.segments) {
        let next = &mut covered[segment.tensor];
        ensure!(segment.len > 0, "tensor {} has an empty segment", segment.tensor);
        ensure!(segment.start == *next, "tensor {}: {} after {next}", segment.tensor, segment.start);
        *next += segment.len;
    }
    for (tensor, (spec, covered)) in layout.tensors.iter().zip(&covered).enumerate() {
        ensure!(spec.elements == *covered, "tensor {tensor}: {covered} of {} covered", spec.elements);
    }
    let sum: u64 = covered.iter().sum();
    ensure!(claims.elements == sum, "claims {} elements of {sum}", claims.elements);
    Ok(())
}

fn chunks_are_dense_and_of_one_kind(layout: &Layout, claims: &Claims) -> Result<(), String> {
    for (index, chunk) in claims.chunks.iter().enumerate() {
        let mut end = 0;
        for segment in &chunk.segments {
            let tensor = &layout.tensors[segment.tensor];
            ensure!(segment.at == end, "chunk {index}: a segment at {} after {end}", segment.at);
            ensure!(tensor.class == chunk.class, "chunk {index}: a tensor of class {}", tensor.class);
            ensure!(tensor.dtypes == chunk.dtypes, "chunk {index}: a tensor of {:?}", tensor.dtypes);
            end += segment.len;
        }
        ensure!(end > 0 && end == chunk.elements, "chunk {index}: {} elements of {end}", chunk.elements);
    }
    Ok(())
}

fn lengths_are_whole_granules_and_even(claims: &Claims) -> Result<(), String> {
    let mut kinds: HashMap<(u32, &[DType]), Vec<u64>> = HashMap::new();
    for chunk in &claims.chunks {
        kinds.entry((chunk.class, &chunk.dtypes)).or_default().push(chunk.elements);
    }
    for (kind, lengths) in kinds {
        let (last, others) = lengths.split_last().expect("a kind is entered with its first chunk");
        let length = lengths[0];
        for &other in others {
            ensure!(other % 8 == 0, "{kind:?}: a chunk of {other} elements before the last");
            ensure!(other == length, "{kind:?}: chunks of {length} and of {other} elements");
        }
        ensure!(*last <= length, "{kind:?}: the last chunk has {last} of {length} elements");
        // Each of the others is rounded up by less than eight, all at the cost of the last.
        let count = lengths.len() as u64;
        let uneven = 16 * count <= length && last + 8 * count < length;
        ensure!(!uneven, "{kind:?}: {count} chunks of {length}, the last has {last}");
    }
    Ok(())
}

/// Bytes of a buffer of `elements`: 32-byte groups, at least one.
fn buffer_bytes(dtype: DType, elements: u64) -> u64 {
    let width = if dtype == DType::F32 { 4 } else { 2 };
    (elements * width).div_ceil(32).max(1) * 32
}

fn ring_fits(layout: &Layout, budget: &Budget, claims: &Claims) -> Result<(), String> {
    let chunks = &claims.chunks;
    ensure!(claims.slots <= u64::from(budget.slots).max(1), "{} slots of {}", claims.slots, budget.slots);
    ensure!(claims.slots <= chunks.len() as u64, "{} slots, {} chunks", claims.slots, chunks.len());
    ensure!(claims.slots > 0 || chunks.is_empty(), "no slot for {} chunks", chunks.len());

    let longest = chunks.iter().map(|chunk| chunk.elements).max().unwrap_or(0);
    let scratch = layout.scratch_bytes * longest;
    let (mut read, mut written) = (0, 0);
    for (index, stream) in layout.streams.iter().enumerate() {
        let widest = chunks.iter().map(|chunk| buffer_bytes(chunk.dtypes[index], chunk.elements)).max();
        let bytes = widest.unwrap_or(0);
        ensure!(bytes <= budget.max_binding_bytes, "stream {index}: a buffer of {bytes} bytes");
        *(if stream.direction == Direction::Read { &mut read } else { &mut written }) += bytes;
    }
    ensure!(claims.scratch_bytes >= scratch, "{} bytes of scratch, {scratch} needed", claims.scratch_bytes);
    ensure!(claims.scratch_bytes <= budget.max_binding_bytes, "scratch of {} bytes", claims.scratch_bytes);

    let ring = claims.slots * (read + written);
    ensure!(read + written <= 64 << 20, "a slot of {} bytes is larger than useful", read + written);
    let (device, host) = match budget.memories {
        Memories::Host => (0, ring + claims.scratch_bytes),
        Memories::Shared => (ring + claims.scratch_bytes, 0),
        Memories::Separate => (ring + claims.scratch_bytes, ring),
    };
    let within = |what: &str, need: u64, claimed: u64, allowed: u64| {
        ensure!(need <= claimed, "{what}: {claimed} bytes claimed, {need} used");
        ensure!(claimed <= allowed, "{what}: {claimed} bytes, {allowed} allowed");
        Ok(())
    };
    within("device memory", device, claims.peak_device_bytes, budget.device_bytes)?;
    within("host memory", host, claims.peak_host_bytes, budget.host_bytes)
}

fn traffic_is_the_size_of_the_tensors(layout: &Layout, claims: &Claims) -> Result<(), String> {
    let mut traffic = Traffic::default();
    for tensor in &layout.tensors {
        for (stream, dtype) in layout.streams.iter().zip(&tensor.dtypes) {
            let bytes = tensor.elements * if *dtype == DType::F32 { 4 } else { 2 };
            match stream.direction {
                Direction::Read => traffic.read += bytes,
                Direction::Write => traffic.written += bytes,
            }
        }
    }
    ensure!(claims.traffic == traffic, "traffic {:?}, claimed {:?}", traffic, claims.traffic);
    Ok(())
}

fn streams(directions: &[Direction]) -> Vec<Stream> {
    let named = |(index, &direction)| Stream { name: format!("stream {index}"), direction };
    directions.iter().enumerate().map(named).collect()
}

/// `(elements, types, class)` a tensor.
fn layout(directions: &[Direction], tensors: &[(u64, &[DType], u32)], scratch_bytes: u64) -> Layout {
    let spec = |(index, &(elements, dtypes, class)): (usize, &(u64, &[DType], u32))| TensorSpec {
        name: format!("tensor.{index:05}"),
        elements,
        dtypes: dtypes.to_vec(),
        class,
    };
    let tensors = tensors.iter().enumerate().map(spec).collect();
    Layout { streams: streams(directions), tensors, scratch_bytes }
}

/// A model and its Fisher in, a model out.
const MERGE: [Direction; 3] = [Direction::Read, Direction::Read, Direction::Write];
const MERGE_DTYPES: [DType; 3] = [DType::BF16, DType::F32, DType::BF16];

fn unlimited() -> Budget {
    Budget::default()
}

fn planned(layout: &Layout, budget: &Budget) -> Plan {
    let plan = Plan::new(layout, budget).expect("the budget is ample");
    assert_eq!(check(layout, budget, &Claims::of(&plan)), Ok(()));
    plan
}

// ---------------------------------------------------------------- what comes in

/// Sizes around every edge: nothing, around a granule, around the smallest chunk, above the largest.
fn sizes() -> impl Strategy<Value = u64> {
    prop_oneof![
        2 => Just(0_u64),
        8 => 1_u64..40,
        4 => (16_u64 << 10) - 9..(16 << 10) + 9,
        4 => 1_u64..2_000_000,
        1 => (1_u64 << 24)..(1 << 28),
    ]
}

fn dtype() -> impl Strategy<Value = DType> {
    prop::sample::select(DType::ALL.to_vec())
}

fn layouts() -> impl Strategy<Value = Layout> {
    (1_usize..7, 1_usize..4).prop_flat_map(|(streams, kinds)| {
        let direction = prop_oneof![3 => Just(Direction::Read), 1 => Just(Direction::Write)];
        let kind = (prop::collection::vec(dtype(), streams), 0_u32..3);
        let tensors = prop::collection::vec((sizes(), any::<prop::sample::Index>()), 0..40);
        let directions = prop::collection::vec(direction, streams);
        (directions, prop::collection::vec(kind, kinds), tensors, 0_u64..17).prop_map(
            |(directions, kinds, tensors, scratch_bytes)| {
                let pick = |(elements, index): &(u64, prop::sample::Index)| {
                    let (dtypes, class) = index.get(&kinds);
                    (*elements, dtypes.as_slice(), *class)
                };
                let tensors: Vec<_> = tensors.iter().map(pick).collect();
                layout(&directions, &tensors, scratch_bytes)
            },
        )
    })
}

/// Budgets of every magnitude, from hopeless to more than is useful.
fn budgets() -> impl Strategy<Value = Budget> {
    let bytes = || (6_u32..31, 0_u64..1 << 31).prop_map(|(bits, noise)| (1 << bits) + noise % (1 << bits));
    let memories = prop_oneof![Just(Memories::Host), Just(Memories::Shared), Just(Memories::Separate)];
    (bytes(), bytes(), bytes(), 1_u32..6, memories).prop_map(
        |(device_bytes, host_bytes, max_binding_bytes, slots, memories)| Budget {
            device_bytes,
            host_bytes,
            max_binding_bytes,
            slots,
            memories,
        },
    )
}

/// The budget that an error asks for, and the same with one byte less. Nothing where it is the device's limit
/// that is short.
fn as_asked(budget: &Budget, error: &Error) -> Option<(Budget, Budget)> {
    let Error::Budget { need, have, flag, .. } = error else { return None };
    assert!(need > have, "{error}");
    let with = |bytes: u64| match flag.as_str() {
        "--device-memory" => Budget { device_bytes: bytes, ..*budget },
        "--host-memory" => Budget { host_bytes: bytes, ..*budget },
        other => panic!("{other} is not a flag"),
    };
    Some((with(*need), with(need - 1)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_plan_keeps_every_promise(layout in layouts(), budget in budgets()) {
        match Plan::new(&layout, &budget) {
            Ok(plan) => prop_assert_eq!(check(&layout, &budget, &Claims::of(&plan)), Ok(())),
            Err(Error::Budget { .. } | Error::Limit { .. }) => {}
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn the_budget_an_error_asks_for_is_the_smallest_that_works(layout in layouts(), budget in budgets()) {
        let mut budget = Budget { max_binding_bytes: u64::MAX, ..budget };
        // One error for each memory, at most.
        for _ in 0..2 {
            let Err(error) = Plan::new(&layout, &budget) else { break };
            let (enough, one_less) = as_asked(&budget, &error).expect("only the budgets are short");
            let refusal = Plan::new(&layout, &one_less).err().map(|error| error.to_string());
            prop_assert!(refusal.is_some_and(|text| text.contains("at least")), "one byte less than {} works", error);
            budget = enough;
        }
        let plan = Plan::new(&layout, &budget);
        prop_assert!(plan.is_ok(), "{:?}", plan.err());
    }

    #[test]
    fn the_limit_an_error_asks_for_is_the_smallest_that_works(layout in layouts(), max_binding_bytes in 0_u64..2_000_000) {
        let budget = Budget { max_binding_bytes, ..unlimited() };
        if let Err(error) = Plan::new(&layout, &budget) {
            let Error::Limit { asked, .. } = error else { panic!("{error}") };
            let enough = Budget { max_binding_bytes: asked, ..budget };
            prop_assert!(Plan::new(&layout, &enough).is_ok());
            let one_less = Budget { max_binding_bytes: asked - 1, ..budget };
            prop_assert!(Plan::new(&layout, &one_less).is_err());
        }
    }

    #[test]
    fn the_same_input_gives_the_same_plan(layout in layouts(), budget in budgets()) {
        prop_assert_eq!(Plan::new(&layout, &budget).ok(), Plan::new(&layout.clone(), &budget).ok());
    }

    #[test]
    fn more_memory_never_makes_more_chunks(layout in layouts(), budget in budgets()) {
        let more = Budget { device_bytes: 2 * budget.device_bytes, host_bytes: 2 * budget.host_bytes, ..budget };
        if let Ok(plan) = Plan::new(&layout, &budget) {
            let richer = Plan::new(&layout, &more).expect("what fits a budget fits a larger one");
            prop_assert!(richer.chunks().len() <= plan.chunks().len());
        }
    }

    #[test]
    fn chunk_lengths_do_not_depend_on_how_elements_are_split_into_tensors(
        sizes in prop::collection::vec(sizes(), 1..30), budget in budgets(),
    ) {
        let many: Vec<_> = sizes.iter().map(|&elements| (elements, &MERGE_DTYPES[..], 0)).collect();
        let many = layout(&MERGE, &many, 8);
        let one = layout(&MERGE, &[(sizes.iter().sum(), &MERGE_DTYPES, 0)], 8);
        let lengths = |layout: &Layout| {
            let plan = Plan::new(layout, &budget).ok()?;
            Some(plan.chunks().iter().map(|chunk| chunk.elements).collect::<Vec<_>>())
        };
        prop_assert_eq!(lengths(&many), lengths(&one));
    }
}

// ---------------------------------------------------------------- planted faults

/// A plan of several chunks over tensors of two kinds, that the faults are planted in.
fn sound() -> (Layout, Budget, Claims) {
    let all_f32 = [DType::F32; 3];
    let tensors: [(u64, &[DType], u32); 4] =
        [(100_003, &MERGE_DTYPES, 0), (77, &MERGE_DTYPES, 0), (50_000, &all_f32, 1), (0, &all_f32, 1)];
    let layout = layout(&MERGE, &tensors, 8);
    let budget =
        Budget { device_bytes: 2 << 20, host_bytes: 2 << 20, memories: Memories::Separate, ..unlimited() };
    let claims = Claims::of(&planned(&layout, &budget));
    assert!(claims.chunks.len() > 4, "too few chunks to break: {}", claims.chunks.len());
    (layout, budget, claims)
}

#[test]
fn every_planted_fault_is_caught() {
    type Fault = fn(&mut Claims);
    let faults: [(&str, Fault); 18] = [
        ("of 50000 covered", |c| drop(c.chunks.pop())),
        ("after", |c| c.chunks.swap(0, 1)),
        ("after", |c| c.chunks.insert(1, c.chunks[0].clone())),
        ("after", |c| c.chunks[1].segments[0].start += 1),
        ("an empty segment", |c| c.chunks[0].segments[0].len = 0),
        ("claims", |c| c.elements += 1),
        ("a segment at 1", |c| c.chunks[0].segments[0].at = 1),
        ("a tensor of class 0", |c| c.chunks[0].class = 1),
        ("a tensor of [BF16", |c| c.chunks[0].dtypes[0] = DType::F16),
        ("elements of", |c| c.chunks[0].elements += 8),
        ("before the last", |c| move_elements(c, 1)),
        ("chunks of", |c| move_elements(c, 8)),
        ("no slot", |c| c.slots = 0),
        ("slots of", |c| c.slots = 4),
        ("bytes of scratch", |c| c.scratch_bytes -= 8),
        ("device memory", |c| c.peak_device_bytes = (2 << 20) + 1),
        ("host memory", |c| c.peak_host_bytes /= 2),
        ("traffic", |c| c.traffic.written -= 2),
    ];
    let (layout, budget, claims) = sound();
    for (broken_promise, plant) in faults {
        let mut broken = claims.clone();
        plant(&mut broken);
        let found = check(&layout, &budget, &broken).expect_err(broken_promise);
        assert!(found.contains(broken_promise), "planted \"{broken_promise}\", found \"{found}\"");
    }
}

/// Moves elements from the second chunk's front to the first one's end: still dense, still covered once.
fn move_elements(claims: &mut Claims, len: u64) {
    let [first, second, ..] = claims.chunks.as_mut_slice() else { panic!("two chunks") };
    first.segments[0].len += len;
    first.elements += len;
    second.segments[0].start += len;
    second.segments[0].len -= len;
    second.segments[1..].iter_mut().for_each(|segment| segment.at -= len);
    second.elements -= len;
}

#[test]
fn a_ring_too_large_for_a_smaller_budget_is_caught() {
    let (layout, budget, claims) = sound();
    for (what, smaller) in [
        ("device memory", Budget { device_bytes: claims.peak_device_bytes - 1, ..budget }),
        ("host memory", Budget { host_bytes: claims.peak_host_bytes - 1, ..budget }),
        ("a buffer of", Budget { max_binding_bytes: 64 << 10, ..budget }),
    ] {
        let found = check(&layout, &smaller, &claims).expect_err(what);
        assert!(found.contains(what), "{found}");
    }
}

// ---------------------------------------------------------------- particular plans

#[test]
fn thousands_of_small_tensors_share_one_chunk() {
    let tensors = vec![(17, &MERGE_DTYPES[..], 0); 5000];
    let layout = layout(&MERGE, &tensors, 8);
    let plan = planned(&layout, &unlimited());
    assert_eq!(plan.chunks().len(), 1);
    assert_eq!(plan.chunks()[0].segments.len(), 5000);
    assert_eq!(plan.slots(), 1, "one chunk needs one slot");
}

/// 2^40 elements one by one would not end while anyone watches.
#[test]
fn enormous_tensors_are_planned_without_counting_to_their_end() {
    let layout = layout(&MERGE, &[(1 << 40, &MERGE_DTYPES, 0), ((1 << 32) + 1, &MERGE_DTYPES, 0)], 8);
    let budget = Budget {
        device_bytes: 64 << 20,
        host_bytes: 64 << 20,
        max_binding_bytes: 128 << 20,
        memories: Memories::Separate,
        ..unlimited()
    };
    let plan = planned(&layout, &budget);
    assert!(plan.chunks().iter().flat_map(|chunk| &chunk.segments).any(|s| s.start > u64::from(u32::MAX)));
}

#[test]
fn alternating_types_take_one_run_of_chunks_a_type() {
    let f16 = [DType::F16; 3];
    let pair: [(u64, &[DType], u32); 2] = [(1000, &MERGE_DTYPES, 0), (1000, &f16, 0)];
    let plan = planned(&layout(&MERGE, &pair.repeat(100), 8), &unlimited());
    assert_eq!(plan.chunks().len(), 2);
}

#[test]
fn nothing_to_stream_needs_nothing() {
    for layout in [layout(&MERGE, &[], 8), layout(&MERGE, &[(0, &MERGE_DTYPES, 0)], 8)] {
        let starved = Budget { device_bytes: 0, host_bytes: 0, max_binding_bytes: 0, ..unlimited() };
        for budget in [unlimited(), starved] {
            let plan = Plan::new(&layout, &budget).expect("nothing fits anywhere");
            assert_eq!(plan.chunks(), []);
            assert_eq!((plan.peak_device_bytes(), plan.peak_host_bytes()), (0, 0));
        }
    }
}

#[test]
fn a_ring_has_a_slot_even_if_none_is_asked_for() {
    let layout = layout(&MERGE, &[(1000, &MERGE_DTYPES, 0)], 8);
    assert_eq!(planned(&layout, &Budget { slots: 0, ..unlimited() }).slots(), 1);
}

#[test]
fn a_plan_stays_a_short_list_beside_the_data() {
    let layout = layout(&MERGE, &[(1 << 36, &MERGE_DTYPES, 0)], 8);
    let starved = Budget { host_bytes: 1, ..unlimited() };
    let refusal = Plan::new(&layout, &starved).map(|_| ()).expect_err("one byte");
    let (enough, _) = as_asked(&starved, &refusal).expect("only a budget is short");
    assert_eq!(planned(&layout, &enough).chunks().len(), 1 << 20);
}

#[test]
fn absurd_sizes_are_refused_and_do_not_overflow() {
    let many = [Direction::Read; 20];
    let dtypes = [DType::F32; 20];
    for layout in [
        layout(&many, &[(u64::MAX, &dtypes, 0)], 0),
        layout(&many, &[(u64::MAX, &dtypes, 0), (u64::MAX, &dtypes, 0)], 0),
        layout(&many, &[((1 << 60) - 1, &dtypes, 0)], 0),
        layout(&many, &[(1 << 20, &dtypes, 0)], u64::MAX),
    ] {
        assert!(Plan::new(&layout, &unlimited()).is_err());
    }
    let deepest = Budget { slots: u32::MAX, ..unlimited() };
    let layout = layout(&many, &[(1 << 30, &dtypes, 0)], 0);
    let plan = planned(&layout, &deepest);
    assert_eq!(plan.slots() as usize, plan.chunks().len());
}

#[test]
fn types_and_streams_must_match_in_number() {
    let layout = layout(&MERGE, &[(10, &[DType::F32; 2], 0)], 0);
    let refusal = Plan::new(&layout, &unlimited()).map(|_| ()).expect_err("two types, three streams");
    for part in ["tensor.00000", "3", "2"] {
        assert!(refusal.to_string().contains(part), "{refusal}");
    }
}

#[test]
fn a_short_budget_names_its_flag_and_both_numbers() {
    let layout = layout(&MERGE, &[(1 << 20, &MERGE_DTYPES, 0)], 8);
    for (budget, flag) in [
        (Budget { device_bytes: 5, memories: Memories::Separate, ..unlimited() }, "raise --device-memory"),
        (Budget { host_bytes: 5, memories: Memories::Separate, ..unlimited() }, "raise --host-memory"),
        (Budget { host_bytes: 5, ..unlimited() }, "raise --host-memory"),
    ] {
        let refusal = Plan::new(&layout, &budget).map(|_| ()).expect_err("five bytes").to_string();
        assert!(refusal.contains(flag) && refusal.contains("the budget is 5;"), "{refusal}");
    }
}

// ---------------------------------------------------------------- how it is shown

#[test]
fn the_table_names_streams_chunks_bytes_and_peaks() {
    let layout = layout(&MERGE, &[(1 << 20, &MERGE_DTYPES, 0)], 8);
    let text = planned(&layout, &Budget { memories: Memories::Separate, ..unlimited() }).to_string();
    for part in
        ["stream 0", "stream 2", "1048576 elements", "6.0 MiB read", "2.0 MiB written", "device memory"]
    {
        assert!(text.contains(part), "no \"{part}\" in:\n{text}");
    }
}

#[test]
fn the_json_summary_has_stable_keys() {
    let layout = layout(&MERGE, &[(1 << 20, &MERGE_DTYPES, 0)], 8);
    let json = serde_json::to_value(planned(&layout, &unlimited())).expect("numbers and names only");
    let keys: Vec<_> = json.as_object().expect("an object").keys().map(String::as_str).collect();
    let expected = [
        "streams",
        "elements",
        "chunks",
        "slots",
        "bytes_read",
        "bytes_written",
        "peak_device_bytes",
        "peak_host_bytes",
    ];
    assert_eq!(keys, expected);
    assert_eq!(json["bytes_read"], 6 << 20);
    assert_eq!(json["bytes_written"], 2 << 20);
}
