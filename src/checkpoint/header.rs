//! The head of a safetensors file: a length, then JSON. Parsed strictly, built exactly.
//!
//! Stricter than the format's own crate in four points: a name, a metadata key or a field given twice is refused
//! (the crate silently keeps the last), the JSON must begin at once as the format says, and the counts of tensors
//! and axes have limits, so that a hostile header costs a few times its own size in memory and no more.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::Path;

use safetensors::Dtype;
use serde::de::value::StrDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use super::disk;
use super::layout::OutputTensor;
use crate::error::{Error, Result, printable};
use crate::shape::{elements, shape_text};

/// The longest header that is read or written, the format's own limit.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The most tensors one file may hold. The largest models published have some ten thousand; a header full of tiny
/// entries would otherwise cost a gigabyte of memory.
pub const MAX_TENSORS: usize = 1_000_000;

/// The most axes of one tensor. Frameworks stop at 64 or earlier.
pub const MAX_AXES: usize = 64;

/// The key of the metadata, which no tensor may be called.
pub(super) const METADATA: &str = "__metadata__";

/// Bytes of the length that precedes the JSON; also what the JSON is padded to.
const LENGTH_BYTES: u64 = 8;

/// What a header says, checked; offsets are absolute in the file.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) tensors: Vec<HeaderTensor>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// One tensor of a header.
#[derive(Debug)]
pub(super) struct HeaderTensor {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Reads and checks the header of `file`, which is `file_bytes` long. `path` is for messages.
pub(super) fn read(path: &Path, file: &File, file_bytes: u64) -> Result<Header> {
    let json = read_json(path, file, file_bytes)?;
    let raw: RawHeader<'_> = serde_json::from_slice(&json).map_err(|error| {
        Error::file(
            path,
            format!("the safetensors header is not valid: {error}; the file is damaged, fetch it again"),
        )
    })?;
    let data_start = LENGTH_BYTES + json.len() as u64;
    let tensors = check_tensors(path, raw.tensors, data_start)?;
    check_cover(path, &tensors, data_start, file_bytes)?;
    Ok(Header { tensors, metadata: raw.metadata.unwrap_or_default() })
}

/// The header's JSON, after its length was held against the file's.
fn read_json(path: &Path, file: &File, file_bytes: u64) -> Result<Vec<u8>> {
    refuse_other_kinds(path, file, file_bytes)?;
    if file_bytes < LENGTH_BYTES {
        let problem = format!(
            "a safetensors file begins with an 8-byte length, this one has {file_bytes} bytes in all; \
             the download is incomplete, fetch it again"
        );
        return Err(Error::file(path, problem));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    disk::read_exact_at(file, &mut length, 0).map_err(|error| Error::io("read", path, error))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        let problem = format!(
            "the header's length is given as {length} bytes, the limit is {MAX_HEADER_BYTES}; \
             this is not a safetensors file, or a damaged one"
        );
        return Err(Error::file(path, problem));
    }
    if length > file_bytes - LENGTH_BYTES {
        let problem = format!(
            "the header's length is given as {length} bytes, the file has {} after that number; \
             the download is incomplete, or this is not a safetensors file",
            file_bytes - LENGTH_BYTES
        );
        return Err(Error::file(path, problem));
    }
    let mut json = vec![0; usize::try_from(length).expect("at most MAX_HEADER_BYTES, checked above")];
    disk::read_exact_at(file, &mut json, LENGTH_BYTES).map_err(|error| Error::io("read", path, error))?;
    if json.first() != Some(&b'{') {
        return Err(Error::file(
            path,
            "the header does not begin with \"{\"; this is not a safetensors file",
        ));
    }
    Ok(json)
}

/// Names the kinds of file that often lie where a safetensors file should.
fn refuse_other_kinds(path: &Path, file: &File, file_bytes: u64) -> Result<()> {
    const LOOK_AT: u64 = 64;
    let mut start = vec![0; usize::try_from(file_bytes.min(LOOK_AT)).expect("at most 64")];
    disk::read_exact_at(file, &mut start, 0).map_err(|error| Error::io("read", path, error))?;
    let text = start.trim_ascii_start().to_ascii_lowercase();
    let problem = if start.is_empty() {
        "the file is empty (0 bytes); fetch it again"
    } else if text.starts_with(b"version https://git-lfs") {
        "this is a git-LFS pointer, not the data it stands for; run `git lfs pull` in its repository"
    } else if text.starts_with(b"<!doctype") || text.starts_with(b"<html") || text.starts_with(b"<?xml") {
        "this is a web page, not a safetensors file; the download was answered with a page (a login, or an error)"
    } else if start.starts_with(b"PK\x03\x04") {
        "this is a zip archive, as torch.save writes them, and safetensors is read here; save a model with \
         save_pretrained(safe_serialization=True), and read an optimizer's state with `squisher extract`"
    } else if is_text(&start) && text.starts_with(b"{") {
        "this is JSON, not a safetensors file; the name of an index of shards ends in .safetensors.index.json"
    } else if start.starts_with(b"GGUF") {
        "this is a GGUF file, not a safetensors file; give the original safetensors checkpoint"
    } else {
        return Ok(());
    };
    Err(Error::file(path, problem))
}

