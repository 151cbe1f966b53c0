//! Tensor names as rows and columns of a heatmap: which layer, and which module of it.

use std::cmp::Ordering;

/// A name taken apart at its first number: `model.layers.3.mlp.up.weight` is layer 3 of `model.layers`, module
/// `mlp.up.weight`. A name without a number is its own layer.
pub(super) fn split(name: &str) -> (String, String) {
    let parts: Vec<&str> = name.split('.').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    match parts.iter().position(is_number) {
        Some(at) if at + 1 < parts.len() => (parts[..=at].join("."), parts[at + 1..].join(".")),
        _ => match name.rsplit_once('.') {
            Some((layer, module)) => (layer.to_owned(), module.to_owned()),
            None => (name.to_owned(), String::new()),
        },
    }
}

/// Orders names as people count: `layers.2` before `layers.10`.
pub(super) fn by_number(a: &str, b: &str) -> Ordering {
    let mut left = a.split('.');
    let mut right = b.split('.');
    loop {
        let order = match (left.next(), right.next()) {
            (None, None) => return Ordering::Equal,
            (None, _) => Ordering::Less,
            (_, None) => Ordering::Greater,
            (Some(a), Some(b)) => match (a.parse::<u64>(), b.parse::<u64>()) {
                (Ok(a), Ok(b)) => a.cmp(&b),
                _ => a.cmp(b),
            },
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_at_their_first_number() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(split("model.layers.3.mlp.up.weight"), pair("model.layers.3", "mlp.up.weight"));
        assert_eq!(split("0.weight"), pair("0", "weight"));
        assert_eq!(split("lm_head.weight"), pair("lm_head", "weight"));
        assert_eq!(split("scale"), pair("scale", ""));
        assert_eq!(split("blocks.7"), pair("blocks", "7"));
    }

    #[test]
    fn layers_sort_as_people_count() {
        let mut layers = vec!["layers.10", "layers.2", "embed", "layers"];
        layers.sort_by(|a, b| by_number(a, b));
        assert_eq!(layers, ["embed", "layers", "layers.2", "layers.10"]);
    }
}
