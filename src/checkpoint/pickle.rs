//! The outline of a PyTorch file: its dictionaries in the order they were written, its numbers and
//! texts, and the names of everything it imports. Nothing is imported, called or executed.
//!
//! Bytes of tensors are read by the crate `pytorch-reader`. What that crate cannot tell is read here from
//! the same pickle: the *order* of a dictionary (a state dict's order is the model's order of definition,
//! which is evidence for names), whether a key was a number or a text, and the list of imports, so that a
//! refusal can name them.
//!
//! A pickle is a program for a stack machine. This one keeps every value in one flat list and lets
//! lists and dictionaries hold positions in it, so that a value that contains itself, or that is nested
//! millions deep, costs no recursion. A call becomes a [`Node::Made`] that remembers who was called;
//! only `OrderedDict` and its like become what they would have become. The work is bounded by [`MAX_STEPS`] and [`MAX_NODES`].
//!
//! The archive around the pickle is checked first: `torch.save` stores entries uncompressed, once each and side by
//! side, in little-endian order; anything else is refused before a byte of it is trusted.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use pytorch_reader::{DType as Stored, PytorchReader};
use zip::{CompressionMethod, ZipArchive};

use crate::error::{Error, Result, printable};

/// The largest pickle that is read; the bytes of tensors are not part of it.
const MAX_PICKLE_BYTES: u64 = pytorch_reader::MAX_PICKLE_SIZE;
/// The most operations of one pickle. A tensor takes about forty.
const MAX_STEPS: u64 = 1 << 25;
/// The most values of one pickle. A tensor takes about twenty.
const MAX_NODES: usize = 1 << 23;

/// Where a value lies in an [`Outline`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id(u32);

/// One value of a pickle.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// A list, tuple or set.
    List(Vec<Id>),
    /// A dictionary, in the order in which it was written.
    Dict(Vec<(Id, Id)>),
    /// A module's member, by its dotted name.
    Import(String),
    /// What a call would have made; nothing was called.
    Made {
        by: String,
        args: Id,
    },
    /// A reference to a tensor's storage: the tuple that names it.
    Storage(Id),
    /// Bytes, or a whole number beyond 64 bits.
    Other,
}

/// A whole pickle, flat.
#[derive(Debug)]
pub(crate) struct Outline {
    nodes: Vec<Node>,
    root: Id,
    imports: BTreeSet<String>,
}

/// Imports that state dicts and optimizer states are made of. None of them does more than rebuild data.
const KNOWN_IMPORTS: &[&str] = &[
    "collections.OrderedDict",
    "collections.defaultdict",
    "builtins.set",
    "__builtin__.set",
    "builtins.dict",
    "__builtin__.dict",
    "_codecs.encode",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._tensor._rebuild_from_type_v2",
    "torch.nn.parameter.Parameter",
    "torch.Tensor",
    "torch.Size",
    "torch.device",
    "torch.storage.TypedStorage",
    "torch.storage.UntypedStorage",
    "torch.UntypedStorage",
    "torch.FloatStorage",
    "torch.DoubleStorage",
    "torch.HalfStorage",
    "torch.BFloat16Storage",
    "torch.LongStorage",
    "torch.IntStorage",
    "torch.ShortStorage",
    "torch.CharStorage",
    "torch.ByteStorage",
    "torch.BoolStorage",
    "torch.float64",
    "torch.float32",
    "torch.float16",
    "torch.bfloat16",
    "torch.int64",
    "torch.int32",
    "torch.int16",
    "torch.int8",
    "torch.uint64",
    "torch.uint32",
    "torch.uint16",
    "torch.uint8",
    "torch.bool",
];

