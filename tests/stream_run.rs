//! Runs of a plan: the order of what happens to a chunk, and that every fault of every stage ends the run
//! with that fault, soon.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use squisher::stream::{
    Budget, Buffers, Chunk, Direction, End, Job, Layout, Plan, Sink, Source, Stream, Sweep, TensorSpec, run,
};
use squisher::{Backend, DType, Element, Error, Interrupt, Recording, Result, Run, View, wgpu};

/// The host, a device whose storage is mapped where it can be, and one whose storage never is.
fn backends() -> [Backend; 3] {
    let [host, device] = support::backends();
    [host, device, Backend::Gpu(support::device_with(wgpu::Limits::default()))]
}

/// Tensors that share chunks, span several, and hold nothing.
const LENGTHS: [u64; 5] = [70_000, 3, 0, 100_001, 40];

/// What happened, in order.
#[derive(Clone, Debug, PartialEq)]
enum Event {
    /// A chunk's kernels were recorded.
    Record(usize),
    /// A chunk's results arrived.
    Absorb(usize),
    /// Elements of a tensor were written.
    Write(usize, u64),
}

type Events = Arc<Mutex<Vec<Event>>>;

/// Which call of which stage fails, or what else happens then.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    read: Option<u64>,
    record: Option<usize>,
    absorb: Option<usize>,
    write: Option<u64>,
    panic: Option<usize>,
    destroy: Option<usize>,
    interrupt: Option<usize>,
}

/// The value at an index of a tensor.
fn value(tensor: usize, index: u64) -> f32 {
    (tensor as u64 * 1_000_003 + index) as f32 * 0.5
}

fn fault(stage: &str) -> Error {
    Error::argument("test", format!("planted in {stage}"))
}

struct Numbers {
    faults: Faults,
    calls: AtomicU64,
}

impl Source for Numbers {
    fn read(&self, tensor: usize, start: u64, out: &mut [u8]) -> Result<()> {
        if self.faults.read == Some(self.calls.fetch_add(1, Ordering::Relaxed)) {
            return Err(fault("read"));
        }
        for (i, out) in out.chunks_exact_mut(4).enumerate() {
            out.copy_from_slice(&value(tensor, start + i as u64).to_le_bytes());
        }
        Ok(())
    }
}

struct Kept {
    faults: Faults,
    calls: AtomicU64,
    events: Events,
    written: Mutex<Vec<Vec<u32>>>,
}

impl Sink for Kept {
    fn write(&self, tensor: usize, start: u64, bytes: &[u8]) -> Result<()> {
        if self.faults.write == Some(self.calls.fetch_add(1, Ordering::Relaxed)) {
            return Err(fault("write"));
        }
        self.events.lock().expect("no panic holds it").push(Event::Write(tensor, start));
        let tensor = &mut self.written.lock().expect("no panic holds it")[tensor];
        for (i, word) in bytes.chunks_exact(4).enumerate() {
            tensor[start as usize + i] = u32::from_le_bytes(word.try_into().expect("four bytes"));
        }
        Ok(())
    }
}

/// Copies the one stream to the other, and the first words of a chunk to its results.
struct Copies {
    faults: Faults,
    events: Events,
    chunks: Vec<Chunk>,
    device: Option<wgpu::Device>,
    interrupt: Interrupt,
}

/// As many as every chunk has.
const WORDS: u64 = 8;

impl Copies {
    fn place(&self, chunk: &Chunk) -> usize {
        self.chunks.iter().position(|other| other == chunk).expect("a chunk of the plan")
    }
}

impl Sweep for Copies {
    fn result_words(&self) -> u64 {
        WORDS
    }

    fn record(&self, recording: &mut Recording, chunk: &Chunk, buffers: &Buffers) -> Result<()> {
        let place = self.place(chunk);
        if self.faults.record == Some(place) {
            return Err(fault("record"));
        }
        self.events.lock().expect("no panic holds it").push(Event::Record(place));
        recording.copy(&buffers.streams[0], &buffers.streams[1])?;
        let head = View::new(buffers.streams[0].memory().clone(), 0, WORDS, Element::U32)?;
        recording.copy(&head, buffers.results.as_ref().expect("asked for"))?;
        Ok(())
    }

    fn absorb(&mut self, chunk: &Chunk, results: &[u32]) -> Result<()> {
        let place = self.place(chunk);
        if self.faults.absorb == Some(place) {
            return Err(fault("absorb"));
        }
        assert_ne!(self.faults.panic, Some(place), "planted panic");
        if self.faults.interrupt == Some(place) {
            self.interrupt.request(2);
        }
        if let (Some(device), true) = (&self.device, self.faults.destroy == Some(place)) {
            device.destroy();
        }
        let first = chunk.segments[0];
        assert_eq!(results[0], value(first.tensor, first.start).to_bits(), "the results are another chunk's");
        self.events.lock().expect("no panic holds it").push(Event::Absorb(place));
        Ok(())
    }
}

