//! What follows an operation of a pickle: numbers, texts and lines. Memory grows with the bytes that arrive.

use std::io::{BufRead, Read};

use super::Node;

/// The largest pickle that is read; the bytes of tensors are not part of it.
pub(super) const MAX_PICKLE_BYTES: u64 = pytorch_reader::MAX_PICKLE_SIZE;

/// Damage is told in words; the caller adds the path.
pub(super) type Step<T = ()> = Result<T, String>;

pub(super) fn damaged(problem: &str) -> String {
    format!("its pickle is damaged: {problem}; was the copy or download cut short?")
}

/// The number, or constant, of an operation.
pub(super) fn number<R: BufRead>(op: u8, r: &mut R) -> Step<Node> {
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

/// The text of an operation, or its bytes, which are not kept.
pub(super) fn text<R: BufRead>(op: u8, r: &mut R) -> Step<Node> {
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

pub(super) fn byte<R: BufRead>(r: &mut R) -> Step<u8> {
    fixed::<1>(r).map(|[b]| b)
}

pub(super) fn fixed<const N: usize>(r: &mut impl BufRead) -> Step<[u8; N]> {
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

/// A text that ends with its line.
pub(super) fn line<R: BufRead>(r: &mut R) -> Step<String> {
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

    #[test]
    fn whole_numbers_at_the_edge_of_64_bits() {
        assert_eq!(long(&[]), Node::Int(0));
        assert_eq!(long(&[0xff]), Node::Int(-1));
        assert_eq!(long(&[0xff, 0]), Node::Int(255));
        assert_eq!(long(&[0, 0, 0, 0, 0, 0, 0, 0x80]), Node::Int(i64::MIN));
        assert_eq!(long(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0]), Node::Other);
    }
}
