//! How known trainers split parameters into groups.

use std::fmt;

/// A known trainer's way to split parameters into a group with weight decay and one without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupRule {
    /// Names with `bias` last.
    Bias,
    /// Names with `bias` or `LayerNorm.weight` last: the examples of transformers.
    BiasAndLayerNorm,
    /// Names with `bias`, `layernorm`, `rmsnorm` last, whatever their case: the Trainer of January 2025.
    TrainerNames,
    /// As [`Self::TrainerNames`], and parts called `norm` or ending in `_norm`: the Trainer since.
    TrainerPatterns,
    /// Names with `bias` and everything of one axis last: the Trainer where norm layers are known by class.
    BiasAndVectors,
    /// Everything of one axis last: nanoGPT.
    Vectors,
    /// Everything of one axis and every name that ends in `.bias` first: timm.
    VectorsFirst,
}

impl GroupRule {
    pub(super) const ALL: [Self; 7] = [
        Self::Bias,
        Self::BiasAndLayerNorm,
        Self::TrainerNames,
        Self::TrainerPatterns,
        Self::BiasAndVectors,
        Self::Vectors,
        Self::VectorsFirst,
    ];

    /// Whether a parameter goes into the group without weight decay.
    pub(super) fn without_decay(self, name: &str, shape: &[u64]) -> bool {
        let lower = name.to_lowercase();
        let any = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
        let vector = shape.len() < 2;
        match self {
            Self::Bias => name.contains("bias"),
            Self::BiasAndLayerNorm => name.contains("bias") || name.contains("LayerNorm.weight"),
            Self::TrainerNames => any(&["bias", "layernorm", "rmsnorm"]),
            Self::TrainerPatterns => {
                let norm = |part: &str| part == "norm" || part.ends_with("_norm");
                any(&["bias", "layernorm", "rmsnorm"]) || lower.split('.').any(norm)
            }
            Self::BiasAndVectors => name.contains("bias") || vector,
            Self::Vectors => vector,
            Self::VectorsFirst => vector || name.ends_with(".bias"),
        }
    }

    /// The group that takes the parameters without decay.
    pub(super) const fn group_without_decay(self) -> usize {
        match self {
            Self::VectorsFirst => 0,
            _ => 1,
        }
    }
}

impl fmt::Display for GroupRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bias => "biases last",
            Self::BiasAndLayerNorm => "biases and LayerNorm weights last",
            Self::TrainerNames => "biases, layernorm and rmsnorm last (transformers Trainer)",
            Self::TrainerPatterns => "biases and norms by pattern last (transformers Trainer)",
            Self::BiasAndVectors => "biases and vectors last (transformers Trainer, norms by class)",
            Self::Vectors => "vectors last (nanoGPT)",
            Self::VectorsFirst => "vectors and biases first (timm)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_split_as_their_trainers_do() {
        let two = [8, 8];
        assert!(GroupRule::TrainerPatterns.without_decay("model.norm.weight", &[8]));
        assert!(GroupRule::TrainerPatterns.without_decay("a.q_norm.weight", &[8]));
        assert!(!GroupRule::TrainerPatterns.without_decay("a.normal.weight", &two));
        assert!(!GroupRule::TrainerNames.without_decay("model.norm.weight", &[8]));
        assert!(GroupRule::TrainerNames.without_decay("a.input_layernorm.weight", &[8]));
        assert!(GroupRule::Bias.without_decay("relative_attention_bias.weight", &two));
        assert!(!GroupRule::Vectors.without_decay("relative_attention_bias.weight", &two));
    }
}