impl Outline {
    /// Read the outline of a `torch.save` file.
    ///
    /// # Errors
    /// [`Error::File`] where the file is not one, is damaged, or holds what `torch.save` never writes.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io("read", path, e))?;
        if !bytes.is_file() {
            return Err(Error::file(path, "not a regular file; give the file that torch.save wrote"));
        }
        let mut reader = BufReader::new(file);
        let head = reader.fill_buf().map_err(|e| Error::io("read", path, e))?;
        match Container::of(&head[..head.len().min(262)]) {
            Container::Zip => from_zip(path, reader, bytes.len()),
            Container::Legacy => from_legacy(path, reader),
            Container::Other(what) => Err(Error::file(
                path,
                format!(
                    "{what}, not a file of torch.save; write it again with torch.save(optimizer.state_dict(), …)"
                ),
            )),
        }
    }

    /// The outermost value.
    pub(crate) fn root(&self) -> Id {
        self.root
    }

    pub(crate) fn node(&self, id: Id) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// Imports that no state dict needs, as `posix.system`.
    pub(crate) fn foreign_imports(&self) -> Vec<String> {
        self.imports.iter().filter(|name| !KNOWN_IMPORTS.contains(&name.as_str())).cloned().collect()
    }

    /// The value of a dictionary under a text key; the last one where the key is repeated, as in Python.
    pub(crate) fn get(&self, dict: Id, key: &str) -> Option<Id> {
        self.pairs(dict)?.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|&(_, v)| v)
    }

    /// The pairs of a dictionary, in order.
    pub(crate) fn pairs(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(pairs) => Some(pairs),
            _ => None,
        }
    }

    /// The items of a list, tuple or set.
    pub(crate) fn items(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::List(items) => Some(items),
            _ => None,
        }
    }

    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The values inside a dict (under texts) or list, with the keys that lead to them from the root.
    pub(crate) fn children(&self, id: Id, keys: &[String]) -> Vec<(Id, Vec<String>)> {
        let below = |key: String, value: Id| (value, [keys, &[key]].concat());
        match self.node(id) {
            Node::Dict(pairs) => {
                let texts = pairs.iter().filter_map(|&(k, v)| self.text(k).map(|key| (key.to_owned(), v)));
                texts.map(|(key, v)| below(key, v)).collect()
            }
            Node::List(items) => items.iter().enumerate().map(|(i, &v)| below(i.to_string(), v)).collect(),
            _ => Vec::new(),
        }
    }

    /// What a value is, in Python's words, for messages.
    pub(crate) fn kind(&self, id: Id) -> String {
        match self.node(id) {
            Node::None => "None".into(),
            Node::Bool(_) => "a bool".into(),
            Node::Int(_) => "an int".into(),
            Node::Float(_) => "a float".into(),
            Node::Text(_) => "a str".into(),
            Node::List(_) => "a list".into(),
            Node::Dict(_) => "a dict".into(),
            Node::Import(name) => format!("the import {}", printable(name)),
            Node::Made { by, .. } => format!("an object made by {}", printable(by)),
            Node::Storage(_) => "a storage".into(),
            Node::Other => "bytes or a very large int".into(),
        }
    }

    /// What tells two tensors apart: their storage, offset and size. Tied parameters share it.
    /// Nothing where the value is no tensor.
    pub(crate) fn tensor_identity(&self, id: Id) -> Option<String> {
        let Node::Made { by, args } = self.node(id) else { return None };
        let args = self.items(*args)?;
        match by.as_str() {
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                self.tensor_identity_of_call(*args.first()?)
            }
            "torch._tensor._rebuild_from_type_v2" => self.storage_identity(self.items(*args.get(2)?)?),
            _ if by.starts_with("torch._utils._rebuild_tensor") => self.storage_identity(args),
            _ => None,
        }
    }

    /// [`Self::tensor_identity`] one level down: a parameter wraps a tensor, never another parameter.
    fn tensor_identity_of_call(&self, id: Id) -> Option<String> {
        let Node::Made { by, args } = self.node(id) else { return None };
        let plain = by.starts_with("torch._utils._rebuild_tensor");
        plain.then(|| self.storage_identity(self.items(*args)?)).flatten()
    }

    fn storage_identity(&self, args: &[Id]) -> Option<String> {
        let [storage, offset, size, ..] = args else { return None };
        let Node::Storage(name) = self.node(*storage) else { return None };
        let key = *self.items(*name)?.get(2)?;
        let sizes: Vec<&Node> = self.items(*size)?.iter().map(|&s| self.node(s)).collect();
        Some(format!("{:?} {:?} {sizes:?}", self.node(key), self.node(*offset)))
    }
}

