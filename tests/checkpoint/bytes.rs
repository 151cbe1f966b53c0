//! Held against the format's own crate: equal bytes out, equal contents in, nothing accepted that it refuses.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use squisher::checkpoint::{Checkpoint, Dtype, Output, OutputLayout, OutputTensor};

use super::{contents, fill, no_metadata};

const DTYPES: [Dtype; 22] = [
    Dtype::BOOL,
    Dtype::F4,
    Dtype::F6_E2M3,
    Dtype::F6_E3M2,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::F8_E8M0,
    Dtype::F8_E4M3FNUZ,
    Dtype::F8_E5M2FNUZ,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::C64,
    Dtype::F64,
    Dtype::I64,
    Dtype::U64,
];

/// Tensors by name, with their data.
type Model = BTreeMap<String, (Dtype, Vec<u64>, Vec<u8>)>;

fn model() -> impl Strategy<Value = Model> {
    let name = prop_oneof!["[a-c.]{1,6}", any::<String>(), Just("../\u{202e}\0\"\\".to_owned())]
        .prop_filter("kept by the format", |name| name != "__metadata__");
    let tensor = (prop::sample::select(&DTYPES[..]), prop::collection::vec(0_u64..5, 0..4))
        .prop_filter("whole bytes", |(dtype, shape)| {
            (shape.iter().product::<u64>() * dtype.bitsize() as u64).is_multiple_of(8)
        })
        .prop_flat_map(|(dtype, shape)| {
            let bytes = shape.iter().product::<u64>() * dtype.bitsize() as u64 / 8;
            let data = prop::collection::vec(any::<u8>(), usize::try_from(bytes).expect("small"));
            (Just(dtype), Just(shape), data)
        });
    prop::collection::btree_map(name, tensor, 0..8)
}

/// What the crate writes.
fn golden(model: &Model, metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let views = model.iter().map(|(name, (dtype, shape, data))| {
        let shape = shape.iter().map(|&axis| usize::try_from(axis).expect("small")).collect();
        (name.clone(), TensorView::new(*dtype, shape, data).expect("sizes agree"))
    });
    let metadata: HashMap<String, String> = metadata.clone().into_iter().collect();
    safetensors::serialize(views, (!metadata.is_empty()).then_some(metadata)).expect("serializes")
}

/// What we write, each tensor in pieces.
fn ours(model: &Model, metadata: &BTreeMap<String, String>, piece: usize) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.safetensors");
    let tensors =
        model.iter().map(|(name, (dtype, shape, _))| OutputTensor::new(name, *dtype, shape.clone()));
    let layout = OutputLayout::single(tensors.collect(), metadata.clone());
    let output = Output::create(&path, layout, false, &[]).expect("creates");
    fill(&output, &data_of(model), piece);
    output.finish().expect("finishes");
    fs::read(path).expect("reads")
}

fn data_of(model: &Model) -> BTreeMap<String, Vec<u8>> {
    model.iter().map(|(name, (_, _, data))| (name.clone(), data.clone())).collect()
}