/// Whether the bytes where a header's length would be are text: as a length they would be beyond any file.
fn is_text(start: &[u8]) -> bool {
    start.iter().take(8).all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
}

/// Holds every entry's size against its dtype and shape.
fn check_tensors(
    path: &Path,
    raw: Vec<(String, RawTensor<'_>)>,
    data_start: u64,
) -> Result<Vec<HeaderTensor>> {
    raw.into_iter()
        .map(|(name, raw)| {
            let Some(dtype) = parse_dtype(&raw.dtype) else {
                let problem = format!("dtype {} is not known to this version", printable(&raw.dtype));
                return Err(Error::tensor(path, name, problem));
            };
            let bytes = match bytes_of(dtype, &raw.shape.0) {
                Ok(bytes) => bytes,
                Err(problem) => return Err(Error::tensor(path, name, problem)),
            };
            let (begin, end) = raw.data_offsets;
            if end.checked_sub(begin) != Some(bytes) {
                let problem = format!(
                    "{dtype} {} needs {bytes} bytes, its data_offsets are [{begin}, {end}]; the file is damaged",
                    shape_text(&raw.shape.0)
                );
                return Err(Error::tensor(path, name, problem));
            }
            let Some(offset) = end.checked_add(data_start).map(|end| end - bytes) else {
                return Err(Error::tensor(path, name, format!("its data_offsets [{begin}, {end}] exceed 2^64 bytes")));
            };
            Ok(HeaderTensor { name, dtype, shape: raw.shape.0, offset, bytes })
        })
        .collect()
}

/// The dtype that the format writes as `text`.
pub(super) fn parse_dtype(text: &str) -> Option<Dtype> {
    Dtype::deserialize(StrDeserializer::<serde::de::value::Error>::new(text)).ok()
}

/// The bytes of a tensor, or what is wrong with it.
pub(super) fn bytes_of(dtype: Dtype, shape: &[u64]) -> Result<u64, String> {
    let elements =
        elements(shape).ok_or_else(|| format!("{} has more than 2^64 elements", shape_text(shape)))?;
    let bits = u128::from(elements) * dtype.bitsize() as u128;
    if !bits.is_multiple_of(8) {
        return Err(format!("{dtype} {} does not fill whole bytes ({bits} bits)", shape_text(shape)));
    }
    u64::try_from(bits / 8).map_err(|_| format!("{dtype} {} has more than 2^64 bytes", shape_text(shape)))
}

/// Requires that the tensors fill the file after the header without hole, overlap or rest.
fn check_cover(path: &Path, tensors: &[HeaderTensor], data_start: u64, file_bytes: u64) -> Result<()> {
    let mut by_offset: Vec<&HeaderTensor> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
    let mut reached = data_start;
    for tensor in by_offset {
        if tensor.offset != reached {
            let what = if tensor.offset > reached { "leaves a hole after" } else { "overlaps" };
            let problem = format!(
                "begins at byte {} of the data and {what} the tensors before it, which end at byte {}; \
                 the file is damaged",
                tensor.offset - data_start,
                reached - data_start
            );
            return Err(Error::tensor(path, &tensor.name, problem));
        }
        // Cannot overflow: `check_tensors` computed this end.
        reached += tensor.bytes;
    }
    if reached > file_bytes {
        let problem = format!(
            "the header describes a file of {reached} bytes, this one has {file_bytes} ({} missing); \
             the download is incomplete, fetch it again",
            reached - file_bytes
        );
        return Err(Error::file(path, problem));
    }
    if reached < file_bytes {
        let problem = format!(
            "the header describes a file of {reached} bytes, this one has {file_bytes} ({} too many at the end); \
             the file is damaged, fetch it again",
            file_bytes - reached
        );
        return Err(Error::file(path, problem));
    }
    Ok(())
}

/// A header as written, with names and metadata keys known to be unique.
struct RawHeader<'a> {
    tensors: Vec<(String, RawTensor<'a>)>,
    metadata: Option<BTreeMap<String, String>>,
}

/// One entry as written. Fields the format does not have are passed over, as the format's crate does.
#[derive(Deserialize)]
struct RawTensor<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Axes,
    data_offsets: (u64, u64),
}