/// A state dict found in a file.
#[derive(Debug)]
pub(crate) struct StateDict {
    /// The keys that lead to it.
    pub(crate) container: Vec<String>,
    /// Its tensors as they were defined, a tied tensor under its first name only.
    pub(crate) names: Vec<String>,
}

impl StateDict {
    /// The reader's handle of one of its tensors.
    pub(crate) fn tensor<'a>(
        &self,
        reader: &'a PytorchReader,
        name: &str,
    ) -> Option<&'a pytorch_reader::Tensor> {
        let keys: Vec<&str> = self.container.iter().map(String::as_str).chain([name]).collect();
        reader.get(&keys.join("."))
    }

    /// The names of its floating-point tensors, in order.
    pub(crate) fn float_names(self, reader: &PytorchReader) -> Vec<String> {
        let float = |name: &String| self.tensor(reader, name).is_some_and(|tensor| is_float(tensor.dtype()));
        self.names.iter().filter(|name| float(name)).cloned().collect()
    }
}

/// Whether a parameter can have this type.
pub(crate) fn is_float(dtype: Stored) -> bool {
    matches!(dtype, Stored::F64 | Stored::F32 | Stored::F16 | Stored::BF16)
}

/// Every dict of names to tensors within two levels of the root, apart from what lies under `except`.
pub(crate) fn state_dicts(outline: &Outline, except: &[Id]) -> Vec<StateDict> {
    let mut seen: HashSet<Id> = except.iter().copied().collect();
    let mut level = vec![(outline.root(), Vec::new())];
    let mut found = Vec::new();
    for _ in 0..3 {
        let mut below = Vec::new();
        for (id, container) in level {
            if !seen.insert(id) {
                continue;
            }
            let Some(pairs) = outline.pairs(id) else { continue };
            match tensor_names(outline, pairs) {
                Some(names) => found.push(StateDict { container, names }),
                None => below.extend(outline.children(id, &container)),
            }
        }
        level = below;
    }
    found
}

/// The names of a dict whose values are all tensors; a second name of the same tensor is left out.
fn tensor_names(outline: &Outline, pairs: &[(Id, Id)]) -> Option<Vec<String>> {
    let mut seen = HashSet::new();
    let mut names = Vec::new();
    for &(key, value) in pairs {
        let name = outline.text(key)?;
        if seen.insert(outline.tensor_identity(value)?) {
            names.push(name.to_owned());
        }
    }
    (!names.is_empty()).then_some(names)
}

