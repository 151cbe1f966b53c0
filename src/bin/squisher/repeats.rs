//! The same file given twice: allowed, and seldom meant.

use std::path::{Path, PathBuf};

/// One warning for each of `paths` that an earlier one of them is too, whatever it is called: "`what` PATH is
/// given twice: `effect`".
pub(crate) fn repeats<'a>(
    paths: impl IntoIterator<Item = &'a Path>,
    what: &str,
    effect: &str,
) -> Vec<String> {
    let mut known: Vec<PathBuf> = Vec::new();
    let mut warnings = Vec::new();
    for path in paths {
        let Ok(real) = path.canonicalize() else { continue };
        if known.contains(&real) {
            warnings.push(format!("{what} {} is given twice: {effect}", path.display()));
        } else {
            known.push(real);
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_again_under_another_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        [&a, &b].into_iter().for_each(|path| std::fs::write(path, "").expect("writes"));
        let roundabout = folder.path().join(".").join("a");
        let none: Vec<String> = Vec::new();
        assert_eq!(repeats([a.as_path(), &b], "capture", "it counts twice"), none);
        let found = repeats([a.as_path(), &b, &roundabout], "capture", "it counts twice");
        assert_eq!(found, [format!("capture {} is given twice: it counts twice", roundabout.display())]);
    }
}