/// Opens `bytes` as a file.
fn open(bytes: &[u8]) -> squisher::Result<Checkpoint> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(&file, bytes).expect("writes");
    Checkpoint::open(file.path())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_file_has_the_bytes_that_the_format_crate_writes(
        model in model(),
        metadata in prop::collection::btree_map(any::<String>(), any::<String>(), 0..2),
        piece in 1_usize..64,
    ) {
        prop_assert_eq!(ours(&model, &metadata, piece), golden(&model, &metadata));
    }

    #[test]
    fn what_the_format_crate_writes_is_read_back(model in model()) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(&file, golden(&model, &no_metadata())).expect("writes");
        let checkpoint = Checkpoint::open(file.path()).expect("opens");
        prop_assert_eq!(contents(&checkpoint), data_of(&model));
        for tensor in checkpoint.tensors() {
            let (dtype, shape, data) = &model[&tensor.name];
            prop_assert_eq!((tensor.dtype, &tensor.shape), (*dtype, shape));
            prop_assert_eq!(tensor.elements(), shape.iter().product::<u64>());
            prop_assert_eq!(tensor.bytes, data.len() as u64);
        }
        let names: Vec<&[u8]> = checkpoint.tensors().iter().map(|tensor| tensor.name.as_bytes()).collect();
        prop_assert!(names.is_sorted());
    }

    #[test]
    fn several_metadata_entries_survive_in_sorted_order(
        metadata in prop::collection::btree_map(any::<String>(), any::<String>(), 2..6),
    ) {
        let bytes = ours(&Model::new(), &metadata, 1);
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("the crate reads it");
        let read: BTreeMap<String, String> = header.metadata().clone().unwrap_or_default().into_iter().collect();
        prop_assert_eq!(&read, &metadata);
        let expected = serde_json::json!({ "__metadata__": metadata }).to_string();
        prop_assert_eq!(std::str::from_utf8(&bytes[8..]).expect("text").trim_end(), expected);
    }

    /// Damage anywhere in a file is refused, or leaves a file that the crate reads alike: never a panic, never more
    /// than the crate would take.
    #[test]
    fn damage_is_refused_or_harmless(
        model in model(),
        at in any::<prop::sample::Index>(),
        damage in prop_oneof![
            any::<u8>().prop_map(|byte| vec![byte]),
            "[\\[\\]{}\",:0-9a-z]{0,12}".prop_map(String::into_bytes),
        ],
        remove in 0_usize..12,
    ) {
        let mut bytes = golden(&model, &no_metadata());
        let at = at.index(bytes.len());
        let until = (at + remove).min(bytes.len());
        bytes.splice(at..until, damage);
        if let Ok(checkpoint) = open(&bytes) {
            let theirs = SafeTensors::deserialize(&bytes);
            prop_assert!(theirs.is_ok(), "we take what the crate refuses: {:?}", theirs.err());
            let theirs: BTreeMap<String, Vec<u8>> =
                theirs.iter().flat_map(SafeTensors::tensors).map(|(name, view)| (name, view.data().to_vec())).collect();
            let names: Vec<&String> = theirs.keys().collect();
            prop_assert!(checkpoint.tensors().iter().map(|tensor| &tensor.name).eq(names));
        }
    }
}

#[test]
fn pieces_written_by_many_threads_equal_the_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.safetensors");
    let data: Vec<u8> = (0..1_000_003_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let tensor = OutputTensor::new("w", Dtype::U8, [data.len() as u64]);
    let output = Output::create(&path, OutputLayout::single(vec![tensor], no_metadata()), false, &[])
        .expect("creates");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (output, data) = (&output, &data);
            scope.spawn(move || {
                for (at, piece) in data.chunks(4099).enumerate().filter(|(at, _)| at % 4 == thread) {
                    output.write(0, at as u64 * 4099, piece).expect("writes");
                }
            });
        }
    });
    output.finish().expect("finishes");

    let checkpoint = Checkpoint::open(&path).expect("opens");
    let tensor = &checkpoint.tensors()[0];
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (checkpoint, data) = (&checkpoint, &data);
            scope.spawn(move || {
                for start in (thread * 777..data.len()).step_by(4 * 777) {
                    let mut buffer = vec![0; 777.min(data.len() - start)];
                    checkpoint.read(tensor, start as u64, &mut buffer).expect("reads");
                    assert_eq!(buffer, data[start..start + buffer.len()], "from byte {start}");
                }
            });
        }
    });
}

/// More elements than 32 bits count, in a file that is a hole but for its two ends.
#[cfg(unix)]
#[test]
fn beyond_two_to_the_32_elements_the_end_is_read() {
    use std::os::unix::fs::FileExt;
    let elements = (1_u64 << 32) + 17;
    let json =
        format!(r#"{{"w":{{"dtype":"F32","shape":[{elements}],"data_offsets":[0,{}]}}}}"#, elements * 4);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let head = super::raw_file(&json, &[]);
    let end = head.len() as u64 + elements * 4;
    fs::write(&file, &head).expect("writes");
    file.as_file().set_len(end).expect("a sparse file");
    file.as_file().write_all_at(&1.5_f32.to_le_bytes(), end - 4).expect("writes");

    let checkpoint = Checkpoint::open(file.path()).expect("opens");
    let tensor = checkpoint.get("w").expect("there");
    assert_eq!((tensor.elements(), tensor.bytes), (elements, elements * 4));
    let mut last = [0; 8];
    checkpoint.read(tensor, tensor.bytes - 8, &mut last).expect("reads");
    assert_eq!(last, [0, 0, 0, 0, 0, 0, 0xc0, 0x3f]);
    assert!(checkpoint.read(tensor, tensor.bytes - 7, &mut last).is_err(), "reads past the end");
}