enum Container {
    Zip,
    Legacy,
    Other(&'static str),
}

impl Container {
    /// Told by the first bytes.
    fn of(head: &[u8]) -> Self {
        // 0x1950a86a20f9469cfc6c, with which files of PyTorch before 1.6 begin.
        const LEGACY: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
        if head.starts_with(b"PK\x03\x04") {
            Self::Zip
        } else if head.windows(LEGACY.len()).take(64).any(|w| w == LEGACY) {
            Self::Legacy
        } else if head.is_empty() {
            Self::Other("an empty file")
        } else if head.starts_with(b"version https://git-lfs") {
            Self::Other("a git-lfs pointer (run `git lfs pull`)")
        } else if head.get(8) == Some(&b'{') {
            Self::Other("a safetensors file")
        } else if head.get(257..262) == Some(b"ustar") {
            Self::Other("a tar archive of PyTorch before 0.1.10")
        } else if head.first() == Some(&0x80) {
            Self::Other("a bare pickle")
        } else {
            Self::Other("an unknown kind of file")
        }
    }
}

fn from_legacy(path: &Path, mut reader: BufReader<File>) -> Result<Outline> {
    // A magic number, a protocol version and the system's sizes come first, a pickle each.
    for _ in 0..3 {
        read(&mut reader).map_err(|problem| Error::file(path, problem))?;
    }
    read(&mut reader).map_err(|problem| Error::file(path, problem))
}

fn from_zip(path: &Path, reader: BufReader<File>, file_bytes: u64) -> Result<Outline> {
    let bad = |e: zip::result::ZipError| {
        Error::file(path, format!("damaged zip archive ({e}); was the copy or download cut short?"))
    };
    let mut archive = ZipArchive::new(reader).map_err(bad)?;
    let pickle_name = checked_pickle_entry(path, &mut archive, file_bytes)?;
    let root = pickle_name.strip_suffix("data.pkl").unwrap_or_default().to_owned();
    if let Some(order) = small_entry(path, &mut archive, &format!("{root}byteorder"))?
        && order.trim_ascii() != b"little"
    {
        let problem = "written in big-endian byte order, which is not read; load and save it on a little-endian machine";
        return Err(Error::file(path, problem));
    }
    let mut entry = archive.by_name(&pickle_name).map_err(bad)?;
    if entry.size() > MAX_PICKLE_BYTES {
        let problem =
            format!("data.pkl has {} bytes, more than {MAX_PICKLE_BYTES}: not a state dict", entry.size());
        return Err(Error::file(path, problem));
    }
    let mut pickle = Vec::new();
    entry.read_to_end(&mut pickle).map_err(|e| Error::file(path, format!("data.pkl is damaged: {e}")))?;
    read(&mut pickle.as_slice()).map_err(|problem| Error::file(path, problem))
}

/// Check the archive against what `torch.save` writes, and name its one `data.pkl`.
fn checked_pickle_entry<R: Read + Seek>(
    path: &Path,
    archive: &mut ZipArchive<R>,
    file_bytes: u64,
) -> Result<String> {
    let refuse = |problem: String| Err(Error::file(path, problem));
    if directory_entries(path, archive.central_directory_start())? != archive.len() {
        return refuse("two zip entries have the same name, which torch.save never writes: refused".into());
    }
    let mut total = 0_u64;
    let mut pickles = Vec::new();
    for index in 0..archive.len() {
        let entry = archive
            .by_index_raw(index)
            .map_err(|e| Error::file(path, format!("damaged zip archive: {e}")))?;
        let name =
            entry.name().map_err(|e| Error::file(path, format!("damaged zip archive: {e}")))?.into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return refuse(format!(
                "zip entry {} is compressed or encrypted, which torch.save never writes: refused; save it again with torch.save",
                printable(&name)
            ));
        }
        total = total.saturating_add(entry.size());
        if name == "data.pkl" || name.ends_with("/data.pkl") {
            pickles.push(name);
        }
    }
    if total > file_bytes {
        return refuse(format!("its entries claim {total} bytes, the file has {file_bytes}: refused"));
    }
    match pickles.as_slice() {
        [one] => Ok(one.clone()),
        [] => refuse("a zip archive without data.pkl, not a file of torch.save".into()),
        _ => refuse(format!("{} entries are called data.pkl, torch.save writes one: refused", pickles.len())),
    }
}

/// The entries that the archive's directory lists. The zip crate keeps the last of those with one name.
fn directory_entries(path: &Path, start: u64) -> Result<usize> {
    let io = |e| Error::io("read", path, e);
    let mut file = BufReader::new(File::open(path).map_err(io)?);
    file.seek(SeekFrom::Start(start)).map_err(io)?;
    let mut count = 0;
    let mut header = [0; 46];
    // A header of 46 bytes begins with its signature and ends with a name, an extra field and a comment of its own lengths.
    while file.read_exact(&mut header).is_ok() && header.starts_with(b"PK\x01\x02") {
        let length = |at: usize| i64::from(u16::from_le_bytes([header[at], header[at + 1]]));
        file.seek_relative(length(28) + length(30) + length(32)).map_err(io)?;
        count += 1;
    }
    Ok(count)
}