fn layout() -> Layout {
    let stream = |name: &str, direction| Stream { name: name.into(), direction };
    let tensor = |(index, &elements): (usize, &u64)| TensorSpec {
        name: format!("t{index}"),
        elements,
        dtypes: vec![DType::F32; 2],
        class: 0,
    };
    Layout {
        streams: vec![stream("in", Direction::Read), stream("out", Direction::Write)],
        tensors: LENGTHS.iter().enumerate().map(tensor).collect(),
        scratch_bytes: 0,
    }
}

/// A plan of many small chunks.
fn plan(backend: &Backend) -> Plan {
    let mut budget = Budget { host_bytes: 0, device_bytes: 0, ..Budget::default() }.within(&backend.caps());
    loop {
        match Plan::new(&layout(), &budget) {
            Ok(plan) => return plan,
            Err(Error::Budget { need, flag, .. }) if flag == "--device-memory" => budget.device_bytes = need,
            Err(Error::Budget { need, .. }) => budget.host_bytes = need,
            Err(other) => panic!("{other}"),
        }
    }
}

/// What a run did.
struct Outcome {
    result: Result<()>,
    events: Vec<Event>,
    written: Vec<Vec<u32>>,
    chunks: usize,
}

const UNWRITTEN: u32 = 0xdead_beef;

/// Runs with faults in its own thread; not to come back within a minute is a hang.
fn outcome(backend: &Backend, faults: Faults) -> std::thread::Result<Outcome> {
    let (done, ended) = channel();
    let backend = backend.clone();
    let thread = std::thread::spawn(move || {
        let guard = Ended(done);
        let outcome = run_with(&backend, faults);
        drop(guard);
        outcome
    });
    // An end is seen as the sender's going away.
    let waited = ended.recv_timeout(Duration::from_secs(60));
    assert_eq!(waited, Err(std::sync::mpsc::RecvTimeoutError::Disconnected), "the run hangs: {faults:?}");
    thread.join()
}