impl<'de: 'a, 'a> Deserialize<'de> for RawHeader<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut header = RawHeader { tensors: Vec::new(), metadata: None };
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        let metadata =
                            map.next_value::<UniqueStrings>().map_err(|error| about(METADATA, &error))?;
                        if header.metadata.replace(metadata.0).is_some() {
                            return Err(A::Error::custom("__metadata__ is given twice"));
                        }
                        continue;
                    }
                    let tensor = map.next_value().map_err(|error| about(&name, &error))?;
                    if header.tensors.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors in one file")));
                    }
                    header.tensors.push((name, tensor));
                }
                refuse_repeated(&mut header.tensors)?;
                Ok(header)
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Sorts by name and refuses a name that comes twice.
fn refuse_repeated<E: serde::de::Error>(tensors: &mut [(String, RawTensor<'_>)]) -> Result<(), E> {
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    match tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        None => Ok(()),
        Some(pair) => Err(E::custom(format!("tensor {} is given twice", printable(&pair[0].0)))),
    }
}

fn about<E: serde::de::Error>(name: &str, error: &E) -> E {
    E::custom(format!("{}: {error}", printable(name)))
}

/// A shape of at most [`MAX_AXES`] axes, refused while it is read and not after.
struct Axes(Vec<u64>);

impl<'de> Deserialize<'de> for Axes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AxesVisitor;

        impl<'de> Visitor<'de> for AxesVisitor {
            type Value = Axes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a shape: an array of whole numbers, none negative")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Axes, A::Error> {
                let mut axes = Vec::new();
                while let Some(axis) = seq.next_element()? {
                    if axes.len() == MAX_AXES {
                        return Err(A::Error::custom(format!("a shape of more than {MAX_AXES} axes")));
                    }
                    axes.push(axis);
                }
                Ok(Axes(axes))
            }
        }

        deserializer.deserialize_seq(AxesVisitor)
    }
}

/// An object of strings in which no key comes twice.
pub(super) struct UniqueStrings(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for UniqueStrings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StringsVisitor;

        impl<'de> Visitor<'de> for StringsVisitor {
            type Value = UniqueStrings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueStrings, A::Error> {
                let mut strings = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value: String = map.next_value().map_err(|error| about(&key, &error))?;
                    if strings.contains_key(&key) {
                        return Err(A::Error::custom(format!("{} is given twice", printable(&key))));
                    }
                    strings.insert(key, value);
                }
                Ok(UniqueStrings(strings))
            }
        }

        deserializer.deserialize_map(StringsVisitor)
    }
}

/// A file about to be written: its first bytes, and where each tensor goes.
#[derive(Debug)]
pub(super) struct Built {
    /// The length, the JSON and its padding.
    pub(super) head: Vec<u8>,
    /// Absolute offset and bytes of each tensor, in the order they were given in.
    pub(super) places: Vec<(u64, u64)>,
    /// The whole file's length.
    pub(super) file_bytes: u64,
}

/// Builds the header for `tensors`, placed by descending dtype alignment, then by name, as the format's crate does.
///
/// The error is what is wrong, with the tensor it is about.
pub(super) fn build(tensors: &[OutputTensor], metadata: &BTreeMap<String, String>) -> Result<Built, String> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by(|&a, &b| {
        tensors[b].dtype.cmp(&tensors[a].dtype).then_with(|| tensors[a].name.cmp(&tensors[b].name))
    });

    let mut places = vec![(0, 0); tensors.len()];
    let mut end = 0_u64;
    for &at in &order {
        let tensor = &tensors[at];
        let of = |problem: String| format!("tensor {}: {problem}", printable(&tensor.name));
        let bytes = bytes_of(tensor.dtype, &tensor.shape).map_err(of)?;
        places[at] = (end, bytes);
        end = end.checked_add(bytes).ok_or_else(|| of("the file would exceed 2^64 bytes".into()))?;
    }

    let json = HeaderJson { tensors, metadata, order: &order, places: &places };
    let mut json =
        serde_json::to_vec(&json).map_err(|error| format!("the header cannot be written: {error}"))?;
    json.resize(json.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    let length = json.len() as u64;
    if length > MAX_HEADER_BYTES {
        return Err(format!("the header would have {length} bytes, the format allows {MAX_HEADER_BYTES}"));
    }

    let data_start = LENGTH_BYTES + length;
    let file_bytes = data_start.checked_add(end).ok_or("the file would exceed 2^64 bytes")?;
    for (offset, _) in &mut places {
        *offset += data_start;
    }
    let mut head = length.to_le_bytes().to_vec();
    head.extend(json);
    Ok(Built { head, places, file_bytes })
}

/// Serializes as the header's JSON.
struct HeaderJson<'a> {
    tensors: &'a [OutputTensor],
    metadata: &'a BTreeMap<String, String>,
    order: &'a [usize],
    places: &'a [(u64, u64)],
}

impl Serialize for HeaderJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Entry<'a> {
            dtype: Dtype,
            shape: &'a [u64],
            data_offsets: (u64, u64),
        }

        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, self.metadata)?;
        }
        for &at in self.order {
            let OutputTensor { name, dtype, shape } = &self.tensors[at];
            let (offset, bytes) = self.places[at];
            map.serialize_entry(
                name,
                &Entry { dtype: *dtype, shape, data_offsets: (offset, offset + bytes) },
            )?;
        }
        map.end()
    }
}