/// A text entry such as `byteorder`, where there is one.
fn small_entry<R: Read + Seek>(
    path: &Path,
    archive: &mut ZipArchive<R>,
    name: &str,
) -> Result<Option<Vec<u8>>> {
    let Ok(entry) = archive.by_name(name) else { return Ok(None) };
    let mut text = Vec::new();
    entry
        .take(4096)
        .read_to_end(&mut text)
        .map_err(|e| Error::file(path, format!("{} is damaged: {e}", printable(name))))?;
    Ok(Some(text))
}

/// Run one pickle to its end, leaving `reader` behind it.
fn read<R: BufRead>(reader: &mut R) -> Result<Outline, String> {
    let mut machine = Machine::default();
    for _ in 0..MAX_STEPS {
        if let Some(root) = machine.step(reader)? {
            return Ok(Outline { nodes: machine.nodes, root, imports: machine.imports });
        }
    }
    Err(format!("its pickle has more than {MAX_STEPS} operations: not a state dict"))
}

#[derive(Default)]
struct Machine {
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    imports: BTreeSet<String>,
}

/// Damage is told in words; the caller adds the path.
type Step<T = ()> = Result<T, String>;

impl Machine {
    /// One operation; the root, after the last.
    fn step<R: BufRead>(&mut self, r: &mut R) -> Step<Option<Id>> {
        match byte(r)? {
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => self.drop_top()?,
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = self.pop()?;
                self.stack.extend([top, top]);
            }
            0x80 => drop(byte(r)?),
            0x95 => drop(fixed::<8>(r)?),
            op @ (b'N' | 0x88 | 0x89 | b'I' | b'J' | b'K' | b'M' | b'L' | 0x8a | 0x8b | b'F' | b'G') => {
                let node = number(op, r)?;
                self.push(node)?;
            }
            op @ (b'V' | b'X' | 0x8c | 0x8d | b'T' | b'U' | b'S' | b'B' | b'C' | 0x8e | 0x96) => {
                let node = text(op, r)?;
                self.push(node)?;
            }
            op @ (b'g' | b'h' | b'j' | b'p' | b'q' | b'r' | 0x94) => self.memory(op, r)?,
            op @ (b'c' | 0x93 | b'P' | b'Q' | b'R' | 0x81 | 0x92 | b'i' | b'o' | b'b') => {
                self.object(op, r)?;
            }
            op => self.collection(op)?,
        }
        Ok(None)
    }

    fn push(&mut self, node: Node) -> Step {
        let id = self.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    fn add(&mut self, node: Node) -> Step<Id> {
        if self.nodes.len() >= MAX_NODES {
            return Err(format!("its pickle holds more than {MAX_NODES} values: not a state dict"));
        }
        let id = Id(u32::try_from(self.nodes.len()).map_err(|_| "too many values".to_owned())?);
        self.nodes.push(node);
        Ok(id)
    }

    fn pop(&mut self) -> Step<Id> {
        // What lies below the newest mark belongs to an unfinished collection.
        if self.marks.last().is_some_and(|&mark| mark >= self.stack.len()) {
            return Err(damaged("a value is missing after a mark"));
        }
        self.stack.pop().ok_or_else(|| damaged("a value is missing"))
    }

    fn top(&self) -> Step<Id> {
        self.stack.last().copied().ok_or_else(|| damaged("a value is missing"))
    }

    fn drop_top(&mut self) -> Step {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn pop_to_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| damaged("a mark is missing"))?;
        if mark > self.stack.len() {
            return Err(damaged("a mark lies beyond the stack"));
        }
        Ok(self.stack.split_off(mark))
    }

    fn memory<R: BufRead>(&mut self, op: u8, r: &mut R) -> Step {
        let key = match op {
            b'g' | b'p' => line(r)?.parse().map_err(|_| damaged("a memo index is not a number"))?,
            b'h' | b'q' => u32::from(byte(r)?),
            0x94 => u32::try_from(self.memo.len()).map_err(|_| damaged("too many memos"))?,
            _ => u32::from_le_bytes(fixed(r)?),
        };
        if matches!(op, b'g' | b'h' | b'j') {
            let id = *self.memo.get(&key).ok_or_else(|| damaged("a memo is used before it is set"))?;
            self.stack.push(id);
        } else {
            self.memo.insert(key, self.top()?);
        }
        Ok(())
    }

    fn collection(&mut self, op: u8) -> Step {
        match op {
            b')' | b']' | 0x8f => self.push(Node::List(Vec::new())),
            b'}' => self.push(Node::Dict(Vec::new())),
            b't' | b'l' | 0x91 => {
                let items = self.pop_to_mark()?;
                self.push(Node::List(items))
            }
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Dict(in_pairs(&items)?))
            }
            0x85..=0x87 => {
                let mut items = (0x84..op).map(|_| self.pop()).collect::<Step<Vec<Id>>>()?;
                items.reverse();
                self.push(Node::List(items))
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(&[item])
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.extend(&items)
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(&[key, value])
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(&items)
            }
            _ => Err(damaged(&format!("operation 0x{op:02x} is unknown"))),
        }
    }

    /// Items added to an object that is no list (nothing called it into being) are dropped with it.
    fn extend(&mut self, items: &[Id]) -> Step {
        let list = self.top()?;
        if let Node::List(all) = &mut self.nodes[list.0 as usize] {
            all.extend_from_slice(items);
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Step {
        let dict = self.top()?;
        let pairs = in_pairs(items)?;
        if let Node::Dict(all) = &mut self.nodes[dict.0 as usize] {
            all.extend(pairs);
        }
        Ok(())
    }

    fn object<R: BufRead>(&mut self, op: u8, r: &mut R) -> Step {
        match op {
            b'c' => {
                let name = format!("{}.{}", line(r)?, line(r)?);
                self.import(name)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.nodes[module.0 as usize], &self.nodes[name.0 as usize]) {
                    (Node::Text(module), Node::Text(name)) => self.import(format!("{module}.{name}")),
                    _ => Err(damaged("an import has no name")),
                }
            }
            b'P' => {
                let name = self.add(Node::Text(line(r)?))?;
                self.push(Node::Storage(name))
            }
            b'Q' => {
                let name = self.pop()?;
                self.push(Node::Storage(name))
            }
            // A dict's attributes (a state dict's `_metadata`) are none of its items, and an object's are not needed.
            b'b' => self.pop().and_then(|_| self.top()).map(drop),
            b'R' | 0x81 => {
                let (args, callable) = (self.pop()?, self.pop()?);
                self.call(callable, args)
            }
            0x92 => {
                let (_, args, callable) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(callable, args)
            }
            _ => self.old_instance(op, r),
        }
    }

    /// `INST` and `OBJ`, instances of protocols 0 and 1.
    fn old_instance<R: BufRead>(&mut self, op: u8, r: &mut R) -> Step {
        if op == b'i' {
            let name = format!("{}.{}", line(r)?, line(r)?);
            self.import(name)?;
            let class = self.pop()?;
            let items = self.pop_to_mark()?;
            let args = self.add(Node::List(items))?;
            return self.call(class, args);
        }
        let items = self.pop_to_mark()?;
        let (class, items) = items.split_first().ok_or_else(|| damaged("an instance has no class"))?;
        let args = self.add(Node::List(items.to_vec()))?;
        self.call(*class, args)
    }

    fn import(&mut self, name: String) -> Step {
        self.imports.insert(name.clone());
        self.push(Node::Import(name))
    }

    /// Note a call. Dictionaries become dictionaries, everything else stays a [`Node::Made`].
    fn call(&mut self, callable: Id, args: Id) -> Step {
        let by = match &self.nodes[callable.0 as usize] {
            Node::Import(name) => name.clone(),
            _ => "a computed function".to_owned(),
        };
        let node = match by.as_str() {
            "collections.OrderedDict" | "builtins.dict" | "__builtin__.dict" => {
                Node::Dict(self.initial_pairs(args))
            }
            // The first argument of a defaultdict is what makes the missing, not a list of pairs.
            "collections.defaultdict" => Node::Dict(Vec::new()),
            "builtins.set" | "__builtin__.set" => Node::List(self.initial_items(args)),
            _ => Node::Made { by, args },
        };
        self.push(node)
    }

    fn initial_items(&self, args: Id) -> Vec<Id> {
        let first = self.list(args).first().copied();
        first.map_or_else(Vec::new, |items| self.list(items).to_vec())
    }

    fn initial_pairs(&self, args: Id) -> Vec<(Id, Id)> {
        let pair = |id| match self.list(id) {
            &[key, value] => Some((key, value)),
            _ => None,
        };
        self.initial_items(args).into_iter().filter_map(pair).collect()
    }

    fn list(&self, id: Id) -> &[Id] {
        match &self.nodes[id.0 as usize] {
            Node::List(items) => items,
            _ => &[],
        }
    }
}

