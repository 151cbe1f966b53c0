//! Which tensors a selection is about.

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::error::{Error, Result, printable};

/// Patterns over tensor names, as a shell's: `*` any characters (dots too), `?` one, `[ab]`, `{a,b}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Globs {
    /// Only these are selected from; all if there are none.
    pub include: Vec<String>,
    /// These are left out: neither selected from nor counted.
    pub exclude: Vec<String>,
    /// These are kept whole and counted in the budget, whatever the other two say (Sung et al. 2021 do so
    /// with the classifier).
    pub always: Vec<String>,
}

/// What becomes of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Ranked with the others: the best elements are kept.
    Ranked,
    /// Kept whole, and counted among what is kept.
    Always,
    /// Left as it is, and not counted.
    Excluded,
}

/// The roles of `names`.
///
/// # Errors
/// [`Error::Argument`] for a pattern that is none, [`Error::Mismatch`] for one that matches nothing: a
/// misspelt name would otherwise silently select other tensors.
pub(super) fn roles(op: &str, globs: &Globs, names: &[&str]) -> Result<Vec<Role>> {
    let [include, exclude, always] =
        [("include", &globs.include), ("exclude", &globs.exclude), ("always", &globs.always)]
            .map(|(flag, patterns)| compile(op, flag, patterns, names));
    let (include, exclude, always) = (include?, exclude?, always?);
    let role = |name: &&str| {
        if always.is_match(name) {
            Role::Always
        } else if exclude.is_match(name) || (!globs.include.is_empty() && !include.is_match(name)) {
            Role::Excluded
        } else {
            Role::Ranked
        }
    };
    Ok(names.iter().map(role).collect())
}

fn compile(op: &str, flag: &str, patterns: &[String], names: &[&str]) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let invalid = |error: globset::Error| {
            Error::argument(op, format!("{flag} {}: {}", printable(pattern), error.kind()))
        };
        let glob = Glob::new(pattern).map_err(invalid)?;
        let matcher = glob.compile_matcher();
        if !names.iter().any(|name| matcher.is_match(name)) {
            let example = names.first().map_or_else(String::new, |name| format!(", as {}", printable(name)));
            let problem = format!(
                "{flag} {} matches none of the {} tensors; give a pattern of their names{example}",
                printable(pattern),
                names.len()
            );
            return Err(Error::mismatch(op, problem));
        }
        set.add(glob);
    }
    set.build().map_err(|error| Error::argument(op, format!("{flag}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] = ["a.bias", "a.weight", "b.weight", "head.weight"];

    fn globs(include: &[&str], exclude: &[&str], always: &[&str]) -> Globs {
        let owned = |patterns: &[&str]| patterns.iter().map(|&p| p.to_owned()).collect();
        Globs { include: owned(include), exclude: owned(exclude), always: owned(always) }
    }

    #[test]
    fn always_beats_exclude_beats_include() {
        use Role::{Always, Excluded, Ranked};
        let of = |globs: &Globs| roles("t", globs, &NAMES).expect("every pattern matches");
        assert_eq!(of(&Globs::default()), [Ranked; 4]);
        assert_eq!(of(&globs(&["*.weight"], &[], &[])), [Excluded, Ranked, Ranked, Ranked]);
        assert_eq!(of(&globs(&["a.*"], &["*bias"], &["head*"])), [Excluded, Ranked, Excluded, Always]);
        assert_eq!(of(&globs(&[], &["*"], &["head*"])), [Excluded, Excluded, Excluded, Always]);
    }

    #[test]
    fn patterns_that_match_nothing_or_mean_nothing_are_refused() {
        let text = |globs: &Globs| roles("t", globs, &NAMES).expect_err("it must be refused").to_string();
        let refused = text(&globs(&[], &["c.*"], &[]));
        assert!(refused.contains("exclude \"c.*\" matches none of the 4 tensors"), "{refused}");
        assert!(text(&globs(&["[a"], &[], &[])).contains("include \"[a\""));
    }
}