/// Goes away with its thread's work, whether that returns or panics.
struct Ended(#[expect(dead_code, reason = "held to be dropped")] std::sync::mpsc::Sender<()>);

fn run_with(backend: &Backend, faults: Faults) -> Outcome {
    let plan = plan(backend);
    let events = Events::default();
    let interrupt = Interrupt::default();
    let source = Numbers { faults, calls: AtomicU64::new(0) };
    let sink = Kept {
        faults,
        calls: AtomicU64::new(0),
        events: events.clone(),
        written: Mutex::new(LENGTHS.iter().map(|&len| vec![UNWRITTEN; len as usize]).collect()),
    };
    let device = match backend {
        Backend::Host => None,
        Backend::Gpu(gpu) => Some(gpu.device().clone()),
    };
    let mut sweep = Copies {
        faults,
        events: events.clone(),
        chunks: plan.chunks().to_vec(),
        device,
        interrupt: interrupt.clone(),
    };
    let ends = vec![End::Source(&source), End::Sink(&sink)];
    let with = Run { interrupt, ..Run::new(backend) };
    let job = Job { run: &with, plan: &plan, ends };
    let result = run(&job, &mut sweep).map(drop);
    let events = events.lock().expect("no panic holds it").clone();
    Outcome {
        result,
        events,
        written: sink.written.into_inner().expect("no panic held it"),
        chunks: plan.chunks().len(),
    }
}

#[track_caller]
fn sound(backend: &Backend, faults: Faults) -> Outcome {
    outcome(backend, faults).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[track_caller]
fn assert_planted(outcome: &Outcome, stage: &str) {
    let message = outcome.result.as_ref().expect_err("a fault was planted").to_string();
    assert_eq!(message, format!("test: planted in {stage}"));
}

#[test]
fn every_element_arrives_and_only_once_per_tensor_piece() {
    for backend in backends() {
        let outcome = sound(&backend, Faults::default());
        outcome.result.expect("nothing was planted");
        assert!(outcome.chunks > 5, "{} chunks are not a stream", outcome.chunks);
        for (tensor, words) in outcome.written.iter().enumerate() {
            let wrong =
                words.iter().enumerate().find(|(i, word)| **word != value(tensor, *i as u64).to_bits());
            assert_eq!(wrong, None, "tensor {tensor} on {}", backend.name());
        }
        let mut writes: Vec<&Event> =
            outcome.events.iter().filter(|e| matches!(e, Event::Write(..))).collect();
        writes.dedup();
        let all = writes.len();
        writes.sort_by_key(|e| format!("{e:?}"));
        writes.dedup();
        assert_eq!(writes.len(), all, "a piece was written twice");
    }
}

#[test]
fn chunks_are_recorded_and_absorbed_in_the_plans_order() {
    for backend in backends() {
        let outcome = sound(&backend, Faults::default());
        let places = |wanted: fn(&Event) -> Option<usize>| {
            outcome.events.iter().filter_map(wanted).collect::<Vec<_>>()
        };
        let in_order: Vec<usize> = (0..outcome.chunks).collect();
        assert_eq!(places(|e| if let Event::Record(c) = e { Some(*c) } else { None }), in_order);
        assert_eq!(places(|e| if let Event::Absorb(c) = e { Some(*c) } else { None }), in_order);
        // What a chunk shows to be wrong is known before any of it is written.
        let absorbed = outcome.events.iter().position(|e| *e == Event::Absorb(1));
        let written = outcome.events.iter().position(|e| matches!(e, Event::Write(..)));
        assert!(written > outcome.events.iter().position(|e| *e == Event::Absorb(0)));
        assert!(absorbed > written, "the first chunk was not written before the second was absorbed");
    }
}

#[test]
fn no_more_chunks_are_on_their_way_than_the_ring_has_slots() {
    for backend in backends() {
        let outcome = sound(&backend, Faults::default());
        let (mut recorded, mut absorbed) = (0_usize, 0_usize);
        for event in &outcome.events {
            match event {
                Event::Record(_) => recorded += 1,
                Event::Absorb(_) => absorbed += 1,
                Event::Write(..) => {}
            }
            assert!(recorded <= absorbed + 3, "{:?}", outcome.events);
        }
    }
}

#[test]
fn an_error_of_any_stage_ends_the_run_with_that_error() {
    for backend in backends() {
        let last = plan(&backend).chunks().len() - 1;
        for at in [0, 1, 4, last] {
            let call = at as u64;
            assert_planted(&sound(&backend, Faults { read: Some(call), ..Faults::default() }), "read");
            assert_planted(&sound(&backend, Faults { record: Some(at), ..Faults::default() }), "record");
            assert_planted(&sound(&backend, Faults { absorb: Some(at), ..Faults::default() }), "absorb");
            assert_planted(&sound(&backend, Faults { write: Some(call), ..Faults::default() }), "write");
        }
    }
}

#[test]
fn a_refused_chunk_is_not_written_nor_any_after_it() {
    for backend in backends() {
        let plan = plan(&backend);
        let outcome = sound(&backend, Faults { absorb: Some(3), ..Faults::default() });
        for chunk in &plan.chunks()[3..] {
            for segment in &chunk.segments {
                assert_eq!(outcome.written[segment.tensor][segment.start as usize], UNWRITTEN);
            }
        }
    }
}

#[test]
fn an_interrupt_ends_the_run_between_two_chunks() {
    for backend in backends() {
        let outcome = sound(&backend, Faults { interrupt: Some(2), ..Faults::default() });
        assert!(matches!(outcome.result, Err(Error::Interrupted { signal: 2 })), "{:?}", outcome.result);
        let absorbed = outcome.events.iter().filter(|e| matches!(e, Event::Absorb(_))).count();
        assert!(absorbed < outcome.chunks, "the run went on to its end");
        assert!(absorbed <= 3 + 3, "{absorbed} chunks, more than the ring holds after the third");
    }
}

#[test]
fn a_panic_of_the_last_stage_is_passed_on_and_does_not_hang() {
    for backend in backends() {
        assert!(outcome(&backend, Faults { panic: Some(2), ..Faults::default() }).is_err());
    }
}

#[test]
fn a_device_lost_at_any_chunk_is_an_error() {
    for at in [0, 2, 5] {
        let backend = Backend::Gpu(support::device_with(wgpu::Limits::default()));
        let outcome = sound(&backend, Faults { destroy: Some(at), ..Faults::default() });
        let error = outcome.result.expect_err("nothing of a lost device can be trusted");
        assert_eq!(error.exit_code(), 6, "{error}");
        // What was written before the loss is right: nothing else was written.
        for (tensor, words) in outcome.written.iter().enumerate() {
            for (i, &word) in words.iter().enumerate() {
                assert!(
                    word == UNWRITTEN || word == value(tensor, i as u64).to_bits(),
                    "tensor {tensor}[{i}]"
                );
            }
        }
    }
}