fn damaged(problem: &str) -> String {
    format!("its pickle is damaged: {problem}; was the copy or download cut short?")
}

fn in_pairs(items: &[Id]) -> Step<Vec<(Id, Id)>> {
    if !items.len().is_multiple_of(2) {
        return Err(damaged("a dictionary has a key without a value"));
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

fn number<R: BufRead>(op: u8, r: &mut R) -> Step<Node> {
    Ok(match op {
        b'N' => Node::None,
        0x88 => Node::Bool(true),
        0x89 => Node::Bool(false),
        b'J' => Node::Int(i64::from(i32::from_le_bytes(fixed(r)?))),
        b'K' => Node::Int(i64::from(byte(r)?)),
        b'M' => Node::Int(i64::from(u16::from_le_bytes(fixed(r)?))),
        0x8a => {
            let len = u64::from(byte(r)?);
            long(&taken(r, len)?)
        }
        0x8b => {
            let len = u64::from(u32::from_le_bytes(fixed(r)?));
            long(&taken(r, len)?)
        }
        b'G' => Node::Float(f64::from_be_bytes(fixed(r)?)),
        b'F' => Node::Float(line(r)?.parse().map_err(|_| damaged("a float is not a number"))?),
        _ => match line(r)?.trim_end_matches('L') {
            "00" if op == b'I' => Node::Bool(false),
            "01" if op == b'I' => Node::Bool(true),
            digits => digits.parse().map_or(Node::Other, Node::Int),
        },
    })
}

/// Two's complement, little-endian, of any length.
fn long(bytes: &[u8]) -> Node {
    let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
    let mut eight = [fill; 8];
    let (low, high) = bytes.split_at(bytes.len().min(8));
    eight[..low.len()].copy_from_slice(low);
    let value = i64::from_le_bytes(eight);
    let fits = high.iter().all(|&b| b == fill) && (value < 0) == (fill == 0xff);
    if fits { Node::Int(value) } else { Node::Other }
}

fn text<R: BufRead>(op: u8, r: &mut R) -> Step<Node> {
    let len = match op {
        b'V' | b'S' => return line(r).map(Node::Text),
        b'U' | b'C' | 0x8c => u64::from(byte(r)?),
        b'X' | b'T' | b'B' => u64::from(u32::from_le_bytes(fixed(r)?)),
        _ => u64::from_le_bytes(fixed(r)?),
    };
    let bytes = taken(r, len)?;
    if matches!(op, b'B' | b'C' | 0x8e | 0x96) {
        return Ok(Node::Other);
    }
    Ok(String::from_utf8(bytes).map_or(Node::Other, Node::Text))
}

fn byte<R: BufRead>(r: &mut R) -> Step<u8> {
    fixed::<1>(r).map(|[b]| b)
}

fn fixed<const N: usize>(r: &mut impl BufRead) -> Step<[u8; N]> {
    let mut bytes = [0; N];
    r.read_exact(&mut bytes).map_err(|_| damaged("it ends too early"))?;
    Ok(bytes)
}

/// Memory grows with the bytes that arrive, not with the length that is claimed.
fn taken<R: BufRead>(r: &mut R, len: u64) -> Step<Vec<u8>> {
    let mut bytes = Vec::new();
    r.take(len.min(MAX_PICKLE_BYTES)).read_to_end(&mut bytes).map_err(|e| damaged(&e.to_string()))?;
    if bytes.len() as u64 == len { Ok(bytes) } else { Err(damaged("a text is shorter than it claims")) }
}

fn line<R: BufRead>(r: &mut R) -> Step<String> {
    let mut bytes = Vec::new();
    r.take(MAX_PICKLE_BYTES).read_until(b'\n', &mut bytes).map_err(|e| damaged(&e.to_string()))?;
    match bytes.pop() {
        Some(b'\n') => String::from_utf8(bytes).map_err(|_| damaged("a line is not UTF-8")),
        _ => Err(damaged("it ends too early")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(bytes: &[u8]) -> Result<Outline, String> {
        read(&mut &bytes[..])
    }

    #[test]
    fn a_dict_keeps_its_order_and_the_kinds_of_its_keys() {
        // pickle.dumps({"b": 1, 0: 2.5, "a": [True, None]}, protocol=2)
        let o = outline(b"\x80\x02}(X\x01\x00\x00\x00bK\x01K\x00G@\x04\x00\x00\x00\x00\x00\x00X\x01\x00\x00\x00a](\x88Neu.").unwrap();
        let keys: Vec<&Node> = o.pairs(o.root()).unwrap().iter().map(|&(k, _)| o.node(k)).collect();
        assert_eq!(keys, [&Node::Text("b".into()), &Node::Int(0), &Node::Text("a".into())]);
        assert_eq!(o.node(o.get(o.root(), "b").unwrap()), &Node::Int(1));
        assert_eq!(o.items(o.get(o.root(), "a").unwrap()).unwrap().len(), 2);
    }

    #[test]
    fn a_call_is_noted_and_not_made() {
        let o = outline(b"cposix\nsystem\nX\x02\x00\x00\x00id\x85R.");
        let o = o.unwrap();
        assert!(matches!(o.node(o.root()), Node::Made { by, .. } if by == "posix.system"));
        assert_eq!(o.foreign_imports(), ["posix.system"]);
    }

    #[test]
    fn an_import_whose_name_begins_like_a_known_one_is_foreign() {
        let o = outline(b"cbuiltins\nsetattr\n.").unwrap();
        assert_eq!(o.foreign_imports(), ["builtins.setattr"]);
        let o = outline(b"ctorch.storage\n_load_from_bytes\n.").unwrap();
        assert_eq!(o.foreign_imports().len(), 1);
    }

    #[test]
    fn a_dict_that_contains_itself_is_read() {
        let o = outline(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.").unwrap();
        assert_eq!(o.get(o.root(), "a"), Some(o.root()));
    }

    #[test]
    fn deep_nesting_costs_no_stack() {
        let mut bytes = b"\x80\x02]".to_vec();
        bytes.extend(std::iter::repeat_n(0x85, 1_000_000));
        bytes.push(b'.');
        assert!(outline(&bytes).is_ok());
    }

    #[test]
    fn damage_is_told() {
        for bytes in
            [&b""[..], b"\x80", b".", b"t.", b"h\x00.", b"X\xff\xff\xff\xffa", b"\xff", b"}K\x01s.", b"(0s."]
        {
            assert!(outline(bytes).unwrap_err().contains("damaged"), "{bytes:?}");
        }
    }

    #[test]
    fn whole_numbers_at_the_edge_of_64_bits() {
        assert_eq!(long(&[]), Node::Int(0));
        assert_eq!(long(&[0xff]), Node::Int(-1));
        assert_eq!(long(&[0xff, 0]), Node::Int(255));
        assert_eq!(long(&[0, 0, 0, 0, 0, 0, 0, 0x80]), Node::Int(i64::MIN));
        assert_eq!(long(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0]), Node::Other);
    }
}
