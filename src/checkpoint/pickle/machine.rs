//! A pickle is a program for a stack machine. This one keeps every value in one flat list and lets
//! lists and dictionaries hold positions in it, so that a value that contains itself, or that is nested
//! millions deep, costs no recursion. A call becomes a [`Node::Made`] that remembers who was called;
//! only `OrderedDict` and its like become what they would have become. The work is bounded by [`MAX_STEPS`]
//! and [`MAX_NODES`].

use std::collections::{BTreeSet, HashMap};
use std::io::BufRead;

use super::operands::{Step, byte, damaged, fixed, line, number, text};
use super::{Id, Node, Outline};

/// The most operations of one pickle. A tensor takes about forty.
const MAX_STEPS: u64 = 1 << 25;
/// The most values of one pickle. A tensor takes about twenty.
const MAX_NODES: usize = 1 << 23;

/// Run one pickle to its end, leaving `reader` behind it.
pub(super) fn run<R: BufRead>(reader: &mut R) -> Result<Outline, String> {
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

    /// Items added to an object that is not a list (nothing called it into being) are dropped with it.
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

fn in_pairs(items: &[Id]) -> Step<Vec<(Id, Id)>> {
    if !items.len().is_multiple_of(2) {
        return Err(damaged("a dictionary has a key without a value"));
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(bytes: &[u8]) -> Result<Outline, String> {
        run(&mut &bytes[..])
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
}
